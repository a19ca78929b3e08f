"""Conversions that go on after a kill: every site's fit is kept in a folder.

A fit is small and takes long to find; the spikes are large and follow from the fits. So
only fits are kept, and a conversion that starts again carries the streams over the
sites that it knows without fitting them: the same SNN, bit for bit.
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

from snnjax._version import __version__
from snnjax.conversion.checks import checked
from snnjax.conversion.digest import digest
from snnjax.conversion.view import Calibrator, Fit, View
from snnjax.network.equations import Site
from snnjax.storage import atomic

_CLAIM = "conversion.json"
_WEIGHT = "weights/"
_CHANGED = "changed"


class FitFolder(NamedTuple):
    """A folder of fits; with None in its place nothing is kept.

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
        identity: () -> what makes the conversion what it is, by name; pytrees, arrays
            and functions too. The versions count as well. Asked with a folder only.

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
    found = identity()
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(found)):
        raise ValueError(
            "folder keeps numbers, and inside jit (or another transformation) there "
            "are none yet: convert outside, or leave folder out"
        )

    found["versions"] = [__version__, jax.__version__]
    path = Path(folder).expanduser()
    kept = FitFolder(path, {name: digest(value) for name, value in found.items()})
    path.mkdir(parents=True, exist_ok=True)
    claim = path / _CLAIM
    if claim.exists():
        _check_claim(claim, kept.identity)
        return kept
    foreign = sorted(f.name for f in path.iterdir() if not f.name.startswith("."))
    if set(foreign) - {_CLAIM}:
        raise ValueError(
            f"{path} is no folder of fits: it holds {foreign[0]!r}. Give an empty one "
            "or one that does not exist"
        )
    return kept


def remembering(
    kept: FitFolder, sweep: int, calibrate: Calibrator, site: int
) -> Calibrator:
    """The calibrator, but a fit that the folder holds is taken from there."""
    if kept.folder is None:
        return calibrate
    file = kept.folder / f"sweep_{sweep}_site_{site:03}.npz"

    def remembered(view: View, fit: Fit) -> Fit:
        known = _read(file, view.site, fit)
        _check_same_disk(known is not None, file)
        if known is not None:
            return known
        found = calibrate(view, fit)
        if jax.process_index() == 0:
            _claim(kept)
            _write(file, fit, found)
        return found

    return remembered


def _check_claim(claim: Path, identity: dict[str, str]) -> None:
    try:
        found = dict(json.loads(claim.read_text()))
    except (ValueError, TypeError):
        raise ValueError(
            f"{claim} is damaged, so nobody knows which conversion the fits beside it "
            "belong to; delete the folder, or give another one"
        ) from None
    differing = [name for name in identity if found.get(name) != identity[name]]
    if differing:
        raise ValueError(
            f"{claim.parent} holds the fits of another conversion: other "
            f"{', '.join(differing)}. Give another folder, or delete this one"
        )


def _claim(kept: FitFolder) -> None:
    """Say whose fits they are, before the first one."""
    assert kept.folder is not None
    claim = kept.folder / _CLAIM
    if not claim.exists():
        text = json.dumps(kept.identity, indent=1) + "\n"
        atomic.write(claim, text.encode())


def _check_same_disk(known: bool, file: Path) -> None:
    """Raise unless all processes see the same, since they must do the same."""
    if jax.process_count() == 1:
        return
    if bool(multihost_utils.broadcast_one_to_all(np.asarray(known))) != known:
        raise ValueError(
            f"the first process and process {jax.process_index()} do not see the same "
            f"file {file}; folder must be on a disk that all processes share"
        )


def _read(file: Path, site: Site, before: Fit) -> Fit | None:
    if not file.exists():
        return None
    try:
        with file.open("rb") as opened, np.load(opened) as found:
            arrays = {name: found[name] for name in found.files}
        neuron = {name: jnp.asarray(arrays[name]) for name in _fields(before)}
        weights = dict(before.weights)
        for path in arrays[_CHANGED]:
            # numpy's files know no bfloat16: it was stored as whole numbers
            stored = arrays[_WEIGHT + path].view(weights[path].dtype)
            weights[str(path)] = jnp.asarray(stored)
        return checked(site, before, Fit(before.neuron._replace(**neuron), weights))
    except _DAMAGE as error:
        warnings.warn(f"{file} cannot be read ({error}): fitted anew", stacklevel=2)
        return None


# What a damaged file, or one of something else, may raise.
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
    arrays = {name: getattr(after.neuron, name) for name in _fields(after)}
    changed = [p for p, w in after.weights.items() if w is not before.weights[p]]
    arrays |= {_WEIGHT + path: after.weights[path] for path in changed}
    plain = {
        name: a.view(f"u{a.dtype.itemsize}") if a.dtype.kind == "V" else a
        for name, a in jax.device_get(arrays).items()
    }
    plain[_CHANGED] = np.array(changed, str)
    buffer = io.BytesIO()
    np.savez(buffer, **plain)
    atomic.write(file, buffer.getvalue())


def _fields(fit: Fit) -> list[str]:
    return [name for name, leaf in fit.neuron._asdict().items() if leaf is not None]
