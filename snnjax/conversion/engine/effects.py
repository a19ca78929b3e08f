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
    effects, sizes = [], []
    for x, numbers in batches:
        inputs = [*values.values(), *jax.tree.leaves(x)]
        of_batch, size = _effects(work, inputs, np.asarray(numbers, np.int32))
        effects.append(of_batch)
        sizes.append(size)
    return _over_size(effects, sizes, sum(len(numbers) for _, numbers in batches))


@functools.partial(jax.jit, static_argnames="work")
def _effects(
    work: Segment, inputs: list[Any], numbers: Any
) -> tuple[Effects, jax.Array]:
    """Squared gradients of r y, and the sum of |y|^2 over these images.

    Of several outputs, each is over its own size in these images first.
    """
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
    sums = [jnp.square(wide(y)).sum().astype(jnp.float32) for y in results]
    signs = [_signs(y, numbers) for y in results]
    size = sums[0] if len(sums) == 1 else jnp.float32(len(numbers))
    if len(sums) > 1:
        roots = [jnp.sqrt(jnp.where(y2 > 0, y2, 1) / len(numbers)) for y2 in sums]
        pairs = zip(signs, roots, strict=True)
        signs = [r / root.astype(r.dtype) for r, root in pairs]
    (gradients,) = transpose(signs)
    effects = {
        name: jnp.square(gradient.astype(jnp.float32)).mean(
            sites[name].channel, keepdims=True
        )
        for name, gradient in gradients.items()
    }
    return effects, size


def _signs(outputs: jax.Array, numbers: jax.Array) -> jax.Array:
    """Random signs like the outputs [B, ...], which depend on the images' numbers."""

    def of_image(number: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0), number)
        return jax.random.rademacher(key, outputs.shape[1:], outputs.dtype)

    return jax.vmap(of_image)(numbers)


@functools.partial(jax.jit, static_argnames="count")
def _over_size(
    effects: Sequence[Effects], sizes: Sequence[jax.Array], count: int
) -> dict[str, list[jax.Array]]:
    """The effects by site, over the mean |y|^2.

    What is not finite, as the gradient of a root at 0, is 0. At a site without any
    effect errors count alike, and so much that no price matters.
    """
    size = functools.reduce(jnp.add, sizes) / count
    size = jnp.where(size > 0, size, 1)

    def scaled(*parts: jax.Array) -> list[jax.Array]:
        usable = [jnp.where(jnp.isfinite(part), part, 0) for part in parts]
        total = functools.reduce(jnp.add, [part.sum() for part in usable])
        is_usable = jnp.isfinite(total) & (total > 0)
        return [jnp.where(is_usable, part / size, 1) for part in usable]

    return jax.tree.map(scaled, *effects)
