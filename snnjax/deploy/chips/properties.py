"""Findings where the numbers of a chip differ from those of a layer or a network.

Each function yields the findings about one property, none where the chip states
nothing. "approximately" means that some spikes differ from the simulated ones, or do so
until the remedy is taken; "no" means that the chip cannot run the network.
"""

from collections.abc import Iterator

import numpy as np

from snnjax.deploy.chips import geometry
from snnjax.deploy.chips.chip import Chip
from snnjax.deploy.chips.geometry import Layer
from snnjax.deploy.chips.rules import Finding
from snnjax.deploy.lowering import values
from snnjax.deploy.tools.refusals import WITHOUT_SIGN

_GRANULARITIES = ("layer", "channel", "neuron")  # from the fewest numbers to the most


def layer_findings(layer: Layer, chip: Chip) -> Iterator[Finding]:
    """What a population or an output breaks of the numbers of a chip."""
    yield from number_of_bits(layer, chip)
    yield from shared_numbers(layer, chip)
    if layer.population is not None:
        yield from neuron_model(layer.population, layer.network, chip)
    elif chip.readout == "spikes":
        yield Finding(
            field="readout",
            verdict="approximately",
            problem="a sum, not spikes",
            remedy="compute the last layer on the host, from the spikes that it reads",
        )


# ----------------------------------------------------------------------------- numbers


def number_of_bits(layer: Layer, chip: Chip) -> Iterator[Finding]:
    """Findings unless all numbers are whole and fit into the bits of the chip.

    A chip with more state bits than were simulated gives the same spikes, unless a
    potential overflows in the simulation.
    """
    arithmetic = layer.network.arithmetic
    remedy = _call_of_quantize(chip)
    if arithmetic is None or not _is_whole(layer):
        yield Finding("weight_bits", "approximately", "floats", remedy)
        return
    yield from _bits_of_arrays(layer, chip)
    if layer.population is None:
        return
    # Beside its arrays, a population has a register for each potential.
    if chip.state_bits is not None and arithmetic.state_bits > chip.state_bits:
        problem = f"potentials of {arithmetic.state_bits} bits, not {chip.state_bits}"
        yield Finding("state_bits", "approximately", problem, remedy)
    if chip.overflow not in (None, arithmetic.overflow):
        problem = f"overflow {arithmetic.overflow!r}, not {chip.overflow!r}"
        yield Finding("overflow", "approximately", problem, remedy)


def _is_whole(layer: Layer) -> bool:
    """Whether all numbers of a layer are whole."""
    for arrays in layer.arrays.values():
        for array in arrays:
            if (array != np.rint(array)).any():
                return False
    return True


def _bits_of_arrays(layer: Layer, chip: Chip) -> Iterator[Finding]:
    """A finding for each kind of arrays of a layer that needs too many bits."""
    allowed_bits = {
        "weight_bits": max(chip.weight_bits) if chip.weight_bits else None,
        "threshold_bits": chip.threshold_bits,
        "bias_bits": chip.bias_bits,
        "state_bits": chip.state_bits,  # of initial potentials
    }
    for field, arrays in layer.arrays.items():
        allowed = allowed_bits[field]
        if allowed is None or not arrays:
            continue
        needed = geometry.bits(*arrays)
        if needed <= allowed:
            continue
        remedy = _call_of_quantize(chip)
        # Thresholds and biases have the scale of the weights.
        if field in ("threshold_bits", "bias_bits"):
            remedy = (
                "quantize this layer with fewer weight_bits: all numbers are smaller"
            )
        kind = field.removesuffix("_bits")
        problem = f"{kind} of {needed} bits, not {allowed}"
        yield Finding(field, "approximately", problem, remedy)


def _call_of_quantize(chip: Chip) -> str:
    """The call that makes numbers for a chip."""
    weight_bits = max(chip.weight_bits) if chip.weight_bits else 8
    options = f"weight_bits={weight_bits}"
    if chip.state_bits:
        options += f", state_bits={chip.state_bits}"
    if chip.scale:
        options += f', scale="{chip.scale}"'
    return f"snnjax.deploy.quantize(layers, images, {options})"


def shared_numbers(layer: Layer, chip: Chip) -> Iterator[Finding]:
    """Findings where thresholds, biases or v(0) differ and share a number on the chip.

    A chip may have one threshold for a whole layer, or one for each channel.
    """
    arrays = {"biases": layer.node.bias}
    if layer.population is not None:
        arrays["thresholds"] = layer.population.threshold
        arrays["initial_potentials"] = layer.population.initial_potential
    for field, array in arrays.items():
        allowed = getattr(chip, field)
        if allowed is None:
            continue
        needed = geometry.granularity(array)
        if _GRANULARITIES.index(needed) > _GRANULARITIES.index(allowed):
            words = field.replace("_", " ")
            problem = f"{words} per {needed}, not per {allowed}"
            remedy = f"fit {words} per {allowed}"
            if layer.network.arithmetic is not None and needed == "channel":
                # A unit of weights per channel gives each channel a threshold.
                remedy += f', and quantize with scale="{allowed}"'
            yield Finding(field, "approximately", problem, remedy)


# ----------------------------------------------------------------------------- neurons


def neuron_model(
    population: values.Population, network: values.Layers, chip: Chip
) -> Iterator[Finding]:
    """Findings about reset, levels, zones, lower bound, leak and synapse."""
    model = population.model
    # In one step nothing comes after the reset.
    if chip.resets and model.reset not in chip.resets and network.steps != 1:
        reset = chip.resets[0]
        problem = f"reset {model.reset!r}, not {reset!r}"
        yield _neuron_finding(chip, "resets", problem, f"train neurons with {reset=}")
    yield from _levels(model.levels, chip)
    for name in ("dead_zone", "last_zone"):
        zone = getattr(model, name)
        # A zone of at most half a threshold changes no spike.
        if zone > 1 / 2:
            problem = f"{name.replace('_', ' ')} {zone:.3g}, not 1/2"
            remedy = f"take {name}=0.5, as convert(..., chip=) does"
            yield _neuron_finding(chip, "programmable", problem, remedy)
    if chip.lowest == "register" and model.lowest is not None:
        problem = f"lowest potential {model.lowest:g} V, not that of the register"
        yield _neuron_finding(chip, "lowest", problem, "take lowest=None")
    if population.is_leaky:
        yield from _leak(network, chip)
    if chip.synapse == "exponential":
        remedy = "train neurons with synaptic currents in the chip's own tools"
        problem = "instant synapses, not exponential ones"
        yield _neuron_finding(chip, "synapse", problem, remedy)


def _levels(levels: tuple[int, int], chip: Chip) -> Iterator[Finding]:
    """A finding unless the chip has the levels (low, high) that neurons send."""
    if not chip.levels:
        return
    low, high = levels
    # The high levels that the chip has beside this low one; None: any.
    chip_highs = [top for bottom, top in chip.levels if bottom == low]
    if high in chip_highs or None in chip_highs:
        return
    allowed = " or ".join(map(str, chip.levels)).replace("None", "n")
    problem = f"levels ({low}, {high}), not {allowed}"
    remedy = f"take levels {allowed}, as convert(..., chip=) does"
    # A chip with more levels clips later, so a few spikes differ; with fewer levels, or
    # another sign, it is another neuron.
    if any(top is not None and top > high for top in chip_highs):
        yield Finding("levels", "approximately", problem, remedy)
    else:
        yield _neuron_finding(chip, "levels", problem, remedy)


def _leak(network: values.Layers, chip: Chip) -> Iterator[Finding]:
    """A finding unless leaks are rounded by the rule of the chip."""
    rounded_by = None  # the rule of the simulation; floats are not rounded
    if network.arithmetic is not None:
        rounded_by = network.arithmetic.leak
    if chip.leak is None or chip.leak == rounded_by:
        return
    no_leak = "take snnjax.integrate_and_fire"
    if chip.leak == "constant":
        problem = "leak by a factor, not a constant"
        yield _neuron_finding(chip, "leak", problem, no_leak)
    elif isinstance(chip.leak, values.Leak):
        problem = f"leak, which is rounded (a {chip.leak.form})"
        remedy = "snnjax.deploy.quantize(layers, images, chip=...)"
        yield Finding("leak", "approximately", problem, f"{remedy}, or {no_leak}")
    else:
        problem = "leak, which the chip rounds in a way that is not stated"
        yield Finding("leak", "approximately", problem, no_leak)


def _neuron_finding(chip: Chip, field: str, problem: str, remedy: str) -> Finding:
    """A finding about neurons, which users of some chips can program themselves."""
    if chip.programmable == "neurons":
        remedy = f"{remedy}, or write such a neuron for the chip"
        return Finding(field, "approximately", problem, remedy)
    return Finding(field, "no", problem, remedy)


# ---------------------------------------------------------------------- whole networks


def number_of_steps(network: values.Layers, chip: Chip) -> Iterator[Finding]:
    """A finding if the chip computes one step alone, and T is not 1."""
    if chip.one_step and network.steps != 1:
        yield Finding("one_step", "no", f"T = {network.steps}, not 1", "take steps=1")


def code_and_wait(network: values.Layers, chip: Chip) -> Iterator[Finding]:
    """How a chip runs a code and a wait, and what rate coding takes instead.

    Rate coding without a wait treats all steps alike, and there is no finding.
    Otherwise the host may write thresholds at each step, or users program neurons.
    """
    code = network.code
    wait = 0 if network.wait is None else network.wait
    # In one step all codes are alike, and a wait changes no spike.
    if network.steps == 1 or code.is_streaming(wait):
        return
    if code.is_streaming():
        problem = f"wait {wait}: neurons that hold spikes back"
        remedy = "take wait=0"
    else:
        problem = f"code {code!r}: thresholds that change by step"
        remedy = "take rate coding, as convert(..., chip=) does"
        if network.steps is not None:
            steps = network.steps
            latency = steps + wait * _depth(network)
            problem += f", T = {steps}, wait {wait}, an answer after {latency} steps"
            count = _steps_of_rate_coding(network, steps)
            remedy += (
                f"; with steps={count} for as many values, an answer after {count} "
                f"steps and up to {count} spikes per neuron"
            )
    if chip.programmable == "thresholds":
        remedy = f"let the host write thresholds before each step, or {remedy}"
        yield Finding("programmable", "approximately", problem, remedy)
    else:
        yield _neuron_finding(chip, "programmable", problem, remedy)


def _steps_of_rate_coding(network: values.Layers, steps: int) -> int:
    """The T at which rate coding tells as many values apart as the network's code.

    Its T = ``steps`` spikes add up to multiples of w_T, from 0 to the largest level
    times the sum of all w_t. Rate coding has T + 1 values.
    """
    largest_level = max(neurons.model.levels[1] for neurons in network.populations)
    code = network.code
    return round(largest_level * code.reach(steps) / code.finest(steps))


def _depth(network: values.Layers) -> int:
    """How many populations lie on the longest path from the input to one of them."""
    depths = {network.input.name: 0}
    # Connections come in the order of execution, so a sender has its depth already.
    for connection in network.connections:
        depth = 1 + depths[connection.sender]
        receiver = connection.receiver
        depths[receiver] = max(depth, depths.get(receiver, 0))
    return max(depths[population.name] for population in network.populations)


def input_levels(network: values.Layers, chip: Chip) -> Iterator[Finding]:
    """Findings unless x are whole numbers that the chip takes in a step."""
    # Where no levels are stated, any whole number is taken; high is None.
    low, high = chip.input_levels or (0, None)
    allowed = f"{low} to {'n' if high is None else high} per step"
    arithmetic = network.arithmetic
    numbers = None
    if arithmetic is None or network.input.unit is None:
        numbers = "floats"
    elif high is not None and arithmetic.largest_input > high:
        numbers = f"{arithmetic.input_bits} bits"
    if numbers is not None:
        problem = f"{numbers}, not whole numbers {allowed}"
        remedy = "give x as such numbers, e.g. events of a camera, or quantize it"
        yield Finding("input_levels", "approximately", problem, remedy)
    lowest = network.input.lowest
    if chip.input_levels is not None and lowest is not None and lowest < low:
        problem = f"the images of quantize have numbers from {lowest} on, not {allowed}"
        yield Finding("input_levels", "approximately", problem, WITHOUT_SIGN)
