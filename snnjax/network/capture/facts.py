"""Facts about the equations of a program, each computed once, when it is first read.

A rewrite makes a new program, which has facts of its own.
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
)
from snnjax.network.stages import streaming

FLOATING = "fV"  # kinds of NumPy's types; V is bfloat16
# Primitives that make of an array of equal numbers another one.
_REPEATS = REARRANGEMENTS | {"broadcast_in_dim", "stop_gradient"}
# Refusals that do not hold for what is computed once, from the input alone. Those of
# loops and unknown functions do: in them an example might reach another.
_NOT_ONCE = ("order", "integer")
_AT_PLACES = ("gather", "dynamic_slice", "dynamic_update_slice", "scatter")


class Facts:
    """What holds of a program's variables and equations."""

    def __init__(self, program: Program | Network):
        self.program, self.equations = program, program.equations

    @functools.cached_property
    def dependent(self) -> frozenset[int]:
        """Variables that depend on x, those inside of operators too."""
        dependent = set(self.program.x)
        for eq in spread_out(self.equations):
            if dependent.intersection(eq.variables):
                dependent.update(eq.outputs)
        return frozenset(dependent)

    @functools.cached_property
    def live(self) -> frozenset[int]:
        """Variables that depend on spikes."""
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
        """The number that all entries of a variable or constant are, if it is known."""
        if isinstance(v, Static):
            return _number(v.value)
        if v in self.program.constants:
            return _number(self.program.constants[v])
        eq = self.makers.get(v)
        if eq is None or eq.name not in _REPEATS or len(eq.inputs) != 1:
            return None
        return self.number(eq.inputs[0])

    @functools.cached_property
    def operands(self) -> Mapping[int, int]:
        """Result of each product with weights -> its operand that depends on x.

        Weights are parameters and arrays that the function closed over, not what it
        computes of shapes alone, as a resizing does.
        """
        weights = {*self.program.parameters, *self.program.constants}
        operands: dict[int, int] = {}

        def is_weight(v: int | Static) -> bool:
            if isinstance(v, Static):
                return np.ndim(v.value) > 1
            return v in weights

        for eq in self.equations:
            dependent_inputs = self.dependent.intersection(eq.variables)
            if not dependent_inputs and weights.intersection(eq.variables):
                weights.update(eq.outputs)
            if eq.name in PRODUCTS and any(map(is_weight, eq.inputs)):
                if len(dependent_inputs) == 1:
                    operands[eq.outputs[0]] = min(dependent_inputs)
        return operands

    def is_product(self, eq: Equation) -> bool:
        """Whether an equation is a product of weights and what depends on x."""
        return eq.outputs[0] in self.operands

    @functools.cached_property
    def leaving(self) -> frozenset[int]:
        """Variables that an operator hands to others."""
        return frozenset(v for eq in self.equations if eq.body for v in eq.outputs)

    def is_operator(self, eq: Equation) -> bool:
        """Whether an equation is not affine in what depends on x, and no site."""
        return eq.site is None and self.why_not_affine[eq.outputs[0]] == OPERATOR

    @functools.cached_property
    def why_not_affine(self) -> Mapping[int, str | None]:
        """First output of each equation -> why it is not affine, or None if it is.

        An affine function is applied to every step, and any other known one, an
        `OPERATOR`, to running means (``increments.py``). Everything else is the reason
        of a refusal.
        """
        equations = spread_out(self.equations)
        return {eq.outputs[0]: self._why_not_affine(eq) for eq in equations}

    def _why_not_affine(self, eq: Equation) -> str | None:
        reason = self._why_not_for_spikes(eq)
        if eq.name in _AT_PLACES:
            # The places may be numbers from the input that depend on no spikes.
            affine_slots = primitive(eq.name).affine_in
            for slot, v in enumerate(eq.inputs):
                if v in self.live and slot not in affine_slots:
                    return reason
            return OPERATOR if reason else None
        # What depends on the input alone is computed once, and may be of any kind.
        is_once = self.live.isdisjoint((*eq.variables, *eq.outputs))
        return OPERATOR if reason in _NOT_ONCE and is_once else reason

    def _why_not_for_spikes(self, eq: Equation) -> str | None:
        """Why an equation is not affine in its inputs that depend on x; None if it is.

        It takes all of them for values that spikes reach. `_why_not_affine` then allows
        more to those that depend on x alone. Any reason but `OPERATOR` is a kind of
        obstacle that `check` explains.
        """
        name = eq.name
        row = primitive(name)
        avals = self.program.avals
        if row.otherwise == "random":  # even if it does not depend on the input
            return "random"
        dependent_slots = {i for i, v in enumerate(eq.inputs) if v in self.dependent}
        if not dependent_slots:
            return None
        if eq.site is not None:
            # Behind its current, a clipped or quantized ReLU reads its maximum.
            if dependent_slots != {0}:
                return "maximum"  # it depends on x, and a threshold is constant
            maximum_axes = axes_of_maximum(eq, avals)
            if maximum_axes <= {eq.site.channel}:
                return None
            return "maxima"  # they differ within a channel, which has one threshold
        if name == "integer_pow" and eq.options["y"] == 1:
            return None
        if name == "convert_element_type":
            if avals[eq.outputs[0]].dtype.kind not in FLOATING:
                return "integer"
            # A truth value as 0 or 1 is a step, the last part of a comparison.
            return OPERATOR if avals[eq.variables[0]].dtype.kind == "b" else None
        if name == "select_n" and 0 not in dependent_slots:  # chosen by a constant mask
            return None
        if row.affine_in_each and len(dependent_slots) == 1:
            return None
        if all(slot in row.affine_in for slot in dependent_slots):
            return None
        # A call with a derivative of its own is a ReLU that is part of an operator.
        return OPERATOR if name in CUSTOM else row.otherwise


def axes_of_maximum(eq: Equation, avals: Avals) -> set[int]:
    """Axes, from the end, along which the maximum of a clipped ReLU differs."""
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
