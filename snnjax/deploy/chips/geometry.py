"""Sizes of a layer as a chip counts them: bits, kernels, fan-out, words of memory.

`assign` gives layers to the cores of a chip, where each core has its own memory.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from snnjax.deploy.chips.profiles import Chip, Core
from snnjax.deploy.lowering import values


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


def kernels(way: values.Connection, shape: tuple[int, ...], chip: Chip) -> list[Kernel]:
    """Kernels on a way from a sender of this shape; a way without maps has 1x1."""
    kernel_list = []
    for node in way.maps or (None,):
        image = (*shape[1:], 1, 1)[:2]
        match node:
            case values.Convolution():
                kernel_list.append(_kernel(node, shape[0], chip))
                shape = (len(node.weight), *_results(node))
            case values.SumPool(window=window, stride=stride, padding=zeros):
                shape = (shape[0], *_windows(image, window, stride, zeros))
            case values.Dense(weight=weight):
                if chip.dense_as_kernel:
                    whole = Kernel(shape[0], image, (1, 1), (0, 0), image, ("VALID",))
                    kernel_list.append(whole)
                shape = (len(weight),)
            case values.Flatten():
                pass  # a dense layer still reads the image
            case _:  # a scale, or the spikes themselves
                kernel_list.append(Kernel(shape[0], (1, 1), (1, 1), (0, 0), image))
    return kernel_list


def _kernel(node: values.Convolution, channels: int, chip: Chip) -> Kernel:
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
    node: values.Convolution, reach: tuple[int, ...], before: tuple[int, ...]
) -> tuple[str, ...]:
    """Names of the padding of a kernel with this reach and zeros before the image."""
    axes = [*zip(node.size, reach, node.stride, strict=True)]
    modes = {
        "SAME": [_same(n, k, s) for n, k, s in axes],
        "VALID": [((n - k) // s + 1, 0) for n, k, s in axes],
    }
    # A mode is the number of results along each axis, and the zeros before it.
    own = [*zip(_results(node), before, strict=True)]
    return tuple(name for name, windows in modes.items() if windows == own)


def _same(size: int, reach: int, stride: int) -> tuple[int, int]:
    """Results of padding "SAME", and its zeros before the image: half of all."""
    results = -(-size // stride)
    return results, max((results - 1) * stride + reach - size, 0) // 2


def _reach(node: values.Convolution) -> tuple[int, ...]:
    taps = zip(node.weight.shape[2:], node.dilation, strict=True)
    return tuple((k - 1) * d + 1 for k, d in taps)


def _results(node: values.Convolution) -> tuple[int, ...]:
    """Rows and columns that a convolution computes."""
    return _windows(node.size, _reach(node), node.stride, node.padding)


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


def _windows(
    image: Sequence[int], reach: Sequence[int], stride: Sequence[int], zeros: Sequence
) -> tuple[int, ...]:
    axes = zip(image, reach, stride, zeros, strict=True)
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
