"""Calibrators: their formulas against the oracle, and the error that each lowers."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import strategies as st
from networks import outputs_of

import snnjax
from snnjax import _arrays
from snnjax import calibrators as calibrate
from snnjax.calibrators import formulas
from snnjax.calibrators import sample as sample_of_site
from snnjax.calibrators import weights_least_squares as solve
from snnjax.calibrators.unseen import clipped_error
from snnjax.calibrators.view import Dynamics, Fit, Target, View
from snnjax.network import Site
from snnjax.neurons import closed_form, integrate_and_fire
from snnjax.neurons.unroll import mean_and_pace

STEPS = 4
SITE = Site("hidden/relu", "relu", (3, 2), ("hidden",), 1, jnp.float32)
NEURON = integrate_and_fire()

seeds = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=8)
compiled_output = jax.jit(mean_and_pace, static_argnames=("neuron", "wait"))
compiled_form = jax.jit(closed_form, static_argnums=(0, 3))


def fresh_neurons(**parameters):
    """Parameters of IF neurons in NumPy, as a calibrator gets them."""
    return jax.device_get(NEURON.init())._replace(**parameters)


def activations(seed, shape=(6, 3, 2)):
    """ReLU of Gaussian numbers, channels of different size."""
    numbers = np.random.default_rng(seed).normal(size=shape)
    return np.float32(np.maximum(numbers * np.arange(1, shape[-1] + 1), 0))


def view(seed, wait=0, images=8):
    """A site of [3, 2] neurons, fed by a kernel from random spikes of STEPS steps."""
    generator = np.random.default_rng(seed)
    sources = generator.integers(0, 2, (STEPS, images, 3, 5)).astype(np.float32)
    kernel = np.float32(generator.normal(size=(5, 2)))
    noise = np.float32(generator.normal(size=(images, 3, 2)))
    target = np.maximum(sources.mean(0) @ kernel + np.float32(0.2) * noise, 0)

    def currents(weights):
        return sources @ np.asarray(weights["hidden"])

    here = ArrayView(target, currents, wait=wait, sources=sources.mean(0))
    fresh = fresh_neurons(threshold=np.maximum(target.max(), np.float32(0.1)))
    return here, Fit(fresh, {"hidden": jnp.asarray(kernel)})


class ArrayView(View):
    """A view of arrays; ``currents_of(weights)`` gives [T, N, ...]."""

    def __init__(
        self, target, currents_of=None, *, sources=None, current=None, **options
    ):
        site, wait = options.pop("site", SITE), options.pop("wait", 0)
        code = snnjax.codes.rate()
        run = NEURON, STEPS, wait, code, len(site.shape), wait < STEPS
        super().__init__(site, Dynamics(*run), [target], **options)
        self.currents_of, self.sources = currents_of, sources
        self.current = current or _current

    def currents_by_batch(self, weights):
        currents = self.currents_of(weights)
        yield currents.mean(0) if self.wait == self.steps else currents

    def feed(self, stride=1):
        return self.current, self.sources[::stride]


def _current(weights, sources, rows):
    return (sources if rows is None else sources[rows]) @ weights[0]


# ----------------------------------------------------------------- formulas


BOTH = "layer", "channel"
# Formula, its oracle, and the options that both take.
THRESHOLDS = [(formulas.maximum, reference.max_threshold, {})]
THRESHOLDS += [
    (formulas.percentile, reference.percentile_threshold, {"p": p})
    for p in (50.0, 90.0, 99.9, 100.0)
]
THRESHOLDS += [
    (formulas.least_squares, reference.least_squares_threshold, options)
    for options in [{"steps": n, "shift": s} for n in (1, 4, 16) for s in (0.0, 0.5)]
]


@pytest.mark.parametrize("per", BOTH)
def test_thresholds_are_the_oracles(per):
    a = activations(4) + np.float32(0.1)
    runs = [functools.partial(f, per=per, **options) for f, _, options in THRESHOLDS]
    for result, (_, oracle, options) in zip(
        outputs_of(runs, a), THRESHOLDS, strict=True
    ):
        oracle, numbers = functools.partial(oracle, **options), np.float64(a)
        layer = per == "layer"
        expected = oracle(numbers) if layer else reference.per_channel(oracle, numbers)
        np.testing.assert_allclose(result, expected, rtol=1e-5, err_msg=str(options))


@few
@hypothesis.given(seeds, st.sampled_from([0, STEPS]), st.sampled_from([8, 64]))
def test_corrections_are_the_oracles(seed, wait, images):
    """With fewer images than are enough, a channel has one potential."""
    here, fit = view(seed, wait, images)
    fit = calibrate.half_charge()(here, fit)
    a, s = np.asarray(here.activation), np.asarray(here.output(fit))
    before = fit.neurons
    bias = calibrate.correct_bias()(here, fit).neurons.bias
    lacking = reference.bias_correction(a, s)
    np.testing.assert_allclose(bias - before.bias, lacking, atol=1e-6)
    charge = calibrate.correct_potential(enough=64)(here, fit)
    charge = charge.neurons.initial_potential
    lacking = reference.potential_correction(a, s, STEPS)
    if images < 64:
        lacking = STEPS * reference.bias_correction(a, s)
    np.testing.assert_allclose(charge - before.initial_potential, lacking, atol=1e-5)
    shifted = calibrate.shift_bias()(here, fit).neurons.bias
    expected = reference.bias_shift(before.threshold, STEPS)
    np.testing.assert_allclose(shifted - before.bias, expected, rtol=1e-6)


# ------------------------------------------------- the error that each lowers


def test_a_charge_that_comes_step_by_step_is_there_at_the_last_one():
    """With all of its input the neuron knows no difference."""
    here, fit = view(0)
    charged = calibrate.half_charge()(here, fit).neurons
    shifted = calibrate.shift_bias()(here, fit).neurons
    assert charged.initial_potential == STEPS * shifted.bias
    current = np.float32(np.random.default_rng(0).normal(size=(50, 3, 2)))
    expected = compiled_form(NEURON, charged, current, STEPS)
    np.testing.assert_array_equal(
        compiled_form(NEURON, shifted, current, STEPS), expected
    )
    for c in (0.5, np.array([0, 2], np.float32)):
        later = formulas.postpone(charged, c, STEPS)
        waiting = charged.initial_potential - np.asarray(later.initial_potential)
        np.testing.assert_allclose(waiting, c * charged.threshold)
        np.testing.assert_allclose(
            compiled_form(NEURON, later, current, STEPS), expected
        )


@pytest.mark.parametrize("wait", [0, 1, STEPS])
def test_corrections_lower_mean_errors(wait):
    """Of most sites: a spike more or less can make one of them worse."""
    errors = []
    for seed in range(20):
        here, fit = view(seed, wait)
        charged = calibrate.correct_potential()(here, fit)
        shifted = calibrate.shift_bias()(here, fit)
        once, thrice = (calibrate.correct_bias(n)(here, shifted) for n in (1, 3))
        assert once.neurons.bias.shape == (2,)
        assert charged.neurons.initial_potential.shape == SITE.shape
        outputs = (here.output(f) for f in (fit, charged, shifted, once, thrice))
        *pair, before, once, thrice = (here.activation - np.asarray(s) for s in outputs)
        of_neurons = [np.abs(missing.mean(0)).sum() for missing in pair]
        channels = (np.abs(m.mean((0, 1))).sum() for m in (before, once, thrice))
        errors.append([*of_neurons, *channels])
    plain, corrected, before, once, thrice = np.transpose(errors)
    for after, without in ((corrected, plain), (once, before), (thrice, before)):
        assert after.mean() < 0.8 * without.mean()
        assert np.mean(after <= without + 1e-6) > 0.9


def test_scaling_a_neuron_is_scaling_its_current():
    here, fit = view(0)
    currents = np.float32(np.random.default_rng(0).normal(size=(STEPS, 5, 3, 2)))

    neurons = formulas.postpone(fit.neurons, 0.5, STEPS)
    scaled = formulas.scale(neurons, 2.0)
    larger, _ = compiled_output(NEURON, scaled, 2 * currents)
    usual, _ = compiled_output(NEURON, neurons, currents)
    np.testing.assert_array_equal(larger, 2 * usual)


def test_a_calibrator_gives_parameters_of_neurons_in_numpy():
    """No program is compiled for a few numbers, and none waits for a device."""
    here, fit = view(0)
    chain = (
        calibrate.max_threshold("channel"),
        calibrate.percentile_threshold(99.0),
        calibrate.least_squares_threshold("channel"),
        calibrate.priced_threshold(0.01),
        calibrate.scale_threshold((1, 1.25)),
        calibrate.half_charge(),
        calibrate.shift_bias(),
        calibrate.postpone_charge((0, 1)),
        calibrate.correct_bias(),
        calibrate.correct_potential(),
    )
    for calibrator in chain:
        fit = calibrator(here, fit)
        for parameter in jax.tree.leaves(fit.neurons):
            assert isinstance(parameter, np.ndarray | np.generic), calibrator.__name__


def early_evidence():
    """A site whose input at first excites and later inhibits: its ANN is silent."""
    excited, balanced = [2.0, 2.0, -2.0, -2.0], [0.6] * STEPS
    currents = np.stack([excited, balanced], -1)[:, None, None].astype(np.float32)
    currents = np.broadcast_to(currents, (STEPS, 8, 3, 2))
    target = np.maximum(currents.mean(0), 0)
    return ArrayView(target, lambda _: currents), Fit(fresh_neurons(), {})


def test_charge_is_postponed_where_evidence_is_taken_back():
    here, fit = early_evidence()
    assert here.output(fit)[..., 0].min() > 0  # it fires, and cannot undo it
    waiting = calibrate.postpone_charge((0, 1, 2, 4))(here, fit)
    assert waiting.neurons.initial_potential.shape == (2,)
    corrected = calibrate.correct_potential(3)
    before, after = (
        np.square(here.activation - np.asarray(here.output(corrected(here, f)))).mean(
            (0, 1)
        )
        for f in (fit, waiting)
    )
    assert (after <= before).all()
    assert waiting.neurons.initial_potential[0] < 0


def test_of_the_same_spikes_those_are_chosen_that_come_evenly():
    currents = np.full((STEPS, 8, 3, 2), 0.5, np.float32)
    here = ArrayView(currents[0], lambda _: currents)
    fit = Fit(fresh_neurons(initial_potential=np.float32(0.5)), {})
    for charge, pace in {0: 0.6, 1: 0.4, 2: 0.3}.items():  # two spikes, later and later
        later = formulas.postpone(fit.neurons, charge, STEPS)
        mean, paces = compiled_output(NEURON, later, currents)
        np.testing.assert_allclose(mean, 0.5)
        np.testing.assert_allclose(paces, pace, rtol=1e-6)
    for weight, start in {0.1: -0.5, 0.0: 0.5}.items():  # of equals the least change
        search = calibrate.postpone_charge((2, 1, 0), pace=weight)
        potential = search(here, fit).neurons.initial_potential
        np.testing.assert_allclose(potential, start)


def test_a_search_does_not_depend_on_the_scale_of_the_activations():
    currents = np.float32(np.random.default_rng(0).normal(size=(STEPS, 40, 3, 2)))

    def threshold(scale):
        scale = np.float32(scale)
        target = np.maximum(currents, 0).mean(0) * scale
        here = ArrayView(target, lambda _: currents * scale)
        fit = calibrate.least_squares_threshold()(here, Fit(fresh_neurons(), {}))
        fit = calibrate.scale_threshold()(here, fit)
        return np.asarray(fit.neurons.threshold) / scale

    for scale in (1e-24, 1e20):
        np.testing.assert_allclose(threshold(scale), threshold(1), rtol=1e-5)


def test_a_search_leaves_a_silent_channel_as_it_is():
    silent = np.full((STEPS, 8, 3, 2), -1, np.float32)
    here = ArrayView(np.zeros((8, 3, 2), np.float32), lambda _: silent)
    fit = Fit(fresh_neurons(), {})
    for search in (calibrate.scale_threshold(), calibrate.postpone_charge((2, 1, 0))):
        neurons = search(here, fit).neurons
        np.testing.assert_array_equal(neurons.threshold, 1)
        np.testing.assert_array_equal(neurons.initial_potential, 0)


def test_a_search_per_layer_takes_the_factor_with_the_least_error_of_all_channels():
    factors, differ = (0.6, 0.8, 1, 1.3), False
    for seed in range(4):
        here, fit = view(seed)

        def error(threshold, here=here, fit=fit):
            """Of all channels, with the bias that corrects the mean of each."""
            neuron = fit.neurons._replace(threshold=threshold)
            lacking = here.activation - here.output(fit._replace(neurons=neuron))
            neuron = neuron._replace(bias=neuron.bias + lacking.mean((0, 1)))
            last = here.output(fit._replace(neurons=neuron))
            seen = float(((here.activation - last) ** 2).sum())
            caps = np.full((1, len(here.sample.highest)), threshold * here.high)
            return seen + float(clipped_error(here.sample.tail(None), caps).sum())

        layer, channel = (
            calibrate.scale_threshold(factors, pace=0, per=per)(here, fit).neurons
            for per in ("layer", "channel")
        )
        (result,) = {*np.ravel(layer.threshold).tolist()}
        candidates = [float(factor * fit.neurons.threshold) for factor in factors]
        assert result == pytest.approx(min(candidates, key=error))
        differ |= len({*np.ravel(channel.threshold).tolist()}) > 1
    assert differ


@few
@hypothesis.given(
    seeds,
    st.sampled_from(
        [
            (calibrate.postpone_charge((0, 0.5, 1)), 0),
            (calibrate.scale_threshold((0.8, 1, 1.3)), 0),
            (calibrate.scale_threshold((0.8, 1, 1.3)), 1),
        ]
    ),
)
def test_a_search_keeps_the_channel_as_it_is_or_lowers_its_error(seed, search_and_wait):
    search, wait = search_and_wait
    here, fit = view(seed, wait)

    def error(fit):
        output = np.asarray(here.output(fit))
        lacking = reference.bias_correction(here.activation, output)
        neuron = fit.neurons._replace(bias=np.asarray(fit.neurons.bias + lacking, "f4"))
        currents = here.currents(fit.weights)
        pair = compiled_output(NEURON, neuron, currents, wait=wait)
        mean, early = (
            np.square(here.activation - np.asarray(s)).mean((0, 1)) for s in pair
        )
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
    options = {"effects": [weight], "site": site}
    here = ArrayView(a, lambda _: np.stack([a] * STEPS), **options)
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
    halves = sample.maxima(jnp.float32(0.5))
    sizes = np.where(weight > 0, np.abs(a - 0.5), 0).max(axes)
    np.testing.assert_allclose(np.ravel(halves), sizes, rtol=1e-6)


def test_a_sample_of_many_steps_has_fewer_positions(monkeypatch):
    monkeypatch.setattr(sample_of_site, "_SAMPLE_BYTES", 4 * (STEPS + 3) * 20 * 2)
    a = np.ones((10, 3, 2), np.float32)
    here = ArrayView(a, lambda _: np.stack([a] * STEPS))
    assert here.sample.activation.shape == (20, 2)
    assert here.sample_currents({}).shape == (STEPS, 20, 2)


def test_charge_is_not_postponed_where_layers_wait_for_all_of_their_input():
    here, fit = view(0, wait=STEPS)
    assert calibrate.postpone_charge()(here, fit) is fit


@pytest.mark.parametrize("wait", [0, STEPS])
def test_weight_calibration_lowers_the_error_of_the_clip_floor(wait):
    """Of a neuron without the corrected bias, as in the paper."""
    here, fit = view(0, wait)
    fit = calibrate.correct_bias()(here, fit)

    def error(kernel):
        into = np.asarray(here.sources @ np.asarray(kernel), np.float64)
        threshold = float(fit.neurons.threshold)
        output = reference.clip_floor(into, STEPS, threshold)
        return ((here.activation - output) ** 2).sum(-1).mean()

    options = {"iterations": 40, "learning_rate": 0.02, "batch": 8}
    calibrated = calibrate.calibrate_weights(**options)(here, fit)
    assert error(calibrated.weights["hidden"]) < error(fit.weights["hidden"])
    assert calibrated.neurons is fit.neurons


def test_weight_calibration_is_reproducible_and_depends_on_its_seed():
    here, fit = view(0)
    options = {"iterations": 5, "learning_rate": 0.01, "batch": 2}
    first, again, other = (
        calibrate.calibrate_weights(**options, seed=seed)(here, fit).weights["hidden"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def noisy(seed, images=64):
    """A site whose spikes are those of a hidden cause, and noise that is alike."""
    generator = np.random.default_rng(seed)
    cause = generator.normal(size=(images, 3, 4))
    spikes = cause @ generator.normal(size=(4, 5))
    kernel = generator.normal(size=(5, 2))
    target = np.maximum(spikes @ kernel, 0)
    spikes = spikes + generator.normal(size=spikes.shape) * [0.1, 0.3, 1.0, 0.1, 0.3]
    target, spikes, kernel = map(np.float32, (target, spikes, kernel))
    return target, spikes, jnp.asarray(kernel)


def refitted(target, spikes, kernel, **options):
    """The kernel that `least_squares_weights` gives, in NumPy."""
    fit = Fit(fresh_neurons(), {"hidden": jnp.asarray(kernel)})
    here = ArrayView(target, sources=spikes)
    new = calibrate.least_squares_weights(**options)(here, fit)
    assert new.neurons is fit.neurons
    return np.asarray(new.weights["hidden"])


@pytest.mark.parametrize("damping", [0.1, 3.0])
def test_weights_by_conjugate_gradients_solve_the_normal_equations(damping):
    target, spikes, kernel = noisy(0)
    target, spikes = jnp.asarray(target), jnp.asarray(spikes)
    layer = solve._Layer(
        current=_current,
        dtypes=(kernel.dtype,),
        free=(True,),
        channel=-1,
        weights=(kernel,),
        sources=spikes,
    )
    aim = Target(("hidden",), _current, spikes, target, channel=-1)
    problem, search = solve._start(layer, aim, damping, True)
    for _ in range(30):
        search = solve._advance(layer, problem, search)
    fitted = np.arange(len(target)) % 4 != 3
    numbers = (np.asarray(a, np.float64) for a in (target, spikes, kernel))
    expected = reference.least_squares_weights(*numbers, damping, fitted)
    solution = np.asarray(kernel) + np.asarray(search.step[0])
    np.testing.assert_allclose(solution, expected, atol=2e-4)
    current = np.asarray(search.current.held_out) * np.asarray(problem.unit)
    expected = (np.asarray(spikes)[3::4] @ solution).reshape(current.shape)
    np.testing.assert_allclose(current, expected, atol=1e-4)


def test_numpy_and_xla_refit_the_same_weights_where_a_current_is_infinite(monkeypatch):
    """The logarithm of a sum that the SNN calls 0, at images that are left out."""

    def fn(params, x):
        h = jax.nn.relu(x @ params[0])
        small = jnp.log(h.sum(-1, keepdims=True) / 8)
        return jax.nn.relu(h @ params[1] + small) @ params[2]

    draw = np.random.default_rng(0)
    x = np.float32(draw.random((64, 6)))
    shapes = (6, 8), (8, 5), (5, 3)
    params = [np.float32(draw.normal(size=shape)) for shape in shapes]
    params[0] = abs(params[0])
    chain = calibrate.max_threshold(), calibrate.least_squares_weights()
    weights = []
    for of_numpy in (True, False):
        if not of_numpy:
            monkeypatch.setattr(_arrays, "is_on_host", lambda tree: False)
        snn = snnjax.convert(fn, params, x, steps=3, recipe=snnjax.Recipe(chain))
        weights.append(snn.params[1])
    assert abs(weights[0] - params[1]).max() > 0.01
    np.testing.assert_allclose(*weights, atol=1e-3)


def distance(target, spikes, kernel):
    """Of the current from the activation, up to a constant, where it counts."""
    current = spikes @ kernel
    lacking = np.where((target > 0) | (current > 0), target - current, 0)
    return float(((lacking - lacking.mean((0, 1))) ** 2).mean())


@hypothesis.given(seeds)
@few
def test_least_squares_weights_bring_the_current_nearer_on_other_images(seed):
    target, spikes, kernel = noisy(seed, 320)
    new = refitted(target[:64], spikes[:64], kernel)
    unseen = target[64:], spikes[64:]
    assert distance(*unseen, new) < distance(*unseen, np.asarray(kernel))


@pytest.mark.parametrize("dtype, scale", [(np.float32, 1e9), (np.float16, 300)])
def test_weights_do_not_depend_on_the_scale_of_the_spikes(dtype, scale):
    target, spikes, kernel = noisy(0)
    kernel = np.asarray(kernel, dtype)
    plain, scaled = (
        refitted((target * size).astype(dtype), (spikes * size).astype(dtype), kernel)
        for size in (1, scale)
    )
    assert np.any(plain != kernel)
    np.testing.assert_allclose(scaled, plain, rtol=1e-2, atol=1e-3)


def test_weights_of_float16_are_fitted_to_many_positions_too():
    target, spikes, kernel = noisy(0, 2**15)  # three positions each: beyond 65504
    options = {"samples": 2**20, "iterations": 2}
    half, exact = (
        refitted(*(np.asarray(a, d) for a in (target, spikes, kernel)), **options)
        for d in (np.float16, np.float32)
    )
    change = np.abs(exact - np.asarray(kernel)).max()
    assert np.abs(half - exact).max() < 0.015 * change


def test_pruned_weights_stay_pruned():
    target, spikes, kernel = noisy(0)
    pruned = np.array(kernel)
    pruned[1] = 0
    new = refitted(target, spikes, pruned)
    np.testing.assert_array_equal(new == 0, pruned == 0)
    assert np.all(new[0] != pruned[0])


def test_spikes_without_error_and_what_saturates_leave_the_weights_as_they_are():
    _, spikes, kernel = noisy(0)
    current = spikes @ np.asarray(kernel)
    for target in (np.maximum(current, 0), np.clip(current, 0, np.float32(0.5))):
        np.testing.assert_array_equal(refitted(target, spikes, kernel), kernel)


def test_shared_weights_stay_while_the_others_are_fitted():
    target, spikes, kernel = noisy(0)
    both = dict.fromkeys(("hidden", "tied"), jnp.asarray(np.asarray(kernel) / 2))

    def current(weights, sources, rows):
        return sources @ (weights[0] + weights[1])

    shared = {"tied": ["one", "another"]}
    here = ArrayView(target, sources=spikes, shared=shared, current=current)
    new = calibrate.least_squares_weights()(here, Fit(fresh_neurons(), both)).weights
    assert new["tied"] is both["tied"]
    assert np.any(np.asarray(new["hidden"]) != np.asarray(both["hidden"]))


def test_weights_keep_their_type_and_are_searched_for_in_float32():
    target, spikes, kernel = noisy(2)
    half = refitted(target, spikes, np.asarray(kernel, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    exact = refitted(target, spikes, kernel)
    np.testing.assert_allclose(np.float32(half), exact, rtol=0.05, atol=0.02)


def test_a_kernel_that_its_network_normalizes_gets_no_worse():
    target, spikes, kernel = noisy(1)

    def current(weights, sources, rows):
        return 3 * sources @ (weights[0] / jnp.linalg.norm(weights[0]) ** 2)

    @jax.jit
    def error(weights):
        constant = jnp.linspace(-3, 3, 61)[:, None, None, None]
        output = jax.nn.relu(current(weights, spikes, None) + constant)
        return ((target - output)[:, 3::4] ** 2).mean((1, 2)).min(0).sum()

    here = ArrayView(target, sources=spikes, current=current)
    fit = Fit(fresh_neurons(), {"hidden": kernel})
    new = calibrate.least_squares_weights(damping=1e-3)(here, fit)
    assert error([new.weights["hidden"]]) <= 1.05 * error([kernel])


@pytest.mark.parametrize(
    "count, samples, expected",
    [(256, 96, 8), (64, 96, 2), (256, 10**6, 1), (16, 3, 1)],
)
def test_images_are_left_out_when_fewer_give_the_samples(count, samples, expected):
    here = ArrayView(np.zeros((count, *SITE.shape), np.float32))
    assert solve._stride(here, samples) == expected


# --------------------------------------------------------------- edge cases


def test_thresholds_are_positive_even_where_nothing_is_active():
    silent = np.zeros((2, 2), np.float32)
    half_silent = np.array([[3, 0], [1, 0]], np.float32)
    formula = [
        functools.partial(find, per=per)
        for per in BOTH
        for find in (
            formulas.maximum,
            functools.partial(formulas.percentile, p=10.0),
            functools.partial(formulas.least_squares, steps=STEPS),
        )
    ]
    for a in (silent, half_silent):
        for threshold in outputs_of(formula, a):
            assert (threshold > 0).all()
            assert a.any() or (threshold == 1).all()


def test_a_bfloat16_search_is_as_good_as_a_float32_one():
    a = activations(0, (64, 8, 8, 16)).astype(jnp.bfloat16)
    runs = [functools.partial(formulas.least_squares, steps=n) for n in (4, 16, 64)]
    half, exact = (outputs_of(runs, b) for b in (a, np.float32(a)))
    np.testing.assert_allclose(half, exact, rtol=5e-3)


def test_neuron_parameters_are_float32_in_a_bfloat16_network():
    a = activations(0).astype(jnp.bfloat16)
    assert jax.eval_shape(formulas.maximum, a).dtype == jnp.float32
    here = ArrayView(a, lambda weights: np.stack([a] * STEPS))
    fit = Fit(fresh_neurons(), {})
    for calibrator in (calibrate.correct_bias(), calibrate.correct_potential()):
        for leaf in jax.tree.leaves(calibrator(here, fit).neurons):
            assert leaf.dtype == np.float32
