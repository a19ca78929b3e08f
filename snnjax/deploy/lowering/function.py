"""`as_function`: layers as an ordinary JAX function, with a ReLU at every population.

    y_j = relu(sum_i w_ji y_i + b_j) / V_j

A spike carries V_j in snnjax and a whole number in the layers, so the function divides.
Images are channels last here, arrays in float32.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import lead
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.sums import compact
from snnjax.network.capture.capture import capture
from snnjax.neurons.by_site import by_name
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.models import NeuronParams
from snnjax.neurons.wrappers import Recurrent, RecurrentParams, WholeNumbers
from snnjax.snn import SNN

Params = dict[str, jax.Array]


def shape_of_x(layers: values.Layers) -> tuple[int, ...]:
    """The shape of an example, [N] or [H, W, C]."""
    shape = layers.input.shape
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


def as_function(layers: values.Layers) -> tuple[Callable, SNN]:
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
    >>> layers = snnjax.deploy.layers(fn, snn, x)
    >>> same_fn, same_snn = snnjax.deploy.as_function(layers)
    >>> print(snnjax.spiking(same_fn)(same_snn, x).ravel())
    [2.25 2.25 2.25 2.25]
    """
    params = params_of(layers)
    outputs = [node.name for node in layers.outputs]

    def fn(params: dict[str, Params], x: jax.Array) -> Any:
        sent = {}
        for node in layers.nodes:
            inputs = [sent[source] for source in node.sources] or [x]
            try:
                total = functools.reduce(jnp.add, inputs)
                sent[node.name] = _node_output(node, params.get(node.name, {}), total)
            except (TypeError, ValueError) as error:
                error.add_note(f"at node {node.name!r}, channels last")
                raise
        if len(outputs) == 1:
            return sent[outputs[0]]
        return {name: sent[name] for name in outputs}

    x = jax.ShapeDtypeStruct((1, *shape_of_x(layers)), jnp.float32)
    network = capture(fn, params, x)
    # A ReLU was added per population, in their order, and capture keeps this order.
    sites = [site.name for site in network.sites]
    pairs = [*zip(sites, layers.populations, strict=True)]
    both = {site: neurons_of(p, _model(p, layers)) for site, p in pairs}
    models = ((site, model) for site, (model, _) in both.items())
    return fn, SNN(
        params,
        {site: neurons for site, (_, neurons) in both.items()},
        steps=layers.steps,
        wait=layers.wait,
        model=by_name(models),
        code=layers.code,
    )


def _node_output(node: values.Node, p: Params, x: jax.Array) -> jax.Array:
    """The output of a node, channels last."""

    def own(name: str) -> jax.Array:
        return lead(p[name], x.ndim)

    if isinstance(node, values.Input):
        return x / own("unit") if p else x
    x = map_output(node, p, x)
    x = x + own("bias") if "bias" in p else x
    if isinstance(node, values.Population):
        # A site is named after its scope: that of "block/relu_1" is "block".
        matched = re.fullmatch(r"(.+)/relu(_\d+)?", node.name)
        with jax.named_scope(matched[1] if matched else node.name):
            x = jax.nn.relu(x)
        x = x / own("threshold") if "threshold" in p else x
    return x * own("unit") if "unit" in p else x


def map_output(node: values.Node, p: Params, x: jax.Array) -> jax.Array:
    """The linear part of a node, channels last; that of a population is the identity.

    Args:
        node: with its structure; its arrays are not used.
        p: `map_params` of the node.
        x: [B, ...], floats or whole numbers.
    """
    match node:
        case values.Convolution():
            dtype = jnp.result_type(x, p["weight"])
            x = jax.lax.conv_general_dilated(
                x.astype(dtype),
                p["weight"].astype(dtype),
                node.stride,
                node.padding,
                rhs_dilation=node.dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=node.groups,
            )
        case values.Dense():
            if x.ndim > 3:
                raise ValueError(
                    f"its input is an image {x.shape[1:]}; allowed: a vector. Put a "
                    "Flatten before it"
                )
            x = x @ p["weight"]
        case values.Scale():
            x = x * lead(p["weight"], x.ndim)
        case values.SumPool(window=window, stride=stride):
            padding = [(0, 0), *((n, n) for n in node.padding), (0, 0)]
            window, stride = (1, *window, 1), (1, *stride, 1)
            # JAX differentiates only sums that start from a literal.
            zero = 0.0 if jnp.issubdtype(x.dtype, jnp.floating) else 0
            x = jax.lax.reduce_window(x, zero, jax.lax.add, window, stride, padding)
        case values.Flatten(shape=shape):
            # Layers are channels first, and so is the order of a flattened image.
            x = jnp.moveaxis(x, -1, 1) if len(shape) == 3 else x
            x = x.reshape(x.shape[0], -1)
    return x


def map_params(node: values.Node) -> dict[str, np.ndarray]:
    """The weight of a linear map in the order of `map_output`."""
    match node:
        case values.Convolution(weight=weight):
            return {"weight": np.transpose(weight, (2, 3, 1, 0))}
        case values.Dense(weight=weight):
            return {"weight": np.transpose(weight)}
        case values.Scale(weight=weight):
            return {"weight": channels_last(weight)}
    return {}


def with_params(
    layers: values.Layers, params: Mapping[str, Mapping[str, Any]]
) -> values.Layers:
    """The layers with other weights and biases, in the form of `params_of`."""
    nodes = []
    for node in layers.nodes:
        arrays, changes = params.get(node.name, {}), {}
        for kind in {"weight", "bias"}.intersection(arrays):
            array = np.asarray(arrays[kind], float)
            match node:
                case values.Convolution() if kind == "weight":
                    array = np.transpose(array, (3, 2, 0, 1))
                case values.Dense() if kind == "weight":
                    array = np.transpose(array)
                case values.Scale() if kind == "weight":
                    array = channels_first(array, node.shape)
                case values.Population() | values.Output():
                    array = channels_first(array, node.shape)
            changes[kind] = array
        nodes.append(dataclasses.replace(node, **changes))
    return dataclasses.replace(layers, nodes=tuple(nodes))


def channels_first(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `channels_last` for a node of this shape."""
    if len(shape) == 3 and array.ndim:
        image = np.reshape(array, (1,) * (3 - array.ndim) + array.shape)
        array = np.moveaxis(image, -1, 0)
    return compact(array)


def params_of(layers: values.Layers) -> dict[str, Params]:
    """The params of `as_function`: node -> the arrays that it needs."""
    return {node.name: arrays for node in layers.nodes if (arrays := _params(node))}


def _params(node: values.Node) -> Params:
    arrays = map_params(node)
    if isinstance(node, values.Affine) and node.bias is not None:
        arrays["bias"] = node.bias
    if isinstance(node, values.Receiver) and node.bias.any():
        arrays["bias"] = channels_last(node.bias)
    if isinstance(node, values.Population) and (node.threshold != 1).any():
        arrays["threshold"] = channels_last(node.threshold)
    if isinstance(node, values.Input | values.Output) and node.unit is not None:
        arrays["unit"] = channels_last(node.unit)
    return {name: _array(array) for name, array in arrays.items()}


def _model(population: values.Population, layers: values.Layers) -> Any:
    """The model of a population; that of whole numbers is exact in floats."""
    if layers.arithmetic is None:
        return population.model
    if population.is_leaky:
        raise ValueError(
            f"the neurons of {population.name!r} leak, and a chip's rounding of a leak "
            "is computed by snnjax.deploy.run alone; allowed: whole numbers of IF "
            "neurons, or the float layers"
        )
    return WholeNumbers(without_surrogate(population.model), layers.potential_unit)


def neurons_of(
    population: values.Population, model: Any, bias: Any = 0
) -> tuple[Any, Any]:
    """The model and parameters of a population, with a recurrent kernel around both.

    ``model`` is that of each neuron. The function adds the bias, or else it is given.
    """
    leak, recurrent = population.leak, population.recurrent
    params = NeuronParams(
        threshold=_array(channels_last(population.threshold)),
        bias=_array(bias),
        initial_potential=_array(channels_last(population.initial_potential)),
        leak=None if leak is None else _array(channels_last(leak)),
    )
    if recurrent is None:
        return model, params
    # There a spike is worth its neuron's threshold, here it is a whole number.
    kernel = (recurrent.weight / population.threshold).T
    return Recurrent(model), RecurrentParams(params, _array(kernel))


def channels_last(array: np.ndarray) -> np.ndarray:
    """A scalar, [C] or, channels last, one number per neuron."""
    array = compact(array)
    if array.ndim == 3 and array.shape[1:] == (1, 1):
        return array.ravel()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _array(array: Any) -> jax.Array:
    return jnp.asarray(np.asarray(array, np.float32))
