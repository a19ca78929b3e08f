"""Compiled pieces of a conversion: from the spikes of some sites to the next site.

Each is of one micro-batch, whose images the devices share. Equal work of equal layers
is compiled once.
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
from snnjax.network.evaluate import identity, operator_rule
from snnjax.network.sites import Site
from snnjax.network.stages import Segment, run_segment
from snnjax.neurons.models import IntegrateAndFire, NeuronParams
from snnjax.neurons.spike_trains import SpikeTrain, decode
from snnjax.neurons.unroll import closed_form, needs_no_time, spike_train

Axes = tuple[int | None, ...]


class Work(NamedTuple):
    """A segment as a function of its sources: its outputs, then what it carries on.

    Attributes:
        segment: what is computed.
        streams: for each source whether it has a time axis.
        steps: T.
        code: of the spikes.
        site: whose activation takes the place of the first output; None: none does.
    """

    segment: Segment
    streams: tuple[bool, ...]
    steps: int
    code: Code
    site: Site | None = None

    def __call__(self, *sources: Any) -> tuple[jax.Array, ...]:
        rule = operator_rule(self.code)
        values = [_decoded(source, self.steps) for source in sources]
        outputs, carried = run_segment(self.segment, values, rule, self.streams)
        if self.site is not None:
            outputs[0] = identity(self.site, *outputs)
        return (*outputs, *carried)

    def axes(self, have_images: Sequence[bool]) -> tuple[Axes, Axes]:
        """The axis of the images of every source and result; None: it has none.

        Args:
            have_images: which of the sources have images.
        """
        segment = self.segment
        in_time, of_images = (
            segment.depending_on(itertools.compress(segment.inputs, which))
            for which in (self.streams, have_images)
        )

        def axis(variable: Any) -> int | None:
            return int(variable in in_time) if variable in of_images else None

        results = (*segment.outputs, *segment.carried)
        return tuple(map(axis, segment.inputs)), tuple(map(axis, results))


class Current(NamedTuple):
    """The mean current into a site as a function of its weights.

    Attributes:
        work: whose first result it is, of means.
        slots: positions among the sources that the weights take.
        axes: for each source the axis of the images, None if it has none.
    """

    work: Work
    slots: tuple[int, ...]
    axes: Axes

    def __call__(self, weights: Sequence[jax.Array], sources: Sequence[Any], rows):
        """That of the images with these numbers, None: of all; [B, ...]."""
        values = [
            source if axis is None or rows is None else jnp.take(source, rows, axis)
            for source, axis in zip(sources, self.axes, strict=True)
        ]
        for slot, weight in zip(self.slots, weights, strict=True):
            values[slot] = weight
        return self.work(*values)[0]


@functools.partial(jax.jit, static_argnames=("work", "have_images", "batch_sharding"))
def run(
    work: Work,
    sources: Sequence[Any],
    have_images: tuple[bool, ...],
    batch_sharding: NamedSharding | None,
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """Results of some work for a micro-batch; least and largest of an activation.

    Args:
        work: of a stage.
        sources: values; streams are arrays [T, B, ...] or a `SpikeTrain`.
        have_images: which of them have images; each device has its own.
        batch_sharding: how devices share the images.
    """
    in_axes, out_axes = work.axes(have_images)
    axes = tuple(map(_axes_of, sources, in_axes))
    results = sharding.on_each_device(work, batch_sharding, axes, out_axes)(*sources)
    if work.site is None:
        return results, None
    activation = results[0].astype(jnp.float32)
    return results, jnp.stack([activation.min(), activation.max()])


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
    static_argnames=("batch_sharding", "axes", "streams", "steps", "code", "every"),
)
def joined(
    batch_sharding: NamedSharding | None,
    values: Sequence[Sequence[Any]],
    axes: tuple[int, ...],
    streams: tuple[bool, ...],
    steps: int,
    code: Code,
    every: int = 1,
) -> list[jax.Array]:
    """Each value in one piece, from its micro-batches.

    Args:
        batch_sharding: how devices share the images.
        values: of each its micro-batches.
        axes: of each the axis of the images.
        streams: of each whether the value after T steps is wanted in place of it.
        steps, code: T, and the code of the spikes.
        every: one image in so many is wanted.
    """

    def join(parts: Sequence[Any], axis: int, stream: bool) -> jax.Array:
        if stream:
            parts, axis = [code.result(_decoded(p, steps)) for p in parts], 0
        images = jnp.concatenate(sampled(parts, axis, every), axis)
        return sharding.shared(images, axis, batch_sharding)

    return list(map(join, values, axes, streams))


def _axes_of(source: Any, axis: int | None) -> Any:
    """The axis of the images, for each array of a source."""
    if isinstance(source, SpikeTrain):
        return dataclasses.replace(source, bits=axis, threshold=None, offset=None)
    return axis


def _decoded(value: Any, steps: int) -> Any:
    return decode(value, steps) if isinstance(value, SpikeTrain) else value
