"""Spiking neurons: integrate-and-fire (IF) and its leaky form (LIF).

    v      <- leak v + I                      integrate
    s       = V_th 1[v >= V_th]               fire: a spike carries the value V_th
    v      <- v - s   or   v (1 - 1[s > 0])   reset: "subtract" or "zero"

A model is two pure functions, ``integrate`` and ``fire``, and the parameters that it
starts from; `unroll` runs it through time by ``lax.scan``. Because a spike carries
V_th, mean outputs compare with ANN activations without rescaling.
Source: Li, Deng, Dong, Gong and Gu, ICML 2021, section 3.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from snnjax import surrogate as surrogates
from snnjax._checks import (
    check_choice,
    check_delay,
    check_flags,
    check_floating,
    check_positive,
    is_number,
)


class NeuronParams(NamedTuple):
    """What one site's neurons are made of; every field broadcasts over the batch.

    Attributes:
        threshold: V_th > 0, scalar or per channel [C].
        bias: current added at every step in which input arrives, scalar or [C].
        initial_potential: v(0), scalar or per neuron [...].
        leak: factor on v before integration, in (0, 1]; None for IF, which has none.
        temperature: second argument of the surrogate (b of Dspike), scalar or [C];
            None: the surrogate's own default, which is not trained.
    """

    threshold: jax.Array
    bias: jax.Array
    initial_potential: jax.Array
    leak: jax.Array | None = None
    temperature: jax.Array | None = None


class NeuronState(NamedTuple):
    """What a neuron remembers between two steps: v, shape [B, ...]."""

    potential: jax.Array


class Neuron(NamedTuple):
    """A neuron model.

    Attributes:
        init: () -> NeuronParams, the parameters that a fresh site starts from.
        integrate: (params, state, current) -> state.
        fire: (params, state) -> (state, spikes); spikes are 0 or V_th.
        reset: "subtract" or "zero".
    """

    init: Callable[[], NeuronParams]
    integrate: Callable[[NeuronParams, NeuronState, jax.Array], NeuronState]
    fire: Callable[[NeuronParams, NeuronState], tuple[NeuronState, jax.Array]]
    reset: str


def initial_state(params: NeuronParams, shape: tuple[int, ...]) -> NeuronState:
    """v(0) for neurons of ``shape`` [B, ...].

    Membranes are float32 even in bf16 nets, and wider only if their parameters are.

    >>> params = integrate_and_fire().init()
    >>> initial_state(params, (2, 3)).potential.shape
    (2, 3)
    """
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
    potential = jnp.asarray(params.initial_potential, dtype)
    return NeuronState(jnp.broadcast_to(potential, shape))


def integrate_and_fire(
    *,
    threshold: float = 1.0,
    reset: str = "subtract",
    temperature: float | None = None,
    surrogate: surrogates.Surrogate = surrogates.dspike,
    detach_reset: bool = False,
) -> Neuron:
    """The IF neuron: no leak. With reset "subtract" it is what conversion uses.

    Args:
        threshold: V_th of fresh parameters, > 0, in units of the current.
        reset: "subtract" (soft: v - V_th) or "zero" (hard: v = 0).
        temperature: of fresh parameters, > 0: the surrogate's second argument as a
            leaf that can be trained; None: the surrogate's own default.
        surrogate: spike function of (v - V_th) / (2 V_th), see `snnjax.surrogate`.
        detach_reset: no gradient through the reset; the spikes stay the same. Both are
            for `unroll`: an SNN does not keep them, `snnjax.spiking` takes them itself.

    Raises:
        ValueError: threshold, reset or temperature outside these ranges.

    >>> import jax.numpy as jnp
    >>> neuron = integrate_and_fire(threshold=1.0)
    >>> print(unroll(neuron, neuron.init(), jnp.full((4, 1), 0.5))[:, 0])
    [0. 1. 0. 1.]
    """
    return _neuron(threshold, None, reset, temperature, surrogate, detach_reset)


def lif(
    *,
    leak: float = 0.5,
    threshold: float = 1.0,
    reset: str = "subtract",
    temperature: float | None = None,
    surrogate: surrogates.Surrogate = surrogates.dspike,
    detach_reset: bool = False,
) -> Neuron:
    """The LIF neuron: v <- leak v + I.

    Args:
        leak: factor on v before integration, 0 < leak <= 1.
        threshold, reset, temperature, surrogate, detach_reset: as for
            `integrate_and_fire`.

    Raises:
        ValueError: leak, threshold, reset or temperature outside these ranges.

    >>> import jax.numpy as jnp
    >>> neuron = lif(leak=0.5, reset="zero")
    >>> print(unroll(neuron, neuron.init(), jnp.full((4, 1), 0.7))[:, 0])
    [0. 1. 0. 1.]
    """
    if not is_number(leak) or not 0 < leak <= 1:
        raise ValueError(f"leak is {leak!r}; allowed: 0 < leak <= 1 (1 is IF)")
    return _neuron(threshold, leak, reset, temperature, surrogate, detach_reset)


def unroll(
    neuron: Neuron,
    params: NeuronParams,
    currents: jax.Array,
    *,
    delay: int = 0,
) -> jax.Array:
    """Spikes of one site over T steps, by ``lax.scan``.

    The site first waits ``delay`` steps, integrating; then it fires for T steps
    while the rest of its input arrives. Step j therefore decides on the first
    j + 1 + delay currents.

    Args:
        neuron: the model.
        params: its parameters; ``params.bias`` is added to every current.
        currents: float [T, B, ...].
        delay: 0 <= delay <= T.

    Returns:
        Spikes [T, B, ...], each 0 or V_th, in the dtype of ``currents``.

    Raises:
        ValueError: a delay outside 0..T; currents that are whole numbers, as spikes of
            0 and 1 may be.

    >>> import jax.numpy as jnp
    >>> neuron = integrate_and_fire()
    >>> late = jnp.array([[0.0], [0.0], [1.0], [1.0]])
    >>> print(unroll(neuron, neuron.init(), late)[:, 0])
    [0. 0. 1. 1.]
    >>> print(unroll(neuron, neuron.init(), late, delay=2)[:, 0])
    [1. 1. 0. 0.]
    """
    check_delay(currents.shape[0], delay)
    step, state = _begin(neuron, params, currents, delay)
    _, spikes = jax.lax.scan(step, state, _heard(currents, delay, params.bias))
    return spikes.astype(currents.dtype)


def resume(
    neuron: Neuron, params: NeuronParams, state: NeuronState, currents: jax.Array
) -> tuple[NeuronState, jax.Array]:
    """Go on from a state for as many steps as there are currents [t, B, ...].

    Returns:
        The state after them, and the spikes [t, B, ...] as `unroll` gives them.

    >>> import jax.numpy as jnp
    >>> neuron = integrate_and_fire()
    >>> state, spikes = resume(neuron, neuron.init(),
    ...                        NeuronState(jnp.array([0.5])), jnp.full((2, 1), 0.25))
    >>> print(spikes[:, 0], state.potential)
    [0. 1.] [0.]
    """
    check_floating("currents", currents)
    step = _step(neuron, params)
    state, spikes = jax.lax.scan(step, state, currents + params.bias)
    return state, spikes.astype(currents.dtype)


def mean_output(
    neuron: Neuron, params: NeuronParams, currents: jax.Array, *, delay: int = 0
) -> jax.Array:
    """``unroll(...).mean(0)``, but no spike is written to memory.

    Forward only: the unrolled loop is one fused pass over the currents, on CPU many
    times faster than the scan of `unroll`.

    >>> import jax.numpy as jnp
    >>> neuron = integrate_and_fire()
    >>> print(mean_output(neuron, neuron.init(), jnp.full((4, 1), 0.5)))
    [0.5]
    """
    return mean_and_pace(neuron, params, currents, delay=delay)[0]


def mean_and_pace(
    neuron: Neuron, params: NeuronParams, currents: jax.Array, *, delay: int = 0
) -> tuple[jax.Array, jax.Array]:
    """`mean_output`, and what the output seems to be while the spikes still come.

        mean = 1/T sum_t s(t),    pace = 2 / (T (T + 1)) sum_t (s(1) + .. + s(t))

    Spikes that come evenly have a pace near their mean; early ones a greater, late ones
    a smaller pace.

    >>> import jax.numpy as jnp
    >>> neuron = integrate_and_fire()
    >>> early = jnp.array([[1.0], [1.0], [0.0], [0.0]])
    >>> mean_and_pace(neuron, neuron.init(), early)
    (Array([0.5], dtype=float32), Array([0.7], dtype=float32))
    """
    steps = currents.shape[0]
    check_delay(steps, delay)
    step, state = _begin(neuron, params, currents, delay)

    def count(carry, current):
        state, total, totals = carry
        state, spikes = step(state, current)
        total += spikes
        return (state, total, totals + total), None

    def hear(carry, current):  # here, or XLA would write currents + bias to memory
        return count(carry, current + params.bias)

    def rest(carry, _):
        return count(carry, jnp.zeros((), currents.dtype))

    nothing = jnp.zeros_like(state.potential)
    carry = (state, nothing, nothing)
    rate = min(steps, _UNROLL)
    carry, _ = jax.lax.scan(hear, carry, currents[delay:], unroll=rate)
    if delay:
        carry, _ = jax.lax.scan(rest, carry, length=delay, unroll=rate)
    _, total, totals = carry
    mean, pace = total / steps, 2 * totals / (steps * (steps + 1))
    return mean.astype(currents.dtype), pace.astype(currents.dtype)


def packed_spikes(
    neuron: Neuron, params: NeuronParams, currents: jax.Array, *, delay: int = 0
) -> jax.Array:
    """The spikes of `unroll` as bits, uint8 [ceil(T / 8), B, ...], packed along time.

    The bits are those of ``jnp.packbits(spikes > 0, axis=0)``. Forward only, as
    `mean_output`.
    """
    steps = currents.shape[0]
    check_delay(steps, delay)
    step, state = _begin(neuron, params, currents, delay)
    heard = _heard(currents, delay, params.bias)
    missing = jnp.zeros((-steps % 8, *heard.shape[1:]), heard.dtype)
    eights = jnp.concatenate([heard, missing]).reshape(-1, 8, *heard.shape[1:])
    running = (jnp.arange(8 * len(eights)) < steps).reshape(-1, 8)

    def pack(state, now):
        currents, running = now
        byte = jnp.zeros(currents.shape[1:], jnp.uint8)
        for bit in range(8):
            state, spikes = step(state, currents[bit])
            fired = (spikes > 0) & running[bit]
            byte |= fired.astype(jnp.uint8) << (7 - bit)
        return state, byte

    loops = min(len(eights), _UNROLL // 8)
    _, packed = jax.lax.scan(pack, state, (eights, running), unroll=loops)
    return packed


# Steps that a forward loop runs without coming back to memory; more compile slowly.
_UNROLL = 32


def _step(neuron: Neuron, params: NeuronParams):
    def step(state, current):
        state = neuron.integrate(params, state, current)
        state = state._replace(potential=checkpoint_name(state.potential, "potential"))
        return neuron.fire(params, state)

    # Of all that a step computes, only the potential is kept for its gradient.
    keep = jax.checkpoint_policies.save_only_these_names("potential")
    return jax.checkpoint(step, policy=keep, prevent_cse=False)


def _begin(neuron: Neuron, params: NeuronParams, currents: jax.Array, delay: int):
    """The step of a site, and its state once it has waited ``delay`` steps."""

    def wait(state, current):
        return neuron.integrate(params, state, current + params.bias), None

    check_floating("currents", currents)
    state = initial_state(params, currents.shape[1:])
    if delay:
        state, _ = jax.lax.scan(wait, state, currents[:delay])
    return _step(neuron, params), state


def _heard(currents: jax.Array, delay: int, bias) -> jax.Array:
    """What arrives while the site fires: the rest of its input, then nothing."""
    rest = currents[delay:] + bias
    silence = jnp.zeros((delay, *currents.shape[1:]), rest.dtype)
    return jnp.concatenate([rest, silence]) if delay else rest


def closed_form(params: NeuronParams, current: jax.Array, steps: int) -> jax.Array:
    """Mean output of an IF neuron that has all of its input before it fires.

        s = (V_th / T) clip(floor((v(0) + T I) / V_th), 0, T)

    This is the sum of `unroll` with delay T, without a loop, and the "ClipFloor" of
    the papers. Its floor has a straight-through gradient: 1 where it is not clipped.

    Args:
        params: of an IF neuron with reset by subtraction.
        current: mean current over T steps, without the bias, [B, ...].
        steps: T.

    Returns:
        Mean output [B, ...], multiples of V_th / T, in the dtype of ``current``.

    >>> import jax.numpy as jnp
    >>> params = integrate_and_fire(threshold=2.0).init()
    >>> print(closed_form(params, jnp.array([-1.0, 0.8, 1.4, 9.0]), 4))
    [0.  0.5 1.  2. ]
    """
    check_floating("current", current)
    charge = params.initial_potential + steps * (current + params.bias)
    count = charge.astype(jnp.float32) / params.threshold
    within = jnp.clip(count, 0, steps)
    floored = within + jax.lax.stop_gradient(jnp.floor(within) - within)
    return (floored * params.threshold / steps).astype(current.dtype)


def check_plain(neuron: Neuron) -> None:
    """Raise if a neuron is more than its parameters and its reset.

    That is all of it that an SNN keeps.
    """
    if not isinstance(neuron, Neuron):
        raise ValueError(
            f"neuron is {neuron!r}; allowed: a Neuron, e.g. snnjax.lif() (called)"
        )
    fires = getattr(neuron.fire, "func", None)
    if neuron.integrate is not _integrate or fires is not _fire:
        raise ValueError(
            "neuron integrates or fires in a way of its own; allowed: snnjax.lif() or "
            "snnjax.integrate_and_fire(). Others run by themselves, by "
            "snnjax.neurons.unroll"
        )
    if neuron.fire.args != (surrogates.dspike, neuron.reset, False):
        raise ValueError(
            "neuron has a surrogate or detach_reset; allowed: give them to "
            "snnjax.spiking(..., surrogate=..., detach_reset=...), since an SNN keeps "
            "parameters and reset only"
        )


def _neuron(threshold, leak, reset, temperature, surrogate, detach_reset) -> Neuron:
    check_positive("threshold", threshold)
    if temperature is not None:
        check_positive("temperature", temperature)
    check_choice("reset", reset, ("subtract", "zero"))
    surrogates.check_surrogate(surrogate)
    check_flags(detach_reset=detach_reset)

    def fresh():
        return NeuronParams(
            threshold=jnp.asarray(threshold, jnp.float32),
            bias=jnp.zeros((), jnp.float32),
            initial_potential=jnp.zeros((), jnp.float32),
            leak=None if leak is None else jnp.asarray(leak, jnp.float32),
            temperature=None
            if temperature is None
            else jnp.asarray(temperature, jnp.float32),
        )

    fire = functools.partial(_fire, surrogate, reset, detach_reset)
    return Neuron(fresh, _integrate, fire, reset)


def _integrate(params: NeuronParams, state: NeuronState, current) -> NeuronState:
    v = state.potential if params.leak is None else params.leak * state.potential
    return NeuronState(v + current.astype(v.dtype))


def _fire(surrogate, reset, detach_reset, params: NeuronParams, state: NeuronState):
    v, v_th = state.potential, params.threshold
    # x >= 0 is v >= V_th whatever the rounding: dividing by a positive number keeps
    # the sign of the difference.
    sharpness = () if params.temperature is None else (params.temperature,)
    spiked = surrogate((v - v_th) / (2 * v_th), *sharpness)
    gone = jax.lax.stop_gradient(spiked) if detach_reset else spiked
    v = v - v_th * gone if reset == "subtract" else v * (1 - gone)
    return NeuronState(v), v_th * spiked
