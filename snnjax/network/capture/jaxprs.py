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
from snnjax.network.equations import Avals, Equation, Static
from snnjax.network.sites import new_site
from snnjax.network.stages import needed

# From JAX 0.12 on one class with Jaxpr, under a name that type checkers do not see.
_ClosedJaxpr: Any = jex.ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]

_CALLS = ("jit", "closed_call")
REMAT = ("remat2",)
CUSTOM = ("custom_jvp_call", "custom_vjp_call")
# Functions of `snnjax.activations`, by names that nobody else uses -> kind.
_OWN = {
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
    flat = _Flattener()
    arguments = [flat.variable(v) for v in closed.jaxpr.invars]
    parameters, x = arguments[:parameter_count], tuple(arguments[parameter_count:])
    flat.dependent.update(x)
    constants = {
        flat.variable(v): constant
        for v, constant in zip(closed.jaxpr.constvars, closed.consts, strict=True)
    }
    equations = flat.run(closed.jaxpr, "", ())
    outputs = tuple(flat.read(v) for v in closed.jaxpr.outvars)
    needs = needed(equations, [v for v in outputs if isinstance(v, int)])
    return Program(needs, flat.avals, parameters, x, constants, outputs, flat.calls)


def folded(
    equations: Sequence[Equation], calls: Mapping[Call, Equation], names: Sequence[str]
) -> tuple[Equation, ...]:
    """The equations, with calls of these primitives restored if they contain no site.

    A call with a derivative of its own must stay a call to keep the derivative. A remat
    stays to save memory.
    """
    with_sites = {call for eq in equations if eq.site is not None for call in eq.calls}
    by_call: dict[Call | int, Equation] = {}  # by call, or by first output
    for eq in equations:
        whole = (
            call
            for call in eq.calls
            if call in calls and calls[call].name in names and call not in with_sites
        )
        outermost = next(whole, None)
        if outermost is None:
            by_call[eq.outputs[0]] = eq
        else:
            by_call[outermost] = calls[outermost]
    return tuple(by_call.values())


def inner_programs(equation: Equation) -> Iterator[Program]:
    """The bodies of a loop, the branches of a cond."""
    values = [static.value for _, static in equation.params]
    flat = [v for value in values for v in (value if type(value) is tuple else [value])]
    for jaxpr in flat:
        if isinstance(jaxpr, _ClosedJaxpr | jex.Jaxpr):
            closed = _closed(jaxpr)
            if closed.jaxpr.invars:
                yield flatten(closed, parameter_count=0)


class _Flattener:
    """Numbers a jaxpr's variables and inlines its calls."""

    def __init__(self):
        self.calls: dict[Call, Equation] = {}
        self.numbers: dict[Any, int] = {}
        self.avals: Avals = {}
        self.dependent: set[int] = set()  # variables that depend on x
        self.forwarded: dict[Any, int | Static] = {}

    def variable(self, v: Any) -> int:
        if v not in self.numbers:
            self.numbers[v] = len(self.avals)
            self.avals[len(self.avals)] = v.aval
        return self.numbers[v]

    def read(self, v: Any) -> int | Static:
        if _literal(v):
            return Static(v.val)
        return self.forwarded[v] if v in self.forwarded else self.variable(v)

    def run(self, jaxpr: Any, path: str, calls: Calls) -> list[Equation]:
        equations = []
        for eqn in jaxpr.eqns:
            here = _join(path, str(eqn.source_info.name_stack))
            if eqn.outvars and all(map(_is_empty, eqn.outvars)):
                # jnp.pad makes empty parts along the batch: they hold no example.
                self.forwarded.update((v, _zeros(v)) for v in eqn.outvars)
                continue
            if eqn.primitive.name == "scan" and self.is_over_layers(eqn):
                equations += self.unroll(eqn, here, calls)
                continue
            body = _body(eqn)
            if body is None or body.jaxpr.debug_info.func_name in _OWN:
                equations += self.equations(eqn, here, calls)
            else:
                equations += self.inline(eqn, body, here, calls)
        return equations

    def equations(self, eqn: Any, path: str, calls: Calls) -> list[Equation]:
        """The equation as it is; a barrier of several arrays as one for each."""
        inputs = tuple(self.read(v) for v in eqn.invars)
        outputs = tuple(self.variable(v) for v in eqn.outvars)
        equation = self.equation(eqn, inputs, outputs, path, calls)
        if self.dependent.intersection(equation.variables):
            self.dependent.update(outputs)
        if eqn.primitive.name == "optimization_barrier":  # each has axes of its own
            pairs = zip(inputs, outputs, strict=True)
            return [equation._replace(inputs=(i,), outputs=(o,)) for i, o in pairs]
        body = _body(eqn)
        kind = _OWN.get(body.jaxpr.debug_info.func_name) if body else None
        if body and kind and (kind == "encoder" or _is_broadcast(body.jaxpr)):
            aval, is_encoder = self.avals[outputs[0]], kind == "encoder"
            site = new_site(kind, aval, is_encoder=is_encoder)
            equation = equation._replace(site=site)
        return [equation]

    def equation(self, eqn: Any, inputs, outputs, path: str, calls: Calls) -> Equation:
        params = tuple((k, Static(eqn.params[k])) for k in sorted(eqn.params))
        return Equation(eqn.primitive, params, inputs, outputs, None, path, calls)

    def inline(self, eqn: Any, body: Any, path: str, calls: Calls) -> list[Equation]:
        inputs = tuple(map(self.read, eqn.invars))
        name = eqn.params.get("name") or body.jaxpr.debug_info.func_name
        call = Call(str(name))
        calls = (*calls, call)
        equations, results = self.call(body, inputs, path, calls)
        if eqn.primitive.name in CUSTOM:  # an input that it hands on has a derivative
            copy = functools.partial(jnp.array, copy=True)
            for i, v in enumerate(results):
                if not any(v in eq.outputs for eq in equations):
                    copies, (results[i],) = self.apply(copy, [v], path, calls)
                    equations += copies
        if eqn.primitive.name in (*CUSTOM, *REMAT):
            inner = {v for eq in equations for v in eq.outputs}
            outputs = [
                v if v in inner and v not in results[:i] else self.variable(outer)
                for i, (v, outer) in enumerate(zip(results, eqn.outvars, strict=True))
            ]
            self.calls[call] = self.equation(eqn, inputs, tuple(outputs), path, calls)
        self.forwarded.update(zip(eqn.outvars, results, strict=True))
        return equations

    def call(
        self, body: Any, inputs: Iterable[int | Static], path: str, calls: Calls
    ) -> tuple[list[Equation], list[int | Static]]:
        """Equations of a closed jaxpr for these inputs, and its results."""
        # A jaxpr that is called twice is inlined twice: forget its old numbers.
        inner = _Flattener()
        inner.avals, inner.calls = self.avals, self.calls
        inner.dependent = self.dependent
        inner.forwarded = dict(zip(body.jaxpr.invars, inputs, strict=True))
        for v, c in zip(body.jaxpr.constvars, body.consts, strict=True):
            inner.forwarded[v] = Static(c)
        equations = inner.run(body.jaxpr, path, calls)
        return equations, [inner.read(v) for v in body.jaxpr.outvars]

    def is_over_layers(self, eqn: Any) -> bool:
        """Whether a scan computes on x, and no axis of x is what it goes along."""
        inputs = [self.read(v) for v in eqn.invars]
        on_x = [isinstance(v, int) and v in self.dependent for v in inputs]
        return any(on_x) and not any(on_x[_parts_of_scan(eqn)[1] :])

    def unroll(self, eqn: Any, path: str, calls: Calls) -> list[Equation]:
        """Every turn of a scan in its place; its number, [3], is a part of the path."""
        body, length = _closed(eqn.params["jaxpr"]), eqn.params["length"]
        inputs = [self.read(v) for v in eqn.invars]
        carry_start, stacked_start = _parts_of_scan(eqn)
        constants, stacked_inputs = inputs[:carry_start], inputs[stacked_start:]
        carry = inputs[carry_start:stacked_start]
        equations, outputs = [], []
        turns = range(length - 1, -1, -1) if eqn.params["reverse"] else range(length)
        for turn in turns:
            slices = []
            slice_of = functools.partial(lax.index_in_dim, index=turn, keepdims=False)
            for array in stacked_inputs:
                cuts, layer_slice = self.apply(slice_of, [array], path, calls)
                equations, slices = equations + cuts, slices + layer_slice
            here = _join(path, f"[{turn}]")
            arguments = [*constants, *carry, *slices]
            layer, of_layer = self.call(body, arguments, here, calls)
            equations += layer
            carry = of_layer[: len(carry)]
            outputs.append(of_layer[len(carry) :])
        if eqn.params["reverse"]:
            outputs.reverse()
        results = list(carry)
        if not length:
            results = [*carry, *map(_zeros, eqn.outvars[len(carry) :])]
        for parts in zip(*outputs, strict=True):
            stack_equations, (array,) = self.apply(_stack, parts, path, calls)
            equations += stack_equations
            results.append(array)
        self.forwarded.update(zip(eqn.outvars, results, strict=True))
        return equations

    def apply(
        self, function: Any, inputs: Sequence[int | Static], path: str, calls: Calls
    ) -> tuple[list[Equation], list[int | Static]]:
        """Equations of a function of arrays, and its result."""
        shapes = [
            jax.ShapeDtypeStruct(np.shape(v.value), jnp.result_type(v.value))
            if isinstance(v, Static)
            else jax.ShapeDtypeStruct(self.avals[v].shape, self.avals[v].dtype)
            for v in inputs
        ]
        return self.call(jax.make_jaxpr(function)(*shapes), inputs, path, calls)


def _parts_of_scan(eqn: Any) -> tuple[int, int]:
    """Where the carry begins among a scan's inputs, and where the stacked arrays do.

    By their ranks, since the names of its parameters differ between versions of JAX.
    """
    body = _closed(eqn.params["jaxpr"]).jaxpr

    def unstacked(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        pairs = zip(outer, inner, strict=True)
        return sum(a.aval.ndim == b.aval.ndim for a, b in pairs)

    behind = unstacked(eqn.invars, body.invars)
    return behind - unstacked(eqn.outvars, body.outvars), behind


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

    def stays(operand: int) -> bool:
        shape = jaxpr.invars[operand].aval.shape
        return all(
            _place(jaxpr, operand, axis) == axis + rank - len(shape)
            for axis, size in enumerate(shape)
            if size > 1
        )

    return stays(0) and stays(1)


def _place(jaxpr: Any, operand: int, axis: int) -> int | None:
    """Which axis of its result an axis of an operand becomes; None if unknown."""
    places: dict[Any, int] = {jaxpr.invars[operand]: axis}
    for eqn in jaxpr.eqns:
        inputs = [(i, v) for i, v in enumerate(eqn.invars) if not _literal(v)]
        operand_places = [(i, places[v]) for i, v in inputs if v in places]
        if not operand_places:
            continue
        i, place = operand_places[0]
        body, result = _body(eqn), eqn.outvars[0]
        if body is not None:
            place = _place(body.jaxpr, i, place)
        else:
            before, after = eqn.invars[i].aval.shape, result.aval.shape
            place = moved(eqn.primitive.name, eqn.params, place, before, after)
        if place is None:
            return None
        places[result] = place
    return places.get(jaxpr.outvars[0])


def depends_on_last(jaxpr: Any) -> bool:
    """Whether any output of a function follows from its last input."""
    reach = {jaxpr.invars[-1]}
    for eqn in jaxpr.eqns:
        if reach.intersection(v for v in eqn.invars if not _literal(v)):
            reach.update(eqn.outvars)
    return bool(reach.intersection(v for v in jaxpr.outvars if not _literal(v)))


def _literal(v: Any) -> bool:
    return isinstance(v, jex.Literal)


def _join(path: str, stack: str) -> str:
    # vmap(Net)/jvp(relu) -> Net/relu: transformations are not places, nor is the
    # formula that an einsum is called by.
    names, call = re.sub(r"/~", "", stack), re.compile(r"[\w.]*\(([^()]*)\)")
    while call.search(names):  # they may be nested
        names = call.sub(r"\1", names)
    outside, *modules = f"{path}/{names}".split(TORCH_SCOPE)
    # The innermost module has the names of all; what follows is torchax's.
    parts = outside.split("/") + [module.split("/")[0] for module in modules[-1:]]
    return "/".join(part for part in parts if part and "->" not in part)
