"""The search of a conversion: the last zone, the price of a spike, and the wait.

    J = error of the outputs + price x spikes per neuron

1. Curves of thresholds (`snnjax.calibrators.spending`) predict J for each last zone,
   and the price at which neurons send a given number of spikes.
2. Waits are tried from the shortest on. A wait is long enough if the outputs are nearly
   as close to the ANN's as with a wait of T - 1, where every layer knows all of its
   input before its first spike.
3. If the number of spikes is limited, the price is corrected at every wait that is
   tried, until as many spikes are sent as are allowed.
4. The curves add the errors of channels as if they were independent. Where the error
   that is measured is another one, it corrects the price for a second fit.
5. The default recipe is compared with plain thresholds (``guard.py``).

All of it follows from the calibration images.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from snnjax.calibrators.spending import HIGHEST, Curve, price_of, total
from snnjax.codes import radix
from snnjax.conversion import cautions, guard
from snnjax.conversion.engine.calibration import Calibration
from snnjax.conversion.engine.outputs import (
    Squares,
    image_errors,
    output_squares,
    spikes_per_neuron,
)
from snnjax.conversion.engine.sweep import survey, sweep
from snnjax.conversion.recipes import AnySiteRecipe, Priced, Recipe, sweeps_of_sites
from snnjax.neurons.by_site import models_in
from snnjax.neurons.models import IntegrateAndFire
from snnjax.snn import SNN, models_of_sites

# Last zones that are tried. One for all sites is as good as one for each, see
# docs/conversion.md.
ZONES = (0.5, 0.6, 2 / 3, 0.8)
# A wait is long enough if the squared error of the outputs is at most twice that of a
# wait of T - 1: a factor that costs little accuracy, where three times was too much. It
# may add at most a twentieth of the outputs' size, since to double a large error costs
# much. An error of a thousandth, which no answer notices, is small enough in any case.
_ERROR_FACTOR = 2.0
_ADDED_ERROR = 0.05
_NEGLIGIBLE_ERROR = 3e-4
# A second fit with a corrected price follows if the error that is measured is so many
# times the predicted one, or the inverse.
_FAR_FROM_PREDICTED = 2.0
# Plain thresholds are compared on one micro-batch in so many.
_BATCHES_PER_JUDGE = 4
# Fits of one wait that bring the spikes that are sent to their limit, and how far below
# the limit they may end.
_PRICE_ROUNDS = 5
_SPIKE_TOLERANCE = 0.03


class Outcome(NamedTuple):
    """A fitted SNN, and what it does with the calibration images.

    Attributes:
        error: mean squared error of the outputs, over their size.
        spikes: per neuron and image.
        squares: of which the error is made, for each output.
    """

    snn: SNN
    error: float
    spikes: float
    squares: Sequence[Squares] = ()


class Budget(NamedTuple):
    """What spikes may cost, from the first recipe that has a price.

    Attributes:
        price: of a spike.
        spike_limit: in place of the price, at most so many spikes per neuron; None.
    """

    price: float
    spike_limit: float | None


class Prediction(NamedTuple):
    """What the curves of all priced sites say before anything is fitted.

    Attributes:
        curves: site name -> its curve, under the last zone that costs least.
        zone: that last zone; None: models keep theirs.
        error: of the outputs; None: it is unknown, since some sites have no price, or
            several of them.
    """

    curves: dict[str, Curve]
    zone: float | None
    error: float | None


def search(
    calibration: Calibration,
    recipes: Mapping[str, AnySiteRecipe],
    *,
    reference_wait: int,
    zone_model: IntegrateAndFire | None,
    is_default: bool,
) -> SNN:
    """Fit with the last zone, the price and the wait that are cheapest.

    Args:
        calibration: its wait is the shortest that is tried.
        recipes: site name -> recipe.
        reference_wait: the wait whose error those of shorter waits are compared with.
        zone_model: the model of all sites, if its last zone may change; None: it stays.
        is_default: whether the recipes are nobody's choice, so that plain thresholds
            may take their place.

    Raises:
        ValueError: a number of spikes that cannot be kept.
    """
    budget = _budget(calibration, recipes)
    zones = None if zone_model is None else ZONES
    prediction = _predict(calibration, recipes, budget, zones)
    calibration = dataclasses.replace(calibration, curves=prediction.curves)
    if zone_model is not None and prediction.zone is not None:
        model = dataclasses.replace(zone_model, last_zone=prediction.zone)
        models = models_of_sites(
            model,
            calibration.network.sites,
            default=model,
        )
        snn = dataclasses.replace(calibration.snn, model=models)
        calibration = dataclasses.replace(calibration, snn=snn)

    # Several waits, and rounds of prices, may ask for the same fit.
    @functools.cache
    def fit(wait: int, price: float | None) -> Outcome:
        return _fit(calibration, recipes, wait=wait, price=price)

    def fit_at(wait: int) -> Outcome:
        if budget.spike_limit is None:
            return fit(wait, None)  # every recipe keeps its own price
        return fit_within(
            budget.spike_limit,
            fit=lambda price: fit(wait, price),
            curves=list(prediction.curves.values()),
        )

    wait, errors = shortest_sufficient_wait(
        error_at=lambda wait: fit_at(wait).error,
        shortest=calibration.wait,
        longest=reference_wait,
        predicted_error=prediction.error,
    )
    outcome = fit_at(wait)
    price = corrected_price(outcome, prediction, budget)
    if price is not None:
        second = fit(wait, price)
        if cost(second, budget.price) < cost(outcome, budget.price):
            outcome = second
    comparison = None
    if is_default:
        comparison = _compare(calibration, outcome, wait=wait, price=budget.price)
    if comparison is not None and comparison.keeps_plain:
        plain_recipes = guard.plain_recipes(calibration.sites)
        outcome = _fit(calibration, plain_recipes, wait=wait, price=None)
    if not math.isfinite(outcome.error):
        cautions.warn_of_unknown_error(outcome.error)
    # From the longest wait on, a longer one would be no remedy. That of rate coding is
    # 0, so there is no warning for it.
    elif wait < calibration.snn.code.longest_wait(calibration.steps):
        cautions.warn_of_lost_outputs(outcome.error, wait)
    description = _description(outcome, wait, errors)
    if comparison is not None:
        description += f"\n{comparison}"
    return outcome.snn.with_fit(description)


def cost(outcome: Outcome, price: float) -> float:
    """J, as it was measured."""
    return outcome.error + price * outcome.spikes


def _compare(
    calibration: Calibration, outcome: Outcome, *, wait: int, price: float
) -> guard.Comparison | None:
    """The default beside plain thresholds; None if its error is negligible.

    Plain thresholds are fitted to a quarter of the micro-batches, which also judge.
    """
    batch_count = len(calibration.batch_sizes)
    batches = range(0, batch_count, _BATCHES_PER_JUDGE)
    judges = _judges(calibration)
    are_chosen = []
    for batch, size in enumerate(calibration.batch_sizes):
        are_chosen.append(np.full(size, batch in batches))
    fitted_errors = image_errors(outcome.squares, judges & np.concatenate(are_chosen))
    if not fitted_errors.mean() > guard.NEGLIGIBLE_ERROR:
        return None
    some = calibration.of_batches(batches)
    plain = _fit(some, guard.plain_recipes(some.sites), wait=wait, price=None)
    return guard.compare(
        fitted=(fitted_errors, outcome.spikes),
        plain=(image_errors(plain.squares, _judges(some)), plain.spikes),
        price=price,
        images=some.unseen_count,
    )


def _judges(calibration: Calibration) -> np.ndarray:
    """Which images judge, [N]: those that no fit has used, or all if there are none."""
    is_unseen = np.concatenate(calibration.unseen)
    return is_unseen if is_unseen.any() else np.ones_like(is_unseen)


def corrected_price(
    outcome: Outcome, prediction: Prediction, budget: Budget
) -> float | None:
    """The price of a second fit, by the error that the first one has.

    Curves add the errors of channels as if they were independent. Of equal channels
    they are not: their sum is larger. Errors that are c times as large as predicted
    make a spike c times as useful, so that its price is c times lower. None if the
    prediction was good, or the price changes little.

    Args:
        outcome: of the first fit, whose error is measured.
        prediction: its curves.
        budget: the price of the first fit.
    """
    has_price = budget.spike_limit is None and budget.price > 0
    if not has_price or prediction.error is None or prediction.error <= 0:
        return None
    factor = outcome.error / prediction.error
    is_far = factor > _FAR_FROM_PREDICTED or factor * _FAR_FROM_PREDICTED < 1
    if not is_far or not 0 < factor < math.inf:
        return None
    price = budget.price / factor
    _, first_spikes = total(prediction.curves.values(), budget.price)
    _, second_spikes = total(prediction.curves.values(), price)
    # Nearly the same thresholds would be fitted again.
    if abs(second_spikes - first_spikes) < _SPIKE_TOLERANCE * first_spikes:
        return None
    return price


def _budget(calibration: Calibration, recipes: Mapping[str, AnySiteRecipe]) -> Budget:
    """The price, or the number of spikes, that the recipes ask for."""
    steps = calibration.steps
    for recipe in recipes.values():
        if not isinstance(recipe, Priced):
            continue
        if recipe.spikes is not None and recipe.spikes > steps:
            raise ValueError(
                f"spikes is {recipe.spikes:g}, and a neuron sends at most {steps} in T "
                f"= {steps}; allowed: 0 < spikes <= {steps}"
            )
        price = recipe.price_under(calibration.snn.code, steps)
        return Budget(price, recipe.spikes)
    return Budget(price=0.0, spike_limit=None)


def _predict(
    calibration: Calibration,
    recipes: Mapping[str, AnySiteRecipe],
    budget: Budget,
    zones: Sequence[float] | None,
) -> Prediction:
    """The last zone of the least J, and what its curves predict.

    Args:
        zones: last zones to compare; None: models keep theirs.
    """
    per_site = {}
    prices = set()
    for name, recipe in recipes.items():
        if isinstance(recipe, Priced):
            per_site[name] = recipe.per
            prices.add(recipe.price)
    # Without a choice to make, a pass of the ANN would be for nothing.
    has_price = budget.price > 0 or budget.spike_limit is not None
    needs_curves = zones is not None or has_price
    if not per_site or not needs_curves:
        return Prediction(curves={}, zone=None, error=None)
    candidates = []
    for number, curves in enumerate(survey(calibration, zones, per_site)):
        price = budget.price
        if budget.spike_limit is not None:
            price = price_of(curves.values(), budget.spike_limit)
        error, spikes = total(curves.values(), price)
        excess = 0.0
        cost = error + price * spikes
        if budget.spike_limit is not None:
            # Zones compete at equal spikes; one that sends too many loses.
            excess = max(0.0, spikes - budget.spike_limit)
            cost = error
        # Unseen images have no effect on the curves.
        image_count = sum(calibration.batch_sizes)
        error *= image_count / (image_count - calibration.unseen_count)
        is_complete = len(per_site) == len(recipes) and len(prices) == 1
        # Outputs of 0 have the error 1. A larger one is no prediction: a site without
        # effect on the outputs has errors of weight 1, which belong to no output.
        is_known = is_complete and error <= 1
        prediction = Prediction(
            curves=curves,
            zone=None if zones is None else zones[number],
            error=error if is_known else None,
        )
        candidates.append((excess, cost, number, prediction))
    # Among equals the first zone stays, since its number is the smallest.
    *_, cheapest = min(candidates)
    return cheapest


def _fit(
    calibration: Calibration,
    recipes: Mapping[str, AnySiteRecipe],
    *,
    wait: int,
    price: float | None,
) -> Outcome:
    """Carry the recipes out, sweep by sweep.

    Args:
        recipes: site name -> recipe.
        wait: steps that every layer waits.
        price: of all sites that have one; None: that of their own recipe.
    """
    snn = dataclasses.replace(calibration.snn, wait=wait)
    calibration = dataclasses.replace(calibration, snn=snn, wait=wait)
    title = f"wait {wait}" if price is None else f"wait {wait}, price {price:.2g}"
    sweeps = sweeps_of_sites(_recipes_at(calibration, recipes, price))
    boundary = calibration.start()
    for number, chains in enumerate(sweeps, 1):
        if len(sweeps) > 1:
            title = f"sweep {number} of {len(sweeps)}"
        fitted_snn, boundary = sweep(calibration, chains, title)
        calibration = dataclasses.replace(calibration, snn=fitted_snn)
    squares = output_squares(calibration, boundary)
    return Outcome(
        snn=calibration.snn,
        error=float(image_errors(squares, slice(None)).mean()),
        spikes=spikes_per_neuron(calibration, boundary),
        squares=squares,
    )


def _recipes_at(
    calibration: Calibration,
    recipes: Mapping[str, AnySiteRecipe],
    price: float | None,
) -> dict[str, Recipe]:
    """Site name -> recipe, with this price; None: with the recipe's own price."""
    code, steps = calibration.snn.code, calibration.steps
    recipes_at_price = {}
    for name, recipe in recipes.items():
        if isinstance(recipe, Priced):
            site_price = recipe.price_under(code, steps) if price is None else price
            recipe = recipe.at(code, site_price)
        recipes_at_price[name] = recipe
    return recipes_at_price


def shortest_sufficient_wait(
    error_at: Callable[[int], float],
    *,
    shortest: int,
    longest: int,
    predicted_error: float | None,
) -> tuple[int, dict[int, float]]:
    """The first wait whose error is near that of the longest, or negligible.

    It is near if it is at most twice as large, and larger by at most a twentieth.

    Args:
        error_at: wait -> squared error of the outputs.
        shortest: wait that is tried first.
        longest: wait whose error is the reference.
        predicted_error: an estimate of the longest wait's error. If the shortest wait
            is sufficient by it, and its error is below a twentieth so that little can
            be lost, the longest is not measured. None: no estimate.

    Returns:
        The wait, and the errors that were measured, by wait.

    >>> errors = (0.5, 0.1, 0.03, 0.02)
    >>> wait, measured = shortest_sufficient_wait(
    ...     errors.__getitem__, shortest=0, longest=3, predicted_error=None)
    >>> wait, sorted(measured)
    (2, [0, 1, 2, 3])
    """
    errors = {shortest: error_at(shortest)}
    if shortest >= longest:
        return shortest, errors

    def is_sufficient(wait: int, reference: float) -> bool:
        # An error of NaN is never sufficient.
        tolerable = min(_ERROR_FACTOR * reference, reference + _ADDED_ERROR)
        return errors[wait] <= max(tolerable, _NEGLIGIBLE_ERROR)

    if predicted_error is None:
        predicted_error = 0.0  # so that only a negligible error is sufficient
    has_little_to_lose = errors[shortest] <= _ADDED_ERROR
    if has_little_to_lose and is_sufficient(shortest, predicted_error):
        return shortest, errors
    # From here on, the reference is measured. By it the shortest may suffice after all.
    errors[longest] = error_at(longest)
    for wait in range(shortest, longest):
        if wait not in errors:
            errors[wait] = error_at(wait)
        if is_sufficient(wait, errors[longest]):
            return wait, errors
    return longest, errors


def fit_within(
    spike_limit: float, *, fit: Callable[[float], Outcome], curves: Sequence[Curve]
) -> Outcome:
    """The outcome that sends between 97 % and 100 % of the limit.

    Curves predict the spikes of neurons that know their input. What is sent differs,
    and sites without a price send spikes, too. So the number that the curves aim at is
    corrected, until what is sent is at most 3 % below the limit. After five rounds, the
    outcome with most spikes among those within the limit is kept, or if there is none,
    that of the highest price.

    Args:
        fit: price -> outcome.
        curves: of all sites that have a price.

    Raises:
        ValueError: more spikes are sent at the highest price.
    """
    aim = spike_limit
    outcomes_within = []
    highest_outcome = None  # at the highest price
    for _ in range(_PRICE_ROUNDS):
        price = price_of(curves, aim)
        outcome = fit(price)
        if outcome.spikes <= spike_limit:
            outcomes_within.append(outcome)
            is_close = outcome.spikes >= (1 - _SPIKE_TOLERANCE) * spike_limit
            if is_close or price == 0:
                break
        elif price == HIGHEST:
            highest_outcome = outcome
            break
        # The next round aims within the tolerance, a third of it below the limit.
        aim += (1 - _SPIKE_TOLERANCE / 3) * spike_limit - outcome.spikes
    if outcomes_within:
        return max(outcomes_within, key=lambda outcome: outcome.spikes)
    if highest_outcome is None:
        highest_outcome = fit(HIGHEST)
    if highest_outcome.spikes > spike_limit:
        raise ValueError(
            f"spikes is {spike_limit:g} per neuron and image, and with the highest "
            f"thresholds that are tried this network sends "
            f"{highest_outcome.spikes:.3g}, "
            "where the squared error of its outputs is "
            f"{highest_outcome.error:.2g} of their size; allowed: more spikes, "
            "or fewer steps"
        )
    return highest_outcome


def _description(outcome: Outcome, wait: int, errors: Mapping[int, float]) -> str:
    """What was measured, for `SNN.fit`."""
    text = (
        f"{outcome.spikes:.3g} spikes per neuron and a squared error of the outputs of "
        f"{outcome.error:.2g}, on the calibration images"
    )
    rejected = []
    for tried_wait in sorted(errors):
        if tried_wait != wait:
            rejected.append(f"{errors[tried_wait]:.2g} with wait {tried_wait}")
    if rejected:
        text += f"\nerror of waits not kept: {', '.join(rejected)}"
    snn = outcome.snn
    have_signs = any(model.levels == (-1, 1) for model in models_in(snn.model))
    if snn.steps == 2 and snn.code == radix(base=2) and have_signs:
        text += (
            "\ntwo steps of snnjax.codes.radix(base=3) come closer to the ANN, "
            "for a fifth more spikes"
        )
    return text
