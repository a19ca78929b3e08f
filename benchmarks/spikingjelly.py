"""Networks in PyTorch, converted and run by SpikingJelly.

`converter_cnn.py` and `equal_accuracy.py` run this, with an interpreter that has
SpikingJelly and torch. The converter accepts neither functions in the place of ReLU
modules nor padding, so the shortcut of ResNet-20 that He et al. (2016) pad with zeros
is a 1x1 convolution with an identity for a kernel.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
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
    """Convolutions, each with BatchNorm, ReLU and a pool, and two dense layers."""
    layers: list[nn.Module] = []
    for kernel in convolutions:
        *_, inputs, outputs = kernel.shape
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        convolution.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.AvgPool2d(2)]
    ends = [nn.Linear(*kernel.shape) for kernel in dense]
    for layer, kernel in zip(ends, dense, strict=True):
        layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
        layer.bias.zero_()
    return nn.Sequential(*layers, nn.Flatten(), ends[0], nn.ReLU(), ends[1]).eval()


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(inputs, channels, stride)
        self.conv2, self.bn2 = _conv3x3(channels, channels, 1)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Identity()
        if channels > inputs:
            self.shortcut = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            before = (channels - inputs) // 2
            identity = torch.eye(channels).roll(before, 0)[:, :inputs]
            self.shortcut.weight = nn.Parameter(identity[..., None, None])

    def forward(self, x):
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


def _stage(inputs: int, channels: int, stride: int) -> nn.Module:
    """Three blocks, the first of which changes the size."""
    rest = [Block(channels, channels, 1) for _ in range(2)]
    return nn.Sequential(Block(inputs, channels, stride), *rest)


def _conv3x3(inputs: int, channels: int, stride: int) -> tuple[nn.Module, nn.Module]:
    """A convolution and its norm."""
    convolution = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
    return convolution, nn.BatchNorm2d(channels)


def resnet20(arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """He et al.'s network with these weights, which have the names of its parts."""
    conv1, bn1 = _conv3x3(3, 16, 1)
    parts = {"conv1": conv1, "bn1": bn1, "relu": nn.ReLU()}
    parts |= {"layer1": _stage(16, 16, 1), "layer2": _stage(16, 32, 2)}
    parts |= {"layer3": _stage(32, 64, 2), "pool": nn.AdaptiveAvgPool2d(1)}
    parts |= {"flat": nn.Flatten(), "fc": nn.Linear(64, 10)}
    resnet = nn.Sequential(OrderedDict(parts))
    weights = {name: torch.tensor(arrays[name]) for name in arrays if "." in name}
    resnet.load_state_dict(weights, strict=False)  # the shortcuts are in no file
    return resnet.eval()


def converted(ann: nn.Module, calibration: torch.Tensor, **options: Any) -> nn.Module:
    """The network by a RateCodingRecipe with these options."""
    recipe = ann2snn.RateCodingRecipe([(calibration,)], **options)
    return ann2snn.Converter(recipe=recipe, device="cpu").convert(ann).eval()


def run_of(snn, x: torch.Tensor, steps: int, mode: str, channels_last: bool):
    """() -> the sum over all steps, for images [B, C, H, W] in a step mode."""
    if channels_last:
        snn = snn.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    functional.set_step_mode(snn, mode)

    def outputs():
        functional.reset_net(snn)
        if mode == "s":
            return [snn(x) for _ in range(steps)]
        return snn(x.unsqueeze(0).expand(steps, *x.shape).contiguous())

    timing.check_steps(np.stack([output.numpy() for output in outputs()]), steps)
    total = sum if mode == "s" else (lambda outputs: outputs.sum(0))
    return torch.inference_mode()(lambda: total(outputs()))


def answers(snn, calibration: torch.Tensor, x: torch.Tensor, steps: int, batch: int):
    """Sums of the outputs of all steps behind the delay that SpikingJelly estimates."""
    functional.set_step_mode(snn, "s")
    delay = ann2snn.estimate_delay_start(snn, [(calibration,)], "cpu", steps)
    sums = []
    for group in x.split(batch):
        functional.reset_net(snn)
        sums.append(sum([snn(group) for _ in range(steps)][delay:]))
    return torch.cat(sums)
