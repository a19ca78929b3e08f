"""What a conversion chooses by itself: the last zone, the price, the wait.

All three follow from measurements on the calibration images. The curves of thresholds
(`snnjax.calibrators.spending`) give the zone and the price of a number of spikes. The
outputs with a wait of T - 1, where every layer knows all of its input, are what a
shorter wait is compared with.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from snnjax.calibrators.spending import HIGHEST, Curve, price_of, total
from snnjax.codes import Code
from snnjax.conversion import cautions
from snnjax.conversion.engine import judging
from snnjax.conversion.engine.judging import Outcome
from snnjax.conversion.engine.state import State
from snnjax.conversion.engine.sweep import ann_outputs, survey, sweep
from snnjax.conversion.recipes import AnyOfSite, BestOf, Priced, Recipe, sweeps_by_site
from snnjax.neurons.models import IntegrateAndFire
from snnjax.snn import SNN, models_of_sites

# Last zones that are tried. One for all sites is as good as one for each, see
# docs/codes.md.
ZONES = (0.5, 0.6, 2 / 3, 0.8)
# A wait is enough if the squared error of the outputs is at most so many times that of
# a wait of T - 1: a factor that costs little accuracy, where three times was too much.
# So is one with an error of a thousandth, which no answer notices.
_TOLERANCE, _SMALL = 2.0, 1e-3
_ROUNDS = 5  # of fits that bring the spikes that really arrive to their number
_NEAR = 0.03  # how much less than the number ends them


def recipes_at(
    by_site: Mapping[str, AnyOfSite], code: Code, price: float | None = None
) -> dict[str, Recipe | BestOf]:
    """Site name -> recipe, with this price or with its own."""

    def at(recipe: AnyOfSite) -> Recipe | BestOf:
        if not isinstance(recipe, Priced):
            return recipe
        return recipe.at(code, recipe.price_under(code) if price is None else price)

    return {name: at(recipe) for name, recipe in by_site.items()}


def fitted(
    begin: State,
    by_site: Mapping[str, AnyOfSite],
    waits: tuple[int, int],
    usual: IntegrateAndFire,
    zones: tuple[float, ...] | None,
) -> SNN:
    """Fit with the last zone, the price and the wait that are cheapest.

    Args:
        by_site: site name -> recipe.
        waits: the least, and the one that it is compared with.
        usual: the model of all sites if its last zone may change.
        zones: last zones that it may have; None: it stays.
    """
    code, steps = begin.snn.code, begin.steps
    priced = {n: r for n, r in by_site.items() if isinstance(r, Priced)}
    budgets = [(r.price_under(code), r.spikes) for r in priced.values()]
    own_price, spikes = budgets[0] if budgets else (0.0, None)
    check_spikes(spikes, steps)
    curves: Sequence[Curve] = ()
    price = predicted = None
    if priced and (zones or spikes is not None):
        of_zones = survey(begin, zones, {n: r.per for n, r in priced.items()})
        number, found = cheapest_zone(of_zones, own_price, spikes)
        curves, price = of_zones[number], None if spikes is None else found
        if len(priced) == len(by_site):
            predicted, _ = total(curves, found)
            if predicted > 1:  # of a site without any effect
                predicted = None
        if zones:
            model = dataclasses.replace(usual, last_zone=zones[number])
            models = models_of_sites(model, begin.network.sites, model)
            begin = begin._replace(snn=dataclasses.replace(begin.snn, model=models))
        names = [s.place.name for s in begin.stages[:-1] if s.place.name in priced]
        begin = begin._replace(curves=dict(zip(names, curves, strict=True)))

    @functools.cache  # the search for a price begins with what the wait was found at
    def fit(wait: int, price: float | None) -> Outcome:
        here = begin._replace(snn=dataclasses.replace(begin.snn, wait=wait), wait=wait)
        sweeps = sweeps_by_site(recipes_at(by_site, code, price))
        return _outcome(here, sweeps, own_price if price is None else price)

    outcome, wait, others = least_wait(lambda wait: fit(wait, price), *waits, predicted)
    if spikes is not None:
        outcome = within_budget(lambda price: fit(wait, price), curves, spikes)
    if wait < code.longest_wait(steps):
        cautions.of_lost_outputs(outcome.means()[0], wait)
    return outcome.snn.with_fit(_text_of(outcome, others))


def _text_of(outcome: Outcome, others: str) -> str:
    """What was measured and kept, for `SNN.fit`."""
    error, spikes = outcome.means()
    # Where alternatives compete, images that none of them was fitted to judge.
    held_out = len(outcome.errors) - outcome.fitted
    images = f"{held_out} held-out" if held_out else "the calibration"
    text = f"{spikes:.3g} spikes per neuron, squared error of the outputs {error:.2g}"
    text += f" on {images} images"
    text += f"\nother waits: {others}" if others else ""
    return text + (f"\nkept {outcome.kept}" if outcome.kept else "")


def _outcome(begin: State, alternatives: Sequence[Any], price: float) -> Outcome:
    """Fit every alternative; the one whose outputs and spikes cost least."""
    candidates, number = [], itertools.count(1)
    for sweeps in alternatives:
        end = begin
        for chains in sweeps:
            start = begin._replace(snn=end.snn)
            end = sweep(start, chains.values(), f"sweep {next(number)} ")
        errors = judging.output_errors(end, ann_outputs(end))
        spikes = judging.spikes_sent(end.neurons, end.sent)
        images = sum(begin.sizes[: begin.fitted])
        candidates.append(Outcome(end.snn, errors, spikes, images))
    return judging.nearest(candidates, price)


def cheapest_zone(
    curves: Sequence[Sequence[Curve]], price: float, spikes: float | None
) -> tuple[int, float]:
    """Which last zone gives the least cost, and the price.

    Args:
        curves: of all sites, for each last zone.
        price: of a spike; with a number of spikes it is found.
        spikes: at most so many per neuron.
    """
    costs = []
    for of_zone in curves:
        own = price if spikes is None else price_of(of_zone, spikes)
        error, sent = total(of_zone, own)
        excess = 0 if spikes is None else max(0.0, sent - spikes)
        costs.append((excess, error + (own * sent if spikes is None else 0), own))
    best = min(range(len(costs)), key=costs.__getitem__)
    return best, costs[best][-1]


def within_budget(
    fit: Callable[[float], Outcome], curves: Sequence[Curve], spikes: float
) -> Outcome:
    """The outcome at the price at which so many spikes arrive.

    The spikes that arrive differ from those of neurons that know their input, which the
    curves have; and other sites may have no price. So what the curves should give is
    corrected until few enough arrive. After too many rounds the highest price decides.

    Raises:
        ValueError: at the highest price there are more spikes.
    """
    aim, outcomes = spikes, []
    for _ in range(_ROUNDS):
        price = price_of(curves, aim)
        outcome = fit(price)
        sent = outcome.means()[1]
        if sent <= spikes:
            outcomes.append(outcome)
            if price == 0 or sent >= (1 - _NEAR) * spikes:
                break
        if price == HIGHEST and sent > spikes:
            break
        aim += (1 - _NEAR / 3) * spikes - sent
    if not outcomes:
        outcome = fit(HIGHEST) if price < HIGHEST else outcome
        error, sent = outcome.means()
        if sent > spikes:
            raise ValueError(
                f"spikes is {spikes:g} per neuron and image, and with the highest "
                f"thresholds that are tried this network sends {sent:.3g}, where the "
                f"squared error of its outputs is {error:.2g} of their size; allowed: "
                "more spikes, or fewer steps"
            )
        return outcome
    return max(outcomes, key=lambda outcome: outcome.means()[1])


def least_wait(
    fit: Callable[[int], Outcome], least: int, most: int, predicted: float | None
) -> tuple[Outcome, int, str]:
    """The outcome of the least wait that is enough, the wait, and what was measured.

    Args:
        fit: wait -> outcome.
        least: the least wait that is tried.
        most: T - 1, at which layers know all of their input.
        predicted: error that the curves predict for such layers; None: it is measured.
            It is also measured where the prediction calls the least wait too short.
    """
    outcome = fit(least)
    if least >= most:
        return outcome, least, ""
    errors, reference = {least: outcome.means()[0]}, None
    exact = 0.0 if predicted is None else predicted

    def is_enough(wait: int) -> bool:  # NaN is not
        return errors[wait] <= max(_TOLERANCE * exact, _SMALL)

    if not is_enough(least):
        reference = fit(most)
        errors[most] = exact = reference.means()[0]
    wait = least
    while not is_enough(wait) and wait + 1 < most:
        wait += 1
        outcome = fit(wait)
        errors[wait] = outcome.means()[0]
    if reference is not None and not is_enough(wait):
        outcome, wait = reference, most
    others = [f"{e:.2g} with wait {w}" for w, e in sorted(errors.items()) if w != wait]
    return outcome, wait, ", ".join(others)


def check_spikes(spikes: float | None, steps: int) -> None:
    """Raise unless a network can be fitted to so many spikes per neuron."""
    if spikes is not None and spikes > steps:
        raise ValueError(
            f"spikes is {spikes:g}, and a neuron sends at most {steps} in T = {steps} "
            f"steps; allowed: 0 < spikes <= {steps}"
        )
