"""`to_nir`: a spiking network as a graph of NIR, the format of neuromorphic tools.

    v <- v + (dt / tau) ((v_leak - v) + R I)       z = 1[v > v_threshold]

is one forward Euler step of NIR's LIF. With tau = dt / (1 - leak) and R = 1 it equals
snnjax's v <- leak v + I, if the input is (tau / dt) I / V_th and the next weights
multiply a spike of 1 by V_th. For an IF the factor tau / dt is 1.

All thresholds and resistances become 1, because several readers assume that. The number
written is the largest float32 below 1: NIR fires at v > 1, snnjax at v >= V_th.
``lowering.py`` makes the layers, this file writes them as nodes of the package nir.
Source: Pedersen et al., Neuromorphic intermediate representation, 2024.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import chex
import jax
import numpy as np

from snnjax._checks import check_examples, check_positive
from snnjax._examples import is_all_floating
from snnjax.capture.capture import capture
from snnjax.neurons.by_site import models_in
from snnjax.neurons.models import is_plain
from snnjax.neurons.spike_trains import BINARY
from snnjax.layers.lowering import lower, without_surrogate
from snnjax.layers.values import (
    Conv,
    Dense,
    Flatten,
    Graph,
    Input,
    Neurons,
    Node,
    Output,
    Pool,
    Scale,
)
from snnjax.layers.sums import numbers
from snnjax.snn import SNN, check_neurons, check_snn, check_values

if TYPE_CHECKING:
    import nir


def to_nir(
    fn: Callable,
    snn: SNN,
    x: chex.Array | jax.ShapeDtypeStruct,
    *,
    extended: bool = False,
    dt: float = 1e-4,
) -> "nir.NIRGraph":
    """Write a spiking network as a NIR graph, channels first, for other tools.

    Convolutions, matrix products, BatchNorm, sums, scales, pooling by sum or average,
    flatten, strided and zero-padded shortcuts become `Conv2d`, `Affine`, `Scale`,
    `SumPool2d`, `AvgPool2d` and `Flatten`. BatchNorm and thresholds are folded into
    the weights, calibrated biases into the biases of layers. Several edges into one
    node are a sum.

    Images may be reordered only from [H, W, C] to [C, H, W] and back, and flattened.
    Images that fn flips, permutes or crops are refused.

    NIR cannot express five properties of a converted network: reset by subtraction,
    levels other than 0 and 1, initial potentials, a wait, and the T that it was fitted
    to. With ``extended`` they are written to ``metadata``: "reset", "levels",
    "dead_zone" and "v_init" of a neuron, "wait" and "steps" of the graph. `from_nir`
    reads them. Other tools ignore them and compute something else; that is why this is
    an argument and not a warning, which would not be in the file. T is always written,
    because it changes no simulation.

    Args:
        fn: network, ``fn(params, x) -> outputs``; it is traced with one example.
        snn: from `snnjax.convert` or `snnjax.init`.
        x: float [B, ...] or a ``jax.ShapeDtypeStruct``: only the shape is used. An
            image is [B, H, W, C], or [B, C, H, W] if fn's convolutions read it so; the
            graph is the same.
        extended: allow properties that only metadata can express.
        dt: time step in seconds on which the LIF's tau is based; it is also written to
            the graph's metadata. IF integrates its whole input at every step, as all
            readers do.

    Returns:
        A ``nir.NIRGraph``: "input", neurons and layers named after their paths,
        "output" (several: "output_" and the path). An output is [C, H, W] if it is an
        image, or else a vector of fn's elements in fn's order ([1] for one number). All
        numbers are float32.

    Raises:
        snnjax.ConversionError: with every operation that NIR has no node for, its path
            and the remedy; max-pool is one of them.
        ValueError: a code other than rate coding; x without an axis of features; a
            property that only metadata can express, without ``extended``; a neuron
            model other than IF and LIF; a threshold that is not finite and > 0; a site
            where some neurons leak and others do not; dt not above 0.
        ImportError: the package ``nir`` is missing.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
    >>> weights = [jnp.ones((3, 8)), jnp.ones((8, 2))]
    >>> neuron = snnjax.lif(leak=0.5, reset="zero")
    >>> snn = snnjax.init(fn, weights, jnp.ones((1, 3)), model=neuron)
    >>> graph = to_nir(fn, snn, jnp.ones((1, 3)))
    >>> [type(node).__name__ for node in graph.nodes.values()]
    ['Input', 'Affine', 'LIF', 'Affine', 'Output']
    """
    nir = import_nir()
    check_snn(snn)
    check_positive("dt", dt)
    check_values(snn)
    check_examples(x)
    if not hasattr(x, "shape") or not is_all_floating(x):
        raise ValueError(
            f"x is {jax.tree.map(lambda leaf: str(leaf.dtype), x)}; allowed: one array "
            "of floating point, which is all that an Input node of NIR takes"
        )
    if len(x.shape) < 2:
        raise ValueError(
            f"x has shape {x.shape}; allowed: [B, ...], with an axis of features as in "
            "x[:, None]"
        )
    shape = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    network = capture(fn, snn.params, shape, inline_all=True)
    check_neurons(snn, network.sites)
    _check_models(snn)
    graph = lower(network, snn)
    if not extended:
        _check_needs_no_metadata(snn)
    names = _alphabetical(graph)
    nodes = {names[n]: _node(nir, node, dt) for n, node in graph.nodes.items()}
    edges = [
        (names[source], names[n])
        for n, sources in graph.sources.items()
        for source in sources
    ]
    metadata = {"dt": dt}
    if snn.steps is not None:
        metadata["steps"] = snn.steps
    if snn.wait:
        metadata["wait"] = snn.wait
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata)


def import_nir() -> ModuleType:
    """The package ``nir``, of a version whose neurons have ``v_reset``."""
    try:
        import nir
    except ImportError as error:
        raise ImportError(
            'NIR graphs need the package nir: pip install "snnjax[nir]"'
        ) from error
    if "v_reset" not in {field.name for field in dataclasses.fields(nir.IF)}:
        raise ImportError(
            f"neurons of nir {nir.version} have no v_reset; needed: nir >= 1.0.7, "
            'pip install "snnjax[nir]"'
        )
    return nir


def _alphabetical(graph: Graph) -> dict[str, str]:
    """Names that sort in order of execution.

    A file lists its nodes in the order of their names, and some readers execute them
    in that order.
    """
    width = len(str(len(graph.nodes)))
    return {
        name: name if isinstance(node, Input | Output) else f"n{i:0{width}}_{name}"
        for i, (name, node) in enumerate(graph.nodes.items())
    }


def _check_models(snn: SNN) -> None:
    if not snn.code.clock_runs:
        raise ValueError(
            f"NIR cannot express the code {snn.code!r}: its neurons have another "
            "threshold at each step, and bias and input enter once. A chip needs "
            "thresholds that it changes step by step and spikes that carry a number, "
            "or potentials that it shifts. Convert with code=snnjax.codes.rate()"
        )
    for model in map(without_surrogate, models_in(snn.model)):
        if not is_plain(model):
            raise ValueError(
                f"NIR cannot express the neurons of {model!r}; allowed: models of "
                "snnjax.integrate_and_fire and snnjax.lif"
            )


def _check_needs_no_metadata(snn: SNN) -> None:
    """Raise if plain NIR would describe another network."""
    extensions = []
    for model in map(without_surrogate, models_in(snn.model)):
        if model.reset == "subtract":
            extensions.append("reset by subtraction (in NIR: v <- v_reset)")
        if model.levels != BINARY:
            extensions.append(f"the levels {model.levels} (in NIR: {BINARY})")
        if model.dead_zone:
            extensions.append(f"the dead zone {model.dead_zone} (in NIR: none)")
    if any(np.any(numbers(n.initial_potential)) for n in snn.neurons.values()):
        extensions.append("initial potentials (in NIR: 0)")
    if snn.wait:
        extensions.append(f"wait {snn.wait} (in NIR: none)")
    if extensions:
        raise ValueError(
            f"NIR cannot express: {'; '.join(dict.fromkeys(extensions))}. "
            "extended=True writes this as metadata, which snnjax.from_nir reads; other "
            "tools ignore it and compute something else. Every tool runs neurons with "
            'reset "zero", levels (0, 1), no initial potential and wait 0'
        )


# ------------------------------------------------------------------- NIR's nodes


def _node(nir: Any, node: Node, dt: float) -> Any:
    match node:
        case Input(shape):
            return nir.Input({"input": np.array(shape)})
        case Output(shape):
            return nir.Output({"output": np.array(shape)})
        case Flatten(shape):
            return nir.Flatten({"input": np.array(shape)}, 0, -1)
        case Dense(weight, bias):
            return nir.Affine(_float(weight), _float(bias))
        case Scale(factor):
            return nir.Scale(_float(factor))
        case Pool(window, stride, padding, average):
            kind = nir.AvgPool2d if average else nir.SumPool2d
            return kind(np.array(window), np.array(stride), np.array(padding))
        case Conv(_, bias, size, stride, padding, dilation):
            weight = _float(_ungrouped(node))
            return nir.Conv2d(size, weight, stride, padding, dilation, 1, _float(bias))
        case Neurons():
            return _neurons(nir, node, dt)


def _ungrouped(node: Conv) -> np.ndarray:
    """The weights [O, I, K, K] for all inputs, with zeros between the groups.

    NIR up to 1.0.8 infers I / groups inputs for a grouped convolution, so its own
    reader refuses the graph; some other readers ignore the groups.
    """
    outputs, inputs, *window = node.weight.shape
    wide = np.zeros((outputs, inputs * node.groups, *window))
    size = outputs // node.groups
    for group in range(node.groups):
        rows = slice(group * size, (group + 1) * size)
        wide[rows, group * inputs : (group + 1) * inputs] = node.weight[rows]
    return wide


def _neurons(nir: Any, node: Neurons, dt: float) -> Any:
    shape, model = node.initial_potential.shape, node.model
    one, zero = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    below = np.nextafter(one, zero)  # v > below is v >= 1
    metadata: dict[str, Any] = {}
    if model.reset == "subtract":
        metadata["reset"] = model.reset
    if model.levels != BINARY:
        metadata["levels"] = np.array(model.levels)
    if model.dead_zone:
        metadata["dead_zone"] = model.dead_zone
    if node.initial_potential.any():
        metadata["v_init"] = _float(node.initial_potential)
    fields = dict(r=one, v_threshold=below, v_reset=zero, metadata=metadata)
    if node.leak is None:
        return nir.IF(**fields)
    return nir.LIF(tau=_float(dt / (1 - node.leak)), v_leak=zero, **fields)


def _float(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
