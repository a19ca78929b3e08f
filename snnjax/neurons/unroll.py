"""Neurons through time: one site over T steps, by ``lax.scan`` or in closed form.

A site first integrates for ``wait`` steps, then fires for T steps while the rest of its
input arrives. `mean_and_pace` and `spike_train` are for calibration, which needs no
gradient of them. A code is a schedule of thresholds, whose steps are ticks
(``schedule.py``). A constant is a bias minus an offset.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from snnjax._arrays import add_offset, lead, straight_through, wide, wide_dtype
from snnjax._checks import check_floating, check_wait
from snnjax.codes import Code
from snnjax.neurons.backward import fold_back, may_fold_back
from snnjax.neurons.gradients import through_time
from snnjax.neurons.models import IntegrateAndFire, NeuronParams
from snnjax.neurons.protocol import Neuron, chain, drive
from snnjax.neurons.schedule import (
    Tick,
    arrivals,
    drive_at,
    fire_at,
    schedule,
    tie_margin,
)
from snnjax.neurons.spike_trains import (
    RATE,
    SpikeTrain,
    append,
    in_groups,
    level_indices,
    per_byte,
)
from snnjax.neurons.wrappers import WholeNumbers, off_grid

FEW_STEPS = 4  # A CPU computes so many several times faster outside of a loop.


def unroll(
    neuron: Neuron,
    params: Any,
    currents: jax.Array,
    *,
    wait: int = 0,
    code: Code = RATE,
) -> jax.Array:
    """Spikes of one site over T steps: step j decides on j + 1 + wait currents.

    Args:
        neuron: the model.
        params: its parameters; with rate coding a ``bias`` is added to every current,
            otherwise T times to the first one.
        currents: float [T, B, ...].
        wait: 0 <= wait <= T.
        code: what a spike is worth at each step, see `snnjax.codes`.

    Returns:
        Spikes T w_t k V_th, [T, B, ...], in the dtype of ``currents``.

    Raises:
        ValueError: wait is outside 0..T, or the currents are whole numbers.

    >>> import jax.numpy as jnp, snnjax
    >>> from snnjax.neurons import integrate_and_fire
    >>> neuron = integrate_and_fire()
    >>> late = jnp.array([[0.0], [0.0], [1.0], [1.0]])
    >>> print(unroll(neuron, neuron.init(), late)[:, 0])
    [0. 0. 1. 1.]
    >>> print(unroll(neuron, neuron.init(), late, wait=2)[:, 0])
    [1. 1. 0. 0.]
    >>> all_at_once = jnp.array([[2.5], [0.0], [0.0], [0.0]])  # 2.5 / T = 0.625
    >>> radix = snnjax.codes.radix()
    >>> print(unroll(neuron, neuron.init(), all_at_once, code=radix)[:, 0])
    [0.  2.  0.  0.5]
    """
    steps = len(currents)
    check_wait(steps, wait)
    state = neuron.start(params, currents.shape[1:])
    ticks = schedule(code, neuron, steps)
    _, spikes = fold(neuron, params, state, currents, ticks, wait=wait, code=code)
    return spikes


def fold(
    neuron: Neuron,
    params: Any,
    state: Any,
    currents: jax.Array,
    ticks: Tick | None = None,
    *,
    wait: int = 0,
    code: Code = RATE,
) -> tuple[Any, jax.Array]:
    """`unroll` from a state: the state after these currents, and spikes [T, B, ...].

    A wait, and another code than rate coding, need the currents of all T steps.

    Args:
        neuron, params: the model and its parameters.
        state: of the site before the first current.
        currents: float [T, B, ...], without the bias.
        ticks: the code's `schedule`; None: all steps are alike.
        wait, code: as for `unroll`.
    """
    # There are three ways. A model's own closed form takes all currents with their
    # bias. The gradient that is written by hand adds the bias itself, and pays only
    # for many steps. A scan takes any wait and code. A scan over few steps is
    # unrolled, since a CPU computes them several times faster outside of a loop.
    has_few_steps = len(currents) <= FEW_STEPS
    if not wait and ticks is None:
        all_steps = through_time(neuron)
        if all_steps is not None:
            end_state, spikes = all_steps(params, state, drive(params, currents))
            _check_through_time(neuron, end_state, state, spikes, currents)
            return end_state, spikes.astype(currents.dtype)
        if not has_few_steps and may_fold_back(neuron, params, state, currents[0]):
            return fold_back(neuron, params, state, currents)
    state = _integrated(neuron, params, state, currents, wait, code)
    late_currents = _currents_while_firing(params, currents, wait, code)
    state, spikes = jax.lax.scan(
        _step(neuron, params),
        state,
        (late_currents, ticks),
        unroll=has_few_steps,
    )
    return state, spikes.astype(currents.dtype)


def _check_through_time(
    neuron: Neuron,
    end_state: Any,
    state: Any,
    spikes: jax.Array,
    currents: jax.Array,
) -> None:
    """Raise unless ``through_time`` gave a state and spikes as `fire` gives them."""
    end_shapes = jax.tree.map(jnp.shape, end_state)
    state_shapes = jax.tree.map(jnp.shape, state)
    if end_shapes != state_shapes or spikes.shape != currents.shape:
        raise ValueError(
            f"through_time of {neuron!r} returns the state {end_shapes} and spikes of "
            f"shape {spikes.shape}; allowed: the state after all steps, {state_shapes}"
            f", and the spikes of each step, {currents.shape}"
        )


def mean_and_pace(
    neuron: IntegrateAndFire,
    params: NeuronParams,
    currents: jax.Array,
    *,
    wait: int = 0,
    code: Code = RATE,
) -> tuple[jax.Array, jax.Array]:
    """The mean output of `unroll`, and its pace, both [B, ...]. Forward only.

        mean = 1/T sum_t s(t),    pace = 2 / (T (T + 1)) sum_t (s(1) + .. + s(t))

    Even spikes have a pace near their mean, early ones a greater and late ones a
    smaller one. On CPU this is many times faster than `unroll`, which stores spikes.

    Args:
        neuron, params, currents, wait, code: as for `unroll`.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import integrate_and_fire
    >>> neuron = integrate_and_fire()
    >>> early = jnp.array([[1.0], [1.0], [0.0], [0.0]])
    >>> mean_and_pace(neuron, neuron.init(), early)
    (Array([0.5], dtype=float32), Array([0.7], dtype=float32))
    """
    steps = len(currents)
    state = _state_after_wait(neuron, params, currents, wait, code)
    ticks = schedule(code, neuron, steps)
    step = _step(neuron, params)

    # The carry of the loops is the state, s(1) + .. + s(t), and the sum of these sums.
    def count(carry, current, tick):
        state, spike_sum, sum_of_sums = carry
        state, spikes = step(state, (current, tick))
        spike_sum += spikes
        return (state, spike_sum, sum_of_sums + spike_sum), None

    # The bias is added in the loop, or XLA would write currents + bias to memory.
    def receive(carry, inputs):
        current, arrival_count, tick = inputs
        return count(carry, drive_at(params, current, arrival_count), tick)

    def receive_nothing(carry, tick):
        return count(carry, jnp.zeros((), currents.dtype), tick)

    no_spikes = jnp.zeros_like(state.potential)
    carry = (state, no_spikes, no_spikes)
    receiving = steps - wait  # steps at which a neuron fires and still gets input
    late_inputs = (
        currents[wait:],
        _part(arrivals(code, steps), slice(wait, None)),
        _part(ticks, slice(receiving)),
    )
    # One step at a time: a CPU vectorizes it, where it recomputes the steps of a long
    # body for each of the two results: 1.5 ns a neuron and step in place of 10.
    carry, _ = jax.lax.scan(receive, carry, late_inputs)
    # A second loop, since one over currents and zeros would write these first.
    if wait:
        last_ticks = _part(ticks, slice(receiving, None))
        carry, _ = jax.lax.scan(receive_nothing, carry, last_ticks, wait)
    _, spike_sum, sum_of_sums = carry
    mean = spike_sum / steps
    # 1.0, since steps (steps + 1) may exceed what int32 holds.
    pace = 2 * sum_of_sums / (steps * (steps + 1.0))
    return mean.astype(currents.dtype), pace.astype(currents.dtype)


def spike_train(
    neuron: IntegrateAndFire,
    params: NeuronParams,
    currents: jax.Array,
    *,
    wait: int = 0,
    code: Code = RATE,
) -> SpikeTrain:
    """The spikes of `unroll` in bits, without storing them as floats. Forward only.

    Args:
        neuron, params, currents, wait, code: as for `unroll`.
    """
    steps = len(currents)
    levels = neuron.levels
    steps_per_byte = per_byte(levels)
    state = _state_after_wait(neuron, params, currents, wait, code)
    ticks = schedule(code, neuron, steps)
    # Levels are stored without the offset, which `decode` adds.
    step = _step(neuron, params._replace(offset=None))

    def encode_byte(state, inputs):
        """Run the steps of one byte: the state, and the bytes of all neurons, [B, ...].

        The inputs are currents [steps of a byte, B, ...], whether each step is one of
        the T steps, and the ticks of the code, or None.
        """
        byte_currents, is_within_T, byte_ticks = inputs
        byte = jnp.zeros(byte_currents.shape[1:], jnp.uint8)
        for place in range(steps_per_byte):
            tick = _part(byte_ticks, place)
            state, spikes = step(state, (byte_currents[place], tick))
            size = 1.0 if tick is None else tick.size  # of a spike, over V_th
            indices = level_indices(spikes, size * params.threshold, levels)
            # Places of the last byte beyond step T stay 0.
            indices = jnp.where(is_within_T[place], indices, jnp.zeros_like(indices))
            byte = append(byte, indices, place, levels)
        return state, byte

    late_currents = _currents_while_firing(params, currents, wait, code)
    by_step = (late_currents, np.ones(steps, bool), ticks)  # arrays [T, ...]
    by_byte = jax.tree.map(lambda leaf: in_groups(leaf, levels), by_step)
    byte_count = -(-steps // steps_per_byte)  # rounded up
    bytes_per_loop = max(1, _steps_per_loop(levels, ticks) // steps_per_byte)
    _, bits = jax.lax.scan(
        encode_byte,
        state,
        by_byte,
        unroll=min(byte_count, bytes_per_loop),
    )
    # In the type of the potential: a narrower one would round a level beyond 1 twice.
    dtype = state.potential.dtype
    offset = params.offset
    return SpikeTrain(
        bits=bits,
        threshold=jnp.asarray(params.threshold, dtype),
        levels=levels,
        offset=None if offset is None else jnp.asarray(offset, dtype),
        dtype=currents.dtype,
        code=code,
    )


def after_all_input(
    neuron: Neuron,
    params: NeuronParams,
    current: jax.Array,
    steps: int,
    *,
    code: Code = RATE,
) -> jax.Array:
    """`unroll` of a site that has waited for all of its input, T times ``current``.

    Args:
        neuron, params, code: as for `unroll`.
        current: float [B, ...], without the bias.
        steps: T.

    Returns:
        Spikes [T, B, ...].

    >>> import jax.numpy as jnp, snnjax
    >>> from snnjax.neurons import integrate_and_fire
    >>> neuron, code = integrate_and_fire(), snnjax.codes.radix()
    >>> spikes = after_all_input(neuron, neuron.init(), jnp.array([0.7]), 3, code=code)
    >>> print(code.stream(spikes)[:, 0])  # 0.5, the largest multiple of 0.25 below
    [0.   0.5  0.5]
    """
    check_floating("current", current)
    all_input = steps * drive(params, current)
    state = neuron.start(params, current.shape)
    state = neuron.integrate(params, state, all_input)
    step = _step(neuron, params)
    no_current = jnp.zeros((), current.dtype)

    def fire_again(state, tick):
        return step(state, (no_current, tick))

    ticks = schedule(code, neuron, steps)
    _, spikes = jax.lax.scan(fire_again, state, ticks, steps, unroll=steps < 9)
    return spikes.astype(current.dtype)


def needs_no_time(code: Code, steps: int, wait: int, models: Iterable[Any]) -> bool:
    """Whether a sum over time is all that each site of these models has to know."""
    for model in models:
        plain_model = chain(model)[-1]
        # At a lower bound the order of the input matters.
        if getattr(plain_model, "lowest", None) is not None:
            return False
    return wait >= code.full_wait(steps)


def closed_form(
    neuron: Neuron,
    params: NeuronParams,
    current: jax.Array,
    steps: int,
    *,
    code: Code = RATE,
) -> jax.Array:
    """Mean output [B, ...] of an IF neuron that has all of its input before it fires.

        s = (V_T / T) clip(floor((v(0) + T I) / V_T), 0, N high) + offset

    V_T = T w_T V_th is the size of its last spike, and N = (w_1 + .. + w_T) / w_T; with
    rate coding they are V_th and T. A neuron that does not rectify clips from N low on.
    This is the mean of `unroll` with a wait of T, but for a lower bound of v; it is the
    "ClipFloor" of the papers if the levels are (0, 1). Its floor has a straight-through
    gradient. Where digits may miss the nearest value (`snnjax.codes.Code.is_nearest`,
    or a last zone above 1/2), the neuron finds them one by one, with the gradient of
    `snnjax.surrogate.dspike`.

    Args:
        neuron: an IF neuron with reset by subtraction, also of whole numbers.
        params: its parameters.
        current: mean current over T steps, without the bias, [B, ...].
        steps: T.
        code: what a spike is worth.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import integrate_and_fire
    >>> neuron = integrate_and_fire(threshold=2.0)
    >>> current = jnp.array([-1.0, 0.8, 1.4, 9.0])
    >>> print(closed_form(neuron, neuron.init(), current, 4))
    [0.  0.5 1.  2. ]
    """
    check_floating("current", current)
    model = off_grid(neuron)
    is_nearest = code.is_nearest(model.levels, model.dead_zone, steps)
    if not is_nearest or model.last_zone > 1 / 2:
        spikes = after_all_input(neuron, params, wide(current), steps, code=code)
        return (spikes.sum(0) / steps).astype(current.dtype)
    start = lead(params.initial_potential, current.ndim)
    sizes = code.sizes(steps)
    unit = lead(params.threshold, current.ndim)  # V_th
    threshold = unit * sizes[-1]  # V_T
    total = wide(steps * drive(params, current))  # T I
    # In float32 or wider, as potentials are.
    dtype = wide_dtype(total, start, threshold)
    threshold = threshold.astype(dtype)
    v = start.astype(dtype) + total.astype(dtype)
    if isinstance(neuron, WholeNumbers):
        v = neuron.nearest(v) + neuron.margin
    else:
        v += tie_margin(sizes) * unit.astype(dtype)
    count = v / threshold  # last spikes that v is worth
    low, high = model.levels
    # N, as a float: it may be beyond int32.
    weight_sum = float(round(code.reach(steps) / code.finest(steps)))
    lowest_count = 0 if model.rectifies else weight_sum * low
    # Clipped first and floored then, so that the gradient ends where the clip begins.
    clipped = jnp.clip(count, lowest_count, weight_sum * high)
    floored = straight_through(jnp.floor(clipped), clipped)
    output = add_offset(floored * threshold / steps, params.offset)
    return output.astype(current.dtype)


def _part(tree: Any, steps: slice | int) -> Any:
    """Some steps of the arrays [T, ...] of a tree; None, a tree without any, stays."""
    return jax.tree.map(lambda leaf: leaf[steps], tree)


def _state_after_wait(
    neuron: Neuron,
    params: Any,
    currents: jax.Array,
    wait: int,
    code: Code,
) -> Any:
    """The state before the first spike of a site that starts at rest."""
    check_wait(len(currents), wait)
    state = neuron.start(params, currents.shape[1:])
    return _integrated(neuron, params, state, currents, wait, code)


def _integrated(
    neuron: Neuron,
    params: Any,
    state: Any,
    currents: jax.Array,
    wait: int,
    code: Code,
) -> Any:
    """The state after the first ``wait`` currents, in which nothing fires."""
    check_floating("currents", currents)
    if not wait:
        return state

    def integrate(state, inputs):
        current, arrival_count = inputs
        driven = drive_at(params, current, arrival_count)
        return neuron.integrate(params, state, driven), None

    early = slice(wait)
    arrival_counts = _part(arrivals(code, len(currents)), early)
    state, _ = jax.lax.scan(integrate, state, (currents[early], arrival_counts))
    return state


def _currents_while_firing(
    params: Any,
    currents: jax.Array,
    wait: int,
    code: Code,
) -> jax.Array:
    """The input after the wait with its bias, and then zeros: [T, B, ...].

    A scan over it has T turns, one for each spike.
    """
    late = slice(wait, None)
    # How often the constant arrives at each step, [T - wait]; None: once at each.
    arrival_counts = _part(arrivals(code, len(currents)), late)
    late_currents = drive_at(params, currents[late], arrival_counts)
    if not wait:
        return late_currents
    nothing = jnp.zeros((wait, *currents.shape[1:]), late_currents.dtype)
    return jnp.concatenate([late_currents, nothing])


def _steps_per_loop(levels: tuple[int, int], ticks: Tick | None) -> int:
    """Steps that a forward loop unrolls: more, or many levels, compile slowly."""
    if ticks is not None:  # a dozen steps of a schedule took XLA minutes
        return FEW_STEPS
    low, high = levels
    return max(FEW_STEPS, 32 // (high - low))


def _step(neuron: Neuron, params: Any) -> Callable:
    """(state, (current, tick)) -> (state, spikes): one step of a site, for a scan."""

    def step(state, current_and_tick):
        current, tick = current_and_tick
        state = neuron.integrate(params, state, current)
        state = jax.tree.map(lambda leaf: checkpoint_name(leaf, "state"), state)
        return fire_at(neuron, params, state, tick)

    # A gradient keeps only the state before the neurons fire.
    keep = jax.checkpoint_policies.save_only_these_names("state")
    return jax.checkpoint(step, policy=keep, prevent_cse=False)
