"""ConvNeXt for small images: depthwise convolutions, LayerNorm, GELU, layer scale.

    x <- x + gamma mlp(norm(depthwise(x)))

Liu et al. 2022, arXiv:2201.03545; three stages in the place of four.
"""

import flax.linen as nn
import jax

from experiments.models.vit import exact_gelu


class ConvNeXt(nn.Module):
    """Stages of blocks; before each a convolution halves height and width."""

    num_classes: int
    # (channels, blocks)
    stages: tuple[tuple[int, int], ...] = ((48, 2), (96, 3), (192, 2))
    kernel: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for channels, blocks in self.stages:
            x = nn.Conv(channels, (2, 2), 2, "VALID")(x)
            for _ in range(blocks):
                x = ConvNeXtBlock(self.kernel)(x)
            x = nn.LayerNorm()(x)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


class ConvNeXtBlock(nn.Module):
    """One depthwise convolution and two dense layers at each pixel, residual."""

    kernel: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        y = nn.Conv(
            channels,
            (self.kernel, self.kernel),
            padding="SAME",
            feature_group_count=channels,
        )(x)
        y = exact_gelu(nn.Dense(4 * channels)(nn.LayerNorm()(y)))
        gamma = self.param("gamma", nn.initializers.constant(0.1), (channels,))
        return x + gamma * nn.Dense(channels)(y)
