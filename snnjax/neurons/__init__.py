"""Spiking neurons: models as values, and one site of them through time.

``models.py``: IF and LIF; ``unroll.py``: T steps of a site, or their closed form;
``spike_trains.py``: spikes as bits.
"""

from snnjax.neurons.models import (
    IntegrateAndFire,
    Neuron,
    NeuronParams,
    NeuronState,
    WithSurrogate,
    integrate_and_fire,
    lif,
)
from snnjax.neurons.unroll import closed_form, mean_and_pace, mean_output, unroll

__all__ = [
    "IntegrateAndFire",
    "Neuron",
    "NeuronParams",
    "NeuronState",
    "WithSurrogate",
    "closed_form",
    "integrate_and_fire",
    "lif",
    "mean_and_pace",
    "mean_output",
    "unroll",
]
