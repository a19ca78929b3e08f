"""Recipes: chains of calibrators; the body of each is a method's definition.

`snnjax.convert` carries a recipe out site by site, in one sweep through the network or
more. Sources: Deng and Gu, ICLR 2021 (`bias_shift`); Li, Deng, Dong, Gong and Gu, ICML
2021 (`light`, `advanced`); Bu et al., ICLR 2022 (`quantized`); `best` is ours.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from snnjax._patterns import matching
from snnjax._text import name_of_value, repr_pretty
from snnjax._types import Per
from snnjax.calibrators.conditions import by_effect, streaming_only
from snnjax.calibrators.corrections import (
    correct_bias,
    correct_potential,
    half_charge,
    shift_bias,
)
from snnjax.calibrators.searches import postpone_charge, scale_threshold
from snnjax.calibrators.thresholds import (
    least_squares_offset,
    least_squares_threshold,
    max_threshold,
    own_maximum_threshold,
    percentile_threshold,
)
from snnjax.calibrators.view import Calibrator, check_calibrator
from snnjax.calibrators.weights_adam import calibrate_weights
from snnjax.calibrators.weights_least_squares import least_squares_weights


@dataclasses.dataclass(frozen=True, init=False)
class Recipe:
    """Calibrators for every site, in one or more sweeps through the network.

    Args:
        sweeps: each a list of calibrators, which are applied site by site.

    Attributes:
        sweeps: the same as tuples.

    Raises:
        ValueError: no sweep, a sweep without a calibrator, or something that is no
            calibrator.

    >>> print(Recipe([max_threshold(), half_charge()], [correct_potential(3)]))
    sweep 1 of 2, at every site:
      max_threshold()
      half_charge()
    sweep 2 of 2, at every site:
      correct_potential(3)
    """

    sweeps: tuple[tuple[Calibrator, ...], ...]

    def __init__(self, *sweeps: Sequence[Calibrator]):
        for sweep in sweeps:
            if not isinstance(sweep, tuple | list):
                raise ValueError(
                    f"a sweep of the recipe is {sweep!r}; allowed: a list of "
                    "calibrators, e.g. Recipe([max_threshold(), shift_bias()])"
                )
            for calibrator in sweep:
                check_calibrator(calibrator)
        if not sweeps or not all(sweeps):
            raise ValueError(
                f"the recipe has the sweeps {list(sweeps)}; a recipe needs at least "
                "one sweep with at least one calibrator"
            )
        object.__setattr__(self, "sweeps", tuple(map(tuple, sweeps)))

    @property
    def alternatives(self) -> "tuple[Recipe, ...]":
        """This recipe alone, see `BestOf`."""
        return (self,)

    def __str__(self) -> str:
        lines = []
        for number, sweep in enumerate(self.sweeps, 1):
            lines.append(f"sweep {number} of {len(self.sweeps)}, at every site:")
            lines += [f"  {name_of_value(calibrator)}" for calibrator in sweep]
        return "\n".join(lines)

    _repr_pretty_ = repr_pretty


@dataclasses.dataclass(frozen=True)
class BestOf:
    """Several recipes, of which `snnjax.convert` keeps the one with the best outputs.

    Attributes:
        alternatives: the recipes. See `best_of`.
    """

    alternatives: tuple[Recipe, ...]

    def __str__(self) -> str:
        count = len(self.alternatives)
        parts = []
        for number, recipe in enumerate(self.alternatives, 1):
            text = "\n".join(f"  {line}" for line in str(recipe).splitlines())
            parts.append(f"alternative {number} of {count}:\n{text}")
        return "\n".join(parts)

    _repr_pretty_ = repr_pretty


def best_of(*recipes: Recipe) -> BestOf:
    """All of these recipes; the SNN whose outputs are nearest to the ANN's is kept.

        error = sum |y_snn - y_ann|^2 / sum |y_ann|^2,   y_snn the mean over T steps

    No calibrator sees every eighth micro-batch of the calibration images. These judge;
    while their errors leave the sign of the difference open (3 standard errors), fitted
    images join them. Which images these are depends on the number of devices. The log
    says at level INFO which recipe is kept, and by how much.

    Raises:
        ValueError: fewer than two recipes, or something else than a recipe.

    >>> print(best_of(max_activation(), Recipe([max_threshold(), half_charge()])))
    alternative 1 of 2:
      sweep 1 of 1, at every site:
        max_threshold('layer')
    alternative 2 of 2:
      sweep 1 of 1, at every site:
        max_threshold()
        half_charge()
    """
    if len(recipes) < 2 or not all(isinstance(recipe, Recipe) for recipe in recipes):
        raise ValueError(
            f"best_of got {list(recipes)}; allowed: two recipes or more, e.g. "
            "best_of(light(), Recipe([max_threshold(), half_charge()]))"
        )
    return BestOf(recipes)


def max_activation(per: Per = "layer") -> Recipe:
    """Threshold = maximum activation, nothing else (threshold balancing).

    >>> print(max_activation())
    sweep 1 of 1, at every site:
      max_threshold('layer')
    """
    return Recipe([max_threshold(per)])


def percentile(p: float = 99.9, per: Per = "layer") -> Recipe:
    """Threshold = p-th percentile of the activations.

    >>> print(percentile())
    sweep 1 of 1, at every site:
      percentile_threshold(99.9, 'layer')
    """
    return Recipe([percentile_threshold(p, per)])


def bias_shift(per: Per = "layer") -> Recipe:
    """Maximum activation, and the bias shift V_th / (2T) (ICLR 2021).

    >>> print(bias_shift())
    sweep 1 of 1, at every site:
      max_threshold('layer')
      shift_bias()
    """
    return Recipe([max_threshold(per), shift_bias()])


def light(per: Per = "layer") -> Recipe:
    """Least-squares threshold, bias shift, bias correction (ICML 2021).

    >>> print(light())
    sweep 1 of 1, at every site:
      least_squares_threshold('layer')
      shift_bias()
      correct_bias()
    """
    return Recipe([least_squares_threshold(per), shift_bias(), correct_bias()])


def advanced(
    per: Per = "layer",
    *,
    iterations: int = 5000,
    learning_rate: float = 1e-5,
    seed: int = 0,
) -> Recipe:
    """Least-squares threshold, bias shift, weight calibration; then potentials.

    Two sweeps: all weights first, then potential correction (ICML 2021).

    >>> print(advanced())
    sweep 1 of 2, at every site:
      least_squares_threshold('layer')
      shift_bias()
      calibrate_weights(iterations=5000, learning_rate=1e-05, seed=0)
    sweep 2 of 2, at every site:
      correct_potential()
    """
    weights = calibrate_weights(
        iterations=iterations, learning_rate=learning_rate, seed=seed
    )
    thresholds = least_squares_threshold(per), shift_bias()
    return Recipe([*thresholds, weights], [correct_potential()])


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
    return Recipe([own_maximum_threshold(), half_charge()])


def best(per: Per = "channel") -> BestOf:
    """The most accurate training-free recipe that we know of.

    Two recipes, of which the one with the better outputs is kept (`best_of`). The first
    one fits thresholds for a neuron that rounds, and sets v(0) = V_th / 2, so that the
    neuron rounds from the first step on. The second one refines it:

    1. Weights are refitted to compensate for errors of earlier layers.
    2. The levels of an encoder lie around the middle of each channel.
    3. Without a wait, thresholds are scaled for the spikes that arrive, and a part of
       the charge comes later, where spikes cannot be taken back.
    4. The initial potential removes the mean error of each neuron, in three rounds.

    Both weigh errors by their effect on the outputs (`by_effect`). With fewer than 64
    images for a dense layer, one threshold per layer suits new images better.

    Args:
        per: "channel", or "layer", one threshold for each site.

    >>> print(best().alternatives[0])
    sweep 1 of 1, at every site:
      by_effect(least_squares_threshold('channel', 0.5), half_charge())
    """
    thresholds = least_squares_threshold(per, 0.5), half_charge()
    refined = by_effect(
        least_squares_weights(),
        least_squares_offset(),
        *thresholds,
        postpone_charge(),
        streaming_only(scale_threshold()),
        streaming_only(postpone_charge()),
        correct_potential(3),
    )
    return best_of(Recipe([by_effect(*thresholds)]), Recipe([refined]))


# What `snnjax.convert` takes: one recipe for all sites, or some by the sites' names.
AnyRecipe = Recipe | BestOf | Mapping[str, Recipe | BestOf]


def sweeps_by_site(
    recipe: Any, site_names: Sequence[str]
) -> list[list[dict[str, tuple[Calibrator, ...]]]]:
    """For each alternative, for each sweep: site name -> its calibrators.

    Args:
        recipe: a recipe of all sites, or site name or pattern -> recipe; the first
            pattern that matches counts. A site whose recipe has fewer alternatives
            than others keeps its last one, and with fewer sweeps it is left as it is.
        site_names: of all sites that fire.

    Raises:
        ValueError: something that is no recipe; a site without a recipe, or a pattern
            that matches no site.
    """
    recipes = recipe if isinstance(recipe, Mapping) else {"*": recipe}
    for value in recipes.values():
        if not isinstance(value, Recipe | BestOf):
            raise ValueError(
                f"recipe is {value!r}; allowed: a Recipe, e.g. snnjax.light() or "
                "snnjax.best() (called), or site names and patterns with a recipe each"
            )
    by_site = matching(recipes, site_names, "recipe")
    count = max((len(r.alternatives) for r in by_site.values()), default=1)
    alternatives = []
    for number in range(count):
        own = {n: r.alternatives[: number + 1][-1].sweeps for n, r in by_site.items()}
        sweeps = itertools.zip_longest(*own.values(), fillvalue=())
        alternatives.append([dict(zip(own, chains, strict=True)) for chains in sweeps])
    return alternatives
