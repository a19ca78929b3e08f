"""A spiking network as one file: `save`, `load` and `renew` (``files.py``).

``archive.py`` writes and reads the bytes, ``structure.py`` describes a pytree in JSON,
``models.py`` a neuron model. ``program.py`` stores the spiking function, so that a file
runs without the network's code.
"""

from snnjax.storage.files import Stored, load, renew, save

__all__ = ["Stored", "load", "renew", "save"]
