"""The loop over the whole network, one step after the other, as a chip would run it.

With a wait of d it is a pipeline: depth k integrates in the steps from (k - 1) d and
fires in the T steps from k d; delay lines hold back what took a shorter way.

A gradient keeps the charged state of each neuron and step, where a leak is trained the
one before the charge too, and for leaky neurons on a TPU only that one. It computes the
rest of the step anew.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from snnjax._arrays import wide
from snnjax._trees import is_floating
from snnjax.network.equations import Equation, Values
from snnjax.network.evaluate import evaluate
from snnjax.network.increments import Operator, Running
from snnjax.network.sites import Site
from snnjax.network.stages import delay_lines
from snnjax.neurons.gradients import WithSurrogate
from snnjax.neurons.protocol import Neuron, Wrapper, field, fire, levels_of
from snnjax.neurons.spike_trains import through_bytes
from snnjax.neurons.unroll import Phase, charge, discharge, phase, when
from snnjax.simulation.executions import (
    Job,
    over_steps,
    prepare,
    running_start,
    shape_of_input,
)
from snnjax.surrogate import Surrogate, is_step


def run_by_step(job: Job) -> Any:
    """Scan over the whole network, one step after the other."""
    network, steps, wait = job.network, job.steps, job.wait
    models = {name: _with_spikes_as_bytes(model) for name, model in job.models.items()}
    job = job._replace(models=models)
    values, streams, changing = prepare(job)
    if wait:
        changing, delayed = delay_lines(changing, network, streams)
        network = network._replace(avals=network.avals | delayed)
        job, streams = job._replace(network=network), streams | delayed.keys()
    depth = max(network.depths[v] for v in network.outputs if v in network.depths)
    total = steps + depth * wait
    x = job.x if job.sequence else None  # None is a tree without leaves

    def padded(leaf: jax.Array) -> jax.Array:
        tail = jnp.zeros((depth * wait, *leaf.shape[1:]), leaf.dtype)
        return jnp.concatenate([leaf, tail])

    x = jax.tree.map(padded, x)

    # The gradient of a constant of the loop is summed over all steps in its type, so it
    # enters as float32. A number of Python has neither gradient nor type.
    arrays = {v: a for v, a in values.items() if hasattr(a, "dtype")}
    types = {v: a.dtype for v, a in arrays.items() if is_floating(a)}
    constants = {v: wide(a) if v in types else a for v, a in values.items()}

    sites = [eq for eq in changing if eq.site is not None]
    live = {eq.place.name: tuple(v in streams for v in eq.inputs) for eq in sites}
    states = {
        eq.place.name: _start(job, eq, values, live[eq.place.name]) for eq in sites
    }

    def body(states, step_and_x):
        step, x_t = step_and_x
        local: dict[Any, Any] = {
            v: a.astype(types[v]) if v in types else a for v, a in constants.items()
        }
        after: dict[str, Any] = {}
        if job.sequence:
            local |= network.inputs(x_t)

        def rule(site: Site, current: jax.Array, *operands: Any) -> Any:
            at = _phase(job, site, step)
            state = states[site.name]
            if site.accumulates:
                *others, function = operands
                function = function._replace(live=live[site.name])
                arguments = (current, *others)
                output, state = _accumulate(function, state, arguments, at)
            else:
                state, output = _advance(job, site, state, current, at)
            after[site.name] = state
            return output

        evaluate(changing, local, rule)
        return after, [local[v] if v in streams else None for v in network.outputs]

    xs = (jnp.arange(total), x)
    keep = jax.checkpoint_policies.save_only_these_names("state")
    step_of_all = jax.checkpoint(body, policy=keep, prevent_cse=False)
    _, outputs = jax.lax.scan(step_of_all, states, xs, length=total)
    windows = {}
    for v, output in zip(network.outputs, outputs, strict=True):
        if output is not None:
            first = network.depths[v] * wait
            windows[v] = output[first : first + steps]
    return over_steps(job, values | windows, windows)


def _start(job: Job, equation: Equation, values: Values, live: tuple[bool, ...]) -> Any:
    """State of a site before the first of its steps."""
    if equation.place.accumulates:
        return running_start(job, equation, values, live)
    site, shape = equation.place, shape_of_input(job, equation)
    if site.lag:
        return jnp.zeros((site.lag * job.wait, *shape), site.dtype)
    return job.models[site.name].start(job.snn.neurons[site.name], shape)


def _phase(job: Job, site: Site, step: jax.Array) -> Phase:
    """The phase of a site at a step of the pipeline."""
    layers_before = site.depth - 1 if site.fires else site.depth
    return phase(step - layers_before * job.wait, job.steps, job.wait)


def _accumulate(
    function: Operator, running: Running, arguments: tuple, at: Phase
) -> tuple[tuple[jax.Array, ...], Running]:
    """One step of an operator, if its input arrives: (outputs, state)."""
    timed = [
        argument[None] if live else argument
        for argument, live in zip(arguments, function.live, strict=True)
    ]
    outputs, after = function.over_time(timed, running)
    state = jax.tree.map(functools.partial(when, at.receiving), after, running)
    return tuple(when(at.receiving, output[0], 0) for output in outputs), state


def _advance(
    job: Job,
    site: Site,
    state: Any,
    current: jax.Array,
    at: Phase,
) -> tuple[Any, jax.Array]:
    """One step of a site: (state, current) -> (state, output)."""
    if site.lag:
        # Named, or the gradient would keep the whole line at every step.
        delayed = checkpoint_name(state[0], "state")
        return jnp.concatenate([state[1:], current[None]]), delayed
    model, params = job.models[site.name], job.snn.neurons[site.name]
    charged = charge(model, params, state, current, at)
    # The gradient of a leak needs the state before the charge. Where memory counts
    # most, that one alone is kept, as the loop's carry, and the charge computed anew.
    recomputes = job.recomputes_charge and field(params, "leak") is not None
    if not recomputes:
        charged = jax.tree.map(lambda leaf: checkpoint_name(leaf, "state"), charged)
    state, spikes = discharge(model, params, charged, at)
    return state, spikes.astype(site.dtype)


@dataclasses.dataclass(frozen=True)
class _SpikesAsBytes(Wrapper):
    """A model whose spikes take a byte each between two operations, on a TPU."""

    def fire(
        self, params: Any, state: Any, spike: Surrogate | None = None
    ) -> tuple[Any, jax.Array]:
        """As the model does."""
        state, spikes = fire(self.neuron, params, state, spike)
        threshold, offset = field(params, "threshold"), field(params, "offset")
        levels = levels_of(self.neuron)
        if levels is None or threshold is None:
            return state, spikes
        return state, through_bytes(spikes, levels, threshold, offset)


def _with_spikes_as_bytes(model: Neuron) -> Neuron:
    """The model with its spikes as bytes, where its surrogate leaves them levels."""
    fires_steps = isinstance(model, WithSurrogate) and is_step(model.surrogate)
    return _SpikesAsBytes(model) if fires_steps else model
