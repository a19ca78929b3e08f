"""A network of whole numbers as a program for a core of Catalyst N1, an open RTL.

A neuron of the core in its LIF mode, for which everything has 16 bits:

    v <- v + currents + sum of weights             graded: of (weight x payload) >> 7
    v >= threshold: a spike, payload clip(v - threshold, 1, 255), v <- rest
    v <= 0: v <- rest

A potential u of ours is v = rest + u with the reset to zero. The reset by subtraction
needs three neurons in place of one, in graded mode, and v = rest + 1 + 2 u:

    fire   its payload is 2 (u - m_t V) + 1 with the threshold rest + 2 m_t V, and a
           synapse to itself brings it back: v = rest + 1 + 2 (u - m_t V)
    hold   reads "fire", and its payload is always 255
    send   reads "hold"; with the threshold 255 - p its payload is p = 128 m_t / m_1,
           which makes 2 m_t W of weights 2 m_1 W

Digits of both signs need such neurons for -u too. Each "send" also corrects the
potential of the other sign, and a fourth neuron, the latch, fires once: it opens -u
after the first positive spike. The host writes x and biases as currents, and
thresholds and resting potentials when they change.
Source: catalyst-neuromorphic/catalyst-n1 fbfd2e5, rtl/scalable_core_v2.v.
"""

from collections import Counter, defaultdict
from typing import Any, NamedTuple

import numpy as np

from benchmarks.chip_programs import Misfit, matrices
from snnjax.deploy import Layers, Population, Timing, timing

MOST_NEURONS, MOST_SYNAPSES, MOST_FAN_OUT = 2**10, 2**17, 2**12 - 1
FIFO = 64  # spikes of a step; the core loses more of them without a word
HIGH = 2**15 - 1  # no potential reaches it as a threshold
REST = 2**14 - 1  # in the middle, because v <= 0 would be lost
GATE = 2**13  # below which -u waits
PAYLOAD = 2**7  # with which a graded current is the weight
THRESHOLD, RESTING = 0, 2  # parameters of a neuron
KINDS = ((0, 1), "zero"), ((0, 1), "subtract"), ((-1, 1), "subtract")


class Drive(NamedTuple):
    """Currents of neurons before a step of the core: constants + of_x @ x."""

    step: int
    neurons: np.ndarray
    constants: np.ndarray
    of_x: np.ndarray


class Group(NamedTuple):
    """The neurons "fire" of a population, [signs, N], and the T steps of the core."""

    fire: np.ndarray
    steps: np.ndarray
    shape: tuple[int, ...]
    room: int  # the largest potential of ours that they hold


class Program(NamedTuple):
    """What the host writes: once, before each step, and of each x."""

    setup: list[str]
    parameters: dict[int, list[str]]
    drives: list[Drive]
    last: int  # step
    groups: dict[str, Group]
    outputs: dict[str, np.ndarray]
    neurons: int
    synapses: int
    is_graded: bool

    def commands(self, x: np.ndarray) -> str:
        """For the driver and an image of whole numbers, channels first, flat."""
        writes = {step: [*self.parameters[step]] for step in range(self.last + 1)}
        for step, neurons, constants, of_x in self.drives:
            currents = constants + of_x @ x
            _check_bits("currents", currents)
            pairs = zip(neurons, currents, strict=True)
            writes[step] += [f"x {n} {int(c)} 0" for n, c in pairs if c]
        lines = [line for step in writes.values() for line in (*step, "s 0 0 0")]
        reads = [f"r {n} 0 0" for ids in self.outputs.values() for n in ids]
        return "\n".join([*self.setup, *lines, *reads, ""])


class Recording(NamedTuple):
    """What happens to an image."""

    spikes: dict[str, np.ndarray]  # population -> levels [T, ...], channels last
    sums: dict[str, np.ndarray]  # output -> [N]
    extra: int  # spikes at other steps
    most: int  # spikes in a step


class _Core:
    """Neurons, synapses and parameters while they are placed."""

    def __init__(self) -> None:
        self.count = 0
        self.synapses: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.parameters: dict[int, list[str]] = defaultdict(list)
        self._known: dict[tuple[int, int], int] = {}

    def neurons(self, *shape: int) -> np.ndarray:
        first, self.count = self.count, self.count + int(np.prod(shape))
        return np.arange(first, self.count).reshape(shape)

    def connect(self, sources: np.ndarray, targets: np.ndarray, weight: Any) -> None:
        """weight [targets, sources], or those of pairs."""
        if np.ndim(weight) < 2:
            weight = np.diag(np.broadcast_to(weight, sources.shape))
        _check_bits("weights", weight)
        for j, i in np.argwhere(weight):
            self.synapses[sources[i]].append((targets[j], weight[j, i]))

    def write(self, step: int, neurons: np.ndarray, parameter: int, value: Any) -> None:
        """Before a step, and only what changes."""
        _check_bits("thresholds", value)
        for n, v in zip(neurons, np.broadcast_to(value, neurons.shape), strict=True):
            if self._known.get((n, parameter)) != v:
                self._known[n, parameter] = v
                self.parameters[step].append(f"p {n} {parameter} {v}")

    def setup(self, is_graded: bool) -> list[str]:
        """The commands that place the synapses."""
        lines, address = [f"g {int(is_graded)} 0 0"], 0
        for source, pairs in self.synapses.items():
            lines.append(f"i {source} {address} {len(pairs)}")
            for target, weight in pairs:
                lines.append(f"w {address} {target} {weight}")
                address += 1
        longest = max(map(len, self.synapses.values()), default=0)
        most = {"neurons": (self.count, MOST_NEURONS)}
        most |= {"synapses": (address, MOST_SYNAPSES)}
        most |= {"synapses of a neuron": (longest, MOST_FAN_OUT)}
        for name, (found, allowed) in most.items():
            if found > allowed:
                raise Misfit(f"the network needs {found} {name}; a core has {allowed}")
        return lines


def _kind(layers: Layers) -> tuple[tuple[int, ...], bool, Timing]:
    """Signs of the neurons, whether they are graded, and what the code does when."""
    if layers.arithmetic is None:
        allowed = "what snnjax.deploy.quantize returns"
        raise Misfit(f"layers are of floats; allowed: {allowed}")
    times = timing(layers)
    m = times.multiples
    kinds = {(node.model.levels, node.model.reset) for node in layers.populations}
    found = f"{times.code!r} with T = {len(m)} and levels and resets {sorted(kinds)}"
    if len(kinds) > 1 or not kinds <= {*KINDS}:
        raise Misfit(f"{found}; allowed: one of {', '.join(map(str, KINDS))}")
    ((levels, reset),) = kinds
    is_signed, is_graded = levels[0] < 0, reset == "subtract"
    if (m[0] > 1 and not is_graded) or (PAYLOAD * m % m[0]).any():
        allowed = f"allowed: subtraction, and whole 128 m_t / m_1 of m = {m}"
        raise Misfit(f"{found}; {allowed}")
    # Then a sum that was positive stays so, which is all that a latch knows.
    if is_signed and (m[:-1] < 2 * m[1:]).any():
        allowed = f"allowed for both signs: m_t at least halves, not m = {m}"
        raise Misfit(f"{found}; {allowed}")
    return (1, -1)[: 1 + is_signed], is_graded, times


class Numbers(NamedTuple):
    """Those of a population or an output, divided by what a neuron's numbers share.

    If V and all that arrives after the start are multiples of d, u = d u' + r with one
    r, and u >= P where u' >= (P - r) / d. Payloads hold u' where they do not hold u.
    """

    weights: dict[str, np.ndarray]  # sender -> [N, M]
    of_x: np.ndarray  # [N, elements of x]
    constants: np.ndarray  # [T, N], at each step
    threshold: np.ndarray  # V
    least: np.ndarray  # [signs, T, N]: the u that sends 1, the -u that sends -1
    divisor: int  # the least d


def _numbers(layers: Layers, node: Any, times: Timing) -> Numbers:
    def whole(array: np.ndarray, unit: float = 1.0) -> np.ndarray:
        return np.broadcast_to(np.rint(array / unit), node.shape).ravel().astype(int)

    weights = {n: np.rint(w).astype(int) for n, w in matrices(layers, node).items()}
    bias = whole(node.bias, layers.bias_unit)
    no_x = np.zeros((len(bias), int(np.prod(layers.input.shape))), int)
    of_x = weights.pop(layers.input.name, no_x)
    constants = times.biases[:, None] * bias
    if not isinstance(node, Population):
        return Numbers(weights, of_x, constants, bias, bias, 1)
    threshold = whole(node.threshold)
    constants[0] += whole(node.initial_potential, layers.potential_unit)
    terms = [*weights.values(), of_x, constants[1:].T, threshold[:, None]]
    d = np.gcd.reduce(np.concatenate(terms, axis=1), axis=1)
    r = constants[0] % d
    constants[0] -= r
    least = times.thresholds(node).reshape(-1, times.steps, len(d))
    least = -((np.stack([r, -r])[: len(least), None] - least) // d)
    weights = {name: w // d[:, None] for name, w in weights.items()}
    of_x = of_x // d[:, None]
    return Numbers(weights, of_x, constants // d, threshold // d, least, int(d.min()))


def _check_bits(name: str, values: Any) -> None:
    most = np.abs(values).max(initial=0)
    if most > HIGH:
        raise Misfit(f"{name} reach {most:.0f}; a core has 16 bits, up to {HIGH}")


def program_of(layers: Layers) -> Program:
    """Layers of whole numbers as neurons and synapses of the core.

    Raises:
        Misfit: the core has no such neurons, or too few of them, or too few bits.
    """
    (signs, is_graded, times), core, drives = _kind(layers), _Core(), []
    m = times.multiples
    # Steps of the core for one of ours, and from a population to the next one: in the
    # first "fire" may fire, then "hold", then "send". So the FIFO holds one kind.
    pace = 3 if is_graded else 1
    unit = 1 + is_graded  # v = rest + is_graded + unit u
    sends: dict[str, np.ndarray] = {}
    groups: dict[str, Group] = {}
    outputs: dict[str, np.ndarray] = {}
    delay, last = pace * (layers.wait + 1), 0
    starts = {layers.input.name: 1 - delay}  # in step 0 all v become "rest"
    for node in layers.receivers:
        own, is_output = _numbers(layers, node, times), not isinstance(node, Population)
        senders = [*own.weights] or [layers.input.name]
        start, *others = {starts[name] + delay for name in senders}
        if others:
            raise Misfit(
                f"ways to {node.name!r} differ in length; allowed: the same number of "
                "populations on all ways, since each delays its spikes"
            )
        fire = core.neurons(1 if is_output else len(signs), len(own.threshold))
        core.write(0, fire.ravel(), RESTING, REST)
        for sign, neurons in zip(signs, fire, strict=False):
            scale = sign * (1 if is_output else unit)
            for name, weight in own.weights.items():
                for other, sending in zip(signs, sends[name], strict=True):
                    core.connect(sending, neurons, scale * other * m[0] * weight)
            for n, constants in enumerate(scale * own.constants):
                if n == 0 and not is_output:
                    constants = constants + is_graded - GATE * (sign < 0)
                of_x = scale * times.inputs[n] * own.of_x
                drives.append(Drive(start + pace * n, neurons, constants, of_x))
        last = max(last, start + pace * (layers.steps - 1))
        if is_output:
            outputs[node.name] = fire[0]
            continue
        starts[node.name] = start
        steps = start + pace * (layers.wait + np.arange(layers.steps))
        room = (REST - GATE * (len(signs) > 1) - 2) // unit * own.divisor
        groups[node.name] = Group(fire, steps, node.shape, room)
        sends[node.name] = fire
        if is_graded:
            sends[node.name] = _graded(core, drives, fire, own.threshold, m, steps)
        for t, step in enumerate(steps):
            for neurons, least in zip(fire, own.least[:, t], strict=False):
                core.write(step, neurons, THRESHOLD, REST + unit * least)
                if is_graded:
                    left = least - m[t] * own.threshold
                    core.write(step, neurons, RESTING, REST + unit * left)
                if is_graded or step == steps[-1]:
                    core.write(step + 1, neurons, THRESHOLD, HIGH)
    setup, synapses = core.setup(is_graded), sum(map(len, core.synapses.values()))
    placed = core.count, synapses, is_graded
    return Program(setup, core.parameters, drives, last, groups, outputs, *placed)


def _graded(
    core: _Core, drives: list[Drive], fire: Any, threshold: Any, m: Any, steps: Any
) -> np.ndarray:
    """Place "hold", "send" and latches of a population; returns "send"."""
    hold, send = core.neurons(*fire.shape), core.neurons(*fire.shape)
    for f, h, s in zip(fire, hold, send, strict=True):
        core.connect(f, f, PAYLOAD)
        for _ in range(2):  # 256 times the payload
            core.connect(f, h, 2**14)
        core.connect(h, s, PAYLOAD)
        core.write(0, h, THRESHOLD, 1)
        for step, multiple in zip(steps, m, strict=True):
            core.write(step + 2, s, THRESHOLD, 255 - PAYLOAD * multiple // m[0])
    if len(fire) == 2:
        core.connect(send[0], fire[1], 2 * m[0] * threshold)
        core.connect(send[1], fire[0], 2 * m[0] * threshold)
        latch = core.neurons(fire.shape[1])
        core.connect(hold[0], latch, PAYLOAD)
        core.connect(latch, fire[1], GATE)
        # From 1 to 256 for the first time; later ones begin and end below 0.
        core.write(0, latch, THRESHOLD, 256 - PAYLOAD)
        core.write(0, latch, RESTING, -REST)
        once = np.full(latch.shape, REST + 1)
        drives.append(Drive(1, latch, once, drives[0].of_x[:1] * 0))
    return send


def recorded(program: Program, events: str) -> Recording:
    """The events of the driver.

    Raises:
        Misfit: the core may have lost spikes or a part of a payload.
    """
    per_step: Counter[int] = Counter()
    payloads: dict[tuple[int, int], int] = {}
    potentials: dict[int, int] = {}
    for line in events.splitlines():
        match [word if word.isalpha() else int(word) for word in line.split()]:
            case "spike", step, neuron, payload:
                per_step[step] += 1
                payloads[step, neuron] = payload
            case "potential", neuron, value:
                potentials[neuron] = value
    most = max(per_step.values(), default=0)
    if most > FIFO:
        lost = f"a core holds {FIFO} and loses the others"
        raise Misfit(f"{most} spikes in a step; {lost}")
    spikes, extra = {}, 0
    for name, (fire, steps, shape, _) in program.groups.items():
        own = {key: payload for key, payload in payloads.items() if key[1] in fire}
        if program.is_graded and max(own.values(), default=0) == 255:
            raise Misfit(
                f"{name!r} has a payload of 255 or more, and 8 bits hold what a spike "
                "leaves of a potential; allowed: fewer weight_bits or input_bits"
            )
        sent = np.array([[[(s, n) in own for n in ids] for ids in fire] for s in steps])
        extra += len(own) - int(sent.sum())
        levels = sent[:, 0].astype(int) - sent[:, 1:].sum(1)
        spikes[name] = np.moveaxis(levels.reshape(-1, *shape), 1, -1)
    pairs = program.outputs.items()
    sums = {name: np.array([potentials[n] - REST for n in ids]) for name, ids in pairs}
    return Recording(spikes, sums, extra, most)
