"""Checks of what comes to a conversion: activations, and what calibrators give back.

A number that is not finite, or a fit that belongs to another site, would only show as a
bad accuracy; here it is an error with the site's name.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax.conversion.view import Fit
from snnjax.network.equations import Network, Site
from snnjax.neurons import NeuronParams


def shared(network: Network, site: Site) -> frozenset[str]:
    """Paths of the parameters that feed a site, and other sites or the readout too."""
    return frozenset(
        network.parameters[v]
        for v in network.feeds[site.name]
        if len(_fed_by(network, v)) > 1
    )


def check_unshared(network: Network, site: Site, before, after) -> None:
    """Weights of several sites must not change: that would undo an earlier fit."""
    variables = {path: v for v, path in network.parameters.items()}
    for path in before:
        users = _fed_by(network, variables[path])
        if after[path] is not before[path] and len(users) > 1:
            raise ValueError(
                f"the weights {path!r} feed several sites ({', '.join(users)}), so "
                f"calibrating them at {site.name!r} would undo the others. Use a "
                "recipe without weight calibration, or give each site its own weights"
            )


def _fed_by(network: Network, parameter: int) -> list[str]:
    """What a parameter reaches directly: sites, and the readout."""
    sites = [name for name, feeding in network.feeds.items() if parameter in feeding]
    return [*sites, "the readout"] if parameter in network.readout else sites


def check_calibrator(calibrator: Any) -> None:
    """Raise unless this can be called with a view and a fit."""
    try:
        inspect.signature(calibrator).bind(None, None)
    except TypeError:
        raise ValueError(
            f"{calibrator!r} does not take (view, fit), as a calibrator does; those of "
            "snnjax are called in a recipe, e.g. max_threshold()"
        ) from None
    except ValueError:  # it has no signature that could be read
        return


def check_finite(what: str, arrays: Sequence[Any]) -> None:
    """Raise unless all numbers are finite.

    One wait for all of the arrays, so that their work is not held up one by one.
    """
    counts = []
    for array in arrays:  # once: what waits in files is read anew each time
        if isinstance(array, Tracer):
            return
        with jax.ensure_compile_time_eval():
            counts.append(_not_finite(array))
    bad = sum(map(int, counts))
    if bad:
        size = sum(array.size for array in arrays)
        raise ValueError(
            f"{what} hold {bad} values that are NaN or infinite, of {size}; allowed: "
            "finite numbers. Check the normalisation of the images, the parameters, "
            "and calibrators of your own"
        )


@jax.jit
def _not_finite(array) -> jax.Array:
    return (~jnp.isfinite(array)).sum()


def checked(site: Site, before: Fit, after: Any) -> Fit:
    """What a calibrator gave back, as float32; raise if no IF neuron can be that."""
    wrong = f"a calibrator gave back for site {site.name!r}"
    if not isinstance(after, Fit) or not isinstance(after.neuron, NeuronParams):
        raise ValueError(f"{wrong} {after!r}; allowed: a Fit, e.g. fit._replace(...)")
    if not isinstance(after.weights, dict):
        raise ValueError(f"{wrong} weights {after.weights!r}; allowed: a dict")
    if after.weights.keys() != before.weights.keys():
        found, allowed = sorted(after.weights), sorted(before.weights)
        raise ValueError(f"{wrong} weights {found}; allowed: {allowed}")
    weights = {}
    for path, weight in after.weights.items():
        allowed = before.weights[path]
        if not isinstance(weight, np.ndarray | jax.Array):
            raise ValueError(
                f"{wrong} weights {path!r} as a {type(weight).__name__}; allowed: an "
                "array"
            )
        weights[path] = weight = jnp.asarray(weight)
        if (weight.shape, weight.dtype) != (allowed.shape, allowed.dtype):
            raise ValueError(
                f"{wrong} weights {path!r} of shape {weight.shape} and type "
                f"{weight.dtype}; allowed: {allowed.shape} and {allowed.dtype}"
            )
    if after.neuron.leak is not None or after.neuron.temperature is not None:
        raise ValueError(
            f"{wrong} a leak or a temperature; allowed: None for both, since convert "
            "fits IF neurons"
        )
    fitted = {}
    for name, shape in shapes(site).items():
        value = getattr(after.neuron, name)
        if not _real(value):
            raise ValueError(f"{wrong} {name} {value!r}; allowed: an array or a number")
        fitted[name] = jnp.asarray(value, jnp.float32)
        try:
            agree = np.broadcast_shapes(fitted[name].shape, shape) == shape
        except ValueError:
            agree = False
        if not agree:
            raise ValueError(
                f"{wrong} {name} of shape {fitted[name].shape}; allowed: () or {shape}"
            )
    return Fit(after.neuron._replace(**fitted), weights)


def _real(value: Any) -> bool:
    if value is None:  # which JAX takes for a float
        return False
    try:
        dtype = jnp.result_type(value)
    except TypeError:  # a word
        return False
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))


def check_values(site: Site, before: Fit, after: Fit) -> None:
    """Raise unless a site's thresholds are positive, and all that changed is finite."""
    neuron = after.neuron
    if any(isinstance(leaf, Tracer) for leaf in neuron):
        return
    for path, weight in after.weights.items():
        if weight is not before.weights[path]:
            check_finite(f"the weights {path!r}, fitted at {site.name!r},", [weight])
    for name in shapes(site):
        value = np.asarray(getattr(neuron, name))
        positive = name != "threshold" or value.min() > 0
        if not (np.isfinite(value).all() and positive):
            raise ValueError(
                f"the recipe gave site {site.name!r} {name} from {value.min()} to "
                f"{value.max()}; allowed: finite numbers"
                + (", > 0" if name == "threshold" else "")
            )


def shapes(site: Site) -> dict[str, tuple[int, ...]]:
    """What is fitted at a site, in full."""
    channel = (site.shape[site.channel], *[1] * (-site.channel - 1))
    return {"threshold": channel, "bias": channel, "initial_potential": site.shape}
