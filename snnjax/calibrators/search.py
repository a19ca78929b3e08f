"""The search for a neuron: candidates are tried on the spikes that arrive at a site.

One program tries all of them on a resident sample, block by block (``blocks.py``).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import lead
from snnjax.calibrators import formulas
from snnjax.calibrators.blocks import in_blocks, sum_over
from snnjax.calibrators.parameters import widen
from snnjax.calibrators.sample import Sample, at_positions
from snnjax.calibrators.view import Fit, View, mean_and_pace_of
from snnjax.codes import Code
from snnjax.neurons.models import IntegrateAndFire, NeuronParams

# Samples of a channel beside which those of its layer do not count: with them, a
# conversion compiles a sixth longer, for thresholds that are the same but for chance.
_MANY = 2**12


def effective_prior(prior: int, sample: Sample) -> int:
    """The prior, where it could make a difference to so many samples."""
    return prior if len(sample.activation) < _MANY else 0


def search(
    view: View,
    fit: Fit,
    candidates: Sequence[tuple[float, float]],
    pace: float,
    prior: int,
) -> Fit:
    """Per channel the neuron scaled and postponed by the best (factor, charge).

    The error of a candidate is measured with a corrected bias, but the result has no
    correction: the calibrators that follow correct what remains. If several candidates
    are equally good, the first is taken.

    Where a channel has few samples, the errors of ``prior`` samples of the layer and of
    one sample beyond the largest are added (`formulas.Expected`).
    """
    # Equally many candidates take the same program; of equal ones the first is taken.
    padded = [*candidates, *[candidates[0]] * (-len(candidates) % 12)]
    # Each parameter in full but v(0), which is small until each neuron has its own.
    start = fit.neurons.initial_potential
    neuron = _best_of(
        widen(fit.neurons, view.site)._replace(initial_potential=start),
        np.asarray(padded, np.float32),
        view.sample,
        view.sample_currents(fit.weights),
        view.positions,
        pace,
        model=view.model,
        steps=view.steps,
        wait=view.wait,
        code=view.code,
        shape=view.site.shape,
        channel=view.site.channel,
        prior=effective_prior(prior, view.sample),
    )
    return fit._replace(neurons=neuron)


@functools.partial(
    jax.jit,
    static_argnames=("model", "steps", "wait", "code", "shape", "channel", "prior"),
)
def _best_of(
    neuron: NeuronParams,
    candidates: jax.Array,
    sample: Sample,
    currents: jax.Array,
    positions: jax.Array | None,
    pace: float,
    *,
    model: IntegrateAndFire,
    steps: int,
    wait: int,
    code: Code,
    shape: tuple[int, ...],
    channel: int,
    prior: int,
) -> NeuronParams:
    """The neuron that `search` chooses."""
    count, channels = sample.activation.shape
    high = model.levels[1] * code.reach(steps)
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
        def errors(bias, _):
            """Of this bias, and the bias that is added to correct its mean error."""
            params, added = tiled((flat, bias))

            def of_block(a, w, start, current):
                neuron = params._replace(initial_potential=start)
                neuron = _changed(neuron, candidate, steps)
                neuron = neuron._replace(bias=neuron.bias + added)
                pair = mean_and_pace_of(neuron, current, model, steps, wait, code, 0)
                missing, early = (a - s.astype(a.dtype) for s in pair)
                squares = (missing / units) ** 2 + pace * (early / units) ** 2
                return w * missing, w * squares

            missing, squares = sum_over(of_block, blocks, channels)
            return bias + missing / count, squares

        _, squares = jax.lax.scan(errors, jnp.zeros(channels, jnp.float32), length=2)
        return squares[1]

    total = jax.lax.map(trial, candidates)
    if prior:
        sizes = sample.magnitudes(neuron.offset)
        tail = formulas.expected(sizes, "channel", prior)

        def unseen(candidate: jax.Array) -> jax.Array:
            top = high * _changed(flat, candidate, steps).threshold
            return formulas.unseen_error(top, tail, unit)

        total += (1 + pace) * jax.vmap(unseen)(candidates)
        total += prior * formulas.of_layer(total, tail.count)[:, None]
    best = candidates[total.argmin(0)].T
    best = best.reshape(2, -1, *[1] * (-channel - 1))
    return _changed(neuron, best, steps)


def _changed(neuron: NeuronParams, candidate: jax.Array, steps: int) -> NeuronParams:
    """Scaled by a factor, and postponed by a charge."""
    factor, charge = candidate
    return formulas.postpone(formulas.scale(neuron, factor), charge, steps)
