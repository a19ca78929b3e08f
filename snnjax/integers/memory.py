"""`memory`: what a network of layers needs on a chip.

weights x their bits + neurons x bits of a potential
"""

from typing import NamedTuple

import numpy as np

from snnjax.layers.values import Affine, Layers

_FLOAT = 32


class Memory(NamedTuple):
    """Bytes of a network.

    Attributes:
        weights: of all maps; a convolution's kernel counts once.
        potentials: one of each neuron.
        constants: thresholds, biases and initial potentials, one of each channel, or of
            each neuron where they differ within a channel.
    """

    weights: float
    potentials: float
    constants: float


def memory(layers: Layers) -> Memory:
    """Bytes of the weights, potentials and constants of layers.

    Weights take `Arithmetic.weight_bits`, potentials and constants
    `Arithmetic.state_bits`; floats take 32 bits.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.ones((8, 16)), "readout": jnp.ones((16, 4))}
    >>> x = jnp.ones((1, 8))
    >>> snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    >>> layers = snnjax.layers.of(fn, snn, x)
    >>> integers = snnjax.quantize(layers, x, weight_bits=4)
    >>> memory(layers).weights, memory(integers).weights
    (768.0, 96.0)
    """
    arithmetic = layers.arithmetic
    weight_bits = _FLOAT if arithmetic is None else arithmetic.weight_bits
    state_bits = _FLOAT if arithmetic is None else arithmetic.state_bits
    weights = sum(n.weight.size for n in layers.nodes if isinstance(n, Affine))
    neurons = sum(int(np.prod(p.shape)) for p in layers.populations)
    constants = sum(
        np.size(array)
        for p in layers.populations
        for array in (p.threshold, p.bias, p.initial_potential)
    )
    constants += sum(np.size(output.bias) for output in layers.outputs)
    return Memory(
        weights * weight_bits / 8, neurons * state_bits / 8, constants * state_bits / 8
    )
