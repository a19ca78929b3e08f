"""Matrices, convolutions and pools, with the scales of their inputs in the weights.

A convolution reads exactly the windows of the function, so that its weights are those
that a chip stores. NIR and some chips have square kernels and equal padding on both
sides of an image alone. `with_equal_padding` makes such a kernel by zeros among the
weights: f rows of zeros before a kernel and f more rows of padding cancel.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snnjax.deploy.lowering.sums import Builder, NoLayer, Sum, Term, join
from snnjax.deploy.lowering.values import Convolution, Dense, SumPool, Zeros


class Window(NamedTuple):
    """One axis of a convolution or a pool, whose result i reads from x[stride i - low].

    Attributes:
        size: of x.
        results: how many elements the result has.
        low: zeros before x; negative: elements that are skipped.
        reach: size of the kernel with its dilation.
        stride: from one result to the next.
    """

    size: int
    results: int
    low: int
    reach: int
    stride: int

    def fits(self, width: int, front: int) -> bool:
        """Whether a kernel of this width, ``front`` zeros before it, reads the same.

        Both sides have equal padding, and the number of results follows from that.
        """
        padding = self.low + front
        padded_size = self.size + 2 * padding
        results = (padded_size - width) // self.stride + 1
        return padding >= 0 and results == self.results

    @property
    def padding(self) -> Zeros:
        """Zeros before and behind x; negative: elements that no window reads."""
        if self.fits(self.reach, front=0):
            return self.low, self.low
        last = (self.results - 1) * self.stride + self.reach
        high = last - self.size - self.low
        # So few elements behind the last window do not make another one.
        if -self.stride < high < 0:
            high = 0
        return self.low, high


def pixel_windows(image_size: Sequence[int]) -> list[Window]:
    """The windows of a 1x1 kernel, which reads one pixel of an image."""
    windows = []
    for size in image_size:
        windows.append(Window(size=size, results=size, low=0, reach=1, stride=1))
    return windows


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
        node = Dense(
            path or "affine",
            sources=tuple(names),
            weight=weight * scale,
            bias=None,
        )
        terms.append(Term(builder.add(node)))
    return tuple(terms)


def vectorize(builder: Builder, total: Sum, path: str) -> Sum:
    """The variable as vectors in its own order."""
    size = total.order.size
    flat_order = np.arange(size)
    if total.order.ndim == 1 and np.array_equal(total.order, flat_order):
        return total
    terms = dense(builder, total, np.eye(size), path)
    return Sum(terms, flat_order)


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
    """Terms of a convolution with weights [O, I / groups, rows, columns]."""
    padding = np.array([window.padding for window in windows])  # [axes, sides]
    if padding.min() < 0:
        # No layer skips elements. Zeros among the weights read them instead.
        zeros = np.maximum(-padding, 0)
        reaches = [window.reach for window in windows]
        widths = reaches + zeros.sum(axis=1)
        weight = _widened(
            weight,
            dilation,
            fronts=zeros[:, 0].tolist(),
            widths=widths.tolist(),
        )
        dilation = (1, 1)
        padding = np.maximum(padding, 0)
    (top, bottom), (left, right) = padding.tolist()
    channels = total.order.shape[0]
    group_outputs = len(weight) // groups
    terms = []
    for names, scale in builder.groups(total, path):
        # Each output channel reads the scales of the input channels of its group.
        scale = np.broadcast_to(scale.ravel(), channels)
        group_scales = scale.reshape(groups, -1)
        output_scales = group_scales.repeat(group_outputs, axis=0)
        node = Convolution(
            path or "conv",
            sources=tuple(names),
            weight=weight * output_scales[:, :, None, None],
            bias=None,
            size=tuple(window.size for window in windows),
            stride=tuple(window.stride for window in windows),
            padding=((top, bottom), (left, right)),
            dilation=tuple(dilation),
            groups=groups,
        )
        terms.append(Term(builder.add(node)))
    return tuple(terms)


def pool(
    builder: Builder, total: Sum, windows: Sequence[Window], path: str
) -> tuple[Term, ...]:
    """Terms of the sum over windows of rows and columns."""
    path = join(path, "pool")
    if not all(window.fits(window.reach, front=0) for window in windows):
        # A pool has equal padding on both sides, and a convolution need not.
        channels = total.order.shape[0]
        ones = np.ones((channels, 1, *(window.reach for window in windows)))
        return conv(builder, total, ones, windows, path, groups=channels)
    terms = []
    for names, scale in builder.groups(total, path):
        node = SumPool(
            path,
            tuple(names),
            window=tuple(window.reach for window in windows),
            stride=tuple(window.stride for window in windows),
            padding=tuple(window.low for window in windows),
        )
        terms.append(Term(builder.add(node), scale))
    return tuple(terms)


# ------------------------------------------------------------ kernels with zeros


def axis_windows(node: Convolution) -> list[Window]:
    """What a convolution reads along rows and along columns.

    Raises:
        ValueError: the size of its input is not known.
    """
    if not node.size:
        raise ValueError(
            f"the convolution {node.name!r} has no size of its input; allowed: rows "
            "and columns, as input_shape of a Conv2d in NIR"
        )
    windows = []
    for size, taps, stride, dilation, (low, high) in zip(
        node.size,
        node.weight.shape[2:],
        node.stride,
        node.dilation,
        node.padding,
        strict=True,
    ):
        reach = (taps - 1) * dilation + 1
        window = Window(
            size=size,
            results=(size + low + high - reach) // stride + 1,
            low=low,
            reach=reach,
            stride=stride,
        )
        windows.append(window)
    return windows


def with_equal_padding(node: Convolution) -> Convolution:
    """The same convolution with a square kernel, padded alike on both sides.

    Raises:
        NoLayer: no square kernel with equal padding reads the same windows.
    """
    windows = axis_windows(node)
    width, fronts = _square(windows)
    padding = []
    for window, front in zip(windows, fronts, strict=True):
        zeros = window.low + front
        padding.append((zeros, zeros))
    if all(window.reach == width for window in windows):
        return dataclasses.replace(node, padding=tuple(padding))
    return dataclasses.replace(
        node,
        weight=_widened(node.weight, node.dilation, fronts, (width, width)),
        padding=tuple(padding),
        dilation=(1, 1),
    )


def _square(windows: Sequence[Window]) -> tuple[int, list[int]]:
    """The smallest square kernel for both axes: its width, and the zeros before it."""
    smallest = max(window.reach for window in windows)
    # A zero more in front of a kernel and one more behind it change nothing. So the two
    # axes soon have a width in common, if they ever do.
    largest = smallest + 2 * np.abs(windows).max() + 1
    for width in range(smallest, largest + 1):
        fronts = []
        for window in windows:
            front = _fitting_front(window, width)
            if front is not None:
                fronts.append(front)
        if len(fronts) == len(windows):
            return width, fronts
    raise NoLayer(
        "no square kernel with the same padding on both sides reads this window",
        "pad both sides alike",
    )


def without_zero_borders(node: Convolution) -> Convolution:
    """The same convolution without rows and columns of zeros that pad its kernel.

    This is the way back from `with_equal_padding`.
    """
    if node.dilation != (1, 1) or not node.weight.any():
        return node
    row_is_used = node.weight.any(axis=(0, 1, 3))
    column_is_used = node.weight.any(axis=(0, 1, 2))
    row_padding, column_padding = node.padding
    rows, row_padding = _used_taps(row_is_used, row_padding)
    columns, column_padding = _used_taps(column_is_used, column_padding)
    return dataclasses.replace(
        node,
        weight=node.weight[:, :, rows, columns],
        padding=(row_padding, column_padding),
    )


def _used_taps(is_used: np.ndarray, padding: Zeros) -> tuple[slice, Zeros]:
    """The taps of a kernel without zeros at its ends, and their padding.

    A zero of the kernel disappears together with a zero of the padding.
    """
    low, high = padding
    taps = np.flatnonzero(is_used).tolist()
    first_tap = taps[0]
    last_tap = taps[-1]
    zeros_behind = len(is_used) - 1 - last_tap
    front = min(first_tap, low)
    back = min(zeros_behind, high)
    kept = slice(front, len(is_used) - back)
    return kept, (low - front, high - back)


def _fitting_front(window: Window, width: int) -> int | None:
    """The fewest zeros before a kernel of this width that reads the window."""
    for front in range(width - window.reach + 1):
        if window.fits(width, front):
            return front
    return None


def _widened(
    weight: np.ndarray,
    dilation: Sequence[int],
    fronts: Sequence[int],
    widths: Sequence[int],
) -> np.ndarray:
    """A kernel in a wider one without dilation, with ``fronts`` zeros before it."""
    wide = np.zeros((*weight.shape[:2], *widths))
    # The taps of a dilated kernel lie ``step`` apart in the wider one.
    rows, columns = (
        slice(front, front + (taps - 1) * step + 1, step)
        for front, taps, step in zip(fronts, weight.shape[2:], dilation, strict=True)
    )
    wide[:, :, rows, columns] = weight
    return wide
