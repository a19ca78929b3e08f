"""The error of activations that are larger than all that calibration has seen.

    P(x > m + e) = exp(-e / b) / n        x an activation to come, e > 0
    n E (x - c)^2 = 2 b^2 exp(-(c - m) / b)               if the cap c is above m
                  = (m - c)^2 + 2 b (m - c) + 2 b^2       otherwise

m is the largest of n activations. c is the largest output of a neuron, so an activation
above it is clipped to it. b is the mean of the largest sqrt(n) activations minus the
smallest of these: beyond a high value, many distributions decay exponentially. A
threshold that is fitted to the n activations alone would be m, and would clip one input
in n. Source of mean excesses: Davison and Smith, J. R. Stat. Soc. B, 1990; of the use:
ours.
"""

import math
from typing import NamedTuple

import numpy as np


class Tail(NamedTuple):
    """The exponential beyond the largest activation of each of C channels.

    Attributes:
        maximum: m, the largest activation, [C].
        scale: b > 0, by how much an activation beyond m exceeds it on average, [C].
        weight: w >= 0, how much a squared error counts beyond m, [C].
    """

    maximum: np.ndarray
    scale: np.ndarray
    weight: np.ndarray


def tail_of(magnitudes: np.ndarray, weights: np.ndarray, maximum: np.ndarray) -> Tail:
    """The tail of each channel, fitted to its largest sqrt(n) activations.

    Args:
        magnitudes: activations >= 0, [n, C].
        weights: how much the squared error of each activation counts, [n, C].
        maximum: m, [C]. It may be that of more activations than these.

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
    return Tail(maximum, np.maximum(mean_excess, smallest_scale), weight)


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
    """
    excess = caps - tail.maximum
    # The scale of a silent channel is so small that the quotient may be infinite.
    with np.errstate(over="ignore"):
        decay = np.exp(-np.maximum(excess, 0) / tail.scale)
    deficit = np.maximum(-excess, 0)
    # One of the two cases of the module's equation: the deficit is 0 if c is above m,
    # and otherwise the decay is 1.
    square = deficit**2 + 2 * tail.scale * deficit + 2 * tail.scale**2 * decay
    return tail.weight * square
