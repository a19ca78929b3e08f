"""Effects: how much an error at each position of a site changes the network's outputs.

    w[n, p] = mean over channels of (d (r[n] y[n]) / d a[n, p])^2

a is what the ANN's site puts out for image n at position p, y the ANN's outputs, r
random signs. The expected w is the mean over channels of sum_k (d y_k / d a)^2, the
diagonal of the Gauss-Newton matrix. One backward pass gives w for all sites.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from snnjax.network.equations import Network
from snnjax.network.evaluate import evaluate, identity
from snnjax.network.sites import Site

Effects = dict[str, jax.Array]  # site name -> [B, ...] with a single channel


def effects_of(network: Network) -> Callable[[Any, Any, jax.Array], Effects]:
    """(params, x, numbers of the images) -> w of each site that fires, not scaled.

    An image has the same signs in every micro-batch.
    """
    sites = {eq.place.name: eq for eq in network.equations if eq.fires}

    def compute(params: Any, x: Any, numbers: jax.Array) -> Effects:
        def outputs(errors: Effects) -> list[jax.Array]:
            def rule(site: Site, a: jax.Array, *operands: Any) -> jax.Array:
                result = identity(site, a, *operands)
                return result + errors[site.name] if site.fires else result

            values = network.arguments(params, x)
            evaluate(network.equations, values, rule)
            leaves = map(jnp.asarray, jax.tree.leaves(network.results(values)))
            return [y for y in leaves if jnp.issubdtype(y.dtype, jnp.floating)]

        avals = {name: network.avals[eq.outputs[0]] for name, eq in sites.items()}
        no_errors = {name: jnp.zeros(a.shape, a.dtype) for name, a in avals.items()}
        results, transposed = jax.vjp(outputs, no_errors)
        (gradients,) = transposed([_signs(y, numbers) for y in results])
        return {
            name: jnp.square(gradient.astype(jnp.float32)).mean(
                sites[name].place.channel, keepdims=True
            )
            for name, gradient in gradients.items()
        }

    return jax.jit(compute)


def _signs(outputs: jax.Array, numbers: jax.Array) -> jax.Array:
    """Random signs like the outputs [B, ...], which depend on the images' numbers."""

    def of_image(number: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0), number)
        return jax.random.rademacher(key, outputs.shape[1:], outputs.dtype)

    return jax.vmap(of_image)(numbers)


@jax.jit
def scaled(effects: Sequence[jax.Array]) -> list[jax.Array]:
    """The effects of all micro-batches with a mean of 1; all 1 if there are none."""
    total = functools.reduce(jnp.add, [part.sum() for part in effects])
    mean = total / sum(part.size for part in effects)
    usable = jnp.isfinite(mean) & (mean > 0)
    return [jnp.where(usable, part / mean, jnp.ones_like(part)) for part in effects]
