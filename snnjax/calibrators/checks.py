"""Fits at the door: what a calibrator returns must be neurons of the site it fits.

A number that is not finite, or a fit that belongs to another site, would only show as a
bad accuracy; here it is an error with the site's name.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import broadcasts
from snnjax._checks import check_finite
from snnjax._ranges import Range, ranges_of
from snnjax.calibrators.parameters import parameter_shapes
from snnjax.calibrators.view import Fit, View
from snnjax.network.sites import Site
from snnjax.neurons.models import NeuronParams


def checked(view: View, before: Fit, after: Any) -> Fit:
    """The fit that a calibrator returned, as float32; raise if no site can have it."""
    wrong = f"a calibrator returned for site {view.site.name!r}"
    if not isinstance(after, Fit) or not isinstance(after.neurons, NeuronParams):
        raise ValueError(f"{wrong} {after!r}; allowed: a Fit, e.g. fit._replace(...)")
    if not isinstance(after.weights, dict):
        raise ValueError(f"{wrong} weights {after.weights!r}; allowed: a dict")
    weights = _checked_weights(before.weights, after.weights, wrong)
    for path in view.shared.keys() & weights.keys():
        if weights[path] is not before.weights[path]:
            raise ValueError(
                f"the weights {path!r} feed {', '.join(view.shared[path])}, so "
                f"calibrating them at {view.site.name!r} would change the others too; "
                "allowed: calibrators that leave the paths in View.shared as they are"
            )
    return Fit(_checked_neuron(view.site, after.neurons, wrong), weights)


def _checked_weights(
    before: dict[str, jax.Array], after: dict[str, Any], wrong: str
) -> dict[str, jax.Array]:
    if after.keys() != before.keys():
        raise ValueError(f"{wrong} weights {sorted(after)}; allowed: {sorted(before)}")
    weights = {}
    for path, old in before.items():  # in the order that `View.feed` expects
        weight = after[path]
        if not isinstance(weight, np.ndarray | jax.Array):
            kind = type(weight).__name__
            raise ValueError(f"{wrong} weights {path!r} as a {kind}; allowed: an array")
        weight = weights[path] = jnp.asarray(weight)  # float64 of NumPy as float32
        if (weight.shape, weight.dtype) != (old.shape, old.dtype):
            raise ValueError(
                f"{wrong} weights {path!r} of shape {weight.shape} and type "
                f"{weight.dtype}; allowed: {old.shape} and {old.dtype}"
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
    for path, weight in after.weights.items():
        if weight is not before.weights[path]:
            check_finite(f"the weights {path!r}, fitted at {site.name!r},", [weight])
    ranges = ranges_of(NeuronParams)
    for name in parameter_shapes(site):
        if getattr(neuron, name) is None:
            continue
        value, limits = np.asarray(getattr(neuron, name)), ranges.get(name, Range())
        if not limits.holds(value).all():
            allowed = limits.describe(name) if name in ranges else "finite numbers"
            raise ValueError(
                f"the recipe gave site {site.name!r} {name} from {value.min()} to "
                f"{value.max()}; allowed: {allowed}"
            )
