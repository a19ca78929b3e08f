"""`quantize`: layers whose weights, thresholds and potentials are whole numbers.

    W_ji = round(s_j w_ji),  Theta_j = s_j V_j,  B_j = round(s_j b_j + c_j)

Populations are fitted in the order of execution (``fitting.py``), each on what the
calibration images send in the network of whole numbers so far: s_j and W by
``rounding.py``, c_j such that the mean current is that of the float network. What a
bias cannot hold goes into the initial potential. The readout divides by s_j.
`memory` says what a chip needs to hold them.

V_j is the threshold of neuron j, w_ji a weight and b_j its bias in the float layers;
Theta_j, W_ji and B_j are the whole numbers in their place, s_j is their scale.

receiver: a population or an output.
unit of x: a chip reads x as whole multiples of it.
N counts the calibration images; ``in_time`` says that x is a sequence, [T, N, ...].
Source: the scale of a neuron: arXiv 2305.09850; rounding with the second moment of what
the weights read: GPTQ, arXiv 2210.17323.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import (
    called_as,
    check_chip,
    check_choice,
    check_examples,
    check_finite,
    check_on_host,
    warn,
)
from snnjax._patterns import matching
from snnjax._ranges import Range
from snnjax._types import Inputs
from snnjax.deploy.chips import geometry
from snnjax.deploy.chips.chip import Chip
from snnjax.deploy.chips.report import report
from snnjax.deploy.integers import exact, fitting, streams
from snnjax.deploy.integers.fitting import Incoming
from snnjax.deploy.integers.programs import StreamPair, map_pair
from snnjax.deploy.integers.rounding import ScaleRule
from snnjax.deploy.integers.timing import arithmetic_of, check_state
from snnjax.deploy.lowering.sums import compact, is_channelwise
from snnjax.deploy.lowering.unshared_maps import with_unshared_maps
from snnjax.deploy.lowering.values import (
    Arithmetic,
    Convolution,
    Dense,
    Flatten,
    Input,
    Layers,
    Leak,
    Node,
    Output,
    Population,
    Scale,
    SumPool,
    check_layers,
)
from snnjax.network.capture.check import ConversionError, Problem


@called_as("snnjax.deploy.quantize(layers, images, ...), layers of deploy.layers")
def quantize(
    layers: Layers,
    images: Any,
    *,
    weight_bits: int | Mapping[str, int] | None = None,
    state_bits: int | None = None,
    input_bits: int | None = None,
    scale: ScaleRule | None = None,
    overflow: Literal["saturate", "wrap"] | None = None,
    chip: Chip | None = None,
    inputs: Inputs = "constant",
) -> Layers:
    """Layers of whole numbers, which a digital chip computes bit for bit.

    A neuron's weights, threshold, bias and initial potential are multiplied by one
    number s_j and rounded; s_j is such that the threshold becomes a whole number. No
    scale is left between two populations.

    Args:
        layers: from `snnjax.deploy.layers`. Neurons with a leak need a chip that states
            how it rounds one, see `Leak`.
        images: float [N, ...], channels last: calibration images, from which the
            range of x, second moments and ranges of potentials are taken. Of sequences
            [T, N, ...], time first.
        weight_bits: 1 .. 16, or pattern of receivers -> bits; 1 bit is -1 or 1 (none
            for scale "range"), 2 bits are -1, 0 or 1. Shortcuts that scale spikes one
            by one have 8 or more.
        state_bits: 4 .. 30, of a membrane potential.
        input_bits: 2 .. 16, of an element of x; whole numbers of so many bits stay.
            None: 8. But where recurrent neurons read x, as many as their weights have,
            4 to 8: the weights of x times its unit and the kernel share a scale, and
            with a finer unit the former use fewer of their bits.
        scale: what has a threshold and s_j of its own: each "channel", or each "layer";
            "power_of_two": as "layer", with such thresholds. "range": as "layer", with
            s = min(-2^(b-1) / min w, (2^(b-1) - 1) / max w), and all numbers rounded
            and not corrected, as sinabs does for Speck.
        overflow: a potential beyond its bits "saturate"s at the limit or "wrap"s.
        chip: whose numbers are taken for all that is not given; None, or where its
            profile states nothing: 8 and 16 bits, "channel" and "saturate".
        inputs: as of `run`: with "sequence" T is that of the images.

    Returns:
        Whole numbers with an `Arithmetic`, for `run` and `as_function`. With a code,
        biases are multiples of w_T and initial potentials of T w_T.

    Raises:
        snnjax.ConversionError: two linear maps follow each other without neurons; the
            chip does not run the network, with every reason of `snnjax.deploy.report`.
        ValueError: an argument outside its range; a leak without a rule; weights of a
            code that are no whole multiples of the last one; thresholds that would all
            be rounded to 0; a sequence as `run` refuses it.

    Warns:
        UserWarning: a neuron whose threshold is so small that weights are clipped; a
            "range" that potentials cannot have.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.array([[0.5, -1.0]]), "readout": jnp.ones((2, 1))}
    >>> x = jnp.array([[1.0], [-0.5]])
    >>> snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    >>> integers = quantize(snnjax.deploy.layers(fn, snn, x), x, weight_bits=4)
    >>> print(integers.connections[0].maps[0].weight.ravel())
    [ 7. -7.]
    """
    options = _options(
        chip,
        weight_bits=weight_bits,
        state_bits=state_bits,
        scale=scale,
        overflow=overflow,
    )
    check_layers(layers, "float")
    check_on_host("snnjax.deploy.quantize", images=images)
    if hasattr(images, "dtype") and np.issubdtype(images.dtype, np.integer):
        # Whole numbers are pixels here. As tokens or masks they would be refused.
        images = np.asarray(images, np.float32)
    check_examples(images)
    fitted_steps = layers.steps  # before those of a sequence replace them
    layers = exact.with_steps(layers, images, inputs)
    if inputs == "sequence":
        _check_time_first(images, fitted_steps)
    check_finite("images", [images])
    _check_numbers(layers, options, chip)
    bits = _bits_of_receivers(layers, options)
    if input_bits is None:
        input_bits = _input_bits(layers, bits)
    Range(2, 16, whole=True).check("input_bits", input_bits)
    arithmetic = Arithmetic(
        weight_bits=max(bits.values()),
        input_bits=input_bits,
        state_bits=options.state_bits,
        overflow=options.overflow,
        leak=options.leak,
    )
    layers = dataclasses.replace(with_unshared_maps(layers), arithmetic=arithmetic)
    check_state(layers)
    x = jnp.asarray(images, jnp.float32)
    integers = _whole(layers, x, inputs == "sequence", bits, options.scale)
    if chip is not None:
        _check_runs(integers, chip)
    return integers


# --------------------------------------------------------------------------- options


class _Options(NamedTuple):
    """Arguments of `quantize`, given or by a chip.

    ``leak`` is how the chip rounds a leak; None: it states nothing.
    """

    weight_bits: int | Mapping[str, int]
    state_bits: int
    scale: ScaleRule
    overflow: Literal["saturate", "wrap"]
    leak: Leak | None


def _options(chip: Chip | None, **arguments: Any) -> _Options:
    """The ``arguments`` that are not None, or else the chip's, or the defaults."""
    if chip is None:
        chip = Chip("none")  # It states nothing.
    check_chip(chip)
    # A chip may allow several numbers of bits. The largest one up to 8 is taken, or the
    # smallest one if all are larger.
    stated_bits = chip.weight_bits or (8,)
    up_to_8 = [bits for bits in stated_bits if bits <= 8]
    weight_bits = max(up_to_8, default=min(stated_bits))
    scale = chip.scale or "channel"
    if chip.thresholds == "layer" and chip.scale == "channel":
        # Neurons that share a threshold share its scale.
        scale = "layer"
    options = _Options(
        weight_bits=weight_bits,
        state_bits=chip.state_bits or 16,
        scale=scale,
        overflow=chip.overflow or "saturate",
        leak=chip.leak if isinstance(chip.leak, Leak) else None,
    )
    stated = {name: value for name, value in arguments.items() if value is not None}
    return options._replace(**stated)


def _bits_of_receivers(layers: Layers, options: _Options) -> Mapping[str, int]:
    """Name of each receiver -> bits of its weights, by the first pattern it matches."""
    by_pattern = options.weight_bits
    if not isinstance(by_pattern, Mapping):
        by_pattern = {"*": by_pattern}
    # With one bit the range of "range", -2^(b-1) .. 2^(b-1) - 1, ends at 0.
    fewest = 2 if options.scale == "range" else 1
    for pattern, number in by_pattern.items():
        name = "weight_bits" if pattern == "*" else f"weight_bits of {pattern!r}"
        Range(fewest, 16, whole=True).check(name, number)
    receivers = [node.name for node in layers.receivers]
    return matching(by_pattern, receivers, "weight_bits")


def _input_bits(layers: Layers, bits: Mapping[str, int]) -> int:
    """The bits of x where none are given, see `quantize`."""
    readers_of_x = set()
    recurrent = set()
    for connection in layers.connections:
        if connection.sender == layers.input.name:
            readers_of_x.add(connection.receiver)
        if connection.is_recurrent:
            recurrent.add(connection.receiver)
    input_bits = 8
    for name in readers_of_x & recurrent:
        input_bits = min(input_bits, max(4, bits[name]))
    return input_bits


# --------------------------------------------------------------------- whole networks


def _whole(
    layers: Layers,
    x: jax.Array,
    in_time: bool,
    bits: Mapping[str, int],
    scale: ScaleRule,
) -> Layers:
    """The layers with whole numbers, fitted in the order of execution.

    Args:
        layers: floats, in which each map has one receiver.
        x: calibration images, [N, ...], or with ``in_time`` [T, N, ...].
        in_time: whether x is a sequence.
        bits: name of each receiver -> bits of its weights.
        scale: see `quantize`.
    """
    _check_units(layers)
    nodes: list[Node] = []
    clippings: list[str] = []
    # What the input, pools and populations send, in floats and in whole numbers.
    pairs: dict[str, StreamPair] = {}
    incoming: dict[str, Incoming] = {}  # each map that its receiver has not read yet
    sums_of_x = _sums_of_x(layers)  # names of the nodes that send sums of x
    unit_of_x = np.ones(())  # until the input, the first node, has its unit
    for node in layers.nodes:
        # What a map or a pool reads. The input reads nothing, and the sources of a
        # receiver are maps with weights, of which ``pairs`` has none.
        sent = [pairs[source] for source in node.sources if source in pairs]
        arriving = _total(sent)
        match node:
            case Input():
                whole, pairs[node.name] = _whole_input(node, x, in_time, layers)
                unit_of_x = whole.unit
                nodes.append(whole)
            case Convolution() | Dense() | Scale():
                if sums_of_x.issuperset(node.sources):
                    # x is divided by its unit, so weights that read it are multiplied.
                    node = dataclasses.replace(node, weight=node.weight * unit_of_x)
                incoming[node.name] = Incoming(node, arriving)
            case Population() | Output():
                # Nothing else reads these maps. Without them, the memory of what they
                # read is free again.
                maps = [incoming.pop(source) for source in node.sources]
                data = fitting.receiver_data(layers, node, maps, bits[node.name], scale)
                fitted = fitting.fit_receiver(data)
                nodes += [*fitted.maps, fitted.node]
                clippings += fitted.clippings
                if fitted.sent is not None:  # no node reads an output
                    pairs[node.name] = fitted.sent
            case SumPool() | Flatten():
                pairs[node.name] = map_pair(node, arriving)
                nodes.append(node)
    if clippings:
        warn(
            "weights are clipped, since the thresholds of their neurons are small: "
            + "; ".join(clippings)
        )
    return dataclasses.replace(layers, nodes=tuple(nodes))


def _total(pairs: Sequence[StreamPair]) -> StreamPair:
    """The sums of what several nodes send, in both networks."""
    floats = streams.add_streams([pair.floats for pair in pairs])
    whole = streams.add_streams([pair.whole for pair in pairs])
    return StreamPair(floats, whole)


def _sums_of_x(layers: Layers) -> set[str]:
    """Names of the input and the pools behind it, which send multiples of x's unit."""
    names = {layers.input.name}
    for node in layers.nodes:
        is_sum = isinstance(node, SumPool | Flatten)
        if is_sum and names.intersection(node.sources):
            names.add(node.name)
    return names


def _check_units(layers: Layers) -> None:
    """Raise if a node reads sums of x and of spikes."""
    sums_of_x = _sums_of_x(layers)
    for node in layers.nodes:
        reads_x = not sums_of_x.isdisjoint(node.sources)
        if reads_x and not sums_of_x.issuperset(node.sources):
            problem = "it reads sums of x and of spikes, which have other units"
            remedy = "pool x and the activations apart, or put a ReLU before the sum"
            raise ConversionError(
                [Problem(node.name, (), problem, remedy)],
                "this network has no whole numbers",
            )


def _whole_input(
    node: Input, x: jax.Array, in_time: bool, layers: Layers
) -> tuple[Input, StreamPair]:
    """The input with its unit and its lowest number, and what it sends.

    The unit is 1 if x has whole numbers that fit into the bits of x. Else the largest
    element of x becomes the largest number of these bits.
    """
    arithmetic = arithmetic_of(layers)
    largest = arithmetic.largest_input
    images = np.asarray(x)
    peak = float(np.abs(images).max())
    is_whole = peak <= largest and bool((images == np.rint(images)).all())
    unit = 1.0 if is_whole or peak == 0 else peak / largest
    # A multiple of the unit is exact if its bits are not more than the 24 of a float32.
    # It has input_bits - 1 of the whole number and 23 - input_bits of the unit: 22, two
    # less than allowed. The unit is rounded up, so that x still fits.
    mantissa, exponent = np.frexp(unit)
    steps_of_mantissa = 2.0 ** (23 - arithmetic.input_bits)
    mantissa = np.ceil(mantissa * steps_of_mantissa) / steps_of_mantissa
    unit = np.ldexp(mantissa, exponent)
    whole, _ = streams.whole_input(x, jnp.float32(unit), arithmetic)
    lowest = np.asarray(whole).min()
    node = dataclasses.replace(node, unit=np.asarray(unit), lowest=lowest)
    multiples = jax.device_put(images / np.float32(unit))
    floats = streams.input_stream(multiples, in_time)
    return node, StreamPair(floats, streams.input_stream(whole, in_time))


# --------------------------------------------------------------------------- checks


def _check_time_first(images: Any, steps: int | None) -> None:
    """Raise if sequences for layers of so many steps seem to have the batch first."""
    if steps is not None and len(images) != steps and images.shape[1] == steps:
        raise ValueError(
            f"images have shape {images.shape}, and layers with T = {steps} read time "
            "first; allowed: [T, N, ...], e.g. np.moveaxis(images, 1, 0), or layers "
            "without a T, dataclasses.replace(layers, steps=None)"
        )


def _check_runs(layers: Layers, chip: Chip) -> None:
    """Raise if the report of a chip says that it does not run the layers."""
    problems = []
    for row in report(layers, chip).rows:
        for finding in row.findings:
            if finding.verdict == "no":
                problem = Problem(row.name, (), finding.problem, finding.remedy)
                problems.append(problem)
    if problems:
        raise ConversionError(problems, f"{chip.name} does not run this network")


def _check_numbers(layers: Layers, options: _Options, chip: Chip | None) -> None:
    """Raise if the float layers have numbers or neurons that cannot be rounded."""
    check_choice("scale", options.scale, get_args(ScaleRule))
    for node in layers.nodes:
        check_finite(f"the numbers of node {node.name!r}", jax.tree.leaves(node))
    for node in layers.populations:
        # Each neuron of a NIR graph has a threshold, also if all are equal.
        is_per_neuron = not is_channelwise(compact(node.threshold))
        if options.scale != "channel" and is_per_neuron:
            raise ValueError(
                f"the neurons of {node.name!r} have a threshold each, and scale "
                f"{options.scale!r} needs one per population; allowed: thresholds "
                "per channel, or scale 'channel'"
            )
        if node.is_leaky and (options.leak is None or layers.code.keeps_charge):
            unknown = f", and that of {chip.name} is not stated" if chip else ""
            raise ValueError(
                f"the neurons of {node.name!r} leak, and each chip rounds a leak in "
                f"its own way{unknown}; allowed: a chip that says how, e.g. chip="
                "snnjax.deploy.loihi2() or Chip('mine', leak=Leak('shift')), under "
                "rate coding, or IF neurons, snnjax.integrate_and_fire()"
            )


# --------------------------------------------------------------------------- memory


class Memory(NamedTuple):
    """Bytes of a network.

    Attributes:
        weights: bytes of the weights of all maps; a convolution's kernel counts once.
        potentials: bytes of the potentials, one for each neuron.
    """

    weights: float
    potentials: float


def memory(layers: Layers) -> Memory:
    """Bytes of the weights and potentials of layers: numbers times their bits / 8.

    A weight takes the bits of the largest one of its map, a potential
    `Arithmetic.state_bits`, and a float 32. Thresholds, biases and initial potentials
    are not counted: there are few of them, at most one per neuron.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.ones((8, 16)), "readout": jnp.ones((16, 4))}
    >>> x = jnp.ones((1, 8))
    >>> snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    >>> layers = snnjax.deploy.layers(fn, snn, x)
    >>> integers = snnjax.deploy.quantize(layers, x, weight_bits=4)
    >>> memory(layers).weights, memory(integers).weights
    (768.0, 96.0)
    """
    check_layers(layers)
    arithmetic = layers.arithmetic
    weight_bits = 0
    for weight in layers.weights:
        bits = 32 if arithmetic is None else _bits_of_weight(weight)
        weight_bits += weight.size * bits
    neuron_count = sum(math.prod(node.shape) for node in layers.populations)
    state_bits = 32 if arithmetic is None else arithmetic.state_bits
    return Memory(weights=weight_bits / 8, potentials=neuron_count * state_bits / 8)


def _bits_of_weight(weight: np.ndarray) -> int:
    """Bits of the largest of whole numbers, with a sign; -1 and 1 take one bit."""
    return 1 if (np.abs(weight) == 1).all() else geometry.bits(weight)
