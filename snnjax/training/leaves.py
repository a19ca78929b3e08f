"""Leaves of an SNN: which have a gradient, and which an optimizer trains.

For optax, an SNN is a pytree like any other. But its params may hold integers and
random keys, which have no gradient.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from snnjax._trees import is_floating, is_kernel, name_of
from snnjax.snn import FROZEN, SNN, WEIGHTS, check_snn


def differentiable(snn: SNN) -> tuple[Any, Callable[[Any], SNN]]:
    """The floating leaves of an SNN, and a function that puts the others back.

    Params may hold integers and random keys, as the state of an nnx model with dropout
    does, and ``jax.grad`` refuses them. So differentiate in ``floats``, pass it to
    optax and to `param_labels`, and let the loss call ``merge(floats)``.

    Returns:
        ``(floats, merge)``: the SNN with None in place of all other leaves, and a
        function ``merge(floats) -> SNN``.

    Raises:
        ValueError: from ``merge``, a tree of another structure than ``floats``.

    >>> import jax, jax.numpy as jnp
    >>> from snnjax import init, spiking
    >>> fn = lambda p, x: jax.nn.relu(x @ p["w"]) + p["calls"]
    >>> params = {"w": jnp.ones((3, 2)), "calls": jnp.array(0)}
    >>> snn, x = init(fn, params, jnp.ones((1, 3))), jnp.ones((1, 3))
    >>> floats, merge = differentiable(snn)
    >>> loss = lambda floats: spiking(fn, steps=2)(merge(floats), x).sum()
    >>> jax.grad(loss)(floats).params["w"].shape
    (3, 2)
    """
    check_snn(snn)
    leaves, structure = jax.tree_util.tree_flatten(snn)
    others = [None if is_floating(leaf) else leaf for leaf in leaves]
    floats = [leaf if is_floating(leaf) else None for leaf in leaves]

    differentiable_part = jax.tree_util.tree_unflatten(structure, floats)
    floats_structure = jax.tree.structure(differentiable_part)

    def merge(floats: Any) -> SNN:
        if jax.tree.structure(floats) != floats_structure:
            raise ValueError(
                "merge got a tree of another structure than the floating leaves of its "
                "SNN; allowed: the first result of differentiable, or a tree like it. "
                "A whole SNN needs no merge"
            )
        remaining = iter(jax.tree.leaves(floats))
        leaves = [next(remaining) if leaf is None else leaf for leaf in others]
        return jax.tree_util.tree_unflatten(structure, leaves)

    return differentiable_part, merge


def param_labels(snn: SNN, trained: Collection[str] | None = None) -> SNN:
    """A label for every leaf of an SNN, for ``optax.multi_transform``.

    A floating leaf of params has the label "weights". A parameter of a neuron has its
    own name as the label, such as "threshold", "bias", "initial_potential", "leak",
    "temperature", or the "kernel" of recurrent neurons. Leaves that are not trained are
    "frozen": integers, random keys and the running averages of a flax BatchNorm
    (linen's "batch_stats", nnx's ``BatchStat``). Freeze the running averages of other
    libraries
    yourself: an optimizer could make a variance negative.

    Args:
        snn: the network.
        trained: the labels to train; leaves with other labels are "frozen" too. None
            trains all.

    Returns:
        A pytree like ``snn``, with a label in place of each leaf.

    Raises:
        ValueError: a label that no leaf of the SNN has.

    >>> import jax, jax.numpy as jnp, optax
    >>> from snnjax import init, lif
    >>> snn = init(lambda w, x: jax.nn.relu(x @ w), jnp.ones((3, 2)), jnp.ones((1, 3)),
    ...            model=lif(temperature=3.0))
    >>> labels = param_labels(snn, ["weights", "temperature"])
    >>> labels.params, labels.neurons["relu"].threshold
    ('weights', 'frozen')
    >>> optimizer = optax.multi_transform(
    ...     {"weights": optax.adam(1e-3), "temperature": optax.sgd(0.1),
    ...      "frozen": optax.set_to_zero()}, labels)
    >>> state = optimizer.init(snn)
    """
    check_snn(snn)
    if isinstance(trained, str):
        raise ValueError(f"trained is {trained!r}; allowed: several, as [{trained!r}]")

    def label(path, node):
        if _is_running_average(path, node) or not is_floating(node):
            return jax.tree.map(lambda _: FROZEN, node)
        # The name of a neuron's parameter is its field, also in a model inside another.
        return WEIGHTS if path[0].name == "params" else name_of(path[-1:])

    labels = jax.tree_util.tree_map_with_path(label, snn, is_leaf=_is_batch_stat)
    if trained is None:
        return labels
    trained = set(trained)
    own = [x for x in dict.fromkeys(jax.tree.leaves(labels)) if x != FROZEN]
    if missing := sorted(trained - set(own)):
        raise ValueError(
            f"this SNN has no leaf {missing} to train; allowed: "
            f"{', '.join(own)}. Temperature and leak come with the neuron, "
            "e.g. snnjax.init(..., model=snnjax.lif(temperature=3.0))"
        )
    return jax.tree.map(lambda x: x if x in trained else FROZEN, labels)


def kernels(snn: SNN) -> SNN:
    """A mask for weight decay: True for each kernel, False for all other leaves.

    Kernels are the floating leaves of params with two axes or more, and the recurrent
    weights of neurons. Weight decay would pull biases, thresholds, leaks and
    temperatures to 0, whatever the loss says.

    Args:
        snn: the network or its floating leaves; optax may have masked some of them.

    >>> import jax, jax.numpy as jnp, optax
    >>> from snnjax import init, training
    >>> fn = lambda p, x: jax.nn.relu(x @ p["w"] + p["b"])
    >>> snn = init(fn, {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}, jnp.ones((1, 3)))
    >>> print(kernels(snn).params, kernels(snn).neurons["w/relu"].threshold)
    {'b': False, 'w': True} False
    >>> optimizer = training.optimizer(optax.adamw(1e-3, mask=kernels))
    """

    def is_decayed(path, leaf) -> bool:
        if path[0].name == "params":
            return is_kernel(leaf)
        return name_of(path[-1:]) == "kernel"

    return jax.tree_util.tree_map_with_path(is_decayed, snn)


def check_gradients(gradients: Any, labels: Any) -> None:
    """Raise if a trained leaf receives no gradient at all.

    Call it once, on the gradients of the first step and outside of ``jit``: a leaf
    whose gradient is all zeros would silently keep its value.

    Args:
        gradients: pytree of arrays, e.g. like an `SNN`.
        labels: the same pytree with a label for each leaf, from `param_labels`; the
            gradient of a "frozen" leaf may be zero.

    Raises:
        ValueError: with the paths of the leaves and the likely reasons.

    >>> import jax.numpy as jnp
    >>> check_gradients({"w": jnp.ones(2), "b": jnp.zeros(2)},
    ...                 {"w": "weights", "b": "frozen"})
    """
    dead: dict[str, str] = {}

    def note(path, gradient, label):
        if label != FROZEN and gradient.size and not jnp.any(gradient != 0):
            dead[name_of(path)] = label

    jax.tree_util.tree_map_with_path(note, gradients, labels)
    if not dead:
        return
    reasons = (
        "A layer whose neurons all stay far below their threshold passes no gradient "
        "on, and a parameter that fn does not read gets none"
    )
    if "temperature" in dead.values():
        reasons += (
            "; spikes do not depend on a temperature: set it by "
            "snnjax.training.choose_temperature"
        )
    raise ValueError(
        f"no gradient at all reaches {len(dead)} of the leaves to be trained: "
        f"{', '.join(dead)}. {reasons}. Label what is not to be trained 'frozen'"
    )


def _is_running_average(path, node) -> bool:
    # A key of a dictionary, or a field of a NamedTuple or dataclass.
    keys = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
    return "batch_stats" in keys or _is_batch_stat(node)


def _is_batch_stat(node) -> bool:
    """Whether its class derives from nnx's, by name: flax need not be installed."""
    return any(kind.__name__ == "BatchStat" for kind in type(node).__mro__)
