"""From a function to a network: ``fn(params, x)`` becomes equations with sites.

``capture.py`` traces a function (``jaxprs.py``), recognizes its ReLUs, puts encoders
and operators in their places, names the sites and checks the result. ``facts.py`` holds
what these steps ask of a program; ``axes.py`` and ``batch.py`` follow channels and
examples. The result is the data of `snnjax.network`.
"""

from snnjax.capture.capture import in_dtype, sites, with_activation
from snnjax.capture.check import ConversionError, Problem
from snnjax.capture.connections import connections

__all__ = [
    "ConversionError",
    "Problem",
    "connections",
    "in_dtype",
    "sites",
    "with_activation",
]
