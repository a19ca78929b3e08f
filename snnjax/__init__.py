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
rotation            an encoder sends x H and the next kernel is H W, with H H = 1
wait                steps that each layer integrates before it may fire
stage               the equations between two firing sites; stages with equal
                    equations share one segment, which is compiled once
execution           how the same numbers are computed: n steps at a time, closed form
stream              values with a time axis, [T, B, ...]
T, B, H, W, C       axes: time, batch, height, width, channel; N images in all

Three doors:

convert             conversion, calibrators: of a trained network (`convert`, `best`)
train               training: of an SNN, after a conversion or from `init`
deploy              whole numbers, chips, NIR; loaded when it is used

over one core:

codes               rate coding, radix codes, weights of your own
neurons             neuron models, and one site through time
surrogate           spike functions and their surrogate gradients
network             the sites of a function, and the function with other activations
simulation          options of the executions
measures            rates, errors, operations, energy, NeuroBench's metrics
storage             files
sharding            devices that share a batch
torch               PyTorch modules as functions
"""

import functools
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from snnjax import (
    calibrators,
    codes,
    measures,
    network,
    neurons,
    sharding,
    simulation,
    storage,
    surrogate,
    torch,
    training,
)
from snnjax._text import no_attribute
from snnjax._version import __version__
from snnjax.activations import clipped_relu, encode, quantized_relu
from snnjax.conversion.convert import convert
from snnjax.conversion.recipes import (
    Recipe,
    advanced,
    best,
    bias_shift,
    light,
    max_activation,
    percentile,
    quantized,
)
from snnjax.conversion.rotation import rotation
from snnjax.measures import accuracy, energy, measure
from snnjax.network import ConversionError, in_dtype, sites
from snnjax.neurons import integrate_and_fire, lif
from snnjax.simulation import init, latency, spiking
from snnjax.snn import SNN
from snnjax.storage import load, save
from snnjax.sweep import sweep

if TYPE_CHECKING:
    from snnjax import deploy

__all__ = [
    "SNN",
    "ConversionError",
    "Recipe",
    "__version__",
    "accuracy",
    "advanced",
    "best",
    "bias_shift",
    "calibrators",
    "clipped_relu",
    "codes",
    "convert",
    "deploy",
    "encode",
    "energy",
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
    "percentile",
    "quantized",
    "quantized_relu",
    "rotation",
    "save",
    "sharding",
    "simulation",
    "sites",
    "spiking",
    "storage",
    "sweep",
    "surrogate",
    "torch",
    "training",
]


if not TYPE_CHECKING:  # where it would hide names that do not exist

    def __getattr__(name: str) -> Any:
        """`snnjax.deploy`, which is loaded when it is used first."""
        if name == "deploy":
            return importlib.import_module("snnjax.deploy")
        names = list(__all__)
        if not name.startswith("_"):
            # A name may be in one of the modules, as `snnjax.codes.radix` is.
            for module_name in __all__:
                module = getattr(sys.modules[__name__], module_name)
                if isinstance(module, ModuleType):
                    names += [f"{module_name}.{public}" for public in module.__all__]
        no_attribute(__name__, names, name)

    def _suggest_names() -> None:
        """Answer an unknown name of a public module by the closest ones."""
        for name in __all__:
            module = globals().get(name)
            if isinstance(module, ModuleType):
                module.__getattr__ = functools.partial(
                    no_attribute, module.__name__, module.__all__
                )

    _suggest_names()


def __dir__() -> list[str]:
    """Public names only."""
    return __all__
