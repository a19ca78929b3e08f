"""The sweep: all images pass from site to site, and each site is fitted on the way.

At every site the ANN's activation and the spikes that the calibrated layers below send
meet; its calibrators fit it; its spikes go on. The network is cut into stages between
sites, so a sweep costs about T + 1 forward passes of all images, whatever the depth.
Source of the layer-wise scheme: Li et al., ICML 2021; of the single sweep: ours.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from snnjax._trees import is_floating, is_kernel
from snnjax.conversion import checks, fits, streams
from snnjax.conversion.chunks import (
    Chunk,
    Plan,
    advance,
    are_streams,
    begin,
    run_ann,
    run_snn,
)
from snnjax.conversion.streams import Current
from snnjax.conversion.view import Calibrator, Fit, View
from snnjax.conversion.waiting import Waiting, fetched, set_aside
from snnjax.network.equations import Network, Site, identity
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
        fit = _fit_site(plan, chunks, i, original, params, neurons, calibrator(i))
        neurons[site.name] = fit.neuron
        params.update(_by_variable(network, fit.weights))
    leaves = [params[v] for v in network.parameters]
    tree = jax.tree_util.tree_structure(snn.params)
    calibrated = jax.tree_util.tree_unflatten(tree, leaves)
    return dataclasses.replace(snn, params=calibrated, neurons=neurons), chunks


def _in_order(progress: Callable, found: list[Site]) -> Iterator[Site]:
    count = 0
    for site in progress(found):
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


def _fit_site(plan: Plan, chunks, i: int, original, params, neurons, calibrate):
    """Fit one site and carry both streams over it.

    A function of its own, so that the currents are freed before the next site.
    """
    network, site = chunks[0].network, chunks[0].stages[i].place
    shelf = plan.shelf()
    activations = Waiting(
        [_activation(plan, chunk, i, original, shelf) for chunk in chunks]
    )
    checks.check_finite(f"the activations of site {site.name!r}", activations)
    kernels = _kernels(network, site, params)
    currents = _currents(plan, chunks, i, params)
    feed = functools.partial(_feed, plan, chunks, i, params, kernels)
    thinned = _thinned(plan, currents, site)
    outputs = functools.partial(_outputs, plan, thinned, site)
    images = plan.x.shape[0]
    view = View(
        site, plan.steps, plan.delay, images, activations, outputs, feed, plan.join
    )
    start = Fit(neurons[site.name], kernels)
    fit = calibrate(view, start)
    checks.check_unshared(network, site, kernels, fit.weights)
    checks.check_values(site, start, fit)
    neuron = _widen(fit.neuron, site)
    shelf = plan.shelf()
    stepped = zip(chunks, currents(fit.weights), strict=True)
    for chunk, ((current, *_), carried) in stepped:
        spikes = streams.fire(neuron, current, plan.steps, plan.delay, len(site.shape))
        spikes, *carried = set_aside([spikes, *carried], shelf)
        advance(chunk.snn, chunk.stages, i, spikes, carried)
    return fit


def _activation(plan: Plan, chunk: Chunk, i: int, original, shelf):
    """Carry the ANN stream of a micro-batch over a site."""
    inputs, carried = run_ann(plan, chunk, i, original)
    activation = identity(chunk.stages[i].place, *inputs)
    activation, *carried = set_aside([activation, *carried], shelf)
    advance(chunk.ann, chunk.stages, i, activation, carried)
    return activation


def chained(calibrators, spread, view: View, fit: Fit) -> Fit:
    """All calibrators, one after the other; each fit is copied to all devices."""
    for calibrate in calibrators:
        # A copy, so that what is changed in place is seen as well.
        found = calibrate(view, Fit(fit.neuron, dict(fit.weights)))
        found = checks.checked(view.site, fit, found)
        changed = {p: w for p, w in found.weights.items() if w is not fit.weights[p]}
        weights = fit.weights | sharding.gathered(changed, spread)
        fit = Fit(sharding.gathered(found.neuron, spread), weights)
    return fit


# ------------------------------------------------------- what calibrators see


def _currents(plan: Plan, chunks: list[Chunk], i: int, params):
    """weights -> the current (and what is carried on) of every micro-batch."""

    def compute(weights):
        changed = params | _by_variable(chunks[0].network, weights)
        return (run_snn(plan, chunk, i, changed) for chunk in chunks)

    return _cached(plan, compute, chunks[0].stages[i].place.shape)


def _thinned(plan: Plan, currents, site: Site):
    """(weights, stride) -> the current of every micro-batch, of fewer positions."""

    def all_of_them(weights):
        return (current for (current, *_), _ in currents(weights))

    @functools.cache
    def at(stride: int):
        if stride == 1:
            return all_of_them
        fewer = functools.partial(
            fits.thin, stride=stride, ndim=len(site.shape), channel=site.channel
        )
        left = jax.eval_shape(fewer, jax.ShapeDtypeStruct(site.shape, jnp.float32))
        beside = [site.shape] if _fit_budget(plan, site.shape) else []
        return _cached(plan, lambda w: map(fewer, all_of_them(w)), left.shape, *beside)

    return lambda weights, stride: at(stride)(weights)


def _cached(plan: Plan, compute, *shapes: Sequence[int]):
    """``compute(weights)``, kept while the weights are the same, if the budget allows.

    Args:
        shapes: of all that is kept then, for one image and one step.
    """
    if not _fit_budget(plan, *shapes):
        return compute
    kept = []

    def latest(weights):
        of = tuple(weights.values())
        if not kept or any(a is not b for a, b in zip(of, kept[0], strict=True)):
            kept.clear()  # before the new ones need the memory
            kept[:] = [of, list(compute(weights))]
        return kept[1]

    return latest


def _fit_budget(plan: Plan, *shapes: Sequence[int]) -> bool:
    times = 1 if plan.means else plan.steps
    share = plan.x.shape[0] // sharding.size(plan.spread)
    return 4 * share * times * sum(map(math.prod, shapes)) <= plan.budget


def _feed(plan: Plan, chunks: list[Chunk], i: int, params, kernels, batch, time):
    """`Current` for ``batch`` images at a time, and its sources for all images."""
    network, stages = plan.captured(batch)
    stage = stages[i]
    marked = are_streams(plan, network, stage)
    sources, axes = [], []
    for v, stream in zip(stage.sources, marked, strict=True):
        on_their_way = v in chunks[0].snn
        axes.append((1 if stream and time else 0) if on_their_way else None)
        if not on_their_way:
            sources.append(
                network.constants[v] if v in network.constants else params[v]
            )
            continue
        values = [fetched(chunk.snn[v]) for chunk in chunks]
        if stream and not time:
            values = [streams.mean(value, plan.steps) for value in values]
        sources.append(streams.concatenate(plan.spread, values, axes[-1]))
    paths = [network.parameters.get(v) for v in stage.sources]
    slots = tuple(paths.index(path) for path in kernels)
    if time:
        steps, ndim = plan.steps, len(stage.place.shape)
    else:  # of means, T does not matter: one program for every T
        marked, steps, ndim = (False,) * len(marked), 1, None
    return Current(stage.segment, marked, steps, slots, tuple(axes), ndim), sources


def _outputs(
    plan: Plan, thinned, site: Site, fit: Fit, stride: int = 1, paced: bool = False
) -> Iterator:
    """Mean outputs of a site, perhaps with pace, one micro-batch after the other."""
    output = streams.paced if paced else streams.output
    neuron, ndim = _widen(fit.neuron, site), len(site.shape)
    potential = fits.thin(neuron.initial_potential, stride, ndim, site.channel)
    neuron = neuron._replace(initial_potential=potential)
    for current in thinned(fit.weights, stride):
        yield output(neuron, current, plan.steps, plan.delay, ndim)


def _widen(neuron: NeuronParams, site: Site) -> NeuronParams:
    """The same in one shape whatever the recipe, so that all use one program."""
    return neuron._replace(
        **{
            name: jnp.broadcast_to(getattr(neuron, name), shape)
            for name, shape in checks.shapes(site).items()
        }
    )


def _kernels(network: Network, site, params) -> dict[str, jax.Array]:
    """The weights that feed a site, without its biases and norms."""
    return {
        network.parameters[v]: params[v]
        for v in network.feeds[site.name]
        if is_kernel(params[v])
    }


def _by_variable(network: Network, weights: dict[str, jax.Array]):
    variables = {path: v for v, path in network.parameters.items()}
    return {variables[path]: weight for path, weight in weights.items()}


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
