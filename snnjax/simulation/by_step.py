"""The loop over the whole network, one step after the other, as a chip would run it.

With a wait of d it is a pipeline: depth k integrates in the steps from (k - 1) d and
fires in the T steps from k d; delay lines hold back what took a shorter way.
"""

from typing import Any

import jax
import jax.numpy as jnp

from snnjax.network.equations import Equation
from snnjax.network.evaluate import evaluate
from snnjax.network.sites import Site
from snnjax.network.stages import delay_lines
from snnjax.neurons.unroll import Phase, charge, discharge, phase, when
from snnjax.simulation.executions import (
    Job,
    over_steps,
    prepare,
    shape_of_input,
    zero_sum,
)


def run_by_step(job: Job) -> Any:
    """Scan over the whole network, one step after the other."""
    network, steps, wait = job.network, job.steps, job.wait
    values, streams, changing = prepare(job)
    if wait:
        changing = delay_lines(changing, network, streams)
    depth = max(network.depths[v] for v in network.outputs if v in network.depths)
    total = steps + depth * wait
    x = job.x
    if job.sequence:
        tail = jnp.zeros((depth * wait, *x.shape[1:]), x.dtype)
        x = jnp.concatenate([x, tail])

    def body(states, now):
        step, x_t = now
        local: dict[Any, Any] = dict(values)
        after: dict[str, Any] = {}
        if job.sequence:
            local[network.x] = x_t

        def rule(site: Site, current: jax.Array, *operands: Any) -> jax.Array:
            state = states[site.name]
            after[site.name], output = _advance(
                job, site, state, current, operands, _phase(job, site, step)
            )
            return output

        evaluate(changing, local, rule)
        return after, [local[v] if v in streams else None for v in network.outputs]

    states = {eq.place.name: _start(job, eq) for eq in changing if eq.site is not None}
    now = (jnp.arange(total), x if job.sequence else None)
    _, outputs = jax.lax.scan(body, states, now, length=total)
    windows = {}
    for v, output in zip(network.outputs, outputs, strict=True):
        if output is not None:
            first = network.depths[v] * wait
            windows[v] = output[first : first + steps]
    return over_steps(job, values | windows, windows)


def _start(job: Job, equation: Equation) -> Any:
    """State of a site before the first of its steps."""
    site, shape = equation.place, shape_of_input(job, equation)
    if site.lag:
        return jnp.zeros((site.lag * job.wait, *shape), site.dtype)
    if site.accumulates:
        output = (shape[0], *site.shape)
        return zero_sum(shape, site.dtype), zero_sum(output, site.dtype)
    return job.models[site.name].start(job.snn.neurons[site.name], shape)


def _phase(job: Job, site: Site, step: jax.Array) -> Phase:
    """The phase of a site at a step of the pipeline."""
    layers_before = site.depth - 1 if site.fires else site.depth
    return phase(step - layers_before * job.wait, job.steps, job.wait)


def _advance(
    job: Job,
    site: Site,
    state: Any,
    current: jax.Array,
    operands: tuple,
    now: Phase,
) -> tuple[Any, jax.Array]:
    """One step of a site: (state, current) -> (state, output)."""
    if site.lag:
        return jnp.concatenate([state[1:], current[None]]), state[0]
    if site.accumulates:
        total, before = state
        total = total + when(now.receiving, current.astype(total.dtype), 0)
        result = operands[0](total)
        return (total, result), (result - before).astype(current.dtype)
    model, params = job.models[site.name], job.snn.neurons[site.name]
    charged = charge(model, params, state, current, now)
    state, spikes = discharge(model, params, charged, now)
    return state, spikes.astype(site.dtype)
