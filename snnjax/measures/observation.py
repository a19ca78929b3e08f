"""A run of a spiking network that keeps everything, and what spikes change in it.

The run is that of `snnjax.simulation`. Values that do not depend on spikes, such as
biases, arrive at every step as well. The values of a network whose neurons are silent
tell these constants from what spikes cause.

A variable is an array of the network, named by a number. It is a stream if it changes
from step to step, [T, B, ...], and otherwise [B, ...].
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from snnjax._arrays import add_offset, lead, per_step, subtract_offset
from snnjax.codes import Code
from snnjax.network.equations import Network, Values
from snnjax.network.evaluate import evaluate, firing
from snnjax.network.sites import Site
from snnjax.neurons.gradients import WithSurrogate
from snnjax.neurons.protocol import field
from snnjax.neurons.schedule import arrivals
from snnjax.simulation.executions import Job, run_observed
from snnjax.snn import SNN


class Observation(NamedTuple):
    """What a network computes in T steps.

    Attributes:
        values: variable -> its value, [T, B, ...] of a stream and [B, ...] otherwise.
        streams: the variables that are streams.
        currents: site name -> what arrives at each step, [T, B, ...].
        spikes: site name -> what is sent at each step, [T, B, ...], without the offset,
            which is sent whether a neuron fires or not.
    """

    values: Values
    streams: frozenset[int]
    currents: dict[str, jax.Array]
    spikes: dict[str, jax.Array]


def observe(
    network: Network,
    snn: SNN,
    x: chex.ArrayTree,
    *,
    steps: int,
    wait: int,
    sequence: bool = False,
) -> Observation:
    """Run T steps and keep everything.

    Args:
        network: captured for x, or for one step of a sequence.
        snn: its neurons and parameters.
        x: [B, ...], or [T, B, ...] of a sequence.
        steps: T.
        wait: steps that every layer waits.
        sequence: whether x has a time axis.
    """
    currents_by_site, spikes_by_site = {}, {}

    def keep(site: Site, currents: jax.Array, spikes: jax.Array) -> None:
        offset = field(snn.neurons[site.name], "offset")
        currents_by_site[site.name] = currents
        spikes_by_site[site.name] = _without_constant(snn.code, spikes, offset)

    models = {}
    for site in network.sites:
        if site.fires:
            models[site.name] = WithSurrogate(snn.model_of(site.name))
    job = Job(
        network=network,
        snn=snn,
        models=models,
        x=x,
        steps=steps,
        wait=wait,
        sequence=sequence,
        answer=False,  # all steps are kept
    )
    values, streams = run_observed(job, keep)
    return Observation(values, streams, currents_by_site, spikes_by_site)


def values_at_level(
    network: Network, snn: SNN, x: chex.ArrayTree, level: int
) -> Values:
    """The values [B, ...] of all variables if all neurons emit spikes of this level.

    At level 0 these are what biases, offsets and x contribute.

    Args:
        network: with all calls inlined.
        snn: its neurons and parameters.
        x: images [B, ...].
        level: of the spikes, 0 or 1.
    """
    values = network.arguments(snn.params, x)

    def fire(site: Site, params: Any, current: jax.Array) -> jax.Array:
        """What the neurons of a site send, whatever their current [B, ...] is."""
        if level == 0 and field(params, "threshold") is None:
            # Silent neurons need no size of a spike: any number times 0 is right.
            spike_size = jnp.zeros(())
        else:
            # This raises for neurons without a threshold.
            spike_size = threshold_of(params, site)
        # Level 0 is multiplied by the size as well: XLA would compute the max-pools of
        # a constant 0 when it compiles, which takes minutes.
        output = level * lead(spike_size, current.ndim).astype(current.dtype)
        output = jnp.broadcast_to(output, current.shape)
        return add_offset(output, field(params, "offset"))

    evaluate(network.equations, values, firing(fire, snn.neurons))
    return values


# A change is rounding of float32 if it is below this part of the largest value. The
# last of 16 binary digits is 15 times as large.
_ROUNDING = 2e-6


def events(code: Code, stream: jax.Array, constant: jax.Array) -> jax.Array:
    """What arrives of a variable at each step because of spikes, [T, B, ...].

    It is 0 where no spike arrives.

    Args:
        code: of the SNN.
        stream: the variable's values [T, B, ...].
        constant: its value [B, ...] where all neurons are silent.
    """
    arriving = _without_constant(code, code.arriving(stream), constant)
    # A value that has not changed may differ in its last bits, which is no event.
    noise = _ROUNDING * jnp.abs(stream).max(0, keepdims=True)  # [1, B, ...]
    return jnp.where(jnp.abs(arriving) > noise, arriving, jnp.zeros_like(arriving))


def _without_constant(code: Code, arriving: jax.Array, constant: Any) -> jax.Array:
    """What arrives at each step, without the part of a constant: [T, B, ...].

    Args:
        code: of the SNN.
        arriving: with the constant, [T, B, ...].
        constant: [B, ...], or one number for each channel; None: 0.
    """
    times = arrivals(code, len(arriving))  # how often the constant arrives, [T]
    if constant is None or times is None:
        # It arrives once at every step, as an offset does.
        return subtract_offset(arriving, constant)
    times = per_step(jnp.asarray(times, arriving.dtype), arriving.ndim)
    constant = lead(jnp.asarray(constant, arriving.dtype), arriving.ndim)
    return arriving - times * constant


def threshold_of(params: Any, site: Site) -> jax.Array:
    """The size of a spike of level 1: [], or one number for each channel.

    Args:
        params: of the neurons.
        site: where they fire, for the message.

    Raises:
        ValueError: the neurons have no threshold.
    """
    threshold = field(params, "threshold")
    if threshold is None:
        raise ValueError(
            f"the neurons of site {site.name!r} have no parameter threshold, so the "
            "levels of their spikes are unknown. Give the params of their model a "
            "field threshold, the size of a spike"
        )
    return threshold
