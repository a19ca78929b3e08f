"""Effects: how much an error at each position of a site changes the network's outputs.

    w[n, p] = mean over channels of (d (r[n] y[n]) / d a[n, p])^2 / mean of |y|^2

a is what the ANN's site puts out for image n at position p, y the ANN's outputs, r
random signs. The expected w is the mean over channels of sum_k (d y_k / d a)^2, the
diagonal of the Gauss-Newton matrix, over the size of y. So the errors of all sites are
on one scale, that of `snnjax.conversion.engine.judging`. One backward pass gives w for
all sites.
"""

import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import wide
from snnjax.network.equations import Network, read
from snnjax.network.evaluate import evaluate, identity
from snnjax.network.sites import Site
from snnjax.network.stages import Segment

Effects = dict[str, jax.Array]  # site name -> [B, ...] with a single channel


def effects_of(
    network: Network, params: Any, batches: Sequence[tuple[chex.ArrayTree, range]]
) -> dict[str, list[jax.Array]]:
    """Site name -> w of each micro-batch.

    Args:
        network, params: of the ANN.
        batches: images, and their numbers; an image has the same signs in every batch.
    """
    equations = tuple(eq._replace(path="", calls=()) for eq in network.equations)
    values = network.arguments(params)
    outputs = tuple(v for v in network.outputs if v in network.dependent)
    work = Segment(equations, (*values, *network.x), outputs, ())
    effects = []
    for x, numbers in batches:
        inputs = [*values.values(), *jax.tree.leaves(x)]
        effects.append(_effects(work, inputs, np.asarray(numbers, np.int32)))
    return _or_alike(effects)


@functools.partial(jax.jit, static_argnames="work")
def _effects(work: Segment, inputs: list[Any], numbers: Any) -> Effects:
    sites = {eq.place.name: eq.place for eq in work.equations if eq.fires}

    def outputs(errors: Effects) -> list[jax.Array]:
        def rule(site: Site, a: jax.Array, *operands: Any) -> jax.Array:
            result = identity(site, a, *operands)
            return result + errors[site.name] if site.fires else result

        values = dict(zip(work.inputs, inputs, strict=True))
        evaluate(work.equations, values, rule)
        leaves = [jnp.asarray(read(values, output)) for output in work.outputs]
        return [y for y in leaves if jnp.issubdtype(y.dtype, jnp.floating)]

    no_errors = {
        name: jnp.zeros((len(numbers), *site.shape), site.dtype)
        for name, site in sites.items()
    }
    results, transpose = jax.vjp(outputs, no_errors)
    (gradients,) = transpose([_over_size(_signs(y, numbers), y) for y in results])
    return {
        name: jnp.square(gradient.astype(jnp.float32)).mean(
            sites[name].channel, keepdims=True
        )
        for name, gradient in gradients.items()
    }


def _signs(outputs: jax.Array, numbers: jax.Array) -> jax.Array:
    """Random signs like the outputs [B, ...], which depend on the images' numbers."""

    def of_image(number: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0), number)
        return jax.random.rademacher(key, outputs.shape[1:], outputs.dtype)

    return jax.vmap(of_image)(numbers)


def _over_size(signs: jax.Array, outputs: jax.Array) -> jax.Array:
    """The signs over the root of the mean |y|^2 of these images."""
    size = jnp.square(wide(outputs)).sum() / len(outputs)
    return (signs / jnp.sqrt(jnp.where(size > 0, size, 1))).astype(outputs.dtype)


@jax.jit
def _or_alike(effects: Sequence[Effects]) -> dict[str, list[jax.Array]]:
    """The effects by site; at a site without any, all are alike and count little."""

    def usable(*parts: jax.Array) -> list[jax.Array]:
        total = functools.reduce(jnp.add, [part.sum() for part in parts])
        is_usable = jnp.isfinite(total) & (total > 0)
        return [jnp.where(is_usable, part, _LITTLE) for part in parts]

    return jax.tree.map(usable, *effects)


_LITTLE = 1e-12
