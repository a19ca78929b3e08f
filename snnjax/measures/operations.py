"""Products with weights in a network: the operations that a spike causes.

    synaptic operations = sum over neurons of spikes x fan-out

The product itself, with weights 1, counts a fan-out, so that strides, groups and
borders need no formula.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._examples import batch_of, shapes_of
from snnjax.capture.capture import capture
from snnjax.network.equations import Equation, Network, Static, shape_of
from snnjax.network.evaluate import evaluate, identity
from snnjax.network.stages import streaming

_PRODUCT_NAMES = ("conv_general_dilated", "dot_general")
_ELEMENT_TYPE = "preferred_element_type"


class Work:
    """A function as a static argument of ``jit``, equal to any with equal equations.

    ``jit`` would compare the function itself by its hash and identity: it would reuse a
    compiled program after an array in the function's closure has changed, and refuse
    functions without a hash.
    """

    def __init__(self, fn: Callable, network: Network):
        self.fn = fn
        # The calls that fire differ between traces; their sites identify them.
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
    driven = [eq for eq in network.equations if driven_input(eq, network) is not None]
    operands = [v for eq in driven for v in eq.inputs]
    return list(dict.fromkeys(v for v in operands if v not in network.dependent))


class Product(NamedTuple):
    """A product of weights and something that depends on the input.

    Attributes:
        fan_out: number of outputs that each entry of that operand adds to; broadcasts
            to the operand.
        macs: multiply-adds per image.
    """

    fan_out: np.ndarray
    macs: float


def products(
    fn: Callable, params: chex.ArrayTree, x: chex.ArrayTree, network: Network
) -> Iterator[tuple[int, Product]]:
    """(operand that depends on the input, its `Product`), for each product.

    The counts are the same for all images, so those of two images suffice.

    Args:
        network: captured from fn, params and x, with all calls inlined.
    """
    small = _with_two_images(fn, params, x, network)
    for equation, small_equation in zip(
        network.equations, small.equations, strict=True
    ):
        v = driven_input(equation, network)
        if v is None:
            continue
        fan_out = _fan_out(small_equation, small, equation.inputs.index(v))
        macs = fan_out.sum(dtype=np.float64) / small.batch
        for axis, size in enumerate(shape_of(network.avals, v)):
            if fan_out.shape[axis] != size:  # the axis of images
                fan_out = fan_out.take([0], axis)
        yield v, Product(fan_out, float(macs))


def operator_macs(network: Network, *, live: bool) -> float:
    """Multiply-adds per image of products of two values, which operators compute.

    Args:
        network: with all calls inlined.
        live: of operators that spikes reach, for each step; otherwise of the others,
            which are computed once.
    """
    streams = streaming(network.equations)
    macs = 0.0
    for operator in network.equations:
        if operator.body is None or bool(streams.intersection(operator.inputs)) != live:
            continue
        for equation in operator.body.equations:
            if equation.name != "dot_general":
                continue
            (contracted, _), _ = equation.options["dimension_numbers"]
            shape = shape_of(network.avals, equation.inputs[0])
            terms = math.prod(shape[axis] for axis in contracted)
            macs += terms * math.prod(network.avals[equation.outputs[0]].shape)
    return macs / network.batch


def _with_two_images(
    fn: Callable, params: chex.ArrayTree, x: chex.ArrayTree, network: Network
) -> Network:
    """The network captured with two images; ``network`` if its equations differ."""
    try:
        small = capture(fn, params, shapes_of(x, min(2, batch_of(x))), inline_all=True)
    except Exception:  # any error of fn, which may be for one number of images only
        return network
    primitives, small_primitives = (
        [eq.primitive for eq in net.equations] for net in (network, small)
    )
    return small if small_primitives == primitives else network


def _fan_out(equation: Equation, network: Network, position: int) -> np.ndarray:
    """Number of outputs that each entry of the operand at ``position`` adds to.

        fan_out = d(sum of the outputs) / d(operand), with all weights 1

    This includes paddings and strides. It depends on shapes only, so it is a constant
    while jit traces.
    """
    shapes = [shape_of(network.avals, v) for v in equation.inputs]

    def total(x):
        operands = [jnp.ones(shape, jnp.float32) for shape in shapes]
        operands[position] = x
        return product(equation, operands).sum()

    with jax.ensure_compile_time_eval():
        return np.asarray(jax.grad(total)(jnp.zeros(shapes[position], jnp.float32)))


def product(equation: Equation, operands: Sequence[jax.Array]) -> jax.Array:
    """The product of other operands, in float32 (exact for counts below 2^24)."""
    params = tuple(
        (name, Static(np.dtype(np.float32)) if name == _ELEMENT_TYPE else static)
        for name, static in equation.params
    )
    inputs, output = tuple(range(len(operands))), len(operands)
    values = dict(enumerate(operands))
    equation = equation._replace(inputs=inputs, outputs=(output,), params=params)
    evaluate([equation], values, identity)
    return values[output]
