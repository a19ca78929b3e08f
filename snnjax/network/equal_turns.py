"""Turns of a loop with equal equations, so that a conversion compiles them once.

    y_i = s[i], with i in the equation  ->  y_i = dynamic_slice(s, i), with i an input

s is a stack, of the parameters of layers or of what a recurrent network reads. A
conversion compiles the equations between two sites once, wherever they are repeated.
The numbers of the turns would make them differ, so here the numbers become constants of
the network. Source: ours.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jax import lax

from snnjax.network.equations import Avals, Equation, Network, Static, Values, shape_of


def with_equal_turns(network: Network) -> Network:
    """The network with every entry of a stack taken by a number that is an input.

    It computes the same, and it is for calibration alone: other parts of the library
    know what a ``slice`` does to an axis, but not what a ``dynamic_slice`` does.
    """
    numbers = _TurnNumbers(network)
    equations: list[Equation] = []
    for eq in network.equations:
        entries = list(_entries(eq, network.avals))
        if not entries:
            equations.append(eq)
        for number, output in entries:
            equations.append(numbers.entry(eq, number, output))
    return network._replace(
        equations=tuple(equations), avals=numbers.avals, constants=numbers.constants
    )


class _TurnNumbers:
    """The numbers of turns as constants of a network.

    Attributes:
        avals: variable -> shape and dtype; the numbers are among them.
        constants: variable -> array; the numbers are among them.
        variables: number of a turn -> variable.
    """

    def __init__(self, network: Network):
        self.avals: Avals = dict(network.avals)
        self.constants: Values = dict(network.constants)
        self.variables: dict[int, int] = {}

    def entry(self, eq: Equation, number: int, output: int) -> Equation:
        """The equation that takes one entry of a stack.

        Args:
            eq: takes it by a number that it holds.
            number: of the entry along the first axis.
            output: variable of the entry, [1, ...].
        """
        stack = eq.inputs[0]
        shape = tuple(self.avals[output].shape)
        first_numbers = (Static(np.int32(0)),) * (len(shape) - 1)
        inputs = (stack, self._variable(number), *first_numbers)
        mapped = ()
        if eq.mapped:
            mapped = (eq.mapped[0], *(False for _ in shape))
        return eq._replace(
            primitive=lax.dynamic_slice_p,
            params=(("slice_sizes", Static(shape)),),
            inputs=inputs,
            outputs=(output,),
            mapped=mapped,
        )

    def _variable(self, number: int) -> int:
        """The variable of a number."""
        if number not in self.variables:
            value = np.int32(number)
            variable = len(self.avals)
            self.avals[variable] = jax.typeof(value)
            self.constants[variable] = value
            self.variables[number] = variable
        return self.variables[number]


def _entries(eq: Equation, avals: Avals) -> Iterator[tuple[int, int]]:
    """The number and the variable of each entry that an equation takes of a stack.

    An entry is one along the first axis, and all along the other axes. An equation that
    also takes something else, as a split into the first entry and the rest does, is no
    turn of a loop: it has no entries.
    """
    if eq.name not in ("split", "slice", "dynamic_slice"):
        return
    stack_shape = shape_of(avals, eq.inputs[0])
    entry_shape = (1, *stack_shape[1:])
    if any(tuple(avals[output].shape) != entry_shape for output in eq.outputs):
        return
    for position, output in enumerate(eq.outputs):
        if eq.name == "split":
            yield position, output
        elif eq.name == "slice":
            yield eq.options["start_indices"][0], output
        elif isinstance(eq.inputs[1], Static):
            # Beyond an end of the stack, a dynamic slice takes the entry at the end.
            number = int(np.asarray(eq.inputs[1].value))
            yield min(max(number, 0), stack_shape[0] - 1), output
