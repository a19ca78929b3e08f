"""`from_nir`: a NIR graph as layers, channels first as in the graph.

    v <- (1 - dt / tau) v + (dt / tau) (R I + v_leak)          LIF
    v <- v + R I                                               IF
    z = 1[v > v_threshold], and then v <- v_reset = 0

snnjax fires at v >= V_th, so V_th is the smallest float32 above v_threshold.
``writing.py`` writes graphs and explains their thresholds, gains and tau.

The package nir is optional: functions get it as an argument. They read a NIR node into
nodes of layers without sources, and `from_nir` adds these from the edges of the graph.
"""

import dataclasses
import graphlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snnjax._checks import check_choice, check_file, check_wait
from snnjax._ranges import COUNT, POSITIVE
from snnjax.deploy.lowering.sums import compact
from snnjax.deploy.lowering.unshared_maps import with_unshared_maps
from snnjax.deploy.lowering.values import (
    Arithmetic,
    Convolution,
    Dense,
    Flatten,
    Input,
    Layers,
    Node,
    Output,
    Population,
    Scale,
    Shape,
    SumPool,
    Zeros,
)
from snnjax.deploy.lowering.windows import without_zero_borders
from snnjax.deploy.nir.writing import import_nir
from snnjax.neurons.models import IntegrateAndFire
from snnjax.neurons.spike_trains import BINARY

if TYPE_CHECKING:
    import nir


def from_nir(
    graph: "nir.NIRGraph | str | os.PathLike", *, dt: float | None = None
) -> Layers:
    """Read a NIR graph as layers, written by `to_nir` or by another tool.

    `as_function` makes a function and its SNN of them: images are channels last there.
    A graph of `to_nir` has the same spikes as the layers that it was written from. If
    it is one of whole numbers, `run` computes it as a chip does.

    Args:
        graph: nodes Input, Output, Conv2d, Linear, Affine, Scale, SumPool2d,
            AvgPool2d, Flatten, IF and LIF, without cycles, with one input. Several
            edges into one node are summed. Or the path of a file of ``nir.write``.
        dt: time step in seconds of every LIF; None: "dt" of the graph's metadata, or
            1e-4 without it. IF integrates its whole input at every step.

    Returns:
        The layers. Neurons reset to zero unless their metadata has "reset" "subtract";
        ``steps`` and ``wait`` come from the graph's metadata.

    Raises:
        ValueError: nodes of other types, all in one error; a cycle; neurons that do not
            reset to 0; a tau not above dt; no neuron; a file that holds no graph.
        OSError: there is no such file, or it is a folder.
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
    if isinstance(graph, str | os.PathLike):
        graph = _read(nir, Path(graph).expanduser())
    _check_nodes(nir, graph)
    metadata: dict[str, Any] = graph.metadata or {}
    time_step: Any = dt  # in seconds
    if dt is None:
        time_step = metadata.get("dt", 1e-4)
    POSITIVE.check("dt", time_step)
    steps, wait = _steps_and_wait(metadata)
    # Name of a NIR node -> names of the nodes with an edge to it.
    graph_sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        graph_sources[target].append(source)
    nodes: list[Node] = []
    for name in _execution_order(nir, graph, graph_sources):
        sources = tuple(graph_sources[name])
        # The first node reads what the NIR node reads; each other one reads the node
        # before it. The last one has the name of the NIR node, by which others read it.
        for node in _nodes(nir, name, graph.nodes[name], float(time_step)):
            nodes.append(dataclasses.replace(node, sources=sources))
            sources = (node.name,)
    layers = Layers(tuple(nodes), steps=steps, wait=wait)
    if "weight_bits" in metadata:
        return _with_whole_numbers(layers, graph)
    return layers


def _read(nir: Any, path: Path) -> "nir.NIRGraph":
    """The graph of a file."""
    check_file(path, ".nir", "the path of a file of nir.write")
    try:
        return nir.read(path)
    except Exception as error:  # damaged bytes can cause an error of any class
        raise ValueError(
            f"{path} holds no NIR graph, or is damaged ({error!r}); allowed: a file of "
            "nir.write. Write or fetch it again"
        ) from error


def _steps_and_wait(metadata: dict[str, Any]) -> tuple[int | None, int | None]:
    """T and the wait of the graph's metadata; None, None if the SNN runs with any."""
    if metadata.get("steps") is None:
        return None, None
    try:
        steps = int(metadata["steps"])
        wait = int(metadata.get("wait", 0))
        check_wait(steps, wait)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the graph's metadata has no valid steps and wait: {error}. Delete both "
            "there; the SNN then runs with any steps"
        ) from None
    return steps, wait


def _with_whole_numbers(layers: Layers, graph: "nir.NIRGraph") -> Layers:
    """The layers with the arithmetic and the units of the graph's metadata."""
    metadata = graph.metadata
    bits = ("weight_bits", "input_bits", "state_bits")
    nodes: list[Node] = []
    try:
        # The layers have their steps already, and rate coding is their default. Both
        # are only checked.
        for name in ("steps", *bits):
            COUNT.check(name, metadata[name])
        check_choice("code", _text(metadata["code"]), ("rate",))
        arithmetic = Arithmetic(
            weight_bits=int(metadata["weight_bits"]),
            input_bits=int(metadata["input_bits"]),
            state_bits=int(metadata["state_bits"]),
            overflow=_text(metadata["overflow"]),
        )
        for node in layers.nodes:
            if isinstance(node, Input | Output):
                # A unit that is the same for all elements becomes a scalar.
                unit = compact(graph.nodes[node.name].metadata["unit"])
                node = dataclasses.replace(node, unit=unit)
            nodes.append(node)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the graph's metadata of whole numbers is not valid: {error}. Needed: "
            f'steps, {", ".join(bits)}, overflow, code "rate", and a unit of the input '
            "and each output. Without weight_bits the numbers are read as floats"
        ) from None
    layers = dataclasses.replace(layers, nodes=tuple(nodes), arithmetic=arithmetic)
    # As in `quantize`, whole numbers need a map for each receiver.
    return with_unshared_maps(layers)


# ------------------------------------------------------------------------ layers


def _nodes(nir: Any, name: str, node: Any, dt: float) -> list[Node]:
    """The nodes, one after the other, that do what a node of NIR does.

    Only the neurons of LIF need the time step ``dt``, in seconds.
    """
    match node:
        case nir.IF() | nir.LIF():
            return _population(nir, name, node, dt)
        case nir.Conv2d():
            return [_convolution(name, node)]
        case nir.SumPool2d():
            return [_sum_pool(name, node)]
        case nir.AvgPool2d():
            pool = _sum_pool(f"{name}/sum", node)
            factor = np.array(1 / math.prod(pool.window))
            mean = Scale(name, sources=(), weight=factor, bias=None, shape=())
            return [pool, mean]
        case nir.Affine() | nir.Linear():
            return [_dense(nir, name, node)]
        case nir.Scale():
            weight = _float64(node.scale)
            return [Scale(name, (), weight, bias=None, shape=weight.shape)]
        case nir.Flatten():
            return [_flatten(name, node)]
        case nir.Input():
            return [Input(name, (), _shape(node.input_type["input"]))]
        case _:  # an output: `_check_types` has refused all other types
            shape = _shape(node.output_type["output"])
            return [Output(name, (), shape, bias=np.zeros(()))]


def _sum_pool(name: str, node: Any) -> SumPool:
    """The sums over the windows of a SumPool2d or an AvgPool2d."""
    return SumPool(
        name,
        sources=(),
        window=_pair(node.kernel_size),
        stride=_pair(node.stride),
        padding=_pair(node.padding),
    )


def _dense(nir: Any, name: str, node: Any) -> Dense:
    """A matrix [outputs, inputs], with a bias [outputs] if the node has one."""
    if np.ndim(node.weight) != 2:
        raise ValueError(
            f"node {name!r} has a weight of shape {np.shape(node.weight)}; "
            "allowed: [outputs, inputs]"
        )
    bias = None
    if isinstance(node, nir.Affine):
        bias = _float64(node.bias)
    return Dense(name, sources=(), weight=_float64(node.weight), bias=bias)


def _convolution(name: str, node: Any) -> Convolution:
    """A convolution without the zeros that `to_nir` pads its kernel with."""
    convolution = Convolution(
        name,
        sources=(),
        weight=_float64(node.weight),
        bias=None if node.bias is None else _float64(node.bias),
        size=() if node.input_shape is None else _pair(node.input_shape),
        stride=_pair(node.stride),
        padding=_padding(name, node),
        dilation=_pair(node.dilation),
        groups=int(node.groups),
    )
    return without_zero_borders(convolution)


def _padding(name: str, node: Any) -> tuple[Zeros, ...]:
    """The zeros of a Conv2d: (before, behind) its rows, (before, behind) its columns.

    In the node they are numbers, or one of the names "valid" and "same".
    """
    if not isinstance(node.padding, str):
        rows, columns = _pair(node.padding)
        return (rows, rows), (columns, columns)
    if node.padding == "valid":
        return (0, 0), (0, 0)
    if _pair(node.stride) != (1, 1):
        raise ValueError(
            f"node {name!r} has padding 'same' with stride {_pair(node.stride)}; "
            "allowed: padding in numbers, or stride 1"
        )
    # With "same" there are as many results as elements. A kernel that covers k elements
    # then needs k - 1 zeros; of an odd number, one more behind than before.
    padding = []
    kernel_size = np.shape(node.weight)[2:]
    for taps, dilation in zip(kernel_size, _pair(node.dilation), strict=True):
        zeros = (taps - 1) * dilation
        low = zeros // 2
        padding.append((low, zeros - low))
    return tuple(padding)


def _flatten(name: str, node: Any) -> Flatten:
    """A flattening of a whole image or vector; other ones are refused."""
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
    return Flatten(name, (), _shape(node.input_type["input"]))


def _population(nir: Any, name: str, node: Any, dt: float) -> list[Node]:
    """The neurons of an IF or LIF, behind a scale of their input if they need one.

    Raises:
        ValueError: a tau that is not above dt; a threshold that is not above 0.
    """
    gain = _float64(node.r)  # factor on the input I
    leak = None
    bias = np.zeros(())
    if isinstance(node, nir.LIF):
        # One Euler step: v <- (1 - rate) v + rate (R I + v_leak)
        rate = dt / _float64(node.tau)
        leak = 1 - rate
        gain = rate * gain
        bias = rate * _float64(node.v_leak)
        if not ((leak > 0) & (leak <= 1)).all():
            raise ValueError(
                f"node {name!r} has tau from {np.min(node.tau)} to {np.max(node.tau)} "
                f"s; allowed: above dt = {dt} s. Pass the dt of the tool that wrote "
                "the graph"
            )
    if not np.all(_float64(node.v_threshold) > 0):
        raise ValueError(
            f"node {name!r} has a v_threshold of {np.min(node.v_threshold)}; allowed: "
            "> 0"
        )
    metadata = node.metadata or {}
    population = Population(
        name,
        sources=(),
        shape=np.shape(node.v_threshold),
        model=_model(name, node),
        threshold=_next_float32(node.v_threshold),
        initial_potential=_float64(metadata.get("v_init", 0.0)),
        bias=bias,
        leak=leak,
    )
    # A population has no factor on its input, so the gain becomes a map. R = tau / dt
    # is a gain of 1, up to the rounding of the file.
    if np.allclose(gain, 1, rtol=0, atol=1e-6):
        return [population]
    scale = Scale(f"{name}/gain", sources=(), weight=gain, bias=None, shape=gain.shape)
    return [scale, population]


# -------------------------------------------------------------------- the graph


def _check_nodes(nir: Any, graph: Any) -> None:
    """Raise unless the graph can be read: by its types, numbers, edges and inputs."""
    if not isinstance(graph, nir.NIRGraph):
        raise ValueError(
            f"graph is a {type(graph).__name__}; allowed: a nir.NIRGraph, or the path "
            "of a file of nir.write"
        )
    _check_types(nir, graph)
    for name, node in graph.nodes.items():
        for field, value in vars(node).items():
            is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
            if is_float and np.isnan(value).any():
                raise ValueError(
                    f"node {name!r} has NaN in its {field}; allowed: numbers"
                )
    names = set(graph.nodes)
    open_edges = [edge for edge in graph.edges if not set(edge) <= names]
    if open_edges:
        raise ValueError(
            f"the edges {open_edges} have an end that is no node; nodes: "
            f"{', '.join(graph.nodes)}"
        )
    inputs = _names(graph, nir.Input)
    if len(inputs) != 1:
        raise ValueError(f"the graph has {len(inputs)} inputs {inputs}; allowed: one")
    if not _names(graph, nir.IF | nir.LIF):
        raise ValueError("the graph has no IF or LIF: no neuron would fire")


def _check_types(nir: Any, graph: Any) -> None:
    """Raise one error about all nodes whose types `_nodes` does not know."""
    readable = (
        nir.Input,
        nir.Output,
        nir.Conv2d,
        nir.Linear,
        nir.Affine,
        nir.Scale,
        nir.SumPool2d,
        nir.AvgPool2d,
        nir.Flatten,
        nir.IF,
        nir.LIF,
    )
    unknown = []
    for name, node in graph.nodes.items():
        if not isinstance(node, readable):
            unknown.append(f"{name} ({type(node).__name__})")
    if unknown:
        raise ValueError(
            f"these nodes cannot be read: {', '.join(unknown)}; allowed: "
            f"{', '.join(kind.__name__ for kind in readable)}. Write a nested graph "
            "flat; a neuron with a synaptic time constant (CubaLIF) is not read yet"
        )


def _names(graph: Any, node_type: Any) -> list[str]:
    """The names of the nodes of a type."""
    return [name for name, node in graph.nodes.items() if isinstance(node, node_type)]


def _execution_order(nir: Any, graph: Any, sources: dict[str, list[str]]) -> list[str]:
    """The names of the nodes that the outputs need, each after its sources.

    Args:
        sources: name of each node -> names of the nodes with an edge to it.

    Raises:
        ValueError: a cycle, or a node that no edge leads to.
    """
    needed = _names(graph, nir.Output)
    for name in needed:  # the list grows in the loop, by the sources of its nodes
        for source in sources[name]:
            if source not in needed:
                needed.append(source)
    inputs = _names(graph, nir.Input)
    orphans = [name for name in needed if not sources[name] and name not in inputs]
    if orphans or not needed:
        raise ValueError(f"no edge leads to {', '.join(orphans) or 'an output'}")
    # In the order of the graph, so that independent nodes keep it.
    needed_sources = {name: sources[name] for name in graph.nodes if name in needed}
    try:
        return list(graphlib.TopologicalSorter(needed_sources).static_order())
    except graphlib.CycleError as error:
        cycle = error.args[1]  # its first name is its last one, too
        raise ValueError(
            f"the graph is recurrent: {', '.join(cycle[1:])} depend on each other; "
            "allowed: edges without a cycle"
        ) from None


def _model(name: str, node: Any) -> IntegrateAndFire:
    """The model of an IF or LIF, from v_reset and the metadata that `to_nir` writes."""
    metadata = node.metadata or {}
    # Metadata wins over v_reset, which is 0 in every graph of `to_nir`.
    reset = _text(metadata.get("reset", "zero"))
    problem = None
    if reset not in ("zero", "subtract"):
        problem = reset
    elif reset == "zero" and node.v_reset is not None and np.any(node.v_reset):
        problem = f"v_reset from {np.min(node.v_reset)} to {np.max(node.v_reset)}"
    if problem is not None:
        raise ValueError(
            f"the neurons of node {name!r} have the reset {problem}; allowed: v_reset "
            '0, or metadata {"reset": "subtract"}'
        )
    levels = np.asarray(metadata.get("levels", BINARY)).tolist()
    numbers: dict[str, Any] = {}
    for field in ("dead_zone", "last_zone", "lowest"):
        if field in metadata:
            numbers[field] = float(metadata[field])
    return IntegrateAndFire(tuple(levels), reset, **numbers)


# ----------------------------------------------------------------------- helpers


def _next_float32(threshold: Any) -> np.ndarray:
    """The smallest float32 numbers above a threshold."""
    exact = _float64(threshold)
    rounded = np.asarray(threshold, np.float32)
    next_number = np.nextafter(rounded, np.float32(np.inf))
    # Rounding may have raised the number already.
    return _float64(np.where(rounded > exact, rounded, next_number))


def _text(value: Any) -> Any:
    """Metadata as a str, for which some versions of nir read bytes."""
    if isinstance(value, bytes):
        return value.decode()
    return str(value)


def _shape(shape: Any) -> Shape:
    """A shape of NIR, which is an array."""
    return tuple(map(int, shape))


def _pair(numbers: Any) -> tuple[int, int]:
    """A number for rows and one for columns; NIR may have one for both."""
    rows, columns = np.broadcast_to(np.ravel(numbers), 2)
    return int(rows), int(columns)


def _float64(array: Any) -> np.ndarray:
    """An array in double precision, as layers have them."""
    return np.asarray(array, np.float64)
