"""Compiled segments of a network: from the spikes of some sites to the next site.

A program computes one micro-batch, whose images the devices share. Layers that do the
same work are compiled once.
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
from snnjax._programs import jit
from snnjax.codes import Code, rate
from snnjax.network.equations import Values, read
from snnjax.network.evaluate import evaluate, identity, operator_rule
from snnjax.network.sites import Site
from snnjax.network.stages import Segment, Stage, nameless, streaming
from snnjax.neurons.spike_trains import SpikeTrain, decode

Axis = int | None  # the axis of the images; None: the array has no images


class Results(NamedTuple):
    """What a stage computes for a micro-batch.

    Attributes:
        outputs: a site's current; or its activation in the ANN, and the maximum of a
            clipped ReLU behind it; or the outputs of the network.
        carried: values that later stages read, too.
    """

    outputs: tuple[jax.Array, ...]
    carried: tuple[jax.Array, ...]


class Work(NamedTuple):
    """A segment as a function of its sources; hashable, so that ``jit`` knows it again.

    Attributes:
        segment: the equations.
        streams: for each source, whether it has a time axis.
        steps: T, the length of that axis.
        code: what a spike is worth at each step.
        site: in the ANN, the site whose activation takes the place of its current.
    """

    segment: Segment
    streams: tuple[bool, ...]
    steps: int
    code: Code
    site: Site | None = None

    def __call__(self, *sources: Any) -> Results:
        values: Values = {}
        for variable, source in zip(self.segment.inputs, sources, strict=True):
            if isinstance(source, SpikeTrain):
                source = decode(source, self.steps)
            values[variable] = source
        evaluate(
            self.segment.equations,
            values,
            operator_rule(self.code),
            streams=self._reached_from(self.streams),
        )
        outputs = [jnp.asarray(read(values, v)) for v in self.segment.outputs]
        if self.site is not None:
            outputs[0] = identity(self.site, *outputs)
        carried = tuple(values[v] for v in self.segment.carried)
        return Results(tuple(outputs), carried)

    def image_axes(
        self, have_images: Sequence[bool]
    ) -> tuple[tuple[Axis, ...], Results]:
        """The axis of the images of every source, and of every result.

        Args:
            have_images: for each source, whether it differs from image to image.
        """
        streams = self._reached_from(self.streams)
        depend_on_images = self._reached_from(have_images)

        def image_axis(variable: Any) -> Axis:
            if variable not in depend_on_images:
                return None
            return 1 if variable in streams else 0

        segment = self.segment
        source_axes = tuple(map(image_axis, segment.inputs))
        output_axes: Any = tuple(map(image_axis, segment.outputs))
        carried_axes: Any = tuple(map(image_axis, segment.carried))
        return source_axes, Results(output_axes, carried_axes)

    def _reached_from(self, selected: Sequence[bool]) -> frozenset[int]:
        """The selected inputs, and the variables that are computed from them."""
        inputs = itertools.compress(self.segment.inputs, selected)
        return streaming(self.segment.equations, inputs)


def ann_work(stage: Stage) -> Work:
    """The work of a stage in the ANN, where no value has a time axis."""
    return Work(
        segment=stage.segment,
        streams=(False,) * len(stage.sources),
        steps=1,
        # Without a time axis, rate coding applies the operators as they are. Other
        # codes would replace NaN by 0, and so hide that the ANN has some.
        code=rate(),
        site=None if stage.site is None else nameless(stage.site),
    )


class Current(NamedTuple):
    """The mean current into a site as a function of the weights that feed it.

    Attributes:
        work: computes the current from all sources of a stage.
        slots: where among the sources the weights stand.
        axes: the axis of the images of each source.
    """

    work: Work
    slots: tuple[int, ...]
    axes: tuple[Axis, ...]

    def __call__(
        self, weights: Sequence[jax.Array], sources: Sequence[Any], rows: Any
    ) -> jax.Array:
        """The current [B, ...] of the images with these numbers; None: of all."""
        arguments = list(sources)
        if rows is not None:
            for slot, axis in enumerate(self.axes):
                if axis is not None:
                    arguments[slot] = jnp.take(sources[slot], rows, axis)
        for slot, weight in zip(self.slots, weights, strict=True):
            arguments[slot] = weight
        return self.work(*arguments).outputs[0]


@functools.partial(jit, static_argnums=(0, 2, 3))
def run(
    work: Work,
    sources: Sequence[Any],
    have_images: tuple[bool, ...],
    batch_sharding: NamedSharding | None,
) -> Results:
    """The results of a micro-batch; each device computes its share of the images.

    Args:
        work: the segment.
        sources: its inputs, arrays and spike trains.
        have_images: for each source, whether it differs from image to image.
        batch_sharding: how devices share the images; None: a single device.
    """
    source_axes, result_axes = work.image_axes(have_images)
    input_axes: list[Any] = []  # pytrees like the sources, with an axis for each array
    for source, axis in zip(sources, source_axes, strict=True):
        axes: Any = axis
        if isinstance(source, SpikeTrain):
            # Of the arrays of a train the packed bits alone have an axis of images.
            axes = dataclasses.replace(source, bits=axis, threshold=None, offset=None)
        input_axes.append(axes)
    compute = sharding.on_each_device(
        work, batch_sharding, tuple(input_axes), result_axes
    )
    return compute(*sources)
