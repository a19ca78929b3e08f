"""Neurons against the oracle, and the properties that conversion relies on."""

import functools
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import strategies as st

from snnjax import neurons, surrogate
from snnjax.neurons import spike_trains
from snnjax.neurons.unroll import resume
from snnjax.neurons.unroll import spike_train as unrolled_train

PER_CHANNEL = (2, 3, 2)  # [B, ..., C]

# Neurons are built once, and compiled once for every number of steps and wait.
build_if = functools.cache(neurons.integrate_and_fire)
build_lif = functools.cache(neurons.lif)
unroll, mean_output, mean_and_pace, spike_train = (
    jax.jit(function, static_argnames=("neuron", "wait"))
    for function in (
        neurons.unroll,
        neurons.mean_output,
        neurons.mean_and_pace,
        unrolled_train,
    )
)


class Case(NamedTuple):
    """A site of random neurons; all numbers are multiples of 1/8, exact in float32."""

    currents: np.ndarray
    threshold: np.ndarray
    bias: np.ndarray
    start: np.ndarray
    leak: float | None
    reset: str
    wait: int

    def site(self):
        """Neuron, parameters and currents for the library."""
        if self.leak is None:
            neuron = build_if(reset=self.reset)
        else:
            neuron = build_lif(leak=self.leak, reset=self.reset)
        params = neuron.init()._replace(
            threshold=jnp.asarray(self.threshold, jnp.float32),
            bias=jnp.asarray(self.bias, jnp.float32),
            initial_potential=jnp.asarray(self.start, jnp.float32),
        )
        return neuron, params, jnp.asarray(self.currents, jnp.float32)

    def expected(self):
        """The oracle's spikes."""
        return reference.simulate(
            self.currents,
            self.threshold,
            bias=self.bias,
            start=self.start,
            leak=self.leak or 1.0,
            reset=self.reset,
            wait=self.wait,
        )


@st.composite
def cases(draw, steps=(1, 5, 9), leaks=(None, 0.5), resets=("subtract", "zero")):
    steps = draw(st.sampled_from(steps))
    wait = draw(st.sampled_from(sorted({0, 1, steps // 2, steps})))
    leak, reset = draw(st.sampled_from(leaks)), draw(st.sampled_from(resets))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Case(
        currents=generator.integers(-8, 17, (steps, *PER_CHANNEL)) / 8,
        threshold=generator.integers(1, 17, PER_CHANNEL[-1]) / 8,
        bias=generator.integers(-4, 5, PER_CHANNEL[-1]) / 8,
        start=generator.integers(-8, 9, PER_CHANNEL[1:]) / 8,
        leak=leak,
        reset=reset,
        wait=wait,
    )


@hypothesis.given(cases())
@hypothesis.settings(max_examples=30)
def test_spikes_are_the_oracles(case):
    spikes = unroll(*case.site(), wait=case.wait)
    np.testing.assert_array_equal(spikes, case.expected())


@hypothesis.given(cases())
def test_mean_output_is_the_mean_of_the_spikes(case):
    mean = mean_output(*case.site(), wait=case.wait)
    spikes = unroll(*case.site(), wait=case.wait)
    np.testing.assert_allclose(mean, spikes.mean(0), rtol=1e-6)


@hypothesis.given(cases())
def test_the_pace_is_the_mean_of_what_one_would_read_early(case):
    mean, pace = mean_and_pace(*case.site(), wait=case.wait)
    so_far = unroll(*case.site(), wait=case.wait).cumsum(0)
    np.testing.assert_array_equal(mean, mean_output(*case.site(), wait=case.wait))
    even = np.arange(1, len(so_far) + 1).mean()  # of one unit at every step
    np.testing.assert_allclose(pace, so_far.mean(0) / even, rtol=1e-5)


@hypothesis.given(cases())
def test_a_train_decodes_to_the_spikes(case):
    train = spike_train(*case.site(), wait=case.wait)
    spikes = spike_trains.decode(train, len(case.currents))
    np.testing.assert_array_equal(spikes, unroll(*case.site(), wait=case.wait))


def test_a_train_fills_its_last_byte_with_zeros():
    neuron = neurons.integrate_and_fire()
    currents = jnp.full((3, 1), 5.0)
    train = unrolled_train(neuron, neuron.init(), currents)
    spikes = neurons.unroll(neuron, neuron.init(), currents)
    np.testing.assert_array_equal(train.bits, spike_trains.encode(spikes))


@hypothesis.given(cases(steps=(1, 4, 8), leaks=(None,), resets=("subtract",)))
def test_closed_form_is_what_a_neuron_sends_that_waits_for_all_input(case):
    neuron, params, currents = case.site()
    steps = len(currents)
    spikes = unroll(neuron, params, currents, wait=steps)
    mean = neurons.closed_form(
        neurons.integrate_and_fire(), params, currents.mean(0), steps
    )
    np.testing.assert_array_equal(mean * steps, spikes.sum(0))


def test_closed_form_passes_the_gradient_between_its_clips():
    params = neurons.integrate_and_fire(threshold=2.0).init()
    current = jnp.array([-1.0, 0.1, 1.9, 2.1])
    slope = jax.grad(
        lambda z: neurons.closed_form(neurons.integrate_and_fire(), params, z, 4).sum()
    )(current)
    np.testing.assert_array_equal(slope, [0, 1, 1, 0])


@hypothesis.given(cases())
def test_rates_are_multiples_of_one_spike(case):
    steps, one_spike = len(case.currents), case.threshold / len(case.currents)
    count = mean_output(*case.site(), wait=case.wait) / one_spike
    np.testing.assert_allclose(count, np.round(count), atol=1e-5)
    assert (count > -0.5).all() and (count < steps + 0.5).all()


def test_a_current_within_the_threshold_is_met_to_one_spike():
    """An IF neuron whose potential ends in [0, V_th) is within V_th / T."""
    neuron, steps = neurons.integrate_and_fire(threshold=2.0), 16
    current = jnp.linspace(0, 2, 41)
    constant = jnp.broadcast_to(current, (steps, 41))
    error = current - neurons.mean_output(neuron, neuron.init(), constant)
    assert (error > -1e-5).all() and (error < 2 / steps + 1e-5).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_membranes_are_float32_and_spikes_keep_the_dtype(dtype):
    neuron = neurons.lif()
    params, currents = neuron.init(), jnp.full((4, 2), 0.3, dtype)
    state = neuron.start(params, (2,))
    charged = neuron.integrate(params, state, currents[0])
    assert state.potential.dtype == charged.potential.dtype == jnp.float32
    for run in (neurons.unroll, neurons.mean_output):
        assert run(neuron, params, currents).dtype == dtype
    mean = neurons.closed_form(
        neurons.integrate_and_fire(),
        neurons.integrate_and_fire().init(),
        currents[0],
        4,
    )
    assert mean.dtype == dtype


def test_small_bfloat16_currents_are_not_lost():
    """In bfloat16 alone, 1 + 1/512 is 1: the potential would never move."""
    neuron = neurons.integrate_and_fire()
    params = neuron.init()._replace(initial_potential=jnp.float32(0.5))
    currents = jnp.full((300, 1), 1 / 512, jnp.bfloat16)
    assert neurons.unroll(neuron, params, currents).sum() == 1


@pytest.mark.parametrize(
    "build, message",
    [
        (functools.partial(neurons.lif, leak=0.0), "leak is 0.0; allowed: 0 < leak"),
        (functools.partial(neurons.lif, leak=1.5), "leak is 1.5"),
        (functools.partial(neurons.lif, leak=None), "leak is None; allowed"),
        (functools.partial(neurons.lif, threshold=0.0), "threshold is 0.0; allowed"),
        (functools.partial(neurons.lif, threshold=np.ones(2)), "threshold is array"),
        (functools.partial(neurons.integrate_and_fire, threshold=-1), "threshold is"),
        (functools.partial(neurons.lif, reset="soft"), "allowed: 'subtract', 'zero'"),
    ],
)
def test_a_neuron_outside_its_range_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "run",
    [
        neurons.unroll,
        neurons.mean_output,
        unrolled_train,
        lambda neuron, params, currents: resume(
            neuron, params, neurons.NeuronState(jnp.zeros(1)), currents
        ),
        lambda neuron, params, currents: neurons.closed_form(
            neurons.integrate_and_fire(), params, currents[0], 4
        ),
    ],
)
def test_currents_of_whole_numbers_are_refused(run):
    """Spikes of a threshold of 1/2 would all be 0 in their type."""
    neuron = neurons.integrate_and_fire(threshold=0.5)
    with pytest.raises(ValueError, match="dtype int32; allowed: floating point"):
        run(neuron, neuron.init(), jnp.ones((4, 1), jnp.int32))


@pytest.mark.parametrize("wait", [-1, 5, 1.0])
@pytest.mark.parametrize("run", [neurons.unroll, neurons.mean_output, unrolled_train])
def test_a_wait_outside_the_steps_is_refused(run, wait):
    neuron = neurons.integrate_and_fire()
    with pytest.raises(ValueError, match="wait is .*; allowed: .* to steps=4"):
        run(neuron, neuron.init(), jnp.ones((4, 1)), wait=wait)


def test_a_model_is_a_value():
    build = neurons.lif
    assert build(leak=0.5) == build(leak=jnp.float32(0.5))
    assert hash(build()) == hash(build(leak=np.float64(0.5)))
    assert build() != build(reset="zero") != neurons.integrate_and_fire(reset="zero")


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@hypothesis.given(cases(leaks=(None, 0.5)))
def test_a_surrogate_changes_no_spike(reset, case):
    neuron, params, currents = case.site()
    neuron = build_lif(reset=reset)
    trained = neurons.WithSurrogate(neuron, surrogate.arctan, detach_reset=True)
    spikes = neurons.unroll(neuron, params, currents)
    np.testing.assert_array_equal(neurons.unroll(trained, params, currents), spikes)


@pytest.mark.parametrize("steps", [50000])
def test_the_pace_of_many_steps_does_not_overflow(steps):
    neuron = neurons.integrate_and_fire()
    mean, pace = neurons.mean_and_pace(neuron, neuron.init(), jnp.ones((steps, 1)))
    np.testing.assert_allclose([mean[0], pace[0]], 1, rtol=1e-3)
