"""A spiking network as one file: `save` and `load` (``files.py``).

``archive.py`` writes and reads the bytes, ``tree.py`` describes a pytree in JSON and
``models.py`` a neuron model. ``program.py`` stores the spiking function, so that a file
runs without the network's code.
"""

from typing import Any

from snnjax.storage.files import Stored, load, save

__all__ = ["Stored", "load", "save"]


def __getattr__(name: str) -> Any:  # until the next release
    if name == "renew":
        raise AttributeError(
            "snnjax.storage.renew is gone: load the SNN and save it again, by "
            "save(path, load(path, like=params).snn, fn=fn, x=x)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
