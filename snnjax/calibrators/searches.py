"""The search for a neuron: candidates are tried on the spikes that arrive at a site.

    argmin over (f, c) of   sum w (a - s)^2  +  pace sum w (a - p)^2

A candidate scales a neuron by f (`formulas.scale`), and postpones a charge of c
thresholds (`formulas.postpone`). a is the ANN's activation, s the mean output of the
candidate, p its pace (`mean_and_pace`), and w the effect of an error
(`by_effect`). The pace counts because the next layer reacts to spikes as they arrive.
The sums are over 2^15 positions of a channel, or all if there are fewer. Errors are
measured with a bias corrected as by `correct_bias`, but the result has no correction:
the calibrators that follow correct what remains. Source: ours.

One program tries all candidates on blocks of a sample; all sites have it.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import binary_unit
from snnjax._checks import check_choice
from snnjax._ranges import NOT_NEGATIVE, POSITIVE, Range
from snnjax._text import named
from snnjax._types import Per
from snnjax.calibrators import formulas
from snnjax.calibrators.parameters import broadcast, parameter_shapes
from snnjax.calibrators.running import Dynamics
from snnjax.calibrators.sample import at_positions
from snnjax.calibrators.unseen import clipped_error
from snnjax.calibrators.view import Calibrator, Fit, View
from snnjax.neurons.models import NeuronParams

# Weight of the pace. On ResNet-20 without a wait it took 63 % off the KL divergence at
# T = 16 and 78 % at T = 32.
_PACE = 0.1
# Candidates are filled up to a multiple, so that most searches share a program.
_CANDIDATES = 12
# Numbers in a block, which stays in the cache of a processor, and blocks of a program.
_NUMBERS_IN_BLOCK = 4096
_BLOCKS_AT_ONCE = 16


@named
def scale_threshold(
    factors: Sequence[float] = (0.75, 0.9, 1, 1.15, 1.3, 1.5, 1.8),
    *,
    pace: float = _PACE,
    per: Per = "channel",
) -> Calibrator:
    """Scale each threshold by the factor f with the least error.

        argmin over f of   sum w (a - s)^2  +  pace sum w (a - p)^2

    `formulas.least_squares` gives the threshold for input that arrives evenly. Here
    every candidate is tried on the spikes that really arrive: s is its mean output, and
    p its pace (`mean_and_pace`), which counts because the next layer
    reacts to spikes as they arrive. The sums are over 2^15 positions of a channel, or
    all if there are fewer, and errors are measured with a bias corrected as by
    `correct_bias`.

    Args:
        factors: > 0. Of equally good ones the nearest to 1 is taken.
        pace: weight of the second sum, >= 0.
        per: what has a choice of its own; "layer": the sums are over all channels, too.

    Raises:
        ValueError: an argument outside its range.

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
    numbers = _checked_numbers("factors", factors, POSITIVE)
    return _search([(factor, 0.0) for factor in numbers], pace, per)


@named
def postpone_charge(
    charges: Sequence[float] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4),
    *,
    pace: float = _PACE,
) -> Calibrator:
    """Postpone the charge c with the least error: neurons fire when they know more.

    The sum that is minimized is that of `scale_threshold`, and of equally good charges
    the nearest to 0 is taken.

    A neuron that fires before it has all of its input may fire on input that is
    inhibited later. One that starts c thresholds lower, and gets them back evenly over
    the T steps, fires later. Outputs at t < T get worse: a part of the charge is
    missing until T.

    The fit is returned unchanged with a wait of T, where the order of the input does
    not matter, under codes other than rate coding, and where a neuron can take a spike
    back (levels below 0; on ResNet-20 the KL divergence was the same).

    In the example, the second layer is excited by 1 at every step;
    what inhibits it comes later.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(jax.nn.relu(x) @ w)
    >>> images = jnp.stack([jnp.ones(16), jnp.arange(16) / 16], axis=1)
    >>> chain = snnjax.calibrators.max_threshold(), postpone_charge((0, 1))
    >>> w, recipe = jnp.array([[1.0], [-2.0]]), snnjax.Recipe(chain)
    >>> snn = snnjax.convert(fn, w, images, steps=5, recipe=recipe)
    >>> print(snn.neurons["relu_1"].initial_potential, snn.neurons["relu_1"].bias)
    [-1.] [0.2]
    """
    numbers = _checked_numbers("charges", charges, Range())
    postpone = _search([(1.0, charge) for charge in numbers], pace, "channel")

    def calibrate(view: View, fit: Fit) -> Fit:
        is_spread = view.code.constant_steps(view.steps) > 1  # a constant, over steps
        order_matters = is_spread and view.needs_time
        spikes_are_final = view.model.levels[0] >= 0
        if order_matters and spikes_are_final:
            return postpone(view, fit)
        return fit

    return calibrate


def _search(
    candidates: Sequence[tuple[float, float]], pace: float, per: Per
) -> Calibrator:
    """Scale and postpone each channel by the (f, c) that lowers its error most.

    Args:
        candidates: pairs (f, c). Of equally good ones the nearest to (1, 0), which
            changes nothing, is taken.
        pace: weight of the second sum, >= 0.
        per: what has a choice of its own; "layer": the sums are over all channels, too.
    """
    NOT_NEGATIVE.check("pace", pace)
    check_choice("per", per, get_args(Per))

    def distance(candidate: tuple[float, float]) -> float:
        factor, charge = candidate
        return abs(factor - 1) + abs(charge)

    ordered = sorted(candidates, key=distance)
    missing_count = -len(ordered) % _CANDIDATES
    filling = [ordered[0]] * missing_count
    factors, charges = np.asarray(ordered + filling, np.float32).T

    def calibrate(view: View, fit: Fit) -> Fit:
        neurons = broadcast(fit.neurons, view.site)
        # v(0) is one number until each neuron has its own.
        start = fit.neurons.initial_potential
        neurons = neurons._replace(initial_potential=start)
        blocks = _blocks_of_sample(view, fit)
        trials = _trials(neurons, factors, charges, view.steps)
        missing, _ = _errors(view.dynamics, trials, blocks, pace)
        # Candidates compete with the bias that corrects their mean error.
        count = np.float32(len(view.sample.activation))
        bias = trials.neurons.bias + missing / count
        trials = trials._replace(neurons=trials.neurons._replace(bias=bias))
        _, squares = _errors(view.dynamics, trials, blocks, pace)
        # Smaller thresholds would clip inputs that the sample does not have. Such an
        # error is one of the mean and of the pace.
        unit = trials.unit.astype(np.float64)
        largest_outputs = view.high * np.asarray(trials.neurons.threshold)
        tail = view.sample.tail(neurons.offset)
        unseen = clipped_error(tail, largest_outputs) / unit**2
        squares = squares + (1 + pace) * unseen
        if per == "layer":
            layer_squares = squares.sum(axis=1, keepdims=True)
            squares = np.broadcast_to(layer_squares, squares.shape)
        best = squares.argmin(axis=0)  # [C]
        shape = parameter_shapes(view.site)["threshold"]
        factor = factors[best].reshape(shape)
        charge = charges[best].reshape(shape)
        scaled = formulas.scale(neurons, factor)
        return fit._replace(neurons=formulas.postpone(scaled, charge, view.steps))

    return calibrate


def _checked_numbers(name: str, numbers: Iterable[float], limits: Range) -> list[float]:
    """The numbers, one or more within the limits; raise for anything else."""
    try:
        array = np.asarray(list(numbers))
    except (TypeError, ValueError):  # They are traced, or of different lengths.
        array = np.asarray(())
    is_row = array.ndim == 1 and array.size > 0
    is_real = array.dtype.kind in "iuf"
    if not is_row or not is_real or not limits.holds(array).all():
        raise ValueError(
            f"{name} are {numbers}; allowed: one number or more, each "
            f"{limits.describe(name)}, concrete when the recipe is made"
        )
    return [float(number) for number in array]


class _Trials(NamedTuple):
    """The candidates for the neurons of a site.

    Attributes:
        neurons: parameters [K, C] of neurons whose v(0) is 0 before the change.
        factors: f, by which a v(0) is scaled that is not 0: [K].
        unit: of errors, a power of two near the threshold: [1, C].
    """

    neurons: NeuronParams
    factors: np.ndarray
    unit: np.ndarray


def _trials(
    neurons: NeuronParams, factors: np.ndarray, charges: np.ndarray, steps: int
) -> _Trials:
    """A site's neurons, scaled and postponed by each pair (f, c).

    Args:
        neurons: parameters of each channel, [C] or [C, 1, 1].
        factors: f, [K].
        charges: c, [K].
        steps: T.
    """
    # Their own v(0) is scaled and added where the sample is simulated (`_Trials`).
    from_zero = neurons._replace(initial_potential=np.zeros_like(neurons.bias))
    per_channel = jax.tree.map(np.ravel, from_zero)  # [C]
    changed = []
    for factor, charge in zip(factors, charges, strict=True):
        scaled = formulas.scale(per_channel, factor)
        changed.append(formulas.postpone(scaled, charge, steps))
    return _Trials(
        neurons=jax.tree.map(lambda *parameters: np.stack(parameters), *changed),
        factors=factors,
        unit=binary_unit(per_channel.threshold)[None],
    )


class _Blocks(NamedTuple):
    """A sample in blocks of L numbers, several blocks to a chunk.

    Attributes:
        activation: of the ANN, [chunks, blocks, L]. Within a program it is of one
            block, [L].
        weight: how much an error counts; 0 of what fills up the last block.
        start: v(0).
        current: likewise, or [chunks, blocks, T, L] where time matters.
    """

    activation: Any
    weight: Any
    start: Any
    current: Any


def _blocks_of_sample(view: View, fit: Fit) -> _Blocks:
    """The sample of a site, with v(0) and the currents at its positions."""
    sample = view.sample
    shape = sample.activation.shape  # [n, C]
    current = view.sample_currents(fit.weights)
    if view.needs_time and current.ndim == 2:
        # A constant current gets the shape of the currents of other sites.
        current = np.broadcast_to(current, (view.steps, *current.shape))
    return _Blocks(
        activation=_in_blocks(sample.activation),
        weight=_in_blocks(np.broadcast_to(sample.weight, shape)),
        start=_in_blocks(_start_at_positions(view, fit)),
        current=_in_blocks(current),
    )


def _start_at_positions(view: View, fit: Fit) -> np.ndarray:
    """v(0) at the positions of the sample, [n, C]."""
    start = at_positions(
        np.broadcast_to(fit.neurons.initial_potential, view.site.shape),
        view.positions,
        len(view.site.shape),
        view.site.channel,
    )  # [p, C]
    # All images start alike.
    channels = start.shape[1]
    start = np.broadcast_to(start, (view.count, *start.shape))
    return start.reshape(-1, channels)


def _lanes(channels: int) -> int:
    """Channels, filled up so that blocks of all sites have equal sizes."""
    return 1 << (channels - 1).bit_length()


def _in_blocks(rows: np.ndarray) -> np.ndarray:
    """[n, C] as [chunks, blocks, L], and [T, n, C] as [chunks, blocks, T, L].

    Both n and C are filled up with zeros. L is the same for all sites of up to
    `_NUMBERS_IN_BLOCK` channels, which then share one program.
    """
    *leading, count, channels = rows.shape
    lanes = _lanes(channels)
    samples = max(1, _NUMBERS_IN_BLOCK // lanes)
    missing_rows = -count % (samples * _BLOCKS_AT_ONCE)
    padding = [(0, 0) for _ in rows.shape]
    padding[-2] = (0, missing_rows)
    padding[-1] = (0, lanes - channels)
    filled = np.pad(rows, padding)
    blocks = filled.reshape(*leading, -1, _BLOCKS_AT_ONCE, samples * lanes)
    if not leading:
        return blocks
    # The steps come last but one, in memory too.
    by_step = np.moveaxis(blocks, 0, -2)
    return np.ascontiguousarray(by_step)


def _errors(
    dynamics: Dynamics, trials: _Trials, blocks: _Blocks, pace: float
) -> tuple[np.ndarray, np.ndarray]:
    """(sum w (a - s), sum that the search minimizes) of each candidate, [K, C] both."""
    channels = trials.unit.shape[1]
    lanes = _lanes(channels)
    samples = blocks.activation.shape[-1] // lanes

    def for_block(parameter: np.ndarray) -> np.ndarray:
        """[K, C] as [K, L]. What fills up the lanes has no weight."""
        padding = [(0, 0), (0, lanes - channels)]
        filled = np.pad(parameter, padding, constant_values=1)
        return np.tile(filled, samples)

    def for_channels(sums: np.ndarray) -> np.ndarray:
        """[K, L] as [K, C]."""
        by_lane = sums.reshape(len(sums), samples, lanes).sum(axis=1)
        return by_lane[:, :channels]

    neurons = jax.tree.map(for_block, trials.neurons)
    unit = for_block(trials.unit)[0]
    # Each number of a block is a neuron with parameters of its own.
    dynamics = dynamics._replace(ndim=0)
    missing = np.zeros((len(trials.factors), len(unit)), np.float32)
    squares = np.zeros_like(missing)
    for chunk in zip(*blocks, strict=True):
        chunk_missing, chunk_squares = _errors_in_chunk(
            dynamics,
            neurons,
            trials.factors,
            unit,
            pace,
            _Blocks(*chunk),
        )
        missing = missing + np.asarray(chunk_missing)
        squares = squares + np.asarray(chunk_squares)
    return for_channels(missing), for_channels(squares)


@functools.partial(jax.jit, static_argnums=0)  # It runs long: the faster program.
def _errors_in_chunk(
    dynamics: Dynamics,
    neurons: NeuronParams,
    factors: jax.Array,
    unit: jax.Array,
    pace: float,
    chunk: _Blocks,
) -> tuple[jax.Array, jax.Array]:
    """The sums of `_errors` over the samples of each lane, [K, L] both.

    Args:
        dynamics: of single numbers.
        neurons: of each candidate, [K, L].
        factors: by which candidates scale v(0), [K].
        unit: of the squares, [L].
        pace: weight of the pace.
        chunk: some blocks of the sample.
    """

    def sums(trial: tuple[NeuronParams, jax.Array]) -> tuple:
        candidate, factor = trial

        def add(totals: tuple, block: _Blocks) -> tuple:
            start = factor * block.start + candidate.initial_potential
            neuron = candidate._replace(initial_potential=start)
            mean, early_mean = dynamics.mean_and_pace(neuron, block.current)
            missing = block.activation - mean.astype(block.activation.dtype)
            early = block.activation - early_mean.astype(block.activation.dtype)
            squares = (missing / unit) ** 2 + pace * (early / unit) ** 2
            missing_total, square_total = totals
            missing_total = missing_total + block.weight * missing
            square_total = square_total + block.weight * squares
            return (missing_total, square_total), None

        zero = jnp.zeros_like(unit)
        totals, _ = jax.lax.scan(add, (zero, zero), chunk)
        return totals

    return jax.lax.map(sums, (neurons, factors))
