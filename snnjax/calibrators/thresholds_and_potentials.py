"""Calibrators of a site's threshold, bias and initial potential.

A calibrator is a function ``(View, Fit) -> Fit``: it takes a site's activations and the
spikes that arrive there, and applies a formula of ``formulas.py`` to its parameters.
Source of the layer-wise scheme: Li, Deng, Dong, Gong and Gu, ICML 2021.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import aligned, lead, wide
from snnjax._checks import check_choice, check_count, check_positive, is_number
from snnjax._text import named
from snnjax._types import Objective, Per
from snnjax.calibrators import formulas
from snnjax.calibrators.checks import parameter_shapes
from snnjax.calibrators.view import Calibrator, Fit, View, check_calibrator
from snnjax.neurons.models import NeuronParams

_PER = ("layer", "channel")
# Weight of the pace where a search compares spikes. On ResNet-20 without a wait it took
# 63 % off the KL divergence at T = 16 and 78 % at T = 32.
_PACE = 0.1
# Samples of the layer to judge a channel by. Half as many cost a wide dense layer of 16
# images up to 6 % of the threshold's error, twice as many gained 3 %.
PRIOR = 16


@named
def max_threshold(per: Per = "layer") -> Calibrator:
    """V_th = `formulas.maximum` of the activations, over the highest level.

    Args:
        per: "layer", one threshold for the site, or "channel".

    Raises:
        ValueError: another word; from the calibrator, "layer" at a site whose channels
            are clipped at maxima of their own.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([max_threshold("channel")])
    >>> w = jnp.array([1.0, 0.1])  # two channels
    >>> snn = snnjax.convert(fn, w, images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].threshold)
    [15.   1.5]
    """
    check_choice("per", per, _PER)
    return _threshold(lambda view, fit: _positive(view.peaks(fit), per), per)


@named
def percentile_threshold(p: float, per: Per = "layer") -> Calibrator:
    """V_th = `formulas.percentile` of the activations, over the highest level.

    Rare large activations are clipped, and all others are rounded less.

    Args:
        p: 1 < p <= 100, in percent.
        per: as for `max_threshold`.

    Raises:
        ValueError: p outside its range; otherwise as `max_threshold`.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> images = images.at[-1].set(1000.0)  # the others are 0 to 14
    >>> recipe = snnjax.Recipe([percentile_threshold(80.0)])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].threshold)
    12.0
    """
    check_choice("per", per, _PER)
    if not is_number(p) or not 1 < p <= 100:
        raise ValueError(f"p is {p!r}; allowed: 1 < p <= 100, in percent, e.g. 99.9")
    p = float(p)  # of an array, which has no hash

    def compute(view: View, fit: Fit) -> jax.Array:
        magnitudes = view.join(view.magnitudes(fit))
        return _percentile(magnitudes, p, per, view.site.channel)

    return _threshold(compute, per)


@named
def own_maximum_threshold() -> Calibrator:
    """V_th = maximum / high, of a clipped or quantized ReLU.

    The calibrator raises ValueError at a site without a maximum of its own.

    >>> import jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: snnjax.clipped_relu(w * x, 6.0)
    >>> images = jnp.arange(4.0)[:, None]  # none of them reaches the maximum
    >>> recipe = snnjax.Recipe([own_maximum_threshold()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].threshold)
    [6.]
    """

    def calibrate(view: View, fit: Fit) -> Fit:
        if view.maximum is None:
            raise ValueError(
                f"site {view.site.name!r} has the kind {view.site.kind!r}, which has "
                "no maximum of its own; allowed: the kinds 'quantized relu' and "
                "'clipped relu'. Take another recipe, e.g. snnjax.best()"
            )
        threshold = view.maximum / view.high
        return fit._replace(neurons=fit.neurons._replace(threshold=threshold))

    return calibrate


@named
def least_squares_threshold(
    per: Per = "layer", objective: Objective = "floor", *, prior: int = 0
) -> Calibrator:
    """V_th = `formulas.least_squares` fit to the activations, for the model's levels.

        high V_th = the V of T high steps

    Args:
        per, objective: as there.
        prior: k, how many samples of the whole layer a channel is judged by beside its
            own; the paper's fit has none. It matters where a channel has few samples,
            as in a dense layer, which has one per image; from 4096 on it is left out.

    Raises:
        ValueError: another word, or a prior that is no whole number >= 0; from the
            calibrator, as `max_threshold`.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([least_squares_threshold()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].threshold)
    12.0

    Four steps then give 0, 3, .. 12: the error of the clipped 13 to 15 is less than
    that of coarser steps up to 15.
    """
    check_choice("per", per, _PER)
    check_choice("objective", objective, ("floor", "round"))
    check_count("prior", prior, least=0)

    def search(view: View, fit: Fit) -> jax.Array:
        # A neuron of T steps and the levels (0, n) has the outputs of one of so many
        # steps and the levels (0, 1); T n of rate coding.
        most = round(view.high / view.finest)
        k = _effective(prior, _per_channel(view))
        statistics = view.samples(fit) if k else view.peaks(fit)
        expected, thresholds = _candidates(statistics, per, k)
        errors = [
            _candidate_errors(a, thresholds, most, objective, view.site.channel, weight)
            for a, weight in zip(view.magnitudes(fit), view.weights(), strict=True)
        ]
        return _nearest(expected, thresholds, functools.reduce(jnp.add, errors), k)

    return _threshold(search, per)


@named
def least_squares_offset() -> Calibrator:
    """offset = `formulas.middle` of each channel of an encoder.

    Half of the levels around 0 are unused where values are skewed, as those of GELU and
    SiLU, or far from 0, as a mean; around the middle of the values all of them serve.
    The price is spikes: a channel of GELU that rests near 0, the lowest of its values,
    sends a negative spike at every step. Other sites keep their fit: what a ReLU gives
    begins at 0, also where its spikes have both signs. Source of offsets for such
    functions: Bhalgat et al., "LSQ+", CVPR workshops 2020.

    >>> import jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: snnjax.encode(x) @ w, 5 + jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([least_squares_offset(), max_threshold()])
    >>> snn = snnjax.convert(fn, jnp.ones((1, 1)), images, steps=4, recipe=recipe)
    >>> neuron = snn.neurons["encoder"]
    >>> print(neuron.offset, neuron.threshold)  # V_th is 20 without it
    [12.5] 7.5
    """

    def calibrate(view: View, fit: Fit) -> Fit:
        if not view.site.signed:
            return fit
        thinned = view.thinned(_OFFSET_SAMPLES)
        activation = thinned.join(thinned.activations)
        weight = thinned.join(thinned.effects) if thinned.effects else None
        intervals = round(2 * view.high / view.finest)
        offset = _middle(activation, intervals, view.site.channel, weight)
        return fit._replace(neurons=fit.neurons._replace(offset=offset))

    return calibrate


# Of each channel: enough to choose among twentieths of its range.
_OFFSET_SAMPLES = 2**12


@named
def shift_bias() -> Calibrator:
    """bias += V_th / (2T), see `formulas.shift`.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([max_threshold(), shift_bias()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].bias)
    1.875
    """

    def calibrate(view: View, fit: Fit) -> Fit:
        neuron = fit.neurons
        bias = neuron.bias + view.finest * neuron.threshold / 2
        return fit._replace(neurons=neuron._replace(bias=bias))

    return calibrate


@named
def half_charge() -> Calibrator:
    """v(0) = V_th / 2: the bias shift's charge, all of it before the first step.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([max_threshold(), half_charge()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].initial_potential)
    7.5
    """

    def calibrate(view: View, fit: Fit) -> Fit:
        half = view.steps * view.finest * fit.neurons.threshold / 2
        return fit._replace(neurons=fit.neurons._replace(initial_potential=half))

    return calibrate


@named
def correct_bias(repeats: int = 1) -> Calibrator:
    """bias += `formulas.bias_correction`, measured anew in each of some rounds.

    Args:
        repeats: rounds, 1 or more.

    Raises:
        ValueError: repeats that is no whole number >= 1.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([max_threshold(), correct_bias()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].bias)
    [1.640625]

    `shift_bias` adds V_th / (2T) = 1.875; these images lack less.
    """
    check_count("repeats", repeats)

    def calibrate(view: View, fit: Fit) -> Fit:
        _warn_of_few("biases", _per_channel(view))
        for _ in range(repeats):
            bias = fit.neurons.bias + _mean_error(view, fit)
            fit = fit._replace(neurons=fit.neurons._replace(bias=bias))
        return fit

    return calibrate


@named
def correct_potential(repeats: int = 1) -> Calibrator:
    """v(0) += `formulas.potential_correction`, measured anew in each of some rounds.

    The paper does it once, from v(0) = 0.

    Args:
        repeats: rounds, 1 or more.

    Raises:
        ValueError: repeats that is no whole number >= 1; from the calibrator, a view
            that is thinned.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> for repeats in (1, 3):
    ...     recipe = snnjax.Recipe([max_threshold(), correct_potential(repeats)])
    ...     snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    ...     print(snn.neurons["relu"].initial_potential)
    [6.5625]
    [7.5]
    """
    check_count("repeats", repeats)

    def calibrate(view: View, fit: Fit) -> Fit:
        if view.stride > 1:
            raise ValueError(
                "correct_potential got a thinned view; allowed: the whole one, since "
                "each position has its own potential"
            )
        _warn_of_few("potentials", view.count)
        correction = functools.partial(_potential_correction, steps=view.steps)
        share = _mean_weight(view)
        for _ in range(repeats):
            change = view.mean(correction, fit)
            if share is not None:
                change = change / share
            start, change = aligned(fit.neurons.initial_potential, change)
            start = start + change
            fit = fit._replace(neurons=fit.neurons._replace(initial_potential=start))
        return fit

    return calibrate


@named
def postpone_charge(
    charges: Sequence[float] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4),
    *,
    pace: float = _PACE,
    prior: int = PRIOR,
) -> Calibrator:
    """Give each channel its charge as late as serves its output best.

    A neuron that acts on its input as it arrives fires on evidence that later input
    takes back. Starting c thresholds lower, and getting them back evenly over the T
    steps, it fires later, on more of its input. Each candidate c is tried by
    `formulas.postpone`, with `formulas.bias_correction` of what that changes; each
    channel gets the c of its smallest `formulas.paced_error`. The answer at t < T gets
    worse: until T a part of the charge is missing.

    With a wait of T there is nothing to gain, since the order of the input does not
    count, nor where a neuron can take a spike back (levels below 0; on ResNet-20 the KL
    divergence was the same): the fit is returned as it is. Source: ours.

    Args:
        charges: candidates c, in thresholds; of equally good ones the nearest to 0.
        pace: weight of the spikes' pace in that error, >= 0.
        prior: how many samples of the whole layer a channel is judged by beside its
            own (`formulas.Expected`), and whether one larger than them all counts
            (`formulas.unseen_error`); with 0, or from 4096 samples on, neither does.

    Raises:
        ValueError: charges that are not finite, or none; a pace or a prior outside its
            range.

    The second layer below is excited by 1 at every step; what inhibits it comes later.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(jax.nn.relu(x) @ w)
    >>> images = jnp.stack([jnp.ones(16), jnp.arange(16) / 16], axis=1)
    >>> recipe = snnjax.Recipe([max_threshold(), postpone_charge((0, 1))])
    >>> w = jnp.array([[1.0], [-2.0]])
    >>> snn = snnjax.convert(fn, w, images, steps=5, recipe=recipe)
    >>> neuron = snn.neurons["relu_1"]
    >>> print(neuron.initial_potential, neuron.bias)
    [-1.] [0.2]
    """
    charges = sorted(_checked_numbers("charges", charges), key=abs)
    _check_pace(pace)
    check_count("prior", prior, least=0)

    def calibrate(view: View, fit: Fit) -> Fit:
        streams = view.code.clock_runs and view.needs_time
        if not streams or view.model.levels[0] < 0:
            return fit
        postpone = functools.partial(_postpone, steps=view.steps)
        return _search(view, fit, charges, postpone, pace, prior)

    return calibrate


@named
def scale_threshold(
    factors: Sequence[float] = (0.75, 0.9, 1, 1.15, 1.3, 1.5, 1.8),
    *,
    pace: float = _PACE,
    prior: int = PRIOR,
) -> Calibrator:
    """`formulas.scale` each channel by the factor that serves its spikes best.

    `formulas.least_squares` gives the threshold for input that arrives evenly. Here
    every candidate is tried on the spikes that do arrive, as in `postpone_charge`, and
    where samples are few, what it would clip of new images counts (``prior``).

    Args:
        factors: candidates, > 0; of equally good ones the nearest to 1.
        pace, prior: as for `postpone_charge`.

    Raises:
        ValueError: factors that are not finite and > 0, or none; otherwise as
            `postpone_charge`.

    The spikes of the first layer below come unevenly to the second one.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(jax.nn.relu(x) @ w)
    >>> images = jnp.stack([jnp.ones(16), jnp.arange(16) / 16], axis=1)
    >>> recipe = snnjax.Recipe([max_threshold(), scale_threshold((1, 1.25))])
    >>> w = jnp.array([[1.0], [-2.0]])
    >>> snn = snnjax.convert(fn, w, images, steps=5, recipe=recipe)
    >>> print(snn.neurons["relu"].threshold, snn.neurons["relu_1"].threshold)
    [1. 1.] [1.25]
    """
    candidates = _checked_numbers("factors", factors)
    _check_pace(pace)
    check_count("prior", prior, least=0)
    for factor in factors:
        check_positive("a factor", factor)
    nearest_first = sorted(candidates, key=lambda factor: abs(factor - 1))
    return lambda view, fit: _search(view, fit, nearest_first, _scale, pace, prior)


@named
def by_effect(*calibrators: Calibrator) -> Calibrator:
    """These calibrators, with errors weighed by their effect on the outputs.

    A position that the outputs do not depend on, as a padded token, then counts
    nothing, and one that they depend on strongly counts most. `View.by_effect` has the
    equation. Source of weighing by second-order terms: Li et al., arXiv 2205.10121;
    of this weight: ours.

    Raises:
        ValueError: no calibrator, or what does not take (view, fit).

    >>> import jax, jax.numpy as jnp, snnjax
    >>> images = jnp.stack([jnp.arange(16.0), jnp.full(16, 100.0)], 1)[..., None]
    >>> fn = lambda w, x: jax.nn.relu(w * x)[:, 0]  # of two positions
    >>> for threshold in (max_threshold(), by_effect(max_threshold())):
    ...     snn = snnjax.convert(
    ...         fn, jnp.ones(1), images, steps=4, recipe=snnjax.Recipe([threshold]))
    ...     print(snn.neurons["relu"].threshold)
    100.0
    15.0
    """
    if not calibrators:
        raise ValueError("by_effect has no calibrator; allowed: one or more")
    for calibrator in calibrators:
        check_calibrator(calibrator)

    def calibrate(view: View, fit: Fit) -> Fit:
        weighed = view.by_effect()
        return functools.reduce(lambda fit, c: c(weighed, fit), calibrators, fit)

    return calibrate


@named
def streaming_only(calibrator: Calibrator) -> Calibrator:
    """The calibrator where layers do not wait; elsewhere the fit as it is.

    Raises:
        ValueError: what does not take (view, fit).

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([max_threshold(), streaming_only(half_charge())])
    >>> for wait in (0, 1):
    ...     snn = snnjax.convert(
    ...         fn, jnp.ones(1), images, steps=4, recipe=recipe, wait=wait)
    ...     print(snn.neurons["relu"].initial_potential)
    7.5
    0.0
    """
    check_calibrator(calibrator)

    def calibrate(view: View, fit: Fit) -> Fit:
        return calibrator(view, fit) if view.wait == 0 else fit

    return calibrate


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
    """Per channel ``change(neuron, candidate)`` of the smallest `formulas.paced_error`.

    Each candidate is judged with its bias corrected, but applied without: the
    calibrators that follow correct what the chosen one leaves. Of equal candidates the
    first is taken. Dozens are compared, so on no more positions than necessary.

    Where a channel has few samples, the errors of ``prior`` samples of the layer, and
    of one sample beyond its largest, are added to those of its own
    (`formulas.Expected`).
    """
    thinned, channels = view.thinned(_SAMPLES), parameter_shapes(view.site)["threshold"]
    unit = _binary_unit(jnp.broadcast_to(fit.neurons.threshold, channels))
    paced_error = functools.partial(
        _paced_error, unit=unit, pace=pace, channel=view.site.channel
    )

    def trial(candidate: float) -> tuple[jax.Array, jax.Array]:
        # One number per channel, so that what is chosen takes the same program.
        per_channel = np.full(channels, candidate, np.float32)
        changed = fit._replace(neurons=change(fit.neurons, per_channel))
        bias = changed.neurons.bias + _mean_error(thinned, changed)
        corrected = changed._replace(neurons=changed.neurons._replace(bias=bias))
        # One candidate at a time: dozens in flight would take memory, and on virtual
        # devices their collectives may wait for each other until XLA gives up.
        error = thinned.mean(paced_error, corrected, paced=True)
        return jax.block_until_ready((view.high * changed.neurons.threshold, error))

    tops, errors = zip(*map(trial, candidates), strict=True)
    trials = np.asarray(candidates, np.float32)
    count = _per_channel(thinned)
    k = _effective(prior, count)
    samples = thinned.samples(fit) if k else None
    chosen = _least(trials, tops, errors, samples, unit, count, k, pace)
    return fit._replace(neurons=change(fit.neurons, chosen))


@functools.partial(jax.jit, static_argnames=("count", "prior"))
def _least(candidates, tops, errors, samples, unit, count, prior, pace):
    """The candidate whose error is least, for each channel.

    Args:
        candidates: [K].
        tops: the largest output of a neuron that each of them gives.
        errors: `formulas.paced_error` of each of them, [C] or shaped like V_th.
        samples: `formulas.samples` of each channel.
        unit: of the errors.
        count: activations of each channel, silent ones among them.
        prior, pace: as for `postpone_charge`.
    """
    total = count * jnp.stack(errors)
    if prior == 0:
        return candidates[total.argmin(0)]
    expected = formulas.expected(samples, "channel", prior)
    unseen = jax.vmap(lambda top: formulas.unseen_error(top, expected, unit))
    total += (1 + pace) * unseen(jnp.stack(tops))
    of_layer = formulas.of_layer(total, expected.count)
    of_layer = of_layer.reshape(-1, *[1] * (total.ndim - 1))
    return candidates[(total + prior * of_layer).argmin(0)]


@functools.partial(jax.jit, static_argnames="channel")
def _paced_error(activation, output, *, unit, pace, channel, weight=None) -> jax.Array:
    """`formulas.paced_error` in units per channel, so that squares stay in range."""
    unit = lead(unit, activation.ndim)
    mean, early = (wide(part) / unit for part in output)
    activation = wide(activation) / unit
    return formulas.paced_error(activation, (mean, early), pace, channel, weight)


def _mean_error(view: View, fit: Fit) -> jax.Array:
    """`formulas.bias_correction` of all images."""
    correction = functools.partial(_bias_correction, channel=view.site.channel)
    return view.mean(correction, fit)


def _mean_weight(view: View) -> jax.Array | None:
    """The mean of the effects over the images, [..., 1]; 1 at positions without any."""
    if view.effects is None:
        return None
    total = functools.reduce(jnp.add, [_sum_over_images(w) for w in view.effects])
    return _positive_or_1(total / view.count)


@jax.jit
def _sum_over_images(weight: jax.Array) -> jax.Array:
    return weight.sum(0)


@jax.jit
def _positive_or_1(share: jax.Array) -> jax.Array:
    return jnp.where(share > 0, share, jnp.ones_like(share))


def _threshold(compute: Callable[[View, Fit], Any], per: Per) -> Calibrator:
    """V_th = ``compute(view, fit)``, the largest output, over the highest level."""

    def calibrate(view: View, fit: Fit) -> Fit:
        if per == "layer" and view.site.own_maxima:
            raise ValueError(
                f"site {view.site.name!r} clips each channel at a maximum of its own, "
                "and one threshold per layer would clip at the largest; allowed: "
                "per='channel', as in snnjax.light('channel') or snnjax.best()"
            )
        if per == "channel":
            _warn_of_few("thresholds", _per_channel(view))
        threshold = compute(view, fit) / view.high
        return fit._replace(neurons=fit.neurons._replace(threshold=threshold))

    return calibrate


@functools.partial(jax.jit, static_argnames=("per", "prior"))
def _candidates(statistics: Any, per: Per, prior: int):
    """What is expected, and the thresholds to compare.

    Args:
        statistics: samples of each channel; their peaks, if there is no prior.
    """
    if prior:
        expected = formulas.expected(statistics, per, prior)
        return expected, formulas.candidates(expected.largest, expected.excess, prior)
    return None, formulas.candidates(formulas.positive(statistics, per))


# Samples of a channel beside which those of its layer do not count: with them, a
# conversion compiles a sixth longer, for thresholds that are the same but for chance.
_MANY = 2**12


def _effective(prior: int, samples: int) -> int:
    """The prior, where it could make a difference to so many samples."""
    return prior if samples < _MANY else 0


def _per_channel(view: View) -> int:
    """Samples of each channel: images times positions."""
    first = view.activations[0]
    return view.count * first[0].size // first.shape[view.site.channel]


def _warn_of_few(what: str, samples: int) -> None:
    if samples < PRIOR:  # then the layer decides more about a channel than its samples
        warnings.warn(
            f"{what} are fitted to {samples} samples each, and may not suit new "
            f"images; recommended: {PRIOR} calibration images or more",
            stacklevel=2,
        )


def _checked_numbers(name: str, numbers: Sequence[float]) -> list[float]:
    """Python's own, of several numbers in whatever form."""
    try:
        is_real = np.asarray(numbers).dtype.kind in "iuf"
        array = np.asarray(numbers if is_real else (), float)
    except (TypeError, ValueError):  # a complex, a ragged or a traced number
        array = np.array([])
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"{name} is {numbers}; allowed: one finite number or more, concrete "
            "when the recipe is made"
        )
    return array.tolist()


def _check_pace(pace: float) -> None:
    if not is_number(pace) or not 0 <= pace < np.inf:
        raise ValueError(f"pace is {pace!r}; allowed: a finite number >= 0")


_positive = jax.jit(formulas.positive, static_argnames="per")
_percentile = jax.jit(formulas.percentile, static_argnames=("p", "per", "channel"))
_candidate_errors = jax.jit(
    formulas.candidate_errors, static_argnames=("objective", "channel")
)
_nearest = jax.jit(formulas.nearest, static_argnames="prior")
_middle = jax.jit(formulas.middle, static_argnames=("intervals", "channel"))
_binary_unit = jax.jit(formulas.binary_unit)
_bias_correction = jax.jit(formulas.bias_correction, static_argnames="channel")
_potential_correction = jax.jit(formulas.potential_correction)
_postpone = jax.jit(formulas.postpone, static_argnames="steps")
_scale = jax.jit(formulas.scale)
