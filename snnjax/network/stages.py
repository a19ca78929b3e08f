"""Cuts through a network: stages between firing sites.

A firing site needs all of its input before its neurons can be fitted, or their spikes
encoded; between two of them lies a `Stage`. A kernel that only one product of a stage
reads may be refitted to the spikes that reach this product, whatever reads its result.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from snnjax._trees import is_kernel
from snnjax.network.equations import (
    PRODUCTS,
    Body,
    Equation,
    Network,
    Static,
    spread_out,
)
from snnjax.network.sites import Site


def needed(
    equations: Sequence[Equation], targets: Iterable[Any], available: Iterable[int] = ()
) -> tuple[Equation, ...]:
    """The equations that ``targets`` depend on, not looking behind ``available``."""
    needed_variables, available = set(targets), set(available)
    needed_equations = []
    for equation in reversed(equations):
        outputs = set(equation.outputs)
        # Backwards, so that the readers of an output have asked for it already.
        if outputs & needed_variables and not outputs <= available:
            needed_equations.append(equation)
            needed_variables |= set(equation.variables) - available
    return tuple(reversed(needed_equations))


def streaming(
    equations: Sequence[Equation], sources: Iterable[int] = ()
) -> frozenset[int]:
    """Variables that change from step to step: ``sources``, spikes, what they reach."""
    streams = set(sources)
    for equation in equations:
        if equation.fires or streams.intersection(equation.variables):
            streams.update(v for part in spread_out([equation]) for v in part.outputs)
            streams.update(equation.outputs)
    return frozenset(streams)


class Segment(NamedTuple):
    """Equations that lead to one site, numbered by themselves.

    Equal work gives equal segments, so that ``jit`` with a segment as a static
    argument compiles a block that a network repeats once.

    Attributes:
        equations: in order of execution; no firing site among them.
        inputs: variables that it reads.
        outputs: variables or constants that it leads to.
        carried: variables that it computes on the way and later segments read.
    """

    equations: tuple[Equation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int | Static, ...]
    carried: tuple[int, ...]


class Stage(NamedTuple):
    """One segment at its place in the network.

    Attributes:
        site: the firing site that it leads to; None for the last one, which leads to
            the outputs.
        output: network variable of that site's output, None likewise.
        segment: the work.
        sources: network variables that ``segment.inputs`` stand for.
        carried: network variables that ``segment.carried`` stand for.
    """

    site: Site | None
    output: int | None
    segment: Segment
    sources: tuple[int, ...]
    carried: tuple[int, ...]

    @property
    def place(self) -> Site:
        """The site of a stage that leads to one."""
        assert self.site is not None
        return self.site


def stages(network: Network) -> list[Stage]:
    """Cut the network at its firing sites; what depends on x is computed once."""
    available = {*network.parameters, *network.x, *network.constants}
    # Each stage takes from `remaining` what its site needs and no earlier one did. What
    # does not depend on x, such as a reshaped kernel, stays there: every stage that
    # needs it computes it again, so that it need not be carried.
    fires = [equation for equation in network.equations if equation.fires]
    remaining = [equation for equation in network.equations if not equation.fires]
    stage_list = []
    for i, equation in enumerate([*fires, None]):
        ends = network.outputs if equation is None else equation.inputs
        work = needed(remaining, [v for v in ends if isinstance(v, int)], available)
        results = {v for eq in work for v in eq.outputs} & network.dependent
        remaining = [eq for eq in remaining if not results.intersection(eq.outputs)]
        # Results that a later stage reads too, as of a residual sum, are carried to it.
        later = {v for eq in [*remaining, *fires[i + 1 :]] for v in eq.variables}
        later |= {v for v in network.outputs if isinstance(v, int)}
        carried = () if equation is None else tuple(sorted(results & later))
        stage_list.append(_stage(equation, work, ends, carried))
        available |= results | set(equation.outputs if equation else ())
    return stage_list


def _stage(
    equation: Equation | None,
    work: Sequence[Equation],
    ends: Sequence[int | Static],
    carried: tuple[int, ...],
) -> Stage:
    """The stage of a site's equation, None for the outputs, as a segment and its place.

    The segment numbers variables in the order in which the work meets them. Two equal
    layers at different places of the network then have equal segments:

        5 = dot(3, 4); 7 = add(5, 6)        ->    2 = dot(0, 1); 4 = add(2, 3)
        12 = dot(10, 11); 14 = add(12, 13)  ->    the same, of other sources
    """
    numbers: dict[int, int] = {}  # variable of the network -> of the segment

    def number(v: Any) -> Any:
        return numbers.setdefault(v, len(numbers)) if isinstance(v, int) else v

    equations = tuple(_renumbered(eq, number) for eq in work)
    outputs, carried_on = tuple(map(number, ends)), tuple(map(number, carried))
    # What the work reads and does not compute comes from outside.
    computed = {v for eq in spread_out(work) for v in eq.outputs}
    sources = tuple(v for v in numbers if v not in computed)
    inputs = tuple(numbers[v] for v in sources)
    segment = Segment(equations, inputs, outputs, carried_on)
    site, output = (equation.site, equation.outputs[0]) if equation else (None, None)
    return Stage(site, output, segment, sources, carried)


def _renumbered(eq: Equation, number: Callable[[Any], Any]) -> Equation:
    """The equation over other variables, without what tells it from equal ones."""
    inputs, body = tuple(map(number, eq.inputs)), eq.body
    if body is not None:
        equations = tuple(_renumbered(inner, number) for inner in body.equations)
        body = Body(equations, tuple(map(number, body.inputs)))
    return eq._replace(
        inputs=inputs,
        outputs=tuple(map(number, eq.outputs)),
        site=nameless(eq.site) if eq.site else None,
        path="",
        calls=(),
        body=body,
    )


def nameless(site: Site) -> Site:
    """The site without what tells it from those of equal layers."""
    return site._replace(name="", parameters=(), depth=0, channel=-1)


# ------------------------------------------------------------- products with weights


class LoneProduct(NamedTuple):
    """A product with weights on the way to a site, the only reader of its kernel.

    Attributes:
        kernel: network variable of its weights.
        segment: what of the stage leads to its result, with all inputs of the stage.
        channel: axis of the result that counts its channels, from the end.
    """

    kernel: int
    segment: Segment
    channel: int


def lone_products(
    network: Network, stages: Sequence[Stage], i: int
) -> list[LoneProduct]:
    """Products of stage ``i`` whose kernel nothing else reads, here or elsewhere."""
    stage, segment = stages[i], stages[i].segment
    elsewhere = {v for j, other in enumerate(stages) if j != i for v in other.sources}
    outer = dict(zip(segment.inputs, stage.sources, strict=True))
    parameters = {n: v for n, v in outer.items() if v in network.parameters}
    kernels = {n for n, v in parameters.items() if is_kernel(network.avals[v])}
    readers, derived = _readers(segment, network, outer)
    alone = []
    for n in kernels:
        # Weights that something else reads cannot follow the spikes of one product.
        if outer[n] in elsewhere or len(readers.get(n, ())) != 1:
            continue
        (equation,) = readers[n]
        if equation is None or equation.name not in PRODUCTS:
            continue
        first, second = equation.inputs[:2]
        channel = _channel(equation)
        # x times weights, not weights times weights, weights times x or x times x.
        if first in derived or second not in derived or channel is None:
            continue
        if kernels & derived[second] != {n}:  # as of x @ (A @ B), a low-rank layer
            continue
        (result,) = equation.outputs
        work = needed(segment.equations, [result], segment.inputs)
        leading = Segment(work, segment.inputs, (result,), ())
        alone.append(LoneProduct(outer[n], leading, channel))
    return alone


def _readers(
    segment: Segment, network: Network, outer: dict[int, int]
) -> tuple[dict[int, list[Equation | None]], dict[Any, frozenset[int]]]:
    """Input -> what reads it together with x; value -> the parameters it is made of.

    None among the readers stands for a later stage.
    """
    derived: dict[Any, frozenset[int]] = {
        n: frozenset([n]) for n, v in outer.items() if v in network.parameters
    }
    derived |= {n: frozenset() for n, v in outer.items() if v in network.constants}
    readers: dict[int, list[Equation | None]] = {}
    for equation in segment.equations:
        parts = [derived.get(v) for v in equation.variables]
        # What is computed of parameters alone is still weights, as a transposed kernel.
        if None not in parts and equation.body is None:
            made_of = frozenset().union(*(part for part in parts if part))
            derived.update(dict.fromkeys(equation.outputs, made_of))
            continue
        for n in frozenset().union(*(part for part in parts if part)):
            readers.setdefault(n, []).append(equation)
    for v in (*segment.outputs, *segment.carried):
        for n in derived.get(v, ()) if isinstance(v, int) else ():
            readers.setdefault(n, []).append(None)
    return readers, derived


def _channel(equation: Equation) -> int | None:
    """The channels of a result that has the examples first; None if it may not."""
    numbers = equation.options["dimension_numbers"]
    if equation.name == "conv_general_dilated":
        examples, channel, *_ = numbers.out_spec
        return channel - len(numbers.out_spec) if examples == 0 else None
    return -1  # the free axes of the second operand are the last
