"""Effects: how much an error at each position of a site changes the network's outputs.

    w[n, p] = mean over channels of (d (r[n] y[n]) / d a[n, p])^2

a is what the ANN's site puts out for image n at position p, y the ANN's outputs, r
random signs. The expected w is the mean over channels of sum_k (d y_k / d a)^2, the
diagonal of the Gauss-Newton matrix. One backward pass gives w for all sites.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import running_sum
from snnjax.conversion.engine.micro_batches import Images, each
from snnjax.network.equations import Network, read
from snnjax.network.evaluate import evaluate, identity
from snnjax.network.sites import Site
from snnjax.network.stages import Segment

Effects = dict[str, jax.Array]  # site name -> [N, ...] with a single channel


def effects_of(
    network: Network, params: Any, x: Any, numbers: Any, images: Images
) -> Effects:
    """w of each site that fires, of these images; at each site with a mean of 1.

    It is 1 at a site without any effect.

    Args:
        network, params, x: the ANN and the images [N, ...].
        numbers: of each image [N]; its random signs depend on it alone.
        images: which of them.
    """
    equations = tuple(eq._replace(path="", calls=()) for eq in network.equations)
    values = network.arguments(params, x)
    outputs = tuple(v for v in network.outputs if v in network.dependent)
    work = Segment(equations, tuple(values), outputs, ())
    axes = tuple(0 if v in network.x else None for v in values)
    names = tuple(eq.place.name for eq in equations if eq.fires)
    arguments, in_axes = [numbers, *values.values()], (0, *axes)
    effects = each(_Effects(work, names), images, arguments, in_axes, (0,) * len(names))
    scaled = []
    for effect in effects:
        sums = each(_sum, images, [effect], (0,), (0,))
        scaled.append(_scaled(effect, *sums))
    return dict(zip(names, scaled, strict=True))


class _Effects(NamedTuple):
    """w of these sites for some images, not scaled."""

    work: Segment
    names: tuple[str, ...]

    def __call__(self, numbers: Any, *inputs: Any) -> tuple[jax.Array, ...]:
        effects = _of_part(self.work, inputs, numbers)
        return tuple(effects[name] for name in self.names)


def _sum(effect: jax.Array) -> tuple[jax.Array]:
    return (effect.sum()[None],)


def _of_part(work: Segment, inputs: Sequence[Any], numbers: Any) -> Effects:
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
    (gradients,) = transpose([_signs(y, numbers) for y in results])
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


@jax.jit
def _scaled(effect: jax.Array, sums: jax.Array) -> jax.Array:
    mean = running_sum(sums)[-1] / effect.size
    usable = jnp.isfinite(mean) & (mean > 0)
    return jnp.where(usable, effect / mean, jnp.ones_like(effect))
