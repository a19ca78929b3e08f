"""Weights by least squares: the kernels that feed a site, without gradient descent.

    min over W and b of   sum m (a - I(W) - b)^2  +  damping k |W - W_0|^2

I is the mean current of the spikes that arrive, W the kernels that may change, b a
number per channel. m is 0 where neither a nor I(W_0) is above 0, where a is the largest
of its channel and I(W_0) at least that, and at every fourth image; 1 elsewhere. k =
sum m (J W_0 - its mean)^2 / |W_0|^2 is the scale of the curvature, J the derivative of
I. I is affine in W, so this is solved by conjugate gradients (Hestenes and Stiefel,
1952), and only as far as it helps the images that are left out. Source of refitting a
layer to its actual input: He, Zhang and Sun, ICCV 2017 (pruning); for spikes: ours.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from snnjax._arrays import other_axes, wide, wide_dtype
from snnjax._checks import check_count, check_positive
from snnjax._text import named
from snnjax._trees import add_scaled
from snnjax.calibrators.formulas import binary_unit
from snnjax.calibrators.view import Calibrator, Fit, View

_LEFT_OUT = 4  # every fourth image judges what the others give
_FEWEST = 32  # images, however many positions each has

Weights = tuple[jax.Array, ...]


@named
def least_squares_weights(
    *, iterations: int = 10, damping: float = 1.0, samples: int = 2**15
) -> Calibrator:
    """W = the kernels whose current is nearest to the activation where it counts.

        min over W and b of   sum m (a - I(W) - b)^2  +  damping k |W - W_0|^2

    Spikes carry errors of earlier layers that are alike for many images. A neuron's
    weights are refitted to compensate for those that its other inputs predict. b is
    dropped again: biases or potentials, fitted next, replace it. Of the iterates, W_0
    among them, the best for every fourth image is taken, which the sum leaves out:
    images that are alike should not lie in groups of four.

    On the way to an encoder, every product with weights is refitted by itself: a is its
    result in the ANN, I the same of the spikes, and m is 1.

    Kernels that also reach another site, an operator or the readout stay as they are,
    on the way to an encoder those of several products; and all do if there are fewer
    than four images. Weights of 0 stay 0: a pruned network stays sparse. A kernel whose
    derivative is 0, as that of a rounded one, stays, too.

    Args:
        iterations: of conjugate gradients, each about two passes of a layer; half as
            many for a product on the way to an encoder.
        damping: > 0; how much a change of W costs.
        samples: positions to fit a channel to, from evenly spaced images, 32 or more.

    Raises:
        ValueError: an argument outside its range.

    Spikes of the first layer below give at most its threshold, 7.5, where the ANN has
    up to 15; the kernel of the second layer grows to make up for it.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(jax.nn.relu(x) @ w)
    >>> images = jnp.arange(16.0)[:, None]
    >>> chain = (snnjax.calibrators.percentile_threshold(50.0), least_squares_weights())
    >>> recipe = snnjax.Recipe((chain,))
    >>> snn = snnjax.convert(fn, jnp.ones((1, 1)), images, steps=4, recipe=recipe)
    >>> print(f"{snn.params[0, 0]:.2f}")
    1.24
    """
    check_count("iterations", iterations)
    check_positive("damping", damping)
    check_count("samples", samples)

    def refit(
        weights, free, current, sources, activation, channel, *, rectified, rounds
    ):
        """These weights, refitted; as they are if no spikes reach them, or if there
        are fewer than four images.
        """
        dtypes = tuple(weight.dtype for weight in weights.values())
        original = tuple(
            jnp.asarray(weight, wide_dtype(weight, activation))
            for weight in weights.values()
        )
        fixed = jax.lax.stop_gradient((original, sources, activation))
        layer = _Layer(current, dtypes, free)
        problem = _pose(layer, *fixed, channel, rectified=rectified)
        if not isinstance(problem.first, Tracer) and float(problem.first) == 0:
            return weights
        search, _ = _solve(problem, rounds, damping)
        # The change is a constant to the gradient, which is that of W_0.
        share = jnp.where(_proven(problem, search.best), 1.0, 0.0)
        chosen = add_scaled(original, search.best, share)
        fitted = zip(weights, chosen, dtypes, free, strict=True)
        changed = {path: w.astype(dtype) for path, w, dtype, moves in fitted if moves}
        return weights | changed

    def of_products(view: View, fit: Fit) -> Fit:
        weights = dict(fit.weights)
        for product in view.products(view.spacing(samples, _FEWEST)):
            kernel = {product.path: weights[product.path]}
            parts = product.current, product.sources, product.result, product.channel
            # Each has few weights, and half of the iterations are enough for them.
            rounds = (iterations + 1) // 2
            weights |= refit(kernel, (True,), *parts, rectified=False, rounds=rounds)
        return fit._replace(weights=weights)

    def calibrate(view: View, fit: Fit) -> Fit:
        if view.site.signed:
            return of_products(view, fit)
        free = tuple(path not in view.shared for path in fit.weights)
        if not any(free):
            return fit
        every = view.spacing(samples, _FEWEST)
        activation = view.join(view.activations, every)
        feed = view.feed(len(activation), False, every)
        parts = free, *feed, activation, view.site.channel
        weights = refit(fit.weights, *parts, rectified=True, rounds=iterations)
        return fit._replace(weights=weights)

    return calibrate


# The layer: one compiled program for each kind of layer.


class _Layer(NamedTuple):
    """The weights to be fitted, and the current that they make.

    Attributes:
        current: (weights, sources, rows) -> I, see `View.feed`.
        dtypes: of the weights in the network; here they are float32 or wider.
        free: which of the weights may change.
    """

    current: Callable
    dtypes: tuple[Any, ...]
    free: tuple[bool, ...]

    def into(self, sources):
        """Weights -> mean current, in float32 or wider."""

        def current(weights: Weights) -> jax.Array:
            typed = [w.astype(t) for w, t in zip(weights, self.dtypes, strict=True)]
            return wide(self.current(typed, sources, None))

        return current

    def bound(self, change: Weights, weights: Weights) -> Weights:
        """A change, with 0 where the weights may not change: those of 0 stay so."""
        triples = zip(self.free, change, weights, strict=True)
        return tuple(jnp.where(free & (w != 0), d, 0) for free, d, w in triples)


@functools.partial(jax.jit, static_argnames="layer")
def _current(layer: _Layer, weights: Weights, sources: Any, scale) -> jax.Array:
    return layer.into(sources)(weights) / scale


@functools.partial(jax.jit, static_argnames="layer")
def _along(layer: _Layer, weights: Weights, sources: Any, scale, direction: Weights):
    """J d: how the current changes with the weights along d."""
    allowed = layer.bound(direction, weights)
    return jax.jvp(layer.into(sources), (weights,), (allowed,))[1] / scale


@functools.partial(jax.jit, static_argnames="layer")
def _back(layer: _Layer, weights: Weights, sources: Any, scale, values) -> Weights:
    """J^T values, which float16 could not hold as they are.

    Centred values add up like noise, so their sum grows with the root of their number:
    by more they would be too small for float16 themselves.
    """
    size = binary_unit(jnp.abs(values).max()) * 2.0 ** (values.size.bit_length() // 2)
    change = jax.vjp(layer.into(sources), weights)[1](values / size)[0]
    return layer.bound(tuple(size / scale * d for d in change), weights)


# The images: one program for each shape of activations, whatever the layer.


class _Target(NamedTuple):
    """What the current is fitted to.

    Attributes:
        activation: a, [N, ...].
        bottom, top: 0 and the largest a of each channel, where a is of a ReLU.
        counts: m, 0 for images that are left out.
    """

    activation: jax.Array
    bottom: jax.Array
    top: jax.Array
    counts: jax.Array


@jax.jit
def _scaled(activation: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Activations and what they are divided by, so that squares stay in range."""
    activation = wide(activation)
    scale = binary_unit(jnp.abs(activation).max())
    return activation / scale, scale


@functools.partial(jax.jit, static_argnames=("channel", "rectified"))
def _target(activation: jax.Array, current: jax.Array, channel: int, rectified: bool):
    """(the target, P (a - I))."""
    axes = other_axes(activation.ndim, channel)
    top = activation.max(axes, keepdims=True)
    bottom = jnp.zeros_like(top)
    if not rectified:
        bottom, top = jnp.full_like(top, -jnp.inf), jnp.full_like(top, jnp.inf)
    silent = (activation <= bottom) & (current <= bottom)
    saturated = (activation >= top) & (current >= top)
    counts = ~(silent | saturated | _left_out(activation))
    error = _centred(activation - current, counts, channel)
    return _Target(activation, bottom, top, counts), error


@functools.partial(jax.jit, static_argnames="channel")
def _centred(values: jax.Array, counts: jax.Array, channel: int) -> jax.Array:
    """P values: what counts, minus its mean per channel, which b takes."""
    centred = values - _mean(values, counts, channel)
    return jnp.where(counts, centred, jnp.zeros_like(centred))


@functools.partial(jax.jit, static_argnames="channel")
def _error(target: _Target, current: jax.Array, channel: int) -> jax.Array:
    """Sum of (a - clip(I + b))^2 over the images that are left out."""
    constant = _mean(target.activation - current, target.counts, channel)
    output = jnp.clip(current + constant, target.bottom, target.top)
    errors = (target.activation - output) ** 2
    return jnp.where(_left_out(errors), errors, 0).sum()


def _mean(values: jax.Array, counts: jax.Array, channel: int) -> jax.Array:
    axes = other_axes(values.ndim, channel)
    total = jnp.where(counts, values, 0).sum(axes, keepdims=True)
    number = jnp.maximum(counts.sum(axes, keepdims=True), 1)
    return total / number.astype(total.dtype)


def _left_out(activation: jax.Array) -> jax.Array:
    """Which images judge, [N, 1, ...]."""
    images = jnp.arange(len(activation)) % _LEFT_OUT == _LEFT_OUT - 1
    return images.reshape(-1, *[1] * (activation.ndim - 1))


# The search: one program for each shape of weights.


class _Search(NamedTuple):
    """Conjugate gradients on their way.

    Attributes:
        step: W - W_0.
        residual: minus half of the gradient.
        direction: of the next step.
        ridge: damping k.
        error, best: the least on images left out so far, and the step that has it.
    """

    step: Weights
    residual: Weights
    direction: Weights
    ridge: jax.Array
    error: jax.Array
    best: Weights


class _Problem(NamedTuple):
    """What is minimized, and from where.

    Its methods block until their results are there: sums over all images that many
    devices compute at the same time may wait for each other until XLA gives up.

    Attributes:
        layer, weights, sources: the weights are W_0.
        target: a, and where it counts.
        current: I(W_0).
        deficit: P (a - I(W_0)).
        first: error of W_0 on images left out; 0 if there are none, and at a site that
            spikes do not reach.
        scale: what a and I are divided by, so that squares stay in float32's range.
        channel: axis of the channels, from the end.
    """

    layer: _Layer
    weights: Weights
    sources: Any
    target: _Target
    current: jax.Array
    deficit: jax.Array
    first: jax.Array
    scale: jax.Array
    channel: int

    def along(self, direction: Weights) -> jax.Array:
        """J direction."""
        args = self.layer, self.weights, self.sources, self.scale, direction
        return jax.block_until_ready(_along(*args))

    def back(self, values: jax.Array) -> Weights:
        """J^T values."""
        args = self.layer, self.weights, self.sources, self.scale, values
        return jax.block_until_ready(_back(*args))

    def curvature(self, change: jax.Array) -> Weights:
        """J^T P change; of J d, the product of d with the Gauss-Newton matrix."""
        return self.back(_centred(change, self.target.counts, self.channel))

    def error(self, current: jax.Array) -> jax.Array:
        """Of the images that are left out."""
        return jax.block_until_ready(_error(self.target, current, self.channel))


def _pose(
    layer: _Layer,
    weights: Weights,
    sources,
    activation,
    channel: int,
    *,
    rectified: bool,
) -> _Problem:
    activation, scale = _scaled(activation)
    current = _current(layer, weights, sources, scale)
    target, deficit = _target(activation, current, channel, rectified)
    first = jax.block_until_ready(_error(target, current, channel))
    return _Problem(
        layer, weights, sources, target, current, deficit, first, scale, channel
    )


def _solve(problem: _Problem, iterations: int, damping: float):
    """(search, its current) after some iterations."""
    current = problem.current
    residual = problem.back(problem.deficit)
    curvature = problem.curvature(problem.along(problem.weights))
    free, first = problem.layer.free, problem.first
    search = _begin(free, problem.weights, curvature, residual, first, damping)
    for _ in range(iterations):
        change = problem.along(search.direction)
        search, length = _advance(search, problem.curvature(change))
        (current,) = add_scaled((current,), (change,), length)
        search = _judge(search, problem.error(current))
    return search, current


def _proven(problem: _Problem, step: Weights) -> jax.Array:
    """Whether W_0 + step is better, as it is if I is affine; a norm of W is not."""
    moved = add_scaled(problem.weights, step, 1.0)
    current = _current(problem.layer, moved, problem.sources, problem.scale)
    return problem.error(current) < problem.first


@functools.partial(jax.jit, static_argnames="free")
def _begin(
    free: tuple[bool, ...], weights: Weights, curvature, residual, error, damping
) -> _Search:
    """k = |P J W_0|^2 / |W_0|^2; ``curvature`` is J^T P J W_0."""
    none = jax.tree.map(jnp.zeros_like, residual)
    moving = tuple(jnp.where(*each) for each in zip(free, weights, none, strict=True))
    size = _dot(moving, moving)
    ridge = damping * _dot(moving, curvature) / jnp.maximum(size, _tiny(size))
    return _Search(none, residual, residual, ridge, error, none)


@jax.jit
def _advance(search: _Search, curvature: Weights) -> tuple[_Search, jax.Array]:
    """The textbook's step and its length; ``curvature`` is that of the direction."""
    old = _dot(search.residual, search.residual)
    curvature = add_scaled(curvature, search.direction, search.ridge)
    length = old / jnp.maximum(_dot(search.direction, curvature), _tiny(old))
    residual = add_scaled(search.residual, curvature, -length)
    turn = _dot(residual, residual) / jnp.maximum(old, _tiny(old))
    following = search._replace(
        step=add_scaled(search.step, search.direction, length),
        residual=residual,
        direction=add_scaled(residual, search.direction, turn),
    )
    return following, length


@jax.jit
def _judge(search: _Search, error: jax.Array) -> _Search:
    better = error < search.error
    best = [jnp.where(better, *w) for w in zip(search.step, search.best, strict=True)]
    return search._replace(error=jnp.minimum(error, search.error), best=tuple(best))


def _dot(a: Weights, b: Weights) -> jax.Array:
    return functools.reduce(jnp.add, [(x * y).sum() for x, y in zip(a, b, strict=True)])


def _tiny(like: jax.Array) -> float:
    return float(jnp.finfo(like.dtype).tiny)
