"""Folders of results: a call that was interrupted resumes from what its folder holds.

A folder belongs to one call. A file in it says what the results depend on, so that
those of another call are refused. Files are written whole or not at all (``_files.py``)
and by the first process; several processes need a folder that they share.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils

from snnjax import _files
from snnjax._version import __version__


class Folder(NamedTuple):
    """A folder of results.

    Attributes:
        path: of the folder.
        call: what it holds the results of, such as "conversion".
        identity: digests of what they depend on, by name.
    """

    path: Path
    call: str
    identity: dict[str, str]

    @property
    def identity_file(self) -> Path:
        """The file that holds the identity."""
        return self.path / f"{self.call}.json"


def open_folder(
    folder: str | os.PathLike | None,
    call: str,
    parts: Mapping[str, Any],
) -> Folder | None:
    """Open a folder for the results of one call; None: nothing is stored.

    Args:
        folder: created if it does not exist.
        call: such as "conversion".
        parts: what the results depend on, by name: pytrees of arrays, or values that
            are compared by their ``repr``.

    Raises:
        ValueError: the folder holds those of another call or other files; inside
            ``jit``.
        OSError: it cannot be written to.
    """
    if folder is None:
        return None
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise ValueError(
            f"folder is {folder!r}; allowed: the path of a folder, or None"
        )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(dict(parts))):
        raise ValueError(
            "folder= cannot be used inside jit (or another transformation), where "
            f"values are unknown. Call the {call} outside of it, or leave folder out"
        )
    if "versions" in parts:
        raise ValueError(
            "a part is named 'versions', which each folder compares by itself; give "
            "it another name"
        )
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(f"folder is {path}, a file; give a folder, or a new path")
    versions = {"versions": (__version__, jax.__version__)}
    identity = {name: digest(part) for name, part in {**parts, **versions}.items()}
    path.mkdir(parents=True, exist_ok=True)
    _files.remove_unfinished(path, age=0)
    opened = Folder(path, call, identity)
    _check_identity(opened)
    return opened


def digest(tree: Any) -> str:
    """16 hexadecimal digits of a pytree; equal values give equal digests.

    An array counts by its type, shape and numbers (without numbers if other processes
    hold a part of it), any other value by its ``repr`` without addresses.

    >>> digest({"w": jnp.zeros(2)}) == digest({"w": np.zeros(2, "f4")})
    True
    """
    leaves, structure = jax.tree.flatten(tree)
    total = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        if not isinstance(leaf, jax.Array | np.ndarray):
            total.update(re.sub(r" at 0x[0-9a-f]+", "", repr(leaf)).encode())
            continue
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        total.update(f"{leaf.dtype} {leaf.shape}".encode())
        if isinstance(leaf, np.ndarray) or leaf.is_fully_addressable:
            total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()[:16]


def _check_identity(folder: Folder) -> None:
    """Raise if the folder holds other files, or the results of another call."""
    path, call, identity = folder
    file = folder.identity_file
    if not file.exists():
        foreign = sorted(f.name for f in path.iterdir() if not f.name.startswith("."))
        if foreign:
            raise ValueError(
                f"{path} is not a folder of a {call}: it holds {foreign[0]!r}. Give an "
                "empty folder, or a new path"
            )
        return
    try:
        stored_identity = dict(json.loads(file.read_text()))
    except (ValueError, TypeError):
        raise ValueError(
            f"{file} is damaged, so it is unknown which {call} the folder belongs to; "
            "delete the folder, or give another one"
        ) from None
    names = {**identity, **stored_identity}
    other_names = [
        name for name in names if stored_identity.get(name) != identity.get(name)
    ]
    if other_names:
        raise ValueError(
            f"{path} holds the results of another {call}, with other "
            f"{', '.join(other_names)}. Give another folder, or delete this one"
        )


def holds(file: Path) -> bool:
    """Whether a file is there; all processes must see the same, and do the same."""
    exists = file.exists()
    if jax.process_count() == 1:
        return exists
    if bool(multihost_utils.broadcast_one_to_all(np.asarray(exists))) != exists:
        raise ValueError(
            f"only one of process 0 and process {jax.process_index()} sees the file "
            f"{file}; allowed: a folder on a disk that all processes share"
        )
    return exists


def write_arrays(folder: Folder, name: str, arrays: Mapping[str, Any]) -> None:
    """Write arrays to a file of the folder; other processes write nothing.

    The first file of a folder is that which says what the results depend on.
    """
    if jax.process_index() > 0:
        return
    if not folder.identity_file.exists():
        text = json.dumps(folder.identity, indent=1) + "\n"
        _files.write(folder.identity_file, text.encode())
    plain: dict[str, Any] = {key: _plain(value) for key, value in arrays.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **plain)
    _files.write(folder.path / name, buffer.getvalue())


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote; `restored` gives an array its type back."""
    with file.open("rb") as stream, np.load(stream) as entries:
        return {name: entries[name] for name in entries.files}


def restored(array: np.ndarray, like: jax.Array) -> jax.Array:
    """An array of a file, with the type and on the devices of the one it replaces."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        value = jax.random.wrap_key_data(
            jnp.asarray(array), impl=jax.random.key_impl(like)
        )
    else:
        value = jnp.asarray(array.view(like.dtype))
    on_mesh = isinstance(like.sharding, jax.sharding.NamedSharding)
    return jax.device_put(value, like.sharding) if on_mesh else value


def _plain(value: jax.Array | np.ndarray) -> np.ndarray:
    """What NumPy can store: bfloat16 by its bits, a random key by its data."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(jax.device_get(value))
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array
