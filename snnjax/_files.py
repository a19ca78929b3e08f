"""Files that are written whole or not at all: beside the path, then renamed."""

import hashlib
import os
import secrets
import time
from pathlib import Path

_SUFFIX = ".unfinished"
_OLD = 3600  # seconds after which nobody is still writing a file


def write(path: Path, data: bytes) -> None:
    """Replace ``path`` by a file of these bytes; no reader sees half of it.

    A process that is killed while it writes leaves a hidden file behind, which a later
    write to the same path removes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder) / "file", b"all of it")
    ...     (Path(folder) / "file").read_bytes()
    b'all of it'
    """
    # Short: the name of the path may be as long as names can be.
    prefix = f".{hashlib.sha256(path.name.encode()).hexdigest()[:8]}_"
    remove_unfinished(path.parent, prefix)
    beside = path.with_name(f"{prefix}{secrets.token_hex(4)}{_SUFFIX}")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def remove_unfinished(folder: Path, prefix: str = ".", age: float = _OLD) -> None:
    """Remove what killed processes left behind, at least ``age`` seconds ago."""
    for file in folder.glob(f"{prefix}*{_SUFFIX}"):
        try:
            if time.time() - file.stat().st_mtime >= age:
                file.unlink()
        except FileNotFoundError:  # another process was faster
            continue
