"""Source networks in flax.linen, in the shapes of the papers.

ResNets (He et al. 2016; the ResNet-18 of Li et al. 2021, arXiv:2106.06984), VGG and
MobileNet v1 and v3; by name also `vit` and `convnext`. Each block calls its own
activations, so sites have readable names.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.convnext import ConvNeXt
from experiments.models.quantized import QuantizedReLU
from experiments.models.vit import ViT
from snnjax import clipped_relu

Activation = Callable[[jax.Array], jax.Array]
Pool = Callable[..., jax.Array]  # nn.avg_pool or nn.max_pool


def build(
    name: str,
    num_classes: int,
    *,
    norm: bool | None = None,
    clip: float | None = None,
    levels: int | None = None,
    width: int | None = None,
    depth: int | None = None,
) -> nn.Module:
    """A module with `apply(variables, images [B, H, W, C], train=False) -> logits`.

    Args:
        name: one of `NAMES`.
        num_classes: number of logits.
        norm: BatchNorm after each convolution; without it convolutions have a bias.
            None means the usual choice of the network; `vit` and `convnext` have no
            other.
        clip: maximum of a clipped ReLU, > 0; None keeps the activation of the network.
        levels: L >= 1 of quantized ReLUs with trained maxima; None: no quantization.
        width, depth: neurons of a layer and layers of `dense`; others have none.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(NAMES)}")
    network = MODELS[name](num_classes)
    options: dict[str, Any] = {}
    if isinstance(network, Dense):
        if width is not None:
            options["width"] = width
        if depth is not None:
            options["depth"] = depth
    if norm is not None and hasattr(network, "norm"):
        options["norm"] = norm
    elif norm is False:
        raise ValueError(f"{name} has LayerNorm, not BatchNorm; allowed: norm=True")
    if clip is not None and levels is not None:
        raise ValueError(
            f"clip={clip} and levels={levels}: a quantized ReLU trains its maximum; "
            "give one of them"
        )
    if clip is None and levels is None:
        if name.endswith("_clipped"):
            raise ValueError(
                f"{name} needs the maximum that its ReLUs are clipped at: `clip` in "
                "the card beside its weights, --clip for train_ann"
            )
    elif isinstance(network, ViT | ConvNeXt | MobileNetV3):
        raise ValueError(f"{name} has no ReLUs that clip or levels could replace")
    if clip is not None:
        options["activation"] = partial(clipped_relu, maximum=clip)
    if levels is not None:
        # Each call makes a module, so each site has its own maximum.
        options["activation"] = lambda x: QuantizedReLU(levels)(x)
    return network.clone(**options)


def build_from(card: Mapping[str, Any]) -> nn.Module:
    """The network that a card describes."""
    return build(
        card["model"],
        card["num_classes"],
        norm=card.get("norm"),
        clip=card.get("clip"),
        levels=card.get("levels"),
        width=card.get("width"),
        depth=card.get("depth"),
    )


def shapes_of(model: nn.Module, input_shape: Sequence[int]) -> Any:
    """Shapes of {"params", "batch_stats"} for images [height, width, channels]."""
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def parameters_of(card: Mapping[str, Any]) -> int:
    """Number of parameters and running averages of the network of a card."""
    shapes = shapes_of(build_from(card), card["input_shape"])
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


class Layers(NamedTuple):
    """A layer of a network: convolution, BatchNorm and activation.

    Its parameters are submodules of the compact method that calls it.
    """

    norm: bool  # after each convolution; without it convolutions have a bias
    activation: Activation  # the ReLU, or what stands in its place
    train: bool  # BatchNorm takes the statistics of the batch

    def __call__(self, x: jax.Array, channels: int, **shape: int) -> jax.Array:
        """Convolution, norm and activation."""
        return self.activation(self.linear(x, channels, **shape))

    def linear(
        self,
        x: jax.Array,
        channels: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
    ) -> jax.Array:
        """Convolution and norm.

        The padding is explicit because "SAME" with a stride of 2 pads an even image on
        one side only, unlike the networks in the papers.
        """
        pad = ((kernel - 1) // 2, (kernel - 1) // 2)
        x = nn.Conv(
            channels,
            (kernel, kernel),
            strides=(stride, stride),
            padding=(pad, pad),
            feature_group_count=groups,
            use_bias=not self.norm,
            kernel_init=_kernel_init(groups),
        )(x)
        return self.normed(x)

    def normed(self, x: jax.Array) -> jax.Array:
        """Behind its BatchNorm, if there is one."""
        if not self.norm:
            return x
        return nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(x)


class Network(nn.Module):
    """What the networks below share: their features, and a dense readout of them."""

    num_classes: int
    norm: bool = True
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = self.read(x, Layers(self.norm, self.activation, train))
        return nn.Dense(self.num_classes)(x)

    @nn.nowrap  # its layers are those of `__call__`
    def read(self, x: jax.Array, layer: Layers) -> jax.Array:
        """The features [B, N] of images."""
        raise NotImplementedError


class ResNet(Network):
    """Residual network of basic blocks; every stage but the first halves the image."""

    blocks: tuple[int, ...] = (3, 3, 3)  # per stage
    channels: tuple[int, ...] = (16, 32, 64)  # per stage
    stem: tuple[tuple[int, int], ...] = ((16, 1),)  # (channels, stride) of convolutions
    projection: bool = False  # shortcuts by 1x1 convolution; else He et al.'s option A

    @nn.nowrap
    def read(self, x: jax.Array, layer: Layers) -> jax.Array:
        for channels, stride in self.stem:
            x = layer(x, channels, stride=stride)
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                x = Block(layer, self.channels[stage], stride, self.projection)(x)
        return x.mean(axis=(1, 2))


class Block(nn.Module):
    """Basic block: two 3x3 convolutions, sum with the shortcut, activation."""

    layer: Layers
    channels: int
    stride: int
    projection: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.layer(x, self.channels, stride=self.stride)
        y = self.layer.linear(y, self.channels)
        if y.shape == x.shape:
            shortcut = x
        elif self.projection:
            shortcut = self.layer.linear(x, self.channels, kernel=1, stride=self.stride)
        else:
            shortcut = _subsample(x, self.stride, self.channels)
        return self.layer.activation(y + shortcut)


VGG16 = (
    (64, 64),
    (128, 128),
    (256, 256, 256),
    (512, 512, 512),
    (512, 512, 512),
)


class VGG(Network):
    """VGG, by default VGG-16 with average pooling, for images of 32x32 and more."""

    # Channels of the 3x3 convolutions per stage; each stage ends in 2x2 pooling.
    stages: tuple[tuple[int, ...], ...] = VGG16
    dense: tuple[int, ...] = (512, 512)
    pool: Pool = nn.avg_pool

    @nn.nowrap
    def read(self, x: jax.Array, layer: Layers) -> jax.Array:
        smallest = 2 ** len(self.stages)
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"VGG with {len(self.stages)} poolings needs images of at least "
                f"{smallest}x{smallest} pixels, not {x.shape[1]}x{x.shape[2]}; "
                "enlarge them or take a ResNet"
            )
        for stage in self.stages:
            for channels in stage:
                x = layer(x, channels)
            x = self.pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for features in self.dense:
            x = self.activation(nn.Dense(features, kernel_init=_kernel_init(1))(x))
        return x


class MobileNet(Network):
    """MobileNet v1 (Howard et al. 2017) with strides for 32x32 images."""

    width: float = 1.0  # multiplies all channels but the stem's

    @nn.nowrap
    def read(self, x: jax.Array, layer: Layers) -> jax.Array:
        x = layer(x, 32)
        # (channels, stride) of each module.
        blocks = [(64, 1), (128, 1), (128, 1), (256, 2), (256, 1), (512, 2)]
        blocks += [(512, 1)] * 5
        blocks += [(1024, 2), (1024, 1)]
        for channels, stride in blocks:
            x = Separable(layer, int(self.width * channels), stride)(x)
        return x.mean(axis=(1, 2))


class Separable(nn.Module):
    """Depthwise 3x3 convolution, then pointwise convolution, each with activation."""

    layer: Layers
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        x = self.layer(x, inputs, stride=self.stride, groups=inputs)
        return self.layer(x, self.channels, kernel=1)


class Inverted(nn.Module):
    """Inverted residual: 1x1 to ``wide`` channels, depthwise, gate, 1x1 without ReLU.

    The gate scales the wide channels by a function of their means: squeeze to a quarter
    of them, then excite.
    """

    layer: Layers
    kernel: int
    wide: int
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.layer(x, self.wide, kernel=1)
        y = self.layer(
            y, self.wide, kernel=self.kernel, stride=self.stride, groups=self.wide
        )
        means = y.mean(axis=(1, 2))
        squeezed = nn.relu(nn.Dense(self.wide // 4)(means))
        gate = nn.hard_sigmoid(nn.Dense(self.wide)(squeezed))
        y = y * gate[:, None, None]
        y = self.layer.linear(y, self.channels, kernel=1)
        return x + y if y.shape == x.shape else y


class MobileNetV3(Network):
    """MobileNet v3 (Howard et al. 2019) with fewer blocks, for 32x32 images."""

    # Of each `Inverted`: kernel, wide, channels, stride.
    blocks: tuple[tuple[int, int, int, int], ...] = (
        (3, 48, 24, 2),
        (3, 96, 24, 1),
        (5, 96, 40, 2),
        (5, 160, 40, 1),
        (5, 160, 40, 1),
        (5, 160, 48, 1),
        (5, 192, 48, 1),
        (5, 240, 80, 2),
        (5, 320, 80, 1),
        (5, 320, 80, 1),
    )
    last: int = 320
    activation: Activation = nn.hard_swish

    @nn.nowrap
    def read(self, x: jax.Array, layer: Layers) -> jax.Array:
        x = layer(x, 16)
        for kernel, wide, channels, stride in self.blocks:
            x = Inverted(layer, kernel, wide, channels, stride)(x)
        return layer(x, self.last, kernel=1).mean(axis=(1, 2))


class Whitened(Network):
    """After Page (2018) and Jordan (2024, arXiv:2404.00498), with ReLU.

    A 2x2 convolution that whitens patches of the image, stages that halve it, and a
    readout of the means. Their 3x3 convolutions with pooling behind them are 4x4 ones.
    """

    # Channels, layers behind the halving.
    stages: tuple[tuple[int, int], ...] = ((64, 1), (256, 1), (256, 1))

    @nn.nowrap
    def read(self, x: jax.Array, layer: Layers) -> jax.Array:
        x = self.activation(nn.Conv(24, (2, 2), padding="VALID")(x))
        for channels, layers in self.stages:
            x = Stage(layer, channels, layers)(x)
        return x.mean(axis=(1, 2))


class Stage(nn.Module):
    """A convolution that halves the image; then none, one, or a residual block."""

    layer: Layers
    channels: int
    layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.layer(x, self.channels, kernel=4, stride=2)
        if not self.layers:
            return x
        y = self.layer(x, self.channels)
        if self.layers == 1:
            return y
        return self.layer.activation(x + self.layer.linear(y, self.channels))


SMALL = ((32, 1), (32, 2), (64, 1), (64, 2), (128, 1), (128, 2))


class Plain(Network):
    """3x3 convolutions (channels, stride) one after the other, and a dense readout."""

    convolutions: tuple[tuple[int, int], ...] = SMALL

    @nn.nowrap
    def read(self, x: jax.Array, layer: Layers) -> jax.Array:
        for channels, stride in self.convolutions:
            x = layer(x, channels, stride=stride)
        return x.reshape(x.shape[0], -1)


class Dense(Network):
    """Dense layers on all features of an example, or of a step, and a dense readout."""

    width: int = 128
    depth: int = 2

    @nn.nowrap
    def read(self, x: jax.Array, layer: Layers) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for _ in range(self.depth):
            x = nn.Dense(self.width, use_bias=not self.norm)(x)
            x = self.activation(layer.normed(x))
        return x


_vgg8 = partial(VGG, stages=((32, 32), (64, 64), (128, 128)), dense=())

MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_resnet": partial(ResNet, blocks=(1, 1, 1)),
    "resnet20": ResNet,
    "resnet20_clipped": ResNet,  # `clip` says where
    "resnet56": partial(ResNet, blocks=(9, 9, 9)),
    "resnet18": partial(
        ResNet,
        blocks=(2, 2, 2, 2),
        channels=(64, 128, 256, 512),
        stem=((64, 1), (64, 1), (64, 2)),
        projection=True,
    ),
    "vgg16": VGG,
    "vgg8": _vgg8,
    "vgg8_max": partial(_vgg8, pool=nn.max_pool),
    "mobilenet": MobileNet,
    "mobilenet_quarter": partial(MobileNet, width=0.25, activation=nn.relu6),
    "mobilenet_v3": MobileNetV3,
    "vit": ViT,
    "convnext": ConvNeXt,
    "whitened_vgg8": Whitened,
    "whitened_resnet9": partial(Whitened, stages=((128, 2), (256, 0), (304, 2))),
    "small": Plain,
    "events": partial(Plain, convolutions=((16, 2), (32, 2), (64, 2))),
    "dense": Dense,  # of sequences
}
NAMES = tuple(MODELS)


def _kernel_init(groups: int) -> nn.initializers.Initializer:
    """He et al.'s initialization, for a convolution of so many groups."""
    # The fan-out ignores groups, which would shrink the signal of a depthwise
    # convolution by the number of channels; the fan-in does not.
    mode = "fan_out" if groups == 1 else "fan_in"
    return nn.initializers.variance_scaling(2.0, mode, "normal")


def _subsample(x: jax.Array, stride: int, channels: int) -> jax.Array:
    """Option A of He et al.: every stride-th pixel, and new channels of zeros."""
    # lax.slice, since x[:, ::2] becomes a gather in some versions of JAX.
    x = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))
    zeros = channels - x.shape[-1]
    low = zeros // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (low, zeros - low)))
