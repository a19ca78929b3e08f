"""A trained source network on disk: weights, and a card that describes them.

The weights are an orbax folder `source` or, from PyTorch, a file NAME.safetensors or
NAME.npz. The card is `source.json` or NAME.json. It names the network, and says how
images are normalized and what accuracy to expect.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from experiments.models.torch_files import PICKLES, SUFFIXES, read_weights
from experiments.models.torch_names import to_flax
from experiments.models.zoo import NAMES, build_from
from experiments.running import devices, reading, remove_unfinished, write

REPEAT = (
    "delete it and repeat the command of train_ann that wrote it, which goes on from "
    "its last checkpoint"
)


class Source(NamedTuple):
    """A trained network: module, {"params", "batch_stats"} and its description."""

    model: nn.Module
    variables: dict[str, Any]
    card: dict[str, Any]


def source_function(source: Source) -> Callable[[Any, jax.Array], jax.Array]:
    """The network in inference mode, `fn(variables, normalized_images) -> logits`."""
    return lambda variables, x: source.model.apply(variables, x, train=False)


def load_source(path: str | Path, card: Mapping[str, Any] | None = None) -> Source:
    """Reads a trained network.

    Args:
        path: the folder `out` of a run, or the folder `source` in it; or a file of
            PyTorch weights.
        card: describes a file that has no card beside it: model, num_classes and
            input_shape; norm, clip and levels where the network has not its usual ones.

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: it holds no trained network, or one that does not fit its card.
    """
    folder = Path(path).expanduser().resolve()
    named_as_file = folder.suffix in SUFFIXES + PICKLES and not folder.is_dir()
    if folder.is_file() or named_as_file:
        return _load_file(folder, card)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {path} of a source network; train one, for example by "
            "python -m experiments.train_ann --preset digits_resnet"
        )
    if (folder / "source").is_dir():
        folder = folder / "source"
    card_file = folder.with_name(f"{folder.name}.json")
    if not (folder / "_METADATA").is_file() or not card_file.is_file():
        raise ValueError(
            f"{path} is not a trained source network: that is a folder `source` beside "
            "a card `source.json`, which train_ann writes at the end of the training; "
            "finish it by running the same command again, or give another path"
        )
    model, description = _read_card(card_file, card)
    images = jax.ShapeDtypeStruct((1, *description["input_shape"]), jnp.float32)
    expected = dict(jax.eval_shape(model.init, jax.random.key(0), images))
    expected.setdefault("batch_stats", {})
    with _checkpointer() as checkpointer:
        with reading(folder, REPEAT):
            stored = _shapes(checkpointer.metadata(folder).item_metadata.tree)
        _check_shapes(stored, _shapes(expected), folder, description["model"])
        with reading(folder, REPEAT):
            variables = _read_arrays(checkpointer, folder, expected)
    return Source(model, variables, description)


def save_source(out: Path, source: Source) -> None:
    """Writes the folder `source` and its card `source.json` into the folder `out`."""
    remove_unfinished(out)
    with _checkpointer() as checkpointer:
        checkpointer.save(out / "source", source.variables, force=True)
    write(out / "source.json", json.dumps(source.card, indent=2) + "\n")


def _read_arrays(checkpointer: ocp.StandardCheckpointer, folder: Path, shapes: Any):
    """Arrays of these shapes and types from an orbax folder, bound to no device.

    orbax needs a device, so that a folder from a TPU can be read elsewhere. Arrays that
    stay bound to it would compile every program a second time, for themselves.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes
    )
    arrays = checkpointer.restore(folder, target)
    return jax.tree.map(jnp.asarray, jax.device_get(arrays))


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=devices.alone())


def _load_file(file: Path, card: Mapping[str, Any] | None) -> Source:
    weights = read_weights(file)
    card_file = file.with_suffix(".json")
    if card_file.is_file():
        model, description = _read_card(card_file, card)
        _check_sum(file, card_file, description)
    elif card is None:
        raise ValueError(
            f"{file} has no card {card_file.name} beside it, so say which network it "
            f"is: --model NAME, one of {', '.join(NAMES)}. A card also says how images "
            'were normalized: {"model": NAME, "num_classes": ..., "input_shape": '
            '[height, width, channels], "mean": [...], "std": [...]}, the last two per '
            "channel of pixels in 0..255"
        )
    else:
        model, description = _built(card)
    try:
        variables = to_flax(model, weights, description["input_shape"])
    except ValueError as error:
        raise ValueError(f"{file} as {description['model']}: {error}") from None
    return Source(model, variables, description)


def _read_card(card_file: Path, option: Mapping[str, Any] | None):
    """The module and its card, which the options must not contradict."""
    try:
        model, card = _built(json.loads(card_file.read_text()))
    except ValueError as error:
        raise ValueError(
            f"card {card_file} does not describe a source network: {error}"
        ) from None
    if option is not None and option["model"] != card["model"]:
        raise ValueError(
            f"card {card_file} says that the network is {card['model']}, not "
            f"{option['model']}; leave out --model, or correct the card"
        )
    return model, card


# What a card may hold; the first three it must.
_FIELDS = (
    "model num_classes input_shape norm clip levels mean std dataset test_accuracy "
    "sha256 epochs seed command versions notes"
).split()


def _check_fields(card: Any) -> None:
    """Raise if a card lacks a field, has an unknown one, or one of another kind."""
    if not isinstance(card, Mapping):
        raise ValueError(f"it is {card!r}; allowed: an object with {_FIELDS}")
    missing = [name for name in _FIELDS[:3] if name not in card]
    unknown = [name for name in card if name not in _FIELDS]
    if missing or unknown:
        raise ValueError(
            f"it lacks {missing or 'nothing'}, and unknown are {unknown or 'none'}; "
            f"allowed: {', '.join(_FIELDS)} (anything of your own in notes)"
        )

    def number(value) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def positive(value) -> bool:
        return type(value) is int and value > 0

    def numbers(value) -> bool:
        return isinstance(value, Sequence) and all(map(number, value))

    expected = {
        "num_classes": (positive, "a whole number > 0"),
        "input_shape": (
            lambda v: numbers(v) and len(v) == 3 and all(map(positive, v)),
            "[height, width, channels]",
        ),
        "norm": (lambda v: v is None or isinstance(v, bool), "true, false or null"),
        "clip": (lambda v: v is None or number(v) and v > 0, "a number > 0 or null"),
        "levels": (lambda v: v is None or positive(v), "a whole number > 0 or null"),
        "mean": (numbers, "a number per channel of pixels in 0..255"),
        "std": (
            lambda v: numbers(v) and all(x > 0 for x in v),
            "a number > 0 per channel of pixels in 0..255",
        ),
        "test_accuracy": (lambda v: number(v) and 0 <= v <= 1, "a number in 0..1"),
    }
    for name, (fits, allowed) in expected.items():
        if name in card and not fits(card[name]):
            raise ValueError(f"{name} is {card[name]!r}; allowed: {allowed}")


def _built(card: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    _check_fields(card)
    model = build_from(card)
    norm = getattr(model, "norm", True)
    return model, {"norm": norm, "clip": None, "levels": None, **card}


def _check_sum(file: Path, card_file: Path, card: Mapping[str, Any]) -> None:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if card.get("sha256", digest) != digest:
        raise ValueError(
            f"{file} is not the file that its card describes: its sha256 is {digest}, "
            f"in {card_file.name} {card['sha256']}; fetch both again, or correct the "
            "card if the weights were changed on purpose"
        )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    flat = flatten_dict(tree, sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _check_shapes(stored, expected, folder: Path, model: str) -> None:
    for path in sorted(stored.keys() | expected.keys()):
        if stored.get(path) != expected.get(path):
            raise ValueError(
                f"weights in {folder} do not fit its card: {path} has shape "
                f"{stored.get(path)}, but {model} needs {expected.get(path)} (None is "
                "absent); put the card that belongs to the weights beside them or "
                "train again"
            )
