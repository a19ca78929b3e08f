"""Ways through a program: what reads a value, what moves it, which weights it meets.

What `operators` and `encoders` have in common.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from snnjax.network.equations import PRODUCTS, Equation, spread_out
from snnjax.network.jaxprs import Program

# Whether an equation is not affine in what depends on x.
NotAffine = Callable[[Equation], bool]

# What moves numbers about and computes none.
MOVES = frozenset(
    "reshape transpose squeeze expand_dims convert_element_type copy name "
    "optimization_barrier".split()
)


class ProductsWithWeights:
    """equation -> the operand that depends on x, of a product with weights.

    Weights are parameters and arrays that the function closed over, not what it
    computes of shapes alone, as a resizing does.
    """

    def __init__(self, program: Program, dependent: frozenset[int]):
        self.weights = {*program.parameters, *program.constants}
        self.dependent = dependent

    def follow(self, eq: Equation) -> int | None:
        """The operand, or None; called in order of execution."""
        on_x = self.dependent.intersection(eq.variables)
        if not on_x and self.weights.intersection(eq.variables):
            self.weights.update(eq.outputs)
        if eq.name not in PRODUCTS or len(on_x) != 1:
            return None
        weights = any(
            v in self.weights if isinstance(v, int) else np.ndim(v.value) > 1
            for v in eq.inputs
        )
        return min(on_x) if weights else None


def live(equations: Iterable[Equation]) -> frozenset[int]:
    """Variables that depend on spikes."""
    reached: set[int] = set()
    for eq in equations:
        if eq.fires or reached.intersection(eq.variables):
            reached.update(v for inner in spread_out([eq]) for v in inner.outputs)
            reached.update(eq.outputs)
    return frozenset(reached)


def readers_of(equations: Iterable[Equation]) -> dict[int, list[Equation]]:
    """Value -> the equations that read it."""
    readers: dict[int, list[Equation]] = {}
    for eq in equations:
        for v in dict.fromkeys(eq.variables):
            readers.setdefault(v, []).append(eq)
    return readers


def fresh_names(equations: Iterable[Equation]) -> Iterator[int]:
    """Numbers that no site is called by; sites that fell away leave gaps."""
    numbers = [int(eq.place.name) for eq in equations if eq.site is not None]
    return itertools.count(max(numbers, default=-1) + 1)
