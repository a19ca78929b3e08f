"""Weights as whole numbers: the scale of each neuron, and rounding that knows the data.

    w_ji  ~  W_ji V_j / Theta_j      W_ji, Theta_j whole, |W_ji| < 2^(bits - 1)

Multiplying a neuron's weights, threshold, bias and potential by one number changes no
spike. So the scale of neuron j is chosen such that its threshold becomes the whole
number Theta_j, which is then exact; only weights are rounded. Arrays are NumPy's, a row
[N] for each of O neurons or channels.
Source of the error feedback: Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Scale = Literal["channel", "layer", "power_of_two", "range"]
_FRACTIONS = np.linspace(0.1, 1.0, 37)  # of the largest weight, which may be clipped
_BLOCK = 64  # columns between two updates of all others


def largest_weight(bits: int) -> int:
    """2^(bits - 1) - 1; with one bit a weight is 1 or -1, with two -1, 0 or 1.

    >>> [largest_weight(bits) for bits in (1, 2, 4, 8)]
    [1, 1, 7, 127]
    """
    return max(1, 2 ** (bits - 1) - 1)


def to_grid(rows: np.ndarray, bits: int) -> np.ndarray:
    """The nearest whole numbers that these bits can hold.

    >>> print(to_grid(np.array([-9.0, 0.4, 2.6]), 3), to_grid(np.array([-9.0, 0.4]), 1))
    [-3.  0.  3.] [-1.  1.]
    """
    if bits == 1:
        return np.where(rows < 0, -1.0, 1.0)
    largest = largest_weight(bits)
    return np.clip(np.rint(rows), -largest, largest)


class Part(NamedTuple):
    """The weights of a connection.

    Attributes:
        rows: over the threshold of the neuron that reads them, [O, n].
        bits: of a weight.
        second: E[x x^T] of what each of the G groups of rows reads, [G, n, n].
    """

    rows: np.ndarray
    bits: int
    second: np.ndarray

    @property
    def power(self) -> np.ndarray:
        """E[x_i^2] of each number that a row reads, [O, n]."""
        power = np.diagonal(self.second, axis1=1, axis2=2)
        return power.repeat(len(self.rows) // len(self.second), axis=0)


def scales(
    parts: Sequence[Part], largest: np.ndarray, scale: Scale, is_whole: bool = True
) -> np.ndarray:
    """Theta of each row, [O], which minimizes the error of the current.

        sum_i E[x_i^2] (w_ji - W_ji / Theta_j)^2

    Args:
        parts: all connections into the neurons.
        largest: the largest Theta of each row, [O].
        scale: "channel": one for each row; "layer": one for all; "power_of_two": one
            for all, a power of two; "range": one for all, min(-2^(b-1) / min w,
            (2^(b-1) - 1) / max w), without the search: the rule of sinabs for Speck.
        is_whole: whether Theta has to be a whole number, since it is a threshold.

    >>> part = Part(np.array([[0.5, -0.25], [0.1, 0.05]]), 8, np.eye(2)[None])
    >>> print(scales([part], np.array([1000.0, 1000.0]), "channel"))
    [ 254. 1000.]
    >>> print(scales([part], np.array([1000.0, 1000.0]), "power_of_two"))
    [128. 128.]
    >>> print(scales([part], np.array([1000.0, 1000.0]), "range"))
    [254. 254.]
    """
    if scale == "range":
        ranges = [_scale_of_range(part) for part in parts]
        return np.full_like(largest, min(*ranges, largest.min()))
    # Up to here no weight is clipped. A row of zeros may take the largest number.
    unclipped = np.min([_unclipped(part) for part in parts], axis=0)
    is_shared = scale != "channel"
    if is_shared:
        unclipped = np.full_like(unclipped, unclipped.min())
        largest = np.full_like(largest, largest.min())
    best_theta = np.minimum(1.0, largest)
    smallest_error = np.full(len(largest), np.inf)
    # From the scale that clips nothing to larger ones, and the first of equals wins.
    for fraction in _FRACTIONS[::-1]:
        theta = np.minimum(unclipped / fraction, largest)
        if scale == "power_of_two":
            # The logarithm of a power of two may lie just below a whole number.
            theta = 2.0 ** np.floor(np.log2(theta) + 1e-9)
        elif is_whole:
            theta = np.maximum(np.floor(np.minimum(np.rint(theta), largest)), 1)
        errors = np.sum([_errors(part, theta) for part in parts], axis=0)
        if is_shared:
            errors = np.full_like(errors, errors.sum())
        best_theta = np.where(errors < smallest_error, theta, best_theta)
        smallest_error = np.minimum(errors, smallest_error)
    return best_theta


def _unclipped(part: Part) -> np.ndarray:
    """The largest Theta of each row at which no weight is clipped, [O]."""
    peaks = np.abs(part.rows).max(axis=1, initial=0)
    largest = float(largest_weight(part.bits))
    return np.divide(largest, peaks, out=np.full_like(peaks, 1e9), where=peaks > 0)


def _scale_of_range(part: Part) -> float:
    """The factor with which the weights fill their bits on one side, or both."""
    # Without weights of one sign, the range on that side is not what limits the factor.
    lowest = part.rows.min(initial=-1e-9)
    highest = part.rows.max(initial=1e-9)
    half = 2.0 ** (part.bits - 1)
    return min(-half / lowest, (half - 1) / highest)


def _errors(part: Part, theta: np.ndarray) -> np.ndarray:
    """The error of each row's current with these thresholds, [O]."""
    rows = np.asarray(part.rows, np.float64)
    restored = to_grid(rows * theta[:, None], part.bits) / theta[:, None]
    return (part.power * (rows - restored) ** 2).sum(axis=1)


def is_matrix(rows: np.ndarray, second: np.ndarray) -> bool:
    """Whether the weights of a row read different numbers, whose moments are known."""
    return rows.shape[1] == second.shape[1] > 1


def rounded(part: Part, theta: np.ndarray, scale: Scale) -> np.ndarray:
    """The whole numbers of a part at thresholds Theta [O], group by group."""
    rows = part.rows * theta[:, None]
    if scale == "range":
        return np.rint(rows)
    if not is_matrix(rows, part.second):
        return to_grid(rows, part.bits)
    results = []
    groups = np.split(rows, len(part.second))
    for group, second in zip(groups, part.second, strict=True):
        results.append(with_feedback(group, part.bits, second))
    return np.concatenate(results)


def with_feedback(rows: np.ndarray, bits: int, second: np.ndarray) -> np.ndarray:
    """Whole numbers W near the rows w, with (w - W) E[x x^T] (w - W)^T small.

    Columns are rounded one after the other, those with most power first; the columns
    to come make up for the error of each. Zeros stay zeros, except with one bit: pruned
    weights, and what pads a kernel on one side.

    Args:
        rows: [O, N], in units of the whole numbers.
        bits: of a weight.
        second: E[x x^T] of what the weights read, [N, N].

    >>> rows = np.array([[0.4, 0.4]])
    >>> print(with_feedback(rows, 8, np.array([[1.0, 0.9], [0.9, 1.0]])))
    [[0. 1.]]
    >>> print(with_feedback(rows * [1, 0], 8, np.array([[1.0, 0.9], [0.9, 1.0]])))
    [[0. 0.]]
    """
    # Without damping, an input that never varies would leave no inverse.
    damping = 0.01 * np.trace(second) / len(second) + 1e-9
    order = np.argsort(-np.diag(second), kind="stable")
    damped = second[np.ix_(order, order)] + damping * np.eye(len(second))
    # The upper Cholesky factor of the inverse has the feedback of each column.
    feedback = np.linalg.cholesky(np.linalg.inv(damped)).T
    rows = np.array(rows[:, order], np.float64)
    is_weight = (rows != 0) | (bits == 1)
    whole = np.zeros_like(rows)
    for start in range(0, rows.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, rows.shape[1]))
        errors = np.zeros_like(rows[:, block])
        for i, column in enumerate(range(block.start, block.stop)):
            nearest = to_grid(rows[:, column], bits)
            whole[:, column] = np.where(is_weight[:, column], nearest, 0)
            difference = rows[:, column] - whole[:, column]
            errors[:, i] = difference / feedback[column, column]
            later = slice(column + 1, block.stop)
            rows[:, later] -= errors[:, i : i + 1] * feedback[column, later]
        # One product per block for all columns behind it, instead of one per column.
        rows[:, block.stop :] -= errors @ feedback[block, block.stop :]
    restored = np.empty_like(whole)
    restored[:, order] = whole
    return restored
