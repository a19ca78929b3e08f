"""Equations of a captured network as nodes of NIR: one rule per primitive.

Each rule gives the `Symbol` of an equation's result from those of its operands, or
raises `NotInNIR`. What does not depend on the input is a number by then.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from snnjax.network.equations import Equation, read
from snnjax.network.evaluate import evaluate, identity
from snnjax.nir.layers import conv, dense, sum_of, taken
from snnjax.nir.nodes import (
    Lowering,
    NotInNIR,
    Pool,
    Symbol,
    Term,
    groups_of,
    join,
    layout,
    numbers,
    ordered,
    times,
)


def lower(lowering: Lowering, equation: Equation) -> None:
    """Add the symbols of an equation's outputs, with the nodes that they need.

    Raises:
        NotInNIR: NIR cannot say it.
    """
    name = equation.name
    if name in _UNCHANGED:
        made = [lowering.symbol(_operand(lowering, equation))]
    elif name in _MOVES:
        made = _move(lowering, equation)
    elif name in _LOWERINGS:
        made = [_LOWERINGS[name](lowering, equation)]
    else:
        raise NotInNIR(
            "NIR has no node for it",
            "use convolutions, matrix products, sums, scales, sum and average "
            "pooling, flatten",
        )
    lowering.symbols.update(zip(equation.outputs, made, strict=True))


def entrance(lowering: Lowering) -> np.ndarray:
    """Which element of x each element of the graph's input is (`Symbol.order`).

    Of an image x [H, W, C] the first convolution tells, or else its shape.
    """
    network = lowering.network
    shape = network.avals[network.x].shape
    index = {network.x: np.arange(1, math.prod(shape) + 1).reshape(shape)}
    for equation in network.equations:
        known = [v for v in equation.variables if v in index]
        if len(shape) != 4 or len(known) != 1 or equation.site is not None:
            continue
        name, made, (v,) = equation.name, equation.outputs[0], known
        if name == "conv_general_dilated" and index[v].ndim == 4:
            spec = equation.options["dimension_numbers"].lhs_spec
            return index[v].transpose(spec)[0] - 1
        if name in _MOVES:
            moved = _linear_part(lowering, equation, index)[0]
            if np.array_equal(np.sort(moved.ravel()), np.arange(1, index[v].size + 1)):
                index[made] = moved.astype(int)
        elif network.avals[made].shape == index[v].shape:
            index[made] = index[v]
    order = np.arange(math.prod(shape)).reshape(shape[1:])
    return np.moveaxis(order, -1, 0) if order.ndim == 3 else order


# Nothing changes in the numbers but their type: NIR computes in float32.
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
    symbols = [times(symbol, np.float64(sign)) for symbol, sign in operands]
    total = sum_of(lowering, symbols, equation.path)
    return total._replace(carried=_carried(lowering, equation))


def _negate(lowering: Lowering, equation: Equation) -> Symbol:
    symbol = lowering.symbol(_operand(lowering, equation))
    carried = _carried(lowering, equation)
    return times(symbol, np.float64(-1))._replace(carried=carried)


def _multiply(lowering: Lowering, equation: Equation) -> Symbol:
    v = _operand(lowering, equation)
    (constant,) = (numbers(read(lowering.values, u)) for u in equation.inputs if u != v)
    symbol = lowering.symbol(v)
    factor = np.broadcast_to(constant, lowering.network.avals[v].shape).ravel()
    factor = factor[symbol.order]
    if equation.name == "div":
        factor = 1 / factor
    return times(symbol, factor)._replace(carried=_carried(lowering, equation))


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
    return total._replace(carried=_carried(lowering, equation))


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
    kept = [a for a in range(len(shape)) if a not in contract[side]]
    if math.prod(shape[a] for a in kept) == 1:
        index = np.arange(inputs).reshape(shape).transpose(*contract[side], *kept)
        matrix = np.empty_like(weight)
        matrix[index.ravel()] = weight
        terms = dense(lowering, symbol, matrix[symbol.order.ravel()].T, equation.path)
        order = np.arange(weight.shape[1])
        return Symbol(terms, order, _carried(lowering, equation))
    axes = layout(symbol.order, shape)
    image = axes is not None and len(axes) == 3 and contracted == axes[:1]
    if not image or axes is None or len(free) != 1:
        raise NotInNIR(
            f"a matrix product along axes {contracted} of shape {shape[1:]}: NIR "
            "has one of a whole vector, or (1x1) of the channels of an image",
            "flatten first, or contract the channels of [H, W, C]",
        )
    kernel = weight.T[:, :, None, None]
    terms = conv(lowering, symbol, kernel, symbol.order.shape[1:], equation.path)
    outputs = lowering.network.avals[equation.outputs[0]].shape
    channel = len(outputs) - 1 if side == 0 else 0
    place = [kept.index(a) + (side == 1) for a in axes[1:]]
    order = ordered(outputs, (channel, *place))
    return Symbol(terms, order, _carried(lowering, equation))


def _convolve(lowering: Lowering, equation: Equation) -> Symbol:
    v, params = _operand(lowering, equation), equation.options
    spec = params["dimension_numbers"]
    shape = lowering.network.avals[v].shape
    outputs = lowering.network.avals[equation.outputs[0]].shape
    plain = params["batch_group_count"] == 1 and set(params["lhs_dilation"]) <= {1}
    if equation.inputs[0] != v or len(shape) != 4 or not plain:
        raise NotInNIR(
            "of convolutions NIR knows the 2-D ones of the activations, not transposed",
            "use a 2-D convolution [B, H, W, C] without lhs_dilation",
        )
    image = ordered(shape, spec.lhs_spec[1:])
    symbol, groups = lowering.symbol(v), params["feature_group_count"]
    symbol = _whole(lowering, equation, v, symbol, spec.out_spec[1])
    weight = numbers(read(lowering.values, equation.inputs[1]))
    weight = weight.transpose(spec.rhs_spec)
    if not np.array_equal(symbol.order, image):
        channels = _channel_order(symbol.order, image, shape)
        if groups > 1:  # each reads its own channels: a 1x1 convolution brings them
            unit = np.eye(len(channels))[:, channels, None, None]
            terms = conv(lowering, symbol, unit, image.shape[1:], equation.path)
            symbol = symbol._replace(terms=terms, order=image)
        else:
            weight = weight[:, channels]
    out = [outputs[a] for a in spec.out_spec[2:]]
    terms = conv(
        lowering,
        symbol,
        weight,
        out,
        equation.path,
        stride=params["window_strides"],
        low=[low for low, _ in params["padding"]],
        dilation=params["rhs_dilation"],
        groups=groups,
    )
    order = ordered(outputs, spec.out_spec[1:])
    return Symbol(terms, order, _carried(lowering, equation, v, symbol))


def _channel_order(order: np.ndarray, image: np.ndarray, shape) -> list[int]:
    """Which channel of an image each channel of its nodes is."""
    if order.shape == image.shape:
        number = {int(first): c for c, first in enumerate(image[:, 0, 0])}
        channels = [number.get(int(first), 0) for first in order[:, 0, 0]]
        if np.array_equal(image[channels], order):
            return channels
        reason = (
            f"a convolution of an image {shape[1:]} whose rows or columns have moved"
        )
        raise NotInNIR(f"{reason}: NIR has no node for that", "move the kernel instead")
    raise NotInNIR(
        f"a convolution of what was a vector (or another image) before it was "
        f"reshaped to {shape[1:]}: NIR has no node that unflattens",
        "keep [H, W, C] from the input to the last convolution",
    )


def _pool(lowering: Lowering, equation: Equation) -> Symbol:
    v, params = _operand(lowering, equation), equation.options
    symbol, shape = lowering.symbol(v), lowering.network.avals[v].shape
    outputs = lowering.network.avals[equation.outputs[0]].shape
    axes = _image_axes(symbol, shape)
    dilated = {*params["base_dilation"], *params["window_dilation"]} > {1}
    window, stride = params["window_dimensions"], params["window_strides"]
    if window[axes[0]] != 1 or stride[axes[0]] != 1 or dilated:
        raise NotInNIR(
            "of pooling NIR knows that over height and width, without dilation",
            "pool over windows (1, h, w, 1)",
        )
    window, stride = [[a[i] for i in axes[1:]] for a in (window, stride)]
    padding = [params["padding"][i] for i in axes[1:]]
    symbol = _whole(lowering, equation, v, symbol, axes[0])
    terms = []
    for names, scale in groups_of(lowering, symbol, equation.path):
        if all(low == high for low, high in padding):
            node = Pool(tuple(window), tuple(stride), tuple(low for low, _ in padding))
            name = lowering.add(join(equation.path, "pool"), node, names)
            terms.append(Term(name, scale, True))
            continue
        channels = symbol.order.shape[0]
        part = Symbol(tuple(Term(n, scale, False) for n in names), symbol.order)
        terms += conv(
            lowering,
            part,
            np.ones((channels, 1, *window)),
            [outputs[a] for a in axes[1:]],
            join(equation.path, "pool"),
            stride=stride,
            low=[low for low, _ in padding],
            groups=channels,
        )
    order = ordered(outputs, axes)
    return Symbol(tuple(terms), order, _carried(lowering, equation, v, symbol))


def _reduce(lowering: Lowering, equation: Equation) -> Symbol:
    """A sum over height, width or both: one window as large as the image."""
    v = _operand(lowering, equation)
    symbol, shape = lowering.symbol(v), lowering.network.avals[v].shape
    axes, gone = _image_axes(symbol, shape), equation.options["axes"]
    if not set(gone) <= set(axes[1:]):
        raise NotInNIR(
            "of sums NIR knows those over height and width", "use a matrix product"
        )
    window = [shape[a] if a in gone else 1 for a in axes[1:]]
    terms = tuple(
        Term(
            lowering.add(
                join(equation.path, "pool"),
                Pool(tuple(window), tuple(window)),
                names,
            ),
            scale,
            True,
        )
        for names, scale in groups_of(lowering, symbol, equation.path)
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
                parts.append(taken(lowering, symbol, source, shape, equation.path))
    sums = [sum_of(lowering, parts, equation.path) for parts in made]
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


def _whole(lowering: Lowering, equation, v: int, symbol: Symbol, channel: int):
    """x as a node that pads it may read it.

    A constant that padding does not continue (that of a norm before the convolution)
    must be in x itself; every other can wait for the next neuron.
    """
    carried = _carried(lowering, equation)
    (out,) = equation.outputs
    rest = numbers(lowering.values[out])
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
        v: lowering.symbols[v].carried
        for v in equation.variables
        if v in lowering.symbols
    } | (changed or {})
    known = {v: c for v, c in carried.items() if c is not None}
    if not known:
        return [None] * len(equation.outputs)
    return _linear_part(lowering, equation, known)


def _linear_part(lowering: Lowering, equation: Equation, inputs: dict[Any, Any]):
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


def _image_axes(symbol: Symbol, shape) -> tuple[int, ...]:
    axes = layout(symbol.order, shape)
    if axes is None or len(axes) != 3:
        raise NotInNIR(
            f"it sums over parts of {tuple(shape[1:])}, which is no image [H, W, C]",
            "write it as a matrix product of the flattened activations",
        )
    return axes


def _operand(lowering: Lowering, equation: Equation) -> int:
    (v,) = {u for u in equation.variables if u in lowering.symbols}
    return v
