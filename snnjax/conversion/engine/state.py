"""All calibration images on their way through a network, in the ANN and in the SNN.

A `Sweep` holds one array for each value that a later stage reads, of all images: the
ANN's activations [N, ...], and the spikes that stand for them in a few bits each.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from snnjax.codes import Code
from snnjax.conversion.engine.micro_batches import Images
from snnjax.conversion.engine.segments import After, Axes, Fire, Work, each
from snnjax.network.equations import Network
from snnjax.network.sites import Site
from snnjax.network.stages import Stage, nameless, streaming
from snnjax.neurons.by_site import BySite, model_of
from snnjax.neurons.models import IntegrateAndFire
from snnjax.neurons.spike_trains import SpikeTrain
from snnjax.neurons.unroll import needs_no_time

Values = dict[int, Any]  # variable -> value


class Piece(NamedTuple):
    """Work of a stage, with what it takes and where its images are.

    Attributes:
        work: a function of the sources; None: they are its results.
        sources: their values.
        in_axes, out_axes: the axis of the images of every source and result.
    """

    work: Work | None
    sources: list[Any]
    in_axes: Axes
    out_axes: Axes

    @property
    def first(self) -> "Piece":
        """The same work for its first result alone."""
        axes = self.out_axes[:1]
        if self.work is None:
            return Piece(None, self.sources[:1], axes, axes)
        outputs = self.work.segment.outputs[:1]
        segment = self.work.segment._replace(outputs=outputs, carried=())
        return self._replace(work=self.work._replace(segment=segment), out_axes=axes)


class Sweep(NamedTuple):
    """What a sweep knows.

    Attributes:
        network, stages: of one image.
        steps: T.
        wait: steps that every layer waits.
        model: of all sites, or a `snnjax.neurons.BySite`.
        code: of all spikes.
        images: those to fit to; of each device the first ones.
        all_images: with those that no calibrator sees, which only judge.
        effects: () -> site name -> `effects.effects_of` the images to fit to.
        original: parameters of the ANN, and constants.
        params: the same of the SNN, as calibrated up to here.
        ann: activations that later stages read.
        snn: likewise means where no time is needed; otherwise each a `SpikeTrain`, or
            an array [T, N, ...] where a sum of several sites has to wait.

    The last three change while the sweep goes on.
    """

    network: Network
    stages: Sequence[Stage]
    steps: int
    wait: int
    model: IntegrateAndFire | BySite
    code: Code
    images: Images
    all_images: Images
    effects: Callable[[], dict[str, jax.Array]]
    original: Values
    params: Values
    ann: Values
    snn: Values

    @property
    def needs_time(self) -> bool:
        """Whether a layer decides before it has all of its input."""
        return not needs_no_time(self.code, self.steps, self.wait)

    def streams(self, stage: Stage) -> tuple[bool, ...]:
        """Which sources of a stage have a time axis in the SNN."""
        streams = streaming(self.network.equations) if self.needs_time else frozenset()
        return tuple(v in streams for v in stage.sources)

    def ann_piece(self, i: int) -> Piece:
        """Stage i in the ANN, with the activation of its site."""
        stage = self.stages[i]
        site = None if stage.site is None else nameless(stage.site)
        streams = (False,) * len(stage.sources)
        work = Work(stage.segment, streams, 1, self.code, site)
        return _piece(work, stage, self.ann, self.original)

    def snn_piece(self, i: int, weights: Mapping[int, jax.Array]) -> Piece:
        """Stage i in the SNN, with other weights: the current into its site."""
        stage = self.stages[i]
        work = Work(stage.segment, self.streams(stage), self.steps, self.code)
        return _piece(work, stage, self.snn, self.params | weights)

    def compute(
        self,
        piece: Piece,
        function: Callable[..., tuple],
        axes: Axes,
        others: Sequence[tuple[Any, int | None]] = (),
        images: Images | None = None,
    ) -> tuple:
        """``function(current, *others)`` of all images, and what the stage carries on.

        Args:
            piece: its first result is the current.
            function: hashable; returns a tuple.
            axes: the axis of the images of each of its results.
            others: its other arguments, each with the axis of its images.
            images: which, if not all.
        """
        values, in_axes = zip(*others, strict=True) if others else ((), ())
        return each(
            After(piece.work, function, len(piece.sources)),
            images or self.all_images,
            [*piece.sources, *values],
            (*piece.in_axes, *in_axes),
            (*axes, *piece.out_axes[1:]),
        )

    def fire(self, site: Site) -> Fire:
        """What the neurons of a site do with its current."""
        neuron = model_of(self.model, site.name)
        return Fire(neuron, self.steps, self.wait, len(site.shape), self.code)

    def spikes(self, site: Site, results: Sequence[jax.Array]) -> Any:
        """What later stages read of a site, made of the results of `Fire`."""
        if not self.needs_time:
            return results[0]
        bits, threshold, offset = results
        levels = model_of(self.model, site.name).levels
        return SpikeTrain(bits, threshold, levels, offset, site.dtype, self.code)

    def advance(self, store: Values, i: int, output: Any, carried: Sequence) -> None:
        """Store the results of stage i, and drop what no later stage reads."""
        stage = self.stages[i]
        assert stage.output is not None
        store[stage.output] = output
        store.update(zip(stage.carried, carried, strict=True))
        later = {v for s in self.stages[i + 1 :] for v in s.sources}
        for v in set(store) - later:
            del store[v]


def _piece(work: Work, stage: Stage, store: Values, params: Values) -> Piece:
    values = collections.ChainMap(store, params)
    axes = work.axes([v in store for v in stage.sources])
    return Piece(work, [values[v] for v in stage.sources], *axes)
