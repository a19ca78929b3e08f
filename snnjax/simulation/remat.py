"""Rematerialization: a gradient that keeps only the spikes, as bits.

A stage leads from the spikes of earlier sites to those of its own site. The gradient
recomputes the currents and potentials in between, stage by stage, the last one first.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax.firing import threshold_of
from snnjax.network.equations import Network, Values
from snnjax.network.evaluate import Rule, firing, identity
from snnjax.network.sites import Site
from snnjax.network.stages import Stage, run_segment, stages
from snnjax.neurons.protocol import Neuron, field, levels_of
from snnjax.neurons.spike_trains import (
    SpikeTrain,
    level_indices,
    pack,
    spikes_of,
    unpack,
)

Fire = Callable[..., jax.Array]  # (site, params, current) -> spikes


class _Encoded(NamedTuple):
    """Spikes, and their bits, from which a gradient reads them again.

    The bits are those of all spikes in one row, since T may be no multiple of 8.
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
    at_operator: Rule = identity,
) -> Any:
    """The outputs, stage by stage; a gradient keeps only the spikes, as bits.

    Args:
        values: variable -> value, of all that no step changes and of the input.
        fire, neurons, at_operator: as for `firing`; the functions must hold no arrays,
            since a gradient keeps them.
        streams: variables with a time axis.
        models: site name -> model, whose levels become bits.
    """
    store: dict[int | None, Any] = {**values}
    rule = firing(fire, {}, at_operator)

    def run(stage: Stage, sources: list[Any], params: Any) -> tuple[Any, list[Any]]:
        """The spikes of a site, or the outputs; and the values for later stages."""
        is_stream = [v in streams for v in stage.sources]
        results, later = run_segment(stage.segment, sources, rule, is_stream)
        if stage.site is None:
            return results, later
        return fire(stage.site, params, results[0]), later

    def computed(stage: Stage, params: Any) -> tuple[Any, list[Any]]:
        sources = [store[v] for v in stage.sources]
        return _with_recomputation(functools.partial(run, stage), sources, params)

    *others, last = stages(network)
    for stage in others:
        params = neurons[stage.place.name]
        levels = _levels(models[stage.place.name], stage.place)
        threshold, offset = threshold_of(params, stage.place), field(params, "offset")
        spikes, later_values = computed(stage, params)
        indices = level_indices(spikes, threshold, levels, offset).reshape(-1)
        train = SpikeTrain(pack(indices, levels), threshold, levels, offset)
        store[stage.output] = _Encoded(spikes, train)
        store.update(zip(stage.carried, later_values, strict=True))
    return computed(last, None)[0]


def _levels(model: Neuron, site: Site) -> tuple[int, int]:
    levels = levels_of(model)
    if levels is not None:
        return levels
    raise ValueError(
        f"remat keeps spikes as levels in bits; the model of site {site.name!r}, "
        f"{model!r}, states no levels. Give it an attribute levels = (low, high), with "
        "spikes that are whole multiples of its parameter threshold, or leave remat out"
    )


def _with_recomputation(
    run: Callable, sources: list[Any], params: Any
) -> tuple[Any, list[Any]]:
    """``run(sources, params)``, whose gradient keeps only the arguments.

    Not ``jax.checkpoint``: on CPU, XLA detects that the second computation equals the
    first one and keeps everything. Here the second one starts from the bits.
    """
    types = [jax.typeof(s.spikes) if isinstance(s, _Encoded) else None for s in sources]

    def decoded(sources: list[Any]) -> list[Any]:
        return [
            source if spikes is None else _decode(source.train, spikes)
            for source, spikes in zip(sources, types, strict=True)
        ]

    # Spikes are arguments, so that their gradient goes on to the stage that sent them,
    # but they are decoded from bits here as well: both passes then see equal numbers.
    @jax.custom_vjp
    def computed(sources, params):
        return run(decoded(sources), params)

    def forward(sources, params):
        bits = [
            s._replace(spikes=None) if isinstance(s, _Encoded) else s for s in sources
        ]
        return computed(sources, params), (bits, params)

    def backward(residuals, upstream):
        bits, params = _available_after(upstream, residuals)
        _, pull = jax.vjp(run, decoded(bits), params)
        slopes, of_params = pull(upstream)
        of_sources = [
            slope if spikes is None else _Encoded(slope, None)
            for slope, spikes in zip(slopes, types, strict=True)
        ]
        return of_sources, of_params

    computed.defvjp(forward, backward)
    return computed(sources, params)


def _available_after(
    upstream: Any, residuals: tuple[list[Any], Any]
) -> tuple[list, Any]:
    """The same residuals, but XLA has to compute ``upstream`` before it reads them.

        bits = where(isnan(slope), 0, bits)    for one number of the upstream gradient

    Otherwise XLA may recompute all stages at once, and hold them. On CPU it ignores
    ``optimization_barrier``, but cannot know that no gradient is NaN. If one is, the
    parameters become NaN as well.
    """
    slopes = [s for s in jax.tree.leaves(upstream) if s.dtype != jax.dtypes.float0]
    if not slopes:
        return residuals
    broken = jnp.isnan(slopes[0].ravel()[0])  # one number is enough to wait for

    def after(value):
        if not isinstance(value, _Encoded):
            return value
        bits = jnp.where(broken, jnp.uint8(0), value.train.bits)
        return value._replace(train=dataclasses.replace(value.train, bits=bits))

    sources, params = residuals
    if params is not None:
        params = jax.tree.map(lambda p: jnp.where(broken, jnp.nan, p), params)
    return [after(value) for value in sources], params


def _decode(train: SpikeTrain, like: Any) -> jax.Array:
    """The spikes of these bits, in the shape and type of others."""
    indices = unpack(train.bits, like.size, train.levels).reshape(like.shape)
    return spikes_of(indices, dataclasses.replace(train, dtype=like.dtype))
