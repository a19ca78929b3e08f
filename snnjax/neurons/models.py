"""Neuron models as values: integrate-and-fire (IF) and its leaky form (LIF).

    v  <- leak v + I                          integrate
    s   = V_th 1[v >= V_th]                   fire: a spike carries the value V_th
    v  <- v - s   or   v (1 - 1[s > 0])       reset: "subtract" or "zero"

A spike carries V_th, so mean outputs compare with ANN activations without rescaling.
Source: Li, Deng, Dong, Gong and Gu, ICML 2021, section 3.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from snnjax._arrays import lead, promoted, wide_dtype
from snnjax._checks import check_choice, check_leak, check_positive
from snnjax.surrogate import Surrogate, dspike


class NeuronParams(NamedTuple):
    """Parameters of one site's neurons; every field broadcasts over the batch.

    Attributes:
        threshold: V_th > 0, scalar or per channel [C].
        bias: current added at every step in which input arrives, scalar or [C].
        initial_potential: v(0), scalar or per neuron [...].
        leak: factor on v before integration, in (0, 1]; None for IF, which has none.
        temperature: second argument of the surrogate (b of Dspike), scalar or [C];
            None: the surrogate's own default, which is not trained.
    """

    threshold: jax.Array
    bias: jax.Array
    initial_potential: jax.Array
    leak: jax.Array | None = None
    temperature: jax.Array | None = None

    def driving(self, current: jax.Array) -> jax.Array:
        """The current with the bias, in the wider type of both."""
        dtype = promoted(current, self.bias)
        bias = lead(self.bias, jnp.ndim(current))
        return jnp.asarray(current, dtype) + bias.astype(dtype)


class NeuronState(NamedTuple):
    """State of a neuron between two steps: the membrane potential v, [B, ...]."""

    potential: jax.Array


class Neuron(Protocol):
    """A neuron model: a hashable value with four pure functions."""

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> NeuronParams:
        """Parameters of a fresh site whose neurons have this shape."""
        ...

    def start(self, params: NeuronParams, shape: tuple[int, ...]) -> NeuronState:
        """The state before the first step, of neurons of ``shape`` [B, ...]."""
        ...

    def integrate(
        self, params: NeuronParams, state: NeuronState, current: jax.Array
    ) -> NeuronState:
        """The state after a current, the bias included, has come in."""
        ...

    def fire(
        self, params: NeuronParams, state: NeuronState, spike: Surrogate = dspike
    ) -> tuple[NeuronState, jax.Array]:
        """The state after firing, and the spikes, 0 or V_th.

        ``spike`` is a function of (v - V_th) / (2 V_th), see `snnjax.surrogate`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class IntegrateAndFire:
    """IF, or LIF where its parameters have a leak. A value: equal fields, equal models.

    Attributes:
        reset: after a spike: "subtract" V_th (soft) or set v to "zero" (hard).
        threshold, leak, temperature: of fresh parameters; None: they have none. The
            numbers that a network uses are those of its `NeuronParams`.
    """

    reset: str = "subtract"
    threshold: float = 1.0
    leak: float | None = None
    temperature: float | None = None

    def __post_init__(self):
        check_choice("reset", self.reset, ("subtract", "zero"))
        check_positive("threshold", self.threshold)
        if self.leak is not None:
            check_leak("leak", self.leak)
        if self.temperature is not None:
            check_positive("temperature", self.temperature)
        # Python's own numbers, so that equal models have equal hashes and can be saved.
        for name in ("threshold", "leak", "temperature"):
            number = getattr(self, name)
            object.__setattr__(self, name, None if number is None else float(number))

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> NeuronParams:
        """Scalar parameters, whatever the shape; nothing is drawn."""
        del shape, key

        def scalar(number: float | None):
            return None if number is None else jnp.asarray(number, jnp.float32)

        return NeuronParams(
            threshold=jnp.asarray(self.threshold, jnp.float32),
            bias=jnp.zeros((), jnp.float32),
            initial_potential=jnp.zeros((), jnp.float32),
            leak=scalar(self.leak),
            temperature=scalar(self.temperature),
        )

    def start(self, params: NeuronParams, shape: tuple[int, ...]) -> NeuronState:
        """v(0) for neurons of ``shape`` [B, ...].

        Membranes are float32 even in bfloat16 networks, and wider only if their
        parameters are.

        >>> neuron = integrate_and_fire()
        >>> neuron.start(neuron.init(), (2, 3)).potential.shape
        (2, 3)
        """
        dtype = wide_dtype(*jax.tree.leaves(params))
        potential = jnp.asarray(params.initial_potential, dtype)
        return NeuronState(jnp.broadcast_to(potential, shape))

    def integrate(
        self, params: NeuronParams, state: NeuronState, current: jax.Array
    ) -> NeuronState:
        """v <- leak v + I."""
        v = state.potential
        if params.leak is not None:
            v = _like(params.leak, v) * v
        return NeuronState(v + current.astype(v.dtype))

    def fire(
        self, params: NeuronParams, state: NeuronState, spike: Surrogate = dspike
    ) -> tuple[NeuronState, jax.Array]:
        """s = V_th spike((v - V_th) / (2 V_th)), and the reset."""
        v = state.potential
        v_th = _like(params.threshold, v)
        # x >= 0 is v >= V_th whatever the rounding: dividing by a positive number
        # keeps the sign of the difference.
        temperature = params.temperature
        sharpness = () if temperature is None else (_like(temperature, v),)
        fired = spike((v - v_th) / (2 * v_th), *sharpness)
        v = v - v_th * fired if self.reset == "subtract" else v * (1 - fired)
        return NeuronState(v), v_th * fired

    def counts_only(self, params: NeuronParams) -> bool:
        """Whether the sum of its input alone decides how often it fires in the end.

        That is so for IF with reset by subtraction; only such neurons have a
        `closed_form`, and only they are what conversion fits.
        """
        return self.reset == "subtract" and params.leak is None


@dataclasses.dataclass(frozen=True)
class WithSurrogate:
    """A neuron model whose gradient is that of a surrogate; its spikes are the same.

    Attributes:
        neuron: the model.
        surrogate: spike function in place of the default.
        detach_reset: no gradient through the reset.
    """

    neuron: Neuron
    surrogate: Surrogate = dspike
    detach_reset: bool = False

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> NeuronParams:
        """Those of the model."""
        return self.neuron.init(shape, key)

    def start(self, params: NeuronParams, shape: tuple[int, ...]) -> NeuronState:
        """That of the model."""
        return self.neuron.start(params, shape)

    def integrate(
        self, params: NeuronParams, state: NeuronState, current: jax.Array
    ) -> NeuronState:
        """As the model does."""
        return self.neuron.integrate(params, state, current)

    def fire(
        self, params: NeuronParams, state: NeuronState, spike: Surrogate | None = None
    ) -> tuple[NeuronState, jax.Array]:
        """As the model does, by its own surrogate unless another one is given."""
        spike = self.surrogate if spike is None else spike
        after, spikes = self.neuron.fire(params, state, spike)
        if self.detach_reset:
            after, _ = self.neuron.fire(
                params, state, lambda *args: jax.lax.stop_gradient(spike(*args))
            )
        return after, spikes


def _like(parameter: jax.Array, potential: jax.Array) -> jax.Array:
    """A parameter in the type of the potential, with as many axes."""
    return lead(parameter, potential.ndim).astype(potential.dtype)


def integrate_and_fire(
    *,
    threshold: float = 1.0,
    reset: str = "subtract",
    temperature: float | None = None,
) -> IntegrateAndFire:
    """The IF neuron: no leak. With reset "subtract" it is what conversion fits.

    Args:
        threshold: V_th of fresh parameters, > 0, in units of the current.
        reset: "subtract" (soft: v - V_th) or "zero" (hard: v = 0).
        temperature: of fresh parameters, > 0: the surrogate's second argument as a
            leaf that can be trained; None: the surrogate's own default.

    Raises:
        ValueError: an argument outside its range.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import unroll
    >>> neuron = integrate_and_fire(threshold=1.0)
    >>> print(unroll(neuron, neuron.init(), jnp.full((4, 1), 0.5))[:, 0])
    [0. 1. 0. 1.]
    """
    return IntegrateAndFire(reset, threshold, None, temperature)


def lif(
    *,
    leak: float = 0.5,
    threshold: float = 1.0,
    reset: str = "subtract",
    temperature: float | None = None,
) -> IntegrateAndFire:
    """The LIF neuron: v <- leak v + I.

    Args:
        leak: factor on v before integration, 0 < leak <= 1.
        threshold, reset, temperature: as for `integrate_and_fire`.

    Raises:
        ValueError: an argument outside its range.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import unroll
    >>> neuron = lif(leak=0.5, reset="zero")
    >>> print(unroll(neuron, neuron.init(), jnp.full((4, 1), 0.7))[:, 0])
    [0. 1. 0. 1.]
    """
    check_leak("leak", leak)
    return IntegrateAndFire(reset, threshold, leak, temperature)
