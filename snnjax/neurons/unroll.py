"""Neurons through time: one site over T steps, by ``lax.scan`` or in closed form.

A site first integrates for ``wait`` steps, then fires for T steps while the rest of its
input arrives. `unroll` returns the spikes. Calibration needs `mean_output`,
`mean_and_pace` and `spike_train`, each in one pass over the currents.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from snnjax._arrays import add_offset, lead, wide, wide_dtype
from snnjax._checks import check_floating, check_wait
from snnjax.neurons.models import IntegrateAndFire, NeuronParams
from snnjax.neurons.protocol import Neuron, drive, fire, levels_of
from snnjax.neurons.spike_trains import SpikeTrain, append, as_wide_as, code, per_byte


def unroll(
    neuron: Neuron, params: Any, currents: jax.Array, *, wait: int = 0
) -> jax.Array:
    """Spikes of one site over T steps, by ``lax.scan``.

    Step j decides on the first j + 1 + wait currents: the site first integrates for
    ``wait`` steps, then fires for T steps while the rest of its input arrives.

    Args:
        neuron: the model.
        params: its parameters; a ``bias`` among them is added to every current.
        currents: float [T, B, ...].
        wait: 0 <= wait <= T.

    Returns:
        Spikes [T, B, ...], in the dtype of ``currents``.

    Raises:
        ValueError: wait is outside 0..T, or the currents are whole numbers.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import integrate_and_fire
    >>> neuron = integrate_and_fire()
    >>> late = jnp.array([[0.0], [0.0], [1.0], [1.0]])
    >>> print(unroll(neuron, neuron.init(), late)[:, 0])
    [0. 0. 1. 1.]
    >>> print(unroll(neuron, neuron.init(), late, wait=2)[:, 0])
    [1. 1. 0. 0.]
    """
    check_wait(currents.shape[0], wait)
    state = _after_wait(neuron, params, currents, wait)
    arriving = arriving_while_firing(params, currents, wait)
    _, spikes = jax.lax.scan(_step(neuron, params), state, arriving)
    return spikes.astype(currents.dtype)


def resume(
    neuron: Neuron, params: Any, state: Any, currents: jax.Array
) -> tuple[Any, jax.Array]:
    """Continue from a state for as many steps as there are currents [t, B, ...].

    Returns:
        The state after them, and the spikes [t, B, ...] as `unroll` gives them.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import NeuronState, integrate_and_fire
    >>> neuron = integrate_and_fire()
    >>> state, spikes = resume(neuron, neuron.init(),
    ...                        NeuronState(jnp.array([0.5])), jnp.full((2, 1), 0.25))
    >>> print(spikes[:, 0], state.potential)
    [0. 1.] [0.]
    """
    check_floating("currents", currents)
    step = _step(neuron, params)
    state, spikes = jax.lax.scan(step, state, drive(params, currents))
    return state, spikes.astype(currents.dtype)


def mean_output(
    neuron: IntegrateAndFire,
    params: NeuronParams,
    currents: jax.Array,
    *,
    wait: int = 0,
) -> jax.Array:
    """``unroll(...).mean(0)``, but no spike is written to memory.

    Forward only: the unrolled loop is one fused pass over the currents, on CPU many
    times faster than the scan of `unroll`.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import integrate_and_fire
    >>> neuron = integrate_and_fire()
    >>> print(mean_output(neuron, neuron.init(), jnp.full((4, 1), 0.5)))
    [0.5]
    """
    return mean_and_pace(neuron, params, currents, wait=wait)[0]


def mean_and_pace(
    neuron: IntegrateAndFire,
    params: NeuronParams,
    currents: jax.Array,
    *,
    wait: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """`mean_output`, and the pace: the average over t of the running mean output.

        mean = 1/T sum_t s(t),    pace = 2 / (T (T + 1)) sum_t (s(1) + .. + s(t))

    It is weighted by t. Even spikes have a pace near their mean, early ones a greater
    and late ones a smaller pace.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import integrate_and_fire
    >>> neuron = integrate_and_fire()
    >>> early = jnp.array([[1.0], [1.0], [0.0], [0.0]])
    >>> mean_and_pace(neuron, neuron.init(), early)
    (Array([0.5], dtype=float32), Array([0.7], dtype=float32))
    """
    steps = currents.shape[0]
    check_wait(steps, wait)
    step = _step(neuron, params)
    state = _after_wait(neuron, params, currents, wait)

    def count(carry, current):
        state, total, totals = carry
        state, spikes = step(state, current)
        total += spikes
        return (state, total, totals + total), None

    def receive(carry, current):
        # The bias is added here, or XLA would write currents + bias to memory.
        return count(carry, drive(params, current))

    def receive_nothing(carry, _):
        return count(carry, jnp.zeros((), currents.dtype))

    nothing = jnp.zeros_like(state.potential)
    carry = (state, nothing, nothing)
    rate = min(steps, _steps_per_loop(neuron))
    carry, _ = jax.lax.scan(receive, carry, currents[wait:], unroll=rate)
    if wait:
        carry, _ = jax.lax.scan(receive_nothing, carry, length=wait, unroll=rate)
    _, total, totals = carry
    # 1.0, since steps (steps + 1) may exceed what int32 holds.
    mean, pace = total / steps, 2 * totals / (steps * (steps + 1.0))
    return mean.astype(currents.dtype), pace.astype(currents.dtype)


def spike_train(
    neuron: IntegrateAndFire,
    params: NeuronParams,
    currents: jax.Array,
    *,
    wait: int = 0,
) -> SpikeTrain:
    """The spikes of `unroll` as bits, in one pass. Forward only."""
    steps = currents.shape[0]
    check_wait(steps, wait)
    step = _step(neuron, params)
    state = _after_wait(neuron, params, currents, wait)
    arriving = arriving_while_firing(params, currents, wait)
    group, levels = per_byte(neuron.levels), neuron.levels
    filling = jnp.zeros((-steps % group, *arriving.shape[1:]), arriving.dtype)
    groups = jnp.concatenate([arriving, filling])
    groups = groups.reshape(-1, group, *arriving.shape[1:])
    running = (jnp.arange(group * len(groups)) < steps).reshape(-1, group)

    def encode_group(state, now):
        currents, running = now
        byte = jnp.zeros(currents.shape[1:], jnp.uint8)
        for place in range(group):
            state, spikes = step(state, currents[place])
            codes = code(spikes, params.threshold, levels, params.offset)
            codes = jnp.where(running[place], codes, jnp.zeros_like(codes))
            byte = append(byte, codes, place, levels)
        return state, byte

    loops = min(len(groups), max(1, _steps_per_loop(neuron) // group))
    _, bits = jax.lax.scan(encode_group, state, (groups, running), unroll=loops)
    threshold, offset = as_wide_as(state.potential, params.threshold, params.offset)
    return SpikeTrain(bits, threshold, levels, offset, currents.dtype)


def closed_form(
    neuron: IntegrateAndFire, params: NeuronParams, current: jax.Array, steps: int
) -> jax.Array:
    """Mean output of an IF neuron that has all of its input before it fires.

        s = (V_th / T) clip(floor((v(0) + T I) / V_th), 0, T high) + offset

    A neuron that does not rectify clips from T low on, and adds its dead zone to a
    negative count before the floor. This is the mean of `unroll` with a wait of T. With
    the levels (0, 1) it is the "ClipFloor" of the papers. Its floor has a
    straight-through gradient: 1 where it is not clipped.

    Args:
        neuron: an IF neuron with reset by subtraction.
        params: its parameters.
        current: mean current over T steps, without the bias, [B, ...].
        steps: T.

    Returns:
        Mean output [B, ...], multiples of V_th / T, in the dtype of ``current``.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import integrate_and_fire
    >>> neuron = integrate_and_fire(threshold=2.0)
    >>> current = jnp.array([-1.0, 0.8, 1.4, 9.0])
    >>> print(closed_form(neuron, neuron.init(), current, 4))
    [0.  0.5 1.  2. ]
    """
    check_floating("current", current)
    start = lead(params.initial_potential, current.ndim)
    threshold = lead(params.threshold, current.ndim)
    total = wide(steps * drive(params, current))
    dtype = wide_dtype(total, start, threshold)
    count = (start.astype(dtype) + total.astype(dtype)) / threshold.astype(dtype)
    low, high = neuron.levels
    if neuron.dead_zone and not neuron.rectifies:
        count = jnp.where(count < 0, count + neuron.dead_zone, count)
    within = jnp.clip(count, 0 if neuron.rectifies else steps * low, steps * high)
    floored = within + jax.lax.stop_gradient(jnp.floor(within) - within)
    output = add_offset(floored * threshold.astype(dtype) / steps, params.offset)
    return output.astype(current.dtype)


def arriving_while_firing(params: Any, currents: jax.Array, wait: int) -> jax.Array:
    """Currents, with their bias, of the T steps in which a site fires: [T, B, ...].

    First the input after the wait, then zeros.
    """
    rest = drive(params, currents[wait:])
    nothing = jnp.zeros((wait, *currents.shape[1:]), rest.dtype)
    return jnp.concatenate([rest, nothing]) if wait else rest


class Phase(NamedTuple):
    """What a site does at a step; Python's True if it does so at every step.

    Attributes:
        begun: its input has begun to arrive.
        receiving: its input arrives, for T steps.
        firing: it fires, for T steps, which begin ``wait`` later.
    """

    begun: Any = True
    receiving: Any = True
    firing: Any = True


def phase_of(step: jax.Array, steps: int, wait: int) -> Phase:
    """The phase of a site, whose first current arrives at step 0."""
    if wait == 0:
        return Phase()
    return Phase(
        begun=step >= 0,
        receiving=(step >= 0) & (step < steps),
        firing=(step >= wait) & (step < wait + steps),
    )


def integrate_in_phase(
    model: Neuron, params: Any, state: Any, current: jax.Array, phase: Phase
) -> Any:
    """The state after the current of a step, if any arrives, is integrated."""
    arriving = _when(phase.receiving, drive(params, current), 0)
    after = model.integrate(params, state, arriving)
    return jax.tree.map(functools.partial(_when, phase.begun), after, state)


def fire_in_phase(
    model: Neuron, params: Any, state: Any, phase: Phase
) -> tuple[Any, jax.Array]:
    """The state after firing and the spikes, in the steps in which the site fires."""
    after, spikes = fire(model, params, state)
    after = jax.tree.map(functools.partial(_when, phase.firing), after, state)
    return after, _when(phase.firing, spikes, 0)


def _when(condition: Any, value: Any, otherwise: Any) -> Any:
    """``jnp.where``, but no operation where the condition is Python's True."""
    return value if condition is True else jnp.where(condition, value, otherwise)


def _steps_per_loop(neuron: Neuron) -> int:
    """Steps that a forward loop unrolls.

    More steps compile slowly, and so do many levels.
    """
    low, high = levels_of(neuron) or (0, 1)
    return max(4, 32 // (high - low))


def _step(neuron: Neuron, params: Any):
    def step(state, current):
        state = neuron.integrate(params, state, current)
        state = jax.tree.map(lambda leaf: checkpoint_name(leaf, "state"), state)
        return fire(neuron, params, state)

    # A gradient keeps only the state before the neurons fire.
    keep = jax.checkpoint_policies.save_only_these_names("state")
    return jax.checkpoint(step, policy=keep, prevent_cse=False)


def _after_wait(neuron: Neuron, params: Any, currents: jax.Array, wait: int) -> Any:
    """The state of a site after it has integrated ``wait`` steps."""

    def integrate(state, current):
        return neuron.integrate(params, state, drive(params, current)), None

    check_floating("currents", currents)
    state = neuron.start(params, currents.shape[1:])
    if wait:
        state, _ = jax.lax.scan(integrate, state, currents[:wait])
    return state
