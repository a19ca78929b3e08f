"""Streams of whole numbers: what maps and neurons of a chip make of them.

    v  <- left(v)                                             leak, see `values.Leak`
    v  <- v + m_n sum_i W_ji k_i + a_n x_j + b_n B_j          add what arrives at step n
    v  <- v + sum_i R_ji k_i(n - 1)                           recurrent, rate coding
    v  <- limit(max(v, round(lowest V)))                      lower bound, register
    k   = clip(floor((v + o_t) / (m_t V)), low, high)         fire
    v  <- v - m_t V k    or 0 where k is not 0                reset

unit: what 1 stands for in a potential, T w_T. All sums below are in units.
level: the whole number k that a spike sends.
multiple: m_t = w_t / w_T, the units of a spike of step t; 1 with rate coding.
step: n = 1 .. T + wait counts all steps, t = n - wait those at which a neuron fires.
constant: x_j is the weighted x, B_j the bias. With rate coding they arrive at every
step, a_n = b_n = 1; with another code they arrive at step 1 alone (``timing.py``).
register: holds v / m_n, since a radix code shifts it as the weights fall. ``limit``
saturates or wraps it at its bits.
dead zone: k is 0 where |2 v - V| is below the bar 2 z_t m_t V; z_t is the dead zone of
`snnjax.neurons.schedule`.
fraction: where neurons leak, potentials have bits below a unit, see `values.Leak`.
The computation of the steps then multiplies all numbers of neurons by 2^fraction.

o_t is 0 if low = 0, else (m_t - 1) V / 2, and the sum of a neuron's spikes never falls
below 0. In shapes, B counts the examples and ... are the axes of the neurons, with the
channels last.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import lead, per_step
from snnjax.deploy.integers.timing import (
    Timing,
    arithmetic_of,
    fraction_bits,
    largest_state_bits,
    timing,
)
from snnjax.deploy.lowering.function import channels_last, map_output, map_params
from snnjax.deploy.lowering.values import (
    Arithmetic,
    Input,
    Layers,
    Node,
    Output,
    Population,
    Receiver,
    maps_to_itself,
)
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.models import IntegrateAndFire

FLOAT32_LIMIT = 2**24  # float32 represents every whole number up to here

# ------------------------------------------------------------------- arrays of a node


def whole_arrays(node: Node, layers: Layers) -> dict[str, Any]:
    """The arrays of a node as int32, channels last, biases and potentials in units.

    Returns:
        "weight" of a map; "bias" of a population or an output; "unit" of the input and
        of an output, in float32; of a population also "threshold", "start" (v(0)),
        "bars" [T, ...] (the dead zone 2 z_t m_t V), and where it has them "lowest",
        "leak" and "recurrent".

    Raises:
        ValueError: numbers that are not whole, or too large for 32 bits.
    """
    arrays = {name: _int32(weight) for name, weight in map_params(node).items()}
    # What is added to a potential has as many bits as a potential of this network.
    bits = 30 - fraction_bits(layers)
    if isinstance(node, Input):
        arrays["unit"] = np.asarray(node.unit, np.float32)
    if isinstance(node, Output):
        assert node.unit is not None
        arrays["unit"] = np.asarray(channels_last(node.unit), np.float32)
    if isinstance(node, Receiver):
        arrays["bias"] = _int32(channels_last(node.bias / layers.bias_unit), bits)
    if isinstance(node, Population):
        arrays |= _neuron_arrays(node, layers, bits)
    return arrays


def _neuron_arrays(node: Population, layers: Layers, bits: int) -> dict[str, Any]:
    """The arrays of `whole_arrays` that only neurons have, by their names there.

    All but the bars, [T, ...], and the kernel of recurrent neurons are a scalar, one
    for each channel or one for each neuron, channels last.

    Args:
        node: the population.
        layers: in which it is.
        bits: of a potential, the sign apart, in units.
    """
    threshold = channels_last(node.threshold)  # whole already
    start = channels_last(node.initial_potential) / layers.potential_unit
    bars = timing(layers).bars(node.model, threshold)
    arrays = {
        # A threshold is multiplied by m_t, which takes bits of its own.
        "threshold": _int32(threshold, largest_state_bits(layers)),
        "start": _int32(start, bits),
        "bars": _int32(bars, bits),
    }
    lowest = without_surrogate(node.model).lowest
    if lowest is not None:
        # Potentials of neurons that leak have bits below a unit.
        fraction_scale = 2 ** fraction_bits(layers) if node.is_leaky else 1
        arrays["lowest"] = _lower_bound(lowest, threshold, fraction_scale)
    if node.leak is not None and node.is_leaky:
        leak_rule = arithmetic_of(layers).leak
        assert leak_rule is not None
        arrays["leak"] = _int32(leak_rule.whole(channels_last(node.leak)))
    if node.recurrent is not None:
        kernel = _int32(map_params(node.recurrent)["weight"])
        # Sums in float32 are several times faster, and exact below 2^24.
        is_exact = largest_recurrent_sum(node) < FLOAT32_LIMIT
        arrays["recurrent"] = kernel.astype(np.float32) if is_exact else kernel
    return arrays


def _lower_bound(
    lowest: float, threshold: np.ndarray, fraction_scale: int
) -> np.ndarray:
    """The lower bound of v in units times ``fraction_scale``, int32.

    It may lie below the register: a potential between both wraps or saturates.
    """
    # In float32, as `as_function` computes it, so that both round to the same number.
    bound = np.rint(np.float32(lowest) * threshold.astype(np.float32))
    bound = fraction_scale * bound.astype(np.float64)
    # No potential lies below -2^31, so a bound there would have no effect either.
    return np.maximum(bound, -(2.0**31)).astype(np.int32)


def largest_recurrent_sum(node: Population) -> int:
    """The largest sum, in size, that neurons of a population send to one of them."""
    low, high = without_surrogate(node.model).levels
    total = 0
    for kernel in maps_to_itself(node):
        row_sums = np.abs(kernel.weight).sum(axis=1)
        total += max(-low, high) * int(row_sums.max())
    return total


def _int32(numbers: np.ndarray, bits: int = 30) -> np.ndarray:
    """Whole numbers below 2^bits as int32.

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


def without_arrays(structure: Any) -> Any:
    """The layers or the node of a pytree structure, None in place of each array.

    A structure has a hash, so it can be a static argument of `jax.jit`; arrays have
    none.
    """
    return jax.tree.unflatten(structure, [None] * structure.num_leaves)


# ------------------------------------------------------------- maps of whole numbers


class Stream(NamedTuple):
    """What a node sends in all steps; None for a part that it does not send.

    Attributes:
        constant: what comes from a constant x, [B, ...]; `Timing.inputs` says when.
        spikes: levels at each step, or what a map makes of them, [T, B, ...].
    """

    constant: jax.Array | None
    spikes: jax.Array | None


def input_stream(x: jax.Array, in_time: bool) -> Stream:
    """A constant x [B, ...] as a stream; ``in_time``: x [T, B, ...] of each step."""
    if in_time:
        return Stream(constant=None, spikes=x)
    return Stream(constant=x, spikes=None)


def add_streams(streams: Sequence[Stream]) -> Stream:
    """The sum of what several nodes send."""
    return Stream(
        constant=add_arrays([stream.constant for stream in streams]),
        spikes=add_arrays([stream.spikes for stream in streams]),
    )


def add_arrays(arrays: Sequence[jax.Array | None]) -> Any:
    """The sum of the arrays that are not None; None if there is none."""
    total = None
    for array in arrays:
        if total is None:
            total = array
        elif array is not None:
            total = total + array
    return total


def map_stream(
    node: Node, arrays: Any, stream: Stream, in_float32: bool = True
) -> Stream:
    """A linear map of a stream: of its constant [B, ...] and its spikes [T, B, ...].

    Args:
        node: the map. Its arrays are not used.
        arrays: {"weight": its weight}, as from `whole_arrays`, or in float32.
        stream: of int32, or of floats in a float network. The result has its types.
        in_float32: whether to compute in float32, and not in int32. For a stream of
            int32 the sums are then exact only if float32 holds all of them, up to
            `FLOAT32_LIMIT`: a caller that needs exact sums has to know that.
    """
    dtype = jnp.float32 if in_float32 else jnp.int32
    arrays = jax.tree.map(lambda array: jnp.asarray(array).astype(dtype), arrays)

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
    currents = []
    if stream.constant is not None:
        currents.append(_at_each_step(times.inputs, stream.constant[None]))
    if stream.spikes is not None:
        currents.append(_at_each_step(times.multiples, stream.spikes))
    return add_arrays(currents)


def with_bias(currents: jax.Array, bias: jax.Array, times: Timing) -> jax.Array:
    """The currents [T, B, ...] with a bias, [...], at the steps at which it arrives."""
    bias = jnp.broadcast_to(bias, currents.shape[1:])
    return currents + _at_each_step(times.biases, bias[None])


def _at_each_step(factors: np.ndarray, array: jax.Array) -> jax.Array:
    """A factor of each step [T] times an array [T, ...], or [1, ...] for all steps."""
    return per_step(jnp.asarray(factors, array.dtype), array.ndim) * array


@functools.partial(jax.jit, static_argnames="arithmetic")
def whole_input(
    x: jax.Array, unit_of_x: jax.Array, arithmetic: Arithmetic
) -> tuple[jax.Array, jax.Array]:
    """x in multiples of its unit as a chip reads it, and how many it had to clip.

    Args:
        x: of any shape.
        unit_of_x: what 1 stands for, a scalar or an array that broadcasts to x.
        arithmetic: with the bits of an input.

    Returns:
        The nearest whole numbers that fit into ``input_bits``, int32 of the shape of
        x, and the number of elements that did not fit.
    """
    nearest = jnp.round(x / unit_of_x)
    largest = arithmetic.largest_input
    clipped_count = jnp.sum(jnp.abs(nearest) > largest, dtype=jnp.int32)
    whole = jnp.clip(nearest, -largest, largest).astype(jnp.int32)
    return whole, clipped_count


# ------------------------------------------------------------------------- neurons


class Fired(NamedTuple):
    """What the neurons of a population do, int32.

    Attributes:
        spikes: levels k, [T, B, ...].
        potentials: v / m_n after each reset, rounded down, [T, B, ...].
        extremes: lowest and highest v / m_n of each neuron, [...].
        overflows, below: how often a potential was above or below its register.
    """

    spikes: jax.Array
    potentials: jax.Array
    extremes: tuple[jax.Array, jax.Array]
    overflows: jax.Array
    below: jax.Array


class _State(NamedTuple):
    """Neurons between two steps.

    Attributes:
        v: potentials, [B, ...].
        spikes: levels of the last step, [B, ...]; a scalar if none of the neurons are
            recurrent.
        sent: sum of all spikes in units, [B, ...]; a scalar if no level is negative.
        extremes: lowest and highest v / m_n of each neuron so far, [...].
        overflows, below: counts of potentials beyond the register, scalars.
    """

    v: jax.Array
    spikes: jax.Array
    sent: jax.Array
    extremes: tuple[jax.Array, jax.Array]
    overflows: jax.Array
    below: jax.Array


class _Step(NamedTuple):
    """What a step of the neurons reads; in `all_steps` with an axis T + wait in front.

    Attributes:
        current: what arrives with the bias, [B, ...].
        arriving: m_n, how many units of a potential are one of the register; a scalar.
        firing: m_t of the spike that is sent; 0 before the first one; a scalar.
        bar: 2 z_t m_t V of the dead zone, [...].
    """

    current: jax.Array
    arriving: jax.Array
    firing: jax.Array
    bar: jax.Array


def fire(node: Population, layers: Layers, currents: jax.Array) -> Fired:
    """What a population of whole numbers does with currents, int32 [T, B, ...]."""
    return all_steps(
        without_surrogate(node.model),
        timing(layers),
        arithmetic_of(layers),
        whole_arrays(node, layers),
        currents,
    )


# Inlined in `run`, so that what a caller leaves unread is not computed.
@functools.partial(jax.jit, static_argnums=range(3), inline=True)
def all_steps(
    model: IntegrateAndFire,
    times: Timing,
    arithmetic: Arithmetic,
    arrays: dict[str, jax.Array],
    currents: jax.Array,
) -> Fired:
    """What a population does in all of its T + wait steps.

    Args:
        model: of its neurons.
        times: what the code does at each step.
        arithmetic: of its potentials.
        arrays: `whole_arrays` of the population.
        currents: what arrives, in units, without the bias: int32 [T, B, ...].
    """
    neurons = _neurons(model, arithmetic, arrays, ndim=currents.ndim - 1)
    scale = neurons.fraction_scale
    currents = scale * with_bias(currents, arrays["bias"], times)
    bars = scale * arrays["bars"]
    # A wait has first steps at which no neuron fires, and last ones at which nothing
    # arrives.
    no_bars = jnp.zeros((times.wait, *bars.shape[1:]), jnp.int32)
    no_currents = jnp.zeros((times.wait, *currents.shape[1:]), jnp.int32)
    steps = _Step(
        current=jnp.concatenate([currents, no_currents]),
        arriving=jnp.asarray(scale * times.arriving, jnp.int32),
        firing=jnp.asarray(times.firing, jnp.int32),
        bar=jnp.concatenate([no_bars, bars]),
    )
    start = jnp.broadcast_to(scale * arrays["start"], currents.shape[1:])
    state = neurons.state_at(start)
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
        fraction_scale: 2^fraction, by which currents and potentials are multiplied; 1
            without a leak.
        threshold: V times ``fraction_scale``.
        lowest: lower bound of v, times ``fraction_scale``; None without one.
        leak: n of `values.Leak`; None of neurons that do not leak.
        recurrent: kernel of the spikes of the last step [N, N], int32, or float32 if
            that is exact; None without one.
    """

    model: IntegrateAndFire
    arithmetic: Arithmetic
    fraction_scale: int
    threshold: jax.Array
    lowest: jax.Array | None
    leak: jax.Array | None
    recurrent: jax.Array | None

    @property
    def is_signed(self) -> bool:
        """Whether a spike may be negative, to take back what was sent."""
        return self.model.levels[0] < 0

    def state_at(self, v: jax.Array) -> _State:
        """The state at the potentials v [B, ...], before anything has been sent."""
        # Arrays that these neurons do not need are scalars, to save memory.
        zero = jnp.zeros((), jnp.int32)
        zeros = jnp.zeros(v.shape, jnp.int32)
        return _State(
            v=v,
            spikes=zero if self.recurrent is None else zeros,
            sent=zeros if self.is_signed else zero,
            extremes=(zeros[0], zeros[0]),  # over the examples, [...]
            overflows=zero,
            below=zero,
        )

    def step(
        self, state: _State, inputs: _Step
    ) -> tuple[_State, tuple[jax.Array, jax.Array]]:
        """A step of `jax.lax.scan`.

        Returns:
            The state after the step, and a pair of arrays [B, ...]: the levels k that
            are sent, and v / m_n after the reset, rounded down.
        """
        v = self._integrate(state, inputs.current)
        # Extremes and overflows are those of the register before its limit acts, or
        # nobody would see that it did.
        extremes = _widen(state.extremes, v, inputs.arriving)
        limit = 2 ** (self.arithmetic.state_bits - 1) * inputs.arriving
        overflows = state.overflows + jnp.sum(v >= limit, dtype=jnp.int32)
        below = state.below + jnp.sum(v < -limit, dtype=jnp.int32)
        v = _limit(v, limit, self.arithmetic.overflow)
        # Before the first spike ``firing`` is 0, by which nothing can be divided.
        multiple = jnp.maximum(inputs.firing, 1)
        k = self._nearest_level(v, state.sent, multiple)
        is_silent = jnp.abs(2 * v - self.threshold) < lead(inputs.bar, v.ndim)
        k = jnp.where(is_silent | (inputs.firing == 0), 0, k)
        if self.model.reset == "subtract":
            v = v - multiple * self.threshold * k
        else:
            v = jnp.where(k == 0, v, 0)
        state = _State(
            v=v,
            spikes=state.spikes if self.recurrent is None else k,
            sent=state.sent + multiple * k if self.is_signed else state.sent,
            extremes=_widen(extremes, v, inputs.arriving),
            overflows=overflows,
            below=below,
        )
        return state, (k, v // inputs.arriving)

    def _integrate(self, state: _State, current: jax.Array) -> jax.Array:
        """v after the leak, what arrives, recurrent spikes and the lower bound."""
        v = state.v
        if self.leak is not None:
            assert self.arithmetic.leak is not None
            v = self.arithmetic.leak.left(v, self.leak)
        v += current
        if self.recurrent is not None:
            spikes = state.spikes.astype(self.recurrent.dtype)
            sums = jnp.matmul(spikes, self.recurrent, precision="highest")
            v += self.fraction_scale * sums.astype(jnp.int32)
        if self.lowest is not None:
            # Speck clamps after it has fired and reset. With lowest <= 0 < V that is
            # the same: a potential at the bound does not fire, and no reset ends below.
            v = jnp.maximum(v, self.lowest)
        return v

    def _nearest_level(
        self, v: jax.Array, sent: jax.Array, multiple: jax.Array
    ) -> jax.Array:
        """The level k of neurons at the potentials v [B, ...], without a dead zone.

        Args:
            v: potentials.
            sent: sum of all spikes before, in units, which must not become negative.
            multiple: m_t, the units of a spike of level 1.
        """
        low, high = self.model.levels
        size = multiple * self.threshold
        if low == 0:
            return _quotient(v, size, 0, high)
        # Half a unit more, if (m - 1) V is odd, would change no floor.
        offset = (multiple - 1) * self.threshold // 2
        k = _quotient(v + offset, size, low, high)
        # A negative spike takes back no more than was sent.
        returnable = _quotient(sent, multiple, 0, -low)
        return jnp.maximum(k, -returnable)


def _neurons(
    model: IntegrateAndFire,
    arithmetic: Arithmetic,
    arrays: dict[str, jax.Array],
    ndim: int,
) -> _Neurons:
    """The neurons of `whole_arrays`, for potentials of ``ndim`` axes."""
    lowest = None
    if "lowest" in arrays:
        lowest = lead(arrays["lowest"], ndim)
    leak = None
    fraction_scale = 1
    if "leak" in arrays:
        assert arithmetic.leak is not None
        leak = lead(arrays["leak"], ndim)
        fraction_scale = 2**arithmetic.leak.fraction
    return _Neurons(
        model=model,
        arithmetic=arithmetic,
        fraction_scale=fraction_scale,
        threshold=fraction_scale * lead(arrays["threshold"], ndim),
        lowest=lowest,
        leak=leak,
        recurrent=arrays.get("recurrent"),
    )


def _limit(v: jax.Array, limit: jax.Array, overflow: str) -> jax.Array:
    """What a register holds of potentials v: numbers with -limit <= v < limit."""
    if overflow == "saturate":
        return jnp.clip(v, -limit, limit - 1)
    # v + limit may not fit into 32 bits, the remainder of v does.
    remainder = v % (2 * limit)
    return jnp.where(remainder >= limit, remainder - 2 * limit, remainder)


def _widen(
    extremes: tuple[jax.Array, jax.Array], v: jax.Array, multiple: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Lowest and highest v / m_n of each neuron, [...], with the v [B, ...] of a step.

    ``multiple`` is m_n of this step, a scalar.
    """
    lowest, highest = extremes
    lowest = jnp.minimum(lowest, v.min(0) // multiple)
    highest = jnp.maximum(highest, v.max(0) // multiple)
    return lowest, highest


def _quotient(number: jax.Array, divisor: jax.Array, low: int, high: int) -> jax.Array:
    """number // divisor, clipped, without a division of whole numbers.

    CPUs divide floats many at a time. Levels are small, so the quotient of float32 is
    wrong by at most one, and the remainder tells by how much.
    """
    ratio = number.astype(jnp.float32) / jnp.asarray(divisor, jnp.float32)
    # One number beyond the levels stays, so that the correction below can reach them.
    quotient = jnp.floor(jnp.clip(ratio, low - 1, high + 1)).astype(jnp.int32)
    remainder = number - quotient * divisor
    is_too_small = remainder >= divisor
    is_too_large = remainder < 0
    quotient += jnp.where(is_too_small, 1, 0) - jnp.where(is_too_large, 1, 0)
    return jnp.clip(quotient, low, high)
