"""Data sets of images: embedded digits, a TFDS set or a folder of images per class.

All images are in memory, as uint8. TensorFlow is not needed. A folder may also have the
four files of MNIST, as they are published or unpacked.
"""

import gzip
import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL.Image
from tqdm.contrib.concurrent import thread_map

from experiments.data.dataset import (
    Dataset,
    MissingDataError,
    Normalization,
    check_labels,
)

SUFFIXES = (".png", ".jpg", ".jpeg")

# Images [N, H, W, C] as uint8 and labels [N] as int32.
Examples = tuple[np.ndarray, np.ndarray]


def load(name: str, data_dir: str | None = None) -> Dataset:
    """Reads a data set into memory.

    Args:
        name: "digits" (8x8 grayscale, from scikit-learn), a folder, or the name of a
            TFDS set such as "cifar10". A folder is absolute or in `data_dir`, and holds
            `train/<class>/*.png|jpg` and `test/<class>/*.png|jpg`, or the files
            `train-images-idx3-ubyte` and so on of MNIST, which may end in `.gz`.
        data_dir: folder of the data sets; None is TFDS's own, `~/tensorflow_datasets`.

    Raises:
        MissingDataError: the data set is not there; the message lists the ways out.
    """
    if name == "digits":
        train, test, num_classes = _digits()
    else:
        train, test, num_classes = _stored(name, data_dir)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"images of {name} differ: {train[0].shape[1:]} in train, "
            f"{test[0].shape[1:]} in test; bring them to one size and mode"
        )
    check_labels(name, num_classes, training=train[1], test=test[1])
    mean, std = _normalization(train[0])
    return Dataset(
        name=name,
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
        mean=mean,
        std=std,
        num_classes=num_classes,
        normalization=_normalization,
    )


def _stored(name: str, data_dir: str | None) -> tuple[Examples, Examples, int]:
    """Training, test and number of classes of a folder or of a TFDS set."""
    roots = [Path(name).expanduser(), Path(data_dir or ".").expanduser() / name]
    root = _idx_folder(roots)
    if root is not None:
        train = _read_idx_pair(root, "train")
        test = _read_idx_pair(root, "t10k")
        return train, test, 1 + int(train[1].max(initial=-1))
    root = _image_folder(roots)
    if root is not None:
        return _read_image_folder(root)
    if name.endswith(".npz"):
        raise ValueError(
            f"{name} would be a file of events, which experiments.train_snn reads; "
            "allowed here: digits, a TFDS set, or a folder of images"
        )
    return _tfds(name, data_dir)


def _digits() -> tuple[Examples, Examples, int]:
    """The digits of scikit-learn: training, test and number of classes."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingDataError(
            'the embedded data set "digits" is part of scikit-learn: '
            "pip install scikit-learn"
        ) from None
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=500, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y), 10


# -------------------------------------------------------------- the files of MNIST


def _idx_folder(roots: list[Path]) -> Path | None:
    """The folder that has MNIST's files; None: there is none."""
    for root in roots:
        if any(root.glob("train-images-idx3-ubyte*")):
            return root
    return None


def _read_idx_pair(root: Path, part: str) -> Examples:
    """The images and the labels of a part, which is "train" or "t10k"."""
    images = _read_idx(root, f"{part}-images-idx3")[..., None]
    labels = _read_idx(root, f"{part}-labels-idx1").astype(np.int32)
    if len(images) != len(labels):
        raise ValueError(
            f"{root} has {len(images)} {part} images and {len(labels)} labels; allowed:"
            " as many of both. Copy the four files of MNIST anew"
        )
    return images, labels


def _read_idx(root: Path, name: str) -> np.ndarray:
    """A file of bytes: 0, 0, type 8, number of axes, sizes as big-endian int32."""
    try:
        (file, *_) = sorted(root.glob(f"{name}-ubyte*"))
        raw = gzip.open(file) if file.suffix == ".gz" else file.open("rb")
        with raw:
            content = raw.read()
        axes = content[3]
        shape = np.frombuffer(content, ">i4", axes, 4)
        size = 4 + 4 * axes + math.prod(shape)
        if content[:3] != b"\0\0\x08" or len(content) != size:
            raise ValueError("its bytes are not those of its sizes")
    except (ValueError, OSError, EOFError, IndexError) as error:
        raise ValueError(
            f"{root}/{name}-ubyte is no file of MNIST ({error}); copy the four files "
            "anew"
        ) from None
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


# ------------------------------------------------------------- a folder of a class


def _image_folder(roots: list[Path]) -> Path | None:
    """The folder that has train/ and test/; None: there is none."""
    for root in roots:
        if (root / "train").is_dir() and (root / "test").is_dir():
            return root
    for root in roots:
        if (root / "train").is_dir():
            raise ValueError(f"{root} has train/ but no test/; put test images there")
    return None


def _read_image_folder(root: Path) -> tuple[Examples, Examples, int]:
    """Training and test examples of ROOT/PART/CLASS/*.png, and number of classes."""
    classes = [folder.name for folder in _folders(root / "train")]
    train = _read_part(root / "train", classes)
    test = _read_part(root / "test", classes)
    return train, test, len(classes)


def _read_part(root: Path, classes: list[str]) -> Examples:
    """The images of ROOT/CLASS/*.png, whose labels are the places of their classes."""
    files, labels = [], []
    for folder in _folders(root):
        if folder.name not in classes:
            raise ValueError(
                f"class folder {folder} has no counterpart in train; "
                f"the classes there are {', '.join(classes)}"
            )
        images = _image_files(folder)
        files += images
        labels += [classes.index(folder.name)] * len(images)
    if not files:
        raise ValueError(
            f"no images below {root}; expected <class>/*.png or *.jpg there"
        )
    # Mixed, so that the first images are of all classes.
    order = np.random.default_rng(0).permutation(len(files))
    files = [files[i] for i in order]
    first = _read_image(files[0])
    height, width = first.shape[:2]
    mode, channels = ("L", 1) if first.ndim == 2 else ("RGB", 3)
    shape = (height, width, channels)

    def read_one(number: int) -> np.ndarray:
        image = _read_image(files[number], mode)
        if image.shape[:2] != (height, width):
            raise ValueError(
                f"{files[number]} has {image.shape[1]}x{image.shape[0]} pixels, "
                f"{files[0]} has {width}x{height}; bring all images to one size"
            )
        return image.reshape(shape)

    pixels = _read_all(len(files), shape, read_one, str(root))
    return pixels, np.array(labels, np.int32)[order]


def _image_files(folder: Path) -> list[Path]:
    """The images of a class; hidden files are none."""
    files = sorted(file for file in folder.iterdir() if file.name[0] != ".")
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not images:
        raise ValueError(
            f"class folder {folder} holds none of *{', *'.join(SUFFIXES)}; put "
            "images there, or remove it"
        )
    return images


def _read_all(
    count: int,
    shape: tuple[int, ...],
    read_one: Callable[[int], np.ndarray],
    title: str,
) -> np.ndarray:
    """All images [N, H, W, C] of this shape, each read by its number, in parallel."""
    pixels = np.empty((count, *shape), np.uint8)

    def fill(number: int) -> None:
        pixels[number] = read_one(number)

    thread_map(fill, range(count), desc=f"reading {title}", disable=None)
    return pixels


def _folders(root: Path) -> list[Path]:
    """The folders of classes; hidden ones are none."""
    entries = sorted(root.iterdir())
    return [entry for entry in entries if entry.is_dir() and entry.name[0] != "."]


def _read_image(
    file: Path | BinaryIO, mode: str | None = None, name: str = ""
) -> np.ndarray:
    """The pixels [H, W] of mode "L", which is gray, or [H, W, 3] of mode "RGB".

    By default the mode is that of the file. Its `name` is for messages.
    """
    try:
        with PIL.Image.open(file) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"mode {image.mode}; allowed: 8 bits per channel")
            is_gray = image.mode in ("L", "1")
            if mode is None:
                mode = "L" if is_gray else "RGB"
            elif mode == "L" and not is_gray:
                raise ValueError(
                    f"mode {image.mode}, and others are gray; bring all to one mode"
                )
            return np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises on bad files
        raise ValueError(
            f"{name or file} cannot be read as an image ({error}); replace or remove it"
        ) from None


# ------------------------------------------------------------- TensorFlow Datasets


def _tfds(name: str, data_dir: str | None) -> tuple[Examples, Examples, int]:
    """Training, test and number of classes of a TFDS set that is on this machine."""
    try:
        import tensorflow_datasets as tfds

        # Images stay encoded here, because TFDS would decode them one by one, which
        # takes twice as long as `_read_all`.
        source = partial(
            tfds.data_source,
            name,
            data_dir=data_dir,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        train = source(split="train", download=False)
        splits = train.dataset_info.splits
        held_out = "test" if "test" in splits else "validation"
        test = source(split=held_out, download=False)
    except Exception as error:  # TFDS has many exceptions for "it is not there"
        raise MissingDataError(_missing(name, data_dir, error)) from None
    features = dict(train.dataset_info.features.items())
    image, label = features.get("image"), features.get("label")
    has_images = isinstance(image, tfds.features.Image)
    if not has_images or not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(
            f"TFDS set {name!r} has {', '.join(features)}, but image classification "
            "needs an `image` and a class `label`; choose another set"
        )
    if None in image.shape:
        raise ValueError(
            f"images of TFDS set {name!r} have shape {image.shape}, but one fixed "
            "size is needed; make a folder of resized copies, train/<class>/*.png and "
            "test/<class>/*.png, and pass it in place of the name"
        )
    train_examples = _read_tfds(train, f"{name} train", image.shape)
    test_examples = _read_tfds(test, f"{name} {held_out}", image.shape)
    return train_examples, test_examples, label.num_classes


def _read_tfds(source: Sequence, title: str, shape: tuple[int, int, int]) -> Examples:
    """The examples of a source of TFDS, whose images are encoded."""
    mode = "L" if shape[-1] == 1 else "RGB"
    labels = np.empty(len(source), np.int32)

    def read_one(number: int) -> np.ndarray:
        example = source[number]
        labels[number] = example["label"]
        encoded = io.BytesIO(example["image"])
        return _read_image(encoded, mode, f"{title}[{number}]").reshape(shape)

    images = _read_all(len(source), shape, read_one, title)
    return images, labels


def _missing(name: str, data_dir: str | None, error: Exception) -> str:
    """The message that a data set is not there, with the ways to provide it."""
    if data_dir and not Path(data_dir).is_dir():
        return f"--data_dir {data_dir} is no folder; give the one that holds {name!r}"
    where = f"{data_dir!r}" if data_dir else "TFDS's folder ~/tensorflow_datasets"
    reason = str(error).strip().partition("\n")[0].partition(". ")[0]
    folder = ""
    if Path(name).is_dir():
        folder = f" (the folder {name} has no train/)"
    return f"""no data set {name!r} in {where}. Three ways to provide one:
  1. --dataset digits: 8x8 images that come with scikit-learn, no download.
  2. A TFDS set prepared as array_record; on a machine with network and TensorFlow
     python -c "import tensorflow_datasets as tfds; \\
       tfds.data_source('{name}', data_dir='DIR')"
     then copy DIR here (TensorFlow is not needed to read it) and add --data_dir DIR.
  3. A folder of images of one size, --dataset FOLDER, with
     train/<class>/*.png|jpg and test/<class>/*.png|jpg{folder}; or with the files
     train-images-idx3-ubyte and so on of MNIST.
TFDS said: {type(error).__name__}: {reason}"""


def _normalization(images: np.ndarray) -> Normalization:
    """Mean and standard deviation of each channel of [N, H, W, C]; the latter >= 1."""
    # einsum casts by parts: a float64 copy of a whole set could exceed the memory.
    mean = images.mean((0, 1, 2), dtype=np.float64)
    squares = np.einsum("nhwc,nhwc->c", images, images, dtype=np.float64)
    variance = squares / (images.size / len(mean)) - mean**2
    std = np.sqrt(np.maximum(variance, 1.0))
    return tuple(mean.tolist()), tuple(std.tolist())
