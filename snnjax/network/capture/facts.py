"""Facts about the equations of a program, each computed once, when it is first read.

A rewrite makes a new program, which needs new facts. Spikes stand for all that neurons
send: a variable depends on spikes if it depends on the output of a firing site.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax.network.capture.jaxprs import CUSTOM, Program
from snnjax.network.capture.primitives import OPERATOR, REARRANGEMENTS, primitive
from snnjax.network.equations import (
    PRODUCTS,
    Avals,
    Equation,
    Network,
    Static,
    shape_of,
    spread_out,
    variables_in,
)
from snnjax.network.stages import streaming

FLOATING = "fV"  # kinds of NumPy's types; V is bfloat16
# Primitives whose result has equal numbers if their operand has.
_REPEATS = REARRANGEMENTS | {"broadcast_in_dim", "stop_gradient"}
# Obstacles to spikes that are none where an equation depends on x alone and is computed
# once. Loops and unknown functions stay obstacles: in them an example might reach
# another one.
_OBSTACLES_TO_SPIKES = ("order", "integer")
# Primitives that read or write at indices, which are an operand.
_INDEXED = (
    "gather",
    "dynamic_slice",
    "dynamic_update_slice",
    "scatter",
    "scatter-add",
    "scatter_add",
    "scatter-sub",
    "scatter_sub",
)


class Facts:
    """Facts about a program's variables and equations."""

    def __init__(self, program: Program | Network):
        self.program = program
        self.equations = program.equations

    @functools.cached_property
    def dependent(self) -> frozenset[int]:
        """Variables that depend on x, also those inside of operators."""
        dependent = set(self.program.x)
        for eq in spread_out(self.equations):
            if dependent.intersection(eq.variables):
                dependent.update(eq.outputs)
        return frozenset(dependent)

    @functools.cached_property
    def spike_dependent(self) -> frozenset[int]:
        """Variables that depend on spikes, also those inside of operators."""
        return streaming(self.equations)

    @functools.cached_property
    def makers(self) -> Mapping[int, Equation]:
        """Variable -> the equation that computes it."""
        return {v: eq for eq in self.equations for v in eq.outputs}

    @functools.cached_property
    def readers(self) -> Mapping[int, list[Equation]]:
        """Variable -> the equations that read it."""
        readers: dict[int, list[Equation]] = {}
        for eq in self.equations:
            for v in dict.fromkeys(eq.variables):
                readers.setdefault(v, []).append(eq)
        return readers

    def successors(self, eq: Equation) -> list[Equation]:
        """The equations that read an output of this one."""
        equations: list[Equation] = []
        for v in eq.outputs:
            equations += self.readers.get(v, [])
        return equations

    def number(self, v: int | Static) -> float | None:
        """The number that all entries of a variable or constant have in common.

        None if they differ, or if they are not known before x and the parameters are.
        """
        if isinstance(v, Static):
            return _number(v.value)
        if v in self.program.constants:
            return _number(self.program.constants[v])
        # Repeated or reordered entries of another variable have the number of those.
        eq = self.makers.get(v)
        if eq is None or eq.name not in _REPEATS or len(eq.inputs) != 1:
            return None
        return self.number(eq.inputs[0])

    @functools.cached_property
    def product_operands(self) -> Mapping[int, int]:
        """Result of each product with weights -> its operand that depends on x.

        Weights are parameters, arrays that the function closed over, and what is
        computed from these. An array that the function computes from shapes alone, as
        in a resizing, is no weight.
        """
        weights = {*self.program.parameters, *self.program.constants}  # variables
        operands: dict[int, int] = {}

        def is_weight(v: int | Static) -> bool:
            # Inside of a call, an array that the function closed over is no variable.
            # A matrix or a kernel has two axes at least.
            if isinstance(v, Static):
                return np.ndim(v.value) > 1
            return v in weights

        for eq in self.equations:
            dependent_inputs = self.dependent.intersection(eq.variables)
            if not dependent_inputs and weights.intersection(eq.variables):
                weights.update(eq.outputs)
            if eq.name in PRODUCTS and any(map(is_weight, eq.inputs)):
                if len(dependent_inputs) == 1:
                    (operand,) = dependent_inputs
                    operands[eq.outputs[0]] = operand
        return operands

    def is_product(self, eq: Equation) -> bool:
        """Whether an equation is a product of weights and what depends on x."""
        return eq.outputs[0] in self.product_operands

    @functools.cached_property
    def leaving(self) -> frozenset[int]:
        """Outputs of operators: variables of a body that other equations read."""
        return frozenset(v for eq in self.equations if eq.body for v in eq.outputs)

    def is_operator(self, eq: Equation) -> bool:
        """Whether an equation is to be computed on running means, or is part of it.

        That is one that is not affine in what depends on x, but a known function.
        """
        return eq.site is None and self.why_not_affine[eq.outputs[0]] == OPERATOR

    @functools.cached_property
    def why_not_affine(self) -> Mapping[int, str | None]:
        """First output of each equation -> why it is not affine in what depends on x.

        None: it is affine, and is applied to every step. `OPERATOR`: it is another
        known function, and is applied to running means (``increments.py``). Any other
        word is a kind of obstacle, which `check` explains.
        """
        reasons = {}
        for eq in spread_out(self.equations):
            reason = self._why_not_affine(eq)
            if reason is not None and self._is_known_from_input(eq, reason):
                reason = OPERATOR
            reasons[eq.outputs[0]] = reason
        return reasons

    def _is_known_from_input(self, eq: Equation, reason: str) -> bool:
        """Whether what is not affine in an equation depends on x, but on no spikes."""
        if eq.name in _INDEXED:
            # It is affine in the array that it reads or writes, which may depend on
            # spikes. It is not in the indices, which must not.
            affine_operands = primitive(eq.name).affine_in
            indices = [v for i, v in enumerate(eq.inputs) if i not in affine_operands]
            return self.spike_dependent.isdisjoint(variables_in(indices))
        has_no_spikes = self.spike_dependent.isdisjoint((*eq.variables, *eq.outputs))
        return has_no_spikes and reason in _OBSTACLES_TO_SPIKES

    def _why_not_affine(self, eq: Equation) -> str | None:
        """As `why_not_affine`, if all that depends on x depended on spikes too."""
        name = eq.name
        row = primitive(name)
        avals = self.program.avals
        # Random numbers are refused even if they do not depend on x.
        if row.otherwise == "random":
            return "random"
        # Positions of the operands that depend on x.
        dependent = {i for i, v in enumerate(eq.inputs) if v in self.dependent}
        if not dependent:
            return None
        if eq.site is not None:
            # Its operands are its current and, where it is clipped, the maximum.
            if dependent != {0}:
                return "maximum"  # it depends on x, and a threshold is constant
            if axes_of_maximum(eq, avals) <= {eq.site.channel}:
                return None
            return "maxima"  # they differ within a channel, which has one threshold
        if name == "integer_pow" and eq.options["y"] == 1:  # x^1
            return None
        if name == "convert_element_type":
            if avals[eq.outputs[0]].dtype.kind not in FLOATING:
                return "integer"
            # A truth value as 0 or 1 is a step, the last part of a comparison.
            return OPERATOR if avals[eq.variables[0]].dtype.kind == "b" else None
        # Operand 0 of a select is the mask. With a constant one it is affine.
        if name == "select_n" and 0 not in dependent:
            return None
        if row.affine_in_each and len(dependent) == 1:
            return None
        if all(i in row.affine_in for i in dependent):
            return None
        # A call with a custom derivative is a ReLU that is part of an operator.
        return OPERATOR if name in CUSTOM else row.otherwise


def axes_of_maximum(eq: Equation, avals: Avals) -> set[int]:
    """Axes along which the maximum of a clipped ReLU differs.

    They are counted from the last one, -1. Other equations have none.
    """
    if not eq.fires or len(eq.inputs) < 2:
        return set()
    shape = shape_of(avals, eq.inputs[1])
    return {axis - len(shape) for axis, size in enumerate(shape) if size > 1}


def _number(value: Any) -> float | None:
    """The number that all entries of an array are; None if they differ.

    None also for random keys, and for an array that fn closes over inside of jit.
    """
    dtype = getattr(value, "dtype", np.float32)
    if isinstance(value, Tracer) or jnp.issubdtype(dtype, jax.dtypes.extended):
        return None
    array = np.asarray(value)
    if array.size == 0 or (array != array.flat[0]).any():
        return None
    return float(array.flat[0])
