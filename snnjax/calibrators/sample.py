"""A sample of a site: some positions of all images, on which candidates are compared.

Thresholds and searches try dozens of candidates, so they use no more positions than
necessary: the same random positions of every image. The rows of an image are taken
where it is, and the sample is in NumPy.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._arrays import namespace, per_channel
from snnjax._types import Per
from snnjax.calibrators.unseen import Tail, tail_of

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
        lowest: of each channel the smallest activation that has a weight, of all
            positions, [C].
        highest: likewise the largest.
    """

    activation: np.ndarray
    weight: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    def magnitudes(self, offset: Any) -> np.ndarray:
        """What thresholds are fitted to, |a - offset|; 0 where the weight is 0: [n, C].

        Args:
            offset: of the neurons, one number or one for each channel; None: 0.
        """
        magnitudes = np.abs(_around(self.activation, offset))
        return np.where(self.weight > 0, magnitudes, 0)

    def maxima(self, offset: Any) -> np.ndarray:
        """The largest magnitude of each channel at all positions, [C]."""
        above = _around(self.highest, offset)
        below = -_around(self.lowest, offset)
        maxima = np.maximum(above, below)
        return np.maximum(maxima, 0)

    def tail(self, offset: Any) -> Tail:
        """What lies beyond the largest magnitudes that were seen, of each channel."""
        magnitudes = self.magnitudes(offset)
        weights = np.broadcast_to(self.weight, magnitudes.shape)
        return tail_of(magnitudes, weights, self.maxima(offset))

    def positive_maxima(self, offset: Any, per: Per) -> np.ndarray:
        """`snnjax.calibrators.formulas.maximum` of all magnitudes: [] or [C]."""
        maxima = self.maxima(offset)
        layer_maximum = maxima.max()
        if layer_maximum == 0:  # nothing is ever active: a threshold is still positive
            layer_maximum = np.float32(1)
        if per == "layer":
            return np.asarray(layer_maximum)
        return np.where(maxima > 0, maxima, layer_maximum)


def _around(values: np.ndarray, offset: Any) -> np.ndarray:
    """Values [..., C] minus the offset of their channels."""
    if offset is None:
        return values
    return values - np.ravel(offset).astype(values.dtype)


def chosen_positions(
    count: int, shape: tuple[int, ...], channel: int, steps: int
) -> np.ndarray | None:
    """Positions that give each channel `SAMPLES` of so many images; None: all of them.

    Their currents over T steps take at most `_SAMPLE_BYTES`.

    >>> chosen_positions(2**14, (2, 2, 3), -1, steps=4)
    array([0, 2], dtype=int32)
    """
    positions = math.prod(shape) // shape[channel]
    # A number of the activations, of their weights and of each step's current.
    bytes_of_position = 4 * (steps + 3) * count * shape[channel]
    affordable = _SAMPLE_BYTES // bytes_of_position
    needed = -(-SAMPLES // count)
    chosen = max(1, min(needed, affordable))
    if chosen >= positions:
        return None
    order = np.random.default_rng(0).permutation(positions)
    return np.sort(order[:chosen]).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class SampleRows:
    """The fields of a `Sample` for a micro-batch; a function for `View.over_images`.

    Attributes:
        ndim: number of axes of the site.
        channel: its axis of the channels, from the end.
    """

    ndim: int
    channel: int

    def __call__(
        self, current: None, activation: Any, effects: Any, positions: Any
    ) -> tuple[Any, Any, Any, Any]:
        del current
        xp = namespace(activation)
        activation = activation.astype(np.float32, copy=False)
        if effects is None:
            # All errors count alike: 1 at each position, with a single channel.
            axis = activation.ndim + self.channel
            first_channel = xp.take(activation, np.arange(1), axis)
            effects = xp.ones_like(first_channel)
        counted = effects > 0
        lowest = xp.where(counted, activation, xp.inf)
        highest = xp.where(counted, activation, -xp.inf)
        return (
            _rows(activation, positions, self.ndim, self.channel),
            _rows(effects, positions, self.ndim, self.channel),
            per_channel(xp.min, lowest, self.channel).ravel(),
            per_channel(xp.max, highest, self.channel).ravel(),
        )


@dataclasses.dataclass(frozen=True)
class CurrentRows:
    """The currents at the positions of a sample, [T, n, C], or [n, C] if constant.

    A function for `View.over_images`, with the attributes of `SampleRows`.
    """

    ndim: int
    channel: int

    def __call__(
        self, current: Any, activation: Any, effects: Any, positions: Any
    ) -> Any:
        del activation, effects
        return _rows(current, positions, self.ndim, self.channel)


def _rows(values: Any, positions: Any, ndim: int, channel: int) -> Any:
    """[..., B, *shape of a site] as [..., B p, C], see `chosen_positions`."""
    rows = at_positions(values, positions, ndim, channel)
    *leading, _, _, channels = rows.shape
    return rows.reshape(*leading, -1, channels)


def at_positions(values: Any, positions: Any, ndim: int, channel: int) -> Any:
    """[..., *shape of a site] as [..., p, C], at these positions; None: at all."""
    xp = namespace(values)
    values = xp.moveaxis(values, channel, -1)
    channels = values.shape[-1]
    leading = values.shape[: values.ndim - ndim]
    rows = values.reshape(*leading, -1, channels)
    if positions is None:
        return rows
    return xp.take(rows, positions, rows.ndim - 2)


def merged(
    parts: Sequence[tuple[Any, Any, Any, Any]], batch_sharding: NamedSharding | None
) -> Sample:
    """The sample, from the `SampleRows` of all micro-batches."""
    activations, weights, lowest, highest = zip(*parts, strict=True)
    lowest_of_parts = [_gathered(part, batch_sharding) for part in lowest]
    highest_of_parts = [_gathered(part, batch_sharding) for part in highest]
    return Sample(
        activation=concatenated(activations, batch_sharding),
        weight=concatenated(weights, batch_sharding),
        lowest=np.min(lowest_of_parts, axis=0),
        highest=np.max(highest_of_parts, axis=0),
    )


def concatenated(
    parts: Sequence[Any], batch_sharding: NamedSharding | None
) -> np.ndarray:
    """Rows [..., n, C] of all micro-batches, in NumPy."""
    rows = [_gathered(part, batch_sharding) for part in parts]
    return np.concatenate(rows, axis=-2)


def _gathered(rows: Any, batch_sharding: NamedSharding | None) -> np.ndarray:
    """An array in NumPy whose parts may be on several devices, of several processes."""
    everywhere = sharding.replicated(batch_sharding)
    if everywhere is not None:
        rows = jax.device_put(rows, everywhere)
    return np.asarray(rows)
