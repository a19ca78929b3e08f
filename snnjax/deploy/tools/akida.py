"""`to_akida`: whole numbers as a model of the package akida, for Akida 1.0.

With activations of b bits, a layer of Akida computes

    y = clip(ceil((sum w x - theta) / (Delta 2^(4 - b))), 0, 2^b - 1).

That is a neuron at T = 1 with levels (0, 2^b - 1), if theta = V - b_j - v(0) - 1 and
Delta = V 2^(b - 4): the quotient of whole numbers (n - V + 1) / V, rounded up, is n / V
rounded down. V is the threshold, b_j the bias of channel j, v(0) the initial potential.
Source: the simulator of akida 2.19.3, of which ``benchmarks/conformance.py`` compares
every level.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from snnjax.deploy.lowering.values import (
    Connection,
    Convolution,
    Dense,
    Flatten,
    Layers,
    Population,
    Receiver,
    check_layers,
)
from snnjax.deploy.lowering.windows import axis_windows, padding_modes
from snnjax.deploy.tools.refusals import (
    WITHOUT_SIGN,
    channel_numbers,
    check_problems,
    import_package,
    neuron_problems,
    output_count_problems,
    problem_at,
)
from snnjax.network.capture.check import Problem

INSTALL = "pip install akida (Python before 3.13, a proprietary licence)"
_ACTIVATION_BITS = (1, 2, 4)
_IMAGE_BITS = 8  # of weights and x of a convolution that reads x
_DEEPER_BITS = 4  # of all other weights, and of an x that no convolution reads
_FLOAT32_BITS = 24  # a step of an activation is a float32


class _Part(NamedTuple):
    """A layer of Akida: a population or an output, and the weights before it.

    Attributes:
        node: the population or the output.
        weights: its convolution, or its dense layer.
        image_shape: [C, H, W] of the image that is flattened before a dense layer; None
            where there is none.
        input_shape: of what it reads, [N] or [C, H, W].
        reads_image: whether it is a convolution of x, which has bits of its own.
        is_first: whether it reads x.
    """

    node: Receiver
    weights: Convolution | Dense
    image_shape: tuple[int, ...] | None
    input_shape: tuple[int, ...]
    reads_image: bool
    is_first: bool

    @property
    def weight_bits(self) -> int:
        """Number of bits of its weights, the sign included."""
        return _IMAGE_BITS if self.reads_image else _DEEPER_BITS


def to_akida(layers: Layers) -> Any:
    """Whole numbers as a model of the package akida, for Akida 1.0 (AKD1000).

    The model computes one step: each layer's levels are those of `run`, bit for bit, as
    long as no potential leaves its bits (`Trace.overflows` and `Trace.below` are 0). It
    has a layer for each population, named by it, and a last one for the output, which
    sends whole sums. What the maker's package does is then at hand:
    ``model.save("net.fbz")``, ``model.forward(x)``, ``model.map(device)``.

    x of ``model.forward`` has whole numbers of 8 bits, channels last: x / unit of the
    layers' input, from 0 on. A vector [B, N] is [B, 1, 1, N]. The last layer adds no
    bias: the result of the network is ``unit (sums + bias)`` of the layers' output.

    The package akida is no part of snnjax and of no extra that it needs; its licence is
    proprietary: ``pip install akida``, with Python before 3.13.

    Args:
        layers: from `quantize`, of T = 1, of weights of 4 bits, or 8 in a convolution
            that reads x; a chain of convolutions and dense layers.

    Returns:
        An ``akida.Model``.

    Raises:
        snnjax.ConversionError: a layer that Akida has no form for.
        ValueError: the layers are of floats.
        ImportError: the package ``akida`` is missing.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.eye(3), "readout": jnp.ones((3, 2))}
    >>> x = jnp.array([[1.0, 2.0, 15.0]])
    >>> snn = snnjax.convert(fn, params, x, steps=2)
    >>> layers = snnjax.deploy.layers(fn, snn, x)
    >>> integers = snnjax.deploy.quantize(layers, x, weight_bits=4, input_bits=5)
    >>> to_akida(integers)
    Traceback (most recent call last):
      ...
    snnjax.ConversionError: this network cannot be written for Akida 1.0 (1 place):
      network
        T is 2, and Akida computes one step
        remedy: convert with steps=1, chip=snnjax.deploy.akida1()
    """
    check_layers(layers, "whole")
    check_problems(network_problems(layers), tool="Akida 1.0")
    akida = import_package("akida", "to_akida", INSTALL)
    model = akida.Model()
    for part in _parts(layers):
        if part.is_first and not part.reads_image:
            model.add(akida.InputData(_rows_first(part.input_shape), _DEEPER_BITS))
        model.add(_akida_layer(akida, part))
        _set_numbers(model.layers[-1], part, layers)
    return model


# -------------------------------------------------------------------------- refusals


def network_problems(layers: Layers) -> Iterator[Problem]:
    """What Akida has no form for, of whole layers."""
    if layers.steps != 1 or layers.wait:
        reason = f"T is {layers.steps}, and Akida computes one step"
        if layers.wait:
            reason = f"a wait of {layers.wait}, and Akida computes one step"
        remedy = "convert with steps=1, chip=snnjax.deploy.akida1()"
        yield problem_at("network", reason, remedy)
    yield from output_count_problems(layers)
    connections = layers.connections
    previous_name = layers.input.name
    for node in layers.receivers:
        incoming = [c for c in connections if c.receiver == node.name]
        yield from _receiver_problems(node, incoming, previous_name, layers)
        previous_name = node.name


def _receiver_problems(
    node: Receiver, connections: list[Connection], previous_name: str, layers: Layers
) -> Iterator[Problem]:
    """What Akida has no form for, of a population or an output.

    Args:
        node: the population or output.
        connections: all that lead to it.
        previous_name: of what stands before it in a chain, the input or a population.
        layers: the network.
    """
    if isinstance(node, Population):
        yield from neuron_problems(node)  # among them a connection to itself
        yield from _number_problems(node, layers)
    feedforward = [c for c in connections if not c.is_recurrent]
    connection_problem = _connection_problem(node.name, feedforward, previous_name)
    if connection_problem is not None:
        # The limits below hold for the weights of one connection.
        yield connection_problem
        return
    part = _part(node, feedforward[0], layers)
    if isinstance(part.weights, Convolution):
        yield from _convolution_problems(node.name, part.weights)
    yield from _weight_problems(part)
    if part.is_first:
        yield from _input_problems(part, layers)


def _connection_problem(
    name: str, connections: list[Connection], previous_name: str
) -> Problem | None:
    """Why no layer of Akida reads these connections; None if one does.

    Args:
        name: of the population or output that they lead to.
        connections: those from other nodes.
        previous_name: of the node before it in a chain, which it has to read.
    """
    senders = [connection.sender for connection in connections]
    if senders != [previous_name]:
        names = ", ".join(dict.fromkeys(senders))
        if len(set(senders)) < len(senders):
            names += f", in {len(senders)} connections"
        reason = f"it reads {names}; Akida 1.0 has chains of layers"
        remedy = "use a network without branches, where each layer reads the one before"
        return problem_at(name, reason, remedy)
    maps = connections[0].maps
    if _weights(maps) is not None:
        return None
    kinds = ", ".join(type(m).__name__ for m in maps) or "no map"
    reason = f"it reads {previous_name} through {kinds}"
    remedy = (
        "put one convolution, or a flattening and one dense layer, before the neurons "
        "and before the output; strides in place of pools"
    )
    return problem_at(name, reason, remedy)


def _number_problems(node: Population, layers: Layers) -> Iterator[Problem]:
    """Levels, thresholds and biases that a layer of Akida does not have."""
    low, high = node.model.levels
    if low == 0 and high not in (1, 3, 15):
        reason = f"levels {node.model.levels}; Akida has (0, 1), (0, 3) and (0, 15)"
        remedy = "convert with model=snnjax.integrate_and_fire(levels=(0, 15))"
        yield problem_at(node.name, reason, remedy)
    numbers_of_neurons = {
        "thresholds": node.threshold,
        "biases": node.bias,
        "initial potentials": node.initial_potential,
    }
    for name, numbers in numbers_of_neurons.items():
        if channel_numbers(numbers, node.shape) is None:
            reason = f"{name} differ within a channel; Akida has one per channel"
            remedy = "use constants and thresholds per channel"
            yield problem_at(node.name, reason, remedy)
    largest = np.max(node.threshold)
    if largest > 2**_FLOAT32_BITS:
        reason = f"a threshold of {largest:.0f}, beyond 2^24"
        yield problem_at(node.name, reason, "quantize with fewer bits")


def _convolution_problems(name: str, node: Convolution) -> Iterator[Problem]:
    """Kernels, strides and paddings that a layer of Akida does not have."""
    reason = _why_no_convolution(node)
    if reason is not None:
        remedy = "build the network within these limits, and train it again"
        yield problem_at(name, reason, remedy)


def _why_no_convolution(node: Convolution) -> str | None:
    """The first reason why Akida has no such convolution; None if it has it."""
    rows, columns = node.weight.shape[2:]
    if node.groups != 1:
        return f"a convolution in {node.groups} groups; Akida 1.0 has none here"
    if rows != columns or rows % 2 == 0:
        return f"a kernel {rows}x{columns}; Akida's are square, of odd size"
    if node.dilation != (1, 1):
        return f"dilation {node.dilation}; Akida has none"
    if node.stride[0] != node.stride[1]:
        return f"stride {node.stride}; Akida's rows and columns have one stride"
    if not padding_modes(axis_windows(node)):
        return f"padding {node.padding}; Akida has 'SAME' and 'VALID'"
    return None


def _weight_problems(part: _Part) -> Iterator[Problem]:
    """Weights of too many bits."""
    bits = part.weight_bits
    largest = int(np.abs(part.weights.weight).max())
    if largest >= 2 ** (bits - 1):
        reason = f"a weight of {largest}, beyond the {bits} bits of this layer"
        remedy = (
            f"quantize with weight_bits={bits}, or by layer with a dict of patterns"
        )
        yield problem_at(part.node.name, reason, remedy)


def _input_problems(part: _Part, layers: Layers) -> Iterator[Problem]:
    """Elements of x of too many bits, for the layer that reads x."""
    assert layers.arithmetic is not None
    input_bits = layers.arithmetic.input_bits
    akida_bits = _IMAGE_BITS if part.reads_image else _DEEPER_BITS
    # One of our input's bits is the sign, and Akida's x has none.
    allowed_bits = akida_bits + 1
    if input_bits > allowed_bits:
        reason = f"x has {input_bits} bits with its sign; here Akida reads {akida_bits}"
        remedy = f"quantize with input_bits={allowed_bits}, and give x >= 0"
        yield problem_at(part.node.name, reason, remedy)
    lowest = layers.input.lowest
    if lowest is not None and lowest < 0:
        reason = (
            f"the images of quantize have numbers from {lowest} on; Akida's input has "
            "no sign"
        )
        yield problem_at(part.node.name, reason, WITHOUT_SIGN)


# ------------------------------------------------------------------------------ parts


def _weights(maps: tuple[Any, ...]) -> Convolution | Dense | None:
    """The convolution or dense layer of a connection; None if it has other maps."""
    if len(maps) == 1 and isinstance(maps[0], Convolution | Dense):
        return maps[0]
    if len(maps) == 2 and isinstance(maps[0], Flatten) and isinstance(maps[1], Dense):
        return maps[1]
    return None


def _part(node: Receiver, connection: Connection, layers: Layers) -> _Part:
    """A layer of Akida for a receiver that has one connection, with weights."""
    shapes = {layers.input.name: layers.input.shape}
    for population in layers.populations:
        shapes[population.name] = population.shape
    weights = _weights(connection.maps)
    assert weights is not None
    image_shape = None
    if isinstance(connection.maps[0], Flatten):
        image_shape = connection.maps[0].shape
    is_first = connection.sender == layers.input.name
    return _Part(
        node=node,
        weights=weights,
        image_shape=image_shape,
        input_shape=shapes[connection.sender],
        reads_image=is_first and isinstance(weights, Convolution),
        is_first=is_first,
    )


def _parts(layers: Layers) -> list[_Part]:
    """The layers of Akida, in the order of the chain."""
    nodes = {node.name: node for node in layers.receivers}
    parts = []
    for connection in layers.connections:
        parts.append(_part(nodes[connection.receiver], connection, layers))
    return parts


# ------------------------------------------------------------------------ Akida's form


def _akida_layer(akida: ModuleType, part: _Part) -> Any:
    """A layer of Akida, without its numbers."""
    options: dict[str, Any] = {
        "name": part.node.name,
        "weights_bits": part.weight_bits,
        "activation": isinstance(part.node, Population),
    }
    if isinstance(part.node, Population):
        options["act_bits"] = _activation_bits(part.node)
    output_count = len(part.weights.weight)  # channels, or neurons
    if isinstance(part.weights, Dense):
        return akida.FullyConnected(output_count, **options)
    options["padding"] = akida.Padding.Valid
    if "SAME" in padding_modes(axis_windows(part.weights)):
        options["padding"] = akida.Padding.Same
    options["kernel_stride"] = part.weights.stride
    kernel_size = part.weights.weight.shape[2:]
    if part.reads_image:
        image_shape = _rows_first(part.input_shape)
        return akida.InputConvolutional(
            image_shape, kernel_size, output_count, **options
        )
    return akida.Convolutional(kernel_size, output_count, **options)


def _set_numbers(layer: Any, part: _Part, layers: Layers) -> None:
    """Give a layer of Akida its weights, and its neurons theta and Delta.

    See the equation of this module.
    """
    layer.set_variable("weights", _kernel(part))
    if isinstance(part.node, Population):
        threshold, offset = _threshold_and_offset(part.node, layers)
        bits = _activation_bits(part.node)
        layer.set_variable("threshold", np.int32(threshold - offset - 1))
        layer.set_variable("act_step", np.float32(threshold * 2.0 ** (bits - 4)))


def _activation_bits(node: Population) -> int:
    """b of levels (0, 2^b - 1)."""
    return node.model.levels[1].bit_length()


def _rows_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[C, H, W] or [N] as Akida has it: [H, W, C] or [1, 1, N]."""
    if len(shape) == 1:
        return (1, 1, *shape)
    channels, rows, columns = shape
    return rows, columns, channels


def _threshold_and_offset(
    node: Population, layers: Layers
) -> tuple[np.ndarray, np.ndarray]:
    """V, and b_j + v(0), in whole numbers for each channel, [C]."""
    threshold = channel_numbers(node.threshold, node.shape)
    bias = channel_numbers(node.bias / layers.bias_unit, node.shape)
    potential = channel_numbers(
        node.initial_potential / layers.potential_unit, node.shape
    )
    assert threshold is not None and bias is not None and potential is not None
    return threshold, np.rint(bias + potential)


def _kernel(part: _Part) -> np.ndarray:
    """Weights as Akida stores them, int8; the order of axes was found by trying.

    Kernels are [rows, columns, I, O], and mirrored except in a convolution of x. A
    dense layer reads images in the order channels, columns, rows.
    """
    weight = part.weights.weight  # [O, I, rows, columns], or [O, N]
    if isinstance(part.weights, Convolution):
        kernel = weight.transpose(2, 3, 1, 0)
        if not part.reads_image:
            kernel = kernel[::-1, ::-1]
    else:
        if part.image_shape is not None:
            images = weight.reshape(len(weight), *part.image_shape)  # [O, C, H, W]
            weight = images.transpose(0, 1, 3, 2).reshape(len(weight), -1)
        kernel = weight.T[None, None]  # [1, 1, N, O]
    return np.ascontiguousarray(kernel, np.int8)
