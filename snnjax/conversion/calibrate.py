"""Calibrators: how a site's threshold, bias, potential and weights are fitted.

A calibrator is a function ``(View, Fit) -> Fit``: it sees a site's activation and the
spikes that really come, and applies the mathematics of ``fits.py`` to its parameters.
Source of the layer-wise scheme and the weights: Li, Deng, Dong, Gong and Gu, ICML 2021.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from snnjax.conversion import fits
from snnjax.network.equations import Site
from snnjax.neurons import NeuronParams, closed_form, integrate_and_fire, unroll
from snnjax.surrogate import Surrogate, dspike

# --------------------------------------------------- a site, seen by a calibrator


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

    They come in micro-batches, so that a large network need not be in memory: a mean
    or a maximum over all images is that of the micro-batches'.

    Attributes:
        site: name, shape, parameters.
        steps: T.
        delay: that the SNN is fitted to.
        activations: of the ANN, a micro-batch [B, ...] each.
        outputs: (fit, stride=1) -> mean outputs [B, ...] of the spiking site over T
            steps, from the spikes that the calibrated layers below really send;
            micro-batches too, of the positions that `fits.thin` leaves.
        feed: (batch, time) -> (current, sources): ``current(weights, sources, rows)``
            is the current into the site for these images, a hashable pure function
            that is differentiable in the weights; [B, ...], the mean over T steps,
            or with time=True [T, B, ...].
        join: concatenates micro-batches.
        stride: of the positions that are left, 1 for all of them.
    """

    site: Site
    steps: int
    delay: int
    activations: Sequence[jax.Array]
    outputs: Callable[..., Iterable[jax.Array]]
    feed: Callable[..., tuple[Callable, Any]]
    join: Callable[[Sequence[jax.Array]], jax.Array] = jnp.concatenate
    stride: int = 1

    @property
    def activation(self) -> jax.Array:
        """Of all images at once, [N, ...]: memory for those who must have it."""
        return self.join(self.activations)

    def output(self, fit: Fit) -> jax.Array:
        """Of all images at once, [N, ...]."""
        return self.join(list(self.outputs(fit)))

    def thinned(self, samples: int) -> "View":
        """The same with fewer positions: each channel keeps so many samples or more.

        For what is fitted per channel; potentials and weights need all positions. A
        view that is thinned already stays as it is.
        """
        _check_positive("samples", samples)
        shape, channel = list(self.site.shape), self.site.channel
        del shape[channel]
        images, stride = sum(map(len, self.activations)), 1
        while shape and images * math.prod(n // (2 * stride) for n in shape) >= samples:
            stride *= 2
        if stride == 1 or self.stride > 1:
            return self
        fewer = [
            fits.thin(a, stride, len(shape) + 1, channel) for a in self.activations
        ]
        outputs = functools.partial(self.outputs, stride=stride)
        return self._replace(activations=fewer, outputs=outputs, stride=stride)

    def peaks(self) -> jax.Array:
        """`fits.peaks` of all images."""
        found = [_peaks(a, self.site.channel) for a in self.activations]
        return functools.reduce(jnp.maximum, found)

    def mean(self, statistic: Callable[..., jax.Array], fit: Fit) -> jax.Array:
        """``statistic(a, s)``, which is a mean over its images, over all of them."""
        total, count = jnp.zeros(()), 0
        for a, s in zip(self.activations, self.outputs(fit), strict=True):
            total, count = total + len(a) * statistic(a, s), count + len(a)
        return total / count


Calibrator = Callable[[View, Fit], Fit]


# ---------------------------------------------------------------- calibrators


def max_threshold(per: str = "layer") -> Calibrator:
    """V_th = `fits.maximum` of the activations."""
    _check_per(per)
    return _threshold(lambda view: _positive(view.peaks(), per))


def percentile_threshold(p: float, per: str = "layer") -> Calibrator:
    """V_th = `fits.quantile` of the activations."""
    _check_per(per)
    if not 0 < p <= 100:
        raise ValueError(f"p is {p}; allowed: 0 < p <= 100, in percent")
    return _threshold(
        lambda view: _quantile(view.activation, p, per, view.site.channel)
    )


def least_squares_threshold(per: str = "layer", objective: str = "floor") -> Calibrator:
    """V_th = `fits.least_squares` fit to the activations."""
    _check_per(per)
    if objective not in ("floor", "round"):
        raise ValueError(f"objective is {objective!r}; allowed: 'floor', 'round'")

    def search(view: View) -> jax.Array:
        top = _positive(view.peaks(), per)
        errors = [
            _candidate_errors(a, top, view.steps, objective, view.site.channel)
            for a in view.activations
        ]
        return _nearest(top, functools.reduce(jnp.add, errors))

    return _threshold(search)


def shift_bias() -> Calibrator:
    """bias += V_th / (2T)."""

    def calibrate(view: View, fit: Fit) -> Fit:
        neuron = fit.neuron
        bias = neuron.bias + fits.shift(neuron.threshold, view.steps)
        return fit._replace(neuron=neuron._replace(bias=bias))

    return calibrate


def half_charge() -> Calibrator:
    """v(0) = V_th / 2: the bias shift's charge, all of it before the first step."""

    def calibrate(view: View, fit: Fit) -> Fit:
        del view
        half = fit.neuron.threshold / 2
        return fit._replace(neuron=fit.neuron._replace(initial_potential=half))

    return calibrate


def correct_bias(repeats: int = 1) -> Calibrator:
    """bias += `fits.bias_correction`, measured anew in each of ``repeats`` rounds."""
    _check_positive("repeats", repeats)

    def calibrate(view: View, fit: Fit) -> Fit:
        for _ in range(repeats):
            bias = fit.neuron.bias + _lacking(view, fit)
            fit = fit._replace(neuron=fit.neuron._replace(bias=bias))
        return fit

    return calibrate


def correct_potential(repeats: int = 1, *, add: bool = False) -> Calibrator:
    """v(0) = `fits.potential_correction`; with ``add``, v(0) += it.

    The paper sets v(0) once from zero. Later rounds always add.
    """
    _check_positive("repeats", repeats)

    def calibrate(view: View, fit: Fit) -> Fit:
        for i in range(repeats):
            lacking = functools.partial(_potential_correction, steps=view.steps)
            error = view.mean(lacking, fit)
            start = fit.neuron.initial_potential if add or i else 0
            neuron = fit.neuron._replace(initial_potential=start + error)
            fit = fit._replace(neuron=neuron)
        return fit

    return calibrate


def postpone_charge(
    charges: Sequence[float] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4),
) -> Calibrator:
    """Give each channel its charge as late as serves its output best.

    A neuron that hears its input as it comes fires on evidence that later input takes
    back. Starting c thresholds lower, and getting them back evenly over the T steps,
    it waits for the rest. `fits.postpone` by every candidate c, `fits.bias_correction`
    of what that changes, and per channel the c of the smallest `fits.squared_error` of
    the spikes. The answer at t < T suffers: until T a charge is owed.

    With delay T nothing is to be gained, since the order of the input does not count
    there: the fit comes back as it is. Source: ours.

    Args:
        charges: candidates c, in thresholds.
    """
    _check_numbers("charges", charges)

    def calibrate(view: View, fit: Fit) -> Fit:
        if view.delay == view.steps:
            return fit
        return _search(view, fit, charges, lambda n, c: fits.postpone(n, c, view.steps))

    return calibrate


def scale_threshold(
    factors: Sequence[float] = (0.75, 0.9, 1, 1.15, 1.3, 1.5, 1.8),
) -> Calibrator:
    """`fits.scale` each channel by the factor that serves its real spikes best.

    `fits.least_squares` finds the threshold for input that arrives evenly. Here every
    candidate meets the spikes that do arrive, as in `postpone_charge`.

    Args:
        factors: candidates, > 0.
    """
    _check_numbers("factors", factors)
    for factor in factors:
        _check_positive("a factor", factor)
    return lambda view, fit: _search(view, fit, factors, fits.scale)


def streaming_only(calibrator: Calibrator) -> Calibrator:
    """The calibrator where layers do not wait (delay 0); elsewhere nothing."""
    return lambda view, fit: fit if view.delay else calibrator(view, fit)


# Of each channel, for a choice among candidates. On ResNet-20 half of them cost a tenth
# of the KL divergence at T = 4, and all positions gained nothing over these.
_SAMPLES = 2**15


def _search(view: View, fit: Fit, candidates: Sequence[float], change) -> Fit:
    """Per channel ``change(neuron, candidate)`` whose spikes are nearest to a.

    Dozens of candidates are compared, so on no more positions than it takes.
    """
    view = view.thinned(_SAMPLES)
    squared_error = functools.partial(_squared_error, channel=view.site.channel)

    def error(candidate: float) -> jax.Array:
        changed = fit._replace(neuron=change(fit.neuron, candidate))
        bias = changed.neuron.bias + _lacking(view, changed)
        corrected = changed._replace(neuron=changed.neuron._replace(bias=bias))
        # One candidate at a time: dozens in flight would take memory, and on virtual
        # devices their collectives may wait for each other until XLA gives up.
        return jax.block_until_ready(view.mean(squared_error, corrected))

    errors = jnp.stack([error(candidate) for candidate in candidates])
    nearest = jnp.asarray(candidates, jnp.float32)[errors.argmin(0)]
    return fit._replace(neuron=change(fit.neuron, nearest))


def _lacking(view: View, fit: Fit) -> jax.Array:
    """`fits.bias_correction` of all images."""
    correction = functools.partial(_bias_correction, channel=view.site.channel)
    return view.mean(correction, fit)


def calibrate_weights(
    objective: str = "floor",
    *,
    iterations: int = 5000,
    rate: float = 1e-5,
    batch: int = 32,
    seed: int = 0,
    surrogate: Surrogate = dspike,
) -> Calibrator:
    """Fit the kernels that feed the site, by Adam, so that s comes near a.

        min_W  mean over images and positions of sum_C (a - s(W))^2

    Args:
        objective: what s(W) is. "floor": the paper's ClipFloor of the mean current,
            which leaves out bias correction, shift and v(0); "neuron": `closed_form`
            of the neuron as it is; "spikes": the T steps themselves. The first two
            take the floor's gradient as 1 (straight through), the last a surrogate.
        iterations: Adam steps per site, cosine schedule to zero.
        rate: initial learning rate.
        batch: images per step; at most the number of calibration images is used.
        seed: of the order of the images.
        surrogate: spike function for "spikes".
    """
    if objective not in ("floor", "neuron", "spikes"):
        raise ValueError(
            f"objective is {objective!r}; allowed: 'floor', 'neuron', 'spikes'"
        )
    for name, number in (("iterations", iterations), ("rate", rate), ("batch", batch)):
        _check_positive(name, number)
    with jax.ensure_compile_time_eval():  # a recipe may be made inside jit
        schedule = optax.cosine_decay_schedule(rate, iterations)
        rates = np.asarray(schedule(jnp.arange(iterations)))

    def calibrate(view: View, fit: Fit) -> Fit:
        if not fit.weights:
            return fit
        activation = view.activation
        images = activation.shape[0]
        size = min(batch, images)
        # Where each layer waits for all of its input, mean currents are exact.
        time = objective == "spikes" and view.delay < view.steps
        current, sources = view.feed(size, time)
        step = functools.partial(
            _weight_step,
            sources=sources,
            activation=activation,
            current=current,
            objective="neuron" if objective == "spikes" and not time else objective,
            steps=view.steps,
            delay=view.delay,
            surrogate=surrogate,
            neuron=fit.neuron,
        )
        weights = tuple(fit.weights.values())
        state = _ADAM.init(weights)
        for i, rows in enumerate(_shuffled(seed, images, size, iterations)):
            weights, state = step(weights, state, rows, rates[i])
        return fit._replace(weights=dict(zip(fit.weights, weights, strict=True)))

    return calibrate


_ADAM = optax.scale_by_adam()


@functools.partial(
    jax.jit, static_argnames=("current", "objective", "delay", "surrogate")
)
def _weight_step(
    weights,
    state,
    rows,
    rate,
    *,
    sources,
    activation,
    current,
    objective,
    steps,
    delay,
    surrogate,
    neuron,
):
    target = activation[rows]

    def loss(weights):
        into = current(weights, sources, rows)
        if objective == "floor":
            bare = neuron._replace(bias=jnp.zeros(()), initial_potential=jnp.zeros(()))
            output = closed_form(bare, into, steps)
        elif objective == "neuron":
            output = closed_form(neuron, into, steps)
        else:
            model = integrate_and_fire(surrogate=surrogate)
            output = unroll(model, neuron, into, delay=delay).mean(0)
        return ((target - output) ** 2).sum(-1).mean()

    update, state = _ADAM.update(jax.grad(loss)(weights), state)
    step = jax.tree.map(lambda u, w: (-rate * u).astype(w.dtype), update, weights)
    return optax.apply_updates(weights, step), state


def _shuffled(seed: int, images: int, size: int, iterations: int):
    """``iterations`` index arrays of ``size``, epoch after epoch in random order."""
    generator = np.random.default_rng(seed)
    per_epoch = images // size
    epochs = -(-iterations // per_epoch)
    for epoch in range(epochs):
        order = generator.permutation(images)[: per_epoch * size]
        batches = order.reshape(per_epoch, size)
        yield from batches[: iterations - epoch * per_epoch]


def _threshold(find: Callable[[View], Any]) -> Calibrator:
    def calibrate(view: View, fit: Fit) -> Fit:
        return fit._replace(neuron=fit.neuron._replace(threshold=find(view)))

    return calibrate


def _check_per(per: str) -> None:
    if per not in ("layer", "channel"):
        raise ValueError(f"per is {per!r}; allowed: 'layer', 'channel'")


def _check_numbers(name: str, numbers: Sequence[float]) -> None:
    if not numbers or not np.isfinite(numbers).all():
        raise ValueError(f"{name} is {numbers}; allowed: one finite number or more")


def _check_positive(name: str, number: float) -> None:
    if not number > 0:
        raise ValueError(f"{name} is {number}; allowed: > 0")


_peaks = jax.jit(fits.peaks, static_argnames="channel")
_positive = jax.jit(fits.positive, static_argnames="per")
_quantile = jax.jit(fits.quantile, static_argnames=("p", "per", "channel"))
_candidate_errors = jax.jit(
    fits.candidate_errors, static_argnames=("objective", "channel")
)
_nearest = jax.jit(fits.nearest)
_bias_correction = jax.jit(fits.bias_correction, static_argnames="channel")
_squared_error = jax.jit(fits.squared_error, static_argnames="channel")
_potential_correction = jax.jit(fits.potential_correction)
