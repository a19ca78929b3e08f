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
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from snnjax.network.capture.facts import FLOATING, Facts
from snnjax.network.capture.jaxprs import CUSTOM, Program, inner_programs
from snnjax.network.capture.primitives import REARRANGEMENTS, primitive
from snnjax.network.equations import Equation, Static
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

    A statistic of the whole batch, as of a BatchNorm in training, is no activation.
    """
    facts = Facts(program)
    relus = _relus(facts)
    equations = []
    for eq in program.equations:
        v, aval = eq.outputs[0], program.avals[eq.outputs[0]]
        if v in relus and v not in statistics:
            eq = _relu_site(eq, relus[v], aval)
        elif eq.site is not None and not eq.site.is_encoder and _is_gate(v, facts):
            eq = eq._replace(site=None)
        equations.append(eq)
    outputs = [v for v in program.outputs if isinstance(v, int)]
    return _with_pools(program._replace(equations=needed(equations, outputs)))


def _with_pools(program: Program) -> Program:
    """The program with a site for every max-pool that is no part of an operator.

    It is a part if an operator leads to it without a cut, or if whatever reads it leads
    to operators, as in a softmax, whose maximum only prevents overflow.
    """
    facts, outputs = Facts(program), set(program.outputs)

    def cuts(eq: Equation) -> bool:
        return eq.fires or facts.is_product(eq)

    def operates(eq: Equation) -> bool:
        return facts.is_operator(eq) and eq.name not in _MAX_POOLS

    leads_on: dict[int, bool] = {}  # whether a value's maker is, or leads to, operators
    for eq in reversed(program.equations):
        readers = [r for v in eq.outputs for r in facts.readers.get(v, ())]
        follows = bool(readers) and not outputs.intersection(eq.outputs)
        follows = follows and all(leads_on[r.outputs[0]] for r in readers)
        is_inside = not cuts(eq) and (operates(eq) or follows)
        leads_on.update(dict.fromkeys(eq.outputs, is_inside))
    operator_values: set[int] = set()
    equations = []
    for eq in program.equations:
        behind = not operator_values.isdisjoint(eq.variables)
        if (operates(eq) or behind) and not cuts(eq):
            operator_values.update(eq.outputs)
        if eq.name in _MAX_POOLS and not behind and not leads_on[eq.outputs[0]]:
            aval = program.avals[eq.outputs[0]]
            site = new_site("max-pool", aval, fires=False, homogeneous=True)
            eq = eq._replace(site=site)
        equations.append(eq)
    return program._replace(equations=tuple(equations))


def hides_relu(equation: Equation) -> bool:
    """Whether a loop or branch holds a ReLU, where no rule can reach it."""
    if equation.name in CUSTOM:
        return False
    return any(
        any(eq.fires or hides_relu(eq) for eq in program.equations)
        or bool(_relus(Facts(program)))
        for program in inner_programs(equation)
    )


def _relu_site(eq: Equation, relu: _Clip, aval: Any) -> Equation:
    kind, inputs = "relu", (relu.x,)
    if relu.high < math.inf:
        kind, inputs = "clipped relu", (relu.x, Static(relu.high))
    site = new_site(kind, aval)
    return Equation(None, (), inputs, eq.outputs, site, eq.path, eq.calls)


def _relus(facts: Facts) -> dict[int, _Clip]:
    """Output -> the ReLU or clipped ReLU that it is."""
    clips = {eq.outputs[0]: _clip(eq.outputs[0], facts) for eq in facts.equations}
    relus = {v: c for v, c in clips.items() if _is_relu(v, c, facts)}
    # The max of a clip belongs to the clip, unless something else reads it.
    for v in list(relus):
        readers = [relus.get(r.outputs[0]) for r in facts.readers.get(v, ())]
        inner = bool(readers) and all(r and r.x == relus[v].x for r in readers)
        if inner and v not in facts.program.outputs:
            del relus[v]
    others = _summands(facts, relus)
    others |= {v for v in relus if _is_gate(v, facts) or _is_guard(v, facts)}
    return {v: relu for v, relu in relus.items() if v not in others}


def _is_relu(v: int, clip: _Clip, facts: Facts) -> bool:
    if clip.low != 0 or clip.high <= 0 or clip.x not in facts.dependent:
        return False
    before, after = facts.program.avals[clip.x], facts.program.avals[v]
    return before.shape == after.shape and before.dtype.kind in FLOATING


# ------------------------------------------------------------------------ the forms


def _clip(v: int, facts: Facts) -> _Clip:
    """The limits between which a value is another one; a value itself has none."""
    eq = facts.makers.get(v)
    clip = None if eq is None or eq.site is not None else _outer_clip(eq, facts)
    if clip is None:
        return _Clip(v)
    inner = _clip(clip.x, facts)
    limits = (min(max(n, clip.low), clip.high) for n in inner[1:])
    both = _Clip(inner.x, *limits)
    return clip if both == inner else both  # of two equal ReLUs each is one


def _outer_clip(eq: Equation, facts: Facts) -> _Clip | None:
    """The clip that an equation is by itself."""
    if eq.name in ("max", "min"):
        end = "low" if eq.name == "max" else "high"
        for x, limit in (eq.inputs, eq.inputs[::-1]):
            number = facts.number(limit)
            if isinstance(x, int) and number is not None:
                return _Clip(x, **{end: number})
    if eq.name == "clamp":
        low, x, high = eq.inputs
        least, most = facts.number(low), facts.number(high)
        if isinstance(x, int) and least is not None and most is not None:
            return _Clip(x, least, most)
    x = _chosen(eq, facts)
    return None if x is None else _Clip(x, low=0)


def _chosen(eq: Equation, facts: Facts) -> int | None:
    """x of where(x > 0, x, 0) and of x (x > 0), however the comparison is turned."""
    if eq.name == "select_n" and len(eq.inputs) == 3:
        chooser, on_false, on_true = eq.inputs
        options = ((on_true, on_false, True), (on_false, on_true, False))
        for x, zero, above in options:
            if facts.number(zero) == 0 and _compared(chooser, facts) == (x, above):
                return x if isinstance(x, int) else None
    if eq.name == "mul":
        a, b = eq.inputs[:2]
        for x, factor in ((a, b), (b, a)):
            maker = facts.makers.get(factor) if isinstance(factor, int) else None
            if maker is not None and maker.name == "convert_element_type":
                if _compared(maker.inputs[0], facts) == (x, True):
                    return x if isinstance(x, int) else None
    return None


def _compared(v: int | Static, facts: Facts) -> tuple[int | Static, bool] | None:
    """(x, True) of x > 0 or x >= 0, (x, False) of x < 0 or x <= 0."""
    eq = facts.makers.get(v) if isinstance(v, int) else None
    if eq is None or eq.name not in ("gt", "ge", "lt", "le"):
        return None
    above = eq.name in ("gt", "ge")
    a, b = eq.inputs
    if facts.number(b) == 0:
        return a, above
    return (b, not above) if facts.number(a) == 0 else None


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
    v: int, facts: Facts, is_end: Callable[[int, Equation], bool], ways: frozenset[str]
) -> bool:
    """Whether all that follows from a value, along ``ways`` alone, comes to an end."""

    def leads_there(eq: Equation) -> bool:
        if eq.site is not None or is_end(v, eq):
            return eq.site is None
        alone = len(facts.dependent.intersection(eq.variables)) == 1
        on = eq.name in ways and alone and len(eq.outputs) == 1
        return on and _all_ends(eq.outputs[0], facts, is_end, ways)

    readers = facts.readers.get(v)
    return bool(readers) and all(map(leads_there, readers))


def _summands(facts: Facts, relus: Mapping[int, _Clip]) -> set[int]:
    """ReLUs that are joined with another function of the same value.

    Each value that is computed number by number is followed back to the values that it
    is a function of; "curved" says that the function is not affine.
    """
    made_of: dict[int, frozenset[tuple[int, bool]]] = {}  # value -> (source, curved)
    avals, summands = facts.program.avals, set()

    def sources(v: int) -> frozenset[tuple[int, bool]]:
        return made_of.get(v, frozenset([(v, False)]))

    for eq in facts.equations:
        inputs = facts.dependent.intersection(eq.variables)
        shapes = {avals[v].shape for v in (*inputs, *eq.outputs)}
        is_pointwise = primitive(eq.name).pointwise and len(shapes) == 1
        if not is_pointwise or eq.outputs[0] in relus:
            continue
        for v in inputs:
            others = frozenset().union(*(sources(w) for w in inputs if w != v))
            curves = {source for source, is_curved in others - sources(v) if is_curved}
            own = {s for s, _ in sources(v)} - {s for s, _ in others}
            for relu in own & relus.keys():
                if curves.intersection(s for s, _ in sources(relus[relu].x)):
                    summands.add(relu)
        parts = frozenset().union(*map(sources, inputs))
        if facts.is_operator(eq):
            parts = frozenset((source, True) for source, _ in parts)
        made_of[eq.outputs[0]] = parts
    return summands
