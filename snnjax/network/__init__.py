"""From a function to equations: what conversion understands of a network.

``capture.py`` traces a function by ``jaxprs.py`` and checks it by ``affine.py``;
``axes.py`` follows batch and channels; ``equations.py`` and ``sites.py`` are the result
as data, which ``evaluate.py`` runs and ``stages.py`` cuts; ``connections.py`` says
which site feeds which.
"""

from snnjax.network.capture import in_dtype, sites, with_activation
from snnjax.network.check import ConversionError, Problem
from snnjax.network.connections import connections
from snnjax.network.evaluate import identity
from snnjax.network.sites import Site, Sites

__all__ = [
    "ConversionError",
    "Problem",
    "Site",
    "Sites",
    "connections",
    "identity",
    "in_dtype",
    "sites",
    "with_activation",
]
