"""Direct training: losses and readouts of an output stream, what trains, and a guard.

    mean cross-entropy   CE(mean_t O(t), y)
    TET                  (1 - c) mean_t CE(O(t), y) + c mean_t |O(t) - target|^2

`snnjax.spiking` gives the outputs O, [T, B, classes]; an optimizer of optax sees the
`SNN` as any other pytree. Source of TET: Deng, Li, Zhang and Gu, "Temporal Efficient
Training of Spiking Neural Network via Gradient Re-weighting", ICLR 2022.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from snnjax._checks import check_labels, is_number
from snnjax._trees import is_floating, name_of
from snnjax.neurons import NeuronParams
from snnjax.simulation.snn import SNN, check_snn

KINDS = ("weights", "readout_correction", *NeuronParams._fields)


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
    labels = _classes(outputs, labels)
    return _cross_entropy(_wide(outputs).mean(0), labels).mean()


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
        target: that all outputs are drawn to, by habit the threshold.

    Raises:
        ValueError: as `mean_cross_entropy`, or c outside [0, 1].

    >>> import jax.numpy as jnp
    >>> outputs = jnp.array([[[2.0, 0.0]], [[0.0, 2.0]]])
    >>> print(tet(outputs, jnp.array([0]), regularization=0.0))
    1.1269...
    """
    labels = _classes(outputs, labels)
    if not is_number(regularization) or not 0 <= regularization <= 1:
        raise ValueError(f"regularization is {regularization!r}; allowed: 0 to 1")
    outputs = _wide(outputs)
    every = jnp.broadcast_to(labels, outputs.shape[:2])
    distance = ((outputs - target) ** 2).mean()
    entropy = _cross_entropy(outputs, every).mean()
    return (1 - regularization) * entropy + regularization * distance


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
    if not is_number(leak) or not 0 < leak <= 1:
        raise ValueError(f"leak is {leak!r}; allowed: 0 < leak <= 1")

    outputs = _wide(outputs)

    def step(v, output):
        v = (leak * v + output).astype(output.dtype)
        return v, v

    return jax.lax.scan(step, jnp.zeros_like(outputs[0]), outputs)[1]


def param_labels(snn: SNN, trained: Collection[str]) -> SNN:
    """A label for every leaf of an SNN, for ``optax.multi_transform``.

    Args:
        snn: the network.
        trained: which kinds are trained, of "weights", "threshold", "bias",
            "initial_potential", "leak", "temperature" and "readout_correction".

    Returns:
        A pytree like ``snn``: each leaf's kind where it is trained, else "frozen".
        The running averages of a flax BatchNorm (linen's "batch_stats", nnx's
        ``BatchStat``) are always frozen: they are measured, and a variance that an
        optimizer moved could turn negative. Freeze those of other libraries yourself.
        Whole numbers and random keys are frozen too.

    Raises:
        ValueError: an unknown kind, or one of which the SNN has no leaf.

    >>> import jax, jax.numpy as jnp, optax
    >>> from snnjax import init, lif
    >>> snn = init(lambda w, x: jax.nn.relu(x @ w), jnp.ones((3, 2)), jnp.ones((1, 3)),
    ...            neuron=lif(temperature=3.0))
    >>> kinds = param_labels(snn, ["weights", "temperature"])
    >>> kinds.params, kinds.neurons["relu"].threshold
    ('weights', 'frozen')
    >>> optimizer = optax.multi_transform(
    ...     {"weights": optax.adam(1e-3), "temperature": optax.sgd(0.1),
    ...      "frozen": optax.set_to_zero()}, kinds)
    >>> state = optimizer.init(snn)
    """
    check_snn(snn)
    if isinstance(trained, str):
        raise ValueError(f"trained is {trained!r}; allowed: several, as [{trained!r}]")
    unknown = set(trained) - set(KINDS)
    if unknown:
        raise ValueError(
            f"trained holds {sorted(unknown)}; allowed: {', '.join(KINDS)}"
        )

    def label(path, node):
        if _is_running_average(path, node) or not is_floating(node):
            return jax.tree.map(lambda _: "frozen", node)
        part = path[0].name
        kind = path[2].name if part == "neurons" else part  # neurons, site, field
        kind = "weights" if kind == "params" else kind
        return kind if kind in trained else "frozen"

    found = jax.tree_util.tree_map_with_path(label, snn, is_leaf=_is_batch_stat)
    missing = set(trained) - set(jax.tree.leaves(found))
    if missing:
        raise ValueError(
            f"this SNN has no leaf {sorted(missing)} to train. Temperature and leak "
            "come with the neuron, e.g. snnjax.init(..., neuron=snnjax.lif("
            "temperature=3.0)); a readout correction with a recipe that has one"
        )
    return found


def check_gradients(gradients: Any, kinds: Any) -> None:
    """Raise if a leaf that is declared trainable receives no gradient at all.

    Call it once, on the gradients of the first step and outside of ``jit``: a leaf
    whose gradient is all zeros would never move, and nothing else would tell.

    Args:
        gradients: pytree of arrays, e.g. like an `SNN`.
        kinds: the same pytree with a label for each leaf, from `param_labels`; those
            that are "frozen" may be zero.

    Raises:
        ValueError: with the paths of the leaves and why that may be.

    >>> import jax.numpy as jnp
    >>> check_gradients({"w": jnp.ones(2), "b": jnp.zeros(2)},
    ...                 {"w": "weights", "b": "frozen"})
    """

    dead: dict[str, str] = {}

    def look(path, gradient, kind):
        if kind != "frozen" and gradient.size and not jnp.any(gradient != 0):
            dead[name_of(path)] = kind

    jax.tree_util.tree_map_with_path(look, gradients, kinds)
    if not dead:
        return
    reasons = (
        "A layer whose neurons all stay far below their threshold passes none on, and "
        "what fn does not read gets none"
    )
    if "temperature" in dead.values():
        reasons += (
            "; spikes do not depend on a temperature: take its gradient from "
            "snnjax.alignment or snnjax.relaxed_gradient"
        )
    raise ValueError(
        f"no gradient at all reaches {len(dead)} of the leaves to be trained: "
        f"{', '.join(dead)}. {reasons}. What is not to be trained is labelled 'frozen'"
    )


def _classes(outputs, labels) -> jax.Array:
    """The labels; where their numbers are known, each must be a class."""
    check_labels(outputs, labels)
    labels = jnp.asarray(labels)
    if isinstance(labels, Tracer) or not labels.size or not labels.is_fully_addressable:
        return labels
    classes, found = np.shape(outputs)[-1], np.asarray(labels)
    if found.min() < 0 or found.max() >= classes:
        raise ValueError(
            f"labels range from {found.min()} to {found.max()}; allowed: 0 to "
            f"{classes - 1}, the classes of the outputs"
        )
    return labels


def _wide(outputs: jax.Array) -> jax.Array:
    """In float32 or wider: T numbers of bfloat16 would not add up."""
    outputs = jnp.asarray(outputs)
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def _is_running_average(path, node) -> bool:
    keys = [getattr(entry, "key", None) for entry in path]
    return "batch_stats" in keys or _is_batch_stat(node)


def _is_batch_stat(node) -> bool:
    """Whether this is nnx's, told by its name: flax is not needed to use snnjax."""
    return type(node).__name__ == "BatchStat"


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
