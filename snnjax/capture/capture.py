"""Capture: any ``fn(params, x)`` becomes a `Network`, or is refused with reasons.

trace       fn becomes numbered equations, with every call inlined (``jaxprs.py``)
mix         traces of two and of three examples show where they meet (``mixing.py``)
recognize   ReLUs and max-pools become sites (``recognize.py``)
rewrite     encoders and operators take their places
annotate    every site gets its name, parameters, depth and channels
one         x, sites and outputs lose their axis of one example (``examples.py``)
check       what is left between the sites is affine, or the network is refused
fold        calls that hold no site become calls again, as fn wrote them
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snnjax._checks import called_as, check_examples, check_function, check_leaves
from snnjax._examples import batch_of, shapes_of
from snnjax._trees import is_floating, paths_of
from snnjax.capture.axes import Avals, axes_of_maximum, channel_axis
from snnjax.capture.check import (
    ConversionError,
    check,
    check_has_batch,
    hard_coded,
)
from snnjax.capture.encoders import with_encoders
from snnjax.capture.examples import of_one_example, with_mapped_inputs
from snnjax.capture.facts import Facts
from snnjax.capture.jaxprs import CUSTOM, REMAT, Program, flatten, folded
from snnjax.capture.mixing import Growth
from snnjax.capture.names import site_names
from snnjax.capture.operators import with_operators, without_inner_pools
from snnjax.capture.recognize import with_sites
from snnjax.capture.trace import trace
from snnjax.network.equations import Equation, Network, shape_of, spread_out
from snnjax.network.evaluate import Rule, evaluate
from snnjax.network.sites import Sites


@called_as("snnjax.sites(fn, params, x)")
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
        is_allowed = dtype is not None and str(jnp.dtype(dtype)) in _FLOATING
    except TypeError:
        is_allowed = False
    if not is_allowed:
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
    has_aux: bool = False,
    inline_all: bool = False,
) -> Network:
    """The network that a function computes, checked: any rule may stand at its sites.

    Args:
        has_aux: the function is in training mode and returns (outputs, aux). Aux need
            not have a batch axis, and anything may stand between the sites.
        inline_all: no call is left among the equations, with or without a site.

    Raises: as `sites`.
    """
    check_function(fn)
    check_leaves(params)
    check_examples(x)
    # In training mode a norm takes its statistics over all examples, so the network is
    # that of the whole batch; otherwise it is that of one example.
    size = batch_of(x) if has_aux else 1
    program, result = _program(fn, params, x, size)
    few = program if has_aux else _program(fn, params, x, 2)[0]
    growth = Growth(few, _program(fn, params, x, 2 * size if has_aux else 3)[0])
    if has_aux:  # anything may stand between the sites
        program = with_sites(program, growth.statistics())
        program = without_inner_pools(program)
        answers, mixing = _without_aux(result), []
    else:
        program = with_encoders(with_sites(program))
        program = with_operators(without_inner_pools(program))
        program = of_one_example(program, few)
        answers, mixing = result, [*growth.problems()]
    network = _annotated(program, params, jax.tree_util.tree_structure(result))
    facts = Facts(network)
    wrong_outputs = growth.wrong_outputs(len(jax.tree_util.tree_leaves(answers)))
    try:
        check(network, facts, x, mixing, wrong_outputs, affine=not has_aux)
    except ConversionError as error:
        if not has_aux and isinstance(result, tuple) and len(result) == 2:
            error.add_note(
                "The network returns a pair. If that is (outputs, aux), as of a "
                "network in training mode, give has_aux=True to snnjax.spiking or "
                "snnjax.init; all else takes the network in inference mode."
            )
        raise
    equations = network.equations
    if not inline_all and not facts.leaving:  # an operator may hold parts of calls
        names = (*CUSTOM, *REMAT) if has_aux else CUSTOM
        equations = folded(equations, program.calls, names)
    if not has_aux:
        equations = [with_mapped_inputs(eq, facts.dependent) for eq in equations]
    return network._replace(equations=tuple(equations))


def _program(
    fn: Callable, params: chex.ArrayTree, x: chex.ArrayTree, size: int
) -> tuple[Program, Any]:
    """The equations of fn for so many examples, and the shapes of its result."""
    try:
        closed_jaxpr, result = trace(fn, params, shapes_of(x, size))
    except Exception as error:
        failure = error
    else:
        return flatten(closed_jaxpr, len(jax.tree.leaves(params))), result
    trace(fn, params, shapes_of(x))  # a mistake is told with the user's own x
    check_has_batch(x)
    raise hard_coded(x, size, failure)


def _without_aux(result: Any) -> Any:
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            f"has_aux=True needs fn to return (outputs, aux); found "
            f"{jax.tree_util.tree_structure(result)}. Return a pair, as a network in "
            "training mode does, or leave out has_aux"
        )
    return result[0]


# ------------------------------------------------------ what the whole network shows


def _annotated(program: Program, params: chex.ArrayTree, tree: Any) -> Network:
    """The network of a program, whose sites know their place in it."""
    avals, equations = program.avals, list(program.equations)
    facts = Facts(program)
    depths = _depths(equations, avals)
    parameters = dict(zip(program.parameters, paths_of(params), strict=True))
    direct, of_values = _parameters_behind(equations, parameters)
    channels = _channels(equations, facts.dependent, avals)
    names = site_names(equations, direct, parameters, avals)
    sizes = {v: math.prod(shape_of(avals, v)) for v in parameters}
    feeds = {}
    for i, name in names.items():
        eq = equations[i]
        # A kernel before its bias, whatever their paths are.
        largest_first = sorted(direct[i], key=lambda v: (-sizes[v], v))
        site = eq.place._replace(
            name=name,
            parameters=tuple(parameters[v] for v in largest_first),
            depth=depths[eq.outputs[0]],
            channel=_site_channel(eq, channels, avals),
            maximum_per_channel=bool(axes_of_maximum(eq, avals)),
        )
        equations[i] = eq._replace(site=site)
        if site.fires:
            feeds[name] = tuple(sorted(direct[i]))
    ends = [v for v in program.outputs if isinstance(v, int)]
    outputs = [of_values.get(v, frozenset()) for v in ends]
    operands = [direct[i] for i, eq in enumerate(equations) if eq.body]
    return Network(
        equations=tuple(equations),
        avals=avals,
        parameters=parameters,
        x=program.x,
        constants=program.constants,
        outputs=program.outputs,
        tree=tree,
        sites=Sites(eq.site for eq in equations if eq.site is not None),
        dependent=facts.dependent,
        feeds=feeds,
        readout=frozenset().union(*outputs),
        operands=frozenset().union(*operands),
    )


def _depths(equations: Sequence[Equation], avals: Avals) -> dict[int, int]:
    """Variable -> number of firing sites on the longest way to it."""
    depths = dict.fromkeys(avals, 0)
    for eq in equations:
        depth = max((depths[v] for v in eq.variables), default=0) + eq.fires
        depths.update(dict.fromkeys(eq.outputs, depth))
    return depths


def _parameters_behind(
    equations: Sequence[Equation], parameters: Mapping[int, str]
) -> tuple[list[frozenset[int]], dict[int, frozenset[int]]]:
    """The parameters behind each equation, and behind each variable.

    They reach it without passing a site that fires, or an operator.
    """
    of_values = {v: frozenset([v]) for v in parameters}
    direct = []
    for eq in equations:
        parts = (of_values.get(v, frozenset()) for v in eq.variables)
        direct.append(frozenset().union(*parts))
        # Weights before a spike or an operator are not those of the next site: a fit of
        # that site may not change them.
        onward = frozenset() if eq.fires or eq.body else direct[-1]
        of_values.update(dict.fromkeys(eq.outputs, onward))
    return direct, of_values


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
    if eq.place.is_encoder:
        return -1
    own = axes_of_maximum(eq, avals)
    if len(own) == 1 and -own.copy().pop() <= len(eq.place.shape):
        return own.pop()
    axis = channels.get(eq.outputs[0])
    return -1 if axis is None else axis - len(avals[eq.outputs[0]].shape)
