"""Training of the published source networks, in PyTorch.

``python -m experiments.sources.train resnet20 --data_dir DIR`` writes the weights as
safetensors, under the names that PyTorch gives them, and a card beside them.

PyTorch is used because most trained networks come from it, and because it is faster on
a CPU: 128 images of whitened_vgg8 take 0.57 s of one core (0.89 s in float32), and 3.2
s in `experiments.train_ann`, which trains the same networks in JAX. Needs the extra
`torch`.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.data import Dataset, load
from experiments.running import run, writable

try:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file

    from experiments.sources.muon import Muon
    from experiments.sources.networks import CLIP, NETWORKS
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}; needed: pip install -e '.[experiments,torch]'")


ADAMW = ("vit", "convnext")  # SGD does not train them well
WHITENED = ("whitened_vgg8", "whitened_resnet9")  # trained as Jordan does
# The largest: Muon needs fewer epochs. With four, and a peak of 0.1, it had 88.6 % of
# 5000 images held back, and SGD 86.9.
MUON = ("whitened_resnet9",)


def train(name: str, data: Dataset, epochs: int, seed: int, checkpoint: Path):
    """Trains `name` on CIFAR-10.

    Batches of 128, a one-cycle learning rate, crops of images padded by 4 pixels,
    mirrored at random. SGD with Nesterov momentum 0.9, weight decay 5e-4 and peak 0.2;
    for `ADAMW` networks AdamW with weight decay 0.05 and peak 2e-3. `WHITENED` networks
    follow Jordan (2024, arXiv:2404.00498): momentum 0.85 and weight decay 1e-3; biases
    of norms have 16 times the rate and a 16th of the decay. Labels are smoothed by 0.2,
    images are mirrored in every other epoch, and 8x8 pixels are cut out (DeVries and
    Taylor 2017). `MUON` networks have batches of 512 and `Muon` with peak 0.04 for the
    kernels of convolutions. Their other parameters have peak 0.05 and weight decay
    2e-2.

    Args:
        checkpoint: file of the state after the last epoch. If it exists, the training
            goes on from there, with the same random numbers.

    Returns:
        The network, its test accuracy, and the seconds of all epochs.
    """
    torch.manual_seed(seed)
    network = NETWORKS[name]().to(memory_format=torch.channels_last)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)

    def normalized(images):
        x = (torch.from_numpy(images).float() - mean) / std
        return x.permute(0, 3, 1, 2)  # channels first, stored last

    def accuracy():
        network.eval()
        with torch.no_grad():
            hits = [
                (network(normalized(data.test_images[i : i + 500])).argmax(1).numpy())
                == data.test_labels[i : i + 500]
                for i in range(0, len(data.test_labels), 500)
            ]
        network.train()
        return float(np.concatenate(hits).mean())

    images = normalized(data.train_images).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(data.train_labels).long()
    smoothing, first_flips = 0.0, None
    if name in WHITENED:
        network.fit_whitening(images[:5000])
        smoothing, first_flips = 0.2, torch.rand(len(images)) < 0.5
    batch_size = 512 if name in MUON else 128
    steps = len(images) // batch_size
    optimizers = optimizers_of(name, network)
    rates = [one_cycle(optimizer, epochs * steps) for optimizer in optimizers]
    total, last_epoch = 0.0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        network.load_state_dict(state["network"])
        for part, values in zip(optimizers + rates, state["parts"], strict=True):
            part.load_state_dict(values)
        torch.set_rng_state(state["random"])
        total, last_epoch = state["seconds"], state["epoch"]
        first_flips = state["flips"]
    for epoch in range(last_epoch + 1, epochs + 1):
        start, losses = time.perf_counter(), []
        order = torch.randperm(len(images))[: steps * batch_size]
        for batch in order.view(steps, batch_size):
            if first_flips is None:
                x = augmented(images[batch])
            else:
                flips = first_flips[batch] ^ bool(epoch % 2)
                x = cut_out(augmented(images[batch], flips))
            with torch.autocast("cpu", torch.bfloat16):
                output = network(x)
            loss = F.cross_entropy(
                output.float(), labels[batch], label_smoothing=smoothing
            )
            network.zero_grad()
            loss.backward()
            for part in optimizers + rates:
                part.step()
            losses.append(loss.item())
        seconds = time.perf_counter() - start
        total += seconds
        with torch.autocast("cpu", torch.bfloat16):  # a third of float32's time
            test_accuracy = accuracy()
        print(
            f"{name} epoch {epoch} of {epochs}  loss {np.mean(losses):.3f}  "
            f"test {test_accuracy:.2%}  {seconds:.0f} s",
            flush=True,
        )
        state = {
            "network": network.state_dict(),
            "parts": [part.state_dict() for part in optimizers + rates],
            "random": torch.get_rng_state(),
            "seconds": total,
            "epoch": epoch,
            "flips": first_flips,
        }
        torch.save(state, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)  # a kill leaves a whole one
    if name in WHITENED:
        network.publish()
        for weights in network.parameters():
            if weights.ndim > 1:  # which the file has in float16
                weights.data = weights.data.half().float()
    return network, accuracy(), total


def optimizers_of(name: str, network: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """The optimizers of a network, each group with its peak rate."""
    if name in ADAMW:
        return [torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)]
    if name in WHITENED:
        return whitened_optimizers(network, name in MUON)
    return [
        torch.optim.SGD(
            network.parameters(), 0.2, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
    ]


def whitened_optimizers(
    network: torch.nn.Module, muon: bool
) -> list[torch.optim.Optimizer]:
    """SGD, with a rate for biases of norms of its own; `muon`: Muon for the kernels."""
    norms = (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    biases = [norm.bias for norm in norms]
    weights = [w for w in network.parameters() if w.requires_grad]
    kernels = [w for w in weights if w.ndim == 4]
    elsewhere = {id(w) for w in (biases + kernels if muon else biases)}
    others = [w for w in weights if id(w) not in elsewhere]
    peak, decay = (0.05, 2e-2) if muon else (0.2, 1e-3)
    ratio = 16
    groups = [
        {"params": others, "weight_decay": decay},
        {"params": biases, "lr": peak * ratio, "weight_decay": decay / ratio},
    ]
    sgd = torch.optim.SGD(groups, peak, momentum=0.85, nesterov=True)
    return [sgd, Muon(kernels, 0.04)] if muon else [sgd]


def one_cycle(optimizer: torch.optim.Optimizer, steps: int):
    """Rates that rise to those of the groups in 15 % of the steps, then fall to 0."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peaks, steps, pct_start=0.15, cycle_momentum=False
    )


def augmented(
    images: torch.Tensor, flips: torch.Tensor | None = None, padding: int = 4
) -> torch.Tensor:
    """Crops at random places of the padded images, half of them mirrored.

    `flips` [batch] says which; at random by default.
    """
    batch, _, height, width = images.shape
    larger = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    corner = torch.randint(0, 2 * padding + 1, (2, batch, 1))
    rows = corner[0] + torch.arange(height)
    columns = corner[1] + torch.arange(width)
    if flips is None:
        flips = torch.rand(batch) < 0.5
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    index = torch.arange(batch)[:, None, None]
    return larger[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(images: torch.Tensor, size: int = 8) -> torch.Tensor:
    """A square at a random place of each image becomes 0, the mean."""
    batch, _, height, width = images.shape
    top, left = (torch.randint(0, n - size + 1, (batch, 1)) for n in (height, width))
    rows, columns = torch.arange(height), torch.arange(width)
    rows = (rows >= top) & (rows < top + size)
    columns = (columns >= left) & (columns < left + size)
    return images.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data_dir")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args(argv)
    writable(str(options.out), "--out")
    weights = options.out / f"{options.network}.safetensors"
    data = load("cifar10", options.data_dir)
    run_name = f"{options.network}_{options.epochs}_{options.seed}.checkpoint"
    checkpoint = options.out / run_name
    network, accuracy, seconds = train(
        options.network, data, options.epochs, options.seed, checkpoint
    )
    arrays = {n: w.contiguous() for n, w in network.state_dict().items() if w.ndim}
    if options.network in WHITENED:
        arrays = {n: w.half() if w.ndim > 1 else w for n, w in arrays.items()}
    save_file(arrays, weights)
    card = {
        "model": options.network,
        "clip": CLIP if options.network == "resnet20_clipped" else None,
        **data.facts(),
        "test_accuracy": accuracy,
        "epochs": options.epochs,
        "seconds": round(seconds),
        "seed": options.seed,
        "command": f"python -m experiments.sources.train {options.network}"
        f" --epochs {options.epochs} --seed {options.seed}",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "versions": {"torch": torch.__version__},
    }
    weights.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    checkpoint.unlink()
    print(f"{weights}: {accuracy:.2%} of the test images")


if __name__ == "__main__":
    run(main)
