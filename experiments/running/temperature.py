"""The temperature b of Dspike: chosen once per epoch, or moved along a schedule.

Spikes do not depend on b, so dL/db = 0. But the surrogate gradient G(b) of the weights
depends on b. The best b maximizes the cosine between G(b) and the finite differences g
of the loss:

    g_i = (L(w + h e_i) - L(w - h e_i)) / 2h,   cos(b) = <g, G(b)> / (|g| |G(b)|)

Source: Li, Guo, Zhang, Deng, Hai and Gu, "Differentiable Spike", NeurIPS 2021,
algorithm 1.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from snnjax import SNN


def temperatures(snn: SNN) -> dict[str, jax.Array]:
    """The temperature of each site's neurons, by the site's name."""
    by_site = {}
    for site_name, neuron_params in snn.neurons.items():
        # The temperature may lie in a model inside of another one.
        for path, leaf in jax.tree_util.tree_leaves_with_path(neuron_params):
            if path[-1].name == "temperature":
                by_site[site_name] = leaf
    return by_site


def with_temperatures(snn: SNN, by_site: Mapping[str, jax.Array]) -> SNN:
    """The SNN with these temperatures, by the names of the sites."""
    neurons = {}
    for site_name, neuron_params in snn.neurons.items():
        temperature = by_site[site_name]

        def changed(path: Any, leaf: jax.Array, temperature=temperature) -> jax.Array:
            return temperature if path[-1].name == "temperature" else leaf

        neurons[site_name] = jax.tree_util.tree_map_with_path(changed, neuron_params)
    return dataclasses.replace(snn, neurons=neurons)


def cooled(snn: SNN, starts: Mapping[str, float], end: float, steps: int) -> SNN:
    """The SNN with every temperature one step nearer to ``end``.

        b <- b (end / start)^(1 / steps)

    The factor is the same at every step. So the schedule needs no count of the steps,
    and a training can be resumed.

    Args:
        snn: the network.
        starts: the temperature of each site before the first step.
        end: the temperature of all sites after the last step.
        steps: number of steps.
    """
    by_site = {}
    for site_name, temperature in temperatures(snn).items():
        factor = (end / starts[site_name]) ** (1 / steps)
        by_site[site_name] = temperature * factor
    return with_temperatures(snn, by_site)


def choose_temperature(
    loss: Callable[[SNN], jax.Array],
    snn: SNN,
    paths: Sequence[str],
    *,
    step: float,
    change: float,
    lowest: float,
) -> tuple[SNN, jax.Array]:
    """The best of b, b + change and b - change, by the cosine of the module's header.

    All sites change together, as the single temperature of the paper does.

    Args:
        loss: SNN -> scalar, through `snnjax.spiking`.
        snn: a network of flax whose neurons have temperatures.
        paths: names of the weights w, as in ``Site.parameters``. The loss is evaluated
            twice for each number, so take the few weights of a first layer.
        step: h > 0, see `finite_differences`.
        change: > 0.
        lowest: > 0, the lower limit of a temperature.

    Returns:
        The SNN with the temperatures of the highest cosine, and the cosines [3] of b,
        b + change and b - change.
    """
    params = flatten_dict(snn.params, sep="/")
    weights = {path: params[path] for path in paths}
    current_temperatures = temperatures(snn)

    def loss_at(snn: SNN, new_weights: Mapping[str, jax.Array]) -> jax.Array:
        new_params = unflatten_dict({**params, **new_weights}, sep="/")
        return loss(dataclasses.replace(snn, params=new_params))

    def candidate(change: jax.Array) -> SNN:
        changed = {
            site_name: jnp.maximum(temperature + change, lowest)
            for site_name, temperature in current_temperatures.items()
        }
        return with_temperatures(snn, changed)

    differences = {}
    for path, weight in weights.items():

        def loss_of_weight(weight: jax.Array, path=path) -> jax.Array:
            return loss_at(snn, {path: weight})

        differences[path] = finite_differences(loss_of_weight, weight, step=step)

    def cosine_at(change: jax.Array) -> jax.Array:
        changed_snn = candidate(change)
        surrogate_gradient = jax.grad(lambda new: loss_at(changed_snn, new))(weights)
        return cosine(surrogate_gradient, differences)

    changes = jnp.array([0.0, change, -change])
    cosines = jax.lax.map(cosine_at, changes)
    return candidate(changes[jnp.argmax(cosines)]), cosines


def finite_differences(
    f: Callable[[jax.Array], jax.Array], w: jax.Array, *, step: float
) -> jax.Array:
    """Gradient of a function by central differences, one number at a time.

        g_i = (f(w + h e_i) - f(w - h e_i)) / 2h

    Spikes make a loss piecewise constant: with a small h most differences are exactly
    zero, a large one smooths the loss.

    Args:
        f: array like w -> scalar.
        w: array of floating point.
        step: h > 0. The difference is divided by the distance of w + h and w - h as
            they are rounded. It is 0 if that distance is 0.

    >>> print(finite_differences(lambda w: (w**2).sum(), jnp.array([1.0, 3.0]), step=1))
    [2. 6.]
    """
    flat = w.reshape(-1)

    def f_with_entry(index: jax.Array, number: jax.Array) -> jax.Array:
        return f(flat.at[index].set(number).reshape(w.shape))

    def difference(index: jax.Array) -> jax.Array:
        high, low = flat[index] + step, flat[index] - step
        distance = high - low
        rise = f_with_entry(index, high) - f_with_entry(index, low)
        return jnp.where(distance > 0, rise / jnp.where(distance > 0, distance, 1), 0)

    return jax.lax.map(difference, jnp.arange(flat.size)).reshape(w.shape)


def cosine(a: Any, b: Any) -> jax.Array:
    """Cosine of the angle between two pytrees of arrays; 0 where one of them is 0."""
    return jnp.vdot(_unit_vector(a), _unit_vector(b))


def _unit_vector(tree: Any) -> jax.Array:
    """All numbers of a pytree as one vector of length 1; a zero vector stays 0."""
    vector = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
    # Without this, the squares of large numbers would overflow.
    largest = jnp.abs(vector).max()
    vector = vector / jnp.where(largest > 0, largest, 1)
    square = jnp.vdot(vector, vector)
    return vector / jnp.sqrt(jnp.where(square > 0, square, 1))
