"""Micro-batches: a function of all images, a few of them at a time.

    results[k] = function(arguments[k]),    k = 0 .. n-1, n .. 2n-1, ..

Arrays of all images are read and written in place, so the function needs memory for n
images only. The loop is Python's: within one of XLA, a CPU reads the slices while it
computes neurons, which takes 4 to 9 times as long. Devices that share the images
compute n of their own each.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax.neurons.spike_trains import SpikeTrain

Axes = tuple[int | None, ...]


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


class Parts(tuple):
    """The micro-batches of an array that is never needed as a whole."""


def each(
    function: Callable[..., tuple],
    images: Images,
    arguments: Sequence[Any],
    in_axes: Axes,
    out_axes: Axes,
    apart: int = 0,
) -> tuple[Any, ...]:
    """``function`` of all images, one micro-batch after the other.

    The last micro-batch may be smaller.

    Args:
        function: hashable, of a micro-batch; no image may affect another. A result may
            have one entry for each micro-batch in place of its images.
        images: which of them.
        arguments: arrays, spikes, and `Parts`.
        in_axes: for each argument the axis of its images; None: it has none.
        out_axes: for each result, likewise.
        apart: so many results, the first ones, are returned as `Parts`.

    >>> images = Images(size=2, count=5, batch_sharding=None)
    >>> double_and_sum = lambda x: (2 * x, x.sum()[None])
    >>> doubles, sums = each(double_and_sum, images, [jnp.arange(5)], (0,), (0, 0))
    >>> print(doubles, sums)
    [0 2 4 6 8] [1 5 4]
    """
    size, count, shared = images
    joined_axes, parts, joined = out_axes[apart:], [], None
    for number, start in enumerate(range(0, count, size)):
        length = min(size, count - start)
        values, starts = [], []
        for value in arguments:
            in_parts = isinstance(value, Parts)
            values.append(value[number] if in_parts else value)
            starts.append(0 if in_parts else start)
        axes = tuple(map(_axes_of, values, in_axes))
        part = tuple(values)
        if not _are_whole(part, axes, length * sharding.size(shared)):
            part = _taken(part, tuple(starts), axes, length, shared)
        results = _computed(function, part, axes, out_axes, shared)
        parts.append(results[:apart])
        if length == count:
            joined = results[apart:]
            break
        if joined is None:
            joined = _room(results[apart:], joined_axes, images)
        last = length < size
        joined = _placed(joined, results[apart:], number, joined_axes, last, shared)
    assert joined is not None
    return *map(Parts, zip(*parts, strict=True)), *joined


def _are_whole(values: tuple, axes: tuple, count: int) -> bool:
    """Whether all that has images has so many of them."""
    own = _map(lambda axis, a: axis is None or a.shape[axis] == count, axes, values)
    return all(jax.tree.leaves(own))


@functools.partial(jax.jit, static_argnames=("axes", "length", "shared"))
def _taken(values: tuple, starts: tuple, axes: tuple, length: int, shared: Any):
    """A micro-batch of the values, each device's from its own images."""

    def take(values, starts):
        def part(axis, array, start):
            if axis is None or array.shape[axis] == length:
                return array
            return jax.lax.dynamic_slice_in_dim(array, start, length, axis)

        return tuple(
            _map(lambda axis, array, start=start: part(axis, array, start), axis, value)
            for axis, value, start in zip(axes, values, starts, strict=True)
        )

    return sharding.on_each_device(take, shared, (axes, None), axes)(values, starts)


@functools.partial(
    jax.jit, static_argnames=("function", "in_axes", "out_axes", "shared")
)
def _computed(function, arguments, in_axes, out_axes, shared: Any) -> tuple:
    """Results of a micro-batch, each device's of its own images."""
    return sharding.on_each_device(function, shared, in_axes, out_axes)(*arguments)


@functools.partial(jax.jit, static_argnames=("axes", "images"))
def _room(first: tuple, axes: Axes, images: Images) -> tuple:
    """Zeros for the results of all micro-batches, which are as long as the first."""
    size, count, shared = images

    def zeros(*first):
        def room(axis, array):
            if axis is None:
                return array
            rows = array.shape[axis]
            per_image = rows % size == 0
            total = rows // size * count if per_image else rows * -(-count // size)
            shape = (*array.shape[:axis], total, *array.shape[axis + 1 :])
            return jnp.zeros(shape, array.dtype)

        return _map(room, axes, first)

    return sharding.on_each_device(zeros, shared, axes, axes)(*first)


@functools.partial(
    jax.jit, static_argnames=("axes", "last", "shared"), donate_argnames="results"
)
def _placed(
    results: tuple, part: tuple, number: Any, axes: Axes, last: bool, shared: Any
) -> tuple:
    """The results, with those of micro-batch ``number``, or of the last, in place."""

    def place(results, part, number):
        def write(axis, array, own):
            if axis is None:
                return own
            rows, end = own.shape[axis], array.shape[axis]
            start = end - rows if last else number * rows
            return jax.lax.dynamic_update_slice_in_dim(array, own, start, axis)

        return _map(write, axes, results, part)

    place = sharding.on_each_device(place, shared, (axes, axes, None), axes)
    return place(results, part, number)


def _map(function: Callable, axes: Any, *trees: Any) -> Any:
    """``function(axis, *subtrees)`` for each axis of a tree, where None is one."""
    return jax.tree.map(function, axes, *trees, is_leaf=lambda axis: axis is None)


def _axes_of(value: Any, axis: int | None) -> Any:
    """The axis of the images, for each array of a value."""
    if isinstance(value, SpikeTrain):
        return dataclasses.replace(value, bits=axis, threshold=None, offset=None)
    return axis
