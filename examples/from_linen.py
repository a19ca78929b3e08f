"""A network in flax.linen: ``python -m examples.from_linen``."""

import flax.linen as nn
import jax

from examples import digits


class Network(nn.Module):
    """Convolution, average pooling, two dense layers: [B, 8, 8, 1] -> [B, 10]."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(10)(x)


def main() -> float:
    """Train, convert, compare."""
    data = digits.load()
    model = Network()
    variables = model.init(jax.random.key(0), data.train_x[:1])
    variables = digits.train(model.apply, variables, data)
    return digits.report(model.apply, variables, data)


if __name__ == "__main__":
    main()
