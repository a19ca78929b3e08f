"""Which equations are affine in what depends on the input.

    f(sum_t s_t / T) = sum_t f(s_t) / T    holds for every affine f and no other

An affine function is applied to every step, and any other known function to running
means (``increments.py``). All other operations are obstacles.
"""

from snnjax.capture.axes import Avals, axes_of_maximum
from snnjax.capture.jaxprs import CUSTOM
from snnjax.network.equations import Equation

# Affine in every operand together.
_ADDITIVE = frozenset(
    "add add_any broadcast_in_dim concatenate convert_element_type copy copy_p cumsum "
    "expand_dims mesh_cast name neg optimization_barrier pad reduce_precision "
    "reduce_sum reduce_window_sum reshape reshard rev sharding_constraint slice split "
    "squeeze stack stop_gradient sub tile transpose unstack".split()
)
# Affine in each operand alone, so only one of them may depend on the input.
_BILINEAR = frozenset("mul dot_general conv_general_dilated".split())
# Affine in these operands only: the others choose or scale.
_AFFINE_IN = {
    "div": {0},
    "gather": {0},
    "dynamic_slice": {0},
    "dynamic_update_slice": {0, 1},
    "scatter": {0, 2},
    "scatter-add": {0, 2},
    "scatter_add": {0, 2},
    "scatter-sub": {0, 2},
    "scatter_sub": {0, 2},
    "scatter-mul": {0},
    "scatter_mul": {0},
}
_RANDOM = frozenset("random_bits threefry2x32 rng_bit_generator rng_uniform".split())
_CURVES = frozenset(
    "tanh logistic erf erfc erf_inv exp exp2 expm1 log log1p sin cos tan asin acos "
    "atan atan2 sinh cosh asinh acosh atanh cumlogsumexp".split()
)
_LOOPS = frozenset("while cond shard_map pallas_call".split())
_POWERS = frozenset(
    "rsqrt sqrt cbrt square integer_pow pow div reduce_prod cumprod".split()
)
_CLIPS = frozenset(
    "max min reduce_max reduce_min reduce_window_max reduce_window_min clamp abs sign "
    "cummax cummin floor ceil round rem".split()
)
_DECISIONS = frozenset(
    "eq ne lt le gt ge and or not xor select_n is_finite reduce_and reduce_or".split()
)
# Not affine, and computed on running means.
_OPERATORS = _CURVES | _POWERS | _CLIPS | _DECISIONS | _BILINEAR
_ORDERS = frozenset("argmax argmin sort top_k".split())

_KINDS = {
    "recurrence": frozenset({"scan"}),  # one over layers is unrolled before
    "loop": _LOOPS,
    "order": _ORDERS,
    "window": frozenset({"reduce_window"}),
}

# Obstacles that may be computed once, from the input alone. Not loops and unknown
# functions: in those an example might reach another.
_ONCE = frozenset("order integer".split())
FLOATING = "fV"  # kinds of NumPy's types; V is bfloat16
OPERATOR = "operator"  # of an equation that is computed on running means
COMPARISONS = frozenset("max min clamp select_n abs sign lt le gt ge".split())
_ARITHMETIC = frozenset(
    "add sub mul div neg square integer_pow broadcast_in_dim convert_element_type "
    "stop_gradient copy".split()
)
# Functions number by number that a polynomial describes piece by piece.
PIECEWISE = COMPARISONS | _ARITHMETIC
# Functions number by number.
POINTWISE = {
    name
    for name in PIECEWISE | _CURVES | _POWERS | _CLIPS | _DECISIONS
    if not name.startswith(("cum", "reduce_"))
}


def why_not_affine(
    equation: Equation, dependent: frozenset[int], live: frozenset[int], avals: Avals
) -> str | None:
    """Why an equation is not affine: `OPERATOR`, or the reason of a refusal, or None.

    Functions of the input alone are computed once, so they may be of any kind.

    Args:
        dependent: variables that depend on the input.
        live: those that depend on spikes.
        avals: variable -> shape and dtype.
    """
    kind = _why_not_for_spikes(equation, dependent, avals)
    once = not live.intersection((*equation.variables, *equation.outputs))
    if equation.name in ("gather", "dynamic_slice"):  # by numbers from the input
        live_slots = {i for i, v in enumerate(equation.inputs) if v in live}
        return OPERATOR if kind and live_slots <= {0} else kind
    return OPERATOR if kind in _ONCE and once else kind


def _why_not_for_spikes(
    equation: Equation, dependent: frozenset[int], avals: Avals
) -> str | None:
    """The same, of an equation that spikes reach."""
    name = equation.name
    if name in _RANDOM:
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
        of_truth = avals[equation.variables[0]].dtype.kind == "b"
        return OPERATOR if of_truth else None
    if name == "select_n" and 0 not in dependent_slots:
        return None
    if name in _ADDITIVE or (name in _BILINEAR and len(dependent_slots) == 1):
        return None
    if dependent_slots <= _AFFINE_IN.get(name, set()):
        return None
    if name in _OPERATORS or name in CUSTOM:  # a ReLU that is part of an operator
        return OPERATOR
    return next((kind for kind, names in _KINDS.items() if name in names), "unknown")
