"""Checkpoints of a training: the state after an epoch and the log, in one file.

A folder belongs to one run. A file in it holds the options on which the results depend,
and digests of the run's inputs. A run with other options or inputs is refused, because
resuming it would silently mix two experiments.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.running.output_folder import write

State = TypeVar("State")

_RUN = "run.json"
_KEPT = 2  # checkpoints


def check_resumable(config: Any, inputs: Mapping[str, str] | None = None) -> None:
    """Raise if ``config.out`` holds a run that this one would not resume.

    Args:
        config: the options, a dataclass.
        inputs: name -> `digest` of everything that the run starts from; None: they are
            not known yet.
    """
    file = Path(config.out).expanduser() / _RUN
    if not file.exists():
        return
    old = json.loads(file.read_text())
    own_inputs = inputs or {}
    new = {**_options(config), **own_inputs}
    old = {**old["options"], **{n: old["inputs"].get(n) for n in own_inputs}}
    names = [n for n in {**old, **new} if old.get(n) != new.get(n)]
    if names:
        differences = (f"{n} {old.get(n)!r}, not {new.get(n)!r}" for n in names)
        raise ValueError(
            f"{file.parent} holds a run with {'; '.join(differences)}. Choose another "
            "--out, delete that folder, or give the options of that run"
        )


def claim(config: Any, inputs: Mapping[str, str] | None) -> None:
    """Note in ``config.out`` which run it holds, for `check_resumable`."""
    run = {"options": _options(config), "inputs": dict(inputs or {})}
    write(Path(config.out).expanduser() / _RUN, json.dumps(run, indent=1))


def _options(config: Any) -> dict[str, Any]:
    """The options on which results depend, as JSON gives them back."""
    options = dataclasses.asdict(config)
    for name in ("out", "data_dir", "mesh", "report", "again"):
        options.pop(name, None)
    return json.loads(json.dumps(options))


def save(out: Path, state: Any, log: list[dict]) -> None:
    """Write the state after the last epoch of the log, and delete the oldest."""
    buffer = io.BytesIO()
    np.savez(buffer, log=np.array(json.dumps(log)), **_numbered(state))
    (out / "checkpoints").mkdir(exist_ok=True)
    write(_file(out, len(log)), buffer.getvalue())
    _file(out, len(log) - _KEPT).unlink(missing_ok=True)


def restore(out: Path, state: State) -> tuple[State, list[dict]]:
    """The last saved state, in the structure of ``state``, and its log.

    Without a checkpoint, this state and an empty log.

    Raises:
        ValueError: the checkpoint is damaged, of another state or an older version.
    """
    folder = out / "checkpoints"
    epochs = [int(file.stem) for file in folder.glob("[0-9]*.npz")]
    if not epochs:
        if any(folder.glob("[0-9]*")):
            raise ValueError(
                f"{folder} holds checkpoints of an older version; choose another "
                "--out, or delete that folder"
            )
        return state, []
    file = _file(out, max(epochs))
    try:
        with file.open("rb") as stream, np.load(stream) as entries:
            arrays = dict(entries)
        log = json.loads(str(arrays.pop("log")))
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}); delete it, and the same "
            "command goes on from the checkpoint before it"
        ) from None
    target = _numbered(state)
    shapes = [{n: np.shape(x) for n, x in tree.items()} for tree in (arrays, target)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{file} holds a state of {len(arrays)} arrays, {_size(arrays)} numbers; "
            f"asked for are {len(target)} arrays, {_size(target)} numbers. Perhaps the "
            "source network has changed, or a version: choose another --out"
        )
    leaves = [jnp.asarray(arrays[name]) for name in target]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), log


def digest(tree: Any) -> str:
    """sha256 of all arrays of a pytree, in their order."""
    total = hashlib.sha256()
    for array in _numbered(tree).values():
        total.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def _file(out: Path, epoch: int) -> Path:
    return out / "checkpoints" / f"{epoch}.npz"


def _numbered(state: Any) -> dict[str, np.ndarray]:
    """The leaves by number, since names of sites may be no names of files."""
    leaves = jax.device_get(jax.tree.leaves(state))
    return {f"{i:04}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def _size(arrays: Mapping[str, Any]) -> int:
    return sum(map(np.size, arrays.values()))
