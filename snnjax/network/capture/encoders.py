"""Encoders: signed neurons between an operator and a product with weights.

Spikes of a neuron stay spikes on the way to a product, unless an operator makes other
numbers of them. Such a value gets an encoder before the product. Products that read the
same value share its encoder. All other equations read the unencoded value. A move is a
rearrangement of the numbers of one array, such as a reshape.
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
    facts = Facts(program)
    avals = program.avals
    encoded_values = _values_to_encode(facts)
    spikes: dict[Any, Any] = {}  # value -> the output of its encoder
    equations = []
    for eq in program.equations:
        if _leads_to_products(eq, facts):
            inputs = tuple(spikes.get(v, v) for v in eq.inputs)
            eq = eq._replace(inputs=inputs)
        equations.append(eq)
        for v in encoded_values.intersection(eq.outputs):
            encoder_output = len(avals)  # a new variable
            avals[encoder_output] = avals[v]
            encoder = Equation(
                primitive=None,
                params=(),
                inputs=(v,),
                outputs=(encoder_output,),
                site=new_site("encoder", avals[v], is_encoder=True),
                path=_path_of_first_product(program.equations, v),
            )
            equations.append(encoder)
            spikes[v] = encoder_output
    return program._replace(equations=tuple(equations))


def _leads_to_products(eq: Equation, facts: Facts) -> bool:
    """Whether an equation is a product with weights, or moves a value to those only."""
    if facts.is_product(eq):
        return True
    if eq.name not in REARRANGEMENTS or eq.site is not None:
        return False
    if set(facts.program.outputs).intersection(eq.outputs):
        return False  # the user reads the moved value
    readers = facts.successors(eq)
    for reader in readers:
        if not _leads_to_products(reader, facts):
            return False
    return bool(readers)


def _values_to_encode(facts: Facts) -> set[int]:
    """Values that enter a product with weights and need an encoder before it.

    A value needs one if it depends on an operator since the last neuron or encoder.
    What is computed of x before any neuron and any product with weights is excepted: it
    is still the analog input, which the first weights read unencoded.
    """
    encoded_values: set[int] = set()
    # Values that depend on an operator since the last neuron or encoder.
    operator_values: set[int] = set()
    # Values that depend on a neuron or a product with weights.
    weighted_values: set[int] = set()
    for eq in facts.equations:
        if eq.fires:
            weighted_values.update(eq.outputs)
            continue
        operand = facts.product_operands.get(eq.outputs[0])
        inputs = facts.dependent.intersection(eq.variables)
        takes_spikes = False
        if operand is not None:
            sources = _moved_from(operand, facts)
            takes_spikes = bool(encoded_values.intersection(sources))
            needs_encoder = operand in operator_values and operand in weighted_values
            if needs_encoder and not takes_spikes:
                encoded_values.add(_common_source(sources, facts))
                takes_spikes = True
        if inputs & weighted_values or operand is not None:
            weighted_values.update(eq.outputs)
        # An encoder sends spikes, as a neuron does: what follows from them depends on
        # an operator only if another one comes.
        depends_on_operator = bool(inputs & operator_values) and not takes_spikes
        if facts.is_operator(eq) or depends_on_operator:
            operator_values.update(eq.outputs)
    return encoded_values


def _moved_from(v: int, facts: Facts) -> list[int]:
    """The values that v was moved from, backwards: v, its source, and that one's."""
    chain = [v]
    while chain[-1] in facts.makers:
        eq = facts.makers[chain[-1]]
        sources = facts.dependent.intersection(eq.variables)
        # A conversion of truth values to numbers is a rearrangement by the table of
        # primitives, but an operator and no move.
        is_move = eq.name in REARRANGEMENTS and not facts.is_operator(eq)
        if not is_move or len(sources) != 1:
            break
        chain.extend(sources)
    return chain


def _common_source(sources: Sequence[int], facts: Facts) -> int:
    """The value to encode for a product: its operand, or what that was moved from.

    An attention multiplies one value x by weights, in three shapes:

        q = x @ wq    k = transpose(x) @ wk    v = reshape(x) @ wv

    One encoder of x serves all three, where three would send the same spikes.

    Args:
        sources: the operand, and what it was moved from, see `_moved_from`.
    """
    common_source = sources[0]
    for moved_value, source in itertools.pairwise(sources):
        if not _leads_to_products(facts.makers[moved_value], facts):
            break  # something else reads the moved value, and reads it unencoded
        ways_to_products = 0
        for reader in facts.readers.get(source, ()):
            if _leads_to_products(reader, facts):
                ways_to_products += 1
        if ways_to_products > 1:
            common_source = source
    return common_source


def _path_of_first_product(equations: Sequence[Equation], v: int) -> str:
    """The path of the first product that follows from a value; "" if there is none."""
    reached_values = {v}
    for eq in equations:
        if reached_values.intersection(eq.variables):
            if eq.name in PRODUCTS:
                return eq.path
            reached_values.update(eq.outputs)
    return ""
