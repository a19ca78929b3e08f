"""Recurrence: the neurons of a site receive their own spikes of the previous step.

    I <- I + s(t - 1) W,     W [N, N] among the N neurons of the site

Source: the recurrent networks of Bellec, Salaj, Subramoney, Legenstein and Maass, "Long
short-term memory and learning-to-learn in networks of spiking neurons", NeurIPS 2018.
Unlike there, W includes each neuron's connection to itself.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import promoted, wide_dtype
from snnjax.neurons.protocol import Neuron, Wrapper, check_model, fire
from snnjax.surrogate import Surrogate, dspike


class RecurrentParams(NamedTuple):
    """Parameters of recurrent neurons.

    Attributes:
        neuron: those of the model.
        kernel: W [N, N], from row to column, N the number of neurons of the site.

    >>> import jax, jax.numpy as jnp
    >>> from snnjax.neurons import lif, unroll
    >>> neuron = recurrent(lif(leak=1.0))
    >>> params = neuron.init((1,), jax.random.key(0))
    >>> params = params._replace(kernel=jnp.array([[-1.0]]))  # inhibits itself
    >>> print(unroll(neuron, params, jnp.ones((4, 1, 1)))[:, 0, 0])
    [1. 0. 1. 0.]
    """

    neuron: Any
    kernel: jax.Array


class RecurrentState(NamedTuple):
    """State of recurrent neurons: the model's, and the previous spikes [B, ...]."""

    neuron: Any
    spikes: jax.Array


@dataclasses.dataclass(frozen=True)
class Recurrent(Wrapper):
    """A model whose neurons are connected with each other. A value, as the model is.

    Attributes:
        neuron: the model.

    `recurrent` makes one:

    >>> import jax
    >>> from snnjax.neurons import lif
    >>> neuron = recurrent(lif())
    >>> params = neuron.init((4, 2), jax.random.key(0))  # 8 neurons
    >>> params.kernel.shape, neuron.fan_out((4, 2))
    ((8, 8), 8)
    """

    def __post_init__(self):
        check_model(self.neuron)

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> RecurrentParams:
        """The model's parameters, and weights drawn from N(0, 1/N)."""
        if key is None:
            raise ValueError(
                "a recurrent kernel is drawn at random and needs a key: "
                "snnjax.init(..., key=jax.random.key(0))"
            )
        kernel_key, model_key = jax.random.split(key)
        count = math.prod(shape)
        kernel = jax.random.normal(kernel_key, (count, count)) / math.sqrt(count)
        return RecurrentParams(self.neuron.init(shape, model_key), kernel)

    def fan_out(self, shape: tuple[int, ...]) -> int:
        """Connections that each spike reaches: N."""
        return math.prod(shape)

    def start(self, params: RecurrentParams, shape: tuple[int, ...]) -> RecurrentState:
        """No spike yet."""
        dtype = wide_dtype(*jax.tree.leaves(params))
        state = self.neuron.start(params.neuron, shape)
        return RecurrentState(state, jnp.zeros(shape, dtype))

    def integrate(
        self, params: RecurrentParams, state: RecurrentState, current: jax.Array
    ) -> RecurrentState:
        """The model integrates I + s W."""
        dtype = promoted(current, state.spikes)
        rows = state.spikes.reshape(state.spikes.shape[0], -1).astype(dtype)
        recurrent_current = rows @ params.kernel.astype(dtype)
        total = current.astype(dtype) + recurrent_current.reshape(state.spikes.shape)
        inside = self.neuron.integrate(params.neuron, state.neuron, total)
        return state._replace(neuron=inside)

    def fire(
        self, params: RecurrentParams, state: RecurrentState, spike: Surrogate = dspike
    ) -> tuple[RecurrentState, jax.Array]:
        """As the model does; the spikes come back in the next step."""
        inside, spikes = fire(self.neuron, params.neuron, state.neuron, spike)
        return RecurrentState(inside, spikes.astype(state.spikes.dtype)), spikes


def recurrent(neuron: Neuron) -> Recurrent:
    """Neurons with a dense recurrent kernel among those of their site.

    The kernel has N x N weights for the N neurons of a site. It is meant for dense
    layers: in a convolution N counts all positions. The ``key`` of `snnjax.init` draws
    it, and an optimizer trains it as "kernel".

    Args:
        neuron: the model, e.g. `snnjax.lif`.

    Raises:
        ValueError: no model.

    >>> import jax, jax.numpy as jnp
    >>> from snnjax.neurons import lif, unroll
    >>> neuron = recurrent(lif(leak=1.0))
    >>> params = neuron.init((2,), jax.random.key(0))
    >>> params = params._replace(kernel=jnp.array([[0.0, 1.0], [0.0, 0.0]]))
    >>> first_neuron_only = jnp.array([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    >>> print(unroll(neuron, params, first_neuron_only)[:, 0])
    [[1. 0.]
     [0. 1.]
     [0. 0.]]
    """
    return Recurrent(neuron)
