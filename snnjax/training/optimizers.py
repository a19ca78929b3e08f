"""Descent on an SNN: optax's optimizers, kept within the ranges of neurons.

    p <- clip(p + u, p / 2, 1)      an update u of a leak; of others without the 1

so that a threshold or temperature stays positive whatever the learning rate. Leaves
that are no real numbers, and running averages, stay as they are.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snnjax._trees import name_of
from snnjax.snn import SNN, range_of
from snnjax.training.leaves import differentiable, kinds_of, param_labels

Rules = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]


def within_ranges() -> optax.GradientTransformation:
    """Shorten updates that would take a neuron's parameter out of its range.

    Thresholds and temperatures are > 0, leaks in (0, 1], adaptations >= 0; one that
    must be positive at most halves in a step. The last part of an `optax.chain`.

    Raises:
        ValueError: ``update`` was called without the params.

    >>> import jax, jax.numpy as jnp, optax, snnjax
    >>> snn = snnjax.init(lambda w, x: jax.nn.relu(x @ w), jnp.ones((3, 2)),
    ...                   jnp.ones((1, 3)))
    >>> optimizer = optax.chain(optax.sgd(1.0), within_ranges())
    >>> steep = jax.tree.map(lambda leaf: 9 * jnp.ones_like(leaf), snn)
    >>> updates, _ = optimizer.update(steep, optimizer.init(snn), snn)
    >>> params = optax.apply_updates(snn, updates).neurons["relu"]
    >>> print(params.threshold, params.leak, params.bias)
    0.5 0.25 -9.0
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise ValueError(
                "within_ranges got no params; allowed: update(gradient, state, snn)"
            )

        def shortened(path, change, value):
            limits = None if path[0].name == "params" else range_of(name_of(path))
            if limits is None:
                return change
            lowest = value / 2 if limits.positive else jnp.zeros_like(value)
            moved = value + change
            within = jnp.clip(moved, lowest, limits.highest)
            return jnp.where(within == moved, change, within - value)

        tree = jax.tree_util.tree_map_with_path(shortened, updates, params)
        return tree, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def optimizer(rules: Rules) -> optax.GradientTransformation:
    """An optimizer of SNNs that keeps neurons `within_ranges`.

    Running averages of a BatchNorm are frozen (`param_labels`).

    Args:
        rules: one of optax's optimizers for all that can be trained; or kind -> its
            own, kinds as in `param_labels`, and what is not among them is frozen.

    Returns:
        For the floating leaves of an SNN, as `differentiable` gives them, or for an
        SNN that has no others.

    Raises:
        ValueError: in ``init``, for an unknown kind, or one of which the SNN has none.

    >>> import jax, jax.numpy as jnp, optax, snnjax
    >>> snn = snnjax.init(lambda w, x: jax.nn.relu(x @ w), jnp.ones((3, 2)),
    ...                   jnp.ones((1, 3)))
    >>> both = optimizer({"weights": optax.adam(1e-3), "threshold": optax.sgd(0.1)})
    >>> ones = jax.tree.map(jnp.ones_like, snn)
    >>> updates, state = both.update(ones, both.init(snn), snn)
    >>> print(updates.neurons["relu"].threshold, updates.neurons["relu"].bias)
    -0.1 0.0
    """
    of_kind = dict(rules) if isinstance(rules, Mapping) else None

    def labels(snn: SNN) -> SNN:
        if of_kind is not None:
            return param_labels(snn, list(of_kind))
        kinds = param_labels(snn, kinds_of(snn))
        return jax.tree.map(lambda kind: kind if kind == "frozen" else "trained", kinds)

    named: dict[Any, Any] = {"trained": rules} if of_kind is None else of_kind
    transforms: dict[Any, Any] = named | {"frozen": optax.set_to_zero()}
    return optax.chain(optax.multi_transform(transforms, labels), within_ranges())


class Descent(NamedTuple):
    """Two pure functions, to be jitted, as optax's are.

    Attributes:
        init: snn -> state of the optimizer.
        step: (snn, state, *args) -> (snn, state, value of the loss).
    """

    init: Callable[[SNN], optax.OptState]
    step: Callable[..., tuple[SNN, optax.OptState, Any]]


def descent(
    loss: Callable[..., Any], rules: Rules, *, has_aux: bool = False
) -> Descent:
    """Gradient descent on a loss of an SNN, by `optimizer`.

    An SNN that holds whole numbers or random keys is trained like any other: they have
    no gradient and stay as they are.

    Args:
        loss: (snn, *args) -> a number, or (a number, aux).
        rules: as for `optimizer`.
        has_aux: the value that ``step`` returns is then the pair.

    Raises:
        ValueError: as `optimizer`.

    >>> import jax, jax.numpy as jnp, optax, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["w"]) + p["calls"]
    >>> params, x = {"w": jnp.ones((3, 2)), "calls": jnp.array(0)}, jnp.ones((4, 3))
    >>> snn = snnjax.convert(fn, params, jnp.ones((16, 3)), steps=2)
    >>> simulate = snnjax.spiking(fn, steps=2)
    >>> loss = lambda snn, x: jnp.square(simulate(snn, x) - 1.0).mean()
    >>> init, step = descent(loss, optax.adam(0.1))
    >>> state, step = init(snn), jax.jit(step)
    >>> for _ in range(20):
    ...     snn, state, value = step(snn, state, x)
    >>> bool(value < 0.1)
    True
    """
    optimizes = optimizer(rules)

    def init(snn: SNN) -> optax.OptState:
        return optimizes.init(_as_params(differentiable(snn)[0]))

    def step(snn: SNN, state: optax.OptState, *args: chex.ArrayTree):
        floats, merge = differentiable(snn)
        of_floats = lambda floats: loss(merge(floats), *args)  # noqa: E731
        value, gradient = jax.value_and_grad(of_floats, has_aux=has_aux)(floats)
        updates, state = optimizes.update(gradient, state, _as_params(floats))
        moved: Any = optax.apply_updates(_as_params(floats), updates)
        return merge(moved), state, value

    return Descent(init, step)


def _as_params(floats: SNN) -> Any:
    """An SNN is a pytree to optax, whose types know no class of others."""
    return floats
