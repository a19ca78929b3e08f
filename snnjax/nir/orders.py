"""Orders: which element of a variable each element of a node is.

A node of NIR is a vector [N] or an image [C, H, W]. Its order is an array of the same
shape with flat indices into the variable (of one example). A transpose, a reshape, a
flip or a permutation of the variable changes the order and needs no node.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Arrangement(NamedTuple):
    """An order that treats the axes of its variable one by one.

        order = flat_indices(shape, axes)[np.ix_(*indices)]

    Attributes:
        axes: the variable's axis for each axis of the node.
        indices: for each axis of the node, which index of the variable each place has.
    """

    axes: tuple[int, ...]
    indices: tuple[np.ndarray, ...]


def arrangement(
    order: np.ndarray,
    shape: Sequence[int],
    candidates: Iterable[tuple[int, ...]] | None = None,
) -> Arrangement | None:
    """How the order arranges the axes of a variable; None if it mixes them.

    Args:
        order: see the module.
        shape: of the variable, with a batch axis of size 1.
        candidates: axes to try, in this order; by default all choices.
    """
    if math.prod(shape) != order.size:
        return None
    if candidates is None:
        # The batch axis comes last, so that it replaces no other axis of size 1.
        candidates = itertools.permutations([*range(1, len(shape)), 0], order.ndim)
    for axes in candidates:
        if tuple(shape[a] for a in axes) == order.shape:
            places = inverse(flat_indices(shape, axes))[order]
            indices = axis_indices(places, order.shape)
            if indices is not None:
                return Arrangement(tuple(axes), tuple(indices))
    return None


def axis_indices(places: np.ndarray, shape: Sequence[int]) -> list[np.ndarray] | None:
    """Split indices into an array of ``shape`` into one list of indices per axis.

    Args:
        places: flat indices, one axis for each axis of ``shape``; -1: a zero.

    Returns:
        The index that each place takes along each axis (-1: a zero), or None if the
        places along one axis depend on another axis.
    """
    inside = places >= 0
    coordinates = np.unravel_index(np.where(inside, places, 0), tuple(shape))
    indices = []
    for axis, coordinate in enumerate(coordinates):
        others = tuple(a for a in range(len(shape)) if a != axis)
        indices.append(np.where(inside, coordinate, -1).max(axis=others))
    grid = np.meshgrid(*indices, indexing="ij")
    in_grid = np.logical_and.reduce([g >= 0 for g in grid])
    expected = np.ravel_multi_index([np.maximum(g, 0) for g in grid], tuple(shape))
    separable = np.array_equal(in_grid, inside) and (places == expected)[inside].all()
    return indices if separable else None


def flat_indices(shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """Flat indices of a variable, its ``axes`` in that order, all others of size 1."""
    index = np.arange(math.prod(shape)).reshape(tuple(shape))
    rest = [a for a in range(len(shape)) if a not in axes]
    return index.transpose(*axes, *rest).reshape([shape[a] for a in axes])


def inverse(order: np.ndarray) -> np.ndarray:
    """Flat position in the node of each (flat) element of the variable."""
    positions = np.empty(order.size, int)
    positions[order.ravel()] = np.arange(order.size)
    return positions


def ascending(indices: np.ndarray) -> bool:
    """Whether every index is at its own place."""
    return np.array_equal(indices, np.arange(len(indices)))


def flips(indices: Sequence[np.ndarray]) -> list[bool] | None:
    """Which axes run backwards; None if one of them is neither forwards nor that."""
    if all(ascending(i) or ascending(i[::-1]) for i in indices):
        return [not ascending(i) for i in indices]
    return None


def flip(array: np.ndarray, axes: Iterable[bool]) -> np.ndarray:
    """The array, its last axes turned round where ``axes`` says so."""
    axes = list(axes)
    steps = [slice(None, None, -1 if backwards else 1) for backwards in axes]
    return array[(..., *steps)]
