"""The guard: what `best` has fitted, beside plain thresholds of the same code and wait.

    V_th = least squares of a layer's activations (`light`),    v(0) = T w_T V_th / 2

Both SNNs are compared on images that no fit has used, by J = error + price x spikes,
and the cheaper one is kept. So a network for which `best` was not made costs a sweep,
and no accuracy.
"""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from snnjax._text import counted
from snnjax.calibrators.corrections import half_charge
from snnjax.calibrators.parameters import parameter_shapes
from snnjax.calibrators.view import Fit, View
from snnjax.conversion.recipes import Recipe
from snnjax.network.sites import Site
from snnjax.neurons.schedule import TIES

# An error of the outputs that no answer notices: nothing better is looked for.
NEGLIGIBLE_ERROR = 3e-4
# A plain threshold is fitted to so many activations of a site. More cost time, and one
# number for a layer needs no more.
_ACTIVATIONS = 4096
_FRACTIONS = 1 - np.arange(95) / 100  # of the largest activation
# Plain thresholds are kept if they cost at least a twentieth less, and by more than so
# many standard errors of the mean: few images may prefer them by chance.
_LESS = 0.95
_STANDARD_ERRORS = 2.0


class Comparison(NamedTuple):
    """The errors of two SNNs on the images that judge them.

    Attributes:
        fitted: error of what `best` has fitted.
        plain: error of plain thresholds.
        keeps_plain: whether the plain SNN is kept.
        images: how many images no fit has used; 0: all images were compared.
    """

    fitted: float
    plain: float
    keeps_plain: bool
    images: int

    def __str__(self) -> str:
        """What `SNN.fit` says of it."""
        place = "the calibration images"
        if self.images:
            place = f"{counted(self.images, 'image')} that no fit has used"
        fitted = f"{self.fitted:.2g} with best()"
        plain = f"{self.plain:.2g} with plain thresholds"
        kept, other = (plain, fitted) if self.keeps_plain else (fitted, plain)
        return f"error on {place}: {kept}, kept; {other}"


def plain_recipes(sites: Iterable[Site]) -> dict[str, Recipe]:
    """Site name -> thresholds by the rule of `light`, and half a charge."""
    recipe = Recipe([plain_threshold, half_charge()])
    return {site.name: recipe for site in sites}


def plain_threshold(view: View, fit: Fit) -> Fit:
    """A calibrator: `least_squares_threshold` of a layer, on some of its activations.

    Channels with maxima of their own are clipped there.
    """
    sample = view.with_effects().sample
    seen = sample.activation[sample.weight[:, 0] > 0].ravel()
    magnitudes = np.abs(seen[:: max(1, len(seen) // _ACTIVATIONS)])
    largest = float(sample.positive_maxima(None, "layer"))
    output = least_squares(magnitudes, largest, view.values)
    outputs = np.broadcast_to(np.minimum(output, sample.bound), sample.highest.shape)
    shape = parameter_shapes(view.site)["threshold"]
    return fit.with_neurons(threshold=outputs.reshape(shape) / view.high)


def least_squares(magnitudes: np.ndarray, largest: float, steps: int) -> float:
    """`snnjax.calibrators.formulas.least_squares` of a layer, without a program.

    Args:
        magnitudes: a >= 0, [n].
        largest: M > 0, of which the threshold is a part.
        steps: T.

    >>> least_squares(np.array([0.1, 0.2, 0.3, 5.0]), 5.0, steps=1000)
    5.0
    """
    thresholds = largest * _FRACTIONS[:, None]
    # Values of a quantized ReLU are whole numbers of spikes but for rounding.
    counts = np.floor(magnitudes * steps / thresholds * (1 + TIES))
    counts = np.minimum(counts, steps)
    errors = ((counts * thresholds / steps - magnitudes) ** 2).sum(axis=1)
    return float(thresholds[errors.argmin(), 0])


def compare(
    fitted: tuple[np.ndarray, float],
    plain: tuple[np.ndarray, float],
    *,
    price: float,
    images: int,
) -> Comparison:
    """Which of two SNNs is kept; a warning in the log if it is the plain one.

    Args:
        fitted: error of each image that judges, [n], and spikes per neuron, of `best`.
        plain: the same of plain thresholds.
        price: of a spike.
        images: how many images no fit has used.

    >>> fitted = np.array([0.02, 0.03, 0.02, 0.01])
    >>> print(compare((fitted, 0.5), (fitted / 2, 0.6), price=0.1, images=4))
    error on 4 images that no fit has used: 0.02 with best(), kept; 0.01 with plain
    thresholds
    >>> print(compare((fitted, 0.5), (fitted / 2, 0.6), price=0.0, images=0))
    error on the calibration images: 0.01 with plain thresholds, kept; 0.02 with best()
    """
    fitted_errors, fitted_spikes = fitted
    plain_errors, plain_spikes = plain
    fitted_costs = fitted_errors + price * fitted_spikes
    plain_costs = plain_errors + price * plain_spikes
    saved = fitted_costs - plain_costs
    standard_error = saved.std() / len(saved) ** 0.5
    # False of NaN, so that outputs whose squares exceed float32 change nothing.
    is_less = bool(plain_costs.mean() < _LESS * fitted_costs.mean())
    is_certain = bool(saved.mean() > _STANDARD_ERRORS * standard_error)
    comparison = Comparison(
        fitted=float(fitted_errors.mean()),
        plain=float(plain_errors.mean()),
        keeps_plain=is_less and is_certain,
        images=images,
    )
    keeps_plain = comparison.keeps_plain
    if keeps_plain:
        logging.getLogger("snnjax").warning(
            "plain thresholds suit this network better than snnjax.best(): %s. Please "
            "report the network, since best() should not lose",
            comparison,
        )
    return comparison
