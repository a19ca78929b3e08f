"""PyTorch weights of a source network as variables of `experiments.models`.

A kernel OIHW becomes HWIO, a matrix [out, in] becomes [in, out], and the first matrix
behind a flatten has its inputs reordered from CHW to HWC. The bias b of a convolution
before BatchNorm moves into the running mean m: BN(Wx + b) with m is BN(Wx) with m - b.

Strides, kinds of pooling and clipped ReLUs do not show in the shapes of weights, so the
module must be the one that was trained. BatchNorm's epsilon is 1e-5 on both sides.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.models import zoo
from experiments.models.convnext import ConvNeXt
from experiments.models.vit import ViT

# Of one torch layer: "weight", "bias", "running_mean", "running_var" -> array.
Arrays = dict[str, np.ndarray]


class Rule(NamedTuple):
    """Layers whose torch name matches `pattern` are in the flax module `inside`.

    The group of the pattern says in which one, in the order of the numbers in names; ""
    is the network itself. There a layer is named Conv_n, Dense_n, BatchNorm_n or
    LayerNorm_n. n counts the layers of its kind in the order of the rules, and then of
    the numbers. So a Dropout or ReLU in a Sequential, which shifts these numbers,
    changes nothing.
    """

    pattern: str
    inside: str = ""


_BLOCK = r"((?:(?:layer|stage|block)_?\d+|conv\d_x)\.\d+)"
_SEQUENTIAL = (Rule(r"(?:features|layer\d+)\.\d+"),)
FAMILIES: dict[type[nn.Module], tuple[Rule, ...]] = {
    zoo.ResNet: (
        Rule(r"conv1(?:\.\d+)?"),
        Rule(r"bn1"),
        Rule(rf"{_BLOCK}\.(?:(?:conv|bn)\d|residual_function\.\d+)", "Block"),
        Rule(rf"{_BLOCK}\.(?:downsample|shortcut|identity|skip)\.\d+", "Block"),
    ),
    zoo.VGG: _SEQUENTIAL,
    zoo.Plain: _SEQUENTIAL,
    zoo.Whitened: (Rule(r"whiten"), Rule(r"(stages\.\d+)\.[\w.]+", "Stage")),
    # Without a group: one Sequential of the stem, and of two layers for each module.
    zoo.MobileNet: (Rule(r"features\.\d+(?:\.\d+)*", "Separable"),),
    zoo.MobileNetV3: (
        Rule(r"stem\.\d+"),
        Rule(r"(blocks\.\d+)\.(?:conv|bn)\d", "Inverted"),
        Rule(r"(blocks\.\d+)\.squeeze", "Inverted"),
        Rule(r"(blocks\.\d+)\.excite", "Inverted"),
        Rule(r"last\.\d+"),
    ),
    ViT: (
        Rule(r"stem\.\d+|norm"),
        Rule(r"(blocks\.\d+)\.(?:norm\d|qkv)", "Transformer"),
        Rule(r"(blocks\.\d+)\.projection", "Transformer"),
        Rule(r"(blocks\.\d+)\.fc\d", "Transformer"),
    ),
    ConvNeXt: (
        Rule(r"(?:halvings|norms)\.\d+"),
        Rule(r"(stages\.\d+\.\d+)(?:\.(?:conv|norm|fc\d))?", "ConvNeXtBlock"),
    ),
}
_HEAD = Rule(r"(?:classifier|fc|linear|head)\d*(?:\.\d+)?")


def to_flax(
    model: nn.Module, weights: Mapping[str, np.ndarray], input_shape: Sequence[int]
) -> dict[str, Any]:
    """Weights of a file as {"params", "batch_stats"} of a module, in float32.

    Args:
        model: from `zoo.build`.
        weights: arrays by their names in a `state_dict`. Prefixes such as "module." and
            the arrays num_batches_tracked are ignored. Or by our own names, as
            `save_source` writes them.
        input_shape: (height, width, channels) of an image.

    Raises:
        ValueError: a weight has no place, one is missing, or a shape differs; the
            message lists them all.
    """
    initial = zoo.shapes_of(model, input_shape)
    shapes = {path: x.shape for path, x in flatten_dict(initial, sep="/").items()}
    if any(name.startswith("params/") for name in weights):  # of `save_source`
        variables = {
            path: np.float32(weights[path]) for path in shapes & weights.keys()
        }
        without_place = sorted(weights.keys() - shapes)
        return _checked(model, variables, shapes, {}, without_place)
    layers, names, without_place = _layers(weights)
    paths = _paths(layers, model)
    _check_order(paths)
    _move_biases(layers, paths, shapes)
    variables: dict[str, np.ndarray] = {}
    origin = {}  # path of a variable -> torch name
    for layer in _in_order(layers):
        for leaf, array in layers[layer].items():
            path = _variable(paths[layer], leaf) if layer in paths else ""
            if path not in shapes or path in variables:
                without_place.append(names[layer, leaf])
                continue
            variables[path] = _transposed(array, path, _flattened(model))
            origin[path] = names[layer, leaf]
    return _checked(model, variables, shapes, origin, without_place)


# ------------------------------------------------------------------------- names


def _layers(weights: Mapping[str, np.ndarray]):
    """{"layer1.0.conv1": {"weight": ...}}, the full names, and what occurs twice."""
    layers: dict[str, Arrays] = {}
    names: dict[tuple[str, str], str] = {}
    twice = []
    for name, array in weights.items():
        # DataParallel and torch.compile wrap any part; the others are a user's own.
        short = re.sub(r"(?:^|(?<=\.))(?:module|_orig_mod)\.", "", name)
        short = re.sub(r"^(?:(?:model|net|network|backbone)\.)+", "", short)
        layer, _, leaf = short.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        if (layer, leaf) in names:
            twice.append(name)
            continue
        names[layer, leaf] = name
        layers.setdefault(layer, {})[leaf] = np.asarray(array)
    return layers, names, twice


def _paths(layers: dict[str, Arrays], model: nn.Module) -> dict[str, str]:
    """Path of each layer that a rule of the model's family matches."""
    rules = FAMILIES.get(type(model))
    if rules is None:
        raise ValueError(
            f"no torch names are known for {type(model).__name__}; allowed: "
            f"{', '.join(family.__name__ for family in FAMILIES)} of experiments/models"
        )
    matches: dict[str, tuple[str, str]] = {}
    for pattern, inside in (*rules, _HEAD):
        for layer in _in_order(layers):
            if match := re.fullmatch(pattern, layer):
                matches.setdefault(layer, (inside, match[1] if match.re.groups else ""))
    blocks = _in_order({block for _, block in matches.values() if block})
    count: Counter[tuple[str, str, str]] = Counter()
    paths = {}
    for layer, (inside, block) in matches.items():
        kind = _kind(layers[layer])
        number = count[inside, block, kind]
        count[inside, block, kind] += 1
        if block:
            inside = f"{inside}_{blocks.index(block)}"
        elif inside:
            inside, number = _separable(inside, number)
        name = f"{kind}_{number}" if kind else ""
        paths[layer] = "/".join(part for part in (inside, name) if part)
    return paths


def _kind(layer: Arrays) -> str:
    """Kind of a flax module; "" of parameters that are the block's own."""
    if "running_mean" in layer:
        return "BatchNorm"
    dimensions = layer["weight"].ndim if "weight" in layer else 0
    return {4: "Conv", 2: "Dense", 1: "LayerNorm"}.get(dimensions, "")


def _separable(module: str, n: int) -> tuple[str, int]:
    """Module and number of the n-th layer: the stem, then two in each module."""
    return ("", 0) if n == 0 else (f"{module}_{(n - 1) // 2}", (n - 1) % 2)


def _in_order(names: Iterable[str]) -> list[str]:
    """In the order of their numbers, "features.2" before "features.10"."""

    def key(name: str):
        parts = re.split(r"(\d+)", name)
        return [int(p) if i % 2 else p for i, p in enumerate(parts)]

    return sorted(names, key=key)


def _variable(path: str, leaf: str) -> str:
    collection = "batch_stats" if leaf.startswith("running_") else "params"
    ours = {
        "weight": "scale" if "Norm_" in path else "kernel",
        "running_mean": "mean",
        "running_var": "var",
    }
    return f"{collection}/{path}/{ours.get(leaf, leaf)}"


def _check_order(paths: dict[str, str]) -> None:
    """Raise where a BatchNorm in a Sequential does not follow its convolution."""
    names = {path: layer for layer, path in paths.items()}
    for path, norm in names.items():
        layer = names.get(path.replace("BatchNorm_", "Conv_"))
        if "BatchNorm_" not in path or layer is None:
            continue
        (before, _, first), (behind, _, second) = (
            name.rpartition(".") for name in (layer, norm)
        )
        have_numbers = first.isdigit() and second.isdigit()
        if before == behind and have_numbers and int(second) != int(first) + 1:
            raise ValueError(
                f"BatchNorm {norm!r} does not follow the convolution {layer!r} at "
                "once: something is between them, perhaps a ReLU, so this is none "
                "of the networks in experiments/models/zoo.py. Train one of them, or "
                "write this one in JAX"
            )


# ------------------------------------------------------------------------ arrays


def _move_biases(layers: dict[str, Arrays], paths: dict[str, str], shapes) -> None:
    """Where our convolution has none, into the mean of the BatchNorm behind it."""
    at = {path: layers[layer] for layer, path in paths.items()}
    for path, layer in at.items():
        norm = at.get(path.replace("Conv_", "BatchNorm_"), {})
        has_no_bias = "Conv_" in path and f"params/{path}/bias" not in shapes
        if has_no_bias and "bias" in layer and "running_mean" in norm:
            mean = norm["running_mean"].astype(np.float32)
            norm["running_mean"] = mean - layer.pop("bias").astype(np.float32)


def _flattened(model: nn.Module) -> int | None:
    """Channels of what is flattened before the first dense layer."""
    if isinstance(model, zoo.VGG):
        return model.stages[-1][-1]
    return model.convolutions[-1][0] if isinstance(model, zoo.Plain) else None


def _transposed(array: np.ndarray, path: str, channels: int | None) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array  # `_checked` refuses it: integers need a scale that the file lacks
    array = array.astype(np.float32)
    if not path.endswith("/kernel"):
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    first = path == "params/Dense_0/kernel" and array.ndim == 2
    if first and channels and array.shape[1] % channels == 0:
        array = array.reshape(len(array), channels, -1).transpose(0, 2, 1)
        array = array.reshape(len(array), -1)
    return array.T


def _checked(model, variables, shapes, origin, without_place) -> dict[str, Any]:
    """The variables as a tree, if they are those of the model.

    Args:
        variables: path -> array.
        shapes: path -> shape, as the model needs it.
        origin: path -> name in the file, if that is another one.
        without_place: names in the file that are of no variable.
    """
    without_weight = [path for path in shapes if path not in variables]
    of_another_shape = [
        f"{origin.get(path, path)}: {path} would be {array.dtype} {array.shape}, "
        f"but is float32 {shapes[path]}"
        for path, array in variables.items()
        if array.shape != shapes[path] or array.dtype != np.float32
    ]
    parts = {
        "weights without a place": textwrap.wrap(", ".join(without_place), 84),
        "variables without a weight": textwrap.wrap(", ".join(without_weight), 84),
        "weights of another shape or type": of_another_shape,
    }
    if not any(parts.values()):
        tree = unflatten_dict({n: jnp.asarray(variables[n]) for n in shapes}, sep="/")
        return {"params": tree["params"], "batch_stats": tree.get("batch_stats", {})}
    lines = [f"these weights do not fit this {type(model).__name__}:"]
    for title, names in parts.items():
        if names:
            lines += [f"  {title}:", *(f"    {line}" for line in names)]
    raise ValueError(
        "\n".join(lines)
        + "\nName the model they were trained as (experiments/models/zoo.py), and its "
        "num_classes, input_shape and norm; or rename or drop arrays in the file"
    )
