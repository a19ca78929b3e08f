"""A site as calibrators see it: what comes in, what should go out, what they change.

All N calibration images come in micro-batches, so that a large network need not be in
memory.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import check_positive
from snnjax._trees import add_scaled
from snnjax.conversion import fits
from snnjax.conversion.streams import sampled
from snnjax.network.equations import Site
from snnjax.neurons import NeuronParams


class Fit(NamedTuple):
    """What calibrators change at a site.

    Attributes:
        neuron: its `NeuronParams`.
        weights: path -> array, the kernels (two axes or more) that feed it.
    """

    neuron: NeuronParams
    weights: dict[str, jax.Array]


class View(NamedTuple):
    """What calibrators see of a site, for all N calibration images.

    They come in micro-batches: a mean or a maximum over all images is put together from
    those of the micro-batches.

    Attributes:
        site: name, shape, parameters.
        steps: T.
        delay: that the SNN is fitted to.
        count: N.
        activations: of the ANN, a micro-batch [B, ...] each.
        outputs: (fit, stride=1, paced=False) -> mean outputs [B, ...] of the spiking
            site over T steps, from the spikes that the calibrated layers below really
            send; micro-batches too, of the positions that `fits.thin` leaves. With
            paced=True pairs of them and of their pace (`neurons.mean_and_pace`).
        feed: (batch, time, every=1) -> (current, sources): ``current(weights, sources,
            rows)`` is the current into the site for these images, ``batch`` of them
            (None: for all in the sources), a hashable pure function that is
            differentiable in the weights; [B, ...], the mean over T steps, or with
            time=True [T, B, ...].
        shared: paths of the weights that other sites or the readout are fed by too.
        join: (micro-batches, every=1) -> one array, of one image in so many, as
            ``feed`` takes them then.
        stride: of the positions that are left, 1 for all of them.
    """

    site: Site
    steps: int
    delay: int
    count: int
    activations: Sequence[jax.Array]
    outputs: Callable[..., Iterable[jax.Array]]
    feed: Callable[..., tuple[Callable, Any]]
    shared: frozenset[str] = frozenset()
    join: Callable[..., jax.Array] = lambda parts, every=1: jnp.concatenate(
        sampled(parts, 0, every)
    )
    stride: int = 1

    @property
    def activation(self) -> jax.Array:
        """All activations in one array [N, ...]; needs memory for all images."""
        return self.join(self.activations)

    def output(self, fit: Fit) -> jax.Array:
        """All mean outputs in one array [N, ...]."""
        return self.join(list(self.outputs(fit)))

    def every(self, samples: int, fewest: int) -> int:
        """Distance of images that give each channel so many samples or more.

        Args:
            samples: positions of a channel, over all images that are left.
            fewest: images that must be left, if there are as many.
        """
        positions = math.prod(self.site.shape) // self.site.shape[self.site.channel]
        return max(1, min(self.count * positions // samples, self.count // fewest))

    def thinned(self, samples: int) -> "View":
        """The same with fewer positions: each channel keeps so many samples or more.

        For what is fitted per channel; potentials and weights need all positions, and
        refuse it. A view that is thinned already stays as it is.
        """
        check_positive("samples", samples)
        shape, channel = list(self.site.shape), self.site.channel
        del shape[channel]
        stride = 1
        while (
            shape
            and self.count * math.prod(n // (2 * stride) for n in shape) >= samples
        ):
            stride *= 2
        if stride == 1 or self.stride > 1:
            return self
        fewer = [
            fits.thin(a, stride, len(shape) + 1, channel) for a in self.activations
        ]
        outputs = functools.partial(self.outputs, stride=stride)
        return self._replace(
            activations=fewer, outputs=outputs, feed=_needs_all, stride=stride
        )

    def peaks(self) -> jax.Array:
        """`fits.peaks` of all images."""
        found = [_peaks(a, self.site.channel) for a in self.activations]
        return functools.reduce(jnp.maximum, found)

    def samples(self) -> fits.Samples:
        """`fits.samples` of all images."""
        found = [_samples(a, self.site.channel) for a in self.activations]
        return _joined(jax.tree.map(lambda *parts: jnp.stack(parts), *found))

    def mean(
        self, statistic: Callable[..., jax.Array], fit: Fit, **options: Any
    ) -> jax.Array:
        """``statistic(a, s)``, which is a mean over its images, over all of them.

        A statistic gives one array or number, and an error if the two do not match.
        ``options`` are those of `outputs`.
        """
        total: Any = None
        for a, s in zip(self.activations, self.outputs(fit, **options), strict=True):
            shape = jax.tree.leaves(s)[0].shape
            if shape != a.shape:
                raise ValueError(
                    f"outputs of shape {shape} meet activations of shape {a.shape}; "
                    "allowed: a view whose two show the same"
                )
            found = jnp.asarray(statistic(a, s))
            total = np.zeros(found.shape, found.dtype) if total is None else total
            total = add_scaled(total, found, len(a) / self.count)
        return total


Calibrator = Callable[[View, Fit], Fit]


def _needs_all(*_) -> Any:
    raise ValueError(
        "a thinned view shows some positions of the site only; allowed: the whole view "
        "for potentials and weights"
    )


_peaks = jax.jit(fits.peaks, static_argnames="channel")
_samples = jax.jit(fits.samples, static_argnames="channel")
_joined = jax.jit(fits.joined)
