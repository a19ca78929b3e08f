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


def checked(view: View, fit: Fit, result: Any) -> Fit:
    """The result of a calibrator, checked, with neurons in NumPy's float32.

    Args:
        view: of the site.
        fit: what the calibrator got.
        result: what it returned.

    Raises:
        ValueError: the site cannot have the result, or shared weights have changed.
    """
    prefix = f"a calibrator returned for site {view.site.name!r}"
    if not isinstance(result, Fit) or not isinstance(result.neurons, NeuronParams):
        raise ValueError(f"{prefix} {result!r}; allowed: a Fit, e.g. fit._replace(...)")
    if not isinstance(result.weights, dict):
        raise ValueError(f"{prefix} weights {result.weights!r}; allowed: a dict")
    weights = _checked_weights(fit.weights, result.weights, prefix)
    # View.shared names the weights that feed more than this site. A weight that the
    # calibrator has left alone is the same object as before.
    for path in view.shared.keys() & weights.keys():
        if weights[path] is not fit.weights[path]:
            raise ValueError(
                f"the weights {path!r} feed {', '.join(view.shared[path])}, so "
                f"calibrating them at {view.site.name!r} would change the others too; "
                "allowed: calibrators that leave the paths in View.shared as they are"
            )
    neurons = _checked_neurons(view.site, result.neurons, prefix)
    return Fit(neurons, weights)


def _checked_weights(
    weights: dict[str, jax.Array], results: dict[str, Any], prefix: str
) -> dict[str, jax.Array]:
    """The results by path, in the order of the weights that they replace.

    Args:
        weights: path -> weight before the calibrator.
        results: path -> what it returned.
        prefix: begins the message of an error.
    """
    if results.keys() != weights.keys():
        raise ValueError(
            f"{prefix} weights {sorted(results)}; allowed: {sorted(weights)}"
        )
    checked_weights = {}
    for path, weight in weights.items():
        result = results[path]
        if not isinstance(result, np.ndarray | jax.Array):
            kind = type(result).__name__
            raise ValueError(
                f"{prefix} weights {path!r} as a {kind}; allowed: an array"
            )
        result = jnp.asarray(result)  # NumPy's float64 is JAX's float32.
        if (result.shape, result.dtype) != (weight.shape, weight.dtype):
            raise ValueError(
                f"{prefix} weights {path!r} of shape {result.shape} and type "
                f"{result.dtype}; allowed: {weight.shape} and {weight.dtype}"
            )
        checked_weights[path] = result
    return checked_weights


def _checked_neurons(site: Site, neurons: NeuronParams, prefix: str) -> NeuronParams:
    """The neurons with parameters in NumPy's float32, which broadcast to the site.

    Args:
        site: of the neurons.
        neurons: what a calibrator returned.
        prefix: begins the message of an error.
    """
    if neurons.leak is not None or neurons.temperature is not None:
        raise ValueError(
            f"{prefix} a leak or a temperature; allowed: None for both, since convert "
            "fits IF neurons"
        )
    parameters = {}
    for name, shape in parameter_shapes(site).items():
        value = getattr(neurons, name)
        # Parameters with a default may be left out.
        if value is None and name in NeuronParams._field_defaults:
            continue
        if not _is_real(value):
            raise ValueError(
                f"{prefix} {name} {value!r}; allowed: an array or a number"
            )
        parameter = np.asarray(value, np.float32)
        if not broadcasts(parameter.shape, shape):
            raise ValueError(
                f"{prefix} {name} of shape {parameter.shape}; allowed: () or {shape}"
            )
        parameters[name] = parameter
    return neurons._replace(**parameters)


def _is_real(value: Any) -> bool:
    """Whether this is a real number or an array of them."""
    if value is None:  # `result_type` takes it for a float.
        return False
    try:
        dtype = jnp.result_type(value)
    except TypeError:  # Words have no type.
        return False
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return is_float or jnp.issubdtype(dtype, jnp.integer)


def check_values(site: Site, start: Fit, end: Fit) -> None:
    """Raise unless neurons are in their ranges, and changed weights are finite.

    Args:
        site: of the fits.
        start: the fit that the first calibrator got.
        end: the fit that the last calibrator gave.
    """
    for path, weight in end.weights.items():
        if weight is not start.weights[path]:
            check_finite(f"the weights {path!r}, fitted at {site.name!r},", [weight])
    ranges = ranges_of(NeuronParams)
    for name in parameter_shapes(site):
        parameter = getattr(end.neurons, name)
        if parameter is None:
            continue
        limits = ranges.get(name, Range())
        if not limits.holds(parameter).all():
            raise ValueError(
                f"the recipe gave site {site.name!r} {name} from {parameter.min()} to "
                f"{parameter.max()}; allowed: {limits.describe(name)}"
            )
