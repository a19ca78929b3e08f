"""The shapes of a site's parameters, which a recipe may give in fewer numbers.

Parameters of neurons are NumPy arrays while a network is converted.
"""

import numpy as np

from snnjax.network.sites import Site
from snnjax.neurons.models import NeuronParams


def parameter_shapes(site: Site) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each fitted parameter of a site, in full."""
    # [C], with an axis of size 1 for each axis of the site behind that of the channels.
    later_axes = [1] * (-site.channel - 1)
    per_channel = (site.shape[site.channel], *later_axes)
    return {
        "threshold": per_channel,
        "bias": per_channel,
        "initial_potential": site.shape,
        "offset": per_channel,
    }


def broadcast(neurons: NeuronParams, site: Site) -> NeuronParams:
    """The same neurons with parameters of the shapes of `parameter_shapes`, in NumPy.

    A recipe may give fewer numbers. Here threshold, bias and offset get one number per
    channel, the initial potential one per neuron, so that one compiled program serves
    the SNNs of all recipes.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> (site,) = snnjax.sites(lambda w, x: jax.nn.relu(x @ w), jnp.eye(2), jnp.eye(2))
    >>> print(broadcast(snnjax.integrate_and_fire().init(), site).threshold)
    [1. 1.]
    """
    full = {}
    for name, shape in parameter_shapes(site).items():
        parameter = getattr(neurons, name)
        if parameter is not None:
            full[name] = np.broadcast_to(np.asarray(parameter), shape)
    return neurons._replace(**full)
