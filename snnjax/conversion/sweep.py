"""The sweep: all images pass from site to site, and each site is fitted on the way.

At every site the ANN's activation and the spikes that the calibrated layers below send
meet; its calibrators fit it; its spikes go on. The network is cut into stages between
sites, so a sweep costs about T + 1 forward passes of all images, whatever the depth.
Source of the layer-wise scheme: Li et al., ICML 2021; of the single sweep: ours.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from snnjax._trees import is_floating
from snnjax.conversion import arrival, checks, fits, streams
from snnjax.conversion.arrival import Arrival
from snnjax.conversion.chunks import Chunk, Plan, advance, begin, run_ann, run_snn
from snnjax.conversion.view import Calibrator, Fit, View
from snnjax.conversion.waiting import Waiting, set_aside
from snnjax.network.equations import Site, identity
from snnjax.neurons import NeuronParams
from snnjax.simulation import sharding
from snnjax.simulation.snn import SNN


def sweep(plan: Plan, snn: SNN, calibrator: Callable[[int], Calibrator], progress):
    """Carry all images from site to site and fit site i by ``calibrator(i)``.

    Returns:
        The fitted SNN, and the chunks as they stand before the readout.
    """
    chunks = begin(plan)
    network, stages = chunks[0].network, chunks[0].stages
    original, params = network.arguments(plan.params), network.arguments(snn.params)
    neurons = dict(snn.neurons)
    found = [stage.place for stage in stages[:-1]]
    for i, site in enumerate(_in_order(progress, found)):
        here = Arrival(plan, chunks, i, params)
        fit = _fit_site(here, original, neurons[site.name], calibrator(i))
        neurons[site.name] = fit.neuron
        params = params | arrival.by_variable(network, fit.weights)
    leaves = [params[v] for v in network.parameters]
    tree = jax.tree_util.tree_structure(snn.params)
    calibrated = jax.tree_util.tree_unflatten(tree, leaves)
    return dataclasses.replace(snn, params=calibrated, neurons=neurons), chunks


def _in_order(progress: Callable, found: list[Site]) -> Iterator[Site]:
    count = 0
    for site in (progress(found) if callable(progress) else None) or ():
        if count == len(found) or site is not found[count]:
            break
        yield site
        count += 1
    else:
        if count == len(found):
            return
    raise ValueError(
        f"progress gave back other things than the {len(found)} sites; allowed: a "
        "function that gives back all of them in their order, as tqdm does"
    )


def _activations(here: Arrival, original) -> Waiting:
    """What the ANN gives at the site; its stream is carried over it."""
    plan, shelf = here.plan, here.plan.shelf()

    def carried_over(chunk: Chunk):
        inputs, carried = run_ann(plan, chunk, here.i, original)
        activation = identity(chunk.stages[here.i].place, *inputs)
        activation, *carried = set_aside([activation, *carried], shelf)
        advance(chunk.ann, chunk.stages, here.i, activation, carried)
        return activation

    activations = Waiting([carried_over(chunk) for chunk in here.chunks])
    checks.check_finite(f"the activations of site {here.site.name!r}", activations)
    return activations


def _fit_site(here: Arrival, original, neuron: NeuronParams, calibrate) -> Fit:
    """Fit the site, and carry both streams over it.

    A function of its own, so that activations and currents are freed before the next.
    """
    activations = _activations(here, original)
    currents = arrival.currents(here)
    start = Fit(neuron, here.kernels)
    fit = calibrate(arrival.view(here, activations, currents), start)
    checks.check_unshared(here.network, here.site, start.weights, fit.weights)
    checks.check_values(here.site, start, fit)
    _send(here, fit, currents)
    return fit


def _send(here: Arrival, fit: Fit, currents) -> None:
    """The spikes of the site as it is fitted go on."""
    plan, site, shelf = here.plan, here.site, here.plan.shelf()
    neuron = arrival.widen(fit.neuron, site)
    stepped = zip(here.chunks, currents(fit.weights), strict=True)
    for chunk, ((current, *_), carried) in stepped:
        spikes = streams.fire(neuron, current, plan.steps, plan.delay, len(site.shape))
        spikes, *carried = set_aside([spikes, *carried], shelf)
        advance(chunk.snn, chunk.stages, here.i, spikes, carried)


def chained(calibrators, spread, view: View, fit: Fit) -> Fit:
    """All calibrators, one after the other.

    Each fit is copied to all devices; weights are sharded as they were.
    """
    for calibrate in calibrators:
        # A copy, so that what is changed in place is seen as well.
        found = calibrate(view, Fit(fit.neuron, dict(fit.weights)))
        found = checks.checked(view.site, fit, found)
        weights = {
            path: sharding.placed_like(found.weights[path], old, spread)
            for path, old in fit.weights.items()
        }
        fit = Fit(sharding.gathered(found.neuron, spread), weights)
    return fit


# ---------------------------------------------------------------- the outputs


def ann_outputs(plan: Plan, chunks: list[Chunk]) -> list[list[jax.Array]]:
    """The ANN's outputs for every micro-batch, once all sites are passed."""
    network = chunks[0].network
    original = network.arguments(plan.params)
    outputs = [run_ann(plan, chunk, -1, original)[0] for chunk in chunks]
    names = network.output_names()
    for name, made in zip(names, zip(*outputs, strict=True), strict=True):
        which = f" {name!r}" if name else ""
        checks.check_finite(f"the outputs{which} of the network", made)
    return outputs


def readout_error(plan: Plan, snn: SNN, chunks: list[Chunk], outputs):
    """Mean over images and positions of ANN output - mean SNN output, per channel."""
    network = chunks[0].network
    params = network.arguments(snn.params)
    errors = []
    for chunk, ann in zip(chunks, outputs, strict=True):
        spiking, _ = run_snn(plan, chunk, -1, params)
        errors.append([_error(a, s) for a, s in zip(ann, spiking, strict=True)])
    joined = [plan.join(parts) for parts in zip(*errors, strict=True)]
    corrections = [
        _lacking_output(error, channel)
        for error, channel in zip(joined, network.channels, strict=True)
    ]
    corrections = sharding.gathered(corrections, plan.spread)
    return jax.tree_util.tree_unflatten(network.tree, corrections)


def _error(ann: jax.Array, spiking: jax.Array) -> jax.Array:
    """ANN output - mean SNN output; nothing where it is no answer, as a mask."""
    if not is_floating(ann):
        return jnp.zeros_like(ann, jnp.float32)
    mean = spiking if spiking.ndim == ann.ndim else spiking.mean(0)
    return ann.astype(jnp.float32) - mean


def _lacking_output(error: jax.Array, channel: int) -> jax.Array:
    """Mean error of each channel; of one number per image, which has none, the mean."""
    if error.ndim == 1:
        return error.mean()
    return fits.bias_correction(error, jnp.zeros((), jnp.float32), channel)
