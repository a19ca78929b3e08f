"""One receiver of whole numbers: its weights, threshold, bias and potential.

    W* = w + w (C - H) (H + d)^-1      H = cov(x'), C = cov(x, x')

x' is what the receiver reads in the network of whole numbers, x the same in the float
network: the decoded values, sums over all steps. W* makes up for the errors of the
layers before (asymmetric calibration, Li et al., arXiv 2504.02692); d is 0.1 times the
mean variance. Then W* is rounded with error feedback by H. A row of one weight is only
rounded, and a weight of 0 stays 0. A bias makes up for the difference of the means. A
recurrent kernel is one more map, which reads the spikes of the float network in both.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import warn
from snnjax.deploy.integers import rounding, streams
from snnjax.deploy.integers.timing import Timing, arithmetic_of, timing, widest
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.function import (
    channels_first,
    channels_last,
    map_params,
    neurons_of,
)
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.protocol import field
from snnjax.neurons.unroll import unroll

_MOST_SAMPLES = 1 << 16  # of a moment
_DAMPING = 0.1  # of W*, over the mean variance
_LARGEST_SHARE = 0.5  # of 2^(state_bits - 1), for potentials of calibration images
_ATTEMPTS = 4  # at scales whose potentials fit; after that the last one is kept


class Pair(NamedTuple):
    """What a node sends in the float network, and in that of whole numbers.

    Spikes are levels in both. x is divided by the input's unit in both, and rounded
    only in that of whole numbers.
    """

    floats: streams.Stream
    whole: streams.Stream


class Reading(NamedTuple):
    """A population or an output, with all that it reads.

    Attributes:
        layers: the network, its numbers floats.
        node: the receiver.
        maps: those into it, and what each one reads; a recurrent kernel is the last.
        parts: W* of each map over the threshold, and H of what it reads.
        thresholds: V of each channel or element, [O]; 1 of an output.
        scale: see `snnjax.deploy.quantize`; with "range" numbers are only rounded.
        currents: of the float network, without the bias, in units of T w_T,
            [T, N, ...]; those from its own spikes are left out.
        levels: that a population sends in the float network.
    """

    layers: values.Layers
    node: values.Receiver
    maps: Sequence[tuple[values.Affine, Pair]]
    parts: Sequence[rounding.Part]
    thresholds: np.ndarray
    scale: rounding.Scale
    currents: jax.Array
    levels: streams.Stream | None


def fit_receiver(
    reading: Reading,
) -> tuple[values.Receiver, list[values.Affine], Pair | None, list[str]]:
    """A receiver of whole numbers, its maps, what it sends, and what is clipped."""
    layers, node, scale = reading.layers, reading.node, reading.scale
    arithmetic = arithmetic_of(layers)
    is_population = isinstance(node, values.Population)
    clippings = _clippings(reading) if is_population else []
    half = 2 ** (arithmetic.state_bits - 1)
    most = _largest_theta(reading, half)
    count = len(node.sources)  # of maps that others send through
    sent = [pair.whole for _, pair in reading.maps[:count]]
    for _ in range(_ATTEMPTS):
        theta = rounding.scales(reading.parts, most, scale, is_population)
        whole_maps = _whole_maps(reading, theta)
        whole_maps, own = whole_maps[:count], whole_maps[count:]
        weighted = _received(*_program(layers, whole_maps), sent)
        whole = _with_charge(reading, theta, weighted)
        if isinstance(whole, values.Output):
            return whole, whole_maps, None, clippings
        whole = dataclasses.replace(whole, recurrent=own[0]) if own else whole
        # Wide registers say how far potentials would go.
        activity = streams.fire(whole, widest(layers), weighted)
        peaks = _peaks(activity, arithmetic)
        is_too_large = peaks > _LARGEST_SHARE * half
        if not is_too_large.any():
            break
        smaller = np.floor(theta * _LARGEST_SHARE * half / peaks)
        most = np.where(is_too_large, smaller, most)
        if (most < 1).any():
            raise ValueError(
                f"potentials of {node.name!r} do not fit into {arithmetic.state_bits} "
                "bits, whatever the scale; allowed: more state_bits, or fewer "
                "weight_bits"
            )
    else:  # No attempt fitted. The last scale stays, and `run` counts the overflows.
        activity = streams.fire(whole, layers, weighted)
    if scale == "range":
        _check_range(reading, theta)
    assert reading.levels is not None
    spikes = Pair(reading.levels, streams.Stream(None, activity.spikes))
    return whole, whole_maps, spikes, clippings


def read(
    layers: values.Layers,
    node: values.Receiver,
    maps: Sequence[tuple[values.Affine, Pair]],
    bits: int,
    scale: rounding.Scale,
) -> Reading:
    """A receiver with weights of these bits, from its maps and what each one reads."""
    v_th = node.threshold if isinstance(node, values.Population) else np.ones(())
    # One number per channel or element of a vector; the mean of a channel.
    v_th = np.broadcast_to(v_th, node.shape).reshape(node.shape[0], -1).mean(axis=1)
    nodes, pairs = zip(*maps, strict=True)
    sent = [pair.floats for pair in pairs], [pair.whole for pair in pairs]
    currents, moments = _currents_and_moments(*_program(layers, nodes), *sent)
    levels = None
    if isinstance(node, values.Population):
        model, bias = without_surrogate(node.model), channels_last(node.bias)
        neurons = neurons_of(node, model, bias)
        spikes = _levels(timing(layers), *neurons, currents)
        levels = streams.Stream(None, spikes)
        for own in values.maps_to_itself(node):
            both = [levels], [levels]
            _, more = _currents_and_moments(*_program(layers, [own]), *both)
            maps, moments = [*maps, (own, Pair(levels, levels))], [*moments, *more]
    own_maps, parts = [], []
    for (own, pair), both in zip(maps, moments, strict=True):
        own_bits = bits
        if isinstance(own, values.Scale):
            # A weight for each channel, the size of the sender's spikes: often several
            # times as large as those of a convolution beside it. So it has more bits.
            own_bits, each = max(bits, 8), (len(v_th), *[1] * len(node.shape[1:]))
            own = dataclasses.replace(own, weight=own.weight * np.ones(each))
        second, cross = (np.asarray(moment, np.float64) for moment in both)
        rows = own.weight.reshape(len(v_th), -1) / v_th[:, None]
        if scale != "range":
            rows = _corrected(rows, second, cross)
        own_maps.append((own, pair))
        parts.append(rounding.Part(rows, own_bits, second))
    return Reading(layers, node, own_maps, parts, v_th, scale, currents, levels)


def _check_range(reading: Reading, theta: np.ndarray) -> None:
    """Warn where sums or potentials leave less than the range of the weights."""
    unlimited = np.full(theta.shape, np.inf)
    share = (theta / rounding.scales(reading.parts, unlimited, "range")).min()
    if share < 1:
        bits = arithmetic_of(reading.layers).state_bits
        warn(
            f"{reading.node.name!r} has {share:.3g} times the scale of its weights, "
            f"since potentials have {bits} bits and sums at most 27; sinabs's numbers "
            "need more state_bits, or images with smaller sums"
        )


def _peaks(activity: streams.Fired, arithmetic: values.Arithmetic) -> np.ndarray:
    """How large the potentials of each row become, [O].

    With "saturate" the lowest ones do not count: a neuron far below its threshold is
    silent also at the limit. `Trace.below` counts them.
    """
    lowest, highest = (np.asarray(e, float) for e in activity.extremes)
    is_wrapped = arithmetic.overflow == "wrap"
    peaks = np.maximum(-lowest, highest + 1) if is_wrapped else highest + 1
    return peaks.reshape(-1, peaks.shape[-1]).max(axis=0)


def pooled(
    node: values.SumPool | values.Flatten, stream: streams.Stream
) -> streams.Stream:
    """What a node without weights sends."""
    (structure,) = _structures([node])
    return _mapped(structure, {}, stream)


def _with_charge(
    reading: Reading, theta: np.ndarray, weighted: jax.Array
) -> values.Receiver:
    """The receiver with a whole threshold, bias and potential.

    ``theta`` are the thresholds of its rows, [O], ``weighted`` the currents of whole
    numbers without a bias, [T, N, ...].
    """
    node, layers = reading.node, reading.layers
    factor = theta / reading.thresholds
    arrivals = timing(layers).biases.sum()
    found = np.asarray(_mean(weighted), np.float64)
    missing = factor * np.asarray(_mean(reading.currents), np.float64) - found
    corrects = reading.scale != "range"  # or else all is only rounded
    missing = missing * corrects
    own = channels_last(node.bias) / layers.bias_unit
    total = factor * own * arrivals + missing
    # Where all biases of the float receiver are 0, they stay 0: the chip may have none.
    bias = np.rint(total / arrivals) if node.bias.any() else np.zeros(())
    own_bias = channels_first(bias * layers.bias_unit, node.shape)
    if isinstance(node, values.Output):
        worth = channels_first(1 / factor, node.shape)
        return dataclasses.replace(node, bias=own_bias, unit=worth)
    start = factor * channels_last(node.initial_potential) / layers.potential_unit
    if start.any():  # v(0) takes what the rounded biases leave.
        left = corrects * (total - arrivals * bias)
        start = np.rint(start + left) * layers.potential_unit
    threshold = np.maximum(np.rint(factor * channels_last(node.threshold)), 1)
    rule, leak = arithmetic_of(layers).leak, node.leak if node.is_leaky else None
    return dataclasses.replace(
        node,
        leak=None if leak is None or rule is None else rule.rounded(leak),
        threshold=channels_first(threshold, node.shape),
        initial_potential=channels_first(start, node.shape),
        bias=own_bias,
    )


def _largest_theta(reading: Reading, half: int) -> np.ndarray:
    """The largest Theta of each row.

    Sums of currents stay below 2^26, a threshold below a quarter of its register.
    """
    bias = channels_last(reading.node.bias) / reading.layers.bias_unit
    sums = np.abs(np.asarray(reading.currents)).sum(0) + np.abs(bias)
    peaks = sums.reshape(-1, len(reading.thresholds)).max(axis=0)
    most = 2.0**26 * reading.thresholds / np.maximum(peaks, 1e-20)
    is_population = isinstance(reading.node, values.Population)
    return np.minimum(most, half / 2) if is_population else most


def _whole_maps(reading: Reading, theta: np.ndarray) -> list[values.Affine]:
    """The maps at thresholds Theta [O].

    Raises:
        ValueError: all weights of one became 0.
    """
    maps = []
    for (node, _), part in zip(reading.maps, reading.parts, strict=True):
        weight = rounding.rounded(part, theta, reading.scale)
        weight = weight.reshape(node.weight.shape)
        if node.weight.any() and not weight.any():
            raise ValueError(
                f"all weights of {node.name!r} would be rounded to 0, for potentials "
                f"of {arithmetic_of(reading.layers).state_bits} bits and the scale of "
                "what else their neurons read; allowed: more state_bits, fewer "
                "input_bits or weight_bits, fewer steps of a code, or no such map"
            )
        maps.append(dataclasses.replace(node, weight=weight))
    return maps


def _clippings(reading: Reading) -> list[str]:
    """Weights that are clipped at the least threshold, 1, in words.

    It happens in neurons that hardly ever fire: their threshold is far below a weight.

    Raises:
        ValueError: it happens in all neurons of a population.
    """
    node, clippings = reading.node, []
    for (own, _), (rows, bits, _) in zip(reading.maps, reading.parts, strict=True):
        # A threshold of .5 becomes 1.
        peaks = np.abs(rows).max(axis=1, initial=0) / 2
        is_clipped = peaks > rounding.largest_weight(bits)
        if not is_clipped.any():
            continue
        peak = peaks.max()
        enough = next(b for b in range(1, 64) if rounding.largest_weight(b) >= peak)
        if is_clipped.all():
            raise ValueError(
                f"with weights of {bits} bits all thresholds of {node.name!r} would be "
                f"rounded to 0: a weight of {own.name!r} is {2 * peak:.3g} times the "
                f"threshold; allowed: weight_bits >= {enough} there"
            )
        clippings.append(
            f"{own.name!r} of {bits} bits, in {is_clipped.sum()} of {len(peaks)} "
            f"channels of {node.name!r} ({enough} bits keep them)"
        )
    return clippings


# ------------------------------------------------------- programs, one for each shape


def _structures(nodes: Sequence[Any]) -> tuple[Any, ...]:
    """Nodes without names and arrays: equal ones share a program."""
    nameless = (dataclasses.replace(node, name="", sources=()) for node in nodes)
    return tuple(map(jax.tree.structure, nameless))


def _program(layers: values.Layers, maps: Sequence[values.Affine]) -> tuple[Any, ...]:
    """What a program of some maps depends on, and their weights."""
    params = [jax.tree.map(np.float32, map_params(node)) for node in maps]
    return _structures(maps), timing(layers), params


@functools.partial(jax.jit, static_argnums=0)
def _mapped(structure: Any, params: Any, stream: streams.Stream) -> streams.Stream:
    return streams.map_stream(streams.without_arrays(structure), params, stream)


@functools.partial(jax.jit, static_argnums=range(2))
def _received(structures, times, params, sent):
    """What arrives through some maps, in units, without a bias: [T, N, ...].

    Sums of whole numbers above 2^24 are rounded to float32, which is enough to choose
    scales and biases.
    """
    ways = zip(structures, params, sent, strict=True)
    return streams.received_currents(
        streams.total([_mapped(*way) for way in ways]), times
    )


@functools.partial(jax.jit, static_argnums=range(2))
def _currents_and_moments(structures, times, params, floats, whole):
    """Currents of the float network, and moments of each connection."""
    moments = []
    for structure, p, *both in zip(structures, params, floats, whole, strict=True):
        node, kernel = streams.without_arrays(structure), p["weight"].shape[:2]
        x, y = (_samples(node, kernel, _decoded(s, times)) for s in both)
        moments.append((_covariance(y, y), _covariance(x, y)))
    return _received(structures, times, params, floats), moments


@functools.partial(jax.jit, static_argnums=range(2))
def _levels(times, model, params, currents):
    """Levels of float neurons, from currents in units: [T, N, ...]."""
    code, steps, wait = times
    currents = currents * code.sizes(steps)[-1]
    spikes = unroll(model, params, currents, wait=wait, code=code)
    sizes = jnp.asarray(code.sizes(steps)).reshape(-1, *[1] * (currents.ndim - 1))
    return jnp.round(spikes / (sizes * field(params, "threshold")))


@jax.jit
def _mean(currents: jax.Array) -> jax.Array:
    """The mean of what arrives in all steps, of each channel or element."""
    totals = currents.sum(0).astype(jnp.float32)
    return totals.mean(range(totals.ndim - 1))


def _decoded(stream: streams.Stream, times: Timing) -> jax.Array:
    """What all steps of a stream add up to, in units: float [N, ...]."""
    constant, spikes = stream
    if constant is not None:
        constant = float(times.inputs.sum()) * constant.astype(jnp.float32)
    if spikes is not None:
        weights = jnp.asarray(times.multiples, jnp.float32)
        spikes = jnp.tensordot(weights, spikes.astype(jnp.float32), 1)
    return streams.add([constant, spikes])


def _samples(node: Any, kernel: tuple[int, ...], x: jax.Array) -> jax.Array:
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
    # A moment needs no more samples; those left out lie evenly between the others.
    every = -(-len(samples) // _MOST_SAMPLES)
    return samples[::every]


def _covariance(x: jax.Array, y: jax.Array) -> jax.Array:
    """cov(x, y) of samples [samples, G, n]: [G, n, n]."""
    x, y = (z - z.mean(0, keepdims=True) for z in (x, y))
    return jnp.einsum("sgi,sgj->gij", x, y, precision="highest") / len(x)


# ------------------------------------------------------------------ rows of weights


def _corrected(rows: np.ndarray, second: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """W* of rows [O, n], group by group, from H and C; weights of 0 stay 0."""
    if not rounding.is_matrix(rows, second):
        return rows
    results = []
    groups = np.split(rows, len(second))
    for part, h, c in zip(groups, second, cross, strict=True):
        # Few images say little about many weights, which the damping keeps in place.
        damping = _DAMPING * np.trace(h) / len(h) + 1e-9
        damped = h + damping * np.eye(len(h))
        change = np.linalg.solve(damped, (c - h).T @ part.T).T
        results.append(np.where(part == 0, 0, part + change))
    return np.concatenate(results)
