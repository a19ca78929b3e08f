"""The sweep: all images pass from site to site, and each site is fitted on the way.

At every site its calibrators compare the ANN's activation with the spikes that the
calibrated layers below emit; its own spikes go on. The network is cut into stages
between sites, so a sweep costs about T + 1 forward passes of all images, whatever the
depth. Source of the layer-wise scheme: Li et al., ICML 2021; of the single sweep: ours.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._checks import check_finite
from snnjax.calibrators.checks import check_values, checked, parameter_shapes, widen
from snnjax.calibrators.view import Calibrator, Fit, View
from snnjax.conversion.engine import segments
from snnjax.conversion.engine.micro_batches import (
    MicroBatch,
    Plan,
    Values,
    advance,
    begin,
    run_ann,
)
from snnjax.conversion.engine.site_view import (
    Arrival,
    SiteView,
    StageResults,
    by_variable,
    check_unshared,
    stage_results,
)
from snnjax.conversion.engine.spill import LoadedOnAccess, spilled
from snnjax.network.evaluate import identity
from snnjax.network.sites import Site
from snnjax.neurons.by_site import model_of
from snnjax.neurons.models import NeuronParams
from snnjax.snn import SNN


def sweep(
    plan: Plan, snn: SNN, calibrator: Callable[[int], Calibrator], progress: Callable
) -> SNN:
    """Carry all images from site to site and fit site i by ``calibrator(i)``."""
    batches = begin(plan)
    network, stages = batches[0].network, batches[0].stages
    original, params = network.arguments(plan.params), network.arguments(snn.params)
    neurons = dict(snn.neurons)
    sites = [stage.place for stage in stages[:-1]]
    for i, site in enumerate(_in_order(progress, sites)):
        ann = [dict(batch.ann) for batch in batches] if site.signed else []
        here = Arrival(plan, batches, i, params, ann)
        fit = _fit_site(here, original, neurons[site.name], calibrator(i))
        neurons[site.name] = fit.neurons
        params = params | by_variable(network, fit.weights)
    _check_outputs(plan, batches, original)
    leaves = [params[v] for v in network.parameters]
    tree = jax.tree_util.tree_structure(snn.params)
    calibrated = jax.tree_util.tree_unflatten(tree, leaves)
    return dataclasses.replace(snn, params=calibrated, neurons=neurons)


def _in_order(progress: Callable, sites: list[Site]) -> Iterator[Site]:
    if not callable(progress):
        raise ValueError(
            f"progress is {progress!r}; allowed: a function that returns the sites "
            "while it shows how far they are, as tqdm does"
        )
    shown, count = progress(sites), 0
    for site in shown if isinstance(shown, Iterable) else ():
        if count == len(sites) or site is not sites[count]:
            break
        yield site
        count += 1
    else:
        if count == len(sites):
            return
    raise ValueError(
        f"progress returned something of type {type(shown).__name__}, whose item "
        f"{count} is not site {count} of {len(sites)}; allowed: a function that "
        "returns all sites in their order, as tqdm does"
    )


def _fit_site(
    here: Arrival, original: Values, neuron: NeuronParams, calibrate: Calibrator
) -> Fit:
    """Fit the site, and carry both streams over it.

    A function of its own, so that activations and currents are freed before the next.
    """
    activations, maximum = _activations(here, original)
    results = stage_results(here)
    start = Fit(neuron, here.kernels)
    fit = calibrate(SiteView(here, activations, results, maximum), start)
    check_unshared(here.network, here.site, start, fit)
    check_values(here.site, start, fit)
    _carry_spikes(here, fit, results)
    return fit


def _activations(
    here: Arrival, original: Values
) -> tuple[LoadedOnAccess, jax.Array | None]:
    """The ANN's activations at the site, and the maximum if a ReLU there has one.

    The ANN's stream is carried over the site.
    """
    plan, file = here.plan, here.plan.spill_file()
    maximum: jax.Array | None = None

    def carry_ann(batch: MicroBatch):
        nonlocal maximum
        inputs, carried = run_ann(plan, batch, here.i, original)
        if len(inputs) > 1:
            maximum = _shaped_like_threshold(inputs[1], here.site)
        activation = identity(batch.stages[here.i].place, *inputs)
        activation, *carried = spilled([activation, *carried], file)
        advance(batch.ann, batch.stages, here.i, activation, carried)
        return activation

    activations = LoadedOnAccess([carry_ann(batch) for batch in here.batches])
    _check_maximum(here.site, maximum)
    check_finite(f"the activations of site {here.site.name!r}", activations)
    return activations, maximum


def _check_maximum(site: Site, maximum: jax.Array | None) -> None:
    """Raise if the network has a maximum that no threshold can be."""
    if maximum is None or isinstance(maximum, Tracer):
        return
    least, largest = float(jnp.min(maximum)), float(jnp.max(maximum))
    if not (least > 0 and math.isfinite(largest)):  # NaN is not
        raise ValueError(
            f"the maximum of the {site.kind} at site {site.name!r} is {least:g} to "
            f"{largest:g} among the params; allowed: finite and > 0. Train its "
            "logarithm, and give jnp.exp of that"
        )


def _shaped_like_threshold(maximum: jax.Array, site: Site) -> jax.Array:
    """One number per channel of a maximum that may be one for all of them."""
    shape = parameter_shapes(site)["threshold"]
    own = jnp.shape(maximum)[-len(shape) :]
    return jnp.broadcast_to(jnp.reshape(maximum, own).astype(jnp.float32), shape)


def _carry_spikes(here: Arrival, fit: Fit, results: StageResults) -> None:
    """The spikes of the fitted site become sources of later stages."""
    plan, site, file = here.plan, here.site, here.plan.spill_file()
    neuron, params = model_of(plan.model, site.name), widen(fit.neurons, site)
    arriving = zip(here.batches, results(fit.weights), strict=True)
    for batch, ((current, *_), carried) in arriving:
        shape = plan.steps, plan.wait, len(site.shape)
        spikes = segments.fire(neuron, params, current, *shape)
        spikes, *carried = spilled([spikes, *carried], file)
        advance(batch.snn, batch.stages, here.i, spikes, carried)


def _check_outputs(plan: Plan, batches: list[MicroBatch], original: Values) -> None:
    """Raise unless the ANN's outputs are finite, once all sites are passed."""
    outputs = [run_ann(plan, batch, -1, original)[0] for batch in batches]
    names = batches[0].network.output_names()
    for name, parts in zip(names, zip(*outputs, strict=True), strict=True):
        which = f" {name!r}" if name else ""
        check_finite(f"the outputs{which} of the network", parts)


def chained(
    calibrators: Sequence[Calibrator],
    spread: NamedSharding | None,
    view: View,
    fit: Fit,
) -> Fit:
    """All calibrators, one after the other.

    Each fit is copied to all devices; weights are sharded as they were.
    """
    for calibrate in calibrators:
        # A copy, so that what is changed in place is detected as well.
        after = calibrate(view, Fit(fit.neurons, dict(fit.weights)))
        after = checked(view.site, fit, after)
        weights = {
            path: sharding.placed_like(after.weights[path], old, spread)
            for path, old in fit.weights.items()
        }
        fit = Fit(sharding.gathered(after.neurons, spread), weights)
    return fit
