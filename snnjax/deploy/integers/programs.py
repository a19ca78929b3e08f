"""Compiled programs of a calibration: what nodes send, what arrives, and its moments.

    H = cov(x'), C = cov(x, x')

x is what a map reads in the float network, x' the same in the network of whole numbers.
Equal structures share a program: names and arrays of nodes are no part of it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax.deploy.integers import streams
from snnjax.deploy.integers.streams import Stream
from snnjax.deploy.integers.timing import Timing, timing
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.function import channels_last, map_params, neurons_of
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.protocol import field
from snnjax.neurons.unroll import unroll

_MOST_SAMPLES = 1 << 16  # of a moment


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


def map_pair(node: values.Map, pair: StreamPair) -> StreamPair:
    """What a node without weights sends."""
    structure = _structure(node)
    floats = _mapped(structure, {}, pair.floats)
    return StreamPair(floats, _mapped(structure, {}, pair.whole))


def currents_and_moments(
    layers: values.Layers, maps: Sequence[values.Affine], pairs: Sequence[StreamPair]
) -> tuple[jax.Array, list[Moments]]:
    """Currents of the float network, and the moments of what each map reads.

    ``pairs`` are what the maps read. Currents are those of `arriving_currents`, moments
    in double precision.
    """
    structures = tuple(_structure(node) for node in maps)
    params = [_float_params(node) for node in maps]
    currents, moments = _currents_and_moments(
        structures, timing(layers), params, list(pairs)
    )
    return currents, [
        Moments(np.asarray(second, np.float64), np.asarray(cross, np.float64))
        for second, cross in moments
    ]


def arriving_currents(
    layers: values.Layers, maps: Sequence[values.Affine], sent: Sequence[Stream]
) -> jax.Array:
    """What arrives through some maps, in units, without a bias: [T, N, ...].

    Sums of whole numbers above 2^24 are rounded to float32, which is enough to choose
    scales and biases.
    """
    structures = tuple(_structure(node) for node in maps)
    params = [_float_params(node) for node in maps]
    return _currents(structures, timing(layers), params, list(sent))


def float_levels(
    layers: values.Layers, node: values.Population, currents: jax.Array
) -> Stream:
    """The levels that a population sends in the float network.

    ``currents`` are in units, without its bias: [T, N, ...].
    """
    bias = channels_last(node.bias)
    model, params = neurons_of(node, without_surrogate(node.model), bias)
    return Stream(None, _levels(timing(layers), model, params, currents))


@jax.jit
def mean_total(currents: jax.Array) -> jax.Array:
    """The mean of what arrives in all steps, of each channel or element."""
    totals = currents.sum(0).astype(jnp.float32)
    return totals.mean(range(totals.ndim - 1))


def _structure(node: values.Node) -> Any:
    """A node without its name and arrays."""
    return jax.tree.structure(dataclasses.replace(node, name="", sources=()))


def _float_params(node: values.Affine) -> dict[str, np.ndarray]:
    """The weight of a map in float32."""
    params = map_params(node)
    return {name: np.asarray(array, np.float32) for name, array in params.items()}


@functools.partial(jax.jit, static_argnums=0)
def _mapped(structure: Any, params: dict[str, Any], stream: Stream) -> Stream:
    return streams.map_stream(streams.without_arrays(structure), params, stream)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _currents(
    structures: tuple[Any, ...],
    times: Timing,
    params: Sequence[dict[str, Any]],
    sent: Sequence[Stream],
) -> jax.Array:
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
    moments = []
    for structure, weights, pair in zip(structures, params, pairs, strict=True):
        node = streams.without_arrays(structure)
        kernel = weights["weight"].shape[:2]
        floats = _samples(node, kernel, _decoded(pair.floats, times))
        whole = _samples(node, kernel, _decoded(pair.whole, times))
        moments.append(Moments(_covariance(whole, whole), _covariance(floats, whole)))
    currents = _currents(structures, times, params, [pair.floats for pair in pairs])
    return currents, moments


@functools.partial(jax.jit, static_argnums=(0, 1))
def _levels(times: Timing, model: Any, params: Any, currents: jax.Array) -> jax.Array:
    code, steps, wait = times
    currents = currents * code.sizes(steps)[-1]
    spikes = unroll(model, params, currents, wait=wait, code=code)
    sizes = jnp.asarray(code.sizes(steps)).reshape(-1, *[1] * (currents.ndim - 1))
    return jnp.round(spikes / (sizes * field(params, "threshold")))


def _decoded(stream: Stream, times: Timing) -> jax.Array:
    """What all steps of a stream add up to, in units: float [N, ...]."""
    constant, spikes = stream
    if constant is not None:
        constant = float(times.inputs.sum()) * constant.astype(jnp.float32)
    if spikes is not None:
        multiples = jnp.asarray(times.multiples, jnp.float32)
        spikes = jnp.tensordot(multiples, spikes.astype(jnp.float32), 1)
    return streams.add_arrays([constant, spikes])


def _samples(node: values.Affine, kernel: tuple[int, ...], x: jax.Array) -> jax.Array:
    """What each group of rows reads, at each place of x: [samples, G, n]."""
    match node:
        case values.Convolution(groups=groups):
            patches = jax.lax.conv_general_dilated_patches(
                x,
                kernel,
                node.stride,
                node.padding,
                rhs_dilation=node.dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            samples = patches.reshape(-1, groups, patches.shape[-1] // groups)
        case values.Dense():
            samples = x[:, None]
        case values.Scale():  # each channel is a group that reads itself
            samples = x.reshape(-1, x.shape[-1], 1)
    # A moment needs no more samples; those left out lie evenly between the kept ones.
    stride = -(-len(samples) // _MOST_SAMPLES)
    return samples[::stride]


def _covariance(x: jax.Array, y: jax.Array) -> jax.Array:
    """cov(x, y) of samples [samples, G, n]: [G, n, n]."""
    x = x - x.mean(0, keepdims=True)
    y = y - y.mean(0, keepdims=True)
    return jnp.einsum("sgi,sgj->gij", x, y, precision="highest") / len(x)
