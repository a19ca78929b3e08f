"""A captured network as data, and its interpreter.

``equations.py`` and ``sites.py`` are the data, ``evaluate.py`` runs it with a rule at
every site, ``increments.py`` computes operators in time, and ``stages.py`` cuts a
network at its sites. `snnjax.capture` makes a network of a function.
"""

from snnjax.network.evaluate import identity
from snnjax.network.sites import Site, Sites

__all__ = ["Site", "Sites", "identity"]
