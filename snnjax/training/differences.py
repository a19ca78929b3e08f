"""Finite differences of a loss in the weights: what a surrogate gradient stands for.

    g_i = (L(w + h e_i) - L(w - h e_i)) / 2h

over whole kernels or along random directions. Source of their use: Li, Guo, Zhang,
Deng, Hai and Gu, "Differentiable Spike", NeurIPS 2021.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snnjax._arrays import wide
from snnjax._checks import check_count, check_positive
from snnjax._trees import is_floating, is_kernel
from snnjax.network.names import paths_of
from snnjax.snn import SNN, check_snn

Loss = Callable[[SNN], jax.Array]
Weights = dict[str, jax.Array]


def finite_differences(
    loss: Loss, snn: SNN, paths: Collection[str], *, step: float, at_once: int = 1
) -> Weights:
    """Finite-difference gradient, coordinate by coordinate.

        g_i = (L(w + step e_i) - L(w - step e_i)) / (2 step)

    Costs two evaluations of the loss per coordinate, so it is meant for the few
    weights of a first layer. The loss is piecewise constant in the weights: with a
    small step most differences are exactly zero, and a wide step looks at a smooth
    landscape, which a small temperature fits best. The step is the hyper-parameter.

    Args:
        loss: SNN -> scalar.
        snn: where.
        paths: of the weights, as ``Site.parameters`` has them.
        step: > 0, in units of the weights; where their type rounds it, g is divided
            by the way that a weight really goes, and 0 if it does not move.
        at_once: coordinates in parallel, two evaluations each.

    Returns:
        path -> g, of the shape of the weights.

    Raises:
        ValueError: a path that does not exist, or of whole numbers; a step that is not
            positive.

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
    weights = select(snn.params, paths)

    def along(path: str, i: jax.Array):
        weight = weights[path]
        flat = weight.reshape(-1)
        # In float32, or XLA might keep more digits of a smaller type than it has.
        wide_weight = wide(flat[i])
        high, low = (_rounded(wide_weight + s * step, weight.dtype) for s in (1, -1))

        def at(value):
            moved = flat.at[i].set(value.astype(weight.dtype)).reshape(weight.shape)
            return loss(with_weights(snn, {path: moved}))

        way = high - low
        return jnp.where(way > 0, (at(high) - at(low)) / jnp.where(way > 0, way, 1), 0)

    return {
        path: jax.lax.map(
            lambda i, path=path: along(path, i),
            jnp.arange(weight.size),
            batch_size=at_once,
        ).reshape(weight.shape)
        for path, weight in weights.items()
    }


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("keys", "slopes"),
    meta_fields=("paths",),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Directions:
    """Finite differences along random directions u_k, which their keys make again.

    Attributes:
        keys: [K].
        slopes: [K], (L(w + step u_k) - L(w - step u_k)) / (2 step).
        paths: of the weights that the directions cover.

    `random_differences` makes them, and `snnjax.training.alignment` reads them:

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> snn = snnjax.init(fn, jnp.ones((300, 200)), jnp.ones((1, 300)))
    >>> loss, key = lambda snn: snn.params.sum(), jax.random.key(0)
    >>> differences = random_differences(loss, snn, key, step=0.1, directions=8)
    >>> [leaf.shape for leaf in jax.tree.leaves(differences)]  # of 60000 weights
    [(8,), (8,)]
    """

    keys: jax.Array
    slopes: jax.Array
    paths: tuple[str, ...]


def random_differences(
    loss: Loss,
    snn: SNN,
    key: jax.Array,
    *,
    step: float,
    directions: int = 32,
    paths: Collection[str] | None = None,
) -> Directions:
    """Finite differences along K random directions through many weights at once.

        d_k = (L(w + step u_k) - L(w - step u_k)) / (2 step)

    with entries of u_k normal, of deviation 1: 2K evaluations of the loss whatever the
    number of weights, so all layers can be covered. A gradient G is compared by its own
    slopes <G, u_k>.

    Args:
        loss, snn: as for `finite_differences`.
        key: of the directions.
        step: > 0, in units of the weights; each of them moves by about so much, which
            must be far more than their type rounds.
        directions: K >= 2.
        paths: of the weights; by default all kernels (floating, two axes or more).

    Raises:
        ValueError: as `finite_differences`; fewer than two directions.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["first"]) @ p["second"]
    >>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
    >>> snn = snnjax.init(fn, params, jnp.ones((1, 3)))
    >>> loss = lambda snn: snnjax.spiking(fn, steps=2)(snn, jnp.ones((1, 3))).mean()
    >>> differences = random_differences(loss, snn, jax.random.key(0), step=0.5)
    >>> differences.paths, differences.slopes.shape  # 32 for all 40 weights
    (('first', 'second'), (32,))
    """
    check_snn(snn)
    check_positive("step", step)
    check_count("directions", directions, least=2)
    weights = select(snn.params, _kernels(snn.params) if paths is None else paths)

    def slope(key):
        way = direction(key, weights)

        def at(sign):
            moved = {
                p: (wide(w) + sign * step * way[p]).astype(w.dtype)
                for p, w in weights.items()
            }
            return loss(with_weights(snn, moved))

        return (at(1) - at(-1)) / (2 * step)

    keys = jax.random.split(key, directions)
    return Directions(keys, jax.lax.map(slope, keys), tuple(weights))


def direction(key: jax.Array, weights: Weights) -> Weights:
    """A random one, shaped as the weights, in float32 whatever their type."""
    # In sorted order: JAX sorts a dictionary, so the gradient's may be another.
    keys = dict(zip(sorted(weights), jax.random.split(key, len(weights)), strict=True))
    return {
        p: jax.random.normal(keys[p], w.shape, jnp.float32) for p, w in weights.items()
    }


def _named(params: chex.ArrayTree) -> Weights:
    return dict(zip(paths_of(params), jax.tree_util.tree_leaves(params), strict=True))


def _kernels(params: chex.ArrayTree) -> Sequence[str]:
    """Paths of all kernels; raise if there is none."""
    paths = [path for path, leaf in _named(params).items() if is_kernel(leaf)]
    if not paths:
        raise ValueError(
            "params have no kernel (floating, two axes or more); allowed: the paths of "
            f"others, as paths=[...]: {sorted(_named(params))}"
        )
    return paths


def select(params: chex.ArrayTree, paths: Collection[str]) -> Weights:
    """The parameters at these paths; raise if one does not exist."""
    if isinstance(paths, str):
        raise ValueError(f"paths is {paths!r}; allowed: several, as [{paths!r}]")
    named, paths = _named(params), list(paths)
    unknown = set(paths) - set(named)
    if unknown or not paths:
        raise ValueError(
            f"no parameter {sorted(unknown) or 'is named'}; parameters: {sorted(named)}"
        )
    whole = [path for path in paths if not is_floating(named[path])]
    if whole:
        raise ValueError(
            f"parameter {whole[0]!r} is no weight: it is not of floating point"
        )
    return {path: named[path] for path in paths}


def _rounded(number: jax.Array, dtype: Any) -> jax.Array:
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(number, info.nexp, info.nmant)


def with_weights(snn: SNN, weights: Weights) -> SNN:
    """The SNN with other parameters at these paths."""
    names = list(_named(snn.params))
    leaves, tree = jax.tree_util.tree_flatten(snn.params)
    changed = [weights.get(n, x) for n, x in zip(names, leaves, strict=True)]
    return dataclasses.replace(snn, params=jax.tree_util.tree_unflatten(tree, changed))
