"""Weights as whole numbers: the scale of each neuron, and rounding that knows the data.

    w_ji  ~  W_ji V_j / Theta_j      W_ji, Theta_j whole, |W_ji| < 2^(bits - 1)

Multiplying a neuron's weights, threshold, bias and potential by one number changes no
spike. So the scale of neuron j is chosen such that its threshold becomes the whole
number Theta_j, which is then exact; only weights are rounded. Arrays are NumPy's, a row
[N] for each of O neurons or channels.
Source of the error feedback: Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323).
"""

from typing import Literal

import numpy as np

Scale = Literal["channel", "layer", "power_of_two"]
_FRACTIONS = np.linspace(0.3, 1.0, 29)  # of the largest weight, which may be clipped
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


def scales(
    rows: np.ndarray,
    bits: int,
    power: np.ndarray,
    most: np.ndarray,
    scale: Scale,
    is_whole: bool = True,
) -> np.ndarray:
    """Theta of each row, [O], which minimizes the error of the current.

        sum_i E[x_i^2] (w_ji - W_ji / Theta_j)^2

    Args:
        rows: weights over the threshold, [O, N].
        bits: of a weight.
        power: E[x_i^2] of what the weights read, [N] or [O, N].
        most: largest Theta of each row, [O].
        scale: "channel": one for each row; "layer": one for all; "power_of_two": one
            for all, a power of two.
        is_whole: whether Theta has to be a whole number, since it is a threshold.

    >>> rows = np.array([[0.5, -0.25], [0.1, 0.05]])
    >>> scales(rows, 8, np.ones(2), np.array([1000.0, 1000.0]), "channel")
    array([ 254., 1000.])
    >>> scales(rows, 8, np.ones(2), np.array([1000.0, 1000.0]), "power_of_two")
    array([128., 128.])
    """
    rows = np.asarray(rows, np.float64)
    peaks = np.abs(rows).max(axis=1, initial=0)
    # A row of zeros gets the largest whole number as its threshold.
    peaks = np.where(peaks > 0, peaks, 1)
    if scale != "channel":
        peaks, most = np.full_like(peaks, peaks.max()), np.full_like(most, most.min())
    best, least = np.minimum(1.0, most), np.full(len(rows), np.inf)
    for fraction in _FRACTIONS[::-1]:
        candidate = largest_weight(bits) / (fraction * peaks)
        if scale == "power_of_two":
            candidate = 2.0 ** np.floor(np.log2(candidate) + 1e-9)
        elif is_whole:
            candidate = np.rint(candidate)
        candidate = np.minimum(candidate, most)
        if is_whole and scale != "power_of_two":
            candidate = np.maximum(np.floor(candidate), 1)
        restored = to_grid(rows * candidate[:, None], bits) / candidate[:, None]
        errors = (power * (rows - restored) ** 2).sum(axis=1)
        if scale != "channel":
            errors = np.full_like(errors, errors.sum())
        best = np.where(errors < least, candidate, best)
        least = np.minimum(errors, least)
    return best


def with_feedback(rows: np.ndarray, bits: int, second: np.ndarray) -> np.ndarray:
    """Whole numbers W near the rows w, with (w - W) E[x x^T] (w - W)^T small.

    Columns are rounded one after the other, those with most power first; the columns
    to come make up for the error of each. Columns of zeros stay zeros, except with one
    bit: a kernel that is padded on one side begins with some, which are no weights.

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
    damping = 0.01 * np.trace(second) / len(second) + 1e-9
    columns = np.flatnonzero(rows.any(axis=0) | (bits == 1))
    order = columns[np.argsort(-np.diag(second)[columns], kind="stable")]
    restored = np.zeros(rows.shape)
    damped = second[np.ix_(order, order)] + damping * np.eye(len(order))
    # The upper Cholesky factor of the inverse has the feedback of each column.
    feedback = np.linalg.cholesky(np.linalg.inv(damped)).T
    rows = np.array(rows[:, order], np.float64)
    whole = np.zeros_like(rows)
    for start in range(0, rows.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, rows.shape[1]))
        errors = np.zeros_like(rows[:, block])
        for i, column in enumerate(range(block.start, block.stop)):
            whole[:, column] = to_grid(rows[:, column], bits)
            difference = rows[:, column] - whole[:, column]
            errors[:, i] = difference / feedback[column, column]
            rest = slice(column + 1, block.stop)
            rows[:, rest] -= errors[:, i : i + 1] * feedback[column, rest]
        rows[:, block.stop :] -= errors @ feedback[block, block.stop :]
    restored[:, order] = whole
    return restored
