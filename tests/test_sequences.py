"""Sequences: images in parts, published formats of recordings, training on them."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
from scipy.io import wavfile

from experiments import data, train_snn
from experiments.data import events
from experiments.models import load_snn
from experiments.presets import PRESETS_SNN
from experiments.running import training_loop

SMALL = {"width": 8, "epochs": 1, "batch_size": 8, "learning_rate": 1e-2}


def run(out, data_set=None, *, preset="rows", **changes):
    changes = SMALL | changes | {"out": str(out)}
    config = dataclasses.replace(PRESETS_SNN[preset], **changes)
    return train_snn.train(config, data=data_set), training_loop.read_log(out)


def test_an_image_is_read_by_rows_or_in_one_order_for_all(digits):
    rows = data.in_parts(digits, "rows")
    images = digits.test_images
    np.testing.assert_array_equal(rows.test_images, images[..., 0])
    assert len(rows.mean) == 8
    pixels = data.in_parts(digits, "permuted", 4)
    assert pixels.train_images.shape == (len(digits.train_images), 16, 4)
    flat, mixed = images.reshape(-1, 64), pixels.test_images.reshape(-1, 64)
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_array_equal(mixed, flat[:, order])
    with pytest.raises(ValueError, match="pixels is 5, .* allowed: a divisor of 64"):
        data.in_parts(digits, "permuted", 5)


def test_no_group_is_in_two_parts(digits):
    groups = np.random.default_rng(0).integers(0, 40, 1000)
    parts = data.split(groups, (0.8, 0.1, 0.1))
    assert sorted(np.concatenate(parts)) == list(range(1000))
    names = [{*groups[part]} for part in parts]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    assert [round(len(part), -2) for part in parts] == [800, 100, 100]
    held = digits.with_choice(0.1)
    assert len(held.choice[1]) == len(digits.train_labels) // 10
    assert len(held.train_labels) + len(held.choice[1]) == len(digits.train_labels)


def test_files_of_mnist(tmp_path):
    draw = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 7)):
        x = draw.integers(0, 256, (count, 4, 5), np.uint8)
        sizes = np.array(x.shape, ">i4").tobytes()
        content = b"\0\0\x08\x03" + sizes + x.tobytes()
        with gzip.open(tmp_path / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(content)
        labels = b"\0\0\x08\x01" + np.array(count, ">i4").tobytes()
        labels += bytes(i % 10 for i in range(count))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    read = data.load(str(tmp_path))
    np.testing.assert_array_equal(read.test_images[..., 0], x)
    assert (read.num_classes, read.train_images.shape) == (10, (20, 4, 5, 1))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(labels[:-1])
    with pytest.raises(ValueError, match="t10k-labels.* is no file of MNIST"):
        data.load(str(tmp_path))


# -------------------------------------------------------------- published formats


def drawn(count, size, seed=0):
    draw = np.random.default_rng(seed)
    xs, ys = draw.integers(0, size, (2, count))
    ps, ts = draw.integers(0, 2, count), np.sort(draw.integers(0, 300_000, count))
    return xs, ys, ps, ts


def test_events_of_40_bits(tmp_path):
    for part in ("Train", "Test"):
        for label in (0, 1):
            x, y, p, t = drawn(50, 34, label)
            rows = np.stack([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255], 1)
            file = tmp_path / part / str(label) / "00001.bin"
            file.parent.mkdir(parents=True)
            file.write_bytes(rows.astype(np.uint8).tobytes())
    read = events.events_of_bin(file.read_bytes())
    for name, field in zip("xypt", (x, y, p, t), strict=True):
        np.testing.assert_array_equal(read[name], field)
    frames = data.load_events(tmp_path, 3)
    assert frames.train_images.sum() == 100 and list(frames.test_labels) == [0, 1]
    with pytest.raises(ValueError, match="has 4 bytes; allowed: 5 for each event"):
        events.events_of_bin(b"abcd")
    with pytest.raises(data.MissingDataError, match="has no recordings for train"):
        data.load_events(tmp_path / "Train", 3)


def test_gestures_of_aedat_and_of_tonic(tmp_path):
    x, y, p, t = drawn(200, 128)
    words = np.stack([x << 17 | y << 2 | p << 1 | 1, t], 1).astype("<u4")
    words[3, 0] ^= 1  # not valid
    header = np.array([1, 1], "<i2").tobytes()
    header += np.array([8, 4, 0, 200, 200, 199], "<i4").tobytes()
    other = np.array([2, 1], "<i2").tobytes()  # a packet of another kind
    other += np.array([4, 0, 0, 2, 2, 2], "<i4").tobytes() + bytes(8)
    mark = b"#!AER-DAT3.1\r\n#Source 1\r\n#!END-HEADER\r\n"
    name = "user07_led"
    (tmp_path / f"{name}.aedat").write_bytes(mark + other + header + words.tobytes())
    table = "class,startTime_usec,endTime_usec\n2,0,150000\n11,150000,300000\n"
    (tmp_path / f"{name}_labels.csv").write_text(table)
    for part in ("train", "test"):
        (tmp_path / f"trials_to_{part}.txt").write_text(f"{name}.aedat\n")
    first, last = events.recordings_of(tmp_path, "train")
    assert [g[1:] for g in (first, last)] == [(1, "user07"), (10, "user07")]
    valid = np.arange(200) != 3
    expected = (x // 4)[valid & (t < 150_000)]
    np.testing.assert_array_equal(first[0]["x"], expected)
    read = data.load_events(tmp_path, 4)
    assert read.train_images.sum() == 199 and list(read.train_groups) == ["user07"] * 2

    rows = np.stack([x, y, p, t // 1000], 1)[valid & (t < 150_000)]
    file = tmp_path / "tonic" / "ibmGestureTrain" / "user07_led" / "1.npy"
    file.parent.mkdir(parents=True)
    np.save(file, rows)
    ((same, *label),) = events.recordings_of(tmp_path / "tonic", "train")
    np.testing.assert_array_equal(same["x"], expected)
    assert label == [1, "user07"]
    (tmp_path / f"{name}.aedat").write_bytes(b"#!AER-DAT2.0\r\n")
    with pytest.raises(ValueError, match="is no AEDAT 3.1 file"):
        data.load_events(tmp_path, 4)


def write_cochlea(folder, name, parts, per_part=40):
    h5py = pytest.importorskip("h5py")
    draw = np.random.default_rng(0)
    for part in parts:
        with h5py.File(folder / f"{name}_{part}.h5", "w") as file:
            labels = np.arange(per_part) % 2
            for key, kind in (("times", "f2"), ("units", "u2")):
                rows = file.create_dataset(
                    f"spikes/{key}", per_part, dtype=h5py.vlen_dtype(np.dtype(kind))
                )
                for i, label in enumerate(labels):
                    values = np.sort(draw.random(60)).astype("f2")
                    if key == "units":
                        values = draw.integers(0, 350, 60) + 350 * label
                    rows[i] = values
            file["labels"] = labels
            file["extra/speaker"] = np.arange(per_part) // 4


def test_shd_and_ssc_train_by_their_presets(tmp_path):
    write_cochlea(tmp_path, "shd", ("train", "test"))
    shd = data.load_cochlea(tmp_path, "shd", 10)
    assert shd.train_images.shape == (40, 10, 140) and shd.train_images.sum() == 2400
    assert not shd.train_images[::2, :, 70:].any()
    sizes = {"steps": 5, "data_dir": str(tmp_path), "epochs": 6, "width": 16}
    _, log = run(tmp_path / "shd", preset="shd", **sizes)
    assert (load_snn(tmp_path / "shd").snn.steps, log[-1]["test_accuracy"]) == (5, 1.0)
    assert 0 < log[-1]["spikes"] < 1 and "choice_accuracy" in log[-1]
    write_cochlea(tmp_path, "ssc", ("train", "valid", "test"))
    ssc = data.load_cochlea(tmp_path, "ssc", 5).with_choice(0.1)
    assert len(ssc.choice[1]) == len(ssc.train_labels) == 40
    (tmp_path / "ssc_test.h5").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"ssc_test\.h5 is no file of ssc"):
        data.load_cochlea(tmp_path, "ssc", 5)


def test_keywords_of_a_folder_are_split_by_speaker(tmp_path):
    draw = np.random.default_rng(0)
    for word in ("yes", "no"):
        (tmp_path / word).mkdir()
        for speaker in range(20):
            sound = (1000 * draw.standard_normal(8000)).astype(np.int16)
            name = f"{word}_{speaker:08x}_nohash_0.wav"
            wavfile.write(tmp_path / word / name, 16_000, sound)
    words = data.load_keywords(tmp_path)
    assert words.train_images.shape == (36, 49, 20) and len(words.test_labels) == 4
    assert len({*words.train_groups}) == 18
    (tmp_path / "no" / "cut.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"cut\.wav cannot be read"):
        data.load_keywords(tmp_path)


# ----------------------------------------------------------------------- training


def test_neurons_have_leaks_of_their_own_and_temperatures_follow_a_line(
    digits, tmp_path
):
    changes = {"temperatures": (1.0, 2.0), "temperature_end": 6.0, "dataset": "digits"}
    snn, log = run(tmp_path, digits.first(200), neuron="recurrent_adaptive", **changes)
    np.testing.assert_allclose(log[-1]["temperature"], [6.0, 6.0], rtol=1e-3)
    for neuron in snn.neurons.values():
        leak = neuron.neuron.neuron.leak
        assert leak.shape == neuron.neuron.subthreshold.shape == (8,)
        assert np.ptp(leak) > 0.05
    other = {"temperatures": (1.0,), "dataset": "digits"}
    with pytest.raises(ValueError, match="allowed: one for each of the 2 sites"):
        run(tmp_path / "other", digits, **other)


def test_a_trained_recurrent_network_is_tested_in_whole_numbers(digits, tmp_path):
    options = {"dataset": "digits", "width": 32, "epochs": 5}
    run(tmp_path, digits, **options)
    _, log = run(tmp_path, digits, **options, weight_bits=(8, 3), chip="loihi1")
    rows = json.loads((tmp_path / "integers.json").read_text())["rows"]
    floats, eight, three = (row["accuracy"] for row in rows)
    assert floats == log[-1]["test_accuracy"] > 0.5
    assert abs(eight - floats) < 0.08 and abs(three - floats) < 0.2
    bytes_of = [row["memory"]["weights"] for row in rows]
    assert bytes_of[0] > 3 * bytes_of[1] > 6 * bytes_of[2]
    assert "Loihi 1: bit for bit" in (tmp_path / "integers.md").read_text()
    for changes, problem in (
        ({"weight_bits": (8,)}, "leak, and each chip rounds"),
        ({"chip": "speck"}, "and that of Speck is not stated"),
        ({"chip": "loihi1", "neuron": "adaptive"}, "populations of .* are not known"),
    ):  # before anything is trained
        with pytest.raises(ValueError, match=problem):
            run(tmp_path / "none", digits, dataset="digits", **changes)
    with pytest.raises(ValueError, match="is a vector, and the model 'small' reads"):
        run(tmp_path / "none", digits, dataset="digits", model="small")
    assert not (tmp_path / "none").exists()
