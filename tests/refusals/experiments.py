"""Refusals of experiments and benchmarks: options, source networks, data and chips.

A line of a command that is refused ends with a message on the standard error: those
are tested beside each command.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import test_conformance
import test_silicon_rtl
import test_sources
from test_layers import changed

import snnjax
from benchmarks import catalyst, chip_programs, conformance, silicon_rtl
from benchmarks.chip_programs import Misfit
from experiments import data, train_snn
from experiments.ablation import Ablation
from experiments.comparison import Comparison
from experiments.methods import METHODS, Methods
from experiments.models import zoo
from experiments.models.weights import variables_of
from experiments.running import Convert, FineTune, TrainANN, TrainSNN, devices
from refusals import Refusal, numbered
from snnjax.codes import radix, rate

# ----------------------------------------------------------------------------- options

SCRATCH = {"from_scratch": True}
OPTIONS = {
    TrainANN: [
        ({"epochs": 0}, "epochs must be > 0, not 0"),
        ({"levels": 0}, "levels must be 1 to 65535, not 0"),
        ({"levels": 70000}, "levels must be 1 to 65535, not 70000"),
    ],
    TrainSNN: [
        ({"learn": "guess"}, "learn must be one of fixed, choose, not guess"),
        ({"leak": 0.0}, r"leak must be in \(0, 1\], not 0.0"),
        ({"steps": 0}, "steps must be 1 to 10000, not 0"),
        ({"temperature": 0.25}, "temperature 0.25 is below lowest 0.5"),
        ({"flip": True}, "mirrored images of digits are no digits; add --flip f"),
        ({"temperature_end": 1.0}, "learn chooses the temperature; add"),
        ({"time_constants": (2.0,)}, "must be the shortest and the longest, not"),
        ({"choice": 1.0}, r"choice must be in \[0, 1\), not 1.0"),
        ({"sequence": "columns"}, "sequence must be one of rows, permuted, not"),
    ],
    FineTune: [
        ({"distillation": 1.5}, r"distillation must be in \[0, 1\], not 1.5"),
        ({"held_back": -1}, "held_back must be >= 0, not -1"),
        ({"wait": 3, "steps": 2}, r"wait must be 0 to steps \(2\), not 3"),
        ({"levels": (0, 1, -1, 1)}, "levels must be lowest and highest, not"),
        (SCRATCH | {"recipe": "light"}, "so it takes no --recipe; leave out"),
        (SCRATCH | {"keep_averages": True}, "--from_scratch takes no --keep_averages"),
    ],
    Convert: [
        ({"steps": (10**9,)}, "steps must be 1 to 10000, not 1000000000"),
        ({"waits": ("x",)}, "waits .* whole number >= 0, T or T-1"),
        (
            {"waits": ("9",), "steps": (4,)},
            "wait 9 exceeds steps 4; no layer waits longer",
        ),
        ({"calibration_images": 0}, "calibration_images must be > 0, not 0"),
        ({"seeds": (1, 1)}, "seeds has 1 more than once"),
        ({"recipes": ("none",)}, "recipes must be one of quantized, max_act"),
        ({"recipes": ("bset",)}, "quantized_ann, not bset; closest: best"),
        ({"levels": (0, 1, 2)}, "levels must be pairs of lowest and highest"),
        ({"levels": (1, 0)}, r"levels are \(1, 0\); allowed: two whole numbers"),
        ({"dtype": "float16"}, "must be one of float32, bfloat16, not float16"),
        (
            {"restore": "x", "dtype": "bfloat16"},
            "as it was saved, so it takes no --dtype; allowed beside",
        ),
    ],
    Comparison: [
        ({"training": "imagenet"}, "training must be one of digits, cifar10_r"),
        ({"rows": ("none",)}, "rows must be one of rectangle, .* not none"),
        ({"seeds": ()}, "seeds is empty; give at least one"),
        ({"seeds": (0, -1)}, "seeds must be >= 0, not -1"),
    ],
    Ablation: [
        ({"rows": ("worst",)}, "no row 'worst'; allowed: light"),
        ({"images": 0}, "images must be > 0, not 0"),
        ({"code": "time"}, "code must be one of .*, not time"),
        ({"columns": (4, 0)}, "columns must be > 0, not 0"),
    ],
    Methods: [
        ({"methods": ("worst",)}, "methods must be one of max, percentile"),
        ({"steps": (0,)}, "steps must be 1 to 10000, not 0"),
        ({"iterations": 0}, "iterations must be > 0, not 0"),
        ({"models": ()}, "models is empty; give at least one"),
    ],
}


def options_refused():
    for config, table in OPTIONS.items():
        yield from numbered(config.__name__, config, table)
    for field in ("surrogate", "neuron"):
        config = TrainSNN(**{field: "step"}, out="runs/none")
        call = functools.partial(train_snn.train, config)
        message = f"{field} must be one of .*, not step"
        yield Refusal(f"a training by the {field} step", call, message)


# --------------------------------------------------------------------- source networks

MODELS = [
    ({"name": "resnet9"}, "'resnet9'; choose one of .*resnet20"),
    ({"name": "resnet20_clipped"}, "resnet20_clipped needs the maximum"),
    (
        {"name": "resnet20", "clip": 1.0, "levels": 4},
        "trains its maximum; give one",
    ),
    (
        {"name": "vit", "levels": 4},
        "vit has no ReLUs that clip or levels could",
    ),
    ({"name": "vit", "norm": False}, "vit has LayerNorm, not BatchNorm"),
]


def build(name, **options):
    zoo.build(name, 10, **options)


def small_images_for_vgg16():
    images = jnp.zeros((1, 28, 28, 1))
    jax.eval_shape(zoo.build("vgg16", 10).init, jax.random.key(0), images)


def weights_of_resnet20(model):
    weights = test_sources.resnet_weights()
    variables_of(zoo.build(model, 10), weights, (32, 32, 3))


def encode_by(method):
    """The papers' methods are of networks of ReLUs, without signed values."""

    def fn(params, x):
        return snnjax.encode(x) @ params

    METHODS[method]().convert(fn, jnp.eye(8), jnp.ones((64, 8)), steps=2)


def models_refused():
    yield from numbered("a source network", build, MODELS)
    for model, message in {
        "resnet56": "variables without a weight:(.|\n)*params/Block_9/",
        "vgg8": "without a place:\n    bn1.bias",
        "small": "weights do not fit this Plain",
    }.items():
        call = functools.partial(weights_of_resnet20, model)
        yield Refusal(f"weights of a ResNet-20 in {model}", call, message)
    for method in ("max", "canonic"):
        call = functools.partial(encode_by, method)
        message = "for networks of ReLUs.*'encoder'"
        yield Refusal(f"signed values by the method {method}", call, message)
    yield Refusal(
        "small images for VGG-16",
        small_images_for_vgg16,
        "at least 32x32 pixels, not 28x28",
    )


# -------------------------------------------------------------------------------- data


@functools.cache
def digits():
    return data.load("digits")


def hold_out_one_group():
    groups = np.zeros(len(digits().train_labels))
    digits()._replace(train_groups=groups).with_choice(0.1)


DATA = [
    Refusal(
        "more training images than there are",
        lambda: digits().first(1298),
        "train_images 1298 exceeds the 1297 training",
    ),
    Refusal(
        "all images held back",
        lambda: digits().first(100).held_back(100),
        "held_back is 100; allowed: fewer than",
    ),
    Refusal(
        "five pixels at a time",
        lambda: data.in_parts(digits(), "permuted", 5),
        "pixels is 5, .* allowed: a divisor of 64",
    ),
    Refusal(
        "two groups in three parts",
        lambda: data.split(np.array([0, 1, 1]), (0.8, 0.1, 0.1)),
        "2 groups cannot be in 3 parts",
    ),
    Refusal(
        "a choice of one group",
        hold_out_one_group,
        "no choice can be held out .* --choice 0",
    ),
    Refusal(
        "two channels of gray images",
        lambda: data.normalized_as(digits(), {"mean": [3.0, 4.0], "std": [1.0, 1.0]}),
        "give both, each with a number per channel of digits \\(1\\), or neither",
    ),
    Refusal(
        "a mean from 0 to 1",
        lambda: data.normalized_as(digits(), {"mean": [0.3], "std": [0.4]}),
        "multiply its mean and std by 255",
    ),
    Refusal(
        "four bytes of N-MNIST",
        lambda: data.events.nmnist_events(b"abcd"),
        "has 4 bytes; allowed: 5 for each event",
    ),
    Refusal(
        "nine devices of eight",
        lambda: devices.make_mesh(9),
        "mesh is 9, but JAX finds 8 devices",
    ),
]

# ------------------------------------------------------------------- programs of chips

SIGNED = test_silicon_rtl.SIGNED
perceptron = test_silicon_rtl.perceptron


def plain():
    """Whole numbers under rate coding, of 8, 12 and 6 neurons, and an input."""
    return perceptron(rate(), 4, 0)


def of_floats():
    return dataclasses.replace(plain()[0], arithmetic=None)


def with_large_weights():
    layers, _ = perceptron(radix(), 4, 1, **SIGNED)
    return changed(layers, "1/0", weight=np.full((12, 8), 3001.0))


def with_large_thresholds():
    return changed(plain()[0], "1", threshold=np.full((), 9001.0))


def with_branches():
    return test_conformance.drawn(reset="zero", has_branches=True)[0]


def program_of(make_layers):
    catalyst.program_of(make_layers())


NO_PROGRAMS = {
    "floats": (of_floats, "of floats; allowed"),
    "graded spikes": (
        lambda: perceptron(rate(), 4, 0, levels=(0, 3))[0],
        "levels and resets .*0, 3.* allowed: one of",
    ),
    "digits with a reset to zero": (
        lambda: perceptron(radix(), 4, 3, "zero")[0],
        "radix.*'zero'.* allowed: subtraction",
    ),
    # A spike carries its worth in units of 1/128, which 3 does not divide.
    "digits of base 3": (
        lambda: perceptron(radix(base=3), 3, 1, **SIGNED)[0],
        "allowed: subtraction, and whole 128 m_t / m_1 of m = .9 3 1",
    ),
    "signed spikes": (
        lambda: perceptron(rate(), 4, 0, **SIGNED)[0],
        "allowed for both signs: m_t at least halves",
    ),
    "branches of other lengths": (with_branches, "ways to 'c' differ in length"),
    "many neurons": (
        lambda: perceptron(radix(), 4, 1, sizes=(8, 200, 6), **SIGNED)[0],
        "1501 neurons; a core has 1024",
    ),
    "large weights": (
        with_large_weights,
        "weights reach 48016; a core has 16 bits",
    ),
    "large thresholds": (
        with_large_thresholds,
        "thresholds reach 34385; a core has 16 bits",
    ),
}


def record(events):
    catalyst.recorded(catalyst.program_of(plain()[0]), events)


def commands_of_large_currents():
    catalyst.program_of(plain()[0]).commands(np.full(8, 10**5))


def compare(change):
    """The program of a core is compared with layers of other numbers."""
    layers, x = plain()
    program = catalyst.program_of(layers)
    silicon_rtl.expected(change(layers), program, x)


def with_four_bits(layers):
    arithmetic = dataclasses.replace(layers.arithmetic, state_bits=4)
    return dataclasses.replace(layers, arithmetic=arithmetic)


def with_low_weights(layers):
    return changed(layers, "1/0", weight=np.full((12, 8), -900.0))


def rule_of_large_weights(rule):
    layers, x = test_conformance.drawn(weight=300)
    rule(layers, x)


def count_levels_of_four_bits():
    layers, x = test_conformance.drawn()
    conformance.level_counts(chip_programs.loihi, with_four_bits(layers), x)


def programs_refused():
    for name, (make_layers, message) in NO_PROGRAMS.items():
        call = functools.partial(program_of, make_layers)
        yield Refusal(f"a program of {name}", call, message, Misfit)
    for rule, limits in (
        (chip_programs.loihi, "-256 .. 255"),
        (chip_programs.speck, "-128 .. 127"),
    ):
        call = functools.partial(rule_of_large_weights, rule)
        message = f"weights of 'a' are .* {limits}"
        yield Refusal(f"large weights for {rule.__name__}", call, message)


CHIPS = [
    *programs_refused(),
    Refusal(
        "65 spikes in a step",
        lambda: record("\n".join(f"spike 1 {neuron} 1" for neuron in range(65))),
        "65 spikes in a step; .* 64",
        Misfit,
    ),
    Refusal(
        "a payload of 255",
        lambda: record("spike 1 0 255"),
        "'0' has a payload of 255 or more",
        Misfit,
    ),
    Refusal(
        "currents beyond their bits",
        commands_of_large_currents,
        "currents reach 200001; a core has 16 bits",
        Misfit,
    ),
    Refusal(
        "potentials beyond the bits of a core",
        lambda: compare(with_four_bits),
        "x leave their bits; allowed: more state_bits",
        Misfit,
    ),
    Refusal(
        "potentials below the range of a core",
        lambda: compare(with_low_weights),
        "'1' may reach 14403, .*; allowed: fewer weight_bits",
        Misfit,
    ),
    Refusal(
        "potentials beyond the bits of Loihi",
        count_levels_of_four_bits,
        "x leave their bits; allowed: more state_bits",
        Misfit,
    ),
]

ROWS = [*options_refused(), *models_refused(), *DATA, *CHIPS]
