"""Leaves of an SNN: which have a gradient, and which an optimizer trains.

For optax, an SNN is a pytree like any other, if all of its leaves are floating.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from snnjax._trees import is_floating, is_kernel, name_of, paths_of
from snnjax.snn import FROZEN, SNN, WEIGHTS, check_snn


def differentiable(snn: SNN) -> tuple[Any, Callable[[Any], SNN]]:
    """The leaves of an SNN that have a gradient, and the way back to an SNN.

    Params may hold integers and random keys, as the state of an nnx model with dropout
    does, and ``jax.grad`` refuses them.

    Returns:
        ``floats``: the SNN as a pytree with None in place of all leaves that are not
        floating; and ``merge``: such a pytree -> an SNN, whose other leaves are those
        of this one. A loss of the floats calls ``merge(floats)``.
    """
    check_snn(snn)

    def only_floating(leaf: Any) -> Any:
        return leaf if is_floating(leaf) else None

    def merged_leaf(floating: Any, leaf: Any) -> Any:
        return leaf if floating is None else floating

    def is_none(leaf: Any) -> bool:
        return leaf is None

    def merge(floats: Any) -> SNN:
        # JAX takes None for a tree without leaves, unless it is told otherwise.
        return jax.tree.map(merged_leaf, floats, snn, is_leaf=is_none)

    return jax.tree.map(only_floating, snn), merge


def named_params(params: Any) -> dict[str, Any]:
    """The leaves of params by their paths, named as in ``Site.parameters``."""
    paths = paths_of(params)
    leaves = jax.tree.leaves(params)
    return dict(zip(paths, leaves, strict=True))


def with_params(snn: SNN, new: Mapping[str, Any]) -> SNN:
    """The SNN with other leaves of params at these paths, see `named_params`."""
    leaves = {**named_params(snn.params), **new}  # in the order of the params
    structure = jax.tree.structure(snn.params)
    params = jax.tree.unflatten(structure, leaves.values())
    return dataclasses.replace(snn, params=params)


def param_labels(snn: SNN, trained: Collection[str] | None = None) -> SNN:
    """A label for every leaf of an SNN, for ``optax.multi_transform``.

    A floating leaf of params has the label "weights". A parameter of a neuron has its
    own name as the label, such as "threshold", "bias", "initial_potential", "leak",
    "temperature", or the "kernel" of recurrent neurons. Leaves that are not trained are
    "frozen": integers, random keys and the running averages of a flax BatchNorm
    (linen's "batch_stats", nnx's ``BatchStat``). Freeze those of other libraries
    yourself: an optimizer could make a variance negative.

    Args:
        snn: the network.
        trained: the labels to train; leaves with other labels are "frozen" too. None
            trains all.

    Returns:
        A pytree like ``snn``, with a label in place of each leaf.

    Raises:
        ValueError: a label that no leaf of the SNN has.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> snn = snnjax.init(lambda w, x: jax.nn.relu(x @ w), jnp.ones((3, 2)),
    ...                   jnp.ones((1, 3)), model=snnjax.lif(temperature=3.0))
    >>> labels = param_labels(snn, ["weights", "temperature"])
    >>> labels.params, labels.neurons["relu"].threshold
    ('weights', 'frozen')
    """
    check_snn(snn)
    if isinstance(trained, str):
        raise ValueError(f"trained is {trained!r}; allowed: several, as [{trained!r}]")

    def label(path, node):
        if _is_running_average(path, node) or not is_floating(node):
            # A ``BatchStat`` is a node with leaves, and each leaf has a label.
            return jax.tree.map(lambda _: FROZEN, node)
        field = path[0].name  # of the SNN: "params" or "neurons"
        if field == "params":
            return WEIGHTS
        # The name of a neuron's parameter is its field, also in a model inside another.
        return name_of(path[-1:])

    labels = jax.tree_util.tree_map_with_path(label, snn, is_leaf=_is_batch_stat)
    if trained is None:
        return labels
    trained_labels = set(trained)
    trainable = dict.fromkeys(jax.tree.leaves(labels))  # each label once, in order
    trainable.pop(FROZEN, None)
    missing = sorted(trained_labels - trainable.keys())
    if missing:
        raise ValueError(
            f"this SNN has no leaf {missing} to train; allowed: "
            f"{', '.join(trainable)}. Temperature and leak come with the neuron, "
            "e.g. snnjax.init(..., model=snnjax.lif(temperature=3.0))"
        )

    def frozen_unless_trained(label: str) -> str:
        return label if label in trained_labels else FROZEN

    return jax.tree.map(frozen_unless_trained, labels)


def kernels(snn: SNN) -> SNN:
    """A mask for weight decay: True for each kernel, False for all other leaves.

    Kernels are the floating leaves of params with two axes or more, and the recurrent
    weights of neurons. Weight decay would pull biases, thresholds, leaks and
    temperatures to 0, whatever the loss says.

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
    """
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    leaf_labels = jax.tree.leaves(labels)
    dead = {}  # path -> label, of the trained leaves without a gradient
    for (path, gradient), label in zip(leaves, leaf_labels, strict=True):
        if label == FROZEN or gradient.size == 0:
            continue
        if not jnp.any(gradient != 0):  # NaN is no zero
            dead[name_of(path)] = label
    if not dead:
        return
    reasons = (
        "A layer whose neurons all stay far below their threshold passes no gradient "
        "on, and a parameter that fn does not read gets none"
    )
    if "temperature" in dead.values():
        reasons += (
            "; spikes do not depend on a temperature, so no loss has a gradient for it"
        )
    raise ValueError(
        f"no gradient at all reaches {len(dead)} of the leaves to be trained: "
        f"{', '.join(dead)}. {reasons}. Label what is not to be trained 'frozen'"
    )


def _is_running_average(path, node) -> bool:
    """Whether a node lies in linen's "batch_stats", or is a ``BatchStat`` of nnx."""
    keys = []
    for entry in path:
        # A field of a NamedTuple or dataclass has a name, an item of a dict a key.
        field_name = getattr(entry, "name", None)
        keys.append(getattr(entry, "key", field_name))
    return "batch_stats" in keys or _is_batch_stat(node)


def _is_batch_stat(node) -> bool:
    """Whether a node's class derives from ``BatchStat`` of nnx.

    The class is known by its name, since flax need not be installed.
    """
    class_names = [parent.__name__ for parent in type(node).__mro__]
    return "BatchStat" in class_names
