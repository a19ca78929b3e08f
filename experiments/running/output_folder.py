"""Output folders: checked before the work starts; no file in them is ever half written.

A process that is killed while it writes leaves a hidden ``.NAME.tmp``, or a folder of
orbax, behind. The next run replaces the one and removes the other.
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
        folder: where files are to be written.
        option: that the user names the folder by, e.g. "--out", for the message.
        needed: bytes, about.

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
            f"place by {option}"
        ) from None
    if free < needed:
        raise ValueError(
            f"{option} {folder} has {free / 1e6:.0f} MB free and about "
            f"{needed / 1e6:.0f} MB are needed; make room, or give another place by "
            f"{option}"
        )
    return out


def space(tree: Any, copies: int) -> float:
    """Bytes of so many copies of a pytree of arrays, with some for tables."""
    arrays = jax.tree.leaves(tree)
    return copies * sum(leaf.size * leaf.dtype.itemsize for leaf in arrays) + 20e6


def write(path: Path, content: str | bytes) -> None:
    """Write a file as a whole: beside its place, then renamed.

    The name beside it is always the same, so that what a kill leaves is replaced.

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
    """For reading by orbax: damage, whatever its readers raise, is one message.

    Args:
        folder: that is read.
        remedy: what to do if it is damaged.
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
