"""The sweep: all images pass from site to site, and each site is fitted on the way.

At every site its calibrators compare the ANN's activation with the spikes that the
calibrated layers below emit; its own spikes go on. The network is cut into stages
between sites, so a sweep costs about T + 1 forward passes of all images, whatever the
depth. Source of the layer-wise scheme: Li et al., ICML 2021; of the single sweep: ours.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._arrays import on_host
from snnjax._checks import check_finite, warn
from snnjax._progress import shown
from snnjax.calibrators.checks import check_values, checked
from snnjax.calibrators.parameters import broadcast, parameter_shapes
from snnjax.calibrators.view import Calibrator, Fit, View
from snnjax.conversion.engine.segments import fire
from snnjax.conversion.engine.site_view import (
    SiteView,
    by_variable,
    check_unshared,
    kernels,
)
from snnjax.conversion.engine.state import Parts, Sweep
from snnjax.network.sites import Site
from snnjax.neurons.models import NeuronParams
from snnjax.snn import SNN


def sweep(
    begin: Sweep, snn: SNN, calibrators: Sequence[Calibrator], title: str = ""
) -> tuple[SNN, Sweep]:
    """Carry all images from site to site, and fit each site by its calibrator.

    Args:
        begin: all images before the first stage.
        snn: whose parameters are fitted.
        calibrators: of each site that fires.
        title: shown before the bar on a terminal.

    Returns:
        The fitted SNN, and all images behind its last site.
    """
    network, neurons = begin.network, dict(snn.neurons)
    here = begin._replace(
        params=network.arguments(snn.params),
        activations=_copied(begin.activations),
        spikes=_copied(begin.activations),
    )
    sites = [stage.place for stage in here.stages[:-1]]
    for i, site in enumerate(shown(sites, title, "site", lambda site: site.name)):
        fit = _fit_site(here, i, neurons[site.name], calibrators[i])
        neurons[site.name] = fit.neurons
        here.params.update(by_variable(network, fit.weights))
    leaves = [here.params[v] for v in network.parameters]
    tree = jax.tree_util.tree_structure(snn.params)
    params = jax.tree_util.tree_unflatten(tree, leaves)
    return dataclasses.replace(snn, params=params, neurons=neurons), here


def _copied(parts: Parts) -> Parts:
    return {v: list(part) for v, part in parts.items()}


def _fit_site(here: Sweep, i: int, neurons: NeuronParams, calibrate: Calibrator) -> Fit:
    """Fit the site, and compute what later stages read, in the ANN and in the SNN.

    This is a function so that activations and currents are freed before the next site.
    """
    site = here.stages[i].place
    # The products before an encoder need what the ANN's stage reads.
    kept = _copied(here.activations) if site.is_encoder else {}
    activations, own_maximum = _pass_ann(here, i)
    before = here._replace(activations=kept)
    view = SiteView(before, i, activations[: here.fitted], own_maximum)
    start = Fit(neurons, kernels(here, i))
    fit = calibrate(view, start)
    check_unshared(here, i, start, fit)
    check_values(site, start, fit)
    run = here.steps, here.wait, len(site.shape), here.snn.code
    model, params = view.model, broadcast(fit.neurons, site)
    for k, (current, *others) in enumerate(view.results(fit.weights)):
        spikes = fire(model, params, current, *run)
        here.advance(here.spikes, i, k, spikes, carried(here, i, others))
    return fit


def _pass_ann(here: Sweep, i: int) -> tuple[list[jax.Array], jax.Array | None]:
    """The ANN's activations at site i, and the maximum if a ReLU there has one."""
    activations, ranges, others = [], [], []
    for k, ((activation, *others), ends) in enumerate(here.run_ann(i)):
        here.advance(here.activations, i, k, activation, carried(here, i, others))
        activations.append(activation)
        ranges.append(ends)
    site = here.stages[i].place
    maximum = others[0] if len(others) > len(here.stages[i].carried) else None
    _check_maximum(site, maximum)  # first: it may be why activations are not finite
    _check_range(site, activations, ranges)
    if maximum is None:
        return activations, None
    return activations, _shaped_like_threshold(maximum, site)


def carried(here: Sweep, i: int, results: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """What stage i carries on, among the last of its results."""
    return results[len(results) - len(here.stages[i].carried) :]


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
        warn(
            f"the activations of site {site.name!r} are 0 for all calibration "
            "images, so its threshold is fitted to no data. Check the scale of the "
            "images and the parameters",
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


def ann_outputs(here: Sweep) -> list[tuple[jax.Array, ...]]:
    """Of each micro-batch the ANN's outputs; raise unless all of them are finite."""
    outputs = [results for results, _ in here.run_ann(-1)]
    names = here.network.output_names()
    for name, parts in zip(names, zip(*outputs, strict=True), strict=True):
        which = f" {name!r}" if name else ""
        check_finite(f"the outputs{which} of the network", parts)
    return outputs


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
