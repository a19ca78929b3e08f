"""Products with weights in a network, and the operations that a spike causes in them.

    synaptic operations = sum over neurons of spikes x fan-out

The product itself counts the fan-out, with all weights set to 1. So strides, groups and
borders need no formula.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from snnjax.network.equations import PRODUCTS, Equation, Network, Static, shape_of
from snnjax.network.evaluate import evaluate, identity
from snnjax.network.stages import streaming


def products(network: Network) -> list[tuple[Equation, int]]:
    """Products of weights with something that depends on the input.

    Returns:
        Pairs of an equation and the variable of that operand.
    """
    pairs = []
    for equation in network.equations:
        if equation.name in PRODUCTS:
            driven = [v for v in equation.variables if v in network.dependent]
            pairs += [(equation, v) for v in driven[:1]]
    return pairs


def weights_of(network: Network) -> list[int | Static]:
    """Weights of all products, once each."""
    operands = [v for equation, _ in products(network) for v in equation.inputs]
    return list(dict.fromkeys(v for v in operands if v not in network.dependent))


def fan_out(equation: Equation, network: Network, v: int) -> jax.Array:
    """Number of outputs of a product that each entry of its operand v adds to.

    fan-out = d(sum of the outputs) / d(operand), with all weights 1, in float32.
    """
    shapes = [shape_of(network.avals, u) for u in equation.inputs]
    # The barrier keeps XLA from computing these constants during compilation.
    ones = jax.lax.optimization_barrier(
        [jnp.ones(shape, jnp.float32) for shape in shapes]
    )
    position = equation.inputs.index(v)

    def total(operand: jax.Array) -> jax.Array:
        operands = [*ones[:position], operand, *ones[position + 1 :]]
        return _product(equation, operands).sum()

    return jax.grad(total)(ones[position])


def macs_of(equation: Equation, network: Network) -> int:
    """Multiply-adds of a product for one image, without those with padding."""
    left, right = (shape_of(network.avals, v) for v in equation.inputs)
    output, options = shape_of(network.avals, equation.outputs[0]), equation.options
    if equation.name == "dot_general":
        (contracted_axes, _), _ = options["dimension_numbers"]
        return math.prod(output) * math.prod(left[axis] for axis in contracted_axes)
    lhs_spec, rhs_spec, out_spec = options["dimension_numbers"]
    taps = 1
    for d, (before, _) in enumerate(options["padding"]):
        size, kernel, out = (
            shape[spec[2 + d]]
            for shape, spec in ((left, lhs_spec), (right, rhs_spec), (output, out_spec))
        )
        window = np.arange(kernel) * options["rhs_dilation"][d] - before
        at = np.arange(out)[:, None] * options["window_strides"][d] + window
        dilation = options["lhs_dilation"][d]
        inside = (at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)
        taps *= int(inside.sum())
    outputs = output[out_spec[0]] * output[out_spec[1]]
    return outputs * right[rhs_spec[1]] * taps


def operator_macs(network: Network, *, live: bool) -> float:
    """Multiply-adds per image of products of two values, which operators compute.

    Args:
        network: with all calls inlined.
        live: True counts the operators that spikes reach, for each step; False counts
            the others, which are computed once.
    """
    streams = streaming(network.equations)
    macs = sum(
        macs_of(equation, network)
        for operator in network.equations
        if operator.body and bool(streams.intersection(operator.inputs)) == live
        for equation in operator.body.equations
        if equation.name == "dot_general"
    )
    return float(macs)


_ELEMENT_TYPE = "preferred_element_type"


def _product(equation: Equation, operands: Sequence[jax.Array]) -> jax.Array:
    """The product of other operands, in float32 (exact for counts below 2^24)."""
    params = tuple(
        (name, Static(np.dtype(np.float32)) if name == _ELEMENT_TYPE else static)
        for name, static in equation.params
    )
    inputs, output = tuple(range(len(operands))), len(operands)
    values = dict(enumerate(operands))
    equation = equation._replace(
        inputs=inputs, outputs=(output,), params=params, mapped=()
    )
    evaluate([equation], values, identity)
    return values[output]
