"""Judges: of several fitted SNNs, the one whose outputs are nearest to the ANN's.

    d[n] = e_other[n] - e_first[n],    z = |mean of d| / standard error of that mean

e[n] is the error of the outputs for image n. Some images are held out from calibrators
and judge alone if their z is large enough. Otherwise those that the SNNs were fitted to
join them, twice as many each time, until z is, or all images have judged.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._arrays import aligned, wide
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

    The sum over the network's outputs. y_snn is the mean over T steps, y_ann the exact
    one. Outputs that are no floats, or do not depend on x, do not count.
    """
    variables, streams, code = here.network.outputs, here.streams, here.snn.code
    answers = [
        [
            code.result(output) if v in streams else output
            for v, output in zip(variables, results.outputs, strict=True)
        ]
        for results in here.run_snn(-1, {})
    ]
    numbers = [n for n, v in enumerate(variables) if v in here.network.dependent]
    return _errors([([y[n] for y in answers], [y[n] for y in exact]) for n in numbers])


@jax.jit
def _errors(pairs: list[tuple[list[jax.Array], list[jax.Array]]]) -> jax.Array:
    errors = jnp.zeros(())
    for pair in pairs:
        answer, output = map(jnp.concatenate, pair)
        if jnp.issubdtype(output.dtype, jnp.floating):
            answer, output = (wide(y).reshape(len(y), -1) for y in (answer, output))
            size = jnp.sum(output**2) / len(output)
            distance = jnp.sum((answer - output) ** 2, 1)
            errors += distance / jnp.where(size > 0, size, 1)
    return errors


def nearest(
    candidates: Sequence[tuple[SNN, jax.Array]], count: int, fitted: int
) -> SNN:
    """The SNN of the smallest error, of equal ones the first; the log says by how much.

    The candidates have errors of N = count images. The first ones are fitted to, and
    the others judge first.
    """
    order = np.roll(np.arange(count), count - fitted)
    first = count - fitted or count
    doublings = range(math.ceil(math.log2(count / first)))
    counts = (*(first * 2**i for i in doublings), count)
    (snn, errors), *others = candidates
    winner = 1
    for number, (other_snn, other_errors) in enumerate(others, 2):
        difference, spread, count = _difference(errors, other_errors, order, counts)
        is_less = difference < 0
        if isinstance(is_less, Tracer):
            snn = _where(is_less, other_snn, snn)
            errors = jnp.where(is_less, other_errors, errors)
            continue
        loser = number
        if is_less:
            winner, loser, snn, errors = number, winner, other_snn, other_errors
        logging.getLogger("snnjax").info(
            "best_of keeps alternative %d: alternative %d has a larger error of the "
            "outputs, by %.2g +- %.1g of their size, on %d images",
            *(winner, loser, abs(float(difference)), float(spread), int(count)),
        )
    return snn


@functools.partial(jax.jit, static_argnames="counts")
def _difference(
    errors: jax.Array, others: jax.Array, order: Any, counts: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean of d, its standard error, and how many images it took.

    The images judge in this order, the first of these numbers of them that is enough.
    """
    largest = jnp.finfo(errors.dtype).max / len(order)  # what is not finite loses
    pair = (jnp.nan_to_num(e, nan=largest, posinf=largest) for e in (others, errors))
    d = jnp.take(jnp.subtract(*pair), order)
    means = jnp.stack([d[:n].mean() for n in counts])
    spreads = jnp.stack([d[:n].std() / n**0.5 for n in counts])
    is_clear = jnp.abs(means) > _CLEAR * spreads
    i = jnp.where(is_clear.any(), is_clear.argmax(), len(counts) - 1)
    return means[i], spreads[i], jnp.asarray(counts)[i]


def _where(condition: Any, first: SNN, second: SNN) -> SNN:
    """Select leaf by leaf; if only one SNN has an offset, it is 0 in the other."""

    def with_offsets(snn: SNN, like: SNN) -> SNN:
        neurons = {
            name: params._replace(offset=jnp.zeros_like(like.neurons[name].offset))
            if params.offset is None and like.neurons[name].offset is not None
            else params
            for name, params in snn.neurons.items()
        }
        return dataclasses.replace(snn, neurons=neurons)

    def choose(a: Any, b: Any) -> jax.Array:
        return jnp.where(condition, *aligned(a, b))

    pair = with_offsets(first, second), with_offsets(second, first)
    return jax.tree.map(choose, *pair)
