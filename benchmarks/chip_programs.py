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
    """The software simulator of Akida 1.0 on the model of `snnjax.deploy.to_akida`."""
    model = deploy.to_akida(layers)
    images = x if x.ndim == 4 else x[:, None, None]
    # The last layer has the sums of the output. Without it, the model sends the levels
    # of the last population, and so on.
    spikes: Spikes = {}
    for node in reversed(layers.populations):
        model.pop_layer()
        levels = model.forward(images.astype(np.uint8))
        channels, *size = node.shape
        spikes[node.name] = levels.reshape(1, len(x), *size, channels)
    return spikes


# --------------------------------------------------------------------------- sinabs


def sinabs(layers: Layers, x: np.ndarray, *, is_discretized: bool = False) -> Spikes:
    """The module of `snnjax.deploy.to_sinabs`.

    Args:
        is_discretized: the quantizer of sinabs for DYNAP-CNN, the cores of Speck, gets
            each layer first. It scales weights, biases, thresholds and potentials to 8
            and 16 bits.

    Raises:
        ValueError: the quantizer changes a number.
    """
    import torch
    from sinabs.layers import IAFSqueeze

    module = deploy.to_sinabs(layers)
    if is_discretized:
        _check_discretized(module)
    neurons = [part for part in module.modules() if isinstance(part, IAFSqueeze)]
    spikes: Spikes = {}

    def keep(node: deploy.Population) -> Callable[..., None]:
        def hook(part: Any, arguments: Any, levels: Any) -> None:
            levels = levels.reshape(len(x), layers.steps, *node.shape)
            levels = np.moveaxis(levels.detach().numpy(), 0, 1)
            spikes[node.name] = np.moveaxis(levels, 2, -1)

        return hook

    for part, node in zip(neurons, layers.populations, strict=True):
        part.register_forward_hook(keep(node))
    images = np.repeat(np.moveaxis(x, -1, 1), layers.steps, axis=0)
    with torch.no_grad():
        module(torch.tensor(images, dtype=torch.float32))
    return spikes


dynapcnn = functools.partial(sinabs, is_discretized=True)


def _check_discretized(module: Any) -> None:
    """Raise if the quantizer of DYNAP-CNN would change a number of a chain."""
    import sinabs as package
    from sinabs.layers import IAFSqueeze

    # To import the package around it would download and install drivers of chips.
    file = Path(
        *package.__path__,
        "backend",
        "dynapcnn",
        "discretize.py",
    )
    discretized = runpy.run_path(str(file))["discretize_conv_spike"]
    affine = None
    for part in module:
        if isinstance(part, IAFSqueeze):
            _check_unchanged(discretized, _as_convolution(affine), part)
        elif hasattr(part, "weight"):
            affine = part


def _as_convolution(affine: Any) -> Any:
    """A layer of torch as DYNAP-CNN has it: a dense one is a convolution 1x1."""
    import torch

    weight = affine.weight.data
    if weight.ndim == 2:
        weight = weight[:, :, None, None]
    filters, channels, *size = weight.shape
    convolution = torch.nn.Conv2d(channels, filters, size)
    convolution.weight.data = weight.clone()
    convolution.bias.data = torch.zeros(filters)
    if affine.bias is not None:
        convolution.bias.data = affine.bias.data.clone()
    return convolution


def _check_unchanged(discretized: Callable, convolution: Any, neurons: Any) -> None:
    """Raise unless the quantizer returns the numbers that it was given."""

    def numbers(convolution: Any, neurons: Any) -> dict[str, np.ndarray]:
        return {
            "weights": convolution.weight.detach().numpy(),
            "biases": convolution.bias.detach().numpy(),
            "thresholds": neurons.spike_threshold.detach().numpy(),
            "initial potentials": neurons.v_mem.detach().numpy(),
        }

    discrete = numbers(*discretized(convolution, neurons))
    for name, values in numbers(convolution, neurons).items():
        if not np.array_equal(values, discrete[name]):
            count = np.sum(values != discrete[name])
            raise ValueError(f"the quantizer of DYNAP-CNN changes {count} {name}")


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
