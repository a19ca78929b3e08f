"""Cautions of a conversion: what will work, and may not be what was meant.

Each is shown once, at the user's line.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from snnjax._checks import warn
from snnjax.calibrators.corrections import FEW
from snnjax.codes import Code
from snnjax.network.sites import Site
from snnjax.neurons.by_site import models_in
from snnjax.neurons.models import NeuronParams
from snnjax.snn import SNN


def of_digits(code: Code, models: Any, steps: int) -> None:
    """Warn if neurons cannot send all multiples of the last digit, or float32 them."""
    for model in models_in(models):
        values = model.levels[1] * code.reach(steps) / code.finest(steps)
        if values > 2**24:
            warn(
                f"under {code!r}, {steps} steps tell {values:.2g} values apart, and "
                f"float32 {2**24:.2g}: rounding errors become spikes; recommended: "
                "fewer steps"
            )
        if code.has_gaps(model.levels, model.dead_zone, steps):
            warn(
                f"with the levels {model.levels} and a dead zone of "
                f"{model.dead_zone:.3g}, {code!r} leaves gaps between the values that "
                f"a neuron can send; recommended: the levels {code.levels} and a dead "
                f"zone of {code.dead_zone(code.levels):.3g}, or a smaller base"
            )


def of_equal_images(x: Any) -> None:
    """Warn if images are all zero, or equal to one another, so that nothing varies."""
    leaves = jax.tree.leaves(x)
    leaves = [[np.asarray(p.data) for p in leaf.addressable_shards] for leaf in leaves]
    if not any(part.any() for parts in leaves for part in parts):
        problem = "all zero"
    elif all(map(_are_equal, leaves)):
        problem = "all equal"
    else:
        return
    warn(
        f"the calibration images are {problem}, so the recipe is fitted to a single "
        "input. Give images that the network was trained on, normalized in the same "
        "way"
    )


def _are_equal(parts: list[np.ndarray]) -> bool:
    first, *others = (image for part in parts for image in part)
    return bool(others) and all(np.array_equal(image, first) for image in others)


def of_fresh_thresholds(fresh: Mapping[str, NeuronParams], snn: SNN) -> None:
    """Warn where no calibrator has changed the threshold of a fresh neuron."""
    same = [n for n, p in fresh.items() if snn.neurons[n].threshold is p.threshold]
    if same:
        warn(
            f"no calibrator of the recipe fits the thresholds of {', '.join(same)}: "
            "they stay as they are. Begin a recipe with one that does, e.g. "
            "snnjax.calibrators.least_squares_threshold()"
        )


def of_lost_outputs(error: float, wait: int) -> None:
    """Warn if a short wait leaves outputs that have little to do with the ANN's."""
    if not error <= _LOST:  # NaN is not
        warn(
            f"with a wait of {wait} the squared error of the outputs is {error:.2g} of "
            "their size; recommended: a longer wait, or none given, which measures it"
        )


_LOST = 0.5


def of_few_samples(snn: SNN, sites: Sequence[Site], images: int) -> None:
    """Warn where numbers of neurons are fitted to few samples: images x positions."""
    samples = {}
    for site in sites:
        for field in ("threshold", "bias", "initial_potential"):
            count = np.size(getattr(snn.neurons[site.name], field))
            if count > 1:  # one number for each channel or neuron
                samples[site.name, field] = images * math.prod(site.shape) // count
    few = {place: number for place, number in samples.items() if number < FEW}
    if not few:
        return
    names, fields = (list(dict.fromkeys(column)) for column in zip(*few, strict=True))
    others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    words = {"threshold": "thresholds", "bias": "biases"}
    fields = " and ".join(words.get(field, "potentials") for field in fields)
    warn(
        f"{fields} of site {names[0]!r}{others} are fitted "
        f"to {min(few.values())} samples each, and may not suit new images; "
        f"recommended: {FEW} calibration images or more, or one threshold per layer, "
        "e.g. snnjax.best('layer')"
    )
