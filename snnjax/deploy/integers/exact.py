"""`run`: a network of whole numbers, computed as a digital chip computes it.

    fn, snn  --layers, quantize-->  layers of whole numbers, x  --run-->  Trace

``streams.py`` has what its maps and neurons compute. All numbers are int32. Sums of
products are computed in float32 where that is exact, below 2^24, because it is several
times faster.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._arrays import lead
from snnjax._checks import check_choice, check_numbers
from snnjax._ranges import Range
from snnjax.deploy.integers import streams, timing
from snnjax.deploy.integers.timing import arithmetic_of
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.function import shape_of_x
from snnjax.neurons.gradients import without_surrogate

Arrays = dict[str, dict[str, Any]]
Inputs = Literal["constant", "sequence"]


class Trace(NamedTuple):
    """What a chip computes for a batch. Images are channels last.

    Attributes:
        outputs: float [T, B, ...] as `snnjax.spiking` returns them; several as a dict
            by the names of the outputs.
        spikes: population -> levels k, int32 [T, B, ...].
        potentials: population -> v / m_n after each reset, rounded down, int32
            [T, B, ...].
        extremes: population -> lowest and highest v / m_n, before the limit and after
            each reset, or 0; a lower bound of the neurons has acted before.
        overflows: population -> how many times a potential went beyond its highest
            number.
        below: the same for the lowest number. Saturation raises such a potential, so
            its neuron may fire earlier later on.
        clipped: how many elements of x need more than `Arithmetic.input_bits`.
    """

    outputs: Any
    spikes: dict[str, jax.Array]
    potentials: dict[str, jax.Array]
    extremes: dict[str, tuple[jax.Array, jax.Array]]
    overflows: dict[str, jax.Array]
    below: dict[str, jax.Array]
    clipped: jax.Array


def run(
    layers: values.Layers, x: Any, *, inputs: Inputs = "constant", delay: int = 0
) -> Trace:
    """Compute a batch as a chip does, in whole numbers, and keep all spikes.

    Args:
        layers: from `snnjax.deploy.quantize`.
        x: float [B, ...], images channels last; of a sequence [T, B, ...].
        inputs: "constant": x arrives at each of the T steps of the layers. "sequence":
            x[t] arrives at step t. T is then that of x, whatever the layers' steps,
            since with rate coding no number depends on it: events one by one, or some
            of them at a time, whose number is x.
        delay: 0 .. T, steps that a spike needs from a population to its readers: 1 on
            Loihi. To recurrent neurons themselves it always needs one.

    Returns:
        A `Trace`, with T B levels and potentials for each neuron. It has no gradient;
        `trainable` has one.

    Raises:
        ValueError: the layers are not of whole numbers; x does not fit them; a
            sequence or a delay with a wait or another code than rate coding; no steps.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.eye(2), "readout": jnp.ones((2, 1))}
    >>> x = jnp.array([[0.5, 0.3]])
    >>> snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    >>> integers = snnjax.deploy.quantize(snnjax.deploy.layers(fn, snn, x), x)
    >>> print(run(integers, x).spikes["hidden/relu"].sum(0))
    [[4 2]]
    >>> late = jnp.concatenate([0 * x[None], 0 * x[None], x[None]])
    >>> print(run(integers, late, inputs="sequence").spikes["hidden/relu"][:, 0])
    [[0 0]
     [0 0]
     [1 0]]
    """
    return _compute(layers, x, inputs, delay, keep=True)


def outputs(
    layers: values.Layers, x: Any, *, inputs: Inputs = "constant", delay: int = 0
) -> Trace:
    """`run` for large batches: the outputs and counts, no spikes and no potentials."""
    return _compute(layers, x, inputs, delay, keep=False)


def on_grid(layers: values.Layers, x: Any) -> jax.Array:
    """x as a chip reads it: rounded to multiples of its unit, and clipped.

    What `snnjax.deploy.as_function` makes of whole numbers takes such an x.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.eye(2), "readout": jnp.ones((2, 1))}
    >>> x = jnp.array([[0.75, 0.5]])
    >>> snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    >>> layers = snnjax.deploy.layers(fn, snn, x)
    >>> layers = snnjax.deploy.quantize(layers, x, input_bits=3)
    >>> print(on_grid(layers, x), on_grid(layers, 2 * x))
    [[0.75 0.5 ]] [[0.75 0.75]]
    """
    check_whole(layers)
    check_x(layers, x)
    unit_of_x, arithmetic = jnp.float32(layers.input.unit), arithmetic_of(layers)
    whole, _ = streams.whole_input(jnp.asarray(x), unit_of_x, arithmetic)
    return unit_of_x * whole.astype(jnp.float32)


def check_x(layers: values.Layers, x: Any, before: str = "B") -> None:
    """Raise unless x is an array of examples of the network, behind these axes."""
    if not hasattr(x, "shape"):
        raise ValueError(f"x is a {type(x).__name__}; allowed: one array")
    shape, axes = shape_of_x(layers), before.count(",") + 1
    own = x.shape[axes:]
    if own != shape or not np.prod(x.shape[:axes]):
        is_first = len(own) == 3 and (*own[1:], own[0]) == shape
        remedy = f". Put its channels last: np.moveaxis(x, {axes}, -1)"
        raise ValueError(
            f"x has shape {x.shape}; allowed: [{before}, "
            f"{', '.join(map(str, shape))}], {before} >= 1{remedy * is_first}"
        )
    check_numbers(x)


def check_whole(layers: Any) -> None:
    """Raise unless these are layers of whole numbers, with their values at hand."""
    values.check_layers(layers, "whole")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(layers)):
        raise ValueError(
            "layers are traced; allowed: layers that a jitted function closes over, "
            "e.g. jax.jit(lambda x: run(layers, x).outputs)"
        )
    leaky = [node.name for node in layers.populations if node.is_leaky]
    if leaky and arithmetic_of(layers).leak is None:
        raise ValueError(
            f"the neurons of {leaky[0]!r} leak, and the layers' Arithmetic does not "
            "say how that is rounded; allowed: leak=snnjax.deploy.Leak(...) there"
        )


def of_steps(
    layers: values.Layers, x: Any, inputs: Inputs, delay: int = 0
) -> values.Layers:
    """The layers with a T: that of a sequence x, or their own; raise if x misfits."""
    check_choice("inputs", inputs, ("constant", "sequence"))
    in_time = inputs == "sequence"
    check_x(layers, x, "T, B" if in_time else "B")
    # Each step must be like the others, and neurons fire from the first.
    if (in_time or delay) and not layers.code.is_streaming(layers.wait or 0):
        raise ValueError(
            f"the layers have the code {layers.code!r} and wait {layers.wait}; allowed "
            "with a sequence or a delay: snnjax.codes.rate() and wait 0, since other "
            "codes take x at once, and a wait asks for all of T steps"
        )
    if in_time:
        layers = dataclasses.replace(layers, steps=len(x), wait=0)
    if layers.steps is None:
        raise ValueError(
            "the layers have no T; allowed: layers of an SNN with steps, dataclasses."
            "replace(layers, steps=T), or a sequence x [T, B, ...] with "
            'inputs="sequence"'
        )
    Range(0, layers.steps, whole=True).check("delay", delay)
    return layers


def _compute(
    layers: values.Layers, x: Any, inputs: Inputs, delay: int, keep: bool
) -> Trace:
    check_whole(layers)
    layers, in_time = of_steps(layers, x, inputs, delay), inputs == "sequence"
    timing.check_state(layers)
    largest = largest_values(layers)
    _check_sums(layers, largest)
    # A program depends on which sums are inexact, and not on how large they are: other
    # weights of the same shapes use the same one.
    limit = streams.FLOAT_HOLDS
    inexact = frozenset(name for name, most in largest.items() if most >= limit)
    arrays = {node.name: streams.arrays_of(node, layers) for node in layers.nodes}
    structure = jax.tree.structure(layers)
    options = keep, in_time, delay
    return _run(structure, inexact, options, arrays, jnp.asarray(x))


def largest_values(layers: values.Layers) -> dict[str, int]:
    """Bounds of all whole numbers at one step: sum_i |W_ji| max |x_i|.

    Node -> the largest number or partial sum that it sends; "currents of " and the name
    of a population -> that of what it receives.
    """
    largest: dict[str, int] = {}
    for node in layers.nodes:
        arriving = sum(largest[source] for source in node.sources)
        match node:
            case values.Input():
                arriving = arithmetic_of(layers).largest_input
            case values.Population(model=model):
                arriving += streams.most_from_itself(node)
                largest[f"currents of {node.name}"] = arriving
                arriving = max(map(abs, without_surrogate(model).levels))
            case values.SumPool(window=window):
                arriving *= int(np.prod(window))
            case values.Scale(weight=weight):
                arriving = int(arriving * np.abs(weight).max())
            case values.Convolution(weight=weight) | values.Dense(weight=weight):
                sums = np.abs(weight).reshape(len(weight), -1).sum(axis=1)
                arriving = int(arriving * sums.max())
        largest[node.name] = arriving
    return largest


def _check_sums(layers: values.Layers, largest: dict[str, int]) -> None:
    """Raise if a weighted sum could reach 2^30, or a potential 2^31."""
    times = timing.timing(layers)
    worth = max(int(times.inputs.max()), int(times.arriving.max()))
    name = max(largest, key=largest.__getitem__)
    bits = 30 - timing.fraction_bits(layers)
    if largest[name] * worth >= 2**bits:
        raise ValueError(
            f"the sum at {name!r} can reach {largest[name]} x {worth}, which is beyond "
            f"2^{bits}, and potentials are simulated in 32 bits; allowed: fewer bits "
            "of weights or inputs, or fewer steps of a code"
        )
    # The currents and the bias of a step are added before the limit of the register
    # acts. Before the first step the potential is v(0), which may be larger.
    register = 2 ** (arithmetic_of(layers).state_bits - 1) * int(times.arriving.max())
    for node in layers.populations:
        sums = largest[f"currents of {node.name}"] * worth
        bias = float(np.abs(node.bias).max()) / layers.bias_unit
        start = float(np.abs(node.initial_potential).max()) / layers.potential_unit
        reach = sums + bias + max(register, start)
        if reach >= 2 ** (bits + 1):
            raise ValueError(
                f"a potential of {node.name!r} can reach {reach:.0f}, by sums up to "
                f"{sums}, biases up to {bias:.0f}, an initial potential of {start:.0f} "
                f"and registers of {register}; potentials are simulated in 32 bits; "
                f"allowed: below 2^{bits + 1}, with smaller biases, initial "
                "potentials or weights, or fewer state_bits"
            )


@functools.partial(jax.jit, static_argnums=range(3))
def _run(
    structure: Any,
    inexact: frozenset[str],
    options: tuple[bool, bool, int],
    arrays: Arrays,
    x: jax.Array,
) -> Trace:
    keep, in_time, delay = options
    layers = streams.without_arrays(structure)
    times, arithmetic = timing.timing(layers), arithmetic_of(layers)
    sent: dict[str, streams.Stream] = {}
    results: dict[str, jax.Array] = {}
    activity: dict[str, streams.Fired] = {}
    clipped = jnp.zeros((), jnp.int32)
    for node in layers.nodes:
        name, p = node.name, arrays[node.name]
        stream = streams.total([sent[source] for source in node.sources])
        match node:
            case values.Input():
                whole, clipped = streams.whole_input(x, p["unit"], arithmetic)
                sent[name] = streams.entering(whole, in_time)
            case values.Population(model=model):
                currents = streams.received(stream, times)
                neuron = without_surrogate(model)
                fired = streams.all_steps(neuron, times, arithmetic, p, currents)
                spikes = fired.spikes[: times.steps - delay]
                late = jnp.pad(spikes, ((delay, 0), *[(0, 0)] * (spikes.ndim - 1)))
                activity[name], sent[name] = fired, streams.Stream(None, late)
            case values.Output():
                currents = streams.received(stream, times)
                units = streams.with_bias(currents, p["bias"], times)
                worth = lead(layers.potential_unit * p["unit"], units.ndim)
                results[name] = units.astype(jnp.float32) * worth
            case _:
                sent[name] = streams.mapped(node, p, stream, name not in inexact)
    (single, *others) = results.values()
    return Trace(
        results if others else single,
        {name: f.spikes for name, f in activity.items()} if keep else {},
        {name: f.potentials for name, f in activity.items()} if keep else {},
        {n: (f.extremes[0].min(), f.extremes[1].max()) for n, f in activity.items()},
        {name: f.overflows for name, f in activity.items()},
        {name: f.below for name, f in activity.items()},
        clipped,
    )
