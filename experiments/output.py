"""Output folders: whether they can take the results, asked before the work starts."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax


def writable(folder: str | Path, given: str, needed: float = 0) -> Path:
    """The folder, made if need be.

    Args:
        folder: where files are to be written.
        given: how the user named it, for the message.
        needed: bytes, about.

    Raises:
        ValueError: it cannot be made or written to, or has less free space.
    """
    out = Path(folder).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise ValueError(
            f"{given} cannot be written to ({error.strerror}); give another place by "
            "--out"
        ) from None
    if free < needed:
        raise ValueError(
            f"{given} has {free / 1e6:.0f} MB free and about {needed / 1e6:.0f} MB are "
            "needed; make room, or give another place by --out"
        )
    return out


def write_whole(file: Path, text: str) -> None:
    """Write beside the file, then rename: nobody ever sees half of it."""
    beside = file.with_name(f".{file.name}.part")
    with beside.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    beside.replace(file)


def space(tree: Any, copies: int) -> float:
    """Bytes of so many copies of a pytree of arrays, and some for tables."""
    arrays = jax.tree.leaves(tree)
    return copies * sum(leaf.size * leaf.dtype.itemsize for leaf in arrays) + 20e6
