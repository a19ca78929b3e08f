"""A vision transformer in flax, its layers scanned: ``python -m examples.scanned_vit``.

The parameters of all blocks are stacked, and one ``nn.scan`` goes over them, as large
models are written. Conversion unrolls it; site names begin with the block's number.
"""

import flax.linen as nn
import jax

from examples import digits


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    heads: int = 2

    @nn.compact
    def __call__(self, x, _):
        width = x.shape[-1]
        qkv = nn.Dense(3 * width)(nn.LayerNorm()(x))
        qkv = qkv.reshape(*x.shape[:2], 3, self.heads, -1)
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        x = x + nn.Dense(width)(y.reshape(x.shape))
        y = nn.Dense(2 * width)(nn.LayerNorm()(x))
        return x + nn.Dense(width)(nn.gelu(y)), None


class ViT(nn.Module):
    """Patches of 2x2 pixels, three blocks, a mean over the tokens: [B, 8, 8, 1]."""

    features: int = 24
    blocks: int = 3

    @nn.compact
    def __call__(self, x):
        patches = nn.Conv(self.features, (2, 2), 2)(x)
        x = patches.reshape(len(x), 16, self.features)
        x = x + self.param("positions", nn.initializers.normal(0.1), x.shape[1:])
        scanned = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.blocks,
        )
        x, _ = scanned()(x, None)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


def main() -> float:
    """Train, convert, compare."""
    data = digits.load()
    model = ViT()
    variables = model.init(jax.random.key(0), data.train_x[:1])
    variables = digits.train(model.apply, variables, data)
    return digits.report(model.apply, variables, data)


if __name__ == "__main__":
    main()
