"""Calibrators: what a recipe does at each site, one pure function each.

``thresholds_and_potentials.py``, ``weights_least_squares.py`` and ``weights_adam.py``
apply the mathematics of ``formulas.py`` to what ``view.py`` shows of a site. Those that
compare candidates do so on a ``sample.py`` of it. You can write your own; these have no
special access:

    def calibrator(view: View, fit: Fit) -> Fit
"""

from snnjax.calibrators import formulas
from snnjax.calibrators.parameters import widen
from snnjax.calibrators.thresholds_and_potentials import (
    by_effect,
    correct_bias,
    correct_potential,
    half_charge,
    least_squares_offset,
    least_squares_threshold,
    max_threshold,
    own_maximum_threshold,
    percentile_threshold,
    postpone_charge,
    scale_threshold,
    shift_bias,
    streaming_only,
)
from snnjax.calibrators.view import Calibrator, Fit, View
from snnjax.calibrators.weights_adam import calibrate_weights
from snnjax.calibrators.weights_least_squares import least_squares_weights

__all__ = [
    "Calibrator",
    "Fit",
    "View",
    "by_effect",
    "calibrate_weights",
    "correct_bias",
    "correct_potential",
    "formulas",
    "half_charge",
    "least_squares_offset",
    "least_squares_threshold",
    "least_squares_weights",
    "max_threshold",
    "own_maximum_threshold",
    "percentile_threshold",
    "postpone_charge",
    "scale_threshold",
    "shift_bias",
    "streaming_only",
    "widen",
]
