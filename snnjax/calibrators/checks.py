"""Fits at the door: what a calibrator returns must be neurons of the site it fits.

A number that is not finite, or a fit that belongs to another site, would only show as a
bad accuracy; here it is an error with the site's name.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._arrays import broadcasts
from snnjax._checks import check_finite
from snnjax._ranges import ranges_of
from snnjax.calibrators.parameters import parameter_shapes
from snnjax.calibrators.view import Fit
from snnjax.network.sites import Site
from snnjax.neurons.models import NeuronParams


def checked(site: Site, before: Fit, after: Any) -> Fit:
    """The fit that a calibrator returned, as float32; raise if no site can have it."""
    wrong = f"a calibrator returned for site {site.name!r}"
    if not isinstance(after, Fit) or not isinstance(after.neurons, NeuronParams):
        raise ValueError(f"{wrong} {after!r}; allowed: a Fit, e.g. fit._replace(...)")
    if not isinstance(after.weights, dict):
        raise ValueError(f"{wrong} weights {after.weights!r}; allowed: a dict")
    weights = _checked_weights(before.weights, after.weights, wrong)
    return Fit(_checked_neuron(site, after.neurons, wrong), weights)


def _checked_weights(
    before: dict[str, jax.Array], after: dict[str, Any], wrong: str
) -> dict[str, jax.Array]:
    if after.keys() != before.keys():
        raise ValueError(f"{wrong} weights {sorted(after)}; allowed: {sorted(before)}")
    weights = {}
    for path, weight in after.items():
        if not isinstance(weight, np.ndarray | jax.Array):
            raise ValueError(
                f"{wrong} weights {path!r} as a {type(weight).__name__}; allowed: an "
                "array"
            )
        weights[path] = weight = jnp.asarray(weight)
        shape, dtype = before[path].shape, before[path].dtype
        if (weight.shape, weight.dtype) != (shape, dtype):
            raise ValueError(
                f"{wrong} weights {path!r} of shape {weight.shape} and type "
                f"{weight.dtype}; allowed: {shape} and {dtype}"
            )
    return weights


def _checked_neuron(site: Site, neuron: NeuronParams, wrong: str) -> NeuronParams:
    if neuron.leak is not None or neuron.temperature is not None:
        raise ValueError(
            f"{wrong} a leak or a temperature; allowed: None for both, since convert "
            "fits IF neurons"
        )
    fields = {}
    for name, shape in parameter_shapes(site).items():
        value = getattr(neuron, name)
        if value is None and name in NeuronParams._field_defaults:
            continue
        if not _is_real(value):
            raise ValueError(f"{wrong} {name} {value!r}; allowed: an array or a number")
        fields[name] = jnp.asarray(value, jnp.float32)
        if not broadcasts(fields[name].shape, shape):
            raise ValueError(
                f"{wrong} {name} of shape {fields[name].shape}; allowed: () or {shape}"
            )
    return neuron._replace(**fields)


def _is_real(value: Any) -> bool:
    if value is None:  # which JAX takes for a float
        return False
    try:
        dtype = jnp.result_type(value)
    except TypeError:  # a word
        return False
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))


def check_values(site: Site, before: Fit, after: Fit) -> None:
    """Raise unless neurons are in their ranges, and changed weights are finite."""
    neuron = after.neurons
    if any(isinstance(leaf, Tracer) for leaf in neuron):
        return
    for path, weight in after.weights.items():
        if weight is not before.weights[path]:
            check_finite(f"the weights {path!r}, fitted at {site.name!r},", [weight])
    ranges = ranges_of(NeuronParams)
    for name in parameter_shapes(site):
        if getattr(neuron, name) is None:
            continue
        value, limits = np.asarray(getattr(neuron, name)), ranges.get(name)
        within = np.isfinite(value) if limits is None else limits.holds(value)
        if not within.all():
            raise ValueError(
                f"the recipe gave site {site.name!r} {name} from {value.min()} to "
                f"{value.max()}; allowed: "
                + ("finite numbers" if limits is None else limits.describe(name))
            )
