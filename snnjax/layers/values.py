"""A network of layers as plain values, channels first: what `to_nir` writes.

A node is a layer or a population of neurons. It reads the sum of its sources' outputs,
each a vector [N] or an image [C, H, W]. Thresholds are 1: the weights that feed a
population are divided by its thresholds, those that read its spikes multiplied by them.
"""

from typing import NamedTuple

import numpy as np

from snnjax.neurons.models import IntegrateAndFire


class Input(NamedTuple):
    """Where x enters."""

    shape: tuple[int, ...]


class Output(NamedTuple):
    """Where a result leaves."""

    shape: tuple[int, ...]


class Neurons(NamedTuple):
    """A population with threshold 1; ``leak`` is None for an IF."""

    model: IntegrateAndFire
    leak: np.ndarray | None
    initial_potential: np.ndarray


class Conv(NamedTuple):
    """2-D convolution, weight [O, I / groups, K, K], padded alike on both sides."""

    weight: np.ndarray
    bias: np.ndarray
    size: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1


class Dense(NamedTuple):
    """weight @ x + bias, x a vector."""

    weight: np.ndarray
    bias: np.ndarray


class Pool(NamedTuple):
    """Sum over windows, or their average."""

    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] = (0, 0)
    average: bool = False


class Scale(NamedTuple):
    """x times a factor of x's shape."""

    factor: np.ndarray


class Flatten(NamedTuple):
    """An array of this shape becomes a vector."""

    shape: tuple[int, ...]


Node = Input | Output | Neurons | Conv | Dense | Pool | Scale | Flatten


class Graph(NamedTuple):
    """A network of layers without cycles.

    Attributes:
        nodes: name -> node, in order of execution.
        sources: name -> names of the nodes whose outputs it sums.
    """

    nodes: dict[str, Node]
    sources: dict[str, tuple[str, ...]]
