"""The bytes of a file: a card, arrays by name and a program, as safetensors.

    header: card (JSON) and the sha256 of everything; then arrays, program

Nothing is unpickled. The sha256 detects damage; it does not say who wrote the file.
Format: https://github.com/huggingface/safetensors
"""

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import check_file
from snnjax._version import __version__

SUFFIX = ".safetensors"
FORMAT = 4  # the only one that this version reads and writes
_PROGRAM = "program"  # name of the program's bytes; those of arrays are paths
_ABANDONED = 3600  # seconds after which nobody is still writing a file

# Types as safetensors spells them -> as NumPy and ml_dtypes do.
_DTYPES = {
    "BOOL": "bool",
    "C64": "complex64",
    "BF16": "bfloat16",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def write(
    path: Path, card: dict[str, Any], leaves: dict[str, Any], code: bytes
) -> None:
    """Write a file whole or not at all; Python numbers stand in the card already."""
    arrays = {}
    key_kinds = {}  # name of a random key -> its kind, "threefry2x32" as a rule
    for name, leaf in leaves.items():
        if type(leaf) in (bool, int, float):
            continue
        if _is_key(leaf):
            # NumPy knows no typed keys, so that a file holds their bits.
            key_kinds[name] = str(jax.random.key_impl(leaf))
            arrays[name] = _as_numpy(name, jax.random.key_data(leaf))
        else:
            arrays[name] = _as_numpy(name, leaf)
    if code:
        arrays[_PROGRAM] = np.frombuffer(code, np.uint8)
    card_text = json.dumps({**card, "keys": key_kinds})
    header = {"card": card_text, "sha256": _digest(card_text, arrays)}
    data = safetensors().numpy.save(arrays, header)
    _replace(path, data)


def _is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed random key, which NumPy does not know."""
    is_array = isinstance(leaf, jax.Array)
    return is_array and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_numpy(name: str, leaf: Any) -> np.ndarray:
    """A leaf as an array that a file can hold: contiguous, in this machine's order."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise ValueError(
            f"{name} is a {type(leaf).__name__}; allowed: arrays and Python numbers. "
            "Keep anything else in fn, e.g. by eqx.partition(model, eqx.is_array)"
        )
    array = np.asarray(leaf, order="C")
    native_dtype = array.dtype.newbyteorder("=")
    array = array.astype(native_dtype, copy=False)
    allowed_dtypes = _DTYPES.values()
    if array.dtype.name not in allowed_dtypes:
        allowed = ", ".join(allowed_dtypes)
        raise ValueError(f"{name} has dtype {array.dtype}; allowed: {allowed}")
    return array


def _replace(path: Path, data: bytes) -> None:
    """Write beside the path, then rename: no reader sees half of a file.

    A process that is killed while it writes leaves a hidden file behind, which a later
    write to the same path removes.
    """
    # The hidden file has a short name: that of the path may be as long as names can be.
    path_digest = hashlib.sha256(path.name.encode()).hexdigest()
    prefix = f".{path_digest[:8]}_"
    _remove_abandoned(path.parent, prefix)
    suffix = secrets.token_hex(4)  # two processes may write at the same time
    unfinished = path.with_name(f"{prefix}{suffix}.unfinished")
    try:
        with open(unfinished, "xb") as file:
            file.write(data)
            # The bytes are on the disk before the path names them.
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        text = (
            f"{error.strerror or error}: cannot write the {len(data)} bytes of {path}. "
            "Free space on its disk, or give another path; a file that was there is "
            "unchanged"
        )
        # The class of an OSError follows from its number.
        raise OSError(error.errno, text) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove the hidden files of writes that were killed; recent ones may still run."""
    for file in folder.glob(f"{prefix}*.unfinished"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            age = time.time() - file.stat().st_mtime
            if age >= _ABANDONED:
                file.unlink()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Card, arrays and program (empty: none) of a file, if its sha256 is right."""
    library = safetensors()
    check_file(path, SUFFIX, "the path that snnjax.save returned")
    raw = path.read_bytes()
    try:
        entries = library.deserialize(raw)
        header = _header(raw)
        card = json.loads(header["card"])
        version = card["format"]
        writer = card["versions"]["snnjax"]
    except Exception as error:  # damaged bytes can cause an error of any class
        raise ValueError(
            f"{path} is no file of snnjax.save, or is damaged or cut short "
            f"({error!r}). Fetch the file again, or save the SNN again"
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version} of snnjax {writer}, and this snnjax "
            f"{__version__} reads format {FORMAT}. Convert and save the network again; "
            "or load the file with the version that wrote it, or take its arrays by "
            "safetensors.numpy.load_file"
        )
    with restoring(path):
        arrays = {name: _from_bytes(entry) for name, entry in entries}
    digest = _digest(header["card"], arrays)
    if digest != header.get("sha256"):
        raise ValueError(
            f"{path} is damaged: the sha256 of its contents is {digest}, and the file "
            f"says {header.get('sha256')}. Fetch the file again"
        )
    with restoring(path):
        no_program = np.zeros(0, np.uint8)
        code = arrays.pop(_PROGRAM, no_program).tobytes()
        leaves = {}
        for name, array in arrays.items():
            leaves[name] = _as_jax(array)
        # Random keys are in the file as their bits, and get their kinds back.
        for name, kind in card.pop("keys").items():
            bits = leaves[name]
            leaves[name] = jax.random.wrap_key_data(bits, impl=kind)
    return card, leaves, code


def _header(raw: bytes) -> dict[str, str]:
    """The texts in the header of a file: 8 bytes with its length, then JSON."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    return header["__metadata__"]


def _from_bytes(entry: dict[str, Any]) -> np.ndarray:
    """The array of an entry, without a copy of its bytes."""
    dtype = _DTYPES[entry["dtype"]]
    numbers = np.frombuffer(entry["data"], dtype)
    return numbers.reshape(entry["shape"])


def _as_jax(array: np.ndarray) -> Any:
    """An array of JAX, but of NumPy if JAX would cut its 64 bits."""
    dtype_in_jax = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype_in_jax != array.dtype:
        return array
    return jax.device_put(array)


def _digest(card: str, arrays: dict[str, np.ndarray]) -> str:
    """sha256 of the card and of all arrays with their names, types and shapes."""
    digest = hashlib.sha256(card.encode())
    for name, array in sorted(arrays.items()):
        description = f"{name} {array.dtype.name} {array.shape}"
        digest.update(description.encode())
        digest.update(array.tobytes())
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
