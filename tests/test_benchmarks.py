"""Benchmarks at toy size: every side is there, timed, and its ratios are positive."""

import dataclasses
import functools
import gzip
import json
import math
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.io import wavfile

import snnjax
from benchmarks import (
    calibration,
    converter_cnn,
    equal_accuracy,
    mlperf_tiny,
    on_chips,
    silicon,
    silicon_lsnn,
    speck_power,
    sst2,
    throughput,
    timing,
    training,
)
from experiments import data, models
from experiments.data import sequences
from experiments.data.events import nmnist_events
from experiments.models.zoo import Plain


def check_files(result, out, printed):
    assert json.loads(out.read_text())["sides"].keys() == result["sides"].keys()
    assert printed.endswith(out.with_suffix(".md").read_text())


def compile_least(monkeypatch):
    """Convert by the recipe that compiles least."""
    convert = functools.partial(snnjax.convert, recipe=snnjax.max_activation())
    monkeypatch.setattr(snnjax, "convert", convert)


def time_here(monkeypatch, prepare, missing):
    """Time all sides in this process, so that JAX starts only once."""

    def rounds(commands, count, repeats):
        sides = {}
        for side in commands:
            if side in missing:
                sides[side] = {"missing": f"No module named {side!r}"}
                continue
            run, facts = prepare(side)
            seconds = [timing.once(run) for _ in range(count * repeats)]
            sides[side] = {"facts": facts, "versions": {}, "seconds": seconds}
        return sides

    monkeypatch.setattr(timing, "rounds", rounds)


def test_converter_cnn(monkeypatch, capsys, tmp_path):
    peers = (*converter_cnn.SPIKINGJELLY, *converter_cnn.SPARXML)
    prepare = functools.partial(converter_cnn.prepare, steps=16, batch=2, size=8)
    time_here(monkeypatch, prepare, missing=peers)
    out = tmp_path / "results" / "cnn.json"
    only = "batch 32,closed_form,SpikingJelly,sparxml"
    result = converter_cnn.main(["--quick", "--only", only, "--out", str(out)])
    ours = [side for side in result["sides"] if side not in peers]
    assert len(ours) == 3 and converter_cnn.ANN in ours
    for side in ours:
        speed = result["sides"][side]["samples_per_s"]
        assert speed["best"] >= speed["median"] > 0
        assert result["sides"][side]["time_over_ann"]["best"] > 0
    assert len(result["targets"]) == 2  # no peer, no target for it
    assert result["sizes"] == {"steps": 16, "batch": 2, "size": 8}
    printed = capsys.readouterr().out
    check_files(result, out, printed)
    for side in peers:
        row = next(line for line in printed.splitlines() if f"| {side} " in line)
        assert "not installed" in row


def test_a_side_takes_the_least_t_that_suffices():
    logits, labels = np.eye(10), np.arange(10)  # the ANN knows all ten
    tables = {2: {"a": 70.0, "b": 90.0}, 4: {"a": 99.0, "b": 98.0}, 8: {"a": 100.0}}
    for choices, facts in (
        ((2, 4, 8), {"steps": 4, "recipe": "a", "lost": 1}),
        ((2,), {"steps": 2, "recipe": "b", "lost": 10}),
    ):
        result = equal_accuracy.facts_of(logits, labels, choices, tables.__getitem__)
        assert facts.items() <= result.items()
        assert list(result["accuracies"]) == list(choices[:2])


@pytest.fixture
def small(monkeypatch):
    """A small network in the place of ResNet-20, and noise in that of CIFAR-10."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    splits = [images, np.zeros(64, np.int32)] * 2
    dataset = data.Dataset("cifar10", *splits, (128.0,) * 3, (64.0,) * 3, 10)
    model = Plain(10, convolutions=((4, 2), (4, 2)))
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 3)))
    source = models.Source(model, variables, dataset.facts())
    for module in (data, calibration, on_chips):
        monkeypatch.setattr(module, "load", lambda name, data_dir: dataset)
    for module in (models, calibration, on_chips):
        monkeypatch.setattr(module, "load_source", lambda path: source)


def test_calibration(small, capsys, tmp_path):
    out = tmp_path / "calibration.json"
    size = ["--quick", "--images", "16", "--rounds", "2"]
    result = calibration.main([*size, "--out", str(out)])
    [(name, side)] = result["sides"].items()
    assert name == "light, rate, T = 4" and len(side["rounds"]) == 2
    ratios = [r["seconds"] / r["ann"] for r in side["rounds"]]
    assert side["passes"] == pytest.approx(sum(ratios) / 2)
    assert side["over_t"] == pytest.approx(side["passes"] / 5)
    [goal] = result["targets"]
    assert goal["met"] == (side["over_t"] <= 2.2)
    check_files(result, out, capsys.readouterr().out)


def test_what_a_network_keeps_on_a_chip(small, capsys, tmp_path, monkeypatch):
    """Akida computes floats and whole numbers alike; a second run reads its row."""
    out = tmp_path / "chips.json"
    result = on_chips.main(["--quick", "--out", str(out)])
    ann, akida = result["sides"].values()
    assert akida["floats"] == akida["whole"] == ann["floats"]
    assert (akida["levels"], akida["latency"]) == ("(0, 15)", 1)
    assert 0 < akida["spikes"] <= 1 and akida["lacks"] == "padding_modes"
    check_files(result, out, capsys.readouterr().out)
    monkeypatch.setattr(on_chips, "row_of", sys.exit)  # nothing is computed again
    assert on_chips.main(["--quick", "--out", str(out)])["sides"] == result["sides"]
    with pytest.raises(SystemExit):
        on_chips.main(["--folder", str(tmp_path)])
    assert "needs --folder and --recordings" in capsys.readouterr().err


def test_a_spike_on_speck_costs_more_than_its_additions(capsys, tmp_path):
    out = tmp_path / "speck.json"
    result = speck_power.main(["--out", str(out)])
    *measured, operations, memory = result["sides"].values()
    # 540 ms at 9.5 mW, .42 of them at rest, for a million spikes.
    assert measured[0]["spike"] == pytest.approx(4.9032)
    for row in measured:
        assert 10 * operations["most"] < row["most"] < memory["most"] < row["fewest"]
        assert row["fewest"] == pytest.approx(9 * row["most"])
    check_files(result, out, capsys.readouterr().out)


def test_equal_accuracy(small, monkeypatch, capsys, tmp_path):
    """With the ANN in the place of one mode of SpikingJelly."""
    monkeypatch.setattr(equal_accuracy, "STEPS", {"radix": (2,), "rate": (2,)})
    compile_least(monkeypatch)
    there, *missing = equal_accuracy.SPIKINGJELLY

    def prepare(side):
        ours = equal_accuracy.ANN if side == there else side
        run, facts = equal_accuracy.snnjax_or_ann(ours, tmp_path)
        assert run().shape == (64, 10)
        return run, facts

    time_here(monkeypatch, prepare, missing)
    out = tmp_path / "equal.json"
    files = ["--folder", str(tmp_path), "--out", str(out)]
    result = equal_accuracy.main(["--quick", *files])
    sides = result["sides"]
    assert sides[there]["speed_over"] == {"best": 1, "median": 1}
    for name in equal_accuracy.SNNJAX:
        speed = min(sides[there]["seconds"]) / min(sides[name]["seconds"])
        assert sides[name]["speed_over"]["best"] == pytest.approx(speed)
        assert sides[name]["facts"]["steps"] == 2
    goals = [goal["target"] for goal in result["targets"]]
    assert len(goals) == 3 * (1 + len(timing.MEASURES))
    assert goals[0] == f"points lost by {equal_accuracy.CLOSED_FORM} <= 1"
    check_files(result, out, capsys.readouterr().out)


def test_training(monkeypatch, capsys, tmp_path):
    """The same network and input in each library: the answers of two agree."""
    (size,), out = training.QUICK, tmp_path / "training.json"
    missing = [f"{side}: {size.name}" for side in ("Spyx, recurrent", "sparxml")]
    missing += [f"{side}: {size.name}" for side in training.TORCH]
    time_here(monkeypatch, training.prepare, missing)
    only = "auto,recurrent,plain,sparxml,Norse"
    result = training.main(["--quick", "--only", only, "--out", str(out)])
    assert result["sides"][f"snnjax, auto: {size.name}"]["ms"]["best"] > 0
    assert result["targets"] == []  # without Spyx there is nothing to compare with
    check_files(result, out, capsys.readouterr().out)
    x, _ = training.example(size)
    (run, snn), (scan, params) = training.snnjax_(size), training.plain_scan(size)
    np.testing.assert_allclose(run(snn, x), scan(params, x), rtol=1e-5)
    grid = training.main(["--quick", "--grid"])
    (target,) = grid["targets"]
    times = [training.best(grid, side, size.name) for side in training.OWN]
    assert target["measured"] == times[0] / min(times[1:])


@pytest.mark.slow
def test_throughput(capsys, tmp_path):
    out = tmp_path / "throughput.json"
    result = throughput.main(["--quick", "--out", str(out)])
    spiking = [n for n in result["sizes"] if not n.startswith("ANN")]
    modes = throughput.INFERENCE + throughput.RADIX_SIDES
    assert len(spiking) == len(modes) + 3
    for name in spiking:
        side = result["sides"][name]
        assert side["over_t_ann"] > 0 and side["images_per_s"]["best"] > 0
        assert side["facts"]["temporary_mib"] > 0
    check_files(result, out, capsys.readouterr().out)


def test_throughput_has_the_ann_of_every_side():
    sides = throughput.sides(quick=False)
    assert len({side.name for side in sides}) == len(sides)
    assert all(side.ann in sides for side in sides)


# ----------------------------------------------------------------------- timing

SERVE = """
from benchmarks import timing
def prepare():
    {body}
timing.serve(prepare, ())
"""


def test_worker_processes():
    """The real protocol: one process per side, a missing peer says so."""
    bodies = {
        "there": "return lambda: print('noise'), {}",
        "missing": "import no_such_peer",
    }
    commands = {
        side: [sys.executable, "-c", SERVE.format(body=body)]
        for side, body in bodies.items()
    }
    sides = timing.rounds(commands, number=2, repeats=3)
    assert sides["missing"] == {"missing": "No module named 'no_such_peer'"}
    assert len(sides["there"]["seconds"]) == 6 and min(sides["there"]["seconds"]) > 0
    # One that fails at once, and one that is ready but waits for no line.
    for code, message in (("1 / 0", "'side' failed"), ("print('{}')", "'side' failed")):
        with pytest.raises(RuntimeError, match=message):
            timing.rounds({"side": [sys.executable, "-c", code]}, 2, 1)
    command = [sys.executable, "-m", "benchmarks.converter_cnn", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--sparxml PYTHON" in answer.stdout and "--batch N" in answer.stdout


def test_checks_that_every_step_is_run():
    outputs = np.zeros((4, 2, 3))
    with pytest.raises(AssertionError, match="no step changes"):
        timing.check_steps(outputs, 4)
    outputs[0] = 1
    with pytest.raises(AssertionError, match="last step"):
        timing.check_steps(outputs, 4)
    with pytest.raises(AssertionError):
        timing.check_steps(outputs[:3], 4)


def test_options_and_targets(capsys, tmp_path):
    assert timing.target("seconds", 4.0, at_most=5)["met"]
    assert not timing.target("speed", 3.4, at_least=3.5)["met"]
    (tmp_path / "file").touch()
    for arguments, message in (
        (["--out", "result.md"], "result.md; allowed: a file named NAME.json"),
        (["--out", f"{tmp_path}/file/a.json"], "Not a directory|File exists"),
        (["--rounds", "0"], "0; allowed: a whole number >= 1"),
    ):
        with pytest.raises(SystemExit):
            throughput.main(arguments)
        assert re.search(message, capsys.readouterr().err)


# ----------------------------------------------------------------------- silicon


def test_a_file_that_is_something_else_ends_a_check_with_a_sentence(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    for name in (*silicon_lsnn.WEIGHTS, *silicon.MNIST_FILES, silicon.MOBILE_FILE):
        (tmp_path / name).write_text(pointer)

    def mobile(folder, _):
        return silicon.mobile(folder, folder, 1)

    for call in (silicon.mnist, silicon_lsnn.network, mobile):
        with pytest.raises(
            SystemExit, match="is not what --help describes, or a point"
        ):
            call(tmp_path, None)
    for name in silicon_lsnn.WEIGHTS:
        np.save(tmp_path / name, np.zeros((3, 2)))
    with pytest.raises(SystemExit, match=r"shapes .*3, 2.*allowed: whole numbers of"):
        silicon_lsnn.network(tmp_path, silicon_lsnn.FIRES_AT)


def kept(x, decay):
    return np.sign(x) * (np.abs(x) * (4096 - decay) // 4096)


@pytest.mark.slow
def test_a_recurrent_network_of_loihi_runs_in_whole_numbers(tmp_path):
    draw = np.random.default_rng(0)
    weights = {"in": (80, 240), "rec": (240, 240), "out": (240, 10)}
    for name, shape in weights.items():
        sparse = draw.integers(-120, 130, shape) * (draw.random(shape) < 0.2)
        weights[name] = sparse
        np.save(tmp_path / f"w_{name}.npy", sparse.astype(np.float32))
    images = draw.integers(0, 256, (2, 784)).astype(np.float32)
    found, measures = silicon_lsnn.run(tmp_path, images)
    x = silicon_lsnn.spikes_of(images)
    # By hand: inputs 2 i and 2 i + 1 send where the next pixel passes a brightness.
    level, here, then = int(np.linspace(0, 255, 40)[7]), images[0, :-1], images[0, 1:]
    np.testing.assert_array_equal(x[:783, 0, 14], (here < level) & (then >= level))
    np.testing.assert_array_equal(x[:783, 0, 15], (here >= level) & (then < level))
    np.testing.assert_array_equal(x[:784, 0, 78], images[0] == 255)
    assert x[784:, :, 79].all() and x.sum((0, 2))[0] == x[:, 0].sum()
    adapts = np.arange(240) >= 140
    scale = np.where(adapts, 256, 64)
    v, a, s, readout = 0, 0, np.zeros((2, 240), int), 0
    spikes = np.zeros((2, 240), int)
    for step in x.astype(int):
        v = kept(v, 204) + scale * (step @ weights["in"] + s @ weights["rec"]) + a
        s = (v > 127 * scale).astype(int)
        v = np.where(s, 0, v)
        a = kept(a, 5) - 384 * s * adapts
        readout = kept(readout, 204) + 64 * (s @ weights["out"])
        spikes += s
    assert spikes.sum() > 1000
    np.testing.assert_array_equal(found, readout)
    fan_out = [np.count_nonzero(w, axis=1) for w in weights.values()]
    operations = x.sum(0) @ fan_out[0] + spikes @ (fan_out[1] + fan_out[2] + adapts)
    assert measures.synaptic_operations == pytest.approx(operations.mean())
    assert measures.neurons * measures.steps == 350 * 840


@pytest.mark.parametrize(
    ("module", "line", "message"),
    [
        (mlperf_tiny, "--folder . --recordings .", "has no kws_ref_model_float32"),
        (sst2, "--data . --training a", "has no train.tsv, dev.tsv; --help says"),
    ],
)
def test_a_wrong_line_ends_with_one_message(
    module, line, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        module.main(line.split())
    assert message in capsys.readouterr().err


def test_the_pages_have_the_medians_that_were_measured():
    root = Path(__file__).parents[1]

    def medians(name, measure):
        """Of a measure of each side."""
        file = root / "benchmarks" / "results" / f"{name}.json"
        sides = json.loads(file.read_text())["sides"]
        return {side: of[measure].get("median") for side, of in sides.items()}

    cnn = medians("converter_cnn", "samples_per_s")
    jelly = max(value for name, value in cnn.items() if "SpikingJelly" in name)
    ours, sparxml = cnn["snnjax auto, micro-batch 16"], cnn["sparxml run_converted"]
    equal = medians("equal_accuracy", "images_per_s")
    their_best = max(equal[name] for name in equal_accuracy.SPIKINGJELLY)
    speeds = medians("equal_accuracy", "speed_over")
    closed, wait_1 = equal_accuracy.CLOSED_FORM, equal_accuracy.WAIT_1
    speeds_of_cnn = f"{ours:.3g}, SpikingJelly's fastest mode {jelly:.3g}, sparxml "
    speeds_of_cnn += f"{sparxml:.3g}, T passes of the ANN {cnn[converter_cnn.ANN]:.3g}"
    speeds_of_resnet = f"{equal[closed]:.3g} for digits in closed form, "
    speeds_of_resnet += f"{equal[wait_1]:.3g} with a wait of 1, "
    speeds_of_resnet += f"{equal[equal_accuracy.RATE]:.3g} for rate coding"
    for page, sentence in (
        ("benchmarks/README.md", f"snnjax {speeds_of_cnn}"),
        ("benchmarks/README.md", f"{their_best:.3g} for its fastest mode, "),
        ("benchmarks/README.md", speeds_of_resnet),
        ("README.md", f"a wait of 1 processes {speeds[wait_1]:.0f} times as many"),
        ("README.md", f"no steps, it processes {speeds[closed]:.0f} times as many"),
    ):
        assert sentence in " ".join((root / page).read_text().split())


def test_the_network_of_the_nir_paper_runs_as_it_is_and_converted(
    tmp_path, capsys, monkeypatch
):
    nir = pytest.importorskip("nir")
    from benchmarks import nmnist

    compile_least(monkeypatch)
    rng = np.random.default_rng(0)
    graph = nir.NIRGraph.from_list(
        nir.Input({"input": np.array([2, 4, 4])}),
        nir.Conv2d((4, 4), rng.normal(size=(3, 2, 3, 3)), 1, 1, 1, 1, np.zeros(3)),
        nir.IF(np.ones((3, 4, 4)), np.ones((3, 4, 4)), np.zeros((3, 4, 4))),
        nir.Flatten({"input": np.array([3, 4, 4])}, start_dim=0, end_dim=-1),
        nir.Linear(rng.normal(size=(2, 48))),
        nir.IF(np.ones(2), np.ones(2), np.zeros(2)),
    )
    nir.write(str(tmp_path / "cnn_sinabs.nir"), graph)
    np.save(tmp_path / "lava_accuracy.npy", 0.5)
    arrays = {}
    for part in ("train", "test"):
        x, y, p = rng.integers(0, (4, 4, 2), (3 * 400, 3)).T
        times = np.tile(np.arange(400) * 750, 3)
        fields = {"x": x, "y": y, "p": p, "t_us": times, "labels": np.array([0, 1, 0])}
        fields["offsets"] = np.arange(4) * 400
        arrays |= {f"{part}_{name}": field for name, field in fields.items()}
    np.savez(tmp_path / "events.npz", **arrays)
    files = "--folder", str(tmp_path), "--recordings", str(tmp_path / "events.npz")
    result = nmnist.main([*files, "--out", str(tmp_path / "out.json")])
    sides = result["sides"]
    assert sides["Lava, by the paper"]["accuracy"] == 50
    assert sides["ANN, on thirds"]["recordings"] == 3
    whole = {name for name in sides if name.endswith("8 bits")}
    assert whole == {"converted, rate, 8 bits", "converted, radix, 8 bits"}
    assert {"snnjax, reset zero", "snnjax, reset subtract"} < set(sides)
    assert "| Lava, by the paper" in capsys.readouterr().out
    # Each event is counted once, however the recordings are cut.
    network = nmnist.network_of(tmp_path, files[-1], None)
    spikes = nmnist.events_through(network, "subtract")
    assert spikes.shape == (300, 3, 2) and set(np.unique(spikes)) <= {0, 1}
    assert network.frames.sum() == 3 * 400 == network.thirds.sum()


def test_recordings_of_chips_are_compared_one_by_one(tmp_path, monkeypatch, capsys):
    """Files of random numbers in the form of Intel's, Speck's and its recordings."""
    h5py, nir = pytest.importorskip("h5py"), pytest.importorskip("nir")

    rng = np.random.default_rng(0)
    monkeypatch.setattr(silicon, "STEPS", 8)
    shapes = ((5, 5, 1, 16), (3, 3, 16, 32), (3, 3, 32, 64), (4, 4, 64, 10))
    with h5py.File(tmp_path / silicon.LOIHI_FILE, "w") as file:
        for i, shape in enumerate(shapes, 1):
            group = file.create_group(f"model_weights/conv2d_{i}/conv2d_{i}")
            group["kernel:0"] = rng.normal(0.02, 0.1, shape)
            group["bias:0"] = rng.normal(0, 0.01, shape[-1])
    # Of the pseudo-MobileNet, two images; BatchNorm leaves kernels as they are.
    x = rng.integers(0, 256, (2, 3073)).astype(np.uint8)
    x[:, 0] = 3, 8
    x.tofile(tmp_path / silicon.CIFAR_FILE)
    pictures, labels = silicon.cifar(tmp_path / silicon.CIFAR_FILE)
    assert pictures[1, 2, 3, 1] == x[1, 1 + 1024 + 2 * 32 + 3] and labels[1] == 8
    kernels, channels = [], 3
    with h5py.File(tmp_path / silicon.MOBILE_FILE, "w") as file:
        weights = file.create_group("model_weights")
        for name in silicon.MOBILE_LAYERS:
            is_depthwise, size = "dw" in name, 1 if "pw" in name else 3
            shape = (size, size, channels, 1 if is_depthwise else 4)
            kernels.append(rng.normal(0.05, 0.1, shape))
            weights[f"{name}/{name}/kernel:0"] = kernels[-1]
            for norm, value in zip(
                ("beta", "gamma", "moving_mean", "moving_variance"),
                (0.7, 1, 0.1, 1 - 1e-3),
                strict=True,
            ):
                weights[f"{name}_bn/{name}_bn/{norm}:0"] = np.full(4, value)
            channels = 4
        weights["dense_1/dense_1/kernel:0"] = rng.normal(size=(16, 10))
    numbers = silicon.mobile_numbers(tmp_path / silicon.MOBILE_FILE)
    for i, (kernel, (whole, bias)) in enumerate(zip(kernels, numbers, strict=False)):
        scale = 255 / np.percentile(np.abs(kernel), 99.999)
        kernel = kernel.swapaxes(2, 3) if kernel.shape[3] == 1 else kernel
        expected = np.clip(np.trunc(scale * kernel), -256, 255)
        np.testing.assert_array_equal(whole, expected)
        assert (bias == int(0.6 * scale / (6 if i else 1))).all()
    fn = silicon.classifier(silicon.MOBILE_STRIDES, "SAME")
    neuron, v_th = snnjax.integrate_and_fire(), silicon.MOBILE_THRESHOLDS
    layers = silicon.loihi_layers(fn, numbers, pictures, neuron, v_th, -1)
    sent = snnjax.deploy.run(layers, pictures, delay=1).spikes["input/relu"].sum(0)
    # Above V, and not at it: of 8 steps of x.
    np.testing.assert_array_equal(sent, np.maximum(8 * pictures - 1, 0) // 255)
    images, labels = rng.integers(0, 256, 16 * 784), rng.integers(0, 10, 16)
    for name, offset, part in zip(
        silicon.MNIST_FILES, (16, 8), (images, labels), strict=True
    ):
        content = bytes(offset) + part.astype(np.uint8).tobytes()
        (tmp_path / name).write_bytes(gzip.compress(content))
    graph = nir.NIRGraph.from_list(
        nir.Input({"input": np.array([2, 34, 34])}),
        nir.Conv2d((34, 34), rng.normal(size=(3, 2, 3, 3)), 2, 1, 1, 1, np.zeros(3)),
        nir.IF(np.ones((3, 17, 17)), np.ones((3, 17, 17)), np.zeros((3, 17, 17))),
        nir.Flatten({"input": np.array([3, 17, 17])}, start_dim=0, end_dim=-1),
        nir.Linear(rng.normal(size=(2, 867))),
        nir.IF(np.ones(2), np.ones(2), np.zeros(2)),
    )
    nir.write(str(tmp_path / "cnn_sinabs.nir"), graph)
    events = rng.integers(0, 34, (300, 2)), rng.integers(0, 2, 300), np.arange(300) * 7
    (x, y), polarity, time = events[0].T, *events[1:]
    rows = np.stack([x, y, polarity << 7 | time >> 16, time >> 8 & 255, time & 255], 1)
    file = tmp_path / silicon.RECORDINGS[0]
    file.write_bytes(rows.astype(np.uint8).tobytes())
    read = nmnist_events(file.read_bytes())
    for field, written in zip("xypt", (x, y, polarity, time), strict=True):
        np.testing.assert_array_equal(read[field], written)
    # Speck's rule, event by event and neuron by neuron.
    kernel = next(n.weight for n in graph.nodes.values() if hasattr(n, "stride"))
    s = min(-128 / kernel.min(), 127 / kernel.max())
    whole, v_th = np.round(kernel * s).astype(int), round(s)
    v, counts = np.zeros((3, 17, 17), int), np.zeros((1, 1, 3, 17, 17))
    for column, row, sign in zip(x, y, polarity, strict=True):
        for c, i, j in np.ndindex(v.shape):
            tap = row + 1 - 2 * i, column + 1 - 2 * j
            if 0 <= min(tap) and max(tap) < 3:
                v[c, i, j] += whole[c, sign, tap[0], tap[1]]
                while v[c, i, j] >= v_th:
                    v[c, i, j] -= v_th
                    counts[0, 0, c, i, j] += 1
                v[c, i, j] = max(v[c, i, j], -v_th)
    assert counts.any()
    np.save(tmp_path / "speck_activity.npy", counts)
    files = [p for n in silicon.FOLDERS for p in (f"--{n}", str(tmp_path))]
    result = silicon.main([*files, "--quick", "--out", str(tmp_path / "out.json")])
    rows = result["sides"]
    assert rows["Speck: event by event"]["share"] == 100
    assert rows["Speck: event by event, no lower bound"]["share"] < 100
    assert sum(name.startswith("Loihi 1: ") for name in rows) == 9
    assert sum(name.startswith("Loihi 1, MobileNet: ") for name in rows) == 4
    compared = [(r["compared"], r["of_chip"]) for n, r in rows.items() if "Loihi" in n]
    assert compared == [(16, 15)] * 9 + [(2, 2)] * 4
    for arguments, words in (
        ((), "no folder is given; a check needs --loihi and --mnist, or"),
        (files[:2], "--loihi is given alone; a check needs"),
        ((*files[:3], str(tmp_path / "nowhere")), "has no t10k"),
    ):
        with pytest.raises(SystemExit):
            silicon.main([*arguments])
        assert words in capsys.readouterr().err


def test_decisions_of_a_readout_are_those_of_its_rule(monkeypatch):
    """A sum, the last leaky potential, and most steps; the last one of equals."""
    currents = np.zeros((3, 2, 10))
    currents[:, 0, 3] = 5, 5, -9  # leads twice, and is then the least
    currents[2, 0, 7] = 2
    currents[:, 1, [2, 6]] = 4  # alike at every step
    trace = types.SimpleNamespace(outputs=currents)
    monkeypatch.setattr(snnjax.deploy, "outputs", lambda *_, delay: trace)
    found = silicon.decisions(None, np.zeros((2, 1)), delay=1)
    expected = {"sum": [7, 6], "leaky": [7, 6], "steps won": [3, 6]}
    assert {name: list(v) for name, v in found.items()} == expected
    # 64 units per current, of which 2^8 / 2^12 leak at each step, rounded up.
    v = [0, 64 * 5, 64 * 5 - 20 + 64 * 5, (620 - 39) - 64 * 9]
    np.testing.assert_array_equal(
        silicon.leaky_potentials(currents, 2**8)[:, 0, 3], v[1:]
    )


def test_the_networks_of_mlperf_tiny(monkeypatch, tmp_path):
    """Small ones, whose own answers are the labels of random files."""
    rng = np.random.default_rng(0)

    def layers(*shapes):
        """Kernels >= 0, so that no channel is silent, but a readout of both signs."""
        kernels = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
        kernels = [*map(np.abs, kernels[:-1]), kernels[-1]]
        biases = [np.zeros(max(shape[0], 2), np.float32) for shape in shapes]
        return list(zip(kernels, biases, strict=True))

    ds_cnn = layers((2, 10, 4, 1), (1, 3, 3, 2), (2, 1, 1, 2), (12, 2))
    block = (2, 3, 3, 2), (2, 3, 3, 2)
    resnet = layers((2, 3, 3, 3), *block, *[*block, (2, 1, 1, 2)] * 2, (10, 2))
    networks = {"kws_ref_model_float32": ds_cnn, "pretrainedResnet": resnet}
    monkeypatch.setattr(mlperf_tiny, "weights", lambda file: networks[file.stem])
    monkeypatch.setattr(mlperf_tiny, "CALIBRATION", 16)
    compile_least(monkeypatch)

    sounds = [noise(rng) for _ in range(24)]
    x = np.stack([mlperf_tiny.mfccs(sound) for sound in sounds])[..., None]
    spoken = np.asarray(jax.jit(mlperf_tiny.ds_cnn)(ds_cnn, x)).argmax(-1)
    for i, (sound, label) in enumerate(zip(sounds, spoken, strict=True)):
        file = tmp_path / "words" / mlperf_tiny.WORDS[label] / f"{i}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(file, sequences.RATE, sound)
    images = rng.integers(0, 256, (24, 8, 8, 3)).astype(np.uint8)
    answers = jax.jit(mlperf_tiny.resnet_8)(resnet, images.astype(np.float32))
    splits = [images, np.asarray(answers).argmax(-1)] * 2
    dataset = data.Dataset("cifar10", *splits, (0.0,), (1.0,), 10)
    monkeypatch.setattr(data, "load", lambda name, data_dir: dataset)
    monkeypatch.setattr(mlperf_tiny, "ROWS", [mlperf_tiny.Row("radix", 4, bits=8)])
    for name in (mlperf_tiny.DS_CNN, mlperf_tiny.RESNET_8):
        (tmp_path / name).touch()
    options = ["--folder", str(tmp_path), "--recordings", str(tmp_path / "words")]
    options += ["--out", str(out := tmp_path / "out.json")]
    converted = mlperf_tiny.converted
    with monkeypatch.context() as patch:  # no conversion of ResNet-8
        patch.setattr(mlperf_tiny, "converted", lambda task, rows: converted(task, ()))
        sides = mlperf_tiny.main(options)["sides"]
    facts = [(side[0]["accuracy"], side[0]["inputs"]) for side in sides.values()]
    assert facts == [(100, 24), (100, 8), (100, 24)]
    earlier = json.loads(out.read_text())
    earlier["sides"]["ResNet-8"].append({"code": "radix", "T": 4})
    out.write_text(json.dumps(earlier))
    sides = mlperf_tiny.main(options)["sides"]
    assert sides["ResNet-8"] == earlier["sides"]["ResNet-8"]
    _, spiking, integers = sides["DS-CNN"]
    assert spiking["spikes"] > 0 < spiking["energy"]
    assert spiking["latency"] == integers["latency"] == 4 + 3  # a wait of 1
    assert min(spiking["accuracy"], integers["accuracy"]) > 50
    table = out.with_suffix(".md").read_text()
    assert "| 8 bits" in table and "| 90 " in table


def noise(rng, shape=sequences.RATE):
    return rng.integers(-900, 999, shape).astype(np.int16)


def test_mfccs_are_those_of_their_definition(tmp_path):
    """For MLPerf Tiny: sums one by one, and zeros behind a short recording."""
    sound = noise(np.random.default_rng(0), 9000)
    wavfile.write(tmp_path / "a.wav", sequences.RATE, sound)
    read = mlperf_tiny.samples(tmp_path / "a.wav")
    np.testing.assert_array_equal(read, [*sound, *[0] * 7000])
    found, n, k = mlperf_tiny.mfccs(read), np.arange(480), np.arange(10)
    assert found.shape == (49, 10)
    mels = [2595 * math.log10(1 + f * 16000 / 512 / 700) for f in range(257)]
    low, high = (2595 * math.log10(1 + f / 700) for f in (20, 4000))
    width = (high - low) / 41
    for frame in (0, 27, 48):  # whole, partly zeros, all zeros
        part = read[320 * frame : 320 * frame + 480] / sound.max()
        part = part * np.sin(np.pi * n / 480) ** 2
        size = [abs(sum(part * np.exp(-2j * np.pi * f * n / 512))) for f in range(257)]
        total = 0
        for b in range(40):
            distances = [abs(mel - low - (b + 1) * width) / width for mel in mels]
            band = sum(s * max(0, 1 - d) for s, d in zip(size, distances, strict=True))
            total += math.log(band + 1e-6) * np.cos(np.pi * k * (b + 0.5) / 40)
        np.testing.assert_allclose(found[frame], total / 20**0.5, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "rate", "shape", "message"),
    [
        ("yes/a.wav", 16_000, 16_000, "1 recordings WORD/.*; allowed: more than 256"),
        ("cat/a.wav", 16_000, 16_000, "folders cat; allowed: down, .*_unknown_"),
        ("yes/a.wav", 8000, 8000, r"int16\[8000\] at 8000 Hz; allowed: int16"),
        ("yes/a.wav", 16_000, (9, 2), r"it has int16\[9, 2\] at 16000 Hz; allowed"),
        ("yes/a.wav", 16_000, 16_001, r"int16\[16001\].*N <= 16000; sox converts"),
        ("yes/cut.wav", 16_000, 16_000, "from header. Download it anew"),
    ],
)
def test_bad_recordings_for_mlperf(file, rate, shape, message, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "check_files", lambda *_: None)
    monkeypatch.setattr(mlperf_tiny, "weights", lambda file: [])
    monkeypatch.setattr(data, "load", lambda *_: None)
    has_few = "allowed: more" in message
    monkeypatch.setattr(mlperf_tiny, "CALIBRATION", 256 if has_few else 0)
    path = tmp_path / file
    path.parent.mkdir()
    wavfile.write(path, rate, noise(np.random.default_rng(0), shape))
    if path.stem == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit, match=message):
        mlperf_tiny.main(["--folder", ".", "--recordings", str(tmp_path)])


@pytest.fixture
def phrases(monkeypatch, tmp_path):
    """A folder of few phrases, and a transformer of few features."""
    rows = [mlperf_tiny.Row("radix", 2)]
    for name, value in {"LENGTH": 6, "EPOCHS": 1, "ROWS": rows}.items():
        monkeypatch.setattr(sst2, name, value)
    small = functools.partial(sst2.Transformer, features=8, blocks=1)
    monkeypatch.setattr(sst2, "Transformer", small)
    compile_least(monkeypatch)
    files = {
        "train": ['a "good" film', "good fun", "good work", "a dull film", "dull film"],
        "dev": ["good fun , a film", "is new"],
    }
    # Whole sentences, which are held out, and a phrase of theirs.
    files["train"] += ["a good film is a good thing .", "long and dull .", "good thing"]
    for name, of_file in files.items():
        rows = [f"{phrase} \t{int('good' in phrase)}\n" for phrase in of_file]
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    return tmp_path


def test_sst2_reads_phrases(phrases):
    tokens, training, held_out, (x, labels) = sst2.read(phrases)
    assert tokens == {"a": 2, "dull": 3, "film": 4, "good": 5}  # others occur once
    assert sorted(training[1]) == [0, 0, 1, 1, 1] and sorted(held_out[1]) == [0, 1]
    np.testing.assert_array_equal(x, [[5, 1, 1, 2, 4, 0], [1, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(labels, [1, 0])


def test_sst2(phrases, monkeypatch, capsys):
    """Trained once, converted, and blind to the embedding of the padding."""
    out = phrases / "sst2.json"
    training = ["--training", str(phrases / "training")]
    options = ["--data", str(phrases), *training, "--out", str(out)]
    tasks, snns = [], []
    with monkeypatch.context() as patch:
        patch.setattr(mlperf_tiny, "converted", lambda *t: tasks.append(t[0]) or [])
        sst2.main(options)
    assert "epoch 1: " in capsys.readouterr().out
    monkeypatch.setattr(sst2, "batches", lambda *_: [])  # none is read again

    def convert(*arguments, convert=snnjax.convert, **options):
        snns.append(convert(*arguments, **options))
        return snns[-1]

    monkeypatch.setattr(snnjax, "convert", convert)
    result = sst2.main(options)
    assert json.loads(out.read_text())["sides"] == result["sides"]
    assert capsys.readouterr().out.endswith(out.with_suffix(".md").read_text())
    ann, spiking = result["sides"]["transformer"]
    assert ann["inputs"] == 2 and spiking["wait"] == 1
    assert spiking["spikes"] > 0 < spiking["energy"]

    (task,), (snn,) = tasks, snns

    run_ann, run_snn = jax.jit(task.fn), jax.jit(snnjax.spiking(task.fn))

    def answers(token):
        """Of the ANN and the SNN, after the embedding of a token changed."""

        def changed(variables):
            params = variables["params"]
            embeddings = jnp.asarray(params["Embed_0"]["embedding"])
            embeddings = embeddings.at[token].add(jnp.arange(8) - 3)
            return {"params": params | {"Embed_0": {"embedding": embeddings}}}

        other = dataclasses.replace(snn, params=changed(snn.params))
        ann = run_ann(changed(task.params), task.x)
        return np.concatenate([ann[None], run_snn(other, task.x)])

    unchanged = answers(3)  # a word that no sentence has
    np.testing.assert_array_equal(answers(sst2.PADDING), unchanged)
    unknown = answers(sst2.UNKNOWN)
    assert (unknown[[0, -1]] != unchanged[[0, -1]]).any(-1).all()
    cut = run_ann(task.params, task.x[:, :5])
    np.testing.assert_allclose(cut, unchanged[0], atol=1e-6)
