"""Refusals of whole numbers: what is rounded, what is run, and what is read again."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from networks import IMAGES, NETWORKS, PIXELS, VECTORS, conv, relu
from test_integers import events_layers, one_neuron, perceptron, recurrent_net, tiny
from test_layers import RATE, changed, fitted

import snnjax
from refusals import Refusal, numbered
from refusals.deploy import to_nir
from snnjax import deploy


@functools.cache
def integers():
    """Whole numbers of a perceptron, with four steps and no wait."""
    return tiny()[0]


@functools.cache
def floats():
    """The layers that these whole numbers were rounded from."""
    return deploy.layers(perceptron, tiny()[1], VECTORS)


# ----------------------------------------------------------------------------- rounding


def quantize(change=None, images=VECTORS, **options):
    """Rounds the perceptron; ``change`` is a function of its layers."""
    layers = floats() if change is None else change(floats())
    deploy.quantize(layers, images, **options)


def threshold_of_each_neuron(layers):
    thresholds = np.arange(1.0, 7).reshape(1, 2, 3)
    return changed(layers, shape=(1, 2, 3), threshold=thresholds)


def with_threshold(number):
    return lambda layers: changed(layers, threshold=np.array(number))


def with_leak(layers):
    return changed(layers, leak=np.array(0.5))


def without_steps(layers):
    return dataclasses.replace(layers, steps=None)


def with_a_harmonic_code(layers):
    return dataclasses.replace(layers, code=snnjax.codes.harmonic())


WRONG_ROUNDING = [
    ({"weight_bits": 0}, "weight_bits is 0; allowed: a whole number 1 <= "),
    ({"weight_bits": 4.5}, "weight_bits is 4.5; allowed: a whole number"),
    (
        {"weight_bits": {"output": 33, "*": 8}},
        "weight_bits of 'output' is 33; allowed: a whole number",
    ),
    ({"weight_bits": {"nowhere": 8, "*": 8}}, "patterns 'nowhere' of .*match no site"),
    ({"state_bits": 33}, "state_bits is 33; allowed: a whole number 4 <= "),
    ({"input_bits": True}, "input_bits is True; allowed: a whole number"),
    ({"scale": "row"}, "scale is 'row'; allowed: "),
    ({"overflow": "crash"}, "overflow is 'crash'; allowed: "),
    (
        {"change": lambda _: integers()},
        "layers is of whole numbers; allowed: float layers",
    ),
    ({"change": lambda _: tiny()[1]}, "layers is a SNN; allowed: float layers"),
    ({"images": VECTORS * jnp.nan}, "x holds 16 NaN of 16 numbers; allowed: none"),
    ({"images": VECTORS + jnp.inf}, "x holds 16 inf of 16 numbers; allowed: none"),
    ({"images": VECTORS - jnp.inf}, "images hold 16 values of NaN or infinity"),
    ({"images": VECTORS[:, :2]}, r"x has shape \(4, 2\); allowed: \[B, 4\]"),
    ({"change": with_leak}, "rounds a leak in its own way; allowed: a chip that"),
    (
        {"change": threshold_of_each_neuron, "scale": "layer"},
        "a threshold each, and scale 'layer'.*allowed: thresholds per channel",
    ),
    (
        {"state_bits": 6, "input_bits": 12},
        "all weights of 'w1/relu/0' would be rounded to 0.*allowed: more state_bits",
    ),
    (
        {"change": with_threshold(np.nan)},
        "the numbers of node 'w1/relu' hold 1 value of NaN or infinity, of",
    ),
    (
        {"change": with_threshold(1e-5), "weight_bits": 4},
        "rounded to 0.*weight_bits >= 10",
    ),
    ({"change": without_steps}, "the layers have no T; allowed: "),
    ({"change": with_a_harmonic_code}, "allowed: whole multiples of the last one"),
    ({"scale": "range", "weight_bits": 1}, "weight_bits is 1; allowed: .* 2 <= "),
]


def with_chip(chip, **changes):
    layers = dataclasses.replace(floats(), **changes)
    deploy.quantize(layers, VECTORS, chip=chip)


def a_pool_of_a_map():
    """A sum-pool reads a linear map, and layers have no place for their product."""

    def fn(p, x):
        x = conv(relu(conv(x, p["w1"])), p["w2"])
        window = (1, 2, 2, 1)
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID")
        return relu(x).sum((1, 2)) @ p["w4"]

    round_on(fn, PIXELS)


def channels_first():
    def fn(p, x):
        return relu(conv(x, p["w1"])).sum((1, 2)) @ p["w4"]

    round_on(fn, np.moveaxis(PIXELS, -1, 1))


def round_on(fn, images):
    """Layers of a network of `PIXELS` are rounded on other images."""
    model = snnjax.integrate_and_fire()
    snn = snnjax.init(fn, IMAGES, PIXELS, model=model)
    snn = dataclasses.replace(snn, steps=4, wait=0)
    deploy.quantize(deploy.layers(fn, snn, PIXELS), images)


@functools.cache
def recurrent():
    """Layers of recurrent neurons that leak, and a sequence [14, 8, 5]."""
    shapes = {"first": (5, 16), "second": (16, 12), "third": (12, 3)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    x = jnp.ones((14, 8, 5))
    model = snnjax.neurons.Recurrent(snnjax.lif(leak=0.5, reset="zero"))
    snn = snnjax.init(recurrent_net, params, x[0], model=model, key=jax.random.key(0))
    return deploy.layers(recurrent_net, snn, x[0]), x


def quantize_recurrent(x, **changes):
    layers, _ = recurrent()
    layers = dataclasses.replace(layers, **changes)
    deploy.quantize(layers, x, chip=deploy.loihi2(), inputs="sequence")


def recurrent_image():
    model = snnjax.neurons.Recurrent(snnjax.lif(leak=0.5))
    x = jnp.ones((1, 4, 4, 2))
    kernel = jnp.ones((3, 3, 2, 2))

    def fn(kernel, x):
        return relu(conv(x, kernel))

    snn = snnjax.init(fn, kernel, x, model=model, key=jax.random.key(0))
    deploy.layers(fn, snn, x)


ROUNDING = [
    *numbered("rounding", quantize, WRONG_ROUNDING),
    Refusal(
        "a radix code on Speck",
        lambda: with_chip(deploy.speck(), code=snnjax.codes.radix()),
        "thresholds that change by step(.|\n)*remedy: take rate coding",
        snnjax.ConversionError,
    ),
    Refusal(
        "four steps on Akida",
        lambda: with_chip(deploy.akida1()),
        "T = 4, not 1\n *remedy: take steps=1",
        snnjax.ConversionError,
    ),
    Refusal(
        "filtered currents of Xylo",
        lambda: with_chip(deploy.xylo()),
        "not exponential ones\n *remedy: train neurons",
        snnjax.ConversionError,
    ),
    Refusal(
        "a pool of a linear map",
        a_pool_of_a_map,
        "reads the linear map 'conv_1' without neurons in between",
        snnjax.ConversionError,
    ),
    Refusal(
        "images with channels first",
        channels_first,
        r"Put its channels last: np.moveaxis\(",
    ),
    Refusal(
        "a sequence with the batch first",
        lambda: quantize_recurrent(recurrent()[1].swapaxes(0, 1), steps=14),
        "layers with T = 14 read time first; allowed",
    ),
    Refusal(
        "a step of a sequence",
        lambda: quantize_recurrent(recurrent()[1][0]),
        r"allowed: \[T, B, 5\], T, B >= 1",
    ),
    Refusal(
        "recurrent neurons in NIR",
        lambda: to_nir(recurrent()[0], extended=True),
        "recurrent, which is not written\n *remedy: keep the SNN",
        snnjax.ConversionError,
    ),
    Refusal(
        "recurrent neurons of an image",
        recurrent_image,
        "recurrent, and an image\n *remedy: put a dense layer",
        snnjax.ConversionError,
    ),
]

# ------------------------------------------------------------------------------ a leak


@functools.cache
def leaking():
    """Layers of neurons that leak, and their whole numbers on a Loihi 2."""
    net = NETWORKS["dense"]
    snn = fitted(net, RATE, reset="zero", leak=np.float32([0.75]))
    layers = dataclasses.replace(deploy.layers(net.fn, snn, net.x), steps=6)
    chip = deploy.Chip("mine", leak=deploy.loihi2().leak, state_bits=18)
    return layers, deploy.quantize(layers, net.x, chip=chip)


def run_leaking(change):
    _, whole = leaking()
    deploy.run(change(whole), VECTORS)


def without_a_rule(whole):
    arithmetic = dataclasses.replace(whole.arithmetic, leak=None)
    return dataclasses.replace(whole, arithmetic=arithmetic)


def with_high_thresholds(whole):
    return changed(whole, threshold=np.float64(2**25))


def leak_rule(**changes):
    deploy.Leak(**{"form": "factor"} | changes)


def arithmetic(**changes):
    dataclasses.replace(leaking()[1].arithmetic, **changes)


WRONG_LEAKS = [
    ({"form": "slide"}, "form is 'slide'; allowed"),
    ({"bits": 15}, "bits is 15; allowed"),
    ({"fraction": 0.5}, "fraction is 0.5; allowed"),
]
WRONG_ARITHMETIC = [
    ({"overflow": "clip"}, "overflow is 'clip'; allowed"),
    ({"input_bits": 1}, "input_bits is 1; allowed"),
    ({"state_bits": 31}, "state_bits is 31; allowed"),
    ({"leak": "factor"}, "leak is 'factor'; allowed: a Leak, e.g."),
]
LEAKS = [
    *numbered("rule of a leak", leak_rule, WRONG_LEAKS),
    *numbered("arithmetic", arithmetic, WRONG_ARITHMETIC),
    Refusal(
        "a leak without a rule",
        lambda: run_leaking(without_a_rule),
        "does not say how that is rounded; allowed: leak=",
    ),
    Refusal(
        "whole numbers with a leak as a function",
        lambda: deploy.as_function(leaking()[1]),
        "a chip('s rounding| rounds) .*allowed: .*float layers",
    ),
    Refusal(
        "whole numbers with a leak in NIR",
        lambda: to_nir(leaking()[1]),
        "a chip('s rounding| rounds) .*allowed: .*float layers",
    ),
    Refusal(
        "a leak on Speck",
        lambda: deploy.quantize(leaking()[0], VECTORS, chip=deploy.speck()),
        "leak.*allowed: a chip that says how",
    ),
    Refusal(
        "thresholds beyond 24 bits",
        lambda: run_leaking(with_high_thresholds),
        r"not whole or reach 2\^24, and are sim",
    ),
]

# ------------------------------------------------------------------------------ running


@functools.cache
def events():
    """Whole numbers that read events, and their sequence [30, 2, 7, 5, 2]."""
    layers, x = events_layers()
    layers = dataclasses.replace(layers, steps=4, wait=0)
    return deploy.quantize(layers, x.reshape(-1, 7, 5, 2)), x


def run(x=VECTORS, **options):
    deploy.run(integers(), x, **options)


def run_events(move=lambda x: x, inputs="sequence", **changes):
    """Runs whole numbers with other fields on other events."""
    whole, x = events()
    deploy.run(dataclasses.replace(whole, **changes), move(x), inputs=inputs)


def run_with_a_wait():
    deploy.run(tiny(wait=1)[0], VECTORS, delay=1)


def run_traced():
    jax.jit(lambda whole: deploy.run(whole, VECTORS).outputs)(integers())


def first(x):
    return x[0]


def sums_of_30_bits():
    """A sum, a bias and an initial potential of 30 bits each are added."""
    large = 2**30 - 1
    saturating = deploy.Arithmetic(8, 8, 16, "saturate")
    layers = one_neuron(saturating, threshold=100, bias=large, start=large)
    deploy.run(layers, jnp.full((1, 1, 1), 100.0), inputs="sequence")


NO_EVENTS = [
    (
        {"move": first, "inputs": "constant", "steps": None, "wait": None},
        "have no T; allowed",
    ),
    ({"inputs": "poisson"}, "inputs is 'poisson'; allowed: 'constant'"),
    ({"move": first}, r"x has shape \(2, 7, 5, 2\); allowed: \[T, B, 7, 5, 2\]"),
    ({"move": lambda x: np.moveaxis(x, -1, 2)}, r"np.moveaxis\(x, 2, -1\)"),
    ({"wait": 1}, "wait 1; allowed with a sequence"),
]
NO_RUNS = [
    ({"x": VECTORS[:, :3]}, r"x has shape \(4, 3\); allowed: \[B, 4\]"),
    ({"x": VECTORS[:0]}, r"x has shape \(0, 4\); allowed: \[B, 4\], B >= 1"),
    ({"x": {"x": VECTORS}}, "x is a dict; allowed: "),
    ({"x": VECTORS * jnp.nan}, "x holds 16 NaN of 16 numbers; allowed: none"),
    ({"delay": 5}, "delay is 5; allowed: .*0 <= delay <= 4"),
]
RUNS = [
    *numbered("a run", run, NO_RUNS),
    *numbered("a run of events", run_events, NO_EVENTS),
    Refusal(
        "a delay beside a wait",
        run_with_a_wait,
        "wait 1; allowed with a sequence or a delay",
    ),
    Refusal(
        "a run of float layers",
        lambda: deploy.run(floats(), VECTORS),
        "of float numbers; allowed: whole",
    ),
    Refusal(
        "images before layers",
        lambda: deploy.run(VECTORS, integers()),
        "is .*; allowed: whole numbers from snnjax.deploy.quantize",
    ),
    Refusal("traced layers", run_traced, "layers are traced; allowed: layers that"),
    Refusal(
        "memory of traced layers",
        lambda: jax.jit(deploy.memory)(integers()),
        "layers are traced; allowed: layers that",
    ),
    Refusal(
        "traced calibration images",
        lambda: jax.jit(lambda x: deploy.quantize(floats(), x))(VECTORS),
        "images are traced; .* Call snnjax.deploy.quantize outside of jit",
    ),
    Refusal(
        "potentials beyond 31 bits",
        sums_of_30_bits,
        r"'relu' can reach 2147483773, .* below 2\^31",
    ),
]

# -------------------------------------------------------------- training and thresholds


@functools.cache
def learner():
    """The SNN whose gradients train the whole numbers."""
    return deploy.trainable(integers())[1]


def with_weights(change):
    params = jax.tree.map(change, learner().params)
    deploy.with_weights(integers(), params)


def thresholds(number=7.0, steps=3):
    """Thresholds of one population, in whole numbers of a radix code."""
    zero = np.zeros(())
    model = snnjax.integrate_and_fire()
    node = deploy.Population("n", (), (80,), model, np.full((), number), zero, zero)
    arithmetic = deploy.Arithmetic(8, 8, 20, "wrap")
    radix = snnjax.codes.radix()
    layers = deploy.Layers((node,), steps, 0, radix, arithmetic)
    deploy.timing(layers).thresholds(node)


TRAINING = [
    Refusal(
        "training of float layers",
        lambda: deploy.trainable(floats()),
        "is .*; allowed: whole numbers from snnjax.deploy.quantize",
    ),
    Refusal(
        "whole numbers without weights",
        lambda: deploy.with_weights(integers(), {}),
        "are missing, missing.*allowed: the structure and shapes",
    ),
    Refusal(
        "a row of each weight",
        lambda: with_weights(lambda leaf: leaf[:1]),
        r"are .*'weight': \(1, .*allowed: the structure",
    ),
    Refusal(
        "infinite weights",
        lambda: with_weights(lambda leaf: leaf / 0),
        "params hold .* infinity, of 48 in all; allowed: finite",
    ),
    Refusal(
        "the memory of an SNN",
        lambda: deploy.memory(learner()),
        "layers is a SNN; allowed: float layers",
    ),
    Refusal(
        "a threshold of 0.3",
        lambda: thresholds(0.3),
        "allowed: a population of whole numbers",
    ),
    Refusal(
        "thresholds without T",
        lambda: thresholds(steps=None),
        "the layers have no T; allowed",
    ),
]

ROWS = [*ROUNDING, *LEAKS, *RUNS, *TRAINING]
