"""Configurations of the experiments: frozen dataclasses, and presets by name.

`parse` makes a command line of a dataclass: ``--preset NAME`` picks the defaults and
every field is an option that overrides them.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import simple_parsing

Config = TypeVar("Config")


@dataclass(frozen=True)
class Training:
    """What every training has; results go to the folder `out`."""

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
    # Decay of kernels; biases, BatchNorm and neurons have none.
    weight_decay: float
    # Mirror training images at random; not for digits.
    flip: bool
    # Random crops after padding by this many pixels; 0 for none.
    padding: int
    # Folder of the data sets; by default ~/tensorflow_datasets.
    data_dir: str | None = None
    # Training images used, the first of the data set; by default all.
    train_images: int | None = None
    # Devices that share every batch, 0 for all (see experiments/processes.py).
    mesh: int = 1
    # BatchNorm after each convolution.
    norm: bool = True
    # Fixes initial weights, order of the images and augmentation.
    seed: int = 0

    def __post_init__(self):
        check_positive(self, "epochs batch_size learning_rate")
        for name in ("weight_decay", "padding", "seed", "mesh"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, not {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), not {self.warmup}")
        if self.train_images is not None:
            check_positive(self, "train_images")
        if self.flip and self.dataset in ("digits", "mnist", "svhn_cropped"):
            raise ValueError(
                f"mirrored {self.dataset} are no digits any more; add --flip false"
            )


def check_positive(config: object, names: str) -> None:
    """Raise unless all these options, separated by spaces, are > 0."""
    for name in names.split():
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be > 0, not {getattr(config, name)}")


def check_several(config: object, names: str, *, may_lack: bool = False) -> None:
    """Raise unless all these options have one entry or more, none of them twice."""
    for name in names.split():
        entries = getattr(config, name)
        if not entries and not may_lack:
            raise ValueError(f"{name} is empty; give at least one")
        if len(set(entries or ())) < len(entries or ()):
            found = " ".join(map(str, entries))
            raise ValueError(f"{name} must be different ones, not {found}")


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

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be in [0, 1), not {self.label_smoothing}"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be > 0 or left out, not {self.clip}")


# Every preset is run by `python -m experiments.train_ann --preset NAME`; for those that
# read a TFDS set add `--data_dir DIR` where it is not in ~/tensorflow_datasets. Costs
# are counted operations of the whole training: an accelerator that sustains 10 TFLOP/s
# needs 100 seconds for 1 PFLOP. Accuracies are on test images, with seed 0.
PRESETS_ANN: dict[str, TrainANN] = {
    # ResNet-8 on 8x8 digits: no download, 12 seconds on two CPU cores.
    # Measured 99.4 % (jax 0.10.2) and 99.6 % (jax 0.7.2).
    "digits_resnet": TrainANN(
        model="digits_resnet",
        dataset="digits",
        out="runs/digits_resnet",
        epochs=15,
        batch_size=64,
        warmup=0.1,
        flip=False,
        padding=1,
    ),
    # He et al.'s ResNet-20 with 0.27 M parameters. 2 PFLOP. Not measured yet; He et al.
    # report 91.25 %.
    "cifar10_resnet20": TrainANN(out="runs/cifar10_resnet20"),
    # The same with clipped ReLU, as Deng and Gu train theirs, so that activations have
    # a known maximum. 2 PFLOP. Not measured yet.
    "cifar10_resnet20_clipped": TrainANN(out="runs/cifar10_resnet20_clipped", clip=6.0),
    # ResNet-20 four times as wide, of Li et al. 36 PFLOP. Not measured yet; their
    # repository reports 95.68 % for its ResNet-20.
    "cifar10_wide_resnet20": TrainANN(
        model="wide_resnet20", out="runs/cifar10_wide_resnet20"
    ),
    # ResNet-18 with a stem of three convolutions. 9 PFLOP. Not measured yet; 95.46 % is
    # reported for it by Bu et al., 2022.
    "cifar10_resnet18": TrainANN(model="resnet18", out="runs/cifar10_resnet18"),
    # VGG-16 with average pooling. 15 PFLOP. Not measured yet; about 95.7 % is
    # reported by Li et al.
    "cifar10_vgg16": TrainANN(
        model="vgg16", out="runs/cifar10_vgg16", learning_rate=0.05
    ),
    # MobileNet v1 with strides for small images. 11 PFLOP. Not measured yet.
    "cifar10_mobilenet": TrainANN(
        model="mobilenet", out="runs/cifar10_mobilenet", learning_rate=0.05
    ),
    # ResNet-34 on ImageNet of 64x64 pixels, all in memory (16 GB). 168 PFLOP. Not
    # measured yet. Images of 224x224 need a --dataset folder of resized copies, 193 GB
    # of memory and 12 times the operations.
    "imagenet_resnet34": TrainANN(
        model="resnet34",
        dataset="imagenet_resized/64x64",
        out="runs/imagenet_resnet34",
        epochs=90,
        batch_size=256,
        weight_decay=1e-4,
        label_smoothing=0.1,
        padding=8,
    ),
}


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
    # Time steps T; of events, the frames that they are gathered into.
    steps: int = 4
    # Factor on the potential before integration, in (0, 1]; 1 is IF.
    leak: float = 0.5
    # V_th that all neurons start from.
    threshold: float = 1.0
    # After a spike: "zero" the potential or "subtract" the threshold.
    reset: str = "zero"
    # No gradient through the reset.
    detach_reset: bool = False
    # Which loss: "mean" (cross-entropy of the mean output) or "tet" (of every step).
    loss: str = "mean"
    # Surrogate, one of experiments.train_snn.SURROGATES.
    surrogate: str = "dspike"
    # Temperature b that it starts from (width or slope of the other surrogates).
    temperature: float = 3.0
    # How Dspike learns its temperature: "fixed" (not), "choose" (the paper's, once per
    # epoch), "alignment" or "relaxed", see snnjax/training/temperature.py.
    learn: str = "choose"
    # Step of the finite differences, in units of the weights.
    difference_step: float = 0.1
    # Images of the batch that they are measured on ("choose").
    difference_images: int = 32
    # Change of the temperature per epoch ("choose"), or its learning rate.
    temperature_rate: float = 0.25
    # Training steps between two moves of the temperature ("alignment", "relaxed").
    every: int = 10
    # Random directions of the finite differences ("alignment").
    directions: int = 16
    # Least temperature.
    lowest: float = 0.5
    # Keep spikes alone for the gradient and compute the rest anew.
    remat: bool = False
    # Go on with the run that `out` holds; false refuses a folder that holds one.
    resume: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_positive(
            self,
            "steps threshold temperature every difference_step difference_images "
            "temperature_rate directions lowest",
        )
        if not 0 < self.leak <= 1:
            raise ValueError(f"leak must be in (0, 1], not {self.leak}")
        choices = {
            "reset": ("zero", "subtract"),
            "loss": ("mean", "tet"),
            "learn": ("fixed", "choose", "alignment", "relaxed"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, not "
                    f"{getattr(self, name)!r}"
                )
        if self.learn != "fixed" and self.temperature < self.lowest:
            raise ValueError(
                f"temperature {self.temperature} is below lowest {self.lowest}, where "
                "none that learns may go; choose another of them, or learn fixed"
            )
        if self.learn == "relaxed" and self.surrogate != "dspike":
            raise ValueError(
                f"learn relaxed is for dspike, not {self.surrogate}; take choose, "
                "alignment or fixed"
            )


# Every preset is run by `python -m experiments.train_snn --preset NAME`.
PRESETS_SNN: dict[str, TrainSNN] = {
    # ResNet-8 on 8x8 digits, T = 4: under two minutes on two CPU cores.
    "digits": TrainSNN(),
    # The setting of the Dspike paper, as far as it is known: ResNet-18 with a stem of
    # three convolutions, LIF, T = 4 (the paper: 2, 4, 6, by --steps). For an
    # accelerator; not measured yet. The paper reports 93.66 % at T = 4.
    "cifar10_resnet18": TrainSNN(
        model="resnet18",
        dataset="cifar10",
        out="runs/snn_cifar10_resnet18",
        epochs=300,
        batch_size=128,
        learning_rate=1e-3,
        warmup=0.02,
        flip=True,
        padding=4,
        difference_step=0.03,
        remat=True,
    ),
    # Six convolutions of 32 to 128 channels, T = 2, for two CPU cores. Measured: 81.1 %
    # (seed 0, jax 0.10.2) after about 70 minutes of one core's time, 85 by the clock
    # on a machine with much else to do.
    "cifar10_small": TrainSNN(
        model="small",
        dataset="cifar10",
        out="runs/snn_cifar10_small",
        steps=2,
        epochs=15,
        batch_size=128,
        learning_rate=4e-3,
        flip=True,
        padding=4,
        difference_step=0.03,
        difference_images=16,
    ),
    # Event frames of N-MNIST from a prepared file (see experiments/events.py):
    # --dataset nmnist_small.npz.
    "nmnist": TrainSNN(
        model="events",
        dataset="nmnist.npz",
        out="runs/snn_nmnist",
        steps=8,
        epochs=20,
        batch_size=50,
        learning_rate=4e-3,
        padding=2,
    ),
}


@dataclass(frozen=True)
class Convert:
    """Conversion of a trained network by several recipes; results go to `out`."""

    # Data set: "digits", the name of a TFDS set, or a folder of images per class.
    dataset: str = "digits"
    # Folder of the data sets; by default ~/tensorflow_datasets.
    data_dir: str | None = None
    # Source network: the --out folder of a train_ann run, or PyTorch weights in a
    # .safetensors or .npz file. The default is trained, for digits, if it is not there.
    checkpoint: str = "runs/digits_resnet"
    # Network, one of experiments.models.NAMES, of weights that have no card (.json)
    # beside them; images are then normalized by mean and deviation of the data set.
    model: str | None = None
    # Numbers of time steps T, each a conversion of its own.
    steps: tuple[int, ...] = (2, 4, 8, 16)
    # Recipes, of experiments.convert.RECIPES.
    recipes: tuple[str, ...] = (
        "max_activation",
        "percentile",
        "bias_shift",
        "light",
        "advanced",
        "best",
    )
    # Steps that each layer waits before it fires: numbers, or T for all. By default
    # every recipe with 0, and "best" with 1 and T too.
    waits: tuple[str, ...] | None = None
    # Seeds; each draws other calibration images.
    seeds: tuple[int, ...] = (0, 1, 2)
    # Unlabelled training images to calibrate with.
    calibration_images: int = 256
    # Adam steps per site of weight calibration in "advanced" (the paper: 5000).
    iterations: int = 50
    # Learning rate of weight calibration.
    rate: float = 1e-5
    # Test images to evaluate on; by default all.
    test_images: int | None = None
    # Devices that share every batch, 0 for all (see experiments/processes.py).
    mesh: int = 1
    # What the layers compute in, "float32" or "bfloat16"; membranes stay float32.
    dtype: str = "float32"
    # Folder for metrics.json, the figures and the spiking network.
    out: str = "runs/convert"
    # File for a report of it all, one HTML page that needs no network.
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
                raise ValueError(f"a wait must be a whole number or T, not {wait!r}")
            if wait != "T" and int(wait) > min(self.steps):
                raise ValueError(
                    f"wait {wait} exceeds steps {min(self.steps)}; no layer waits "
                    "longer than T, which is --waits T"
                )

    def _check_restore(self):
        defaults = {field.name: field.default for field in fields(self)}
        used = {"restore", "data_dir", "test_images", "mesh"}
        given = [n for n in defaults if getattr(self, n) != defaults[n]]
        extra = [name for name in given if name not in used]
        if extra:
            raise ValueError(
                "--restore evaluates an SNN as it was saved, so it takes no "
                f"{', '.join('--' + name for name in extra)}; allowed beside it: "
                "--data_dir, --test_images, --mesh"
            )


# Networks in experiments/sources: He et al.'s ResNet-20, the same with ReLU clipped at
# 2, six convolutions with average pooling and with max-pool, MobileNet of a quarter of
# the width with ReLU6.
SOURCES = ("resnet20", "resnet20_clipped", "vgg8", "vgg8_max", "mobilenet_quarter")

# Every preset is run by `python -m experiments.convert --preset NAME`.
PRESETS_CONVERT: dict[str, Convert] = {
    # ResNet-8 on 8x8 digits; trains it first, 12 seconds. Under two minutes in all on
    # two CPU cores.
    "digits": Convert(),
    # Published networks, trained by `python -m experiments.sources.train NAME`. All
    # recipes on all test images take hours on two CPU cores; docs/accuracy.md has the
    # commands for a part of them.
    **{
        f"cifar10_{name}": Convert(
            dataset="cifar10",
            checkpoint=f"experiments/sources/{name}.safetensors",
            iterations=1000,
            out=f"runs/convert_cifar10_{name}",
        )
        for name in SOURCES
    },
}


def parse(
    dataclass_type: type[Config],
    presets: Mapping[str, Config],
    argv: Sequence[str] | None = None,
) -> Config:
    """Configuration from the command line; exits with code 2 and a line if it is wrong.

    Args:
        dataclass_type: frozen dataclass with defaults; comments become the help.
        presets: named configurations for the option `--preset`.
        argv: arguments; None for those of the process.
    """
    option = {
        "choices": tuple(presets),
        "metavar": "NAME",
        "help": f"configuration to start from: {', '.join(presets)}",
    }
    # Two passes, as the preset decides about the defaults of the other options.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", **option)
    preset = first.parse_known_args(argv)[0].preset
    default = presets[preset] if preset else dataclass_type()
    parser = simple_parsing.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--preset", **option)
    parser.add_arguments(dataclass_type, dest="config", default=default)
    try:
        return parser.parse_args(argv).config
    except ValueError as error:  # from the checks of the dataclass
        parser.error(str(error))
