"""Each benchmark runs at toy size and writes its table; no number is checked here.

The benchmarks of `test_conformance`, `test_denoising`, `test_imagenet`,
`test_language_model`, `test_silicon_rtl` and `test_torch_modules` are tested there.
"""

import functools
import gzip
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.io import wavfile

import snnjax
from benchmarks import (
    calibration,
    cold_start,
    converter_cnn,
    equal_accuracy,
    mlperf_tiny,
    nmnist,
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
from experiments.models.zoo import Plain

ROOT = Path(__file__).parents[1]


@pytest.fixture
def out(tmp_path, capsys):
    """A file for the result. After the test it has the sides that were printed."""
    file = tmp_path / "results" / "out.json"
    yield file
    assert json.loads(file.read_text())["sides"]
    assert capsys.readouterr().out.endswith(file.with_suffix(".md").read_text())


@pytest.fixture
def light(monkeypatch):
    """Conversions by the recipe that compiles least."""
    convert = functools.partial(snnjax.convert, recipe=snnjax.max_activation())
    monkeypatch.setattr(snnjax, "convert", convert)


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


def time_in_this_process(monkeypatch, prepare, missing):
    """Time all sides here, so that JAX starts only once; ``missing`` are left out."""

    def rounds(commands, number, repeats):
        sides = {}
        for side in commands:
            if side in missing:
                sides[side] = {"missing": f"No module named {side!r}"}
                continue
            run, facts = prepare(side)
            seconds = [timing.once(run) for _ in range(number * repeats)]
            sides[side] = {"facts": facts, "versions": {}, "seconds": seconds}
        return sides

    monkeypatch.setattr(timing, "rounds", rounds)


def noise(rng, shape=sequences.RATE):
    """A recording of a second, int16."""
    return rng.integers(-900, 999, shape).astype(np.int16)


# ---------------------------------------------------------------------------- smoke


@pytest.mark.thorough
def test_calibration_reads_the_images_five_times(small, out):
    line = ["--quick", "--images", "16", "--rounds", "2", "--out", str(out)]
    (side,) = calibration.main(line)["sides"].values()
    assert side["passes"] == pytest.approx(5 * side["over_t"])


@pytest.mark.thorough
def test_a_cold_start_counts_programs_and_seconds_of_compilation(out):
    (side,) = cold_start.main(["--quick", "--out", str(out)])["sides"].values()
    assert side["programs"] > 0 and 0 < side["compile_seconds"] < side["seconds"]


@pytest.mark.thorough
def test_missing_peers_of_the_converted_cnn_have_a_reason(monkeypatch, out):
    peers = (*converter_cnn.SPIKINGJELLY, *converter_cnn.SPARXML)
    prepare = functools.partial(converter_cnn.prepare, steps=16, batch=2, size=8)
    time_in_this_process(monkeypatch, prepare, missing=peers)
    only = "batch 32,closed_form,SpikingJelly,sparxml"
    sides = converter_cnn.main(["--quick", "--only", only, "--out", str(out)])["sides"]
    for name, side in sides.items():
        assert ("missing" in side) == (name in peers)
        assert name in peers or side["time_over_ann"]["best"] > 0
    assert "not installed" in out.with_suffix(".md").read_text()


@pytest.mark.thorough
def test_equal_accuracy_compares_modes_that_lose_no_more(
    small, light, monkeypatch, tmp_path, out
):
    """With the ANN in the place of one mode of SpikingJelly."""
    monkeypatch.setattr(equal_accuracy, "STEPS", {"radix": (2,), "rate": (2,)})
    installed, *missing = equal_accuracy.SPIKINGJELLY

    def prepare(side):
        side = equal_accuracy.ANN if side == installed else side
        return equal_accuracy.snnjax_or_ann(side, tmp_path)

    time_in_this_process(monkeypatch, prepare, missing)
    files = ["--folder", str(tmp_path), "--out", str(out)]
    sides = equal_accuracy.main(["--quick", *files])["sides"]
    assert sides[installed]["speed_over"] == {"best": 1, "median": 1}
    assert all(sides[name]["facts"]["steps"] == 2 for name in equal_accuracy.SNNJAX)


@pytest.mark.thorough
def test_networks_of_mlperf_tiny_have_a_row_each(light, monkeypatch, tmp_path, out):
    """Networks of two channels, random recordings, and noise for CIFAR-10."""
    rng = np.random.default_rng(0)

    def layers(shapes):
        """Kernels of these shapes, and their biases."""
        pairs = []
        for shape in shapes:
            kernel = np.float32(rng.normal(size=shape))
            pairs.append((kernel, np.zeros(max(shape[0], 2))))
        return pairs

    convolution = (2, 3, 3, 2)
    block = [convolution, convolution]
    block_with_shortcut = [convolution, convolution, (2, 1, 1, 2)]
    resnet = [(2, 3, 3, 3), *block, *block_with_shortcut, *block_with_shortcut, (10, 2)]
    networks = {
        mlperf_tiny.DS_CNN: layers(
            [(2, 10, 4, 1), (1, 3, 3, 2), (2, 1, 1, 2), (12, 2)]
        ),
        mlperf_tiny.RESNET_8: layers(resnet),
    }
    monkeypatch.setattr(mlperf_tiny, "weights", lambda file: networks[file.name])
    monkeypatch.setattr(mlperf_tiny, "CALIBRATION", 16)
    monkeypatch.setattr(mlperf_tiny, "ROWS", [mlperf_tiny.Row("radix", 4, bits=8)])
    for name in networks:
        (tmp_path / name).touch()
    for i in range(20):
        file = tmp_path / "words" / mlperf_tiny.WORDS[i % 12] / f"{i}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(file, sequences.RATE, noise(rng))
    images = rng.integers(0, 256, (24, 8, 8, 3)).astype(np.uint8)
    splits = [images, np.zeros(24, int)] * 2
    dataset = data.Dataset("cifar10", *splits, (0.0,), (1.0,), 10)
    monkeypatch.setattr(data, "load", lambda name, data_dir: dataset)
    line = f"--folder {tmp_path} --recordings {tmp_path / 'words'} --out {out}".split()
    sides = mlperf_tiny.main(line)["sides"]
    assert [len(side) for side in sides.values()] == [1, 3, 3]
    monkeypatch.setattr(mlperf_tiny, "converted_rows", pytest.fail)  # rows are kept
    assert mlperf_tiny.main(line)["sides"] == sides


@pytest.mark.thorough
def test_a_graph_of_nir_is_tested_on_recordings_of_nmnist(light, tmp_path, out):
    nir = pytest.importorskip("nir")
    rng = np.random.default_rng(0)
    ones, zeros = np.ones((3, 4, 4)), np.zeros((3, 4, 4))
    graph = nir.NIRGraph.from_list(
        nir.Input({"input": np.array([2, 4, 4])}),
        nir.Conv2d((4, 4), rng.normal(size=(3, 2, 3, 3)), 1, 1, 1, 1, np.zeros(3)),
        nir.IF(ones, ones, zeros),
        nir.Flatten({"input": np.array([3, 4, 4])}, start_dim=0, end_dim=-1),
        nir.Linear(rng.normal(size=(2, 48))),
        nir.IF(np.ones(2), np.ones(2), np.zeros(2)),
    )
    nir.write(str(tmp_path / nmnist.FILE), graph)
    np.save(tmp_path / "lava_accuracy.npy", 0.5)
    arrays = {}
    for part in ("train", "test"):
        x, y, p = rng.integers(0, (4, 4, 2), (3 * 400, 3)).T
        times = np.tile(np.arange(400) * 750, 3)
        fields = {"x": x, "y": y, "p": p, "t_us": times, "labels": np.array([0, 1, 0])}
        fields["offsets"] = np.arange(4) * 400
        arrays |= {f"{part}_{name}": field for name, field in fields.items()}
    np.savez(tmp_path / "events.npz", **arrays)
    line = f"--folder {tmp_path} --recordings {tmp_path / 'events.npz'} --out {out}"
    sides = nmnist.main(line.split())["sides"]
    assert sides["Lava, by the paper"]["accuracy"] == 50
    assert {"ANN, on thirds", "converted, radix, 8 bits"} < sides.keys()
    assert {"snnjax, reset zero", "snnjax, reset subtract"} < sides.keys()


@pytest.mark.thorough
def test_akida_computes_floats_and_whole_numbers_alike(small, monkeypatch, out):
    line = ["--quick", "--out", str(out)]
    ann, akida = on_chips.main(line)["sides"].values()
    assert akida["floats"] == akida["whole"] == ann["floats"]
    monkeypatch.setattr(on_chips, "table_row", pytest.fail)  # a second run reads it
    assert len(on_chips.main(line)["sides"]) == 2


@pytest.mark.thorough
def test_files_of_loihi_and_speck_are_checked_against_whole_numbers(
    monkeypatch, tmp_path, out
):
    """Files of random numbers in the form of Intel's, Speck's and its recordings."""
    h5py = pytest.importorskip("h5py")
    nir = pytest.importorskip("nir")
    rng = np.random.default_rng(0)
    monkeypatch.setattr(silicon, "STEPS", 8)
    shapes = ((5, 5, 1, 16), (3, 3, 16, 32), (3, 3, 32, 64), (4, 4, 64, 10))
    with h5py.File(tmp_path / silicon.LOIHI_FILE, "w") as file:
        for i, shape in enumerate(shapes, 1):
            group = file.create_group(f"model_weights/conv2d_{i}/conv2d_{i}")
            group["kernel:0"] = rng.normal(0.02, 0.1, shape)
            group["bias:0"] = rng.normal(0, 0.01, shape[-1])
    with h5py.File(tmp_path / silicon.MOBILE_FILE, "w") as file:
        weights = file.create_group("model_weights")
        inputs = 3
        for name in silicon.MOBILE_LAYERS:
            size = 1 if "pw" in name else 3
            shape = (size, size, inputs, 1 if "dw" in name else 4)
            weights[f"{name}/{name}/kernel:0"] = rng.normal(0.05, 0.1, shape)
            for norm in ("beta", "gamma", "moving_mean", "moving_variance"):
                weights[f"{name}_bn/{name}_bn/{norm}:0"] = np.full(4, 0.5)
            inputs = 4
        weights["dense_1/dense_1/kernel:0"] = rng.normal(size=(16, 10))
    rng.integers(0, 10, (2, 3073)).astype(np.uint8).tofile(
        tmp_path / silicon.CIFAR_FILE
    )
    for name, size in zip(silicon.MNIST_FILES, (16 + 16 * 784, 8 + 16), strict=True):
        content = rng.integers(0, 10, size).astype(np.uint8).tobytes()
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
    np.save(tmp_path / "speck_activity.npy", np.zeros((1, 1, 3, 17, 17)))
    # An event has 5 bytes: x, y, the sign and the time.
    events = rng.integers(0, 34, (300, 5)).astype(np.uint8)
    (tmp_path / silicon.RECORDINGS[0]).write_bytes(events.tobytes())
    line = ["--quick", "--out", str(out)]
    for name in silicon.FOLDERS:
        line += [f"--{name}", str(tmp_path)]
    sides = silicon.main(line)["sides"]
    compared = {name: row["compared"] for name, row in sides.items()}
    assert compared.pop("Speck: event by event") == 3 * 17 * 17
    assert sum(name.startswith("Loihi 1: ") for name in compared) == 9
    assert sum(name.startswith("Loihi 1, MobileNet: ") for name in compared) == 4


@pytest.mark.thorough
def test_files_of_an_lsnn_are_checked_against_whole_numbers(tmp_path, monkeypatch, out):
    rng = np.random.default_rng(0)
    for name, shape in zip(silicon_lsnn.WEIGHTS, silicon_lsnn.SHAPES, strict=True):
        weights = rng.integers(-120, 130, shape) * (rng.random(shape) < 0.2)
        np.save(tmp_path / name, weights.astype(np.float32))
    images = rng.integers(0, 256, (silicon_lsnn.IMAGES, 784))
    monkeypatch.setattr(silicon_lsnn, "mnist", lambda *_: (images, images[:, 0] % 10))
    monkeypatch.setattr(timing, "check_files", lambda *_: None)
    line = f"--weights {tmp_path} --mnist {tmp_path} --quick --out {out}"
    result = silicon_lsnn.main(line.split())
    assert result["updates"] == 350 * 840 and result["synaptic_operations"] > 0
    assert "estimate: energies of the chip" in result["sides"]


def test_a_spike_on_speck_costs_more_than_its_additions(out):
    sides = speck_power.main(["--out", str(out)])["sides"]
    *measured, operations, memory = sides.values()
    # 540 ms at 9.5 mW, .42 of them at rest, for a million spikes.
    assert measured[0]["spike"] == pytest.approx(4.9032)
    for row in measured:
        assert 10 * operations["most"] < row["most"] < memory["most"] < row["fewest"]


@pytest.mark.thorough
def test_a_transformer_on_phrases_has_rows_of_ann_and_spikes(
    light, monkeypatch, tmp_path, out
):
    """A transformer of few features on a handful of phrases."""
    monkeypatch.setattr(sst2, "LENGTH", 6)
    monkeypatch.setattr(sst2, "EPOCHS", 1)
    monkeypatch.setattr(sst2, "ROWS", [mlperf_tiny.Row("radix", 2)])
    transformer = functools.partial(sst2.Transformer, features=8, blocks=1)
    monkeypatch.setattr(sst2, "Transformer", transformer)
    # Whole sentences are held out, and so is a phrase of theirs, "good thing".
    training = ['a "good" film', "good fun", "good work", "a dull film", "dull film"]
    training += ["a good film is a good thing .", "long and dull .", "good thing"]
    for name, phrases in (("train", training), ("dev", ["good fun , a film", "new"])):
        rows = [f"{phrase} \t{int('good' in phrase)}\n" for phrase in phrases]
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    read = sst2.read(tmp_path)
    assert read.tokens == {"a": 2, "dull": 3, "film": 4, "good": 5}  # others occur once
    assert len(read.training.labels) == 5 and len(read.held_out.labels) == 2
    line = f"--data {tmp_path} --training {tmp_path / 'training'} --out {out}".split()
    ann, spiking = sst2.main(line)["sides"]["transformer"]
    assert ann["inputs"] == 2 and spiking["wait"] == 1 and spiking["spikes"] > 0


@pytest.mark.slow
def test_throughput_has_seconds_of_each_side_and_no_side_twice(out):
    sides = throughput.main(["--quick", "--rounds", "1", "--out", str(out)])["sides"]
    assert all(min(side["seconds"]) > 0 for side in sides.values())
    all_sides = throughput.sides(quick=False)
    assert len({side.name for side in all_sides}) == len(all_sides)


@pytest.mark.thorough
def test_libraries_of_training_agree_in_their_answers(monkeypatch, out):
    """The same network and input in each library: the answers of two agree."""
    (size,) = training.QUICK
    missing = [f"{side}: {size.name}" for side in ("Spyx, recurrent", "sparxml")]
    missing += [f"{side}: {size.name}" for side in training.TORCH]
    time_in_this_process(monkeypatch, training.prepare, missing)
    only = "auto,recurrent,plain,sparxml,Norse"
    result = training.main(["--quick", "--only", only, "--out", str(out)])
    assert result["sides"][f"snnjax, auto: {size.name}"]["ms"]["best"] > 0
    x, _ = training.example(size)
    run, snn = training.snnjax_side(size)
    scan, params = training.plain_scan(size)
    np.testing.assert_allclose(run(snn, x), scan(params, x), rtol=1e-5)


# ------------------------------------------------------------------- what they share

SERVE = """
from benchmarks import timing
def prepare():
    {body}
timing.serve(prepare, ())
"""


def test_each_side_runs_in_a_process_and_a_missing_peer_says_so():
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


def test_a_target_is_met_at_most_or_at_least():
    assert timing.target("seconds", 4.0, at_most=5)["met"]
    assert not timing.target("speed", 3.4, at_least=3.5)["met"]


@pytest.mark.parametrize(
    ("main", "line", "message"),
    [
        (throughput.main, "--out a.md", "a.md; allowed: a file named NAME.json"),
        (throughput.main, "--out file/a.json", "Not a directory|File exists"),
        (throughput.main, "--rounds 0", "0; allowed: a whole number >= 1"),
        (cold_start.main, "--only MLB", "'MLB' is in no side; allowed: words of 'MLP"),
        (on_chips.main, "--folder .", "needs --folder and --recordings"),
        (silicon.main, "", "no folder is given; a check needs --loihi and --mnist, or"),
        (silicon.main, "--loihi .", "--loihi is given alone; a check needs"),
        (silicon.main, "--loihi . --mnist nowhere", "has no t10k"),
        (mlperf_tiny.main, "--folder . --recordings .", "has no kws_ref_model_float32"),
        (sst2.main, "--data . --training a", "has no train.tsv, dev.tsv; --help says"),
    ],
)
def test_a_wrong_line_ends_with_one_message(
    main, line, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("file", silicon.LOIHI_FILE):
        (tmp_path / name).touch()
    with pytest.raises(SystemExit):
        main(line.split())
    assert re.search(message, capsys.readouterr().err)


def test_a_file_that_is_something_else_ends_a_check_with_a_sentence(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    for name in (*silicon_lsnn.WEIGHTS, *silicon.MNIST_FILES, silicon.MOBILE_FILE):
        (tmp_path / name).write_text(pointer)
    for call in (
        lambda: silicon.mnist(tmp_path, None),
        lambda: silicon.mobile(tmp_path, tmp_path, 1),
        lambda: silicon_lsnn.network(tmp_path, silicon_lsnn.FIRES_AT),
    ):
        with pytest.raises(SystemExit, match="is not what --help describes, or a poin"):
            call()
    for name in silicon_lsnn.WEIGHTS:
        np.save(tmp_path / name, np.zeros((3, 2)))
    with pytest.raises(SystemExit, match=r"shapes .*3, 2.*allowed: whole numbers of"):
        silicon_lsnn.network(tmp_path, silicon_lsnn.FIRES_AT)


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
def test_bad_recordings_for_mlperf_end_with_what_is_allowed(
    file, rate, shape, message, tmp_path, monkeypatch
):
    has_few = "allowed: more" in message
    monkeypatch.setattr(mlperf_tiny, "CALIBRATION", 256 if has_few else 0)
    path = tmp_path / file
    path.parent.mkdir()
    wavfile.write(path, rate, noise(np.random.default_rng(0), shape))
    if path.stem == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit, match=message):
        mlperf_tiny.keyword_tasks([], tmp_path, None)


# ------------------------------------------------------------------ what is computed


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


def test_a_readout_that_leaks():
    """64 units per current, of which 2^8 / 2^12 leak at each step, rounded up."""
    currents = np.array([5, 5, -9]).reshape(3, 1, 1)
    potentials = silicon.leaky_potentials(currents, 2**8).ravel()
    np.testing.assert_array_equal(potentials, [320, 320 - 20 + 320, 620 - 39 - 576])


def test_mfccs_are_those_of_their_definition(tmp_path):
    """For MLPerf Tiny: sums one by one, and zeros behind a short recording."""
    sound = noise(np.random.default_rng(0), 9000)
    wavfile.write(tmp_path / "a.wav", sequences.RATE, sound)
    read = sequences.samples(tmp_path / "a.wav")
    np.testing.assert_array_equal(read, [*sound, *[0] * 7000])
    coefficients = sequences.mfccs(read)  # (frames, coefficients)
    assert coefficients.shape == (49, 10)

    def mel(frequency):
        return 2595 * math.log10(1 + frequency / 700)

    n = np.arange(480)  # samples of a frame of 30 ms
    k = np.arange(10)  # coefficients
    mels = [mel(f * 16000 / 512) for f in range(257)]
    low = mel(20)
    width = (mel(4000) - low) / 41
    for frame in (0, 27, 48):  # whole, partly zeros, all zeros
        part = read[320 * frame : 320 * frame + 480] / sound.max()
        part = part * np.sin(np.pi * n / 480) ** 2
        amplitudes = []
        for f in range(257):
            wave = np.exp(-2j * np.pi * f * n / 512)
            amplitudes.append(abs(sum(part * wave)))
        total = 0
        for band in range(40):
            center = low + (band + 1) * width
            power = 0
            for amplitude, frequency in zip(amplitudes, mels, strict=True):
                power += amplitude * max(0, 1 - abs(frequency - center) / width)
            cosines = np.cos(np.pi * k * (band + 0.5) / 40)
            total += math.log(power + 1e-6) * cosines
        np.testing.assert_allclose(coefficients[frame], total / 20**0.5, atol=1e-5)


def test_the_pages_have_the_medians_that_were_measured():
    def medians(name, measure):
        """The median of a measure of each side, by the name of the side."""
        file = ROOT / "benchmarks" / "results" / f"{name}.json"
        sides = json.loads(file.read_text())["sides"]
        return {name: side[measure].get("median") for name, side in sides.items()}

    cnn = medians("converter_cnn", "samples_per_s")
    jelly = max(value for name, value in cnn.items() if "SpikingJelly" in name)
    auto = cnn["snnjax auto, micro-batch 16"]
    sparxml = cnn["sparxml run_converted"]
    equal = medians("equal_accuracy", "images_per_s")
    fastest_peer = max(equal[name] for name in equal_accuracy.SPIKINGJELLY)
    speeds = medians("equal_accuracy", "speed_over")
    closed = equal_accuracy.CLOSED_FORM
    wait_1 = equal_accuracy.WAIT_1
    cnn_speeds = f"{auto:.3g}, SpikingJelly's fastest mode {jelly:.3g}, sparxml "
    cnn_speeds += f"{sparxml:.3g}, T passes of the ANN {cnn[converter_cnn.ANN]:.3g}"
    resnet_speeds = f"{equal[closed]:.3g} for digits in closed form, "
    resnet_speeds += f"{equal[wait_1]:.3g} with a wait of 1, "
    resnet_speeds += f"{equal[equal_accuracy.RATE]:.3g} for rate coding"
    for page, sentence in (
        ("benchmarks/README.md", f"snnjax {cnn_speeds}"),
        ("benchmarks/README.md", f"{fastest_peer:.3g} for its fastest mode, "),
        ("benchmarks/README.md", resnet_speeds),
        ("README.md", f"a wait of 1 processes {speeds[wait_1]:.0f} times as many"),
        (
            "README.md",
            f"SpikingJelly, and {speeds[closed]:.0f} times as many in [closed",
        ),
    ):
        words = (ROOT / page).read_text().split()
        assert sentence in " ".join(words)
