"""Training through the rounding: float weights whose whole numbers are computed with.

    W = clip(round(L w), -L, L)      dW/dw = L, the straight-through gradient

L is the largest weight of a map, so that w lies in [-1, 1]. Thresholds and initial
potentials keep their whole numbers. Source of the gradient: Bengio, Léonard and
Courville, arXiv 1308.3432.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax.integers.timing import bias_unit
from snnjax.layers.function import function, with_params
from snnjax.layers.values import Affine, Layers, Output, Population
from snnjax.snn import SNN

Params = dict[str, dict[str, jax.Array]]


def trainable(layers: Layers) -> tuple[Callable, SNN]:
    """A function that rounds its float weights and biases, and its SNN.

    Both are as those of `snnjax.layers.function`, and the SNN sends the same spikes.
    Train ``snn.params`` alone, e.g. by ``snnjax.training.optimizer({"weights":
    optax.adam(1e-3)})``: thresholds have to stay whole. `with_weights` puts the trained
    weights into the layers.

    Args:
        layers: of whole numbers, from `snnjax.quantize`.

    Returns:
        ``(fn, snn)`` for `snnjax.spiking`. Weights are in units of the largest one of
        their map, biases of the largest weight that their receiver reads. Give them
        ``snnjax.integers.on_grid(layers, x)``.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.array([[0.5, -1.0]]), "readout": jnp.ones((2, 1))}
    >>> x = jnp.array([[1.0], [-0.5]])
    >>> snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    >>> layers = snnjax.quantize(snnjax.layers.of(fn, snn, x), x, weight_bits=4)
    >>> rounds, snn = trainable(layers)
    >>> loss = lambda snn: snnjax.spiking(rounds)(snn, x).mean()
    >>> print(jax.grad(loss)(snn).params["output/0"]["weight"].ravel())
    [0.27857143 0.13928571]
    """
    fn, snn = function(layers)
    rounded = _rounding(layers)
    sizes = _sizes(layers)
    trained = {
        name: {kind: arrays[kind] / sizes[name] for kind in arrays if kind in _TRAINED}
        for name, arrays in snn.params.items()
    }
    fixed = {
        name: {kind: arrays[kind] for kind in arrays if kind not in _TRAINED}
        for name, arrays in snn.params.items()
    }

    def rounds(params: Params, x: jax.Array) -> Any:
        whole = {
            name: fixed[name] | rounded(arrays, sizes[name])
            for name, arrays in params.items()
        }
        return fn(whole, x)

    return rounds, dataclasses.replace(snn, params=trained)


def with_weights(layers: Layers, params: Params) -> Layers:
    """The layers with the trained weights and biases of `trainable`, rounded."""
    rounded, sizes = _rounding(layers), _sizes(layers)
    whole = {
        name: jax.tree.map(np.asarray, rounded(arrays, sizes[name]))
        for name, arrays in params.items()
    }
    return with_params(layers, whole)


_TRAINED = ("weight", "bias")


def _sizes(layers: Layers) -> dict[str, float]:
    """L of each map, and for the bias of a receiver the largest of those it reads."""
    sizes: dict[str, float] = {}
    for node in layers.nodes:
        if isinstance(node, Affine):
            sizes[node.name] = float(max(np.abs(node.weight).max(), 1))
        elif isinstance(node, Population | Output):
            sizes[node.name] = max(sizes[source] for source in node.sources)
        else:
            sizes[node.name] = 1.0
    return sizes


def _rounding(layers: Layers) -> Callable[[dict[str, jax.Array], float], Any]:
    """(arrays of a node, L) -> whole weights, and biases that are whole multiples."""
    assert layers.arithmetic is not None
    step, is_binary = bias_unit(layers), layers.arithmetic.weight_bits == 1

    def through(value: jax.Array, whole: jax.Array) -> jax.Array:
        return value + jax.lax.stop_gradient(whole - value)

    def rounded(arrays: dict[str, jax.Array], size: float) -> dict[str, jax.Array]:
        results = {}
        if "weight" in arrays:
            w = jnp.clip(arrays["weight"], -1, 1) * size
            whole = jnp.where(w < 0, -size, size) if is_binary else jnp.round(w)
            results["weight"] = through(w, whole)
        if "bias" in arrays:
            b = arrays["bias"] * size
            results["bias"] = through(b, step * jnp.round(b / step))
        return results

    return rounded
