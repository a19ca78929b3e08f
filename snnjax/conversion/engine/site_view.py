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
from snnjax.conversion.engine.micro_batches import Axes, Images, each
from snnjax.conversion.engine.segments import (
    NOTHING,
    Current,
    Fire,
    Piece,
    Read,
    Work,
    thinned,
)
from snnjax.conversion.engine.state import Sweep, Values
from snnjax.network.equations import Network
from snnjax.network.products import lone_products
from snnjax.neurons.spike_trains import SpikeTrain

WeightsByPath = dict[str, jax.Array]
# Currents of one site that stay in memory between calibrators, on each device.
CACHE_BYTES = 2**30
# Weights -> what computes the current into the site, and what is carried past it as far
# as that is known.
Results = Callable[[WeightsByPath], tuple[Piece, Sequence[jax.Array]]]


class SiteView(View):
    """A `View` of a site: its currents follow from the calibrated layers below.

    Args:
        sweep: where all images have reached the site.
        i: number of the site, and of the stage that leads to it.
        activation: of the ANN, of all images, those to fit to first.
        own_maximum, effects: as for `View`.
        results: of another view of the same site; None: new ones.
    """

    def __init__(
        self,
        sweep: Sweep,
        i: int,
        activation: jax.Array,
        own_maximum: jax.Array | None = None,
        effects: jax.Array | None = None,
        results: Results | None = None,
    ):
        site = sweep.stages[i].place
        super().__init__(
            site,
            steps=sweep.steps,
            wait=sweep.wait,
            model=sweep.snn.model_of(site.name),
            code=sweep.snn.code,
            activation=activation,
            shared=frozenset(shared_kernels(sweep, i)),
            own_maximum=own_maximum,
            effects=effects,
            batch_sharding=sweep.images.batch_sharding,
        )
        self._sweep, self._i = sweep, i
        self._results = results or self._new_results()

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
        return self._current(weights).run(self._sweep.images)[0]

    def over_images(
        self,
        function: Callable[..., tuple],
        weights: WeightsByPath | None,
        *others: Any,
        axes: Axes = (0,),
    ) -> tuple[jax.Array, ...]:
        images = self._sweep.images
        arguments = [(self._activation, 0), (self.effects, self._effects_axis)]
        arguments += [(other, None) for other in others]
        if weights is None:
            values, in_axes = zip((None, None), *arguments, strict=True)
            return each(function, images, values, in_axes, axes)
        current = self._current(weights)
        axes = tuple(current.out_axes[0] if axis is None else axis for axis in axes)
        return current.run(images, Read(function), axes, arguments)

    def passed(self, fit: Fit) -> tuple[Any, Sequence[jax.Array]]:
        """What later stages read of the fitted site, and what is carried past it."""
        images, neurons = self._sweep.all_images, broadcast(fit.neurons, self.site)
        ndim = len(self.site.shape)
        fire = Fire(self.model, self.steps, self.wait, ndim, self.code)
        axes = (1, None, None) if self.needs_time else (0,)
        piece, carried = self._results(fit.weights)
        results = piece.run(images, fire, axes, [(neurons, None)])
        spikes, carried = results[: len(axes)], (*carried, *results[len(axes) :])
        if not self.needs_time:
            return *spikes, carried
        bits, threshold, offset = spikes
        levels, dtype = self.model.levels, self.site.dtype
        return SpikeTrain(bits, threshold, levels, offset, dtype, self.code), carried

    def feed(self, every: int = 1) -> tuple[Current, list]:
        sweep, stage = self._sweep, self._sweep.stages[self._i]
        sources = self._thinned(sweep.snn_piece(self._i, {}), every)
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
        of_ann = self._thinned(sweep.ann_piece(i), every)
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

    def thinned(self, every: int) -> tuple[jax.Array, jax.Array | None]:
        arrays, axes = [self._activation, self.effects], (0, self._effects_axis)
        run = (False, False), self.steps, self.code, every
        activation, effects = thinned(self._sweep.images, arrays, axes, *run)
        return activation, effects

    def _thinned(self, piece: Piece, every: int) -> list[Any]:
        """The sources of a piece, see `segments.thinned`."""
        run = piece.work.streams, self.steps, self.code, every
        return thinned(self._sweep.images, piece.sources, piece.in_axes, *run)

    @property
    def _effects_axis(self) -> int | None:
        return None if self.effects is None else 0

    def _current(self, weights: WeightsByPath) -> Piece:
        return self._results(weights)[0].alone()

    def _new_results(self) -> Results:
        """Results of the stage; those of the latest weights are kept if they are small.

        Nothing remains to be computed of them then, and what is carried on is there.
        """
        sweep, i = self._sweep, self._i

        def compute(weights: WeightsByPath) -> tuple[Piece, Sequence[jax.Array]]:
            return sweep.snn_piece(i, by_variable(sweep.network, weights)), ()

        def computed(weights: WeightsByPath) -> tuple[Piece, Sequence[jax.Array]]:
            piece, _ = compute(weights)
            results, axes = piece.run(sweep.all_images, apart=1), piece.out_axes[:1]
            is_stream = (axes[0] == 1,)
            work = piece.work._replace(segment=NOTHING, streams=is_stream)
            carried = results[len(piece.out_axes) :]
            return Piece(work, results[:1], axes, axes), carried

        times = self.steps if self.needs_time else 1
        numbers = sweep.all_images.count * times * math.prod(self.site.shape)
        return compute if 4 * numbers > CACHE_BYTES else latest(computed)


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


@functools.partial(jax.jit, static_argnames="images")
def _images_of(images: Images, array: jax.Array) -> jax.Array:
    return images.of(array)
