"""Products with weights in a network: what a spike sets off.

Synaptic operations are spikes times fan-out; a fan-out is counted by the product
itself, so that strides, groups and borders need no formula.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from snnjax.network.equations import (
    Equation,
    Network,
    Static,
    evaluate,
    identity,
    variables,
)

_PRODUCT_NAMES = ("conv_general_dilated", "dot_general")
_ELEMENT_TYPE = "preferred_element_type"


def driven_input(equation: Equation, network: Network) -> int | None:
    """The operand of a product that depends on the input, if there is one."""
    if getattr(equation.primitive, "name", None) not in _PRODUCT_NAMES:
        return None
    return next((v for v in variables(equation) if v in network.dependent), None)


def weights_of(network: Network) -> list[int | Static]:
    """What products weigh the things that depend on the input with, once each."""
    products = [eq for eq in network.equations if driven_input(eq, network) is not None]
    found = [v for eq in products for v in eq.inputs]
    return list(dict.fromkeys(v for v in found if v not in network.dependent))


def fan_out_of(equation: Equation, network: Network, v: int) -> np.ndarray:
    """Outputs that each entry of a product's input reaches, for one example.

    With all weights 1 the sum of the outputs grows by this number for each unit of
    the entry: it is the gradient, paddings and strides included. Known when tracing,
    so computed then.
    """
    shapes = [shape_of(network, u) for u in equation.inputs]
    place = equation.inputs.index(v)

    def reached(x):
        operands = [x if i == place else jnp.ones(n) for i, n in enumerate(shapes)]
        return product(equation, operands).sum()

    with jax.ensure_compile_time_eval():
        gradient = jax.grad(reached)(jnp.zeros(shapes[place]))
        return np.asarray(gradient[0], np.float32)


def product(equation: Equation, operands: Sequence[jax.Array]) -> jax.Array:
    """A product of other operands, in float32, in which counts are exact."""
    params = tuple(
        (name, Static(np.dtype(np.float32)) if name == _ELEMENT_TYPE else static)
        for name, static in equation.params
    )
    inputs, output = tuple(range(len(operands))), len(operands)
    values = dict(enumerate(operands))
    equation = equation._replace(inputs=inputs, outputs=(output,), params=params)
    evaluate([equation], values, identity)
    return values[output]


def shape_of(network: Network, v: int | Static) -> tuple[int, ...]:
    """Of a variable or constant."""
    return np.shape(v.value) if isinstance(v, Static) else network.avals[v].shape
