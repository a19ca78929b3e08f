"""The error of activations that are larger than all that calibration has seen.

    P(x > m + e) = exp(-e / b) / n        x an activation to come, e > 0
    E (x - c)^2 = 2 b^2 exp(-(c - m) / b) / n             if the cap c is above m
                = ((m - c)^2 + 2 b (m - c) + 2 b^2) / n   otherwise

m is the largest of n activations, and b the mean excess of the largest sqrt(n) over the
least of them: beyond a high value, many distributions decay exponentially. A threshold
that is fitted to the n activations alone would be m, and would clip one input in n.
Source of mean excesses: Davison and Smith, J. R. Stat. Soc. B, 1990; of the use: ours.
"""

import math
from typing import NamedTuple

import numpy as np


class Tail(NamedTuple):
    """What lies beyond the largest activations, for C channels, [C] each.

    Attributes:
        maximum: m.
        scale: b, > 0.
        weight: how much an error counts there.
    """

    maximum: np.ndarray
    scale: np.ndarray
    weight: np.ndarray


def tail_of(magnitudes: np.ndarray, weights: np.ndarray, maximum: np.ndarray) -> Tail:
    """The tail of each channel.

    Args:
        magnitudes: >= 0, [n, C].
        weights: how much an error of each counts, [n, C].
        maximum: m, which may be that of more activations than these, [C].

    >>> magnitudes = np.arange(100.0)[:, None]
    >>> tail = tail_of(magnitudes, np.ones((100, 1)), magnitudes.max(0))
    >>> print(tail.maximum, tail.scale)
    [99.] [4.5]
    """
    magnitudes = magnitudes.astype(np.float64)  # whose squares do not overflow
    maximum = maximum.astype(np.float64)
    count = len(magnitudes)
    top_count = min(count, max(2, math.ceil(count**0.5)))
    rows = np.argpartition(magnitudes, count - top_count, axis=0)[-top_count:]
    top = np.take_along_axis(magnitudes, rows, axis=0)
    top_weights = np.take_along_axis(weights, rows, axis=0)
    excess = top.mean(0) - top.min(0)
    # Where the largest activations are equal, as behind a clipped ReLU, none is beyond.
    tiny = np.finfo(np.float64).tiny
    smallest_scale = np.maximum(1e-6 * maximum, tiny)
    # Behind a division, as in a norm, an error counts less at a larger activation. As
    # weights are averaged by the squares of activations, the largest decide.
    squares = top**2
    weight = (squares * top_weights).sum(0) / np.maximum(squares.sum(0), tiny)
    return Tail(maximum, np.maximum(excess, smallest_scale), weight)


def clipped_error(tail: Tail, caps: np.ndarray) -> np.ndarray:
    """n w E (x - c)^2, the expected error of one activation to come in n.

    Args:
        caps: c, the largest outputs of a neuron for K candidates, [K, C].

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
        beyond = np.exp(-np.maximum(excess, 0) / tail.scale)
    within = np.maximum(-excess, 0)
    squares = within**2 + 2 * tail.scale * within + 2 * tail.scale**2 * beyond
    return tail.weight * squares
