"""Networks in PyTorch, converted and run by SpikingJelly.

`converter_cnn.py` and `equal_accuracy.py` run this, with an interpreter that has
SpikingJelly and torch. The converter accepts neither functions in the place of ReLU
modules nor padding, so the shortcut of ResNet-20 that He et al. (2016) pad with zeros
is a 1x1 convolution with an identity for a kernel.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import ann2snn, functional
from torch import nn

from benchmarks import timing

torch.set_grad_enabled(False)


def images(x: np.ndarray) -> torch.Tensor:
    """[B, C, H, W] of [B, H, W, C]."""
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def cnn(convolutions: Sequence[np.ndarray], dense: Sequence[np.ndarray]) -> nn.Module:
    """Convolutions, each with BatchNorm, ReLU and a pool, and two dense layers.

    Args:
        convolutions: kernels [3, 3, I, O].
        dense: two kernels [I, O].
    """
    layers: list[nn.Module] = []
    for kernel in convolutions:
        _, _, inputs, outputs = kernel.shape
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        convolution.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.AvgPool2d(2)]
    hidden, readout = (_linear(kernel) for kernel in dense)
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        hidden,
        nn.ReLU(),
        readout,
    ).eval()


def _linear(kernel: np.ndarray) -> nn.Module:
    """A dense layer without a bias, of a kernel [I, O]."""
    layer = nn.Linear(*kernel.shape)
    layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
    layer.bias.zero_()
    return layer


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = _conv3x3(inputs, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.shortcut = nn.Identity()
        if channels > inputs:
            self.shortcut = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            # As many new channels before the old ones as behind them.
            added = (channels - inputs) // 2
            identity = torch.eye(channels).roll(added, 0)[:, :inputs]
            self.shortcut.weight = nn.Parameter(identity[..., None, None])

    def forward(self, x):
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


def _stage(inputs: int, channels: int, stride: int) -> nn.Module:
    """Three blocks, the first of which changes the size."""
    return nn.Sequential(
        Block(inputs, channels, stride),
        Block(channels, channels, 1),
        Block(channels, channels, 1),
    )


def _conv3x3(inputs: int, channels: int, stride: int) -> nn.Module:
    return nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)


def resnet20(arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """He et al.'s network with these weights, which have the names of its parts."""
    parts = {
        "conv1": _conv3x3(3, 16, 1),
        "bn1": nn.BatchNorm2d(16),
        "relu": nn.ReLU(),
        "layer1": _stage(16, 16, 1),
        "layer2": _stage(16, 32, 2),
        "layer3": _stage(32, 64, 2),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(64, 10),
    }
    resnet = nn.Sequential(OrderedDict(parts))
    weights = {name: torch.tensor(arrays[name]) for name in arrays if "." in name}
    resnet.load_state_dict(weights, strict=False)  # the shortcuts are in no file
    return resnet.eval()


def converted(ann: nn.Module, calibration: torch.Tensor, **options: Any) -> nn.Module:
    """The network by a RateCodingRecipe with these options."""
    recipe = ann2snn.RateCodingRecipe([(calibration,)], **options)
    return ann2snn.Converter(recipe=recipe, device="cpu").convert(ann).eval()


def runner(
    snn: nn.Module, x: torch.Tensor, steps: int, mode: str, channels_last: bool
) -> Callable[[], torch.Tensor]:
    """() -> the sum over all steps, for images [B, C, H, W] in a step mode.

    Args:
        snn: from `converted`.
        x: images.
        steps: T.
        mode: "s", a step at a time, or "m", all at once.
        channels_last: whether arrays lie in memory with their channels last.
    """
    if channels_last:
        snn = snn.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    functional.set_step_mode(snn, mode)

    def outputs():
        functional.reset_net(snn)
        if mode == "s":
            return [snn(x) for _ in range(steps)]
        return snn(x.unsqueeze(0).expand(steps, *x.shape).contiguous())

    @torch.inference_mode()
    def total():
        if mode == "s":
            return sum(outputs())
        return outputs().sum(0)

    timing.check_steps(np.stack([output.numpy() for output in outputs()]), steps)
    return total


def answers(
    snn: nn.Module, calibration: torch.Tensor, x: torch.Tensor, steps: int, batch: int
) -> torch.Tensor:
    """Sums of the outputs of all steps behind the delay that SpikingJelly estimates."""
    functional.set_step_mode(snn, "s")
    delay = ann2snn.estimate_delay_start(snn, [(calibration,)], "cpu", steps)
    sums = []
    for group in x.split(batch):
        functional.reset_net(snn)
        outputs = [snn(group) for _ in range(steps)]
        sums.append(sum(outputs[delay:]))
    return torch.cat(sums)
