"""Refusals of conversion: arguments, recipes, fits and numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from networks import FLAT, NETWORKS, relu

import snnjax
from refusals import Refusal
from snnjax import Recipe, calibrators
from snnjax.calibrators import max_threshold

STEPS = 4
NET = NETWORKS["concatenation"]
DENSE = NETWORKS["dense"].fn


def images(count=64):
    numbers = np.random.default_rng(0).normal(size=(count, 4))
    return jnp.asarray(numbers, jnp.float32)


def conversion(fn=NET.fn, params=NET.params, x=None, **options):
    """A conversion with these arguments."""
    x = images() if x is None else x
    options = {"steps": STEPS, "recipe": snnjax.light()} | options
    return lambda: snnjax.convert(fn, params, x, **options)


WRONG_ARGUMENTS = [
    ({"steps": 0}, "steps is 0; allowed: a whole number >= 1"),
    ({"steps": 10**30}, "steps is 10{30}; allowed: at most 2\\*\\*24 = 16777216"),
    ({"wait": 5}, "wait is 5; allowed: .* to steps=4"),
    ({"recipe": "best"}, "recipe is 'best'; allowed: a Recipe"),
    ({"recipe": snnjax.best}, "snnjax.best\\(\\) \\(called\\)"),
    ({"recipe": {"other/*": snnjax.light()}}, "recipe match no site"),
    ({"recipe": {}}, "recipe is empty"),
    (
        {"model": snnjax.integrate_and_fire(threshold=5.0)},
        "model has the threshold",
    ),
    ({"x": images().at[0, 0].set(jnp.inf)}, "calibration images hold 1 value of NaN"),
    ({"x": images(0)}, "at least one example"),
    ({"x": jnp.ones((2, 4), jnp.uint8)}, "allowed: floating point"),
    ({"x": np.ones((2, 4), ">f4")}, "the dtype of x is >f4, .*newbyteorder"),
    (
        {"params": FLAT | {"w1": np.full((4, 6), "a")}},
        "params hold an array of dtype <U1 at w1; allowed: arrays of numbers",
    ),
    (
        {"params": FLAT | {"w1": np.ones((4, 6), ">f4")}},
        "params at w1 is >f4, in the other order of bytes",
    ),
    (
        {"params": {"layer": {0: FLAT["w1"], "w2": FLAT["w2"]}}},
        r"params\['layer'\] is a dict with keys of the types int, str.*; allowed:",
    ),
]
WRONG_SWEEPS = [
    ((), "needs at least one sweep"),
    (([],), "needs at least one sweep"),
    ((None,), "a sweep of the recipe is None; allowed: a list"),
    ((calibrators.half_charge(),), "allowed: a list of calibrators"),
    (([snnjax.calibrators.max_threshold],), "called in a recipe, e.g. .*max_thr"),
]


def neuron(**changes):
    """A calibrator that returns the fit with another neuron."""
    return lambda view, fit: fit._replace(neurons=fit.neurons._replace(**changes))


def weights(change):
    """A calibrator that returns the fit with other weights."""

    def calibrate(view, fit):
        return fit._replace(weights={p: change(w) for p, w in fit.weights.items()})

    return calibrate


REFUSED_FITS = [
    (neuron(threshold=0.0), "'w1/relu' threshold from 0.0 to 0.0; .* > 0"),
    (neuron(threshold=float("nan")), "threshold from nan"),
    (neuron(bias=jnp.array([jnp.inf] * 6)), "bias from inf"),
    (neuron(threshold=jnp.ones(3)), r"threshold of shape \(3,\); .* \(6,\)"),
    (neuron(leak=0.5), "a leak or a temperature; allowed: None"),
    (neuron(bias=None), "'w1/relu' bias None; allowed: an array or a number"),
    (neuron(threshold="2"), "threshold '2'; allowed: an array or a number"),
    (neuron(threshold=True), "threshold True; allowed: an array or a number"),
    (lambda view, fit: None, "'w1/relu' None; allowed: a Fit"),
    (lambda view, fit: fit.neurons, "allowed: a Fit"),
    (lambda view, fit: fit._replace(weights={}), r"weights \[\]; allowed: \['w1'"),
    (lambda view, fit: fit._replace(weights=[]), r"weights \[\]; allowed: a dict"),
    (weights(lambda w: 0.0), "weights 'w1' as a float; allowed: an array"),
    (weights(lambda w: w.astype(int)), "type int32; allowed: .* float32"),
    (
        weights(lambda w: w * jnp.nan),
        "'w1', fitted at 'w1/relu', hold 24 values of NaN",
    ),
    (weights(lambda w: w[0]), r"of shape \(6,\) and .*; allowed: \(4, 6\) and float32"),
]


def tied(p, x):
    x = relu(x @ p["w1"])
    return relu(relu(x @ p["w2"]) @ p["w2"]) @ p["w3"]


def two_outputs(p, x):
    return {"logits": DENSE(p, x), "mask": 0 * x - jnp.inf}


def with_nan(name):
    return FLAT | {name: FLAT[name].at[0, 0].set(jnp.nan)}


def traced():
    jax.jit(lambda params, x: conversion(params=params, x=x)())(NET.params, images())


def sweep(x):
    snnjax.sweep(DENSE, FLAT, x, x, np.zeros(64, int), steps=4)


def rotation_traced():
    x = images()

    def rotate(params):
        return snnjax.rotation(DENSE, params, x, steps=STEPS)

    # Without jit the images stay concrete.
    jax.vmap(rotate)(jax.tree.map(lambda leaf: leaf[None], FLAT))


def inside_jit():
    """The arrays have numbers, and yet what is computed of them is traced."""
    x = np.asarray(images())
    jax.jit(conversion(DENSE, jax.tree.map(np.asarray, FLAT), x))()


NOT_FINITE = {
    "a hidden weight": (
        DENSE,
        with_nan("w2"),
        "NaN in the weights 'w2'; allowed: numbers",
    ),
    "a weight of the readout": (
        DENSE,
        with_nan("w3"),
        "NaN in the weights 'w3'; allowed: numbers",
    ),
    "a logarithm": (
        lambda p, x: jnp.log(x @ p["w1"]) @ p["w2"] @ p["w3"],
        FLAT,
        "activations of site '.*encoder' hold .* NaN",
    ),
    "a mask": (two_outputs, FLAT, "the outputs 'mask' of the network hold 256"),
}


# ------------------------------------------------------------------ quantized ReLUs

LEVELS = 7
KERNEL = np.float32(np.random.default_rng(0).normal(size=(4, 8)))


def plain(p, x):
    return jax.nn.relu(x @ p)


def encoded(p, x):
    return jnp.tanh(snnjax.quantized_relu(x @ p, 1.0, 4)) @ p.T


def moved_maximum(p, x):
    """Two `jax.vmap` move the maxima from the last axis of x to another one."""
    weights, maxima = p

    def quantize(column, maximum):
        return snnjax.quantized_relu(column, maximum, LEVELS)

    by_column = jax.vmap(quantize, in_axes=(1, 0), out_axes=1)
    return jax.vmap(lambda rows: by_column(rows, maxima).sum(0))(x @ weights)


def maximum_in_params(p, x):
    return snnjax.quantized_relu(x, p, LEVELS) @ jnp.ones((2, 2))


def quantized_refused():
    for fn, kind in ((plain, "relu"), (encoded, "encoder")):
        call = conversion(fn, KERNEL, recipe=snnjax.quantized())
        message = f"kind '{kind}', which has no maximum"
        yield Refusal(f"quantized, a site of kind {kind}", call, message)
    params = jnp.eye(4), jnp.array([0.3, 1.0, 2.0, 4.0])
    call = conversion(moved_maximum, params, jnp.ones((8, 4, 4)))
    yield Refusal(
        "a maximum that vmap moves",
        call,
        "no ReLU, .*nothing would spike",
        snnjax.ConversionError,
    )
    x = np.ones((8, 2), np.float32)
    for lowest in (-0.5, 0.0, np.nan, np.inf):
        maxima = np.float32([1.0, lowest])
        recipe = snnjax.light("channel")
        call = conversion(maximum_in_params, maxima, x, recipe=recipe)
        message = "the maximum of the quantized relu at .*; allowed: finite and > 0"
        yield Refusal(f"a maximum of {lowest} in params", call, message)


# ---------------------------------------------------- options of recipes and budgets

# A function that builds a calibrator or a recipe, its arguments, and the message.
WRONG_OPTIONS = [
    (
        calibrators.threshold,
        [calibrators.maximum, "image"],
        "per is 'image'; allowed: 'layer', 'channel'",
    ),
    (snnjax.light, ["neuron"], "per is 'neuron'; allowed: 'layer', 'channel'"),
    (snnjax.percentile, [0.999], "p is 0.999; allowed: 1 < p <= 100"),
    (snnjax.percentile, [101], "p is 101; allowed: 1 < p <= 100"),
    (snnjax.percentile, ["99"], "p is '99'; allowed: 1 < p <= 100"),
    (
        calibrators.least_squares_threshold,
        ["layer", 1],
        "shift is 1; allowed: 0 <= shift < 1",
    ),
    (
        calibrators.least_squares_threshold,
        {"shift": "round"},
        "shift is 'round'; allowed: 0 <= shift < 1",
    ),
    (calibrators.least_squares_weights, {"damping": 0}, "damping is 0; allowed: > 0"),
    (
        calibrators.least_squares_weights,
        {"samples": 0},
        "samples is 0; allowed: a whole number",
    ),
    (
        calibrators.calibrate_weights,
        {"batch": 0},
        "batch is 0; allowed: a whole number",
    ),
    (
        calibrators.calibrate_weights,
        {"learning_rate": np.inf},
        "learning_rate is inf; allowed: > 0, and finite",
    ),
    (
        calibrators.calibrate_weights,
        {"seed": -1},
        "seed is -1; allowed: a whole number",
    ),
    (snnjax.advanced, {"iterations": 2.5}, "iterations is 2.5; allowed: a whole"),
    (calibrators.correct_potential, [0], "repeats is 0; allowed: a whole number"),
    (
        calibrators.postpone_charge,
        [()],
        r"charges are \(\); allowed: one number or more",
    ),
    (calibrators.postpone_charge, [["1"]], r"\['1'\]; allowed: one number or more"),
    (calibrators.postpone_charge, [[1j]], "1j.*; .* each a finite number"),
    (calibrators.postpone_charge, [(np.inf,)], "inf.*; .* each a finite number"),
    (calibrators.postpone_charge, {"pace": -1}, "pace is -1; allowed: >= 0"),
    (calibrators.scale_threshold, {"pace": "0"}, "pace is .0.; allowed: >= 0"),
    (
        calibrators.scale_threshold,
        {"per": "neuron"},
        "per is 'neuron'; allowed: 'layer'",
    ),
    (calibrators.scale_threshold, [[[1], [1, 2]]], "allowed: one number or more"),
    (calibrators.scale_threshold, [(1, 0)], r"are \(1, 0\); allowed: .*, each > 0"),
    (
        calibrators.scale_threshold,
        [[(1, 0)]],
        r"factors are \[\(1, 0\)\]; allowed: one",
    ),
    (calibrators.by_effect, [], "no calibrator; allowed: one or more"),
    (calibrators.streaming_only, [(1,)], r"\(1,\) does not take \(view, fit\)"),
    (
        calibrators.streaming_only,
        [calibrators.scale_threshold],
        "those of snnjax are called in a recipe, e.g. snnjax.cal.*max_threshold",
    ),
]
BUDGETS = [
    (lambda: snnjax.best(price=-0.1), "price is -0.1; allowed: >= 0"),
    (lambda: snnjax.best(spikes=0), "spikes is 0; allowed: > 0"),
    (
        lambda: snnjax.best(price=0.1, spikes=1),
        "the price 0.1 and spikes=1; allowed: one of them",
    ),
    (lambda: snnjax.best("foo"), "per is 'foo'; allowed: 'layer'"),
    (lambda: snnjax.best(spikes=5), "a neuron sends at most 4"),
    (
        lambda: snnjax.best(spikes=0.001),
        "spikes is 0.001 .*; allowed: more spikes, or fewer steps",
    ),
]


def convert_by(make_recipe):
    conversion(DENSE, FLAT, recipe=make_recipe())()


def clipped_by_channel(p, x):
    return snnjax.clipped_relu(x @ p["w"], p["maxima"])


def options_refused():
    for number, (build, options, message) in enumerate(WRONG_OPTIONS, 1):
        if isinstance(options, dict):
            call = functools.partial(build, **options)
        else:
            call = functools.partial(build, *options)
        yield Refusal(f"{build.__name__} {number}", call, message)
    for number, (make_recipe, message) in enumerate(BUDGETS, 1):
        call = functools.partial(convert_by, make_recipe)
        yield Refusal(f"budget {number}", call, message)
    params = {"w": np.eye(4, dtype="f4"), "maxima": np.float32([0.1, 0.5, 1.0, 2.0])}
    for name, recipe in {
        "max activation": snnjax.max_activation(),
        "percentile": snnjax.percentile(99),
        "light": snnjax.light(),
    }.items():
        call = conversion(clipped_by_channel, params, recipe=recipe)
        message = "a maximum of its own.*per='channel'"
        yield Refusal(f"maxima of channels, {name}", call, message)


def convert_in_explicit_mesh():
    """The axes of the mesh are part of the types of all arrays."""
    kinds = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((8,), ("data",), axis_types=kinds)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with jax.set_mesh(mesh):
        conversion(x=jax.device_put(images(), sharding))()


def conversions_refused():
    for number, (change, message) in enumerate(WRONG_ARGUMENTS, 1):
        yield Refusal(
            f"argument {number}: {', '.join(change)}", conversion(**change), message
        )
    for number, (sweeps, message) in enumerate(WRONG_SWEEPS, 1):
        call = functools.partial(snnjax.Recipe, *sweeps)
        yield Refusal(f"recipe {number}", call, message)
    for number, (calibrate, message) in enumerate(REFUSED_FITS, 1):
        recipe = Recipe([max_threshold(), calibrate])
        yield Refusal(f"fit {number}", conversion(DENSE, FLAT, recipe=recipe), message)
    for name, (fn, params, message) in NOT_FINITE.items():
        for code in (snnjax.codes.rate(), snnjax.codes.radix()):
            call = conversion(
                fn,
                params,
                steps=2,
                recipe=snnjax.max_activation(),
                code=code,
            )
            yield Refusal(f"{name} that is not finite, {code!r}", call, message)
    for dtype in (jnp.int8, None, "bf16", jnp.float64):
        call = functools.partial(snnjax.in_dtype, NET.fn, dtype)
        message = "allowed: bfloat16, float16, float32"
        yield Refusal(f"in dtype {dtype}", call, message)


ROWS = [
    *conversions_refused(),
    *quantized_refused(),
    *options_refused(),
    Refusal(
        "a mesh of explicit axes",
        convert_in_explicit_mesh,
        "jax.set_mesh of a mesh with Explicit axes",
    ),
    Refusal("a traced conversion", traced, "params are traced; allowed: arrays with"),
    Refusal(
        "a conversion inside of jit",
        inside_jit,
        "snnjax.convert is called inside of jit.*; allowed: a call outside of jit",
    ),
    Refusal(
        "a traced rotation",
        rotation_traced,
        "params are traced; allowed: .* Call snnjax.rotation outside of jit",
    ),
    Refusal(
        "steps by a wrong name",
        lambda: snnjax.convert(*NET[:2], images(), stpes=4),
        r"convert\(\) has no argument 'stpes'; closest: 'steps'; allowed: snnjax",
        TypeError,
    ),
    Refusal(
        "levels outside of a model",
        lambda: snnjax.convert(*NET[:2], images(), steps=4, levels=(-1, 1)),
        r"no argument 'levels'; its options are steps, .*model.*; allowed: snnjax",
        TypeError,
    ),
    Refusal(
        "a traced sweep",
        functools.partial(jax.jit(sweep), images()),
        "images are traced; allowed: .* Call snnjax.sweep outside of jit",
    ),
    Refusal(
        "other numbers in shared weights",
        conversion(tied, FLAT, recipe=Recipe([weights(lambda w: 2 * w)])),
        "'w2' feed w2/relu, w2/relu_1, so .*; allo",
    ),
]
