"""Networks: the sites of a function, and the function with another activation.

``capture/`` makes a network of a function. Here is the network as data, and its
interpreter: ``equations.py`` and ``sites.py`` are the data, ``evaluate.py`` runs it
with a rule at every site, ``increments.py`` computes operators in time, and
``stages.py`` cuts a network at its sites.
"""

# This file alone looks up, to capture/: users find in one place what belongs together.
from snnjax.capture.capture import in_dtype, sites, with_activation
from snnjax.capture.check import ConversionError, Problem
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
