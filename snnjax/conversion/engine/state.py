"""All calibration images on their way through a network, in the ANN and in the SNN.

A `State` holds every value that a later stage reads as a list of micro-batches: the
ANN's activations, and the spikes that stand for them in a few bits each. They are not
one array of all images: a CPU that reads slices of it, in a loop of XLA, takes 4 to 9
times as long to compute neurons.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import chex
import jax
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._arrays import is_on_host, on_host
from snnjax.calibrators.running import Dynamics
from snnjax.calibrators.spending import Curve
from snnjax.conversion.engine.segments import Results, Work, run
from snnjax.network.equations import Network, Values
from snnjax.network.sites import Site
from snnjax.network.stages import Stage, nameless, streaming
from snnjax.neurons.by_site import models_in
from snnjax.neurons.unroll import needs_no_time
from snnjax.snn import SNN

Parts = dict[int, list[Any]]  # variable -> its value for each micro-batch


class State(NamedTuple):
    """What is known in a sweep. Activations, spikes and params change while it goes on.

    All is fitted to the first micro-batches, `fitted` in number. No calibrator sees the
    others, which only judge.
    """

    network: Network  # of one image
    stages: Sequence[Stage]
    snn: SNN  # whose neurons and weights are fitted
    steps: int
    wait: int
    batch_sharding: NamedSharding | None  # how devices share the images
    sizes: tuple[int, ...]  # images of each micro-batch
    fitted: int
    # () -> site name -> how errors count, for each micro-batch that is fitted to.
    effects: Callable[[], dict[str, list[jax.Array]]]
    # () -> results of each stage of the ANN, for each micro-batch; None: too large.
    ann: Callable[[], list[list[Results]]] | None
    curves: dict[str, Curve]  # of sites whose activations have been surveyed
    original: Values  # parameters of the ANN, and constants
    params: Values  # the same of the SNN, as calibrated up to here
    activations: Parts  # of the ANN
    # Means where no time is needed; otherwise each a `SpikeTrain`, or an array
    # [T, B, ...] where a sum of several sites has to wait.
    spikes: Parts
    # Of each micro-batch, how many spikes each site has sent for each image, [B] each.
    sent: list[list[jax.Array]]

    @property
    def needs_time(self) -> bool:
        """Whether sums over time are not all that the sites have to know."""
        snn = self.snn
        return not needs_no_time(snn.code, self.steps, self.wait, models_in(snn.model))

    def dynamics(self, site: Site) -> Dynamics:
        """How the neurons of a site run."""
        run = self.steps, self.wait, self.snn.code, len(site.shape), self.needs_time
        return Dynamics(self.snn.model_of(site.name), *run)

    @property
    def neurons(self) -> int:
        """How many the network has at all of its sites."""
        return sum(math.prod(stage.place.shape) for stage in self.stages[:-1])

    @property
    def streams(self) -> frozenset[int]:
        """Which variables have a time axis in the SNN."""
        return streaming(self.network.equations) if self.needs_time else frozenset()

    def run_ann(self, i: int) -> Iterator[Results]:
        """Of each micro-batch the results of stage i in the ANN."""
        if self.ann is not None:
            return (results[i] for results in self.ann())
        stage = self.stages[i]
        site = None if stage.site is None else nameless(stage.site)
        streams = (False,) * len(stage.sources)
        work = Work(stage.segment, streams, 1, self.snn.code, site)
        return self._run(work, stage, self.activations, self.original)

    def run_snn(self, i: int, weights: Values) -> Iterator[Results]:
        """Likewise in the SNN with these weights: the current is the first output."""
        stage, streams = self.stages[i], self.streams
        in_time = tuple(v in streams for v in stage.sources)
        work = Work(stage.segment, in_time, self.steps, self.snn.code)
        return self._run(work, stage, self.spikes, self.params | weights)

    def _run(
        self, work: Work, stage: Stage, parts: Parts, values: Values
    ) -> Iterator[Results]:
        have_images = tuple(v in parts for v in stage.sources)
        for k in range(len(self.sizes)):
            sources = [parts[v][k] if v in parts else values[v] for v in stage.sources]
            yield run(work, sources, have_images, self.batch_sharding)

    def advance(self, parts: Parts, i: int, results: Iterable[tuple[Any, Any]]) -> None:
        """Store the results of stage i, and drop what no later stage reads.

        Args:
            parts: the `activations` or the `spikes`.
            i: number of the stage.
            results: of each micro-batch the site's output, and what the stage carries
                on. Each is computed when what the one before has read is dropped.
        """
        stage, site_output = self.stages[i], self.stages[i].output
        assert site_output is not None
        later = {v for other in self.stages[i + 1 :] for v in other.sources}
        for k, (output, carried) in enumerate(results):
            columns = (site_output, *stage.carried), (output, *carried)
            for v, value in zip(*columns, strict=True):
                parts.setdefault(v, [None] * len(self.sizes))[k] = value
            for v in parts.keys() - later:
                parts[v][k] = None


def micro_batches(
    x: chex.ArrayTree, count: int, size: int, batch_sharding: NamedSharding | None
) -> list[tuple[chex.ArrayTree, range]]:
    """The images, ``size`` of them at a time on each device, with their numbers."""
    at_once = _even(size * sharding.size(batch_sharding), count)
    rows = [range(i, min(i + at_once, count)) for i in range(0, count, at_once)]
    if is_on_host(x):  # where a slice is no copy, and no program
        x = on_host(x)
        parts = [jax.tree.map(lambda a, r=r: a[r.start : r.stop], x) for r in rows]
        return list(zip(map(jax.device_put, parts), rows, strict=True))
    return [(sharding.put(_part(x, r.start, len(r)), batch_sharding), r) for r in rows]


def _even(size: int, count: int) -> int:
    """The largest size of equal batches, if it is more than half of this one.

    A smaller last batch would double the programs.

    >>> _even(64, 256), _even(64, 300), _even(64, 257)
    (64, 60, 64)
    """
    sizes = (n for n in range(size, size // 2, -1) if count % n == 0)
    return next(sizes, size)


@functools.partial(jax.jit, static_argnames="count")
def _part(x: chex.ArrayTree, start: int, count: int) -> chex.ArrayTree:
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, count), x)
