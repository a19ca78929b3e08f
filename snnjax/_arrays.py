"""Arrays: types in which sums are exact enough, and axes beside that of the channels.

JAX's strict settings (``jax_numpy_dtype_promotion``, ``jax_numpy_rank_promotion``) hold
in all of snnjax, so what broadcasts or changes its type says so, by these functions.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def promoted(*arrays: Any) -> Any:
    """The type that JAX promotes arrays, or types, to by default."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, map(jnp.result_type, arrays))


def wide_dtype(*arrays: Any) -> Any:
    """float32, or the type of the arrays where it is wider."""
    return promoted(jnp.float32, *arrays)


def wide(array: Any) -> jax.Array:
    """The array in float32 or wider: many numbers of bfloat16 would not add up."""
    return jnp.asarray(array, wide_dtype(array))


def running_sum(array: jax.Array) -> jax.Array:
    """The sums of the first 1, 2, .. entries along the first axis.

    On a CPU, XLA computes ``jnp.cumsum`` in several passes, and this in one.

    >>> print(running_sum(jnp.array([1.0, 2.0, 4.0])))
    [1. 3. 7.]
    """

    def add(total, entry):
        total = total + entry
        return total, total

    _, sums = jax.lax.scan(add, jnp.zeros_like(array[0]), array, unroll=8)
    return sums


def lead(array: Any, ndim: int) -> jax.Array:
    """The array with axes of size 1 in front, ``ndim`` in all; a scalar stays one.

    >>> lead(jnp.ones(3), 4).shape, lead(2.0, 4).shape
    ((1, 1, 1, 3), ())
    """
    array = array if isinstance(array, np.ndarray) else jnp.asarray(array)
    if array.ndim in (0, ndim):
        return array
    new_axes = [1] * (ndim - array.ndim)
    return array.reshape(*new_axes, *array.shape)


def per_step(numbers: Any, ndim: int) -> Any:
    """Numbers of the steps, [T], with axes of size 1 behind, ``ndim`` in all.

    >>> per_step(jnp.ones(8), 3).shape
    (8, 1, 1)
    """
    new_axes = [1] * (ndim - 1)
    return numbers.reshape(-1, *new_axes)


def like(number: Any, array: jax.Array) -> jax.Array:
    """A number, or one for each channel, in the array's type, with as many axes."""
    return lead(number, array.ndim).astype(array.dtype)


def straight_through(rounded: jax.Array, x: jax.Array) -> jax.Array:
    """``rounded``, with the derivative of x in place of its own, which is 0."""
    return x + jax.lax.stop_gradient(rounded - x)


def aligned(*arrays: Any) -> list[jax.Array]:
    """The arrays with as many axes as the longest has, see `lead`.

    >>> [a.shape for a in aligned(jnp.ones(3), jnp.ones((2, 3)), 1.0)]
    [(1, 3), (2, 3), ()]
    """
    ndim = max(map(jnp.ndim, arrays))
    return [lead(array, ndim) for array in arrays]


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of the first shape broadcasts to the second."""
    try:
        return np.broadcast_shapes(shape, to) == tuple(to)
    except ValueError:
        return False


def on_host(tree: Any) -> Any:
    """The same with NumPy's arrays in place of JAX's, unless they are traced.

    Arithmetic of a few parameters is done at once; JAX would compile each operation.
    """
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, Tracer) else np.asarray(leaf), tree
    )


def is_on_host(tree: Any) -> bool:
    """Whether all arrays are in the memory of one CPU, where NumPy reads them."""

    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, Tracer):
            return False
        if isinstance(leaf, jax.Array):
            platforms = [device.platform for device in leaf.devices()]
            if platforms != ["cpu"]:
                return False
    return True


def by_numpy_or_xla(function: Callable, static: int = 0) -> Callable:
    """A function of arrays, by NumPy where they are in a CPU's memory.

    That takes no compilation. Elsewhere, and traced, it is compiled. The first
    arguments, so many, are static.
    """
    compiled = jax.jit(function, static_argnums=tuple(range(static)))

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        arrays = arguments[static:]
        if not is_on_host(arrays):
            return compiled(*arguments)
        with np.errstate(all="ignore"):  # as XLA
            return function(*arguments[:static], *on_host(arrays))

    return call


def namespace(array: Any) -> Any:
    """NumPy for its arrays, otherwise ``jax.numpy``."""
    return np if isinstance(array, np.ndarray | np.generic) else jnp


def look_up(table: np.ndarray, indices: Any) -> Any:
    """The entries of a table [N] at these indices, by NumPy or JAX as the indices are.

    >>> print(look_up(np.array([1.0, 0.5]), np.array([1, 1, 0])))
    [0.5 0.5 1. ]
    """
    return namespace(indices).take(table, indices)


def binary_unit(values: Any) -> Any:
    """For each number the power of two above it, which scales without rounding.

    >>> print(binary_unit(np.array([0.3, 5.0, 0.0])))
    [0.5 8.  1. ]
    """
    xp = namespace(values)
    _, exponents = xp.frexp(abs(values))
    return xp.ldexp(xp.ones_like(values), exponents)


def add_offset(values: jax.Array, offset: Any) -> jax.Array:
    """Values plus an offset of each channel, in their own type; None: as they are."""
    if offset is None:
        return values
    return values + lead(jnp.asarray(offset, values.dtype), values.ndim)


def subtract_offset(values: jax.Array, offset: Any) -> jax.Array:
    """What `add_offset` has been applied to."""
    if offset is None:
        return values
    offset = namespace(values).asarray(offset, values.dtype)
    return values - lead(offset, values.ndim)


def over_time(current: jax.Array, steps: int, ndim: int) -> jax.Array:
    """A current as [T, B, ...]; a constant one is [B, ...], ndim axes after B.

    >>> over_time(jnp.ones((2, 3)), 4, 1).shape
    (4, 2, 3)
    """
    if current.ndim == ndim + 1:
        current = jnp.broadcast_to(current, (steps, *current.shape))
    return current


def other_axes(ndim: int, channel: int) -> tuple[int, ...]:
    """All axes but that of the channels, which is counted from the end."""
    return tuple(axis for axis in range(ndim) if axis != ndim + channel)


def per_channel(reduce: Callable, x: jax.Array, channel: int = -1) -> jax.Array:
    """``reduce`` of each channel's numbers: [C], with a 1 for each axis after it.

    >>> per_channel(jnp.sum, jnp.ones((4, 5, 3)))
    Array([20., 20., 20.], dtype=float32)
    """
    reduced = reduce(x, axis=other_axes(x.ndim, channel), keepdims=True)
    later_axes = [1] * (-channel - 1)
    return reduced.reshape(x.shape[channel], *later_axes)


def sampled(parts: Iterable[Any], axis: int, stride: int) -> list[Any]:
    """Each ``stride``-th image, counted across all parts; images lie along ``axis``.

    >>> [part.tolist() for part in sampled([jnp.arange(3), jnp.arange(3, 7)], 0, 2)]
    [[0, 2], [4, 6]]
    """
    samples = []
    start = 0  # number of the part's first image
    for part in parts:
        count = part.shape[axis]
        first = -start % stride
        if first < count:
            whole_axes = (slice(None),) * axis
            samples.append(part[(*whole_axes, slice(first, None, stride))])
        start += count
    return samples
