"""Cores with their own memory: which layer runs on which core.

A core runs one layer. It has one memory for the layer's kernels and one for the
potentials of its neurons, both counted in words, a number each.
Source: Kuhn, The Hungarian method for the assignment problem, 1955.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from snnjax.deploy.chips.geometry import Layer
from snnjax.deploy.chips.rules import Finding, Rule


class Core(NamedTuple):
    """How many words of memory a core has, or a layer needs.

    Attributes:
        kernels: words of weights.
        neurons: words of potentials.
    """

    kernels: int
    neurons: int

    def holds(self, need: "Core") -> bool:
        """Whether both memories are as large as a layer needs."""
        return need.kernels <= self.kernels and need.neurons <= self.neurons

    def __str__(self) -> str:
        kernels = _words(self.kernels)
        return f"{kernels} of kernels and {_words(self.neurons)} of neurons"


@dataclass(frozen=True)
class Cores(Rule):
    """Each layer runs on a core of its own, whose memory holds it.

    The kernels of a layer with c input channels and f filters have c f k weights, k for
    each pair of an input channel and a filter. They need c f k words of memory, or
    c 2^(ceil log2 k + ceil log2 f) if their addresses are made of whole bits.

    Attributes:
        cores: the memory of each core.
        addressed_by_bits: whether the addresses of weights are made of whole bits.
    """

    name: str = "cores"
    cores: tuple[Core, ...] = ()
    addressed_by_bits: bool = False

    def __str__(self) -> str:
        texts = []
        for core, count in Counter(self.cores).items():
            texts.append(f"{count} x {core.kernels}/{core.neurons}")
        return ", ".join(texts)

    def need(self, layer: Layer) -> Core:
        """The memory that a layer needs; kernels that meet in it are stored as one."""
        channels = 0
        # The largest size of the kernels along each axis; 1x1 without any.
        rows = 1
        columns = 1
        for kernel in layer.kernels:
            channels += kernel.channels
            rows = max(rows, kernel.size[0])
            columns = max(columns, kernel.size[1])
        weights = rows * columns
        filters = layer.node.shape[0]
        if self.addressed_by_bits:
            weights = 2 ** math.ceil(math.log2(weights))
            filters = 2 ** math.ceil(math.log2(filters))
        return Core(
            kernels=channels * weights * filters,
            neurons=math.prod(layer.node.shape),
        )

    def placed(self, layers: Sequence[Layer]) -> dict[str, int]:
        """Name of a layer -> index of its core; layers that get none are left out."""
        needs = {layer.name: self.need(layer) for layer in layers}
        return assign(needs, self.cores)

    def no_core(self, layer: Layer) -> Finding:
        """The finding about a layer that got no core."""
        need = self.need(layer)
        if any(core.holds(need) for core in self.cores):
            problem = f"needs {need}; other layers take every core that has them"
            return Finding(self.name, "no", problem, "use fewer or smaller layers")
        kernels = _words(max(core.kernels for core in self.cores))
        neurons = _words(max(core.neurons for core in self.cores))
        return Finding(
            field=self.name,
            verdict="no",
            problem=f"needs {need}; no core has both",
            remedy="use fewer channels, or pool earlier: a core has at most "
            f"{kernels} of kernels or {neurons} of neurons",
        )


def assign(needs: Mapping[str, Core], cores: Sequence[Core]) -> dict[str, int]:
    """Name of a layer -> index of its core; layers that get none are left out.

    A maximum matching by augmenting paths (Kuhn, 1955): if all layers can have a core,
    they do. The layers with the largest needs come first, and take the smallest core
    that has enough of both memories.

    >>> cores = [Core(16, 64), Core(64, 16)]
    >>> assign({"a": Core(10, 10), "b": Core(10, 60)}, cores)
    {'b': 0, 'a': 1}
    >>> assign({"a": Core(10, 60), "b": Core(10, 61)}, cores)
    {'b': 0}
    """
    layer_on_core: dict[int, str] = {}  # index of a core -> name of its layer
    smallest_first = sorted(range(len(cores)), key=cores.__getitem__)

    def place(name: str, visited: set[int]) -> bool:
        """Whether the layer gets a core that is none of those visited before."""
        for core in smallest_first:
            if core in visited or not cores[core].holds(needs[name]):
                continue
            visited.add(core)
            # The core is free, or the layer on it finds another one.
            occupant = layer_on_core.get(core)
            if occupant is None or place(occupant, visited):
                layer_on_core[core] = name
                return True
        return False

    def largest_memory(name: str) -> tuple[int, str]:
        """A key to sort names by; layers of the same need are sorted by name."""
        return max(needs[name]), name

    for name in sorted(needs, key=largest_memory, reverse=True):
        place(name, set())
    return {name: core for core, name in layer_on_core.items()}


def _words(count: int) -> str:
    """A number of words of memory as text."""
    return f"{count / 1024:.3g} Ki words" if count >= 1024 else f"{count} words"
