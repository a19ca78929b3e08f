"""Micro-batches: the calibration images on their way through the network.

A `Plan` holds what does not change during a conversion. A `MicroBatch` holds the ANN's
activations and the spikes of its images, as far as later stages read them. `run_ann`
and `run_snn` compute one stage, `advance` stores the results.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax.codes import Code
from snnjax.conversion.engine.effects import Effects
from snnjax.conversion.engine.segments import Work, run
from snnjax.network.equations import Network
from snnjax.network.sites import Site
from snnjax.network.stages import Stage, nameless, streaming
from snnjax.neurons.by_site import BySite
from snnjax.neurons.models import IntegrateAndFire
from snnjax.neurons.unroll import needs_no_time

# variable -> value
Values = dict[int, Any]


class Images(NamedTuple):
    """The calibration images of a micro-batch, and their numbers among all."""

    x: chex.ArrayTree
    numbers: range


class Plan(NamedTuple):
    """What stays the same during a conversion.

    Attributes:
        images: of every micro-batch.
        batch_sharding: how devices share the images; None: a single device.
        network, stages: of one image.
        params: of the ANN.
        steps: T.
        wait: steps that every layer waits.
        model: of all sites, or a `snnjax.neurons.BySite`.
        code: of all spikes.
        judges: whether some images only judge what is fitted to the others.
        effects: numbers of micro-batches -> `effects.Effects` of each, scaled together.
    """

    images: Sequence[Images]
    batch_sharding: NamedSharding | None
    network: Network
    stages: list[Stage]
    params: chex.ArrayTree
    steps: int
    wait: int
    model: IntegrateAndFire | BySite
    code: Code
    judges: bool
    effects: Callable[[tuple[int, ...]], list[Effects]]

    @property
    def means(self) -> bool:
        """Whether each layer waits for all of its input, so that means are enough."""
        return needs_no_time(self.code, self.steps, self.wait)


class MicroBatch(NamedTuple):
    """Some images on their way: variable -> value, of what later stages read.

    Attributes:
        number: of the micro-batch.
        ann: activations.
        snn: means where ``Plan.means``; otherwise each a `SpikeTrain`, or an array
            [T, B, ...] where a sum of several sites has to wait.
    """

    number: int
    ann: Values
    snn: Values


def micro_batches(
    x: chex.ArrayTree, count: int, size: int, batch_sharding: NamedSharding | None
) -> list[Images]:
    """All ``count`` images, ``size`` of them at a time on each device."""
    at_once = size * sharding.size(batch_sharding)
    ranges = [range(i, min(i + at_once, count)) for i in range(0, count, at_once)]
    return [
        Images(sharding.put(_part(x, r.start, len(r)), batch_sharding), r)
        for r in ranges
    ]


@functools.partial(jax.jit, static_argnames="count")
def _part(x: chex.ArrayTree, start: int, count: int) -> chex.ArrayTree:
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, count), x
    )


def begin(plan: Plan) -> list[MicroBatch]:
    """All images, as they stand before the first stage."""
    batches = []
    for number, (x, _) in enumerate(plan.images):
        values = plan.network.inputs(x)
        batches.append(MicroBatch(number, values, dict(values)))
    return batches


def split(plan: Plan, batches: list[MicroBatch]) -> tuple[list, list]:
    """(micro-batches to fit to, those that judge): every eighth judges, or the last."""
    if not plan.judges or len(batches) == 1:
        return batches, []
    every = min(8, len(batches))
    judges = batches[every - 1 :: every]
    return [batch for batch in batches if batch.number % every < every - 1], judges


def run_ann(
    plan: Plan, batch: MicroBatch, i: int, params: Values
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Results of stage i in the ANN (a site's activation), and what it carries on."""
    stage = plan.stages[i]
    work = Work(stage.segment, (False,) * len(stage.sources), 1, plan.code)
    site = None if stage.site is None else nameless(stage.site)
    return _run(plan, batch, i, work, batch.ann, params, site)


def run_snn(
    plan: Plan, batch: MicroBatch, i: int, params: Values
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Results of stage i in the SNN (a site's current), and what it carries on."""
    stage = plan.stages[i]
    streams = are_streams(plan, stage)
    work = Work(stage.segment, streams, plan.steps, plan.code)
    return _run(plan, batch, i, work, batch.snn, params)


def _run(
    plan: Plan,
    batch: MicroBatch,
    i: int,
    work: Work,
    store: Values,
    params: Values,
    site: Site | None = None,
) -> tuple[list[jax.Array], list[jax.Array]]:
    values = collections.ChainMap(store, plan.network.constants, params)
    variables = plan.stages[i].sources
    sources, has_images = (
        [values[v] for v in variables],
        [v in store for v in variables],
    )
    return run(work, sources, tuple(has_images), plan.batch_sharding, site)


def mean_readout(plan: Plan, batch: MicroBatch, params: Values) -> list[jax.Array]:
    """The mean outputs of the SNN over its steps, once all sites are passed."""
    outputs, _ = run_snn(plan, batch, -1, params)
    segment = plan.stages[-1].segment
    in_time = are_streams(plan, plan.stages[-1])
    streams = segment.depending_on(itertools.compress(segment.inputs, in_time))
    pairs = zip(segment.outputs, outputs, strict=True)
    return [plan.code.result(y) if v in streams else y for v, y in pairs]


def advance(
    store: Values, stages: list[Stage], i: int, output: Any, values: list[Any]
) -> None:
    """Store the results of stage i, and drop what no later stage reads."""
    stage = stages[i]
    assert stage.output is not None
    store[stage.output] = output
    store.update(zip(stage.carried, values, strict=True))
    later = {v for s in stages[i + 1 :] for v in s.sources}
    for v in set(store) - later:
        del store[v]


def are_streams(plan: Plan, stage: Stage) -> tuple[bool, ...]:
    """Which sources of a stage have a time axis."""
    streams = frozenset() if plan.means else streaming(plan.network.equations)
    return tuple(v in streams for v in stage.sources)
