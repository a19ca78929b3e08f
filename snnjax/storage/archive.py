"""The bytes of a file: a card, pytrees and a program in the safetensors format.

    header: card, structure (JSON) and the sha256 of everything; then arrays, program

Nothing is unpickled. The sha256 detects damage; it does not say who wrote the file.
Format: https://github.com/huggingface/safetensors
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from snnjax import _files
from snnjax._version import __version__
from snnjax.storage.structure import Leaves, read_leaf, store

FORMAT = 3  # the only one that this version reads and writes
PROGRAM = "program"  # name of the program's array; all others begin with a part


def write(
    path: Path, card: dict[str, Any], parts: Mapping[str, Any], code: bytes
) -> None:
    """Write a file, whole or not at all.

    Args:
        path: of the file.
        card: facts that JSON can hold.
        parts: pytrees by name.
        code: the program; empty if there is none.
    """
    arrays = {PROGRAM: np.frombuffer(code, np.uint8)} if code else {}
    entries = [store(name, tree, arrays) for name, tree in parts.items()]
    texts = {"card": json.dumps(card), "structure": json.dumps(entries)}
    data = {name: array.tobytes() for name, array in arrays.items()}
    texts["sha256"] = _digest(texts, data)
    _files.write(path, safetensors().numpy.save(arrays, texts))


def read(path: Path) -> tuple[dict[str, Any], list[Leaves], bytes]:
    """Card, leaves of each part and program of a file, after a check of its sha256.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or of another format.
    """
    library = safetensors()
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}; give the path that snnjax.save returned"
        )
    raw = path.read_bytes()
    try:
        data = {name: entry["data"] for name, entry in library.deserialize(raw)}
        length = int.from_bytes(raw[:8], "little")
        texts = json.loads(raw[8 : 8 + length])["__metadata__"]
        card = json.loads(texts["card"])
        version, writer = card["format"], card["versions"]["snnjax"]
    except Exception as error:  # damaged bytes can cause an error of any class
        raise ValueError(
            f"{path} is no file of snnjax.save, or is damaged or cut short "
            f"({error!r}). Fetch the file again, or save the SNN again"
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version} of snnjax {writer}, and this snnjax "
            f"{__version__} reads format {FORMAT}: load the file with the version that "
            "wrote it, or convert and save the network again"
        )
    digest = _digest(texts, data)
    if digest != texts.get("sha256"):
        raise ValueError(
            f"{path} is damaged: the sha256 of its contents is {digest}, and the file "
            f"says {texts.get('sha256')}. Fetch the file again"
        )
    with restoring(path):
        leaves = [
            [(entry["path"], read_leaf(entry, data)) for entry in entries]
            for entries in json.loads(texts["structure"])
        ]
    return card, leaves, data.get(PROGRAM, b"")


def _digest(texts: dict[str, str], data: dict[str, bytes]) -> str:
    """sha256 of card, structure and all arrays; the structure has their dtypes."""
    digest = hashlib.sha256()
    for text in (texts["card"], texts.get("structure", ""), *sorted(data)):
        digest.update(f"{len(text)} {text}".encode())
    for name in sorted(data):
        digest.update(data[name])
    return digest.hexdigest()


@contextlib.contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turns an error of any class into a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        text = error if isinstance(error, ValueError) else repr(error)
        raise ValueError(
            f"cannot restore the SNN of {path}: {text}. Pass like=, new params of the "
            "same network or an SNN of it; if that does not help, save the SNN again"
        ) from error


def safetensors() -> Any:
    """The package, imported here because only files need it."""
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            'files of spiking networks need safetensors: pip install "snnjax[share]"'
        ) from None
    return safetensors
