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
the sum of a neuron's spikes never falls below 0. k is 0 where |v - V / 2| < z_t m_t V,
the dead zone of `snnjax.neurons.schedule`.

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

# ------------------------------------------------------------------- arrays of a node


def whole_arrays(node: values.Node, layers: values.Layers) -> dict[str, Any]:
    """The arrays of a node as int32, channels last, biases and potentials in units.

    Returns:
        "weight" of a map; "bias" of a population or an output; "unit" of the input and
        of an output, in float32; "threshold", "start" (v(0)), "bars" [T, ...] (the dead
        zone 2 z_t m_t V), "lowest", "leak" and "recurrent" of a population.

    Raises:
        ValueError: numbers that are not whole, or too large for 32 bits.
    """
    arrays = {name: _int32(weight) for name, weight in map_params(node).items()}
    # What is added to a potential has as many bits as a potential of this network.
    bits = 30 - timing.fraction_bits(layers)
    if isinstance(node, values.Input):
        arrays["unit"] = np.asarray(node.unit, np.float32)
    if isinstance(node, values.Output):
        arrays["unit"] = np.asarray(channels_last(_stated(node.unit)), np.float32)
    if isinstance(node, values.Receiver):
        arrays["bias"] = _int32(channels_last(node.bias / layers.bias_unit), bits)
    if isinstance(node, values.Population):
        arrays |= _neuron_arrays(node, layers, bits)
    return arrays


def _neuron_arrays(
    node: values.Population, layers: values.Layers, bits: int
) -> dict[str, Any]:
    """What `whole_arrays` has of neurons; ``bits`` are those of a potential."""
    threshold = channels_last(node.threshold)
    start = channels_last(node.initial_potential) / layers.potential_unit
    bars = timing.timing(layers).bars(node.model, threshold)
    arrays = {
        "threshold": _int32(threshold, timing.most_state_bits(layers)),
        "start": _int32(start, bits),
        "bars": _int32(bars, bits),
    }
    if without_surrogate(node.model).lowest is not None:
        arrays["lowest"] = _lower_bound(node, threshold, layers)
    if node.leak is not None and node.is_leaky:
        rule = _stated(timing.arithmetic_of(layers).leak)
        arrays["leak"] = _int32(rule.whole(channels_last(node.leak)))
    if node.recurrent is not None:
        kernel = _int32(map_params(node.recurrent)["weight"])
        # Sums in float32 are several times faster, and exact below 2^24.
        is_exact = largest_recurrent_sum(node) < FLOAT_HOLDS
        arrays["recurrent"] = kernel.astype(np.float32) if is_exact else kernel
    return arrays


def _lower_bound(
    node: values.Population, threshold: np.ndarray, layers: values.Layers
) -> np.ndarray:
    """The lower bound of v, int32, in the units of `all_steps`.

    It may lie below the register: a potential between both wraps or saturates. Below
    -2^31 no potential can lie, so a lower bound has no effect.
    """
    lowest = _stated(without_surrogate(node.model).lowest)
    # In float32, as `as_function` computes it, so that both round to the same number.
    bound = np.rint(np.float32(lowest) * threshold.astype(np.float32))
    parts = 2 ** timing.fraction_bits(layers) if node.is_leaky else 1
    return np.maximum(parts * bound.astype(np.float64), -(2.0**31)).astype(np.int32)


def largest_recurrent_sum(node: values.Population) -> int:
    """The largest sum that recurrent neurons send to one of them, or 0."""
    level = max(map(abs, without_surrogate(node.model).levels))
    total = 0
    for kernel in values.maps_to_itself(node):
        total += level * int(np.abs(kernel.weight).sum(axis=1).max())
    return total


def _int32(numbers: np.ndarray, bits: int = 30) -> np.ndarray:
    """Whole numbers below 2^bits.

    Raises:
        ValueError: other numbers.
    """
    whole = np.rint(numbers)
    if not np.allclose(numbers, whole, atol=1e-3) or np.abs(whole).max() >= 2**bits:
        raise ValueError(
            f"layers have numbers that are not whole or reach 2^{bits}, and are "
            "simulated in 32 bits; allowed: smaller whole numbers, as "
            "snnjax.deploy.quantize returns them"
        )
    return whole.astype(np.int32)


def _stated(value: Any) -> Any:
    """A value that layers of whole numbers always have."""
    assert value is not None
    return value


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


def input_stream(x: jax.Array, in_time: bool) -> Stream:
    """x as a stream: a constant, or with ``in_time`` what enters at each step."""
    return Stream(None, x) if in_time else Stream(x, None)


def total(streams: Sequence[Stream]) -> Stream:
    """The sum of what several nodes send."""
    constant = add(stream.constant for stream in streams)
    return Stream(constant, add(stream.spikes for stream in streams))


def add(parts: Iterable[jax.Array | None]) -> Any:
    """The sum of the arrays that are there; None without any."""
    present = [part for part in parts if part is not None]
    return functools.reduce(jnp.add, present) if present else None


def map_stream(
    node: values.Node, arrays: Any, stream: Stream, in_float32: bool = True
) -> Stream:
    """A linear map of a stream: of its constant [B, ...] and its spikes [T, B, ...].

    Args:
        node: the map. Its arrays are not used.
        arrays: its weight, as from `whole_arrays`, or in float32.
        stream: of int32, or of floats in a float network. The result has its types.
        in_float32: whether to compute in float32, and not in int32. For a stream of
            int32 the sums are then exact only if float32 holds all of them, up to
            `FLOAT_HOLDS`: a caller that needs exact sums has to know that.
    """
    dtype = jnp.float32 if in_float32 else jnp.int32
    arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), arrays)

    def output(x: jax.Array) -> jax.Array:
        return map_output(node, arrays, x.astype(dtype)).astype(x.dtype)

    constant, spikes = stream
    # On a GPU the default precision would round the factors to fewer bits.
    with jax.default_matmul_precision("highest"):
        if constant is not None:
            constant = output(constant)
        if spikes is not None:
            # A map knows no time, so steps are examples: [T, B, ...] -> [T B, ...].
            results = output(spikes.reshape(-1, *spikes.shape[2:]))
            spikes = results.reshape(*spikes.shape[:2], *results.shape[1:])
    return Stream(constant, spikes)


def received_currents(stream: Stream, times: Timing) -> jax.Array:
    """What arrives at each of the T steps, in units, without a bias: [T, B, ...]."""
    parts = []
    if stream.constant is not None:
        parts.append(_at_each_step(times.inputs, stream.constant[None]))
    if stream.spikes is not None:
        parts.append(_at_each_step(times.multiples, stream.spikes))
    return add(parts)


def with_bias(currents: jax.Array, bias: jax.Array, times: Timing) -> jax.Array:
    """What arrives [T, B, ...], with the bias at the steps at which it does."""
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


class _State(NamedTuple):
    """Neurons between two steps.

    Attributes:
        v: potentials [B, ...].
        spikes: of the last step, [B, ...]; a scalar if none of them are recurrent.
        sent: sum of all spikes in units, [B, ...]; a scalar if no level is negative.
        extremes: lowest and highest potential of each neuron so far, in units, [...].
        overflows, below: counts of potentials beyond the register, scalars.
    """

    v: jax.Array
    spikes: jax.Array
    sent: jax.Array
    extremes: tuple[jax.Array, jax.Array]
    overflows: jax.Array
    below: jax.Array


class _Step(NamedTuple):
    """What a step of the neurons reads.

    Attributes:
        current: what arrives, [B, ...].
        arriving: m_n, how many units of a potential are one of the register.
        firing: m_t of the spike that is sent; 0 before the first one.
        bar: 2 z_t m_t V of the dead zone.
    """

    current: jax.Array
    arriving: jax.Array
    firing: jax.Array
    bar: jax.Array


def fire(node: values.Population, layers: values.Layers, currents: jax.Array) -> Fired:
    """What a population of whole numbers does with currents, int32 [T, B, ...]."""
    return all_steps(
        without_surrogate(node.model),
        timing.timing(layers),
        timing.arithmetic_of(layers),
        whole_arrays(node, layers),
        currents,
    )


# Inlined in `run`, so that what a caller leaves unread is not computed.
@functools.partial(jax.jit, static_argnums=range(3), inline=True)
def all_steps(
    model: IntegrateAndFire,
    times: Timing,
    arithmetic: values.Arithmetic,
    arrays: dict[str, jax.Array],
    currents: jax.Array,
) -> Fired:
    """All steps of a population, whose ``arrays`` are those of `whole_arrays`.

    ``currents`` are what arrives, in units, without the bias: int32 [T, B, ...].
    """
    neurons = _neurons(model, arithmetic, arrays, currents.ndim - 1)
    parts = neurons.parts
    currents = parts * with_bias(currents, arrays["bias"], times)
    bars = parts * arrays["bars"]
    # A wait has first steps at which no neuron fires, and last ones at which nothing
    # arrives.
    no_bars = jnp.zeros((times.wait, *bars.shape[1:]), jnp.int32)
    no_currents = jnp.zeros((times.wait, *currents.shape[1:]), jnp.int32)
    steps = _Step(
        current=jnp.concatenate([currents, no_currents]),
        arriving=jnp.asarray(parts * times.arriving, jnp.int32),
        firing=jnp.asarray(times.firing, jnp.int32),
        bar=jnp.concatenate([no_bars, bars]),
    )
    v = jnp.broadcast_to(parts * arrays["start"], currents.shape[1:])
    state = neurons.state_at(v)
    state, (spikes, potentials) = jax.lax.scan(neurons.step, state, steps)
    return Fired(
        spikes=spikes[times.wait :],
        potentials=potentials[times.wait :],
        extremes=state.extremes,
        overflows=state.overflows,
        below=state.below,
    )


class _Neurons(NamedTuple):
    """The neurons of a population, with arrays that broadcast to [B, ...].

    Attributes:
        model: with levels and reset.
        arithmetic: the bits of the register, and what an overflow does.
        parts: how many units of v are one of a weight: a leak leaves fractions of it.
        threshold, lowest: V and the lower bound in units of v, None without a bound.
        leak: n of `values.Leak`; None of neurons that do not leak.
        recurrent: kernel of the spikes of the last step [N, N]; None without.
    """

    model: IntegrateAndFire
    arithmetic: values.Arithmetic
    parts: int
    threshold: jax.Array
    lowest: jax.Array | None
    leak: jax.Array | None
    recurrent: jax.Array | None

    @property
    def is_signed(self) -> bool:
        """Whether a spike may be negative, to take back what was sent."""
        return self.model.levels[0] < 0

    def state_at(self, v: jax.Array) -> _State:
        """The state at the potentials v, before anything has been sent."""
        zero = jnp.zeros((), jnp.int32)
        zeros = jnp.zeros(v.shape, jnp.int32)
        return _State(
            v=v,
            spikes=zero if self.recurrent is None else zeros,
            sent=zeros if self.is_signed else zero,
            extremes=(zeros[0], zeros[0]),
            overflows=zero,
            below=zero,
        )

    def step(
        self, state: _State, inputs: _Step
    ) -> tuple[_State, tuple[jax.Array, jax.Array]]:
        """The state after a step; its spikes, and v / m_n after the reset."""
        v = self._integrated(state, inputs.current)
        # Extremes and overflows are those of the register before its limit acts, or
        # nobody would see that it did.
        extremes = _widened(state.extremes, v, inputs.arriving)
        limit = 2 ** (self.arithmetic.state_bits - 1) * inputs.arriving
        overflows = state.overflows + jnp.sum(v >= limit, dtype=jnp.int32)
        below = state.below + jnp.sum(v < -limit, dtype=jnp.int32)
        v = _limited(v, limit, self.arithmetic.overflow)
        # Before the first spike ``firing`` is 0, by which nothing can be divided.
        worth = jnp.maximum(inputs.firing, 1)
        k = self._nearest_level(v, state.sent, worth)
        is_silent = jnp.abs(2 * v - self.threshold) < lead(inputs.bar, v.ndim)
        k = jnp.where(is_silent | (inputs.firing == 0), 0, k)
        if self.model.reset == "subtract":
            v = v - worth * self.threshold * k
        else:
            v = jnp.where(k == 0, v, 0)
        state = _State(
            v=v,
            spikes=state.spikes if self.recurrent is None else k,
            sent=state.sent + worth * k if self.is_signed else state.sent,
            extremes=_widened(extremes, v, inputs.arriving),
            overflows=overflows,
            below=below,
        )
        return state, (k, v // inputs.arriving)

    def _integrated(self, state: _State, current: jax.Array) -> jax.Array:
        """v after the leak, what arrives, recurrent spikes and the lower bound."""
        v = state.v
        if self.leak is not None:
            v = _stated(self.arithmetic.leak).left(v, self.leak)
        v += current
        if self.recurrent is not None:
            spikes = state.spikes.astype(self.recurrent.dtype)
            sums = jnp.matmul(spikes, self.recurrent, precision="highest")
            v += self.parts * sums.astype(jnp.int32)
        if self.lowest is not None:
            # Speck clamps after it has fired and reset. With lowest <= 0 < V that is
            # the same: a potential at the bound does not fire, and no reset ends below.
            v = jnp.maximum(v, self.lowest)
        return v

    def _nearest_level(
        self, v: jax.Array, sent: jax.Array, worth: jax.Array
    ) -> jax.Array:
        """k of potentials v that fire, outside of the dead zone.

        A spike of level 1 is worth ``worth`` units. ``sent``, the sum of all spikes
        before, does not become negative.
        """
        low, high = self.model.levels
        size = worth * self.threshold
        if low == 0:
            return _quotient(v, size, 0, high)
        # Half a unit more, if (m - 1) V is odd, would change no floor.
        offset = (worth - 1) * self.threshold // 2
        k = _quotient(v + offset, size, low, high)
        return jnp.maximum(k, -_quotient(sent, worth, 0, -low))


def _neurons(
    model: IntegrateAndFire,
    arithmetic: values.Arithmetic,
    arrays: dict[str, jax.Array],
    ndim: int,
) -> _Neurons:
    """The neurons of `whole_arrays`, for potentials of ``ndim`` axes."""
    leak = lead(arrays["leak"], ndim) if "leak" in arrays else None
    parts = 1 if leak is None else 2 ** _stated(arithmetic.leak).fraction
    return _Neurons(
        model=model,
        arithmetic=arithmetic,
        parts=parts,
        threshold=parts * lead(arrays["threshold"], ndim),
        lowest=lead(arrays["lowest"], ndim) if "lowest" in arrays else None,
        leak=leak,
        recurrent=arrays.get("recurrent"),
    )


def _limited(v: jax.Array, limit: jax.Array, overflow: str) -> jax.Array:
    """Potentials in the register, -limit <= v < limit, after an overflow."""
    if overflow == "saturate":
        return jnp.clip(v, -limit, limit - 1)
    # v + limit may not fit into 32 bits, the remainder of v does.
    remainder = v % (2 * limit)
    return jnp.where(remainder >= limit, remainder - 2 * limit, remainder)


def _widened(
    extremes: tuple[jax.Array, jax.Array], v: jax.Array, unit: jax.Array
) -> tuple[jax.Array, jax.Array]:
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
