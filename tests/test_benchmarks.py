"""Benchmarks at toy size: every side is there, timed, and its ratios are positive."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    calibration,
    converter_cnn,
    lif_layer,
    squeezenet,
    throughput,
    timing,
)


def _fake(monkeypatch, module, missing=()):
    """Run the sides in this process, so that JAX starts and compiles only once."""

    def rounds(commands, count, repeats):
        sides = {}
        for side in commands:
            if side in missing:
                sides[side] = {"missing": f"No module named {side!r}"}
                continue
            sizes = {"steps": 4, "batch": 2}
            if module is converter_cnn:
                sizes = {"steps": 16, "batch": 2, "size": 8}
            if module is lif_layer:
                sizes = {"steps": 50, "batch": 2, "features": 16}
            run, facts = module.prepare(side, **sizes)
            seconds = [timing.once(run) for _ in range(count * repeats)]
            sides[side] = {"facts": facts, "versions": {}, "seconds": seconds}
        return sides

    monkeypatch.setattr(timing, "rounds", rounds)


def test_converter_cnn(monkeypatch, capsys, tmp_path):
    peers = (*converter_cnn.SPIKINGJELLY, *converter_cnn.SPARXML)
    _fake(monkeypatch, converter_cnn, missing=peers)
    out = tmp_path / "results" / "cnn.json"
    only = "micro-batch 16,closed_form,SpikingJelly,sparxml"
    result = converter_cnn.main(["--quick", "--only", only, "--out", str(out)])
    printed = capsys.readouterr().out
    ours = [side for side in result["sides"] if side not in peers]
    assert len(ours) == 6 and converter_cnn.ANN in ours
    for side in ours:
        found = result["sides"][side]
        assert found["samples_per_s"]["best"] >= found["samples_per_s"]["median"] > 0
        assert found["time_over_ann"]["best"] > 0
    for side in peers:
        row = next(line for line in printed.splitlines() if f"| {side} " in line)
        assert "not installed" in row
    assert len(result["targets"]) == 4  # no peer, no target for it
    assert json.loads(out.read_text())["sides"].keys() == result["sides"].keys()
    assert out.with_suffix(".md").read_text() == printed


@pytest.mark.slow
def test_calibration(monkeypatch, capsys):
    _fake(monkeypatch, calibration)
    result = calibration.main(["--quick", "--only", "digits_resnet"])
    assert len(result["sides"]) == 4
    for side in result["sides"].values():
        assert side["facts"]["first"] > 0
        assert side["over_passes"]["median"] > 0
        assert side["facts"]["sites"] == 7
    assert (
        "layer by layer, no fits (estimate): digits_resnet" in capsys.readouterr().out
    )


def test_calibration_tells_compilation_from_the_rest():
    works = [f"snnjax {recipe}: " for recipe in ("light", "best")]
    names = [work + model for work in works for model in ("resnet20", "resnet34")]
    side = {"facts": {"first": 30.0}, "later": {"median": 4.0}}
    goals = calibration.targets(dict.fromkeys(names, side))
    assert [goal["met"] for goal in goals] == [False, True, True, False, True]


def test_lif_layer(monkeypatch, capsys, tmp_path):
    works = (lif_layer.FORWARD, lif_layer.GRADIENT)
    peers = [*lif_layer.SPARXML, *lif_layer.SPYX, *lif_layer.JAXPIKE]
    missing = [f"{work}: {name}" for work in works for name in peers]
    _fake(monkeypatch, lif_layer, missing=missing)
    out = tmp_path / "lif.json"
    result = lif_layer.main(["--quick", "--out", str(out)])
    printed = capsys.readouterr().out
    ours = [side for side in result["sides"] if side not in missing]
    assert len(ours) == 2 * len(lif_layer.GROUPS["snnjax"])
    for side in ours:
        found = result["sides"][side]
        assert found["ms"]["median"] >= found["ms"]["best"] > 0
        assert found["facts"]["temporary_mib"] > 0
    for name in peers:
        row = next(line for line in printed.splitlines() if f"| {name} " in line)
        assert "not installed" in row
    assert len(result["targets"]) == 3  # no peer, no target for it
    assert json.loads(out.read_text())["sides"].keys() == result["sides"].keys()
    assert out.with_suffix(".md").read_text() == printed


@pytest.mark.slow
def test_throughput(capsys, tmp_path):
    out = tmp_path / "throughput.json"
    result = throughput.main(["--quick", "--out", str(out)])
    spiking = [n for n in result["sizes"] if not n.startswith("ANN")]
    assert len(spiking) == len(throughput.INFERENCE) + 3
    for name in spiking:
        side = result["sides"][name]
        assert side["over_t_ann"] > 0
        assert side["images_per_s"]["best"] > 0
        assert side["facts"]["temporary_mib"] > 0
    assert out.with_suffix(".md").read_text() == capsys.readouterr().out


def test_throughput_draws_what_t_the_batch_and_the_depth_change(tmp_path):
    chosen = throughput.sides(quick=False)
    sizes = {side.name: dataclasses.asdict(side) for side in chosen}
    measured = {name: {"over_t_ann": 1.5} for name in sizes}
    throughput.draw({"sizes": sizes, "sides": measured}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert len(sizes) == len(chosen)
    assert all(s.ann in chosen for s in chosen)


def test_lif_layer_checks_its_sides():
    for facts, message in (
        ({"rate": 0.0}, "mean rate"),
        ({"rate": 0.95}, "mean rate"),
        ({"rate": 0.2, "gradient": 0.0}, "gradient"),
        ({"rate": 0.2, "gradient": float("nan")}, "gradient"),
    ):
        with pytest.raises(AssertionError, match=message):
            lif_layer.check_work(facts)
    same = {"rate": 0.2, "loss": 1.0, "gradient": 2.0, "along": 3.0}
    sides = [f"{lif_layer.GRADIENT}: {name}" for name in lif_layer.SNNJAX]
    for key, message in (
        ("loss", "loss differs"),
        ("gradient", "gradient differs"),
        ("along", "gradients differ"),
        ("rate", "rates differ"),
    ):
        found = {side: {"facts": dict(same)} for side in sides}
        lif_layer.check_agreement(found)
        found[sides[-1]]["facts"][key] *= 1.1
        with pytest.raises(AssertionError, match=message):
            lif_layer.check_agreement(found)


def test_worker_process():
    """The real protocol: one subprocess per side, a peer that is not there says so."""
    code = "from benchmarks import timing; timing.serve(lambda: ({}, {{}}), ())"
    missing = (
        "from benchmarks import timing\n"
        "def prepare():\n"
        "    raise timing.NotInstalled('peer')\n"
        "timing.serve(prepare, ())"
    )
    commands = {
        "there": [sys.executable, "-c", code.format("lambda: print('noise')")],
        "missing": [sys.executable, "-c", missing],
    }
    sides = timing.rounds(commands, number=2, repeats=3)
    assert sides["missing"] == {"missing": "peer"}
    assert len(sides["there"]["seconds"]) == 6
    assert all(seconds > 0 for seconds in sides["there"]["seconds"])


def test_failing_worker_is_an_error():
    with pytest.raises(RuntimeError, match="broken"):
        timing.rounds({"broken": [sys.executable, "-c", "1 / 0"]}, 1, 1)


def test_a_worker_that_ends_between_two_timings_is_an_error():
    ends = "print('{}')"  # it is ready, and waits for no line
    with pytest.raises(RuntimeError, match="ended"):
        timing.rounds({"ended": [sys.executable, "-c", ends]}, 2, 1)


def test_commands_start():
    """Every file starts as a module."""
    for name in ("converter_cnn", "calibration", "lif_layer"):
        command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "--python PEER=PATH" in answer.stdout


def test_checks_that_every_step_is_run():
    outputs = np.zeros((4, 2, 3))
    with pytest.raises(AssertionError, match="no step changes"):
        converter_cnn.check_steps(outputs, 4)
    outputs[0] = 1
    with pytest.raises(AssertionError, match="last step"):
        converter_cnn.check_steps(outputs, 4)
    with pytest.raises(AssertionError):
        converter_cnn.check_steps(outputs[:3], 4)


def test_targets():
    assert timing.target("seconds", 4.0, at_most=5)["met"]
    assert not timing.target("speed", 3.4, at_least=3.5)["met"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out", "result.md"], "result.md; allowed: a file named NAME.json"),
        (["--out", "{folder}/file/result.json"], "Not a directory|File exists"),
        (["--rounds", "0"], "0; allowed: a whole number >= 1"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    arguments, message, capsys, tmp_path
):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        throughput.main([word.format(folder=tmp_path) for word in arguments])
    assert re.search(message, capsys.readouterr().err)


def test_interpreters():
    known = ("snnjax", "sparxml")
    found = timing.interpreters(["sparxml=python3.13"], known)
    assert found == {"snnjax": sys.executable, "sparxml": "python3.13"}
    with pytest.raises(SystemExit, match="not one of"):
        timing.interpreters(["nobody=python"], known)


def _small_squeezenet(folder, images=2, size=47):
    """Files of a SqueezeNet with a few channels, and small images."""
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    sizes = {"conv1": (4, 3, 7), "conv10": (5, 6, 1)}
    for number in range(2, 10):
        sizes[f"fire{number}/s"] = (3, 4 if number == 2 else 6, 1)
        sizes |= {f"fire{number}/e1": (3, 3, 1), f"fire{number}/e3": (3, 3, 3)}
    arrays = {}
    for name, (outputs, inputs, width) in sizes.items():
        shape = (outputs, inputs, width, width)
        scale = (2 / (inputs * width**2)) ** 0.5
        arrays[f"{name}/w"] = draw.normal(size=shape, scale=scale).astype(np.float32)
        arrays[f"{name}/b"] = np.full(outputs, 0.1, np.float32)
    np.savez(folder / "squeezenet.npz", **arrays)
    splits, pixels = {}, {}
    for split in ("calibration", "test"):
        pixels[split] = draw.integers(0, 256, (images, 1, 1, 3)).astype(np.uint8)
        pixels[split] = pixels[split].repeat(size, 1).repeat(size, 2)
        encoded = []
        for array in pixels[split]:
            with io.BytesIO() as file:
                image.fromarray(array).save(file, "JPEG", quality=100)
                encoded.append(file.getvalue())
        ends = np.cumsum([0, *map(len, encoded)])
        content = np.frombuffer(b"".join(encoded), np.uint8)
        splits |= {f"{split}_jpeg": content, f"{split}_offsets": ends}
        splits[f"{split}_labels"] = np.arange(images)
    np.savez(folder / "images.npz", **splits)
    return pixels


def test_squeezenet_reads_its_images_and_weights(tmp_path):
    pixels = _small_squeezenet(tmp_path)
    images, labels = squeezenet.images(tmp_path, "test")
    expected = pixels["test"][..., ::-1] - squeezenet.MEAN
    np.testing.assert_allclose(images, expected, atol=4)  # JPEG rounds colours
    assert list(labels) == [0, 1]
    params = squeezenet.weights(tmp_path)
    assert params["fire2/e3"]["w"].shape == (3, 3, 3, 3)
    assert squeezenet.squeezenet(params, images).shape == (2, 5)


def test_squeezenet_counts_the_points_that_a_row_loses():
    name = squeezenet.label((-3, 3), 4, 0)
    lost = squeezenet.targets({name: {"accuracy": 70.0}}, 74.0)
    assert [goal["met"] for goal in lost] == [True] and lost[0]["measured"] == 4


def test_squeezenet_compares_answers():
    ann = np.array([[0.0, 1.0], [1.0, 0.0], [3.0, 0.0]])
    same = squeezenet.compared(ann, ann, labels=[1, 0, 1])
    assert same["agreement"] == 100 and same["divergence"] == 0
    assert same["accuracy"] == pytest.approx(200 / 3)
    shifted = squeezenet.compared(ann + 5, ann)  # the same probabilities
    assert shifted["divergence"] == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_squeezenet(capsys, tmp_path):
    _small_squeezenet(tmp_path)
    out = tmp_path / "squeezenet.json"
    options = ["--data", str(tmp_path), "--rows=-1:1:2:0,0:1:16:1", "--sites", "2"]
    options += ["--recipe", "best, weights as they are", "--out", str(out)]
    with pytest.warns(UserWarning, match="2 samples"):
        result = squeezenet.main(options)
    assert len(result["rows"]) == 2 and len(result["sites"]) == 27
    assert [goal["target"] for goal in result["targets"]] == [
        "points lost by levels 0:1, T = 16, wait 1 <= 8"
    ]
    assert str(tmp_path) not in out.read_text()
    assert "| all of them" in capsys.readouterr().out


def test_the_pages_have_the_medians_that_were_measured():
    root = Path(__file__).parents[1]
    result = json.loads((root / "benchmarks/results/converter_cnn.json").read_text())
    median = {n: s["samples_per_s"]["median"] for n, s in result["sides"].items()}
    jelly = max(value for name, value in median.items() if "SpikingJelly" in name)
    ours, ann = median["snnjax auto, micro-batch 16"], median[converter_cnn.ANN]
    sentence = f"snnjax {ours:.3g}, SpikingJelly's fastest mode {jelly:.3g}, sparxml"
    sentence += f" {median['sparxml run_converted']:.3g}, T passes of the ANN {ann:.3g}"
    assert sentence in " ".join((root / "benchmarks/README.md").read_text().split())
    ratio = f"gives {ours / jelly:.1f} times as many images per second"
    assert ratio in " ".join((root / "README.md").read_text().split())
