"""A site as calibrators see it: its activations, its spikes, and what they may change.

A calibrator is a pure function ``(View, Fit) -> Fit``. Arrays with an axis of images
are on the devices of the images; parameters of neurons are in NumPy.

N is the number of all calibration images, B that of one micro-batch, and [...] stands
for the shape of the site: activations are [N, ...], currents in time [T, N, ...].
Weights are a dictionary from the paths of kernels to arrays, as in a `Fit`.
"""

import abc
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._arrays import by_numpy_or_xla, namespace, on_device, sampled
from snnjax._checks import takes
from snnjax._text import counted
from snnjax._types import Per
from snnjax.calibrators.parameters import broadcast
from snnjax.calibrators.running import Dynamics, answer, fire
from snnjax.calibrators.sample import (
    CurrentRows,
    Sample,
    SampleRows,
    chosen_positions,
    concatenated,
    merged,
)
from snnjax.calibrators.spending import Curve, curves, transfers
from snnjax.network.sites import Site
from snnjax.neurons.models import NeuronParams


class Fit(NamedTuple):
    """What calibrators change at a site.

    Attributes:
        neurons: parameters of its neurons, in NumPy.
        weights: path -> array, the kernels (two axes or more) that feed it.

    A calibrator takes one and returns another, see `Calibrator`. It may return numbers
    and JAX arrays as parameters of neurons, too.
    """

    neurons: NeuronParams
    weights: dict[str, jax.Array]

    def with_neurons(self, **parameters: Any) -> "Fit":
        """The fit with these parameters of its neurons replaced."""
        return self._replace(neurons=self.neurons._replace(**parameters))


class Target(NamedTuple):
    """Weights that are fitted together, and what they should give.

    The images are all N, or every n-th of them.

    Attributes:
        paths: of the weights, in ``Fit.weights``.
        current: a function (weights, sources, rows) of `View.feed`: what the weights
            give in the spiking network, shaped like ``result``.
        sources: what ``current`` reads of the spiking network.
        result: what the weights give in the ANN, [N, ...].
        channel: axis of the channels in the result, from the end.
        effects: how much squared errors count, [N, ...] with one channel; None: alike.
        finest: `View.own_finest` where the result is that of a quantized ReLU.
    """

    paths: tuple[str, ...]
    current: Callable
    sources: Any
    result: jax.Array
    channel: int
    effects: jax.Array | None = None
    finest: np.ndarray | None = None


class View(abc.ABC):
    """A site as calibrators see it, for all N calibration images.

    They come in micro-batches: `over_images` computes a function of one at a time, so
    that the currents of a large network need not be in memory. `missing` sums errors in
    this way, and a `sample` holds some positions of all images.

    Attributes:
        site: its name, shape and parameters.
        steps: T.
        wait: steps that every layer waits.
        model: of the neurons, whose levels say what a spike may be.
        code: what a spike is worth at each step.
        dynamics: model, steps, wait and code, as a static argument of ``jit``.
        shared: path of each weight that feeds other sites, an operator or the readout,
            too -> all that it feeds.
        neurons: how many the network has at all of its sites.
        own_maximum: that of a clipped or quantized ReLU, one number per channel, shaped
            like V_th; None of others.
        own_finest: the difference of two neighboring values of a quantized ReLU, shaped
            like V_th; None of others.
        batch_sharding: how devices share the images; None: a single device.
    """

    def __init__(
        self,
        site: Site,
        dynamics: Dynamics,
        activations: Sequence[jax.Array],
        *,
        effects: Sequence[jax.Array] | None = None,
        shared: Mapping[str, Sequence[str]] = MappingProxyType({}),
        own_maximum: np.ndarray | None = None,
        own_finest: np.ndarray | None = None,
        neurons: int | None = None,
        batch_sharding: NamedSharding | None = None,
    ):
        if neurons is None:
            neurons = math.prod(site.shape)
        self.site = site
        self.dynamics = dynamics
        self.model = dynamics.model
        self.steps = dynamics.steps
        self.wait = dynamics.wait
        self.code = dynamics.code
        self.neurons = neurons
        self.shared = shared
        self.own_maximum = own_maximum
        self.own_finest = own_finest
        self.batch_sharding = batch_sharding
        # One array for each micro-batch.
        self._activations = activations
        self._effects = effects
        self._channel_effects: Any = 1.0
        self._latest_sample_currents = Latest()

    def __repr__(self) -> str:
        return (
            f"View({self.site.name!r}, steps={self.steps}, wait={self.wait}, "
            f"code={self.code!r}, {counted(self.count, 'image')})"
        )

    @abc.abstractmethod
    def currents_by_batch(self, weights: dict[str, jax.Array]) -> Iterator[jax.Array]:
        """The `currents` of each micro-batch, [T, B, ...] or [B, ...]."""

    @abc.abstractmethod
    def feed(self, stride: int = 1) -> tuple[Callable, Any]:
        """The mean current over T steps as a function of weights: (current, sources).

        ``current(weights, sources, rows)`` is a hashable pure function, differentiable
        in the weights, which it takes as a sequence in the order of ``Fit.weights``. It
        gives the mean current of the images whose numbers are ``rows``, [B, ...]; None:
        of all images.

        Args:
            stride: the sources are those of every n-th image, n = ``stride``.
        """

    def with_effects(self) -> "View":
        """The view with errors weighted by their effect on the network's outputs.

            g[n, p, c] = (d (r y) / d a[n, p, c])^2 / mean of |y|^2
            w[n, p, c] = (mean over c of g[n, p]) (mean over n, p of g[c]) / mean of g

        y are the outputs of the ANN, r random signs, and a the activation of image n at
        position p in channel c. So w estimates how much an error of a changes the
        outputs, over their size: not at all at padded tokens, and little in a channel
        that the next layer hardly reads. `effects` are the first factor. The others are
        the `sample`'s ``channel_weight``.
        """
        return self

    def curves(
        self, zones: tuple[float, ...], per: Per = "channel", offset: Any = None
    ) -> tuple[Curve, ...]:
        """One `spending.Curve` of this site per last zone.

        Errors are weighted by their effect on the outputs, see `with_effects`.

        Args:
            zones: last zones, which take the place of the model's own.
            per: "channel", or "layer" for one threshold.
            offset: of the neurons, one number or [C]; None: 0.
        """
        return curves(
            self.with_effects().sample,
            transfers(self.model, self.code, self.steps, zones),
            reach=self.high,
            positions=self.samples_per_channel // self.count,
            neurons=self.neurons,
            offset=offset,
            per=per,
        )

    def products(self, stride: int = 1) -> Sequence[Target]:
        """A `Target` for each product with weights on the way to an encoder.

        An encoder is a site where a value itself becomes spikes, without a ReLU. Each
        product has its own kernel. There are none at other sites, nor by default.

        Args:
            stride: the targets are those of every n-th image, n = ``stride``.
        """
        del stride
        return ()

    def currents(self, weights: dict[str, jax.Array]) -> jax.Array:
        """The current into the site, [T, N, ...]; needs memory for all images.

        It is computed from the spikes of the calibrated layers below. With rate coding,
        entry t is the current of step t; with another code, it is computed from the
        values that the spikes up to step t stand for. The current is [N, ...] if it
        does not change: in the first layer, and where layers wait for all their input.

        Args:
            weights: path of a kernel -> the kernel, as in a `Fit`.
        """
        parts = list(self.currents_by_batch(weights))
        # Images are counted by the axis in front of those of the site.
        image_axis = parts[0].ndim - len(self.site.shape) - 1
        return self.join(parts, image_axis)

    def over_images(
        self,
        function: Callable[..., Any],
        weights: dict[str, jax.Array] | None,
        *arrays: Any,
    ) -> list[Any]:
        """``function(current, activation, effects, *arrays)`` of each micro-batch.

        Args:
            function: hashable. It is compiled, or gets NumPy's arrays if they are in
                the memory of a CPU.
            weights: those of the currents; None: the current is None.
            arrays: further arguments, the same for all micro-batches.
        """
        if weights is None:
            currents = [None] * len(self._activations)
        else:
            currents = self.currents_by_batch(weights)
        batches = zip(currents, self._activations, self._effects_by_batch, strict=True)
        results = []
        for current, activation, effects in batches:
            results.append(_computed(function, current, activation, effects, *arrays))
        return results

    @property
    def _effects_by_batch(self) -> Sequence[jax.Array | None]:
        """The `effects` of each micro-batch."""
        if self._effects is None:
            return [None] * len(self._activations)
        return self._effects

    def thinned(self, stride: int) -> tuple[jax.Array, jax.Array | None]:
        """`activation` and `effects` of every n-th image, n = ``stride``."""
        activation = self.join(self._activations, stride=stride)
        if self._effects is None:
            return activation, None
        return activation, self.join(self._effects, stride=stride)

    def join(
        self, parts: Sequence[jax.Array], axis: int = 0, stride: int = 1
    ) -> jax.Array:
        """Every n-th image of all micro-batches in one array, which devices share.

        Args:
            parts: one array for each micro-batch.
            axis: counts the images.
            stride: n.
        """
        images = _joined(axis, stride, self.batch_sharding, list(parts))
        # NumPy may have joined them; calibrators get arrays of JAX.
        return on_device(images)

    @property
    def activation(self) -> jax.Array:
        """The activation of the ANN, [N, ...]; needs memory for all images."""
        return self.join(self._activations)

    @property
    def effects(self) -> jax.Array | None:
        """How much an error counts, [N, ...] with a single channel, see `with_effects`;
        None: all errors count alike.
        """
        if self._effects is None:
            return None
        return self.join(self._effects)

    @property
    def count(self) -> int:
        """N, the number of images."""
        return sum(map(len, self._activations))

    @property
    def samples_per_channel(self) -> int:
        """Images times positions."""
        positions = math.prod(self.site.shape) // self.site.shape[self.site.channel]
        return self.count * positions

    @property
    def high(self) -> float:
        """The largest output, in thresholds: the highest level times w_1 + .. + w_T."""
        return self.model.levels[1] * self.code.reach(self.steps)

    @property
    def needs_time(self) -> bool:
        """Whether the order of the input matters at some site, see `Dynamics`."""
        return self.dynamics.needs_time

    @property
    def finest(self) -> float:
        """The smallest difference of two outputs, in thresholds: w_T, or 1/T."""
        return self.code.finest(self.steps)

    @property
    def values(self) -> int:
        """How many intervals of size `finest` are between 0 and the output `high`.

        It is T high under rate coding.
        """
        intervals = round(self.high / self.finest)
        # float32 tells no more than 2^24 apart.
        return min(intervals, 2**24)

    def output(self, fit: Fit) -> jax.Array:
        """The mean outputs of the spiking site over T steps, [N, ...]."""
        return self.join(list(self._means(fit)))

    def _means(self, fit: Fit) -> Iterator[jax.Array]:
        """The mean outputs of each micro-batch, [B, ...]."""
        neurons = broadcast(fit.neurons, self.site)
        for current in self.currents_by_batch(fit.weights):
            output = fire(self.dynamics, neurons, current).output
            if self.needs_time:
                output = answer(self.steps, self.code, output)
            yield output

    def missing(self, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
        """(sum w (a - s), sum w) over all images, of each neuron: [...] both.

        a is the activation of the ANN, s the mean output of the neuron, and w the
        effect of an error, or 1.
        """
        means = self._means(fit)
        batches = zip(means, self._activations, self._effects_by_batch, strict=True)
        # The device has all micro-batches to compute before one result is waited for.
        sums = []
        for mean, activation, effects in batches:
            sums.append(_missing(mean, activation, effects))
        missing = np.zeros(self.site.shape, np.float32)
        weight = np.zeros(self.site.shape, np.float32)
        for missing_part, weight_part in sums:
            missing = missing + np.asarray(missing_part)
            weight = weight + np.asarray(weight_part)
        return missing, weight

    @functools.cached_property
    def sample(self) -> Sample:
        """Activations of all images at the `positions`, their weights, and the bound.

        Every fit of a threshold asks it what the neurons may send at most.
        """
        parts = self.over_images(SampleRows(self.site.channel), None, self.positions)
        sample = merged(parts, self.batch_sharding)
        sample = sample._replace(channel_weight=self._channel_effects)
        if self.own_maximum is None:
            return sample
        return sample._replace(bound=np.ravel(self.own_maximum))

    def sample_currents(self, weights: dict[str, jax.Array]) -> np.ndarray:
        """The currents at the positions of the `sample`, [T, n, C] or [n, C]."""
        # Several calibrators read them with the same weights.
        return self._latest_sample_currents.result(self._sample_currents, weights)

    def _sample_currents(self, weights: dict[str, jax.Array]) -> np.ndarray:
        rows = CurrentRows(self.site.channel)
        parts = self.over_images(rows, weights, self.positions)
        return concatenated(parts, self.batch_sharding)

    @functools.cached_property
    def positions(self) -> np.ndarray | None:
        """Numbers of the positions that the `sample` has, [p]; None: all of them."""
        return chosen_positions(
            count=self.count,
            shape=self.site.shape,
            channel=self.site.channel,
            steps=self.steps,
        )


class Calibrator(Protocol):
    """What a recipe consists of: a pure function ``(View, Fit) -> Fit``.

    One of your own:

    >>> import jax, jax.numpy as jnp, snnjax
    >>> def add_what_is_missing(view: View, fit: Fit) -> Fit:
    ...     missing, weight = view.missing(fit)
    ...     print(view.site.name, view.count, missing / weight)
    ...     return fit.with_neurons(bias=fit.neurons.bias + missing / weight)
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> chain = snnjax.calibrators.max_threshold(), add_what_is_missing
    >>> recipe = snnjax.Recipe(chain)
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    relu 16 [1.640625]
    """

    def __call__(self, view: View, fit: Fit, /) -> Fit: ...


def check_calibrator(calibrator: Any) -> None:
    """Raise unless this can be called with a view and a fit."""
    if not takes(calibrator, None, None):
        raise ValueError(
            f"{calibrator!r} does not take (view, fit), as a calibrator does; those of "
            "snnjax are called in a recipe, e.g. snnjax.calibrators.max_threshold()"
        )


class Latest:
    """The latest result of a function of weights, kept until the weights change.

    It holds no function. A view that held a function of itself would be a cycle, which
    keeps its images in memory until the garbage collector runs.
    """

    def __init__(self):
        self._arrays: list[jax.Array] | None = None
        self._result: Any = None

    def result(
        self,
        compute: Callable[[dict[str, jax.Array]], Any],
        weights: dict[str, jax.Array],
    ) -> Any:
        """``compute(weights)``, or what is kept, if all weights are the same arrays."""
        arrays = list(weights.values())
        # Equal numbers in another array count as changed: comparing takes time.
        is_known = self._arrays is not None and all(
            map(operator.is_, arrays, self._arrays)
        )
        if not is_known:
            # The old result is dropped first: the new one needs its memory.
            self._arrays = self._result = None
            self._result = compute(weights)
            self._arrays = arrays
        return self._result


@by_numpy_or_xla
def _missing(mean: Any, activation: Any, effects: Any) -> tuple[Any, Any]:
    """The sums of `View.missing` over a micro-batch, [...] both.

    Args:
        mean: output s, [B, ...].
        activation: a, [B, ...].
        effects: w, [B, ...] with one channel; None: 1.
    """
    xp = namespace(mean)
    activation = activation.astype(np.float32, copy=False)
    missing = activation - mean.astype(np.float32, copy=False)
    if effects is None:
        return missing.sum(0), xp.full_like(missing[0], len(missing))
    weight = xp.broadcast_to(effects.sum(0), missing.shape[1:])
    return (effects * missing).sum(0), weight


@functools.partial(by_numpy_or_xla, static=3)
def _joined(
    axis: int, stride: int, batch_sharding: NamedSharding | None, parts: list[Any]
) -> Any:
    """The images of `View.join`, in NumPy or JAX."""
    xp = namespace(parts[0])
    images = xp.concatenate(sampled(parts, axis, stride), axis)
    return sharding.shared(images, axis, batch_sharding)


@functools.partial(by_numpy_or_xla, static=1)
def _computed(function: Callable, *arrays: Any) -> Any:
    """The function of `View.over_images` for a micro-batch."""
    return function(*arrays)
