"""Sequences [N, T, F]: images read in parts, sounds and spikes of a cochlea.

Keywords are the second x of sound in each file FOLDER/WORD/SPEAKER_nohash_N.wav. SHD
and SSC are HDF5 files as they are published (Cramer et al., 2022).
"""

import re
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.fft import dct
from scipy.io import wavfile

from experiments.data.dataset import (
    Dataset,
    MissingDataError,
    Normalization,
    check_labels,
    named,
    split,
    warn_copies,
)

RATE = 16_000  # samples of a recording, and in a second
WORDS = "down go left no off on right stop up yes _silence_ _unknown_".split()
# Folders of pieces of background noise, in which nobody speaks.
NOISES = ("_silence_", "_background_noise_")
# Of a recording of SHD; five units of the cochlea are one channel.
UNITS, CHANNELS = 700, 140


def in_parts(data: Dataset, order: str, pixels: int = 1) -> Dataset:
    """The same images as sequences, in the order of pixels "rows" or "permuted".

    A step is a row of the image, or ``pixels`` pixels in an order that is random, but
    the same for all images and seeds.
    """
    _, height, width, channels = data.train_images.shape
    count = height * width
    if order == "rows":
        steps, per_step = height, width
        places = np.arange(count)
    else:
        if count % pixels:
            raise ValueError(
                f"pixels is {pixels}, and images of {data.name} have {count} pixels; "
                f"allowed: a divisor of {count}"
            )
        steps, per_step = count // pixels, pixels
        places = np.random.default_rng(0).permutation(count)

    def sequences(images: np.ndarray) -> np.ndarray:
        pixels_in_order = images.reshape(len(images), count, channels)[:, places]
        return pixels_in_order.reshape(len(images), steps, per_step * channels)

    def normalization(parts: np.ndarray) -> Normalization:
        images = parts.reshape(len(parts), steps, per_step, channels)
        mean, std = data.normalization(images)
        return mean * per_step, std * per_step

    choice = data.choice
    if choice is not None:
        choice = sequences(choice[0]), choice[1]
    return data._replace(
        train_images=sequences(data.train_images),
        test_images=sequences(data.test_images),
        mean=data.mean * per_step,
        std=data.std * per_step,
        choice=choice,
        normalization=None if data.normalization is None else normalization,
    )


# ------------------------------------------------------------------------ sounds


def samples(file: Path) -> np.ndarray:
    """A second of sound [16000]; zeros follow a shorter one."""
    with warnings.catch_warnings():
        # SciPy would fill a file that was cut with zeros, and only warn.
        warnings.simplefilter("error", wavfile.WavFileWarning)
        try:
            rate, sound = wavfile.read(file)
        except wavfile.WavFileWarning as warning:
            raise ValueError(f"{warning} Download it anew") from None
    is_mono = sound.dtype == np.int16 and sound.ndim == 1
    if rate != RATE or not is_mono or not 0 < len(sound) <= RATE:
        raise ValueError(
            f"it has {sound.dtype}{list(sound.shape)} at {rate} Hz; allowed: int16[N] "
            f"at {RATE} Hz, one channel, N <= {RATE}; sox converts sound"
        )
    return np.pad(sound, (0, RATE - len(sound)))


def _mel_triangles() -> np.ndarray:
    """H_b(f) of `mfccs`, [257 frequencies f, 40 triangles b]."""
    # The edges of the triangles are 42 even steps on the scale ln(1 + f / 700).
    low = np.log1p(20 / 700)
    high = np.log1p(4000 / 700)
    edges = np.linspace(low, high, 42)
    frequencies = np.log1p(np.fft.rfftfreq(512, 1 / RATE) / 700)
    # In units of a step, a frequency is on the rising side of a triangle by its
    # distance from the left edge, and on the falling side by that from the right edge.
    distances = (frequencies[:, None] - edges) / (high - low) * 41
    rising = distances[:, :-2]
    falling = -distances[:, 2:]
    return np.clip(np.minimum(rising, falling), 0, None)


def mfccs(sound: np.ndarray, count: int = 10) -> np.ndarray:
    """MFCCs [49, count] of a second x of sound, as in MLCommons and tf.signal.

    Frames t of x / max x have 480 samples, every 320. With a periodic Hann window w and
    40 triangles H_b, whose edges divide 20 to 4000 Hz evenly in ln(1 + f / 700):

        L_tb = ln(1e-6 + sum_f H_b(f) |FFT_512(w x_t)(f)|),  b = 0..39
        MFCC_tk = sqrt(2 / 40) sum_b L_tb cos(pi k (b + 1/2) / 40),  k = 0..count-1

    Source: get_dataset.py of mlcommons/tiny, `get_preprocess_audio_func`.
    """
    frames = np.lib.stride_tricks.sliding_window_view(sound, 480)[::320]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(480) / 480)
    scale = sound.max() or 1  # of silence 1
    spectra = np.abs(np.fft.rfft(frames * window / scale, 512))
    triangles = _mel_triangles()
    bands = np.log(1e-6 + spectra @ triangles)  # [49, 40]
    return dct(bands)[:, :count] / np.sqrt(2 * 40)


def _speaker(file: Path) -> str:
    """Who speaks in a file; a piece of noise has its noise, any other file itself.

    The speaker is what stands before the first "_nohash_", as in Speech Commands
    (Warden, 2018), and behind the last "_" there, since a word may stand before it.

    >>> _speaker(Path("yes/yes_ab12_nohash_0.wav"))
    'ab12'
    >>> _speaker(Path("_silence_/running_tap_7.wav"))
    '_silence_/running_tap'
    """
    name, mark, _ = file.stem.partition("_nohash_")
    folder = file.parent.name
    if mark:
        return name.rpartition("_")[2]
    if folder in NOISES:
        noise = re.sub(r"[\W_]*\d*\W*$", "", name)
        return f"{folder}/{noise}"
    return str(file)


def load_keywords(folder: Path, coefficients: int = 20) -> Dataset:
    """MFCCs [N, 49, 20] of FOLDER/WORD/*.wav; a tenth of the speakers is the test.

    The speaker is in the name of a file, SPEAKER_nohash_N.wav or
    WORD_SPEAKER_nohash_N.wav. All pieces NOISE_N.wav of a noise in the folder
    ``_silence_`` count as one speaker, and any other file as a speaker of its own,
    about which a warning tells.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    names = [word for word in WORDS if word in names] or names
    files = []
    for name in names:
        files += sorted((folder / name).glob("*.wav"))
    x = np.zeros((len(files), 49, coefficients), np.float16)
    for i, file in enumerate(files):
        try:
            x[i] = mfccs(samples(file), coefficients)
        except (ValueError, OSError, struct.error) as error:
            raise ValueError(f"{file} cannot be read: {error}") from None
    y = np.array([names.index(file.parent.name) for file in files], np.int32)
    speakers = np.array([_speaker(file) for file in files])
    _warn_anonymous(folder.name, speakers, files)
    train, test = split(speakers, (0.9, 0.1))
    warn_copies(
        folder.name,
        training={str(files[i]): x[i] for i in train},
        held_out={str(files[i]): x[i] for i in test},
    )
    # Mixed, so that the first examples are of all words.
    train = np.random.default_rng(0).permutation(train)
    mean, std = _feature_normalization(x[train])
    return Dataset(
        name=folder.name,
        train_images=x[train],
        train_labels=y[train],
        test_images=x[test],
        test_labels=y[test],
        mean=mean,
        std=std,
        num_classes=len(names),
        evaluated_on="test recordings of other speakers",
        train_groups=speakers[train],
        normalization=_feature_normalization,
    )


def _warn_anonymous(name: str, speakers: np.ndarray, files: list[Path]) -> None:
    """Warn if the speakers of some recordings are not in the names of their files."""
    anonymous = []
    for speaker, file in zip(speakers, files, strict=True):
        if speaker == str(file):
            anonymous.append(file)
    if anonymous:
        warnings.warn(
            f"{len(anonymous)} of the {len(files)} recordings of {name} name no "
            f"speaker, the first is {anonymous[0]}; each counts as a speaker of its "
            "own, so one who speaks in several may be in training and test. Name the "
            "files SPEAKER_nohash_N.wav",
            stacklevel=3,
        )


def _feature_normalization(features: np.ndarray) -> Normalization:
    """Mean and standard deviation of each feature of [N, T, F]; the latter >= 0.001."""
    wide = features.astype(np.float32)
    mean = wide.mean((0, 1))
    std = wide.std((0, 1)).clip(1e-3)
    return tuple(mean.tolist()), tuple(std.tolist())


# -------------------------------------------------------------- spikes of a cochlea


class _Recordings(NamedTuple):
    """What a file of SHD or SSC holds: spikes of each recording, class, speaker."""

    times: list[np.ndarray]  # [spikes] in seconds
    units: list[np.ndarray]  # [spikes], 0..699
    labels: np.ndarray  # [N] as int32
    speakers: np.ndarray | None  # [N]


def load_cochlea(folder: Path, name: str, steps: int) -> Dataset:
    """Counts [N, T, 140] of NAME_train.h5 and NAME_test.h5, as SHD and SSC have them.

    ``spikes/times`` (seconds) and ``spikes/units`` (0..699) have an array for each
    recording, ``labels`` its class, ``extra/speaker`` who speaks. NAME_valid.h5, which
    only SSC has, becomes the choice. T steps share the time of the longest recording
    in the training; spikes of the test that come later are left out.

    Raises:
        MissingDataError: h5py is not installed.
        ValueError: a file has another format, or is damaged.
    """
    train = _read_cochlea(folder, name, "train")
    test = _read_cochlea(folder, name, "test")
    num_classes = 1 + int(train.labels.max(initial=-1))
    check_labels(name, num_classes, training=train.labels, test=test.labels)
    duration = max(float(t.max(initial=0)) for t in train.times)
    if not duration > 0:
        raise ValueError(f"{name}_train.h5 has no spikes after 0 s; copy it anew")
    train_counts = _counts(train, duration, steps)
    test_counts = _counts(test, duration, steps)
    held_out = named("test", test_counts)
    choice = None
    if (folder / f"{name}_valid.h5").exists():
        valid = _read_cochlea(folder, name, "valid")
        check_labels(name, num_classes, choice=valid.labels)
        choice = _counts(valid, duration, steps), valid.labels
        held_out |= named("choice", choice[0])
    warn_copies(name, training=named("training", train_counts), held_out=held_out)
    mean, std = _count_normalization(train_counts)
    return Dataset(
        name=name,
        train_images=train_counts,
        train_labels=train.labels,
        test_images=test_counts,
        test_labels=test.labels,
        mean=mean,
        std=std,
        num_classes=num_classes,
        evaluated_on="test recordings",
        train_groups=train.speakers,
        choice=choice,
        normalization=_count_normalization,
    )


def _read_cochlea(folder: Path, name: str, part: str) -> _Recordings:
    """The recordings of FOLDER/NAME_PART.h5, checked."""
    try:
        import h5py
    except ImportError:
        raise MissingDataError(f"{name} is HDF5: pip install h5py") from None
    file = folder / f"{name}_{part}.h5"
    try:
        with h5py.File(file) as h5:
            times = [np.asarray(t, np.float64) for t in h5["spikes/times"][:]]
            units = [np.asarray(u, np.int64) for u in h5["spikes/units"][:]]
            labels = h5["labels"][:].astype(np.int32)
            speakers = h5["extra/speaker"][:] if "extra" in h5 else None
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{file} is no file of {name} ({error}); allowed: HDF5 with spikes/times, "
            "spikes/units, labels and extra/speaker"
        ) from None
    lengths = {"times": len(times), "units": len(units), "labels": len(labels)}
    if speakers is not None:
        lengths["speakers"] = len(speakers)
    if len({*lengths.values()}) > 1:
        raise ValueError(
            f"{file} is damaged, it has {lengths}; allowed: one of each for every "
            "recording. Copy it anew"
        )
    for i, (t, u) in enumerate(zip(times, units, strict=True)):
        _check_recording(f"{file} is damaged: recording {i}", t, u)
    return _Recordings(times, units, labels, speakers)


def _check_recording(subject: str, times: np.ndarray, units: np.ndarray) -> None:
    """Raise unless each spike of a recording has a time and a unit of the cochlea."""
    if len(times) != len(units):
        raise ValueError(
            f"{subject} has {len(times)} times and {len(units)} units; allowed: one of "
            "each for every spike. Copy the file anew"
        )
    if not (np.isfinite(times) & (times >= 0)).all():
        raise ValueError(
            f"{subject} has times from {times.min()} to {times.max()}; allowed: "
            "seconds from 0. Copy the file anew"
        )
    if not ((units >= 0) & (units < UNITS)).all():
        raise ValueError(
            f"{subject} has units from {units.min()} to {units.max()}; allowed: 0 to "
            f"{UNITS - 1}. Copy the file anew"
        )


def _counts(recordings: _Recordings, duration: float, steps: int) -> np.ndarray:
    """Spikes of each step and channel [N, T, 140] as uint8, where 255 is 255 or more.

    Spikes after `duration` (seconds) are left out, and those at its end are in the
    last step.
    """
    counts = np.zeros((len(recordings.times), steps * CHANNELS), np.uint8)
    for i, times in enumerate(recordings.times):
        is_counted = times <= duration
        elapsed_steps = times[is_counted] / duration * steps
        step = np.minimum(elapsed_steps, steps - 1).astype(int)
        channel = recordings.units[i][is_counted] * CHANNELS // UNITS
        places = step * CHANNELS + channel
        counts[i] = np.bincount(places, minlength=steps * CHANNELS).clip(max=255)
    return counts.reshape(-1, steps, CHANNELS)


def _count_normalization(counts: np.ndarray) -> Normalization:
    """One scale for all channels and no mean, so that silence stays 0."""
    scale = float(np.square(counts, dtype=np.float32).mean() ** 0.5)
    return (0.0,) * CHANNELS, (scale or 1.0,) * CHANNELS
