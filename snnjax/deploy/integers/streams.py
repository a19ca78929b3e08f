"""Streams of whole numbers: what maps and neurons of a chip make of them.

    v  <- left(v)                                             leak, see `values.Leak`
    v  <- v + m_n sum_i W_ji k_i + a_n x_j + b_n B_j          add what arrives at step n
    v  <- v + sum_i R_ji k_i(n - 1)                           recurrent, rate coding
    v  <- limit(max(v, round(lowest V)))                      lower bound, register
    k   = clip(floor((v + o_t) / (m_t V)), low, high)         fire
    v  <- v - m_t V k    or 0 where k is not 0                reset

A spike of step t is worth m_t = w_t / w_T units, 1 with rate coding. x_j is the
weighted x, B_j the bias. With rate coding a_n = b_n = 1; with another code x and B
arrive at step 1 alone (``timing.py``). o_t is 0 if low = 0, else (m_t - 1) V / 2, and
what a neuron has sent never falls below 0. k is 0 where |v - V / 2| < z_t m_t V, the
dead zone of `snnjax.neurons.schedule`.

A register holds v / m_n: with a radix code it is shifted as the weights fall. ``limit``
saturates or wraps it at its bits.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import lead
from snnjax.deploy.integers import timing
from snnjax.deploy.integers.timing import Timing
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.function import channels_last, map_output, map_params
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.models import IntegrateAndFire

FLOAT_HOLDS = 2**24  # float32 represents every whole number up to here


def arrays_of(node: values.Node, layers: values.Layers) -> dict[str, Any]:
    """The arrays of a node as int32: biases and potentials in units.

    The "bars" of a population are its dead zone 2 z_t m_t V at each spike, [T, ...]. A
    recurrent kernel is float32 where sums of its products are exact in it.
    """
    arrays = {name: _int32(weight) for name, weight in map_params(node).items()}
    bits = 30 - timing.fraction_bits(layers)  # of what is added to a potential
    match node:
        case values.Input(unit=unit_of_x):
            arrays["unit"] = np.asarray(unit_of_x, np.float32)
        case values.Population():
            threshold = channels_last(node.threshold)
            start = channels_last(node.initial_potential) / layers.potential_unit
            arrays |= {
                "threshold": _int32(threshold, timing.most_state_bits(layers)),
                "start": _int32(start, bits),
                "bars": _int32(timing.timing(layers).bars(node.model, threshold), bits),
            }
            if without_surrogate(node.model).lowest is not None:
                arrays["lowest"] = _lower_bound(node, threshold, layers)
            if node.is_leaky:
                rule = timing.arithmetic_of(layers).leak
                assert rule is not None and node.leak is not None
                arrays["leak"] = _int32(rule.whole(channels_last(node.leak)))
            if node.recurrent is not None:
                whole = _int32(map_params(node.recurrent)["weight"])
                is_exact = most_from_itself(node) < FLOAT_HOLDS
                arrays["recurrent"] = whole.astype(np.float32) if is_exact else whole
        case values.Output(unit=unit):
            assert unit is not None
            arrays["unit"] = np.asarray(channels_last(unit), np.float32)
    if isinstance(node, values.Receiver):
        arrays["bias"] = _int32(channels_last(node.bias / layers.bias_unit), bits)
    return arrays


def _lower_bound(
    node: values.Population, threshold: np.ndarray, layers: values.Layers
) -> np.ndarray:
    """The lower bound of v, int32, in the units of `all_steps`.

    It may lie below the register: a potential between both wraps or saturates. Below
    -2^31 no potential can lie, so a lower bound has no effect.
    """
    lowest = without_surrogate(node.model).lowest
    # In float32, as `as_function` computes it, so that both round to the same number.
    bound = np.rint(np.float32(lowest) * threshold.astype(np.float32))
    parts = 2 ** timing.fraction_bits(layers) if node.is_leaky else 1
    return np.maximum(parts * bound.astype(np.float64), -(2.0**31)).astype(np.int32)


def most_from_itself(node: values.Population) -> int:
    """The largest sum that a recurrent population sends to one of its neurons, or 0."""
    highest = max(map(abs, without_surrogate(node.model).levels))
    sums = [np.abs(own.weight).sum(1).max() for own in values.maps_to_itself(node)]
    return highest * int(sum(sums))


def _int32(numbers: np.ndarray, bits: int = 30) -> np.ndarray:
    whole = np.rint(numbers)
    if not np.allclose(numbers, whole, atol=1e-3) or np.abs(whole).max() >= 2**bits:
        raise ValueError(
            f"layers have numbers that are not whole or reach 2^{bits}, and are "
            "simulated in 32 bits; allowed: smaller whole numbers, as "
            "snnjax.deploy.quantize returns them"
        )
    return whole.astype(np.int32)


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


def entering(x: jax.Array, in_time: bool) -> Stream:
    """x as a stream: a constant, or what enters at each step."""
    return Stream(None, x) if in_time else Stream(x, None)


def total(streams: Sequence[Stream]) -> Stream:
    """The sum of what several nodes send."""
    return Stream(add(s.constant for s in streams), add(s.spikes for s in streams))


def add(parts: Iterable[jax.Array | None]) -> Any:
    """The sum of the arrays that are there; None without any."""
    present = [part for part in parts if part is not None]
    return functools.reduce(jnp.add, present) if present else None


def mapped(
    node: values.Node, p: Any, stream: Stream, in_float32: bool = True
) -> Stream:
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
    parts = []
    if constant is not None:
        parts.append(_at_each_step(times.inputs, constant[None]))
    if spikes is not None:
        parts.append(_at_each_step(times.multiples, spikes))
    return add(parts)


def with_bias(currents: jax.Array, bias: jax.Array, times: Timing) -> jax.Array:
    """What arrives, with the bias at the steps at which it does."""
    bias = jnp.broadcast_to(bias, currents.shape[1:])
    return currents + _at_each_step(times.biases, bias[None])


def _at_each_step(numbers: np.ndarray, array: jax.Array) -> jax.Array:
    """A number of each step times an array, [T, ...] or the same one [1, ...]."""
    factors = jnp.asarray(numbers, array.dtype)
    return factors.reshape(-1, *[1] * (array.ndim - 1)) * array


def whole_input(
    x: jax.Array, unit_of_x: jax.Array, arithmetic: values.Arithmetic
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


def fire(node: values.Population, layers: values.Layers, currents: jax.Array) -> Fired:
    """What a population of whole numbers does with currents, int32 [T, B, ...]."""
    neuron, p = without_surrogate(node.model), arrays_of(node, layers)
    return all_steps(neuron, timing.timing(layers), layers.arithmetic, p, currents)


# Inlined in `run`, so that what a caller leaves unread is not computed.
@functools.partial(jax.jit, static_argnums=range(3), inline=True)
def all_steps(
    neuron: IntegrateAndFire,
    times: Timing,
    arithmetic: values.Arithmetic,
    p: dict[str, jax.Array],
    currents: jax.Array,
) -> Fired:
    """All steps of a population, whose arrays ``p`` are those of `arrays_of`.

    ``currents`` are what arrives, in units, without the bias.
    """
    # A leak leaves fractions of a unit: potentials are in units of 1 / parts.
    leak = arithmetic.leak if "leak" in p else None
    parts = 1 if leak is None else 2**leak.fraction
    currents = parts * with_bias(currents, p["bias"], times)
    wait, shape = times.wait, currents.shape[1:]
    threshold = parts * lead(p["threshold"], len(shape))
    takes_back, subtracts = neuron.levels[0] < 0, neuron.reset == "subtract"
    recurrent = p.get("recurrent")

    def step(state, now):
        v, last, sent, extremes, overflows, below = state
        current, arriving, firing, bar = now
        if leak is not None:
            v = leak.left(v, lead(p["leak"], v.ndim))
        v += current
        if recurrent is not None:
            factors = last.astype(recurrent.dtype), recurrent
            product = jnp.matmul(*factors, precision="highest")
            v += parts * product.astype(jnp.int32)
        # Speck clamps after it has fired and reset. With lowest <= 0 < V that is the
        # same: a potential at the bound does not fire, and no reset ends below it.
        if neuron.lowest is not None:
            v = jnp.maximum(v, lead(p["lowest"], v.ndim))
        # Extremes and overflows are those of the register before its limit acts, or
        # nobody would see that it did.
        extremes = _widened(extremes, v, arriving)
        limit = 2 ** (arithmetic.state_bits - 1) * arriving
        overflows += jnp.sum(v >= limit, dtype=jnp.int32)
        below += jnp.sum(v < -limit, dtype=jnp.int32)
        if arithmetic.overflow == "saturate":
            v = jnp.clip(v, -limit, limit - 1)
        else:
            # v + limit may not fit into 32 bits, the remainder of v does.
            v = v % (2 * limit)
            v = jnp.where(v >= limit, v - 2 * limit, v)
        # Before the first spike ``firing`` is 0, by which nothing can be divided.
        m = jnp.maximum(firing, 1)
        k = _nearest_level(neuron, v, sent, m, threshold)
        is_silent = jnp.abs(2 * v - threshold) < lead(bar, v.ndim)
        k = jnp.where(is_silent | (firing == 0), 0, k)
        sent += m * k if takes_back else 0
        v = v - m * threshold * k if subtracts else jnp.where(k == 0, v, 0)
        extremes = _widened(extremes, v, arriving)
        last = last if recurrent is None else k
        return (v, last, sent, extremes, overflows, below), (k, v // arriving)

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.int32)

    xs = (
        jnp.concatenate([currents, zeros(wait, *shape)]),
        jnp.asarray(parts * times.arriving, jnp.int32),
        jnp.asarray(times.firing, jnp.int32),
        jnp.concatenate([zeros(wait, *p["bars"].shape[1:]), parts * p["bars"]]),
    )
    start = jnp.broadcast_to(parts * p["start"], shape)
    sent = zeros(*shape) if takes_back else zeros()
    last = zeros() if recurrent is None else zeros(*shape)
    extremes = zeros(*shape[1:]), zeros(*shape[1:])
    state = start, last, sent, extremes, zeros(), zeros()
    state, (spikes, potentials) = jax.lax.scan(step, state, xs)
    *_, extremes, overflows, below = state
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
