"""Weights by least squares: the kernels that feed a site, without gradient descent.

    min over W and b of   sum m (a - I(W) - b)^2  +  damping k |W - W_0|^2

I is the mean current of the spikes that really come, b a number per channel, m is 0
where neither a nor I(W_0) is above 0, or both are at the largest a of the channel, and
1 elsewhere, and k = sum m (I(W_0) - its mean)^2 / |W_0|^2 the scale of the curvature. I
is affine in W, so this is solved by conjugate gradients (Hestenes and Stiefel, 1952),
and only as far as it helps images that are left out of the sum. Source of refitting a
layer to what really comes in: He, Zhang and Sun, ICCV 2017 (pruning); for spikes: ours.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._checks import check_count, check_positive
from snnjax.conversion.view import Calibrator, Fit, View

_LEFT_OUT = 4  # every fourth image judges what the others give
_FEWEST = 32  # images, however many positions each has

Weights = tuple[jax.Array, ...]


def least_squares_weights(
    *, iterations: int = 10, damping: float = 1.0, samples: int = 2**16
) -> Calibrator:
    """W = the kernels whose current comes nearest to the activation where it counts.

        min over W and b of   sum m (a - I(W) - b)^2  +  damping k |W - W_0|^2

    Spikes carry an error that is alike for many images; what of it can be foretold
    from the other spikes that a neuron receives, its weights take back. b is dropped
    again: biases or potentials, fitted next, make up for it. Of the iterates, W_0
    among them, the best for a fourth of the images is taken, which the sum leaves out.

    Kernels that reach another site or the readout, too, stay as they are, and all do
    if there are fewer than four images.

    Args:
        iterations: of conjugate gradients, each about two passes of a layer.
        damping: > 0; how much a change of W costs.
        samples: positions to fit a channel to, from evenly spaced images, 32 or more.
    """
    check_count("iterations", iterations)
    check_positive("damping", damping)
    check_count("samples", samples)

    def calibrate(view: View, fit: Fit) -> Fit:
        free = tuple(path not in view.shared for path in fit.weights)
        if not any(free):
            return fit
        every = view.every(samples, _FEWEST)
        activation = view.join(view.activations, every)
        current, sources = view.feed(len(activation), False, every)
        own = tuple(weight.dtype for weight in fit.weights.values())
        layer = _Layer(current, own, free, view.site.channel)
        weights = tuple(map(_wide, fit.weights.values()))
        search = _begin(layer, weights, sources, activation)
        for _ in range(iterations):
            search = _advance(layer, search, weights, sources, activation, damping)
        chosen = _chosen(layer, search, weights, sources, activation)
        changed = zip(fit.weights, chosen, own, free, strict=True)
        new = {path: w.astype(dtype) for path, w, dtype, moves in changed if moves}
        return fit._replace(weights=fit.weights | new)

    return calibrate


class _Layer(NamedTuple):
    """What a program is compiled for.

    Attributes:
        current: (weights, sources, rows) -> I, see `View.feed`.
        own: types of the weights, which are float32 or wider here.
        free: which of the weights may change.
        channel: axis of the channels, from the end.
    """

    current: Callable
    own: tuple[Any, ...]
    free: tuple[bool, ...]
    channel: int

    def into(self, sources):
        """Weights -> mean current, in float32 or wider."""

        def current(weights: Weights) -> jax.Array:
            typed = [w.astype(t) for w, t in zip(weights, self.own, strict=True)]
            return _wide(self.current(typed, sources, None))

        return current

    def bound(self, weights: Weights) -> Weights:
        """With 0 in the place of weights that may not change."""
        pairs = zip(self.free, weights, strict=True)
        return tuple(w if free else jnp.zeros_like(w) for free, w in pairs)


class _Search(NamedTuple):
    """Conjugate gradients on their way.

    Attributes:
        step: W - W_0.
        residual: minus half of the gradient.
        direction: of the next step.
        current: I(W) of all images.
        counts: m, of the images that are fitted to.
        curvature: k.
        first: error of W_0 on the images that are left out.
        error, best: the least so far, and the step that has it.
    """

    step: Weights
    residual: Weights
    direction: Weights
    current: jax.Array
    counts: jax.Array
    curvature: jax.Array
    first: jax.Array
    error: jax.Array
    best: Weights


@functools.partial(jax.jit, static_argnames="layer")
def _begin(layer: _Layer, weights: Weights, sources: Any, activation) -> _Search:
    current, pull = jax.vjp(layer.into(sources), weights)
    top = _top(activation, layer.channel)
    silent = (activation <= 0) & (current <= 0)
    saturated = (activation >= top) & (current >= top)
    counts = ~(silent | saturated | _left_out(activation))
    lacking = _centred(activation - current, counts, layer.channel)
    residual = layer.bound(pull(lacking)[0])
    _, along = jax.jvp(layer.into(sources), (weights,), (layer.bound(weights),))
    power = (_centred(along, counts, layer.channel) ** 2).sum()
    size = _dot(layer.bound(weights), layer.bound(weights))
    error = _error(current, counts, activation, layer.channel)
    none = jax.tree.map(jnp.zeros_like, weights)
    curvature = power / jnp.maximum(size, _tiny(size))
    return _Search(
        step=none,
        residual=residual,
        direction=residual,
        current=current,
        counts=counts,
        curvature=curvature,
        first=error,
        error=error,
        best=none,
    )


@functools.partial(jax.jit, static_argnames="layer", donate_argnames="search")
def _advance(
    layer: _Layer, search: _Search, weights: Weights, sources, activation, damping
) -> _Search:
    """One step, which is the textbook's, and what the images left out say to it."""
    into, old = layer.into(sources), _dot(search.residual, search.residual)
    _, along = jax.jvp(into, (weights,), (search.direction,))
    _, pull = jax.vjp(into, weights)
    bent = pull(_centred(along, search.counts, layer.channel))[0]
    damped = damping * search.curvature
    bent = _add(layer.bound(bent), search.direction, damped)
    length = old / jnp.maximum(_dot(search.direction, bent), _tiny(old))
    residual = _add(search.residual, bent, -length)
    turn = _dot(residual, residual) / jnp.maximum(old, _tiny(old))
    step = _add(search.step, search.direction, length)
    current = search.current + length * along
    error = _error(current, search.counts, activation, layer.channel)
    better = error < search.error
    return search._replace(
        step=step,
        residual=residual,
        direction=_add(residual, search.direction, turn),
        current=current,
        error=jnp.where(better, error, search.error),
        best=jax.tree.map(lambda a, b: jnp.where(better, a, b), step, search.best),
    )


@functools.partial(jax.jit, static_argnames="layer")
def _chosen(
    layer: _Layer, search: _Search, weights: Weights, sources, activation
) -> Weights:
    """W_0 + step, if I was as affine as it should be: a normalized kernel's is not."""
    moved = _add(weights, search.best, 1.0)
    current = layer.into(sources)(moved)
    error = _error(current, search.counts, activation, layer.channel)
    better = error < search.first
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), moved, weights)


def _left_out(activation: jax.Array) -> jax.Array:
    """Which images judge, [N, 1, ...]."""
    images = jnp.arange(len(activation)) % _LEFT_OUT == _LEFT_OUT - 1
    return images.reshape(-1, *[1] * (activation.ndim - 1))


def _centred(values: jax.Array, counts: jax.Array, channel: int) -> jax.Array:
    """P: what counts, minus its mean per channel, which b takes."""
    return jnp.where(counts, values - _mean(values, counts, channel), 0)


def _top(activation: jax.Array, channel: int) -> jax.Array:
    """The largest of each channel: no threshold will be above it."""
    axes = tuple(a for a in range(activation.ndim) if a != activation.ndim + channel)
    return activation.max(axes, keepdims=True)


def _mean(values: jax.Array, counts: jax.Array, channel: int) -> jax.Array:
    axes = tuple(a for a in range(values.ndim) if a != values.ndim + channel)
    total = jnp.where(counts, values, 0).sum(axes, keepdims=True)
    return total / jnp.maximum(counts.sum(axes, keepdims=True), 1)


def _error(current, counts, activation, channel: int) -> jax.Array:
    """Sum of (a - clip(I + b))^2 over the images that are left out."""
    constant = _mean(activation - current, counts, channel)
    output = jnp.clip(current + constant, 0, _top(activation, channel))
    errors = (activation - output) ** 2
    return jnp.where(_left_out(activation), errors, 0).sum()


def _dot(a: Weights, b: Weights) -> jax.Array:
    return functools.reduce(jnp.add, [(x * y).sum() for x, y in zip(a, b, strict=True)])


def _add(a: Weights, b: Weights, factor) -> Weights:
    """a + factor b."""
    return jax.tree.map(lambda x, y: x + factor * y, a, b)


def _wide(array: jax.Array) -> jax.Array:
    """In float32 or wider."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _tiny(like: jax.Array) -> float:
    return float(jnp.finfo(like.dtype).tiny)
