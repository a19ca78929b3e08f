"""Options of the commands check themselves, and say what is allowed."""

import dataclasses
import re

import pytest

from experiments import train_ann
from experiments.presets import PRESETS_ANN, PRESETS_CONVERT
from experiments.running import Convert, TrainANN, parse, wrapped


def test_a_line_that_is_refused_ends_with_one_message(capsys):
    for line, message in (
        ("--preset resnet9", "preset must be one of .*digits_resnet.*, not resnet9 "),
        ("--preset digits_restnet", "not digits_restnet; closest: digits_resnet"),
        ("--preset digits_resnet --flip true", "add --flip false"),
        ("--levels", "argument --levels: expected a value"),
        ("--checkpoint --epochs 3", "argument --checkpoint: expected a value"),
        ("--epoch 3", r"--epoch 3; closest: --epochs \(--help lists the options\)\n$"),
        ("--nonsense 3", r"arguments: --nonsense 3 \(--help lists the options\)\n$"),
    ):
        with pytest.raises(SystemExit) as caught:
            parse(TrainANN, PRESETS_ANN, line.split())
        assert caught.value.code == 2
        assert re.match(f"error: .*{message}", capsys.readouterr().err)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_long_refusal_fits_on_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    words = "hidden/relu: thresholds per channel, not one per layer; " * 5
    text = wrapped(f"{words}\n  - input: levels (-1, 1)")
    assert columns - 20 < max(map(len, text.splitlines())) < columns
    assert text.endswith("\n  - input: levels (-1, 1)")
    assert text.split() == f"{words} - input: levels (-1, 1)".split()


def test_a_preset_gives_the_defaults_of_the_other_options():
    options = ["--preset", "digits_resnet", "--epochs", "3", "--clip", "2.5"]
    config = dataclasses.replace(PRESETS_ANN["digits_resnet"], epochs=3, clip=2.5)
    assert parse(TrainANN, PRESETS_ANN, options) == config
    assert parse(TrainANN, PRESETS_ANN, []) == TrainANN()
    assert parse(Convert, PRESETS_CONVERT, ["--waits", "0", "T"]).waits == ("0", "T")
    for name, preset in PRESETS_ANN.items():
        assert preset.out == f"runs/{name}"
        train_ann.build(preset.model, 10)
