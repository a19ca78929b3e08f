"""Operands of an equation that depend on the input, and what constants add to results.

A symbol has a constant beside its terms, some of it in the biases of its nodes already
(`Symbol.offset`). The equation itself computes the constant of its result from those of
its operands, so that no rule repeats this.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from snnjax.network.equations import Equation
from snnjax.network.evaluate import evaluate, identity
from snnjax.nir.nodes import Lowering, Symbol, numbers


def operand(lowering: Lowering, equation: Equation) -> int:
    """The only operand of an equation that depends on the input."""
    (v,) = {u for u in equation.variables if u in lowering.symbols}
    return v


def before_padding(
    lowering: Lowering, equation: Equation, v: int, channel: int
) -> Symbol:
    """The symbol of an operand that the equation may pad with zeros.

        padded(nodes + constant) = padded(nodes) + padded(constant)

    The last of them adds less at the border, and NIR has one bias per channel. So a
    constant whose part of the result varies along another axis (as of a norm before the
    convolution) moves into the biases of the nodes; the next neuron adds every other.

    Args:
        v: the operand.
        channel: the result's axis of channels, along which the constant may vary.
    """
    offset = result_offset(lowering, equation)
    (out,) = equation.outputs
    rest = numbers(lowering.values[out])
    rounding = 1e-5 * np.abs(rest).max(initial=0)
    rest = rest if offset is None else rest - offset
    others = tuple(a for a in range(rest.ndim) if a != channel)
    if (np.abs(rest - rest.mean(axis=others, keepdims=True)) <= rounding).all():
        return lowering.symbol(v)
    return lowering.absorb_constant(v, equation.path)


def result_offset(
    lowering: Lowering,
    equation: Equation,
    changes: Mapping[int, np.ndarray | None] | None = None,
) -> np.ndarray | None:
    """`Symbol.offset` of an equation's only result; ``changes`` as below."""
    return result_offsets(lowering, equation, changes)[0]


def result_offsets(
    lowering: Lowering,
    equation: Equation,
    changes: Mapping[int, np.ndarray | None] | None = None,
) -> list[np.ndarray | None]:
    """`Symbol.offset` of each of an equation's results.

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
    return [*linear_part(lowering, equation, nonzero)]


def linear_part(
    lowering: Lowering, equation: Equation, inputs: Mapping[int, np.ndarray]
) -> list[np.ndarray]:
    """How the results change when operands change from zero to ``inputs``.

        f(inputs, constants) - f(0, constants)

    Args:
        inputs: operand that depends on the input -> its new value; the others stay 0.
    """
    at_zero, at_inputs = {}, {}
    for v in equation.variables:
        value = jnp.asarray(lowering.values[v])
        if jnp.issubdtype(value.dtype, jnp.floating):
            value = value.astype(jnp.float32)
        dependent = v in lowering.network.dependent
        at_zero[v] = jnp.zeros_like(value) if dependent else value
        at_inputs[v] = jnp.asarray(inputs.get(v, at_zero[v]), value.dtype)
    evaluate([equation], at_zero, identity)
    evaluate([equation], at_inputs, identity)
    return [numbers(at_inputs[v]) - numbers(at_zero[v]) for v in equation.outputs]
