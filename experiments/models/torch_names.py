"""PyTorch weights of a source network as variables of `experiments.models`.

A kernel OIHW becomes HWIO, a matrix [out, in] becomes [in, out], and the first matrix
behind a flatten has its inputs reordered from CHW to HWC. The bias b of a convolution
before BatchNorm moves into the running mean m: BN(Wx + b) with m is BN(Wx) with m - b.

Strides, kinds of pooling and clipped ReLUs do not show in the shapes of weights, so the
module must be the one that was trained. BatchNorm's epsilon is 1e-5 on both sides.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """A rule: layers whose torch name matches `pattern` have the path `path` in flax.

    In `path`, {kind} is Conv, BatchNorm or Dense; {n} counts the layers of that kind
    under this rule; {block} counts the matches of the pattern's group. Both count in
    the order of the numbers in the names. So a Dropout or ReLU in a Sequential, which
    shifts these numbers, changes nothing.
    """

    pattern: str
    path: str | Callable[[int], str]  # or a function of n that gives it


HEAD = Rule(r"(?:classifier|fc|linear|head)\d*(?:\.\d+)?", "Dense_{n}")
BLOCK = r"((?:(?:layer|stage|block)_?\d+|conv\d_x)\.\d+)"


def _inside(block: str, module: str, names: Mapping[str, str]) -> list[Rule]:
    """Rules for the layers inside of a block, which is such a module in flax."""
    return [
        Rule(rf"{block}\.(?:{name})", f"{module}_{{block}}/{path}")
        for name, path in names.items()
    ]


def rules(model: nn.Module) -> Sequence[Rule]:
    """The table of torch names for the family of `model`; the first match counts."""
    if isinstance(model, zoo.ResNet):
        names = {r"(?:conv|bn)\d|residual_function\.\d+": "{kind}_{n}"}
        names |= {r"(?:downsample|shortcut|identity|skip)\.\d+": "{kind}_2"}
        return (
            Rule(r"conv1(?:\.\d+)?", "{kind}_{n}"),
            Rule(r"bn1", f"BatchNorm_{len(model.stem) - 1}"),
            *_inside(BLOCK, "Block", names),
            HEAD,
        )
    if isinstance(model, zoo.VGG | zoo.Plain):
        return (Rule(r"(?:features|layer\d+)\.\d+", "{kind}_{n}"), HEAD)
    if isinstance(model, zoo.Whitened):
        return (
            Rule(r"whiten", "Conv_{n}"),
            Rule(r"(stages\.\d+)\.[\w.]+", "Stage_{block}/{kind}_{n}"),
            HEAD,
        )
    if isinstance(model, zoo.MobileNet):
        return (Rule(r"features\.\d+(?:\.\d+)*", _separable), HEAD)
    if isinstance(model, zoo.MobileNetV3):
        names = {"squeeze": "Dense_0", "excite": "Dense_1"}
        names |= {r"(?:conv|bn)\d": "{kind}_{n}"}
        return (
            Rule(r"stem\.\d+", "{kind}_0"),
            *_inside(r"(blocks\.\d+)", "Inverted", names),
            Rule(r"last\.\d+", "{kind}_1"),
            HEAD,
        )
    if isinstance(model, ViT):
        names = {r"norm\d": "LayerNorm_{n}", "qkv": "Dense_0", "projection": "Dense_1"}
        names |= {"fc1": "Dense_2", "fc2": "Dense_3"}
        return (
            Rule(r"stem\.\d+", "{kind}_{n}"),
            *_inside(r"(blocks\.\d+)", "Transformer", names),
            Rule(r"norm", "LayerNorm_0"),
            HEAD,
        )
    if isinstance(model, ConvNeXt):
        names = {"conv": "Conv_0", "norm": "LayerNorm_0", r"fc\d": "Dense_{n}"}
        return (
            Rule(r"halvings\.\d+", "Conv_{n}"),
            Rule(r"norms\.\d+", "LayerNorm_{n}"),
            Rule(r"(stages\.\d+\.\d+)", "ConvNeXtBlock_{block}"),
            *_inside(r"(stages\.\d+\.\d+)", "ConvNeXtBlock", names),
            HEAD,
        )
    raise ValueError(
        f"no torch names are known for {type(model).__name__}; allowed: ResNet, VGG, "
        "Plain, Whitened, MobileNet, MobileNetV3, ViT and ConvNeXt of "
        "experiments/models"
    )


def to_flax(
    model: nn.Module, weights: Mapping[str, np.ndarray], input_shape: Sequence[int]
) -> dict[str, Any]:
    """Weights of a file as the variables of a module, in float32.

    Args:
        model: from `zoo.build`.
        weights: arrays by their names in a `state_dict`. Prefixes such as "module." and
            the arrays num_batches_tracked are ignored. Or by our own names, as
            `save_source` writes them.
        input_shape: (height, width, channels) of an image.

    Returns:
        {"params": ..., "batch_stats": ...} for `model.apply`.

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
    layers, names, twice = _layers(weights)
    paths = _paths(layers, rules(model))
    _check_order(paths)
    _move_biases(layers, paths, shapes)
    without_place = list(twice)
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


def _paths(layers: dict[str, Arrays], table: Sequence[Rule]) -> dict[str, str]:
    """Path of each layer that a rule matches."""
    matches: dict[str, tuple[Rule, str]] = {}
    for layer in _in_order(layers):
        for rule in table:
            if match := re.fullmatch(rule.pattern, layer):
                matches[layer] = rule, match[1] if match.re.groups else ""
                break
    blocks = _in_order({block for _, block in matches.values() if block})
    count: dict[Any, int] = {}
    paths = {}
    for layer, (rule, block) in matches.items():
        kind = _kind(layers[layer])
        n = count.get((rule, block, kind), 0)
        count[rule, block, kind] = n + 1
        path = rule.path if isinstance(rule.path, str) else rule.path(n)
        number = blocks.index(block) if block else 0
        paths[layer] = path.format(kind=kind, n=n, block=number)
    return paths


def _kind(layer: Arrays) -> str:
    dimensions = layer["weight"].ndim if "weight" in layer else 1
    return {4: "Conv", 2: "Dense"}.get(dimensions, "BatchNorm")


def _separable(n: int) -> str:
    """One flat Sequential: the stem, then depthwise and pointwise by turns."""
    return "{kind}_0" if n == 0 else f"Separable_{(n - 1) // 2}/{{kind}}_{(n - 1) % 2}"


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
