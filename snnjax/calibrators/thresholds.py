"""Thresholds and offsets: what a neuron should send when it fires all the time.

    V_th = statistic of the activations / high

high is `View.high`, the largest output of a neuron with threshold 1. The statistic is
what a neuron should send when it fires all the time. Papers differ in it: `threshold`
takes the statistic, and each paper's threshold calls `threshold` with its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import subtract_offset
from snnjax._checks import check_choice
from snnjax._ranges import NOT_NEGATIVE, Range
from snnjax._text import named
from snnjax._types import Per
from snnjax.calibrators import formulas
from snnjax.calibrators.parameters import parameter_shapes
from snnjax.calibrators.view import Calibrator, Fit, View

# (view, fit, per) -> the largest value that a neuron should send: [] per layer, or [C]
# per channel.
Statistic = Callable[[View, Fit, Per], Any]


@named
def threshold(statistic: Statistic, per: Per = "layer") -> Calibrator:
    """V_th = ``statistic(view, fit, per)`` / `View.high`.

    Args:
        statistic: `maximum` or `percentile(p)`; or a function of your own, which gives
            a number, or [C] per channel.
        per: "layer", one threshold for the site, or "channel".

    Raises:
        ValueError: per is neither of them; from the calibrator, "layer" at a site whose
            channels are clipped at maxima of their own.

    Twice the mean, as a statistic of one's own:

    >>> import jax, jax.numpy as jnp, snnjax
    >>> def twice_the_mean(view, fit, per):
    ...     return 2 * view.activation.mean()
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> w = jnp.array([1.0, 0.1])  # two channels
    >>> for fit in (threshold(twice_the_mean), threshold(maximum, "channel")):
    ...     recipe = snnjax.Recipe([fit])
    ...     snn = snnjax.convert(fn, w, images, steps=4, recipe=recipe)
    ...     print(snn.neurons["relu"].threshold)
    8.25
    [15.   1.5]
    """
    check_choice("per", per, get_args(Per))

    def calibrate(view: View, fit: Fit) -> Fit:
        if per == "layer" and view.site.maximum_per_channel:
            raise ValueError(
                f"site {view.site.name!r} clips each channel at a maximum of its own, "
                "and one threshold per layer would clip at the largest; allowed: "
                "per='channel', as in snnjax.light('channel') or snnjax.best()"
            )
        value = np.asarray(statistic(view, fit, per)) / view.high
        if per == "channel":
            value = value.reshape(parameter_shapes(view.site)["threshold"])
        return fit.with_neurons(threshold=value)

    return calibrate


# -------------------------------------------------------------------- statistics


def maximum(view: View, fit: Fit, per: Per) -> np.ndarray:
    """`formulas.maximum` of |a - offset| of all activations a: [], or [C]."""
    return view.sample.positive_maxima(fit.neurons.offset, per)


@named
def percentile(p: float) -> Statistic:
    """`formulas.percentile` of |a - offset| of all activations a.

    Raises:
        ValueError: not 1 < p <= 100, in percent.
    """
    Range(1, 100, open_least=True).check("p", p)
    p = float(p)  # It is a static argument, and an array has no hash.

    def statistic(view: View, fit: Fit, per: Per) -> jax.Array:
        # All activations, since a sample may lack the largest ones.
        magnitudes = _magnitudes(view.activation, view.effects, fit.neurons.offset)
        return formulas.percentile(magnitudes, p, per, view.site.channel)

    return statistic


@jax.jit
def _magnitudes(activation: jax.Array, effects: Any, offset: Any) -> jax.Array:
    """|a - offset| of all images and positions, [N, ...]; 0 where errors do not count.

    Args:
        activation: a, [N, ...].
        effects: how much errors count, [N, ...] with one channel; None: all alike.
        offset: of the neurons, one number or one for each channel; None: 0.
    """
    magnitudes = jnp.abs(subtract_offset(activation, offset))
    if effects is None:
        return magnitudes
    return jnp.where(effects > 0, magnitudes, 0)


# ------------------------------------------------------------- the papers' names


@named
def max_threshold(per: Per = "layer") -> Calibrator:
    """``threshold(maximum, per)``: threshold balancing, Diehl et al., IJCNN 2015."""
    return threshold(maximum, per)


@named
def percentile_threshold(p: float, per: Per = "layer") -> Calibrator:
    """``threshold(percentile(p), per)``: Rueckauer et al., Front. in Neuroscience 2017.

    It clips rare large activations, and rounds all others to a finer grid.
    """
    return threshold(percentile(p), per)


@named
def least_squares_threshold(per: Per = "layer", shift: float = 0.0) -> Calibrator:
    """V_th = `formulas.least_squares` / `View.high`: Li et al., ICML 2021 (shift = 0).

    The formula is for binary neurons, which send T values above 0. Here its T is
    `View.values`, how many values a neuron can send. Errors are compared on 2^15
    activations of a channel, or on all if there are fewer; the largest activation is
    that of all.

    Args:
        per: "layer", one threshold for the site, or "channel".
        shift: 0 <= shift < 1, part of an interval: 1/2 rounds to the nearest value.

    Raises:
        ValueError: not 0 <= shift < 1; from the calibrator, as `threshold`.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([least_squares_threshold()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].threshold)
    12.0

    Four steps then give 0, 3, .. 12: the error of the clipped 13 to 15 is less than
    that of coarser steps up to 15.
    """
    Range(0, 1, open_most=True).check("shift", shift)
    shift = float(shift)  # It is a static argument, and an array has no hash.

    def statistic(view: View, fit: Fit, per: Per) -> jax.Array:
        offset = fit.neurons.offset
        return formulas.least_squares(
            view.sample.magnitudes(offset),
            view.values,
            per,
            shift,
            weight=view.sample.weight,
            maxima=view.sample.maxima(offset),
        )

    return threshold(statistic, per)


@named
def priced_threshold(price: float, per: Per = "channel") -> Calibrator:
    """V_th = argmin of (error of the outputs + price x spikes per neuron).

    `snnjax.calibrators.spending` has the equation. A price of 0.03 saves one spike per
    neuron of the whole network for 3 % of the squared outputs. A higher price gives
    larger thresholds, so that fewer and larger spikes are sent. Errors count by their
    effect, as within `by_effect`.

    Args:
        price: >= 0, squared error of the outputs, over their size, for which the
            network may save one spike per neuron.
        per: "channel", or "layer" for one threshold.

    Raises:
        ValueError: a price that is no number >= 0; from the calibrator, as `threshold`.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> for price in (0, 0.03):
    ...     recipe = snnjax.Recipe([priced_threshold(price)])
    ...     snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    ...     print(snn.neurons["relu"].threshold)
    [15.]
    [19.452593]
    """
    NOT_NEGATIVE.check("price", price)
    price = float(price)

    def statistic(view: View, fit: Fit, per: Per) -> np.ndarray:
        # One last zone, that of the model, so one curve.
        (curve,) = view.curves((view.model.last_zone,), per, fit.neurons.offset)
        # `threshold` divides the statistic by the largest output.
        outputs = curve.cheapest(price).thresholds * view.high  # [C], or [1] of a layer
        if per == "layer":
            return outputs[0]
        return outputs

    return threshold(statistic, per)


@named
def own_maximum_threshold() -> Calibrator:
    """V_th = maximum / `View.high`, where the site is a clipped or quantized ReLU.

    The maximum is that of the function, so no activation counts. Source: Bu et al.,
    ICLR 2022 (QCFS).

    Raises:
        ValueError: from the calibrator, at a site without a maximum of its own.

    >>> import jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: snnjax.clipped_relu(w * x, 6.0)
    >>> images = jnp.arange(4.0)[:, None]  # none of them reaches the maximum
    >>> recipe = snnjax.Recipe([own_maximum_threshold()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].threshold)
    [6.]
    """

    def statistic(view: View, fit: Fit, per: Per) -> Any:
        if view.own_maximum is None:
            raise ValueError(
                f"site {view.site.name!r} has the kind {view.site.kind!r}, which has "
                "no maximum of its own; allowed: the kinds 'quantized relu' and "
                "'clipped relu'. Take another recipe, e.g. snnjax.best()"
            )
        return view.own_maximum

    return threshold(statistic, "channel")


@named
def least_squares_offset() -> Calibrator:
    """offset = `formulas.middle` of each channel of an encoder.

    A grid that is symmetric around 0 wastes levels on values that are skewed, as those
    of GELU and SiLU, or far from 0, as a mean. A grid around the middle of the values
    uses all levels, but values near 0 then cost spikes. Other sites keep their fit,
    since the values of a ReLU begin at 0. With codes other than rate coding no offset
    is fitted: there a value near 0 costs no spike. Source of offsets for such
    functions: Bhalgat et al., "LSQ+", CVPR workshops 2020.

    >>> import jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: snnjax.encode(x) @ w, 5 + jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([least_squares_offset(), max_threshold()])
    >>> snn = snnjax.convert(fn, jnp.ones((1, 1)), images, steps=4, recipe=recipe)
    >>> neuron = snn.neurons["encoder"]
    >>> print(neuron.offset, neuron.threshold)  # V_th is 20 without it
    [12.5] 7.5
    """

    def calibrate(view: View, fit: Fit) -> Fit:
        if not view.site.is_encoder or not view.code.is_streaming():
            return fit
        # Levels of an encoder are symmetric: as many intervals below 0 as above.
        intervals = 2 * view.values
        sample = view.sample
        middle = formulas.middle(sample.activation, intervals, weight=sample.weight)
        shape = parameter_shapes(view.site)["offset"]
        return fit.with_neurons(offset=np.asarray(middle).reshape(shape))

    return calibrate
