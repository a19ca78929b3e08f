"""Deploy: a spiking network as what a chip holds, and what a chip computes.

    fn, snn  --layers-->  Layers  --quantize-->  Layers of whole numbers

`Layers` are populations of neurons and the linear maps between them. `layers` makes
them of a function and its SNN, `quantize` rounds them, and ``integers/`` computes what
they are on a chip, bit for bit (`run`). Chips are values such as `speck()`, and
`report` says what one of them can hold. `to_nir` and `from_nir` exchange layers with
other tools, `to_akida` and `to_sinabs` give their makers' packages models, and
`as_function` makes an ordinary JAX function of them again. `to_onnx` writes a file for
ONNX Runtime.

`import snnjax` does not load this package; its first use does. Nothing outside of it
imports it.
"""

import functools
from typing import TYPE_CHECKING

from snnjax._text import no_attribute
from snnjax.deploy.chips.akida import akida1
from snnjax.deploy.chips.chip import Chip
from snnjax.deploy.chips.profiles import (
    catalyst_n1,
    loihi1,
    loihi2,
    spinnaker2,
    xylo,
)
from snnjax.deploy.chips.report import Report, Row, report
from snnjax.deploy.chips.rules import Finding, Limit, Rule
from snnjax.deploy.chips.speck import speck
from snnjax.deploy.integers.exact import Trace, on_grid, outputs, run
from snnjax.deploy.integers.quantize import Memory, memory, quantize
from snnjax.deploy.integers.timing import Timing, timing
from snnjax.deploy.integers.training import trainable, with_weights
from snnjax.deploy.lowering.function import as_function
from snnjax.deploy.lowering.layers import layers
from snnjax.deploy.lowering.values import (
    Arithmetic,
    Connection,
    Convolution,
    Dense,
    Flatten,
    Input,
    Layers,
    Leak,
    Output,
    Population,
    Scale,
    SumPool,
)
from snnjax.deploy.nir.reading import from_nir
from snnjax.deploy.nir.writing import to_nir
from snnjax.deploy.tools.akida import to_akida
from snnjax.deploy.tools.onnx import to_onnx
from snnjax.deploy.tools.sinabs import to_sinabs

__all__ = [
    "Arithmetic",
    "Chip",
    "Connection",
    "Convolution",
    "Dense",
    "Finding",
    "Flatten",
    "Input",
    "Layers",
    "Leak",
    "Limit",
    "Memory",
    "Output",
    "Population",
    "Report",
    "Row",
    "Rule",
    "Scale",
    "SumPool",
    "Timing",
    "Trace",
    "akida1",
    "as_function",
    "catalyst_n1",
    "from_nir",
    "layers",
    "loihi1",
    "loihi2",
    "memory",
    "on_grid",
    "outputs",
    "quantize",
    "report",
    "run",
    "speck",
    "spinnaker2",
    "timing",
    "to_akida",
    "to_nir",
    "to_onnx",
    "to_sinabs",
    "trainable",
    "with_weights",
    "xylo",
]


if not TYPE_CHECKING:  # where it would hide names that do not exist
    # An unknown name is answered by the closest ones: those of chips have a number.
    __getattr__ = functools.partial(no_attribute, __name__, __all__)


def __dir__() -> list[str]:
    """Public names only."""
    return __all__
