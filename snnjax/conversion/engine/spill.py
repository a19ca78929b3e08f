"""Spill to disk: activations and spikes beyond memory_budget go to temporary files.

A `SpillFile` holds all micro-batches of a site, since a process may not open many
files. It is unlinked as soon as it is created, and vanishes with the last array in it.
Each process writes the parts of an array that its own devices have.
"""

import contextlib
import dataclasses
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding


class SpillFile:
    """A file without a name, with arrays one after the other.

    Raises:
        OSError: it cannot be created, or written.
    """

    def __init__(self):
        with _explained():
            self.file = tempfile.TemporaryFile()
        self.end = 0
        weakref.finalize(self, self.file.close)

    def append(self, array: jax.Array) -> "Piece":
        """Write an array behind the others."""
        host = np.ascontiguousarray(array).reshape(array.shape)
        piece = Piece(self, self.end, host.dtype, host.shape)
        self.end += host.nbytes
        with _explained():
            self.file.seek(piece.offset)
            self.file.write(_bytes(host))
            self.file.flush()  # so that a full disk is an error here
        return piece


class Piece(NamedTuple):
    """An array in a file, or the part of it that a device has."""

    spill: SpillFile
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The array."""
        host = np.empty(self.shape, self.dtype)
        self.spill.file.seek(self.offset)
        if self.spill.file.readinto(_bytes(host)) != host.nbytes:
            raise OSError("a temporary file of snnjax has become shorter")
        return host


@dataclasses.dataclass(frozen=True)
class Spilled:
    """An array on the disk.

    Attributes:
        shape: of the whole array.
        sharding: how the devices share it; None if there is one device.
        parts: device -> its part.
    """

    shape: tuple[int, ...]
    sharding: NamedSharding | None
    parts: dict[Any, Piece]


def spilled(value: Any, file: SpillFile | None) -> Any:
    """A pytree whose arrays lie in the file; the value itself if there is none."""

    def write(array: jax.Array) -> Spilled:
        assert file is not None
        parts = {p.device: file.append(p.data) for p in array.addressable_shards}
        spread = array.sharding if isinstance(array.sharding, NamedSharding) else None
        return Spilled(array.shape, spread, parts)

    return value if file is None else jax.tree.map(write, value)


def loaded(value: Any) -> Any:
    """A pytree with all of its arrays in memory."""
    return jax.tree.map(
        lambda leaf: _array(leaf) if isinstance(leaf, Spilled) else leaf, value
    )


class LoadedOnAccess(Sequence):
    """Micro-batches of which some may lie on the disk, each loaded when it is read."""

    def __init__(self, values: Sequence[Any]):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i):
        return loaded(self.values[i])


def _array(spilled: Spilled) -> jax.Array:
    if spilled.sharding is None:  # bound to no device, as it was
        (part,) = spilled.parts.values()
        return jnp.asarray(part.read())
    local = [jax.device_put(p.read(), device) for device, p in spilled.parts.items()]
    return jax.make_array_from_single_device_arrays(
        spilled.shape, spilled.sharding, local
    )


def _bytes(host: np.ndarray) -> memoryview:
    return host.reshape(-1).view(np.uint8).data


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            "streams that exceed memory_budget go to files in "
            f"{tempfile.gettempdir()}: {error.strerror}. Set TMPDIR to a disk with "
            "more room, or allow more memory"
        ) from error
