"""`experiments.finetune`: convert, train on, write both, go on after a kill."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snnjax
from experiments import convert, finetune
from experiments.data import load
from experiments.models import Source, build, load_snn, load_source, save_source
from experiments.presets import PRESETS_FINETUNE
from experiments.running import Convert, FineTune, TrainANN, training_loop
from experiments.train_ann import train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data():
    full = load("digits")
    test = {
        "test_images": full.test_images[:100],
        "test_labels": full.test_labels[:100],
    }
    return full._replace(**test)


@pytest.fixture(scope="module")
def source(small_network, tmp_path_factory, data):
    out = str(tmp_path_factory.mktemp("source"))
    options = {"epochs": 2, "batch_size": 32, "warmup": 0.1, "flip": False}
    config = TrainANN(model="events", dataset="digits", out=out, padding=1, **options)
    train(config, data=data)
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source, data):
    """A short fine-tuning: its configuration and its results.

    Beside its folder lies what a kill in the second epoch would leave.
    """
    out = tmp_path_factory.mktemp("finetune") / "out"
    options = {"recipe": "light", "steps": 1, "epochs": 2, "train_images": 640}
    options |= {"checkpoint": source, "calibration_images": 64, "out": str(out)}
    print_line = training_loop.print_line

    def print_and_copy(line):
        if line["epoch"] == 2:  # before its checkpoint
            shutil.copytree(out, out.with_name("killed"))
        print_line(line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop, "print_line", print_and_copy)
        return FineTune(**options), finetune.run(FineTune(**options), data=data)


def leaves(folder):
    return jax.tree.leaves(load_snn(folder).snn)


@pytest.mark.thorough
def test_training_gains_on_the_conversion_and_writes_all_files(finished, source, data):
    config, (start, last) = finished
    assert (start.recipe, last.recipe) == ("light", "light, 2 epochs")
    assert last.final > start.final + 0.02
    before, after = load_source(source).variables, load_snn(config.out).snn.params
    for path in (
        ("params", "Conv_0", "kernel"),
        ("batch_stats", "BatchNorm_0", "mean"),
        ("batch_stats", "BatchNorm_0", "var"),
    ):
        old, new = (functools.reduce(dict.get, path, tree) for tree in (before, after))
        assert np.any(np.asarray(old) != np.asarray(new))
    out = Path(config.out)
    log = training_loop.read_log(out)
    assert [line["epoch"] for line in log] == [1, 2]
    assert log[-1]["test_accuracy"] == last.final
    facts = json.loads((out / "metrics.json").read_text())
    assert facts["command"].startswith("python -m experiments.finetune --epochs 2 ")
    assert facts["config"]["epochs"] == 2 and len(facts["results"]) == 2
    of_epochs = [line["test_accuracy"] for line in log]
    assert facts["accuracy_after_epochs"] == [start.final, *of_epochs]
    percent = [f"{100 * accuracy:.1f}" for accuracy in (start.final, *of_epochs)]
    table = (out / "results.md").read_text()
    assert f"| accuracy % | {' | '.join(percent)} |" in table
    for name in ("accuracy.png", "layers.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert "Sites of `light, 2 epochs, binary`, T = 1, which is saved:" in table
    again = Convert(restore=config.out, test_images=100)
    assert convert.restore(again, data=data) == last.final


@pytest.mark.thorough
def test_training_through_the_rounding_gains_on_the_rounded_conversion(
    finished, data, tmp_path
):
    """Weights of 3 bits; thresholds and potentials keep their whole numbers."""
    changes = {"weight_bits": 3, "steps": 4, "epochs": 4}
    changes |= {"learning_rate": 0.01, "batch_size": 32}
    config = dataclasses.replace(finished[0], out=str(tmp_path), **changes)
    start, last = finetune.run(config, data=data)
    assert (start.recipe, last.recipe) == ("light, 3 bits", "light, 3 bits, 4 epochs")
    assert last.final > start.final + 0.05
    stored = snnjax.load(tmp_path / "snn.safetensors").snn
    for neurons in stored.neurons.values():
        threshold = np.asarray(neurons.threshold)
        assert np.array_equal(threshold, np.rint(threshold))
    again = Convert(restore=config.out, test_images=100)
    with pytest.raises(ValueError, match="in whole numbers of 3 bits"):
        convert.restore(again, data=data)


@pytest.mark.thorough
def test_devices_share_a_run_that_keeps_averages_and_holds_images_back(
    finished, source, data, tmp_path
):
    """An epoch with few images, on one device and on four."""
    changes = {"train_images": 192, "held_back": 64, "epochs": 1}
    changes |= {"recipe": "max_activation", "keep_averages": True}
    config = dataclasses.replace(finished[0], **changes)
    runs = {}
    for mesh in (1, 4):
        config = dataclasses.replace(config, mesh=mesh, out=str(tmp_path / f"{mesh}"))
        runs[mesh] = finetune.run(config, data=data)
        name = "max_activation, 1 epoch, averages kept, images held back, binary"
        assert runs[mesh][1].name == name
    facts = json.loads((tmp_path / "4" / "metrics.json").read_text())
    assert facts["evaluated_on"] == "training images held back"
    before, after = load_source(source).variables, load_snn(config.out).snn.params
    chex.assert_trees_all_equal(before["batch_stats"], after["batch_stats"])
    old, new = (np.asarray(v["params"]["Conv_0"]["kernel"]) for v in (before, after))
    assert (old != new).any()
    alone, shared = (leaves(tmp_path / f"{mesh}") for mesh in runs)
    chex.assert_trees_all_close(alone, shared, rtol=0.1, atol=2e-3)
    for one, other in zip(*runs.values(), strict=True):
        assert one.final == pytest.approx(other.final, abs=0.03)


@pytest.mark.thorough
def test_running_averages_are_not_rounded_to_bfloat16(source, data):
    """0.9 of the old average stays, even if the new one is computed in bfloat16."""
    network = load_source(source)
    images = jnp.asarray(data.test_images[:4], jnp.float32) / 16
    fn = jax.jit(finetune._in_training(network, "bfloat16"))
    averages = fn(network.variables, images)[1]["batch_stats"]
    mean = averages["BatchNorm_0"]["mean"]
    assert mean.dtype == jnp.float32
    assert not np.array_equal(mean, mean.astype(jnp.bfloat16))


@pytest.mark.thorough
def test_a_run_that_was_killed_ends_in_the_same_bits(finished, data, monkeypatch):
    config, (_, last) = finished
    killed = Path(config.out).with_name("killed")
    assert not (killed / "metrics.jsonl").exists()
    again = dataclasses.replace(config, out=str(killed))
    assert finetune.run(again, data=data)[1].final == last.final
    chex.assert_trees_all_equal(leaves(config.out), leaves(again.out))
    with pytest.raises(ValueError, match="with other rules, epochs. Give an"):
        finetune.run(dataclasses.replace(again, epochs=3), data=data)
    monkeypatch.setattr(finetune, "prepare", None)  # refused before it converts
    with pytest.raises(ValueError, match="batch_size 1000"):
        finetune.run(dataclasses.replace(again, batch_size=1000), data=data)


def test_a_missing_source_network_is_trained_on_all_images(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = {}

    def trained(preset, *, data):
        images[preset.out] = len(data.train_images)
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "train", trained)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(FineTune(train_images=356, held_back=56), data=data)
    assert images == {"runs/digits_resnet": len(data.train_images)}


@pytest.mark.thorough
def test_operators_need_averages_that_are_kept(data, tmp_path):
    checkpoint = str(ROOT / "experiments" / "sources" / "vit.safetensors")
    small = data._replace(
        train_images=np.zeros((8, 32, 32, 3), np.uint8),
        test_images=np.zeros((4, 32, 32, 3), np.uint8),
        train_labels=np.zeros(8, int),
        test_labels=np.zeros(4, int),
    )
    options = {"checkpoint": checkpoint, "batch_size": 4, "out": str(tmp_path)}
    for start, advice in (
        ({"from_scratch": True}, "Leave out .*add"),
        ({"calibration_images": 8}, "Add"),
    ):
        message = f"operators .*{advice} --keep_averages true"
        with pytest.raises(ValueError, match=message):
            finetune.run(FineTune(**options, **start), data=small)
    presets = [PRESETS_FINETUNE[f"cifar10_{name}"] for name in ("vit", "resnet20")]
    assert [preset.keep_averages for preset in presets] == [True, False]


@pytest.mark.thorough
def test_random_weights_start_without_a_conversion(small_network, data, tmp_path):
    model = build("events", 10, norm=False)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    card = {"model": "events", "norm": False, "num_classes": 10}
    card |= {"input_shape": [8, 8, 1], "test_accuracy": 0.1}
    plain, out = tmp_path / "plain", tmp_path / "out"
    plain.mkdir()
    save_source(plain, Source(model, variables, card))
    options = {"from_scratch": True, "steps": 1, "levels": (-1, 1), "epochs": 3}
    options |= {"learning_rate": 0.02, "batch_size": 32, "distillation": 0.0}
    options |= {"train_images": 640}
    config = FineTune(checkpoint=str(plain), out=str(out), **options)
    start, last = finetune.run(config, data=data)
    assert start.recipe == "from scratch" and start.final < 0.3  # of ten classes
    assert last.name == "from scratch, 3 epochs, signed"
    assert last.final > start.final + 0.2
    card = load_snn(out).card
    assert card.get("calibration") is None and card["steps"] == 1
    facts = json.loads((out / "metrics.json").read_text())
    assert "from_scratch True" in facts["command"]
