"""A sample of a site: some positions of all images, on which candidates are compared.

Thresholds and searches try dozens of candidates, so they use no more positions than
necessary: the same random positions of every image. Every device has a copy.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from snnjax._arrays import by_numpy_or_xla, namespace, per_channel, subtract_offset

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
        size = abs(subtract_offset(self.activation, _flat(offset)))
        return namespace(size).where(self.weight > 0, size, 0)

    def maxima(self, offset: jax.Array | None) -> jax.Array:
        """The largest magnitude of each channel at all positions, [C]."""
        lowest, highest = (subtract_offset(end, _flat(offset)) for end in self[2:])
        xp = namespace(lowest)
        return xp.maximum(xp.maximum(highest, -lowest), 0)


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
        a, xp = activation.astype(np.float32, copy=False), namespace(activation)
        if effects is None:
            effects = xp.ones_like(xp.take(a, np.arange(1), a.ndim + self.channel))
        ends = [
            per_channel(reduce, xp.where(effects > 0, a, otherwise), self.channel)
            for reduce, otherwise in ((xp.min, xp.inf), (xp.max, -xp.inf))
        ]
        rows = [_rows(values, positions, *self) for values in (a, effects)]
        return *rows, *(end.ravel() for end in ends)


class CurrentRows(SampleRows):
    """The currents at the positions of a sample: [n, C] or [T, n, C]."""

    def __call__(self, current, activation, effects, positions) -> Any:
        del activation, effects
        return _rows(current, positions, *self)


@functools.partial(by_numpy_or_xla, static=1)
def merged(everywhere: NamedSharding | None, parts: Sequence[Any]) -> Sample:
    """The sample, from the `SampleRows` of all micro-batches."""
    activations, weights, lowest, highest = zip(*parts, strict=True)
    xp = namespace(lowest[0])
    ends = xp.stack(lowest).min(0), xp.stack(highest).max(0)
    activation = concatenated(everywhere, activations)
    return Sample(activation, concatenated(everywhere, weights), *ends)


@functools.partial(by_numpy_or_xla, static=1)
def concatenated(
    everywhere: NamedSharding | None, parts: Sequence[jax.Array]
) -> jax.Array:
    """Rows [..., n, C] of all micro-batches, of which every device has a copy."""
    rows = namespace(parts[0]).concatenate(parts, -2)
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
    xp = namespace(values)
    values = xp.moveaxis(values, channel, -1)
    lead = values.shape[: values.ndim - ndim]
    rows = values.reshape(*lead, -1, values.shape[-1])
    return rows if positions is None else xp.take(rows, positions, rows.ndim - 2)


def _flat(offset: jax.Array | None) -> jax.Array | None:
    return offset if offset is None else namespace(offset).ravel(offset)
