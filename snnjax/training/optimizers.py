"""Descent on an SNN: optax's optimizers, kept within the ranges of neurons.

    p <- clip(p + u, low, high)

For an update u of a threshold, temperature or leak, low is p / 2 or a thousandth of its
first value, so that p stays positive, and its gradient finite, at any learning rate;
for an adaptation it is 0. For a leak high is 1. Leaves that are no real numbers, and
running averages, do not change.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snnjax._trees import is_floating, name_of
from snnjax.snn import SNN, Range, check_snn, range_of
from snnjax.training.leaves import differentiable, param_labels

Rules = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]


def within_ranges() -> optax.GradientTransformation:
    """Shorten updates that would take a neuron's parameter out of its range.

    Thresholds and temperatures are > 0, leaks in (0, 1], adaptations >= 0. One that
    must be positive at most halves in a step, and stays above 1 / 1024 of its value in
    ``init``. Put it last in an `optax.chain`.

    Returns:
        A transformation for SNNs, or for their floating leaves (`differentiable`).

    Raises:
        ValueError: in ``update``, if params are missing or are no SNN.

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

    def least(path, value) -> jax.Array:
        limits = _limits(path)
        positive = limits is not None and limits.positive
        return value / 1024 if positive else jnp.zeros((), jnp.result_type(value))

    def init(params: Any) -> Any:
        check_snn(params)
        return jax.tree_util.tree_map_with_path(least, params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise ValueError(
                "within_ranges got no params; allowed: update(gradient, state, snn)"
            )

        check_snn(params)

        def bounded_update(path, change, value, floor):
            limits = _limits(path)
            if limits is None:
                return change
            lowest = jnp.maximum(value / 2, floor) if limits.positive else floor
            target = jnp.clip(value + change, lowest, limits.highest)
            # A change that stays within is passed on without a rounding error.
            return jnp.where(target == value + change, change, target - value)

        tree = jax.tree_util.tree_map_with_path(bounded_update, updates, params, state)
        return tree, state

    return optax.GradientTransformation(init, update)


def _limits(path: Any) -> Range | None:
    """The range of a leaf; None if it is a weight, or may be any number."""
    return None if path[0].name == "params" else range_of(name_of(path))


def optimizer(rules: Rules) -> optax.GradientTransformationExtraArgs:
    """An optimizer of SNNs that keeps neurons `within_ranges`.

    Running averages of a BatchNorm are frozen (`param_labels`). The weight decay of a
    rule draws all that it trains to 0, thresholds and leaks too; `kernels` is the mask
    that leaves them out: ``optax.adamw(1e-3, mask=kernels)``.

    Args:
        rules: one of optax's optimizers for all that can be trained, weights and
            neurons; or kind -> optimizer, kinds as in `param_labels`, where all other
            kinds are frozen. They may read the loss (``value``), as
            `optax.contrib.reduce_on_plateau` does, but not evaluate it (``value_fn``).

    Returns:
        A transformation for the floating leaves of an SNN (`differentiable`). An SNN
        that has only floating leaves can be passed itself.

    Raises:
        ValueError: rules of another kind, or none; in ``init``, for an unknown kind of
            leaf, or one of which the SNN has none.

    >>> import jax, jax.numpy as jnp, optax, snnjax
    >>> snn = snnjax.init(lambda w, x: jax.nn.relu(x @ w), jnp.ones((3, 2)),
    ...                   jnp.ones((1, 3)))
    >>> both = optimizer({"weights": optax.adam(1e-3), "threshold": optax.sgd(0.1)})
    >>> ones = jax.tree.map(jnp.ones_like, snn)
    >>> updates, state = both.update(ones, both.init(snn), snn)
    >>> print(updates.neurons["relu"].threshold, updates.neurons["relu"].bias)
    -0.1 0.0
    """
    rules_of_kinds = dict(rules) if isinstance(rules, Mapping) else None
    _check_rules([rules] if rules_of_kinds is None else list(rules_of_kinds.values()))

    def labels(snn: SNN) -> SNN:
        if rules_of_kinds is not None:
            return _labels_of(snn, list(rules_of_kinds))
        kinds = param_labels(snn)
        return jax.tree.map(lambda kind: kind if kind == "frozen" else "all", kinds)

    transforms: dict[Any, Any] = {"frozen": optax.set_to_zero()}
    transforms |= {"all": rules} if rules_of_kinds is None else rules_of_kinds
    return optax.chain(optax.multi_transform(transforms, labels), within_ranges())


def _labels_of(snn: SNN, kinds: list[str]) -> SNN:
    try:
        return param_labels(snn, kinds)
    except ValueError as error:
        raise ValueError(f"the rules are for the kinds {kinds}: {error}") from None


def _check_rules(rules: list[Any]) -> None:
    """Raise unless these are optimizers, one or more."""
    for rule in rules or [{}]:
        if not (callable(getattr(rule, "init", None)) and hasattr(rule, "update")):
            raise ValueError(
                f"the rules hold {rule!r}; allowed: an optimizer of optax, e.g. "
                "optax.adam(1e-3) (called), or one or more kinds with an optimizer "
                'each, e.g. {"weights": optax.adam(1e-3)}'
            )


class Descent(NamedTuple):
    """Two pure functions, to be jitted, as optax's are.

    Attributes:
        init: snn -> state of the optimizer.
        step: (snn, state, *args) -> (snn, state, value of the loss).

    `descent` makes one:

    >>> import jax, jax.numpy as jnp, optax, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> snn = snnjax.init(fn, jnp.ones((1, 1)), jnp.ones((1, 1)))
    >>> distance = lambda snn, target: ((snn.params - target) ** 2).sum()
    >>> init, step = descent(distance, optax.sgd(0.25))
    >>> snn, state, value = jax.jit(step)(snn, init(snn), 3.0)
    >>> print(value, snn.params)  # the value before the step
    4.0 [[2.]]
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
        ValueError: as `optimizer`; from ``step``, a loss whose value does not fit
            has_aux, or is no real number.

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
    transformation = optimizer(rules)

    def init(snn: SNN) -> optax.OptState:
        return transformation.init(differentiable(snn)[0])

    def step(snn: SNN, state: optax.OptState, *args: chex.ArrayTree):
        floats, merge = differentiable(snn)

        def loss_of(leaves: Any) -> Any:
            value = loss(merge(leaves), *args)
            _check_value(value, has_aux)
            return value

        value, gradient = jax.value_and_grad(loss_of, has_aux=has_aux)(floats)
        number = value[0] if has_aux else value
        updates, state = transformation.update(gradient, state, floats, value=number)
        return merge(optax.apply_updates(floats, updates)), state, value

    return Descent(init, step)


def _check_value(value: Any, has_aux: bool) -> None:
    """Raise unless a loss gave a real number, with has_aux the first of a pair."""
    pair = isinstance(value, tuple) and len(value) == 2
    if pair != has_aux:
        raise ValueError(
            f"the loss returns {'a pair' if pair else 'no pair'}; allowed: "
            "a number, or with has_aux=True a pair (number, aux)"
        )
    number: Any = value[0] if has_aux else value
    if number is None or not jax.tree_util.all_leaves([number]):
        kind = type(number).__name__
    elif jnp.shape(number) != () or not is_floating(number):
        kind = jax.typeof(number)
    else:
        return
    raise ValueError(
        f"the loss is no real number: {kind}; allowed: one, such as the mean over the "
        "examples, and others beside it by has_aux=True"
    )
