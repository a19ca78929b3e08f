"""Calibrators: how a site's threshold, bias and potential are fitted.

A calibrator is a function ``(View, Fit) -> Fit``: it sees a site's activation and the
spikes that really come, and applies the mathematics of ``fits.py`` to its parameters.
Source of the layer-wise scheme: Li, Deng, Dong, Gong and Gu, ICML 2021.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import check_choice, check_count, check_positive, is_number
from snnjax.conversion import checks, fits
from snnjax.conversion.view import Calibrator, Fit, View
from snnjax.neurons import NeuronParams

_PER = ("layer", "channel")
# Weight of the pace where a search compares spikes. On ResNet-20 without delay it took
# 63 % of the KL divergence at T = 16 and 78 % at T = 32.
_PACE = 0.1
# Samples of the layer to judge a channel by. Half as many cost a wide dense layer of 16
# images up to 6 % of the threshold's error, twice as many gained 3 %.
PRIOR = 16


def max_threshold(per: str = "layer") -> Calibrator:
    """V_th = `fits.maximum` of the activations."""
    check_choice("per", per, _PER)
    return _threshold(lambda view: _positive(view.peaks(), per), per)


def percentile_threshold(p: float, per: str = "layer") -> Calibrator:
    """V_th = `fits.percentile` of the activations."""
    check_choice("per", per, _PER)
    if not is_number(p) or not 1 < p <= 100:
        raise ValueError(f"p is {p!r}; allowed: 1 < p <= 100, in percent, e.g. 99.9")
    return _threshold(
        lambda view: _percentile(view.activation, p, per, view.site.channel), per
    )


def least_squares_threshold(
    per: str = "layer", objective: str = "floor", *, prior: int = 0
) -> Calibrator:
    """V_th = `fits.least_squares` fit to the activations.

    Args:
        per, objective: as there.
        prior: k, how many samples of the whole layer a channel is judged by beside its
            own; the paper's fit has none. It matters where a channel has few samples,
            as in a dense layer, which has one per image.
    """
    check_choice("per", per, _PER)
    check_choice("objective", objective, ("floor", "round"))
    _check_prior(prior)

    def search(view: View) -> jax.Array:
        expected = _expected(view.samples(), per, prior)
        thresholds = _candidates(expected, prior)
        errors = [
            _candidate_errors(a, thresholds, view.steps, objective, view.site.channel)
            for a in view.activations
        ]
        return _nearest(expected, thresholds, functools.reduce(jnp.add, errors), prior)

    return _threshold(search, per)


def shift_bias() -> Calibrator:
    """bias += V_th / (2T)."""

    def calibrate(view: View, fit: Fit) -> Fit:
        neuron = fit.neuron
        bias = neuron.bias + fits.shift(neuron.threshold, view.steps)
        return fit._replace(neuron=neuron._replace(bias=bias))

    return calibrate


def half_charge() -> Calibrator:
    """v(0) = V_th / 2: the bias shift's charge, all of it before the first step."""

    def calibrate(view: View, fit: Fit) -> Fit:
        del view
        half = fit.neuron.threshold / 2
        return fit._replace(neuron=fit.neuron._replace(initial_potential=half))

    return calibrate


def correct_bias(repeats: int = 1) -> Calibrator:
    """bias += `fits.bias_correction`, measured anew in each of ``repeats`` rounds."""
    check_count("repeats", repeats)

    def calibrate(view: View, fit: Fit) -> Fit:
        _warn_of_few("biases", _per_channel(view))
        for _ in range(repeats):
            bias = fit.neuron.bias + _lacking(view, fit)
            fit = fit._replace(neuron=fit.neuron._replace(bias=bias))
        return fit

    return calibrate


def correct_potential(repeats: int = 1) -> Calibrator:
    """v(0) += `fits.potential_correction`, measured anew in each of ``repeats`` rounds.

    The paper does it once, from v(0) = 0.
    """
    check_count("repeats", repeats)

    def calibrate(view: View, fit: Fit) -> Fit:
        if view.stride > 1:
            raise ValueError(
                "correct_potential got a thinned view; allowed: the whole one, since "
                "each position has its own potential"
            )
        _warn_of_few("potentials", view.count)
        lacking = functools.partial(_potential_correction, steps=view.steps)
        for _ in range(repeats):
            start = fit.neuron.initial_potential + view.mean(lacking, fit)
            fit = fit._replace(neuron=fit.neuron._replace(initial_potential=start))
        return fit

    return calibrate


def postpone_charge(
    charges: Sequence[float] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4),
    *,
    pace: float = _PACE,
    prior: int = PRIOR,
) -> Calibrator:
    """Give each channel its charge as late as serves its output best.

    A neuron that hears its input as it comes fires on evidence that later input takes
    back. Starting c thresholds lower, and getting them back evenly over the T steps,
    it waits for the rest. `fits.postpone` by every candidate c, `fits.bias_correction`
    of what that changes, and per channel the c of the smallest `fits.paced_error` of
    the spikes. The answer at t < T suffers: until T a charge is owed.

    With delay T nothing is to be gained, since the order of the input does not count
    there: the fit comes back as it is. Source: ours.

    Args:
        charges: candidates c, in thresholds; of equally good ones the smallest.
        pace: weight of the spikes' pace in that error, >= 0.
        prior: how many samples of the whole layer a channel is judged by beside its
            own (`fits.Expected`).
    """
    _check_numbers("charges", charges)
    _check_pace(pace)
    _check_prior(prior)

    def calibrate(view: View, fit: Fit) -> Fit:
        if view.delay == view.steps:
            return fit
        postpone = functools.partial(_postpone, steps=view.steps)
        return _search(view, fit, sorted(charges, key=abs), postpone, pace, prior)

    return calibrate


def scale_threshold(
    factors: Sequence[float] = (0.75, 0.9, 1, 1.15, 1.3, 1.5, 1.8),
    *,
    pace: float = _PACE,
    prior: int = PRIOR,
) -> Calibrator:
    """`fits.scale` each channel by the factor that serves its real spikes best.

    `fits.least_squares` finds the threshold for input that arrives evenly. Here every
    candidate meets the spikes that do arrive, as in `postpone_charge`, and what it
    would clip of new images counts (`fits.unseen_error`).

    Args:
        factors: candidates, > 0; of equally good ones the nearest to 1.
        pace, prior: as for `postpone_charge`.
    """
    _check_numbers("factors", factors)
    _check_pace(pace)
    _check_prior(prior)
    for factor in factors:
        check_positive("a factor", factor)
    nearest_first = sorted(factors, key=lambda factor: abs(factor - 1))
    return lambda view, fit: _search(view, fit, nearest_first, _scale, pace, prior)


def streaming_only(calibrator: Calibrator) -> Calibrator:
    """The calibrator where layers do not wait (delay 0); elsewhere nothing."""
    checks.check_calibrator(calibrator)
    return lambda view, fit: fit if view.delay else calibrator(view, fit)


# Of each channel, for a choice among candidates. On ResNet-20 half of them cost a tenth
# of the KL divergence at T = 4, and all positions gained nothing on average.
_SAMPLES = 2**15


def _search(
    view: View,
    fit: Fit,
    candidates: Sequence[float],
    change: Callable[..., NeuronParams],
    pace: float,
    prior: int,
) -> Fit:
    """Per channel ``change(neuron, candidate)`` of the smallest `fits.paced_error`.

    Each candidate is judged with its bias corrected, but given back without: the
    calibrators that follow correct what the chosen one leaves. Of equal candidates the
    first is taken. Dozens are compared, so on no more positions than it takes.

    To the errors of its samples there come those of ``prior`` samples of the layer, and
    of one above the threshold (`fits.Expected`).
    """
    seen, channels = view.thinned(_SAMPLES), checks.shapes(view.site)["threshold"]
    unit = _binary_unit(jnp.broadcast_to(fit.neuron.threshold, channels))
    paced_error = functools.partial(
        _paced_error, unit=unit, pace=pace, channel=view.site.channel
    )
    expected = _expected(seen.samples(), "channel", prior)
    samples = _per_channel(seen)

    def error(candidate: float) -> jax.Array:
        # One number per channel, so that what is chosen takes the same program.
        every = np.full(channels, candidate, np.float32)
        changed = fit._replace(neuron=change(fit.neuron, every))
        bias = changed.neuron.bias + _lacking(seen, changed)
        corrected = changed._replace(neuron=changed.neuron._replace(bias=bias))
        # One candidate at a time: dozens in flight would take memory, and on virtual
        # devices their collectives may wait for each other until XLA gives up.
        mean = seen.mean(paced_error, corrected, paced=True)
        unseen = _unseen_error(changed.neuron.threshold, expected, unit)
        return jax.block_until_ready(samples * mean + (1 + pace) * unseen)

    errors = [error(candidate) for candidate in candidates]
    tried = np.asarray(candidates, np.float32)
    nearest = _least(tried, errors, expected.count, prior)
    return fit._replace(neuron=change(fit.neuron, nearest))


@jax.jit
def _least(candidates: jax.Array, errors: Sequence[jax.Array], count, prior):
    """The candidate whose error is least, for each channel."""
    of_layer = fits.of_layer(jnp.stack(errors), count)
    pairs = zip(errors, of_layer, strict=True)
    return candidates[jnp.stack([e + prior * p for e, p in pairs]).argmin(0)]


@functools.partial(jax.jit, static_argnames="channel")
def _paced_error(activation, output, *, unit, pace, channel) -> jax.Array:
    """`fits.paced_error` in a unit for each channel, so that squares stay in range."""
    output = tuple(part / unit for part in output)
    return fits.paced_error(activation / unit, output, pace, channel)


def _lacking(view: View, fit: Fit) -> jax.Array:
    """`fits.bias_correction` of all images."""
    correction = functools.partial(_bias_correction, channel=view.site.channel)
    return view.mean(correction, fit)


def _threshold(find: Callable[[View], Any], per: str) -> Calibrator:
    def calibrate(view: View, fit: Fit) -> Fit:
        if per == "layer" and view.site.own_maxima:
            raise ValueError(
                f"site {view.site.name!r} clips each channel at a maximum of its own, "
                "and one threshold per layer would clip at the largest; allowed: "
                "per='channel', as in snnjax.light('channel') or snnjax.best()"
            )
        if per == "channel":
            _warn_of_few("thresholds", _per_channel(view))
        return fit._replace(neuron=fit.neuron._replace(threshold=find(view)))

    return calibrate


def _per_channel(view: View) -> int:
    """Samples of each channel: images times positions."""
    first = view.activations[0]
    return view.count * first[0].size // first.shape[view.site.channel]


def _warn_of_few(fitted: str, samples: int) -> None:
    if samples < PRIOR:  # the layer then says more of a channel than the channel
        warnings.warn(
            f"{fitted} are fitted to {samples} samples each, and may not suit new "
            f"images; recommended: {PRIOR} calibration images or more",
            stacklevel=2,
        )


def _check_numbers(name: str, numbers: Sequence[float]) -> None:
    try:
        found = np.asarray(numbers, float)
    except (TypeError, ValueError):  # a word, a complex or a traced number
        found = np.array([])
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise ValueError(
            f"{name} is {numbers}; allowed: one finite number or more, known when the "
            "recipe is made"
        )


def _check_prior(prior: int) -> None:
    if prior != 0:
        check_count("prior", prior)


def _check_pace(pace: float) -> None:
    if not is_number(pace) or not 0 <= pace < np.inf:
        raise ValueError(f"pace is {pace!r}; allowed: a finite number >= 0")


_positive = jax.jit(fits.positive, static_argnames="per")
_percentile = jax.jit(fits.percentile, static_argnames=("p", "per", "channel"))
_candidate_errors = jax.jit(
    fits.candidate_errors, static_argnames=("objective", "channel")
)
_expected = jax.jit(fits.expected, static_argnames=("per", "prior"))
_candidates = jax.jit(fits.candidates, static_argnames="prior")
_nearest = jax.jit(fits.nearest, static_argnames="prior")
_unseen_error = jax.jit(fits.unseen_error)
_binary_unit = jax.jit(fits.binary_unit)
_bias_correction = jax.jit(fits.bias_correction, static_argnames="channel")
_potential_correction = jax.jit(fits.potential_correction)
_postpone = jax.jit(fits.postpone, static_argnames="steps")
_scale = jax.jit(fits.scale)
