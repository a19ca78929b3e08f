"""The loop of a training: epochs, log and checkpoints.

An epoch depends only on the seed, its number and the state at its start. The state is
saved after every epoch, so a kill loses at most the current epoch. The resumed run ends
with the same weights, bit for bit.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.data import Dataset
from experiments.running import checkpoints, devices
from experiments.running.output_folder import space, writable, write

State = TypeVar("State")

LOG = "metrics.jsonl"  # in the folder of a run


def steps_per_epoch(config: Any, data: Dataset) -> int:
    """Steps of an epoch; an incomplete last batch is dropped.

    Raises:
        ValueError: the batch is larger than the training set, or the devices cannot
            share it.
    """
    if len(data.train_images) < config.batch_size:
        raise ValueError(
            f"batch_size {config.batch_size} exceeds the {len(data.train_images)} "
            f"training images of {data.name}; choose a smaller batch_size"
        )
    devices.check_shared(
        "batch_size", config.batch_size, devices.make_mesh(config.mesh)
    )
    return len(data.train_images) // config.batch_size


def schedule(config: Any, steps: int) -> optax.Schedule:
    """Linear warm-up to the learning rate, if there is any, then cosine to zero."""
    total = config.epochs * steps
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=int(config.warmup * total),
        decay_steps=total + 1,
    )


def read_log(out: str | Path) -> list[dict]:
    """The lines that `fit` wrote to the folder of a run, one for each epoch."""
    text = (Path(out).expanduser() / LOG).read_text()
    return [json.loads(line) for line in text.splitlines()]


def write_log(out: Path, log: list[dict]) -> None:
    """Write what `read_log` reads."""
    write(out / LOG, "".join(f"{json.dumps(line)}\n" for line in log))


def print_line(line: dict) -> None:
    """Print a line of the log."""
    print("  ".join(_entry(n, v) for n, v in line.items()), flush=True)


def report(loss: jax.Array, accuracy: jax.Array, weights: Any) -> jax.Array:
    """The report of a step: loss, accuracy, whether loss and weights are finite."""
    finite = jnp.isfinite(loss + optax.tree.norm(weights))
    return jnp.stack([loss, accuracy, finite.astype(loss.dtype)])


def fit(
    config: Any,
    data: Dataset,
    state: State,
    step: Callable[..., tuple[State, jax.Array]],
    measure: Callable[[State], dict[str, Any]],
    finished_epoch: Callable[[State, list[dict]], None] = lambda state, log: None,
    inputs: Mapping[str, str] | None = None,
) -> tuple[State, list[dict]]:
    """Train, or resume the training in the folder ``config.out``.

    Args:
        config: frozen dataclass with out, epochs, batch_size, seed and mesh, and with
            learning_rate and warmup for a message. ``out`` must be new or hold a run of
            the same options.
        data: training images and labels.
        state: at the start; any pytree of arrays.
        step: (state, key, images, labels, index) -> (state, `report`); ``index`` counts
            the steps of the epoch. It may donate the buffers of the state.
        measure: state -> further entries of the log's line of an epoch.
        finished_epoch: called with the state and the log, one line per epoch.
        inputs: name -> `digest` of everything that the run starts from. A run with
            other digests is not resumed.

    Returns:
        The state after the last epoch, and the log.

    Raises:
        FloatingPointError: the loss or the weights are not finite; the checkpoint of
          the last good epoch is kept.
        ValueError: `out` cannot take the results, or holds another run; the batch
          cannot be shared by the devices.
    """
    # Two checkpoints, one that is being written, the last network and the best.
    out = writable(config.out, "--out", size=space(state, 5)).resolve()
    steps_per_epoch(config, data)
    mesh = devices.make_mesh(config.mesh)
    checkpoints.check_resumable(config, inputs)
    state, log = checkpoints.restore(out, state)
    state = devices.everywhere(state, mesh)
    for epoch in range(len(log) + 1, config.epochs + 1):
        start = time.perf_counter()
        state, line = _train_epoch(step, state, data, config, epoch, mesh)
        line |= measure(state)
        line["seconds"] = round(time.perf_counter() - start, 2)
        log = [*log, line]
        print_line(line)
        if devices.first():
            write_log(out, log)
            finished_epoch(state, log)
            checkpoints.claim(config, inputs)
            checkpoints.save(out, state, log)
    return state, log


def batches_of(config, data: Dataset, epoch: int) -> list[tuple[jax.Array, np.ndarray]]:
    """A random key and the numbers of the images, for each step of an epoch.

    They depend on seed, epoch and step only, so that a run can be resumed.
    """
    steps = steps_per_epoch(config, data)
    order = np.random.default_rng((config.seed, epoch)).permutation(
        len(data.train_images)
    )
    key = jax.random.fold_in(jax.random.key(config.seed), epoch)
    numbers = order[: steps * config.batch_size].reshape(steps, config.batch_size)
    return [(jax.random.fold_in(key, i), row) for i, row in enumerate(numbers)]


def _train_epoch(step, state, data: Dataset, config, epoch: int, mesh):
    """The state after an epoch, and the mean loss and accuracy of its steps."""
    batches = batches_of(config, data, epoch)
    steps = len(batches)
    title = f"epoch {epoch} of {config.epochs}"
    bar = tqdm(batches, title, leave=False, disable=devices.hidden())
    reports = []
    # A Python loop: on CPU, XLA's gradients of convolutions are ten times slower
    # inside lax.scan.
    for index, (key, numbers) in enumerate(bar):
        images = devices.rows(data.train_images, numbers, mesh)
        labels = devices.rows(data.train_labels, numbers, mesh)
        state, report = step(state, key, images, labels, index)
        reports.append(report)
    loss, accuracy, finite = np.asarray(jnp.stack(reports)).T
    if not finite.all():
        checkpoint = (
            f"the checkpoint of epoch {epoch - 1} is kept"
            if epoch > 1
            else "there is no checkpoint yet"
        )
        raise FloatingPointError(
            f"loss or weights are not finite in epoch {epoch}, step "
            f"{np.argmin(finite) + 1} of {steps}; {checkpoint}. Train with a "
            f"learning_rate below {config.learning_rate} or a warmup above "
            f"{config.warmup}, in another folder than {config.out}"
        )
    means = {"loss": float(loss.mean()), "train_accuracy": float(accuracy.mean())}
    return state, {"epoch": epoch, **means}


def _entry(name: str, value: Any) -> str:
    """A number of the log, or the range of a list of them, as it is printed."""
    if isinstance(value, list):
        return f"{name} {min(value):.3g}..{max(value):.3g}"
    return f"{name} {value:.4g}"
