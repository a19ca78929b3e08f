"""Output folders: checked before the work starts, with files written atomically.

A process that is killed while it writes leaves a hidden ``.NAME.tmp``, which the next
run replaces.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np


def writable(folder: str | Path, option: str) -> Path:
    """The folder, created if it is missing; see `check_writable`."""
    check_writable(folder, option)
    out = Path(folder).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    return out


def check_writable(folder: str | Path, option: str) -> None:
    """Raise where a folder, which may be missing, cannot be written to.

    Nothing is left there. The option of the command line is for the message.
    """
    out = Path(folder).expanduser()
    existing = out.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"{option} {folder} cannot be written to ({error.strerror}); give another "
            f"folder by {option}"
        ) from None


def digest(tree: Any, text: str = "") -> str:
    """sha256 of a text and of all arrays of a pytree, in their order."""
    total = hashlib.sha256(text.encode())
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
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
