"""A spiking network as a graph of NIR, the interchange format of neuromorphic tools.

    v <- v + (dt / tau) ((v_leak - v) + R I)       z = 1[v > v_threshold]

is one forward Euler step of NIR's LIF. With tau = dt / (1 - leak) and R = 1 it equals
snnjax's v <- leak v + I, if the input is (tau / dt) I / V_th and the next weights
multiply a spike of 1 by V_th. For an IF the factor tau / dt is 1.

All thresholds and resistances become 1, because several readers assume that. The number
written is the largest float32 below 1: NIR fires at v > 1, snnjax at v >= V_th.
Source: Pedersen et al., Neuromorphic intermediate representation, 2024.
"""

import dataclasses
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import check_examples, check_positive
from snnjax._examples import is_all_floating
from snnjax.network.affine import ConversionError, Problem
from snnjax.network.capture import capture
from snnjax.network.equations import Equation, Network, Values
from snnjax.network.evaluate import evaluate, identity
from snnjax.network.sites import Site
from snnjax.neurons.by_site import models_in
from snnjax.neurons.gradients import WithSurrogate
from snnjax.neurons.models import IntegrateAndFire, NeuronParams, is_plain
from snnjax.neurons.spike_trains import BINARY
from snnjax.nir.layers import rearrange, vectorize
from snnjax.nir.nodes import (
    Conv,
    Dense,
    Flatten,
    Lowering,
    NotInNIR,
    Pool,
    Scale,
    Symbol,
    Term,
    compact,
    numbers,
)
from snnjax.nir.orders import flat_indices
from snnjax.nir.rules import entrance, lower
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
    flatten, strided and padded shortcuts become `Conv2d`, `Affine`, `Scale`,
    `SumPool2d`, `AvgPool2d` and `Flatten`; calibrated biases become their biases. A sum
    is several edges into one node.

    NIR cannot express five properties of a converted network: reset by subtraction,
    levels beside 0 and 1, initial potentials, a wait, and the T that it was fitted to.
    With ``extended`` they are written to ``metadata``: "reset", "levels", "dead_zone"
    and "v_init" of a neuron, "wait" and "steps" of the graph. `from_nir` reads them;
    other tools ignore them and compute something else. This is an argument because a
    file outlives a warning. T is always written: it changes no simulation. (`I`,
    `Threshold` and a recurrent edge could express reset by subtraction, but we know no
    reader that runs such a graph.)

    Rows, columns and channels of the graph's input are those of x, and only their axes
    are reordered. Where fn flips or transposes an image, the next kernels are flipped
    or transposed instead; where it permutes channels, weights or a 1x1 convolution
    permute them. Any other permutation of rows or columns is refused unless a matrix
    product of all elements follows.

    Args:
        fn: network, ``fn(params, x) -> outputs``; it is traced with one example.
        snn: from `snnjax.convert` or `snnjax.init`.
        x: float [B, ...] or a ``jax.ShapeDtypeStruct``: only the shape is used. An
            image is [B, H, W, C], or as the first convolution reads it: of
            [B, C, H, W] the graph is the same.
        extended: allow properties that only metadata can express.
        dt: time step in seconds on which the LIF's tau is based, also written to the
            graph's metadata. IF integrates its whole input at every step, as all
            readers do.

    Returns:
        A ``nir.NIRGraph``: "input", neurons and layers named after their paths,
        "output" (several: "output_" and the path). An output is [C, H, W] if it is an
        image, or else a vector of fn's elements in fn's order ([1] for one number). All
        numbers are float32.

    Raises:
        snnjax.ConversionError: with every operation that NIR has no node for, its path
            and the remedy; max-pool is one of them.
        ValueError: x without an axis of features; a property that only metadata can
            express, without ``extended``; a neuron model other than IF and LIF; a
            threshold that is not finite and > 0; a site where some neurons leak and
            others do not; dt not above 0.
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
    _check_expressible(snn, extended)
    values = _at_rest(network, snn.params, jnp.zeros(shape.shape, shape.dtype))
    lowering = Lowering(network, values)
    _lower(lowering, snn)
    order = _needed(lowering)
    names = _alphabetical(lowering, order)
    nodes = {names[n]: _node(nir, lowering.nodes[n], dt) for n in order}
    edges = [(names[s], names[n]) for n in order for s in lowering.sources[n]]
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


class Input(NamedTuple):
    """The entrance of x."""

    shape: tuple[int, ...]


class Output(NamedTuple):
    """The exit of a result."""

    shape: tuple[int, ...]


class Spiking(NamedTuple):
    """Neurons of threshold 1; leak and v(0) have their shape, or are None."""

    shape: tuple[int, ...]
    model: IntegrateAndFire
    leak: np.ndarray | None
    initial_potential: np.ndarray


# ------------------------------------------------------------------- the network


def _lower(lowering: Lowering, snn: SNN) -> None:
    """Add all nodes, or raise with everything that NIR cannot express."""
    network = lowering.network
    order = entrance(lowering)
    lowering.add("input", Input(order.shape), ())
    lowering.symbols[network.x[0]] = _from_node("input", np.ones(()), order)
    problems = []
    for equation in network.equations:
        if not network.dependent.intersection(equation.outputs):
            continue
        reads = network.dependent.intersection(equation.variables)
        has_operands = lowering.symbols.keys() >= reads
        try:
            if equation.site is not None:
                _check_fires(equation.site)
            if has_operands and equation.site is not None:
                _lower_site(lowering, snn, equation)
            elif has_operands:
                lower(lowering, equation)
        except NotInNIR as reason:
            operation = equation.site.kind if equation.site else equation.name
            problems.append(Problem(equation.path, (operation,), *reason.args))
        if equation.site is not None and equation.outputs[0] not in lowering.symbols:
            _add_placeholder(lowering, equation)
    if not problems:
        problems = _lower_outputs(lowering)
    if problems:
        raise ConversionError(problems, "this network cannot be written in NIR")


def _check_fires(site: Site) -> None:
    if not site.fires:
        if site.homogeneous:
            raise NotInNIR("NIR has no max-pool", "use average pooling, or a stride")
        raise NotInNIR(
            "NIR has no node for what is not affine, which an operator computes",
            "keep the network affine between its neurons",
        )
    if site.signed:
        raise NotInNIR(
            "NIR has no neuron that sends spikes of both signs",
            "keep the network affine between its neurons",
        )


def _lower_site(lowering: Lowering, snn: SNN, equation: Equation) -> None:
    """Add the neurons of a site, and the weights that feed them."""
    site, (current, *_) = equation.place, equation.variables
    neuron = snn.neurons[site.name]
    if neuron.offset is not None:
        raise NotInNIR(
            "NIR has no neuron that adds an offset to its spikes",
            "replace the neuron's offset by None, and calibrate or train without it",
        )
    gain, bias = _gain(neuron), numbers(neuron.bias)
    sources, order = lowering.feed(current, gain, bias, site.name)
    node = _spiking(neuron, _plain(snn.model_of(site.name)), site, order)
    name = lowering.add(site.name, node, sources)
    threshold = compact(_spread(neuron.threshold, site, order))
    lowering.symbols[equation.outputs[0]] = _from_node(name, threshold, order)


def _add_placeholder(lowering: Lowering, equation: Equation) -> None:
    """After a problem: a site without sources, so that later equations are checked."""
    name = lowering.add(equation.place.name, None, ())
    current = lowering.symbols.get(equation.variables[0])
    order = _default_order(equation.place) if current is None else current.order
    symbol = _from_node(name, np.ones(()), order)
    lowering.symbols[equation.outputs[0]] = symbol


def _gain(neuron: NeuronParams) -> np.ndarray:
    """The factor on the current: 1 / V_th, and tau / dt where it leaks."""
    leak = np.zeros(()) if neuron.leak is None else numbers(neuron.leak)
    leak = np.where(leak == 1, 0, leak)  # an IF, which has no tau
    return 1 / ((1 - leak) * numbers(neuron.threshold))


def _spiking(
    neuron: NeuronParams, model: IntegrateAndFire, site: Site, order: np.ndarray
) -> Spiking:
    threshold = _spread(neuron.threshold, site, order)
    leak = None if neuron.leak is None else _spread(neuron.leak, site, order)
    if leak is not None and (leak == 1).all():
        leak = None
    if leak is not None and not ((leak > 0) & (leak < 1)).all():
        raise ValueError(
            f"site {site.name!r} has leaks from {leak.min()} to {leak.max()}; NIR's "
            "LIF allows 0 < leak < 1, or 1 for all neurons of a site (IF)"
        )
    start = _spread(neuron.initial_potential, site, order) / threshold
    return Spiking(order.shape, model, leak, start)


def _lower_outputs(lowering: Lowering) -> list[Problem]:
    network = lowering.network
    problems = []
    for v, where in zip(network.outputs, network.output_names(), strict=True):
        name = f"output/{where}" if where else "output"
        try:
            _lower_output(lowering, v, name)
        except NotInNIR as reason:
            problems.append(Problem(name, (), *reason.args))
    return problems


def _lower_output(lowering: Lowering, v: Any, name: str) -> None:
    if v not in lowering.symbols:
        raise NotInNIR("it does not depend on x", "return only what the input reaches")
    path = "readout" if name == "output" else f"readout/{name}"
    symbol, shape = lowering.symbol(v), lowering.network.avals[v].shape
    lowering.symbols[v] = _in_order_of_fn(lowering, symbol, shape, path)
    sources, order = lowering.feed(v, np.ones(()), np.zeros(()), path)
    lowering.add(name, Output(order.shape), sources)


def _in_order_of_fn(
    lowering: Lowering, symbol: Symbol, shape: Sequence[int], path: str
) -> Symbol:
    """An output as an image [C, H, W], or else as a vector, in the order of fn."""
    if symbol.order.ndim != 3 or len(shape) != 4:
        return vectorize(lowering, symbol, path)
    for axes in ((3, 1, 2), (1, 2, 3)):  # channels last, or first
        if tuple(shape[a] for a in axes) == symbol.order.shape:
            order = flat_indices(shape, axes)
            terms = rearrange(lowering, symbol, order, path)
            if terms is not None:
                return symbol._replace(terms=terms, order=order)
    raise NotInNIR(
        f"the rows or columns of this output {tuple(shape[1:])} were permuted, flipped "
        "or transposed: NIR has no node for that",
        "permute after fn, or return the image flattened",
    )


def _from_node(name: str, scale: np.ndarray, order: np.ndarray) -> Symbol:
    return Symbol((Term(name, scale, False),), order)


def _at_rest(network: Network, params: chex.ArrayTree, x: jax.Array) -> Values:
    """Every variable while x is 0 and no neuron fires: the constants of affine maps."""

    def silent(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
        return jnp.zeros_like(x) if site.fires else identity(site, x, *operands)

    @jax.jit
    def run(arguments: Values):
        values = dict(arguments)
        evaluate(network.equations, values, silent)
        return values

    return run(network.arguments(params, x))


def _needed(lowering: Lowering) -> list[str]:
    """Nodes that an output depends on, in order of execution."""
    needs = {n for n, node in lowering.nodes.items() if isinstance(node, Output)}
    for name in reversed(lowering.nodes):
        if name in needs:
            needs.update(lowering.sources[name])
    return [name for name in lowering.nodes if name in needs or name == "input"]


def _alphabetical(lowering: Lowering, order: list[str]) -> dict[str, str]:
    """Names that sort in order of execution.

    A file lists its nodes in the order of their names, and some readers execute them
    in that order.
    """
    width = len(str(len(order)))
    names = {}
    for i, name in enumerate(order):
        is_end = isinstance(lowering.nodes[name], Input | Output)
        names[name] = name if is_end else f"n{i:0{width}}_{name}"
    return names


def _default_order(site: Site) -> np.ndarray:
    order = np.arange(np.prod(site.shape, dtype=int)).reshape(site.shape)
    return np.moveaxis(order, site.channel, 0) if order.ndim == 3 else order


def _spread(leaf: Any, site: Site, order: np.ndarray) -> np.ndarray:
    """A neuron's parameter for every neuron, in the node's shape."""
    return np.broadcast_to(numbers(leaf), site.shape).ravel()[order]


def _plain(model: Any) -> Any:
    """The model without its surrogate: the same spikes."""
    return model.neuron if isinstance(model, WithSurrogate) else model


def _check_expressible(snn: SNN, extended: bool) -> None:
    """Raise if NIR cannot express the neurons, or only by metadata."""
    extensions = []
    for neuron in map(_plain, models_in(snn.model)):
        if not is_plain(neuron):
            raise ValueError(
                f"NIR cannot express the neurons of {neuron!r}; allowed: models of "
                "snnjax.integrate_and_fire and snnjax.lif"
            )
        if neuron.reset == "subtract":
            extensions.append("reset by subtraction (in NIR: v <- v_reset)")
        if neuron.levels != BINARY:
            extensions.append(f"the levels {neuron.levels} (in NIR: {BINARY})")
        if neuron.dead_zone:
            extensions.append(f"the dead zone {neuron.dead_zone} (in NIR: none)")
    if any(np.any(numbers(n.initial_potential)) for n in snn.neurons.values()):
        extensions.append("initial potentials (in NIR: 0)")
    if snn.wait:
        extensions.append(f"wait {snn.wait} (in NIR: none)")
    if extensions and not extended:
        raise ValueError(
            f"NIR cannot express: {'; '.join(dict.fromkeys(extensions))}. With "
            "extended=True this is written as metadata, which snnjax.from_nir reads; "
            "other tools ignore it and compute something else. Exact everywhere: "
            'neurons with reset "zero", levels (0, 1), no initial potential and wait 0'
        )


# ------------------------------------------------------------------- NIR's nodes


def _node(nir: Any, node: Any, dt: float) -> Any:
    if isinstance(node, Conv):
        weight, bias = _float(_ungrouped(node)), _float(node.bias)
        return nir.Conv2d(
            node.size, weight, node.stride, node.padding, node.dilation, 1, bias
        )
    if isinstance(node, Dense):
        return nir.Affine(_float(node.weight), _float(node.bias))
    if isinstance(node, Pool):
        kind = nir.AvgPool2d if node.average else nir.SumPool2d
        return kind(*(np.array(n) for n in (node.window, node.stride, node.padding)))
    if isinstance(node, Scale):
        return nir.Scale(_float(node.factor))
    if isinstance(node, Flatten):
        return nir.Flatten({"input": np.array(node.shape)}, 0, -1)
    if isinstance(node, Input):
        return nir.Input({"input": np.array(node.shape)})
    if isinstance(node, Output):
        return nir.Output({"output": np.array(node.shape)})
    return _neurons(nir, node, dt)


def _ungrouped(node: Conv) -> np.ndarray:
    """The weights [O, I, K, K] for all inputs, with zeros between the groups.

    NIR up to 1.0.8 infers I / groups inputs for a grouped convolution, so its own
    reader refuses the graph; some other readers ignore the groups.
    """
    outputs, inputs, *window = node.weight.shape
    if node.groups == 1:
        return node.weight
    wide = np.zeros((outputs, inputs * node.groups, *window), node.weight.dtype)
    for group in range(node.groups):
        rows = slice(
            group * outputs // node.groups, (group + 1) * outputs // node.groups
        )
        wide[rows, group * inputs : (group + 1) * inputs] = node.weight[rows]
    return wide


def _neurons(nir: Any, node: Spiking, dt: float) -> Any:
    one, zero = np.ones(node.shape, np.float32), np.zeros(node.shape, np.float32)
    below = np.nextafter(one, zero)  # v > below is v >= 1
    metadata: dict[str, Any] = {}
    if node.model.reset == "subtract":
        metadata["reset"] = node.model.reset
    if node.model.levels != BINARY:
        metadata["levels"] = np.array(node.model.levels)
    if node.model.dead_zone:
        metadata["dead_zone"] = node.model.dead_zone
    if node.initial_potential.any():
        metadata["v_init"] = _float(node.initial_potential)
    if node.leak is None:
        return nir.IF(r=one, v_threshold=below, v_reset=zero, metadata=metadata)
    return nir.LIF(
        tau=_float(dt / (1 - node.leak)),
        r=one,
        v_leak=zero,
        v_threshold=below,
        v_reset=zero,
        metadata=metadata,
    )


def _float(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
