"""A network in haiku: ``python -m examples.from_haiku``."""

import haiku as hk
import jax

from examples import digits


def forward(x):
    """Convolution, average pooling, two dense layers: [B, 8, 8, 1] -> [B, 10]."""
    x = jax.nn.relu(hk.Conv2D(8, 3)(x))
    x = hk.avg_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").reshape(len(x), -1)
    x = jax.nn.relu(hk.Linear(32)(x))
    return hk.Linear(10)(x)


def main() -> float:
    """Train, convert, compare."""
    data = digits.load()
    network = hk.without_apply_rng(hk.transform(forward))
    params = network.init(jax.random.key(0), data.train_x[:1])
    params = digits.train(network.apply, params, data)
    return digits.report(network.apply, params, data)


if __name__ == "__main__":
    main()
