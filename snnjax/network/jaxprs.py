"""From a jaxpr to numbered equations, with calls inlined and activations recognised.

This is the only file that reads jaxprs; the rest of the library uses `Equation`.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from snnjax.network.axes import moved
from snnjax.network.equations import Equation, Static
from snnjax.network.sites import Site
from snnjax.network.stages import needed

# From JAX 0.12 on one class with Jaxpr, under a name that type checkers do not see.
_ClosedJaxpr: Any = jex.ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]

_CALLS = ("jit", "closed_call")
REMAT = ("remat2",)
CUSTOM = ("custom_jvp_call", "custom_vjp_call")
_MAX_POOLS = ("reduce_window_max", "reduce_max")


class _Activation(NamedTuple):
    """What the capture recognises: a name for people, and capabilities of its site.

    Attributes:
        maximum: of a ReLU6, which is a clipped ReLU.
    """

    kind: str
    fires: bool = True
    signed: bool = False
    accumulates: bool = False
    homogeneous: bool = False
    maximum: float | None = None


_RELU = _Activation("relu")
_RELU6 = _Activation("clipped relu", maximum=6.0)
_ENCODER = _Activation("encoder", signed=True)
_WITH_MAXIMUM = {  # by the name of the function; the maximum is its second operand
    "snnjax_clipped_relu": _Activation("clipped relu"),
    "snnjax_quantized_relu": _Activation("quantized relu"),
}
_MAX_POOL = _Activation("max-pool", False, accumulates=True, homogeneous=True)


class Program(NamedTuple):
    """A jaxpr as equations over numbered variables, parameters first, then x.

    Attributes:
        equations: in order of execution, only those that the outputs need.
        avals: variable -> shape and dtype.
        parameters: variables of the parameter leaves.
        x: variables of the input, one for each of its arrays.
        constants: variable -> array that the function closed over.
        outputs: variables or constants.
    """

    equations: tuple[Equation, ...]
    avals: dict[int, Any]
    parameters: list[int]
    x: tuple[int, ...]
    constants: dict[int, Any]
    outputs: tuple[int | Static, ...]


def flatten(closed: Any, inputs: int, opaque: Sequence[str] = ()) -> Program:
    """Inline the calls of a closed jaxpr; an ``opaque`` one only if it holds a site.

    Args:
        inputs: how many of its last arguments are arrays of x.
    """
    flat = _Flattener(opaque)
    arguments = [flat.variable(v) for v in closed.jaxpr.invars]
    parameters, x = arguments[:-inputs], tuple(arguments[-inputs:])
    flat.dependent.update(x)
    constants = {
        flat.variable(v): constant
        for v, constant in zip(closed.jaxpr.constvars, closed.consts, strict=True)
    }
    equations = flat.run(closed.jaxpr, "", ())
    outputs = tuple(flat.read(v) for v in closed.jaxpr.outvars)
    used = needed(equations, [v for v in outputs if isinstance(v, int)])
    return Program(used, flat.avals, parameters, x, constants, outputs)


def hides_site(equation: Equation) -> bool:
    """Whether a loop or branch holds an activation, where no rule can reach it."""
    inner = _jaxprs(static.value for _, static in equation.params)
    return any(map(_mentions_activation, inner))


def without_site(equation: Equation) -> Equation:
    """The equation as JAX wrote it."""
    if equation.site is None or equation.site.accumulates:
        return equation._replace(site=None)
    operands = len(equation.options["call_jaxpr"].in_avals)  # a ReLU6 has one more here
    return equation._replace(site=None, inputs=equation.inputs[:operands])


class _Flattener:
    """Numbers a jaxpr's variables and inlines its calls.

    Sites are called by their number, which does not depend on the calls that stay
    opaque.
    """

    def __init__(self, opaque: Sequence[str]):
        self.opaque = opaque
        self.sites = itertools.count()
        self.numbers: dict[Any, int] = {}
        self.avals: dict[int, Any] = {}
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

    def run(self, jaxpr: Any, path: str, calls: tuple[str, ...]) -> list[Equation]:
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
            activation, body = _activation(eqn), _body(eqn)
            inline = eqn.primitive.name not in self.opaque or (
                body is not None and _holds_site(body.jaxpr)
            )
            if activation is None and body is not None and inline:
                equations += self.inline(eqn, body, here, calls)
            else:
                equations += self.equations(eqn, activation, here, calls)
        return equations

    def equations(
        self, eqn: Any, activation: _Activation | None, path: str, calls
    ) -> list[Equation]:
        """The equation as it is; a barrier of several arrays as one for each."""
        inputs = tuple(self.read(v) for v in eqn.invars)
        outputs = tuple(self.variable(v) for v in eqn.outvars)
        params = tuple((k, Static(eqn.params[k])) for k in sorted(eqn.params))
        if self.dependent.intersection(v for v in inputs if isinstance(v, int)):
            self.dependent.update(outputs)
        if eqn.primitive.name == "optimization_barrier":  # each has axes of its own
            pairs = zip(inputs, outputs, strict=True)
            return [
                Equation(eqn.primitive, params, (i,), (o,), None, path, calls)
                for i, o in pairs
            ]
        site = None
        if activation is not None:
            site = self.site(activation, outputs[0])
            if activation.maximum is not None:
                inputs = (*inputs, Static(activation.maximum))
        return [Equation(eqn.primitive, params, inputs, outputs, site, path, calls)]

    def site(self, activation: _Activation, output: int) -> Site:
        """Without what only the whole network shows: name, depth, parameters, axes."""
        aval = self.avals[output]
        return Site(
            name=str(next(self.sites)),
            kind=activation.kind,
            shape=aval.shape[1:],
            parameters=(),
            depth=0,
            dtype=aval.dtype,
            fires=activation.fires,
            signed=activation.signed,
            accumulates=activation.accumulates,
            homogeneous=activation.homogeneous,
        )

    def inline(self, eqn: Any, body: Any, path: str, calls) -> list[Equation]:
        inputs = map(self.read, eqn.invars)
        calls = (*calls, _call_name(eqn, body))
        equations, results = self.call(body, inputs, path, calls)
        self.forwarded.update(zip(eqn.outvars, results, strict=True))
        return equations

    def call(
        self, body: Any, inputs: Iterable[int | Static], path: str, calls
    ) -> tuple[list[Equation], list[int | Static]]:
        """Equations of a closed jaxpr for these inputs, and its results."""
        # A jaxpr that is called twice is inlined twice: forget its old numbers.
        inner = _Flattener(self.opaque)
        inner.avals, inner.sites = self.avals, self.sites
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

    def unroll(self, eqn: Any, path: str, calls) -> list[Equation]:
        """Every turn of a scan in its place; its number becomes part of the path."""
        body, length = _closed(eqn.params["jaxpr"]), eqn.params["length"]
        inputs = [self.read(v) for v in eqn.invars]
        carry_start, stacked_start = _parts_of_scan(eqn)
        constants, stacked = inputs[:carry_start], inputs[stacked_start:]
        carry = inputs[carry_start:stacked_start]
        equations, outputs = [], []
        turns = range(length - 1, -1, -1) if eqn.params["reverse"] else range(length)
        for turn in turns:
            slices = []
            for array in stacked:
                slicing = functools.partial(
                    lax.index_in_dim, index=turn, keepdims=False
                )
                cutting, layer_slice = self.apply(slicing, [array], path, calls)
                equations, slices = equations + cutting, slices + layer_slice
            here = _join(path, str(turn))
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
            stacking, (array,) = self.apply(_stack, parts, path, calls)
            equations += stacking
            results.append(array)
        self.forwarded.update(zip(eqn.outvars, results, strict=True))
        return equations

    def apply(
        self, function: Any, inputs: Sequence[int | Static], path: str, calls
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


def _call_name(eqn: Any, body: Any) -> str:
    return str(eqn.params.get("name") or body.jaxpr.debug_info.func_name)


def _activation(eqn: Any) -> _Activation | None:
    """The activation that an equation is; None if it is something else."""
    if eqn.primitive.name in _MAX_POOLS:
        return _MAX_POOL
    body = _body(eqn)
    if eqn.primitive.name != "custom_jvp_call" or body is None:
        return None
    name = body.jaxpr.debug_info.func_name
    if name in _WITH_MAXIMUM:
        return _WITH_MAXIMUM[name] if _is_broadcast(body.jaxpr) else None
    if name == "snnjax_encode":
        return _ENCODER
    # The name alone would trust a user's own function that happens to be called relu.
    limits = _limits(body.jaxpr) if len(eqn.invars) == 1 else []
    if name == "relu" and limits == [("max", 0)]:
        return _RELU
    if name == "relu6" and limits == [("max", 0), ("min", 6)]:
        return _RELU6
    return None


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
        reached = [(i, places[v]) for i, v in inputs if v in places]
        if not reached:
            continue
        i, place = reached[0]
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


def _limits(jaxpr: Any) -> list[tuple[str, float | None]]:
    """The operations of an activation, with the number that each compares to."""
    limits = []
    for eqn in jaxpr.eqns:
        body = _body(eqn)
        if body is not None:
            limits += _limits(body.jaxpr)
            continue
        numbers = [v.val for v in eqn.invars if _literal(v)]
        limits.append((eqn.primitive.name, float(numbers[0]) if numbers else None))
    return limits


def depends_on_last(jaxpr: Any) -> bool:
    """Whether any output of a function follows from its last input."""
    reached = {jaxpr.invars[-1]}
    for eqn in jaxpr.eqns:
        if reached.intersection(v for v in eqn.invars if not _literal(v)):
            reached.update(eqn.outvars)
    return bool(reached.intersection(v for v in jaxpr.outvars if not _literal(v)))


def _literal(v: Any) -> bool:
    return isinstance(v, jex.Literal)


def _holds_site(jaxpr: Any) -> bool:
    def inner(eqn: Any) -> list[Any]:
        if eqn.primitive.name == "scan":  # it may be unrolled
            return [_closed(eqn.params["jaxpr"]).jaxpr]
        body = _body(eqn)
        return [] if body is None else [body.jaxpr]

    return any(
        _activation(eqn) is not None or any(map(_holds_site, inner(eqn)))
        for eqn in jaxpr.eqns
    )


def _mentions_activation(jaxpr: Any) -> bool:
    return any(
        _activation(eqn) not in (None, _MAX_POOL)
        or any(map(_mentions_activation, _jaxprs(eqn.params.values())))
        for eqn in jaxpr.eqns
    )


def _jaxprs(values: Iterable[Any]) -> list[Any]:
    """The jaxprs among an equation's parameters: bodies, branches."""
    flat = [v for value in values for v in (value if type(value) is tuple else [value])]
    flat = [v.jaxpr if isinstance(v, _ClosedJaxpr) else v for v in flat]
    return [v for v in flat if isinstance(v, jex.Jaxpr)]


def _join(path: str, stack: str) -> str:
    # vmap(Net)/jvp(relu) -> Net/relu: transformations are not places, nor is the
    # formula that an einsum is called by.
    names, call = re.sub(r"/~", "", stack), re.compile(r"[\w.]*\(([^()]*)\)")
    while call.search(names):  # they may be nested
        names = call.sub(r"\1", names)
    parts = f"{path}/{names}".split("/")
    return "/".join(part for part in parts if part and "->" not in part)
