"""Training through the rounding: float weights whose whole numbers are computed with.

    W = clip(round(L w), -L, L)      dW/dw = L, the straight-through gradient

L is the largest weight of a map, so that w lies in [-1, 1]. Thresholds, initial
potentials and recurrent kernels keep their whole numbers. For biases L is the largest
weight that their receiver reads. Source of the gradient:
Bengio, Léonard and Courville, arXiv 1308.3432.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import straight_through
from snnjax._checks import check_finite
from snnjax._text import Named
from snnjax.deploy.integers.exact import check_whole
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.function import as_function, params_of, with_params
from snnjax.snn import SNN

Params = dict[str, dict[str, jax.Array]]  # node -> "weight", "bias" ... -> array


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
    >>> print(jax.jit(jax.grad(loss))(snn).params["output/0"]["weight"].ravel())
    [0.27857143 0.13928571]
    """
    check_whole(layers)
    fn, snn = as_function(layers)
    whole_params = snn.params
    rounded = _rounding(layers)

    def rounds(params: Params, x: jax.Array) -> Any:
        rounded_params = {}
        for name, arrays in params.items():
            # Thresholds and units, which are not trained, stay as they are.
            rounded_params[name] = whole_params[name] | rounded(name, arrays)
        return fn(rounded_params, x)

    named_function = Named(rounds, f"trainable({layers!r})")
    return named_function, dataclasses.replace(snn, params=_divided(layers))


def with_weights(layers: values.Layers, params: Params) -> values.Layers:
    """The layers with the trained weights and biases of `trainable`, rounded.

    Args:
        layers: those that `trainable` took.
        params: of its SNN, trained: of the same structure and shapes.

    Raises:
        ValueError: other parameters, or numbers that are NaN or infinite.
    """
    check_whole(layers)
    expected = jax.tree.map(np.shape, _divided(layers))
    shapes = jax.tree.map(np.shape, params)
    if shapes != expected:
        if not isinstance(shapes, dict):
            shapes = {}
        names = []
        problems = []
        for name in expected | shapes:
            if shapes.get(name) != expected.get(name):
                names.append(repr(name))
                problems.append(str(shapes.get(name, "missing")))
        raise ValueError(
            f"params of {', '.join(names)} are {', '.join(problems)}; allowed: the "
            "structure and shapes of snnjax.deploy.trainable(layers)[1].params"
        )
    check_finite("params", jax.tree.leaves(params))
    rounded = _rounding(layers)
    whole_params = {name: rounded(name, arrays) for name, arrays in params.items()}
    return with_params(layers, whole_params)


def _divided(layers: values.Layers) -> Params:
    """Node -> its weight and bias, whole numbers divided by their L."""
    largest = _largest_weights(layers)
    divided: Params = {}
    for name, arrays in params_of(layers).items():
        divided[name] = {}
        for kind in ("bias", "weight"):
            if kind in arrays:
                divided[name][kind] = arrays[kind] / largest[name]
    return divided


def _largest_weights(layers: values.Layers) -> dict[str, float]:
    """L of each map, and for the bias of a receiver the largest of those it reads."""
    largest: dict[str, float] = {}
    for node in layers.nodes:
        if isinstance(node, values.Affine):
            # At least 1, since weights are divided by it, and a map may be all zeros.
            largest[node.name] = float(max(np.abs(node.weight).max(), 1))
        elif isinstance(node, values.Receiver):
            largest[node.name] = max(largest[source] for source in node.sources)
        else:
            largest[node.name] = 1.0
    return largest


def _rounding(layers: values.Layers) -> Callable[[str, dict[str, jax.Array]], Any]:
    """The function (name of a node, its arrays) -> the arrays, rounded.

    It takes what `_divided` returns. Its weights are whole numbers, its biases whole
    multiples of `Layers.bias_unit`, and their gradient is straight-through.
    """
    largest = _largest_weights(layers)
    bias_unit = layers.bias_unit
    # With one bit a weight is 1 or -1, never 0.
    binary = set()
    for node in layers.nodes:
        is_matrix = isinstance(node, values.Convolution | values.Dense)
        if is_matrix and (np.abs(node.weight) == 1).all():
            binary.add(node.name)

    def rounded(name: str, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        results = {}
        if "weight" in arrays:
            weight = jnp.clip(arrays["weight"], -1, 1) * largest[name]
            if name in binary:
                whole = jnp.where(weight < 0, -1.0, 1.0)
            else:
                whole = jnp.round(weight)
            results["weight"] = straight_through(whole, weight)
        if "bias" in arrays:
            bias = arrays["bias"] * largest[name]
            whole = bias_unit * jnp.round(bias / bias_unit)
            results["bias"] = straight_through(whole, bias)
        return results

    return rounded
