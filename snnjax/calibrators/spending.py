"""Error and spikes of a site for many thresholds, and the cheapest of them at a price.

    J(V) = sum_p w (s(a; V) - a)^2  +  price k(a; V) / M,    of an image on average

s is the output of a neuron that knows its input a, k how many spikes it sends, w the
effect of an error on the outputs, and M the number of neurons of the network. So errors
of all sites are on one scale: a price is the error of the outputs, over their size, for
which the network may save one spike per neuron. Costs of this kind: rate-distortion
optimization of video coders (Sullivan and Wiegand, 1998); of spikes: ours.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from snnjax._arrays import namespace, on_host
from snnjax._types import Per
from snnjax.calibrators.formulas import positive
from snnjax.calibrators.sample import Sample
from snnjax.codes import Code
from snnjax.neurons.models import IntegrateAndFire
from snnjax.neurons.schedule import ROUNDING, TIES

# Activations are counted in bins of their logarithm, so that every candidate reads the
# same table. A bin is 1.1 % wide; 14 octaves below the largest activation counts as 0.
_PER_OCTAVE, _OCTAVES = 64, 14
_BINS = _PER_OCTAVE * _OCTAVES
_PER_BIN = 8  # inputs of a bin that a table averages over
# Candidates reach from 8 times the largest activation down to 1/64 of it, with 8 bins,
# 9 %, between two of them. Where a digit may be less than 1/16 of what a neuron can
# send, they begin octaves higher, so that a price can silence the last digits too.
_MOST, _BETWEEN, _CANDIDATES, _DIGIT = 8, 8, 73, 16


class Transfer(NamedTuple):
    """What neurons that know their input send, by the bins of it, in thresholds."""

    squares: np.ndarray  # mean of (s - x)^2
    spikes: np.ndarray  # mean of k


@functools.lru_cache(64)
def transfers(
    model: IntegrateAndFire, code: Code, steps: int, zones: tuple[float, ...]
) -> tuple[Transfer, ...]:
    """One for each last zone, which takes the place of the model's own."""
    reach = model.levels[1] * code.reach(steps)
    values = code.reach(steps) / code.finest(steps)
    higher = max(0, math.ceil(math.log2(values / _DIGIT)))  # octaves
    last = _BETWEEN * (_CANDIDATES - 1) + _PER_OCTAVE * higher
    depths = (np.arange((_BINS + last) * _PER_BIN) + 0.5) / _PER_BIN - last
    inputs = reach / _MOST * 2.0 ** (-higher - depths / _PER_OCTAVE)
    outputs, counts = _sent(model, code, steps, inputs, np.asarray(zones)[:, None])
    squares = (outputs - inputs) ** 2
    means = (p.reshape(len(zones), -1, _PER_BIN).mean(2) for p in (squares, counts))
    return tuple(map(Transfer, *means))


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
    sent, spikes = np.zeros(missing.shape), np.zeros(missing.shape)
    for size, zone in zip(sizes, dead_zones, strict=True):
        rounding = size if low < 0 else finest
        level = np.clip(np.floor((missing + rounding / 2) / size), low, high)
        silent = (np.abs(missing) < zone * (1 - TIES) * size) & (zone > 1 / 2)
        level = np.where(silent, 0, level)
        if model.rectifies:
            level = np.maximum(level, -np.floor(sent / size + ROUNDING))
        missing, sent = missing - size * level, sent + size * level
        spikes += level != 0
    return sent / steps, spikes


class Curve(NamedTuple):
    """Candidates for the thresholds of a site, [K, C], or [K, 1] of a layer."""

    thresholds: Any
    errors: Any  # of the outputs, over their size
    spikes: Any  # over the number of neurons of the network

    def cheapest(self, price: float) -> "Curve":
        """The candidates at this price, [C]; of equally good ones the largest."""
        best = (self.errors + price * self.spikes).argmin(0)[None]
        take = namespace(best).take_along_axis
        return Curve(*(take(part, best, 0)[0] for part in self))


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
    >>> (of_site,) = curves(sample, tables, reach=1.0, positions=1, neurons=1)
    >>> for price in (0, 0.1):
    ...     threshold, error, spikes = (part[0] for part in of_site.cheapest(price))
    ...     print(f"{threshold:.2f} {error:.4f} {spikes:.1f}")
    1.30 0.0015 2.5
    3.08 0.0400 1.0
    """
    sample, offset = on_host(sample), on_host(offset)
    xp = namespace(sample.activation)
    sizes = sample.magnitudes(offset)
    count, channels = sizes.shape
    maxima = xp.broadcast_to(positive(sample.maxima(offset), per), channels)
    depths = xp.log2(xp.maximum(sizes / maxima, 2.0**-_OCTAVES)) * -_PER_OCTAVE
    bins = xp.clip(depths.astype(np.int32), 0, _BINS - 1) * channels
    bins = (bins + xp.arange(channels, dtype=bins.dtype)).ravel()
    # An activation near 0 is in the last bin, where it has no error and no spike.
    weights = xp.broadcast_to(sample.weight, sizes.shape) * (sizes > 0)

    def histogram(values: Any = None) -> Any:
        # JAX cuts at a length, and NumPy fills up to one.
        size = {"length" if xp is jnp else "minlength": _BINS * channels}
        total = xp.bincount(bins, values, **size)
        return (positions / count * total).reshape(_BINS, channels)

    last = len(tables[0].squares) - _BINS
    k = np.arange(last // _BETWEEN + 1)[:, None]
    columns = np.arange(_BINS) + last - _BETWEEN * k
    # The last candidate is the same for all codes.
    lowest = _MOST / reach * 2.0 ** (-_BETWEEN / _PER_OCTAVE * (_CANDIDATES - 1))
    thresholds = lowest * 2.0 ** (_BETWEEN / _PER_OCTAVE * k[::-1]) * maxima
    histograms = histogram(weights.ravel()), histogram()

    def of(table: Transfer) -> Curve:
        # A product by BLAS, whose threads compete with XLA's, takes 50 times as long.
        squares, spikes = (
            xp.einsum("kb,bc->kc", of_bins[columns], numbers)
            for of_bins, numbers in zip(table, histograms, strict=True)
        )
        errors, spikes = thresholds**2 * squares, spikes / neurons
        if per == "channel":
            return Curve(thresholds, errors, spikes)
        of_layer = (part.sum(1, keepdims=True) for part in (errors, spikes))
        return Curve(thresholds[:, :1], *of_layer)

    return tuple(map(of, tables))


def total(curves: Iterable[Curve], price: float) -> tuple[float, float]:
    """(error, spikes per neuron) of all sites at this price, as the curves predict."""
    best = [of_site.cheapest(price) for of_site in curves]
    error = sum(of_site.errors.sum() for of_site in best)
    return float(error), float(sum(of_site.spikes.sum() for of_site in best))


def price_of(curves: Iterable[Curve], spikes: float) -> float:
    """The least price at which all sites send at most so many spikes, by bisection.

    `HIGHEST` if they always send more.
    """
    curves, (low, high) = list(curves), (_LOWEST, HIGHEST)
    if total(curves, 0.0)[1] <= spikes:
        return 0.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        exceeds = total(curves, middle)[1] > spikes
        low, high = (middle, high) if exceeds else (low, middle)
    return high


_LOWEST, HIGHEST = 1e-6, 1e3  # beyond them nothing changes
