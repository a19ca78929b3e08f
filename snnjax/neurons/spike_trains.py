"""Spikes in memory: the index of each spike's level, packed in bits.

    level = low + index          spike of step t = T w_t V_th level

An index takes 1, 2, 4 or 8 bits: one for the levels (0, 1), two for (-1, 1). A byte
holds the indices of as many steps of a neuron as fit. Conversion keeps spikes in this
form between two sites.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import add_offset, lead, like, look_up, per_step, wide
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
    """The spikes of a site, packed.

    Attributes:
        bits: uint8 [ceil(T / `per_byte`), ...]; the first step has the highest bits.
        threshold: V_th, scalar or per channel [C].
        levels: (low, high).
        offset: what is added to decoded values, scalar or [C]; None: nothing.
        dtype: of the spikes, when they are decoded.
        code: what a spike is worth at each step.
    """

    bits: jax.Array
    threshold: jax.Array
    levels: tuple[int, int] = BINARY
    offset: jax.Array | None = None
    dtype: Any = np.dtype("float32")
    code: Code = RATE


def per_byte(levels: tuple[int, int]) -> int:
    """Steps whose indices fit in a byte.

    >>> per_byte((0, 1)), per_byte((-1, 1)), per_byte((-3, 3)), per_byte((0, 255))
    (8, 4, 2, 1)
    """
    low, high = levels
    count = high - low + 1
    for bits in (1, 2, 4):
        if count <= 2**bits:
            return 8 // bits
    return 1


def _shifts(levels: tuple[int, int]) -> np.ndarray:
    """How many bits of a byte are below the index of each of its steps, [`per_byte`].

    The first step has the highest bits.
    """
    steps_per_byte = per_byte(levels)
    bits_per_index = 8 // steps_per_byte
    return bits_per_index * np.arange(steps_per_byte)[::-1]


def decode(train: SpikeTrain, steps: int) -> jax.Array:
    """The stream that equations read, [T, ...]: spikes, or decoded values.

    It holds spikes under rate coding, see `snnjax.codes.Code.stream`.

    >>> print(decode(SpikeTrain(jnp.array([96], jnp.uint8), jnp.array(2.0)), 3))
    [0. 2. 2.]
    """
    indices = unpack(train.bits, steps, train.levels)
    threshold = lead(train.threshold, indices.ndim)
    levels = indices.astype(threshold.dtype) + train.levels[0]
    sizes = jnp.asarray(train.code.sizes(steps), threshold.dtype)  # T w_t, [T]
    spikes = per_step(sizes, levels.ndim) * (levels * threshold)
    stream = add_offset(train.code.stream(spikes), train.offset)
    return stream.astype(train.dtype)


def result_of(train: SpikeTrain, steps: int) -> jax.Array:
    """The value of a train after step T, [...]: 1/T of the sum of its spikes.

    This is ``train.code.result(decode(train, steps))`` without storing the stream. The
    arrays of the train are all of NumPy or all of JAX, and so is the result.

    >>> print(result_of(SpikeTrain(jnp.array([96], jnp.uint8), jnp.array(2.0)), 3))
    1.3333334
    """
    dtype = train.threshold.dtype
    sizes = train.code.sizes(steps)  # T w_t, [T]

    def size(t: int, level: np.ndarray) -> np.ndarray:
        return sizes[t] * level

    total = _sum_over_steps(train, steps, size, dtype)  # in units of V_th
    # In place where NumPy computes: fresh memory costs more than these operations.
    total *= lead(train.threshold, total.ndim)
    total /= dtype.type(steps)
    if train.offset is not None:
        total += lead(train.offset, total.ndim)
    return total.astype(train.dtype, copy=False)


def numbers_of(train: SpikeTrain, steps: int) -> jax.Array:
    """How many spikes each neuron has sent, [...], see `result_of`.

    >>> print(numbers_of(SpikeTrain(jnp.array([96], jnp.uint8), jnp.array(2.0)), 3))
    2
    """

    def is_spike(t: int, level: np.ndarray) -> np.ndarray:
        return level != 0

    dtype = np.uint8 if steps < 256 else np.int32
    return _sum_over_steps(train, steps, is_spike, dtype)


def _sum_over_steps(
    train: SpikeTrain,
    steps: int,
    term: Callable[[int, np.ndarray], np.ndarray],
    dtype: Any,
) -> Any:
    """The sum over the steps t of ``term(t, level)``, [...], for the levels of a train.

    A byte holds a few steps. What they add is looked up in a table of its 256 values.

    Args:
        train: the levels, packed.
        steps: T.
        term: of a step and an array of levels, gives what each of them adds.
        dtype: of the sum.
    """
    shifts = _shifts(train.levels)
    steps_per_byte = len(shifts)
    bits_per_index = 8 // steps_per_byte
    largest_index = 2**bits_per_index - 1  # all of these bits are 1
    byte_values = np.arange(256)
    total: Any = None
    for number, byte in enumerate(train.bits):  # uint8 [...]
        first_step = number * steps_per_byte
        table = np.zeros(256)
        # The last byte may have places beyond step T.
        for t in range(first_step, min(first_step + steps_per_byte, steps)):
            indices = (byte_values >> shifts[t - first_step]) & largest_index
            table += term(t, indices + train.levels[0])
        byte_sum = look_up(table.astype(dtype), byte)
        total = byte_sum if total is None else total + byte_sum
    return total


def level_indices(
    spikes: jax.Array,
    threshold: jax.Array | float,
    levels: tuple[int, int],
) -> jax.Array:
    """The index of each spike's level, counted from the lowest: uint8 [...].

    Args:
        spikes: [...], without an offset.
        threshold: value of a spike of level 1, scalar or [C].
        levels: (low, high).
    """
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
    levels: tuple[int, int],
) -> jax.Array:
    """The bytes of all neurons, uint8 [...], with the indices of one more step.

    Args:
        byte: of the steps so far, uint8 [...].
        indices: of the step, uint8 [...].
        place: number of the step in its byte, counted from 0.
        levels: (low, high).
    """
    shift = jnp.uint8(_shifts(levels)[place])
    return byte | (indices << shift)


def unpack(bits: jax.Array, count: int, levels: tuple[int, int]) -> jax.Array:
    """The indices of the first ``count`` steps, uint8 [count, ...].

    Args:
        bits: as of `SpikeTrain`, uint8 [bytes, ...].
        count: number of steps, at most those of all bytes.
        levels: (low, high) of the spikes, which decide how many bits an index takes.
    """
    steps_per_byte = per_byte(levels)
    bits_per_index = 8 // steps_per_byte
    # How many bits lie below the index of each step: the first step has the highest
    # bits. An arange of JAX, because XLA takes twice as long to compile a program that
    # reads the same numbers as a constant.
    indices_below = jnp.arange(steps_per_byte - 1, -1, -1, dtype=jnp.uint8)
    shifts = bits_per_index * indices_below  # [steps of a byte]
    largest_index = jnp.uint8(2**bits_per_index - 1)  # all of these bits are 1
    shifts_by_byte = per_step(shifts, bits.ndim)[None]  # [1, steps of a byte, 1, ...]
    # [bytes, steps of a byte, ...]
    indices = (bits[:, None] >> shifts_by_byte) & largest_index
    indices_by_step = indices.reshape(-1, *bits.shape[1:])
    return indices_by_step[:count]
