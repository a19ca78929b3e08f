"""A network in equinox: ``python -m examples.from_equinox``."""

import equinox as eqx
import jax
import jax.numpy as jnp

from examples import digits


class Network(eqx.Module):
    """Convolution, average pooling, two dense layers: one image [8, 8, 1] -> [10]."""

    conv: eqx.nn.Conv2d
    pool: eqx.nn.AvgPool2d
    hidden: eqx.nn.Linear
    readout: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.conv = eqx.nn.Conv2d(1, 8, 3, padding=1, key=keys[0])
        self.pool = eqx.nn.AvgPool2d(2, stride=2)
        self.hidden = eqx.nn.Linear(128, 32, key=keys[1])
        self.readout = eqx.nn.Linear(32, 10, key=keys[2])

    def __call__(self, x):
        x = jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0)))
        x = jax.nn.relu(self.hidden(self.pool(x).ravel()))
        return self.readout(x)


def main() -> float:
    """Train, convert, compare."""
    data = digits.load()
    params, static = eqx.partition(Network(jax.random.key(0)), eqx.is_inexact_array)

    def network(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    params = digits.train(network, params, data)
    return digits.report(network, params, data)


if __name__ == "__main__":
    main()
