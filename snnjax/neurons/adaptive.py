"""An adaptive threshold: every spike makes the next one harder for a while.

    s  = V_th 1[v >= V_th + adaptation a]      fire, and reset as the model does
    a <- adaptation_leak a + s                 the trace of its spikes

Source: Bellec, Scherr, Subramoney, Hajek, Salaj, Legenstein and Maass, "A solution to
the learning dilemma for recurrent networks of spiking neurons", Nature Communications
2020. In their NeurIPS 2018 a <- rho a + (1 - rho) s, and the reset subtracts the raised
threshold.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import lead, wide_dtype
from snnjax._checks import check_leak, is_number
from snnjax.neurons.protocol import (
    Neuron,
    Wrapper,
    check_model,
    field,
    fire,
    levels_of,
    takes_surrogate,
)
from snnjax.surrogate import Surrogate, dspike


class AdaptiveParams(NamedTuple):
    """Parameters of neurons with an adaptive threshold.

    Attributes:
        neuron: those of the model; its threshold is the one without adaptation, and
            the size of all spikes.
        adaptation: by how much a spike of size 1 raises the threshold, scalar or [C].
        adaptation_leak: factor on a at every step, in (0, 1], scalar or [C].

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import lif, unroll
    >>> neuron = adaptive(lif(leak=1.0), adaptation_leak=0.5)
    >>> params = neuron.init()._replace(adaptation=jnp.array([0.0, 2.0]))
    >>> print(unroll(neuron, params, jnp.ones((4, 1, 2)))[:, 0])  # two channels
    [[1. 1.]
     [1. 0.]
     [1. 1.]
     [1. 0.]]
    """

    neuron: Any
    adaptation: jax.Array
    adaptation_leak: jax.Array


class AdaptiveState(NamedTuple):
    """State of adaptive neurons: the model's, and the trace a [B, ...]."""

    neuron: Any
    trace: jax.Array


@dataclasses.dataclass(frozen=True)
class Adaptive(Wrapper):
    """A model with an adaptive threshold. A value: equal fields, equal models.

    Attributes:
        neuron: the model.
        adaptation, adaptation_leak: of fresh parameters.

    `adaptive` makes one:

    >>> from snnjax.neurons import lif
    >>> neuron = adaptive(lif(leak=0.75), adaptation=0.5)
    >>> params = neuron.init()
    >>> print(neuron.neuron.leak, params.adaptation, params.neuron.leak)
    0.75 0.5 0.75
    """

    adaptation: float = 1.0
    adaptation_leak: float = 0.9

    def __post_init__(self):
        check_model(self.neuron)
        if levels_of(self.neuron) != (0, 1) or not takes_surrogate(self.neuron):
            raise ValueError(
                f"model is {self.neuron!r}; allowed: a model with the levels (0, 1) "
                "that fires by the surrogate given to it, e.g. snnjax.lif(), since an "
                "adaptive threshold moves the surrogate's argument"
            )
        if not is_number(self.adaptation) or not 0 <= self.adaptation < math.inf:
            raise ValueError(
                f"adaptation is {self.adaptation!r}; allowed: >= 0, finite"
            )
        check_leak("adaptation_leak", self.adaptation_leak)
        for name in ("adaptation", "adaptation_leak"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> AdaptiveParams:
        """The model's parameters and two scalars."""
        numbers = (self.adaptation, self.adaptation_leak)
        return AdaptiveParams(
            self.neuron.init(shape, key),
            *[jnp.asarray(number, jnp.float32) for number in numbers],
        )

    def start(self, params: AdaptiveParams, shape: tuple[int, ...]) -> AdaptiveState:
        """No adaptation yet, in float32 or wider."""
        dtype = wide_dtype(*jax.tree.leaves(params))
        state = self.neuron.start(params.neuron, shape)
        return AdaptiveState(state, jnp.zeros(shape, dtype))

    def integrate(
        self, params: AdaptiveParams, state: AdaptiveState, current: jax.Array
    ) -> AdaptiveState:
        """As the model does."""
        inside = self.neuron.integrate(params.neuron, state.neuron, current)
        return state._replace(neuron=inside)

    def fire(
        self, params: AdaptiveParams, state: AdaptiveState, spike: Surrogate = dspike
    ) -> tuple[AdaptiveState, jax.Array]:
        """Spikes of the model, whose surrogate is evaluated at the raised threshold.

        In place of x = (v - V_th) / (2 V_th), at (v - V_th - adaptation a) / (2 V_th).
        This comparison is rounded, unlike v >= V_th: a potential equal to the raised
        threshold may fire or not.
        """
        inside, a = state
        if field(params.neuron, "threshold") is None:
            raise ValueError(
                f"an adaptive threshold needs a parameter threshold, and those of "
                f"{self.neuron!r} have none"
            )
        threshold, adaptation, leak = (
            lead(leaf, a.ndim).astype(a.dtype)
            for leaf in (field(params.neuron, "threshold"), *params[1:])
        )
        shift = adaptation * a / (2 * threshold)

        def raised(x: jax.Array, *args: Any, **options: Any) -> jax.Array:
            return spike(x - shift.astype(x.dtype), *args, **options)

        inside, spikes = fire(self.neuron, params.neuron, inside, raised)
        return AdaptiveState(inside, leak * a + spikes.astype(a.dtype)), spikes


def adaptive(
    neuron: Neuron, *, adaptation: float = 1.0, adaptation_leak: float = 0.9
) -> Adaptive:
    """A neuron whose threshold is V_th + adaptation a, with a <- adaptation_leak a + s.

    Args:
        neuron: the model, with the levels (0, 1), e.g. `snnjax.lif`.
        adaptation: >= 0; by how much a spike of size 1 raises the threshold. Spikes
            carry V_th whatever the adaptation.
        adaptation_leak: 0 < adaptation_leak <= 1; exp(-dt / tau) of a threshold that
            returns with the time constant tau.

    Raises:
        ValueError: another model, or a number outside its range.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import lif, unroll
    >>> neuron = adaptive(lif(leak=1.0), adaptation=2.0, adaptation_leak=0.5)
    >>> print(unroll(neuron, neuron.init(), jnp.full((6, 1), 1.0))[:, 0])
    [1. 0. 1. 0. 1. 0.]
    """
    return Adaptive(neuron, adaptation, adaptation_leak)
