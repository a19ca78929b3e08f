"""Devices and processes that share the work of an experiment.

``--mesh N`` shares every batch among N devices, ``--mesh 0`` among all. Processes
connect by JAX_COORDINATOR_ADDRESS (host:port of the first one), JAX_NUM_PROCESSES and
JAX_PROCESS_ID; only the first one prints and writes files.
"""

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Seconds without a sign of a process after which the others end, with a message.
HEARTBEAT = 20


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other processes, if the environment variables name any.

    If one of them ends, this one ends too, with a message and exit code 1.
    """
    _begin()
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0]
        print(
            f"error: another process has ended or is out of reach ({reason}).\nStart "
            "all of them again; a training goes on from its last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the usual end would wait for the lost process


def _begin() -> None:
    """Connect the processes; all but the first one print to nowhere."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    settings = {name: os.environ[name] for name in names if name in os.environ}
    if not settings or jax.distributed.is_initialized():
        return
    try:
        address = settings["JAX_COORDINATOR_ADDRESS"]
        count = int(settings["JAX_NUM_PROCESSES"])
        index = int(settings["JAX_PROCESS_ID"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{', '.join(names)} belong together, the last two as whole numbers; found "
            f"{settings}: {error!r}. Set all three, or none for a single process"
        ) from None
    jax.distributed.initialize(
        address, count, index, heartbeat_timeout_seconds=HEARTBEAT
    )
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the end)


def first() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def hidden() -> bool | None:
    """For tqdm's ``disable``: only the first process has a bar, and on a terminal."""
    return None if first() else True


def log(line: str) -> None:
    """Print a line to stderr where no terminal shows a bar, from the first process."""
    if first() and not sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def make_mesh(devices: int) -> Mesh | None:
    """A mesh of this many devices (0: all); None for a single device."""
    count, processes = jax.device_count(), jax.process_count()
    allowed = f"1 to {count}, or 0: all"
    is_allowed = devices <= count
    if processes > 1:
        # Each process has devices of its own, and takes part with all of them.
        allowed = "0, which takes all"
        is_allowed = devices in (0, count)
    if not is_allowed:
        raise ValueError(
            f"mesh is {devices}, but JAX finds {count} devices in {processes} "
            f"processes; allowed: --mesh {allowed}"
        )
    mesh_devices = np.asarray(jax.devices()[: devices or count])
    if len(mesh_devices) == 1:
        return None
    return Mesh(mesh_devices, ("data",), axis_types=(AxisType.Auto,))


def check_shared(name: str, count: int, mesh: Mesh | None) -> None:
    """Raise unless the devices can share the images of an option evenly."""
    if mesh is not None and count % mesh.size:
        raise ValueError(
            f"{name} {count} cannot be shared evenly by {mesh.size} devices; give a "
            f"multiple of {mesh.size}, or another --mesh"
        )


def images_at_once() -> int:
    """Batch size of an evaluation; on CPU, neurons must fit into the cache."""
    return 50 if jax.default_backend() == "cpu" else 500


def jit_for_few_runs(function: Callable) -> Callable:
    """``jax.jit`` with a short compilation, for what runs a few times outside of jit.

    On CPUs, XLA optimizes it less. With jax 0.12 the program that initializes a
    ResNet-8 then takes 1.2 CPU seconds to compile in place of 9.6, with the same bits.
    """
    options = None
    if jax.default_backend() == "cpu":
        options = {"xla_backend_optimization_level": 1}
    return jax.jit(function, compiler_options=options)


def by_image(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of images that the devices of a mesh share."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec("data"))


def rows(array: Any, numbers: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """Selected rows of an array, sharded over the devices of the mesh.

    Each process reads only the rows of its own devices.
    """
    if mesh is None:
        return jnp.asarray(array[numbers])
    return jax.make_array_from_callback(
        (len(numbers), *array.shape[1:]),
        by_image(mesh),
        lambda part: np.asarray(array[numbers[part[0]]]),
    )


def total(count: Callable, images: Any, labels: np.ndarray, mesh: Mesh | None) -> Any:
    """The sum of ``count(images, labels)`` over batches of all images, in NumPy.

    Args:
        count: returns an array, or a pytree of arrays, which are summed one by one.
        images: an array, or a pytree of arrays with a row for each image.
        labels: of the images.
    """
    counts = []
    for image_batch, label_batch in batches(images, labels, images_at_once(), mesh):
        counts.append(count(image_batch, label_batch))
    return jax.tree.map(lambda *parts: np.sum(parts, axis=0), *counts)


def outputs(predict: Callable, model: Any, images: np.ndarray) -> np.ndarray:
    """The logits ``predict(model, images)`` of all images, float32 [N, classes]."""
    logits_of = jax.jit(predict)
    no_labels = np.zeros(len(images), int)
    logits = []
    for image_batch, _ in batches(images, no_labels, images_at_once(), None):
        logits.append(np.asarray(logits_of(model, image_batch), np.float32))
    # Copies of the last image fill the last batch.
    return np.concatenate(logits)[: len(images)]


def accuracy(
    predict: Callable, images: Any, labels: np.ndarray, mesh: Mesh | None = None
) -> Callable[[Any], float]:
    """Function `model -> accuracy`, 0..1, of the logits ``predict(model, images)``."""

    @jax.jit
    def hits(model, images, labels):
        return (predict(model, images).argmax(-1) == labels).sum()

    def accuracy_of(model: Any) -> float:
        count = functools.partial(hits, model)
        return int(total(count, images, labels, mesh)) / len(labels)

    return accuracy_of


def batches(
    images: Any, labels: np.ndarray, size: int, mesh: Mesh | None
) -> Iterator[tuple[Any, jax.Array]]:
    """Images and labels, about ``size`` at a time, for one program of one shape.

    Copies of the last image fill the last batch. Their label is -1, which no network
    predicts. The images may be a pytree of arrays with a row for each image.
    """
    count = len(labels)
    devices = 1 if mesh is None else mesh.size
    # A multiple of the number of devices, since they share a batch evenly.
    size = math.ceil(min(size, count) / devices) * devices
    padded_count = math.ceil(count / size) * size
    padded_labels = np.pad(labels, (0, padded_count - count), constant_values=-1)
    for numbers in np.arange(padded_count).reshape(-1, size):
        image_numbers = np.minimum(numbers, count - 1)
        image_rows = functools.partial(rows, numbers=image_numbers, mesh=mesh)
        yield jax.tree.map(image_rows, images), rows(padded_labels, numbers, mesh)
