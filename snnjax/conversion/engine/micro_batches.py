"""Micro-batches: the calibration images on their way through the network.

A `Plan` says what stays the same; a `MicroBatch` holds both streams of its images, the
activations of the ANN and the spikes, as far as later stages read them, and carries
them over one site at a time.
"""

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._examples import batch_of
from snnjax.codes import Code
from snnjax.conversion.engine import segments
from snnjax.conversion.engine.effects import Effects
from snnjax.network.equations import Network
from snnjax.network.sites import Site
from snnjax.network.stages import Stage, streaming
from snnjax.neurons.by_site import BySite
from snnjax.neurons.models import IntegrateAndFire
from snnjax.neurons.unroll import needs_no_time

# variable -> value
Values = dict[int, Any]


class Plan(NamedTuple):
    """What stays the same during a conversion.

    Attributes:
        x: all images.
        batch_sharding: how devices share the images; None: a single device.
        size: images at a time on each device.
        captured: number of images -> the network for so many, and its stages.
        params: of the ANN.
        steps: T.
        wait: steps that every layer waits.
        model: of all sites, or a `snnjax.neurons.BySite`.
        code: of all spikes.
        judges: whether some images only judge what is fitted to the others.
        effects: numbers of micro-batches -> `effects.Effects` of each, scaled together.
    """

    x: chex.ArrayTree
    batch_sharding: NamedSharding | None
    size: int
    captured: Callable[[int], tuple[Network, list[Stage]]]
    params: chex.ArrayTree
    steps: int
    wait: int
    model: IntegrateAndFire | BySite
    code: Code
    judges: bool = False
    effects: Callable[[tuple[int, ...]], list[Effects]] = lambda numbers: []

    @property
    def means(self) -> bool:
        """Whether each layer waits for all of its input, so that means are enough."""
        return needs_no_time(self.code, self.steps, self.wait)


class MicroBatch(NamedTuple):
    """Some images on their way: variable -> value, of what later stages read.

    Attributes:
        number: of the micro-batch.
        network, stages: for the images that one device has of it.
        ann: activations.
        snn: means where ``Plan.means``; otherwise each a `SpikeTrain`, or an array
            [T, B, ...] where a sum of several sites has to wait.
    """

    number: int
    network: Network
    stages: list[Stage]
    ann: Values
    snn: Values


def begin(plan: Plan) -> list[MicroBatch]:
    """All images, as they stand before the first stage."""
    batches = []
    devices = sharding.size(plan.batch_sharding)
    for number in range(batch_count(plan.x, plan.size, plan.batch_sharding)):
        x, numbers = images_of(plan.x, plan.size, plan.batch_sharding, number)
        network, stages = plan.captured(len(numbers) // devices)
        values = network.inputs(x)
        batches.append(MicroBatch(number, network, stages, values, dict(values)))
    return batches


def batch_count(
    x: chex.ArrayTree, size: int, batch_sharding: NamedSharding | None
) -> int:
    """How many micro-batches there are, of ``size`` images on each device."""
    return -(-batch_of(x) // (size * sharding.size(batch_sharding)))


def images_of(
    x: chex.ArrayTree, size: int, batch_sharding: NamedSharding | None, number: int
) -> tuple[chex.ArrayTree, range]:
    """The images of a micro-batch, and their numbers."""
    at_once = size * sharding.size(batch_sharding)
    numbers = range(number * at_once, min((number + 1) * at_once, batch_of(x)))
    return sharding.put(_part(x, numbers.start, len(numbers)), batch_sharding), numbers


@functools.partial(jax.jit, static_argnames="count")
def _part(x: chex.ArrayTree, start: int, count: int) -> chex.ArrayTree:
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, count), x
    )


def split(plan: Plan, batches: list[MicroBatch]) -> tuple[list, list]:
    """(micro-batches to fit to, those that judge): every eighth judges, or the last."""
    if not plan.judges or len(batches) == 1:
        return batches, []
    every = min(8, len(batches))
    judging = [batch.number % every == every - 1 for batch in batches]
    return (
        [batch for batch, judges in zip(batches, judging, strict=True) if not judges],
        [batch for batch, judges in zip(batches, judging, strict=True) if judges],
    )


def run_ann(
    plan: Plan, batch: MicroBatch, i: int, params: Values
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Results of stage i in the ANN (a site's activation), and what it carries on."""
    stage = batch.stages[i]
    streams = (False,) * len(stage.sources)
    return _run(plan, batch, stage, batch.ann, params, streams, 1, stage.site)


def run_snn(
    plan: Plan, batch: MicroBatch, i: int, params: Values
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Results of stage i in the SNN (a site's current), and what it carries on."""
    stage = batch.stages[i]
    streams = are_streams(plan, batch.network, stage)
    return _run(plan, batch, stage, batch.snn, params, streams, plan.steps)


def mean_readout(plan: Plan, batch: MicroBatch, params: Values) -> list[jax.Array]:
    """The mean outputs of the SNN over its steps, once all sites are passed."""
    outputs, _ = run_snn(plan, batch, -1, params)
    segment = batch.stages[-1].segment
    timed = are_streams(plan, batch.network, batch.stages[-1])
    streams = segment.depending_on(itertools.compress(segment.inputs, timed))
    pairs = zip(segment.outputs, outputs, strict=True)
    return [plan.code.result(y) if v in streams else y for v, y in pairs]


def _run(
    plan: Plan,
    batch: MicroBatch,
    stage: Stage,
    store: Values,
    params: Values,
    streams: tuple[bool, ...],
    steps: int,
    site: Site | None = None,
) -> tuple[list[jax.Array], list[jax.Array]]:
    # Constants may depend on the size of the micro-batch.
    values = collections.ChainMap(store, batch.network.constants, params)
    sources = [values[v] for v in stage.sources]
    moving = tuple(v in store for v in stage.sources)
    work = stage, moving, streams, steps, plan.code
    return segments.run(plan.batch_sharding, *work, sources, site)


def advance(
    store: Values, stages: list[Stage], i: int, output: Any, carried: list[Any]
) -> None:
    """Store the results of stage i, and drop what no later stage reads."""
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
