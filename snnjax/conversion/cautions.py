"""Cautions of a conversion: what will work, and may not be what was meant.

Each is shown once, at the user's line.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import warn
from snnjax._text import counted
from snnjax.calibrators.corrections import FEW
from snnjax.codes import Code
from snnjax.network.equations import Network, spread_out
from snnjax.network.sites import Site
from snnjax.neurons.by_site import models_in
from snnjax.neurons.models import NeuronParams
from snnjax.snn import SNN

# A squared error of the outputs, over their size, beyond which they mean little.
_LOST = 0.5


def warn_of_digits(code: Code, models: Any, steps: int) -> None:
    """Warn if neurons cannot send all multiples of the last digit, or float32 them."""
    for model in models_in(models):
        values = model.levels[1] * code.reach(steps) / code.finest(steps)
        if values > 2**24:
            warn(
                f"under {code!r}, a neuron tells {values:.2g} values apart in "
                f"{counted(steps, 'step')}, and float32 {2**24:.2g}: rounding errors "
                "become spikes; recommended: fewer steps"
            )
        if code.has_gaps(model.levels, model.dead_zone, steps):
            usual_zone = code.dead_zone(code.levels)
            remedy = (
                f"the levels {code.levels} and a dead zone of {usual_zone:.3g}, or a "
                "smaller base"
            )
            # Weights of the user's may fall so fast that no usual neuron follows them.
            if code.has_gaps(code.levels, usual_zone, steps):
                remedy = (
                    "weights that fall more slowly, levels that reach further, or a "
                    "smaller dead zone"
                )
            warn(
                f"with the levels {model.levels} and a dead zone of "
                f"{model.dead_zone:.3g}, {code!r} leaves gaps between the values that "
                f"a neuron can send; recommended: {remedy}"
            )


def warn_of_equal_images(leaves: Sequence[jax.Array]) -> None:
    """Warn if images are all zero, or equal to one another, so that nothing varies.

    Args:
        leaves: the arrays of x, [N, ...] each.
    """
    are_zero = True
    are_equal = True
    for leaf in leaves:
        # Of images that devices share, this process looks at its own.
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        images = np.concatenate(shards)
        are_zero &= not images.any()
        are_equal &= len(images) > 1 and bool((images == images[0]).all())
    if are_zero:
        problem = "all zero"
    elif are_equal:
        problem = "all equal"
    else:
        return
    warn(
        f"the calibration images are {problem}, so the recipe is fitted to a single "
        "input. Give images that the network was trained on, normalized in the same "
        "way"
    )


def warn_of_fresh_thresholds(fresh: Mapping[str, NeuronParams], snn: SNN) -> None:
    """Warn where no calibrator has changed the threshold of a fresh neuron."""
    unfitted = []
    for name, neurons in fresh.items():
        if snn.neurons[name].threshold is neurons.threshold:
            unfitted.append(name)
    if unfitted:
        warn(
            f"no calibrator of the recipe fits the thresholds of {', '.join(unfitted)}:"
            " they stay as they are. Begin a recipe with one that does, e.g. "
            "snnjax.calibrators.least_squares_threshold()"
        )


def warn_of_lost_outputs(error: float, wait: int) -> None:
    """Warn if a short wait leaves outputs that have little to do with the ANN's."""
    if error > _LOST:
        warn(
            f"with a wait of {wait} the squared error of the outputs is {error:.2g} of "
            "their size; recommended: a longer wait, or none given, which measures it"
        )


def warn_of_unknown_error(error: float) -> None:
    """Warn that the squared error of the outputs is not finite, so nothing is known."""
    warn(
        f"the squared error of the outputs is {error:g}, since squares exceed "
        f"{np.finfo(np.float32).max:.2g}, the largest float32. Thresholds and the wait "
        "are chosen without it; recommended: outputs and activations below 1e18, "
        "by smaller parameters"
    )


def warn_of_equal_activations(network: Network) -> None:
    """Warn if the function asks whether two activations are equal.

    Each is decoded with a rounding error of its own, so two that are equal in the ANN
    may differ: ``where(w == w.max(), x, 0)`` then has no maximum at all.
    """
    for eq in spread_out(network.equations):
        operands = set(eq.variables)
        if eq.name not in ("eq", "ne") or len(operands) < 2:  # x != x asks for NaN
            continue
        dtypes = [network.avals[variable].dtype for variable in operands]
        are_floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes)
        if are_floats and operands <= network.dependent:
            place = f" in {eq.path!r}" if eq.path else ""
            warn(
                f"fn asks{place} whether two activations are equal ({eq.name}), and an "
                "SNN decodes each with an error of its own, so that equal ones may "
                "differ; recommended: compare indices, e.g. jnp.argmax, or ask for >="
            )
            return


def warn_of_few_samples(snn: SNN, sites: Sequence[Site], image_count: int) -> None:
    """Warn where numbers of neurons are fitted to few samples: images x positions."""
    words = {
        "threshold": "thresholds",
        "bias": "biases",
        "initial_potential": "potentials",
    }
    site_names = []
    fitted_words = []
    sample_counts = []
    for site in sites:
        for field, word in words.items():
            numbers = np.size(getattr(snn.neurons[site.name], field))
            samples = image_count * math.prod(site.shape) // numbers
            # A single number of a whole layer has samples enough.
            if numbers > 1 and samples < FEW:
                site_names.append(site.name)
                fitted_words.append(word)
                sample_counts.append(samples)
    if not sample_counts:
        return
    site_names = list(dict.fromkeys(site_names))
    fitted_words = list(dict.fromkeys(fitted_words))
    place = f"site {site_names[0]!r}"
    if len(site_names) > 1:
        place += f" (and {len(site_names) - 1} more)"
    warn(
        f"{' and '.join(fitted_words)} of {place} are fitted "
        f"to {counted(min(sample_counts), 'sample')} each, and may not suit new "
        f"images; recommended: {FEW} calibration images or more, or one threshold per "
        "layer and nothing else, "
        "snnjax.Recipe([snnjax.calibrators.least_squares_threshold('layer')])"
    )
