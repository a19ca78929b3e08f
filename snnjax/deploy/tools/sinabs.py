"""`to_sinabs`: whole numbers as a module of PyTorch with neurons of sinabs.

`IAFSqueeze` of sinabs computes, for whole numbers in floats,

    v <- v + sum_i w_ji s_i + b_j       k = clip(floor(v / V), 0, high)
    v <- v - V k                        or 0 where k is not 0

which is our neuron under rate coding. ``benchmarks/conformance.py`` compares every
spike, with sinabs 3.1.3.
"""

import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from snnjax.deploy.lowering.values import (
    Affine,
    Convolution,
    Dense,
    Flatten,
    Input,
    Layers,
    Population,
    Receiver,
    Scale,
    SumPool,
    check_layers,
    count_readers,
)
from snnjax.deploy.tools.refusals import (
    channel_numbers,
    check_problems,
    import_package,
    neuron_problems,
    output_count_problems,
    problem_at,
)
from snnjax.network.capture.check import Problem


def to_sinabs(layers: Layers) -> Any:
    """Whole numbers as a module of PyTorch with neurons of sinabs, for Speck.

    A chain of layers becomes a ``torch.nn.Sequential`` of `Conv2d`, `Linear`,
    `SumPool2d`, `Flatten` and `IAFSqueeze`, from which sinabs's tools for the chip go
    on. Where ways branch, it is a ``torch.fx.GraphModule``. The spikes are those of
    `run`, bit for bit, as long as no potential leaves its bits (`Trace.overflows` and
    `Trace.below` are 0) and no sum reaches 2^24, where float32 begins to round.

    The module reads x / unit of the layers' input as float32 [B T, ...], images with
    channels first: each of B examples T times in a row, T the layers' steps. It returns
    whole sums with the output's bias, [B T, ...]; times the unit of the output, their
    mean over T is the answer. The potentials v(0) are those of the first call. A call
    leaves its potentials behind, and ``reset_states`` of sinabs makes them 0: take
    ``copy.deepcopy(module)`` for each call.

    Args:
        layers: from `quantize`, with rate coding and no wait.

    Returns:
        A ``torch.nn.Module``.

    Raises:
        snnjax.ConversionError: a layer that sinabs has no form for.
        ValueError: the layers are of floats.
        ImportError: the package ``sinabs`` is missing.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.eye(3), "readout": jnp.ones((3, 2))}
    >>> x = jnp.array([[1.0, 2.0, 3.0]])
    >>> snn = snnjax.convert(fn, params, x, steps=4, code=snnjax.codes.radix(), wait=1)
    >>> layers = snnjax.deploy.quantize(snnjax.deploy.layers(fn, snn, x), x)
    >>> to_sinabs(layers)
    Traceback (most recent call last):
      ...
    snnjax.ConversionError: this network cannot be written for sinabs (2 places):
      network
        the code radix(base=2) and wait 1, and neurons of sinabs are alike at all steps
        remedy: convert with code=snnjax.codes.rate(), and no wait
      hidden/relu
        levels (-1, 1), and the tool has no negative spikes
        remedy: convert with model=snnjax.integrate_and_fire(levels=(0, 1))
    """
    check_layers(layers, "whole")
    check_problems(_network_problems(layers), tool="sinabs")
    install = "pip install sinabs"
    torch = import_package("torch", "to_sinabs", install)
    sinabs = import_package("sinabs.layers", "to_sinabs", install)
    activation = import_package("sinabs.activation", "to_sinabs", install)
    biases = _biases_by_map(layers)
    modules: dict[str, list[Any]] = {}  # name of a node -> what it computes, in a row
    for node in layers.nodes:
        bias = biases.get(node.name)
        match node:
            case Convolution():
                modules[node.name] = _convolution(torch, node, bias)
            case Dense():
                modules[node.name] = [_linear(torch, node, bias)]
            case SumPool(window=window, stride=stride):
                modules[node.name] = [sinabs.SumPool2d(window, stride)]
            case Flatten():
                modules[node.name] = [torch.nn.Flatten()]
            case Population():
                neurons = _neurons(torch, sinabs, activation, node, layers)
                modules[node.name] = [neurons]
            case _:  # the input and the output compute nothing
                modules[node.name] = []
    if _is_chain(layers):
        chain = itertools.chain.from_iterable(modules.values())
        return torch.nn.Sequential(*chain)
    return _graph(torch, layers, modules)


# -------------------------------------------------------------------------- refusals


def _network_problems(layers: Layers) -> Iterator[Problem]:
    """What sinabs has no form for, of whole layers."""
    wait = layers.wait or 0
    if not layers.code.is_streaming(wait):
        reason = (
            f"the code {layers.code!r} and wait {wait}, and neurons of sinabs are "
            "alike at all steps"
        )
        remedy = "convert with code=snnjax.codes.rate(), and no wait"
        yield problem_at("network", reason, remedy)
    if layers.steps is None:
        reason = "the layers have no T, by which neurons of sinabs part a batch"
        yield problem_at("network", reason, "dataclasses.replace(layers, steps=T)")
    yield from output_count_problems(layers)
    maps = _maps_with_bias(layers)
    for node in layers.nodes:
        if isinstance(node, Population):
            yield from neuron_problems(node)
        if isinstance(node, Receiver):
            yield from _bias_problems(node, has_map=node.name in maps)
        if isinstance(node, Scale):
            reason = "factors of single elements, which no layer of sinabs has"
            remedy = "multiply them into the weights before or behind"
            yield problem_at(node.name, reason, remedy)
        if isinstance(node, SumPool) and any(node.padding):
            reason = f"a pool with padding {node.padding}; sinabs has none"
            yield problem_at(node.name, reason, "pool without padding")


def _bias_problems(node: Receiver, *, has_map: bool) -> Iterator[Problem]:
    """Biases of a population or output that no layer of sinabs can add.

    Args:
        node: the population or output.
        has_map: whether a map before it adds its biases, see `_maps_with_bias`.
    """
    if not node.bias.any():
        return
    if channel_numbers(node.bias, node.shape) is None:
        reason = "biases differ within a channel; a layer has one per channel"
        yield problem_at(node.name, reason, "use constants per channel")
    elif not has_map:
        reason = "a bias, and no convolution or dense layer before it to hold it"
        yield problem_at(node.name, reason, "train this layer without a bias")


# ------------------------------------------------------------------------------ parts


def _maps_with_bias(layers: Layers) -> dict[str, str]:
    """Name of a population or output -> that of the map that adds its biases.

    Since sources are summed, one of them adds the biases: the first convolution or
    dense layer that no other node reads. A node without such a source is left out.
    """
    nodes = {node.name: node for node in layers.nodes}
    reader_counts = count_readers(layers.nodes)
    maps: dict[str, str] = {}
    for receiver in layers.receivers:
        for name in receiver.sources:
            if isinstance(nodes[name], Affine) and reader_counts[name] == 1:
                maps.setdefault(receiver.name, name)
    return maps


def _biases_by_map(layers: Layers) -> dict[str, np.ndarray]:
    """Name of a map -> the biases [C] that it adds, where they are not all 0."""
    maps = _maps_with_bias(layers)
    biases = {}
    for receiver in layers.receivers:
        if receiver.bias.any():
            bias = channel_numbers(receiver.bias, receiver.shape)
            assert bias is not None
            biases[maps[receiver.name]] = bias / layers.bias_unit
    return biases


def _convolution(torch: Any, node: Convolution, bias: np.ndarray | None) -> list[Any]:
    """A convolution of PyTorch, after zeros where its padding is unequal."""
    (top, bottom), (left, right) = node.padding
    is_equal = (top, left) == (bottom, right)
    output_channels, group_channels, *kernel_size = node.weight.shape
    convolution = torch.nn.Conv2d(
        group_channels * node.groups,
        output_channels,
        tuple(kernel_size),
        stride=node.stride,
        padding=(top, left) if is_equal else (0, 0),
        dilation=node.dilation,
        groups=node.groups,
        bias=bias is not None,
    )
    _set_weights(torch, convolution, node.weight, bias)
    if is_equal:
        return [convolution]
    return [torch.nn.ZeroPad2d((left, right, top, bottom)), convolution]


def _linear(torch: Any, node: Dense, bias: np.ndarray | None) -> Any:
    """A dense layer of PyTorch."""
    output_count, input_count = node.weight.shape
    module = torch.nn.Linear(input_count, output_count, bias=bias is not None)
    _set_weights(torch, module, node.weight, bias)
    return module


def _set_weights(
    torch: Any, module: Any, weight: np.ndarray, bias: np.ndarray | None
) -> None:
    """Give a module of PyTorch these numbers."""
    module.weight.data = torch.tensor(weight, dtype=torch.float32)
    if bias is not None:
        module.bias.data = torch.tensor(bias, dtype=torch.float32)


def _neurons(
    torch: Any,
    sinabs: ModuleType,
    activation: ModuleType,
    node: Population,
    layers: Layers,
) -> Any:
    """Neurons of sinabs, with a threshold and v(0) of whole numbers."""
    threshold = np.asarray(node.threshold)
    if (threshold == threshold.flat[0]).all():
        threshold = threshold.flat[0]  # the quantizer for Speck takes one per layer
    reset = activation.MembraneSubtract()
    if node.model.reset == "zero":
        reset = activation.MembraneReset()
    neurons = sinabs.IAFSqueeze(
        num_timesteps=layers.steps,
        spike_threshold=torch.tensor(threshold, dtype=torch.float32),
        spike_fn=activation.MaxSpike(node.model.levels[1]),
        reset_fn=reset,
    )
    # The state of one example, which a call takes for each example of its batch.
    state_shape = (1, *node.shape)
    neurons.init_state_with_shape(state_shape)
    potential = np.broadcast_to(
        node.initial_potential / layers.potential_unit, state_shape
    )
    neurons.v_mem = torch.tensor(potential.copy(), dtype=torch.float32)
    return neurons


# ------------------------------------------------------------------------------ graph


def _is_chain(layers: Layers) -> bool:
    """Whether each node reads the one before it, and no other."""
    names = [node.name for node in layers.nodes]
    for node, previous_name in zip(layers.nodes[1:], names, strict=False):
        if node.sources != (previous_name,):
            return False
    return True


def _graph(torch: Any, layers: Layers, modules: dict[str, list[Any]]) -> Any:
    """A module that sums where several nodes lead to one.

    Args:
        torch: the package.
        layers: the network.
        modules: name of a node -> what it computes, in a row.
    """
    graph = torch.fx.Graph()
    root = torch.nn.Module()
    results: dict[str, Any] = {}  # name of a node -> its result in the graph
    for number, node in enumerate(layers.nodes):
        if isinstance(node, Input):
            results[node.name] = graph.placeholder("x")
            continue
        sources = [results[name] for name in node.sources]
        result = sources[0]
        for source in sources[1:]:
            result = graph.call_function(torch.add, (result, source))
        for position, module in enumerate(modules[node.name]):
            module_name = f"layer_{number}_{position}"
            root.add_module(module_name, module)
            result = graph.call_module(module_name, (result,))
        results[node.name] = result
    graph.output(results[layers.outputs[0].name])
    return torch.fx.GraphModule(root, graph)
