"""Error and spikes of a site for many thresholds, and the cheapest of them at a price.

    J(V) = sum_p w (s(a; V) - a)^2  +  price k(a; V) / M,    of an image on average

s is the output of a neuron that knows its input a, k how many spikes it sends, w the
effect of an error on the outputs, and M the number of neurons of the network. One more
activation, larger than all of the sample, counts as `snnjax.calibrators.unseen` says.
Errors of all sites are on one scale: a price is the error of the outputs, over their
size, for which the network may save one spike per neuron. Costs of this kind:
rate-distortion optimization of video coders (Sullivan and Wiegand, 1998); of spikes:
ours.

Everything here is NumPy. Activations are counted once, in bins of their logarithm, and
every candidate reads the same table of what neurons send, shifted by some bins.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from snnjax._types import Per
from snnjax.calibrators.sample import Sample
from snnjax.calibrators.unseen import clipped_error
from snnjax.codes import Code
from snnjax.neurons.models import IntegrateAndFire
from snnjax.neurons.schedule import ROUNDING, TIES

# A bin is 1.1 % wide; what is 14 octaves below the largest activation counts as 0.
_BINS_PER_OCTAVE = 64
_OCTAVES = 14
_BINS = _BINS_PER_OCTAVE * _OCTAVES
_INPUTS_PER_BIN = 8  # inputs of a bin that a table averages over
# Candidates let a neuron reach from 8 times the largest activation down to 1/64 of it,
# with 8 bins, 9 %, between two of them.
_LARGEST_REACH = 8
_BINS_BETWEEN = 8
_CANDIDATES = 73
# Where the finest digit is less than 1/16 of what a neuron can send, candidates begin
# octaves higher, so that a price can silence the last digits too.
_COARSEST_DIGIT = 16
# Prices between which `price_of` searches: beyond them nothing changes.
_LOWEST = 1e-6
HIGHEST = 1e3


class Transfer(NamedTuple):
    """What neurons that know their input x send, over the threshold, for bins of x.

    The first bin is that of the largest input, and each bin is 1.1 % below the one
    before it. There are as many as the bins of activations, and all the bins by which
    candidates shift them: [bins + shifts].

    Attributes:
        squares: mean of (s - x)^2 in each bin.
        spikes: mean of k.
    """

    squares: np.ndarray
    spikes: np.ndarray


@functools.lru_cache(64)
def transfers(
    model: IntegrateAndFire, code: Code, steps: int, zones: tuple[float, ...]
) -> tuple[Transfer, ...]:
    """One for each last zone, which takes the place of the model's own."""
    code_reach = code.reach(steps)
    finest_digits = code_reach / code.finest(steps)
    octaves_higher = math.ceil(math.log2(finest_digits / _COARSEST_DIGIT))
    octaves_higher = max(0, octaves_higher)
    shifts = _BINS_BETWEEN * (_CANDIDATES - 1) + _BINS_PER_OCTAVE * octaves_higher
    # How far inputs are below the largest activation, in bins, at the first candidate.
    count = (_BINS + shifts) * _INPUTS_PER_BIN
    depths = (np.arange(count) + 0.5) / _INPUTS_PER_BIN - shifts
    # What the largest activation is at the first candidate, in thresholds.
    largest = model.levels[1] * code_reach / _LARGEST_REACH * 2.0**-octaves_higher
    inputs = largest * 2.0 ** (-depths / _BINS_PER_OCTAVE)
    last_zones = np.asarray(zones)[:, None]
    outputs, spikes = _sent(model, code, steps, inputs, last_zones)
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
    zones: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean outputs and spikes [Z, n] of neurons that round, with last zones [Z, 1].

    The equations of `snnjax.neurons.schedule` for V_th = 1, all input at the first
    step, and what was sent so far as a number, since all sizes are known.
    """
    low, high = model.levels
    sizes = code.sizes(steps).astype(float)
    finest = sizes[-1]
    dead_zones = [model.dead_zone] * (steps - 1) + [zones * model.has_zones]
    missing = np.broadcast_to(steps * inputs, (len(zones), inputs.size))
    sent = np.zeros(missing.shape)
    spikes = np.zeros(missing.shape)
    for size, zone in zip(sizes, dead_zones, strict=True):
        # Neurons that can take a spike back round to this digit, others to the last.
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
    """Candidates for the thresholds of a site, [K, C], or [K, 1] of a layer.

    Attributes:
        thresholds: from the largest to the smallest.
        errors: of the outputs, over their size.
        spikes: over the number of neurons of the network.
    """

    thresholds: np.ndarray
    errors: np.ndarray
    spikes: np.ndarray

    def cheapest(self, price: float) -> "Curve":
        """The candidates at this price, [C]; of equally good ones the largest."""
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
    """The curve of a site for each of these tables.

    Args:
        sample: some activations, n of each channel, and the effects of errors.
        tables: `transfers` of the site's neurons.
        reach: their largest output, in thresholds.
        positions: of a channel in an image.
        neurons: M.
        offset: of the neurons, [C] or None.
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
    maxima = np.broadcast_to(sample.positive_maxima(offset, per), channels)
    weights, counts = _histograms(sample, offset, maxima, positions)
    shifts = len(tables[0].squares) - _BINS
    # Candidate k has a threshold `_BINS_BETWEEN` bins below that of k - 1, so the
    # largest activation is so many bins higher in its table: columns are [K, bins].
    k = np.arange(shifts // _BINS_BETWEEN + 1)[:, None]
    columns = np.arange(_BINS) + shifts - _BINS_BETWEEN * k
    # Codes differ in their first candidate; the last one is the same for all.
    octaves_between = _BINS_BETWEEN / _BINS_PER_OCTAVE
    octaves = octaves_between * (_CANDIDATES - 1)
    lowest = _LARGEST_REACH / reach * 2.0**-octaves
    thresholds = lowest * 2.0 ** (octaves_between * k[::-1]) * maxima
    # What is larger than all of the sample counts as one more activation, so that more
    # steps do not bring thresholds down to what new inputs exceed.
    unseen = clipped_error(sample.tail(offset), caps=reach * thresholds)
    unseen *= positions / len(sample.activation)
    results = []
    for table in tables:
        # A product by BLAS, whose threads compete with XLA's, takes 50 times as long.
        squares = np.einsum("kb,bc->kc", table.squares[columns], weights)
        spikes = np.einsum("kb,bc->kc", table.spikes[columns], counts)
        curve = Curve(
            thresholds=thresholds,
            errors=thresholds**2 * squares + unseen,
            spikes=spikes / neurons,
        )
        results.append(curve if per == "channel" else _summed_over_channels(curve))
    return tuple(results)


def _histograms(
    sample: Sample, offset: Any, maxima: np.ndarray, positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and numbers of activations in each bin, of an image: [bins, C] both.

    A bin is counted from the largest activation of the channel, ``maxima`` [C].
    """
    magnitudes = sample.magnitudes(offset)
    count, channels = magnitudes.shape
    shares = np.maximum(magnitudes / maxima, 2.0**-_OCTAVES)
    depths = -_BINS_PER_OCTAVE * np.log2(shares)
    bins = np.clip(depths.astype(np.int32), 0, _BINS - 1)
    # One histogram for all channels: a number for each pair of bin and channel.
    cells = (bins * channels + np.arange(channels, dtype=bins.dtype)).ravel()
    # An activation near 0 is in the last bin, where it has no error and no spike.
    weights = sample.weight * (magnitudes > 0)
    size = _BINS * channels
    per_image = positions / count
    weight_sums = per_image * np.bincount(cells, weights.ravel(), minlength=size)
    counts = per_image * np.bincount(cells, minlength=size)
    return weight_sums.reshape(_BINS, channels), counts.reshape(_BINS, channels)


def _summed_over_channels(curve: Curve) -> Curve:
    """The curve of a layer, from channels that have the same candidates."""
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
    """
    curves = list(curves)
    if total(curves, 0.0)[1] <= spikes:
        return 0.0
    low, high = _LOWEST, HIGHEST
    for _ in range(40):
        middle = (low * high) ** 0.5
        if total(curves, middle)[1] > spikes:
            low = middle
        else:
            high = middle
    return high
