"""A network is that of one example, and is mapped over all of them.

    fn(params, x)[b] = network(params, x[b])    for every example b

fn is traced with one example. Here x, sites and outputs lose their axis of size 1, and
each equation learns which of its inputs every example has its own of. Then no example
can reach another. That fn means the same for many is checked in ``mixing.py``.
"""

import math

from snnjax.capture.axes import Avals, Shape
from snnjax.capture.jaxprs import Program, traced
from snnjax.network.equations import Equation, shape_of


def of_one_example(program: Program, few: Program) -> Program:
    """The program without the axis of its one example, of x, sites and outputs.

    Everything between them keeps its shapes, and so fn its meaning, wherever the axis
    lies there: reshapes remove it before a site and bring it back behind it.

    Args:
        few: the same function of several examples, whose outputs show what an output
            of one example is, even if fn squeezes axes of size 1.
    """
    avals, equations, x, outputs = program.avals, [], [], []
    for v in program.x:
        x.append(_with_shape(v, avals[v].shape[1:], avals))
        equations += _reshape(x[-1], v, avals)
    for eq in program.equations:
        if eq.fires:
            equations += _site_of_one(eq, avals)
        elif eq.site is not None:  # jnp.matmul drops the axis, before it multiplies
            shape = _shape_of_one(avals[eq.outputs[0]].shape)
            equations.append(eq._replace(site=eq.site._replace(shape=shape)))
        else:
            equations.append(eq)
    for v, of_few in zip(program.outputs, few.outputs, strict=False):
        shape = shape_of(few.avals, of_few)[1:]
        # Other outputs are refused later, together with all that is wrong besides.
        fits = math.prod(shape_of(avals, v)) == math.prod(shape)
        if isinstance(v, int) and fits and avals[v].shape != shape:
            outputs.append(_with_shape(v, shape, avals))
            equations += _reshape(v, outputs[-1], avals)
        else:
            outputs.append(v)
    return program._replace(
        equations=tuple(equations), x=tuple(x), outputs=tuple(outputs)
    )


def with_mapped_inputs(eq: Equation, dependent: frozenset[int]) -> Equation:
    """The equation, which says which of its inputs each example has its own of."""
    return eq._replace(mapped=tuple(v in dependent for v in eq.inputs))


def _site_of_one(eq: Equation, avals: Avals) -> list[Equation]:
    """A site of one example's neurons, between two reshapes."""
    (v, *operands), (output,) = eq.inputs, eq.outputs
    assert isinstance(v, int)
    shape = _shape_of_one(avals[v].shape)
    site = eq.place._replace(shape=shape)
    if shape == avals[v].shape:
        return [eq._replace(site=site)]
    current, spikes = (_with_shape(v, shape, avals) for _ in range(2))
    fires = eq._replace(inputs=(current, *operands), outputs=(spikes,), site=site)
    return [*_reshape(v, current, avals), fires, *_reshape(spikes, output, avals)]


def _shape_of_one(shape: Shape) -> Shape:
    """A shape without the axis of its one example.

    It is the first axis as a rule, and the last one where vmap meets W @ x. It may
    have been merged with another one, as windows or tokens with a batch: then nothing
    is left of it.
    """
    for axis in dict.fromkeys((0, len(shape) - 1, *range(len(shape)))):
        if shape and shape[axis] == 1:
            return (*shape[:axis], *shape[axis + 1 :])
    return shape


def _with_shape(v: int, shape: Shape, avals: Avals) -> int:
    """A new variable, with the numbers of another one in another shape."""
    fresh = len(avals)
    avals[fresh] = avals[v].update(shape=shape)
    return fresh


def _reshape(v: int, result: int, avals: Avals) -> list[Equation]:
    """The equation result = reshape(v)."""
    shape = avals[result].shape
    (eq,), _ = traced(lambda a: a.reshape(shape), [v], avals, "")
    return [eq._replace(outputs=(result,))]
