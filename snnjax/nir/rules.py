"""Equations of a captured network as nodes of NIR: one rule per primitive.

Each rule returns the `Symbol` of an equation's result, computed from the symbols of its
operands, or raises `NotInNIR`. Operands that do not depend on the input are constants.
Here are sums, scales and moves of elements; ``layer_rules.py`` has the operations that
become layers, ``offsets.py`` what constants add.
"""

import math
from collections.abc import Sequence

import numpy as np

from snnjax.network.equations import Equation, read
from snnjax.nir import layer_rules
from snnjax.nir.layers import select_elements, sum_of
from snnjax.nir.nodes import Lowering, NotInNIR, Symbol, numbers, times
from snnjax.nir.offsets import linear_part, operand, result_offset, result_offsets


def lower(lowering: Lowering, equation: Equation) -> None:
    """Add the symbols of an equation's outputs, with the nodes that they need.

    Raises:
        NotInNIR: NIR has no node for the operation.
    """
    name = equation.name
    if name in _UNCHANGED:
        symbols = [lowering.symbol(operand(lowering, equation))]
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
    """The element of x that each element of the graph's input is (`Symbol.order`).

    An image has its channels first, then rows and columns in x's order. The first
    convolution decides which axis of x holds the channels; without one it is the last.
    """
    network = lowering.network
    shape = network.avals[network.x[0]].shape
    order = np.arange(math.prod(shape)).reshape(shape[1:])
    return np.moveaxis(order, _channel_axis(lowering), 0) if len(shape) == 4 else order


def _channel_axis(lowering: Lowering) -> int:
    """The axis of an example x [., ., .] that the first convolution reads as channels.

    The elements of x, numbered from 1 (0: a constant), are followed to that
    convolution. The channel axis of x is the one along which these numbers vary with
    the input channels, and not with rows or columns.
    """
    network = lowering.network
    (x,) = network.x
    shape = network.avals[x].shape
    elements = {x: np.arange(1, math.prod(shape) + 1).reshape(shape)}
    for equation in network.equations:
        operands = [v for v in equation.variables if v in elements]
        if len(operands) != 1:
            continue
        (v,), name = operands, equation.name
        if name == "conv_general_dilated" and elements[v].ndim == 4:
            spec = equation.options["dimension_numbers"].lhs_spec
            varying = _varying_axes(elements[v].transpose(spec)[0], shape[1:])
            channels = varying[0] - varying[1] - varying[2]
            spatial = varying[1] | varying[2]
            # A single channel has no second element: it is the remaining axis.
            candidates = channels or {0, 1, 2} - spatial
            return max(candidates, default=2)
        if name in _MOVES:
            moved = linear_part(lowering, equation, elements)
            for output, numbering in zip(equation.outputs, moved, strict=True):
                elements[output] = np.rint(numbering).astype(int)
        elif network.avals[equation.outputs[0]].shape == elements[v].shape:
            elements[equation.outputs[0]] = elements[v]
    return 2


def _varying_axes(elements: np.ndarray, shape: Sequence[int]) -> list[set[int]]:
    """For each axis of an image, the axes of x whose index varies along it.

    Args:
        elements: the number of an element of x at each place, from 1; 0: a constant.
        shape: of an example of x.
    """
    coordinates = np.unravel_index(np.maximum(elements - 1, 0), tuple(shape))
    varying: list[set[int]] = []
    for axis in range(elements.ndim):
        first, second = (np.delete(elements, drop, axis) for drop in (-1, 0))
        neighbours = (first > 0) & (second > 0)
        varying.append(
            {
                a
                for a, coordinate in enumerate(coordinates)
                if (np.diff(coordinate, axis=axis) != 0)[neighbours].any()
            }
        )
    return varying


# Only the type of the numbers changes: NIR computes in float32.
_UNCHANGED = frozenset(
    "convert_element_type copy copy_p mesh_cast name optimization_barrier "
    "reduce_precision reshard sharding_constraint stop_gradient".split()
)


# Each element of the result is an element of an operand, or a constant.
_MOVES = frozenset(
    "broadcast_in_dim concatenate dynamic_slice expand_dims gather pad reshape rev "
    "slice split squeeze stack tile transpose unstack".split()
)


def _add(lowering: Lowering, equation: Equation) -> Symbol:
    signs = (1.0, -1.0 if equation.name == "sub" else 1.0)
    symbols = [
        times(lowering.symbol(v), sign)
        for v, sign in zip(equation.inputs, signs, strict=True)
        if isinstance(v, int) and v in lowering.symbols
    ]
    total = sum_of(lowering, symbols, equation.path)
    return total._replace(offset=result_offset(lowering, equation))


def _negate(lowering: Lowering, equation: Equation) -> Symbol:
    symbol = lowering.symbol(operand(lowering, equation))
    offset = result_offset(lowering, equation)
    return times(symbol, -1.0)._replace(offset=offset)


def _multiply(lowering: Lowering, equation: Equation) -> Symbol:
    v = operand(lowering, equation)
    (constant,) = (numbers(read(lowering.values, u)) for u in equation.inputs if u != v)
    symbol = lowering.symbol(v)
    factor = np.broadcast_to(constant, lowering.network.avals[v].shape).ravel()
    factor = factor[symbol.order]
    if equation.name == "div":
        factor = 1 / factor
    return times(symbol, factor)._replace(offset=result_offset(lowering, equation))


def _select(lowering: Lowering, equation: Equation) -> Symbol:
    """A choice between operands by a constant: each times a mask of 0 and 1."""
    predicate, *cases = equation.inputs
    case_numbers = np.asarray(read(lowering.values, predicate)).astype(int)
    symbols = []
    for i, v in enumerate(cases):
        if isinstance(v, int) and v in lowering.symbols:
            symbol = lowering.symbol(v)
            shape = lowering.network.avals[v].shape
            mask = np.broadcast_to(case_numbers == i, shape).ravel()[symbol.order]
            symbols.append(times(symbol, mask.astype(np.float64)))
    total = sum_of(lowering, symbols, equation.path)
    return total._replace(offset=result_offset(lowering, equation))


def _move(lowering: Lowering, equation: Equation) -> list[Symbol]:
    """Permutations need no node; a part of x, or zeros around it, needs one."""
    summands: list[list[Symbol]] = [[] for _ in equation.outputs]
    for v in dict.fromkeys(u for u in equation.inputs if u in lowering.symbols):
        assert isinstance(v, int)
        shape = lowering.network.avals[v].shape
        index = np.arange(1, math.prod(shape) + 1).reshape(shape)
        moved = linear_part(lowering, equation, {v: index})
        for symbols, numbering in zip(summands, moved, strict=True):
            source = np.rint(numbering).astype(int) - 1
            if (source >= 0).any():
                symbol = lowering.symbol(v)
                if len(equation.outputs) > 1:
                    terms = tuple(t._replace(owned=False) for t in symbol.terms)
                    symbol = symbol._replace(terms=terms)
                symbols.append(
                    select_elements(lowering, symbol, source, shape, equation.path)
                )
    sums = [sum_of(lowering, symbols, equation.path) for symbols in summands]
    offsets = result_offsets(lowering, equation)
    return [s._replace(offset=o) for s, o in zip(sums, offsets, strict=True)]


_LOWERINGS = {
    "add": _add,
    "add_any": _add,
    "sub": _add,
    "neg": _negate,
    "mul": _multiply,
    "div": _multiply,
    "select_n": _select,
    "dot_general": layer_rules.dot,
    "conv_general_dilated": layer_rules.convolve,
    "reduce_window_sum": layer_rules.pool,
    "reduce_sum": layer_rules.reduce,
}
