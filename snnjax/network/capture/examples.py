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
    avals = program.avals
    equations = []
    x = []
    for v in program.x:
        example = _with_shape(v, avals[v].shape[1:], avals)
        x.append(example)
        equations.append(_reshape(example, v, avals))
    for eq in program.equations:
        if eq.fires:
            equations += _site_of_one(eq, avals)
        elif eq.site is not None:  # an operator, which computes on any shape
            shape = _shape_of_one(avals[eq.outputs[0]].shape)
            equations.append(eq._replace(site=eq.site._replace(shape=shape)))
        else:
            equations.append(eq)
    outputs = []
    for v, output_of_several in zip(program.outputs, several.outputs, strict=False):
        shape = shape_of(several.avals, output_of_several)[1:]
        # Other outputs are refused later, together with all that is wrong besides.
        fits = math.prod(shape_of(avals, v)) == math.prod(shape)
        if isinstance(v, int) and fits and avals[v].shape != shape:
            output = _with_shape(v, shape, avals)
            equations.append(_reshape(v, output, avals))
            outputs.append(output)
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
    current = _with_shape(v, shape, avals)
    spikes = _with_shape(v, shape, avals)
    firing = eq._replace(inputs=(current, *operands), outputs=(spikes,), site=site)
    return [_reshape(v, current, avals), firing, _reshape(spikes, output, avals)]


def _shape_of_one(shape: Shape) -> Shape:
    """A shape without the axis of its one example.

    It is the first axis as a rule, and the last one where vmap meets W @ x. It may
    have been merged with another one, as windows or tokens with a batch: then nothing
    is left of it.
    """
    last_axis = len(shape) - 1
    for axis in (0, last_axis, *range(len(shape))):
        if shape and shape[axis] == 1:
            return shape[:axis] + shape[axis + 1 :]
    return shape


def _with_shape(v: int, shape: Shape, avals: Avals) -> int:
    """A new variable, with the numbers of another one in another shape."""
    new_variable = len(avals)
    avals[new_variable] = avals[v].update(shape=shape)
    return new_variable


def _reshape(v: int, result: int, avals: Avals) -> Equation:
    """The equation result = reshape(v)."""
    return Equation(
        primitive=lax.reshape_p,
        params=(
            ("dimensions", Static(None)),
            ("new_sizes", Static(avals[result].shape)),
            ("sharding", Static(None)),
        ),
        inputs=(v,),
        outputs=(result,),
    )


# ------------------------------------------------------------- where examples meet

_SHAPING = {"reshape", "squeeze", "broadcast_in_dim", "transpose"}


class Growth:
    """How a program's arrays grow with the number of examples.

    Attributes:
        several: fn, traced with several examples, two or more. The equations that are
            judged are these.
        second: fn, traced with another number of examples.
        sizes: numbers of examples in `several` and `second`.
        one: fn, traced with one example, if neither of them is; otherwise None.
    """

    def __init__(self, several: Program, second: Program, one: Program | None = None):
        self.several = several
        self.second = second
        self.one = one
        self.sizes = (_example_count(several), _example_count(second))

    def statistics(self) -> frozenset[int]:
        """Variables that do not grow, as the mean of a batch."""
        avals, second_avals = self.several.avals, self.second.avals
        if len(avals) != len(second_avals):
            return frozenset()
        return frozenset(v for v in avals if avals[v].shape == second_avals[v].shape)

    def problems(self) -> Iterator[tuple[Equation | None, str]]:
        """Equations by which fn would mean something else for one example, and why.

        None in the place of an equation stands for the function as a whole. `check`
        explains the kinds.
        """
        if _form(self.several) != _form(self.second):  # as by a loop over the examples
            yield None, "size"
            return
        dependent = Facts(self.several).dependent
        # Variable -> s: example b has the indices i along its axis with i // s mod B =
        # b. s is 1 unless a reshape has merged the axis with others behind it.
        strides = dict.fromkeys(self.several.x, 1)
        mixed: set[int] = set()
        # What depends on how many examples there are, or on the place of one.
        sized = {v for v in self.several.constants if self._is_sized_constant(v)}
        for eq, second_eq in zip(
            self.several.equations, self.second.equations, strict=True
        ):
            is_sized = not sized.isdisjoint(eq.variables)
            for v, second_v in zip(eq.inputs, second_eq.inputs, strict=True):
                is_sized = is_sized or self._are_sized(v, second_v)
            if dependent.isdisjoint(eq.outputs):
                if is_sized or self._numbers_examples(eq):
                    sized.update(eq.outputs)
                continue
            if mixed.intersection(eq.variables):
                mixed.update(eq.outputs)  # only the first of them is told
                continue
            stride = self._stride(eq, strides)
            if stride is None:
                mixed.update(eq.outputs)
                yield eq, "batch"
            elif is_sized:
                mixed.update(eq.outputs)
                yield eq, "size"
            else:
                strides.update(dict.fromkeys(eq.outputs, stride))
        if sized.intersection(self.several.outputs):
            yield None, "size"
        elif self.one is not None and not mixed:
            if _work(self.one) != _work(self.several):
                yield None, "size"

    def is_clean(self) -> bool:
        """Whether examples stay apart, in the equations and in every output."""
        obstacles = itertools.chain(self.problems(), self.wrong_outputs())
        return next(obstacles, None) is None

    def wrong_outputs(self, count: int | None = None) -> Iterator[str]:
        """Shapes of outputs whose first axis is not that of the examples.

        An axis that grows with the number B of examples is written as B or as a
        multiple of it, as in (3, 2B).

        Args:
            count: of all outputs, only so many are looked at; None: all of them.
        """
        outputs = self.several.outputs[:count]
        for v, second_v in zip(outputs, self.second.outputs, strict=False):
            shape = shape_of(self.several.avals, v)
            axes = self._axes(v, second_v)
            if axes == [0] and shape[0] == self.sizes[0]:
                continue
            words = list(map(str, shape))
            for axis in axes:
                size_per_example = shape[axis] // self.sizes[0]
                words[axis] = "B" if size_per_example == 1 else f"{size_per_example}B"
            trailing_comma = "," if len(words) == 1 else ""
            yield f"({', '.join(words)}{trailing_comma})"

    def _axes(self, v: int | Static, second_v: int | Static) -> list[int]:
        """The axes of a variable that grow as the number of examples does."""
        shape = shape_of(self.several.avals, v)
        second_shape = shape_of(self.second.avals, second_v)
        if len(shape) != len(second_shape):
            return []
        axes = []
        for axis, (length, second_length) in enumerate(
            zip(shape, second_shape, strict=True)
        ):
            if length == second_length:
                continue
            if self.sizes[1] * length != self.sizes[0] * second_length:
                return []
            axes.append(axis)
        return axes

    def _stride(self, eq: Equation, strides: Mapping[int, int]) -> int | None:
        """The stride of an equation's outputs; None if examples meet."""
        shapes = [shape_of(self.several.avals, v) for v in eq.inputs]
        for i, v in enumerate(eq.inputs):
            axes = self._axes(v, v)  # none for a constant
            if not _combined(eq, i, shapes).isdisjoint(axes):
                return None
        input_strides = {strides[v] for v in eq.variables if v in strides}
        for v in eq.outputs:
            if len(self._axes(v, v)) != 1:
                return None
        if len(input_strides) != 1:
            return None
        (stride,) = input_strides
        if eq.name != "reshape":
            return stride
        # In row-major order a reshape leaves two examples as far apart as they were.
        (axis,) = self._axes(eq.inputs[0], eq.inputs[0])
        (new_axis,) = self._axes(eq.outputs[0], eq.outputs[0])
        shape = shapes[0]
        new_shape = shape_of(self.several.avals, eq.outputs[0])
        distance = stride * math.prod(shape[axis + 1 :])
        new_stride, remainder = divmod(distance, math.prod(new_shape[new_axis + 1 :]))
        if remainder or new_stride == 0:
            return None
        if new_shape[new_axis] % (new_stride * self.sizes[0]) != 0:
            return None
        return new_stride

    def _is_sized_constant(self, v: int) -> bool:
        """Whether a constant depends on how many examples there are, or on places."""
        value = self.several.constants[v]
        second_value = self.second.constants[v]
        if value is second_value:
            return False
        return self._are_sized(Static(value), Static(second_value))

    def _are_sized(self, v: int | Static, second_v: int | Static) -> bool:
        """Whether a constant has other numbers for more examples, or by their place."""
        if not isinstance(v, Static) or not isinstance(second_v, Static):
            return False
        axes = self._axes(v, second_v)
        if not axes:
            return v != second_v
        array = np.asarray(v.value)
        for axis in axes:
            first_example = array.take([0], axis)
            if (array != first_example).any():
                return True
        return False

    def _numbers_examples(self, eq: Equation) -> bool:
        """Whether an equation counts the examples, as ``arange(len(x))`` does."""
        axes = self._axes(eq.outputs[0], eq.outputs[0])
        return eq.name == "iota" and eq.options["dimension"] in axes


def _example_count(program: Program) -> int:
    return program.avals[program.x[0]].shape[0]


def _form(program: Program) -> list[Any]:
    """What a program computes of what, whatever the shapes are."""
    forms: list[Any] = list(program.constants)
    for eq in program.equations:
        inputs = [v if isinstance(v, int) else None for v in eq.inputs]
        forms.append((eq.name, eq.outputs, inputs))
    return forms


def _work(program: Program) -> list[str]:
    """The operations of a program, without those that only give arrays a shape."""
    return [eq.name for eq in program.equations if eq.name not in _SHAPING]


def _combined(eq: Equation, i: int, shapes: Sequence[Shape]) -> set[int]:
    """Axes of operand i along which an equation combines, chooses or reorders.

    Args:
        shapes: of all operands.
    """
    name, options, shape = eq.name, eq.options, shapes[i]
    all_axes = set(range(len(shape)))
    numbers: Any = options.get("dimension_numbers")
    parameter = primitive(name).along
    if parameter:
        return set(np.atleast_1d(options[parameter]).tolist())
    if name == "dot_general":
        contracted_axes, _ = numbers
        return set(contracted_axes[i])
    if name == "conv_general_dilated":
        if i == 0 and options["batch_group_count"] == 1:
            return all_axes - {numbers.lhs_spec[0]}
        return all_axes  # no kernel is made of examples
    if name.startswith("reduce_window"):
        window = options["window_dimensions"]
        return {axis for axis in all_axes if window[axis] != 1}
    if name == "gather" and i == 1:  # the parts of an index
        return {len(shape) - 1}
    if i > 0:
        return set()
    if name == "pad":
        config = options["padding_config"]
        return {axis for axis in all_axes if tuple(config[axis]) != (0, 0, 0)}
    if name == "slice":
        sizes = np.subtract(options["limit_indices"], options["start_indices"])
        return _differing_axes(sizes, shape)
    if name == "dynamic_slice":
        return _differing_axes(options["slice_sizes"], shape)
    if name == "gather":
        # An axis along which each example has an index of its own mixes none.
        axes = _differing_axes(options["slice_sizes"], shape)
        axes |= set(numbers.collapsed_slice_dims)
        return axes - set(numbers.operand_batching_dims)
    if name == "dynamic_update_slice":
        return _differing_axes(shapes[1], shape)
    if name.startswith("scatter"):
        return set(numbers.scatter_dims_to_operand_dims)
    return set()


def _differing_axes(sizes: Sequence[int], shape: Shape) -> set[int]:
    """Axes of an array of which a part has another size."""
    return {axis for axis, length in enumerate(shape) if sizes[axis] != length}
