"""Operators: equations that are computed on running means become one each.

An equation that is not affine in values that depend on the input is computed on running
means (``increments.py``). A cut is a neuron or a product with weights. Equations that
are connected without a cut are one operator: a softmax, a norm, a GELU, or an attention
with both of its products.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from snnjax._trees import common_path
from snnjax.network.capture.facts import Facts
from snnjax.network.capture.jaxprs import Program
from snnjax.network.capture.primitives import primitive
from snnjax.network.equations import Body, Equation, computed_by
from snnjax.network.sites import new_site


def with_operators(program: Program) -> Program:
    """The program with every group of equations that is an operator as one equation."""
    facts = Facts(program)
    operators: dict[int, Equation] = {}  # number of its first equation -> operator
    members: set[int] = set()  # numbers of all equations that are in operators
    for group in _groups(facts):
        body = tuple(program.equations[i] for i in group)
        operators[group[0]] = _operator(body, facts)
        members.update(group)
    equations: list[Equation] = []
    for i, eq in enumerate(program.equations):
        if i in operators:
            equations.append(operators[i])
        elif i not in members:
            equations.append(eq)
    return program._replace(equations=tuple(_in_order(equations)))


# ------------------------------------------------------------------------- groups


def _groups(facts: Facts) -> list[tuple[int, ...]]:
    """For each operator, the numbers of its equations, in order.

    Two equations that are not affine belong together if one leads to the other without
    a cut, and if spikes reach both of them or neither. Affine equations between the two
    belong to the same operator:

        0   a = x @ w      a cut
        1   b = a + bias   affine, and no operator leads to it
        2   c = tanh(b)    an operator
        3   d = 2 c        affine, between two operators
        4   e = exp(d)     an operator, the same as 2 and 3: (2, 3, 4)
        5   f = e - 1      affine, and leads to no operator
    """
    predecessors = _predecessors(facts)
    # From the last one back: operators, and affine equations between two of them. A
    # predecessor is an operator or follows from one, so what it leads to decides.
    members: set[int] = set()
    for i in reversed(range(len(predecessors))):
        if facts.is_operator(facts.equations[i]) or i in members:
            members.add(i)
            members.update(predecessors[i])
    # From the first one on: a member unites the groups of its predecessors.
    groups: dict[int, set[int]] = {}  # number of an equation -> its group
    for i in sorted(members):
        group = {i}
        for predecessor in predecessors[i]:
            group |= groups[predecessor]
        groups.update(dict.fromkeys(group, group))
    # Every member has its group here. Take each group once, at its first member.
    distinct_groups = []
    for i, group in groups.items():
        if i == min(group):
            distinct_groups.append(tuple(sorted(group)))
    return distinct_groups


def _predecessors(facts: Facts) -> list[set[int]]:
    """For each equation, those that it reads from within its operator, by number.

    They are operators or follow from one, and no cut lies between: not on the direct
    way, nor on a longer way beside it, since what leaves an operator through a neuron
    and comes back to it could not be computed. So an equation and its predecessor have
    equally many cuts on the longest way to them. Here e is behind one cut more than c,
    and is no part of c's operator:

        c = tanh(b)    d = relu(c)    e = c * exp(d)
    """
    maker_numbers: dict[int, int] = {}  # variable -> number of its equation
    cuts: dict[int, int] = {}  # variable -> cuts on the longest way to it
    predecessors: list[set[int]] = []
    followers: set[int] = set()  # equations that are operators or follow from one
    for i, eq in enumerate(facts.equations):
        depth = max((cuts.get(v, 0) for v in eq.variables), default=0)
        has_spikes = not facts.spike_dependent.isdisjoint(eq.outputs)
        is_cut = eq.site is not None or facts.is_product(eq)
        eq_predecessors: set[int] = set()
        for v in eq.variables:
            if is_cut or v not in maker_numbers or cuts[v] != depth:
                continue
            # What no spikes reach is computed once, by an operator of its own.
            is_alike = (v in facts.spike_dependent) == has_spikes
            if is_alike and maker_numbers[v] in followers:
                eq_predecessors.add(maker_numbers[v])
        predecessors.append(eq_predecessors)
        if facts.is_operator(eq) or eq_predecessors:
            followers.add(i)
        if is_cut:
            depth += 1
        cuts.update(dict.fromkeys(eq.outputs, depth))
        maker_numbers.update(dict.fromkeys(eq.outputs, i))
    return predecessors


def _operator(equations: tuple[Equation, ...], facts: Facts) -> Equation:
    """An operator as one equation, whose body is these equations."""
    results = _results(equations, facts)
    inner_variables = computed_by(equations)
    inputs: dict[int, None] = {}  # a set that keeps its order
    for eq in equations:
        for v in eq.variables:
            if v not in inner_variables:
                inputs[v] = None
    dependent_inputs = facts.dependent.intersection(inputs)
    near_relu = _is_near_relu(equations, dependent_inputs, facts)
    # A site has one shape and type: those of the first result stand for all of them.
    site = new_site(
        _kind(equations, near_relu),
        facts.program.avals[results[0]],
        fires=False,
        near_relu=near_relu,
    )
    paths = [eq.path for eq in equations]
    body = Body(equations=equations, inputs=tuple(inputs))
    return Equation(
        primitive=None,
        params=(),
        inputs=body.inputs,
        outputs=results,
        site=site,
        path=common_path(paths) if all(paths) else "",
        body=body,
    )


def _results(equations: tuple[Equation, ...], facts: Facts) -> tuple[int, ...]:
    """Variables that these equations compute and others read, or fn returns."""
    ids = {id(eq) for eq in equations}
    results = []
    for eq in equations:
        for v in eq.outputs:
            readers = facts.readers.get(v, ())
            is_read_outside = any(id(reader) not in ids for reader in readers)
            if is_read_outside or v in facts.program.outputs:
                results.append(v)
    return tuple(results)


def _is_near_relu(
    equations: tuple[Equation, ...], inputs: Iterable[int], facts: Facts
) -> bool:
    """Whether an operator is a function of one value, in polynomial pieces.

    Args:
        inputs: of the operator, those that depend on x.
    """
    # max(u, 0.1 u) has two inputs, but it is a function of the one value u.
    sources = {_scaled_from(v, facts) for v in inputs}
    rows = [primitive(eq.name) for eq in equations]
    is_piecewise = all(row.piecewise for row in rows)
    has_pieces = any(row.compares for row in rows)
    return len(sources) == 1 and is_piecewise and has_pieces


def _scaled_from(v: int, facts: Facts) -> int:
    """The value u that v is computed from, by sums, products and quotients alone.

    These read no other value that depends on x. If there are none, u is v itself.
    """
    eq = facts.makers.get(v)
    while eq is not None and eq.name in ("add", "sub", "mul", "div", "neg"):
        sources = facts.dependent.intersection(eq.variables)
        if len(sources) != 1:
            break
        (v,) = sources
        eq = facts.makers.get(v)
    return v


# Kind of an operator -> operations that its body holds; the first row that fits counts.
_SIGNATURES = (
    ("attention", {"exp", "dot_general"}),
    ("softmax", {"exp", "reduce_sum"}),
    ("norm", {"rsqrt"}),
    ("norm", {"sqrt", "div"}),
    ("gelu", {"erf"}),
    ("gelu", {"erfc"}),
    ("gelu", {"tanh", "integer_pow"}),
    ("silu", {"x logistic(x)"}),
    ("gate", {"logistic", "mul"}),
    ("sigmoid", {"logistic"}),
    ("tanh", {"tanh"}),
    ("product", {"mul"}),
    ("product", {"dot_general"}),
)


def _kind(equations: Sequence[Equation], near_relu: bool) -> str:
    """A name of an operator for people.

    It is the name of the function that all equations were called in, such as gelu, or
    a kind by `_SIGNATURES`.

    Args:
        equations: of the operator.
        near_relu: whether they are a function of one value, in polynomial pieces.
    """
    name = _name_of_call(equations)
    # A user's activation may be called relu too, but that is the kind of sites with
    # neurons. jnp.where says nothing of what is computed.
    if name.isidentifier() and name not in ("relu", "relu6", "where"):
        return name
    if near_relu:
        return "piecewise"
    operations = {eq.name for eq in equations}
    if _has_silu(equations):
        operations.add("x logistic(x)")
    for kind, signature in _SIGNATURES:
        if signature <= operations:
            return kind
    return "operator"


def _name_of_call(equations: Sequence[Equation]) -> str:
    """Name of the innermost function that all equations were called in; "" for none."""
    name = ""
    # Level by level, from the outermost call inwards.
    for calls in zip(*(eq.calls for eq in equations), strict=False):
        call_names = {call.name for call in calls}
        if len(call_names) > 1:
            break
        (name,) = call_names
    return name.strip("_")


def _has_silu(equations: Sequence[Equation]) -> bool:
    """Whether a value is multiplied by its own logistic function: x logistic(x)."""
    logistic: dict[Any, Any] = {}  # logistic(x) -> x
    for eq in equations:
        if eq.name == "logistic":
            logistic[eq.outputs[0]] = eq.inputs[0]
    for eq in equations:
        if eq.name == "mul":
            a, b = eq.inputs
            if logistic.get(a) == b or logistic.get(b) == a:
                return True
    return False


def _in_order(equations: Sequence[Equation]) -> list[Equation]:
    """The equations, sorted so that each follows those whose outputs it reads.

    They are nearly sorted: an operator stands where its first equation stood, before
    some of its inputs.
    """
    makers = {v: eq for eq in equations for v in eq.outputs}
    sequence: list[Equation] = []
    placed_ids: set[int] = set()

    def missing_maker(eq: Equation) -> Equation | None:
        """An equation that must be placed before this one."""
        for v in eq.variables:
            if v in makers and id(makers[v]) not in placed_ids:
                return makers[v]
        return None

    for eq in equations:
        # Each equation on the stack must wait for the next one. A recursion would be
        # too deep for Python.
        stack = [eq]
        while stack:
            maker = missing_maker(stack[-1])
            if maker is not None:
                stack.append(maker)
                continue
            ready = stack.pop()
            if id(ready) not in placed_ids:
                placed_ids.add(id(ready))
                sequence.append(ready)
    return sequence
