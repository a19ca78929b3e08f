"""Where encoders stand: before products with weights, on what an operator has touched.

A value that an operator has touched since the last neuron, and that enters a product
with weights, is encoded first, by neurons that may send negative spikes. Products that
read the same value share its encoder; what is no product reads the value itself.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from snnjax.network.equations import PRODUCTS, Equation
from snnjax.network.jaxprs import Program
from snnjax.network.sites import Site
from snnjax.network.ways import (
    MOVES,
    NotAffine,
    fresh_names,
    operands,
    readers_of,
)


def with_encoders(
    program: Program, dependent: frozenset[int], not_affine: NotAffine
) -> Program:
    """The program with an encoder on every value that needs one.

    Args:
        program: with all calls inlined; its avals get those of the encoders' outputs.
        dependent: variables that depend on x.
        not_affine: whether an equation is not affine in these.
    """
    equations, avals = program.equations, program.avals
    leads = _Leads(program, dependent)
    encoded = _to_be_encoded(program, dependent, not_affine, leads)
    numbers = itertools.count(max(avals) + 1)
    names = fresh_names(equations)
    spikes: dict[Any, Any] = {}  # value -> the output of its encoder
    placed = []
    for eq in equations:
        if leads.to_products(eq):
            eq = eq._replace(inputs=tuple(spikes.get(v, v) for v in eq.inputs))
        placed.append(eq)
        for v in encoded.intersection(eq.outputs):
            fresh = next(numbers)
            avals[fresh] = avals[v]
            site = Site(
                name=str(next(names)),
                kind="encoder",
                shape=avals[v].shape[1:],
                parameters=(),
                depth=0,
                dtype=avals[v].dtype,
                signed=True,
            )
            path = _path_of_reader(equations, v)
            placed.append(Equation(None, (), (v,), (fresh,), site, path))
            spikes[v] = fresh
    return program._replace(equations=tuple(placed))


class _Leads:
    """Which equations only move a value on its way to products with weights."""

    def __init__(self, program: Program, dependent: frozenset[int]):
        self.readers, self.outputs = readers_of(program.equations), program.outputs
        self.operands = operands(program, dependent)

    def to_products(self, eq: Equation) -> bool:
        """Whether it is a product, or a move that leads to products only."""
        if self.operands.keys() & set(eq.outputs):
            return True
        if eq.name not in MOVES or eq.site is not None:
            return False
        readers = [r for v in eq.outputs for r in self.readers.get(v, ())]
        read_outside = bool(set(self.outputs).intersection(eq.outputs))
        return (
            bool(readers) and not read_outside and all(map(self.to_products, readers))
        )

    def products_behind(self, v: int) -> int:
        """How many readers of a value are, or only move it to, products."""
        return sum(map(self.to_products, self.readers.get(v, ())))


def _to_be_encoded(
    program: Program,
    dependent: frozenset[int],
    not_affine: NotAffine,
    leads: _Leads,
) -> set[int]:
    """Values that enter a product with weights and need an encoder before it."""
    encoded: set[int] = set()
    touched: set[int] = set()  # by an operator, since the last neuron
    weighted: set[int] = set()  # by a product with weights, at some time
    move_to: dict[int, Equation] = {}
    for eq in program.equations:
        if eq.fires:
            weighted.update(eq.outputs)
            continue
        operand = leads.operands.get(eq.outputs[0]) if eq.outputs else None
        inputs = dependent.intersection(eq.variables)
        takes_spikes = False
        if operand is not None:
            sources = _moved_from(operand, move_to, dependent)
            takes_spikes = bool(encoded.intersection(sources))
            if operand in touched & weighted and not takes_spikes:
                encoded.add(_shared(sources, move_to, leads))
                takes_spikes = True
        if inputs & weighted or operand is not None:
            weighted.update(eq.outputs)
        operates = not_affine(eq)
        if operates or (inputs & touched and not takes_spikes):
            touched.update(eq.outputs)
        if eq.name in MOVES and len(inputs) == 1 and not operates:
            move_to[eq.outputs[0]] = eq
    return encoded


def _moved_from(
    v: int, move_to: Mapping[int, Equation], dependent: frozenset[int]
) -> list[int]:
    """The value, and those that it is but moved from."""
    chain = [v]
    while v in move_to:
        (v,) = dependent.intersection(move_to[v].variables)
        chain.append(v)
    return chain


def _shared(
    sources: Sequence[int], move_to: Mapping[int, Equation], leads: _Leads
) -> int:
    """The operand, or what it is moved from where other products read that as well."""
    moves = itertools.takewhile(
        lambda pair: leads.to_products(move_to[pair[0]]), itertools.pairwise(sources)
    )
    shared = [before for _, before in moves if leads.products_behind(before) > 1]
    return shared[-1] if shared else sources[0]


def _path_of_reader(equations: Sequence[Equation], v: int) -> str:
    """Where the first product that follows from a value stands."""
    reached = {v}
    for eq in equations:
        if reached.intersection(eq.variables):
            if eq.name in PRODUCTS:
                return eq.path
            reached.update(eq.outputs)
    return ""
