"""Sizes of a layer as a chip counts them: bits, kernels, fan-out, words of memory."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snnjax.deploy.chips.profiles import Chip, Core
from snnjax.deploy.lowering.values import (
    Connection,
    Convolution,
    Dense,
    Flatten,
    SumPool,
)

GRANULARITIES = ("layer", "channel", "neuron")


class Kernel(NamedTuple):
    """A map: its input channels, reach, stride, zeros on each side, and image.

    ``modes`` are the names of its padding: "SAME", "VALID", both (1x1) or neither.
    """

    channels: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    image: tuple[int, ...]
    modes: tuple[str, ...] = ("SAME", "VALID")


def bits(*arrays: np.ndarray) -> int:
    """The least b with -2^(b-1) <= n <= 2^(b-1) - 1 for all whole numbers n.

    >>> bits(np.array([-128, 127])), bits(np.array([128])), bits(np.array(0))
    (8, 9, 1)
    """
    reach = max(max(a.max(initial=0), -a.min(initial=0) - 1) for a in arrays)
    return int(reach).bit_length() + 1


def granularity(array: np.ndarray) -> str:
    """What needs a number of its own: the "layer", each "channel" or each "neuron".

    >>> [granularity(a) for a in (np.ones(3), np.arange(2.0), np.eye(2)[None])]
    ['layer', 'channel', 'neuron']
    """
    if (array == array.flat[0]).all():
        return "layer"
    per_channel = array.ndim < 3 or (array == array[:, :1, :1]).all()
    return "channel" if per_channel else "neuron"


def kernels(way: Connection, shape: tuple[int, ...], chip: Chip) -> list[Kernel]:
    """Kernels on a way from a sender of this shape; a way without maps has 1x1."""
    kernel_list = []
    for node in way.maps or (None,):
        image = (*shape[1:], 1, 1)[:2]
        match node:
            case Convolution():
                kernel_list.append(_kernel(node, shape[0], chip))
                shape = (len(node.weight), *_results(node))
            case SumPool(window=window, stride=stride, padding=zeros):
                shape = (shape[0], *_windows(image, window, stride, zeros))
            case Dense(weight=weight):
                if chip.dense_as_kernel:
                    whole = Kernel(shape[0], image, (1, 1), (0, 0), image, ("VALID",))
                    kernel_list.append(whole)
                shape = (len(weight),)
            case Flatten():
                pass  # a dense layer still reads the image
            case _:  # a scale, or the spikes themselves
                kernel_list.append(Kernel(shape[0], (1, 1), (1, 1), (0, 0), image))
    return kernel_list


def _kernel(node: Convolution, channels: int, chip: Chip) -> Kernel:
    """The kernel of a convolution; with a padding that the chip names, if it has one.

    Layers pad alike on both sides, so the kernel of "SAME" with a stride may begin and
    end with zeros (lowering/windows.py). They are cut off for such a chip.
    """
    reach, before = _reach(node), node.padding
    modes = _modes(node, reach, before)
    kernel = Kernel(channels, reach, node.stride, before, node.size, modes)
    if not chip.padding_modes or node.dilation != (1, 1) or not node.weight.any():
        return kernel
    # The rows and columns of the kernel that are not all zero.
    used = [np.flatnonzero(node.weight.any(axis)) for axis in ((0, 1, 3), (0, 1, 2))]
    reach = tuple(int(taps[-1] - taps[0]) + 1 for taps in used)
    before = tuple(p - int(taps[0]) for p, taps in zip(before, used, strict=True))
    modes = _modes(node, reach, before)
    if {*modes} & {*chip.padding_modes}:
        return kernel._replace(size=reach, padding=before, modes=modes)
    return kernel


def _modes(
    node: Convolution, reach: tuple[int, ...], before: tuple[int, ...]
) -> tuple[str, ...]:
    """Names of the padding of a kernel with this reach and zeros before the image."""
    axes = [*zip(node.size, reach, node.stride, strict=True)]
    modes = {
        "SAME": [(-(-n // s), _same(n, k, s) // 2) for n, k, s in axes],
        "VALID": [((n - k) // s + 1, 0) for n, k, s in axes],
    }
    # A mode is the number of results along each axis, and the zeros before it.
    own = [*zip(_results(node), before, strict=True)]
    return tuple(name for name, windows in modes.items() if windows == own)


def _reach(node: Convolution) -> tuple[int, ...]:
    taps = zip(node.weight.shape[2:], node.dilation, strict=True)
    return tuple((k - 1) * d + 1 for k, d in taps)


def _results(node: Convolution) -> tuple[int, ...]:
    """Rows and columns that a convolution computes."""
    return _windows(node.size, _reach(node), node.stride, node.padding)


def fan_out(way: Connection) -> int:
    """How many numbers of the receiver read one of the sender, at most."""
    total = 1
    for node in way.maps:
        match node:
            case Convolution(weight=weight, stride=stride, groups=groups):
                total *= len(weight) // groups * _reached(weight.shape[2:], stride)
            case Dense(weight=weight):
                total *= len(weight)
            case SumPool(window=window, stride=stride):
                total *= _reached(window, stride)
    return total


def need(kernels: Sequence[Kernel], shape: tuple[int, ...], chip: Chip) -> Core:
    """Words of a layer: c f k for c input channels, f filters and k taps, and neurons.

    Kernels that meet in a layer are stored as one. Chips that address kernels by bits
    take c 2^(ceil log2 k + ceil log2 f) words.
    """
    sizes = zip(*(kernel.size for kernel in kernels), strict=True)
    taps, filters = math.prod(map(max, sizes)), shape[0]
    if chip.kernel_memory == "powers_of_two":
        taps, filters = (2 ** math.ceil(math.log2(n)) for n in (taps, filters))
    channels = sum(kernel.channels for kernel in kernels)
    return Core(channels * taps * filters, math.prod(shape))


def _same(size: int, reach: int, stride: int) -> int:
    """Zeros on both sides together that padding "SAME" adds."""
    return max((-(-size // stride) - 1) * stride + reach - size, 0)


def _windows(
    image: Sequence[int], reach: Sequence[int], stride: Sequence[int], zeros: Sequence
) -> tuple[int, ...]:
    axes = zip(image, reach, stride, zeros, strict=True)
    return tuple((n - k + 2 * p) // s + 1 for n, k, s, p in axes)


def _reached(window: Sequence[int], stride: Sequence[int]) -> int:
    """How many windows an element is in, at most."""
    return math.prod(-(-k // s) for k, s in zip(window, stride, strict=True))
