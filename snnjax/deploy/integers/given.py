"""`with_numbers`: whole numbers that somebody else chose, in the place of ours.

    v_j <- v_j + sum_i W_ji k_i + B_j,    k_j = clip(floor(v_j / Theta_j), low, high)

A network that a chip's own tools have rounded can so be run, compared and reported.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from snnjax._patterns import matching
from snnjax._ranges import POSITIVE
from snnjax.deploy.integers.rounding import largest_weight
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.own_maps import with_own_maps

_NOTHING = ()  # the weights of a receiver for which none are given
Numbers = Any  # an array or a number, or a mapping of names and patterns to them


def with_numbers(
    layers: values.Layers,
    arithmetic: values.Arithmetic,
    *,
    weights: Mapping[str, Any],
    thresholds: Numbers,
    biases: Numbers = 0,
    initial_potentials: Numbers = 0,
    unit: float = 1.0,
) -> values.Layers:
    """Layers with whole numbers that somebody else chose, for `run` and `report`.

    Numbers are one array for all, or name or pattern of receivers -> array. They are in
    the layers' own order, channels first; neurons keep their levels, reset and bounds.

    Args:
        layers: from `snnjax.deploy.layers` or `from_nir`, whose numbers are dropped.
        arithmetic: bits of weights, x and potentials, what an overflow does, and how a
            leak is rounded.
        weights: of each receiver, as ``layers.connections`` has them: [O, I / groups,
            K, K] of a convolution, [O, I] of a dense layer (it reads an image as
            flattened [C, H, W]); a sequence of them if several maps lead there, where
            that of a recurrent population to itself is the last. Where
            numbers arrive one by one, without weights, a factor; 1 if not given.
        thresholds: of populations, >= 1: a scalar, [C], or of every neuron. A chip that
            fires above V instead of at it has V + 1.
        biases, initial_potentials: likewise, of receivers and of populations.
        unit: what 1 stands for in x.

    Returns:
        Layers whose outputs are whole sums. Under codes other than rate coding biases
        are multiples of w_T, and initial potentials of T w_T.

    Raises:
        ValueError: a shape, a number that is not whole or outside of its bits, or a
            name that does not fit.
        snnjax.ConversionError: two linear maps follow each other without neurons.

    >>> import jax, jax.numpy as jnp, numpy as np, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.ones((2, 3)), "readout": jnp.ones((3, 1))}
    >>> x, neuron = jnp.array([[2.0, 1.0]]), snnjax.integrate_and_fire(reset="zero")
    >>> layers = snnjax.deploy.layers(fn, snnjax.init(fn, params, x, model=neuron), x)
    >>> layers = with_numbers(
    ...     layers, snnjax.deploy.Arithmetic(8, 8, 16, "saturate"), thresholds=5,
    ...     weights={"hidden/relu": np.array([[1, 0], [2, 1], [-1, 1]]),
    ...              "output": np.array([[1, 10, 100]])})
    >>> sequence = jnp.stack([x, x, x])
    >>> print(snnjax.deploy.run(layers, sequence, inputs="sequence").outputs.ravel())
    [10. 10. 11.]
    """
    values.check_layers(layers)
    if not isinstance(arithmetic, values.Arithmetic):
        raise ValueError(f"arithmetic is {arithmetic!r}; allowed: an Arithmetic")
    POSITIVE.check("unit", unit)
    layers = dataclasses.replace(with_own_maps(layers), arithmetic=arithmetic)
    receivers = [node.name for node in layers.receivers]
    populations = [node.name for node in layers.populations]
    of_map = _weights_by_map(layers, weights, receivers)

    def of_each(numbers: Numbers, names: list[str], what: str) -> dict[str, Any]:
        by_pattern = numbers if isinstance(numbers, Mapping) else {"*": numbers}
        return matching(by_pattern, names, what, None if what == "thresholds" else 0)

    v_th = of_each(thresholds, populations, "thresholds")
    start = of_each(initial_potentials, populations, "initial_potentials")
    bias = of_each(biases, receivers, "biases")
    nodes: list[values.Node] = []
    for node in layers.nodes:
        if isinstance(node, values.Input):
            node = dataclasses.replace(node, unit=np.asarray(float(unit)))
        elif node.name in of_map:
            node = dataclasses.replace(node, weight=of_map[node.name])
        elif isinstance(node, values.Receiver):
            own = _of_neurons(bias[node.name], node, "biases") * layers.bias_unit
            node = dataclasses.replace(node, bias=own)
        if isinstance(node, values.Output):
            node = dataclasses.replace(node, unit=np.ones(()))
        if isinstance(node, values.Population):
            for own in values.maps_to_itself(node):
                own = dataclasses.replace(own, weight=of_map[own.name])
                node = dataclasses.replace(node, recurrent=own)
            own = _of_neurons(start[node.name], node, "initial_potentials")
            node = dataclasses.replace(
                node,
                threshold=_of_neurons(v_th[node.name], node, "thresholds", 1),
                initial_potential=own * layers.potential_unit,
            )
        nodes.append(node)
    return dataclasses.replace(layers, nodes=tuple(nodes))


def _weights_by_map(
    layers: values.Layers, weights: Mapping[str, Any], receivers: list[str]
) -> dict[str, np.ndarray]:
    """Name of each map -> its weights."""
    nodes = {node.name: node for node in layers.nodes}
    given = matching(weights, receivers, "weights", _NOTHING) if weights else {}
    assert layers.arithmetic is not None
    bits, results = layers.arithmetic.weight_bits, {}
    least, most = -(2 ** (bits - 1)), largest_weight(bits)
    for receiver in layers.receivers:
        own: Any = given.get(receiver.name, _NOTHING)
        arrays = own if isinstance(own, Sequence) and own else [own]
        maps: list[Any] = [nodes[source] for source in receiver.sources]
        maps += values.maps_to_itself(receiver)
        are_scales = [isinstance(node, values.Scale) for node in maps]
        shapes = ", ".join(str(node.weight.shape) for node in maps)
        if own is _NOTHING and all(are_scales):
            arrays = [1] * len(maps)
        elif own is _NOTHING:
            raise ValueError(
                f"no weights are given for {receiver.name!r}; allowed: whole numbers "
                f"of the shape {shapes}"
            )
        if len(arrays) != len(maps):
            raise ValueError(
                f"weights of {receiver.name!r} are {len(arrays)} arrays; allowed: "
                f"{len(maps)}, of the shapes {shapes}"
            )
        for node, array, is_scale in zip(maps, arrays, are_scales, strict=True):
            if is_scale:
                whole = _of_neurons(array, receiver, "weights", least, most)
            else:
                what = f"weights of {receiver.name!r}"
                whole = _whole(array, what, [node.weight.shape], least, most)
            results[node.name] = whole
    return results


def _of_neurons(
    numbers: Any,
    node: values.Receiver,
    what: str,
    least: int = 1 - 2**30,
    most: int = 2**30 - 1,
) -> np.ndarray:
    """Numbers of a receiver: a scalar, [C, 1, 1], or of every neuron."""
    channels, *size = node.shape
    of_channel = (channels, *[1] * len(size))
    shapes = dict.fromkeys(((), (channels,), of_channel, tuple(node.shape)))
    whole = _whole(numbers, f"{what} of {node.name!r}", [*shapes], least, most)
    return whole.reshape(of_channel) if whole.shape == (channels,) else whole


def _whole(
    numbers: Any, what: str, shapes: Sequence[tuple[int, ...]], least: int, most: int
) -> np.ndarray:
    """An array of one of these shapes, of whole numbers within these limits."""
    array = np.asarray(numbers, np.float64)
    if array.shape not in shapes:
        allowed = " or ".join(map(str, shapes))
        raise ValueError(f"{what} have shape {array.shape}; allowed: {allowed}")
    if (array != np.rint(array)).any() or array.min() < least or array.max() > most:
        raise ValueError(
            f"{what} are from {array.min():g} to {array.max():g}; allowed: whole "
            f"numbers {least} .. {most}"
        )
    return array
