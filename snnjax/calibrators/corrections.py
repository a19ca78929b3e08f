"""Charge and corrections: the half spike that rounds, and what outputs lack on average.

A neuron that starts at 0 rounds its input down. A charge of half a spike makes it round
to the nearest value. What its mean output s still lacks of the activation a is added to
its bias or to v(0). Sources: Deng and Gu, ICLR 2021 (shift); Li et al., ICML 2021.

V_th is the threshold, and w_T what a spike is worth at the last step T, in thresholds:
1/T with rate coding.
"""

import numpy as np

from snnjax._arrays import other_axes
from snnjax._ranges import COUNT
from snnjax._text import named
from snnjax.calibrators.parameters import parameter_shapes
from snnjax.calibrators.view import Calibrator, Fit, View

# A conversion warns where a fitted number has fewer samples. The relative error of the
# outputs of the README's network for new images was 2.6 % when best() was fitted to 16
# images, 0.8 % with 64 and 0.6 % with 256. With one threshold per layer it was 1.0 %
# with 16 images and 0.9 % with 64.
FEW = 64


@named
def shift_bias() -> Calibrator:
    """bias += w_T V_th / 2, which is V_th / (2T) with rate coding.

    That makes the expected error of rounding down 0 for activations that are uniform
    within each level. Source: Deng and Gu.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([snnjax.calibrators.max_threshold(), shift_bias()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].bias)
    1.875
    """

    def calibrate(view: View, fit: Fit) -> Fit:
        half_spike = view.finest * fit.neurons.threshold / 2
        return fit.with_neurons(bias=fit.neurons.bias + half_spike)

    return calibrate


@named
def half_charge() -> Calibrator:
    """v(0) = T w_T V_th / 2, which is V_th / 2 with rate coding.

    This is all of the charge that `shift_bias` adds step by step.
    """

    def calibrate(view: View, fit: Fit) -> Fit:
        # A potential gets a bias at each of T steps, and so T times as much.
        half_spike = view.steps * view.finest * fit.neurons.threshold / 2
        return fit.with_neurons(initial_potential=half_spike)

    return calibrate


@named
def correct_bias(repeats: int = 1) -> Calibrator:
    """bias += sum w (a - s) / sum w, of each channel, ``repeats`` times.

    The sums are over images and positions. a is the ANN's activation, s the neuron's
    mean output, and w the effect of an error within `by_effect`, otherwise 1. Source:
    Li et al.

    Raises:
        ValueError: repeats that is no whole number >= 1.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([snnjax.calibrators.max_threshold(), correct_bias()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].bias)
    [1.640625]

    `shift_bias` adds V_th / (2T) = 1.875; these images lack less.
    """
    COUNT.check("repeats", repeats)

    def calibrate(view: View, fit: Fit) -> Fit:
        for _ in range(repeats):
            change = _mean_missing(view, fit, per_channel=True)
            fit = fit.with_neurons(bias=fit.neurons.bias + change)
        return fit

    return calibrate


@named
def correct_potential(repeats: int = 1, *, enough: int = 1) -> Calibrator:
    """v(0) += T sum w (a - s) / sum w, of each neuron, ``repeats`` times.

    The sums are over images; otherwise as `correct_bias`. Li et al. do it once, from
    v(0) = 0.

    Args:
        repeats: rounds, in each of which the neurons run.
        enough: number of images. With fewer of them the sums are over positions too,
            and each channel has one potential. Fitted to 16 or 32 images, the accuracy
            of a ResNet-20 is then 2 points higher (rate coding, T = 8).

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> for repeats in (1, 3):
    ...     chain = snnjax.calibrators.max_threshold(), correct_potential(repeats)
    ...     recipe = snnjax.Recipe(chain)
    ...     snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    ...     print(snn.neurons["relu"].initial_potential)
    [6.5625]
    [7.5]
    """
    COUNT.check("repeats", repeats)
    COUNT.check("enough", enough)

    def calibrate(view: View, fit: Fit) -> Fit:
        per_channel = view.count < enough
        for _ in range(repeats):
            change = view.steps * _mean_missing(view, fit, per_channel)
            start = fit.neurons.initial_potential
            fit = fit.with_neurons(initial_potential=start + change)
        return fit

    return calibrate


def _mean_missing(view: View, fit: Fit, per_channel: bool) -> np.ndarray:
    """sum w (a - s) / sum w over images, of each neuron: shaped like the site.

    Where all weights w are 0, the result is 0.

    Args:
        view: of the site.
        fit: its neurons, whose mean output is s.
        per_channel: whether the sums are over positions too; then the result is shaped
            like a bias of the site.
    """
    missing, weight = view.missing(fit)
    if per_channel:
        axes = other_axes(len(view.site.shape), view.site.channel)
        shape = parameter_shapes(view.site)["bias"]
        missing = missing.sum(axes).reshape(shape)
        weight = weight.sum(axes).reshape(shape)
    divisor = np.where(weight == 0, np.ones_like(weight), weight)
    return missing / divisor
