"""Compiled pieces of a conversion, each from the spikes of some sites to the next one.

A piece is a hashable pure function of one micro-batch. `each` computes it for all
images; equal work of equal layers is compiled once.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax import sharding
from snnjax.codes import Code
from snnjax.conversion.engine.micro_batches import Images, in_micro_batches
from snnjax.firing import over_time
from snnjax.network.evaluate import accumulating, identity
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
        site: whose activation is applied to the first output; None: none is.
    """

    segment: Segment
    streams: tuple[bool, ...]
    steps: int
    code: Code
    site: Site | None = None

    def __call__(self, *sources: Any) -> tuple[jax.Array, ...]:
        accumulate = accumulating(self.code)

        def rule(site: Site, *arguments: Any) -> Any:
            return (accumulate if site.accumulates else identity)(site, *arguments)

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


class After(NamedTuple):
    """``function(current, *others)`` of the first result of some work, then the rest.

    Attributes:
        work: None if the first argument is the current itself.
        function: returns a tuple.
        sources: how many of the arguments the work takes.
    """

    work: Work | None
    function: Callable[..., tuple]
    sources: int = 1

    def __call__(self, *arguments: Any) -> tuple:
        sources, others = arguments[: self.sources], arguments[self.sources :]
        current, *carried = self.work(*sources) if self.work else sources
        return (*self.function(current, *others), *carried)


class Fire(NamedTuple):
    """The output of a site for later stages, of its current and its parameters.

    Spikes as (bits, threshold, offset) of a `SpikeTrain`; (mean,) where a layer waits
    for all of its input.
    """

    neuron: IntegrateAndFire
    steps: int
    wait: int
    ndim: int
    code: Code

    @property
    def axes(self) -> Axes:
        """The axis of the images of every result."""
        means = needs_no_time(self.code, self.steps, self.wait)
        return (0,) if means else (1, None, None)

    def __call__(self, current: jax.Array, params: NeuronParams) -> tuple:
        if needs_no_time(self.code, self.steps, self.wait):
            run = self.neuron, params, current, self.steps
            return (closed_form(*run, code=self.code),)
        currents = self.code.arriving(over_time(current, self.steps, self.ndim))
        run = self.neuron, params, currents
        train = spike_train(*run, wait=self.wait, code=self.code)
        return train.bits, train.threshold, train.offset


class Readout(NamedTuple):
    """The values after T steps of all outputs of some work.

    Attributes:
        work: of the last stage.
        streams: for each output whether it has a time axis.
    """

    work: Work
    streams: tuple[bool, ...]

    def __call__(self, *sources: Any) -> tuple[jax.Array, ...]:
        pairs = zip(self.work(*sources), self.streams, strict=True)
        return tuple(self.work.code.result(y) if s else y for y, s in pairs)


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


@functools.partial(
    jax.jit, static_argnames=("function", "images", "in_axes", "out_axes")
)
def each(
    function: Callable[..., tuple],
    images: Images,
    arguments: Sequence[Any],
    in_axes: Axes,
    out_axes: Axes,
) -> tuple:
    """Results of all images, micro-batch by micro-batch; see `in_micro_batches`."""
    axes = map(_axes_of, arguments, in_axes)
    return in_micro_batches(function, images, list(axes), out_axes)(*arguments)


@functools.partial(
    jax.jit, static_argnames=("images", "axes", "streams", "steps", "code", "every")
)
def thinned(
    images: Images,
    sources: Sequence[Any],
    axes: Axes,
    streams: tuple[bool, ...],
    steps: int,
    code: Code,
    every: int,
) -> list[jax.Array]:
    """One image in so many of every source: its value after the T steps.

    Args:
        images: of which images.
        sources: each with images.
        axes: of each the axis of its images.
        streams: of each whether it has a time axis.
        steps, code: T, and the code of the spikes.
        every: one image in so many is wanted.
    """

    def thin(source: Any, axis: int, stream: bool) -> jax.Array:
        if isinstance(source, SpikeTrain):
            source = dataclasses.replace(source, bits=images.of(source.bits, axis))
        else:
            source = images.of(source, axis)
        value = code.result(_decoded(source, steps)) if stream else source
        return sharding.shared(value[::every], 0, images.batch_sharding)

    return list(map(thin, sources, axes, streams))


def _axes_of(source: Any, axis: int | None) -> Any:
    """The axis of the images, for each array of a source."""
    if isinstance(source, SpikeTrain):
        return dataclasses.replace(source, bits=axis, threshold=None, offset=None)
    return axis


def _decoded(value: Any, steps: int) -> Any:
    return decode(value, steps) if isinstance(value, SpikeTrain) else value
