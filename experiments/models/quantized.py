"""Quantized ReLU with a trained maximum: an activation of the networks in ``zoo.py``.

    y = (maximum / L) clip(floor(L x / maximum + 1/2), 0, L)
    maximum = exp(log_maximum)

L is `levels`. The logarithm is the parameter, so the maximum stays positive after any
update. Source: Bu et al., ICLR 2022 (QCFS).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from snnjax import quantized_relu
from snnjax.calibrators import formulas


class QuantizedReLU(nn.Module):
    """`snnjax.quantized_relu` of L = `levels` with one trained maximum per layer.

    The maximum starts at the least-squares threshold for the inputs of the initializing
    call, so initialize on images. A trained network of ReLUs then starts near its own
    accuracy.
    """

    levels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        log_maximum = self.param("log_maximum", lambda _: _initial(x, self.levels))
        return quantized_relu(x, jnp.exp(log_maximum), self.levels)


def _initial(x: jax.Array, levels: int) -> jax.Array:
    """Logarithm of the first maximum; of 1 where no value is positive."""
    values = jax.nn.relu(x).astype(jnp.float32)
    maximum = formulas.least_squares(values, levels, shift=0.5)
    return jnp.log(jnp.where(maximum > 0, maximum, 1.0))
