"""`from_nir`: a NIR graph as layers, channels first as in the graph.

    v <- (1 - dt / tau) v + (dt / tau) (R I + v_leak)          LIF
    v <- v + R I                                               IF
    z = 1[v > v_threshold], and then v <- v_reset = 0

snnjax fires at v >= V_th, so V_th is the smallest float32 above v_threshold.
``writing.py`` writes graphs and explains their thresholds, gains and tau.
"""

import dataclasses
import graphlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from snnjax._checks import check_choice, check_wait
from snnjax._ranges import COUNT, POSITIVE
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.sums import compact
from snnjax.deploy.lowering.unshared_maps import with_unshared_maps
from snnjax.deploy.lowering.windows import without_zero_borders
from snnjax.deploy.nir.writing import import_nir
from snnjax.neurons.models import IntegrateAndFire
from snnjax.neurons.spike_trains import BINARY

if TYPE_CHECKING:
    import nir


def from_nir(graph: "nir.NIRGraph", *, dt: float | None = None) -> values.Layers:
    """Read a NIR graph as layers, written by `to_nir` or by another tool.

    `as_function` makes a function and its SNN of them: images are channels last there.
    A graph of `to_nir` has the same spikes as the layers that it was written from. If
    it is one of whole numbers, `run` computes it as a chip does.

    Args:
        graph: nodes Input, Output, Conv2d, Linear, Affine, Scale, SumPool2d,
            AvgPool2d, Flatten, IF and LIF, without cycles, with one input. Several
            edges into one node are summed.
        dt: time step in seconds of every LIF; None: "dt" of the graph's metadata, or
            1e-4 without it. IF integrates its whole input at every step.

    Returns:
        The layers. Neurons reset to zero unless their metadata has "reset" "subtract";
        ``steps`` and ``wait`` come from the graph's metadata.

    Raises:
        ValueError: nodes of other types, all in one error; a cycle; neurons that do not
            reset to 0; a tau not above dt; no neuron.
        ImportError: the package ``nir`` is missing.

    >>> import jax.numpy as jnp, nir, numpy as np, snnjax
    >>> graph = nir.NIRGraph.from_list(
    ...     nir.Input({"input": np.array([2])}),
    ...     nir.Affine(np.array([[0.5, 0.0], [0.0, 1.0]]), np.array([0.0, 0.125])),
    ...     nir.IF(r=np.ones(2), v_threshold=np.ones(2)))
    >>> fn, snn = snnjax.deploy.as_function(from_nir(graph))
    >>> print(snnjax.spiking(fn, steps=4)(snn, jnp.array([[1.5, 1.0]]))[:, 0])
    [[0. 1.]
     [1. 1.]
     [0. 1.]
     [1. 1.]]
    """
    nir = import_nir()
    _check_nodes(nir, graph)
    metadata = graph.metadata or {}
    duration: Any = metadata.get("dt", 1e-4) if dt is None else dt
    POSITIVE.check("dt", duration)
    steps, wait = _steps_and_wait(metadata)
    sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        sources[target].append(source)
    order = _execution_order(nir, graph, sources)
    nodes: list[values.Node] = []
    for name in order:
        names = tuple(sources[name])
        # The first of them has the sources, each other one reads the one before it.
        for node in _read(nir, name, graph.nodes[name], float(duration)):
            nodes.append(dataclasses.replace(node, sources=names))
            names = (node.name,)
    layers = values.Layers(tuple(nodes), steps=steps, wait=wait)
    return _of_whole_numbers(layers, graph) if "weight_bits" in metadata else layers


def _steps_and_wait(metadata: dict[str, Any]) -> tuple[int | None, int | None]:
    """The steps and wait that an SNN was fitted to, from its graph's metadata."""
    if metadata.get("steps") is None:
        return None, None
    try:
        steps, wait = int(metadata["steps"]), int(metadata.get("wait", 0))
        check_wait(steps, wait)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the graph's metadata has no valid steps and wait: {error}. Delete both "
            "there; the SNN then runs with any steps"
        ) from None
    return steps, wait


def _of_whole_numbers(layers: values.Layers, graph: "nir.NIRGraph") -> values.Layers:
    """The layers with the arithmetic and the units of the graph's metadata."""
    metadata, nodes = graph.metadata, {node.name: node for node in layers.nodes}
    bits = ("weight_bits", "input_bits", "state_bits")
    try:
        for name in ("steps", *bits):
            COUNT.check(name, metadata[name])
        check_choice("code", _text(metadata["code"]), ("rate",))
        numbers: dict[str, Any] = {name: int(metadata[name]) for name in bits}
        arithmetic = values.Arithmetic(**numbers, overflow=_text(metadata["overflow"]))
        for name, node in nodes.items():
            if isinstance(node, values.Input | values.Output):
                unit = compact(graph.nodes[name].metadata["unit"])
                nodes[name] = dataclasses.replace(node, unit=unit)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the graph's metadata of whole numbers is not valid: {error}. Needed: "
            f'steps, {", ".join(bits)}, overflow, code "rate", and a unit of the input '
            "and each output. Without weight_bits the numbers are read as floats"
        ) from None
    whole = tuple(nodes.values())
    layers = dataclasses.replace(layers, nodes=whole, arithmetic=arithmetic)
    return with_unshared_maps(layers)


# ------------------------------------------------------------------------ layers


def _read(nir: Any, name: str, node: Any, dt: float) -> list[values.Node]:
    """The nodes, one after the other, that do what a node of NIR does."""
    match node:
        case nir.IF() | nir.LIF():
            return _spiking(nir, name, node, dt)
        case nir.Conv2d():
            return [_convolution(name, node)]
        case nir.SumPool2d() | nir.AvgPool2d():
            window, stride = _pair(node.kernel_size), _pair(node.stride)
            pool = values.SumPool(name, (), window, stride, _pair(node.padding))
            if isinstance(node, nir.SumPool2d):
                return [pool]
            mean = values.Scale(name, (), np.array(1 / math.prod(window)), None, ())
            return [dataclasses.replace(pool, name=f"{name}/sum"), mean]
        case nir.Affine() | nir.Linear():
            if np.ndim(node.weight) != 2:
                raise ValueError(
                    f"node {name!r} has a weight of shape {np.shape(node.weight)}; "
                    "allowed: [outputs, inputs]"
                )
            bias = None if isinstance(node, nir.Linear) else _numbers(node.bias)
            return [values.Dense(name, (), _numbers(node.weight), bias)]
        case nir.Scale():
            weight = _numbers(node.scale)
            return [values.Scale(name, (), weight, None, weight.shape)]
        case nir.Flatten():
            return [_flatten(name, node)]
        case nir.Input():
            return [values.Input(name, (), _shape(node.input_type["input"]))]
    shape = _shape(node.output_type["output"])
    return [values.Output(name, (), shape, np.zeros(()))]


def _convolution(name: str, node: Any) -> values.Convolution:
    """A convolution without the zeros that `to_nir` pads its kernel with."""
    convolution = values.Convolution(
        name,
        sources=(),
        weight=_numbers(node.weight),
        bias=None if node.bias is None else _numbers(node.bias),
        size=() if node.input_shape is None else _pair(node.input_shape),
        stride=_pair(node.stride),
        padding=_padding(name, node),
        dilation=_pair(node.dilation),
        groups=int(node.groups),
    )
    return without_zero_borders(convolution)


def _padding(name: str, node: Any) -> tuple[tuple[int, int], ...]:
    """The zeros before and behind both axes, which may be given by name."""
    by_name = isinstance(node.padding, str)
    if by_name and node.padding == "valid":
        return (0, 0), (0, 0)
    if not by_name:
        rows, columns = _pair(node.padding)
        return (rows, rows), (columns, columns)
    if _pair(node.stride) != (1, 1):
        raise ValueError(
            f"node {name!r} has padding 'same' with stride {_pair(node.stride)}; "
            "allowed: padding in numbers, or stride 1"
        )
    padding = []
    taps = np.shape(node.weight)[2:]
    for count, dilation in zip(taps, _pair(node.dilation), strict=True):
        zeros = (count - 1) * dilation
        padding.append((zeros // 2, zeros - zeros // 2))
    return tuple(padding)


def _flatten(name: str, node: Any) -> values.Flatten:
    if node.input_type["input"] is None:
        raise ValueError(
            f"node {name!r} has no input shape; pass it as Flatten's input_type"
        )
    axes = len(node.input_type["input"])
    if node.start_dim % axes or node.end_dim % axes != axes - 1:
        raise ValueError(
            f"node {name!r} flattens axes {node.start_dim} to {node.end_dim} of "
            f"{axes}; allowed: all of them, 0 to -1 (the batch is not counted)"
        )
    return values.Flatten(name, (), _shape(node.input_type["input"]))


def _spiking(nir: Any, name: str, node: Any, dt: float) -> list[values.Node]:
    gain, leak, bias = _numbers(node.r), None, np.zeros(())
    if isinstance(node, nir.LIF):
        rate = dt / _numbers(node.tau)
        leak, gain, bias = 1 - rate, gain * rate, _numbers(node.v_leak) * rate
        if not ((leak > 0) & (leak <= 1)).all():
            raise ValueError(
                f"node {name!r} has tau from {np.min(node.tau)} to {np.max(node.tau)} "
                f"s; allowed: above dt = {dt} s. Pass the dt of the tool that wrote "
                "the graph"
            )
    if not np.all(_numbers(node.v_threshold) > 0):
        raise ValueError(
            f"node {name!r} has v_threshold from {np.min(node.v_threshold)}; allowed: "
            "> 0"
        )
    shape, model = np.shape(node.v_threshold), _model(name, node)
    v_th, start = _above(node.v_threshold), (node.metadata or {}).get("v_init", 0.0)
    numbers = v_th, _numbers(start), bias, leak
    population = values.Population(name, (), shape, model, *numbers)
    # A population has no factor on its input, so R and dt / tau become a map.
    if (gain == 1).all():
        return [population]
    return [values.Scale(f"{name}/gain", (), gain, None, gain.shape), population]


# -------------------------------------------------------------------- the graph


def _check_nodes(nir: Any, graph: Any) -> None:
    """Raise unless every node has a layer here and every edge has two nodes."""
    if not isinstance(graph, nir.NIRGraph):
        raise ValueError(f"graph is a {type(graph).__name__}; allowed: nir.NIRGraph")
    readable = (nir.Input, nir.Output, nir.Conv2d, nir.Linear, nir.Affine, nir.Scale)
    readable += (nir.SumPool2d, nir.AvgPool2d, nir.Flatten, nir.IF, nir.LIF)
    others = [
        f"{name} ({type(node).__name__})"
        for name, node in graph.nodes.items()
        if not isinstance(node, readable)
    ]
    if others:
        raise ValueError(
            f"these nodes cannot be read: {', '.join(others)}; allowed: "
            f"{', '.join(kind.__name__ for kind in readable)}. Write a nested graph "
            "flat; a neuron with a synaptic time constant (CubaLIF) is not read yet"
        )
    for name, node in graph.nodes.items():
        for field, value in vars(node).items():
            is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
            if is_float and np.isnan(value).any():
                raise ValueError(
                    f"node {name!r} has NaN in its {field}; allowed: numbers"
                )
    open_edges = [edge for edge in graph.edges if not set(edge) <= set(graph.nodes)]
    if open_edges:
        raise ValueError(
            f"the edges {open_edges} have an end that is no node; nodes: "
            f"{', '.join(graph.nodes)}"
        )
    inputs = [n for n, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(inputs) != 1:
        raise ValueError(f"the graph has {len(inputs)} inputs {inputs}; allowed: one")
    if not any(isinstance(node, nir.IF | nir.LIF) for node in graph.nodes.values()):
        raise ValueError("the graph has no IF or LIF: no neuron would fire")


def _execution_order(nir: Any, graph: Any, sources: dict[str, list[str]]) -> list[str]:
    """The nodes that the outputs need, each after its sources."""
    needs = [n for n, node in graph.nodes.items() if isinstance(node, nir.Output)]
    for name in needs:  # grows in the loop, to the sources of all of them
        needs += [s for s in dict.fromkeys(sources[name]) if s not in needs]
    orphans = [
        n for n in needs if not (sources[n] or isinstance(graph.nodes[n], nir.Input))
    ]
    if orphans or not needs:
        raise ValueError(f"no edge leads to {', '.join(orphans) or 'an output'}")
    needed_sources = {n: sources[n] for n in graph.nodes if n in needs}
    try:
        return [*graphlib.TopologicalSorter(needed_sources).static_order()]
    except graphlib.CycleError as error:
        raise ValueError(
            f"the graph is recurrent: {', '.join(error.args[1][1:])} depend on each "
            "other; allowed: edges without a cycle"
        ) from None


def _model(name: str, node: Any) -> IntegrateAndFire:
    """The model of a node; what plain NIR does not express is metadata."""
    # Metadata wins over v_reset, which says "zero" in every graph of `to_nir`.
    metadata = node.metadata or {}
    reset = _text(metadata.get("reset", "zero"))
    if reset == "zero" and node.v_reset is not None and np.any(node.v_reset):
        reset = f"v_reset from {np.min(node.v_reset)} to {np.max(node.v_reset)}"
    levels = tuple(np.asarray(metadata.get("levels", BINARY)).tolist())
    if reset not in ("zero", "subtract"):
        raise ValueError(
            f"the neurons of node {name!r} have the reset {reset}; allowed: v_reset 0, "
            'or metadata {"reset": "subtract"}'
        )
    zones = ("dead_zone", "last_zone", "lowest")
    numbers: dict[str, Any] = {n: float(metadata[n]) for n in zones if n in metadata}
    return IntegrateAndFire(levels, reset, **numbers)


# ----------------------------------------------------------------------- helpers


def _above(threshold: Any) -> np.ndarray:
    """The smallest float32 numbers above a threshold."""
    exact, rounded = _numbers(threshold), np.asarray(threshold, np.float32)
    next_number = np.nextafter(rounded, np.float32(np.inf))
    return _numbers(np.where(rounded > exact, rounded, next_number))


def _text(value: Any) -> Any:
    """Metadata as text, which some versions of nir read as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _shape(shape: Any) -> tuple[int, ...]:
    return tuple(map(int, shape))


def _pair(numbers: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(np.ravel(numbers), 2)
    return int(first), int(second)


def _numbers(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)
