"""Leaves of an SNN: which of them a gradient has, and which an optimizer moves.

An SNN is a pytree like any other to optax; its params may hold whole numbers and random
keys, which have no gradient.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from snnjax._trees import is_floating, is_kernel, name_of
from snnjax.neurons.protocol import chain
from snnjax.snn import SNN, check_snn


def differentiable(snn: SNN) -> tuple[Any, Callable[[Any], SNN]]:
    """The floating leaves of an SNN, and a function that puts the others back.

    Params may hold whole numbers and random keys, as the state of an nnx model with
    dropout does, and ``jax.grad`` refuses them. Train the first result: it goes to
    optax, to `param_labels` and through ``jax.grad``, and the loss takes
    ``merge(floats)``.

    Returns:
        ``(floats, merge)``: the SNN with None in the place of all other leaves, and
        ``merge(floats) -> SNN``.

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
    allowed = jax.tree.structure(differentiable_part)

    def merge(floats: Any) -> SNN:
        if jax.tree.structure(floats) != allowed:
            raise ValueError(
                "merge got another tree than the floating leaves of its SNN; allowed: "
                "the first result of differentiable, or one like it. A whole SNN needs "
                "no merge"
            )
        remaining = iter(jax.tree.leaves(floats))
        leaves = [next(remaining) if leaf is None else leaf for leaf in others]
        return jax.tree_util.tree_unflatten(structure, leaves)

    return differentiable_part, merge


def param_labels(snn: SNN, trained: Collection[str] | None = None) -> SNN:
    """A label for every leaf of an SNN, for ``optax.multi_transform``.

    Args:
        snn: the network.
        trained: which kinds are trained: "weights", and names of the neurons'
            parameters, such as "threshold", "bias", "initial_potential", "leak",
            "temperature", or "kernel" of recurrent ones; None: all that can be.

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
    ...            model=lif(temperature=3.0))
    >>> kinds = param_labels(snn, ["weights", "temperature"])
    >>> kinds.params, kinds.neurons["relu"].threshold
    ('weights', 'frozen')
    >>> optimizer = optax.multi_transform(
    ...     {"weights": optax.adam(1e-3), "temperature": optax.sgd(0.1),
    ...      "frozen": optax.set_to_zero()}, kinds)
    >>> state = optimizer.init(snn)
    """
    check_snn(snn)
    all_kinds = trained is None
    trained = {"weights", *_names_of_parameters(snn)} if trained is None else trained
    if isinstance(trained, str):
        raise ValueError(f"trained is {trained!r}; allowed: several, as [{trained!r}]")
    trained = set(trained)  # of an iterator, too, which can be read once
    unknown = trained - {"weights", *_names_of_parameters(snn)}
    if unknown:
        raise ValueError(
            f"trained holds {sorted(unknown)}; allowed: weights, "
            f"{', '.join(_names_of_parameters(snn))}"
        )

    def label(path, node):
        if _is_running_average(path, node) or not is_floating(node):
            return jax.tree.map(lambda _: "frozen", node)
        # A neuron's parameter is named after its field, in a model inside or outside.
        kind = "weights" if path[0].name == "params" else name_of(path[-1:])
        return kind if kind in trained else "frozen"

    labels = jax.tree_util.tree_map_with_path(label, snn, is_leaf=_is_batch_stat)
    missing = trained - set(jax.tree.leaves(labels))
    if missing and not all_kinds:
        trainable = sorted({*jax.tree.leaves(param_labels(snn))} - {"frozen"})
        raise ValueError(
            f"this SNN has no leaf {sorted(missing)} to train; allowed: "
            f"{', '.join(trainable)}. Temperature and leak come with the neuron, e.g. "
            "snnjax.init(..., model=snnjax.lif(temperature=3.0))"
        )
    return labels


def kernels(snn: SNN) -> SNN:
    """A mask for weight decay: True for each kernel, False for all other leaves.

    Kernels are the floating leaves of params that have two axes or more, and the
    recurrent weights of neurons. Biases, thresholds, leaks and temperatures are none:
    a decay would draw them to 0, whatever the loss says.

    Args:
        snn: the network, its floating leaves, or such a tree in which optax has put
            placeholders for what a rule does not train.

    >>> import jax, jax.numpy as jnp, optax
    >>> from snnjax import init, training
    >>> fn = lambda p, x: jax.nn.relu(x @ p["w"] + p["b"])
    >>> snn = init(fn, {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}, jnp.ones((1, 3)))
    >>> print(kernels(snn).params, kernels(snn).neurons["relu"].threshold)
    {'b': False, 'w': True} False
    >>> optimizer = training.optimizer(optax.adamw(1e-3, mask=kernels))
    """

    def is_decayed(path, leaf) -> bool:
        if path[0].name == "params":
            return is_kernel(leaf)
        return name_of(path[-1:]) == "kernel"

    return jax.tree_util.tree_map_with_path(is_decayed, snn)


def _names_of_parameters(snn: SNN) -> list[str]:
    """Fields of all neurons' parameters, those included that are None."""

    parts = [part for params in snn.neurons.values() for part in chain(params)]
    names = dict.fromkeys(name for part in parts for name in part._fields)
    return [name for name in names if name != "neuron"]


def check_gradients(gradients: Any, kinds: Any) -> None:
    """Raise if a leaf that is declared trainable receives no gradient at all.

    Call it once, on the gradients of the first step and outside of ``jit``: a leaf
    whose gradient is all zeros would never move, without any other sign of it.

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

    def note(path, gradient, kind):
        if kind != "frozen" and gradient.size and not jnp.any(gradient != 0):
            dead[name_of(path)] = kind

    jax.tree_util.tree_map_with_path(note, gradients, kinds)
    if not dead:
        return
    reasons = (
        "A layer whose neurons all stay far below their threshold passes none on, and "
        "what fn does not read gets none"
    )
    if "temperature" in dead.values():
        reasons += (
            "; spikes do not depend on a temperature: take its gradient from "
            "snnjax.training.alignment or snnjax.training.relaxed_gradient"
        )
    raise ValueError(
        f"no gradient at all reaches {len(dead)} of the leaves to be trained: "
        f"{', '.join(dead)}. {reasons}. What is not to be trained is labelled 'frozen'"
    )


def _is_running_average(path, node) -> bool:
    # A key of a dictionary, or a field of a NamedTuple or dataclass.
    keys = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
    return "batch_stats" in keys or _is_batch_stat(node)


def _is_batch_stat(node) -> bool:
    """Whether its class, or one above it, is nnx's: by name, without flax."""
    return any(kind.__name__ == "BatchStat" for kind in type(node).__mro__)
