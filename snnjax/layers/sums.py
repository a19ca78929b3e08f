"""Variables of a captured network as sums of nodes, while the graph is built.

    variable = sum_i scale_i node_i + constant

A scale is multiplied into the weights that follow, or into those of the node itself. A
constant becomes the bias of a layer before the next neuron. Biases, BatchNorm and
thresholds disappear in this way. For example, the current of the neurons in

    relu(g * (x @ w) + b + x)        g a scale, b a bias

is the sum of the terms (g, "w") and (1, "input"), and its constant is b. `Builder.feed`
multiplies the weights of "w" by g, gives "w" the bias b and returns both nodes.

``order`` says which element of the (flat) variable each element of a node is.
Transpose, reshape and flatten change the order and need no node.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from snnjax.network.equations import Network, Values
from snnjax.layers.values import Conv, Dense, Flatten, Node, Pool, Scale


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
    """NIR has no node for an operation: the reason, and the remedy."""


class Builder:
    """The nodes of a network, added equation by equation.

    Attributes:
        nodes, sources: see `Graph`; also nodes that no output needs.
        values: variable -> its value while x is 0 and no neuron fires. That is the
            variable's constant, if it depends on x; the biases of its nodes are not
            part of it.
        sums: variable -> Sum, for variables that depend on x.
        uses: variable -> number of equations and outputs that read it.
    """

    def __init__(self, network: Network, values: Values):
        self.network, self.values = network, dict(values)
        self.nodes: dict[str, Node] = {}
        self.sources: dict[str, tuple[str, ...]] = {}
        self.sums: dict[int, Sum] = {}
        reads = [v for eq in network.equations for v in eq.inputs]
        self.uses = Counter(v for v in [*reads, *network.outputs] if isinstance(v, int))

    def add(self, name: str, node: Node, sources: Sequence[str]) -> str:
        """Add a node; return its name, made unique and free of punctuation."""
        word = name = re.sub(r"\W+", "_", name).strip("_")
        count = itertools.count(1)
        while name in self.nodes:
            name = f"{word}_{next(count)}"
        self.nodes[name], self.sources[name] = node, tuple(sources)
        return name

    def sum_of(self, v: int) -> Sum:
        """A variable's sum for one of its readers."""
        total = self.sums[v]
        if self.uses[v] == 1:
            return total
        return total._replace(terms=tuple(t._replace(owned=False) for t in total.terms))

    def feed(
        self, v: int, factor: np.ndarray, bias: np.ndarray, path: str
    ) -> tuple[list[str], np.ndarray]:
        """Names of nodes that sum to ``factor * (v + bias)``, and their order.

        Args:
            v: a variable that depends on x.
            factor, bias: broadcast to the variable's shape without its batch axis.
            path: where in the network, for names.
        """
        total, shape = self.sum_of(v), self.network.avals[v].shape[1:]
        constant = numbers(self.values[v])[0] + bias
        factor, constant = (
            np.broadcast_to(a, shape).ravel()[total.order] for a in (factor, constant)
        )
        terms = times(total, factor).terms
        names = [self.scaled(term, total.order.shape, path) for term in terms]
        if constant.any():
            bias = _per_channel(factor, constant)
            self._add_bias(names, terms, bias, total.order.shape, path)
        return names, total.order

    def absorb_constant(self, v: int, path: str) -> None:
        """Move the variable's constant into the biases of its nodes."""
        if numbers(self.values[v]).any():
            names, order = self.feed(v, np.ones(()), np.zeros(()), path)
            self.sums[v] = Sum(tuple(unscaled(name) for name in names), order)
            self.values[v] = np.zeros(self.network.avals[v].shape)

    def scaled(self, term: Term, shape: Sequence[int], path: str) -> str:
        """The name of a node whose output is the term, its scale included."""
        node, scale = self.nodes[term.node], term.scale
        if (scale == 1).all():
            return term.node
        channelwise = scale.ndim < 3 or scale.shape[1:] == (1, 1)
        if term.owned and isinstance(node, Conv | Dense) and channelwise:
            factor = np.broadcast_to(scale.ravel(), node.bias.shape)
            factor = factor.reshape(-1, *[1] * (node.weight.ndim - 1))
            self.nodes[term.node] = node._replace(weight=node.weight * factor)
            return term.node
        if term.owned and isinstance(node, Pool) and scale.size == 1:
            if abs(scale.item() * math.prod(node.window) - 1) < 1e-6:
                self.nodes[term.node] = node._replace(average=True)
                return term.node
        if len(shape) == 3 and channelwise:
            new: Node = _pointwise(np.broadcast_to(scale.ravel(), shape[:1]), shape)
        else:
            new = Scale(np.array(np.broadcast_to(scale, shape)))
        return self.add(join(path, "scale"), new, [term.node])

    def groups(self, total: Sum, path: str) -> list[tuple[list[str], np.ndarray]]:
        """Terms with equal scales together: names of nodes, and the scale, [] or [C].

        Scales that differ within a channel become nodes.
        """
        groups: list[tuple[list[str], np.ndarray]] = []
        for term in total.terms:
            name, scale = term.node, term.scale
            if scale.ndim == 3 and scale.shape[1:] != (1, 1):
                name, scale = self.scaled(term, total.order.shape, path), np.ones(())
            same = [names for names, other in groups if np.array_equal(other, scale)]
            if same:
                same[0].append(name)
            else:
                groups.append(([name], scale))
        return groups

    def flatten(self, name: str, shape: Sequence[int]) -> str:
        """The name of a node that flattens another one."""
        for other, sources in self.sources.items():
            if sources == (name,) and isinstance(self.nodes[other], Flatten):
                return other
        return self.add(f"{name}/flatten", Flatten(tuple(shape)), [name])

    def _add_bias(
        self,
        names: list[str],
        terms: Sequence[Term],
        bias: np.ndarray,
        shape: Sequence[int],
        path: str,
    ) -> None:
        """Add the bias to one of the nodes, or to a new layer behind the first."""
        can_have_bias = (
            name
            for name, term in zip(names, terms, strict=True)
            if isinstance(self.nodes[name], Conv | Dense)
            and (term.owned or name != term.node)
        )
        name = next(can_have_bias, None)
        if name is None:
            size = len(bias)
            copy: Node = Dense(np.eye(size), np.zeros(size))
            if len(shape) == 3:
                copy = _pointwise(np.ones(size), shape)
            name = names[0] = self.add(join(path, "bias"), copy, [names[0]])
        node = self.nodes[name]
        assert isinstance(node, Conv | Dense)
        self.nodes[name] = node._replace(bias=node.bias + bias)


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
            f"it needs an image, and {tuple(shape[1:])} is a vector in NIR, which has "
            "no node that unflattens",
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
            "those of the images before it, and NIR cannot transpose",
            "keep one order of axes, mix channels only, and pool height and width only",
        )
    raise NoLayer(
        f"the rows, columns or channels of {tuple(shape[1:])} were flipped or "
        "permuted, and NIR has no node for that",
        "reorder the images before fn, or the weights instead of the activations",
    )


# ------------------------------------------------------------------------ helpers


def _pointwise(factor: np.ndarray, shape: Sequence[int]) -> Conv:
    """A 1x1 convolution that scales channels."""
    channels, *size = shape
    weight = factor[:, None, None, None]
    return Conv(weight, np.zeros(channels), tuple(size), groups=channels)


def _per_channel(factor: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """The bias ``factor * constant``, [N] or [C]."""
    product = factor * constant
    if constant.ndim < 3:
        return product
    channels = product.mean(axis=(1, 2), keepdims=True)
    rounding = 1e-5 * np.abs(factor) * np.abs(constant).max()
    if (np.abs(product - channels) > rounding).any():
        raise NoLayer(
            "its bias would differ between pixels, and NIR has one bias per channel",
            "use constants, thresholds and leaks per channel (also before a padded "
            "convolution)",
        )
    return channels[:, 0, 0]
