"""Calibrators of a site's threshold, bias and initial potential.

A calibrator is a function ``(View, Fit) -> Fit``: it takes a site's activations and the
spikes that arrive there, and applies a formula of ``formulas.py`` to its parameters.
Source of the layer-wise scheme: Li, Deng, Dong, Gong and Gu, ICML 2021.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import aligned, lead, wide
from snnjax._checks import check_choice, check_count, check_positive, is_number
from snnjax.calibrators import formulas
from snnjax.calibrators.checks import parameter_shapes
from snnjax.calibrators.view import Calibrator, Fit, View, check_calibrator

_PER = ("layer", "channel")
# Weight of the pace where a search compares spikes. On ResNet-20 without a wait it took
# 63 % off the KL divergence at T = 16 and 78 % at T = 32.
_PACE = 0.1


def max_threshold(per: str = "layer") -> Calibrator:
    """V_th = `formulas.maximum` of the activations."""
    check_choice("per", per, _PER)
    return _threshold(lambda view: _positive(view.peaks(), per), per)


def percentile_threshold(p: float, per: str = "layer") -> Calibrator:
    """V_th = `formulas.percentile` of the activations."""
    check_choice("per", per, _PER)
    if not is_number(p) or not 1 < p <= 100:
        raise ValueError(f"p is {p!r}; allowed: 1 < p <= 100, in percent, e.g. 99.9")
    return _threshold(
        lambda view: _percentile(view.activation, p, per, view.site.channel), per
    )


def least_squares_threshold(per: str = "layer", objective: str = "floor") -> Calibrator:
    """V_th = `formulas.least_squares` fit to the activations."""
    check_choice("per", per, _PER)
    check_choice("objective", objective, ("floor", "round"))

    def search(view: View) -> jax.Array:
        top = _positive(view.peaks(), per)
        errors = [
            _candidate_errors(a, top, view.steps, objective, view.site.channel)
            for a in view.activations
        ]
        return _nearest(top, functools.reduce(jnp.add, errors))

    return _threshold(search, per)


def shift_bias() -> Calibrator:
    """bias += V_th / (2T)."""

    def calibrate(view: View, fit: Fit) -> Fit:
        neuron = fit.neuron
        bias = neuron.bias + formulas.shift(neuron.threshold, view.steps)
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
    """bias += `formulas.bias_correction`, measured anew in each of some rounds."""
    check_count("repeats", repeats)

    def calibrate(view: View, fit: Fit) -> Fit:
        for _ in range(repeats):
            bias = fit.neuron.bias + _mean_error(view, fit)
            fit = fit._replace(neuron=fit.neuron._replace(bias=bias))
        return fit

    return calibrate


def correct_potential(repeats: int = 1) -> Calibrator:
    """v(0) += `formulas.potential_correction`, measured anew in each of some rounds.

    The paper does it once, from v(0) = 0.
    """
    check_count("repeats", repeats)

    def calibrate(view: View, fit: Fit) -> Fit:
        if view.stride > 1:
            raise ValueError(
                "correct_potential got a thinned view; allowed: the whole one, since "
                "each position has its own potential"
            )
        correction = functools.partial(_potential_correction, steps=view.steps)
        for _ in range(repeats):
            start, change = aligned(
                fit.neuron.initial_potential, view.mean(correction, fit)
            )
            start = start + change
            fit = fit._replace(neuron=fit.neuron._replace(initial_potential=start))
        return fit

    return calibrate


def postpone_charge(
    charges: Sequence[float] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4),
    *,
    pace: float = _PACE,
) -> Calibrator:
    """Give each channel its charge as late as serves its output best.

    A neuron that acts on its input as it arrives fires on evidence that later input
    takes back. Starting c thresholds lower, and getting them back evenly over the T
    steps, it fires later, on more of its input. Each candidate c is tried by
    `formulas.postpone`, with `formulas.bias_correction` of what that changes; each
    channel gets the c of its smallest `formulas.paced_error`. The answer at t < T gets
    worse: until T a part of the charge is missing.

    With a wait of T there is nothing to gain, since the order of the input does not
    count: the fit is returned as it is. Source: ours.

    Args:
        charges: candidates c, in thresholds; of equally good ones the smallest.
        pace: weight of the spikes' pace in that error, >= 0.
    """
    _check_numbers("charges", charges)
    _check_pace(pace)

    def calibrate(view: View, fit: Fit) -> Fit:
        if view.wait == view.steps:
            return fit
        postpone = functools.partial(_postpone, steps=view.steps)
        return _search(view, fit, sorted(charges, key=abs), postpone, pace)

    return calibrate


def scale_threshold(
    factors: Sequence[float] = (0.75, 0.9, 1, 1.15, 1.3, 1.5, 1.8),
    *,
    pace: float = _PACE,
) -> Calibrator:
    """`formulas.scale` each channel by the factor that serves its spikes best.

    `formulas.least_squares` gives the threshold for input that arrives evenly. Here
    every candidate is tried on the spikes that do arrive, as in `postpone_charge`.

    Args:
        factors: candidates, > 0; of equally good ones the nearest to 1.
        pace: as for `postpone_charge`.
    """
    _check_numbers("factors", factors)
    _check_pace(pace)
    for factor in factors:
        check_positive("a factor", factor)
    nearest_first = sorted(factors, key=lambda factor: abs(factor - 1))
    return lambda view, fit: _search(view, fit, nearest_first, _scale, pace)


def streaming_only(calibrator: Calibrator) -> Calibrator:
    """The calibrator where layers do not wait; elsewhere the fit as it is."""
    check_calibrator(calibrator)
    return lambda view, fit: fit if view.wait else calibrator(view, fit)


# Of each channel, for a choice among candidates. On ResNet-20 half of them cost a tenth
# of the KL divergence at T = 4, and all positions gained nothing on average.
_SAMPLES = 2**15


def _search(
    view: View, fit: Fit, candidates: Sequence[float], change, pace: float
) -> Fit:
    """Per channel ``change(neuron, candidate)`` of the smallest `formulas.paced_error`.

    Each candidate is judged with its bias corrected, but applied without: the
    calibrators that follow correct what the chosen one leaves. Of equal candidates the
    first is taken. Dozens are compared, so on no more positions than necessary.
    """
    thinned, channels = view.thinned(_SAMPLES), parameter_shapes(view.site)["threshold"]
    unit = jnp.broadcast_to(fit.neuron.threshold, channels)
    paced_error = functools.partial(
        _paced_error, unit=unit, pace=pace, channel=view.site.channel
    )

    def error(candidate: float) -> jax.Array:
        # One number per channel, so that what is chosen takes the same program.
        every = np.full(channels, candidate, np.float32)
        changed = fit._replace(neuron=change(fit.neuron, every))
        bias = changed.neuron.bias + _mean_error(thinned, changed)
        corrected = changed._replace(neuron=changed.neuron._replace(bias=bias))
        # One candidate at a time: dozens in flight would take memory, and on virtual
        # devices their collectives may wait for each other until XLA gives up.
        return jax.block_until_ready(thinned.mean(paced_error, corrected, paced=True))

    errors = [error(candidate) for candidate in candidates]
    chosen = _least(np.asarray(candidates, np.float32), errors)
    return fit._replace(neuron=change(fit.neuron, chosen))


@jax.jit
def _least(candidates: jax.Array, errors: Sequence[jax.Array]) -> jax.Array:
    """The candidate whose error is least, for each channel."""
    return candidates[jnp.stack(errors).argmin(0)]


@functools.partial(jax.jit, static_argnames="channel")
def _paced_error(activation, output, *, unit, pace, channel) -> jax.Array:
    """`formulas.paced_error` in units per channel, so that squares stay in range."""
    unit = formulas.binary_unit(unit)
    unit = lead(unit, activation.ndim)
    mean, early = (wide(part) / unit for part in output)
    return formulas.paced_error(wide(activation) / unit, (mean, early), pace, channel)


def _mean_error(view: View, fit: Fit) -> jax.Array:
    """`formulas.bias_correction` of all images."""
    correction = functools.partial(_bias_correction, channel=view.site.channel)
    return view.mean(correction, fit)


def _threshold(compute: Callable[[View], Any], per: str) -> Calibrator:
    def calibrate(view: View, fit: Fit) -> Fit:
        if per == "layer" and view.site.own_maxima:
            raise ValueError(
                f"site {view.site.name!r} clips each channel at a maximum of its own, "
                "and one threshold per layer would clip at the largest; allowed: "
                "per='channel', as in snnjax.light('channel') or snnjax.best()"
            )
        return fit._replace(neuron=fit.neuron._replace(threshold=compute(view)))

    return calibrate


def _check_numbers(name: str, numbers: Sequence[float]) -> None:
    try:
        array = np.asarray(numbers, float)
    except (TypeError, ValueError):  # a word, a complex or a traced number
        array = np.array([])
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"{name} is {numbers}; allowed: one finite number or more, concrete "
            "when the recipe is made"
        )


def _check_pace(pace: float) -> None:
    if not is_number(pace) or not 0 <= pace < np.inf:
        raise ValueError(f"pace is {pace!r}; allowed: a finite number >= 0")


_positive = jax.jit(formulas.positive, static_argnames="per")
_percentile = jax.jit(formulas.percentile, static_argnames=("p", "per", "channel"))
_candidate_errors = jax.jit(
    formulas.candidate_errors, static_argnames=("objective", "channel")
)
_nearest = jax.jit(formulas.nearest)
_bias_correction = jax.jit(formulas.bias_correction, static_argnames="channel")
_potential_correction = jax.jit(formulas.potential_correction)
_postpone = jax.jit(formulas.postpone, static_argnames="steps")
_scale = jax.jit(formulas.scale)
