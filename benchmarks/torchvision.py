"""Which classification networks of torchvision convert, as they are?

    python -m benchmarks.torchvision --out benchmarks/results/torchvision.json

One network of each family, the smallest, with random weights and images. The table has
its sites, the error of the function in JAX (the largest difference from PyTorch's
logits, relative to the largest logit), and for some networks the error of a spiking
one: |mean output - ANN| / |ANN|, with a radix code at T = 4, by `snnjax.light()`.
Networks that the file has already are not run again, so a run can be continued.
"""

import sys
from collections import Counter
from typing import Any

import numpy as np

from benchmarks import timing

# Name -> pixels of an image, and what the network needs to be told.
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = dict.fromkeys(
    "alexnet vgg11 vgg11_bn squeezenet1_0 squeezenet1_1 resnet18 resnet50 "
    "resnext50_32x4d wide_resnet50_2 densenet121 googlenet inception_v3 "
    "shufflenet_v2_x0_5 mnasnet0_5 regnet_x_400mf mobilenet_v2 mobilenet_v3_small "
    "regnet_y_400mf efficientnet_b0 efficientnet_v2_s convnext_tiny vit_b_32 swin_t "
    "swin_v2_t maxvit_t".split(),
    (64, {}),
)
NETWORKS["vgg11"] = NETWORKS["vgg11_bn"] = 32, {}
NETWORKS["googlenet"] = 64, {"init_weights": False, "aux_logits": False}
NETWORKS["inception_v3"] = 96, {"init_weights": False}
NETWORKS["vit_b_32"] = 64, {"image_size": 64}
NETWORKS["maxvit_t"] = 224, {}  # its windows have 7 x 7 pixels at all resolutions
CONVERTED = ("squeezenet1_1", "resnet18", "mobilenet_v2", "vit_b_32")
COUNTED = {"relu", "clipped relu", "max-pool", "encoder"}  # in columns of their own


def network(name: str) -> tuple[Any, np.ndarray]:
    """A module in evaluation mode, in which every number is random, and images."""
    import torch
    import torchvision

    pixels, options = NETWORKS[name]
    torch.manual_seed(0)
    module = torchvision.models.get_model(name, num_classes=10, **options).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter)
            else:
                parameter += 0.1 * torch.randn_like(parameter)
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer += 0.1 * torch.rand_like(buffer)
    draw = np.random.default_rng(0)
    return module, draw.normal(size=(32, 3, pixels, pixels)).astype(np.float32)


def row_of(name: str, converts: bool) -> dict[str, Any]:
    import jax
    import torch

    import snnjax

    module, images = network(name)
    millions = sum(t.numel() for t in module.state_dict().values()) / 1e6
    try:
        fn, params = snnjax.torch.function(module, images[:2])
    except ValueError:  # its outputs differ from PyTorch's
        return {"million parameters": millions, "converts": "refused"}
    try:
        sites = snnjax.sites(fn, params, images)
    except snnjax.ConversionError as error:
        reason = error.problems[0].reason
        return {"million parameters": millions, "converts": f"no: {reason}"}
    kinds = Counter(site.kind for site in sites)
    operators = [f"{kind} {n}" for kind, n in kinds.items() if kind not in COUNTED]
    some = images[:2]
    with torch.no_grad():
        logits = module(torch.from_numpy(some)).numpy()
    difference = np.abs(np.asarray(jax.jit(fn)(params, some)) - logits).max()
    row = {
        "million parameters": millions,
        "converts": sites.grade,
        "ReLUs": kinds["relu"] + kinds["clipped relu"],
        "max-pools": kinds["max-pool"],
        "operators": ", ".join(operators),
        "encoders": kinds["encoder"],
        "error of fn": float(difference / np.abs(logits).max()),
    }
    if converts:
        code, recipe = snnjax.codes.radix(), snnjax.light()
        snn = snnjax.convert(fn, params, images, steps=4, code=code, recipe=recipe)
        ann = jax.jit(fn)(params, images[:8])
        outputs = jax.jit(snnjax.spiking(fn))(snn, images[:8]).mean(0)
        error = np.linalg.norm(outputs - ann) / np.linalg.norm(ann)
        row["error of the SNN"] = float(error)
    return row


COLUMNS = ("million parameters", "converts", "ReLUs", "max-pools", "operators")
COLUMNS += ("encoders", "error of fn", "error of the SNN")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = timing.parser(__doc__)
    timing.only_option(parser)
    options = parser.parse_args(arguments)
    result = timing.new_result(__doc__, ("jax", "torch", "torchvision", "torchax"))
    sides = timing.continued(result, options.out)["sides"]
    for name in NETWORKS:
        if name not in sides and timing.is_selected(name, options.only):
            print(f"tracing {name}", file=sys.stderr, flush=True)
            converts = name in CONVERTED and not options.quick
            sides[name] = row_of(name, converts)
    largest = max(side.get("error of fn", 0) for side in sides.values())
    result["targets"] = [timing.target("error of fn", largest, at_most=1e-5)]
    columns = {name: name for name in COLUMNS}
    timing.report(result, timing.table_of("network", columns, sides), options.out)
    return result


if __name__ == "__main__":
    main()
