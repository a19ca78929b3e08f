"""Rules: the sum of an equation's result from those of its operands, by primitive.

    dot_general            a matrix, or a 1x1 convolution
    conv_general_dilated   a convolution
    reduce_window_sum      a pool
    reduce_sum             a pool, of windows of rows and columns
    add, mul, ...          new terms and scales
    reshape, slice, ...    a new order, or a matrix of 0 and 1

But for padding, constants are no concern of the rules: `Builder.values` has them.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from snnjax.deploy.lowering.sums import (
    Builder,
    NoLayer,
    Sum,
    Term,
    compact,
    flat_indices,
    image_axes,
    numbers,
    times,
)
from snnjax.deploy.lowering.windows import Window, conv, dense, pool, vectorize
from snnjax.network.equations import Equation, read
from snnjax.network.evaluate import evaluate, identity


def check_operation(equation: Equation) -> None:
    """Raise `NoLayer` if no operands would give this equation a node."""
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
    """Add the sums of an equation's results, with the nodes that they need.

    Raises:
        NoLayer: no layer computes the operation.
    """
    if pads(equation):
        v, *_ = _operand(builder, equation)
        builder.absorb_constant(v, equation.path)
    results = _RULES[equation.name](builder, equation)
    results = results if isinstance(results, list) else [results]
    builder.sums.update(zip(equation.outputs, results, strict=True))


def pads(equation: Equation) -> bool:
    """Whether an equation pads its operand with zeros.

        padded(nodes + constant) = padded(nodes) + padded(constant)

    The last term differs at the border, and a layer has one bias per channel. So a
    constant before a padded layer is first moved into the biases of the nodes.
    """
    return equation.site is None and any(
        np.ravel(equation.options.get("padding", ())).astype(bool)
    )


def _operand(builder: Builder, equation: Equation) -> tuple[int, Sum, tuple[int, ...]]:
    """The only operand of an equation that depends on x, its sum and its shape."""
    (v,) = {u for u in equation.variables if u in builder.sums}
    return v, builder.sums[v], builder.network.avals[v].shape


# -------------------------------------------------------------------------- layers


def _dot(builder: Builder, equation: Equation) -> Sum:
    """Dense if all of x is contracted, a 1x1 convolution if its channels are."""
    v, total, shape = _operand(builder, equation)
    side = equation.inputs.index(v)
    contract, batch = equation.options["dimension_numbers"]
    if any(batch):
        raise NoLayer(
            "a batched matrix product (one for each element of an axis) is no layer",
            "write one matrix product, or a convolution with feature_group_count",
        )
    weight = numbers(read(builder.values, equation.inputs[1 - side]))
    free = [a for a in range(weight.ndim) if a not in contract[1 - side]]
    inputs = math.prod(shape[a] for a in contract[side])
    weight = weight.transpose(*contract[1 - side], *free).reshape(inputs, -1)
    contracted = tuple(contract[side])
    rest = [a for a in range(len(shape)) if a not in contracted]
    if math.prod(shape[a] for a in rest) == 1:
        # The contracted axes may come in any order: the weights take that of x.
        index = np.arange(inputs).reshape(shape).transpose(*contracted, *rest)
        matrix = np.empty_like(weight)
        matrix[index.ravel()] = weight
        terms = dense(builder, total, matrix.T, equation.path)
        return Sum(terms, np.arange(weight.shape[1]))
    if len(contracted) != 1 or len(free) != 1:
        raise NoLayer(
            f"a matrix product along axes {contracted} of shape {shape[1:]}: a layer "
            "has one of a whole vector, or (1x1) of the channels of an image",
            "flatten first, or contract the channels of [H, W, C]",
        )
    # Only the nodes' order knows which of the other axes are rows and columns.
    candidates = [(*contracted, *pair) for pair in itertools.permutations(rest, 2)]
    axes = image_axes(total, shape, candidates)
    windows = [Window(n, n, 0, 1, 1) for n in total.order.shape[1:]]
    terms = conv(builder, total, weight.T[:, :, None, None], windows, equation.path)
    # A result has the free axes of the left operand, then those of the right one.
    out_shape = builder.network.avals[equation.outputs[0]].shape
    channel = 0 if side == 1 else len(out_shape) - 1
    spatial = [rest.index(a) + side for a in axes[1:]]
    return Sum(terms, flat_indices(out_shape, (channel, *spatial)))


def _convolve(builder: Builder, equation: Equation) -> Sum:
    (v, total, shape), options = _operand(builder, equation), equation.options
    spec = options["dimension_numbers"]
    out_shape = builder.network.avals[equation.outputs[0]].shape
    plain = options["batch_group_count"] == 1 and set(options["lhs_dilation"]) <= {1}
    if equation.inputs[0] != v or len(shape) != 4 or not plain:
        raise NoLayer(
            "the only convolutions are 2-D, of activations, not transposed",
            "use a 2-D convolution [B, H, W, C] without lhs_dilation",
        )
    image_axes(total, shape, [tuple(spec.lhs_spec[1:])])
    weight = numbers(read(builder.values, equation.inputs[1])).transpose(spec.rhs_spec)
    windows = [
        Window(shape[a], out_shape[b], low, (n - 1) * dilation + 1, stride)
        for a, b, (low, _), n, dilation, stride in zip(
            spec.lhs_spec[2:],
            spec.out_spec[2:],
            options["padding"],
            weight.shape[2:],
            options["rhs_dilation"],
            options["window_strides"],
            strict=True,
        )
    ]
    own = {
        "dilation": options["rhs_dilation"],
        "groups": options["feature_group_count"],
    }
    terms = conv(builder, total, weight, windows, equation.path, **own)
    return Sum(terms, flat_indices(out_shape, spec.out_spec[1:]))


def _pool(builder: Builder, equation: Equation) -> Sum:
    """The sum over windows, which has a size for each axis of the operand."""
    options = equation.options
    if {*options["base_dilation"], *options["window_dilation"]} != {1}:
        raise NoLayer("no layer pools with dilation", "pool without dilation")
    sizes, strides = options["window_dimensions"], options["window_strides"]
    zeros = options["padding"]
    _, total, shape = _operand(builder, equation)
    _check_is_image(total, shape)
    out_shape = builder.network.avals[equation.outputs[0]].shape
    axes_and_windows = enumerate(zip(sizes, strides, zeros, strict=True))
    # A window of size and stride 1 without zeros leaves its axis alone.
    pooled = {a for a, window in axes_and_windows if window != (1, 1, (0, 0))}
    # Axis 0, that of the one example, comes last as in `image_axes`.
    choices = itertools.permutations([*range(1, len(shape)), 0], 3)
    axes = image_axes(total, shape, [c for c in choices if pooled <= {*c[1:]}])
    windows = [
        Window(shape[a], out_shape[a], zeros[a][0], sizes[a], strides[a])
        for a in axes[1:]
    ]
    terms = pool(builder, total, windows, equation.path)
    return Sum(terms, flat_indices(out_shape, axes))


def _reduce(builder: Builder, equation: Equation) -> Sum:
    """A sum over axes: a pool if it adds whole windows of rows and columns.

    The axes may be those of a reshaped image: [4, 2, 4, 2, C] summed over both axes of
    size 2 is a pool 2x2 of an image [8, 8, C]. So the elements of the image are asked
    to which element of the result each is added, and not the axes what they are.
    """
    _, total, shape = _operand(builder, equation)
    _check_is_image(total, shape)
    sizes = [1 if a in equation.options["axes"] else n for a, n in enumerate(shape)]
    target = np.arange(math.prod(sizes)).reshape(sizes)
    target = np.broadcast_to(target, shape).ravel()[total.order]  # [C, H, W]
    rows, columns = (len(np.unique(line)) for line in (target[0, :, 0], target[0, 0]))
    _, height, width = target.shape
    h, w = -(-height // rows), -(-width // columns)
    order = target[:, ::h, ::w]
    is_pool = len(np.unique(order)) == order.size and np.array_equal(
        order.repeat(h, axis=1)[:, :height].repeat(w, axis=2)[:, :, :width], target
    )
    if not is_pool or height % h or width % w:
        raise NoLayer(
            f"it sums {tuple(shape)} over the axes {equation.options['axes']}, which "
            "are no windows of rows and columns of the image before it",
            "sum over rows and columns; a sum over channels is a 1x1 convolution",
        )
    windows = [Window(height, height // h, 0, h, h), Window(width, width // w, 0, w, w)]
    return Sum(pool(builder, total, windows, equation.path), order)


def _check_is_image(total: Sum, shape: Sequence[int]) -> None:
    """Raise `NoLayer` if what is pooled is a vector."""
    if total.order.ndim == 1:
        raise NoLayer(
            f"it sums over a part of the vector {tuple(shape[1:])}, and a pool only "
            "over the height and width of an image",
            "write the sum as a matrix product",
        )


# ------------------------------------------------------------------ sums and scales


def _add(builder: Builder, equation: Equation) -> Sum:
    signs = {"neg": (-1.0,), "sub": (1.0, -1.0)}.get(equation.name, (1.0, 1.0))
    sums = [
        times(builder.sums[v], sign)
        for v, sign in zip(equation.inputs, signs, strict=True)
        if isinstance(v, int) and v in builder.sums
    ]
    return _sum_of_sums(builder, sums, equation.path)


def _unchanged(builder: Builder, equation: Equation) -> Sum:
    """The operand: only the type of its numbers changes, or their place in memory."""
    return _operand(builder, equation)[1]


def _multiply(builder: Builder, equation: Equation) -> Sum:
    v, total, shape = _operand(builder, equation)
    (constant,) = (numbers(read(builder.values, u)) for u in equation.inputs if u != v)
    factor = np.broadcast_to(constant, shape).ravel()[total.order]
    return times(total, 1 / factor if equation.name == "div" else factor)


def _sum_of_sums(builder: Builder, sums: Sequence[Sum], path: str) -> Sum:
    """The sum of variables of one shape, each node once."""
    order = sums[0].order
    if any(not np.array_equal(s.order, order) for s in sums):
        if all(s.order.ndim == 3 for s in sums):
            raise NoLayer(
                "it adds images of which one was flipped or permuted; no layer does so",
                "reorder the weights instead of the activations",
            )
        sums = [vectorize(builder, s, path) for s in sums]
    # x + relu(x) and x - x read a node twice: once is enough, with both scales.
    merged: dict[str, Term] = {}
    for term in itertools.chain.from_iterable(s.terms for s in sums):
        if term.node in merged:
            scale = compact(merged[term.node].scale + term.scale)
            term = Term(term.node, scale)
        merged[term.node] = term
    return Sum(tuple(merged.values()), sums[0].order)


# -------------------------------------------------------------------------- moves


def _move(builder: Builder, equation: Equation) -> list[Sum]:
    """A result of which each element is an element of an operand, or a constant."""
    summands: list[list[Sum]] = [[] for _ in equation.outputs]
    for v in dict.fromkeys(u for u in equation.variables if u in builder.sums):
        total, shape = builder.sums[v], builder.network.avals[v].shape
        for sums, source in zip(summands, _elements(builder, equation, v), strict=True):
            if (source >= 0).any():
                sums.append(_select(builder, total, source, shape, equation.path))
    return [_sum_of_sums(builder, sums, equation.path) for sums in summands]


def _elements(builder: Builder, equation: Equation, v: int) -> list[np.ndarray]:
    """For each result, which element of ``v`` each of its elements is; -1: none.

    The equation is run with the elements' numbers, from 1, in the place of ``v`` and
    with zeros in that of other operands.
    """
    operands = []
    for u in equation.inputs:
        operand = jnp.asarray(read(builder.values, u))
        if u == v:
            operand = jnp.arange(1, operand.size + 1).reshape(operand.shape)
        elif jnp.issubdtype(operand.dtype, jnp.floating):
            operand = jnp.zeros(operand.shape, int)
        operands.append(operand)
    values = dict(enumerate(operands))
    renumbered = equation._replace(inputs=tuple(range(len(operands))), mapped=())
    evaluate([renumbered], values, identity)
    return [np.maximum(np.asarray(values[v]) - 1, -1) for v in equation.outputs]


def _select(
    builder: Builder, total: Sum, source: np.ndarray, shape: Sequence[int], path: str
) -> Sum:
    """The elements ``source`` (-1: a zero) of a variable of ``shape``."""
    flat, order = source.ravel(), total.order
    if np.array_equal(np.sort(flat), np.arange(order.size)):
        # All elements are there, so the nodes stay, at other places of the result.
        return total._replace(order=np.argsort(flat)[order])
    if order.ndim == 1:
        weight = (flat[:, None] == np.arange(order.size)).astype(float)
        return Sum(dense(builder, total, weight, path), np.arange(flat.size))
    axes = image_axes(total, shape)
    weight, windows = _choice_of_channels(order, source, shape, axes)
    terms = conv(builder, total, weight[:, :, None, None], windows, path)
    return Sum(terms, flat_indices(source.shape, axes))


def _choice_of_channels(
    order: np.ndarray, source: np.ndarray, shape: Sequence[int], axes: tuple[int, ...]
) -> tuple[np.ndarray, list[Window]]:
    """Whole channels and every n-th row and column, as a 1x1 convolution with a stride.

    Returns:
        The weights [O, I] of 0 and 1, a row of zeros for a channel of zeros; and what
        rows and columns read.
    """
    if source.ndim == len(shape) and source.size == math.prod(
        source.shape[a] for a in axes
    ):
        image = source.ravel()[flat_indices(source.shape, axes)]  # [O, rows, columns]
        windows = [
            Window(n, m, 0, 1, -(-n // m))
            for n, m in zip(order.shape[1:], image.shape[1:], strict=True)
        ]
        # The first pixel of a channel says which one it is, and all others must agree.
        weight = image[:, :1, 0] == order[:, 0, 0]
        rows, columns = (slice(None, None, w.stride) for w in windows)
        expected = order[weight.argmax(1)][:, rows, columns]
        expected = np.where(weight.any(1)[:, None, None], expected, -1)
        if np.array_equal(image, expected):
            return weight.astype(float), windows
    raise NoLayer(
        f"it makes an image {tuple(source.shape[1:])} of {tuple(shape[1:])} by a crop, "
        "a repetition or zeros around it, and no layer does that",
        "crop before fn, and give zeros to the convolution as its padding; whole "
        "channels and every n-th row and column may be taken",
    )


_RULES: dict[str, Callable[[Builder, Equation], Sum | list[Sum]]] = {
    name: rule
    for rule, names in {
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
    }.items()
    for name in names.split()
}
