"""Layers of a NIR graph: matrices, convolutions, and parts of an image taken by them.

NIR pads a convolution alike on both sides and takes its kernel for square. Where a
network needs another window ("SAME" with a stride, a crop, padding on one side), zeros
among the weights make it: a kernel with f zeros before it and f more rows of padding
sees the same.
"""

from collections.abc import Sequence

import numpy as np

from snnjax.nir.nodes import (
    Conv,
    Dense,
    Flatten,
    Lowering,
    NotInNIR,
    Symbol,
    Term,
    compact,
    groups_of,
    layout,
    ordered,
)


def dense(lowering: Lowering, symbol: Symbol, weight, path: str) -> tuple[Term, ...]:
    """Terms of ``weight @`` the symbol's elements in the order of its nodes."""
    terms = []
    for names, scale in groups_of(lowering, symbol, path):
        if symbol.order.ndim > 1:
            names = [_flat(lowering, name, symbol.order.shape) for name in names]
            scale = np.broadcast_to(scale, symbol.order.shape).ravel()
        node = Dense(weight * scale, np.zeros(len(weight)))
        terms.append(
            Term(lowering.add(path or "affine", node, names), np.ones(()), True)
        )
    return tuple(terms)


def conv(
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
    """Terms of a convolution [O, I / groups, h, w] with ``low`` zeros before x."""
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
    for names, scale in groups_of(lowering, symbol, path):
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


def sum_of(lowering: Lowering, symbols: Sequence[Symbol], path: str) -> Symbol:
    """The sum of symbols of one variable's shape, each node once."""
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


def taken(lowering: Lowering, symbol: Symbol, source, shape, path: str) -> Symbol:
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
    if axes is None:  # no image any more: flatten the nodes too
        vector = straight(lowering, symbol, path)
        return taken(lowering, vector, source, shape, path)
    maps = None
    if source.ndim == len(shape):
        rest = [a for a in range(len(shape)) if a not in axes]
        image = source.transpose(*axes, *rest)
        image = image.reshape([source.shape[a] for a in axes])
        maps = _maps(np.where(image < 0, -1, position[image]), symbol.order.shape)
    if maps is None:
        raise NotInNIR(
            f"from {tuple(shape[1:])} it takes elements to {source.shape[1:]} in a way "
            "that no convolution does",
            "take whole channels, every n-th row and column, or flatten first",
        )
    return _crop(lowering, symbol, maps, ordered(source.shape, axes), path)


def straight(lowering: Lowering, symbol: Symbol, path: str) -> Symbol:
    """A vector's symbol with its elements in the vector's own order."""
    terms, order = _vector(lowering, symbol.terms, symbol.order, path)
    return symbol._replace(terms=tuple(terms), order=order)


def _vector(lowering: Lowering, terms, order, path: str):
    """The terms as vectors in the variable's own order."""
    size, plain = order.size, np.arange(order.size)
    if np.array_equal(order, plain):
        return list(terms), plain
    weight = np.eye(size)[:, order.ravel()]
    return list(dense(lowering, Symbol(tuple(terms), order), weight, path)), plain


def _flat(lowering: Lowering, name: str, shape) -> str:
    for other, sources in lowering.sources.items():
        if sources == (name,) and isinstance(lowering.nodes[other], Flatten):
            return other
    return lowering.add(f"{name}/flatten", Flatten(tuple(shape)), [name])


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
    raise NotInNIR(
        "no square kernel with the same padding on both sides sees this window",
        "pad both sides alike",
    )


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
    terms = conv(
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
        raise NotInNIR(
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
            terms += dense(lowering, part, weight, path)
        else:
            kernel, out = weight[:, :, None, None], symbol.order.shape[1:]
            terms += conv(lowering, part, kernel, out, path)
    return tuple(terms)
