"""`with_products`: one linear map in place of two that follow each other.

    a (W x + b) + c  =  (a W) x + (a b + c)

A map is multiplied into the one before it, if nothing else reads that one. BatchNorm,
thresholds and shortcuts that choose channels disappear in this way.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.sums import is_channelwise
from snnjax.deploy.lowering.values import Convolution, Dense, Node, Scale


def with_products(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """The nodes, in order of execution, with as few maps as possible."""
    nodes = tuple(nodes)
    count = values.readers(nodes)
    results: dict[str, Node] = {}
    names: dict[str, str] = {}  # of a node that went -> of the one in its place

    def present(name: str) -> str:
        return present(names[name]) if name in names else name

    for node in nodes:
        sources = tuple(map(present, node.sources))
        node = dataclasses.replace(node, sources=sources)
        if len(sources) == 1 and count[sources[0]] == 1:
            # A chip stores every weight, so two small maps may be better than one.
            combined = product(results[sources[0]], node, may_grow=False)
            if combined is not None:
                names[node.name] = combined.name
                count[combined.name] = count[node.name]
                node = combined
        if _is_identity(node):
            (names[node.name],) = node.sources
            # Whoever read the identity reads its source now.
            count[node.sources[0]] += count[node.name] - 1
            results.pop(node.name, None)
        else:
            results[node.name] = node
    return tuple(results.values())


def _is_identity(node: Node) -> bool:
    if not isinstance(node, Scale) or node.bias is not None or len(node.sources) != 1:
        return False
    return bool((node.weight == 1).all())


def product(before: Node, after: Node, *, may_grow: bool = True) -> Node | None:
    """The first of two maps with the second one in its weights, if it can be.

    Args:
        before, after: nodes, the second of which reads only the first.
        may_grow: whether the product may have more weights than both.
    """
    match before, after:
        case Scale(), Scale():
            # A bias is one number per channel, which a factor of each pixel is not.
            plain = is_channelwise(before.weight) and is_channelwise(after.weight)
            if not plain and (before.bias is not None or after.bias is not None):
                return None
            weight, rows = before.weight * after.weight, np.ravel(after.weight)
        case ((Dense() | Convolution()), Scale()) if is_channelwise(after.weight):
            rows = np.broadcast_to(after.weight.ravel(), len(before.weight))
            weight = before.weight * rows.reshape(-1, *[1] * (before.weight.ndim - 1))
        case Convolution(groups=1), Convolution(groups=1) if _mixes_channels(after):
            rows = after.weight[:, :, 0, 0]
            weight = np.tensordot(rows, before.weight, axes=1)
            # A map that only chooses and scales channels adds no weights.
            selects = (rows != 0).sum(axis=1).max() <= 1
            grows = not selects and weight.size > before.weight.size + rows.size
            if grows and not may_grow:
                return None
        case Dense(), Dense() if may_grow:
            rows = after.weight
            weight = rows @ before.weight
        case _:
            return None
    assert isinstance(before, values.Affine) and isinstance(after, values.Affine)
    bias = after.bias
    if before.bias is not None:
        own = rows @ before.bias if rows.ndim == 2 else rows * before.bias
        bias = own if bias is None else own + bias
    return dataclasses.replace(before, weight=weight, bias=bias)


def _mixes_channels(node: Convolution) -> bool:
    one_pixel = node.weight.shape[2:] == (1, 1) and node.stride == (1, 1)
    return one_pixel and node.padding == ((0, 0), (0, 0))
