"""A network is that of one example, and is mapped over all of them.

    fn(params, x)[b] = network(params, x[b])    for every example b

fn is traced with one example. Here x, sites and outputs lose their axis of size 1, and
each equation learns which of its inputs every example has its own of. Then no example
can reach another.

fn must do with many examples what it does with one. Two traces of fn show whether it
does, of different numbers of examples: the axis whose length grows with the number is
that of the examples, alone or merged with another axis. An equation mixes examples if
it combines or reorders what lies along it.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax import lax

from snnjax.network.capture.facts import Facts
from snnjax.network.capture.jaxprs import Program
from snnjax.network.capture.primitives import primitive
from snnjax.network.equations import Avals, Equation, Shape, Static, shape_of


def of_one_example(program: Program, several: Program) -> Program:
    """The program without the axis of its one example, of x, sites and outputs.

    Everything between them keeps its shapes, and so fn its meaning, wherever the axis
    lies there: reshapes remove it before a site and bring it back behind it.

    Args:
        several: the same function of several examples, whose outputs show what an
            output of one example is, even if fn squeezes axes of size 1.
    """
    avals, equations, x, outputs = program.avals, [], [], []
    for v in program.x:
        x.append(_with_shape(v, avals[v].shape[1:], avals))
        equations.append(_reshape(x[-1], v, avals))
    for eq in program.equations:
        if eq.fires:
            equations += _site_of_one(eq, avals)
        elif eq.site is not None:  # jnp.matmul drops the axis, before it multiplies
            shape = _shape_of_one(avals[eq.outputs[0]].shape)
            equations.append(eq._replace(site=eq.site._replace(shape=shape)))
        else:
            equations.append(eq)
    for v, of_several in zip(program.outputs, several.outputs, strict=False):
        shape = shape_of(several.avals, of_several)[1:]
        # Other outputs are refused later, together with all that is wrong besides.
        fits = math.prod(shape_of(avals, v)) == math.prod(shape)
        if isinstance(v, int) and fits and avals[v].shape != shape:
            outputs.append(_with_shape(v, shape, avals))
            equations.append(_reshape(v, outputs[-1], avals))
        else:
            outputs.append(v)
    return program._replace(
        equations=tuple(equations), x=tuple(x), outputs=tuple(outputs)
    )


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
    return [_reshape(v, current, avals), fires, _reshape(spikes, output, avals)]


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


def _reshape(v: int, result: int, avals: Avals) -> Equation:
    """The equation result = reshape(v)."""
    params = {"dimensions": None, "new_sizes": avals[result].shape, "sharding": None}
    statics = tuple((name, Static(value)) for name, value in params.items())
    return Equation(lax.reshape_p, statics, (v,), (result,))


# ------------------------------------------------------------- where examples meet

_SHAPING = {"reshape", "squeeze", "broadcast_in_dim", "transpose"}


class Growth:
    """How a program's arrays grow with the number of examples.

    Attributes:
        several, other: the same function, traced with different numbers of examples.
            The equations that are judged are those of ``several``: two or more.
        sizes: of examples in these two.
        one: the same for one example, if it is neither of them.
    """

    def __init__(self, several: Program, other: Program, one: Program | None = None):
        self.several, self.other, self.one = several, other, one
        self.sizes = tuple(p.avals[p.x[0]].shape[0] for p in (several, other))

    def statistics(self) -> frozenset[int]:
        """Variables that do not grow, as the mean of a batch."""
        avals, others = self.several.avals, self.other.avals
        if len(avals) != len(others):
            return frozenset()
        return frozenset(v for v in avals if avals[v].shape == others[v].shape)

    def problems(self) -> Iterator[tuple[Equation | None, str]]:
        """Equations by which fn would mean something else for one example, and why.

        None in the place of an equation stands for the function as a whole. `check`
        explains the kinds.
        """
        if _form(self.several) != _form(self.other):  # as by a loop over the examples
            yield None, "size"
            return
        dependent = Facts(self.several).dependent
        # Variable -> s: example b has the indices i along its axis with i // s mod B =
        # b. s is 1 unless a reshape has merged the axis with others behind it.
        strides = dict.fromkeys(self.several.x, 1)
        mixed: set[int] = set()
        # What depends on how many examples there are, or on the place of one.
        sized = {v for v in self.several.constants if self._is_sized_constant(v)}
        for eq, other in zip(self.several.equations, self.other.equations, strict=True):
            is_sized = not sized.isdisjoint(eq.variables)
            pairs = zip(eq.inputs, other.inputs, strict=True)
            is_sized = is_sized or any(self._are_sized(*pair) for pair in pairs)
            if dependent.isdisjoint(eq.outputs):
                if is_sized or self._numbers_examples(eq):
                    sized.update(eq.outputs)
            elif mixed.intersection(eq.variables):
                mixed.update(eq.outputs)  # only the first of them is told
            else:
                stride = self._stride(eq, strides)
                if stride is None or is_sized:
                    mixed.update(eq.outputs)
                    yield eq, "size" if stride else "batch"
                else:
                    strides.update(dict.fromkeys(eq.outputs, stride))
        is_other_for_one = self.one and _work(self.one) != _work(self.several)
        if sized.intersection(self.several.outputs) or (is_other_for_one and not mixed):
            yield None, "size"

    def is_clean(self) -> bool:
        """Whether examples stay apart, in the equations and in every output."""
        obstacles = itertools.chain(self.problems(), self.wrong_outputs())
        return next(obstacles, None) is None

    def wrong_outputs(self, count: int | None = None) -> Iterator[str]:
        """Shapes of the first outputs whose first axis is not that of the examples."""
        pairs = zip(self.several.outputs[:count], self.other.outputs, strict=False)
        for a, b in pairs:
            shape, axes = shape_of(self.several.avals, a), self._axes(a, b)
            if axes != [0] or shape[0] != self.sizes[0]:
                each = [n // self.sizes[0] for n in shape]  # of one example
                grown = {i: "B" if each[i] == 1 else f"{each[i]}B" for i in axes}
                sizes = [grown.get(i, str(n)) for i, n in enumerate(shape)]
                yield f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"

    def _axes(self, v: int | Static, other: int | Static) -> list[int]:
        """The axes of a variable that grow as the number of examples does."""
        a, b = shape_of(self.several.avals, v), shape_of(self.other.avals, other)
        if len(a) != len(b):
            return []
        size, other_size = self.sizes
        axes = [i for i in range(len(a)) if a[i] != b[i]]
        return axes if all(other_size * a[i] == size * b[i] for i in axes) else []

    def _stride(self, eq: Equation, strides: Mapping[int, int]) -> int | None:
        """That of the outputs; None if examples meet."""
        shapes = [shape_of(self.several.avals, v) for v in eq.inputs]
        axes_in = [self._axes(v, v) if isinstance(v, int) else [] for v in eq.inputs]
        axes_out = [self._axes(v, v) for v in eq.outputs]
        meet = any(
            not _combined(eq, i, shapes).isdisjoint(axes)
            for i, axes in enumerate(axes_in)
        )
        own = {strides[v] for v in eq.variables if v in strides}
        if meet or len(own) != 1 or any(len(axes) != 1 for axes in axes_out):
            return None
        (stride,), ((after,), *_) = own, axes_out
        if eq.name != "reshape":
            return stride
        # In row-major order a reshape leaves two examples as far apart as they were.
        ((before,),), (shape,) = axes_in, shapes
        result = shape_of(self.several.avals, eq.outputs[0])
        apart = stride * math.prod(shape[before + 1 :])
        stride, rest = divmod(apart, math.prod(result[after + 1 :]))
        fits = not rest and stride and result[after] % (stride * self.sizes[0]) == 0
        return stride if fits else None

    def _is_sized_constant(self, v: int) -> bool:
        value, other = self.several.constants[v], self.other.constants[v]
        return value is not other and self._are_sized(Static(value), Static(other))

    def _are_sized(self, a: int | Static, b: int | Static) -> bool:
        """Whether a constant has other numbers for more examples, or by their place."""
        if not isinstance(a, Static) or not isinstance(b, Static):
            return False
        axes = self._axes(a, b)
        if not axes:
            return a != b
        array = np.asarray(a.value)
        return any((array != array.take([0], axis)).any() for axis in axes)

    def _numbers_examples(self, eq: Equation) -> bool:
        """Whether an equation counts the examples, as ``arange(len(x))`` does."""
        axes = self._axes(eq.outputs[0], eq.outputs[0])
        return eq.name == "iota" and eq.options["dimension"] in axes


def _form(program: Program) -> list[Any]:
    """What a program computes of what, whatever the shapes are."""
    forms = [
        (eq.name, eq.outputs, [v if isinstance(v, int) else None for v in eq.inputs])
        for eq in program.equations
    ]
    return [*program.constants, *forms]


def _work(program: Program) -> list[str]:
    """The operations of a program, without those that only give arrays a shape."""
    names = (eq.name for eq in program.equations)
    return [name for name in names if name not in _SHAPING]


def _combined(eq: Equation, i: int, shapes: Sequence[Shape]) -> set[int]:
    """Axes of operand i along which an equation combines, chooses or reorders.

    Args:
        shapes: of all operands.
    """
    name, options, shape = eq.name, eq.options, shapes[i]
    numbers: Any = options.get("dimension_numbers")
    every_axis = set(range(len(shape)))
    if along := primitive(name).along:
        return set(np.atleast_1d(options[along]).tolist())
    if name == "dot_general":
        return set(numbers[0][i])
    if name == "conv_general_dilated":  # no kernel is made of examples
        apart = i == 0 and options["batch_group_count"] == 1
        return every_axis - ({numbers.lhs_spec[0]} if apart else set())
    if name.startswith("reduce_window"):
        return {axis for axis in every_axis if options["window_dimensions"][axis] != 1}
    if name == "pad" and i == 0:
        config = options["padding_config"]
        return {axis for axis in every_axis if tuple(config[axis]) != (0, 0, 0)}
    if name in ("slice", "dynamic_slice", "gather") and i == 0:
        sizes: Any = options.get("slice_sizes")
        if name == "slice":
            sizes = np.subtract(options["limit_indices"], options["start_indices"])
        parts = {axis for axis in every_axis if sizes[axis] != shape[axis]}
        if name != "gather":
            return parts
        # Each example by indices of its own is no mixing.
        parts |= set(numbers.collapsed_slice_dims)
        return parts - set(numbers.operand_batching_dims)
    if name == "gather":  # the parts of an index
        return {len(shape) - 1}
    if name == "dynamic_update_slice" and i == 0:
        return {axis for axis in every_axis if shapes[1][axis] != shape[axis]}
    if name.startswith("scatter") and i == 0:
        return set(numbers.scatter_dims_to_operand_dims)
    return set()
