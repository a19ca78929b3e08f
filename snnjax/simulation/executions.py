"""Executions: how the machine computes one and the same spikes.

``by_step`` scans over the whole network, one step after the other; ``by_layer`` folds
time into the batch and scans inside each site, all steps or a segment of them at a
time; ``by_closed_form`` needs no time loop where each layer waits for all its input.
``folded`` shows the function itself T B examples, as training mode wants.
"""

import functools

import jax
import jax.numpy as jnp

from snnjax.network.equations import (
    Equation,
    Network,
    Site,
    Values,
    evaluate,
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
from snnjax.simulation.remat import outputs_from_bits, with_neurons


def by_step(network, snn, x, neuron, steps, delay, sequence):
    """Scan over the whole network, one step after the other, as a chip would run it.

    With a delay this is the pipeline itself: depth k integrates in the steps from
    (k - 1) delay, fires in the T steps from k delay, and delay lines hold back what
    took a shorter way.
    """
    values, streams, changing = _prepare(network, snn.params, x, sequence)
    if delay:
        lined = delay_lines(network, streams)
        fixed = {eq.outputs for eq in network.equations} - {
            eq.outputs for eq in changing
        }
        changing = [eq for eq in lined if eq.outputs not in fixed]
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

    def fire(site, params, current, *operands):
        if site.kind == "max-pool":
            return operands[0](current)
        currents = over_time(current, steps, len(site.shape))
        return unroll(neuron, params, currents, delay=delay)

    if remat:
        made = outputs_from_bits(network, values, fire, streams, snn.neurons)
        pairs = zip(network.outputs, made, strict=True)
        values |= {v: output for v, output in pairs if isinstance(v, int)}
    else:
        evaluate(changing, values, with_neurons(fire, snn.neurons), streams=streams)
    return _over_steps(network, values, streams, steps)


def observed_by_layer(network: Network, snn, x, steps: int, delay: int, observe):
    """`by_layer`, showing ``observe(site, currents, spikes)`` every site.

    Returns:
        The values of all variables, and which of them have a time axis.
    """
    values = network.arguments(snn.params, x)
    neuron = integrate_and_fire(reset=snn.reset)

    def rule(site, current, *operands):
        if site.kind == "max-pool":
            return operands[0](current)
        currents = over_time(current, steps, len(site.shape))
        spikes = unroll(neuron, snn.neurons[site.name], currents, delay=delay)
        observe(site, currents, spikes)
        return spikes

    streams = streaming(network.equations)
    evaluate(network.equations, values, rule, streams=streams)
    return values, streams


def by_segment(network, snn, x, neuron, steps, sequence, *, size, remat=False):
    """`by_layer` for ``size`` steps at a time; the neurons' states go on.

    With ``remat`` only the states between the segments are kept for the gradient:
    near sqrt(T) of both are then in memory if ``size`` is sqrt(T).
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

    states = {
        eq.place.name: _start(eq, network, snn.neurons, 0, pooled=False)
        for eq in changing
        if eq.site is not None
    }
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

    def fire(site, params, current, *operands):
        if site.kind == "max-pool":
            return fold(running_maximum(operands[0], split(current)), shares)
        return fold(unroll(neuron, params, split(current), delay=delay), shares)

    values = network.arguments(snn.params, x)
    if remat:
        made = outputs_from_bits(network, values, fire, frozenset(), snn.neurons)
        outputs, aux = jax.tree_util.tree_unflatten(network.tree, made)
    else:
        evaluate(network.equations, values, with_neurons(fire, snn.neurons))
        outputs, aux = network.results(values)
    return jax.tree.map(split, outputs), aux


def fold(stream: jax.Array, shares: int = 1) -> jax.Array:
    """[T, B, ...] -> [T B, ...], time first within each of ``shares`` of the batch.

    A device that has a share keeps it: no example moves to another one.
    """
    steps, batch, *rest = stream.shape
    parts = stream.reshape(steps, shares, batch // shares, *rest)
    return jnp.moveaxis(parts, 1, 0).reshape(-1, *rest)


def by_closed_form(network, snn, x, neuron, steps, delay, sequence):
    """One pass over mean values; then only the readout is computed at every step.

    A layer that has waited T steps fires its N spikes in the first N steps.
    """
    del neuron, delay
    values = network.arguments(snn.params, x.mean(0) if sequence else x)
    trains = {}

    def rule(site, current, *operands):
        if site.kind == "max-pool":
            return operands[0](current)
        params = snn.neurons[site.name]
        mean = closed_form(params, current, steps)
        trains[site.name] = (mean, params.threshold)
        return mean

    evaluate(network.equations, values, rule)
    fires = [eq for eq in network.equations if eq.site is not None and eq.site.fires]
    spikes = [eq.outputs[0] for eq in fires]
    outputs = [v for v in network.outputs if isinstance(v, int)]
    tail = needed(network.equations, outputs, known=spikes)
    read = {v for eq in tail for v in eq.inputs} | set(outputs)
    for equation, v in zip(fires, spikes, strict=True):
        if v in read:
            mean, threshold = trains[equation.site.name]
            values[v] = _first_spikes(mean, threshold, steps)
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


def _start(
    equation: Equation, network: Network, neurons, delay: int, pooled: bool = True
):
    """State of a site before the first step."""
    site, shape = equation.place, network.avals[variables(equation)[0]].shape
    if site.kind == "delay line":
        return jnp.zeros((site.depth * delay, *shape), site.dtype)
    if site.kind == "max-pool":
        total = jnp.zeros(shape, jnp.float32)
        if not pooled:
            return total
        return total, jnp.zeros((shape[0], *site.shape), jnp.float32)
    return initial_state(neurons[site.name], shape)


def _advance(site: Site, state, current, operands, neuron, neurons, clock):
    """One step of a site: (state, current) -> (state, output).

    ``clock`` = (step, T, delay) says where in the pipeline we are; None: no delay,
    every site works at every step.
    """
    if site.kind == "delay line":
        return jnp.concatenate([state[1:], current[None]]), state[0]
    if clock is None:
        begun = receiving = firing = True
    else:
        step, steps, delay = clock
        first = (site.depth - site.fires) * delay
        begun = step >= first
        receiving = begun & (step < first + steps)
        firing = (step >= first + delay) & (step < first + delay + steps)
    if site.kind == "max-pool":
        total, pooled = state
        total = total + _when(receiving, current.astype(jnp.float32), 0)
        now = operands[0](total)
        return (total, now), (now - pooled).astype(current.dtype)
    params = neurons[site.name]
    drive = _when(receiving, current + params.bias, 0)
    charged = neuron.integrate(params, state, drive)
    fired, spikes = neuron.fire(params, charged)
    state = jax.tree.map(lambda new, old: _when(begun, new, old), charged, state)
    state = jax.tree.map(lambda new, old: _when(firing, new, old), fired, state)
    return state, _when(firing, spikes, 0).astype(site.dtype)


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
