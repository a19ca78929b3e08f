"""Checkpoints of a training, by orbax: the state after an epoch, and its run.

A folder belongs to one run. Besides the arrays, a checkpoint holds the options on which
they depend, digests of the run's inputs, and the log of its epochs. A run with other
options or inputs is refused, because resuming it would silently mix two experiments.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.running import devices

State = TypeVar("State")


class Run(NamedTuple):
    """The description of a run in its checkpoint, as JSON.

    Attributes:
        options: name -> value.
        inputs: name -> `digest` of everything that the run started from.
        log: a line for each epoch.
    """

    options: dict[str, Any]
    inputs: dict[str, str]
    log: list[dict[str, Any]]


def run_of(config: Any, inputs: Mapping[str, str] | None, log: list[dict]) -> Run:
    """The run of a configuration, with the options on which its results depend."""
    options = dataclasses.asdict(config)
    for name in ("out", "data_dir", "mesh", "report", "again"):
        options.pop(name, None)
    return Run(json.loads(json.dumps(options)), dict(inputs or {}), log)


def manager_of(out: Path) -> ocp.CheckpointManager:
    """A manager of this process alone.

    All processes have the same state, and the first one writes it."""
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=str(process),
    )
    return ocp.CheckpointManager(
        out / "checkpoints",
        options=ocp.CheckpointManagerOptions(
            max_to_keep=2,
            create=False,
            cleanup_tmp_directories=devices.first(),
            multiprocessing_options=alone,
        ),
        item_handlers={
            "state": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            "run": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        },
    )


def save(manager: ocp.CheckpointManager, epoch: int, state: Any, run: Run) -> None:
    """Write the state after an epoch, in the background."""
    items = {
        "state": ocp.args.StandardSave(_numbered(state)),
        "run": ocp.args.JsonSave(run._asdict()),
    }
    manager.save(epoch, args=ocp.args.Composite(**items))


def restore(
    manager: ocp.CheckpointManager, epoch: int, state: State, run: Run
) -> tuple[State, list[dict]]:
    """The last saved state, in the structure of ``state``, and the log up to it.

    Raises:
        ValueError: the checkpoint is damaged, or of another run.
    """
    log = _check(manager, epoch, run)
    target = _numbered(state)
    arrays = _read(manager, epoch, state=ocp.args.StandardRestore())["state"]
    shapes = [{n: np.shape(x) for n, x in tree.items()} for tree in (arrays, target)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{manager.directory} holds a state of {len(arrays)} arrays, "
            f"{_size(arrays)} numbers; asked for are {len(target)} arrays, "
            f"{_size(target)} numbers. Perhaps the source network has changed, or a "
            "version: choose another --out"
        )
    leaves = [jnp.asarray(arrays[name]) for name in target]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), log


def check_resumable(config: Any, inputs: Mapping[str, str] | None = None) -> None:
    """Raise if ``config.out`` holds a run that `fit` would refuse to resume.

    Args:
        config: as for `fit`.
        inputs: as for `fit`; None: they are not known yet.
    """
    out = Path(config.out).expanduser().resolve()
    if (out / "checkpoints").is_dir():
        with manager_of(out) as manager:
            if epoch := manager.latest_step():
                _check(manager, epoch, run_of(config, inputs, []))


def digest(tree: Any) -> str:
    """sha256 of all arrays of a pytree, in their order."""
    total = hashlib.sha256()
    for array in _numbered(tree).values():
        total.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def _check(manager: ocp.CheckpointManager, epoch: int, run: Run) -> list[dict]:
    """The log of the run that is there; raises if it is another run."""
    old_run = Run(**_read(manager, epoch, run=ocp.args.JsonRestore())["run"])
    old = {**old_run.options, **{n: old_run.inputs.get(n) for n in run.inputs}}
    new = {**run.options, **run.inputs}
    names = [n for n in {**old, **new} if old.get(n) != new.get(n)]
    if names:
        differences = (f"{n} {old.get(n)!r}, not {new.get(n)!r}" for n in names)
        raise ValueError(
            f"{manager.directory} holds a run with {'; '.join(differences)}. Choose "
            "another --out, delete that folder, or give the options of that run"
        )
    return old_run.log


def _read(manager: ocp.CheckpointManager, epoch: int, **items: Any) -> Any:
    """Items of a checkpoint; any error of orbax's readers becomes one message."""
    try:
        return manager.restore(epoch, args=ocp.args.Composite(**items))
    except Exception as error:
        raise ValueError(
            f"{manager.directory / str(epoch)} is damaged ({type(error).__name__}); "
            "delete it, and the same command goes on from the checkpoint before it"
        ) from None


def _numbered(state: Any) -> dict[str, np.ndarray]:
    """The leaves by number: names of sites hold "/", which orbax takes for a folder."""
    leaves = jax.device_get(jax.tree.leaves(state))
    return {f"{i:04}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def _size(arrays: Mapping[str, Any]) -> int:
    return sum(map(np.size, arrays.values()))
