"""Capture: any ``fn(params, x)`` becomes a `Network`, or is refused with reasons.

The function is traced once; calls that hold a site are inlined; what is left is a
list of equations that must be affine in the activations (``affine.py``). This is
the only file that reads jaxprs.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.extend import core as jex

from snnjax.network import affine as affinity
from snnjax.network.equations import (
    Equation,
    Network,
    Rule,
    Site,
    Sites,
    Static,
    common,
    evaluate,
    variables,
)
from snnjax.network.stages import needed

_CALLS = ("jit", "pjit", "closed_call", "core_call")
_REMAT = ("remat", "remat2", "checkpoint")
_CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
_MAX_POOLS = ("reduce_window_max", "reduce_max")


def sites(fn: Callable, params: chex.ArrayTree, x: chex.Array) -> Sites:
    """Where neurons would fire: name, kind, shape, depth and parameters of each site.

    Args:
        fn: network, ``fn(params, x) -> outputs``; each output has the batch first.
        params: its parameters, any pytree of arrays.
        x: float [B, ...], or a ``jax.ShapeDtypeStruct``: only the shape is used.

    Returns:
        The sites in order of execution; ``print`` shows them as a table.

    Raises:
        snnjax.ConversionError: with every operation that cannot be converted, its
            path and the remedy.
        ValueError: x is empty, not of floating point, or has no batch axis.

    >>> import jax, jax.numpy as jnp
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["readout"]
    >>> params = {"hidden": jnp.ones((3, 8)), "readout": jnp.ones((8, 2))}
    >>> print(sites(fn, params, jnp.ones((1, 3))))
    site         kind  shape  depth  parameters
    hidden/relu  relu  8      1      hidden
    """
    return capture(fn, params, x).sites


def with_activation(fn: Callable, rule: Rule) -> Callable:
    """``fn`` with ``rule(site, x, *operands)`` in the place of every activation.

    The operands are the maximum of a clipped ReLU; `identity` is the rule that
    gives the ANN back, bit for bit.

    >>> import jax, jax.numpy as jnp
    >>> fn = with_activation(lambda w, x: jax.nn.relu(w * x),
    ...                      lambda site, x: jnp.where(x > 1, 1.0, 0.0))
    >>> print(fn(jnp.array(2.0), jnp.array([[0.3, 0.7]])))
    [[0. 1.]]
    """

    @functools.wraps(fn)
    def evaluated(params, x):
        network = capture(fn, params, x)
        values = network.arguments(params, x)
        evaluate(network.equations, values, rule)
        return network.results(values)

    return evaluated


_COMPUTED = ("bfloat16", "float16", "float32")


def in_dtype(fn: Callable, dtype: Any) -> Callable:
    """``fn`` computed in another floating type, e.g. bfloat16; outputs are float32.

    Parameters and x are cast on the way in, so those that the caller holds stay as they
    are. Membranes, thresholds and fits are float32 in any case. Give the result to
    `sites`, `convert`, `spiking` and `measure` alike: an SNN is fitted to the rounding
    too. For training give the layers their type, as their running averages need more
    digits.

    >>> import jax, jax.numpy as jnp
    >>> fn = in_dtype(lambda w, x: jax.nn.relu(x @ w), jnp.bfloat16)
    >>> print(fn(jnp.ones((1, 1)), jnp.array([[1.001]])))
    [[1.]]
    """
    try:
        name = str(jnp.dtype("none" if dtype is None else dtype))
    except TypeError:
        name = "unknown"
    if name not in _COMPUTED:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(_COMPUTED)}")

    def cast(tree, to):
        return jax.tree.map(
            lambda a: jnp.asarray(a, to) if _is_floating(a) else a, tree
        )

    @functools.wraps(fn)
    def computed(params, x, **options):
        return cast(fn(cast(params, dtype), cast(x, dtype), **options), jnp.float32)

    return computed


def _is_floating(a) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.floating)


def capture(
    fn: Callable,
    params: chex.ArrayTree,
    x: Any,
    *,
    affine: bool = True,
    has_aux: bool = False,
    inline_all: bool = False,
) -> Network:
    """Trace ``fn`` and check that it is affine between its sites.

    Args:
        affine: False allows anything between the sites, as direct training may.
        has_aux: the function returns (outputs, aux); aux need not have a batch axis.
        inline_all: no call is left among the equations, with or without a site.

    Raises: as `sites`.
    """
    check_function(fn)
    _check_input(x)
    closed, result = _trace(fn, params, x)
    outputs = _without_aux(result) if has_aux else result
    _check(closed, len(jax.tree_util.tree_leaves(outputs)), affine)
    # A custom derivative must stay, a remat only where it saves memory.
    kept = () if inline_all else _CUSTOM if affine else (*_CUSTOM, *_REMAT)
    flat = _Flattener(kept)
    *leaves, x_var = [flat.variable(v) for v in closed.jaxpr.invars]
    constants = {
        flat.variable(v): c
        for v, c in zip(closed.jaxpr.constvars, closed.consts, strict=True)
    }
    equations, outputs = flat.program(closed.jaxpr)
    equations = _batch_first(equations, flat.avals, x_var)
    parameters = dict(zip(leaves, paths_of(params), strict=True))
    equations, facts = _analyse(equations, flat.avals, parameters, x_var)
    found = Sites(eq.site for eq in equations if eq.site is not None)
    return Network(
        equations=equations,
        avals=flat.avals,
        parameters=parameters,
        x=x_var,
        constants=constants,
        outputs=outputs,
        tree=jax.tree_util.tree_structure(result),
        sites=found,
        depths=facts.depths,
        dependent=frozenset(facts.dependent),
        feeds=facts.feeds,
        channels=tuple(facts.channels.get(v, -1) for v in outputs),
    )


def paths_of(params: chex.ArrayTree) -> list[str]:
    """Of all leaves in their order, as `Site.parameters` has them."""
    return [
        _clean(jax.tree_util.keystr(path, simple=True, separator="/"))
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]


def check_function(fn) -> None:
    """Raise unless this can be called."""
    if not callable(fn):
        raise ValueError(
            f"fn is {fn!r}; allowed: a function fn(params, x) -> outputs, e.g. "
            "model.apply"
        )


def _check_input(x) -> None:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise ValueError(f"x is a {type(x).__name__}; allowed: an array [batch, ...]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has dtype {x.dtype}; allowed: floating point. Scale images first, "
            "e.g. x.astype('float32') / 255"
        )
    if len(x.shape) < 1 or 0 in x.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; allowed: [batch, ...] with at least one "
            "example"
        )


def _trace(fn, params, x):
    try:
        return jax.make_jaxpr(fn, return_shape=True)(params, x)
    except Exception as error:  # the user's own function failed: say with what
        error.add_note(
            f"snnjax called fn(params, x) with x of shape {tuple(x.shape)} and dtype "
            f"{x.dtype}. Pass the network as fn(params, x) -> outputs, params as a "
            "pytree of arrays, and x with the batch axis first."
        )
        raise


def _without_aux(result):
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            f"has_aux=True needs fn to return (outputs, aux); found "
            f"{jax.tree_util.tree_structure(result)}"
        )
    return result[0]


def _check(closed, count: int, affine: bool) -> None:
    """Refuse what stands in the way; the first ``count`` results are outputs."""
    flat = _Flattener()
    *parameters, x = [flat.variable(v) for v in closed.jaxpr.invars]
    equations, outputs = flat.program(closed.jaxpr)
    equations = _batch_first(equations, flat.avals, x)
    names = dict.fromkeys(parameters, "")
    equations, facts = _analyse(equations, flat.avals, names, x)
    trouble = None if affine else _hidden_site
    affinity.check(equations, x, facts.dependent, flat.avals, outputs[:count], trouble)


class _Flattener:
    """Numbers a jaxpr's variables and inlines its calls, all that hold a site.

    Args:
        kept: primitives of the calls that stay as they are if they hold none.
    """

    def __init__(self, kept: Sequence[str] = ()):
        self.kept = kept
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

    def program(self, jaxpr):
        """The equations that the outputs need, and the outputs."""
        equations = self.run(jaxpr, "", ())
        outputs = tuple(self.read(v) for v in jaxpr.outvars)
        targets = [v for v in outputs if isinstance(v, int)]
        return needed(equations, targets), outputs

    def run(self, jaxpr, path: str, calls: tuple[str, ...]) -> list[Equation]:
        equations = []
        for eqn in jaxpr.eqns:
            here = _join(path, str(eqn.source_info.name_stack))
            kind, body = _site_kind(eqn), _body(eqn)
            if kind == "max-pool" and _stabilises(eqn, jaxpr.eqns):
                kind = None
            inputs = tuple(self.read(v) for v in eqn.invars)
            if kind is None and body is not None:
                if eqn.primitive.name not in self.kept or _holds_site(body.jaxpr):
                    equations += self.inline(eqn, body, inputs, here, calls)
                    continue
            outputs = tuple(self.variable(v) for v in eqn.outvars)
            site = None
            if kind is not None:
                aval = self.avals[outputs[0]]
                site = Site(here, kind, aval.shape[1:], (), 0, aval.dtype)
            params = tuple((k, Static(eqn.params[k])) for k in sorted(eqn.params))
            equations.append(
                Equation(eqn.primitive, params, inputs, outputs, site, here, calls)
            )
        return equations

    def inline(self, eqn, body, inputs, path, calls):
        # A jaxpr that is called twice is inlined twice: forget its old numbers.
        inner = _Flattener(self.kept)
        inner.avals = self.avals
        inner.forwarded = dict(zip(body.jaxpr.invars, inputs, strict=True))
        for v, c in zip(body.jaxpr.constvars, body.consts, strict=True):
            inner.forwarded[v] = Static(c)
        equations = inner.run(body.jaxpr, path, (*calls, _call_name(eqn, body)))
        for outer, v in zip(eqn.outvars, body.jaxpr.outvars, strict=True):
            self.forwarded[outer] = inner.read(v)
        return equations


def _body(eqn) -> Any:
    """The ClosedJaxpr that an equation calls once; None if it is no call."""
    if eqn.primitive.name not in (*_CALLS, *_REMAT, *_CUSTOM):
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
        numbers = [v.val for v in eqn.invars if isinstance(v, jex.Literal)]
        found.append((eqn.primitive.name, float(numbers[0]) if numbers else None))
    return found


def _batch_first(equations, avals, x) -> list[Equation]:
    """The same; neurons see the batch on their first axis.

    vmap puts it last where weights are multiplied from the left, W @ x.
    """
    batch, moved = {x: 0}, []
    for eq in equations:
        _, axis = affinity.follow(eq, batch, avals)
        pools = eq.site is None or eq.site.kind == "max-pool"
        alone = all(isinstance(v, Static) for v in eq.inputs[1:])  # no vector of maxima
        moved += [eq] if pools or not axis or not alone else _around(eq, axis, avals)
    return moved


def _around(eq: Equation, axis: int, avals) -> list[Equation]:
    """A site between two transpositions."""
    (v, *operands), (output,) = eq.inputs, eq.outputs
    to = (axis, *(a for a in range(len(avals[v].shape)) if a != axis))
    back = tuple(to.index(a) for a in range(len(to)))
    shape = tuple(avals[v].shape[a] for a in to)
    before, after = len(avals), len(avals) + 1
    for fresh in (before, after):
        avals[fresh] = avals[v].update(shape=shape)

    def transposed(source, order, target):
        params = (("permutation", Static(order)),)
        return Equation(jax.lax.transpose_p, params, (source,), (target,), path=eq.path)

    site = eq.place._replace(shape=shape[1:])
    inside = eq._replace(inputs=(before, *operands), outputs=(after,), site=site)
    return [transposed(v, to, before), inside, transposed(after, back, output)]


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


def _hidden_site(equation: Equation) -> str | None:
    """ "hidden" if a loop or branch holds a ReLU, where no rule can reach it."""
    inner = _jaxprs(static.value for _, static in equation.params)
    return "hidden" if any(map(_mentions_relu, inner)) else None


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


class _Facts(NamedTuple):
    dependent: set[int]
    depths: dict[int, int]
    feeds: dict[str, tuple[int, ...]]
    channels: dict[Any, int]  # variable -> axis from the end, as far as it is known


def _analyse(equations, avals, parameters, x):
    """Name the sites; find what depends on x, how deep, and fed by which parameters."""
    dependent, depths = {x}, dict.fromkeys(avals, 0)
    reach: dict[int, frozenset[int]] = {v: frozenset([v]) for v in parameters}
    feeds, taken, kept, channels = {}, {}, [], {}
    for eq in equations:
        inputs = variables(eq)
        depth = max((depths[v] for v in inputs), default=0)
        direct = frozenset().union(*(reach.get(v, frozenset()) for v in inputs))
        site = eq.site
        if site is not None and not dependent.intersection(inputs):
            site = None  # an activation of parameters alone is just a number
        if site is not None:
            if site.kind == "relu6":
                site = site._replace(kind="clipped relu")
                eq = eq._replace(inputs=(*eq.inputs, Static(6.0)))
            paths = tuple(parameters[v] for v in sorted(direct))
            name = _site_name(site, paths, eq.path, taken)
            depth += site.fires
            site = site._replace(name=name, parameters=paths, depth=depth)
            if site.fires:
                feeds[name] = tuple(sorted(direct))
                direct = frozenset()
        if dependent.intersection(inputs):
            axis = affinity.channel_axis(eq, dependent, avals, channels)
            if axis is not None:
                channels.update(dict.fromkeys(eq.outputs, axis))
                if site is not None:
                    ndim = len(avals[eq.outputs[0]].shape)
                    site = site._replace(channel=axis - ndim)
            dependent.update(eq.outputs)
        for v in eq.outputs:
            depths[v], reach[v] = depth, direct
        kept.append(eq._replace(site=site))
    behind = {v: axis - len(avals[v].shape) for v, axis in channels.items()}
    return tuple(kept), _Facts(dependent, depths, feeds, behind)


def _site_name(site, parameters, path, taken) -> str:
    kind = "max_pool" if site.kind == "max-pool" else "relu"
    scope = path or common(parameters)
    name = f"{scope}/{kind}" if scope else kind
    taken[name] = taken.get(name, -1) + 1
    return f"{name}_{taken[name]}" if taken[name] else name


def _clean(path: str) -> str:
    # nnx states end every path in the attribute that holds the array.
    return path.removesuffix("/value").replace("/~/", "/")


def _join(path: str, stack: str) -> str:
    # vmap(Net)/jvp(relu) -> Net/relu: transformations are not places.
    names = re.sub(r"[\w.]*\(([^()]*)\)", r"\1", re.sub(r"/~", "", stack))
    return "/".join(part for part in f"{path}/{names}".split("/") if part)
