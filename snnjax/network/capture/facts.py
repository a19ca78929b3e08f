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
# Primitives whose result has equal numbers if their first operand has.
_REPEATS = REARRANGEMENTS | {
    "broadcast_in_dim",
    "dynamic_slice",
    "slice",
    "split",
    "stop_gradient",
}
# Obstacles to spikes that are none where an equation depends on x alone and is computed
# once. Loops and unknown functions stay obstacles: in them an example might reach
# another one.
_OBSTACLES_TO_SPIKES = ("order", "integer", "complex")


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
        # Repeated, reordered or selected entries of another variable have the number of
        # those.
        eq = self.makers.get(v)
        if eq is None or eq.name not in _REPEATS:
            return None
        return self.number(eq.inputs[0])

    @functools.cached_property
    def product_operands(self) -> Mapping[int, int]:
        """Result of each product with weights -> its operand that depends on x.

        Weights are parameters, arrays that the function closed over, and what is
        computed from these. An array that the function computes from shapes alone, as
        in a resizing, is no weight.
        """
        operands: dict[int, int] = {}
        for eq in self.equations:
            dependent_inputs = self.dependent.intersection(eq.variables)
            is_product = eq.name in PRODUCTS and any(map(self._is_weight, eq.inputs))
            if is_product and len(dependent_inputs) == 1:
                (operand,) = dependent_inputs
                operands[eq.outputs[0]] = operand
        return operands

    def _is_weight(self, v: int | Static) -> bool:
        """Whether a variable or a constant is a weight, see `product_operands`."""
        if isinstance(v, Static):
            # Inside of a call, an array that the function closed over is a constant of
            # the equation. A matrix or a kernel has two axes at least.
            return np.ndim(v.value) > 1
        return v in self._weights

    @functools.cached_property
    def _weights(self) -> frozenset[int]:
        """Variables that are weights, see `product_operands`."""
        weights = {*self.program.parameters, *self.program.constants}
        for eq in self.equations:
            depends_on_x = not self.dependent.isdisjoint(eq.variables)
            if not depends_on_x and not weights.isdisjoint(eq.variables):
                weights.update(eq.outputs)
        return frozenset(weights)

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
            if reason is not None and self._is_computed_once(eq, reason):
                reason = OPERATOR
            reasons[eq.outputs[0]] = reason
        return reasons

    def _is_computed_once(self, eq: Equation, reason: str) -> bool:
        """Whether what is not affine in an equation depends on x, but on no spikes.

        It is then computed once, so that ``reason`` is no obstacle. Values that are
        read or written at indices may depend on spikes, the indices must not.
        """
        if reason == "choice":
            value_positions = primitive(eq.name).values
            indices = [v for i, v in enumerate(eq.inputs) if i not in value_positions]
            return self.spike_dependent.isdisjoint(variables_in(indices))
        if reason in _OBSTACLES_TO_SPIKES:
            values = [*eq.inputs, *eq.outputs]
            return self.spike_dependent.isdisjoint(variables_in(values))
        return False

    def _why_not_affine(self, eq: Equation) -> str | None:
        """As `why_not_affine`, if all that depends on x depended on spikes too."""
        name = eq.name
        row = primitive(name)
        # Random numbers are refused even if they do not depend on x.
        if row.otherwise == "random":
            return "random"
        # Positions of the operands that depend on x.
        dependent = {i for i, v in enumerate(eq.inputs) if v in self.dependent}
        if not dependent:
            return None
        if eq.site is not None:
            return self._why_no_threshold(eq, dependent)
        if name == "convert_element_type":
            return self._why_not_affine_conversion(eq)
        is_affine_in_one = row.affine_in_each and len(dependent) == 1
        is_affine_in_all = all(i in row.affine_in for i in dependent)
        is_first_power = name == "integer_pow" and eq.options["y"] == 1
        # Operand 0 of a select is the mask. With a constant mask it is affine.
        has_constant_mask = name == "select_n" and 0 not in dependent
        if is_affine_in_one or is_affine_in_all or is_first_power or has_constant_mask:
            return None
        # A call with a custom derivative is a ReLU that is part of an operator.
        return OPERATOR if name in CUSTOM else row.otherwise

    def _why_no_threshold(self, eq: Equation, dependent: set[int]) -> str | None:
        """Why the maximum of a site is no threshold of its channels; None if it is one.

        Args:
            eq: a site. Its operands are the current and, if it is clipped, the maximum.
            dependent: positions of the operands that depend on x.
        """
        if dependent != {0}:
            return "maximum"  # it depends on x, and a threshold is constant
        assert eq.site is not None
        if axes_of_maximum(eq, self.program.avals) <= {eq.site.channel}:
            return None
        return "maxima"  # they differ within a channel, which has one threshold

    def _why_not_affine_conversion(self, eq: Equation) -> str | None:
        """Why a conversion to another type of numbers is not affine; None if it is."""
        avals = self.program.avals
        if avals[eq.outputs[0]].dtype.kind not in FLOATING:
            return "integer"
        # A truth value as 0 or 1 is a step, the last part of a comparison.
        return OPERATOR if avals[eq.variables[0]].dtype.kind == "b" else None


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

    None also for random keys, for complex numbers, and for an array that fn closes over
    inside of jit.
    """
    dtype = getattr(value, "dtype", np.float32)
    if isinstance(value, Tracer) or jnp.issubdtype(dtype, jax.dtypes.extended):
        return None
    array = np.asarray(value)
    if array.dtype.kind == "c" or array.size == 0:
        return None
    if (array != array.flat[0]).any():
        return None
    return float(array.flat[0])
