"""Programs for chips that are not ours, run on networks of whole numbers.

Each is one function, (layers, x) -> {population: levels [T, B, ...], channels last}.
Akida's simulator and sinabs are packages. The rules of Loihi and Speck are written in
NumPy, from the sources named there: their programs need an older Python or a chip.
"""

import functools
import runpy
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from snnjax import deploy
from snnjax.deploy import Layers

Spikes = dict[str, np.ndarray]
Weights = deploy.Convolution | deploy.Dense


class Misfit(Exception):
    """A network that a chip cannot run, or a run that proves nothing."""


def run_in_bits(layers: Layers, x: np.ndarray) -> deploy.Trace:
    """`snnjax.deploy.run`, if all potentials and x have enough bits."""
    trace = deploy.run(layers, x)
    counts = [*trace.overflows.values(), *trace.below.values(), trace.clipped]
    if any(int(count) > 0 for count in counts):
        raise Misfit("potentials or x leave their bits; allowed: more state_bits")
    return trace


def compared(expected: Mapping[str, Any], spikes: Spikes) -> Counter[str]:
    """How many levels are compared, are not 0, and are others than expected.

    Args:
        expected: population -> levels of `snnjax.deploy.run`.
        spikes: of another program.
    """
    counts: Counter[str] = Counter()
    for name, levels in expected.items():
        if levels.shape != spikes[name].shape:
            raise Misfit(f"{name}: {spikes[name].shape}, not {levels.shape}")
        counts["spikes"] += levels.size
        counts["not_0"] += np.count_nonzero(levels)
        counts["mismatches"] += np.count_nonzero(np.asarray(levels) != spikes[name])
    return counts


# ---------------------------------------------------------------------------- Akida


def akida(layers: Layers, x: np.ndarray) -> Spikes:
    """The software simulator of Akida 1.0, for T = 1, levels (0, 2^b - 1) and a chain.

    y = clip(ceil((sum w x - theta) / (Delta 2^(4 - b))), 0, 2^b - 1)
    theta = V - b_j - v(0) - 1,  Delta = V 2^(b - 4)
    """
    import akida as program

    model = program.Model()
    images = x if x.ndim == 4 else x[:, None, None]
    spikes: Spikes = {}
    for node in layers.populations:
        (way,) = (c for c in layers.connections if c.receiver == node.name)
        *sums, weights = way.maps
        is_first = not spikes
        bits = node.model.levels[1].bit_length()
        if is_first and isinstance(weights, deploy.Dense):
            model.add(program.InputData(images.shape[1:], 4))
        model.add(_akida_layer(weights, images.shape[1:], bits, is_first))
        threshold = _per_channel(node.threshold, node.shape)
        start = _per_channel(node.initial_potential, node.shape)
        bias = _per_channel(node.bias, node.shape)
        kernel = _akida_kernel(weights, sums, is_first)
        layer = model.layers[-1]
        layer.set_variable("weights", np.ascontiguousarray(kernel, np.int8))
        layer.set_variable("threshold", np.int32(threshold - bias - start - 1))
        layer.set_variable("act_step", np.float32(threshold * 2.0 ** (bits - 4)))
        levels = model.forward(images.astype(np.uint8))
        channels, *size = node.shape
        spikes[node.name] = levels.reshape(
            1,
            len(x),
            *size,
            channels,
        )
    return spikes


def _akida_layer(weights: Weights, image: Any, bits: int, is_first: bool) -> Any:
    """A layer of Akida, without its numbers."""
    import akida as program

    filters = len(weights.weight)
    if isinstance(weights, deploy.Dense):
        return program.FullyConnected(filters, weights_bits=4, act_bits=bits)
    size = weights.weight.shape[2:]
    if is_first:
        return program.InputConvolutional(
            image,
            size,
            filters,
            weights_bits=8,
            act_bits=bits,
            kernel_stride=weights.stride,
        )
    return program.Convolutional(
        size,
        filters,
        weights_bits=4,
        act_bits=bits,
        kernel_stride=weights.stride,
    )


def _akida_kernel(weights: Weights, sums: list[Any], is_first: bool) -> np.ndarray:
    """Weights as Akida stores them, found by trying.

    Kernels are [rows, columns, I, O], and mirrored except in the first layer. A dense
    layer reads images in the order channels, columns, rows.

    Args:
        weights: of the layer.
        sums: what lies before them, in front of a dense layer a flatten.
        is_first: whether the layer reads x.
    """
    if isinstance(weights, deploy.Convolution):
        kernel = weights.weight.transpose(2, 3, 1, 0)
        return kernel if is_first else kernel[::-1, ::-1]
    matrix = weights.weight
    for flatten in sums:
        assert isinstance(flatten, deploy.Flatten)
        images = matrix.reshape(len(matrix), *flatten.shape)
        matrix = images.transpose(0, 1, 3, 2).reshape(len(matrix), -1)
    return matrix.T[None, None]


def _per_channel(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One number per channel, [C]; all neurons of a channel must have the same."""
    rows = np.broadcast_to(values, shape).reshape(shape[0], -1)
    assert (rows == rows[:, :1]).all(), "neurons of a channel have unlike numbers"
    return rows[:, 0]


# --------------------------------------------------------------------------- sinabs


def sinabs(layers: Layers, x: np.ndarray, *, is_discretized: bool = False) -> Spikes:
    """`IAFSqueeze` neurons of sinabs, and layers of PyTorch, with whole numbers.

    Args:
        is_discretized: sinabs makes each layer fit to DYNAP-CNN, the cores of Speck:
            its quantizer scales weights, biases, thresholds and potentials to 8 and 16
            bits.

    Raises:
        ValueError: the quantizer changes a number.
    """
    import torch
    from sinabs import layers as program

    images = np.repeat(np.moveaxis(x, -1, 1)[:, None], layers.steps, axis=1)
    images = torch.tensor(images, dtype=torch.float64)
    # Outputs of nodes, for all steps of all images; those of maps come later, when
    # their population has given them its biases.
    values = {layers.nodes[0].name: images.flatten(0, 1)}
    maps: dict[str, tuple[Any, Any]] = {}  # name -> convolution, its input
    spikes: Spikes = {}
    for node in layers.nodes[1:]:
        arriving = sum(values[name] for name in node.sources if name in values)
        match node:
            case deploy.Convolution() | deploy.Dense():
                maps[node.name] = (_convolution(node), _padded(node, arriving))
            case deploy.SumPool(window=window, stride=stride):
                values[node.name] = program.SumPool2d(window, stride)(arriving)
            case deploy.Flatten():
                values[node.name] = arriving.flatten(1)
            case deploy.Population():
                levels = _population_levels(
                    node,
                    [maps[name] for name in node.sources],
                    count=len(x),
                    is_discretized=is_discretized,
                )
                values[node.name] = levels.double()
                levels = levels.reshape(len(x), layers.steps, *node.shape)
                levels = np.moveaxis(levels.numpy(), 0, 1)
                spikes[node.name] = np.moveaxis(levels, 2, -1)
    return spikes


def _padded(node: Weights, image: Any) -> Any:
    """What the convolution of `_convolution` reads."""
    import torch

    if image.ndim == 2:
        return image[:, :, None, None]
    if isinstance(node, deploy.Convolution):
        # A convolution of torch has equal padding on both sides alone.
        (top, bottom), (left, right) = node.padding
        return torch.nn.functional.pad(image, (left, right, top, bottom))
    return image


def _population_levels(
    node: deploy.Population,
    maps: list[tuple[Any, Any]],
    count: int,
    is_discretized: bool,
) -> Any:
    """Spikes [B T, C, ...] of a population that reads these convolutions."""
    import torch

    neurons = _neurons(node, count)
    first, _ = maps[0]
    bias = torch.tensor(_per_channel(node.bias, node.shape))
    first.bias = torch.nn.Parameter(bias.double())
    if is_discretized:
        assert len(maps) == 1
        _discretize(first, neurons)
    with torch.no_grad():
        currents = sum(convolution(image) for convolution, image in maps)
        return neurons(currents.reshape(-1, *node.shape))


dynapcnn = functools.partial(sinabs, is_discretized=True)


def _convolution(node: Weights) -> Any:
    """A convolution of torch; that of a dense layer is 1x1."""
    import torch

    kernel = node.weight
    stride = (1, 1)
    if isinstance(node, deploy.Dense):
        kernel = kernel[:, :, None, None]
    else:
        stride = node.stride
    filters, channels, *size = kernel.shape
    module = torch.nn.Conv2d(channels, filters, size, stride=stride, bias=False)
    module.weight.data = torch.tensor(kernel, dtype=torch.float64)
    return module


def _neurons(node: deploy.Population, count: int) -> Any:
    """`IAFSqueeze` with a threshold and v(0) of whole numbers, for ``count`` images."""
    import torch
    from sinabs import activation
    from sinabs import layers as program

    threshold = np.asarray(node.threshold)
    if (threshold == threshold.flat[0]).all():
        threshold = threshold.flat[0]  # its quantizer takes one threshold for a layer
    reset = activation.MembraneSubtract()
    if node.model.reset == "zero":
        reset = activation.MembraneReset()
    neurons = program.IAFSqueeze(
        batch_size=count,
        spike_threshold=torch.tensor(threshold, dtype=torch.float64),
        spike_fn=activation.MaxSpike(node.model.levels[1]),
        reset_fn=reset,
    )
    neurons.init_state_with_shape((count, *node.shape))
    start = np.broadcast_to(node.initial_potential, (count, *node.shape))
    neurons.v_mem = torch.tensor(start, dtype=torch.float64)
    return neurons


def _discretize(convolution: Any, neurons: Any) -> None:
    """Let the quantizer of DYNAP-CNN change both; raise if a number differs."""
    import sinabs as package

    def numbers() -> dict[str, np.ndarray]:
        return {
            "weights": convolution.weight.detach().numpy().copy(),
            "biases": convolution.bias.detach().numpy().copy(),
            "thresholds": neurons.spike_threshold.detach().numpy().copy(),
            "initial potentials": neurons.v_mem.detach().numpy().copy(),
        }

    original = numbers()
    # To import the package around it would download and install drivers of chips.
    file = Path(
        *package.__path__,
        "backend",
        "dynapcnn",
        "discretize.py",
    )
    runpy.run_path(str(file))["discretize_conv_spike_"](convolution, neurons)
    for name, discrete in numbers().items():
        if not np.array_equal(original[name], discrete):
            count = np.sum(original[name] != discrete)
            raise ValueError(f"the quantizer of DYNAP-CNN changes {count} {name}")
    for part in (convolution.weight, convolution.bias, neurons.v_mem):
        part.data = part.data.double()


# ----------------------------------------------------------------- rules, in NumPy


def loihi(layers: Layers, x: np.ndarray) -> Spikes:
    """The bit-accurate LIF neuron of Lava, with no leak and reset to zero.

        u = 2^6 ((W' s) >> 1),  W' even        8 bits of weights with both signs
        v <- clip(v + u + 2^6 B, +-(2^23 - 1))
        s = v > 2^6 theta,  v <- 0 where s = 1

    With W' = 2 W and theta = V - 1 it is our neuron. Populations are computed one after
    the other: in Lava each connection delays spikes by one step, which is left out.
    Sources: lava-nc/lava b6822fbc, src/lava/proc/lif/models.py (PyLifModelBitAcc),
    proc/dense/models.py (PyDenseModelBitAcc), utils/weightutils.py.

    Raises:
        ValueError: a number does not fit into its bits.
    """
    limit = 2**23 - 1

    def rule(node: Any, weights: np.ndarray, arriving: np.ndarray) -> np.ndarray:
        bias = _whole(node.bias, node, "biases", lowest=-(2**12), highest=2**12 - 1)
        vth = _whole(
            node.threshold - 1, node, "thresholds", lowest=0, highest=2**17 - 1
        )
        v = _whole(
            node.initial_potential * 2**6,
            node,
            "potentials",
            lowest=-limit,
            highest=limit,
        )
        doubled = _whole(2 * weights, node, "weights", lowest=-(2**8), highest=2**8 - 1)
        sent = []
        for s in arriving:
            # u is kept in 24 bits and wraps around.
            u = (2**6 * (s @ doubled.T >> 1) + 2**23) % 2**24 - 2**23
            v = np.clip(v + u + 2**6 * bias, -limit, limit)
            sent.append(v > 2**6 * vth)
            v = np.where(sent[-1], 0, v)
        return np.array(sent, np.int64)

    return by_population(rule, layers, x)


def speck(layers: Layers, x: np.ndarray, *, inhibition_first: bool = True) -> Spikes:
    """Neurons of DYNAP-CNN, which compute each event when it arrives.

        v <- clip(v + w, 16 bits);  while v >= V: fire, v <- v - V

    A layer computes all events of a step before the next layer does.
    Sources: synsense/sinabs 904eb893, docs/speck/overview.md, docs/speck/dangers.md and
    backend/dynapcnn/discretize.py.

    Args:
        inhibition_first: in a step, each neuron gets the events that lower its
            potential first. Otherwise they arrive by channel, row and column.

    Raises:
        ValueError: a number does not fit into its bits.
    """

    def rule(node: Any, weights: np.ndarray, arriving: np.ndarray) -> np.ndarray:
        threshold = _whole(
            node.threshold, node, "thresholds", lowest=1, highest=2**15 - 1
        )
        bias = _whole(node.bias, node, "biases", lowest=-(2**7), highest=2**7 - 1)
        start = _whole(
            node.initial_potential,
            node,
            "potentials",
            lowest=-(2**15),
            highest=2**15 - 1,
        )
        weights = _whole(weights, node, "weights", lowest=-(2**7), highest=2**7 - 1)
        sent = np.zeros((*arriving.shape[:2], len(weights)), np.int64)
        for b in range(len(x)):
            v = start
            for step, counts in enumerate(arriving[:, b]):
                events = np.concatenate([bias[None], np.repeat(weights.T, counts, 0)])
                if inhibition_first:
                    events.sort(axis=0)
                for w in events:
                    v = np.clip(v + w, -(2**15), 2**15 - 1)
                    fired = np.maximum(v // threshold, 0)
                    v = v - fired * threshold
                    sent[step, b] += fired
        return sent

    return by_population(rule, layers, x)


speck_by_address = functools.partial(speck, inhibition_first=False)


def by_population(
    rule: Callable[[Any, np.ndarray, np.ndarray], np.ndarray],
    layers: Layers,
    x: np.ndarray,
) -> Spikes:
    """Compute one population after the other, all steps of each.

    Args:
        rule: population, weights [N, M], what arrives [T, B, M] -> levels [T, B, N].
    """
    whole = np.moveaxis(x, -1, 1).reshape(len(x), -1).astype(np.int64)
    sent = {layers.nodes[0].name: np.repeat(whole[None], layers.steps, axis=0)}
    spikes: Spikes = {}
    for node in layers.populations:
        by_sender = matrices(layers, node)
        weights = np.concatenate([*by_sender.values()], axis=1)
        arriving = np.concatenate([sent[name] for name in by_sender], axis=2)
        levels = rule(node, weights, arriving)
        sent[node.name] = levels
        levels = levels.reshape(*levels.shape[:2], *node.shape)
        spikes[node.name] = np.moveaxis(levels, 2, -1)
    return spikes


def matrices(layers: Layers, receiver: Any) -> dict[str, np.ndarray]:
    """A matrix [N, M] of weights for each sender of a population or an output."""
    nodes = {node.name: node for node in layers.nodes}
    by_sender: dict[str, np.ndarray] = {}
    for way in layers.connections:
        if way.receiver != receiver.name:
            continue
        # The columns of a linear map are its outputs for the unit vectors.
        shape = nodes[way.sender].shape
        outputs = np.eye(int(np.prod(shape))).reshape(-1, *shape)
        for node in way.maps:
            outputs = _linear(node, outputs)
        matrix = outputs.reshape(len(outputs), -1).T
        by_sender[way.sender] = by_sender.get(way.sender, 0) + matrix
    return by_sender


def _linear(node: Any, x: np.ndarray) -> np.ndarray:
    """A map of [B, ...], channels first, window by window."""
    if isinstance(node, deploy.Flatten):
        return x.reshape(len(x), -1)
    if isinstance(node, deploy.Dense):
        return x @ node.weight.T
    if isinstance(node, deploy.Scale):
        return x * node.weight
    assert isinstance(node, deploy.Convolution | deploy.SumPool)
    down, right = node.stride
    if isinstance(node, deploy.SumPool):
        zeros = [(n, n) for n in node.padding]
        size = node.window
    else:
        zeros = node.padding
        size = node.weight.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), *zeros))
    windows = np.lib.stride_tricks.sliding_window_view(x, size, (2, 3))
    windows = windows[:, :, ::down, ::right]  # [B, C, H, W, *size]
    if isinstance(node, deploy.SumPool):
        return windows.sum((-1, -2))
    return np.einsum("bihwkl,oikl->bohw", windows, node.weight)


def _whole(
    values: np.ndarray, node: deploy.Population, name: str, lowest: int, highest: int
) -> np.ndarray:
    """Whole numbers: of each neuron [N], or a matrix."""
    whole = np.rint(values).astype(np.int64)
    assert np.allclose(values, whole), f"{name} are no whole numbers"
    if whole.min() < lowest or whole.max() > highest:
        raise ValueError(
            f"{name} of {node.name!r} are {whole.min()} .. {whole.max()}; allowed: "
            f"{lowest} .. {highest}"
        )
    return whole if name == "weights" else np.broadcast_to(whole, node.shape).ravel()
