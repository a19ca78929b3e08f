"""All calibration images on their way through a network, in the ANN and in the SNN.

A `Sweep` holds one array for each value that a later stage reads, of all images: the
ANN's activations [N, ...], and the spikes that stand for them in a few bits each.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from snnjax.conversion.engine.micro_batches import Images
from snnjax.conversion.engine.segments import Piece, Work
from snnjax.network.equations import Network
from snnjax.network.stages import Stage, streaming
from snnjax.neurons.unroll import needs_no_time
from snnjax.snn import SNN

Values = dict[int, Any]  # variable -> value


class Sweep(NamedTuple):
    """What a sweep knows. Activations, spikes and params change while it goes on.

    Attributes:
        network, stages: of one image.
        snn: whose neurons and weights are fitted, with the models and the code.
        steps: T.
        wait: steps that every layer waits.
        images: those to fit to; of each device the first ones.
        all_images: with those that no calibrator sees, which only judge.
        effects: () -> site name -> `effects.effects_of` the images to fit to.
        original: parameters of the ANN, and constants.
        params: the same of the SNN, as calibrated up to here.
        activations: of the ANN, which later stages read.
        spikes: likewise means where no time is needed; otherwise each a `SpikeTrain`,
            or an array [T, N, ...] where a sum of several sites has to wait.
    """

    network: Network
    stages: Sequence[Stage]
    snn: SNN
    steps: int
    wait: int
    images: Images
    all_images: Images
    effects: Callable[[], dict[str, jax.Array]]
    original: Values
    params: Values
    activations: Values
    spikes: Values

    @property
    def needs_time(self) -> bool:
        """Whether a layer decides before it has all of its input."""
        return not needs_no_time(self.snn.code, self.steps, self.wait)

    def ann_piece(self, i: int) -> Piece:
        """Stage i in the ANN."""
        return self._piece(i, self.activations, self.original, frozenset(), 1)

    def snn_piece(self, i: int, weights: Values) -> Piece:
        """Stage i in the SNN, with these weights in place of its own."""
        streams = streaming(self.network.equations) if self.needs_time else frozenset()
        values = self.spikes, self.params | weights
        return self._piece(i, *values, streams, self.steps)

    def _piece(
        self, i: int, store: Values, params: Values, streams: frozenset, steps: int
    ) -> Piece:
        stage, values = self.stages[i], collections.ChainMap(store, params)
        in_time = tuple(v in streams for v in stage.sources)
        work = Work(stage.segment, in_time, steps, self.snn.code)
        axes = work.axes([v in store for v in stage.sources])
        return Piece(work, [values[v] for v in stage.sources], *axes)

    def advance(self, store: Values, i: int, output: Any, carried: Sequence) -> None:
        """Store the results of stage i, and drop what no later stage reads."""
        stage = self.stages[i]
        assert stage.output is not None
        store[stage.output] = output
        store.update(zip(stage.carried, carried, strict=True))
        later = {v for s in self.stages[i + 1 :] for v in s.sources}
        for v in set(store) - later:
            del store[v]
