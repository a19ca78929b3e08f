"""Capture: any ``fn(params, x)`` becomes a `Network`, or is refused with reasons.

The function is traced once and flattened (``jaxprs.py``); with every call inlined it
must be affine in the activations (``affine.py``); its sites get their names, and what
calibration must know of them: depth, parameters, channels (``axes.py``).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from snnjax._checks import check_function, check_images
from snnjax._trees import is_floating, name_of
from snnjax.network.affine import check
from snnjax.network.axes import (
    axes_of_maximum,
    batch_axes,
    batch_first,
    channel_axis,
)
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
from snnjax.network.jaxprs import CUSTOM, REMAT, Program, flatten


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

    The rule meets every site: a ReLU has no operands, a clipped ReLU its maximum, a
    max-pool the function that pools. `identity` is the rule that gives the ANN back
    (bit for bit, if both or neither are compiled); leave to it what yours is not about.

    >>> import jax, jax.numpy as jnp
    >>> from snnjax import identity
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


_COMPUTED = ("bfloat16", "float16", "float32")


def in_dtype(fn: Callable, dtype: Any) -> Callable:
    """``fn`` computed in another floating type, e.g. bfloat16; outputs are float32.

    Parameters and x are cast on the way in, so those that the caller holds stay as they
    are. Membranes, thresholds and fits are float32 in any case. Give the result to
    `sites`, `convert`, `spiking` and `measure` alike: an SNN is fitted to the rounding
    too. For training set ``dtype`` on the layers instead, since running averages need
    float32.

    >>> import jax, jax.numpy as jnp
    >>> fn = in_dtype(lambda w, x: jax.nn.relu(x @ w), jnp.bfloat16)
    >>> print(fn(jnp.ones((1, 1)), jnp.array([[1.001]])))
    [[1.]]
    """
    try:  # jnp.dtype(None) would be float64
        known = dtype is not None and str(jnp.dtype(dtype)) in _COMPUTED
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(_COMPUTED)}")

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
    """Trace ``fn`` and check that it is affine between its sites.

    Args:
        affine: False allows anything between the sites, as direct training may.
        has_aux: the function returns (outputs, aux); aux need not have a batch axis.
        inline_all: no call is left among the equations, with or without a site.

    Raises: as `sites`.
    """
    check_function(fn)
    check_images(x)
    closed, result = _trace(fn, params, x)
    tree = jax.tree_util.tree_structure(result)
    bare, seen = _understood(flatten(closed), params, tree)
    answers = _without_aux(result) if has_aux else result
    check(bare, len(jax.tree_util.tree_leaves(answers)), affine=affine)
    if inline_all:
        return bare
    # A custom derivative must stay, a remat only where it saves memory. What such a
    # call does to the axes is hidden in it, so that is taken from the other network.
    kept = CUSTOM if affine else (*CUSTOM, *REMAT)
    network, _ = _understood(flatten(closed, kept), params, tree, seen)
    return network


def paths_of(params: chex.ArrayTree) -> list[str]:
    """Of all leaves in their order, as `Site.parameters` has them."""
    return [
        _clean(name_of(path))
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]


def _trace(fn, params, x):
    def anew(params, x):  # JAX would remember what fn itself closed over at first
        return fn(params, x)

    try:
        return jax.make_jaxpr(anew, return_shape=True)(params, x)
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


class _Seen(NamedTuple):
    """What is known of axes: site number -> axis of its batch, of its channels.

    Attributes:
        outputs: the axis that counts channels of each.
    """

    batches: dict[str, int]
    channels: dict[str, int]
    outputs: tuple[int, ...]


def _understood(program: Program, params, tree, seen: _Seen | None = None):
    """Name the sites; find what depends on x, how deep, and fed by which parameters.

    Returns:
        The `Network`, and what it shows of axes, unless that is given as ``seen``.
    """
    avals, x = program.avals, program.x
    batches = seen.batches if seen else batch_axes(program.equations, avals, x)
    parameters = dict(zip(program.parameters, paths_of(params), strict=True))
    reach: dict[int, frozenset[int]] = {v: frozenset([v]) for v in parameters}
    dependent, axes, feeds, taken, equations = {x}, {}, {}, {}, []
    channels = dict(seen.channels) if seen else {}
    moved = batch_first(program.equations, avals, batches)
    depths = dict.fromkeys(avals, 0)
    for eq in moved:
        inputs = variables(eq)
        depth = max((depths[v] for v in inputs), default=0)
        direct = frozenset().union(*(reach.get(v, frozenset()) for v in inputs))
        if dependent.intersection(inputs):
            axis = channel_axis(eq, dependent, avals, axes)
            if axis is not None:
                axes.update(dict.fromkeys(eq.outputs, axis))
            dependent.update(eq.outputs)
        elif eq.site is not None:  # an activation of parameters alone is a number
            eq = eq._replace(site=None)
        if eq.site is not None:
            paths = tuple(parameters[v] for v in sorted(direct))
            found = _from_end(eq.outputs[0], axes, avals)
            channel = channels.setdefault(eq.site.name, found)
            eq = _described(eq, paths, depth, channel, avals)
            eq = eq._replace(site=_named(eq, taken))
            depth = eq.place.depth
            if eq.place.fires:
                feeds[eq.place.name] = tuple(sorted(direct))
                direct = frozenset()
        for v in eq.outputs:
            depths[v], reach[v] = depth, direct
        equations.append(eq)
    outputs = tuple(_from_end(v, axes, avals) for v in program.outputs)
    seen = seen or _Seen(batches, channels, outputs)
    read = [reach.get(v, frozenset()) for v in program.outputs if isinstance(v, int)]
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
        dependent=frozenset(dependent),
        feeds=feeds,
        readout=frozenset().union(*read),
        channels=seen.outputs,
    )
    return network, seen


def _described(eq: Equation, paths, depth: int, channel: int, avals) -> Equation:
    """A site with what is known of it; a ReLU6 is a clipped ReLU."""
    site = eq.place
    if site.kind == "relu6":
        site = site._replace(kind="clipped relu")
        eq = eq._replace(inputs=(*eq.inputs, Static(6.0)))
    site = site._replace(
        parameters=paths,
        depth=depth + site.fires,
        channel=channel,
        own_maxima=bool(axes_of_maximum(eq, avals)),
    )
    return eq._replace(site=site)


def _named(eq: Equation, taken: dict[str, int]) -> Site:
    """By its path, or by the parameters that reach it, and numbered if need be."""
    site = eq.place
    kind = "max_pool" if site.kind == "max-pool" else "relu"
    scope = eq.path or common(site.parameters)
    name = f"{scope}/{kind}" if scope else kind
    taken[name] = taken.get(name, -1) + 1
    return site._replace(name=f"{name}_{taken[name]}" if taken[name] else name)


def _from_end(v, channels: dict[int, int], avals) -> int:
    """The axis that counts channels, -1 being the last; -1 too if it is unknown."""
    return channels[v] - len(avals[v].shape) if v in channels else -1


def _clean(path: str) -> str:
    # nnx states end every path in the attribute that holds the array.
    return path.removesuffix("/value").replace("/~/", "/")
