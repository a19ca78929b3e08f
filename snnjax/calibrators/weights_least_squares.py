"""Weights by least squares: the kernels that feed a site, without gradient descent.

    min over W and b of   sum m w (a - I(W) - b)^2  +  damping k |W - W_0|^2

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

from snnjax._arrays import other_axes, wide, wide_dtype
from snnjax._ranges import COUNT, POSITIVE
from snnjax._text import named
from snnjax._trees import add_scaled
from snnjax.calibrators.formulas import binary_unit
from snnjax.calibrators.view import Calibrator, Fit, View, straight_through

_LEFT_OUT = 4  # every fourth image judges what the others give
_FEWEST = 32  # images, however many positions each has

Weights = tuple[jax.Array, ...]


@named
def least_squares_weights(
    *, iterations: int = 10, damping: float = 1.0, samples: int = 2**15
) -> Calibrator:
    """Refit kernels so that the spiking current matches the ANN's activation.

        min over W and b of   sum m (a - I(W) - b)^2  +  damping k |W - W_0|^2

    m is 0 at inactive and clipped positions. Errors of earlier layers are similar for
    many images, and the refitted weights compensate for them. b is dropped afterwards:
    the biases or potentials that are fitted next replace it. The sum leaves out every
    fourth image. The iterate with the least error on these images is kept, or W_0, so
    similar images should not lie in groups of four.

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

    def refit(weights, free, current, sources, activation, **target):
        """The refitted weights; unchanged if no spikes reach them, or if there are
        fewer than four images.
        """
        dtypes = tuple(weight.dtype for weight in weights.values())
        original = tuple(
            jnp.asarray(weight, wide_dtype(weight, activation))
            for weight in weights.values()
        )
        fixed = jax.lax.stop_gradient((original, sources, activation))
        best = _best_weights(_Layer(current, dtypes, free), *fixed, damping, **target)
        columns = weights, straight_through(original, best), dtypes, free
        return weights | {
            path: weight.astype(dtype)
            for path, weight, dtype, may_change in zip(*columns, strict=True)
            if may_change
        }

    def of_products(view: View, fit: Fit) -> Fit:
        weights = dict(fit.weights)
        for product in view.products(_spacing(view, samples)):
            kernel = {product.path: weights[product.path]}
            weights |= refit(
                kernel,
                (True,),
                product.current,
                product.sources,
                product.result,
                weight=product.weight,
                channel=product.channel,
                rectified=False,
                # Each has few weights, and half of the iterations are enough for them.
                iterations=(iterations + 1) // 2,
            )
        return fit._replace(weights=weights)

    def calibrate(view: View, fit: Fit) -> Fit:
        if view.site.is_encoder:
            return of_products(view, fit)
        free = tuple(path not in view.shared for path in fit.weights)
        if not any(free):
            return fit
        every = _spacing(view, samples)
        activation, weight = view.thinned(every)
        current, sources = view.feed(every)
        weights = refit(
            fit.weights,
            free,
            current,
            sources,
            activation,
            weight=weight,
            channel=view.site.channel,
            rectified=True,
            iterations=iterations,
        )
        return fit._replace(weights=weights)

    return calibrate


def _spacing(view: View, samples: int) -> int:
    """Distance of images that give each channel so many samples, or the fewest."""
    every = view.samples_per_channel // samples, view.count // _FEWEST
    return max(1, min(every))


class _Layer(NamedTuple):
    """The weights to be fitted, and the current that they make; static for ``jit``.

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


class _Search(NamedTuple):
    """Conjugate gradients on their way.

    Attributes:
        step: W - W_0.
        current: I(W), if I is affine, in units of its scale.
        residual: minus half of the gradient.
        direction: of the next step.
        error, best: the least on images left out so far, and the step that has it.
    """

    step: Weights
    current: jax.Array
    residual: Weights
    direction: Weights
    error: jax.Array
    best: Weights


class _Problem(NamedTuple):
    """What stays the same during a search. Activations and currents are over `scale`.

    Attributes:
        weights: W_0.
        sources: of the current.
        scale: unit of the activations and currents, which keeps squares in range.
        activation: a, [N, ...], to which the current is fitted.
        bottom, top: 0 and the largest a of each channel, where a is of a ReLU.
        counts: m w, 0 for images that are left out.
        judges: w of the images that are left out.
    """

    weights: Weights
    sources: Any
    scale: jax.Array
    activation: jax.Array
    bottom: jax.Array
    top: jax.Array
    counts: jax.Array
    judges: jax.Array

    def current(self, layer: _Layer, weights: Weights) -> jax.Array:
        return layer.into(self.sources)(weights) / self.scale

    def along(self, layer: _Layer, direction: Weights) -> jax.Array:
        """J d: how the current changes with the weights along d."""
        into, bound = layer.into(self.sources), layer.bound(direction, self.weights)
        return jax.jvp(into, (self.weights,), (bound,))[1] / self.scale

    def back(self, layer: _Layer, values: jax.Array) -> Weights:
        """J^T m w (values - their mean), which float16 could not hold as they are.

        Centered values add up like noise, so their sum grows with the root of their
        number: in a larger unit they would be too small for float16 themselves.
        """
        values = self.centered(values)
        root = 2.0 ** (values.size.bit_length() // 2)
        unit = binary_unit(jnp.abs(values).max()) * root
        _, transpose = jax.vjp(layer.into(self.sources), self.weights)
        (change,) = transpose(values / unit)
        in_unit = tuple(unit / self.scale * d for d in change)
        return layer.bound(in_unit, self.weights)

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


def _best_weights(
    layer: _Layer,
    weights: Weights,
    sources: Any,
    activation: jax.Array,
    damping: float,
    *,
    iterations: int,
    **options: Any,
) -> Weights:
    """The weights that are best for the images left out; as they are if none helps.

    The change is judged once more by the true current of the new weights, since I is
    not affine where a network normalizes its weights.
    """
    problem, first, ridge = _begin(
        layer, weights, sources, activation, damping, **options
    )
    search = first
    for _ in range(iterations):  # in a loop of XLA, convolutions on CPUs are 30x slower
        search = _iterate(layer, problem, search, ridge)
    return _chosen(layer, problem, search, first.error)


@functools.partial(jax.jit, static_argnames=("layer", "channel", "rectified"))
def _begin(
    layer: _Layer,
    weights: Weights,
    sources: Any,
    activation: jax.Array,
    damping: float,
    weight: jax.Array | None,
    channel: int,
    rectified: bool,
) -> tuple[_Problem, _Search, jax.Array]:
    """The problem, the search before its first step, and damping k."""
    activation = wide(activation)
    scale = binary_unit(jnp.abs(activation).max())
    activation, current = activation / scale, layer.into(sources)(weights) / scale
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
    effects = ones if weight is None else weight.astype(ones.dtype) * ones
    problem = _Problem(
        weights=weights,
        sources=sources,
        scale=scale,
        activation=activation,
        bottom=bottom,
        top=top,
        counts=jnp.where(is_clipped | judges, 0, effects),
        judges=jnp.where(judges, effects, 0),
    )
    residual = problem.back(layer, activation - current)
    # k = |P J W_0|^2 / |W_0|^2
    change, free = problem.along(layer, weights), layer.bound(weights, weights)
    curvature = (change * problem.centered(change)).sum()
    ridge = damping * curvature / _positive(_dot(free, free))
    none = tuple(map(jnp.zeros_like, residual))
    first = problem.error(current)
    return problem, _Search(none, current, residual, residual, first, none), ridge


@functools.partial(jax.jit, static_argnames="layer")
def _iterate(
    layer: _Layer, problem: _Problem, search: _Search, ridge: jax.Array
) -> _Search:
    """One step; the first of equally good ones stays the best."""
    change = problem.along(layer, search.direction)
    search = _advance(search, change, problem.back(layer, change), ridge)
    error = problem.error(search.current)
    pairs = zip(search.step, search.best, strict=True)
    best = tuple(jnp.where(error < search.error, *pair) for pair in pairs)
    return search._replace(error=jnp.minimum(error, search.error), best=best)


@functools.partial(jax.jit, static_argnames="layer")
def _chosen(
    layer: _Layer, problem: _Problem, search: _Search, first: jax.Array
) -> Weights:
    """The best of the search, if its true error is less than the first one."""
    weights = problem.weights
    changed = tuple(w + d for w, d in zip(weights, search.best, strict=True))
    error = problem.error(problem.current(layer, changed))
    pairs = zip(changed, weights, strict=True)
    return tuple(jnp.where(error < first, *pair) for pair in pairs)


def _advance(
    search: _Search, change: jax.Array, curvature: Weights, ridge: jax.Array
) -> _Search:
    """The textbook's step; ``change`` and ``curvature`` are those of the direction."""
    old = _dot(search.residual, search.residual)
    curvature = add_scaled(curvature, search.direction, ridge)
    length = old / _positive(_dot(search.direction, curvature))
    residual = add_scaled(search.residual, curvature, -length)
    turn = _dot(residual, residual) / _positive(old)
    return search._replace(
        step=add_scaled(search.step, search.direction, length),
        current=search.current + length * change,
        residual=residual,
        direction=add_scaled(residual, search.direction, turn),
    )


def _dot(a: Weights, b: Weights) -> jax.Array:
    return functools.reduce(jnp.add, [(x * y).sum() for x, y in zip(a, b, strict=True)])


def _positive(number: jax.Array) -> jax.Array:
    return jnp.maximum(number, jnp.finfo(number.dtype).tiny)
