"""`Timing`: a code as whole numbers at each step, and the bits that potentials need.

    m_t = w_t / w_T          units of a spike of step t, 1 with rate coding

w_t is the weight of a spike of step t, and w_T the last one; m_t is called a multiple.
A unit is what 1 stands for in a whole potential, T w_T. The constant x arrives in full
at the first step, 1 / w_T units for each of its own, and a bias in units of w_T, since
it arrives once. With rate coding both arrive at every step.

A neuron that waits fires at the steps t = n - wait, where n = 1 .. T + wait counts all.
"""

import dataclasses
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from snnjax._arrays import per_step
from snnjax.codes import Code
from snnjax.deploy.lowering.values import Arithmetic, Layers, Population, check_layers
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.schedule import dead_zones


class Timing(NamedTuple):
    """What a code does at each step of a population of whole numbers, in units.

    x and biases arrive within T steps, and their numbers are arrays [T]. Spikes arrive
    and leave within T + wait steps. `code`, `steps` and `wait` are those of `Layers`.

    >>> import snnjax
    >>> times = Timing(snnjax.codes.radix(), 4, 1)
    >>> print(times.multiples, times.arriving, times.firing)
    [8 4 2 1] [8 4 2 1 1] [0 8 4 2 1]
    >>> print(times.inputs, times.biases)
    [8 0 0 0] [1 0 0 0]
    """

    code: Code
    steps: int
    wait: int

    @property
    def multiples(self) -> np.ndarray:
        """m_1 .. m_T, [T]: the weights of the code in units of the last one.

        Raises:
            ValueError: they are no whole numbers, or what arrives of a constant x of 1
                at a step is no whole number of these units.
        """
        code, steps = self.code, self.steps
        weights = np.asarray(code.weights(steps)) / code.finest(steps)
        numbers = np.append(weights, self._units_of_constant)  # [T + 1]
        if not np.allclose(numbers, np.rint(numbers), rtol=1e-6):
            raise ValueError(
                f"the weights of {code!r} are {code.weights(steps)}; allowed: whole "
                "multiples of the last one, which divides 1, as those of "
                "snnjax.codes.radix(base=2) and snnjax.codes.rate()"
            )
        return np.rint(weights).astype(np.int64)

    @property
    def inputs(self) -> np.ndarray:
        """Units of the constant x that arrive at each of the T steps."""
        return round(self._units_of_constant) * self.biases

    @property
    def biases(self) -> np.ndarray:
        """Units of a bias (`Layers.bias_unit`) that arrive at each of the T steps."""
        constant_steps = self.code.constant_steps(self.steps)
        return (np.arange(self.steps) < constant_steps).astype(np.int64)

    @property
    def arriving(self) -> np.ndarray:
        """m_n, [T + wait]: units of a spike that arrives at step n.

        After step T nothing arrives, and registers stay at the multiple of step T.
        """
        return np.pad(self.multiples, (0, self.wait), "edge")

    @property
    def firing(self) -> np.ndarray:
        """m_t of the spike that is sent at each step, [T + wait]; 0 in the wait."""
        return np.pad(self.multiples, (self.wait, 0))

    def bars(self, model: Any, threshold: np.ndarray) -> np.ndarray:
        """The least whole |2 v - V| at which a neuron fires at each step, [T, ...].

        It is 2 z_t m_t V, rounded up. z_t is the dead zone, a fraction of a spike of
        level 1, and 0 for none; m_t V is the size of such a spike in units.

        Args:
            model: of the neurons.
            threshold: whole V, of any shape.
        """
        bars = []
        zones = dead_zones(without_surrogate(model), self.steps)
        for zone, multiple in zip(zones, self.multiples, strict=True):
            # A zone such as 2/3 becomes a fraction again, because the float nearest to
            # it could lie above it and round a whole bar up to the next number.
            ratio = Fraction(float(zone)).limit_denominator(10**6)
            size = 2 * ratio.numerator * multiple * threshold
            bars.append(_ceil_quotient(size, ratio.denominator))
        return np.stack(bars)

    def thresholds(self, population: Population) -> np.ndarray:
        """The least v that sends 1, and the least -v that sends -1, at each step.

        Whole numbers [2, T, ...], or [1, T, ...] if no level is negative, channels
        first, for chips whose neurons have one threshold, which a host changes. A
        neuron sends -1 only after a 1.

        Raises:
            ValueError: a population of floats.
        """
        if not isinstance(population, Population) or (population.threshold % 1).any():
            raise ValueError(
                f"population is {population!r:.60}; allowed: a population of whole "
                "numbers, of snnjax.deploy.quantize(layers, images).populations"
            )
        v_th = np.broadcast_to(population.threshold, population.shape).astype(np.int64)
        multiples = per_step(self.multiples, 1 + v_th.ndim)
        # Outside of the dead zone: 2 v - V >= bar, or V - 2 v >= bar.
        bars = self.bars(population.model, v_th)
        above = _ceil_quotient(v_th + bars, 2)
        below = _ceil_quotient(bars - v_th, 2)
        if population.model.levels[0] == 0:
            return np.stack([np.maximum(multiples * v_th, above)])
        # The offset o_t rounds to the nearest level, see ``streams.py``.
        offset = (multiples - 1) * v_th // 2
        above = np.maximum(multiples * v_th - offset, above)
        return np.stack([above, np.maximum(offset + 1, below)])

    @property
    def _units_of_constant(self) -> float:
        """Units that a constant of 1 is worth at each step at which it arrives."""
        share = 1 / self.code.constant_steps(self.steps)
        return share / self.code.finest(self.steps)


def _ceil_quotient(number: np.ndarray, divisor: int) -> np.ndarray:
    """number / divisor, rounded up, of whole numbers."""
    return -(-number // divisor)


def timing(layers: Layers) -> Timing:
    """The `Timing` of layers.

    Raises:
        ValueError: they have no T, or are none.
    """
    check_layers(layers)
    if layers.steps is None:
        raise ValueError("the layers have no T; allowed: layers of an SNN with steps")
    return Timing(layers.code, layers.steps, layers.wait or 0)


def check_state(layers: Layers) -> None:
    """Raise if int32 does not hold the potentials at these bits."""
    bits = arithmetic_of(layers).state_bits
    largest = largest_state_bits(layers)
    if bits > largest:
        raise ValueError(
            f"state_bits is {bits}; allowed: up to {largest} with {layers.code!r} and "
            f"{layers.steps} steps, since potentials are simulated in 32 bits; or take "
            "fewer steps"
        )


def widest(layers: Layers) -> Layers:
    """The layers with the most bits of a potential that int32 can simulate."""
    bits = largest_state_bits(layers)
    arithmetic = dataclasses.replace(arithmetic_of(layers), state_bits=bits)
    return dataclasses.replace(layers, arithmetic=arithmetic)


def largest_state_bits(layers: Layers) -> int:
    """The largest number of bits of a register that 32 bits can simulate.

    A potential is up to m_1 times what its register holds. The sums in
    `streams.all_steps` are up to four times as large, and leaks add fraction bits.
    """
    first_multiple = int(timing(layers).multiples[0])
    return 30 - (first_multiple - 1).bit_length() - fraction_bits(layers)


def fraction_bits(layers: Layers) -> int:
    """Bits of potentials below a unit of the weights, where neurons leak."""
    leak = arithmetic_of(layers).leak
    is_leaky = any(population.is_leaky for population in layers.populations)
    if leak is None or not is_leaky:
        return 0
    return leak.fraction


def arithmetic_of(layers: Layers) -> Arithmetic:
    """The `Arithmetic` of layers of whole numbers."""
    assert layers.arithmetic is not None
    return layers.arithmetic
