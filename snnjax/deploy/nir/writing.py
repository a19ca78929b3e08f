"""`to_nir`: layers as a graph of NIR.

    v <- v + (dt / tau) ((v_leak - v) + R I)       z = 1[v > v_threshold]

is one forward Euler step of NIR's LIF. With tau = dt / (1 - leak) and R = tau / dt it
equals snnjax's v <- leak v + I, if the input is I / V_th and the next weights multiply
a spike of 1 by V_th. An IF has R = 1.

Readers differ: some take dt for tau / R, and some ignore R. For the latter an LIF may
have R = 1 too (``unit_resistance``), and its input is (tau / dt) I / V_th. Thresholds
of floats become 1, because several readers assume that.
Thresholds that are whole numbers stay. NIR fires at v > v_threshold and snnjax at
v >= V, so v_threshold is the largest float32 below V. Whole potentials then give the
same spikes in readers that fire at v >= v_threshold, where V - 1 would not, and in
readers that subtract v_threshold, where V - 1/2 would not.
Source: Pedersen et al., Neuromorphic intermediate representation, 2024.

Nodes of layers are first changed into nodes that NIR has (`_with_written_params`), and
each one then becomes a node of NIR (`_nir_node`). Functions get the package nir, which
is optional, as an argument.
"""

import dataclasses
import math
import re
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from snnjax._ranges import POSITIVE
from snnjax._trees import distinct
from snnjax.deploy.lowering.products import with_products
from snnjax.deploy.lowering.sums import NoLayer, compact, is_channelwise, per_channel
from snnjax.deploy.lowering.values import (
    Convolution,
    Dense,
    Flatten,
    Input,
    Layers,
    Node,
    Output,
    Population,
    Receiver,
    Scale,
    SumPool,
    check_layers,
    count_readers,
    maps_to_itself,
)
from snnjax.deploy.lowering.windows import with_equal_padding
from snnjax.network.capture.check import ConversionError, Problem
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.models import IntegrateAndFire

if TYPE_CHECKING:
    import nir


def to_nir(
    layers: Layers,
    *,
    extended: bool = False,
    dt: float = 1e-4,
    unit_resistance: bool = False,
) -> "nir.NIRGraph":
    """Write layers as a NIR graph, channels first, for other tools.

    Maps become `Conv2d`, `Affine`, `Scale`, `SumPool2d`, `AvgPool2d` and `Flatten`, and
    neurons become `IF` and `LIF`. Thresholds of floats are multiplied into the weights,
    and calibrated biases are added to those of layers. Whole numbers stay whole.
    Several edges into one node are a sum.

    NIR cannot express six properties of a converted network: reset by subtraction,
    levels other than 0 and 1, initial potentials, a lower bound, a wait, and the T that
    it was fitted to. With ``extended`` they are written to ``metadata``: "reset",
    "levels", "dead_zone", "last_zone", "lowest" (in thresholds) and "v_init" of a
    neuron, "wait" and "steps" of the graph. `from_nir` reads them. Other tools ignore
    them and send other spikes. A warning would not be in the file, so this is an
    argument. T is always written, because it changes no simulation.

    A graph of whole numbers takes x / unit, rounded and clipped to its bits, and
    returns whole sums, to be multiplied by the unit of the output. The metadata of the
    input and of each output has its "unit", and that of the graph has "code" and the
    fields of `Arithmetic`. A reader that ignores all metadata has the spikes of `run`
    if plain NIR expresses the neurons and no potential leaves its bits.

    Args:
        layers: from `layers`, `quantize` or `from_nir`.
        extended: allow properties that only metadata can express.
        dt: time step in seconds on which the LIF's tau is based; it is also written to
            the graph's metadata. IF integrates its whole input at every step.
        unit_resistance: give an LIF R = 1 and multiply its weights by tau / dt, for
            readers that ignore R, as Norse does; otherwise R = tau / dt.

    Returns:
        A ``nir.NIRGraph`` with the nodes "input" and "output", or "output_" and the
        path for each of several outputs. Neurons and layers are named after their
        paths. An output is an image [C, H, W], or else a vector in the order of fn's
        elements. All numbers are float32.

    Raises:
        snnjax.ConversionError: a bias that differs between pixels.
        ValueError: a code other than rate coding; properties that need ``extended``; a
            site where only some neurons leak; potentials of more than 25 bits, which
            float32 does not hold; dt <= 0.
        ImportError: the package ``nir`` is missing.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
    >>> weights, x = [jnp.ones((3, 8)), jnp.ones((8, 2))], jnp.ones((1, 3))
    >>> neuron = snnjax.lif(leak=0.5, reset="zero")
    >>> snn = snnjax.init(fn, weights, x, model=neuron)
    >>> graph = to_nir(snnjax.deploy.layers(fn, snn, x))
    >>> [type(node).__name__ for node in graph.nodes.values()]
    ['Input', 'Affine', 'LIF', 'Affine', 'Output']
    """
    nir = import_nir()
    POSITIVE.check("dt", dt)
    _check(layers)
    if not extended:
        _check_needs_no_metadata(layers)
    nodes = _with_averages(_with_written_params(layers, unit_resistance))
    names = _graph_names(nodes)
    graph_nodes = {}
    edges = []
    for node in nodes.values():
        name = names[node.name]
        graph_nodes[name] = _nir_node(nir, node, dt, unit_resistance)
        for source in node.sources:
            edges.append((names[source], name))
    metadata = _metadata(layers, dt)
    return nir.NIRGraph(nodes=graph_nodes, edges=edges, metadata=metadata)


def _metadata(layers: Layers, dt: float) -> dict[str, Any]:
    """The metadata of the whole graph, beside those of its nodes."""
    metadata: dict[str, Any] = {"dt": dt}
    if layers.steps is not None:
        metadata["steps"] = layers.steps
    if layers.wait:
        metadata["wait"] = layers.wait
    if layers.arithmetic is not None:
        # Readers of whole numbers ask for the code, and `_check` has refused others.
        metadata["code"] = "rate"
        metadata |= dataclasses.asdict(layers.arithmetic)
        # It has also refused leaky neurons in whole numbers: no leak is rounded.
        del metadata["leak"]
    return metadata


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


def _graph_names(nodes: dict[str, Node]) -> dict[str, str]:
    """Name of a node of layers -> its name in the graph, without punctuation.

    A file lists its nodes in the order of their names, and some readers execute them
    in that order. So the names sort in order of execution. Inputs and outputs compute
    nothing and keep their names, by which a reader addresses them.
    """
    digits = len(str(len(nodes)))
    names = []
    for i, node in enumerate(nodes.values()):
        name = re.sub(r"\W+", "_", node.name).strip("_")
        if not isinstance(node, Input | Output):
            name = f"n{i:0{digits}}_{name}"
        names.append(name)
    return dict(zip(nodes, distinct(names), strict=True))


def _check(layers: Layers) -> None:
    """Raise if NIR has no form for these layers, not even with metadata."""
    check_layers(layers)
    if not layers.code.is_streaming():
        raise ValueError(
            f"NIR cannot express the code {layers.code!r}: its neurons have another "
            "threshold at each step, and bias and input enter once. A chip needs "
            "thresholds that it changes step by step and spikes that carry a number, "
            "or potentials that it shifts. Convert with code=snnjax.codes.rate()"
        )
    if layers.arithmetic is None:
        return
    if any(population.is_leaky for population in layers.populations):
        raise ValueError(
            "NIR cannot express how a chip rounds a leak; allowed: float layers, or "
            "whole numbers of IF neurons"
        )
    if layers.arithmetic.state_bits > 25:
        raise ValueError(
            f"state_bits is {layers.arithmetic.state_bits}; allowed in NIR: up to 25, "
            "since readers compute in float32"
        )


def _check_needs_no_metadata(layers: Layers) -> None:
    """Raise if plain NIR would describe another network."""
    extensions: dict[str, Any] = {}  # name of a property -> a value of it
    if layers.wait:
        extensions["wait"] = layers.wait
    for population in layers.populations:
        for name, value in _extensions(population).items():
            # A dead zone of at most half a threshold changes no spike.
            if name != "dead_zone" or value > 1 / 2:
                extensions[name] = value
    if not extensions:
        return
    properties = []
    for name, value in extensions.items():
        # The numbers of many neurons would make the message too long.
        properties.append(name if np.size(value) > 2 else f"{name} {value}")
    raise ValueError(
        f"NIR cannot express: {', '.join(properties)}. extended=True writes "
        "this as metadata, which from_nir reads; other tools ignore it and "
        'compute something else. Every tool runs neurons with reset "zero", levels '
        "(0, 1), no dead zone, no initial potential, no lower bound and wait 0"
    )


# ------------------------------------------------------------------- NIR's nodes


def _with_written_params(layers: Layers, unit_resistance: bool) -> dict[str, Node]:
    """Name -> node: kernels are square as in NIR, and weights hold what they can.

    The biases and thresholds of populations go into the maps before them. Thresholds
    that are whole numbers stay where they are.

    Raises:
        ConversionError: a bias that differs between pixels.
    """
    nodes: list[Node] = []
    problems: list[Problem] = []
    for node in layers.nodes:
        try:
            if isinstance(node, Receiver):
                nodes += _receiver_parts(node, layers, unit_resistance)
            elif isinstance(node, Convolution):
                # NIR has one number for both sides, and some readers assume a square.
                nodes.append(with_equal_padding(node))
            else:
                nodes.append(node)
        except NoLayer as error:
            problems.append(Problem(node.name, (), *error.args))
    if problems:
        raise ConversionError(problems, "this network cannot be written in NIR")
    return {node.name: node for node in with_products(nodes)}


def _receiver_parts(
    receiver: Receiver, layers: Layers, unit_resistance: bool
) -> list[Node]:
    """The nodes in place of a population or an output, which is the last of them.

    Before it there is a scale for each of its sources, and one that adds its bias.
    `with_products` then multiplies these into the maps before them.

    Raises:
        NoLayer: a recurrent population; a bias that differs between pixels.
    """
    if maps_to_itself(receiver):
        remedy = "keep the SNN by snnjax.save, or train neurons without a kernel"
        raise NoLayer("its neurons are recurrent, which is not written", remedy)
    bias = receiver.bias
    gain = np.ones(())
    if isinstance(receiver, Population) and layers.arithmetic is None:
        receiver, gain = _with_unit_threshold(receiver, unit_resistance)
    parts: list[Node] = []
    sources: list[str] = []
    for i, source in enumerate(receiver.sources):
        scale = Scale(
            f"{receiver.name}/scale {i}",
            sources=(source,),
            weight=gain,
            bias=None,
            shape=receiver.shape,
        )
        parts.append(scale)
        sources.append(scale.name)
    bias = np.broadcast_to(gain * bias, receiver.shape)
    if bias.any():
        # Since sources are summed, any one of them may add the bias.
        place = _place_of_bias(receiver, layers)
        with_bias = Scale(
            f"{receiver.name}/bias",
            sources=(sources[place],),
            weight=np.ones(()),
            bias=per_channel(bias),
            shape=receiver.shape,
        )
        parts.append(with_bias)
        sources[place] = with_bias.name
    zero = np.zeros(())
    parts.append(dataclasses.replace(receiver, sources=tuple(sources), bias=zero))
    return parts


def _with_unit_threshold(
    population: Population, unit_resistance: bool
) -> tuple[Population, np.ndarray]:
    """The population with a threshold of 1, and the factor on its input for that.

    Its potential is counted in thresholds. The factor broadcasts to its neurons.
    """
    leak = _leak(population)
    # The Euler step of an LIF multiplies its input by R dt / tau, where dt / tau is
    # 1 - leak. That is 1 unless R is 1.
    rate = 1 - leak if unit_resistance and leak is not None else 1
    gain = compact(1 / (rate * population.threshold))
    population = dataclasses.replace(
        population,
        threshold=np.ones(()),
        initial_potential=population.initial_potential / population.threshold,
        leak=leak,
    )
    return population, gain


def _place_of_bias(receiver: Receiver, layers: Layers) -> int:
    """The index of the source whose map can best hold a bias.

    Weights that only this receiver reads can. A scale with a bias is a matrix in NIR,
    so it comes after convolutions and matrices.
    """
    nodes = {node.name: node for node in layers.nodes}
    reader_counts = count_readers(layers.nodes)
    ranks = []
    for source in receiver.sources:
        rank = 0
        if reader_counts[source] == 1:
            match nodes[source]:
                case Convolution() | Dense():
                    rank = 2
                case Scale():
                    rank = 1
        ranks.append(rank)
    return ranks.index(max(ranks))


def _leak(population: Population) -> np.ndarray | None:
    """The leak of a population, a scalar or [neurons]; None for an IF.

    Raises:
        ValueError: NIR has no neurons with such a leak.
    """
    leak = population.leak
    if leak is None or not population.is_leaky:
        return None
    if not ((leak > 0) & (leak < 1)).all():
        raise ValueError(
            f"site {population.name!r} has leaks from {leak.min()} to {leak.max()}; "
            "NIR's LIF allows 0 < leak < 1, or 1 for all neurons of a site (IF)"
        )
    return leak


@dataclasses.dataclass(frozen=True, eq=False)
class _AveragePool(SumPool):
    """The means over windows, which only NIR has; layers have sums and a scale."""


def _with_averages(nodes: dict[str, Node]) -> dict[str, Node]:
    """The nodes by name, with a mean in place of a sum over windows and its scale.

    NIR has a node for the mean, so a reader need not recognize a sum and a scale.
    """
    reader_counts = count_readers(tuple(nodes.values()))
    results = dict(nodes)
    for node in nodes.values():
        if not isinstance(node, Scale) or len(node.sources) != 1:
            continue
        pool = nodes[node.sources[0]]
        if not isinstance(pool, SumPool) or reader_counts[pool.name] != 1:
            continue
        # The scale of a mean is one over the number of pixels, up to rounding.
        pixels = math.prod(pool.window)
        is_mean = np.allclose(node.weight * pixels, 1, rtol=1e-6, atol=0)
        if is_mean and node.bias is None:
            results[node.name] = _AveragePool(
                node.name,
                sources=pool.sources,
                window=pool.window,
                stride=pool.stride,
                padding=pool.padding,
            )
            del results[pool.name]
    return results


def _nir_node(nir: Any, node: Node, dt: float, unit_resistance: bool) -> Any:
    """The node of NIR that does what a node of layers does; ``dt`` is in seconds."""
    match node:
        case Input(shape=shape, unit=unit):
            return nir.Input({"input": np.array(shape)}, metadata=_unit_metadata(unit))
        case Output(shape=shape, unit=unit):
            metadata = _unit_metadata(unit)
            return nir.Output({"output": np.array(shape)}, metadata=metadata)
        case Flatten(shape=shape):
            return nir.Flatten({"input": np.array(shape)}, start_dim=0, end_dim=-1)
        case Dense(weight=weight, bias=bias):
            return nir.Affine(_float32(weight), _bias(bias, len(weight)))
        case Scale():
            return _scale(nir, node)
        case _AveragePool(window=window, stride=stride, padding=padding):
            return nir.AvgPool2d(
                kernel_size=np.array(window),
                stride=np.array(stride),
                padding=np.array(padding),
            )
        case SumPool(window=window, stride=stride, padding=padding):
            return nir.SumPool2d(
                kernel_size=np.array(window),
                stride=np.array(stride),
                padding=np.array(padding),
            )
        case Convolution(weight=weight):
            # NIR has one number for both sides of an axis. `_with_written_params` has
            # made them equal.
            (top, _), (left, _) = node.padding
            return nir.Conv2d(
                input_shape=node.size,  # (rows, columns)
                weight=_float32(_ungrouped(node)),
                stride=node.stride,
                padding=(top, left),
                dilation=node.dilation,
                groups=1,
                bias=_bias(node.bias, len(weight)),
            )
        case Population():
            return _neurons(nir, node, dt, unit_resistance)


def _unit_metadata(unit: np.ndarray | None) -> dict[str, Any]:
    """The metadata of an input or output; without ``unit`` its numbers are floats."""
    if unit is None:
        return {}
    return {"unit": np.atleast_1d(unit)}


def _scale(nir: Any, node: Scale) -> Any:
    """A scale of images as a convolution 1x1, which more tools read than a Scale.

    A scale of vectors is a Scale, or a matrix if it has a bias. A scale that differs
    between the pixels of an image is a Scale, too, and has no bias.
    """
    channels, *image_size = node.shape  # [C, H, W], or [N] without an image
    bias = _bias(node.bias, channels)
    if image_size and is_channelwise(node.weight):
        weight = np.diag(np.broadcast_to(node.weight.ravel(), channels))
        return nir.Conv2d(
            input_shape=tuple(image_size),
            weight=_float32(weight[:, :, None, None]),
            stride=(1, 1),
            padding=(0, 0),
            dilation=(1, 1),
            groups=1,
            bias=bias,
        )
    weight = np.broadcast_to(node.weight, node.shape)
    if node.bias is None:
        return nir.Scale(_float32(weight))
    return nir.Affine(_float32(np.diag(weight)), bias)


def _ungrouped(node: Convolution) -> np.ndarray:
    """The weights [outputs, inputs, rows, columns] of a convolution without groups.

    They are 0 between channels of different groups. NIR up to 1.0.8 infers
    inputs / groups channels for a grouped convolution, so its own reader refuses the
    graph; some other readers ignore the groups.
    """
    outputs, group_inputs, *kernel_size = node.weight.shape
    weight = np.zeros((outputs, group_inputs * node.groups, *kernel_size))
    group_outputs = outputs // node.groups
    for group in range(node.groups):
        output_slice = slice(group * group_outputs, (group + 1) * group_outputs)
        input_slice = slice(group * group_inputs, (group + 1) * group_inputs)
        weight[output_slice, input_slice] = node.weight[output_slice]
    return weight


def _neurons(nir: Any, node: Population, dt: float, unit_resistance: bool) -> Any:
    """The IF or LIF of a population; ``dt`` is in seconds."""
    # NIR has a number of each kind for every neuron.
    ones = np.ones(node.shape, np.float32)
    zeros = np.zeros(node.shape, np.float32)
    threshold = ones * np.float32(node.threshold)
    fields = {
        # NIR fires at v > v_threshold, and v > (the number below V) is v >= V.
        "v_threshold": np.nextafter(threshold, zeros),
        "v_reset": zeros,
        "metadata": _extensions(node),
    }
    if node.leak is None:
        return nir.IF(r=ones, **fields)
    steps_of_decay = np.broadcast_to(1 / (1 - node.leak), node.shape)  # tau / dt
    return nir.LIF(
        tau=_float32(dt * steps_of_decay),
        r=ones if unit_resistance else _float32(steps_of_decay),
        v_leak=zeros,
        **fields,
    )


def _extensions(node: Population) -> dict[str, Any]:
    """What plain NIR does not express of neurons, as metadata that `from_nir` reads."""
    model = without_surrogate(node.model)
    plain = IntegrateAndFire(reset="zero")
    metadata: dict[str, Any] = {}
    for field in ("reset", "levels", "dead_zone", "last_zone", "lowest"):
        value = getattr(model, field)
        if value != getattr(plain, field):
            metadata[field] = np.array(value) if field == "levels" else value
    if node.initial_potential.any():
        potential = np.broadcast_to(node.initial_potential, node.shape)
        metadata["v_init"] = _float32(potential)
    return metadata


def _bias(bias: np.ndarray | None, count: int) -> np.ndarray:
    """The bias [count] of a map, which is 0 if it has none; float32."""
    if bias is None:
        return np.zeros(count, np.float32)
    return _float32(bias)


def _float32(array: Any) -> np.ndarray:
    """An array in single precision and in C order, as NIR's readers expect it."""
    return np.ascontiguousarray(array, np.float32)
