"""The temperature b of a surrogate, chosen by the finite differences of the loss.

Spikes do not depend on b, so dL/db = 0. But the surrogate gradient G(b) of the weights
depends on b. The best b maximizes the cosine between G(b) and the differences g:

    g_i = (L(w + h e_i) - L(w - h e_i)) / 2h,   cos(b) = <g, G(b)> / (|g| |G(b)|)

Source: Li, Guo, Zhang, Deng, Hai and Gu, "Differentiable Spike", NeurIPS 2021,
algorithm 1.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from snnjax._arrays import wide
from snnjax._ranges import POSITIVE
from snnjax._trees import is_floating
from snnjax.neurons.protocol import field, with_field
from snnjax.snn import SNN, check_snn
from snnjax.training.leaves import named_params, with_params


def choose_temperature(
    loss: Callable[[SNN], jax.Array],
    snn: SNN,
    paths: Collection[str],
    *,
    step: float,
    change: float,
    lowest: float = 0.1,
) -> tuple[SNN, jax.Array]:
    """Algorithm 1 of the paper: the best of b, b + change and b - change by cosine.

    All sites change together, as the single temperature of the paper does. Call it once
    per epoch, on one batch.

    Args:
        loss: SNN -> scalar, through `snnjax.spiking`.
        snn: with temperatures.
        paths: names of the weights w, as in ``Site.parameters``. The loss is evaluated
            twice for each number, so take the few weights of a first layer.
        step: h > 0, see `finite_differences`.
        change: > 0.
        lowest: > 0, the lower limit of a temperature.

    Returns:
        The SNN with the temperatures of the highest cosine, and the cosines [3] of b,
        b + change and b - change.

    Raises:
        ValueError: no site has a temperature, no floating parameter has a path, or a
            number is not positive.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, x = lambda p, x: jax.nn.relu(x @ p["w"]), jnp.ones((1, 1))
    >>> params = {"w": jnp.array([[0.6, 0.9]])}
    >>> snn = snnjax.init(fn, params, x, model=snnjax.lif(temperature=3.0))
    >>> loss = lambda snn: snnjax.spiking(fn, steps=4)(snn, x).mean()
    >>> chosen, cosines = choose_temperature(loss, snn, ["w"], step=0.25, change=0.5)
    >>> print([f"{cosine:.3f}" for cosine in cosines])  # of b = 3, 3.5, 2.5
    ['0.987', '0.989', '0.985']
    >>> print(temperatures(chosen)["w/relu"])
    3.5
    """
    POSITIVE.check("change", change)
    POSITIVE.check("lowest", lowest)
    own = temperatures(snn)
    weights = _weights(snn, paths)

    def loss_at(snn: SNN, new: Mapping[str, jax.Array]) -> jax.Array:
        return loss(with_params(snn, new))

    def candidate(change: jax.Array) -> SNN:
        new = {n: jnp.maximum(b + change, lowest) for n, b in own.items()}
        neurons = {
            n: with_field(snn.neurons[n], "temperature", b) for n, b in new.items()
        }
        return dataclasses.replace(snn, neurons=snn.neurons | neurons)

    differences = [
        finite_differences(lambda w, name=name: loss_at(snn, {name: w}), w, step=step)
        for name, w in weights.items()
    ]

    def cosine_of(change: jax.Array) -> jax.Array:
        changed = candidate(change)
        surrogate = jax.grad(lambda new: loss_at(changed, new))(weights)
        return cosine([surrogate[name] for name in weights], differences)

    changes = jnp.array([0.0, change, -change])
    cosines = jax.lax.map(cosine_of, changes)
    return candidate(changes[jnp.argmax(cosines)]), cosines


def finite_differences(
    f: Callable[[jax.Array], jax.Array], w: Any, *, step: float
) -> jax.Array:
    """Gradient of a function by central differences, one number at a time.

        g_i = (f(w + h e_i) - f(w - h e_i)) / 2h

    Spikes make a loss piecewise constant: with a small h most differences are exactly
    zero, a large one smooths the loss.

    Args:
        f: array like w -> scalar.
        w: array of floating point.
        step: h > 0. If the dtype of w rounds w +- h, the difference is divided by the
            rounded distance. It is 0 if that distance is 0.

    >>> print(finite_differences(lambda w: (w**2).sum(), jnp.array([1.0, 3.0]), step=1))
    [2. 6.]
    """
    POSITIVE.check("step", step)
    w = jnp.asarray(w)
    flat, info = w.reshape(-1), jnp.finfo(w.dtype)

    def at(i: jax.Array, number: jax.Array) -> jax.Array:
        return f(flat.at[i].set(number.astype(w.dtype)).reshape(w.shape))

    def difference(i: jax.Array) -> jax.Array:
        # In float32, because XLA may keep more digits than a narrower dtype has.
        high, low = (
            jax.lax.reduce_precision(wide(flat[i]) + h, info.nexp, info.nmant)
            for h in (step, -step)
        )
        distance = high - low
        slope = (at(i, high) - at(i, low)) / jnp.where(distance > 0, distance, 1)
        return jnp.where(distance > 0, slope, 0)

    return jax.lax.map(difference, jnp.arange(flat.size)).reshape(w.shape)


def cosine(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
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


def temperatures(snn: SNN) -> dict[str, jax.Array]:
    """Site name -> temperature, of all sites that have one; raise if none has."""
    check_snn(snn)
    own = {name: field(n, "temperature") for name, n in snn.neurons.items()}
    own = {name: b for name, b in own.items() if b is not None}
    if not own:
        raise ValueError(
            "no site of this SNN has a temperature; give the neuron one, e.g. "
            "snnjax.init(..., model=snnjax.lif(temperature=3.0))"
        )
    return own


def _weights(snn: SNN, paths: Collection[str]) -> dict[str, jax.Array]:
    """Those with these names, in JAX's order; raise unless each is floating."""
    if isinstance(paths, str):
        raise ValueError(f"paths is {paths!r}; allowed: several, as [{paths!r}]")
    params = named_params(snn.params).items()
    own = {name: leaf for name, leaf in params if is_floating(leaf)}
    if not paths or (set(paths) - own.keys()):
        raise ValueError(
            f"no parameter {sorted(set(paths) - own.keys()) or 'is named'}; floating "
            f"parameters: {sorted(own)}"
        )
    return {name: jnp.asarray(leaf) for name, leaf in own.items() if name in paths}
