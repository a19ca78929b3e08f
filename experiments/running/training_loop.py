"""The loop of a training: epochs, log and checkpoints.

An epoch depends only on the seed, its number and the state at its start. The state is
saved after every epoch, so a kill costs at most the epoch under way, and the resumed
run ends in the same weights, bit for bit.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from tqdm import tqdm

from experiments.data import Dataset, Unread
from experiments.running import devices
from experiments.running.output_folder import remove_unfinished, space, writable
from experiments.running.resuming import (
    LOG,
    check_may_resume,
    claim,
    log_until,
    manager_of,
    numbered,
    restored_state,
)
from snnjax import sharding

State = TypeVar("State")

# Larger arrays of images stay in host memory; the device gets batch by batch.
DEVICE_BYTES = 4e9


def cache_sized() -> int | None:
    """Images at a time: on CPU so few that the neurons fit into its cache; else all."""
    return 25 if jax.default_backend() == "cpu" else None


def steps_per_epoch(config: Any, data: Dataset) -> int:
    """Steps of an epoch; an incomplete last batch is dropped.

    Raises:
        ValueError: the batch is larger than the training set.
    """
    if len(data.train_images) < config.batch_size:
        raise ValueError(
            f"batch_size {config.batch_size} exceeds the {len(data.train_images)} "
            f"training images of {data.name}; choose a smaller batch_size"
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


def fit(
    config: Any,
    data: Dataset,
    state: State,
    step: Callable[..., tuple[State, jax.Array]],
    measure: Callable[[State], dict[str, Any]],
    finished_epoch: Callable[[State, list[dict]], None] = lambda state, log: None,
    inputs: Mapping[str, str] | None = None,
) -> State:
    """Train, or go on with the training in the folder ``config.out``.

    Args:
        config: frozen dataclass with out, epochs, batch_size, seed, mesh, and the
          learning_rate and warmup that a message names; ``out`` must be new or hold a
          run of the same options.
        data: training images and labels.
        state: at the start; any pytree of arrays.
        step: (state, key, images, labels, index) -> (state, report), the report being
          [loss, accuracy, whether loss and new weights are finite]; ``index`` counts
          the steps of the epoch. It may donate the buffers of the state.
        measure: state -> further entries of the log's line of an epoch.
        finished_epoch: called with the state and the log, one line per epoch.
        inputs: what the run begins with, name -> `digest`; a run of others is not
          resumed.

    Raises:
        FloatingPointError: the loss or the weights are not finite; the checkpoint of
          the last good epoch is kept.
        ValueError: `out` cannot take the results, or holds another run; the batch
          cannot be shared by the devices.
    """
    # Two checkpoints, one that is being written, the last network and the best.
    out = writable(config.out, "--out", needed=space(state, 5)).resolve()
    batch_sharding = devices.over_batch(devices.make_mesh(config.mesh))
    feed = _feeder(data, config.batch_size, batch_sharding)
    if devices.first():
        remove_unfinished(out / "checkpoints")
    with manager_of(out / "checkpoints") as manager:
        last_epoch = manager.latest_step() or 0
        if last_epoch:
            check_may_resume(config, last_epoch)
        log, lines = out / LOG, []
        if devices.first():
            claim(out / "config.json", config, inputs or {}, resumed=last_epoch > 0)
            lines = log_until(log, last_epoch)
        if last_epoch:
            state = restored_state(manager, last_epoch, state)
        state = sharding.on_mesh(state, batch_sharding)
        for epoch in range(last_epoch + 1, config.epochs + 1):
            start = time.perf_counter()
            state, loss, accuracy = _train_epoch(
                step, state, feed, len(data.train_images), config, epoch
            )
            line = {"epoch": epoch, "loss": loss, "train_accuracy": accuracy}
            line |= measure(state)
            line["seconds"] = round(time.perf_counter() - start, 2)
            lines.append(line)
            print("  ".join(_entry(n, v) for n, v in line.items()), flush=True)
            if devices.first():
                with log.open("a") as file:
                    print(json.dumps(line), file=file)
                finished_epoch(state, lines)
                manager.save(epoch, args=ocp.args.StandardSave(numbered(state)))
    return state


def _feeder(
    data: Dataset, size: int, batch_sharding: NamedSharding | None
) -> Callable[[np.ndarray], tuple[jax.Array, jax.Array]]:
    """A function: numbers of training images -> images and labels, on the devices.

    Without a mesh the device holds all images, up to `DEVICE_BYTES` of them. With a
    mesh each process copies to its devices their part of every batch.
    """
    devices.check_batch("batch_size", size, batch_sharding)
    arrays = data.train_images, data.train_labels
    if batch_sharding is None:
        images, labels = map(_on_device, arrays)
        return lambda numbers: (images[numbers], labels[numbers])

    def feed(numbers):
        images, labels = (
            jax.make_array_from_callback(
                (size, *array.shape[1:]),
                batch_sharding,
                lambda part, array=array: array[numbers[part[0]]],
            )
            for array in arrays
        )
        return images, labels

    return feed


def _train_epoch(step, state, feed, images: int, config, epoch):
    """The state after an epoch of so many images, and its mean loss and accuracy."""
    # Order and keys depend on seed, epoch and step only, so that a run can be resumed.
    order = np.random.default_rng((config.seed, epoch)).permutation(images)
    steps = images // config.batch_size
    batches = order[: steps * config.batch_size].reshape(steps, config.batch_size)
    key = jax.random.fold_in(jax.random.key(config.seed), epoch)
    title = f"epoch {epoch} of {config.epochs}"
    bar = tqdm(batches, title, leave=False, disable=devices.hidden())
    reports = []
    # A Python loop: on CPU, XLA's gradients of convolutions are ten times slower
    # inside lax.scan.
    for index, numbers in enumerate(bar):
        batch_key = jax.random.fold_in(key, index)
        state, report = step(state, batch_key, *feed(numbers), index)
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
    return state, float(loss.mean()), float(accuracy.mean())


def _entry(name: str, value: Any) -> str:
    """A number of the log, or the range of a list of them, as it is printed."""
    if isinstance(value, list):
        return f"{name} {min(value):.3g}..{max(value):.3g}"
    return f"{name} {value:.4g}"


def _on_device(array: np.ndarray | Unread) -> np.ndarray | Unread | jax.Array:
    """Images or labels in the memory of the device, or as they are if too large."""
    fits = isinstance(array, np.ndarray) and array.nbytes <= DEVICE_BYTES
    return jnp.asarray(array) if fits else array
