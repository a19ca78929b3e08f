"""Products with weights in a network, and the operations that spikes cause in them.

    synaptic operations = sum over neurons of spikes x fan-out

A product is a matrix product or a convolution, and its fan-out says to how many outputs
each input contributes. A MAC is a product of two numbers and an addition. An operator
computes functions of values, such as attention, see `snnjax.network`.

NumPy counts the fan-out from shapes alone, before anything is compiled: XLA's algebraic
simplifier has computed such a constant wrongly within the program that multiplied
spikes by it (jax 0.10.2).
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import lead, per_step, wide, wide_dtype
from snnjax._trees import batch_of
from snnjax.measures.observation import (
    Observation,
    events,
    threshold_of,
    values_at_level,
)
from snnjax.network.equations import PRODUCTS, Equation, Network, Values, read, shape_of
from snnjax.network.stages import streaming
from snnjax.neurons.protocol import levels_of, synapses_of_a_spike
from snnjax.snn import SNN


def products(network: Network) -> list[tuple[Equation, int]]:
    """Products with weights, each with the variable of the operand that x reaches."""
    pairs = []
    for equation in network.equations:
        if equation.name not in PRODUCTS:
            continue
        operands = [v for v in equation.variables if v in network.dependent]
        if operands:  # Otherwise both are parameters.
            pairs.append((equation, operands[0]))
    return pairs


def fan_out(equation: Equation, network: Network, position: int = 0) -> np.ndarray:
    """In how many MACs each entry of an operand of a product takes part.

    Those with padding do not count.

    Args:
        equation: a matrix product or a convolution.
        network: the network of the equation.
        position: of the operand, 0 or 1.

    Returns:
        Counts, of a shape that broadcasts to the operand's.
    """
    shapes = [shape_of(network.avals, v) for v in equation.inputs]
    output_shape = shape_of(network.avals, equation.outputs[0])
    if equation.name == "dot_general":
        return _fan_out_of_matrix_product(equation, shapes, output_shape, position)
    return _fan_out_of_convolution(equation, shapes, output_shape, position)


def _fan_out_of_matrix_product(
    equation: Equation,
    shapes: list[tuple[int, ...]],
    output_shape: tuple[int, ...],
    position: int,
) -> np.ndarray:
    """The `fan_out` of a matrix product: all MACs over all entries, [1, .., 1].

    Args:
        equation, position: as for `fan_out`.
        shapes: of both operands.
        output_shape: of the product.
    """
    (contracted_axes, _), _ = equation.options["dimension_numbers"]
    contracted_size = math.prod(shapes[0][axis] for axis in contracted_axes)
    macs = math.prod(output_shape) * contracted_size
    operand_shape = shapes[position]
    uses = macs // max(1, math.prod(operand_shape))
    return np.full((1,) * len(operand_shape), uses)


def _fan_out_of_convolution(
    equation: Equation,
    shapes: list[tuple[int, ...]],
    output_shape: tuple[int, ...],
    position: int,
) -> np.ndarray:
    """The `fan_out` of a convolution: the product of the uses along each dimension.

    A dimension of space contributes a factor for each position along it. The axes of
    channels and examples, of size 1 in the result, contribute one factor together.

    Args:
        equation, position: as for `fan_out`.
        shapes: of the image and of the kernel.
        output_shape: of the convolution.
    """
    options = equation.options
    image_spec, kernel_spec, output_spec = options["dimension_numbers"]
    image_shape, kernel_shape = shapes
    groups = options["feature_group_count"] * options["batch_group_count"]
    # A spec lists the axes of an array: for images that of the examples, that of the
    # channels, and those of space; for kernels output channels, input channels, space.
    if position == 0:
        # A pixel reaches the output channels of its group.
        counts = np.array(output_shape[output_spec[1]] // groups)
        spec = image_spec
    else:
        # A weight reaches all examples.
        counts = np.array(output_shape[output_spec[0]])
        spec = kernel_spec
    ndim = len(output_shape)
    counts = counts.reshape((1,) * ndim)
    for dimension in range(ndim - 2):
        uses = _uses_along_dimension(
            options,
            dimension,
            image_size=image_shape[image_spec[2 + dimension]],
            kernel_size=kernel_shape[kernel_spec[2 + dimension]],
            output_size=output_shape[output_spec[2 + dimension]],
        )
        axis_of_dimension = spec[2 + dimension]
        shape = [1] * ndim
        shape[axis_of_dimension] = -1
        counts = counts * uses[position].reshape(shape)
    return counts


def _uses_along_dimension(
    options: dict[str, Any],
    dimension: int,
    *,
    image_size: int,
    kernel_size: int,
    output_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Uses of each pixel, [image_size], and of each weight, [kernel_size].

    Args:
        options: of the convolution.
        dimension: number of the dimension of space.
        image_size, kernel_size, output_size: along it.
    """
    stride = options["window_strides"][dimension]
    kernel_dilation = options["rhs_dilation"][dimension]
    padding_before, _ = options["padding"][dimension]
    offsets = np.arange(kernel_size) * kernel_dilation - padding_before
    # The position that each weight reads for each output, [output_size, kernel_size],
    # is counted in the image after its dilation.
    positions = np.arange(output_size)[:, None] * stride + offsets
    # Between two pixels of a dilated image lie zeros.
    image_dilation = options["lhs_dilation"][dimension]
    last_position = (image_size - 1) * image_dilation
    is_inside = (positions >= 0) & (positions <= last_position)
    is_pixel = is_inside & (positions % image_dilation == 0)
    pixels = positions[is_pixel] // image_dilation
    return np.bincount(pixels, minlength=image_size), is_pixel.sum(0)


def macs_of(equation: Equation, network: Network) -> int:
    """MACs of a product per image, without those with padding."""
    shape = shape_of(network.avals, equation.inputs[0])
    return int(np.broadcast_to(fan_out(equation, network), shape).sum())


def counts(
    network: Network,
    snn: SNN,
    x: chex.ArrayTree,
    observation: Observation,
    operator_steps: int,
) -> dict[str, jax.Array]:
    """Operations per image, and numbers of weights, named as in `Measures`.

    Args:
        network: with all calls inlined.
        snn: its neurons and parameters.
        x: images [B, ...].
        observation: of T steps with x.
        operator_steps: how often an operator that spikes reach is computed for an
            image. Other operators are computed once.
    """
    # What arrives beside spikes is the value of a network whose neurons are silent.
    silent_values = values_at_level(network, snn, x, 0)
    highest_level = _highest_level(network, snn)
    level_one_values: Values = {}
    if highest_level > 1:  # spikes are graded
        level_one_values = values_at_level(network, snn, x, 1)
    # What changes with x, though no neuron fires, is analog input. x is compared with
    # zeros, in the form of a product that XLA does not fold into the network.
    zeros = jax.tree.map(lambda leaf: leaf * jnp.zeros_like(leaf), x)
    values_without_x = values_at_level(network, snn, zeros, 0)

    operations, additions = _recurrent_counts(network, snn, observation.spikes)
    stepwise_macs, input_macs = _operator_macs(network)
    macs = input_macs + stepwise_macs
    batch = batch_of(x)
    for equation, v in products(network):
        product_macs = macs_of(equation, network)
        macs += product_macs
        # What is no stream is the same at all steps, so it is multiplied once.
        if v not in observation.streams:
            input_macs += product_macs
            continue
        synapses = fan_out(equation, network, equation.inputs.index(v))
        arriving = events(snn.code, observation.values[v], silent_values[v])
        # A spike is one operation per synapse, and one of level k is k additions.
        event_counts = (arriving != 0).astype(jnp.float32)  # [T, B, ...]
        operations += _synaptic_sum(event_counts, synapses) / batch
        if highest_level > 1:
            level_one_size = wide(level_one_values[v]) - wide(silent_values[v])
            spike_sizes = snn.code.sizes(len(arriving))
            event_counts *= _magnitudes(
                arriving, level_one_size, spike_sizes, highest_level
            )
        additions += _synaptic_sum(event_counts, synapses) / batch
        depends_on_x = silent_values[v] != values_without_x[v]  # [B, ...]
        input_macs += _synaptic_sum(depends_on_x.astype(jnp.float32), synapses) / batch
    return {
        "synaptic_operations": jnp.asarray(operations),
        "synaptic_additions": jnp.asarray(additions),
        "input_macs": jnp.asarray(input_macs, jnp.float32),
        "operator_macs": jnp.asarray(operator_steps * stepwise_macs, jnp.float32),
        "macs": jnp.asarray(macs, jnp.float32),
        **_weight_counts(network, snn, observation.values),
    }


def _highest_level(network: Network, snn: SNN) -> int:
    """The largest |level| of a spike of any site.

    It is 1 if a model states no levels: additions are then unknown, see `Measures`.
    """
    highest = 1
    for site in network.sites:
        if not site.fires:
            continue
        levels = levels_of(snn.model_of(site.name))
        if levels is None:
            return 1
        highest = max(highest, *map(abs, levels))
    return highest


def _weight_counts(network: Network, snn: SNN, values: Values) -> dict[str, jax.Array]:
    """The number of weights, and how many of those of the products are 0.

    Weights that several products read count once. The weights of recurrent connections
    count too, but their zeros do not.

    Args:
        network: with all calls inlined.
        snn: its neurons.
        values: variable -> value, weights among them.
    """
    # A dictionary, since variables and constants have no common order.
    weights: dict[Any, None] = {}
    for equation, _ in products(network):
        for operand in equation.inputs:
            if operand not in network.dependent:
                weights[operand] = None
    weight_count = 0
    zero_count = 0
    for operand in weights:
        weight_count += math.prod(shape_of(network.avals, operand))
        zero_count += (read(values, operand) == 0).sum()
    for site in network.sites:
        if site.fires:
            synapses = synapses_of_a_spike(snn.model_of(site.name), site.shape)
            weight_count += math.prod(site.shape) * synapses
    return {
        "weights": jnp.asarray(weight_count),
        "zero_weights": jnp.asarray(zero_count),
    }


def _operator_macs(network: Network) -> tuple[int, int]:
    """MACs per image of products of two values, which operators compute.

    Returns:
        Those of operators that spikes reach, which are computed at every step, and
        those of the other operators.
    """
    streams = streaming(network.equations)
    stepwise_macs, constant_macs = 0, 0
    for operator in network.equations:
        if operator.body is None:  # It is no operator.
            continue
        macs = 0
        for equation in operator.body.equations:
            if equation.name == "dot_general":
                macs += macs_of(equation, network)
        if streams.isdisjoint(operator.inputs):
            constant_macs += macs
        else:
            stepwise_macs += macs
    return stepwise_macs, constant_macs


def _synaptic_sum(counts: jax.Array, synapses: np.ndarray) -> jax.Array:
    """The sum of all counts, each times its synapses, [].

    Args:
        counts: float32 [T, B, ...] or [B, ...].
        synapses: of one example; broadcasts to [...].
    """
    # Counts are added over time and batch first, for one product of one example's size.
    leading_axes = tuple(range(counts.ndim - synapses.ndim))
    return (counts.sum(leading_axes) * synapses.astype(np.float32)).sum()


def _recurrent_counts(
    network: Network, snn: SNN, spikes: dict[str, jax.Array]
) -> tuple[Any, Any]:
    """Operations and additions per image of connections within the sites, [] both.

    Args:
        network: with its sites.
        snn: its neurons.
        spikes: name of a site -> its spikes [T, B, ...].
    """
    operations, additions = jnp.zeros(()), jnp.zeros(())
    for site in network.sites:
        if not site.fires:
            continue
        model = snn.model_of(site.name)
        synapses = synapses_of_a_spike(model, site.shape)
        if not synapses:
            continue
        # A spike arrives at the next step, so those of the last step arrive nowhere.
        arriving = spikes[site.name][:-1]  # [T - 1, B, ...]
        batch_size = arriving.shape[1]
        synapses_per_image = synapses / batch_size
        spike_count = (arriving != 0).astype(jnp.float32).sum()
        operations += synapses_per_image * spike_count
        if levels_of(model) is None:
            # Without levels each spike is one addition.
            additions += synapses_per_image * spike_count
        else:
            # A spike of level k is |k| additions.
            threshold = threshold_of(snn.neurons[site.name], site)
            threshold = wide(lead(threshold, arriving.ndim))
            levels = jnp.abs(wide(arriving) / threshold)
            additions += synapses_per_image * levels.sum()
    return operations, additions


def _magnitudes(
    arriving: jax.Array,
    level_one_size: jax.Array,
    spike_sizes: np.ndarray,
    highest_level: int,
) -> jax.Array:
    """How many spikes of level 1 each value of a stream is worth, [T, B, ...].

    Args:
        arriving: values of the stream, [T, B, ...].
        level_one_size: what arrives if all neurons emit level 1, [B, ...]. Positive and
            negative weights may cancel in it.
        spike_sizes: T w_t, of a spike at each step, [T].
        highest_level: a value is worth so many at most, even where weights cancel.
    """
    sizes = jnp.asarray(spike_sizes, wide_dtype(level_one_size))
    unit = per_step(sizes, arriving.ndim) * jnp.abs(wide(level_one_size))[None]
    # Where level 1 gives 0, the quotient is 0, and the result is 1.
    divisor = jnp.where(unit > 0, unit, jnp.inf)
    count = jnp.round(jnp.abs(wide(arriving)) / divisor)
    return jnp.clip(count, 1, highest_level)
