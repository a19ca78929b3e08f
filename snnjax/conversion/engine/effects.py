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
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import by_numpy_or_xla, namespace, wide
from snnjax._programs import jit
from snnjax.codes import Code
from snnjax.conversion.engine.segments import Results, Work
from snnjax.network.equations import Network, Values
from snnjax.network.sites import Site
from snnjax.network.stages import Stage, nameless

Effects = dict[str, jax.Array]  # site name -> [B, ...] with a single channel
Batch = tuple[chex.ArrayTree, range]  # images, and their numbers


class _Step(NamedTuple):
    """A stage of the ANN; variables are those of the network."""

    work: Work
    sources: tuple[int, ...]
    output: int | None
    carried: tuple[int, ...]
    site: Site | None


class Passed(NamedTuple):
    """What the ANN gives for all images, in one program for each micro-batch."""

    results: list[list[Results]]  # of each micro-batch those of each stage; or none
    effects: dict[str, list[jax.Array]]  # site name -> w of each micro-batch; or none


def passed(
    network: Network,
    stages: Sequence[Stage],
    params: Any,
    code: Code,
    batches: Sequence[Batch],
    fitted: int,
    *,
    keeps: bool,
    weighs: bool,
) -> Passed:
    """All stages of the ANN at once: that compiles faster than a program for each.

    Args:
        network, stages, params: of the ANN.
        batches: images, and their numbers; an image has the same signs in every batch.
        fitted: the first batches, so many, are fitted to, and have effects.
        keeps: whether the results stay, which takes memory.
        weighs: whether the effects are computed.
    """
    steps = tuple(_step(stage, code) for stage in stages)
    counted = tuple(v in network.dependent for v in network.outputs)
    parts, effects, sizes = [], [], []
    for x, numbers in batches:
        inputs = network.arguments(params, x)
        results, of_batch, size = _passed(
            steps, counted, keeps, weighs, inputs, np.asarray(numbers, np.int32)
        )
        parts.append(results)
        effects.append(of_batch)
        sizes.append(size)
    if not weighs:
        return Passed(parts, {})
    count = sum(len(numbers) for _, numbers in batches[:fitted])
    return Passed(parts, _over_size(count, effects[:fitted], sizes[:fitted]))


def _step(stage: Stage, code: Code) -> _Step:
    site = None if stage.site is None else nameless(stage.site)
    streams = (False,) * len(stage.sources)
    work = Work(stage.segment, streams, 1, code, site)
    return _Step(work, stage.sources, stage.output, stage.carried, stage.site)


@functools.partial(jit, static_argnums=range(4))
def _passed(
    steps: tuple[_Step, ...],
    counted: tuple[bool, ...],
    keeps: bool,
    weighs: bool,
    inputs: Values,
    numbers: Any,
) -> tuple[list[Results], Effects, Any]:
    """Results, squared gradients of r y, and the sum of |y|^2 over these images.

    Of several outputs, each is over its own size in these images first, and their mean
    counts.
    """
    sites = {step.site.name: step.site for step in steps if step.site is not None}

    def run(errors: Effects) -> tuple[list[jax.Array], list[Results]]:
        values, of_stages = dict(inputs), []
        for step in steps:
            results = step.work(*[values[v] for v in step.sources])
            if step.site is not None:
                activation, *maximum = results.outputs
                if weighs:
                    activation = activation + errors[step.site.name]
                values[step.output] = activation
                results = results._replace(outputs=(activation, *maximum))
            values.update(zip(step.carried, results.carried, strict=True))
            of_stages.append(results)
        pairs = zip(of_stages[-1].outputs, counted, strict=True)
        outputs = [output for output, counts in pairs if counts]
        return [y for y in outputs if jnp.issubdtype(y.dtype, jnp.floating)], of_stages

    if not weighs:
        return run({})[1], {}, None
    no_errors = {
        name: jnp.zeros((len(numbers), *site.shape), site.dtype)
        for name, site in sites.items()
    }
    results, transpose, of_stages = jax.vjp(run, no_errors, has_aux=True)
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
    return of_stages if keeps else [], effects, size


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
