"""Examples: a network is that of one example, and is mapped over all of them.

    fn(params, x)[b] = network(params, x[b])    for every example b

fn is traced with one example. Here x, sites and outputs lose their axis of size 1. A
network that is mapped over the examples cannot let one example reach another.

So fn must do with many examples what it does with one. Two traces of fn, with different
numbers of examples, show whether it does. The axis whose length grows with the number
is that of the examples, alone or merged with another axis. An equation mixes examples
if it combines or reorders what lies along this axis. A value is sized if its numbers
depend on how many examples there are, or on the place of an example among them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax import lax

from snnjax.network.capture.facts import Facts
from snnjax.network.capture.jaxprs import Program
from snnjax.network.capture.primitives import primitive
from snnjax.network.equations import Avals, Equation, Shape, Static, shape_of


def without_example_axis(program: Program, several: Program) -> Program:
    """A program of one example, whose x, sites and outputs have no axis for it.

    All values between them keep their shapes, wherever the axis lies there, so that fn
    keeps its meaning: reshapes remove the axis before a site and restore it after.

    Args:
        program: fn, traced with one example; x is [1, ...].
        several: fn, traced with several examples. Its outputs show the shape of an
            output of one example, even if fn squeezes axes of size 1.
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
            equations += _reshaped_site(eq, avals)
        elif eq.site is not None:  # an operator, which computes on any shape
            shape = _example_shape(avals[eq.outputs[0]].shape)
            equations.append(eq._replace(site=eq.site._replace(shape=shape)))
        else:
            equations.append(eq)
    # Constants, which are no variables (int), and outputs whose number or size does not
    # fit stay as they are. They are refused later, with all that is wrong besides.
    outputs = []
    for v, batch_output in zip(program.outputs, several.outputs, strict=False):
        shape = shape_of(several.avals, batch_output)[1:]
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


def _reshaped_site(eq: Equation, avals: Avals) -> list[Equation]:
    """A firing site whose neurons are those of one example, between two reshapes.

    The first reshape removes the axis of the example from the current, the second one
    restores it in the spikes. Without such an axis there is no reshape.
    """
    v, *operands = eq.inputs  # the current; further ones as a clipped ReLU's maximum
    (output,) = eq.outputs
    assert isinstance(v, int)
    shape = _example_shape(avals[v].shape)
    site = eq.place._replace(shape=shape)
    if shape == avals[v].shape:
        return [eq._replace(site=site)]
    current = _with_shape(v, shape, avals)
    spikes = _with_shape(v, shape, avals)
    firing = eq._replace(inputs=(current, *operands), outputs=(spikes,), site=site)
    return [_reshape(v, current, avals), firing, _reshape(spikes, output, avals)]


def _example_shape(shape: Shape) -> Shape:
    """A shape without the axis of its one example, an axis of size 1.

    It is the first axis as a rule, and the last one where vmap meets W @ x. There is
    none if it was merged with another axis, as windows or tokens with a batch.
    """
    if 1 not in shape:
        return shape
    axis = shape.index(1)
    if axis > 0 and shape[-1] == 1:
        axis = len(shape) - 1
    return shape[:axis] + shape[axis + 1 :]


def _with_shape(v: int, shape: Shape, avals: Avals) -> int:
    """A new variable of the type of v, in another shape; ``avals`` is extended."""
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

# Primitives that only give arrays another shape.
_SHAPING = {"reshape", "squeeze", "broadcast_in_dim", "transpose"}


class Growth:
    """How a program's arrays grow with the number of examples.

    Attributes:
        several: fn, traced with several examples, two or more. Its equations are
            judged.
        second: fn, traced with another number of examples, for comparison.
        sizes: numbers of examples in `several` and `second`.
        one: fn, traced with one example, if `second` is not; otherwise None.
    """

    def __init__(self, several: Program, second: Program, one: Program | None = None):
        self.several = several
        self.second = second
        self.one = one
        self.sizes = (_example_count(several), _example_count(second))

    def statistics(self) -> frozenset[int]:
        """Variables that do not grow with the examples, as the mean of a batch."""
        avals = self.several.avals
        second_avals = self.second.avals
        # Without equal variables, as of a loop over the examples, none is comparable.
        if len(avals) != len(second_avals):
            return frozenset()
        return frozenset(v for v in avals if avals[v].shape == second_avals[v].shape)

    def is_comparable(self) -> bool:
        """Whether both traces have the same equations, but for shapes and numbers."""
        return _structure(self.several) == _structure(self.second)

    def problems(self) -> Iterator[tuple[Equation | None, str]]:
        """Equations by which fn would mean something else for one example, and why.

        Yields:
            An equation, or None for the function as a whole, and the kind of the
            obstacle: "batch" where examples mix, "statistics" where they are summed,
            "size" where their number counts.
        """
        # A loop over the examples gives more equations for more of them.
        if not self.is_comparable():
            yield None, "size"
            return
        dependent = Facts(self.several).dependent
        # Variable -> s, the stride of its examples: index i along their axis belongs
        # to example (i // s) mod B. s is 1 unless a reshape has merged the axis with
        # others behind it.
        strides = dict.fromkeys(self.several.x, 1)
        # Variables behind an obstacle. Further obstacles there are not reported.
        refused: set[int] = set()
        sized = {v for v in self.several.constants if self._is_sized_constant(v)}
        for eq, second_eq in zip(
            self.several.equations, self.second.equations, strict=True
        ):
            is_sized = not sized.isdisjoint(eq.variables)
            for v, second_v in zip(eq.inputs, second_eq.inputs, strict=True):
                if self._is_sized_literal(v, second_v):
                    is_sized = True
            # What does not depend on x has no axis of examples, but may be sized.
            if dependent.isdisjoint(eq.outputs):
                # Without x no examples mix, but their number may show in the result.
                if is_sized or self._counts_examples(eq):
                    sized.update(eq.outputs)
                continue
            if refused.intersection(eq.variables):
                refused.update(eq.outputs)
                continue
            stride = self._stride(eq, strides)
            if stride is None:
                refused.update(eq.outputs)
                yield eq, "statistics" if eq.name == "reduce_sum" else "batch"
            elif is_sized:
                refused.update(eq.outputs)
                yield eq, "size"
            else:
                strides.update(dict.fromkeys(eq.outputs, stride))
        if sized.intersection(self.several.outputs):
            yield None, "size"
        elif self.one is not None and not refused:
            # The two traces agree, and no obstacle is known. But one example may be
            # treated in another way.
            if _work(self.one) != _work(self.several):
                yield None, "size"

    def is_clean(self) -> bool:
        """Whether no equation mixes examples and all outputs have them first."""
        return not any(self.problems()) and not any(self.wrong_outputs())

    def wrong_outputs(self, count: int | None = None) -> Iterator[str]:
        """Shapes of outputs whose first axis is not that of the examples.

        An axis that grows with the number B of examples is written as B or as a
        multiple of it, as in "(3, 2B)".

        Args:
            count: how many of the first outputs are looked at; None: all of them.
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
        """The axes of a variable that are proportional to the number of examples.

        If an axis grows in another way, as one of length B + 1 does, there are none.

        Args:
            v: variable or constant of `several`.
            second_v: the same one of `second`.
        """
        shape = shape_of(self.several.avals, v)
        second_shape = shape_of(self.second.avals, second_v)
        if len(shape) != len(second_shape):
            return []
        axes = []
        size, second_size = self.sizes
        for axis, length in enumerate(shape):
            if length == second_shape[axis]:
                continue
            if length * second_size != second_shape[axis] * size:
                return []
            axes.append(axis)
        return axes

    def _stride(self, eq: Equation, strides: Mapping[int, int]) -> int | None:
        """The stride of the examples in an equation's outputs; None if it mixes them.

        Both programs have the same variables here, so ``self._axes(v, v)`` are the axes
        of v that grow with the number of examples.

        Args:
            eq: an equation of `several`.
            strides: of the examples in earlier variables, see `problems`.
        """
        shapes = [shape_of(self.several.avals, v) for v in eq.inputs]
        for i, v in enumerate(eq.inputs):
            axes = self._axes(v, v)  # none for a constant
            if not _combined(eq, i, shapes).isdisjoint(axes):
                return None
        # Each output must have the examples along one axis, and all inputs one stride.
        for v in eq.outputs:
            if len(self._axes(v, v)) != 1:
                return None
        input_strides = {strides[v] for v in eq.variables if v in strides}
        if len(input_strides) != 1:
            return None
        (stride,) = input_strides
        if eq.name != "reshape":
            return stride
        (axis,) = self._axes(eq.inputs[0], eq.inputs[0])
        (new_axis,) = self._axes(eq.outputs[0], eq.outputs[0])
        shape = shapes[0]
        new_shape = shape_of(self.several.avals, eq.outputs[0])
        # A reshape keeps the row-major order, so two examples are as many numbers apart
        # after it as before it. That must be whole indices of the new axis.
        distance = stride * math.prod(shape[axis + 1 :])
        new_stride, remainder = divmod(distance, math.prod(new_shape[new_axis + 1 :]))
        if remainder or new_stride == 0:
            return None
        # The new axis must hold all B examples, once or several times.
        if new_shape[new_axis] % (new_stride * self.sizes[0]) != 0:
            return None
        return new_stride

    def _is_sized_constant(self, v: int) -> bool:
        """Whether an array that fn closed over, or made of shapes, is sized."""
        value = self.several.constants[v]
        second_value = self.second.constants[v]
        if value is second_value:  # spares the comparison of all numbers
            return False
        return self._is_sized_literal(Static(value), Static(second_value))

    def _is_sized_literal(self, v: int | Static, second_v: int | Static) -> bool:
        """Whether an input of an equation is a constant, and sized.

        Args:
            v: input of an equation of `several`.
            second_v: the same one of `second`.
        """
        if not isinstance(v, Static) or not isinstance(second_v, Static):
            return False
        axes = self._axes(v, second_v)
        # Without an entry for each example, a constant must not depend on their number.
        if not axes:
            return v != second_v
        # The entries of all examples must be equal, whatever place an example has.
        array = np.asarray(v.value)
        for axis in axes:
            first_example = array.take([0], axis)
            if (array != first_example).any():
                return True
        return False

    def _counts_examples(self, eq: Equation) -> bool:
        """Whether an equation gives the examples numbers, as ``arange(len(x))``."""
        axes = self._axes(eq.outputs[0], eq.outputs[0])
        return eq.name == "iota" and eq.options["dimension"] in axes


def _example_count(program: Program) -> int:
    """The number of examples that a program was traced with."""
    return program.avals[program.x[0]].shape[0]


def _structure(program: Program) -> list[Any]:
    """What must be equal in two programs that differ by the number of examples only.

    These are the variables of constants, and for each equation its primitive and the
    variables that it reads and computes. Shapes and numbers may differ.
    """
    structure: list[Any] = list(program.constants)  # the variables alone
    for eq in program.equations:
        # A constant among the inputs is a number: None stands in its place.
        inputs = [v if isinstance(v, int) else None for v in eq.inputs]
        structure.append((eq.name, eq.outputs, inputs))
    return structure


def _work(program: Program) -> list[str]:
    """Names of a program's primitives, without those that only give arrays a shape."""
    return [eq.name for eq in program.equations if eq.name not in _SHAPING]


def _combined(eq: Equation, i: int, shapes: Sequence[Shape]) -> set[int]:
    """Axes of operand i along which an equation combines, chooses or reorders numbers.

    Args:
        eq: the equation.
        i: number of the operand.
        shapes: of all operands.
    """
    name = eq.name
    options = eq.options
    shape = shapes[i]
    all_axes = set(range(len(shape)))
    numbers: Any = options.get("dimension_numbers")
    parameter = primitive(name).along  # its name, where a parameter says the axes
    if parameter:
        return set(np.atleast_1d(options[parameter]).tolist())
    if name == "dot_general":
        contracted_axes, _ = numbers
        return set(contracted_axes[i])
    if name == "fft":
        return set(range(len(shape) - len(options["fft_lengths"]), len(shape)))
    if name == "conv_general_dilated":
        if i == 0 and options["batch_group_count"] == 1:
            return all_axes - {numbers.lhs_spec[0]}
        # Examples may lie along the batch axis of the image, and along no other axis.
        return all_axes
    if name.startswith("reduce_window"):
        window = options["window_dimensions"]
        return {axis for axis in all_axes if window[axis] != 1}
    if name == "gather" and i == 1:
        # The indices: along their last axis lie the numbers of one index.
        return {len(shape) - 1}
    # What follows combines the entries of operand 0 only.
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
    """Axes along which the sizes of a part differ from the shape of its array."""
    return {axis for axis, length in enumerate(shape) if sizes[axis] != length}
