"""Compiled pieces of a conversion: from the spikes of some sites to the next site.

`run` carries a micro-batch of activations, or of spikes (in bits), over a stage. Each
device computes its own images. Equal work of equal layers is compiled once.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
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
from snnjax.network.stages import Segment, run_segment
from snnjax.neurons.models import IntegrateAndFire, NeuronParams
from snnjax.neurons.spike_trains import SpikeTrain, decode
from snnjax.neurons.unroll import closed_form, needs_no_time, spike_train


class Work(NamedTuple):
    """A segment as a pure function of its sources; hashable, for ``jit``.

    Attributes:
        segment: what is computed.
        streams: for each source whether it has a time axis.
        steps: T.
        code: of the spikes.
    """

    segment: Segment
    streams: tuple[bool, ...]
    steps: int
    code: Code

    def __call__(
        self, sources: Sequence[Any]
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Results of the segment, and what it carries on."""
        accumulate = accumulating(self.code)

        def rule(site: Site, *arguments: Any) -> Any:
            return (accumulate if site.accumulates else identity)(site, *arguments)

        values = [_decoded(source, self.steps) for source in sources]
        return run_segment(self.segment, values, rule, self.streams)


class Current(NamedTuple):
    """The mean current into a site as a pure function; hashable, for ``jit``.

    Attributes:
        work: whose first result it is.
        slots: positions among the sources that the weights take.
        axes: for each source the axis of the images, None if it has none.
    """

    work: Work
    slots: tuple[int, ...]
    axes: tuple[int | None, ...]

    def __call__(self, weights: Sequence[jax.Array], sources: Sequence[Any], rows):
        """That of the images with these numbers, None: of all; [B, ...]."""
        values = [
            source if axis is None or rows is None else _take(source, rows, axis)
            for source, axis in zip(sources, self.axes, strict=True)
        ]
        for slot, weight in zip(self.slots, weights, strict=True):
            values[slot] = weight
        (current, *_), _ = self.work(values)
        return current


# ----------------------------------------------------------- compiled pieces


@functools.partial(
    jax.jit, static_argnames=("work", "has_images", "batch_sharding", "site")
)
def run(
    work: Work,
    sources: Sequence[Any],
    has_images: tuple[bool, ...],
    batch_sharding: NamedSharding | None,
    site: Site | None = None,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Results of a stage and what it carries on, each device for its own images.

    Args:
        work: of the stage.
        sources: values; streams are arrays [T, B, ...] or a `SpikeTrain`.
        has_images: for each source whether it has images.
        batch_sharding: how devices share the images.
        site: whose activation is applied to the first result; the least and the
            largest of these numbers follow the other results. None: neither.
    """

    def on_one_device(sources: Sequence[Any]) -> tuple[list, list]:
        results, carried_values = work(sources)
        if site is not None:
            results = [identity(site, *results), *results[1:]]
        return results, carried_values

    segment = work.segment
    in_axes = [
        _image_axes(source, 1 if stream else 0) if images else None
        for source, stream, images in zip(
            sources, work.streams, has_images, strict=True
        )
    ]
    in_time, of_images = (
        segment.depending_on(itertools.compress(segment.inputs, which))
        for which in (work.streams, has_images)
    )
    axes = tuple(
        [(1 if v in in_time else 0) if v in of_images else None for v in results]
        for results in (segment.outputs, segment.carried)
    )
    on_all = sharding.on_each_device(on_one_device, batch_sharding, (in_axes,), axes)
    results, carried_values = on_all(sources)
    if site is not None:
        a = results[0].astype(jnp.float32)
        results = [*results, jnp.stack([a.min(), a.max()])]
    return results, carried_values


def _image_axes(source: Any, axis: int) -> Any:
    if isinstance(source, SpikeTrain):
        return dataclasses.replace(source, bits=axis, threshold=None, offset=None)
    return axis


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
    static_argnames=("batch_sharding", "axes", "takes_mean", "steps", "code", "every"),
)
def joined(
    batch_sharding: NamedSharding | None,
    sources: Sequence[Sequence[Any]],
    axes: tuple[int, ...],
    takes_mean: tuple[bool, ...],
    steps: int,
    code: Code,
    every: int,
) -> list[Any]:
    """Each source in one piece, from its parts of all micro-batches.

    Args:
        batch_sharding: how devices share the images.
        sources: of each its parts.
        axes: of each the axis of the images.
        takes_mean: of each whether only its value after the T steps is wanted.
        steps, code: T, and the code of the spikes.
        every: one image in so many is wanted.
    """

    def join(parts: Sequence[Any], axis: int, over_time: bool) -> Any:
        if over_time:
            parts = [code.result(_decoded(part, steps)) for part in parts]
        if not isinstance(parts[0], SpikeTrain):
            images = jnp.concatenate(sampled(parts, axis, every), axis)
            return sharding.shared(images, axis, batch_sharding)
        bits = join([train.bits for train in parts], axis, False)
        return dataclasses.replace(parts[0], bits=bits)

    return list(map(join, sources, axes, takes_mean))


def _take(values: Any, rows: jax.Array, axis: int) -> Any:
    if isinstance(values, SpikeTrain):
        return dataclasses.replace(values, bits=jnp.take(values.bits, rows, axis))
    return jnp.take(values, rows, axis)
