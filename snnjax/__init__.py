"""snnjax: trained JAX networks become spiking ones; spiking networks are trained."""

from snnjax.affine import ConversionError as ConversionError
from snnjax.affine import Problem as Problem
from snnjax.calibrate import Recipe as Recipe
from snnjax.calibrate import advanced as advanced
from snnjax.calibrate import best as best
from snnjax.calibrate import bias_shift as bias_shift
from snnjax.calibrate import light as light
from snnjax.calibrate import max_activation as max_activation
from snnjax.calibrate import percentile as percentile
from snnjax.capture import sites as sites
from snnjax.convert import convert as convert
from snnjax.network import clipped_relu as clipped_relu
from snnjax.simulate import SNN as SNN
from snnjax.simulate import init as init
from snnjax.simulate import latency as latency
from snnjax.simulate import spiking as spiking

__version__ = "0.1.0"
