"""Output folders that cannot take the results are refused before the work."""

import dataclasses
import json
import shutil

import pytest

from experiments import comparison, convert, finetune, train_ann, train_snn
from experiments.presets import PRESETS_ANN, PRESETS_SNN
from experiments.running import Convert, command, space, training_loop


@pytest.fixture
def never(monkeypatch):
    """The work, which must not begin."""

    def work(*arguments, **options):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(training_loop.training, "train", work)
    monkeypatch.setattr(convert, "carry_out", work)


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


def test_a_full_disk(tmp_path, digits, never, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    for name in ("train_ann", "train_snn"):
        with pytest.raises(ValueError, match="has 1 MB free and about [0-9]+ MB are"):
            RUNS[name](str(tmp_path / "out"), digits)


def test_the_space_is_that_of_the_arrays(digits):
    arrays = {"a": digits.train_images, "b": digits.train_labels}
    size = digits.train_images.nbytes + digits.train_labels.nbytes
    assert space(arrays, 3) == 3 * size + 20e6


def test_a_command_that_fails_leaves_no_folder(tmp_path):
    out = tmp_path / "new" / "results"
    missing = ["--dataset", "missing.npz", "--out", str(out)]
    for module in (convert, finetune, train_snn):
        with pytest.raises(SystemExit, match=r"error: .*missing\.npz"):
            module.main(missing)
        assert not list(tmp_path.iterdir()), module.__name__


def test_a_finished_command_says_so_and_stops(tmp_path, capsys, monkeypatch):
    config = Convert(out=str(tmp_path), steps=(2,))
    line = ["--out", str(tmp_path), "--steps", "2"]
    facts = {"command": command("experiments.convert", config)}
    (tmp_path / "metrics.json").write_text(json.dumps(facts))
    calls = []
    monkeypatch.setattr(convert, "run", calls.append)
    convert.main(line)
    assert not calls and "has the results of this command" in capsys.readouterr().out
    for more in (["--again"], ["--seeds", "7"]):
        convert.main([*line, *more])
        assert "the files of this run replace them" in capsys.readouterr().out
    assert len(calls) == 2
    (tmp_path / "metrics.json").write_text('{"comm')
    convert.main(line)
    assert len(calls) == 3
