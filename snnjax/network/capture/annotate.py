"""What a site learns of its place: name, parameters, depth and channels.

A site has the name of its module, e.g. ``Net/hidden/relu``. Without a module, it has
that of the parameters that reach it. Equal names are numbered.

Products with weights make channels. Later operations move the channel axis, or merge it
with another axis. Thresholds are per channel.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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
    """The network of a program, whose sites know their place in it.

    Args:
        params: the parameters that fn was traced with.
        tree: structure of the function's result.
    """
    avals = program.avals
    equations = list(program.equations)
    facts = Facts(program)
    parameters = dict(zip(program.parameters, paths_of(params), strict=True))
    equation_weights, variable_weights = _weights_behind(equations, parameters)
    depths = _depths(equations)
    channels = _channels(facts)
    names = _names(equations, equation_weights, parameters, avals)
    feeds = {}
    for i, name in names.items():
        eq = equations[i]
        site = eq.place._replace(
            name=name,
            parameters=_paths(equation_weights[i], parameters, avals),
            depth=depths[eq.outputs[0]],
            channel=_site_channel(eq, channels, avals),
            maximum_per_channel=bool(axes_of_maximum(eq, avals)),
        )
        equations[i] = eq._replace(site=site)
        if site.fires:
            feeds[name] = tuple(sorted(equation_weights[i]))
    # Weights may reach an output or an operator without passing a site that fires. A
    # fit of a site needs to know them, since it would change more than its own current.
    readout_weights: set[int] = set()
    for v in program.outputs:
        readout_weights.update(variable_weights.get(v, ()))
    operator_weights: set[int] = set()
    for eq, weights in zip(equations, equation_weights, strict=True):
        is_operator = eq.body is not None
        if is_operator:
            operator_weights.update(weights)
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
        readout=frozenset(readout_weights),
        operands=frozenset(operator_weights),
    )


def _depths(equations: Sequence[Equation]) -> dict[int, int]:
    """Variable -> number of firing sites on the longest way to it; 0 if it is none."""
    depths: dict[int, int] = {}
    for eq in equations:
        depth = max((depths.get(v, 0) for v in eq.variables), default=0)
        if eq.fires:
            depth += 1
        depths.update(dict.fromkeys(eq.outputs, depth))
    return depths


def _weights_behind(
    equations: Sequence[Equation], parameters: Mapping[int, str]
) -> tuple[list[frozenset[int]], dict[Any, frozenset[int]]]:
    """The parameters behind each equation, and behind each variable.

    They reach it without passing a site that fires, or an operator.
    """
    variable_weights: dict[Any, frozenset[int]] = {}
    for v in parameters:
        variable_weights[v] = frozenset([v])
    equation_weights = []
    for eq in equations:
        weights: set[int] = set()
        for v in eq.variables:
            weights.update(variable_weights.get(v, ()))
        equation_weights.append(frozenset(weights))
        # Weights before a spike or an operator are not those of the next site: a fit of
        # that site may not change them.
        if eq.fires or eq.body:
            weights = set()
        variable_weights.update(dict.fromkeys(eq.outputs, frozenset(weights)))
    return equation_weights, variable_weights


def _paths(
    weights: frozenset[int], parameters: Mapping[int, str], avals: Avals
) -> tuple[str, ...]:
    """Paths of parameters, the largest first, so that a kernel is before its bias."""

    def order(v: int) -> tuple[int, int]:
        size = math.prod(shape_of(avals, v))
        return -size, v

    return tuple(parameters[v] for v in sorted(weights, key=order))


# ----------------------------------------------------------------------------- names


def _names(
    equations: Sequence[Equation],
    equation_weights: Sequence[frozenset[int]],
    parameters: Mapping[int, str],
    avals: Avals,
) -> dict[int, str]:
    """Number of each equation with a site -> the site's name.

    Args:
        equation_weights: parameters behind each equation.
        parameters: variable -> path.
    """
    first_use: dict[int, int] = {}
    for i, eq in enumerate(equations):
        for v in eq.variables:
            first_use.setdefault(v, i)

    def folder(path: str) -> str:
        """The path without its last part."""
        return path.rpartition("/")[0]

    def last_used(variables: Iterable[int]) -> str:
        """The path of the parameter whose first use is the latest."""
        return parameters[max(variables, key=lambda v: first_use[v])]

    def module_of_weights(weights: frozenset[int]) -> str:
        """The path above all of these, or above the kernel that is used last."""
        common = common_path([parameters[v] for v in sorted(weights)])
        kernels = [v for v in weights if is_kernel(avals[v])]
        if common or not kernels:
            return common
        path = last_used(kernels)
        return folder(path) or path

    def first_multiplier(i: int) -> str:
        """The parameter by which the output of equation ``i`` is multiplied first."""
        reached_values = set(equations[i].outputs)
        for eq, weights in zip(
            equations[i + 1 :], equation_weights[i + 1 :], strict=True
        ):
            if reached_values.intersection(eq.variables):
                if weights:
                    return common_path([parameters[v] for v in sorted(weights)])
                reached_values.update(eq.outputs)
        return ""

    def module_without_scope(i: int, eq: Equation) -> str:
        """What stands for the module of a function that names none."""
        weights = equation_weights[i]
        module = module_of_weights(weights)
        if eq.body and weights:
            # Behind the operator of a residual block are the parameters of all earlier
            # blocks too, since the residual sum carries them. The path that they have
            # in common is short. The parameter that is used last lies in this block:
            # its folder is the module, if it is deeper than the common path.
            block = folder(last_used(weights))
            is_deeper = block.count("/") > module.count("/")
            if is_deeper:
                module = block
        if not module and eq.place.is_encoder:
            module = first_multiplier(i)
        return module

    names = {}
    for i, eq in enumerate(equations):
        if eq.site is None:
            continue
        # Equinox gives the names of its own classes.
        parts = [
            part for part in eq.path.split("/") if part and not part.startswith("eqx.")
        ]
        # The turns of a scan over layers are "[0]", "[1]", ...: they name no module.
        has_module = False
        for number, part in enumerate(parts):
            if part.startswith("["):
                parts[number] = part[1:-1]
            else:
                has_module = True
        if not has_module:
            module = module_without_scope(i, eq)
            if module:
                parts.append(module)
        parts.append(_KINDS.get(eq.place.kind, eq.place.kind))
        names[i] = "/".join(parts)
    return dict(zip(names, distinct(list(names.values())), strict=True))


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
    if eq.name == "conv_general_dilated":
        # An out_spec lists the axes of the examples, of the channels and of the image.
        _, channel_axis, *_ = eq.options["dimension_numbers"].out_spec
        return channel_axis
    if eq.name == "dot_general":
        return _dot_channel(eq, facts)
    source = next((v for v in eq.variables if v in channels), None)
    if source is None:
        return None
    avals = facts.program.avals
    # A reshape may leave several axes that could be the channels, such as an axis
    # of size 1 next to another. Channels are usually the last.
    return moved(
        eq.name,
        eq.options,
        axis=channels[source],
        shape=avals[source].shape,
        new_shape=avals[eq.outputs[0]].shape,
        last=True,
    )


def _dot_channel(eq: Equation, facts: Facts) -> int | None:
    """The last free axis of the weights, where a product puts it.

    The result has the axes of the batch first, then the free axes of both operands.
    """
    contracted, batch = eq.options["dimension_numbers"]
    axis = len(batch[0])
    channel = None
    for side, v in enumerate(eq.inputs[:2]):
        paired_axes = {*contracted[side], *batch[side]}
        free_count = len(shape_of(facts.program.avals, v)) - len(paired_axes)
        axis += free_count
        if v not in facts.dependent and free_count > 0:
            channel = axis - 1
    return channel


def _site_channel(eq: Equation, channels: dict[int, int], avals: Avals) -> int:
    """The axis along which a site is fitted, from the end; -1 if it is unknown.

    Where a clipped ReLU has a maximum for each index of one axis, it is that axis.
    """
    if eq.place.is_encoder:
        return -1
    maximum_axes = sorted(axes_of_maximum(eq, avals))
    if len(maximum_axes) == 1 and -maximum_axes[0] <= len(eq.place.shape):
        return maximum_axes[0]
    output = eq.outputs[0]
    if output not in channels:
        return -1
    return channels[output] - len(avals[output].shape)
