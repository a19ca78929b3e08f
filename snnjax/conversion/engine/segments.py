"""Compiled pieces of a conversion: from the spikes of some sites to the next site.

Each carries micro-batches of activations, or of spikes (in bits), over a stage,
every device its own images. Equal work of equal layers is compiled once.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
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
from snnjax.neurons.unroll import (
    closed_form,
    mean_and_pace,
    mean_output,
    needs_no_time,
    spike_train,
)


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
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Results of a stage and what it carries on, each device for its own images.

    Args:
        batch_sharding: how devices share the images.
        stage: the work.
        moving: for each source whether it has images.
        streams: for each source whether it has a time axis.
        steps, code: T, and the code of the spikes.
        sources: values; streams are arrays [T, B, ...] or a `SpikeTrain`.
    """
    program = _compiled(batch_sharding, moving)
    return program(stage.segment, streams, steps, code, sources)


@functools.cache
def _compiled(
    batch_sharding: NamedSharding | None, moving: tuple[bool, ...]
) -> Callable:
    @functools.partial(jax.jit, static_argnames=("segment", "streams", "steps", "code"))
    def program(
        segment: Segment, streams: tuple[bool, ...], steps: int, code: Code, sources
    ):
        def here(sources):
            return _run(segment, streams, steps, code, sources)

        if batch_sharding is None:
            return here(sources)
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
        return share(sources)

    return program


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


def _at_site(over_steps: Callable, of_mean: Callable = lambda mean: mean) -> Callable:
    """What a site does with its current, compiled.

    Args:
        over_steps: (neuron, params, currents, wait, code) -> result.
        of_mean: mean output -> result, with a wait of T, when nothing needs a loop.
    """

    names = ("neuron", "steps", "wait", "ndim", "code")

    @functools.partial(jax.jit, static_argnames=names)
    def program(
        neuron: IntegrateAndFire,
        params: NeuronParams,
        current: jax.Array,
        steps: int,
        wait: int,
        ndim: int,
        code: Code,
    ):
        if needs_no_time(code, steps, wait):
            return of_mean(closed_form(neuron, params, current, steps, code=code))
        currents = code.arriving(over_time(current, steps, ndim))
        return over_steps(neuron, params, currents, wait=wait, code=code)

    return program


# Output of a site for later stages: its mean with a wait of T, or its spikes.
fire = _at_site(spike_train)
# Mean output of a site over its T steps, [B, ...].
output = _at_site(mean_output)
# `mean_and_pace` of a site, [B, ...] each. With a wait of T the next layer waits for
# all of its output, so its pace is its mean.
paced = _at_site(mean_and_pace, lambda mean: (mean, mean))


@functools.partial(jax.jit, static_argnames=("steps", "code"))
def result(value: Any, steps: int, code: Code) -> jax.Array:
    """What a stream has told after its T steps, [B, ...]."""
    return code.result(_decoded(value, steps))


def joined(
    batch_sharding: NamedSharding | None, values: Iterable[Any], axis: int, every: int
) -> Any:
    """One stream of all micro-batches, of one image in so many; images are ``axis``."""
    values = list(values)
    if isinstance(values[0], SpikeTrain):
        parts = sampled([train.bits for train in values], axis, every)
        bits = sharding.join(parts, axis, batch_sharding)
        return dataclasses.replace(values[0], bits=bits)
    return sharding.join(sampled(values, axis, every), axis, batch_sharding)


def _take(values: Any, rows: jax.Array, axis: int) -> Any:
    if isinstance(values, SpikeTrain):
        return dataclasses.replace(values, bits=jnp.take(values.bits, rows, axis))
    return jnp.take(values, rows, axis)
