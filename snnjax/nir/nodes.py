"""The parts of a NIR graph while it is put together, channels first.

    variable = sum_i scale_i node_i + constant

Every variable that depends on the input is such a sum of nodes' outputs. Scales wait
for the next weights (or go back into the last ones) and constants for the next neuron,
so that BatchNorm, biases and thresholds end in weights and biases. Of

    relu(g * (x @ w) + b + x)        g a scale, b a bias, x @ w the node "w"

the current is the sum of the terms (g, "w") and (1, "input"), and b is what it comes
to without input; feeding the neuron scales the weights of "w" by g, gives it the bias b
and draws a second edge, from "input". A permutation of elements (reshape, transpose,
flatten) makes no node: it only changes which element of the variable a node's element
is. ``rules.py`` reads equations, ``layers.py`` makes layers; of the package nir nothing
is needed here.
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
    """Sum over windows, or their average."""

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

    ``scale`` broadcasts to it; ``owned``: nothing else reads the node, so that the
    scale may go back into its weights.
    """

    node: str
    scale: np.ndarray
    owned: bool


class Symbol(NamedTuple):
    """A variable as a sum of terms.

    Attributes:
        terms: all of one shape, [N] or [C, H, W].
        order: int, in that shape: which element of the (flat) variable each is.
        carried: what the terms come to without any input, in the variable's shape;
            None: nothing.
    """

    terms: tuple[Term, ...]
    order: np.ndarray
    carried: np.ndarray | None = None


class NotInNIR(Exception):
    """NIR has no word for it: the reason, and the remedy."""


class Lowering:
    """The nodes of a captured network, as far as it was read.

    Attributes:
        nodes: name -> Conv, Dense, ... or whatever the caller adds.
        sources: name -> names of the nodes whose outputs it sums.
        values: variable -> its value while x is 0 and nothing spikes: parameters,
            constants, and the constants of all others.
        symbols: variable -> Symbol, of those that depend on the input.
    """

    def __init__(self, network: Network, values: Values):
        self.network, self.values = network, values
        self.nodes: dict[str, Any] = {}
        self.sources: dict[str, tuple[str, ...]] = {}
        self.symbols: dict[int, Symbol] = {}
        reads = [v for eq in network.equations for v in eq.inputs]
        self.uses = Counter(v for v in [*reads, *network.outputs] if isinstance(v, int))

    def add(self, name: str, node: Any, sources: Sequence[str]) -> str:
        """A new node; its name is made a word, and unique."""
        word = name = re.sub(r"\W+", "_", name).strip("_")
        count = itertools.count(1)
        while name in self.nodes:
            name = f"{word}_{next(count)}"
        self.nodes[name], self.sources[name] = node, tuple(sources)
        return name

    def symbol(self, v: int) -> Symbol:
        """A variable's symbol, for one of those that read it."""
        symbol = self.symbols[v]
        if self.uses[v] == 1:
            return symbol
        shared = tuple(term._replace(owned=False) for term in symbol.terms)
        return symbol._replace(terms=shared)

    def feed(self, v: int, factor: np.ndarray, more: np.ndarray, path: str):
        """Names of nodes that sum to ``factor * (v + more)``, and the symbol's order.

        Args:
            v: a variable that depends on the input.
            factor, more: broadcast to the variable's shape without its batch axis.
            path: where in the network, for names.
        """
        symbol = self.symbol(v)
        shape = self.network.avals[v].shape[1:]
        constant = numbers(self.values[v])[0] + more
        rounding = 1e-6 * np.abs(constant).max(initial=0)
        if symbol.carried is not None:
            constant = constant - symbol.carried[0]
        factor, constant = (
            np.broadcast_to(a, shape).ravel()[symbol.order] for a in (factor, constant)
        )
        bias = None
        if np.abs(constant).max(initial=0) > rounding:
            bias = _per_channel(factor, constant, 10 * rounding)
        return self._sum(symbol, compact(factor), bias, path), symbol.order

    def _sum(self, symbol: Symbol, factor, bias, path: str) -> list[str]:
        terms = [
            term._replace(scale=compact(term.scale * factor)) for term in symbol.terms
        ]
        names = [scaled(self, term, symbol.order.shape, path) for term in terms]
        if bias is None:
            return names
        able = [
            i
            for i, (name, term) in enumerate(zip(names, terms, strict=True))
            if isinstance(self.nodes[name], Conv | Dense)
            and (term.owned or name != term.node)
        ]
        if not able:
            names[0] = self._biased(names[0], symbol.order.shape, path)
        name = names[able[0] if able else 0]
        node = self.nodes[name]
        self.nodes[name] = node._replace(bias=node.bias + bias)
        return names

    def _biased(self, name: str, shape, path: str) -> str:
        """A node that passes another on and has a bias."""
        weight, sources = np.ones(shape[0]), (name,)
        node = self.nodes[name]
        if len(shape) == 1 and isinstance(node, Scale):
            weight, sources = node.factor, self.sources[name]
        if len(shape) == 1:
            new: Any = Dense(np.diag(weight), np.zeros(shape))
        else:
            new = pointwise(weight, shape)
        return self.add(join(path, "bias"), new, sources)

    def settled(self, v: int, symbol: Symbol, path: str) -> Symbol:
        """The same with its constant in its nodes."""
        names, order = self.feed(v, np.ones(()), np.zeros(()), path)
        terms = tuple(Term(name, np.ones(()), False) for name in names)
        return Symbol(terms, order, numbers(self.values[v]))


def times(symbol: Symbol, factor) -> Symbol:
    """A symbol times a constant that broadcasts to its nodes."""
    factor = compact(factor)
    terms = tuple(t._replace(scale=compact(t.scale * factor)) for t in symbol.terms)
    return symbol._replace(terms=terms)


def groups_of(lowering: Lowering, symbol: Symbol, path: str):
    """Terms of one scale together: names of nodes, and their scale per channel."""
    found: list[tuple[list[str], np.ndarray]] = []
    for term in symbol.terms:
        name, scale = term.node, term.scale
        if scale.ndim == 3 and scale.shape[1:] != (1, 1):
            name = scaled(lowering, term, symbol.order.shape, path)
            scale = np.ones(())
        same = [names for names, s in found if np.array_equal(s, scale)]
        if same:
            same[0].append(name)
        else:
            found.append(([name], scale))
    return found


def scaled(lowering: Lowering, term: Term, shape, path: str) -> str:
    """The name of a node whose output is the term."""
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


def pointwise(factor: np.ndarray, shape) -> Conv:
    """A 1x1 convolution that scales channels."""
    channels, *size = shape
    weight = factor[:, None, None, None]
    return Conv(weight, np.zeros(channels), tuple(size), groups=channels)


def layout(order: np.ndarray, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The axes of a variable that the axes of its nodes are; None if they are none."""
    axes = range(len(shape))
    # The batch axis comes last, so that it is taken for no other of size 1.
    for chosen in itertools.permutations([*axes[1:], 0], order.ndim):
        if all(shape[a] == n for a, n in zip(chosen, order.shape, strict=True)):
            if math.prod(shape) == order.size:
                if np.array_equal(ordered(shape, chosen), order):
                    return chosen
    return None


def ordered(shape, axes) -> np.ndarray:
    """Flat indices of a variable [.., of size 1], its axes ``axes`` in that order."""
    index = np.arange(math.prod(shape)).reshape(shape)
    rest = [a for a in range(len(shape)) if a not in axes]
    return index.transpose(*axes, *rest).reshape([shape[a] for a in axes])


def compact(factor) -> np.ndarray:
    """The same factor, [C, 1, 1] if it is one per channel, a scalar if it is one."""
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
            "a constant that differs from place to place is added: NIR's biases are "
            "one per channel",
            "add constants per channel (also before a padded convolution)",
        )
    return channels[:, 0, 0]


def numbers(value) -> np.ndarray:
    """An array in double precision, in which scales are multiplied."""
    return np.asarray(jax.device_get(value)).astype(np.float64)


def join(path: str, name: str) -> str:
    """A name below a path, which may be empty."""
    return f"{path}/{name}" if path else name
