"""A folder of fits: a conversion that was interrupted resumes from it.

A fit is small and slow to compute; spikes are large and follow from the fits. So the
folder holds one file per site and sweep. A second conversion reads these fits, computes
the spikes anew, and returns the same bits.
"""

import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from snnjax._folders import Folder, holds, read_arrays, restored, write_arrays
from snnjax.calibrators.checks import checked
from snnjax.calibrators.view import Calibrator, Fit, View

_WEIGHT = "weights/"


def stored_or_fitted(
    fits: Folder | None, sweep: int, calibrate: Calibrator, number: int
) -> Calibrator:
    """The calibrator of site ``number``; it reads a fit that the folder holds."""
    if fits is None:
        return calibrate
    file = fits.path / f"sweep_{sweep}_site_{number:03}.npz"

    def calibrate_or_read(view: View, fit: Fit) -> Fit:
        place = f"sweep {sweep}, site {view.site.name}"
        stored_fit = _read(file, place, view, fit)
        if stored_fit is not None:
            return stored_fit
        after = calibrate(view, fit)
        _write(fits, file.name, place, fit, after)
        return after

    return calibrate_or_read


def _read(file: Path, place: str, view: View, before: Fit) -> Fit | None:
    """The fit that a file holds; None if it does not exist or is damaged."""
    if not holds(file):
        return None
    try:
        arrays = read_arrays(file)
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
        weights[path] = restored(arrays[name], weights[path])
    return Fit(before.neurons._replace(**neuron), weights)


def _write(fits: Folder, name: str, place: str, before: Fit, after: Fit) -> None:
    fields = after.neurons._asdict().items()
    arrays = {field: leaf for field, leaf in fields if leaf is not None}
    arrays |= {
        _WEIGHT + path: weight
        for path, weight in after.weights.items()
        if weight is not before.weights[path]
    }
    write_arrays(fits, name, {**arrays, "place": np.array(place)})
