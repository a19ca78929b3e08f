"""A folder of fits: a conversion that was killed goes on from them.

A fit is small and takes long to compute; the spikes are large and follow from the fits.
So a conversion stores fits only, and when it starts again it carries the streams over
the fitted sites without fitting them: the same SNN, bit for bit.
"""

import io
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable
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
from snnjax.conversion.resume.digest import digest
from snnjax.network.sites import Site

_CLAIM = "conversion.json"
_WEIGHT = "weights/"
_CHANGED = "changed"


class FitFolder(NamedTuple):
    """A folder of fits; without a folder nothing is stored.

    Attributes:
        folder: where they lie, one file for each site of each sweep.
        identity: what the conversion is made of: name -> digest.
    """

    folder: Path | None
    identity: dict[str, str]


def open_folder(
    folder: str | os.PathLike | None, identity: Callable[[], dict[str, Any]]
) -> FitFolder:
    """Open a folder for the fits of one conversion, or go on with what it holds.

    Args:
        folder: made if it does not exist; None keeps nothing.
        identity: () -> what the fits depend on, by name; pytrees, arrays and functions
            too. The versions count as well. It is called only if there is a folder.

    Raises:
        ValueError: the folder holds another conversion, or files of something else;
            inside a transformation.
        OSError: it cannot be written to.
    """
    if folder is None:
        return FitFolder(None, {})
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise ValueError(
            f"folder is {folder!r}; allowed: the path of a folder, or None"
        )
    parts = identity()
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(parts)):
        raise ValueError(
            "folder= cannot be used inside jit (or another transformation): values are "
            "unknown while tracing. Convert outside, or leave folder out"
        )
    parts["versions"] = [__version__, jax.__version__]
    path = Path(folder).expanduser()
    fits = FitFolder(path, {name: digest(value) for name, value in parts.items()})
    if path.exists() and not path.is_dir():
        raise ValueError(f"folder is {path}, a file; give a folder, or a new path")
    path.mkdir(parents=True, exist_ok=True)
    _files.remove_unfinished(path, age=0)
    claim = path / _CLAIM
    if claim.exists():
        _check_claim(claim, fits.identity)
        return fits
    foreign = sorted(f.name for f in path.iterdir() if not f.name.startswith("."))
    if foreign:
        raise ValueError(
            f"{path} is no folder of fits: it holds {foreign[0]!r}. Give an empty one "
            "or one that does not exist"
        )
    return fits


def remembering(
    fits: FitFolder, sweep: int, calibrate: Calibrator, site: int
) -> Calibrator:
    """The calibrator, but a fit that the folder holds is read from there."""
    if fits.folder is None:
        return calibrate
    file = fits.folder / f"sweep_{sweep}_site_{site:03}.npz"

    def remembered(view: View, fit: Fit) -> Fit:
        stored = _read(file, view.site, fit)
        _check_same_disk(stored is not None, file)
        if stored is not None:
            return stored
        fitted = calibrate(view, fit)
        if jax.process_index() == 0:
            _claim(fits)
            _write(file, fit, fitted)
        return fitted

    return remembered


def _check_claim(claim: Path, identity: dict[str, str]) -> None:
    try:
        stored = dict(json.loads(claim.read_text()))
    except (ValueError, TypeError):
        raise ValueError(
            f"{claim} is damaged, so the conversion of the fits beside it is "
            "unknown; delete the folder, or give another one"
        ) from None
    differing = [name for name in identity if stored.get(name) != identity[name]]
    if differing:
        raise ValueError(
            f"{claim.parent} holds the fits of another conversion: other "
            f"{', '.join(differing)}. Give another folder, or delete this one"
        )


def _claim(fits: FitFolder) -> None:
    """Write which conversion the fits belong to, before the first of them."""
    assert fits.folder is not None
    claim = fits.folder / _CLAIM
    if not claim.exists():
        text = json.dumps(fits.identity, indent=1) + "\n"
        _files.write(claim, text.encode())


def _check_same_disk(exists: bool, file: Path) -> None:
    """Raise unless the file exists for all processes or none: all must do the same."""
    if jax.process_count() == 1:
        return
    if bool(multihost_utils.broadcast_one_to_all(np.asarray(exists))) != exists:
        raise ValueError(
            f"the first process and process {jax.process_index()} do not see the same "
            f"file {file}; folder must be on a disk that all processes share"
        )


def _read(file: Path, site: Site, before: Fit) -> Fit | None:
    if not file.exists():
        return None
    if file.is_dir():
        raise ValueError(
            f"{file} is a folder, where the fit of a site belongs; delete it, or give "
            "another folder"
        )
    try:
        with file.open("rb") as opened, np.load(opened) as entries:
            arrays = {name: entries[name] for name in entries.files}
        # A calibrator may have added what a fresh neuron has not: an offset.
        added = [name for name in before.neurons._fields if name in arrays]
        names = dict.fromkeys([*_fields(before), *added])
        neuron = {name: jnp.asarray(arrays[name]) for name in names}
        weights = dict(before.weights)
        for path in arrays[_CHANGED]:
            # numpy's files know no bfloat16: it was stored as whole numbers
            stored = arrays[_WEIGHT + path].view(weights[path].dtype)
            weights[str(path)] = jnp.asarray(stored)
        return checked(site, before, Fit(before.neurons._replace(**neuron), weights))
    except _DAMAGE as error:
        warnings.warn(f"{file} cannot be read ({error}): fitted anew", stacklevel=2)
        return None


# Errors that a damaged file, or one of another kind, may raise.
_DAMAGE = (
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def _write(file: Path, before: Fit, after: Fit) -> None:
    arrays = {name: getattr(after.neurons, name) for name in _fields(after)}
    changed = [p for p, w in after.weights.items() if w is not before.weights[p]]
    arrays |= {_WEIGHT + path: after.weights[path] for path in changed}
    plain = {
        name: a.view(f"u{a.dtype.itemsize}") if a.dtype.kind == "V" else a
        for name, a in jax.device_get(arrays).items()
    }
    plain[_CHANGED] = np.array(changed, str)
    buffer = io.BytesIO()
    np.savez(buffer, **plain)
    _files.write(file, buffer.getvalue())


def _fields(fit: Fit) -> list[str]:
    return [name for name, leaf in fit.neurons._asdict().items() if leaf is not None]
