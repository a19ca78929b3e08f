"""The error of activations that are larger than all that calibration has seen.

    P(x > m + e) = exp(-e / b) / n,       x an activation to come, 0 < e < B - m
    n E (x - c)^2 = integral from c to B of 2 (x - c) min(1, n P(x)) dx
                  = d^2 + 2 b d (1 - p) + 2 b^2 q (1 - p - p g / b)
    d = max(m - c, 0),    g = B - max(c, m),    p = exp(-g / b)
    q = exp(-max(c - m, 0) / b)

m is the largest of n activations, and B the bound of all of them: the maximum of a
clipped ReLU, which x reaches with the rest of the probability; otherwise infinity, and
p = 0. c is the largest output of a neuron, so an activation above it is clipped to it.
b is the mean of the largest k = sqrt(n) activations minus the smallest of these: beyond
a high value, many distributions decay exponentially. A threshold that is fitted to the
n activations alone would be m, and would clip one input in n. Source of mean excesses:
Davison and Smith, J. R. Stat. Soc. B, 1990; of the use: ours.

Few activations say little of b, so that of a channel is drawn toward the mean of the
layer, as if 8 more activations had that one. In the family of `experiments.family`,
with 64 inputs and rate coding, errors are up to 1.8 times as large without that.

An encoder's activations have two ends, and so two tails: that of SiLU goes far on one
side of the middle and ends on the other.

A neuron with c > B may send c where its input is above B, and x is B there. That is an
error of n P(x = B) (c - B)^2 = p (c - B)^2 in place of the above, with g = B - m.
"""

import math
from typing import Any, NamedTuple

import numpy as np

# So many activations beyond the largest are taken to have the mean scale of the layer.
_PRIOR_COUNT = 8
# Beyond so many scales nothing of an exponential is left in float64.
_MANY_SCALES = 700.0


class Tail(NamedTuple):
    """The exponential beyond the largest activation of each of C channels.

    Attributes:
        maximum: m, the largest activation, [C].
        scale: b > 0, by how much an activation beyond m exceeds it on average, [C].
        weight: w >= 0, how much a squared error counts beyond m, [C].
        bound: B >= m, what no activation exceeds, [C]; infinity: there is no bound.
    """

    maximum: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bound: Any = np.inf


def tail_of(
    magnitudes: np.ndarray,
    weights: np.ndarray,
    maximum: np.ndarray,
    bound: Any = np.inf,
) -> Tail:
    """The tail of each channel, fitted to its largest sqrt(n) activations.

    All channels of the layer are given, since their scales are drawn together.

    Args:
        magnitudes: activations >= 0, [n, C].
        weights: how much the squared error of each activation counts, [n, C].
        maximum: m, [C]. It may be that of more activations than these.
        bound: B, [C]; infinity: activations have no bound.

    >>> magnitudes = np.arange(100.0)[:, None]
    >>> tail = tail_of(magnitudes, np.ones((100, 1)), magnitudes.max(0))
    >>> print(tail.maximum, tail.scale)
    [99.] [4.5]
    """
    maximum = maximum.astype(np.float64)
    count, channels = magnitudes.shape
    # The mean excess of a single activation would be 0.
    top_count = min(count, max(2, math.ceil(count**0.5)))
    # NumPy sorts contiguous rows faster than it partitions columns.
    by_channel = np.ascontiguousarray(magnitudes.T)  # [C, n]
    top = np.sort(by_channel, axis=1)[:, count - top_count :]  # [C, sqrt(n)]
    lowest = top[:, 0]
    mean_excess = top.mean(1, dtype=np.float64) - lowest
    # Behind a clipped ReLU the largest activations are equal, and the mean excess is 0.
    # The scale is a divisor, so it gets a small number instead.
    tiny = np.finfo(np.float64).tiny
    smallest_scale = np.maximum(1e-6 * maximum, tiny)
    # A channel of a hundredth of the others' size must not get their scale.
    layer_scale = mean_excess[maximum > 0].mean() if maximum.any() else 0.0
    prior_scale = np.minimum(layer_scale, maximum)
    scale = top_count * mean_excess + _PRIOR_COUNT * prior_scale
    scale /= top_count + _PRIOR_COUNT
    # Before a division, as in a norm, errors count less where activations are large.
    # The average is weighted by the squares, so that the largest activations decide.
    # Squares of large float32 numbers are beyond the range of float32. All activations
    # that are equal to the lowest count, since none of them is larger than another.
    channel_numbers, rows = np.nonzero(by_channel >= lowest[:, None])
    squares = magnitudes[rows, channel_numbers].astype(np.float64) ** 2
    weighted_squares = squares * weights[rows, channel_numbers]
    square_sums = np.bincount(channel_numbers, squares, channels)
    weighted_sums = np.bincount(channel_numbers, weighted_squares, channels)
    weight = weighted_sums / np.maximum(square_sums, tiny)
    scale = np.maximum(scale, smallest_scale)
    # float32 may have rounded the largest activation above the bound.
    return Tail(maximum, scale, weight, np.maximum(bound, maximum))


def clipped_error(tail: Tail, caps: np.ndarray) -> np.ndarray:
    """The weighted error w n E (x - c)^2 of each candidate, [K, C].

    That is the squared error which one activation beyond m is expected to have.

    Args:
        tail: of the C channels.
        caps: c, the largest output of a neuron with each of K candidates, [K, C], in
            the unit of the activations.

    >>> tail = Tail(np.array([1.0]), np.array([0.5]), np.array([1.0]))
    >>> print(clipped_error(tail, np.array([[0.0], [1.0], [2.0]])).round(3).ravel())
    [2.5   0.5   0.068]
    >>> silent = tail_of(np.zeros((4, 1)), np.ones((4, 1)), np.zeros(1))
    >>> print(clipped_error(silent, np.array([[1.0]])))
    [[0.]]
    >>> clipped = Tail(np.array([1.0]), np.array([0.5]), np.array([1.0]), bound=1.0)
    >>> print(clipped_error(clipped, np.array([[0.0], [1.0], [3.0]])).ravel())
    [1. 0. 4.]
    """
    scale = tail.scale
    deficit = np.maximum(tail.maximum - caps, 0)
    room = np.maximum(tail.bound - np.maximum(caps, tail.maximum), 0)
    too_much = np.maximum(caps - tail.bound, 0)
    # The scale of a silent channel is so small that quotients may be infinite.
    with np.errstate(over="ignore"):
        decay = np.exp(-np.maximum(caps - tail.maximum, 0) / scale)
        scales_of_room = np.minimum(room / scale, _MANY_SCALES)
        scales_to_bound = np.minimum((tail.bound - tail.maximum) / scale, _MANY_SCALES)
    at_bound = np.exp(-scales_of_room)
    square = deficit**2 + 2 * scale * deficit * (1 - at_bound)
    square += 2 * scale**2 * decay * (1 - at_bound * (1 + scales_of_room))
    square += too_much**2 * np.exp(-scales_to_bound)
    return tail.weight * square
