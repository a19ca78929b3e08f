"""The sweep: all images pass from site to site, and each site is fitted on the way.

At every site its calibrators compare the ANN's activation with the spikes that the
calibrated layers below send; then the site's spikes go on. The network is cut into
stages between sites, so a sweep costs about T + 1 forward passes of all images,
whatever the depth. Source of the layer-wise scheme: Li et al., ICML 2021; of the single
sweep: ours.
"""

import dataclasses
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from snnjax._arrays import by_numpy_or_xla
from snnjax._checks import check_finite, warn
from snnjax._progress import shown
from snnjax._types import Per
from snnjax.calibrators.checks import check_values, checked
from snnjax.calibrators.parameters import broadcast, parameter_shapes
from snnjax.calibrators.running import fire, number_of_spikes
from snnjax.calibrators.spending import Curve
from snnjax.calibrators.view import Calibrator, Fit
from snnjax.conversion.engine.calibration import Boundary, Calibration, copied
from snnjax.conversion.engine.site_view import SiteView, by_variable
from snnjax.network.sites import Site
from snnjax.neurons.models import NeuronParams
from snnjax.sharding import put
from snnjax.snn import SNN, check_weights


class Swept(NamedTuple):
    """What a sweep gives: the fitted SNN, and all images before the last stage."""

    snn: SNN
    boundary: Boundary


class SiteActivations(NamedTuple):
    """The ANN's activations at a site.

    Attributes:
        batches: [B, ...] of each micro-batch.
        own_maximum: of a clipped or quantized ReLU, shaped like V_th; None of others.
        own_finest: difference of two neighboring values of a quantized ReLU, shaped
            likewise; None of others.
    """

    batches: list[jax.Array]
    own_maximum: np.ndarray | None = None
    own_finest: np.ndarray | None = None


def sweep(
    calibration: Calibration, chains: Iterable[Sequence[Calibrator]], title: str
) -> Swept:
    """Fit every site.

    Args:
        chains: the calibrators of each firing site, in order.
        title: what the sweep is for, shown before the bar on a terminal.
    """
    boundary = calibration.start()
    neurons = dict(calibration.snn.neurons)
    bar = shown(calibration.sites, f"{title}: ", "site", lambda site: site.name)
    for stage_number, (site, chain) in enumerate(zip(bar, chains, strict=True)):
        fit = _fit_site(calibration, boundary, stage_number, neurons[site.name], chain)
        neurons[site.name] = fit.neurons
        boundary.params.update(by_variable(calibration.network, fit.weights))
    leaves = [boundary.params[variable] for variable in calibration.network.parameters]
    structure = jax.tree_util.tree_structure(calibration.snn.params)
    params = jax.tree_util.tree_unflatten(structure, leaves)
    snn = dataclasses.replace(calibration.snn, params=params, neurons=neurons)
    return Swept(snn, boundary)


def survey(
    calibration: Calibration,
    zones: Sequence[float] | None,
    per_site: Mapping[str, Per],
) -> list[dict[str, Curve]]:
    """For each last zone, the curves of these sites by name; one pass of the ANN.

    Args:
        zones: last zones that take the place of the model's own; None: that alone.
        per_site: name of each site -> what has a threshold of its own there.
    """
    curves_of_zones: list[dict[str, Curve]] = [{} for _ in zones or (None,)]
    for view in views(calibration, per_site):
        name = view.site.name
        site_zones = tuple(zones or (view.model.last_zone,))
        site_curves = view.curves(site_zones, per_site[name])
        for curves, curve in zip(curves_of_zones, site_curves, strict=True):
            curves[name] = curve
    return curves_of_zones


def views(calibration: Calibration, names: Container[str]) -> Iterator[SiteView]:
    """The view of each of these firing sites, in order; one pass of the ANN.

    A view holds the activations of its site, so many views take much memory.
    """
    boundary = calibration.start()
    bar = shown(calibration.sites, "thresholds: ", "site", lambda site: site.name)
    for stage_number, site in enumerate(bar):
        activations = _pass_ann(calibration, boundary, stage_number)
        if site.name in names:
            yield SiteView(calibration, boundary, stage_number, *activations)


def _fit_site(
    calibration: Calibration,
    boundary: Boundary,
    stage_number: int,
    neurons: NeuronParams,
    chain: Sequence[Calibrator],
) -> Fit:
    """Fit a site, and compute what later stages read, in the ANN and in the SNN.

    This is a function, so that activations and currents are freed before the next site.
    """
    site = calibration.sites[stage_number]
    # The products before an encoder need what the ANN's stage reads, which `_pass_ann`
    # drops. Other sites need nothing of it, so that memory is free.
    ann_sources = copied(boundary.activations) if site.is_encoder else {}
    activations = _pass_ann(calibration, boundary, stage_number)
    view = SiteView(
        calibration,
        boundary._replace(activations=ann_sources),
        stage_number,
        *activations,
    )
    fit = start = Fit(neurons, view.weights)
    for calibrate in chain:
        # The calibrator gets a copy, so that weights it changes in place are noticed.
        changed = calibrate(view, Fit(fit.neurons, dict(fit.weights)))
        fit = checked(view, fit, changed)
        fit = _placed_like(start, fit, calibration.batch_sharding)
    check_values(site, start, fit)
    neurons_in_full = broadcast(fit.neurons, site)

    def results_with_spikes() -> Iterator[tuple[Any, Sequence[jax.Array]]]:
        for batch, results in enumerate(view.results(fit.weights)):
            fired = fire(view.dynamics, neurons_in_full, results.outputs[0])
            spikes = number_of_spikes(view.dynamics, neurons_in_full, fired)
            boundary.spike_counts[batch].append(spikes)
            yield fired.output, results.carried

    calibration.advance(stage_number, boundary.spikes, results_with_spikes())
    return fit


def _placed_like(start: Fit, fit: Fit, batch_sharding: NamedSharding | None) -> Fit:
    """The weights with the sharding that they had at the start."""
    if batch_sharding is None:
        return fit
    weights = dict(fit.weights)
    for path, original in start.weights.items():
        if weights[path] is not original:
            weights[path] = put(weights[path], original.sharding)
    return fit._replace(weights=weights)


def _pass_ann(
    calibration: Calibration, boundary: Boundary, stage_number: int
) -> SiteActivations:
    """Carry the ANN's images past a site, and return the activations there."""
    batches = []
    # A ReLU has no operands, a clipped one its maximum, and a quantized one that and L.
    own_operands: list[Any] = []

    def outputs_and_carried() -> Iterator[tuple[jax.Array, Sequence[jax.Array]]]:
        for results in calibration.run_ann(stage_number, boundary.activations):
            activation, *operands = results.outputs
            batches.append(activation)
            own_operands[:] = operands
            yield activation, results.carried

    # This reads all of them, which fills the lists.
    calibration.advance(stage_number, boundary.activations, outputs_and_carried())
    site = calibration.sites[stage_number]
    # Operands do not depend on the images, so those of any micro-batch will do. A
    # maximum is checked first, since it may be why activations are infinite.
    maximum, levels = [*own_operands, None, None][:2]
    if maximum is not None:
        _check_maximum(site, maximum)
        maximum = _shaped_like_threshold(maximum, site)
    _check_activations(calibration, site, batches)
    finest = None if levels is None else maximum / np.asarray(levels)
    return SiteActivations(batches, maximum, finest)


@by_numpy_or_xla
def _ends(activation: Any) -> list[Any]:
    """The least and the largest number."""
    return [activation.min().astype(np.float32), activation.max().astype(np.float32)]


def _check_activations(
    calibration: Calibration, site: Site, batches: Sequence[jax.Array]
) -> None:
    """Raise if activations are not finite; warn if all of them are 0."""
    ends = np.asarray(jax.device_get([_ends(batch) for batch in batches]))
    if not np.isfinite(ends).all():
        # If weights are the cause, it names them. To read all of them takes long where
        # they lie in a file, so they are read only now.
        check_weights(calibration.snn.params)
        check_finite(f"the activations of site {site.name!r}", batches)
    if not ends.any():
        warn(
            f"the activations of site {site.name!r} are 0 for all calibration "
            "images, so its threshold is fitted to no data. Check the scale of the "
            "images and the parameters"
        )


def _check_maximum(site: Site, maximum: jax.Array) -> None:
    """Raise if the network has a maximum that no threshold can be."""
    lowest = float(np.min(maximum))
    highest = float(np.max(maximum))
    is_usable = lowest > 0 and math.isfinite(highest)  # false of NaN, too
    if not is_usable:
        raise ValueError(
            f"the maximum of the {site.kind} at site {site.name!r} is {lowest:g} to "
            f"{highest:g} among the params; allowed: finite and > 0. Train its "
            "logarithm, and give jnp.exp of that"
        )


def _shaped_like_threshold(maximum: jax.Array, site: Site) -> np.ndarray:
    """One number per channel of a maximum that may be one for all of them."""
    shape = parameter_shapes(site)["threshold"]
    array = np.asarray(maximum, np.float32)
    channels = array.reshape(array.shape[-len(shape) :])
    return np.array(np.broadcast_to(channels, shape))
