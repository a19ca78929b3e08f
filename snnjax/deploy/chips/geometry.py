"""Sizes of a layer as a chip counts them: bits, kernels and fan-out.

A `Layer` is a population or an output, its ``node``, with the connections into it. The
maps of a connection are a convolution, a dense layer, a scale, a sum-pool or a
flattening; those that slide a window over an image are a `Kernel` of the chip. Shapes
are [C, H, W] of an image and [N] of a vector, which counts as an image of 1x1.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.sums import NoLayer
from snnjax.deploy.lowering.windows import (
    axis_windows,
    padding_modes,
    with_equal_padding,
)

NO_PADDING = ((0, 0), (0, 0))
# What has a number of its own, e.g. a threshold.
Granularity = Literal["layer", "channel", "neuron"]


class Kernel(NamedTuple):
    """A map that slides a window over an image; pairs are (rows, columns).

    Attributes:
        channels: number of channels of the image.
        size: of the window in pixels, with the gaps of a dilation.
        image: size of the image in pixels.
        stride: pixels from one window to the next.
        padding: zeros (before, behind) the image along rows, and along columns.
        modes: names of this padding: "SAME", "VALID", both (of a kernel 1x1) or none.
    """

    channels: int
    size: tuple[int, ...]
    image: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[tuple[int, int], ...] = NO_PADDING
    modes: tuple[str, ...] = ("SAME", "VALID")


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A population or an output, and the maps into it, as one chip computes them.

    Attributes:
        node: the population or output.
        connections: all that lead to it.
        sender_shapes: name of each node that can send -> its shape, [C, H, W] or [N].
        readers: names of the populations and outputs that read it.
        network: all layers, of which this is one.
        dense_as_kernel: whether the chip computes a dense layer as a convolution whose
            kernel is as large as its image.
        equal_padding: whether the chip has only square kernels, and one padding for
            all sides of an image.
    """

    node: values.Receiver
    connections: Sequence[values.Connection]
    sender_shapes: Mapping[str, tuple[int, ...]]
    readers: set[str]
    network: values.Layers
    dense_as_kernel: bool = False
    equal_padding: bool = False

    @property
    def name(self) -> str:
        """The name of its node."""
        return self.node.name

    @property
    def population(self) -> values.Population | None:
        """The node if it has neurons; None for an output."""
        return self.node if isinstance(self.node, values.Population) else None

    @property
    def reads_x(self) -> bool:
        """Whether the network's input x reaches it without passing neurons."""
        x_name = self.network.input.name
        return any(connection.sender == x_name for connection in self.connections)

    @property
    def maps(self) -> list[values.Map]:
        """The maps of all connections into it."""
        maps: list[values.Map] = []
        for connection in self.connections:
            maps += connection.maps
        return maps

    @functools.cached_property
    def kernels(self) -> list[Kernel]:
        """The kernels of all connections into it."""
        layer_kernels: list[Kernel] = []
        for connection in self.connections:
            layer_kernels += kernels(
                connection,
                self.sender_shapes[connection.sender],
                dense_as_kernel=self.dense_as_kernel,
                equal_padding=self.equal_padding,
            )
        return layer_kernels

    @property
    def arrays(self) -> dict[str, list[np.ndarray]]:
        """Field of `Chip` that states a number of bits -> the arrays that need them.

        The arrays of a quantized network are whole numbers, as the chip stores them.
        """
        weights = []
        # Under other codes than rate coding, biases and potentials have units of their
        # own, see `Layers.bias_unit`.
        bias_unit = self.network.bias_unit
        biases = [self.node.bias / bias_unit]
        for node in self.maps:
            if isinstance(node, values.Affine):
                weights.append(node.weight)
                if node.bias is not None:
                    biases.append(node.bias / bias_unit)
        thresholds = []
        potentials = []
        if self.population is not None:
            thresholds.append(self.population.threshold)
            initial_potential = self.population.initial_potential
            potentials.append(initial_potential / self.network.potential_unit)
        return {
            "weight_bits": weights,
            "threshold_bits": thresholds,
            "bias_bits": biases,
            "state_bits": potentials,
        }


def layers_of(network: values.Layers) -> list[Layer]:
    """A `Layer` for each population, then for each output of a network."""
    connections = network.connections
    shapes = {network.input.name: network.input.shape}
    for population in network.populations:
        shapes[population.name] = population.shape
    layers = []
    for node in network.receivers:
        layer = Layer(
            node=node,
            connections=[way for way in connections if way.receiver == node.name],
            sender_shapes=shapes,
            readers={way.receiver for way in connections if way.sender == node.name},
            network=network,
        )
        layers.append(layer)
    return layers


# ----------------------------------------------------------------------------- numbers


def bits(*arrays: np.ndarray) -> int:
    """The least b with -2^(b-1) <= n <= 2^(b-1) - 1 for all whole numbers n of arrays.

    >>> bits(np.array([-128, 127])), bits(np.array([128])), bits(np.array(0))
    (8, 9, 1)
    """
    largest = 0
    for array in arrays:
        # -2^(b-1) needs as many bits as 2^(b-1) - 1.
        largest = max(largest, array.max(initial=0), -array.min(initial=0) - 1)
    sign_bit = 1
    return int(largest).bit_length() + sign_bit


def granularity(array: np.ndarray) -> Granularity:
    """What needs a number of its own: the "layer", each "channel" or each "neuron".

    Args:
        array: numbers of the neurons of a layer, of a shape that broadcasts to theirs.

    >>> [granularity(a) for a in (np.ones(3), np.arange(2.0), np.eye(2)[None])]
    ['layer', 'channel', 'neuron']
    """
    if (array == array.flat[0]).all():
        return "layer"
    # The channels of a vector are its elements, so that only an image has several
    # neurons in a channel.
    if array.ndim == 3 and (array != array[:, :1, :1]).any():
        return "neuron"
    return "channel"


# ----------------------------------------------------------------------------- kernels


def kernels(
    connection: values.Connection,
    sender_shape: tuple[int, ...],
    *,
    dense_as_kernel: bool = False,
    equal_padding: bool = False,
) -> list[Kernel]:
    """The kernels of a connection, in the order of its maps.

    Args:
        connection: one without maps has the kernel 1x1.
        sender_shape: [C, H, W] or [N], of what the first map reads.
        dense_as_kernel, equal_padding: see `Layer`.
    """
    if not connection.maps:
        return [_pixel_kernel(sender_shape)]
    result = []
    shape = sender_shape  # of what the map at hand reads
    for node in connection.maps:
        match node:
            case values.Convolution():
                result.append(_convolution_kernel(node, equal_padding))
                rows, columns = axis_windows(node)
                shape = (len(node.weight), rows.results, columns.results)
            case values.SumPool():
                shape = (shape[0], *_pooled_size(node, shape[1:]))
            case values.Dense():
                if dense_as_kernel:
                    image = _image_size(shape)
                    kernel = Kernel(shape[0], size=image, image=image, modes=("VALID",))
                    result.append(kernel)
                shape = (len(node.weight),)
            case values.Scale():
                result.append(_pixel_kernel(shape))
        # A flattening leaves the shape: the dense layer behind it reads the image.
    return result


def _image_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of an image [C, H, W]; (1, 1) of a vector [N]."""
    if len(shape) == 1:
        return (1, 1)
    return shape[1:]


def _pixel_kernel(shape: tuple[int, ...]) -> Kernel:
    """The kernel 1x1 on an image [C, H, W] or a vector [N]."""
    return Kernel(shape[0], size=(1, 1), image=_image_size(shape))


def _convolution_kernel(node: values.Convolution, equal_padding: bool) -> Kernel:
    """The kernel that a chip holds for a convolution; `Layer` has ``equal_padding``."""
    if equal_padding:
        # Zeros among the weights make the kernel square. Where no such kernel reads the
        # windows of the convolution, the kernel stays, and a report says so.
        with contextlib.suppress(NoLayer):
            node = with_equal_padding(node)
    windows = axis_windows(node)
    return Kernel(
        channels=node.weight.shape[1] * node.groups,
        size=tuple(window.extent for window in windows),
        image=node.size,
        stride=node.stride,
        padding=node.padding,
        modes=padding_modes(windows),
    )


def _pooled_size(pool: values.SumPool, image: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of the sums over windows of an image of these rows and columns.

    The image has as many zeros before an axis as behind it.
    """
    padded = np.array(image) + 2 * np.array(pool.padding)
    counts = (padded - pool.window) // pool.stride + 1
    return tuple(counts.tolist())


# ----------------------------------------------------------------------------- fan-out


def fan_out(connection: values.Connection) -> int:
    """How many elements of the receiver read one element of the sender, at most."""
    total = 1
    for node in connection.maps:
        match node:
            case values.Convolution(weight=weight):
                # Weights are [filters, channels / groups, rows, columns], and a channel
                # is read by the filters of its group.
                filters = len(weight) // node.groups
                total *= filters * _window_count(weight.shape[2:], node.stride)
            case values.Dense(weight=weight):
                total *= len(weight)
            case values.SumPool(window=window, stride=stride):
                total *= _window_count(window, stride)
    return total


def _window_count(window: Sequence[int], stride: Sequence[int]) -> int:
    """How many windows of these rows and columns contain one pixel, at most."""
    counts = np.ceil(np.array(window) / stride)
    return int(counts.prod())
