"""The ResNet-20 of experiments/sources, converted by SpikingJelly.

`equal_accuracy.py` runs it, with an interpreter that has SpikingJelly and torch.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import ann2snn, functional
from torch import nn

from experiments.sources.networks import Block, ResNet


def network(arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """The network as it was trained, in operations that the converter accepts.

    It takes neither functions in the place of ReLU modules nor padding. A shortcut that
    pads becomes a 1x1 convolution with an identity for a kernel.
    """

    def forward(block: Block, x):
        current = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        return block.relu(current + block.shortcut(x))

    resnet = ResNet(relu=nn.ReLU())
    weights = {name: torch.tensor(arrays[name]) for name in arrays if "." in name}
    resnet.load_state_dict(weights, strict=False)
    for block in list(resnet.modules()):
        if isinstance(block, Block) and block.added:
            outputs, inputs = block.conv1.weight.shape[:2]
            block.shortcut = nn.Conv2d(inputs, outputs, 1, block.stride, bias=False)
            identity = torch.eye(outputs).roll(block.added // 2, 0)[:, :inputs]
            block.shortcut.weight.copy_(identity[..., None, None])
            block.forward = functools.partial(forward, block)
    return resnet.eval()


def converted(ann: nn.Module, calibration: torch.Tensor, options: Mapping[str, Any]):
    """The network by a RateCodingRecipe with these options."""
    recipe = ann2snn.RateCodingRecipe([(calibration,)], **options)
    return ann2snn.Converter(recipe=recipe, device="cpu").convert(ann).eval()


def answers(snn, calibration: torch.Tensor, x: torch.Tensor, steps: int, batch: int):
    """Sums of the outputs of all steps behind the delay that SpikingJelly estimates."""
    functional.set_step_mode(snn, "s")
    delay = ann2snn.estimate_delay_start(snn, [(calibration,)], "cpu", steps)
    sums = []
    for group in x.split(batch):
        functional.reset_net(snn)
        sums.append(sum([snn(group) for _ in range(steps)][delay:]))
    return torch.cat(sums)
