"""Direct training by the command: learning, resuming, temperatures, events."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snnjax
from experiments import convert, data, surrogates, train_snn
from experiments.models import load_snn
from experiments.presets import PRESETS_SNN
from experiments.running import TrainSNN

STEPS = 2


@pytest.fixture(scope="module")
def config():
    return dataclasses.replace(
        PRESETS_SNN["digits"],
        model="events",
        steps=STEPS,
        epochs=3,
        batch_size=64,
        learning_rate=1e-2,
        difference_images=16,
    )


@pytest.fixture(scope="module")
def trained(digits, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    snn = train_snn.train(dataclasses.replace(config, out=str(out)), data=digits)
    return out, snn


def lines(out):
    return [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_learns_logs_and_draws(trained):
    out, _ = trained
    first, *_, last = lines(out)
    assert last["loss"] < 0.9 * first["loss"]
    assert last["train_accuracy"] > first["train_accuracy"]
    assert len(last["temperature"]) == 3
    assert (out / "curves.png").stat().st_size > 10_000


def test_the_paper_s_choice_moves_all_temperatures_by_its_step(trained, config):
    out, _ = trained
    moved = np.array([line["temperature"] for line in lines(out)]) - config.temperature
    assert np.ptp(moved, axis=1).max() == 0
    np.testing.assert_allclose(moved % config.temperature_rate, 0, atol=1e-6)


def test_statistics_of_batch_norm_are_trained_and_neurons_are_not(trained, config):
    _, snn = trained
    assert jnp.any(snn.params["batch_stats"]["BatchNorm_0"]["mean"] != 0)
    assert all(n.threshold == config.threshold for n in snn.neurons.values())


def test_interrupted_training_ends_in_the_same_network(
    trained, digits, config, tmp_path
):
    # What a kill after the line of epoch 3 and before its checkpoint leaves behind.
    out, snn = trained
    shutil.copytree(out / "checkpoints/2", tmp_path / "checkpoints/2")
    shutil.copy(out / "config.json", tmp_path)
    shutil.copy(out / "metrics.jsonl", tmp_path)
    resumed = train_snn.train(
        dataclasses.replace(config, out=str(tmp_path)), data=digits
    )
    assert_equal(resumed, snn)
    for ours, theirs in zip(lines(tmp_path), lines(out), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_the_network_and_the_best_are_restored(trained, digits, capsys):
    out, snn = trained
    restored = load_snn(out)
    assert_equal(restored.snn.params, snn.params)
    assert_equal(restored.snn.neurons, snn.neurons)
    assert restored.card["training"]["learn"] == "choose"
    best = load_snn(out / "best").card["accuracy"]
    assert best == max(line["test_accuracy"] for line in lines(out))
    convert.main(["--restore", str(out)])
    assert "direct training, dspike, choose" in capsys.readouterr().out


def test_a_folder_with_a_run_may_be_refused(trained, digits, config):
    out, _ = trained
    config = dataclasses.replace(config, out=str(out), resume=False)
    with pytest.raises(ValueError, match="holds a run of 3 epochs; choose another"):
        train_snn.train(config, data=digits)


def test_a_dead_network_is_told(digits, config, tmp_path):
    config = dataclasses.replace(config, threshold=1e4, out=str(tmp_path))
    with pytest.raises(ValueError, match="no gradient at all reaches .*kernel"):
        train_snn.train(config, data=digits)


def test_divergence_names_the_step(digits, config, tmp_path):
    config = dataclasses.replace(
        config, learn="fixed", learning_rate=1e38, out=str(tmp_path)
    )
    with pytest.raises(FloatingPointError, match="epoch 1, step .* of 4; .* learning_"):
        train_snn.train(config, data=digits)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learn": "guess"}, "learn must be one of fixed, choose, not"),
        ({"leak": 0.0}, "leak must be in \\(0, 1\\], not 0.0"),
        ({"steps": 0}, "steps must be > 0"),
        ({"temperature": 0.25}, "temperature 0.25 is below lowest 0.5"),
        ({"flip": True}, "add --flip false"),
    ],
)
def test_a_wrong_option_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainSNN(**changes)


def test_a_fixed_temperature_stays_below_the_lowest_of_those_that_learn(
    digits, config, tmp_path
):
    changes = {"learn": "fixed", "temperature": 0.25, "epochs": 1, "batch_size": 256}
    config = dataclasses.replace(config, **changes, out=str(tmp_path))
    snn = train_snn.train(config, data=digits)
    assert all(b == 0.25 for b in snnjax.training.temperatures(snn).values())


def test_what_cannot_run_is_told_before_anything_takes_time(
    digits, config, tmp_path, monkeypatch
):
    monkeypatch.setattr(train_snn, "build", None)
    (tmp_path / "file").touch()
    inside = dataclasses.replace(config, out=str(tmp_path / "file" / "out"))
    with pytest.raises(ValueError, match="--out .* cannot be written to"):
        train_snn.train(inside, data=digits)
    large = dataclasses.replace(config, batch_size=10**6, out=str(tmp_path))
    with pytest.raises(ValueError, match="batch_size 1000000 exceeds"):
        train_snn.train(large, data=digits)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_damaged_files_of_a_run_are_named(name, trained, digits, config, tmp_path):
    out = shutil.copytree(trained[0], tmp_path / "damaged")
    (out / name).write_text("{")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        train_snn.train(dataclasses.replace(config, out=str(out)), data=digits)


def test_an_unknown_surrogate_is_refused(digits, tmp_path):
    config = TrainSNN(surrogate="step", out=str(tmp_path))
    with pytest.raises(ValueError, match="no surrogate 'step'; allowed: rectangle"):
        train_snn.train(config, data=digits)


# ----------------------------------------------------------------------- events


def recordings(count, seed):
    """Events whose class is the half of the sensor that they are in."""
    draw = np.random.default_rng(seed)
    fields = [("x", "i8"), ("y", "i8"), ("p", "i8"), ("t", "i8")]
    for i in range(count):
        found = np.zeros(60, fields)
        found["x"] = draw.integers(0, 4, 60) + 4 * (i % 2)
        found["y"] = draw.integers(0, 8, 60)
        found["p"] = draw.integers(0, 2, 60)
        found["t"] = np.sort(draw.integers(0, 1000, 60))
        yield found, i % 2


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("events") / "halves.npz"
    data.prepare(path, train=recordings(64, 0), test=recordings(32, 1))
    return path


def test_frames_count_the_events_of_their_time(file):
    found = data.load_events(file, 4)
    assert found.train_images.shape == (64, 4, 8, 8, 2)
    assert (found.train_images.sum((1, 2, 3, 4)) == 60).all()
    recording, label = next(recordings(1, 0))
    times = recording["t"] - recording["t"][0]
    quarter = times * 4 // (times.max() + 1)
    expected = np.zeros((4, 8, 8, 2), int)
    for e, t in zip(recording, quarter, strict=True):
        expected[t, e["y"], e["x"], e["p"]] += 1
    np.testing.assert_array_equal(found.train_images[0], expected)
    assert found.train_labels[0] == label


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
    assert lines(tmp_path)[-1]["test_accuracy"] > 0.8


def test_missing_or_foreign_files_are_told(tmp_path):
    with pytest.raises(data.MissingDataError, match="pip install tonic"):
        data.load_events(tmp_path / "absent.npz", 4)
    np.savez(tmp_path / "other.npz", train_x=np.zeros(3))
    with pytest.raises(ValueError, match="lacks .*'train_y'"):
        data.load_events(tmp_path / "other.npz", 4)


# ------------------------------------------------------- comparison of surrogates


def test_every_surrogate_is_a_row_and_the_table_is_of_all_seeds(
    digits, config, tmp_path, monkeypatch
):
    seen = []

    def train(training):
        seen.append((training.surrogate, training.learn, training.seed))
        line = {"test_accuracy": 0.9 + 0.02 * training.seed}
        folder = Path(training.out)
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")

    monkeypatch.setattr(surrogates, "train", train)
    compare = surrogates.Compare(seeds=(0, 1), out=str(tmp_path))
    found = surrogates.run(compare)
    assert len(seen) == 2 * len(surrogates.ROWS) == len({*seen})
    assert found["rectangle"] == [0.9, 0.92]
    text = (tmp_path / "surrogates.md").read_text()
    assert "| rectangle | 91.00 ± 1.41 |" in text
    assert (tmp_path / "surrogates.png").stat().st_size > 10_000


def test_a_comparison_of_nothing_is_refused():
    with pytest.raises(ValueError, match="training must be one of digits, cifar10_r"):
        surrogates.Compare(training="imagenet")
    with pytest.raises(ValueError, match="seeds is empty"):
        surrogates.Compare(seeds=())
