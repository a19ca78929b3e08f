"""Event recordings as frames: [N, T, H, W, 2], one channel per polarity.

A prepared file (.npz) holds the concatenated events of all recordings, with the
prefixes ``train_`` and ``test_``: x and y (pixels), p (polarity, 0 or 1) and t_us
(microseconds). ``offsets`` (N + 1 numbers) says where each recording begins and ends.
``labels`` holds the classes. `prepare` writes such a file from a data set of the
`tonic` package.

A folder of published files is read as it is, by `recordings_of`:

    Train/DIGIT/*.bin, Test/DIGIT/*.bin     N-MNIST (Orchard et al., 2015)
    trials_to_train.txt, *.aedat, *.csv     DVS-Gesture (Amir et al., 2017), AEDAT 3.1
    ibmGestureTrain/*/N.npy and ...Test     the same, as `tonic` unpacks it
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import Dataset, MissingDataError

PARTS = ("train", "test")
FIELDS = ("x", "y", "p", "t_us", "offsets", "labels")


def load_events(path: str | Path, frames: int) -> Dataset:
    """Event frames of a prepared file or a folder, [N, T, H, W, 2]; T = `frames`.

    They count the events of each pixel and polarity in equal parts of the duration of a
    recording, as uint8 (a count of 255 and more is 255).
    """
    file = Path(path).expanduser()
    if file.is_dir():
        train, test = (recordings_of(file, part) for part in PARTS)
        return _dataset(file.name, columns(train=train, test=test), frames)
    if not file.is_file():
        raise MissingDataError(
            f"no file {path} of events. Prepare one where there is network:\n"
            "    pip install tonic\n"
            '    python -c "from experiments import data; '
            "data.prepare_nmnist('nmnist.npz', 'DIR')\"\n"
            "then copy it here and give --dataset nmnist.npz"
        )
    try:
        archive = np.load(file)  # pickles are refused
    except ValueError as error:
        raise ValueError(f"{path} is no prepared file ({error})") from None
    with archive:
        names = [f"{part}_{field}" for part in PARTS for field in FIELDS]
        if absent := [name for name in names if name not in archive]:
            raise ValueError(f"{path} is no prepared file: it lacks {absent}")
        arrays = {name: archive[name] for name in names}
    return _dataset(file.name, arrays, frames)


def _dataset(name: str, arrays: dict[str, Any], frames: int) -> Dataset:
    size = tuple(
        1 + max(int(arrays[f"{part}_{axis}"].max()) for part in PARTS) for axis in "yx"
    )
    train_x, test_x = (_frames(arrays, part, frames, size) for part in PARTS)
    train_y, test_y = (arrays[f"{part}_labels"].astype(np.int32) for part in PARTS)
    squares = np.square(train_x, dtype=np.float32).mean((0, 1, 2, 3)).tolist()
    return Dataset(
        name=name,
        train_images=train_x,
        train_labels=train_y,
        test_images=test_x,
        test_labels=test_y,
        # Silence stays 0: frames are scaled, not centered.
        mean=(0.0, 0.0),
        std=tuple(square**0.5 for square in squares),
        num_classes=1 + int(max(train_y.max(), test_y.max())),
        train_groups=arrays.get("train_groups"),
    )


def _frames(arrays: dict[str, Any], part: str, frames: int, size) -> np.ndarray:
    offsets = arrays[f"{part}_offsets"]
    images = np.zeros((len(offsets) - 1, frames, *size, 2), np.uint8)
    x, y, p, t = (arrays[f"{part}_{field}"].astype(np.int64) for field in FIELDS[:4])
    for i, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        times = t[start:end] - t[start]
        frame = times * frames // (times.max() + 1)
        count = np.zeros(images.shape[1:], np.int64)
        np.add.at(count, (frame, y[start:end], x[start:end], p[start:end]), 1)
        images[i] = np.minimum(count, 255)
    return images


def prepare_nmnist(path: str | Path, folder: str) -> None:
    """Write N-MNIST, which `tonic` downloads into ``folder``, as a prepared file."""
    import tonic  # the optional extra

    prepare(
        path,
        train=tonic.datasets.NMNIST(folder, train=True),
        test=tonic.datasets.NMNIST(folder, train=False),
    )


def prepare(path: str | Path, *, train: Iterable, test: Iterable) -> None:
    """Write recordings, pairs of events (fields x, y, p, t) and label, as a file."""
    np.savez_compressed(path, **columns(train=train, test=test))


def columns(**parts: Iterable) -> dict[str, np.ndarray]:
    """The arrays of a prepared file; who was recorded may follow the label."""
    arrays = {}
    for part, recordings in parts.items():
        events, labels, *groups = zip(*recordings, strict=True)
        for field, source in zip(FIELDS[:4], "xypt", strict=True):
            arrays[f"{part}_{field}"] = np.concatenate([e[source] for e in events])
        arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, events)])
        arrays[f"{part}_labels"] = np.asarray(labels)
        if groups:
            arrays[f"{part}_groups"] = np.asarray(groups[0])
    return arrays


# ------------------------------------------------------------- published formats

EVENT = np.dtype([("x", "i2"), ("y", "i2"), ("p", "u1"), ("t", "i8")])
POOLED = 4  # pixels of DVS-Gesture along an edge that count as one, as papers do


def recordings_of(folder: Path, part: str) -> Iterator[tuple]:
    """(events, label) or (events, label, person) of a folder's "train" or "test"."""
    if (root := folder / part.capitalize()).is_dir():
        for file in sorted(root.glob("*/*.bin")):
            yield events_of_bin(file.read_bytes()), int(file.parent.name)
    elif (trials := folder / f"trials_to_{part}.txt").is_file():
        for name in trials.read_text().split():
            yield from gestures_of(folder / name)
    elif (root := folder / f"ibmGesture{part.capitalize()}").is_dir():
        for file in sorted(root.glob("*/*.npy")):  # x, y, polarity, milliseconds
            x, y, p, t = np.load(file).T
            fields = x // POOLED, y // POOLED, p, 1000 * t
            events = np.rec.fromarrays(fields, EVENT)
            yield events, int(file.stem), file.parent.name.partition("_")[0]
    else:
        raise MissingDataError(
            f"{folder} has no recordings for {part}; allowed: {part.capitalize()}/"
            f"DIGIT/*.bin of N-MNIST, trials_to_{part}.txt of DVS-Gesture, or "
            f"ibmGesture{part.capitalize()}/ of tonic"
        )


def events_of_bin(content: bytes) -> np.ndarray:
    """Events of 40 bits: x, y (8 each), polarity (1), microseconds (23)."""
    if len(content) % 5:
        raise ValueError(
            f"a file of N-MNIST has {len(content)} bytes; allowed: 5 for each event. "
            "Download it anew"
        )
    b = np.frombuffer(content, np.uint8).reshape(-1, 5).astype(np.int64).T
    fields = b[0], b[1], b[2] >> 7, (b[2] & 127) << 16 | b[3] << 8 | b[4]
    return np.rec.fromarrays(fields, EVENT)


def gestures_of(file: Path) -> Iterator[tuple]:
    """The gestures of an AEDAT 3.1 file, whose times are in NAME_labels.csv."""
    content = file.read_bytes()
    mark = b"#!END-HEADER\r\n"
    if not content.startswith(b"#!AER-DAT3.1") or mark not in content:
        raise ValueError(f"{file} is no AEDAT 3.1 file; allowed: those of DVS-Gesture")
    at, parts = content.index(mark) + len(mark), [np.empty(0, EVENT)]
    while at + 28 <= len(content):  # packets: a header of 28 bytes, then events
        kind, _ = np.frombuffer(content, "<i2", 2, at)
        size, _, overflow, _, number, _ = np.frombuffer(content, "<i4", 6, at + 4)
        if kind == 1:  # of polarity: valid, polarity, y (15 bits), x; microseconds
            data, t = (
                np.frombuffer(content, "<u4", 2 * number, at + 28).reshape(-1, 2).T
            )
            x, y = (data >> 17) // POOLED, (data >> 2 & 0x7FFF) // POOLED
            valid = data & 1 == 1
            t = t.astype(np.int64) + (int(overflow) << 31)
            fields = x, y, data >> 1 & 1, t
            parts.append(np.rec.fromarrays(fields, EVENT)[valid])
        at += 28 + int(size) * int(number)
    events = np.concatenate(parts)
    with file.with_name(f"{file.stem}_labels.csv").open() as lines:
        for row in csv.DictReader(lines):
            label, first, last = map(int, row.values())
            during = (events["t"] >= first) & (events["t"] < last)
            yield events[during], label - 1, file.stem.partition("_")[0]
