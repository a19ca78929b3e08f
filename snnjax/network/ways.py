"""Ways through a program: what reads a value, what moves it, which weights it meets.

What `operators` and `encoders` have in common.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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


def operands(program: Program, dependent: frozenset[int]) -> dict[int, int]:
    """Result of each product with weights -> its operand that depends on x.

    Weights are parameters and arrays that the function closed over, not what it
    computes of shapes alone, as a resizing does.
    """
    weights: set[Any] = {*program.parameters, *program.constants}
    operand_of: dict[int, int] = {}
    for eq in program.equations:
        on_x = dependent.intersection(eq.variables)
        if not on_x and weights.intersection(eq.variables):
            weights.update(eq.outputs)
        has_weights = any(
            v in weights if isinstance(v, int) else np.ndim(v.value) > 1
            for v in eq.inputs
        )
        if eq.name in PRODUCTS and len(on_x) == 1 and has_weights:
            operand_of[eq.outputs[0]] = min(on_x)
    return operand_of


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
