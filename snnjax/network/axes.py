"""Axes: where batch and channels lie, equation by equation, as a network moves them.

Examples must not meet, neurons want the batch first, and thresholds are per channel.
Products make channels; what follows moves both about, or folds them into another axis.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from snnjax.network.equations import Equation, Static

_REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod".split())


def batch_axes(equations, avals, x: int) -> dict[str, int]:
    """Site name -> axis of its batch, where it is known; with every call inlined.

    vmap puts it last where weights are multiplied from the left, W @ x.
    """
    batch, axes = Batch(x, avals), {}
    for eq in equations:
        _, axis = batch.follow(eq)
        if eq.site is not None and axis is not None:
            axes[eq.site.name] = axis
    return axes


def batch_first(equations, avals, axes: dict[str, int]) -> list[Equation]:
    """The equations, with transposes around each site whose batch is not first."""
    moved = []
    for eq in equations:
        neurons = eq.site is not None and eq.site.kind != "max-pool"
        axis = axes.get(eq.place.name, 0) if neurons else 0
        alone = all(isinstance(v, Static) for v in eq.inputs[1:])  # no vector of maxima
        moved += _around(eq, axis, avals) if axis and alone else [eq]
    return moved


def _around(eq: Equation, axis: int, avals) -> list[Equation]:
    """A site between two transpositions."""
    (v, *operands), (output,) = eq.inputs, eq.outputs
    to = (axis, *(a for a in range(len(avals[v].shape)) if a != axis))
    back = tuple(to.index(a) for a in range(len(to)))
    shape = tuple(avals[v].shape[a] for a in to)
    before, after = len(avals), len(avals) + 1
    for fresh in (before, after):
        avals[fresh] = avals[v].update(shape=shape)

    def transposed(source, order, target):
        params = (("permutation", Static(order)),)
        return Equation(jax.lax.transpose_p, params, (source,), (target,), path=eq.path)

    site = eq.place._replace(shape=shape[1:])
    inside = eq._replace(inputs=(before, *operands), outputs=(after,), site=site)
    return [transposed(v, to, before), inside, transposed(after, back, output)]


def channel_axis(equation, dependent, avals, channels: dict[int, int]) -> int | None:
    """Which axis of an equation's output counts channels; None if that is unknown.

    Convolutions and matrix products make channels; what follows moves them about.

    Args:
        equation: one that depends on the input.
        dependent: variables that depend on the input.
        avals: variable -> shape and dtype.
        channels: variable -> axis, as far as it is known.
    """
    name = getattr(equation.primitive, "name", "")
    params = {key: static.value for key, static in equation.params}
    if name == "conv_general_dilated":
        return params["dimension_numbers"].out_spec[1]
    if name == "dot_general":
        return _dot_channel(equation, dependent, avals, params["dimension_numbers"])
    known = [v for v in equation.inputs if v in channels]
    if not known:
        return None
    before, after = avals[known[0]].shape, avals[equation.outputs[0]].shape
    axis = channels[known[0]]
    return _moved(name, params, axis, before, after, last=True)


def axes_of_maximum(equation, avals) -> set[int]:
    """Axes, from the end, along which the maximum of a clipped ReLU differs."""
    if equation.place.kind != "clipped relu" or len(equation.inputs) < 2:
        return set()
    maximum = equation.inputs[1]
    shape = (
        avals[maximum].shape if isinstance(maximum, int) else np.shape(maximum.value)
    )
    return {i - len(shape) for i, size in enumerate(shape) if size > 1}


def _moved(
    name: str, params, axis: int, before, after, *, last: bool = False
) -> int | None:
    """Where an axis of the operand lies in the result; None if that is unknown.

    Args:
        last: of several axes of size 1 that it could be.
    """
    if name == "transpose":
        return list(params["permutation"]).index(axis)
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][axis]
    if name in _REDUCTIONS:
        gone = params["axes"]
        return None if axis in gone else axis - sum(a < axis for a in gone)
    if name == "stack":
        return axis + (axis >= params["axis"])
    if name == "unstack":
        gone = params["axis"]
        return None if axis == gone else axis - (axis > gone)
    if len(before) == len(after) and name != "reshape":
        return axis
    # A reshape keeps the axis if as much stands behind it as before.
    behind = math.prod(before[axis + 1 :])
    fits = [
        i
        for i, size in enumerate(after)
        if size == before[axis] and math.prod(after[i + 1 :]) == behind
    ]
    return fits[-1 if last else 0] if fits else None


def _dot_channel(equation, dependent, avals, dimension_numbers) -> int | None:
    """The last free axis of the weights, where a product puts it."""
    contract, batch = dimension_numbers
    free = []
    for side, v in enumerate(equation.inputs[:2]):
        taken = {*contract[side], *batch[side]}
        axes = [a for a in range(_ndim(v, avals)) if a not in taken]
        free += [v not in dependent] * len(axes)
    if True not in free:
        return None
    return len(batch[0]) + max(i for i, weights in enumerate(free) if weights)


def _ndim(v, avals) -> int:
    """Axes of a variable, or of a constant."""
    return len(avals[v].shape) if isinstance(v, int) else np.ndim(v.value)


class _Meeting(Exception):
    """One example would reach another."""


class Position(NamedTuple):
    """Where the batch lies in an array.

    Attributes:
        axis: that holds it, alone or with others: example b has the indices i along it
            with i // stride mod B = b.
        stride: 1 where the batch stands alone or last in the axis.
    """

    axis: int
    stride: int = 1


FIRST = Position(0)


class Batch:
    """Follows the batch of a network from equation to equation.

    Attributes:
        size: B.
        positions: variable -> `Position`, as far as it is known.
    """

    def __init__(self, x: int, avals: dict[int, Any]):
        self.avals, self.size = avals, avals[x].shape[0]
        self.positions = {x: FIRST}

    def follow(self, equation: Equation) -> tuple[bool, int | None]:
        """Whether examples meet, and the batch axis of the outputs if it is known."""
        inputs = [v for v in equation.inputs if isinstance(v, int)]
        if equation.site is not None and equation.site.kind != "max-pool" and inputs:
            place = self.positions.get(inputs[0])  # activations are elementwise
            if place is not None:
                self.positions.update(dict.fromkeys(equation.outputs, place))
            return False, place.axis if place else None
        try:
            found = {
                self._after(equation, i, v)
                for i, v in enumerate(equation.inputs)
                if isinstance(v, int) and v in self.positions
            }
        except _Meeting:  # one example by itself meets no other
            return self.size != 1, None
        known = [place for place in found if place is not None]
        if len(known) > 1:
            return self.size != 1, None
        if not known:
            return False, None
        (place,) = known
        if None not in found:
            self.positions.update(dict.fromkeys(equation.outputs, place))
        return False, place.axis

    def _after(self, equation: Equation, i: int, v: int) -> Position | None:
        """Where input i's batch lies in the output; None if that is unknown."""
        (axis, stride), before = self.positions[v], self.avals[v].shape
        after = self.avals[equation.outputs[0]].shape
        name = getattr(equation.primitive, "name", "")
        # With B = 1 it could be any axis: then as for other reshapes, `_moved`.
        if name == "reshape" and self.size != 1:  # it may have no number
            return self._reshaped(before, after, axis, stride)
        found = self._axis_after(equation, i, name, axis, before, after)
        return None if found is None else Position(found, stride)

    def _axis_after(self, equation, i: int, name: str, axis: int, before, after):
        """The batch axis of the output; None if that is unknown."""
        params: dict[str, Any] = {key: p.value for key, p in equation.params}
        numbers: Any = params.get("dimension_numbers")
        if name == "dot_general":
            left = _ndim(equation.inputs[0], self.avals)
            return _after_dot(i, axis, before, numbers, left)
        if name == "conv_general_dilated":
            if i == 0 and numbers.lhs_spec[0] != axis:
                raise _Meeting
            return numbers.out_spec[0] if i == 0 else None
        if name == "gather":
            whole = params["slice_sizes"][axis] == before[axis]
            return _after_gather(axis, before, after, numbers, whole)
        if name.startswith("scatter") and i == 2:
            return _after_scatter(axis, before, after, numbers)
        if name == "tile":  # whole batches, one after the other
            return axis
        if _combines(name, params, axis):
            raise _Meeting
        found = _moved(name, params, axis, before, after)
        if found is not None and after[found] != before[axis]:
            raise _Meeting
        return found

    def _reshaped(self, before, after, axis: int, stride: int) -> Position | None:
        """In row-major order the examples of a batch are ``apart`` numbers apart."""
        if 0 in after:
            return None
        apart = stride * math.prod(before[axis + 1 :])
        for found, length in enumerate(after):
            behind = math.prod(after[found + 1 :])
            fits = apart % behind == 0 and behind * length % (apart * self.size) == 0
            if fits:
                return Position(found, apart // behind)
        raise _Meeting


def _combines(name: str, params, axis: int) -> bool:
    """Whether an operation combines or reorders what lies along this axis."""
    if name in _REDUCTIONS:
        return axis in params["axes"]
    if name == "rev":
        return axis in params["dimensions"]
    if name == "pad":
        return params["padding_config"][axis] != (0, 0, 0)
    if name.startswith("reduce_window"):
        return params["window_dimensions"][axis] != 1
    return name in ("cumsum", "split", "unstack") and axis == params["axis"]


def _after_dot(i: int, axis: int, before, numbers, left: int) -> int:
    """Where operand i's batch axis lies in a product; ``left``: axes of the first."""
    contract, batch = numbers
    if axis in contract[i]:
        raise _Meeting
    if axis in batch[i]:
        return list(batch[i]).index(axis)
    taken = {*contract[i], *batch[i]}
    place = sum(a not in taken for a in range(axis)) + len(batch[0])
    return place + (left - len(contract[0]) - len(batch[0]) if i == 1 else 0)


def _after_gather(axis: int, before, after, numbers, whole: bool) -> int:
    """Where the batch axis of what is gathered lies; ``whole``: in every slice."""
    paired, single = numbers.operand_batching_dims, numbers.collapsed_slice_dims
    if axis in paired:  # each example by indices of its own
        index = numbers.start_indices_batching_dims[list(paired).index(axis)]
        return [a for a in range(len(after)) if a not in numbers.offset_dims][index]
    if axis in single or not whole:
        raise _Meeting
    kept = [a for a in range(len(before)) if a not in {*paired, *single}]
    return numbers.offset_dims[kept.index(axis)]


def _after_scatter(axis: int, before, after, numbers) -> int:
    """Where the batch axis of the updates lies in what they are written to."""
    paired, windows = numbers.operand_batching_dims, numbers.update_window_dims
    if axis in windows:
        gone = {*paired, *numbers.inserted_window_dims}
        kept = [a for a in range(len(after)) if a not in gone]
        place = kept[list(windows).index(axis)]
        if after[place] != before[axis]:
            raise _Meeting
        return place
    index = [a for a in range(len(before)) if a not in windows].index(axis)
    own = list(numbers.scatter_indices_batching_dims)
    if index not in own:
        raise _Meeting
    return paired[own.index(index)]
