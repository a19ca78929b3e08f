"""Matrices, convolutions and pools, with the scales of their inputs in the weights.

Chips and their tools pad a convolution alike on both sides, and some assume a square
kernel. A window that is padded on one side ("SAME" with a stride) becomes such a kernel
by zeros among the weights: f rows of zeros before a kernel and f more rows of padding
cancel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snnjax.deploy.lowering.sums import Builder, NoLayer, Sum, Term, join
from snnjax.deploy.lowering.values import Convolution, Dense, SumPool


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

    def fits(self, total: int, front: int) -> bool:
        """Whether a kernel ``total`` wide, ``front`` zeros before it, reads the same.

        Both sides have equal padding, and the number of results follows from that.
        """
        padding = self.low + front
        count = (self.size + 2 * padding - total) // self.stride + 1
        return padding >= 0 and count == self.out


def dense(
    builder: Builder, total: Sum, weight: np.ndarray, path: str
) -> tuple[Term, ...]:
    """Terms of ``weight @ variable``, weight [M, N] in the order of the variable."""
    weight = weight[:, total.order.ravel()]
    shape = total.order.shape
    terms = []
    for names, scale in builder.groups(total, path):
        if len(shape) > 1:
            names = [builder.flatten(name, shape) for name in names]
            scale = np.broadcast_to(scale, shape).ravel()
        node = Dense(path or "affine", tuple(names), weight * scale, None)
        terms.append(Term(builder.add(node)))
    return tuple(terms)


def vectorize(builder: Builder, total: Sum, path: str) -> Sum:
    """The variable as vectors in its own order."""
    own_order = np.arange(total.order.size)
    if total.order.ndim == 1 and np.array_equal(total.order, own_order):
        return total
    return Sum(dense(builder, total, np.eye(total.order.size), path), own_order)


def conv(
    builder: Builder,
    total: Sum,
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
        # Dilated taps lie ``step`` apart in the new kernel, which has no dilation.
        width, fronts = _square(windows)
        padded = np.zeros((*weight.shape[:2], width, width))
        rows, columns = (
            slice(front, front + w.reach, step)
            for front, w, step in zip(fronts, windows, dilation, strict=True)
        )
        padded[:, :, rows, columns] = weight
        weight, dilation = padded, (1, 1)
        padding = [w.low + front for w, front in zip(windows, fronts, strict=True)]
    sizes, strides = zip(*((w.size, w.stride) for w in windows), strict=True)
    shape = sizes, strides, tuple(padding), tuple(dilation), groups
    terms = []
    for names, scale in builder.groups(total, path):
        scale = np.broadcast_to(scale.ravel(), total.order.shape[:1])
        # Input channels of each group, repeated for its output channels.
        per_output = np.repeat(scale.reshape(groups, -1), len(weight) // groups, axis=0)
        scaled = weight * per_output[:, :, None, None]
        node = Convolution(path or "conv", tuple(names), scaled, None, *shape)
        terms.append(Term(builder.add(node)))
    return tuple(terms)


def pool(
    builder: Builder, total: Sum, windows: Sequence[Window], path: str
) -> tuple[Term, ...]:
    """Terms of the sum over windows of rows and columns."""
    path = join(path, "pool")
    if not all(w.fits(w.reach, 0) for w in windows):
        # A pool that is padded alike cannot read these windows; a convolution can.
        channels = total.order.shape[0]
        ones = np.ones((channels, 1, *(w.reach for w in windows)))
        return conv(builder, total, ones, windows, path, groups=channels)
    sizes, strides, padding = (
        tuple(getattr(w, field) for w in windows)
        for field in ("reach", "stride", "low")
    )
    return tuple(
        Term(builder.add(SumPool(path, (*names,), sizes, strides, padding)), scale)
        for names, scale in builder.groups(total, path)
    )


def _square(windows: Sequence[Window]) -> tuple[int, list[int]]:
    """The smallest square kernel for both axes, and the zeros before it in each."""
    smallest = max(w.reach for w in windows)
    # A zero more in front of a kernel and one more behind it change nothing. So the two
    # axes soon have a width in common, if they ever do.
    largest = smallest + 2 * max(abs(n) for w in windows for n in w) + 1
    for width in range(smallest, largest + 1):
        fronts = [
            [f for f in range(width - w.reach + 1) if w.fits(width, f)] for w in windows
        ]
        if all(fronts):
            return width, [choices[0] for choices in fronts]
    raise NoLayer(
        "no square kernel with the same padding on both sides reads this window",
        "pad both sides alike",
    )
