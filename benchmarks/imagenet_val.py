"""ImageNet's validation set as it is downloaded, and the networks of torchvision.

`benchmarks.imagenet` runs them; a wrong folder or file raises with one sentence.
"""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import snnjax

CLASSES = 1000  # of ILSVRC 2012
FIRST = "n01440764"
LAST = "n15075141"
SUSTAINED = 1e13  # FLOP/s: half of what an A100 states for float32


def _images(folder: Path) -> list[Path]:
    """The images in a folder, by name."""
    endings = (".jpeg", ".jpg", ".png")
    return sorted(f for f in folder.iterdir() if f.name.lower().endswith(endings))


def validation(folder: Path, labels: Path | None) -> tuple[list[Path], np.ndarray]:
    """Images and the numbers of their classes, which are the wnids in order.

    Images of folders are mixed by a seed, so that the first ones are of all classes.

    Args:
        folder: WNID/*.JPEG, or all images if there are labels.
        labels: a file of wnids, one for each image by name.

    Raises:
        ValueError: the classes are not those of ILSVRC 2012, or files are missing.
    """
    pairs: list[tuple[Path, str]] = []  # of an image and its wnid
    if labels is None:
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
        classes = [path.name for path in folders]
        for path in folders:
            pairs += [(file, path.name) for file in _images(path)]
        random.Random(0).shuffle(pairs)
    else:
        wnids = labels.read_text().split()
        files = _images(folder)
        if len(wnids) != len(files):
            raise ValueError(f"{labels} has {len(wnids)} lines for {len(files)} images")
        classes = sorted(set(wnids))
        pairs = list(zip(files, wnids, strict=True))
    _check_classes(classes, labels or folder)
    if not pairs:
        raise ValueError(f"{folder} has {CLASSES} folders and no JPEG file in them")
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    files = [file for file, _ in pairs]
    return files, np.array([numbers[wnid] for _, wnid in pairs])


def _check_classes(classes: list[str], source: Path) -> None:
    """Raise unless these sorted names are the wnids of ILSVRC 2012."""
    wrong = [name for name in classes if not re.fullmatch(r"n\d{8}", name)]
    ends = (classes[0], classes[-1]) if classes else None
    if wrong or len(classes) != CLASSES or ends != (FIRST, LAST):
        examples = "".join(f", {name}" for name in (wrong or classes)[:1])
        raise ValueError(
            f"{source} has {len(classes)} classes{examples}; allowed: those of ILSVRC "
            f"2012, {FIRST} to {LAST}, as folders, or in a file for --labels with a "
            "line for each image by name (the development kit numbers them in another "
            "order)"
        )


def spread(folder: Path, validation: Path, count: int) -> list[Path]:
    """``count`` images of a folder and its folders, evenly spaced.

    Raises:
        ValueError: there are fewer outside of the folder ``validation``.
    """
    files = []
    folders = sorted(path for path in folder.rglob("*") if path.is_dir())
    for path in (folder, *folders):
        if not path.resolve().is_relative_to(validation.resolve()):
            files += _images(path)
    if len(files) < count:
        raise ValueError(
            f"{folder} has {len(files)} images that are not of the validation set; "
            f"allowed: at least {count}. Give --train FOLDER or a lower --calibration"
        )
    return [files[i * len(files) // count] for i in range(count)]


def network(
    folder: Path | None, resize: int | None, name: str
) -> tuple[Callable, Any, Callable]:
    """fn, params and read of a network of torchvision, as `benchmarks.imagenet` has it.

    The weights are the first that it had, which papers convert.

    Args:
        folder: of files with torchvision's names; None: they are downloaded.
        resize: the size before the crop; None: that of the weights.
        name: of the network.

    Raises:
        ValueError: torchvision has no such network, a file does not have its weights,
            or images are too small for it.
    """
    import torch
    import torchvision

    try:
        weights = next(iter(torchvision.models.get_model_weights(name)))
    except ValueError:
        raise ValueError(
            f"network {name}; allowed: a classification network of torchvision, e.g. "
            "mobilenet_v2, and with --data squeezenet and efficientnet_lite0"
        ) from None
    if folder is None:
        module = torchvision.models.get_model(name, weights=weights)
    else:
        file = folder / Path(weights.url).name
        module = torchvision.models.get_model(name)
        try:
            module.load_state_dict(torch.load(file, weights_only=True))
        except Exception as error:  # of files, pickle or modules, whatever it holds
            reason = " ".join(str(error).split())[:100]
            raise ValueError(
                f"{file} is not {weights.url}, which {name} takes: {reason}"
            ) from None
    options = {} if resize is None else {"resize_size": resize}
    transforms = weights.transforms(**options)
    (crop,) = transforms.crop_size
    if resize is not None and crop > resize:
        raise ValueError(
            f"{name} reads {crop} pixels; allowed: at most {resize}, as the images at "
            "hand have"
        )

    def read(image: Any) -> np.ndarray:
        return transforms(image).numpy()

    example = torch.rand(1, 3, crop, crop)
    fn, params = snnjax.torch.function(module.eval(), example)
    return fn, params, read


def time_on_gpu(fn: Callable, params: Any, x: Any, passes: int) -> str:
    """How long so many images take, by the operations that XLA counts for one."""
    count = jax.jit(fn).lower(params, x).cost_analysis()["flops"]
    hours = count * passes / SUSTAINED / 3600
    return (
        f"{count / 1e9:.3g} GFLOP x {passes} images and steps, {hours:.2g} h on a GPU "
        f"that sustains {SUSTAINED / 1e12:g} TFLOP/s, without conversions and JPEG"
    )
