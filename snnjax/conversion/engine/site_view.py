"""The view of a site that all images have reached, for its calibrators.

The currents of the spiking network are computed for the weights that a calibrator
tries. The latest ones stay in memory if they take less than `CACHE_BYTES`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from snnjax import sharding
from snnjax._trees import is_kernel
from snnjax.calibrators.view import Fit, Product, View, computed, latest
from snnjax.conversion.engine.segments import Current, Work, joined
from snnjax.conversion.engine.state import Parts, Sweep, Values
from snnjax.network.equations import Network
from snnjax.network.stages import lone_products

WeightsByPath = dict[str, jax.Array]
# Currents of one site that stay in memory between calibrators, on each device.
CACHE_BYTES = 2**30
# Weights -> of every micro-batch the current into the site, and what its stage carries.
Results = Callable[[WeightsByPath], Iterable[tuple[jax.Array, ...]]]


class SiteView(View):
    """A `View` of a site: its currents follow from the calibrated layers below.

    Args:
        sweep: where all images have reached the site.
        i: number of the site, and of the stage that leads to it.
        activations: of the ANN, of the micro-batches to fit to.
        own_maximum, effects: as for `View`.
        results: of another view of the same site; None: new ones.
    """

    def __init__(
        self,
        sweep: Sweep,
        i: int,
        activations: list[jax.Array],
        own_maximum: jax.Array | None = None,
        effects: list[jax.Array] | None = None,
        results: Results | None = None,
    ):
        site = sweep.stages[i].place
        super().__init__(
            site,
            steps=sweep.steps,
            wait=sweep.wait,
            model=sweep.snn.model_of(site.name),
            code=sweep.snn.code,
            activation=activations,
            shared=frozenset(shared_kernels(sweep, i)),
            own_maximum=own_maximum,
            effects=effects,
            batch_sharding=sweep.batch_sharding,
        )
        self._sweep, self._i = sweep, i
        self.results = results or stage_results(sweep, i)

    @property
    def count(self) -> int:
        return sum(self._sweep.sizes[: self._sweep.fitted])

    @property
    def activation(self) -> jax.Array:
        return self.join(self._activation)

    @property
    def effects(self) -> jax.Array | None:
        return None if self._effects is None else self.join(self._effects)

    def with_effects(self) -> "SiteView":
        effects = self._sweep.effects()[self.site.name]
        data = self._activation, self.own_maximum, effects, self.results
        return SiteView(self._sweep, self._i, *data)

    def currents(self, weights: WeightsByPath) -> jax.Array:
        parts = list(self._currents(weights))
        return self.join(parts, parts[0].ndim - len(self.site.shape) - 1)

    def over_images(
        self, function: Callable, weights: WeightsByPath | None, *others: Any
    ) -> list[Any]:
        none = [None] * self._sweep.fitted
        currents = none if weights is None else self._currents(weights)
        parts = zip(currents, self._activation, self._effects or none, strict=True)
        return [computed(function, *part, *others) for part in parts]

    def _currents(self, weights: WeightsByPath) -> Iterator[jax.Array]:
        fitted = itertools.islice(self.results(weights), self._sweep.fitted)
        return (current for current, *_ in fitted)

    def thinned(self, every: int) -> tuple[jax.Array, jax.Array | None]:
        parts = [self._activation, *([] if self._effects is None else [self._effects])]
        axes, streams = (0,) * len(parts), (False,) * len(parts)
        activation, *effects = self._joined(parts, axes, streams, every)
        return activation, effects[0] if effects else None

    def feed(self, every: int = 1) -> tuple[Current, list]:
        sweep, stage = self._sweep, self._sweep.stages[self._i]
        streams, parts = sweep.streams(self._i), sweep.spikes
        sources = self._sources(parts, sweep.params, streams, every)
        paths = [sweep.network.parameters.get(v) for v in stage.sources]
        slots = tuple(paths.index(path) for path in kernels(sweep, self._i))
        # Of means, T does not matter: one program for every T.
        work = Work(stage.segment, (False,) * len(sources), 1, self.code)
        axes = tuple(0 if v in sweep.spikes else None for v in stage.sources)
        return Current(work, slots, axes), sources

    def products(self, every: int = 1) -> list[Product]:
        sweep, i = self._sweep, self._i
        if not kernels(sweep, i):
            return []
        current, of_spikes = self.feed(every)
        means = (False,) * len(of_spikes)
        of_ann = self._sources(sweep.activations, sweep.original, means, every)
        views = []
        for product in lone_products(sweep.network, sweep.stages, i):
            own = current._replace(
                work=current.work._replace(segment=product.segment),
                slots=(sweep.stages[i].sources.index(product.kernel),),
            )
            result = _result(own, [sweep.original[product.kernel]], of_ann)
            effects = self.thinned(every)[1]
            weight = None if effects is None else _of_images(effects, result)
            path = sweep.network.parameters[product.kernel]
            views.append(Product(path, own, of_spikes, result, product.channel, weight))
        return views

    def _sources(
        self, parts: Parts, values: Values, streams: tuple[bool, ...], every: int
    ) -> list[Any]:
        """What the stage reads of all images to fit to: means of what is in time."""
        variables = self._sweep.stages[self._i].sources
        places = [p for p, v in enumerate(variables) if v in parts]
        of_images = self._joined(
            [parts[variables[p]][: self._sweep.fitted] for p in places],
            (0,) * len(places),
            tuple(streams[p] for p in places),
            every,
        )
        sources = [values.get(v) for v in variables]
        for place, source in zip(places, of_images, strict=True):
            sources[place] = source
        return sources

    def _joined(self, values: list, axes: tuple, streams: tuple, every: int) -> list:
        run = self.steps, self.code, every
        return joined(self.batch_sharding, values, axes, streams, *run)


def stage_results(sweep: Sweep, i: int) -> Results:
    """Results of stage i in the SNN, for weights to be tried.

    Those of the latest weights are kept if their currents are small.
    """

    def compute(weights: WeightsByPath) -> Iterator[tuple[jax.Array, ...]]:
        return sweep.run_snn(i, by_variable(sweep.network, weights))

    times = sweep.steps if sweep.needs_time else 1
    share = sum(sweep.sizes) // sharding.size(sweep.batch_sharding)
    if 4 * share * times * math.prod(sweep.stages[i].place.shape) > CACHE_BYTES:
        return compute
    return latest(lambda weights: list(compute(weights)))


def kernels(sweep: Sweep, i: int) -> WeightsByPath:
    """The weights of stage i, without its biases and norms.

    A kernel of an earlier stage may reach the site too, by a residual sum without an
    activation: it belongs to the first site that it reaches. An encoder's stage has
    those of its products.
    """
    network, stage = sweep.network, sweep.stages[i]
    if stage.place.is_encoder:
        own = [product.kernel for product in lone_products(network, sweep.stages, i)]
    else:
        own = [v for v in network.feeds[stage.place.name] if v in stage.sources]
    return {
        network.parameters[v]: sweep.params[v]
        for v in own
        if is_kernel(sweep.params[v])
    }


def shared_kernels(sweep: Sweep, i: int) -> dict[str, list[str]]:
    """Path of each weight that feeds something else too -> all that it feeds.

    The kernels of an encoder's stage have no other reader (`lone_products`).
    """
    site, network = sweep.stages[i].place, sweep.network
    if site.is_encoder:
        return {}
    feeds = network.feeds[site.name]
    readers = {network.parameters[v]: _readers(network, v) for v in feeds}
    return {path: names for path, names in readers.items() if len(names) > 1}


def _readers(network: Network, parameter: int) -> list[str]:
    """The sites that a parameter reaches directly, an operator, and the readout."""
    readers = [name for name, feeds in network.feeds.items() if parameter in feeds]
    readers += ["an operator"] * (parameter in network.operands)
    return readers + ["the readout"] * (parameter in network.readout)


def check_unshared(sweep: Sweep, i: int, before: Fit, after: Fit) -> None:
    """Raise if weights have changed that feed something else, too."""
    for path, readers in shared_kernels(sweep, i).items():
        if path in before.weights and after.weights[path] is not before.weights[path]:
            raise ValueError(
                f"the weights {path!r} feed {', '.join(readers)}, so calibrating them "
                f"at {sweep.stages[i].place.name!r} would change the others too; "
                "allowed: calibrators that leave the paths in View.shared as they are"
            )


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
