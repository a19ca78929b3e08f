"""From a jaxpr to numbered equations, with calls inlined and activations recognised.

This is the only file that reads jaxprs; the rest of the library knows `Equation`.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core as jex

from snnjax.network.equations import Equation, Site, Static
from snnjax.network.stages import needed

_CALLS = ("jit", "pjit", "closed_call", "core_call")
REMAT = ("remat", "remat2", "checkpoint")
CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
_MAX_POOLS = ("reduce_window_max", "reduce_max")


class Program(NamedTuple):
    """A jaxpr as equations over numbered variables, parameters first, then x.

    Attributes:
        equations: in order of execution, only those that the outputs need.
        avals: variable -> shape and dtype.
        parameters: variables of the parameter leaves.
        x: variable of the input.
        constants: variable -> array that the function closed over.
        outputs: variables or constants.
    """

    equations: tuple[Equation, ...]
    avals: dict[int, Any]
    parameters: list[int]
    x: int
    constants: dict[int, Any]
    outputs: tuple[int | Static, ...]


def flatten(closed: jex.ClosedJaxpr, kept: Sequence[str] = ()) -> Program:
    """Inline all calls; those of the ``kept`` primitives only if they hold a site."""
    flat = _Flattener(kept)
    *parameters, x = [flat.variable(v) for v in closed.jaxpr.invars]
    constants = {
        flat.variable(v): constant
        for v, constant in zip(closed.jaxpr.constvars, closed.consts, strict=True)
    }
    equations = flat.run(closed.jaxpr, "", ())
    outputs = tuple(flat.read(v) for v in closed.jaxpr.outvars)
    left = needed(equations, [v for v in outputs if isinstance(v, int)])
    return Program(left, flat.avals, parameters, x, constants, outputs)


def hides_site(equation: Equation) -> bool:
    """Whether a loop or branch holds a ReLU, where no rule can reach it."""
    inner = _jaxprs(static.value for _, static in equation.params)
    return any(map(_mentions_relu, inner))


class _Flattener:
    """Numbers a jaxpr's variables and inlines its calls.

    Sites are called by their number, which does not depend on the calls that are kept.
    """

    def __init__(self, kept: Sequence[str]):
        self.kept = kept
        self.sites = itertools.count()
        self.numbers: dict[Any, int] = {}
        self.avals: dict[int, Any] = {}
        self.forwarded: dict[Any, int | Static] = {}

    def variable(self, v) -> int:
        if v not in self.numbers:
            self.numbers[v] = len(self.avals)
            self.avals[len(self.avals)] = v.aval
        return self.numbers[v]

    def read(self, v) -> int | Static:
        if _literal(v):
            return Static(v.val)
        return self.forwarded[v] if v in self.forwarded else self.variable(v)

    def run(self, jaxpr, path: str, calls: tuple[str, ...]) -> list[Equation]:
        equations = []
        for eqn in jaxpr.eqns:
            here = _join(path, str(eqn.source_info.name_stack))
            kind, body = _site_kind(eqn), _body(eqn)
            if kind == "max-pool" and _stabilises(eqn, jaxpr.eqns):
                kind = None
            if eqn.outvars and all(0 in v.aval.shape for v in eqn.outvars):
                # jnp.pad makes empty parts along the batch: they hold no example.
                empty = [np.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars]
                self.forwarded.update(zip(eqn.outvars, map(Static, empty), strict=True))
                continue
            inputs = tuple(self.read(v) for v in eqn.invars)
            if kind is None and body is not None:
                if eqn.primitive.name not in self.kept or _holds_site(body.jaxpr):
                    equations += self.inline(eqn, body, inputs, here, calls)
                    continue
            outputs = tuple(self.variable(v) for v in eqn.outvars)
            site = None
            if kind is not None:
                aval = self.avals[outputs[0]]
                number = str(next(self.sites))
                site = Site(number, kind, aval.shape[1:], (), 0, aval.dtype)
            params = tuple((k, Static(eqn.params[k])) for k in sorted(eqn.params))
            equations.append(
                Equation(eqn.primitive, params, inputs, outputs, site, here, calls)
            )
        return equations

    def inline(self, eqn, body, inputs, path, calls):
        # A jaxpr that is called twice is inlined twice: forget its old numbers.
        inner = _Flattener(self.kept)
        inner.avals, inner.sites = self.avals, self.sites
        inner.forwarded = dict(zip(body.jaxpr.invars, inputs, strict=True))
        for v, c in zip(body.jaxpr.constvars, body.consts, strict=True):
            inner.forwarded[v] = Static(c)
        equations = inner.run(body.jaxpr, path, (*calls, _call_name(eqn, body)))
        for outer, v in zip(eqn.outvars, body.jaxpr.outvars, strict=True):
            self.forwarded[outer] = inner.read(v)
        return equations


def _body(eqn) -> Any:
    """The ClosedJaxpr that an equation calls once; None if it is no call."""
    if eqn.primitive.name not in (*_CALLS, *REMAT, *CUSTOM):
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = eqn.params.get(name)
        if isinstance(body, jex.ClosedJaxpr):
            return body
        if isinstance(body, jex.Jaxpr):
            return jex.ClosedJaxpr(body, ())
    return None


def _call_name(eqn, body) -> str:
    return str(eqn.params.get("name") or body.jaxpr.debug_info.func_name)


def _site_kind(eqn) -> str | None:
    if eqn.primitive.name in _MAX_POOLS:
        return "max-pool"
    body = _body(eqn)
    if eqn.primitive.name != "custom_jvp_call" or body is None:
        return None
    name = body.jaxpr.debug_info.func_name
    # The name alone would trust a user's own function that happens to be called relu.
    if name == "relu" and _limits(body.jaxpr) == [("max", 0)]:
        return "relu"
    if name == "relu6" and _limits(body.jaxpr) == [("max", 0), ("min", 6)]:
        return "relu6"
    if name == "snnjax_clipped_relu":
        return "clipped relu"
    return None


def _limits(jaxpr) -> list[tuple[str, float | None]]:
    """The operations of an activation, with the number that each compares to."""
    found = []
    for eqn in jaxpr.eqns:
        body = _body(eqn)
        if body is not None:
            found += _limits(body.jaxpr)
            continue
        numbers = [v.val for v in eqn.invars if _literal(v)]
        found.append((eqn.primitive.name, float(numbers[0]) if numbers else None))
    return found


def _stabilises(eqn, eqns) -> bool:
    """Whether a maximum only keeps a softmax from overflowing, and is no pool."""
    reached = set(eqn.outvars)
    for later in eqns:
        if reached.intersection(v for v in later.invars if not _literal(v)):
            if later.primitive.name == "stop_gradient":
                return True
            if later.primitive.name in ("max", "broadcast_in_dim", "reshape"):
                reached.update(later.outvars)
    return False


def _literal(v) -> bool:
    return isinstance(v, jex.Literal)


def _holds_site(jaxpr) -> bool:
    return any(
        _site_kind(eqn) is not None
        or ((body := _body(eqn)) is not None and _holds_site(body.jaxpr))
        for eqn in jaxpr.eqns
    )


def _mentions_relu(jaxpr) -> bool:
    return any(
        _site_kind(eqn) not in (None, "max-pool")
        or any(map(_mentions_relu, _jaxprs(eqn.params.values())))
        for eqn in jaxpr.eqns
    )


def _jaxprs(values) -> list:
    """The jaxprs among an equation's parameters: bodies, branches."""
    flat = [v for value in values for v in (value if type(value) is tuple else [value])]
    flat = [v.jaxpr if isinstance(v, jex.ClosedJaxpr) else v for v in flat]
    return [v for v in flat if isinstance(v, jex.Jaxpr)]


def _join(path: str, stack: str) -> str:
    # vmap(Net)/jvp(relu) -> Net/relu: transformations are not places.
    names = re.sub(r"[\w.]*\(([^()]*)\)", r"\1", re.sub(r"/~", "", stack))
    return "/".join(part for part in f"{path}/{names}".split("/") if part)
