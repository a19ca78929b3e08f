"""The sweep: all images pass from site to site, and each site is fitted on the way.

At every site its calibrators compare the ANN's activation with the spikes that the
calibrated layers below emit; its own spikes go on. The network is cut into stages
between sites, so a sweep costs about T + 1 forward passes of all images, whatever the
depth. Source of the layer-wise scheme: Li et al., ICML 2021; of the single sweep: ours.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
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
from snnjax.conversion.engine.progress import shown
from snnjax.conversion.engine.site_view import (
    Arrival,
    SiteView,
    StageResults,
    by_variable,
    check_unshared,
    stage_results,
)
from snnjax.network.evaluate import identity
from snnjax.network.sites import Site
from snnjax.neurons.by_site import model_of
from snnjax.neurons.models import NeuronParams
from snnjax.snn import SNN


def sweep(
    plan: Plan, snn: SNN, calibrator: Callable[[int], Calibrator], title: str = ""
) -> SNN:
    """Carry all images from site to site, and fit site i by ``calibrator(i)``.

    ``title`` is shown before the bar on a terminal.
    """
    batches = begin(plan)
    network, stages = batches[0].network, batches[0].stages
    original, params = network.arguments(plan.params), network.arguments(snn.params)
    neurons = dict(snn.neurons)
    sites = [stage.place for stage in stages[:-1]]
    for i, site in enumerate(shown(sites, title)):
        ann = [dict(batch.ann) for batch in batches] if site.signed else []
        here = Arrival(plan, batches, i, params, ann)
        fit = _fit_site(here, original, neurons[site.name], calibrator(i))
        neurons[site.name] = fit.neuron
        params = params | by_variable(network, fit.weights)
    _check_outputs(plan, batches, original)
    leaves = [params[v] for v in network.parameters]
    tree = jax.tree_util.tree_structure(snn.params)
    calibrated = jax.tree_util.tree_unflatten(tree, leaves)
    return dataclasses.replace(snn, params=calibrated, neurons=neurons)


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
) -> tuple[list[jax.Array], jax.Array | None]:
    """The ANN's activations at the site, and the maximum if a ReLU there has one.

    The ANN's stream is carried over the site.
    """
    activations, maximum = [], None
    for batch in here.batches:
        inputs, carried = run_ann(here.plan, batch, here.i, original)
        if len(inputs) > 1:
            maximum = _shaped_like_threshold(inputs[1], here.site)
        activation = identity(batch.stages[here.i].place, *inputs)
        advance(batch.ann, batch.stages, here.i, activation, carried)
        activations.append(activation)
    _check_maximum(here.site, maximum)
    check_finite(f"the activations of site {here.site.name!r}", activations)
    if all(map(_is_zero, activations)):
        warnings.warn(
            f"the activations of site {here.site.name!r} are 0 for all calibration "
            "images, so its threshold is fitted to no data. Check the scale of the "
            "images and the parameters",
            stacklevel=5,
        )
    return activations, maximum


def _is_zero(array: jax.Array) -> bool:
    """Whether all numbers are 0, as far as this process has and knows them."""
    if isinstance(array, Tracer):
        return False
    return not any(np.asarray(part.data).any() for part in array.addressable_shards)


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
    plan, site = here.plan, here.site
    neuron, params = model_of(plan.neuron, site.name), widen(fit.neuron, site)
    arriving = zip(here.batches, results(fit.weights), strict=True)
    for batch, ((current, *_), carried) in arriving:
        shape = plan.steps, plan.wait, len(site.shape)
        spikes = segments.fire(neuron, params, current, *shape)
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
    batch_sharding: NamedSharding | None,
    view: View,
    fit: Fit,
) -> Fit:
    """All calibrators, one after the other.

    Parameters of neurons are copied to all devices; weights keep their sharding.
    """
    for calibrate in calibrators:
        # A copy, so that what is changed in place is detected as well.
        after = calibrate(view, Fit(fit.neuron, dict(fit.weights)))
        after = checked(view.site, fit, after)
        weights = {
            path: _placed_like(after.weights[path], old, batch_sharding)
            for path, old in fit.weights.items()
        }
        everywhere = sharding.replicated(batch_sharding)
        fit = Fit(sharding.put(after.neuron, everywhere), weights)
    return fit


def _placed_like(
    new: jax.Array, old: jax.Array, batch_sharding: NamedSharding | None
) -> jax.Array:
    """``new`` with the sharding of ``old``, if there is a mesh."""
    if batch_sharding is None or new is old or isinstance(old, Tracer):
        return new
    return sharding.put(new, old.sharding)
