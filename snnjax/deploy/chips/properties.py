"""The numbers of a chip against those of a layer, and of a whole network.

Each function yields findings about one property, and compares nothing where the chip
states nothing. "approximately" means that some spikes differ from the simulated ones,
or do so until the remedy is taken; "no" means that the chip cannot run it.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from snnjax.deploy.chips import geometry
from snnjax.deploy.chips.chip import Chip
from snnjax.deploy.chips.geometry import Layer
from snnjax.deploy.chips.rules import Finding
from snnjax.deploy.lowering import values

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
    """All numbers are whole, and fit into the bits of the chip.

    A chip with more state bits than were simulated gives the same spikes, unless a
    potential overflows in the simulation.
    """
    arithmetic = layer.network.arithmetic
    is_whole = True
    for arrays in layer.arrays.values():
        for array in arrays:
            is_whole = is_whole and bool((array == np.rint(array)).all())
    remedy = _call_of_quantize(chip)
    if arithmetic is None or not is_whole:
        yield Finding("weight_bits", "approximately", "floats", remedy)
        return
    allowed_bits = {
        "weight_bits": max(chip.weight_bits) if chip.weight_bits else None,
        "threshold_bits": chip.threshold_bits,
        "bias_bits": chip.bias_bits,
        "state_bits": chip.state_bits,
    }
    # The state bits are here those of initial potentials.
    for field, arrays in layer.arrays.items():
        allowed = allowed_bits[field]
        if allowed is None or not arrays or geometry.bits(*arrays) <= allowed:
            continue
        kind = field.removesuffix("_bits")
        problem = f"{kind} of {geometry.bits(*arrays)} bits, not {allowed}"
        # Thresholds and biases have the scale of the weights.
        if field in ("threshold_bits", "bias_bits"):
            fewer = (
                "quantize this layer with fewer weight_bits: all numbers are smaller"
            )
            yield Finding(field, "approximately", problem, fewer)
        else:
            yield Finding(field, "approximately", problem, remedy)
    if layer.population is None:
        return
    # The state bits of the register that was simulated.
    if chip.state_bits is not None and arithmetic.state_bits > chip.state_bits:
        problem = f"potentials of {arithmetic.state_bits} bits, not {chip.state_bits}"
        yield Finding("state_bits", "approximately", problem, remedy)
    if chip.overflow not in (None, arithmetic.overflow):
        problem = f"overflow {arithmetic.overflow!r}, not {chip.overflow!r}"
        yield Finding("overflow", "approximately", problem, remedy)


def shared_numbers(layer: Layer, chip: Chip) -> Iterator[Finding]:
    """Thresholds, biases and v(0) differ only where the chip has a number for each."""
    numbers = [("biases", layer.node.bias, chip.biases)]
    population = layer.population
    if population is not None:
        numbers.append(("thresholds", population.threshold, chip.thresholds))
        potentials = population.initial_potential
        numbers.append(("initial_potentials", potentials, chip.initial_potentials))
    for field, array, allowed in numbers:
        needed = geometry.granularity(array)
        if allowed is None:
            continue
        if _GRANULARITIES.index(needed) > _GRANULARITIES.index(allowed):
            words = field.replace("_", " ")
            problem = f"{words} per {needed}, not per {allowed}"
            remedy = f"fit {words} per {allowed}"
            yield Finding(field, "approximately", problem, remedy)


def _call_of_quantize(chip: Chip) -> str:
    """The call that makes numbers for a chip."""
    options = [f"weight_bits={max(chip.weight_bits or (8,))}"]
    if chip.state_bits:
        options.append(f"state_bits={chip.state_bits}")
    if chip.scale:
        options.append(f'scale="{chip.scale}"')
    return f"snnjax.deploy.quantize(layers, images, {', '.join(options)})"


# ----------------------------------------------------------------------------- neurons


def neuron_model(
    population: values.Population, network: values.Layers, chip: Chip
) -> Iterator[Finding]:
    """Reset, levels, zones, lower bound, leak and synapse."""
    model = population.model
    # In one step nothing comes after the reset.
    if chip.resets and model.reset not in chip.resets and network.steps != 1:
        reset = chip.resets[0]
        problem = f"reset {model.reset!r}, not {reset!r}"
        yield _neuron_finding(chip, "resets", problem, f"train neurons with {reset=}")
    yield from _levels(model.levels, chip)
    for name in ("dead_zone", "last_zone"):
        zone = getattr(model, name)
        if zone > 1 / 2:  # below it changes nothing
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
    """The levels that neurons send are those of the chip."""
    low, high = levels
    pairs = chip.levels or (levels,)
    highest = [top for bottom, top in pairs if bottom == low]
    if high in highest or None in highest:
        return
    text = " or ".join(map(str, pairs)).replace("None", "n")
    problem = f"levels ({low}, {high}), not {text}"
    remedy = f"take levels {text}, as convert(..., chip=) does"
    # A chip with more levels clips later, so a few spikes differ; with fewer levels, or
    # another sign, it is another neuron.
    if any(top is not None and top > high for top in highest):
        yield Finding("levels", "approximately", problem, remedy)
    else:
        yield _neuron_finding(chip, "levels", problem, remedy)


def _leak(network: values.Layers, chip: Chip) -> Iterator[Finding]:
    """A leak is rounded by the rule of the chip."""
    arithmetic = network.arithmetic
    rule = None if arithmetic is None else arithmetic.leak
    if chip.leak is None or chip.leak == rule:
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
    """A finding about neurons, which users of some chips can write themselves."""
    if chip.programmable == "neurons":
        remedy = f"{remedy}, or write such a neuron for the chip"
        return Finding(field, "approximately", problem, remedy)
    return Finding(field, "no", problem, remedy)


# ---------------------------------------------------------------------- whole networks


def number_of_steps(network: values.Layers, chip: Chip) -> Iterator[Finding]:
    """T is 1, if the chip computes one step alone."""
    if chip.one_step and network.steps != 1:
        yield Finding("one_step", "no", f"T = {network.steps}, not 1", "take steps=1")


def code_and_wait(network: values.Layers, chip: Chip) -> Iterator[Finding]:
    """How a chip runs a code and a wait, and what rate coding takes instead.

    Rate coding without a wait needs nothing. Otherwise the host may write thresholds,
    or users write neurons.
    """
    code = network.code
    wait = network.wait or 0
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
    """How many steps tell as many values apart as these steps of a code."""
    highest = max((n.model.levels[1] for n in network.populations), default=1)
    code = network.code
    return round(highest * code.reach(steps) / code.finest(steps))


def _depth(network: values.Layers) -> int:
    """How many populations lie on the longest path from the input to one of them."""
    depths: Counter[str] = Counter()  # 0 of the input
    # Connections come in the order of execution.
    for way in network.connections:
        depths[way.receiver] = max(1 + depths[way.sender], depths[way.receiver])
    return max(depths[node.name] for node in network.populations)


def input_levels(network: values.Layers, chip: Chip) -> Iterator[Finding]:
    """x are whole numbers that the chip takes in a step."""
    low, high = chip.input_levels or (0, None)
    arithmetic = network.arithmetic
    if arithmetic is None or network.input.unit is None:
        numbers = "floats"
    elif high is not None and arithmetic.largest_input > high:
        numbers = f"{arithmetic.input_bits} bits"
    else:
        return
    highest = "n" if high is None else high
    problem = f"{numbers}, not whole numbers {low} to {highest} per step"
    remedy = "give x as such numbers, e.g. events of a camera, or quantize it"
    yield Finding("input_levels", "approximately", problem, remedy)
