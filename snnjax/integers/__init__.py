"""A network of whole numbers: what a digital chip computes, bit for bit.

`snnjax.quantize` makes it of `snnjax.layers`, where each receiver has its own weights:
``fitting.py`` fits one receiver, ``rounding.py`` has the mathematics of scales and
rounding. `run` (``exact.py``) computes the network; ``timing.py`` says what arrives
when.
"""

from snnjax.integers.exact import Trace, on_grid, outputs, run
from snnjax.integers.memory import Memory, memory
from snnjax.integers.quantize import quantize
from snnjax.integers.training import trainable, with_weights

__all__ = [
    "Memory",
    "Trace",
    "memory",
    "on_grid",
    "outputs",
    "quantize",
    "run",
    "trainable",
    "with_weights",
]
