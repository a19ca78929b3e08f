"""`WholeNumbers`: a neuron whose potential is a multiple of a unit, as on a chip.

    v  <- unit round((v + I) / unit)

In a network of whole numbers every current is a multiple of the unit. Sums of floats
miss it by rounding errors, which this model takes back at every step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from snnjax.neurons.protocol import Wrapper


@dataclasses.dataclass(frozen=True)
class WholeNumbers(Wrapper):
    """A model of IF neurons, with its potential on a grid. Gradients pass unchanged.

    Attributes:
        unit: distance of two potentials: T w_T of the code, 1 with rate coding.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import integrate_and_fire, unroll
    >>> neuron = WholeNumbers(integrate_and_fire(threshold=3.0))
    >>> tenths = jnp.full((4, 1), 1.1)
    >>> print(unroll(neuron, neuron.init(), tenths)[:, 0])  # of currents of 1
    [0. 0. 3. 0.]
    """

    unit: float = 1.0

    @property
    def margin(self) -> float:
        """What is added to v before it is compared, so that rounding flips no tie.

        The sizes of a code's spikes are not always exact in floats.
        """
        return self.unit / 4

    def integrate(self, params: Any, state: Any, current: jax.Array) -> Any:
        """As the model does, and then v becomes the nearest multiple of the unit."""
        state = self.neuron.integrate(params, state, current)
        return state._replace(potential=self.nearest(state.potential))

    def nearest(self, v: jax.Array) -> jax.Array:
        """The nearest multiple of the unit; its derivative is 1."""
        return v + jax.lax.stop_gradient(self.unit * jnp.round(v / self.unit) - v)


def off_grid(model: Any) -> Any:
    """The model itself, or the one whose potential `WholeNumbers` keeps on a grid."""
    return model.neuron if isinstance(model, WholeNumbers) else model
