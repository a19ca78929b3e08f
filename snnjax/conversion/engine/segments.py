"""Compiled pieces of a conversion: from the spikes of some sites to the next site.

Each carries micro-batches of activations, or of spikes (in bits), over a stage,
every device its own images. Equal work of equal layers is compiled once.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._arrays import sampled
from snnjax.codes import Code
from snnjax.firing import over_time
from snnjax.network.evaluate import accumulating, identity
from snnjax.network.sites import Site
from snnjax.network.stages import Segment, Stage, run_segment
from snnjax.neurons.models import IntegrateAndFire, NeuronParams
from snnjax.neurons.spike_trains import SpikeTrain, decode
from snnjax.neurons.unroll import closed_form, needs_no_time, spike_train


class Current(NamedTuple):
    """The current into a site as a pure function; hashable, for ``jit``.

    Attributes:
        segment: the work.
        streams: which of its inputs are streams.
        steps: T.
        code: of the spikes.
        slots: positions among the inputs that the weights take.
        axes: for each input the axis of the images, None if it has none.
        ndim: axes of the site; None for the mean over time.
    """

    segment: Segment
    streams: tuple[bool, ...]
    steps: int
    code: Code
    slots: tuple[int, ...]
    axes: tuple[int | None, ...]
    ndim: int | None

    def __call__(self, weights: Sequence[jax.Array], sources: Sequence[Any], rows):
        """The current of these images: its mean [B, ...], or all of it [T, B, ...].

        ``rows`` are the images' numbers, or None for all of them.
        """
        chosen = [
            source if axis is None or rows is None else _take(source, rows, axis)
            for source, axis in zip(sources, self.axes, strict=True)
        ]
        for slot, weight in zip(self.slots, weights, strict=True):
            chosen[slot] = weight
        run = self.segment, self.streams, self.steps, self.code
        (current, *_), _ = _run(*run, chosen)
        if self.ndim is None:
            return current
        return self.code.arriving(over_time(current, self.steps, self.ndim))


# ----------------------------------------------------------- compiled pieces


def run(
    batch_sharding: NamedSharding | None,
    stage: Stage,
    moving: tuple[bool, ...],
    streams: tuple[bool, ...],
    steps: int,
    code: Code,
    sources: Sequence[Any],
    site: Site | None = None,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Results of a stage and what it carries on, each device for its own images.

    Args:
        batch_sharding: how devices share the images.
        stage: the work.
        moving: for each source whether it has images.
        streams: for each source whether it has a time axis.
        steps, code: T, and the code of the spikes.
        sources: values; streams are arrays [T, B, ...] or a `SpikeTrain`.
        site: whose activation is applied to the first result; the least and the
            largest of these numbers follow the other results. None: neither.
    """
    site = site and site._replace(name="", parameters=(), depth=0)
    program = _compiled(batch_sharding, moving)
    return program(stage.segment, streams, steps, code, sources, site)


@functools.cache
def _compiled(
    batch_sharding: NamedSharding | None, moving: tuple[bool, ...]
) -> Callable:
    @functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 5))
    def program(
        segment: Segment,
        streams: tuple[bool, ...],
        steps: int,
        code: Code,
        sources,
        site,
    ):
        def here(sources):
            results, carried = _run(segment, streams, steps, code, sources)
            if site is not None:
                results = [identity(site, *results), *results[1:]]
            return results, carried

        if batch_sharding is None:
            return _with_range(*here(sources), site)
        in_axes = [
            _image_axes(source, 1 if stream else 0) if moves else None
            for source, stream, moves in zip(sources, streams, moving, strict=True)
        ]
        timed, of_images = (
            segment.depending_on(itertools.compress(segment.inputs, which))
            for which in (streams, moving)
        )
        axes = [
            [(1 if v in timed else 0) if v in of_images else None for v in results]
            for results in (segment.outputs, segment.carried)
        ]
        share = sharding.on_each_device(here, batch_sharding, (in_axes,), tuple(axes))
        results, carried = share(sources)
        return _with_range(results, carried, site)

    return program


def _with_range(
    results: list[jax.Array], carried: list[jax.Array], site: Site | None
) -> tuple[list[jax.Array], list[jax.Array]]:
    """For a site also the least and the largest of its activations."""
    if site is not None:
        a = results[0].astype(jnp.float32)
        results = [*results, jnp.stack([a.min(), a.max()])]
    return results, carried


def _image_axes(source: Any, axis: int) -> Any:
    if isinstance(source, SpikeTrain):
        return dataclasses.replace(source, bits=axis, threshold=None, offset=None)
    return axis


def _run(
    segment: Segment,
    streams: tuple[bool, ...],
    steps: int,
    code: Code,
    sources: Sequence[Any],
) -> tuple[list[jax.Array], list[jax.Array]]:
    decoded = [_decoded(value, steps) for value in sources]
    accumulate = accumulating(code)

    def rule(site: Site, *arguments: Any) -> Any:
        return (accumulate if site.accumulates else identity)(site, *arguments)

    return run_segment(segment, decoded, rule, streams)


def _decoded(value: Any, steps: int) -> Any:
    return decode(value, steps) if isinstance(value, SpikeTrain) else value


@functools.partial(jax.jit, static_argnames=("neuron", "steps", "wait", "ndim", "code"))
def fire(
    neuron: IntegrateAndFire,
    params: NeuronParams,
    current: jax.Array,
    steps: int,
    wait: int,
    ndim: int,
    code: Code,
) -> Any:
    """Output of a site for later stages: spikes, or the result of all of them."""
    if needs_no_time(code, steps, wait):
        return closed_form(neuron, params, current, steps, code=code)
    currents = code.arriving(over_time(current, steps, ndim))
    return spike_train(neuron, params, currents, wait=wait, code=code)


@functools.partial(
    jax.jit,
    static_argnames=("batch_sharding", "axes", "averaged", "steps", "code", "every"),
)
def joined(
    batch_sharding: NamedSharding | None,
    sources: Sequence[Sequence[Any]],
    axes: tuple[int, ...],
    averaged: tuple[bool, ...],
    steps: int,
    code: Code,
    every: int,
) -> list[Any]:
    """Each source in one piece, from its parts of all micro-batches.

    Args:
        batch_sharding: how devices share the images.
        sources: of each its parts.
        axes: of each the axis of the images.
        averaged: of each whether only its value after the T steps is wanted.
        steps, code: T, and the code of the spikes.
        every: one image in so many is wanted.
    """

    def join(parts: Sequence[Any], axis: int, over_time: bool) -> Any:
        if over_time:
            parts = [code.result(_decoded(part, steps)) for part in parts]
        if not isinstance(parts[0], SpikeTrain):
            chosen = sampled(parts, axis, every)
            return sharding.shared(jnp.concatenate(chosen, axis), axis, batch_sharding)
        bits = join([train.bits for train in parts], axis, False)
        return dataclasses.replace(parts[0], bits=bits)

    return list(map(join, sources, axes, averaged))


def _take(values: Any, rows: jax.Array, axis: int) -> Any:
    if isinstance(values, SpikeTrain):
        return dataclasses.replace(values, bits=jnp.take(values.bits, rows, axis))
    return jnp.take(values, rows, axis)
