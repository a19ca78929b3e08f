"""Data sets of images: embedded digits, a TFDS set or a folder of images per class.

All images are in memory, as uint8. TensorFlow is not needed. A folder may also have the
four files of MNIST, as they are published or unpacked.
"""

import gzip
import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
from tqdm.contrib.concurrent import thread_map

from experiments.data.dataset import Dataset, MissingDataError

SUFFIXES = (".png", ".jpg", ".jpeg")


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
    roots = [r.expanduser() for r in (Path(name), Path(data_dir or ".") / name)]
    if name == "digits":
        train, test, num_classes = _digits()
    elif (pair := _idx_folder(roots)) is not None:
        train, test = pair
        num_classes = 1 + int(train[1].max())
    elif (root := _image_folder(roots)) is not None:
        classes = [folder.name for folder in _folders(root / "train")]
        train = _read_folder(root / "train", classes)
        test = _read_folder(root / "test", classes)
        num_classes = len(classes)
        if train[0].shape[1:] != test[0].shape[1:]:
            raise ValueError(
                f"images of {root} differ: {train[0].shape[1:]} in train, "
                f"{test[0].shape[1:]} in test; bring them to one size and mode"
            )
    elif name.endswith(".npz"):
        raise ValueError(
            f"{name} would be a file of events, which experiments.train_snn reads; "
            "allowed here: digits, a TFDS set, or a folder of images"
        )
    else:
        train, test, num_classes = _tfds(name, data_dir)
    return Dataset(name, *train, *test, *_mean_and_std(train[0]), num_classes)


def _digits():
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


def _idx_folder(roots: list[Path]):
    """Images and labels of MNIST's files for training and test; None: they are not."""
    for root in roots:
        if any(root.glob("train-images-idx3-ubyte*")):
            return [
                (_idx(root, f"{part}-images-idx3")[..., None], labels.astype(np.int32))
                for part in ("train", "t10k")
                for labels in [_idx(root, f"{part}-labels-idx1")]
            ]
    return None


def _idx(root: Path, name: str) -> np.ndarray:
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


def _image_folder(roots: list[Path]) -> Path | None:
    for root in roots:
        if (root / "train").is_dir() and (root / "test").is_dir():
            return root
    for root in roots:
        if (root / "train").is_dir():
            raise ValueError(f"{root} has train/ but no test/; put test images there")
    return None


def _read_folder(root: Path, classes: list[str]):
    examples: list[tuple[Path, int]] = []
    for folder in _folders(root):
        if folder.name not in classes:
            raise ValueError(
                f"class folder {folder} has no counterpart in train; "
                f"the classes there are {', '.join(classes)}"
            )
        files = sorted(p for p in folder.iterdir() if p.name[0] != ".")
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        if not images:
            raise ValueError(
                f"class folder {folder} holds none of *{', *'.join(SUFFIXES)}; put "
                "images there, or remove it"
            )
        examples += [(image, classes.index(folder.name)) for image in images]
    if not examples:
        raise ValueError(
            f"no images below {root}; expected <class>/*.png or *.jpg there"
        )
    # Mixed, so that the first images are of all classes.
    order = np.random.default_rng(0).permutation(len(examples))
    files, labels = zip(*(examples[i] for i in order), strict=True)
    first = _read_image(files[0])
    mode, (height, width) = "L" if first.ndim == 2 else "RGB", first.shape[:2]
    shape = height, width, 1 if mode == "L" else 3

    def read_one(number: int) -> np.ndarray:
        image = _read_image(files[number], mode)
        if image.shape[:2] != (height, width):
            raise ValueError(
                f"{files[number]} has {image.shape[1]}x{image.shape[0]} pixels, "
                f"{files[0]} has {width}x{height}; bring all images to one size"
            )
        return image.reshape(shape)

    pixels = _filled((len(files), *shape), read_one, str(root))
    return pixels, np.asarray(labels, np.int32)


def _filled(
    shape: tuple[int, ...], read_one: Callable[[int], np.ndarray], title: str
) -> np.ndarray:
    """All images [N, H, W, C], each read by its number, in parallel."""
    pixels = np.empty(shape, np.uint8)

    def fill(number: int) -> None:
        pixels[number] = read_one(number)

    thread_map(fill, range(len(pixels)), desc=f"reading {title}", disable=None)
    return pixels


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")


def _read_image(file, mode: str | None = None, name: str = "") -> np.ndarray:
    try:
        with PIL.Image.open(file) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"mode {image.mode}; allowed: 8 bits per channel")
            gray = image.mode in ("L", "1")
            if mode == "L" and not gray:
                raise ValueError(
                    f"mode {image.mode}, and others are gray; bring all to one mode"
                )
            return np.asarray(image.convert(mode or ("L" if gray else "RGB")))
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises on bad files
        raise ValueError(
            f"{name or file} cannot be read as an image ({error}); replace or remove it"
        ) from None


def _tfds(name: str, data_dir: str | None):
    try:
        import tensorflow_datasets as tfds

        # Undecoded, because decoding ourselves is twice as fast as TFDS's one by one.
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
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
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
    parts = (train, f"{name} train"), (test, f"{name} {held_out}")
    return *(_read_tfds(*part, image.shape) for part in parts), label.num_classes


def _read_tfds(source, title: str, shape: tuple[int, int, int]):
    mode = "L" if shape[-1] == 1 else "RGB"
    labels = np.empty(len(source), np.int32)

    def read_one(number: int) -> np.ndarray:
        example, place = source[number], f"{title}[{number}]"
        labels[number] = example["label"]
        return _read_image(io.BytesIO(example["image"]), mode, place).reshape(shape)

    return _filled((len(source), *shape), read_one, title), labels


def _missing(name: str, data_dir: str | None, error: Exception) -> str:
    if data_dir and not Path(data_dir).is_dir():
        return f"--data_dir {data_dir} is no folder; give the one that holds {name!r}"
    where = f"{data_dir!r}" if data_dir else "TFDS's folder ~/tensorflow_datasets"
    reason = str(error).strip().partition("\n")[0].partition(". ")[0]
    here = f" (the folder {name} has no train/)" if Path(name).is_dir() else ""
    return f"""no data set {name!r} in {where}. Three ways to provide one:
  1. --dataset digits: 8x8 images that come with scikit-learn, no download.
  2. A TFDS set prepared as array_record; on a machine with network and TensorFlow
     python -c "import tensorflow_datasets as tfds; \\
       tfds.data_source('{name}', data_dir='DIR')"
     then copy DIR here (TensorFlow is not needed to read it) and add --data_dir DIR.
  3. A folder of images of one size, --dataset FOLDER, with
     train/<class>/*.png|jpg and test/<class>/*.png|jpg{here}; or with the files
     train-images-idx3-ubyte and so on of MNIST.
TFDS said: {type(error).__name__}: {reason}"""


def _mean_and_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # einsum casts by parts: a float64 copy of a whole set could exceed the memory.
    mean = images.mean((0, 1, 2), dtype=np.float64)
    squares = np.einsum("nhwc,nhwc->c", images, images, dtype=np.float64)
    variance = squares / (images.size / len(mean)) - mean**2
    std = np.sqrt(np.maximum(variance, 1.0))  # 1.0: constant images
    return tuple(mean.tolist()), tuple(std.tolist())
