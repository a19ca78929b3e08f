"""Encoders: signed neurons between an operator and a product with weights.

If a value depends on an operator since the last neuron, and enters a product with
weights, an encoder is put before the product. Products that read the same value share
its encoder. All other equations read the unencoded value.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from snnjax.network.capture.facts import Facts
from snnjax.network.capture.jaxprs import Program
from snnjax.network.capture.primitives import REARRANGEMENTS
from snnjax.network.equations import PRODUCTS, Equation
from snnjax.network.sites import new_site


def with_encoders(program: Program) -> Program:
    """The program with an encoder on every value that needs one."""
    facts, avals = Facts(program), program.avals
    encoded_values = _to_be_encoded(facts)
    spikes: dict[Any, Any] = {}  # value -> the output of its encoder
    equations = []
    for eq in program.equations:
        if _leads_to_products(eq, facts):
            eq = eq._replace(inputs=tuple(spikes.get(v, v) for v in eq.inputs))
        equations.append(eq)
        for v in encoded_values.intersection(eq.outputs):
            fresh = len(avals)
            avals[fresh] = avals[v]
            site = new_site("encoder", avals[v], is_encoder=True)
            path = _path_of_reader(program.equations, v)
            equations.append(Equation(None, (), (v,), (fresh,), site, path))
            spikes[v] = fresh
    return program._replace(equations=tuple(equations))


def _leads_to_products(eq: Equation, facts: Facts) -> bool:
    """Whether it is a product with weights, or a move that leads to products only."""
    if facts.is_product(eq):
        return True
    if eq.name not in REARRANGEMENTS or eq.site is not None:
        return False
    readers = [r for v in eq.outputs for r in facts.readers.get(v, ())]
    read_outside = bool(set(facts.program.outputs).intersection(eq.outputs))
    reader_leads = (_leads_to_products(reader, facts) for reader in readers)
    return bool(readers) and not read_outside and all(reader_leads)


def _to_be_encoded(facts: Facts) -> set[int]:
    """Values that enter a product with weights and need an encoder before it."""
    encoded_values: set[int] = set()
    operator_values: set[int] = set()  # by an operator, since the last neuron
    weighted_values: set[int] = set()  # by a product with weights, at some time
    for eq in facts.equations:
        if eq.fires:
            weighted_values.update(eq.outputs)
            continue
        operand = facts.operands.get(eq.outputs[0])
        inputs = facts.dependent.intersection(eq.variables)
        takes_spikes = False
        if operand is not None:
            sources = _moved_from(operand, facts)
            takes_spikes = bool(encoded_values.intersection(sources))
            if operand in operator_values & weighted_values and not takes_spikes:
                encoded_values.add(_common_source(sources, facts))
                takes_spikes = True
        if inputs & weighted_values or operand is not None:
            weighted_values.update(eq.outputs)
        if facts.is_operator(eq) or (inputs & operator_values and not takes_spikes):
            operator_values.update(eq.outputs)
    return encoded_values


def _moved_from(v: int, facts: Facts) -> list[int]:
    """The value and the values it is a pure rearrangement of."""
    chain = [v]
    while (eq := facts.makers.get(chain[-1])) is not None:
        inputs = facts.dependent.intersection(eq.variables)
        if eq.name not in REARRANGEMENTS or facts.is_operator(eq) or len(inputs) != 1:
            break
        chain += inputs
    return chain


def _common_source(sources: Sequence[int], facts: Facts) -> int:
    """The value to encode for a product: its operand, or what that was moved from.

    An attention multiplies one value x of three shapes by weights:

        q = x @ wq    k = transpose(x) @ wk    v = reshape(x) @ wv

    One encoder of x serves all of them, where three would send the same spikes. So we
    go back from the operand, the first of ``sources``, move by move.
    """
    common = sources[0]
    for moved_value, before in itertools.pairwise(sources):
        if not _leads_to_products(facts.makers[moved_value], facts):
            break  # something else reads the moved value, and reads it unencoded
        readers = facts.readers.get(before, ())
        if sum(_leads_to_products(reader, facts) for reader in readers) > 1:
            common = before
    return common


def _path_of_reader(equations: Sequence[Equation], v: int) -> str:
    """Where the first product that follows from a value stands."""
    reached_values = {v}
    for eq in equations:
        if reached_values.intersection(eq.variables):
            if eq.name in PRODUCTS:
                return eq.path
            reached_values.update(eq.outputs)
    return ""
