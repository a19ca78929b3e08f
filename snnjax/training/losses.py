"""Losses and a readout for the outputs O of `snnjax.spiking`, [T, B, classes].

Any loss of ``O.mean(0)`` works as well, such as those of ``optax.losses``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from snnjax._arrays import lead, wide
from snnjax._checks import check_labels
from snnjax._ranges import LEAK


def mean_cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of the mean output: CE(mean_t O(t), y), averaged over images.

    Args:
        outputs: readout at each step [T, B, classes].
        labels: int [B].

    Raises:
        ValueError: wrong shapes; outside of ``jit``, a label that is not a class, which
            makes the loss NaN inside of it.

    >>> import jax.numpy as jnp
    >>> outputs = jnp.array([[[2.0, 0.0]], [[0.0, 2.0]]])
    >>> print(mean_cross_entropy(outputs, jnp.array([0])))
    0.6931...
    """
    check_labels(outputs, labels)
    logits = wide(outputs).mean(0)  # [B, classes]
    entropies = _cross_entropy(logits, jnp.asarray(labels))
    return entropies.mean()


def membrane_readout(outputs: jax.Array, *, leak: float = 0.5) -> jax.Array:
    """Potentials of output neurons that never fire, [T, B, ...], float32.

        v[t] = leak v[t - 1] + O[t],   v[-1] = 0

    The answer is ``membrane_readout(outputs)[-1]``.

    Args:
        outputs: readout at each step [T, B, ...].
        leak: 0 < leak <= 1, scalar or [C]; a traced one is not checked: the sigmoid of
            a trained parameter stays in the range.

    Raises:
        ValueError: a leak outside that range.

    >>> import jax.numpy as jnp
    >>> print(membrane_readout(jnp.array([[1.0], [1.0], [0.0]]))[:, 0])
    [1.   1.5  0.75]
    """
    if not isinstance(leak, Tracer):
        for number in np.ravel(leak).tolist():
            LEAK.check("leak", number)
    outputs = wide(outputs)

    def step(potential, output):
        # A leak [C] lies along the last axis of the potentials [B, ..., C].
        kept = lead(leak, potential.ndim) * potential
        potential = (kept + output).astype(output.dtype)
        return potential, potential

    start = jnp.zeros_like(outputs[0])
    _, potentials = jax.lax.scan(step, start, outputs)
    return potentials


def _cross_entropy(logits, labels):
    """Cross-entropies [B] of logits [B, classes]; NaN where a label is no class."""
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    # A negative label would count from the last class.
    is_class = (labels >= 0) & (labels < logits.shape[-1])
    return jnp.where(is_class, entropies, jnp.nan)
