"""The gradient of a model in a simulation: its surrogate, and a detached reset.

The spikes stay those of the model. A detached reset treats the level k of a spike as a
constant, but the threshold keeps its gradient:

    v <- v - V_th stop_gradient(k)    or    v (1 - stop_gradient(1[k != 0]))

Source: Zenke and Vogels, Neural Computation 2021.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from snnjax._trees import is_floating
from snnjax.neurons.protocol import Step, Wrapper, fire, inner
from snnjax.surrogate import Surrogate, dspike


@dataclasses.dataclass(frozen=True)
class WithSurrogate(Wrapper):
    """A neuron model whose gradient is that of a surrogate; its spikes are the same.

    Attributes:
        surrogate: spike function in place of the default.
        detach_reset: no gradient through the reset.

    `snnjax.spiking` takes both as arguments; this is for a site by itself:

    >>> import jax, jax.numpy as jnp
    >>> from snnjax.neurons import lif, unroll
    >>> from snnjax.surrogate import rectangle
    >>> def spikes(current, neuron):
    ...     return unroll(neuron, neuron.init(), current).sum()
    >>> for neuron in (lif(), WithSurrogate(lif(), rectangle)):
    ...     print(f"{jax.grad(spikes)(jnp.ones((1, 1)), neuron)[0, 0]:.2f}")
    0.83
    0.50
    """

    surrogate: Surrogate = dspike
    detach_reset: bool = False

    def fire(self, params: Any, state: Any, spike: Surrogate | None = None) -> Step:
        """As the model does, by its own surrogate unless another one is given."""
        neuron = self.neuron
        if self.detach_reset:
            neuron = with_detached_reset(neuron)
        if spike is None:
            spike = self.surrogate
        return fire(neuron, params, state, spike)


@dataclasses.dataclass(frozen=True)
class WithoutGradient(Wrapper):
    """A model that passes no gradient: differentiating it raises an error."""

    def integrate(self, params: Any, state: Any, current: jax.Array) -> Any:
        """As the model does."""
        params, current = self._constants((params, current))
        return self.neuron.integrate(params, state, current)

    def fire(self, params: Any, state: Any, spike: Surrogate | None = None) -> Step:
        """As the model does."""
        return fire(self.neuron, self._constants(params), state, spike)

    def _constants(self, tree: Any) -> Any:
        """The same numbers, and an error where they are differentiated.

        This is for what a step reads: JAX never evaluates a derivative of its spikes,
        which is 0.
        """

        def constant(leaf: jax.Array) -> jax.Array:
            # Whole numbers have no derivative that anybody could ask for.
            return _constant(self.neuron, leaf) if is_floating(leaf) else leaf

        return jax.tree.map(constant, tree)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _constant(model: Any, number: jax.Array) -> jax.Array:
    """The number; its derivative raises an error that names the model."""
    del model
    return number


@_constant.defjvp
def _no_derivative(model, primals, tangents):
    raise ValueError(
        f"the model {model!r} has no surrogate gradient: its spikes do not depend on "
        "its state in a way that has a derivative, so every gradient through them "
        "would be 0. Let fire(params, state, spike) emit spike((v - V_th) / "
        "(2 V_th)), with a surrogate of snnjax.surrogate"
    )


@dataclasses.dataclass(frozen=True)
class _DetachedReset(Wrapper):
    """A model whose potential after firing has no gradient of the spikes.

    If its state has no field ``potential``, none of the state has.
    """

    def fire(self, params: Any, state: Any, spike: Surrogate | None = None) -> Step:
        """As the model does."""
        if spike is None:
            spike = dspike

        def constant_spike(*args: Any, **options: Any) -> jax.Array:
            return jax.lax.stop_gradient(spike(*args, **options))

        # The reset takes back at most what was sent, the sum of earlier spikes, which
        # has their gradient.
        constant_state = state
        if getattr(state, "total", None) is not None:
            constant_state = state._replace(total=jax.lax.stop_gradient(state.total))
        # Fired twice, with equal numbers: only the first spikes have a gradient.
        fired, spikes = fire(self.neuron, params, state, spike)
        detached, _ = fire(self.neuron, params, constant_state, constant_spike)
        if "potential" in getattr(fired, "_fields", ()):
            detached = fired._replace(potential=detached.potential)
        return detached, spikes


def through_time(model: Any) -> Callable[..., Step] | None:
    """All T steps in one call: ``(params, state, currents) -> (state, spikes)``.

    It is the model's own ``through_time(params, state, currents [T, B, ...], spike)``,
    with the surrogate in place; None: the model has none. It must give what
    ``integrate`` and ``fire`` give step by step.
    """
    function = getattr(without_surrogate(model), "through_time", None)
    if function is None:
        return None
    return functools.partial(function, spike=getattr(model, "surrogate", dspike))


def with_detached_reset(neuron: Any) -> Any:
    """The same model, but the innermost one has a detached reset.

    What wrappers do with the spikes, such as recurrence, keeps its gradient.
    """
    inside = inner(neuron)
    if inside is None or not dataclasses.is_dataclass(neuron):
        return _DetachedReset(neuron)
    return dataclasses.replace(neuron, neuron=with_detached_reset(inside))  # type: ignore


def without_surrogate(model: Any) -> Any:
    """The model that sends the same spikes, but has no derivative of its own."""
    return model.neuron if isinstance(model, WithSurrogate) else model
