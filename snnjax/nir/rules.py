"""Equations of a captured network as nodes of NIR: one rule per primitive.

Each rule returns the `Symbol` of an equation's result, computed from the symbols of its
operands, or raises `NotInNIR`. Operands that do not depend on the input are constants.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from snnjax.network.equations import Equation, read
from snnjax.network.evaluate import evaluate, identity
from snnjax.nir.layers import Window, conv, dense, select_elements, sum_of
from snnjax.nir.nodes import (
    Lowering,
    NotInNIR,
    Pool,
    Symbol,
    Term,
    group_terms,
    join,
    numbers,
    times,
)
from snnjax.nir.orders import (
    Arrangement,
    arrangement,
    ascending,
    flat_indices,
    flip,
    flips,
)


def lower(lowering: Lowering, equation: Equation) -> None:
    """Add the symbols of an equation's outputs, with the nodes that they need.

    Raises:
        NotInNIR: NIR has no node for the operation.
    """
    name = equation.name
    if name in _UNCHANGED:
        symbols = [lowering.symbol(_operand(lowering, equation))]
    elif name in _MOVES:
        symbols = _move(lowering, equation)
    elif name in _LOWERINGS:
        symbols = [_LOWERINGS[name](lowering, equation)]
    else:
        raise NotInNIR(
            "NIR has no node for it",
            "use convolutions, matrix products, sums, scales, sum and average "
            "pooling, flatten",
        )
    lowering.symbols.update(zip(equation.outputs, symbols, strict=True))


def entrance(lowering: Lowering) -> np.ndarray:
    """Which element of x each element of the graph's input is (`Symbol.order`).

    An image comes channels first, its rows and columns as in x. The first convolution
    decides which axis of x counts channels; without one it is the last.
    """
    network = lowering.network
    shape = network.avals[network.x].shape
    order = np.arange(math.prod(shape)).reshape(shape[1:])
    return np.moveaxis(order, _channel_axis(lowering), 0) if len(shape) == 4 else order


def _channel_axis(lowering: Lowering) -> int:
    """The axis of an example x [., ., .] that the first convolution reads as channels.

    The elements of x (from 1; 0 is none of them) are followed to that convolution; the
    channel axis of x is the one along which they vary with its input channels alone.
    """
    network = lowering.network
    shape = network.avals[network.x].shape
    index = {network.x: np.arange(1, math.prod(shape) + 1).reshape(shape)}
    for equation in network.equations:
        operands = [v for v in equation.variables if v in index]
        if len(operands) != 1:
            continue
        name, result, elements = equation.name, equation.outputs[0], index[operands[0]]
        if name == "conv_general_dilated" and elements.ndim == 4:
            spec = equation.options["dimension_numbers"].lhs_spec
            varying = _varying_axes(elements.transpose(spec)[0], shape[1:])
            channels = varying[0] - varying[1] - varying[2]
            spatial = varying[1] | varying[2]
            # A single channel has no second element: it is the remaining axis.
            candidates = channels or {0, 1, 2} - spatial
            return max(candidates, default=2)
        if name in _MOVES:
            moved = _linear_part(lowering, equation, index)
            moved = [np.rint(elements).astype(int) for elements in moved]
            index.update(zip(equation.outputs, moved, strict=True))
        elif network.avals[result].shape == elements.shape:
            index[result] = elements
    return 2


def _varying_axes(elements: np.ndarray, shape: Sequence[int]) -> list[set[int]]:
    """For each axis of an image of elements, the axes of x that vary along it."""
    coordinates = np.unravel_index(np.maximum(elements - 1, 0), tuple(shape))
    varying: list[set[int]] = []
    for axis in range(elements.ndim):
        first, second = (np.delete(elements, drop, axis) for drop in (-1, 0))
        both = (first > 0) & (second > 0)
        varying.append(
            {
                a
                for a, coordinate in enumerate(coordinates)
                if (np.diff(coordinate, axis=axis) != 0)[both].any()
            }
        )
    return varying


# Only the type of the numbers changes: NIR computes in float32.
_UNCHANGED = frozenset(
    "convert_element_type copy copy_p mesh_cast name optimization_barrier "
    "reduce_precision reshard sharding_constraint stop_gradient".split()
)


# Each element of the result is one of the operands', or a constant.
_MOVES = frozenset(
    "broadcast_in_dim concatenate dynamic_slice expand_dims gather pad reshape rev "
    "slice split squeeze stack tile transpose unstack".split()
)


def _add(lowering: Lowering, equation: Equation) -> Symbol:
    minus = equation.name == "sub"
    operands = [
        (lowering.symbol(v), -1.0 if minus and i else 1.0)
        for i, v in enumerate(equation.inputs)
        if isinstance(v, int) and v in lowering.symbols
    ]
    symbols = [times(symbol, sign) for symbol, sign in operands]
    total = sum_of(lowering, symbols, equation.path)
    return total._replace(offset=_offset(lowering, equation))


def _negate(lowering: Lowering, equation: Equation) -> Symbol:
    symbol = lowering.symbol(_operand(lowering, equation))
    offset = _offset(lowering, equation)
    return times(symbol, -1.0)._replace(offset=offset)


def _multiply(lowering: Lowering, equation: Equation) -> Symbol:
    v = _operand(lowering, equation)
    (constant,) = (numbers(read(lowering.values, u)) for u in equation.inputs if u != v)
    symbol = lowering.symbol(v)
    factor = np.broadcast_to(constant, lowering.network.avals[v].shape).ravel()
    factor = factor[symbol.order]
    if equation.name == "div":
        factor = 1 / factor
    return times(symbol, factor)._replace(offset=_offset(lowering, equation))


def _select(lowering: Lowering, equation: Equation) -> Symbol:
    which, *cases = equation.inputs
    chosen = np.asarray(read(lowering.values, which)).astype(int)
    symbols = []
    for i, v in enumerate(cases):
        if isinstance(v, int) and v in lowering.symbols:
            symbol = lowering.symbol(v)
            shape = lowering.network.avals[v].shape
            mask = np.broadcast_to(chosen == i, shape).ravel()[symbol.order]
            symbols.append(times(symbol, mask.astype(np.float64)))
    total = sum_of(lowering, symbols, equation.path)
    return total._replace(offset=_offset(lowering, equation))


def _dot(lowering: Lowering, equation: Equation) -> Symbol:
    """Dense if all of x is contracted, a 1x1 convolution if its channels are."""
    v = _operand(lowering, equation)
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
        return Symbol(terms, order, _offset(lowering, equation))
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
    channels, *spatial = image.indices
    kernel = weight.T[:, channels, None, None]
    windows = [Window(len(i), len(i), 0, 1, 1) for i in spatial]
    terms = conv(lowering, symbol, kernel, windows, equation.path)
    outputs = lowering.network.avals[equation.outputs[0]].shape
    channel = len(outputs) - 1 if side == 0 else 0
    places = [rest.index(a) + (side == 1) for a in image.axes[1:]]
    order = flat_indices(outputs, (channel, *places))
    order = order[:, spatial[0]][:, :, spatial[1]]
    return Symbol(terms, order, _offset(lowering, equation))


def _convolve(lowering: Lowering, equation: Equation) -> Symbol:
    """A convolution; one of a transposed or flipped image moves the kernel instead."""
    v, options = _operand(lowering, equation), equation.options
    spec = options["dimension_numbers"]
    shape = lowering.network.avals[v].shape
    outputs = lowering.network.avals[equation.outputs[0]].shape
    plain = options["batch_group_count"] == 1 and set(options["lhs_dilation"]) <= {1}
    if equation.inputs[0] != v or len(shape) != 4 or not plain:
        raise NotInNIR(
            "the only convolutions of NIR are 2-D, of activations, not transposed",
            "use a 2-D convolution [B, H, W, C] without lhs_dilation",
        )
    symbol = _continued(lowering, equation, v, spec.out_spec[1])
    image = _image_to_convolve(symbol, shape, spec.lhs_spec[1:])
    weight = numbers(read(lowering.values, equation.inputs[1]))
    weight = weight.transpose(spec.rhs_spec)
    groups, dilation = options["feature_group_count"], options["rhs_dilation"]
    windows = [
        Window(shape[a], outputs[b], low, (n - 1) * d + 1, stride)
        for a, b, (low, _), n, d, stride in zip(
            spec.lhs_spec[2:],
            spec.out_spec[2:],
            options["padding"],
            weight.shape[2:],
            dilation,
            options["window_strides"],
            strict=True,
        )
    ]
    results = spec.out_spec[2:]
    if image.axes[1:] != spec.lhs_spec[2:]:
        weight = weight.swapaxes(2, 3)
        windows, dilation, results = windows[::-1], dilation[::-1], results[::-1]
    channels, *spatial = image.indices
    backwards = _flips(spatial, shape)
    weight = flip(weight, backwards)
    windows = [
        w.reversed() if b else w for w, b in zip(windows, backwards, strict=True)
    ]
    if groups == 1:
        weight = weight[:, channels]
    elif not ascending(channels):  # each group reads its own: a 1x1 convolution sorts
        unit = np.eye(len(channels))[:, channels, None, None]
        sizes = [Window(w.size, w.size, 0, 1, 1) for w in windows]
        terms = conv(lowering, symbol, unit, sizes, equation.path)
        symbol = symbol._replace(terms=terms)
    terms = conv(
        lowering,
        symbol,
        weight,
        windows,
        equation.path,
        dilation=dilation,
        groups=groups,
    )
    order = flip(flat_indices(outputs, (spec.out_spec[1], *results)), backwards)
    return Symbol(terms, order, _offset(lowering, equation, {v: symbol.offset}))


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


def _pool(lowering: Lowering, equation: Equation) -> Symbol:
    """A sum over windows of rows and columns."""
    v, options = _operand(lowering, equation), equation.options
    shape = lowering.network.avals[v].shape
    outputs = lowering.network.avals[equation.outputs[0]].shape
    sizes, strides = options["window_dimensions"], options["window_strides"]
    pads = options["padding"]
    _check_image(lowering.symbol(v), shape)
    pooled = [
        a for a in range(len(shape)) if (sizes[a], strides[a], *pads[a]) != (1, 1, 0, 0)
    ]
    image = arrangement(
        lowering.symbol(v).order,
        shape,
        [
            axes
            for axes in itertools.permutations([*range(1, len(shape)), 0], 3)
            if set(pooled) <= set(axes[1:])
        ],
    )
    dilations = {*options["base_dilation"], *options["window_dilation"]}
    if image is None or dilations > {1}:
        raise NotInNIR(
            "the only pooling of NIR is over height and width, without dilation",
            "pool over windows (1, h, w, 1)",
        )
    symbol = _continued(lowering, equation, v, image.axes[0])
    spatial = image.axes[1:]
    backwards = _flips(image.indices[1:], shape)
    windows = [
        Window(shape[a], outputs[a], pads[a][0], sizes[a], strides[a]) for a in spatial
    ]
    windows = [
        w.reversed() if b else w for w, b in zip(windows, backwards, strict=True)
    ]
    terms = []
    for names, scale in group_terms(lowering, symbol, equation.path):
        if all(w.fits(w.reach, 0) for w in windows):
            size, stride, low = (
                tuple(getattr(w, field) for w in windows)
                for field in ("reach", "stride", "low")
            )
            name = lowering.add(
                join(equation.path, "pool"), Pool(size, stride, low), names
            )
            terms.append(Term(name, scale, True))
            continue
        channels = symbol.order.shape[0]
        part = Symbol(tuple(Term(n, scale, False) for n in names), symbol.order)
        terms += conv(
            lowering,
            part,
            np.ones((channels, 1, *(w.reach for w in windows))),
            windows,
            join(equation.path, "pool"),
            groups=channels,
        )
    order = flip(flat_indices(outputs, image.axes), backwards)[image.indices[0]]
    return Symbol(tuple(terms), order, _offset(lowering, equation, {v: symbol.offset}))


def _reduce(lowering: Lowering, equation: Equation) -> Symbol:
    """A sum over rows, columns or both: one window as large as the image."""
    v = _operand(lowering, equation)
    symbol, shape = lowering.symbol(v), lowering.network.avals[v].shape
    summed = equation.options["axes"]
    _check_image(symbol, shape)
    size = [1 if a in summed else n for a, n in enumerate(shape)]
    order = np.broadcast_to(np.arange(math.prod(size)).reshape(size), shape)
    order = order.ravel()[symbol.order]  # to which result each element is added
    rows, columns = symbol.order.shape[1:]
    for window in ((rows, columns), (rows, 1), (1, columns), (1, 1)):
        results = order[:, :: window[0], :: window[1]]
        repeated = results.repeat(window[0], 1).repeat(window[1], 2)
        if results.size == math.prod(size) and np.array_equal(order, repeated):
            break
    else:
        raise NotInNIR(
            "the only sums of NIR are over height and width", "use a matrix product"
        )
    terms = []
    for names, scale in group_terms(lowering, symbol, equation.path):
        name = join(equation.path, "pool")
        name = lowering.add(name, Pool(window, window), names)
        terms.append(Term(name, scale, True))
    return Symbol(tuple(terms), results, _offset(lowering, equation))


def _move(lowering: Lowering, equation: Equation) -> list[Symbol]:
    """Permutations need no node; a part of x, or zeros around it, needs one."""
    parts: list[list[Symbol]] = [[] for _ in equation.outputs]
    for v in dict.fromkeys(u for u in equation.inputs if u in lowering.symbols):
        assert isinstance(v, int)
        shape = lowering.network.avals[v].shape
        index = np.arange(1, math.prod(shape) + 1).reshape(shape)
        moved = _linear_part(lowering, equation, {v: index})
        for selections, source in zip(parts, moved, strict=True):
            source = np.rint(source).astype(int) - 1
            if (source >= 0).any():
                symbol = lowering.symbol(v)
                if len(equation.outputs) > 1:
                    terms = tuple(t._replace(owned=False) for t in symbol.terms)
                    symbol = symbol._replace(terms=terms)
                selections.append(
                    select_elements(lowering, symbol, source, shape, equation.path)
                )
    sums = [sum_of(lowering, symbols, equation.path) for symbols in parts]
    offsets = _offsets(lowering, equation)
    return [s._replace(offset=o) for s, o in zip(sums, offsets, strict=True)]


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


def _continued(lowering: Lowering, equation: Equation, v: int, channel: int) -> Symbol:
    """The symbol of an operand that the equation may pad with zeros.

    A constant that the zeros do not continue (as of a norm before the convolution) must
    be in the nodes' biases; every other constant is added at the next neuron.
    """
    offset = _offset(lowering, equation)
    (out,) = equation.outputs
    rest = numbers(lowering.values[out])
    rounding = 1e-5 * np.abs(rest).max(initial=0)
    rest = rest if offset is None else rest - offset
    others = tuple(a for a in range(rest.ndim) if a != channel)
    if (np.abs(rest - rest.mean(axis=others, keepdims=True)) <= rounding).all():
        return lowering.symbol(v)
    return lowering.absorb_constant(v, equation.path)


def _offset(
    lowering: Lowering,
    equation: Equation,
    changes: Mapping[int, np.ndarray | None] | None = None,
) -> np.ndarray | None:
    """`Symbol.offset` of an equation's only result."""
    return _offsets(lowering, equation, changes)[0]


def _offsets(
    lowering: Lowering,
    equation: Equation,
    changes: Mapping[int, np.ndarray | None] | None = None,
) -> list[np.ndarray | None]:
    """`Symbol.offset` of an equation's results.

    Args:
        changes: operand -> its offset, where it is no longer that of its symbol.
    """
    offsets = {
        v: lowering.symbols[v].offset
        for v in equation.variables
        if v in lowering.symbols
    } | dict(changes or {})
    nonzero = {v: offset for v, offset in offsets.items() if offset is not None}
    if not nonzero:
        return [None] * len(equation.outputs)
    return [*_linear_part(lowering, equation, nonzero)]


def _linear_part(
    lowering: Lowering, equation: Equation, inputs: Mapping[int, np.ndarray]
) -> list[np.ndarray]:
    """The results' change when variables change from zero to ``inputs``."""
    values, changed = {}, {}
    for v in equation.variables:
        value = jnp.asarray(lowering.values[v])
        if jnp.issubdtype(value.dtype, jnp.floating):
            value = value.astype(jnp.float32)
        values[v] = jnp.zeros_like(value) if v in lowering.network.dependent else value
        changed[v] = jnp.asarray(inputs.get(v, values[v]), value.dtype)
    evaluate([equation], values, identity)
    evaluate([equation], changed, identity)
    return [numbers(changed[v]) - numbers(values[v]) for v in equation.outputs]


def _check_image(symbol: Symbol, shape: Sequence[int]) -> None:
    if symbol.order.ndim != 3:
        raise NotInNIR(
            f"it sums over parts of {tuple(shape[1:])}, which is no image [H, W, C]",
            "write it as a matrix product of the flattened activations",
        )


def _operand(lowering: Lowering, equation: Equation) -> int:
    (v,) = {u for u in equation.variables if u in lowering.symbols}
    return v
