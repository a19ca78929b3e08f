"""The batch axis, equation by equation, and where one example would reach another.

Neurons need the batch on the first axis. vmap puts it last where weights multiply from
the left, W @ x, and windows of an image may be merged with it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax.capture.axes import REDUCTIONS, Avals, Shape, moved
from snnjax.capture.jaxprs import traced
from snnjax.network.equations import Equation, Static, shape_of, spread_out

_CUMULATIVE = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())


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
    """Where the batch of a program lies, and where its examples meet.

    Attributes:
        size: B.
        positions: variable -> `Position`, as far as it is known.
        axes: first output of an equation -> axis of its batch, likewise.
        meetings: first outputs of equations by which one example would reach another.
        mixed: variables after such an equation, which have no batch axis.
    """

    def __init__(self, equations: Iterable[Equation], avals: Avals, x: Sequence[int]):
        self.avals, self.size = avals, avals[x[0]].shape[0]
        self.positions = dict.fromkeys(x, FIRST)
        self.axes: dict[int, int] = {}
        self.meetings: set[int] = set()
        self.mixed: set[int] = set()
        for equation in spread_out(equations):
            self._follow(equation)

    def _follow(self, equation: Equation) -> None:
        first = equation.outputs[0]
        try:
            places = self._places(equation)
        except _Meeting:
            places, meets = set(), True
        else:
            meets = len(places - {None}) > 1
        known_places = [place for place in places if place is not None]
        if meets and self.size != 1:  # with one example there is no other
            self.meetings.add(first)
        if len(known_places) == 1:
            self.axes[first] = known_places[0].axis
            if len(places) == 1:
                self.positions.update(dict.fromkeys(equation.outputs, known_places[0]))
        elif first in self.meetings or self.mixed.intersection(equation.variables):
            self.mixed.update(equation.outputs)

    def _places(self, equation: Equation) -> set[Position | None]:
        """Where each input would put the batch; None where that is unknown."""
        inputs = [(i, v) for i, v in enumerate(equation.inputs) if isinstance(v, int)]
        inputs = [(i, v) for i, v in inputs if v in self.positions]
        if equation.fires:  # neurons are elementwise
            return {self.positions[v] for i, v in inputs if i == 0}
        return {self._after(equation, i, v) for i, v in inputs}

    def _after(self, equation: Equation, i: int, v: int) -> Position | None:
        """Where input i's batch lies in the output; None if that is unknown."""
        (axis, stride), before = self.positions[v], self.avals[v].shape
        after = self.avals[equation.outputs[0]].shape
        name = equation.name
        # With B = 1 it could be any axis: then as for other reshapes, `moved`.
        if name == "reshape" and self.size != 1:  # it may have no number
            return self._reshaped(before, after, axis, stride)
        after_axis = self._axis_after(equation, i, name, axis, before, after)
        return None if after_axis is None else Position(after_axis, stride)

    def _axis_after(
        self,
        equation: Equation,
        i: int,
        name: str,
        axis: int,
        before: Shape,
        after: Shape,
    ) -> int | None:
        """The batch axis of the output; None if that is unknown."""
        params = equation.options
        numbers: Any = params.get("dimension_numbers")
        if name == "dot_general":
            first_ndim = len(shape_of(self.avals, equation.inputs[0]))
            return _after_dot(i, axis, numbers, first_ndim)
        if name == "conv_general_dilated":
            return _after_conv(i, axis, params)
        if name == "gather" and i == 1:
            return _after_lookup(axis, before, after, numbers)
        if name == "gather":
            whole = params["slice_sizes"][axis] == before[axis]
            return _after_gather(axis, before, after, numbers, whole)
        if name.startswith("scatter") and i == 2:
            return _after_scatter(axis, before, after, numbers)
        if name == "tile":  # whole batches, one after the other
            return axis
        if _combines(name, params, axis):
            raise _Meeting
        after_axis = moved(name, params, axis, before, after)
        if after_axis is not None and after[after_axis] != before[axis]:
            raise _Meeting
        return after_axis

    def _reshaped(
        self, before: Shape, after: Shape, axis: int, stride: int
    ) -> Position | None:
        """In row-major order the examples of a batch are ``apart`` numbers apart."""
        if 0 in after:
            return None
        apart = stride * math.prod(before[axis + 1 :])
        for place, length in enumerate(after):
            behind = math.prod(after[place + 1 :])
            fits = apart % behind == 0 and behind * length % (apart * self.size) == 0
            if fits:
                return Position(place, apart // behind)
        raise _Meeting


def _combines(name: str, params: dict[str, Any], axis: int) -> bool:
    """Whether an operation combines or reorders what lies along this axis."""
    if name in REDUCTIONS:
        return axis in params["axes"]
    if name == "sort":
        return axis == params["dimension"]
    if name == "rev":
        return axis in params["dimensions"]
    if name == "pad":
        return params["padding_config"][axis] != (0, 0, 0)
    if name.startswith("reduce_window"):
        return params["window_dimensions"][axis] != 1
    along = name in _CUMULATIVE or name in ("split", "unstack")
    return along and axis == params["axis"]


def _after_conv(i: int, axis: int, params: dict[str, Any]) -> int:
    """Where the batch lies after a convolution of the examples (operand 0)."""
    numbers = params["dimension_numbers"]
    # A kernel made of examples, or groups of the batch, would add examples up.
    if i != 0 or numbers.lhs_spec[0] != axis or params["batch_group_count"] != 1:
        raise _Meeting
    return numbers.out_spec[0]


def _after_dot(i: int, axis: int, numbers: Any, first_ndim: int) -> int:
    """Where operand i's batch axis lies in a product."""
    contract, batch = numbers
    if axis in contract[i]:
        raise _Meeting
    if axis in batch[i]:
        return list(batch[i]).index(axis)
    paired_axes = {*contract[i], *batch[i]}
    place = sum(a not in paired_axes for a in range(axis)) + len(batch[0])
    free_of_first = first_ndim - len(contract[0]) - len(batch[0])
    return place + (free_of_first if i == 1 else 0)


def _after_gather(
    axis: int, before: Shape, after: Shape, numbers: Any, whole: bool
) -> int:
    """Where the batch axis of what is gathered lies; ``whole``: in every slice."""
    batching_axes, single = numbers.operand_batching_dims, numbers.collapsed_slice_dims
    if axis in batching_axes:  # each example by indices of its own
        index = numbers.start_indices_batching_dims[list(batching_axes).index(axis)]
        return [a for a in range(len(after)) if a not in numbers.offset_dims][index]
    if axis in single or not whole:
        raise _Meeting
    offset = [a for a in range(len(before)) if a not in {*batching_axes, *single}]
    return numbers.offset_dims[offset.index(axis)]


def _after_lookup(axis: int, before: Shape, after: Shape, numbers: Any) -> int:
    """Where the batch axis of the indices lies in what they choose."""
    if axis == len(before) - 1:  # the parts of an index
        raise _Meeting
    return [a for a in range(len(after)) if a not in numbers.offset_dims][axis]


def _after_scatter(axis: int, before: Shape, after: Shape, numbers: Any) -> int:
    """Where the batch axis of the updates lies in what they are written to."""
    batching_axes, windows = numbers.operand_batching_dims, numbers.update_window_dims
    if axis in windows:
        inserted_axes = {*batching_axes, *numbers.inserted_window_dims}
        other_axes = [a for a in range(len(after)) if a not in inserted_axes]
        place = other_axes[list(windows).index(axis)]
        if after[place] != before[axis]:
            raise _Meeting
        return place
    index = [a for a in range(len(before)) if a not in windows].index(axis)
    own = list(numbers.scatter_indices_batching_dims)
    if index not in own:
        raise _Meeting
    return batching_axes[own.index(index)]


def batch_first(equations: Sequence[Equation], batch: Batch) -> list[Equation]:
    """The equations, with moves around each site whose first axis is not the batch."""
    with_moves = []
    for eq in equations:
        alone = all(isinstance(v, Static) for v in eq.inputs[1:])  # no vector of maxima
        with_moves += _with_batch_first(eq, batch) if eq.fires and alone else [eq]
    return with_moves


def _with_batch_first(eq: Equation, batch: Batch) -> list[Equation]:
    """A site, and equations that bring its batch to the front and back again."""
    (v, *operands), (output,), avals = eq.inputs, eq.outputs, batch.avals
    shape = shape_of(avals, v)
    axis, stride = batch.positions.get(output, (0, 1))
    if output not in batch.positions and batch.size == 1 and shape:
        stride = shape[0]  # of a single example, whose axis may have vanished
    outer = shape[axis] // (batch.size * stride) if shape else 1
    parts = [n for i, n in enumerate((outer, batch.size, stride)) if i == 1 or n != 1]
    split_shape = (*shape[:axis], *parts, *shape[axis + 1 :])
    at = axis + (outer != 1)
    # A batch that is unknown may not fit; `check` then refuses the network.
    if len(parts) == 1 and at == 0 or math.prod(split_shape) != math.prod(shape):
        return [eq]

    def to_front(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(split_shape), at, 0)

    def back(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, at).reshape(shape)

    before, (front,) = traced(to_front, [v], avals, eq.path)
    spikes = len(avals)
    avals[spikes] = avals[front]
    after, _ = traced(back, [spikes], avals, eq.path)
    after[-1] = after[-1]._replace(outputs=(output,))
    site = eq.place._replace(shape=shape_of(avals, front)[1:])
    eq = eq._replace(inputs=(front, *operands), outputs=(spikes,), site=site)
    return [*before, eq, *after]
