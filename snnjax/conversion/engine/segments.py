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
from snnjax._programs import jit
from snnjax.codes import Code
from snnjax.network.equations import Values, read
from snnjax.network.evaluate import evaluate, identity, operator_rule
from snnjax.network.sites import Site
from snnjax.network.stages import Segment, streaming
from snnjax.neurons.spike_trains import SpikeTrain, decode

Axes = tuple[int | None, ...]


class Results(NamedTuple):
    """What a stage gives for a micro-batch.

    The outputs are a site's current or activation and its maximum, or the network's.
    """

    outputs: tuple[jax.Array, ...]
    carried: tuple[jax.Array, ...]


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
        segment, steps = self.segment, self.steps
        values: Values = {
            v: decode(source, steps) if isinstance(source, SpikeTrain) else source
            for v, source in zip(segment.inputs, sources, strict=True)
        }
        in_time, rule = self._reached(self.streams), operator_rule(self.code)
        evaluate(segment.equations, values, rule, streams=in_time)
        outputs = [jnp.asarray(read(values, v)) for v in segment.outputs]
        if self.site is not None:
            outputs[0] = identity(self.site, *outputs)
        return Results(tuple(outputs), tuple(values[v] for v in segment.carried))

    def axes(self, have_images: Sequence[bool]) -> tuple[Axes, Results]:
        """The axis of the images of every source and result; None: it has none."""
        segment = self.segment
        in_time, of_images = map(self._reached, (self.streams, have_images))

        def axis(variable: Any) -> int | None:
            return int(variable in in_time) if variable in of_images else None

        results = segment.outputs, segment.carried
        of_results: Any = (tuple(map(axis, variables)) for variables in results)
        return tuple(map(axis, segment.inputs)), Results(*of_results)

    def _reached(self, which: Sequence[bool]) -> frozenset[int]:
        """These inputs, and the variables that follow from them."""
        segment = self.segment
        own = itertools.compress(segment.inputs, which)
        return streaming(segment.equations, own)


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


@functools.partial(jit, static_argnums=(0, 2, 3))
def run(
    work: Work,
    sources: Sequence[Any],
    have_images: tuple[bool, ...],
    batch_sharding: NamedSharding | None,
) -> Results:
    """Results of some work for a micro-batch; each device has its own images."""
    in_axes, out_axes = work.axes(have_images)
    axes = tuple(  # one for each array of a train
        dataclasses.replace(source, bits=axis, threshold=None, offset=None)
        if isinstance(source, SpikeTrain)
        else axis
        for source, axis in zip(sources, in_axes, strict=True)
    )
    return sharding.on_each_device(work, batch_sharding, axes, out_axes)(*sources)
