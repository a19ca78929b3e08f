"""Whole numbers: each execution computes what a chip in Python's numbers computes."""

import dataclasses
import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from networks import FLAT, PIXELS, VECTORS, conv, converted, relu, together
from reference import windows
from rows import quick_first
from test_layers import AFFINE, RATE, changed, fitted

import snnjax
from snnjax import deploy
from snnjax.deploy import Convolution, Dense, Flatten, Input, Output, Population, Scale
from snnjax.deploy.integers import rounding, streams
from snnjax.neurons.gradients import without_surrogate

# -------------------------------------------------------------- a chip, event by event


def chip(layers, x, in_time=False):
    """Spikes of each population and sums of each output, in whole numbers of 64 bits.

    Spikes are levels [T, B, ...] by name, and sums over all steps [B, ...], channels
    first. Potentials are in units of the last spike of a code. ``in_time``: x is a
    sequence [T, B, ...].
    """
    if in_time:
        layers = dataclasses.replace(layers, steps=len(x))
    steps = layers.steps
    weights = [Fraction(w).limit_denominator(10**6) for w in layers.code.weights(steps)]
    multiples = [int(weight / weights[-1]) for weight in weights]
    if layers.code == snnjax.codes.rate():
        # x and biases arrive at every step.
        arrivals, constant, bias_unit, potential_unit = steps, 1, 1, 1
    else:
        # x and biases arrive at the first step, in full.
        last_weight = float(weights[-1])
        arrivals, constant = 1, int(1 / weights[-1])
        bias_unit, potential_unit = last_weight, steps * last_weight
    values, spikes, sums = {}, {}, {}  # values: what each node sends, [T, B, ...]
    for node in layers.nodes:
        arriving = sum(values[source] for source in node.sources)
        if isinstance(node, Input):
            x = whole_x(node, layers.arithmetic, x, channel_axis=1 + in_time)
            if in_time:
                values[node.name] = x
            else:
                values[node.name] = np.zeros((steps, *x.shape), np.int64)
                values[node.name][:arrivals] = constant * x
        elif isinstance(node, Population | Output):
            arriving[:arrivals] += np.rint(node.bias / bias_unit).astype(np.int64)
            if isinstance(node, Output):
                sums[node.name] = arriving.sum(0)
                continue
            start = node.initial_potential / potential_unit
            levels = fire(layers, node, start, arriving, multiples)
            spikes[node.name] = levels
            spike_sizes = np.array(multiples).reshape(-1, *[1] * (levels.ndim - 1))
            values[node.name] = spike_sizes * levels
        else:
            values[node.name] = np.array([linear(node, step) for step in arriving])
    return spikes, sums


def whole_x(node, arithmetic, x, channel_axis):
    """x in multiples of its unit, clipped; an image's channels move to their axis."""
    limit = arithmetic.largest_input
    whole = np.clip(np.rint(x / np.float32(node.unit)), -limit, limit)
    if len(node.shape) == 3:
        whole = np.moveaxis(whole, -1, channel_axis)
    return whole.astype(np.int64)


def fire(layers, node, start, arriving, multiples):
    """The levels of neurons, [T, B, ...]: each nearest to what is missing.

    ``start`` are v(0), ``arriving`` what arrives at the T steps, ``multiples`` how many
    units a spike of each of these steps is.
    """
    model = without_surrogate(node.model)
    low, high = model.levels
    steps, wait = len(multiples), layers.wait or 0
    zones = [model.dead_zone] * (steps - 1) + [model.last_zone]
    whole_threshold = np.rint(node.threshold).astype(np.int64)
    # A leak leaves fractions of a unit, so that all numbers are counted in parts of it.
    parts = 1 if node.leak is None else 2**layers.arithmetic.leak.fraction
    threshold = parts * whole_threshold
    v = parts * np.rint(start).astype(np.int64)
    sent = 0  # in units
    levels = []
    last_levels = np.zeros_like(arriving[0])
    for step in range(steps + wait):
        if node.leak is not None:
            v = left(layers.arithmetic.leak, v, np.asarray(node.leak))
        if step < steps:
            v = v + parts * arriving[step]
        if node.recurrent is not None:
            v = v + parts * linear(node.recurrent, last_levels)
        # The register is shifted with the spikes that arrive.
        arriving_multiple = multiples[min(step, steps - 1)]
        limit = parts * 2 ** (layers.arithmetic.state_bits - 1) * arriving_multiple
        if layers.arithmetic.overflow == "wrap":
            v = (v + limit) % (2 * limit) - limit
        else:
            v = np.clip(v, -limit, limit - 1)
        if step < wait:
            continue
        multiple = multiples[step - wait]
        size = multiple * threshold  # of a spike of level 1
        twice_missing = 2 * v - threshold
        if low == 0:
            k = v // size
        else:
            k = (twice_missing + size) // (2 * size)
        zone = Fraction(zones[step - wait]).limit_denominator(1000)
        is_silent = abs(twice_missing) * zone.denominator < 2 * zone.numerator * size
        k = np.clip(np.where(is_silent, 0, k), low, high)
        if low < 0:
            # No neuron takes back more than it has sent.
            k = np.maximum(k, -(sent // multiple))
            sent = sent + multiple * k
        v = np.where(k == 0, v, 0) if model.reset == "zero" else v - size * k
        if model.lowest is not None:  # as on Speck, after the reset
            bound = np.rint(model.lowest * whole_threshold).astype(np.int64)
            v = np.maximum(v, parts * bound)
        levels.append(k)
        last_levels = k
    return np.array(levels)


def left(rule, v, leak):
    """What a leak leaves, neuron by neuron, in Python's whole numbers."""
    v, leak = np.broadcast_arrays(v, leak)
    results = np.zeros_like(v)
    for index, factor in np.ndenumerate(leak):
        number = int(v[index])
        if rule.form == "shift":
            results[index] = number - (number >> round(-np.log2(1 - float(factor))))
        else:  # Lava b6822fbc, proc/lif/models.py: of both signs towards 0
            size = abs(number) * round(4096 * float(factor)) >> 12
            results[index] = size if number > 0 else -size
    return results


def linear(node, x):
    """A map of one step [B, ...], channels first, window by window."""
    if isinstance(node, Flatten):
        return x.reshape(len(x), -1)
    if isinstance(node, Scale):
        weight = np.asarray(node.weight, np.int64)
        return x * (weight if x.ndim < 4 or weight.ndim == 3 else weight.reshape(-1))
    if isinstance(node, Dense):
        return x @ node.weight.astype(np.int64).T
    if not isinstance(node, Convolution):
        return windows(x, node.window, node.stride, node.padding).sum((-1, -2))
    parts = windows(x, node.weight.shape[2:], node.stride, node.padding)
    groups = np.split(parts, node.groups, axis=1)
    kernels = np.split(node.weight.astype(np.int64), node.groups)
    pairs = zip(groups, kernels, strict=True)
    return np.concatenate([np.einsum("bihwkl,oikl->bohw", g, k) for g, k in pairs], 1)


def channels_first(array):
    """[T, B, ..., C] of an image as [T, B, C, ...]."""
    return np.moveaxis(array, -1, 2) if array.ndim == 5 else np.asarray(array)


def check_spikes(trace, spikes):
    """A trace has exactly the spikes that `chip` sends, and every population fires."""
    assert trace.spikes.keys() == spikes.keys()
    for name, levels in spikes.items():
        np.testing.assert_array_equal(channels_first(trace.spikes[name]), levels, name)
        assert levels.any(), name


# -------------------------------------------------------------------------- executions

FEW = {  # networks that differ to a chip
    "images": ("convolutions", "zero padding", "batch norm"),
    "vectors": ("dense", "bare pre-activation", "input skip", "several outputs"),
}
# Others have two linear maps in a row, which no product replaces.
HOLDS = {n: net for n, net in AFFINE.items() if n not in ("pre-activation", "stacked")}
RADIX = snnjax.codes.radix()
# Inputs of the networks, then code, levels, reset, wait and so on as in `fitted`, then
# an execution beside "auto" that has to send the same.
CASES = {
    "radix": ("images", (RADIX, (-1, 1), "subtract", 1, (2 / 3, 0.75)), None),
    "base 3": (
        "vectors",
        (snnjax.codes.radix(base=3), (-1, 1), "subtract", 1, (1 / 2, 0.75)),
        None,
    ),
    "rate": ("vectors", (RATE, (0, 1), "subtract", 0), 1),
    "signed rate": ("vectors", (RATE, (-1, 1), "subtract", 4), "closed_form"),
    "hard reset": ("vectors", (RATE, (0, 1), "zero", 0), 1),
    "short wait": ("images", (RATE, (-1, 1), "subtract", 1), None),
    "lower bound": (
        "vectors",
        (RATE, (0, 3), "subtract", 0, (0, 0.5), None, -0.25),
        1,
    ),
}
FEW_CASES = [
    *[(case, None) for case in ("radix", "rate")],
    *[
        pytest.param(case, None, marks=pytest.mark.thorough)
        for case in ("base 3", "signed rate", "hard reset", "lower bound")
    ],
]
EVERY = [  # slow: every network under every code
    pytest.param(case, inputs, marks=pytest.mark.slow)
    for case in CASES
    for inputs in FEW
]


def networks_of(inputs, names=tuple(HOLDS)):
    """Networks of the same input as one program."""
    x = {"images": PIXELS, "vectors": VECTORS}[inputs]
    return together({n: HOLDS[n] for n in names if HOLDS[n].x is x})


@pytest.mark.parametrize(("case", "all_inputs"), [*FEW_CASES, *EVERY])
def test_a_chip_and_every_execution_send_the_same_spikes(case, all_inputs):
    """With ``all_inputs`` all networks of these inputs, in place of a few."""
    inputs, neurons, execution = CASES[case]
    if all_inputs:
        net = networks_of(all_inputs)
    else:
        net = networks_of(inputs, FEW[inputs])
    layers = deploy.layers(net.fn, fitted(net, *neurons), net.x)
    integers = deploy.quantize(layers, net.x, weight_bits=5)
    spikes, sums = chip(integers, np.asarray(net.x))
    trace = deploy.run(integers, net.x)
    check_spikes(trace, spikes)
    assert sum(map(int, trace.overflows.values())) == 0
    for output in integers.outputs:
        unit = np.asarray(output.unit).ravel() * integers.potential_unit
        total = np.moveaxis(sums[output.name], 1, -1) * unit
        result = np.asarray(trace.outputs[output.name]).sum(0)
        np.testing.assert_allclose(result, total, 1e-5, 1e-5)
    fn, snn = deploy.as_function(integers)
    runs = [functools.partial(snnjax.measures.spike_trains, fn), snnjax.spiking(fn)]
    if execution:
        runs.append(snnjax.spiking(fn, execution=execution))
    sent, outputs, *more_outputs = networks.outputs_of(
        runs, snn, deploy.on_grid(integers, net.x)
    )
    for site in trace.spikes:
        np.testing.assert_array_equal(sent[site], np.asarray(trace.spikes[site]))
    check_close(outputs, trace.outputs)
    for outputs_of_execution in more_outputs:
        expected = trace.outputs
        if execution == "closed_form":
            # It has the mean over all steps alone.
            outputs_of_execution, expected = jax.tree.map(
                lambda array: array.mean(0), (outputs_of_execution, expected)
            )
        check_close(outputs_of_execution, expected)


def check_close(outputs, expected):
    """All outputs of a network are the expected ones, up to float32."""
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True)
    for array, expected_array in pairs:
        np.testing.assert_allclose(array, expected_array, rtol=1e-5, atol=1e-5)


def perceptron(p, x):
    return relu(x @ p["w1"] + p["b1"]) @ p["w3"]


@functools.cache  # many tests read the same few SNNs
def light(levels=(0, 1), code=RATE, steps=4, wait=0):
    """The SNN of the perceptron."""
    options = {"steps": steps, "wait": wait, "code": code, "recipe": snnjax.light()}
    model = snnjax.integrate_and_fire(levels=levels)
    return converted(perceptron, FLAT, VECTORS, model=model, **options)


def tiny(weight_bits=8, levels=(0, 1), code=RATE, steps=4, wait=0, **options):
    """The perceptron of whole numbers, and its SNN of floats."""
    snn = light(levels, code, steps, wait)
    layers = deploy.layers(perceptron, snn, VECTORS)
    return deploy.quantize(layers, VECTORS, weight_bits=weight_bits, **options), snn


@pytest.mark.thorough
def test_bits_bound_the_numbers_and_more_of_them_come_closer():
    digits = {"code": RADIX, "levels": (-1, 1), "wait": 3}
    floats = jax.jit(snnjax.spiking(perceptron))(light(**digits), VECTORS).mean(0)
    errors = []
    for bits in (1, 2, 3, 4, 8):
        integers, _ = tiny(bits, **digits)
        weights = [m.weight for c in integers.connections for m in c.maps]
        largest = max(1, 2 ** (bits - 1) - 1)
        for weight in weights:
            assert np.array_equal(weight, np.rint(weight))
            assert np.abs(weight).max() <= largest
            assert bits > 1 or (weight != 0).all()
        (population,) = integers.populations
        assert np.array_equal(population.threshold, np.rint(population.threshold))
        assert (population.threshold >= 1).all()
        whole = np.asarray(deploy.run(integers, VECTORS).outputs).mean(0)
        errors.append(np.linalg.norm(whole - floats) / np.linalg.norm(floats))
    assert errors[4] < errors[3] < errors[2] < 0.3, errors


def test_thresholds_follow_the_scale_and_patterns_give_bits_to_receivers():
    for scale in ("channel", "layer", "power_of_two"):
        integers, _ = tiny({"output": 3, "*": 5}, scale=scale)
        hidden, readout = (c.maps[0].weight for c in integers.connections)
        assert np.abs(hidden).max() > 3 >= np.abs(readout).max()
        assert integers.arithmetic.weight_bits == 5
        threshold = integers.populations[0].threshold
        assert (threshold.size > 1) == (scale == "channel")
        is_power = np.log2(threshold) == np.rint(np.log2(threshold))
        assert is_power.all() == (scale == "power_of_two")
        outputs = np.unique(integers.outputs[0].unit)
        assert (len(outputs) > 1) == (scale == "channel")


@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
def test_an_overflow_is_counted_and_exact(overflow):
    """Potentials of half the bits that the calibration images need."""
    integers, _ = tiny(8, levels=(-1, 1), overflow=overflow)
    arithmetic = dataclasses.replace(integers.arithmetic, state_bits=8)
    narrow = dataclasses.replace(integers, arithmetic=arithmetic)
    trace = deploy.run(narrow, VECTORS)
    (name,) = trace.overflows
    assert int(trace.overflows[name]) > 0 and int(trace.below[name]) > 0
    spikes, _ = chip(narrow, np.asarray(VECTORS))
    np.testing.assert_array_equal(trace.spikes[name], spikes[name])
    lowest, highest = trace.extremes[name]
    assert lowest < -128 or highest > 127
    assert np.abs(np.asarray(trace.potentials[name])).max() <= 2 * 128


def test_inputs_beyond_the_calibrated_range_are_clipped_and_counted():
    integers, _ = tiny()
    trace = deploy.outputs(integers, 3 * VECTORS)
    beyond = np.abs(3 * np.asarray(VECTORS)) > np.abs(np.asarray(VECTORS)).max()
    assert int(trace.clipped) == beyond.sum() > 0
    assert not trace.spikes and not trace.potentials
    whole = np.round(8 * np.asarray(VECTORS))  # whole numbers stay as they are
    assert integers.nodes[0].unit != 1
    layers = deploy.layers(perceptron, light(), VECTORS)
    assert deploy.quantize(layers, whole).nodes[0].unit == 1


def events_net(p, x):
    with jax.named_scope("first"):
        x = relu(conv(x, p["first"], 2))
    return relu(x.reshape(len(x), -1) @ p["second"]) @ p["third"]


@functools.cache
def events_layers():
    """Float layers that read events of an image of 7 x 5, neurons with a bound."""
    draw = np.random.default_rng(0).normal
    shapes = {"first": (3, 3, 2, 4), "second": (4 * 3 * 4, 6), "third": (6, 3)}
    params = {name: jnp.float32(draw(0, 0.4, s)) for name, s in shapes.items()}
    neuron = snnjax.integrate_and_fire(levels=(0, 255), lowest=-1.0)
    x = np.float32(np.random.default_rng(1).poisson(0.2, (30, 2, 7, 5, 2)))
    snn = snnjax.init(events_net, params, x[0], model=neuron)
    return deploy.layers(events_net, snn, x[0]), x


RULES = {  # rule, reset, lower bound
    "loihi": (deploy.loihi2().leak, "zero", None),
    "xylo": (deploy.xylo().leak, "subtract", None),
    "bounded": (deploy.Leak("factor", fraction=2), "subtract", -0.25),
}


@pytest.mark.parametrize("name", quick_first(RULES, "xylo"))
def test_a_leak_is_rounded_as_the_chip_rounds_it(name):
    """Factors that no shift has; near the floats, and exactly those of Python."""
    rule, reset, lowest = RULES[name]
    net = networks_of("vectors", ("dense",))
    leak = np.float32([0.9, 0.7, 0.5, 0.93, 0.8, 0.99])
    snn = fitted(net, RATE, (0, 1), reset, 0, (0, 0.5), leak[:1], lowest)
    layers = dataclasses.replace(deploy.layers(net.fn, snn, net.x), steps=12)
    layers = changed(layers, leak=leak.astype(float)[0] * np.ones(()))
    mine = deploy.Chip("mine", leak=rule, weight_bits=(8,), state_bits=18)
    integers = deploy.quantize(layers, net.x, chip=mine)
    assert integers.arithmetic.leak == rule
    spikes, _ = chip(integers, np.asarray(net.x))
    trace = deploy.run(integers, net.x)
    check_spikes(trace, spikes)
    fn, floats = deploy.as_function(layers)
    sent = snnjax.measures.spike_trains(fn, floats, net.x)
    for name in spikes:
        if rule.form == "factor" and name in sent:
            # A shift cannot have these factors, so it is not near the floats.
            assert np.mean(trace.spikes[name] != (sent[name] != 0)) < 0.1
    for population in integers.populations:
        np.testing.assert_array_equal(population.leak, rule.rounded(population.leak))
    assert deploy.report(integers, mine).rows[2].verdict == "fits"


def test_spikes_that_are_delayed_arrive_later():
    """Layer by layer as sequences, each spike train shifted by hand."""
    integers, _ = tiny()
    trace = deploy.run(integers, VECTORS, delay=2)
    (name,) = trace.spikes
    undelayed = deploy.run(integers, VECTORS)
    np.testing.assert_array_equal(trace.spikes[name], undelayed.spikes[name])
    # After T = 4 steps nothing arrives, so the outputs are those of the bias alone.
    quiet = np.asarray(deploy.run(integers, VECTORS, delay=4).outputs)
    assert (quiet == quiet[0, 0]).all()
    shifted = np.concatenate([quiet[:2], undelayed.outputs[:2]])
    np.testing.assert_allclose(trace.outputs, shifted, rtol=1e-6)


@pytest.mark.parametrize(
    "scale", ["range", pytest.param("layer", marks=pytest.mark.thorough)]
)
def test_a_sequence_has_the_spikes_of_a_chip(scale):
    """Events one at a time or several, for as long as x lasts, on a rectangle."""
    layers, x = events_layers()
    layers = dataclasses.replace(layers, steps=4, wait=0)
    integers = deploy.quantize(layers, x.reshape(-1, 7, 5, 2), scale=scale)
    clockless = dataclasses.replace(integers, steps=None, wait=None)
    together = x.reshape(3, 10, *x.shape[1:]).sum(1)
    for events in (x, together):
        spikes, sums = chip(integers, events, in_time=True)
        trace = deploy.run(integers, events, inputs="sequence")
        again = deploy.outputs(clockless, events, inputs="sequence")
        check_spikes(trace, spikes)
        np.testing.assert_array_equal(again.outputs, trace.outputs)
        unit = integers.outputs[0].unit
        np.testing.assert_allclose(trace.outputs.sum(0), sums["output"] * unit, 1e-5)
    first = integers.populations[0]
    model = dataclasses.replace(first.model, lowest=None)
    free = deploy.run(changed(integers, model=model), x, inputs="sequence")
    bounded = deploy.run(integers, x, inputs="sequence")
    assert (free.spikes[first.name] != bounded.spikes[first.name]).any()
    assert bounded.extremes[first.name][0] == -first.threshold.max()


def recurrent_net(params, x):
    x = jax.nn.relu(x @ params["first"])
    return jax.nn.relu(x @ params["second"]) @ params["third"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "rule, reset, lowest",
    [
        pytest.param(*RULES["loihi"], id="loihi", marks=pytest.mark.thorough),
        pytest.param(*RULES["xylo"], id="xylo", marks=pytest.mark.thorough),
        pytest.param(*RULES["bounded"], id="bounded"),
    ],
)
def test_recurrent_neurons_that_leak_become_whole_numbers(rule, reset, lowest):
    """Sequences, with spikes of the step before; each neuron has a leak of its own."""
    draw = np.random.default_rng(3).normal
    shapes = {"first": (5, 16), "second": (16, 12), "third": (12, 3)}
    params = {name: jnp.float32(draw(0, 0.5, s)) for name, s in shapes.items()}
    x = jnp.float32(np.random.default_rng(1).normal(0.3, 0.8, (14, 8, 5)))
    lif = snnjax.lif(leak=snnjax.neurons.TimeConstants(2, 8), reset=reset)
    model = snnjax.neurons.Recurrent(dataclasses.replace(lif, lowest=lowest))
    key = jax.random.key(0)
    snn = snnjax.init(recurrent_net, params, x[0], model=model, key=key)
    layers = deploy.layers(recurrent_net, snn, x[0])
    mine = deploy.Chip("mine", leak=rule, weight_bits=(8,), state_bits=18)
    integers = deploy.quantize(layers, x, chip=mine, inputs="sequence")
    spikes, sums = chip(integers, np.asarray(x), in_time=True)
    trace = deploy.run(integers, x, inputs="sequence")
    run = functools.partial(snnjax.spiking, steps=len(x), inputs="sequence")
    fn, same = deploy.as_function(layers)
    sent = snnjax.measures.spike_trains(fn, same, x, steps=len(x), inputs="sequence")
    for node in integers.populations:
        levels = trace.spikes[node.name]
        np.testing.assert_array_equal(levels, spikes[node.name])
        assert 0.02 < levels.mean() < 0.6 and np.unique(node.leak).size > 1
        assert np.abs(node.recurrent.weight).max() > 9
        if rule.form == "factor":
            # One other spike changes those after it.
            assert np.mean(levels != (sent[node.name] != 0)) < 0.2
        # Without its own spikes it would send others.
        alone = changed(integers, recurrent=None)
        others = deploy.run(alone, x, inputs="sequence").spikes[node.name]
        assert (levels != others).any()
    unit = integers.outputs[0].unit
    np.testing.assert_allclose(trace.outputs.sum(0), sums["output"] * unit, rtol=1e-5)
    np.testing.assert_allclose(run(fn)(same, x), run(recurrent_net)(snn, x), atol=1e-4)
    ways = [str(way) for way in integers.connections]
    assert ways[1:3] == ["first/relu > recurrent", "first/relu > dense"]
    count = 5 * 16 + 16 * 16 + 16 * 12 + 12 * 12 + 12 * 3
    assert deploy.memory(layers).weights == 4 * count and str(count) in repr(layers)
    assert deploy.report(integers, mine).rows[3].verdict == "fits"


@pytest.mark.thorough
def test_the_scale_of_a_range_is_that_of_sinabs():
    """Weights fill -128 .. 127 on one side; all thresholds are given, and equal."""
    layers, x = events_layers()
    layers = dataclasses.replace(layers, steps=4, wait=0)
    # As a NIR graph has them: one number per neuron.
    layers = changed(layers, threshold=lambda n: np.full(n.shape, 0.7))
    integers = deploy.quantize(layers, x[0], scale="range")
    receivers = {node.name: node for node in integers.receivers}
    ways = zip(layers.connections, integers.connections, strict=True)
    for float_way, whole_way in ways:
        weight = float_way.maps[-1].weight
        whole = whole_way.maps[-1].weight
        scale = min(-128 / weight.min(), 127 / weight.max())
        np.testing.assert_array_equal(whole, np.round(weight * scale))
        assert whole.min() == -128 or whole.max() == 127
        node = receivers[whole_way.receiver]
        if isinstance(node, Population):
            assert node.threshold == np.round(0.7 * scale)
        else:
            np.testing.assert_allclose(node.unit, 1 / scale)
    shared = deploy.quantize(layers, x[0], scale="layer").populations[0].threshold
    assert shared.size == 1
    with pytest.warns(UserWarning, match="times the scale of its weights"):
        deploy.quantize(layers, x[0], scale="range", state_bits=6)


def with_random_numbers(seed, layers):
    """Layers with whole numbers that nothing was fitted to, like those of a chip.

    They replace those of `snnjax.deploy.quantize`. What 1 stands for is 1 everywhere.
    """
    draw = np.random.default_rng(seed).integers
    nodes = []
    for node in layers.nodes:
        if isinstance(node, Population):
            node = dataclasses.replace(
                node,
                threshold=np.float64(draw(90, 200, node.shape)),
                bias=np.float64(draw(-9, 9, node.shape)),
                initial_potential=np.float64(draw(-60, 60, node.shape)),
            )
        elif isinstance(node, Input | Output):
            node = dataclasses.replace(node, unit=np.ones(()))
        elif isinstance(node, Convolution | Dense | Scale):
            weight = draw(-128, 128, node.weight.shape)
            node = dataclasses.replace(node, weight=np.float64(weight))
        nodes.append(node)
    return dataclasses.replace(layers, nodes=tuple(nodes))


@pytest.mark.thorough
def test_numbers_that_nothing_was_fitted_to_are_computed_as_a_chip_does():
    layers, x = events_layers()
    layers = dataclasses.replace(layers, steps=4, wait=0)
    integers = with_random_numbers(0, deploy.quantize(layers, x[0]))
    spikes, sums = chip(integers, x, in_time=True)
    trace = deploy.run(integers, x, inputs="sequence")
    check_spikes(trace, spikes)
    np.testing.assert_array_equal(trace.outputs.sum(0), sums["output"])
    assert integers.populations[0].model.lowest == -1
    assert deploy.report(integers, deploy.speck())["output"].verdict == "approximately"


@pytest.mark.thorough
def test_a_bound_far_below_the_register_bounds_nothing():
    """A leak has 6 more bits, and nothing wraps silently."""
    net = networks_of("vectors", ("dense",))
    snn = fitted(net, RATE, (0, 1), "zero", 0, (0, 0.5), np.float32([0.75]), -5e4)
    layers = dataclasses.replace(deploy.layers(net.fn, snn, net.x), steps=6)
    mine = deploy.Chip("mine", leak=deploy.loihi2().leak, state_bits=18)
    integers = deploy.quantize(layers, net.x, chip=mine)
    free = deploy.run(with_model(integers, lowest=None), net.x)
    trace = deploy.run(integers, net.x)
    for name, levels in trace.spikes.items():
        np.testing.assert_array_equal(levels, free.spikes[name])
    # Beside neurons that leak one that does not, and one that forgets half at most.
    shift, v = deploy.Leak("shift"), jnp.array([-100, 100, -100, 100])
    n = shift.whole(np.array([1.0, 1.0, 0.1, 0.1]))
    np.testing.assert_array_equal(shift.left(v, n), [-100, 100, -50, 50])


def one_neuron(arithmetic, *, threshold, lowest=None, bias=0, start=0):
    """x -> one neuron of levels (0, 1), of whole numbers."""
    neuron = snnjax.integrate_and_fire(lowest=lowest)
    population = Population(
        "relu",
        sources=("weight",),
        shape=(1,),
        model=neuron,
        threshold=np.float64(threshold),
        initial_potential=np.float64(start),
        bias=np.float64(bias),
    )
    nodes = (
        Input("input", (), (1,), unit=np.ones(())),
        Dense("weight", ("input",), np.ones((1, 1)), None),
        population,
        Output("output", ("relu",), (1,), np.zeros(()), np.ones(())),
    )
    return deploy.Layers(nodes, arithmetic=arithmetic)


@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
def test_a_potential_between_a_lower_bound_and_the_register_overflows(overflow):
    """A register of 6 bits ends at -32, and the lower bound is -40."""
    arithmetic = deploy.Arithmetic(8, 8, 6, overflow)
    layers = one_neuron(arithmetic, threshold=20, lowest=-2.0)
    currents = [-20, -20, 0, 0, -90, 50]
    x = jnp.float32(currents).reshape(-1, 1, 1)
    trace = deploy.run(layers, x, inputs="sequence")
    v, below, spikes, potentials = 0, 0, [], []
    for current in currents:
        v = max(v + current, -40)
        below += v < -32
        v = (v + 32) % 64 - 32 if overflow == "wrap" else min(max(v, -32), 31)
        spikes.append(int(v >= 20))
        v -= 20 * spikes[-1]
        potentials.append(v)
    assert below and trace.below["relu"] == below
    np.testing.assert_array_equal(trace.spikes["relu"].ravel(), spikes)
    np.testing.assert_array_equal(trace.potentials["relu"].ravel(), potentials)


def test_the_largest_potentials_that_are_accepted_are_computed_exactly():
    """A sum, a bias and an initial potential of 30 bits each are added."""
    x, large = jnp.full((1, 1, 1), 100.0), 2**30 - 1
    for overflow in ("saturate", "wrap"):
        arithmetic = deploy.Arithmetic(8, 8, 30, overflow)
        start = 2**31 - 1 - large - arithmetic.largest_input
        layers = one_neuron(arithmetic, threshold=100, bias=large, start=start)
        trace = deploy.run(layers, x, inputs="sequence")
        assert int(trace.overflows["relu"]) == 1 and int(trace.below["relu"]) == 0
        limited = 2**29 - 1 if overflow == "saturate" else large + start + 100 - 2**31
        spike = int(limited >= 100)
        assert trace.spikes["relu"].item() == spike
        assert trace.potentials["relu"].item() == limited - 100 * spike


def with_model(layers, **changes):
    def model(node):
        return dataclasses.replace(without_surrogate(node.model), **changes)

    return changed(layers, model=model)


def test_each_map_of_a_shortcut_has_its_own_numbers():
    def fn(p, x):
        x = relu(x @ p["w1"])
        return relu(x @ p["w2"] + x) @ p["w3"]

    snn = snnjax.init(fn, FLAT, VECTORS, model=snnjax.integrate_and_fire())
    layers = deploy.layers(fn, dataclasses.replace(snn, steps=4, wait=0), VECTORS)
    integers = with_random_numbers(3, deploy.quantize(layers, VECTORS))
    spikes, _ = chip(integers, np.asarray(VECTORS))
    trace = deploy.run(integers, VECTORS)
    check_spikes(trace, spikes)


def test_feedback_lowers_the_error_that_the_data_see():
    """On correlated inputs, for nearly every draw, and on average by half."""
    generator = np.random.default_rng(0)
    ratios = []
    for bits in (2, 3, 4, 6):
        for _ in range(8):
            samples = generator.normal(size=(400, 6)) @ generator.normal(size=(6, 24))
            samples += 0.1 * generator.normal(size=samples.shape)
            second = samples.T @ samples / len(samples)
            rows = generator.normal(size=(5, 24)) * rounding.largest_weight(bits) / 3
            fed_back = rows - rounding.round_with_feedback(rows, bits, second)
            nearest = rows - rounding.to_grid(rows, bits)
            errors = [np.einsum("oi,ij,oj", e, second, e) for e in (fed_back, nearest)]
            ratios.append(errors[0] / errors[1])
    assert np.mean(np.array(ratios) < 1) > 0.9 and np.mean(ratios) < 0.5, ratios


def test_scales_minimize_the_error_and_keep_their_limits():
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(6, 30))
    variance = generator.uniform(size=30)
    limits = np.array([2.0, 5, 9, 90, 900, 1e9])
    parts = [rounding.Part(rows, 4, np.diag(variance)[None])]

    def error(theta):
        restored = rounding.to_grid(rows * theta[:, None], 4) / theta[:, None]
        return (variance * (rows - restored) ** 2).sum(1)

    theta = rounding.search_theta(parts, limits, "channel")
    assert (theta <= limits).all() and np.array_equal(theta, np.rint(theta))
    free = rounding.search_theta(parts, np.full(6, 1e9), "channel", is_whole=False)
    by_largest = 7 / np.abs(rows).max(1)
    assert (error(free) <= error(by_largest) + 1e-9).all()


def test_weights_far_above_a_threshold_are_clipped_and_named():
    """One neuron that hardly ever fires does not keep a network from 4 bits."""
    _, snn = tiny()
    layers = deploy.layers(perceptron, snn, VECTORS)
    layers = changed(layers, threshold=np.array([0.5, 0.5, 5e-4, 0.5, 0.5, 0.5]))
    with pytest.warns(UserWarning, match="of 4 bits, in 1 of 6 channels") as seen:
        integers = deploy.quantize(layers, VECTORS, weight_bits=4)
    assert seen[0].filename == __file__
    whole = integers.populations[0].threshold
    assert np.argmin(whole) == 2 and whole.min() >= 1


def test_quotients_are_those_of_whole_numbers():
    rng = np.random.default_rng(0)
    divisors = np.concatenate([2 ** rng.integers(0, 20, 500), rng.integers(1, 99, 500)])
    near = divisors * rng.integers(-260, 260, 1000) + rng.integers(-1, 2, 1000)
    far = rng.integers(-(2**30), 2**30, 1000)
    for low, high in ((0, 1), (-1, 1), (-3, 3), (0, 255), (-127, 127)):
        for numbers in (near, far):
            quotients = streams._quotient(
                np.int32(numbers), np.int32(divisors), low, high
            )
            expected = np.clip(numbers // divisors, low, high)
            np.testing.assert_array_equal(quotients, expected)


def test_thresholds_are_where_neurons_fire():
    """The least v that sends 1, and after a first 1 the least -v that sends -1."""
    potentials = np.arange(80)
    arithmetic = deploy.Arithmetic(8, 8, 20, "wrap")
    for model in (
        snnjax.integrate_and_fire(),
        snnjax.integrate_and_fire(levels=(0, 3)),
        snnjax.integrate_and_fire(levels=(-1, 1), dead_zone=0.7, last_zone=0.9),
    ):
        node = Population(
            "n",
            sources=(),
            shape=(80,),
            model=model,
            threshold=np.full((), 7.0),
            initial_potential=np.zeros(()),
            bias=np.zeros(()),
        )
        layers = deploy.Layers((node,), 3, 0, snnjax.codes.radix(), arithmetic)
        rows = deploy.timing(layers).thresholds(node)
        assert len(rows) == 1 + (model.levels[0] < 0)
        for t in range(3):
            # At the first step there is no spike yet that a negative one takes back.
            signs = (1,) if t == 0 else (1, -1)
            for sign, thresholds in zip(signs, rows, strict=False):
                currents = jnp.zeros((3, 1, 80), int)
                if sign < 0:
                    currents = currents.at[0].set(4 * 7)  # a first spike
                currents = currents.at[t].set(sign * potentials)
                fired = streams.fire(node, layers, currents)
                is_sent = fired.spikes[t, 0] * sign > 0
                assert is_sent.any()
                np.testing.assert_array_equal(is_sent, potentials >= thresholds[t])


def test_readouts_of_any_size_are_computed():
    """An output has no register, so tiny weights and huge biases keep their ratio."""

    def fn(p, x):
        return relu(x @ p["w1"]) @ p["w3"] * p["size"] + p["bias"]

    simulate = jax.jit(snnjax.spiking(fn))
    for size, bias in ((1e-6, 0.0), (1.0, 1e5), (1e4, 0.0)):
        scales = {"size": np.float32(size), "bias": np.float32([bias, 0, 0])}
        params, recipe = FLAT | scales, snnjax.light()
        snn = snnjax.convert(fn, params, VECTORS, steps=4, recipe=recipe)
        floats = simulate(snn, VECTORS).mean(0)
        layers = deploy.layers(fn, snn, VECTORS)
        integers = deploy.quantize(layers, VECTORS)
        whole = np.asarray(deploy.run(integers, VECTORS).outputs).mean(0)
        error = np.abs(whole - floats).max(0) / np.abs(floats).max(0)
        assert (error < 0.2).all(), (size, bias, error)


@pytest.mark.thorough
def test_each_map_has_bits_of_its_own():
    """In memory and in training: 1 bit beside 8, and a shortcut beside 1 bit."""
    mixed, _ = tiny({"w1/relu": 1, "*": 8})
    eight, _ = tiny(8)
    sizes = [deploy.memory(n).weights for n in (eight, mixed)]
    assert sizes[0] - sizes[1] == FLAT["w1"].size * 7 / 8

    def fn(p, x):
        x = relu(x @ p["w1"])
        return relu(x @ p["w2"] + x) @ p["w3"]

    snn = converted(fn, FLAT, VECTORS, steps=4, recipe=snnjax.light())
    layers = deploy.layers(fn, snn, VECTORS)
    layers = deploy.quantize(layers, VECTORS, weight_bits={"output": 1, "*": 5})
    rounds, learner = deploy.trainable(layers)
    trace = deploy.run(layers, VECTORS)
    x = deploy.on_grid(layers, VECTORS)
    outputs = jax.jit(snnjax.spiking(rounds))(learner, x)
    np.testing.assert_allclose(outputs, trace.outputs, rtol=1e-5, atol=1e-5)
    flipped = jax.tree.map(lambda w: -0.3 * w, learner.params)
    (readout,) = deploy.with_weights(layers, flipped).connections[-1].maps
    assert (np.abs(readout.weight) == 1).all()


@pytest.mark.thorough
def test_x_and_spikes_that_one_map_reads_have_units_of_their_own():
    """A shortcut of x to spikes of the same size, so that both share a matrix."""

    def fn(p, x):
        return relu((x + relu(x @ p["a"])) @ p["b"]) @ p["w3"]

    draw = np.random.default_rng(0).normal
    params = {name: np.float32(draw(size=(6, 6))) for name in ("a", "b", "w3")}
    x = np.float32(3 * draw(size=(64, 6)))
    neuron = snnjax.integrate_and_fire(levels=(0, 15))
    snn = snnjax.init(fn, params, x, model=neuron)  # thresholds of 1
    snn = dataclasses.replace(snn, steps=8, wait=0)
    integers = deploy.quantize(deploy.layers(fn, snn, x), x)
    whole = np.asarray(deploy.run(integers, x).outputs).mean(0)
    floats = np.asarray(jax.jit(snnjax.spiking(fn))(snn, x)).mean(0)
    assert np.linalg.norm(whole - floats) < 0.1 * np.linalg.norm(floats)


def test_a_chip_gives_its_numbers():
    _, snn = tiny()
    layers = deploy.layers(perceptron, snn, VECTORS)
    for chip in (deploy.speck(), deploy.loihi2(), deploy.spinnaker2()):
        integers = deploy.quantize(layers, VECTORS, chip=chip)
        assert integers.arithmetic.weight_bits == 8
        assert chip.state_bits in (None, integers.arithmetic.state_bits)
        assert chip.thresholds != "layer" or integers.populations[0].threshold.size == 1
        assert deploy.report(integers, chip).grade != "does not run"
    four = deploy.quantize(layers, VECTORS, chip=deploy.speck(), weight_bits=4)
    assert four.arithmetic.weight_bits == 4
    # Where a chip states no scale, each channel has one.
    mine = deploy.quantize(layers, VECTORS, chip=deploy.Chip("m", thresholds="layer"))
    assert mine.populations[0].threshold.size > 1


def test_two_maps_in_a_row_are_multiplied():
    def fn(p, x):
        x = relu(x @ p["w1"]) @ p["w2"]
        return relu(x @ p["w2"]) @ p["w3"] + relu(x) @ p["w3"]

    neuron = snnjax.integrate_and_fire()
    snn = snnjax.init(fn, FLAT, VECTORS, model=neuron)
    snn = dataclasses.replace(snn, steps=4, wait=0)
    layers = deploy.layers(fn, snn, VECTORS)
    integers = deploy.quantize(layers, VECTORS)
    assert all(len(c.maps) == 1 for c in integers.connections)
    spikes, _ = chip(integers, np.asarray(VECTORS))
    trace = deploy.run(integers, VECTORS)
    check_spikes(trace, spikes)


@pytest.mark.thorough
def test_the_closed_form_of_digits_has_the_outputs_of_a_chip():
    for levels in ((-1, 1), (0, 1)):
        integers, _ = tiny(5, levels, RADIX, wait=3)
        fn, snn = deploy.as_function(integers)
        x = deploy.on_grid(integers, VECTORS)
        closed = jax.jit(snnjax.spiking(fn, execution="closed_form"))(snn, x).mean(0)
        trace = deploy.run(integers, VECTORS)
        np.testing.assert_allclose(closed, trace.outputs.mean(0), 1e-5, 1e-5)


@pytest.mark.thorough
def test_training_through_the_rounding_recovers_few_bits():
    """Adam on float weights: the loss falls, and a chip computes what was trained."""
    integers, snn = tiny(2, code=RADIX, levels=(-1, 1), wait=1)
    rounds, learner = deploy.trainable(integers)
    x = deploy.on_grid(integers, VECTORS)
    target = perceptron(FLAT, VECTORS)
    optimizer = snnjax.training.optimizer({"weights": optax.adam(0.02)})

    @jax.jit
    def step(learner, state):
        def loss(learner):
            return ((snnjax.spiking(rounds)(learner, x).mean(0) - target) ** 2).mean()

        value, gradient = jax.value_and_grad(loss)(learner)
        updates, state = optimizer.update(gradient, state, learner)
        return optax.apply_updates(learner, updates), state, value

    same = deploy.with_weights(integers, learner.params)
    for before, after in zip(integers.nodes, same.nodes, strict=True):
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(np.broadcast_to(a, np.shape(b)), b)
    state, losses = optimizer.init(learner), []
    for _ in range(60):
        trained = learner
        learner, state, value = step(learner, state)
        losses.append(float(value))
    assert min(losses[-10:]) < 0.6 * losses[0], losses
    whole = deploy.with_weights(integers, trained.params)
    assert {float(w) for m in whole.connections[0].maps for w in m.weight.ravel()} <= {
        -1.0,
        0.0,
        1.0,
    }
    computed = deploy.run(whole, VECTORS).outputs
    outputs = jax.jit(snnjax.spiking(rounds))(trained, x)
    np.testing.assert_allclose(computed, outputs, rtol=1e-5, atol=1e-5)
