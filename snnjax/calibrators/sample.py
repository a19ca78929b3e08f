"""A sample of a site: some positions of all images, on which candidates are compared.

A position is one pixel or token of a site, with a number for each of C channels. B
images and p positions of each give B p rows [B p, C].

Thresholds and searches try dozens of candidates, so they use no more positions than
necessary: the same random positions of every image. Rows are taken on the device that
holds the image, and the sample of all images is in NumPy.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._arrays import namespace, per_channel
from snnjax._types import Per
from snnjax.calibrators.unseen import clipped_error, tail_of

# Activations of each channel that thresholds and searches compare candidates on. With
# half of them, the KL divergence of ResNet-20 at T = 4 was a tenth larger; with all
# positions it was no smaller on average.
SAMPLES = 2**15
# Bytes that a sample and its currents of T steps may take.
_SAMPLE_BYTES = 2**29


class Sample(NamedTuple):
    """Some positions of a site in all images: n rows, the channels last.

    Attributes:
        activation: of the ANN, [n, C].
        weight: how much a squared error of each row counts, [n, 1], >= 0.
        lowest: smallest activation of each channel at all positions, [C]. Those with
            weight 0 are left out.
        highest: largest activation of each channel, likewise, [C].
        bound: what the function of the site cannot exceed: the maximum of a clipped or
            quantized ReLU, [C]; infinity of others. Activations are bounded by it, and
            the inputs of the neurons are not, so a neuron that is able to send more
            does so. An encoder's input is the activation itself, whatever bounds it.
        channel_weight: how much a squared error of each channel counts beside the other
            channels, [C]; 1: all alike. Only fits that compare channels read it.
    """

    activation: np.ndarray
    weight: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    bound: Any = np.inf
    channel_weight: Any = 1.0

    def magnitudes(self, offset: Any) -> np.ndarray:
        """|a - offset|, which thresholds are fitted to, [n, C]; 0 where weights are 0.

        Args:
            offset: of the neurons, one number or one for each channel; None: 0.
        """
        magnitudes = np.abs(_without_offset(self.activation, offset))
        return np.where(self.weight > 0, magnitudes, 0)

    def maxima(self, offset: Any) -> np.ndarray:
        """The largest magnitude of each channel at all positions, [C]."""
        above = _without_offset(self.highest, offset)
        below = -_without_offset(self.lowest, offset)
        maxima = np.maximum(above, below)
        # In a channel without any weight, both are minus infinity.
        return np.maximum(maxima, 0)

    def clipped_error(self, offset: Any, caps: np.ndarray) -> np.ndarray:
        """`unseen.clipped_error` above the offset, plus that below it, [K, C].

        Args:
            offset: of the neurons, one number or one for each channel; None: 0.
            caps: largest magnitude of an output, of each of K candidates, [K, C].
        """
        activation = _without_offset(self.activation, offset)
        weights = np.broadcast_to(self.weight, activation.shape)
        error = np.zeros(caps.shape)
        highest = _without_offset(self.highest, offset)
        lowest = _without_offset(self.lowest, offset)
        sides = ((activation, highest, lowest), (-activation, -lowest, -highest))
        for values, largest, smallest in sides:
            # A ReLU has nothing below 0, and a channel without weight has no ends.
            if not (largest > 0).any():
                continue
            counted = np.where(self.weight > 0, values, smallest)
            tail = tail_of(counted, weights, np.maximum(largest, 0), self.bound)
            error += clipped_error(tail, caps)
        return error

    def positive_maxima(self, offset: Any, per: Per) -> np.ndarray:
        """`snnjax.calibrators.formulas.maximum` of all magnitudes: [] or [C].

        Each is > 0, as a threshold must be: a silent channel has the layer's maximum,
        and a silent layer has 1.
        """
        maxima = self.maxima(offset)
        layer_maximum = maxima.max()
        if layer_maximum == 0:
            layer_maximum = np.float32(1)
        if per == "layer":
            return np.asarray(layer_maximum)
        return np.where(maxima > 0, maxima, layer_maximum)


def _without_offset(values: np.ndarray, offset: Any) -> np.ndarray:
    """Values [..., C] minus the offset of their channels; None: the values."""
    if offset is None:
        return values
    return values - np.ravel(offset).astype(values.dtype)


def chosen_positions(
    count: int, shape: tuple[int, ...], channel: int, steps: int
) -> np.ndarray | None:
    """Random positions of a site, [p]: as many as give each channel `SAMPLES` numbers.

    There are fewer if a sample and its currents would take more than `_SAMPLE_BYTES`.
    None stands for all positions.

    Args:
        count: number of images.
        shape: of the site.
        channel: axis of its channels, from the end.
        steps: T.

    >>> chosen_positions(2**14, (2, 2, 3), -1, steps=4)
    array([0, 2], dtype=int32)
    """
    position_count = math.prod(shape) // shape[channel]
    # Four bytes for an activation, a weight and v(0), and for the current at each step.
    bytes_per_position = 4 * (steps + 3) * count * shape[channel]
    affordable = _SAMPLE_BYTES // bytes_per_position
    needed = math.ceil(SAMPLES / count)
    sample_size = max(1, min(needed, affordable))
    if sample_size >= position_count:
        return None
    order = np.random.default_rng(0).permutation(position_count)
    # In the order of memory, so that reading them is fast.
    return np.sort(order[:sample_size]).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class SampleRows:
    """A function for `View.over_images`, which gives the `Sample` of a micro-batch.

    Its arrays are NumPy's or JAX's, as those of the micro-batch are. It is a dataclass,
    since functions of `View.over_images` are hashed.

    Attributes:
        channel: axis of the channels of the site, from the end.
    """

    channel: int

    def __call__(
        self, current: None, activation: Any, effects: Any, positions: Any
    ) -> Sample:
        """The sample of B images.

        Args:
            current: not read.
            activation: of the ANN, [B, ...].
            effects: how much errors count, [B, ...] with one channel; None: all alike.
            positions: [p]; None: all of them.
        """
        del current
        xp = namespace(activation)
        activation = activation.astype(np.float32, copy=False)
        if effects is None:
            # All errors count alike: 1 at each position, with a single channel.
            axis = activation.ndim + self.channel
            first_channel = xp.take(activation, np.arange(1), axis)
            effects = xp.ones_like(first_channel)
        # Activations without weight become infinite, so that they are no ends.
        distance = xp.where(effects > 0, 0, xp.inf).astype(np.float32)
        # Images come first in memory. NumPy compares whole images in a tenth of the
        # time that it takes for their channels.
        low_candidates = (activation + distance).min(0, keepdims=True)
        high_candidates = (activation - distance).max(0, keepdims=True)
        lowest: Any = per_channel(xp.min, low_candidates, self.channel)
        highest: Any = per_channel(xp.max, high_candidates, self.channel)
        site_ndim = activation.ndim - 1
        return Sample(
            activation=_rows(activation, positions, site_ndim, self.channel),
            weight=_rows(effects, positions, site_ndim, self.channel),
            lowest=lowest.ravel(),
            highest=highest.ravel(),
        )


@dataclasses.dataclass(frozen=True)
class CurrentRows:
    """A function for `View.over_images`: the currents at the positions of a sample.

    They are [T, B p, C], or [B p, C] if the current is constant.

    Attributes:
        channel: as for `SampleRows`.
    """

    channel: int

    def __call__(
        self, current: Any, activation: Any, effects: Any, positions: Any
    ) -> Any:
        """The currents of B images; the arguments are those of `SampleRows`."""
        del effects
        site_ndim = activation.ndim - 1  # that of the current may count steps, too
        return _rows(current, positions, site_ndim, self.channel)


def _rows(values: Any, positions: Any, site_ndim: int, channel: int) -> Any:
    """Values [..., B, *shape of a site] at the positions, as rows [..., B p, C]."""
    values = at_positions(values, positions, site_ndim, channel)
    *leading, images, positions_per_image, channels = values.shape
    return values.reshape(*leading, images * positions_per_image, channels)


def at_positions(values: Any, positions: Any, site_ndim: int, channel: int) -> Any:
    """Values [..., *shape of a site] at the positions, channels last: [..., p, C].

    Args:
        values: of each neuron; leading axes may count steps and images.
        positions: [p], from `chosen_positions`; None: all of them.
        site_ndim: number of axes of the site.
        channel: axis of its channels, from the end.
    """
    xp = namespace(values)
    values = xp.moveaxis(values, channel, -1)
    channels = values.shape[-1]
    leading = values.shape[: values.ndim - site_ndim]
    rows = values.reshape(*leading, -1, channels)
    if positions is None:
        return rows
    return xp.take(rows, positions, rows.ndim - 2)


def merged(parts: Sequence[Sample], batch_sharding: NamedSharding | None) -> Sample:
    """The sample of all images, from those of their micro-batches."""
    lowest = [sharding.gathered(part.lowest, batch_sharding) for part in parts]
    highest = [sharding.gathered(part.highest, batch_sharding) for part in parts]
    return Sample(
        activation=concatenated([part.activation for part in parts], batch_sharding),
        weight=concatenated([part.weight for part in parts], batch_sharding),
        lowest=np.min(lowest, axis=0),
        highest=np.max(highest, axis=0),
    )


def concatenated(
    parts: Sequence[Any], batch_sharding: NamedSharding | None
) -> np.ndarray:
    """Rows [..., B p, C] of all micro-batches in one array [..., n, C] of NumPy."""
    rows = [sharding.gathered(part, batch_sharding) for part in parts]
    return np.concatenate(rows, axis=-2)
