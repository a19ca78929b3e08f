"""Spiking networks as graphs of NIR, which other neuromorphic tools read, and back.

`to_nir` (``writing.py``) walks a captured network with a rule per primitive
(``rules.py``); a variable is a sum of scaled outputs of nodes (``nodes.py``,
``layers.py``). `from_nir` (``reading.py``) makes a JAX function of a graph.
"""

from snnjax.nir.reading import from_nir
from snnjax.nir.writing import to_nir

__all__ = ["from_nir", "to_nir"]
