"""A spiking network as one file: `save` and `load` (``files.py``).

``structure.py`` writes a pytree as JSON and arrays; ``program.py`` stores the spiking
function itself, so that a file runs without the network's code.
"""

from snnjax.storage.files import Stored, load, save

__all__ = ["Stored", "load", "save"]
