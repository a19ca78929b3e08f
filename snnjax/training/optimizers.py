"""Descent on an SNN: optax's optimizers, projected onto the ranges of neurons.

    p <- clip(p + u, low, high)

Thresholds, temperatures and leaks stay > 0, leaks <= 1, adaptations >= 0. If a
parameter p must be positive, low is p / 2 or `SMALLEST`, whichever is larger. So p at
most halves in a step, and gradients in 1 / p stay finite. A threshold that halves again
and again has too large a rate: give it a rule of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from snnjax._ranges import Range
from snnjax._text import Named, name_of_value
from snnjax._trees import name_of
from snnjax.snn import FROZEN, SNN, check_snn, ranges_in
from snnjax.training.leaves import differentiable, param_labels

Rules = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]

SMALLEST = 1e-6  # no step makes a positive parameter smaller than this


def optimizer(rules: Rules) -> optax.GradientTransformationExtraArgs:
    """An optax optimizer for SNNs: trains weights and neurons, keeps neurons in range.

    Running averages of a BatchNorm are frozen (`param_labels`). Weight decay pulls all
    trained leaves to 0, also thresholds and leaks. Restrict it to kernels by
    ``optax.adamw(1e-3, mask=kernels)``.

    Args:
        rules: an optax optimizer for all leaves that can be trained, or a mapping from
            labels of `param_labels` to optimizers. In a mapping, leaves with other
            labels are frozen. The optimizers may read the loss (``value``), as
            `optax.contrib.reduce_on_plateau` does, but not evaluate it (``value_fn``).

    Returns:
        A transformation for an SNN whose leaves are floating; `descent` takes others.

    Raises:
        ValueError: rules are missing or are not optimizers. ``init`` raises it for a
            label that no leaf of the SNN has, ``update`` for missing params.

    >>> import jax, jax.numpy as jnp, optax, snnjax
    >>> snn = snnjax.init(lambda w, x: jax.nn.relu(x @ w), jnp.ones((3, 2)),
    ...                   jnp.ones((1, 3)))
    >>> both = optimizer({"weights": optax.adam(1e-3), "threshold": optax.sgd(0.1)})
    >>> ones = jax.tree.map(jnp.ones_like, snn)
    >>> updates, state = both.update(ones, both.init(snn), snn)
    >>> print(updates.neurons["relu"].threshold, updates.neurons["relu"].bias)
    -0.1 0.0
    """
    if isinstance(rules, Mapping):
        rules_by_label = dict(rules)
        labels = functools.partial(param_labels, trained=list(rules_by_label))
    else:
        rules_by_label = {"all": rules}
        labels = _all_or_frozen
    _check_rules(rules_by_label)
    transforms: dict[Any, Any] = {FROZEN: optax.set_to_zero(), **rules_by_label}
    return optax.chain(
        optax.multi_transform(transforms, labels),
        optax.stateless(_within_ranges),
    )


def _check_rules(rules_by_label: dict[Any, Any]) -> None:
    """Raise unless there are rules, and all of them are optimizers."""
    rules = list(rules_by_label.values())
    if not rules:
        rules = [{}]  # which the error shows
    for rule in rules:
        # A function of optax that was not called has neither.
        has_init = callable(getattr(rule, "init", None))
        has_update = hasattr(rule, "update")
        if not (has_init and has_update):
            raise ValueError(
                f"the rules hold {rule!r}; allowed: an optimizer of optax, e.g. "
                "optax.adam(1e-3) (called), or a mapping from labels to optimizers, "
                'e.g. {"weights": optax.adam(1e-3)}'
            )


def _all_or_frozen(snn: SNN) -> SNN:
    """Labels for a single optimizer: "all" for what can be trained."""

    def label_of_all(label: str) -> str:
        return FROZEN if label == FROZEN else "all"

    return jax.tree.map(label_of_all, param_labels(snn))


def _within_ranges(updates: Any, snn: Any) -> Any:
    """The updates, shortened where they would take a parameter out of its range.

    Args:
        updates: an SNN of numbers that are added to those of ``snn``.
        snn: the network.
    """
    if snn is None:
        raise ValueError("update got no params; allowed: update(gradient, state, snn)")
    check_snn(snn)

    ranges = {}  # name of a site -> path of a parameter -> its range
    for name, params in snn.neurons.items():
        ranges[name] = ranges_in(params)

    def within_range(path, update, value):
        field = path[0].name  # of the SNN: "params" or "neurons"
        if field == "params":  # weights have no range
            return update
        # In the neurons, a path goes on with the site and the field of its parameters.
        _, site_entry, *field_path = path
        limits = ranges[site_entry.key].get(name_of(field_path))
        if limits is None:
            return update
        return _shortened(update, value, limits)

    return jax.tree_util.tree_map_with_path(within_range, updates, snn)


def _shortened(update: jax.Array, value: jax.Array, limits: Range) -> jax.Array:
    """The update of a parameter, such that value + update is within the limits.

    ``update`` and ``value`` are arrays of the parameter's shape.
    """
    low = jnp.full_like(value, limits.least)
    high = jnp.full_like(value, limits.most)
    # An end that is excluded is approached by half of the way at most, and up to
    # `SMALLEST`. A value that is closer already may stay where it is: without the
    # minimum here, and the maximum below, an update of 0 would move it.
    if limits.open_least:
        halfway = (value + low) / 2
        halfway = jnp.maximum(halfway, low + SMALLEST)
        low = jnp.minimum(value, halfway)
    if limits.open_most:
        halfway = (value + high) / 2
        halfway = jnp.minimum(halfway, high - SMALLEST)
        high = jnp.maximum(value, halfway)
    updated = value + update
    target = jnp.clip(updated, low, high)
    # An update that stays within the range is passed on without rounding.
    return jnp.where(target == updated, update, target - value)


def descent(
    loss: Callable[..., Any], rules: Rules, *, has_aux: bool = False
) -> tuple[Callable[[SNN], optax.OptState], Callable[..., tuple[SNN, Any, Any]]]:
    """Gradient descent on a loss of an SNN, by `optimizer`.

    Integers and random keys among the params have no gradient and do not change.

    Args:
        loss: (snn, *args) -> a number, or (a number, aux).
        rules: as for `optimizer`.
        has_aux: whether the loss returns a pair; ``step`` then returns the pair as the
            value of the loss.

    Returns:
        Two pure functions, which may be jitted: ``init``, snn -> state of the rules,
        and ``step``, (snn, state, *args) -> (snn, state, value of the loss).

    Raises:
        ValueError: as `optimizer`.
        FloatingPointError: from ``step`` outside of ``jit``: the loss is not finite.
            Inside of it the value says so, and the weights are lost.

    >>> import jax, jax.numpy as jnp, optax, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["w"]) + p["calls"]
    >>> params, x = {"w": jnp.ones((3, 2)), "calls": jnp.array(0)}, jnp.ones((4, 3))
    >>> snn = snnjax.convert(fn, params, jnp.ones((16, 3)), steps=2)
    >>> simulate = snnjax.spiking(fn, steps=2)
    >>> loss = lambda snn, x: jnp.square(simulate(snn, x) - 1.0).mean()
    >>> init, step = descent(loss, optax.adam(0.3))
    >>> state, step = init(snn), jax.jit(step)
    >>> for _ in range(40):
    ...     snn, state, value = step(snn, state, x)
    >>> bool(value < 0.1)
    True
    """
    transformation = optimizer(rules)

    def init(snn: SNN) -> optax.OptState:
        floats, _ = differentiable(snn)
        return transformation.init(floats)

    def step(snn: SNN, state: optax.OptState, *args: chex.ArrayTree):
        floats, merge = differentiable(snn)

        def loss_of_floats(floats: Any) -> Any:
            return loss(merge(floats), *args)

        value_and_gradient = jax.value_and_grad(loss_of_floats, has_aux=has_aux)
        value, gradient = value_and_gradient(floats)
        number = value[0] if has_aux else value
        if not isinstance(number, Tracer) and not jnp.isfinite(number):
            raise FloatingPointError(
                f"the loss is {number}; allowed: a finite number. Go on with the SNN "
                "before this step, at a lower rate; look for NaN in x, or wrong labels"
            )
        # Some optimizers read the value of the loss, and others ignore it.
        updates, state = transformation.update(gradient, state, floats, value=number)
        updated_floats = optax.apply_updates(floats, updates)
        return merge(updated_floats), state, value

    text = f"descent({name_of_value(loss)})"
    return Named(init, f"{text}.init"), Named(step, f"{text}.step")
