"""Recipes: chains of calibrators; the body of each is a method's definition.

`snnjax.convert` carries a recipe out site by site, in one sweep through the network or
more. Sources: Deng and Gu, ICLR 2021 (`bias_shift`); Li, Deng, Dong, Gong and Gu, ICML
2021 (`light`, `advanced`); Bu et al., ICLR 2022 (`quantized`); `best` is ours.
"""

from typing import NamedTuple

from snnjax._text import name_of_value, repr_pretty
from snnjax._types import Objective, Per
from snnjax.calibrators.thresholds_and_potentials import (
    PRIOR,
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
from snnjax.calibrators.view import Calibrator
from snnjax.calibrators.weights_adam import calibrate_weights
from snnjax.calibrators.weights_least_squares import least_squares_weights


class Recipe(NamedTuple):
    """Calibrators for every site, in one or more sweeps through the network.

    Attributes:
        sweeps: each a chain of calibrators, carried out site by site.

    >>> print(Recipe(((max_threshold(), half_charge()), (correct_potential(3),))))
    sweep 1 of 2, at every site:
      max_threshold()
      half_charge()
    sweep 2 of 2, at every site:
      correct_potential(3)
    """

    sweeps: tuple[tuple[Calibrator, ...], ...]

    def __str__(self) -> str:
        lines = []
        for number, chain in enumerate(self.sweeps, 1):
            lines.append(f"sweep {number} of {len(self.sweeps)}, at every site:")
            lines += [f"  {name_of_value(calibrator)}" for calibrator in chain]
        return "\n".join(lines)

    _repr_pretty_ = repr_pretty


def max_activation(per: Per = "layer") -> Recipe:
    """Threshold = maximum activation, nothing else (threshold balancing).

    >>> print(max_activation())
    sweep 1 of 1, at every site:
      max_threshold('layer')
    """
    return Recipe(((max_threshold(per),),))


def percentile(p: float = 99.9, per: Per = "layer") -> Recipe:
    """Threshold = p-th percentile of the activations.

    >>> print(percentile())
    sweep 1 of 1, at every site:
      percentile_threshold(99.9, 'layer')
    """
    return Recipe(((percentile_threshold(p, per),),))


def bias_shift(per: Per = "layer") -> Recipe:
    """Maximum activation, and the bias shift V_th / (2T) (ICLR 2021).

    >>> print(bias_shift())
    sweep 1 of 1, at every site:
      max_threshold('layer')
      shift_bias()
    """
    return Recipe(((max_threshold(per), shift_bias()),))


def light(per: Per = "layer", objective: Objective = "floor") -> Recipe:
    """Least-squares threshold, bias shift, bias correction (ICML 2021).

    Per channel, the threshold also allows for activations beyond the samples
    (`formulas.Expected`), unlike the paper's.

    >>> print(light())
    sweep 1 of 1, at every site:
      least_squares_threshold('layer', 'floor', prior=0)
      shift_bias()
      correct_bias()
    """
    prior = PRIOR if per == "channel" else 0
    threshold = least_squares_threshold(per, objective, prior=prior)
    return Recipe(((threshold, shift_bias(), correct_bias()),))


def advanced(
    per: Per = "layer",
    objective: Objective = "floor",
    *,
    iterations: int = 5000,
    learning_rate: float = 1e-5,
    seed: int = 0,
) -> Recipe:
    """Least-squares threshold, bias shift, weight calibration; then potentials.

    Two sweeps: all weights first, then potential correction (ICML 2021).

    >>> print(advanced())
    sweep 1 of 2, at every site:
      least_squares_threshold('layer', 'floor')
      shift_bias()
      calibrate_weights(iterations=5000, learning_rate=1e-05, seed=0)
    sweep 2 of 2, at every site:
      correct_potential()
    """
    threshold = least_squares_threshold(per, objective)
    weights = calibrate_weights(
        iterations=iterations, learning_rate=learning_rate, seed=seed
    )
    return Recipe(((threshold, shift_bias(), weights), (correct_potential(),)))


def quantized() -> Recipe:
    """V_th = the ReLU's own maximum, v(0) = V_th / 2 (ICLR 2022, QCFS).

    For networks of `snnjax.quantized_relu` (or `snnjax.clipped_relu`). Where the wait
    is T, and T times the highest level of a spike is the L of each quantized ReLU, the
    SNN has the numbers of the network itself, except for rounding of floats where an
    input lies between two values. A clipped ReLU, and another T, are rounded to the
    nearest of so many values. Layers of different L are exact with spikes of different
    levels, ``convert(..., model={site: integrate_and_fire(levels=(0, n))})``.

    >>> print(quantized())
    sweep 1 of 1, at every site:
      own_maximum_threshold()
      half_charge()
    """
    return Recipe(((own_maximum_threshold(), half_charge()),))


def best() -> Recipe:
    """The strongest training-free composition that we know of, in one sweep.

    In this order: weights refitted to compensate for errors of earlier layers; levels
    of an encoder around the middle of each channel; thresholds per channel for a neuron
    that rounds, with a margin for new images where a channel has few samples
    (`formulas.Expected`); v(0) = V_th / 2, which rounds as the bias shift does, but
    from the first step; per channel, unless spikes can be taken back, as much of its
    charge later as serves its spikes; without a wait, a threshold for the spikes that
    arrive and then perhaps more charge later; and the mean error of each neuron,
    removed by its initial potential in three rounds.

    >>> print(best())
    sweep 1 of 1, at every site:
      least_squares_weights()
      least_squares_offset()
      least_squares_threshold('channel', 'round', prior=16)
      half_charge()
      postpone_charge()
      streaming_only(scale_threshold())
      streaming_only(postpone_charge())
      correct_potential(3)
    """
    return Recipe(
        (
            (
                least_squares_weights(),
                least_squares_offset(),
                least_squares_threshold("channel", "round", prior=PRIOR),
                half_charge(),
                postpone_charge(),
                streaming_only(scale_threshold()),
                streaming_only(postpone_charge()),
                correct_potential(3),
            ),
        )
    )
