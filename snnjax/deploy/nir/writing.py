"""`to_nir`: layers as a graph of NIR.

    v <- v + (dt / tau) ((v_leak - v) + R I)       z = 1[v > v_threshold]

is one forward Euler step of NIR's LIF. With tau = dt / (1 - leak) and R = 1 it equals
snnjax's v <- leak v + I, if the input is (tau / dt) I / V_th and the next weights
multiply a spike of 1 by V_th. For an IF the factor tau / dt is 1.

Thresholds of floats and all resistances become 1, because several readers assume that.
Thresholds that are whole numbers stay. NIR fires at v > v_threshold, snnjax at v >= V,
so v_threshold is the largest float32 below V. With it whole potentials give the same
spikes in readers that fire at v >= v_threshold (V - 1 would not) and in readers that
subtract v_threshold (V - 1/2 would not).
Source: Pedersen et al., Neuromorphic intermediate representation, 2024.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from snnjax._ranges import POSITIVE
from snnjax._trees import distinct
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.products import with_products
from snnjax.deploy.lowering.sums import NoLayer, compact, is_channelwise, per_channel
from snnjax.deploy.lowering.windows import with_equal_padding
from snnjax.network.capture.check import ConversionError, Problem
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.models import IntegrateAndFire

if TYPE_CHECKING:
    import nir


def to_nir(
    layers: values.Layers, *, extended: bool = False, dt: float = 1e-4
) -> "nir.NIRGraph":
    """Write layers as a NIR graph, channels first, for other tools.

    Maps become `Conv2d`, `Affine`, `Scale`, `SumPool2d`, `AvgPool2d` and `Flatten`,
    neurons `IF` and `LIF`. Thresholds of floats are multiplied into the weights,
    calibrated biases added to those of layers; whole numbers stay whole. Several edges
    into one node are a sum.

    NIR cannot express six properties of a converted network: reset by subtraction,
    levels other than 0 and 1, initial potentials, a lower bound, a wait, and the T that
    it was fitted to. With ``extended`` they are written to ``metadata``: "reset",
    "levels", "dead_zone", "last_zone", "lowest" (in thresholds) and "v_init" of a
    neuron, "wait" and "steps" of the graph.
    `from_nir` reads them; other tools ignore them and compute something else. That is
    why this is an argument and not a warning, which would not be in the file. T is
    always written, because it changes no simulation.

    A graph of whole numbers takes x / unit, rounded and clipped to its bits, and
    returns whole sums, to be multiplied by the unit of the output. Both units are
    "unit" in the metadata of the input and each output; that of the graph has "code"
    and the fields of `Arithmetic`. A reader that ignores all metadata has the spikes of
    `run` if plain NIR expresses the neurons and no potential leaves its bits.

    Args:
        layers: from `layers`, `quantize` or `from_nir`.
        extended: allow properties that only metadata can express.
        dt: time step in seconds on which the LIF's tau is based; it is also written to
            the graph's metadata. IF integrates its whole input at every step.

    Returns:
        A ``nir.NIRGraph``: "input", neurons and layers named after their paths,
        "output" (several: "output_" and the path). An output is [C, H, W] if it is an
        image, or else a vector of fn's elements in fn's order. All numbers are float32.

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
    nodes = _with_averages(_fed_by_weights(layers))
    names = _alphabetical(nodes)
    metadata: dict[str, Any] = {"dt": dt}
    if layers.steps is not None:
        metadata["steps"] = layers.steps
    if layers.wait:
        metadata["wait"] = layers.wait
    if layers.arithmetic is not None:
        metadata |= {"code": "rate"} | dataclasses.asdict(layers.arithmetic)
        del metadata["leak"]
    return nir.NIRGraph(
        nodes={names[name]: _node(nir, node, dt) for name, node in nodes.items()},
        edges=[(names[s], names[n]) for n, node in nodes.items() for s in node.sources],
        metadata=metadata,
    )


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


def _alphabetical(nodes: dict[str, values.Node]) -> dict[str, str]:
    """Names without punctuation that sort in order of execution.

    A file lists its nodes in the order of their names, and some readers execute them
    in that order.
    """
    width = len(str(len(nodes)))
    words = [re.sub(r"\W+", "_", name).strip("_") for name in nodes]
    names = [
        word
        if isinstance(node, values.Input | values.Output)
        else f"n{i:0{width}}_{word}"
        for i, (word, node) in enumerate(zip(words, nodes.values(), strict=True))
    ]
    return dict(zip(nodes, distinct(names), strict=True))


def _check(layers: values.Layers) -> None:
    """Raise if NIR has no form for these layers, not even with metadata."""
    values.check_layers(layers)
    if not layers.code.is_streaming():
        raise ValueError(
            f"NIR cannot express the code {layers.code!r}: its neurons have another "
            "threshold at each step, and bias and input enter once. A chip needs "
            "thresholds that it changes step by step and spikes that carry a number, "
            "or potentials that it shifts. Convert with code=snnjax.codes.rate()"
        )
    if layers.arithmetic is not None and any(p.is_leaky for p in layers.populations):
        raise ValueError(
            "NIR cannot express how a chip rounds a leak; allowed: float layers, or "
            "whole numbers of IF neurons"
        )
    if layers.arithmetic is not None and layers.arithmetic.state_bits > 25:
        raise ValueError(
            f"state_bits is {layers.arithmetic.state_bits}; allowed in NIR: up to 25, "
            "since readers compute in float32"
        )


def _check_needs_no_metadata(layers: values.Layers) -> None:
    """Raise if plain NIR would describe another network."""
    extensions: dict[str, Any] = {"wait": layers.wait} if layers.wait else {}
    for population in layers.populations:
        own = _extensions(population)
        if own.get("dead_zone", 1) <= 1 / 2:  # such a zone changes no spike
            del own["dead_zone"]
        extensions |= own
    if extensions:
        numbers = (
            name if np.size(value) > 2 else f"{name} {value}"
            for name, value in extensions.items()
        )
        raise ValueError(
            f"NIR cannot express: {', '.join(numbers)}. extended=True writes "
            "this as metadata, which from_nir reads; other tools ignore it and "
            'compute something else. Every tool runs neurons with reset "zero", levels '
            "(0, 1), no dead zone, no initial potential, no lower bound and wait 0"
        )


# ------------------------------------------------------------------- NIR's nodes


def _fed_by_weights(layers: values.Layers) -> dict[str, values.Node]:
    """The nodes, with biases and thresholds in the maps that feed each population.

    Thresholds that are whole numbers stay where they are.

    Raises:
        ConversionError: a bias that differs between pixels.
    """
    is_whole = layers.arithmetic is not None
    nodes: dict[str, values.Node] = {}
    count, problems = values.readers(layers.nodes), []
    for node in layers.nodes:
        parts = [node]
        try:
            if isinstance(node, values.Receiver):
                parts = [*_fed(node, nodes, count, is_whole)]
            elif isinstance(node, values.Convolution):
                # NIR has one number for both sides, and some readers assume a square.
                parts = [with_equal_padding(node)]
        except NoLayer as reason:
            problems.append(Problem(node.name, (), *reason.args))
        nodes |= {part.name: part for part in parts}
    if problems:
        raise ConversionError(problems, "this network cannot be written in NIR")
    return {node.name: node for node in with_products(nodes.values())}


def _fed(
    node: values.Receiver,
    nodes: dict[str, values.Node],
    count: Counter[str],
    is_whole: bool,
) -> Iterator[values.Node]:
    """A population or an output, behind scales and a bias.

    The threshold of the population becomes 1, unless it is a whole number.
    """
    if values.maps_to_itself(node):
        remedy = "keep the SNN by snnjax.save, or train neurons without a kernel"
        raise NoLayer("its neurons are recurrent, which is not written", remedy)
    gain, bias, shape = np.ones(()), node.bias, node.shape
    if isinstance(node, values.Population) and not is_whole:
        leak = _leak(node)
        # The Euler step multiplies its input by dt / tau = 1 - leak.
        gain = compact(1 / ((1 - (0 if leak is None else leak)) * node.threshold))
        start = node.initial_potential / node.threshold
        node = dataclasses.replace(
            node, threshold=np.ones(()), initial_potential=start, leak=leak
        )
    sources = []
    for i, source in enumerate(node.sources):
        scale = values.Scale(f"{node.name}/scale {i}", (source,), gain, None, shape)
        sources.append(scale.name)
        yield scale
    bias = np.broadcast_to(gain * bias, shape)
    if bias.any():
        # Into weights that nothing else reads; a Scale with a bias is a matrix in NIR.
        owned = [nodes[s] if count[s] == 1 else None for s in node.sources]
        matrix = values.Convolution | values.Dense
        ranks = [isinstance(n, values.Affine) + isinstance(n, matrix) for n in owned]
        first = ranks.index(max(ranks))
        name, one = f"{node.name}/bias", np.ones(())
        yield values.Scale(name, (sources[first],), one, per_channel(bias), shape)
        sources[first] = name
    yield dataclasses.replace(node, sources=tuple(sources), bias=np.zeros(()))


def _leak(node: values.Population) -> np.ndarray | None:
    """The leak of a population, None for an IF."""
    leak = node.leak
    if leak is None or (leak == 1).all():
        return None
    if not ((leak > 0) & (leak < 1)).all():
        raise ValueError(
            f"site {node.name!r} has leaks from {leak.min()} to {leak.max()}; NIR's "
            "LIF allows 0 < leak < 1, or 1 for all neurons of a site (IF)"
        )
    return leak


@dataclasses.dataclass(frozen=True, eq=False)
class _AveragePool(values.SumPool):
    """The means of windows."""


def _with_averages(nodes: dict[str, values.Node]) -> dict[str, values.Node]:
    """The nodes, with a mean in place of a sum over windows and its scale."""
    # NIR has a node for the mean, so a reader need not see it in a sum and a scale.
    count, nodes = values.readers(tuple(nodes.values())), dict(nodes)
    for node in [*nodes.values()]:
        pool = nodes[node.sources[0]] if len(node.sources) == 1 else None
        if not isinstance(node, values.Scale) or not isinstance(pool, values.SumPool):
            continue
        is_mean = np.allclose(node.weight * math.prod(pool.window), 1, 1e-6, 0)
        if is_mean and node.bias is None and count[pool.name] == 1:
            nodes[node.name] = _AveragePool(**{**vars(pool), "name": node.name})
            del nodes[pool.name]
    return nodes


def _node(nir: Any, node: values.Node, dt: float) -> Any:
    match node:
        case values.Input(shape=shape, unit=unit):
            return nir.Input({"input": np.array(shape)}, metadata=_unit(unit))
        case values.Output(shape=shape, unit=unit):
            return nir.Output({"output": np.array(shape)}, metadata=_unit(unit))
        case values.Flatten(shape=shape):
            return nir.Flatten({"input": np.array(shape)}, 0, -1)
        case values.Dense(weight=weight, bias=bias):
            return nir.Affine(_float(weight), _bias(bias, len(weight)))
        case values.Scale():
            return _scale(nir, node)
        case values.SumPool(window=window, stride=stride, padding=padding):
            kind = nir.AvgPool2d if isinstance(node, _AveragePool) else nir.SumPool2d
            return kind(np.array(window), np.array(stride), np.array(padding))
        case values.Convolution(weight=weight):
            (rows, _), (columns, _) = node.padding
            return nir.Conv2d(
                input_shape=node.size,
                weight=_float(_ungrouped(node)),
                stride=node.stride,
                padding=(rows, columns),
                dilation=node.dilation,
                groups=1,
                bias=_bias(node.bias, len(weight)),
            )
        case values.Population():
            return _neurons(nir, node, dt)


def _unit(unit: np.ndarray | None) -> dict[str, Any]:
    """The metadata of an input or output of whole numbers."""
    return {} if unit is None else {"unit": np.atleast_1d(unit)}


def _scale(nir: Any, node: values.Scale) -> Any:
    """A 1x1 convolution, which more tools read, or a Scale; that one has no bias."""
    channels, *size = node.shape
    bias = _bias(node.bias, channels)
    if size and is_channelwise(node.weight):
        weight = np.diag(np.broadcast_to(node.weight.ravel(), channels))
        weight = _float(weight[:, :, None, None])
        return nir.Conv2d(tuple(size), weight, (1, 1), (0, 0), (1, 1), 1, bias)
    weight = np.broadcast_to(node.weight, node.shape)
    if node.bias is None:
        return nir.Scale(_float(weight))
    return nir.Affine(_float(np.diag(weight)), bias)


def _ungrouped(node: values.Convolution) -> np.ndarray:
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


def _neurons(nir: Any, node: values.Population, dt: float) -> Any:
    shape = node.shape
    one, zero = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    # v > below is v >= threshold
    below = np.nextafter(one * np.float32(node.threshold), zero)
    fields = dict(r=one, v_threshold=below, v_reset=zero, metadata=_extensions(node))
    if node.leak is None:
        return nir.IF(**fields)
    tau = np.broadcast_to(dt / (1 - node.leak), shape)
    return nir.LIF(tau=_float(tau), v_leak=zero, **fields)


def _extensions(node: values.Population) -> dict[str, Any]:
    """What plain NIR does not express of neurons, as metadata that `from_nir` reads."""
    model, plain = without_surrogate(node.model), IntegrateAndFire(reset="zero")
    fields = ("reset", "levels", "dead_zone", "last_zone", "lowest")
    own = {name: getattr(model, name) for name in fields}
    metadata = {name: v for name, v in own.items() if v != getattr(plain, name)}
    if "levels" in metadata:
        metadata["levels"] = np.array(model.levels)
    if node.initial_potential.any():
        metadata["v_init"] = _float(np.broadcast_to(node.initial_potential, node.shape))
    return metadata


def _bias(bias: np.ndarray | None, count: int) -> np.ndarray:
    return _float(np.zeros(count) if bias is None else bias)


def _float(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
