"""`with_products`: one linear map in place of two that follow each other.

    a (W x + b) + c  =  (a W) x + (a b + c)

A map is multiplied into the map that it reads if nothing else reads that one.
BatchNorm, thresholds and shortcuts that choose channels disappear in this way.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from snnjax.deploy.lowering.sums import is_channelwise
from snnjax.deploy.lowering.values import (
    Affine,
    Convolution,
    Dense,
    Node,
    Scale,
    count_readers,
)


def with_products(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """The same network with as few maps as possible; nodes in order of execution."""
    nodes = tuple(nodes)
    reader_counts = count_readers(nodes)  # name of a node -> number of its readers
    results: dict[str, Node] = {}
    # The name of a node that disappeared -> that of the node in its place.
    replacements: dict[str, str] = {}

    def present_name(name: str) -> str:
        while name in replacements:
            name = replacements[name]
        return name

    for node in nodes:
        sources = tuple(map(present_name, node.sources))
        node = dataclasses.replace(node, sources=sources)
        if len(sources) == 1 and reader_counts[sources[0]] == 1:
            # A chip stores every weight, so two small maps may be better than one.
            combined = product(results[sources[0]], node, may_grow=False)
            if combined is not None:
                # It has the name of the first map, and the readers of the second one.
                replacements[node.name] = combined.name
                reader_counts[combined.name] = reader_counts[node.name]
                node = combined
        if _is_identity(node):
            (source,) = node.sources
            replacements[node.name] = source
            # The readers of the identity take its place among those of its source.
            reader_counts[source] += reader_counts[node.name] - 1
            # It is among the results if it is a product with an earlier map.
            results.pop(node.name, None)
        else:
            results[node.name] = node
    return tuple(results.values())


def _is_identity(node: Node) -> bool:
    """Whether a node returns what it reads from its only source."""
    if not isinstance(node, Scale) or node.bias is not None:
        return False
    is_one = (node.weight == 1).all()
    return len(node.sources) == 1 and bool(is_one)


def product(first: Node, second: Node, *, may_grow: bool = True) -> Node | None:
    """Two maps as one, which is the first map with other weights and another bias.

        weight <- factors weight        bias <- factors bias + bias of the second map

    Args:
        first, second: two nodes, the second of which reads only the first.
        may_grow: whether the product may have more weights than both maps together.

    Returns:
        The product, with the name and the sources of the first map; None if there is
        no such map.
    """
    # Factors are those of the second map: a number for each channel that both have, or
    # a matrix [channels of the second map, channels of the first map].
    match first, second:
        case Scale(), Scale():
            # A bias is one number per channel, which a factor of each pixel is not.
            weights = (first.weight, second.weight)
            has_bias = first.bias is not None or second.bias is not None
            if has_bias and not all(map(is_channelwise, weights)):
                return None
            factors = np.ravel(second.weight)
            weight = first.weight * second.weight
        case ((Dense() | Convolution()), Scale()) if is_channelwise(second.weight):
            factors = np.broadcast_to(second.weight.ravel(), len(first.weight))
            # Each factor multiplies the weights of an output, the first axis.
            weight = (first.weight.T * factors).T
        case Convolution(groups=1), Convolution(groups=1) if _mixes_channels(second):
            factors = second.weight[:, :, 0, 0]
            weight = np.tensordot(factors, first.weight, axes=1)
            if not may_grow and _adds_weights(weight, first.weight, factors):
                return None
        case Dense(), Dense() if may_grow:
            factors = second.weight
            weight = factors @ first.weight
        case _:
            return None
    assert isinstance(first, Affine) and isinstance(second, Affine)
    bias = second.bias
    if first.bias is not None:
        if factors.ndim == 2:
            bias = factors @ first.bias
        else:
            bias = factors * first.bias
        if second.bias is not None:
            bias = bias + second.bias
    return dataclasses.replace(first, weight=weight, bias=bias)


def _adds_weights(weight: np.ndarray, first: np.ndarray, matrix: np.ndarray) -> bool:
    """Whether the product of two convolutions has more weights than both of them.

    Args:
        weight: of the product.
        first: the weights of the first convolution.
        matrix: those of the second one, which is 1x1, [outputs, inputs]. If each output
            reads one input, it only chooses and scales channels: this adds no weights.
    """
    input_counts = (matrix != 0).sum(axis=1)  # [outputs]
    if input_counts.max() <= 1:
        return False
    return weight.size > first.size + matrix.size


def _mixes_channels(node: Convolution) -> bool:
    """Whether a convolution is a matrix that multiplies the channels of each pixel."""
    return (
        node.weight.shape[2:] == (1, 1)
        and node.stride == (1, 1)
        and node.padding == ((0, 0), (0, 0))
    )
