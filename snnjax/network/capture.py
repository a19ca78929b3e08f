"""Capture: any ``fn(params, x)`` becomes a `Network`, or is refused with reasons.

The function is traced once and flattened (``jaxprs.py``). With every call inlined, what
stands between its sites must be affine in the activations (``affine.py``), or is
gathered in operators (``operators.py``). Then passes over the equations give every site
its depth, its parameters, its channels (``axes.py``) and its name.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from snnjax._checks import check_examples, check_function, check_leaves
from snnjax._trees import is_floating
from snnjax.network.affine import ConversionError, check, is_operator
from snnjax.network.axes import Avals, axes_of_maximum, channel_axis
from snnjax.network.batch import Position, batch_first, batch_positions
from snnjax.network.encoders import with_encoders
from snnjax.network.equations import Equation, Network, shape_of, spread_out
from snnjax.network.evaluate import Rule, evaluate
from snnjax.network.jaxprs import CUSTOM, REMAT, Program, flatten, without_site
from snnjax.network.names import SiteNames, paths_of
from snnjax.network.operators import (
    with_operators,
    without_gates,
    without_inner_pools,
)
from snnjax.network.sites import Sites
from snnjax.network.ways import live


def sites(fn: Callable, params: chex.ArrayTree, x: chex.ArrayTree) -> Sites:
    """Where neurons would fire: name, kind, shape, depth and parameters of each site.

    Args:
        fn: network, ``fn(params, x) -> outputs``; each output has the batch first.
        params: its parameters, any pytree of arrays.
        x: [B, ...], or a ``jax.ShapeDtypeStruct``: only shape and type are used. A
            pytree of arrays if the network takes several, tokens and masks among them.

    Returns:
        The sites in order of execution; ``print`` shows them as a table.

    Raises:
        snnjax.ConversionError: with every operation that cannot be converted, its
            path and the remedy.
        ValueError: x is empty, of bytes, or has no batch axis.

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

    The rule is called at every site. A ReLU and an encoder have no operands, a clipped
    ReLU its maximum, a quantized one its maximum and its levels; a max-pool or another
    operator has its other inputs and, last, the function itself, and may return a
    tuple. `identity` is the rule of the ANN itself (bit for bit, if both or neither are
    compiled); call it where yours does not apply.

    >>> import jax, jax.numpy as jnp
    >>> from snnjax.network import identity
    >>> def binary(site, x, *operands):
    ...     if not site.fires:
    ...         return identity(site, x, *operands)
    ...     return jnp.where(x > 1, 1.0, 0.0)
    >>> fn = with_activation(lambda w, x: jax.nn.relu(w * x), binary)
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


_FLOATING = ("bfloat16", "float16", "float32")


def in_dtype(fn: Callable, dtype: Any) -> Callable:
    """``fn`` computed in another floating type, e.g. bfloat16; outputs are float32.

    Parameters and x are cast inside, so the caller's own stay as they are. Membranes,
    thresholds and fits are float32 in any case. Give the result to `snnjax.sites`,
    `snnjax.convert`, `snnjax.spiking` and `snnjax.measure` alike: an SNN is fitted to
    the rounding too. For training set ``dtype`` on the layers instead, since running
    averages need float32.

    >>> import jax, jax.numpy as jnp
    >>> fn = in_dtype(lambda w, x: jax.nn.relu(x @ w), jnp.bfloat16)
    >>> print(fn(jnp.ones((1, 1)), jnp.array([[1.001]])))
    [[1.]]
    """
    try:  # jnp.dtype(None) would be float64
        allowed = dtype is not None and str(jnp.dtype(dtype)) in _FLOATING
    except TypeError:
        allowed = False
    if not allowed:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(_FLOATING)}")

    def cast(tree, to):
        return jax.tree.map(lambda a: jnp.asarray(a, to) if is_floating(a) else a, tree)

    @functools.wraps(fn)
    def computed(params, x, **options):
        return cast(fn(cast(params, dtype), cast(x, dtype), **options), jnp.float32)

    return computed


def capture(
    fn: Callable,
    params: chex.ArrayTree,
    x: Any,
    *,
    affine: bool = True,
    has_aux: bool = False,
    inline_all: bool = False,
) -> Network:
    """Trace ``fn``; check that it is affine between its sites, or gather operators.

    Args:
        affine: False allows anything between the sites, as direct training may.
        has_aux: the function returns (outputs, aux); aux need not have a batch axis.
        inline_all: no call is left among the equations, with or without a site.

    Raises: as `sites`.
    """
    check_function(fn)
    check_leaves(params)
    check_examples(x)
    closed, result = _trace(fn, params, x)
    tree = jax.tree_util.tree_structure(result)
    inputs = len(jax.tree_util.tree_leaves(x))
    program = _flattened(closed, inputs)
    program = (_with_operators if affine else _with_sites_only)(program)
    inlined, axes = _network_of(program, params, tree)
    answers = _without_aux(result) if has_aux else result
    try:
        check(inlined, len(jax.tree_util.tree_leaves(answers)), affine=affine)
    except ConversionError as error:
        if any(len(leaf.shape) == 1 for leaf in jax.tree_util.tree_leaves(x)):
            error.add_note(
                f"Its x has {_described(x)}, which is read as a batch of single "
                "numbers. Perhaps the batch axis is missing: x is [B, ...], and a "
                "sequence is [T, B, ...]."
            )
        if not has_aux and isinstance(result, tuple) and len(result) == 2:
            error.add_note(
                "The network returns a pair. If that is (outputs, aux), as of a "
                "network in training mode, give has_aux=True to snnjax.spiking or "
                "snnjax.init; all else takes the network in inference mode."
            )
        raise
    # Operators and encoders are those of the equations with every call inlined.
    if inline_all or any(eq.body for eq in inlined.equations):
        return inlined
    # A custom derivative must stay, a remat only where it saves memory. Such a call
    # hides how it moves axes, so those are taken from the other network.
    opaque = CUSTOM if affine else (*CUSTOM, *REMAT)
    program = _with_sites_of(program, _flattened(closed, inputs, opaque))
    network, _ = _network_of(program, params, tree, axes)
    return network


def _flattened(closed: Any, inputs: int, opaque: Sequence[str] = ()) -> Program:
    """The program of a closed jaxpr; an activation of parameters alone is a number."""
    program = flatten(closed, inputs, opaque)
    dependent = _dependent(program.equations, program.x)
    equations = (
        eq if dependent.intersection(eq.outputs) else without_site(eq)
        for eq in program.equations
    )
    return program._replace(equations=tuple(equations))


def _with_operators(program: Program) -> Program:
    """The program with encoders, and what is not affine in operators."""
    program = without_gates(program, _dependent(program.equations, program.x))
    for rewrite in (with_encoders, without_inner_pools, with_operators):
        program = _rewritten(program, rewrite)
    return program


def _with_sites_only(program: Program) -> Program:
    """For networks that may hold anything between their sites."""
    return _rewritten(program, without_inner_pools)


def _with_sites_of(inlined: Program, program: Program) -> Program:
    """The program, but no site that the inlined one has not."""
    names = {eq.place.name for eq in inlined.equations if eq.site is not None}
    equations = (
        without_site(eq) if eq.site and eq.site.name not in names else eq
        for eq in program.equations
    )
    return program._replace(equations=tuple(equations))


def _rewritten(program: Program, rewrite: Callable) -> Program:
    """The program after a pass that asks which equations are affine."""
    dependent = _dependent(program.equations, program.x)
    not_affine = functools.partial(
        is_operator,
        dependent=dependent,
        live=live(program.equations),
        avals=program.avals,
    )
    return rewrite(program, dependent, not_affine)


def _trace(fn: Callable, params: chex.ArrayTree, x: Any) -> tuple[Any, Any]:
    def anew(params, x):  # JAX would remember what fn itself closed over at first
        return fn(params, x)

    try:
        return jax.make_jaxpr(anew, return_shape=True)(params, x)
    except Exception as error:  # the user's own function failed: say with what
        error.add_note(
            f"snnjax called fn(params, x) with x of {_described(x)}. Pass the network "
            "as fn(params, x) -> outputs, params as a pytree of arrays, and x with the "
            "batch axis first."
        )
        raise


def _described(x: Any) -> str:
    leaves = jax.tree_util.tree_leaves(x)
    return ", ".join(f"shape {tuple(a.shape)} and dtype {a.dtype}" for a in leaves)


def _without_aux(result: Any) -> Any:
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            f"has_aux=True needs fn to return (outputs, aux); found "
            f"{jax.tree_util.tree_structure(result)}. Return a pair, as a network in "
            "training mode does, or leave out has_aux"
        )
    return result[0]


# ------------------------------------------------------ passes over the equations


class _Axes(NamedTuple):
    """Axes as the network with all calls inlined shows them.

    Attributes:
        batches: site number -> where its batch lies.
        channels: site number -> axis of its channels, from the end.
    """

    batches: dict[str, Position]
    channels: dict[str, int]


def _network_of(
    program: Program, params: chex.ArrayTree, tree: Any, axes: _Axes | None = None
) -> tuple[Network, _Axes]:
    """The network of a program, and its axes.

    Args:
        program: the function, flattened.
        params: whose paths name the parameters.
        tree: structure of the function's result.
        axes: of the same function with all calls inlined; by default this program is
            that, and its own are taken.
    """
    avals, x = program.avals, program.x
    positions = axes.batches if axes else batch_positions(program.equations, avals, x)
    batch = avals[x[0]].shape[0]
    equations = batch_first(program.equations, avals, batch, positions)
    dependent = _dependent(equations, x)
    depths = _depths(equations, avals)
    parameters = dict(zip(program.parameters, paths_of(params), strict=True))
    direct, reach = _reach(equations, parameters)
    if axes is None:
        channels = _channels(equations, dependent, avals)
        sites = [eq for eq in equations if eq.site is not None]
        own = {eq.place.name: _site_channel(eq, channels, avals) for eq in sites}
        axes = _Axes(positions, own)
    names = SiteNames(tuple(equations), direct, parameters, avals)
    sizes = {v: math.prod(shape_of(avals, v)) for v in parameters}
    feeds = {}
    for i, eq in enumerate(equations):
        if eq.site is None:
            continue
        site = eq.site._replace(
            name=names.of(i),
            # A kernel before its bias, whatever their paths are.
            parameters=tuple(
                parameters[v] for v in sorted(direct[i], key=lambda v: (-sizes[v], v))
            ),
            depth=depths[eq.outputs[0]],
            channel=axes.channels[eq.site.name],
            own_maxima=bool(axes_of_maximum(eq, avals)),
        )
        equations[i] = eq._replace(site=site)
        if site.fires:
            feeds[site.name] = tuple(sorted(direct[i]))
    outputs = [reach.get(v, frozenset()) for v in program.outputs if isinstance(v, int)]
    operands = [direct[i] for i, eq in enumerate(equations) if eq.body]
    network = Network(
        equations=tuple(equations),
        avals=avals,
        parameters=parameters,
        x=x,
        constants=program.constants,
        outputs=program.outputs,
        tree=tree,
        sites=Sites(eq.site for eq in equations if eq.site is not None),
        depths=depths,
        dependent=dependent,
        feeds=feeds,
        readout=frozenset().union(*outputs),
        operands=frozenset().union(*operands),
    )
    return network, axes


def _dependent(equations: Sequence[Equation], x: Iterable[int]) -> frozenset[int]:
    """Variables that depend on these, those within operators too."""
    dependent = set(x)
    for eq in spread_out(equations):
        if dependent.intersection(eq.variables):
            dependent.update(eq.outputs)
    return frozenset(dependent)


def _depths(equations: Sequence[Equation], avals: Avals) -> dict[int, int]:
    """Variable -> number of firing sites on the longest way to it."""
    depths = dict.fromkeys(avals, 0)
    for eq in equations:
        depth = max((depths[v] for v in eq.variables), default=0) + eq.fires
        depths.update(dict.fromkeys(eq.outputs, depth))
    return depths


def _reach(
    equations: Sequence[Equation], parameters: dict[int, str]
) -> tuple[list[frozenset[int]], dict[int, frozenset[int]]]:
    """Parameters that reach each equation, and each variable, without passing a site
    that fires or an operator."""
    reach = {v: frozenset([v]) for v in parameters}
    direct = []
    for eq in equations:
        parts = (reach.get(v, frozenset()) for v in eq.variables)
        direct.append(frozenset().union(*parts))
        passed = frozenset() if eq.fires or eq.body else direct[-1]
        reach.update(dict.fromkeys(eq.outputs, passed))
    return direct, reach


def _channels(
    equations: Sequence[Equation], dependent: frozenset[int], avals: Avals
) -> dict[int, int]:
    """Variable -> axis that counts its channels, as far as that is known."""
    channels: dict[int, int] = {}
    for eq in spread_out(equations):
        if dependent.intersection(eq.variables):
            axis = channel_axis(eq, dependent, avals, channels)
            if axis is not None:
                channels.update(dict.fromkeys(eq.outputs, axis))
    return channels


def _site_channel(eq: Equation, channels: dict[int, int], avals: Avals) -> int:
    """The axis along which a site is fitted, from the end; -1 if it is unknown.

    Where a clipped ReLU has a maximum for each index of one axis, it is that axis.
    """
    if eq.place.signed:
        return -1
    own = axes_of_maximum(eq, avals)
    batch = -len(avals[eq.outputs[0]].shape)
    if len(own) == 1 and batch not in own:
        return own.pop()
    axis = channels.get(eq.outputs[0])
    return -1 if axis is None else axis + batch
