"""Cuts through a network: what depends on what, what streams, what leads to a site.

A firing site needs all of its input before its neurons can be fitted, or their spikes
kept; between two of them lies a `Stage`. Where layers wait, `delay_lines` keep the
inputs of a sum in step.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from snnjax.network.equations import Equation, Network, Site, Static, variables


def needed(
    equations: Sequence[Equation], targets: Iterable[int], known: Iterable[int] = ()
) -> tuple[Equation, ...]:
    """The equations that ``targets`` depend on, not looking behind ``known``."""
    wanted, known = set(targets), set(known)
    kept = []
    for equation in reversed(equations):
        outputs = set(equation.outputs)
        if outputs & wanted and not outputs <= known:
            kept.append(equation)
            wanted |= {v for v in equation.inputs if isinstance(v, int)} - known
    return tuple(reversed(kept))


def streaming(
    equations: Sequence[Equation], sources: Iterable[int] = ()
) -> frozenset[int]:
    """Variables that change from step to step: ``sources``, spikes, what they reach."""
    streams = set(sources)
    for equation in equations:
        fires = equation.site is not None and equation.site.fires
        if fires or streams.intersection(variables(equation)):
            streams.update(equation.outputs)
    return frozenset(streams)


def delay_lines(
    equations: Sequence[Equation], network: Network, streams: frozenset[int]
) -> list[Equation]:
    """The equations with explicit delay lines, so that all inputs of each are in step.

    A "delay line" is a site at which a stream must ``wait`` for deeper ones: as many
    layers as they have passed more.
    """
    fresh = max(network.avals) + 1
    aligned: dict[tuple[int, int], int] = {}
    lined = []
    for equation in equations:
        depth = max(
            (network.depths[v] for v in variables(equation) if v in streams),
            default=0,
        )
        inputs = list(equation.inputs)
        for i, v in enumerate(inputs):
            if not isinstance(v, int) or v not in streams:
                continue
            behind = depth - network.depths[v]
            if behind and (v, depth) not in aligned:
                aligned[v, depth] = fresh
                aval = network.avals[v]
                line = Site(
                    name=f"delay line {fresh}",
                    kind="delay line",
                    shape=aval.shape[1:],
                    parameters=(),
                    depth=depth,
                    dtype=aval.dtype,
                    wait=behind,
                )
                lined.append(Equation(None, (), (v,), (fresh,), line))
                fresh += 1
            inputs[i] = aligned.get((v, depth), v)
        lined.append(equation._replace(inputs=tuple(inputs)))
    return lined


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
    known = {*network.parameters, network.x, *network.constants}
    fires = [eq for eq in network.equations if eq.site is not None and eq.site.fires]
    waiting = [eq for eq in network.equations if not (eq.site and eq.site.fires)]
    cut = []
    for i, equation in enumerate([*fires, None]):
        ends = network.outputs if equation is None else equation.inputs
        work = needed(waiting, [v for v in ends if isinstance(v, int)], known)
        made = {v for eq in work for v in eq.outputs} & network.dependent
        waiting = [eq for eq in waiting if not made.intersection(eq.outputs)]
        later = {v for eq in [*waiting, *fires[i + 1 :]] for v in variables(eq)}
        later |= {v for v in network.outputs if isinstance(v, int)}
        carried = () if equation is None else tuple(sorted(made & later))
        cut.append(_stage(equation, work, ends, carried))
        known |= made | set(equation.outputs if equation else ())
    return cut


def _stage(equation: Equation | None, work, ends, carried) -> Stage:
    numbers: dict[int, int] = {}
    made = {v for eq in work for v in eq.outputs}

    def number(v):
        return numbers.setdefault(v, len(numbers)) if isinstance(v, int) else v

    canonical = []
    for eq in work:
        inputs = tuple(map(number, eq.inputs))
        outputs = tuple(map(number, eq.outputs))
        site = _nameless(eq.site) if eq.site else None
        canonical.append(Equation(eq.primitive, eq.params, inputs, outputs, site))
    outputs, kept = tuple(map(number, ends)), tuple(map(number, carried))
    sources = tuple(v for v in numbers if v not in made)
    inputs = tuple(numbers[v] for v in sources)
    segment = Segment(tuple(canonical), inputs, outputs, kept)
    site, output = (equation.site, equation.outputs[0]) if equation else (None, None)
    return Stage(site, output, segment, sources, carried)


def _nameless(site: Site) -> Site:
    return site._replace(name="", parameters=(), depth=0, channel=-1)
