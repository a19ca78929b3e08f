"""Cores with their own memory: which layer runs on which.

A core runs one layer, and has words for its kernels and for its potentials. Source of
the assignment: Kuhn, The Hungarian method for the assignment problem, 1955.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from snnjax.deploy.chips.geometry import Layer
from snnjax.deploy.chips.rules import Finding, Rule


class Core(NamedTuple):
    """Words of memory of a core, or that a layer needs.

    Attributes:
        kernels: words of weights.
        neurons: words of potentials.
    """

    kernels: int
    neurons: int

    def holds(self, need: "Core") -> bool:
        """Whether it has this much of both memories."""
        return need.kernels <= self.kernels and need.neurons <= self.neurons

    def __str__(self) -> str:
        kernels = _words(self.kernels)
        return f"{kernels} of kernels and {_words(self.neurons)} of neurons"


@dataclass(frozen=True)
class Cores(Rule):
    """Each layer runs on a core of its own, whose memory holds it.

    With c input channels, f filters and k taps, the kernels of a layer need c f k
    words, or c 2^(ceil log2 k + ceil log2 f) if they are addressed by bits.

    Attributes:
        cores: the memory of each.
        addressed_by_bits: how kernels are stored.
    """

    name: str = "cores"
    cores: tuple[Core, ...] = ()
    addressed_by_bits: bool = False

    def __str__(self) -> str:
        counts: dict[Core, int] = {}
        for core in self.cores:
            counts[core] = counts.get(core, 0) + 1
        texts = [f"{n} x {c.kernels}/{c.neurons}" for c, n in counts.items()]
        return ", ".join(texts)

    def need(self, layer: Layer) -> Core:
        """Words of a layer; kernels that meet in it are stored as one."""
        sizes = [kernel.size for kernel in layer.kernels]
        # The largest of the kernels along each axis; 1x1 without any.
        taps = math.prod(max(lengths) for lengths in zip(*sizes, strict=True))
        filters = layer.node.shape[0]
        if self.addressed_by_bits:
            taps = 2 ** math.ceil(math.log2(taps))
            filters = 2 ** math.ceil(math.log2(filters))
        channels = sum(kernel.channels for kernel in layer.kernels)
        return Core(channels * taps * filters, math.prod(layer.node.shape))

    def placed(self, layers: Sequence[Layer]) -> dict[str, int]:
        """Name of a layer -> number of its core; without those that get none."""
        needs = {layer.name: self.need(layer) for layer in layers}
        return assign(needs, self.cores)

    def no_core(self, layer: Layer) -> Finding:
        """Why a layer got no core."""
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
    """Name -> number of a core; names that get none are left out.

    A maximum matching by augmenting paths (Kuhn, 1955): if all layers can have a core,
    they do. The largest needs come first, and take the smallest core that has both
    memories.

    >>> cores = [Core(16, 64), Core(64, 16)]
    >>> assign({"a": Core(10, 10), "b": Core(10, 60)}, cores)
    {'b': 0, 'a': 1}
    >>> assign({"a": Core(10, 60), "b": Core(10, 61)}, cores)
    {'b': 0}
    """
    layer_on_core: dict[int, str] = {}
    smallest_first = sorted(range(len(cores)), key=lambda number: cores[number])

    def place(name: str, visited: set[int]) -> bool:
        for number in smallest_first:
            if number in visited or not cores[number].holds(needs[name]):
                continue
            visited.add(number)
            # The core is free, or its layer finds another one.
            occupant = layer_on_core.get(number)
            if occupant is None or place(occupant, visited):
                layer_on_core[number] = name
                return True
        return False

    names = sorted(needs, key=lambda name: (max(needs[name]), name), reverse=True)
    for name in names:
        place(name, set())
    numbers = {name: number for number, name in layer_on_core.items()}
    return {name: numbers[name] for name in names if name in numbers}


def _words(count: int) -> str:
    """A size of memory as text."""
    return f"{count / 1024:.3g} Ki words" if count >= 1024 else f"{count} words"
