"""Sequences [N, T, F]: images read in parts, sounds and spikes of a cochlea.

Keywords are the second x of sound in each file FOLDER/WORD/SPEAKER_*.wav; SHD and SSC
are HDF5 files as they are published (Cramer et al., 2022).
"""

import struct
import warnings
from pathlib import Path

import numpy as np
from scipy.fft import dct
from scipy.io import wavfile

from experiments.data.dataset import Dataset, MissingDataError, split

RATE = 16_000  # samples of a recording, and in a second
WORDS = "down go left no off on right stop up yes _silence_ _unknown_".split()
UNITS, CHANNELS = 700, 140  # of a recording of SHD; five units are one channel


def in_parts(data: Dataset, order: str, pixels: int = 1) -> Dataset:
    """The same images as sequences, in the order of pixels "rows" or "permuted".

    A step is a row of the image, or ``pixels`` pixels in an order that is random, but
    the same for all images and seeds.
    """
    _, height, width, channels = data.train_images.shape
    steps, per_step = (height, width) if order == "rows" else (-1, pixels)
    count = height * width
    if count % per_step:
        raise ValueError(
            f"pixels is {pixels}, and images of {data.name} have {count} pixels; "
            f"allowed: a divisor of {count}"
        )
    places = np.arange(count)
    if order == "permuted":
        places = np.random.default_rng(0).permutation(count)

    def parts(images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), count, channels)[:, places]
        return flat.reshape(len(images), steps, per_step * channels)

    choice = data.choice and (parts(data.choice[0]), data.choice[1])
    return data._replace(
        train_images=parts(data.train_images),
        test_images=parts(data.test_images),
        mean=data.mean * per_step,
        std=data.std * per_step,
        choice=choice,
    )


# ------------------------------------------------------------------------ sounds


def samples(file: Path) -> np.ndarray:
    """A second of sound [16000]; zeros follow a shorter one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", wavfile.WavFileWarning)
        try:
            rate, sound = wavfile.read(file)
        except wavfile.WavFileWarning as cut:  # which would be padded with zeros
            raise ValueError(f"{cut} Download it anew") from None
    form, length = (rate, sound.dtype.name, sound.ndim), len(sound)
    if form != (RATE, "int16", 1) or not 0 < length <= RATE:
        found = f"it has {sound.dtype}{list(sound.shape)} at {rate} Hz"
        allowed = f"int16[N] at {RATE} Hz, one channel, N <= {RATE}"
        raise ValueError(f"{found}; allowed: {allowed}; sox converts sound")
    return np.pad(sound, (0, RATE - length))


def mfccs(sound: np.ndarray, count: int = 10) -> np.ndarray:
    """MFCCs [49, 10] of a second x of sound, as MLCommons and tf.signal compute them.

    Frames t of x / max x have 480 samples, every 320. With a periodic Hann window w and
    40 triangles H_b, whose edges divide 20 to 4000 Hz evenly in ln(1 + f / 700):

        L_tb = ln(1e-6 + sum_f H_b(f) |FFT_512(w x_t)(f)|),  b = 0..39
        MFCC_tk = sqrt(2 / 40) sum_b L_tb cos(pi k (b + 1/2) / 40),  k = 0..9

    Source: get_dataset.py of mlcommons/tiny, `get_preprocess_audio_func`.
    """
    frames = np.lib.stride_tricks.sliding_window_view(sound, 480)[::320]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(480) / 480)
    spectra = np.abs(np.fft.rfft(frames * window / (sound.max() or 1), 512))
    hertz = np.array([20, 4000, *np.fft.rfftfreq(512, 1 / RATE)])
    low, high, *places = np.log1p(hertz / 700)
    rises = (np.array(places)[:, None] - np.linspace(low, high, 42)) / (high - low) * 41
    triangles = np.clip(np.minimum(rises[:, :-2], -rises[:, 2:]), 0, None)
    return dct(np.log(1e-6 + spectra @ triangles))[:, :count] / np.sqrt(2 * 40)


def _speaker(file: Path) -> str:
    name, mark, _ = file.stem.partition("_nohash_")
    return name[-8:] if mark else str(file)


def load_keywords(folder: Path, coefficients: int = 20) -> Dataset:
    """MFCCs [N, 49, 20] of FOLDER/WORD/*.wav; a tenth of the speakers is the test.

    The name of a file up to the first "_nohash_" ends with its speaker, as in Speech
    Commands (Warden, 2018). A file without one is a speaker of its own.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    names = [name for name in WORDS if name in names] or names
    files = [file for name in names for file in sorted((folder / name).glob("*.wav"))]
    x = np.zeros((len(files), 49, coefficients), np.float16)
    for i, file in enumerate(files):
        try:
            x[i] = mfccs(samples(file), coefficients)
        except (ValueError, OSError, struct.error) as error:
            raise ValueError(f"{file} cannot be read: {error}") from None
    y = np.array([names.index(file.parent.name) for file in files], np.int32)
    speakers = np.array([*map(_speaker, files)])
    train, test = split(speakers, (0.9, 0.1))
    order = np.random.default_rng(0).permutation(train)  # the first are of all words
    wide = x[train].astype(np.float32)
    return Dataset(
        folder.name,
        *(x[order], y[order], x[test], y[test]),
        mean=tuple(wide.mean((0, 1)).tolist()),
        std=tuple(wide.std((0, 1)).clip(1e-3).tolist()),
        num_classes=len(names),
        evaluated_on="test recordings of other speakers",
        train_groups=speakers[order],
    )


# -------------------------------------------------------------- spikes of a cochlea


def load_cochlea(folder: Path, name: str, steps: int) -> Dataset:
    """Counts [N, T, 140] of NAME_train.h5 and NAME_test.h5, as SHD and SSC have them.

    ``spikes/times`` (seconds) and ``spikes/units`` (0..699) have an array for each
    recording, ``labels`` its class, ``extra/speaker`` who speaks. NAME_valid.h5, which
    only SSC has, becomes the choice. T steps share the time of the longest recording.
    """
    try:
        import h5py
    except ImportError:
        raise MissingDataError(f"{name} is HDF5: pip install h5py") from None
    parts, groups = {}, None
    for part in ("train", "test", "valid"):
        file = folder / f"{name}_{part}.h5"
        if part == "valid" and not file.exists():
            continue
        try:
            with h5py.File(file) as h5:
                times, units = (h5["spikes"][key][:] for key in ("times", "units"))
                labels = h5["labels"][:].astype(np.int32)
                speakers = h5["extra/speaker"][:] if "extra" in h5 else None
        except (OSError, KeyError) as error:
            raise ValueError(
                f"{file} is no file of {name} ({error}); allowed: HDF5 with "
                "spikes/times, spikes/units, labels and extra/speaker"
            ) from None
        parts[part] = times, units, labels
        groups = speakers if part == "train" else groups
    end = max(float(t.max()) for times, *_ in parts.values() for t in times if len(t))

    def counts(times, units) -> np.ndarray:
        x = np.zeros((len(times), steps * CHANNELS), np.uint8)
        for row, t, u in zip(x, times, units, strict=True):
            step = np.minimum(t.astype(np.float64) / end * steps, steps - 1).astype(int)
            places = step * CHANNELS + u.astype(int) * CHANNELS // UNITS
            row[:] = np.bincount(places, minlength=len(row)).clip(max=255)
        return x.reshape(len(x), steps, CHANNELS)

    counts_of = {part: (counts(t, u), y) for part, (t, u, y) in parts.items()}
    scale = float(np.square(counts_of["train"][0], dtype=np.float32).mean() ** 0.5)
    return Dataset(
        name,
        *(*counts_of["train"], *counts_of["test"]),
        mean=(0.0,) * CHANNELS,  # silence stays 0
        std=(scale or 1.0,) * CHANNELS,
        num_classes=1 + max(int(y.max()) for _, y in counts_of.values()),
        evaluated_on="test recordings",
        train_groups=groups,
        choice=counts_of.get("valid"),
    )
