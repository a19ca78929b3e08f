"""Direct training by the command: learning, resuming, temperatures, events."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import comparison, convert, data, train_snn
from experiments.models import load_snn
from experiments.presets import PRESETS_SNN
from experiments.running import training_loop

CONFIG = dataclasses.replace(
    PRESETS_SNN["digits"],
    model="events",
    steps=2,
    epochs=2,
    batch_size=64,
    learning_rate=1e-2,
    difference_images=16,
)


@pytest.fixture(scope="module")
def trained(small_network, digits, tmp_path_factory):
    """A training; beside it lies what a kill in the second epoch would leave."""
    out = tmp_path_factory.mktemp("runs") / "out"
    draw = train_snn.training_figures.training

    def draw_and_copy(log, *arguments):
        if len(log) == 2:
            shutil.copytree(out, out.with_name("killed"))
        draw(log, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_snn.training_figures, "training", draw_and_copy)
        config = dataclasses.replace(CONFIG, out=str(out))
        return out, train_snn.train(config, data=digits)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.thorough
def test_a_training_learns_logs_and_draws(trained):
    out, snn = trained
    first, last = log = training_loop.read_log(out)
    assert last["loss"] < 0.95 * first["loss"]
    assert last["train_accuracy"] > first["train_accuracy"]
    assert (out / "curves.png").stat().st_size > 10_000
    # Algorithm 1 of the paper moves the temperatures of both sites by its step.
    temperatures = np.array([line["temperature"] for line in log])
    assert temperatures.shape == (2, 2) and np.ptp(temperatures, axis=1).max() == 0
    changes = temperatures - CONFIG.temperature
    np.testing.assert_allclose(changes % CONFIG.temperature_rate, 0, atol=1e-6)
    # Statistics of BatchNorm are trained, and thresholds are not.
    assert np.any(snn.params["batch_stats"]["BatchNorm_0"]["mean"] != 0)
    assert all(n.threshold == CONFIG.threshold for n in snn.neurons.values())


@pytest.mark.thorough
def test_interrupted_training_ends_in_the_same_network(trained, digits):
    out, snn = trained
    killed = out.with_name("killed")
    assert len(training_loop.read_log(killed)) == 1
    config = dataclasses.replace(CONFIG, out=str(killed))
    assert_equal(train_snn.train(config, data=digits), snn)
    resumed_log, whole_log = training_loop.read_log(killed), training_loop.read_log(out)
    for line, whole_line in zip(resumed_log, whole_log, strict=True):
        assert line | {"seconds": 0} == whole_line | {"seconds": 0}


@pytest.mark.thorough
def test_the_network_is_restored(trained, capsys):
    out, snn = trained
    restored = load_snn(out)
    assert_equal(restored.snn.params, snn.params)
    assert_equal(restored.snn.neurons, snn.neurons)
    assert restored.card["training"]["learn"] == "choose"
    convert.main(["--restore", str(out)])
    assert "direct training, dspike, choose" in capsys.readouterr().out


def test_a_dead_network_is_told_and_a_fixed_temperature_is_not_chosen(
    digits, tmp_path, monkeypatch
):
    def choose(*_):
        raise AssertionError("the temperature is fixed")

    monkeypatch.setattr(train_snn, "_choose", choose)
    # Such a temperature may be below the lowest of those that are chosen.
    changes = {"learn": "fixed", "temperature": 0.25, "threshold": 1e4}
    config = dataclasses.replace(CONFIG, **changes, out=str(tmp_path))
    with pytest.raises(ValueError, match="no gradient at all reaches .*kernel"):
        train_snn.train(config, data=digits)


# ----------------------------------------------------------------------- events


def recordings(count, seed):
    """Events whose class is the half of the sensor that they are in."""
    draw = np.random.default_rng(seed)
    fields = [("x", "i8"), ("y", "i8"), ("p", "i8"), ("t", "i8")]
    for i in range(count):
        events = np.zeros(60, fields)
        events["x"] = draw.integers(0, 4, 60) + 4 * (i % 2)
        events["y"] = draw.integers(0, 8, 60)
        events["p"] = draw.integers(0, 2, 60)
        events["t"] = np.sort(draw.integers(0, 1000, 60))
        yield events, i % 2


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("events") / "halves.npz"
    data.prepare(path, train=recordings(64, 0), test=recordings(32, 1))
    return path


def test_frames_count_the_events_of_their_time(file):
    halves = data.load_events(file, 4)
    assert halves.train_images.shape == (64, 4, 8, 8, 2)
    assert (halves.train_images.sum((1, 2, 3, 4)) == 60).all()
    recording, label = next(recordings(1, 0))
    times = recording["t"] - recording["t"][0]
    quarter = times * 4 // (times.max() + 1)
    expected = np.zeros((4, 8, 8, 2), int)
    for e, t in zip(recording, quarter, strict=True):
        expected[t, e["y"], e["x"], e["p"]] += 1
    np.testing.assert_array_equal(halves.train_images[0], expected)
    assert halves.train_labels[0] == label


@pytest.mark.slow
def test_events_are_learnt(file, tmp_path):
    config = dataclasses.replace(
        PRESETS_SNN["nmnist"],
        dataset=file.name,
        data_dir=str(file.parent),
        out=str(tmp_path),
        steps=3,
        epochs=15,
        batch_size=32,
        learn="fixed",
        padding=0,
    )
    train_snn.train(config)
    assert training_loop.read_log(tmp_path)[-1]["test_accuracy"] > 0.8


def test_missing_or_foreign_files_are_told(tmp_path):
    with pytest.raises(data.MissingDataError, match="pip install tonic"):
        data.load_events(tmp_path / "absent.npz", 4)
    np.savez(tmp_path / "other.npz", train_x=np.zeros(3))
    with pytest.raises(ValueError, match="lacks .*'train_y'"):
        data.load_events(tmp_path / "other.npz", 4)


# ------------------------------------------------------- comparison of surrogates


@pytest.mark.thorough
def test_every_surrogate_is_a_row_and_the_table_is_of_all_seeds(tmp_path, monkeypatch):
    seen = []

    def train(training):
        seen.append((training.surrogate, training.learn, training.seed))
        line = {"epoch": 3, "test_accuracy": 0.9 + 0.02 * training.seed}
        folder = Path(training.out)
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")

    monkeypatch.setattr(comparison, "train", train)
    lines = comparison.run(comparison.Comparison(seeds=(0, 1), out=str(tmp_path)))
    assert len(seen) == 2 * len(comparison.SURROGATE_ROWS) == len({*seen})
    assert lines == json.loads((tmp_path / "comparison.json").read_text())
    table = comparison.table_of(["--table", str(tmp_path / "comparison.json")])
    assert table == (tmp_path / "comparison.md").read_text()
    assert "| digits | rectangle | 2 | 3 | | 91.00 ± 1.41 |" in table
    assert (tmp_path / "surrogates.png").stat().st_size > 10_000
    out = tmp_path / "neurons"
    rows = dataclasses.replace(comparison.PRESETS["neurons"], out=str(out))
    done = comparison.run(dataclasses.replace(rows, seeds=(0,)))
    assert [line["row"] for line in done] == list(train_snn.NEURONS)
    assert not (out / "surrogates.png").exists()
