"""The sweep: all images pass from site to site, and each site is fitted on the way.

At every site its calibrators compare the ANN's activation with the spikes that the
calibrated layers below emit; its own spikes go on. The network is cut into stages
between sites, so a sweep costs about T + 1 forward passes of all images, whatever the
depth. Source of the layer-wise scheme: Li et al., ICML 2021; of the single sweep: ours.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from snnjax._arrays import by_numpy_or_xla, on_host
from snnjax._checks import check_finite, warn
from snnjax._progress import shown
from snnjax._types import Per
from snnjax.calibrators.checks import check_values, checked
from snnjax.calibrators.parameters import broadcast, parameter_shapes
from snnjax.calibrators.running import fire, number_of_spikes
from snnjax.calibrators.spending import Curve
from snnjax.calibrators.view import Calibrator, Fit
from snnjax.conversion.engine.site_view import SiteView, by_variable
from snnjax.conversion.engine.state import Parts, State
from snnjax.network.sites import Site
from snnjax.neurons.models import NeuronParams
from snnjax.sharding import put


def sweep(
    begin: State, chains: Iterable[Sequence[Calibrator]], title: str = ""
) -> State:
    """All images behind the last site, with the SNN that these calibrators fit.

    Args:
        begin: all images before the first stage, with the SNN to be fitted.
        chains: the calibrators of each site that fires, one after the other.
        title: shown before the bar on a terminal.
    """
    network, neurons = begin.network, dict(begin.snn.neurons)
    here = begin._replace(
        params=network.arguments(begin.snn.params),
        activations=_copied(begin.activations),
        spikes=_copied(begin.activations),
        sent=[[] for _ in begin.sizes],
    )
    sites = [stage.place for stage in here.stages[:-1]]
    bar = shown(sites, title, "site", lambda site: site.name)
    for i, (site, chain) in enumerate(zip(bar, chains, strict=True)):
        fit = _fit_site(here, i, neurons[site.name], chain)
        neurons[site.name] = fit.neurons
        here.params.update(by_variable(network, fit.weights))
    leaves = [here.params[v] for v in network.parameters]
    tree = jax.tree_util.tree_structure(begin.snn.params)
    params = jax.tree_util.tree_unflatten(tree, leaves)
    snn = dataclasses.replace(begin.snn, params=params, neurons=neurons)
    return here._replace(snn=snn)


def survey(
    begin: State, zones: tuple[float, ...] | None, per_site: Mapping[str, Per]
) -> list[list[Curve]]:
    """For each last zone, or the models' own, the curves of these sites.

    It takes one pass of the ANN.
    """
    here = begin._replace(activations=_copied(begin.activations))
    of_sites = []
    for i, stage in enumerate(here.stages[:-1]):
        activations, own_maximum = _pass_ann(here, i)
        if stage.place.name in per_site:
            view = SiteView(here, i, activations, own_maximum)
            tried = zones or (view.model.last_zone,)
            of_sites.append(view.curves(tried, per_site[stage.place.name]))
    return list(map(list, zip(*of_sites, strict=True)))


def _copied(parts: Parts) -> Parts:
    return {v: list(part) for v, part in parts.items()}


def _fit_site(
    here: State, i: int, neurons: NeuronParams, chain: Sequence[Calibrator]
) -> Fit:
    """Fit the site, and compute what later stages read, in the ANN and in the SNN.

    This is a function so that activations and currents are freed before the next site.
    """
    site = here.stages[i].place
    # The products before an encoder need what the ANN's stage reads.
    ann_inputs = _copied(here.activations) if site.is_encoder else {}
    activations, own_maximum = _pass_ann(here, i)
    view = SiteView(here._replace(activations=ann_inputs), i, activations, own_maximum)
    kernels = {here.network.parameters[v]: here.params[v] for v in view.kernels}
    fit = start = Fit(on_host(neurons), kernels)
    for calibrate in chain:
        # A copy, so that what is changed in place is detected as well.
        after = calibrate(view, Fit(fit.neurons, dict(fit.weights)))
        fit = _placed_like(fit, checked(view, fit, after), here.batch_sharding)
    check_values(site, start, fit)
    full = broadcast(fit.neurons, site)

    def results() -> Iterator[tuple[Any, Sequence[jax.Array]]]:
        for k, results in enumerate(view.results(fit.weights)):
            fired = fire(view.dynamics, full, results.outputs[0])
            here.sent[k].append(number_of_spikes(view.dynamics, full, fired))
            yield fired.output, results.carried

    here.advance(here.spikes, i, results())
    return fit


def _placed_like(before: Fit, after: Fit, batch_sharding: NamedSharding | None) -> Fit:
    """The weights with the sharding that they had before."""
    if batch_sharding is None:
        return after
    weights = dict(after.weights)
    for path, old in before.weights.items():
        if weights[path] is not old:
            weights[path] = put(weights[path], old.sharding)
    return after._replace(weights=weights)


def _pass_ann(here: State, i: int) -> tuple[list[jax.Array], jax.Array | None]:
    """The ANN's activations at site i, and the maximum if a ReLU there has one."""
    activations, maxima = [], []

    def results() -> Iterator[tuple[jax.Array, Sequence[jax.Array]]]:
        for (activation, *maximum), carried in here.run_ann(i):
            activations.append(activation)
            maxima.append(maximum)
            yield activation, carried

    here.advance(here.activations, i, results())
    site = here.stages[i].place
    own_maximum = maxima[-1][0] if maxima[-1] else None
    _check_maximum(site, own_maximum)  # first: it may be why activations are infinite
    _check_range(site, activations)
    if own_maximum is None:
        return activations, None
    return activations, _shaped_like_threshold(own_maximum, site)


@by_numpy_or_xla
def _ends(activation: Any) -> list[Any]:
    """The least and the largest number."""
    return [end.astype(np.float32) for end in (activation.min(), activation.max())]


def _check_range(site: Site, activations: Sequence[jax.Array]) -> None:
    """Raise if activations are not finite; warn if all of them are 0."""
    ends = np.asarray(jax.device_get([_ends(part) for part in activations]))
    if not np.isfinite(ends).all():
        check_finite(f"the activations of site {site.name!r}", activations)
    if not ends.any():
        warn(
            f"the activations of site {site.name!r} are 0 for all calibration "
            "images, so its threshold is fitted to no data. Check the scale of the "
            "images and the parameters"
        )


def _check_maximum(site: Site, maximum: jax.Array | None) -> None:
    """Raise if the network has a maximum that no threshold can be."""
    if maximum is None:
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


def ann_outputs(here: State) -> list[tuple[jax.Array, ...]]:
    """Of each micro-batch the ANN's outputs; raise unless all of them are finite."""
    outputs = [results.outputs for results in here.run_ann(-1)]
    names = here.network.output_names()
    for name, parts in zip(names, zip(*outputs, strict=True), strict=True):
        which = f" {name!r}" if name else ""
        check_finite(f"the outputs{which} of the network", parts)
    return outputs
