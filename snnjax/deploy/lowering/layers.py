"""`layers`: a spiking network as a network of layers (``values.py``).

    w_ji <- w_ji V_i       b_j <- b_j + c_j

V_i is the threshold of the neuron that sends, c_j the current while x is 0 and no
neuron fires: what BatchNorm and biases leave. The captured equations are taken one by
one: ``rules.py`` has those between two sites, this file the sites and the outputs.
"""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import check_examples
from snnjax._trees import is_floating
from snnjax.deploy.lowering import sums, values
from snnjax.deploy.lowering.products import with_products
from snnjax.deploy.lowering.rules import add_equation, check_operation, pads
from snnjax.deploy.lowering.sums import Builder, NoLayer, Sum, Term, compact, image_axes
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


def layers(
    fn: Callable, snn: SNN, x: chex.Array | jax.ShapeDtypeStruct
) -> values.Layers:
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
            encoders, and offsets. What only follows from another is left out.
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
    check_values(snn)
    _check_input(x)
    network = capture(fn, snn.params, x, inline_all=True)
    check_neurons(snn, network.sites)
    for model in models_in(snn.model):
        if not is_plain(without_surrogate(_of_each_neuron(model))):
            raise ValueError(
                f"populations of {model!r} are not known; allowed: "
                "snnjax.integrate_and_fire and snnjax.lif, with or without "
                "snnjax.neurons.Recurrent around them"
            )
    return values.Layers(_lowered(network, snn), snn.steps, snn.wait, snn.code)


def _of_each_neuron(model: Any) -> Any:
    """The model without a recurrent kernel around it."""
    outer = without_surrogate(model)
    return outer.neuron if isinstance(outer, Recurrent) else model


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


def _lowered(network: Network, snn: SNN) -> tuple[values.Node, ...]:
    """The nodes of a network, in order of execution.

    Whether an image x has its channels last or first, only the convolutions know. So
    channels last is tried, then channels first. If both fail, the problems are those
    of the attempt that understood more variables.
    """
    constants, attempts = _at_rest(network, snn.params), []
    (x,) = network.x
    shape = network.avals[x].shape
    index = np.arange(math.prod(shape)).reshape(shape)
    # The elements of x in the order of the input node: [C, H, W] or a vector.
    orders = [np.moveaxis(index, -1, 0), index] if len(shape) == 3 else [index.ravel()]
    for order in orders:
        builder = Builder(network, constants)
        problems = _build(builder, snn, order)
        if not problems:
            return with_products(values.needed([*builder.nodes.values()]))
        attempts.append((len(builder.sums), problems))
    _, problems = max(attempts, key=lambda attempt: attempt[0])
    raise ConversionError(problems, "this network is no network of layers")


def _build(builder: Builder, snn: SNN, order: np.ndarray) -> list[Problem]:
    """Add all nodes; return everything that has none.

    An equation is left out if it reads one that has no layer. It is a problem of its
    own only if no operands would give it a layer.
    """
    network = builder.network
    (x,) = network.x
    shape = network.avals[x].shape
    entrance = values.Input("input", (), order.shape if order.ndim == 3 else shape)
    name = builder.add(entrance)
    if len(shape) > 1 and order.ndim == 1:
        name = builder.add(values.Flatten("input/flatten", (name,), shape))
    builder.sums[x] = Sum((Term(name),), order)
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
    """Add the neurons of a site."""
    site, (current, *_) = equation.place, equation.variables
    params = snn.neurons[site.name]
    kernel = getattr(params, "kernel", None)  # of recurrent neurons
    params = params if kernel is None else params.neuron
    if site.is_encoder:
        remedy = "put a ReLU here, or no encoder"
        raise NoLayer("an encoder sends spikes of both signs", remedy)
    if params.offset is not None:
        raise NoLayer(
            "its neurons add an offset to their spikes",
            "replace the neurons' offset by None, and calibrate or train without it",
        )
    order = builder.sums[current].order

    def of_each_neuron(leaf: Any) -> np.ndarray:
        return np.broadcast_to(sums.numbers(leaf), site.shape).ravel()[order]

    recurrent, thresholds = None, of_each_neuron(params.threshold)
    if kernel is not None:
        if order.ndim > 1:
            remedy = "put a dense layer before them, or make only dense sites recurrent"
            raise NoLayer("its neurons are recurrent, and an image", remedy)
        # From row to column there, and a spike is worth the threshold of its neuron.
        weight = sums.numbers(kernel)[np.ix_(order, order)].T * thresholds
        recurrent = values.Dense(f"{site.name}/recurrent", (site.name,), weight, None)
    names, constant = builder.received(current, site.name)
    population = values.Population(
        site.name,
        names,
        order.shape,
        _of_each_neuron(snn.model_of(site.name)),
        threshold=compact(thresholds),
        initial_potential=compact(of_each_neuron(params.initial_potential)),
        bias=compact(constant + of_each_neuron(params.bias)),
        leak=None if params.leak is None else compact(of_each_neuron(params.leak)),
        recurrent=recurrent,
    )
    # A neuron sends levels, whole numbers. What a level is worth, the threshold, goes
    # into the weights of whoever reads it.
    builder.nodes[site.name] = population
    spikes = Term(site.name, population.threshold)
    builder.sums[equation.outputs[0]] = Sum((spikes,), order)


def _add_outputs(builder: Builder) -> list[Problem]:
    """Add images [C, H, W], or else vectors, in the order of fn's elements."""
    network, problems = builder.network, []
    for v, where in zip(network.outputs, network.output_names(), strict=True):
        name = f"output/{where}" if where else "output"
        path = f"readout/{name}" if where else "readout"
        try:
            if not isinstance(v, int) or v not in builder.sums:
                remedy = "return only what the input reaches"
                raise NoLayer("it does not depend on x", remedy)
            total, shape = builder.sums[v], network.avals[v].shape
            if total.order.ndim == 3 and len(shape) == 3:
                image_axes(total, shape, [(2, 0, 1), (0, 1, 2)])  # channels last, first
            else:
                builder.sums[v] = vectorize(builder, total, path)
            names, constant = builder.received(v, path)
        except NoLayer as reason:
            problems.append(Problem(name, (), *reason.args))
            continue
        builder.add(values.Output(name, names, constant.shape, compact(constant)))
    return problems


def _at_rest(network: Network, params: chex.ArrayTree) -> Values:
    """Every variable while x is 0 and no neuron fires: the constants of affine maps.

    A layer that pads reads its operand without the constant, which the nodes before it
    add (`pads`).
    """

    def silent(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
        return jnp.zeros_like(x) if site.fires else identity(site, x, *operands)

    @jax.jit
    def run(arguments: Values) -> Values:
        read, at_production = dict(arguments), {}
        for equation in network.equations:
            if pads(equation):
                for v in network.dependent.intersection(equation.variables):
                    read[v] = jnp.zeros_like(read[v])
            evaluate([equation._replace(mapped=())], read, silent)
            at_production |= {v: read[v] for v in equation.outputs}
        return read | at_production

    (x,) = network.x
    example = jnp.zeros(network.avals[x].shape, network.avals[x].dtype)
    return run(network.arguments(params, example))
