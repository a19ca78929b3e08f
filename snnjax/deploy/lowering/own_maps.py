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

from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.products import product
from snnjax.deploy.lowering.sums import compact
from snnjax.network.capture.check import ConversionError, Problem


def with_own_maps(layers: values.Layers) -> values.Layers:
    """The same network, every receiver of which reads maps that only it reads.

    Raises:
        snnjax.ConversionError: two linear maps follow each other and cannot be
            multiplied, or a map with neurons of its own is pooled.
    """
    nodes = {node.name: node for node in layers.nodes}
    results: dict[str, values.Node] = {}
    problems: list[Problem] = []
    for node in layers.nodes:
        if isinstance(node, values.Receiver):
            maps = []
            for source in node.sources:
                try:
                    maps += [*_maps(nodes[source], nodes, node)]
                except _TwoMaps as error:
                    problems.append(error.problem)
            bias, names = node.bias, [f"{node.name}/{i}" for i in range(len(maps))]
            for name, own in zip(names, maps, strict=True):
                if own.bias is not None:
                    bias = bias + own.bias.reshape(-1, *[1] * (len(node.shape) - 1))
                results[name] = dataclasses.replace(own, name=name, bias=None)
            node = dataclasses.replace(node, sources=tuple(names), bias=compact(bias))
        elif isinstance(node, values.Affine):
            continue
        results[node.name] = node
    if problems:
        raise ConversionError(problems, "a chip cannot hold this network's weights")
    return dataclasses.replace(layers, nodes=values.needed([*results.values()]))


class _TwoMaps(Exception):
    def __init__(self, first: values.Node, second: values.Node):
        self.problem = Problem(
            second.name,
            (),
            f"it reads the linear map {first.name!r} without neurons in between, and "
            "both cannot be multiplied into one",
            "put a ReLU or snnjax.clipped_relu between them; if neurons of a channel "
            "have a threshold each, take one per channel",
        )


def _maps(
    node: values.Node, nodes: dict[str, values.Node], receiver: values.Receiver
) -> Iterator[values.Affine]:
    """Maps with weights whose sum is the node's output; their sources have none."""
    if not isinstance(node, values.Affine):
        _check_sums(node, nodes)
        yield values.Scale(node.name, (node.name,), np.ones(()), None, receiver.shape)
        return
    direct = [s for s in node.sources if not isinstance(nodes[s], values.Affine)]
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
                combined = product(before, node)
                if combined is None:
                    raise _TwoMaps(before, node)
                assert isinstance(combined, values.Affine)
                yield combined
                node = dataclasses.replace(node, bias=None)


def _reads_x(node: values.Node, nodes: dict[str, values.Node]) -> bool:
    """Whether x reaches a node without passing neurons or weights."""
    is_sum = isinstance(node, values.SumPool | values.Flatten)
    return isinstance(node, values.Input) or (
        is_sum and any(_reads_x(nodes[source], nodes) for source in node.sources)
    )


def _check_sums(node: values.Node, nodes: dict[str, values.Node]) -> None:
    """Raise if a pool or a flatten reads a map with weights."""
    if isinstance(node, values.SumPool | values.Flatten):
        for source in node.sources:
            if isinstance(nodes[source], values.Affine):
                raise _TwoMaps(nodes[source], node)
            _check_sums(nodes[source], nodes)
