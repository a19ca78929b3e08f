"""ReLUs, however they are written, and max-pools: equations that become sites.

    max(x, 0)    where(x > 0, x, 0)    x (x > 0)    clamp(0, x, m)    min(relu(x), m)

are one ReLU or, with m, one clipped ReLU. The forms are matched in the equations, so it
does not matter which library or which call wrote them.

A maximum with 0 is no activation where it serves a larger function:

    gate      only scales another value, as in a hard swish, x relu6(x + 3) / 6
    guard     keeps a root, a logarithm or a divisor in its domain, as in a norm
    summand   is joined with another curve of the same value, as in softplus,
              max(x, 0) + log(1 + exp(-|x|))
"""

import math
from collections.abc import Callable, Iterable, Mapping
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
    """min(max(x, low), high)."""

    x: int
    low: float = -math.inf
    high: float = math.inf


def with_sites(program: Program, statistics: frozenset[int] = frozenset()) -> Program:
    """The program with a site for every ReLU, clipped ReLU and max-pool.

    Args:
        statistics: variables that are statistics of the whole batch, as of a BatchNorm
            in training, and so no activations.
    """
    facts = Facts(program)
    relus = _relus(facts)
    equations = []
    for eq in program.equations:
        v = eq.outputs[0]
        if v in relus and v not in statistics:
            eq = _relu_site(eq, relus[v], program.avals[v])
        elif eq.site is not None and not eq.site.is_encoder and _is_gate(v, facts):
            eq = eq._replace(site=None)
        equations.append(eq)
    equations = needed(equations, variables_in(program.outputs))
    return _with_pools(program._replace(equations=equations))


def _with_pools(program: Program) -> Program:
    """The program with a site for every max-pool that is no part of an operator.

    It is a part if an operator leads to it without a cut, or if whatever reads it leads
    to operators, as in a softmax, whose maximum only prevents overflow.
    """
    facts = Facts(program)

    def is_cut(eq: Equation) -> bool:
        return eq.fires or facts.is_product(eq)

    def is_operator(eq: Equation) -> bool:
        return facts.is_operator(eq) and eq.name not in _MAX_POOLS

    # Backwards: values whose maker is an operator, or leads to operators only.
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
    # Forwards: values that an operator leads to.
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
    """Whether a loop or branch holds a ReLU, where no rule can reach it."""
    if equation.name in CUSTOM:
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
    """Output -> the ReLU or clipped ReLU that it is."""
    relus: dict[int, _Clip] = {}
    for eq in facts.equations:
        v = eq.outputs[0]
        clip = _clip(v, facts)
        if _is_relu(v, clip, facts):
            relus[v] = clip
    # The max of a clip belongs to the clip, unless something else reads it.
    for v in list(relus):
        if v not in facts.program.outputs and _is_part_of_clips(v, relus, facts):
            del relus[v]
    serving = _summands(facts, relus)
    for v in relus:
        if _is_gate(v, facts) or _is_guard(v, facts):
            serving.add(v)
    return {v: relu for v, relu in relus.items() if v not in serving}


def _is_part_of_clips(v: int, relus: Mapping[int, _Clip], facts: Facts) -> bool:
    """Whether all that reads a ReLU is a clipped ReLU of the same value."""
    readers = facts.readers.get(v, [])
    for reader in readers:
        clip = relus.get(reader.outputs[0])
        if clip is None or clip.x != relus[v].x:
            return False
    return bool(readers)


def _is_relu(v: int, clip: _Clip, facts: Facts) -> bool:
    """Whether a clip is a ReLU of something that depends on x, number by number."""
    if clip.low != 0 or clip.high <= 0 or clip.x not in facts.dependent:
        return False
    source = facts.program.avals[clip.x]
    result = facts.program.avals[v]
    return source.shape == result.shape and source.dtype.kind in FLOATING


# ------------------------------------------------------------------------ the forms


def _clip(v: int, facts: Facts) -> _Clip:
    """The limits between which a value is another one; a value itself has none."""
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
    # An outer clip that changes nothing is a ReLU of a ReLU: each is one.
    return outer if composed == inner else composed


def _outer_clip(eq: Equation, facts: Facts) -> _Clip | None:
    """The clip that an equation is by itself; None if it is none."""
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
    """x of where(x > 0, x, 0) and of x (x > 0), however the comparison is turned."""
    x = None
    if eq.name == "select_n" and len(eq.inputs) == 3:
        x = _chosen_by_where(eq, facts)
    elif eq.name == "mul":
        x = _chosen_by_factor(eq, facts)
    return x if isinstance(x, int) else None


def _chosen_by_where(eq: Equation, facts: Facts) -> int | Static | None:
    """x of where(x > 0, x, 0) and of where(x < 0, 0, x)."""
    condition, on_false, on_true = eq.inputs
    comparison = _comparison(condition, facts)
    if facts.number(on_false) == 0 and comparison == (on_true, True):
        return on_true
    if facts.number(on_true) == 0 and comparison == (on_false, False):
        return on_false
    return None


def _chosen_by_factor(eq: Equation, facts: Facts) -> int | Static | None:
    """x of x (x > 0), where the truth value has become a number."""
    a, b = eq.inputs
    for x, factor in ((a, b), (b, a)):
        maker = facts.makers.get(factor) if isinstance(factor, int) else None
        if maker is None or maker.name != "convert_element_type":
            continue
        if _comparison(maker.inputs[0], facts) == (x, True):
            return x
    return None


def _comparison(v: int | Static, facts: Facts) -> tuple[int | Static, bool] | None:
    """(x, True) of x > 0 or x >= 0, (x, False) of x < 0 or x <= 0, otherwise None."""
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
    """Whether a value only scales others: all that follows ends in such products."""

    def scales(v: int, eq: Equation) -> bool:
        return eq.name == "mul" and len(facts.dependent.intersection(eq.variables)) == 2

    return _all_ends(v, facts, scales, _SCALINGS)


def _is_guard(v: int, facts: Facts) -> bool:
    """Whether a value is only read by a root, a logarithm or as a divisor."""

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
    """Whether every way on from a value comes to an end, through these primitives only.

    Args:
        is_end: whether an equation that reads a value is an end of its way.
        passing: primitives through which a way may go on, if nothing else that depends
            on x joins it there.
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
    """ReLUs that are joined with another function of the same value.

    Each value that is computed number by number is followed back to its sources, the
    values that it is a function of. A source is a pair (value, curved); curved says
    that the function is not affine.
    """
    known_sources: dict[int, frozenset[tuple[int, bool]]] = {}
    avals = facts.program.avals
    summands = set()

    def sources_of(v: int) -> frozenset[tuple[int, bool]]:
        return known_sources.get(v, frozenset([(v, False)]))

    def sources_of_all(variables: Iterable[int]) -> frozenset[tuple[int, bool]]:
        return frozenset().union(*map(sources_of, variables))

    def values_in(pairs: Iterable[tuple[int, bool]]) -> set[int]:
        return {value for value, _ in pairs}

    # Let y be computed from f, one of its inputs, and from g, the other inputs. A ReLU
    # relu(z) within f, and not within g, is a summand if g is a curve of a value that z
    # is a function of, and f itself is no curve of that value. In a softplus f is
    # max(x, 0), and g is log(1 + exp(-|x|)).
    for eq in facts.equations:
        inputs = facts.dependent.intersection(eq.variables)
        shapes = {avals[v].shape for v in (*inputs, *eq.outputs)}
        is_pointwise = primitive(eq.name).pointwise and len(shapes) == 1
        # A ReLU is a source of its own, as is what is not computed number by number.
        if not is_pointwise or eq.outputs[0] in relus:
            continue
        for v in inputs:
            input_sources = sources_of(v)
            sources_beside = sources_of_all(inputs - {v})
            curved_values = set()
            for value, curved in sources_beside - input_sources:
                if curved:
                    curved_values.add(value)
            values_of_input_alone = values_in(input_sources) - values_in(sources_beside)
            for relu in values_of_input_alone & relus.keys():
                sources_of_argument = sources_of(relus[relu].x)
                if curved_values & values_in(sources_of_argument):
                    summands.add(relu)
        eq_sources = sources_of_all(inputs)
        if facts.is_operator(eq):
            eq_sources = frozenset((value, True) for value in values_in(eq_sources))
        known_sources[eq.outputs[0]] = eq_sources
    return summands
