"""The search for a neuron: candidates are tried on the spikes that arrive at a site.

One program tries all candidates on blocks of a sample; all sites have it. Source: ours.
"""

import functools
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import binary_unit, lead, on_host
from snnjax._checks import check_choice
from snnjax._ranges import NOT_NEGATIVE
from snnjax._text import named
from snnjax._types import Per
from snnjax.calibrators import formulas
from snnjax.calibrators.parameters import broadcast
from snnjax.calibrators.running import Dynamics
from snnjax.calibrators.sample import Sample, at_positions
from snnjax.calibrators.view import Calibrator, Fit, View
from snnjax.neurons.models import NeuronParams

# Weight of the pace. On ResNet-20 without a wait it took 63 % off the KL divergence at
# T = 16 and 78 % at T = 32.
_PACE = 0.1


@named
def search(
    candidates: Sequence[tuple[float, float]],
    *,
    pace: float = _PACE,
    per: Per = "channel",
) -> Calibrator:
    """Scale and postpone each channel by the (f, c) that lowers its error most.

        argmin over (f, c) of   sum w (a - s)^2  +  pace sum w (a - p)^2

    A candidate scales a neuron by f (`formulas.scale`), and postpones a charge of c
    thresholds (`formulas.postpone`). s is its mean output, p its pace
    (`snnjax.neurons.mean_and_pace`), w the effect of an error (`by_effect`). The pace
    counts because the next layer reacts to spikes as they arrive. The sums are over
    2^15 positions of a channel, or all if there are fewer. Errors are measured with a
    bias corrected as by `correct_bias`, but the result has no correction: the
    calibrators that follow correct what remains.

    Args:
        candidates: pairs of a factor f > 0 and a charge c in thresholds. Of equally
            good ones the nearest to (1, 0), which changes nothing, is taken.
        pace: weight of the second sum, >= 0.
        per: what has a choice of its own; "layer": the sums are over all channels, too.

    Raises:
        ValueError: candidates that are not such pairs, or none; an argument outside
            its range.
    """
    pairs = _checked_pairs(candidates)
    NOT_NEGATIVE.check("pace", pace)
    check_choice("per", per, get_args(Per))
    pairs = sorted(pairs, key=lambda pair: abs(pair[0] - 1) + abs(pair[1]))
    # Equally many candidates take the same program; of equal ones the first is taken.
    padded = [*pairs, *[pairs[0]] * (-len(pairs) % 12)]
    table = np.asarray(padded, np.float32)

    def calibrate(view: View, fit: Fit) -> Fit:
        # Each parameter in full but v(0), which is small until each neuron has its own.
        start = fit.neurons.initial_potential
        in_full = broadcast(fit.neurons, view.site)._replace(initial_potential=start)
        best = _best_of(
            in_full,
            table,
            view.sample,
            view.sample_currents(fit.weights),
            view.positions,
            pace,
            dynamics=view.dynamics,
            shape=view.site.shape,
            channel=view.site.channel,
            per=per,
        )
        return fit._replace(neurons=best)

    return calibrate


def _checked_pairs(candidates: Any) -> list[list[float]]:
    try:
        is_real = np.asarray(candidates).dtype.kind in "iuf"
        pairs = np.atleast_1d(np.asarray(candidates if is_real else (), float))
    except (TypeError, ValueError):  # complex, ragged or traced numbers
        pairs = np.zeros((0, 2))
    is_shaped = pairs.shape == (len(pairs), 2) and len(pairs)
    if not is_shaped or not np.isfinite(pairs).all() or pairs[:, 0].min() <= 0:
        raise ValueError(
            f"candidates are {candidates}; allowed: one pair (factor, charge) or more "
            "of finite numbers, factors > 0, concrete when the recipe is made"
        )
    return pairs.tolist()


@named
def scale_threshold(
    factors: Sequence[float] = (0.75, 0.9, 1, 1.15, 1.3, 1.5, 1.8),
    *,
    pace: float = _PACE,
    per: Per = "channel",
) -> Calibrator:
    """``search((f, 0) for f in factors)``: thresholds for the spikes that arrive.

    `formulas.least_squares` gives the threshold for input that arrives evenly. Here
    every candidate is tried on the spikes that really arrive.

    The spikes of the first layer below come unevenly to the second one.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(jax.nn.relu(x) @ w)
    >>> images = jnp.stack([jnp.ones(16), jnp.arange(16) / 16], axis=1)
    >>> chain = snnjax.calibrators.max_threshold(), scale_threshold((1, 1.25))
    >>> w, recipe = jnp.array([[1.0], [-2.0]]), snnjax.Recipe(chain)
    >>> snn = snnjax.convert(fn, w, images, steps=5, recipe=recipe)
    >>> print(snn.neurons["relu"].threshold, snn.neurons["relu_1"].threshold)
    [1. 1.] [1.25]
    """
    return search([(factor, 0) for factor in factors], pace=pace, per=per)


@named
def postpone_charge(
    charges: Sequence[float] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4),
    *,
    pace: float = _PACE,
) -> Calibrator:
    """``search((1, c) for c in charges)``: neurons fire later, when they know more.

    A neuron that fires before it has all of its input may fire on input that is
    inhibited later. One that starts c thresholds lower, and gets them back evenly over
    the T steps, fires later. Outputs at t < T get worse: a part of the charge is
    missing until T.

    The fit is returned unchanged with a wait of T, where the order of the input does
    not matter, under codes other than rate coding, and where a neuron can take a spike
    back (levels below 0; on ResNet-20 the KL divergence was the same).

    The second layer below is excited by 1 at every step; what inhibits it comes later.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(jax.nn.relu(x) @ w)
    >>> images = jnp.stack([jnp.ones(16), jnp.arange(16) / 16], axis=1)
    >>> chain = snnjax.calibrators.max_threshold(), postpone_charge((0, 1))
    >>> w, recipe = jnp.array([[1.0], [-2.0]]), snnjax.Recipe(chain)
    >>> snn = snnjax.convert(fn, w, images, steps=5, recipe=recipe)
    >>> print(snn.neurons["relu_1"].initial_potential, snn.neurons["relu_1"].bias)
    [-1.] [0.2]
    """
    postpone = search([(1, charge) for charge in charges], pace=pace)

    def calibrate(view: View, fit: Fit) -> Fit:
        arrives_late = view.code.constant_steps(view.steps) > 1
        order_matters = arrives_late and view.needs_time
        spikes_are_final = view.model.levels[0] >= 0
        return postpone(view, fit) if order_matters and spikes_are_final else fit

    return calibrate


def _best_of(
    neuron: NeuronParams,
    candidates: np.ndarray,
    sample: Sample,
    currents: jax.Array,
    positions: np.ndarray | None,
    pace: float,
    *,
    dynamics: Dynamics,
    shape: tuple[int, ...],
    channel: int,
    per: Per,
) -> NeuronParams:
    """The neuron that `search` chooses."""
    neuron, sample, currents = on_host((neuron, sample, currents))
    count, channels = sample.activation.shape
    # v(0), which may be one number of each neuron, is an array of its own.
    start = np.broadcast_to(lead(neuron.initial_potential, len(shape)), shape)
    start = at_positions(start, positions, len(shape), channel)
    start = np.broadcast_to(start, (count // len(start), *start.shape))
    weight = np.broadcast_to(sample.weight, (count, channels))
    if dynamics.needs_time and currents.ndim == 2:  # constant: as that of other sites
        currents = np.broadcast_to(currents, (dynamics.steps, *currents.shape))
    of_numbers = dynamics._replace(ndim=0)  # each with parameters of its own
    rows = sample.activation, weight, start.reshape(count, channels), currents
    blocks = [_in_equal_blocks(array) for array in rows]
    width = blocks[0].shape[-1]

    def of_channels(array: np.ndarray) -> np.ndarray:
        """[..., C] for a whole block; what is filled up has no weight."""
        lanes = _lanes(channels)
        missing = [(0, 0)] * (array.ndim - 1) + [(0, lanes - channels)]
        filled = np.pad(array, missing, constant_values=1)
        return np.tile(filled, width // lanes)

    def flat(parameter: Any) -> np.ndarray:
        return of_channels(np.broadcast_to(np.ravel(parameter), channels))

    plain = neuron._replace(initial_potential=np.zeros((), np.float32))
    params = jax.tree.map(flat, plain)
    unit = binary_unit(params.threshold)

    def errors(bias: np.ndarray) -> list[np.ndarray]:
        """(sum w (a - s), sum of squares) of each candidate with this bias, [K, C]."""
        totals = None
        for block in zip(*blocks, strict=True):
            sums = _errors(of_numbers, params, unit, candidates, bias, pace, block)
            sums = [np.asarray(part) for part in sums]
            totals = sums if totals is None else list(map(np.add, totals, sums))
        by_lane = (part.reshape(len(part), -1, _lanes(channels)) for part in totals)
        return [part.sum(1)[:, :channels] for part in by_lane]

    no_bias = np.zeros((len(candidates), width), np.float32)
    missing, _ = errors(no_bias)
    _, squares = errors(of_channels(missing / np.float32(count)))
    if per == "layer":
        squares = np.broadcast_to(squares.sum(1, keepdims=True), squares.shape)
    best = candidates[squares.argmin(0)].T
    best = best.reshape(2, -1, *[1] * (-channel - 1))
    return _changed(neuron, best, dynamics.steps)


_BLOCK, _AT_ONCE = 4096, 16  # numbers in a block, and blocks of a program


def _lanes(channels: int) -> int:
    """Channels, filled up so that blocks of all sites have equal sizes."""
    return 1 << (channels - 1).bit_length()


def _in_equal_blocks(rows: np.ndarray) -> np.ndarray:
    """[n, C] as [chunks, `_AT_ONCE`, L], filled up with zeros.

    [T, n, C] as [chunks, `_AT_ONCE`, T, L]. L is the same for all sites up to `_BLOCK`
    channels, which then share one program.
    """
    *steps, count, channels = rows.shape
    lanes = _lanes(channels)
    in_one = max(1, _BLOCK // lanes)
    missing = [(0, -count % (in_one * _AT_ONCE)), (0, lanes - channels)]
    filled = np.pad(rows, [(0, 0)] * len(steps) + missing)
    blocks = filled.reshape(*steps, -1, _AT_ONCE, in_one * lanes)
    return np.ascontiguousarray(np.moveaxis(blocks, 0, -2)) if steps else blocks


@functools.partial(jax.jit, static_argnums=0)  # runs long: the faster program
def _errors(
    dynamics: Dynamics,
    params: NeuronParams,
    unit: jax.Array,
    candidates: jax.Array,
    bias: jax.Array,
    pace: float,
    blocks: Sequence[jax.Array],
) -> Any:
    """The sums of `search` over these blocks for each candidate, two of [K, L]."""

    def of_candidate(trial: Any) -> Any:
        candidate, added = trial

        def add(totals, block):
            a, w, start, current = block
            neuron = params._replace(initial_potential=start)
            neuron = _changed(neuron, candidate, dynamics.steps)
            neuron = neuron._replace(bias=neuron.bias + added)
            mean, early_mean = dynamics.mean_and_pace(neuron, current)
            missing = a - mean.astype(a.dtype)
            early = a - early_mean.astype(a.dtype)
            squares = (missing / unit) ** 2 + pace * (early / unit) ** 2
            return (totals[0] + w * missing, totals[1] + w * squares), None

        nothing = jnp.zeros_like(unit)
        return jax.lax.scan(add, (nothing, nothing), tuple(blocks))[0]

    return jax.lax.map(of_candidate, (candidates, bias))


def _changed(neuron: NeuronParams, candidate: jax.Array, steps: int) -> NeuronParams:
    """Scaled by a factor, and postponed by a charge."""
    factor, charge = candidate
    return formulas.postpone(formulas.scale(neuron, factor), charge, steps)
