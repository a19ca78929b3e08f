"""Calibrators of a site's threshold, bias, initial potential and offset.

A calibrator is a function ``(View, Fit) -> Fit``: it takes a site's activations and the
spikes that arrive there, and applies a formula of ``formulas.py`` to its parameters.
Source of the layer-wise scheme: Li, Deng, Dong, Gong and Gu, ICML 2021.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import lead, on_host, other_axes, subtract_offset
from snnjax._checks import check_choice, check_count, check_positive, is_number
from snnjax._text import named
from snnjax._types import Objective, Per
from snnjax.calibrators import formulas
from snnjax.calibrators.parameters import parameter_shapes
from snnjax.calibrators.sample import Sample
from snnjax.calibrators.search import effective_prior, search
from snnjax.calibrators.view import Calibrator, Fit, View, check_calibrator

# Weight of the pace where a search compares spikes. On ResNet-20 without a wait it took
# 63 % off the KL divergence at T = 16 and 78 % at T = 32.
_PACE = 0.1
# Samples of the layer to judge a channel by. For a wide dense layer on 16 images, half
# as many raised the threshold's error by up to 6 %; twice as many lowered it by 3 %.
PRIOR = 16


@named
def max_threshold(per: Per = "layer") -> Calibrator:
    """V_th = `formulas.maximum` of the activations, over `View.high`.

    `View.high` is the largest output of a neuron with threshold 1: its highest level,
    times w_1 + .. + w_T.

    Args:
        per: "layer", one threshold for the site, or "channel".

    Raises:
        ValueError: per is neither of them; from the calibrator, "layer" at a site whose
            channels are clipped at maxima of their own.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([max_threshold("channel")])
    >>> w = jnp.array([1.0, 0.1])  # two channels
    >>> snn = snnjax.convert(fn, w, images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].threshold)
    [15.   1.5]
    """
    check_choice("per", per, get_args(Per))

    def compute(view: View, fit: Fit) -> jax.Array:
        return _maximum(view.sample, fit.neurons.offset, per, view.high)

    return _threshold(compute, per)


@named
def percentile_threshold(p: float, per: Per = "layer") -> Calibrator:
    """V_th = `formulas.percentile` of the activations, over `View.high`.

    This clips rare large activations; all others are rounded to a finer grid.

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
    check_choice("per", per, get_args(Per))
    if not is_number(p) or not 1 < p <= 100:
        raise ValueError(f"p is {p!r}; allowed: 1 < p <= 100, in percent, e.g. 99.9")
    p = float(p)  # of an array, which has no hash

    def compute(view: View, fit: Fit) -> jax.Array:
        arrays = list(view.activations), view.effects, fit.neurons.offset
        return _percentile(*arrays, p, per, view.high, view.site.channel)

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
        return _with(fit, threshold=on_host(view.maximum) / view.high)

    return calibrate


@named
def least_squares_threshold(
    per: Per = "layer", objective: Objective = "floor", *, prior: int = 0
) -> Calibrator:
    """V_th = `formulas.least_squares` fit to the activations, over `View.high`.

    The formula is for binary neurons. Its T is `View.values` here: how many values
    above 0 a neuron can send. The errors are those of 2^15 positions of a channel, or
    of all if there are fewer; the largest activation is that of all.

    Args:
        per, objective: as in `formulas.least_squares`.
        prior: k, the number of samples of the whole layer that are added to those of
            a channel. The paper adds none. They matter where a channel has few samples,
            as in a dense layer, which has one per image. With 4096 samples or more per
            channel, none are added.

    Raises:
        ValueError: an argument outside its range; from the calibrator, as
            `max_threshold`.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([least_squares_threshold()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].threshold)
    12.0

    Four steps then give 0, 3, .. 12: the error of the clipped 13 to 15 is less than
    that of coarser steps up to 15.
    """
    check_choice("per", per, get_args(Per))
    check_choice("objective", objective, get_args(Objective))
    check_count("prior", prior, least=0)

    def compute(view: View, fit: Fit) -> jax.Array:
        arrays = view.sample, fit.neurons.offset
        k = effective_prior(prior, view.sample)
        return _least_squares(*arrays, per, objective, view.values, view.high, k)

    return _threshold(compute, per)


@named
def least_squares_offset() -> Calibrator:
    """offset = `formulas.middle` of each channel of an encoder.

    A grid that is symmetric around 0 wastes levels on values that are skewed, as those
    of GELU and SiLU, or far from 0, as a mean. A grid around the middle of the values
    uses all levels, but values near 0 then cost spikes. Other sites keep their fit,
    since the values of a ReLU begin at 0. With codes other than rate coding no offset
    is fitted: there a value near 0 costs no spike. Source of offsets for such
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
        if not view.site.signed or not view.code.clock_runs:
            return fit
        offset = _middle(view.sample, intervals=2 * view.values)
        return _with(fit, offset=offset.reshape(_threshold_shape(view)))

    return calibrate


@named
def shift_bias() -> Calibrator:
    """bias += w_T V_th / 2: V_th / (2T) with rate coding.

    That makes the expected error of the floor 0 for activations that are uniform within
    each level. Source: Deng and Gu.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([max_threshold(), shift_bias()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].bias)
    1.875
    """

    def calibrate(view: View, fit: Fit) -> Fit:
        neuron = on_host(fit.neurons)
        return _with(fit, bias=neuron.bias + view.finest * neuron.threshold / 2)

    return calibrate


@named
def half_charge() -> Calibrator:
    """v(0) = T w_T V_th / 2, which is V_th / 2 with rate coding.

    This is all of the charge that `shift_bias` adds step by step.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([max_threshold(), half_charge()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].initial_potential)
    7.5
    """

    def calibrate(view: View, fit: Fit) -> Fit:
        half = view.steps * view.finest * on_host(fit.neurons.threshold) / 2
        return _with(fit, initial_potential=half)

    return calibrate


@named
def correct_bias(repeats: int = 1) -> Calibrator:
    """bias += sum of w (a - s) / sum of w, ``repeats`` times.

    The sums are over images and positions. a is the ANN's activation, s the neuron's
    mean output, and w the effect of an error within `by_effect`, otherwise 1. Source:
    Li et al.

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
        _warn_of_few("biases", _samples_per_channel(view))
        axes = other_axes(len(view.site.shape), view.site.channel)
        for _ in range(repeats):
            missing, weight = (on_host(part).sum(axes) for part in view.missing(fit))
            change = (missing / weight).reshape(_threshold_shape(view))
            fit = _with(fit, bias=on_host(fit.neurons.bias) + change)
        return fit

    return calibrate


@named
def correct_potential(repeats: int = 1) -> Calibrator:
    """v(0) += T sum of w (a - s) / sum of w, over images, ``repeats`` times.

    a, s and w are those of `correct_bias`. Li et al. do it once, from v(0) = 0.

    Args:
        repeats: rounds, 1 or more.

    Raises:
        ValueError: repeats that is no whole number >= 1.

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
        _warn_of_few("potentials", view.count)
        for _ in range(repeats):
            missing, weight = on_host(view.missing(fit))
            # Where no image has weight, missing is 0, too.
            has_none = (weight == 0).astype(weight.dtype)
            change = view.steps * missing / (weight + has_none)
            start = lead(on_host(fit.neurons.initial_potential), change.ndim) + change
            fit = _with(fit, initial_potential=start)
        return fit

    return calibrate


@named
def postpone_charge(
    charges: Sequence[float] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4),
    *,
    pace: float = _PACE,
    prior: int = PRIOR,
) -> Calibrator:
    """Move a charge of c thresholds from v(0) into the bias: neurons fire later.

    A neuron that fires before it has all of its input may fire on input that is
    inhibited later. If it starts c thresholds lower, and gets them back evenly over the
    T steps, it fires later and has seen more of its input. `formulas.postpone` computes
    each candidate c, and the bias is corrected as by `correct_bias`. A channel gets the
    c that minimizes

        sum w (a - s)^2  +  pace sum w (a - p)^2

    s is the mean output, p its pace (`snnjax.neurons.mean_and_pace`), w the effect of
    an error (`by_effect`). The pace counts because the next layer reacts to spikes as
    they arrive. The sums are over 2^15 positions of a channel, or all if there are
    fewer. Outputs at t < T get worse, because a part of the charge is missing until T.

    The fit is returned unchanged with a wait of T, where the order of the input does
    not matter, under codes other than rate coding, and where a neuron can take a spike
    back (levels below 0; on ResNet-20 the KL divergence was the same). Source: ours.

    Args:
        charges: candidates c, in thresholds. If several are equally good, the nearest
            to 0 is taken.
        pace: weight of the second sum, >= 0.
        prior: number of samples of the whole layer that are added to those of a channel
            (`formulas.Expected`). If it is not 0, one sample beyond the largest is
            added too (`formulas.unseen_error`). With 4096 samples or more per channel,
            both additions are omitted.

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
    smallest_first = sorted(_checked_numbers("charges", charges), key=abs)
    postpone = _search([(1.0, charge) for charge in smallest_first], pace, prior)

    def calibrate(view: View, fit: Fit) -> Fit:
        order_matters = view.code.clock_runs and view.needs_time
        is_final = view.model.levels[0] >= 0  # no spike can be taken back
        return postpone(view, fit) if order_matters and is_final else fit

    return calibrate


@named
def scale_threshold(
    factors: Sequence[float] = (0.75, 0.9, 1, 1.15, 1.3, 1.5, 1.8),
    *,
    pace: float = _PACE,
    prior: int = PRIOR,
) -> Calibrator:
    """Scale each channel (`formulas.scale`) by the factor that lowers its error most.

    `formulas.least_squares` gives the threshold for input that arrives evenly. Here
    every candidate is tried on the spikes that really arrive, as in `postpone_charge`.
    Where samples are few, ``prior`` adds the error of clipping larger activations.

    Args:
        factors: candidates, > 0. If several are equally good, the nearest to 1 is
            taken.
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
    numbers = _checked_numbers("factors", factors)
    for factor in factors:
        check_positive("a factor", factor)
    nearest_first = sorted(numbers, key=lambda factor: abs(factor - 1))
    return _search([(factor, 0.0) for factor in nearest_first], pace, prior)


@named
def by_effect(*calibrators: Calibrator) -> Calibrator:
    """These calibrators, with each error weighted by its effect on the outputs.

    A position that does not affect the outputs, such as a padded token, then has weight
    0. `View.by_effect` has the equation. Second-order weights follow Li et al., arXiv
    2205.10121; this estimator of them is ours.

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
        weighted = view.by_effect()
        for calibrator in calibrators:
            fit = calibrator(weighted, fit)
        return fit

    return calibrate


@named
def streaming_only(calibrator: Calibrator) -> Calibrator:
    """Apply the calibrator only with rate coding and a wait of 0.

    Otherwise the fit is returned unchanged.

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
        is_streaming = view.code.clock_runs and view.wait == 0
        return calibrator(view, fit) if is_streaming else fit

    return calibrate


def _with(fit: Fit, **parameters: Any) -> Fit:
    """The fit with other values of these parameters of its neurons."""
    return fit._replace(neurons=fit.neurons._replace(**parameters))


def _search(
    candidates: Sequence[tuple[float, float]], pace: float, prior: int
) -> Calibrator:
    """The best (factor, charge) for each channel, by `search`."""
    if not is_number(pace) or not 0 <= pace < np.inf:
        raise ValueError(f"pace is {pace!r}; allowed: a finite number >= 0")
    check_count("prior", prior, least=0)
    return lambda view, fit: search(view, fit, candidates, pace, prior)


def _threshold(compute: Callable[[View, Fit], Any], per: Per) -> Calibrator:
    """V_th = ``compute(view, fit)``; refuse what it cannot be fitted to, or warn."""

    def calibrate(view: View, fit: Fit) -> Fit:
        if per == "layer" and view.site.own_maxima:
            raise ValueError(
                f"site {view.site.name!r} clips each channel at a maximum of its own, "
                "and one threshold per layer would clip at the largest; allowed: "
                "per='channel', as in snnjax.light('channel') or snnjax.best()"
            )
        if per == "layer":
            return _with(fit, threshold=compute(view, fit))
        _warn_of_few("thresholds", _samples_per_channel(view))
        threshold = compute(view, fit).reshape(_threshold_shape(view))
        return _with(fit, threshold=threshold)

    return calibrate


@functools.partial(jax.jit, static_argnames=("per", "high"))
def _maximum(sample: Sample, offset: Any, per: Per, high: float) -> jax.Array:
    return formulas.maximum(sample.peaks(offset)[None], per) / high


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _percentile(activations, effects, offset, p, per, high, channel) -> jax.Array:
    """Of all positions: a sample may lack the largest values."""
    sizes = jnp.abs(subtract_offset(jnp.concatenate(activations), offset))
    if effects is not None:
        sizes = jnp.where(jnp.concatenate(effects) > 0, sizes, 0)
    return formulas.percentile(sizes, p, per, channel) / high


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _least_squares(sample, offset, per, objective, values, high, prior) -> jax.Array:
    """`formulas.least_squares` of a sample, with the peaks of all positions."""
    threshold = formulas.least_squares(
        sample.magnitudes(offset),
        values,
        per,
        objective,
        channel=-1,
        prior=prior,
        weight=sample.weight,
        peaks=sample.peaks(offset),
    )
    return threshold / high


@functools.partial(jax.jit, static_argnames="intervals")
def _middle(sample: Sample, intervals: int) -> jax.Array:
    return formulas.middle(sample.activation, intervals, weight=sample.weight)


def _threshold_shape(view: View) -> tuple[int, ...]:
    """The shape of V_th of a neuron per channel."""
    return parameter_shapes(view.site)["threshold"]


def _samples_per_channel(view: View) -> int:
    """Samples of each channel: images times positions."""
    site = view.site
    return view.count * math.prod(site.shape) // site.shape[site.channel]


def _warn_of_few(what: str, samples: int) -> None:
    if samples < PRIOR:
        warnings.warn(
            f"{what} are fitted to {samples} samples each, and may not suit new "
            f"images; recommended: {PRIOR} calibration images or more",
            stacklevel=2,
        )


def _checked_numbers(name: str, numbers: Sequence[float]) -> list[float]:
    """A sequence of finite real numbers as Python's floats; raise if it is none."""
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
