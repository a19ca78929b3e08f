"""Single neurons: what conversion relies on. test_levels.py has their oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snnjax import neurons
from snnjax.neurons import integrate_and_fire as IF
from snnjax.neurons.unroll import fold
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
        state = neuron.start(params, (2,))
        after = neuron.integrate(params, state, currents[0])
        outputs = [
            neurons.unroll(neuron, params, currents),
            *neurons.mean_and_pace(neuron, params, currents),
            neurons.closed_form(plain, plain.init(), currents[0], 4),
        ]
        return (state, after), outputs

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


NO_LEVELS = [(1, 2), (0, 0), (-1, 0), (0.5, 1), (-200, 200), 3, (0, 1, 2), "ab"]
SIGNED = {"levels": (-1, 1)}


def test_a_neuron_outside_its_range_is_refused():
    for build, options, message in (
        (neurons.lif, {"leak": 0.0}, "leak is 0.0; allowed: 0 < leak"),
        (neurons.lif, {"leak": 1.5}, "leak is 1.5"),
        (neurons.lif, {"leak": None}, "leak is None; allowed"),
        (neurons.lif, {"threshold": 0.0}, "threshold is 0.0; allowed"),
        (neurons.lif, {"threshold": np.ones(2)}, "threshold is array"),
        (neurons.lif, {"reset": "soft"}, "allowed: 'subtract', 'zero'"),
        *((IF, {"levels": each}, "levels are .*two whole num") for each in NO_LEVELS),
        (IF, SIGNED | {"dead_zone": 1.0}, "allowed: 0 <= dead_zone < 1"),
        (IF, {"last_zone": 0.4}, "last_zone is .*allowed: 0.5 <= last_zone <= 1"),
        (IF, {"last_zone": 1.1}, "last_zone is 1.1; allowed"),
        (IF, {"last_zone": "a"}, "last_zone is 'a'; allowed"),
        (IF, {"dead_zone": 0.5}, "no spike is negative"),
        (IF, SIGNED | {"dead_zone": 0.75, "reset": "zero"}, "keeps what is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)


def test_currents_of_whole_numbers_are_refused():
    """Spikes of a threshold of 1/2 would all be 0 in their type."""
    neuron, currents = (
        IF(threshold=0.5),
        np.ones((4, 1), np.int32),
    )
    params, state = neuron.init(), neurons.NeuronState(np.zeros(1, np.float32))
    for run in (
        lambda: neurons.unroll(neuron, params, currents),
        lambda: neurons.mean_and_pace(neuron, params, currents),
        lambda: unrolled_train(neuron, params, currents),
        lambda: fold(neuron, params, state, currents),
        lambda: neurons.closed_form(neuron, params, currents[0], 4),
    ):
        with pytest.raises(ValueError, match="dtype int32; allowed: floating point"):
            run()


def test_a_wait_outside_the_steps_is_refused():
    neuron, currents = IF(), np.ones((4, 1), np.float32)
    for run in (neurons.unroll, neurons.mean_and_pace, unrolled_train):
        for wait in (-1, 5, 1.0):
            with pytest.raises(ValueError, match="wait is .*; allowed: .* to steps=4"):
                run(neuron, neuron.init(), currents, wait=wait)


def test_a_model_is_a_value():
    build = neurons.lif
    assert build(leak=0.5) == build(leak=jnp.float32(0.5))
    assert hash(build()) == hash(build(leak=np.float64(0.5)))
    assert build() != build(reset="zero") != IF(reset="zero")


def test_the_pace_of_many_steps_does_not_overflow():
    neuron, currents = IF(), np.ones((50_000, 1), np.float32)
    run = jax.jit(neurons.mean_and_pace, static_argnums=0)
    mean, pace = run(neuron, neuron.init(), currents)
    np.testing.assert_allclose([mean[0], pace[0]], 1, rtol=1e-3)
