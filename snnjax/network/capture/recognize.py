"""ReLUs, however they are written, and max-pools become sites.

    max(x, 0)    where(x > 0, x, 0)    x (x > 0)    clamp(0, x, m)    min(relu(x), m)

are one ReLU or, with m, one clipped ReLU. The forms are matched in the equations, so it
does not matter which library or which call wrote them.

A maximum with 0 is no ReLU of its own where it serves a larger function:

    gate      only scales another value, as in a hard swish, x relu6(x + 3) / 6
    guard     keeps a root, a logarithm or a divisor in its domain, as in a norm
    summand   is joined with another curve of the same value, as in softplus,
              max(x, 0) + log(1 + exp(-|x|))
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from snnjax.network.capture.facts import FLOATING, Facts
from snnjax.network.capture.jaxprs import CUSTOM, Program, inner_programs
from snnjax.network.capture.primitives import REARRANGEMENTS, primitive
from snnjax.network.equations import Equation, Static, variables_in
from snnjax.network.sites import new_site
from snnjax.network.stages import needed

_MAX_POOLS = ("reduce_window_max", "reduce_max")
_SCALINGS = REARRANGEMENTS | {"broadcast_in_dim", "mul", "div"}


class _Clip(NamedTuple):
    """min(max(x, low), high), where x is a variable; a ReLU is one with low = 0."""

    x: int
    low: float = -math.inf
    high: float = math.inf


def with_sites(program: Program, statistics: frozenset[int] = frozenset()) -> Program:
    """The program with a site for every ReLU, clipped ReLU and max-pool.

    Args:
        statistics: variables that are statistics of the whole batch, as of a BatchNorm
            in training. A maximum with 0 among them is no activation.
    """
    facts = Facts(program)
    relus = _relus(facts)
    equations = []
    for eq in program.equations:
        v = eq.outputs[0]
        if v in relus and v not in statistics:
            eq = _relu_site(eq, relus[v], program.avals[v])
        elif eq.site is not None and not eq.site.is_encoder and _is_gate(v, facts):
            # A snnjax.clipped_relu that only scales another value is no neuron.
            eq = eq._replace(site=None)
        equations.append(eq)
    # What only a site's former equations needed is left out.
    equations = needed(equations, variables_in(program.outputs))
    return _with_pools(program._replace(equations=equations))


def _with_pools(program: Program) -> Program:
    """The program with a site for every max-pool that is no part of an operator.

    It is a part if it follows from an operator, or if all that reads it leads to
    operators, as in a softmax, whose maximum only prevents overflow. A neuron or a
    product with weights on the way cuts it: what lies behind is another operator.
    """
    facts = Facts(program)

    def is_cut(eq: Equation) -> bool:
        return eq.fires or facts.is_product(eq)

    def is_operator(eq: Equation) -> bool:
        return facts.is_operator(eq) and eq.name not in _MAX_POOLS

    # Backwards: values of an operator, and values that lead to operators only.
    leading: set[int] = set()
    for eq in reversed(program.equations):
        if is_cut(eq):
            continue
        readers = facts.successors(eq)
        all_lead_on = all(reader.outputs[0] in leading for reader in readers)
        is_read_outside = bool(set(program.outputs).intersection(eq.outputs))
        leads_on = bool(readers) and all_lead_on and not is_read_outside
        if is_operator(eq) or leads_on:
            leading.update(eq.outputs)
    # Forwards: values of an operator, and values that follow from one.
    operator_values: set[int] = set()
    equations = []
    for eq in program.equations:
        v = eq.outputs[0]
        follows_operator = not operator_values.isdisjoint(eq.variables)
        if (is_operator(eq) or follows_operator) and not is_cut(eq):
            operator_values.update(eq.outputs)
        if eq.name in _MAX_POOLS and not follows_operator and v not in leading:
            site = new_site("max-pool", program.avals[v], fires=False, homogeneous=True)
            eq = eq._replace(site=site)
        equations.append(eq)
    return program._replace(equations=tuple(equations))


def hides_relu(equation: Equation) -> bool:
    """Whether a loop or a branch of a cond holds a ReLU, where no rule can reach it."""
    if equation.name in CUSTOM:  # a call, whose equations stand in the program
        return False
    for program in inner_programs(equation):
        if _relus(Facts(program)):
            return True
        if any(eq.fires or hides_relu(eq) for eq in program.equations):
            return True
    return False


def _relu_site(eq: Equation, relu: _Clip, aval: Any) -> Equation:
    """The site that takes the place of a ReLU's last equation."""
    is_clipped = relu.high < math.inf
    return Equation(
        primitive=None,
        params=(),
        inputs=(relu.x, Static(relu.high)) if is_clipped else (relu.x,),
        outputs=eq.outputs,
        site=new_site("clipped relu" if is_clipped else "relu", aval),
        path=eq.path,
        calls=eq.calls,
    )


def _relus(facts: Facts) -> dict[int, _Clip]:
    """Each variable that is the result of a ReLU or clipped ReLU -> that ReLU."""
    relus: dict[int, _Clip] = {}
    for eq in facts.equations:
        v = eq.outputs[0]
        clip = _clip(v, facts)
        if _is_relu(v, clip, facts):
            relus[v] = clip
    # In min(max(x, 0), m) the max is a ReLU by itself, and the min a clipped one. Only
    # the clipped one is left, unless something else reads the max.
    for v in list(relus):
        if v not in facts.program.outputs and _is_part_of_clips(v, relus, facts):
            del relus[v]
    serving = _summands(facts, relus)
    for v in relus:
        if _is_gate(v, facts) or _is_guard(v, facts):
            serving.add(v)
    return {v: relu for v, relu in relus.items() if v not in serving}


def _is_part_of_clips(v: int, relus: Mapping[int, _Clip], facts: Facts) -> bool:
    """Whether a ReLU is only read by clipped ReLUs of the same x."""
    readers = facts.readers.get(v, [])
    for reader in readers:
        clip = relus.get(reader.outputs[0])
        if clip is None or clip.x != relus[v].x:
            return False
    return bool(readers)


def _is_relu(v: int, clip: _Clip, facts: Facts) -> bool:
    """Whether a clip that gives ``v`` is a ReLU or clipped ReLU of what depends on x.

    Its shape must not change on the way, and whole numbers have no ReLU.
    """
    if clip.low != 0 or clip.high <= 0 or clip.x not in facts.dependent:
        return False
    source = facts.program.avals[clip.x]
    result = facts.program.avals[v]
    return source.shape == result.shape and source.dtype.kind in FLOATING


# ------------------------------------------------------------------------ the forms


def _clip(v: int, facts: Facts) -> _Clip:
    """The clip that gives a variable, as one of the value before all nested clips.

    A variable that no clip gives is a clip of itself, without limits.
    """
    eq = facts.makers.get(v)
    if eq is None or eq.site is not None:
        return _Clip(v)
    outer = _outer_clip(eq, facts)
    if outer is None:
        return _Clip(v)
    inner = _clip(outer.x, facts)
    composed = _Clip(
        inner.x,
        low=min(max(inner.low, outer.low), outer.high),
        high=min(max(inner.high, outer.low), outer.high),
    )
    # An outer clip that changes nothing is a ReLU of a ReLU: both become sites.
    return outer if composed == inner else composed


def _outer_clip(eq: Equation, facts: Facts) -> _Clip | None:
    """The clip that a single equation computes; None if it computes none."""
    if eq.name in ("max", "min"):
        a, b = eq.inputs
        for x, limit in ((a, b), (b, a)):
            number = facts.number(limit)
            if isinstance(x, int) and number is not None:
                if eq.name == "max":
                    return _Clip(x, low=number)
                return _Clip(x, high=number)
    if eq.name == "clamp":
        low_input, x, high_input = eq.inputs
        low = facts.number(low_input)
        high = facts.number(high_input)
        if isinstance(x, int) and low is not None and high is not None:
            return _Clip(x, low, high)
    x = _chosen(eq, facts)
    return None if x is None else _Clip(x, low=0)


def _chosen(eq: Equation, facts: Facts) -> int | None:
    """The variable x of where(x > 0, x, 0) or x (x > 0), also with 0 < x, x >= 0, ...

    None if the equation is neither.
    """
    x = None
    if eq.name == "select_n" and len(eq.inputs) == 3:
        x = _chosen_by_where(eq, facts)
    elif eq.name == "mul":
        x = _chosen_by_factor(eq, facts)
    return x if isinstance(x, int) else None


def _chosen_by_where(eq: Equation, facts: Facts) -> int | Static | None:
    """x of where(x > 0, x, 0) or of where(x < 0, 0, x); None if it is neither."""
    # JAX's select_n has the value for False first.
    condition, on_false, on_true = eq.inputs
    comparison = _comparison(condition, facts)
    if facts.number(on_false) == 0 and comparison == (on_true, True):
        return on_true
    if facts.number(on_true) == 0 and comparison == (on_false, False):
        return on_false
    return None


def _chosen_by_factor(eq: Equation, facts: Facts) -> int | Static | None:
    """x of x (x > 0), where the truth value is converted to 0 or 1; otherwise None."""
    a, b = eq.inputs
    for x, factor in ((a, b), (b, a)):
        maker = facts.makers.get(factor) if isinstance(factor, int) else None
        if maker is None or maker.name != "convert_element_type":
            continue
        if _comparison(maker.inputs[0], facts) == (x, True):
            return x
    return None


def _comparison(v: int | Static, facts: Facts) -> tuple[int | Static, bool] | None:
    """The x that a truth value compares with 0, and whether it holds for positive x.

    None if ``v`` is no such comparison.
    """
    eq = facts.makers.get(v) if isinstance(v, int) else None
    if eq is None or eq.name not in ("gt", "ge", "lt", "le"):
        return None
    is_greater = eq.name in ("gt", "ge")
    left, right = eq.inputs
    if facts.number(right) == 0:
        return left, is_greater
    if facts.number(left) == 0:
        return right, not is_greater
    return None


# ------------------------------------------------- maxima that serve another function


def _is_gate(v: int, facts: Facts) -> bool:
    """Whether a value is only used as a factor of others that depend on x too.

    Constants and weights may scale it before.
    """

    def scales(v: int, eq: Equation) -> bool:
        return eq.name == "mul" and len(facts.dependent.intersection(eq.variables)) == 2

    return _all_ends(v, facts, scales, _SCALINGS)


def _is_guard(v: int, facts: Facts) -> bool:
    """Whether a value is only used under a root or logarithm, or as a divisor.

    Constants and weights may scale it before, or be added, as an epsilon.
    """

    def needs_positive(v: int, eq: Equation) -> bool:
        divides = eq.name == "div" and eq.inputs[1] == v
        return divides or eq.name in ("sqrt", "rsqrt", "cbrt", "log")

    return _all_ends(v, facts, needs_positive, _SCALINGS | {"add", "max"})


def _all_ends(
    v: int,
    facts: Facts,
    is_end: Callable[[int, Equation], bool],
    passing: frozenset[str],
) -> bool:
    """Whether all that is computed from a value leads to an end.

    Args:
        is_end: ``is_end(v, eq)``: whether the equation, which reads v, is an end.
        passing: primitives that may stand before an end, if they read nothing else
            that depends on x.
    """
    readers = facts.readers.get(v, [])
    for eq in readers:
        if eq.site is not None:
            return False
        if is_end(v, eq):
            continue
        is_alone = len(facts.dependent.intersection(eq.variables)) == 1
        if eq.name not in passing or not is_alone or len(eq.outputs) != 1:
            return False
        if not _all_ends(eq.outputs[0], facts, is_end, passing):
            return False
    return bool(readers)


def _summands(facts: Facts, relus: Mapping[int, _Clip]) -> set[int]:
    """ReLUs that are joined with another curve of the same value, as in a softplus.

    In max(x, 0) + log(1 + exp(-|x|)) the second summand is a curve of x, a function
    that is not affine, and the ReLU is a function of x too. Each value that is computed
    number by number is therefore followed back to its sources, the values that it is a
    function of. A ReLU is a source itself, as is what is not computed number by number.

    Args:
        relus: variable -> the ReLU that gives it.
    """
    sources: dict[int, set[int]] = {}  # value -> its sources; if it has none: itself
    curves: dict[int, set[int]] = {}  # value -> the sources that it is a curve of
    avals = facts.program.avals
    summands = set()
    for eq in facts.equations:
        result = eq.outputs[0]
        inputs = facts.dependent.intersection(eq.variables)
        shapes = {avals[v].shape for v in (*inputs, *eq.outputs)}
        is_pointwise = primitive(eq.name).pointwise and len(shapes) == 1
        if not is_pointwise or result in relus:
            continue
        for v in inputs:
            sibling_sources: set[int] = set()
            sibling_curves: set[int] = set()
            for sibling in inputs - {v}:
                sibling_sources |= sources.get(sibling, {sibling})
                sibling_curves |= curves.get(sibling, set())
            new_curves = sibling_curves - curves.get(v, set())
            # A ReLU in this input and not in its siblings meets their curves here.
            for source in sources.get(v, {v}) - sibling_sources:
                if source in relus:
                    argument = relus[source].x
                    if new_curves & sources.get(argument, {argument}):
                        summands.add(source)
        sources[result] = set()
        curves[result] = set()
        for v in inputs:
            sources[result] |= sources.get(v, {v})
            curves[result] |= curves.get(v, set())
        if facts.is_operator(eq):
            curves[result] = sources[result]
    return summands
