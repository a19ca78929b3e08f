"""A sample of a site: some positions of all images, on which candidates are compared.

Thresholds and searches try dozens of candidates, so on no more positions than
necessary: the same ones, drawn at random, in every image. It is filled micro-batch by
micro-batch, and every device has a copy.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from snnjax._arrays import per_channel, subtract_offset

# Positions of each channel that thresholds and searches compare candidates on. On
# ResNet-20 half of them cost a tenth of the KL divergence at T = 4, and all positions
# gained nothing on average.
SAMPLES = 2**15
# What a sample and its currents may take, which a large T would exceed.
_SAMPLE_BYTES = 2**29


class Sample(NamedTuple):
    """Some positions of a site in all images: n of them, the channels last.

    Attributes:
        activation: of the ANN, [n, C].
        weight: how much an error there counts, [n, 1].
        lowest, highest: activations that count at all, of all positions, [C].
    """

    activation: jax.Array
    weight: jax.Array
    lowest: jax.Array
    highest: jax.Array

    def magnitudes(self, offset: jax.Array | None) -> jax.Array:
        """What thresholds are fitted to, |a - offset|; 0 where the weight is 0."""
        size = jnp.abs(subtract_offset(self.activation, _flat(offset)))
        return jnp.where(self.weight > 0, size, 0)

    def peaks(self, offset: jax.Array | None) -> jax.Array:
        """The largest magnitude of each channel at all positions, [C]."""
        lowest, highest = (subtract_offset(end, _flat(offset)) for end in self[2:])
        return jnp.maximum(jnp.maximum(highest, -lowest), 0)


def chosen_positions(
    count: int, shape: tuple[int, ...], channel: int, steps: int
) -> np.ndarray | None:
    """Positions that give each channel `SAMPLES` of so many images; None: all of them.

    Their currents over T steps take at most `_SAMPLE_BYTES`.

    >>> chosen_positions(2**14, (2, 2, 3), -1, steps=4)
    array([0, 2], dtype=int32)
    """
    positions = math.prod(shape) // shape[channel]
    most = _SAMPLE_BYTES // (4 * (steps + 3) * count * shape[channel])
    few = max(1, min(-(-SAMPLES // count), most))
    if few >= positions:
        return None
    order = np.random.default_rng(0).permutation(positions)
    return np.sort(order[:few]).astype(np.int32)


def sample_of(
    parts: Iterable[tuple[jax.Array, jax.Array | None]],
    count: int,
    shape: tuple[int, ...],
    positions: np.ndarray | None,
    channel: int,
    everywhere: NamedSharding | None,
) -> Sample:
    """The sample of activations and weights [B, ...] of every micro-batch.

    Args:
        parts: of each micro-batch; a weight of None is 1.
        count: images in all.
        shape, channel: of the site.
        positions: see `chosen_positions`.
        everywhere: the sharding of what every device has; None: a single device.
    """
    length, channels = _rows(count, shape, positions, channel)
    lowest: Any = np.full(channels, np.inf, np.float32)
    rows: Any = np.zeros((length, channels), np.float32)
    weights: Any = np.zeros((length, 1), np.float32)
    sample = Sample(rows, weights, lowest, -lowest)
    start = 0
    for a, weight in parts:
        options = positions, len(shape), channel, everywhere
        sample = _with_part(sample, a, weight, start, *options)
        start += length // count * len(a)
    return sample


def rows_of(
    parts: Iterable[jax.Array],
    count: int,
    shape: tuple[int, ...],
    positions: np.ndarray | None,
    channel: int,
    everywhere: NamedSharding | None,
) -> jax.Array:
    """Currents [T, B, ...] or [B, ...] of every micro-batch as one [..., n, C]."""
    total: Any = None
    ndim, start = len(shape), 0
    length, channels = _rows(count, shape, positions, channel)
    for part in parts:
        if total is None:
            time = part.shape[: -ndim - 1]
            total = np.zeros((*time, length, channels), part.dtype)
        options = positions, ndim, channel, everywhere
        total = _with_currents(total, part, start, *options)
        start += length // count * part.shape[-ndim - 1]
    return total


def _rows(count, shape, positions, channel) -> tuple[int, int]:
    """n and C."""
    few = math.prod(shape) // shape[channel] if positions is None else len(positions)
    return count * few, shape[channel]


def at_positions(
    values: jax.Array, positions: jax.Array | None, ndim: int, channel: int
) -> jax.Array:
    """[..., *shape of a site] as [..., p, C], at these positions; None: at all."""
    values = jnp.moveaxis(values, channel, -1)
    lead = values.shape[: values.ndim - ndim]
    rows = values.reshape(*lead, -1, values.shape[-1])
    return rows if positions is None else jnp.take(rows, positions, rows.ndim - 2)


def _with_rows(total, values, start, positions, ndim, channel, everywhere):
    """The total [..., n, C], with the rows of one micro-batch from ``start`` on."""
    rows = at_positions(values, positions, ndim, channel)
    rows = rows.reshape(*rows.shape[:-3], -1, rows.shape[-1])
    total = jax.lax.dynamic_update_slice_in_dim(total, rows, start, rows.ndim - 2)
    if everywhere is None:
        return total
    return jax.lax.with_sharding_constraint(total, everywhere)


_with_currents = jax.jit(_with_rows, static_argnums=(4, 5, 6), donate_argnums=0)


@functools.partial(jax.jit, static_argnums=(5, 6, 7), donate_argnums=0)
def _with_part(sample, a, weight, start, positions, ndim, channel, everywhere):
    """The sample with the images of one micro-batch."""
    a = a.astype(jnp.float32)
    if weight is None:
        weight = jnp.ones_like(jax.lax.slice_in_dim(a, 0, 1, axis=a.ndim + channel))
    thinning = start, positions, ndim, channel, everywhere

    def end(reduce, otherwise):
        return per_channel(reduce, jnp.where(weight > 0, a, otherwise), channel).ravel()

    return Sample(
        _with_rows(sample.activation, a, *thinning),
        _with_rows(sample.weight, weight, *thinning),
        jnp.minimum(sample.lowest, end(jnp.min, jnp.inf)),
        jnp.maximum(sample.highest, end(jnp.max, -jnp.inf)),
    )


def _flat(offset: jax.Array | None) -> jax.Array | None:
    return offset if offset is None else jnp.ravel(offset)
