"""Calibrators: what a recipe does at each site, one pure function each.

    def calibrator(view: View, fit: Fit) -> Fit

There are four families. A `threshold` is a statistic of the activations, and searches
compare candidates on the spikes that arrive. Corrections add what outputs lack on
average, and weights are refitted by least squares or by descent. The mathematics is in
``formulas.py``, what a calibrator sees of a site in ``view.py``. Calibrators of your
own have the same access.
"""

from snnjax.calibrators import formulas
from snnjax.calibrators.conditions import by_effect, streaming_only
from snnjax.calibrators.corrections import (
    correct_bias,
    correct_potential,
    half_charge,
    shift_bias,
)
from snnjax.calibrators.parameters import broadcast
from snnjax.calibrators.searches import postpone_charge, scale_threshold
from snnjax.calibrators.thresholds import (
    least_squares_offset,
    least_squares_threshold,
    max_threshold,
    maximum,
    own_maximum_threshold,
    percentile,
    percentile_threshold,
    priced_threshold,
    threshold,
)
from snnjax.calibrators.view import Calibrator, Fit, View
from snnjax.calibrators.weights_adam import calibrate_weights
from snnjax.calibrators.weights_least_squares import least_squares_weights

__all__ = [
    "Calibrator",
    "Fit",
    "View",
    "broadcast",
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
    "maximum",
    "own_maximum_threshold",
    "percentile",
    "percentile_threshold",
    "postpone_charge",
    "priced_threshold",
    "scale_threshold",
    "shift_bias",
    "streaming_only",
    "threshold",
]
