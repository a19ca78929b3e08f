"""Networks: the sites of a function, and the function with another activation.

A network is data, a list of equations and its sites (``equations.py``, ``sites.py``).
``capture/`` makes it of a function. ``evaluate.py`` runs it with a rule at every site,
``increments.py`` computes operators in time, and ``stages.py`` cuts a network at its
sites.
"""

from snnjax.network.capture.capture import in_dtype, sites, with_activation
from snnjax.network.capture.check import ConversionError, Problem
from snnjax.network.evaluate import identity
from snnjax.network.sites import Site, Sites

__all__ = [
    "ConversionError",
    "Problem",
    "Site",
    "Sites",
    "identity",
    "in_dtype",
    "sites",
    "with_activation",
]
