"""Levels: what a spike may be, from the single neuron to a converted network.

The oracle is `reference.neuron`; numbers are multiples of 1/8, so that sums are exact.
"""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import strategies as st
from networks import NETWORKS, compiled, eighths, halves, relaxed_dspike, relu

import snnjax
from snnjax.neurons import (
    NeuronState,
    closed_form,
    integrate_and_fire,
    lif,
    mean_and_pace,
    unroll,
)
from snnjax.neurons.models import as_encoder
from snnjax.neurons.spike_trains import decode, encode, per_byte
from snnjax.neurons.unroll import spike_train
from snnjax.simulation import by_layer
from snnjax.surrogate import triangle

STEPS = 4
LEVELS = [(0, 1), (-1, 1), (0, 3), (-2, 3), (-100, 100)]
SIGNED = integrate_and_fire(levels=(-1, 1))


def currents(seed=0, steps=STEPS):
    """Of neurons that fire often, in both directions, [T, B, C]."""
    return eighths(seed, (steps, 6, 4), -40, 41)


def params(neuron):
    return neuron.init()._replace(
        threshold=jnp.array([0.5, 1.0, 1.0, 2.0]),
        bias=jnp.array([0.0, 0.25, -0.5, 0.5]),
        initial_potential=jnp.array([0.25, 0.5, 0.0, 1.0]),
    )


def oracle(given, into, **options):
    """The spikes of `reference.simulate` with these parameters."""
    return reference.simulate(
        np.asarray(into),
        np.asarray(given.threshold),
        bias=given.bias,
        start=np.asarray(given.initial_potential),
        **options,
    )


@pytest.mark.parametrize("wait", [0, 2])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("levels", LEVELS)
def test_spikes_are_those_of_the_oracle(levels, reset, wait):
    neuron = integrate_and_fire(levels=levels, reset=reset)
    given, into = params(neuron), currents()
    expected = oracle(given, into, reset=reset, wait=wait, levels=levels)
    spikes = unroll(neuron, given, into, wait=wait)
    np.testing.assert_array_equal(spikes, expected)
    assert (spikes.sum(0) >= 0).all()  # as a ReLU's output
    mean, _ = mean_and_pace(neuron, given, into, wait=wait)
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-6)
    train = spike_train(neuron, given, into, wait=wait)
    np.testing.assert_array_equal(decode(train, STEPS), expected)


@pytest.mark.parametrize("levels", [(-1, 1), (-3, 3), (-100, 100)])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_dead_zone_is_that_of_the_oracle(levels, reset):
    neuron = integrate_and_fire(levels=levels, reset=reset, dead_zone=0.75)
    given, into = params(neuron), currents()
    expected = oracle(given, into, reset=reset, levels=levels, dead_zone=0.75)
    spikes = unroll(neuron, given, into)
    np.testing.assert_array_equal(spikes, expected)
    plain = integrate_and_fire(levels=levels, reset=reset)
    assert not jnp.array_equal(spikes, unroll(plain, given, into))


@pytest.mark.parametrize("options", [{"dead_zone": 1.0}, {"dead_zone": "a"}])
def test_a_dead_zone_outside_its_range_is_refused(options):
    with pytest.raises(ValueError, match="dead_zone is .*allowed: 0 <= z < 1"):
        integrate_and_fire(levels=(-1, 1), **options)


def test_a_dead_zone_without_negative_spikes_is_refused():
    with pytest.raises(ValueError, match="no spike is negative"):
        integrate_and_fire(dead_zone=0.5)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_leak_makes_no_difference_to_the_levels(levels):
    neuron = lif(levels=levels, leak=0.5)
    given, into = params(neuron), currents(1)
    expected = oracle(given, into, leak=0.5, levels=levels)
    np.testing.assert_array_equal(unroll(neuron, given, into), expected)


@pytest.mark.parametrize(
    "neuron",
    [
        *(integrate_and_fire(levels=levels) for levels in LEVELS),
        *(
            as_encoder(integrate_and_fire(levels=levels, dead_zone=dead_zone))
            for levels in [(-1, 1), (-3, 3)]
            for dead_zone in (0.0, 0.25, 0.75)
        ),
    ],
    ids=lambda neuron: f"{neuron.levels}, {neuron.rectifies}, {neuron.dead_zone}",
)
def test_the_closed_form_is_a_wait_of_t(neuron):
    given, into = params(neuron), currents(2)
    output = unroll(neuron, given, into, wait=STEPS).mean(0)
    np.testing.assert_allclose(
        closed_form(neuron, given, into.mean(0), STEPS), output, rtol=1e-6
    )


@pytest.mark.parametrize(
    "levels, group",
    [((0, 1), 8), ((-1, 1), 4), ((0, 3), 4), ((-3, 3), 2), ((0, 99), 1)],
)
@pytest.mark.parametrize("steps", [1, 7, 8])
def test_spikes_are_encoded_in_as_few_bits_as_their_levels_need(levels, group, steps):
    generator = np.random.default_rng(steps)
    level = generator.integers(levels[0], levels[1] + 1, (steps, 3, 2))
    threshold = jnp.array([0.3, 1.7])
    spikes = jnp.asarray(level, jnp.float32) * threshold
    bits = encode(spikes, threshold, levels)
    assert (per_byte(levels), bits.shape[0]) == (group, -(-steps // group))
    train = spike_train(integrate_and_fire(levels=levels), params(SIGNED), currents())
    assert (train.bits.dtype, train.levels) == (jnp.uint8, levels)
    again = decode(type(train)(bits, threshold, levels), steps)
    np.testing.assert_array_equal(again, spikes)


@pytest.mark.parametrize("levels", [(-1, 1), (-2, 2), (0, 20)])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_the_derivative_is_the_sum_of_those_of_all_levels(levels, reset, x64):
    """That of the relaxed neuron, against central differences."""
    neuron = integrate_and_fire(levels=levels, reset=reset)
    into = jax.random.normal(jax.random.key(0), (4, 3)) + 0.3

    def output(into):
        given = jax.tree.map(lambda leaf: leaf.astype(into.dtype), neuron.init())
        state, total = neuron.start(given, into.shape[1:]), 0.0
        for current in into:
            state = neuron.integrate(given, state, current)
            state, spikes = neuron.fire(given, state, relaxed_dspike)
            total += (spikes * jnp.arange(1.0, 4.0)).sum()
        return total

    x64()
    into = jnp.asarray(np.asarray(into), jnp.float64)
    slope, step = jax.grad(output)(into), 1e-6
    for index in np.ndindex(*into.shape):
        ahead, behind = (output(into.at[index].add(d)) for d in (step, -step))
        difference = float(ahead - behind) / (2 * step)
        assert float(slope[index]) == pytest.approx(difference, 1e-4, 1e-6)


@pytest.mark.parametrize("levels", [(-1, 1), (-3, 3)])
@pytest.mark.parametrize("total", [0.0, 1.0])
def test_the_derivative_is_whole_where_all_spikes_are_taken_back(levels, total):
    """A silent neuron is at k = -N, where a maximum would halve its derivative."""
    neuron = integrate_and_fire(levels=levels)

    def level(potential):
        state = NeuronState(potential, jnp.full_like(potential, total))
        return neuron.fire(neuron.init(), state, triangle)[1].sum()

    potential = jnp.array([0.2, 0.6]) - total  # k = -N
    steps = jnp.arange(levels[0] + 1, levels[1] + 1)[:, None]
    expected = jax.vmap(jax.grad(lambda x: triangle(x).sum()))
    expected = (expected((potential - steps) / 2) / 2).sum(0)
    np.testing.assert_allclose(jax.grad(level)(potential), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "levels",
    [(1, 2), (0, 0), (-1, 0), (0.5, 1), (1, -1), (-200, 200), 3, (0, 1, 2), "ab"],
)
def test_levels_outside_the_range_are_refused(levels):
    with pytest.raises(ValueError, match="levels are .*allowed: two whole numbers"):
        integrate_and_fire(levels=levels)


# ----------------------------------------------------------------- networks


def fitted(name, levels, wait):
    net = NETWORKS[name]
    neuron = integrate_and_fire(levels=levels)
    options = {"steps": STEPS, "wait": wait, "neuron": neuron}
    return net, snnjax.convert(net.fn, net.params, net.x, **options)


@pytest.mark.parametrize(
    "name, levels, wait",
    [
        ("dense", (0, 20), 0),
        ("dense", (-3, 3), 2),
        ("projection", (-1, 1), 0),
        ("projection", (-3, 3), STEPS),
        ("max-pool before", (-1, 1), 2),
        ("max-pool before", (-1, 1), 0),
        ("max-pool before", (-3, 3), STEPS),
    ],
)
def test_executions_give_the_same_spikes(name, levels, wait):
    net = NETWORKS[name]
    snn = halves(net, neuron=integrate_and_fire(levels=levels))
    executions = ["by_step", "by_layer", by_layer(remat=True)]
    executions += ["closed_form"] if wait == STEPS else []
    executions += [] if wait else [by_layer(segment=2)]
    first, *others = (
        compiled(net.fn, steps=STEPS, wait=wait, execution=execution)(snn, net.x)
        for execution in executions
    )
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


@pytest.mark.parametrize("levels", [(-2, 2)])
def test_gradients_of_the_executions_agree(levels):
    net, snn = fitted("dense", levels, 0)

    def gradient(execution):
        simulate = snnjax.spiking(net.fn, steps=STEPS, wait=0, execution=execution)
        return jax.grad(lambda s: (simulate(s, net.x) ** 2).mean())(snn)

    first, *others = map(gradient, ["by_layer", "by_step", by_layer(remat=True)])
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(first))
    for other in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            first,
            other,
        )


@pytest.mark.parametrize("levels", [(-1, 1), (0, 3)])
def test_outputs_are_multiples_of_the_threshold_over_t(levels):
    net, snn = fitted("dense", levels, 0)
    trains = snnjax.measures.spike_trains(net.fn, snn, net.x)
    for train in trains.values():
        assert levels[0] <= train.min() and levels[1] >= train.max()
        assert jnp.issubdtype(train.dtype, jnp.integer)
        assert (train.sum(0) >= 0).all()


def test_with_a_wait_of_t_no_spike_is_taken_back():
    net, signed = fitted("dense", (-1, 1), STEPS)
    _, binary = fitted("dense", (0, 1), STEPS)
    jax.tree.map(np.testing.assert_array_equal, signed.neurons, binary.neurons)
    outputs = [
        compiled(net.fn, steps=STEPS, wait=STEPS)(snn, net.x)
        for snn in (signed, binary)
    ]
    jax.tree.map(np.testing.assert_array_equal, *outputs)


@pytest.mark.parametrize("steps", [8, 32, 128])
def test_a_signed_neuron_takes_back_what_later_input_does_not_support(steps):
    """An input whose mean is 0, all of it above 0 at first.

    A binary neuron answers the first half and keeps its error whatever T is; that of a
    signed one is V_th / T at most, as if it had waited.
    """

    def fn(weights, x):
        return relu(relu(x @ weights)) @ weights

    weights, half = jnp.eye(1), jnp.ones((steps // 2, 1, 1))
    x = jnp.concatenate([half, -half])
    outputs = {}
    for low in (0, -1):
        neuron = integrate_and_fire(levels=(low, 1))
        snn = snnjax.init(fn, weights, x[0], neuron=neuron)
        simulate = snnjax.spiking(fn, steps=steps, inputs="sequence")
        outputs[low] = float(simulate(snn, x).mean(0)[0, 0])
    assert outputs[0] == 0.5
    assert abs(outputs[-1]) <= 1 / steps


@hypothesis.settings(max_examples=5)
@hypothesis.given(
    st.integers(0, 99),
    st.sampled_from(LEVELS),
    st.sampled_from(["subtract", "zero"]),
    st.sampled_from([0, 1, 3, STEPS]),
    st.booleans(),
)
def test_random_networks(seed, levels, reset, wait, residual):
    """Executions agree, and outputs are multiples of the threshold over T."""
    widths = np.random.default_rng(seed).integers(2, 9, 2)
    first, last = (
        eighths(seed, (widths[0], widths[1])),
        eighths(seed + 1, (widths[1], 2)),
    )
    weights, x = (
        (first, first @ first.T, last),
        eighths(seed + 2, (3, widths[0]), 0, 17),
    )

    def fn(weights, x):
        hidden = relu(x @ weights[1])
        hidden = hidden + x if residual else hidden
        return relu(hidden @ weights[0]) @ weights[2]

    net = NETWORKS["dense"]._replace(fn=fn, params=weights, x=x)
    snn = halves(net, seed, neuron=integrate_and_fire(levels=levels, reset=reset))
    executions = ["by_layer", "by_step", by_layer(remat=True)]
    executions += [] if wait else [by_layer(segment=3)]
    first, *others = (
        compiled(fn, steps=STEPS, wait=wait, execution=execution)(snn, x)
        for execution in executions
    )
    for other in others:
        np.testing.assert_array_equal(other, first)
    trains = snnjax.measures.spike_trains(fn, snn, x, steps=STEPS, wait=wait)
    for train in trains.values():
        assert levels[0] <= train.astype(int).min() <= train.max() <= levels[1]
        assert (train.astype(int).sum(0) >= 0).all()
    if reset == "subtract" and wait == STEPS:
        closed = snnjax.spiking(fn, steps=STEPS, wait=wait, execution="closed_form")
        np.testing.assert_allclose(closed(snn, x).mean(0), first.mean(0), rtol=1e-6)


@hypothesis.settings(max_examples=5)
@hypothesis.given(st.integers(0, 99))
def test_signed_networks_converge_to_the_ann_at_rate_one_over_t(seed):
    generator = np.random.default_rng(seed)
    weights = [jnp.asarray(generator.normal(size=(6, 6)) / 2) for _ in range(4)]
    x = jnp.asarray(generator.uniform(size=(16, 6)), jnp.float32)

    def fn(weights, x):
        for kernel in weights[:-1]:
            x = relu(x @ kernel)
        return x @ weights[-1]

    def error(steps):
        neuron = integrate_and_fire(levels=(-1, 1), threshold=4.0)
        snn = snnjax.init(fn, weights, x, neuron=neuron)
        neurons = {
            name: params._replace(initial_potential=params.threshold / 2)
            for name, params in snn.neurons.items()
        }
        snn = snnjax.SNN(weights, neurons, neuron=neuron)
        mean = compiled(fn, steps=steps)(snn, x).mean(0)
        return float(jnp.abs(mean - fn(weights, x)).max())

    for steps in (64, 1024):
        assert error(steps) < 16 / steps


@pytest.mark.parametrize("high", [3, 7])
@pytest.mark.parametrize(
    "recipe", [snnjax.max_activation(), snnjax.percentile(99.0)], ids=["max", "p99"]
)
def test_the_highest_level_reaches_what_a_binary_threshold_would(recipe, high):
    net = NETWORKS["dense"]
    binary, graded = (
        snnjax.convert(
            net.fn,
            net.params,
            net.x,
            steps=STEPS,
            recipe=recipe,
            neuron=integrate_and_fire(levels=(0, n)),
        )
        for n in (1, high)
    )
    for name, neuron in binary.neurons.items():
        reached = high * graded.neurons[name].threshold
        np.testing.assert_allclose(reached, neuron.threshold, rtol=1e-6)


@pytest.mark.parametrize("levels", [(-1, 1), (0, 3)])
def test_a_file_keeps_the_levels(levels, tmp_path):
    pytest.importorskip("safetensors")
    net, snn = fitted("dense", levels, 0)
    path = snnjax.save(tmp_path / "snn.safetensors", snn, fn=net.fn, x=net.x)
    stored = snnjax.load(path)
    assert stored.snn.neuron == snn.neuron
    simulate = snnjax.spiking(net.fn, steps=STEPS)
    np.testing.assert_allclose(
        stored.run(net.x), simulate(snn, net.x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dead_zone", [0.0, 0.5])
def test_levels_are_fields_beyond_nir(dead_zone, tmp_path):
    nir = pytest.importorskip("nir")
    net = NETWORKS["dense"]
    neuron = integrate_and_fire(levels=(-2, 3), dead_zone=dead_zone)
    snn = snnjax.convert(net.fn, net.params, net.x, steps=STEPS, neuron=neuron)
    with pytest.raises(ValueError, match="NIR cannot express.*the levels"):
        snnjax.to_nir(net.fn, snn, net.x)
    nir.write(tmp_path / "g.nir", snnjax.to_nir(net.fn, snn, net.x, extended=True))
    fn, again = snnjax.from_nir(nir.read(tmp_path / "g.nir"))
    assert (again.neuron.levels, again.neuron.dead_zone) == ((-2, 3), dead_zone)
    np.testing.assert_allclose(
        compiled(fn, steps=STEPS)(again, net.x),
        compiled(net.fn, steps=STEPS)(snn, net.x),
        rtol=1e-4,
        atol=1e-4,
    )


def test_operations_of_graded_spikes_are_counted_both_ways():
    def fn(weights, x):
        return relu(x) @ weights

    weights, x = jnp.ones((2, 3)), jnp.array([[2.0, 1.0]])
    snn = snnjax.init(fn, weights, x, neuron=integrate_and_fire(levels=(0, 3)))
    measures = snnjax.measure(fn, snn, x, params=weights, steps=4)
    assert measures.synaptic_operations == 4 * 2 * 3
    assert measures.synaptic_additions == 4 * (2 + 1) * 3
    assert (measures.bits, measures.firing_rate, measures.high) == (8, 1, 3)
    # Of 13 = T high + 1 values, so 4 bits: six products of 4 x 8 bits, and additions.
    ann = snnjax.energy(measures).quantized.ann
    np.testing.assert_allclose(ann, 6 * (0.2e-12 * 4 / 8 + 0.1e-12), rtol=1e-6)


@pytest.mark.parametrize(
    "neuron",
    [
        lif(leak=0.5),
        integrate_and_fire(reset="zero"),
        integrate_and_fire(temperature=2.0),
        snnjax.integrate_and_fire,
    ],
)
def test_conversion_takes_if_neurons_only(neuron):
    net = NETWORKS["dense"]
    with pytest.raises(ValueError, match="neuron is .*allowed: a(n IF neuron| model)"):
        snnjax.convert(net.fn, net.params, net.x, steps=STEPS, neuron=neuron)


def test_a_folder_of_other_levels_is_refused(tmp_path):
    net = NETWORKS["dense"]
    for levels, refused in (((0, 1), False), ((-1, 1), True)):
        options = {
            "steps": STEPS,
            "folder": tmp_path / "fits",
            "neuron": integrate_and_fire(levels=levels),
        }
        if refused:
            with pytest.raises(ValueError, match="another conversion.*neuron"):
                snnjax.convert(net.fn, net.params, net.x, **options)
        else:
            snnjax.convert(net.fn, net.params, net.x, **options)
