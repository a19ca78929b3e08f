"""A spiking network as a network of layers (``nodes.py``): `lower`.

The captured equations are taken one by one: ``rules.py`` has those between two sites,
this file the sites and the outputs.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax.capture.check import ConversionError, Problem
from snnjax.network.equations import Equation, Network, Values
from snnjax.network.evaluate import evaluate, identity
from snnjax.network.sites import Site
from snnjax.neurons.gradients import WithSurrogate
from snnjax.neurons.models import NeuronParams
from snnjax.layers.windows import vectorize
from snnjax.layers.values import Flatten, Graph, Input, Neurons, Output
from snnjax.layers.rules import add_equation, check_operation, pads
from snnjax.layers.sums import (
    Builder,
    NoLayer,
    Sum,
    Term,
    compact,
    image_axes,
    numbers,
    unscaled,
)
from snnjax.snn import SNN


def lower(network: Network, snn: SNN) -> Graph:
    """The layers and neurons of a network whose outputs depend on one array x.

    The channels of an image x are its last axis, or its first one if only then every
    convolution reads channels as channels.

    Args:
        network: captured with one example.
        snn: its parameters and neurons; the models are IF or LIF.

    Raises:
        ConversionError: with every operation that has no node. What follows such an
            operation is reported only if no input would give it a node.
        ValueError: a site where some neurons leak and others do not.
    """
    (x,) = network.x
    shape = network.avals[x].shape[1:]
    values = _at_rest(network, snn.params)
    index = np.arange(math.prod(shape)).reshape(shape)
    orders = [index.ravel()]
    if len(shape) == 3:
        orders = [np.moveaxis(index, -1, 0), index]
    attempts = []
    for order in orders:
        builder = Builder(network, values)
        problems = _build(builder, snn, order)
        if not problems:
            return _needed(builder)
        attempts.append((len(builder.sums), problems))
    _, problems = max(attempts, key=lambda attempt: attempt[0])  # the one that got on
    raise ConversionError(problems, "this network cannot be written in NIR")


def _build(builder: Builder, snn: SNN, order: np.ndarray) -> list[Problem]:
    """Add all nodes; return everything that has none."""
    network = builder.network
    (x,) = network.x
    shape = network.avals[x].shape[1:]
    name = builder.add("input", Input(order.shape if order.ndim == 3 else shape), ())
    if len(shape) > 1 and order.ndim == 1:
        name = builder.add("input/flatten", Flatten(shape), [name])
    builder.sums[x] = Sum((unscaled(name),), order)
    problems = []
    for equation in network.equations:
        if not network.dependent.intersection(equation.outputs):
            continue
        reads = network.dependent.intersection(equation.variables)
        try:
            check_operation(equation)
            if builder.sums.keys() >= reads:
                if equation.site is None:
                    add_equation(builder, equation)
                else:
                    _add_site(builder, snn, equation)
        except NoLayer as reason:
            operation = equation.site.kind if equation.site else equation.name
            problems.append(Problem(equation.path, (operation,), *reason.args))
    return problems or _add_outputs(builder)


def _add_site(builder: Builder, snn: SNN, equation: Equation) -> None:
    """Add the neurons of a site, and the weights that feed them."""
    site, (current, *_) = equation.place, equation.variables
    params = snn.neurons[site.name]
    if site.signed:
        raise NoLayer(
            "NIR has no neuron that sends spikes of both signs",
            "put a ReLU here, or no encoder",
        )
    if params.offset is not None:
        raise NoLayer(
            "NIR has no neuron that adds an offset to its spikes",
            "replace the neuron's offset by None, and calibrate or train without it",
        )
    leak = np.zeros(()) if params.leak is None else numbers(params.leak)
    leak = np.where(leak == 1, 0, leak)  # an IF, which has no tau
    gain = 1 / ((1 - leak) * numbers(params.threshold))
    sources, order = builder.feed(current, gain, numbers(params.bias), site.name)
    node = Neurons(
        without_surrogate(snn.model_of(site.name)),
        _leak(params, site, order),
        _of_each_neuron(params.initial_potential, site, order)
        / _of_each_neuron(params.threshold, site, order),
    )
    name = builder.add(site.name, node, sources)
    # A spike carries V_th in snnjax and 1 in NIR.
    threshold = compact(_of_each_neuron(params.threshold, site, order))
    builder.sums[equation.outputs[0]] = Sum((Term(name, threshold, False),), order)


def without_surrogate(model: Any) -> Any:
    """The model that sends the same spikes, but has no derivative of its own."""
    return model.neuron if isinstance(model, WithSurrogate) else model


def _leak(params: NeuronParams, site: Site, order: np.ndarray) -> np.ndarray | None:
    """The leak of each neuron, None for an IF."""
    if params.leak is None or (numbers(params.leak) == 1).all():
        return None
    leak = _of_each_neuron(params.leak, site, order)
    if not ((leak > 0) & (leak < 1)).all():
        raise ValueError(
            f"site {site.name!r} has leaks from {leak.min()} to {leak.max()}; NIR's "
            "LIF allows 0 < leak < 1, or 1 for all neurons of a site (IF)"
        )
    return leak


def _of_each_neuron(leaf: Any, site: Site, order: np.ndarray) -> np.ndarray:
    """A neuron's parameter, broadcast to the shape of the node."""
    return np.broadcast_to(numbers(leaf), site.shape).ravel()[order]


def _add_outputs(builder: Builder) -> list[Problem]:
    network = builder.network
    problems = []
    for v, where in zip(network.outputs, network.output_names(), strict=True):
        name = f"output/{where}" if where else "output"
        try:
            _add_output(builder, v, name)
        except NoLayer as reason:
            problems.append(Problem(name, (), *reason.args))
    return problems


def _add_output(builder: Builder, v: Any, name: str) -> None:
    """An image [C, H, W], or else a vector, in the order of fn's elements."""
    if v not in builder.sums:
        raise NoLayer("it does not depend on x", "return only what the input reaches")
    path = "readout" if name == "output" else f"readout/{name}"
    total, shape = builder.sum_of(v), builder.network.avals[v].shape
    if total.order.ndim == 3 and len(shape) == 4:
        image_axes(total, shape, [(3, 1, 2), (1, 2, 3)])  # channels last, or first
    else:
        total = vectorize(builder, total, path)
    builder.sums[v] = total
    sources, order = builder.feed(v, np.ones(()), np.zeros(()), path)
    builder.add(name, Output(order.shape), sources)


def _at_rest(network: Network, params: chex.ArrayTree) -> Values:
    """Every variable while x is 0 and no neuron fires: the constants of affine maps.

    A layer that pads reads its operand without the constant, which the nodes before it
    add (`pads`).
    """

    def silent(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
        return jnp.zeros_like(x) if site.fires else identity(site, x, *operands)

    @jax.jit
    def run(values: Values) -> Values:
        values, at_production = dict(values), {}
        for equation in network.equations:
            if pads(equation):
                for v in network.dependent.intersection(equation.variables):
                    values[v] = jnp.zeros_like(values[v])
            evaluate([equation], values, silent)
            at_production |= {v: values[v] for v in equation.outputs}
        return values | at_production

    (x,) = network.x
    example = jnp.zeros(network.avals[x].shape, network.avals[x].dtype)
    return run(network.arguments(params, example))


def _needed(builder: Builder) -> Graph:
    """The input and the nodes that an output depends on, in order of execution."""
    needs = {n for n, node in builder.nodes.items() if isinstance(node, Output)}
    for name in reversed(builder.nodes):
        if name in needs:
            needs.update(builder.sources[name])
    names = [name for name in builder.nodes if name in needs or name == "input"]
    return Graph(
        {name: builder.nodes[name] for name in names},
        {name: builder.sources[name] for name in names},
    )
