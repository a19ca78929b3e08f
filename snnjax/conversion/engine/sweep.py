"""The sweep: all images pass from site to site, and each site is fitted on the way.

At every site its calibrators compare the ANN's activation with the spikes that the
calibrated layers below emit; its own spikes go on. The network is cut into stages
between sites, so a sweep costs about T + 1 forward passes of all images, whatever the
depth. Source of the layer-wise scheme: Li et al., ICML 2021; of the single sweep: ours.
"""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._arrays import on_host, wide
from snnjax._checks import check_finite
from snnjax._progress import shown
from snnjax.calibrators.checks import check_values, checked
from snnjax.calibrators.parameters import broadcast, parameter_shapes
from snnjax.calibrators.view import Calibrator, Fit, View
from snnjax.conversion.engine import segments
from snnjax.conversion.engine.micro_batches import (
    MicroBatch,
    Plan,
    Values,
    advance,
    begin,
    mean_readout,
    run_ann,
    run_snn,
    split,
)
from snnjax.conversion.engine.site_view import (
    Arrival,
    SiteView,
    StageResults,
    by_variable,
    check_unshared,
    stage_results,
)
from snnjax.network.sites import Site
from snnjax.neurons.by_site import model_of
from snnjax.neurons.models import NeuronParams
from snnjax.snn import SNN


def sweep(
    plan: Plan, snn: SNN, calibrators: Sequence[Calibrator], title: str = ""
) -> tuple[SNN, jax.Array | None]:
    """Carry all images from site to site, and fit each site by its calibrator.

    Args:
        plan, snn: what is swept.
        calibrators: of each site that fires.
        title: shown before the bar on a terminal.

    Returns:
        The fitted SNN, and the error of its outputs (`_output_error`) on the images
        that no calibrator saw; None if the plan has no judges.
    """
    batches = begin(plan)
    fit_batches, judge_batches = split(plan, batches)
    network, stages = plan.network, plan.stages
    original, params = network.arguments(plan.params), network.arguments(snn.params)
    neurons = dict(snn.neurons)
    sites = [stage.place for stage in stages[:-1]]
    for i, site in enumerate(shown(sites, title, "site", lambda site: site.name)):
        ann = [dict(batch.ann) for batch in fit_batches] if site.signed else []
        here = Arrival(plan, fit_batches, judge_batches, i, params, ann)
        fit = _fit_site(here, original, neurons[site.name], calibrators[i])
        neurons[site.name] = fit.neurons
        params = params | by_variable(network, fit.weights)
    outputs = _ann_outputs(plan, batches, original)
    error = None
    if plan.judges:
        of_judges = [outputs[batch.number] for batch in judge_batches or batches]
        readouts = [
            mean_readout(plan, batch, params) for batch in judge_batches or batches
        ]
        error = _output_error(readouts, of_judges)
    leaves = [params[v] for v in network.parameters]
    tree = jax.tree_util.tree_structure(snn.params)
    params_tree = jax.tree_util.tree_unflatten(tree, leaves)
    return dataclasses.replace(snn, params=params_tree, neurons=neurons), error


def _fit_site(
    here: Arrival, original: Values, neuron: NeuronParams, calibrate: Calibrator
) -> Fit:
    """Fit the site, and compute what later stages read, in the ANN and in the SNN.

    This is a function so that activations and currents are freed before the next site.
    """
    activations, maximum = _activations(here, original)
    results = stage_results(here)
    start = Fit(neuron, here.kernels)
    fit = calibrate(SiteView(here, activations, results, maximum), start)
    check_unshared(here, start, fit)
    check_values(here.site, start, fit)
    _carry_spikes(here, fit, results)
    return fit


def _activations(
    here: Arrival, original: Values
) -> tuple[list[jax.Array], jax.Array | None]:
    """The ANN's activations at the site, and the maximum if a ReLU there has one.

    The ANN's stream is carried over the site.
    """
    activations, ranges, maximum = [], [], None
    for batch in (*here.batches, *here.judges):
        results, carried_values = run_ann(here.plan, batch, here.i, original)
        activation, *maxima, ends = results
        if maxima:
            maximum = _shaped_like_threshold(maxima[0], here.site)
        advance(batch.ann, here.plan.stages, here.i, activation, carried_values)
        activations.append(activation)
        ranges.append(ends)
    activations = activations[: len(here.batches)]
    _check_maximum(here.site, maximum)
    _check_range(here.site, activations, ranges[: len(here.batches)])
    return activations, maximum


def _check_range(
    site: Site, activations: Sequence[jax.Array], ranges: Sequence[jax.Array]
) -> None:
    """Raise if activations are not finite; warn if all of them are 0."""
    if any(isinstance(ends, Tracer) for ends in ranges):
        return
    ends = np.asarray(jax.device_get(ranges))
    if not np.isfinite(ends).all():
        check_finite(f"the activations of site {site.name!r}", activations)
    if not ends.any():
        warnings.warn(
            f"the activations of site {site.name!r} are 0 for all calibration "
            "images, so its threshold is fitted to no data. Check the scale of the "
            "images and the parameters",
            stacklevel=6,
        )


def _check_maximum(site: Site, maximum: jax.Array | None) -> None:
    """Raise if the network has a maximum that no threshold can be."""
    if maximum is None or isinstance(maximum, Tracer):
        return
    least, largest = float(np.min(maximum)), float(np.max(maximum))
    if not (least > 0 and math.isfinite(largest)):  # NaN is not
        raise ValueError(
            f"the maximum of the {site.kind} at site {site.name!r} is {least:g} to "
            f"{largest:g} among the params; allowed: finite and > 0. Train its "
            "logarithm, and give jnp.exp of that"
        )


def _shaped_like_threshold(maximum: jax.Array, site: Site) -> jax.Array:
    """One number per channel of a maximum that may be one for all of them."""
    shape = parameter_shapes(site)["threshold"]
    maximum = on_host(maximum)
    own = maximum.reshape(maximum.shape[-len(shape) :]).astype(np.float32)
    return own + np.zeros(shape, np.float32)


def _carry_spikes(here: Arrival, fit: Fit, results: StageResults) -> None:
    """The spikes of the fitted site become sources of later stages."""
    plan, site = here.plan, here.site
    neuron, params = model_of(plan.model, site.name), broadcast(fit.neurons, site)
    weights = here.params | by_variable(here.network, fit.weights)
    of_judges = (run_snn(plan, batch, here.i, weights) for batch in here.judges)
    all_results = itertools.chain(results(fit.weights), of_judges)
    batches = (*here.batches, *here.judges)
    run = plan.steps, plan.wait, len(site.shape), plan.code
    for batch, (currents, values) in zip(batches, all_results, strict=True):
        spikes = segments.fire(neuron, params, currents[0], *run)
        advance(batch.snn, plan.stages, here.i, spikes, values)


def _ann_outputs(
    plan: Plan, batches: list[MicroBatch], original: Values
) -> list[list[jax.Array]]:
    """The ANN's outputs of each micro-batch; raise unless all of them are finite."""
    outputs = [run_ann(plan, batch, -1, original)[0] for batch in batches]
    names = plan.network.output_names()
    for name, parts in zip(names, zip(*outputs, strict=True), strict=True):
        which = f" {name!r}" if name else ""
        check_finite(f"the outputs{which} of the network", parts)
    return outputs


@jax.jit
def _output_error(
    readouts: Sequence[list[jax.Array]], outputs: Sequence[list[jax.Array]]
) -> jax.Array:
    """sum |y_snn - y_ann|^2 / sum |y_ann|^2, the sum over the network's outputs.

    Args:
        readouts, outputs: of every micro-batch, all outputs of the SNN and of the ANN.
    """
    error = jnp.zeros(())
    for snn_parts, ann_parts in zip(
        zip(*readouts, strict=True), zip(*outputs, strict=True), strict=True
    ):
        if jnp.issubdtype(ann_parts[0].dtype, jnp.floating):
            parts = list(zip(snn_parts, ann_parts, strict=True))
            distance = sum(jnp.sum((wide(s) - wide(y)) ** 2) for s, y in parts)
            size = sum(jnp.sum(wide(y) ** 2) for _, y in parts)
            error += distance / jnp.where(size > 0, size, 1)
    return error


def chained(
    calibrators: Sequence[Calibrator], batch_sharding: NamedSharding | None
) -> Calibrator:
    """All calibrators, one after the other.

    Parameters of neurons are copied to all devices; weights keep their sharding.
    """

    def calibrate_all(view: View, fit: Fit) -> Fit:
        for calibrate in calibrators:
            # A copy, so that what is changed in place is detected as well.
            after = calibrate(view, Fit(fit.neurons, dict(fit.weights)))
            after = checked(view.site, fit, after)
            weights = {
                path: _placed_like(after.weights[path], old, batch_sharding)
                for path, old in fit.weights.items()
            }
            everywhere = sharding.replicated(batch_sharding)
            fit = Fit(sharding.put(after.neurons, everywhere), weights)
        return fit

    return calibrate_all


def _placed_like(
    new: jax.Array, old: jax.Array, batch_sharding: NamedSharding | None
) -> jax.Array:
    """``new`` with the sharding of ``old``, if there is a mesh."""
    if batch_sharding is None or new is old or isinstance(old, Tracer):
        return new
    return sharding.put(new, old.sharding)
