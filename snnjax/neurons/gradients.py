"""Models with the gradient of a simulation: its surrogate, and how the reset is passed.

The spikes are those of the model; only derivatives differ. A detached reset,

    v <- v - stop_gradient(s)    or    v (1 - stop_gradient(1[s != 0])),

is one that no gradient passes: Zenke and Vogels, Neural Computation 2021, section 2.
"""

import dataclasses
from typing import Any

import jax

from snnjax.neurons.protocol import Neuron, fire, levels_of, wrapped
from snnjax.surrogate import Surrogate, dspike


@dataclasses.dataclass(frozen=True)
class Same:
    """A model that does as the one inside does.

    Attributes:
        neuron: the model.
    """

    neuron: Neuron

    @property
    def levels(self) -> tuple[int, int] | None:
        """Those of the model."""
        return levels_of(self.neuron)

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> Any:
        """Those of the model."""
        return self.neuron.init(shape, key)

    def start(self, params: Any, shape: tuple[int, ...]) -> Any:
        """That of the model."""
        return self.neuron.start(params, shape)

    def integrate(self, params: Any, state: Any, current: jax.Array) -> Any:
        """As the model does."""
        return self.neuron.integrate(params, state, current)


@dataclasses.dataclass(frozen=True)
class WithSurrogate(Same):
    """A neuron model whose gradient is that of a surrogate; its spikes are the same.

    Attributes:
        neuron: the model.
        surrogate: spike function in place of the default.
        detach_reset: no gradient through the reset.
    """

    surrogate: Surrogate = dspike
    detach_reset: bool = False

    def fire(
        self, params: Any, state: Any, spike: Surrogate | None = None
    ) -> tuple[Any, jax.Array]:
        """As the model does, by its own surrogate unless another one is given."""
        neuron = with_detached_reset(self.neuron) if self.detach_reset else self.neuron
        return fire(neuron, params, state, self.surrogate if spike is None else spike)


@dataclasses.dataclass(frozen=True)
class _DetachedReset(Same):
    """A model through whose state, after it has fired, no gradient of spikes passes."""

    def fire(
        self, params: Any, state: Any, spike: Surrogate = dspike
    ) -> tuple[Any, jax.Array]:
        """As the model does."""
        _, spikes = fire(self.neuron, params, state, spike)
        after, _ = fire(
            self.neuron,
            params,
            state,
            lambda *args: jax.lax.stop_gradient(spike(*args)),
        )
        return after, spikes


def with_detached_reset(neuron: Any) -> Any:
    """The model with a detached reset of the innermost model, which is what resets.

    What a model around it makes of the spikes, as a recurrent one does, has its
    gradient.
    """
    inner = wrapped(neuron)
    if inner is None or not dataclasses.is_dataclass(neuron):
        return _DetachedReset(neuron)
    return dataclasses.replace(neuron, neuron=with_detached_reset(inner))  # type: ignore
