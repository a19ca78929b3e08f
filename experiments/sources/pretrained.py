"""A network that others trained: ResNet-56 (He et al. 2016) by Y. Idelbayev (2018).

``python -m experiments.sources.pretrained resnet56-4bfd9763.th`` writes the weights as
safetensors, with a card beside them, for ``experiments.convert --preset
cifar10_resnet56``. The file is in pretrained_models of
github.com/akamaster/pytorch_resnet_cifar10 (two-clause BSD license), and not in this
repository. Needs the extra `torch`.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.running import run, writable

try:
    import torch
    from safetensors.torch import save_file
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}; needed: pip install -e '.[experiments,torch]'")

FILE = "resnet56-4bfd9763.th"
SHA256 = "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"
CARD = {
    "model": "resnet56",
    "dataset": "cifar10",
    "num_classes": 10,
    "input_shape": [32, 32, 3],
    # He normalized images by the statistics of ImageNet.
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "test_accuracy": 0.9339,  # as he states it
    "command": f"python -m experiments.sources.pretrained {FILE}",
    "notes": "trained by Yerlan Idelbayev, github.com/akamaster/pytorch_resnet_cifar10",
}


def read(file: Path) -> dict[str, torch.Tensor]:
    """The arrays of the published file, by the names of our ResNets."""
    if not file.is_file():
        raise ValueError(
            f"no file {file}; download {FILE} from pretrained_models of "
            "github.com/akamaster/pytorch_resnet_cifar10"
        )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{file} is not the published {FILE}: its sha256 is {digest}, not "
            f"{SHA256}; download it again"
        )
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    arrays = {}
    for name, weights in state.items():
        if not name.endswith("num_batches_tracked"):
            renamed = name.removeprefix("module.").replace("linear.", "fc.")
            arrays[renamed] = weights.clone()
    return arrays


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: write resnet56.safetensors and resnet56.json."""
    parser = argparse.ArgumentParser(prog="pretrained", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/sources"))
    options = parser.parse_args(argv)
    arrays = read(options.file.expanduser())
    weights = writable(options.out, "--out") / "resnet56.safetensors"
    save_file(arrays, weights)
    card = CARD | {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    weights.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{weights} and its card {weights.with_suffix('.json').name}")


if __name__ == "__main__":
    run(main, compiles=False)
