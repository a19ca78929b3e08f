"""Products with weights in a network, and the operations that spikes cause in them.

    synaptic operations = sum over neurons of spikes x fan-out

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

from snnjax._arrays import lead, wide, wide_dtype
from snnjax._trees import batch_of
from snnjax.firing import at_level, events, threshold_of
from snnjax.network.equations import PRODUCTS, Equation, Network, Values, read, shape_of
from snnjax.network.sites import Site
from snnjax.network.stages import streaming
from snnjax.neurons.protocol import levels_of, synapses_of_a_spike
from snnjax.snn import SNN


def products(network: Network) -> list[tuple[Equation, int]]:
    """Products with weights, and the variable of the operand that x reaches."""
    return [
        (equation, next(v for v in equation.variables if v in network.dependent))
        for equation in network.equations
        if equation.name in PRODUCTS
        and not network.dependent.isdisjoint(equation.variables)
    ]


def fan_out(equation: Equation, network: Network, position: int = 0) -> np.ndarray:
    """In how many multiply-adds each entry of operand 0 or 1 of a product takes part.

    Those with padding do not count. The shape broadcasts to the operand's.
    """
    shapes = [shape_of(network.avals, v) for v in equation.inputs]
    output, options = shape_of(network.avals, equation.outputs[0]), equation.options
    ndim = len(shapes[position])
    if equation.name == "dot_general":
        (contracted_axes, _), _ = options["dimension_numbers"]
        macs = math.prod(output) * math.prod(shapes[0][a] for a in contracted_axes)
        return np.full((1,) * ndim, macs // max(1, math.prod(shapes[position])))
    *specs, out_spec = options["dimension_numbers"]
    groups = options["feature_group_count"] * options["batch_group_count"]
    # A pixel reaches the output channels of its group, a weight all examples.
    reached = (output[out_spec[1]] // groups, output[out_spec[0]])[position]
    counts = np.full((1,) * ndim, reached)
    for d in range(len(output) - 2):
        size, kernel = (s[spec[2 + d]] for s, spec in zip(shapes, specs, strict=True))
        along_axis = _taps(options, d, size, kernel, output[out_spec[2 + d]])[position]
        axes = [axis for axis in range(ndim) if axis != specs[position][2 + d]]
        counts = counts * np.expand_dims(along_axis, tuple(axes))
    return counts


def _taps(
    options: dict[str, Any], d: int, size: int, kernel: int, output: int
) -> tuple[np.ndarray, np.ndarray]:
    """Uses of each pixel, [size], and of each weight, [kernel], along dimension d."""
    window = np.arange(kernel) * options["rhs_dilation"][d] - options["padding"][d][0]
    at = np.arange(output)[:, None] * options["window_strides"][d] + window
    # Between two pixels of a dilated input lie zeros.
    dilation = options["lhs_dilation"][d]
    inside = (at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)
    return np.bincount(at[inside] // dilation, minlength=size), inside.sum(0)


def macs_of(equation: Equation, network: Network) -> int:
    """Multiply-adds of a product per image, without those with padding."""
    shape = shape_of(network.avals, equation.inputs[0])
    return int(np.broadcast_to(fan_out(equation, network), shape).sum())


def counts(
    network: Network,
    snn: SNN,
    x: chex.ArrayTree,
    values: Values,
    streams: frozenset[int],
    spikes: dict[str, jax.Array],
    operator_steps: int,
) -> dict[str, jax.Array]:
    """Operations per image and weights, named as in `Measures`.

    Args:
        network: with all calls inlined.
        values, streams: of T steps, as from `evaluate_in_time`.
        spikes: of each site, [T, B, ...].
        operator_steps: how often operators are computed that spikes reach; the others
            are computed once.
    """
    sites = [site for site in network.sites if site.fires]
    pairs = [levels_of(snn.model_of(site.name)) for site in sites]
    highest = max((abs(level) for pair in pairs for level in pair or ()), default=1)
    is_graded = None not in pairs and highest > 1
    at_level_one = at_level(network, snn, x, 1) if is_graded else {}
    constants = at_level(network, snn, x, 0)
    nothing = jax.tree.map(lambda leaf: leaf * jnp.zeros_like(leaf), x)  # not folded
    without_input = at_level(network, snn, nothing, 0)
    inside = [_inside(snn, site, spikes[site.name]) for site in sites]
    operations, additions = (sum(part) for part in zip(*inside, strict=True))
    live_macs, input_macs = _operator_macs(network)
    macs = input_macs + live_macs
    batch = batch_of(x)
    for equation, v in products(network):
        dense = macs_of(equation, network)
        macs += dense
        if v not in streams:
            input_macs += dense
            continue
        synapses = fan_out(equation, network, equation.inputs.index(v))
        stream = events(snn.code, values, constants, v)
        active = (stream != 0).astype(jnp.float32)
        operations += _weighed(active, synapses) / batch
        if is_graded:
            of_level_one = wide(at_level_one[v]) - wide(constants[v])
            sizes = snn.code.sizes(len(stream))
            active *= _magnitudes(stream, of_level_one, sizes, highest)
        additions += _weighed(active, synapses) / batch
        from_input = (constants[v] != without_input[v]).astype(jnp.float32)
        input_macs += _weighed(from_input, synapses) / batch
    return {
        "synaptic_operations": jnp.asarray(operations),
        "synaptic_additions": jnp.asarray(additions),
        "input_macs": jnp.asarray(input_macs, jnp.float32),
        "operator_macs": jnp.asarray(operator_steps * live_macs, jnp.float32),
        "macs": jnp.asarray(macs, jnp.float32),
        **_weights(network, snn, values),
    }


def _weights(network: Network, snn: SNN, values: Values) -> dict[str, jax.Array]:
    """How many weights there are, those of several products once, and zeros of them."""
    operands = [v for equation, _ in products(network) for v in equation.inputs]
    weights = dict.fromkeys(v for v in operands if v not in network.dependent)
    recurrent = sum(
        math.prod(site.shape) * synapses_of_a_spike(snn.model_of(site.name), site.shape)
        for site in network.sites
        if site.fires
    )
    sizes = [math.prod(shape_of(network.avals, v)) for v in weights]
    zeros = [(read(values, v) == 0).sum() for v in weights]
    return {
        "weights": jnp.asarray(recurrent + sum(sizes)),
        "zero_weights": jnp.asarray(sum(zeros)),
    }


def _operator_macs(network: Network) -> tuple[int, int]:
    """Multiply-adds per image of products of two values, which operators compute.

    First those that spikes reach, then the others.
    """
    streams = streaming(network.equations)
    live = {True: 0, False: 0}
    for operator in network.equations:
        for equation in operator.body.equations if operator.body else ():
            if equation.name == "dot_general":
                is_live = not streams.isdisjoint(operator.inputs)
                live[is_live] += macs_of(equation, network)
    return live[True], live[False]


def _weighed(active: jax.Array, synapses: np.ndarray) -> jax.Array:
    """The sum of [..., *one example], each entry times its synapses."""
    before = tuple(range(active.ndim - synapses.ndim))  # time and batch
    return (active.sum(before) * synapses.astype(np.float32)).sum()


def _inside(snn: SNN, site: Site, spikes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Operations and additions per image of connections within a site."""
    model = snn.model_of(site.name)
    synapses = synapses_of_a_spike(model, site.shape)
    if not synapses:
        return jnp.zeros(()), jnp.zeros(())
    active = (spikes[:-1] != 0).astype(jnp.float32)
    level = active
    if levels_of(model) is not None:
        threshold = lead(threshold_of(snn.neurons[site.name], site), spikes.ndim)
        level = jnp.abs(wide(spikes[:-1]) / wide(threshold))
    per_image = synapses / spikes.shape[1]
    return per_image * active.sum(), per_image * level.sum()


def _magnitudes(
    stream: jax.Array, level_one: jax.Array, sizes: np.ndarray, highest: int
) -> jax.Array:
    """How many spikes of level 1 each value of a stream is worth, [T, B, ...].

    Args:
        level_one: the value if all neurons emit level 1, [B, ...]. Spikes of both signs
            may cancel in it; even then a value is worth ``highest`` at most.
        sizes: of a spike at each step, [T].
    """
    steps = jnp.asarray(sizes, wide_dtype(level_one)).reshape(-1, *[1] * level_one.ndim)
    worth = steps * jnp.abs(wide(level_one))[None]
    count = jnp.round(jnp.abs(wide(stream)) / jnp.where(worth > 0, worth, jnp.inf))
    return jnp.clip(count, 1, highest)
