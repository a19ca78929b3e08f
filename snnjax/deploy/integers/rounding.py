"""Weights as whole numbers: a scale for each neuron, and rounding that knows the data.

    w_ji / V_j  ~  W_ji / Theta_j      W_ji, Theta_j whole, |W_ji| < 2^(bits - 1)

w_ji are the float weights of neuron j, and V_j is its float threshold. Multiplying a
neuron's weights, threshold, bias and potential by one number, its scale, changes no
spike. So the scale is chosen such that the threshold becomes a whole number Theta_j,
which is then exact; only weights are rounded.

row: the weights [n] of a neuron, or of all neurons of a channel, in one map, divided by
V_j. Theta_j is thus the scale of row j. A map has O rows.
grid: the whole numbers that the bits of a weight can hold.

Arrays are NumPy's.
Source of the error feedback: Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

ScaleRule = Literal["channel", "layer", "power_of_two", "range"]
# The search tries scales that keep these fractions of the largest weight, and clip
# what is larger.
_FRACTIONS = np.linspace(0.1, 1.0, 37)
_BLOCK_SIZE = 64  # columns that are rounded between two updates of all later ones


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
    """The weights that some neurons read by one map.

    Attributes:
        rows: the weights over the thresholds of their neurons, [O, n].
        bits: number of bits of a whole weight.
        covariance: H of the numbers that the rows read, [G, n, n]. All of the O / G
            rows of a group read the same n numbers. With n = 1 each weight reads one
            number by itself, and a row may have several such weights.
    """

    rows: np.ndarray
    bits: int
    covariance: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """The variance of each number that a row reads, [O, n]."""
        variance = np.diagonal(self.covariance, axis1=1, axis2=2)  # [G, n]
        return variance.repeat(len(self.rows) // len(self.covariance), axis=0)


def search_theta(
    parts: Sequence[Part],
    largest_theta: np.ndarray,
    rule: ScaleRule,
    is_whole: bool = True,
) -> np.ndarray:
    """Theta of each row, [O], at which rounding changes the currents least.

        sum_i var(x_i) (w_ji / V_j - W_ji / Theta_j)^2

    Args:
        parts: all maps into the neurons, with O rows in each.
        largest_theta: the largest Theta of each row, [O].
        rule: "channel": one Theta for each row; "layer": one for all; "power_of_two":
            one for all, a power of two; "range": one for all, min(-2^(b-1) / min w,
            (2^(b-1) - 1) / max w), without the search: the rule of sinabs for Speck.
        is_whole: whether Theta has to be a whole number, since it is a threshold.

    >>> part = Part(np.array([[0.5, -0.25], [0.1, 0.05]]), 8, np.eye(2)[None])
    >>> print(search_theta([part], np.array([1000.0, 1000.0]), "channel"))
    [ 254. 1000.]
    >>> print(search_theta([part], np.array([1000.0, 1000.0]), "power_of_two"))
    [128. 128.]
    >>> print(search_theta([part], np.array([1000.0, 1000.0]), "range"))
    [254. 254.]
    """
    if rule == "range":
        shared_theta = largest_theta.min()
        for part in parts:
            shared_theta = min(shared_theta, _range_theta(part))
        return np.full_like(largest_theta, shared_theta)
    unclipped_theta = np.min([_unclipped_theta(part) for part in parts], axis=0)
    is_shared = rule != "channel"
    if is_shared:
        unclipped_theta = np.full_like(unclipped_theta, unclipped_theta.min())
        largest_theta = np.full_like(largest_theta, largest_theta.min())
    best_theta = np.ones_like(largest_theta)
    smallest_error = np.full_like(largest_theta, np.inf)
    # The search begins at the scale that clips no weight and goes on to larger ones.
    # Where errors are equal, the first scale stays.
    for fraction in _FRACTIONS[::-1]:
        theta = np.minimum(unclipped_theta / fraction, largest_theta)
        if rule == "power_of_two":
            # The logarithm of a power of two may lie just below a whole number.
            theta = 2.0 ** np.floor(np.log2(theta) + 1e-9)
        elif is_whole:
            theta = np.minimum(np.rint(theta), np.floor(largest_theta))
            theta = np.maximum(theta, 1)
        error = np.sum([_current_error(part, theta) for part in parts], axis=0)
        if is_shared:
            error = np.full_like(error, error.sum())
        best_theta = np.where(error < smallest_error, theta, best_theta)
        smallest_error = np.minimum(error, smallest_error)
    return best_theta


def _unclipped_theta(part: Part) -> np.ndarray:
    """The largest Theta of each row at which no weight is clipped, [O]."""
    peaks = np.abs(part.rows).max(axis=1, initial=0)
    largest = float(largest_weight(part.bits))
    # No scale clips a row of zeros, so its Theta is larger than any limit.
    no_limit = np.full_like(peaks, 1e9)
    return np.divide(largest, peaks, out=no_limit, where=peaks > 0)


def _range_theta(part: Part) -> float:
    """The Theta at which the weights of a map reach one end of their range."""
    # Without weights of one sign, that end of the range limits nothing.
    lowest = part.rows.min(initial=-1e-9)
    highest = part.rows.max(initial=1e-9)
    half = 2.0 ** (part.bits - 1)
    return min(-half / lowest, (half - 1) / highest)


def _current_error(part: Part, theta: np.ndarray) -> np.ndarray:
    """The mean squared error of each row's current, [O], at thresholds theta, [O]."""
    rows = np.asarray(part.rows, np.float64)
    theta = theta[:, None]
    restored = to_grid(rows * theta, part.bits) / theta
    return (part.variance * (rows - restored) ** 2).sum(axis=1)


def round_weights(part: Part, theta: np.ndarray, rule: ScaleRule) -> np.ndarray:
    """The whole weights of a map, [O, n], at the scales theta of its rows, [O]."""
    rows = part.rows * theta[:, None]
    if rule == "range":
        return np.rint(rows)
    if part.covariance.shape[-1] == 1:
        # No other weight reads the same numbers and could make up for an error.
        return to_grid(rows, part.bits)
    whole_groups = []
    groups = np.split(rows, len(part.covariance))
    for group, covariance in zip(groups, part.covariance, strict=True):
        whole_groups.append(round_with_feedback(group, part.bits, covariance))
    return np.concatenate(whole_groups)


def round_with_feedback(
    rows: np.ndarray, bits: int, covariance: np.ndarray
) -> np.ndarray:
    """Whole numbers W [O, n] near the rows w, with (w - W) H (w - W)^T small.

    Columns are rounded one after the other, those of the largest variance first. The
    columns that are not rounded yet make up for the error of each. Zeros stay zeros,
    since they are pruned weights, or pad a kernel on one side. With one bit alone they
    are rounded too, as the grid of 1 and -1 has no zero.

    Args:
        rows: w [O, n], multiplied by their scales.
        bits: number of bits of a whole number.
        covariance: H of the n numbers that the weights read, [n, n].

    >>> rows = np.array([[0.4, 0.4]])
    >>> print(round_with_feedback(rows, 8, np.array([[1.0, 0.9], [0.9, 1.0]])))
    [[0. 1.]]
    >>> print(round_with_feedback(rows * [1, 0], 8, np.array([[1.0, 0.9], [0.9, 1.0]])))
    [[0. 0.]]
    """
    # Without damping, an input that never varies would leave no inverse.
    column_count = len(covariance)
    damping = 0.01 * np.trace(covariance) / column_count + 1e-9
    order = np.argsort(-np.diag(covariance), kind="stable")
    damped = covariance[np.ix_(order, order)] + damping * np.eye(column_count)
    # Row i of the upper Cholesky factor of the inverse says by how much each later
    # column has to change for an error in column i (GPTQ).
    feedback = np.linalg.cholesky(np.linalg.inv(damped)).T
    rows = np.array(rows[:, order], np.float64)
    is_rounded = (rows != 0) | (bits == 1)
    whole = np.zeros_like(rows)
    for start in range(0, column_count, _BLOCK_SIZE):
        end = min(start + _BLOCK_SIZE, column_count)
        block_errors = np.zeros((len(rows), end - start))
        for column in range(start, end):
            nearest = to_grid(rows[:, column], bits)
            whole[:, column] = np.where(is_rounded[:, column], nearest, 0)
            difference = rows[:, column] - whole[:, column]
            error = difference / feedback[column, column]
            block_errors[:, column - start] = error
            later = slice(column + 1, end)
            rows[:, later] -= np.outer(error, feedback[column, later])
        # One product for all columns behind the block is faster than one per column.
        rows[:, end:] -= block_errors @ feedback[start:end, end:]
    original_order = np.argsort(order)
    return whole[:, original_order]
