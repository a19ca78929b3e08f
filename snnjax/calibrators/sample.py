"""A sample of a site: some positions of all images, on which candidates are compared.

Thresholds and searches try dozens of candidates, so they use no more positions than
necessary: the same random positions of every image. Every device has a copy.
"""

import functools
import math
import warnings
from collections.abc import Iterable, Sequence
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
# Samples of a parameter below which there is a warning. Of the README's network, best()
# missed 2.6 % of the outputs for new images when it was fitted to 16 images, 0.8 % with
# 64 and 0.6 % with 256; with one threshold per layer 1.0 % and 0.9 % with 16 and 64.
FEW = 64


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


def sample_of(
    parts: Iterable[tuple[jax.Array, jax.Array | None]], *options: Any
) -> Sample:
    """The sample of activations and weights [B, ...] of every micro-batch.

    Args:
        parts: of each micro-batch; a weight of None is 1.
        options: the last four arguments of `_rows`.
    """
    return _merged([_sample_of_part(*part, *options) for part in parts])


@functools.partial(jax.jit, static_argnames=("ndim", "channel", "everywhere"))
def _sample_of_part(a, weight, positions, ndim, channel, everywhere) -> Sample:
    options = positions, ndim, channel, everywhere
    a = a.astype(jnp.float32)
    if weight is None:
        weight = jnp.ones_like(jax.lax.slice_in_dim(a, 0, 1, axis=a.ndim + channel))
    ends = [
        per_channel(reduce, jnp.where(weight > 0, a, otherwise), channel).ravel()
        for reduce, otherwise in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))
    ]
    return Sample(_rows(a, *options), _rows(weight, *options), *ends)


@jax.jit
def _merged(samples: Sequence[Sample]) -> Sample:
    activations, weights, lowest, highest = zip(*samples, strict=True)
    rows = jnp.concatenate(activations), jnp.concatenate(weights)
    return Sample(*rows, jnp.stack(lowest).min(0), jnp.stack(highest).max(0))


def rows_of(parts: Iterable[jax.Array], *options: Any) -> jax.Array:
    """Currents [T, B, ...] or [B, ...] of every micro-batch as one [..., n, C].

    ``options`` are the last four arguments of `_rows`.
    """
    return jnp.concatenate([_rows(part, *options) for part in parts], -2)


@functools.partial(jax.jit, static_argnames=("ndim", "channel", "everywhere"))
def _rows(
    values: jax.Array,
    positions: np.ndarray | None,
    ndim: int,
    channel: int,
    everywhere: NamedSharding | None,
) -> jax.Array:
    """[..., B, *shape of a site] as [..., B p, C].

    Args:
        positions: see `chosen_positions`.
        ndim, channel: number of axes of the site, and its channel axis.
        everywhere: the sharding of what every device has; None: a single device.
    """
    rows = at_positions(values, positions, ndim, channel)
    rows = rows.reshape(*rows.shape[:-3], -1, rows.shape[-1])
    if everywhere is None:
        return rows
    return jax.lax.with_sharding_constraint(rows, everywhere)


def at_positions(
    values: jax.Array, positions: Any, ndim: int, channel: int
) -> jax.Array:
    """[..., *shape of a site] as [..., p, C], at these positions; None: at all."""
    values = jnp.moveaxis(values, channel, -1)
    lead = values.shape[: values.ndim - ndim]
    rows = values.reshape(*lead, -1, values.shape[-1])
    return rows if positions is None else jnp.take(rows, positions, rows.ndim - 2)


def warn_of_few(what: str, samples: int) -> None:
    """Warn of parameters that are fitted to fewer samples each than `FEW`."""
    if samples < FEW:
        warnings.warn(
            f"{what} are fitted to {samples} samples each, and may not suit new "
            f"images; recommended: {FEW} calibration images or more, or one threshold "
            "per layer, e.g. snnjax.best('layer')",
            stacklevel=2,
        )


def _flat(offset: jax.Array | None) -> jax.Array | None:
    return offset if offset is None else jnp.ravel(offset)
