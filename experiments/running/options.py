"""Options of the commands, as frozen dataclasses that check themselves.

A field is an option of the command line, and the comment above it is its help text.
``command_line.py`` reads them; ``experiments/presets.py`` has configurations by name.
"""

import argparse
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import snnjax
from snnjax import deploy

MOST_LEVELS = 65535  # of a quantized ReLU; float32 counts them exactly
MOST_STEPS = 10_000  # the spikes of all steps are held in memory


class Rule(NamedTuple):
    """The allowed values of an option, and their description in messages.

    Attributes:
        text: the description.
        holds: value -> whether it is allowed.
        names: the allowed values, if these are names.
    """

    text: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()


POSITIVE = Rule("> 0", lambda value: value > 0)
NOT_NEGATIVE = Rule(">= 0", lambda value: value >= 0)
FROM_0_TO_1 = Rule("in [0, 1]", lambda value: 0 <= value <= 1)


def at_most(largest: int) -> Rule:
    """The whole numbers from 1."""
    return Rule(f"1 to {largest}", lambda value: 1 <= value <= largest)


def one_of(*names: str) -> Rule:
    """One of these names."""
    return Rule(f"one of {', '.join(names)}", lambda value: value in names, names)


def name_among(names: Iterable[str]) -> Callable[[str], str]:
    """The argparse type of one of these names."""

    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"{text}; allowed: {', '.join(map(repr, names))}{closest(text, names)}"
            )
        return text

    return name


def closest(name: Any, names: Iterable[str]) -> str:
    """The names most like a wrong one, as the end of a message; "" if none is.

    >>> closest("bset", ["best", "light"])
    '; closest: best'
    """
    matches = difflib.get_close_matches(str(name), list(names), cutoff=0.75)
    return f"; closest: {', '.join(matches)}" if matches else ""


def _is_wait(value: str) -> bool:
    return value in ("T", "T-1") or value.isdecimal()


# The codes by their names for --codes.
CODES = {
    "rate": snnjax.codes.rate(),
    "radix": snnjax.codes.radix(),
    "radix3": snnjax.codes.radix(base=3),
    "radix4": snnjax.codes.radix(base=4),
    "harmonic": snnjax.codes.harmonic(),
}

# The chips by their names for --chip.
CHIPS = {
    "speck": deploy.speck,
    "xylo": deploy.xylo,
    "loihi2": deploy.loihi2,
    "akida1": deploy.akida1,
    "spinnaker2": deploy.spinnaker2,
    "loihi1": deploy.loihi1,
    "catalyst_n1": deploy.catalyst_n1,
}

# The best conversion in which every layer knows all of its input, without a price and
# with rounding at the last step: an ANN with activations of as many values.
QUANTIZED_ANN = "quantized_ann"

# The recipes by their names for --recipes: (options, seed) -> recipe.
RECIPES: dict[str, Callable[[Any, int], snnjax.Recipe]] = {
    "quantized": lambda config, seed: snnjax.quantized(),
    "max_activation": lambda config, seed: snnjax.max_activation(),
    "percentile": lambda config, seed: snnjax.percentile(),
    "bias_shift": lambda config, seed: snnjax.bias_shift(),
    "light": lambda config, seed: snnjax.light(),
    "advanced": lambda config, seed: snnjax.advanced(
        iterations=config.iterations, seed=seed
    ),
    "best": lambda config, seed: snnjax.best(),
    QUANTIZED_ANN: lambda config, seed: snnjax.best(price=0),
}

# The allowed values of an option, wherever it occurs.
BELOW_1 = Rule("in [0, 1)", lambda value: 0 <= value < 1)
RULES: dict[str, Rule] = {
    "answer_from": BELOW_1,
    "batch_size": POSITIVE,
    "calibration_images": POSITIVE,
    "chip": one_of(*CHIPS),
    "choice": BELOW_1,
    "clip": POSITIVE,
    "clip_norm": POSITIVE,
    "code": one_of(*CODES),
    "codes": one_of(*CODES),
    "columns": POSITIVE,
    "depth": POSITIVE,
    "difference_images": POSITIVE,
    "difference_step": POSITIVE,
    "distillation": FROM_0_TO_1,
    "dtype": one_of("float32", "bfloat16"),
    "epochs": POSITIVE,
    "held_back": NOT_NEGATIVE,
    "images": POSITIVE,
    "iterations": POSITIVE,
    "leak": Rule("in (0, 1]", lambda value: 0 < value <= 1),
    "learn": one_of("fixed", "choose"),
    "learning_rate": POSITIVE,
    "lowest": POSITIVE,
    "mask": NOT_NEGATIVE,
    "mesh": NOT_NEGATIVE,
    "padding": NOT_NEGATIVE,
    "pixels": POSITIVE,
    "recipe": one_of(*RECIPES),
    "recipes": one_of(*RECIPES),
    "reset": one_of("zero", "subtract"),
    "seed": NOT_NEGATIVE,
    "seeds": NOT_NEGATIVE,
    "sequence": one_of("rows", "permuted"),
    "spikes": POSITIVE,
    "steps": at_most(MOST_STEPS),
    "temperature": POSITIVE,
    "temperature_end": POSITIVE,
    "temperature_rate": POSITIVE,
    "temperatures": POSITIVE,
    "test_images": POSITIVE,
    "threshold": POSITIVE,
    "time_constants": POSITIVE,
    "train_images": POSITIVE,
    "waits": Rule("a whole number >= 0, T or T-1", _is_wait),
    "warmup": BELOW_1,
    "weight_bits": at_most(16),
    "weight_decay": NOT_NEGATIVE,
    "width": POSITIVE,
}

# Tuples of numbers in an order, in which one may be there twice.
MAY_REPEAT = ("levels", "temperatures", "time_constants")


def check_range(config: object, name: str, rule: Rule) -> None:
    """Raise unless an option, or each entry of a tuple, obeys the rule, or is None."""
    option = getattr(config, name)
    values = option if isinstance(option, tuple) else (option,)
    for value in values:
        try:
            is_allowed = value is None or rule.holds(value)
        except TypeError:  # no comparison with a value of this type
            is_allowed = False
        if not is_allowed:
            suggestion = closest(value, rule.names)
            raise ValueError(f"{name} must be {rule.text}, not {value}{suggestion}")


def check(config: Any) -> None:
    """Raise unless all fields of a dataclass obey their rules.

    A tuple has one entry at least, and none twice, but in `MAY_REPEAT`.
    """
    for field in fields(config):
        name, option = field.name, getattr(config, field.name)
        if isinstance(option, tuple) and name not in MAY_REPEAT:
            if not option:
                raise ValueError(f"{name} is empty; give at least one")
            repeats = [entry for entry in option if option.count(entry) > 1]
            if repeats:
                raise ValueError(
                    f"{name} has {repeats[0]} more than once; give each one once"
                )
        if name in RULES:
            check_range(config, name, RULES[name])


@dataclass(frozen=True)
class Work:
    """Options of every command."""

    # Data set: "digits", the name of a TFDS set, a folder with train/<class>/ and
    # test/<class>/ or with MNIST's files, or, for train_snn, events (.npz file, or a
    # folder of N-MNIST or DVS-Gesture), keywords (a folder of WORD/*.wav), shd or ssc.
    dataset: str = "digits"
    # Folder of the data sets; by default ~/tensorflow_datasets.
    data_dir: str | None = None
    # Devices that share every batch, 0 for all (see experiments/running/devices.py).
    mesh: int = 1
    # Folder for all results; an interrupted run in it is resumed.
    out: str = "runs"

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class Training(Work):
    """Options of every training."""

    # Passes over the training images.
    epochs: int = 10
    # Images per step; an incomplete last batch is dropped.
    batch_size: int = 64
    # Peak of the learning rate: linear warm-up, then cosine to zero.
    learning_rate: float = 1e-3
    # Fraction of all steps spent on the warm-up.
    warmup: float = 0.1
    # Weight decay of kernels; biases, norms and neurons have none.
    weight_decay: float = 0.0
    # Mirror training images at random; not for digits.
    flip: bool = False
    # Random crops after padding by this many pixels; 0 for none. Of a sequence that is
    # no image, random shifts by so many steps.
    padding: int = 1
    # Training images used, the first of the data set; by default all.
    train_images: int | None = None
    # Fixes initial weights, order of the images and augmentation.
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.flip and self.dataset in ("digits", "mnist", "svhn_cropped"):
            raise ValueError(
                f"flip is True, but mirrored images of {self.dataset} are no digits; "
                "add --flip false"
            )


@dataclass(frozen=True)
class TrainANN(Training):
    """Training of a source network by SGD; results go to the folder `out`."""

    # Network, one of experiments.models.NAMES.
    model: str = "resnet20"
    dataset: str = "cifar10"
    out: str = "runs/cifar10_resnet20"
    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.1
    warmup: float = 0.02
    weight_decay: float = 5e-4
    flip: bool = True
    padding: int = 4
    # BatchNorm after each convolution.
    norm: bool = True
    # Maximum of a clipped ReLU; plain ReLU by default.
    clip: float | None = None
    # L of a quantized ReLU, whose maxima are trained: L + 1 values from 0.
    levels: int | None = None
    # Start from this network, as in experiments.convert, not from random weights; with
    # --levels its ReLUs become quantized, with fitted maxima.
    checkpoint: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_range(self, "levels", at_most(MOST_LEVELS))


@dataclass(frozen=True)
class TrainSNN(Training):
    """Direct training of a spiking network by Adam; results go to the folder `out`."""

    # Network, one of experiments.models.NAMES.
    model: str = "digits_resnet"
    out: str = "runs/snn_digits"
    epochs: int = 15
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    # BatchNorm after each convolution.
    norm: bool = True
    # Neurons of a layer, and layers, of the model "dense".
    width: int = 128
    depth: int = 2
    # Read an image as a sequence: its "rows", or its pixels in a "permuted" order.
    sequence: str | None = None
    # Pixels of a step ("permuted").
    pixels: int = 1
    # Widest band of steps, and of features, that training sets to their mean.
    mask: int = 0
    # Share of the training examples (whole speakers, where these are known) that is
    # held out: the log has its accuracy, by which options can be chosen.
    choice: float = 0.0
    # Time steps T; for events, the number of frames that they are binned into. Rows,
    # pixels and keywords bring their own.
    steps: int = 4
    # Neuron model, one of experiments.train_snn.NEURONS: "lif", behind a "synaptic"
    # current, with an "adaptive" current, or "recurrent" at sites of at most 2048
    # neurons, whose connections among each other are trained; "recurrent_adaptive" and
    # "recurrent_resonate" are both.
    neuron: str = "lif"
    # Factor on the potential before integration, in (0, 1]; 1 is IF.
    leak: float = 0.5
    # Shortest and longest time constant, in steps, of neurons that differ: each has its
    # own leak exp(-1 / tau), tau drawn evenly. By default all have `leak`.
    time_constants: tuple[float, ...] | None = None
    # Train the leaks and adaptations of every neuron, too, at a tenth of the rate.
    learn_neurons: bool = False
    # V_th of all neurons at the start.
    threshold: float = 1.0
    # After a spike: "zero" the potential or "subtract" the threshold.
    reset: str = "zero"
    # Surrogate, one of experiments.train_snn.SURROGATES.
    surrogate: str = "dspike"
    # Temperature b at the start (of the other surrogates: width or slope).
    temperature: float = 3.0
    # The same for each site, in their order; by default all have `temperature`.
    temperatures: tuple[float, ...] | None = None
    # Temperature that all sites reach after the last step, geometrically ("fixed").
    temperature_end: float | None = None
    # No gradient through the reset.
    detach_reset: bool = False
    # Largest norm of the gradient; by default it is not clipped.
    clip_norm: float | None = None
    # The answer, and the loss, are of the mean output after this share of the steps.
    answer_from: float = 0.0
    # Dspike's temperature: "choose" it once per epoch, as in the paper, or "fixed".
    learn: str = "choose"
    # Step of the finite differences ("choose"), in units of the weights.
    difference_step: float = 0.1
    # Images of a batch to measure the differences on ("choose").
    difference_images: int = 32
    # Change of the temperature per epoch ("choose").
    temperature_rate: float = 0.25
    # Lowest temperature ("choose").
    lowest: float = 0.5
    # Bits of the weights of the trained SNN in whole numbers; each has its own row.
    weight_bits: tuple[int, ...] | None = None
    # A chip, of experiments.running.CHIPS, whose numbers, rule of leaks and report.
    chip: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.learn == "choose" and self.temperature < self.lowest:
            raise ValueError(
                f"temperature {self.temperature} is below lowest {self.lowest}, the "
                "least that training may reach; change one of them, or learn fixed"
            )
        if self.learn == "choose" and self.temperature_end is not None:
            raise ValueError(
                f"temperature_end {self.temperature_end} is a schedule, and learn "
                "chooses the temperature; add --learn fixed"
            )
        if len(self.time_constants or (1, 1)) != 2:
            raise ValueError(
                "time_constants must be the shortest and the longest, not "
                f"{self.time_constants}"
            )


@dataclass(frozen=True)
class Conversion(Work):
    """Options of every conversion."""

    # Source network: the --out folder of a train_ann run, or a .safetensors file of
    # experiments/sources. If the default (for digits) is missing, it is trained.
    checkpoint: str = "runs/digits_resnet"
    # Network, one of experiments.models.NAMES, if the weights have no card (.json)
    # beside them; images are then normalized by mean and deviation of the data set.
    model: str | None = None
    # Training images to calibrate with, without their labels.
    calibration_images: int = 256
    # Test images to evaluate on, the first ones; by default all.
    test_images: int | None = None
    # Number format of the layers, "float32" or "bfloat16"; membranes stay float32.
    dtype: str = "float32"
    # The dead zone at step T, 0.5 to 1: a larger one saves last spikes and adds error.
    # By default the conversion chooses it for the levels of a code, and 0.5 for others.
    last_zone: float | None = None

    def __post_init__(self):
        super().__post_init__()
        # The neuron refuses levels and zones that do not fit.
        last_zone = 0.5 if self.last_zone is None else self.last_zone
        for levels in self.pairs() or [(-1, 1)]:
            snnjax.integrate_and_fire(levels=levels, last_zone=last_zone)

    def pairs(self) -> list[tuple[int, int]] | None:
        """(lowest, highest) level of a spike, for each group of rows.

        None: each code has its own.
        """
        levels = getattr(self, "levels")  # noqa: B009 (a field of the subclasses)
        if levels is None:
            return None
        if len(levels) % 2:
            raise ValueError(
                "levels must be pairs of lowest and highest, e.g. --levels 0 1, not "
                + " ".join(map(str, levels))
            )
        return list(zip(levels[::2], levels[1::2], strict=True))


@dataclass(frozen=True)
class Convert(Conversion):
    """Conversion of a trained network by several recipes; results go to `out`."""

    out: str = "runs/convert"
    # Numbers of time steps T; each is a separate conversion.
    steps: tuple[int, ...] = (4, 8)
    # Recipes, of experiments.running.RECIPES.
    recipes: tuple[str, ...] = tuple(r for r in RECIPES if "quantized" not in r)
    # Steps that each layer integrates before it fires: numbers, T-1, or T for all. By
    # default 0 for rate, which also has T for "best" if --codes names rate; for other
    # codes the least that is enough, which the conversion measures. "quantized_ann" has
    # T for rate, else T-1.
    waits: tuple[str, ...] | None = None
    # Pairs of the lowest and the highest level of a spike; each pair has its own rows:
    # 0 1 is binary, -1 1 signed, 0 3 graded. By default those of the code: 0 1 for
    # rate, -3 3 for radix4, -1 1 for the others.
    levels: tuple[int, ...] | None = None
    # Codes, of experiments.running.CODES: what a spike is worth at each step. Each has
    # its own rows. By default rate, and radix too for "best".
    codes: tuple[str, ...] | None = None
    # Spikes per neuron and image that "best" may send; each number has its own rows. By
    # default a price for each spike says how many pay.
    spikes: tuple[float, ...] | None = None
    # Seeds; each draws other calibration images.
    seeds: tuple[int, ...] = (0, 1)
    # Adam steps per site of weight calibration in "advanced" (the paper: 5000).
    iterations: int = 50
    # Bits of the weights of the saved SNN in whole numbers; each has its own row, e.g.
    # 8 4. By default, or without --chip, it is not rounded.
    weight_bits: tuple[int, ...] | None = None
    # A chip, of experiments.running.CHIPS, that reports what it can run of the SNN.
    chip: str | None = None
    # Evaluate this spiking network (the --out folder of a conversion) and stop.
    restore: str | None = None

    def __post_init__(self):
        super().__post_init__()
        self._check_waits_and_spikes()
        if self.restore is not None:
            self._check_restore()

    def _check_waits_and_spikes(self) -> None:
        """Raise unless waits and numbers of spikes suit recipes and steps."""
        fewest_steps = min(self.steps)
        for wait in self.waits or ():
            if wait.isdecimal() and int(wait) > fewest_steps:
                raise ValueError(
                    f"wait {wait} exceeds steps {fewest_steps}; no layer waits longer "
                    "than T, which is --waits T"
                )
        if self.spikes is None:
            return
        if "best" not in self.recipes:
            raise ValueError(
                "--spikes is a number of spikes for the recipe best, and --recipes has "
                f"{' '.join(self.recipes)}; add best, or leave out --spikes"
            )
        if max(self.spikes) > fewest_steps:
            raise ValueError(
                f"spikes {max(self.spikes):g} exceeds steps {fewest_steps}; a neuron "
                "sends one spike at most in each step"
            )

    def _check_restore(self) -> None:
        """Raise if an option stands beside --restore that has no effect there."""
        unused = []
        for field in fields(self):
            if field.name in ("restore", "data_dir", "test_images", "mesh"):
                continue
            if getattr(self, field.name) != field.default:
                unused.append(f"--{field.name}")
        if unused:
            raise ValueError(
                "--restore evaluates an SNN as it was saved, so it takes no "
                f"{', '.join(unused)}; allowed beside it: --data_dir, --test_images, "
                "--mesh"
            )


@dataclass(frozen=True)
class FineTune(Conversion, Training):
    """Conversion, then training by surrogate gradients; results go to `out`."""

    out: str = "runs/finetune"
    warmup: float = 0.05
    # Start from random weights and do not convert, for comparison; the source network
    # is only the teacher.
    from_scratch: bool = False
    # Time steps T.
    steps: int = 2
    # Steps that each layer integrates before it fires.
    wait: int = 0
    # Lowest and highest level of a spike.
    levels: tuple[int, int] = (0, 1)
    # Code, one of experiments.running.CODES: what a spike is worth at each step.
    code: str = "rate"
    # Recipe of the conversion, one of experiments.running.RECIPES.
    recipe: str = "best"
    # Weight in the loss of the distance from the ANN's answers; 0: labels alone.
    distillation: float = 0.5
    # BatchNorm keeps the running averages of the source network. By default it takes
    # mean and variance over time and batch, and updates its averages.
    keep_averages: bool = False
    # Bits of the weights: round the SNN to whole numbers, and train weights and biases
    # through the rounding. Thresholds and potentials stay as they are.
    weight_bits: int | None = None
    # Number of training images, the last ones, that are not trained on but replace the
    # test images, to choose options. The source network was trained on them.
    held_back: int = 0

    def __post_init__(self):
        super().__post_init__()
        rule = Rule(f"0 to steps ({self.steps})", lambda wait: 0 <= wait <= self.steps)
        check_range(self, "wait", rule)
        if len(self.levels) != 2:
            raise ValueError(f"levels must be lowest and highest, not {self.levels}")
        for name in ("recipe", "calibration_images", "weight_bits"):
            if self.from_scratch and getattr(self, name) != getattr(FineTune, name):
                raise ValueError(
                    f"--from_scratch converts nothing, so it takes no --{name}; leave "
                    "out one of them"
                )
        if self.from_scratch and self.keep_averages:
            raise ValueError(
                "random weights have no running averages, so --from_scratch takes no "
                "--keep_averages; a network with operators, which needs it, starts "
                "from its conversion"
            )

    def conversion(self) -> Convert:
        """The conversion that training begins with."""
        shared = {field.name: getattr(self, field.name) for field in fields(Conversion)}
        return Convert(
            **shared,
            steps=(self.steps,),
            recipes=(self.recipe,),
            waits=(str(self.wait),),
            levels=self.levels,
            codes=(self.code,),
            seeds=(self.seed,),
        )
