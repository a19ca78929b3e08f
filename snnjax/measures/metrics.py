"""Measures of a spiking network: accuracy over time, rates, errors, operations.

The conversion error of a site, per neuron and averaged over T steps, is the sum of

    a - relu(z)                      inherited  (from the layers below)
    relu(z) - clip(z, 0, V_th)       clipping   (above the threshold)
    clip(z, 0, V_th) - ClipFloor(z)  flooring   (only T + 1 levels)
    ClipFloor(z) - s                 unevenness (spikes did not come evenly)

with a the ANN's activation, z the mean current as it arrives, s the mean output.
ClipFloor includes the site's bias and v(0), which make up for the floor. Sources: Li et
al., ICML 2021 (clipping, flooring); Bu et al., ICLR 2022 (unevenness).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from snnjax._checks import check_labels
from snnjax.measures.operations import Work, products, shape_of, weights_of
from snnjax.network.capture import capture
from snnjax.network.equations import Network, evaluate, identity
from snnjax.neurons import NeuronParams, closed_form
from snnjax.simulation.executions import observed_by_layer
from snnjax.simulation.snn import SNN, check_neurons, check_params, checked_fit


class SiteMeasures(NamedTuple):
    """What one site does, averaged over images.

    Attributes:
        firing_rate: fraction of steps with a spike, over all neurons, 0..1.
        silent: fraction of channels in which no neuron ever fires.
        saturated: fraction of channels in which every neuron fires at every step.
        activation: root mean square of the ANN's activation, to compare errors with.
        error: root mean square of a - s.
        inherited, clipping, flooring, unevenness: root mean square of its parts; the
            last three are NaN for LIF and for reset to zero, which have no ClipFloor.
    """

    firing_rate: jax.Array
    silent: jax.Array
    saturated: jax.Array
    activation: jax.Array
    error: jax.Array
    inherited: jax.Array
    clipping: jax.Array
    flooring: jax.Array
    unevenness: jax.Array


class Measures(NamedTuple):
    """What a spiking network does, averaged over images.

    Attributes:
        sites: site name -> `SiteMeasures`.
        firing_rate: mean over all neurons of all sites.
        synaptic_operations: additions per image that spikes cause in T steps: one for
            each non-zero input of a convolution or matrix product and each of the
            outputs that it reaches.
        input_macs: multiply-adds per image of what the analog input reaches directly;
            a constant current is computed once.
        macs: multiply-adds per image of the ANN.
        neurons: number of all sites' neurons.
        weights: number of weights of all convolutions and matrix products.
        steps, delay: that it was measured with.
    """

    sites: dict[str, SiteMeasures]
    firing_rate: jax.Array
    synaptic_operations: jax.Array
    input_macs: jax.Array
    macs: jax.Array
    neurons: jax.Array
    weights: jax.Array
    steps: jax.Array
    delay: jax.Array


def accuracy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Accuracy after every number of steps, from one run.

    Args:
        outputs: readout at each step [T, B, classes].
        labels: int [B].

    Returns:
        [T]; entry t - 1 is the accuracy of the mean of the first t outputs. NaN is no
        answer, and wrong.

    Raises:
        ValueError: other shapes or types.

    >>> import jax.numpy as jnp
    >>> outputs = jnp.array([[[0.0, 1.0]], [[3.0, 0.0]]])
    >>> print(accuracy(outputs, jnp.array([0])))
    [0. 1.]
    """
    check_labels(outputs, labels)
    outputs, labels = jnp.asarray(outputs), jnp.asarray(labels)
    dtype = jnp.promote_types(outputs.dtype, jnp.float32)  # bfloat16 would not add up
    answers = jnp.cumsum(outputs, axis=0, dtype=dtype)
    right = answers.argmax(-1) == labels
    return (right & ~jnp.isnan(answers).any(-1)).mean(-1)


def measure(
    fn: Callable,
    params: chex.ArrayTree,
    snn: SNN,
    x: jax.Array,
    *,
    steps: int | None = None,
    delay: int | None = None,
) -> Measures:
    """Compare an SNN with its ANN, site by site.

    Args:
        fn: network, ``fn(params, x) -> outputs``.
        params: of the ANN; those of ``snn`` may have been calibrated since.
        snn: from `snnjax.convert`.
        x: images [B, ...], a constant current.
        steps, delay: T, and what every layer waits; by default those that the SNN was
            fitted to.

    Returns:
        `Measures`. Jitted inside, one program for each network, steps, delay and shape
        of x; memory is that of by_layer: T times the ANN's.

    Raises: as `snnjax.spiking`.
    """
    steps, delay = checked_fit(snn, steps, delay)
    check_params(snn, params)
    network = capture(fn, params, x, inline_all=True)
    work = Work(fn, network)
    seen, operations, input_macs, macs = _observe(work, params, snn, x, steps, delay)
    compared = {
        site.name: _compare(
            seen[site.name], snn.neurons[site.name], snn.reset, steps, site.channel
        )
        for site in network.sites
        if site.fires
    }
    neurons = sum(math.prod(site.shape) for site in network.sites if site.fires)
    weights = sum(math.prod(shape_of(network, v)) for v in weights_of(network))
    # In float32: all spikes of a large network may be more than int32 can count.
    fired = sum(site.fired.astype(jnp.float32).sum() for site in seen.values())
    possible = steps * sum(site.activation.size for site in seen.values())
    return Measures(
        sites=compared,
        firing_rate=jnp.asarray(fired) / possible,
        synaptic_operations=operations,
        input_macs=input_macs,
        macs=macs,
        neurons=jnp.asarray(neurons),
        weights=jnp.asarray(weights),
        steps=jnp.asarray(steps),
        delay=jnp.asarray(delay),
    )


class _Seen(NamedTuple):
    """What a site did: activation, mean current, mean output; spikes per channel."""

    activation: jax.Array
    current: jax.Array
    output: jax.Array
    fired: jax.Array


@functools.partial(jax.jit, static_argnames=("work", "steps", "delay"))
def _observe(work: Work, params, snn: SNN, x, steps: int, delay: int):
    """Site name -> `_Seen`; synaptic operations, MACs of the input, of the ANN."""
    network = capture(work.fn, params, x, inline_all=True)
    check_neurons(snn.neurons, network.sites)
    activations = _activations(network, params, x)
    seen = {}

    def observe(site, currents, spikes):
        axes = tuple(a for a in range(spikes.ndim) if a != spikes.ndim + site.channel)
        fired = (spikes > 0).sum(axes)
        means = currents.mean(0), spikes.mean(0)
        seen[site.name] = _Seen(activations[site.name], *means, fired)

    values, streams = observed_by_layer(network, snn, x, steps, delay, observe)
    operations, input_macs, macs = jnp.zeros(()), 0.0, 0.0
    for v, product in products(work.fn, params, x, network):
        macs += product.macs
        if v in streams:
            active = (values[v] != 0).astype(jnp.float32).sum(0)
            operations += (active * product.fan_out).sum() / len(x)
        else:
            input_macs += product.macs
    return seen, operations, jnp.asarray(input_macs), jnp.asarray(macs)


@functools.partial(jax.jit, static_argnames=("reset", "channel"))
def _compare(
    seen: _Seen, params: NeuronParams, reset: str, steps, channel: int
) -> SiteMeasures:
    activation, current, output, fired = seen
    plain = params.leak is None and reset == "subtract"
    level = closed_form(params, current, steps) if plain else jnp.nan
    positive = jax.nn.relu(current)
    clipped = jnp.minimum(positive, params.threshold if plain else jnp.nan)
    parts = (
        activation,
        activation - output,
        activation - positive,
        positive - clipped,
        clipped - level,
        level - output,
    )
    possible = steps * activation.size / activation.shape[channel]  # per channel
    return SiteMeasures(
        fired.mean() / possible,
        (fired == 0).mean(),
        (fired == possible).mean(),
        *[jnp.sqrt((part.astype(jnp.float32) ** 2).mean()) for part in parts],
    )


def spike_trains(
    fn: Callable,
    snn: SNN,
    x: jax.Array,
    *,
    steps: int | None = None,
    delay: int | None = None,
) -> dict[str, jax.Array]:
    """Spikes of every site, name -> bool [T, B, ...], for images x [B, ...].

    Args: as for `measure`.

    Raises: as `snnjax.spiking`.
    """
    steps, delay = checked_fit(snn, steps, delay)
    network = capture(fn, snn.params, x)
    check_neurons(snn.neurons, network.sites)
    trains = {}

    def observe(site, current, spikes):
        trains[site.name] = spikes > 0

    observed_by_layer(network, snn, x, steps, delay, observe)
    return trains


def _activations(network: Network, params, x):
    values, activations = network.arguments(params, x), {}

    def rule(site, current, *operands):
        activations[site.name] = identity(site, current, *operands)
        return activations[site.name]

    evaluate(network.equations, values, rule)
    return activations
