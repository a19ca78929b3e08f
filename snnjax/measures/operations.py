"""Products with weights in a network: the operations that a spike causes.

Synaptic operations are spikes times fan-out; a fan-out is counted by the product
itself, so that strides, groups and borders need no formula.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax.network.capture import capture
from snnjax.network.equations import Equation, Network, Static, shape_of
from snnjax.network.evaluate import evaluate, identity

_PRODUCT_NAMES = ("conv_general_dilated", "dot_general")
_ELEMENT_TYPE = "preferred_element_type"


class Work:
    """A function as a static argument, equal to any other that does the same.

    By itself it would be compared by identity: then ``jit`` goes on with what it closed
    over at first, and refuses one that has no hash.
    """

    def __init__(self, fn: Callable, network: Network):
        self.fn = fn
        # Every trace has calls of its own, of which a site says all that counts.
        equations = tuple(
            eq._replace(params=()) if eq.fires else eq for eq in network.equations
        )
        constants = tuple(map(Static, network.constants.values()))
        paths = tuple(network.parameters.values())
        self.key = equations, network.outputs, paths, constants

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Work) and self.key == other.key


def driven_input(equation: Equation, network: Network) -> int | None:
    """The operand of a product that depends on the input, if there is one."""
    if equation.name not in _PRODUCT_NAMES:
        return None
    return next((v for v in equation.variables if v in network.dependent), None)


def weights_of(network: Network) -> list[int | Static]:
    """Weights of all products with an operand that depends on the input, once each."""
    products = [eq for eq in network.equations if driven_input(eq, network) is not None]
    operands = [v for eq in products for v in eq.inputs]
    return list(dict.fromkeys(v for v in operands if v not in network.dependent))


class Product(NamedTuple):
    """A product of weights and something that depends on the input.

    Attributes:
        fan_out: outputs that each entry of that operand reaches; broadcasts to it.
        macs: multiply-adds per image.
    """

    fan_out: np.ndarray
    macs: float


def products(
    fn: Callable, params: chex.ArrayTree, x: jax.Array, network: Network
) -> Iterator[tuple[int, Product]]:
    """The operand that depends on the input, and what its product does, for each.

    All images are alike, so two of them are counted.

    Args:
        network: captured from fn, params and x, with all calls inlined.
    """
    few = _of_two(fn, params, x, network)
    for equation, alike in zip(network.equations, few.equations, strict=True):
        v = driven_input(equation, network)
        if v is None:
            continue
        place = equation.inputs.index(v)
        fan_out = _fan_out(alike, few, place)
        macs = fan_out.sum(dtype=np.float64) / few.avals[few.x].shape[0]
        for axis, size in enumerate(shape_of(network.avals, v)):
            if fan_out.shape[axis] != size:  # of the images
                fan_out = fan_out.take([0], axis)
        yield v, Product(fan_out, float(macs))


def _of_two(
    fn: Callable, params: chex.ArrayTree, x: jax.Array, network: Network
) -> Network:
    """The network of two images; that of all, if it depends on their number."""
    shape = (min(2, len(x)), *x.shape[1:])
    try:
        few = capture(fn, params, jax.ShapeDtypeStruct(shape, x.dtype), inline_all=True)
    except Exception:  # whatever fn raises: it is written for one number of images
        return network
    same = [eq.primitive for eq in few.equations] == [
        eq.primitive for eq in network.equations
    ]
    return few if same else network


def _fan_out(equation: Equation, network: Network, place: int) -> np.ndarray:
    """Outputs that each entry of a product's operand reaches.

    With all weights 1 the sum of the outputs grows by this number for each unit of
    the entry: it is the gradient, paddings and strides included. Known when tracing,
    so computed then.
    """
    shapes = [shape_of(network.avals, v) for v in equation.inputs]

    def reached(x):
        ones = [jnp.ones(n, jnp.float32) for n in shapes]
        return product(equation, [*ones[:place], x, *ones[place + 1 :]]).sum()

    with jax.ensure_compile_time_eval():
        return np.asarray(jax.grad(reached)(jnp.zeros(shapes[place], jnp.float32)))


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
