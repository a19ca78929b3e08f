"""Matrices, convolutions and pools, with the scales of their inputs in the weights.

A convolution reads exactly the windows of the function, so that its weights are those
that a chip stores. NIR and some chips only have square kernels, and equal padding on
both sides of an image. `with_equal_padding` makes such a kernel by zeros among the
weights: f rows of zeros in front of a kernel and f more rows of padding cancel.

A tap is a weight's row or column in a kernel. The taps of a dilated kernel lie
``dilation`` apart, and its extent counts the elements from the first to the last tap.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snnjax.deploy.lowering.sums import Builder, NoLayer, Sum, Term, join
from snnjax.deploy.lowering.values import Convolution, Dense, SumPool, Zeros


class Window(NamedTuple):
    """The windows of a convolution or a pool along one axis, rows or columns.

    Result i reads the elements of x from number ``stride i - low`` on, ``extent`` of
    them.

    Attributes:
        size: number of elements of x.
        results: number of elements of the result.
        low: zeros before x; if negative, so many elements of x are skipped.
        extent: elements from the first to the last tap.
        stride: elements from one window to the next.
    """

    size: int
    results: int
    low: int
    extent: int
    stride: int

    def fits(self, width: int, front: int) -> bool:
        """Whether a kernel with zeros at its ends reads the same with equal padding.

        Args:
            width: extent of that kernel, with its zeros.
            front: zeros in front of its first tap.
        """
        # Zeros in front of a kernel move it forward, and as much padding back.
        padding = self.low + front
        padded_size = self.size + 2 * padding
        results = (padded_size - width) // self.stride + 1
        return padding >= 0 and results == self.results

    @property
    def padding(self) -> Zeros:
        """Zeros before and behind x; negative: elements that no window reads."""
        # Equal padding is taken where it gives the same results, since NIR and some
        # chips have no other. Zeros behind x that no window reads do not matter.
        if self.fits(self.extent, front=0):
            return self.low, self.low
        read_size = (self.results - 1) * self.stride + self.extent  # by all windows
        high = read_size - self.size - self.low
        # Elements behind the last window that are too few for another one may stay.
        if -self.stride < high < 0:
            high = 0
        return self.low, high


def pixel_windows(image_size: Sequence[int]) -> list[Window]:
    """The windows of a 1x1 kernel along the axes of an image of this size."""
    windows = []
    for size in image_size:
        windows.append(Window(size=size, results=size, low=0, extent=1, stride=1))
    return windows


def dense(
    builder: Builder, operand: Sum, weight: np.ndarray, path: str
) -> tuple[Term, ...]:
    """Add the nodes of ``weight @ operand`` and return them as terms of the product.

    Args:
        builder: gets a node for each scale among the terms of the operand.
        operand: a vector or an image, which is flattened.
        weight: [M, N], whose columns have the order of the flat variable.
        path: of the new nodes.
    """
    # The columns in the order of the nodes.
    weight = weight[:, operand.order.ravel()]
    shape = operand.order.shape  # of each node, [N] or [C, H, W]
    terms = []
    for names, scale in builder.groups(operand, path):
        if len(shape) > 1:
            # A matrix reads vectors, so an image and its scale are flattened.
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


def vectorize(builder: Builder, operand: Sum, path: str) -> Sum:
    """The variable as a sum of vectors [N] in the order of the flat variable."""
    size = operand.order.size
    flat_order = np.arange(size)
    if operand.order.ndim == 1 and np.array_equal(operand.order, flat_order):
        return operand
    # An identity matrix reorders the elements. It is multiplied into what follows.
    terms = dense(builder, operand, np.eye(size), path)
    return Sum(terms, flat_order)


def conv(
    builder: Builder,
    operand: Sum,
    weight: np.ndarray,
    windows: Sequence[Window],
    path: str,
    *,
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> tuple[Term, ...]:
    """Add the nodes of a convolution and return them as terms of its result.

    Args:
        builder: gets a node for each scale among the terms of the operand.
        operand: an image.
        weight: [O, I / groups, rows, columns].
        windows: along rows and along columns.
        path: of the new nodes.
        dilation: elements from tap to tap, along rows and columns.
        groups: of channels.
    """
    padding = np.array([window.padding for window in windows])  # [axes, sides]
    if padding.min() < 0:
        # No layer skips elements. Zeros among the weights read them instead.
        zeros = np.maximum(-padding, 0)  # of the weights, [axes, sides]
        extents = [window.extent for window in windows]
        widths = zeros.sum(axis=1) + extents
        weight = _widened(
            weight,
            dilation,
            fronts=zeros[:, 0].tolist(),
            widths=widths.tolist(),
        )
        dilation = (1, 1)
        padding = np.maximum(padding, 0)
    (top, bottom), (left, right) = padding.tolist()
    channels = operand.order.shape[0]
    outputs_per_group = len(weight) // groups
    terms = []
    for names, scale in builder.groups(operand, path):
        # Each output channel reads the scales of the input channels of its group.
        scale = np.broadcast_to(scale.ravel(), channels)
        group_scales = scale.reshape(groups, -1)  # [groups, I / groups]
        output_scales = group_scales.repeat(outputs_per_group, axis=0)  # [O, ...]
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
    builder: Builder, operand: Sum, windows: Sequence[Window], path: str
) -> tuple[Term, ...]:
    """Add the nodes that sum over windows and return them as terms of the result.

    Args:
        builder: gets a node for each scale among the terms of the operand.
        operand: an image.
        windows: along rows and along columns.
        path: below which the new nodes are named.
    """
    path = join(path, "pool")
    extents = tuple(window.extent for window in windows)
    if not all(window.fits(window.extent, front=0) for window in windows):
        # A pool has equal padding on both sides. A depthwise convolution of ones, which
        # sums as well, need not.
        channels = operand.order.shape[0]
        ones = np.ones((channels, 1, *extents))
        return conv(builder, operand, ones, windows, path, groups=channels)
    terms = []
    for names, scale in builder.groups(operand, path):
        node = SumPool(
            path,
            tuple(names),
            window=extents,
            stride=tuple(window.stride for window in windows),
            padding=tuple(window.low for window in windows),
        )
        terms.append(Term(builder.add(node), scale))
    return tuple(terms)


# ------------------------------------------------------------ kernels with zeros


def axis_windows(node: Convolution) -> list[Window]:
    """The windows of a convolution along rows and along columns.

    Raises:
        ValueError: the size of its input is not known.
    """
    if not node.size:
        raise ValueError(
            f"the convolution {node.name!r} has no size of its input; allowed: rows "
            "and columns, as input_shape of a Conv2d in NIR"
        )
    windows = []
    for i in range(2):  # rows, then columns
        taps = node.weight.shape[2 + i]
        extent = (taps - 1) * node.dilation[i] + 1
        low, high = node.padding[i]
        padded_size = node.size[i] + low + high
        window = Window(
            size=node.size[i],
            results=(padded_size - extent) // node.stride[i] + 1,
            low=low,
            extent=extent,
            stride=node.stride[i],
        )
        windows.append(window)
    return windows


def padding_modes(windows: Sequence[Window]) -> tuple[str, ...]:
    """Names of the paddings that give these windows, one along rows, one along columns.

    A padding is known by how many windows there are along each axis, and by the zeros
    before the first one.
    """
    modes = {"SAME", "VALID"}
    for window in windows:
        count_and_zeros = (window.results, window.low)
        if count_and_zeros != _same_padding(window):
            modes.discard("SAME")
        if count_and_zeros != _valid_padding(window):
            modes.discard("VALID")
    return tuple(sorted(modes))


def _same_padding(window: Window) -> tuple[int, int]:
    """How many windows "SAME" makes along an axis, and its zeros before the image."""
    count = math.ceil(window.size / window.stride)
    covered = (count - 1) * window.stride + window.extent
    all_zeros = max(covered - window.size, 0)
    return count, all_zeros // 2


def _valid_padding(window: Window) -> tuple[int, int]:
    """How many windows "VALID" makes along an axis, and its zeros: none."""
    count = (window.size - window.extent) // window.stride + 1
    return count, 0


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
    # A kernel that is square already keeps its dilation.
    if all(window.extent == width for window in windows):
        return dataclasses.replace(node, padding=tuple(padding))
    return dataclasses.replace(
        node,
        weight=_widened(node.weight, node.dilation, fronts, (width, width)),
        padding=tuple(padding),
        dilation=(1, 1),
    )


def _square(windows: Sequence[Window]) -> tuple[int, list[int]]:
    """The smallest square kernel for the windows along rows and along columns.

    Returns:
        Its width, and for each axis the zeros in front of its first tap.

    Raises:
        NoLayer: no kernel with equal padding reads both.
    """
    smallest = max(window.extent for window in windows)
    # A zero more in front of a kernel and one more behind it change nothing: a width
    # that fits an axis fits it again two elements later. So the axes have a width in
    # common up to this one, which is beyond every size and padding, or never.
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

    This is the way back from `with_equal_padding`, whose kernels have no dilation.
    """
    if node.dilation != (1, 1) or not node.weight.any():
        return node
    row_is_used = node.weight.any(axis=(0, 1, 3))  # [rows of the kernel]
    column_is_used = node.weight.any(axis=(0, 1, 2))  # [columns of the kernel]
    row_padding, column_padding = node.padding
    rows, row_padding = _used_taps(row_is_used, row_padding)
    columns, column_padding = _used_taps(column_is_used, column_padding)
    return dataclasses.replace(
        node,
        weight=node.weight[:, :, rows, columns],
        padding=(row_padding, column_padding),
    )


def _used_taps(is_used: np.ndarray, padding: Zeros) -> tuple[slice, Zeros]:
    """A kernel's taps along one axis without zeros at its ends, and their padding.

    A zero at an end of the kernel goes together with a zero of the padding there.

    Args:
        is_used: for each tap, whether one of its weights is not 0.
        padding: zeros before and behind the image.
    """
    low, high = padding
    used_taps = np.flatnonzero(is_used).tolist()
    zeros_in_front = used_taps[0]
    zeros_behind = len(is_used) - 1 - used_taps[-1]
    front = min(zeros_in_front, low)
    back = min(zeros_behind, high)
    taps = slice(front, len(is_used) - back)
    return taps, (low - front, high - back)


def _fitting_front(window: Window, width: int) -> int | None:
    """The fewest zeros in front of a kernel of this width that reads these windows."""
    for front in range(width - window.extent + 1):
        if window.fits(width, front):
            return front
    return None


def _widened(
    weight: np.ndarray,
    dilation: Sequence[int],
    fronts: Sequence[int],
    widths: Sequence[int],
) -> np.ndarray:
    """A kernel within a wider one without dilation, zeros everywhere else.

    Args:
        weight: [O, I / groups, rows, columns].
        dilation: elements from tap to tap, along rows and columns.
        fronts: zeros in front of the first tap, along rows and columns.
        widths: rows and columns of the wider kernel.
    """
    wide = np.zeros((*weight.shape[:2], *widths))
    row_step, column_step = dilation
    first_row, first_column = fronts
    row_taps, column_taps = weight.shape[2:]
    rows = first_row + row_step * np.arange(row_taps)
    columns = first_column + column_step * np.arange(column_taps)
    wide[:, :, rows[:, None], columns] = weight
    return wide
