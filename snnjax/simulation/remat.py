"""Rematerialization: a gradient that keeps spikes, as bits, and no more.

A stage leads from the spikes of earlier sites to those of its own; currents and
potentials in between are computed anew, stage by stage, from the last one on.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax.firing import unit
from snnjax.network.equations import Network, Values
from snnjax.network.evaluate import Rule, firing, identity
from snnjax.network.sites import Site
from snnjax.network.stages import Stage, run_segment, stages
from snnjax.neurons.protocol import Neuron, field, levels_of
from snnjax.neurons.spike_trains import SpikeTrain, code, pack, spikes_of, unpack

# (site, params, current) -> spikes
Fire = Callable[..., jax.Array]
# sources, params -> (results of a stage, values that it carries on)
Run = Callable[[list[Any], Any], tuple[Any, list[Any]]]


class _Encoded(NamedTuple):
    """Spikes, and the train that a gradient reads them from when it needs them again.

    The bits are those of all spikes in one row, so that T need not be a multiple of 8.
    """

    spikes: Any
    train: Any


def outputs_from_bits(
    network: Network,
    values: Values,
    fire: Fire,
    streams: frozenset[int],
    neurons: Mapping[str, Any],
    models: Mapping[str, Neuron],
    accumulate: Rule = identity,
) -> Any:
    """The outputs, stage by stage; a gradient keeps the spikes as bits and no more.

    A stage leads from the spikes of earlier sites to those of its own, and is computed
    anew for its gradient.

    Args:
        network: captured for the input.
        values: variable -> value, of all that no step changes and of the input.
        fire, neurons, accumulate: as for `firing`; the functions hold no arrays, since
            they live on in a gradient.
        models: site name -> model, whose levels become bits.
        streams: variables with a time axis.
    """
    store: dict[int | None, Any] = {**values}

    def computed(stage: Stage, params: Any) -> tuple[Any, list[Any]]:
        timed = tuple(v in streams for v in stage.sources)
        run = functools.partial(_run_stage, stage, timed, fire, accumulate)
        return _computed_anew(run, [store[v] for v in stage.sources], params)

    *others, last = stages(network)
    for stage in others:
        params = neurons[stage.place.name]
        levels = _levels(models[stage.place.name], stage.place)
        threshold, offset = unit(params, stage.place), field(params, "offset")
        spikes, carried = computed(stage, params)
        codes = code(spikes, threshold, levels, offset).reshape(-1)
        train = SpikeTrain(pack(codes, levels), threshold, levels, offset)
        store[stage.output] = _Encoded(spikes, train)
        store.update(zip(stage.carried, carried, strict=True))
    return computed(last, None)[0]


def _levels(model: Neuron, site: Site) -> tuple[int, int]:
    levels = levels_of(model)
    if levels is None:
        raise ValueError(
            f"remat keeps spikes as levels in bits; the model of site {site.name!r}, "
            f"{model!r}, states no levels. Give it an attribute levels = (low, high), "
            "with spikes that are whole multiples of its parameter threshold, or leave "
            "remat out"
        )
    return levels


def _run_stage(
    stage: Stage,
    timed: Sequence[bool],
    fire: Fire,
    accumulate: Rule,
    sources: Sequence[Any],
    params: Any,
) -> tuple[Any, list[Any]]:
    """A site's spikes or the outputs, and what the stage carries on."""
    rule = firing(fire, {}, accumulate)
    results, carried = run_segment(stage.segment, sources, rule, timed)
    if stage.site is not None:
        return fire(stage.site, params, results[0]), carried
    return results, carried


def _computed_anew(run: Run, sources: list[Any], params: Any) -> tuple[Any, list[Any]]:
    """``run(sources, params)`` that keeps its arguments alone, and spikes as bits.

    Not ``jax.checkpoint``: on CPU XLA detects that the second computation equals the
    first one and keeps everything. Here it starts from the bits, so it is another one.
    """
    encoded = [isinstance(source, _Encoded) for source in sources]
    shapes = [_struct(s.spikes) if isinstance(s, _Encoded) else None for s in sources]

    def decoded(sources: list[Any]) -> list[Any]:
        return [
            source if shape is None else _decode(source.train, shape)
            for source, shape in zip(sources, shapes, strict=True)
        ]

    @jax.custom_vjp
    def computed(sources, params):
        return run(decoded(sources), params)

    def forward(sources, params):
        bits = [
            s._replace(spikes=None) if isinstance(s, _Encoded) else s for s in sources
        ]
        return computed(sources, params), (bits, params)

    def backward(residuals, upstream):
        bits, params = _not_before(upstream, residuals)
        _, pull = jax.vjp(run, decoded(bits), params)
        slopes, of_params = pull(upstream)
        of_sources = [
            _Encoded(slope, None) if is_bits else slope
            for slope, is_bits in zip(slopes, encoded, strict=True)
        ]
        return of_sources, of_params

    computed.defvjp(forward, backward)
    return computed(sources, params)


def _not_before(upstream: Any, residuals: tuple[list[Any], Any]) -> tuple[list, Any]:
    """The residuals, but XLA cannot read them before ``upstream`` is there.

    Otherwise it may compute all stages anew at once. What it cannot know is that no
    gradient is NaN; ``optimization_barrier`` is ignored on CPU.
    """
    slopes = [s for s in jax.tree.leaves(upstream) if s.dtype != jax.dtypes.float0]
    if not slopes:
        return residuals
    broken = jnp.isnan(slopes[0].ravel()[0])

    def after(value):
        if not isinstance(value, _Encoded):
            return value
        bits = jnp.where(broken, jnp.uint8(0), value.train.bits)
        return value._replace(train=dataclasses.replace(value.train, bits=bits))

    sources, params = residuals
    if params is not None:
        params = jax.tree.map(lambda p: jnp.where(broken, jnp.nan, p), params)
    return [after(value) for value in sources], params


def _decode(train: SpikeTrain, like: jax.ShapeDtypeStruct) -> jax.Array:
    codes = unpack(train.bits, like.size, train.levels).reshape(like.shape)
    return spikes_of(codes, dataclasses.replace(train, dtype=like.dtype))


def _struct(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
