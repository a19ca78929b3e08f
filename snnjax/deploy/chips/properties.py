"""Properties of a layer, and of a whole network, against a chip's profile.

Each is a function (layer, chip) that yields findings. It compares nothing where the
chip states nothing. "approximately" means that some spikes differ from the simulated
ones, or do so until the remedy is taken; "no" means that the chip cannot run it.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from snnjax.deploy.chips import geometry
from snnjax.deploy.chips.profiles import Chip, Core, span
from snnjax.deploy.lowering import values

Verdict = Literal["fits", "approximately", "no"]


class Finding(NamedTuple):
    """A property that a chip approximates or does not have.

    Attributes:
        field: of `Chip`, which decides it.
        verdict: "approximately" or "no".
        problem: what was found, and what the chip has.
        remedy: what to do.
    """

    field: str
    verdict: Verdict
    problem: str
    remedy: str


class Layer(NamedTuple):
    """A population or an output, and the maps between it and others.

    ``images`` are those of its senders, ``readers`` the names of those that read it.
    """

    node: values.Receiver
    ways: Sequence[values.Connection]
    kernels: Sequence[geometry.Kernel]
    images: Mapping[str, tuple[int, ...]]
    readers: set[str]
    layers: values.Layers

    @property
    def neurons(self) -> list[values.Population]:
        """The population, if it is one: an output has no neurons."""
        return [self.node] if isinstance(self.node, values.Population) else []

    @property
    def reads_x(self) -> bool:
        """Whether x reaches it without passing neurons."""
        return any(way.sender == self.layers.input.name for way in self.ways)

    @property
    def maps(self) -> list[values.Map]:
        """All maps on its ways."""
        return [m for way in self.ways for m in way.maps]

    @property
    def numbers(self) -> dict[str, list[np.ndarray]]:
        """Field of `Chip` with a number of bits -> the arrays that must have them."""
        maps = [m for m in self.maps if isinstance(m, values.Affine)]
        # Biases and potentials count in units of their own under codes but rate coding.
        biases = [m.bias for m in (*maps, self.node) if m.bias is not None]
        potentials = [n.initial_potential for n in self.neurons]
        return {
            "weight_bits": [m.weight for m in maps],
            "threshold_bits": [n.threshold for n in self.neurons],
            "bias_bits": [bias / self.layers.bias_unit for bias in biases],
            "state_bits": [v / self.layers.potential_unit for v in potentials],
        }


# --------------------------------------------------------------------------- of a layer


def number_of_bits(layer: Layer, chip: Chip) -> Iterator[Finding]:
    """All numbers are whole, and -2^(b-1) <= n <= 2^(b-1) - 1.

    Potentials of more bits than simulated are the same as long as none overflows.
    """
    arithmetic = layer.layers.arithmetic
    arrays = [array for some in layer.numbers.values() for array in some]
    if arithmetic is None or any((a != np.rint(a)).any() for a in arrays):
        yield Finding("weight_bits", "approximately", "floats", _quantize(chip))
        return
    for field, some in layer.numbers.items():
        limit = getattr(chip, field)
        limit = max(limit) if isinstance(limit, tuple) else limit
        count = geometry.bits(*some) if some else 0
        if limit is not None and count > limit:
            words = f"{field.removesuffix('_bits')} of {count} bits, not {limit}"
            # Thresholds and biases have the scale of the weights.
            follows = field in ("threshold_bits", "bias_bits")
            fewer = "quantize with fewer weight_bits there: all numbers are smaller"
            remedy = fewer if follows else _quantize(chip)
            yield Finding(field, "approximately", words, remedy)
    if layer.neurons and chip.state_bits and arithmetic.state_bits > chip.state_bits:
        words = f"potentials of {arithmetic.state_bits} bits, not {chip.state_bits}"
        yield Finding("state_bits", "approximately", words, _quantize(chip))
    if layer.neurons and chip.overflow not in (None, arithmetic.overflow):
        words = f"overflow {arithmetic.overflow!r}, not {chip.overflow!r}"
        yield Finding("overflow", "approximately", words, _quantize(chip))


def shared_numbers(layer: Layer, chip: Chip) -> Iterator[Finding]:
    """Thresholds, biases and v(0) differ only where the chip has a number for each."""
    arrays = {"biases": layer.node.bias}
    for neurons in layer.neurons:
        arrays["thresholds"] = neurons.threshold
        arrays["initial_potentials"] = neurons.initial_potential
    order = ("layer", "channel", "neuron")
    for field, array in arrays.items():
        limit = getattr(chip, field)
        own = geometry.granularity(array)
        if limit and order.index(own) > order.index(limit):
            words = field.replace("_", " ")
            problem = f"{words} per {own}, not per {limit}"
            yield Finding(field, "approximately", problem, f"fit {words} per {limit}")


def neuron_model(layer: Layer, chip: Chip) -> Iterator[Finding]:
    """Reset, levels, zones, lower bound, leak, synapse, and a bias without steps."""
    for neurons in layer.neurons:
        model, resets = neurons.model, chip.resets
        # In one step nothing comes after the reset.
        if resets and model.reset not in resets and layer.layers.steps != 1:
            problem = f"reset {model.reset!r}, not {resets[0]!r}"
            remedy = f"train neurons with reset={resets[0]!r}"
            yield _model(chip, "resets", problem, remedy)
        yield from _levels(model.levels, chip)
        for name in ("dead_zone", "last_zone"):
            if (zone := getattr(model, name)) > 1 / 2:  # below it changes nothing
                problem = f"{name.replace('_', ' ')} {zone:.3g}, not 1/2"
                remedy = f"take {name}=0.5, as convert(..., chip=) does"
                yield _model(chip, "programmable", problem, remedy)
        if chip.lowest == "register" and model.lowest is not None:
            problem = f"lowest potential {model.lowest:g} V, not that of the register"
            yield _model(chip, "lowest", problem, "take lowest=None")
        remedy = "take snnjax.integrate_and_fire"
        rule = getattr(layer.layers.arithmetic, "leak", None)
        if neurons.is_leaky and chip.leak not in (None, rule):
            if chip.leak == "constant":
                yield _model(chip, "leak", "leak by a factor, not a constant", remedy)
            else:
                problem = "leak, which the chip rounds in a way that is not stated"
                if isinstance(chip.leak, values.Leak):
                    problem = f"leak, which is rounded (a {chip.leak.form})"
                    by_chip = "snnjax.deploy.quantize(layers, images, chip=...)"
                    remedy = f"{by_chip}, or {remedy}"
                yield Finding("leak", "approximately", problem, remedy)
        if chip.synapse == "exponential":
            remedy = "train neurons with synaptic currents in the chip's own tools"
            problem = "instant synapses, not exponential ones"
            yield _model(chip, "synapse", problem, remedy)
    if chip.event_driven and any(b.any() for b in layer.numbers["bias_bits"]):
        problem = "bias at each step, not at ticks of a clock"
        remedy = "train without biases and BatchNorm, and fit v(0) instead of biases"
        yield Finding("event_driven", "approximately", problem, remedy)


def _levels(levels: tuple[int, int], chip: Chip) -> Iterator[Finding]:
    low, high = levels
    pairs = chip.levels or (levels,)
    # A chip with more levels clips later, so a few spikes differ; with fewer levels, or
    # another sign, it is another neuron.
    tops = [top for bottom, top in pairs if bottom == low]
    if high in tops or None in tops:
        return
    text = " or ".join(map(str, pairs)).replace("None", "n")
    problem = f"levels ({low}, {high}), not {text}"
    remedy = f"take levels {text}, as convert(..., chip=) does"
    if any(top is not None and top > high for top in tops):
        yield Finding("levels", "approximately", problem, remedy)
    else:
        yield _model(chip, "levels", problem, remedy)


def shapes(layer: Layer, chip: Chip) -> Iterator[Finding]:
    """Kernels, strides, padding, channels, images and destinations."""
    kernels = layer.kernels
    larger = [k for k in kernels if max(k.size) > 1]  # a kernel of any size holds 1x1
    convolutions = [m for m in layer.maps if isinstance(m, values.Convolution)]
    of_image = len(layer.node.shape) == 3 or chip.dense_as_kernel
    filters = [layer.node.shape[0]] if of_image else []
    channels = [k.channels for k in kernels]
    strided = [max(k.size) for k in larger if max(k.stride) > 1]
    dense = [m.weight.shape[1] for m in layer.maps if isinstance(m, values.Dense)]
    measured = {
        "kernels": ("kernel", [max(k.size) for k in larger]),
        "strides": ("stride", [s for k in kernels for s in k.stride]),
        "strided_kernels": ("kernel with a stride", strided),
        "paddings": (
            "padding",
            [n for k in kernels for pair in k.padding for n in pair],
        ),
        "groups": ("groups", [m.groups for m in convolutions]),
        "channels": ("channels", channels + filters),
        "input_channels": ("channels of x", channels * layer.reads_x),
        "dense_inputs": ("inputs of a dense layer", dense),
        "input_rows": ("rows of its input", [k.image[0] for k in kernels]),
        "input_columns": ("columns of its input", [k.image[1] for k in kernels]),
        "output_image": ("rows or columns", layer.node.shape[1:]),
        "destinations": ("destinations", [len(layer.readers)]),
    }
    yield from _within(chip, measured)
    for kernel in kernels:
        unequal = any(low != high for low, high in kernel.padding)
        if chip.paddings is not None and (unequal or len({*kernel.size}) > 1):
            size = "x".join(map(str, kernel.size))
            problem = (
                f"kernel {size} with padding {kernel.padding}, not square and alike"
            )
            yield _limit("paddings", problem)
    modes = chip.padding_modes or ()
    for kernel in kernels:
        if modes and {*modes}.isdisjoint(kernel.modes):
            problem = f"padding {kernel.padding}, not {span(modes)}"
            yield _limit("padding_modes", problem)
    if chip.one_kernel and len({(k.stride, k.image) for k in kernels}) > 1:
        yield _limit("one_kernel", "inputs of unlike stride or size, not one kernel")


def paths(layer: Layer, chip: Chip) -> Iterator[Finding]:
    """A sum-pool without overlap, at most one map with weights, and then neurons."""
    for way in layer.ways:
        pools = [m for m in way.maps if isinstance(m, values.SumPool)]
        for pool in pools:
            if chip.pools is None:
                break
            window, image = pool.window, layer.images[way.sender]
            overlaps = window != pool.stride or any(pool.padding)
            whole_images = (window == image and chip.global_pool) or ()
            if overlaps or not {*window} <= {*chip.pools, *whole_images}:
                size = f"sum-pool {window[0]}x{window[1]}, stride {pool.stride[0]}"
                has = span(chip.pools) or "none but of a whole image"
                yield _limit("pools", f"{size} (without overlap: {has})")
        if chip.successive_maps is False:
            # A sum-pool is no map with weights; allowed is one of each, the pool first.
            maps = [m for m in way.maps if not isinstance(m, values.Flatten)]
            kinds = [isinstance(m, values.Affine) for m in maps]
            if kinds not in ([], [False], [True], [False, True]):
                problem = "maps in a row, without neurons between them"
                yield _limit("successive_maps", problem)
    if chip.readout == "spikes" and not layer.neurons:
        problem = "a sum, not spikes"
        remedy = "compute the last layer on the host, from the spikes that it reads"
        yield Finding("readout", "approximately", problem, remedy)


OF_LAYER = (number_of_bits, shared_numbers, neuron_model, shapes, paths)


# ------------------------------------------------------------------------- of a network


def of_code(layers: values.Layers, chip: Chip) -> Iterator[Finding]:
    """How a chip runs the code and a wait, and what rate coding takes instead.

    By itself; by thresholds that the host writes; by neurons of one's own; not at all.
    """
    steps, wait, code = layers.steps, layers.wait or 0, layers.code
    # In one step all codes are alike, and a wait changes no spike.
    if steps == 1 or code.is_streaming(wait):
        return
    problem, remedy = f"wait {wait}: neurons that hold spikes back", "take wait=0"
    if not code.is_streaming():
        problem = f"code {code!r}: thresholds that change by step"
        remedy = "take rate coding, as convert(..., chip=) does"
    if not code.is_streaming() and steps is not None:
        highest = max((n.model.levels[1] for n in layers.populations), default=1)
        count = round(highest * code.reach(steps) / code.finest(steps))
        depths: Counter[str] = Counter()  # 0 of the input
        for way in layers.connections:
            depths[way.receiver] = max(1 + depths[way.sender], depths[way.receiver])
        latency = steps + wait * max(depths[n.name] for n in layers.populations)
        problem += f", T = {steps}, wait {wait}, an answer after {latency} steps"
        remedy += (
            f"; with steps={count} for as many values, an answer after {count} steps "
            f"and up to {count} spikes per neuron"
        )
    if chip.step_thresholds == "host":
        remedy = f"let the host write thresholds before each step, or {remedy}"
        yield Finding("step_thresholds", "approximately", problem, remedy)
    else:
        yield _model(chip, "programmable", problem, remedy)


def of_network(layers: values.Layers, chip: Chip) -> Iterator[Finding]:
    """Steps, whether all spikes of a step arrive together, and sizes."""
    if chip.one_step and layers.steps != 1:
        yield Finding("one_step", "no", f"T = {layers.steps}, not 1", "take steps=1")
    if chip.event_driven:
        problem = "no steps: a neuron may fire before all spikes of a step arrive"
        remedy = "compare the accuracy on the chip; more steps bring rates together"
        yield Finding("event_driven", "approximately", problem, remedy)
    neurons, outputs = (
        sum(math.prod(node.shape) for node in nodes)
        for nodes in (layers.populations, layers.outputs)
    )
    fan_outs: Counter[str] = Counter()
    for way in layers.connections:
        fan_outs[way.sender] += geometry.fan_out(way)
    measured = {
        "inputs": ("inputs", [math.prod(layers.input.shape)]),
        "neurons": ("neurons", [neurons]),
        "outputs": ("outputs", [outputs]),
        "fan_out": ("fan-out", [*fan_outs.values()]),
    }
    yield from _within(chip, measured)


def input_levels(layers: values.Layers, chip: Chip) -> Iterator[Finding]:
    """x are whole numbers that the chip takes in a step."""
    low, high = chip.input_levels or (0, None)
    takes = f"whole numbers {low} to {'n' if high is None else high} per step"
    arithmetic, found = layers.arithmetic, ""
    if arithmetic is None or layers.input.unit is None:
        found = "floats"
    elif high is not None and arithmetic.largest_input > high:
        found = f"{arithmetic.input_bits} bits"
    if found:
        remedy = "give x as such numbers, e.g. events of a camera, or quantize it"
        yield Finding("input_levels", "approximately", f"{found}, not {takes}", remedy)


def no_core(words: Core, cores: Sequence[Core]) -> Finding:
    """Why a layer got no core."""

    def text(count: int) -> str:
        return f"{count / 1024:.3g} Ki words" if count >= 1024 else f"{count} words"

    size = f"{text(words.kernels)} of kernels and {text(words.neurons)} of neurons"
    if any(geometry.fits(words, core) for core in cores):
        problem = f"needs {size}; other layers take every core that has them"
        return Finding("cores", "no", problem, "use fewer or smaller layers")
    most_kernels, most_neurons = map(max, zip(*cores, strict=True))
    largest = f"{text(most_kernels)} of kernels or {text(most_neurons)} of neurons"
    remedy = f"use fewer channels, or pool earlier: a core has at most {largest}"
    return Finding("cores", "no", f"needs {size}; no core has both", remedy)


# ------------------------------------------------------------------------------ words


def _within(
    chip: Chip, measured: Mapping[str, tuple[str, Sequence[int]]]
) -> Iterator[Finding]:
    """A finding for each field whose allowed values, or largest, numbers exceed."""
    for field, (words, numbers) in measured.items():
        limit = getattr(chip, field)
        if limit is None:
            continue
        is_most = isinstance(limit, int)
        allowed = range(limit + 1) if is_most else limit
        if beyond := [n for n in numbers if n not in allowed]:
            text = f"at most {limit}" if is_most else f"not {span(limit)}"
            yield _limit(field, f"{words} {max(beyond)}, {text}")


def _limit(field: str, problem: str) -> Finding:
    remedy = "build the network within these limits, and train it again"
    return Finding(field, "no", problem, remedy)


def _model(chip: Chip, field: str, problem: str, remedy: str) -> Finding:
    """A finding about neurons, which users of some chips can write themselves."""
    if chip.programmable:
        remedy = f"{remedy}, or write such a neuron for the chip"
        return Finding(field, "approximately", problem, remedy)
    return Finding(field, "no", problem, remedy)


def _quantize(chip: Chip) -> str:
    options = [f"weight_bits={max(chip.weight_bits or (8,))}"]
    options += [f"state_bits={chip.state_bits}"] if chip.state_bits else []
    options += [f'scale="{chip.scale}"'] if chip.scale else []
    return f"snnjax.deploy.quantize(layers, images, {', '.join(options)})"
