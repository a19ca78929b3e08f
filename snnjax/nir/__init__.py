"""Spiking networks as graphs of NIR, the interchange format of neuromorphic tools.

`to_nir` (``writing.py``) applies a rule per primitive (``rules.py``; ``layer_rules.py``
for products and pools) to a captured network. Each variable is a sum of scaled outputs
of nodes (``nodes.py``) and a constant (``offsets.py``), with its elements in some order
(``orders.py``); ``layers.py`` makes matrices and convolutions.
`from_nir` (``reading.py``) turns a graph into a JAX function.
"""

from snnjax.nir.reading import from_nir
from snnjax.nir.writing import to_nir

__all__ = ["from_nir", "to_nir"]
