"""A trained source network on disk: weights, and a card that describes them.

The weights are a file NAME.safetensors (``weights.py``), and the card is NAME.json. It
names the network, and says how images are normalized and what accuracy to expect.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from experiments.models.weights import SUFFIX, read_weights, variables_of
from experiments.models.zoo import NAMES, build_from
from experiments.running import options, write

FILE = "source.safetensors"  # in the folder of a run; its card is source.json


class Source(NamedTuple):
    """A trained network: module, {"params", "batch_stats"} and its description."""

    model: nn.Module
    variables: dict[str, Any]
    card: dict[str, Any]


def source_function(source: Source) -> Callable[[Any, jax.Array], jax.Array]:
    """The network in inference mode, `fn(variables, normalized_images) -> logits`."""

    def fn(variables: Any, x: jax.Array) -> jax.Array:
        return source.model.apply(variables, x, train=False)

    return fn


def load_source(path: str | Path, card: Mapping[str, Any] | None = None) -> Source:
    """Reads a trained network.

    Args:
        path: the folder `out` of a run of train_ann, or a file of weights.
        card: description of a file without a card: model, num_classes and input_shape;
            also norm, clip and levels if the network does not have its usual ones. For
            a file with a card, only the model is compared.

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: it holds no trained network, or one that does not fit its card.
    """
    file = Path(path).expanduser().resolve()
    if not file.exists() and file.suffix != SUFFIX:
        raise FileNotFoundError(
            f"no folder or file {path} of a source network; train one, for example by "
            "python -m experiments.train_ann --preset digits_resnet"
        )
    if file.is_dir():
        file = file / FILE
        if not file.is_file() or not file.with_suffix(".json").is_file():
            raise ValueError(
                f"{path} is not a trained source network: that is {FILE} beside a card "
                "source.json, which train_ann writes at the end of a training; finish "
                "it by running the same command again, or give another path"
            )
    weights = read_weights(file)
    model, description = _described(file, card)
    try:
        variables = variables_of(model, weights, description["input_shape"])
    except ValueError as error:
        raise ValueError(f"{file} as {description['model']}: {error}") from None
    return Source(model, variables, description)


def save_source(out: Path, source: Source) -> None:
    """Writes `source.safetensors` and its card `source.json` into the folder `out`.

    An array is named by its path among the variables, "params/Conv_0/kernel".
    """
    from safetensors.numpy import save

    arrays = flatten_dict(jax.device_get(source.variables), sep="/")
    data = save({path: np.asarray(x, order="C") for path, x in arrays.items()})
    card = source.card | {"sha256": hashlib.sha256(data).hexdigest()}
    write(out / FILE, data)
    write(out / "source.json", json.dumps(card, indent=2) + "\n")


def _described(
    file: Path, option: Mapping[str, Any] | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The module of a file of weights, and its card, or the options without one."""
    card_file = file.with_suffix(".json")
    if not card_file.is_file():
        if option is not None:
            return _build(option)
        raise ValueError(
            f"{file} has no card {card_file.name} beside it, so say which network it "
            f"is: --model NAME, one of {', '.join(NAMES)}. A card also says how images "
            'were normalized: {"model": NAME, "num_classes": ..., "input_shape": '
            '[height, width, channels], "mean": [...], "std": [...]}, the last two per '
            "channel of pixels in 0..255"
        )
    try:
        model, card = _build(json.loads(card_file.read_text()))
    except ValueError as error:
        raise ValueError(
            f"card {card_file} does not describe a source network: {error}"
        ) from None
    if option is not None and option["model"] != card["model"]:
        raise ValueError(
            f"card {card_file} says that the network is {card['model']}, not "
            f"{option['model']} (of --model, or of the preset); give --model "
            f"{card['model']}, or correct the card"
        )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if card.get("sha256", digest) != digest:
        raise ValueError(
            f"{file} is not the file that its card describes: its sha256 is {digest}, "
            f"in {card_file.name} {card['sha256']}; fetch both again, or correct the "
            "card if the weights were changed on purpose"
        )
    return model, card


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_shape(value: Any) -> bool:
    return len(value) == 3 and all(_is_count(size) for size in value)


def _are_finite(values: Any) -> bool:
    return all(math.isfinite(value) for value in values)


def _are_positive(values: Any) -> bool:
    return all(0 < value < math.inf for value in values)


COUNT = options.Rule("a whole number > 0", _is_count)
ANYTHING = options.Rule("anything", lambda value: True)
REQUIRED = {"model", "num_classes", "input_shape"}
# What a card may say, and which values.
CARD = {
    "model": options.Rule("a name", lambda value: isinstance(value, str)),
    "num_classes": COUNT,
    "input_shape": options.Rule("[height, width, channels]", _is_shape),
    "norm": options.Rule("true, false or null", lambda value: type(value) is bool),
    "clip": options.POSITIVE,
    "levels": options.at_most(options.MOST_LEVELS),
    # Per channel of pixels in 0..255.
    "mean": options.Rule("a number per channel", _are_finite),
    "std": options.Rule("a number > 0 per channel", _are_positive),
    "test_accuracy": options.FROM_0_TO_1,
    "seconds": options.NOT_NEGATIVE,
    "dataset": ANYTHING,
    "sha256": ANYTHING,
    "epochs": ANYTHING,
    "seed": ANYTHING,
    "command": ANYTHING,
    "versions": ANYTHING,
    "notes": ANYTHING,
}


def _build(card: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The module of a card, and the card with all options of the module."""
    if not isinstance(card, Mapping):
        raise ValueError(f"it is a {type(card).__name__}; allowed: an object")
    allowed = ", ".join(CARD)
    missing = sorted(REQUIRED - card.keys())
    if missing:
        raise ValueError(f"it lacks fields {', '.join(missing)}; allowed: {allowed}")
    unknown = sorted(card.keys() - CARD)
    if unknown:
        raise ValueError(
            f"it has unknown fields {', '.join(unknown)}; allowed: {allowed}"
        )
    for name in card:
        options.check_range(SimpleNamespace(**card), name, CARD[name])
    model = build_from(card)
    norm = getattr(model, "norm", True)
    return model, {"clip": None, "levels": None, **card, "norm": norm}
