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
from snnjax._arrays import lead, sampled, subtract_offset
from snnjax.calibrators.view import Dynamics
from snnjax.codes import Code
from snnjax.network.evaluate import identity, operator_rule
from snnjax.network.sites import Site
from snnjax.network.stages import Segment, run_segment
from snnjax.neurons.models import NeuronParams
from snnjax.neurons.spike_trains import SpikeTrain, decode, unpack
from snnjax.neurons.unroll import after_all_input, spike_train

Axes = tuple[int | None, ...]


class Results(NamedTuple):
    """What a stage gives for a micro-batch.

    The outputs are a site's current or activation and its maximum, or the network's;
    the ends are the least and the largest activation.
    """

    outputs: tuple[jax.Array, ...]
    carried: tuple[jax.Array, ...]
    ends: jax.Array | None = None


class Work(NamedTuple):
    """A segment as a function of its sources, some of which have a time axis.

    With a site its activation takes the place of the first output.
    """

    segment: Segment
    streams: tuple[bool, ...]
    steps: int
    code: Code
    site: Site | None = None

    def __call__(self, *sources: Any) -> Results:
        rule = operator_rule(self.code)
        values = [_decoded(source, self.steps) for source in sources]
        outputs, carried = run_segment(self.segment, values, rule, self.streams)
        if self.site is not None:
            outputs[0] = identity(self.site, *outputs)
        return Results(tuple(outputs), tuple(carried))

    def axes(self, have_images: Sequence[bool]) -> tuple[Axes, Results]:
        """The axis of the images of every source and result; None: it has none."""
        segment = self.segment
        in_time, of_images = (
            segment.depending_on(itertools.compress(segment.inputs, which))
            for which in (self.streams, have_images)
        )

        def axis(variable: Any) -> int | None:
            return int(variable in in_time) if variable in of_images else None

        results = segment.outputs, segment.carried
        of_results: Any = (tuple(map(axis, variables)) for variables in results)
        return tuple(map(axis, segment.inputs)), Results(*of_results)


class Current(NamedTuple):
    """The mean current into a site as a function of its weights.

    They take the slots among the sources of the work, whose images lie on these axes.
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
        return self.work(*values).outputs[0]


@functools.partial(jax.jit, static_argnames=("work", "have_images", "batch_sharding"))
def run(
    work: Work,
    sources: Sequence[Any],
    have_images: tuple[bool, ...],
    batch_sharding: NamedSharding | None,
) -> Results:
    """Results of some work for a micro-batch; each device has its own images."""
    in_axes, out_axes = work.axes(have_images)
    axes = tuple(map(_axes_of, sources, in_axes))
    results = sharding.on_each_device(work, batch_sharding, axes, out_axes)(*sources)
    if work.site is None:
        return results
    activation = results.outputs[0].astype(jnp.float32)
    return results._replace(ends=jnp.stack([activation.min(), activation.max()]))


@functools.partial(jax.jit, static_argnames="dynamics")
def fire(
    dynamics: Dynamics, neurons: NeuronParams, current: jax.Array
) -> tuple[Any, jax.Array]:
    """Output of a site for later stages, spikes or the result of all of them, and the
    number of spikes of each image.
    """
    model, steps, code = dynamics.model, dynamics.steps, dynamics.code
    if dynamics.needs_time:
        run = {"wait": dynamics.wait, "code": code}
        train = spike_train(model, neurons, dynamics.arriving(current), **run)
        counts = unpack(train.bits, steps, model.levels) != -model.levels[0]
        return train, counts.sum((0, *range(2, counts.ndim)))
    output = dynamics.closed_form(neurons, current)
    if code.clock_runs:  # in as many of the largest spikes as it takes
        own = subtract_offset(output, neurons.offset).astype(jnp.float32)
        size = lead(neurons.threshold, own.ndim) * (model.levels[1] / steps)
        counts = jnp.ceil(jnp.abs(own) / size - 1e-3)
    else:
        if neurons.offset is not None:  # which is no spike
            bias = neurons.bias - neurons.offset
            neurons = neurons._replace(bias=bias, offset=None)
        spikes = after_all_input(model, neurons, current, steps, code=code)
        counts = (spikes != 0).sum(0)
    return output, counts.sum(tuple(range(1, counts.ndim)))


@functools.partial(
    jax.jit, static_argnames=("in_time", "steps", "code", "every", "batch_sharding")
)
def joined(
    values: Sequence[Sequence[Any]],
    in_time: tuple[bool, ...],
    steps: int,
    code: Code,
    every: int,
    batch_sharding: NamedSharding | None,
) -> list[jax.Array]:
    """Each value in one piece, of every n-th image; after T steps if it is in time."""

    def join(parts: Sequence[Any], is_in_time: bool) -> jax.Array:
        if is_in_time:
            parts = [code.result(_decoded(part, steps)) for part in parts]
        images = jnp.concatenate(sampled(parts, 0, every))
        return sharding.shared(images, 0, batch_sharding)

    return list(map(join, values, in_time))


def _axes_of(source: Any, axis: int | None) -> Any:
    """The axis of the images, for each array of a source."""
    if isinstance(source, SpikeTrain):
        return dataclasses.replace(source, bits=axis, threshold=None, offset=None)
    return axis


def _decoded(value: Any, steps: int) -> Any:
    return decode(value, steps) if isinstance(value, SpikeTrain) else value
