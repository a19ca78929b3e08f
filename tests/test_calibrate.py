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
from snnjax.calibrators import formulas, weights_least_squares
from snnjax.calibrators import sample as sample_module
from snnjax.calibrators.view import Dynamics, Fit, Target, View
from snnjax.network import Site
from snnjax.neurons import closed_form, integrate_and_fire
from snnjax.neurons.unroll import mean_and_pace

STEPS = 4
SITE = Site("hidden/relu", "relu", (3, 2), ("hidden",), 1, jnp.float32)
NEURON = integrate_and_fire()

SEEDS = st.integers(0, 2**32 - 1)
few_examples = hypothesis.settings(max_examples=8)
compiled_output = jax.jit(mean_and_pace, static_argnames=("neuron", "wait"))
compiled_form = jax.jit(closed_form, static_argnums=(0, 3))


def fresh_neurons(**parameters):
    """Parameters of IF neurons in NumPy, as a calibrator gets them."""
    return jax.device_get(NEURON.init())._replace(**parameters)


def activations(seed, shape=(6, 3, 2)):
    """ReLU of Gaussian numbers, channels of different size."""
    numbers = np.random.default_rng(seed).normal(size=shape)
    return np.float32(np.maximum(numbers * np.arange(1, shape[-1] + 1), 0))


def random_site(seed, wait=0, images=8, effects=None):
    """The view and the fit of a site of [3, 2] neurons, with 2 channels.

    A kernel feeds it from random spikes of STEPS steps.
    """
    generator = np.random.default_rng(seed)
    spikes = generator.integers(0, 2, (STEPS, images, 3, 5)).astype(np.float32)
    mean_spikes = spikes.mean(0)
    kernel = np.float32(generator.normal(size=(5, 2)))
    noise = np.float32(generator.normal(size=(images, 3, 2)))
    activation = np.maximum(mean_spikes @ kernel + np.float32(0.2) * noise, 0)

    def currents(weights):
        return spikes @ np.asarray(weights["hidden"])

    view = ArrayView(
        activation, currents, wait=wait, sources=mean_spikes, effects=effects
    )
    threshold = np.maximum(activation.max(), np.float32(0.1))
    neurons = fresh_neurons(threshold=threshold)
    return view, Fit(neurons, {"hidden": jnp.asarray(kernel)})


class ArrayView(View):
    """A view of arrays, under rate coding.

    Args:
        activation: of the ANN, [N, ...].
        currents: weights -> [T, N, ...].
        sources: mean spikes that ``feed`` returns, [N, ...].
        current: the function that ``feed`` returns.
        site, wait: of the view.
        options: of `View`.
    """

    def __init__(
        self,
        activation,
        currents=None,
        *,
        sources=None,
        current=None,
        site=SITE,
        wait=0,
        **options,
    ):
        dynamics = Dynamics(
            model=NEURON,
            steps=STEPS,
            wait=wait,
            code=snnjax.codes.rate(),
            ndim=len(site.shape),
            needs_time=wait < STEPS,
        )
        super().__init__(site, dynamics, [activation], **options)
        self.currents_of_weights = currents
        self.sources = sources
        self.current = dense_current if current is None else current

    def currents_by_batch(self, weights):
        currents = self.currents_of_weights(weights)
        if self.wait == self.steps:
            yield currents.mean(0)
        else:
            yield currents

    def feed(self, stride=1):
        return self.current, self.sources[::stride]


def dense_current(weights, sources, rows):
    """The mean current of a dense layer, for the images ``rows`` or for all."""
    if rows is not None:
        sources = sources[rows]
    return sources @ weights[0]


# ----------------------------------------------------------------- formulas


PER = ("layer", "channel")
# Formula, its oracle, and the options that both take.
THRESHOLDS = [(formulas.maximum, reference.max_threshold, {})]
for p in (50.0, 90.0, 99.9, 100.0):
    THRESHOLDS.append((formulas.percentile, reference.percentile_threshold, {"p": p}))
for steps in (1, 4, 16):
    for shift in (0.0, 0.5):
        options = {"steps": steps, "shift": shift}
        THRESHOLDS.append(
            (formulas.least_squares, reference.least_squares_threshold, options)
        )


@pytest.mark.parametrize("per", PER)
def test_thresholds_are_the_oracles(per):
    activation = activations(4) + np.float32(0.1)
    runs = []
    for formula, _, options in THRESHOLDS:
        runs.append(functools.partial(formula, per=per, **options))
    results = outputs_of(runs, activation)
    for result, (_, oracle, options) in zip(results, THRESHOLDS, strict=True):
        exact = functools.partial(oracle, **options)
        if per == "layer":
            expected = exact(np.float64(activation))
        else:
            expected = reference.per_channel(exact, np.float64(activation))
        np.testing.assert_allclose(result, expected, rtol=1e-5, err_msg=str(options))


@few_examples
@hypothesis.given(SEEDS, st.sampled_from([0, STEPS]), st.sampled_from([8, 64]))
def test_corrections_are_the_oracles(seed, wait, images):
    """With fewer images than are enough, a channel has one potential."""
    view, fit = random_site(seed, wait, images)
    fit = calibrate.half_charge()(view, fit)
    activation, output = np.asarray(view.activation), np.asarray(view.output(fit))
    neurons = fit.neurons

    bias = calibrate.correct_bias()(view, fit).neurons.bias
    channel_errors = reference.bias_correction(activation, output)
    np.testing.assert_allclose(bias - neurons.bias, channel_errors, atol=1e-6)

    corrected = calibrate.correct_potential(enough=64)(view, fit)
    charge = corrected.neurons.initial_potential - neurons.initial_potential
    if images < 64:
        expected = STEPS * channel_errors
    else:
        expected = reference.potential_correction(activation, output, STEPS)
    np.testing.assert_allclose(charge, expected, atol=1e-5)

    shifted = calibrate.shift_bias()(view, fit).neurons.bias
    expected = reference.bias_shift(neurons.threshold, STEPS)
    np.testing.assert_allclose(shifted - neurons.bias, expected, rtol=1e-6)


# --------------------------------------------- the error that a calibrator lowers


def test_a_charge_that_comes_step_by_step_is_there_at_the_last_one():
    """A neuron that has all of its input sends the same in both cases."""
    view, fit = random_site(0)
    charged = calibrate.half_charge()(view, fit).neurons
    shifted = calibrate.shift_bias()(view, fit).neurons
    assert charged.initial_potential == STEPS * shifted.bias
    current = np.float32(np.random.default_rng(0).normal(size=(50, 3, 2)))
    expected = compiled_form(NEURON, charged, current, STEPS)
    output = compiled_form(NEURON, shifted, current, STEPS)
    np.testing.assert_array_equal(output, expected)
    for charge in (0.5, np.array([0, 2], np.float32)):
        postponed = formulas.postpone(charged, charge, STEPS)
        start = np.asarray(postponed.initial_potential)
        difference = charged.initial_potential - start
        np.testing.assert_allclose(difference, charge * charged.threshold)
        output = compiled_form(NEURON, postponed, current, STEPS)
        np.testing.assert_allclose(output, expected)


@pytest.mark.parametrize("wait", [0, 1, STEPS])
def test_corrections_lower_mean_errors(wait):
    """At most sites: a spike more or less can make one of them worse."""
    # Pairs of errors of all sites: without a correction, and with it.
    potential_errors, bias_errors, repeated_errors = [], [], []
    for seed in range(20):
        view, fit = random_site(seed, wait)
        charged = calibrate.correct_potential()(view, fit)
        shifted = calibrate.shift_bias()(view, fit)
        corrected_once = calibrate.correct_bias(1)(view, shifted)
        corrected_thrice = calibrate.correct_bias(3)(view, shifted)
        assert corrected_once.neurons.bias.shape == (2,)
        assert charged.neurons.initial_potential.shape == SITE.shape

        def error(fit, axes, view=view):
            """The sum of |mean error|, where the mean is over these axes."""
            residual = view.activation - np.asarray(view.output(fit))
            return np.abs(residual.mean(axes)).sum()

        potential_errors.append((error(fit, 0), error(charged, 0)))
        shifted_error = error(shifted, (0, 1))
        bias_errors.append((shifted_error, error(corrected_once, (0, 1))))
        repeated_errors.append((shifted_error, error(corrected_thrice, (0, 1))))
    for errors in (potential_errors, bias_errors, repeated_errors):
        without_correction, corrected = np.transpose(errors)
        assert corrected.mean() < 0.8 * without_correction.mean()
        assert np.mean(corrected <= without_correction + 1e-6) > 0.9


def test_scaling_a_neuron_is_scaling_its_current():
    view, fit = random_site(0)
    currents = np.float32(np.random.default_rng(0).normal(size=(STEPS, 5, 3, 2)))

    neurons = formulas.postpone(fit.neurons, 0.5, STEPS)
    scaled = formulas.scale(neurons, 2.0)
    scaled_output, _ = compiled_output(NEURON, scaled, 2 * currents)
    output, _ = compiled_output(NEURON, neurons, currents)
    np.testing.assert_array_equal(scaled_output, 2 * output)


def test_a_calibrator_gives_parameters_of_neurons_in_numpy():
    """No program is compiled for a few numbers, and none waits for a device."""
    view, fit = random_site(0)
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
        fit = calibrator(view, fit)
        for parameter in jax.tree.leaves(fit.neurons):
            assert isinstance(parameter, np.ndarray | np.generic), calibrator.__name__


def early_evidence():
    """The view and the fit of a site that gets evidence which is taken back.

    The input of channel 0 excites at first and inhibits later, so that the ANN is
    silent there. That of channel 1 is constant.
    """
    channels = [[2.0, 2.0, -2.0, -2.0], [0.6] * STEPS]
    by_step = np.transpose(channels).astype(np.float32)  # [T, C]
    currents = np.broadcast_to(by_step[:, None, None], (STEPS, 8, 3, 2))
    activation = np.maximum(currents.mean(0), 0)
    return ArrayView(activation, lambda _: currents), Fit(fresh_neurons(), {})


def test_charge_is_postponed_where_evidence_is_taken_back():
    view, fit = early_evidence()
    assert view.output(fit)[..., 0].min() > 0  # it fires, and cannot undo it
    waiting = calibrate.postpone_charge((0, 1, 2, 4))(view, fit)
    assert waiting.neurons.initial_potential.shape == (2,)
    correct = calibrate.correct_potential(3)

    def error(fit):
        output = np.asarray(view.output(correct(view, fit)))
        return np.square(view.activation - output).mean((0, 1))  # [C]

    assert (error(waiting) <= error(fit)).all()
    assert waiting.neurons.initial_potential[0] < 0


def test_of_the_same_spikes_those_are_chosen_that_come_evenly():
    currents = np.full((STEPS, 8, 3, 2), 0.5, np.float32)
    view = ArrayView(currents[0], lambda _: currents)
    fit = Fit(fresh_neurons(initial_potential=np.float32(0.5)), {})
    # The larger the charge that is postponed, the later two spikes come.
    for charge, expected in {0: 0.6, 1: 0.4, 2: 0.3}.items():
        postponed = formulas.postpone(fit.neurons, charge, STEPS)
        mean, pace = compiled_output(NEURON, postponed, currents)
        np.testing.assert_allclose(mean, 0.5)
        np.testing.assert_allclose(pace, expected, rtol=1e-6)
    # Without a weight of the pace all are equally good, and the least change is taken.
    for pace_weight, start in {0.1: -0.5, 0.0: 0.5}.items():
        search = calibrate.postpone_charge((2, 1, 0), pace=pace_weight)
        potential = search(view, fit).neurons.initial_potential
        np.testing.assert_allclose(potential, start)


def test_a_clipped_relu_whose_input_comes_late_gets_spikes_above_its_maximum():
    """In the steps that are left, spikes of its maximum do not add up to it."""
    channels = [[0.0, 0.0, 2.0, 2.0], [2.0] * STEPS]
    by_step = np.transpose(channels).astype(np.float32)  # [T, C]
    currents = np.broadcast_to(by_step[:, None, None], (STEPS, 80, 3, 2))
    activation = np.ones((80, 3, 2), np.float32)
    view = ArrayView(activation, lambda _: currents, own_maximum=np.ones(2, np.float32))
    fit = calibrate.scale_threshold((1, 2))(view, Fit(fresh_neurons(), {}))
    np.testing.assert_array_equal(fit.neurons.threshold, [2, 1])


def test_a_search_does_not_depend_on_the_scale_of_the_activations():
    currents = np.float32(np.random.default_rng(0).normal(size=(STEPS, 40, 3, 2)))

    def threshold(scale):
        scale = np.float32(scale)
        target = np.maximum(currents, 0).mean(0) * scale
        view = ArrayView(target, lambda _: currents * scale)
        fit = calibrate.least_squares_threshold()(view, Fit(fresh_neurons(), {}))
        fit = calibrate.scale_threshold()(view, fit)
        return np.asarray(fit.neurons.threshold) / scale

    for scale in (1e-24, 1e20):
        np.testing.assert_allclose(threshold(scale), threshold(1), rtol=1e-5)


def test_a_search_does_not_depend_on_the_scale_of_the_effects():
    """Effects of errors on the outputs are far below 1, and only compare errors."""

    def neurons_of(search, scale):
        effects = np.random.default_rng(1).uniform(0.5, 1.5, (32, 3, 1)) * scale
        view, fit = random_site(seed=0, images=32, effects=[np.float32(effects)])
        return search(view, fit).neurons

    factors = (0.5, 0.7, 0.8, 1, 1.2)
    for search in (
        calibrate.scale_threshold(factors),
        calibrate.postpone_charge((0, 0.5, 1)),
    ):
        # Powers of two change no rounding.
        usual = neurons_of(search, 1)
        jax.tree.map(np.testing.assert_array_equal, usual, neurons_of(search, 2.0**-20))


def test_a_search_leaves_a_silent_channel_as_it_is():
    silent = np.full((STEPS, 8, 3, 2), -1, np.float32)
    view = ArrayView(np.zeros((8, 3, 2), np.float32), lambda _: silent)
    fit = Fit(fresh_neurons(), {})
    for search in (calibrate.scale_threshold(), calibrate.postpone_charge((2, 1, 0))):
        neurons = search(view, fit).neurons
        np.testing.assert_array_equal(neurons.threshold, 1)
        np.testing.assert_array_equal(neurons.initial_potential, 0)


def test_a_search_per_layer_takes_the_factor_with_the_least_error_of_all_channels():
    factors = (0.6, 0.8, 1, 1.3)
    channels_differ = False
    for seed in range(4):
        view, fit = random_site(seed)

        def error(threshold, view=view, fit=fit):
            """Of all channels, with the bias that corrects the mean of each."""
            neurons = fit.neurons._replace(threshold=threshold)
            residual = view.activation - view.output(fit._replace(neurons=neurons))
            bias = neurons.bias + residual.mean((0, 1))
            corrected = fit._replace(neurons=neurons._replace(bias=bias))
            output = view.output(corrected)
            sample_error = float(((view.activation - output) ** 2).sum())
            caps = np.full((1, len(view.sample.highest)), threshold * view.high)
            unseen_error = view.sample.clipped_error(None, caps)
            return sample_error + float(unseen_error.sum())

        def searched_thresholds(per, view=view, fit=fit):
            search = calibrate.scale_threshold(factors, pace=0, per=per)
            return set(np.ravel(search(view, fit).neurons.threshold).tolist())

        (threshold,) = searched_thresholds("layer")
        candidates = [float(factor * fit.neurons.threshold) for factor in factors]
        assert threshold == pytest.approx(min(candidates, key=error))
        channels_differ |= len(searched_thresholds("channel")) > 1
    assert channels_differ


@few_examples
@hypothesis.given(
    SEEDS,
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
    view, fit = random_site(seed, wait)

    def error(fit):
        """Of each channel, with the bias that corrects the mean."""
        output = np.asarray(view.output(fit))
        correction = reference.bias_correction(view.activation, output)
        bias = np.asarray(fit.neurons.bias + correction, "f4")
        neurons = fit.neurons._replace(bias=bias)
        currents = view.currents(fit.weights)
        mean, pace = compiled_output(NEURON, neurons, currents, wait=wait)
        mean_error = np.square(view.activation - np.asarray(mean)).mean((0, 1))
        pace_error = np.square(view.activation - np.asarray(pace)).mean((0, 1))
        return mean_error + 0.1 * pace_error

    assert (error(search(view, fit)) <= error(fit) + 1e-6).all()


@pytest.mark.parametrize(
    "shape, channel, samples, positions",
    [
        ((8, 8, 2), -1, 100, 10),  # of 10 images
        ((8, 8, 2), -1, 641, 64),
        ((2, 9, 7), -3, 1, 1),  # at least one
        ((5,), -1, 1, 1),  # a site without positions
    ],
)
def test_a_sample_is_the_same_positions_of_activations_spikes_and_weights(
    shape, channel, samples, positions, monkeypatch
):
    monkeypatch.setattr(sample_module, "SAMPLES", samples)
    site = SITE._replace(shape=shape, channel=channel)
    a = np.random.default_rng(0).normal(size=(10, *shape)).astype(np.float32)
    weight = (np.abs(a).sum(channel, keepdims=True) > 1).astype(np.float32)
    view = ArrayView(a, lambda _: np.stack([a] * STEPS), effects=[weight], site=site)
    sample = view.sample
    assert sample.activation.shape == (10 * positions, shape[channel])
    for spikes in view.sample_currents({}):
        np.testing.assert_array_equal(spikes, sample.activation)
    expected = np.abs(sample.activation).sum(1, keepdims=True) > 1
    np.testing.assert_array_equal(sample.weight, expected)
    assert set(np.asarray(sample.activation).flat) <= set(a.flat)
    # The extremes are those of all positions.
    counted = np.where(weight > 0, a, 0)
    axes = tuple(axis for axis in range(a.ndim) if axis != a.ndim + channel)
    np.testing.assert_allclose(sample.highest, counted.max(axes))
    np.testing.assert_allclose(sample.lowest, counted.min(axes))
    maxima = sample.maxima(jnp.float32(0.5))
    expected = np.where(weight > 0, np.abs(a - 0.5), 0).max(axes)
    np.testing.assert_allclose(np.ravel(maxima), expected, rtol=1e-6)


def test_a_sample_of_many_steps_has_fewer_positions(monkeypatch):
    monkeypatch.setattr(sample_module, "_SAMPLE_BYTES", 4 * (STEPS + 3) * 20 * 2)
    a = np.ones((10, 3, 2), np.float32)
    view = ArrayView(a, lambda _: np.stack([a] * STEPS))
    assert view.sample.activation.shape == (20, 2)
    assert view.sample_currents({}).shape == (STEPS, 20, 2)


def test_charge_is_not_postponed_where_layers_wait_for_all_of_their_input():
    view, fit = random_site(0, wait=STEPS)
    assert calibrate.postpone_charge()(view, fit) is fit


@pytest.mark.parametrize("wait", [0, STEPS])
def test_weight_calibration_lowers_the_error_of_the_clip_floor(wait):
    """Of a neuron without the corrected bias, as in the paper."""
    view, fit = random_site(0, wait)
    fit = calibrate.correct_bias()(view, fit)

    def error(kernel):
        current = np.asarray(view.sources @ np.asarray(kernel), np.float64)
        threshold = float(fit.neurons.threshold)
        output = reference.clip_floor(current, STEPS, threshold)
        return ((view.activation - output) ** 2).sum(-1).mean()

    options = {"iterations": 40, "learning_rate": 0.02, "batch": 8}
    calibrated = calibrate.calibrate_weights(**options)(view, fit)
    assert error(calibrated.weights["hidden"]) < error(fit.weights["hidden"])
    assert calibrated.neurons is fit.neurons


def test_weight_calibration_is_reproducible_and_depends_on_its_seed():
    view, fit = random_site(0)

    def kernel(seed):
        calibrator = calibrate.calibrate_weights(
            iterations=5, learning_rate=0.01, batch=2, seed=seed
        )
        return calibrator(view, fit).weights["hidden"]

    np.testing.assert_array_equal(kernel(0), kernel(0))
    assert np.any(kernel(0) != kernel(1))


def noisy(seed, images=64):
    """The activation, mean spikes and kernel of a site whose spikes are noisy.

    A hidden cause of four numbers gives the spikes, to which noise of different size is
    added.
    """
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
    view = ArrayView(target, sources=spikes)
    refitted_fit = calibrate.least_squares_weights(**options)(view, fit)
    assert refitted_fit.neurons is fit.neurons
    return np.asarray(refitted_fit.weights["hidden"])


@pytest.mark.parametrize("damping", [0.1, 3.0])
def test_weights_by_conjugate_gradients_solve_the_normal_equations(damping):
    target, spikes, kernel = noisy(0)
    target, spikes = jnp.asarray(target), jnp.asarray(spikes)
    layer = weights_least_squares._Layer(
        current=dense_current,
        dtypes=(kernel.dtype,),
        free=(True,),
        channel=-1,
        weights=(kernel,),
        sources=spikes,
    )
    layer_target = Target(("hidden",), dense_current, spikes, target, channel=-1)
    problem, search = weights_least_squares._start(
        layer, layer_target, damping, rectified=True
    )
    for _ in range(30):
        search = weights_least_squares._advance(layer, problem, search)
    is_fitted = np.arange(len(target)) % 4 != 3
    expected = reference.least_squares_weights(
        np.asarray(target, np.float64),
        np.asarray(spikes, np.float64),
        np.asarray(kernel, np.float64),
        damping,
        is_fitted,
    )
    solution = np.asarray(kernel) + np.asarray(search.step[0])
    np.testing.assert_allclose(solution, expected, atol=2e-4)
    current = np.asarray(search.current.held_out) * np.asarray(problem.unit)
    expected = (np.asarray(spikes)[3::4] @ solution).reshape(current.shape)
    np.testing.assert_allclose(current, expected, atol=1e-4)


@pytest.mark.thorough
def test_numpy_and_xla_refit_the_same_weights_where_a_current_is_infinite(monkeypatch):
    """The logarithm of a sum that the SNN calls 0, at images that are left out."""

    def fn(params, x):
        h = jax.nn.relu(x @ params[0])
        small = jnp.log(h.sum(-1, keepdims=True) / 8)
        return jax.nn.relu(h @ params[1] + small) @ params[2]

    draw = np.random.default_rng(0)
    x = np.float32(draw.random((64, 6)))
    params = []
    for shape in ((6, 8), (8, 5), (5, 3)):
        params.append(np.float32(draw.normal(size=shape)))
    params[0] = abs(params[0])
    chain = (calibrate.max_threshold(), calibrate.least_squares_weights())

    def refitted_weights():
        snn = snnjax.convert(fn, params, x, steps=3, recipe=snnjax.Recipe(chain))
        return snn.params[1]

    weights_by_numpy = refitted_weights()
    monkeypatch.setattr(_arrays, "is_on_host", lambda tree: False)
    weights_by_xla = refitted_weights()
    assert abs(weights_by_numpy - params[1]).max() > 0.01
    np.testing.assert_allclose(weights_by_numpy, weights_by_xla, atol=1e-3)


def distance(target, spikes, kernel):
    """Of the current from the activation, up to a constant, where it counts."""
    current = spikes @ kernel
    residual = np.where((target > 0) | (current > 0), target - current, 0)
    return float(((residual - residual.mean((0, 1))) ** 2).mean())


@hypothesis.given(SEEDS)
@few_examples
def test_least_squares_weights_bring_the_current_nearer_on_other_images(seed):
    target, spikes, kernel = noisy(seed, 320)
    refitted_kernel = refitted(target[:64], spikes[:64], kernel)
    refitted_distance = distance(target[64:], spikes[64:], refitted_kernel)
    assert refitted_distance < distance(target[64:], spikes[64:], np.asarray(kernel))


@pytest.mark.parametrize("dtype, scale", [(np.float32, 1e9), (np.float16, 300)])
def test_weights_do_not_depend_on_the_scale_of_the_spikes(dtype, scale):
    target, spikes, kernel = noisy(0)
    kernel = np.asarray(kernel, dtype)

    def refitted_at(scale):
        scaled_target = (target * scale).astype(dtype)
        scaled_spikes = (spikes * scale).astype(dtype)
        return refitted(scaled_target, scaled_spikes, kernel)

    assert np.any(refitted_at(1) != kernel)
    np.testing.assert_allclose(refitted_at(scale), refitted_at(1), rtol=1e-2, atol=1e-3)


def test_weights_of_float16_are_fitted_to_many_positions_too():
    target, spikes, kernel = noisy(0, 2**15)  # three positions each: beyond 65504

    def refitted_in(dtype):
        arrays = [np.asarray(array, dtype) for array in (target, spikes, kernel)]
        return refitted(*arrays, samples=2**20, iterations=2)

    exact = refitted_in(np.float32)
    change = np.abs(exact - np.asarray(kernel)).max()
    assert np.abs(refitted_in(np.float16) - exact).max() < 0.015 * change


def test_pruned_weights_stay_pruned():
    target, spikes, kernel = noisy(0)
    pruned = np.array(kernel)
    pruned[1] = 0
    result = refitted(target, spikes, pruned)
    np.testing.assert_array_equal(result == 0, pruned == 0)
    assert np.all(result[0] != pruned[0])


def test_spikes_without_error_and_what_saturates_leave_the_weights_as_they_are():
    _, spikes, kernel = noisy(0)
    current = spikes @ np.asarray(kernel)
    for target in (np.maximum(current, 0), np.clip(current, 0, np.float32(0.5))):
        np.testing.assert_array_equal(refitted(target, spikes, kernel), kernel)


def test_shared_weights_stay_while_the_others_are_fitted():
    target, spikes, kernel = noisy(0)
    weights = dict.fromkeys(("hidden", "tied"), jnp.asarray(np.asarray(kernel) / 2))

    def current(weights, sources, rows):
        return sources @ (weights[0] + weights[1])

    shared = {"tied": ["one", "another"]}
    view = ArrayView(target, sources=spikes, shared=shared, current=current)
    fit = Fit(fresh_neurons(), weights)
    results = calibrate.least_squares_weights()(view, fit).weights
    assert results["tied"] is weights["tied"]
    assert np.any(np.asarray(results["hidden"]) != np.asarray(weights["hidden"]))


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
        """Of the images held out, with the best bias of each channel."""
        biases = jnp.linspace(-3, 3, 61)[:, None, None, None]
        output = jax.nn.relu(current(weights, spikes, None) + biases)
        return ((target - output)[:, 3::4] ** 2).mean((1, 2)).min(0).sum()

    view = ArrayView(target, sources=spikes, current=current)
    fit = Fit(fresh_neurons(), {"hidden": kernel})
    result = calibrate.least_squares_weights(damping=1e-3)(view, fit)
    assert error([result.weights["hidden"]]) <= 1.05 * error([kernel])


@pytest.mark.parametrize(
    "count, samples, expected",
    [(256, 96, 8), (64, 96, 2), (256, 10**6, 1), (16, 3, 1)],
)
def test_images_are_left_out_when_fewer_give_the_samples(count, samples, expected):
    view = ArrayView(np.zeros((count, *SITE.shape), np.float32))
    assert weights_least_squares._stride(view, samples) == expected


# --------------------------------------------------------------- edge cases


def test_thresholds_are_positive_even_where_nothing_is_active():
    silent = np.zeros((2, 2), np.float32)
    half_silent = np.array([[3, 0], [1, 0]], np.float32)
    runs = []
    for per in PER:
        runs.append(functools.partial(formulas.maximum, per=per))
        runs.append(functools.partial(formulas.percentile, p=10.0, per=per))
        runs.append(functools.partial(formulas.least_squares, steps=STEPS, per=per))
    for threshold in outputs_of(runs, half_silent):
        assert (threshold > 0).all()
    for threshold in outputs_of(runs, silent):
        assert (threshold == 1).all()


def test_a_bfloat16_search_is_as_good_as_a_float32_one():
    a = activations(0, (64, 8, 8, 16)).astype(jnp.bfloat16)
    runs = [functools.partial(formulas.least_squares, steps=n) for n in (4, 16, 64)]
    exact = outputs_of(runs, np.float32(a))
    np.testing.assert_allclose(outputs_of(runs, a), exact, rtol=5e-3)


def test_neuron_parameters_are_float32_in_a_bfloat16_network():
    a = activations(0).astype(jnp.bfloat16)
    assert jax.eval_shape(formulas.maximum, a).dtype == jnp.float32
    view = ArrayView(a, lambda weights: np.stack([a] * STEPS))
    fit = Fit(fresh_neurons(), {})
    for calibrator in (calibrate.correct_bias(), calibrate.correct_potential()):
        for leaf in jax.tree.leaves(calibrator(view, fit).neurons):
            assert leaf.dtype == np.float32
