"""Rotations: an encoder sends x H in place of x, and the kernel behind it has H W.

    (x H) (H W) = x W,    H symmetric, H H = 1, entries +-1 / sqrt(m) in blocks of m

H spreads a rare large value over m channels, so that thresholds need not clip it. Each
block of m channels is multiplied by Hadamard's matrix (Sylvester, 1867); m is the
largest power of two that divides the number of channels. Source of the rotation, for
quantized activations: Ashkboos et al., QuaRot, NeurIPS 2024.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import wide
from snnjax._text import counted
from snnjax._trees import is_floating, paths_of
from snnjax.activations import encode
from snnjax.network.capture.capture import with_activation
from snnjax.network.capture.facts import Facts
from snnjax.network.capture.primitives import REARRANGEMENTS, moved
from snnjax.network.equations import Equation, Network, Static, shape_of
from snnjax.network.evaluate import identity
from snnjax.network.sites import Site

# H is a product of matrices of at most this size, which keeps the network's equations
# few. One matrix of size m would need m / log2 m times as many additions.
_LARGEST_FACTOR = 8
_SMALLEST_BLOCK = 4  # a block of two channels spreads nothing

_FOUND_FOR = (
    "the rotation was chosen for. snnjax.sites shows its sites, and snnjax.rotation "
    "chooses a rotation for another network"
)


class SiteRotation(NamedTuple):
    """How one encoder is rotated.

    Attributes:
        block: m, the channels that share their values, a power of two.
        kernels: path of each kernel behind the encoder -> axis of its inputs, from 0.
    """

    block: int
    kernels: dict[str, int]


def site_rotations(network: Network) -> dict[str, SiteRotation | str]:
    """Name of each firing site -> its rotation, or why it has none."""
    facts = Facts(network)
    kernels = _kernels(facts)
    results: dict[str, SiteRotation | str] = {}
    for equation in network.equations:
        if equation.fires:
            results[equation.place.name] = _rotation(facts, kernels, equation)
    return results


def rotated_params(
    params: chex.ArrayTree, rotations: Mapping[str, SiteRotation]
) -> chex.ArrayTree:
    """The parameters with H W in place of every kernel W behind a rotated encoder.

    Raises:
        ValueError: a kernel is missing, or is another one. The encoder would send x H,
            and the kernel would be W.
    """
    axes = {}
    blocks = {}
    for rotation in rotations.values():
        for path, axis in rotation.kernels.items():
            axes[path] = axis
            blocks[path] = rotation.block
    leaves, structure = jax.tree_util.tree_flatten(params)
    paths = paths_of(params)
    missing = sorted(axes.keys() - set(paths))
    if missing:
        raise ValueError(
            f"params have no array at {missing[0]!r}, where the rotation changes a "
            f"kernel; allowed: params of the structure that {_FOUND_FOR}"
        )
    rotated_leaves = []
    for path, leaf in zip(paths, leaves, strict=True):
        if path in axes:
            _check_kernel(path, leaf, axes[path], blocks[path])
            kernel = jnp.asarray(leaf)
            # In a narrow type, such as bfloat16, every sum would be rounded.
            rotated_kernel = rotated(wide(kernel), axes[path], blocks[path])
            leaf = rotated_kernel.astype(kernel.dtype)
        rotated_leaves.append(leaf)
    return jax.tree_util.tree_unflatten(structure, rotated_leaves)


def _check_kernel(path: str, leaf: Any, axis: int, block: int) -> None:
    """Raise unless this is a kernel of floating point, whose axis H can rotate."""
    shape = np.shape(leaf)
    fits = axis < len(shape) and shape[axis] % block == 0
    if not fits or not is_floating(leaf):
        raise ValueError(
            f"params have an array of shape {shape} and dtype {jnp.result_type(leaf)} "
            f"at {path!r}; allowed: floating point, with a multiple of {block} "
            f"channels along axis {axis}, as in the network that {_FOUND_FOR}"
        )


def with_rotations(fn: Callable, rotations: Mapping[str, SiteRotation]) -> Callable:
    """``fn`` whose encoders at these sites send x H, for `rotated_params`.

    Raises:
        ValueError: when it is called, if fn lacks one of the sites, whose kernel would
            be H W, and its encoder would send x; or if a site has other channels.
    """

    @functools.wraps(fn)
    def rotated_fn(params, x):
        reached = set()

        def rule(site: Site, values: jax.Array, *operands: Any) -> Any:
            if not site.is_encoder:
                return identity(site, values, *operands)
            if site.name in rotations:
                reached.add(site.name)
                block = rotations[site.name].block
                _check_channels(site, block)
                values = rotated(values, site.channel, block)
            # `identity` would leave the value as it is, and so lose an encoder that fn
            # calls itself.
            return encode(values)

        outputs = with_activation(fn, rule)(params, x)
        missing = sorted(rotations.keys() - reached)
        if missing:
            raise ValueError(
                f"fn has no encoder {missing[0]!r}, which the rotation changes; "
                "allowed: a network whose sites have the names of the one that "
                f"{_FOUND_FOR}"
            )
        return outputs

    return rotated_fn


def _check_channels(site: Site, block: int) -> None:
    """Raise unless H rotates the channels of this site."""
    count = site.shape[site.channel]
    if count % block:
        raise ValueError(
            f"fn has {counted(count, 'channel')} at the encoder {site.name!r}; "
            f"allowed: a multiple of {block}, as in the network that {_FOUND_FOR}"
        )


def rotated(x: Any, axis: int, block: int) -> jax.Array:
    """x H along an axis: [..., C, ...] of the same shape and type.

        H_m = H_f (x) H_m/f,    H_2 = (1  1; 1 -1) / sqrt(2)

    (x) is the Kronecker product. So the axis of C channels is split into axes of C / m
    and of factors f of m, f = 8 as often as possible, and each factor's axis is
    multiplied by H_f. Rotating twice gives x again, to rounding.

    Args:
        x: floating point.
        axis: that of the channels.
        block: m, a power of two that divides C.

    >>> print(rotated(jnp.array([4.0, 0.0, 0.0, 0.0]), axis=0, block=4))
    [2. 2. 2. 2.]
    """
    x = jnp.asarray(x)
    axis %= x.ndim
    shape = x.shape
    leading_sizes = shape[:axis]
    trailing_sizes = shape[axis + 1 :]
    outer_size = shape[axis] // block
    inner_size = block
    while inner_size > 1:
        factor = min(_LARGEST_FACTOR, inner_size)
        inner_size //= factor
        # This is a sum and no `matmul`, which would be a product with weights to
        # `capture`. Axis + 1 is summed; axis + 2, of size 1, becomes the factor's axis.
        x = x.reshape(
            *leading_sizes, outer_size, factor, 1, inner_size, *trailing_sizes
        )
        matrix = _hadamard(factor).astype(x.dtype)
        broadcast_axes = range(2, 3 + len(trailing_sizes))
        x = (x * np.expand_dims(matrix, tuple(broadcast_axes))).sum(axis + 1)
        outer_size *= factor
    return x.reshape(shape)


def _hadamard(size: int) -> np.ndarray:
    """Hadamard's matrix over sqrt(size), [size, size]; size is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    for _ in range(int(math.log2(size))):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / math.sqrt(size)


# ------------------------------------------------------------- which encoders have one


class _Use(NamedTuple):
    """Where one axis of a variable is read, by an equation or as an output.

    Transposes, reshapes and other rearrangements in between are passed through, so that
    the equation may read another variable with the same numbers.

    Attributes:
        result: first output of the equation that reads; None if the network's output
            does.
        variable: the input that it reads.
        axis: what the axis has become in this input, from 0; None if a rearrangement
            merged or split it, so that no axis of the input is it.
    """

    result: int | None
    variable: int
    axis: int | None


def _rotation(
    facts: Facts, kernels: Mapping[_Use, tuple[int, int]], site_equation: Equation
) -> SiteRotation | str:
    """The rotation of a site, or why it has none.

    Every reader of the spikes x H must be a kernel that becomes H W, and every reader
    of such a kernel must get x H.
    """
    site = site_equation.place
    if not site.is_encoder:
        return "a ReLU, whose neurons rectify each channel by itself"
    channel_count = site.shape[site.channel] if site.shape else 1
    block = channel_count & -channel_count
    if block < _SMALLEST_BLOCK:
        channels = counted(channel_count, "channel")
        return f"{channels}, which no power of two from 4 on divides"
    (spikes,) = site_equation.outputs
    # `Site.channel` counts from the end, and axes of variables count from 0.
    channel_axis = site.channel + len(shape_of(facts.program.avals, spikes))
    spike_uses = list(_uses(facts, spikes, channel_axis))
    results_of_spikes = [use.result for use in spike_uses]
    kernel_axes = {}
    for spike_use in spike_uses:
        kernel = _kernel(facts, kernels, spike_use)
        if kernel is None:
            reader = _described(facts, spike_use)
            return f"its spikes go to {reader}, and not to a kernel alone"
        variable, kernel_axis = kernel
        path = facts.program.parameters[variable]
        name = f"its kernel {path}".rstrip()  # params may be the kernel alone
        for kernel_use in _uses(facts, variable, kernel_axis):
            if kernel_use.result not in results_of_spikes:
                return f"{name} has another input, too"
        if kernel_axes.setdefault(path, kernel_axis) != kernel_axis:
            return f"{name} is summed along two of its axes"
        if not is_floating(facts.program.avals[variable]):
            return f"{name} holds whole numbers, which H W are not"
    return SiteRotation(block, kernel_axes)


def _uses(facts: Facts, variable: int, axis: int | None) -> Iterator[_Use]:
    """Where an axis of a variable is read, through all rearrangements."""
    if variable in facts.program.outputs:
        yield _Use(None, variable, axis)
    for reader in facts.readers.get(variable, []):
        is_rearrangement = (
            reader.site is None
            and reader.name in REARRANGEMENTS
            and len(reader.inputs) == 1  # a concatenation has more
        )
        if is_rearrangement:
            (result,) = reader.outputs
            yield from _uses(facts, result, _moved_axis(facts, reader, axis))
        else:
            yield _Use(reader.outputs[0], variable, axis)


def _moved_axis(facts: Facts, move: Equation, axis: int | None) -> int | None:
    """The axis that an axis becomes by a rearrangement, from 0; None if none is it."""
    if axis is None:
        return None
    avals = facts.program.avals
    return moved(
        move.name,
        move.options,
        axis,
        shape_of(avals, move.inputs[0]),
        shape_of(avals, move.outputs[0]),
    )


def _described(facts: Facts, use: _Use) -> str:
    """What reads the spikes, for a sentence."""
    if use.result is None:
        return "an output of the network"
    reader = facts.makers[use.result]
    return reader.name if reader.site is None else reader.site.kind


def _kernel(
    facts: Facts, kernels: Mapping[_Use, tuple[int, int]], use: _Use
) -> tuple[int, int] | None:
    """The parameter that a product multiplies spikes by, and its axis of the channels.

    None if the spikes go to no product, if the product does not sum over their
    channels, or if its kernel is not a parameter or a rearrangement of one.

    Args:
        kernels: uses of all parameters, see `_kernels`.
        use: a use of the channels of an encoder.
    """
    if use.result is None or use.axis is None:
        return None
    product = facts.makers[use.result]
    if not facts.is_product(product):
        return None
    position = product.inputs.index(use.variable)
    operand = product.inputs[1 - position]
    kernel_axis = _axis_of_kernel(product, position, use.axis)
    if kernel_axis is None or isinstance(operand, Static):
        return None
    return kernels.get(_Use(use.result, operand, kernel_axis))


def _kernels(facts: Facts) -> dict[_Use, tuple[int, int]]:
    """Use of an axis of a parameter -> variable of the parameter, and the axis."""
    kernels = {}
    for parameter in facts.program.parameters:
        for axis in range(len(shape_of(facts.program.avals, parameter))):
            for use in _uses(facts, parameter, axis):
                kernels[use] = (parameter, axis)
    return kernels


def _axis_of_kernel(product: Equation, position: int, channel: int) -> int | None:
    """The axis of a product's kernel that meets the channels of its other operand.

    Args:
        product: a matrix product or a convolution.
        position: of the operand with the channels, 0 or 1.
        channel: its axis, from 0.
    """
    options = product.options
    if product.name == "dot_general":
        contracted_axes, _ = options["dimension_numbers"]
        axes = contracted_axes[position]
        if channel not in axes:
            return None
        # The operands' contracted axes are listed in pairs.
        return contracted_axes[1 - position][tuple(axes).index(channel)]
    # JAX lists the axes of a convolution's images as (batch, channels, space ..) and
    # those of its kernel as (outputs, inputs, space ..).
    image_axes, kernel_axes, _ = options["dimension_numbers"]
    groups = options["feature_group_count"] * options["batch_group_count"]
    if position != 0 or groups != 1 or channel != image_axes[1]:
        return None
    return kernel_axes[1]
