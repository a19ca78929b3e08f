"""A captured network as data: equations over numbered variables.

    outputs = primitive(inputs)    or, at a site,    outputs = rule(site, inputs)

A variable is a whole number, 0, 1, 2, ..; those of parameters come first.
``capture/capture.py`` makes a network of a function, and ``evaluate.py`` runs the
equations.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._trees import name_of
from snnjax.network.sites import Site, Sites

Values = dict[int, Any]  # variable -> array
Avals = dict[int, Any]  # variable -> shape and dtype
Shape = tuple[int, ...]

# Affine in each of two operands; one of them may be weights.
PRODUCTS = ("dot_general", "conv_general_dilated")


class Static:
    """A constant of a network: hashable, and compared by content where possible.

    ``jit`` takes equations as static arguments. Two layers that close over equal
    constants then have equal equations, and are compiled once.

    Attributes:
        value: an array, a number, or a parameter of a primitive.
        key: what stands for the value in comparisons.
    """

    def __init__(self, value: Any):
        self.value = value
        dtype = getattr(value, "dtype", None)
        # A value that fn closes over inside of jit is traced. It has no content yet,
        # and is equal to itself only.
        if dtype is not None and not isinstance(value, Tracer):
            array = np.asarray(value)
            self.key = (str(dtype), array.shape, array.tobytes())
            return
        try:
            hash(value)
            self.key = value
        except TypeError:
            self.key = id(value)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static) or type(self.value) is not type(other.value):
            return False
        return bool(self.key == other.key)


class Body(NamedTuple):
    """The equations that an operator computes.

    Attributes:
        equations: in order of execution, over variables of the network.
        inputs: variables that these equations read and do not compute, in the order
            of the operator's own inputs, whose values they take.
    """

    equations: tuple["Equation", ...]
    inputs: tuple[int, ...]


class Equation(NamedTuple):
    """One step of a network: outputs = primitive(inputs), or rule(site, inputs).

    Attributes:
        primitive: a JAX primitive; None at a site.
        params: its parameters, as pairs of name and value.
        inputs: variables (int) or constants (`Static`).
        outputs: variables.
        site: the site that stands in the place of a primitive; None: there is none.
        path: of the module that the equation was called in, for names and messages.
        calls: the calls of functions that it was called in, the outermost first.
        body: what an operator computes; None: this is no operator.
        mapped: for each input, whether it differs from example to example. `evaluate`
            maps the equation over these. A network in training mode is that of a whole
            batch, and has no entries here.
    """

    primitive: Any
    params: tuple[tuple[str, Static], ...]
    inputs: tuple[int | Static, ...]
    outputs: tuple[int, ...]
    site: Site | None = None
    path: str = ""
    calls: tuple[Any, ...] = ()
    body: Body | None = None
    mapped: tuple[bool, ...] = ()

    @property
    def name(self) -> str:
        """Name of the primitive; "" where there is none."""
        return getattr(self.primitive, "name", "")

    @property
    def options(self) -> dict[str, Any]:
        """Parameters of the primitive by name."""
        return {name: static.value for name, static in self.params}

    @property
    def variables(self) -> list[int]:
        """The inputs that are no constants."""
        return variables_in(self.inputs)

    @property
    def place(self) -> Site:
        """The site of an equation that has one."""
        assert self.site is not None
        return self.site

    @property
    def fires(self) -> bool:
        """Whether neurons stand at its site."""
        return self.site is not None and self.site.fires


def variables_in(values: Iterable[int | Static]) -> list[int]:
    """Those of the values that are variables and no constants."""
    return [v for v in values if isinstance(v, int)]


def computed_by(equations: Iterable[Equation]) -> set[int]:
    """The variables that these equations compute."""
    return {v for equation in equations for v in equation.outputs}


def spread_out(equations: Iterable[Equation]) -> Iterator[Equation]:
    """The equations, with the bodies of operators in their place."""
    for equation in equations:
        yield from equation.body.equations if equation.body else (equation,)


class Network(NamedTuple):
    """A captured function: equations over numbered variables.

    Attributes:
        equations: in order of execution, only those that the outputs need.
        avals: variable -> shape and dtype, of one example, or in training mode of the
            whole batch. x, sites and outputs of one example have no batch axis; between
            them a value may keep an axis of size 1 that fn gave it.
        parameters: variable -> path of the parameter leaf.
        x: variables of the input, one for each of its arrays.
        constants: variable -> array that the function closed over.
        outputs: variables or constants, in the order of ``tree``.
        tree: structure of the function's result.
        sites: all places of neurons or operators, in order of execution.
        dependent: variables that depend on x.
        feeds: name of each firing site -> parameters (variables) that reach it without
            passing another firing site or an operator.
        readout: parameters that reach an output so.
        operands: parameters that reach an operator so.
    """

    equations: tuple[Equation, ...]
    avals: Avals
    parameters: dict[int, str]
    x: tuple[int, ...]
    constants: Values
    outputs: tuple[int | Static, ...]
    tree: Any
    sites: Sites
    dependent: frozenset[int]
    feeds: dict[str, tuple[int, ...]]
    readout: frozenset[int]
    operands: frozenset[int]

    def inputs(self, x: chex.ArrayTree) -> Values:
        """Variable -> array, for each array of an ``x`` of the captured structure."""
        return dict(zip(self.x, jax.tree_util.tree_leaves(x), strict=True))

    def arguments(self, params: chex.ArrayTree, x: Any = None) -> Values:
        """Variable -> array, for constants, ``params`` and, if it is given, ``x``."""
        leaves = jax.tree_util.tree_leaves(params)
        values = dict(self.constants)
        values.update(zip(self.parameters, leaves, strict=True))
        if x is not None:
            values.update(self.inputs(x))
        return values

    def output_names(self) -> list[str]:
        """The path of each output in the function's result, "" if it is all of it."""
        # A tree needs leaves before its paths can be listed. A class of the user's may
        # ask them whether they are arrays.
        leaves = [np.zeros(shape_of(self.avals, output)) for output in self.outputs]
        tree = jax.tree_util.tree_unflatten(self.tree, leaves)
        return [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]

    def results(self, values: Values) -> Any:
        """The function's result, from the values of its output variables."""
        leading_shape = self._leading_shape(values)
        outputs = []
        for variable in self.outputs:
            output = read(values, variable)
            # What does not depend on x was computed once, for all steps and examples.
            if leading_shape and variable not in self.dependent:
                output = jnp.broadcast_to(output, leading_shape + jnp.shape(output))
            outputs.append(output)
        return jax.tree_util.tree_unflatten(self.tree, outputs)

    def _leading_shape(self, values: Values) -> Shape:
        """Sizes of the axes before those of one example, in outputs that depend on x.

        (T, B), (B,), or () in training mode, where the network is that of a batch.
        """
        variable = next(v for v in self.outputs if v in self.dependent)
        output = read(values, variable)
        axis_count = jnp.ndim(output) - len(shape_of(self.avals, variable))
        return jnp.shape(output)[:axis_count]


def read(values: Values, variable: int | Static) -> Any:
    """The value of a variable, or the constant itself."""
    return variable.value if isinstance(variable, Static) else values[variable]


def shape_of(avals: Avals, variable: int | Static) -> Shape:
    """The shape of a variable or constant."""
    if isinstance(variable, Static):
        return np.shape(variable.value)
    return tuple(avals[variable].shape)
