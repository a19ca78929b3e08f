"""Arrays: types in which sums are exact enough, and axes beside that of the channels.

JAX's strict settings (``jax_numpy_dtype_promotion``, ``jax_numpy_rank_promotion``) hold
in all of snnjax, so what broadcasts or changes its type says so, by these functions.
Arrays of activations are [B, ..., C], or [T, B, ..., C] over time.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def promoted(*arrays: Any) -> Any:
    """The type to which JAX promotes these arrays, or types, by default.

    A Python number counts as an array of its default type, such as float32.
    """
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, map(jnp.result_type, arrays))


def wide_dtype(*arrays: Any) -> Any:
    """float32, or the type to which the arrays promote if that is wider."""
    return promoted(jnp.float32, *arrays)


def wide(array: Any) -> jax.Array:
    """The array in float32 or wider: a sum of many numbers in bfloat16 is not exact."""
    return jnp.asarray(array, wide_dtype(array))


def running_sum(array: jax.Array) -> jax.Array:
    """The sums of the first 1, 2, .. entries along the first axis, in the same shape.

    On a CPU, XLA computes ``jnp.cumsum`` in several passes over the array, and this
    loop in one.

    >>> print(running_sum(jnp.array([1.0, 2.0, 4.0])))
    [1. 3. 7.]
    """

    def add(total, entry):
        total = total + entry
        return total, total

    _, sums = jax.lax.scan(add, jnp.zeros_like(array[0]), array, unroll=8)
    return sums


def lead(array: Any, ndim: int) -> Any:
    """The array with axes of size 1 in front, such that it has ``ndim`` axes.

    A scalar stays a scalar, and an array of NumPy stays one of NumPy.

    >>> lead(jnp.ones(3), 4).shape, lead(2.0, 4).shape
    ((1, 1, 1, 3), ())
    """
    if not isinstance(array, np.ndarray):
        array = jnp.asarray(array)
    if array.ndim in (0, ndim):
        return array
    new_axes = [1] * (ndim - array.ndim)
    return array.reshape(*new_axes, *array.shape)


def per_step(numbers: Any, ndim: int) -> Any:
    """A number for each step, [T], with axes of size 1 behind: ``ndim`` axes in all.

    >>> per_step(jnp.ones(8), 3).shape
    (8, 1, 1)
    """
    new_axes = [1] * (ndim - 1)
    return numbers.reshape(-1, *new_axes)


def like(number: Any, array: jax.Array) -> jax.Array:
    """A number, or [C], with the type of an array and as many axes (see `lead`)."""
    return lead(number, array.ndim).astype(array.dtype)


def straight_through(rounded: jax.Array, x: jax.Array) -> jax.Array:
    """``rounded``, with the derivative of x in place of that of rounding, which is 0.

    Both arrays have one shape.
    """
    return x + jax.lax.stop_gradient(rounded - x)


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of the first shape broadcasts to the second."""
    try:
        return np.broadcast_shapes(shape, to) == tuple(to)
    except ValueError:
        return False


def on_host(tree: Any) -> Any:
    """A pytree with arrays of NumPy in place of those of JAX, unless they are traced.

    NumPy computes with a few parameters at once. JAX would compile each operation.
    """

    def moved(leaf: Any) -> Any:
        return leaf if isinstance(leaf, Tracer) else np.asarray(leaf)

    return jax.tree.map(moved, tree)


def is_on_host(tree: Any) -> bool:
    """Whether all arrays of a pytree lie in the memory of one CPU, for NumPy to read.

    Traced arrays and those that several devices share do not.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, Tracer):
            return False
        if isinstance(leaf, jax.Array):
            platforms = [device.platform for device in leaf.devices()]
            if platforms != ["cpu"]:
                return False
    return True


def by_numpy_or_xla(function: Callable, static: int = 0) -> Callable:
    """A function that NumPy computes if all of its arrays lie in a CPU's memory.

    NumPy needs no compilation. For arrays on other devices, and traced ones, the
    function is compiled.

    Args:
        function: of arrays of either kind, see `namespace`.
        static: how many of its first arguments are no arrays.
    """
    compiled = jax.jit(function, static_argnums=tuple(range(static)))

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        arrays = arguments[static:]
        if not is_on_host(arrays):
            return compiled(*arguments)
        with np.errstate(all="ignore"):  # XLA gives no warnings either
            return function(*arguments[:static], *on_host(arrays))

    return call


def namespace(array: Any) -> Any:
    """The module that computes with this array: NumPy or ``jax.numpy``."""
    return np if isinstance(array, np.ndarray | np.generic) else jnp


def look_up(table: np.ndarray, indices: Any) -> Any:
    """The entries of a table [N] at these indices, by NumPy or JAX as the indices are.

    >>> print(look_up(np.array([1.0, 0.5]), np.array([1, 1, 0])))
    [0.5 0.5 1. ]
    """
    return namespace(indices).take(table, indices)


def on_device(array: Any, *, copy: bool = False) -> jax.Array:
    """An array of JAX, which stays where it is, or one of NumPy's on a device.

    Args:
        array: of JAX or NumPy, or a Python number.
        copy: whether an array of NumPy may change later. Otherwise the result may share
            its memory.

    >>> on_device(np.ones(2)).devices() == {jax.devices()[0]}
    True
    """
    # An array that several processes hold cannot be put anywhere.
    if isinstance(array, jax.Array):
        return array
    # By NumPy, since `device_put` with ``may_alias=False`` shares the memory as well.
    if copy and isinstance(array, np.ndarray):
        array = array.copy()
    # Unlike `jnp.asarray`, it compiles no program.
    return jax.device_put(array)


def binary_unit(values: Any) -> Any:
    """For each number the power of two above it, in the same shape.

    A division by it does not round, and brings the number into (-1, 1).

    >>> print(binary_unit(np.array([0.3, 5.0, 0.0])))
    [0.5 8.  1. ]
    """
    xp = namespace(values)
    _, exponents = xp.frexp(abs(values))
    return xp.ldexp(xp.ones_like(values), exponents)


def add_offset(values: jax.Array, offset: Any) -> jax.Array:
    """Values [..., C] plus an offset, a scalar or [C], in the type of the values.

    Without an offset (None) the values are returned as they are.
    """
    if offset is None:
        return values
    return values + lead(jnp.asarray(offset, values.dtype), values.ndim)


def subtract_offset(values: jax.Array, offset: Any) -> jax.Array:
    """Values minus an offset, the inverse of `add_offset`; also of NumPy's arrays."""
    if offset is None:
        return values
    offset = namespace(values).asarray(offset, values.dtype)
    return values - lead(offset, values.ndim)


def over_time(current: jax.Array, steps: int, ndim: int) -> jax.Array:
    """A current as a stream [T, B, ...].

    Args:
        current: [T, B, ...], or [B, ...] if it is the same at every step.
        steps: T.
        ndim: number of axes after B.

    >>> over_time(jnp.ones((2, 3)), 4, 1).shape
    (4, 2, 3)
    """
    if current.ndim == ndim + 1:
        current = jnp.broadcast_to(current, (steps, *current.shape))
    return current


def other_axes(ndim: int, channel: int) -> tuple[int, ...]:
    """All axes of an array but that of the channels, counted from the first axis.

    Args:
        ndim: number of axes of the array.
        channel: axis of the channels, counted from the end: -1 is the last.
    """
    return tuple(axis for axis in range(ndim) if axis != ndim + channel)


def per_channel(reduce: Callable, x: jax.Array, channel: int = -1) -> jax.Array:
    """The numbers of each channel reduced to one: [C], or e.g. [C, 1, 1].

    The result broadcasts to x. It has an axis of size 1 for each one behind the
    channels.

    Args:
        reduce: such as ``jnp.max``, with the arguments ``axis`` and ``keepdims``.
        x: the numbers.
        channel: axis of the channels, counted from the end.

    >>> per_channel(jnp.sum, jnp.ones((4, 5, 3)))
    Array([20., 20., 20.], dtype=float32)
    """
    reduced = reduce(x, axis=other_axes(x.ndim, channel), keepdims=True)
    axes_behind = [1] * (-channel - 1)
    return reduced.reshape(x.shape[channel], *axes_behind)


def sampled(parts: Iterable[Any], axis: int, stride: int) -> list[Any]:
    """Each ``stride``-th image, counted across all parts.

    Args:
        parts: arrays of images, that is, of a batch in pieces.
        axis: of the images in each part.
        stride: the sample begins with image 0.

    Returns:
        What the sample takes of each part, without parts of which it takes nothing.

    >>> [part.tolist() for part in sampled([jnp.arange(3), jnp.arange(3, 7)], 0, 2)]
    [[0, 2], [4, 6]]
    """
    samples = []
    start = 0  # number of the part's first image
    for part in parts:
        count = part.shape[axis]
        # The first image of the part whose number is a multiple of the stride.
        first = -start % stride
        if first < count:
            axes_in_front = (slice(None),) * axis
            samples.append(part[(*axes_in_front, slice(first, None, stride))])
        start += count
    return samples
