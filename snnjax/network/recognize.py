"""ReLUs, however they are written: equations that become sites.

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
from collections.abc import Iterator
from typing import Any, NamedTuple

from snnjax.network.affine import POINTWISE
from snnjax.network.batch import Batch
from snnjax.network.equations import Equation, Static
from snnjax.network.facts import MOVES, Facts
from snnjax.network.jaxprs import CUSTOM, Program, inner_programs
from snnjax.network.sites import new_site
from snnjax.network.stages import needed

_MAX_POOLS = ("reduce_window_max", "reduce_max")
_ROOTS = ("sqrt", "rsqrt", "cbrt", "log")
_AFFINE_MOVES = MOVES | {"broadcast_in_dim", "mul", "div"}


class _Relu(NamedTuple):
    """min(max(x, 0), maximum), or max(x, 0) where the maximum is infinite."""

    x: int
    maximum: float = math.inf


def with_sites(program: Program) -> Program:
    """The program with a site for every ReLU, clipped ReLU and max-pool."""
    facts = Facts(program)
    # A statistic of the whole batch, as of a BatchNorm in training, is no activation.
    statistics = Batch(program.equations, program.avals, program.x).mixed
    relus = {v: r for v, r in _relus(facts).items() if v not in statistics}
    equations = []
    for eq in program.equations:
        aval, site = program.avals[eq.outputs[0]], eq.site
        if eq.outputs[0] in relus:
            eq = _site(eq, relus[eq.outputs[0]], aval)
        elif eq.name in _MAX_POOLS:
            site = new_site(
                "max-pool", aval, fires=False, accumulates=True, homogeneous=True
            )
            eq = eq._replace(site=site)
        elif site is not None and not site.signed and _gates(eq.outputs[0], facts):
            eq = eq._replace(site=None)
        equations.append(eq)
    outputs = [v for v in program.outputs if isinstance(v, int)]
    return program._replace(equations=needed(equations, outputs))


def hides_relu(equation: Equation) -> bool:
    """Whether a loop or branch holds a ReLU, where no rule can reach it."""
    if equation.name in CUSTOM:
        return False
    return any(
        any(eq.fires or hides_relu(eq) for eq in program.equations)
        or bool(_relus(Facts(program)))
        for program in inner_programs(equation)
    )


def _relus(facts: Facts) -> dict[int, _Relu]:
    """Output -> the ReLU that it is the output of."""
    relus = {v: relu for eq in facts.equations for v, relu in _matches(eq, facts)}
    # The max of a clip belongs to the clip, if nothing else reads it.
    for v, relu in list(relus.items()):
        clips = [relus.get(r.outputs[0]) for r in facts.readers.get(v, ())]
        inner = bool(clips) and all(c and c != relu and c.x == relu.x for c in clips)
        if inner and v not in facts.program.outputs:
            del relus[v]
    summands = _summands(facts, relus)
    return {
        v: relu
        for v, relu in relus.items()
        if not (v in summands or _gates(v, facts) or _guards(v, facts))
    }


def _site(eq: Equation, relu: _Relu, aval: Any) -> Equation:
    clipped = relu.maximum < math.inf
    site = new_site("clipped relu" if clipped else "relu", aval)
    operands = (Static(relu.maximum),) if clipped else ()
    inputs = (relu.x, *operands)
    return Equation(None, (), inputs, eq.outputs, site, eq.path, eq.calls)


# ------------------------------------------------------------------------ the forms


def _matches(eq: Equation, facts: Facts) -> Iterator[tuple[int, _Relu]]:
    """The output of an equation that is a ReLU, and the ReLU."""
    relu = _relu(eq, facts) if eq.site is None else None
    if relu is None or relu.x not in facts.dependent:
        return
    before, after = (facts.program.avals[v] for v in (relu.x, eq.outputs[0]))
    if before.shape == after.shape and before.dtype.kind in "fV":
        yield eq.outputs[0], relu


def _relu(eq: Equation, facts: Facts) -> _Relu | None:
    match eq.name:
        case "max" | "min":
            return _of_limits(eq, facts)
        case "clamp":
            low, x, high = eq.inputs
            maximum = facts.number(high)
            if facts.number(low) == 0 and maximum is not None and maximum > 0:
                return _Relu(x, maximum) if isinstance(x, int) else None
        case "select_n" if len(eq.inputs) == 3:
            chooser, on_false, on_true = eq.inputs
            x, zero = (on_true, on_false)
            if facts.number(on_true) == 0:
                x, zero = on_false, on_true
            if facts.number(zero) == 0 and isinstance(x, int):
                above = zero is on_false
                return _Relu(x) if _compared(chooser, facts) == (x, above) else None
        case "mul":
            for x, factor in (eq.inputs, eq.inputs[::-1]):
                maker = facts.makers.get(factor) if isinstance(factor, int) else None
                if maker is not None and maker.name == "convert_element_type":
                    if _compared(maker.inputs[0], facts) == (x, True):
                        return _Relu(x) if isinstance(x, int) else None
    return None


def _of_limits(eq: Equation, facts: Facts) -> _Relu | None:
    """Of max(x, 0), or of a min and a max in either order."""
    limit = _limit(eq, facts)
    if limit is None:
        return None
    v, number = limit
    maker = facts.makers.get(v)
    inner = _limit(maker, facts) if maker and maker.name in ("max", "min") else None
    if eq.name == "max" and number == 0:
        if maker and maker.name == "min" and inner and inner[1] > 0:
            return _Relu(*inner)
        return _Relu(v)
    if eq.name == "min" and number > 0 and maker is not None:
        relu = _relu(maker, facts)
        return relu._replace(maximum=min(relu.maximum, number)) if relu else None
    return None


def _limit(eq: Equation, facts: Facts) -> tuple[int, float] | None:
    """The value and the number of a max or min of the two."""
    for v, limit in (eq.inputs, eq.inputs[::-1]):
        number = facts.number(limit)
        if isinstance(v, int) and v in facts.dependent and number is not None:
            return v, number
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


def _gates(v: int, facts: Facts) -> bool:
    """Whether a value only scales others: all that follows ends in such products."""

    def is_gate(eq: Equation) -> bool:
        if eq.site is not None or len(eq.outputs) != 1:
            return False
        factors = facts.dependent.intersection(eq.variables)
        if eq.name == "mul" and len(factors) == 2:
            return True
        moves = eq.name in _AFFINE_MOVES and len(factors) == 1
        return moves and _gates(eq.outputs[0], facts)

    readers = facts.readers.get(v)
    return bool(readers) and all(map(is_gate, readers))


def _guards(v: int, facts: Facts) -> bool:
    """Whether a value is only read by a root, a logarithm or as a divisor."""

    def needs_positive(eq: Equation) -> bool:
        if eq.name in _ROOTS or (eq.name == "div" and eq.inputs[1] == v):
            return True
        alone = len(facts.dependent.intersection(eq.variables)) == 1
        moves = eq.name in _AFFINE_MOVES or eq.name in ("add", "max")
        return moves and alone and _guards(eq.outputs[0], facts)

    readers = facts.readers.get(v)
    return bool(readers) and all(map(needs_positive, readers))


def _summands(facts: Facts, relus: dict[int, _Relu]) -> set[int]:
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
        if eq.name not in POINTWISE or len(shapes) != 1 or eq.outputs[0] in relus:
            continue
        parts = frozenset().union(*map(sources, inputs))
        for v in inputs:
            others = frozenset().union(*(sources(w) for w in inputs if w != v))
            curves = {source for source, curved in others - sources(v) if curved}
            summands |= {
                relu
                for relu, _ in sources(v) - others
                if relu in relus and _sources_of(relus[relu].x, made_of) & curves
            }
        if facts.is_operator(eq):
            parts = frozenset((source, source not in relus) for source, _ in parts)
        made_of[eq.outputs[0]] = parts
    return summands


def _sources_of(x: int, made_of: dict) -> set[int]:
    return {source for source, _ in made_of.get(x, {(x, False)})}
