"""Vision transformer for small images: LayerNorm, softmax attention and GELU.

    x <- x + attention(norm(x));    x <- x + mlp(norm(x))

A convolutional stem makes the tokens (Xiao et al. 2021, arXiv:2106.14881), positions
are fixed sines, and a mean over the tokens is classified (Beyer et al. 2022,
arXiv:2205.01580).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

exact_gelu = partial(nn.gelu, approximate=False)
PADDING = ((1, 1), (1, 1))  # of a 3x3 convolution, also with stride 2


class ViT(nn.Module):
    """Convolutions to a quarter of the height and width, then transformer blocks."""

    num_classes: int
    features: int = 96
    heads: int = 4
    hidden: int = 192  # of the two dense layers in a block
    blocks: int = 6
    stem: tuple[tuple[int, int], ...] = ((32, 1), (64, 2))  # (channels, stride)
    activation: Callable[[jax.Array], jax.Array] = exact_gelu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for channels, stride in self.stem:
            x = nn.Conv(channels, (3, 3), stride, PADDING, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = self.activation(x)
        x = nn.Conv(self.features, (3, 3), 2, PADDING)(x)
        height, width = x.shape[1:3]
        x = x.reshape(x.shape[0], height * width, self.features)
        x = x + positions(height, width, self.features)
        for _ in range(self.blocks):
            x = Transformer(self.heads, self.hidden, self.activation)(x)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x).mean(axis=1))


class Transformer(nn.Module):
    """Attention between the tokens, then two dense layers at each; both residual."""

    heads: int
    hidden: int
    activation: Callable[[jax.Array], jax.Array] = exact_gelu

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Of x [B, tokens, features]; mask [B, tokens] says which tokens are read."""
        batch, tokens, features = x.shape
        qkv = nn.Dense(3 * features)(nn.LayerNorm()(x))
        qkv = qkv.reshape(batch, tokens, 3, self.heads, features // self.heads)
        if mask is not None:
            mask = mask[:, None, None]  # for all heads and all tokens that read
        attention = jax.nn.dot_product_attention(
            query=qkv[:, :, 0], key=qkv[:, :, 1], value=qkv[:, :, 2], mask=mask
        )
        x = x + nn.Dense(features)(attention.reshape(x.shape))
        y = self.activation(nn.Dense(self.hidden)(nn.LayerNorm()(x)))
        return x + nn.Dense(features)(y)


def positions(height: int, width: int, features: int) -> jax.Array:
    """[height width, features]: sines and cosines of the row and of the column."""
    frequencies = 1e4 ** -(jnp.arange(features // 4) / (features / 4))
    rows = jnp.arange(height)[:, None, None] * frequencies
    columns = jnp.arange(width)[None, :, None] * frequencies
    rows, columns = jnp.broadcast_arrays(rows, columns)
    waves = [jnp.sin(rows), jnp.cos(rows), jnp.sin(columns), jnp.cos(columns)]
    return jnp.concatenate(waves, -1).reshape(height * width, features)
