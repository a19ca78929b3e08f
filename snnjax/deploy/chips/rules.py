"""Rules: what a chip can run beside its numbers, each one a value of its own.

A `Rule` looks at a network or at one of its layers, and says by a `Finding` what the
chip approximates or does not have. A `Limit` bounds one quantity, and the other classes
are what several chips share. Rules that a single chip has stand beside its profile.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from snnjax._checks import check_choice
from snnjax.deploy.chips import geometry
from snnjax.deploy.chips.geometry import Layer
from snnjax.deploy.lowering import values

Verdict = Literal["fits", "approximately", "no"]
Numbers = tuple[int, ...] | range

# What a `Limit` bounds, and its words in a report.
NETWORK_QUANTITIES = {
    "inputs": "inputs",
    "neurons": "neurons",
    "outputs": "outputs",
    "fan_out": "fan-out",
}
LAYER_QUANTITIES = {
    "kernels": "kernel",
    "strides": "stride",
    "strided_kernels": "kernel with a stride",
    "paddings": "padding",
    "groups": "groups",
    "channels": "channels",
    "input_channels": "channels of x",
    "dense_inputs": "inputs of a dense layer",
    "input_rows": "rows of its input",
    "input_columns": "columns of its input",
    "output_image": "rows or columns",
    "destinations": "destinations",
}


class Finding(NamedTuple):
    """A property that a chip approximates or does not have.

    Attributes:
        field: the field of `Chip` or the rule that decides it.
        verdict: "approximately" if some spikes differ from the simulated ones, or do
            so until the remedy is taken; "no" if the chip cannot run it.
        problem: what was found, and what the chip has.
        remedy: what to do.
    """

    field: str
    verdict: Verdict
    problem: str
    remedy: str


@dataclass(frozen=True)
class Rule:
    """What a chip can run beside its numbers. Subclasses are frozen dataclasses.

    Attributes:
        name: unique in a chip: of several rules with one name the last one counts.
    """

    name: str

    def network_findings(self, network: values.Layers) -> Iterator[Finding]:
        """What a whole network breaks."""
        yield from ()

    def layer_findings(self, layer: Layer) -> Iterator[Finding]:
        """What a population or an output breaks, with the maps into it."""
        yield from ()

    def seen(self, layer: Layer) -> Layer:
        """The layer as the chip computes it, for the findings of all rules."""
        return layer

    def __str__(self) -> str:
        """Its value in the table of a chip."""
        return "yes"


@dataclass(frozen=True)
class Limit(Rule):
    """The numbers that one quantity may have.

    Kernels, strides, paddings and images count per axis.

    Attributes:
        name: of a layer "kernels", "strides", "strided_kernels" (those whose stride
            may be above 1), "paddings", "groups", "channels" (of input and output),
            "input_channels" (of x), "dense_inputs", "input_rows" and "input_columns"
            (of an image that it reads), "output_image" (rows and columns of its
            neurons), "destinations" (populations that it may send to); of a network
            "inputs", "neurons", "outputs" and "fan_out" (neurons that a neuron may
            send to).
        allowed: these numbers, or the largest one.

    >>> print(Limit("kernels", range(1, 17)), Limit("strides", (1, 2)))
    1 to 16 1, 2
    """

    allowed: Numbers | int = sys.maxsize

    def __post_init__(self):
        check_choice("name", self.name, [*NETWORK_QUANTITIES, *LAYER_QUANTITIES])

    def network_findings(self, network: values.Layers) -> Iterator[Finding]:
        if self.name in NETWORK_QUANTITIES:
            numbers = network_numbers(network)[self.name]
            yield from self._findings(numbers, NETWORK_QUANTITIES[self.name])

    def layer_findings(self, layer: Layer) -> Iterator[Finding]:
        if self.name in LAYER_QUANTITIES:
            numbers = layer_numbers(layer)[self.name]
            yield from self._findings(numbers, LAYER_QUANTITIES[self.name])

    def _findings(self, numbers: Sequence[int], words: str) -> Iterator[Finding]:
        if isinstance(self.allowed, int):
            allowed = range(self.allowed + 1)
            text = f"at most {self.allowed}"
        else:
            allowed = self.allowed
            text = f"not {span(self.allowed)}"
        beyond = [number for number in numbers if number not in allowed]
        if beyond:
            yield outside_limits(self.name, f"{words} {max(beyond)}, {text}")

    def __str__(self) -> str:
        return (
            str(self.allowed) if isinstance(self.allowed, int) else span(self.allowed)
        )


@dataclass(frozen=True)
class SumPools(Rule):
    """Sum-pools have one of these windows and no overlap.

    Attributes:
        windows: rows or columns of a window.
        whole_images: rows or columns of an image that one sum may read whole.
    """

    name: str = "pools"
    windows: Numbers = ()
    whole_images: Numbers = ()

    def layer_findings(self, layer: Layer) -> Iterator[Finding]:
        for way in layer.connections:
            image = layer.sender_shapes[way.sender][1:]
            for pool in way.maps:
                if isinstance(pool, values.SumPool) and not self._has(pool, image):
                    rows, stride = pool.window[0], pool.stride[0]
                    size = f"sum-pool {rows}x{pool.window[1]}, stride {stride}"
                    problem = f"{size} (without overlap: {self})"
                    yield outside_limits(self.name, problem)

    def _has(self, pool: values.SumPool, image: tuple[int, ...]) -> bool:
        if pool.window != pool.stride or any(pool.padding):
            return False
        allowed = set(self.windows)
        if pool.window == image:
            allowed.update(self.whole_images)
        return allowed.issuperset(pool.window)

    def __str__(self) -> str:
        return span(self.windows) or "none but of a whole image"


@dataclass(frozen=True)
class NeuronsAfterMaps(Rule):
    """Neurons follow each map with weights. A sum-pool may stand before the map."""

    name: str = "successive_maps"

    def layer_findings(self, layer: Layer) -> Iterator[Finding]:
        for way in layer.connections:
            maps = [node for node in way.maps if not isinstance(node, values.Flatten)]
            has_weights = [isinstance(node, values.Affine) for node in maps]
            if has_weights not in ([], [False], [True], [False, True]):
                problem = "maps in a row, without neurons between them"
                yield outside_limits(self.name, problem)

    def __str__(self) -> str:
        return "no"


def outside_limits(name: str, problem: str) -> Finding:
    """A finding that only another network avoids."""
    remedy = "build the network within these limits, and train it again"
    return Finding(name, "no", problem, remedy)


def span(numbers: Sequence[Any]) -> str:
    """Numbers as text.

    >>> span(range(1, 5)), span(range(5, sys.maxsize)), span((1, 2, 4))
    ('1 to 4', '5 and more', '1, 2, 4')
    """
    if isinstance(numbers, range):
        last = f"to {numbers[-1]}" if numbers.stop < sys.maxsize else "and more"
        return f"{numbers[0]} {last}"
    return ", ".join(map(str, numbers))


# -------------------------------------------------------------------------- quantities


def network_numbers(network: values.Layers) -> dict[str, list[int]]:
    """The quantities of a network that a `Limit` bounds."""
    fan_outs: Counter[str] = Counter()
    for way in network.connections:
        fan_outs[way.sender] += geometry.fan_out(way)
    neurons = sum(math.prod(node.shape) for node in network.populations)
    outputs = sum(math.prod(node.shape) for node in network.outputs)
    return {
        "inputs": [math.prod(network.input.shape)],
        "neurons": [neurons],
        "outputs": [outputs],
        "fan_out": list(fan_outs.values()),
    }


def layer_numbers(layer: Layer) -> dict[str, list[int]]:
    """The quantities of a layer that a `Limit` bounds."""
    kernels = layer.kernels
    channels = [kernel.channels for kernel in kernels]
    is_convolution = len(layer.node.shape) == 3 or layer.dense_as_kernel
    filters = [layer.node.shape[0]] if is_convolution else []
    # A kernel of any size can hold one of 1x1.
    larger = [kernel for kernel in kernels if max(kernel.size) > 1]
    strided = [kernel for kernel in larger if max(kernel.stride) > 1]
    groups = [m.groups for m in layer.maps if isinstance(m, values.Convolution)]
    dense = [m.weight.shape[1] for m in layer.maps if isinstance(m, values.Dense)]
    strides: list[int] = []
    paddings: list[int] = []
    for kernel in kernels:
        strides += kernel.stride
        for sides in kernel.padding:
            paddings += sides
    return {
        "kernels": [max(kernel.size) for kernel in larger],
        "strides": strides,
        "strided_kernels": [max(kernel.size) for kernel in strided],
        "paddings": paddings,
        "groups": groups,
        "channels": channels + filters,
        "input_channels": channels if layer.reads_x else [],
        "dense_inputs": dense,
        "input_rows": [kernel.image[0] for kernel in kernels],
        "input_columns": [kernel.image[1] for kernel in kernels],
        "output_image": list(layer.node.shape[1:]),
        "destinations": [len(layer.readers)],
    }
