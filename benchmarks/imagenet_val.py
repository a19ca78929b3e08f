"""ImageNet's validation set as it is downloaded, and the networks of torchvision.

`benchmarks.imagenet` runs them; a wrong folder or file raises with one sentence.
"""

import random
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

import snnjax

CLASSES, FIRST, LAST = 1000, "n01440764", "n15075141"  # of ILSVRC 2012
SUSTAINED = 1e13  # FLOP/s: half of what an A100 states for float32


def _images(folder: Path) -> list[Path]:
    kinds = (".jpeg", ".jpg", ".png")
    return sorted(f for f in folder.iterdir() if f.name.lower().endswith(kinds))


def validation(folder: Path, labels: Path | None) -> tuple[list[Path], np.ndarray]:
    """Images and the numbers of their classes, which are the wnids in order.

    Images of folders are mixed by a seed, so that the first ones are of all classes.

    Args:
        folder: WNID/*.JPEG, or all images if there are labels.
        labels: a file of wnids, one for each image by name.
    """
    if labels is None:
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
        classes = [path.name for path in folders]
        pairs = [(file, path.name) for path in folders for file in _images(path)]
        random.Random(0).shuffle(pairs)
    else:
        lines, files = labels.read_text().split(), _images(folder)
        if len(lines) != len(files):
            raise ValueError(f"{labels} has {len(lines)} lines for {len(files)} images")
        classes, pairs = sorted(set(lines)), list(zip(files, lines, strict=True))
    wrong = [name for name in classes if not re.fullmatch(r"n\d{8}", name)]
    if wrong or len(classes) != CLASSES or (classes[0], classes[-1]) != (FIRST, LAST):
        examples = "".join(f", {name}" for name in (wrong or classes)[:1])
        raise ValueError(
            f"{labels or folder} has {len(classes)} classes{examples}; allowed: those "
            f"of ILSVRC 2012, {FIRST} to {LAST}, as folders, or in a file for --labels "
            "with a line for each image by name (the development kit numbers them in "
            "another order)"
        )
    if not pairs:
        raise ValueError(f"{folder} has {CLASSES} folders and no JPEG file in them")
    return [file for file, _ in pairs], np.array([classes.index(c) for _, c in pairs])


def spread(folder: Path, validation: Path, count: int) -> list[Path]:
    """So many images of a folder and its folders, evenly spaced."""
    folders = sorted(path for path in folder.rglob("*") if path.is_dir())
    inside = validation.resolve()
    others = [p for p in (folder, *folders) if not p.resolve().is_relative_to(inside)]
    files = [file for path in others for file in _images(path)]
    if len(files) < count:
        raise ValueError(
            f"{folder} has {len(files)} images that are not of the validation set; "
            f"allowed: at least {count}. Give --train FOLDER or a lower --calibration"
        )
    return [files[i * len(files) // count] for i in range(count)]


def network(folder: Path | None, resize: int | None, name: str) -> tuple[Any, Any, Any]:
    """fn, params and read of a network of torchvision, as `benchmarks.imagenet` has it.

    The weights are the first that it had, which papers convert.

    Args:
        folder: of files with torchvision's names; None: they are downloaded.
        resize: the size before the crop; None: that of the weights.
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
            message = f"{file} is not {weights.url}, which {name} takes: {reason}"
            raise ValueError(message) from None
    transforms = weights.transforms(**({"resize_size": resize} if resize else {}))
    if resize and max(transforms.crop_size) > resize:
        raise ValueError(
            f"{name} reads {max(transforms.crop_size)} pixels; allowed: "
            f"at most {resize}, as the images at hand have"
        )
    example = torch.rand(1, 3, *transforms.crop_size * 2)
    read = lambda image: transforms(image).numpy()  # noqa: E731
    return *snnjax.torch.function(module.eval(), example), read


def time_on_gpu(fn: Any, params: Any, x: Any, passes: int) -> str:
    """How long so many images take, by the operations that XLA counts for one."""
    count = jax.jit(fn).lower(params, x).cost_analysis()["flops"]
    return (
        f"{count / 1e9:.3g} GFLOP x {passes} images and steps, "
        f"{count * passes / SUSTAINED / 3600:.2g} h on a GPU that sustains "
        f"{SUSTAINED / 1e12:g} TFLOP/s, without conversions and JPEG"
    )
