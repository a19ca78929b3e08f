"""Commands on several devices and processes: the same results; one writes."""

import dataclasses
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import convert, train_ann, train_snn
from experiments.models import load_snn, load_source
from experiments.presets import PRESETS_ANN, PRESETS_SNN
from experiments.running import Convert, command, devices, training_loop

OPTIONS = {"epochs": 2, "train_images": 128, "batch_size": 64, "padding": 0}
ANN = dataclasses.replace(PRESETS_ANN["digits_resnet"], model="events", **OPTIONS)
SNN = dataclasses.replace(PRESETS_SNN["digits"], model="events", steps=2, **OPTIONS)
CONVERT = Convert(recipes=("light",), steps=(4,), seeds=(0,), calibration_images=64)


def words(config, out):
    """The options of a command, on all devices there are."""
    line = command("module", dataclasses.replace(config, mesh=0))
    return [*shlex.split(line.removeprefix("python -m module")), "--out", str(out)]


def start(config, out, count=2):
    """``python -m experiments.train_ann`` as so many processes that work together."""
    return pythons(["-m", "experiments.train_ann", *words(config, out)], count)


def pythons(words, count=2):
    """So many processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env=os.environ
            | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def finish(workers):
    """What they said; fails if one of them did. What Gloo says is not theirs."""
    ends = [worker.communicate(timeout=200) for worker in workers]
    for worker, (_, errors) in zip(workers, ends, strict=True):
        assert worker.returncode == 0, errors[-3000:]
    return [re.sub(r"\[Gloo\].*\n", "", out) for out, _ in ends]


def assert_near(a, b, atol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), a, b)


def losses(out):
    return [line["loss"] for line in training_loop.read_log(out)]


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
    print(part.data.shape, np.any(part.data))
"""


@pytest.mark.thorough
def test_two_processes_convert_and_simulate_as_one_does():
    # Only the first one prints.
    assert finish(pythons(["-c", WORK])) == ["(2, 8, 3) True\n", ""]


BOTH = """
from experiments import convert, train_ann
train_ann.main({training})
convert.main({conversion})
"""


@pytest.mark.slow
def test_the_commands_of_two_processes_train_and_convert_as_one_does(tmp_path):
    source, out, alone = (tmp_path / name for name in ("source", "out", "alone"))
    conversion = dataclasses.replace(CONVERT, checkpoint=str(source))
    code = BOTH.format(training=words(ANN, source), conversion=words(conversion, out))
    printed, printed_by_second = finish(pythons(["-c", code]))
    assert "epoch 2" in printed and "light" in printed
    assert printed_by_second == ""
    expected = train_ann.train(dataclasses.replace(ANN, out=str(alone)))
    np.testing.assert_allclose(losses(source), losses(alone), rtol=1e-4)
    assert_near(load_source(source).variables, expected.variables)
    convert.run(dataclasses.replace(conversion, out=str(alone / "snn"), mesh=8))
    restored, expected = load_snn(out), load_snn(alone / "snn")
    assert_near(restored.snn, expected.snn, atol=1e-3)
    accuracies = [snn.card["accuracy"] for snn in (restored, expected)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


BY_BEST = """
import jax, numpy as np, snnjax
from experiments.running import devices

def fn(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]

with devices.together():
    draw = np.random.default_rng(0).normal
    params = [draw(size=s).astype("float32") for s in [(5, 8), (8, 8), (8, 3)]]
    x = draw(size=(16, 5)).astype("float32")
    shared = devices.rows(x, np.arange(len(x)), devices.make_mesh(0))
    for wait in (0, 4):
        snns = [
            jax.device_get(snnjax.convert(fn, params, x, steps=4, wait=wait))
            for x in (x, shared)
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *snns)
    print("the same numbers")
"""


@pytest.mark.slow
def test_two_processes_follow_the_sharding_of_the_images():
    first, _ = finish(pythons(["-c", BY_BEST]))
    assert first == "the same numbers\n"


@pytest.mark.slow
def test_eight_devices_train_a_spiking_network_as_one_does(digits, tmp_path):
    outs = tmp_path / "1", tmp_path / "8"
    for out, mesh in zip(outs, (1, 8), strict=True):
        config = dataclasses.replace(SNN, out=str(out), mesh=mesh)
        train_snn.train(config, data=digits)
    np.testing.assert_allclose(losses(outs[1]), losses(outs[0]), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_goes_on(killed, tmp_path):
    config = dataclasses.replace(ANN, epochs=40)
    workers = start(config, tmp_path)
    log = tmp_path / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        assert workers[0].poll() is None
        time.sleep(0.2)
    workers[killed].send_signal(signal.SIGKILL)
    _, errors = workers[1 - killed].communicate(timeout=90)
    workers[killed].communicate()
    assert workers[1 - killed].returncode not in (0, None)
    assert "error: another process has ended" in errors or "another task died" in errors
    finish(start(config, tmp_path))
    assert len(losses(tmp_path)) == 40


@pytest.mark.slow
def test_kills_at_any_moment_cost_an_epoch_at_most_and_no_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = dataclasses.replace(ANN, epochs=60)
    finish(start(config, whole, count=1))
    generator = np.random.default_rng(0)
    for _ in range(20):
        epochs = len(losses(killed)) if (killed / "metrics.jsonl").exists() else 0
        (worker,) = start(config, killed, count=1)
        time.sleep(generator.uniform(4, 12))
        worker.kill()
        worker.communicate()
        if (killed / "metrics.jsonl").exists():
            assert len(losses(killed)) >= epochs - 1
    finish(start(config, killed, count=1))
    assert losses(killed) == losses(whole)
    assert_near(load_source(killed).variables, load_source(whole).variables, atol=0)


def test_a_process_ends_with_a_message_where_another_one_is_lost(monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="^1$"), devices.together():
        raise jax.errors.JaxRuntimeError("a peer is gone\nand more")
    message = "error: another process has ended or is out of reach (a peer is gone).\n"
    assert capsys.readouterr().err.startswith(message)


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
