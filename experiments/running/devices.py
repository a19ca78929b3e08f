"""Devices and processes that share the work of an experiment.

``--mesh N`` shares every batch among N devices, ``--mesh 0`` among all. Processes
connect by JAX_COORDINATOR_ADDRESS (host:port of the first one), JAX_NUM_PROCESSES and
JAX_PROCESS_ID; only the first one prints and writes files. Each process copies to its
devices only their part of every batch.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from snnjax import sharding

# Seconds without a sign of a process after which the others end, with a message.
HEARTBEAT = 20


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other processes, if the environment variables name any.

    If one of them ends, this one ends too, with a message and exit code 1.

    Raises:
        ValueError: one of the variables is missing or no number.
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
    names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
    settings = {name: os.environ[name] for name in names if name in os.environ}
    if not settings or jax.distributed.is_initialized():
        return
    try:
        address = settings[names[0]]
        count, index = (int(settings[name]) for name in names[1:])
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
    """For tqdm's ``disable``: None hides the bar if there is no terminal.

    All processes but the first one hide it.
    """
    return None if first() else True


def alone() -> ocp.options.MultiprocessingOptions:
    """Orbax's options for this process to write without waiting for the others."""
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=str(here)
    )


def make_mesh(devices: int) -> Mesh | None:
    """A mesh of so many devices, 0 for all; None for a single one.

    Raises:
        ValueError: there are fewer, or there are several processes and not all of their
            devices are in it.
    """
    count = jax.device_count()
    if devices == 0 or jax.process_count() > 1:
        if devices not in (0, count):
            raise ValueError(
                f"mesh is {devices}, but {jax.process_count()} processes have {count} "
                "devices; allowed: --mesh 0, which takes all"
            )
        devices = count
    if devices > count:
        raise ValueError(
            f"mesh is {devices}, but JAX finds {count} devices; allowed: --mesh 1 to "
            f"{count}, or 0 for all"
        )
    if devices == 1:
        return None
    first_devices = np.asarray(jax.devices()[:devices])
    return Mesh(first_devices, ("data",), axis_types=(AxisType.Auto,))


def over_batch(mesh: Mesh | None) -> NamedSharding | None:
    """How the devices of the mesh share a batch; None for a single device."""
    return mesh and NamedSharding(mesh, PartitionSpec("data"))


def check_batch(name: str, examples: int, batch_sharding: NamedSharding | None) -> None:
    """Raise unless the devices can have equally many examples."""
    count = sharding.size(batch_sharding)
    if examples % count:
        raise ValueError(
            f"{name}: {count} devices cannot share {examples} examples evenly; give "
            f"{examples - examples % count or count} or another multiple of {count}, "
            "or a smaller --mesh"
        )


def batches(
    images: Any, labels: Any, size: int, mesh: Mesh | None
) -> Iterator[tuple[Any, Any]]:
    """Images and labels, about ``size`` at a time, on the devices of the mesh.

    Every device gets equally many: copies of the last image fill up the last batch,
    with the label -1, which no network predicts.
    """
    batch_sharding = over_batch(mesh)
    devices = sharding.size(batch_sharding)
    size = max(1, size // devices) * devices
    for start in range(0, len(labels), size):
        x, y = images[start : start + size], labels[start : start + size]
        missing = -len(y) % devices
        if missing:
            x = np.concatenate([x, np.repeat(x[-1:], missing, 0)])
            y = np.concatenate([y, np.full(missing, -1, np.int32)])
        yield sharding.put((x, y), batch_sharding)
