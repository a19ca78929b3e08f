"""Sizes of a layer as a chip counts them: bits, kernels, fan-out, words of memory.

`assign` gives layers to the cores of a chip, where each core has its own memory.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from snnjax.deploy.chips.profiles import Chip, Core
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.sums import NoLayer
from snnjax.deploy.lowering.windows import Window, axis_windows, with_equal_padding

NO_ZEROS = ((0, 0), (0, 0))


class Kernel(NamedTuple):
    """A map: its input channels, reach, stride, padding as of a layer, and image.

    ``modes`` are the names of its padding: "SAME", "VALID", both (1x1) or neither.
    """

    channels: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
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


def kernels(way: values.Connection, shape: tuple[int, ...], chip: Chip) -> list[Kernel]:
    """Kernels on a way from a sender of this shape; a way without maps has 1x1."""
    kernel_list = []
    for node in way.maps or (None,):
        image = (*shape[1:], 1, 1)[:2]
        match node:
            case values.Convolution():
                kernel_list.append(_kernel(node, shape[0], chip))
                results = [window.results for window in axis_windows(node)]
                shape = (len(node.weight), *results)
            case values.SumPool(window=window, stride=stride, padding=zeros):
                shape = (shape[0], *_pooled(image, window, stride, zeros))
            case values.Dense(weight=weight):
                if chip.dense_as_kernel:
                    whole = Kernel(shape[0], image, (1, 1), NO_ZEROS, image, ("VALID",))
                    kernel_list.append(whole)
                shape = (len(weight),)
            case values.Flatten():
                pass  # a dense layer still reads the image
            case _:  # a scale, or the spikes themselves
                kernel_list.append(Kernel(shape[0], (1, 1), (1, 1), NO_ZEROS, image))
    return kernel_list


def _kernel(node: values.Convolution, channels: int, chip: Chip) -> Kernel:
    """The kernel that a chip holds for a convolution."""
    if chip.paddings is not None:
        # The chip has one number for both sides, so that the kernel itself has zeros.
        # Where this cannot be, the report says so of the kernel as it is.
        with contextlib.suppress(NoLayer):
            node = with_equal_padding(node)
    windows = axis_windows(node)
    return Kernel(
        channels,
        size=tuple(window.reach for window in windows),
        stride=node.stride,
        padding=node.padding,
        image=node.size,
        modes=_modes(windows),
    )


def _modes(windows: Sequence[Window]) -> tuple[str, ...]:
    """Names of the padding with these windows along rows and columns."""
    # A mode is the number of results along each axis, and the zeros before it.
    modes = {"SAME": _same, "VALID": _valid}
    names = []
    for name, mode in modes.items():
        if all(mode(window) == (window.results, window.low) for window in windows):
            names.append(name)
    return tuple(names)


def _same(window: Window) -> tuple[int, int]:
    """Results of padding "SAME", and its zeros before the image: half of all."""
    results = -(-window.size // window.stride)
    reach = (results - 1) * window.stride + window.reach
    return results, max(reach - window.size, 0) // 2


def _valid(window: Window) -> tuple[int, int]:
    """Results of padding "VALID", which has no zeros."""
    return (window.size - window.reach) // window.stride + 1, 0


def fan_out(way: values.Connection) -> int:
    """How many numbers of the receiver read one of the sender, at most."""
    total = 1
    for node in way.maps:
        match node:
            case values.Convolution(weight=weight, stride=stride, groups=groups):
                total *= len(weight) // groups * _reached(weight.shape[2:], stride)
            case values.Dense(weight=weight):
                total *= len(weight)
            case values.SumPool(window=window, stride=stride):
                total *= _reached(window, stride)
    return total


def need(kernels: Sequence[Kernel], shape: tuple[int, ...], chip: Chip) -> Core:
    """Words of a layer, see `Core`; kernels that meet in a layer are stored as one."""
    sizes = zip(*(kernel.size for kernel in kernels), strict=True)
    taps, filters = math.prod(map(max, sizes)), shape[0]
    if chip.kernel_memory == "powers_of_two":
        taps, filters = (2 ** math.ceil(math.log2(n)) for n in (taps, filters))
    channels = sum(kernel.channels for kernel in kernels)
    return Core(channels * taps * filters, math.prod(shape))


def _pooled(
    image: Sequence[int], window: Sequence[int], stride: Sequence[int], zeros: Sequence
) -> tuple[int, ...]:
    """Rows and columns of the sums over windows."""
    axes = zip(image, window, stride, zeros, strict=True)
    return tuple((n - k + 2 * p) // s + 1 for n, k, s, p in axes)


def _reached(window: Sequence[int], stride: Sequence[int]) -> int:
    """How many windows an element is in, at most."""
    return math.prod(-(-k // s) for k, s in zip(window, stride, strict=True))


# ----------------------------------------------------------------------------- cores


def assign(needs: Mapping[str, Core], cores: Sequence[Core]) -> dict[str, int]:
    """Name -> number of a core; names that get none are left out.

    A maximum matching by augmenting paths (Kuhn, 1955): if all layers can have a core,
    they do. The largest needs come first, and take the smallest core that has both
    memories.

    >>> cores = [Core(16, 64), Core(64, 16)]
    >>> assign({"a": Core(10, 10), "b": Core(10, 60)}, cores)
    {'b': 0, 'a': 1}
    >>> assign({"a": Core(10, 60), "b": Core(10, 61)}, cores)
    {'b': 0}
    """
    names_of_cores: dict[int, str] = {}
    order = sorted(range(len(cores)), key=lambda i: cores[i])

    def place(name: str, visited: set[int]) -> bool:
        for i in order:
            if i in visited or not fits(needs[name], cores[i]):
                continue
            visited.add(i)
            # The core is free, or the layer that has it finds another one.
            if i not in names_of_cores or place(names_of_cores[i], visited):
                names_of_cores[i] = name
                return True
        return False

    names = sorted(needs, key=lambda name: (max(needs[name]), name), reverse=True)
    for name in names:
        place(name, set())
    numbers = {name: i for i, name in names_of_cores.items()}
    return {name: numbers[name] for name in names if name in numbers}


def fits(words: Core, core: Core) -> bool:
    """Whether a core has this much of both memories."""
    return words.kernels <= core.kernels and words.neurons <= core.neurons
