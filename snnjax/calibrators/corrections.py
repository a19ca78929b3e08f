"""Charge and corrections: the half spike that rounds, and what outputs lack on average.

A neuron that starts at 0 rounds its input down. A charge of half a spike makes it round
to the nearest value; what its mean output s still lacks of the activation a is added to
its bias or to v(0). Sources: Deng and Gu, ICLR 2021 (shift); Li et al., ICML 2021.
"""

import numpy as np

from snnjax._arrays import lead, on_host, other_axes
from snnjax._ranges import COUNT
from snnjax._text import named
from snnjax.calibrators.parameters import parameter_shapes
from snnjax.calibrators.view import Calibrator, Fit, View

# Samples of a number below which conversions warn. Of the README's network, best()
# missed 2.6 % of the outputs for new images when it was fitted to 16 images, 0.8 % with
# 64 and 0.6 % with 256; with one threshold per layer 1.0 % and 0.9 % with 16 and 64.
FEW = 64


@named
def shift_bias() -> Calibrator:
    """bias += w_T V_th / 2: V_th / (2T) with rate coding.

    That makes the expected error of the floor 0 for activations that are uniform within
    each level. Source: Deng and Gu.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([snnjax.calibrators.max_threshold(), shift_bias()])
    >>> snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    >>> print(snn.neurons["relu"].bias)
    1.875
    """

    def calibrate(view: View, fit: Fit) -> Fit:
        neurons = on_host(fit.neurons)
        half = view.finest * neurons.threshold / 2
        return fit.with_neurons(bias=neurons.bias + half)

    return calibrate


@named
def half_charge() -> Calibrator:
    """v(0) = T w_T V_th / 2, which is V_th / 2 with rate coding.

    This is all of the charge that `shift_bias` adds step by step.
    """

    def calibrate(view: View, fit: Fit) -> Fit:
        half = view.steps * view.finest * on_host(fit.neurons.threshold) / 2
        return fit.with_neurons(initial_potential=half)

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
        axes = other_axes(len(view.site.shape), view.site.channel)
        for _ in range(repeats):
            missing, weight = _missing(view, fit, axes)
            change = (missing / weight).reshape(parameter_shapes(view.site)["bias"])
            fit = fit.with_neurons(bias=on_host(fit.neurons.bias) + change)
        return fit

    return calibrate


@named
def correct_potential(repeats: int = 1, *, enough: int = 1) -> Calibrator:
    """v(0) += T sum w (a - s) / sum w, of each neuron, ``repeats`` times.

    The sums are over images; otherwise as `correct_bias`. Li et al. do it once, from
    v(0) = 0.

    Args:
        repeats: rounds, in each of which the neurons run.
        enough: with fewer images the sums are over positions too, and each channel has
            one potential. Fitted to 16 or 32 images, a ResNet-20 is then 2 points
            better (rate coding, T = 8).

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
        shape, channel = view.site.shape, view.site.channel
        axes = other_axes(len(shape), channel) if view.count < enough else ()
        for _ in range(repeats):
            missing, weight = _missing(view, fit, axes)
            change = view.steps * missing / weight
            if axes:
                change = change.reshape(parameter_shapes(view.site)["bias"])
            start = lead(on_host(fit.neurons.initial_potential), change.ndim) + change
            fit = fit.with_neurons(initial_potential=start)
        return fit

    return calibrate


def _missing(view: View, fit: Fit, axes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """(sum w (a - s), sum w), both over images and these axes of the site.

    Without any weight the first sum is 0, and the second one is 1 in place of 0.
    """
    missing, weight = (on_host(part).sum(axes) for part in view.missing(fit))
    return missing, weight + (weight == 0).astype(weight.dtype)
