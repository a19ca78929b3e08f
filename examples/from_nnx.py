"""A network in flax.nnx: ``python -m examples.from_nnx``."""

from flax import nnx

from examples import digits


class Network(nnx.Module):
    """Convolution, average pooling, two dense layers: [B, 8, 8, 1] -> [B, 10]."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(128, 32, rngs=rngs)
        self.readout = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        return self.readout(nnx.relu(self.hidden(x)))


def main() -> float:
    """Train, convert, compare."""
    data = digits.load()
    graph, state = nnx.split(Network(nnx.Rngs(0)))

    def network(state, x):
        return nnx.merge(graph, state)(x)

    state = digits.train(network, state, data)
    return digits.report(network, state, data)


if __name__ == "__main__":
    main()
