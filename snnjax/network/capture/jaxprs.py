"""From a jaxpr to numbered equations, with calls inlined.

This is the only file that reads jaxprs of networks; the rest of the library uses
`Equation`. In this file ``eqn`` is an equation of a jaxpr and ``equation`` is one of
ours. ``path`` names the module that an equation stands in, and ``calls`` the inlined
calls of functions around it. A body is the jaxpr of a called function.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
# A scan along an axis of the input is unrolled up to this many turns, since each turn
# has equations, and sites, of its own. One over layers is unrolled whatever its length.
MAX_TURNS = 64
# The scope of a PyTorch module is this and its whole name, "layer1.0.relu".
TORCH_SCOPE = "torch:"


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a function that was inlined; two calls are never equal.

    Attributes:
        name: of the function, for people.
    """

    name: str


Calls = tuple[Call, ...]  # the calls around an equation, the outermost first


class Program(NamedTuple):
    """A jaxpr as equations over numbered variables, parameters first, then x.

    Attributes:
        equations: in order of execution, only those that the outputs need.
        avals: variable -> shape and dtype.
        parameters: variables of the parameter leaves.
        x: variables of the input, one for each of its arrays.
        constants: variable -> array that the function closed over.
        outputs: variables or constants.
        calls: inlined call -> the equation that it was, for each call with a custom
            derivative or of a remat (`folded`).
    """

    equations: tuple[Equation, ...]
    avals: Avals
    parameters: list[int]
    x: tuple[int, ...]
    constants: dict[int, Any]
    outputs: tuple[int | Static, ...]
    calls: Mapping[Call, Equation]


def flatten(closed: Any, parameter_count: int) -> Program:
    """The program of a closed jaxpr.

    All calls are inlined but those of `snnjax.activations`, which become sites.

    Args:
        closed: its first arguments are the parameters, the others the arrays of x.
        parameter_count: number of the parameters.
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
    """The equations, with inlined calls restored where they contain no site.

    A call with a custom derivative must be a call again to keep the derivative. A remat
    is one again to save memory.

    Args:
        equations: with all calls inlined.
        calls: inlined call -> the equation that it was.
        names: of the primitives whose calls are restored.
    """
    calls_with_sites = set()
    for eq in equations:
        if eq.site is not None:
            calls_with_sites.update(eq.calls)

    restored_calls = set()
    for call, equation in calls.items():
        if equation.name in names and call not in calls_with_sites:
            restored_calls.add(call)
    # The key of a restored call is the call, so that its equations give it once. The
    # key of any other equation is its first output.
    result: dict[Call | int, Equation] = {}
    for eq in equations:
        outermost = next((call for call in eq.calls if call in restored_calls), None)
        if outermost is None:
            result[eq.outputs[0]] = eq
        else:
            result[outermost] = calls[outermost]
    return tuple(result.values())


def inner_programs(equation: Equation) -> Iterator[Program]:
    """The programs in the parameters of an equation, as a loop's body, a branch."""
    for _, parameter in equation.params:
        value = parameter.value
        # The branches of a cond are a tuple of jaxprs.
        values = value if type(value) is tuple else [value]
        for jaxpr in values:
            if isinstance(jaxpr, _ClosedJaxpr | jex.Jaxpr):
                closed = _closed(jaxpr)
                if closed.jaxpr.invars:
                    yield flatten(closed, parameter_count=0)


class _Flattener:
    """Numbers a jaxpr's variables and inlines its calls.

    Our variable is the number of a jaxpr's variable. Every inlined call has a flattener
    of its own, which shares ``calls``, ``avals`` and ``dependent`` with all others.

    Attributes:
        calls: inlined call -> the equation that it was, for `folded`.
        numbers: variable of the jaxpr -> our variable.
        avals: our variable -> shape and dtype.
        dependent: our variables that depend on x.
        forwarded: variable of the jaxpr -> our variable or constant that has its value
            already, such as an argument of an inlined call.
    """

    def __init__(self):
        self.calls: dict[Call, Equation] = {}
        self.numbers: dict[Any, int] = {}
        self.avals: Avals = {}
        self.dependent: set[int] = set()
        self.forwarded: dict[Any, int | Static] = {}

    def variable(self, v: Any) -> int:
        """The number of a jaxpr's variable, a new one if it has none yet."""
        if v not in self.numbers:
            number = len(self.avals)
            self.numbers[v] = number
            self.avals[number] = v.aval
        return self.numbers[v]

    def read(self, v: Any) -> int | Static:
        """Our variable or constant for an input of a jaxpr's equation."""
        if _is_literal(v):
            return Static(v.val)
        if v in self.forwarded:
            return self.forwarded[v]
        return self.variable(v)

    def run(self, jaxpr: Any, path: str, calls: Calls) -> list[Equation]:
        """Our equations for a jaxpr that stands at ``path`` and inside of ``calls``."""
        equations = []
        for eqn in jaxpr.eqns:
            eqn_path = _join(path, str(eqn.source_info.name_stack))
            body = _body(eqn)
            if eqn.outvars and all(map(_is_empty, eqn.outvars)):
                # jnp.pad makes empty arrays along the axis of the examples. They hold
                # no example, so they are constants.
                for v in eqn.outvars:
                    self.forwarded[v] = _zeros(v)
            elif eqn.primitive.name == "scan" and self.is_unrolled(eqn):
                equations += self.unroll(eqn, eqn_path, calls)
            elif body is None or body.jaxpr.debug_info.func_name in _ACTIVATIONS:
                equations += self.equations(eqn, eqn_path, calls)
            else:
                equations += self.inline(eqn, body, eqn_path, calls)
        return equations

    def equations(self, eqn: Any, path: str, calls: Calls) -> list[Equation]:
        """Our equations for one that is not inlined: one, or several of a barrier.

        A call of a function of `snnjax.activations` becomes a site.
        """
        inputs = tuple(self.read(v) for v in eqn.invars)
        outputs = tuple(self.variable(v) for v in eqn.outvars)
        equation = self.equation(eqn, inputs, outputs, path, calls)
        if self.dependent.intersection(equation.variables):
            self.dependent.update(outputs)
        if eqn.primitive.name == "optimization_barrier":
            # It hands several arrays on. Each gets a barrier of its own, since the
            # examples may lie along another axis of it.
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
        """A jaxpr's equation, of our variables."""
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
        """The equations of a called function, in the place of its call."""
        inputs = tuple(map(self.read, eqn.invars))
        function_name = eqn.params.get("name") or body.jaxpr.debug_info.func_name
        call = Call(str(function_name))
        calls = (*calls, call)
        equations, results = self.call(body, inputs, path, calls)
        if eqn.primitive.name in CUSTOM:
            # The function may return an input as it is, and its custom derivative holds
            # for this result, but not for other readers of the input. So the result
            # becomes a variable of its own, a copy.
            copy = functools.partial(jnp.array, copy=True)
            computed = computed_by(equations)
            for i, v in enumerate(results):
                if v not in computed:
                    copying, copies = self.apply(copy, [v], path, calls)
                    equations += copying
                    results[i] = copies[0]
        if eqn.primitive.name in (*CUSTOM, *REMAT):
            # The equation of the call itself is kept: `folded` may put it back in the
            # place of the equations of the function.
            outputs = self.call_outputs(eqn, equations, results)
            self.calls[call] = self.equation(eqn, inputs, outputs, path, calls)
        # Who reads an output of the call reads the function's result.
        self.forwarded.update(zip(eqn.outvars, results, strict=True))
        return equations

    def call_outputs(
        self, eqn: Any, equations: Sequence[Equation], results: Sequence[int | Static]
    ) -> tuple[int, ...]:
        """The output variables of an inlined call, should it be a call again.

        They are the variables that its equations compute, so that later equations read
        the same ones in either case. A result that is an input, a constant or equal to
        an earlier result gets a variable that nobody reads.

        Args:
            eqn: the call.
            equations: of the called function.
            results: what these equations return.
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
        """The equations of a closed jaxpr for these inputs, and its results."""
        # A new flattener, since a jaxpr that is called twice needs new numbers.
        inner = _Flattener()
        inner.avals = self.avals
        inner.calls = self.calls
        inner.dependent = self.dependent
        inner.forwarded = dict(zip(body.jaxpr.invars, inputs, strict=True))
        for v, constant in zip(body.jaxpr.constvars, body.consts, strict=True):
            inner.forwarded[v] = Static(constant)
        equations = inner.run(body.jaxpr, path, calls)
        return equations, [inner.read(v) for v in body.jaxpr.outvars]

    def is_unrolled(self, eqn: Any) -> bool:
        """Whether a scan computes on x, and has few turns or goes over layers.

        A scan over layers goes along an axis of its parameters, one entry for each
        layer. Any other goes along an axis of x, as a recurrent network does.
        """
        depend_on_x = []  # whether each input does
        for v in eqn.invars:
            value = self.read(v)
            depend_on_x.append(isinstance(value, int) and value in self.dependent)
        # The scan goes along the first axis of the stacked inputs, which come last.
        _, stacked_start = _parts_of_scan(eqn)
        is_over_layers = not any(depend_on_x[stacked_start:])
        # A scan over the examples of a batch of any size has a symbolic length.
        length = eqn.params["length"]
        is_short = isinstance(length, int) and length <= MAX_TURNS
        return any(depend_on_x) and (is_over_layers or is_short)

    def unroll(self, eqn: Any, path: str, calls: Calls) -> list[Equation]:
        """The equations of all turns of a scan; turn 3 has the path ``path/[3]``.

        Turn i reads entry i of each stacked input: the parameters of layer i, or the
        activations at position i of the axis that a recurrent network goes along. Its
        first results, the carry, are read by the next turn, and its further results
        are stacked.
        """
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
        stacked_results: dict[int, list[int | Static]] = {}  # turn -> its entries
        for turn in turns:
            take_entry = functools.partial(lax.index_in_dim, index=turn, keepdims=False)
            entries = []
            for array in stacked_inputs:
                slicing, entry = self.apply(take_entry, [array], path, calls)
                equations += slicing
                entries += entry
            turn_equations, turn_results = self.call(
                body,
                [*constants, *carry, *entries],
                _join(path, f"[{turn}]"),
                calls,
            )
            equations += turn_equations
            stacked_results[turn] = turn_results[len(carry) :]
            carry = turn_results[: len(carry)]
        results = list(carry)
        for i, v in enumerate(eqn.outvars[len(carry) :]):
            if length == 0:
                results.append(_zeros(v))
                continue
            # In order of the turns, also where the scan goes backwards.
            parts = [stacked_results[turn][i] for turn in range(length)]
            stacking, stack = self.apply(_stack, parts, path, calls)
            equations += stacking
            results += stack
        self.forwarded.update(zip(eqn.outvars, results, strict=True))
        return equations

    def apply(
        self,
        function: Callable,
        inputs: Sequence[int | Static],
        path: str,
        calls: Calls,
    ) -> tuple[list[Equation], list[int | Static]]:
        """The equations of a function of arrays, and its one result in a list."""
        shapes = []
        for v in inputs:
            if isinstance(v, Static):
                shape, dtype = np.shape(v.value), jnp.result_type(v.value)
            else:
                shape, dtype = self.avals[v].shape, self.avals[v].dtype
            shapes.append(jax.ShapeDtypeStruct(shape, dtype))
        return self.call(jax.make_jaxpr(function)(*shapes), inputs, path, calls)


def _parts_of_scan(eqn: Any) -> tuple[int, int]:
    """The position of the first carry among a scan's inputs, and of the first stack.

    The inputs are constants, the carry and stacked arrays, in this order. They are told
    by rank, since the names of a scan's parameters differ between versions of JAX: the
    body reads one entry of a stack, which has an axis less.
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
    """A constant of zeros, of the shape and type of a jaxpr's variable."""
    return Static(np.zeros(v.aval.shape, v.aval.dtype))


def _stack(*arrays: Any) -> Any:
    """The arrays along a new first axis; `jnp.stack` would be a call to inline."""
    return lax.concatenate([lax.expand_dims(a, (0,)) for a in arrays], 0)


def _body(eqn: Any) -> Any:
    """The closed jaxpr of the function that is called; None if it is no call."""
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
    """Whether a clipped ReLU's x and maximum meet as NumPy would broadcast them.

    Under vmap the axes of one may lie elsewhere, and the function moves them.

    Args:
        jaxpr: of the ReLU; its first two inputs are x and the maximum.
    """
    rank = len(jaxpr.outvars[0].aval.shape)
    for operand in (0, 1):
        shape = jaxpr.invars[operand].aval.shape
        for axis, size in enumerate(shape):
            # NumPy aligns the last axes.
            broadcast_axis = axis + rank - len(shape)
            if size > 1 and _result_axis(jaxpr, operand, axis) != broadcast_axis:
                return False
    return True


def _result_axis(jaxpr: Any, operand: int, axis: int) -> int | None:
    """The axis of a function's result that an axis of its input becomes.

    None if that is unknown.

    Args:
        operand: number of the input.
        axis: of this input.
    """
    axes: dict[Any, int] = {jaxpr.invars[operand]: axis}  # variable -> its axis
    for eqn in jaxpr.eqns:
        for i, source in enumerate(eqn.invars):
            if _is_literal(source) or source not in axes:
                continue
            body = _body(eqn)
            if body is not None:
                new_axis = _result_axis(body.jaxpr, i, axes[source])
            else:
                new_axis = moved(
                    eqn.primitive.name,
                    eqn.params,
                    axis=axes[source],
                    shape=source.aval.shape,
                    new_shape=eqn.outvars[0].aval.shape,
                )
            if new_axis is None:
                return None
            axes[eqn.outvars[0]] = new_axis
            break  # further inputs have the axis at the same place
    return axes.get(jaxpr.outvars[0])


def depends_on_last(jaxpr: Any) -> bool:
    """Whether any output of a function depends on its last input."""
    dependent = {jaxpr.invars[-1]}

    def depends(values: Sequence[Any]) -> bool:
        # A literal has no hash, so it is not looked up.
        return any(not _is_literal(v) and v in dependent for v in values)

    for eqn in jaxpr.eqns:
        if depends(eqn.invars):
            dependent.update(eqn.outvars)
    return depends(jaxpr.outvars)


def _is_literal(v: Any) -> bool:
    """Whether an input of a jaxpr's equation is a number and no variable."""
    return isinstance(v, jex.Literal)


_TRANSFORMATION = re.compile(r"[\w.]*\(([^()]*)\)")


def _join(path: str, name_stack: str) -> str:
    """The path of an equation: that of its call, then the modules in JAX's name stack.

    Transformations are no modules: ``vmap(Net)/jvp(relu)`` is ``Net/relu``. Nor are the
    formula of an einsum, "ij,jk->ik", and the ``~`` of haiku.

    The scopes of PyTorch modules are nested, and each has a whole name. Of
    ``path/torch:layer1/torch:layer1.0/mul`` the last is taken: ``path/layer1.0``. What
    follows it, ``mul``, is a function of torchax.
    """
    names = name_stack.replace("/~", "")
    while _TRANSFORMATION.search(names):  # they may be nested
        names = _TRANSFORMATION.sub(r"\1", names)
    outer_path, *torch_names = f"{path}/{names}".split(TORCH_SCOPE)
    parts = outer_path.split("/")
    if torch_names:
        parts.append(torch_names[-1].split("/")[0])
    return "/".join(part for part in parts if part and "->" not in part)
