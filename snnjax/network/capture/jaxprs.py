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
from jax.core import Tracer
from jax.extend import core as jex

from snnjax.network.capture.primitives import moved
from snnjax.network.equations import (
    Avals,
    Equation,
    Static,
    computed_by,
    read,
    variables_in,
)
from snnjax.network.evaluate import evaluate, identity
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
# What JAX computes with an index that may be negative.
_INDEX_ARITHMETIC = {
    "add": np.add,
    "convert_element_type": lambda number: number,
    "lt": np.less,
    "select_n": lambda case, *numbers: numbers[int(case)],
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
    for v, constant in zip(jaxpr.constvars, closed.consts, strict=True):
        flattener.constants[flattener.variable(v)] = constant
    flattener.run(jaxpr, path="")
    outputs = tuple(flattener.read(v) for v in jaxpr.outvars)
    return Program(
        equations=needed(flattener.equations, variables_in(outputs)),
        avals=flattener.avals,
        parameters=arguments[:parameter_count],
        x=x,
        constants=flattener.constants,
        outputs=outputs,
        calls=flattener.call_equations,
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

    result = []
    placed_calls = set()
    for eq in equations:
        outermost = next((call for call in eq.calls if call in restored_calls), None)
        if outermost is None:
            result.append(eq)
        elif outermost not in placed_calls:
            # The first equation of the call makes room for it, the others are dropped.
            result.append(calls[outermost])
            placed_calls.add(outermost)
    return tuple(result)


def inner_programs(equation: Equation) -> Iterator[Program]:
    """The programs inside of an equation: the body of a loop, or branches."""
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
    """Numbers the variables of one jaxpr, and inlines the calls in it.

    Our variable is the number of a jaxpr's variable. A jaxpr that is called twice needs
    new numbers, so every inlined call has a flattener of its own. All of them share
    the attributes from ``equations`` to ``constants``.

    Attributes:
        calls: the inlined calls that the jaxpr stands in.
        equations: ours so far, in order of execution.
        avals: our variable -> shape and dtype.
        dependent: our variables that depend on x.
        call_equations: inlined call -> the equation that it was, for `folded`.
        constants: our variable -> array that the function closed over.
        numbers: variable of the jaxpr -> our variable.
        forwarded: variable of the jaxpr -> our variable or constant that has its value
            already, such as an argument of an inlined call.
    """

    def __init__(self, calls: Calls = ()):
        self.calls = calls
        self.equations: list[Equation] = []
        self.avals: Avals = {}
        self.dependent: set[int] = set()
        self.call_equations: dict[Call, Equation] = {}
        self.constants: dict[int, Any] = {}
        self.numbers: dict[Any, int] = {}
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

    def depends_on_x(self, values: Iterable[int | Static]) -> bool:
        """Whether any of these variables and constants does."""
        return not self.dependent.isdisjoint(variables_in(values))

    def run(self, jaxpr: Any, path: str) -> None:
        """Append our equations for a jaxpr that stands at ``path``."""
        for eqn in jaxpr.eqns:
            eqn_path = _join(path, str(eqn.source_info.name_stack))
            if eqn.outvars and all(map(_is_empty, eqn.outvars)):
                # jnp.pad makes empty arrays along the axis of the examples. They hold
                # no example, so they are constants.
                for v in eqn.outvars:
                    self.forwarded[v] = _zeros(v)
            elif (number := self.index(eqn)) is not None:
                self.forwarded[eqn.outvars[0]] = number
            elif eqn.primitive.name == "scan" and self.is_unrolled(eqn):
                self.unroll(eqn, eqn_path)
            elif (branch := self.branch(eqn)) is not None:
                inputs = [self.read(v) for v in eqn.invars[1:]]
                results = self.call(branch, inputs, eqn_path, self.calls)
                self.forwarded.update(zip(eqn.outvars, results, strict=True))
            elif _body(eqn) is not None and _site_kind(eqn) is None:
                self.inline(eqn, eqn_path)
            else:
                self.keep(eqn, eqn_path)

    def index(self, eqn: Any) -> Static | None:
        """The result of an equation that computes an index from known numbers.

        JAX counts negative indices from the end, so for ``x[:, i]`` in a loop it also
        adds the number of examples to the index 0 of the first axis, and then does not
        choose this sum. Here the numbers are known, so that no equation is left that
        seems to compute with the number of examples.
        """
        compute = _INDEX_ARITHMETIC.get(eqn.primitive.name)
        if compute is None or eqn.outvars[0].aval.shape:
            return None
        dtype = eqn.outvars[0].aval.dtype
        kinds = (jnp.integer, jnp.bool_)
        if not any(jnp.issubdtype(dtype, kind) for kind in kinds):
            return None
        numbers = []
        for v in eqn.invars:
            value = self.read(v)
            if not isinstance(value, Static) or isinstance(value.value, Tracer):
                return None
            numbers.append(np.asarray(value.value))
        return Static(np.asarray(compute(*numbers), dtype))

    def branch(self, eqn: Any) -> Any:
        """The branch that a ``cond`` takes, a closed jaxpr; None if it is unknown.

        It is known where a constant chooses it, as the number of a layer does:
        ``lax.cond(i % 2 == 0, ...)`` in a scan over layers with ``jnp.arange(n)``.
        """
        if eqn.primitive.name != "cond":
            return None
        choice = self.known_value(self.read(eqn.invars[0]))
        if choice is None:
            return None
        branches = eqn.params["branches"]
        return _closed(branches[np.clip(int(choice), 0, len(branches) - 1)])

    def known_value(self, v: int | Static) -> Any:
        """The value of a variable or constant; None if parameters or x decide it."""
        values = dict(self.constants)
        work = needed(self.equations, variables_in([v]), available=values)
        computed = computed_by(work)
        read_values = [v, *(value for eq in work for value in eq.inputs)]
        for value in read_values:
            if isinstance(value, Static):
                is_known = not isinstance(value.value, Tracer)
            elif value in values:
                is_known = not isinstance(values[value], Tracer)
            else:
                is_known = value in computed
            if not is_known:
                return None
        # The capture of a network may itself be traced.
        with jax.ensure_compile_time_eval():
            evaluate(work, values, identity)
        return read(values, v)

    def keep(self, eqn: Any, path: str) -> None:
        """Append our equation for one that is not inlined.

        A call of a function of `snnjax.activations` becomes a site.
        """
        inputs = tuple(self.read(v) for v in eqn.invars)
        outputs = tuple(self.variable(v) for v in eqn.outvars)
        if self.depends_on_x(inputs):
            self.dependent.update(outputs)
        equation = _equation(eqn, inputs, outputs, path, self.calls)
        if eqn.primitive.name == "optimization_barrier":
            # It hands several arrays on. Each gets a barrier of its own, since the
            # examples may lie along another axis of it.
            for v, output in zip(inputs, outputs, strict=True):
                barrier = equation._replace(inputs=(v,), outputs=(output,))
                self.equations.append(barrier)
            return
        kind = _site_kind(eqn)
        is_encoder = kind == "encoder"
        if kind is not None and (is_encoder or _is_broadcast(_body(eqn).jaxpr)):
            site = new_site(kind, self.avals[outputs[0]], is_encoder=is_encoder)
            equation = equation._replace(site=site)
        self.equations.append(equation)

    def inline(self, eqn: Any, path: str) -> None:
        """Append the equations of a called function, in the place of its call."""
        body = _body(eqn)
        function_name = eqn.params.get("name") or body.jaxpr.debug_info.func_name
        call = Call(str(function_name))
        calls = (*self.calls, call)
        inputs = tuple(self.read(v) for v in eqn.invars)
        start = len(self.equations)  # the position of the function's first equation
        results = self.call(body, inputs, path, calls)
        if eqn.primitive.name in CUSTOM:
            # The function may return an input as it is, and its custom derivative holds
            # for this result, but not for other readers of the input. So the result
            # becomes a variable of its own, a copy.
            copy = functools.partial(jnp.array, copy=True)
            computed = computed_by(self.equations[start:])
            for i, v in enumerate(results):
                if v not in computed:
                    (results[i],) = self.apply(copy, [v], path, calls)
        if eqn.primitive.name in (*CUSTOM, *REMAT):
            # The equation of the call itself is kept: `folded` may put it back in the
            # place of the equations of the function.
            computed = computed_by(self.equations[start:])
            outputs = self.call_outputs(eqn, results, computed)
            call_equation = _equation(eqn, inputs, outputs, path, calls)
            self.call_equations[call] = call_equation
        # Who reads an output of the call reads the function's result.
        self.forwarded.update(zip(eqn.outvars, results, strict=True))

    def call_outputs(
        self, eqn: Any, results: Sequence[int | Static], computed: set[int]
    ) -> tuple[int, ...]:
        """The outputs that an inlined call has if `folded` puts it back.

        They are the variables that its equations compute, so that later equations read
        the same ones in either case. A result that is an input, a constant or equal to
        an earlier result gets a variable that nobody reads.

        Args:
            eqn: the call.
            results: what the function returns.
            computed: the variables that its equations compute.
        """
        outputs: list[Any] = []
        for result, variable in zip(results, eqn.outvars, strict=True):
            if result in computed and result not in outputs:
                outputs.append(result)
            else:
                outputs.append(self.variable(variable))
        return tuple(outputs)

    def is_unrolled(self, eqn: Any) -> bool:
        """Whether a scan computes on x, and has few turns or goes over layers.

        A scan over layers goes along an axis of its parameters, one entry for each
        layer. Any other goes along an axis of x, as a recurrent network does.
        """
        scan = self.scan_inputs(eqn)
        if not self.depends_on_x((*scan.constants, *scan.carry, *scan.stacks)):
            return False
        is_over_layers = not self.depends_on_x(scan.stacks)
        # A scan over the examples of a batch of any size has a symbolic length.
        length = eqn.params["length"]
        is_short = isinstance(length, int) and length <= MAX_TURNS
        return is_over_layers or is_short

    def scan_inputs(self, eqn: Any) -> "_ScanInputs":
        """The inputs of a scan by what they are for.

        They are told by rank, since the names of a scan's parameters differ between
        versions of JAX.
        """
        body = _closed(eqn.params["jaxpr"]).jaxpr
        inputs = [self.read(v) for v in eqn.invars]
        # Constants, then the carry, are read whole, and stacks by their entries. The
        # carry is returned whole.
        whole_count = _equal_ranks(eqn.invars, body.invars)
        carry_count = _equal_ranks(eqn.outvars, body.outvars)
        constant_count = whole_count - carry_count
        return _ScanInputs(
            constants=inputs[:constant_count],
            carry=inputs[constant_count:whole_count],
            stacks=inputs[whole_count:],
        )

    def unroll(self, eqn: Any, path: str) -> None:
        """Append the equations of all turns of a scan; turn 3 is at ``path/[3]``.

        Turn i reads entry i of each stack: the parameters of layer i, or the
        activations at position i of the axis that a recurrent network goes along. Its
        first results are the carry that the next turn reads. Its further results are
        entry i of the scan's stacked results.
        """
        body = _closed(eqn.params["jaxpr"])
        scan = self.scan_inputs(eqn)
        carry = scan.carry
        carry_count = len(carry)
        turns = list(range(eqn.params["length"]))
        if eqn.params["reverse"]:
            turns.reverse()
        entries_of_turns: dict[int, list[int | Static]] = {}  # of the stacked results
        for turn in turns:
            take_entry = functools.partial(lax.index_in_dim, index=turn, keepdims=False)
            entries = []
            for stack in scan.stacks:
                entries += self.apply(take_entry, [stack], path, self.calls)
            turn_inputs = [*scan.constants, *carry, *entries]
            turn_path = _join(path, f"[{turn}]")
            turn_results = self.call(body, turn_inputs, turn_path, self.calls)
            carry = turn_results[:carry_count]
            entries_of_turns[turn] = turn_results[carry_count:]

        stacked_results = []
        for i, v in enumerate(eqn.outvars[carry_count:]):
            if not turns:
                stacked_results.append(_zeros(v))
                continue
            # From the first entry on, also where the scan goes backwards.
            entries = [entries_of_turns[turn][i] for turn in sorted(turns)]
            stacked_results += self.apply(_stack, entries, path, self.calls)
        results = [*carry, *stacked_results]
        self.forwarded.update(zip(eqn.outvars, results, strict=True))

    def call(
        self, body: Any, inputs: Iterable[int | Static], path: str, calls: Calls
    ) -> list[int | Static]:
        """Append the equations of a closed jaxpr for these inputs; returns its results.

        Args:
            path: where it stands.
            calls: the inlined calls that it stands in.
        """
        inner = _Flattener(calls)
        inner.equations = self.equations
        inner.avals = self.avals
        inner.dependent = self.dependent
        inner.call_equations = self.call_equations
        inner.constants = self.constants
        inner.forwarded = dict(zip(body.jaxpr.invars, inputs, strict=True))
        for v, constant in zip(body.jaxpr.constvars, body.consts, strict=True):
            inner.forwarded[v] = Static(constant)
        inner.run(body.jaxpr, path)
        return [inner.read(v) for v in body.jaxpr.outvars]

    def apply(
        self,
        function: Callable,
        inputs: Sequence[int | Static],
        path: str,
        calls: Calls,
    ) -> list[int | Static]:
        """Append the equations of a function of arrays; returns its results."""
        shapes = []
        for v in inputs:
            if isinstance(v, Static):
                shape, dtype = np.shape(v.value), jnp.result_type(v.value)
            else:
                shape, dtype = self.avals[v].shape, self.avals[v].dtype
            shapes.append(jax.ShapeDtypeStruct(shape, dtype))
        return self.call(jax.make_jaxpr(function)(*shapes), inputs, path, calls)


class _ScanInputs(NamedTuple):
    """The inputs of a scan, as our variables and constants.

    Attributes:
        constants: every turn reads them whole.
        carry: the first turn reads them, and each turn returns those of the next one.
        stacks: arrays of which each turn reads one entry, along their first axis.
    """

    constants: list[int | Static]
    carry: list[int | Static]
    stacks: list[int | Static]


def _equation(
    eqn: Any,
    inputs: tuple[int | Static, ...],
    outputs: tuple[int, ...],
    path: str,
    calls: Calls,
) -> Equation:
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


def _equal_ranks(variables: Sequence[Any], body_variables: Sequence[Any]) -> int:
    """How many arrays have the same rank outside of a loop and in its body.

    The body has an axis less for an array of which it reads or writes one entry.
    """
    count = 0
    for variable, body_variable in zip(variables, body_variables, strict=True):
        if variable.aval.ndim == body_variable.aval.ndim:
            count += 1
    return count


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
    """The jaxpr with its constants, of which a jaxpr that is not closed has none."""
    return jaxpr if isinstance(jaxpr, _ClosedJaxpr) else _ClosedJaxpr(jaxpr, ())


def _site_kind(eqn: Any) -> str | None:
    """The kind of a call of `snnjax.activations`; None for any other equation."""
    body = _body(eqn)
    return None if body is None else _ACTIVATIONS.get(body.jaxpr.debug_info.func_name)


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
        positions = []  # of the inputs that have the axis
        for i, v in enumerate(eqn.invars):
            if not _is_literal(v) and v in axes:
                positions.append(i)
        if not positions:
            continue
        # The axis is at the same place in all of these inputs.
        position = positions[0]
        source = eqn.invars[position]
        body = _body(eqn)
        if body is not None:
            new_axis = _result_axis(body.jaxpr, position, axes[source])
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
