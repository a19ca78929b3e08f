"""The temperature b of a surrogate, chosen by the finite differences of the loss.

Spikes do not depend on b, so dL/db = 0. But the surrogate gradient G(b) of the weights
depends on b. The best b maximizes the cosine between G(b) and the finite differences g
of the loss:

    cos(b) = <g, G(b)> / (|g| |G(b)|)

Source: Li, Guo, Zhang, Deng, Hai and Gu, "Differentiable Spike", NeurIPS 2021,
algorithm 1.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._arrays import wide
from snnjax._checks import check_positive
from snnjax._trees import paths_of
from snnjax.neurons.protocol import chain, field, with_field
from snnjax.snn import SNN, check_snn
from snnjax.training.differences import Loss, with_leaves

Temperatures = dict[str, jax.Array]


def temperatures(snn: SNN) -> Temperatures:
    """Site name -> temperature, of all sites that have one.

    Raises:
        ValueError: no site has one.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, neuron = lambda w, x: jax.nn.relu(x @ w), snnjax.lif(temperature=3.0)
    >>> snn = snnjax.init(fn, jnp.eye(2), jnp.eye(2), model=neuron)
    >>> print(temperatures(snn)["relu"])
    3.0
    """
    check_snn(snn)
    own = {name: field(n, "temperature") for name, n in snn.neurons.items()}
    own = {name: b for name, b in own.items() if b is not None}
    if not own:
        raise ValueError(
            "no site of this SNN has a temperature; give the neuron one, e.g. "
            "snnjax.init(..., model=snnjax.lif(temperature=3.0))"
        )
    return own


def with_temperatures(snn: SNN, new: Temperatures) -> SNN:
    """The SNN with other temperatures at these sites: scalars, or one per channel [C].

    Raises:
        ValueError: ``new`` is not a mapping; a site does not exist or its model has no
            temperature; or a temperature is not positive and finite.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, neuron = lambda w, x: jax.nn.relu(x @ w), snnjax.lif(temperature=3.0)
    >>> snn = snnjax.init(fn, jnp.eye(2), jnp.eye(2), model=neuron)
    >>> snn = with_temperatures(snn, {"relu": jnp.array([3.0, 5.0])})  # by channel
    >>> print(temperatures(snn)["relu"])
    [3. 5.]
    """
    check_snn(snn)
    if not isinstance(new, Mapping):
        raise ValueError(
            f"the temperatures are a {type(new).__name__}; allowed: site name -> "
            "temperature, as snnjax.training.temperatures(snn) returns them"
        )
    unknown = set(new) - set(snn.neurons)
    if unknown:
        raise ValueError(f"no site {sorted(unknown)}; sites: {sorted(snn.neurons)}")
    for name, b in new.items():
        if all("temperature" not in part._fields for part in chain(snn.neurons[name])):
            raise ValueError(
                f"the neurons of site {name!r} have no parameter temperature; allowed: "
                "sites whose model has one, as snnjax.lif(temperature=3.0)"
            )
        if not isinstance(b, Tracer) and not _positive(np.asarray(b)):
            raise ValueError(
                f"the temperature of site {name!r} is {b!r}; allowed: > 0, and finite"
            )
    neurons = {
        name: with_field(snn.neurons[name], "temperature", 1.0 * jnp.asarray(b))
        for name, b in new.items()
    }
    return dataclasses.replace(snn, neurons=snn.neurons | neurons)


def _positive(b: np.ndarray) -> bool:
    return b.dtype.kind in "iufV" and bool(((b > 0) & (b < np.inf)).all())


class Choice(NamedTuple):
    """Result of `choose_temperature`.

    Attributes:
        snn: with the temperatures of the highest cosine.
        change: the value that was added to each temperature: 0, +change or -change.
        cosines: [3], of the candidates b, b + change and b - change.
    """

    snn: SNN
    change: jax.Array
    cosines: jax.Array


def choose_temperature(
    loss: Loss,
    snn: SNN,
    differences: chex.ArrayTree,
    *,
    change: float,
    lowest: float = 0.1,
) -> Choice:
    """Algorithm 1 of the paper: the best of b, b + change and b - change by cosine.

    All sites change together, as the single temperature of the paper does. Call it once
    per epoch, on one batch.

    Args:
        loss: SNN -> scalar, through `snnjax.spiking`.
        snn: with temperatures.
        differences: from `snnjax.training.finite_differences`.
        change: > 0.
        lowest: > 0, the lower limit of a temperature.

    Raises:
        ValueError: no site has a temperature; the differences do not have the structure
            and shapes of the params; or change or lowest is not positive.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> from snnjax.training import finite_differences
    >>> fn, x = lambda p, x: jax.nn.relu(x @ p["w"]), jnp.ones((1, 1))
    >>> params = {"w": jnp.array([[0.6, 0.9]])}
    >>> snn = snnjax.init(fn, params, x, model=snnjax.lif(temperature=3.0))
    >>> loss = lambda snn: snnjax.spiking(fn, steps=4)(snn, x).mean()
    >>> differences = finite_differences(loss, snn, ["w"], step=0.25)
    >>> choice = choose_temperature(loss, snn, differences, change=0.5)
    >>> print([f"{cosine:.3f}" for cosine in choice.cosines])  # of b = 3, 3.5, 2.5
    ['0.987', '0.989', '0.985']
    >>> print(choice.change, temperatures(choice.snn)["w/relu"])
    0.5 3.5
    """
    check_positive("change", change)
    check_positive("lowest", lowest)
    own = temperatures(snn)
    by_leaf = _by_leaf(snn, differences)
    leaves = jax.tree.leaves(snn.params)
    weights = {i: leaves[i] for i in by_leaf}
    changes = jnp.array([0.0, change, -change])

    def candidate(change: jax.Array) -> SNN:
        return with_temperatures(
            snn, {name: jnp.maximum(b + change, lowest) for name, b in own.items()}
        )

    def cosine(change: jax.Array) -> jax.Array:
        changed = candidate(change)
        gradient = jax.grad(lambda new: loss(with_leaves(changed, new)))(weights)
        return _cosine([gradient[i] for i in by_leaf], list(by_leaf.values()))

    cosines = jax.lax.map(cosine, changes)
    best = changes[jnp.argmax(cosines)]
    return Choice(candidate(best), best, cosines)


def _by_leaf(snn: SNN, differences: chex.ArrayTree) -> dict[int, jax.Array]:
    """Position of a leaf of the params -> its differences."""
    leaves, tree = jax.tree.flatten(snn.params)
    try:
        aligned = tree.flatten_up_to(differences)
    except (ValueError, TypeError):
        aligned = []
    by_leaf = {i: g for i, g in enumerate(aligned) if g is not None}
    if not by_leaf:
        raise ValueError(
            "the differences are not a tree like snn.params; allowed: the result of "
            "snnjax.training.finite_differences(loss, snn, paths, step=...)"
        )
    for i, g in by_leaf.items():
        if jnp.shape(g) != jnp.shape(leaves[i]):
            raise ValueError(
                f"the differences of {paths_of(snn.params)[i]!r} have shape "
                f"{jnp.shape(g)}, but the weights have {jnp.shape(leaves[i])}"
            )
    return by_leaf


def _cosine(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    """Cosine of the angle between two lists of arrays; 0 where one of them is 0."""
    return jnp.vdot(_unit(a), _unit(b))


def _unit(arrays: Sequence[jax.Array]) -> jax.Array:
    """All numbers as one vector of length 1; 0 stays 0."""
    # In float32: the rounding of bfloat16 would decide between close candidates.
    vector = jnp.concatenate([wide(array).ravel() for array in arrays])
    largest = jnp.abs(vector).max()
    vector = vector / jnp.where(largest > 0, largest, 1)  # or squares may overflow
    square = jnp.vdot(vector, vector)
    return vector / jnp.sqrt(jnp.where(square > 0, square, 1))
