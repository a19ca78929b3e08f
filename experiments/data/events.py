"""Event recordings as frames: [N, T, H, W, 2], one channel per polarity.

A prepared file (.npz) holds the concatenated events of all recordings, with the
prefixes ``train_`` and ``test_``: x and y (pixels), p (polarity, 0 or 1) and t_us
(microseconds). ``offsets`` (N + 1 numbers) says where each recording begins and ends.
``labels`` holds the classes. `prepare` writes such a file from a data set of the
`tonic` package.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import Dataset, MissingDataError

PARTS = ("train", "test")
FIELDS = ("x", "y", "p", "t_us", "offsets", "labels")


def load_events(path: str | Path, frames: int) -> Dataset:
    """Event frames of a prepared file, [N, T, H, W, 2]; T = `frames`.

    They count the events of each pixel and polarity in equal parts of the duration of a
    recording, as uint8 (a count of 255 and more is 255).
    """
    file = Path(path).expanduser()
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
    size = tuple(
        1 + max(int(arrays[f"{part}_{axis}"].max()) for part in PARTS) for axis in "yx"
    )
    train_x, test_x = (_frames(arrays, part, frames, size) for part in PARTS)
    train_y, test_y = (arrays[f"{part}_labels"].astype(np.int32) for part in PARTS)
    squares = np.square(train_x, dtype=np.float32).mean((0, 1, 2, 3)).tolist()
    return Dataset(
        name=file.name,
        train_images=train_x,
        train_labels=train_y,
        test_images=test_x,
        test_labels=test_y,
        # Silence stays 0: frames are scaled, not centered.
        mean=(0.0, 0.0),
        std=tuple(square**0.5 for square in squares),
        num_classes=1 + int(max(train_y.max(), test_y.max())),
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
    columns = {}
    for part, recordings in zip(PARTS, (train, test), strict=True):
        events, labels = zip(*recordings, strict=True)
        for field, source in zip(FIELDS[:4], ("x", "y", "p", "t"), strict=True):
            columns[f"{part}_{field}"] = np.concatenate([e[source] for e in events])
        columns[f"{part}_offsets"] = np.cumsum([0, *map(len, events)])
        columns[f"{part}_labels"] = np.asarray(labels)
    np.savez_compressed(path, **columns)
