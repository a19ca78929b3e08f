"""All calibration images on their way through a network, in the ANN and in the SNN.

A `Sweep` holds every value that a later stage reads as a list of micro-batches: the
ANN's activations, and the spikes that stand for them in a few bits each. They are not
one array of all images: a CPU that reads slices of it, in a loop of XLA, takes 4 to 9
times as long to compute neurons.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import chex
import jax
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax.conversion.engine.segments import Work, run
from snnjax.network.equations import Network
from snnjax.network.stages import Stage, nameless, streaming
from snnjax.neurons.unroll import needs_no_time
from snnjax.snn import SNN

Values = dict[int, Any]  # variable -> value
Parts = dict[int, list[Any]]  # variable -> its value for each micro-batch


class Sweep(NamedTuple):
    """What a sweep knows. Activations, spikes and params change while it goes on.

    Attributes:
        network, stages: of one image.
        snn: whose neurons and weights are fitted, with the models and the code.
        steps: T.
        wait: steps that every layer waits.
        batch_sharding: how devices share the images; None: a single device.
        sizes: images of each micro-batch.
        fitted: all is fitted to so many of the micro-batches, the first ones. No
            calibrator sees the others, which only judge.
        effects: () -> site name -> how errors count, for each of these micro-batches.
        original: parameters of the ANN, and constants.
        params: the same of the SNN, as calibrated up to here.
        activations: of the ANN.
        spikes: means where no time is needed; otherwise each a `SpikeTrain`, or an
            array [T, B, ...] where a sum of several sites has to wait.
    """

    network: Network
    stages: Sequence[Stage]
    snn: SNN
    steps: int
    wait: int
    batch_sharding: NamedSharding | None
    sizes: tuple[int, ...]
    fitted: int
    effects: Callable[[], dict[str, list[jax.Array]]]
    original: Values
    params: Values
    activations: Parts
    spikes: Parts

    @property
    def needs_time(self) -> bool:
        """Whether a layer decides before it has all of its input."""
        return not needs_no_time(self.snn.code, self.steps, self.wait)

    def streams(self, i: int) -> tuple[bool, ...]:
        """Which sources of stage i have a time axis in the SNN."""
        streams = streaming(self.network.equations) if self.needs_time else frozenset()
        return tuple(v in streams for v in self.stages[i].sources)

    def run_ann(self, i: int) -> Iterator[tuple[tuple[jax.Array, ...], Any]]:
        """Of each micro-batch the results of stage i in the ANN, see `segments.run`."""
        stage = self.stages[i]
        site = None if stage.site is None else nameless(stage.site)
        streams = (False,) * len(stage.sources)
        work = Work(stage.segment, streams, 1, self.snn.code, site)
        return self._run(work, i, self.activations, self.original)

    def run_snn(self, i: int, weights: Values) -> Iterator[tuple[jax.Array, ...]]:
        """Likewise in the SNN with these weights: the current is the first result."""
        work = Work(self.stages[i].segment, self.streams(i), self.steps, self.snn.code)
        results = self._run(work, i, self.spikes, self.params | weights)
        return (result for result, _ in results)

    def _run(self, work: Work, i: int, parts: Parts, values: Values) -> Iterator[Any]:
        variables = self.stages[i].sources
        have_images = tuple(v in parts for v in variables)
        for k in range(len(self.sizes)):
            sources = [parts[v][k] if v in parts else values[v] for v in variables]
            yield run(work, sources, have_images, self.batch_sharding)

    def advance(
        self, parts: Parts, i: int, k: int, output: Any, carried: Sequence[Any]
    ) -> None:
        """Store the results of stage i for a micro-batch, and drop what it has read."""
        stage = self.stages[i]
        assert stage.output is not None
        new = dict(zip(stage.carried, carried, strict=True)) | {stage.output: output}
        for v, value in new.items():
            parts.setdefault(v, [None] * len(self.sizes))[k] = value
        later = {v for s in self.stages[i + 1 :] for v in s.sources}
        for v in set(parts) - later:
            parts[v][k] = None


def micro_batches(
    x: chex.ArrayTree, count: int, size: int, batch_sharding: NamedSharding | None
) -> list[tuple[chex.ArrayTree, range]]:
    """The images, ``size`` of them at a time on each device, with their numbers."""
    at_once = size * sharding.size(batch_sharding)
    ranges = [range(i, min(i + at_once, count)) for i in range(0, count, at_once)]
    return [
        (sharding.put(_part(x, r.start, len(r)), batch_sharding), r) for r in ranges
    ]


@functools.partial(jax.jit, static_argnames="count")
def _part(x: chex.ArrayTree, start: int, count: int) -> chex.ArrayTree:
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, count), x
    )
