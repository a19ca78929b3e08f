"""A spiking network as a network of layers: what a chip, NIR and whole numbers need.

`of` makes `Layers` of a function and its SNN (``lowering.py``). ``rules.py`` has a rule
per primitive, ``windows.py`` convolutions and pools, ``sums.py`` the scales and biases
on their way into weights, ``connections.py`` one map for each connection. `function`
runs them as an ordinary JAX function.
"""

from snnjax.layers.function import function
from snnjax.layers.lowering import of
from snnjax.layers.values import (
    Arithmetic,
    Connection,
    Convolution,
    Dense,
    Flatten,
    Input,
    Layers,
    Output,
    Population,
    Scale,
    SumPool,
)

__all__ = [
    "Arithmetic",
    "Connection",
    "Convolution",
    "Dense",
    "Flatten",
    "Input",
    "Layers",
    "Output",
    "Population",
    "Scale",
    "SumPool",
    "function",
    "of",
]
