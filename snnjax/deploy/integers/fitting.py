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
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from snnjax._checks import warn
from snnjax.deploy.integers import programs, rounding, streams
from snnjax.deploy.integers.programs import Moments, Pair
from snnjax.deploy.integers.streams import Stream
from snnjax.deploy.integers.timing import arithmetic_of, timing, widest
from snnjax.deploy.lowering import values
from snnjax.deploy.lowering.function import channels_first, channels_last

_DAMPING = 0.1  # of W*, over the mean variance
_LARGEST_SHARE = 0.5  # of 2^(state_bits - 1), for potentials of calibration images
_ATTEMPTS = 4  # at scales whose potentials fit; after that the last one is kept
_SCALE_BITS = 8  # of weights that scale spikes one by one, at least


class Incoming(NamedTuple):
    """A map into a receiver, and what it reads in both networks."""

    map: values.Affine
    sent: Pair


class Reading(NamedTuple):
    """A population or an output, with all that it reads.

    Attributes:
        layers: the network, its numbers floats.
        node: the receiver.
        incoming: the maps into it. A recurrent kernel is the last.
        parts: W* of each map over the threshold, and H of what it reads.
        thresholds: V of each channel or element, [O]; 1 of an output.
        scale: see `snnjax.deploy.quantize`; with "range" numbers are only rounded.
        currents: of the float network, without the bias, in units of T w_T,
            [T, N, ...]; those from its own spikes are left out.
        levels: that a population sends in the float network.
    """

    layers: values.Layers
    node: values.Receiver
    incoming: Sequence[Incoming]
    parts: Sequence[rounding.Part]
    thresholds: np.ndarray
    scale: rounding.Scale
    currents: jax.Array
    levels: Stream | None

    @property
    def is_corrected(self) -> bool:
        """Whether numbers are fitted, beyond being rounded."""
        return self.scale != "range"


class Fitted(NamedTuple):
    """A receiver of whole numbers.

    Attributes:
        node: the receiver.
        maps: those that lead to it from others, in the order of its sources.
        sent: the spikes of a population; None of an output.
        clippings: weights that are clipped, in words.
    """

    node: values.Receiver
    maps: list[values.Affine]
    sent: Pair | None
    clippings: list[str]


# ------------------------------------------------------------------------------- reads


def read(
    layers: values.Layers,
    node: values.Receiver,
    incoming: Sequence[Incoming],
    bits: int,
    scale: rounding.Scale,
) -> Reading:
    """A receiver with weights of these bits, from the maps into it."""
    currents, moments = _read_maps(layers, incoming)
    levels = None
    if isinstance(node, values.Population):
        levels = programs.float_levels(layers, node, currents)
        # The spikes of whole numbers are not known before the kernel is: it is fitted
        # to those of the float network.
        kernels = values.maps_to_itself(node)
        recurrent = [Incoming(kernel, Pair(levels, levels)) for kernel in kernels]
        if recurrent:
            incoming = [*incoming, *recurrent]
            moments += _read_maps(layers, recurrent)[1]
    thresholds = _thresholds(node)
    wide_incoming = []
    parts = []
    for (affine, pair), (second, cross) in zip(incoming, moments, strict=True):
        map_bits = bits
        if isinstance(affine, values.Scale):
            # A weight for each channel, the size of the sender's spikes: often several
            # times as large as those of a convolution beside it. So it has more bits.
            map_bits = max(bits, _SCALE_BITS)
            ones = np.ones((len(thresholds), *[1] * len(node.shape[1:])))
            affine = dataclasses.replace(affine, weight=affine.weight * ones)
        rows = affine.weight.reshape(len(thresholds), -1) / thresholds[:, None]
        if scale != "range":
            rows = _corrected(rows, second, cross)
        wide_incoming.append(Incoming(affine, pair))
        parts.append(rounding.Part(rows, map_bits, second))
    return Reading(
        layers=layers,
        node=node,
        incoming=wide_incoming,
        parts=parts,
        thresholds=thresholds,
        scale=scale,
        currents=currents,
        levels=levels,
    )


def _read_maps(
    layers: values.Layers, incoming: Sequence[Incoming]
) -> tuple[jax.Array, list[Moments]]:
    """Float currents through some maps, and the moments of what each one reads."""
    maps = [entry.map for entry in incoming]
    pairs = [entry.sent for entry in incoming]
    return programs.currents_and_moments(layers, maps, pairs)


def _thresholds(node: values.Receiver) -> np.ndarray:
    """V of each channel or element, [O]: the mean of a channel; 1 of an output."""
    if not isinstance(node, values.Population):
        return np.ones(node.shape[0])
    per_neuron = np.broadcast_to(node.threshold, node.shape)
    return per_neuron.reshape(node.shape[0], -1).mean(axis=1)


def _corrected(rows: np.ndarray, second: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """W* of rows [O, n], group by group, from H and C; weights of 0 stay 0."""
    if not rounding.is_matrix(rows, second):
        return rows
    results = []
    groups = np.split(rows, len(second))
    for group, h, c in zip(groups, second, cross, strict=True):
        # Few images say little about many weights, which the damping keeps in place.
        damping = _DAMPING * np.trace(h) / len(h) + 1e-9
        damped = h + damping * np.eye(len(h))
        change = np.linalg.solve(damped, (c - h).T @ group.T).T
        results.append(np.where(group == 0, 0, group + change))
    return np.concatenate(results)


# -------------------------------------------------------------------------------- fits


def fit_receiver(reading: Reading) -> Fitted:
    """The receiver as whole numbers.

    A population gets the best scale Theta, [O], whose potentials fit. An output has no
    potential: it is only scaled.

    Raises:
        ValueError: weights or thresholds that would all be rounded to 0, or potentials
            that fit at no scale.
    """
    if isinstance(reading.node, values.Output):
        theta = rounding.scales(
            reading.parts,
            largest=_largest_of_sums(reading),
            scale=reading.scale,
            is_whole=False,
        )
        maps = _whole_maps(reading, theta)
        currents = _whole_currents(reading, maps)
        return Fitted(
            node=_whole_output(reading, theta, currents),
            maps=maps,
            sent=None,
            clippings=[],
        )
    return _fit_population(reading, reading.node)


def _fit_population(reading: Reading, population: values.Population) -> Fitted:
    """A population at the best scale whose potentials fit into its register.

    Theta [O] is the whole threshold of each row, and thus its scale. ``largest_theta``
    [O] bounds it, and shrinks until the potentials fit.
    """
    layers = reading.layers
    arithmetic = arithmetic_of(layers)
    # First, because it refuses weights that no scale can hold.
    clippings = _clippings(reading)
    # A register holds potentials in [-limit, limit). A threshold is at most half of it.
    limit = 2 ** (arithmetic.state_bits - 1)
    largest_theta = np.minimum(_largest_of_sums(reading), limit / 2)
    source_count = len(population.sources)
    for _ in range(_ATTEMPTS):
        theta = rounding.scales(reading.parts, largest_theta, reading.scale)
        maps = _whole_maps(reading, theta)
        # At most one map is recurrent.
        feedforward, recurrent = maps[:source_count], maps[source_count:]
        currents = _whole_currents(reading, feedforward)
        whole = _whole_population(reading, population, theta, currents)
        for kernel in recurrent:
            assert isinstance(kernel, values.Dense)
            whole = dataclasses.replace(whole, recurrent=kernel)
        # The widest registers that can be simulated show how far potentials would go.
        # Below the limit, the spikes are those of the population's own registers.
        activity = streams.fire(whole, widest(layers), currents)
        peaks = _peaks(activity, arithmetic)
        is_too_large = peaks > _LARGEST_SHARE * limit
        if not is_too_large.any():
            break
        # Potentials grow in proportion to Theta.
        smaller_theta = np.floor(theta * _LARGEST_SHARE * limit / peaks)
        largest_theta = np.where(is_too_large, smaller_theta, largest_theta)
        if (largest_theta < 1).any():
            raise ValueError(
                f"potentials of {population.name!r} do not fit into "
                f"{arithmetic.state_bits} bits, whatever the scale; allowed: more "
                "state_bits, or fewer weight_bits"
            )
    else:  # No attempt fitted. The last scale stays, and `run` counts the overflows.
        activity = streams.fire(whole, layers, currents)
    if reading.scale == "range":
        _warn_of_range(reading, theta)
    assert reading.levels is not None
    whole_spikes = Stream(constant=None, spikes=activity.spikes)
    return Fitted(
        node=whole,
        maps=feedforward,
        sent=Pair(floats=reading.levels, whole=whole_spikes),
        clippings=clippings,
    )


def _largest_of_sums(reading: Reading) -> np.ndarray:
    """The largest Theta of each row at which sums of currents stay below 2^26, [O]."""
    bias = channels_last(reading.node.bias) / reading.layers.bias_unit
    sums = np.abs(np.asarray(reading.currents)).sum(0) + np.abs(bias)
    peaks = sums.reshape(-1, len(reading.thresholds)).max(axis=0)
    return 2.0**26 * reading.thresholds / np.maximum(peaks, 1e-20)


def _whole_maps(reading: Reading, theta: np.ndarray) -> list[values.Affine]:
    """The maps at thresholds Theta [O].

    Raises:
        ValueError: all weights of one became 0.
    """
    maps = []
    for (affine, _), part in zip(reading.incoming, reading.parts, strict=True):
        weight = rounding.rounded(part, theta, reading.scale)
        weight = weight.reshape(affine.weight.shape)
        if affine.weight.any() and not weight.any():
            raise ValueError(
                f"all weights of {affine.name!r} would be rounded to 0, for potentials "
                f"of {arithmetic_of(reading.layers).state_bits} bits and the scale of "
                "what else their neurons read; allowed: more state_bits, fewer "
                "input_bits or weight_bits, fewer steps of a code, or no such map"
            )
        maps.append(dataclasses.replace(affine, weight=weight))
    return maps


def _whole_currents(reading: Reading, maps: Sequence[values.Affine]) -> jax.Array:
    """What arrives through whole maps from others, without a bias: [T, N, ...]."""
    sent = [entry.sent.whole for entry in reading.incoming[: len(maps)]]
    return programs.arriving_currents(reading.layers, maps, sent)


def _peaks(activity: streams.Fired, arithmetic: values.Arithmetic) -> np.ndarray:
    """How large the potentials of each row become, [O].

    With "saturate" the lowest ones do not count: a neuron far below its threshold is
    silent also at the limit. `Trace.below` counts them.
    """
    lowest, highest = activity.extremes
    peaks = np.asarray(highest, float) + 1
    if arithmetic.overflow == "wrap":
        peaks = np.maximum(-np.asarray(lowest, float), peaks)
    return peaks.reshape(-1, peaks.shape[-1]).max(axis=0)


# --------------------------------------------------- biases, thresholds and potentials


class Charge(NamedTuple):
    """What the bias of a receiver has to bring within T steps, channels last.

    Attributes:
        bias: whole, in its units, see `snnjax.deploy.Layers.bias_unit`.
        remainder: what the rounded biases of all steps leave, for the initial
            potential.
    """

    bias: np.ndarray
    remainder: np.ndarray


def _charge(reading: Reading, factor: np.ndarray, currents: jax.Array) -> Charge:
    """The bias with which the mean of what arrives is that of the float network.

    Args:
        factor: of each row between numbers of the float receiver and whole ones, [O].
        currents: of whole numbers, without the bias, [T, N, ...].
    """
    layers, node = reading.layers, reading.node
    float_bias = factor * (channels_last(node.bias) / layers.bias_unit)
    arrivals = timing(layers).biases.sum()
    total = float_bias * arrivals
    if reading.is_corrected:
        float_mean = np.asarray(programs.mean_total(reading.currents), np.float64)
        whole_mean = np.asarray(programs.mean_total(currents), np.float64)
        total = total + (factor * float_mean - whole_mean)
    # Where all biases of the float receiver are 0, they stay 0: the chip may have none.
    bias = np.rint(total / arrivals) if node.bias.any() else np.zeros(())
    remainder = np.zeros(())
    if reading.is_corrected:
        remainder = total - arrivals * bias
    return Charge(bias, remainder)


def _whole_output(
    reading: Reading, theta: np.ndarray, currents: jax.Array
) -> values.Output:
    """The output at thresholds Theta [O], which only scale its sums.

    Args:
        reading: of an output, whose thresholds are 1.
        theta: Theta.
        currents: of whole numbers, without the bias, [T, N, ...].
    """
    node = reading.node
    assert isinstance(node, values.Output)
    # A number of the float output times this factor is the one that is rounded.
    factor = theta / reading.thresholds
    bias = _charge(reading, factor, currents).bias * reading.layers.bias_unit
    return dataclasses.replace(
        node,
        bias=channels_first(bias, node.shape),
        unit=channels_first(1 / factor, node.shape),
    )


def _whole_population(
    reading: Reading,
    population: values.Population,
    theta: np.ndarray,
    currents: jax.Array,
) -> values.Population:
    """The population at thresholds Theta [O], without its recurrent kernel.

    ``currents`` are those of whole numbers without a bias, [T, N, ...].
    """
    layers, shape = reading.layers, population.shape
    factor = theta / reading.thresholds
    charge = _charge(reading, factor, currents)
    threshold = np.rint(factor * channels_last(population.threshold))
    start = factor * channels_last(population.initial_potential)
    start = start / layers.potential_unit
    if start.any():
        start = np.rint(start + charge.remainder) * layers.potential_unit
    leak = None
    rule = arithmetic_of(layers).leak
    if population.leak is not None and population.is_leaky and rule is not None:
        leak = rule.rounded(population.leak)
    return dataclasses.replace(
        population,
        leak=leak,
        threshold=channels_first(np.maximum(threshold, 1), shape),
        initial_potential=channels_first(start, shape),
        bias=channels_first(charge.bias * layers.bias_unit, shape),
    )


# ------------------------------------------------------------------------------ checks


def _warn_of_range(reading: Reading, theta: np.ndarray) -> None:
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


def _clippings(reading: Reading) -> list[str]:
    """Weights that are clipped at the least threshold, 1, in words.

    It happens in neurons that hardly ever fire: their threshold is far below a weight.

    Raises:
        ValueError: it happens in all neurons of a population.
    """
    name, clippings = reading.node.name, []
    for (affine, _), part in zip(reading.incoming, reading.parts, strict=True):
        # A threshold of .5 becomes 1.
        peaks = np.abs(part.rows).max(axis=1, initial=0) / 2
        is_clipped = peaks > rounding.largest_weight(part.bits)
        if not is_clipped.any():
            continue
        bits_that_keep = 1
        while rounding.largest_weight(bits_that_keep) < peaks.max():
            bits_that_keep += 1
        if is_clipped.all():
            raise ValueError(
                f"with weights of {part.bits} bits all thresholds of {name!r} would be "
                f"rounded to 0: a weight of {affine.name!r} is {2 * peaks.max():.3g} "
                f"times the threshold; allowed: weight_bits >= {bits_that_keep} there"
            )
        clippings.append(
            f"{affine.name!r} of {part.bits} bits, in {is_clipped.sum()} of "
            f"{len(peaks)} channels of {name!r} ({bits_that_keep} bits keep them)"
        )
    return clippings
