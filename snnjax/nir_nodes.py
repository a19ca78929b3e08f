"""Affine equations as nodes of NIR: what stands between two sites, channels first.

    variable = sum_i scale_i node_i + constant

Every variable that depends on the input is such a sum of nodes' outputs. Scales wait
until the next weights (or go back into the last ones) and constants until the next
neuron, so BatchNorm, biases and thresholds end in weights and biases. A permutation of
elements (reshape, transpose, flatten) makes no node: it only changes which element of
the variable a node's element is. Of the NIR package nothing is needed here.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax.network import (
    Equation,
    Network,
    Values,
    evaluate,
    identity,
    read,
    variables,
)


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


class Unsaid(Exception):
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
        numbers = itertools.count(1)
        while name in self.nodes:
            name = f"{word}_{next(numbers)}"
        self.nodes[name], self.sources[name] = node, tuple(sources)
        return name

    def symbol(self, v: int) -> Symbol:
        """A variable's symbol, for one of those that read it."""
        symbol = self.symbols[v]
        if self.uses[v] == 1:
            return symbol
        shared = tuple(term._replace(owned=False) for term in symbol.terms)
        return symbol._replace(terms=shared)

    def lower(self, equation: Equation) -> None:
        """Add the symbols of an equation's outputs, with the nodes that they need.

        Raises:
            Unsaid: NIR cannot say it.
        """
        name = equation.primitive.name
        if name in _UNCHANGED:
            made = [self.symbol(_operand(self, equation))]
        elif name in _MOVES:
            made = _move(self, equation)
        elif name in _LOWERINGS:
            made = [_LOWERINGS[name](self, equation)]
        else:
            raise Unsaid(
                "NIR has no node for it",
                "use convolutions, matrix products, sums, scales, sum and average "
                "pooling, flatten",
            )
        self.symbols.update(zip(equation.outputs, made, strict=True))

    def feed(self, v: int, factor: np.ndarray, more: np.ndarray, path: str):
        """Names of nodes that sum to ``factor * (v + more)``, and the symbol's order.

        Args:
            v: a variable that depends on the input.
            factor, more: broadcast to the variable's shape without its batch axis.
            path: where in the network, for names.
        """
        symbol = self.symbol(v)
        shape = self.network.avals[v].shape[1:]
        constant = _numbers(self.values[v])[0] + more
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
        names = [_scaled(self, term, symbol.order.shape, path) for term in terms]
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
            new = _pointwise(weight, shape)
        return self.add(_join(path, "bias"), new, sources)

    def straight(self, v: int, path: str) -> Symbol:
        """A vector's symbol with its elements in the vector's own order."""
        symbol = self.symbol(v)
        terms, order = _vector(self, symbol.terms, symbol.order, path)
        return symbol._replace(terms=tuple(terms), order=order)

    def settled(self, v: int, symbol: Symbol, path: str) -> Symbol:
        """The same with its constant in its nodes."""
        names, order = self.feed(v, np.ones(()), np.zeros(()), path)
        terms = tuple(Term(name, np.ones(()), False) for name in names)
        return Symbol(terms, order, _numbers(self.values[v]))


# Nothing changes in the numbers but their type: NIR computes in float32.
_UNCHANGED = frozenset(
    "convert_element_type copy copy_p mesh_cast name optimization_barrier "
    "reduce_precision reshard sharding_constraint stop_gradient".split()
)
# Each element of the result is one of the operands', or a constant.
_MOVES = frozenset(
    "broadcast_in_dim concatenate dynamic_slice expand_dims gather pad reshape rev "
    "slice split squeeze transpose".split()
)


# ------------------------------------------------------------ one rule per primitive


def _add(lowering: Lowering, equation: Equation) -> Symbol:
    minus = equation.primitive.name == "sub"
    operands = [
        (lowering.symbol(v), -1.0 if minus and i else 1.0)
        for i, v in enumerate(equation.inputs)
        if isinstance(v, int) and v in lowering.symbols
    ]
    symbols = [_times(symbol, np.float64(sign)) for symbol, sign in operands]
    total = _sum_of(lowering, symbols, equation.path)
    return total._replace(carried=_carried(lowering, equation))


def _negate(lowering: Lowering, equation: Equation) -> Symbol:
    symbol = lowering.symbol(_operand(lowering, equation))
    carried = _carried(lowering, equation)
    return _times(symbol, np.float64(-1))._replace(carried=carried)


def _multiply(lowering: Lowering, equation: Equation) -> Symbol:
    v = _operand(lowering, equation)
    (constant,) = (
        _numbers(read(lowering.values, u)) for u in equation.inputs if u != v
    )
    symbol = lowering.symbol(v)
    factor = np.broadcast_to(constant, lowering.network.avals[v].shape).ravel()
    factor = factor[symbol.order]
    if equation.primitive.name == "div":
        factor = 1 / factor
    return _times(symbol, factor)._replace(carried=_carried(lowering, equation))


def _select(lowering: Lowering, equation: Equation) -> Symbol:
    which, *cases = equation.inputs
    chosen = np.asarray(read(lowering.values, which)).astype(int)
    symbols = []
    for i, v in enumerate(cases):
        if isinstance(v, int) and v in lowering.symbols:
            symbol = lowering.symbol(v)
            shape = lowering.network.avals[v].shape
            mask = np.broadcast_to(chosen == i, shape).ravel()[symbol.order]
            symbols.append(_times(symbol, mask.astype(np.float64)))
    total = _sum_of(lowering, symbols, equation.path)
    return total._replace(carried=_carried(lowering, equation))


def _dot(lowering: Lowering, equation: Equation) -> Symbol:
    """Dense if all of x is contracted, a 1x1 convolution if its channels are."""
    v = _operand(lowering, equation)
    side = equation.inputs.index(v)
    contract, batch = _params(equation)["dimension_numbers"]
    if any(batch):
        raise Unsaid(
            "a matrix product for each element of an axis (batched) is no NIR node",
            "write one matrix product, or a convolution with feature_group_count",
        )
    symbol, shape = lowering.symbol(v), lowering.network.avals[v].shape
    weight = _numbers(read(lowering.values, equation.inputs[1 - side]))
    free = [a for a in range(weight.ndim) if a not in contract[1 - side]]
    inputs = math.prod(shape[a] for a in contract[side])
    weight = weight.transpose(*contract[1 - side], *free).reshape(inputs, -1)
    contracted = tuple(contract[side])
    kept = [a for a in range(len(shape)) if a not in contract[side]]
    if math.prod(shape[a] for a in kept) == 1:
        index = np.arange(inputs).reshape(shape).transpose(*contract[side], *kept)
        matrix = np.empty_like(weight)
        matrix[index.ravel()] = weight
        terms = _dense(lowering, symbol, matrix[symbol.order.ravel()].T, equation.path)
        order = np.arange(weight.shape[1])
        return Symbol(terms, order, _carried(lowering, equation))
    axes = layout(symbol.order, shape)
    image = axes is not None and len(axes) == 3 and contracted == axes[:1]
    if not image or axes is None or len(free) != 1:
        raise Unsaid(
            f"a matrix product along axes {contracted} of shape {shape[1:]}: NIR "
            "has one of a whole vector, or (1x1) of the channels of an image",
            "flatten first, or contract the channels of [H, W, C]",
        )
    kernel = weight.T[:, :, None, None]
    terms = _conv(lowering, symbol, kernel, symbol.order.shape[1:], equation.path)
    outputs = lowering.network.avals[equation.outputs[0]].shape
    channel = len(outputs) - 1 if side == 0 else 0
    place = [kept.index(a) + (side == 1) for a in axes[1:]]
    order = _ordered(outputs, (channel, *place))
    return Symbol(terms, order, _carried(lowering, equation))


def _convolve(lowering: Lowering, equation: Equation) -> Symbol:
    v, params = _operand(lowering, equation), _params(equation)
    numbers = params["dimension_numbers"]
    shape = lowering.network.avals[v].shape
    outputs = lowering.network.avals[equation.outputs[0]].shape
    plain = params["batch_group_count"] == 1 and set(params["lhs_dilation"]) <= {1}
    if equation.inputs[0] != v or len(shape) != 4 or not plain:
        raise Unsaid(
            "of convolutions NIR knows the 2-D ones of the activations, not transposed",
            "use a 2-D convolution [B, H, W, C] without lhs_dilation",
        )
    symbol = lowering.symbol(v)
    if not np.array_equal(symbol.order, _ordered(shape, numbers.lhs_spec[1:])):
        raise Unsaid(
            f"a convolution of what was a vector (or another image) before it was "
            f"reshaped to {shape[1:]}: NIR has no node that unflattens",
            "keep [H, W, C] from the input to the last convolution",
        )
    weight = _numbers(read(lowering.values, equation.inputs[1]))
    weight = weight.transpose(numbers.rhs_spec)
    out = [outputs[a] for a in numbers.out_spec[2:]]
    symbol = _whole(lowering, equation, v, symbol, numbers.out_spec[1])
    terms = _conv(
        lowering,
        symbol,
        weight,
        out,
        equation.path,
        stride=params["window_strides"],
        low=[low for low, _ in params["padding"]],
        dilation=params["rhs_dilation"],
        groups=params["feature_group_count"],
    )
    order = _ordered(outputs, numbers.out_spec[1:])
    return Symbol(terms, order, _carried(lowering, equation, v, symbol))


def _pool(lowering: Lowering, equation: Equation) -> Symbol:
    v, params = _operand(lowering, equation), _params(equation)
    symbol, shape = lowering.symbol(v), lowering.network.avals[v].shape
    outputs = lowering.network.avals[equation.outputs[0]].shape
    axes = _image_axes(symbol, shape)
    dilated = {*params["base_dilation"], *params["window_dilation"]} > {1}
    window, stride = params["window_dimensions"], params["window_strides"]
    if window[axes[0]] != 1 or stride[axes[0]] != 1 or dilated:
        raise Unsaid(
            "of pooling NIR knows that over height and width, without dilation",
            "pool over windows (1, h, w, 1)",
        )
    window, stride = [[a[i] for i in axes[1:]] for a in (window, stride)]
    padding = [params["padding"][i] for i in axes[1:]]
    symbol = _whole(lowering, equation, v, symbol, axes[0])
    terms = []
    for names, scale in _groups(lowering, symbol, equation.path):
        if all(low == high for low, high in padding):
            node = Pool(tuple(window), tuple(stride), tuple(low for low, _ in padding))
            name = lowering.add(_join(equation.path, "pool"), node, names)
            terms.append(Term(name, scale, True))
            continue
        channels = symbol.order.shape[0]
        part = Symbol(tuple(Term(n, scale, False) for n in names), symbol.order)
        terms += _conv(
            lowering,
            part,
            np.ones((channels, 1, *window)),
            [outputs[a] for a in axes[1:]],
            _join(equation.path, "pool"),
            stride=stride,
            low=[low for low, _ in padding],
            groups=channels,
        )
    order = _ordered(outputs, axes)
    return Symbol(tuple(terms), order, _carried(lowering, equation, v, symbol))


def _reduce(lowering: Lowering, equation: Equation) -> Symbol:
    """A sum over height, width or both: one window as large as the image."""
    v = _operand(lowering, equation)
    symbol, shape = lowering.symbol(v), lowering.network.avals[v].shape
    axes, gone = _image_axes(symbol, shape), _params(equation)["axes"]
    if not set(gone) <= set(axes[1:]):
        raise Unsaid(
            "of sums NIR knows those over height and width", "use a matrix product"
        )
    window = [shape[a] if a in gone else 1 for a in axes[1:]]
    terms = tuple(
        Term(
            lowering.add(
                _join(equation.path, "pool"),
                Pool(tuple(window), tuple(window)),
                names,
            ),
            scale,
            True,
        )
        for names, scale in _groups(lowering, symbol, equation.path)
    )
    kept = [1 if a in gone else size for a, size in enumerate(shape)]
    order = np.arange(math.prod(kept)).reshape(kept)
    order = np.broadcast_to(order, shape).ravel()[symbol.order]
    order = order[:, : kept[axes[1]], : kept[axes[2]]]
    return Symbol(terms, order, _carried(lowering, equation))


def _move(lowering: Lowering, equation: Equation) -> list[Symbol]:
    """Permutations make no node; a part of x, or zeros around it, does."""
    made: list[list[Symbol]] = [[] for _ in equation.outputs]
    for v in dict.fromkeys(u for u in equation.inputs if u in lowering.symbols):
        assert isinstance(v, int)
        shape = lowering.network.avals[v].shape
        index = np.arange(1, math.prod(shape) + 1).reshape(shape)
        moved = _linear_part(lowering, equation, {v: index})
        for parts, source in zip(made, moved, strict=True):
            source = np.rint(source).astype(int) - 1
            if (source >= 0).any():
                symbol = lowering.symbol(v)
                if len(equation.outputs) > 1:
                    terms = tuple(t._replace(owned=False) for t in symbol.terms)
                    symbol = symbol._replace(terms=terms)
                parts.append(_taken(lowering, symbol, source, shape, equation.path))
    sums = [_sum_of(lowering, parts, equation.path) for parts in made]
    carried = _all_carried(lowering, equation)
    return [s._replace(carried=c) for s, c in zip(sums, carried, strict=True)]


_LOWERINGS = {
    "add": _add,
    "add_any": _add,
    "sub": _add,
    "neg": _negate,
    "mul": _multiply,
    "div": _multiply,
    "select_n": _select,
    "dot_general": _dot,
    "conv_general_dilated": _convolve,
    "reduce_window_sum": _pool,
    "reduce_sum": _reduce,
}


# ---------------------------------------------------------------- sums and scales


def _times(symbol: Symbol, factor) -> Symbol:
    factor = compact(factor)
    terms = tuple(t._replace(scale=compact(t.scale * factor)) for t in symbol.terms)
    return symbol._replace(terms=terms)


def _sum_of(lowering: Lowering, symbols: Sequence[Symbol], path: str) -> Symbol:
    first, *rest = symbols
    terms = list(first.terms)
    order = first.order
    for symbol in rest:
        if not np.array_equal(order, symbol.order):
            terms, order = _vector(lowering, terms, order, path)
            more, _ = _vector(lowering, symbol.terms, symbol.order, path)
        else:
            more = list(symbol.terms)
        terms += more
    merged: dict[str, Term] = {}
    for term in terms:
        if term.node in merged:
            scale = compact(merged[term.node].scale + term.scale)
            term = Term(term.node, scale, False)
        merged[term.node] = term
    return Symbol(tuple(merged.values()), order)


def _vector(lowering: Lowering, terms, order, path: str):
    """The terms as vectors in the variable's own order."""
    size, straight = order.size, np.arange(order.size)
    if np.array_equal(order, straight):
        return list(terms), straight
    weight = np.eye(size)[:, order.ravel()]
    return list(_dense(lowering, Symbol(tuple(terms), order), weight, path)), straight


def _groups(lowering: Lowering, symbol: Symbol, path: str):
    """Terms of one scale together: names of nodes, and their scale per channel."""
    found: list[tuple[list[str], np.ndarray]] = []
    for term in symbol.terms:
        name, scale = term.node, term.scale
        if scale.ndim == 3 and scale.shape[1:] != (1, 1):
            name = _scaled(lowering, term, symbol.order.shape, path)
            scale = np.ones(())
        same = [names for names, s in found if np.array_equal(s, scale)]
        if same:
            same[0].append(name)
        else:
            found.append(([name], scale))
    return found


def _scaled(lowering: Lowering, term: Term, shape, path: str) -> str:
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
        new: Any = _pointwise(factor, shape)
    else:
        new = Scale(np.array(np.broadcast_to(scale, shape)))
    return lowering.add(_join(path, "scale"), new, [term.node])


# ------------------------------------------------------------ dense and convolution


def _dense(lowering: Lowering, symbol: Symbol, weight, path: str) -> tuple[Term, ...]:
    """Terms of ``weight @`` the symbol's elements in the order of its nodes."""
    terms = []
    for names, scale in _groups(lowering, symbol, path):
        if symbol.order.ndim > 1:
            names = [_flat(lowering, name, symbol.order.shape) for name in names]
            scale = np.broadcast_to(scale, symbol.order.shape).ravel()
        node = Dense(weight * scale, np.zeros(len(weight)))
        terms.append(
            Term(lowering.add(path or "affine", node, names), np.ones(()), True)
        )
    return tuple(terms)


def _flat(lowering: Lowering, name: str, shape) -> str:
    for other, sources in lowering.sources.items():
        if sources == (name,) and isinstance(lowering.nodes[other], Flatten):
            return other
    return lowering.add(f"{name}/flatten", Flatten(tuple(shape)), [name])


def _conv(
    lowering: Lowering,
    symbol: Symbol,
    weight: np.ndarray,
    out: Sequence[int],
    path: str,
    *,
    stride: Sequence[int] = (1, 1),
    low: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> tuple[Term, ...]:
    """Terms of a convolution [O, I / groups, h, w] with ``low`` zeros before x.

    NIR pads alike on both sides and takes kernels for square: where x needs another
    window, zeros among the weights make it.
    """
    size = symbol.order.shape[1:]
    kernel = weight.shape[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    facts = list(zip(size, out, low, reach, stride, strict=True))
    padding = tuple(low)
    if kernel[0] != kernel[1] or not all(_fits(*f, total=f[3], front=0) for f in facts):
        total, fronts = _window(facts)
        wide = np.zeros((*weight.shape[:2], total, total))
        places = [
            slice(f, f + r, d) for f, r, d in zip(fronts, reach, dilation, strict=True)
        ]
        wide[:, :, places[0], places[1]] = weight
        weight, dilation = wide, (1, 1)
        padding = tuple(p + f for p, f in zip(low, fronts, strict=True))
    terms = []
    for names, scale in _groups(lowering, symbol, path):
        scale = np.broadcast_to(scale.ravel(), symbol.order.shape[:1])
        # Input channels of each group, repeated for its output channels.
        per_output = np.repeat(scale.reshape(groups, -1), len(weight) // groups, axis=0)
        node = Conv(
            weight * per_output[:, :, None, None],
            np.zeros(len(weight)),
            tuple(size),
            tuple(stride),
            padding,
            tuple(dilation),
            groups,
        )
        terms.append(Term(lowering.add(path or "conv", node, names), np.ones(()), True))
    return tuple(terms)


def _fits(size, out, low, kernel, stride, *, total, front) -> bool:
    """Whether a kernel ``total`` wide, ``front`` zeros before it, sees the same."""
    padding = low + front
    return padding >= 0 and (size + 2 * padding - total) // stride + 1 == out


def _window(facts) -> tuple[int, list[int]]:
    """The smallest square kernel for both axes, and the zeros before it in each."""
    smallest = max(fact[3] for fact in facts)
    largest = smallest + 2 * max(abs(n) for fact in facts for n in fact) + 1
    for total in range(smallest, largest + 1):
        fronts = [
            [f for f in range(total - a[3] + 1) if _fits(*a, total=total, front=f)]
            for a in facts
        ]
        if all(fronts):
            return total, [found[0] for found in fronts]
    raise Unsaid(
        "no square kernel with the same padding on both sides sees this window",
        "pad both sides alike",
    )


def _taken(lowering: Lowering, symbol: Symbol, source, shape, path: str) -> Symbol:
    """The elements ``source`` (-1: a zero) of a variable of ``shape``."""
    flat = source.ravel()
    if len(flat) == symbol.order.size and np.array_equal(
        np.sort(flat), np.arange(len(flat))
    ):
        return symbol._replace(order=np.argsort(flat)[symbol.order])
    position = np.empty(symbol.order.size, int)
    position[symbol.order.ravel()] = np.arange(symbol.order.size)
    if symbol.order.ndim == 1:
        weight = np.zeros((len(flat), symbol.order.size))
        kept = np.flatnonzero(flat >= 0)
        weight[kept, position[flat[kept]]] = 1
        terms = _rows(lowering, symbol, weight, path)
        return Symbol(terms, np.arange(len(flat)))
    axes = layout(symbol.order, shape)
    maps = None
    if axes is not None and source.ndim == len(shape):
        rest = [a for a in range(len(shape)) if a not in axes]
        image = source.transpose(*axes, *rest)
        image = image.reshape([source.shape[a] for a in axes])
        maps = _maps(np.where(image < 0, -1, position[image]), symbol.order.shape)
    if axes is None or maps is None:
        raise Unsaid(
            f"from {tuple(shape[1:])} it takes elements to {source.shape[1:]} in a way "
            "that no convolution does",
            "take whole channels, every n-th row and column, or flatten first",
        )
    return _crop(lowering, symbol, maps, _ordered(source.shape, axes), path)


def _maps(image: np.ndarray, shape) -> list[np.ndarray] | None:
    """For each axis which index of the operand a result's index takes; -1: none."""
    inside = image >= 0
    coordinates = np.unravel_index(np.where(inside, image, 0), shape)
    maps = []
    for axis, coordinate in enumerate(coordinates):
        others = tuple(a for a in range(3) if a != axis)
        maps.append(np.where(inside, coordinate, -1).max(axis=others))
    grid = np.meshgrid(*maps, indexing="ij")
    known = np.logical_and.reduce([g >= 0 for g in grid])
    expected = np.ravel_multi_index([np.maximum(g, 0) for g in grid], shape)
    same = np.array_equal(known, inside) and (image == expected)[inside].all()
    return maps if same else None


def _crop(lowering: Lowering, symbol: Symbol, maps, order, path: str) -> Symbol:
    channels, *spatial = maps
    steps = [_steps(m, n) for m, n in zip(spatial, symbol.order.shape[1:], strict=True)]
    weight = (channels[:, None] == np.arange(symbol.order.shape[0])).astype(float)
    if all(
        np.array_equal(m, np.arange(n))
        for m, n in zip(spatial, symbol.order.shape[1:], strict=True)
    ):
        return Symbol(_rows(lowering, symbol, weight, path), order)
    terms = _conv(
        lowering,
        symbol,
        weight[:, :, None, None],
        [len(m) for m in spatial],
        path,
        stride=[s for s, _ in steps],
        low=[low for _, low in steps],
    )
    return Symbol(terms, order)


def _steps(places: np.ndarray, size: int) -> tuple[int, int]:
    """Stride and zeros before x of an axis that takes x[stride i - low]."""
    inside = np.flatnonzero(places >= 0)
    stride = size if len(places) == 1 else 1
    if len(inside) > 1:
        stride = int(places[inside[1]] - places[inside[0]])
    low = int(stride * inside[0] - places[inside[0]])
    expected = stride * np.arange(len(places)) - low
    expected = np.where((expected < 0) | (expected >= size), -1, expected)
    if stride < 1 or not np.array_equal(expected, places):
        raise Unsaid(
            "it takes rows or columns in an order that no convolution does",
            "take every n-th of them",
        )
    return stride, low


def _rows(lowering: Lowering, symbol: Symbol, weight, path: str) -> tuple[Term, ...]:
    """Terms of ``weight @`` channels (or elements of a vector).

    Owned weights take it in; otherwise it is a node of its own.
    """
    terms = []
    for term in symbol.terms:
        node = lowering.nodes[term.node]
        plain = isinstance(node, Dense) or isinstance(node, Conv) and node.groups == 1
        if term.owned and plain and term.scale.size == 1:
            mixed = np.tensordot(weight, node.weight, axes=1) * term.scale.ravel()
            bias = np.zeros(len(weight))
            lowering.nodes[term.node] = node._replace(weight=mixed, bias=bias)
            terms.append(Term(term.node, np.ones(()), True))
            continue
        part = symbol._replace(terms=(term,))
        if symbol.order.ndim == 1:
            terms += _dense(lowering, part, weight, path)
        else:
            kernel, out = weight[:, :, None, None], symbol.order.shape[1:]
            terms += _conv(lowering, part, kernel, out, path)
    return tuple(terms)


def _pointwise(factor: np.ndarray, shape) -> Conv:
    """A 1x1 convolution that scales channels."""
    channels, *size = shape
    weight = factor[:, None, None, None]
    return Conv(weight, np.zeros(channels), tuple(size), groups=channels)


# ------------------------------------------------------------------- constants


def _whole(lowering: Lowering, equation, v: int, symbol: Symbol, channel: int):
    """x as a node that pads it may read it.

    A constant that padding does not continue (that of a norm before the convolution)
    must be in x itself; every other can wait for the next neuron.
    """
    carried = _carried(lowering, equation)
    (out,) = equation.outputs
    rest = _numbers(lowering.values[out])
    rounding = 1e-5 * np.abs(rest).max(initial=0)
    rest = rest if carried is None else rest - carried
    others = tuple(a for a in range(rest.ndim) if a != channel)
    if (np.abs(rest - rest.mean(axis=others, keepdims=True)) <= rounding).all():
        return symbol
    return lowering.settled(v, symbol, equation.path)


def _carried(lowering: Lowering, equation: Equation, v=None, symbol=None):
    """What the terms of an equation's result come to without any input."""
    changed = {} if v is None or symbol is None else {v: symbol.carried}
    return _all_carried(lowering, equation, changed)[0]


def _all_carried(lowering: Lowering, equation: Equation, changed=None):
    carried = {
        v: lowering.symbols[v].carried for v in equation.inputs if v in lowering.symbols
    } | (changed or {})
    known = {v: c for v, c in carried.items() if c is not None}
    if not known:
        return [None] * len(equation.outputs)
    return _linear_part(lowering, equation, known)


def _linear_part(lowering: Lowering, equation: Equation, inputs: dict[Any, Any]):
    """The results' change when variables change from zero to ``inputs``."""
    values, changed = {}, {}
    for v in equation.inputs:
        if isinstance(v, int):
            value = jnp.asarray(lowering.values[v])
            floating = jnp.issubdtype(value.dtype, jnp.floating)
            value = value.astype(jnp.float32) if floating else value
            values[v] = jnp.zeros_like(value) if v in lowering.symbols else value
            changed[v] = (
                jnp.asarray(inputs[v], value.dtype) if v in inputs else values[v]
            )
    evaluate([equation], values, identity)
    evaluate([equation], changed, identity)
    return [_numbers(changed[v]) - _numbers(values[v]) for v in equation.outputs]


# --------------------------------------------------------------------- helpers


def layout(order: np.ndarray, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The axes of a variable that the axes of its nodes are; None if they are none."""
    axes = range(len(shape))
    # The batch axis comes last, so that it is taken for no other of size 1.
    for chosen in itertools.permutations([*axes[1:], 0], order.ndim):
        if all(shape[a] == n for a, n in zip(chosen, order.shape, strict=True)):
            if math.prod(shape) == order.size:
                if np.array_equal(_ordered(shape, chosen), order):
                    return chosen
    return None


def _ordered(shape, axes) -> np.ndarray:
    """Flat indices of a variable [.., of size 1], its axes ``axes`` in that order."""
    index = np.arange(math.prod(shape)).reshape(shape)
    rest = [a for a in range(len(shape)) if a not in axes]
    return index.transpose(*axes, *rest).reshape([shape[a] for a in axes])


def _image_axes(symbol: Symbol, shape) -> tuple[int, ...]:
    axes = layout(symbol.order, shape)
    if axes is None or len(axes) != 3:
        raise Unsaid(
            f"it sums over parts of {tuple(shape[1:])}, which is no image [H, W, C]",
            "write it as a matrix product of the flattened activations",
        )
    return axes


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
        raise Unsaid(
            "a constant that differs from place to place is added: NIR's biases are "
            "one per channel",
            "add constants per channel (also before a padded convolution)",
        )
    return channels[:, 0, 0]


def _operand(lowering: Lowering, equation: Equation) -> int:
    (v,) = {u for u in variables(equation) if u in lowering.symbols}
    return v


def _params(equation: Equation) -> dict[str, Any]:
    return {name: static.value for name, static in equation.params}


def _numbers(value) -> np.ndarray:
    return np.asarray(jax.device_get(value)).astype(np.float64)


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
