"""Learning the temperature b of a surrogate: where does its gradient point best?

The spikes of the forward pass do not depend on b, so dL/db = 0. What b changes is the
surrogate gradient G(b) of the weights, and a good one points where finite differences
g of the loss itself point:

    cos(b) = <g, G(b)> / (|g| |G(b)|)

`choose_temperature` takes the best of three b, once per epoch, as the paper does
(algorithm 1); `alignment` has the gradient of cos(b), so that every site's b climbs it;
`relaxed_gradient` is that of a loss whose spikes are soft. Source of the first: Li,
Guo, Zhang, Deng, Hai and Gu, "Differentiable Spike", NeurIPS 2021; the others are ours.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._arrays import wide
from snnjax._checks import check_positive
from snnjax.neurons.protocol import chain, field, with_field
from snnjax.snn import SNN, check_snn
from snnjax.training.differences import (
    Directions,
    Loss,
    Weights,
    direction,
    select,
    with_weights,
)

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
        ValueError: no mapping; a site that does not exist, or whose model has no
            temperature; a temperature that is not positive and finite.

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
            "temperature, as snnjax.training.temperatures(snn) gives them"
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
    changed = {
        name: with_field(snn.neurons[name], "temperature", 1.0 * jnp.asarray(b))
        for name, b in new.items()
    }
    return dataclasses.replace(snn, neurons=snn.neurons | changed)


def _positive(b: np.ndarray) -> bool:
    return b.dtype.kind in "iufV" and bool(((b > 0) & (b < np.inf)).all())


class Alignment(NamedTuple):
    """How well a surrogate gradient points where finite differences do.

    Attributes:
        cosine: cos(b), -1..1; 0 where either gradient vanishes.
        gradient: site name -> d cos / d b; climb it.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> from snnjax.training import finite_differences
    >>> fn, x = lambda p, x: jax.nn.relu(x @ p["w"]), jnp.ones((1, 1))
    >>> params = {"w": jnp.array([[0.6, 0.9]])}
    >>> snn = snnjax.init(fn, params, x, model=snnjax.lif(temperature=3.0))
    >>> loss = lambda snn: snnjax.spiking(fn, steps=4)(snn, x).mean()
    >>> differences = finite_differences(loss, snn, ["w"], step=0.25)
    >>> cosine, gradient = alignment(loss, snn, differences)
    >>> print(f"{cosine:.3f} {gradient['w/relu']:.4f}")  # higher b: better
    0.987 0.0034
    """

    cosine: jax.Array
    gradient: Temperatures


def alignment(loss: Loss, snn: SNN, differences: Weights | Directions) -> Alignment:
    """Cosine of surrogate gradient and finite differences, with its gradient in b.

    Exact, for any number of temperatures at the cost of about three gradients: with
    v = d cos / d G, d cos / d b is the gradient in b of the directional derivative
    <v, G(b)>, which is a jvp of the loss.

    Args:
        loss: SNN -> scalar, through `snnjax.spiking`.
        snn: with temperatures.
        differences: from `finite_differences` (path -> g) or `random_differences`.

    Raises:
        ValueError: no site has a temperature; a path that does not exist; differences
            of another shape than the weights.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> from snnjax.training import finite_differences
    >>> fn, x = lambda p, x: jax.nn.relu(x @ p["w"]), jnp.ones((1, 1))
    >>> params = {"w": jnp.array([[0.6, 0.9]])}
    >>> snn = snnjax.init(fn, params, x, model=snnjax.lif(temperature=3.0))
    >>> loss = lambda snn: snnjax.spiking(fn, steps=4)(snn, x).mean()
    >>> differences = finite_differences(loss, snn, ["w"], step=0.25)
    >>> print(f"{alignment(loss, snn, differences).cosine:.3f}")
    0.987
    """
    weights, b = _covered(snn, differences), temperatures(snn)

    def loss_of(weights, b):
        return loss(with_temperatures(with_weights(snn, weights), b))

    surrogate = jax.grad(loss_of)(weights, b)
    cosine, v = jax.value_and_grad(_cosine)(surrogate, differences)

    def directional(b):
        return jax.jvp(lambda weights: loss_of(weights, b), (weights,), (v,))[1]

    return Alignment(cosine, jax.grad(directional)(b))


class Choice(NamedTuple):
    """Result of `choose_temperature`.

    Attributes:
        snn: with the chosen temperatures.
        change: 0, +change or -change, added to each but where `lowest` stopped it.
        cosines: of the three candidates, [3]: as it was, higher, lower.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> from snnjax.training import finite_differences
    >>> fn, x = lambda p, x: jax.nn.relu(x @ p["w"]), jnp.ones((1, 1))
    >>> params = {"w": jnp.array([[0.6, 0.9]])}
    >>> snn = snnjax.init(fn, params, x, model=snnjax.lif(temperature=3.0))
    >>> loss = lambda snn: snnjax.spiking(fn, steps=4)(snn, x).mean()
    >>> differences = finite_differences(loss, snn, ["w"], step=0.25)
    >>> choice = choose_temperature(loss, snn, differences, change=0.5)
    >>> print(choice.change, temperatures(choice.snn)["w/relu"])
    0.5 3.5
    """

    snn: SNN
    change: jax.Array
    cosines: jax.Array


def choose_temperature(
    loss: Loss,
    snn: SNN,
    differences: Weights | Directions,
    *,
    change: float,
    lowest: float = 0.1,
) -> Choice:
    """Algorithm 1 of the paper: of b, b + change, b - change that of highest cosine.

    All sites move together, as the paper's single temperature does. Call it once per
    epoch, on one batch.

    Args:
        loss, snn, differences: as for `alignment`.
        change: > 0.
        lowest: temperatures stay at or above it, > 0.

    Raises:
        ValueError: as `alignment`; change or lowest not positive.

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
    """
    check_positive("change", change)
    check_positive("lowest", lowest)
    weights, b = _covered(snn, differences), temperatures(snn)
    changes = jnp.array([0.0, change, -change])

    def candidate(change):
        return with_temperatures(
            snn, {name: jnp.maximum(t + change, lowest) for name, t in b.items()}
        )

    def cosine(change):
        moved = candidate(change)
        surrogate = jax.grad(lambda w: loss(with_weights(moved, w)))(weights)
        return _cosine(surrogate, differences)

    cosines = jax.lax.map(cosine, changes)
    best = changes[jnp.argmax(cosines)]
    return Choice(candidate(best), best, cosines)


def relaxed_gradient(loss: Loss, snn: SNN) -> Temperatures:
    """Site name -> gradient in b of a loss whose spikes are soft.

    Args:
        loss: SNN -> scalar, through ``snnjax.spiking(...,
            surrogate=snnjax.surrogate.relaxed_dspike)``: its neurons then emit
            Dspike(v; b) itself, which does depend on b. Descend this gradient.
        snn: with temperatures.

    Raises:
        ValueError: no site has a temperature; outside of ``jit``, the loss depends on
            none of them, as with another surrogate.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> from snnjax.surrogate import relaxed_dspike
    >>> fn, x = lambda w, x: jax.nn.relu(x @ w), jnp.ones((1, 1))
    >>> snn = snnjax.init(fn, 0.6 * x, x, model=snnjax.lif(temperature=3.0))
    >>> simulate = snnjax.spiking(fn, steps=2, surrogate=relaxed_dspike)
    >>> gradient = relaxed_gradient(lambda snn: simulate(snn, x).mean(), snn)
    >>> print(f"{gradient['relu']:.3f}")
    -0.033
    """
    gradient = jax.grad(lambda b: loss(with_temperatures(snn, b)))(temperatures(snn))
    if not any(isinstance(g, Tracer) or jnp.any(g != 0) for g in gradient.values()):
        raise ValueError(
            "the loss depends on no temperature: its spikes must be soft, "
            "snnjax.spiking(..., surrogate=snnjax.surrogate.relaxed_dspike), and some "
            "potential must come near its threshold"
        )
    return gradient


# -------------------------------------------------------------------- helpers


def _covered(snn: SNN, differences: Weights | Directions) -> Weights:
    """The weights that the differences are of."""
    if isinstance(differences, Directions):
        return select(snn.params, differences.paths)
    weights = select(snn.params, differences)
    for path, weight in weights.items():
        shape = jnp.shape(differences[path])
        if shape != weight.shape:
            raise ValueError(
                f"the differences of {path!r} have shape {shape}, but the weights "
                f"have {weight.shape}"
            )
    return weights


def _cosine(gradient: Weights, differences: Weights | Directions) -> jax.Array:
    """Of a gradient and the differences: coordinates, or slopes along directions."""
    # The rounding of bfloat16 would decide between candidates that are close.
    gradient = {path: wide(weights) for path, weights in gradient.items()}
    if not isinstance(differences, Directions):
        both = [
            jnp.concatenate([wide(tree[path]).ravel() for path in differences])
            for tree in (gradient, differences)
        ]
        return _angle(*both)

    def slope(key):
        way = direction(key, gradient)
        return sum(jnp.vdot(gradient[path], way[path]) for path in gradient)

    return _angle(jax.lax.map(slope, differences.keys), differences.slopes)


def _angle(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = _unit(a), _unit(b)
    return jnp.vdot(a, b)


def _unit(a: jax.Array) -> jax.Array:
    """Of length 1; 0 stays 0. The largest first, or squares leave float32's range."""
    largest = jax.lax.stop_gradient(jnp.abs(a).max())
    a = a / jnp.where(largest > 0, largest, 1)
    square = jnp.vdot(a, a)
    return a / jnp.sqrt(jnp.where(square > 0, square, 1))
