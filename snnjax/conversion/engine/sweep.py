"""The sweep: all images pass from site to site, and each site is fitted on the way.

At every site its calibrators compare the ANN's activation with the spikes that the
calibrated layers below emit; its own spikes go on. The network is cut into stages
between sites, so a sweep costs about T + 1 forward passes of all images, whatever the
depth. Source of the layer-wise scheme: Li et al., ICML 2021; of the single sweep: ours.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._arrays import on_host
from snnjax._checks import check_finite
from snnjax._progress import shown
from snnjax.calibrators.checks import check_values, checked
from snnjax.calibrators.parameters import parameter_shapes
from snnjax.calibrators.view import Calibrator, Fit, View
from snnjax.conversion.engine.segments import Activation
from snnjax.conversion.engine.site_view import (
    SiteView,
    by_variable,
    check_unshared,
    kernels,
)
from snnjax.conversion.engine.state import Sweep
from snnjax.network.sites import Site
from snnjax.network.stages import nameless
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
        activations=dict(begin.activations),
        spikes=dict(begin.spikes),
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


def _fit_site(here: Sweep, i: int, neurons: NeuronParams, calibrate: Calibrator) -> Fit:
    """Fit the site, and compute what later stages read, in the ANN and in the SNN.

    This is a function so that activations and currents are freed before the next site.
    """
    site = here.stages[i].place
    # The products before an encoder need what the ANN's stage reads.
    before = (
        here._replace(activations=dict(here.activations)) if site.is_encoder else here
    )
    activation, own_maximum = _pass_ann(here, i)
    view = SiteView(before, i, activation, own_maximum)
    start = Fit(neurons, kernels(here, i))
    fit = calibrate(view, start)
    check_unshared(here, i, start, fit)
    check_values(site, start, fit)
    here.advance(here.spikes, i, *view.passed(fit))
    return fit


def _pass_ann(here: Sweep, i: int) -> tuple[jax.Array, jax.Array | None]:
    """The ANN's activations at site i, and the maximum if a ReLU there has one."""
    piece, site = here.ann_piece(i), here.stages[i].place
    operands = piece.out_axes[1:]
    results = piece.run(here.all_images, Activation(nameless(site)), (0, 0, *operands))
    activation, ends, *others = results
    here.advance(here.activations, i, activation, others[len(operands) :])
    maximum = others[0] if operands else None
    _check_maximum(site, maximum)  # first: it may be why activations are NaN
    _check_range(site, activation, _least_and_largest(ends))
    if maximum is None:
        return activation, None
    return activation, _shaped_like_threshold(maximum, site)


@jax.jit
def _least_and_largest(ends: jax.Array) -> jax.Array:
    return jnp.stack([ends[:, 0].min(), ends[:, 1].max()])


def _check_range(site: Site, activation: jax.Array, ends: jax.Array) -> None:
    """Raise if activations are not finite; warn if all of them are 0."""
    if isinstance(ends, Tracer):
        return
    least, largest = np.asarray(ends)
    if not np.isfinite([least, largest]).all():
        check_finite(f"the activations of site {site.name!r}", [activation])
    if not (least or largest):
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


def ann_outputs(here: Sweep) -> tuple[jax.Array, ...]:
    """The outputs of the ANN behind its last site; raise unless they are finite."""
    outputs = here.ann_piece(-1).run(here.all_images)
    for name, output in zip(here.network.output_names(), outputs, strict=True):
        which = f" {name!r}" if name else ""
        check_finite(f"the outputs{which} of the network", [output])
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
