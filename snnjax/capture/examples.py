"""Examples: a network is captured for one of them, and mapped over the others.

So no equation knows the batch, and no example can reach another. A function that mixes
examples, as by a statistic of the batch, would compute something else then. Traces of
two and of three examples show it: the size of what belongs to one example grows with
their number.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from snnjax.capture.facts import Facts
from snnjax.capture.jaxprs import Program, traced
from snnjax.network.equations import Equation, Static, shape_of

# They reorder or add up along an axis, and keep its size.
_ALONG = {"sort": "dimension", "rev": "dimensions"}
_ALONG |= dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), "axis")


def mixed(few: Program, more: Program, ratio: float) -> Iterator[Equation]:
    """The first equations by which one example reaches another.

    Args:
        few, more: the same function of some examples, and of ``ratio`` times as many.
    """
    reached: set[int] = set()
    if [eq.name for eq in few.equations] != [eq.name for eq in more.equations]:
        return  # its equations depend on the number of examples
    dependent = Facts(few).dependent
    for eq, other in zip(few.equations, more.equations, strict=True):
        if reached.intersection(eq.variables):
            reached.update(eq.outputs)
        elif dependent.intersection(eq.outputs):
            pairs = zip(eq.outputs, other.outputs, strict=True)
            shapes = [(shape_of(few.avals, v), shape_of(more.avals, w)) for v, w in pairs]
            grows = all(math.prod(b) == ratio * math.prod(a) for a, b in shapes)
            if not grows or _is_along(eq, *shapes[0]):
                reached.update(eq.outputs)
                yield eq


def statistics(few: Program, more: Program) -> frozenset[int]:
    """Variables that do not grow with the number of examples, as a batch's mean."""
    if len(few.avals) != len(more.avals):
        return frozenset()
    return frozenset(v for v in few.avals if few.avals[v].shape == more.avals[v].shape)


def _is_along(eq: Equation, few: Sequence[int], more: Sequence[int]) -> bool:
    axes = np.atleast_1d(eq.options[_ALONG[eq.name]]) if eq.name in _ALONG else ()
    return any(few[axis] != more[axis] for axis in axes)


def of_one_example(program: Program) -> Program:
    """The program without a batch axis, of x, outputs and sites, from one with B = 1."""
    avals, equations = program.avals, []
    fresh_x = []
    for v in program.x:
        fresh_x.append(len(avals))
        avals[len(avals)] = avals[v].update(shape=avals[v].shape[1:])
        equations += _reshaped(fresh_x[-1], v, avals)
    for eq in program.equations:
        equations += _site_of_one(eq, avals) if eq.fires else [eq]
    outputs: list[int | Static] = []
    for v in program.outputs:
        if isinstance(v, int) and avals[v].shape[:1] == (1,):
            fresh = len(avals)
            avals[fresh] = avals[v].update(shape=avals[v].shape[1:])
            equations += _reshaped(v, fresh, avals)
            v = fresh
        outputs.append(v)
    return program._replace(
        equations=tuple(equations), x=tuple(fresh_x), outputs=tuple(outputs)
    )


def _site_of_one(eq: Equation, avals) -> list[Equation]:
    """A site, and reshapes that take the batch axis away and bring it back."""
    v, (output,) = eq.inputs[0], eq.outputs
    shape = shape_of(avals, v)
    own = next((s for s in (shape[1:], shape[:-1]) if math.prod(s) == math.prod(shape)), shape)
    own = own if shape[:1] == (1,) or shape[-1:] == (1,) else shape
    current, spikes = len(avals), len(avals) + 1
    avals[current] = avals[spikes] = avals[v].update(shape=own)
    site = eq.place._replace(shape=own)
    fires = eq._replace(inputs=(current, *eq.inputs[1:]), outputs=(spikes,), site=site)
    return [*_reshaped(v, current, avals), fires, *_reshaped(spikes, output, avals)]


def _reshaped(v: int, result: int, avals) -> list[Equation]:
    shape = avals[result].shape
    equations, _ = traced(lambda a: a.reshape(shape), [v], avals, "")
    equations[-1] = equations[-1]._replace(outputs=(result,))
    return equations


def mapped(eq: Equation, dependent: frozenset[int]) -> Equation:
    """The equation, which says which of its inputs each example has its own of."""
    return eq._replace(mapped=tuple(v in dependent for v in eq.inputs))
