"""Firing: a network evaluated with spikes, time folded into the batch.

Between the sites the equations map over the time axis; at a site the neurons run
through time. Measures, simulation and conversion share these functions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from snnjax._arrays import lead
from snnjax.network.equations import Network, Values
from snnjax.network.evaluate import evaluate, firing
from snnjax.network.sites import Site
from snnjax.network.stages import streaming
from snnjax.neurons.models import NeuronParams
from snnjax.neurons.unroll import unroll
from snnjax.snn import SNN

Observe = Callable[[Site, jax.Array, jax.Array], None]


def observe_spikes(
    network: Network, snn: SNN, x: jax.Array, *, steps: int, wait: int, observe: Observe
) -> tuple[Values, frozenset[int]]:
    """Run T steps on a constant x, and show every site that fires.

    Args:
        network: captured for x.
        snn: its spiking network.
        x: [B, ...].
        steps, wait: T, and the steps that every layer waits.
        observe: ``observe(site, currents, spikes)``, both [T, B, ...].

    Returns:
        The values of all variables, and which of them have a time axis.
    """

    def fire(site: Site, params, current):
        currents = over_time(current, steps, len(site.shape))
        spikes = unroll(snn.neuron, params, currents, wait=wait)
        observe(site, currents, spikes)
        return spikes

    values = network.arguments(snn.params, x)
    streams = streaming(network.equations)
    evaluate(network.equations, values, firing(fire, snn.neurons), streams=streams)
    return values, streams


def all_fire(network: Network, snn: SNN, x: jax.Array) -> Values:
    """Every variable's value at a step in which all neurons emit level 1."""
    values = network.arguments(snn.params, x)

    def fire(site: Site, params: NeuronParams, current: jax.Array) -> jax.Array:
        threshold = lead(params.threshold, current.ndim).astype(current.dtype)
        return jnp.broadcast_to(threshold, current.shape)

    evaluate(network.equations, values, firing(fire, snn.neurons))
    return values


def over_time(current: jax.Array, steps: int, ndim: int) -> jax.Array:
    """[T, B, ...] of a current that may be constant, [B, ...], ndim axes after B."""
    if current.ndim == ndim + 1:
        current = jnp.broadcast_to(current, (steps, *current.shape))
    return current
