"""From a trained network to an SNN: `snnjax.convert` and its recipes.

``recipes.py`` chains calibrators, ``convert.py`` checks and begins, ``engine`` carries
all images from site to site.
"""

from snnjax.conversion.convert import convert
from snnjax.conversion.recipes import (
    BestOf,
    Recipe,
    advanced,
    best,
    best_of,
    bias_shift,
    light,
    max_activation,
    percentile,
    quantized,
)

__all__ = [
    "BestOf",
    "Recipe",
    "advanced",
    "best",
    "best_of",
    "bias_shift",
    "convert",
    "light",
    "max_activation",
    "percentile",
    "quantized",
]
