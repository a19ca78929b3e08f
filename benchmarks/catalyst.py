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
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from benchmarks.chip_programs import Misfit, matrices
from snnjax.deploy import Layers, Population, Timing, timing

MOST_NEURONS = 2**10
MOST_SYNAPSES = 2**17
MOST_FAN_OUT = 2**12 - 1
FIFO = 64  # spikes of a step; the core loses more of them without a word
HIGH = 2**15 - 1  # no potential reaches it as a threshold
REST = 2**14 - 1  # in the middle, because v <= 0 would be lost
GATE = 2**13  # below which -u waits
PAYLOAD = 2**7  # with which a graded current is the weight
THRESHOLD = 0  # number of a parameter of a neuron
RESTING = 2  # number of a parameter of a neuron
KINDS = (  # levels and reset of neurons that the core can be
    ((0, 1), "zero"),
    ((0, 1), "subtract"),
    ((-1, 1), "subtract"),
)


class Drive(NamedTuple):
    """Currents of neurons before a step of the core: constants + x_weights @ x."""

    step: int
    neurons: np.ndarray
    constants: np.ndarray
    x_weights: np.ndarray


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
        for drive in self.drives:
            currents = drive.constants + drive.x_weights @ x
            _check_bits("currents", currents)
            for neuron, current in zip(drive.neurons, currents, strict=True):
                if current:
                    writes[drive.step].append(f"x {neuron} {int(current)} 0")
        lines = [*self.setup]
        for step_writes in writes.values():
            lines += [*step_writes, "s 0 0 0"]
        for neurons in self.outputs.values():
            lines += [f"r {neuron} 0 0" for neuron in neurons]
        return "\n".join([*lines, ""])


class Recording(NamedTuple):
    """What happens to an image."""

    spikes: dict[str, np.ndarray]  # population -> levels [T, ...], channels last
    sums: dict[str, np.ndarray]  # output -> [N]
    extra: int  # spikes at other steps
    largest_step: int  # spikes in the step that has most


class _Core:
    """Neurons, synapses and parameters while they are placed."""

    def __init__(self) -> None:
        self.count = 0
        self.synapses: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.parameters: dict[int, list[str]] = defaultdict(list)
        self._written: dict[tuple[int, int], int] = {}

    def neurons(self, *shape: int) -> np.ndarray:
        """Numbers of new neurons, in an array of this shape."""
        first = self.count
        self.count += int(np.prod(shape))
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
        values = np.broadcast_to(value, neurons.shape)
        for neuron, number in zip(neurons, values, strict=True):
            if self._written.get((neuron, parameter)) != number:
                self._written[neuron, parameter] = number
                self.parameters[step].append(f"p {neuron} {parameter} {number}")

    def setup(self, is_graded: bool) -> list[str]:
        """The commands that place the synapses."""
        lines = [f"g {int(is_graded)} 0 0"]
        address = 0
        for source, pairs in self.synapses.items():
            lines.append(f"i {source} {address} {len(pairs)}")
            for target, weight in pairs:
                lines.append(f"w {address} {target} {weight}")
                address += 1
        fan_out = max(map(len, self.synapses.values()), default=0)
        _check_room("neurons", self.count, MOST_NEURONS)
        _check_room("synapses", address, MOST_SYNAPSES)
        _check_room("synapses of a neuron", fan_out, MOST_FAN_OUT)
        return lines


def _check_room(name: str, needed: int, allowed: int) -> None:
    if needed > allowed:
        raise Misfit(f"the network needs {needed} {name}; a core has {allowed}")


def _check_bits(name: str, values: Any) -> None:
    largest = np.abs(values).max(initial=0)
    if largest > HIGH:
        raise Misfit(f"{name} reach {largest:.0f}; a core has 16 bits, up to {HIGH}")


class _Kind(NamedTuple):
    """What all neurons of a network have in common."""

    signs: tuple[int, ...]  # of their spikes
    is_graded: bool
    times: Timing  # what the code does when


def _kind(layers: Layers) -> _Kind:
    """The kind of the neurons; Misfit if the core has none like them."""
    if layers.arithmetic is None:
        raise Misfit(
            "layers are of floats; allowed: what snnjax.deploy.quantize returns"
        )
    times = timing(layers)
    m = times.multiples
    kinds = {(node.model.levels, node.model.reset) for node in layers.populations}
    description = f"{times.code!r} with T = {len(m)} and levels and resets"
    description = f"{description} {sorted(kinds)}"
    if len(kinds) > 1 or not kinds.issubset(KINDS):
        raise Misfit(f"{description}; allowed: one of {', '.join(map(str, KINDS))}")
    ((levels, reset),) = kinds
    is_signed = levels[0] < 0
    is_graded = reset == "subtract"
    if (m[0] > 1 and not is_graded) or (PAYLOAD * m % m[0]).any():
        raise Misfit(
            f"{description}; allowed: subtraction, and whole 128 m_t / m_1 of m = {m}"
        )
    # Then a sum that was positive stays so, which is all that a latch knows.
    if is_signed and (m[:-1] < 2 * m[1:]).any():
        raise Misfit(
            f"{description}; allowed for both signs: m_t at least halves, not m = {m}"
        )
    return _Kind((1, -1) if is_signed else (1,), is_graded, times)


class Numbers(NamedTuple):
    """Those of a population or an output, divided by what a neuron's numbers share.

    If V and all that arrives after the start are multiples of d, u = d u' + r with one
    r, and u >= P where u' >= (P - r) / d. Payloads hold u' where they do not hold u.
    """

    weights: dict[str, np.ndarray]  # sender -> [N, M]
    x_weights: np.ndarray  # [N, elements of x]
    constants: np.ndarray  # [T, N], at each step
    threshold: np.ndarray  # V
    firing_potentials: (
        np.ndarray
    )  # [signs, T, N]: the u that sends 1, the -u that sends -1
    divisor: int  # the smallest d


def _numbers(layers: Layers, node: Any, times: Timing) -> Numbers:
    def whole(array: np.ndarray, unit: float = 1.0) -> np.ndarray:
        return np.broadcast_to(np.rint(array / unit), node.shape).ravel().astype(int)

    weights = {n: np.rint(w).astype(int) for n, w in matrices(layers, node).items()}
    bias = whole(node.bias, layers.bias_unit)
    no_x = np.zeros((len(bias), int(np.prod(layers.input.shape))), int)
    x_weights = weights.pop(layers.input.name, no_x)
    constants = times.biases[:, None] * bias
    if not isinstance(node, Population):
        return Numbers(
            weights,
            x_weights=x_weights,
            constants=constants,
            threshold=bias,
            firing_potentials=bias,
            divisor=1,
        )
    threshold = whole(node.threshold)
    constants[0] += whole(node.initial_potential, layers.potential_unit)
    # The divisor d of each neuron, and the remainder r of what it starts from.
    terms = [*weights.values(), x_weights, constants[1:].T, threshold[:, None]]
    divisor = np.gcd.reduce(np.concatenate(terms, axis=1), axis=1)
    remainder = constants[0] % divisor
    constants[0] -= remainder
    potentials = times.thresholds(node).reshape(-1, times.steps, len(divisor))
    remainders = np.stack([remainder, -remainder])[: len(potentials), None]
    return Numbers(
        weights={name: w // divisor[:, None] for name, w in weights.items()},
        x_weights=x_weights // divisor[:, None],
        constants=constants // divisor,
        threshold=threshold // divisor,
        firing_potentials=-((remainders - potentials) // divisor),
        divisor=int(divisor.min()),
    )


def program_of(layers: Layers) -> Program:
    """Layers of whole numbers as neurons and synapses of the core.

    Raises:
        Misfit: the core has no such neurons, or too few of them, or too few bits.
    """
    placement = _Placement(layers)
    for node in layers.receivers:
        placement.place(node)
    core = placement.core
    return Program(
        setup=core.setup(placement.is_graded),
        parameters=core.parameters,
        drives=placement.drives,
        last=placement.last,
        groups=placement.groups,
        outputs=placement.outputs,
        neurons=core.count,
        synapses=sum(map(len, core.synapses.values())),
        is_graded=placement.is_graded,
    )


class _Placement:
    """A program while its populations and outputs are placed, in their order."""

    def __init__(self, layers: Layers):
        self.layers = layers
        self.signs, self.is_graded, self.times = _kind(layers)
        self.core = _Core()
        self.drives: list[Drive] = []
        self.groups: dict[str, Group] = {}
        self.outputs: dict[str, np.ndarray] = {}
        self.last = 0  # step
        # Steps of the core for one of ours, and from a population to the next one: in
        # the first "fire" may fire, then "hold", then "send". So the FIFO holds one
        # kind.
        self.pace = 3 if self.is_graded else 1
        self.delay = self.pace * (layers.wait + 1)
        # First steps of what each population receives. In step 0 all v become "rest".
        self.starts = {layers.input.name: 1 - self.delay}
        self.senders: dict[str, np.ndarray] = {}  # neurons "send", or those that fire

    def place(self, node: Any) -> None:
        """Place a population or an output behind those that send to it."""
        numbers = _numbers(self.layers, node, self.times)
        start = self._start(node, numbers)
        is_output = not isinstance(node, Population)
        signs = (1,) if is_output else self.signs
        # v = rest + is_graded + unit u
        unit = 2 if self.is_graded else 1
        fire = self.core.neurons(len(signs), len(numbers.threshold))
        self.core.write(0, fire.ravel(), RESTING, REST)
        for sign, neurons in zip(signs, fire, strict=True):
            scale = sign if is_output else sign * unit
            self._connect(neurons, scale, numbers)
            first_offset = 0
            if not is_output:
                first_offset = int(self.is_graded) - (GATE if sign < 0 else 0)
            self._drive(neurons, scale, numbers, start, first_offset)
        layers = self.layers
        self.last = max(self.last, start + self.pace * (layers.steps - 1))
        if is_output:
            self.outputs[node.name] = fire[0]
            return
        self.starts[node.name] = start
        steps = start + self.pace * (layers.wait + np.arange(layers.steps))
        reserved = GATE if len(signs) > 1 else 0
        room = (REST - reserved - 2) // unit * numbers.divisor
        self.groups[node.name] = Group(fire, steps, node.shape, room)
        self.senders[node.name] = fire
        if self.is_graded:
            self.senders[node.name] = self._graded(fire, numbers.threshold, steps)
        self._write_thresholds(fire, numbers, steps, unit)

    def _start(self, node: Any, numbers: Numbers) -> int:
        """The step of the core at which a node receives its first spikes."""
        sources = [*numbers.weights] or [self.layers.input.name]
        starts = {self.starts[name] + self.delay for name in sources}
        if len(starts) > 1:
            raise Misfit(
                f"ways to {node.name!r} differ in length; allowed: the same number of "
                "populations on all ways, since each delays its spikes"
            )
        return starts.pop()

    def _connect(self, neurons: np.ndarray, scale: int, numbers: Numbers) -> None:
        """Synapses from all senders, of spikes of both signs."""
        m_1 = self.times.multiples[0]
        for name, weight in numbers.weights.items():
            for sign, senders in zip(self.signs, self.senders[name], strict=True):
                self.core.connect(senders, neurons, scale * sign * m_1 * weight)

    def _drive(
        self,
        neurons: np.ndarray,
        scale: int,
        numbers: Numbers,
        start: int,
        first_offset: int,
    ) -> None:
        """Currents of x and biases; the first ones have an offset too."""
        for n, constants in enumerate(scale * numbers.constants):
            if n == 0:
                constants = constants + first_offset
            drive = Drive(
                step=start + self.pace * n,
                neurons=neurons,
                constants=constants,
                x_weights=scale * self.times.inputs[n] * numbers.x_weights,
            )
            self.drives.append(drive)

    def _write_thresholds(
        self, fire: np.ndarray, numbers: Numbers, steps: np.ndarray, unit: int
    ) -> None:
        """Thresholds and resting potentials, where a neuron may fire."""
        m = self.times.multiples
        for t, step in enumerate(steps):
            firing_potentials = numbers.firing_potentials[:, t]
            for neurons, potential in zip(fire, firing_potentials, strict=True):
                self.core.write(step, neurons, THRESHOLD, REST + unit * potential)
                if self.is_graded:
                    left = potential - m[t] * numbers.threshold
                    self.core.write(step, neurons, RESTING, REST + unit * left)
                if self.is_graded or step == steps[-1]:
                    self.core.write(step + 1, neurons, THRESHOLD, HIGH)

    def _graded(
        self, fire: np.ndarray, threshold: np.ndarray, steps: np.ndarray
    ) -> np.ndarray:
        """Place "hold", "send" and latches of a population; returns "send"."""
        core = self.core
        m = self.times.multiples
        hold = core.neurons(*fire.shape)
        send = core.neurons(*fire.shape)
        for fire_row, hold_row, send_row in zip(fire, hold, send, strict=True):
            core.connect(fire_row, fire_row, PAYLOAD)
            # Two synapses of 2^14 make 256 times the payload.
            core.connect(fire_row, hold_row, 2**14)
            core.connect(fire_row, hold_row, 2**14)
            core.connect(hold_row, send_row, PAYLOAD)
            core.write(0, hold_row, THRESHOLD, 1)
            for step, multiple in zip(steps, m, strict=True):
                payload = PAYLOAD * multiple // m[0]
                core.write(step + 2, send_row, THRESHOLD, 255 - payload)
        if len(fire) == 2:
            core.connect(send[0], fire[1], 2 * m[0] * threshold)
            core.connect(send[1], fire[0], 2 * m[0] * threshold)
            latch = core.neurons(fire.shape[1])
            core.connect(hold[0], latch, PAYLOAD)
            core.connect(latch, fire[1], GATE)
            # From 1 to 256 for the first time; later ones begin and end below 0.
            core.write(0, latch, THRESHOLD, 256 - PAYLOAD)
            core.write(0, latch, RESTING, -REST)
            charge = np.full(latch.shape, REST + 1)
            no_x = np.zeros_like(self.drives[0].x_weights[:1])
            self.drives.append(Drive(1, latch, charge, no_x))
        return send


def recorded(program: Program, events: str) -> Recording:
    """The events of the driver.

    Raises:
        Misfit: the core may have lost spikes or a part of a payload.
    """
    per_step: Counter[int] = Counter()
    payloads: dict[tuple[int, int], int] = {}  # (step, neuron) -> payload
    potentials: dict[int, int] = {}
    for line in events.splitlines():
        kind, *words = line.split()
        numbers = [int(word) for word in words]
        if kind == "spike":
            step, neuron, payload = numbers
            per_step[step] += 1
            payloads[step, neuron] = payload
        elif kind == "potential":
            neuron, potential = numbers
            potentials[neuron] = potential
    largest_step = max(per_step.values(), default=0)
    if largest_step > FIFO:
        raise Misfit(
            f"{largest_step} spikes in a step; a core holds {FIFO} and loses the others"
        )
    spikes = {}
    extra = 0
    for name, group in program.groups.items():
        group_payloads = {
            key: payload for key, payload in payloads.items() if key[1] in group.fire
        }
        if program.is_graded and max(group_payloads.values(), default=0) == 255:
            raise Misfit(
                f"{name!r} has a payload of 255 or more, and 8 bits hold what a spike "
                "leaves of a potential; allowed: fewer weight_bits or input_bits"
            )
        levels = _levels(group, group_payloads.keys())
        extra += len(group_payloads) - int(np.abs(levels).sum())
        totals = levels.sum(1).reshape(-1, *group.shape)
        spikes[name] = np.moveaxis(totals, 1, -1)
    sums = {}
    for name, neurons in program.outputs.items():
        sums[name] = np.array([potentials[neuron] - REST for neuron in neurons])
    return Recording(spikes, sums, extra, largest_step)


def _levels(group: Group, sent: Collection[tuple[int, int]]) -> np.ndarray:
    """Spikes of a group at its steps, [T, signs, N]; of the second sign they are -1."""
    levels = np.zeros((len(group.steps), *group.fire.shape), int)
    for t, step in enumerate(group.steps):
        for row, neurons in enumerate(group.fire):
            for n, neuron in enumerate(neurons):
                if (step, neuron) in sent:
                    levels[t, row, n] = 1 if row == 0 else -1
    return levels
