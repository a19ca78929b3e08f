"""A transformer block in equinox: ``python -m examples.equinox_transformer``.

Equinox writes a network for one example; ``jax.vmap`` makes it one of a batch, and its
dense layers multiply from the left, W @ x.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from examples import digits


class Block(eqx.Module):
    """One digit as eight rows of pixels [8, 8, 1] -> [10]."""

    entry: eqx.nn.Linear
    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    readout: eqx.nn.Linear

    def __init__(self, key, width: int = 32):
        keys = jax.random.split(key, 4)
        self.entry = eqx.nn.Linear(8, width, key=keys[0])
        self.norms = (eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width))
        self.attention = eqx.nn.MultiheadAttention(2, width, key=keys[1])
        self.mlp = eqx.nn.MLP(
            width,
            width,
            2 * width,
            1,
            activation=jax.nn.gelu,
            key=keys[2],
        )
        self.readout = eqx.nn.Linear(8 * width, 10, key=keys[3])

    def __call__(self, x):
        x = jax.vmap(self.entry)(x[..., 0])
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        x = x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))
        return self.readout(jnp.ravel(x))


def main() -> float:
    """Train, convert, compare."""
    data = digits.load()
    params, static = eqx.partition(Block(jax.random.key(0)), eqx.is_inexact_array)

    def network(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    params = digits.train(network, params, data)
    return digits.report(network, params, data)


if __name__ == "__main__":
    main()
