"""Spiking networks as graphs of NIR, the interchange format of neuromorphic tools.

`to_nir` (``writing.py``) makes `snnjax.layers` of a network, with all thresholds 1, and
writes them as nodes of the package nir. `from_nir` (``reading.py``) makes layers of
such nodes, and of them a JAX function.
"""

from snnjax.nir.reading import from_nir
from snnjax.nir.writing import to_nir

__all__ = ["from_nir", "to_nir"]
