"""Conversions that go on after a kill: every site's fit is kept in a folder.

A fit is small and takes long to find; the spikes are large and follow from the fits. So
only fits are kept, and a conversion that starts again carries the streams over the
sites that it knows without fitting them: the same SNN, bit for bit.
"""

import functools
import hashlib
import inspect
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax.calibrate import Calibrator, Fit, View

_CLAIM = "conversion.json"
_WEIGHT = "weights/"


class Kept(NamedTuple):
    """A folder of fits; None as the folder keeps nothing.

    Attributes:
        folder: where they lie, one file for each site of each sweep.
        writes: whether this process is the one that writes them.
    """

    folder: Path | None
    writes: bool = True


def keep(folder: str | os.PathLike | None, **identity: Any) -> Kept:
    """Open a folder for the fits of one conversion, or go on with what it holds.

    Args:
        folder: made if it does not exist; None keeps nothing.
        identity: what makes the conversion what it is; any pytrees, arrays and
            functions among them.

    Raises:
        ValueError: the folder holds another conversion, or files of something else;
            inside a transformation.
        OSError: it cannot be written to.
    """
    if folder is None:
        return Kept(None)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(identity)):
        raise ValueError(
            "folder keeps numbers, and inside jit (or another transformation) there "
            "are none yet: convert outside, or leave folder out"
        )
    path, claim = Path(folder).expanduser(), Path(folder).expanduser() / _CLAIM
    identity = {name: _digest(value) for name, value in identity.items()}
    kept = Kept(path, jax.process_index() == 0)
    if claim.exists():
        found = json.loads(claim.read_text())
        differing = [n for n in identity if found.get(n) != identity[n]]
        if differing:
            raise ValueError(
                f"{path} holds the fits of another conversion: other "
                f"{', '.join(differing)}. Give another folder, or delete this one"
            )
        return kept
    path.mkdir(parents=True, exist_ok=True)
    foreign = sorted(f.name for f in path.iterdir() if not f.name.startswith("."))
    if foreign:
        raise ValueError(
            f"{path} is no folder of fits: it holds {foreign[0]!r}. Give an empty one "
            "or one that does not exist"
        )
    if kept.writes:
        text = json.dumps(identity, indent=1) + "\n"
        _replace(claim, lambda file: file.write(text.encode()))
    return kept


def remembering(kept: Kept, sweep: int, calibrate: Calibrator, site: int) -> Calibrator:
    """The calibrator, but a fit that the folder holds is taken from there."""
    if kept.folder is None:
        return calibrate
    file = kept.folder / f"sweep_{sweep}_site_{site:03}.npz"

    def remembered(view: View, fit: Fit) -> Fit:
        if file.exists():
            return _read(file, fit)
        found = calibrate(view, fit)
        if kept.writes:
            _write(file, fit, found)
        return found

    return remembered


def _read(file: Path, before: Fit) -> Fit:
    with np.load(file) as found:
        arrays = {name: jnp.asarray(found[name]) for name in found.files}
    neuron = {name: arrays[name] for name in _fields(before)}
    weights = {p: arrays.get(_WEIGHT + p, w) for p, w in before.weights.items()}
    return Fit(before.neuron._replace(**neuron), weights)


def _write(file: Path, before: Fit, after: Fit) -> None:
    arrays = {name: getattr(after.neuron, name) for name in _fields(after)}
    arrays |= {
        _WEIGHT + path: weight
        for path, weight in after.weights.items()
        if weight is not before.weights[path]
    }
    arrays = jax.device_get(arrays)
    _replace(file, lambda opened: np.savez(opened, **arrays))


def _fields(fit: Fit) -> list[str]:
    return [name for name, leaf in fit.neuron._asdict().items() if leaf is not None]


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(_describe(value)).encode()).hexdigest()[:16]


def _describe(value: Any) -> Any:
    """The same for equal values, in another process too; a function is its name and
    what it closes over, so that another option of a recipe makes another conversion.
    """
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return value.shape, str(value.dtype)  # no process can read all of it
    if isinstance(value, jax.Array | np.ndarray):
        array = np.ascontiguousarray(value)
        return array.shape, str(array.dtype), hashlib.sha256(array).hexdigest()
    if isinstance(value, functools.partial):
        return [_describe(v) for v in (value.func, value.args, value.keywords)]
    if isinstance(value, dict):
        return [(key, _describe(value[key])) for key in value]
    if isinstance(value, tuple | list):
        return [_describe(item) for item in value]
    if callable(value):
        function = inspect.unwrap(value)
        cells = getattr(function, "__closure__", None) or ()
        name = getattr(function, "__qualname__", type(function).__qualname__)
        return name, [_describe(cell.cell_contents) for cell in cells]
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _replace(path: Path, write) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
