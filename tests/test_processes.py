"""Two processes that share the examples compute what one does; devices of a command."""

import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from experiments.running import devices

WORK = """
import jax, numpy as np, snnjax
from experiments.running import devices

def fn(params, x):
    return jax.nn.relu(x @ params["hidden"]) @ params["readout"]

def results(x):
    snn = snnjax.convert(fn, params, x, steps=2, recipe=snnjax.light("channel"))
    return snn, jax.jit(snnjax.spiking(fn))(snn, x)

with devices.together():
    draw = np.random.default_rng(0).normal
    params = {"hidden": draw(size=(5, 8)), "readout": draw(size=(8, 3))}
    params = jax.tree.map(np.float32, params)
    x = np.float32(draw(size=(16, 5)))
    shared = devices.rows(x, np.arange(16), devices.make_mesh(0))
    (snn, outputs), (expected, expected_outputs) = map(results, (shared, x))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, jax.device_get(snn), jax.device_get(expected))
    (part,) = outputs.addressable_shards
    close(part.data, np.asarray(expected_outputs)[part.index])
    rates, key = abs(shared) / 9, jax.random.key(0)  # which are checked
    spikes = snnjax.inputs.encode(rates, "poisson", 2, key)
    print(part.data.shape, np.any(part.data), spikes.shape)
"""


def test_two_processes_convert_and_simulate_as_one_does():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORK],
            env=os.environ
            | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    ends = [worker.communicate(timeout=200) for worker in workers]
    for worker, (_, errors) in zip(workers, ends, strict=True):
        assert worker.returncode == 0, errors[-3000:]
    # Only the first one prints; what Gloo says is not theirs.
    printed = [re.sub(r"\[Gloo\].*\n", "", out) for out, _ in ends]
    assert printed == ["(2, 8, 3) True (2, 16, 5)\n", ""]


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="mesh is 9, but JAX finds 8 devices"):
        devices.make_mesh(9)


def test_half_an_address_is_refused(monkeypatch):
    for name, value in (("COORDINATOR_ADDRESS", "a:1"), ("NUM_PROCESSES", "two")):
        monkeypatch.setenv(f"JAX_{name}", value)
        with (
            pytest.raises(ValueError, match="belong together, the last two as"),
            devices.together(),
        ):
            pass


def test_the_last_batch_is_filled_up_and_counts_once():
    images, labels = np.arange(10, dtype=np.float32), np.arange(10)
    seen = list(devices.batches(images, labels, 6, devices.make_mesh(4)))
    assert [len(y) for _, y in seen] == [8, 8]  # one shape, shared by four devices
    answers = np.concatenate([np.asarray(y) for _, y in seen])
    np.testing.assert_array_equal(answers, [*labels, *[-1] * 6])
