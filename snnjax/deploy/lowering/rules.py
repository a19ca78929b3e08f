"""Rules, one for each primitive: from what an equation reads to what it computes.

    dot_general            a matrix, or a 1x1 convolution
    conv_general_dilated   a convolution
    reduce_window_sum      a pool
    reduce_sum             a pool, of windows of rows and columns
    add, mul, ...          new terms and scales
    reshape, slice, ...    a new order, or a matrix of 0 and 1

A rule takes the `Sum` of each variable that the equation reads, ``builder.sums[v]``,
adds the nodes that it needs, and returns the sum of each result. A variable has the
shape that it has in fn for one example, such as [1, H, W, C]. Nodes are vectors [N] or
images [C, H, W], and the ``order`` of a sum leads from one shape to the other.

The rules do not compute constants, which `Builder.values` has for every variable. Only
padding needs them (`pads`).
"""

import itertools
import math
from collections.abc import Callable, Container, Sequence
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
    if site is None:
        if equation.name not in _RULES:
            raise NoLayer(
                "it is no layer",
                "use convolutions, matrix products, sums, scales, sum and average "
                "pooling, flatten",
            )
    elif site.homogeneous:  # the only such operator is a max-pool
        raise NoLayer("a max-pool is no layer", "use average pooling, or a stride")
    elif not site.fires:
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
        # `pads` says why a node before the padding has to add the constant.
        v, _, _ = _operand(builder, equation)
        builder.absorb_constant(v, equation.path)
    rule = _RULES[equation.name]
    results = rule(builder, equation)
    for v, result in zip(equation.outputs, results, strict=True):
        builder.sums[v] = result


def pads(equation: Equation) -> bool:
    """Whether an equation pads its operand with zeros.

        layer(padded(nodes + constant)) = layer(padded(nodes)) + layer(padded(constant))

    The last term differs between the border and the middle of an image, and a layer has
    one bias per channel. So a constant before a padded layer is first moved into the
    bias of a node.
    """
    if equation.site is not None:
        return False
    # Only convolutions and pools have it: (low, high) for each axis.
    padding = equation.options.get("padding", ())
    return bool(np.any(padding))


def _operand(builder: Builder, equation: Equation) -> tuple[int, Sum, Shape]:
    """The only operand of an equation that depends on x: variable, sum and shape."""
    (v,) = _dependent_operands(builder, equation)
    shape = builder.network.avals[v].shape
    return v, builder.sums[v], shape


def _dependent_operands(builder: Builder, equation: Equation) -> list[int]:
    """The variables that an equation reads and that depend on x, each of them once."""
    variables = dict.fromkeys(equation.variables)  # x + x reads x twice
    return [v for v in variables if v in builder.sums]


def _result_shape(builder: Builder, equation: Equation) -> Shape:
    """The shape of an equation's only result."""
    (v,) = equation.outputs
    return builder.network.avals[v].shape


# -------------------------------------------------------------------------- layers


class _Product(NamedTuple):
    """A product of an array x and weights, as ``dot_general`` computes it.

    Attributes:
        weight: [inputs, outputs], the inputs in the order of ``contracted_axes``.
        weight_comes_first: whether it is weight @ x, and not x @ weight.
        contracted_axes: axes of x over which products are summed.
        free_axes: all other axes of x.
        output_axis_count: how many axes the outputs have in the weights of fn.
    """

    weight: np.ndarray
    weight_comes_first: bool
    contracted_axes: tuple[int, ...]
    free_axes: tuple[int, ...]
    output_axis_count: int


def _product(builder: Builder, equation: Equation) -> _Product:
    """The product of a ``dot_general``, one operand of which are weights."""
    v, _, shape = _operand(builder, equation)
    x_position = equation.inputs.index(v)  # 0 or 1
    weight_position = 1 - x_position
    # The contracted axes of the first operand, and those of the second one.
    contracted_axes, _ = equation.options["dimension_numbers"]
    x_axes = tuple(contracted_axes[x_position])
    weight_axes = tuple(contracted_axes[weight_position])
    weight = numbers(read(builder.values, equation.inputs[weight_position]))
    input_count = math.prod(weight.shape[axis] for axis in weight_axes)
    output_axes = _other_axes(weight.ndim, weight_axes)
    inputs_first = weight.transpose(weight_axes + output_axes)
    return _Product(
        weight=inputs_first.reshape(input_count, -1),
        weight_comes_first=weight_position == 0,
        contracted_axes=x_axes,
        free_axes=_other_axes(len(shape), x_axes),
        output_axis_count=len(output_axes),
    )


def _other_axes(ndim: int, axes: Container[int]) -> tuple[int, ...]:
    """The axes of an array with ``ndim`` axes that are not among ``axes``."""
    return tuple(axis for axis in range(ndim) if axis not in axes)


def _dot(builder: Builder, equation: Equation) -> list[Sum]:
    """Dense if all of x is contracted, a 1x1 convolution if its channels alone are."""
    _, batch_axes = equation.options["dimension_numbers"]  # of each operand
    if any(batch_axes):
        raise NoLayer(
            "a batched matrix product (one for each element of an axis) is no layer",
            "write one matrix product, or a convolution with feature_group_count",
        )
    _, _, shape = _operand(builder, equation)
    product = _product(builder, equation)
    free_size = math.prod(shape[axis] for axis in product.free_axes)
    if free_size == 1:
        return [_dense_product(builder, equation, product)]
    if len(product.contracted_axes) == 1 and product.output_axis_count == 1:
        return [_pixelwise_product(builder, equation, product)]
    raise NoLayer(
        f"a matrix product along axes {product.contracted_axes} of shape {shape[1:]}: "
        "a layer has one of a whole vector, or (1x1) of the channels of an image",
        "flatten first, or contract the channels of [H, W, C]",
    )


def _dense_product(builder: Builder, equation: Equation, product: _Product) -> Sum:
    """The product with all elements of x, as a dense layer; free axes have size 1."""
    _, operand, shape = _operand(builder, equation)
    # The rows of the product's weight, [inputs, outputs], have the order of the
    # contracted axes, which may be any; those of a layer have the order of flattened x.
    # So each row moves to the flat index of the element of x that it multiplies.
    index = np.arange(math.prod(shape)).reshape(shape)
    rows_of_x = index.transpose(product.contracted_axes + product.free_axes)
    weight = np.empty_like(product.weight)
    weight[rows_of_x.ravel()] = product.weight
    terms = dense(builder, operand, weight.T, equation.path)
    output_count = weight.shape[1]
    return Sum(terms, order=np.arange(output_count))


def _pixelwise_product(builder: Builder, equation: Equation, product: _Product) -> Sum:
    """The product with the channels of each pixel, as a 1x1 convolution."""
    _, operand, shape = _operand(builder, equation)
    # The channels of x are contracted. Which of the free axes are rows and columns is
    # known by the nodes alone, so `image_axes` takes the candidate that fits them.
    (channel_axis,) = product.contracted_axes
    candidates = []
    for row_axis, column_axis in itertools.permutations(product.free_axes, 2):
        candidates.append((channel_axis, row_axis, column_axis))
    _, row_axis, column_axis = image_axes(operand, shape, candidates)
    terms = conv(
        builder,
        operand,
        weight=product.weight.T[:, :, None, None],  # [outputs, inputs, 1, 1]
        windows=pixel_windows(operand.order.shape[1:]),
        path=equation.path,
    )
    # A result has the free axes of the first operand, then those of the second one. The
    # only free axis of the weights counts the channels of the result.
    result_shape = _result_shape(builder, equation)
    if product.weight_comes_first:
        result_channel_axis = 0
        first_free_axis = 1
    else:
        result_channel_axis = len(result_shape) - 1
        first_free_axis = 0
    result_axes = (
        result_channel_axis,
        first_free_axis + product.free_axes.index(row_axis),
        first_free_axis + product.free_axes.index(column_axis),
    )
    return Sum(terms, flat_indices(result_shape, result_axes))


def _convolve(builder: Builder, equation: Equation) -> list[Sum]:
    """A convolution with the windows of the equation."""
    v, operand, shape = _operand(builder, equation)
    options = equation.options
    is_transposed = any(step > 1 for step in options["lhs_dilation"])
    is_plain = options["batch_group_count"] == 1 and not is_transposed
    if equation.inputs[0] != v or len(shape) != 4 or not is_plain:
        raise NoLayer(
            "the only convolutions are 2-D, of activations, not transposed",
            "use a 2-D convolution [B, H, W, C] without lhs_dilation",
        )
    # The axes of x and of the result come in the order of batch, channels, rows and
    # columns, those of the weights in the order of outputs, inputs, rows and columns.
    x_axes, weight_axes, result_axes = options["dimension_numbers"]
    image_axes(operand, shape, [tuple(x_axes[1:])])  # raises if the nodes have others
    weight = numbers(read(builder.values, equation.inputs[1])).transpose(weight_axes)
    result_shape = _result_shape(builder, equation)
    windows = []
    for i in range(2):  # rows, then columns
        low, _ = options["padding"][i]
        taps = weight.shape[2 + i]
        window = Window(
            size=shape[x_axes[2 + i]],
            results=result_shape[result_axes[2 + i]],
            low=low,
            extent=(taps - 1) * options["rhs_dilation"][i] + 1,
            stride=options["window_strides"][i],
        )
        windows.append(window)
    terms = conv(
        builder,
        operand,
        weight,
        windows,
        equation.path,
        dilation=options["rhs_dilation"],
        groups=options["feature_group_count"],
    )
    return [Sum(terms, flat_indices(result_shape, result_axes[1:]))]


def _pool(builder: Builder, equation: Equation) -> list[Sum]:
    """A pool. Its windows have a size, a stride and padding for every axis."""
    options = equation.options
    dilations = {*options["base_dilation"], *options["window_dilation"]}
    if dilations != {1}:
        raise NoLayer("no layer pools with dilation", "pool without dilation")
    sizes = options["window_dimensions"]
    strides = options["window_strides"]
    padding = options["padding"]
    _, operand, shape = _operand(builder, equation)
    _check_is_image(operand, shape)
    # A window of size and stride 1 without zeros leaves its axis alone. All other axes
    # must be rows or columns.
    pooled_axes = set()
    for axis in range(len(shape)):
        if sizes[axis] != 1 or strides[axis] != 1 or any(padding[axis]):
            pooled_axes.add(axis)
    candidates = []
    for axes in axis_choices(len(shape)):
        if pooled_axes.issubset(axes[1:]):
            candidates.append(axes)
    axes = image_axes(operand, shape, candidates)
    result_shape = _result_shape(builder, equation)
    windows = []
    for axis in axes[1:]:
        low, _ = padding[axis]
        window = Window(
            size=shape[axis],
            results=result_shape[axis],
            low=low,
            extent=sizes[axis],
            stride=strides[axis],
        )
        windows.append(window)
    terms = pool(builder, operand, windows, equation.path)
    return [Sum(terms, flat_indices(result_shape, axes))]


def _reduce(builder: Builder, equation: Equation) -> list[Sum]:
    """A sum over axes, which is a pool if it adds whole windows of rows and columns.

    The axes may be those of a reshaped image: [4, 2, 4, 2, C] summed over both axes of
    size 2 is a pool 2x2 of an image [8, 8, C]. So the windows are found from the
    element of the result to which each element of the image is added.
    """
    _, operand, shape = _operand(builder, equation)
    _check_is_image(operand, shape)
    summed_axes = equation.options["axes"]
    targets = _targets(operand, shape, summed_axes)
    # As many windows lie along an axis as the first column, or row, has results.
    _, height, width = targets.shape
    row_count = len(np.unique(targets[0, :, 0]))
    column_count = len(np.unique(targets[0, 0, :]))
    window_height = height // row_count
    window_width = width // column_count
    # These are windows if every pixel of a window is added to the same result as its
    # first pixel, and if no two windows have the same result.
    order = targets[:, ::window_height, ::window_width]  # [C, rows, columns]
    expected = order.repeat(window_height, axis=1)
    expected = expected.repeat(window_width, axis=2)
    has_unique_results = len(np.unique(order)) == order.size
    if not (has_unique_results and np.array_equal(expected, targets)):
        raise NoLayer(
            f"it sums {tuple(shape)} over the axes {summed_axes}, which "
            "are no windows of rows and columns of the image before it",
            "sum over rows and columns; a sum over channels is a 1x1 convolution",
        )
    row_window = Window(
        size=height,
        results=row_count,
        low=0,
        extent=window_height,
        stride=window_height,
    )
    column_window = Window(
        size=width,
        results=column_count,
        low=0,
        extent=window_width,
        stride=window_width,
    )
    terms = pool(builder, operand, [row_window, column_window], equation.path)
    return [Sum(terms, order)]


def _targets(
    operand: Sum, shape: Sequence[int], summed_axes: Sequence[int]
) -> np.ndarray:
    """The flat index of the result to which each pixel is added, int [C, H, W].

    Args:
        operand: what is summed, an image.
        shape: of the operand as a variable of fn.
        summed_axes: axes of that shape.
    """
    result_shape = list(shape)
    for axis in summed_axes:
        result_shape[axis] = 1
    results = np.arange(math.prod(result_shape)).reshape(result_shape)
    targets = np.broadcast_to(results, shape)
    return targets.ravel()[operand.order]


def _check_is_image(operand: Sum, shape: Sequence[int]) -> None:
    """Raise `NoLayer` if the operand of a pool is a vector."""
    if operand.order.ndim == 1:
        raise NoLayer(
            f"it sums over a part of the vector {tuple(shape[1:])}, and a pool only "
            "over the height and width of an image",
            "write the sum as a matrix product",
        )


# ------------------------------------------------------------------ sums and scales


def _add(builder: Builder, equation: Equation) -> list[Sum]:
    """A sum, a difference or a negative of operands; some may be constants."""
    if equation.name == "neg":
        signs = [-1.0]
    elif equation.name == "sub":
        signs = [1.0, -1.0]
    else:
        signs = [1.0, 1.0]
    operands = []
    for v, sign in zip(equation.inputs, signs, strict=True):
        if isinstance(v, int) and v in builder.sums:
            operand = times(builder.sums[v], sign)
            operands.append(operand)
    return [_sum_of_sums(builder, operands, equation.path)]


def _unchanged(builder: Builder, equation: Equation) -> list[Sum]:
    """The operand: only the type of its numbers changes, or their place in memory."""
    _, operand, _ = _operand(builder, equation)
    return [operand]


def _multiply(builder: Builder, equation: Equation) -> list[Sum]:
    """The operand times a constant, or divided by one."""
    v, operand, shape = _operand(builder, equation)
    (constant,) = (u for u in equation.inputs if u != v)
    result_shape = builder.network.avals[equation.outputs[0]].shape
    if result_shape != shape:
        raise NoLayer(
            f"it repeats {tuple(shape[1:])} to {tuple(result_shape[1:])}, times a "
            "constant, as a rotation does; no layer does so",
            "write the repetition as a matrix product, and deploy a network that "
            "snnjax.rotation has not rotated",
        )
    factor = numbers(read(builder.values, constant))
    # The factor in the order of the nodes, [N] or [C, H, W].
    factor = np.broadcast_to(factor, shape).ravel()[operand.order]
    if equation.name == "div":
        factor = 1 / factor
    return [times(operand, factor)]


def _sum_of_sums(builder: Builder, operands: Sequence[Sum], path: str) -> Sum:
    """The sum of variables of one shape, with each node once."""
    first_order = operands[0].order
    if not all(np.array_equal(operand.order, first_order) for operand in operands):
        if all(operand.order.ndim == 3 for operand in operands):
            raise NoLayer(
                "it adds images of which one was flipped or permuted; no layer does so",
                "reorder the weights instead of the activations",
            )
        # A vector and a flattened image have one order if both have that of fn.
        operands = [vectorize(builder, operand, path) for operand in operands]
    # x + relu(x) and x - x read a node twice: once is enough, with both scales.
    scales: dict[str, np.ndarray] = {}
    for operand in operands:
        for node, scale in operand.terms:
            if node in scales:
                scale = compact(scales[node] + scale)
            scales[node] = scale
    terms = tuple(Term(node, scale) for node, scale in scales.items())
    return Sum(terms, operands[0].order)


# -------------------------------------------------------------------------- moves


def _move(builder: Builder, equation: Equation) -> list[Sum]:
    """Results of which each element is an element of an operand, or a constant."""
    # For each result its parts, each of which comes from one operand.
    parts_of_results: list[list[Sum]] = [[] for _ in equation.outputs]
    for v in _dependent_operands(builder, equation):
        sources_of_results = _sources(builder, equation, v)
        for parts, sources in zip(parts_of_results, sources_of_results, strict=True):
            if (sources >= 0).any():
                part = _select(builder, v, sources, equation.path)
                parts.append(part)
    results = []
    for parts in parts_of_results:
        results.append(_sum_of_sums(builder, parts, equation.path))
    return results


def _sources(builder: Builder, equation: Equation, v: int) -> list[np.ndarray]:
    """Where the elements of each result come from in the variable ``v``.

    The equation is run with the elements' numbers, from 1, in place of ``v`` and with
    zeros in place of other floating operands. Whole numbers, as the indices of a
    gather, stay as they are.

    Returns:
        For each result an int array of its shape: the flat index in ``v`` of each
        element, or -1 if it does not come from ``v``.
    """
    operands = []
    for u in equation.inputs:
        # NumPy's, since JAX would compile a program for each small array.
        operand = np.asarray(read(builder.values, u))
        if u == v:
            numbers_from_1 = np.arange(1, operand.size + 1, dtype=np.int32)
            operand = numbers_from_1.reshape(operand.shape)
        elif jnp.issubdtype(operand.dtype, jnp.floating):
            operand = np.zeros(operand.shape, np.int32)
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
    """A result of chosen elements of a variable.

    Args:
        builder: gets the nodes that choose.
        v: the variable.
        sources: as `_sources` returns it for one result; -1 is a zero.
        path: of the new nodes.
    """
    operand = builder.sums[v]
    flat_sources = sources.ravel()
    all_indices = np.arange(operand.order.size)
    if np.array_equal(np.sort(flat_sources), all_indices):
        # All elements are there, so the nodes stay, at other places of the result.
        # ``argsort`` inverts the permutation: where each element went.
        places = np.argsort(flat_sources)
        return operand._replace(order=places[operand.order])
    if operand.order.ndim == 1:
        is_source = flat_sources[:, None] == all_indices  # [results, elements]
        terms = dense(builder, operand, is_source.astype(float), path)
        return Sum(terms, order=np.arange(flat_sources.size))
    shape = builder.network.avals[v].shape
    axes = image_axes(operand, shape)
    weight, windows = _choice_of_channels(operand.order, sources, shape, axes)
    terms = conv(
        builder,
        operand,
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
        order: the flat index in the variable of each element of its nodes, [C, H, W].
        sources: the flat index in the variable of each element of the result, in the
            result's shape; -1: a zero.
        shape: of the variable.
        axes: the axes of the variable that are its channels, rows and columns.

    Returns:
        The weights [O, I] of 0 and 1, with a row of zeros for a channel of zeros, and
        the windows along rows and columns.

    Raises:
        NoLayer: the result is no such choice.
    """
    is_image = False
    if sources.ndim == len(shape):
        # All axes beside channels, rows and columns must have the size 1.
        is_image = sources.size == math.prod(sources.shape[axis] for axis in axes)
    if is_image:
        index = flat_indices(sources.shape, axes)
        image = sources.ravel()[index]  # [O, rows, columns]
        windows = []
        for size, results in zip(order.shape[1:], image.shape[1:], strict=True):
            window = Window(
                size=size,
                results=results,
                low=0,
                extent=1,
                stride=math.ceil(size / results),
            )
            windows.append(window)
        # The first pixel of a result's channel tells which channel of the variable it
        # is.
        is_channel = image[:, :1, 0] == order[:, 0, 0]  # [O, I]
        channels = is_channel.argmax(axis=1)
        rows, columns = windows
        expected = order[channels, :: rows.stride, :: columns.stride]
        # A channel whose first pixel is not one of the variable must consist of zeros.
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
