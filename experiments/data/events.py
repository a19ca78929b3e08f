"""Event recordings as frames: [N, T, H, W, 2], one channel per polarity.

A prepared file (.npz) holds the concatenated events of all recordings, with the
prefixes ``train_`` and ``test_``: x and y (pixels), p (polarity, 0 or 1) and t_us
(microseconds). ``offsets`` (N + 1 numbers) says where each recording begins and ends.
``labels`` holds the classes. ``sensor`` (height, width) may give the number of pixels,
which otherwise is that of the training events. `prepare` writes such a file from a data
set of the `tonic` package.

A folder of published files is read as it is, by `recordings_in`:

    Train/DIGIT/*.bin, Test/DIGIT/*.bin     N-MNIST (Orchard et al., 2015)
    trials_to_train.txt, *.aedat, *.csv     DVS-Gesture (Amir et al., 2017), AEDAT 3.1
    ibmGestureTrain/*/N.npy and ...Test     DVS-Gesture as `tonic` unpacks it
"""

import csv
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import (
    Dataset,
    MissingDataError,
    Normalization,
    check_labels,
    named,
    warn_copies,
)

PARTS = ("train", "test")
FIELDS = ("x", "y", "p", "t_us", "offsets", "labels")


def load_events(path: str | Path, frames: int) -> Dataset:
    """Event frames of a prepared file or a folder, [N, T, H, W, 2]; T = `frames`.

    They count the events of each pixel and polarity in equal parts of the duration of a
    recording, as uint8 (a count of 255 and more is 255).

    Raises:
        MissingDataError: there is no such file or folder.
        ValueError: it has another format, or is damaged.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        recordings = {part: recordings_in(file, part) for part in PARTS}
        arrays = columns(**recordings) | {"sensor": _sensor_of_folder(file)}
        return _dataset(file.name, arrays, frames)
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
        arrays = dict(archive)
    names = [f"{part}_{field}" for part in PARTS for field in FIELDS]
    absent = [name for name in names if name not in arrays]
    if absent:
        raise ValueError(f"{path} is no prepared file: it lacks {absent}")
    return _dataset(file.name, arrays, frames)


def _dataset(name: str, arrays: dict[str, np.ndarray], frames: int) -> Dataset:
    """The data set of the arrays of a prepared file."""
    for part in PARTS:
        _check_columns(name, arrays, part)
    if "sensor" in arrays:
        height, width = (int(size) for size in arrays["sensor"])
    else:
        height = 1 + int(arrays["train_y"].max())
        width = 1 + int(arrays["train_x"].max())
    for part in PARTS:
        _check_range(name, f"{part}_x", arrays[f"{part}_x"], width)
        _check_range(name, f"{part}_y", arrays[f"{part}_y"], height)
        _check_range(name, f"{part}_p", arrays[f"{part}_p"], 2)
    train_labels = arrays["train_labels"].astype(np.int32)
    test_labels = arrays["test_labels"].astype(np.int32)
    num_classes = 1 + int(train_labels.max())
    check_labels(name, num_classes, training=train_labels, test=test_labels)
    train_images = _frames(arrays, "train", frames, (height, width))
    test_images = _frames(arrays, "test", frames, (height, width))
    warn_copies(
        name,
        training=named("training", train_images),
        held_out=named("test", test_images),
    )
    mean, std = _normalization(train_images)
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        mean=mean,
        std=std,
        num_classes=num_classes,
        train_groups=arrays.get("train_groups"),
        normalization=_normalization,
    )


def _normalization(frames: np.ndarray) -> Normalization:
    """Frames are scaled, not centered, so that silence stays 0."""
    mean_squares = np.square(frames, dtype=np.float32).mean((0, 1, 2, 3))
    scales = []
    for mean_square in mean_squares.tolist():
        # A polarity without events stays as it is.
        scales.append(mean_square**0.5 if mean_square else 1.0)
    return (0.0, 0.0), tuple(scales)


def _check_columns(name: str, arrays: dict[str, np.ndarray], part: str) -> None:
    """Raise unless the recordings of a part cover all of its events."""
    offsets, labels = arrays[f"{part}_offsets"], arrays[f"{part}_labels"]
    lengths = {field: len(arrays[f"{part}_{field}"]) for field in FIELDS[:4]}
    if len(offsets) < 2 or len(labels) != len(offsets) - 1:
        raise ValueError(
            f"{name} has {len(offsets)} {part}_offsets and {len(labels)} "
            f"{part}_labels; allowed: a label for each recording, of which there is "
            "one at least, and one offset more"
        )
    if offsets[0] != 0 or set(lengths.values()) != {int(offsets[-1])}:
        raise ValueError(
            f"{name} is damaged: {part}_offsets reach from {offsets[0]} to "
            f"{offsets[-1]}, and the fields of events have the lengths {lengths}; "
            "allowed: from 0 to the number of events. Prepare it anew"
        )
    empty = np.flatnonzero(np.diff(offsets) <= 0)
    if len(empty):
        raise ValueError(
            f"{name} is damaged: {part} recording {empty[0]} has no events; prepare it "
            "anew, or leave the recording out"
        )


def _check_range(name: str, field: str, values: np.ndarray, size: int) -> None:
    """Raise unless all values of a field of events are 0 to size - 1."""
    if values.min() < 0 or values.max() >= size:
        raise ValueError(
            f"{name} has {field} from {values.min()} to {values.max()}; allowed: 0 to "
            f"{size - 1}, which the format or the training events state. Copy the "
            "files anew, or state `sensor` (height, width) in a prepared file"
        )


def _frames(
    arrays: dict[str, np.ndarray], part: str, frames: int, sensor: tuple[int, int]
) -> np.ndarray:
    """The events of each recording counted, [N, T, H, W, 2] as uint8."""
    offsets = arrays[f"{part}_offsets"]
    x = arrays[f"{part}_x"].astype(np.int64)
    y = arrays[f"{part}_y"].astype(np.int64)
    polarity = arrays[f"{part}_p"].astype(np.int64)
    times = arrays[f"{part}_t_us"].astype(np.int64)
    height, width = sensor
    images = np.zeros((len(offsets) - 1, frames, height, width, 2), np.uint8)
    for i, (start, end) in enumerate(itertools.pairwise(offsets)):
        events = slice(start, end)
        since_start = times[events] - times[events].min()
        duration = since_start.max() + 1
        places = (
            since_start * frames // duration,
            y[events],
            x[events],
            polarity[events],
        )
        # Several events may be at one place, which `counts[places] += 1` would miss.
        counts = np.zeros((frames, height, width, 2), np.int64)
        np.add.at(counts, places, 1)
        images[i] = np.minimum(counts, 255)
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
    """Write recordings, pairs of events (fields x, y, p, t) and label, as a file.

    The `sensor_size` (width, height, polarities) of a data set of `tonic` becomes the
    number of pixels.
    """
    arrays = columns(train=train, test=test)
    if hasattr(train, "sensor_size"):
        width, height, _ = train.sensor_size
        arrays["sensor"] = np.array([height, width])
    np.savez_compressed(path, **arrays)


def columns(**parts: Iterable) -> dict[str, np.ndarray]:
    """The arrays of a prepared file; who was recorded may follow the label."""
    arrays = {}
    for part, recordings in parts.items():
        events, labels, *persons = zip(*recordings, strict=True)
        arrays[f"{part}_x"] = np.concatenate([recording["x"] for recording in events])
        arrays[f"{part}_y"] = np.concatenate([recording["y"] for recording in events])
        arrays[f"{part}_p"] = np.concatenate([recording["p"] for recording in events])
        arrays[f"{part}_t_us"] = np.concatenate(
            [recording["t"] for recording in events]
        )
        lengths = [len(recording) for recording in events]
        arrays[f"{part}_offsets"] = np.cumsum([0, *lengths])
        arrays[f"{part}_labels"] = np.asarray(labels)
        if persons:
            arrays[f"{part}_groups"] = np.asarray(persons[0])
    return arrays


# --------------------------------------------------------------- published formats

EVENT = np.dtype([("x", "i2"), ("y", "i2"), ("p", "u1"), ("t", "i8")])
NMNIST_PIXELS = 34  # along an edge
GESTURE_PIXELS = 128
POOLED = 4  # pixels of DVS-Gesture along an edge that count as one, as papers do
OVERFLOW_Y = 240  # of an event of N-MNIST that is no pixel, but moves the clock
OVERFLOW_US = 1 << 13
# A recording may end before its last gesture is over by this part of the gesture, and
# by one second at most. One that ends earlier was cut.
QUIET_END = 0.5
QUIET_END_US = 1_000_000


def _sensor_of_folder(folder: Path) -> np.ndarray:
    """Height and width of the frames of a folder of published files."""
    if (folder / "Train").is_dir():
        return np.array([NMNIST_PIXELS, NMNIST_PIXELS])
    return np.array([GESTURE_PIXELS, GESTURE_PIXELS]) // POOLED


def recordings_in(folder: Path, part: str) -> Iterator[tuple]:
    """(events, label) or (events, label, person) of a folder's "train" or "test"."""
    digits = folder / part.capitalize()
    trials = folder / f"trials_to_{part}.txt"
    gestures = folder / f"ibmGesture{part.capitalize()}"
    if digits.is_dir():
        for file in sorted(digits.glob("*/*.bin")):
            yield nmnist_events(file.read_bytes()), int(file.parent.name)
    elif trials.is_file():
        for name in trials.read_text().split():
            yield from aedat_gestures(folder / name)
    elif gestures.is_dir():
        for file in sorted(gestures.glob("*/*.npy")):
            x, y, p, milliseconds = np.load(file).T
            events = _events(x // POOLED, y // POOLED, p, 1000 * milliseconds)
            yield events, int(file.stem), file.parent.name.partition("_")[0]
    else:
        raise MissingDataError(
            f"{folder} has no recordings for {part}; allowed: {part.capitalize()}/"
            f"DIGIT/*.bin of N-MNIST, trials_to_{part}.txt of DVS-Gesture, or "
            f"ibmGesture{part.capitalize()}/ of tonic"
        )


def _events(x: Any, y: Any, p: Any, t: Any) -> np.ndarray:
    """An array of `EVENT` of its four fields."""
    return np.rec.fromarrays((x, y, p, t), EVENT)


def nmnist_events(content: bytes) -> np.ndarray:
    """Events of 40 bits: x, y (8 each), polarity (1), microseconds (23).

    An event with y = 240 is none: its clock has overflowed, and 2^13 microseconds are
    added to the times from there on.
    """
    if len(content) % 5:
        raise ValueError(
            f"a file of N-MNIST has {len(content)} bytes; allowed: 5 for each event. "
            "Download it anew"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, 5).astype(np.int64)
    x, y, high, middle, low = rows.T
    times = (high & 127) << 16 | middle << 8 | low
    is_overflow = y == OVERFLOW_Y
    times += OVERFLOW_US * np.cumsum(is_overflow)
    return _events(x, y, high >> 7, times)[~is_overflow]


def aedat_gestures(file: Path) -> Iterator[tuple]:
    """(events, label, person) of an AEDAT 3.1 file of DVS-Gesture.

    The class of each gesture and its first and last time are in NAME_labels.csv.

    Raises:
        ValueError: the file has another format, or it was cut.
    """
    events = _aedat_events(file)
    with file.with_name(f"{file.stem}_labels.csv").open() as lines:
        gestures = [tuple(map(int, row.values())) for row in csv.DictReader(lines)]
    last_time = events["t"].max(initial=-1)
    for label, first, last in gestures:
        if last_time < last - min(QUIET_END_US, QUIET_END * (last - first)):
            raise ValueError(
                f"{file} ends at {last_time} us, but its labels have a gesture from "
                f"{first} to {last} us; it was cut, download it anew"
            )
        during = (events["t"] >= first) & (events["t"] < last)
        yield events[during], label - 1, file.stem.partition("_")[0]


# The header of a packet of AEDAT 3.1; ``size`` is the bytes of an event.
_AEDAT_HEADER = np.dtype(
    [
        ("kind", "<i2"),
        ("source", "<i2"),
        ("size", "<i4"),
        ("time_offset", "<i4"),
        ("overflows", "<i4"),
        ("capacity", "<i4"),
        ("count", "<i4"),
        ("valid", "<i4"),
    ]
)
_POLARITY = 1  # the kind of a packet of polarity events


def _aedat_events(file: Path) -> np.ndarray:
    """The valid events of the polarity packets of an AEDAT 3.1 file."""
    content = file.read_bytes()
    mark = b"#!END-HEADER\r\n"
    if not content.startswith(b"#!AER-DAT3.1") or mark not in content:
        raise ValueError(f"{file} is no AEDAT 3.1 file; allowed: those of DVS-Gesture")
    start = content.index(mark) + len(mark)
    parts = [np.empty(0, EVENT)]
    while start < len(content):
        # A packet is a header and then its events.
        events_start = start + _AEDAT_HEADER.itemsize
        if events_start > len(content):
            raise ValueError(f"{file} is cut in a header of events; download it anew")
        (header,) = np.frombuffer(content, _AEDAT_HEADER, 1, start)
        kind, size, count = (int(header[name]) for name in ("kind", "size", "count"))
        end = events_start + size * count
        is_damaged = size < 0 or count < 0 or (kind == _POLARITY and size != 8)
        if is_damaged or end > len(content):
            raise ValueError(
                f"{file} is cut or damaged: {count} events of {size} bytes do not fit "
                f"into the last {len(content) - events_start}; download it anew"
            )
        if kind == _POLARITY:
            words = np.frombuffer(content, "<u4", 2 * count, events_start)
            overflows = int(header["overflows"])
            parts.append(_polarity_events(words.reshape(-1, 2), overflows))
        start = end
    return np.concatenate(parts)


def _polarity_events(words: np.ndarray, overflows: int) -> np.ndarray:
    """The valid events of a packet.

    Args:
        words: two of each event, uint32 [events, 2]. The bits of the first one are,
            from the lowest: valid, polarity, y (15 bits), x (15 bits). The second one
            has the microseconds, in 31 bits.
        overflows: how often the clock has overflowed before.
    """
    address, time = words.T
    is_valid = address & 1 == 1
    polarity = address >> 1 & 1
    x = address >> 17
    y = address >> 2 & 0x7FFF
    times = time.astype(np.int64) + (overflows << 31)
    return _events(x // POOLED, y // POOLED, polarity, times)[is_valid]
