"""snnjax turns a trained JAX network into a spiking one without changing its code.

A spiking network is an ordinary JAX function with other activations. The words:

T, steps            time steps of one inference
site                a place in the network where neurons fire, named by its path
current             input of a site at one step: the pre-activation, bias included
threshold           V_th, scalar or per channel; a spike of level k carries k V_th
levels              (low, high), the whole numbers that a spike may be: (0, 1) binary,
                    (-1, 1) signed, (0, n) and (-n, n) graded
potential           v, the membrane potential; v(0) is the initial potential
offset              of an encoder: levels lie around it; it is taken from each current
                    and added to each output
charge              potential that does not come from the input, as v(0)
leak                factor on v before integration: 1 is IF, below 1 is LIF
reset               after a spike: "subtract" V_th (soft) or "zero" v (hard)
firing rate         spikes per neuron and step
pace                mean output as the spikes suggest it while they still come
surrogate           the function whose derivative replaces the step's
temperature         b of Dspike, the steepness of its surrogate
recipe              a composition of calibrators, in one sweep or more
calibrator          a pure function (View, Fit) -> Fit: what is fitted at a site
view                a site as a calibrator sees it: activations, outputs, currents
code                what a spike is worth at each step: rate coding, or digits
wait                steps that each layer integrates before it may fire
stage               the equations between two firing sites; its segment is the work
                    without its place, which equal layers share
execution           how the machine computes the same numbers: by_step, by_layer, ...
stream              values with a time axis, [T, B, ...]
T, B, H, W, C       axes: time, batch, height, width, channel; N images in all

Below the names of this module:

calibrators         what recipes consist of, and what your own are written with
codes               rate coding, radix codes, weights of your own
neurons             models as values, and one site through time
surrogate           spike functions and their gradients
simulation          options of the executions
training            losses, which leaves train, Dspike's temperature
measures            rates, errors, operations, energy, NeuroBench's metrics
network             the sites of a function, and the function with another activation
sharding            devices that share a batch
storage, nir        files, and the format of other tools
"""

from snnjax import (
    calibrators,
    codes,
    measures,
    network,
    neurons,
    nir,
    sharding,
    simulation,
    storage,
    surrogate,
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
from snnjax.measures import accuracy, energy, measure
from snnjax.network import ConversionError, in_dtype, sites
from snnjax.neurons import integrate_and_fire, lif
from snnjax.nir import from_nir, to_nir
from snnjax.simulation import init, latency, spiking
from snnjax.snn import SNN
from snnjax.storage import load, save

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
    "clipped_relu",
    "codes",
    "convert",
    "encode",
    "energy",
    "from_nir",
    "in_dtype",
    "init",
    "integrate_and_fire",
    "latency",
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
    "quantized",
    "quantized_relu",
    "save",
    "sharding",
    "simulation",
    "sites",
    "spiking",
    "storage",
    "surrogate",
    "to_nir",
    "training",
]


def __dir__() -> list[str]:
    """Public names only."""
    return __all__
