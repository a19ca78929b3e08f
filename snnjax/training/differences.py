"""Finite differences of a loss in the weights, which a surrogate gradient approximates.

    g_i = (L(w + h e_i) - L(w - h e_i)) / 2h

Source: Li, Guo, Zhang, Deng, Hai and Gu, "Differentiable Spike", NeurIPS 2021.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snnjax._arrays import wide
from snnjax._checks import check_count, check_positive
from snnjax._trees import is_floating, paths_of
from snnjax.snn import SNN, check_snn

Loss = Callable[[SNN], jax.Array]


def finite_differences(
    loss: Loss, snn: SNN, paths: Collection[str], *, step: float, at_once: int = 1
) -> chex.ArrayTree:
    """Gradient of a loss by central differences, one weight at a time.

        g_i = (L(w + step e_i) - L(w - step e_i)) / (2 step)

    It evaluates the loss twice for each weight, so use it for the few weights of a
    first layer. Spikes make the loss piecewise constant: with a small step most
    differences are exactly zero; a large step smooths the loss.

    Args:
        loss: SNN -> scalar.
        snn: where the loss is evaluated.
        paths: names of the weights, as in ``Site.parameters``. A name that belongs to
            several leaves selects all of them.
        step: > 0, in units of the weights. If the dtype of a weight rounds w +- step,
            the difference is divided by the rounded distance. It is 0 if that distance
            is 0.
        at_once: number of weights that are evaluated in parallel.

    Returns:
        A pytree like ``snn.params``, with g for each selected weight and None for all
        other leaves.

    Raises:
        ValueError: a path that does not exist, or whose leaf is not floating point; a
            step that is not positive.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, x = lambda p, x: jax.nn.relu(x @ p["w"]), jnp.ones((1, 1))
    >>> params, neuron = {"w": jnp.array([[0.6]])}, snnjax.integrate_and_fire()
    >>> snn = snnjax.init(fn, params, x, model=neuron)
    >>> loss = lambda snn: snnjax.spiking(fn, steps=4)(snn, x).mean()
    >>> for step in (0.01, 0.25):  # the first changes no spike
    ...     print(finite_differences(loss, snn, ["w"], step=step)["w"])
    [[0.]]
    [[1.]]
    """
    check_snn(snn)
    check_positive("step", step)
    check_count("at_once", at_once)
    leaves, tree = jax.tree.flatten(snn.params)

    def differences(leaf: int) -> jax.Array:
        weights = jnp.asarray(leaves[leaf])
        flat = weights.reshape(-1)

        def difference(i: jax.Array) -> jax.Array:
            # In float32, because XLA may keep more digits than a narrower dtype has.
            high, low = (
                _rounded(wide(flat[i]) + sign * step, weights.dtype) for sign in (1, -1)
            )

            def at(value: jax.Array) -> jax.Array:
                nearby = flat.at[i].set(value.astype(weights.dtype))
                return loss(with_leaves(snn, {leaf: nearby.reshape(weights.shape)}))

            distance = high - low
            slope = (at(high) - at(low)) / jnp.where(distance > 0, distance, 1)
            return jnp.where(distance > 0, slope, 0)

        slopes = jax.lax.map(difference, jnp.arange(flat.size), batch_size=at_once)
        return slopes.reshape(weights.shape)

    positions = _selected(snn.params, paths)
    return jax.tree.unflatten(
        tree, [differences(i) if i in positions else None for i in range(len(leaves))]
    )


def with_leaves(snn: SNN, new: dict[int, jax.Array]) -> SNN:
    """The SNN with other parameters; the keys are positions among the leaves."""
    leaves, tree = jax.tree.flatten(snn.params)
    leaves = [new.get(i, leaf) for i, leaf in enumerate(leaves)]
    return dataclasses.replace(snn, params=jax.tree.unflatten(tree, leaves))


def _selected(params: chex.ArrayTree, paths: Collection[str]) -> set[int]:
    """Positions of the leaves with these paths; raise if one does not exist."""
    if isinstance(paths, str):
        raise ValueError(f"paths is {paths!r}; allowed: several, as [{paths!r}]")
    names, paths = paths_of(params), set(paths)
    unknown = paths - set(names)
    if unknown or not paths:
        raise ValueError(
            f"no parameter {sorted(unknown) or 'is named'}; parameters: {sorted(names)}"
        )
    positions = set()
    for i, leaf in enumerate(jax.tree.leaves(params)):
        if names[i] in paths:
            if not is_floating(leaf):
                raise ValueError(
                    f"parameter {names[i]!r} is not floating point, so it has no "
                    "differences; leave it out of paths"
                )
            positions.add(i)
    return positions


def _rounded(number: jax.Array, dtype: Any) -> jax.Array:
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(number, info.nexp, info.nmant)
