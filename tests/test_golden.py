"""Numbers recorded from the authors' PyTorch code are met on a residual network.

``golden/snn_calibration.npz``: inputs (NHWC), weights (HWIO), and for T in {4, 16} and
five recipes the thresholds, bias deltas, initial potentials, mean outputs of every
site and logits; also their threshold search on one tensor.
"""

import dataclasses
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import conv, outputs_of, relu
from rows import thorough

import snnjax
from snnjax import calibrators
from snnjax.calibrators import formulas
from snnjax.conversion.recipes import Recipe

pytestmark = pytest.mark.usefixtures("optimized")

PATH = pathlib.Path(__file__).parent / "golden" / "snn_calibration.npz"
SEARCH = calibrators.least_squares_threshold()
SHIFT = calibrators.shift_bias()
RECIPES = {
    "max": snnjax.max_activation(),
    "max_shift": snnjax.bias_shift(),
    "mmse_shift": Recipe([SEARCH, SHIFT]),
    "light": snnjax.light(),
    "pc": Recipe([SEARCH, SHIFT, calibrators.correct_potential()]),
}
# Spikes that may differ by rounding, among all neurons of all sites. "max": the image
# and neuron that hold the maximum have a potential of T V_th at the last step. "pc",
# T = 16: one neuron of the last site lies within rounding of its threshold.
FLIPS = {("max", 4): 1, ("max", 16): 1, ("pc", 16): 1}


@functools.cache
def golden():
    with np.load(PATH) as file:
        return dict(file)


def weights():
    params = {}
    for name, array in golden().items():
        if name.startswith("w/"):
            params[name.removeprefix("w/")] = jnp.asarray(array)
    return params


def norm(p, name, x):
    deviation = jnp.sqrt(p[f"{name}.running_var"] + 1e-5)
    x = (x - p[f"{name}.running_mean"]) / deviation
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def network(p, x, act=relu):
    def convolve(name, x, stride=1, padding=1):
        pads = ((padding, padding),) * 2
        return conv(x, p[f"{name}.weight"], stride, pads)

    x = act(norm(p, "bn1", convolve("conv1", x)))
    for block, stride in (("block1", 1), ("block2", 2)):
        shortcut = x
        if stride == 2:
            shortcut = convolve(f"{block}.downsample.0", x, 2, 0)
            shortcut = norm(p, f"{block}.downsample.1", shortcut)
        y = act(norm(p, f"{block}.bn1", convolve(f"{block}.conv1", x, stride)))
        y = norm(p, f"{block}.bn2", convolve(f"{block}.conv2", y))
        x = act(y + shortcut)
    return x.mean((1, 2)) @ p["linear.weight"] + p["linear.bias"]


def watched(p, x):
    """The network's logits, and the outputs of its sites."""
    outputs = []

    def act(x):
        outputs.append(relu(x))
        return outputs[-1]

    return network(p, x, act), outputs


@functools.cache
def site_names():
    return [site.name for site in snnjax.sites(network, weights(), golden()["x"])]


@functools.cache
def converted(steps):
    """Name of each recipe -> the SNN that it gives, in NumPy."""
    params, x = weights(), golden()["x"]
    snns = {}
    for name, recipe in RECIPES.items():
        snn = snnjax.convert(network, params, x, steps=steps, recipe=recipe)
        snns[name] = jax.device_get(snn)
    return snns


@functools.cache
def simulation(steps):
    """(SNN, x) -> mean logits, and mean outputs of every site."""
    simulate = snnjax.spiking(watched, steps=steps, execution=steps)

    @jax.jit
    def means(snn, x):
        return jax.tree.map(lambda output: output.mean(0), simulate(snn, x))

    return means


def simulated(recipe, steps):
    """What `simulation` gives, as NumPy's arrays."""
    snn, x = converted(steps)[recipe], golden()["x"]
    sites = snnjax.sites(network, weights(), x)
    # Of full shape, so that all recipes share a program.
    neurons = {s.name: calibrators.broadcast(snn.neurons[s.name], s) for s in sites}
    snn = dataclasses.replace(snn, neurons=neurons)
    return jax.device_get(simulation(steps)(snn, x))


every_recipe = pytest.mark.parametrize(
    "recipe, steps",
    [
        *[(recipe, 16) for recipe in RECIPES],
        *thorough(*[(recipe, 4) for recipe in RECIPES]),
    ],
)


def test_the_network_is_the_authors():
    logits = jax.jit(network)(weights(), golden()["x"])
    np.testing.assert_allclose(logits, golden()["ann_logits"], atol=1e-5)
    assert len(site_names()) == len(golden()["sites"])


@every_recipe
def test_parameters_are_the_authors(recipe, steps):
    for i, name in enumerate(site_names()):
        params = converted(steps)[recipe].neurons[name]
        site = f"T{steps}/{recipe}/site{i}"
        threshold = golden()[f"{site}/threshold"]
        assert params.threshold == pytest.approx(threshold, rel=1e-5)
        if recipe == "light":
            bias, threshold = np.asarray(params.bias), np.asarray(params.threshold)
            delta = bias - threshold / (2 * steps)
            expected = golden()[f"{site}/bias_delta"]
            np.testing.assert_allclose(delta, expected, atol=1e-5)
        if recipe == "pc":
            start = np.asarray(params.initial_potential)
            error = start - golden()[f"{site}/initial_potential"]
            # One spike of one of the images moves the mean charge by V_th / N.
            one_spike = threshold / len(golden()["x"])
            differs = np.abs(error) > 1e-4
            assert differs.sum() <= FLIPS.get((recipe, steps), 0)
            np.testing.assert_allclose(np.abs(error[differs]), one_spike, rtol=1e-3)


@every_recipe
def test_mean_outputs_are_the_authors(recipe, steps):
    logits, outputs = simulated(recipe, steps)
    flips = 0
    for i, output in enumerate(outputs):
        site = f"T{steps}/{recipe}/site{i}"
        error = np.abs(output - golden()[f"{site}/mean_output"])
        differs = error > 1e-5
        one_spike = golden()[f"{site}/threshold"] / steps
        np.testing.assert_allclose(error[differs], one_spike, rtol=1e-3)
        flips += differs.sum()
    assert flips <= FLIPS.get((recipe, steps), 0)
    error = np.abs(logits - golden()[f"T{steps}/{recipe}/mean_logits"])
    assert (error.max(1) > 1e-5).sum() <= flips


def test_threshold_search_is_the_authors():
    cases = list(itertools.product((4, 32), ("layer", "channel")))
    search = functools.partial(functools.partial, formulas.least_squares)
    runs = [search(steps=steps, per=per) for steps, per in cases]
    thresholds = outputs_of(runs, golden()["mmse/activation"])
    for (steps, per), threshold in zip(cases, thresholds, strict=True):
        expected = golden()[f"mmse/T{steps}/{per}"]
        np.testing.assert_allclose(threshold, expected, rtol=1e-5)
