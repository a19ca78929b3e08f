"""Rules: what a chip can run beside its numbers, each one a value of its own.

A `Rule` looks at a network or at one of its layers, and says by a `Finding` what the
chip approximates or does not have. A `Limit` bounds one quantity, and the other classes
are what several chips share. Rules that a single chip has stand beside its profile.
"""

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from snnjax._checks import check_choice
from snnjax.deploy.chips import geometry
from snnjax.deploy.chips.geometry import Layer
from snnjax.deploy.lowering import values

Verdict = Literal["fits", "approximately", "no"]
Numbers = tuple[int, ...] | range

# Name of a `Limit` -> what a report calls the quantity that it bounds.
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
    """A property that a chip approximates or does not have, or a remark.

    Attributes:
        field: the field of `Chip` or the rule that decides it.
        verdict: "approximately" if some spikes differ from the simulated ones, or do
            so until the remedy is taken; "no" if the chip cannot run it; "fits" for a
            remark.
        problem: what was found, and what the chip has.
        remedy: what to do; "" if nothing is.
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

    def _findings(self, numbers: Sequence[int], quantity: str) -> Iterator[Finding]:
        """One finding if some of these numbers of a quantity are not allowed."""
        if isinstance(self.allowed, int):
            allowed = range(self.allowed + 1)
            text = f"at most {self.allowed}"
        else:
            allowed = self.allowed
            text = f"not {span(self.allowed)}"
        outside = [number for number in numbers if number not in allowed]
        if outside:
            yield outside_limits(self.name, f"{quantity} {max(outside)}, {text}")

    def __str__(self) -> str:
        return span(self.allowed)


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
        for connection in layer.connections:
            image = layer.sender_shapes[connection.sender][1:]
            for node in connection.maps:
                if isinstance(node, values.SumPool) and not self._allows(node, image):
                    rows, columns = node.window
                    size = f"sum-pool {rows}x{columns}, stride {node.stride[0]}"
                    problem = f"{size} (without overlap: {self})"
                    yield outside_limits(self.name, problem)

    def _allows(self, pool: values.SumPool, sender_image: tuple[int, ...]) -> bool:
        """Whether the chip has a pool, behind a sender of these rows and columns."""
        if pool.window != pool.stride or any(pool.padding):
            return False
        allowed = set(self.windows)
        if pool.window == sender_image:
            allowed.update(self.whole_images)
        return allowed.issuperset(pool.window)

    def __str__(self) -> str:
        return span(self.windows) if self.windows else "none but of a whole image"


@dataclass(frozen=True)
class NeuronsAfterMaps(Rule):
    """Neurons follow each map with weights. A sum-pool may stand before the map."""

    name: str = "successive_maps"

    def layer_findings(self, layer: Layer) -> Iterator[Finding]:
        for connection in layer.connections:
            kinds = []  # of the maps; a flattening computes nothing and does not count
            for node in connection.maps:
                if isinstance(node, values.Affine):
                    kinds.append("weights")
                elif isinstance(node, values.SumPool):
                    kinds.append("pool")
            if kinds not in ([], ["pool"], ["weights"], ["pool", "weights"]):
                problem = "maps in a row, without neurons between them"
                yield outside_limits(self.name, problem)

    def __str__(self) -> str:
        return "no"


def outside_limits(name: str, problem: str) -> Finding:
    """The finding of the rule ``name`` that only another network avoids."""
    remedy = "build the network within these limits, and train it again"
    return Finding(name, "no", problem, remedy)


def span(value: Any) -> str:
    """Numbers that are allowed, or any other property of a chip, as text.

    >>> span(range(1, 5)), span(range(5, sys.maxsize)), span((1, 2, 4)), span(7)
    ('1 to 4', '5 and more', '1, 2, 4', '7')
    """
    if isinstance(value, range):
        end = f"to {value[-1]}" if value.stop < sys.maxsize else "and more"
        return f"{value[0]} {end}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value)


# -------------------------------------------------------------------------- quantities


def network_numbers(network: values.Layers) -> dict[str, list[int]]:
    """Each of `NETWORK_QUANTITIES` -> its numbers in a network."""
    fan_outs: Counter[str] = Counter()  # name of a sender -> elements that read one
    for connection in network.connections:
        fan_outs[connection.sender] += geometry.fan_out(connection)
    return {
        "inputs": [math.prod(network.input.shape)],
        "neurons": [_element_count(network.populations)],
        "outputs": [_element_count(network.outputs)],
        "fan_out": list(fan_outs.values()),
    }


def _element_count(nodes: Sequence[values.Receiver]) -> int:
    """How many neurons or results these nodes have together."""
    return sum(math.prod(node.shape) for node in nodes)


def layer_numbers(layer: Layer) -> Mapping[str, list[int]]:
    """Each of `LAYER_QUANTITIES` -> its numbers in a layer, empty where it has none."""
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for kernel in layer.kernels:
        numbers["strides"] += kernel.stride
        for zeros in kernel.padding:
            numbers["paddings"] += zeros
        numbers["channels"].append(kernel.channels)
        rows, columns = kernel.image
        numbers["input_rows"].append(rows)
        numbers["input_columns"].append(columns)
        # A kernel of any size can hold one of 1x1.
        size = max(kernel.size)
        if size > 1:
            numbers["kernels"].append(size)
            if max(kernel.stride) > 1:
                numbers["strided_kernels"].append(size)
    if layer.reads_x:
        numbers["input_channels"] += numbers["channels"]
    # Beside the channels that it reads, a layer of images has those of its neurons.
    if len(layer.node.shape) == 3 or layer.dense_as_kernel:
        numbers["channels"].append(layer.node.shape[0])
    for node in layer.maps:
        if isinstance(node, values.Convolution):
            numbers["groups"].append(node.groups)
        elif isinstance(node, values.Dense):
            numbers["dense_inputs"].append(node.weight.shape[1])
    numbers["output_image"] += layer.node.shape[1:]
    numbers["destinations"].append(len(layer.readers))
    return numbers
