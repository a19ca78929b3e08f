"""A function in training mode, which takes its statistics over all of its input.

    fn(params, x) -> (outputs, aux)    with x of T B examples, time first

So time is a part of the batch here, and the neurons separate the steps again. In closed
form there are no steps: fn gets the B examples once.
"""

from typing import Any

import jax
import jax.numpy as jnp

from snnjax.firing import over_time
from snnjax.network.evaluate import evaluate, firing
from snnjax.network.increments import Operator
from snnjax.network.sites import Site
from snnjax.neurons.models import NeuronParams
from snnjax.neurons.unroll import closed_form
from snnjax.simulation.executions import Job, all_steps, arriving
from snnjax.simulation.remat import outputs_from_bits


def run_closed_training(job: Job) -> tuple[Any, Any]:
    """A function in training mode, once, on the values that neurons end with.

    Its outputs [T, B, ...] are the answer at each step; aux is as fn gave it.
    """
    network, neurons, steps = job.network, job.snn.neurons, job.steps

    def fire(site: Site, params: NeuronParams, current: jax.Array) -> jax.Array:
        model = job.snn.model_of(site.name)
        return closed_form(model, params, current, steps, code=job.snn.code)

    values = network.arguments(job.snn.params, job.x)
    evaluate(network.equations, values, firing(fire, neurons))
    outputs, aux = network.results(values)
    return jax.tree.map(lambda a: over_time(a, steps, a.ndim - 1), outputs), aux


def run_training(job: Job, devices: int = 1, *, remat: bool = False) -> tuple[Any, Any]:
    """The function itself on T B examples; its neurons separate the steps again.

    Args:
        job: with an x from `time_in_batch`, for so many ``devices``.
        remat: the gradient keeps only the spikes, as bits.
    """
    steps, code, fire_all = job.steps, job.snn.code, all_steps(job)

    def split(a: jax.Array) -> jax.Array:  # [D T B / D, ...] -> [T, B, ...]
        a = a.reshape(devices, steps, -1, *a.shape[1:])
        return jnp.moveaxis(a, 0, 1).reshape(steps, -1, *a.shape[3:])

    def fire(site: Site, params: Any, current: jax.Array) -> jax.Array:
        return time_in_batch(fire_all(site, params, split(current)), devices)

    def at_operator(site: Site, current: jax.Array, function: Operator) -> jax.Array:
        del site
        if not code.clock_runs:
            (values,) = function.of_values(current)
            return values
        (increments,) = function._replace(live=(True,))(split(current))
        return time_in_batch(increments, devices)

    network, neurons = job.network, job.snn.neurons
    values = network.arguments(job.snn.params, job.x)
    if remat:
        none = frozenset()  # has a time axis: time is a part of the batch
        results = outputs_from_bits(
            network, values, fire, none, neurons, job.models, at_operator
        )
        outputs, aux = jax.tree_util.tree_unflatten(network.tree, results)
    else:
        evaluate(network.equations, values, firing(fire, neurons, at_operator))
        outputs, aux = network.results(values)
    return jax.tree.map(lambda a: arriving(code, split(a)), outputs), aux


def time_in_batch(stream: jax.Array, devices: int = 1) -> jax.Array:
    """[T, B, ...] -> [T B, ...], time first within each device's part of the batch.

    No example moves to another device. Two devices, T = 2 and the examples a b c d:

        a1 b1 c1 d1 | a2 b2 c2 d2    ->    a1 b1 a2 b2 | c1 d1 c2 d2
    """
    steps, batch, *rest = stream.shape
    parts = stream.reshape(steps, devices, batch // devices, *rest)
    return jnp.moveaxis(parts, 1, 0).reshape(-1, *rest)
