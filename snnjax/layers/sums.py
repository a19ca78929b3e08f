"""Variables of a captured network as sums of nodes, while its layers are built.

    variable = sum_i scale_i node_i + constant

A scale is multiplied into the weights that follow, or into those of the node itself. A
constant becomes the bias of the next population. BatchNorm and thresholds disappear in
this way. For example, the current of the neurons in

    relu(g * (x @ w) + b + x)        g a scale, b a bias

is the sum of the terms (g, "w") and (1, "input"), and its constant is b.
`Builder.received` multiplies the weights of "w" by g and returns both nodes and b.

``order`` says which element of the (flat) variable each element of a node is.
Transpose, reshape and flatten change the order and need no node.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from snnjax._trees import distinct
from snnjax.layers.values import (
    Affine,
    Convolution,
    Dense,
    Flatten,
    Node,
    Scale,
)
from snnjax.network.equations import Network, Values


class Term(NamedTuple):
    """``scale`` times a node's output, of a shape that broadcasts to it.

    ``owned``: no other term reads the node, so its weights may absorb the scale.
    """

    node: str
    scale: np.ndarray
    owned: bool


class Sum(NamedTuple):
    """A variable without its constant.

    Attributes:
        terms: outputs of nodes, all of one shape, [N] or [C, H, W].
        order: int, in that shape: the index of each element in the flat variable.
    """

    terms: tuple[Term, ...]
    order: np.ndarray


class NoLayer(Exception):
    """No layer computes an operation: the reason, and the remedy."""


class Graph:
    """Nodes by name, in order of execution, to which others are added.

    Attributes:
        nodes: name -> node.
        reserved: names that no new node may take.
    """

    def __init__(self, reserved: Collection[str]):
        self.nodes: dict[str, Any] = {}
        self.reserved = reserved

    def add(self, node: Node) -> str:
        """Add a node; return its name, made unique."""
        name = distinct([*self.reserved, *self.nodes, node.name])[-1]
        self.nodes[name] = dataclasses.replace(node, name=name)
        return name

    def scaled(
        self,
        name: str,
        factor: np.ndarray,
        shape: Sequence[int],
        path: str,
        *,
        owned: bool,
    ) -> str:
        """The name of a node whose output is ``factor`` times that of another.

        Args:
            name: of the other node.
            factor: see `compact`.
            shape: of the output.
            path: for the name of a new node.
            owned: whether nothing else reads the node, so that its weights may change.
        """
        if (factor == 1).all():
            return name
        node = self.nodes[name]
        if not (owned and isinstance(node, Affine) and is_channelwise(factor)):
            new = Scale(join(path, "scale"), (name,), factor, None, tuple(shape))
            return self.add(new)
        rows = np.broadcast_to(factor.ravel(), shape[:1])
        bias = None if node.bias is None else node.bias * rows
        if isinstance(node, Scale):
            weight = compact(node.weight * factor)
            if (weight == 1).all() and bias is None and len(node.sources) == 1:
                del self.nodes[name]
                return node.sources[0]
        else:
            weight = node.weight * rows.reshape(-1, *[1] * (node.weight.ndim - 1))
        self.nodes[name] = dataclasses.replace(node, weight=weight, bias=bias)
        return name

    def biased(
        self,
        names: Sequence[str],
        bias: np.ndarray,
        shape: Sequence[int],
        path: str,
        owned: Collection[str],
    ) -> list[str]:
        """Names of nodes whose outputs have the sum of those of ``names``, plus b.

        Args:
            names: of nodes whose outputs have this shape.
            bias: [C] or [N].
            shape: of the outputs.
            path: for the name of a new node.
            owned: names of nodes whose biases may change.
        """
        names = [*names]
        nodes = [self.nodes[name] for name in names if name in owned]
        weights = [n for n in nodes if isinstance(n, Convolution | Dense)]
        scales = [n for n in nodes if isinstance(n, Scale) and is_channelwise(n.weight)]
        node = next(iter([*weights, *scales]), None)
        if node is None:
            path, one = join(path, "bias"), np.ones(())
            names[0] = self.add(Scale(path, (names[0],), one, None, tuple(shape)))
            node = self.nodes[names[0]]
        bias = bias if node.bias is None else node.bias + bias
        self.nodes[node.name] = dataclasses.replace(node, bias=bias)
        return names


class Builder(Graph):
    """The nodes of a network, added equation by equation.

    Attributes:
        nodes, reserved: see `Graph`; also nodes that no output needs.
        values: variable -> its value while x is 0 and no neuron fires. That is the
            variable's constant, if it depends on x; the biases of its nodes are not
            part of it.
        sums: variable -> Sum, for variables that depend on x.
        uses: variable -> number of equations and outputs that read it.
    """

    def __init__(self, network: Network, values: Values):
        super().__init__([site.name for site in network.sites])
        self.network, self.values = network, dict(values)
        self.sums: dict[int, Sum] = {}
        reads = [v for eq in network.equations for v in eq.inputs]
        self.uses = Counter(v for v in [*reads, *network.outputs] if isinstance(v, int))

    def sum_of(self, v: int) -> Sum:
        """A variable's sum for one of its readers."""
        total = self.sums[v]
        if self.uses[v] == 1:
            return total
        return total._replace(terms=tuple(t._replace(owned=False) for t in total.terms))

    def received(self, v: int, path: str) -> tuple[tuple[str, ...], np.ndarray]:
        """Names of the nodes that sum to a variable, and its constant in their order.

        Args:
            v: a variable that depends on x.
            path: where in the network, for names.
        """
        total = self.sum_of(v)
        constant = numbers(self.values[v])[0].ravel()[total.order]
        names = tuple(
            self.scaled(t.node, t.scale, total.order.shape, path, owned=t.owned)
            for t in total.terms
        )
        return names, constant

    def absorb_constant(self, v: int, path: str) -> None:
        """Move the variable's constant into the biases of its nodes."""
        if numbers(self.values[v]).any():
            total = self.sum_of(v)
            names, constant = self.received(v, path)
            terms = zip(names, total.terms, strict=True)
            owned = {name for name, t in terms if t.owned or name != t.node}
            shape = total.order.shape
            names = self.biased(names, per_channel(constant), shape, path, owned)
            self.sums[v] = Sum(tuple(unscaled(name) for name in names), total.order)
            self.values[v] = np.zeros(self.network.avals[v].shape)

    def groups(self, total: Sum, path: str) -> list[tuple[list[str], np.ndarray]]:
        """Terms with equal scales together: names of nodes, and the scale, [] or [C].

        Scales that differ within a channel become nodes.
        """
        groups: list[tuple[list[str], np.ndarray]] = []
        shape = total.order.shape
        for name, scale, owned in total.terms:
            if not is_channelwise(scale):
                name = self.scaled(name, scale, shape, path, owned=owned)
                scale = np.ones(())
            same = [names for names, other in groups if np.array_equal(other, scale)]
            if same:
                same[0].append(name)
            else:
                groups.append(([name], scale))
        return groups

    def flatten(self, name: str, shape: Sequence[int]) -> str:
        """The name of a node that flattens another one."""
        for node in self.nodes.values():
            if isinstance(node, Flatten) and node.sources == (name,):
                return node.name
        return self.add(Flatten(join(name, "flatten"), (name,), tuple(shape)))


def unscaled(name: str, *, owned: bool = False) -> Term:
    """A node's output as it is."""
    return Term(name, np.ones(()), owned)


def times(total: Sum, factor: np.ndarray | float) -> Sum:
    """A sum times a constant that broadcasts to its nodes."""
    terms = tuple(t._replace(scale=compact(t.scale * factor)) for t in total.terms)
    return total._replace(terms=terms)


def compact(factor: Any) -> np.ndarray:
    """The same factor: a scalar if it is uniform, [C, 1, 1] if it is per channel."""
    factor = np.asarray(factor, np.float64)
    if factor.size and (factor == factor.flat[0]).all():
        return factor.flat[0] * np.ones(())
    if factor.ndim == 3 and (factor == factor[:, :1, :1]).all():
        return factor[:, :1, :1]
    return factor


def is_channelwise(factor: np.ndarray) -> bool:
    """Whether a factor is one number per channel, or one of a vector's elements."""
    return factor.ndim < 3 or factor.shape[1:] == (1, 1)


def per_channel(constant: np.ndarray) -> np.ndarray:
    """A constant [N] as it is, one of [C, H, W] as [C].

    Raises:
        NoLayer: it differs between the pixels of a channel.
    """
    if constant.ndim < 3:
        return constant
    channels = constant.mean(axis=(1, 2), keepdims=True)
    if (np.abs(constant - channels) > 1e-5 * np.abs(constant).max()).any():
        raise NoLayer(
            "its bias would differ between pixels, and a layer has one per channel",
            "use constants, thresholds and leaks per channel (also before a padded "
            "convolution)",
        )
    return channels[:, 0, 0]


def numbers(value: Any) -> np.ndarray:
    """An array in double precision, in which scales are multiplied."""
    return np.asarray(jax.device_get(value)).astype(np.float64)


def join(path: str, name: str) -> str:
    """A name below a path, which may be empty."""
    return f"{path}/{name}" if path else name


# ------------------------------------------------------------------------- orders


def flat_indices(shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """Flat indices of a variable, its ``axes`` in that order, all others of size 1."""
    index = np.arange(math.prod(shape)).reshape(tuple(shape))
    rest = [a for a in range(len(shape)) if a not in axes]
    return index.transpose(*axes, *rest).reshape([shape[a] for a in axes])


def image_axes(
    total: Sum,
    shape: Sequence[int],
    candidates: Iterable[tuple[int, ...]] | None = None,
) -> tuple[int, ...]:
    """The variable's axes that are the channels, rows and columns of its nodes.

    Args:
        total: the variable's sum.
        shape: of the variable, with its batch axis of size 1.
        candidates: choices of axes, the first that fits is taken; None: all.

    Raises:
        NoLayer: the nodes are vectors, or have none of these axes.
    """
    if total.order.ndim == 1:
        raise NoLayer(
            f"it needs an image, and {tuple(shape[1:])} is a vector here; no layer "
            "unflattens a vector",
            "keep [H, W, C] from the input to the last operation on images",
        )
    # The batch axis comes last, so that it replaces no other axis of size 1.
    every = [*itertools.permutations([*range(1, len(shape)), 0], 3)]

    def fits(axes: tuple[int, ...]) -> bool:
        sizes = tuple(shape[a] for a in axes)
        return sizes == total.order.shape and np.array_equal(
            flat_indices(shape, axes), total.order
        )

    axes = next(filter(fits, every if candidates is None else candidates), None)
    if axes is not None:
        return axes
    if any(map(fits, every)):
        raise NoLayer(
            f"its channels, rows and columns are other axes of {tuple(shape[1:])} than "
            "those of the images before it, and no layer transposes",
            "keep one order of axes, mix channels only, and pool height and width only",
        )
    raise NoLayer(
        f"the rows, columns or channels of {tuple(shape[1:])} were flipped or "
        "permuted, and no layer does that",
        "reorder the images before fn, or the weights instead of the activations",
    )
