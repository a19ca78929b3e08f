"""`with_own_maps`: each receiver has its own weights, one linear map per connection.

    sender -> sums over windows, flatten -> one map with weights -> receiver

A chip stores the weights of a connection with the neurons that receive them. So a map
that several receivers read is copied, two maps in a row are multiplied, and spikes that
arrive as they are get a weight of 1. x and spikes have maps of their own, since their
whole numbers have other units. Biases of maps become those of the receiver.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from snnjax.capture.check import ConversionError, Problem
from snnjax.deploy.lowering.folding import composed
from snnjax.deploy.lowering.sums import compact
from snnjax.deploy.lowering.values import (
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
    ends = (Input, Output, Population)
    needed_nodes = (
        n for n in results.values() if n.name in needed or isinstance(n, ends)
    )
    return dataclasses.replace(layers, nodes=tuple(needed_nodes))


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
    # x has a unit of its own, so that its weights cannot be those of spikes.
    of_x = tuple(s for s in direct if _reads_x(nodes[s], nodes))
    of_spikes = tuple(s for s in direct if s not in of_x)
    for sources in (of_x, of_spikes):
        if sources:
            yield dataclasses.replace(node, sources=sources)
            node = dataclasses.replace(node, bias=None)  # the first part has it
    for source in node.sources:
        if source not in direct:
            for before in _maps(nodes[source], nodes, receiver):
                # Here a product may grow: there is no other way to hold both maps.
                product = composed(before, node)
                if product is None:
                    raise _TwoMaps(before, node)
                assert isinstance(product, Affine)
                yield product
                node = dataclasses.replace(node, bias=None)


def _reads_x(node: Node, nodes: dict[str, Node]) -> bool:
    """Whether x reaches a node without passing neurons or weights."""
    is_sum = isinstance(node, SumPool | Flatten)
    return isinstance(node, Input) or (
        is_sum and any(_reads_x(nodes[source], nodes) for source in node.sources)
    )


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
