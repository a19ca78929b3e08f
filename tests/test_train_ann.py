"""Training of a source network: learning, quantized ReLUs, saving and loading."""

import dataclasses

import jax
import numpy as np
import pytest
from chex import assert_trees_all_equal as assert_equal
from flax.traverse_util import flatten_dict, unflatten_dict

import snnjax
from experiments import data, train_ann
from experiments.models import load_source, source_function
from experiments.presets import PRESETS_ANN
from experiments.running import training_loop

CONFIG = dataclasses.replace(
    PRESETS_ANN["digits_resnet"], model="events", epochs=2, batch_size=32
)


@pytest.fixture(scope="module")
def trained(small_network, digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    source = train_ann.train(dataclasses.replace(CONFIG, out=str(out)), data=digits)
    return out, source


def test_a_training_learns_logs_and_is_loaded(trained, digits):
    out, source = trained
    first, second = training_loop.read_log(out)
    assert second["loss"] < first["loss"]
    assert second["train_accuracy"] > first["train_accuracy"]
    assert source.card["test_accuracy"] == second["test_accuracy"]
    for path in (out, out / "source.safetensors"):
        loaded = load_source(path)
        assert_equal(loaded.variables, source.variables)
        assert len(loaded.card.pop("sha256")) == 64
        assert loaded.card == source.card
    logits = jax.jit(source_function(loaded))(
        loaded.variables, data.normalize(digits, digits.test_images)
    )
    hits = np.asarray(logits).argmax(-1) == digits.test_labels
    assert hits.mean() == pytest.approx(source.card["test_accuracy"])


@pytest.mark.thorough
def test_a_trained_network_becomes_a_quantized_one_that_spikes_equal(
    trained, digits, tmp_path
):
    out, source = trained
    changes = {"levels": 4, "checkpoint": str(out), "learning_rate": 1e-3}
    config = dataclasses.replace(CONFIG, out=str(tmp_path), epochs=1, **changes)
    begun = train_ann._initial_state(
        train_ann.build("events", 10, levels=4),
        train_ann.make_optimizer(config, digits),
        config,
        digits,
        source,
    )
    weights = flatten_dict(begun.variables["params"])
    maxima = []
    for path in [*weights]:
        if "log" in path[-1]:
            maxima.append(float(weights.pop(path)))
    assert len(maxima) == len({*maxima}) == 2
    assert_equal(unflatten_dict(weights), source.variables["params"])

    quantized = train_ann.train(config, data=digits)
    assert quantized.card["levels"] == 4
    assert "--levels 4" in quantized.card["command"]
    assert quantized.card["test_accuracy"] > source.card["test_accuracy"] - 0.05
    loaded = load_source(tmp_path)
    fn = source_function(loaded)
    x = data.normalize(digits, digits.test_images[:16])
    options = {"steps": 4, "wait": 4, "recipe": snnjax.quantized()}
    snn = snnjax.convert(fn, loaded.variables, x, **options)
    logits = jax.jit(snnjax.spiking(fn, steps=4, wait=4))(snn, x).mean(0)
    exact = jax.jit(fn)(loaded.variables, x)
    np.testing.assert_allclose(logits, exact, rtol=1e-4, atol=1e-4)


def test_a_network_of_another_kind_is_no_beginning(
    trained, digits, tmp_path, monkeypatch
):
    out, source = trained
    options = {"out": str(tmp_path), "checkpoint": str(out)}
    quantized = source._replace(card=source.card | {"levels": 4})
    for changes, message in (
        ({"model": "small"}, "is events, not small .*; give --model events"),
        ({"norm": False}, "norm of .* is True, and .* False; change the option"),
        ({"out": str(out)}, "is in --out, .* give another --out"),
        ({}, "levels of .* is 4, and .* None; change the option"),
    ):
        if not changes:
            monkeypatch.setattr(train_ann, "load_source", lambda path, card: quantized)
        changed = dataclasses.replace(CONFIG, **options | changes)
        with pytest.raises(ValueError, match=message):
            train_ann.train(changed, data=digits)


def test_what_is_no_source_network_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*train_ann --preset"):
        load_source(tmp_path / "absent")
    with pytest.raises(ValueError, match="is not a trained source network"):
        load_source(tmp_path)
