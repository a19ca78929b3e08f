"""Waiting: what is on its way between sites and does not fit in memory lies in a file.

A `Shelf` is one file for all micro-batches of a site, since a process may not open
many. It is unlinked as soon as it is made, and vanishes with the last array that waits
in it. Each process keeps the parts of an array that its own devices have.
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


class Shelf:
    """A file without a name, with arrays one after the other.

    Raises:
        OSError: it cannot be made, or written.
    """

    def __init__(self):
        with _told():
            self.file = tempfile.TemporaryFile()
        self.end = 0
        weakref.finalize(self, self.file.close)

    def put(self, array: jax.Array) -> "Piece":
        host = np.ascontiguousarray(array).reshape(array.shape)
        piece = Piece(self, self.end, host.dtype, host.shape)
        self.end += host.nbytes
        with _told():
            self.file.seek(piece.offset)
            self.file.write(_bytes(host))
            self.file.flush()  # a full disk is told here
        return piece


class Piece(NamedTuple):
    """An array, or the part of it that a device has, on a shelf."""

    shelf: Shelf
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        host = np.empty(self.shape, self.dtype)
        self.shelf.file.seek(self.offset)
        if self.shelf.file.readinto(_bytes(host)) != host.nbytes:
            raise OSError("a temporary file of snnjax has become shorter")
        return host


@dataclasses.dataclass(frozen=True)
class OnShelf:
    """An array that waits.

    Attributes:
        shape: of the whole array.
        sharding: how the devices share it; None if there is one device.
        parts: device -> its part.
    """

    shape: tuple[int, ...]
    sharding: NamedSharding | None
    parts: dict[Any, Piece]


def set_aside(value: Any, shelf: Shelf | None) -> Any:
    """A pytree whose arrays wait on the shelf; the value itself if there is none."""

    def put(array: jax.Array) -> OnShelf:
        assert shelf is not None
        parts = {p.device: shelf.put(p.data) for p in array.addressable_shards}
        spread = array.sharding if isinstance(array.sharding, NamedSharding) else None
        return OnShelf(array.shape, spread, parts)

    return value if shelf is None else jax.tree.map(put, value)


def fetched(value: Any) -> Any:
    """A pytree with arrays in the place of those that wait."""
    return jax.tree.map(
        lambda leaf: _array(leaf) if isinstance(leaf, OnShelf) else leaf, value
    )


class Waiting(Sequence):
    """Micro-batches of which some may wait, each fetched when it is looked at."""

    def __init__(self, values: Sequence[Any]):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i):
        return fetched(self.values[i])


def _array(waiting: OnShelf) -> jax.Array:
    if waiting.sharding is None:  # bound to no device, as it was
        (part,) = waiting.parts.values()
        return jnp.asarray(part.read())
    local = [jax.device_put(p.read(), device) for device, p in waiting.parts.items()]
    return jax.make_array_from_single_device_arrays(
        waiting.shape, waiting.sharding, local
    )


def _bytes(host: np.ndarray) -> memoryview:
    return host.reshape(-1).view(np.uint8).data


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"streams that exceed memory_budget wait in {tempfile.gettempdir()}: "
            f"{error.strerror}. Set TMPDIR to a disk with more room, or allow more "
            "memory"
        ) from error
