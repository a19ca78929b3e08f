"""The view of a site that all images have reached, for its calibrators.

The currents of the spiking network are computed for the weights that a calibrator
tries. The latest ones stay in memory if they take less than `CACHE_BYTES`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from snnjax._trees import is_kernel
from snnjax.calibrators.parameters import broadcast
from snnjax.calibrators.view import Fit, Product, View, latest
from snnjax.conversion.engine.micro_batches import Images
from snnjax.conversion.engine.segments import Axes, Current, Work, each, thinned
from snnjax.conversion.engine.state import Piece, Sweep, Values
from snnjax.network.equations import Network
from snnjax.network.products import lone_products
from snnjax.neurons.by_site import model_of

WeightsByPath = dict[str, jax.Array]
# Currents of one site that stay in memory between calibrators, on each device.
CACHE_BYTES = 2**30


class SiteView(View):
    """A `View` of a site: its currents follow from the calibrated layers below.

    Args:
        sweep: where all images have reached the site.
        i: number of the site, and of the stage that leads to it.
        activation: of the ANN, of all images, those to fit to first.
        own_maximum, effects: as for `View`.
        results: of another view of the same site; None: a new one's.
    """

    def __init__(
        self,
        sweep: Sweep,
        i: int,
        activation: jax.Array,
        own_maximum: jax.Array | None = None,
        effects: jax.Array | None = None,
        results: Callable[[WeightsByPath], Piece] | None = None,
    ):
        site = sweep.stages[i].place
        super().__init__(
            site,
            steps=sweep.steps,
            wait=sweep.wait,
            model=model_of(sweep.model, site.name),
            code=sweep.code,
            activation=activation,
            shared=frozenset(shared_kernels(sweep, i)),
            own_maximum=own_maximum,
            effects=effects,
            batch_sharding=sweep.images.batch_sharding,
        )
        self._sweep, self._i = sweep, i
        self._results = results or self._stage_results()

    @property
    def count(self) -> int:
        return self._sweep.images.total

    @property
    def activation(self) -> jax.Array:
        return _images_of(self._sweep.images, self._activation)

    def with_effects(self) -> "SiteView":
        effects = self._sweep.effects()[self.site.name]
        data = self._activation, self.own_maximum, effects, self._results
        return SiteView(self._sweep, self._i, *data)

    def currents(self, weights: WeightsByPath) -> jax.Array:
        sweep, current = self._sweep, self._results(weights).first
        if current.work is None:
            return _images_of(sweep.images, *current.sources, *current.in_axes)
        return each(current.work, sweep.images, *current[1:])[0]

    def over_images(
        self,
        function: Callable[..., tuple],
        weights: WeightsByPath | None,
        *others: Any,
        axes: tuple[int | None, ...] = (0,),
    ) -> tuple[jax.Array, ...]:
        images = self._sweep.images
        effects_axis = None if self.effects is None else 0
        arguments = [(self._activation, 0), (self.effects, effects_axis)]
        arguments += [(other, None) for other in others]
        if weights is None:
            values, in_axes = zip((None, None), *arguments, strict=True)
            return each(function, images, values, in_axes, axes)
        current = self._results(weights).first
        (own,) = current.out_axes
        axes = tuple(own if axis is None else axis for axis in axes)
        return self._sweep.compute(current, function, axes, arguments, images)

    def passed(self, fit: Fit) -> tuple[Any, Sequence[jax.Array]]:
        """What later stages read of the fitted site, and what is carried past it."""
        sweep, stage = self._sweep, self._sweep.stages[self._i]
        neurons, fire = broadcast(fit.neurons, self.site), sweep.fire(self.site)
        results = self._results(fit.weights)
        if results.work is None:  # All of it is there but the spikes.
            fired = sweep.compute(results.first, fire, fire.axes, [(neurons, None)])
            carried = results.sources
        else:
            fired = sweep.compute(results, fire, fire.axes, [(neurons, None)])
            carried = fired
        spikes = sweep.spikes(self.site, fired[: len(fire.axes)])
        return spikes, carried[len(carried) - len(stage.carried) :]

    def feed(self, every: int = 1) -> tuple[Current, list]:
        sweep, stage = self._sweep, self._sweep.stages[self._i]
        sources = self._thinned(sweep.snn_piece(self._i, {}), every)
        paths = [sweep.network.parameters.get(v) for v in stage.sources]
        slots = tuple(paths.index(path) for path in kernels(sweep, self._i))
        # Of means, T does not matter: one program for every T.
        work = Work(stage.segment, (False,) * len(sources), 1, sweep.code)
        axes = tuple(0 if v in sweep.snn else None for v in stage.sources)
        return Current(work, slots, axes), sources

    def products(self, every: int = 1) -> list[Product]:
        sweep, i = self._sweep, self._i
        if not kernels(sweep, i):
            return []
        current, of_spikes = self.feed(every)
        of_ann = self._thinned(sweep.ann_piece(i), every)
        views = []
        for product in lone_products(sweep.network, sweep.stages, i):
            own = current._replace(
                work=current.work._replace(segment=product.segment),
                slots=(sweep.stages[i].sources.index(product.kernel),),
            )
            result = _result(own, [sweep.original[product.kernel]], of_ann)
            weight = None
            if self.effects is not None:
                weight = _of_images(self.thinned(every)[1], result)
            path = sweep.network.parameters[product.kernel]
            views.append(Product(path, own, of_spikes, result, product.channel, weight))
        return views

    def thinned(self, every: int) -> tuple[jax.Array, jax.Array | None]:
        arrays = [self._activation]
        arrays += [] if self.effects is None else [self.effects]
        activation, *effects = self._every(every, arrays, (0,) * len(arrays))
        return activation, effects[0] if effects else None

    def _thinned(self, piece: Piece, every: int) -> list[Any]:
        """The sources of a piece, one image in so many, after the T steps."""
        sources = list(piece.sources)
        places = [p for p, axis in enumerate(piece.in_axes) if axis is not None]
        of_images = self._every(
            every,
            [sources[p] for p in places],
            tuple(piece.in_axes[p] for p in places),
            tuple(piece.work.streams[p] for p in places),
        )
        for place, source in zip(places, of_images, strict=True):
            sources[place] = source
        return sources

    def _every(self, every, sources, axes: Axes, streams=None) -> list[jax.Array]:
        streams = streams or (False,) * len(sources)
        run = self.steps, self.code, every
        return thinned(self._sweep.images, sources, axes, streams, *run)

    def _stage_results(self) -> Callable[[WeightsByPath], Piece]:
        """Weights -> a piece that gives the results of the stage.

        Those of the latest weights stay in memory if their currents are small: nothing
        remains to be computed then.
        """
        sweep, i = self._sweep, self._i

        def compute(weights: WeightsByPath) -> Piece:
            return sweep.snn_piece(i, by_variable(sweep.network, weights))

        def computed(weights: WeightsByPath) -> Piece:
            piece = compute(weights)
            results = each(piece.work, sweep.all_images, *piece[1:])
            return Piece(None, list(results), piece.out_axes, piece.out_axes)

        times = sweep.steps if sweep.needs_time else 1
        numbers = sweep.all_images.count * times * math.prod(self.site.shape)
        return compute if 4 * numbers > CACHE_BYTES else latest(computed)


def kernels(sweep: Sweep, i: int) -> WeightsByPath:
    """The weights of stage i, without its biases and norms.

    A kernel of an earlier stage may reach the site too, by a residual sum without an
    activation: it belongs to the first site that it reaches. An encoder's stage has
    those of its products.
    """
    network, stage = sweep.network, sweep.stages[i]
    if stage.place.signed:
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
    if site.signed:
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


@functools.partial(jax.jit, static_argnames=("images", "axis"))
def _images_of(images: Images, array: jax.Array, axis: int = 0) -> jax.Array:
    return images.of(array, axis)
