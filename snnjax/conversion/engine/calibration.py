"""A calibration: a network, its images and settings, and where the images are.

A `Calibration` stays the same while images pass through the network. A `Boundary` is
what is known between two stages: the values that later stages read, for each
micro-batch, in the ANN and in the SNN.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from snnjax.calibrators.running import Dynamics
from snnjax.calibrators.spending import Curve
from snnjax.conversion.engine.ann import Effects
from snnjax.conversion.engine.segments import Results, Work, ann_work, run
from snnjax.network.equations import Network, Values
from snnjax.network.sites import Site
from snnjax.network.stages import Stage, streaming
from snnjax.neurons.by_site import models_in
from snnjax.neurons.unroll import needs_no_time
from snnjax.snn import SNN

Parts = dict[int, list[Any]]  # variable -> its value for each micro-batch


class Boundary(NamedTuple):
    """Values before a stage; `Calibration.advance` changes them in place.

    Attributes:
        params: variable -> parameter of the SNN, as calibrated up to here.
        activations: values of the ANN.
        spikes: values of the SNN: means where no time is needed; otherwise a
            `SpikeTrain`, or an array [T, B, ...] where the sum of several sites waits.
        spike_counts: for each micro-batch, how many spikes each site has sent for each
            image, [B] each.
    """

    params: Values
    activations: Parts
    spikes: Parts
    spike_counts: list[list[jax.Array]]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a sweep begins with.

    Attributes:
        network: of one image.
        stages: the network, cut at its sites.
        ann_params: variable -> parameter of the ANN, and constants.
        snn: its neurons and weights are what a sweep begins with.
        steps: T.
        wait: steps that each layer integrates before it fires.
        batch_sharding: how devices share the images; None: a single device.
        images: variable of x -> images of each micro-batch.
        batch_sizes: images of each micro-batch.
        unseen: for each micro-batch, which of its images no fit uses, [B]: their
            errors have no effect on what is fitted, and judge the result.
        effects: () -> site name -> how errors count.
        ann_results: () -> results of each stage of the ANN, for each micro-batch;
            None: they are too large to be kept.
        curves: site name -> its curve, where activations have been surveyed.
    """

    network: Network
    stages: Sequence[Stage]
    ann_params: Values
    snn: SNN
    steps: int
    wait: int
    batch_sharding: NamedSharding | None
    images: Parts
    batch_sizes: tuple[int, ...]
    unseen: tuple[np.ndarray, ...]
    effects: Callable[[], dict[str, Effects]]
    ann_results: Callable[[], list[list[Results]]] | None
    curves: dict[str, Curve]

    @property
    def sites(self) -> list[Site]:
        """All firing sites, in order."""
        return [stage.place for stage in self.stages[:-1]]

    @property
    def neuron_count(self) -> int:
        """M, the neurons of all sites."""
        return sum(math.prod(site.shape) for site in self.sites)

    @functools.cached_property
    def unseen_count(self) -> int:
        """How many images no fit uses."""
        return sum(int(is_unseen.sum()) for is_unseen in self.unseen)

    def of_batches(self, batches: Sequence[int]) -> "Calibration":
        """The calibration of some micro-batches, by their numbers."""

        def chosen(values: Sequence[Any]) -> list[Any]:
            return [values[batch] for batch in batches]

        def effects() -> dict[str, Effects]:
            chosen_effects = {}
            for name, effect in self.effects().items():
                positions = chosen(effect.positions)
                chosen_effects[name] = effect._replace(positions=positions)
            return chosen_effects

        def ann_results() -> list[list[Results]]:
            assert self.ann_results is not None
            return chosen(self.ann_results())

        return dataclasses.replace(
            self,
            images={variable: chosen(parts) for variable, parts in self.images.items()},
            batch_sizes=tuple(chosen(self.batch_sizes)),
            unseen=tuple(chosen(self.unseen)),
            effects=effects,
            ann_results=None if self.ann_results is None else ann_results,
        )

    @functools.cached_property
    def needs_time(self) -> bool:
        """Whether sites have to know more than sums over time."""
        models = models_in(self.snn.model)
        return not needs_no_time(self.snn.code, self.steps, self.wait, models)

    @functools.cached_property
    def streams(self) -> frozenset[int]:
        """Variables that have a time axis in the SNN."""
        return streaming(self.network.equations) if self.needs_time else frozenset()

    def dynamics(self, site: Site) -> Dynamics:
        """How the neurons of a site run, see `Dynamics`.

        ``needs_time`` says whether they have to know when their input arrives, or only
        its sum over the steps. A site has the shape of one image's neurons.
        """
        return Dynamics(
            model=self.snn.model_of(site.name),
            steps=self.steps,
            wait=self.wait,
            code=self.snn.code,
            ndim=len(site.shape),
            needs_time=self.needs_time,
        )

    def start(self) -> Boundary:
        """All images before the first stage."""
        return Boundary(
            params=self.network.arguments(self.snn.params),
            activations=copied(self.images),
            spikes=copied(self.images),
            spike_counts=[[] for _ in self.batch_sizes],
        )

    def run_ann(self, stage_number: int, activations: Parts) -> Iterator[Results]:
        """Yield the results of a stage of the ANN for one micro-batch after another.

        Args:
            stage_number: of the stage.
            activations: variable -> its values in each micro-batch.
        """
        if self.ann_results is not None:
            return (results[stage_number] for results in self.ann_results())
        stage = self.stages[stage_number]
        work = ann_work(stage)
        return self._run(work, stage, activations, self.ann_params)

    def run_snn(
        self, stage_number: int, spikes: Parts, params: Values
    ) -> Iterator[Results]:
        """Yield the results of a stage of the SNN for one micro-batch after another.

        The first of their outputs is the current into the stage's site.

        Args:
            stage_number: of the stage.
            spikes: variable that depends on the images -> values of each micro-batch.
            params: variable -> parameter or constant, for all others.
        """
        stage = self.stages[stage_number]
        have_time_axis = tuple(variable in self.streams for variable in stage.sources)
        work = Work(
            segment=stage.segment,
            streams=have_time_axis,
            steps=self.steps,
            code=self.snn.code,
        )
        return self._run(work, stage, spikes, params)

    def _run(
        self, work: Work, stage: Stage, parts: Parts, params: Values
    ) -> Iterator[Results]:
        """Yield the results of ``work``, whose sources are in parts or in params."""
        have_images = tuple(variable in parts for variable in stage.sources)
        for batch in range(len(self.batch_sizes)):
            sources = []
            for variable in stage.sources:
                if variable in parts:
                    sources.append(parts[variable][batch])
                else:
                    sources.append(params[variable])
            yield run(work, sources, have_images, self.batch_sharding)

    def advance(
        self, stage_number: int, parts: Parts, results: Iterable[tuple[Any, Any]]
    ) -> None:
        """Store what a stage computes, and drop what no later stage reads.

        Args:
            parts: the activations or the spikes of a `Boundary`; changed in place.
            results: for each micro-batch, the site's output, and what the stage carries
                on. A micro-batch is computed after the one before it has been stored,
                so that what that one has read is free.
        """
        stage = self.stages[stage_number]
        assert stage.output is not None
        sources_of_later_stages = set()
        for later_stage in self.stages[stage_number + 1 :]:
            sources_of_later_stages.update(later_stage.sources)
        variables = (stage.output, *stage.carried)
        for batch, (output, carried) in enumerate(results):
            for variable, value in zip(variables, (output, *carried), strict=True):
                empty = [None] * len(self.batch_sizes)
                parts.setdefault(variable, empty)[batch] = value
            for variable in parts.keys() - sources_of_later_stages:
                parts[variable][batch] = None


def copied(parts: Parts) -> Parts:
    """The same values in lists of their own, which may be changed."""
    return {variable: list(values) for variable, values in parts.items()}
