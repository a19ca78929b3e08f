"""Direct training: losses and readouts of an output stream.

    mean cross-entropy   CE(mean_t O(t), y)
    TET                  (1 - c) mean_t CE(O(t), y) + c mean_t |O(t) - target|^2
    distillation         (1 - w) CE(mean_t O(t), y) + w KL(p(teacher), p(mean_t O(t)))

`snnjax.spiking` gives the outputs O, [T, B, classes]; optax treats the
`SNN` as any other pytree. Source of TET: Deng, Li, Zhang and Gu, "Temporal Efficient
Training of Spiking Neural Network via Gradient Re-weighting", ICLR 2022.
"""

import jax
import jax.numpy as jnp
import optax

from snnjax._arrays import lead, wide
from snnjax._checks import check_labels, check_leak, check_positive, check_share


def mean_cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of the rate-coded answer: CE(mean_t O(t), y), mean over images.

    Args:
        outputs: readout at each step [T, B, classes].
        labels: int [B].

    Raises:
        ValueError: other shapes; outside of ``jit``, a label that is no class.

    >>> import jax.numpy as jnp
    >>> outputs = jnp.array([[[2.0, 0.0]], [[0.0, 2.0]]])
    >>> print(mean_cross_entropy(outputs, jnp.array([0])))
    0.6931...
    """
    check_labels(outputs, labels)
    labels = jnp.asarray(labels)
    return _cross_entropy(wide(outputs).mean(0), labels).mean()


def tet(
    outputs: jax.Array,
    labels: jax.Array,
    *,
    regularization: float = 1e-3,
    target: float = 1.0,
) -> jax.Array:
    """Temporal efficient training: the answer of every step by itself must be right.

        (1 - c) mean_t CE(O(t), y) + c mean_t |O(t) - target|^2

    Args:
        outputs: readout at each step [T, B, classes].
        labels: int [B].
        regularization: c in [0, 1], weight of the squared distance (mean over classes).
        target: value that all outputs are drawn to, usually the threshold.

    Raises:
        ValueError: as `mean_cross_entropy`, or c outside [0, 1].

    >>> import jax.numpy as jnp
    >>> outputs = jnp.array([[[2.0, 0.0]], [[0.0, 2.0]]])
    >>> print(tet(outputs, jnp.array([0]), regularization=0.0))
    1.1269...
    """
    check_labels(outputs, labels)
    labels = jnp.asarray(labels)
    check_share("regularization", regularization)
    outputs = wide(outputs)
    every = jnp.broadcast_to(lead(labels, 2), outputs.shape[:2])
    entropy = _cross_entropy(outputs, every).mean()
    if regularization == 0:  # left out, see `distillation`
        return entropy
    distance = ((outputs - target) ** 2).mean()
    return (1 - regularization) * entropy + regularization * distance


def distillation(
    outputs: jax.Array,
    teacher: jax.Array,
    labels: jax.Array | None = None,
    *,
    weight: float | None = None,
    temperature: float = 1.0,
) -> jax.Array:
    """Cross-entropy of the mean output, and its distance from another network's.

        (1 - w) CE(mean_t O(t), y) + w tau^2 KL(p(teacher / tau), p(mean_t O(t) / tau))

    p is the softmax. Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a
    Neural Network", 2015.

    Args:
        outputs: readout at each step [T, B, classes].
        teacher: logits of the ANN [B, classes]; no gradient flows to them.
        labels: int [B]; None: the distance alone, which needs no labels.
        weight: w in [0, 1] of the distance; by default 1/2, and without labels 1, the
            only one there.
        temperature: tau > 0.

    Raises:
        ValueError: outputs, teacher or labels of another shape; outside of ``jit``, a
            label that is no class; a number outside its range.

    >>> import jax.numpy as jnp
    >>> outputs = jnp.array([[[2.0, 0.0]], [[0.0, 0.0]]])
    >>> print(distillation(outputs, jnp.array([[1.0, 0.0]])))
    0.0
    >>> print(distillation(outputs, jnp.array([[0.0, 1.0]]), jnp.array([0])))
    0.3876...
    """
    if weight is None:
        weight = 1.0 if labels is None else 0.5
    check_share("weight", weight)
    if labels is None and weight != 1:
        raise ValueError(
            f"weight is {weight!r}, and there are no labels, without which the "
            "distance is all of the loss; give labels, or leave weight out"
        )
    check_positive("temperature", temperature)
    shape = jnp.shape(outputs)
    if len(shape) != 3 or jnp.shape(teacher) != shape[1:]:
        raise ValueError(
            f"outputs have shape {shape} and the teacher's logits "
            f"{jnp.shape(teacher)}; allowed: [T, B, classes] and [B, classes]"
        )
    mean, entropy = wide(outputs).mean(0), jnp.zeros(())
    if labels is not None:
        check_labels(outputs, labels)
        entropy = _cross_entropy(mean, jnp.asarray(labels)).mean()
    if weight == 0:  # a term that does not count is left out: 0 times inf is NaN
        return entropy
    logits = jax.lax.stop_gradient(wide(teacher)).astype(mean.dtype)
    teacher_log_p = jax.nn.log_softmax(logits / temperature)
    log_p = jax.nn.log_softmax(mean / temperature)
    teacher_p = jnp.exp(teacher_log_p)
    # A class that the teacher masks by -inf adds nothing.
    log_ratio = jnp.where(teacher_p > 0, teacher_log_p - log_p, 0)
    divergence = temperature**2 * (teacher_p * log_ratio).sum(-1).mean()
    if weight == 1:
        return divergence
    return (1 - weight) * entropy + weight * divergence


def membrane_readout(outputs: jax.Array, *, leak: float = 0.5) -> jax.Array:
    """Potentials of output neurons that integrate and never fire, [T, B, ...], float32.

        v[t] = leak v[t - 1] + O[t],   v[-1] = 0

    The answer is ``membrane_readout(outputs)[-1]``. Other readouts need no function:
    ``outputs.mean(0)`` is the rate, ``outputs[-1]`` the last step.

    Args:
        outputs: readout at each step [T, B, ...].
        leak: 0 < leak <= 1.

    Raises:
        ValueError: a leak outside that range.

    >>> import jax.numpy as jnp
    >>> print(membrane_readout(jnp.array([[1.0], [1.0], [0.0]]))[:, 0])
    [1.   1.5  0.75]
    """
    check_leak("leak", leak)
    outputs = wide(outputs)

    def step(v, output):
        v = (leak * v + output).astype(output.dtype)
        return v, v

    return jax.lax.scan(step, jnp.zeros_like(outputs[0]), outputs)[1]


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
