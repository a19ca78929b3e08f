"""Calibrators: their formulas against the oracle, and the error that each lowers."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import strategies as st

import snnjax
from snnjax.calibrators import formulas
from snnjax.calibrators import sample as sample_of_site
from snnjax.calibrators import thresholds_and_potentials as calibrate
from snnjax.calibrators import weights_least_squares as solve
from snnjax.calibrators.view import Fit, View
from snnjax.calibrators.weights_adam import calibrate_weights
from snnjax.network import Site
from snnjax.neurons import (
    closed_form,
    integrate_and_fire,
    mean_and_pace,
    unroll,
)

STEPS = 4
SITE = Site("hidden/relu", "relu", (3, 2), ("hidden",), 1, jnp.float32)
NEURON = integrate_and_fire()
half = {"floor": 0.0, "round": 0.5}

seeds = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=8)
compiled_output = jax.jit(mean_and_pace, static_argnames=("neuron", "wait"))
compiled_search = jax.jit(
    formulas.least_squares, static_argnames=("steps", "per", "objective")
)


def activations(seed, shape=(6, 3, 2)):
    """ReLU of Gaussian numbers, channels of different size."""
    numbers = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(
        np.maximum(numbers * np.arange(1, shape[-1] + 1), 0), jnp.float32
    )


def view(seed, wait=0):
    """A site of [3, 2] neurons, fed by a kernel from random spikes of STEPS steps."""
    generator = np.random.default_rng(seed)
    sources = generator.integers(0, 2, (STEPS, 8, 3, 5)).astype(np.float32)
    kernel = jnp.asarray(generator.normal(size=(5, 2)), jnp.float32)
    noise = generator.normal(size=(8, 3, 2)).astype(np.float32)
    target = jax.nn.relu(sources.mean(0) @ kernel + 0.2 * noise)

    def currents(weights):
        return sources @ weights["hidden"]

    def feed(batch, time, every):
        del batch
        chosen = sources[:, ::every]
        return _current, chosen if time else chosen.mean(0)

    here = ArrayView(target, currents, feed, wait=wait)
    fresh = NEURON.init()._replace(threshold=jnp.maximum(target.max(), 0.1))
    return here, Fit(fresh, {"hidden": kernel})


class ArrayView(View):
    """A view of arrays; ``currents(weights)`` gives [T, B, ...] of all images."""

    def __init__(self, target, currents=None, feed=None, *, site=SITE, wait=0, **more):
        activations = target if isinstance(target, list) else [target]
        super().__init__(site, steps=STEPS, wait=wait, activations=activations, **more)
        self.currents_of, self.feed_of = currents, feed

    def currents(self, weights):
        start, all_of_them = 0, self.currents_of(weights)
        for activation in self.activations:
            part = all_of_them[:, start : start + len(activation)]
            start += len(activation)
            yield part.mean(0) if self.wait == self.steps else part

    def feed(self, batch, time, every=1):
        return self.feed_of(batch, time, every)


def _current(weights, sources, rows):
    if rows is not None:
        sources = jnp.take(sources, rows, sources.ndim - 3)
    return sources @ weights[0]


# ----------------------------------------------------------------- formulas


@hypothesis.given(seeds)
def test_maximum_is_the_oracles(seed):
    a = activations(seed)
    layer, channel = (formulas.maximum(a, per) for per in ("layer", "channel"))
    assert layer == reference.max_threshold(np.asarray(a))
    expected = reference.per_channel(reference.max_threshold, np.asarray(a))
    np.testing.assert_array_equal(channel, expected)


@pytest.mark.parametrize("p", [50.0, 90.0, 99.9, 100.0])
def test_percentile_is_the_oracles(p):
    a = activations(1) + 0.1
    expected = reference.percentile_threshold(np.asarray(a), p)
    assert formulas.percentile(a, p) == pytest.approx(expected, rel=1e-5)
    expected = reference.per_channel(
        lambda c: reference.percentile_threshold(c, p), np.asarray(a)
    )
    found = formulas.percentile(a, p, "channel")
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("objective", ["floor", "round"])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_least_squares_is_the_oracles(steps, objective):
    a = activations(steps)

    def oracle(a):
        return reference.least_squares_threshold(a, steps, half[objective])

    numbers = np.asarray(a, np.float64)
    layer = formulas.least_squares(a, steps, objective=objective)
    assert layer == pytest.approx(oracle(numbers), rel=1e-5)
    channel = formulas.least_squares(a, steps, "channel", objective)
    expected = reference.per_channel(oracle, numbers)
    np.testing.assert_allclose(channel, expected, rtol=1e-5)


@pytest.mark.parametrize("objective", ["floor", "round"])
@pytest.mark.parametrize("prior", [1, 16])
@pytest.mark.parametrize("steps", [4, 256])
def test_least_squares_with_a_prior_is_the_oracles(steps, prior, objective):
    a = activations(steps, (12, 3, 4)).at[..., 0].set(0)
    found = formulas.least_squares(a, steps, "channel", objective, prior=prior)
    numbers = np.asarray(a, np.float64).reshape(-1, 4)
    expected = reference.expected_threshold(numbers, steps, prior, half[objective])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "activation, prior, scale, excess",
    [
        # s is the mean of the active samples; M - m is 1 and 4.
        ([[1, 2], [2, 3], [3, 7]], 0, [2, 4], [0, 0]),
        # Three samples more, of the layer's mean 3: (6 + 9) / 6 and (12 + 9) / 6.
        ([[1, 2], [2, 3], [3, 7]], 3, [2.5, 3.5], [2.5 * 5 / 6, 3.5 * 5 / 6]),
        # A maximum that occurs twice is a bound; a silent channel is like the layer.
        ([[0, 1], [0, 4], [0, 4]], 3, [3, 3], [0, 0]),
        # A silent layer.
        ([[0, 0], [0, 0], [0, 0]], 3, [1, 1], [0, 0]),
    ],
)
def test_what_is_expected_of_new_activations(activation, prior, scale, excess):
    found = formulas.expected(jnp.asarray(activation, jnp.float32), "channel", prior)
    np.testing.assert_allclose(found.scale, scale)
    np.testing.assert_allclose(found.excess, excess)


@pytest.mark.parametrize("threshold", [1.0, 2.0, 2.5, 4.0])
def test_the_unseen_error_is_that_of_a_sample_beyond_the_largest(threshold):
    tail = formulas.Expected(*map(jnp.asarray, (2.0, 1.0, 0.5, 9.0)))
    sample = 2 + np.random.default_rng(0).exponential(0.5, 10**6)
    clipped = np.maximum(sample - max(threshold, 2), 0)
    found = formulas.unseen_error(jnp.asarray(threshold), tail)
    assert found == pytest.approx((clipped**2).mean(), rel=0.03)


def test_among_thousands_of_samples_a_prior_does_not_count():
    a = activations(0, (16, 40, 40, 8))
    few, many = (
        [formulas.least_squares(part, STEPS, "channel", prior=k) for k in (0, 16)]
        for part in (a[:1, :4, :4], a)
    )
    assert (few[0] != few[1]).any()
    np.testing.assert_allclose(many[1], many[0], rtol=0.011)  # one candidate, or none


@pytest.mark.parametrize("steps, above", [(2, False), (256, True)])
def test_few_samples_and_many_steps_put_thresholds_above_the_largest(steps, above):
    a = activations(0, (16, 8))
    found = formulas.least_squares(a, steps, "channel", "round", prior=16)
    assert (found > a.max(0)).all() == above
    clipped = jnp.minimum(a, 0.5)  # each channel reaches it twice: nothing is beyond
    found = formulas.least_squares(clipped, steps, "channel", "round", prior=16)
    assert (found <= 0.5).all()


@few
@hypothesis.given(seeds, st.sampled_from([0, STEPS]))
def test_corrections_are_the_oracles(seed, wait):
    here, fit = view(seed, wait)
    a, s = np.asarray(here.activation), np.asarray(here.output(fit))
    before = fit.neurons
    bias = calibrate.correct_bias()(here, fit).neurons.bias
    lacking = reference.bias_correction(a, s)
    np.testing.assert_allclose(bias - before.bias, lacking, atol=1e-6)
    charge = calibrate.correct_potential()(here, fit).neurons.initial_potential
    lacking = reference.potential_correction(a, s, STEPS)
    np.testing.assert_allclose(charge - before.initial_potential, lacking, atol=1e-5)
    shifted = calibrate.shift_bias()(here, fit).neurons.bias
    expected = reference.bias_shift(before.threshold, STEPS)
    np.testing.assert_allclose(shifted - before.bias, expected, rtol=1e-6)


# ------------------------------------------------- the error that each lowers


@few
@hypothesis.given(seeds, st.sampled_from([1, 4, 16]), st.sampled_from(list(half)))
def test_least_squares_has_no_larger_error_than_the_maximum(seed, steps, objective):
    a = activations(seed)
    numbers = np.asarray(a, np.float64)
    errors = [
        reference.squared_error(numbers, steps, float(threshold), half[objective])
        for threshold in (
            compiled_search(a, steps, objective=objective),
            formulas.maximum(a),
        )
    ]
    assert errors[0] <= errors[1] + 1e-5


def test_shift_makes_the_expected_flooring_error_zero():
    """Activations uniform in [0, V_th]: the floor loses V_th / 2T, a shift none."""
    neuron = integrate_and_fire(threshold=2.0).init()
    a = jnp.linspace(0, 2, 8001).reshape(-1, 1)
    floor = (a - closed_form(NEURON, neuron, a, STEPS)).mean()
    here, fit = view(0)
    shifted = calibrate.shift_bias()(here, fit._replace(neurons=neuron)).neurons
    assert floor == pytest.approx(reference.bias_shift(2.0, STEPS), rel=1e-2)
    assert (a - closed_form(NEURON, shifted, a, STEPS)).mean() == pytest.approx(
        0, abs=1e-3
    )


def test_half_charge_equals_the_shift_once_all_input_is_in():
    here, fit = view(0)
    charged = calibrate.half_charge()(here, fit).neurons
    shifted = calibrate.shift_bias()(here, fit).neurons
    assert charged.initial_potential == STEPS * shifted.bias
    current = jnp.linspace(-1, 3, 50).reshape(-1, 1)
    np.testing.assert_array_equal(
        closed_form(NEURON, charged, current, STEPS),
        closed_form(NEURON, shifted, current, STEPS),
    )


@pytest.mark.parametrize("wait", [0, 1, STEPS])
def test_bias_correction_lowers_the_mean_error_of_the_channels(wait):
    """Of most sites: a spike more or less can make one of them worse."""
    found = []
    for seed in range(20):
        here, fit = view(seed, wait)
        fit = calibrate.shift_bias()(here, fit)
        once, thrice = (calibrate.correct_bias(n)(here, fit) for n in (1, 3))
        assert once.neurons.bias.shape == (2,)
        lacking = [
            reference.bias_correction(here.activation, here.output(f))
            for f in (fit, once, thrice)
        ]
        found.append([np.abs(error).sum() for error in lacking])
    before, once, thrice = np.mean(found, 0)

    assert once < 0.8 * before
    assert thrice < 0.8 * before


@few
@hypothesis.given(seeds, st.sampled_from([0, 1, STEPS]))
def test_potential_correction_lowers_the_mean_error_of_the_neurons(seed, wait):
    here, fit = view(seed, wait)

    def error(fit):
        lacking = (here.activation - here.output(fit)).mean(0)
        return jnp.abs(lacking).sum()

    corrected = calibrate.correct_potential()(here, fit)
    assert error(corrected) <= error(fit) + 1e-6
    assert corrected.neurons.initial_potential.shape == SITE.shape


@pytest.mark.parametrize("c", [0.5, jnp.array([0.0, 2.0])])
def test_a_postponed_charge_arrives_by_the_last_step(c):
    here, fit = view(0)
    charged = calibrate.half_charge()(here, fit).neurons
    later = formulas.postpone(charged, c, STEPS)
    waiting = charged.initial_potential - later.initial_potential
    np.testing.assert_allclose(waiting, c * charged.threshold)
    current = jax.random.normal(jax.random.key(0), (50, 3, 2))
    np.testing.assert_allclose(  # with all its input the neuron knows no difference
        closed_form(NEURON, later, current, STEPS),
        closed_form(NEURON, charged, current, STEPS),
    )


def test_scaling_a_neuron_is_scaling_its_current():
    here, fit = view(0)
    neuron = formulas.postpone(fit.neurons, 0.5, STEPS)
    currents = jax.random.normal(jax.random.key(0), (STEPS, 5, 3, 2))
    larger, _ = compiled_output(NEURON, formulas.scale(neuron, 2.0), 2 * currents)
    usual, _ = compiled_output(NEURON, neuron, currents)
    np.testing.assert_array_equal(larger, 2 * usual)


def early_evidence():
    """A site whose input at first excites and later inhibits: its ANN is silent."""
    excited, balanced = jnp.array([2.0, 2.0, -2.0, -2.0]), jnp.full(STEPS, 0.6)
    currents = jnp.stack([excited, balanced], -1)[:, None, None].repeat(8, 1)
    currents = jnp.broadcast_to(currents, (STEPS, 8, 3, 2))
    target = jax.nn.relu(currents.mean(0))
    return ArrayView(target, lambda _: currents), Fit(NEURON.init(), {})


def test_charge_is_postponed_where_evidence_is_taken_back():
    here, fit = early_evidence()
    assert here.output(fit)[..., 0].min() > 0  # it fires, and cannot undo it
    waiting = calibrate.postpone_charge((0, 1, 2, 4))(here, fit)
    assert waiting.neurons.initial_potential.shape == (2,)
    corrected = calibrate.correct_potential(3)
    before, after = (
        ((here.activation - here.output(corrected(here, f))) ** 2).mean((0, 1))
        for f in (fit, waiting)
    )
    assert (after <= before).all()
    assert waiting.neurons.initial_potential[0] < 0


def test_of_the_same_spikes_those_are_chosen_that_come_evenly():
    currents = jnp.full((STEPS, 8, 3, 2), 0.5)
    here = ArrayView(currents[0], lambda _: currents)
    fit = Fit(NEURON.init()._replace(initial_potential=jnp.asarray(0.5)), {})
    for charge, pace in {0: 0.6, 1: 0.4, 2: 0.3}.items():  # two spikes, later and later
        later = fit._replace(neurons=formulas.postpone(fit.neurons, charge, STEPS))
        mean, found = compiled_output(NEURON, later.neurons, currents)
        np.testing.assert_allclose(mean, 0.5)
        np.testing.assert_allclose(found, pace, rtol=1e-6)
    for weight, start in {0.1: -0.5, 0.0: 0.5}.items():  # of equals the least change
        search = calibrate.postpone_charge((2, 1, 0), pace=weight)
        chosen = search(here, fit).neurons.initial_potential
        np.testing.assert_allclose(chosen, start)


@pytest.mark.parametrize("scale", [1e-24, 1.0, 1e20])
def test_a_search_does_not_depend_on_the_scale_of_the_activations(scale):
    currents = jax.random.normal(jax.random.key(0), (STEPS, 40, 3, 2))

    def found(scale):
        scaled = currents * scale
        target = jax.nn.relu(currents).mean(0) * scale
        here = ArrayView(target, lambda _: scaled)
        fit = calibrate.least_squares_threshold()(here, Fit(NEURON.init(), {}))
        fit = calibrate.scale_threshold()(here, fit)
        return fit.neurons.threshold / scale

    np.testing.assert_allclose(found(scale), found(1.0), rtol=1e-5)


def test_a_search_leaves_a_silent_channel_as_it_is():
    silent = jnp.full((STEPS, 8, 3, 2), -1.0)
    here = ArrayView(jnp.zeros((8, 3, 2)), lambda _: silent)
    fit = Fit(NEURON.init(), {})
    for search in (calibrate.scale_threshold(), calibrate.postpone_charge((2, 1, 0))):
        found = search(here, fit).neurons
        np.testing.assert_array_equal(found.threshold, 1)
        np.testing.assert_array_equal(found.initial_potential, 0)


@few
@hypothesis.given(seeds, st.sampled_from([0, 1]))
@pytest.mark.parametrize(
    "search",
    [
        calibrate.postpone_charge((0, 0.5, 1), prior=0),
        calibrate.scale_threshold((0.8, 1, 1.3), prior=0),
    ],
)
def test_a_search_keeps_the_channel_as_it_is_or_lowers_its_error(search, seed, wait):
    here, fit = view(seed, wait)

    def error(fit):
        lacking = reference.bias_correction(here.activation, here.output(fit))
        neuron = fit.neurons._replace(bias=fit.neurons.bias + lacking)
        (currents,) = here.currents(fit.weights)
        pair = compiled_output(NEURON, neuron, currents, wait=wait)
        mean, early = (((here.activation - s) ** 2).mean((0, 1)) for s in pair)
        return mean + 0.1 * early

    assert (error(search(here, fit)) <= error(fit) + 1e-6).all()


@pytest.mark.parametrize(
    "shape, channel, samples, positions",
    [
        ((8, 8, 2), -1, 100, 10),  # of 10 images
        ((8, 8, 2), -1, 641, 64),
        ((2, 9, 7), -3, 1, 1),  # never none
        ((5,), -1, 1, 1),  # channels alone
    ],
)
def test_a_sample_is_the_same_positions_of_activations_spikes_and_weights(
    shape, channel, samples, positions, monkeypatch
):
    monkeypatch.setattr(sample_of_site, "SAMPLES", samples)
    site = SITE._replace(shape=shape, channel=channel)
    a = np.random.default_rng(0).normal(size=(10, *shape)).astype(np.float32)
    weight = (np.abs(a).sum(channel, keepdims=True) > 1).astype(np.float32)
    options = {"effects": [weight[:7], weight[7:]], "site": site}
    here = ArrayView([a[:7], a[7:]], lambda _: np.stack([a] * STEPS), **options)
    sample = here.sample
    assert sample.activation.shape == (10 * positions, shape[channel])
    for spikes in here.sample_currents({}):
        np.testing.assert_array_equal(spikes, sample.activation)
    expected = np.abs(sample.activation).sum(1, keepdims=True) > 1
    np.testing.assert_array_equal(sample.weight, expected)
    assert set(np.asarray(sample.activation).flat) <= set(a.flat)
    counted = np.where(weight > 0, a, 0)  # the extremes are those of all positions
    axes = tuple(axis for axis in range(a.ndim) if axis != a.ndim + channel)
    np.testing.assert_allclose(sample.highest, counted.max(axes))
    np.testing.assert_allclose(sample.lowest, counted.min(axes))
    halves = sample.peaks(jnp.float32(0.5))
    sizes = np.where(weight > 0, np.abs(a - 0.5), 0).max(axes)
    np.testing.assert_allclose(np.ravel(halves), sizes, rtol=1e-6)


def test_a_sample_of_many_steps_has_fewer_positions(monkeypatch):
    monkeypatch.setattr(sample_of_site, "_SAMPLE_BYTES", 4 * (STEPS + 3) * 20 * 2)
    a = jnp.ones((10, 3, 2))
    here = ArrayView(a, lambda _: jnp.stack([a] * STEPS))
    assert here.sample.activation.shape == (20, 2)
    assert here.sample_currents({}).shape == (STEPS, 20, 2)


def test_with_wait_T_the_time_of_a_charge_does_not_count():
    here, fit = view(0, STEPS)
    assert calibrate.postpone_charge()(here, fit) is fit


@pytest.mark.parametrize("wait", [0, 1, STEPS])
def test_streaming_only_means_without_wait(wait):
    here, fit = view(0, wait)
    charged = calibrate.streaming_only(calibrate.half_charge())(here, fit)
    assert (charged is fit) == (wait > 0)


def test_potential_correction_adds_to_the_charge_that_is_there():
    here, fit = view(0)
    charged = calibrate.half_charge()(here, fit)
    lacking = here.activation - here.output(charged)
    expected = charged.neurons.initial_potential + STEPS * lacking.mean(0)
    corrected = calibrate.correct_potential()(here, charged)
    np.testing.assert_allclose(corrected.neurons.initial_potential, expected, rtol=1e-5)


@pytest.mark.parametrize("objective", ["floor", "neuron", "spikes"])
@pytest.mark.parametrize("wait", [0, STEPS])
def test_weight_calibration_lowers_its_objective(objective, wait):
    here, fit = view(0, wait)
    fit = calibrate.correct_bias()(here, fit)

    def error(weights):
        time = objective == "spikes" and wait < STEPS
        current, sources = here.feed(8, time)
        into = current([weights["hidden"]], sources, np.arange(8))
        if time:
            output = unroll(NEURON, fit.neurons, into).mean(0)
        else:
            neuron = fit.neurons
            if objective == "floor":
                zero = jnp.zeros(())
                neuron = neuron._replace(bias=zero, initial_potential=zero)
            output = closed_form(NEURON, neuron, into, STEPS)
        return ((here.activation - output) ** 2).sum(-1).mean()

    calibrated = calibrate_weights(
        objective, iterations=40, learning_rate=0.02, batch=8
    )(here, fit)
    assert error(calibrated.weights) < error(fit.weights)
    assert calibrated.neurons is fit.neurons


def test_weight_calibration_is_reproducible_and_depends_on_its_seed():
    here, fit = view(0)
    found = [
        calibrate_weights(iterations=5, learning_rate=0.01, batch=2, seed=seed)(
            here, fit
        ).weights["hidden"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert jnp.any(found[0] != found[2])


def noisy(seed, images=64):
    """A site whose spikes are those of a hidden cause, and noise that is alike."""
    generator = np.random.default_rng(seed)
    cause = generator.normal(size=(images, 3, 4))
    spikes = cause @ generator.normal(size=(4, 5))
    kernel = generator.normal(size=(5, 2))
    target = np.maximum(spikes @ kernel, 0)
    spikes = spikes + generator.normal(size=spikes.shape) * [0.1, 0.3, 1.0, 0.1, 0.3]
    arrays = (jnp.asarray(a, jnp.float32) for a in (target, spikes, kernel))
    return tuple(arrays)


def search_view(target, spikes, **changes):
    def feed(batch, time, every):
        return _current, spikes[::every]

    return ArrayView(target, **{"feed": feed} | changes)


@pytest.mark.parametrize("damping", [0.1, 3.0])
def test_weights_by_conjugate_gradients_solve_the_normal_equations(damping):
    target, spikes, kernel = noisy(0)
    layer = solve._Layer(_current, (kernel.dtype,), (True,))
    data = (kernel,), spikes, target, damping
    problem, search, ridge = solve._begin(layer, *data, None, -1, True)
    for _ in range(30):
        search = solve._iterate(layer, problem, search, ridge)
    fitted = np.arange(len(target)) % 4 != 3
    numbers = (np.asarray(a, np.float64) for a in (target, spikes, kernel))
    expected = reference.least_squares_weights(*numbers, damping, fitted)
    np.testing.assert_allclose(kernel + search.step[0], expected, atol=2e-4)
    moved = _current([kernel + search.step[0]], spikes, None)
    np.testing.assert_allclose(search.current * problem.scale, moved, atol=1e-4)


def distance(target, spikes, kernel):
    """Of the current from the activation, up to a constant, where it counts."""
    current = spikes @ kernel
    lacking = jnp.where((target > 0) | (current > 0), target - current, 0)
    return float(((lacking - lacking.mean((0, 1))) ** 2).mean())


@hypothesis.given(seeds)
@few
def test_least_squares_weights_bring_the_current_nearer_on_other_images(seed):
    target, spikes, kernel = noisy(seed, 512)
    here = search_view(target[:256], spikes[:256])
    fit = Fit(NEURON.init(), {"hidden": kernel})
    found = solve.least_squares_weights()(here, fit)
    assert found.neurons is fit.neurons
    unseen = target[256:], spikes[256:]
    assert distance(*unseen, found.weights["hidden"]) < distance(*unseen, kernel)


@pytest.mark.parametrize("dtype, scale", [(jnp.float32, 1e9), (jnp.float16, 300)])
def test_weights_do_not_depend_on_the_scale_of_the_spikes(dtype, scale):
    target, spikes, kernel = noisy(0)
    kernel = kernel.astype(dtype)

    def fitted(scale):
        scaled = (target * scale).astype(dtype), (spikes * scale).astype(dtype)
        fit = Fit(NEURON.init(), {"hidden": kernel})
        found = solve.least_squares_weights()(search_view(*scaled), fit)
        return found.weights["hidden"]

    assert jnp.any(fitted(1) != kernel)
    np.testing.assert_allclose(fitted(scale), fitted(1), rtol=1e-2, atol=1e-3)


def test_weights_of_float16_are_fitted_to_many_positions_too():
    target, spikes, kernel = noisy(0, 2**17)

    def fitted(dtype):
        here = search_view(target.astype(dtype), spikes.astype(dtype))
        fit = Fit(NEURON.init(), {"hidden": kernel.astype(dtype)})
        found = solve.least_squares_weights(samples=2**20)(here, fit)
        return found.weights["hidden"].astype(jnp.float32)

    change = jnp.abs(fitted(jnp.float32) - kernel).max()
    off = jnp.abs(fitted(jnp.float16) - fitted(jnp.float32)).max()
    assert off < 0.015 * change


def test_pruned_weights_stay_pruned():
    target, spikes, kernel = noisy(0)
    pruned = kernel.at[1].set(0)
    here = search_view(target, spikes)
    found = solve.least_squares_weights()(here, Fit(NEURON.init(), {"hidden": pruned}))
    new = found.weights["hidden"]
    np.testing.assert_array_equal(new == 0, pruned == 0)
    assert jnp.all(new[0] != pruned[0])


@pytest.mark.parametrize(
    "calibrate",
    [solve.least_squares_weights(), snnjax.calibrators.calibrate_weights(iterations=3)],
    ids=["least squares", "descent"],
)
def test_the_gradient_takes_the_change_of_weights_as_a_constant(calibrate):
    target, spikes, kernel = noisy(0)
    here, neuron = search_view(target, spikes), NEURON.init()

    def fitted(kernel):
        return calibrate(here, Fit(neuron, {"hidden": kernel})).weights["hidden"].sum()

    np.testing.assert_array_equal(jax.grad(fitted)(kernel), 1)
    np.testing.assert_array_equal(jax.jit(jax.grad(fitted))(kernel), 1)


def test_spikes_without_error_leave_the_weights_as_they_are():
    _, spikes, kernel = noisy(0)
    here = search_view(jax.nn.relu(spikes @ kernel), spikes)
    found = solve.least_squares_weights()(here, Fit(NEURON.init(), {"hidden": kernel}))
    np.testing.assert_array_equal(found.weights["hidden"], kernel)


def test_what_saturates_does_not_draw_weights_down():
    _, spikes, kernel = noisy(0)
    clipped = jnp.clip(spikes @ kernel, 0, 0.5)
    found = solve.least_squares_weights()(
        search_view(clipped, spikes), Fit(NEURON.init(), {"hidden": kernel})
    )
    np.testing.assert_array_equal(found.weights["hidden"], kernel)


def test_shared_weights_stay_while_the_others_are_fitted():
    target, spikes, kernel = noisy(0)
    both = {"hidden": kernel / 2, "tied": kernel / 2}

    def current(weights, sources, rows):
        return sources @ (weights[0] + weights[1])

    here = search_view(
        target,
        spikes,
        shared=frozenset({"tied"}),
        feed=lambda batch, time, every: (current, spikes[::every]),
    )
    found = solve.least_squares_weights()(here, Fit(NEURON.init(), both)).weights
    assert found["tied"] is both["tied"]
    assert jnp.any(found["hidden"] != both["hidden"])


def test_weights_keep_their_type_and_are_searched_for_in_float32():
    target, spikes, kernel = noisy(2)
    here = search_view(target, spikes)

    def found(kernel):
        fit = Fit(NEURON.init(), {"hidden": kernel})
        return solve.least_squares_weights()(here, fit).weights["hidden"]

    half = found(kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, found(kernel), rtol=0.05, atol=0.02)


def test_a_kernel_that_its_network_normalizes_gets_no_worse():
    target, spikes, kernel = noisy(1)

    def current(weights, sources, rows):
        return 3 * sources @ (weights[0] / jnp.linalg.norm(weights[0]) ** 2)

    def error(weights):
        constant = jnp.linspace(-3, 3, 61)[:, None, None, None]
        output = jax.nn.relu(current(weights, spikes, None) + constant)
        return float(((target - output)[:, 3::4] ** 2).mean((1, 2)).min(0).sum())

    here = search_view(target, spikes, feed=lambda *_: (current, spikes))
    fit = Fit(NEURON.init(), {"hidden": kernel})
    found = solve.least_squares_weights(damping=1e-3)(here, fit)
    assert error([found.weights["hidden"]]) <= 1.05 * error([kernel])


@pytest.mark.parametrize(
    "count, samples, fewest, expected",
    [(256, 96, 32, 8), (256, 96, 128, 2), (256, 10**6, 32, 1), (16, 3, 32, 1)],
)
def test_images_are_left_out_when_fewer_give_the_samples(
    count, samples, fewest, expected
):
    here = ArrayView([jnp.zeros((count // 2, *SITE.shape))] * 2)
    assert here.spacing(samples, fewest) == expected


# --------------------------------------------------------------- edge cases


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_thresholds_are_positive_even_where_nothing_is_active(per):
    silent, half_silent = jnp.zeros((4, 2)), jnp.array([[3.0, 0.0], [1.0, 0.0]])
    for find in (
        formulas.maximum,
        lambda a, per: formulas.percentile(a, 10.0, per),
        lambda a, per: formulas.least_squares(a, STEPS, per),
    ):
        assert (find(silent, per) > 0).all()
        assert (find(half_silent, per) > 0).all()
    np.testing.assert_array_equal(formulas.maximum(silent, per), 1)


def test_a_bfloat16_search_is_as_good_as_a_float32_one():
    a = activations(0, (64, 8, 8, 16)).astype(jnp.bfloat16)
    for steps in (4, 16, 64):
        found = formulas.least_squares(a, steps)
        expected = formulas.least_squares(a.astype(jnp.float32), steps)
        assert float(found) == pytest.approx(float(expected), rel=5e-3)


def test_neuron_parameters_are_float32_in_a_bfloat16_network():
    a = activations(0).astype(jnp.bfloat16)
    assert formulas.maximum(a).dtype == jnp.float32
    here = ArrayView(a, lambda weights: jnp.stack([a] * STEPS), site=SITE)
    fit = Fit(NEURON.init(), {})
    for calibrator in (calibrate.correct_bias(), calibrate.correct_potential()):
        for leaf in jax.tree.leaves(calibrator(here, fit).neurons):
            assert leaf.dtype == np.float32


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: calibrate.max_threshold("image"), "per is 'image'; allowed: 'layer'"),
        (lambda: snnjax.light("neuron"), "per is 'neuron'"),
        (lambda: snnjax.percentile(0.999), "p is 0.999; allowed: 1 < p <= 100"),
        (lambda: snnjax.percentile(101), "p is 101"),
        (lambda: snnjax.percentile("99"), "p is '99'; allowed: 1 < p <= 100"),
        (lambda: snnjax.light(objective="ceil"), "objective is 'ceil'; allowed"),
        (lambda: calibrate_weights("rate"), "'floor', 'neuron', 'spikes'"),
        (lambda: solve.least_squares_weights(damping=0), "damping is 0; allowed: > 0"),
        (lambda: solve.least_squares_weights(samples=0), "samples is 0; allowed: a"),
        (lambda: calibrate_weights(batch=0), "batch is 0; allowed: a whole number"),
        (
            lambda: calibrate_weights(learning_rate=np.inf),
            "learning_rate is inf; allowed: > 0, and fin",
        ),
        (
            lambda: snnjax.advanced(iterations=2.5),
            "iterations is 2.5; allowed: a whole",
        ),
        (
            lambda: calibrate.correct_potential(0),
            "repeats is 0; allowed: a whole number",
        ),
        (lambda: calibrate.postpone_charge(()), r"charges is \(\); allowed: one"),
        (lambda: calibrate.postpone_charge(1.0), r"charges is 1.0; allowed: one"),
        (lambda: calibrate.postpone_charge(pace=-1), "pace is -1; allowed: a finite"),
        (lambda: calibrate.scale_threshold(pace="0"), "pace is '0'; allowed: a finite"),
        (lambda: calibrate.streaming_only((1,)), r"\(1,\) does not take \(view, fit\)"),
        (
            lambda: calibrate.streaming_only(calibrate.scale_threshold),
            "those of snnjax are called in a recipe, e.g. snnjax.cal.*max_threshold",
        ),
        (
            lambda: calibrate.scale_threshold(prior=-1),
            "prior is -1; allowed: a whole number >= 0",
        ),
        (
            lambda: calibrate.least_squares_threshold(prior=0.5),
            "prior is 0.5; allowed: a whole number",
        ),
        (lambda: calibrate.postpone_charge(["1"]), r"\['1'\]; allowed: one finite"),
        (lambda: calibrate.postpone_charge([1j]), "1j.*; allowed: one finite number"),
        (lambda: calibrate.scale_threshold([[1], [1, 2]]), "allowed: one finite"),
        (
            lambda: calibrate_weights(seed=-1),
            "seed is -1; allowed: a whole number >= 0",
        ),
        (lambda: calibrate_weights(surrogate="dspike"), "surrogate is 'dspike'; all"),
        (
            lambda: calibrate.postpone_charge((np.inf,)),
            "allowed: one finite number or more",
        ),
        (
            lambda: calibrate.scale_threshold((1, 0)),
            "a factor is 0; allowed: > 0",
        ),
    ],
)
def test_a_wrong_option_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
