"""Levels: what a spike may be, from the single neuron to a converted network.

The oracle is `reference.neuron`; numbers are multiples of 1/8, so that sums are exact.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import reference
from networks import NETWORKS, converted, eighths, halves, outputs_of, relaxed_dspike
from rows import thorough

import snnjax
from snnjax import deploy
from snnjax.neurons import (
    NeuronState,
    closed_form,
    integrate_and_fire,
    lif,
    unroll,
)
from snnjax.neurons.spike_trains import (
    decode,
    per_byte,
)
from snnjax.neurons.unroll import mean_and_pace, spike_train
from snnjax.surrogate import triangle

STEPS = 5  # few steps would be computed outside of a loop, in larger programs


def params(neuron):
    return neuron.init()._replace(
        threshold=jnp.array([0.5, 1.0, 1.0, 2.0]),
        bias=jnp.array([0.0, 0.25, -0.5, 0.5]),
        initial_potential=jnp.array([0.25, 0.5, 0.0, 1.0]),
    )


def oracle(neuron, parameters, into, **options):
    """The spikes of `reference.simulate` with these parameters."""
    names = "levels", "dead_zone", "last_zone"
    options = {name: getattr(neuron, name) for name in names} | options
    return reference.simulate(
        into,
        np.asarray(parameters.threshold),
        bias=parameters.bias,
        start=np.asarray(parameters.initial_potential),
        reset=neuron.reset,
        leak=1.0 if parameters.leak is None else float(parameters.leak),
        **options,
    )


# Every range of levels with both resets, with and without a wait; the dead zone's and
# the leak's own code does not depend on them.
AT_A_SITE = [  # model and wait
    (integrate_and_fire(levels=(0, 1)), 0),
    (integrate_and_fire(levels=(-1, 1)), 2),
    (integrate_and_fire(levels=(0, 3)), 5),
    (integrate_and_fire(levels=(-2, 3)), 0),
    (integrate_and_fire(levels=(-100, 100)), 5),
    (integrate_and_fire(levels=(0, 1), reset="zero"), 2),
    (integrate_and_fire(levels=(-1, 1), reset="zero"), 0),
    (integrate_and_fire(levels=(0, 3), reset="zero"), 2),
    (integrate_and_fire(levels=(-2, 3), reset="zero"), 5),
    (integrate_and_fire(levels=(-100, 100), reset="zero"), 2),
    (integrate_and_fire(), STEPS),
    (integrate_and_fire(levels=(-1, 1)), STEPS),
    (integrate_and_fire(levels=(-1, 1), dead_zone=0.75), 0),
    (integrate_and_fire(levels=(-100, 100), dead_zone=0.75), 0),
    (integrate_and_fire(levels=(-1, 1), last_zone=0.75), STEPS),
    (lif(levels=(0, 1), leak=0.5), 0),
    (lif(levels=(-2, 3), leak=0.5), 0),
]


@pytest.mark.thorough
def test_spikes_are_those_of_the_oracle():
    parameters = [params(neuron) for neuron, _ in AT_A_SITE]
    into = np.asarray(eighths(2, (STEPS, 6, 4), -40, 41))  # they fire often, both ways
    even = np.arange(1, STEPS + 1).mean()  # what is read early of even spikes

    @jax.jit
    def run(parameters, into):
        """Spikes, mean (also in closed form) and pace, and spikes from their bits."""
        results = []
        for (neuron, wait), p in zip(AT_A_SITE, parameters, strict=True):
            train = spike_train(neuron, p, into, wait=wait)
            mean, pace = mean_and_pace(neuron, p, into, wait=wait)
            if wait == STEPS and neuron.reset == "subtract":
                mean = closed_form(neuron, p, into.mean(0), STEPS)
            spikes = unroll(neuron, p, into, wait=wait)
            results.append((spikes, mean, pace, train.bits, decode(train, STEPS)))
        return results

    results = jax.device_get(run(parameters, into))
    for (neuron, wait), p, result in zip(AT_A_SITE, parameters, results, strict=True):
        spikes, mean, pace, bits, decoded = result
        assert len(bits) == -(-STEPS // per_byte(neuron.levels))
        expected = oracle(neuron, p, into, wait=wait)
        np.testing.assert_array_equal(spikes, expected, f"{neuron}, wait {wait}")
        np.testing.assert_array_equal(decoded, expected)
        np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-6)
        early = expected.cumsum(0).mean(0) / even
        np.testing.assert_allclose(pace, early, rtol=1e-5, atol=1e-6)
        if neuron.has_zones:
            none = {"dead_zone": 0.0, "last_zone": 0.5}
            assert np.any(expected != oracle(neuron, p, into, wait=wait, **none))
        elif p.leak is None:
            assert (expected.sum(0) >= 0).all()  # as a ReLU's output
    spikes = {case: result[0] for case, result in zip(AT_A_SITE, results, strict=True)}
    binary, signed = integrate_and_fire(), integrate_and_fire(levels=(-1, 1))
    np.testing.assert_array_equal(  # with a wait of T no spike is taken back
        spikes[signed, STEPS], spikes[binary, STEPS]
    )


@pytest.mark.parametrize("levels, reset", [((-2, 2), "zero"), ((0, 20), "subtract")])
def test_the_derivative_is_the_sum_of_those_of_all_levels(levels, reset, x64):
    """That of the relaxed neuron, against central differences."""
    x64()
    neuron = integrate_and_fire(levels=levels, reset=reset)
    parameters = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), neuron.init())
    into = np.random.default_rng(0).normal(0.3, 1, (2, 3))

    def output(into):
        state = neuron.start(parameters, into.shape[1:])
        total = 0.0
        for current in into:
            state = neuron.integrate(parameters, state, current)
            state, spikes = neuron.fire(parameters, state, relaxed_dspike)
            total += (spikes * jnp.arange(1.0, 4.0)).sum()
        return total

    step = 1e-6
    changes = step * np.eye(into.size).reshape(-1, *into.shape)  # of one number each

    @jax.jit
    def run(into, changes):
        outputs = jax.vmap(output)
        differences = outputs(into + changes) - outputs(into - changes)
        return jax.grad(output)(into), differences

    slope, differences = run(into, changes)
    expected = np.reshape(differences, into.shape) / (2 * step)
    np.testing.assert_allclose(slope, expected, 1e-4, 1e-6)


def test_the_derivative_is_whole_where_all_spikes_are_taken_back():
    """A silent neuron is at k = -N, where a maximum would halve its derivative."""
    levels = (-3, 3)
    neuron = integrate_and_fire(levels=levels)

    @jax.jit
    @jax.grad
    def slope(potential, total):
        state = NeuronState(potential, jnp.full_like(potential, total))
        _, spikes = neuron.fire(neuron.init(), state, triangle)
        return spikes.sum()

    one_level = jax.jit(jax.grad(lambda x: triangle(x).sum()))
    for total in (0.0, 1.0):
        potential = np.array([0.2, 0.6], np.float32) - np.float32(total)  # k = -N
        steps = np.arange(levels[0] + 1, levels[1] + 1, dtype=np.float32)[:, None]
        expected = np.asarray(one_level((potential - steps) / 2) / 2).sum(0)
        np.testing.assert_allclose(slope(potential, total), expected, rtol=1e-6)


# ----------------------------------------------------------------- networks


NET = NETWORKS["dense"]


@functools.cache
def fitted(levels, wait=0):
    """An SNN of the dense network with these levels."""
    return converted(
        *NET[:3],
        steps=STEPS,
        wait=wait,
        recipe=snnjax.light(),
        model=integrate_and_fire(levels=levels),
    )


@pytest.mark.parametrize(
    "name, levels, reset, wait",
    [
        ("dense", (0, 20), "subtract", 0),
        *thorough(("input skip", (-3, 3), "zero", 0)),
        ("max-pool before", (-1, 1), "subtract", STEPS),
    ],
)
def test_executions_give_the_same_spikes(name, levels, reset, wait):
    net = NETWORKS[name]
    snn = halves(net, model=integrate_and_fire(levels=levels, reset=reset))
    executions = [STEPS, "closed_form"] if wait else [STEPS, 1, 3]
    options = {"steps": STEPS, "wait": wait}
    runs = [snnjax.spiking(net.fn, execution=e, **options) for e in executions]
    measure = functools.partial(snnjax.measures.spike_trains, net.fn, **options)
    expected, *results, trains = outputs_of([*runs, measure], snn, net.x)
    for outputs in results:
        np.testing.assert_array_equal(outputs, expected)
    for train in trains.values():
        train = np.asarray(train, int)
        assert levels[0] <= train.min() <= train.max() <= levels[1]
        assert (train.sum(0) >= 0).all()


def test_the_highest_level_reaches_what_a_binary_threshold_would():
    def neurons(recipe, high):
        model = integrate_and_fire(levels=(0, high))
        snn = snnjax.convert(*NET[:3], steps=STEPS, recipe=recipe, model=model)
        return snn.neurons

    for recipe in (snnjax.max_activation(), snnjax.percentile(99.0)):
        binary, graded = neurons(recipe, 1), neurons(recipe, 3)
        for name, neuron in binary.items():
            reached = 3 * graded[name].threshold
            np.testing.assert_allclose(reached, neuron.threshold, rtol=1e-6)


def test_levels_are_fields_beyond_nir():
    pytest.importorskip("nir")
    neuron = integrate_and_fire(levels=(-2, 3), dead_zone=0.5, last_zone=0.75)
    snn = dataclasses.replace(fitted((-2, 3)), model=neuron)
    layers = deploy.layers(NET.fn, snn, NET.x)
    graph = deploy.to_nir(layers, extended=True)
    _, read_snn = deploy.as_function(deploy.from_nir(graph))
    assert read_snn.model == neuron


def test_operations_of_graded_spikes_are_counted_both_ways():
    def fn(weights, x):
        return networks.relu(x) @ weights

    weights, x = np.ones((2, 3), np.float32), np.float32([[2, 1]])
    snn = snnjax.init(fn, weights, x, model=integrate_and_fire(levels=(0, 3)))
    measure = functools.partial(snnjax.measure, fn, params=weights, steps=4)
    (measures,) = outputs_of([measure], snn, x)
    assert measures.synaptic_operations == 4 * 2 * 3
    assert measures.synaptic_additions == 4 * (2 + 1) * 3
    assert (measures.bits, measures.firing_rate, measures.values) == (8, 1, 13)
    # Of 13 = T high + 1 values, so 4 bits: six products of 4 x 8 bits, and additions.
    ann = snnjax.energy(measures).quantized.ann
    np.testing.assert_allclose(ann, 6 * (0.2e-12 * 4 / 8 + 0.1e-12), rtol=1e-6)
