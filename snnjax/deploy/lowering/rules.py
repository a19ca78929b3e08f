"""Rules: from the sums of an equation's operands to that of its result, by primitive.

    dot_general            a matrix, or a 1x1 convolution
    conv_general_dilated   a convolution
    reduce_window_sum      a pool
    reduce_sum             a pool, of windows of rows and columns
    add, mul, ...          new terms and scales
    reshape, slice, ...    a new order, or a matrix of 0 and 1

The rules do not compute constants, which `Builder.values` has. Only padding needs them.
"""

import itertools
import math
from collections.abc import Callable, Container, Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from snnjax.deploy.lowering.sums import (
    Builder,
    NoLayer,
    Sum,
    Term,
    axis_choices,
    compact,
    flat_indices,
    image_axes,
    numbers,
    times,
)
from snnjax.deploy.lowering.values import Shape
from snnjax.deploy.lowering.windows import (
    Window,
    conv,
    dense,
    pixel_windows,
    pool,
    vectorize,
)
from snnjax.network.equations import Equation, read
from snnjax.network.evaluate import evaluate, identity


def check_operation(equation: Equation) -> None:
    """Raise `NoLayer` if this equation is no layer, whatever its operands are."""
    site = equation.site
    if site is None and equation.name not in _RULES:
        raise NoLayer(
            "it is no layer",
            "use convolutions, matrix products, sums, scales, sum and average "
            "pooling, flatten",
        )
    if site is not None and site.homogeneous:
        raise NoLayer("a max-pool is no layer", "use average pooling, or a stride")
    if site is not None and not site.fires:
        raise NoLayer(
            "it is not affine, so it is no layer",
            "put only affine operations between the neurons",
        )


def add_equation(builder: Builder, equation: Equation) -> None:
    """Add the sums of an equation's results and the nodes that they need.

    Raises:
        NoLayer: no layer computes the operation.
    """
    if pads(equation):
        v, _, _ = _operand(builder, equation)
        builder.absorb_constant(v, equation.path)
    results = _RULES[equation.name](builder, equation)
    for v, total in zip(equation.outputs, results, strict=True):
        builder.sums[v] = total


def pads(equation: Equation) -> bool:
    """Whether an equation pads its operand with zeros.

        padded(nodes + constant) = padded(nodes) + padded(constant)

    The last term is another at the border of an image, and a layer has one bias per
    channel. So a constant before a padded layer is first moved into the biases of the
    nodes.
    """
    if equation.site is not None:
        return False
    padding = equation.options.get("padding", ())
    zeros = np.ravel(padding)
    return any(zeros.astype(bool))


def _operand(builder: Builder, equation: Equation) -> tuple[int, Sum, Shape]:
    """The only operand of an equation that depends on x, its sum and its shape."""
    (v,) = _dependent_operands(builder, equation)
    total = builder.sums[v]
    shape = builder.network.avals[v].shape
    return v, total, shape


def _dependent_operands(builder: Builder, equation: Equation) -> list[int]:
    """The operands of an equation that depend on x, each of them once."""
    operands = dict.fromkeys(equation.variables)
    return [v for v in operands if v in builder.sums]


def _result_shape(builder: Builder, equation: Equation) -> Shape:
    """The shape of an equation's only result."""
    (v,) = equation.outputs
    return builder.network.avals[v].shape


# -------------------------------------------------------------------------- layers


class _Product(NamedTuple):
    """A matrix product of x and weights.

    Attributes:
        weight: [inputs, outputs].
        weight_comes_first: whether it is weight @ x, and not x @ weight.
        contracted_axes: axes of x over which products are summed.
        free_axes: all other axes of x.
        output_axes: how many axes of the weights are not contracted.
    """

    weight: np.ndarray
    weight_comes_first: bool
    contracted_axes: tuple[int, ...]
    free_axes: tuple[int, ...]
    output_axes: int


def _product(builder: Builder, equation: Equation) -> _Product:
    """The matrix product of an equation, one operand of which are weights."""
    v, _, shape = _operand(builder, equation)
    x_side = equation.inputs.index(v)
    weight_side = 1 - x_side
    contracted, _ = equation.options["dimension_numbers"]
    x_axes = tuple(contracted[x_side])
    weight_axes = tuple(contracted[weight_side])
    weight = numbers(read(builder.values, equation.inputs[weight_side]))
    inputs = math.prod(weight.shape[axis] for axis in weight_axes)
    output_axes = _without(range(weight.ndim), weight_axes)
    matrix = weight.transpose(weight_axes + output_axes)
    return _Product(
        weight=matrix.reshape(inputs, -1),
        weight_comes_first=weight_side == 0,
        contracted_axes=x_axes,
        free_axes=_without(range(len(shape)), x_axes),
        output_axes=len(output_axes),
    )


def _without(axes: Iterable[int], left_out: Container[int]) -> tuple[int, ...]:
    """The axes that are not left out."""
    return tuple(axis for axis in axes if axis not in left_out)


def _dot(builder: Builder, equation: Equation) -> list[Sum]:
    """Dense if all of x is contracted, a 1x1 convolution if its channels are."""
    _, batch_axes = equation.options["dimension_numbers"]
    if any(batch_axes):
        raise NoLayer(
            "a batched matrix product (one for each element of an axis) is no layer",
            "write one matrix product, or a convolution with feature_group_count",
        )
    _, _, shape = _operand(builder, equation)
    product = _product(builder, equation)
    if math.prod(shape[axis] for axis in product.free_axes) == 1:
        return [_dense_product(builder, equation, product)]
    if len(product.contracted_axes) == 1 and product.output_axes == 1:
        return [_pixelwise_product(builder, equation, product)]
    raise NoLayer(
        f"a matrix product along axes {product.contracted_axes} of shape {shape[1:]}: "
        "a layer has one of a whole vector, or (1x1) of the channels of an image",
        "flatten first, or contract the channels of [H, W, C]",
    )


def _dense_product(builder: Builder, equation: Equation, product: _Product) -> Sum:
    """The product with all elements of x."""
    _, total, shape = _operand(builder, equation)
    index = np.arange(math.prod(shape))
    index = index.reshape(shape)
    # The contracted axes may come in any order: the weights take that of x.
    axes = product.contracted_axes + product.free_axes
    index = index.transpose(axes)
    weight = np.empty_like(product.weight)
    weight[index.ravel()] = product.weight
    _, outputs = weight.shape
    terms = dense(builder, total, weight.T, equation.path)
    return Sum(terms, order=np.arange(outputs))


def _pixelwise_product(builder: Builder, equation: Equation, product: _Product) -> Sum:
    """The product with the channels of each pixel, as a 1x1 convolution."""
    _, total, shape = _operand(builder, equation)
    # Only the nodes' order knows which of the free axes are rows and columns.
    pairs = itertools.permutations(product.free_axes, 2)
    candidates = [(*product.contracted_axes, *pair) for pair in pairs]
    _, rows, columns = image_axes(total, shape, candidates)
    terms = conv(
        builder,
        total,
        weight=product.weight.T[:, :, None, None],
        windows=pixel_windows(total.order.shape[1:]),
        path=equation.path,
    )
    # A result has the free axes of the left operand, then those of the right one.
    out_shape = _result_shape(builder, equation)
    channel = 0 if product.weight_comes_first else len(out_shape) - 1
    first_free = 1 if product.weight_comes_first else 0
    out_axes = (
        channel,
        first_free + product.free_axes.index(rows),
        first_free + product.free_axes.index(columns),
    )
    return Sum(terms, flat_indices(out_shape, out_axes))


def _convolve(builder: Builder, equation: Equation) -> list[Sum]:
    """A convolution with the windows of the equation."""
    v, total, shape = _operand(builder, equation)
    options = equation.options
    is_plain = options["batch_group_count"] == 1 and set(options["lhs_dilation"]) <= {1}
    if equation.inputs[0] != v or len(shape) != 4 or not is_plain:
        raise NoLayer(
            "the only convolutions are 2-D, of activations, not transposed",
            "use a 2-D convolution [B, H, W, C] without lhs_dilation",
        )
    spec = options["dimension_numbers"]
    image_axes(total, shape, [tuple(spec.lhs_spec[1:])])
    weight = numbers(read(builder.values, equation.inputs[1])).transpose(spec.rhs_spec)
    out_shape = _result_shape(builder, equation)
    windows = []
    for i in range(2):  # rows, then columns
        low, _ = options["padding"][i]
        window = Window(
            size=shape[spec.lhs_spec[2 + i]],
            results=out_shape[spec.out_spec[2 + i]],
            low=low,
            reach=(weight.shape[2 + i] - 1) * options["rhs_dilation"][i] + 1,
            stride=options["window_strides"][i],
        )
        windows.append(window)
    terms = conv(
        builder,
        total,
        weight,
        windows,
        equation.path,
        dilation=options["rhs_dilation"],
        groups=options["feature_group_count"],
    )
    return [Sum(terms, flat_indices(out_shape, spec.out_spec[1:]))]


def _pool(builder: Builder, equation: Equation) -> list[Sum]:
    """The sum over windows, which have a size for each axis of the operand."""
    options = equation.options
    if {*options["base_dilation"], *options["window_dilation"]} != {1}:
        raise NoLayer("no layer pools with dilation", "pool without dilation")
    sizes = options["window_dimensions"]
    strides = options["window_strides"]
    padding = options["padding"]
    _, total, shape = _operand(builder, equation)
    _check_is_image(total, shape)
    pooled_axes = set()
    for axis, window in enumerate(zip(sizes, strides, padding, strict=True)):
        # A window of size and stride 1 without zeros leaves its axis alone.
        if window != (1, 1, (0, 0)):
            pooled_axes.add(axis)
    choices = axis_choices(len(shape))
    candidates = [axes for axes in choices if pooled_axes.issubset(axes[1:])]
    axes = image_axes(total, shape, candidates)
    out_shape = _result_shape(builder, equation)
    windows = []
    for axis in axes[1:]:
        low, _ = padding[axis]
        window = Window(
            size=shape[axis],
            results=out_shape[axis],
            low=low,
            reach=sizes[axis],
            stride=strides[axis],
        )
        windows.append(window)
    terms = pool(builder, total, windows, equation.path)
    return [Sum(terms, flat_indices(out_shape, axes))]


def _reduce(builder: Builder, equation: Equation) -> list[Sum]:
    """A sum over axes, which is a pool if it adds whole windows of rows and columns.

    The axes may be those of a reshaped image: [4, 2, 4, 2, C] summed over both axes of
    size 2 is a pool 2x2 of an image [8, 8, C]. So the windows are found from the
    element of the result to which each element of the image is added.
    """
    _, total, shape = _operand(builder, equation)
    _check_is_image(total, shape)
    summed_axes = equation.options["axes"]
    targets = _targets(total, shape, summed_axes)
    _, height, width = targets.shape
    rows = len(np.unique(targets[0, :, 0]))
    columns = len(np.unique(targets[0, 0, :]))
    window_height = height // rows
    window_width = width // columns
    # These are windows if each result has one, which covers all of its elements.
    order = targets[:, ::window_height, ::window_width]
    covered = order.repeat(window_height, axis=1)
    covered = covered.repeat(window_width, axis=2)
    has_unique_results = len(np.unique(order)) == order.size
    if not (has_unique_results and np.array_equal(covered, targets)):
        raise NoLayer(
            f"it sums {tuple(shape)} over the axes {summed_axes}, which "
            "are no windows of rows and columns of the image before it",
            "sum over rows and columns; a sum over channels is a 1x1 convolution",
        )
    row_window = Window(
        size=height,
        results=rows,
        low=0,
        reach=window_height,
        stride=window_height,
    )
    column_window = Window(
        size=width,
        results=columns,
        low=0,
        reach=window_width,
        stride=window_width,
    )
    terms = pool(builder, total, [row_window, column_window], equation.path)
    return [Sum(terms, order)]


def _targets(
    total: Sum, shape: Sequence[int], summed_axes: Sequence[int]
) -> np.ndarray:
    """For each element of an image, [C, H, W], the result to which it is added."""
    result_shape = list(shape)
    for axis in summed_axes:
        result_shape[axis] = 1
    results = np.arange(math.prod(result_shape))
    results = results.reshape(result_shape)
    targets = np.broadcast_to(results, shape)
    return targets.ravel()[total.order]


def _check_is_image(total: Sum, shape: Sequence[int]) -> None:
    """Raise `NoLayer` if the operand of a pool is a vector."""
    if total.order.ndim == 1:
        raise NoLayer(
            f"it sums over a part of the vector {tuple(shape[1:])}, and a pool only "
            "over the height and width of an image",
            "write the sum as a matrix product",
        )


# ------------------------------------------------------------------ sums and scales


def _add(builder: Builder, equation: Equation) -> list[Sum]:
    """A sum, a difference or a negative."""
    signs = {
        "neg": (-1.0,),
        "sub": (1.0, -1.0),
    }
    operand_signs = signs.get(equation.name, (1.0, 1.0))
    sums = []
    for v, sign in zip(equation.inputs, operand_signs, strict=True):
        is_variable = isinstance(v, int)
        if is_variable and v in builder.sums:
            total = times(builder.sums[v], sign)
            sums.append(total)
    return [_sum_of_sums(builder, sums, equation.path)]


def _unchanged(builder: Builder, equation: Equation) -> list[Sum]:
    """The operand: only the type of its numbers changes, or their place in memory."""
    _, total, _ = _operand(builder, equation)
    return [total]


def _multiply(builder: Builder, equation: Equation) -> list[Sum]:
    """The operand times a constant, or divided by one."""
    v, total, shape = _operand(builder, equation)
    (constant,) = (u for u in equation.inputs if u != v)
    factor = numbers(read(builder.values, constant))
    factor = np.broadcast_to(factor, shape)
    factor = factor.ravel()[total.order]
    if equation.name == "div":
        factor = 1 / factor
    return [times(total, factor)]


def _sum_of_sums(builder: Builder, sums: Sequence[Sum], path: str) -> Sum:
    """The sum of variables of one shape, with each node once."""
    order = sums[0].order
    if not all(np.array_equal(total.order, order) for total in sums):
        if all(total.order.ndim == 3 for total in sums):
            raise NoLayer(
                "it adds images of which one was flipped or permuted; no layer does so",
                "reorder the weights instead of the activations",
            )
        sums = [vectorize(builder, total, path) for total in sums]
    # x + relu(x) and x - x read a node twice: once is enough, with both scales.
    scales: dict[str, np.ndarray] = {}
    for total in sums:
        for node, scale in total.terms:
            if node in scales:
                scale = compact(scales[node] + scale)
            scales[node] = scale
    terms = tuple(Term(node, scale) for node, scale in scales.items())
    return Sum(terms, sums[0].order)


# -------------------------------------------------------------------------- moves


def _move(builder: Builder, equation: Equation) -> list[Sum]:
    """Results of which each element is an element of an operand, or a constant."""
    # For each result, what comes from each of the operands.
    parts: list[list[Sum]] = [[] for _ in equation.outputs]
    for v in _dependent_operands(builder, equation):
        sources_of_results = _sources(builder, equation, v)
        for sums, sources in zip(parts, sources_of_results, strict=True):
            if (sources >= 0).any():
                total = _select(builder, v, sources, equation.path)
                sums.append(total)
    return [_sum_of_sums(builder, sums, equation.path) for sums in parts]


def _sources(builder: Builder, equation: Equation, v: int) -> list[np.ndarray]:
    """For each result, the flat index in ``v`` of each of its elements; -1: none.

    The equation is run with the elements' numbers, from 1, in place of ``v`` and with
    zeros in place of other floating operands. Whole numbers, as the indices of a
    gather, stay as they are.
    """
    operands = []
    for u in equation.inputs:
        operand = jnp.asarray(read(builder.values, u))
        if u == v:
            numbers_from_1 = jnp.arange(1, operand.size + 1)
            operand = numbers_from_1.reshape(operand.shape)
        elif jnp.issubdtype(operand.dtype, jnp.floating):
            operand = jnp.zeros(operand.shape, int)
        operands.append(operand)
    # An operand that is a literal has no variable, so all operands get new ones.
    values = dict(enumerate(operands))
    # The operands are those of one example, so nothing is mapped over examples.
    renumbered = equation._replace(inputs=tuple(values), mapped=())
    evaluate([renumbered], values, identity)
    results = []
    for u in equation.outputs:
        index = np.asarray(values[u]) - 1
        # Where an index is out of range, a gather may fill in a negative number, which
        # is no element of ``v`` either.
        results.append(np.maximum(index, -1))
    return results


def _select(builder: Builder, v: int, sources: np.ndarray, path: str) -> Sum:
    """The elements ``sources`` of a variable, with zeros where the index is -1."""
    total = builder.sums[v]
    indices = sources.ravel()
    all_indices = np.arange(total.order.size)
    if np.array_equal(np.sort(indices), all_indices):
        # All elements are there, so the nodes stay, at other places of the result.
        places = np.argsort(indices)
        return total._replace(order=places[total.order])
    if total.order.ndim == 1:
        is_source = indices[:, None] == all_indices
        terms = dense(builder, total, is_source.astype(float), path)
        return Sum(terms, order=np.arange(indices.size))
    shape = builder.network.avals[v].shape
    axes = image_axes(total, shape)
    weight, windows = _choice_of_channels(total.order, sources, shape, axes)
    terms = conv(
        builder,
        total,
        weight=weight[:, :, None, None],
        windows=windows,
        path=path,
    )
    return Sum(terms, flat_indices(sources.shape, axes))


def _choice_of_channels(
    order: np.ndarray, sources: np.ndarray, shape: Sequence[int], axes: tuple[int, ...]
) -> tuple[np.ndarray, list[Window]]:
    """Whole channels and every n-th row and column, as a 1x1 convolution with a stride.

    Args:
        order: of the nodes of the variable, [C, H, W].
        sources: the flat index of each element of the result, or -1 for a zero.
        shape: of the variable.
        axes: its channels, rows and columns.

    Returns:
        The weights [O, I] of 0 and 1, with a row of zeros for a channel of zeros, and
        the windows along rows and columns.
    """
    has_image = False
    if sources.ndim == len(shape):
        # All other axes must have the size 1.
        has_image = sources.size == math.prod(sources.shape[axis] for axis in axes)
    if has_image:
        index = flat_indices(sources.shape, axes)
        image = sources.ravel()[index]  # [O, rows, columns]
        windows = []
        for size, results in zip(order.shape[1:], image.shape[1:], strict=True):
            window = Window(
                size=size,
                results=results,
                low=0,
                reach=1,
                stride=math.ceil(size / results),
            )
            windows.append(window)
        # The first pixel of a result's channel tells which channel of x it is.
        is_channel = image[:, :1, 0] == order[:, 0, 0]  # [O, I]
        channels = is_channel.argmax(axis=1)
        rows, columns = windows
        expected = order[channels, :: rows.stride, :: columns.stride]
        expected[~is_channel.any(axis=1)] = -1
        if np.array_equal(image, expected):
            return is_channel.astype(float), windows
    raise NoLayer(
        f"it makes an image {tuple(sources.shape[1:])} of {tuple(shape[1:])} by a "
        "crop, a repetition or zeros around it, and no layer does that",
        "crop before fn, and give zeros to the convolution as its padding; whole "
        "channels and every n-th row and column may be taken",
    )


Rule = Callable[[Builder, Equation], list[Sum]]
_PRIMITIVES: dict[Rule, str] = {
    _add: "add add_any sub neg",
    _multiply: "mul div",
    _dot: "dot_general",
    _convolve: "conv_general_dilated",
    _pool: "reduce_window_sum",
    _reduce: "reduce_sum",
    _unchanged: (
        "convert_element_type copy copy_p mesh_cast name optimization_barrier "
        "reduce_precision reshard sharding_constraint stop_gradient"
    ),
    _move: (
        "broadcast_in_dim concatenate dynamic_slice expand_dims gather pad reshape "
        "rev slice split squeeze stack tile transpose unstack"
    ),
}
_RULES: dict[str, Rule] = {}
for _rule, _names in _PRIMITIVES.items():
    _RULES |= dict.fromkeys(_names.split(), _rule)
