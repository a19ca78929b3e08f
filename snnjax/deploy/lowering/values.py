"""A network of layers as values: populations of neurons, and the maps between them.

    current_j = sum_i w_ji s_i + b_j

s_i is an element of x or the level of a spike, a whole number: the threshold of the
neuron that sent it is a factor of w. A node reads the sum of the outputs of its
sources, each a vector [N] or an image [C, H, W]. Arrays are NumPy's, in double
precision, and broadcast to that shape.

Senders are the input and the populations, receivers the populations and the outputs.
What lies on the way from one to the other are maps, which are linear.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._checks import check_choice
from snnjax._ranges import Range
from snnjax._text import Table, counted, numbers, shown_as_table
from snnjax.codes import Code, rate

Shape = tuple[int, ...]  # a number for each axis
Zeros = tuple[int, int]  # how many zeros lie before and behind an axis
STATIC = {"static": True}  # marks fields that are structure, no arrays
# n of a neuron that does not leak, of a population with neurons that do. No leak that
# float32 holds needs a shift so large.
_NO_SHIFT = 30


@dataclass(frozen=True)
class Leak:
    """How a chip multiplies a potential v by a leak, in whole numbers.

        "factor"   v <- sign(v) floor(|v| n / 2^bits)    n = round(leak 2^bits)
        "shift"    v <- v - floor(v / 2^n)               n = round(-log2(1 - leak)) >= 1

    Attributes:
        form: "factor" or "shift".
        bits: number of bits of a factor, 1 .. 14.
        fraction: number of bits of a potential below a unit of the weights, 0 .. 8.

    >>> import jax.numpy as jnp, numpy as np
    >>> for leak in (Leak("factor", bits=12), Leak("shift")):
    ...     n = leak.whole(np.array(0.75))
    ...     print(n, leak.left(jnp.array([-10, 10]), n), leak.rounded(np.array(0.8)))
    3072 [-7  7] 0.800048828125
    2 [-7  8] 0.75
    """

    form: Literal["factor", "shift"]
    bits: int = 12
    fraction: int = 0

    def __post_init__(self):
        check_choice("form", self.form, ("factor", "shift"))
        Range(1, 14, whole=True).check("bits", self.bits)
        Range(0, 8, whole=True).check("fraction", self.fraction)

    def whole(self, leak: np.ndarray) -> np.ndarray:
        """n, int64, for leaks in (0, 1] of any shape."""
        if self.form == "factor":
            largest = 2**self.bits
            n = np.clip(leak * largest, 1, largest)
        else:
            # A neuron that keeps all of its potential would need an infinite shift.
            lost = np.maximum(1 - leak, 2.0**-_NO_SHIFT)
            n = np.maximum(-np.log2(lost), 1)
        return np.rint(n).astype(np.int64)

    def rounded(self, leak: np.ndarray) -> np.ndarray:
        """The leaks with which the chip computes in place of these, of any shape."""
        n = self.whole(leak)
        if self.form == "factor":
            return n / 2**self.bits
        return 1 - 2.0**-n

    def left(self, v: jax.Array, n: Any) -> jax.Array:
        """What the leak leaves of potentials.

        Args:
            v: int32, whole potentials of at most 30 bits.
            n: int32, from `whole`, of a shape that broadcasts to v.
        """
        if self.form == "shift":
            lost = jnp.where(n < _NO_SHIFT, v >> n, 0)
            return v - lost
        # |v| n may need more than 32 bits. So |v| = high 2^bits + low, and
        # floor(|v| n / 2^bits) = high n + floor(low n / 2^bits).
        size = abs(v)
        high = size >> self.bits
        low = size & ((1 << self.bits) - 1)
        return jnp.sign(v) * (high * n + ((low * n) >> self.bits))


@dataclass(frozen=True)
class Arithmetic:
    """How a chip computes a network of whole numbers, see `snnjax.deploy.quantize`.

    Attributes:
        weight_bits: largest number of bits of a weight, its sign included, 1 .. 24.
        input_bits: number of bits of an element of x, 2 .. 24.
        state_bits: number of bits of a membrane potential, 4 .. 30.
        overflow: what happens to a potential outside of its bits: "saturate" or "wrap".
        leak: how leaks are rounded; None: no neuron leaks.
    """

    weight_bits: int
    input_bits: int
    state_bits: int
    overflow: Literal["saturate", "wrap"]
    leak: Leak | None = None

    def __post_init__(self):
        Range(1, 24, whole=True).check("weight_bits", self.weight_bits)
        Range(2, 24, whole=True).check("input_bits", self.input_bits)
        Range(4, 30, whole=True).check("state_bits", self.state_bits)
        check_choice("overflow", self.overflow, ("saturate", "wrap"))
        if not isinstance(self.leak, Leak | None):
            raise ValueError(
                f"leak is {self.leak!r}; allowed: a Leak, e.g. "
                'snnjax.deploy.Leak("factor", bits=12), or None'
            )

    @property
    def largest_input(self) -> int:
        """2^(bits - 1) - 1, the largest whole number that an element of x may be."""
        return 2 ** (self.input_bits - 1) - 1


# Nodes hold arrays, for which == has no single answer: they are compared by identity.
@dataclass(frozen=True, eq=False)
class Node:
    """What all nodes have.

    Attributes:
        name: unique among the nodes; a population has the name of its site.
        sources: names of the nodes whose outputs are summed into this one.
    """

    name: str = field(metadata=STATIC)
    sources: tuple[str, ...] = field(metadata=STATIC)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Input(Node):
    """Where x enters.

    Attributes:
        shape: of one example, [N] or [C, H, W].
        unit: the step of the grid to which x is rounded: a whole number n of the layers
            stands for ``unit * n`` of x. None: x is not rounded.
        lowest: the lowest whole number n of the images of `snnjax.deploy.quantize`,
            which tells chips whose input has no sign. None: it is not known.
    """

    shape: Shape = field(metadata=STATIC)
    unit: np.ndarray | None = None
    lowest: np.ndarray | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Population(Node):
    """The neurons of a site, which send whole numbers.

    Attributes:
        shape: of its neurons, [N] or [C, H, W].
        model: the neuron model of all of them, IF or LIF, with levels and reset.
        threshold, initial_potential, bias: V_th, v(0) and b; each a scalar, [C, 1, 1],
            or a number for every neuron.
        leak: factor on v before integration, of such a shape; None for IF.
        recurrent: the map from the spikes of these neurons to their own currents in the
            next step; None: they are not recurrent.
    """

    shape: Shape = field(metadata=STATIC)
    model: Any = field(metadata=STATIC)
    threshold: np.ndarray
    initial_potential: np.ndarray
    bias: np.ndarray
    leak: np.ndarray | None = None
    recurrent: "Dense | None" = None

    @property
    def is_leaky(self) -> bool:
        """Whether a neuron has a leak that changes something."""
        return self.leak is not None and bool((self.leak != 1).any())


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Output(Node):
    """Where a result leaves: ``unit`` times the sum of its sources and of a bias b.

    Attributes:
        shape: of the result, [N] or [C, H, W].
        bias: b; a scalar, [C, 1, 1], or a number for every element.
        unit: what a whole number stands for, of the shape of a bias; None: 1.
    """

    shape: Shape = field(metadata=STATIC)
    bias: np.ndarray
    unit: np.ndarray | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Convolution(Node):
    """A convolution of images, which pads them with zeros.

    Attributes:
        weight: [O, I / groups, rows, columns]; a depthwise convolution has as many
            groups as channels.
        bias: [O], or None for 0.
        size: rows and columns of its input.
        stride, dilation: along rows and columns.
        padding: zeros around the image, ((top, bottom), (left, right)).
        groups: of channels.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    size: Shape = field(metadata=STATIC)
    stride: Shape = field(metadata=STATIC, default=(1, 1))
    padding: tuple[Zeros, ...] = field(metadata=STATIC, default=((0, 0), (0, 0)))
    dilation: Shape = field(metadata=STATIC, default=(1, 1))
    groups: int = field(metadata=STATIC, default=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Dense(Node):
    """weight @ x + bias, x a vector [N], weight [M, N], bias [M] or None for 0."""

    weight: np.ndarray
    bias: np.ndarray | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Scale(Node):
    """weight * x + bias, element by element.

    Attributes:
        weight: a scalar, [C, 1, 1], or a number for every element.
        bias: [C] or [N], or None for 0.
        shape: of x, [N] or [C, H, W].
    """

    weight: np.ndarray
    bias: np.ndarray | None
    shape: Shape = field(metadata=STATIC)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SumPool(Node):
    """Sums over windows of an image.

    Attributes:
        window: rows and columns of a window.
        stride: along rows and columns.
        padding: zeros on either side of the rows, and on either side of the columns.
            Sums with unequal padding are a `Convolution` of ones.
    """

    window: Shape = field(metadata=STATIC)
    stride: Shape = field(metadata=STATIC)
    padding: Shape = field(metadata=STATIC, default=(0, 0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """An image of ``shape``, [C, H, W], becomes a vector."""

    shape: Shape = field(metadata=STATIC)


Affine = Convolution | Dense | Scale
Map = Affine | SumPool | Flatten
Receiver = Population | Output


class Connection(NamedTuple):
    """A way from a sender to a receiver.

    Attributes:
        sender: name of the input or of a population.
        receiver: name of a population or of an output.
        maps: the maps on the way, in their order; without maps, the receiver gets the
            spikes themselves.
    """

    sender: str
    receiver: str
    maps: "tuple[Map, ...]"

    @property
    def is_recurrent(self) -> bool:
        """Whether neurons send to themselves, in the next step."""
        return self.sender == self.receiver

    @property
    def fan_in(self) -> int:
        """How many elements of the sender a neuron of the receiver reads, at most."""
        count = 1
        # Each element that a neuron reads from a map reads so many from the one before.
        for node in self.maps:
            match node:
                case Convolution(weight=weight) | Dense(weight=weight):
                    count *= math.prod(weight.shape[1:])
                case SumPool(window=window):
                    count *= math.prod(window)
        return count

    def __str__(self) -> str:
        if self.is_recurrent:
            return f"{self.sender} > recurrent"
        return " > ".join([self.sender, *map(_description, self.maps)])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
@shown_as_table
class Layers:
    """A spiking network as a chip sees it; a pytree with NumPy arrays as leaves.

    ``print`` shows a table of the populations and outputs.

    Attributes:
        nodes: in order of execution. The first one is the `Input`.
        steps, wait, code: those of the SNN.
        arithmetic: how whole numbers are computed; None: the numbers are floats.
    """

    nodes: tuple[Node, ...]
    steps: int | None = field(metadata=STATIC, default=None)
    wait: int | None = field(metadata=STATIC, default=None)
    code: Code = field(metadata=STATIC, default=rate())
    arithmetic: Arithmetic | None = field(metadata=STATIC, default=None)

    @property
    def input(self) -> Input:
        """Where x enters."""
        (node,) = (node for node in self.nodes if isinstance(node, Input))
        return node

    @property
    def potential_unit(self) -> float:
        """T w_T: what 1 stands for in a potential of whole numbers.

        This is the size of a spike at the last step, see `Code.sizes`; 1 with rate
        coding, or without steps.
        """
        if not self.steps:
            return 1.0
        sizes = self.code.sizes(self.steps)
        return float(sizes[-1])

    @property
    def bias_unit(self) -> float:
        """What 1 stands for in a bias of whole numbers.

        A bias arrives in equal shares at the first n steps. Each share is a whole
        number in units of w_T, the weight of a spike at the last step, so the unit of
        the bias is n w_T. This is w_T where n = 1, and 1 with rate coding, where n = T
        and w_T = 1 / T, or without steps.
        """
        if not self.steps:
            return 1.0
        share = 1 / self.code.constant_steps(self.steps)  # of a bias at a step, 1 / n
        return self.code.finest(self.steps) / share

    @property
    def populations(self) -> tuple[Population, ...]:
        """The neurons, in order of execution."""
        return tuple(n for n in self.nodes if isinstance(n, Population))

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The readouts, in the order of the function's results."""
        return tuple(n for n in self.nodes if isinstance(n, Output))

    @property
    def receivers(self) -> tuple[Receiver, ...]:
        """The populations, then the outputs."""
        return (*self.populations, *self.outputs)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All connections, in the order of their receivers.

        The last connection of a recurrent population is that to itself.
        """
        nodes = {node.name: node for node in self.nodes}
        connections = []
        for receiver in self.receivers:
            name = receiver.name
            for source in receiver.sources:
                for sender, maps in _senders_and_maps(source, nodes):
                    connections.append(Connection(sender, name, maps))
            for recurrent in maps_to_itself(receiver):
                connections.append(Connection(name, name, (recurrent,)))
        return tuple(connections)

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        """The weights of all maps, those of recurrent populations last."""
        maps: list[Node] = [*self.nodes]
        for node in self.nodes:
            maps += maps_to_itself(node)
        return tuple(node.weight for node in maps if isinstance(node, Affine))

    def __repr__(self) -> str:
        count = sum(weight.size for weight in self.weights)
        weights = counted(count, "weight")
        if self.arithmetic is not None:
            weights += f" of {counted(self.arithmetic.weight_bits, 'bit')}"
        names = [population.name for population in self.populations]
        populations = counted(len(names), "population")
        return f"Layers({weights}, {populations}: {', '.join(names)})"

    def _table(self) -> Table:
        head = ("receiver", "shape", "fan-in", "weights", "threshold", "bias", "reads")
        rows: list[tuple[str, ...]] = [head]
        connections = self.connections
        for receiver in self.receivers:
            incoming = [way for way in connections if way.receiver == receiver.name]
            # A map that several connections share has its weights once.
            sizes = {}
            for connection in incoming:
                for node in connection.maps:
                    if isinstance(node, Affine):
                        sizes[node.name] = node.weight.size
            threshold = None
            if isinstance(receiver, Population):
                threshold = receiver.threshold
            row = (
                receiver.name,
                "x".join(map(str, receiver.shape)),
                str(sum(connection.fan_in for connection in incoming)),
                str(sum(sizes.values())),
                numbers(threshold),
                numbers(receiver.bias),
                " + ".join(map(str, incoming)),
            )
            rows.append(row)
        return Table(rows)


def _senders_and_maps(
    name: str, nodes: Mapping[str, Node]
) -> list[tuple[str, tuple[Map, ...]]]:
    """All ways on which something reaches the output of a node.

    Args:
        name: of the node.
        nodes: all nodes of the network by name.

    Returns:
        For each way the name of its sender and the maps from there, the node last if
        it is a map itself. A map that reads several nodes lies on as many ways.
    """
    node = nodes[name]
    if isinstance(node, Input | Population):
        return [(name, ())]
    assert isinstance(node, Map)
    ways = []
    for source in node.sources:
        for sender, maps in _senders_and_maps(source, nodes):
            ways.append((sender, (*maps, node)))
    return ways


def check_layers(layers: Any, kind: Literal["float", "whole"] | None = None) -> None:
    """Raise unless this is a `Layers` with numbers of this kind; None: of any kind."""
    float_layers = "float layers from snnjax.deploy.layers(fn, snn, x)"
    whole_layers = "whole numbers from snnjax.deploy.quantize(layers, images)"
    if isinstance(layers, Layers):
        layers_kind = "float" if layers.arithmetic is None else "whole"
        if kind in (None, layers_kind):
            _check_known(layers)
            return
        problem = f"of {layers_kind} numbers"
    else:
        problem = f"a {type(layers).__name__}"
    if kind == "float":
        allowed = float_layers
    elif kind == "whole":
        allowed = whole_layers
    else:
        allowed = f"{float_layers}, or {whole_layers}"
    raise ValueError(f"layers is {problem}; allowed: {allowed}")


def _check_known(layers: Layers) -> None:
    """Raise if numbers of layers are traced: NumPy computes with them."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(layers)):
        raise ValueError(
            "layers are traced; allowed: layers that a jitted function closes over, "
            "e.g. jax.jit(lambda x: run(layers, x).outputs)"
        )


def needed_nodes(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The input and the nodes on which an output depends, in order of execution."""
    needed_names = set()
    # From the last node on, since a node only reads earlier ones.
    for node in reversed(nodes):
        if isinstance(node, Input | Output) or node.name in needed_names:
            needed_names.add(node.name)
            needed_names.update(node.sources)
    return tuple(node for node in nodes if node.name in needed_names)


def maps_to_itself(node: Node) -> tuple[Dense, ...]:
    """The recurrent map of a population as a tuple, which is empty without one."""
    if isinstance(node, Population) and node.recurrent is not None:
        return (node.recurrent,)
    return ()


def count_readers(nodes: tuple[Node, ...]) -> Counter[str]:
    """The number of nodes that read the output of each node, by name."""
    counts: Counter[str] = Counter()
    for node in nodes:
        counts.update(node.sources)
    return counts


def _description(node: Map) -> str:
    """What a table calls a map."""
    match node:
        case Convolution(weight=weight, groups=groups):
            rows, columns = weight.shape[2:]
            if groups > 1:
                return f"convolution in {groups} groups {rows}x{columns}"
            return f"convolution {rows}x{columns}"
        case SumPool(window=(rows, columns)):
            return f"sum {rows}x{columns}"
    return type(node).__name__.lower()
