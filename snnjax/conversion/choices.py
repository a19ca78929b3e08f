"""What a conversion chooses by itself: the last zone, the price, the wait.

All three follow from measurements on the calibration images. The curves of thresholds
(`snnjax.calibrators.spending`) give the zone and the price of a number of spikes. The
outputs with a wait of T - 1, where every layer knows all of its input, are what a
shorter wait is compared with.
"""

from collections.abc import Callable, Sequence

from snnjax.calibrators.spending import HIGHEST, Curve, price_of, total
from snnjax.conversion.engine.judging import Outcome

# Last zones that are tried. One for all sites is as good as one for each, see
# docs/codes.md.
ZONES = (0.5, 0.6, 2 / 3, 0.8)
# A wait is enough if the squared error of the outputs is at most so many times that of
# a wait of T - 1: a factor that costs little accuracy, where three times was too much.
_TOLERANCE = 2.0
_ROUNDS = 5  # of fits that bring the spikes that really arrive to their number
_NEAR = 0.03  # how much less than the number ends them


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
                f"thresholds that are tried this network sends {sent:.2g}, where the "
                f"squared error of its outputs is {error:.2g} of their size; allowed: "
                "more spikes, or fewer steps"
            )
        return outcome
    return max(outcomes, key=lambda outcome: outcome.means()[1])


def least_wait(
    fit: Callable[[int], Outcome],
    least: int,
    most: int,
    predict: Callable[[Outcome], float],
) -> tuple[Outcome, int, str]:
    """The outcome of the least wait that is enough, the wait, and what was measured.

    Args:
        fit: wait -> outcome.
        least: the least wait that is tried.
        most: T - 1, at which layers know all of their input.
        predict: outcome of the least wait -> error to expect with the most. It is
            measured where this calls the least wait too short.
    """
    outcome = fit(least)
    if least >= most:
        return outcome, least, ""
    errors, reference = {least: outcome.means()[0]}, None
    predicted = predict(outcome)
    if not errors[least] <= _TOLERANCE * predicted:
        reference = fit(most)
        errors[most] = predicted = reference.means()[0]
    wait = least
    while not errors[wait] <= _TOLERANCE * predicted and wait + 1 < most:  # NaN is not
        wait += 1
        outcome = fit(wait)
        errors[wait] = outcome.means()[0]
    if not errors[wait] <= _TOLERANCE * predicted and reference is not None:
        outcome, wait = reference, most
    others = [f"{e:.2g} with wait {w}" for w, e in sorted(errors.items()) if w != wait]
    return outcome, wait, ", ".join(others)


def check_spikes(spikes: float | None, steps: int, is_traced: bool) -> None:
    """Raise unless a network can be fitted to so many spikes per neuron."""
    if spikes is None:
        return
    if spikes > steps:
        raise ValueError(
            f"spikes is {spikes:g}, and a neuron sends at most {steps} in T = {steps} "
            f"steps; allowed: 0 < spikes <= {steps}"
        )
    if is_traced:
        raise ValueError(
            "a number of spikes takes several fits, each of which depends on the one "
            "before, and the images or params are traced; allowed: a price, "
            "snnjax.best(price=0.01), or a conversion outside of jit"
        )
