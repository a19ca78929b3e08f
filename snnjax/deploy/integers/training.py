"""Training through the rounding: float weights whose whole numbers are computed with.

    W = clip(round(L w), -L, L)      dW/dw = L, the straight-through gradient

L is the largest weight of a map, so that w lies in [-1, 1]. Thresholds, initial
potentials and recurrent kernels keep their whole numbers. Source of the gradient:
Bengio, Léonard and Courville, arXiv 1308.3432.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import check_finite
from snnjax.deploy.integers.exact import check_whole
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.function import as_function, params_of, with_params
from snnjax.snn import SNN

Params = dict[str, dict[str, jax.Array]]


def trainable(layers: values.Layers) -> tuple[Callable, SNN]:
    """A function that rounds its float weights and biases, and its SNN.

    Both are as those of `snnjax.deploy.as_function`, and the SNN sends the same spikes.
    Train ``snn.params`` alone, e.g. by ``snnjax.training.optimizer({"weights":
    optax.adam(1e-3)})``: thresholds and recurrent kernels have to stay whole.
    `with_weights` puts the trained weights into the layers.

    Args:
        layers: of whole numbers, from `snnjax.deploy.quantize`.

    Returns:
        ``(fn, snn)`` for `snnjax.spiking`. Weights are in units of the largest one of
        their map, biases of the largest weight that their receiver reads. Give them
        ``snnjax.deploy.on_grid(layers, x)``.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.array([[0.5, -1.0]]), "readout": jnp.ones((2, 1))}
    >>> x = jnp.array([[1.0], [-0.5]])
    >>> snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    >>> layers = snnjax.deploy.layers(fn, snn, x)
    >>> layers = snnjax.deploy.quantize(layers, x, weight_bits=4)
    >>> rounds, snn = trainable(layers)
    >>> loss = lambda snn: snnjax.spiking(rounds)(snn, x).mean()
    >>> print(jax.grad(loss)(snn).params["output/0"]["weight"].ravel())
    [0.27857143 0.13928571]
    """
    check_whole(layers)
    fn, snn = as_function(layers)
    rounded, own = _rounding(layers), snn.params

    def rounds(params: Params, x: jax.Array) -> Any:
        return fn({n: own[n] | rounded(n, arrays) for n, arrays in params.items()}, x)

    return rounds, dataclasses.replace(snn, params=_divided(layers))


def with_weights(layers: values.Layers, params: Params) -> values.Layers:
    """The layers with the trained weights and biases of `trainable`, rounded.

    Args:
        layers: those that `trainable` took.
        params: of its SNN, trained: of the same structure and shapes.

    Raises:
        ValueError: other parameters, or numbers that are NaN or infinite.
    """
    check_whole(layers)
    own = _divided(layers)
    shapes, own_shapes = (jax.tree.map(np.shape, tree) for tree in (params, own))
    if shapes != own_shapes:
        shapes = shapes if isinstance(shapes, dict) else {}
        names = [n for n in own_shapes | shapes if shapes.get(n) != own_shapes.get(n)]
        raise ValueError(
            f"params of {', '.join(map(repr, names))} are "
            f"{', '.join(str(shapes.get(n, 'missing')) for n in names)}; allowed: the "
            "structure and shapes of snnjax.deploy.trainable(layers)[1].params"
        )
    check_finite("params", jax.tree.leaves(params))
    rounded = _rounding(layers)
    return with_params(layers, {n: rounded(n, arrays) for n, arrays in params.items()})


def _divided(layers: values.Layers) -> Params:
    """Weights and biases over their L."""
    sizes = _sizes(layers)
    return {
        name: {n: arrays[n] / sizes[name] for n in ("bias", "weight") if n in arrays}
        for name, arrays in params_of(layers).items()
    }


def _sizes(layers: values.Layers) -> dict[str, float]:
    """L of each map, and for the bias of a receiver the largest of those it reads."""
    sizes: dict[str, float] = {}
    for node in layers.nodes:
        if isinstance(node, values.Affine):
            # At least 1, since weights are divided by it, and a map may be all zeros.
            sizes[node.name] = float(max(np.abs(node.weight).max(), 1))
        elif isinstance(node, values.Receiver):
            sizes[node.name] = max(sizes[source] for source in node.sources)
        else:
            sizes[node.name] = 1.0
    return sizes


def _rounding(layers: values.Layers) -> Callable[[str, dict[str, jax.Array]], Any]:
    """(node, its arrays) -> whole weights, and biases that are whole multiples."""
    sizes = _sizes(layers)
    # With one bit a weight is 1 or -1, never 0.
    maps = [n for n in layers.nodes if isinstance(n, values.Convolution | values.Dense)]
    binary = {node.name for node in maps if (np.abs(node.weight) == 1).all()}
    step = layers.bias_unit

    def through(value: jax.Array, whole: jax.Array) -> jax.Array:
        return value + jax.lax.stop_gradient(whole - value)

    def rounded(name: str, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        results, size = {}, sizes[name]
        if "weight" in arrays:
            w = jnp.clip(arrays["weight"], -1, 1) * size
            whole = jnp.where(w < 0, -1.0, 1.0) if name in binary else jnp.round(w)
            results["weight"] = through(w, whole)
        if "bias" in arrays:
            b = arrays["bias"] * size
            results["bias"] = through(b, step * jnp.round(b / step))
        return results

    return rounded
