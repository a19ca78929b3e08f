"""The view of a site that all images have reached, for its calibrators.

The currents of the SNN are computed for the weights that a calibrator tries. The latest
ones stay in memory if they take less than `CACHE_BYTES`.
"""

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from snnjax import sharding
from snnjax._arrays import on_device
from snnjax._trees import is_kernel
from snnjax._types import Per
from snnjax.calibrators.running import answer
from snnjax.calibrators.spending import Curve
from snnjax.calibrators.view import Latest, Target, View
from snnjax.conversion.engine.calibration import Boundary, Calibration, Parts
from snnjax.conversion.engine.segments import Current, Results, Work
from snnjax.network.equations import Network, Values
from snnjax.network.sites import Site
from snnjax.network.stages import LoneProduct, lone_products
from snnjax.neurons.spike_trains import SpikeTrain

WeightsByPath = dict[str, jax.Array]
# Currents of one site that stay in memory between calibrators, on each device.
CACHE_BYTES = 2**30


class SiteView(View):
    """A `View` of a site: its currents follow from the calibrated layers below.

    Args:
        calibration: the network, its images and settings.
        boundary: where all images have reached the site.
        stage_number: of the stage that leads to the site.
        activations: of the ANN, for each micro-batch.
        own_maximum, own_finest: as for `View`.
    """

    def __init__(
        self,
        calibration: Calibration,
        boundary: Boundary,
        stage_number: int,
        activations: list[jax.Array],
        own_maximum: np.ndarray | None,
        own_finest: np.ndarray | None,
    ):
        self._calibration = calibration
        self._boundary = boundary
        self._stage_number = stage_number
        self._stage = calibration.stages[stage_number]
        site = self._stage.place
        super().__init__(
            site,
            calibration.dynamics(site),
            activations,
            shared=_shared_kernels(calibration.network, site),
            own_maximum=own_maximum,
            own_finest=own_finest,
            neurons=calibration.neuron_count,
            batch_sharding=calibration.batch_sharding,
        )
        self._latest_results = Latest()

    def results(self, weights: WeightsByPath) -> Iterable[Results]:
        """The stage's results for each micro-batch, with these weights.

        Calibrators and the next stage read them with the same weights, so the latest
        ones stay in memory if there is enough.
        """
        if self._current_bytes() > CACHE_BYTES:
            return self._results(weights)

        def computed(weights: WeightsByPath) -> list[Results]:
            return list(self._results(weights))

        return self._latest_results.result(computed, weights)

    def _results(self, weights: WeightsByPath) -> Iterator[Results]:
        """The `results`, computed while they are read."""
        changed_params = by_variable(self._calibration.network, weights)
        return self._calibration.run_snn(
            self._stage_number,
            self._boundary.spikes,
            self._boundary.params | changed_params,
        )

    def _current_bytes(self) -> int:
        """What the currents of all images take on each device, in float32."""
        calibration = self._calibration
        steps = calibration.steps if calibration.needs_time else 1
        devices = sharding.size(calibration.batch_sharding)
        images = sum(calibration.batch_sizes) // devices
        return 4 * images * steps * math.prod(self.site.shape)

    @functools.cached_property
    def kernels(self) -> list[int]:
        """Variables of the stage's weights, without its biases and norms.

        A kernel of an earlier stage may reach the site too, by a residual sum without
        an activation: it belongs to the first site that it reaches. An encoder's stage
        has the kernels of its products.
        """
        if self.site.is_encoder:
            return [product.kernel for product in self._lone_products]
        stage_kernels = []
        for variable in self._calibration.network.feeds[self.site.name]:
            is_read_here = variable in self._stage.sources
            if is_read_here and is_kernel(self._boundary.params[variable]):
                stage_kernels.append(variable)
        return stage_kernels

    @property
    def weights(self) -> WeightsByPath:
        """Path -> kernel of the SNN, as calibrated up to here."""
        paths = self._calibration.network.parameters
        params = self._boundary.params
        return {paths[variable]: params[variable] for variable in self.kernels}

    @functools.cached_property
    def _lone_products(self) -> list[LoneProduct]:
        """The stage's products whose kernels nothing else reads."""
        calibration = self._calibration
        return lone_products(
            calibration.network, calibration.stages, self._stage_number
        )

    def with_effects(self) -> "SiteView":
        if self._effects is not None:
            return self
        view = copy.copy(self)  # keeps the currents that have been computed
        # How errors count at this site, at its positions and in its channels.
        effects = self._calibration.effects()[self.site.name]
        view._effects = effects.positions
        view._channel_effects = np.asarray(effects.channels)
        # The sample holds the effects, so it is drawn again.
        vars(view).pop("sample", None)
        return view

    def curves(
        self, zones: tuple[float, ...], per: Per = "channel", offset: Any = None
    ) -> tuple[Curve, ...]:
        """As `View.curves`, but what is known is not computed again.

        A search has computed the curves of its sites before they are fitted: for the
        last zone that the model has now, and for neurons without an offset.
        """
        surveyed = self._calibration.curves.get(self.site.name)
        is_for_model = offset is None and zones == (self.model.last_zone,)
        if surveyed is not None and is_for_model:
            channels = self.site.shape[self.site.channel]
            columns = 1 if per == "layer" else channels
            # Thresholds are [candidates, columns].
            if surveyed.thresholds.shape[1] == columns:
                return (surveyed,)
        return super().curves(zones, per, offset)

    def currents_by_batch(self, weights: WeightsByPath) -> Iterator[jax.Array]:
        return (results.outputs[0] for results in self.results(weights))

    def feed(self, stride: int = 1) -> tuple[Current, list[jax.Array]]:
        """The mean current over time, as a function of the weights, and what it reads.

        Returns:
            The function, and its sources, an array for each source of the stage: [N /
            stride, ...] if it depends on the images, otherwise a parameter.

        Args:
            stride: one image in so many is read.
        """
        stage = self._stage
        spikes = self._boundary.spikes
        sources = self._sources(
            parts=spikes,
            params=self._boundary.params,
            streams=self._calibration.streams,
            stride=stride,
        )
        # `_sources` has put means in place of streams. So no source has an axis of
        # time, and a program for one step serves every T.
        work = Work(
            segment=stage.segment,
            streams=(False,) * len(sources),
            steps=1,
            code=self.code,
        )
        # The place of each kernel among the sources.
        kernel_slots = tuple(stage.sources.index(kernel) for kernel in self.kernels)
        # The spikes depend on the images, their first axis; parameters do not.
        image_axes = tuple(
            0 if variable in spikes else None for variable in stage.sources
        )
        return Current(work, slots=kernel_slots, axes=image_axes), sources

    def products(self, stride: int = 1) -> list[Target]:
        """As `View.products`: each should give for spikes what it gives in the ANN."""
        if not self.kernels:
            return []
        spiking_current, spiking_sources = self.feed(stride)
        ann_params = self._calibration.ann_params
        ann_sources = self._sources(
            parts=self._boundary.activations,
            params=ann_params,
            streams=frozenset(),
            stride=stride,
        )
        _, effects = self.thinned(stride)
        targets = []
        for kernel, segment, channel_axis in self._lone_products:
            # The product alone is computed, as a function of its kernel.
            slot = self._stage.sources.index(kernel)
            product = spiking_current._replace(
                work=spiking_current.work._replace(segment=segment), slots=(slot,)
            )
            ann_result = _product_result(product, [ann_params[kernel]], ann_sources)
            target = Target(
                paths=(self._calibration.network.parameters[kernel],),
                current=product,
                sources=spiking_sources,
                result=ann_result,
                channel=channel_axis,
                effects=_effects_at(
                    ann_result, channel_axis, effects, self.site.channel
                ),
            )
            targets.append(target)
        return targets

    def _sources(
        self, *, parts: Parts, params: Values, streams: frozenset[int], stride: int
    ) -> list[jax.Array]:
        """What the stage reads, of every n-th image, n = ``stride``.

        Args:
            parts: values that depend on the images.
            params: all others.
            streams: variables with an axis of time; their means over T steps are given.
            stride: n.
        """
        sources = []
        for variable in self._stage.sources:
            if variable not in parts:
                sources.append(params[variable])
            elif variable in streams:
                sources.append(self._joined_means(parts[variable], stride))
            else:
                sources.append(self.join(parts[variable], stride=stride))
        return sources

    def _joined_means(self, batches: Sequence[Any], stride: int) -> jax.Array:
        """The values of a stream after T steps, of every n-th image: [N / n, ...].

        Args:
            batches: for each micro-batch a `SpikeTrain`, or values [T, B, ...].
            stride: n.
        """
        first = batches[0]
        stream: Any
        if isinstance(first, SpikeTrain):
            # All trains are of the same neurons, so that only their bits differ.
            bits = self.join([train.bits for train in batches], 1, stride)
            stream = dataclasses.replace(first, bits=bits)
        else:
            stream = self.join(batches, 1, stride)
        return on_device(answer(self.steps, self.code, stream))


def by_variable(network: Network, weights: WeightsByPath) -> Values:
    """Weights by their paths -> the same by the network's variables."""
    variables = {path: variable for variable, path in network.parameters.items()}
    return {variables[path]: weight for path, weight in weights.items()}


def _shared_kernels(network: Network, site: Site) -> dict[str, list[str]]:
    """Path of each weight that feeds something else, too -> all that it feeds.

    The kernels of an encoder's stage have no other reader (`lone_products`).
    """
    if site.is_encoder:
        return {}
    readers_by_path = {}
    for variable in network.feeds[site.name]:
        readers = _readers(network, variable)
        if len(readers) > 1:
            readers_by_path[network.parameters[variable]] = readers
    return readers_by_path


def _readers(network: Network, parameter: int) -> list[str]:
    """The sites that a parameter reaches directly, an operator, and the readout."""
    readers = [name for name, feeds in network.feeds.items() if parameter in feeds]
    if parameter in network.operands:
        readers.append("an operator")
    if parameter in network.readout:
        readers.append("the readout")
    return readers


def _effects_at(
    result: jax.Array, channel: int, effects: jax.Array | None, site_channel: int
) -> jax.Array | None:
    """The effects of errors of a product's result, whose positions may be others.

    Positions that the product shares with the site, as tokens, keep their effect;
    otherwise every position of an image gets the mean of the image.

    Args:
        result: of the product, [N, ...].
        channel: axis of its channels, from the end.
        effects: of the site, [N, ...] with one channel; None: all errors count alike.
        site_channel: axis of the site's channels, from the end.
    """
    if effects is None:
        return None
    one_channel = list(result.shape)
    one_channel[channel] = 1
    if _position_sizes(effects.shape, site_channel) == _position_sizes(
        result.shape, channel
    ):
        return effects.reshape(one_channel)
    mean = effects.reshape(len(effects), -1).mean(1)
    return mean.reshape(-1, *itertools.repeat(1, result.ndim - 1))


def _position_sizes(shape: tuple[int, ...], channel: int) -> list[int]:
    """Sizes of the axes of positions, without the images and the channels.

    A product of one example keeps an axis of length 1, which tells no positions apart.
    """
    sizes = list(shape)
    sizes[channel] = 1
    return [size for size in sizes[1:] if size != 1]


@functools.partial(jax.jit, static_argnames="current")
def _product_result(
    current: Current, weights: list[jax.Array], sources: list[jax.Array]
) -> jax.Array:
    """The result of a product for all images, [N, ...]."""
    return current(weights, sources, None)
