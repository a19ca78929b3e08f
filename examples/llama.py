"""A block of a language model in plain JAX: ``python -m examples.llama``.

RMSNorm, rotary positions, four heads of queries that share two of keys and values, a
causal mask, SwiGLU: as in Llama (Touvron et al. 2023, arXiv:2302.13971). Here it reads
a digit as a sequence of eight rows of pixels and classifies it after the last row.
"""

import jax
import jax.numpy as jnp

from examples import digits

HEADS = 4  # of queries
GROUPS = 2  # heads of keys and values
SIZE = 8  # of a head
WIDTH = HEADS * SIZE


def network(params, x):
    """Embed, one block, read out: [B, 8, 8, 1] -> [B, 10]."""
    x = x[..., 0] @ params["embedding"]
    x = x + attention(params, norm(x) * params["scale"][0])
    y = norm(x) * params["scale"][1]
    gated = jax.nn.silu(y @ params["gate"]) * (y @ params["up"])
    x = x + gated @ params["down"]
    return norm(x[:, -1]) @ params["readout"]


def attention(params, x):
    """Causal, with grouped queries: [B, n, WIDTH] of the same shape."""

    def heads(name):
        return (x @ params[name]).reshape(*x.shape[:2], -1, SIZE)

    y = jax.nn.dot_product_attention(
        rotated(heads("query")),
        rotated(heads("key")),
        heads("value"),
        is_causal=True,
    )
    return y.reshape(x.shape) @ params["output"]


def rotated(x):
    """Pairs of features [B, n, heads, SIZE], turned by an angle that grows along n."""
    frequencies = 100 ** -(jnp.arange(0, SIZE, 2) / SIZE)
    angles = jnp.arange(x.shape[1])[:, None, None] * frequencies
    a, b = jnp.split(x, 2, axis=-1)
    cos = jnp.cos(angles)
    sin = jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def norm(x):
    """x over the root of its mean square."""
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def initialize(key):
    """Normal weights, scales of 1."""
    grouped = GROUPS * SIZE
    hidden = 2 * WIDTH
    shapes = {
        "embedding": (8, WIDTH),
        "query": (WIDTH, WIDTH),
        "key": (WIDTH, grouped),
        "value": (WIDTH, grouped),
        "output": (WIDTH, WIDTH),
        "gate": (WIDTH, hidden),
        "up": (WIDTH, hidden),
        "down": (hidden, WIDTH),
        "readout": (WIDTH, 10),
    }
    normal = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(key, len(shapes))
    params = {"scale": jnp.ones((2, WIDTH))}
    for kernel_key, (name, shape) in zip(keys, shapes.items(), strict=True):
        params[name] = normal(kernel_key, shape)
    return params


def main() -> float:
    """Train, convert, compare."""
    data = digits.load()
    params = digits.train(network, initialize(jax.random.key(0)), data)
    return digits.report(network, params, data)


if __name__ == "__main__":
    main()
