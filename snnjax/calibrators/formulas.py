"""The mathematics of calibration: functions of arrays that need no network.

``activation`` a [N, ..., C] is the ANN's. The mean output of the spiking neurons over T
steps for the same N images is s, and the formulas bring s close to a.
Sources: Deng and Gu, ICLR 2021 (bias shift); Li, Deng, Dong, Gong and Gu, ICML 2021
(least-squares threshold, bias and potential correction); Bhalgat et al., CVPR workshops
2020 (offsets); `postpone` and `Expected` are ours.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import aligned, lead, per_channel
from snnjax._types import Objective, Per
from snnjax.calibrators.blocks import in_blocks, sum_over
from snnjax.neurons.models import NeuronParams

__all__ = [
    "Expected",
    "binary_unit",
    "expected",
    "least_squares",
    "maximum",
    "middle",
    "percentile",
    "postpone",
    "scale",
    "unseen_error",
]


def maximum(activation: jax.Array, per: Per = "layer", channel: int = -1) -> jax.Array:
    """max a over the images: the classical threshold ("threshold balancing").

    Args:
        activation: ANN activations [N, ...], >= 0.
        per: "layer" gives a scalar, "channel" [C] (or [C, 1, 1] if two axes follow).
        channel: axis that counts channels, from the end.

    A channel that is never active takes the layer's maximum, and a layer that is
    never active takes 1: a threshold must be positive.

    >>> import jax.numpy as jnp
    >>> print(maximum(jnp.array([[1.0, 0.0], [2.0, 0.0]]), "channel"))
    [2. 2.]
    """
    return _positive(per_channel(jnp.max, activation.astype(jnp.float32), channel), per)


def _positive(largest: jax.Array, per: Per) -> jax.Array:
    """`maximum`, from the largest activation of each channel."""
    layer = largest.max()
    layer = jnp.where(layer > 0, layer, 1)
    return layer if per == "layer" else jnp.where(largest > 0, largest, layer)


class Expected(NamedTuple):
    """What to expect of new activations, from a sample: [C], or [] for a layer.

    A channel of a dense layer has one sample per image. New activations soon exceed its
    largest one, and the best choice for its samples may be best by chance. So a channel
    is also judged by k samples of the whole layer, in units of its scale s, and by one
    sample beyond its largest: the next one lies there with probability 1 / (n + 1)
    (Laplace's rule of succession). For large n these additions vanish.

        s_c = (sum a + k (mean a of the layer)) / (n_c + k),   of all a > 0
        b_c = s_c sum_c (M_c - m_c) / sum_c s_c

    M and m are the two largest a. The tails of most distributions are about
    exponential, and for an exponential one the mean of M - m is the mean excess b over
    M (Renyi, 1953).

    Attributes:
        largest: M; the layer's for a channel that is never active, 1 for such a layer.
        scale: s.
        excess: b; 0 if k is 0, or where M occurs twice, as a clipped ReLU's maximum.
        count: n, of a > 0.

    >>> import jax.numpy as jnp
    >>> activation = jnp.array([[1.0], [2.0], [4.0]])
    >>> tail = expected(activation, "channel", prior=1)
    >>> print(tail.largest, tail.excess)  # the next one may be so much larger
    [4.] [2.]
    """

    largest: jax.Array
    scale: jax.Array
    excess: jax.Array
    count: jax.Array


def expected(
    activation: jax.Array, per: Per = "layer", prior: int = 0, channel: int = -1
) -> Expected:
    """`Expected` for a layer or for its channels.

    Args:
        activation: ANN activations [N, ...], >= 0.
        per, channel: as for `maximum`.
        prior: k, a whole number >= 0.

    >>> import jax.numpy as jnp
    >>> activation = jnp.array([[1.0, 8.0], [2.0, 8.0]])
    >>> for prior in (0, 2):  # a prior draws the channels together
    ...     print(expected(activation, "channel", prior).scale)
    [1.5 8. ]
    [3.125 6.375]
    """
    activation = activation.astype(jnp.float32)
    over = functools.partial(per_channel, channel=channel)
    total, largest = over(jnp.sum, activation), over(jnp.max, activation)
    count = over(jnp.sum, activation > 0).astype(jnp.float32)
    layer_count = jnp.maximum(count.sum(), 1)
    mean = jnp.where(count.sum() > 0, total.sum() / layer_count, 1)
    threshold = _positive(largest, per)
    if per == "layer":
        total, count, largest = total.sum(), count.sum(), largest.max()
        over = lambda reduce, x: reduce(x)  # noqa: E731
    scale = (total + prior * mean) / jnp.maximum(count + prior, 1)
    scale = jnp.where(scale > 0, scale, mean)  # of a silent channel, without a prior
    top = lead(largest, activation.ndim)
    second = over(jnp.max, jnp.where(activation < top, activation, 0))
    twice = over(jnp.sum, activation == top) > 1
    gap = jnp.where(twice, 0, largest - second)
    excess = jnp.where(gap > 0, min(prior, 1) * gap.sum() / scale.sum() * scale, 0)
    return Expected(threshold, scale, excess, count)


def unseen_error(
    threshold: jax.Array, expected: Expected, unit: jax.Array | float = 1.0
) -> jax.Array:
    """Error, in squares of a unit, of one activation beyond the largest.

        2 b^2 exp(-max(V - M, 0) / b) = E max(M + b X - max(V, M), 0)^2
        P(X > x) = exp(-x)

    The samples themselves show what a threshold below M clips.

    >>> import jax.numpy as jnp
    >>> tail = Expected(jnp.array(2.0), jnp.array(1.0), jnp.array(0.5), jnp.array(9.0))
    >>> print(unseen_error(jnp.array([1.0, 2.0, 2.5]), tail))
    [0.5        0.5        0.18393973]
    """
    threshold, largest, excess, unit = aligned(
        threshold, expected.largest, expected.excess, unit
    )
    margin, excess = jnp.maximum(threshold - largest, 0) / unit, excess / unit
    return 2 * excess**2 * jnp.exp(-margin / jnp.maximum(excess, _TINY))


_TINY = float(np.finfo(np.float32).tiny)


def of_layer(errors: jax.Array, count: jax.Array) -> jax.Array:
    """sum_c e_c / sum_c n_c, [K]: the error of K candidates per sample of the layer.

    Args:
        errors: e, [K, C], sums over the samples of a channel, in its unit.
        count: n, [C].
    """
    return errors.reshape(len(errors), -1).sum(1) / jnp.maximum(count.sum(), 1)


def percentile(
    activation: jax.Array, p: float, per: Per = "layer", channel: int = -1
) -> jax.Array:
    """The p-th percentile of the activations; where it is 0, their `maximum`.

    Args:
        activation: ANN activations [N, ...], >= 0.
        p: 1 < p <= 100, in percent.
        per, channel: as for `maximum`.

    >>> import jax.numpy as jnp
    >>> print(percentile(jnp.array([[0.0, 2.0], [1.0, 6.0]]), 50.0, "channel"))
    [0.5 4. ]
    """
    activation = activation.astype(jnp.float32)
    if per == "layer":
        value = jnp.percentile(activation, p)
    else:
        of_channel = functools.partial(jnp.percentile, q=p)
        value = per_channel(of_channel, activation, channel)
    return jnp.where(value > 0, value, maximum(activation, per, channel))


def least_squares(
    activation: jax.Array,
    steps: int,
    per: Per = "layer",
    objective: Objective = "floor",
    channel: int = -1,
    prior: int = 0,
    *,
    weight: jax.Array | None = None,
    peaks: jax.Array | None = None,
) -> jax.Array:
    """The threshold whose ClipFloor is nearest to the activations.

        argmin_V  e(V) + k s^2 p(V / s) + unseen_error(V)
        e(V) = sum (ClipFloor(a; T, V) - a)^2
        p(g) = sum_c e_c(g s_c) / s_c^2  /  sum_c n_c
        ClipFloor(a; T, V) = (V / T) floor(clip(a T / V, 0, T))

    p is an estimate: e_c is interpolated linearly between the candidates V of its own
    channel, and constant beyond them. The candidates are V = M + i b for i = min(k, 8)
    .. 1 and V = M (1 - i / 100) for i = 0 .. 94; of equals the largest is taken. M =
    max(a); s, b and n are those of `Expected`. With k = 0 it is the paper's: argmin
    e(V), and no V is above M.

    Args:
        activation: ANN activations [N, ...], >= 0.
        steps: T.
        per, channel: as for `maximum`.
        objective: "floor" is the paper's; "round" adds 1/2 inside the floor, as the
            neuron does after the bias shift.
        prior: k.
        weight: of each error, shaped like the activations with one channel; None: 1.
        peaks: M of each channel, where the activations are a sample of more.

    >>> import jax.numpy as jnp
    >>> a = jnp.array([[0.1], [0.2], [0.3], [5.0]])
    >>> print(least_squares(a, 1000), least_squares(a, 1, objective="round"))
    5.0 5.0
    """
    tail = expected(activation, per, prior, channel)
    largest = tail.largest if peaks is None else _positive(peaks, per)
    thresholds = jnp.multiply.outer(_FRACTIONS, largest)
    if prior:
        multiples = np.arange(min(prior, 8), 0, -1).astype(np.float32)
        beyond = largest[None] + jnp.multiply.outer(multiples, tail.excess)
        thresholds = jnp.concatenate([beyond, thresholds])
    shape, thresholds = largest.shape, thresholds.reshape(len(thresholds), -1)
    errors = _candidate_errors(
        activation, thresholds, steps, objective, channel, weight
    )
    if prior:
        tail = Expected(*map(jnp.ravel, tail))
        unit = binary_unit(thresholds[0])
        squares = ((tail.scale / unit) ** 2)[None]
        p = _layer_curve(thresholds / tail.scale[None], errors / squares, tail)
        errors += prior * squares * p + unseen_error(thresholds, tail, unit)
    return jnp.take_along_axis(thresholds, errors.argmin(0)[None], 0).reshape(shape)


# Rounded once: a last bit more or less would change the spikes of a deep network.
_FRACTIONS = (1 - 0.01 * np.arange(95)).astype(np.float32)


def _candidate_errors(
    activation: jax.Array,
    thresholds: jax.Array,
    steps: int,
    objective: Objective,
    channel: int,
    weight: jax.Array | None,
) -> jax.Array:
    """e(V) of `least_squares` for each candidate V, [K, 1] or [K, C].

    In the `binary_unit` of the largest V, so that squares stay in float32's range.
    """
    half = {"floor": 0.0, "round": 0.5}[objective]
    unit, channels = binary_unit(thresholds[0]), thresholds.shape[1]
    activation = jnp.moveaxis(activation.astype(jnp.float32), channel, -1)
    arrays = [activation]
    if weight is not None:
        weight = jnp.moveaxis(weight, channel, -1)
        arrays.append(jnp.broadcast_to(weight, activation.shape))
    blocks = [in_blocks(array.reshape(-1, channels)) for array in arrays]
    repeats = blocks[0].shape[-1] // channels

    def errors(threshold):
        v, u = jnp.tile(threshold, repeats), jnp.tile(unit, repeats)

        def squares(a, *weight):
            count = jnp.minimum(jnp.floor(a * steps / v + half), steps)
            return math.prod(weight, start=((count * v / steps - a) / u) ** 2)

        return sum_over(squares, blocks, channels)

    return jax.lax.map(errors, thresholds)


def binary_unit(values: jax.Array) -> jax.Array:
    """For each number the power of two above it, which scales without rounding.

    >>> import jax.numpy as jnp
    >>> print(binary_unit(jnp.array([0.3, 5.0, 0.0])))
    [0.5 8.  1. ]
    """
    return jnp.ldexp(jnp.ones_like(values), jnp.frexp(jnp.abs(values))[1])


def _layer_curve(places: jax.Array, errors: jax.Array, tail: Expected) -> jax.Array:
    """p of `least_squares` at g = V / s, [K, C].

    The candidates of each channel are other multiples of its s, so that its errors at
    those of the other channels are interpolated.
    """
    grid = jnp.geomspace(places.min(), places.max(), 256)[:, None]
    curves = _interpolated(grid, places[::-1], errors[::-1])
    return _interpolated(places, grid, of_layer(curves, tail.count)[:, None])


def _interpolated(x: jax.Array, knots: jax.Array, values: jax.Array) -> jax.Array:
    """`jnp.interp` along the first axis, for each channel.

    It counts the knots below x in place of a search, which takes a third of the time to
    compile; there are few.
    """
    right = jnp.clip((knots[:, None] <= x[None]).sum(0), 1, len(knots) - 1)
    (x0, y0), (x1, y1) = (
        [jnp.take_along_axis(array, index, 0) for array in (knots, values)]
        for index in (right - 1, right)
    )
    share = (x - x0) / jnp.maximum(x1 - x0, _TINY)
    return y0 + jnp.clip(share, 0, 1) * (y1 - y0)


# g and g' of `middle`, in twentieths of the range of a channel.
_TWENTIETHS = range(15)


def middle(
    activation: jax.Array,
    intervals: int,
    channel: int = -1,
    weight: jax.Array | None = None,
) -> jax.Array:
    """The middle of the evenly spaced grid that is nearest to the activations, [C].

        middle = (l + u) / 2  of  argmin_(l, u) sum w (q - a)^2
        q = l + (u - l) / n round(n clip((a - l) / (u - l), 0, 1))

    Compared are l = m + g (M - m) and u = M - g' (M - m), for g and g' = 0, 0.05 .. 0.7
    and g + g' < 1; of equals the first is taken. m and M are the least and the largest
    a of the channel that have a weight.

    Args:
        activation: of the ANN, [N, ...].
        intervals: n, between the points of the grid; 2T high of signed levels.
        channel: axis that counts channels, from the end.
        weight: w >= 0, shaped like the activations with one channel; None: 1.

    >>> import jax.numpy as jnp
    >>> print(middle(jnp.array([[0.0], [0.1], [0.9], [1.0]]), 2))
    [0.5]
    """
    rows = jnp.moveaxis(activation.astype(jnp.float32), channel, -1)
    rows = rows.reshape(-1, rows.shape[-1])
    if weight is None:
        weights = jnp.ones((len(rows), 1), jnp.float32)
    else:
        weights = jnp.moveaxis(weight, channel, -1).reshape(len(rows), 1)
    counts = weights > 0
    low = jnp.where(counts, rows, jnp.inf).min(0)
    high = jnp.where(counts, rows, -jnp.inf).max(0)
    unit_rows = (rows - low) / jnp.where(high > low, high - low, 1)
    weights = jnp.broadcast_to(weights, rows.shape)
    blocks = [in_blocks(unit_rows), in_blocks(weights)]
    pairs = [(i, 20 - j) for i in _TWENTIETHS for j in _TWENTIETHS if i + j < 20]
    lower, upper = np.asarray(pairs, np.float32).T / 20

    def error(pair):
        lower, upper = pair

        def squares(a, w):
            share = jnp.clip((a - lower) / (upper - lower), 0, 1)
            nearest = lower + (upper - lower) / intervals * jnp.round(intervals * share)
            return jnp.where(w > 0, w * (nearest - a) ** 2, 0)

        return sum_over(squares, blocks, rows.shape[1])

    best = jax.lax.map(error, (lower, upper)).argmin(0)
    return low + (high - low) * jnp.asarray((lower + upper) / 2)[best]


def postpone(neuron: NeuronParams, charge: jax.Array, steps: int) -> NeuronParams:
    """Move charge from v(0) into the bias, so that it arrives over the T steps.

        v(0) <- v(0) - c V_th,   bias <- bias + c V_th / T

    Args:
        neuron: parameters of a site.
        charge: c, scalar or [C], in thresholds.
        steps: T.

    >>> from snnjax.neurons import integrate_and_fire
    >>> later = postpone(integrate_and_fire().init(), 1.0, steps=4)
    >>> print(later.initial_potential, later.bias)
    -1.0 0.25
    """
    potential = charge * neuron.threshold
    start, delayed_potential = aligned(neuron.initial_potential, potential)
    return neuron._replace(
        initial_potential=start - delayed_potential,
        bias=neuron.bias + potential / steps,
    )


def scale(neuron: NeuronParams, factor: jax.Array) -> NeuronParams:
    """Threshold, bias and v(0) times a factor, scalar or [C].

    A larger factor gives fewer and larger spikes.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import integrate_and_fire
    >>> neuron = integrate_and_fire().init()._replace(initial_potential=jnp.array(0.5))
    >>> larger = scale(neuron, jnp.array(1.5))
    >>> print(larger.threshold, larger.initial_potential)
    1.5 0.75
    """
    start, of_start = aligned(neuron.initial_potential, factor)
    return neuron._replace(
        threshold=factor * neuron.threshold,
        bias=factor * neuron.bias,
        initial_potential=of_start * start,
    )
