"""Rematerialization: a gradient that keeps spikes, as bits, and no more.

A stage leads from the spikes of earlier sites to those of its own; currents and
potentials in between are computed anew, stage by stage, from the last one on.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax.network.equations import Network, Values, evaluate, firing, pooled, read
from snnjax.network.stages import Stage, stages, streaming


class _Kept(NamedTuple):
    """Spikes, and the bits that they are read from when they are needed again."""

    spikes: Any
    bits: Any
    threshold: Any


def outputs_from_bits(
    network: Network, values: Values, fire, streams, neurons, pool=pooled
):
    """The outputs, stage by stage; a gradient keeps the spikes as bits and no more.

    A stage leads from the spikes of earlier sites to those of its own, and is computed
    anew for its gradient.

    Args:
        fire, neurons, pool: as for `firing`; the functions hold no arrays, since they
            live on in a gradient.
    """
    known: dict[int | None, Any] = {**values}

    def computed(stage: Stage, params):
        pairs = zip(stage.segment.inputs, stage.sources, strict=True)
        timed = [inner for inner, v in pairs if v in streams]
        run = functools.partial(_run_stage, stage, timed, fire, pool)
        return _computed_anew(run, [known[v] for v in stage.sources], params)

    *others, last = stages(network)
    for stage in others:
        params = neurons[stage.place.name]
        spikes, carried = computed(stage, params)
        bits = jnp.packbits(spikes.reshape(-1) > 0)
        known[stage.output] = _Kept(spikes, bits, params.threshold)
        known.update(zip(stage.carried, carried, strict=True))
    return computed(last, None)[0]


def _run_stage(stage: Stage, timed, fire, pool, sources, params):
    """What a stage leads to, a site's spikes or the outputs, and what it carries on."""
    segment = stage.segment
    local = dict(zip(segment.inputs, sources, strict=True))
    marked = streaming(segment.equations, timed)
    evaluate(segment.equations, local, firing(fire, {}, pool), streams=marked)
    made = [jnp.asarray(read(local, v)) for v in segment.outputs]
    if stage.site is not None:
        made = fire(stage.site, params, made[0])
    return made, [local[v] for v in segment.carried]


def _computed_anew(run, sources, params):
    """``run(sources, params)`` that keeps its arguments alone, and spikes as bits.

    Not ``jax.checkpoint``: on CPU XLA finds that the second computation is the first
    one and keeps everything. Here it starts from the bits, so it is another one.
    """

    kept = [isinstance(source, _Kept) for source in sources]
    like = [s.spikes if k else None for s, k in zip(sources, kept, strict=True)]
    like = [None if s is None else jax.ShapeDtypeStruct(s.shape, s.dtype) for s in like]

    def decoded(sources):
        return [
            s if shape is None else _from_bits(s, shape)
            for s, shape in zip(sources, like, strict=True)
        ]

    @jax.custom_vjp
    def computed(sources, params):
        return run(decoded(sources), params)

    def forward(sources, params):
        bits = [s._replace(spikes=None) if isinstance(s, _Kept) else s for s in sources]
        return computed(sources, params), (bits, params)

    def backward(residuals, upstream):
        bits, params = _not_before(upstream, residuals)
        _, pull = jax.vjp(run, decoded(bits), params)
        slopes, of_params = pull(upstream)
        of_sources = [
            _Kept(slope, None, None) if k else slope
            for slope, k in zip(slopes, kept, strict=True)
        ]
        return of_sources, of_params

    computed.defvjp(forward, backward)
    return computed(sources, params)


def _not_before(upstream, residuals):
    """The residuals, but XLA cannot read them before ``upstream`` is there.

    Otherwise it may compute all stages anew at once. What it cannot know is that no
    gradient is NaN; ``optimization_barrier`` is ignored on CPU.
    """
    slopes = [s for s in jax.tree.leaves(upstream) if s.dtype != jax.dtypes.float0]
    if not slopes:
        return residuals
    broken = jnp.isnan(slopes[0].ravel()[0])

    def wait(value):
        if isinstance(value, _Kept):
            return value._replace(bits=jnp.where(broken, 0, value.bits))
        return value

    sources, params = residuals
    if params is not None:
        params = jax.tree.map(lambda p: jnp.where(broken, jnp.nan, p), params)
    return [wait(value) for value in sources], params


def _from_bits(kept: _Kept, like) -> jax.Array:
    fired = jnp.unpackbits(kept.bits, count=like.size).reshape(like.shape)
    return fired.astype(like.dtype) * kept.threshold.astype(like.dtype)
