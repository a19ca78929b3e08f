"""A site as calibrators see it: its activations, its spikes, and what they may change.

All N calibration images come in micro-batches, so that a large network need not be in
memory. A calibrator is a pure function ``(View, Fit) -> Fit``.
"""

import abc
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import sampled, subtract_offset
from snnjax._checks import check_positive
from snnjax._trees import add_scaled
from snnjax.calibrators import formulas
from snnjax.codes import Code, rate
from snnjax.network.sites import Site
from snnjax.neurons.models import IntegrateAndFire, NeuronParams
from snnjax.neurons.unroll import needs_no_time


class Fit(NamedTuple):
    """What calibrators change at a site.

    Attributes:
        neurons: their `snnjax.neurons.NeuronParams`.
        weights: path -> array, the kernels (two axes or more) that feed it.

    A calibrator takes one and returns another:

    >>> import jax, jax.numpy as jnp, snnjax
    >>> def halve(view, fit):
    ...     weights = {path: kernel / 2 for path, kernel in fit.weights.items()}
    ...     return Fit(fit.neurons._replace(threshold=jnp.array(0.5)), weights)
    >>> fn, params = lambda p, x: jax.nn.relu(x @ p["w"]), {"w": jnp.ones((1, 1))}
    >>> recipe = snnjax.Recipe([halve])
    >>> snn = snnjax.convert(fn, params, jnp.ones((4, 1)), steps=4, recipe=recipe)
    >>> print(snn.params["w"], snn.neurons["w/relu"].threshold)
    [[0.5]] 0.5
    """

    neurons: NeuronParams
    weights: dict[str, jax.Array]


class Product(NamedTuple):
    """A product with weights on the way to an encoder.

    Attributes:
        path: of its kernel in ``Fit.weights``.
        current: (weights, sources, rows) -> its result, as that of `View.feed`, of
            this one kernel.
        sources: what it takes, of the spiking network.
        result: what it is in the ANN, [N, ...].
        channel: axis of the channels, from the end.
        weight: how much an error of the result counts, [N, ...]; None: all alike.
    """

    path: str
    current: Callable
    sources: Any
    result: jax.Array
    channel: int
    weight: jax.Array | None = None


class View(abc.ABC):
    """A site as calibrators see it, for all N calibration images.

    Images come in micro-batches: a mean or a maximum over all images is combined from
    those of the micro-batches, as `mean` and `peaks` do.

    Attributes:
        site: its name, shape and parameters.
        steps: T.
        wait: steps that every layer waits.
        model: of the neurons, whose levels say what a spike may be.
        code: what a spike is worth at each step.
        activations: of the ANN, one array [B, ...] for each micro-batch.
        shared: paths of the weights that feed other sites, an operator or the
            readout, too.
        maximum: of a clipped or quantized ReLU, one number per channel, shaped like
            V_th; None of others.
        effects: how much an error counts, one array [B, ...] with a single channel for
            each micro-batch, see `by_effect`; None: all errors count alike.
        stride: distance of the positions that the view shows; 1: all of them.

    This calibrator prints what it reads and returns the fit as it is:

    >>> import jax, jax.numpy as jnp, snnjax
    >>> def report(view, fit):
    ...     missing = view.mean(lambda a, s: (a - s).mean(), fit)
    ...     print(view.site.name, view.count, view.peaks(fit), missing)
    ...     return fit
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([snnjax.calibrators.max_threshold(), report])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    relu 16 [15.] 1.640625
    """

    stride = 1

    def __init__(
        self,
        site: Site,
        *,
        steps: int,
        wait: int,
        activations: Sequence[jax.Array],
        model: IntegrateAndFire | None = None,
        code: Code | None = None,
        shared: frozenset[str] = frozenset(),
        maximum: jax.Array | None = None,
        effects: Sequence[jax.Array] | None = None,
    ):
        self.maximum, self.effects = maximum, effects
        self.site, self.steps, self.wait = site, steps, wait
        self.model = IntegrateAndFire() if model is None else model
        self.code = rate() if code is None else code
        self.activations, self.shared = activations, shared

    @abc.abstractmethod
    def outputs(self, fit: Fit, *, stride: int = 1, paced: bool = False) -> Iterable:
        """Mean outputs [B, ...] of the spiking site over T steps, per micro-batch.

        They follow from the spikes that the calibrated layers below emit.

        Args:
            fit: of the site.
            stride: only every so many positions, as `formulas.thin` chooses them.
            paced: give pairs, (mean output, pace), see `snnjax.neurons.mean_and_pace`.
        """

    @abc.abstractmethod
    def feed(self, batch: int, time: bool, every: int = 1) -> tuple[Callable, Any]:
        """The current into the site as a function of the weights: (current, sources).

        ``current(weights, sources, rows)`` is a hashable pure function, differentiable
        in the weights (in the order of ``Fit.weights``). It gives the current of the
        images with these numbers (rows; None: of all), [B, ...]: the mean over T steps,
        or [T, B, ...] with their time.

        Args:
            batch: number of images that ``current`` is called with.
            time: whether sources and currents keep their time axis.
            every: sources of one image in so many.
        """

    def by_effect(self) -> "View":
        """The same with errors weighed by their effect on the network's outputs.

            w = mean over the channels of (d (r y) / d a)^2,   scaled to a mean of 1

        y are the outputs of the ANN and r random signs, so w estimates how much an
        error at a position changes the outputs. It is 0 where they do not depend on the
        position, as at padded tokens. This view weighs all errors alike, unless a
        conversion gives it `effects`.
        """
        return self

    def products(self, every: int = 1) -> Sequence[Product]:
        """Products with weights on the way to an encoder, each with its own kernel.

        Args:
            every: of one image in so many.
        """
        del every
        return ()

    def join(self, parts: Iterable[jax.Array], every: int = 1) -> jax.Array:
        """One array of all micro-batches, of one image in so many."""
        return jnp.concatenate(sampled(parts, 0, every))

    @property
    def count(self) -> int:
        """N, the number of images."""
        return sum(len(activation) for activation in self.activations)

    @property
    def high(self) -> float:
        """A neuron's output is at most so many times V_th, high (w_1 + .. + w_T)."""
        return self.model.levels[1] * self.code.reach(self.steps)

    @property
    def needs_time(self) -> bool:
        """Whether a site decides before it has all of its input."""
        return not needs_no_time(self.code, self.steps, self.wait)

    @property
    def finest(self) -> float:
        """The distance of a neuron's outputs, over V_th: w_T, or 1/T."""
        return self.code.finest(self.steps)

    @property
    def activation(self) -> jax.Array:
        """All activations in one array [N, ...]; needs memory for all images."""
        return self.join(self.activations)

    def magnitudes(self, fit: Fit) -> Iterator[jax.Array]:
        """What thresholds are fitted to: a, or |a - offset| of an encoder.

        0 where an activation has no effect on the outputs (`effects`).
        """
        offset = fit.neurons.offset
        for a, weight in zip(self.activations, self.weights(), strict=True):
            size = jnp.abs(subtract_offset(a, offset)) if self.site.signed else a
            yield size if weight is None else _where_counted(size, weight)

    def weights(self) -> Sequence[jax.Array | None]:
        """`effects`, or None for each micro-batch."""
        return [None] * len(self.activations) if self.effects is None else self.effects

    def output(self, fit: Fit) -> jax.Array:
        """All mean outputs in one array [N, ...]."""
        return self.join(list(self.outputs(fit)))

    def peaks(self, fit: Fit) -> jax.Array:
        """`formulas.peaks` of the magnitudes, [C]."""
        peaks = [_peaks(a, self.site.channel) for a in self.magnitudes(fit)]
        return functools.reduce(jnp.maximum, peaks)

    def samples(self, fit: Fit) -> formulas.Samples:
        """`formulas.samples` of the magnitudes."""
        parts = [_samples(a, self.site.channel) for a in self.magnitudes(fit)]
        return _joined(parts)

    def mean(
        self, statistic: Callable[..., jax.Array], fit: Fit, *, paced: bool = False
    ) -> jax.Array:
        """A statistic over all images, from its means over the micro-batches.

        Args:
            statistic: (activation, output) -> one array or number, a mean over images;
                in a view with `effects` it has a third argument, ``weight``.
            fit: of the site.
            paced: as for `outputs`.

        Raises:
            ValueError: outputs and activations have different shapes.
        """
        total: Any = None
        outputs = self.outputs(fit, paced=paced)
        parts = zip(self.activations, outputs, self.weights(), strict=True)
        for a, s, weight in parts:
            shape = jax.tree.leaves(s)[0].shape
            if shape != a.shape:
                raise ValueError(
                    f"outputs of shape {shape} meet activations of shape {a.shape}; "
                    "allowed: a view whose two show the same"
                )
            options = {} if weight is None else {"weight": weight}
            part = jnp.asarray(statistic(a, s, **options))
            total = np.zeros(part.shape, part.dtype) if total is None else total
            total = add_scaled(total, part, len(a) / self.count)
        return total

    def spacing(self, samples: int, fewest: int) -> int:
        """Distance of images that give each channel so many samples or more.

        Args:
            samples: positions of a channel, over all images that remain.
            fewest: images that must remain, if there are as many.
        """
        positions = math.prod(self.site.shape) // self.site.shape[self.site.channel]
        return max(1, min(self.count * positions // samples, self.count // fewest))

    def thinned(self, samples: int) -> "View":
        """The same with fewer positions: each channel keeps so many samples or more.

        For what is fitted per channel; potentials and weights need all positions and
        refuse it. A view that is thinned already is returned as it is.
        """
        check_positive("samples", samples)
        shape = list(self.site.shape)
        del shape[self.site.channel]
        stride = 1
        while (
            shape
            and self.count * math.prod(n // (2 * stride) for n in shape) >= samples
        ):
            stride *= 2
        return self if stride == 1 else _Thinned(self, stride)


class _Thinned(View):
    """Every ``stride``-th position of a view."""

    def __init__(self, whole: View, stride: int):
        ndim, channel = len(whole.site.shape), whole.site.channel
        super().__init__(
            whole.site,
            steps=whole.steps,
            wait=whole.wait,
            model=whole.model,
            code=whole.code,
            activations=[
                formulas.thin(a, stride, ndim, channel) for a in whole.activations
            ],
            shared=whole.shared,
            maximum=whole.maximum,
            effects=whole.effects
            and [formulas.thin(w, stride, ndim, channel) for w in whole.effects],
        )
        self.whole, self.stride = whole, stride

    def outputs(self, fit: Fit, *, stride: int = 1, paced: bool = False) -> Iterable:
        return self.whole.outputs(fit, stride=stride * self.stride, paced=paced)

    def feed(self, batch: int, time: bool, every: int = 1) -> tuple[Callable, Any]:
        raise ValueError(
            "a thinned view shows some positions of the site only; allowed: the whole "
            "view for potentials and weights"
        )

    def join(self, parts: Iterable[jax.Array], every: int = 1) -> jax.Array:
        return self.whole.join(parts, every)

    def thinned(self, samples: int) -> View:
        check_positive("samples", samples)
        return self


class Calibrator(Protocol):
    """What a recipe consists of: a pure function ``(View, Fit) -> Fit``.

    One of your own:

    >>> import jax, jax.numpy as jnp, snnjax
    >>> def mean_threshold(factor: float) -> Calibrator:
    ...     def calibrate(view: View, fit: Fit) -> Fit:
    ...         threshold = factor * view.activation.mean()
    ...         return fit._replace(neurons=fit.neurons._replace(threshold=threshold))
    ...     return calibrate
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([mean_threshold(2.0)])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].threshold)
    15.0
    """

    def __call__(self, view: View, fit: Fit, /) -> Fit: ...


def check_calibrator(calibrator: Any) -> None:
    """Raise unless this can be called with a view and a fit."""
    try:
        inspect.signature(calibrator).bind(None, None)
    except TypeError:
        raise ValueError(
            f"{calibrator!r} does not take (view, fit), as a calibrator does; those of "
            "snnjax are called in a recipe, e.g. snnjax.calibrators.max_threshold()"
        ) from None
    except ValueError:  # it has no signature that could be read
        return


@jax.jit
def _where_counted(values: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.where(weight > 0, values, jnp.zeros_like(values))


_peaks = jax.jit(formulas.peaks, static_argnames="channel")
_samples = jax.jit(formulas.samples, static_argnames="channel")


@jax.jit
def _joined(parts: list[formulas.Samples]) -> formulas.Samples:
    return formulas.joined(jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts))
