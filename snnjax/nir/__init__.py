"""Spiking networks as graphs of NIR, the interchange format of neuromorphic tools.

`to_nir` (``writing.py``) makes `snnjax.layers` of a network, and `from_layers` writes
layers, of floats or whole numbers, as nodes of the package nir. `to_layers`
(``reading.py``) reads such nodes as layers, and `from_nir` makes a function of these.
"""

from snnjax.nir.reading import from_nir, to_layers
from snnjax.nir.writing import from_layers, to_nir

__all__ = ["from_layers", "from_nir", "to_layers", "to_nir"]
