"""Spiking networks as graphs of NIR, the interchange format of neuromorphic tools.

`to_nir` (``writing.py``) captures a network, lowers it to layers and neurons as plain
values (``lowering.py``, ``nodes.py``), and writes these as nodes of the package nir.
``rules.py`` has a rule per primitive, ``layers.py`` the layers, ``sums.py`` scales and
biases on their way into weights. `from_nir` (``reading.py``) makes a JAX function.
"""

from snnjax.nir.reading import from_nir
from snnjax.nir.writing import to_nir

__all__ = ["from_nir", "to_nir"]
