"""The mathematics of calibration: functions of arrays that need no network.

`maximum`, `percentile`, `least_squares` and `middle` are jitted functions of the ANN's
activations a [N, ..., C], N images of C channels. Results are in the unit of a.
`postpone` and `scale` are NumPy functions of the parameters of neurons. Sources: Diehl
et al., IJCNN 2015 (maximum); Rueckauer et al., Frontiers in Neuroscience 2017
(percentile); Li, Deng, Dong, Gong and Gu, ICML 2021 (least-squares threshold); Bhalgat
et al., CVPR workshops 2020 (offsets); `postpone` is ours.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import binary_unit, per_channel
from snnjax._types import Per
from snnjax.calibrators.blocks import in_blocks, sum_over
from snnjax.neurons.models import NeuronParams

__all__ = ["least_squares"]


# ---------------------------------------------------------- statistics of activations


@functools.partial(jax.jit, static_argnames=("per", "channel"))
def maximum(activation: jax.Array, per: Per = "layer", channel: int = -1) -> jax.Array:
    """max a over images and positions: the classical "threshold balancing".

    A channel that is never active takes the layer's maximum, and a layer that is
    never active takes 1: a threshold must be positive.

    Args:
        activation: a >= 0, [N, ..., C], or C on axis ``channel``.
        per: "layer" for a scalar; "channel" for one number of each channel, [C], with
            an axis of size 1 for each axis behind ``channel``.
        channel: axis that counts channels, from the end.

    >>> import jax.numpy as jnp
    >>> print(maximum(jnp.array([[1.0, 0.0], [2.0, 0.0]]), "channel"))
    [2. 2.]
    """
    maxima = per_channel(jnp.max, activation.astype(jnp.float32), channel)
    return _positive_maximum(maxima, per)


def _positive_maximum(maxima: jax.Array, per: Per) -> jax.Array:
    """The result of `maximum`, from the largest activation of each channel.

    A maximum of 0 is replaced: a channel's by the layer's, the layer's by 1.

    Args:
        maxima: [C], or with axes of size 1 behind.
        per: as for `maximum`.
    """
    layer_maximum = maxima.max()
    layer_maximum = jnp.where(layer_maximum > 0, layer_maximum, 1)
    if per == "layer":
        return layer_maximum
    return jnp.where(maxima > 0, maxima, layer_maximum)


@functools.partial(jax.jit, static_argnames=("p", "per", "channel"))
def percentile(
    activation: jax.Array, p: float, per: Per = "layer", channel: int = -1
) -> jax.Array:
    """The p-th percentile of a over images and positions; where it is 0, `maximum`.

    Args:
        activation: a >= 0, [N, ..., C], or C on axis ``channel``.
        p: 1 < p <= 100, in percent.
        per, channel: as for `maximum`, also the shape of the result.

    >>> import jax.numpy as jnp
    >>> print(percentile(jnp.array([[0.0, 2.0], [1.0, 6.0]]), 50.0, "channel"))
    [0.5 4. ]
    """
    activation = activation.astype(jnp.float32)
    quantile = functools.partial(jnp.percentile, q=p)
    if per == "layer":
        value = quantile(activation)
    else:
        value = per_channel(quantile, activation, channel)
    return jnp.where(value > 0, value, maximum(activation, per, channel))


# Candidates of `least_squares`, over the largest activation, [K]. They are rounded to
# float32 here: XLA might differ in the last bit, which changes spikes of deep networks.
_FRACTIONS = (1 - 0.01 * np.arange(95)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("steps", "per", "shift", "channel"))
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

    The sum is over images and positions, and over channels if there is one threshold
    per layer. The candidates are V = M (1 - i / 100) for i = 0 .. 94, where M is the
    `maximum` of a; of equals the largest is taken.

    Args:
        activation: a >= 0, [N, ..., C], or C on axis ``channel``.
        steps: T.
        per, channel: as for `maximum`, also the shape of the result.
        shift: 0 is the paper's floor; 1/2 rounds to the nearest, as neurons do after
            `half_charge` or `shift_bias`.
        weight: w >= 0, shaped like the activations with one channel; None: 1.
        maxima: largest a of each channel, [C], where the activations are a sample of
            more; None: that of the activations.

    >>> import jax.numpy as jnp
    >>> a = jnp.array([[0.1], [0.2], [0.3], [5.0]])
    >>> print(least_squares(a, 1000), least_squares(a, 1, shift=0.5))
    5.0 5.0
    """
    if maxima is None:
        maxima = per_channel(jnp.max, activation.astype(jnp.float32), channel)
    largest = _positive_maximum(maxima, per)
    thresholds = jnp.multiply.outer(_FRACTIONS, largest)
    thresholds = thresholds.reshape(len(_FRACTIONS), -1)  # [K, 1] or [K, C]
    errors = _clip_floor_errors(
        activation,
        thresholds,
        steps,
        shift,
        channel,
        weight,
    )
    best = errors.argmin(axis=0)[None]
    best_thresholds = jnp.take_along_axis(thresholds, best, axis=0)
    return best_thresholds.reshape(largest.shape)


def _clip_floor_errors(
    activation: jax.Array,
    thresholds: jax.Array,
    steps: int,
    shift: float,
    channel: int,
    weight: jax.Array | None,
) -> jax.Array:
    """The sum that `least_squares` minimizes, of each candidate: [K, 1] or [K, C].

    It is over the squared `binary_unit` of the largest candidate, so that squares stay
    in the range of float32.

    Args:
        thresholds: V, [K, 1] of a layer or [K, C].
        activation, steps, shift, channel, weight: as for `least_squares`.
    """
    # A layer has one column: all of its numbers are samples of one threshold.
    columns = thresholds.shape[1]
    activation = activation.astype(jnp.float32)
    activation = jnp.moveaxis(activation, channel, -1)
    rows = activation.reshape(-1, columns)
    blocks = [in_blocks(rows)]
    if weight is not None:
        weight = jnp.moveaxis(weight, channel, -1)
        weight = jnp.broadcast_to(weight, activation.shape)
        weight_rows = weight.reshape(-1, columns)
        blocks.append(in_blocks(weight_rows))
    samples_per_block = blocks[0].shape[-1] // columns
    unit = binary_unit(thresholds[0])
    unit = jnp.tile(unit, samples_per_block)  # [L]

    def error(threshold):
        """The sum for one candidate: [1] -> [1], or [C] -> [C]."""
        threshold = jnp.tile(threshold, samples_per_block)  # [L]

        def squares(a, w=None):
            """w (ClipFloor(a) - a)^2 over the unit squared, of a block: [L] -> [L]."""
            count = jnp.floor(a * steps / threshold + shift)
            count = jnp.minimum(count, steps)
            output = count * threshold / steps
            square = ((output - a) / unit) ** 2
            if w is None:
                return square
            return square * w

        return sum_over(squares, blocks, columns)

    return jax.lax.map(error, thresholds)


# The ends of a grid of `middle` are at twentieths of the range of a channel: 0 to 14 of
# them above the least activation, or below the largest.
_PARTS = 20
_END_PARTS = range(15)


@functools.partial(jax.jit, static_argnames=("intervals", "channel"))
def middle(
    activation: jax.Array,
    intervals: int,
    channel: int = -1,
    weight: jax.Array | None = None,
) -> jax.Array:
    """The middle of the evenly spaced grid that is nearest to the activations, [C].

        middle = (l + u) / 2  of  argmin_(l, u) sum w (q - a)^2
        q = l + (u - l) / n round(n clip((a - l) / (u - l), 0, 1))

    A grid has n + 1 points from l to u, and q is the point that is nearest to a. The
    candidates are l = m + g (M - m) and u = M - g' (M - m), for g and g' = 0, 0.05 ..
    0.7 and g + g' < 1; of equals the first is taken. m and M are the least and the
    largest a of the channel whose weight is not 0.

    Args:
        activation: a, [N, ..., C], or C on axis ``channel``.
        intervals: n, the number of intervals between the points of the grid, 2T high of
            signed levels.
        channel: axis that counts channels, from the end.
        weight: w >= 0, shaped like the activations with one channel; None: 1.

    >>> import jax.numpy as jnp
    >>> print(middle(jnp.array([[0.0], [0.1], [0.9], [1.0]]), 2))
    [0.5]
    """
    activation = activation.astype(jnp.float32)
    rows = jnp.moveaxis(activation, channel, -1)
    rows = rows.reshape(-1, rows.shape[-1])  # [n, C]
    if weight is None:
        weights = jnp.ones((len(rows), 1), jnp.float32)
    else:
        weights = jnp.moveaxis(weight, channel, -1)
        weights = weights.reshape(len(rows), 1)
    lowest = jnp.where(weights > 0, rows, jnp.inf).min(axis=0)  # [C]
    highest = jnp.where(weights > 0, rows, -jnp.inf).max(axis=0)
    # A channel with a single value is not divided by 0.
    span = jnp.where(highest > lowest, highest - lowest, 1)
    # Grids are compared on activations from 0 to 1, so that all channels have the same.
    grids = _grids()
    errors = _grid_errors((rows - lowest) / span, weights, grids, intervals)
    best = errors.argmin(axis=0)
    middles = jnp.asarray((grids[:, 0] + grids[:, 1]) / 2)
    return lowest + (highest - lowest) * middles[best]


def _grids() -> np.ndarray:
    """The G grids (l, u) that `middle` compares, of activations from 0 to 1: [G, 2]."""
    grids = []
    for below in _END_PARTS:
        for above in _END_PARTS:
            if below + above < _PARTS:
                grids.append((below, _PARTS - above))
    return np.asarray(grids, np.float32) / _PARTS


def _grid_errors(
    rows: jax.Array, weights: jax.Array, grids: np.ndarray, intervals: int
) -> jax.Array:
    """The sum that `middle` minimizes, of each grid: [G, C].

    Args:
        rows: activations from 0 to 1, [n, C]. Those with weight 0 may be outside.
        weights: w, [n, 1].
        grids: (l, u), [G, 2].
        intervals: n of the formula.
    """
    weights = jnp.broadcast_to(weights, rows.shape)
    blocks = [in_blocks(rows), in_blocks(weights)]

    def error(grid):
        """The sum for one grid (l, u), of each channel: [C]."""
        low, high = grid
        spacing = (high - low) / intervals

        def squares(a, w):
            """w (q - a)^2 of a block, which holds samples of all channels, [L]."""
            position = jnp.clip((a - low) / (high - low), 0, 1)
            number = jnp.round(intervals * position)
            nearest = low + spacing * number
            square = (nearest - a) ** 2
            # An activation without a weight may lie so far from the others that its
            # square is infinite, and 0 times infinity is NaN.
            return jnp.where(w > 0, w * square, 0)

        return sum_over(squares, blocks, rows.shape[1])

    return jax.lax.map(error, grids)


# --------------------------------------------------------- parameters of neurons


def postpone(neuron: NeuronParams, charge: Any, steps: int) -> NeuronParams:
    """The neurons with charge moved from v(0) into the bias: it arrives over T steps.

        v(0) <- v(0) - c V_th,   bias <- bias + c V_th / T

    Source: ours, see `postpone_charge`.

    Args:
        neuron: parameters of a site, in NumPy.
        charge: c, in thresholds; scalar, or shaped like the threshold.
        steps: T.

    >>> import numpy as np
    >>> from snnjax.neurons.models import NeuronParams
    >>> neuron = NeuronParams(*np.float32([1, 0, 0]))  # threshold, bias and v(0)
    >>> later = postpone(neuron, 1.0, steps=4)
    >>> print(later.initial_potential, later.bias)
    -1.0 0.25
    """
    postponed = charge * neuron.threshold
    return neuron._replace(
        initial_potential=neuron.initial_potential - postponed,
        bias=neuron.bias + postponed / steps,
    )


def scale(neuron: NeuronParams, factor: Any) -> NeuronParams:
    """The neurons with threshold, bias and v(0) times a factor.

    A larger factor gives fewer and larger spikes.

    Args:
        neuron: parameters of a site, in NumPy.
        factor: > 0; scalar, or shaped like the threshold.

    >>> import numpy as np
    >>> from snnjax.neurons.models import NeuronParams
    >>> neuron = NeuronParams(*np.float32([1, 0, 0.5]))  # threshold, bias and v(0)
    >>> larger = scale(neuron, np.float32(1.5))
    >>> print(larger.threshold, larger.initial_potential)
    1.5 0.75
    """
    return neuron._replace(
        threshold=factor * neuron.threshold,
        bias=factor * neuron.bias,
        initial_potential=factor * neuron.initial_potential,
    )
