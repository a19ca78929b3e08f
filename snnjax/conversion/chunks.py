"""Chunks: the calibration images on their way, a micro-batch each, through the network.

A `Plan` says what stays the same; a `Chunk` holds both streams of its images, the ANN's
and the spikes, of what later stages read, and takes them over one site at a time.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
from jax.sharding import NamedSharding

from snnjax.conversion import streams, waiting
from snnjax.network.equations import Network
from snnjax.network.stages import Stage, streaming
from snnjax.simulation import sharding


class Plan(NamedTuple):
    """What stays the same during a conversion."""

    x: jax.Array
    spread: NamedSharding | None  # of the images over devices
    size: int  # images at a time on each device
    captured: Callable[[int], tuple[Network, list[Stage]]]  # for so many images
    params: chex.ArrayTree
    steps: int
    delay: int
    budget: int  # bytes for the currents of a site
    offload: bool

    @property
    def means(self) -> bool:
        """Whether each layer waits for all of its input, so that means are enough."""
        return self.delay == self.steps

    def shelf(self) -> waiting.Shelf | None:
        """For a stream until its next stage; None if all of it fits in memory."""
        return waiting.Shelf() if self.offload else None

    def join(self, parts: Sequence[jax.Array], every: int = 1) -> jax.Array:
        """Of all micro-batches, one array of all images, or of every so many."""
        return sharding.join(streams.sampled(parts, 0, every), 0, self.spread)


class Chunk(NamedTuple):
    """A micro-batch on its way: variable -> value, of what later stages read.

    The network is that of the images that one device has of it. Values of ``snn`` are
    means where ``Plan.means``; otherwise a `SpikeTrain`, or an array [T, B, ...] where
    a sum of several sites has to wait.
    """

    network: Network
    stages: list[Stage]
    ann: dict[int, jax.Array]
    snn: dict[int, Any]


def begin(plan: Plan) -> list[Chunk]:
    """All images, as they stand before the first stage."""
    chunks = []
    images, devices = plan.x.shape[0], sharding.size(plan.spread)
    for start in range(0, images, plan.size * devices):
        count = min(plan.size * devices, images - start)
        x = sharding.rows(plan.x, start, count, plan.spread)
        network, stages = plan.captured(count // devices)
        chunks.append(Chunk(network, stages, {network.x: x}, {network.x: x}))
    return chunks


def run_ann(plan: Plan, chunk: Chunk, i: int, params):
    """What stage i leads to in the ANN, and what it carries on."""
    stage = chunk.stages[i]
    sources = _sources(chunk, chunk.ann, params, stage)
    none = (False,) * len(sources)
    return streams.run(plan.spread, stage, chunk.ann, none, 1, sources)


def run_snn(plan: Plan, chunk: Chunk, i: int, params):
    """What stage i leads to in the SNN (a site's current), and what it carries on."""
    stage = chunk.stages[i]
    sources = _sources(chunk, chunk.snn, params, stage)
    marked = are_streams(plan, chunk.network, stage)
    return streams.run(plan.spread, stage, chunk.snn, marked, plan.steps, sources)


def _sources(chunk: Chunk, store: dict[int, Any], params, stage: Stage) -> list:
    """What a stage reads: values on their way, constants, parameters."""
    # Constants may depend on the size of the chunk.
    values = collections.ChainMap(store, chunk.network.constants, params)
    return [waiting.fetched(values[v]) for v in stage.sources]


def advance(store: dict, stages: list[Stage], i: int, output, carried) -> None:
    """Add what stage i gives; drop what no later stage reads."""
    stage = stages[i]
    store[stage.output] = output
    store.update(zip(stage.carried, carried, strict=True))
    later = {v for s in stages[i + 1 :] for v in s.sources}
    for v in set(store) - later:
        del store[v]


def are_streams(plan: Plan, network: Network, stage: Stage) -> tuple[bool, ...]:
    """Which sources of a stage have a time axis."""
    streams = frozenset() if plan.means else streaming(network.equations)
    return tuple(v in streams for v in stage.sources)
