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

from snnjax.capture.affine import why_not_affine
from snnjax.capture.jaxprs import Program
from snnjax.capture.primitives import MOVES, OPERATOR
from snnjax.network.equations import PRODUCTS, Equation, Network, Static, spread_out
from snnjax.network.stages import streaming

# They keep an array of equal numbers what it is.
_REPEATS = MOVES | {"broadcast_in_dim", "stop_gradient"}


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
        for eq in self.equations:
            on_x = self.dependent.intersection(eq.variables)
            if not on_x and weights.intersection(eq.variables):
                weights.update(eq.outputs)
            has_weights = any(
                v in weights if isinstance(v, int) else np.ndim(v.value) > 1
                for v in eq.inputs
            )
            if eq.name in PRODUCTS and len(on_x) == 1 and has_weights:
                operands[eq.outputs[0]] = min(on_x)
        return operands

    @functools.cached_property
    def why_not_affine(self) -> Mapping[int, str | None]:
        """First output of each equation -> why it is not affine, or None if it is.

        `OPERATOR`, or the reason of a refusal.
        """
        return {
            eq.outputs[0]: why_not_affine(
                eq, self.dependent, self.live, self.program.avals
            )
            for eq in spread_out(self.equations)
        }

    @functools.cached_property
    def leaving(self) -> frozenset[int]:
        """Variables that an operator hands to others."""
        return frozenset(v for eq in self.equations if eq.body for v in eq.outputs)

    def is_operator(self, eq: Equation) -> bool:
        """Whether an equation is not affine in what depends on x, and no site."""
        return eq.site is None and self.why_not_affine[eq.outputs[0]] == OPERATOR

    def is_product(self, eq: Equation) -> bool:
        """Whether an equation is a product of weights and what depends on x."""
        return eq.outputs[0] in self.operands


def _number(value: Any) -> float | None:
    """The number that all entries of an array are; None of others and of keys."""
    dtype = getattr(value, "dtype", np.float32)
    if isinstance(value, Tracer) or jnp.issubdtype(dtype, jax.dtypes.extended):
        return None
    array = np.asarray(value)
    uniform = array.size > 0 and (array == array.flat[0]).all()
    return float(array.flat[0]) if uniform else None
