"""Output folders that cannot take the results are refused before the work."""

import dataclasses

import pytest

from experiments import comparison, conversions, convert, finetune, train_ann, train_snn
from experiments.presets import PRESETS_ANN, PRESETS_SNN
from experiments.running import Convert, training_loop


@pytest.fixture
def never(monkeypatch):
    """The work, which must not begin."""

    def work(*arguments, **options):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(training_loop.training, "train", work)
    monkeypatch.setattr(conversions, "carry_out", work)


RUNS = {
    "train_ann": lambda out, data: train_ann.train(
        dataclasses.replace(PRESETS_ANN["digits_resnet"], out=out), data=data
    ),
    "train_snn": lambda out, data: train_snn.train(
        dataclasses.replace(PRESETS_SNN["digits"], out=out), data=data
    ),
    "convert": lambda out, data: convert.run(Convert(out=out), data=data),
    "comparison": lambda out, data: comparison.run(comparison.Comparison(out=out)),
}


def test_a_folder_that_cannot_be_written_to(tmp_path, digits, never):
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "out")
    for run in RUNS.values():
        with pytest.raises(ValueError, match=f"--out {out} cannot be written to"):
            run(out, digits)


def test_a_command_that_fails_leaves_no_folder(tmp_path):
    out = tmp_path / "new" / "results"
    missing = ["--dataset", "missing.npz", "--out", str(out)]
    for module in (convert, finetune, train_snn):
        with pytest.raises(SystemExit, match=r"error: .*missing\.npz"):
            module.main(missing)
        assert not list(tmp_path.iterdir()), module.__name__
