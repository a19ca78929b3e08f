"""Training of the published source networks, in PyTorch.

``python -m experiments.sources.train resnet20 --data_dir DIR`` writes the weights as
safetensors, under the names that PyTorch gives them, and a card beside them.

PyTorch, because most trained networks come from it, and because it trains several times
faster than XLA on CPU. `experiments.train_ann` trains the same networks in JAX. Needs
the extra `torch`.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.data import load
from experiments.running.command_line import run

try:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file
    from torch import nn
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {missing}; needed: pip install -e '.[experiments,torch]'")


class Block(nn.Module):
    """Basic block with He et al.'s shortcut A: every other pixel, new channels zero."""

    def __init__(self, inputs: int, channels: int, stride: int, relu):
        super().__init__()
        self.conv1 = conv3x3(inputs, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.added, self.relu = stride, channels - inputs, relu

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = x[:, :, :: self.stride, :: self.stride]
            before = self.added // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.added - before))
        return self.relu(y + x)


class ResNet(nn.Module):
    """He et al.'s network for small images, of 6 `blocks` + 2 layers."""

    def __init__(self, blocks: int = 3, relu=F.relu):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, 16), nn.BatchNorm2d(16)

        def stage(inputs: int, channels: int, stride: int):
            first = Block(inputs, channels, stride, relu)
            rest = [Block(channels, channels, 1, relu) for _ in range(blocks - 1)]
            return nn.Sequential(first, *rest)

        self.layer1 = stage(16, 16, 1)
        self.layer2 = stage(16, 32, 2)
        self.layer3 = stage(32, 64, 2)
        self.fc = nn.Linear(64, 10)
        self.relu = relu

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class VGG(nn.Module):
    """Three stages of two 3x3 convolutions; pooling after each; one dense readout."""

    def __init__(self, pool: type[nn.Module]):
        super().__init__()
        layers, inputs = [], 3
        for channels in (32, 64, 128):
            for _ in range(2):
                layers += [conv3x3(inputs, channels), nn.BatchNorm2d(channels)]
                layers += [nn.ReLU()]
                inputs = channels
            layers += [pool(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(128 * 4 * 4, 10)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class MobileNet(nn.Module):
    """MobileNet v1 (Howard et al. 2017) of width 1/4 with ReLU6, for 32x32 images."""

    BLOCKS = ((16, 1), (32, 1), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5)
    LAST = ((256, 2), (256, 1))

    def __init__(self):
        super().__init__()
        layers, inputs = [conv3x3(3, 32), nn.BatchNorm2d(32), nn.ReLU6()], 32
        for channels, stride in self.BLOCKS + self.LAST:
            layers += [conv3x3(inputs, inputs, stride, inputs), nn.BatchNorm2d(inputs)]
            layers += [nn.ReLU6(), nn.Conv2d(inputs, channels, 1, bias=False)]
            layers += [nn.BatchNorm2d(channels), nn.ReLU6()]
            inputs = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, 10)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def conv3x3(inputs: int, channels: int, stride: int = 1, groups: int = 1):
    return nn.Conv2d(inputs, channels, 3, stride, 1, groups=groups, bias=False)


CLIP = 2.0  # maximum of resnet20_clipped's activations, fixed as Deng and Gu do
NETWORKS = {
    "resnet20": ResNet,
    "resnet20_clipped": partial(
        ResNet, relu=partial(F.hardtanh, min_val=0, max_val=CLIP)
    ),
    "resnet56": partial(ResNet, 9),
    "vgg8": partial(VGG, nn.AvgPool2d),
    "vgg8_max": partial(VGG, nn.MaxPool2d),
    "mobilenet_quarter": MobileNet,
}


def train(name: str, data_dir: str | None, epochs: int, seed: int, log=print):
    """Trains `name` on CIFAR-10; returns the network and its test accuracy.

    SGD with Nesterov momentum 0.9, batches of 128, weight decay 5e-4, one-cycle
    learning rate with peak 0.2; crops of images padded by 4 pixels, mirrored at random.
    """
    data = load("cifar10", data_dir)
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
    steps = len(images) // 128
    optimizer = torch.optim.SGD(
        network.parameters(), 0.2, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, epochs * steps, pct_start=0.15, cycle_momentum=False
    )
    for epoch in range(1, epochs + 1):
        start, losses = time.perf_counter(), []
        order = torch.randperm(len(images))[: steps * 128].view(steps, 128)
        for batch in order:
            with torch.autocast("cpu", torch.bfloat16):
                output = network(augmented(images[batch]))
            loss = F.cross_entropy(output.float(), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            losses.append(loss.item())
        seconds = time.perf_counter() - start
        log(
            f"{name} epoch {epoch} of {epochs}  loss {np.mean(losses):.3f}  "
            f"test {accuracy():.2%}  {seconds:.0f} s",
            flush=True,
        )
    return network, accuracy(), data


def augmented(images: torch.Tensor, padding: int = 4) -> torch.Tensor:
    """Crops at random places of the padded images, half of them mirrored."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    corner = torch.randint(0, 2 * padding + 1, (2, batch, 1))
    rows = corner[0] + torch.arange(height)
    columns = corner[1] + torch.arange(width)
    mirrored = torch.rand(batch, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(batch)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data_dir")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args(argv)
    network, accuracy, data = train(
        options.network, options.data_dir, options.epochs, options.seed
    )
    weights = options.out / f"{options.network}.safetensors"
    save_file(
        {n: w.contiguous() for n, w in network.state_dict().items() if w.ndim}, weights
    )
    card = {
        "model": options.network,
        "clip": CLIP if options.network == "resnet20_clipped" else None,
        "dataset": data.name,
        "num_classes": data.num_classes,
        "input_shape": list(data.train_images.shape[1:]),
        "mean": list(data.mean),
        "std": list(data.std),
        "test_accuracy": accuracy,
        "epochs": options.epochs,
        "seed": options.seed,
        "command": f"python -m experiments.sources.train {options.network}"
        f" --epochs {options.epochs} --seed {options.seed}",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "versions": {"torch": torch.__version__},
    }
    weights.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{weights}: {accuracy:.2%} of the test images")


if __name__ == "__main__":
    run(main)
