"""Measures of a spiking network: what it does and what it costs.

``metrics.py``: accuracy, rates, errors, counts; ``operations.py``: operations that a
spike causes; ``costs.py``: energy; ``neurobench.py``: counts under NeuroBench's names.
"""

from snnjax.measures.costs import (
    ENERGY_PER_AC,
    ENERGY_PER_MAC,
    Energy,
    Joules,
    access_energy,
    energy,
)
from snnjax.measures.metrics import (
    Measures,
    SiteMeasures,
    accuracy,
    measure,
    spike_trains,
)
from snnjax.measures.neurobench import neurobench

__all__ = [
    "ENERGY_PER_AC",
    "ENERGY_PER_MAC",
    "Energy",
    "Joules",
    "Measures",
    "SiteMeasures",
    "access_energy",
    "accuracy",
    "energy",
    "measure",
    "neurobench",
    "spike_trains",
]
