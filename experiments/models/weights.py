"""The weights of a source network: a file NAME.safetensors as variables in flax.

The file has arrays under flax's paths, "params/Conv_0/kernel", or under the names of
the PyTorch modules that the networks of ``experiments/sources`` were trained as,
"layer1.0.conv1.weight". `snnjax.torch.function` reads any other PyTorch module.

Arrays of PyTorch: a kernel OIHW becomes HWIO, a matrix [out, in] becomes [in, out], and
a matrix behind a flatten has its inputs reordered from CHW to HWC.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  comes with JAX; it adds bfloat16 to NumPy
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.models import zoo
from experiments.models.convnext import ConvNeXt
from experiments.models.vit import ViT

SUFFIX = ".safetensors"

# Of one PyTorch layer: "weight", "bias", "running_mean", "running_var" -> array.
Arrays = dict[str, np.ndarray]


class Rule(NamedTuple):
    """PyTorch layers whose name matches `pattern` are in the flax module `module`.

    The group of the pattern is the block, and there is one module for each block:
    Block_0, Block_1, in the order of the numbers in names. Without a group it is one
    module, or as many as have this number of `convolutions` each. "" is the network.
    """

    pattern: str
    module: str = ""
    convolutions: int | None = None


# In a module, layers are numbered by kind (Conv_0, Conv_1, BatchNorm_0): first in the
# order of the rules, then in that of the numbers in names. Other parts of a Sequential,
# such as a ReLU, have no arrays, so they change nothing.
RULES: dict[type[nn.Module], tuple[Rule, ...]] = {
    zoo.ResNet: (
        Rule(r"conv1|bn1"),
        Rule(r"(layer\d+\.\d+)\.(?:conv|bn)\d", "Block"),
        Rule(r"(layer\d+\.\d+)\.downsample\.\d+", "Block"),
        Rule(r"fc"),
    ),
    zoo.VGG: (Rule(r"features\.\d+"), Rule(r"classifier")),
    zoo.Whitened: (
        Rule(r"whiten"),
        Rule(r"(stages\.\d+)\.[\w.]+", "Stage"),
        Rule(r"head"),
    ),
    zoo.MobileNet: (
        Rule(r"features\.[01]"),  # the stem
        Rule(r"features\.\d+", "Separable", convolutions=2),
        Rule(r"classifier"),
    ),
    zoo.MobileNetV3: (
        Rule(r"stem\.\d+"),
        Rule(r"(blocks\.\d+)\.(?:conv|bn)\d", "Inverted"),
        Rule(r"(blocks\.\d+)\.squeeze", "Inverted"),
        Rule(r"(blocks\.\d+)\.excite", "Inverted"),
        Rule(r"last\.\d+"),
        Rule(r"head"),
    ),
    ViT: (
        Rule(r"stem\.\d+|norm"),
        Rule(r"(blocks\.\d+)\.(?:norm\d|qkv)", "Transformer"),
        Rule(r"(blocks\.\d+)\.projection", "Transformer"),
        Rule(r"(blocks\.\d+)\.fc\d", "Transformer"),
        Rule(r"head"),
    ),
    ConvNeXt: (
        Rule(r"(?:halvings|norms)\.\d+"),
        Rule(r"(stages\.\d+\.\d+)(?:\.(?:conv|norm|fc\d))?", "ConvNeXtBlock"),
        Rule(r"head"),
    ),
}


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of a .safetensors file by their names.

    Pickles, which torch.save writes, are refused: reading one runs whatever code is in
    it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path} of weights; give a {SUFFIX} file, or write one by "
            "experiments.train_ann or experiments.sources.pretrained"
        )
    if path.suffix != SUFFIX:
        raise ValueError(
            f"{path} is no {SUFFIX} file of a source network, and pickles are not "
            "read. A network of PyTorch is converted in a program of yours: "
            "snnjax.torch.function(module, images) is its function and weights"
        )
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise ImportError(
            '.safetensors files need safetensors: pip install "snnjax[experiments]"'
        ) from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}); fetch it again"
        ) from None


def variables_of(
    model: nn.Module, weights: Mapping[str, np.ndarray], input_shape: Sequence[int]
) -> dict[str, Any]:
    """Weights of a file as {"params", "batch_stats"} of a module, in float32.

    Args:
        model: from `zoo.build`.
        weights: arrays by their names in the file.
        input_shape: (height, width, channels) of an image.

    Raises:
        ValueError: a weight has no place, one is missing, or a shape differs; the
            message lists them all.
    """
    initial = flatten_dict(zoo.shapes_of(model, input_shape), sep="/")
    shapes = {path: variable.shape for path, variable in initial.items()}
    if not any(name.startswith("params/") for name in weights):
        weights = _flax_weights(model, weights)
    # Integers would need a scale, which the file lacks.
    misfits = []
    for path in shapes.keys() & weights.keys():
        array = weights[path]
        if array.shape != shapes[path] or not jnp.issubdtype(array.dtype, jnp.floating):
            misfits.append(f"{path} is {array.dtype}{list(array.shape)}")
    problems = {
        "weights without a place": sorted(weights.keys() - shapes.keys()),
        "variables without a weight": sorted(shapes.keys() - weights.keys()),
        "weights of another shape or type": sorted(misfits),
    }
    if any(problems.values()):
        lines = [f"these weights do not fit this {type(model).__name__}:"]
        for title, names in problems.items():
            if names:
                lines.append(f"  {title}:")
                lines += textwrap.wrap(
                    ", ".join(names),
                    88,
                    initial_indent="    ",
                    subsequent_indent="    ",
                )
        lines.append(
            "Name the model that they were trained as, its num_classes and norm. Other "
            "networks of PyTorch are converted by snnjax.torch.function"
        )
        raise ValueError("\n".join(lines))
    arrays = {path: jnp.asarray(weights[path], jnp.float32) for path in shapes}
    variables = unflatten_dict(arrays, sep="/")
    return {
        "params": variables["params"],
        "batch_stats": variables.get("batch_stats", {}),
    }


# -------------------------------------------------------- the names of PyTorch modules


def _flax_weights(
    model: nn.Module, weights: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch module under flax's paths, as flax has them.

    An array without a path keeps its name.
    """
    layers: dict[str, Arrays] = {}
    for name, array in weights.items():
        layer, _, leaf = name.rpartition(".")
        layers.setdefault(layer, {})[leaf] = array
    paths = _flax_paths(layers, RULES.get(type(model), ()))
    flattened = model.stages[-1][-1] if isinstance(model, zoo.VGG) else None
    result = {}
    for layer, arrays in layers.items():
        for leaf, array in arrays.items():
            if layer not in paths:
                result[f"{layer}.{leaf}"] = array
                continue
            path = _variable_path(paths[layer], leaf)
            if path == "params/Dense_0/kernel" and flattened is not None:
                array = _channels_last(array, flattened)
            if path.endswith("/kernel"):
                # HWIO or [in, out].
                array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            result[path] = array
    return result


def _flax_paths(layers: dict[str, Arrays], rules: Sequence[Rule]) -> dict[str, str]:
    """The flax path of each PyTorch layer that a rule matches, such as Block_0/Conv_1.

    Parameters of a block itself have the path of the block.
    """
    matches = _rules_and_blocks(layers, rules)
    blocks = {block for _, block in matches.values() if block is not None}
    block_numbers = {name: i for i, name in enumerate(sorted(blocks, key=_by_numbers))}
    # flax counts the layers of a kind, such as Conv, within each module.
    counts: Counter[tuple[str, str]] = Counter()
    paths = {}
    for layer, (rule, block) in matches.items():
        module = rule.module
        if block is not None:
            module = f"{module}_{block_numbers[block]}"
        kind = _kind(layers[layer])
        number = counts[module, kind]
        counts[module, kind] += 1
        if rule.convolutions is not None:
            module_number, number = divmod(number, rule.convolutions)
            module = f"{module}_{module_number}"
        name = f"{kind}_{number}" if kind else ""
        paths[layer] = "/".join(part for part in (module, name) if part)
    return paths


def _rules_and_blocks(
    layers: Collection[str], rules: Sequence[Rule]
) -> dict[str, tuple[Rule, str | None]]:
    """PyTorch layer -> the first rule that matches it, and the name of its block.

    The block is None where the pattern of the rule has no group. Layers are in the
    order of the rules, and those of a rule in the order of their numbers.
    """
    matches: dict[str, tuple[Rule, str | None]] = {}
    for rule in rules:
        for layer in sorted(layers, key=_by_numbers):
            match = re.fullmatch(rule.pattern, layer)
            if match is not None and layer not in matches:
                block = match[1] if match.re.groups else None
                matches[layer] = (rule, block)
    return matches


def _by_numbers(name: str) -> list[int | str]:
    """A key that sorts "features.2" before "features.10"."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdecimal() else part for part in parts]


def _kind(layer: Arrays) -> str:
    """Kind of a flax module; "" of parameters that are the block's own."""
    if "running_mean" in layer:
        return "BatchNorm"
    if "weight" not in layer:
        return ""
    return {4: "Conv", 2: "Dense", 1: "LayerNorm"}[layer["weight"].ndim]


def _variable_path(module: str, leaf: str) -> str:
    """The path of an array of a PyTorch layer that is this flax module."""
    if leaf in ("running_mean", "running_var"):
        return f"batch_stats/{module}/{leaf.removeprefix('running_')}"
    if leaf == "weight":
        leaf = "scale" if "Norm_" in module else "kernel"
    return f"params/{module}/{leaf}"


def _channels_last(matrix: np.ndarray, channels: int) -> np.ndarray:
    """[out, in] with the inputs in the order HWC, which were in the order CHW."""
    pixels = matrix.reshape(len(matrix), channels, -1)
    return pixels.transpose(0, 2, 1).reshape(matrix.shape)
