"""`with_unshared_maps`: each receiver has its own weights, one map per connection.

    sender -> sums over windows, flatten -> one map with weights -> receiver

A chip stores the weights of a connection with the neurons that receive it. So a map
that several receivers read is copied, and two maps with weights in a row are
multiplied. Spikes that arrive without a map get a weight of 1. x and spikes have
separate maps, since a whole number of x has another unit than a spike. The biases of
maps are added to that of the receiver.
"""

import dataclasses

import numpy as np

from snnjax.deploy.lowering.products import product
from snnjax.deploy.lowering.sums import compact
from snnjax.deploy.lowering.values import (
    Affine,
    Flatten,
    Input,
    Layers,
    Node,
    Receiver,
    Scale,
    SumPool,
    needed_nodes,
)
from snnjax.network.capture.check import ConversionError, Problem


def with_unshared_maps(layers: Layers) -> Layers:
    """The same network, in which each receiver reads maps that only it reads.

    Raises:
        snnjax.ConversionError: two linear maps follow each other and cannot be
            multiplied, or a map with weights is pooled without neurons in between.
    """
    nodes = {node.name: node for node in layers.nodes}
    results: list[Node] = []
    problems: list[Problem] = []
    for node in layers.nodes:
        if isinstance(node, Receiver):
            maps: list[Affine] = []
            for source in node.sources:
                try:
                    maps += _maps(nodes[source], nodes, node)
                except _TwoMaps as error:
                    problems.append(error.problem)
            results += _with_maps(node, maps)
        elif not isinstance(node, Affine):  # `_maps` has copied those with weights
            results.append(node)
    if problems:
        raise ConversionError(problems, "a chip cannot hold this network's weights")
    return dataclasses.replace(layers, nodes=needed_nodes(results))


def _with_maps(receiver: Receiver, maps: list[Affine]) -> list[Node]:
    """Maps without biases, named after their receiver, and last the receiver itself.

    Args:
        receiver: gets the biases of the maps.
        maps: those that it reads.
    """
    bias = receiver.bias
    pixel_axes = [1] * (len(receiver.shape) - 1)  # of an image, after its channels
    nodes: list[Node] = []
    for number, node in enumerate(maps):
        if node.bias is not None:
            bias = bias + node.bias.reshape(-1, *pixel_axes)
        name = f"{receiver.name}/{number}"
        unbiased = dataclasses.replace(node, name=name, bias=None)
        nodes.append(unbiased)
    receiver = dataclasses.replace(
        receiver,
        sources=tuple(node.name for node in nodes),
        bias=compact(bias),
    )
    return [*nodes, receiver]


class _TwoMaps(Exception):
    """Two maps follow each other and cannot be multiplied."""

    def __init__(self, first: Node, second: Node):
        self.problem = Problem(
            second.name,
            (),
            f"it reads the linear map {first.name!r} without neurons in between, and "
            "both cannot be multiplied into one",
            "put a ReLU or snnjax.clipped_relu between them; if neurons of a channel "
            "have a threshold each, take one per channel",
        )


def _maps(node: Node, nodes: dict[str, Node], receiver: Receiver) -> list[Affine]:
    """Maps with weights whose outputs sum to that of a node.

    Each of them reads senders, pools and flattened images alone, and no other map with
    weights.

    Args:
        node: a source of the receiver, or of a map with weights.
        nodes: all nodes of the network by name.
        receiver: the population or output at the end.

    Raises:
        _TwoMaps: two maps with weights cannot be made one.
    """
    if not isinstance(node, Affine):
        # Spikes that arrive without weights get a weight of 1.
        _check_sums(node, nodes)
        scale = Scale(
            node.name,
            sources=(node.name,),
            weight=np.ones(()),
            bias=None,
            shape=receiver.shape,
        )
        return [scale]
    x_sources, spike_sources, affine_sources = [], [], []
    for source in node.sources:
        if isinstance(nodes[source], Affine):
            affine_sources.append(source)
            continue
        _check_sums(nodes[source], nodes)
        # x and spikes have separate copies of the map.
        if _reads_x(nodes[source], nodes):
            x_sources.append(source)
        else:
            spike_sources.append(source)
    maps: list[Affine] = []
    for sources in (x_sources, spike_sources):
        if sources:
            maps.append(dataclasses.replace(node, sources=tuple(sources)))
            # The bias is added once, by the first copy of the map.
            node = dataclasses.replace(node, bias=None)
    for source in affine_sources:
        for previous in _maps(nodes[source], nodes, receiver):
            # This product may grow: there is no other way to hold both maps.
            combined = product(previous, node)
            if combined is None:
                raise _TwoMaps(previous, node)
            assert isinstance(combined, Affine)
            maps.append(combined)
            node = dataclasses.replace(node, bias=None)
    return maps


def _reads_x(node: Node, nodes: dict[str, Node]) -> bool:
    """Whether x reaches a node without passing neurons or weights."""
    if isinstance(node, Input):
        return True
    if not isinstance(node, SumPool | Flatten):
        return False
    return any(_reads_x(nodes[source], nodes) for source in node.sources)


def _check_sums(node: Node, nodes: dict[str, Node]) -> None:
    """Raise `_TwoMaps` if a pool or a flatten reads a map with weights."""
    if not isinstance(node, SumPool | Flatten):
        return
    for source in node.sources:
        if isinstance(nodes[source], Affine):
            raise _TwoMaps(nodes[source], node)
        _check_sums(nodes[source], nodes)
