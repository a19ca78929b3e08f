"""`as_function`: layers as an ordinary JAX function, with a ReLU at every population.

    y_j = relu(sum_i w_ji y_i + b_j) / V_j

A spike of neuron j is worth its threshold V_j in snnjax, and a whole number in the
layers, so the function divides by V_j. The function takes images with the channels
last, [B, H, W, C], where the layers have them first. Its arrays are float32.
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
from snnjax._text import Named
from snnjax.deploy.lowering.sums import compact
from snnjax.deploy.lowering.values import (
    Affine,
    Convolution,
    Dense,
    Flatten,
    Input,
    Layers,
    Node,
    Output,
    Population,
    Receiver,
    Scale,
    Shape,
    SumPool,
    check_layers,
)
from snnjax.network.capture.capture import capture
from snnjax.neurons.by_site import by_name
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.models import NeuronParams
from snnjax.neurons.wrappers import Recurrent, RecurrentParams, WholeNumbers
from snnjax.snn import SNN

# Arrays of one node by name: "weight", "bias", "threshold" and "unit".
Params = dict[str, jax.Array]


def shape_of_x(layers: Layers) -> Shape:
    """The shape of one example of x, [N] or [H, W, C]."""
    shape = layers.input.shape
    if len(shape) == 3:
        channels, rows, columns = shape
        return rows, columns, channels
    return shape


def as_function(layers: Layers) -> tuple[Callable, SNN]:
    """Layers as an ordinary JAX function, and the spiking network of it.

    Simulation, measures, calibration and training apply to both. The spikes are those
    of the SNN from which the layers come, up to rounding.

    Returns:
        ``(fn, snn)``, for ``snnjax.spiking(fn)(snn, x)``. fn takes and returns images
        with the channels last, [B, H, W, C]. It returns several outputs as a dict by
        name. ``fn(snn.params, x)`` has a ReLU at every population. It equals the
        network that was converted, except for calibrated biases and for the maximum of
        a clipped ReLU.

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
    check_layers(layers)
    params = params_of(layers)

    def fn(params: dict[str, Params], x: jax.Array) -> Any:
        return _network_outputs(layers, params, x)

    x = jax.ShapeDtypeStruct((1, *shape_of_x(layers)), jnp.float32)
    network = capture(fn, params, x)
    models: dict[str, Any] = {}
    neurons: dict[str, Any] = {}
    # fn has a ReLU for each population, in their order, and capture keeps this order.
    for site, population in zip(network.sites, layers.populations, strict=True):
        model = _model(population, layers)
        models[site.name], neurons[site.name] = neurons_of(population, model)
    snn = SNN(
        params,
        neurons,
        steps=layers.steps,
        wait=layers.wait,
        model=by_name(models.items()),
        code=layers.code,
    )
    return Named(fn, f"as_function({layers!r})"), snn


def _network_outputs(layers: Layers, params: dict[str, Params], x: jax.Array) -> Any:
    """What the function of `as_function` returns: an array, or several by name."""
    results: dict[str, jax.Array] = {}
    for node in layers.nodes:
        if isinstance(node, Input):
            inputs = [x]
        else:
            inputs = [results[source] for source in node.sources]
        try:
            total = functools.reduce(jnp.add, inputs)
            node_params = params.get(node.name, {})
            results[node.name] = _node_output(node, node_params, total)
        except (TypeError, ValueError) as error:
            error.add_note(f"at node {node.name!r}, channels last")
            raise
    outputs = {node.name: results[node.name] for node in layers.outputs}
    if len(outputs) == 1:
        (output,) = outputs.values()
        return output
    return outputs


def _node_output(node: Node, params: Params, x: jax.Array) -> jax.Array:
    """The output of a node, [B, ...] with channels last.

    Args:
        node: gives the kind of node. Its arrays are not used.
        params: its arrays, see `params_of`; one that is missing is 0 or 1.
        x: the sum of the outputs of its sources; of an `Input` the images themselves.
    """

    def param(name: str) -> jax.Array:
        return lead(params[name], x.ndim)

    if isinstance(node, Input):
        # x is rounded to whole numbers of a unit, if it has one.
        if "unit" in params:
            x = x / param("unit")
        return x
    x = map_output(node, params, x)
    if "bias" in params:
        x = x + param("bias")
    if isinstance(node, Population):
        # capture names a site after its scope, and adds "relu". Without it, the site of
        # "block/relu_1" has this name again.
        site_name = re.fullmatch(r"(.+)/relu(_\d+)?", node.name)
        scope = node.name if site_name is None else site_name[1]
        with jax.named_scope(scope):
            x = jax.nn.relu(x)
        if "threshold" in params:
            x = x / param("threshold")
    if "unit" in params:
        x = x * param("unit")
    return x


def map_output(node: Node, params: Params, x: jax.Array) -> jax.Array:
    """What a map computes without its bias; x itself if the node is no map.

    Args:
        node: gives the kind of map and its windows. Its arrays are not used.
        params: `map_params` of the node.
        x: [B, N] or [B, H, W, C], floats or whole numbers.

    Returns:
        [B, M] or [B, H, W, C].
    """
    match node:
        case Convolution():
            dtype = jnp.result_type(x, params["weight"])
            return jax.lax.conv_general_dilated(
                x.astype(dtype),
                params["weight"].astype(dtype),
                node.stride,
                node.padding,
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
            return x @ params["weight"]
        case Scale():
            return x * lead(params["weight"], x.ndim)
        case SumPool(padding=(rows, columns)):
            return jax.lax.reduce_window(
                x,
                # JAX differentiates only sums that start from a literal.
                0.0 if jnp.issubdtype(x.dtype, jnp.floating) else 0,
                jax.lax.add,
                window_dimensions=(1, *node.window, 1),
                window_strides=(1, *node.stride, 1),
                padding=[(0, 0), (rows, rows), (columns, columns), (0, 0)],
            )
        case Flatten(shape=shape):
            # Layers are channels first, and so is the order of a flattened image.
            if len(shape) == 3:
                x = jnp.moveaxis(x, -1, 1)
            return x.reshape(x.shape[0], -1)
    return x


def map_params(node: Node) -> dict[str, np.ndarray]:
    """The weight of a map with the axes that `map_output` needs; {} without weights."""
    match node:
        case Convolution(weight=weight):
            # [O, I, rows, columns] -> [rows, columns, I, O]
            return {"weight": np.transpose(weight, (2, 3, 1, 0))}
        case Dense(weight=weight):
            # [O, I] -> [I, O]
            return {"weight": np.transpose(weight)}
        case Scale(weight=weight):
            # [], [C, 1, 1] -> [C], or [C, H, W] -> [H, W, C]
            return {"weight": channels_last(weight)}
    return {}


def with_params(layers: Layers, params: Mapping[str, Mapping[str, Any]]) -> Layers:
    """The layers with other weights and biases.

    Args:
        layers: the network.
        params: name of a node -> its arrays, as `params_of` returns them. Thresholds
            and units among them are not read.
    """
    nodes = []
    for node in layers.nodes:
        changes = {}
        for name, array in params.get(node.name, {}).items():
            if name == "weight":
                changes[name] = _weight(node, np.asarray(array, float))
            elif name == "bias":
                changes[name] = _bias(node, np.asarray(array, float))
        nodes.append(dataclasses.replace(node, **changes))
    return dataclasses.replace(layers, nodes=tuple(nodes))


def _weight(node: Node, array: np.ndarray) -> np.ndarray:
    """The weight of a node from that of `map_params`: its inverse."""
    match node:
        case Convolution():
            # [rows, columns, I, O] -> [O, I, rows, columns]
            return np.transpose(array, (3, 2, 0, 1))
        case Dense():
            # [I, O] -> [O, I]
            return np.transpose(array)
        case Scale():
            return channels_first(array, node.shape)
    raise TypeError(f"{node.name!r} has no weight")


def _bias(node: Node, array: np.ndarray) -> np.ndarray:
    """The bias of a node, channels first, from that of `params_of`."""
    if isinstance(node, Receiver):
        return channels_first(array, node.shape)
    return array  # [C] or [N], as a map has it


def channels_first(array: np.ndarray, shape: Shape) -> np.ndarray:
    """The inverse of `channels_last` for a node of this shape."""
    if len(shape) == 3 and array.ndim > 0:
        # [C] -> [1, 1, C] -> [C, 1, 1], or [H, W, C] -> [C, H, W]
        missing_axes = [1] * (3 - array.ndim)
        image = array.reshape(*missing_axes, *array.shape)
        array = np.moveaxis(image, -1, 0)
    return compact(array)


def params_of(layers: Layers) -> dict[str, Params]:
    """The params of `as_function`: name of a node -> its arrays, for nodes with any."""
    params = {}
    for node in layers.nodes:
        arrays = _params(node)
        if arrays:
            params[node.name] = arrays
    return params


def _params(node: Node) -> Params:
    """The arrays of a node by name, channels last, in float32.

    A bias of 0 and a threshold of 1 are left out.
    """
    arrays = map_params(node)
    if isinstance(node, Affine) and node.bias is not None:
        arrays["bias"] = node.bias
    if isinstance(node, Receiver) and node.bias.any():
        arrays["bias"] = channels_last(node.bias)
    if isinstance(node, Population) and (node.threshold != 1).any():
        arrays["threshold"] = channels_last(node.threshold)
    if isinstance(node, Input | Output) and node.unit is not None:
        arrays["unit"] = channels_last(node.unit)
    return {name: _array(array) for name, array in arrays.items()}


def _model(population: Population, layers: Layers) -> Any:
    """The neuron model of a population, which must compute whole numbers exactly."""
    if layers.arithmetic is None:
        return population.model
    if population.is_leaky:
        raise ValueError(
            f"the neurons of {population.name!r} leak, and a chip's rounding of a leak "
            "is computed by snnjax.deploy.run alone; allowed: whole numbers of IF "
            "neurons, or the float layers"
        )
    return WholeNumbers(without_surrogate(population.model), layers.potential_unit)


def neurons_of(population: Population, model: Any, bias: Any = 0) -> tuple[Any, Any]:
    """The model and the parameters of a population, as an SNN has them.

    Recurrent neurons have a `Recurrent` model, and a kernel among the parameters.

    Args:
        population: the neurons.
        model: of each neuron.
        bias: of the neurons; 0 where the function adds the bias of the population.

    Returns:
        The model and the parameters, float32 with channels last.
    """
    leak = None
    if population.leak is not None:
        leak = _array(channels_last(population.leak))
    params = NeuronParams(
        threshold=_array(channels_last(population.threshold)),
        bias=_array(bias),
        initial_potential=_array(channels_last(population.initial_potential)),
        leak=leak,
    )
    if population.recurrent is None:
        return model, params
    # A spike is a whole number in the layers, and worth its neuron's threshold in an
    # SNN. The weight [M, N] leads from column to row, the kernel from row to column.
    kernel = (population.recurrent.weight / population.threshold).T
    return Recurrent(model), RecurrentParams(params, _array(kernel))


def channels_last(array: np.ndarray) -> np.ndarray:
    """Numbers of a node, [], [C, 1, 1], [C, H, W] or [N], with the channels last.

    They are a scalar if all are equal, [C] if those of each channel are equal, and
    otherwise [H, W, C] or [N].
    """
    array = compact(array)
    if array.ndim < 3:
        return array
    if array.shape[1:] == (1, 1):
        return array.ravel()
    return np.moveaxis(array, 0, -1)


def _array(array: Any) -> jax.Array:
    """The numbers in float32."""
    return jax.device_put(np.asarray(array, np.float32))
