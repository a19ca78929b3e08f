"""Weights by least squares: the kernels that feed a site, without gradient descent.

The mean current I of a site is affine in its kernels, so they are fitted by conjugate
gradients (Hestenes and Stiefel, 1952), and only as far as it helps the images that are
left out. Source of refitting a layer to its actual input: He, Zhang and Sun, ICCV 2017
(pruning); for spikes: ours.

XLA compiles two programs for a site: the derivative of the current (`_along`), and its
transpose (`_back`). Sums over images are NumPy's where the images are in a CPU's
memory, since compiling them too takes longer than all iterations of a small layer.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import binary_unit, by_numpy_or_xla, namespace, wide, wide_dtype
from snnjax._programs import jit
from snnjax._ranges import COUNT, POSITIVE
from snnjax._text import named
from snnjax.calibrators.sample import at_positions
from snnjax.calibrators.view import Calibrator, Fit, Target, View

# Every fourth image judges what the other images give.
_GROUP = 4
_JUDGING = slice(_GROUP - 1, None, _GROUP)
_FEWEST = 32  # images, however many positions each has

Weights = tuple[Any, ...]


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
                free=tuple(path not in view.shared for path in target.paths),
                target=target,
                damping=float(damping),
                iterations=count,
                rectified=not view.site.is_encoder,
            )
            weights.update(refitted)
        return fit._replace(weights=weights)

    return calibrate


def _stride(view: View, samples: int) -> int:
    """Distance of images that give each channel so many samples, or the fewest."""
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
    )


def _refitted(
    weights: dict[str, jax.Array],
    *,
    free: tuple[bool, ...],
    target: Target,
    damping: float,
    iterations: int,
    rectified: bool,
) -> dict[str, jax.Array]:
    """The weights of the target, those that are free refitted, if that helps.

    Args:
        weights: W_0.
        free: which of them may change.
        target: what they should give.
        damping: how much a change costs.
        iterations: of conjugate gradients.
        rectified: whether the target is the result of a ReLU, which clips the current.
    """
    dtypes = tuple(weight.dtype for weight in weights.values())
    original = tuple(
        jnp.asarray(weight, wide_dtype(weight, target.result))
        for weight in weights.values()
    )
    layer = _Layer(
        current=target.current,
        dtypes=dtypes,
        free=free,
        channel=target.channel,
        weights=original,
        sources=target.sources,
    )
    problem, search = _started(layer, target, damping, rectified)
    first_error = search.error
    for _ in range(iterations):  # In a loop of XLA, CPUs convolve 30 times slower.
        search = _iterated(layer, problem, search)
    # I is not affine where a network normalizes its weights: there the error that the
    # search has found for its best step need not be true.
    best = _moved(original, search.best)
    current, _ = _along(layer, best, best)
    chosen = _better(problem, current, first_error, best, original)
    results = dict(weights)
    for path, result, dtype, is_free in zip(weights, chosen, dtypes, free, strict=True):
        if is_free:
            results[path] = jnp.asarray(result, dtype)
    return results


# ------------------------------------------------------- the current and its derivative


class _Rows(NamedTuple):
    """Values of a site for all images, and for those that judge; channels last.

    Attributes:
        fitted: [N, p, C]; 0 where nothing is fitted to them.
        judging: of every fourth image, [N / 4, p, C].
    """

    fitted: Any
    judging: Any


_STATIC = {"static": True}  # of a field that belongs to the structure of a pytree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Layer:
    """I as `View.feed` has it, as a function of weights in float32 or wider.

    Attributes:
        current: (weights, sources, rows) -> I, [N, ...].
        dtypes: of the weights that ``current`` takes.
        free: which of the weights may change.
        channel: axis of the channels of I, from the end.
        weights: W_0.
        sources: of the spiking network.
    """

    current: Callable = dataclasses.field(metadata=_STATIC)
    dtypes: tuple[Any, ...] = dataclasses.field(metadata=_STATIC)
    free: tuple[bool, ...] = dataclasses.field(metadata=_STATIC)
    channel: int = dataclasses.field(metadata=_STATIC)
    weights: Weights
    sources: Any

    def __call__(self, weights: Weights) -> jax.Array:
        """I(W), [N, p, C]."""
        pairs = zip(weights, self.dtypes, strict=True)
        narrow = [weight.astype(dtype) for weight, dtype in pairs]
        current = self.current(narrow, self.sources, None)
        return _in_rows(wide(current), self.channel)

    def allowed(self, change: Weights) -> Weights:
        """A change, with 0 for weights that stay as they are and for those of 0."""
        parts = []
        for part, weight, is_free in zip(change, self.weights, self.free, strict=True):
            parts.append(jnp.where((weight != 0) & is_free, part, 0))
        return tuple(parts)


@jit
def _along(layer: _Layer, weights: Weights, direction: Weights) -> tuple[Any, Any]:
    """I(W), and J d: how the current changes with the weights along d; [N, p, C]."""
    allowed = layer.allowed(direction)
    return jax.jvp(layer, (weights,), (allowed,))


@jit
def _back(layer: _Layer, values: Any) -> Weights:
    """J^T values, of values [N, p, C]."""
    _, transpose = jax.vjp(layer, layer.weights)
    (change,) = transpose(values)
    return layer.allowed(change)


def _rows(values: Any, unit: Any, weight: Any) -> _Rows:
    """A current, or its change, over the unit.

    It is a step of its own, since XLA takes three times as long to compile `_along`
    with it.

    Args:
        values: [N, p, C]. They may be infinite where the weight is 0.
        unit: of activations and currents.
        weight: of errors, [N, p, C].
    """
    xp = namespace(values)
    values = values / unit
    fitted = xp.where(weight > 0, values, 0)
    return _Rows(fitted=fitted, judging=values[_JUDGING])


def _in_rows(values: Any, channel: int) -> Any:
    """[N, ...] as [N, p, C], at all positions."""
    return at_positions(values, None, values.ndim - 1, channel)


# -------------------------------------------------------------------------- the problem


class _Problem(NamedTuple):
    """What stays the same during a search; activations and currents are over the unit.

    Attributes:
        unit: a power of two that keeps squares in the range of float32.
        activation: a.
        weight: m w, which is 0 for images that judge; and w for those.
        bottom: 0 where a is the result of a ReLU, otherwise minus infinity: [1, 1, C].
        top: the largest a of each channel, otherwise infinity.
        total: sum of m w of each channel, or 1.
        mean: of a, weighed by m w.
        ridge: damping k.
    """

    unit: Any
    activation: _Rows
    weight: _Rows
    bottom: Any
    top: Any
    total: Any
    mean: Any
    ridge: Any


@functools.partial(by_numpy_or_xla, static=1)
def _scaled(channel: int, activation: Any, effects: Any) -> tuple[Any, Any, Any]:
    """A unit, the activations over it and the weights of their errors.

    Args:
        channel: axis of the channels, from the end.
        activation: [N, ...].
        effects: [N, ...] with a single channel; None: all errors count alike.

    Returns:
        A number, and two arrays [N, p, C].
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


@functools.partial(by_numpy_or_xla, static=2)
def _problem(
    damping: float,
    rectified: bool,
    unit: Any,
    activation: Any,
    effects: Any,
    current: Any,
    change: Any,
    free_weights: Weights,
) -> tuple[_Problem, _Rows]:
    """The problem, and I(W_0) where errors count.

    Args:
        damping: how much a change of the weights costs.
        rectified: whether the activation is that of a ReLU.
        unit: of activations and currents.
        activation: a, [N, p, C].
        effects: w, [N, p, C].
        current: I(W_0), [N, p, C].
        change: J W_0, [N, p, C].
        free_weights: those of W_0 that may change.
    """
    xp = namespace(activation)
    bottom, top = _ends(activation, rectified)
    current_rows = _rows(current, unit, effects)
    # A ReLU hides by how much a current is beyond its ends: there m is 0.
    is_below = (activation <= bottom) & (current_rows.fitted <= bottom)
    is_above = (activation >= top) & (current_rows.fitted >= top)
    image = xp.arange(len(activation))[:, None, None]
    judges = image % _GROUP == _GROUP - 1
    weight = xp.where(is_below | is_above | judges, 0, effects)
    total = weight.sum((0, 1), keepdims=True)
    total = xp.where(total > 0, total, 1)
    # k = sum m w (J W_0 - its mean)^2 / |W_0|^2
    fitted_change = _rows(change, unit, weight).fitted
    deviation = fitted_change - _weighted_mean(fitted_change, weight, total)
    curvature = (weight * fitted_change * deviation).sum()
    size = _dot(free_weights, free_weights)
    problem = _Problem(
        unit=unit,
        activation=_Rows(fitted=activation, judging=activation[_JUDGING]),
        weight=_Rows(fitted=weight, judging=effects[_JUDGING]),
        bottom=bottom,
        top=top,
        total=total,
        mean=_weighted_mean(activation, weight, total),
        ridge=damping * curvature / _positive(size),
    )
    return problem, _rows(current, unit, weight)


def _ends(activation: Any, rectified: bool) -> tuple[Any, Any]:
    """The smallest and the largest output of each channel, [1, 1, C]."""
    xp = namespace(activation)
    largest = activation.max((0, 1), keepdims=True)
    if rectified:
        return xp.zeros_like(largest), largest
    infinity = xp.full_like(largest, xp.inf)
    return -infinity, infinity


def _weighted_mean(values: Any, weight: Any, total: Any) -> Any:
    """The mean of each channel, weighed by m w: [1, 1, C]."""
    xp = namespace(values)
    sums = xp.einsum("npc,npc->c", weight, values)
    return sums[None, None] / total


def _error(problem: _Problem, current: _Rows) -> Any:
    """Sum of w (a - clip(I + b))^2 over the images that judge."""
    xp = namespace(problem.mean)
    weight = problem.weight.judging
    mean = _weighted_mean(current.fitted, problem.weight.fitted, problem.total)
    # b makes the mean of the currents that of the activations.
    shifted = current.judging + (problem.mean - mean)
    output = xp.clip(shifted, problem.bottom, problem.top)
    errors = weight * (problem.activation.judging - output) ** 2
    counted = xp.where(weight > 0, errors, 0)
    return counted.sum()


# ---------------------------------------------------------------- conjugate gradients


class _Search(NamedTuple):
    """Conjugate gradients on their way.

    Attributes:
        step: W - W_0.
        current: I(W) if I is affine.
        residual: minus half of the gradient.
        direction: of the next step.
        error: the smallest so far.
        best: the step that has it.
    """

    step: Weights
    current: _Rows
    residual: Weights
    direction: Weights
    error: Any
    best: Weights


def _started(
    layer: _Layer, target: Target, damping: float, rectified: bool
) -> tuple[_Problem, _Search]:
    """The problem, and the search before its first step."""
    unit, activation, effects = _scaled(layer.channel, target.result, target.effects)
    current, change = _along(layer, layer.weights, layer.weights)
    pairs = zip(layer.weights, layer.free, strict=True)
    free_weights = tuple(weight for weight, is_free in pairs if is_free)
    problem, current = _problem(
        damping,
        rectified,
        unit,
        activation,
        effects,
        current,
        change,
        free_weights,
    )
    values, values_unit = _missing(problem, current)
    gradient = _back(layer, values)
    return problem, _first_search(problem, current, gradient, values_unit)


def _iterated(layer: _Layer, problem: _Problem, search: _Search) -> _Search:
    """The search after another step."""
    _, change = _along(layer, layer.weights, search.direction)
    change, values, values_unit = _centered(problem, change)
    curvature = _back(layer, values)
    return _advanced(problem, search, change, curvature, values_unit)


@by_numpy_or_xla
def _missing(problem: _Problem, current: _Rows) -> tuple[Any, Any]:
    """What the current lacks of the activation, as `_weighed` gives it."""
    return _weighed(problem, problem.activation.fitted - current.fitted)


@by_numpy_or_xla
def _centered(problem: _Problem, change: Any) -> tuple[_Rows, Any, Any]:
    """A change of the current in rows, and what `_weighed` gives of it."""
    rows = _rows(change, problem.unit, problem.weight.fitted)
    values, values_unit = _weighed(problem, rows.fitted)
    return rows, values, values_unit


def _weighed(problem: _Problem, values: Any) -> tuple[Any, Any]:
    """m w (values - their mean, which b takes), over a unit; and that unit.

    J^T of the values could be too large for float16 without one. They add up like
    noise, so that their sum grows with the root of their number: in a larger unit they
    would be too small for float16 themselves.
    """
    weight = problem.weight.fitted
    mean = _weighted_mean(values, weight, problem.total)
    weighed = weight * (values - mean)
    root = 2.0 ** (weighed.size.bit_length() // 2)
    unit = binary_unit(abs(weighed).max()) * root
    return weighed / unit, unit


@by_numpy_or_xla
def _first_search(
    problem: _Problem, current: _Rows, gradient: Weights, values_unit: Any
) -> _Search:
    """The search at W_0, from J^T of what is missing, over a unit."""
    xp = namespace(values_unit)
    residual = _times(gradient, values_unit / problem.unit)
    no_step = tuple(map(xp.zeros_like, residual))
    return _Search(
        step=no_step,
        current=current,
        residual=residual,
        direction=residual,
        error=_error(problem, current),
        best=no_step,
    )


@by_numpy_or_xla
def _advanced(
    problem: _Problem,
    search: _Search,
    change: _Rows,
    curvature: Weights,
    values_unit: Any,
) -> _Search:
    """A step of conjugate gradients; of equally good ones the first stays the best.

    Args:
        problem: what is solved.
        search: where it is.
        change: J d, of its direction d.
        curvature: J^T m w (J d - its mean), over a unit.
        values_unit: that unit.
    """
    xp = namespace(values_unit)
    curvature = _times(curvature, values_unit / problem.unit)
    curvature = _sum(curvature, _times(search.direction, problem.ridge))
    old_square = _dot(search.residual, search.residual)
    bend = _dot(search.direction, curvature)
    # Few images may say nothing about a direction: there rounding is all that is left.
    length = xp.where(bend > 0, old_square / _positive(bend), xp.zeros_like(bend))
    step = _sum(search.step, _times(search.direction, length))
    current = _Rows(
        search.current.fitted + length * change.fitted,
        search.current.judging + length * change.judging,
    )
    residual = _sum(search.residual, _times(curvature, -length))
    turn = _dot(residual, residual) / _positive(old_square)
    direction = _sum(residual, _times(search.direction, turn))
    error = _error(problem, current)
    return _Search(
        step=step,
        current=current,
        residual=residual,
        direction=direction,
        error=xp.minimum(error, search.error),
        best=_where(error < search.error, step, search.best),
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
    """The best weights, which give this current, if they lower the first error."""
    rows = _rows(current, problem.unit, problem.weight.fitted)
    return _where(_error(problem, rows) < first_error, best, original)


# --------------------------------------------------------------- arithmetic of weights


def _sum(first: Weights, second: Weights) -> Weights:
    return tuple(map(operator.add, first, second))


def _times(weights: Weights, factor: Any) -> Weights:
    return tuple(weight * factor for weight in weights)


def _dot(first: Weights, second: Weights) -> Any:
    products = map(operator.mul, first, second)
    sums = [product.sum() for product in products]
    return functools.reduce(operator.add, sums)


def _where(condition: Any, first: Weights, second: Weights) -> Weights:
    where = functools.partial(namespace(condition).where, condition)
    return tuple(map(where, first, second))


def _positive(number: Any) -> Any:
    """At least the smallest normal number: a divisor."""
    return namespace(number).maximum(number, jnp.finfo(number.dtype).tiny)
