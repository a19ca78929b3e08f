"""Error and spikes of a site for many thresholds, and the cheapest of them at a price.

    J(V) = sum_p w (s(a; V) - a)^2  +  price k(a; V) / M,    of an image on average

a is the magnitude of an activation, after the offset is subtracted, and p counts
positions. s is the output of a neuron that knows its input a, k how many spikes it
sends, w the effect of an error on the outputs, and M the number of neurons of the
network. One more activation, larger than all of the sample, counts as
`snnjax.calibrators.unseen` says. Errors of all sites are on one scale: a price is the
error of the outputs, over their size, for which the network may save one spike per
neuron. Costs of this kind: rate-distortion optimization of video coders (Sullivan and
Wiegand, 1998); of spikes: ours.

Everything here is NumPy. s / V and k depend on a / V alone. So activations are counted
once, in bins of equal width on a logarithmic axis, and one table of s / V and k serves
all thresholds: a lower threshold reads the same table some bins higher.

    bin          a factor of 2^(1/64), 1.1 %; bin 0 holds the largest activations
    reach        largest output of a neuron, in thresholds: high (w_1 + .. + w_T)
    finest       smallest difference of two outputs, in thresholds: w_T
    zone         silence below this part of a spike; the last zone is that at step T
    candidate    one of K thresholds of a channel, which all are on the grid of bins
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from snnjax._types import Per
from snnjax.calibrators.sample import Sample
from snnjax.codes import Code
from snnjax.neurons.models import IntegrateAndFire
from snnjax.neurons.schedule import ROUNDING, TIES

_BINS_PER_OCTAVE = 64
_OCTAVES = 14  # what is so far below the largest activation counts as 0
_BINS = _BINS_PER_OCTAVE * _OCTAVES
_INPUTS_PER_BIN = 8  # inputs of a bin whose outputs are averaged
# A neuron can send 8 times the largest activation with the first candidate, and 1/64 of
# it with the last of 73. Neighbors are 8 bins apart, 9 %.
_LARGEST_REACH = 8
_BINS_BETWEEN = 8
_CANDIDATES = 73
# If reach / finest is above 16, there are more candidates in front, with such high
# thresholds that a price can silence the last digits too.
_COARSEST_DIGIT = 16
# By how much rounding may bring a largest output above the bound.
_ABOVE_BOUND = 1e-5
# A bound that is at most so many times the largest activation takes its place.
_NEAR = 4
# `price_of` searches between these prices: beyond them nothing changes.
_LOWEST = 1e-6
HIGHEST = 1e3


class Transfer(NamedTuple):
    """What neurons of V_th = 1 that know their input x send, for each bin of x.

    Bins go down from the largest x, as those of activations do. The table has more
    bins, since candidates read different parts of it: [bins + shifts].

    Attributes:
        squares: mean of (s - x)^2 in each bin.
        spikes: mean of k in each bin.
    """

    squares: np.ndarray
    spikes: np.ndarray


@functools.lru_cache(64)
def transfers(
    model: IntegrateAndFire, code: Code, steps: int, zones: tuple[float, ...]
) -> tuple[Transfer, ...]:
    """One table for each last zone.

    Args:
        model: of the neurons.
        code: what a spike is worth at each step.
        steps: T.
        zones: last zones, each in place of the model's own.
    """
    code_reach = code.reach(steps)  # in thresholds, with level 1 at every step
    finest_digits = code_reach / code.finest(steps)
    octaves_higher = math.ceil(math.log2(finest_digits / _COARSEST_DIGIT))
    octaves_higher = max(0, octaves_higher)
    # Bins between the first candidate and the last.
    shifts = _BINS_BETWEEN * (_CANDIDATES - 1) + _BINS_PER_OCTAVE * octaves_higher
    # With the first candidate, the largest activation is this input. Depths count the
    # bins from there downwards; at lower thresholds inputs are larger, above depth 0.
    largest = model.levels[1] * code_reach / _LARGEST_REACH * 2.0**-octaves_higher
    input_count = (_BINS + shifts) * _INPUTS_PER_BIN
    depths = (np.arange(input_count) + 0.5) / _INPUTS_PER_BIN - shifts
    inputs = largest * 2.0 ** (-depths / _BINS_PER_OCTAVE)
    outputs, spikes = _sent(model, code, steps, inputs, np.asarray(zones)[:, None])
    squares = (outputs - inputs) ** 2
    by_bin = (len(zones), -1, _INPUTS_PER_BIN)
    mean_squares = squares.reshape(by_bin).mean(axis=2)
    mean_spikes = spikes.reshape(by_bin).mean(axis=2)
    return tuple(map(Transfer, mean_squares, mean_spikes))


def _sent(
    model: IntegrateAndFire,
    code: Code,
    steps: int,
    inputs: np.ndarray,
    last_zones: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean outputs and numbers of spikes of neurons that know their input, [Z, n] both.

    The equations are those of `snnjax.neurons.schedule` for V_th = 1 and all input at
    the first step.

    Args:
        model: of the neurons.
        code: what a spike is worth at each step.
        steps: T.
        inputs: x, in thresholds, [n].
        last_zones: in place of the model's own, [Z, 1].
    """
    low, high = model.levels
    sizes = code.sizes(steps).astype(float)
    finest = sizes[-1]
    zones = [model.dead_zone] * (steps - 1) + [last_zones]
    # T x is the input of all steps, of which nothing is sent yet.
    missing = np.broadcast_to(steps * inputs, (len(last_zones), inputs.size))  # [Z, n]
    sent = np.zeros(missing.shape)
    spikes = np.zeros(missing.shape)
    for size, zone in zip(sizes, zones, strict=True):
        # A later digit can take back what is too much if levels are negative, so each
        # digit is rounded to the nearest. Otherwise only the last digit is, and all
        # others are rounded down but for half of the finest size.
        rounding = size if low < 0 else finest
        level = np.floor((missing + rounding / 2) / size)
        level = np.clip(level, low, high)
        is_small = np.abs(missing) < zone * (1 - TIES) * size
        # Within a zone of at most 1/2, all inputs round to 0 anyway.
        level = np.where(is_small & (zone > 1 / 2), 0, level)
        if model.rectifies:
            # No more can be taken back than was sent.
            sent_levels = np.floor(sent / size + ROUNDING)
            level = np.maximum(level, -sent_levels)
        missing = missing - size * level
        sent = sent + size * level
        spikes += level != 0
    return sent / steps, spikes


class Curve(NamedTuple):
    """Thresholds of a site, and what each of them costs.

    The arrays are [K, C] for all candidates, or [C] for one of each channel. C is 1 if
    the site has one threshold.

    Attributes:
        thresholds: V, from the largest to the smallest.
        errors: squared error of the outputs that V causes, over their size.
        spikes: of an image, over the number of neurons of the network.
    """

    thresholds: np.ndarray
    errors: np.ndarray
    spikes: np.ndarray

    def cheapest(self, price: float) -> "Curve":
        """The candidate of each channel with the least J at this price, [C].

        Of equally good ones that is the largest threshold.
        """
        costs = self.errors + price * self.spikes
        best = costs.argmin(axis=0)
        channels = np.arange(len(best))
        return Curve(
            thresholds=self.thresholds[best, channels],
            errors=self.errors[best, channels],
            spikes=self.spikes[best, channels],
        )


def curves(
    sample: Sample,
    tables: Sequence[Transfer],
    *,
    reach: float,
    positions: int,
    neurons: int,
    offset: Any = None,
    per: Per = "channel",
) -> tuple[Curve, ...]:
    """The curve of a site for each of the tables.

    Args:
        sample: n activations of each of C channels, and the effects of errors.
        tables: `transfers` of the site's neurons.
        reach: their largest output, in thresholds.
        positions: of a channel in an image.
        neurons: M.
        offset: of the neurons, one number or [C]; None: 0.
        per: "channel", or "layer" for one threshold.

    >>> sample = Sample(*map(np.float32, ([[1], [0.6]], [[1], [1]], [0.6], [1])))
    >>> import snnjax
    >>> binary, code = snnjax.integrate_and_fire(), snnjax.codes.rate()
    >>> tables = transfers(binary, code, 4, (1 / 2,))
    >>> (curve,) = curves(sample, tables, reach=1.0, positions=1, neurons=1)
    >>> for price in (0, 0.1):
    ...     threshold, error, spikes = (part[0] for part in curve.cheapest(price))
    ...     print(f"{threshold:.2f} {error:.4f} {spikes:.1f}")
    2.00 0.0051 1.5
    3.08 0.0400 1.0
    """
    channels = sample.activation.shape[1]
    maxima = np.broadcast_to(_references(sample, offset, per), channels)
    weights, counts = _histograms(sample, offset, maxima, positions)  # [bins, C]
    weights *= sample.channel_weight
    shifts = len(tables[0].squares) - _BINS
    # Candidate k has a threshold `_BINS_BETWEEN` bins below that of k - 1, so the same
    # activations are read as many bins higher in the table.
    k = np.arange(shifts // _BINS_BETWEEN + 1)[:, None]  # [K, 1]
    table_bins = np.arange(_BINS) + shifts - _BINS_BETWEEN * k  # [K, bins]
    # The last candidate reaches 1/64 of the maximum with every code; the first one
    # differs. So thresholds are counted from the last one.
    octaves_between = _BINS_BETWEEN / _BINS_PER_OCTAVE
    octaves = octaves_between * (_CANDIDATES - 1)
    lowest = _LARGEST_REACH / reach * 2.0**-octaves
    thresholds = lowest * 2.0 ** (octaves_between * k[::-1]) * maxima  # [K, C]
    # What is larger than all of the sample counts as one more activation, so that more
    # steps do not bring thresholds down to what new inputs exceed.
    largest_outputs = reach * thresholds
    unseen = sample.clipped_error(offset, caps=largest_outputs)
    unseen *= sample.channel_weight * positions / len(sample.activation)
    # A neuron that can send more than the bound does so wherever its input is larger,
    # and activations, which the bound has clipped, do not tell how often that is.
    is_allowed = largest_outputs <= np.asarray(sample.bound) * (1 + _ABOVE_BOUND)
    unseen = np.where(is_allowed, unseen, np.inf)
    results = []
    for table in tables:
        # A product by BLAS, whose threads compete with XLA's, takes 50 times as long.
        squares = np.einsum("kb,bc->kc", table.squares[table_bins], weights)
        spikes = np.einsum("kb,bc->kc", table.spikes[table_bins], counts)  # [K, C]
        # The table is for V_th = 1, so its squares are in units of the threshold.
        curve = Curve(
            thresholds=thresholds,
            errors=thresholds**2 * squares + unseen,
            spikes=spikes / neurons,
        )
        if per == "layer":
            curve = _summed_over_channels(curve)
        results.append(curve)
    return tuple(results)


def _references(sample: Sample, offset: Any, per: Per) -> np.ndarray:
    """What thresholds are multiples of: a largest activation > 0 each, [] or [C].

    If it is near the bound, it is the bound itself, so that a neuron can send just
    that: all values of a quantized ReLU are then among its own.
    """
    maxima = sample.positive_maxima(offset, per)
    bounds = np.asarray(sample.bound, maxima.dtype)
    if per == "layer":
        bounds = bounds.max()
    return np.where(bounds <= _NEAR * maxima, bounds, maxima)


def _histograms(
    sample: Sample, offset: Any, maxima: np.ndarray, positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of weights, and number of activations, in each bin: [bins, C] both.

    Both are means over the images: the sample, scaled to the positions of one image.

    Args:
        sample: n activations of each channel, [n, C], and their weights, [n, 1].
        offset: of the neurons, one number or [C]; None: 0.
        maxima: activation at the upper end of bin 0, [C].
        positions: how many a channel has in one image.
    """
    magnitudes = sample.magnitudes(offset)  # [n, C]
    count, channels = magnitudes.shape
    # Activations of 0, and all that are too small for the bins, are in the last bin.
    parts_of_maximum = np.maximum(magnitudes / maxima, 2.0**-_OCTAVES)
    depths = -_BINS_PER_OCTAVE * np.log2(parts_of_maximum)
    bins = np.clip(depths.astype(np.int32), 0, _BINS - 1)
    # `bincount` has one axis: it counts pairs of a bin and a channel.
    pairs = (bins * channels + np.arange(channels, dtype=bins.dtype)).ravel()
    pair_count = _BINS * channels
    # A neuron without input sends nothing, so an activation of 0 has no error to weigh,
    # unlike the small activations of its bin.
    weights = sample.weight * (magnitudes > 0)  # [n, C]
    per_image = positions / count
    weight_sums = per_image * np.bincount(pairs, weights.ravel(), pair_count)
    counts = per_image * np.bincount(pairs, minlength=pair_count)
    return weight_sums.reshape(_BINS, channels), counts.reshape(_BINS, channels)


def _summed_over_channels(curve: Curve) -> Curve:
    """The curve [K, 1] of a layer, whose channels have the same candidates [K, C]."""
    return Curve(
        thresholds=curve.thresholds[:, :1],
        errors=curve.errors.sum(axis=1, keepdims=True),
        spikes=curve.spikes.sum(axis=1, keepdims=True),
    )


def total(curves: Iterable[Curve], price: float) -> tuple[float, float]:
    """(error, spikes per neuron) of all sites at this price, as the curves predict."""
    error = spikes = 0.0
    for curve in curves:
        best = curve.cheapest(price)
        error += float(best.errors.sum())
        spikes += float(best.spikes.sum())
    return error, spikes


def price_of(curves: Iterable[Curve], spikes: float) -> float:
    """The least price at which all sites send at most so many spikes, by bisection.

    `HIGHEST` if they always send more.

    Args:
        curves: of all sites.
        spikes: allowed, per neuron and image.
    """
    curves = list(curves)
    _, free_spikes = total(curves, 0.0)
    if free_spikes <= spikes:
        return 0.0
    low, high = _LOWEST, HIGHEST
    # Prices span nine decades, so the geometric mean halves the interval. 40 halvings
    # leave less than a millionth of a percent.
    for _ in range(40):
        middle = (low * high) ** 0.5
        _, sent_spikes = total(curves, middle)
        if sent_spikes > spikes:
            low = middle
        else:
            high = middle
    return high
