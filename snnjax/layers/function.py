"""`function`: layers as an ordinary JAX function, with a ReLU at every population.

    y_j = relu(sum_i w_ji y_i + b_j) / V_j

A spike carries V_j in snnjax and a whole number in the layers, so the function divides.
Images are channels last here, arrays in float32.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax.capture.capture import capture
from snnjax.layers.sums import compact
from snnjax.layers.values import (
    Convolution,
    Dense,
    Flatten,
    Input,
    Layers,
    Node,
    Output,
    Population,
    Scale,
    SumPool,
)
from snnjax.neurons.by_site import by_name
from snnjax.neurons.models import NeuronParams
from snnjax.snn import SNN

Params = dict[str, jax.Array]


def function(layers: Layers) -> tuple[Callable, SNN]:
    """Layers as an ordinary JAX function, and the spiking network of it.

    Simulation, measures, calibration and training apply to both. The spikes are those
    of the SNN from which the layers come, up to rounding.

    Returns:
        ``(fn, snn)``, for ``snnjax.spiking(fn)(snn, x)``. Images are channels last: fn
        takes and returns [B, H, W, C]. Several outputs are a dict by name.
        ``fn(snn.params, x)`` has a ReLU at every population. It equals the network that
        was converted, except for calibrated biases and for the maximum of a clipped
        ReLU.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.ones((2, 3)), "readout": jnp.ones((3, 1))}
    >>> x = jnp.array([[0.5, 0.25]])
    >>> snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    >>> layers = snnjax.layers.of(fn, snn, x)
    >>> same_fn, same_snn = snnjax.layers.function(layers)
    >>> print(snnjax.spiking(same_fn)(same_snn, x).ravel())
    [2.25 2.25 2.25 2.25]
    """
    params = {n.name: arrays for n in layers.nodes if (arrays := _params(n))}
    outputs = [node.name for node in layers.outputs]

    def fn(params: dict[str, Params], x: jax.Array) -> Any:
        values = {}
        for node in layers.nodes:
            inputs = [values[source] for source in node.sources] or [x]
            try:
                total = functools.reduce(jnp.add, inputs)
                values[node.name] = _apply(node, params.get(node.name, {}), total)
            except (TypeError, ValueError) as error:
                error.add_note(f"at node {node.name!r}, channels last")
                raise
        if len(outputs) == 1:
            return values[outputs[0]]
        return {name: values[name] for name in outputs}

    (shape,) = [node.shape for node in layers.nodes if isinstance(node, Input)]
    shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
    network = capture(fn, params, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    sites = [site.name for site in network.sites]
    pairs = [*zip(sites, layers.populations, strict=True)]
    return fn, SNN(
        params,
        {site: _neurons(population) for site, population in pairs},
        steps=layers.steps,
        wait=layers.wait,
        model=by_name((site, population.model) for site, population in pairs),
        code=layers.code,
    )


def _apply(node: Node, p: Params, x: jax.Array) -> jax.Array:
    """The output of a node, channels last."""
    match node:
        case Convolution(padding=padding):
            dtype = jnp.result_type(x, p["weight"])
            x = jax.lax.conv_general_dilated(
                x.astype(dtype),
                p["weight"].astype(dtype),
                node.stride,
                padding if isinstance(padding, str) else [(n, n) for n in padding],
                rhs_dilation=node.dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=node.groups,
            )
        case Dense():
            if x.ndim > 3:
                raise ValueError(
                    f"its input is an image {x.shape[1:]}; allowed: a vector. Put a "
                    "Flatten before it"
                )
            x = x @ p["weight"]
        case Scale():
            x = x * p["weight"]
        case SumPool(window=window, stride=stride):
            padding = [(0, 0), *((n, n) for n in node.padding), (0, 0)]
            window, stride = (1, *window, 1), (1, *stride, 1)
            x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, stride, padding)
        case Flatten(shape=shape):
            x = jnp.moveaxis(x, -1, 1) if len(shape) == 3 else x
            x = x.reshape(x.shape[0], -1)
    x = x + p["bias"] if "bias" in p else x
    if isinstance(node, Population):
        # A site is named after its scope: that of "block/relu_1" is "block".
        matched = re.fullmatch(r"(.+)/relu(_\d+)?", node.name)
        with jax.named_scope(matched[1] if matched else node.name):
            x = jax.nn.relu(x)
        x = x / p["threshold"] if "threshold" in p else x
    return x


def _params(node: Node) -> Params:
    """The arrays of a node that its function needs."""
    arrays = {}
    match node:
        case Convolution(weight=weight):
            arrays["weight"] = _array(np.transpose(weight, (2, 3, 1, 0)))
        case Dense(weight=weight):
            arrays["weight"] = _array(np.transpose(weight))
        case Scale(weight=weight):
            arrays["weight"] = _channels_last(weight)
        case Population(threshold=threshold) if (threshold != 1).any():
            arrays["threshold"] = _channels_last(threshold)
    match node:
        case Convolution(bias=bias) | Dense(bias=bias) | Scale(bias=bias):
            arrays |= {} if bias is None else {"bias": _array(bias)}
        case Population(bias=bias) | Output(bias=bias) if bias.any():
            arrays["bias"] = _channels_last(bias)
    return arrays


def _neurons(population: Population) -> NeuronParams:
    leak = population.leak
    return NeuronParams(
        threshold=_channels_last(population.threshold),
        bias=_array(0),  # the function adds it
        initial_potential=_channels_last(population.initial_potential),
        leak=None if leak is None else _channels_last(leak),
    )


def _channels_last(values: np.ndarray) -> jax.Array:
    """A scalar, [C] or, channels last, one number per neuron."""
    values = compact(values)
    if values.ndim == 3 and values.shape[1:] == (1, 1):
        return _array(values.ravel())
    return _array(np.moveaxis(values, 0, -1) if values.ndim == 3 else values)


def _array(values: Any) -> jax.Array:
    return jnp.asarray(np.asarray(values, np.float32))
