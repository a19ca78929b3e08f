"""Output folders: whether they can take the results, asked before the work starts."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax


def writable(folder: str | Path, given: str, needed: float = 0) -> Path:
    """The folder, made if need be.

    Args:
        folder: where files are to be written.
        given: option and value as the user gave them, for the message.
        needed: bytes, about.

    Raises:
        ValueError: it cannot be made or written to, or has less free space.
    """
    out, option = Path(folder).expanduser(), given.split()[0]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise ValueError(
            f"{given} cannot be written to ({error.strerror}); give another place by "
            f"{option}"
        ) from None
    if free < needed:
        raise ValueError(
            f"{given} has {free / 1e6:.0f} MB free and about {needed / 1e6:.0f} MB are "
            f"needed; make room, or give another place by {option}"
        )
    return out


def space(tree: Any, copies: int) -> float:
    """Bytes of so many copies of a pytree of arrays, and some for tables."""
    arrays = jax.tree.leaves(tree)
    return copies * sum(leaf.size * leaf.dtype.itemsize for leaf in arrays) + 20e6
