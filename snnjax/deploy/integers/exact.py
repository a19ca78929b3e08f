"""`run`: a network of whole numbers, computed as a digital chip computes it.

    v  <- limit(v + m_n sum_i W_ji k_i + a_n x_j + b_n B_j)   add what arrives at step n
    k   = clip(floor((v + o_t) / (m_t V)), low, high)         fire
    v  <- v - m_t V k    or 0 where k is not 0                reset

A spike of step t is worth m_t = w_t / w_T units, 1 with rate coding. x_j is the
weighted x, B_j the bias. With rate coding a_n = b_n = 1; with another code x and B
arrive at step 1 alone (``timing.py``). o_t is 0 if low = 0, else (m_t - 1) V / 2, and
what a neuron has sent never falls below 0. k is 0 where |v - V / 2| < z_t m_t V, the
dead zone of `snnjax.neurons.schedule`.

A register holds v / m_n: with a radix code it is shifted as the weights fall. ``limit``
saturates or wraps it at its bits. All numbers are int32. Sums of products are computed
in float32 where that is exact, below 2^24, because it is several times faster.
"""

import functools
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._arrays import lead
from snnjax._checks import check_numbers
from snnjax.deploy.integers.timing import Timing, timing
from snnjax.deploy.lowering.function import (
    channels_last,
    map_output,
    map_params,
    shape_of_x,
)
from snnjax.deploy.lowering.values import (
    Arithmetic,
    Convolution,
    Dense,
    Input,
    Layers,
    Node,
    Output,
    Population,
    Scale,
    SumPool,
)
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.models import IntegrateAndFire
from snnjax.neurons.schedule import dead_zones

FLOAT_HOLDS = 2**24  # float32 represents every whole number up to here
Arrays = dict[str, dict[str, Any]]


class Trace(NamedTuple):
    """What a chip computes for a batch. Images are channels last.

    Attributes:
        outputs: float [T, B, ...] as `snnjax.spiking` returns them; several as a dict
            by the names of the outputs.
        spikes: population -> levels k, int32 [T, B, ...].
        potentials: population -> v / m_n after each reset, rounded down, int32
            [T, B, ...].
        extremes: population -> lowest and highest v / m_n, before the limit and after
            each reset, or 0.
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


def run(layers: Layers, x: Any) -> Trace:
    """Compute a batch as a chip does, in whole numbers, and keep all spikes.

    Args:
        layers: from `snnjax.deploy.quantize`.
        x: float [B, ...], images channels last.

    Returns:
        A `Trace`, with T B levels and potentials for each neuron. It has no gradient;
        `trainable` has one.

    Raises:
        ValueError: the layers are not of whole numbers; x does not fit them.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.eye(2), "readout": jnp.ones((2, 1))}
    >>> x = jnp.array([[0.5, 0.3]])
    >>> snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    >>> integers = snnjax.deploy.quantize(snnjax.deploy.layers(fn, snn, x), x)
    >>> print(run(integers, x).spikes["hidden/relu"].sum(0))
    [[4 2]]
    """
    return _compute(layers, x, keep=True)


def outputs(layers: Layers, x: Any) -> Trace:
    """`run` for large batches: the outputs and counts, no spikes and no potentials."""
    return _compute(layers, x, keep=False)


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
    _check(layers, x)
    unit_of_x = jnp.float32(layers.input.unit)
    assert layers.arithmetic is not None
    whole, _ = whole_input(jnp.asarray(x), unit_of_x, layers.arithmetic)
    return unit_of_x * whole.astype(jnp.float32)


def check_shape(layers: Layers, x: Any) -> None:
    """Raise unless x is an array of examples of the network."""
    if not hasattr(x, "shape"):
        raise ValueError(f"x is a {type(x).__name__}; allowed: one array")
    shape = shape_of_x(layers)
    if x.shape[1:] != shape or not len(x):
        is_first = x.ndim == 4 and (*x.shape[2:], x.shape[1]) == shape
        remedy = ". Put its channels last: np.moveaxis(x, 1, -1)" if is_first else ""
        raise ValueError(
            f"x has shape {x.shape}; allowed: [B, {', '.join(map(str, shape))}], "
            f"B >= 1{remedy}"
        )


def check_whole(layers: Any) -> None:
    """Raise unless these are layers of whole numbers, with their values at hand."""
    if not isinstance(layers, Layers) or layers.arithmetic is None:
        kind = "float layers" if isinstance(layers, Layers) else type(layers).__name__
        raise ValueError(
            f"layers is {kind}, not of whole numbers; allowed: what "
            "snnjax.deploy.quantize(snnjax.deploy.layers(fn, snn, x), images) returns"
        )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(layers)):
        raise ValueError(
            "layers are traced; allowed: layers that a jitted function closes over, "
            "e.g. jax.jit(lambda x: run(layers, x).outputs)"
        )


def _check(layers: Layers, x: Any) -> None:
    """Raise unless x is for these layers of whole numbers."""
    check_whole(layers)
    check_shape(layers, x)
    check_numbers(x)


def _compute(layers: Layers, x: Any, keep: bool) -> Trace:
    _check(layers, x)
    largest = largest_values(layers)
    _check_sums(layers, largest)
    # A program depends on which sums are inexact, and not on how large they are: other
    # weights of the same shapes use the same one.
    inexact = frozenset(name for name, most in largest.items() if most >= FLOAT_HOLDS)
    arrays = {node.name: _arrays(node, layers) for node in layers.nodes}
    structure = jax.tree.structure(layers)
    return _run(structure, inexact, keep, arrays, jnp.asarray(x))


def largest_values(layers: Layers) -> dict[str, int]:
    """Bounds of all whole numbers at one step: sum_i |W_ji| max |x_i|.

    Node -> the largest number or partial sum that it sends; "currents of " and the name
    of a population -> that of what it receives.
    """
    assert layers.arithmetic is not None
    largest: dict[str, int] = {}
    for node in layers.nodes:
        arriving = sum(largest[source] for source in node.sources)
        match node:
            case Input():
                arriving = layers.arithmetic.largest_input
            case Population(model=model):
                largest[f"currents of {node.name}"] = arriving
                arriving = max(map(abs, without_surrogate(model).levels))
            case SumPool(window=window):
                arriving *= int(np.prod(window))
            case Scale(weight=weight):
                arriving = int(arriving * np.abs(weight).max())
            case Convolution(weight=weight) | Dense(weight=weight):
                sums = np.abs(weight).reshape(len(weight), -1).sum(axis=1)
                arriving = int(arriving * sums.max())
        largest[node.name] = arriving
    return largest


def _check_sums(layers: Layers, largest: dict[str, int]) -> None:
    """Raise if a weighted sum could reach 2^30; `_int32` keeps biases below it."""
    times = timing(layers)
    worth = max(int(times.inputs.max()), int(times.arriving.max()))
    name = max(largest, key=largest.__getitem__)
    # A potential and a sum are added before the limit acts, so each has 30 bits.
    if largest[name] * worth >= 2**30:
        raise ValueError(
            f"the sum at {name!r} can reach {largest[name]} x {worth}, which is beyond "
            "2^30, and potentials are simulated in 32 bits; allowed: fewer bits of "
            "weights or inputs, or fewer steps of a code"
        )


def _arrays(node: Node, layers: Layers) -> dict[str, Any]:
    """The arrays of a node as int32: biases and potentials in units.

    The "bars" of a population are its dead zone 2 z_t m_t V at each spike, [T, ...].
    """
    arrays = {name: _int32(weight) for name, weight in map_params(node).items()}
    match node:
        case Input(unit=unit_of_x):
            arrays["unit"] = np.asarray(unit_of_x, np.float32)
        case Population():
            threshold = channels_last(node.threshold)
            start = channels_last(node.initial_potential) / layers.potential_unit
            times = timing(layers)
            zones = dead_zones(without_surrogate(node.model), times.steps)
            # The least whole number not below 2 z_t m_t V, in fractions: a float
            # beside a whole number would be rounded to the next one.
            bars = [
                -(-2 * z.numerator * m * threshold // z.denominator)
                for z, m in zip(map(_ratio, zones), times.multiples, strict=True)
            ]
            arrays |= {
                "threshold": _int32(threshold),
                "start": _int32(start),
                "bars": _int32(np.stack(bars)),
            }
    if isinstance(node, Population | Output):
        bias = node.bias / layers.bias_unit
        arrays["bias"] = _int32(channels_last(bias))
    if isinstance(node, Output):
        assert node.unit is not None
        arrays["unit"] = np.asarray(channels_last(node.unit), np.float32)
    return arrays


def _ratio(number: float) -> Fraction:
    """2/3 and not the float beside it."""
    return Fraction(float(number)).limit_denominator(10**6)


def _int32(numbers: np.ndarray) -> np.ndarray:
    whole = np.rint(numbers)
    if not np.allclose(numbers, whole, atol=1e-3) or np.abs(whole).max() >= 2**30:
        raise ValueError(
            "layers have numbers that are not whole or reach 2^30, and are simulated "
            "in 32 bits; allowed: what snnjax.deploy.quantize returns, with fewer bits"
        )
    return whole.astype(np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    structure: Any, inexact: frozenset[str], keep: bool, arrays: Arrays, x: jax.Array
) -> Trace:
    layers = without_arrays(structure)
    times, arithmetic = timing(layers), layers.arithmetic
    streams: dict[str, Stream] = {}
    results: dict[str, jax.Array] = {}
    activity: dict[str, Fired] = {}
    clipped = jnp.zeros((), jnp.int32)
    for node in layers.nodes:
        p = arrays[node.name]
        stream = total([streams[source] for source in node.sources])
        match node:
            case Input():
                whole, clipped = whole_input(x, p["unit"], arithmetic)
                streams[node.name] = Stream(whole, None)
            case Population(model=model):
                neuron, currents = without_surrogate(model), received(stream, times)
                activity[node.name] = _fire(neuron, times, arithmetic, p, currents)
                streams[node.name] = Stream(None, activity[node.name].spikes)
            case Output():
                units = _with_bias(received(stream, times), p["bias"], times)
                worth = lead(layers.potential_unit * p["unit"], units.ndim)
                results[node.name] = units.astype(jnp.float32) * worth
            case _:
                streams[node.name] = mapped(node, p, stream, node.name not in inexact)
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


# A structure has a hash, so it can be a static argument of `jax.jit`; arrays have none.
def without_arrays(structure: Any) -> Any:
    """The layers or the node of a structure, None in place of each array."""
    return jax.tree.unflatten(structure, [None] * structure.num_leaves)


# ------------------------------------------------------------- maps of whole numbers


class Stream(NamedTuple):
    """What a node sends: a constant [B, ...], and levels at each step [T, B, ...].

    The constant comes from the input. None where there is nothing.
    """

    constant: jax.Array | None
    spikes: jax.Array | None


def total(streams: list[Stream]) -> Stream:
    """The sum of what several nodes send."""
    return Stream(add(s.constant for s in streams), add(s.spikes for s in streams))


def add(parts: Iterable[jax.Array | None]) -> Any:
    """The sum of the arrays that are there; None without any."""
    present = [part for part in parts if part is not None]
    return functools.reduce(jnp.add, present) if present else None


def mapped(node: Node, p: Any, stream: Stream, in_float32: bool = True) -> Stream:
    """A linear map of a stream; of int32 in float32, if that is exact."""
    dtype = jnp.float32 if in_float32 else jnp.int32
    p = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), p)

    def output(x: jax.Array) -> jax.Array:
        return map_output(node, p, x.astype(dtype)).astype(x.dtype)

    constant, spikes = stream
    # A map knows no time, so steps are examples. On a GPU the default precision would
    # round the factors to fewer bits.
    with jax.default_matmul_precision("highest"):
        if spikes is not None:
            flat = output(spikes.reshape(-1, *spikes.shape[2:]))
            spikes = flat.reshape(*spikes.shape[:2], *flat.shape[1:])
        return Stream(None if constant is None else output(constant), spikes)


def received(stream: Stream, times: Timing) -> jax.Array:
    """What arrives at each of the T steps, in units, without a bias: [T, B, ...]."""
    constant, spikes = stream
    return add(
        [
            None if constant is None else _at_each_step(times.inputs, constant[None]),
            None if spikes is None else _at_each_step(times.multiples, spikes),
        ]
    )


def _with_bias(currents: jax.Array, bias: jax.Array, times: Timing) -> jax.Array:
    """What arrives, with the bias at the steps at which it does."""
    bias = jnp.broadcast_to(bias, currents.shape[1:])
    return currents + _at_each_step(times.biases, bias[None])


def _at_each_step(numbers: np.ndarray, array: jax.Array) -> jax.Array:
    """A number of each step times an array, [T, ...] or the same one [1, ...]."""
    factors = jnp.asarray(numbers, array.dtype)
    return factors.reshape(-1, *[1] * (array.ndim - 1)) * array


def whole_input(
    x: jax.Array, unit_of_x: jax.Array, arithmetic: Arithmetic
) -> tuple[jax.Array, jax.Array]:
    """x in its units, clipped to its bits, and how many elements were clipped."""
    nearest = jnp.round(x / unit_of_x)
    largest = arithmetic.largest_input
    clipped = jnp.sum(jnp.abs(nearest) > largest, dtype=jnp.int32)
    return jnp.clip(nearest, -largest, largest).astype(jnp.int32), clipped


# ------------------------------------------------------------------------- neurons


class Fired(NamedTuple):
    """What the neurons of a population do, see `Trace`; extremes of each neuron."""

    spikes: jax.Array
    potentials: jax.Array
    extremes: tuple[jax.Array, jax.Array]
    overflows: jax.Array
    below: jax.Array


def fire(node: Population, layers: Layers, currents: jax.Array) -> Fired:
    """What a population of whole numbers does with currents, int32 [T, B, ...]."""
    neuron, p = without_surrogate(node.model), _arrays(node, layers)
    return _fire(neuron, timing(layers), layers.arithmetic, p, currents)


@functools.partial(jax.jit, static_argnums=range(3))
def _fire(
    neuron: IntegrateAndFire,
    times: Timing,
    arithmetic: Arithmetic,
    p: dict[str, jax.Array],
    currents: jax.Array,
) -> Fired:
    """All steps of a population, whose arrays ``p`` are those of `_arrays`.

    ``currents`` are what arrives, in units, without the bias.
    """
    currents = _with_bias(currents, p["bias"], times)
    wait, shape = times.wait, currents.shape[1:]
    threshold = lead(p["threshold"], len(shape))
    takes_back, subtracts = neuron.levels[0] < 0, neuron.reset == "subtract"

    def step(state, now):
        v, sent, extremes, overflows, below = state
        current, arriving, firing, bar = now
        v += current
        # Extremes and overflows are those of the register before its limit acts, or
        # nobody would see that it did.
        extremes = _widened(extremes, v, arriving)
        limit = 2 ** (arithmetic.state_bits - 1) * arriving
        overflows += jnp.sum(v >= limit, dtype=jnp.int32)
        below += jnp.sum(v < -limit, dtype=jnp.int32)
        if arithmetic.overflow == "saturate":
            v = jnp.clip(v, -limit, limit - 1)
        else:
            v = (v + limit) % (2 * limit) - limit
        # Before the first spike ``firing`` is 0, by which nothing can be divided.
        m = jnp.maximum(firing, 1)
        k = _nearest_level(neuron, v, sent, m, threshold)
        is_silent = jnp.abs(2 * v - threshold) < lead(bar, v.ndim)
        k = jnp.where(is_silent | (firing == 0), 0, k)
        sent += m * k if takes_back else 0
        v = v - m * threshold * k if subtracts else jnp.where(k == 0, v, 0)
        extremes = _widened(extremes, v, arriving)
        return (v, sent, extremes, overflows, below), (k, v // arriving)

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.int32)

    xs = (
        jnp.concatenate([currents, zeros(wait, *shape)]),
        jnp.asarray(times.arriving, jnp.int32),
        jnp.asarray(times.firing, jnp.int32),
        jnp.concatenate([zeros(wait, *p["bars"].shape[1:]), p["bars"]]),
    )
    start = jnp.broadcast_to(p["start"], shape)
    sent = zeros(*shape) if takes_back else zeros()
    extremes = zeros(*shape[1:]), zeros(*shape[1:])
    state = start, sent, extremes, zeros(), zeros()
    state, (spikes, potentials) = jax.lax.scan(step, state, xs)
    _, _, extremes, overflows, below = state
    return Fired(spikes[wait:], potentials[wait:], extremes, overflows, below)


def _nearest_level(neuron, v, sent, m, threshold) -> jax.Array:
    """k of potentials v that fire, outside of the dead zone."""
    low, high = neuron.levels
    if low == 0:
        return _quotient(v, m * threshold, 0, high)
    # Half a unit more, if (m - 1) V is odd, would change no floor.
    k = _quotient(v + (m - 1) * threshold // 2, m * threshold, low, high)
    return jnp.maximum(k, -_quotient(sent, m, 0, -low))


def _widened(extremes: tuple[Any, Any], v: jax.Array, unit: Any) -> tuple[Any, Any]:
    """The lowest and highest of each neuron so far, in units, with those of v."""
    lowest, highest = extremes
    lowest = jnp.minimum(lowest, v.min(0) // unit)
    return lowest, jnp.maximum(highest, v.max(0) // unit)


def _quotient(number: jax.Array, divisor: jax.Array, low: int, high: int) -> jax.Array:
    """number // divisor, clipped, without a division of whole numbers.

    CPUs divide floats many at a time. Levels are small, so the quotient of float32 is
    wrong by at most one, and the remainder tells by how much.
    """
    ratio = number.astype(jnp.float32) / jnp.asarray(divisor, jnp.float32)
    quotient = jnp.floor(jnp.clip(ratio, low - 1, high + 1)).astype(jnp.int32)
    remainder = number - quotient * divisor
    quotient += jnp.where(remainder >= divisor, 1, 0) - jnp.where(remainder < 0, 1, 0)
    return jnp.clip(quotient, low, high)
