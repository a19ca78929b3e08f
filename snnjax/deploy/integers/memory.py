"""`memory`: what a network of layers needs on a chip.

weights x their bits + neurons x bits of a potential
"""

from typing import NamedTuple

import numpy as np

from snnjax.deploy.lowering.values import Affine, Layers, check_layers

_FLOAT = 32


class Memory(NamedTuple):
    """Bytes of a network.

    Attributes:
        weights: of all maps; a convolution's kernel counts once.
        potentials: one of each neuron.
    """

    weights: float
    potentials: float


def memory(layers: Layers) -> Memory:
    """Bytes of the weights and potentials of layers.

    A weight takes the bits of the largest one of its map, a potential
    `Arithmetic.state_bits`, and a float 32. Thresholds, biases and initial potentials
    are not counted: there are few of them, at most one per neuron.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.ones((8, 16)), "readout": jnp.ones((16, 4))}
    >>> x = jnp.ones((1, 8))
    >>> snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    >>> layers = snnjax.deploy.layers(fn, snn, x)
    >>> integers = snnjax.deploy.quantize(layers, x, weight_bits=4)
    >>> memory(layers).weights, memory(integers).weights
    (768.0, 96.0)
    """
    check_layers(layers)
    arithmetic = layers.arithmetic
    state_bits = _FLOAT if arithmetic is None else arithmetic.state_bits
    maps = [node.weight for node in layers.nodes if isinstance(node, Affine)]
    weight_bits = sum(
        weight.size * (_FLOAT if arithmetic is None else _bits(weight))
        for weight in maps
    )
    neurons = sum(int(np.prod(p.shape)) for p in layers.populations)
    return Memory(weight_bits / 8, neurons * state_bits / 8)


def _bits(weight: np.ndarray) -> int:
    """Of whole numbers up to the largest, with a sign; -1 and 1 take one bit."""
    sizes = np.abs(weight)
    return 1 if (sizes == 1).all() else 1 + int(sizes.max(initial=0)).bit_length()
