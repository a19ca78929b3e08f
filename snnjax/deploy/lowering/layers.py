"""`layers`: a spiking network as a network of layers (``values.py``).

    w_ji <- w_ji V_i       b_j <- b_j + c_j

V_i is the threshold of the neuron that sends. c_j is the current while x is 0 and no
neuron fires, which biases and BatchNorm cause. The captured equations are read one by
one: ``rules.py`` has those between two sites, this file has the sites and the outputs.

While layers are built, a variable is a sum of nodes (``sums.py``). The ``order`` of
that sum is the index of each neuron of a node in the flattened variable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import called_as, check_examples, check_on_host
from snnjax._trees import is_floating
from snnjax.deploy.lowering import sums
from snnjax.deploy.lowering.products import with_products
from snnjax.deploy.lowering.rules import add_equation, check_operation, pads
from snnjax.deploy.lowering.sums import Builder, NoLayer, Sum, Term, compact, image_axes
from snnjax.deploy.lowering.values import (
    Dense,
    Input,
    Layers,
    Node,
    Output,
    Population,
    needed_nodes,
)
from snnjax.deploy.lowering.windows import vectorize
from snnjax.network.capture.capture import capture
from snnjax.network.capture.check import ConversionError, Problem
from snnjax.network.equations import Equation, Network, Values
from snnjax.network.evaluate import evaluate, identity
from snnjax.network.sites import Site
from snnjax.neurons.by_site import models_in
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.models import is_plain
from snnjax.neurons.wrappers import Recurrent
from snnjax.snn import SNN, check_neurons, check_snn, check_values


@called_as("snnjax.deploy.layers(fn, snn, x)")
def layers(fn: Callable, snn: SNN, x: chex.Array | jax.ShapeDtypeStruct) -> Layers:
    """A spiking network as populations of neurons and the linear maps between them.

        current_j = sum_i w_ji s_i + b_j

    The spikes s_i are whole numbers, since w holds the threshold of the neuron that
    sends them. BatchNorm, scales and means are part of w, constants of b. Strided and
    zero-padded shortcuts and choices of channels are convolutions. All neurons send the
    spikes that they send in the SNN.

    Args:
        fn: network, ``fn(params, x) -> outputs``; it is traced with one example.
        snn: from `snnjax.convert` or `snnjax.init`; its neurons are IF or LIF, and may
            be `snnjax.neurons.Recurrent`.
        x: float [B, ...] or a ``jax.ShapeDtypeStruct``: only the shape is used. An
            image is [B, H, W, C], or [B, C, H, W] if fn's convolutions read it so.

    Returns:
        The layers, channels first. Images may be reordered from [H, W, C] to [C, H, W]
        and back, and flattened.

    Raises:
        snnjax.ConversionError: with everything that is no layer, its path and the
            remedy: operators, max-pools, images that fn flips, permutes or crops,
            encoders, and offsets. A problem that only follows from another one is
            left out.
        ValueError: x is not one array of floating point with an axis of features; the
            neurons are not IF or LIF, or do not fit the network.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> def fn(params, x):
    ...     x = jax.nn.relu(x @ params["hidden"] - 1)
    ...     return x @ params["readout"]
    >>> params = {"hidden": jnp.ones((3, 8)), "readout": jnp.ones((8, 2))}
    >>> neuron = snnjax.integrate_and_fire(threshold=0.5)
    >>> snn = snnjax.init(fn, params, jnp.ones((1, 3)), model=neuron)
    >>> lowered = snnjax.deploy.layers(fn, snn, jnp.ones((1, 3)))
    >>> print(lowered)
    receiver     shape  fan-in  weights  threshold  bias  reads
    hidden/relu  8      3       24       0.5        -1    input > dense
    output       2      8       16       -          0     hidden/relu > dense
    >>> print(lowered.connections[1].maps[0].weight[0])
    [0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5]
    """
    check_snn(snn)
    check_on_host("snnjax.deploy.layers", snn=snn)
    check_values(snn)
    _check_input(x)
    network = capture(fn, snn.params, x, inline_all=True)
    check_neurons(snn, network.sites)
    for model in models_in(snn.model):
        neuron = without_surrogate(_neuron_model(model))
        if not is_plain(neuron):  # neither IF nor LIF
            raise ValueError(
                f"populations of {model!r} are not known; allowed: "
                "snnjax.integrate_and_fire and snnjax.lif, with or without "
                "snnjax.neurons.Recurrent around them"
            )
    return Layers(_nodes(network, snn), snn.steps, snn.wait, snn.code)


def _neuron_model(model: Any) -> Any:
    """The model within a `Recurrent`, and any other model itself."""
    forward_model = without_surrogate(model)
    if isinstance(forward_model, Recurrent):
        return forward_model.neuron
    return model


def _check_input(x: Any) -> None:
    """Raise unless x is one array of numbers, with an axis beside the batch's."""
    check_examples(x)
    if not hasattr(x, "shape") or not is_floating(x):
        raise ValueError(
            f"x is {jax.tree.map(lambda leaf: str(leaf.dtype), x)}; allowed: one array "
            "of floating point, the input of the first layer"
        )
    if len(x.shape) < 2:
        raise ValueError(
            f"x has shape {x.shape}; allowed: [B, ...], with an axis of features as in "
            "x[:, None]"
        )


def _nodes(network: Network, snn: SNN) -> tuple[Node, ...]:
    """The nodes of a network, in order of execution.

    Only the convolutions tell whether an image x has its channels last or first. So
    channels last is tried, then channels first. If both fail, the problems are those
    of the attempt that found sums for more variables.

    Raises:
        ConversionError: an operation is no layer.
    """
    constants = _constants(network, snn.params)
    (x,) = network.x
    shape = network.avals[x].shape
    index = np.arange(math.prod(shape)).reshape(shape)
    # The elements of x in the order of the input node: [C, H, W] or a vector.
    if len(shape) == 3:
        channels_last_order = np.moveaxis(index, -1, 0)
        orders = [channels_last_order, index]
    else:
        orders = [index.ravel()]
    most_sums = 0
    reported_problems: list[Problem] = []
    for order in orders:
        builder = Builder(network, constants)
        problems = _build(builder, snn, order)
        if not problems:
            return with_products(needed_nodes([*builder.nodes.values()]))
        if len(builder.sums) > most_sums:
            most_sums = len(builder.sums)
            reported_problems = problems
    raise ConversionError(reported_problems, "this network is no network of layers")


def _build(builder: Builder, snn: SNN, order: np.ndarray) -> list[Problem]:
    """Add all nodes, and return a problem for everything that is no layer.

    Args:
        builder: without nodes.
        snn: its neurons become the populations.
        order: of the input node, see `_nodes`.
    """
    _add_input(builder, order)
    network = builder.network
    problems = []
    for equation in network.equations:
        # What does not depend on x is among the constants of the builder.
        if not network.dependent.intersection(equation.outputs):
            continue
        operands = network.dependent.intersection(equation.variables)
        try:
            check_operation(equation)
            # If an operand has no sum, the problem of an earlier equation is the cause,
            # and this one needs no report.
            if not operands <= builder.sums.keys():
                continue
            if equation.site is None:
                add_equation(builder, equation)
            else:
                _add_site(builder, snn, equation)
        except NoLayer as error:
            operation = equation.site.kind if equation.site else equation.name
            problems.append(Problem(equation.path, (operation,), *error.args))
    return problems or _add_outputs(builder)


def _add_input(builder: Builder, order: np.ndarray) -> None:
    """Add the input node.

    Args:
        builder: without nodes.
        order: the index of each element of the node in the flattened x, [C, H, W] if x
            is an image, otherwise [N]. An x with other axes is flattened.
    """
    (x,) = builder.network.x
    shape = builder.network.avals[x].shape
    is_image = order.ndim == 3
    node = Input(
        "input",
        sources=(),
        shape=order.shape if is_image else shape,
    )
    name = builder.add(node)
    if len(shape) > 1 and not is_image:
        name = builder.flatten(name, shape)
    builder.sums[x] = Sum((Term(name),), order)


def _add_site(builder: Builder, snn: SNN, equation: Equation) -> None:
    """Add the population of a site, and the sum of its spikes.

    Raises:
        NoLayer: neurons that are an encoder, have an offset, or are recurrent and an
            image.
    """
    site = equation.place
    if site.is_encoder:
        remedy = "put a ReLU here, or no encoder"
        raise NoLayer("an encoder sends spikes of both signs", remedy)
    params = snn.neurons[site.name]
    kernel = getattr(params, "kernel", None)  # [N, N] of recurrent neurons
    if kernel is not None:
        params = params.neuron
    if params.offset is not None:
        raise NoLayer(
            "its neurons add an offset to their spikes",
            "replace the neurons' offset by None, and calibrate or train without it",
        )
    current = equation.variables[0]
    # [N] or [C, H, W]: the index of each neuron in the flattened site.
    order = builder.sums[current].order

    def in_order(leaf: Any) -> np.ndarray:
        """A number for each neuron, in the order of the population."""
        array = np.broadcast_to(sums.numbers(leaf), site.shape)
        return array.ravel()[order]

    threshold = in_order(params.threshold)
    leak = None
    if params.leak is not None:
        leak = compact(in_order(params.leak))
    recurrent = None
    if kernel is not None:
        recurrent = _recurrent_map(site.name, kernel, order, threshold)
    sources, constant = builder.add_scaled_sum(current, site.name)
    population = Population(
        site.name,
        sources=sources,
        shape=order.shape,
        model=_neuron_model(snn.model_of(site.name)),
        threshold=compact(threshold),
        initial_potential=compact(in_order(params.initial_potential)),
        bias=compact(constant + in_order(params.bias)),
        leak=leak,
        recurrent=recurrent,
    )
    # A neuron sends levels, whole numbers. A level is worth the threshold, which is
    # multiplied into the weights that follow.
    builder.nodes[site.name] = population
    spikes = Term(site.name, population.threshold)
    builder.sums[equation.outputs[0]] = Sum((spikes,), order)


def _recurrent_map(
    site_name: str, kernel: Any, order: np.ndarray, threshold: np.ndarray
) -> Dense:
    """The map from the spikes of a site to its own currents in the next step.

    Args:
        site_name: of the recurrent neurons.
        kernel: [N, N], from row to column.
        order: the index of each neuron of the population in the site.
        threshold: [N], of each neuron of the population.
    """
    if order.ndim > 1:
        remedy = "put a dense layer before them, or make only dense sites recurrent"
        raise NoLayer("its neurons are recurrent, and an image", remedy)
    # The weight of a dense layer leads from column to row. A spike is worth the
    # threshold of the neuron that sends it.
    weight = sums.numbers(kernel)[np.ix_(order, order)]
    return Dense(
        f"{site_name}/recurrent",
        sources=(site_name,),
        weight=weight.T * threshold,
        bias=None,
    )


def _add_outputs(builder: Builder) -> list[Problem]:
    """Add the outputs, and return a problem for each that is no output of layers.

    An output is an image [C, H, W], or a vector in the order of fn's result.
    """
    network = builder.network
    problems = []
    for v, output_name in zip(network.outputs, network.output_names(), strict=True):
        # A function with one output has no name for it.
        name = f"output/{output_name}" if output_name else "output"
        path = f"readout/{name}" if output_name else "readout"
        try:
            if not isinstance(v, int) or v not in builder.sums:
                remedy = "return only what the input reaches"
                raise NoLayer("it does not depend on x", remedy)
            result = builder.sums[v]
            shape = network.avals[v].shape
            if result.order.ndim == 3 and len(shape) == 3:
                # Raises unless the channels are the last or the first axis.
                image_axes(result, shape, [(2, 0, 1), (0, 1, 2)])
            else:
                builder.sums[v] = vectorize(builder, result, path)
            sources, constant = builder.add_scaled_sum(v, path)
        except NoLayer as error:
            problems.append(Problem(name, (), *error.args))
            continue
        builder.add(Output(name, sources, constant.shape, compact(constant)))
    return problems


def _constants(network: Network, params: chex.ArrayTree) -> Values:
    """The values of all variables while x is 0 and no neuron fires.

    These are the constants of affine maps. A layer that pads reads its operand without
    the constant, which the nodes before it add (`pads`).
    """

    def silent(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
        """The rule of sites while no neuron fires."""
        if site.fires:
            return jnp.zeros_like(x)
        return identity(site, x, *operands)

    @jax.jit
    def run(arguments: Values) -> Values:
        variables = dict(arguments)
        constants = {}
        for equation in network.equations:
            if pads(equation):
                for v in network.dependent.intersection(equation.variables):
                    variables[v] = jnp.zeros_like(variables[v])
            # The variables are those of one example, so nothing is mapped.
            evaluate([equation._replace(mapped=())], variables, silent)
            for v in equation.outputs:
                constants[v] = variables[v]
        # A variable that was set to 0 for a padded layer keeps its constant.
        return variables | constants

    (x,) = network.x
    example = np.zeros(network.avals[x].shape, network.avals[x].dtype)
    return run(network.arguments(params, example))
