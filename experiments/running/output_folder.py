"""Output folders: checked before the work starts, with files written atomically.

A process that is killed while it writes leaves a hidden ``.NAME.tmp``, which the next
run replaces.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np


def writable(folder: str | Path, option: str, size: float = 0) -> Path:
    """The folder, created if it is missing; see `check_writable`."""
    check_writable(folder, option, size)
    out = Path(folder).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    return out


def check_writable(folder: str | Path, option: str, size: float = 0) -> None:
    """Raise where a folder cannot be written to; nothing is left there.

    Args:
        folder: folder for the files of a command; it may be missing.
        option: command-line option of the folder, such as "--out", for messages.
        size: estimated size of these files in bytes.

    Raises:
        ValueError: it cannot be created or written to, or has less free space.
    """
    out = Path(folder).expanduser()
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        raise ValueError(
            f"{option} {folder} cannot be written to ({error.strerror}); give another "
            f"folder by {option}"
        ) from None
    if free < size:
        raise ValueError(
            f"{option} {folder} has {free / 1e6:.0f} MB free and about "
            f"{size / 1e6:.0f} MB are needed; free some space, or give another "
            f"folder by {option}"
        )


def space(tree: Any, copies: int) -> float:
    """Bytes of copies of a pytree of arrays, plus 20 MB for logs and tables."""
    return copies * sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + 20e6


def digest(tree: Any) -> str:
    """sha256 of all arrays of a pytree, in their order."""
    total = hashlib.sha256()
    for leaf in jax.device_get(jax.tree.leaves(tree)):
        array = np.asarray(leaf)
        total.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def write(path: Path, content: str | bytes) -> None:
    """Write a file atomically: to a temporary file, which is then renamed.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder) / "a.txt", "all of it")
    ...     os.listdir(folder)
    ['a.txt']
    """
    data = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_bytes(data)
    os.replace(beside, path)
