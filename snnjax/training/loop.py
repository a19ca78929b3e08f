"""The epochs of a training: its log, and a folder from which it resumes.

A state after an epoch is all that the next one needs, besides its examples. So a folder
that holds it lets an interrupted training end in the same bits.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import check_count
from snnjax._folders import (
    Folder,
    holds,
    open_folder,
    parts_of,
    read_arrays,
    restored,
    write_arrays,
)
from snnjax._progress import shown

_STATE = "state.npz"

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
        state: at the start, a pytree of arrays: weights, states of optimizers.
        examples: the batches, one for each step, that can be read once per epoch, such
            as a list or a DataLoader. Or a function: number of the epoch, from 1 on, ->
            its batches; so shuffle and augment by this number.
        epochs: >= 1.
        measure: called after each epoch with the state and the log, of which the last
            line is that of the epoch. The entries that it returns, or None, are added
            to that line: under other names, numbers, texts, or lists of them.
        folder: where the state after the last finished epoch is stored. If it has one
            of the same training, this one resumes from it, and ends in the same bits.
        depends_on: what the results depend on, by name: pytrees of arrays, or values
            that are compared by their ``repr``, such as a seed. A folder of a training
            with others, or by other versions, is refused.

    Returns:
        The state after the last epoch, and the log: for each epoch its number
        (``epoch``), the means of the reports over its steps, its ``seconds``, and what
        ``measure`` returned.

    Raises:
        ValueError: an argument is out of range; no examples in an epoch; a folder of
            another training, or a damaged one.
        FloatingPointError: a step was not finite.

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
    check_count("epochs", epochs)
    _check_readable(examples, epochs)
    state = jax.tree.map(jnp.asarray, state)
    opened = open_folder(folder, "training", parts_of(depends_on))
    state, log = (state, []) if opened is None else _stored(opened, state, epochs)
    reports: _Log = []
    for epoch in range(len(log) + 1, epochs + 1):
        start = time.perf_counter()
        batches = examples(epoch) if callable(examples) else examples
        state, reports = _train_epoch(step, state, batches, epoch, epochs, reports)
        means = {n: float(np.mean([r[n] for r in reports])) for n in reports[0]}
        line = {"epoch": epoch, **means, "seconds": time.perf_counter() - start}
        log = [*log, line]
        if measure is not None:
            log[-1] = line | _entries(measure(state, log), line)
        if opened is not None:
            leaves = {f"{i:06}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
            leaves["log"] = np.array(json.dumps(log))
            write_arrays(opened, _STATE, leaves)
    return state, log


def check_folder(folder: Any, depends_on: Mapping[str, Any]) -> None:
    """Raise if a folder is of another training than one with these values.

    For a check before a long preparation of `train`, such as a conversion.

    Args:
        folder, depends_on: as for `train`; names that are left out are not compared.

    Raises:
        ValueError: the folder holds a training with others, or something else.

    >>> check_folder(None, {"seed": 0})  # no folder, nothing to compare
    """
    open_folder(folder, "training", parts_of(depends_on), all_parts=False)


def _train_epoch(
    step: Callable,
    state: _State,
    batches: Iterable,
    epoch: int,
    epochs: int,
    last: _Log,
) -> tuple[_State, _Log]:
    """The state after the steps of an epoch, and their reports.

    ``last`` has those of the epoch before, for the bar; none in the first one.
    """
    reports: _Log = []

    def about(_: Any) -> str:
        before = reports or last
        return f"loss {before[-1]['loss']:.4g}" if before else "compiling"

    title, count = f"epoch {epoch} of {epochs} ", len(last) or None
    for batch in shown(batches, title, "step", about, count):
        jax.block_until_ready(reports[-1:])  # it computed while this batch was made
        state, report = step(state, batch)
        reports.append(report)
    if not reports:
        raise ValueError(
            f"the examples of epoch {epoch} are empty; allowed: one batch or more"
        )
    reports = jax.device_get(reports)
    finite = [report.pop("finite") for report in reports]
    if not all(finite):
        raise FloatingPointError(
            f"loss or weights are not finite in epoch {epoch}, step "
            f"{finite.index(False) + 1} of {len(finite)}; the state after the "
            "last whole epoch is in the folder, if there is one. Lower the learning "
            "rate or let it warm up, and look for NaN among the inputs and for labels "
            "that are no classes"
        )
    return state, reports


def _stored(folder: Folder, state: _State, epochs: int) -> tuple[_State, _Log]:
    """The state and the log of a folder; without them, this state and no log."""
    file = folder.path / _STATE
    if not holds(file):
        return state, []
    leaves, structure = jax.tree.flatten(state)
    try:
        arrays = read_arrays(file)
        log = json.loads(str(arrays.pop("log")))
        own = zip(sorted(arrays), leaves, strict=True)
        new = [restored(arrays[name], leaf) for name, leaf in own]
        chex.assert_trees_all_equal_shapes(new, leaves)
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"{file} is damaged, or holds the state of another training ({error}). "
            "Delete its folder to begin anew, or give another one"
        ) from None
    if len(log) > epochs:
        raise ValueError(
            f"{folder.path} holds {len(log)} epochs; allowed: epochs >= {len(log)}, "
            "or another folder"
        )
    return jax.tree.unflatten(structure, new), log


def _entries(entries: Any, line: dict[str, Any]) -> dict[str, Any]:
    """What ``measure`` adds to a line of the log, as JSON gives it back."""
    if not isinstance(entries, dict | None):
        raise ValueError(
            f"measure returns {type(entries).__name__}; allowed: a dict of numbers, "
            'e.g. {"test_accuracy": 0.9}, or None'
        )
    entries = entries or {}
    if names := sorted(entries.keys() & line.keys()):
        raise ValueError(
            f"measure returns {', '.join(names)}, which the log has already; give "
            "other names"
        )
    return jax.tree.map(lambda value: np.asarray(value).tolist(), entries)


def _check_readable(examples: Any, epochs: int) -> None:
    """Raise unless the examples can be read in each epoch."""
    if not callable(examples) and not isinstance(examples, Iterable):
        kind = type(examples).__name__
    elif isinstance(examples, Iterator) and epochs > 1:
        kind = f"{type(examples).__name__}, which can be read once"
    else:
        return
    raise ValueError(
        f"examples is {kind}; allowed: a list or a loader of batches, or a function: "
        "epoch -> batches"
    )
