"""Files that are written whole or not at all: beside the path, then renamed."""

import os
import secrets
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Replace ``path`` by a file of these bytes; nobody ever sees half of it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder) / "file", b"all of it")
    ...     (Path(folder) / "file").read_bytes()
    b'all of it'
    """
    # Short: the name of the path may be as long as names can be.
    beside = path.with_name(f".{secrets.token_hex(8)}")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
