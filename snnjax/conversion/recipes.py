"""Recipes: chains of calibrators; the body of each is a method's definition.

`snnjax.convert` carries a recipe out site by site, in one sweep through the network or
more. Sources: Deng and Gu, ICLR 2021 (`bias_shift`); Li, Deng, Dong, Gong and Gu, ICML
2021 (`light`, `advanced`); Bu et al., ICLR 2022 (`quantized`); `best` is ours.
"""

import dataclasses
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
        texts = [textwrap.indent(str(recipe), "  ") for recipe in self.alternatives]
        numbered = enumerate(texts, 1)
        return "\n".join(f"alternative {i} of {len(texts)}:\n{t}" for i, t in numbered)

    _repr_pretty_ = repr_pretty


@dataclasses.dataclass(frozen=True)
class Priced:
    """A recipe that depends on the code and on a price per spike, as `best` does.

    Attributes:
        at: (code, price) -> `Recipe` or `BestOf`.
        price: of `snnjax.calibrators.priced_threshold`; None: 0.01, and 0 with rate
            coding. Where sites have several, the first one's chooses the last zone.
        spikes: at most so many per neuron and image; `snnjax.convert` finds the price.
            None: as many as the price says.
        per: "channel" or "layer", what has a threshold of its own.
    """

    at: Callable[[Code, float], Recipe | BestOf] = dataclasses.field(repr=False)
    price: float | None = None
    spikes: float | None = None
    per: Per = "channel"

    def price_under(self, code: Code) -> float:
        """The price, unless a number of spikes is given."""
        if self.price is None:
            return code.default_price
        return self.price

    def __str__(self) -> str:
        parts = [f"at most {self.spikes:g} spikes per neuron:"] if self.spikes else []
        for title, code in ("rate coding", rate()), ("other codes", radix()):
            text = str(self.at(code, self.price_under(code)))
            parts += [f"with {title}:", textwrap.indent(text, "  ")]
        return "\n".join(parts)

    _repr_pretty_ = repr_pretty


def best_of(*recipes: Recipe) -> BestOf:
    """All of these recipes; the SNN whose outputs are nearest to the ANN's is kept.

        error = sum |y_snn - y_ann|^2 / sum |y_ann|^2,   y_snn the mean over T steps

    Of several outputs it is the mean. No calibrator sees every eighth micro-batch of
    the calibration images. These judge; while their errors leave the sign of the
    difference open (3 standard errors), fitted images join them. Which images these are
    depends on the number of devices. The log says at level INFO which recipe is kept,
    and by how much.

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
            f"best_of got {list(recipes)}; allowed: two recipes or more that do not "
            "depend on the code, as best() does, e.g. "
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

    With rate coding steps 2 and 3 alone compete with a recipe that goes further, and
    the one with the better outputs is kept (`best_of`): the levels of an encoder lie
    around the middle of each channel. Without a wait, thresholds are scaled for the
    spikes that arrive, and a part of the charge comes later, where spikes cannot be
    taken back. And in place of the bias, the initial potential removes the mean error
    of each neuron, or with fewer than 64 images of each channel, in three rounds.

    All errors count by their effect on the outputs (`by_effect`). With fewer than 64
    images for a dense layer, one threshold per layer suits new images better.

    Args:
        per: "channel", or "layer", one threshold for each site.
        price: >= 0, of one spike per neuron: the squared error of the outputs, over
            their size, that the network may have to save it. By default 0.01, and 0
            with rate coding.
        spikes: in place of the price: at most so many spikes per neuron and image, on
            average over the calibration images. The price is found by bisection. New
            images may cause a percent more.

    Raises:
        ValueError: a price below 0, spikes that are no number > 0, or both.

    >>> import snnjax
    >>> text = str(best().at(snnjax.codes.radix(), 0.02))
    >>> print(text.replace("), ", "),\\n    "))
    sweep 1 of 1, at every site:
      by_effect(least_squares_weights(iterations=2),
        priced_threshold(0.02, 'channel'),
        half_charge(),
        correct_bias())
    """
    if price is not None and spikes is not None:
        raise ValueError(
            f"best got the price {price!r} and spikes={spikes!r}; allowed: one of "
            "them, since a number of spikes sets the price"
        )
    if price is not None:
        NOT_NEGATIVE.check("price", price)
        price = float(price)  # of an array, which has no hash
    if spikes is not None:
        POSITIVE.check("spikes", spikes)
        spikes = float(spikes)

    def at(code: Code, price: float) -> Recipe | BestOf:
        thresholds = priced_threshold(price, per), half_charge()
        if not code.is_streaming():
            # Ten iterations gained little more than two on ResNet-20 and a ViT.
            weights = least_squares_weights(iterations=2)
            return Recipe([by_effect(weights, *thresholds, correct_bias())])
        refined = by_effect(
            least_squares_weights(),
            least_squares_offset(),
            *thresholds,
            postpone_charge(),
            streaming_only(scale_threshold(per=per)),
            streaming_only(postpone_charge()),
            correct_potential(3, enough=FEW),
        )
        return best_of(Recipe([by_effect(*thresholds)]), Recipe([refined]))

    return Priced(at, price, spikes, per)


# What `snnjax.convert` takes: one recipe for all sites, or some by the sites' names.
AnyOfSite = Recipe | BestOf | Priced
AnyRecipe = AnyOfSite | Mapping[str, AnyOfSite]


def recipes_by_site(recipe: Any, site_names: Sequence[str]) -> dict[str, AnyOfSite]:
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
        if not isinstance(value, Recipe | BestOf | Priced):
            raise ValueError(
                f"recipe is {value!r}; allowed: a Recipe, e.g. snnjax.light() or "
                "snnjax.best() (called), or site names and patterns with a recipe each"
            )
    by_site = matching(recipes, site_names, "recipe")
    budgets = {(r.price, r.spikes) for r in by_site.values() if isinstance(r, Priced)}
    if len(budgets) > 1 and any(spikes is not None for _, spikes in budgets):
        raise ValueError(
            "a number of spikes is one of the whole network, and the recipes by site "
            f"have the (price, spikes) {sorted(map(str, budgets))}; allowed: the same "
            "in all of them, or a price each"
        )
    return by_site


def sweeps_by_site(
    by_site: Mapping[str, Recipe | BestOf],
) -> list[list[dict[str, tuple[Calibrator, ...]]]]:
    """For each alternative, for each sweep: site name -> its calibrators.

    A site whose recipe has fewer alternatives than others keeps its last one, and with
    fewer sweeps it is left as it is.
    """
    count = max((len(r.alternatives) for r in by_site.values()), default=1)
    alternatives = []
    for number in range(count):
        own = {n: r.alternatives[: number + 1][-1].sweeps for n, r in by_site.items()}
        sweeps = itertools.zip_longest(*own.values(), fillvalue=())
        alternatives.append([dict(zip(own, chains, strict=True)) for chains in sweeps])
    return alternatives
