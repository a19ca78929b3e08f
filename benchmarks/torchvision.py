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
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks import timing


class Choice(NamedTuple):
    """Pixels of an image, and what the network needs to be told."""

    pixels: int = 64
    options: Mapping[str, Any] = {}  # noqa: RUF012


NETWORKS = {
    "alexnet": Choice(),
    "vgg11": Choice(pixels=32),
    "vgg11_bn": Choice(pixels=32),
    "squeezenet1_0": Choice(),
    "squeezenet1_1": Choice(),
    "resnet18": Choice(),
    "resnet50": Choice(),
    "resnext50_32x4d": Choice(),
    "wide_resnet50_2": Choice(),
    "densenet121": Choice(),
    "googlenet": Choice(options={"init_weights": False, "aux_logits": False}),
    "inception_v3": Choice(pixels=96, options={"init_weights": False}),
    "shufflenet_v2_x0_5": Choice(),
    "mnasnet0_5": Choice(),
    "regnet_x_400mf": Choice(),
    "mobilenet_v2": Choice(),
    "mobilenet_v3_small": Choice(),
    "regnet_y_400mf": Choice(),
    "efficientnet_b0": Choice(),
    "efficientnet_v2_s": Choice(),
    "convnext_tiny": Choice(),
    "vit_b_32": Choice(options={"image_size": 64}),
    "swin_t": Choice(),
    "swin_v2_t": Choice(),
    "maxvit_t": Choice(pixels=224),  # its windows have 7 x 7 pixels everywhere
}
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
    generator = np.random.default_rng(0)
    images = generator.normal(size=(32, 3, pixels, pixels)).astype(np.float32)
    return module, images


def table_row(name: str, converts: bool) -> dict[str, Any]:
    """What `COLUMNS` has of a network; ``converts``: also the error of an SNN."""
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
    run = jax.jit(fn)
    with torch.no_grad():
        logits = module(torch.from_numpy(images[:2])).numpy()
    difference = np.abs(np.asarray(run(params, images[:2])) - logits).max()
    kinds = Counter(site.kind for site in sites)
    operators = [f"{kind} {n}" for kind, n in kinds.items() if kind not in COUNTED]
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
        snn = snnjax.convert(
            fn,
            params,
            images,
            steps=4,
            code=snnjax.codes.radix(),
            recipe=snnjax.light(),
        )
        ann = run(params, images[:8])
        outputs = jax.jit(snnjax.spiking(fn))(snn, images[:8]).mean(0)
        error = np.linalg.norm(outputs - ann) / np.linalg.norm(ann)
        row["error of the SNN"] = float(error)
    return row


COLUMNS = (
    "million parameters",
    "converts",
    "ReLUs",
    "max-pools",
    "operators",
    "encoders",
    "error of fn",
    "error of the SNN",
)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command: a result with a row for each network, which is printed too."""
    parser = timing.parser(__doc__)
    timing.only_option(parser)
    options = parser.parse_args(arguments)
    timing.check_only(parser, options.only, NETWORKS)
    result = timing.new_result(__doc__, ("jax", "torch", "torchvision", "torchax"))
    sides = timing.continued(result, options.out)["sides"]
    for name in NETWORKS:
        if name not in sides and timing.is_selected(name, options.only):
            print(f"tracing {name}", file=sys.stderr, flush=True)
            converts = name in CONVERTED and not options.quick
            sides[name] = table_row(name, converts)
    largest = max(side.get("error of fn", 0) for side in sides.values())
    result["targets"] = [timing.target("error of fn", largest, at_most=1e-5)]
    columns = {name: name for name in COLUMNS}
    timing.report(result, timing.table_of("network", columns, sides), options.out)
    return result


if __name__ == "__main__":
    main()
