"""Options of the commands check themselves, and say what is allowed."""

import dataclasses
import re

import pytest

from experiments import train_ann
from experiments.comparison import Comparison
from experiments.presets import PRESETS_ANN, PRESETS_CONVERT
from experiments.running import Convert, FineTune, TrainANN, TrainSNN, parse

SCRATCH = {"from_scratch": True}
OUT_OF_RANGE = (
    (TrainANN, {"epochs": 0}, "epochs must be > 0, not 0"),
    (TrainANN, {"levels": 0}, "levels must be 1 to 65535, not 0"),
    (TrainANN, {"levels": 70000}, "levels must be 1 to 65535, not 70000"),
    (TrainSNN, {"learn": "guess"}, "learn must be one of fixed, choose, not guess"),
    (TrainSNN, {"leak": 0.0}, r"leak must be in \(0, 1\], not 0.0"),
    (TrainSNN, {"steps": 0}, "steps must be 1 to 10000, not 0"),
    (TrainSNN, {"temperature": 0.25}, "temperature 0.25 is below lowest 0.5"),
    (TrainSNN, {"flip": True}, "mirrored images of digits are no digits; add --flip f"),
    (
        TrainSNN,
        {"temperature_end": 1.0},
        "learn chooses the temperature; add",
    ),
    (TrainSNN, {"time_constants": (2.0,)}, "must be the shortest and the longest, not"),
    (TrainSNN, {"choice": 1.0}, r"choice must be in \[0, 1\), not 1.0"),
    (TrainSNN, {"sequence": "columns"}, "sequence must be one of rows, permuted, not"),
    (FineTune, {"distillation": 1.5}, r"distillation must be in \[0, 1\], not 1.5"),
    (FineTune, {"held_back": -1}, "held_back must be >= 0, not -1"),
    (FineTune, {"wait": 3, "steps": 2}, r"wait must be 0 to steps \(2\), not 3"),
    (FineTune, {"levels": (0, 1, -1, 1)}, "levels must be lowest and highest, not"),
    (FineTune, {**SCRATCH, "recipe": "light"}, "so it takes no --recipe; leave out"),
    (FineTune, {**SCRATCH, "keep_averages": True}, "takes no --keep_averages"),
    (Convert, {"steps": (10**9,)}, "steps must be 1 to 10000, not 1000000000"),
    (Convert, {"waits": ("x",)}, "whole number >= 0, T or T-1"),
    (Convert, {"waits": ("9",), "steps": (4,)}, "exceeds steps 4"),
    (Convert, {"calibration_images": 0}, "must be > 0"),
    (Convert, {"seeds": (1, 1)}, "seeds has 1 more than once"),
    (Convert, {"recipes": ("none",)}, "recipes must be one of quantized, max_act"),
    (Convert, {"levels": (0, 1, 2)}, "levels must be pairs of lowest and highest"),
    (Convert, {"levels": (1, 0)}, "levels are"),
    (Convert, {"dtype": "float16"}, "must be one of float32, bfloat16, not float16"),
    (Convert, {"restore": "x", "dtype": "bfloat16"}, "takes no --dtype"),
    (Comparison, {"training": "imagenet"}, "training must be one of digits, cifar10_r"),
    (Comparison, {"rows": ("none",)}, "rows must be one of rectangle, .* not none"),
    (Comparison, {"seeds": ()}, "seeds is empty"),
    (Comparison, {"seeds": (0, -1)}, "seeds must be >= 0, not -1"),
)


@pytest.mark.parametrize("config, options, message", OUT_OF_RANGE)
def test_what_is_out_of_range_is_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_a_line_that_is_refused_ends_with_one_message(capsys):
    for line, message in (
        ("--preset resnet9", "choose from .*digits_resnet"),
        ("--preset digits_resnet --flip true", "add --flip false"),
        ("--levels", "argument --levels: expected a value"),
        ("--checkpoint --epochs 3", "argument --checkpoint: expected a value"),
        ("--epoch 3", r"arguments: --epoch 3 \(--help lists the options\)\n$"),
    ):
        with pytest.raises(SystemExit) as caught:
            parse(TrainANN, PRESETS_ANN, line.split())
        assert caught.value.code == 2
        assert re.match(f"error: .*{message}", capsys.readouterr().err)


def test_a_preset_gives_the_defaults_of_the_other_options():
    options = ["--preset", "digits_resnet", "--epochs", "3", "--clip", "2.5"]
    config = dataclasses.replace(PRESETS_ANN["digits_resnet"], epochs=3, clip=2.5)
    assert parse(TrainANN, PRESETS_ANN, options) == config
    assert parse(TrainANN, PRESETS_ANN, []) == TrainANN()
    assert parse(Convert, PRESETS_CONVERT, ["--waits", "0", "T"]).waits == ("0", "T")
    for name, preset in PRESETS_ANN.items():
        assert preset.out == f"runs/{name}"
        train_ann.build(preset.model, 10)
