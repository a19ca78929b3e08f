"""Ways through a program: what reads a value, what moves it, which weights it meets.

What `operators` and `encoders` have in common.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

from snnjax.network.equations import PRODUCTS, Equation
from snnjax.network.jaxprs import Program

# Whether an equation is not affine in what depends on x.
NotAffine = Callable[[Equation], bool]

# What moves numbers about and computes none.
MOVES = frozenset(
    "reshape transpose squeeze expand_dims convert_element_type copy name "
    "optimization_barrier".split()
)


class ProductsWithWeights:
    """equation -> the operand that depends on x, of a product with weights."""

    def __init__(self, program: Program, dependent: frozenset[int]):
        self.weights, self.dependent = set(program.parameters), dependent

    def follow(self, eq: Equation) -> int | None:
        """The operand, or None; called in order of execution."""
        on_x = self.dependent.intersection(eq.variables)
        if not on_x and self.weights.intersection(eq.variables):
            self.weights.update(eq.outputs)
        if eq.name not in PRODUCTS or len(on_x) != 1:
            return None
        others = [v for v in eq.variables if v not in on_x]
        return min(on_x) if self.weights.intersection(others) else None


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
