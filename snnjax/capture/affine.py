"""Which equations are affine in what depends on the input.

An affine function is applied to every step, and any other known function to running
means (``increments.py``). Everything else is a reason to refuse the network.
``primitives.py`` has the table; here is what depends on the equation.
"""

from snnjax.capture.axes import Avals, axes_of_maximum
from snnjax.capture.jaxprs import CUSTOM
from snnjax.capture.primitives import OPERATOR, primitive
from snnjax.network.equations import Equation

FLOATING = "fV"  # kinds of NumPy's types; V is bfloat16
# Refusals that do not hold for what is computed once, from the input alone. Those of
# loops and unknown functions do: in them an example might reach another.
_NOT_ONCE = ("order", "integer")


def why_not_affine(
    equation: Equation, dependent: frozenset[int], live: frozenset[int], avals: Avals
) -> str | None:
    """Why an equation is not affine: `OPERATOR`, or the reason of a refusal, or None.

    Functions of the input alone, of which no variable is ``live``, are computed once:
    they may be of any kind.
    """
    kind = _why_not_for_spikes(equation, dependent, avals)
    once = not live.intersection((*equation.variables, *equation.outputs))
    if equation.name in ("gather", "dynamic_slice"):  # by numbers from the input
        live_slots = {i for i, v in enumerate(equation.inputs) if v in live}
        return OPERATOR if kind and live_slots <= {0} else kind
    return OPERATOR if kind in _NOT_ONCE and once else kind


def _why_not_for_spikes(
    equation: Equation, dependent: frozenset[int], avals: Avals
) -> str | None:
    """The same, of an equation that spikes reach."""
    name, known = equation.name, primitive(equation.name)
    if known.otherwise == "random":  # even if it does not depend on the input
        return "random"
    dependent_slots = {i for i, v in enumerate(equation.inputs) if v in dependent}
    if not dependent_slots:
        return None
    if equation.site is not None:
        if dependent_slots > {0}:
            return "maximum"
        others = axes_of_maximum(equation, avals) - {equation.site.channel}
        return "maxima" if others else None
    if name == "integer_pow" and equation.options["y"] == 1:
        return None
    if name == "convert_element_type":
        if avals[equation.outputs[0]].dtype.kind not in FLOATING:
            return "integer"
        # A truth value as 0 or 1 is a step, the last part of a comparison.
        of_truth = avals[equation.variables[0]].dtype.kind == "b"
        return OPERATOR if of_truth else None
    if name == "select_n" and 0 not in dependent_slots:  # chosen by a constant mask
        return None
    if known.affine_in_each and len(dependent_slots) == 1:
        return None
    if all(slot in known.affine_in for slot in dependent_slots):
        return None
    # A call with a derivative of its own is a ReLU that is part of an operator.
    return OPERATOR if name in CUSTOM else known.otherwise
