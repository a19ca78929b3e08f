"""Spikes in memory: their levels in a few bits each, beside the threshold.

    spikes = V_th (low + index) + offset     indices are packed along the first axis

An index takes 1, 2, 4 or 8 bits: one for the levels (0, 1), two for (-1, 1). Conversion
keeps spikes in this form between two sites.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import add_offset, lead, like, namespace, per_step, wide
from snnjax.codes import Code, rate

BINARY = (0, 1)
RATE = rate()


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("bits", "threshold", "offset"),
    meta_fields=("levels", "dtype", "code"),
)
@dataclasses.dataclass(frozen=True)
class SpikeTrain:
    """Encoded spikes.

    Attributes:
        bits: uint8 [ceil(T / `per_byte`), ...]; the first step has the highest bits.
        threshold: value of a spike of level 1, scalar or [C].
        levels: (low, high).
        offset: value of a spike of level 0, like the threshold; None: 0.
        dtype: of the spikes; None: that of the threshold.
        code: what a spike is worth at each step.
    """

    bits: jax.Array
    threshold: jax.Array
    levels: tuple[int, int] = BINARY
    offset: jax.Array | None = None
    dtype: Any = None
    code: Code = RATE


def per_byte(levels: tuple[int, int]) -> int:
    """Steps that fit in a byte.

    >>> per_byte((0, 1)), per_byte((-1, 1)), per_byte((-3, 3)), per_byte((0, 255))
    (8, 4, 2, 1)
    """
    low, high = levels
    count = high - low + 1
    for bits in (1, 2, 4):
        if count <= 2**bits:
            return 8 // bits
    return 1


def decode(train: SpikeTrain, steps: int) -> jax.Array:
    """What equations read of a train, [steps, ...]: its spikes, or decoded values.

    >>> print(decode(SpikeTrain(jnp.array([96], jnp.uint8), jnp.array(2.0)), 3))
    [0. 2. 2.]
    """
    indices = unpack(train.bits, steps, train.levels)
    threshold = lead(train.threshold, indices.ndim)
    levels = indices.astype(threshold.dtype) + train.levels[0]
    # A spike of step t is worth T w_t; what equations read is decoded up to each step.
    sizes = jnp.asarray(train.code.sizes(steps), threshold.dtype)
    spikes = per_step(sizes, levels.ndim) * (levels * threshold)
    stream = add_offset(train.code.stream(spikes), train.offset)
    return stream if train.dtype is None else stream.astype(train.dtype)


def result_of(train: SpikeTrain, steps: int) -> jax.Array:
    """What a train says after all steps, ``train.code.result(decode(train, steps))``.

    >>> print(result_of(SpikeTrain(jnp.array([96], jnp.uint8), jnp.array(2.0)), 3))
    1.3333334
    """
    xp, dtype = namespace(train.bits), train.threshold.dtype
    sizes = train.code.sizes(steps)

    def size_sum(t: int, level: np.ndarray) -> np.ndarray:
        return sizes[t] * level

    total = _sum_over_steps(train, steps, size_sum, dtype)
    # In place where NumPy computes: fresh memory costs more than these operations.
    total *= lead(train.threshold, total.ndim)
    total /= dtype.type(steps)
    if train.offset is not None:
        total += lead(xp.asarray(train.offset, dtype), total.ndim)
    return total if train.dtype is None else total.astype(train.dtype, copy=False)


def numbers_of(train: SpikeTrain, steps: int) -> jax.Array:
    """How many spikes each neuron has sent.

    >>> print(numbers_of(SpikeTrain(jnp.array([96], jnp.uint8), jnp.array(2.0)), 3))
    2
    """
    dtype = np.uint8 if steps < 256 else np.int32
    return _sum_over_steps(train, steps, lambda t, level: level != 0, dtype)


def _sum_over_steps(
    train: SpikeTrain,
    steps: int,
    term: Callable[[int, np.ndarray], np.ndarray],
    dtype: Any,
) -> jax.Array:
    """The sum over the steps t of ``term(t, level)``, for the levels of all spikes.

    A byte holds a few steps. What they add is looked up in a table of its 256 values.

    Args:
        train: ``bits`` are [ceil(T / steps per byte), ...].
        steps: T.
        term: of a step and an array of levels, gives what each of them adds.
        dtype: of the sum, [...].
    """
    xp = namespace(train.bits)
    steps_per_byte = per_byte(train.levels)
    bits_per_index = 8 // steps_per_byte
    byte_values = np.arange(256)
    total: Any = None
    for number, byte in enumerate(train.bits):
        first_step = number * steps_per_byte
        end_step = min(first_step + steps_per_byte, steps)
        table = np.zeros(256)
        for t in range(first_step, end_step):
            # The first step of a byte has its highest bits.
            later_steps = steps_per_byte - 1 - (t - first_step)
            shifted = byte_values >> (bits_per_index * later_steps)
            index = shifted & (2**bits_per_index - 1)
            table += term(t, index + train.levels[0])
        byte_sum = xp.take(table.astype(dtype), byte)  # [...]
        total = byte_sum if total is None else total + byte_sum
    return total


def level_indices(
    spikes: jax.Array,
    threshold: jax.Array | float,
    levels=BINARY,
) -> jax.Array:
    """The number of each spike's level, counted from the lowest: uint8."""
    if levels == BINARY:
        return (spikes > 0).astype(jnp.uint8)
    low, high = levels
    spikes = wide(spikes)
    threshold = like(wide(jnp.asarray(threshold)), spikes)
    level = jnp.round(spikes / threshold)
    return (jnp.clip(level, low, high) - low).astype(jnp.uint8)


def in_groups(stream: Any, levels: tuple[int, int]) -> jax.Array:
    """A stream [T, ...] as [bytes, steps of a byte, ...], filled up with zeros."""
    stream = jnp.asarray(stream)
    steps_per_byte = per_byte(levels)
    missing_steps = -len(stream) % steps_per_byte
    zeros = jnp.zeros((missing_steps, *stream.shape[1:]), stream.dtype)
    whole_bytes = jnp.concatenate([stream, zeros])
    return whole_bytes.reshape(-1, steps_per_byte, *stream.shape[1:])


def append(
    byte: jax.Array,
    indices: jax.Array,
    place: int,
    levels: tuple[int, int] = BINARY,
) -> jax.Array:
    """A byte of some steps, with the index of step ``place`` set."""
    steps_per_byte = per_byte(levels)
    width = 8 // steps_per_byte  # bits of an index
    shift = width * (steps_per_byte - 1 - place)
    return byte | indices << jnp.uint8(shift)


def unpack(bits: jax.Array, count: int, levels=BINARY) -> jax.Array:
    """The indices [count, ...] from the bytes of `SpikeTrain.bits`."""
    steps_per_byte = per_byte(levels)
    width = 8 // steps_per_byte  # bits of an index
    places = jnp.arange(steps_per_byte - 1, -1, -1, dtype=jnp.uint8)
    shifts = per_step(width * places, bits.ndim)[None]
    mask = jnp.uint8(2**width - 1)
    indices = (bits[:, None] >> shifts) & mask  # [bytes, steps of a byte, ...]
    indices = indices.reshape(-1, *bits.shape[1:])
    return indices[:count]
