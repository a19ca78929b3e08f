"""`with_own_maps`: each receiver has its own weights, one linear map per connection.

    sender -> sums over windows, flatten -> one map with weights -> receiver

A chip stores the weights of a connection with the neurons that receive them. So a map
that several receivers read is copied, two maps in a row are multiplied, and spikes that
arrive as they are get a weight of 1. Biases of maps become those of the receiver.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from snnjax.capture.check import ConversionError, Problem
from snnjax.layers.folding import composed
from snnjax.layers.sums import compact
from snnjax.layers.values import (
    Affine,
    Flatten,
    Input,
    Layers,
    Node,
    Output,
    Population,
    Scale,
    SumPool,
)


def with_own_maps(layers: Layers) -> Layers:
    """The same network, every receiver of which reads maps that only it reads.

    Raises:
        snnjax.ConversionError: two linear maps follow each other and cannot be
            multiplied, or a map with neurons of its own is pooled.
    """
    nodes = {node.name: node for node in layers.nodes}
    results: dict[str, Node] = {}
    problems: list[Problem] = []
    for node in layers.nodes:
        if isinstance(node, Population | Output):
            maps = []
            for source in node.sources:
                try:
                    maps += [*_maps(nodes[source], nodes, node)]
                except _TwoMaps as error:
                    problems.append(error.problem)
            node = _with_biases(node, maps)
            maps = [_renamed(m, f"{node.name}/{i}") for i, m in enumerate(maps)]
            results |= {m.name: m for m in maps}
            node = dataclasses.replace(node, sources=tuple(m.name for m in maps))
        elif isinstance(node, Affine):
            continue
        results[node.name] = node
    if problems:
        raise ConversionError(problems, "a chip cannot hold this network's weights")
    needed = {source for node in results.values() for source in node.sources}
    kept = (
        n
        for n in results.values()
        if n.name in needed or isinstance(n, Input | Output | Population)
    )
    return dataclasses.replace(layers, nodes=tuple(kept))


class _TwoMaps(Exception):
    def __init__(self, first: Node, second: Node):
        self.problem = Problem(
            second.name,
            (),
            f"it reads the linear map {first.name!r} without neurons in between, and "
            "both cannot be multiplied into one",
            "put a ReLU or snnjax.clipped_relu between them; if neurons of a channel "
            "have a threshold each, take one per channel",
        )


def _maps(node: Node, nodes: dict[str, Node], receiver: Node) -> Iterator[Affine]:
    """Maps with weights whose sum is the node's output; their sources have none."""
    if not isinstance(node, Affine):
        _check_sums(node, nodes)
        shape = receiver.shape  # type: ignore[attr-defined]
        yield Scale(node.name, (node.name,), np.ones(()), None, shape)
        return
    direct = [s for s in node.sources if not isinstance(nodes[s], Affine)]
    for source in direct:
        _check_sums(nodes[source], nodes)
    bias = node.bias
    if direct:
        yield dataclasses.replace(node, sources=tuple(direct))
        bias = None
    without_bias = dataclasses.replace(node, bias=bias)
    for source in node.sources:
        if source not in direct:
            for before in _maps(nodes[source], nodes, receiver):
                product = composed(before, without_bias)
                if product is None:
                    raise _TwoMaps(before, node)
                assert isinstance(product, Affine)
                yield product
                without_bias = dataclasses.replace(node, bias=None)


def _check_sums(node: Node, nodes: dict[str, Node]) -> None:
    """Raise if a pool or a flatten reads a map with weights."""
    if isinstance(node, SumPool | Flatten):
        for source in node.sources:
            if isinstance(nodes[source], Affine):
                raise _TwoMaps(nodes[source], node)
            _check_sums(nodes[source], nodes)


def _with_biases(node: Population | Output, maps: list[Affine]) -> Population | Output:
    """The receiver, with the biases of its maps in its own."""
    bias = node.bias
    for m in maps:
        if m.bias is not None:
            per_channel = m.bias
            if len(node.shape) == 3:
                per_channel = np.reshape(m.bias, (-1, 1, 1))
            bias = bias + per_channel
    return dataclasses.replace(node, bias=compact(bias))


def _renamed(node: Affine, name: str) -> Affine:
    return dataclasses.replace(node, name=name, bias=None)
