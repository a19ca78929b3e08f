"""`run`: a network of whole numbers, computed as a digital chip computes it.

    fn, snn  --layers, quantize-->  layers of whole numbers, x  --run-->  Trace

``streams.py`` has what its maps and neurons compute, and says what a unit, a level, a
multiple and a constant are. All numbers are int32. Sums of products are computed in
float32 where that is exact, below 2^24, because it is several times faster.

inputs: "constant" for an x [B, ...] that arrives at all steps, or "sequence" for an x
[T, B, ...] whose x[t] arrives at step t.
delay: the steps that a spike needs from a population to its readers.
bound: the largest size that a number can have, whatever x is.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import lead
from snnjax._checks import check_choice, check_numbers
from snnjax._ranges import Range
from snnjax._types import Inputs
from snnjax.deploy.integers import streams, timing
from snnjax.deploy.integers.timing import arithmetic_of
from snnjax.deploy.lowering.function import shape_of_x
from snnjax.deploy.lowering.values import (
    Convolution,
    Dense,
    Input,
    Layers,
    Output,
    Population,
    Scale,
    SumPool,
    check_layers,
)
from snnjax.neurons.gradients import without_surrogate


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
    layers: Layers, x: Any, *, inputs: Inputs = "constant", delay: int = 0
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
    layers: Layers, x: Any, *, inputs: Inputs = "constant", delay: int = 0
) -> Trace:
    """`run` for large batches: its trace has no spikes and no potentials."""
    return _compute(layers, x, inputs, delay, keep=False)


def on_grid(layers: Layers, x: Any) -> jax.Array:
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
    unit = jnp.float32(layers.input.unit)
    whole, _ = streams.whole_input(jnp.asarray(x), unit, arithmetic_of(layers))
    return unit * whole.astype(jnp.float32)


def check_x(layers: Layers, x: Any, batch_axes: str = "B") -> None:
    """Raise unless x has the shape [B, ...] of the network, and finite numbers.

    Args:
        layers: the network.
        x: its input.
        batch_axes: the names of the axes before those of an example, "B" or "T, B".
    """
    if not hasattr(x, "shape"):
        raise ValueError(f"x is a {type(x).__name__}; allowed: one array")
    shape = shape_of_x(layers)
    batch_ndim = batch_axes.count(",") + 1
    batch_shape = x.shape[:batch_ndim]
    example_shape = x.shape[batch_ndim:]
    if example_shape != shape or 0 in batch_shape:
        sizes = ", ".join(map(str, shape))
        message = (
            f"x has shape {x.shape}; allowed: [{batch_axes}, {sizes}], "
            f"{batch_axes} >= 1"
        )
        if len(shape) == 3:
            rows, columns, channels = shape
            if example_shape == (channels, rows, columns):
                message += f". Put its channels last: np.moveaxis(x, {batch_ndim}, -1)"
        raise ValueError(message)
    check_numbers(x)


def check_whole(layers: Any) -> None:
    """Raise unless these are layers of whole numbers that can be computed.

    Their values must be known now, since checks and bounds need them, and a leak needs
    a rule of rounding.
    """
    check_layers(layers, "whole")
    leaky = [node.name for node in layers.populations if node.is_leaky]
    if leaky and arithmetic_of(layers).leak is None:
        raise ValueError(
            f"the neurons of {leaky[0]!r} leak, and the layers' Arithmetic does not "
            "say how that is rounded; allowed: leak=snnjax.deploy.Leak(...) there"
        )


def with_steps(layers: Layers, x: Any, inputs: Inputs, delay: int = 0) -> Layers:
    """The layers with the number of steps that x has as a sequence, or their own.

    Args:
        layers: the network.
        x: [B, ...], or a sequence [T, B, ...].
        inputs: which of both x is, "constant" or "sequence".
        delay: steps that a spike needs from a population to its readers.

    Raises:
        ValueError: x does not fit the layers; a sequence or a delay where steps are not
            alike; no T.
    """
    check_choice("inputs", inputs, ("constant", "sequence"))
    is_sequence = inputs == "sequence"
    check_x(layers, x, "T, B" if is_sequence else "B")
    # With a sequence or a delay, what arrives at a step may come from any other one. So
    # steps must be alike, and neurons must fire from the first one on.
    is_streaming = layers.code.is_streaming(layers.wait or 0)
    if (is_sequence or delay) and not is_streaming:
        raise ValueError(
            f"the layers have the code {layers.code!r} and wait {layers.wait}; allowed "
            "with a sequence or a delay: snnjax.codes.rate() and wait 0, since other "
            "codes take x at once, and a wait asks for all of T steps"
        )
    if is_sequence:
        layers = dataclasses.replace(layers, steps=len(x), wait=0)
    if layers.steps is None:
        raise ValueError(
            "the layers have no T; allowed: layers of an SNN with steps, dataclasses."
            "replace(layers, steps=T), or a sequence x [T, B, ...] with "
            'inputs="sequence"'
        )
    Range(0, layers.steps, whole=True).check("delay", delay)
    return layers


# ------------------------------------------------------------------------------ bounds


class Bounds(NamedTuple):
    """Bounds of all whole numbers at one step: sum_i |W_ji| max |x_i|.

    Attributes:
        sent: name of a node -> the largest size of a number that it sends, and of the
            partial sums on the way to it.
        received: name of a population -> the largest size of what a neuron receives
            from its sources and from itself.
    """

    sent: dict[str, int]
    received: dict[str, int]


def largest_numbers(layers: Layers) -> Bounds:
    """The bounds of whole layers, in multiples of x's unit and in levels of spikes."""
    sent: dict[str, int] = {}
    received: dict[str, int] = {}
    for node in layers.nodes:
        # A node reads the sum of its sources.
        largest = sum(sent[source] for source in node.sources)
        match node:
            case Input():
                largest = arithmetic_of(layers).largest_input
            case Population(model=model):
                received[node.name] = largest + streams.largest_recurrent_sum(node)
                low, high = without_surrogate(model).levels
                largest = max(-low, high)
            case SumPool(window=window):
                largest *= int(np.prod(window))
            case Scale(weight=weight):
                largest = int(largest * np.abs(weight).max())
            case Convolution(weight=weight) | Dense(weight=weight):
                # One sum for each channel or element of the output.
                row_sums = np.abs(weight).reshape(len(weight), -1).sum(axis=1)
                largest = int(largest * row_sums.max())
        sent[node.name] = largest
    return Bounds(sent, received)


def _check_sums(layers: Layers, bounds: Bounds) -> None:
    """Raise if a sum could reach 2^30 times the smallest potential.

    That is 2^-fraction_bits of a unit.
    """
    # Bounds count levels, and multiples of x's unit. This many units are the largest.
    units = _largest_multiple(timing.timing(layers))
    largest_by_name = dict(bounds.sent)
    for population, largest in bounds.received.items():
        largest_by_name[f"currents of {population}"] = largest
    name = max(largest_by_name, key=lambda name: largest_by_name[name])
    # A potential and a sum are added in int32, which holds numbers below 2^31.
    bits = 30 - timing.fraction_bits(layers)
    if largest_by_name[name] * units >= 2**bits:
        raise ValueError(
            f"the sum at {name!r} can reach {largest_by_name[name]} x {units}, which "
            f"is beyond 2^{bits}, and potentials are simulated in 32 bits; allowed: "
            "fewer bits of weights or inputs, or fewer steps of a code"
        )


def _check_potentials(layers: Layers, bounds: Bounds) -> None:
    """Raise if a potential could reach 2^31 before the register limits it.

    The limit of 2^31 counts potentials of the smallest size, 2^-fraction_bits of a
    unit. So in units, as all numbers below, it is 2^(31 - fraction_bits).
    """
    times = timing.timing(layers)
    # A register holds v / m_n, so v itself may be m_n times as large. ``arriving`` has
    # m_n, the units of a spike that arrives at step n.
    register = 2 ** (arithmetic_of(layers).state_bits - 1) * int(times.arriving.max())
    bits = 31 - timing.fraction_bits(layers)
    for node in layers.populations:
        # The currents and the bias of a step are added to a potential. Before the first
        # step that is v(0), which may lie outside of the register.
        currents = bounds.received[node.name] * _largest_multiple(times)
        bias = float(np.abs(node.bias).max()) / layers.bias_unit
        start = float(np.abs(node.initial_potential).max()) / layers.potential_unit
        largest = currents + bias + max(register, start)
        if largest >= 2**bits:
            raise ValueError(
                f"a potential of {node.name!r} can reach {largest:.0f}, by sums up to "
                f"{currents}, biases up to {bias:.0f}, an initial potential of "
                f"{start:.0f} and registers of {register}; potentials are simulated in "
                f"32 bits; allowed: below 2^{bits}, with smaller biases, initial "
                "potentials or weights, or fewer state_bits"
            )


def _largest_multiple(times: timing.Timing) -> int:
    """The most units that a level, or a multiple of x's unit, is worth at a step."""
    return max(int(times.inputs.max()), int(times.arriving.max()))


# ------------------------------------------------------------------------- computation


def _compute(layers: Layers, x: Any, inputs: Inputs, delay: int, keep: bool) -> Trace:
    """`run`; the trace has spikes and potentials if ``keep`` is True."""
    check_whole(layers)
    layers = with_steps(layers, x, inputs, delay)
    timing.check_state(layers)
    bounds = largest_numbers(layers)
    _check_sums(layers, bounds)
    _check_potentials(layers, bounds)
    # Nodes whose sums may be too large for float32. The compiled program depends on
    # their names only, not on the bounds: other weights of the same shapes use it, too.
    inexact = []
    for name, largest_sum in bounds.sent.items():
        if largest_sum >= streams.FLOAT32_LIMIT:
            inexact.append(name)
    return _run(
        jax.tree.structure(layers),
        {node.name: streams.whole_arrays(node, layers) for node in layers.nodes},
        jnp.asarray(x),
        inexact=frozenset(inexact),
        keep=keep,
        in_time=inputs == "sequence",
        delay=delay,
    )


@functools.partial(
    jax.jit,
    static_argnames=("structure", "inexact", "keep", "in_time", "delay"),
)
def _run(
    structure: Any,
    arrays: dict[str, dict[str, Any]],
    x: jax.Array,
    *,
    inexact: frozenset[str],
    keep: bool,
    in_time: bool,
    delay: int,
) -> Trace:
    """The trace of all nodes, computed in their order of execution.

    Args:
        structure: pytree structure of the layers.
        arrays: node -> its `streams.whole_arrays`.
        x: float [B, ...], or with ``in_time`` [T, B, ...].
        inexact: maps whose sums are computed in int32, since float32 rounds them.
        keep: whether the trace has spikes and potentials.
        delay: steps from a population to its readers.
    """
    layers = streams.without_arrays(structure)
    times = timing.timing(layers)
    arithmetic = arithmetic_of(layers)
    sent: dict[str, streams.Stream] = {}  # by the name of the sender
    outputs: dict[str, jax.Array] = {}  # floats [T, B, ...]
    activity: dict[str, streams.Fired] = {}  # of populations
    clipped = jnp.zeros((), jnp.int32)  # how many elements of x
    for node in layers.nodes:
        numbers = arrays[node.name]
        stream = streams.add_streams([sent[source] for source in node.sources])
        match node:
            case Input():
                whole, clipped = streams.whole_input(x, numbers["unit"], arithmetic)
                sent[node.name] = streams.input_stream(whole, in_time)
            case Population(model=model):
                currents = streams.received_currents(stream, times)
                neuron = without_surrogate(model)
                fired = streams.all_steps(neuron, times, arithmetic, numbers, currents)
                activity[node.name] = fired
                sent[node.name] = streams.Stream(None, _delayed(fired.spikes, delay))
            case Output():
                currents = streams.received_currents(stream, times)
                units = streams.with_bias(currents, numbers["bias"], times)
                # "unit" is what a whole sum of the output stands for.
                unit = lead(layers.potential_unit * numbers["unit"], units.ndim)
                outputs[node.name] = units.astype(jnp.float32) * unit
            case _:  # a linear map
                in_float32 = node.name not in inexact
                sent[node.name] = streams.map_stream(node, numbers, stream, in_float32)
    return _trace(outputs, activity, clipped, keep)


def _delayed(spikes: jax.Array, delay: int) -> jax.Array:
    """Spikes [T, B, ...] as they arrive ``delay`` steps later, the last ones never."""
    in_time = spikes[: len(spikes) - delay]
    silence = jnp.zeros_like(spikes[:delay])
    return jnp.concatenate([silence, in_time])


def _trace(
    outputs: dict[str, jax.Array],
    activity: dict[str, streams.Fired],
    clipped: jax.Array,
    keep: bool,
) -> Trace:
    """What `run` returns; with spikes and potentials if ``keep`` is True.

    Args:
        outputs: of the network by name, float [T, B, ...].
        activity: what each population did, by name.
        clipped: number of elements of x that were clipped.
    """
    spikes = {}
    potentials = {}
    if keep:
        for name, fired in activity.items():
            spikes[name] = fired.spikes
            potentials[name] = fired.potentials
    extremes = {}
    for name, fired in activity.items():
        lowest, highest = fired.extremes
        extremes[name] = (lowest.min(), highest.max())
    result: Any = outputs
    if len(outputs) == 1:
        (result,) = outputs.values()
    return Trace(
        outputs=result,
        spikes=spikes,
        potentials=potentials,
        extremes=extremes,
        overflows={name: fired.overflows for name, fired in activity.items()},
        below={name: fired.below for name, fired in activity.items()},
        clipped=clipped,
    )
