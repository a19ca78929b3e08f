"""A trained source network on disk: orbax folder `source` and card `source.json`.

The card is JSON and says which network the weights belong to, how images are
normalized and what accuracy to expect.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from experiments.models import build


class Source(NamedTuple):
    """A trained network: module, {"params", "batch_stats"} and its description."""

    model: nn.Module
    variables: dict[str, Any]
    card: dict[str, Any]


def source_function(source: Source) -> Callable[[Any, jax.Array], jax.Array]:
    """The network in inference mode, `fn(variables, normalized_images) -> logits`."""
    return lambda variables, x: source.model.apply(variables, x, train=False)


def load_source(path: str | Path) -> Source:
    """Reads a trained network.

    Args:
        path: the folder `out` of a run, or the folder `source` in it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no trained network, or one that does not fit its card.
    """
    folder = Path(path).expanduser().resolve()
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
    try:
        card = json.loads(card_file.read_text())
        model = build(
            card["model"], card["num_classes"], norm=card["norm"], clip=card["clip"]
        )
        images = jax.ShapeDtypeStruct((1, *card["input_shape"]), jnp.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"card {card_file} does not describe a source network: {error!r}; restore "
            "it or train again"
        ) from None
    expected = dict(jax.eval_shape(model.init, jax.random.key(0), images))
    expected.setdefault("batch_stats", {})
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder).item_metadata.tree
        _check_shapes(_shapes(found), _shapes(expected), folder, card["model"])
        variables = read_arrays(checkpointer, folder, expected)
    return Source(model, variables, card)


def read_arrays(checkpointer, folder: Path, shapes):
    """Arrays of these shapes and types from an orbax folder, bound to no device.

    With the device given, what was saved on a TPU can be read elsewhere. But arrays
    that stay bound to it compile every program a second time, where they meet others.
    """
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes
    )
    arrays = checkpointer.restore(folder, target)
    return jax.tree.map(jnp.asarray, jax.device_get(arrays))


def save_source(out: Path, source: Source) -> None:
    """Writes the folder `source` and its card `source.json` into the folder `out`."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(out / "source", source.variables, force=True)
    (out / "source.json").write_text(json.dumps(source.card, indent=2) + "\n")


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    flat = flatten_dict(tree, sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _check_shapes(found, expected, folder: Path, model: str) -> None:
    for path in sorted(found.keys() | expected.keys()):
        if found.get(path) != expected.get(path):
            raise ValueError(
                f"weights in {folder} do not fit its card: {path} has shape "
                f"{found.get(path)}, but {model} needs {expected.get(path)} (None is "
                "absent); put the card that belongs to the weights beside them or "
                "train again"
            )
