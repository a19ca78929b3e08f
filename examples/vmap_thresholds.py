"""Many SNNs at once: vmap over a factor on the thresholds.

``python -m examples.vmap_thresholds`` prints how often each agrees with the ANN. The
thresholds are leaves of an SNN like any other, so one program runs all of them.
"""

import dataclasses

import jax
import jax.numpy as jnp

import snnjax
from examples import digits
from examples.from_plain_jax import initialize, network

STEPS = 8


def main() -> tuple[jax.Array, jax.Array]:
    """The factors and their agreement with the ANN, 0..1."""
    data = digits.load()
    params = digits.train(network, initialize(jax.random.key(0)), data)
    snn = snnjax.convert(network, params, data.train_x[:128], steps=STEPS)
    simulate = snnjax.spiking(network, steps=STEPS)
    expected = network(params, data.test_x).argmax(-1)

    def agreement(factor):
        neurons = {
            name: neuron._replace(threshold=factor * neuron.threshold)
            for name, neuron in snn.neurons.items()
        }
        outputs = simulate(dataclasses.replace(snn, neurons=neurons), data.test_x)
        return (outputs.mean(0).argmax(-1) == expected).mean()

    factors = jnp.array([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0])
    agreements = jax.jit(jax.vmap(agreement))(factors)
    for factor, value in zip(factors, agreements, strict=True):
        print(f"thresholds x {factor:4.2f}: the same answer {value:.1%}")
    return factors, agreements


if __name__ == "__main__":
    main()
