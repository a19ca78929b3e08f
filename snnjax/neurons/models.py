"""Integrate-and-fire (IF), leaky (LIF) and resonate-and-fire neurons, as values.

    v  <- max(leak v + I, lowest V_th)                    integrate
    k   = clip(floor(v / V_th), max(low, -N), high)       fire: a spike of level k
    k   = clip(floor(v / V_th), low, high)                the same of a signed value
    v  <- v - k V_th   or   v (1 - 1[k != 0])             reset: "subtract" or "zero"

A spike carries k V_th, so mean outputs compare with ANN activations without rescaling.
N is the sum of all levels so far: the total output stays >= 0, as that of a ReLU. With
no lower bound ``lowest`` is minus infinity. Source of the binary neuron: Li, Deng,
Dong, Gong and Gu, ICML 2021, section 3. Negative spikes are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import add_offset, like, wide_dtype
from snnjax._checks import called_as, check_choice
from snnjax._ranges import LEAK, NOT_POSITIVE, POSITIVE, Range
from snnjax._types import Reset
from snnjax.neurons.fresh import Numbers, Uniform, make_plain_numbers, parameter
from snnjax.neurons.protocol import checked_levels
from snnjax.neurons.wrappers import off_grid
from snnjax.surrogate import Surrogate, dspike

_NEAREST = 8  # levels around v whose surrogates are summed


class NeuronParams(NamedTuple):
    """Parameters of one site's neurons, ``snn.neurons[site_name]``.

    Every field broadcasts over the batch; ``_replace`` changes some of them.

    Attributes:
        threshold: V_th > 0, scalar or per channel [C].
        bias: current added at every step in which input arrives, scalar or [C].
        initial_potential: v(0), scalar or per neuron [...].
        leak: factor on v before integration, in (0, 1]; None for IF, which has none.
        temperature: second argument of the surrogate (b of Dspike), scalar or [C];
            None: the surrogate's own default, which is not trained.
        offset: the output of level 0, scalar or [C]; subtracted from every current and
            added to every output; None: 0.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import unroll
    >>> neuron = integrate_and_fire()
    >>> params = neuron.init()._replace(threshold=jnp.array([1.0, 2.0]))
    >>> print(unroll(neuron, params, jnp.ones((4, 1, 2)))[:, 0])  # two channels
    [[1. 0.]
     [1. 2.]
     [1. 0.]
     [1. 2.]]
    """

    threshold: Annotated[jax.Array, POSITIVE]
    bias: jax.Array
    initial_potential: jax.Array
    leak: Annotated[jax.Array | None, LEAK] = None
    temperature: Annotated[jax.Array | None, POSITIVE] = None
    offset: jax.Array | None = None


class NeuronState(NamedTuple):
    """State of integrate-and-fire neurons between two steps.

    Attributes:
        potential: the membrane potential v, [B, ...].
        total: N, the sum of all levels so far, [B, ...]; None if none is negative.

    >>> import jax.numpy as jnp
    >>> neuron = integrate_and_fire(levels=(-1, 1))
    >>> state = neuron.start(neuron.init(), (1,))._replace(potential=jnp.array([1.5]))
    >>> state, spikes = neuron.fire(neuron.init(), state)
    >>> print(state.potential, state.total)
    [0.5] [1.]
    """

    potential: jax.Array
    total: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class IntegrateAndFire:
    """IF, or LIF where its parameters have a leak. A value: equal fields, equal models.

    Attributes:
        levels, reset, dead_zone, last_zone, lowest: see `integrate_and_fire`.
        rectifies: the total output stays >= 0, as a ReLU's does; False for an encoder,
            whose value may be negative.
        threshold, leak, temperature: of fresh parameters, each a number, an array or a
            distribution (`snnjax.neurons.Uniform`); None: they have none.

    `integrate_and_fire` and `lif` make one; ``dataclasses.replace`` changes it.
    """

    levels: tuple[int, int] = (0, 1)
    reset: Reset = "subtract"
    threshold: Annotated[Numbers, POSITIVE] = 1.0
    leak: Annotated[Numbers | None, LEAK] = None
    temperature: Annotated[Numbers | None, POSITIVE] = None
    dead_zone: Annotated[float, Range(0, 1, open_most=True)] = 0.0
    last_zone: Annotated[float, Range(1 / 2, 1)] = 0.5
    rectifies: bool = True
    lowest: Annotated[float | None, NOT_POSITIVE] = None

    def __post_init__(self):
        object.__setattr__(self, "levels", checked_levels(self.levels))
        check_choice("reset", self.reset, ("subtract", "zero"))
        make_plain_numbers(self, single=("dead_zone", "last_zone", "lowest"))
        if self.dead_zone and self.levels[0] == 0:
            raise ValueError(
                f"dead_zone is {self.dead_zone!r} with the levels {self.levels}; "
                "allowed: 0, since no spike is negative"
            )
        if self.has_zones and self.reset == "zero":
            raise ValueError(
                f"dead_zone is {self.dead_zone!r} and last_zone {self.last_zone!r} "
                "with the reset 'zero'; allowed: up to 1/2, or the reset 'subtract', "
                "which keeps what is missing"
            )

    @property
    def has_zones(self) -> bool:
        """Whether the neuron is silent at values that would round to a spike.

        A zone of up to 1/2 of a spike has values that round to 0 anyway.
        """
        return max(self.dead_zone, self.last_zone) > 1 / 2

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> NeuronParams:
        """Fresh parameters of a site, as the fields of the model describe them.

        A number becomes an array of shape [], an array keeps its shape, which
        broadcasts to ``shape``, and a `Uniform` is drawn for each channel, [C].

        Args:
            shape: of the site's neurons for one example, [..., C].
            key: of `jax.random`, for distributions alone.
        """
        zero = jnp.float32(0)  # `jnp.zeros` would compile a program
        return NeuronParams(
            threshold=parameter(self, "threshold", shape, key),
            bias=zero,
            initial_potential=zero,
            leak=parameter(self, "leak", shape, key),
            temperature=parameter(self, "temperature", shape, key),
        )

    def start(self, params: NeuronParams, shape: tuple[int, ...]) -> NeuronState:
        """v(0) for neurons of ``shape`` [B, ...], in float32 or as wide as params."""
        dtype = wide_dtype(*jax.tree.leaves(params))
        potential = jnp.asarray(params.initial_potential, dtype)
        state = NeuronState(jnp.broadcast_to(potential, shape))
        # Only what can be taken back has to be counted.
        if self.levels[0] < 0 and self.rectifies:
            state = state._replace(total=jnp.zeros(shape, dtype))
        return state

    def integrate(
        self,
        params: NeuronParams,
        state: NeuronState,
        current: jax.Array,
    ) -> NeuronState:
        """v <- max(leak v + I, lowest V_th)."""
        v = state.potential
        if params.leak is not None:
            v = like(params.leak, v) * v
        v = v + current.astype(v.dtype)
        if self.lowest is not None:
            bound = self.lowest * like(params.threshold, v)
            # A maximum would halve the gradient where v is at the bound.
            v = jnp.where(v < bound, bound, v)
        return state._replace(potential=v)

    def fire(
        self,
        params: NeuronParams,
        state: NeuronState,
        spike: Surrogate = dspike,
    ) -> tuple[NeuronState, jax.Array]:
        """Spikes s = k V_th, and the reset.

            k = max(low + sum_j spike((v - j V_th) / (2 V_th)), -N),  low < j <= high

        The derivative is the sum of the surrogate's at all levels j, or at the eight
        around v where there are more: Dspike is 0 elsewhere, a wider surrogate loses
        its tails.
        """
        v, total = state
        v_th = like(params.threshold, v)

        def reaches(level: Any) -> jax.Array:
            """1 where v >= level V_th, otherwise 0."""
            # Dividing by a positive number keeps the sign of the difference, however it
            # is rounded.
            x = (v - level * v_th) / (2 * v_th)
            if params.temperature is None:
                return spike(x)
            return spike(x, like(params.temperature, v))

        level = self._level(v, v_th, reaches)
        is_spike = level  # if the levels are (0, 1)
        if self.reset == "zero" and self.levels != (0, 1):
            is_spike = self._is_spike(total, reaches)
        if total is not None:
            # A maximum would halve the derivative at level = -N, where a silent neuron
            # is. There -N is -0, and 0 - N is 0.
            level = jnp.where(level < -total, 0 - total, level)
            total = total + level
        if self.reset == "subtract":
            v = v - v_th * level
        else:
            v = v * (1 - is_spike)
        spikes = add_offset(v_th * level, params.offset)
        return NeuronState(v, total), spikes

    def _level(
        self,
        v: jax.Array,
        v_th: jax.Array,
        reaches: Callable[[Any], jax.Array],
    ) -> jax.Array:
        """clip(floor(v / V_th), low, high), as a sum of steps that have surrogates.

        Args:
            v, v_th: potential and threshold, [B, ...] or broadcasting to it.
            reaches: level -> whether v reaches it, 0 or 1, with a surrogate.
        """
        low, high = self.levels
        count = high - low
        lowest: Any = low  # the level if v reaches none of the ``count`` above it
        if count > _NEAREST:
            count = _NEAREST
            near = jnp.floor(v / v_th) - _NEAREST // 2
            lowest = jnp.clip(jax.lax.stop_gradient(near), low, high - _NEAREST)
        level = reaches(lowest + 1)
        for i in range(2, 1 + count):
            level = level + reaches(lowest + i)
        return level if self.levels == (0, 1) else level + lowest

    def _is_spike(
        self,
        total: jax.Array | None,
        reaches: Callable[[Any], jax.Array],
    ) -> jax.Array:
        """1 where any spike is sent, whatever its level, otherwise 0, [B, ...].

        Args:
            total: N before this step; None: it does not limit negative spikes.
            reaches: level -> whether v reaches it, 0 or 1, with a surrogate.
        """
        is_spike = reaches(1)
        if self.levels[0] < 0:
            is_negative = 1 - reaches(0)
            if total is not None:  # a ReLU takes back only what it has sent
                is_negative = is_negative * jnp.minimum(total, 1)
            is_spike = is_spike + is_negative
        return is_spike


def as_encoder(neuron: Any) -> Any:
    """The model of a value that may be negative; other models than IF and LIF stay."""
    if not is_plain(neuron):
        return neuron
    low, high = neuron.levels
    levels = (min(low, -high), high)  # as far down as up
    return dataclasses.replace(neuron, levels=levels, rectifies=False)


def is_plain(neuron: Any) -> bool:
    """Whether this is IF or LIF itself, not a subclass."""
    return type(neuron) is IntegrateAndFire


def counts_only(neuron: Any, params: Any) -> bool:
    """Whether a neuron's total output depends only on the sum of its input.

    Only such neurons, IF with reset by subtraction and no lower bound, have a closed
    form: at the bound, what comes first matters.
    """
    model = off_grid(neuron)
    return (
        is_plain(model)
        and model.reset == "subtract"
        and model.lowest is None
        and params.leak is None
    )


def integrate_and_fire(
    *,
    levels: tuple[int, int] = (0, 1),
    threshold: Numbers = 1.0,
    reset: Reset = "subtract",
    temperature: Numbers | None = None,
    dead_zone: float = 0.0,
    last_zone: float = 0.5,
    lowest: float | None = None,
) -> IntegrateAndFire:
    """The IF neuron: no leak. With reset "subtract" it is what conversion fits.

    Args:
        levels: (low, high), the whole numbers that a spike may be, low <= 0 < high:
            (0, 1) is binary, (-1, 1) signed, (0, n) and (-n, n) are graded. A negative
            spike takes back an earlier one; the total of a neuron stays >= 0.
        threshold: V_th of fresh parameters, > 0, in units of the current. A spike of
            level k carries k V_th. A number, an array [C] or a distribution.
        reset: "subtract" (soft: v - V_th) or "zero" (hard: v = 0).
        temperature: of fresh parameters, > 0: the surrogate's second argument as a
            leaf that can be trained; None: the surrogate's own default.
        dead_zone: z, 0 <= z < 1: silent while less than z V_t is missing, except at
            step T; up to 1/2 this changes nothing. With a radix code of base 2, 2/3
            gives the non-adjacent form of a number: two of three digits are 0.
        last_zone: z_T, 1/2 <= z_T <= 1, the dead zone at step T. 1/2 rounds to the
            nearest value. With 2/3 a third fewer neurons send a last spike, and the
            squared error of rounding grows by a third.
        lowest: a potential below so many V_th, <= 0, becomes that: Speck's lower bound
            is -1; None: no bound. For rate coding only.

    Raises:
        ValueError: an argument outside its range.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import unroll
    >>> neuron = integrate_and_fire(threshold=1.0)
    >>> print(unroll(neuron, neuron.init(), jnp.full((4, 1), 0.5))[:, 0])
    [0. 1. 0. 1.]
    >>> signed = integrate_and_fire(levels=(-1, 1))
    >>> taken_back = jnp.array([[1.0], [0.0], [-1.0], [-1.0]])
    >>> print(unroll(signed, signed.init(), taken_back)[:, 0])
    [ 1.  0. -1.  0.]
    >>> bounded = integrate_and_fire(lowest=-1.0)
    >>> late = jnp.array([[-9.0], [1.0], [1.0], [1.0]])
    >>> print(unroll(bounded, bounded.init(), late)[:, 0])
    [0. 0. 1. 1.]
    """
    return IntegrateAndFire(
        levels=levels,
        reset=reset,
        threshold=threshold,
        temperature=temperature,
        dead_zone=dead_zone,
        last_zone=last_zone,
        lowest=lowest,
    )


@called_as(
    "snnjax.lif(leak=..., threshold=..., ...); a potential that decays with a time "
    "constant of tau steps has leak=math.exp(-1 / tau), which snnTorch calls beta"
)
def lif(
    *,
    levels: tuple[int, int] = (0, 1),
    leak: Numbers = 0.5,
    threshold: Numbers = 1.0,
    reset: Reset = "subtract",
    temperature: Numbers | None = None,
    lowest: float | None = None,
) -> IntegrateAndFire:
    """The LIF neuron: v <- leak v + I.

    Args:
        leak: factor on v before integration, 0 < leak <= 1. As a threshold and a
            temperature it is a number, an array that broadcasts to a site, such as one
            for each channel [C], or a distribution, from which ``init`` draws one for
            each channel: `snnjax.neurons.TimeConstants`, `snnjax.neurons.Uniform`.
        levels, threshold, reset, temperature, lowest: as for `integrate_and_fire`.

    Raises:
        ValueError: an argument outside its range.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import unroll
    >>> neuron = lif(leak=0.5, reset="zero")
    >>> print(unroll(neuron, neuron.init(), jnp.full((4, 1), 0.7))[:, 0])
    [0. 1. 0. 1.]
    """
    if leak is None:  # which the class takes for IF
        LEAK.check("leak", leak)
    return IntegrateAndFire(
        levels=levels,
        reset=reset,
        threshold=threshold,
        leak=leak,
        temperature=temperature,
        lowest=lowest,
    )


# In these ranges an oscillation dies out at every q < 10: 0 < r < sqrt(1 - omega^2).
_OMEGA = Range(0, 7 / 8)
_DAMPING = Range(0, 1 / 4, open_least=True)


class ResonateParams(NamedTuple):
    """Parameters of resonate-and-fire neurons, each a scalar or one per channel [C].

    Attributes:
        threshold, bias, temperature: as of `NeuronParams`.
        omega: sine of the angle that a step turns, 0 to 7/8: a period of 2 pi /
            asin(omega) steps.
        damping: distance of r from the divergence boundary, in (0, 1/4].
    """

    threshold: Annotated[jax.Array, POSITIVE]
    bias: jax.Array
    omega: Annotated[jax.Array, _OMEGA]
    damping: Annotated[jax.Array, _DAMPING]
    temperature: Annotated[jax.Array | None, POSITIVE] = None


class ResonateState(NamedTuple):
    """State of resonate-and-fire neurons: x, y and q, each [B, ...]."""

    potential: jax.Array
    quadrature: jax.Array
    refractory: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResonateAndFire:
    """The balanced resonate-and-fire neuron, which answers to a frequency.

        x  <- r x - omega y + I,    y <- omega x + r y,    of the x and y before
        r   = sqrt(1 - omega^2) - damping - 0.01 q
        s   = V_th 1[x >= (1 + q) V_th],    q <- 0.9 q + s / V_th

    Without the last two terms of r, at the divergence boundary, it oscillates forever.
    A spike resets nothing; q makes the next one harder. Source: Higuchi, Kairat, Bohte
    and Otte, ICML 2024, arXiv 2402.14603, with their time step 0.01 as the unit.

    Args:
        omega, damping: see `ResonateParams`; the paper damps less, by 0.001 to 0.01.
        threshold, temperature: as for `lif`. All may be arrays and distributions.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import unroll
    >>> neuron = ResonateAndFire(omega=0.5, damping=0.01, threshold=1.5)
    >>> beat = jnp.zeros((26, 1)).at[::12].set(1.0)  # a period of 12 steps
    >>> print(jnp.nonzero(unroll(neuron, neuron.init(), beat)[:, 0])[0])
    [12 24]
    """

    omega: Annotated[Numbers, _OMEGA] = Uniform(0.05, 0.5)
    damping: Annotated[Numbers, _DAMPING] = Uniform(0.01, 0.2)
    threshold: Annotated[Numbers, POSITIVE] = 1.0
    temperature: Annotated[Numbers | None, POSITIVE] = None
    levels = (0, 1)

    def __post_init__(self):
        make_plain_numbers(self)

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> ResonateParams:
        """Fresh parameters, as the fields of the model describe them.

        A number becomes an array of shape [], an array keeps its shape, which
        broadcasts to ``shape``, and a `Uniform` is drawn for each channel, [C].
        """
        return ResonateParams(
            threshold=parameter(self, "threshold", shape, key),
            bias=jnp.zeros((), jnp.float32),
            omega=parameter(self, "omega", shape, key),
            damping=parameter(self, "damping", shape, key),
            temperature=parameter(self, "temperature", shape, key),
        )

    def start(self, params: ResonateParams, shape: tuple[int, ...]) -> ResonateState:
        """Zeros in float32, or as wide as params."""
        zeros = jnp.zeros(shape, wide_dtype(*jax.tree.leaves(params)))
        return ResonateState(zeros, zeros, zeros)

    def integrate(
        self,
        params: ResonateParams,
        state: ResonateState,
        current: jax.Array,
    ) -> ResonateState:
        """x and y turn and shrink, and the current arrives."""
        x, y, q = state
        omega = like(params.omega, x)
        damping = like(params.damping, x)
        r = jnp.sqrt(1 - omega**2) - damping - 0.01 * q
        return ResonateState(
            potential=r * x - omega * y + current.astype(x.dtype),
            quadrature=omega * x + r * y,
            refractory=q,
        )

    def fire(
        self,
        params: ResonateParams,
        state: ResonateState,
        spike: Surrogate = dspike,
    ) -> tuple[ResonateState, jax.Array]:
        """Spikes s [B, ...], as those of an IF neuron whose potential is x - q V_th."""
        x, _, q = state
        v_th = like(params.threshold, x)
        # Firing reads neither the bias nor the initial potential: any array will do.
        if_params = NeuronParams(
            threshold=v_th,
            bias=v_th,
            initial_potential=v_th,
            temperature=params.temperature,
        )
        if_state = NeuronState(x - q * v_th)
        _, spikes = IntegrateAndFire().fire(if_params, if_state, spike)
        q = 0.9 * q + spikes / v_th
        return state._replace(refractory=q), spikes
