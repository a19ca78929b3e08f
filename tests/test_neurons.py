"""Single neurons: what conversion relies on. test_levels.py has their oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import snnjax
from snnjax import neurons
from snnjax.neurons import integrate_and_fire as IF
from snnjax.neurons.spike_trains import decode
from snnjax.neurons.unroll import mean_and_pace
from snnjax.neurons.unroll import spike_train as unrolled_train


def test_closed_form_passes_the_gradient_between_its_clips():
    neuron, current = IF(threshold=2.0), np.float32([-1.0, 0.1, 1.9, 2.1])

    @jax.jit
    @jax.grad
    def slope(current):
        return neurons.closed_form(neuron, neuron.init(), current, 4).sum()

    np.testing.assert_array_equal(slope(current), [0, 1, 1, 0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_membranes_are_float32_and_spikes_keep_the_dtype(dtype):
    neuron, plain = neurons.lif(), IF()
    params, currents = neuron.init(), jax.ShapeDtypeStruct((4, 2), dtype)

    def shapes(currents):
        start = neuron.start(params, (2,))
        charged = neuron.integrate(params, start, currents[0])
        outputs = [
            neurons.unroll(neuron, params, currents),
            *mean_and_pace(neuron, params, currents),
            neurons.closed_form(plain, plain.init(), currents[0], 4),
        ]
        return (start, charged), outputs

    states, outputs = jax.eval_shape(shapes, currents)
    assert {leaf.dtype for leaf in jax.tree.leaves(states)} == {np.dtype("float32")}
    assert {output.dtype for output in outputs} == {np.dtype(dtype)}


def test_small_bfloat16_currents_are_not_lost():
    """In bfloat16 alone, 1 + 1/512 is 1: the potential would never move."""
    neuron = IF()
    params = neuron.init()._replace(initial_potential=jnp.float32(0.5))
    currents = np.full((300, 1), 1 / 512, jnp.bfloat16)
    run = jax.jit(neurons.unroll, static_argnums=0)
    assert np.asarray(run(neuron, params, currents), np.float32).sum() == 1


def test_a_model_is_a_value():
    build = neurons.lif
    assert build(leak=0.5) == build(leak=jnp.float32(0.5))
    assert hash(build()) == hash(build(leak=np.float64(0.5)))
    assert build() != build(reset="zero") != IF(reset="zero")


def test_a_number_of_each_channel_is_given_or_drawn():
    tau = neurons.TimeConstants(2, 20)
    thresholds = (0.5, 1, 0.75)
    neuron = neurons.lif(leak=tau, threshold=thresholds)
    for array in (np.array(thresholds), jnp.array(thresholds)):
        assert neurons.lif(leak=tau, threshold=array) == neuron
    params = neuron.init((2, 3), jax.random.key(0))
    leak = np.asarray(params.leak)
    assert leak.shape == (3,)
    assert (leak != neuron.init((2, 3), jax.random.key(1)).leak).all()
    assert ((np.exp(-1 / 2) <= leak) & (leak <= np.exp(-1 / 20))).all()
    currents = np.random.default_rng(0).normal(0.2, 0.5, (9, 2, 3)).astype(np.float32)
    run = jax.jit(neurons.unroll, static_argnums=0)
    spikes = run(neuron, params, currents)
    for c, threshold in enumerate(thresholds):
        channel_currents = currents[..., c].astype(float)
        expected = reference.simulate(channel_currents, threshold, leak=float(leak[c]))
        np.testing.assert_allclose(spikes[..., c], expected)


def test_two_numbers_of_a_model_are_drawn_apart():
    shares = neurons.Uniform(0.25, 0.75)
    neuron = neurons.Synaptic(neurons.lif(leak=shares), synaptic_leak=shares)
    params = neuron.init((3,), jax.random.key(0))
    assert (params.synaptic_leak != params.neuron.leak).all()


def test_the_pace_of_many_steps_does_not_overflow():
    neuron, currents = IF(), np.ones((50_000, 1), np.float32)
    run = jax.jit(mean_and_pace, static_argnums=0)
    mean, pace = run(neuron, neuron.init(), currents)
    np.testing.assert_allclose([mean[0], pace[0]], 1, rtol=1e-3)


BOUNDED = {  # options of the model, and how long it waits
    "speck": ({"lowest": -1.0, "levels": (0, 15)}, 0),
    "hard reset": ({"lowest": -0.5, "reset": "zero"}, 0),
    "leak": ({"lowest": -0.25, "leak": 0.75}, 3),
    "signed": ({"lowest": -0.75, "levels": (-1, 1)}, 0),
    "no debts": ({"lowest": 0.0}, 8),  # a wait of all T steps
}


@pytest.mark.parametrize("options, wait", BOUNDED.values(), ids=BOUNDED)
def test_a_potential_does_not_fall_below_its_bound(options, wait):
    """The oracle's spikes, in every pass over time; without a bound they differ."""
    currents = np.random.default_rng(0).normal(0.1, 0.8, (8, 5, 6)).astype(np.float32)
    build = neurons.lif if "leak" in options else IF
    neuron = build(threshold=0.7, **options)
    params = neuron.init()._replace(initial_potential=jnp.float32(0.2))

    @jax.jit
    def run(currents):
        spikes = neurons.unroll(neuron, params, currents, wait=wait)
        passes = mean_and_pace(neuron, params, currents, wait=wait)
        train = unrolled_train(neuron, params, currents, wait=wait)
        return spikes, passes[0], decode(train, 8)

    spikes, mean, decoded = run(currents)
    oracle = dict(threshold=0.7, start=0.2, wait=wait) | options
    expected = reference.simulate(currents.astype(float), **oracle)
    np.testing.assert_allclose(spikes, expected, rtol=1e-6)
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-5)
    np.testing.assert_allclose(decoded, expected, rtol=1e-6)
    free = reference.simulate(currents.astype(float), **oracle | {"lowest": -np.inf})
    assert (free != expected).any()


def test_a_bounded_network_runs_in_every_execution_but_the_closed_form():
    """Calibration simulates the bound: thresholds without it, potentials with it."""
    rng = np.random.default_rng(1)
    x = np.abs(rng.normal(size=(32, 5))).astype(np.float32)
    params = [rng.normal(0, 0.6, s).astype(np.float32) for s in ((5, 8), (8, 6))]

    def fn(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p[0]) @ p[1])

    steps, chain = 8, snnjax.calibrators
    recipe = snnjax.Recipe([chain.max_threshold(), chain.correct_potential()])
    free, bounded = (
        snnjax.convert(
            fn, params, x, steps=steps, wait=steps, recipe=recipe, model=IF(lowest=low)
        )
        for low in (None, 0.0)
    )
    stream, ann = np.stack([x.astype(float)] * steps), x.astype(float)
    for weight, (name, site) in zip(params, bounded.neurons.items(), strict=True):
        threshold = float(site.threshold)
        assert threshold == float(free.neurons[name].threshold)
        currents, ann = stream @ weight, np.maximum(ann @ weight, 0)
        oracle = dict(threshold=threshold, wait=steps, lowest=0.0)
        first = reference.simulate(currents, **oracle).mean(0)
        start = reference.potential_correction(ann, first, steps)
        np.testing.assert_allclose(site.initial_potential, start, atol=1e-4)
        stream = reference.simulate(currents, start=start, **oracle)
    assert not np.allclose(start, free.neurons[name].initial_potential, atol=1e-2)
    for execution in ("auto", steps):
        run = jax.jit(snnjax.spiking(fn, execution=execution))
        assert np.mean(np.abs(run(bounded, x) - stream) > 1e-5) < 0.01
    measures = snnjax.measure(fn, bounded, x, params=params)
    assert np.isnan(measures.sites[name].flooring)
