"""A synapse before a neuron: a current decays over steps instead of lasting one.

    i <- synaptic_leak i + I          then the model integrates i

With a LIF neuron this has two time constants, that of the synapse and the membrane's. I
includes the bias. Source: Neftci, Mostafa and Zenke, "Surrogate gradient learning in
spiking neural networks", IEEE Signal Processing Magazine 2019, where v integrates i of
the step before.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import lead, wide_dtype
from snnjax._checks import check_leak
from snnjax.neurons.protocol import Neuron, Wrapper, check_model, fire
from snnjax.surrogate import Surrogate, dspike


class SynapticParams(NamedTuple):
    """Parameters of neurons with a synaptic current.

    Attributes:
        neuron: those of the model that the current goes to.
        synaptic_leak: factor on i before a current comes in, in (0, 1], scalar or [C].

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import lif, unroll
    >>> neuron = synaptic(lif(leak=1.0))
    >>> params = neuron.init()._replace(synaptic_leak=jnp.array([0.5, 1.0]))
    >>> once = jnp.array([[[0.5, 0.5]], [[0.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    >>> print(unroll(neuron, params, once).sum(0))  # the second one lasts
    [[0. 2.]]
    """

    neuron: Any
    synaptic_leak: jax.Array


class SynapticState(NamedTuple):
    """State of neurons with a synaptic current: theirs, and i [B, ...]."""

    neuron: Any
    current: jax.Array


@dataclasses.dataclass(frozen=True)
class Synaptic(Wrapper):
    """A model behind a synapse. A value: equal fields, equal models.

    Attributes:
        neuron: the model.
        synaptic_leak: of fresh parameters.

    `synaptic` makes one:

    >>> from snnjax.neurons import lif
    >>> neuron = synaptic(lif(leak=0.75), synaptic_leak=0.5)
    >>> params = neuron.init()
    >>> print(neuron.neuron.leak, params.synaptic_leak, params.neuron.leak)
    0.75 0.5 0.75
    """

    synaptic_leak: float = 0.5

    def __post_init__(self):
        check_model(self.neuron)
        check_leak("synaptic_leak", self.synaptic_leak)
        object.__setattr__(self, "synaptic_leak", float(self.synaptic_leak))

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> SynapticParams:
        """The model's parameters, and a scalar leak."""
        leak = jnp.asarray(self.synaptic_leak, jnp.float32)
        return SynapticParams(self.neuron.init(shape, key), leak)

    def start(self, params: SynapticParams, shape: tuple[int, ...]) -> SynapticState:
        """No current, in float32 or wider."""
        dtype = wide_dtype(*jax.tree.leaves(params))
        return SynapticState(
            self.neuron.start(params.neuron, shape), jnp.zeros(shape, dtype)
        )

    def integrate(
        self, params: SynapticParams, state: SynapticState, current: jax.Array
    ) -> SynapticState:
        """i <- synaptic_leak i + I; the model integrates i."""
        before = state.current
        leak = lead(params.synaptic_leak, before.ndim).astype(before.dtype)
        synaptic = leak * before + current.astype(before.dtype)
        inside = self.neuron.integrate(params.neuron, state.neuron, synaptic)
        return SynapticState(inside, synaptic)

    def fire(
        self, params: SynapticParams, state: SynapticState, spike: Surrogate = dspike
    ) -> tuple[SynapticState, jax.Array]:
        """As the model does; a spike does not change the current."""
        inside, spikes = fire(self.neuron, params.neuron, state.neuron, spike)
        return state._replace(neuron=inside), spikes


def synaptic(neuron: Neuron, *, synaptic_leak: float = 0.5) -> Synaptic:
    """A neuron whose input passes a synapse: i <- synaptic_leak i + I.

    Args:
        neuron: the model that integrates i, e.g. `snnjax.lif`.
        synaptic_leak: 0 < synaptic_leak <= 1; exp(-dt / tau) of a synapse with the time
            constant tau. A constant current I settles at i = I / (1 - synaptic_leak),
            and so does a bias.

    Raises:
        ValueError: no model, or a leak outside its range.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import lif, unroll
    >>> neuron = synaptic(lif(leak=1.0), synaptic_leak=0.5)
    >>> once = jnp.array([[1.0], [0.0], [0.0], [0.0]])
    >>> print(unroll(neuron, neuron.init(), once)[:, 0])        # v: 1, 0.5, 0.75, 0.875
    [1. 0. 0. 0.]
    """
    return Synaptic(neuron, synaptic_leak)
