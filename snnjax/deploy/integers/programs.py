"""Compiled programs of a calibration: what nodes send, what arrives, and its moments.

    H = cov(x'), C = cov(x, x')

x is what a map reads in the float network, x' the same in the network of whole numbers:
the decoded values, sums over all steps in units of T w_T (``streams.py``). A map has O
rows of weights. They form G groups, each of which reads n numbers by itself: the groups
of a convolution, or one for a dense map; n counts the channels of a group times the
places of a kernel. N counts the calibration images.

structure: the pytree structure of a node without its name and arrays. It is a static
argument, so all nodes of equal structures and shapes share a compiled program.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import per_step
from snnjax.deploy.integers import streams
from snnjax.deploy.integers.streams import Stream
from snnjax.deploy.integers.timing import Timing, timing
from snnjax.deploy.lowering.function import channels_last, map_params, neurons_of
from snnjax.deploy.lowering.values import (
    Affine,
    Convolution,
    Dense,
    Layers,
    Map,
    Node,
    Population,
    Scale,
)
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.protocol import field
from snnjax.neurons.unroll import unroll

_LARGEST_SAMPLE_COUNT = 1 << 16  # of a covariance


class StreamPair(NamedTuple):
    """What a node sends in the float network, and in that of whole numbers.

    Spikes are levels in both. x is divided by the input's unit in both, and rounded
    only in that of whole numbers.
    """

    floats: Stream
    whole: Stream


class Moments(NamedTuple):
    """Covariances of the n numbers that each of G groups of rows reads, [G, n, n].

    Attributes:
        covariance: H, of what a group reads in the network of whole numbers.
        cross_covariance: C, of what it reads in the float network (rows) with that.
    """

    covariance: Any
    cross_covariance: Any


def map_pair(node: Map, pair: StreamPair) -> StreamPair:
    """What a map without weights sends, from what it reads."""
    structure = _structure(node)
    floats = _mapped(structure, {}, pair.floats)
    return StreamPair(floats, _mapped(structure, {}, pair.whole))


def currents_and_moments(
    layers: Layers, maps: Sequence[Affine], pairs: Sequence[StreamPair]
) -> tuple[jax.Array, list[Moments]]:
    """The float currents into a receiver, and the moments of each of its maps.

    Args:
        layers: the network.
        maps: the maps into the receiver.
        pairs: what each of them reads in both networks.

    Returns:
        What arrives through all maps in the float network, as `arriving_currents`
        [T, N, ...], and moments in double precision.
    """
    structures = tuple(_structure(node) for node in maps)
    params = [_float_params(node) for node in maps]
    currents, moments = _currents_and_moments(
        structures, timing(layers), params, list(pairs)
    )
    return currents, jax.tree.map(lambda h: np.asarray(h, np.float64), moments)


def arriving_currents(
    layers: Layers, maps: Sequence[Affine], sent: Sequence[Stream]
) -> jax.Array:
    """What arrives through some maps, in units, without a bias: [T, N, ...].

    ``sent`` is what each of the maps reads.
    Sums of whole numbers above 2^24 are rounded to float32, which is enough to choose
    scales and biases.
    """
    structures = tuple(_structure(node) for node in maps)
    params = [_float_params(node) for node in maps]
    return _currents(structures, timing(layers), params, list(sent))


def float_levels(layers: Layers, node: Population, currents: jax.Array) -> Stream:
    """The levels that a population sends in the float network.

    ``currents`` are in units, without its bias: [T, N, ...].
    """
    bias = channels_last(node.bias)
    model, params = neurons_of(node, without_surrogate(node.model), bias)
    return Stream(None, _levels(timing(layers), model, params, currents))


@jax.jit
def mean_total(currents: jax.Array) -> jax.Array:
    """The mean of what arrives in all steps, [C]: of each channel or element.

    ``currents`` are [T, N, ..., C].
    """
    totals = currents.sum(0).astype(jnp.float32)
    return totals.mean(range(totals.ndim - 1))


def _structure(node: Node) -> Any:
    """The pytree structure of a node without its name and sources."""
    return jax.tree.structure(dataclasses.replace(node, name="", sources=()))


def _float_params(node: Affine) -> dict[str, np.ndarray]:
    """{"weight": the weight of a map in float32}, channels last."""
    params = map_params(node)
    return {name: np.asarray(array, np.float32) for name, array in params.items()}


@functools.partial(jax.jit, static_argnums=0)
def _mapped(structure: Any, params: dict[str, Any], stream: Stream) -> Stream:
    """What a map of this structure makes of a stream; ``params`` has its weight."""
    return streams.map_stream(streams.without_arrays(structure), params, stream)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _currents(
    structures: tuple[Any, ...],
    times: Timing,
    params: Sequence[dict[str, Any]],
    sent: Sequence[Stream],
) -> jax.Array:
    """`arriving_currents` of maps of these structures, as a program."""
    arriving = []
    for structure, weights, stream in zip(structures, params, sent, strict=True):
        arriving.append(_mapped(structure, weights, stream))
    return streams.received_currents(streams.add_streams(arriving), times)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _currents_and_moments(
    structures: tuple[Any, ...],
    times: Timing,
    params: Sequence[dict[str, Any]],
    pairs: Sequence[StreamPair],
) -> tuple[jax.Array, list[Moments]]:
    """`currents_and_moments` of maps of these structures, as a program."""
    moments = []
    for structure, weights, pair in zip(structures, params, pairs, strict=True):
        node = streams.without_arrays(structure)
        # Rows and columns of a convolution's kernel; other maps do not read them.
        kernel = weights["weight"].shape[:2]
        floats = _samples(node, kernel, _decoded(pair.floats, times))
        whole = _samples(node, kernel, _decoded(pair.whole, times))
        moments.append(Moments(_covariance(whole, whole), _covariance(floats, whole)))
    currents = _currents(structures, times, params, [pair.floats for pair in pairs])
    return currents, moments


@functools.partial(jax.jit, static_argnums=(0, 1))
def _levels(times: Timing, model: Any, params: Any, currents: jax.Array) -> jax.Array:
    """`float_levels`, [T, N, ...], as a program."""
    code, steps, wait = times
    sizes = code.sizes(steps)  # T w_t of a spike
    currents = currents * sizes[-1]
    spikes = unroll(model, params, currents, wait=wait, code=code)
    # A spike of level k at step t is T w_t k V.
    spike_sizes = per_step(jnp.asarray(sizes), currents.ndim)
    return jnp.round(spikes / (spike_sizes * field(params, "threshold")))


def _decoded(stream: Stream, times: Timing) -> jax.Array:
    """The decoded value of a stream, float [N, ...]: its sum over steps in units."""
    constant, spikes = stream
    if constant is not None:
        constant = float(times.inputs.sum()) * constant.astype(jnp.float32)
    if spikes is not None:
        multiples = jnp.asarray(times.multiples, jnp.float32)
        spikes = jnp.tensordot(multiples, spikes.astype(jnp.float32), 1)
    return streams.add_arrays([constant, spikes])


def _samples(node: Affine, kernel: tuple[int, ...], x: jax.Array) -> jax.Array:
    """The n numbers that each group of rows reads at each place: [samples, G, n].

    Args:
        node: the map.
        kernel: rows and columns of the kernel of a convolution.
        x: decoded values that the map reads, [N, ...].
    """
    match node:
        case Convolution(groups=groups):
            patches = jax.lax.conv_general_dilated_patches(
                x,
                kernel,
                node.stride,
                node.padding,
                rhs_dilation=node.dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            # Patches [N, rows, columns, C kernel], with all of a channel together.
            samples = patches.reshape(-1, groups, patches.shape[-1] // groups)
        case Dense():
            samples = x[:, None]
        case Scale():
            # Each channel is a group that reads itself.
            samples = x.reshape(-1, x.shape[-1], 1)
    # A covariance needs no more samples than these. Those left out lie evenly between.
    stride = math.ceil(len(samples) / _LARGEST_SAMPLE_COUNT)
    return samples[::stride]


def _covariance(x: jax.Array, y: jax.Array) -> jax.Array:
    """cov(x, y) of each group, [G, n, n], over samples [samples, G, n]."""
    x = x - x.mean(0, keepdims=True)
    y = y - y.mean(0, keepdims=True)
    return jnp.einsum("sgi,sgj->gij", x, y, precision="highest") / len(x)
