"""The view of a site that all micro-batches have reached, for its calibrators.

The currents of the spiking network are computed for the weights that a calibrator
tries. The latest ones stay in memory if they take less than `CACHE_BYTES`.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from snnjax import sharding
from snnjax._trees import is_kernel
from snnjax.calibrators.view import Fit, Product, View, latest
from snnjax.conversion.engine.micro_batches import (
    MicroBatch,
    Plan,
    Values,
    are_streams,
    run_snn,
)
from snnjax.conversion.engine.segments import Current, Work, joined
from snnjax.network.equations import Network
from snnjax.network.products import LoneProduct, lone_products
from snnjax.network.sites import Site
from snnjax.network.stages import Stage
from snnjax.neurons.by_site import model_of

WeightsByPath = dict[str, jax.Array]
# Currents of one site that stay in memory between calibrators, on each device.
CACHE_BYTES = 2**30
# Of every micro-batch: what enters the site, and what the stage carries past it.
StageResults = Callable[[WeightsByPath], Iterable[tuple[list, list]]]


class Arrival(NamedTuple):
    """A site that all images have reached.

    Attributes:
        plan: of the sweep.
        batches: the images to fit to.
        judges: images that no calibrator sees.
        i: number of the site, and of the stage that leads to it.
        params: variable -> parameter of the SNN, as calibrated up to here.
        ann: of every micro-batch, what the ANN's stage reads; empty unless the site is
            an encoder, whose products need it.
    """

    plan: Plan
    batches: list[MicroBatch]
    judges: list[MicroBatch]
    i: int
    params: Values
    ann: list[Values]

    @property
    def network(self) -> Network:
        return self.plan.network

    @property
    def stage(self) -> Stage:
        return self.plan.stages[self.i]

    @property
    def site(self) -> Site:
        return self.stage.place

    @property
    def kernels(self) -> WeightsByPath:
        """The weights of the site's stage, without its biases and norms.

        A kernel of an earlier stage may reach the site too, by a residual sum without
        an activation: it belongs to the first site that it reaches. An encoder's
        stage has those of its products.
        """
        if self.site.signed:
            own = [product.kernel for product in self.lone_products()]
        else:
            feeds = self.network.feeds[self.site.name]
            own = [v for v in feeds if v in self.stage.sources]
        return {
            self.network.parameters[v]: self.params[v]
            for v in own
            if is_kernel(self.params[v])
        }

    @property
    def shared(self) -> dict[str, list[str]]:
        """Path of each weight that feeds something else too -> all that it feeds.

        The kernels of an encoder's stage have no other reader (`lone_products`).
        """
        if self.site.signed:
            return {}
        network, feeds = self.network, self.network.feeds[self.site.name]
        readers = {network.parameters[v]: _readers(network, v) for v in feeds}
        return {path: names for path, names in readers.items() if len(names) > 1}

    def lone_products(self) -> list[LoneProduct]:
        """Of the site's stage."""
        return lone_products(self.network, self.plan.stages, self.i)


class SiteView(View):
    """A `View` of an arrival: its outputs follow from the calibrated layers below."""

    def __init__(
        self,
        here: Arrival,
        activations: Sequence[jax.Array],
        results: StageResults,
        own_maximum: jax.Array | None = None,
        effects: Sequence[jax.Array] | None = None,
    ):
        super().__init__(
            here.site,
            steps=here.plan.steps,
            wait=here.plan.wait,
            model=model_of(here.plan.model, here.site.name),
            code=here.plan.code,
            activations=activations,
            shared=frozenset(here.shared),
            own_maximum=own_maximum,
            effects=effects,
            batch_sharding=here.plan.batch_sharding,
        )
        self._here, self._results = here, results

    def with_effects(self) -> "SiteView":
        here = self._here
        effects = here.plan.effects(tuple(batch.number for batch in here.batches))
        effects = [of_batch[self.site.name] for of_batch in effects]
        data = self.activations, self._results, self.own_maximum, effects
        return SiteView(here, *data)

    def currents(self, weights: WeightsByPath) -> Iterator[jax.Array]:
        return (current for (current, *_), _ in self._results(weights))

    def feed(self, every: int = 1) -> tuple[Current, list]:
        here, plan, stage = self._here, self._here.plan, self._here.stage
        network, streams = plan.network, are_streams(plan, stage)
        stores = [batch.snn for batch in here.batches]
        axes = [0 if v in stores[0] else None for v in stage.sources]
        constants = collections.ChainMap(network.constants, here.params)
        sources = self._sources(stage, stores, constants, streams, axes, every)
        paths = [network.parameters.get(v) for v in stage.sources]
        slots = tuple(paths.index(path) for path in here.kernels)
        # Of means, T does not matter: one program for every T.
        work = Work(stage.segment, (False,) * len(streams), 1, plan.code)
        return Current(work, slots, tuple(axes)), sources

    def products(self, every: int = 1) -> list[Product]:
        here, plan = self._here, self._here.plan
        if not here.kernels:
            return []
        network, stage = plan.network, here.stage
        originals = network.arguments(plan.params)
        current, of_spikes = self.feed(every)
        takes_mean = [False] * len(stage.sources)
        of_ann = self._sources(
            stage, here.ann, originals, takes_mean, current.axes, every
        )
        views = []
        for product in here.lone_products():
            path = network.parameters[product.kernel]
            own = current._replace(
                work=current.work._replace(segment=product.segment),
                slots=(stage.sources.index(product.kernel),),
            )
            result = _result(own, [originals[product.kernel]], of_ann)
            weight = None
            if self.effects is not None:
                weight = _of_images(self.join(self.effects, every), result)
            views.append(Product(path, own, of_spikes, result, product.channel, weight))
        return views

    def _sources(
        self,
        stage: Stage,
        stores: Sequence[Values],
        constants: Mapping[Any, Any],
        takes_mean: Sequence[bool],
        axes: Sequence[int | None],
        every: int,
    ) -> list[Any]:
        """What a stage reads, of all micro-batches.

        Args:
            stores: of every micro-batch, what has images.
            constants: what has none.
            takes_mean: for each source whether its mean over time is wanted.
            axes: for each source the axis of its images, None if it has none.
        """
        places = [place for place, axis in enumerate(axes) if axis is not None]
        of_images = joined(
            self.batch_sharding,
            [[store[stage.sources[place]] for store in stores] for place in places],
            tuple(axes[place] for place in places),
            tuple(takes_mean[place] for place in places),
            self.steps,
            self.code,
            every,
        )
        sources = [constants.get(v) for v in stage.sources]
        for place, source in zip(places, of_images, strict=True):
            sources[place] = source
        return sources


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


def stage_results(here: Arrival) -> StageResults:
    """The spiking network's results of the site's stage, for weights to be tried.

    Those of the latest weights are kept if their currents are small.
    """
    plan = here.plan

    def compute(weights: WeightsByPath) -> Iterator[tuple[list, list]]:
        params = here.params | by_variable(here.network, weights)
        return (run_snn(plan, batch, here.i, params) for batch in here.batches)

    times = 1 if plan.means else plan.steps
    images = sum(len(images.numbers) for images in plan.images)
    share = images // sharding.size(plan.batch_sharding)
    if 4 * share * times * math.prod(here.site.shape) > CACHE_BYTES:
        return compute
    return latest(lambda weights: list(compute(weights)))


def by_variable(network: Network, weights: WeightsByPath) -> Values:
    """Weights by their paths -> the same by the network's variables."""
    variables = {path: v for v, path in network.parameters.items()}
    return {variables[path]: weight for path, weight in weights.items()}


def check_unshared(here: Arrival, before: Fit, after: Fit) -> None:
    """Raise if weights have changed that feed something else, too."""
    for path, readers in here.shared.items():
        if path in before.weights and after.weights[path] is not before.weights[path]:
            raise ValueError(
                f"the weights {path!r} feed {', '.join(readers)}, so calibrating them "
                f"at {here.site.name!r} would change the others too; allowed: "
                "calibrators that leave the paths in View.shared as they are"
            )


def _readers(network: Network, parameter: int) -> list[str]:
    """The sites that a parameter reaches directly, an operator, and the readout."""
    readers = [
        name
        for name, feeding_variables in network.feeds.items()
        if parameter in feeding_variables
    ]
    readers += ["an operator"] * (parameter in network.operands)
    return readers + ["the readout"] * (parameter in network.readout)
