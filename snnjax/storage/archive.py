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

from snnjax._version import __version__

FORMAT = 4  # the only one that this version reads and writes
_PROGRAM = "program"  # name of the program's bytes; those of arrays are paths
_OLD = 3600  # seconds after which nobody is still writing a file

# Types as safetensors spells them -> as NumPy and ml_dtypes do.
_DTYPES = {
    **{"BOOL": "bool", "C64": "complex64", "BF16": "bfloat16"},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


def write(
    path: Path, card: dict[str, Any], leaves: dict[str, Any], code: bytes
) -> None:
    """Write a file whole or not at all; Python numbers stand in the card already."""
    keys = {n: str(jax.random.key_impl(a)) for n, a in leaves.items() if _is_key(a)}
    arrays = {
        name: _as_numpy(name, jax.random.key_data(leaf) if name in keys else leaf)
        for name, leaf in leaves.items()
        if type(leaf) not in (bool, int, float)
    }
    if code:
        arrays[_PROGRAM] = np.frombuffer(code, np.uint8)
    text = json.dumps({**card, "keys": keys})
    texts = {"card": text, "sha256": _digest(text, arrays)}
    _replace(path, safetensors().numpy.save(arrays, texts))


def _is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed random key, which NumPy does not know."""
    is_array = isinstance(leaf, jax.Array)
    return is_array and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_numpy(name: str, leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise ValueError(
            f"{name} is a {type(leaf).__name__}; allowed: arrays and Python numbers. "
            "Keep anything else in fn, e.g. by eqx.partition(model, eqx.is_array)"
        )
    array = np.asarray(leaf, order="C")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.name not in _DTYPES.values():
        allowed = ", ".join(_DTYPES.values())
        raise ValueError(f"{name} has dtype {array.dtype}; allowed: {allowed}")
    return array


def _replace(path: Path, data: bytes) -> None:
    """Write beside the path, then rename: no reader sees half of a file.

    A process that is killed while it writes leaves a hidden file behind, which a later
    write to the same path removes.
    """
    # Short: the name of the path may be as long as names can be.
    prefix = f".{hashlib.sha256(path.name.encode()).hexdigest()[:8]}_"
    for file in path.parent.glob(f"{prefix}*.unfinished"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - file.stat().st_mtime >= _OLD:
                file.unlink()
    beside = path.with_name(f"{prefix}{secrets.token_hex(4)}.unfinished")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Card, arrays and program (empty: none) of a file, if its sha256 is right."""
    library = safetensors()
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}; give the path that snnjax.save returned"
        )
    raw = path.read_bytes()
    try:
        entries = library.deserialize(raw)
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
            f"{__version__} reads format {FORMAT}. Convert and save the network again; "
            "or load the file with the version that wrote it, or take its arrays by "
            "safetensors.numpy.load_file"
        )
    with restoring(path):
        arrays = {name: _from_bytes(entry) for name, entry in entries}
    digest = _digest(texts["card"], arrays)
    if digest != texts.get("sha256"):
        raise ValueError(
            f"{path} is damaged: the sha256 of its contents is {digest}, and the file "
            f"says {texts.get('sha256')}. Fetch the file again"
        )
    with restoring(path):
        code = arrays.pop(_PROGRAM, np.zeros(0, np.uint8)).tobytes()
        leaves = {name: _as_jax(array) for name, array in arrays.items()}
        for name, kind in card.pop("keys").items():
            leaves[name] = jax.random.wrap_key_data(leaves[name], impl=kind)
    return card, leaves, code


def _from_bytes(entry: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _as_jax(array: np.ndarray) -> Any:
    """An array of JAX, but of NumPy if JAX would cut its 64 bits."""
    is_whole = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
    return jnp.asarray(array) if is_whole else array


def _digest(card: str, arrays: dict[str, np.ndarray]) -> str:
    """sha256 of the card and of all arrays with their names, types and shapes."""
    digest = hashlib.sha256(card.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
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
