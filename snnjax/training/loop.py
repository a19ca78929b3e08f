"""The epochs of a training: its log, and a folder from which it resumes.

The state after an epoch is all that the next one needs, besides its examples. So a
checkpoint of orbax that holds it lets an interrupted training end in the same bits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import check_on_host
from snnjax._progress import shown
from snnjax._ranges import COUNT
from snnjax._text import counted
from snnjax.training.identity import digest, named_digests

_State = TypeVar("_State")
_Log = list[dict[str, Any]]  # a line for each epoch


def train(
    step: Callable[[_State, Any], tuple[_State, dict[str, Any]]],
    state: _State,
    examples: Iterable | Callable[[int], Iterable],
    *,
    epochs: int,
    measure: Callable[[_State, _Log], Any] | None = None,
    folder: Any = None,
    depends_on: Mapping[str, Any] | None = None,
) -> tuple[_State, _Log]:
    """Train anything, by a step of your own; resume where it was interrupted.

    On a terminal, a bar on stderr shows the epoch, the step and its loss.

    Args:
        step: (state, batch) -> (state, report), usually jitted. A report is a dict of
            numbers, among them ``loss`` and ``finite``, whether training may go on.
        state: at the start, a pytree of arrays: weights, states of optimizers. If the
            batches are on a mesh, so is the state (`snnjax.sharding.on_mesh`).
        examples: the batches, one for each step, that can be read once per epoch, such
            as a list or a DataLoader. Or a function: number of the epoch, from 1 on, ->
            its batches; so shuffle and augment by this number.
        epochs: >= 1.
        measure: called after each epoch with the state and the log, of which the last
            line is that of the epoch. The entries that it returns, or None, are added
            to that line: under other names, numbers, texts, or lists of them.
        folder: where orbax keeps the last finished epoch. The same call resumes from
            it, and ends in the same bits. Processes need a folder that they share.
        depends_on: what results depend on besides the state at the start, by name:
            pytrees of arrays, functions (compared by their code and the values that
            they enclose), or values that are compared by their ``repr``, such as a
            seed. A folder of a training with others is refused.

    Returns:
        The state after the last epoch, and the log: for each epoch its number
        (``epoch``), the means of the reports over its steps, its ``seconds``, and what
        ``measure`` returned.

    Raises:
        ValueError: no examples in an epoch; a folder of another training, or with a
            damaged checkpoint.
        OSError: a folder that is a file, or whose disk is full.
        FloatingPointError: a step was not finite, or its loss was more than a million
            times the first one (and more than a million).
        ImportError: a folder without orbax.

    >>> import jax, jax.numpy as jnp
    >>> @jax.jit
    ... def step(w, batch):
    ...     x, y = batch
    ...     loss, slope = jax.value_and_grad(lambda w: ((w * x - y) ** 2).mean())(w)
    ...     return w - 0.1 * slope, {"loss": loss, "finite": jnp.isfinite(loss)}
    >>> batches = [(jnp.ones(4), 3 * jnp.ones(4))]
    >>> w, log = train(step, jnp.zeros(()), batches, epochs=30)
    >>> print(f"{w:.2f}", [line["loss"] for line in log][:2])
    3.00 [9.0, 5.76...]
    """
    check_on_host("snnjax.training.train", state=state)
    COUNT.check("epochs", epochs)
    if isinstance(examples, Iterator) and epochs > 1:
        raise ValueError(
            f"examples is {type(examples).__name__}, which can be read once; allowed: "
            "a list or a loader of batches, or a function: epoch -> batches"
        )
    state = jax.tree.map(jnp.asarray, state)
    log: _Log = []
    identity = {}
    with _checkpoints_in(folder) as checkpoints:
        if checkpoints is not None:
            identity = _identity(state, depends_on)
            state, log = _resumed(checkpoints, identity, state, epochs)
        for epoch in range(len(log) + 1, epochs + 1):
            start = time.perf_counter()
            batches = examples(epoch) if callable(examples) else examples
            first_loss = log[0]["loss"] if log else None
            state, means = _train_epoch(
                step,
                state,
                batches,
                epoch=f"{epoch} of {epochs}",
                first_loss=first_loss,
            )
            seconds = time.perf_counter() - start
            line = {"epoch": epoch, **means, "seconds": seconds}
            # A new list, since `measure` may have kept that of an earlier epoch.
            log = [*log, line]
            if measure is not None:
                entries = measure(state, log)
                log[-1] = _extended(line, entries)
            if checkpoints is not None:
                notes = {"log": log, "identity": identity}
                _save(checkpoints, epoch, state, notes)
    return state, log


def _identity(
    start: Any, depends_on: Mapping[str, Any] | None
) -> dict[str, dict[str, str]]:
    """What tells one training from another: name -> digests.

    The digest of the value itself has the name "". Those of what a function reads have
    the names of variables, and serve messages only.

    Args:
        start: the state before the first epoch.
        depends_on: what else results depend on, by name.
    """
    parts = {"state at the start": start}
    if depends_on is not None:
        parts |= depends_on
    identity = {}
    for name, part in parts.items():
        identity[name] = {"": digest(part)} | named_digests(part)
    return identity


# A loss that is so many times as large as the first one has exploded.
_EXPLODED = 1e6


def _train_epoch(
    step: Callable,
    state: _State,
    batches: Iterable,
    epoch: str,
    first_loss: float | None,
) -> tuple[_State, dict[str, float]]:
    """The state after the steps of an epoch, and the means of their reports.

    Args:
        step: as for `train`.
        state: before the epoch.
        batches: one for each step.
        epoch: its number, for messages.
        first_loss: mean loss of the first epoch; None in the first epoch itself, whose
            first step takes its place.
    """
    reports: _Log = []

    def latest_loss(_: Any) -> str:
        if not reports:
            return "no loss yet"
        return f"loss {reports[-1]['loss']:.4g}"

    for batch in shown(batches, f"epoch {epoch} ", "step", latest_loss):
        # The step before computed while this batch was made. No more than one step is
        # under way, whose arrays take memory.
        jax.block_until_ready(reports[-1:])
        state, report = step(state, batch)
        reports.append(report)
    if not reports:
        raise ValueError(
            f"the examples of epoch {epoch} are empty; allowed: one batch or more"
        )
    reports = jax.device_get(reports)
    finite = []  # of each step, whether training may go on
    losses: list[float] = []
    for report in reports:
        # Whether a step was finite is no number of the log.
        finite.append(report.pop("finite"))
        losses.append(float(report["loss"]))
    _check_finite(finite, epoch)
    if first_loss is None:
        first_loss = losses[0]
    _check_losses(np.array(losses), epoch, first_loss)
    means = {}
    for name in reports[0]:
        numbers = [report[name] for report in reports]
        means[name] = float(np.mean(numbers))
    return state, means


def _check_finite(finite: list[Any], epoch: str) -> None:
    """Raise if a step of the epoch was not finite."""
    if not all(finite):
        raise FloatingPointError(
            f"loss or weights are not finite in epoch {epoch}, step "
            f"{finite.index(False) + 1} of {len(finite)}; the state after the "
            "last whole epoch is in the folder, if there is one. Lower the learning "
            "rate or let it warm up, and look for NaN among the inputs and for labels "
            "that are no classes"
        )


def _check_losses(losses: np.ndarray, epoch: str, first_loss: float) -> None:
    """Raise if one of the losses [steps] has exploded, see `_EXPLODED`."""
    # A first loss near 0 says nothing about the size of a loss.
    largest_allowed = _EXPLODED * max(1.0, abs(first_loss))
    exploded = np.abs(losses) > largest_allowed
    if exploded.any():
        number = int(exploded.argmax())
        raise FloatingPointError(
            f"the loss is {losses[number]:.3g} in epoch {epoch}, step {number + 1} of "
            f"{len(losses)}, and was {first_loss:.3g} at first; the state after the "
            "last whole epoch is in the folder, if there is one. Lower the learning "
            "rate or let it warm up, or clip the gradient by optax.clip_by_global_norm"
        )


def _extended(line: dict[str, Any], entries: Any) -> dict[str, Any]:
    """A line of the log with what ``measure`` returned, as JSON gives it back."""
    if entries is None:
        return line
    if not isinstance(entries, dict) or entries.keys() & line.keys():
        raise ValueError(
            f"measure returns {entries!r}; allowed: None, or a dict of numbers, e.g. "
            f'{{"test_accuracy": 0.9}}, under other names than {", ".join(line)}'
        )

    def as_json(value: Any) -> Any:
        return np.asarray(value).tolist()

    return line | jax.tree.map(as_json, entries)


# ------------------------------------------------------------------- checkpoints


def _checkpoints_in(folder: Any) -> contextlib.AbstractContextManager:
    """A context with orbax's manager of a folder, which keeps the last epoch.

    Without a folder, the context holds None.
    """
    if folder is None:
        return contextlib.nullcontext()
    try:
        import orbax.checkpoint as orbax
    except ImportError:
        raise ImportError(
            "folder= needs orbax; pip install orbax-checkpoint, or leave folder out"
        ) from None
    options = orbax.CheckpointManagerOptions(
        max_to_keep=1,
        step_prefix="epoch",
        enable_async_checkpointing=False,
    )
    path = Path(folder).expanduser().absolute()
    # Before the first epoch, since a checkpoint is written after it.
    if path.exists() and not path.is_dir():
        raise FileExistsError(
            f"folder is {path}, a file; allowed: a folder, which may be new, for the "
            "checkpoints of this training alone"
        )
    path.mkdir(parents=True, exist_ok=True)
    return orbax.CheckpointManager(path, options=options)


def _save(checkpoints: Any, epoch: int, state: Any, notes: dict[str, Any]) -> None:
    """Write the state and the notes of a finished epoch in the place of the last."""
    from orbax.checkpoint import args

    parts = args.Composite(
        # In a list, since orbax takes no single array for a tree.
        state=args.StandardSave([state]),
        notes=args.JsonSave(notes),
    )
    try:
        checkpoints.save(epoch, args=parts)
    # A full disk causes an OSError here, or a ValueError of the library below orbax.
    except (OSError, ValueError) as error:
        raise OSError(
            f"cannot write epoch {epoch} to {checkpoints.directory}: {error}. Free "
            "space on its disk; the same call then resumes from the last epoch that "
            "is whole"
        ) from error


def _differences(
    identity: Mapping[str, Mapping[str, str]], stored: Mapping[str, Any]
) -> list[str]:
    """In words, what another training depends on that this one does not."""
    differences = []
    for name in {**identity, **stored}:
        digests = identity.get(name, {})
        stored_digests = stored.get(name, {})
        if not isinstance(stored_digests, Mapping):  # of version 0.2.0
            stored_digests = {"": stored_digests}
        if digests.get("") == stored_digests.get(""):
            continue
        variables = []
        for variable in digests.keys() & stored_digests.keys():
            if variable and digests[variable] != stored_digests[variable]:
                variables.append(variable)
        changes = f" (changed: {', '.join(sorted(variables))})"
        differences.append(name + changes if variables else name)
    return differences


def _resumed(
    checkpoints: Any, identity: dict[str, dict[str, str]], start: _State, epochs: int
) -> tuple[_State, _Log]:
    """State and log after the last finished epoch; before it, the start and no line.

    Args:
        checkpoints: orbax's manager of the folder.
        identity: of this training, see `_identity`.
        start: the state at the start, whose structure the stored one has.
        epochs: of the whole training.

    Raises:
        ValueError: the folder holds another training, or more epochs.
    """
    from orbax.checkpoint import args

    folder = checkpoints.directory
    last_epoch = checkpoints.latest_step()
    if last_epoch is None:
        return start, []
    # The notes first: of another training, the state may have another structure.
    parts = args.Composite(notes=args.JsonRestore())
    with _read_errors(checkpoints, last_epoch):
        notes = checkpoints.restore(last_epoch, args=parts)["notes"]
        log = notes["log"]
        stored_identity = notes["identity"]
    differences = _differences(identity, stored_identity)
    if differences:
        raise ValueError(
            f"{folder} holds another training, with other {', '.join(differences)}. "
            "Give another folder, or delete this one"
        )
    if len(log) > epochs:
        raise ValueError(
            f"{folder} holds {counted(len(log), 'epoch')}; allowed: "
            f"epochs >= {len(log)}, or another folder"
        )
    parts = args.Composite(state=args.StandardRestore([start]))
    with _read_errors(checkpoints, last_epoch):
        (state,) = checkpoints.restore(last_epoch, args=parts)["state"]
    return state, log


@contextlib.contextmanager
def _read_errors(checkpoints: Any, epoch: int) -> Iterator[None]:
    """A context in which any error becomes a ValueError that names the checkpoint."""
    try:
        yield
    except Exception as error:  # damaged bytes can cause an error of any class
        raise ValueError(
            f"the checkpoint of epoch {epoch} in {checkpoints.directory} is damaged, "
            f"or none of snnjax ({error!r}). Delete the folder, or give another one, "
            "and train again"
        ) from error
