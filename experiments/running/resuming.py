"""Going on with a run that was interrupted: its options, its log, its checkpoints.

A folder belongs to one run. The options on which the result depends, and what it began
with, stand in config.json; a run of others is refused, since going on would silently
mix two experiments.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.running import devices
from experiments.running.output_folder import reading, write

State = TypeVar("State")

LOG = "metrics.jsonl"  # in the folder of a run
INPUTS = "inputs"  # of config.json: what the run began with


def read_log(out: str | Path) -> list[dict]:
    """The lines that `fit` wrote to the folder of a run, one for each epoch."""
    log = Path(out).expanduser() / LOG
    return [_parsed(line, log) for line in log.read_text().splitlines()]


def check_resumable(config: Any, inputs: Mapping[str, str] | None = None) -> None:
    """Raise if ``config.out`` holds a run that `fit` would refuse to go on with.

    Args:
        config: as for `fit`.
        inputs: as for `fit`; None: they are not known yet.
    """
    out = Path(config.out).expanduser()
    if not (out / "checkpoints").is_dir():
        return
    with manager_of(out / "checkpoints") as manager:
        last_epoch = manager.latest_step() or 0
    if last_epoch:
        check_may_resume(config, last_epoch)
        _compare(out / "config.json", config, inputs or {})


def check_may_resume(config: Any, last_epoch: int) -> None:
    """Raise if the options forbid going on with a run that is there."""
    if not getattr(config, "resume", True):
        raise ValueError(
            f"{config.out} holds a run of {last_epoch} epochs; choose another "
            "--out, delete that folder, or go on with it by --resume true"
        )


def manager_of(folder: Path) -> ocp.CheckpointManager:
    """A manager of this process alone: all have the same state, the first writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, create=False, multiprocessing_options=devices.alone()
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=devices.alone())
    return ocp.CheckpointManager(folder, options=options, item_handlers=handler)


def numbered(state) -> dict[str, np.ndarray]:
    """The leaves by number: names of sites hold "/", which orbax takes for a folder."""
    leaves = jax.device_get(jax.tree.leaves(state))
    return {f"{i:04}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def restored_state(manager: ocp.CheckpointManager, epoch: int, state: State) -> State:
    """The state after an epoch, from its checkpoint, in the structure of ``state``.

    Raises:
        ValueError: it is damaged, or of another network or optimizer.
    """
    target = numbered(state)
    folder = Path(manager.directory) / str(epoch)
    remedy = "delete it, and the same command goes on from the checkpoint before it"
    with reading(folder, remedy):
        stored = _shapes(manager.item_metadata(epoch).tree)
    if stored != _shapes(target):
        raise ValueError(
            f"{folder} holds a state of another network or optimizer: "
            f"{len(stored)} arrays, {_numbers(stored)} numbers; asked for are "
            f"{len(target)} arrays, {_numbers(_shapes(target))} numbers. Perhaps the "
            "source network has changed, or a version: choose another --out"
        )
    with reading(folder, remedy):
        arrays = manager.restore(epoch, args=ocp.args.StandardRestore(target))
    leaves = [jnp.asarray(arrays[name]) for name in target]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _numbers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def claim(file: Path, config: Any, inputs: Mapping[str, str], resumed: bool) -> None:
    """Compare config.json of a resumed run, and write it.

    Raises:
        ValueError: the run that is there has other options, or began with others.
    """
    if resumed:
        _compare(file, config, inputs)
    whole = _options(config) | ({INPUTS: dict(inputs)} if inputs else {})
    write(file, json.dumps(whole, indent=2) + "\n")


def _options(config: Any) -> dict[str, Any]:
    """The options on which the result depends, as JSON has them: tuples as lists."""
    options = dataclasses.asdict(config)
    for name in ("out", "data_dir", "resume", "mesh", "report"):
        options.pop(name, None)
    return json.loads(json.dumps(options))


def _compare(file: Path, config: Any, inputs: Mapping[str, str]) -> None:
    """Raise unless the run that is there has the same options and inputs.

    Inputs that it does not name, as one of an older version, are not compared.
    """
    if not file.exists():
        raise ValueError(
            f"{file.parent} has checkpoints, but no {file.name} that says which run "
            "they are of; put it back, choose another --out, or delete that folder"
        )
    options, stored = _options(config), _parsed(file.read_text(), file)
    before = stored.pop(INPUTS, {})
    if stored.keys() - options.keys() or not isinstance(before, dict):
        raise ValueError(
            f"{file.parent} holds a run of another command or version; choose another "
            "--out"
        )
    differing = [name for name in options if stored.get(name) != options[name]]
    if differing:
        raise ValueError(
            f"{file.parent} holds a run with "
            + ", ".join(f"{name} {stored.get(name)!r}" for name in differing)
            + ", but asked for is "
            + ", ".join(f"{name} {options[name]!r}" for name in differing)
            + "; choose another --out, delete that folder or give its options"
        )
    changed = [
        name for name in before if inputs.get(name, before[name]) != before[name]
    ]
    if changed:
        raise ValueError(
            f"{file.parent} holds a run that began with another {', '.join(changed)}; "
            "choose another --out, or put back what was there"
        )


def digest(tree: Any) -> str:
    """sha256 of all arrays of a pytree, in their order."""
    total = hashlib.sha256()
    for array in numbered(tree).values():
        total.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def log_until(log: Path, epoch: int) -> list[dict]:
    """The lines of the log up to an epoch; the file is cut to them.

    A kill may leave the line of an epoch whose checkpoint is not complete.

    Raises:
        ValueError: the line of an epoch is missing.
    """
    text = log.read_text().splitlines()[:epoch] if log.exists() else []
    lines = [_parsed(line, log) for line in text]
    if [line.get("epoch") for line in lines] != list(range(1, epoch + 1)):
        raise ValueError(
            f"{log} does not have one line for each of the {epoch} epochs that the "
            "checkpoints are of; put it back, or delete its folder to begin anew"
        )
    write(log, "".join(f"{line}\n" for line in text))
    return lines


def _parsed(text: str, file: Path) -> dict:
    """The JSON object of a file of a run."""
    try:
        content = json.loads(text)
        reason = "" if isinstance(content, dict) else "no JSON object"
    except json.JSONDecodeError as error:
        reason = str(error)
    if reason:
        raise ValueError(
            f"{file} is damaged ({reason}); repair it, or start anew with another --out"
        )
    return content
