"""Rules of the operations that become layers of NIR, or sums over windows.

    dot_general            `dot`
    conv_general_dilated   `convolve`
    reduce_window_sum      `pool`
    reduce_sum             `reduce`

NIR has its layers for a vector [N] or an image [C, H, W] in this order of axes. The
rules find the axes of the variable that take these places (`arrangement`), then move
its order into the weights and the results. ``rules.py`` has all other operations.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from snnjax.network.equations import Equation, read
from snnjax.nir.layers import Window, conv, dense
from snnjax.nir.nodes import (
    Lowering,
    NotInNIR,
    Pool,
    Symbol,
    Term,
    group_terms,
    join,
    numbers,
)
from snnjax.nir.offsets import before_padding, operand, result_offset
from snnjax.nir.orders import (
    Arrangement,
    arrangement,
    ascending,
    flat_indices,
    flip,
    flips,
)


def dot(lowering: Lowering, equation: Equation) -> Symbol:
    """Dense if all of x is contracted, a 1x1 convolution if its channels are."""
    v = operand(lowering, equation)
    side = equation.inputs.index(v)
    contract, batch = equation.options["dimension_numbers"]
    if any(batch):
        raise NotInNIR(
            "a matrix product for each element of an axis (batched) is no NIR node",
            "write one matrix product, or a convolution with feature_group_count",
        )
    symbol, shape = lowering.symbol(v), lowering.network.avals[v].shape
    weight = numbers(read(lowering.values, equation.inputs[1 - side]))
    free = [a for a in range(weight.ndim) if a not in contract[1 - side]]
    inputs = math.prod(shape[a] for a in contract[side])
    weight = weight.transpose(*contract[1 - side], *free).reshape(inputs, -1)
    contracted = tuple(contract[side])
    rest = [a for a in range(len(shape)) if a not in contracted]
    if math.prod(shape[a] for a in rest) == 1:
        index = np.arange(inputs).reshape(shape).transpose(*contracted, *rest)
        matrix = np.empty_like(weight)
        matrix[index.ravel()] = weight
        terms = dense(lowering, symbol, matrix[symbol.order.ravel()].T, equation.path)
        order = np.arange(weight.shape[1])
        return Symbol(terms, order, result_offset(lowering, equation))
    image = None
    if symbol.order.ndim == 3 and len(contracted) == len(free) == 1:
        candidates = [contracted + p for p in itertools.permutations(rest, 2)]
        image = arrangement(symbol.order, shape, candidates)
    if image is None:
        raise NotInNIR(
            f"a matrix product along axes {contracted} of shape {shape[1:]}: NIR "
            "has one of a whole vector, or (1x1) of the channels of an image",
            "flatten first, or contract the channels of [H, W, C]",
        )
    return _dot_of_channels(lowering, equation, weight, image)


def _dot_of_channels(
    lowering: Lowering, equation: Equation, weight: np.ndarray, image: Arrangement
) -> Symbol:
    """A product of ``weight`` [I, O] and the channels of an image: a 1x1 kernel."""
    v = operand(lowering, equation)
    x_is_left = equation.inputs[0] == v
    channels, *spatial = image.indices
    kernel = weight.T[:, channels, None, None]
    windows = [Window(len(i), len(i), 0, 1, 1) for i in spatial]
    terms = conv(lowering, lowering.symbol(v), kernel, windows, equation.path)
    # The axes of a result: those of the left operand that are not contracted, then
    # those of the right one.
    out_shape = lowering.network.avals[equation.outputs[0]].shape
    in_shape = lowering.network.avals[v].shape
    rest = [a for a in range(len(in_shape)) if a != image.axes[0]]
    out_channel = len(out_shape) - 1 if x_is_left else 0
    out_spatial = [rest.index(a) + (not x_is_left) for a in image.axes[1:]]
    order = flat_indices(out_shape, (out_channel, *out_spatial))
    order = order[:, spatial[0]][:, :, spatial[1]]
    return Symbol(terms, order, result_offset(lowering, equation))


def convolve(lowering: Lowering, equation: Equation) -> Symbol:
    """A convolution; one of a transposed or flipped image moves the kernel instead."""
    v, options = operand(lowering, equation), equation.options
    spec = options["dimension_numbers"]
    shape = lowering.network.avals[v].shape
    out_shape = lowering.network.avals[equation.outputs[0]].shape
    plain = options["batch_group_count"] == 1 and set(options["lhs_dilation"]) <= {1}
    if equation.inputs[0] != v or len(shape) != 4 or not plain:
        raise NotInNIR(
            "the only convolutions of NIR are 2-D, of activations, not transposed",
            "use a 2-D convolution [B, H, W, C] without lhs_dilation",
        )
    symbol = before_padding(lowering, equation, v, spec.out_spec[1])
    image = _image_to_convolve(symbol, shape, spec.lhs_spec[1:])
    weight = numbers(read(lowering.values, equation.inputs[1]))
    weight = weight.transpose(spec.rhs_spec)
    windows = _kernel_windows(options, shape, out_shape, weight.shape[2:])
    groups, dilation = options["feature_group_count"], options["rhs_dilation"]
    out_spatial = spec.out_spec[2:]
    if image.axes[1:] != spec.lhs_spec[2:]:  # the nodes have columns before rows
        weight = weight.swapaxes(2, 3)
        windows, dilation = windows[::-1], dilation[::-1]
        out_spatial = out_spatial[::-1]
    channels, *spatial = image.indices
    backwards = _flips(spatial, shape)
    weight = flip(weight, backwards)
    windows = _reversed_where(windows, backwards)
    if groups == 1:
        weight = weight[:, channels]
    elif not ascending(channels):  # each group reads channels of its own
        symbol = _with_sorted_channels(lowering, symbol, image, equation.path)
    terms = conv(
        lowering,
        symbol,
        weight,
        windows,
        equation.path,
        dilation=dilation,
        groups=groups,
    )
    order = flip(flat_indices(out_shape, (spec.out_spec[1], *out_spatial)), backwards)
    offset = result_offset(lowering, equation, {v: symbol.offset})
    return Symbol(terms, order, offset)


def _kernel_windows(
    options: Mapping[str, Any],
    shape: Sequence[int],
    out_shape: Sequence[int],
    kernel: Sequence[int],
) -> list[Window]:
    """What a convolution reads along its rows and its columns.

    Args:
        options: of conv_general_dilated.
        shape, out_shape: of its input and its result, with the batch axis.
        kernel: rows and columns of the kernel.
    """
    spec = options["dimension_numbers"]
    return [
        Window(shape[a], out_shape[b], low, (n - 1) * dilation + 1, stride)
        for a, b, (low, _), n, dilation, stride in zip(
            spec.lhs_spec[2:],
            spec.out_spec[2:],
            options["padding"],
            kernel,
            options["rhs_dilation"],
            options["window_strides"],
            strict=True,
        )
    ]


def _with_sorted_channels(
    lowering: Lowering, symbol: Symbol, image: Arrangement, path: str
) -> Symbol:
    """An image with its channels in the variable's order, by a 1x1 convolution."""
    channels, *spatial = image.indices
    permutation = np.eye(len(channels))[:, channels, None, None]
    windows = [Window(len(i), len(i), 0, 1, 1) for i in spatial]
    terms = conv(lowering, symbol, permutation, windows, path)
    return symbol._replace(terms=terms)


def _image_to_convolve(
    symbol: Symbol, shape: Sequence[int], axes: Sequence[int]
) -> Arrangement:
    """How nodes arrange the axes (channels, rows, columns) of a convolution."""
    channel, rows, columns = axes
    image = None
    if symbol.order.ndim == 3:
        candidates = [(channel, rows, columns), (channel, columns, rows)]
        image = arrangement(symbol.order, shape, candidates)
    if image is None:
        raise NotInNIR(
            f"a convolution of {tuple(shape[1:])}, which was a vector or another image "
            "before a reshape or transpose: NIR has no node that unflattens",
            "keep [H, W, C] from the input to the last convolution",
        )
    return image


def _flips(indices: Sequence[np.ndarray], shape: Sequence[int]) -> list[bool]:
    """Whether rows and columns run backwards."""
    backwards = flips(indices)
    if backwards is None:
        raise NotInNIR(
            f"it reads windows of an image {tuple(shape[1:])} whose rows or columns "
            "were permuted: NIR has no node for that permutation",
            "permute before fn, or only flip whole axes",
        )
    return backwards


def _reversed_where(
    windows: Sequence[Window], backwards: Sequence[bool]
) -> list[Window]:
    """The windows, reversed along the axes that run backwards."""
    return [w.reversed() if b else w for w, b in zip(windows, backwards, strict=True)]


def pool(lowering: Lowering, equation: Equation) -> Symbol:
    """A sum over windows of rows and columns."""
    v, options = operand(lowering, equation), equation.options
    shape = lowering.network.avals[v].shape
    out_shape = lowering.network.avals[equation.outputs[0]].shape
    image = _image_to_pool(lowering.symbol(v), shape, options)
    symbol = before_padding(lowering, equation, v, image.axes[0])
    backwards = _flips(image.indices[1:], shape)
    sizes, strides = options["window_dimensions"], options["window_strides"]
    lows = [low for low, _ in options["padding"]]
    windows = [
        Window(shape[a], out_shape[a], lows[a], sizes[a], strides[a])
        for a in image.axes[1:]
    ]
    windows = _reversed_where(windows, backwards)
    path = join(equation.path, "pool")
    terms = []
    for names, scale in group_terms(lowering, symbol, equation.path):
        if all(w.fits(w.reach, 0) for w in windows):
            size, stride, low = (
                tuple(getattr(w, field) for w in windows)
                for field in ("reach", "stride", "low")
            )
            name = lowering.add(path, Pool(size, stride, low), names)
            terms.append(Term(name, scale, True))
            continue
        # A pool of NIR cannot read these windows; a convolution with weights 1 can.
        channels = symbol.order.shape[0]
        part = Symbol(tuple(Term(n, scale, False) for n in names), symbol.order)
        ones = np.ones((channels, 1, *(w.reach for w in windows)))
        terms += conv(lowering, part, ones, windows, path, groups=channels)
    order = flip(flat_indices(out_shape, image.axes), backwards)[image.indices[0]]
    offset = result_offset(lowering, equation, {v: symbol.offset})
    return Symbol(tuple(terms), order, offset)


def _image_to_pool(
    symbol: Symbol, shape: Sequence[int], options: Mapping[str, Any]
) -> Arrangement:
    """How nodes arrange the axes of a pool, its windows along the last two.

    Args:
        symbol, shape: of the operand, with the batch axis.
        options: of reduce_window_sum.
    """
    _check_image(symbol, shape)
    sizes, strides = options["window_dimensions"], options["window_strides"]
    pads = options["padding"]
    pooled_axes = {
        a for a in range(len(shape)) if (sizes[a], strides[a], *pads[a]) != (1, 1, 0, 0)
    }
    # The batch axis comes last, so that it replaces no other axis of size 1.
    candidates = [
        axes
        for axes in itertools.permutations([*range(1, len(shape)), 0], 3)
        if pooled_axes <= set(axes[1:])
    ]
    image = arrangement(symbol.order, shape, candidates)
    dilations = {*options["base_dilation"], *options["window_dilation"]}
    if image is None or dilations > {1}:
        raise NotInNIR(
            "the only pooling of NIR is over height and width, without dilation",
            "pool over windows (1, h, w, 1)",
        )
    return image


def reduce(lowering: Lowering, equation: Equation) -> Symbol:
    """A sum over rows, columns or both: one window as large as the image."""
    v = operand(lowering, equation)
    symbol, shape = lowering.symbol(v), lowering.network.avals[v].shape
    summed_axes = equation.options["axes"]
    _check_image(symbol, shape)
    size = [1 if a in summed_axes else n for a, n in enumerate(shape)]
    # The result that each element is added to.
    sums = np.broadcast_to(np.arange(math.prod(size)).reshape(size), shape)
    sums = sums.ravel()[symbol.order]
    rows, columns = symbol.order.shape[1:]
    for window in ((rows, columns), (rows, 1), (1, columns), (1, 1)):
        order = sums[:, :: window[0], :: window[1]]
        repeated = order.repeat(window[0], 1).repeat(window[1], 2)
        if order.size == math.prod(size) and np.array_equal(sums, repeated):
            break
    else:
        raise NotInNIR(
            "the only sums of NIR are over height and width", "use a matrix product"
        )
    path = join(equation.path, "pool")
    terms = [
        Term(lowering.add(path, Pool(window, window), names), scale, True)
        for names, scale in group_terms(lowering, symbol, equation.path)
    ]
    return Symbol(tuple(terms), order, result_offset(lowering, equation))


def _check_image(symbol: Symbol, shape: Sequence[int]) -> None:
    if symbol.order.ndim != 3:
        raise NotInNIR(
            f"it sums over parts of {tuple(shape[1:])}, which is no image [H, W, C]",
            "write it as a matrix product of the flattened activations",
        )
