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
    ({"wait": 5}, "wait is 5; allowed: .* to steps=4"),
    ({"recipe": "best"}, "recipe is 'best'; allowed: a Recipe"),
    ({"recipe": snnjax.best}, "snnjax.best\\(\\) \\(called\\)"),
    ({"recipe": {"other/*": snnjax.light()}}, "recipe match no site"),
    ({"recipe": {}}, "recipe is empty"),
    (
        {"model": snnjax.integrate_and_fire(threshold=5.0)},
        "model has the threshold",
    ),
    ({"x": images().at[0, 0].set(jnp.inf)}, "calibration images hold 1 values"),
    ({"x": images(0)}, "at least one example"),
    ({"x": jnp.ones((2, 4), jnp.uint8)}, "allowed: floating point"),
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
        "'w1', fitted at 'w1/relu', hold 24 values that are",
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


def inside_jit():
    """The arrays have numbers, and yet what is computed of them is traced."""
    x = np.asarray(images())
    jax.jit(conversion(DENSE, jax.tree.map(np.asarray, FLAT), x))()


NOT_FINITE = {
    "a hidden weight": (
        DENSE,
        with_nan("w2"),
        "activations of site 'w2/relu' hold .* NaN",
    ),
    "a weight of the readout": (
        DENSE,
        with_nan("w3"),
        "outputs of the network hold .* NaN",
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
    """The maxima are along the last axis of x, the first of their own."""
    along = jax.vmap(lambda v, m: snnjax.quantized_relu(v, m, LEVELS), (1, 0), 1)
    return jax.vmap(lambda x: along(x, p[1]).sum(0))(x @ p[0])


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
        "a maximum that vmap moves", call, "cannot be converted", snnjax.ConversionError
    )
    x = np.ones((8, 2), np.float32)
    for lowest in (-0.5, 0.0, np.nan, np.inf):
        maxima = np.float32([1.0, lowest])
        recipe = snnjax.light("channel")
        call = conversion(maximum_in_params, maxima, x, recipe=recipe)
        message = "the maximum of the quantized relu at"
        yield Refusal(f"a maximum of {lowest} in params", call, message)


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
        call = conversion(fn, params, steps=2, recipe=snnjax.max_activation())
        yield Refusal(f"{name} that is not finite", call, message)
    for dtype in (jnp.int8, None, "bf16", jnp.float64):
        call = functools.partial(snnjax.in_dtype, NET.fn, dtype)
        message = "allowed: bfloat16, float16, float32"
        yield Refusal(f"in dtype {dtype}", call, message)


ROWS = [
    *conversions_refused(),
    *quantized_refused(),
    Refusal("a traced conversion", traced, "traced; allowed: arrays with numbers"),
    Refusal(
        "a conversion inside of jit", inside_jit, "traced; allowed: arrays with numbers"
    ),
    Refusal(
        "other numbers in shared weights",
        conversion(tied, FLAT, recipe=Recipe([weights(lambda w: 2 * w)])),
        "'w2' feed w2/relu, w2/relu_1, so .*; allo",
    ),
]
