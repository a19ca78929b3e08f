"""Executions: how the machine computes one and the same spikes.

``by_step`` scans over the whole network, one step after the other; ``by_layer`` folds
time into the batch and scans inside each site, all steps or a segment of them at a
time; ``by_closed_form`` needs no time loop where each layer waits for all its input.
``folded`` shows the function itself T B examples, as training mode wants.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax.network.equations import (
    Equation,
    Network,
    Site,
    Values,
    evaluate,
    firing,
    identity,
    running_maximum,
    variables,
)
from snnjax.network.stages import delay_lines, needed, streaming
from snnjax.neurons import (
    closed_form,
    initial_state,
    integrate_and_fire,
    resume,
    unroll,
)
from snnjax.simulation.remat import outputs_from_bits


def by_step(network, snn, x, neuron, steps, delay, sequence):
    """Scan over the whole network, one step after the other, as a chip would run it.

    With a delay this is the pipeline itself: depth k integrates in the steps from
    (k - 1) delay, fires in the T steps from k delay, and delay lines hold back what
    took a shorter way.
    """
    values, streams, changing = _prepare(network, snn.params, x, sequence)
    if delay:
        changing = delay_lines(changing, network, streams)
    depth = max(network.depths[v] for v in network.outputs if v in network.depths)
    total = steps + depth * delay
    if sequence:
        tail = jnp.zeros((depth * delay, *x.shape[1:]), x.dtype)
        x = jnp.concatenate([x, tail])

    def body(states, now):
        step, x_t = now
        local, after = dict(values), {}
        if sequence:
            local[network.x] = x_t

        def rule(site, current, *operands):
            clock = None if delay == 0 else (step, steps, delay)
            after[site.name], spikes = _advance(
                site, states[site.name], current, operands, neuron, snn.neurons, clock
            )
            return spikes

        evaluate(changing, local, rule)
        return after, [local[v] if v in streams else None for v in network.outputs]

    states = {
        eq.site.name: _start(eq, network, snn.neurons, delay)
        for eq in changing
        if eq.site is not None
    }
    now = (jnp.arange(total), x if sequence else None)
    _, outputs = jax.lax.scan(body, states, now, length=total)
    windows = {}
    for v, output in zip(network.outputs, outputs, strict=True):
        if output is not None:
            first = network.depths[v] * delay
            windows[v] = output[first : first + steps]
    return _over_steps(network, values | windows, windows, steps)


def by_layer(network, snn, x, neuron, steps, delay, sequence, *, remat=False):
    """Fold time into the batch between the sites, and scan inside each site.

    With ``remat`` only the spikes are kept for the gradient, as bits; currents and
    potentials are computed anew.
    """
    values, streams, changing = _prepare(network, snn.params, x, sequence)
    if sequence:
        values[network.x] = x

    def fire(site, params, current):
        currents = over_time(current, steps, len(site.shape))
        return unroll(neuron, params, currents, delay=delay)

    if remat:
        made = outputs_from_bits(network, values, fire, streams, snn.neurons)
        pairs = zip(network.outputs, made, strict=True)
        values |= {v: output for v, output in pairs if isinstance(v, int)}
    else:
        evaluate(changing, values, firing(fire, snn.neurons), streams=streams)
    return _over_steps(network, values, streams, steps)


def observed_by_layer(network: Network, snn, x, steps: int, delay: int, observe):
    """`by_layer`, showing ``observe(site, currents, spikes)`` every site.

    Returns:
        The values of all variables, and which of them have a time axis.
    """
    values = network.arguments(snn.params, x)
    neuron = integrate_and_fire(reset=snn.reset)

    def fire(site, params, current):
        currents = over_time(current, steps, len(site.shape))
        spikes = unroll(neuron, params, currents, delay=delay)
        observe(site, currents, spikes)
        return spikes

    streams = streaming(network.equations)
    evaluate(network.equations, values, firing(fire, snn.neurons), streams=streams)
    return values, streams


def by_segment(network, snn, x, neuron, steps, sequence, *, size, remat=False):
    """`by_layer` for ``size`` steps at a time; the neurons' states go on.

    With ``remat`` only the states between the segments are kept for the gradient, and
    one segment of steps while it is computed: least together if ``size`` is sqrt(T).
    """
    values, streams, changing = _prepare(network, snn.params, x, sequence)

    def segment(length, states, x_now):
        local, after = dict(values), {}
        if sequence:
            local[network.x] = x_now

        def rule(site, current, *operands):
            state = states[site.name]
            if site.kind == "max-pool":
                after[site.name] = state + current.astype(jnp.float32).sum(0)
                return operands[0](current, state)
            current = over_time(current, length, len(site.shape))
            params = snn.neurons[site.name]
            after[site.name], spikes = resume(neuron, params, state, current)
            return spikes

        evaluate(changing, local, rule, streams=streams)
        return after, {v: local[v] for v in network.outputs if v in streams}

    def run(length):
        body = functools.partial(segment, length)
        return jax.checkpoint(body) if remat else body

    states = {}
    for eq in changing:
        if eq.site is None:
            continue
        shape, pools = _shape_of_input(eq, network), eq.site.kind == "max-pool"
        states[eq.site.name] = (
            _nothing_summed(shape)
            if pools
            else initial_state(snn.neurons[eq.site.name], shape)
        )
    groups, rest = divmod(steps, size)
    whole = x[: groups * size].reshape(groups, size, *x.shape[1:]) if sequence else None
    states, outputs = jax.lax.scan(run(size), states, whole, length=groups)
    outputs = jax.tree.map(lambda a: a.reshape(groups * size, *a.shape[2:]), outputs)
    if rest:
        last = x[groups * size :] if sequence else None
        _, more = run(rest)(states, last)
        outputs = jax.tree.map(lambda *a: jnp.concatenate(a), outputs, more)
    return _over_steps(network, values | outputs, streams, steps)


def folded(network, snn, x, neuron, steps, delay, shares=1, *, remat=False):
    """The function itself on T B examples, with neurons that take them apart.

    Args:
        network: captured for the folded x, and with aux.
        x: folded by `fold`.
        shares: as there.

    Returns:
        (outputs [T, B, ...], aux as the function gave it).
    """

    def split(a):  # [shares T B / shares, ...] -> [T, B, ...]
        a = a.reshape(shares, steps, -1, *a.shape[1:])
        return jnp.moveaxis(a, 0, 1).reshape(steps, -1, *a.shape[3:])

    def fire(site, params, current):
        return fold(unroll(neuron, params, split(current), delay=delay), shares)

    def pool(function, current):
        return fold(running_maximum(function, split(current)), shares)

    values = network.arguments(snn.params, x)
    if remat:
        made = outputs_from_bits(network, values, fire, frozenset(), snn.neurons, pool)
        outputs, aux = jax.tree_util.tree_unflatten(network.tree, made)
    else:
        evaluate(network.equations, values, firing(fire, snn.neurons, pool))
        outputs, aux = network.results(values)
    return jax.tree.map(split, outputs), aux


def fold(stream: jax.Array, shares: int = 1) -> jax.Array:
    """[T, B, ...] -> [T B, ...], time first within each of ``shares`` of the batch.

    A device that has a share keeps it: no example moves to another one.
    """
    steps, batch, *rest = stream.shape
    parts = stream.reshape(steps, shares, batch // shares, *rest)
    return jnp.moveaxis(parts, 1, 0).reshape(-1, *rest)


def by_closed_form(network, snn, x, steps, sequence):
    """One pass over mean values; then only the readout is computed at every step.

    A layer that has waited T steps fires its N spikes in the first N steps.
    """
    values = network.arguments(snn.params, x.mean(0) if sequence else x)

    def fire(site, params, current):
        del site
        return closed_form(params, current, steps)

    evaluate(network.equations, values, firing(fire, snn.neurons))
    fires = [eq for eq in network.equations if eq.site is not None and eq.site.fires]
    spikes = [eq.outputs[0] for eq in fires]
    outputs = [v for v in network.outputs if isinstance(v, int)]
    tail = needed(network.equations, outputs, known=spikes)
    read = {v for eq in tail for v in eq.inputs} | set(outputs)
    for equation, v in zip(fires, spikes, strict=True):
        if v in read:
            threshold = snn.neurons[equation.place.name].threshold
            values[v] = _first_spikes(values[v], threshold, steps)
    sources = spikes
    if sequence:  # what reaches the readout directly comes step by step
        values[network.x] = x
        sources = [*spikes, network.x]
    streams = streaming(tail, sources)
    evaluate(tail, values, identity, streams=streams)
    return _over_steps(network, values, streams, steps)


# -------------------------------------------------------------------- helpers


def _prepare(network: Network, params, x, sequence: bool):
    """Compute once what no step changes; what is left to do at every step."""
    values = network.arguments(params, None if sequence else x)
    streams = streaming(network.equations, [network.x] if sequence else [])
    changing = [eq for eq in network.equations if streams.intersection(eq.outputs)]
    fixed = [eq for eq in network.equations if not streams.intersection(eq.outputs)]
    evaluate(fixed, values, identity)
    return values, streams, changing


def _over_steps(network: Network, values: Values, streams, steps: int):
    """The outputs with their time axis, also those that no spike reaches."""
    shown = dict(values)
    for v in network.outputs:
        if isinstance(v, int) and v not in streams:
            shown[v] = jnp.broadcast_to(values[v], (steps, *values[v].shape))
    return network.results(shown)


def over_time(current: jax.Array, steps: int, ndim: int) -> jax.Array:
    """[T, B, ...] of a current that may be constant, [B, ...], ndim axes after B."""
    if current.ndim == ndim + 1:
        current = jnp.broadcast_to(current, (steps, *current.shape))
    return current


def _start(equation: Equation, network: Network, neurons, delay: int):
    """State of a site before the first of its steps."""
    site, shape = equation.place, _shape_of_input(equation, network)
    if site.kind == "delay line":
        return jnp.zeros((site.wait * delay, *shape), site.dtype)
    if site.kind == "max-pool":
        return _nothing_summed(shape), _nothing_summed((shape[0], *site.shape))
    return initial_state(neurons[site.name], shape)


def _shape_of_input(equation: Equation, network: Network) -> tuple[int, ...]:
    return network.avals[variables(equation)[0]].shape


def _nothing_summed(shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)


class _Phase(NamedTuple):
    """What a site does at a step of the pipeline; True where it does so at every step.

    Attributes:
        begun: its input has begun to arrive.
        receiving: its input arrives, for T steps.
        firing: it fires, for T steps, ``delay`` later.
    """

    begun: Any = True
    receiving: Any = True
    firing: Any = True


def _phase(site: Site, clock) -> _Phase:
    """``clock`` = (step, T, delay); None: no delay."""
    if clock is None:
        return _Phase()
    step, steps, delay = clock
    before = site.depth - 1 if site.fires else site.depth  # layers that fire earlier
    first = before * delay
    return _Phase(
        begun=step >= first,
        receiving=(step >= first) & (step < first + steps),
        firing=(step >= first + delay) & (step < first + delay + steps),
    )


def _advance(site: Site, state, current, operands, neuron, neurons, clock):
    """One step of a site: (state, current) -> (state, output)."""
    if site.kind == "delay line":
        return jnp.concatenate([state[1:], current[None]]), state[0]
    phase = _phase(site, clock)
    if site.kind == "max-pool":
        total, pooled = state
        total = total + _when(phase.receiving, current.astype(jnp.float32), 0)
        now = operands[0](total)
        return (total, now), (now - pooled).astype(current.dtype)
    params = neurons[site.name]
    drive = _when(phase.receiving, current + params.bias, 0)
    charged = neuron.integrate(params, state, drive)
    fired, spikes = neuron.fire(params, charged)
    state = jax.tree.map(lambda new, old: _when(phase.begun, new, old), charged, state)
    state = jax.tree.map(lambda new, old: _when(phase.firing, new, old), fired, state)
    return state, _when(phase.firing, spikes, 0).astype(site.dtype)


def _when(condition, value, otherwise):
    return value if condition is True else jnp.where(condition, value, otherwise)


def _first_spikes(mean: jax.Array, threshold: jax.Array, steps: int) -> jax.Array:
    """The spike train [T, B, ...] with N = T mean / V_th spikes in its first steps."""
    order = jnp.arange(steps).reshape(-1, *[1] * mean.ndim)
    count = mean.astype(jnp.float32) * steps / threshold
    # A count is a whole number but for rounding; its gradient is that of the mean.
    hard = threshold * (order + 0.5 < count)
    soft = jnp.broadcast_to(mean, hard.shape)
    spikes = soft + jax.lax.stop_gradient(hard - soft)
    return spikes.astype(mean.dtype)
