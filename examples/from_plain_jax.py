"""A network in plain JAX: ``python -m examples.from_plain_jax``."""

import jax
import jax.numpy as jnp

from examples import digits


def network(params, x):
    """Convolution, average pooling, two dense layers: [B, 8, 8, 1] -> [B, 10]."""
    x = jax.lax.conv_general_dilated(
        x,
        params["conv"]["w"],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = jax.nn.relu(x + params["conv"]["b"])
    x = x.reshape(-1, 4, 2, 4, 2, 8).mean((2, 4)).reshape(-1, 128)
    x = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return x @ params["readout"]["w"] + params["readout"]["b"]


def initialize(key):
    """He's normal weights, zero biases."""
    shapes = {
        "conv": (3, 3, 1, 8),
        "hidden": (128, 32),
        "readout": (32, 10),
    }
    he = jax.nn.initializers.he_normal()
    keys = jax.random.split(key, len(shapes))
    params = {}
    for kernel_key, (name, shape) in zip(keys, shapes.items(), strict=True):
        params[name] = {"w": he(kernel_key, shape), "b": jnp.zeros(shape[-1])}
    return params


def main() -> float:
    """Train, convert, compare."""
    data = digits.load()
    params = digits.train(network, initialize(jax.random.key(0)), data)
    return digits.report(network, params, data)


if __name__ == "__main__":
    main()
