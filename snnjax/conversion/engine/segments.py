"""Compiled pieces of a conversion, each from the spikes of some sites to the next one.

A `Work` is a hashable pure function of one micro-batch; a `Piece` has what it takes, of
all images. Equal work of equal layers is compiled once.
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
from snnjax.conversion.engine.micro_batches import Axes, Images, each
from snnjax.firing import over_time
from snnjax.network.evaluate import identity, operator_rule
from snnjax.network.sites import Site
from snnjax.network.stages import Segment, run_segment
from snnjax.neurons.models import IntegrateAndFire, NeuronParams
from snnjax.neurons.spike_trains import SpikeTrain, decode
from snnjax.neurons.unroll import closed_form, needs_no_time, spike_train

NOTHING = Segment((), (0,), (0,), ())  # its output is its input


class Work(NamedTuple):
    """A segment as a function: ``then(outputs, *others)``, and what it carries on.

    Attributes:
        segment: what is computed.
        streams: for each source whether it has a time axis.
        steps: T.
        code: of the spikes.
        then: returns a tuple; hashable. None: the outputs are the results.
    """

    segment: Segment
    streams: tuple[bool, ...]
    steps: int
    code: Code
    then: Callable[..., Sequence] | None = None

    def __call__(self, *arguments: Any) -> tuple[jax.Array, ...]:
        rule = operator_rule(self.code)
        count = len(self.segment.inputs)
        values = [_decoded(source, self.steps) for source in arguments[:count]]
        results, carried = run_segment(self.segment, values, rule, self.streams)
        if self.then is not None:
            results = self.then(results, *arguments[count:])
        return (*results, *carried)

    def axes(self, have_images: Sequence[bool]) -> tuple[Axes, Axes, Axes]:
        """The axis of the images of every source, output, and value carried on.

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

        in_axes = tuple(map(axis, segment.inputs))
        out_axes = tuple(map(axis, segment.outputs))
        return in_axes, out_axes, tuple(map(axis, segment.carried))


class Piece(NamedTuple):
    """Work of a stage for all images.

    Attributes:
        work: with or without what it carries on.
        sources: values that it takes.
        in_axes, out_axes, carried_axes: see `Work.axes`.
    """

    work: Work
    sources: Sequence[Any]
    in_axes: Axes
    out_axes: Axes
    carried_axes: Axes = ()

    def alone(self) -> "Piece":
        """The same without what it carries on."""
        segment = self.work.segment._replace(carried=())
        return self._replace(work=self.work._replace(segment=segment), carried_axes=())

    def run(
        self,
        images: Images,
        then: Callable[..., Sequence] | None = None,
        axes: Axes | None = None,
        others: Sequence[tuple[Any, int | None]] = (),
        apart: int = 0,
    ) -> tuple[Any, ...]:
        """``then(outputs, *others)`` of these images, and what the stage carries on.

        Args:
            images: which.
            then: hashable; None: the outputs.
            axes: of its results, the axes of the images.
            others: each with the axis of its images.
            apart: as for `each`.
        """
        work = self.work if then is None else self.work._replace(then=then)
        axes = self.out_axes if axes is None else axes
        values, in_axes = zip(*others, strict=True) if others else ((), ())
        arguments = [*self.sources, *values]
        in_axes = (*self.in_axes, *in_axes)
        out_axes = (*axes, *self.carried_axes)
        return each(work, images, arguments, in_axes, out_axes, apart)


class Activation(NamedTuple):
    """What the ANN's site puts out, its least and largest, and its operands."""

    site: Site

    def __call__(self, outputs: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        activation = identity(self.site, *outputs)
        a = activation.astype(jnp.float32)
        return activation, jnp.stack([a.min(), a.max()])[None], *outputs[1:]


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

    def __call__(self, outputs: Sequence[jax.Array], params: NeuronParams) -> tuple:
        current = outputs[0]
        if needs_no_time(self.code, self.steps, self.wait):
            run = self.neuron, params, current, self.steps
            return (closed_form(*run, code=self.code),)
        currents = self.code.arriving(over_time(current, self.steps, self.ndim))
        run = self.neuron, params, currents
        train = spike_train(*run, wait=self.wait, code=self.code)
        return train.bits, train.threshold, train.offset


class Answers(NamedTuple):
    """The values of outputs after the T steps; ``streams`` are those in time."""

    streams: tuple[bool, ...]
    code: Code

    def __call__(self, outputs: Sequence[jax.Array]) -> list[jax.Array]:
        pairs = zip(outputs, self.streams, strict=True)
        return [self.code.result(y) if stream else y for y, stream in pairs]


class Read(NamedTuple):
    """A ``function(current, *others)`` of `View.over_images`."""

    function: Callable[..., tuple]

    def __call__(self, outputs: Sequence[jax.Array], *others: Any) -> tuple:
        return self.function(outputs[0], *others)


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
    jax.jit, static_argnames=("images", "axes", "streams", "steps", "code", "every")
)
def thinned(
    images: Images,
    values: Sequence[Any],
    axes: Axes,
    streams: tuple[bool, ...],
    steps: int,
    code: Code,
    every: int,
) -> list[Any]:
    """One image in so many of every value that has images, after the T steps.

    Args:
        images: of which images.
        values: arrays or spikes.
        axes: of each the axis of its images; None: it has none.
        streams: of each whether it has a time axis.
        steps, code: T, and the code of the spikes.
        every: one image in so many is wanted.
    """

    def thin(value: Any, axis: int | None, stream: bool) -> Any:
        if axis is None:
            return value
        if isinstance(value, SpikeTrain):
            value = dataclasses.replace(value, bits=images.of(value.bits, axis))
        else:
            value = images.of(value, axis)
        result = code.result(_decoded(value, steps)) if stream else value
        return sharding.shared(result[::every], 0, images.batch_sharding)

    return list(map(thin, values, axes, streams))


def _decoded(value: Any, steps: int) -> Any:
    return decode(value, steps) if isinstance(value, SpikeTrain) else value
