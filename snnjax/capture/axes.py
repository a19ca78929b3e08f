"""Axes: how operations move them, and where channels lie, equation by equation.

Products with weights make channels. Later operations move the channel axis, or merge it
with another axis. Thresholds are per channel.
"""

import math
from collections.abc import Collection
from typing import Any

from snnjax.capture.primitives import primitive
from snnjax.network.equations import Equation, shape_of

# variable -> shape and dtype
Avals = dict[int, Any]
Shape = tuple[int, ...]


def channel_axis(
    equation: Equation,
    dependent: Collection[int],
    avals: Avals,
    channels: dict[int, int],
) -> int | None:
    """The channel axis of an equation's output; None if it is unknown.

    ``channels`` has that of every variable for which it is known.
    """
    name, options = equation.name, equation.options
    if name == "conv_general_dilated":
        return options["dimension_numbers"].out_spec[1]
    if name == "dot_general":
        return _dot_channel(equation, dependent, avals, options["dimension_numbers"])
    sources = [v for v in equation.variables if v in channels]
    if not sources:
        return None
    before, after = avals[sources[0]].shape, avals[equation.outputs[0]].shape
    return moved(name, options, channels[sources[0]], before, after, last=True)


def axes_of_maximum(equation: Equation, avals: Avals) -> set[int]:
    """Axes, from the end, along which the maximum of a clipped ReLU differs."""
    if not equation.fires or len(equation.inputs) < 2:
        return set()
    shape = shape_of(avals, equation.inputs[1])
    return {i - len(shape) for i, size in enumerate(shape) if size > 1}


def moved(
    name: str,
    params: dict[str, Any],
    axis: int,
    before: Shape,
    after: Shape,
    *,
    last: bool = False,
) -> int | None:
    """Where an axis of the operand lies in the result; None if that is unknown.

    Of several possible axes it is the first, or the ``last``.
    """
    if name == "transpose":
        return list(params["permutation"]).index(axis)
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][axis]
    if primitive(name).along == "axes":  # a reduction
        axes = params["axes"]
        return None if axis in axes else axis - sum(a < axis for a in axes)
    if name == "stack":
        return axis + (axis >= params["axis"])
    if name == "unstack":
        removed_axis = params["axis"]
        return None if axis == removed_axis else axis - (axis > removed_axis)
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


def _dot_channel(
    equation: Equation, dependent: Collection[int], avals: Avals, dimension_numbers
) -> int | None:
    """The last free axis of the weights, where a product puts it."""
    contract, batch = dimension_numbers
    free = []
    for side, v in enumerate(equation.inputs[:2]):
        paired_axes = {*contract[side], *batch[side]}
        ndim = len(shape_of(avals, v))
        axes = [a for a in range(ndim) if a not in paired_axes]
        free += [v not in dependent] * len(axes)
    if True not in free:
        return None
    return len(batch[0]) + max(i for i, weights in enumerate(free) if weights)
