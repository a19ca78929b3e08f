"""Options of the commands, as frozen dataclasses with checks.

A field is an option of the command line, and the comment above it is its help text.
``command_line.py`` reads them; ``experiments/presets.py`` has configurations by name.
"""

from dataclasses import dataclass, fields

import snnjax

MOST_LEVELS = 65535  # of a quantized ReLU; float32 counts them exactly


@dataclass(frozen=True)
class Training:
    """Options of every training; results go to the folder `out`."""

    # Network, one of experiments.models.NAMES.
    model: str
    # "digits", the name of a TFDS set, a folder with train/<class>/, test/<class>/, or,
    # for train_snn, events (.npz file).
    dataset: str
    # Folder for metrics.jsonl, checkpoints and the trained network.
    out: str
    # Passes over the training images.
    epochs: int
    # Images per step; an incomplete last batch is dropped.
    batch_size: int
    # Peak of the learning rate: linear warm-up, then cosine to zero.
    learning_rate: float
    # Fraction of all steps spent on the warm-up.
    warmup: float
    # Weight decay of kernels; biases, BatchNorm and neurons have none.
    weight_decay: float
    # Mirror training images at random; not for digits.
    flip: bool
    # Random crops after padding by this many pixels; 0 for none.
    padding: int
    # Folder of the data sets; by default ~/tensorflow_datasets.
    data_dir: str | None = None
    # Training images used, the first of the data set; by default all.
    train_images: int | None = None
    # Devices that share every batch, 0 for all (see experiments/running/devices.py).
    mesh: int = 1
    # BatchNorm after each convolution.
    norm: bool = True
    # Fixes initial weights, order of the images and augmentation.
    seed: int = 0

    def __post_init__(self):
        check_training(self)


def check_training(config: "Training | FineTune") -> None:
    """Raise unless the options that all trainings have are within their ranges."""
    check_positive(config, "epochs batch_size learning_rate")
    for name in ("weight_decay", "padding", "seed", "mesh"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name} must be >= 0, not {getattr(config, name)}")
    if not 0 <= config.warmup < 1:
        raise ValueError(f"warmup must be in [0, 1), not {config.warmup}")
    if config.train_images is not None:
        check_positive(config, "train_images")
    if config.flip and config.dataset in ("digits", "mnist", "svhn_cropped"):
        raise ValueError(
            f"flip is True, but mirrored images of {config.dataset} are no digits; "
            "add --flip false"
        )


def check_positive(config: object, names: str) -> None:
    """Raise unless all these options, separated by spaces, are > 0."""
    for name in names.split():
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be > 0, not {getattr(config, name)}")


def check_several(config: object, names: str, *, may_lack: bool = False) -> None:
    """Raise unless each of these options has entries, none of them twice.

    Args:
        names: of the options, separated by spaces.
        may_lack: an option without entries is allowed.
    """
    for name in names.split():
        entries = getattr(config, name)
        if not entries and not may_lack:
            raise ValueError(f"{name} is empty; give at least one")
        if len(set(entries or ())) < len(entries or ()):
            listed = " ".join(map(str, entries))
            raise ValueError(f"{name} must be different ones, not {listed}")


@dataclass(frozen=True)
class TrainANN(Training):
    """Training of a source network by SGD; results go to the folder `out`."""

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
    # Share of the label spread over all classes.
    label_smoothing: float = 0.0
    # Maximum of a clipped ReLU; plain ReLU by default.
    clip: float | None = None
    # L of a quantized ReLU, whose maxima are trained: L + 1 values from 0.
    levels: int | None = None
    # Begin with this network, as for experiments.convert, in place of random weights;
    # with --levels its ReLUs become quantized ones, with fitted maxima.
    checkpoint: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be in [0, 1), not {self.label_smoothing}"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be > 0 or left out, not {self.clip}")
        if self.levels is not None:
            if not 1 <= self.levels <= MOST_LEVELS:
                raise ValueError(
                    f"levels must be 1 to {MOST_LEVELS}, not {self.levels}"
                )
            if self.clip is not None:
                raise ValueError(
                    f"clip {self.clip} and levels {self.levels}: a quantized ReLU "
                    "trains its maximum; leave out one of them"
                )


@dataclass(frozen=True)
class TrainSNN(Training):
    """Direct training of a spiking network by Adam; results go to the folder `out`."""

    model: str = "digits_resnet"
    dataset: str = "digits"
    out: str = "runs/snn_digits"
    epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: float = 0.1
    weight_decay: float = 1e-4
    flip: bool = False
    padding: int = 1
    # Time steps T; for events, the number of frames that they are binned into.
    steps: int = 4
    # Neuron model, one of experiments.train_snn.NEURONS: "lif", behind a "synaptic"
    # current, with an "adaptive" threshold, or "recurrent" at sites of at most 2048
    # neurons, whose connections among each other are trained.
    neuron: str = "lif"
    # Factor on the potential before integration, in (0, 1]; 1 is IF.
    leak: float = 0.5
    # The same factor of the synaptic current and of the threshold's adaptation.
    synaptic_leak: float = 0.5
    adaptation_leak: float = 0.9
    # By how much a spike of size 1 raises an adaptive threshold.
    adaptation: float = 0.5
    # V_th of all neurons at the start.
    threshold: float = 1.0
    # After a spike: "zero" the potential or "subtract" the threshold.
    reset: str = "zero"
    # No gradient through the reset.
    detach_reset: bool = False
    # Loss: "mean" (cross-entropy of the mean output) or "tet" (of every step).
    loss: str = "mean"
    # Surrogate, one of experiments.train_snn.SURROGATES.
    surrogate: str = "dspike"
    # Temperature b at the start (of the other surrogates: width or slope).
    temperature: float = 3.0
    # Temperature of Dspike: "fixed", or "choose" it once per epoch, as in the paper.
    learn: str = "choose"
    # Step of the finite differences, in units of the weights.
    difference_step: float = 0.1
    # Images of a batch to measure the differences on.
    difference_images: int = 32
    # Change of the temperature per epoch.
    temperature_rate: float = 0.25
    # Least temperature.
    lowest: float = 0.5
    # Store only the spikes for the gradient and recompute the rest, to save memory.
    remat: bool = False
    # Go on with the run in `out`; false refuses a folder that holds a run.
    resume: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_positive(
            self,
            "steps threshold temperature difference_step difference_images "
            "temperature_rate lowest",
        )
        for name in ("leak", "synaptic_leak", "adaptation_leak"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], not {getattr(self, name)}")
        if not self.adaptation >= 0:
            raise ValueError(f"adaptation must be >= 0, not {self.adaptation}")
        choices = {
            "reset": ("zero", "subtract"),
            "loss": ("mean", "tet"),
            "learn": ("fixed", "choose"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, not "
                    f"{getattr(self, name)!r}"
                )
        if self.learn != "fixed" and self.temperature < self.lowest:
            raise ValueError(
                f"temperature {self.temperature} is below lowest {self.lowest}, the "
                "least that training may reach; change one of them, or learn fixed"
            )


@dataclass(frozen=True)
class Convert:
    """Conversion of a trained network by several recipes; results go to `out`."""

    # Data set: "digits", the name of a TFDS set, or a folder of images per class.
    dataset: str = "digits"
    # Folder of the data sets; by default ~/tensorflow_datasets.
    data_dir: str | None = None
    # Source network: the --out folder of a train_ann run, or PyTorch weights in a
    # .safetensors or .npz file. If the default, for digits, is missing, it is trained.
    checkpoint: str = "runs/digits_resnet"
    # Network, one of experiments.models.NAMES, if the weights have no card (.json)
    # beside them; images are then normalized by mean and deviation of the data set.
    model: str | None = None
    # Numbers of time steps T, each a conversion of its own.
    steps: tuple[int, ...] = (2, 4, 8, 16)
    # Recipes, of experiments.conversions.RECIPES.
    recipes: tuple[str, ...] = (
        "max_activation",
        "percentile",
        "bias_shift",
        "light",
        "advanced",
        "best",
    )
    # Steps that each layer integrates before it fires: numbers, or T for all steps. By
    # default 0 for every recipe, and for "best" 1 and T too.
    waits: tuple[str, ...] | None = None
    # Lowest and highest level of a spike, pair after pair, each with rows of its own:
    # 0 1 is binary, -1 1 signed, 0 3 graded.
    levels: tuple[int, ...] = (0, 1)
    # Seeds; each draws calibration images of its own.
    seeds: tuple[int, ...] = (0, 1, 2)
    # Training images to calibrate with, without their labels.
    calibration_images: int = 256
    # Adam steps per site of weight calibration in "advanced" (the paper: 5000).
    iterations: int = 50
    # Learning rate of weight calibration.
    rate: float = 1e-5
    # Test images to evaluate on; by default all.
    test_images: int | None = None
    # Devices that share every batch, 0 for all (see experiments/running/devices.py).
    mesh: int = 1
    # Number format of the layers, "float32" or "bfloat16"; membranes stay float32.
    dtype: str = "float32"
    # Folder for metrics.json, the figures and the spiking network.
    out: str = "runs/convert"
    # File for a report: one HTML page that loads nothing else.
    report: str | None = None
    # Evaluate this spiking network (the --out folder of a conversion) and stop.
    restore: str | None = None

    def __post_init__(self):
        for name in ("calibration_images", "iterations", "rate", "test_images"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0, not {value}")
        check_several(self, "steps recipes seeds")
        check_several(self, "waits", may_lack=True)
        if not self.levels or len(self.levels) % 2:
            raise ValueError(
                f"levels must be pairs, lowest and highest, e.g. --levels 0 1 -1 1; "
                f"not {' '.join(map(str, self.levels)) or 'empty'}"
            )
        for pair in self.pairs():
            snnjax.integrate_and_fire(levels=pair)
        for name, least in (("seeds", min(self.seeds)), ("mesh", self.mesh)):
            if least < 0:
                raise ValueError(f"{name} must be >= 0, not {least}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, not {self.dtype}")
        if self.restore is not None:
            self._check_restore()
        if min(self.steps) < 1:
            raise ValueError(f"steps must be >= 1, not {min(self.steps)}")
        for wait in self.waits or ():
            if wait != "T" and not wait.isdecimal():
                raise ValueError(
                    f"a wait must be a whole number >= 0 or T, not {wait!r}"
                )
            if wait != "T" and int(wait) > min(self.steps):
                raise ValueError(
                    f"wait {wait} exceeds steps {min(self.steps)}; no layer waits "
                    "longer than T, which is --waits T"
                )

    def pairs(self) -> list[tuple[int, int]]:
        """(low, high) of every row's neurons."""
        return list(zip(self.levels[::2], self.levels[1::2], strict=True))

    def _check_restore(self):
        """Raise for options that an evaluation alone would ignore."""
        defaults = {field.name: field.default for field in fields(self)}
        allowed = {"restore", "data_dir", "test_images", "mesh"}
        ignored = [
            name
            for name, default in defaults.items()
            if getattr(self, name) != default and name not in allowed
        ]
        if ignored:
            raise ValueError(
                "--restore evaluates an SNN as it was saved, so it takes no "
                f"{', '.join('--' + name for name in ignored)}; allowed beside it: "
                "--data_dir, --test_images, --mesh"
            )


@dataclass(frozen=True)
class FineTune:
    """Conversion, then training by surrogate gradients; results go to `out`."""

    # Data set, as for experiments.convert.
    dataset: str = "digits"
    # Folder of the data sets; by default ~/tensorflow_datasets.
    data_dir: str | None = None
    # Source network, converted and then the teacher, as for experiments.convert.
    checkpoint: str = "runs/digits_resnet"
    # Network, as for experiments.convert.
    model: str | None = None
    # Start from this SNN (the --out folder of a conversion) and do not convert.
    restore: str | None = None
    # Start from random weights and do not convert, for comparison; the source network
    # is only the teacher.
    from_scratch: bool = False
    # Time steps T.
    steps: int = 2
    # Steps that each layer integrates before it fires.
    wait: int = 0
    # Lowest and highest level of a spike.
    levels: tuple[int, int] = (0, 1)
    # Recipe of the conversion, one of experiments.conversions.RECIPES.
    recipe: str = "best"
    # Training images to calibrate with, without their labels.
    calibration_images: int = 256
    # Adam steps per site of weight calibration in "advanced".
    iterations: int = 50
    # Passes over the training images.
    epochs: int = 10
    # Images per step; an incomplete last batch is dropped.
    batch_size: int = 64
    # Peak of Adam's learning rate: linear warm-up, then cosine to zero.
    learning_rate: float = 1e-3
    # Fraction of all steps spent on the warm-up.
    warmup: float = 0.05
    # Weight decay of kernels.
    weight_decay: float = 0.0
    # Weight in the loss of the distance from the ANN's answers, at a temperature of 1;
    # 0: labels alone.
    distillation: float = 0.5
    # Surrogate, one of experiments.train_snn.SURROGATES.
    surrogate: str = "dspike"
    # Temperature b of Dspike, by default 3; of the other surrogates width or slope, by
    # default their own. Neurons of an SNN to restore may have temperatures already.
    temperature: float | None = None
    # BatchNorm keeps the running averages of the source network; by default it takes
    # mean and variance over time and batch, and averages these anew.
    keep_averages: bool = False
    # Mirror training images at random; not for digits.
    flip: bool = False
    # Random crops after padding by this many pixels; 0 for none.
    padding: int = 1
    # Training images used, the first of the data set; by default all.
    train_images: int | None = None
    # So many training images, the last ones, are not trained on and take the place of
    # the test images, to choose options by. The source network was trained on them.
    held_back: int = 0
    # Test images to evaluate on; by default all.
    test_images: int | None = None
    # Draws the calibration images or random weights, the order of the training images
    # and their augmentation.
    seed: int = 0
    # Devices that share every batch, 0 for all (see experiments/running/devices.py).
    mesh: int = 1
    # Number format of the layers, "float32" or "bfloat16"; membranes stay float32.
    dtype: str = "float32"
    # Folder for metrics.jsonl, checkpoints, figures and the SNN.
    out: str = "runs/finetune"
    # File for a report: one HTML page that loads nothing else.
    report: str | None = None
    # Go on with the run in `out`; false refuses a folder that holds a run.
    resume: bool = True

    def __post_init__(self):
        check_training(self)
        if self.temperature is not None:
            check_positive(self, "temperature")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation must be in [0, 1], not {self.distillation}")
        if not self.held_back >= 0:
            raise ValueError(f"held_back must be >= 0, not {self.held_back}")
        if not 0 <= self.wait <= self.steps:
            raise ValueError(f"wait must be 0 to steps ({self.steps}), not {self.wait}")
        if len(self.levels) != 2:
            raise ValueError(f"levels must be lowest and highest, not {self.levels}")
        self.conversion()  # which checks the other options
        if self.iterations != FineTune.iterations and self.recipe != "advanced":
            raise ValueError(
                f"--iterations is for the recipe advanced, not {self.recipe}; leave it "
                "out"
            )
        if self.converts():
            return
        start = "--restore" if self.restore is not None else "--from_scratch"
        for name in ("recipe", "calibration_images"):
            if getattr(self, name) != getattr(FineTune, name):
                raise ValueError(
                    f"with {start} nothing is converted, so it takes no --{name}; "
                    "leave out one of them"
                )
        if self.from_scratch and self.restore is not None:
            raise ValueError(
                "training starts --from_scratch or from what --restore "
                "names; leave out one of them"
            )
        if self.from_scratch and self.keep_averages:
            raise ValueError(
                "random weights have no running averages, so --from_scratch takes no "
                "--keep_averages; a network with operators, which needs it, starts "
                "from its conversion"
            )

    def converts(self) -> bool:
        """Whether training begins with a conversion."""
        return self.restore is None and not self.from_scratch

    def conversion(self) -> Convert:
        """The conversion that training begins with."""
        return Convert(
            dataset=self.dataset,
            data_dir=self.data_dir,
            checkpoint=self.checkpoint,
            model=self.model,
            steps=(self.steps,),
            recipes=(self.recipe,),
            waits=(str(self.wait),),
            levels=self.levels,
            seeds=(self.seed,),
            calibration_images=self.calibration_images,
            iterations=self.iterations,
            test_images=self.test_images,
            mesh=self.mesh,
            dtype=self.dtype,
            out=self.out,
            report=self.report,
        )
