"""Spiking neurons: models as values, and one site of them through time.

``protocol.py``: what a model is; ``models.py``: IF and LIF; ``wrappers.py``: models
around them; ``fresh.py``: their fresh parameters;
``schedule.py``: a code as a schedule of thresholds; ``unroll.py``: T steps of a site,
or their closed form; ``by_site.py``: a model for every site; ``spike_trains.py``:
spikes as bits; ``gradients.py``: surrogates and resets; ``backward.py``: the way back
through T steps.
"""

from snnjax._ranges import Range
from snnjax.neurons.fresh import TimeConstants, Uniform
from snnjax.neurons.models import (
    IntegrateAndFire,
    NeuronParams,
    NeuronState,
    ResonateAndFire,
    ResonateParams,
    integrate_and_fire,
    lif,
)
from snnjax.neurons.protocol import Neuron
from snnjax.neurons.unroll import after_all_input, closed_form, unroll
from snnjax.neurons.wrappers import (
    Adaptive,
    AdaptiveParams,
    Recurrent,
    RecurrentParams,
    Synaptic,
    SynapticParams,
)

__all__ = [
    "Adaptive",
    "AdaptiveParams",
    "IntegrateAndFire",
    "Neuron",
    "NeuronParams",
    "NeuronState",
    "Range",
    "Recurrent",
    "RecurrentParams",
    "ResonateAndFire",
    "ResonateParams",
    "Synaptic",
    "SynapticParams",
    "TimeConstants",
    "Uniform",
    "after_all_input",
    "closed_form",
    "integrate_and_fire",
    "lif",
    "unroll",
]
