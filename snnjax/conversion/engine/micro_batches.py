"""Micro-batches: the calibration images on their way through the network.

A `Plan` says what stays the same; a `MicroBatch` holds both streams of its images, the
activations of the ANN and the spikes, as far as later stages read them, and carries
them over one site at a time.
"""

import collections
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import chex
import jax
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._arrays import sampled
from snnjax._examples import batch_of
from snnjax.conversion.engine import segments
from snnjax.conversion.engine.spill import SpillFile, loaded
from snnjax.network.equations import Network
from snnjax.network.stages import Stage, streaming
from snnjax.neurons.by_site import BySite
from snnjax.neurons.models import IntegrateAndFire

# variable -> value
Values = dict[int, Any]


class Plan(NamedTuple):
    """What stays the same during a conversion.

    Attributes:
        x: all images.
        spread: of the images over devices.
        size: images at a time on each device.
        captured: number of images -> the network for so many, and its stages.
        params: of the ANN.
        steps: T.
        wait: steps that every layer waits.
        model: of all sites, or a `snnjax.neurons.BySite`.
        budget: bytes for the currents of a site.
        spills: whether streams go to the disk.
    """

    x: chex.ArrayTree
    spread: NamedSharding | None
    size: int
    captured: Callable[[int], tuple[Network, list[Stage]]]
    params: chex.ArrayTree
    steps: int
    wait: int
    model: IntegrateAndFire | BySite
    budget: int
    spills: bool

    @property
    def means(self) -> bool:
        """Whether each layer waits for all of its input, so that means are enough."""
        return self.wait == self.steps

    def spill_file(self) -> SpillFile | None:
        """For a stream until its next stage; None if all of it fits in memory."""
        return SpillFile() if self.spills else None

    def join(self, parts: Iterable[jax.Array], every: int = 1) -> jax.Array:
        """Of all micro-batches, one array of all images, or of every so many."""
        return sharding.join(sampled(parts, 0, every), 0, self.spread)


class MicroBatch(NamedTuple):
    """Some images on their way: variable -> value, of what later stages read.

    Attributes:
        network, stages: for the images that one device has of it.
        ann: activations.
        snn: means where ``Plan.means``; otherwise each a `SpikeTrain`, or an array
            [T, B, ...] where a sum of several sites has to wait.
    """

    network: Network
    stages: list[Stage]
    ann: Values
    snn: Values


def begin(plan: Plan) -> list[MicroBatch]:
    """All images, as they stand before the first stage."""
    batches = []
    images, devices = batch_of(plan.x), sharding.size(plan.spread)
    for start in range(0, images, plan.size * devices):
        count = min(plan.size * devices, images - start)
        x = sharding.rows(plan.x, start, count, plan.spread)
        network, stages = plan.captured(count // devices)
        values = network.inputs(x)
        batches.append(MicroBatch(network, stages, values, dict(values)))
    return batches


def run_ann(
    plan: Plan, batch: MicroBatch, i: int, params: Values
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Results of stage i in the ANN, and what it carries on."""
    stage = batch.stages[i]
    streams = (False,) * len(stage.sources)
    return _run(plan, batch, stage, batch.ann, params, streams, 1)


def run_snn(
    plan: Plan, batch: MicroBatch, i: int, params: Values
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Results of stage i in the SNN (a site's current), and what it carries on."""
    stage = batch.stages[i]
    streams = are_streams(plan, batch.network, stage)
    return _run(plan, batch, stage, batch.snn, params, streams, plan.steps)


def _run(
    plan: Plan,
    batch: MicroBatch,
    stage: Stage,
    store: Values,
    params: Values,
    streams: tuple[bool, ...],
    steps: int,
) -> tuple[list[jax.Array], list[jax.Array]]:
    # Constants may depend on the size of the micro-batch.
    values = collections.ChainMap(store, batch.network.constants, params)
    sources = [loaded(values[v]) for v in stage.sources]
    moving = tuple(v in store for v in stage.sources)
    return segments.run(plan.spread, stage, moving, streams, steps, sources)


def advance(
    store: Values, stages: list[Stage], i: int, output: Any, carried: list[Any]
) -> None:
    """Add the results of stage i; drop what no later stage reads."""
    stage = stages[i]
    assert stage.output is not None
    store[stage.output] = output
    store.update(zip(stage.carried, carried, strict=True))
    later = {v for s in stages[i + 1 :] for v in s.sources}
    for v in set(store) - later:
        del store[v]


def are_streams(plan: Plan, network: Network, stage: Stage) -> tuple[bool, ...]:
    """Which sources of a stage have a time axis."""
    streams = frozenset() if plan.means else streaming(network.equations)
    return tuple(v in streams for v in stage.sources)
