"""snnjax: trained JAX networks become spiking ones; spiking networks are trained.

A spiking network is an ordinary JAX function with another activation. The words:

T, steps            time steps of one inference
site                a place where the ANN applies ReLU, named by its path
current             input to a site at one step: the pre-activation, bias included
threshold           V_th, scalar or per channel; a spike carries the value V_th
potential           v, the membrane's; v(0) is the initial potential
leak                factor on v before integration: 1 is IF, below 1 is LIF
reset               after a spike: "subtract" V_th (soft) or "zero" v (hard)
firing rate         fraction of steps with a spike
surrogate           the function whose derivative replaces the step's
temperature         b of Dspike, the steepness of its surrogate
recipe              a composition of calibrators
delay               steps that each layer waits, integrating, before it may fire
execution           how the machine computes the same numbers: by_step, by_layer, ...
T, B, H, W, C       axes: time, batch, height, width, channel; N images in all

The parts, each of which imports only those above it:

surrogate, neurons  spike functions and their gradients; IF and LIF
network             a function becomes equations, or is refused
simulation          `spiking`: equations and neurons, on one device or many
storage             an SNN as a file
conversion          `convert`: recipes, and the sweep that carries them out
measures            rates, errors, operations, energy
training            losses, and Dspike's temperature
nir                 SNNs of other tools
"""

from snnjax import surrogate
from snnjax._version import __version__
from snnjax.conversion import fits
from snnjax.conversion.calibrate import (
    correct_bias,
    correct_potential,
    half_charge,
    least_squares_threshold,
    max_threshold,
    percentile_threshold,
    postpone_charge,
    scale_threshold,
    shift_bias,
    streaming_only,
)
from snnjax.conversion.convert import convert
from snnjax.conversion.recipes import (
    Recipe,
    advanced,
    best,
    bias_shift,
    light,
    max_activation,
    percentile,
)
from snnjax.conversion.solve import least_squares_weights
from snnjax.conversion.view import Calibrator, Fit, View
from snnjax.conversion.weights import calibrate_weights
from snnjax.measures.costs import Energy, Joules, energy
from snnjax.measures.metrics import Measures, accuracy, measure, spike_trains
from snnjax.measures.neurobench import neurobench
from snnjax.network.affine import ConversionError, Problem
from snnjax.network.capture import in_dtype, sites, with_activation
from snnjax.network.equations import Site, Sites, clipped_relu, identity
from snnjax.neurons import Neuron, NeuronParams, integrate_and_fire, lif
from snnjax.nir import from_nir, to_nir
from snnjax.simulation.simulate import init, latency, spiking
from snnjax.simulation.snn import SNN
from snnjax.storage import Stored, load, save
from snnjax.surrogate import dspike, relaxed_dspike
from snnjax.training.differences import (
    Directions,
    finite_differences,
    random_differences,
)
from snnjax.training.losses import (
    check_gradients,
    mean_cross_entropy,
    membrane_readout,
    param_labels,
    tet,
)
from snnjax.training.temperature import (
    Alignment,
    Choice,
    alignment,
    choose_temperature,
    relaxed_gradient,
    temperatures,
    with_temperatures,
)

__all__ = [
    "__version__",
    "SNN",
    "Alignment",
    "Calibrator",
    "Choice",
    "ConversionError",
    "Directions",
    "Energy",
    "Fit",
    "Joules",
    "Measures",
    "Neuron",
    "NeuronParams",
    "Problem",
    "Recipe",
    "Site",
    "Sites",
    "Stored",
    "View",
    "accuracy",
    "advanced",
    "alignment",
    "best",
    "bias_shift",
    "calibrate_weights",
    "check_gradients",
    "choose_temperature",
    "clipped_relu",
    "convert",
    "correct_bias",
    "correct_potential",
    "dspike",
    "energy",
    "finite_differences",
    "fits",
    "from_nir",
    "half_charge",
    "identity",
    "in_dtype",
    "init",
    "integrate_and_fire",
    "latency",
    "least_squares_threshold",
    "least_squares_weights",
    "lif",
    "light",
    "load",
    "max_activation",
    "max_threshold",
    "mean_cross_entropy",
    "measure",
    "membrane_readout",
    "neurobench",
    "param_labels",
    "percentile",
    "percentile_threshold",
    "postpone_charge",
    "random_differences",
    "relaxed_dspike",
    "relaxed_gradient",
    "save",
    "scale_threshold",
    "shift_bias",
    "sites",
    "spike_trains",
    "spiking",
    "streaming_only",
    "surrogate",
    "temperatures",
    "tet",
    "to_nir",
    "with_activation",
    "with_temperatures",
]
