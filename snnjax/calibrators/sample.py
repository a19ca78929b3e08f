"""A sample of a site: some positions of all images, on which candidates are compared.

Thresholds and searches try dozens of candidates, so they use no more positions than
necessary: the same random positions of every image. Every device has a copy.
"""

import functools
import math
from collections.abc import Sequence
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
    """Some positions of a site in all images: n of them, the channels last."""

    activation: jax.Array  # of the ANN, [n, C]
    weight: jax.Array  # how much an error there counts, [n, 1]
    lowest: jax.Array  # activation that counts at all, of all positions, [C]
    highest: jax.Array

    def magnitudes(self, offset: jax.Array | None) -> jax.Array:
        """What thresholds are fitted to, |a - offset|; 0 where the weight is 0."""
        size = jnp.abs(subtract_offset(self.activation, _flat(offset)))
        return jnp.where(self.weight > 0, size, 0)

    def maxima(self, offset: jax.Array | None) -> jax.Array:
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


class SampleRows(NamedTuple):
    """The fields of a `Sample` of some images, for `View.over_images`."""

    ndim: int  # of the site
    channel: int

    def __call__(self, current, activation, effects, positions) -> Any:
        del current
        a = activation.astype(jnp.float32)
        if effects is None:
            axis = a.ndim + self.channel
            effects = jnp.ones_like(jax.lax.slice_in_dim(a, 0, 1, axis=axis))
        ends = [
            per_channel(reduce, jnp.where(effects > 0, a, otherwise), self.channel)
            for reduce, otherwise in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))
        ]
        rows = [_rows(values, positions, *self) for values in (a, effects)]
        return *rows, *(end.ravel() for end in ends)


class CurrentRows(SampleRows):
    """The currents at the positions of a sample: [n, C] or [T, n, C]."""

    def __call__(self, current, activation, effects, positions) -> Any:
        del activation, effects
        return _rows(current, positions, *self)


@functools.partial(jax.jit, static_argnames="everywhere")
def merged(parts: Sequence[Any], everywhere: NamedSharding | None) -> Sample:
    """The sample, from the `SampleRows` of all micro-batches."""
    activations, weights, lowest, highest = zip(*parts, strict=True)
    ends = jnp.stack(lowest).min(0), jnp.stack(highest).max(0)
    activation = concatenated(activations, everywhere)
    return Sample(activation, concatenated(weights, everywhere), *ends)


@functools.partial(jax.jit, static_argnames="everywhere")
def concatenated(
    parts: Sequence[jax.Array], everywhere: NamedSharding | None
) -> jax.Array:
    """Rows [..., n, C] of all micro-batches, of which every device has a copy."""
    rows = jnp.concatenate(parts, -2)
    if everywhere is None:
        return rows
    return jax.lax.with_sharding_constraint(rows, everywhere)


def _rows(
    values: jax.Array, positions: np.ndarray | None, ndim: int, channel: int
) -> jax.Array:
    """[..., B, *shape of a site] as [..., B p, C], see `chosen_positions`."""
    rows = at_positions(values, positions, ndim, channel)
    return rows.reshape(*rows.shape[:-3], -1, rows.shape[-1])


def at_positions(
    values: jax.Array, positions: Any, ndim: int, channel: int
) -> jax.Array:
    """[..., *shape of a site] as [..., p, C], at these positions; None: at all."""
    values = jnp.moveaxis(values, channel, -1)
    lead = values.shape[: values.ndim - ndim]
    rows = values.reshape(*lead, -1, values.shape[-1])
    return rows if positions is None else jnp.take(rows, positions, rows.ndim - 2)


def _flat(offset: jax.Array | None) -> jax.Array | None:
    return offset if offset is None else jnp.ravel(offset)
