"""A network of layers as values: populations of neurons, and the maps between them.

    current_j = sum_i w_ji s_i + b_j

s_i are the elements of x or the levels of spikes, whole numbers: the thresholds of the
neurons that sent them are factors of w. A node reads the sum of the outputs of its
sources, each a vector [N] or an image [C, H, W]. Arrays are NumPy's, in double
precision, and broadcast to that shape.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import check_choice
from snnjax._ranges import Range
from snnjax._text import Table, numbers, shown_as_table
from snnjax.codes import Code, rate

STATIC = {"static": True}  # marks fields that are structure, no arrays
_NO_SHIFT = 30  # bits: a neuron that does not leak beside others that do


@dataclass(frozen=True)
class Leak:
    """How a chip rounds what a leak leaves of a potential.

        "factor"   v <- sign(v) floor(|v| n / 2^bits)    n = round(leak 2^bits)
        "shift"    v <- v - floor(v / 2^n)               n = round(-log2(1 - leak)) >= 1

    Attributes:
        form: one of these.
        bits: of a factor, 1 .. 14.
        fraction: bits of a potential below a unit of the weights, 0 .. 8.

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
        """n of each neuron."""
        if self.form == "factor":
            n = np.clip(leak * 2**self.bits, 1, 2**self.bits)
        else:
            n = np.maximum(-np.log2(np.maximum(1 - leak, 2.0**-_NO_SHIFT)), 1)
        return np.rint(n).astype(np.int64)

    def rounded(self, leak: np.ndarray) -> np.ndarray:
        """The factors of these n."""
        n = self.whole(leak)
        return n / 2**self.bits if self.form == "factor" else 1 - 2.0**-n

    def left(self, v: jax.Array, n: Any) -> jax.Array:
        """What is left of whole potentials, int32."""
        if self.form == "shift":
            return v - jnp.where(n < _NO_SHIFT, v >> n, 0)
        # |v| n may need more than 32 bits, its halves do not.
        size, low = abs(v), (1 << self.bits) - 1
        return jnp.sign(v) * ((size >> self.bits) * n + ((size & low) * n >> self.bits))


@dataclass(frozen=True)
class Arithmetic:
    """How a chip computes a network of whole numbers, see `snnjax.deploy.quantize`.

    Attributes:
        weight_bits: largest number of bits of a weight, its sign included, 1 .. 24.
        input_bits: of an element of x, 2 .. 24.
        state_bits: of a membrane potential, 4 .. 30.
        overflow: what happens to a potential outside of its bits: "saturate" or "wrap".
        leak: how leaks are rounded; None: no neuron has one.
    """

    weight_bits: int
    input_bits: int
    state_bits: int
    overflow: Literal["saturate", "wrap"]
    leak: Leak | None = None

    def __post_init__(self):
        limits = {"weight_bits": (1, 24), "input_bits": (2, 24), "state_bits": (4, 30)}
        for name, (least, most) in limits.items():
            Range(least, most, whole=True).check(name, getattr(self, name))
        check_choice("overflow", self.overflow, ("saturate", "wrap"))
        if not isinstance(self.leak, Leak | None):
            raise ValueError(
                f"leak is {self.leak!r}; allowed: a Leak, e.g. "
                'snnjax.deploy.Leak("factor", bits=12), or None'
            )

    @property
    def largest_input(self) -> int:
        """2^(bits - 1) - 1, the largest whole number of x."""
        return 2 ** (self.input_bits - 1) - 1


# Nodes hold arrays, for which == has no single answer: they are compared by identity.
@dataclass(frozen=True, eq=False)
class Node:
    """What all nodes have.

    Attributes:
        name: unique; that of a population is the name of its site.
        sources: names of the nodes whose outputs it sums.
    """

    name: str = field(metadata=STATIC)
    sources: tuple[str, ...] = field(metadata=STATIC)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Input(Node):
    """Where x enters, with its shape: [C, H, W] of an image [H, W, C].

    Attributes:
        unit: what a whole number stands for, x is about unit n; None: x is not rounded.
    """

    shape: tuple[int, ...] = field(metadata=STATIC)
    unit: np.ndarray | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Population(Node):
    """The neurons of a site, which send whole numbers.

    Attributes:
        shape: of its neurons.
        model: their model, with levels and reset.
        threshold, initial_potential, bias: V_th, v(0) and b; scalar, [C, 1, 1] or of
            every neuron.
        leak: factor on v before integration; None for IF.
        recurrent: a map of what its own neurons sent in the step before; None: none.
    """

    shape: tuple[int, ...] = field(metadata=STATIC)
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
    """Where a result leaves: ``unit`` times the sum of what arrives and b.

    Attributes:
        shape: of the result.
        bias: b; scalar, [C, 1, 1] or of every element.
        unit: what a whole number stands for, of the shape of a bias; None: 1.
    """

    shape: tuple[int, ...] = field(metadata=STATIC)
    bias: np.ndarray
    unit: np.ndarray | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Convolution(Node):
    """A convolution of images, which pads them with zeros.

    Attributes:
        weight: [O, I / groups, rows, columns]; a depthwise convolution has as many
            groups as channels.
        bias: [O].
        size: rows and columns of its input.
        stride, dilation: along rows and columns.
        padding: zeros around the image, ((top, bottom), (left, right)).
        groups: of channels.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    size: tuple[int, ...] = field(metadata=STATIC)
    stride: tuple[int, ...] = field(metadata=STATIC, default=(1, 1))
    padding: tuple[tuple[int, int], ...] = field(
        metadata=STATIC, default=((0, 0), (0, 0))
    )
    dilation: tuple[int, ...] = field(metadata=STATIC, default=(1, 1))
    groups: int = field(metadata=STATIC, default=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Dense(Node):
    """weight @ x + bias, x a vector [N], weight [M, N]."""

    weight: np.ndarray
    bias: np.ndarray | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Scale(Node):
    """weight * x + bias, number by number; ``bias`` is [C] or [N]."""

    weight: np.ndarray
    bias: np.ndarray | None
    shape: tuple[int, ...] = field(metadata=STATIC)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SumPool(Node):
    """Sums over windows of rows and columns.

    ``padding`` counts the zeros on both sides of each axis. Sums with unequal padding
    are a `Convolution` of ones.
    """

    window: tuple[int, ...] = field(metadata=STATIC)
    stride: tuple[int, ...] = field(metadata=STATIC)
    padding: tuple[int, ...] = field(metadata=STATIC, default=(0, 0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """An array of this shape becomes a vector."""

    shape: tuple[int, ...] = field(metadata=STATIC)


Affine = Convolution | Dense | Scale
Map = Affine | SumPool | Flatten
Receiver = Population | Output


class Connection(NamedTuple):
    """All ways of one kind from a sender to a receiver.

    Attributes:
        sender: the input or a population.
        receiver: a population or an output.
        maps: what happens on the way, one after the other; none: the spikes themselves.
    """

    sender: str
    receiver: str
    maps: tuple[Map, ...]

    @property
    def is_own(self) -> bool:
        """Whether it is that of recurrent neurons, to themselves in the next step."""
        return self.sender == self.receiver

    @property
    def fan_in(self) -> int:
        """How many numbers of the sender reach one of the receiver, at most."""
        total = 1
        for node in self.maps:
            match node:
                case Convolution(weight=weight) | Dense(weight=weight):
                    total *= math.prod(weight.shape[1:])
                case SumPool(window=window):
                    total *= math.prod(window)
        return total

    def __str__(self) -> str:
        kinds = ["recurrent"] if self.is_own else map(_described, self.maps)
        return " > ".join([self.sender, *kinds])


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
        """T w_T: what one unit of a whole potential stands for; 1 with rate coding."""
        return float(self.code.sizes(self.steps)[-1]) if self.steps else 1.0

    @property
    def bias_unit(self) -> float:
        """What one unit of a whole bias stands for: w_T if it arrives once, or 1."""
        if not self.steps:
            return 1.0
        # A share of a bias arrives in units of w_T, that of the last spike.
        share = 1 / self.code.constant_steps(self.steps)
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
        """All connections, in the order of their receivers; that to itself is last."""
        nodes = {node.name: node for node in self.nodes}

        # Backwards from a receiver to the first neurons: a sum of several nodes on the
        # way makes as many connections.
        def ways(name: str) -> list[tuple[str, tuple[Any, ...]]]:
            node = nodes[name]
            if isinstance(node, Input | Population):
                return [(name, ())]
            before = [way for source in node.sources for way in ways(source)]
            return [(sender, (*maps, node)) for sender, maps in before]

        found = []
        for node in self.receivers:
            own = [way for source in node.sources for way in ways(source)]
            own += [(node.name, (recurrent,)) for recurrent in maps_to_itself(node)]
            found += [Connection(sender, node.name, maps) for sender, maps in own]
        return tuple(found)

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        """Those of all maps that have some."""
        own = [m for node in self.nodes for m in maps_to_itself(node)]
        return tuple(n.weight for n in (*self.nodes, *own) if isinstance(n, Affine))

    def __repr__(self) -> str:
        weights = sum(weight.size for weight in self.weights)
        names = [population.name for population in self.populations]
        whole = self.arithmetic
        bits = f" of {whole.weight_bits} bits" if whole is not None else ""
        sites = f"{len(names)} populations: {', '.join(names)}"
        return f"Layers({weights} weights{bits}, {sites})"

    def _table(self) -> Table:
        head = ("receiver", "shape", "fan-in", "weights", "threshold", "bias", "reads")
        rows: list[tuple[str, ...]] = [head]
        incoming = self.connections
        for node in self.receivers:
            ways = [way for way in incoming if way.receiver == node.name]
            # A map that lies on several ways has its weights once.
            maps = {m.name: m for way in ways for m in way.maps}.values()
            weights = sum(m.weight.size for m in maps if isinstance(m, Affine))
            threshold = node.threshold if isinstance(node, Population) else None
            rows.append(
                (
                    node.name,
                    "x".join(map(str, node.shape)),
                    str(sum(way.fan_in for way in ways)),
                    str(weights),
                    numbers(threshold),
                    numbers(node.bias),
                    " + ".join(map(str, ways)),
                )
            )
        return Table(rows)


def check_layers(layers: Any, kind: Literal["float", "whole"] | None = None) -> None:
    """Raise unless these are layers, of floats or of whole numbers as ``kind`` says."""
    sources = {
        "float": "float layers from snnjax.deploy.layers(fn, snn, x)",
        "whole": "whole numbers from snnjax.deploy.quantize(layers, images)",
    }
    given_kind = f"a {type(layers).__name__}"
    if isinstance(layers, Layers):
        own_kind = "float" if layers.arithmetic is None else "whole"
        if kind in (None, own_kind):
            return
        given_kind = f"of {own_kind} numbers"
    allowed = sources[kind] if kind else ", or ".join(sources.values())
    raise ValueError(f"layers is {given_kind}; allowed: {allowed}")


def needed(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The input and what an output depends on, of nodes in order of execution."""
    names = {node.name for node in nodes if isinstance(node, Input | Output)}
    for node in reversed(nodes):
        if node.name in names:
            names.update(node.sources)
    return tuple(node for node in nodes if node.name in names)


def maps_to_itself(node: Node) -> tuple[Dense, ...]:
    """The recurrent map of a population, if it has one; () of other nodes."""
    recurrent = getattr(node, "recurrent", None)
    return () if recurrent is None else (recurrent,)


def readers(nodes: tuple[Node, ...]) -> Counter[str]:
    """Name -> how many nodes read its output."""
    return Counter(source for node in nodes for source in node.sources)


def _described(node: Map) -> str:
    match node:
        case Convolution(weight=weight, groups=groups):
            kind = "convolution" if groups == 1 else f"convolution in {groups} groups"
            return f"{kind} {weight.shape[2]}x{weight.shape[3]}"
        case SumPool(window=window):
            return f"sum {window[0]}x{window[1]}"
    return type(node).__name__.lower()
