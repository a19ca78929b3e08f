"""Names, parameters, depths and channels of sites, by their place in the network.

A site has the name of its module, e.g. ``Net/hidden/relu``. Without a module, it has
that of the parameters that reach it. Equal names are numbered.

A product with weights makes the channels of a value, along one axis. Later operations
move this axis, or merge it with another one. Thresholds are per channel.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import chex

from snnjax._trees import common_path, distinct, is_kernel, paths_of
from snnjax.network.capture.facts import Facts, axes_of_maximum
from snnjax.network.capture.jaxprs import Program
from snnjax.network.capture.primitives import moved
from snnjax.network.equations import Avals, Equation, Network, shape_of, spread_out
from snnjax.network.sites import Sites

# Kind of a site -> the last part of its name, where the two differ.
_KINDS = {"max-pool": "max_pool", "clipped relu": "relu"}


class _Weights(NamedTuple):
    """Where a network's parameters are used.

    They are behind an equation or a variable if they reach it without passing a site
    that fires, or an operator.

    Attributes:
        equations: of the network.
        paths: variable of each parameter -> its path.
        avals: variable -> shape and dtype.
        behind_equations: for each equation, in order, the parameters behind it.
        behind_variables: variable -> parameters behind it.
        first_uses: variable -> number of the first equation that reads it.
    """

    equations: Sequence[Equation]
    paths: Mapping[int, str]
    avals: Avals
    behind_equations: list[frozenset[int]]
    behind_variables: dict[Any, frozenset[int]]
    first_uses: dict[int, int]

    def paths_behind(self, i: int) -> tuple[str, ...]:
        """Paths of the parameters behind equation i, the largest parameters first.

        A kernel is then before its bias. Parameters of one size keep their order.
        """

        def negative_size(v: int) -> int:
            return -math.prod(shape_of(self.avals, v))

        parameters = sorted(self.behind_equations[i])
        parameters.sort(key=negative_size)
        return tuple(self.paths[v] for v in parameters)

    def common_path(self, parameters: Iterable[int]) -> str:
        """The path that parameters have in common, "" if there is none."""
        return common_path([self.paths[v] for v in sorted(parameters)])

    def last_used(self, parameters: Iterable[int]) -> str:
        """The path of the parameter whose first use is the latest."""
        return self.paths[max(parameters, key=lambda v: self.first_uses[v])]


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
    weights = _weights(equations, parameters, avals)
    depths = _depths(equations)
    channels = _channels(facts)
    feeds = {}
    for i, name in _names(weights).items():
        eq = equations[i]
        site = eq.place._replace(
            name=name,
            parameters=weights.paths_behind(i),
            depth=depths[eq.outputs[0]],
            channel=_site_channel(eq, channels, facts),
            maximum_per_channel=bool(axes_of_maximum(eq, avals)),
        )
        equations[i] = eq._replace(site=site)
        if site.fires:
            feeds[name] = tuple(sorted(weights.behind_equations[i]))
    # A fit of a site needs to know which weights reach an output or an operator, too:
    # it would change more than the site's own current.
    readout: set[int] = set()
    for v in program.outputs:
        readout.update(weights.behind_variables.get(v, ()))
    operands: set[int] = set()
    for eq, parameters_behind in zip(equations, weights.behind_equations, strict=True):
        is_operator = eq.body is not None
        if is_operator:
            operands.update(parameters_behind)
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
        readout=frozenset(readout),
        operands=frozenset(operands),
    )


def _depths(equations: Sequence[Equation]) -> dict[int, int]:
    """Variable -> number of firing sites on the longest way from x to it."""
    depths: dict[int, int] = {}
    for eq in equations:
        depth = max((depths.get(v, 0) for v in eq.variables), default=0)
        if eq.fires:
            depth += 1
        depths.update(dict.fromkeys(eq.outputs, depth))
    return depths


def _weights(
    equations: Sequence[Equation], parameters: Mapping[int, str], avals: Avals
) -> _Weights:
    """Where the parameters of these equations are used.

    Args:
        parameters: variable -> path.
    """
    behind_variables: dict[Any, frozenset[int]] = {}
    for v in parameters:
        behind_variables[v] = frozenset([v])
    behind_equations = []
    first_uses: dict[int, int] = {}
    for i, eq in enumerate(equations):
        behind: set[int] = set()
        for v in eq.variables:
            first_uses.setdefault(v, i)
            behind.update(behind_variables.get(v, ()))
        behind_equations.append(frozenset(behind))
        # Weights before a spike or an operator are not those of the next site: a fit of
        # that site may not change them.
        if eq.fires or eq.body:
            behind = set()
        behind_variables.update(dict.fromkeys(eq.outputs, frozenset(behind)))
    return _Weights(
        equations=equations,
        paths=parameters,
        avals=avals,
        behind_equations=behind_equations,
        behind_variables=behind_variables,
        first_uses=first_uses,
    )


# ----------------------------------------------------------------------------- names


def _names(weights: _Weights) -> dict[int, str]:
    """Number of each equation with a site -> the site's name, a path.

    The path is that of the module, as ``Net/hidden``, and the kind of the site.
    """
    names = {}
    for i, eq in enumerate(weights.equations):
        if eq.site is None:
            continue
        parts = []
        has_module = False
        for part in eq.path.split("/"):
            if part.startswith("["):
                # The turns of a scan over layers are "[0]", "[1]", ...: no modules.
                parts.append(part[1:-1])
            elif part and not part.startswith("eqx."):  # a class of Equinox itself
                parts.append(part)
                has_module = True
        if not has_module:
            module = _module_by_weights(i, weights)
            if module:
                parts.append(module)
        parts.append(_KINDS.get(eq.site.kind, eq.site.kind))
        names[i] = "/".join(parts)
    return dict(zip(names, distinct(list(names.values())), strict=True))


def _module_by_weights(i: int, weights: _Weights) -> str:
    """The path that stands for the module of equation i, by its weights; "" for none.

    It is the path that all weights behind the equation have in common, or that of the
    module of the kernel that is used last.
    """
    parameters = weights.behind_equations[i]
    module = weights.common_path(parameters)
    if not module:
        kernels = [v for v in parameters if is_kernel(weights.avals[v])]
        if kernels:
            path = weights.last_used(kernels)
            module = _folder(path) or path
    eq = weights.equations[i]
    if eq.body and parameters:
        # Behind the operator of a residual block are the parameters of all earlier
        # blocks too, since the residual sum carries them. The path that they have in
        # common is short. The parameter that is used last lies in this block: its
        # folder is the module, if it is deeper than the common path.
        block = _folder(weights.last_used(parameters))
        if block.count("/") > module.count("/"):
            module = block
    if not module and eq.place.is_encoder:
        module = _first_multiplier(i, weights)
    return module


def _folder(path: str) -> str:
    """The path without its last part."""
    return path.rpartition("/")[0]


def _first_multiplier(i: int, weights: _Weights) -> str:
    """The path of the weights that the output of equation i meets first; "" for none.

    An encoder has no weights behind it, and takes the name of those before it.
    """
    reached_values = set(weights.equations[i].outputs)
    for number in range(i + 1, len(weights.equations)):
        eq = weights.equations[number]
        if reached_values.intersection(eq.variables):
            if weights.behind_equations[number]:
                return weights.common_path(weights.behind_equations[number])
            reached_values.update(eq.outputs)
    return ""


# -------------------------------------------------------------------------- channels


def _channels(facts: Facts) -> dict[int, int]:
    """Variable -> axis that counts its channels, 0, 1, ..; without those not known."""
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
    """The axis of a matrix product that is the last free axis of its weights.

    The result has the batch axes first, then the free axes of the first and those of
    the second operand. An axis is free if it is neither a batch axis nor contracted.
    None if no operand is weights with a free axis.
    """
    contracted, batch = eq.options["dimension_numbers"]
    axis_count = len(batch[0])  # axes of the result so far
    channel = None
    for side, v in enumerate(eq.inputs[:2]):
        paired_count = len(contracted[side]) + len(batch[side])
        free_count = len(shape_of(facts.program.avals, v)) - paired_count
        axis_count += free_count
        if v not in facts.dependent and free_count > 0:
            channel = axis_count - 1
    return channel


def _site_channel(eq: Equation, channels: dict[int, int], facts: Facts) -> int:
    """The axis of a site's channels, from the end: -1, ..; -1 if it is unknown.

    Where a clipped ReLU has a maximum for each index of one axis, it is that axis. That
    of an encoder is the axis which the convolution behind it sums over.

    Args:
        channels: variable -> channel axis, 0, 1, ..
    """
    if eq.place.is_encoder:
        return _encoder_channel(eq, facts)
    avals = facts.program.avals
    output = eq.outputs[0]
    maximum_axes = sorted(axes_of_maximum(eq, avals))
    if len(maximum_axes) == 1 and -maximum_axes[0] <= len(eq.place.shape):
        return maximum_axes[0]
    if output not in channels:
        return -1
    return channels[output] - len(avals[output].shape)


def _encoder_channel(encoder: Equation, facts: Facts) -> int:
    """The axis that the convolution behind an encoder sums over, from the end.

    -1 if no convolution stands there.
    """
    shape = encoder.place.shape
    for reader in facts.successors(encoder):
        # The capture reshapes spikes, to drop an axis of size 1 before all others.
        readers = facts.successors(reader) if reader.name == "reshape" else [reader]
        for product in readers:
            if product.name != "conv_general_dilated":
                continue
            image_shape = shape_of(facts.program.avals, product.inputs[0])
            _, channel_axis, *_ = product.options["dimension_numbers"].lhs_spec
            if image_shape[-len(shape) :] == shape:
                return channel_axis - len(image_shape)
    return -1
