"""The mathematics of calibration: functions of arrays that need no network.

``activation`` a [N, ..., C] is the ANN's. The mean output of the spiking neurons over T
steps for the same N images is s, and the formulas bring s close to a.
Sources: Deng and Gu, ICLR 2021 (bias shift); Li, Deng, Dong, Gong and Gu, ICML 2021
(least-squares threshold, bias and potential correction); Bhalgat et al., CVPR workshops
2020 (offsets); `postpone` is ours.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import aligned, namespace, per_channel
from snnjax._types import Per
from snnjax.calibrators.blocks import in_blocks, sum_over
from snnjax.neurons.models import NeuronParams

__all__ = [
    "binary_unit",
    "least_squares",
    "maximum",
    "middle",
    "percentile",
    "postpone",
    "scale",
]


def maximum(activation: jax.Array, per: Per = "layer", channel: int = -1) -> jax.Array:
    """max a over the images: the classical threshold ("threshold balancing").

    Args:
        activation: ANN activations [N, ...], >= 0.
        per: "layer" gives a scalar, "channel" [C] (or [C, 1, 1] if two axes follow).
        channel: axis that counts channels, from the end.

    A channel that is never active takes the layer's maximum, and a layer that is
    never active takes 1: a threshold must be positive.

    >>> import jax.numpy as jnp
    >>> print(maximum(jnp.array([[1.0, 0.0], [2.0, 0.0]]), "channel"))
    [2. 2.]
    """
    return positive(per_channel(jnp.max, activation.astype(jnp.float32), channel), per)


def positive(maxima: jax.Array, per: Per) -> jax.Array:
    """`maximum`, from the largest activation of each channel."""
    xp, layer = namespace(maxima), maxima.max()
    layer = xp.where(layer > 0, layer, 1)
    return layer if per == "layer" else xp.where(maxima > 0, maxima, layer)


def percentile(
    activation: jax.Array, p: float, per: Per = "layer", channel: int = -1
) -> jax.Array:
    """The p-th percentile of the activations; where it is 0, their `maximum`.

    Args:
        activation: ANN activations [N, ...], >= 0.
        p: 1 < p <= 100, in percent.
        per, channel: as for `maximum`.

    >>> import jax.numpy as jnp
    >>> print(percentile(jnp.array([[0.0, 2.0], [1.0, 6.0]]), 50.0, "channel"))
    [0.5 4. ]
    """
    activation = activation.astype(jnp.float32)
    if per == "layer":
        value = jnp.percentile(activation, p)
    else:
        of_channel = functools.partial(jnp.percentile, q=p)
        value = per_channel(of_channel, activation, channel)
    return jnp.where(value > 0, value, maximum(activation, per, channel))


def least_squares(
    activation: jax.Array,
    steps: int,
    per: Per = "layer",
    shift: float = 0.0,
    channel: int = -1,
    *,
    weight: jax.Array | None = None,
    maxima: jax.Array | None = None,
) -> jax.Array:
    """The threshold whose ClipFloor is nearest to the activations.

        argmin_V  sum w (ClipFloor(a; T, V) - a)^2
        ClipFloor(a; T, V) = (V / T) clip(floor(a T / V + shift), 0, T)

    The candidates are V = M (1 - i / 100) for i = 0 .. 94, where M = max(a); of equals
    the largest is taken.

    Args:
        activation: ANN activations [N, ...], >= 0.
        steps: T.
        per, channel: as for `maximum`.
        shift: 0 is the paper's floor; 1/2 rounds, as a neuron does that has half a
            charge or the bias shift.
        weight: w >= 0, shaped like the activations with one channel; None: 1.
        maxima: M of each channel, where the activations are a sample of more.

    >>> import jax.numpy as jnp
    >>> a = jnp.array([[0.1], [0.2], [0.3], [5.0]])
    >>> print(least_squares(a, 1000), least_squares(a, 1, shift=0.5))
    5.0 5.0
    """
    if maxima is None:
        maxima = per_channel(jnp.max, activation.astype(jnp.float32), channel)
    maximum = positive(maxima, per)
    thresholds = jnp.multiply.outer(_FRACTIONS, maximum).reshape(len(_FRACTIONS), -1)
    errors = _candidate_errors(activation, thresholds, steps, shift, channel, weight)
    best = errors.argmin(0)[None]
    return jnp.take_along_axis(thresholds, best, 0).reshape(maximum.shape)


# Rounded once: a last bit more or less would change the spikes of a deep network.
_FRACTIONS = (1 - 0.01 * np.arange(95)).astype(np.float32)


def _candidate_errors(
    activation: jax.Array,
    thresholds: jax.Array,
    steps: int,
    shift: float,
    channel: int,
    weight: jax.Array | None,
) -> jax.Array:
    """The error of each candidate V of `least_squares`, [K, 1] or [K, C].

    In the `binary_unit` of the largest V, so that squares stay in float32's range.
    """
    unit, channels = binary_unit(thresholds[0]), thresholds.shape[1]
    activation = jnp.moveaxis(activation.astype(jnp.float32), channel, -1)
    arrays = [activation]
    if weight is not None:
        weight = jnp.moveaxis(weight, channel, -1)
        arrays.append(jnp.broadcast_to(weight, activation.shape))
    blocks = [in_blocks(array.reshape(-1, channels)) for array in arrays]
    repeats = blocks[0].shape[-1] // channels

    def errors(threshold):
        v, u = jnp.tile(threshold, repeats), jnp.tile(unit, repeats)

        def squares(a, *weight):
            count = jnp.minimum(jnp.floor(a * steps / v + shift), steps)
            return math.prod(weight, start=((count * v / steps - a) / u) ** 2)

        return sum_over(squares, blocks, channels)

    return jax.lax.map(errors, thresholds)


def binary_unit(values: jax.Array) -> jax.Array:
    """For each number the power of two above it, which scales without rounding.

    >>> import jax.numpy as jnp
    >>> print(binary_unit(jnp.array([0.3, 5.0, 0.0])))
    [0.5 8.  1. ]
    """
    xp = namespace(values)
    return xp.ldexp(xp.ones_like(values), xp.frexp(abs(values))[1])


# g and g' of `middle`, in twentieths of the range of a channel.
_TWENTIETHS = range(15)


def middle(
    activation: jax.Array,
    intervals: int,
    channel: int = -1,
    weight: jax.Array | None = None,
) -> jax.Array:
    """The middle of the evenly spaced grid that is nearest to the activations, [C].

        middle = (l + u) / 2  of  argmin_(l, u) sum w (q - a)^2
        q = l + (u - l) / n round(n clip((a - l) / (u - l), 0, 1))

    Compared are l = m + g (M - m) and u = M - g' (M - m), for g and g' = 0, 0.05 .. 0.7
    and g + g' < 1; of equals the first is taken. m and M are the least and the largest
    a of the channel that have a weight.

    Args:
        activation: of the ANN, [N, ...].
        intervals: n, between the points of the grid; 2T high of signed levels.
        channel: axis that counts channels, from the end.
        weight: w >= 0, shaped like the activations with one channel; None: 1.

    >>> import jax.numpy as jnp
    >>> print(middle(jnp.array([[0.0], [0.1], [0.9], [1.0]]), 2))
    [0.5]
    """
    rows = jnp.moveaxis(activation.astype(jnp.float32), channel, -1)
    rows = rows.reshape(-1, rows.shape[-1])
    if weight is None:
        weights = jnp.ones((len(rows), 1), jnp.float32)
    else:
        weights = jnp.moveaxis(weight, channel, -1).reshape(len(rows), 1)
    counts = weights > 0
    low = jnp.where(counts, rows, jnp.inf).min(0)
    high = jnp.where(counts, rows, -jnp.inf).max(0)
    unit_rows = (rows - low) / jnp.where(high > low, high - low, 1)
    weights = jnp.broadcast_to(weights, rows.shape)
    blocks = [in_blocks(unit_rows), in_blocks(weights)]
    pairs = [(i, 20 - j) for i in _TWENTIETHS for j in _TWENTIETHS if i + j < 20]
    lower, upper = np.asarray(pairs, np.float32).T / 20

    def error(pair):
        lower, upper = pair

        def squares(a, w):
            share = jnp.clip((a - lower) / (upper - lower), 0, 1)
            nearest = lower + (upper - lower) / intervals * jnp.round(intervals * share)
            return jnp.where(w > 0, w * (nearest - a) ** 2, 0)

        return sum_over(squares, blocks, rows.shape[1])

    best = jax.lax.map(error, (lower, upper)).argmin(0)
    return low + (high - low) * jnp.asarray((lower + upper) / 2)[best]


def postpone(neuron: NeuronParams, charge: jax.Array, steps: int) -> NeuronParams:
    """Move charge from v(0) into the bias, so that it arrives over the T steps.

        v(0) <- v(0) - c V_th,   bias <- bias + c V_th / T

    Args:
        neuron: parameters of a site.
        charge: c, scalar or [C], in thresholds.
        steps: T.

    >>> from snnjax.neurons import integrate_and_fire
    >>> later = postpone(integrate_and_fire().init(), 1.0, steps=4)
    >>> print(later.initial_potential, later.bias)
    -1.0 0.25
    """
    potential = charge * neuron.threshold
    start, delayed_potential = aligned(neuron.initial_potential, potential)
    return neuron._replace(
        initial_potential=start - delayed_potential,
        bias=neuron.bias + potential / steps,
    )


def scale(neuron: NeuronParams, factor: jax.Array) -> NeuronParams:
    """Threshold, bias and v(0) times a factor, scalar or [C].

    A larger factor gives fewer and larger spikes.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import integrate_and_fire
    >>> neuron = integrate_and_fire().init()._replace(initial_potential=jnp.array(0.5))
    >>> larger = scale(neuron, jnp.array(1.5))
    >>> print(larger.threshold, larger.initial_potential)
    1.5 0.75
    """
    start, of_start = aligned(neuron.initial_potential, factor)
    return neuron._replace(
        threshold=factor * neuron.threshold,
        bias=factor * neuron.bias,
        initial_potential=of_start * start,
    )
