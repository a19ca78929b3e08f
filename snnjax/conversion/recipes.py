"""Recipes: chains of calibrators; the body of each is a method's definition.

`snnjax.convert` carries a recipe out site by site, in one sweep through the network or
more. Sources: Deng and Gu, ICLR 2021 (`bias_shift`); Li, Deng, Dong, Gong and Gu, ICML
2021 (`light`, `advanced`); Bu et al., ICLR 2022 (`quantized`); `best` is ours.
"""

import dataclasses
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from snnjax._checks import called_as, check_choice
from snnjax._patterns import matching
from snnjax._ranges import NOT_NEGATIVE, POSITIVE
from snnjax._text import name_of_value, repr_pretty
from snnjax._types import Per
from snnjax.calibrators.conditions import by_effect, streaming_only
from snnjax.calibrators.corrections import (
    FEW,
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
    priced_threshold,
)
from snnjax.calibrators.view import Calibrator, check_calibrator
from snnjax.calibrators.weights_adam import calibrate_weights
from snnjax.calibrators.weights_least_squares import least_squares_weights
from snnjax.codes import Code, radix, rate


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
    >>> Recipe([max_threshold(), half_charge()])
    Recipe([max_threshold(), half_charge()])
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

    def __repr__(self) -> str:
        sweeps = []
        for sweep in self.sweeps:
            sweeps.append(f"[{', '.join(map(name_of_value, sweep))}]")
        return f"Recipe({', '.join(sweeps)})"

    def __str__(self) -> str:
        lines = []
        for number, sweep in enumerate(self.sweeps, 1):
            lines.append(f"sweep {number} of {len(self.sweeps)}, at every site:")
            for calibrator in sweep:
                lines.append(f"  {name_of_value(calibrator)}")
        return "\n".join(lines)

    _repr_pretty_ = repr_pretty


@dataclasses.dataclass(frozen=True)
class Priced:
    """A recipe that depends on the code and on a price per spike, as `best` does.

    Attributes:
        at: (code, price) -> `Recipe`.
        price: of `snnjax.calibrators.priced_threshold`; None:
            `snnjax.codes.Code.default_price`. Where sites have several prices, that of
            the first site chooses the last zone.
        spikes: at most so many per neuron and image; `snnjax.convert` finds the price.
            None: as many as the price allows.
        per: "channel" or "layer", what has a threshold of its own.
    """

    at: Callable[[Code, float], Recipe] = dataclasses.field(repr=False)
    price: float | None = None
    spikes: float | None = None
    per: Per = "channel"

    def price_under(self, code: Code, steps: int) -> float:
        """The price of a spike, unless a number of spikes is given."""
        if self.price is not None:
            return self.price
        return code.default_price(steps)

    def __str__(self) -> str:
        parts = []
        if self.spikes is not None:
            parts.append(f"at most {self.spikes:g} spikes per neuron:")
        for title, code in (("rate coding", rate()), ("other codes", radix())):
            # Up to four steps the default price does not depend on them.
            text = str(self.at(code, self.price_under(code, steps=4)))
            parts.append(f"with {title}:")
            parts.append(textwrap.indent(text, "  "))
        return "\n".join(parts)

    _repr_pretty_ = repr_pretty


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

    For networks of `snnjax.quantized_relu` (or `snnjax.clipped_relu`). A neuron has the
    values 0, 1/n, .., 1 of its maximum, where n is T times the highest level of a
    spike. With the wait T, its value is the one that is nearest to its input.

    If n is the L of each quantized ReLU, the SNN computes the numbers of the network
    itself. Only an input halfway between two values may be rounded to the other one.
    With another T, and for a clipped ReLU, the SNN approximates them. Layers of
    different L are exact with spikes of different levels,
    ``convert(..., model={site: integrate_and_fire(levels=(0, n))})``.

    >>> print(quantized())
    sweep 1 of 1, at every site:
      own_maximum_threshold()
      half_charge()
    """
    return Recipe([own_maximum_threshold(), half_charge()])


@called_as("snnjax.best(spikes=...), or another of its options by name")
def best(
    per: Per = "channel", *, price: float | None = None, spikes: float | None = None
) -> Priced:
    """The most accurate training-free recipe that we know of, for its spikes.

    1. Weights are refitted to compensate for errors of earlier layers, where that helps
       images that they were not fitted to.
    2. Thresholds minimize the error of the outputs plus a price for each spike
       (`snnjax.calibrators.priced_threshold`).
    3. v(0) = V_th / 2 makes neurons round from the first step on.
    4. A bias removes the mean error of each channel.

    Rate coding takes more. The levels of an encoder lie around the middle of each
    channel. Without a wait, thresholds are scaled for the spikes that arrive, and a
    part of the charge comes later, where spikes cannot be taken back. In place of the
    bias, the initial potential removes the mean error of each neuron; with fewer than
    64 images it removes that of each channel. It is corrected in three rounds.

    All errors count by their effect on the outputs (`by_effect`). With fewer than 64
    images for a dense layer, one threshold per layer suits new images better.

    Args:
        per: "channel", or "layer", one threshold for each site.
        price: >= 0, the squared error of the outputs, over their size, that one spike
            less per neuron may cost. By default 0.01 up to T = 4, and less with more
            steps, 0.01 min(1, (8 w_T)^2), where w_T is the last weight of the code; 0
            with rate coding.
        spikes: in place of the price: at most so many spikes per neuron and image, on
            average over the calibration images. The price is found by bisection. New
            images may cause a percent more.

    Raises:
        ValueError: another ``per``, a price below 0, spikes that are no number > 0, or
            both a price and spikes.

    >>> import snnjax
    >>> text = str(best().at(snnjax.codes.radix(), 0.02))
    >>> print(text.replace("), ", "),\\n    "))
    sweep 1 of 1, at every site:
      by_effect(least_squares_weights(iterations=2),
        priced_threshold(0.02, 'channel'),
        half_charge(),
        correct_bias())
    """
    check_choice("per", per, get_args(Per))
    if price is not None and spikes is not None:
        raise ValueError(
            f"best got the price {price!r} and spikes={spikes!r}; allowed: one of "
            "them, since a number of spikes sets the price"
        )
    if price is not None:
        NOT_NEGATIVE.check("price", price)
        price = float(price)  # an array has no hash
    if spikes is not None:
        POSITIVE.check("spikes", spikes)
        spikes = float(spikes)

    def at(code: Code, spike_price: float) -> Recipe:
        thresholds = priced_threshold(spike_price, per)
        if code.is_streaming():
            return _best_for_rate_coding(thresholds, per)
        # Ten iterations gained little more than two on ResNet-20 and a ViT.
        weights = least_squares_weights(iterations=2)
        return Recipe([by_effect(weights, thresholds, half_charge(), correct_bias())])

    # Without a price and a number of spikes, Priced takes the default of the code.
    return Priced(at, price, spikes, per)


def _best_for_rate_coding(thresholds: Calibrator, per: Per) -> Recipe:
    """`best` where values arrive step by step, so that their order matters."""
    fits = by_effect(
        least_squares_weights(),
        least_squares_offset(),
        thresholds,
        half_charge(),
        postpone_charge(),
        streaming_only(scale_threshold(per=per)),
        streaming_only(postpone_charge()),
        correct_potential(3, enough=FEW),
    )
    return Recipe([fits])


# What `snnjax.convert` takes: one recipe for all sites, or some by the sites' names.
AnySiteRecipe = Recipe | Priced
AnyRecipe = AnySiteRecipe | Mapping[str, AnySiteRecipe]


def recipes_by_site(recipe: Any, site_names: Sequence[str]) -> dict[str, AnySiteRecipe]:
    """Site name -> its recipe.

    Args:
        recipe: of all sites, or site name or pattern -> recipe; the first pattern that
            matches counts.
        site_names: of all sites that fire.

    Raises:
        ValueError: something that is no recipe; a site without a recipe, or a pattern
            that matches no site; two numbers of spikes, or two prices.
    """
    recipes = recipe if isinstance(recipe, Mapping) else {"*": recipe}
    for value in recipes.values():
        if not isinstance(value, Recipe | Priced):
            raise ValueError(
                f"recipe is {value!r}; allowed: a Recipe, e.g. snnjax.light() or "
                "snnjax.best() (called), or site names and patterns with a recipe each"
            )
    by_site = matching(recipes, site_names, "recipe")
    budgets = set()
    has_spike_limit = False
    for site_recipe in by_site.values():
        if isinstance(site_recipe, Priced):
            budgets.add((site_recipe.price, site_recipe.spikes))
            has_spike_limit |= site_recipe.spikes is not None
    if len(budgets) > 1 and has_spike_limit:
        raise ValueError(
            "a number of spikes is one of the whole network, and the recipes by site "
            f"have the (price, spikes) {sorted(map(str, budgets))}; allowed: the same "
            "in all of them, or a price each"
        )
    return by_site


def sweeps_of_sites(
    recipes: Mapping[str, Recipe],
) -> list[list[tuple[Calibrator, ...]]]:
    """For each sweep, the calibrators of each site, in order.

    A site whose recipe has fewer sweeps than those of other sites is left as it is in
    the last ones.
    """
    sweeps_by_site = [recipe.sweeps for recipe in recipes.values()]
    sweeps = itertools.zip_longest(*sweeps_by_site, fillvalue=())
    return [list(chains) for chains in sweeps]
