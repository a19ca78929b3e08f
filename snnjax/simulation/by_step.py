"""The loop over the whole network, one step after the other, as a chip would run it.

With a wait of d it is a pipeline: depth k integrates from step (k - 1) d on and fires
in the T steps from k d on. Delay lines hold back what took a shorter way.

A gradient keeps the state of each neuron and step before it fires, and with a leak the
state before it integrates too. It recomputes the rest of the step.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from snnjax._arrays import wide
from snnjax._trees import is_floating
from snnjax.codes import Code
from snnjax.network.evaluate import evaluate
from snnjax.network.increments import Operator, Running
from snnjax.network.sites import Site
from snnjax.network.stages import delay_lines
from snnjax.neurons.phases import Phase, fire_in_phase, integrate_in_phase, phase_of
from snnjax.neurons.protocol import field, levels_of
from snnjax.neurons.spike_trains import through_bytes
from snnjax.simulation.executions import (
    Decoding,
    Job,
    over_steps,
    prepare,
    start_state,
)
from snnjax.surrogate import is_step


def run_by_step(job: Job) -> Any:
    """Scan over the whole network, one step after the other."""
    network, steps, wait = job.network, job.steps, job.wait
    values, streams, live = prepare(job)
    if wait:
        live, delayed = delay_lines(live, network, streams)
        network = network._replace(avals=network.avals | delayed)
        job, streams = job._replace(network=network), streams | delayed.keys()
    depth = max(network.depths[v] for v in network.outputs if v in network.depths)
    total = steps + depth * wait
    x = job.x if job.sequence else None  # None is a tree without leaves

    def padded(leaf: jax.Array) -> jax.Array:
        tail = jnp.zeros((depth * wait, *leaf.shape[1:]), leaf.dtype)
        return jnp.concatenate([leaf, tail])

    # The gradient of a constant of the loop is summed over all steps in its type, so it
    # enters as float32. A number of Python has neither gradient nor type.
    arrays = {v: a for v, a in values.items() if hasattr(a, "dtype")}
    types = {v: a.dtype for v, a in arrays.items() if is_floating(a)}
    constants = {v: wide(a) if v in types else a for v, a in values.items()}

    sites = [eq for eq in live if eq.site is not None]
    states = {eq.place.name: start_state(job, eq, values, streams) for eq in sites}
    live_inputs = {eq.place.name: [v in streams for v in eq.inputs] for eq in sites}

    def body(states, step_and_x):
        step, x_t = step_and_x
        local: dict[Any, Any] = {
            v: a.astype(types[v]) if v in types else a for v, a in constants.items()
        }
        after: dict[str, Any] = {}
        if job.sequence:
            local |= network.inputs(x_t)

        def rule(site: Site, current: jax.Array, *operands: Any) -> Any:
            layers_before = site.depth - 1 if site.fires else site.depth
            model = job.models[site.name] if site.fires else None
            now = step - layers_before * wait
            phase = phase_of(now, steps, wait, job.snn.code, model)
            state = states[site.name]
            if site.accumulates:
                *others, function = operands
                function = function._replace(live=tuple(live_inputs[site.name]))
                arguments = (current, *others)
                result = _accumulate(job.snn.code, function, state, arguments, phase)
            elif site.lag:
                # Named, or the gradient would keep the whole line at every step.
                output = checkpoint_name(state[0], "state")
                result = output, jnp.concatenate([state[1:], current[None]])
            else:
                result = _fire(job, site, state, current, phase)
            output, after[site.name] = result
            return output

        evaluate(live, local, rule)
        return after, [local[v] if v in streams else None for v in network.outputs]

    xs = (jnp.arange(total), jax.tree.map(padded, x))
    keep = jax.checkpoint_policies.save_only_these_names("state")
    step_of_all = jax.checkpoint(body, policy=keep, prevent_cse=False)
    _, outputs = jax.lax.scan(step_of_all, states, xs, length=total)
    windows = {}
    for v, output in zip(network.outputs, outputs, strict=True):
        if output is not None:
            first = network.depths[v] * wait
            windows[v] = output[first : first + steps]
    return over_steps(job, values | windows, windows)


def _accumulate(
    code: Code, function: Operator, running: Running, arguments: tuple, phase: Phase
) -> tuple[tuple[jax.Array, ...], Running]:
    """One step of an operator: (outputs, state); zeros while no input arrives.

    The state is a `Running` of rate coding; other codes need none.

    Outside of its window the operator is not evaluated at all. Its inputs are zeros
    there, and 0 / 0 would turn the gradient into NaN even if a ``where`` replaced the
    outputs. The phase depends on the step alone, so ``vmap`` keeps the branch.
    """

    def step(running: Running) -> tuple[tuple[jax.Array, ...], Running]:
        streams = [
            argument[None] if live else argument
            for argument, live in zip(arguments, function.live, strict=True)
        ]
        if code.clock_runs:
            outputs, after = function.over_time(streams, running)
        else:
            outputs, after = function.of_values(*streams), running
        return tuple(output[0] for output in outputs), after

    def skip(running: Running) -> tuple[tuple[jax.Array, ...], Running]:
        outputs, _ = jax.eval_shape(step, running)
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), outputs), running

    if phase.receiving is True:
        return step(running)
    return jax.lax.cond(phase.receiving, step, skip, running)


def _fire(
    job: Job, site: Site, state: Any, current: jax.Array, phase: Phase
) -> tuple[jax.Array, Any]:
    """One step of a site: (spikes, state)."""
    model, params = job.models[site.name], job.snn.neurons[site.name]
    if isinstance(state, Decoding):
        before, arrived, sent = state
        current = current.astype(arrived.dtype)
        after, spikes = _fire_once(
            model, params, before, job.steps * (current - arrived), phase
        )
        arrived = jnp.where(phase.receiving, current, arrived)
        sent = sent + spikes.astype(sent.dtype) / job.steps
        return sent.astype(site.dtype), Decoding(after, arrived, sent)
    state, spikes = _fire_once(model, params, state, current, phase)
    levels, threshold = levels_of(model), field(params, "threshold")
    has_levels = levels is not None and threshold is not None
    # Only without a wait is every output a level, never the 0 of a silent phase.
    if job.wait == 0 and has_levels and is_step(model.surrogate):
        spikes = through_bytes(spikes, levels, threshold, field(params, "offset"))
    return spikes.astype(site.dtype), state


def _fire_once(
    model: Any, params: Any, state: Any, current: jax.Array, phase: Phase
) -> tuple[Any, jax.Array]:
    """The state after a step, and its spikes."""
    state = integrate_in_phase(model, params, state, current, phase)
    state = jax.tree.map(lambda leaf: checkpoint_name(leaf, "state"), state)
    return fire_in_phase(model, params, state, phase)
