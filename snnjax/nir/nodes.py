"""The parts of a NIR graph while `to_nir` builds it, channels first.

    variable = sum_i scale_i node_i + constant

Every variable that depends on the input is such a sum of nodes' outputs. A scale is
multiplied into the next weights, or back into the last ones; a constant is added at the
next neuron. So BatchNorm, biases and thresholds become weights and biases. In

    relu(g * (x @ w) + b + x)        g a scale, b a bias, x @ w the node "w"

the current is the sum of the terms (g, "w") and (1, "input"), and its constant is b.
`Lowering.feed` multiplies the weights of "w" by g, gives it the bias b and adds a
second edge, from "input". A permutation of elements (reshape, transpose, flatten) makes
no node: it changes the order of the symbol (``orders.py``). ``rules.py`` and
``layer_rules.py`` read equations, ``layers.py`` makes layers; this module does not need
the package nir.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from snnjax.network.equations import Network, Values


class Conv(NamedTuple):
    """2-D convolution, weight [O, I / groups, K, K], padded alike on both sides."""

    weight: np.ndarray
    bias: np.ndarray
    size: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1


class Dense(NamedTuple):
    """weight @ x + bias of a vector."""

    weight: np.ndarray
    bias: np.ndarray


class Pool(NamedTuple):
    """Sum over windows, or average."""

    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] = (0, 0)
    average: bool = False


class Scale(NamedTuple):
    """x times a factor of its own shape."""

    factor: np.ndarray


class Flatten(NamedTuple):
    """[C, H, W] to a vector."""

    shape: tuple[int, ...]


class Term(NamedTuple):
    """``scale`` times a node's output.

    ``scale`` broadcasts to it; ``owned``: nothing else reads the node, so its weights
    may absorb the scale.
    """

    node: str
    scale: np.ndarray
    owned: bool


class Symbol(NamedTuple):
    """A variable as a sum of terms.

    Attributes:
        terms: all of one shape, [N] or [C, H, W].
        order: int, in that shape: which element of the (flat) variable each is.
        offset: the sum of the terms at zero input without spikes, in the variable's
            shape; it is the part of the constant that biases of nodes already add.
            None: zero.
    """

    terms: tuple[Term, ...]
    order: np.ndarray
    offset: np.ndarray | None = None


class NotInNIR(Exception):
    """NIR has no node for an operation: the reason, and the remedy."""


class Lowering:
    """The nodes of a captured network; rules add to them equation by equation.

    Attributes:
        nodes: name -> Conv, Dense, ... or other nodes of the caller's.
        sources: name -> names of the nodes whose outputs it sums.
        values: variable -> its value while x is 0 and no neuron fires.
        symbols: variable -> Symbol, for variables that depend on the input.
        uses: variable -> how many equations and outputs read it.
    """

    def __init__(self, network: Network, values: Values):
        self.network, self.values = network, values
        self.nodes: dict[str, Any] = {}
        self.sources: dict[str, tuple[str, ...]] = {}
        self.symbols: dict[int, Symbol] = {}
        reads = [v for eq in network.equations for v in eq.inputs]
        self.uses = Counter(v for v in [*reads, *network.outputs] if isinstance(v, int))

    def add(self, name: str, node: Any, sources: Sequence[str]) -> str:
        """Add a node; return its name, made unique and free of punctuation."""
        word = name = re.sub(r"\W+", "_", name).strip("_")
        count = itertools.count(1)
        while name in self.nodes:
            name = f"{word}_{next(count)}"
        self.nodes[name], self.sources[name] = node, tuple(sources)
        return name

    def symbol(self, v: int) -> Symbol:
        """A variable's symbol, for one of its readers."""
        symbol = self.symbols[v]
        if self.uses[v] == 1:
            return symbol
        shared = tuple(term._replace(owned=False) for term in symbol.terms)
        return symbol._replace(terms=shared)

    def feed(
        self, v: int, factor: np.ndarray, more: np.ndarray, path: str
    ) -> tuple[list[str], np.ndarray]:
        """Names of nodes that sum to ``factor * (v + more)``, and their order.

        Args:
            v: a variable that depends on the input.
            factor, more: broadcast to the variable's shape without its batch axis.
            path: where in the network, for names.
        """
        symbol = self.symbol(v)
        shape = self.network.avals[v].shape[1:]
        constant = numbers(self.values[v])[0] + more
        rounding = 1e-6 * np.abs(constant).max(initial=0)
        if symbol.offset is not None:
            constant = constant - symbol.offset[0]
        has_bias = np.abs(constant).max(initial=0) > rounding
        if has_bias and symbol.order.ndim not in (1, 3):
            symbol = self._as_vector(symbol)
        factor, constant = (
            np.broadcast_to(a, shape).ravel()[symbol.order] for a in (factor, constant)
        )
        bias = _per_channel(factor, constant, 10 * rounding) if has_bias else None
        return self._sum(symbol, compact(factor), bias, path), symbol.order

    def flatten(self, name: str, shape: Sequence[int]) -> str:
        """The name of a node that flattens another one."""
        for other, sources in self.sources.items():
            if sources == (name,) and isinstance(self.nodes[other], Flatten):
                return other
        return self.add(f"{name}/flatten", Flatten(tuple(shape)), [name])

    def _as_vector(self, symbol: Symbol) -> Symbol:
        """Nodes of two or four axes, flattened, since NIR has no biases for them."""
        shape = symbol.order.shape
        terms = tuple(
            Term(
                self.flatten(term.node, shape),
                np.broadcast_to(term.scale, shape).ravel(),
                False,
            )
            for term in symbol.terms
        )
        return symbol._replace(terms=terms, order=symbol.order.ravel())

    def _sum(
        self, symbol: Symbol, factor: np.ndarray, bias: np.ndarray | None, path: str
    ) -> list[str]:
        """Names of nodes that sum to ``factor * symbol + bias``."""
        terms = [
            term._replace(scale=compact(term.scale * factor)) for term in symbol.terms
        ]
        names = [scale_node(self, term, symbol.order.shape, path) for term in terms]
        if bias is None:
            return names
        name = next(
            (
                name
                for name, term in zip(names, terms, strict=True)
                if isinstance(self.nodes[name], Conv | Dense)
                and (term.owned or name != term.node)
            ),
            None,
        )
        if name is None:
            name = names[0] = self._add_biased(names[0], symbol.order.shape, path)
        node = self.nodes[name]
        self.nodes[name] = node._replace(bias=node.bias + bias)
        return names

    def _add_biased(self, name: str, shape: Sequence[int], path: str) -> str:
        """Add a node that repeats another one and can have a bias."""
        weight, sources = np.ones(shape[0]), (name,)
        node = self.nodes[name]
        if len(shape) == 1 and isinstance(node, Scale):
            weight, sources = node.factor, self.sources[name]
        if len(shape) == 1:
            new: Any = Dense(np.diag(weight), np.zeros(shape))
        else:
            new = pointwise(weight, shape)
        return self.add(join(path, "bias"), new, sources)

    def absorb_constant(self, v: int, path: str) -> Symbol:
        """The variable's symbol with its constant in the biases of its nodes."""
        names, order = self.feed(v, np.ones(()), np.zeros(()), path)
        terms = tuple(Term(name, np.ones(()), False) for name in names)
        return Symbol(terms, order, numbers(self.values[v]))


def times(symbol: Symbol, factor: np.ndarray | float) -> Symbol:
    """A symbol times a constant that broadcasts to its nodes."""
    terms = tuple(t._replace(scale=compact(t.scale * factor)) for t in symbol.terms)
    return symbol._replace(terms=terms)


def group_terms(
    lowering: Lowering, symbol: Symbol, path: str
) -> list[tuple[list[str], np.ndarray]]:
    """Terms with the same scale together: names of nodes, and the scale per channel."""
    groups: list[tuple[list[str], np.ndarray]] = []
    for term in symbol.terms:
        name, scale = term.node, term.scale
        if scale.ndim == 3 and scale.shape[1:] != (1, 1):
            name = scale_node(lowering, term, symbol.order.shape, path)
            scale = np.ones(())
        same = [names for names, s in groups if np.array_equal(s, scale)]
        if same:
            same[0].append(name)
        else:
            groups.append(([name], scale))
    return groups


def scale_node(lowering: Lowering, term: Term, shape: Sequence[int], path: str) -> str:
    """The name of a node whose output is the term, its scale included."""
    node, scale = lowering.nodes[term.node], term.scale
    if (scale == 1).all():
        return term.node
    uniform, channelwise = scale.size == 1, scale.ndim < 3 or scale.shape[1:] == (1, 1)
    if term.owned and isinstance(node, Conv | Dense) and channelwise:
        factor = np.broadcast_to(scale.ravel(), node.bias.shape)
        weight = node.weight * factor.reshape(-1, *[1] * (node.weight.ndim - 1))
        lowering.nodes[term.node] = node._replace(weight=weight)
        return term.node
    if term.owned and isinstance(node, Pool) and uniform and not node.average:
        if abs(scale.item() * math.prod(node.window) - 1) < 1e-6:
            lowering.nodes[term.node] = node._replace(average=True)
            return term.node
    if len(shape) == 3 and channelwise:
        factor = np.broadcast_to(scale.ravel(), shape[:1])
        new: Any = pointwise(factor, shape)
    else:
        new = Scale(np.array(np.broadcast_to(scale, shape)))
    return lowering.add(join(path, "scale"), new, [term.node])


def pointwise(factor: np.ndarray, shape: Sequence[int]) -> Conv:
    """A 1x1 convolution that scales channels."""
    channels, *size = shape
    weight = factor[:, None, None, None]
    return Conv(weight, np.zeros(channels), tuple(size), groups=channels)


def compact(factor: Any) -> np.ndarray:
    """The same factor: a scalar if it is uniform, [C, 1, 1] if it is per channel."""
    factor = np.asarray(factor, np.float64)
    if factor.size and (factor == factor.flat[0]).all():
        return factor.flat[0] * np.ones(())
    if factor.ndim == 3 and (factor == factor[:, :1, :1]).all():
        return factor[:, :1, :1]
    return factor


def _per_channel(factor: np.ndarray, constant: np.ndarray, rounding: float):
    """The bias ``factor * constant``, [N] or [C]."""
    if constant.ndim < 3:
        return factor * constant
    product = factor * constant
    channels = product.mean(axis=(1, 2), keepdims=True)
    if (np.abs(product - channels) > np.abs(factor) * rounding).any():
        raise NotInNIR(
            "its bias would differ from place to place: NIR has one bias per channel",
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
