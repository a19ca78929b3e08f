"""Which equations become operators.

An equation that is not affine in values that depend on the input is computed on running
means (`increments`). A cut is a neuron or a product with weights. Equations that are
connected without a cut are one operator: a softmax, a norm, a GELU, or an attention
with both of its products.
"""

import itertools
from collections.abc import Sequence

from snnjax._trees import common_path
from snnjax.network.capture.facts import Facts
from snnjax.network.capture.jaxprs import Program
from snnjax.network.capture.primitives import primitive
from snnjax.network.equations import Body, Equation
from snnjax.network.sites import new_site


def with_operators(program: Program) -> Program:
    """The program with what is not affine gathered in operators."""
    facts = Facts(program)
    group_of = {i: group for group in _groups(facts) for i in group}
    new_equations: list[Equation] = []
    for i, eq in enumerate(program.equations):
        group = group_of.get(i)
        if group is None:
            new_equations.append(eq)
        elif i == group[0]:
            body = tuple(program.equations[j] for j in group)
            new_equations.append(_operator(body, facts))
    return program._replace(equations=tuple(_in_order(new_equations)))


# ------------------------------------------------------------------------- groups


def _groups(facts: Facts) -> list[tuple[int, ...]]:
    """Numbers of the equations of each operator, in order.

    Two equations that are not affine belong together if one leads to the other without
    a cut, and spikes reach both or neither; so do affine ones between them:

        0   a = x @ w      a cut
        1   b = a + bias   affine, and no operator leads to it
        2   c = tanh(b)    an operator
        3   d = 2 c        affine, between two operators
        4   e = exp(d)     an operator, the same as 2 and 3: (2, 3, 4)
        5   f = e - 1      affine, and leads to no operator
    """
    before = _equations_before(facts)
    # From the last one back: operators, and whatever leads from one to another.
    members: set[int] = set()
    for i in reversed(range(len(before))):
        if facts.is_operator(facts.equations[i]) or i in members:
            members |= {i, *before[i]}
    # From the first one on: each member joins the groups of those before it into one.
    group_of: dict[int, set[int]] = {}
    for i in sorted(members):
        group = {i}.union(*(group_of[j] for j in before[i]))
        group_of.update(dict.fromkeys(group, group))
    return [tuple(sorted(group)) for i, group in group_of.items() if i == min(group)]


def _equations_before(facts: Facts) -> list[set[int]]:
    """For each equation those that may be of one operator with it and lead to it.

    They are operators or follow from one. Nothing cuts the way between the two: neither
    itself nor a longer one beside it, since a way out of an operator and back into it,
    through a neuron, could not be computed. So both have the same number of cuts on the
    longest way to them: here e, behind one cut more than c, is no part of c's operator.

        c = tanh(b)    d = relu(c)    e = c * exp(d)
    """
    equations, live = facts.equations, facts.live
    made_by: dict[int, int] = {}  # variable -> number of its equation
    cuts: dict[int, int] = {}  # variable -> cuts on the longest way to it
    before: list[set[int]] = []
    follows: set[int] = set()  # equations that are operators or follow from one
    for i, eq in enumerate(equations):
        depth = max((cuts.get(v, 0) for v in eq.variables), default=0)
        is_live = not live.isdisjoint(eq.outputs)
        is_cut = eq.site is not None or facts.is_product(eq)
        near = (v for v in eq.variables if v in made_by and cuts[v] == depth)
        same = {made_by[v] for v in near if (v in live) == is_live and not is_cut}
        before.append(same & follows)
        if facts.is_operator(eq) or before[i]:
            follows.add(i)
        cuts.update(dict.fromkeys(eq.outputs, depth + is_cut))
        made_by.update(dict.fromkeys(eq.outputs, i))
    return before


def _operator(body: tuple[Equation, ...], facts: Facts) -> Equation:
    """One equation for a body of several."""
    inside = {v for eq in body for v in eq.outputs}
    members = set(map(id, body))
    inputs = dict.fromkeys(v for eq in body for v in eq.variables if v not in inside)
    results = [
        v
        for v in (v for eq in body for v in eq.outputs)
        if v in facts.program.outputs
        or any(id(reader) not in members for reader in facts.readers.get(v, ()))
    ]
    aval = facts.program.avals[results[0]]
    sources = {_scaled_from(v, facts) for v in facts.dependent.intersection(inputs)}
    operations = [primitive(eq.name) for eq in body]
    near_relu = len(sources) == 1 and all(each.piecewise for each in operations)
    near_relu = near_relu and any(each.compares for each in operations)
    site = new_site(_kind(body, near_relu), aval, fires=False, near_relu=near_relu)
    paths = [eq.path for eq in body]
    path = common_path(paths) if all(paths) else ""
    computes = Body(body, tuple(inputs))
    return Equation(None, (), computes.inputs, tuple(results), site, path, (), computes)


def _scaled_from(v: int, facts: Facts) -> int:
    """The value that a value is a multiple of, with an offset."""
    eq = facts.makers.get(v)
    while eq is not None and eq.name in ("add", "sub", "mul", "div", "neg"):
        sources = facts.dependent.intersection(eq.variables)
        if len(sources) != 1:
            break
        (v,) = sources
        eq = facts.makers.get(v)
    return v


# What a body computes, by operations that it holds; the first that fits counts.
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


def _kind(body: Sequence[Equation], near_relu: bool) -> str:
    """A name for people: the call that all of a body stands in, or by `_SIGNATURES`."""
    calls = body[0].calls
    for eq in body[1:]:
        pairs = zip(calls, eq.calls, strict=False)
        same = itertools.takewhile(lambda pair: pair[0].name == pair[1].name, pairs)
        calls = [call for call, _ in same]
    name = calls[-1].name.strip("_") if calls else ""
    # An activation of the user's own may be called relu, which names a site.
    if name.isidentifier() and name not in ("relu", "relu6", "where"):
        return name
    if near_relu:
        return "piecewise"
    operations = {eq.name for eq in body}
    curves = {(eq.inputs[0], eq.outputs[0]) for eq in body if eq.name == "logistic"}
    products = (eq.inputs for eq in body if eq.name == "mul")
    if any((a, b) in curves or (b, a) in curves for a, b in products):
        operations.add("x logistic(x)")
    kinds = (kind for kind, signature in _SIGNATURES if signature <= operations)
    return next(kinds, "operator")


def _in_order(equations: Sequence[Equation]) -> list[Equation]:
    """The equations, each after those whose outputs it reads.

    An operator stands where its first equation stood, before some of its inputs.
    """
    maker = {v: eq for eq in equations for v in eq.outputs}
    sequence: list[Equation] = []
    placed_ids: set[int] = set()

    for eq in equations:
        stack = [eq]  # each waits for the next one; a network is too deep to recurse
        while stack:
            makers = (maker[v] for v in stack[-1].variables if v in maker)
            missing = next((m for m in makers if id(m) not in placed_ids), None)
            if missing is not None:
                stack.append(missing)
                continue
            current = stack.pop()
            if id(current) not in placed_ids:
                placed_ids.add(id(current))
                sequence.append(current)
    return sequence
