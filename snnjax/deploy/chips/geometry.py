"""Sizes of a layer as a chip counts them: bits, kernels and fan-out.

A `Layer` is a population or an output with the maps into it. Each map that reads an
image is a `Kernel`; numbers are counted by the bits and the sharing that they need.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.sums import NoLayer
from snnjax.deploy.lowering.windows import Window, axis_windows, with_equal_padding

NO_PADDING = ((0, 0), (0, 0))
Granularity = Literal["layer", "channel", "neuron"]  # what has a number of its own


class Kernel(NamedTuple):
    """A map that slides over an image, per axis [rows, columns].

    Attributes:
        channels: of its input.
        size: of its window, with the gaps of a dilation.
        stride: steps of its window.
        padding: zeros before and behind the image.
        image: rows and columns of its input.
        modes: names of its padding: "SAME", "VALID", both (1x1) or none.
    """

    channels: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    image: tuple[int, ...]
    modes: tuple[str, ...] = ("SAME", "VALID")


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A population or an output, and the maps into it, as one chip computes them.

    Attributes:
        node: the population or output.
        connections: all that lead to it.
        sender_shapes: name of each sender -> its shape, channels first.
        readers: names of the populations and outputs that read it.
        network: of which it is a layer.
        dense_as_kernel: whether the chip computes a dense layer as a convolution whose
            kernel is as large as its image.
        equal_padding: whether the chip has square kernels and one padding for all
            sides of an image alone.
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
        """That of its node."""
        return self.node.name

    @property
    def population(self) -> values.Population | None:
        """The node if it has neurons; None for an output."""
        return self.node if isinstance(self.node, values.Population) else None

    @property
    def reads_x(self) -> bool:
        """Whether x reaches it without passing neurons."""
        entrance = self.network.input.name
        return any(way.sender == entrance for way in self.connections)

    @property
    def maps(self) -> list[values.Map]:
        """The maps of all connections into it."""
        return [node for way in self.connections for node in way.maps]

    @functools.cached_property
    def kernels(self) -> list[Kernel]:
        """The kernels of all connections into it."""
        result: list[Kernel] = []
        for way in self.connections:
            result += kernels(
                way,
                self.sender_shapes[way.sender],
                dense_as_kernel=self.dense_as_kernel,
                equal_padding=self.equal_padding,
            )
        return result

    @property
    def arrays(self) -> dict[str, list[np.ndarray]]:
        """Its numbers by the field of `Chip` that states their bits, in whole units."""
        maps = [node for node in self.maps if isinstance(node, values.Affine)]
        weights = [node.weight for node in maps]
        biases = [node.bias for node in (*maps, self.node) if node.bias is not None]
        thresholds = []
        potentials = []
        if self.population is not None:
            thresholds.append(self.population.threshold)
            potentials.append(self.population.initial_potential)
        # Under other codes than rate coding, biases and potentials have units of their
        # own, see `Layers.bias_unit`.
        return {
            "weight_bits": weights,
            "threshold_bits": thresholds,
            "bias_bits": [bias / self.network.bias_unit for bias in biases],
            "state_bits": [v / self.network.potential_unit for v in potentials],
        }


def layers_of(network: values.Layers) -> list[Layer]:
    """Each population and output with what it reads, in the order of `receivers`."""
    connections = network.connections
    shapes = {network.input.name: network.input.shape}
    for population in network.populations:
        shapes[population.name] = population.shape
    layers = []
    for node in network.receivers:
        incoming = [way for way in connections if way.receiver == node.name]
        layer = Layer(
            node=node,
            connections=incoming,
            sender_shapes=shapes,
            readers={way.receiver for way in connections if way.sender == node.name},
            network=network,
        )
        layers.append(layer)
    return layers


# ----------------------------------------------------------------------------- numbers


def bits(*arrays: np.ndarray) -> int:
    """The least b with -2^(b-1) <= n <= 2^(b-1) - 1 for all whole numbers n.

    >>> bits(np.array([-128, 127])), bits(np.array([128])), bits(np.array(0))
    (8, 9, 1)
    """
    # -2^(b-1) needs as many bits as 2^(b-1) - 1.
    largest = [max(array.max(initial=0), -array.min(initial=0) - 1) for array in arrays]
    return int(max(largest)).bit_length() + 1


def granularity(array: np.ndarray) -> Granularity:
    """What needs a number of its own: the "layer", each "channel" or each "neuron".

    >>> [granularity(a) for a in (np.ones(3), np.arange(2.0), np.eye(2)[None])]
    ['layer', 'channel', 'neuron']
    """
    if (array == array.flat[0]).all():
        return "layer"
    # An image is [C, H, W]; the channels of a vector are its elements.
    if array.ndim == 3 and (array != array[:, :1, :1]).any():
        return "neuron"
    return "channel"


# ----------------------------------------------------------------------------- kernels


def kernels(
    way: values.Connection,
    shape: tuple[int, ...],
    *,
    dense_as_kernel: bool = False,
    equal_padding: bool = False,
) -> list[Kernel]:
    """The kernels of a connection; one without maps has the kernel 1x1.

    Args:
        way: from a sender of ``shape``, channels first.
        dense_as_kernel, equal_padding: see `Layer`.
    """
    result = []
    for node in way.maps or (None,):
        image = (*shape[1:], 1, 1)[:2]  # a vector is an image of 1x1
        match node:
            case values.Convolution():
                result.append(_convolution_kernel(node, shape[0], equal_padding))
                results = [window.results for window in axis_windows(node)]
                shape = (len(node.weight), *results)
            case values.SumPool(window=window, stride=stride, padding=padding):
                shape = (shape[0], *_pooled_image(image, window, stride, padding))
            case values.Dense(weight=weight):
                if dense_as_kernel:
                    whole = Kernel(
                        shape[0], image, (1, 1), NO_PADDING, image, ("VALID",)
                    )
                    result.append(whole)
                shape = (len(weight),)
            case values.Flatten():
                pass  # the dense layer behind it is a kernel of the image
            case _:  # a scale, or no map at all
                result.append(Kernel(shape[0], (1, 1), (1, 1), NO_PADDING, image))
    return result


def _convolution_kernel(
    node: values.Convolution, channels: int, equal_padding: bool
) -> Kernel:
    """The kernel that a chip holds for a convolution."""
    if equal_padding:
        # The kernel itself then has zeros. Where no such kernel reads the same windows,
        # a report says so of the kernel as it is.
        with contextlib.suppress(NoLayer):
            node = with_equal_padding(node)
    windows = axis_windows(node)
    return Kernel(
        channels=channels,
        size=tuple(window.extent for window in windows),
        stride=node.stride,
        padding=node.padding,
        image=node.size,
        modes=_padding_modes(windows),
    )


def _padding_modes(windows: Sequence[Window]) -> tuple[str, ...]:
    """Names of the padding with these windows along rows and columns.

    A padding is known by the number of windows along each axis, and the zeros before
    the first one.
    """
    modes = []
    if all(_same(window) == (window.results, window.low) for window in windows):
        modes.append("SAME")
    if all(_valid(window) == (window.results, window.low) for window in windows):
        modes.append("VALID")
    return tuple(modes)


def _same(window: Window) -> tuple[int, int]:
    """Results of padding "SAME", and its zeros before the image: half of all."""
    results = -(-window.size // window.stride)
    padded_size = (results - 1) * window.stride + window.extent
    return results, max(padded_size - window.size, 0) // 2


def _valid(window: Window) -> tuple[int, int]:
    """Results of padding "VALID", which has no zeros."""
    return (window.size - window.extent) // window.stride + 1, 0


def _pooled_image(
    image: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> tuple[int, ...]:
    """Rows and columns of the sums over windows, padded alike on both sides."""
    axes = zip(image, window, stride, padding, strict=True)
    return tuple((n - k + 2 * zeros) // s + 1 for n, k, s, zeros in axes)


# ----------------------------------------------------------------------------- fan-out


def fan_out(way: values.Connection) -> int:
    """How many numbers of the receiver read one of the sender, at most."""
    total = 1
    for node in way.maps:
        match node:
            case values.Convolution(weight=weight, stride=stride, groups=groups):
                filters = len(weight) // groups
                total *= filters * _windows_of_element(weight.shape[2:], stride)
            case values.Dense(weight=weight):
                total *= len(weight)
            case values.SumPool(window=window, stride=stride):
                total *= _windows_of_element(window, stride)
    return total


def _windows_of_element(window: Sequence[int], stride: Sequence[int]) -> int:
    """How many windows one element of an image is in, at most."""
    axes = zip(window, stride, strict=True)
    return math.prod(-(-length // step) for length, step in axes)
