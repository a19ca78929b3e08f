"""Weights by least squares: the kernels that feed a site, without gradient descent.

The mean current I of a site is affine in its kernels, so they are fitted by conjugate
gradients (Hestenes and Stiefel, 1952), and only as far as it helps the images that are
left out. Source of refitting a layer to its actual input: He, Zhang and Sun, ICCV 2017
(pruning); Zhong et al., ERQ, ICML 2024 (by ridge regression, for activations that are
quantized); for spikes, with images that are left out: ours.

The terms of this file:

    W, W_0      the kernels, and their values before; each is a tuple of arrays
    I(W), J     the mean current at a site, and its derivative with respect to W
    m w         the weight of an error: w is its effect, m is 0 where it does not count
    rows        values as [N, p, C]: N images, p positions of each, C channels
    w           how much the error of an activation counts: its effect, or 1
    m           0 where an activation is not fitted, otherwise 1
    held out    every fourth image, which is not fitted but judges the result
    unit        a power of two, by which large numbers are divided without rounding

XLA compiles two programs for a site: the derivative of the current (`_along`), and its
transpose (`_back`). Sums over images are NumPy's where the images are in a CPU's
memory, since compiling them too takes longer than all iterations of a small layer. So
the steps of a search alternate between compiled functions and functions that are
`by_numpy_or_xla`.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import binary_unit, by_numpy_or_xla, namespace, wide, wide_dtype
from snnjax._programs import jit
from snnjax._ranges import COUNT, POSITIVE
from snnjax._text import named
from snnjax.calibrators.sample import at_positions
from snnjax.calibrators.view import Calibrator, Fit, Target, View

_GROUP = 4  # the last image of each group is held out
_HELD_OUT = slice(_GROUP - 1, None, _GROUP)
_FEWEST = 32  # images that weights are fitted to, however many positions they have

Weights = tuple[Any, ...]


@named
def least_squares_weights(
    *, iterations: int = 10, damping: float = 1.0, samples: int = 2**15
) -> Calibrator:
    """Refit kernels so that the spiking current matches the ANN's activation.

        min over W and b of   sum m w (a - I(W) - b)^2  +  damping k |W - W_0|^2

    a is the ANN's activation, I the mean current of the spikes that arrive, W the
    kernels, b a number per channel, w the effect of an error (`by_effect`, otherwise
    1). m is 0 where neither a nor I(W_0) is above 0, where a is the largest of its
    channel and I(W_0) at least that, and at every fourth image; 1 elsewhere.
    k = sum m w (J W_0 - its mean)^2 / |W_0|^2 is the scale of the curvature, J the
    derivative of I. A quantized ReLU rounds its current: where that gives a, the fit
    keeps the current, and I(W_0) takes the place of a.

    Errors of earlier layers are similar for many images, and the refitted weights
    compensate for them. b is dropped afterwards: the biases or potentials that are
    fitted next replace it. The iterate with the least error on the images that are left
    out is kept, or W_0, so similar images should not lie in groups of four.

    Before an encoder, every product with weights is refitted by itself: a is its result
    in the ANN, I its result for the spikes, and m is 1. w is the effect at the position
    of the encoder that has the same number, as with tokens. Where the two have other
    positions, w is the mean over the image.

    Some kernels do not change: those that also reach another site, an operator or the
    readout; before an encoder, those of several products; and all of them if there are
    fewer than four images. Weights of 0 stay 0, so a pruned network stays sparse. A
    kernel whose derivative is 0, such as a rounded one, does not change either.

    Args:
        iterations: of conjugate gradients. Each takes about two passes of a layer. A
            product on the way to an encoder gets half as many.
        damping: > 0, how much a change of W costs, relative to the curvature.
        samples: activations that a channel is fitted to, from evenly spaced images, of
            which there are 32 or more.

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
        stride = _stride(view, samples)
        if view.site.is_encoder:
            # Each product has few weights: half of the iterations are enough for them.
            count = (iterations + 1) // 2
            targets = view.products(stride)
        else:
            count = iterations
            targets = [_activation_target(view, fit, stride)]
        weights = dict(fit.weights)
        for target in targets:
            refitted = _refitted(
                {path: weights[path] for path in target.paths},
                shared=view.shared,
                target=target,
                damping=float(damping),
                iterations=count,
                rectified=not view.site.is_encoder,
            )
            weights.update(refitted)
        return fit._replace(weights=weights)

    return calibrate


def _stride(view: View, samples: int) -> int:
    """The largest n for which every n-th image is enough.

    These images give each channel ``samples`` activations or more, and there are at
    least `_FEWEST` of them. If all images together are too few, n is 1.
    """
    for_samples = view.samples_per_channel // samples
    for_images = view.count // _FEWEST
    return max(1, min(for_samples, for_images))


def _activation_target(view: View, fit: Fit, stride: int) -> Target:
    """All weights of a site together, which should give the ANN's activation."""
    current, sources = view.feed(stride)
    activation, effects = view.thinned(stride)
    return Target(
        paths=tuple(fit.weights),
        current=current,
        sources=sources,
        result=activation,
        channel=view.site.channel,
        effects=effects,
        finest=view.own_finest,
    )


def _refitted(
    weights: dict[str, jax.Array],
    *,
    shared: Collection[str],
    target: Target,
    damping: float,
    iterations: int,
    rectified: bool,
) -> dict[str, jax.Array]:
    """The weights that are not shared, refitted if that helps the images held out.

    Args:
        weights: path -> W_0, the weights of the target.
        shared: paths of weights that may not change.
        target: what the weights should give.
        damping: how much a change costs.
        iterations: of conjugate gradients.
        rectified: whether the target is the result of a ReLU, which clips the current.
    """
    # float16 would not hold the small steps of a search.
    original = tuple(
        jnp.asarray(weight, wide_dtype(weight, target.result))
        for weight in weights.values()
    )
    layer = _Layer(
        current=target.current,
        dtypes=tuple(weight.dtype for weight in weights.values()),
        free=tuple(path not in shared for path in weights),
        channel=target.channel,
        weights=original,
        sources=target.sources,
    )
    problem, search = _start(layer, target, damping, rectified)
    first_error = search.error
    for _ in range(iterations):  # In a loop of XLA, CPUs convolve 30 times slower.
        search = _advance(layer, problem, search)
    # I is not affine where a network normalizes its weights: there the error that the
    # search has found for its best step need not be true. So I is computed anew, by the
    # program that is compiled already; its second result is not needed.
    best = _moved(original, search.best_step)
    current, _ = _along(layer, best, best)
    better = _better(problem, current, first_error, best, original)
    results = {}
    for path, result in zip(weights, better, strict=True):
        if path not in shared:
            results[path] = jnp.asarray(result, weights[path].dtype)
    return results


# ------------------------------------------------------- the current and its derivative


_STATIC = {"static": True}  # of a field that belongs to the structure of a pytree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Layer:
    """I, a function of weights in float32 or wider, and what it needs besides.

    Attributes:
        current: the function (weights, sources, rows) of `View.feed`.
        dtypes: those of the weights that ``current`` takes.
        free: for each weight whether it may change.
        channel: axis of the channels of I, from the end.
        weights: W_0.
        sources: what ``current`` reads of the spiking network.
    """

    current: Callable = dataclasses.field(metadata=_STATIC)
    dtypes: tuple[Any, ...] = dataclasses.field(metadata=_STATIC)
    free: tuple[bool, ...] = dataclasses.field(metadata=_STATIC)
    channel: int = dataclasses.field(metadata=_STATIC)
    weights: Weights
    sources: Any

    def __call__(self, weights: Weights) -> jax.Array:
        """I(W), [N, p, C]."""
        narrow = []
        for weight, dtype in zip(weights, self.dtypes, strict=True):
            narrow.append(weight.astype(dtype))
        current = self.current(narrow, self.sources, None)  # None: at all images
        return _in_rows(wide(current), self.channel)

    def allowed(self, change: Weights) -> Weights:
        """The change with 0 for weights that are not free, and for those that are 0."""
        parts = []
        for part, weight, is_free in zip(change, self.weights, self.free, strict=True):
            parts.append(jnp.where((weight != 0) & is_free, part, 0))
        return tuple(parts)


@jit
def _along(layer: _Layer, weights: Weights, direction: Weights) -> tuple[Any, Any]:
    """I(W), and J d, by which the current changes with the weights along d.

    Both are [N, p, C].
    """
    allowed = layer.allowed(direction)
    return jax.jvp(layer, (weights,), (allowed,))


@jit
def _back(layer: _Layer, values: Any) -> Weights:
    """J^T values, of values [N, p, C]: shaped like the weights."""
    _, transpose = jax.vjp(layer, layer.weights)
    (change,) = transpose(values)
    return layer.allowed(change)


class _Split(NamedTuple):
    """Values of a site as they are fitted, and those of the images held out.

    Attributes:
        fitted: [N, p, C]; 0 where the weight of errors is 0, also of images held out.
        held_out: [N / 4, p, C].
    """

    fitted: Any
    held_out: Any


def _split(values: Any, unit: Any, weight: Any) -> _Split:
    """A current, or its change, over the unit.

    It is not a part of `_along`, which XLA would then compile three times as long.

    Args:
        values: [N, p, C]. They need not be finite where the weight is 0.
        unit: of activations and currents.
        weight: of errors, [N, p, C].
    """
    xp = namespace(values)
    values = values / unit
    # NumPy multiplies by a mask in a fifth of the time of `where`. As infinity times 0
    # is no number, values are brought into the range of their type first.
    highest = xp.finfo(values.dtype).max
    finite = xp.fmin(xp.fmax(values, -highest), highest)
    fitted = finite * (weight > 0).astype(values.dtype)
    return _Split(fitted=fitted, held_out=values[_HELD_OUT])


def _in_rows(values: Any, channel: int) -> Any:
    """[N, ...] as [N, p, C], at all positions."""
    return at_positions(values, None, values.ndim - 1, channel)


# -------------------------------------------------------------------------- the problem


class _Problem(NamedTuple):
    """What stays the same during a search; activations and currents are over the unit.

    Attributes:
        unit: a power of two that keeps squares in the range of float32.
        activation: a.
        weight: m w, which is 0 for images held out; and w for those.
        bottom: the least output of each channel: 0 of a ReLU, otherwise minus infinity,
            [1, 1, C].
        top: its largest output: the largest a behind a ReLU, otherwise infinity.
        finest: difference of neighboring values of a quantized ReLU, [C] or [1]; None
            of others.
        total: sum of m w of each channel, [1, 1, C]; 1 in place of 0.
        mean: of a, weighted by m w, [1, 1, C].
        ridge: damping k.
    """

    unit: Any
    activation: _Split
    weight: _Split
    bottom: Any
    top: Any
    finest: Any
    total: Any
    mean: Any
    ridge: Any


@functools.partial(by_numpy_or_xla, static=3)
def _problem(
    damping: float,
    rectified: bool,
    channel: int,
    activation: Any,
    effects: Any,
    finest: Any,
    current: Any,
    change: Any,
    free_weights: Weights,
) -> tuple[_Problem, _Split]:
    """The problem, and I(W_0), which is 0 where errors do not count.

    Args:
        damping: how much a change of the weights costs.
        rectified: whether the activation is that of a ReLU.
        channel: axis of the channels of activations and effects, from the end.
        activation: a, [N, ...].
        effects: w, [N, ...] with a single channel; None: 1.
        finest: difference of neighboring values of a quantized ReLU, [C] or [1]; None
            of others.
        current: I(W_0), [N, p, C].
        change: J W_0, [N, p, C].
        free_weights: those of W_0 that may change.
    """
    xp = namespace(activation)
    unit, activation, effects = _scaled(channel, activation, effects)
    bottom, top = _output_range(activation, effects, rectified)
    # Errors have the weight w here, since m follows from this current.
    counted_current = _split(current, unit, effects).fitted
    # m is 0 where a ReLU clips activation and current alike, so that the error is 0
    # whatever the current is. It is 0 for images held out, too.
    is_below = (activation <= bottom) & (counted_current <= bottom)
    is_above = (activation >= top) & (counted_current >= top)
    image = xp.arange(len(activation))[:, None, None]
    is_held_out = image % _GROUP == _GROUP - 1
    weight = xp.where(is_below | is_above | is_held_out, 0, effects)  # m w
    total = weight.sum((0, 1), keepdims=True)
    total = xp.where(total > 0, total, 1)
    # k = sum m w (J W_0 - its mean)^2 / |W_0|^2 = curvature / square
    fitted_change = _split(change, unit, weight).fitted
    deviation = fitted_change - _weighted_mean(fitted_change, weight, total)
    curvature = (weight * fitted_change * deviation).sum()
    square = _dot(free_weights, free_weights)
    target = activation
    if finest is not None:
        finest = finest / unit
        # A quantized ReLU rounds the current to the nearest value. Where that is the
        # activation already, the current is to stay as it is.
        is_right = abs(counted_current - activation) <= finest / 2
        target = xp.where(is_right, counted_current, activation)
    problem = _Problem(
        unit=unit,
        activation=_Split(fitted=target, held_out=activation[_HELD_OUT]),
        weight=_Split(fitted=weight, held_out=effects[_HELD_OUT]),
        bottom=bottom,
        top=top,
        finest=finest,
        total=total,
        mean=_weighted_mean(target, weight, total),
        ridge=damping * curvature / _positive(square),
    )
    return problem, _split(current, unit, weight)


def _scaled(channel: int, activation: Any, effects: Any) -> tuple[Any, Any, Any]:
    """A unit, the activations over it, and the weights of their errors.

    The arguments are those of `_problem`. The unit is a number, and both arrays are
    [N, p, C] in float32 or wider.
    """
    xp = namespace(activation)
    rows = _in_rows(activation.astype(wide_dtype(activation)), channel)
    unit = binary_unit(abs(rows).max())
    rows = rows / unit
    if effects is None:
        return unit, rows, xp.ones_like(rows)
    weight = _in_rows(effects, channel)  # [N, p, 1]
    weight = xp.broadcast_to(weight.astype(rows.dtype), rows.shape)
    return unit, rows, weight


def _output_range(activation: Any, weight: Any, rectified: bool) -> tuple[Any, Any]:
    """The smallest and the largest output of each channel, [1, 1, C] both.

    Args:
        activation: [N, p, C].
        weight: of errors, [N, p, C]; an activation counts if it is above 0.
        rectified: whether it is that of a ReLU. A ReLU that clips shows its maximum.
    """
    xp = namespace(activation)
    if rectified:
        counted = activation * (weight > 0).astype(activation.dtype)
        largest = counted.max((0, 1), keepdims=True)
        return xp.zeros_like(largest), largest
    infinity = xp.full_like(activation[:1, :1], xp.inf)
    return -infinity, infinity


def _weighted_mean(values: Any, weight: Any, total: Any) -> Any:
    """The mean of each channel, [1, 1, C], of values [N, p, C].

    Args:
        values: to be averaged.
        weight: m w of each value, [N, p, C].
        total: its sum for each channel, [1, 1, C].
    """
    xp = namespace(values)
    sums = xp.einsum("npc,npc->c", weight, values)
    return sums[None, None] / total


def _error(problem: _Problem, current: _Split) -> Any:
    """Sum of w (a - clip(I + b))^2 over the images held out."""
    xp = namespace(problem.mean)
    weight = problem.weight.held_out
    mean = _weighted_mean(current.fitted, problem.weight.fitted, problem.total)
    # b makes the mean of the currents that of the activations.
    shifted = current.held_out + (problem.mean - mean)
    if problem.finest is not None:
        shifted = problem.finest * xp.floor(shifted / problem.finest + 0.5)
    output = xp.clip(shifted, problem.bottom, problem.top)
    errors = weight * (problem.activation.held_out - output) ** 2
    # A current may be infinite where its weight is 0.
    counted = xp.where(weight > 0, errors, 0)
    return counted.sum()


# ---------------------------------------------------------------- conjugate gradients


class _Search(NamedTuple):
    """Conjugate gradients on their way to the step W - W_0 that solves A step = r_0.

    A = J^T m w (J - its mean) + ridge, and r_0 = J^T m w (a - I(W_0) - its mean).

    Attributes:
        step: W - W_0.
        current: I(W) if I is affine.
        residual: r = r_0 - A step, minus half of the gradient.
        direction: d, of the next step.
        error: the smallest error of the images held out so far.
        best_step: the step that has it.
    """

    step: Weights
    current: _Split
    residual: Weights
    direction: Weights
    error: Any
    best_step: Weights


def _start(
    layer: _Layer, target: Target, damping: float, rectified: bool
) -> tuple[_Problem, _Search]:
    """The problem, and the search before its first step.

    Args:
        layer: with W_0.
        target: what the weights should give.
        damping: how much a change of the weights costs.
        rectified: whether the target is the result of a ReLU.
    """
    current, change = _along(layer, layer.weights, layer.weights)
    free_weights = []
    for weight, is_free in zip(layer.weights, layer.free, strict=True):
        if is_free:
            free_weights.append(weight)
    problem, current = _problem(
        damping,
        rectified,
        layer.channel,
        target.result,
        target.effects,
        None if target.finest is None else target.finest.ravel(),
        current,
        change,
        tuple(free_weights),
    )
    values, values_unit = _missing(problem, current)
    gradient = _back(layer, values)
    return problem, _first_search(problem, current, gradient, values_unit)


def _advance(layer: _Layer, problem: _Problem, search: _Search) -> _Search:
    """The search after another step."""
    _, change = _along(layer, layer.weights, search.direction)
    change, values, values_unit = _centered(problem, change)
    curvature = _back(layer, values)
    return _next_search(problem, search, change, curvature, values_unit)


@by_numpy_or_xla
def _missing(problem: _Problem, current: _Split) -> tuple[Any, Any]:
    """m w (a - I - its mean) over a unit, [N, p, C], and that unit."""
    return _weighted_deviation(problem, problem.activation.fitted - current.fitted)


@by_numpy_or_xla
def _centered(problem: _Problem, change: Any) -> tuple[_Split, Any, Any]:
    """A change J d of the current, m w (J d - its mean) over a unit, and that unit.

    Args:
        problem: what is solved.
        change: J d, [N, p, C].
    """
    split_change = _split(change, problem.unit, problem.weight.fitted)
    values, values_unit = _weighted_deviation(problem, split_change.fitted)
    return split_change, values, values_unit


def _weighted_deviation(problem: _Problem, values: Any) -> tuple[Any, Any]:
    """m w (values - their mean) over a unit, [N, p, C], and that unit.

    The mean is what b takes. J^T of the values could be too large for float16 without a
    unit. They add up like noise, so that their sum grows with the root of their number:
    in a larger unit they would be too small for float16 themselves.
    """
    weight = problem.weight.fitted
    mean = _weighted_mean(values, weight, problem.total)
    deviation = weight * (values - mean)
    # A power of two near the root of the number of values.
    root = 2.0 ** (deviation.size.bit_length() // 2)
    unit = binary_unit(abs(deviation).max()) * root
    return deviation / unit, unit


@by_numpy_or_xla
def _first_search(
    problem: _Problem, current: _Split, gradient: Weights, values_unit: Any
) -> _Search:
    """The search at W_0.

    Args:
        problem: what is solved.
        current: I(W_0).
        gradient: J^T m w (a - I(W_0) - its mean), over ``values_unit``.
        values_unit: a power of two.
    """
    xp = namespace(values_unit)
    # a and I are over the problem's unit already, and now J is, too.
    residual = _times(gradient, values_unit / problem.unit)
    no_step = tuple(map(xp.zeros_like, residual))
    return _Search(
        step=no_step,
        current=current,
        residual=residual,
        direction=residual,
        error=_error(problem, current),
        best_step=no_step,
    )


@by_numpy_or_xla
def _next_search(
    problem: _Problem,
    search: _Search,
    change: _Split,
    curvature: Weights,
    values_unit: Any,
) -> _Search:
    """The search after a step of conjugate gradients.

        alpha = r r / (d A d),    step' = step + alpha d,    r' = r - alpha A d
        beta = r' r' / (r r),     d' = r' + beta d

    Of equally good steps the first stays the best.

    Args:
        problem: what is solved.
        search: with the step, its residual r and the direction d.
        change: J d.
        curvature: J^T m w (J d - its mean), over ``values_unit``.
        values_unit: a power of two.
    """
    xp = namespace(values_unit)
    # J d is over the problem's unit already, and now J^T is, too.
    curvature = _times(curvature, values_unit / problem.unit)
    ridge_term = _times(search.direction, problem.ridge)
    residual_change = _sum(curvature, ridge_term)  # A d
    old_square = _dot(search.residual, search.residual)
    bend = _dot(search.direction, residual_change)  # d A d
    # Few images may say nothing about a direction. Then d A d is 0 but for rounding,
    # and there is no step.
    alpha = xp.where(bend > 0, old_square / _positive(bend), xp.zeros_like(bend))
    step = _sum(search.step, _times(search.direction, alpha))
    current = _Split(
        fitted=search.current.fitted + alpha * change.fitted,
        held_out=search.current.held_out + alpha * change.held_out,
    )
    residual = _sum(search.residual, _times(residual_change, -alpha))
    beta = _dot(residual, residual) / _positive(old_square)
    direction = _sum(residual, _times(search.direction, beta))
    error = _error(problem, current)
    return _Search(
        step=step,
        current=current,
        residual=residual,
        direction=direction,
        error=xp.minimum(error, search.error),
        best_step=_where(error < search.error, step, search.best_step),
    )


@by_numpy_or_xla
def _moved(weights: Weights, step: Weights) -> Weights:
    """The weights after a step."""
    return _sum(weights, step)


@by_numpy_or_xla
def _better(
    problem: _Problem,
    current: Any,
    first_error: Any,
    best: Weights,
    original: Weights,
) -> Weights:
    """The best weights if they lower the error of the images held out, or W_0.

    Args:
        problem: what is solved.
        current: I of the best weights, [N, p, C].
        first_error: that of W_0.
        best: weights of the search.
        original: W_0.
    """
    split_current = _split(current, problem.unit, problem.weight.fitted)
    return _where(_error(problem, split_current) < first_error, best, original)


# --------------------------------------------------------------- arithmetic of weights


def _sum(first: Weights, second: Weights) -> Weights:
    return tuple(map(operator.add, first, second))


def _times(weights: Weights, factor: Any) -> Weights:
    return tuple(weight * factor for weight in weights)


def _dot(first: Weights, second: Weights) -> Any:
    products = map(operator.mul, first, second)
    return sum(product.sum() for product in products)


def _where(condition: Any, first: Weights, second: Weights) -> Weights:
    where = functools.partial(namespace(condition).where, condition)
    return tuple(map(where, first, second))


def _positive(divisor: Any) -> Any:
    """The divisor, or the smallest normal number if that is larger."""
    return namespace(divisor).maximum(divisor, jnp.finfo(divisor.dtype).tiny)
