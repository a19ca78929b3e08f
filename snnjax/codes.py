"""Codes: what a spike is worth at each step.

    M(t) = w_1 V k(1) + .. + w_t V k(t)      decoded value, what a neuron has sent

k(t) is the level of the spike at step t, a whole number, and V the threshold. With rate
coding w_t = 1/T, and every constant arrives in T equal shares, one at each step. With
every other code constants arrive in full at the first step, so a network's variable at
step t is the ANN's own function of the decoded values at t. A stream holds the values
of a variable over time, [T, B, ...].

Sources: Gu, Gu, Shen and Huang, 2024, arXiv 2408.17245 (signed spikes whose weights
halve, a wait of one step); Kim et al., Neurocomputing 2018 (weighted spikes); Wang et
al., 2021 (radix encoding); Ercegovac and Trivedi, 1977 (signed digits, the most
significant first).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import per_step, running_sum, wide
from snnjax._ranges import Range, is_number
from snnjax._text import counted

__all__ = ["Code", "harmonic", "radix", "rate", "weighted"]


@dataclasses.dataclass(frozen=True)
class Code:
    """What a spike is worth at each step: immutable, hashable, stored in `SNN.code`.

    A subclass gives the weights w_t. Sizes, values and answers follow from them, and
    every other method has a default for codes whose constants arrive at the first step:

    >>> code = radix(base=2)
    >>> code.weights(3), code.reach(3), code.finest(3)
    ((1.0, 0.5, 0.25), 1.75, 0.25)

    The outputs of `snnjax.spiking` are what arrives at each step, times T: for every
    code their mean over T steps is the answer.
    """

    def weights(self, steps: int) -> tuple[float, ...]:
        """w_1 .. w_T: a spike of level k at step t is worth w_t k V_th."""
        raise NotImplementedError

    def sizes(self, steps: int) -> np.ndarray:
        """T w_t, [T]: a spike's size in a stream whose mean over T is the answer.

        Raises:
            ValueError: there are not T weights, or float32 does not hold them.
        """
        weights = np.asarray(self.weights(steps), float)
        with np.errstate(over="ignore", under="ignore"):
            sizes = (steps * weights).astype(np.float32)
        are_held = (np.isfinite(sizes) & (sizes > 0)).all()
        if weights.shape != (steps,) or not are_held:
            raise ValueError(
                f"{self!r} has {counted(weights.size, 'weight')} for T = {steps}, the "
                f"least {weights.min(initial=np.inf):.3g}; allowed: as many numbers "
                "> 0 as steps, in the range of float32. Take fewer steps or a smaller "
                "base"
            )
        return sizes

    def reach(self, steps: int) -> float:
        """w_1 + .. + w_T: the value of a neuron that sends level 1 at every step.

        It is in units of V_th.
        """
        return math.fsum(self.weights(steps))

    def finest(self, steps: int) -> float:
        """w_T: the distance of neighboring values in units of V_th, if w_T is least."""
        return self.weights(steps)[-1]

    def is_nearest(self, levels: tuple[int, int], dead_zone: float, steps: int) -> bool:
        """Whether T digits always add up to the nearest multiple of w_T.

        That holds for a neuron that knows all of its input, if all weights are
        multiples of w_T and there are no gaps, see `has_gaps`.

        Args:
            levels: (low, high), the whole numbers that a spike may be.
            dead_zone: part of a spike below which a neuron is silent.
            steps: T.

        >>> radix().is_nearest((0, 1), 0, 4), radix(base=4).is_nearest((0, 1), 0, 4)
        (True, False)
        """
        weights = np.asarray(self.weights(steps)) / self.finest(steps)
        are_multiples = np.allclose(weights, np.rint(weights), rtol=1e-6)
        return bool(are_multiples) and not self.has_gaps(levels, dead_zone, steps)

    def has_gaps(self, levels: tuple[int, int], dead_zone: float, steps: int) -> bool:
        """Whether later digits cannot always send what is left after a step.

        Args:
            levels: (low, high), the whole numbers that a spike may be.
            dead_zone: part of a spike below which a neuron is silent.
            steps: T.

        >>> radix(base=4).has_gaps((0, 1), 0, 4), radix(base=4).has_gaps((0, 3), 0, 4)
        (True, False)
        """
        # [T], in units of w_T, as are all numbers below.
        weights = np.asarray(self.weights(steps)) / self.finest(steps)
        # For each step the sum of the later weights. It is summed from the last weight
        # on, since the first ones are so large that small ones would be rounded away.
        later_weights_from_last = weights[:0:-1]
        later_sum = np.append(np.cumsum(later_weights_from_last)[::-1], 0)
        low, high = levels
        # The remainder is the most that a step may leave, the level what sends it.
        if low == 0:
            # A neuron without negative levels rounds down to what it can send.
            remainder = weights - 1 / 2
            level = high
        else:
            remainder = max(1 / 2, dead_zone) * weights
            level = min(-low, high)
        # Half a unit may stay: the value is then still the nearest one.
        sendable = level * later_sum + 1 / 2
        is_gap = remainder > sendable * (1 + 1e-6)
        return bool(is_gap[:-1].any())  # nothing comes after the last step

    @property
    def levels(self) -> tuple[int, int]:
        """(low, high) of the neurons that `snnjax.convert` takes by default."""
        return -1, 1

    def dead_zone(self, levels: tuple[int, int]) -> float:
        """The dead zone of the neurons that `snnjax.convert` takes by default.

        With 2/3, digits (-1, 1) of base 2 are the non-adjacent form of a number, which
        has the fewest digits that are not zero.

        >>> radix().dead_zone((-1, 1)) == 2 / 3, radix().dead_zone((0, 1))
        (True, 0.0)
        """
        low, _ = levels
        return 2 / 3 if low < 0 else 0.0

    def least_wait(self, levels: tuple[int, int], steps: int) -> int:
        """The shortest wait with which a layer loses little by input that comes late.

        A digit of levels (0, n) cannot be corrected: a neuron needs all of its input
        before the first one, a wait of T - 1. A negative level corrects earlier digits,
        so that a wait of one step is enough; with a dead zone near 1 another step pays.

        >>> radix().least_wait((0, 1), 4), radix().least_wait((-1, 1), 4)
        (3, 1)
        >>> radix().least_wait((-3, 3), 4), rate().least_wait((0, 1), 4)
        (0, 0)
        """
        low, _ = levels
        return steps - 1 if low == 0 else min(1, steps - 1)

    def full_wait(self, steps: int) -> int:
        """The wait at which a layer has all of its input before its first decision.

        >>> radix().full_wait(4), rate().full_wait(4)
        (3, 4)
        """
        return steps - 1

    def longest_wait(self, steps: int) -> int:
        """The longest wait that `snnjax.convert` tries where it chooses the wait.

        >>> radix().longest_wait(4), rate().longest_wait(4)
        (3, 0)
        """
        return steps - 1

    def default_price(self, steps: int) -> float:
        """The error that a spike is worth where `snnjax.best` is given no price.

            0.01 min(1, (8 w_T)^2)

        The error of T steps falls with the square of their last weight w_T. A price
        that stayed the same would become the whole error, and more steps would not make
        outputs more exact. w_T is 1/8 at the four steps that the price was chosen at.

        >>> radix().default_price(4), radix().default_price(6), rate().default_price(4)
        (0.01, 0.000625, 0.0)
        """
        # Chosen from 0.003, 0.01 and 0.03 on 500 training images that no calibration
        # used, at T = 4 with a wait of 1. From the first to the second, five networks
        # (ResNet-20, VGG-8, a ViT, a ConvNeXt, a small MobileNet) send 3 to 22 % fewer
        # spikes and lose 0.2 points at most. At the third the ViT loses 4.6 points.
        return 0.01 * min(1.0, (8 * self.finest(steps)) ** 2)

    @property
    def keeps_charge(self) -> bool:
        """Whether neurons must keep all the charge that they have not sent.

        Such neurons are IF neurons with reset by subtraction, no leak and no lower
        bound: their later spikes send what earlier ones have left.
        """
        return True

    def constant_steps(self, steps: int) -> int:
        """The number of equal shares of a constant, which arrive from step 1 on.

        A constant is a bias, an offset or an input that does not change.

        >>> radix().constant_steps(4), rate().constant_steps(4)
        (1, 4)
        """
        return 1

    def is_streaming(self, wait: int = 0) -> bool:
        """Whether every step of a network with this wait is like all others.

        Such a network can run for any number of steps at a time, and on inputs that
        change.
        """
        return False

    def check_streaming(self, request: str) -> None:
        """Raise unless a network without a wait is streaming, see `is_streaming`.

        Args:
            request: what needs a streaming network, the subject of the error message.
        """
        raise ValueError(
            f"{request} works with rate coding only, where every step is like the "
            f"others; found the code {self!r}, whose constant input arrives at the "
            "first step. Leave it out, or convert with code=snnjax.codes.rate()"
        )

    def operator_state(self, operator: Any, arguments: Sequence[Any]) -> Any:
        """What an operator keeps from one step to the next, before the first step.

        Args:
            operator: an ``Operator``, a function that is not affine
                (``snnjax/network/increments.py``).
            arguments: of one step, or their shapes.
        """
        return ()  # a function of the values decoded at a step keeps nothing

    def operate(
        self,
        operator: Any,
        arguments: Sequence[Any],
        state: Any = None,
    ) -> tuple[tuple[jax.Array, ...], Any]:
        """Apply an operator to streams.

        Args:
            operator: as for `operator_state`.
            arguments: of the operator: streams [T, B, ...] if they change in time,
                otherwise [B, ...].
            state: before these steps; None: before the first step.

        Returns:
            The outputs, streams as well, and the state after these steps.
        """
        return operator.apply_to_values(*arguments), state

    def stream(self, spikes: jax.Array) -> jax.Array:
        """The stream [T, ...] that equations read of neurons that send these spikes.

        It holds the decoded value after each step, or with rate coding the spikes.

        Args:
            spikes: [T, ...], with sizes T w_t k(t) V.
        """
        decoded = running_sum(wide(spikes)) / len(spikes)
        return decoded.astype(spikes.dtype)

    def arriving(self, stream: jax.Array) -> jax.Array:
        """What arrives at each step, [T, ...], of a stream: the inverse of `stream`."""
        earlier = jnp.concatenate([jnp.zeros_like(stream[:1]), stream[:-1]])
        return len(stream) * (stream - earlier)

    def result(self, stream: jax.Array) -> jax.Array:
        """The value of a variable after T steps, [...], from its stream [T, ...]."""
        return stream[-1]

    def answers(self, outputs: Any) -> Any:
        """The answer after each step, [T, B, ...], of what `snnjax.spiking` returns.

        An early answer comes from the digits so far. What is not of floating point, a
        choice, count or mask, is an answer already.

        Args:
            outputs: a pytree of arrays [T, B, ...], of all T steps.

        >>> import jax.numpy as jnp
        >>> outputs = jnp.array([2.0, 0.0, 1.0, 1.0])
        >>> print(rate().answers(outputs), radix().answers(outputs))
        [2. 1. 1. 1.] [0.5  0.5  0.75 1.  ]
        """

        def answer(output: jax.Array) -> jax.Array:
            is_floating = jnp.issubdtype(output.dtype, jnp.floating)
            return self._means(output) if is_floating else output

        return jax.tree.map(answer, outputs)

    def _means(self, output: jax.Array) -> jax.Array:
        """The answer after each step from outputs [T, B, ...] of floating point."""
        return self.stream(wide(output))


@dataclasses.dataclass(frozen=True)
class _Rate(Code):
    """Constants arrive in shares of 1/T, so that affine layers act on spikes directly.

    What is not affine reads running means (`snnjax.network.increments`).
    """

    def weights(self, steps: int) -> tuple[float, ...]:
        return (1 / steps,) * steps

    def reach(self, steps: int) -> float:
        return 1.0

    @property
    def levels(self) -> tuple[int, int]:
        return 0, 1

    def dead_zone(self, levels: tuple[int, int]) -> float:
        return 0.0

    def least_wait(self, levels: tuple[int, int], steps: int) -> int:
        return 0

    def full_wait(self, steps: int) -> int:
        return steps  # the last share of a bias arrives with the last step

    def longest_wait(self, steps: int) -> int:
        return 0

    def default_price(self, steps: int) -> float:
        return 0.0

    @property
    def keeps_charge(self) -> bool:
        return False

    def constant_steps(self, steps: int) -> int:
        return steps

    def is_streaming(self, wait: int = 0) -> bool:
        return wait == 0

    def check_streaming(self, request: str) -> None:
        pass

    def operator_state(self, operator: Any, arguments: Sequence[Any]) -> Any:
        return operator.start(arguments)

    def operate(
        self,
        operator: Any,
        arguments: Sequence[Any],
        state: Any = None,
    ) -> tuple[tuple[jax.Array, ...], Any]:
        if not any(operator.has_time):  # a constant, whose mean is the constant itself
            return operator.function(*arguments), state
        return operator.increments(arguments, state)

    def stream(self, spikes: jax.Array) -> jax.Array:
        return spikes

    def arriving(self, stream: jax.Array) -> jax.Array:
        return stream

    def result(self, stream: jax.Array) -> jax.Array:
        return stream.mean(0)

    def _means(self, output: jax.Array) -> jax.Array:
        output = wide(output)
        step_counts = jnp.arange(1, 1 + len(output), dtype=output.dtype)
        return jnp.cumsum(output, axis=0) / per_step(step_counts, output.ndim)

    def __repr__(self) -> str:
        return "rate()"


@dataclasses.dataclass(frozen=True)
class _Radix(Code):
    base: float

    def weights(self, steps: int) -> tuple[float, ...]:
        return tuple(self.base**-t for t in range(steps))

    @property
    def levels(self) -> tuple[int, int]:
        digit = math.ceil(self.base) - 1
        if self.base % 2 == 1:
            # An odd base has balanced digits, -(B - 1)/2 .. (B - 1)/2. They send each
            # number in one way, and larger levels would only add other ways.
            digit //= 2
        return -digit, digit

    def dead_zone(self, levels: tuple[int, int]) -> float:
        usual_zone = super().dead_zone(levels)
        low, high = levels
        if low == 0:
            return usual_zone
        # Later digits send at most this part of a spike: high (1/B + 1/B^2 + ..). More
        # silence would leave gaps, and up to 1/2 all values round to 0 anyway.
        sendable = min(-low, high) / (self.base - 1)
        return max(1 / 2, min(sendable, usual_zone))

    def least_wait(self, levels: tuple[int, int], steps: int) -> int:
        # Levels up to three times the largest digit of the base correct so much that no
        # wait is needed (docs/codes.md).
        low, high = levels
        is_redundant = min(-low, high) >= 3 * (self.base - 1)
        return 0 if is_redundant else super().least_wait(levels, steps)

    def __repr__(self) -> str:
        return f"radix(base={repr(self.base).removesuffix('.0')})"


@dataclasses.dataclass(frozen=True)
class _Harmonic(Code):
    def weights(self, steps: int) -> tuple[float, ...]:
        return tuple(1 / t for t in range(1, steps + 1))

    def __repr__(self) -> str:
        return "harmonic()"


@dataclasses.dataclass(frozen=True)
class _Weighted(Code):
    numbers: tuple[float, ...]

    def weights(self, steps: int) -> tuple[float, ...]:
        if steps != len(self.numbers):
            raise ValueError(
                f"{self!r} has {counted(len(self.numbers), 'weight')} for T = {steps}; "
                "allowed: one weight for each step"
            )
        return self.numbers

    def __repr__(self) -> str:
        return f"weighted({self.numbers})"


def rate() -> Code:
    """w_t = 1/T: the number of spikes counts, and constants arrive step by step.

    >>> rate().weights(4), rate().reach(4)
    ((0.25, 0.25, 0.25, 0.25), 1.0)
    """
    return _Rate()


def radix(base: float = 2) -> Code:
    """w_t = base^(1 - t): digits of a number, the most significant first.

    T digits of base B with the levels (0, B - 1) tell B^T values apart; a neuron then
    needs all of its input before its first digit, a wait of T - 1. With the levels (-1,
    1) and base 2 a later digit can correct earlier ones, and a wait of one step is
    enough.

    Base 3 with the levels (-1, 1) is balanced ternary, which tells 3^T values apart
    where base 2 tells 2^(T + 1) - 1, by the same neurons. At T = 2 its outputs are
    closer to the ANN's. By default odd bases have balanced digits, the levels -(B -
    1)/2 to (B - 1)/2, and other bases the levels -(B - 1) to B - 1. Source: Knuth, The
    Art of Computer Programming, volume 2, section 4.1.

    Args:
        base: 1 < base <= 128, since a level is at most 127.

    Raises:
        ValueError: another base.

    >>> radix(base=4).weights(3)
    (1.0, 0.25, 0.0625)
    >>> radix(base=3).levels, radix(base=4).levels
    ((-1, 1), (-3, 3))
    """
    Range(1, 128, open_least=True).check("base", base)
    return _Radix(float(base))


def harmonic() -> Code:
    """w_t = 1/t, so that the first spikes count most. Source: arXiv 2503.00301.

    >>> harmonic().weights(2)
    (1.0, 0.5)
    """
    return _Harmonic()


def weighted(weights: Sequence[float]) -> Code:
    """Weights of your own, one for each step.

    Args:
        weights: w_1 .. w_T, finite and > 0, none above the one before: what an early
            spike has not sent is left to finer ones.

    Raises:
        ValueError: no weight, or one outside this range. `Code.weights` raises later
            if T is not their number.

    >>> weighted((1, 0.7, 0.49)).reach(3)
    2.19
    """
    numbers = []
    if isinstance(weights, Sequence | np.ndarray | jax.Array) and np.ndim(weights) == 1:
        numbers = np.asarray(weights).tolist()
    are_positive = all(is_number(w) and 0 < w < math.inf for w in numbers)
    if not numbers or not are_positive:
        raise ValueError(
            f"weights are {weights!r}; allowed: one finite number > 0 for each step"
        )
    if numbers != sorted(numbers, reverse=True):
        raise ValueError(
            f"weights are {weights!r}; allowed: none above the one before, since later "
            "spikes correct earlier ones. Sort them, the largest first"
        )
    return _Weighted(tuple(map(float, numbers)))


def check_code(code: Any) -> None:
    """Raise unless this is a code."""
    if not isinstance(code, Code) or type(code) is Code:
        raise ValueError(
            f"code is {code!r}; allowed: a code, e.g. snnjax.codes.radix() (called)"
        )
