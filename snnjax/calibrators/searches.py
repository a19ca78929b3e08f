"""The search for a neuron: candidates are tried on the spikes that arrive at a site.

One program tries all candidates on a resident sample, block by block (``blocks.py``).
Source: ours.
"""

import functools
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import lead
from snnjax._checks import check_choice
from snnjax._ranges import NOT_NEGATIVE
from snnjax._text import named
from snnjax._types import Per
from snnjax.calibrators import formulas
from snnjax.calibrators.blocks import in_blocks, sum_over
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
        order_matters = view.code.clock_runs and view.needs_time
        spikes_are_final = view.model.levels[0] >= 0
        return postpone(view, fit) if order_matters and spikes_are_final else fit

    return calibrate


@functools.partial(jax.jit, static_argnames=("dynamics", "shape", "channel", "per"))
def _best_of(
    neuron: NeuronParams,
    candidates: jax.Array,
    sample: Sample,
    currents: jax.Array,
    positions: jax.Array | None,
    pace: float,
    *,
    dynamics: Dynamics,
    shape: tuple[int, ...],
    channel: int,
    per: Per,
) -> NeuronParams:
    """The neuron that `search` chooses."""
    count, channels = sample.activation.shape
    of_numbers = dynamics._replace(ndim=0)  # each with parameters of its own
    # v(0), which may be one number of each neuron, is an array of its own.
    flat = neuron._replace(initial_potential=jnp.zeros(()))
    flat = jax.tree.map(lambda p: jnp.broadcast_to(p.ravel(), channels), flat)
    unit = formulas.binary_unit(flat.threshold)
    start = jnp.broadcast_to(lead(neuron.initial_potential, len(shape)), shape)
    start = at_positions(start, positions, len(shape), channel)
    start = jnp.broadcast_to(start, (count // len(start), *start.shape))
    weight = jnp.broadcast_to(sample.weight, (count, channels))
    arrays = sample.activation, weight, start.reshape(count, channels), currents
    blocks = [in_blocks(array) for array in arrays]
    repeats = blocks[0].shape[-1] // channels

    def tiled(tree: Any) -> Any:
        return jax.tree.map(lambda p: jnp.tile(p, repeats), tree)

    units = tiled(unit)

    def trial(candidate: jax.Array) -> jax.Array:
        def error(bias, _):
            """Of this bias, and the bias that corrects its mean error."""
            params, added = tiled((flat, bias))

            def of_block(a, w, start, current):
                neuron = params._replace(initial_potential=start)
                neuron = _changed(neuron, candidate, dynamics.steps)
                neuron = neuron._replace(bias=neuron.bias + added)
                pair = of_numbers.mean_and_pace(neuron, current)
                missing, early = (a - s.astype(a.dtype) for s in pair)
                squares = (missing / units) ** 2 + pace * (early / units) ** 2
                return w * missing, w * squares

            missing, squares = sum_over(of_block, blocks, channels)
            return bias + missing / count, squares

        _, squares = jax.lax.scan(error, jnp.zeros(channels, jnp.float32), length=2)
        return squares[1]

    errors = jax.lax.map(trial, candidates)
    if per == "layer":
        errors = jnp.broadcast_to(errors.sum(1, keepdims=True), errors.shape)
    best = candidates[errors.argmin(0)].T
    best = best.reshape(2, -1, *[1] * (-channel - 1))
    return _changed(neuron, best, dynamics.steps)


def _changed(neuron: NeuronParams, candidate: jax.Array, steps: int) -> NeuronParams:
    """Scaled by a factor, and postponed by a charge."""
    factor, charge = candidate
    return formulas.postpone(formulas.scale(neuron, factor), charge, steps)
