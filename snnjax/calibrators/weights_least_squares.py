"""Weights by least squares: the kernels that feed a site, without gradient descent.

The mean current I of a site is affine in its kernels, so they are fitted by conjugate
gradients (Hestenes and Stiefel, 1952), and only as far as it helps the images that are
left out. Source of refitting a layer to its actual input: He, Zhang and Sun, ICCV 2017
(pruning); for spikes: ours.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import other_axes, wide, wide_dtype
from snnjax._ranges import COUNT, POSITIVE
from snnjax._text import named
from snnjax.calibrators.formulas import binary_unit
from snnjax.calibrators.view import Calibrator, Fit, Target, View, straight_through

_LEFT_OUT = 4  # every fourth image judges what the others give
_FEWEST = 32  # images, however many positions each has

Weights = tuple[jax.Array, ...]


@named
def least_squares_weights(
    *, iterations: int = 10, damping: float = 1.0, samples: int = 2**15
) -> Calibrator:
    """Refit kernels so that the spiking current matches the ANN's activation.

        min over W and b of   sum m w (a - I(W) - b)^2  +  damping k |W - W_0|^2

    I is the mean current of the spikes that arrive, W the kernels, b a number per
    channel, w the effect of an error (`by_effect`). m is 0 where neither a nor I(W_0)
    is above 0, where a is the largest of its channel and I(W_0) at least that, and at
    every fourth image; 1 elsewhere. k = sum m (J W_0 - its mean)^2 / |W_0|^2 is the
    scale of the curvature, J the derivative of I.

    Errors of earlier layers are similar for many images, and the refitted weights
    compensate for them. b is dropped afterwards: the biases or potentials that are
    fitted next replace it. The iterate with the least error on the images that are left
    out is kept, or W_0, so similar images should not lie in groups of four.

    Before an encoder, every product with weights is refitted by itself: a is its result
    in the ANN, I its result for the spikes, and m is 1.

    Some kernels do not change: those that also reach another site, an operator or the
    readout; before an encoder, those of several products; and all of them if there are
    fewer than four images. Weights of 0 stay 0, so a pruned network stays sparse. A
    kernel whose derivative is 0, such as a rounded one, does not change either.

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
    >>> recipe = snnjax.Recipe(chain)
    >>> snn = snnjax.convert(fn, jnp.ones((1, 1)), images, steps=4, recipe=recipe)
    >>> print(f"{snn.params[0, 0]:.2f}")
    1.24
    """
    COUNT.check("iterations", iterations)
    POSITIVE.check("damping", damping)
    COUNT.check("samples", samples)

    def calibrate(view: View, fit: Fit) -> Fit:
        if all(path in view.shared for path in fit.weights):
            return fit
        every = _spacing(view, samples)
        if view.site.is_encoder:
            # Each product has few weights: half of the iterations are enough for them.
            targets, count = view.products(every), (iterations + 1) // 2
        else:
            feed, (activation, effects) = view.feed(every), view.thinned(every)
            channel = view.site.channel
            targets = [Target(tuple(fit.weights), *feed, activation, channel, effects)]
            count = iterations
        weights = dict(fit.weights)
        for target in targets:
            own = {path: weights[path] for path in target.paths}
            free = tuple(path not in view.shared for path in own)
            rectified = not view.site.is_encoder
            weights |= _refitted(own, free, target, damping, count, rectified)
        return fit._replace(weights=weights)

    return calibrate


def _spacing(view: View, samples: int) -> int:
    """Distance of images that give each channel so many samples, or the fewest."""
    every = view.samples_per_channel // samples, view.count // _FEWEST
    return max(1, min(every))


def _refitted(
    weights: dict[str, jax.Array],
    free: tuple[bool, ...],
    target: Target,
    damping: float,
    iterations: int,
    rectified: bool,
) -> dict[str, jax.Array]:
    """The weights of the target, those that are free refitted, if that helps."""
    dtypes = tuple(weight.dtype for weight in weights.values())
    original = tuple(
        jnp.asarray(weight, wide_dtype(weight, target.result))
        for weight in weights.values()
    )
    constants = jax.lax.stop_gradient((original, target.sources, target.result))
    problem, first, ridge = _begin(
        *constants,
        target.effects,
        damping,
        current_of=target.current,
        dtypes=dtypes,
        free=free,
        channel=target.channel,
        rectified=rectified,
    )
    search = first
    for _ in range(iterations):  # in a loop of XLA, convolutions on CPUs are 30x slower
        search = _iterate(problem, search, ridge)
    best = straight_through(original, _chosen(problem, search, first.error))
    columns = zip(weights.items(), best, free, strict=True)
    return {
        path: new.astype(weight.dtype) if may_change else weight
        for (path, weight), new, may_change in columns
    }


class _Search(NamedTuple):
    """Conjugate gradients on their way."""

    step: Weights  # W - W_0
    current: jax.Array  # I(W) if I is affine, over the scale
    residual: Weights  # minus half of the gradient
    direction: Weights  # of the next step
    error: jax.Array  # the least on images left out so far
    best: Weights  # the step that has it


_STATIC = {"static": True}  # no data of a pytree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Problem:
    """What stays the same during a search.

    `current_of` is I as `View.feed` has it, of weights that have these dtypes; here
    they are float32 or wider. All of I but that of `current` is over `scale`.
    """

    current_of: Callable = dataclasses.field(metadata=_STATIC)
    dtypes: tuple[Any, ...] = dataclasses.field(metadata=_STATIC)
    free: tuple[bool, ...] = dataclasses.field(metadata=_STATIC)  # may change
    weights: Weights  # W_0
    sources: Any
    scale: jax.Array  # a unit that keeps squares in range
    activation: jax.Array  # a over the scale, [N, ...]
    bottom: jax.Array  # 0 where a is of a ReLU, otherwise minus infinity
    top: jax.Array  # the largest a of each channel, otherwise infinity
    counts: jax.Array  # m w, 0 for images that are left out
    judges: jax.Array  # w of the images that are left out

    def current(self, weights: Weights) -> jax.Array:
        """I, not over the scale."""
        return _wide_current(self.current_of, self.dtypes, weights, self.sources)

    def bound(self, change: Weights) -> Weights:
        """A change, with 0 where the weights may not change: those of 0 stay so."""
        triples = zip(self.free, change, self.weights, strict=True)
        return tuple(jnp.where(free & (w != 0), d, 0) for free, d, w in triples)

    def along(self, direction: Weights) -> jax.Array:
        """J d: how the current changes with the weights along d."""
        tangents = (self.bound(direction),)
        return jax.jvp(self.current, (self.weights,), tangents)[1] / self.scale

    def back(self, values: jax.Array) -> Weights:
        """J^T m w (values - their mean), which float16 could not hold as they are.

        Centered values add up like noise, so their sum grows with the root of their
        number: in a larger unit they would be too small for float16 themselves.
        """
        values = self.centered(values)
        root = 2.0 ** (values.size.bit_length() // 2)
        unit = binary_unit(jnp.abs(values).max()) * root
        _, transpose = jax.vjp(self.current, self.weights)
        (change,) = transpose(values / unit)
        return self.bound(tuple(unit / self.scale * d for d in change))

    def centered(self, values: jax.Array) -> jax.Array:
        """m w (values - their mean per channel, which b takes)."""
        values = self.counts * (values - self._mean(values))
        return jnp.where(self.counts > 0, values, jnp.zeros_like(values))

    def error(self, current: jax.Array) -> jax.Array:
        """Sum of w (a - clip(I + b))^2 over the images that are left out."""
        constant = self._mean(self.activation - current)
        output = jnp.clip(current + constant, self.bottom, self.top)
        errors = self.judges * (self.activation - output) ** 2
        return jnp.where(self.judges > 0, errors, jnp.zeros_like(errors)).sum()

    def _mean(self, values: jax.Array) -> jax.Array:
        channels = self.top.shape
        axes = tuple(a for a in range(values.ndim) if channels[a] == 1)
        total = jnp.where(self.counts > 0, self.counts * values, 0)
        total = total.sum(axes, keepdims=True)
        weight = self.counts.sum(axes, keepdims=True)
        return total / jnp.where(weight > 0, weight, jnp.ones_like(weight))


@functools.partial(
    jax.jit, static_argnames=("current_of", "dtypes", "free", "channel", "rectified")
)
def _begin(
    weights: Weights,
    sources: Any,
    activation: jax.Array,
    effects: jax.Array | None,
    damping: float,
    *,
    current_of: Callable,
    dtypes: tuple[Any, ...],
    free: tuple[bool, ...],
    channel: int,
    rectified: bool,
) -> tuple[_Problem, _Search, jax.Array]:
    """The problem, the search before its first step, and damping k.

    Args:
        channel: axis of the channels, from the end.
        rectified: whether the activation is that of a ReLU, which clips the current.
    """
    activation = wide(activation)
    scale = binary_unit(jnp.abs(activation).max())
    current = _wide_current(current_of, dtypes, weights, sources)
    activation, current = activation / scale, current / scale
    axes = other_axes(activation.ndim, channel)
    top = activation.max(axes, keepdims=True)
    bottom = jnp.zeros_like(top)
    if not rectified:
        bottom, top = jnp.full_like(top, -jnp.inf), jnp.full_like(top, jnp.inf)
    is_clipped = (activation <= bottom) & (current <= bottom)
    is_clipped |= (activation >= top) & (current >= top)
    images = jnp.arange(len(activation)) % _LEFT_OUT == _LEFT_OUT - 1
    judges = images.reshape(-1, *[1] * (activation.ndim - 1))
    ones = jnp.ones_like(activation)
    weight = ones if effects is None else effects.astype(ones.dtype) * ones
    problem = _Problem(
        current_of=current_of,
        dtypes=dtypes,
        free=free,
        weights=weights,
        sources=sources,
        scale=scale,
        activation=activation,
        bottom=bottom,
        top=top,
        counts=jnp.where(is_clipped | judges, 0, weight),
        judges=jnp.where(judges, weight, 0),
    )
    residual = problem.back(activation - current)
    # k = |P J W_0|^2 / |W_0|^2
    change, free_weights = problem.along(weights), problem.bound(weights)
    curvature = (change * problem.centered(change)).sum()
    ridge = damping * curvature / _positive(_dot(free_weights, free_weights))
    none = tuple(map(jnp.zeros_like, residual))
    first = problem.error(current)
    return problem, _Search(none, current, residual, residual, first, none), ridge


@jax.jit
def _iterate(problem: _Problem, search: _Search, ridge: jax.Array) -> _Search:
    """The textbook's step; the first of equally good ones stays the best."""
    change = problem.along(search.direction)
    curvature = _add_scaled(problem.back(change), search.direction, ridge)
    old = _dot(search.residual, search.residual)
    bend = _dot(search.direction, curvature)
    # Few images may say nothing about a direction: there rounding is all that is left.
    length = jnp.where(bend > 0, old / _positive(bend), jnp.zeros_like(bend))
    step = _add_scaled(search.step, search.direction, length)
    current = search.current + length * change
    residual = _add_scaled(search.residual, curvature, -length)
    turn = _dot(residual, residual) / _positive(old)
    direction = _add_scaled(residual, search.direction, turn)
    error = problem.error(current)
    best = _where(error < search.error, step, search.best)
    least = jnp.minimum(error, search.error)
    return _Search(step, current, residual, direction, least, best)


@jax.jit
def _chosen(problem: _Problem, search: _Search, first: jax.Array) -> Weights:
    """The best of the search, if its true error is less than the first one.

    I is not affine where a network normalizes its weights.
    """
    weights = tuple(map(jnp.add, problem.weights, search.best))
    error = problem.error(problem.current(weights) / problem.scale)
    return _where(error < first, weights, problem.weights)


def _wide_current(
    current_of: Callable, dtypes: Sequence[Any], weights: Weights, sources: Any
) -> jax.Array:
    """I(W) in float32 or wider."""
    own_types = [w.astype(dtype) for w, dtype in zip(weights, dtypes, strict=True)]
    return wide(current_of(own_types, sources, None))


def _where(condition: jax.Array, first: Weights, second: Weights) -> Weights:
    return jax.tree.map(functools.partial(jnp.where, condition), first, second)


def _dot(a: Weights, b: Weights) -> jax.Array:
    return functools.reduce(jnp.add, [(x * y).sum() for x, y in zip(a, b, strict=True)])


def _positive(number: jax.Array) -> jax.Array:
    return jnp.maximum(number, jnp.finfo(number.dtype).tiny)


@jax.jit
def _add_scaled(a: Any, b: Any, factor: Any) -> Any:
    """a + factor b, leaf by leaf."""
    return jax.tree.map(lambda x, y: x + factor * y, a, b)
