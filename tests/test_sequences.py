"""Sequences: images in parts, published formats of recordings, training on them."""

import dataclasses
import gzip
import itertools
import json
import struct

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


def test_no_group_is_in_two_parts(digits):
    groups = np.random.default_rng(0).integers(0, 40, 1000)
    parts = data.split(groups, (0.8, 0.1, 0.1))
    assert sorted(np.concatenate(parts)) == list(range(1000))
    names = [set(groups[part]) for part in parts]
    for first, second in itertools.combinations(names, 2):
        assert not first & second
    assert [round(len(part), -2) for part in parts] == [800, 100, 100]
    held = digits.with_choice(0.1)
    assert len(held.choice[1]) == len(digits.train_labels) // 10
    assert len(held.train_labels) + len(held.choice[1]) == len(digits.train_labels)


def test_every_part_has_a_group(digits):
    draw = np.random.default_rng(1)
    for _ in range(50):
        sizes = draw.multinomial(500, draw.dirichlet(np.ones(6)))
        groups = np.repeat(np.arange(6), np.maximum(sizes, 1))
        parts = data.split(groups, (0.9, 0.05, 0.05))
        assert sorted(np.concatenate(parts)) == list(range(len(groups)))
        names = [set(groups[part]) for part in parts]
        assert all(names) and sum(map(len, names)) == 6


def test_a_choice_does_not_enter_the_normalization(digits):
    held = digits.with_choice(0.5)
    assert held.mean != digits.mean
    np.testing.assert_allclose(held.mean, held.train_images.mean())
    np.testing.assert_allclose(held.std, held.train_images.std())
    rows = data.in_parts(digits, "rows").with_choice(0.5)
    assert rows.mean == held.mean * 8 and rows.std == held.std * 8
    # A normalization that was given, such as that of a card, stays.
    fixed = digits._replace(mean=(1.0,), std=(2.0,), normalization=None)
    assert fixed.with_choice(0.5).mean == (1.0,)


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
    test_labels = tmp_path / "t10k-labels-idx1-ubyte"
    test_labels.write_bytes(labels[:-1])
    with pytest.raises(ValueError, match="t10k-labels.* is no file of MNIST"):
        data.load(str(tmp_path))
    test_labels.write_bytes(labels[:-1] + b"\x0a")
    with pytest.raises(ValueError, match="test labels from 0 to 10; allowed: 0 to 9"):
        data.load(str(tmp_path))
    test_labels.write_bytes(labels[:7] + b"\x06" + labels[8:-1])
    with pytest.raises(ValueError, match="7 t10k images and 6 labels"):
        data.load(str(tmp_path))


# -------------------------------------------------------------- published formats


def drawn(count, size, seed=0):
    draw = np.random.default_rng(seed)
    xs, ys = draw.integers(0, size, (2, count))
    ps, ts = draw.integers(0, 2, count), np.sort(draw.integers(0, 300_000, count))
    return xs, ys, ps, ts


def test_events_of_40_bits(tmp_path):
    for seed, part in enumerate(("Train", "Test")):
        for label in (0, 1):
            x, y, p, t = drawn(50, 30, 2 * seed + label)
            columns = (x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255)
            rows = np.stack(columns, axis=1)
            file = tmp_path / part / str(label) / "00001.bin"
            file.parent.mkdir(parents=True)
            file.write_bytes(rows.astype(np.uint8).tobytes())
    read = events.nmnist_events(file.read_bytes())
    for name, field in zip("xypt", (x, y, p, t), strict=True):
        np.testing.assert_array_equal(read[name], field)
    frames = data.load_events(tmp_path, 3)
    assert frames.train_images.shape == (2, 3, 34, 34, 2)  # as the format states
    assert frames.train_images.sum() == 100 and list(frames.test_labels) == [0, 1]
    # The clock overflows between two events.
    rows = [[1, 2, 0, 0, 9], [0, 240, 0, 0, 0], [3, 4, 128, 0, 5]]
    read = events.nmnist_events(bytes(sum(rows, [])))
    assert read.tolist() == [(1, 2, 0, 9), (3, 4, 1, 5 + 2**13)]
    file.write_bytes(bytes([34, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="test_x from .* to 34; allowed: 0 to 33"):
        data.load_events(tmp_path, 3)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="test recording 1 has no events"):
        data.load_events(tmp_path, 3)
    third = tmp_path / "Test" / "2" / "00001.bin"
    file.parent.rename(third.parent)
    third.write_bytes(bytes(rows[0]))
    with pytest.raises(ValueError, match="test labels from 0 to 2; allowed: 0 to 1"):
        data.load_events(tmp_path, 3)
    with pytest.raises(data.MissingDataError, match="has no recordings for train"):
        data.load_events(tmp_path / "Train", 3)


def test_gestures_of_aedat_and_of_tonic(tmp_path):
    x, y, p, t = drawn(200, 128)
    addresses = x << 17 | y << 2 | p << 1 | 1
    words = np.stack([addresses, t], axis=1).astype("<u4")
    words[3, 0] ^= 1  # not valid
    header = struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, 200, 200, 199)
    # A packet of another kind has two events of four bytes.
    special_packet = struct.pack("<hhiiiiii", 2, 1, 4, 0, 0, 2, 2, 2) + bytes(8)
    mark = b"#!AER-DAT3.1\r\n#Source 1\r\n#!END-HEADER\r\n"
    name = "user07_led"
    content = mark + special_packet + header + words.tobytes()
    file = tmp_path / f"{name}.aedat"
    file.write_bytes(content)
    table = "class,startTime_usec,endTime_usec\n2,0,150000\n11,150000,300000\n"
    (tmp_path / f"{name}_labels.csv").write_text(table)
    for part in ("train", "test"):
        (tmp_path / f"trials_to_{part}.txt").write_text(f"{name}.aedat\n")
    first, last = events.recordings_in(tmp_path, "train")
    assert [g[1:] for g in (first, last)] == [(1, "user07"), (10, "user07")]
    valid = np.arange(200) != 3
    expected = (x // 4)[valid & (t < 150_000)]
    np.testing.assert_array_equal(first[0]["x"], expected)
    with pytest.warns(match="2 held-out recordings .* equal to training"):
        read = data.load_events(tmp_path, 4)
    assert read.train_images.shape == (2, 4, 32, 32, 2)
    assert read.train_images.sum() == 199 and list(read.train_groups) == ["user07"] * 2

    for missing_bytes, problem in (
        (1, "200 events of 8 bytes do not fit into the last 1599"),
        (8 * 200, "200 events of 8 bytes do not fit into the last 0"),
        (8 * 200 + 5, "is cut in a header of events"),
        (8 * 200 + 28, "ends at -1 us, but .* from 0 to 150000 us"),
    ):
        file.write_bytes(content[:-missing_bytes])
        with pytest.raises(ValueError, match=problem):
            data.load_events(tmp_path, 4)
    rows = np.stack([x, y, p, t // 1000], 1)[valid & (t < 150_000)]
    file = tmp_path / "tonic" / "ibmGestureTrain" / "user07_led" / "1.npy"
    file.parent.mkdir(parents=True)
    np.save(file, rows)
    (gesture,) = events.recordings_in(tmp_path / "tonic", "train")
    np.testing.assert_array_equal(gesture[0]["x"], expected)
    assert gesture[1:] == (1, "user07")
    (tmp_path / f"{name}.aedat").write_bytes(b"#!AER-DAT2.0\r\n")
    with pytest.raises(ValueError, match="is no AEDAT 3.1 file"):
        data.load_events(tmp_path, 4)


def test_a_prepared_file_that_is_damaged_is_refused(tmp_path):
    def columns(seed, count, label):
        x, y, p, t = drawn(count, 8, seed)
        return {
            "x": x,
            "y": y,
            "p": p,
            "t_us": t,
            "offsets": np.array([0, count]),
            "labels": np.array([label]),
        }

    def write(**changes):
        arrays = {f"train_{n}": array for n, array in columns(0, 90, 1).items()}
        arrays |= {f"test_{n}": array for n, array in columns(1, 5, 0).items()}
        np.savez(tmp_path / "events.npz", **arrays | changes)
        return tmp_path / "events.npz"

    frames = data.load_events(write(), 2)
    assert frames.train_images.shape == (1, 2, 8, 8, 2) and frames.num_classes == 2
    frames = data.load_events(write(sensor=np.array([9, 10])), 2)
    assert frames.test_images.shape == (1, 2, 9, 10, 2)
    for changes, problem in (
        ({"test_x": np.full(5, 8)}, "test_x from 8 to 8; allowed: 0 to 7"),
        ({"test_y": np.full(5, -1)}, "test_y from -1 to -1; allowed: 0 to 7"),
        ({"train_p": np.full(90, 2)}, "train_p from 2 to 2; allowed: 0 to 1"),
        ({"train_t_us": np.arange(89)}, "'t_us': 89.* allowed: from 0 to the number"),
        ({"test_offsets": np.array([0, 4])}, "test_offsets reach from 0 to 4"),
        ({"test_offsets": np.array([0, 2, 5])}, "3 test_offsets and 1 test_labels"),
        ({"test_labels": np.array([2])}, "test labels from 2 to 2; allowed: 0 to 1"),
    ):
        with pytest.raises(ValueError, match=problem):
            data.load_events(write(**changes), 2)


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


@pytest.mark.thorough
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


def test_a_damaged_recording_of_a_cochlea_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")

    def read(part="train", **changes):
        write_cochlea(tmp_path, "ssc", ("train", "valid", "test"), per_part=8)
        with h5py.File(tmp_path / f"ssc_{part}.h5", "r+") as file:
            for key, value in changes.items():
                if key in ("times", "units"):
                    file["spikes"][key][3] = value
                else:
                    del file[key]
                    file[key] = value
        return data.load_cochlea(tmp_path, "ssc", 5)

    whole = read()
    times = np.linspace(0, 1, 60)
    for changes, problem in (
        ({"units": np.full(60, 700)}, "recording 3 has units from 700 to 700"),
        ({"times": np.where(times == 1, np.nan, times)}, "times from nan to nan"),
        ({"times": np.where(times == 1, np.inf, times)}, "times from 0.0 to inf"),
        ({"times": times - 0.5}, "times from -0.5 to 0.5; allowed: seconds from 0"),
        ({"times": times[:1]}, "recording 3 has 1 times and 60 units"),
        ({"labels": np.arange(7)}, "'labels': 7"),
        ({"extra/speaker": np.arange(7)}, "'speakers': 7"),
        ({"spikes/times": np.zeros((7, 60))}, "'times': 7"),
    ):
        for part in ("train", "valid", "test"):
            with pytest.raises(ValueError, match=rf"{part}\.h5 is damaged.*{problem}"):
                read(part, **changes)
    for part, title in (("valid", "choice"), ("test", "test")):
        with pytest.raises(ValueError, match=f"{title} labels from .* allowed: 0 to 1"):
            read(part, labels=np.arange(8))
        # A long recording that is held out leaves the steps as they are.
        longer = read(part, times=3 * times)
        np.testing.assert_array_equal(longer.train_images, whole.train_images)
    assert longer.test_images[3].sum() < whole.test_images[3].sum() == 60


def write_sound(file, seed):
    sound = 1000 * np.random.default_rng(seed).standard_normal(8000)
    file.parent.mkdir(exist_ok=True)
    wavfile.write(file, 16_000, sound.astype(np.int16))


def test_keywords_of_a_folder_are_split_by_speaker(tmp_path):
    for speaker in range(20):
        for seed, word in enumerate(("yes", "no")):
            name = f"{word}_{speaker:08x}_nohash_0.wav"
            write_sound(tmp_path / word / name, 2 * speaker + seed)
    words = data.load_keywords(tmp_path)
    assert words.train_images.shape == (36, 49, 20) and len(words.test_labels) == 4
    assert len({*words.train_groups}) == 18
    (tmp_path / "no" / "cut.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"cut\.wav cannot be read"):
        data.load_keywords(tmp_path)


def test_speakers_have_names_of_any_length(tmp_path):
    for number, speaker in enumerate(("a", "ab12", "0123456789abcdef")):
        for seed, word in enumerate(("yes", "no")):
            name = f"{word}_{speaker}_nohash_0.wav" if number else "a_nohash_3.wav"
            write_sound(tmp_path / word / name, 2 * number + seed)
    for piece in range(4):
        name = f"running_tap_{piece}.wav"
        write_sound(tmp_path / "_silence_" / name, 10 + piece)
    words = data.load_keywords(tmp_path)
    groups = {"a", "ab12", "0123456789abcdef", "_silence_/running_tap"}
    assert len({*words.train_groups}) == 3 and {*words.train_groups} < groups
    sizes = [list(words.train_groups).count(group) for group in groups]
    assert sorted(sizes) in ([0, 2, 2, 2], [0, 2, 2, 4])  # whole groups


def test_copies_and_recordings_without_a_speaker_are_reported(tmp_path):
    for speaker in range(4):
        write_sound(tmp_path / "yes" / f"{speaker}_nohash_0.wav", seed=0)
    with pytest.warns(match=r"1 held-out .*/yes/\d_nohash_0.wav equals .*yes"):
        words = data.load_keywords(tmp_path)
    with pytest.warns(match="1 held-out .* choice recording 0 equals training record"):
        words.with_choice(0.1)
    for speaker in range(4):
        write_sound(tmp_path / "yes" / f"{speaker}_nohash_0.wav", seed=speaker)
    write_sound(tmp_path / "yes" / "me.wav", seed=4)
    with pytest.warns(match="1 of the 5 .* name no speaker, the first is .*me.wav"):
        data.load_keywords(tmp_path)


# ----------------------------------------------------------------------- training


@pytest.mark.thorough
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
    with pytest.raises(ValueError, match="length 1; allowed: 2, the number of sites"):
        run(tmp_path / "one", digits, temperatures=(1.0,), dataset="digits")


@pytest.mark.thorough
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
