"""The published source networks as PyTorch modules, by name.

ResNet (He et al. 2016), VGG, MobileNet v1 and v3 (Howard et al. 2017, 2019), ConvNeXt
(Liu et al. 2022), a vision transformer with fixed positions and a mean over tokens
(Beyer et al. 2022) behind a convolutional stem (Xiao et al. 2021), and two networks in
the shape of Jordan's (2024, arXiv:2404.00498), for 32x32 images.
`experiments.models` has the same networks in flax.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize


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


class Transformer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with GELU."""

    def __init__(self, features: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = layer_norm(features), layer_norm(features)
        self.qkv = nn.Linear(features, 3 * features)
        self.projection = nn.Linear(features, features)
        self.fc1, self.fc2 = nn.Linear(features, hidden), nn.Linear(hidden, features)
        self.heads = heads

    def forward(self, x):
        batch, tokens, features = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # Written out: on a CPU the gradient of the fused attention is slower.
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        attention = (weights @ v).transpose(1, 2).reshape(batch, tokens, features)
        x = x + self.projection(attention)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Convolutions to 8x8 tokens of 96 features, then six transformer blocks."""

    def __init__(self, features: int = 96, heads: int = 4, blocks: int = 6):
        super().__init__()
        layers, inputs = [], 3
        for channels, stride in ((32, 1), (64, 2)):
            layers += [conv3x3(inputs, channels, stride), nn.BatchNorm2d(channels)]
            layers += [nn.GELU()]
            inputs = channels
        self.stem = nn.Sequential(*layers, nn.Conv2d(inputs, features, 3, 2, 1))
        hidden = 2 * features
        self.blocks = nn.Sequential(
            *[Transformer(features, heads, hidden) for _ in range(blocks)]
        )
        self.norm, self.head = layer_norm(features), nn.Linear(features, 10)

    def forward(self, x):
        x = self.stem(x)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        x = x + positions(height, width, x.shape[-1]).to(x.dtype)
        return self.head(self.norm(self.blocks(x)).mean(1))


def positions(height: int, width: int, features: int) -> torch.Tensor:
    """[height width, features]: sines and cosines of the row and of the column."""
    frequencies = torch.exp(
        -math.log(1e4) * torch.arange(features // 4) / (features / 4)
    )
    rows = torch.arange(height)[:, None, None] * frequencies
    columns = torch.arange(width)[None, :, None] * frequencies
    angles = torch.broadcast_tensors(rows, columns)
    waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return torch.cat(waves, -1).view(height * width, features)


class Depthwise(nn.Conv2d):
    """In float32 always: on a CPU its gradient is several times slower in bfloat16."""

    def __init__(self, channels: int, kernel: int, stride: int = 1, bias: bool = False):
        pad = kernel // 2
        super().__init__(
            channels, channels, kernel, stride, pad, groups=channels, bias=bias
        )

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class ConvNeXtBlock(nn.Module):
    """x + gamma mlp(norm(depthwise 5x5 (x))), with GELU."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Depthwise(channels, 5, bias=True)
        self.norm = layer_norm(channels)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x):
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """ConvNeXt of three stages; the image is halved before each."""

    STAGES = ((48, 2), (96, 3), (192, 2))  # channels, blocks

    def __init__(self):
        super().__init__()
        halvings, norms, blocks, inputs = [], [], [], 3
        for channels, count in self.STAGES:
            halvings.append(nn.Conv2d(inputs, channels, 2, 2))
            blocks.append(nn.Sequential(*map(ConvNeXtBlock, [channels] * count)))
            norms.append(layer_norm(channels))
            inputs = channels
        self.halvings, self.stages = nn.ModuleList(halvings), nn.ModuleList(blocks)
        self.norms, self.head = nn.ModuleList(norms), nn.Linear(inputs, 10)

    def forward(self, x):
        parts = zip(self.halvings, self.stages, self.norms, strict=True)
        for halve, stage, norm in parts:
            x = stage(halve(x))
            x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class InvertedV3(nn.Module):
    """Inverted residual with hard-swish and a squeeze-and-excite gate."""

    def __init__(self, inputs: int, kernel: int, wide: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = Depthwise(wide, kernel, stride)
        self.bn2 = nn.BatchNorm2d(wide)
        self.squeeze = nn.Linear(wide, wide // 4)
        self.excite = nn.Linear(wide // 4, wide)
        self.conv3 = nn.Conv2d(wide, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.residual = stride == 1 and inputs == channels

    def forward(self, x):
        y = F.hardswish(self.bn1(self.conv1(x)))
        y = F.hardswish(self.bn2(self.conv2(y)))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        y = self.bn3(self.conv3(y * gate[:, :, None, None]))
        return x + y if self.residual else y


class MobileNetV3(nn.Module):
    """MobileNet v3 (Howard et al. 2019), with fewer blocks, for 32x32 images."""

    BLOCKS = (  # kernel, expanded channels, channels, stride
        (3, 48, 24, 2),
        (3, 96, 24, 1),
        (5, 96, 40, 2),
        *[(5, 160, 40, 1)] * 2,
        (5, 160, 48, 1),
        (5, 192, 48, 1),
        (5, 240, 80, 2),
        *[(5, 320, 80, 1)] * 2,
    )

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv3x3(3, 16), nn.BatchNorm2d(16), nn.Hardswish())
        blocks, inputs = [], 16
        for kernel, wide, channels, stride in self.BLOCKS:
            blocks.append(InvertedV3(inputs, kernel, wide, channels, stride))
            inputs = channels
        self.blocks = nn.Sequential(*blocks)
        last = nn.Conv2d(inputs, 320, 1, bias=False)
        self.last = nn.Sequential(last, nn.BatchNorm2d(320), nn.Hardswish())
        self.head = nn.Linear(320, 10)

    def forward(self, x):
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


class Whitened(nn.Module):
    """Networks after Page (2018) and Jordan, with ReLU and average pooling.

    The first layer is a 2x2 convolution whose weights whiten patches of the image and
    are not trained; its bias is. Each stage (channels, layers) halves height and width,
    then has 0, 1 or 2 more layers. Two layers have a shortcut around them. A 3x3
    convolution and the mean of 2x2 pixels behind it equal one 4x4 convolution. This 4x4
    convolution is computed and published.
    """

    def __init__(self, stages_of: tuple[tuple[int, int], ...]):
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        stages, inputs = [], 24
        for outputs, layers in stages_of:
            block = (nn.Identity, Plain, Residual)[layers]
            # The trained weight is 3x3; MeanOfShifts below makes the 4x4 kernel of it.
            halve = nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)
            halve.weight = conv3x3(inputs, outputs).weight
            stages.append(nn.Sequential(halve, *norm_relu(outputs), block(outputs)))
            inputs = outputs
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(inputs, 10)
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):  # first channels: the identity
                nn.init.dirac_(module.weight.data[: module.in_channels])
        for stage in self.stages:
            parametrize.register_parametrization(
                stage[0], "weight", MeanOfShifts(), unsafe=True
            )

    def forward(self, x):
        return self.head(self.stages(F.relu(self.whiten(x))).mean((2, 3)))

    def fit_whitening(self, images: torch.Tensor) -> None:
        """Set and freeze the first weights: directions of patches, and their negatives.

        w_i = e_i / sqrt(lambda_i + 5e-4), of the second moment of 2x2 patches.
        """
        patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1)
        values, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (values + 5e-4).sqrt()).T.view(12, 3, 2, 2)
        with torch.no_grad():
            self.whiten.weight.copy_(torch.cat([filters, -filters]))
            self.whiten.bias.zero_()
        self.whiten.weight.requires_grad = False

    def publish(self) -> None:
        """Make the 4x4 kernels parameters themselves."""
        for stage in self.stages:
            parametrize.remove_parametrizations(stage[0], "weight")


class MeanOfShifts(nn.Module):
    """The kernel of a 3x3 convolution and the mean of 2x2 pixels behind it: 4x4."""

    def forward(self, kernel: torch.Tensor) -> torch.Tensor:
        shifts = [(left, 1 - left, top, 1 - top) for left in (0, 1) for top in (0, 1)]
        return sum(F.pad(kernel, shift) for shift in shifts) / 4


class Plain(nn.Sequential):
    def __init__(self, channels: int):
        super().__init__(conv3x3(channels, channels), *norm_relu(channels))


class Residual(nn.Module):
    """relu(x + convolutions(x))"""

    def __init__(self, channels: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            conv3x3(channels, channels),
            *norm_relu(channels),
            conv3x3(channels, channels),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return F.relu(x + self.convolutions(x))


def norm_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU()


def conv3x3(inputs: int, channels: int, stride: int = 1, groups: int = 1):
    return nn.Conv2d(inputs, channels, 3, stride, 1, groups=groups, bias=False)


def layer_norm(features: int):
    return nn.LayerNorm(features, eps=1e-6)  # flax's epsilon


CLIP = 2.0  # maximum of resnet20_clipped's activations, fixed as Deng and Gu do
NETWORKS = {
    "resnet20": ResNet,
    "resnet20_clipped": partial(
        ResNet, relu=partial(F.hardtanh, min_val=0, max_val=CLIP)
    ),
    "vgg8": partial(VGG, nn.AvgPool2d),
    "vgg8_max": partial(VGG, nn.MaxPool2d),
    "mobilenet_quarter": MobileNet,
    "vit": ViT,
    "convnext": ConvNeXt,
    "mobilenet_v3": MobileNetV3,
    "whitened_vgg8": partial(Whitened, ((64, 1), (256, 1), (256, 1))),
    "whitened_resnet9": partial(Whitened, ((128, 2), (256, 0), (304, 2))),
}
