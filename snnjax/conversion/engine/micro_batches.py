"""Micro-batches: a function of all images, a few of them at a time.

    results[k] = function(arguments[k]),    k = 0 .. n-1, n .. 2n-1, ..

A loop within one compiled program reads and writes arrays of all images in place, so
memory is needed for n images only. Devices that share the images run a loop each.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from snnjax import sharding


class Images(NamedTuple):
    """Which images of an array are meant, and how many are computed at a time.

    Attributes:
        size: of a micro-batch on each device.
        count: of each device; it may have more, after these.
        batch_sharding: how devices share the images; None: a single device.
    """

    size: int
    count: int
    batch_sharding: NamedSharding | None

    @property
    def total(self) -> int:
        """Of all devices."""
        return self.count * sharding.size(self.batch_sharding)

    def of(self, array: jax.Array, axis: int = 0) -> jax.Array:
        """These images of a traced array that has those of each device in one row."""
        devices = sharding.size(self.batch_sharding)
        before, after = array.shape[:axis], array.shape[axis + 1 :]
        if array.shape[axis] == self.total:
            return array
        rows = array.reshape(*before, devices, -1, *after)
        rows = jax.lax.slice_in_dim(rows, 0, self.count, axis=axis + 1)
        return rows.reshape(*before, self.total, *after)


def in_micro_batches(
    function: Callable[..., tuple],
    images: Images,
    in_axes: Sequence[Any],
    out_axes: Sequence[Any],
) -> Callable[..., tuple]:
    """``function`` of all images, one micro-batch after the other.

    The last micro-batch may be smaller.

    Args:
        function: of a micro-batch; no image may affect another. A result may have one
            entry for each micro-batch in place of its images.
        images: which of them.
        in_axes: for each argument the axis of its images, or a tree of axes; None: it
            has none.
        out_axes: for each result, likewise.

    >>> images = Images(size=2, count=5, batch_sharding=None)
    >>> double_and_sum = lambda x: (2 * x, x.sum()[None])
    >>> doubles, sums = in_micro_batches(double_and_sum, images, [0], [0, 0])(
    ...     jnp.arange(5))
    >>> print(doubles, sums)
    [0 2 4 6 8] [1 5 4]
    """
    in_axes, out_axes, size = tuple(in_axes), tuple(out_axes), images.size
    full, rest = divmod(images.count, size)

    def on_one_device(*arguments: Any) -> tuple:
        def results_of(start: Any, length: int) -> tuple:
            return function(*_part(in_axes, arguments, start, length))

        if full + bool(rest) == 1:
            return results_of(0, rest or size)
        last = results_of(full * size, rest) if rest else None
        whole = jax.eval_shape(lambda: results_of(0, size))
        results = _empty(out_axes, whole, full, last)
        if rest:
            results = _written(out_axes, results, last, whole, full)

        def step(i: jax.Array, results: tuple) -> tuple:
            part = results_of(i * size, size)
            return _written(out_axes, results, part, whole, i)

        return jax.lax.fori_loop(0, full, step, results)

    sharded = images.batch_sharding
    return sharding.on_each_device(on_one_device, sharded, in_axes, out_axes)


def _map(function: Callable, axes: Any, *trees: Any) -> Any:
    """``function(axis, *subtrees)`` for each axis of a tree, where None is one."""
    return jax.tree.map(function, axes, *trees, is_leaf=lambda axis: axis is None)


def _part(axes: Any, arguments: Any, start: Any, length: int) -> Any:
    """These images of every argument that has images."""

    def part(axis: int | None, array: Any) -> Any:
        if axis is None or array.shape[axis] == length:
            return array
        return jax.lax.dynamic_slice_in_dim(array, start, length, axis)

    return _map(part, axes, arguments)


def _empty(axes: Any, whole: Any, full: int, last: Any) -> Any:
    """Arrays for the results of ``full`` micro-batches and of the last, smaller one."""

    def zeros(axis: int | None, part: Any, last: Any = None) -> Any:
        if axis is None:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), part)
        shape = list(part.shape)
        shape[axis] = full * shape[axis] + (0 if last is None else last.shape[axis])
        return jnp.zeros(shape, part.dtype)

    return _map(zeros, axes, whole, *([] if last is None else [last]))


def _written(axes: Any, results: Any, part: Any, whole: Any, number: Any) -> Any:
    """The results, with those of a micro-batch in their place."""

    def write(axis: int | None, result: Any, part: Any, whole: Any) -> Any:
        if axis is None:
            return part
        start = number * whole.shape[axis]
        return jax.lax.dynamic_update_slice_in_dim(result, part, start, axis)

    return _map(write, axes, results, part, whole)
