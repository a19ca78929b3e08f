"""Axes: where batch and channels lie, equation by equation, as a network moves them.

Examples must not meet, neurons want the batch first, and thresholds are per channel.
Products make channels; what follows moves both about, or folds them into another axis.
"""

import math

import jax
import numpy as np

from snnjax.network.equations import Equation, Static

_REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod".split())


def batch_first(equations, avals, x: int) -> list[Equation]:
    """The same; neurons see the batch on their first axis.

    vmap puts it last where weights are multiplied from the left, W @ x.
    """
    batch, moved = {x: 0}, []
    for eq in equations:
        _, axis = follow(eq, batch, avals)
        pools = eq.site is None or eq.site.kind == "max-pool"
        alone = all(isinstance(v, Static) for v in eq.inputs[1:])  # no vector of maxima
        moved += [eq] if pools or not axis or not alone else _around(eq, axis, avals)
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
    return _moved(name, params, axis, before, after)


def _moved(name: str, params, axis: int, before, after) -> int | None:
    """Where an axis of the operand lies in the result; None if that is unknown."""
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
    for i, size in enumerate(after):
        if size == before[axis] and math.prod(after[i + 1 :]) == behind:
            return i
    return None


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


_MIXED = -1


def follow(equation, batch: dict[int, int], avals) -> tuple[bool, int | None]:
    """Whether examples meet, and the batch axis of the outputs if it is known.

    Args:
        batch: variable -> axis, as far as it is known; the outputs are added.
        avals: variable -> shape and dtype.
    """
    found = {
        _batch_axis(equation, i, batch[v], avals)
        for i, v in enumerate(equation.inputs)
        if isinstance(v, int) and v in batch
    }
    known = found - {None}
    if _MIXED in known or len(known) > 1:
        return True, None
    if not known:
        return False, None
    (axis,) = known
    if None not in found:
        batch.update(dict.fromkeys(equation.outputs, axis))
    return False, axis


def _batch_axis(equation, i: int, axis: int, avals) -> int | None:
    """Where the batch axis of input i lies in the output; _MIXED, None if unknown."""
    name = getattr(equation.primitive, "name", "")
    params = {key: static.value for key, static in equation.params}
    before = avals[equation.inputs[i]].shape
    after = avals[equation.outputs[0]].shape
    if name == "dot_general":
        return _dot_batch(i, axis, before, params["dimension_numbers"], equation, avals)
    if name == "conv_general_dilated":
        spec = params["dimension_numbers"]
        if i == 1:
            return None
        return spec.out_spec[0] if spec.lhs_spec[0] == axis else _MIXED
    if name == "gather":
        return None if params["slice_sizes"][axis] == before[axis] else _MIXED
    mixed = {
        "rev": lambda: axis in params["dimensions"],
        "concatenate": lambda: axis == params["dimension"],
        "pad": lambda: params["padding_config"][axis] != (0, 0, 0),
        "slice": lambda: after[axis] != before[axis],
        "dynamic_slice": lambda: after[axis] != before[axis],
        "split": lambda: axis == params["axis"],
        "unstack": lambda: axis == params["axis"],
        "tile": lambda: params["reps"][axis] != 1,
        "cumsum": lambda: axis == params["axis"],
        "reduce_window_sum": lambda: params["window_dimensions"][axis] != 1,
        "reduce_window_max": lambda: params["window_dimensions"][axis] != 1,
    }
    if name in _REDUCTIONS and axis in params["axes"]:
        return _MIXED
    if name in mixed and mixed[name]():
        return _MIXED
    return _moved(name, params, axis, before, after)


def _dot_batch(i, axis, before, dimension_numbers, equation, avals) -> int:
    contract, batch = dimension_numbers
    if axis in contract[i]:
        return _MIXED
    if axis in batch[i]:
        return list(batch[i]).index(axis)
    taken = {*contract[i], *batch[i]}
    place = sum(a not in taken for a in range(axis)) + len(batch[0])
    if i == 1:
        other = _ndim(equation.inputs[0], avals)
        place += other - len(contract[0]) - len(batch[0])
    return place
