"""Waiting: what is on its way between sites and does not fit in memory lies in files.

A file is unlinked as soon as it is made, so it vanishes with its array. Of an array
that is shared by devices each part has a file of its own, so that each process writes
and reads what its devices have.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding


@dataclasses.dataclass(frozen=True)
class InFiles:
    """An array that waits in files.

    Attributes:
        shape: of the whole array.
        sharding: how the devices share it; None if there is one device.
        parts: device -> its part.
    """

    shape: tuple[int, ...]
    sharding: NamedSharding | None
    parts: dict[Any, np.ndarray]


def set_aside(array: jax.Array) -> InFiles:
    """The same in files.

    Raises:
        OSError: they cannot be written.
    """
    parts = {part.device: _in_file(part.data) for part in array.addressable_shards}
    spread = array.sharding if isinstance(array.sharding, NamedSharding) else None
    return InFiles(array.shape, spread, parts)


def fetched(value: Any) -> Any:
    """A pytree with arrays in the place of those that wait."""
    return jax.tree.map(
        lambda leaf: _array(leaf) if isinstance(leaf, InFiles) else leaf, value
    )


class Waiting(Sequence):
    """Micro-batches of which some may wait, each fetched when it is looked at."""

    def __init__(self, values: Sequence[Any]):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i):
        return fetched(self.values[i])


def _array(waiting: InFiles) -> jax.Array:
    if waiting.sharding is None:  # bound to no device, as it was
        (part,) = waiting.parts.values()
        return jnp.asarray(part)
    local = [jax.device_put(part, device) for device, part in waiting.parts.items()]
    return jax.make_array_from_single_device_arrays(
        waiting.shape, waiting.sharding, local
    )


def _in_file(array: jax.Array) -> np.ndarray:
    host = np.ascontiguousarray(array).reshape(array.shape)
    if not host.size:
        return host
    try:
        with tempfile.TemporaryFile() as file:
            file.write(host.view(np.uint8).data)
            file.flush()  # a full disk is told here; through a map it would be fatal
            return np.memmap(file, host.dtype, "r", shape=host.shape)
    except OSError as error:
        raise OSError(
            f"streams that exceed memory_budget wait in {tempfile.gettempdir()}: "
            f"{error.strerror}. Set TMPDIR to a disk with more room, or allow more "
            "memory"
        ) from error
