"""Layers of a NIR graph: matrices and convolutions, also those that crop an image.

NIR pads a convolution alike on both sides, and some of its readers assume a square
kernel. Other windows ("SAME" with a stride, a crop, padding on one side) become such
kernels by zeros among the weights: f zeros before a kernel and f more rows of padding
cancel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snnjax.nir.nodes import (
    Conv,
    Dense,
    Lowering,
    NotInNIR,
    Symbol,
    Term,
    compact,
    group_terms,
)
from snnjax.nir.orders import (
    arrangement,
    ascending,
    axis_indices,
    flat_indices,
    flip,
    inverse,
)


class Window(NamedTuple):
    """What one axis of a convolution or a pool reads: out[i] reads x[stride i - low].

    ``reach`` is the size of the kernel with its dilation; ``low`` counts the zeros
    before x (negative: elements that are skipped).
    """

    size: int
    out: int
    low: int
    reach: int
    stride: int

    def reversed(self) -> "Window":
        """The window that reads x backwards and gives its results backwards."""
        last = self.stride * (self.out - 1) + self.reach
        return self._replace(low=last - self.size - self.low)

    def fits(self, total: int, front: int) -> bool:
        """Whether a kernel ``total`` wide, ``front`` zeros before it, reads the same.

        NIR pads alike on both sides, and the number of results follows from that.
        """
        padding = self.low + front
        count = (self.size + 2 * padding - total) // self.stride + 1
        return padding >= 0 and count == self.out


def dense(
    lowering: Lowering, symbol: Symbol, weight: np.ndarray, path: str
) -> tuple[Term, ...]:
    """Terms of ``weight @`` the symbol's elements in the order of its nodes."""
    terms = []
    for names, scale in group_terms(lowering, symbol, path):
        if symbol.order.ndim > 1:
            names = [lowering.flatten(name, symbol.order.shape) for name in names]
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
    windows: Sequence[Window],
    path: str,
    *,
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> tuple[Term, ...]:
    """Terms of a convolution with weights [O, I / groups, h, w]."""
    padding = [w.low for w in windows]
    square = weight.shape[2] == weight.shape[3]
    if not square or not all(w.fits(w.reach, 0) for w in windows):
        total, fronts = _square(windows)
        padded = np.zeros((*weight.shape[:2], total, total))
        rows, columns = (
            slice(front, front + w.reach, step)
            for front, w, step in zip(fronts, windows, dilation, strict=True)
        )
        padded[:, :, rows, columns] = weight
        weight, dilation = padded, (1, 1)
        padding = [w.low + front for w, front in zip(windows, fronts, strict=True)]
    terms = []
    for names, scale in group_terms(lowering, symbol, path):
        scale = np.broadcast_to(scale.ravel(), symbol.order.shape[:1])
        # Input channels of each group, repeated for its output channels.
        per_output = np.repeat(scale.reshape(groups, -1), len(weight) // groups, axis=0)
        node = Conv(
            weight * per_output[:, :, None, None],
            np.zeros(len(weight)),
            tuple(w.size for w in windows),
            tuple(w.stride for w in windows),
            tuple(padding),
            tuple(dilation),
            groups,
        )
        terms.append(Term(lowering.add(path or "conv", node, names), np.ones(()), True))
    return tuple(terms)


def mix_channels(
    lowering: Lowering, symbol: Symbol, weight: np.ndarray, path: str
) -> tuple[Term, ...]:
    """Terms of ``weight @`` the channels of an image, or the elements of a vector.

    Weights that only this symbol reads absorb it; otherwise it becomes a node.
    """
    terms = []
    for term in symbol.terms:
        node = lowering.nodes[term.node]
        plain = isinstance(node, Dense) or isinstance(node, Conv) and node.groups == 1
        if term.owned and plain and term.scale.size == 1:
            mixed = np.tensordot(weight, node.weight, axes=1) * term.scale.ravel()
            bias = np.zeros(len(weight))  # owned nodes have none before `feed`
            lowering.nodes[term.node] = node._replace(weight=mixed, bias=bias)
            terms.append(Term(term.node, np.ones(()), True))
            continue
        part = symbol._replace(terms=(term,))
        if symbol.order.ndim == 1:
            terms += dense(lowering, part, weight, path)
        else:
            windows = [Window(n, n, 0, 1, 1) for n in symbol.order.shape[1:]]
            terms += conv(lowering, part, weight[:, :, None, None], windows, path)
    return tuple(terms)


def sum_of(lowering: Lowering, symbols: Sequence[Symbol], path: str) -> Symbol:
    """The sum of symbols of one variable's shape, each node once."""
    total, *rest = symbols
    for symbol in rest:
        aligned = rearrange(lowering, symbol, total.order, path)
        if aligned is None:
            total = vectorize(lowering, total, path)
            aligned = vectorize(lowering, symbol, path).terms
        total = total._replace(terms=(*total.terms, *aligned))
    merged: dict[str, Term] = {}
    for term in total.terms:
        if term.node in merged:
            scale = compact(merged[term.node].scale + term.scale)
            term = Term(term.node, scale, False)
        merged[term.node] = term
    return Symbol(tuple(merged.values()), total.order)


def rearrange(
    lowering: Lowering, symbol: Symbol, order: np.ndarray, path: str
) -> tuple[Term, ...] | None:
    """Terms of the same variable in another order; None if no layer brings them there.

    Channels of images and elements of vectors can be permuted, rows and columns cannot.
    """
    if np.array_equal(symbol.order, order):
        return symbol.terms
    if symbol.order.shape != order.shape or order.ndim not in (1, 3):
        return None
    indices = axis_indices(inverse(symbol.order)[order], order.shape)
    if indices is None or not all(map(ascending, indices[1:])):
        return None
    weight = np.eye(len(indices[0]))[indices[0]]
    return mix_channels(lowering, symbol, weight, path)


def vectorize(lowering: Lowering, symbol: Symbol, path: str) -> Symbol:
    """The symbol as vectors, their elements in the variable's own order."""
    plain = np.arange(symbol.order.size)
    terms = rearrange(lowering, symbol, plain, path)
    if terms is None:
        weight = np.eye(symbol.order.size)[:, symbol.order.ravel()]
        terms = dense(lowering, symbol, weight, path)
    return symbol._replace(terms=terms, order=plain)


def select_elements(
    lowering: Lowering,
    symbol: Symbol,
    source: np.ndarray,
    shape: Sequence[int],
    path: str,
) -> Symbol:
    """The elements ``source`` (-1: a zero) of a variable of ``shape``."""
    flat = source.ravel()
    if len(flat) == symbol.order.size and ascending(np.sort(flat)):
        return symbol._replace(order=np.argsort(flat)[symbol.order])
    image = arrangement(symbol.order, shape) if symbol.order.ndim == 3 else None
    if image is None:
        vector = symbol
        if symbol.order.ndim > 1:
            vector = vectorize(lowering, symbol, path)
        weight = (flat[:, None] == vector.order).astype(float)
        terms = mix_channels(lowering, vector, weight, path)
        return Symbol(terms, np.arange(len(flat)))
    indices, axes = None, image.axes
    if source.ndim == len(shape):
        rest = [a for a in range(len(shape)) if a not in axes]
        source_image = source.transpose(*axes, *rest)
        source_image = source_image.reshape([source.shape[a] for a in axes])
        places = np.where(source_image < 0, -1, inverse(symbol.order)[source_image])
        indices = axis_indices(places, symbol.order.shape)
    if indices is None:
        raise NotInNIR(
            f"it maps {tuple(shape[1:])} to {tuple(source.shape[1:])} in a way that no "
            "convolution does",
            "select whole channels, every n-th row and column, or flatten first",
        )
    return _crop(lowering, symbol, indices, flat_indices(source.shape, axes), path)


def _crop(
    lowering: Lowering,
    symbol: Symbol,
    indices: Sequence[np.ndarray],
    order: np.ndarray,
    path: str,
) -> Symbol:
    """Channels, rows and columns of the nodes, by a 1x1 convolution with a stride."""
    channels, *spatial = indices
    sizes = symbol.order.shape[1:]
    weight = (channels[:, None] == np.arange(symbol.order.shape[0])).astype(float)
    if all(len(i) == n and ascending(i) for i, n in zip(spatial, sizes, strict=True)):
        return Symbol(mix_channels(lowering, symbol, weight, path), order)
    backwards = []
    for i in spatial:
        inside = i[i >= 0]
        backwards.append(len(inside) > 1 and inside[1] < inside[0])
    windows = [
        _window_of(i[::-1] if reverse else i, n)
        for i, reverse, n in zip(spatial, backwards, sizes, strict=True)
    ]
    terms = conv(lowering, symbol, weight[:, :, None, None], windows, path)
    return Symbol(terms, flip(order, backwards))


def _window_of(indices: np.ndarray, size: int) -> Window:
    """The window of one element that takes these indices of an axis, -1: a zero."""
    inside = np.flatnonzero(indices >= 0)
    stride = size if len(indices) == 1 else 1
    if len(inside) > 1:
        distance = inside[1] - inside[0]
        stride = int(indices[inside[1]] - indices[inside[0]]) if distance == 1 else 0
    low = int(stride * inside[0] - indices[inside[0]]) if len(inside) else 0
    expected = stride * np.arange(len(indices)) - low
    expected = np.where((expected < 0) | (expected >= size), -1, expected)
    if stride < 1 or not np.array_equal(expected, indices):
        raise NotInNIR(
            "it takes rows or columns in an order that no convolution does",
            "take every n-th of them",
        )
    return Window(size, len(indices), low, 1, stride)


def _square(windows: Sequence[Window]) -> tuple[int, list[int]]:
    """The smallest square kernel for both axes, and the zeros before it in each."""
    smallest = max(w.reach for w in windows)
    largest = smallest + 2 * max(abs(n) for w in windows for n in w) + 1
    for total in range(smallest, largest + 1):
        fronts = [
            [f for f in range(total - w.reach + 1) if w.fits(total, f)] for w in windows
        ]
        if all(fronts):
            return total, [allowed[0] for allowed in fronts]
    raise NotInNIR(
        "no square kernel with the same padding on both sides reads this window",
        "pad or crop both sides alike, or flatten first",
    )
