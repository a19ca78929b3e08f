"""When what arrives: a code as whole numbers, and the bits that potentials need.

    m_t = w_t / w_T          units of a spike of step t, 1 with rate coding

A unit of a potential stands for T w_T. The constant x arrives in full at the first
step, 1 / w_T units for each of its own, and a bias in units of w_T, since it arrives
once. With rate coding both arrive at every step.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from snnjax.codes import Code
from snnjax.deploy.lowering.values import Arithmetic, Layers


class Timing(NamedTuple):
    """What a code does at each of the T + wait steps of a population, [T + wait].

    Attributes:
        inputs: units of the constant x that arrive.
        biases: units of a bias, see `Layers.bias_unit`, that arrive.
        arriving: m_n, units of a spike that arrives; that of step T after the last one.
        firing: m_t of the spike that is sent; 0 before the first one.
    """

    inputs: np.ndarray
    biases: np.ndarray
    arriving: np.ndarray
    firing: np.ndarray


def multiples(code: Code, steps: int) -> np.ndarray:
    """m_1 .. m_T: the weights of a code in units of the last one, whole numbers.

    Raises:
        ValueError: they are no whole numbers, or a constant is no multiple of the unit.

    >>> import snnjax
    >>> print(multiples(snnjax.codes.radix(), 4))
    [8 4 2 1]
    """
    weights = np.asarray(code.weights(steps)) / code.finest(steps)
    constant = 1.0 if code.clock_runs else 1 / code.finest(steps)
    numbers = np.array([*weights, constant])
    if not np.allclose(numbers, np.rint(numbers), rtol=1e-6) or weights[-1] < 1:
        raise ValueError(
            f"the weights of {code!r} are {code.weights(steps)}; allowed: whole "
            "multiples of the last one, which divides 1, as those of "
            "snnjax.codes.radix(base=2) and snnjax.codes.rate()"
        )
    return np.rint(weights).astype(np.int64)


def code_of(layers: Layers) -> tuple[Code, int, int]:
    """Code, T and wait, as `timing` takes them."""
    assert layers.steps is not None
    return layers.code, layers.steps, layers.wait or 0


def check_state(layers: Layers) -> None:
    """Raise if int32 does not hold the potentials at these bits."""
    bits, most = _arithmetic(layers).state_bits, _most_state_bits(layers)
    if bits > most:
        raise ValueError(
            f"state_bits is {bits}; allowed: up to {most} with {layers.code!r} and "
            f"{layers.steps} steps, since potentials are simulated in 32 bits; or take "
            "fewer steps"
        )


def widest(layers: Layers) -> Layers:
    """The layers with the most bits of a potential that int32 can simulate."""
    bits = _most_state_bits(layers)
    arithmetic = dataclasses.replace(_arithmetic(layers), state_bits=bits)
    return dataclasses.replace(layers, arithmetic=arithmetic)


def _most_state_bits(layers: Layers) -> int:
    """Such that 4 m_1 potentials fit into 32 bits, as sums in `_fire` need."""
    first = int(multiples(*code_of(layers)[:2])[0])
    return 30 - (first - 1).bit_length()


def _arithmetic(layers: Layers) -> Arithmetic:
    assert layers.arithmetic is not None
    return layers.arithmetic


def timing(code: Code, steps: int, wait: int) -> Timing:
    """What happens at each step of a population, see `Timing`."""
    m = multiples(code, steps)
    inputs, biases = np.zeros((2, steps + wait), np.int64)
    if code.clock_runs:
        inputs[:steps], biases[:steps] = 1, 1
    else:
        inputs[0], biases[0] = round(1 / code.finest(steps)), 1
    return Timing(
        inputs,
        biases,
        np.concatenate([m, np.full(wait, m[-1])]),
        np.concatenate([np.zeros(wait, np.int64), m]),
    )
