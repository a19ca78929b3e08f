"""Output folders: checked before the work starts; no file in them is ever half written.

A process that is killed while it writes leaves a hidden ``.NAME.tmp``, or a temporary
folder of orbax. The next run replaces the file and removes the folder.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax


def writable(folder: str | Path, option: str, needed: float = 0) -> Path:
    """The folder, created if it is missing.

    Args:
        folder: for files of a command.
        option: of the command line that names the folder, e.g. "--out", for messages.
        needed: estimated size of these files in bytes.

    Raises:
        ValueError: it cannot be created or written to, or has less free space.
    """
    out = Path(folder).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise ValueError(
            f"{option} {folder} cannot be written to ({error.strerror}); give another "
            f"folder by {option}"
        ) from None
    if free < needed:
        raise ValueError(
            f"{option} {folder} has {free / 1e6:.0f} MB free and about "
            f"{needed / 1e6:.0f} MB are needed; free some space, or give another "
            f"folder by {option}"
        )
    return out


def space(tree: Any, copies: int) -> float:
    """Bytes of so many copies of a pytree of arrays, and 20 MB for logs and tables."""
    arrays = jax.tree.leaves(tree)
    return copies * sum(leaf.size * leaf.dtype.itemsize for leaf in arrays) + 20e6


def write(path: Path, content: str | bytes) -> None:
    """Write a file as a whole: beside its place, then renamed.

    The temporary name is always the same, so that the next run replaces what a killed
    one has left.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder) / "a.txt", "all of it")
    ...     os.listdir(folder)
    ['a.txt']
    """
    data = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_bytes(data)
    os.replace(beside, path)


@contextlib.contextmanager
def reading(folder: Path, remedy: str) -> Iterator[None]:
    """A context for reading by orbax: any error of its readers becomes one message.

    Args:
        folder: the folder that they read.
        remedy: what to do if it is damaged.

    Raises:
        ValueError: they raised an error.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{folder} is damaged ({type(error).__name__}); {remedy}"
        ) from None


def remove_unfinished(folder: Path) -> None:
    """Remove what orbax was writing into this folder when a process was killed."""
    for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished, ignore_errors=True)
