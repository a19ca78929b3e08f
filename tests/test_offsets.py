"""Encoders whose levels lie around an offset: v += I - offset, output k V_th + offset.

The oracle of the fit is a search over the same grids in NumPy; that of the neuron is
the same neuron without an offset, whose input and output are moved.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import by_executions, outputs_of, quantized_ann, simulated

import snnjax
from snnjax import calibrators
from snnjax.calibrators import formulas
from snnjax.measures import spike_trains
from snnjax.neurons import unroll
from snnjax.neurons.models import as_encoder

STEPS = 4
SIGNED = snnjax.integrate_and_fire(levels=(-1, 1))
THRESHOLDS = (
    calibrators.least_squares_threshold("channel", 0.5),
    calibrators.half_charge(),
    calibrators.correct_potential(3),
)
WITHOUT = snnjax.Recipe(THRESHOLDS)
WITH = snnjax.Recipe([calibrators.least_squares_offset(), *THRESHOLDS])
RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(64, 12)))
PARAMS = {
    name: np.float32(RNG.normal(size=shape) / np.sqrt(shape[0]))
    for name, shape in {"in": (12, 16), "up": (16, 24), "out": (24, 3)}.items()
}


def gelu_network(p, x):
    x = jax.nn.gelu(jax.nn.relu(x @ p["in"]) @ p["up"] + 0.3)
    return x @ p["out"]


@functools.cache  # most tests look at the same SNN
def fitted(fn=gelu_network, wait=0, recipe=WITH, neuron=SIGNED):
    options = {"steps": STEPS, "wait": wait, "model": neuron}
    return snnjax.convert(fn, PARAMS, X, recipe=recipe, **options)


RELU, ENCODER = "in/relu", "out/encoder"


def errors_of_grids(a, intervals):
    """Pairs (middle, error) of all grids that are compared, for the values a [N]."""
    # A grid leaves out a part of the range below, and another one above.
    cuts = np.arange(15) / 20
    size = np.ptp(a)
    for low_cut in cuts:
        for high_cut in cuts[low_cut + cuts < 1 - 1e-6]:
            low = a.min() + size * low_cut
            high = a.max() - size * high_cut
            grid = np.linspace(low, high, intervals + 1)
            distances = np.abs(a[:, None] - grid).min(1)
            yield (low + high) / 2, (distances**2).sum()


def test_the_middle_is_that_of_the_nearest_grid():
    normal = np.random.default_rng(1).normal(size=(200, 3)) * [1, 3, 1] + [0, 0, 8]
    sizes = 2, 8, 32
    runs = [functools.partial(formulas.middle, intervals=n) for n in sizes]
    a = np.asarray(jax.jit(jax.nn.gelu)(np.float32(normal)))
    all_middles = outputs_of(runs, a)
    for intervals, middles in zip(sizes, all_middles, strict=True):
        for channel, middle in zip(a.T, middles, strict=True):
            places, errors = np.array(list(errors_of_grids(channel, intervals))).T
            # Several grids may have this middle.
            error_there = errors[np.abs(places - middle) < 1e-4].min()
            assert error_there <= errors.min() * (1 + 1e-4)


def test_channels_may_lie_on_any_axis_and_may_be_constant():
    a = np.float32(np.random.default_rng(7).normal(size=(40, 3, 5)))
    a[:, 1] = 2

    def moved_to_the_last_axis(a):
        return formulas.middle(jnp.moveaxis(a, 1, -1), 8)

    def on_the_middle_axis(a):
        return formulas.middle(a, 8, channel=-2)

    runs = [moved_to_the_last_axis, on_the_middle_axis]
    expected, middles = outputs_of(runs, a)
    np.testing.assert_array_equal(middles, expected)
    assert expected[1] == 2


def test_a_neuron_with_an_offset_is_one_of_moved_input_and_output():
    encoder = as_encoder(SIGNED)
    currents = np.float32(np.random.default_rng(7).normal(size=(STEPS, 5, 3)))
    offset = np.float32([0.5, -1.25, 0.0])
    params = encoder.init()._replace(bias=np.float32(0.125))

    def with_and_without_offset(currents, wait):
        run = functools.partial(unroll, encoder, wait=wait)
        spikes = run(params._replace(offset=offset), currents)
        return spikes, run(params, currents - offset) + offset

    runs = [functools.partial(with_and_without_offset, wait=w) for w in (0, 2, STEPS)]
    for spikes, expected in outputs_of(runs, currents):
        np.testing.assert_allclose(spikes, expected, atol=1e-6)


@pytest.mark.parametrize("wait", [0, STEPS])
def test_executions_agree(wait):
    snn = fitted(wait=wait)
    assert snn.neurons[ENCODER].offset.shape == (24,)
    assert snn.neurons[RELU].offset is None
    executions = ("auto", "closed_form") if wait else ("auto", 1, 3)
    expected, *results = by_executions(gelu_network, executions, snn, X)
    for outputs in results:
        np.testing.assert_allclose(outputs.mean(0), expected.mean(0), atol=1e-5)


def test_with_a_wait_of_t_it_rounds_to_the_levels_around_the_offset():
    runs = quantized_ann(gelu_network), snnjax.spiking(gelu_network)
    expected, outputs = outputs_of(runs, fitted(wait=STEPS), X)
    assert (np.abs(outputs.mean(0) - expected) < 1e-4).mean() > 0.9


def test_offsets_lower_the_error_of_a_gelu_and_leave_relus_alone():
    images = np.float32(np.random.default_rng(7).normal(size=(256, 12)))
    fine = {RELU: snnjax.integrate_and_fire(levels=(0, 100)), ENCODER: SIGNED}
    errors = mean_errors(gelu_network, images, wait=STEPS, model=fine)
    assert errors[0] < errors[1] / 1.5

    def relu_network(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["in"]) @ p["up"]) @ p["out"]

    with_offsets = fitted(relu_network, recipe=WITH)
    without = fitted(relu_network, recipe=WITHOUT)
    jax.tree.map(np.testing.assert_array_equal, with_offsets, without)


def mean_errors(fn, images, **options):
    """Mean squares of what the outputs for images lack, with and without offsets."""
    errors = []
    for recipe in (WITH, WITHOUT):
        outputs, answers = simulated(
            fn, PARAMS, X, images, steps=STEPS, recipe=recipe, **options
        )
        errors.append(np.square(outputs.mean(0) - answers).mean())
    return errors


def measured(fn, snn):
    """Measures, and the spikes of each site as whole numbers [T, B, ...]."""
    measure = functools.partial(snnjax.measure, fn, params=PARAMS)
    runs = [measure, functools.partial(spike_trains, fn)]
    measures, trains = outputs_of(runs, snn, X)
    return measures, {name: np.asarray(train, int) for name, train in trains.items()}


@pytest.mark.parametrize("largest", [1, pytest.param(3, marks=pytest.mark.thorough)])
def test_an_offset_is_no_spike_and_no_addition(largest):
    snn = fitted(neuron=snnjax.integrate_and_fire(levels=(-largest, largest)))
    measures, trains = measured(gelu_network, snn)
    assert {*np.unique(trains[ENCODER])} <= {*range(-largest, largest + 1)}
    assert measures.sites[ENCODER].error < 0.3 * measures.sites[ENCODER].activation
    spikes = sum(np.count_nonzero(train) for train in trains.values())
    neurons = sum(train[0].size for train in trains.values())
    np.testing.assert_allclose(measures.firing_rate, spikes / STEPS / neurons, 1e-5)
    operations = additions = 0
    for name, fan_out in ((ENCODER, 3), (RELU, PARAMS["up"].shape[1])):
        operations += np.count_nonzero(trains[name]) * fan_out / len(X)
        additions += np.abs(trains[name]).sum() * fan_out / len(X)
    np.testing.assert_allclose(measures.synaptic_operations, operations, 1e-5)
    np.testing.assert_allclose(measures.synaptic_additions, additions, 1e-5)
    if largest == 1:
        bench = snnjax.measures.neurobench(gelu_network, snn, X)["SynapticOperations"]
        np.testing.assert_allclose(bench["Effective_ACs"], operations, rtol=1e-5)


def test_micro_batches_give_the_same_offsets(monkeypatch):
    snn = fitted()
    module = snnjax.conversion.engine.start
    monkeypatch.setattr(module, "_micro_batch_size", lambda *_: 16)
    options = {"steps": STEPS, "model": SIGNED, "recipe": WITH}
    parts = snnjax.convert(gelu_network, PARAMS, X, **options)
    np.testing.assert_allclose(
        parts.neurons[ENCODER].offset, snn.neurons[ENCODER].offset, atol=1e-6
    )


def test_a_file_keeps_every_bit(tmp_path):
    snn, path = fitted(), tmp_path / "snn.safetensors"
    snnjax.save(path, snn)
    jax.tree.map(np.testing.assert_array_equal, snnjax.load(path, like=snn).snn, snn)


def test_a_value_far_from_zero_uses_all_levels():
    def fn(p, x):
        return (jnp.tanh(jax.nn.relu(x @ p["in"]) @ p["up"]) + 50) @ p["out"]

    error, without = mean_errors(fn, X, model=SIGNED)
    assert error < without / 10


@pytest.mark.thorough
@pytest.mark.parametrize(
    "fn",
    [
        pytest.param(
            lambda p, x: (
                jax.nn.gelu((jax.nn.relu(x @ p["in"]) + 0.5) @ p["up"]) @ p["out"]
            ),
            marks=pytest.mark.thorough,
        ),
        lambda p, x: (snnjax.encode(jax.nn.relu(x @ p["in"]))[:, :12] + x) @ p["in"],
    ],
)
def test_an_offset_of_zero_changes_no_count(fn):
    snn = fitted(fn, recipe=snnjax.light())
    neurons = dict(snn.neurons)
    for name in neurons:
        if name.endswith("encoder"):
            neurons[name] = neurons[name]._replace(offset=jnp.zeros(()))
    assert neurons != snn.neurons
    measure = functools.partial(snnjax.measure, fn, params=PARAMS)

    def counts(snn):
        (measures,) = outputs_of([measure], snn, X)
        bench = snnjax.measures.neurobench(fn, snn, X)["SynapticOperations"]
        return float(measures.synaptic_operations), bench

    assert counts(snn) == counts(dataclasses.replace(snn, neurons=neurons))


@pytest.mark.thorough
def test_in_bfloat16_levels_are_within_their_range():
    fn = snnjax.in_dtype(gelu_network, "bfloat16")
    neuron = snnjax.integrate_and_fire(levels=(-7, 7))
    snn = fitted(fn, neuron=neuron)
    (trains,) = outputs_of([functools.partial(spike_trains, fn)], snn, X)
    assert all(np.abs(train).max() <= 7 for train in trains.values())
