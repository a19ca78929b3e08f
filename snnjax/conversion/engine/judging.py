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

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding

from snnjax import sharding
from snnjax._arrays import aligned, wide
from snnjax._examples import batch_of
from snnjax.conversion.engine.micro_batches import Images
from snnjax.conversion.engine.segments import Answers
from snnjax.conversion.engine.state import Sweep
from snnjax.snn import SNN

_CLEAR = 3.0  # z of a decision that more images would hardly change
_HELD_OUT = 8  # one micro-batch in so many


def held_out(
    x: chex.ArrayTree, size: int, batch_sharding: NamedSharding | None
) -> tuple[chex.ArrayTree, np.ndarray, Images, Images]:
    """Hold one micro-batch in eight out, or the last; a single image judges itself.

    Args:
        x: the images.
        size: of a micro-batch on each device, at most.

    Returns:
        The images, of each device those to fit to first; their numbers in x; which of
        them are fitted to, and all of them.
    """
    devices = sharding.size(batch_sharding)
    share = batch_of(x) // devices
    size = min(size, -(-share // _HELD_OUT))
    every = min(_HELD_OUT, -(-share // size))
    judges = np.arange(share) // size % every == every - 1
    if every == 1:
        judges[:] = False
    order = np.argsort(judges, kind="stable").astype(np.int32)
    numbers = np.arange(devices, dtype=np.int32)[:, None] * share + order
    all_images = Images(size, share, batch_sharding)
    fitted = all_images._replace(count=share - int(judges.sum()))
    return _taken(x, order, batch_sharding), numbers.ravel(), fitted, all_images


@functools.partial(jax.jit, static_argnames="batch_sharding")
def _taken(
    x: chex.ArrayTree, order: jax.Array, batch_sharding: NamedSharding | None
) -> chex.ArrayTree:
    """The images of each device in this order."""

    def take(x: chex.ArrayTree, order: jax.Array) -> chex.ArrayTree:
        return jax.tree.map(lambda leaf: jnp.take(leaf, order, 0), x)

    return sharding.on_each_device(take, batch_sharding, (0, None), 0)(x, order)


def output_errors(here: Sweep, outputs: Sequence[jax.Array]) -> jax.Array:
    """e[n] = sum |y_snn - y_ann|^2 / mean over images of sum |y_ann|^2, [N].

    The sum over the network's outputs. y_snn is the mean over T steps. Outputs that are
    no floats, or do not depend on x, do not count.

    Args:
        here: all images behind the last site of the SNN.
        outputs: of the ANN.
    """
    piece, images = here.snn_piece(-1, {}), here.all_images
    streams = tuple(axis == 1 for axis in piece.out_axes)
    axes = tuple(None if axis is None else 0 for axis in piece.out_axes)
    answers = piece.run(images, Answers(streams, here.snn.code), axes)
    triples = zip(answers, outputs, axes, strict=True)
    pairs = [(s, y) for s, y, axis in triples if axis is not None]
    return _errors(pairs, images.total)


@functools.partial(jax.jit, static_argnames="count")
def _errors(pairs: list[tuple[jax.Array, jax.Array]], count: int) -> jax.Array:
    errors = jnp.zeros(count)
    for answer, output in pairs:
        if jnp.issubdtype(output.dtype, jnp.floating):
            answer, output = (wide(y).reshape(count, -1) for y in (answer, output))
            size = jnp.sum(output**2) / count
            distance = jnp.sum((answer - output) ** 2, 1)
            errors += distance / jnp.where(size > 0, size, 1)
    return errors


def nearest(
    candidates: Sequence[tuple[SNN, jax.Array]], images: Images, all_images: Images
) -> SNN:
    """The SNN of the smallest error, of equal ones the first; the log says by how much.

    Args:
        candidates: each with its errors [N].
        images: what they were fitted to, of each device the first ones.
        all_images: with the judges, all N.
    """
    is_judge = np.arange(all_images.total) % all_images.count >= images.count
    order = np.argsort(~is_judge, kind="stable")
    first = int(is_judge.sum()) or len(order)
    counts = [first * 2**i for i in range(math.ceil(math.log2(len(order) / first)))]
    counts = tuple([*counts, len(order)])
    (snn, errors), *others = candidates
    kept = 1
    for number, (other_snn, other_errors) in enumerate(others, 2):
        difference, spread, count = _difference(errors, other_errors, order, counts)
        is_less = difference < 0
        if isinstance(is_less, Tracer):
            snn = _where(is_less, other_snn, snn)
            errors = jnp.where(is_less, other_errors, errors)
            continue
        lost = number
        if is_less:
            kept, lost, snn, errors = number, kept, other_snn, other_errors
        logging.getLogger("snnjax").info(
            "best_of keeps alternative %d: alternative %d has a larger error of the "
            "outputs, by %.2g +- %.1g of their size, on %d images",
            *(kept, lost, abs(float(difference)), float(spread), int(count)),
        )
    return snn


@functools.partial(jax.jit, static_argnames="counts")
def _difference(
    errors: jax.Array, others: jax.Array, order: Any, counts: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean of d, its standard error, and how many images it took.

    Args:
        errors, others: [N], compared image by image.
        order: of the images; the first ones judge first.
        counts: how many may judge, in increasing order.
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
