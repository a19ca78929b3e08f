"""Weights by least squares: the kernels that feed a site, without gradient descent.

The mean current I of a site is affine in its kernels, so they are fitted by conjugate
gradients (Hestenes and Stiefel, 1952), and only as far as it helps the images that are
left out. Source of refitting a layer to its actual input: He, Zhang and Sun, ICCV 2017
(pruning); for spikes: ours.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import binary_unit, is_on_host, namespace, on_host, wide, wide_dtype
from snnjax._programs import jit
from snnjax._ranges import COUNT, POSITIVE
from snnjax._text import named
from snnjax.calibrators.sample import at_positions
from snnjax.calibrators.view import Calibrator, Fit, Target, View

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
    return max(1, min(view.samples_per_channel // samples, view.count // _FEWEST))


def _refitted(
    weights: dict[str, jax.Array],
    free: tuple[bool, ...],
    target: Target,
    damping: float,
    iterations: int,
    rectified: bool,
) -> dict[str, jax.Array]:
    """The weights of the target, those that are free refitted, if that helps.

    XLA compiles two programs, for J d and for its transpose. What else there is to do
    NumPy does, where arrays are in a CPU's memory; elsewhere it is compiled too.
    """
    dtypes = tuple(weight.dtype for weight in weights.values())
    original = tuple(
        jnp.asarray(weight, wide_dtype(weight, target.result))
        for weight in weights.values()
    )
    fixed, sources, result = original, target.sources, target.result
    effects = target.effects
    begin, iterate, chosen = _compiled
    if is_on_host((fixed, sources, result, effects)):
        fixed, result, effects = on_host((fixed, result, effects))
        begin, iterate, chosen = _begin, _iterate, _chosen
    of = target.current, dtypes, free, target.channel
    current = _Current(*of, fixed, sources)
    with np.errstate(all="ignore"):  # as XLA
        problem, search = begin(current, result, effects, damping, rectified)
        first = search.error
        for _ in range(iterations):  # in a loop of XLA, CPUs convolve 30x slower
            search = iterate(current, problem, search)
        best = chosen(current, problem, search, first)
    columns = zip(weights.items(), best, free, strict=True)
    return {
        path: jnp.asarray(new, weight.dtype) if may_change else weight
        for (path, weight), new, may_change in columns
    }


_STATIC = {"static": True}  # no data of a pytree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Current:
    """I as `View.feed` has it, of weights that have these dtypes; here they are wider.

    Its values have the channels last, [N, p, C].
    """

    of: Callable = dataclasses.field(metadata=_STATIC)
    dtypes: tuple[Any, ...] = dataclasses.field(metadata=_STATIC)
    free: tuple[bool, ...] = dataclasses.field(metadata=_STATIC)  # may change
    channel: int = dataclasses.field(metadata=_STATIC)  # axis of I, from the end
    weights: Weights  # W_0
    sources: Any

    def bound(self, change: Weights) -> Weights:
        """A change, with 0 where the weights may not change: those of 0 stay so."""
        triples = zip(self.free, change, self.weights, strict=True)
        where = namespace(change[0]).where
        return tuple(where((w != 0) & free, d, 0) for free, d, w in triples)

    def __call__(self, weights: Weights) -> jax.Array:
        """I(W) in float32 or wider."""
        own = [w.astype(dtype) for w, dtype in zip(weights, self.dtypes, strict=True)]
        return _in_rows(wide(self.of(own, self.sources, None)), self.channel)


def _along(current: _Current, weights: Weights, direction: Weights) -> tuple[Any, Any]:
    """I(W), and J d: how the current changes with the weights along d."""
    return jax.jvp(current, (weights,), (current.bound(direction),))


def _back(current: _Current, values: Any) -> Weights:
    """J^T values."""
    return current.bound(jax.vjp(current, current.weights)[1](values)[0])


# Alone they are programs; on accelerators they are a part of `_compiled`.
_along_alone, _back_alone = jit(_along), jit(_back)


class _Search(NamedTuple):
    """Conjugate gradients on their way."""

    step: Weights  # W - W_0
    current: Any  # I(W) if I is affine, over the scale
    residual: Weights  # minus half of the gradient
    direction: Weights  # of the next step
    error: Any  # the least on images left out so far
    best: Weights  # the step that has it


class _Problem(NamedTuple):
    """What stays the same during a search; all currents are over `scale`."""

    scale: Any  # a unit that keeps squares in range
    activation: Any  # a over the scale, [N, p, C]
    bottom: Any  # 0 where a is of a ReLU, otherwise minus infinity
    top: Any  # the largest a of each channel, otherwise infinity
    counts: Any  # m w, 0 for images that are left out
    judges: Any  # w of the images that are left out, and only of them
    total: Any  # sum of m w of each channel, or 1
    level: Any  # mean of a, weighed by m w
    ridge: Any  # damping k

    def along(self, current: _Current, weights: Weights, direction: Weights) -> Any:
        compute = _along_alone if namespace(self.scale) is np else _along
        pair = compute(current, weights, direction)
        return tuple(part / self.scale for part in _as(self.scale, pair))

    def back(self, current: _Current, values: Any) -> Weights:
        """J^T m w (values - their mean), which float16 could not hold as they are.

        Centered values add up like noise, so their sum grows with the root of their
        number: in a larger unit they would be too small for float16 themselves.
        """
        values = self.centered(values)
        root = 2.0 ** (values.size.bit_length() // 2)
        unit = binary_unit(abs(values).max()) * root
        compute = _back_alone if namespace(self.scale) is np else _back
        change = _as(unit, compute(current, values / unit))
        return tuple(unit / self.scale * d for d in change)

    def centered(self, values: Any) -> Any:
        """m w (values - their mean per channel, which b takes)."""
        xp, values = namespace(values), values - self._mean(values)
        if xp is np:
            product = values * self.counts
            if np.isfinite(product.sum()):  # so all of it is: half the time
                return product
        return xp.where(self.counts > 0, self.counts * values, 0)

    def error(self, current: Any) -> Any:
        """Sum of w (a - clip(I + b))^2 over the images that are left out."""
        xp = namespace(self.scale)
        constant = self.level - self._mean(current)
        output = xp.clip(_left_out(current) + constant, self.bottom, self.top)
        errors = self.judges * (_left_out(self.activation) - output) ** 2
        return xp.where(self.judges > 0, errors, 0).sum()

    def _mean(self, values: Any) -> Any:
        """Weighed by m w, [1, 1, C]."""
        xp = namespace(values)
        total = xp.einsum("npc,npc->c", self.counts, values)[None, None]
        if xp is not np or not np.isfinite(total).all():
            total = xp.where(self.counts > 0, self.counts * values, 0)
            total = total.sum((0, 1), keepdims=True)
        return total / self.total


def _begin(
    current_of: _Current, activation: Any, effects: Any, damping: float, rectified: bool
) -> tuple[_Problem, _Search]:
    """The problem, and the search before its first step.

    Args:
        rectified: whether the activation is that of a ReLU, which clips the current.
    """
    xp, channel = namespace(activation), current_of.channel
    activation = _in_rows(activation.astype(wide_dtype(activation)), channel)
    scale = binary_unit(abs(activation).max())
    weights = current_of.weights
    compute = _along_alone if xp is np else _along
    pair = _as(scale, compute(current_of, weights, weights))
    activation, current, change = (part / scale for part in (activation, *pair))
    top = activation.max((0, 1), keepdims=True)
    bottom = xp.zeros_like(top)
    if not rectified:
        bottom, top = xp.full_like(top, -xp.inf), xp.full_like(top, xp.inf)
    is_clipped = (activation <= bottom) & (current <= bottom)
    is_clipped |= (activation >= top) & (current >= top)
    weight = xp.ones_like(activation)
    if effects is not None:
        effects = _in_rows(effects, channel)
        weight = effects.astype(weight.dtype) * weight
    judges = xp.arange(len(activation))[:, None, None] % _LEFT_OUT == _LEFT_OUT - 1
    counts = xp.where(is_clipped | judges, 0, weight)
    of = scale, activation, bottom, top, counts, _left_out(weight)
    total = counts.sum((0, 1), keepdims=True)
    total = xp.where(total > 0, total, 1)
    problem = _Problem(*of, total=total, level=scale, ridge=scale)
    problem = problem._replace(level=problem._mean(activation))
    residual = problem.back(current_of, activation - current)
    # k = |P J W_0|^2 / |W_0|^2
    curvature = (change * problem.centered(change)).sum()
    free_weights = current_of.bound(weights)
    ridge = damping * curvature / _positive(_dot(free_weights, free_weights))
    none = tuple(map(xp.zeros_like, residual))
    first = problem.error(current)
    search = _Search(none, current, residual, residual, first, none)
    return problem._replace(ridge=ridge), search


def _iterate(current_of: _Current, problem: _Problem, search: _Search) -> _Search:
    """The textbook's step; the first of equally good ones stays the best."""
    xp = namespace(problem.scale)
    _, change = problem.along(current_of, current_of.weights, search.direction)
    curvature = problem.back(current_of, change)
    curvature = _add_scaled(curvature, search.direction, problem.ridge)
    old = _dot(search.residual, search.residual)
    bend = _dot(search.direction, curvature)
    # Few images may say nothing about a direction: there rounding is all that is left.
    length = xp.where(bend > 0, old / _positive(bend), xp.zeros_like(bend))
    step = _add_scaled(search.step, search.direction, length)
    current = search.current + length * change
    residual = _add_scaled(search.residual, curvature, -length)
    turn = _dot(residual, residual) / _positive(old)
    direction = _add_scaled(residual, search.direction, turn)
    error = problem.error(current)
    best = _where(error < search.error, step, search.best)
    least = xp.minimum(error, search.error)
    return _Search(step, current, residual, direction, least, best)


def _chosen(
    current_of: _Current, problem: _Problem, search: _Search, first: Any
) -> Weights:
    """The best of the search, if its true error is less than the first one.

    I is not affine where a network normalizes its weights.
    """
    original = current_of.weights
    weights = _add_scaled(original, search.best, 1)
    current, _ = problem.along(current_of, weights, weights)
    return _where(problem.error(current) < first, weights, original)


_compiled = (jax.jit(_begin, static_argnums=4), jax.jit(_iterate), jax.jit(_chosen))


def _as(like: Any, tree: Any) -> Any:
    """NumPy's arrays if this is one."""
    return on_host(tree) if namespace(like) is np else tree


def _in_rows(values: Any, channel: int) -> Any:
    """[N, ...] as [N, p, C], at all positions."""
    return at_positions(values, None, values.ndim - 1, channel)


def _left_out(values: Any) -> Any:
    """Of the images that judge."""
    return values[_LEFT_OUT - 1 :: _LEFT_OUT]


def _where(condition: Any, first: Weights, second: Weights) -> Weights:
    where = namespace(condition).where
    return tuple(where(condition, a, b) for a, b in zip(first, second, strict=True))


def _dot(a: Weights, b: Weights) -> Any:
    products = [(x * y).sum() for x, y in zip(a, b, strict=True)]
    return functools.reduce(operator.add, products)


def _positive(number: Any) -> Any:
    return namespace(number).maximum(number, jnp.finfo(number.dtype).tiny)


def _add_scaled(a: Weights, b: Weights, factor: Any) -> Weights:
    """a + factor b."""
    return tuple(x + factor * y for x, y in zip(a, b, strict=True))
