"""What a site learns of its place: name, parameters, depth and channels.

A site has the name of its module, e.g. ``Net/hidden/relu``. Without a module, it has
that of the parameters that reach it. Equal names are numbered.

Products with weights make channels. Later operations move the channel axis, or merge it
with another axis. Thresholds are per channel.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import chex

from snnjax._trees import common_path, distinct, is_kernel, paths_of
from snnjax.network.capture.facts import Facts, axes_of_maximum
from snnjax.network.capture.jaxprs import Program
from snnjax.network.capture.primitives import moved
from snnjax.network.equations import Avals, Equation, Network, shape_of, spread_out
from snnjax.network.sites import Sites

_KINDS = {"max-pool": "max_pool", "clipped relu": "relu"}


def annotated(program: Program, params: chex.ArrayTree, tree: Any) -> Network:
    """The network of a program, whose sites know their place in it."""
    avals, equations = program.avals, list(program.equations)
    facts = Facts(program)
    depths = dict.fromkeys(avals, 0)  # firing sites on the longest way to a variable
    for eq in equations:
        depth = max((depths[v] for v in eq.variables), default=0) + eq.fires
        depths.update(dict.fromkeys(eq.outputs, depth))
    parameters = dict(zip(program.parameters, paths_of(params), strict=True))
    direct, of_values = _parameters_behind(equations, parameters)
    channels = _channels(facts)
    names = _names(equations, direct, parameters, avals)
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


# ----------------------------------------------------------------------------- names


def _names(
    equations: Sequence[Equation],
    direct: Sequence[frozenset[int]],
    parameters: Mapping[int, str],
    avals: Avals,
) -> dict[int, str]:
    """Number of each equation with a site -> the site's name."""
    first_use: dict[int, int] = {}
    for i, eq in enumerate(equations):
        for v in eq.variables:
            first_use.setdefault(v, i)

    def above(variables: frozenset[int]) -> str:
        """The path above these parameters, or of the kernel that is used last."""
        common = common_path([parameters[v] for v in sorted(variables)])
        kernels = [v for v in variables if is_kernel(avals[v])]
        if common or not kernels:
            return common
        path = parameters[max(kernels, key=lambda v: first_use[v])]
        return path.rpartition("/")[0] or path

    def reader_of(i: int) -> str:
        """The parameter by which the output of equation ``i`` is multiplied first."""
        reached_values = set(equations[i].outputs)
        for eq, weights in zip(equations[i + 1 :], direct[i + 1 :], strict=True):
            if reached_values.intersection(eq.variables):
                if weights:
                    return common_path([parameters[w] for w in sorted(weights)])
                reached_values.update(eq.outputs)
        return ""

    def name(i: int, eq: Equation) -> str:
        # Equinox gives the names of its own classes.
        parts = eq.path.split("/")
        scope = [part for part in parts if part and not part.startswith("eqx.")]
        if all(part.startswith("[") for part in scope):  # no module, turns of a scan
            inner = above(direct[i])
            if eq.body and direct[i]:  # in a block, behind the sum of all before it
                last = parameters[max(direct[i], key=lambda v: first_use[v])]
                inner = max(inner, last.rpartition("/")[0], key=lambda p: p.count("/"))
            if not inner and eq.place.is_encoder:
                inner = reader_of(i)
            scope += [inner] if inner else []
        scope = [part[1:-1] if part.startswith("[") else part for part in scope]
        return "/".join([*scope, _KINDS.get(eq.place.kind, eq.place.kind)])

    places = {i: name(i, eq) for i, eq in enumerate(equations) if eq.site is not None}
    return dict(zip(places, distinct(list(places.values())), strict=True))


# -------------------------------------------------------------------------- channels


def _channels(facts: Facts) -> dict[int, int]:
    """Variable -> axis that counts its channels, as far as that is known."""
    channels: dict[int, int] = {}
    for eq in spread_out(facts.equations):
        if facts.dependent.intersection(eq.variables):
            axis = _channel_axis(eq, facts, channels)
            if axis is not None:
                channels.update(dict.fromkeys(eq.outputs, axis))
    return channels


def _channel_axis(eq: Equation, facts: Facts, channels: dict[int, int]) -> int | None:
    """The channel axis of an equation's output; None if it is unknown."""
    name, options, avals = eq.name, eq.options, facts.program.avals
    if name == "conv_general_dilated":
        return options["dimension_numbers"].out_spec[1]
    if name == "dot_general":
        return _dot_channel(eq, facts)
    sources = [v for v in eq.variables if v in channels]
    if not sources:
        return None
    before, after = avals[sources[0]].shape, avals[eq.outputs[0]].shape
    return moved(name, options, channels[sources[0]], before, after, last=True)


def _dot_channel(eq: Equation, facts: Facts) -> int | None:
    """The last free axis of the weights, where a product puts it."""
    contract, batch = eq.options["dimension_numbers"]
    is_of_weights: list[bool] = []  # for each free axis of the result
    for side, v in enumerate(eq.inputs[:2]):
        paired_axes = {*contract[side], *batch[side]}
        free_count = len(shape_of(facts.program.avals, v)) - len(paired_axes)
        is_of_weights += [v not in facts.dependent] * free_count
    if True not in is_of_weights:
        return None
    return len(batch[0]) + max(i for i, weights in enumerate(is_of_weights) if weights)


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
