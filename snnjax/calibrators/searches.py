"""The search for a neuron: candidates are tried on the spikes that arrive at a site.

    argmin over (f, c) of   sum w (a - s)^2  +  q sum w (a - p)^2

A candidate (f, c) scales a neuron by f (`formulas.scale`), and postpones a charge of c
thresholds (`formulas.postpone`). a is the ANN's activation, s the mean output of the
candidate, w the effect of an error (`by_effect`). p is the candidate's pace,

    p = 2 / (T (T + 1)) sum_t (s(1) + .. + s(t)),

which is above s if a neuron sends early, and below s if it sends late. It counts
because the next layer reacts to spikes as they arrive. q is the weight of that sum, the
argument ``pace``. The sums are over a sample of n positions. Errors are measured with a
bias corrected as by `correct_bias`, but the result has no correction: the calibrators
that follow correct what remains. Source: ours.

One program tries all K candidates on chunks of the sample, and all sites share it. For
this a chunk has the same shape at all sites:

    lanes    the C channels, filled up to a power of two
    block    L = samples x lanes numbers, which stay in the cache of a processor
    chunk    16 blocks
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
from snnjax.calibrators.view import Calibrator, Fit, View
from snnjax.neurons.models import NeuronParams

# The default of q. On ResNet-20 without a wait it lowered the KL divergence by 63 % at
# T = 16 and by 78 % at T = 32, compared to q = 0.
_PACE = 0.1
# K is filled up to a multiple of this, so that most searches share a program.
_CANDIDATES = 12
_NUMBERS_IN_BLOCK = 4096
_BLOCKS_IN_CHUNK = 16


@named
def scale_threshold(
    factors: Sequence[float] = (0.75, 0.9, 1, 1.15, 1.3, 1.5, 1.8),
    *,
    pace: float = _PACE,
    per: Per = "channel",
) -> Calibrator:
    """Scale each threshold by the factor f with the least error.

        argmin over f of   sum w (a - s)^2  +  q sum w (a - p)^2
        p = 2 / (T (T + 1)) sum_t (s(1) + .. + s(t))

    `formulas.least_squares` gives the threshold for input that arrives evenly. Here
    every candidate is tried on the spikes that really arrive. a is the ANN's
    activation, s the candidate's mean output over T steps, w the effect of an error
    (`by_effect`, otherwise 1). The pace p is above s if spikes come early and below s
    if they come late; it counts because the next layer reacts to spikes as they arrive.
    The sums are over 2^15 activations of a channel, or all if there are fewer, and
    errors are measured with a bias corrected as by `correct_bias`.

    Args:
        factors: f > 0. Of equally good ones the nearest to 1 is taken.
        pace: q >= 0, how much errors of the pace count.
        per: "channel", one factor for each channel; "layer", one for the site, with
            sums over all channels.

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

        v(0) <- v(0) - c V_th,   bias <- bias + c V_th / T

    A neuron that fires before it has all of its input may fire on input that is
    inhibited later. One that starts c thresholds lower, and gets them back evenly over
    the T steps, fires later. Outputs at t < T get worse: a part of the charge is
    missing until T.

    The fit is returned unchanged with a wait of T, where the order of the input does
    not matter, under codes other than rate coding, and where a neuron can take a spike
    back (levels below 0; on ResNet-20 the KL divergence was the same).

    Args:
        charges: c, in thresholds. Of equally good ones the nearest to 0 is taken.
        pace: as for `scale_threshold`, whose error is minimized here too.

    Raises:
        ValueError: an argument outside its range.

    In the example, the second layer is excited by 1 at every step. What inhibits it
    comes later.

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
        # A charge in the bias arrives at every step, as rate coding spreads a constant;
        # other codes add a constant at the first step, where nothing is postponed.
        bias_is_spread = view.code.constant_steps(view.steps) > 1
        order_matters = bias_is_spread and view.needs_time
        spikes_are_final = view.model.levels[0] >= 0
        if order_matters and spikes_are_final:
            return postpone(view, fit)
        return fit

    return calibrate


def _search(
    candidates: Sequence[tuple[float, float]], pace_weight: float, per: Per
) -> Calibrator:
    """A calibrator that scales and postpones each channel by its best pair (f, c).

    Args:
        candidates: pairs (f, c). Of equally good ones the nearest to (1, 0), which
            changes nothing, is taken.
        pace_weight: q >= 0.
        per: as for `scale_threshold`.
    """
    NOT_NEGATIVE.check("pace", pace_weight)
    check_choice("per", per, get_args(Per))

    def distance(candidate: tuple[float, float]) -> float:
        factor, charge = candidate
        return abs(factor - 1) + abs(charge)

    # `argmin` takes the first of equals, so candidates are ordered, and repetitions of
    # the first one that fill up the row change nothing.
    ordered = sorted(candidates, key=distance)
    filling_count = -len(ordered) % _CANDIDATES
    filling = [ordered[0]] * filling_count
    factors, charges = np.asarray(ordered + filling, np.float32).T  # [K] both

    def calibrate(view: View, fit: Fit) -> Fit:
        # v(0) is not broadcast: if all neurons have the same, the result then has one
        # number for each channel, in place of one for each neuron.
        neurons = broadcast(fit.neurons, view.site)
        neurons = neurons._replace(initial_potential=fit.neurons.initial_potential)
        trials = _trials(neurons, factors, charges, view.steps)
        errors = _search_errors(view, fit, trials, pace_weight)
        if per == "layer":
            layer_errors = errors.sum(axis=1, keepdims=True)
            errors = np.broadcast_to(layer_errors, errors.shape)
        best = errors.argmin(axis=0)  # [C]
        shape = parameter_shapes(view.site)["threshold"]
        factor = factors[best].reshape(shape)
        charge = charges[best].reshape(shape)
        scaled = formulas.scale(neurons, factor)
        return fit._replace(neurons=formulas.postpone(scaled, charge, view.steps))

    return calibrate


def _checked_numbers(name: str, numbers: Iterable[float], limits: Range) -> list[float]:
    """The numbers of an argument, one or more; raise for anything else.

    Args:
        name: of the argument, for the message.
        numbers: what was given.
        limits: that each number has to keep.
    """
    try:
        array = np.asarray(list(numbers))
    except (TypeError, ValueError):
        # Traced numbers and rows of different lengths are no array; they are refused
        # below, as an empty one is.
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
    """The K candidates for the neurons of a site with C channels.

    Attributes:
        neurons: parameters [K, C] of each candidate, as if the site's v(0) were 0. The
            v(0) of a position, times f, is added where the sample is simulated.
        factors: f, [K].
        unit: of errors, a power of two near the threshold, [1, C]. Over it, squares
            stay in the range of float32.
    """

    neurons: NeuronParams
    factors: np.ndarray
    unit: np.ndarray


def _trials(
    neurons: NeuronParams, factors: np.ndarray, charges: np.ndarray, steps: int
) -> _Trials:
    """A site's neurons, scaled and postponed by each pair (f, c).

    Args:
        neurons: threshold, bias and offset of each channel, [C] or [C, 1, 1].
        factors: f, [K].
        charges: c, [K].
        steps: T.
    """
    from_zero = neurons._replace(initial_potential=np.zeros_like(neurons.bias))
    per_channel = jax.tree.map(np.ravel, from_zero)  # [C]
    candidates = []
    for factor, charge in zip(factors, charges, strict=True):
        scaled = formulas.scale(per_channel, factor)
        candidates.append(formulas.postpone(scaled, charge, steps))
    return _Trials(
        neurons=jax.tree.map(lambda *parameters: np.stack(parameters), *candidates),
        factors=factors,
        unit=binary_unit(per_channel.threshold)[None],
    )


def _search_errors(
    view: View, fit: Fit, trials: _Trials, pace_weight: float
) -> np.ndarray:
    """The sums that the search minimizes, over the squared unit: [K, C].

    Args:
        view: of the site.
        fit: its neurons, before the search, and its weights.
        trials: the K candidates.
        pace_weight: q.
    """
    chunks = _chunks_of_sample(view, fit)
    residual_sums, _ = _sums(view.dynamics, trials, chunks, pace_weight)
    # Candidates compete with the bias that corrects their mean error. Effects are far
    # below 1, so the mean divides by their sum and not by the number of samples.
    weight_sum = view.sample.weight.sum()
    if weight_sum == 0:
        weight_sum = np.float32(1)
    bias = trials.neurons.bias + residual_sums / weight_sum
    corrected = trials._replace(neurons=trials.neurons._replace(bias=bias))
    _, errors = _sums(view.dynamics, corrected, chunks, pace_weight)
    # The sample lacks large activations that are to come, so alone it would favor
    # thresholds that clip them. The pace is clipped as the mean is, hence 1 + q.
    unit = trials.unit.astype(np.float64)
    largest_outputs = view.high * np.asarray(trials.neurons.threshold)
    unseen = view.sample.clipped_error(fit.neurons.offset, largest_outputs) / unit**2
    return errors + (1 + pace_weight) * unseen


class _Chunks(NamedTuple):
    """A sample in blocks of L numbers (see the module's documentation).

    A function that says so takes one chunk: its arrays lack the axis of chunks.

    Attributes:
        activation: of the ANN, [chunks, blocks, L].
        weight: how much an error counts, [chunks, blocks, L]; 0 of what fills up.
        start: v(0), [chunks, blocks, L].
        current: [chunks, blocks, T, L], or [chunks, blocks, L] where only the mean over
            the steps matters.
    """

    activation: Any
    weight: Any
    start: Any
    current: Any


def _chunks_of_sample(view: View, fit: Fit) -> _Chunks:
    """The sample of a site, with v(0) and the currents at its positions."""
    sample = view.sample
    shape = sample.activation.shape  # [n, C]
    current = view.sample_currents(fit.weights)
    if view.needs_time and current.ndim == 2:
        # A constant current gets the shape of other sites' currents, so that all sites
        # share a program.
        current = np.broadcast_to(current, (view.steps, *current.shape))
    return _Chunks(
        activation=_in_chunks(sample.activation),
        weight=_in_chunks(np.broadcast_to(sample.weight, shape)),
        start=_in_chunks(_start_at_positions(view, fit)),
        current=_in_chunks(current),
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
    """The smallest power of two that is not below the number of channels."""
    return 1 << (channels - 1).bit_length()


def _in_chunks(rows: np.ndarray) -> np.ndarray:
    """[n, C] as [chunks, blocks, L], and [T, n, C] as [chunks, blocks, T, L].

    Both n and C are filled up with zeros. L is the same for all sites of up to
    `_NUMBERS_IN_BLOCK` channels.
    """
    *leading, count, channels = rows.shape
    lanes = _lanes(channels)
    samples_in_block = max(1, _NUMBERS_IN_BLOCK // lanes)
    missing_rows = -count % (samples_in_block * _BLOCKS_IN_CHUNK)
    padding = [(0, 0) for _ in rows.shape]
    padding[-2] = (0, missing_rows)
    padding[-1] = (0, lanes - channels)
    filled = np.pad(rows, padding)
    blocks = filled.reshape(*leading, -1, _BLOCKS_IN_CHUNK, samples_in_block * lanes)
    if not leading:
        return blocks
    # The T currents of a block lie together in memory, since they are read together.
    by_step = np.moveaxis(blocks, 0, -2)
    return np.ascontiguousarray(by_step)


def _sums(
    dynamics: Dynamics, trials: _Trials, chunks: _Chunks, pace_weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two sums over the sample for each candidate, [K, C] both.

    Args:
        dynamics: of the site.
        trials: the K candidates.
        chunks: the sample.
        pace_weight: q.

    Returns:
        sum w (a - s), and sum w (a - s)^2 + q sum w (a - p)^2 over the squared unit.
    """
    channels = trials.unit.shape[1]
    lanes = _lanes(channels)
    samples_in_block = chunks.activation.shape[-1] // lanes

    def for_block(parameter: np.ndarray) -> np.ndarray:
        """A parameter [K, C] for each number of a block, [K, L]."""
        # What fills up the lanes has no weight. It gets 1, so that its threshold is
        # positive.
        padding = [(0, 0), (0, lanes - channels)]
        filled = np.pad(parameter, padding, constant_values=1)
        return np.tile(filled, samples_in_block)

    def for_channels(sums: np.ndarray) -> np.ndarray:
        """Sums of each number of a block [K, L], added up for each channel, [K, C]."""
        by_lane = sums.reshape(len(sums), samples_in_block, lanes).sum(axis=1)
        return by_lane[:, :channels]

    neurons = jax.tree.map(for_block, trials.neurons)
    unit = for_block(trials.unit)[0]  # [L]
    # Each number of a block is a neuron with parameters of its own, as of a site that
    # has no axes.
    dynamics = dynamics._replace(ndim=0)
    residual_sums = np.zeros((len(trials.factors), len(unit)), np.float32)
    error_sums = np.zeros_like(residual_sums)
    for arrays in zip(*chunks, strict=True):
        chunk_residuals, chunk_errors = _sums_in_chunk(
            dynamics,
            neurons,
            trials.factors,
            unit,
            pace_weight,
            _Chunks(*arrays),
        )
        residual_sums = residual_sums + np.asarray(chunk_residuals)
        error_sums = error_sums + np.asarray(chunk_errors)
    return for_channels(residual_sums), for_channels(error_sums)


# This program runs for long, so it is `jax.jit`'s: that of `snnjax._programs` compiles
# faster and runs more slowly.
@functools.partial(jax.jit, static_argnums=0)
def _sums_in_chunk(
    dynamics: Dynamics,
    neurons: NeuronParams,
    factors: jax.Array,
    unit: jax.Array,
    pace_weight: float,
    chunk: _Chunks,
) -> tuple[jax.Array, jax.Array]:
    """The sums of `_sums` over the blocks of one chunk, [K, L] both.

    Args:
        dynamics: of a site without axes.
        neurons: of each candidate, [K, L].
        factors: f, [K].
        unit: of the errors, [L].
        pace_weight: q.
        chunk: arrays [blocks, L], and currents [blocks, T, L] or [blocks, L].
    """

    def sums_of_candidate(candidate: tuple[NeuronParams, jax.Array]) -> tuple:
        """Both sums of one candidate over all blocks, [L] each."""
        parameters, factor = candidate  # [L] and []

        def add(sums: tuple, block: _Chunks) -> tuple:
            """Both sums with one block added, for a scan over the blocks."""
            start = factor * block.start + parameters.initial_potential
            neuron = parameters._replace(initial_potential=start)
            mean, pace = dynamics.mean_and_pace(neuron, block.current)
            residual = block.activation - mean.astype(block.activation.dtype)
            pace_residual = block.activation - pace.astype(block.activation.dtype)
            pace_error = (pace_residual / unit) ** 2
            error = (residual / unit) ** 2 + pace_weight * pace_error
            residual_sum, error_sum = sums
            residual_sum = residual_sum + block.weight * residual
            error_sum = error_sum + block.weight * error
            return (residual_sum, error_sum), None

        zero = jnp.zeros_like(unit)
        sums, _ = jax.lax.scan(add, (zero, zero), chunk)
        return sums

    return jax.lax.map(sums_of_candidate, (neurons, factors))
