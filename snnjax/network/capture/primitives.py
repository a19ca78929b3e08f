"""Primitives of JAX: a table of what the capture knows of each, and how they move axes.

    f(sum_t s_t / T) = sum_t f(s_t) / T    for spikes s_t of T steps

holds for every affine f and no other, so an affine primitive may be applied to the
spikes of each step. A primitive that no row names may do anything, so that a network
with it is refused. To allow one, add its name to the row of those that behave like it.
"""

import math
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

from snnjax.network.equations import Shape

OPERATOR = "operator"  # not affine, and computed on running means

_NONE, _ALL = range(0), range(2**31)  # positions of operands


class Primitive(NamedTuple):
    """How a primitive acts on operands that depend on the input.

    Attributes:
        affine_in: positions of the operands in which it is affine together. The other
            operands choose or scale.
        affine_in_each: it is affine in each operand, if only one depends on the input.
        values: of a primitive that reads or writes at indices, the positions of its
            operands that are values. The other operands are the indices.
        otherwise: what an equation is that is not affine: `OPERATOR`, or the kind of
            the refusal (``check.py``).
        rearranges: it moves the numbers of one array, and computes none.
        pointwise: it computes number by number.
        piecewise: it is a polynomial in every piece of its domain.
        compares: it decides in which piece a number lies.
        along: name of its parameter for the axes along which it works, "" for none.
    """

    affine_in: Container[int] = _NONE
    affine_in_each: bool = False
    values: Container[int] = _NONE
    otherwise: str = "unknown"
    rearranges: bool = False
    pointwise: bool = False
    piecewise: bool = False
    compares: bool = False
    along: str = ""


_EACH: dict[str, Any] = {"affine_in_each": True, "otherwise": OPERATOR}
_PIECES: dict[str, Any] = {"pointwise": True, "piecewise": True}
_ROWS = (
    # Affine in all operands together.
    (
        "reshape transpose squeeze expand_dims name optimization_barrier",
        Primitive(_ALL, rearranges=True),
    ),
    ("convert_element_type copy", Primitive(_ALL, rearranges=True, **_PIECES)),
    ("add sub neg broadcast_in_dim stop_gradient", Primitive(_ALL, **_PIECES)),
    (
        "add_any concatenate copy_p mesh_cast pad reduce_precision reduce_window_sum "
        "reshard sharding_constraint slice stack tile",
        Primitive(_ALL),
    ),
    ("split unstack cumsum", Primitive(_ALL, along="axis")),
    ("reduce_sum", Primitive(_ALL, along="axes")),
    ("rev", Primitive(_ALL, along="dimensions")),
    # Affine in some of them.
    ("mul", Primitive(**_EACH, **_PIECES)),
    ("dot_general conv_general_dilated", Primitive(**_EACH)),
    ("div", Primitive({0}, otherwise=OPERATOR, **_PIECES)),
    ("gather dynamic_slice", Primitive({0}, values={0}, otherwise="choice")),
    ("dynamic_update_slice", Primitive({0, 1}, values={0, 1}, otherwise="choice")),
    (
        "scatter scatter-add scatter_add scatter-sub scatter_sub",
        Primitive({0, 2}, values={0, 2}, otherwise="choice"),
    ),
    # The largest value at an index, as of the edges that reach a node of a graph, is
    # affine in none.
    ("scatter-mul scatter_mul", Primitive({0}, values={0, 2}, otherwise="choice")),
    (
        "scatter-max scatter_max scatter-min scatter_min",
        Primitive(values={0, 2}, otherwise="choice"),
    ),
    # Affine in none, but of known numbers.
    ("square integer_pow", Primitive(otherwise=OPERATOR, **_PIECES)),
    (
        "max min clamp select_n abs sign lt le gt ge",
        Primitive(otherwise=OPERATOR, compares=True, **_PIECES),
    ),
    (
        "tanh logistic erf erfc erf_inv exp exp2 expm1 log log1p sin cos tan asin acos "
        "atan atan2 sinh cosh asinh acosh atanh rsqrt sqrt cbrt pow floor ceil round "
        "rem eq ne and or not xor is_finite",
        Primitive(otherwise=OPERATOR, pointwise=True),
    ),
    (
        "reduce_prod reduce_max reduce_min reduce_and reduce_or",
        Primitive(otherwise=OPERATOR, along="axes"),
    ),
    ("reduce_window_max reduce_window_min", Primitive(otherwise=OPERATOR)),
    ("cumprod cummax cummin cumlogsumexp", Primitive(otherwise=OPERATOR, along="axis")),
    # Refused, unless they are computed once, from the input alone.
    ("argmax argmin", Primitive(otherwise="order", along="axes")),
    ("sort", Primitive(otherwise="order", along="dimension")),
    ("top_k", Primitive(otherwise="order")),
    # Refused.
    (
        "random_bits threefry2x32 rng_bit_generator rng_uniform",
        Primitive(otherwise="random"),
    ),
    ("scan", Primitive(otherwise="recurrence")),  # a long one; others are unrolled
    ("while cond shard_map pallas_call", Primitive(otherwise="loop")),
    ("reduce_window", Primitive(otherwise="window")),
    ("fft real imag complex conj", Primitive(otherwise="complex")),
)
_TABLE = {name: row for names, row in _ROWS for name in names.split()}
REARRANGEMENTS = frozenset(name for name, row in _TABLE.items() if row.rearranges)


def primitive(name: str) -> Primitive:
    """The row of a primitive; one that is unknown has a row in which nothing holds."""
    return _TABLE.get(name, Primitive())


def moved(
    name: str,
    params: dict[str, Any],
    axis: int,
    shape: Shape,
    new_shape: Shape,
    *,
    last: bool = False,
) -> int | None:
    """The axis of a primitive's result that an axis of its operand becomes.

    None if that is unknown, or if the axis is reduced.

    Args:
        name: of the primitive.
        params: its parameters.
        axis: of the operand, from 0 on.
        shape: of the operand.
        new_shape: of the result.
        last: take the last of several possible axes, not the first.
    """
    if name == "transpose":  # axis i of the result is axis permutation[i]
        return list(params["permutation"]).index(axis)
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][axis]
    if primitive(name).along == "axes":  # a reduction
        return _axis_without(params["axes"], axis)
    if name == "stack":
        return axis + 1 if axis >= params["axis"] else axis
    if name == "unstack":
        return _axis_without([params["axis"]], axis)
    # Any other primitive keeps its axes, or merges and splits them as a reshape does.
    if len(shape) == len(new_shape) and name != "reshape":
        return axis
    return _reshaped_axis(axis, shape, new_shape, last)


def _axis_without(removed_axes: Sequence[int], axis: int) -> int | None:
    """The number of an axis after some are removed; None if it is removed itself."""
    if axis in removed_axes:
        return None
    return axis - len([removed for removed in removed_axes if removed < axis])


def _reshaped_axis(axis: int, shape: Shape, new_shape: Shape, last: bool) -> int | None:
    """The axis of a reshape's result that is an axis of its operand; None for none.

    A reshape keeps an axis if its size and its stride in row-major order are the same.
    Several axes may be, if some have size 1: ``last`` says which of them counts.
    """
    stride = math.prod(shape[axis + 1 :])
    axes = []
    for new_axis, size in enumerate(new_shape):
        if size == shape[axis] and math.prod(new_shape[new_axis + 1 :]) == stride:
            axes.append(new_axis)
    if not axes:
        return None
    return axes[-1] if last else axes[0]
