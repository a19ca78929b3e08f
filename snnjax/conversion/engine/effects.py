"""Effects: how much an error at each position of a site changes the network's outputs.

    w[n, p] = mean over channels of (d (r[n] y[n]) / d a[n, p])^2 / mean of |y|^2

a is what the ANN's site puts out for image n at position p, y the ANN's outputs, r
random signs. The expected w is the mean over channels of sum_k (d y_k / d a)^2, the
diagonal of the Gauss-Newton matrix, over the size of y. So the errors of all sites are
on one scale, that of `snnjax.conversion.engine.judging`. One backward pass gives w for
all sites.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import by_numpy_or_xla, namespace, wide
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
    return _over_size(sum(len(numbers) for _, numbers in batches), effects, sizes)


@functools.partial(jax.jit, static_argnames="work")
def _effects(
    work: Segment, inputs: list[Any], numbers: Any
) -> tuple[Effects, jax.Array]:
    """Squared gradients of r y, and the sum of |y|^2 over these images.

    Of several outputs, each is over its own size in these images first, and their mean
    counts.
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
    ends = np.cumsum([math.prod(y.shape[1:]) for y in results])
    signs = [_signs(y, numbers, int(end)) for y, end in zip(results, ends, strict=True)]
    size = sums[0] if len(sums) == 1 else jnp.float32(len(numbers) * len(sums))
    if len(sums) > 1:
        roots = [jnp.sqrt(jnp.where(y2 > 0, y2, 1) / len(numbers)) for y2 in sums]
        signs = [r / root.astype(r.dtype) for r, root in zip(signs, roots, strict=True)]
    (gradients,) = transpose(signs)
    squares = {n: jnp.square(g.astype(jnp.float32)) for n, g in gradients.items()}
    effects = {n: s.mean(sites[n].channel, keepdims=True) for n, s in squares.items()}
    return effects, size


def _signs(outputs: jax.Array, numbers: jax.Array, end: int) -> jax.Array:
    """Random signs like the outputs [B, ...], which depend on the images' numbers.

    The last bit of a hash: XLA takes a second to compile JAX's random bits. ``end`` is
    that of these outputs among those of an image, so that each has its own sign.
    """
    start = end - math.prod(outputs.shape[1:])
    own = _mixed(jnp.asarray(numbers, jnp.uint32) + jnp.uint32(1))[:, None]
    each = jnp.arange(start, end, dtype=jnp.uint32)[None]
    bits = _mixed(own + each) & jnp.uint32(1)
    return (2 * bits.astype(outputs.dtype) - 1).reshape(outputs.shape)


def _mixed(h: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3 (Appleby, public domain)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ h >> jnp.uint32(shift)) * jnp.uint32(factor)
    return h ^ h >> jnp.uint32(16)


@functools.partial(by_numpy_or_xla, static=1)
def _over_size(
    count: int, effects: Sequence[Effects], sizes: Sequence[jax.Array]
) -> dict[str, list[jax.Array]]:
    """The effects by site, over the mean |y|^2.

    What is not finite, as the gradient of a root at 0, is 0. At a site without any
    effect errors count alike, and so much that no price matters.
    """
    xp = namespace(sizes[0])
    size = functools.reduce(operator.add, sizes) / count
    size = xp.where(size > 0, size, 1)

    def scaled(*parts: jax.Array) -> list[jax.Array]:
        usable = [xp.where(xp.isfinite(part), part, 0) for part in parts]
        total = functools.reduce(operator.add, [part.sum() for part in usable])
        is_usable = xp.isfinite(total) & (total > 0)
        return [xp.where(is_usable, part / size, 1) for part in usable]

    return jax.tree.map(scaled, *effects)
