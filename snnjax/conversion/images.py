"""Calibration images: checked and counted once, and placed on their devices.

What is handed on knows how many images there are, and how devices share them. A
conversion takes them in micro-batches, which are separate arrays: a CPU that reads
slices of one large array, in a loop of XLA, takes 4 to 9 times as long.
"""

import functools
import numbers
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from snnjax import sharding
from snnjax._arrays import is_on_host, on_device, on_host
from snnjax._checks import NO_NUMBERS, check_examples, check_finite
from snnjax.conversion import cautions

# Every so many images one is unseen by the fits, from this one on.
_UNSEEN_SPACING = 8
_FIRST_UNSEEN = 5
# Fewer do not tell two SNNs apart, and more tell little more.
_FEWEST_UNSEEN = 4
_MOST_UNSEEN = 128


class MicroBatch(NamedTuple):
    """Some images at once, and which of all images they are."""

    images: chex.ArrayTree
    numbers: range


class CalibrationImages(NamedTuple):
    """All N calibration images.

    Attributes:
        arrays: as the network takes them, [N, ...] each, on devices with Auto axes.
        count: N.
        batch_sharding: how devices share the images; None: one device has them all.
        user_sharding: the sharding that the caller gave them, which the result gets.
    """

    arrays: chex.ArrayTree
    count: int
    batch_sharding: NamedSharding | None
    user_sharding: NamedSharding | None

    def place_params(self, params: chex.ArrayTree) -> chex.ArrayTree:
        """Parameters as arrays of JAX, on the mesh of the images."""
        arrays = jax.tree.map(_as_jax_array, params)
        return sharding.on_mesh(arrays, self.batch_sharding)

    @property
    def device_count(self) -> int:
        """How many devices share the images."""
        return sharding.size(self.batch_sharding)

    def unseen_numbers(self) -> range:
        """The numbers of images that judge a fit and are not used by it.

        One image in eight, and 128 at most; none if there would be fewer than four.
        Their numbers are odd and not 3 modulo 4, since weights are fitted to evenly
        spaced images, and judged by every fourth image, the last of each group.
        """
        spacing = max(_UNSEEN_SPACING, self.count // _MOST_UNSEEN)
        spacing -= spacing % _UNSEEN_SPACING
        numbers = range(_FIRST_UNSEEN, self.count, spacing)
        return numbers if len(numbers) >= _FEWEST_UNSEEN else range(0)

    def micro_batches(self, size: int) -> list[MicroBatch]:
        """The images, at most ``size`` of them at a time on each device."""
        count_on_device = max(1, self.count // self.device_count)
        size_on_device = _even_size(min(size, count_on_device), count_on_device)
        batch_size = size_on_device * self.device_count
        ranges = []
        for start in range(0, self.count, batch_size):
            ranges.append(range(start, min(start + batch_size, self.count)))
        if is_on_host(self.arrays):
            # A slice of NumPy's is no copy, and no program.
            host_arrays = on_host(self.arrays)
            return [MicroBatch(_host_slice(host_arrays, r), r) for r in ranges]
        batches = []
        for rows in ranges:
            images = _device_slice(self.arrays, rows.start, len(rows))
            batches.append(MicroBatch(sharding.put(images, self.batch_sharding), rows))
        return batches


def place_images(x: chex.ArrayTree) -> CalibrationImages:
    """Check and count the images, and put them on devices with Auto axes.

    Raises:
        ValueError: images of a wrong shape or type, or not finite.
    """
    check_examples(x)
    arrays = jax.tree.map(on_device, x)
    user_sharding = sharding.batch_sharding(arrays)
    batch_sharding = None
    # Inside of jit the mesh may be abstract. It holds no devices to put images on.
    if user_sharding is not None and isinstance(user_sharding.mesh, Mesh):
        (arrays,) = sharding.automatic(arrays)
        batch_sharding = sharding.batch_sharding(arrays)
    leaves = jax.tree.leaves(arrays)
    check_finite("the calibration images", leaves)
    cautions.warn_of_equal_images(leaves)
    return CalibrationImages(
        arrays=arrays,
        count=len(leaves[0]),
        batch_sharding=batch_sharding,
        user_sharding=user_sharding,
    )


def _as_jax_array(leaf: Any) -> Any:
    """An array of JAX, in place of one of NumPy or of a Python number.

    Other leaves are returned as they are. The capture refuses those that JAX does not
    know, and says where they are.
    """
    if not isinstance(leaf, np.ndarray | numbers.Number):
        return leaf
    dtype = np.asarray(leaf).dtype
    if not dtype.isnative or dtype.kind in NO_NUMBERS:
        return leaf
    # The SNN must not change where the caller changes NumPy's array later.
    return on_device(leaf, copy=True)


def _even_size(size: int, count: int) -> int:
    """The largest size <= ``size`` that divides the ``count`` images evenly.

    It is ``size`` itself if no such size is more than half of it.
    A smaller last micro-batch would need a second set of programs.

    >>> _even_size(64, 256), _even_size(64, 300), _even_size(64, 257)
    (64, 60, 64)
    """
    for candidate in range(size, size // 2, -1):
        if count % candidate == 0:
            return candidate
    return size


def _host_slice(arrays: chex.ArrayTree, rows: range) -> chex.ArrayTree:
    parts = jax.tree.map(lambda array: array[rows.start : rows.stop], arrays)
    return jax.device_put(parts)


@functools.partial(jax.jit, static_argnames="count")
def _device_slice(arrays: chex.ArrayTree, start: int, count: int) -> chex.ArrayTree:
    def part(array: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, start, count)

    return jax.tree.map(part, arrays)
