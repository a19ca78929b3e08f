"""A folder of fits: a conversion that was interrupted resumes from it.

A fit is small and slow to compute; spikes are large and follow from the fits. So the
folder holds one file per site and sweep. A second conversion reads these fits, computes
the spikes anew, and returns the same bits.
"""

import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils

from snnjax import _files
from snnjax._version import __version__
from snnjax.calibrators.checks import checked
from snnjax.calibrators.view import Calibrator, Fit, View

_IDENTITY = "conversion.json"
_WEIGHT = "weights/"


class FitsFolder(NamedTuple):
    """A folder of fits, and the digests of what they depend on, by name."""

    path: Path
    identity: dict[str, str]


def open_folder(
    folder: str | os.PathLike | None, parts: Mapping[str, Any]
) -> FitsFolder | None:
    """Open a folder for the fits of one conversion; None: nothing is stored.

    Args:
        folder: created if it does not exist.
        parts: what the fits depend on, by name: pytrees of arrays, or values that are
            compared by their ``repr``.

    Raises:
        ValueError: the folder holds another conversion or other files; inside ``jit``.
        OSError: it cannot be written to.
    """
    if folder is None:
        return None
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise ValueError(
            f"folder is {folder!r}; allowed: the path of a folder, or None"
        )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(dict(parts))):
        raise ValueError(
            "folder= cannot be used inside jit (or another transformation), where "
            "values are unknown. Convert outside of it, or leave folder out"
        )
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(f"folder is {path}, a file; give a folder, or a new path")
    versions = {"versions": (__version__, jax.__version__)}
    identity = {name: digest(part) for name, part in {**parts, **versions}.items()}
    path.mkdir(parents=True, exist_ok=True)
    _files.remove_unfinished(path, age=0)
    _check_identity(path, identity)
    return FitsFolder(path, identity)


def digest(tree: Any) -> str:
    """16 hexadecimal digits of a pytree; equal values give equal digests.

    An array counts by its type, shape and numbers (without numbers if other processes
    hold a part of it), any other value by its ``repr`` without addresses.

    >>> digest({"w": jnp.zeros(2)}) == digest({"w": np.zeros(2, "f4")})
    True
    """
    leaves, structure = jax.tree.flatten(tree)
    total = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        if not isinstance(leaf, jax.Array | np.ndarray):
            total.update(re.sub(r" at 0x[0-9a-f]+", "", repr(leaf)).encode())
            continue
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        total.update(f"{leaf.dtype} {leaf.shape}".encode())
        if isinstance(leaf, np.ndarray) or leaf.is_fully_addressable:
            total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()[:16]


def stored_or_fitted(
    fits: FitsFolder | None, sweep: int, calibrate: Calibrator, number: int
) -> Calibrator:
    """The calibrator of site ``number``; it reads a fit that the folder holds."""
    if fits is None:
        return calibrate
    file = fits.path / f"sweep_{sweep}_site_{number:03}.npz"

    def calibrate_or_read(view: View, fit: Fit) -> Fit:
        place = f"sweep {sweep}, site {view.site.name}"
        stored_fit = _read(file, place, view, fit)
        _check_same_disk(stored_fit is not None, file)
        if stored_fit is not None:
            return stored_fit
        after = calibrate(view, fit)
        if jax.process_index() == 0:
            _write_identity(fits)
            _write(file, place, fit, after)
        return after

    return calibrate_or_read


def _check_identity(path: Path, identity: dict[str, str]) -> None:
    """Raise if the folder holds other files, or fits of another conversion."""
    file = path / _IDENTITY
    if not file.exists():
        foreign = sorted(f.name for f in path.iterdir() if not f.name.startswith("."))
        if foreign:
            raise ValueError(
                f"{path} is not a folder of fits: it holds {foreign[0]!r}. Give an "
                "empty folder, or a new path"
            )
        return
    try:
        stored_identity = dict(json.loads(file.read_text()))
    except (ValueError, TypeError):
        raise ValueError(
            f"{file} is damaged, so it is unknown which conversion the fits belong to; "
            "delete the folder, or give another one"
        ) from None
    other_names = [
        name for name in identity if stored_identity.get(name) != identity[name]
    ]
    if other_names:
        raise ValueError(
            f"{path} holds the fits of another conversion, with other "
            f"{', '.join(other_names)}. Give another folder, or delete this one"
        )


def _write_identity(fits: FitsFolder) -> None:
    """Write which conversion the fits belong to, before the first of them."""
    if not (fits.path / _IDENTITY).exists():
        text = json.dumps(fits.identity, indent=1) + "\n"
        _files.write(fits.path / _IDENTITY, text.encode())


def _check_same_disk(exists: bool, file: Path) -> None:
    """Raise unless all processes see the file or none does: all must do the same."""
    if jax.process_count() == 1:
        return
    if bool(multihost_utils.broadcast_one_to_all(np.asarray(exists))) != exists:
        raise ValueError(
            f"only one of process 0 and process {jax.process_index()} sees the file "
            f"{file}; allowed: a folder on a disk that all processes share"
        )


def _read(file: Path, place: str, view: View, before: Fit) -> Fit | None:
    """The fit that a file holds; None if it does not exist or is damaged."""
    if not file.exists():
        return None
    try:
        with file.open("rb") as stream, np.load(stream) as entries:
            arrays = {name: entries[name] for name in entries.files}
        stored_place = str(arrays.pop("place"))
        if stored_place == place:
            return checked(view.site, before, _fit_of(arrays, before))
    except Exception as error:  # A damaged file may raise anything.
        warnings.warn(f"{file} cannot be read ({error}): fitted anew", stacklevel=2)
        return None
    raise ValueError(
        f"{file} holds the fit of {stored_place}; allowed: that of {place}. Files of "
        "this folder were renamed; delete the folder, or give another one"
    )


def _fit_of(arrays: dict[str, np.ndarray], before: Fit) -> Fit:
    """The fit before, with the arrays of a file."""
    neuron = {
        name: jnp.asarray(array)
        for name, array in arrays.items()
        if not name.startswith(_WEIGHT)
    }
    weights = dict(before.weights)
    for name in arrays.keys() - neuron.keys():
        path = name.removeprefix(_WEIGHT)
        # A file of NumPy cannot hold bfloat16: `_write` stores its bits.
        weights[path] = jnp.asarray(arrays[name].view(weights[path].dtype))
    return Fit(before.neurons._replace(**neuron), weights)


def _write(file: Path, place: str, before: Fit, after: Fit) -> None:
    fields = after.neurons._asdict().items()
    arrays = {name: leaf for name, leaf in fields if leaf is not None}
    arrays |= {
        _WEIGHT + path: weight
        for path, weight in after.weights.items()
        if weight is not before.weights[path]
    }
    on_host = {
        name: a.view(f"u{a.dtype.itemsize}") if a.dtype.kind == "V" else a
        for name, a in jax.device_get(arrays).items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, **on_host, place=np.array(place))
    _files.write(file, buffer.getvalue())
