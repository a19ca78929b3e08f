"""From a jaxpr to numbered equations, with calls inlined.

This is the only file that reads jaxprs; the rest of the library uses `Equation`.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from snnjax.network.capture.primitives import moved
from snnjax.network.equations import (
    Avals,
    Equation,
    Static,
    computed_by,
    variables_in,
)
from snnjax.network.sites import new_site
from snnjax.network.stages import needed

# From JAX 0.12 on one class with Jaxpr, under a name that type checkers do not see.
_ClosedJaxpr: Any = jex.ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]

_CALLS = ("jit", "closed_call")
REMAT = ("remat2",)
CUSTOM = ("custom_jvp_call", "custom_vjp_call")
# Functions of `snnjax.activations`, by names that nobody else uses -> kind.
_ACTIVATIONS = {
    "snnjax_clipped_relu": "clipped relu",
    "snnjax_quantized_relu": "quantized relu",
    "snnjax_encode": "encoder",
}
# The scope of a PyTorch module is this and its whole name, "layer1.0.relu".
TORCH_SCOPE = "torch:"


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a function that was inlined; compared by identity.

    Attributes:
        name: of the function, for people.
    """

    name: str


Calls = tuple[Call, ...]  # that an equation stands in, the outermost first


class Program(NamedTuple):
    """A jaxpr as equations over numbered variables, parameters first, then x.

    Attributes:
        equations: in order of execution, only those that the outputs need.
        avals: variable -> shape and dtype.
        parameters: variables of the parameter leaves.
        x: variables of the input, one for each of its arrays.
        constants: variable -> array that the function closed over.
        outputs: variables or constants.
        calls: calls with a derivative of their own, or of a remat, as equations.
    """

    equations: tuple[Equation, ...]
    avals: Avals
    parameters: list[int]
    x: tuple[int, ...]
    constants: dict[int, Any]
    outputs: tuple[int | Static, ...]
    calls: Mapping[Call, Equation]


def flatten(closed: Any, parameter_count: int) -> Program:
    """Inline all calls of a closed jaxpr but those of `snnjax.activations`.

    The first arguments are the parameters, the others the arrays of x.
    """
    flattener = _Flattener()
    jaxpr = closed.jaxpr
    arguments = [flattener.variable(v) for v in jaxpr.invars]
    x = tuple(arguments[parameter_count:])
    flattener.dependent.update(x)
    constants = {}
    for v, constant in zip(jaxpr.constvars, closed.consts, strict=True):
        constants[flattener.variable(v)] = constant
    equations = flattener.run(jaxpr, path="", calls=())
    outputs = tuple(flattener.read(v) for v in jaxpr.outvars)
    return Program(
        equations=needed(equations, variables_in(outputs)),
        avals=flattener.avals,
        parameters=arguments[:parameter_count],
        x=x,
        constants=constants,
        outputs=outputs,
        calls=flattener.calls,
    )


def folded(
    equations: Sequence[Equation], calls: Mapping[Call, Equation], names: Sequence[str]
) -> tuple[Equation, ...]:
    """The equations, with calls of these primitives restored if they contain no site.

    A call with a derivative of its own must stay a call to keep the derivative. A remat
    stays to save memory.

    Args:
        calls: every call that may be restored, as one equation.
        names: of the primitives whose calls are.
    """
    calls_with_sites = set()
    for eq in equations:
        if eq.site is not None:
            calls_with_sites.update(eq.calls)

    def is_restored(call: Call) -> bool:
        is_named = call in calls and calls[call].name in names
        return is_named and call not in calls_with_sites

    result: dict[Call | int, Equation] = {}  # each by its call or its first output
    for eq in equations:
        outermost = next(filter(is_restored, eq.calls), None)
        if outermost is None:
            result[eq.outputs[0]] = eq
        else:
            result[outermost] = calls[outermost]
    return tuple(result.values())


def inner_programs(equation: Equation) -> Iterator[Program]:
    """The bodies of a loop, the branches of a cond."""
    for _, parameter in equation.params:
        value = parameter.value
        for jaxpr in value if type(value) is tuple else [value]:
            if isinstance(jaxpr, _ClosedJaxpr | jex.Jaxpr):
                closed = _closed(jaxpr)
                if closed.jaxpr.invars:
                    yield flatten(closed, parameter_count=0)


class _Flattener:
    """Numbers a jaxpr's variables and inlines its calls.

    Attributes:
        calls: calls that `folded` may restore -> each as one equation.
        numbers: variable of the jaxpr -> our number of it.
        avals: number -> shape and dtype.
        dependent: numbers of the variables that depend on x.
        forwarded: variable of the jaxpr -> number or constant that it is the same as,
            such as an argument of an inlined call.
    """

    def __init__(self):
        self.calls: dict[Call, Equation] = {}
        self.numbers: dict[Any, int] = {}
        self.avals: Avals = {}
        self.dependent: set[int] = set()
        self.forwarded: dict[Any, int | Static] = {}

    def variable(self, v: Any) -> int:
        """The number of a variable, a new one if it has none yet."""
        if v not in self.numbers:
            number = len(self.avals)
            self.numbers[v] = number
            self.avals[number] = v.aval
        return self.numbers[v]

    def read(self, v: Any) -> int | Static:
        """The number or constant that an input of a jaxpr's equation stands for."""
        if _is_literal(v):
            return Static(v.val)
        if v in self.forwarded:
            return self.forwarded[v]
        return self.variable(v)

    def run(self, jaxpr: Any, path: str, calls: Calls) -> list[Equation]:
        """The equations of a jaxpr that stands at ``path``, in these calls."""
        equations = []
        for eqn in jaxpr.eqns:
            eqn_path = _join(path, str(eqn.source_info.name_stack))
            body = _body(eqn)
            if eqn.outvars and all(map(_is_empty, eqn.outvars)):
                # jnp.pad makes empty parts along the batch: they hold no example.
                for v in eqn.outvars:
                    self.forwarded[v] = _zeros(v)
            elif eqn.primitive.name == "scan" and self.is_over_layers(eqn):
                equations += self.unroll(eqn, eqn_path, calls)
            elif body is None or body.jaxpr.debug_info.func_name in _ACTIVATIONS:
                equations += self.equations(eqn, eqn_path, calls)
            else:
                equations += self.inline(eqn, body, eqn_path, calls)
        return equations

    def equations(self, eqn: Any, path: str, calls: Calls) -> list[Equation]:
        """The equation as it is; a barrier of several arrays as one for each."""
        inputs = tuple(self.read(v) for v in eqn.invars)
        outputs = tuple(self.variable(v) for v in eqn.outvars)
        equation = self.equation(eqn, inputs, outputs, path, calls)
        if self.dependent.intersection(equation.variables):
            self.dependent.update(outputs)
        if eqn.primitive.name == "optimization_barrier":
            # Examples may lie along another axis of each array.
            equations = []
            for v, output in zip(inputs, outputs, strict=True):
                equations.append(equation._replace(inputs=(v,), outputs=(output,)))
            return equations
        body = _body(eqn)
        if body is None:
            return [equation]
        kind = _ACTIVATIONS[body.jaxpr.debug_info.func_name]
        is_encoder = kind == "encoder"
        if is_encoder or _is_broadcast(body.jaxpr):
            site = new_site(kind, self.avals[outputs[0]], is_encoder=is_encoder)
            equation = equation._replace(site=site)
        return [equation]

    def equation(self, eqn: Any, inputs, outputs, path: str, calls: Calls) -> Equation:
        """A jaxpr's equation of our variables."""
        names = sorted(eqn.params)
        return Equation(
            primitive=eqn.primitive,
            params=tuple((name, Static(eqn.params[name])) for name in names),
            inputs=inputs,
            outputs=outputs,
            path=path,
            calls=calls,
        )

    def inline(self, eqn: Any, body: Any, path: str, calls: Calls) -> list[Equation]:
        """The equations of a called function in the place of its call."""
        primitive_name = eqn.primitive.name
        inputs = tuple(map(self.read, eqn.invars))
        function_name = eqn.params.get("name") or body.jaxpr.debug_info.func_name
        call = Call(str(function_name))
        equations, results = self.call(body, inputs, path, (*calls, call))
        if primitive_name in CUSTOM:
            # An input that the function hands on as it is gets a derivative of the
            # function, too, so it becomes a variable of its own.
            copy = functools.partial(jnp.array, copy=True)
            computed = computed_by(equations)
            for i, v in enumerate(results):
                if v not in computed:
                    copies, copied = self.apply(copy, [v], path, (*calls, call))
                    equations += copies
                    results[i] = copied[0]
        if primitive_name in (*CUSTOM, *REMAT):
            outputs = self.outputs_of_call(eqn, equations, results)
            self.calls[call] = self.equation(eqn, inputs, outputs, path, (*calls, call))
        self.forwarded.update(zip(eqn.outvars, results, strict=True))
        return equations

    def outputs_of_call(
        self, eqn: Any, equations: Sequence[Equation], results: Sequence[int | Static]
    ) -> tuple[int, ...]:
        """Variables that the call itself would compute.

        They are those that its equations compute, so that others read the same
        variables whether the call is inlined or not. A result that is an input, a
        constant or an earlier result again, gets a variable that nobody reads.
        """
        computed = computed_by(equations)
        outputs: list[Any] = []
        for result, variable in zip(results, eqn.outvars, strict=True):
            if result in computed and result not in outputs:
                outputs.append(result)
            else:
                outputs.append(self.variable(variable))
        return tuple(outputs)

    def call(
        self, body: Any, inputs: Iterable[int | Static], path: str, calls: Calls
    ) -> tuple[list[Equation], list[int | Static]]:
        """Equations of a closed jaxpr for these inputs, and its results."""
        # A jaxpr that is called twice is inlined twice, with other numbers.
        inner = _Flattener()
        inner.avals = self.avals
        inner.calls = self.calls
        inner.dependent = self.dependent
        inner.forwarded = dict(zip(body.jaxpr.invars, inputs, strict=True))
        for v, constant in zip(body.jaxpr.constvars, body.consts, strict=True):
            inner.forwarded[v] = Static(constant)
        equations = inner.run(body.jaxpr, path, calls)
        return equations, [inner.read(v) for v in body.jaxpr.outvars]

    def is_over_layers(self, eqn: Any) -> bool:
        """Whether a scan computes on x, and no axis of x is what it goes along."""
        on_x = []
        for v in eqn.invars:
            value = self.read(v)
            on_x.append(isinstance(value, int) and value in self.dependent)
        _, stacked_start = _parts_of_scan(eqn)
        return any(on_x) and not any(on_x[stacked_start:])

    def unroll(self, eqn: Any, path: str, calls: Calls) -> list[Equation]:
        """Every turn of a scan in its place; its number, [3], is a part of the path."""
        body = _closed(eqn.params["jaxpr"])
        length = eqn.params["length"]
        inputs = [self.read(v) for v in eqn.invars]
        carry_start, stacked_start = _parts_of_scan(eqn)
        constants = inputs[:carry_start]
        carry = inputs[carry_start:stacked_start]
        stacked_inputs = inputs[stacked_start:]
        turns = list(range(length))
        if eqn.params["reverse"]:
            turns.reverse()
        equations: list[Equation] = []
        stacked_results: dict[int, list[int | Static]] = {}  # turn -> its results
        for turn in turns:
            take_layer = functools.partial(lax.index_in_dim, index=turn, keepdims=False)
            layer_inputs = []
            for array in stacked_inputs:
                slicing, slices = self.apply(take_layer, [array], path, calls)
                equations += slicing
                layer_inputs += slices
            layer_equations, layer_results = self.call(
                body,
                [*constants, *carry, *layer_inputs],
                _join(path, f"[{turn}]"),
                calls,
            )
            equations += layer_equations
            stacked_results[turn] = layer_results[len(carry) :]
            carry = layer_results[: len(carry)]
        results = list(carry)
        if length == 0:
            results += map(_zeros, eqn.outvars[len(carry) :])
        in_order = [stacked_results[turn] for turn in range(length)]
        for parts in zip(*in_order, strict=True):
            stacking, stacks = self.apply(_stack, parts, path, calls)
            equations += stacking
            results += stacks
        self.forwarded.update(zip(eqn.outvars, results, strict=True))
        return equations

    def apply(
        self, function: Any, inputs: Sequence[int | Static], path: str, calls: Calls
    ) -> tuple[list[Equation], list[int | Static]]:
        """Equations of a function of arrays, and its result."""
        shapes = []
        for v in inputs:
            if isinstance(v, Static):
                shape, dtype = np.shape(v.value), jnp.result_type(v.value)
            else:
                shape, dtype = self.avals[v].shape, self.avals[v].dtype
            shapes.append(jax.ShapeDtypeStruct(shape, dtype))
        return self.call(jax.make_jaxpr(function)(*shapes), inputs, path, calls)


def _parts_of_scan(eqn: Any) -> tuple[int, int]:
    """Where the carry begins among a scan's inputs, and where the stacked arrays do.

    By their ranks, since the names of its parameters differ between versions of JAX.
    """
    body = _closed(eqn.params["jaxpr"]).jaxpr

    def count_unstacked(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        """How many arrays have the same rank outside of the loop and in its body."""
        count = 0
        for outer_variable, inner_variable in zip(outer, inner, strict=True):
            if outer_variable.aval.ndim == inner_variable.aval.ndim:
                count += 1
        return count

    stacked_start = count_unstacked(eqn.invars, body.invars)
    carry_count = count_unstacked(eqn.outvars, body.outvars)
    return stacked_start - carry_count, stacked_start


def _is_empty(v: Any) -> bool:
    """Whether it is an array of no numbers; empty keys are left to their equation."""
    return 0 in v.aval.shape and not jnp.issubdtype(v.aval.dtype, jax.dtypes.extended)


def _zeros(v: Any) -> Static:
    return Static(np.zeros(v.aval.shape, v.aval.dtype))


def _stack(*arrays: Any) -> Any:
    return lax.concatenate([lax.expand_dims(a, (0,)) for a in arrays], 0)


def _body(eqn: Any) -> Any:
    """The ClosedJaxpr that an equation calls once; None if it is no call."""
    if eqn.primitive.name not in (*_CALLS, *REMAT, *CUSTOM):
        return None
    for name in ("jaxpr", "call_jaxpr"):
        body = eqn.params.get(name)
        if isinstance(body, _ClosedJaxpr | jex.Jaxpr):
            return _closed(body)
    return None


def _closed(jaxpr: Any) -> Any:
    return jaxpr if isinstance(jaxpr, _ClosedJaxpr) else _ClosedJaxpr(jaxpr, ())


def _is_broadcast(jaxpr: Any) -> bool:
    """Whether x and a maximum meet as NumPy would broadcast them.

    Under vmap the axes of one may lie elsewhere, and the function moves them.
    """
    rank = len(jaxpr.outvars[0].aval.shape)
    for operand in (0, 1):
        shape = jaxpr.invars[operand].aval.shape
        for axis, size in enumerate(shape):
            broadcast_axis = axis + rank - len(shape)
            if size > 1 and _place(jaxpr, operand, axis) != broadcast_axis:
                return False
    return True


def _place(jaxpr: Any, operand: int, axis: int) -> int | None:
    """Which axis of its result an axis of an operand becomes; None if unknown."""
    places: dict[Any, int] = {jaxpr.invars[operand]: axis}  # variable -> its axis
    for eqn in jaxpr.eqns:
        slot = None  # the first input that has the axis
        for i, v in enumerate(eqn.invars):
            if not _is_literal(v) and v in places:
                slot = i
                break
        if slot is None:
            continue
        source, result = eqn.invars[slot], eqn.outvars[0]
        body = _body(eqn)
        if body is not None:
            place = _place(body.jaxpr, slot, places[source])
        else:
            place = moved(
                eqn.primitive.name,
                eqn.params,
                axis=places[source],
                shape=source.aval.shape,
                new_shape=result.aval.shape,
            )
        if place is None:
            return None
        places[result] = place
    return places.get(jaxpr.outvars[0])


def depends_on_last(jaxpr: Any) -> bool:
    """Whether any output of a function follows from its last input."""
    reached = {jaxpr.invars[-1]}
    for eqn in jaxpr.eqns:
        if not reached.isdisjoint(_variables(eqn.invars)):
            reached.update(eqn.outvars)
    return not reached.isdisjoint(_variables(jaxpr.outvars))


def _variables(values: Iterable[Any]) -> list[Any]:
    """Those of a jaxpr's values that are no literals, which have no hash."""
    return [v for v in values if not _is_literal(v)]


def _is_literal(v: Any) -> bool:
    return isinstance(v, jex.Literal)


_TRANSFORMATION = re.compile(r"[\w.]*\(([^()]*)\)")


def _join(path: str, name_stack: str) -> str:
    """The path of an equation: that of its call, and JAX's names inside of it.

    Transformations are no places: ``vmap(Net)/jvp(relu)`` is ``Net/relu``. The formula
    that an einsum is called by is none either, nor is the ``~`` of haiku.
    """
    names = name_stack.replace("/~", "")
    while _TRANSFORMATION.search(names):  # they may be nested
        names = _TRANSFORMATION.sub(r"\1", names)
    outer_path, *torch_names = f"{path}/{names}".split(TORCH_SCOPE)
    parts = outer_path.split("/")
    if torch_names:
        # The innermost module has the names of all; what follows is torchax's.
        parts.append(torch_names[-1].split("/")[0])
    return "/".join(part for part in parts if part and "->" not in part)
