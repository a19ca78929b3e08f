"""snnjax turns a trained JAX network into a spiking one without changing its code.

A spiking network is an ordinary JAX function with other activations. The words:

T, steps            time steps of one inference
site                a place in the network where neurons fire, named by its path
current             input of a site at one step: the pre-activation, bias included
threshold           V_th, scalar or per channel; a spike of level k carries k V_th
levels              (low, high), the whole numbers that a spike may be: (0, 1) binary,
                    (-1, 1) signed, (0, n) and (-n, n) graded
potential           v, the membrane potential; v(0) is the initial potential
offset              constant of an encoder: subtracted from each current and added to
                    each output, so that levels lie around it
charge              potential that does not come from the input, such as v(0)
leak                factor on v before integration: 1 is IF, below 1 is LIF
reset               after a spike: "subtract" V_th (soft) or "zero" v (hard)
firing rate         spikes per neuron and step
pace                average over t of the running mean output
surrogate           function whose derivative replaces the derivative of the step
temperature         b of Dspike, the steepness of its surrogate
recipe              one or more sweeps over the sites, each a list of calibrators
calibrator          a pure function (View, Fit) -> Fit that fits one site
view                what a calibrator reads at a site: activations, outputs, currents
code                what a spike is worth at each step: rate coding, or digits
wait                steps that each layer integrates before it may fire
stage               the equations between two firing sites; stages with equal
                    equations share one segment, which is compiled once
execution           order in which the same numbers are computed: by_step, by_layer, ...
stream              values with a time axis, [T, B, ...]
T, B, H, W, C       axes: time, batch, height, width, channel; N images in all

The modules:

calibrators         the parts of recipes, and the tools to write your own
codes               rate coding, radix codes, weights of your own
neurons             neuron models, and one site through time
surrogate           spike functions and their surrogate gradients
simulation          options of the executions
training            fine-tuning, losses, optimizers, Dspike's temperature
measures            rates, errors, operations, energy, NeuroBench's metrics
network             the sites of a function, and the function with other activations
layers              the network that a chip sees: populations and linear maps
integers            the same in whole numbers, computed bit for bit
chips               what a chip can run, and a report about a network
sharding            devices that share a batch
storage, nir        files, and the format of other tools
torch               PyTorch modules as functions
"""

from snnjax import (
    calibrators,
    chips,
    codes,
    integers,
    layers,
    measures,
    network,
    neurons,
    nir,
    sharding,
    simulation,
    storage,
    surrogate,
    torch,
    training,
)
from snnjax._version import __version__
from snnjax.activations import clipped_relu, encode, quantized_relu
from snnjax.conversion import (
    Recipe,
    advanced,
    best,
    best_of,
    bias_shift,
    convert,
    light,
    max_activation,
    percentile,
    quantized,
)
from snnjax.integers import quantize
from snnjax.measures import accuracy, energy, measure
from snnjax.network import ConversionError, in_dtype, sites
from snnjax.neurons import integrate_and_fire, lif
from snnjax.nir import from_nir, to_nir
from snnjax.simulation import init, latency, spiking
from snnjax.snn import SNN
from snnjax.storage import load, save
from snnjax.sweep import sweep

__all__ = [
    "SNN",
    "ConversionError",
    "Recipe",
    "__version__",
    "accuracy",
    "advanced",
    "best",
    "best_of",
    "bias_shift",
    "calibrators",
    "chips",
    "clipped_relu",
    "codes",
    "convert",
    "encode",
    "energy",
    "from_nir",
    "in_dtype",
    "init",
    "integers",
    "integrate_and_fire",
    "latency",
    "layers",
    "lif",
    "light",
    "load",
    "max_activation",
    "measure",
    "measures",
    "network",
    "neurons",
    "nir",
    "percentile",
    "quantize",
    "quantized",
    "quantized_relu",
    "save",
    "sharding",
    "simulation",
    "sites",
    "spiking",
    "storage",
    "sweep",
    "surrogate",
    "to_nir",
    "torch",
    "training",
]


def __dir__() -> list[str]:
    """Public names only."""
    return __all__
