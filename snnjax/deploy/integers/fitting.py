"""One receiver of whole numbers: its weights, threshold, bias and initial potential.

    W* = w + w (C - H) (H + d)^-1      H = cov(x'), C = cov(x, x')

x' is what the receiver reads in the network of whole numbers, x the same in the float
network: the decoded values, sums over all steps. W* makes up for the errors of the
layers before (asymmetric calibration, Li et al., arXiv 2504.02692); d is 0.1 times the
mean variance. Then W* is rounded with error feedback by H. A row of one weight is only
rounded, and a weight of 0 stays 0. A bias makes up for the difference of the means. A
recurrent kernel is one more map, which reads the spikes of the float network in both.

receiver: a population, or an output.
row: a channel of an image, or an element of a vector; a receiver has O of them.
theta: the whole thresholds of the rows, [O]; see ``rounding.py``.
register: holds a potential, in ``state_bits`` bits.
N counts the calibration images. Arrays of the network, [T, N, ...], are channels last.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from snnjax._checks import warn
from snnjax._text import counted
from snnjax.deploy.integers import programs, rounding, streams
from snnjax.deploy.integers.programs import Moments, StreamPair
from snnjax.deploy.integers.streams import Stream
from snnjax.deploy.integers.timing import arithmetic_of, timing, widest
from snnjax.deploy.lowering.function import channels_first, channels_last
from snnjax.deploy.lowering.values import (
    Affine,
    Arithmetic,
    Dense,
    Layers,
    Output,
    Population,
    Receiver,
    Scale,
    maps_to_itself,
)

_DAMPING = 0.1  # d of W*, over the mean variance
# The largest share of a register that potentials of calibration images may use. Other
# images may need more.
_LARGEST_SHARE = 0.5
_ATTEMPTS = 4  # scales that are tried until potentials fit; the last one is then kept
_SCALE_BITS = 8  # least bits of weights that scale spikes one by one


class Incoming(NamedTuple):
    """A map into a receiver, and what it reads in both networks."""

    map: Affine
    sent: StreamPair


class ReceiverData(NamedTuple):
    """What the fit of one receiver needs to know.

    Attributes:
        layers: the network, its numbers floats.
        node: the receiver, its numbers floats.
        incoming: the maps into it. A recurrent kernel is the last.
        parts: W* of each map over the threshold, and H of what it reads.
        thresholds: float V of each row, [O]; 1 of an output.
        rule: ``scale`` of `snnjax.deploy.quantize`.
        currents: what arrives in the float network without the bias, [T, N, ...], in
            units of T w_T. What recurrent neurons send to themselves is left out.
        levels: what a population sends in the float network; None of an output.
    """

    layers: Layers
    node: Receiver
    incoming: Sequence[Incoming]
    parts: Sequence[rounding.Part]
    thresholds: np.ndarray
    rule: rounding.ScaleRule
    currents: jax.Array
    levels: Stream | None

    @property
    def is_corrected(self) -> bool:
        """Whether weights and biases make up for errors, beyond being rounded."""
        return self.rule != "range"


class FittedReceiver(NamedTuple):
    """A receiver of whole numbers.

    Attributes:
        node: the receiver.
        maps: the maps into it in the order of its sources, without a recurrent kernel.
        sent: the spikes of a population; None of an output.
        clippings: a phrase for each map whose weights are clipped.
    """

    node: Receiver
    maps: list[Affine]
    sent: StreamPair | None
    clippings: list[str]


# -------------------------------------------------------------------------------- data


def receiver_data(
    layers: Layers,
    node: Receiver,
    incoming: Sequence[Incoming],
    bits: int,
    rule: rounding.ScaleRule,
) -> ReceiverData:
    """What the fit of a receiver needs, from the maps into it.

    Args:
        layers: the network, its numbers floats.
        node: the receiver, its numbers floats.
        incoming: the maps in the order of its sources, without a recurrent kernel.
        bits: of its whole weights.
        rule: ``scale`` of `snnjax.deploy.quantize`.
    """
    currents, moments = _currents_and_moments(layers, incoming)
    levels = None
    incoming = list(incoming)
    if isinstance(node, Population):
        levels = programs.float_levels(layers, node, currents)
        # What whole neurons send to themselves is not known before their kernel is. So
        # a recurrent kernel is fitted to the spikes of the float network.
        spikes = StreamPair(floats=levels, whole=levels)
        recurrent = [Incoming(kernel, spikes) for kernel in maps_to_itself(node)]
        if recurrent:
            _, recurrent_moments = _currents_and_moments(layers, recurrent)
            incoming += recurrent
            moments += recurrent_moments
    thresholds = _row_thresholds(node)
    wide_incoming = []
    parts = []
    for (affine, sent), moment in zip(incoming, moments, strict=True):
        map_bits = bits
        if isinstance(affine, Scale):
            # Its weights are the sizes of the sender's spikes, and often several times
            # as large as those of a convolution beside it. So they have more bits.
            map_bits = max(bits, _SCALE_BITS)
            affine = _with_row_weights(affine, len(thresholds))
        rows = affine.weight.reshape(len(thresholds), -1) / thresholds[:, None]
        if rule != "range":
            rows = _corrected_rows(rows, moment)
        wide_incoming.append(Incoming(affine, sent))
        parts.append(rounding.Part(rows, map_bits, moment.covariance))
    return ReceiverData(
        layers=layers,
        node=node,
        incoming=wide_incoming,
        parts=parts,
        thresholds=thresholds,
        rule=rule,
        currents=currents,
        levels=levels,
    )


def _currents_and_moments(
    layers: Layers, incoming: Sequence[Incoming]
) -> tuple[jax.Array, list[Moments]]:
    """Float currents [T, N, ...] through some maps, and the moments of each map."""
    maps = [entry.map for entry in incoming]
    sent = [entry.sent for entry in incoming]
    return programs.currents_and_moments(layers, maps, sent)


def _row_thresholds(node: Receiver) -> np.ndarray:
    """V of each row, [O]: the mean over an image's channel; 1 of an output."""
    row_count = node.shape[0]
    if not isinstance(node, Population):
        return np.ones(row_count)
    per_neuron = np.broadcast_to(node.threshold, node.shape)
    return per_neuron.reshape(row_count, -1).mean(axis=1)


def _with_row_weights(scale: Scale, row_count: int) -> Scale:
    """The map with a weight for each of its rows, where one was shared by all."""
    row_shape = (row_count,) + (1,) * (len(scale.shape) - 1)
    return dataclasses.replace(scale, weight=scale.weight * np.ones(row_shape))


def _corrected_rows(rows: np.ndarray, moments: Moments) -> np.ndarray:
    """W* of the rows w, [O, n], from H and C of each group; weights of 0 stay 0."""
    if moments.covariance.shape[-1] == 1:
        # Each weight reads one number alone. The bias makes up for its error.
        return rows
    results = []
    groups = np.split(rows, len(moments.covariance))
    for group, h, c in zip(groups, *moments, strict=True):
        # Few images say little about many weights, which the damping keeps in place.
        damping = _DAMPING * np.trace(h) / len(h) + 1e-9
        damped = h + damping * np.eye(len(h))
        # solve(A, B) is A^-1 B, and here the inverse stands on the right.
        change = np.linalg.solve(damped, (c - h).T @ group.T).T
        results.append(np.where(group == 0, 0, group + change))
    return np.concatenate(results)


# -------------------------------------------------------------------------------- fits


def fit_receiver(data: ReceiverData) -> FittedReceiver:
    """The receiver as whole numbers.

    Raises:
        ValueError: weights or thresholds that would all be rounded to 0, or potentials
            that fit at no scale.
    """
    if isinstance(data.node, Output):
        return _fit_output(data, data.node)
    return _fit_population(data, data.node)


def _fit_output(data: ReceiverData, output: Output) -> FittedReceiver:
    """The output as whole numbers. It has no potential, so theta only scales sums."""
    theta = rounding.search_theta(
        data.parts,
        largest_theta=_largest_theta_of_sums(data),
        rule=data.rule,
        is_whole=False,
    )
    maps = _whole_maps(data, theta)
    charge = _charge(data, theta, _whole_currents(data, maps))
    bias = charge.bias * data.layers.bias_unit
    whole = dataclasses.replace(
        output,
        bias=channels_first(bias, output.shape),
        unit=channels_first(1 / theta, output.shape),
    )
    return FittedReceiver(whole, maps, sent=None, clippings=[])


def _fit_population(data: ReceiverData, population: Population) -> FittedReceiver:
    """A population at the best scale whose potentials fit into its register."""
    layers = data.layers
    arithmetic = arithmetic_of(layers)
    # This comes first, because it refuses weights that no scale can hold.
    clippings = _clippings(data)
    # A register holds potentials in [-limit, limit). A threshold is at most half of it.
    limit = 2 ** (arithmetic.state_bits - 1)
    largest_theta = np.minimum(_largest_theta_of_sums(data), limit / 2)
    for _ in range(_ATTEMPTS):
        theta = rounding.search_theta(data.parts, largest_theta, data.rule)
        attempt = _population_at(data, population, theta)
        # The widest registers that can be simulated show how far potentials would go.
        # Below the limit, the spikes are those of the population's own registers.
        activity = streams.fire(attempt.node, widest(layers), attempt.currents)
        peaks = _peak_potentials(activity, arithmetic)
        is_too_large = peaks > _LARGEST_SHARE * limit
        if not is_too_large.any():
            break
        # Potentials grow in proportion to theta.
        smaller_theta = np.floor(theta * _LARGEST_SHARE * limit / peaks)
        largest_theta = np.where(is_too_large, smaller_theta, largest_theta)
        if (largest_theta < 1).any():
            raise ValueError(
                f"potentials of {population.name!r} do not fit into "
                f"{arithmetic.state_bits} bits, whatever the scale; allowed: more "
                "state_bits, or fewer weight_bits"
            )
    else:  # No attempt fitted. The last scale stays, and `run` counts the overflows.
        activity = streams.fire(attempt.node, layers, attempt.currents)
    if data.rule == "range":
        _warn_range(data, theta)
    assert data.levels is not None
    whole_spikes = Stream(constant=None, spikes=activity.spikes)
    return FittedReceiver(
        node=attempt.node,
        maps=attempt.maps,
        sent=StreamPair(floats=data.levels, whole=whole_spikes),
        clippings=clippings,
    )


class _Attempt(NamedTuple):
    """A population of whole numbers at one scale.

    Attributes:
        node: the population, with its recurrent kernel if it has one.
        maps: the maps into it in the order of its sources.
        currents: what arrives through them without the bias, [T, N, ...].
    """

    node: Population
    maps: list[Affine]
    currents: jax.Array


def _population_at(
    data: ReceiverData, population: Population, theta: np.ndarray
) -> _Attempt:
    """The whole numbers of a population at the thresholds theta, [O]."""
    maps = _whole_maps(data, theta)
    source_count = len(population.sources)
    # The map behind those from the sources, if there is one, is the recurrent kernel.
    feedforward = maps[:source_count]
    currents = _whole_currents(data, feedforward)
    whole = _whole_population(data, population, theta, currents)
    for kernel in maps[source_count:]:
        assert isinstance(kernel, Dense)
        whole = dataclasses.replace(whole, recurrent=kernel)
    return _Attempt(whole, feedforward, currents)


def _largest_theta_of_sums(data: ReceiverData) -> np.ndarray:
    """The largest theta of each row at which sums of currents stay below 2^26, [O]."""
    bias = channels_last(data.node.bias) / data.layers.bias_unit
    # A current may be added up over all steps without a reset. `run` refuses a network
    # in which a sum could reach 2^30 for any x. These sums are those of calibration
    # images, and leave other images a factor of 16.
    sums = np.abs(np.asarray(data.currents)).sum(0) + np.abs(bias)
    peaks = sums.reshape(-1, len(data.thresholds)).max(axis=0)
    # A row without any current has no peak, and gets a very large theta.
    return 2.0**26 * data.thresholds / np.maximum(peaks, 1e-20)


def _whole_maps(data: ReceiverData, theta: np.ndarray) -> list[Affine]:
    """The maps into the receiver at thresholds theta, [O], rounded.

    Raises:
        ValueError: all weights of a map became 0.
    """
    maps = []
    for incoming, part in zip(data.incoming, data.parts, strict=True):
        affine = incoming.map
        weight = rounding.round_weights(part, theta, data.rule)  # [O, n]
        weight = weight.reshape(affine.weight.shape)
        if affine.weight.any() and not weight.any():
            raise ValueError(
                f"all weights of {affine.name!r} would be rounded to 0, for potentials "
                f"of {arithmetic_of(data.layers).state_bits} bits and the scale of "
                "what else their neurons read; allowed: more state_bits, fewer "
                "input_bits or weight_bits, fewer steps of a code, or no such map"
            )
        maps.append(dataclasses.replace(affine, weight=weight))
    return maps


def _whole_currents(data: ReceiverData, maps: Sequence[Affine]) -> jax.Array:
    """What arrives through whole maps from others, without a bias: [T, N, ...]."""
    sent = [entry.sent.whole for entry in data.incoming[: len(maps)]]
    return programs.arriving_currents(data.layers, maps, sent)


def _peak_potentials(activity: streams.Fired, arithmetic: Arithmetic) -> np.ndarray:
    """The largest size of a potential in each row, [O].

    With "saturate" the lowest ones do not count: a neuron far below its threshold is
    silent also at the limit. `Trace.below` counts them.
    """
    lowest, highest = activity.extremes  # of each neuron, [..., O] both
    # A register holds [-limit, limit). So a potential p above 0 needs limit >= p + 1,
    # and one below 0 needs limit >= -p.
    peaks = np.asarray(highest, float) + 1
    if arithmetic.overflow == "wrap":
        peaks = np.maximum(-np.asarray(lowest, float), peaks)
    return peaks.reshape(-1, peaks.shape[-1]).max(axis=0)


# --------------------------------------------------- biases, thresholds and potentials


class Charge(NamedTuple):
    """What the bias of a receiver has to bring within T steps, channels last.

    Attributes:
        bias: whole, in units of `snnjax.deploy.Layers.bias_unit`; [O], one number for
            every element, or a scalar 0.
        remainder: what rounding leaves of the biases of all steps, in units of a
            potential, for the initial potential.
    """

    bias: np.ndarray
    remainder: np.ndarray


def _charge(data: ReceiverData, theta: np.ndarray, currents: jax.Array) -> Charge:
    """The bias with which the mean of what arrives is that of the float network.

    Args:
        data: of the receiver.
        theta: its thresholds, [O].
        currents: what arrives through whole maps without the bias, [T, N, ...].
    """
    layers, node = data.layers, data.node
    # A number of the float receiver times its scale is one of the whole receiver.
    scale = theta / data.thresholds
    float_bias = scale * (channels_last(node.bias) / layers.bias_unit)
    arrivals = timing(layers).biases.sum()
    total = float_bias * arrivals
    if data.is_corrected:
        float_mean = np.asarray(programs.mean_total(data.currents), np.float64)
        whole_mean = np.asarray(programs.mean_total(currents), np.float64)
        total = total + (scale * float_mean - whole_mean)
    # Where all biases of the float receiver are 0, they stay 0: the chip may have none.
    bias = np.rint(total / arrivals) if node.bias.any() else np.zeros(())
    remainder = np.zeros(())
    if data.is_corrected:
        remainder = total - arrivals * bias
    return Charge(bias, remainder)


def _whole_population(
    data: ReceiverData,
    population: Population,
    theta: np.ndarray,
    currents: jax.Array,
) -> Population:
    """The population at thresholds theta, [O], without its recurrent kernel.

    ``currents`` are what arrives through whole maps without a bias, [T, N, ...].
    """
    layers, shape = data.layers, population.shape
    scale = theta / data.thresholds
    charge = _charge(data, theta, currents)
    # theta is the mean of a row, in which neurons may have thresholds of their own.
    threshold = np.rint(scale * channels_last(population.threshold))
    start = scale * channels_last(population.initial_potential)
    start = start / layers.potential_unit
    # Where all potentials of the float neurons start at 0, they still do.
    if start.any():
        start = np.rint(start + charge.remainder) * layers.potential_unit
    leak = None
    leak_rule = arithmetic_of(layers).leak
    if population.leak is not None and population.is_leaky and leak_rule is not None:
        leak = leak_rule.rounded(population.leak)
    return dataclasses.replace(
        population,
        leak=leak,
        threshold=channels_first(np.maximum(threshold, 1), shape),
        initial_potential=channels_first(start, shape),
        bias=channels_first(charge.bias * layers.bias_unit, shape),
    )


# ------------------------------------------------------------------------------ checks


def _warn_range(data: ReceiverData, theta: np.ndarray) -> None:
    """Warn where theta, [O], is less than what the range of the weights allows.

    Sums or potentials that would not fit have then lowered it.
    """
    unlimited = np.full(theta.shape, np.inf)
    share = (theta / rounding.search_theta(data.parts, unlimited, "range")).min()
    if share < 1:
        bits = arithmetic_of(data.layers).state_bits
        warn(
            f"{data.node.name!r} has {share:.3g} times the scale of its weights, "
            f"since potentials have {bits} bits and sums at most 27; sinabs's numbers "
            "need more state_bits, or images with smaller sums"
        )


def _clippings(data: ReceiverData) -> list[str]:
    """A phrase for each map whose weights are clipped even at a threshold of 1.

    It happens in neurons that hardly ever fire: their threshold is far below a weight.

    Raises:
        ValueError: it happens in all neurons of a population.
    """
    name = data.node.name
    clippings = []
    for incoming, part in zip(data.incoming, data.parts, strict=True):
        affine_name = incoming.map.name
        # A threshold of 0.5 is rounded up to 1, so the smallest scale halves weights in
        # units of their threshold.
        peaks = np.abs(part.rows).max(axis=1, initial=0) / 2
        is_clipped = peaks > rounding.largest_weight(part.bits)
        if not is_clipped.any():
            continue
        sufficient_bits = 1
        while rounding.largest_weight(sufficient_bits) < peaks.max():
            sufficient_bits += 1
        if is_clipped.all():
            raise ValueError(
                f"with weights of {counted(part.bits, 'bit')} all thresholds of "
                f"{name!r} would be rounded to 0: a weight of {affine_name!r} is "
                f"{2 * peaks.max():.3g} times the threshold; allowed: "
                f"weight_bits >= {sufficient_bits} there"
            )
        clippings.append(
            f"{affine_name!r} of {counted(part.bits, 'bit')}, in {is_clipped.sum()} of "
            f"{counted(len(peaks), 'channel')} of {name!r} ({sufficient_bits} bits "
            "keep them)"
        )
    return clippings
