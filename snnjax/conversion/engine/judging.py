"""Judges: of several fitted SNNs, the one whose outputs are nearest to the ANN's.

    d[n] = J_other[n] - J_first[n],    z = |mean of d| / standard error of that mean

J[n] is the error of the outputs for image n, plus the price of the spikes. Some images
are held out from calibrators and judge alone if their z is large enough. Otherwise
those that the SNNs were fitted to join them, twice as many each time, until z is, or
all images have judged.
"""

import functools
import logging
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import by_numpy_or_xla, namespace, wide_dtype
from snnjax.calibrators.running import answer
from snnjax.conversion.engine.state import State
from snnjax.snn import SNN

_CLEAR = 3.0  # z of a decision that more images would hardly change
HELD_OUT = 8  # one micro-batch in so many


def judge_numbers(batches: int) -> list[int]:
    """Which micro-batches are held out: one in eight, or the last; not the only one.

    >>> judge_numbers(20), judge_numbers(3), judge_numbers(1)
    ([7, 15], [2], [])
    """
    every = min(HELD_OUT, batches)
    return [] if batches == 1 else list(range(every - 1, batches, every))


def output_errors(here: State, exact: list[tuple[jax.Array, ...]]) -> jax.Array:
    """e[n] = sum |y_snn - y_ann|^2 / mean over images of sum |y_ann|^2, [N].

    The mean over the network's outputs. y_snn is the mean over T steps, y_ann the exact
    one. Outputs that are no floats, or do not depend on x, do not count.
    """
    variables, streams, code = here.network.outputs, here.streams, here.snn.code
    answers = [
        [
            answer(here.steps, code, output) if v in streams else output
            for v, output in zip(variables, results.outputs, strict=True)
        ]
        for results in here.run_snn(-1, {})
    ]
    numbers = [n for n, v in enumerate(variables) if v in here.network.dependent]
    return _errors([([y[n] for y in answers], [y[n] for y in exact]) for n in numbers])


@functools.partial(by_numpy_or_xla, static=1)
def spikes_sent(neurons: int, counts: list[list[jax.Array]]) -> jax.Array:
    """Spikes per neuron of each image, [N], from `State.sent`."""
    totals = [functools.reduce(operator.add, of_sites) for of_sites in counts]
    return namespace(totals[0]).concatenate(totals) / neurons


@by_numpy_or_xla
def _errors(pairs: list[tuple[list[jax.Array], list[jax.Array]]]) -> jax.Array:
    errors: list[Any] = []
    for pair in pairs:
        xp = namespace(pair[0][0])
        answer, output = map(xp.concatenate, pair)
        if jnp.issubdtype(output.dtype, jnp.floating):
            answer, output = (
                y.astype(wide_dtype(y)).reshape(len(y), -1) for y in (answer, output)
            )
            size = xp.sum(output**2) / len(output)
            distance = xp.sum((answer - output) ** 2, 1)
            errors.append(distance / xp.where(size > 0, size, 1))
    return functools.reduce(operator.add, errors) / len(errors)


class Outcome(NamedTuple):
    """What a recipe gave; errors and spikes of each image, [N].

    The first `fitted` images are fitted to, the others only judge.
    """

    snn: SNN
    errors: jax.Array  # of the outputs, over their size
    spikes: jax.Array  # per neuron
    fitted: int
    kept: str = ""  # which alternative, and by how much

    def means(self) -> tuple[float, float]:
        """Mean error of the images that judge, or of all, and mean number of spikes."""
        error, spikes = _means(self.fitted % len(self.errors), self.errors, self.spikes)
        return float(error), float(spikes)


@functools.partial(by_numpy_or_xla, static=1)
def _means(start: int, errors: jax.Array, spikes: jax.Array) -> list[jax.Array]:
    return [errors[start:].mean(), spikes.mean()]


def nearest(candidates: Sequence[Outcome], price: float) -> Outcome:
    """The outcome of the least J, of equal ones the first; it says by how much."""
    first, *others = candidates
    count, winner = len(first.errors), 1
    order = np.roll(np.arange(count), count - first.fitted)
    judges = count - first.fitted or count
    doublings = range(math.ceil(math.log2(count / judges)))
    counts = (*(judges * 2**i for i in doublings), count)
    for number, other in enumerate(others, 2):
        pair = (each.errors + price * each.spikes for each in (first, other))
        difference, spread, used = _difference(counts, order, *pair)
        loser = number
        if difference < 0:
            winner, loser, first = number, winner, other
        kept = (
            f"alternative {winner}: {abs(float(difference)):.2g} +- "
            f"{float(spread):.1g} less {'cost' if price else 'error'} than {loser} on "
            f"{int(used)} images"
        )
        logging.getLogger("snnjax").info("best_of keeps %s", kept)
        first = first._replace(kept=kept)
    return first


@functools.partial(by_numpy_or_xla, static=1)
def _difference(
    counts: tuple[int, ...], order: Any, errors: jax.Array, others: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean of d, its standard error, and how many images it took.

    The images judge in this order, the first of these numbers of them that is enough.
    """
    xp = namespace(errors)
    largest = jnp.finfo(errors.dtype).max / len(order)  # what is not finite loses
    pair = (xp.nan_to_num(e, nan=largest, posinf=largest) for e in (others, errors))
    d = xp.take(xp.subtract(*pair), order)
    means = xp.stack([d[:n].mean() for n in counts])
    spreads = xp.stack([d[:n].std() / n**0.5 for n in counts])
    is_clear = abs(means) > _CLEAR * spreads
    i = xp.where(is_clear.any(), is_clear.argmax(), len(counts) - 1)
    return means[i], spreads[i], xp.asarray(counts)[i]
