"""Trainings on the images of a data set: rates, batches and the log of a run.

A batch depends only on the seed, its epoch and its number, so a run can be resumed.
"""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.data import Dataset
from experiments.running import devices
from experiments.running.command_line import options_of_results
from experiments.running.output_folder import writable, write
from snnjax import sharding, training

State = TypeVar("State")

LOG = "metrics.jsonl"  # in the folder of a run


def steps_per_epoch(config: Any, data: Dataset) -> int:
    """Steps of an epoch; an incomplete last batch is dropped.

    Raises:
        ValueError: the batch is larger than the training set, or the devices cannot
            share it.
    """
    count, size = len(data.train_images), config.batch_size
    if count < size:
        raise ValueError(
            f"batch_size {size} exceeds the {count} training images of {data.name}; "
            "choose a smaller batch_size"
        )
    devices.check_shared("batch_size", size, devices.make_mesh(config.mesh))
    return count // size


def schedule(config: Any, data: Dataset) -> optax.Schedule:
    """Linear warm-up to the learning rate, if there is any, then cosine to zero."""
    total = config.epochs * steps_per_epoch(config, data)
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
    """Print a line of the log, of a list its range."""

    entries = []
    for name, value in line.items():
        if isinstance(value, list):
            entries.append(f"{name} {min(value):.3g}..{max(value):.3g}")
        else:
            entries.append(f"{name} {value:.4g}")
    print("  ".join(entries), flush=True)


def report(loss: jax.Array, accuracy: jax.Array, weights: Any) -> dict[str, jax.Array]:
    """The report of a step, as `snnjax.training.train` reads it."""
    finite = jnp.isfinite(loss + optax.tree.norm(weights))
    return {"loss": loss, "train_accuracy": accuracy, "finite": finite}


def state_folder(config: Any) -> Path:
    """Where the state of a training is stored, from which it resumes."""
    return Path(config.out).expanduser().resolve() / "training"


def fit(
    config: Any,
    data: Dataset,
    state: State,
    step: Callable[..., tuple[State, dict[str, jax.Array]]],
    measure: Callable[[State, list[dict]], dict[str, Any]],
) -> tuple[State, list[dict]]:
    """Train, or resume the training in the folder ``config.out``.

    Args:
        config: frozen dataclass with out, epochs, batch_size, seed and mesh. ``out``
            must be new or hold a run of the same options.
        data: training images and labels.
        state: at the start; any pytree of arrays.
        step: (state, key, images, labels, index) -> (state, `report`); ``index`` counts
            the steps of the epoch. It may donate the buffers of the state.
        measure: as for `snnjax.training.train`.

    Returns:
        The state after the last epoch, and the log.
    """
    out = writable(config.out, "--out").resolve()
    steps_per_epoch(config, data)  # raises if there is none
    mesh = devices.make_mesh(config.mesh)

    def measure_and_note(state: State, log: list[dict]) -> dict[str, Any]:
        entries = measure(state, log)
        line = log[-1] | entries
        print_line(line)
        if devices.first():
            write_log(out, [*log[:-1], line])
        return entries

    # Options that a later version adds, and that are not given, leave folders valid.
    options = options_of_results(config)
    depends_on = {name: value for name, value in options.items() if value is not None}

    def step_of_batch(state: State, batch: tuple) -> tuple[State, dict]:
        key, images, labels, index = batch
        return step(state, key, images, labels, index)

    return training.train(
        step_of_batch,
        sharding.on_mesh(state, devices.by_image(mesh)),
        functools.partial(batches, config, data, mesh),
        epochs=config.epochs,
        measure=measure_and_note,
        folder=state_folder(config),
        depends_on=depends_on,
    )


def batches(
    config: Any, data: Dataset, mesh: Mesh | None, epoch: int
) -> Iterator[tuple[jax.Array, jax.Array, jax.Array, int]]:
    """A random key, images, labels and the index of the step, for each of an epoch.

    They depend on seed, epoch and step only, so that a run can be resumed.
    """
    steps, count = steps_per_epoch(config, data), len(data.train_images)
    order = np.random.default_rng((config.seed, epoch)).permutation(count)
    key = jax.random.fold_in(jax.random.key(config.seed), epoch)
    numbers = order[: steps * config.batch_size].reshape(steps, config.batch_size)
    for index, row in enumerate(numbers):
        images = devices.rows(data.train_images, row, mesh)
        labels = devices.rows(data.train_labels, row, mesh)
        yield jax.random.fold_in(key, index), images, labels, index
