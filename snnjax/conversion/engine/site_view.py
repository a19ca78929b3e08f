"""The view of a site that all images have reached, for its calibrators.

The currents of the spiking network are computed for the weights that a calibrator
tries. The latest ones stay in memory if they take less than `CACHE_BYTES`.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from snnjax import sharding
from snnjax._trees import is_kernel
from snnjax._types import Per
from snnjax.calibrators.running import answer
from snnjax.calibrators.spending import Curve
from snnjax.calibrators.view import Target, View, latest
from snnjax.conversion.engine.segments import Current, Results, Work
from snnjax.conversion.engine.state import Parts, State
from snnjax.network.equations import Network, Values
from snnjax.network.sites import Site
from snnjax.network.stages import LoneProduct, lone_products

WeightsByPath = dict[str, jax.Array]
# Currents of one site that stay in memory between calibrators, on each device.
CACHE_BYTES = 2**30


class SiteView(View):
    """A `View` of a site: its currents follow from the calibrated layers below.

    Args:
        state: where all images have reached the site.
        i: number of the site, and of the stage that leads to it.
        activations: of the ANN, of all micro-batches.
        own_maximum: as for `View`.
    """

    def __init__(
        self,
        state: State,
        i: int,
        activations: list[jax.Array],
        own_maximum: jax.Array | None,
    ):
        self._state, self._i, self._stage = state, i, state.stages[i]
        site = self._stage.place
        super().__init__(
            site,
            state.dynamics(site),
            activations[: state.fitted],
            shared=_shared_kernels(state.network, site),
            own_maximum=own_maximum,
            neurons=state.neurons,
            batch_sharding=state.batch_sharding,
        )

        def results(weights: WeightsByPath) -> Iterator[Results]:
            return state.run_snn(i, by_variable(state.network, weights))

        # Weights -> the stage's results, of the micro-batches that judge as well.
        self.results: Callable[[WeightsByPath], Iterable[Results]] = results
        times = state.steps if state.needs_time else 1
        share = sum(state.sizes) // sharding.size(state.batch_sharding)
        if 4 * share * times * math.prod(site.shape) <= CACHE_BYTES:
            self.results = latest(lambda weights: list(results(weights)))

    @functools.cached_property
    def kernels(self) -> list[int]:
        """Variables of the stage's weights, without its biases and norms.

        A kernel of an earlier stage may reach the site too, by a residual sum without
        an activation: it belongs to the first site that it reaches. An encoder's stage
        has those of its products.
        """
        if self.site.is_encoder:
            return [product.kernel for product in self._lone_products]
        state = self._state
        feeds = state.network.feeds[self.site.name]
        own = (v for v in feeds if v in self._stage.sources)
        return [v for v in own if is_kernel(state.params[v])]

    @functools.cached_property
    def _lone_products(self) -> list[LoneProduct]:
        return lone_products(self._state.network, self._state.stages, self._i)

    def with_effects(self) -> "SiteView":
        if self._effects is not None:
            return self
        view = copy.copy(self)  # with the currents that have been computed
        view._effects = self._state.effects()[self.site.name]
        vars(view).pop("sample", None)  # which has the effects
        return view

    def curves(
        self, zones: tuple[float, ...], per: Per = "channel", offset: Any = None
    ) -> tuple[Curve, ...]:
        known = self._state.curves.get(self.site.name)
        if known is not None and offset is None and zones == (self.model.last_zone,):
            channels = 1 if per == "layer" else self.site.shape[self.site.channel]
            if known.thresholds.shape[1] == channels:
                return (known,)
        return super().curves(zones, per, offset)

    def currents_by_batch(self, weights: WeightsByPath) -> Iterator[jax.Array]:
        batches = itertools.islice(self.results(weights), self._state.fitted)
        return (results.outputs[0] for results in batches)

    def feed(self, every: int = 1) -> tuple[Current, list[jax.Array]]:
        state, stage = self._state, self._stage
        sources = self._sources(state.spikes, state.params, state.streams, every)
        slots = tuple(map(stage.sources.index, self.kernels))
        # Of means, T does not matter: one program for every T.
        work = Work(stage.segment, (False,) * len(sources), 1, self.code)
        axes = tuple(0 if v in state.spikes else None for v in stage.sources)
        return Current(work, slots, axes), sources

    def products(self, every: int = 1) -> list[Target]:
        if not self.kernels:
            return []
        state = self._state
        current, of_spikes = self.feed(every)
        of_ann = self._sources(state.activations, state.original, frozenset(), every)
        _, effects = self.thinned(every)
        targets = []
        for kernel, segment, channel in self._lone_products:
            own = current._replace(
                work=current.work._replace(segment=segment),
                slots=(self._stage.sources.index(kernel),),
            )
            result = _result(own, [state.original[kernel]], of_ann)
            weight = None if effects is None else _of_images(effects, result)
            paths = (state.network.parameters[kernel],)
            targets.append(Target(paths, own, of_spikes, result, channel, weight))
        return targets

    def _sources(
        self, parts: Parts, values: Values, streams: frozenset[int], every: int
    ) -> list[jax.Array]:
        """What the stage reads of all images to fit to: means of what is in time."""
        variables = [v for v in self._stage.sources if v in parts]
        of_images = {}
        for v in variables:
            of_batches = parts[v][: self._state.fitted]
            if v in streams:
                steps, code = self.steps, self.code
                of_batches = [answer(steps, code, part) for part in of_batches]
            of_images[v] = self.join(of_batches, every=every)
        values = values | of_images
        return [values[v] for v in self._stage.sources]


def _shared_kernels(network: Network, site: Site) -> dict[str, list[str]]:
    """Path of each weight that feeds something else too -> all that it feeds.

    The kernels of an encoder's stage have no other reader (`lone_products`).
    """
    feeds = () if site.is_encoder else network.feeds[site.name]
    readers = {network.parameters[v]: _readers(network, v) for v in feeds}
    return {path: names for path, names in readers.items() if len(names) > 1}


def _readers(network: Network, parameter: int) -> list[str]:
    """The sites that a parameter reaches directly, an operator, and the readout."""
    readers = [name for name, feeds in network.feeds.items() if parameter in feeds]
    readers += ["an operator"] * (parameter in network.operands)
    return readers + ["the readout"] * (parameter in network.readout)


def by_variable(network: Network, weights: WeightsByPath) -> Values:
    """Weights by their paths -> the same by the network's variables."""
    variables = {path: v for v, path in network.parameters.items()}
    return {variables[path]: weight for path, weight in weights.items()}


def _of_images(effects: jax.Array, result: jax.Array) -> jax.Array:
    """The weight of a product's result, whose positions need not be the site's.

    Positions that the two share, as tokens, keep their own; otherwise each image has
    the mean of its positions.
    """
    if effects.shape[:-1] == result.shape[:-1]:
        return effects
    mean = effects.reshape(len(effects), -1).mean(1)
    return mean.reshape(-1, *[1] * (result.ndim - 1))


@functools.partial(jax.jit, static_argnames="current")
def _result(current: Current, weights: list[jax.Array], sources: list) -> jax.Array:
    return current(weights, sources, None)
