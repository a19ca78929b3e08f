"""The mathematics of calibration: functions of arrays that need no network.

``activation`` a [N, ..., C] is the ANN's, ``output`` s the mean output over T steps of
the spiking neurons for the same N images; the formulas bring s near a.
Sources: Deng and Gu, ICLR 2021 (bias shift); Li, Deng, Dong, Gong and Gu, ICML 2021
(least-squares threshold, bias and potential correction); `postpone` is ours.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import aligned, per_channel
from snnjax.neurons.models import NeuronParams


def maximum(activation: jax.Array, per: str = "layer", channel: int = -1) -> jax.Array:
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
    return positive(peaks(activation, channel), per)


def peaks(activation: jax.Array, channel: int = -1) -> jax.Array:
    """max a of each channel, [C]: of more images it is the maximum of theirs."""
    return per_channel(jnp.max, activation.astype(jnp.float32), channel)


def positive(peaks: jax.Array, per: str = "layer") -> jax.Array:
    """Thresholds of these `peaks`, as `maximum` gives them."""
    layer = peaks.max()
    layer = jnp.where(layer > 0, layer, 1)
    return layer if per == "layer" else jnp.where(peaks > 0, peaks, layer)


def percentile(
    activation: jax.Array, p: float, per: str = "layer", channel: int = -1
) -> jax.Array:
    """The p-th percentile of the activations; where it is 0, their `maximum`.

    Args:
        activation: ANN activations [N, ...], >= 0.
        p: 1 < p <= 100, in percent.
        per, channel: as for `maximum`.
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
    per: str = "layer",
    objective: str = "floor",
    channel: int = -1,
) -> jax.Array:
    """The threshold whose ClipFloor is nearest to the activations.

        argmin_V  sum (ClipFloor(a; T, V) - a)^2
        ClipFloor(a; T, V) = (V / T) floor(clip(a T / V, 0, T))

    searched over V = max(a) (1 - i / 100) for i = 0 .. 94, the largest of equals.

    Args:
        activation: ANN activations [N, ...], >= 0.
        steps: T.
        per, channel: as for `maximum`.
        objective: "floor" is the paper's; "round" adds 1/2 inside the floor, as the
            neuron does after the bias shift.

    >>> import jax.numpy as jnp
    >>> a = jnp.array([[0.1], [0.2], [0.3], [5.0]])
    >>> print(least_squares(a, 1000), least_squares(a, 1, objective="round"))
    5.0 5.0
    """
    top = maximum(activation, per, channel)
    return nearest(top, candidate_errors(activation, top, steps, objective, channel))


# Rounded once: a last bit more or less would change the spikes of a deep network.
_FRACTIONS = (1 - 0.01 * np.arange(95)).astype(np.float32)


def candidate_errors(
    activation: jax.Array,
    top: jax.Array,
    steps: int,
    objective: str = "floor",
    channel: int = -1,
) -> jax.Array:
    """Sum of (ClipFloor(a) - a)^2 for each candidate of `least_squares`.

    In the `binary_unit` of the largest, so that squares stay in float32's range.

    Args:
        activation, steps, objective, channel: as there.
        top: largest candidate, scalar or [C].

    Returns:
        [95, 1] or [95, C]; of more images it is the sum of theirs.
    """
    half = {"floor": 0.0, "round": 0.5}[objective]
    unit = binary_unit(jnp.reshape(top, -1))
    channels = top.size
    activation = jnp.moveaxis(activation.astype(jnp.float32), channel, -1)
    thresholds = jnp.reshape(top, (1, -1)) * _FRACTIONS[:, None]  # [95, channels]
    blocks = _blocks(activation.reshape(-1, channels))
    # One threshold per number of a block, or one for all.
    repeats = 1 if channels == 1 else blocks.shape[1] // channels
    tiled, units = jnp.tile(thresholds, (1, repeats)), jnp.tile(unit[None], repeats)

    def add_errors(total, block):
        block = block[None]
        count = jnp.minimum(jnp.floor(block * steps / tiled + half), steps)
        error = ((count * tiled / steps - block) / units) ** 2
        return total + error.reshape(len(error), -1, channels).sum(1), None

    errors, _ = jax.lax.scan(add_errors, jnp.zeros_like(thresholds), blocks)
    return errors


def binary_unit(values: jax.Array) -> jax.Array:
    """For each number the power of two above it, which scales without rounding.

    >>> import jax.numpy as jnp
    >>> print(binary_unit(jnp.array([0.3, 5.0, 0.0])))
    [0.5 8.  1. ]
    """
    return jnp.ldexp(jnp.ones_like(values), jnp.frexp(jnp.abs(values))[1])


def nearest(top: jax.Array, errors: jax.Array) -> jax.Array:
    """The candidate of least error, the largest of equals; shaped as ``top``."""
    fractions = jnp.asarray(_FRACTIONS)[jnp.argmin(errors, axis=0)]
    return (jnp.reshape(top, -1) * fractions).reshape(top.shape)


def _blocks(rows: jax.Array, size: int = 2048) -> jax.Array:
    """[n, C] as blocks of whole rows, near ``size`` numbers each, filled with zeros.

    All candidates are evaluated on a block while it is in the cache: five times faster
    on CPU than a pass over all activations for each. Zeros add no error.
    """
    per_block = max(1, size // rows.shape[1])
    rows = jnp.pad(rows, ((0, -rows.shape[0] % per_block), (0, 0)))
    return rows.reshape(-1, per_block * rows.shape[1])


def shift(threshold: jax.Array, steps: int) -> jax.Array:
    """V_th / (2T), the bias that makes the expected flooring error zero.

    Assumes activations uniform within each of the T levels. Source: Deng and Gu.
    """
    return threshold / (2 * steps)


def bias_correction(
    activation: jax.Array, output: jax.Array, channel: int = -1
) -> jax.Array:
    """Mean of a - s over images and positions, [C]: what each channel lacks."""
    error = activation.astype(jnp.float32) - output.astype(jnp.float32)
    return per_channel(jnp.mean, error, channel)


def potential_correction(
    activation: jax.Array, output: jax.Array, steps: int
) -> jax.Array:
    """T times the mean of a - s over images, [...]: the charge each neuron lacks."""
    error = activation.astype(jnp.float32) - output.astype(jnp.float32)
    return steps * error.mean(0)


def squared_error(
    activation: jax.Array, output: jax.Array, channel: int = -1
) -> jax.Array:
    """Mean of (a - s)^2 over images and positions, [C]."""
    error = activation.astype(jnp.float32) - output.astype(jnp.float32)
    return per_channel(jnp.mean, error**2, channel)


def paced_error(
    activation: jax.Array,
    output: tuple[jax.Array, jax.Array],
    pace: float,
    channel: int = -1,
) -> jax.Array:
    """`squared_error` of the mean output s, and of its pace p with a weight, [C].

        mean (a - s)^2 + pace mean (a - p)^2

    The next layer acts on spikes as they arrive. If early spikes misstate the mean, it
    fires on wrong evidence and cannot undo that. Source: ours.

    Args:
        activation: a.
        output: s and p, as `snnjax.neurons.mean_and_pace` gives them.
        pace: weight, >= 0.
        channel: as for `maximum`.
    """
    mean, early = (squared_error(activation, s, channel) for s in output)
    return mean + pace * early


def postpone(neuron: NeuronParams, charge: jax.Array, steps: int) -> NeuronParams:
    """The same charge by the last step, but later.

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
    moved = charge * neuron.threshold
    start, of_start = aligned(neuron.initial_potential, moved)
    return neuron._replace(
        initial_potential=start - of_start,
        bias=neuron.bias + moved / steps,
    )


def scale(neuron: NeuronParams, factor: jax.Array) -> NeuronParams:
    """Threshold, bias and v(0) times a factor, scalar or [C]: larger spikes, fewer."""
    start, of_start = aligned(neuron.initial_potential, factor)
    return neuron._replace(
        threshold=factor * neuron.threshold,
        bias=factor * neuron.bias,
        initial_potential=of_start * start,
    )


@functools.partial(jax.jit, static_argnames=("stride", "ndim", "channel"))
def thin(x: jax.Array, stride: int, ndim: int, channel: int = -1) -> jax.Array:
    """Every ``stride``-th position along the axes of a site, its channels excepted.

    Args:
        x: [..., *shape of the site].
        stride: >= 1; the first position is ``stride // 2``, off the border.
        ndim: axes of the site.
        channel: axis that counts channels, from the end.

    >>> import jax.numpy as jnp
    >>> print(thin(jnp.arange(12.0).reshape(1, 6, 2), 3, ndim=2))
    [[[2. 3.]
      [8. 9.]]]
    """
    index = [slice(stride // 2, None, stride)] * ndim
    index[channel] = slice(None)
    return x[(..., *index)]
