"""A spiking network as one file: `save` and `load` (``files.py``).

``archive.py`` writes and reads the bytes, ``tree.py`` describes a pytree in JSON and
``models.py`` a neuron model. ``program.py`` stores the spiking function, so that a file
runs without the network's code.
"""

from snnjax.storage.files import Stored, load, save

__all__ = ["Stored", "load", "save"]
