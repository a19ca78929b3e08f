"""Measures of a spiking network: what it does and what it costs.

``metrics.py``: accuracy, `measure`, spikes; ``errors.py``: the parts of a site's error;
``cautions.py``: warnings where neurons hardly fire or hardly stop;
``operations.py``: what spikes cause; ``costs.py``: energy; ``neurobench.py``: the
counts under NeuroBench's names.
"""

from snnjax.measures.costs import (
    ENERGY_PER_AC,
    ENERGY_PER_MAC,
    Energy,
    Joules,
    access_energy,
    energy,
    energy_on,
)
from snnjax.measures.errors import SiteMeasures
from snnjax.measures.metrics import Measures, accuracy, measure, spike_trains
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
    "energy_on",
    "measure",
    "neurobench",
    "spike_trains",
]
