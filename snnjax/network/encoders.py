"""Where encoders stand: before products with weights, on what an operator has touched.

A value that an operator has touched since the last neuron, and that enters a product
with weights, is encoded first, by neurons that may send negative spikes. Products that
read the same value share its encoder; what is no product reads the value itself.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from snnjax.network.equations import PRODUCTS, Equation
from snnjax.network.jaxprs import Program
from snnjax.network.sites import Site
from snnjax.network.ways import (
    MOVES,
    NotAffine,
    ProductsWithWeights,
    fresh_names,
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
    encoded: set[int] = set()
    while (v := _needs_encoder(program, dependent, not_affine, encoded)) is not None:
        assert v not in encoded, f"variable {v} would be encoded without an end"
        encoded.add(v)
    numbers = itertools.count(max(avals) + 1)
    names = fresh_names(equations)
    spikes: dict[Any, Any] = {}  # value -> the output of its encoder
    leads = _Leads(program, dependent)
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
        products = ProductsWithWeights(program, dependent)
        follow = ((id(eq), products.follow(eq)) for eq in program.equations)
        self.with_weights = {number for number, v in follow if v is not None}

    def to_products(self, eq: Equation) -> bool:
        """Whether it is a product, or a move that leads to products only."""
        if id(eq) in self.with_weights:
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


def _needs_encoder(
    program: Program,
    dependent: frozenset[int],
    not_affine: NotAffine,
    encoded: set[int],
) -> int | None:
    """The first value that enters a product with weights and needs an encoder."""
    products = ProductsWithWeights(program, dependent)
    touched: set[int] = set()  # by an operator, since the last neuron
    weighted: set[int] = set()  # by a product with weights, at some time
    moved_from: dict[int, int] = {}

    def sources(v: int | None) -> list[int]:
        """The value, and those that it is but moved from."""
        chain = []
        while v is not None:
            chain.append(v)
            v = moved_from.get(v)
        return chain

    for eq in program.equations:
        operand = products.follow(eq)
        inputs = dependent.intersection(eq.variables)
        is_spikes = bool(encoded.intersection(sources(operand)))
        if operand is not None and operand in touched & weighted and not is_spikes:
            return _shared(sources(operand), program, dependent)
        if eq.fires:
            weighted.update(eq.outputs)
            continue
        if inputs & weighted or operand is not None:
            weighted.update(eq.outputs)
        operates = not_affine(eq)
        if operates or (inputs & touched and not is_spikes):
            touched.update(eq.outputs)
        if eq.name in MOVES and len(inputs) == 1 and not operates:
            moved_from[eq.outputs[0]] = min(inputs)
    return None


def _shared(sources: list[int], program: Program, dependent: frozenset[int]) -> int:
    """The operand, or what it is moved from where other products read that as well."""
    leads = _Leads(program, dependent)
    maker = {v: eq for eq in program.equations for v in eq.outputs}
    moves = itertools.takewhile(
        lambda pair: leads.to_products(maker[pair[0]]), itertools.pairwise(sources)
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
