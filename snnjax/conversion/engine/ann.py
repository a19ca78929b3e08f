"""The ANN of all calibration images, and the effect of an error on its outputs.

    g[n, p, c] = (d (r[n] y[n] / s) / d a[n, p, c])^2 / size of y[n]
    w[n, p, c] = (mean over c of g[n, p]) (mean over n, p of g[c]) / mean of g

a is the activation of a site for image n at position p in channel c, y the outputs of
the ANN, s the sizes of their columns (``columns.py``), r random signs. The expected g
is the mean over outputs of (d y / d a)^2 / s^2, of which the first factor is the
diagonal of the Gauss-Newton matrix. So the errors of all sites are on one scale, that
of `snnjax.conversion.engine.outputs`. A single g is as random as its signs. w takes the
means of g at a position and in a channel, and is their product. One backward pass gives
w for all sites. Source of the estimate by random signs: Hutchinson, 1990; of its use:
ours.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import by_numpy_or_xla, namespace, wide
from snnjax._programs import jit
from snnjax.conversion.engine.columns import column_sizes, column_squares
from snnjax.conversion.engine.segments import Results, ann_work
from snnjax.conversion.images import MicroBatch
from snnjax.network.equations import Network, Values
from snnjax.network.stages import Stage

# XLA fuses the elementwise functions of neighbouring stages, as of the turns of a GRU,
# and its time to compile grows faster than their number. From so many stages on, a
# barrier keeps them apart: 64 turns of a GRU are converted in half of the time.
_MANY_STAGES = 64

# A channel has at least this part of the mean effect. Where no calibration image needs
# it, its threshold still follows from its errors if spikes are free.
_LEAST_EFFECT = 1e-8

BySite = dict[str, jax.Array]  # site name -> an array


class Effects(NamedTuple):
    """How the squared errors of a site count: w = positions x channels.

    Attributes:
        positions: of each micro-batch, [B, ...] with a single channel.
        channels: factors of the channels whose mean is 1, [C].
    """

    positions: list[jax.Array]
    channels: np.ndarray


class AnnPass(NamedTuple):
    """What the ANN computes for all images.

    Attributes:
        results: for each micro-batch, the results of each stage; empty if not kept.
        effects: site name -> w; empty if not asked for.
    """

    results: list[list[Results]]
    effects: dict[str, Effects]


def pass_ann(
    network: Network,
    stages: Sequence[Stage],
    params: Any,
    batches: Sequence[MicroBatch],
    unseen: Sequence[np.ndarray],
    *,
    keep_results: bool,
    with_effects: bool,
) -> AnnPass:
    """Run all stages of the ANN in one program, which compiles faster than one each.

    Args:
        network, stages: the ANN, and its segments in the order of execution.
        params: of the ANN.
        batches: the calibration images, and their numbers.
        unseen: for each micro-batch, which images no fit may use, [B]; their effects
            are 0.
        keep_results: whether the results of the stages are returned beside effects.
            A pass without effects always returns them.
        with_effects: whether the effects w are computed.
    """
    # An output that does not depend on the images, or is no float, has no error.
    has_error = []
    columns = []  # of each output that has an error
    for variable in network.outputs:
        has_error.append(False)
        if isinstance(variable, int) and variable in network.dependent:
            aval = network.avals[variable]
            if jnp.issubdtype(aval.dtype, jnp.floating):
                has_error[-1] = True
                columns.append(aval.shape[-1] if aval.shape else 1)

    def run(batch: MicroBatch, sizes: list[Any]) -> tuple[list[Results], "_Squares"]:
        return _run_all_stages(
            tuple(stages),
            tuple(has_error),
            keep_results,
            with_effects,
            network.arguments(params, batch.images),
            # An image has the same signs whatever micro-batch it is in.
            np.asarray(batch.numbers, np.int32),
            sizes,
        )

    sizes = [np.ones(count, np.float32) for count in columns]
    if with_effects:
        # The program runs twice: what errors are measured in follows from all images. A
        # program for the first time alone would take longer to compile.
        totals = [run(batch, sizes)[1].outputs for batch in batches]
        sizes = _sizes_of_all(sum(len(batch.numbers) for batch in batches), totals)
    results = []
    squares = []
    for batch in batches:
        batch_results, batch_squares = run(batch, sizes)
        results.append(batch_results)
        squares.append(batch_squares)
    effects = {}
    if with_effects:
        for name in squares[0].positions:
            effects[name] = _effects(
                [batch_squares.positions[name] for batch_squares in squares],
                [batch_squares.channels[name] for batch_squares in squares],
                unseen,
            )
    return AnnPass(results, effects)


class _Squares(NamedTuple):
    """What one micro-batch says about the sizes of outputs and gradients.

    Attributes:
        outputs: sums over the images of y^2, [K] for each output that has an error.
        positions: mean of g over the channels, [B, ...] with a single channel.
        channels: mean of g over the positions, [B, C].
    """

    outputs: list[jax.Array]
    positions: BySite
    channels: BySite


@functools.partial(jit, static_argnums=range(4))
def _run_all_stages(
    stages: tuple[Stage, ...],
    has_error: tuple[bool, ...],
    keep_results: bool,
    with_effects: bool,
    inputs: Values,
    image_numbers: jax.Array,
    sizes: list[jax.Array],
) -> tuple[list[Results], _Squares]:
    """Results of all stages, and the squares of outputs and of gradients of r y / s.

    Args:
        sizes: s^2 of the columns of each output that has an error, [K].
    """
    sites = {stage.site.name: stage.site for stage in stages if stage.site is not None}

    def run(errors: BySite) -> tuple[list[jax.Array], list[Results]]:
        """The floating outputs, and the results of all stages.

        Each activation has the error of its site, an array [B, ...], added to it.
        """
        values = dict(inputs)
        stage_results = []
        for stage in stages:
            sources = [values[v] for v in stage.sources]
            results = ann_work(stage)(*sources)
            if stage.site is not None and stage.output is not None:
                # Behind the activation of a clipped ReLU stands its maximum.
                activation, *maximum = results.outputs
                if with_effects:
                    activation = activation + errors[stage.site.name]
                values[stage.output] = activation
                results = results._replace(outputs=(activation, *maximum))
                if len(stages) >= _MANY_STAGES:
                    results = jax.lax.optimization_barrier(results)
                    values[stage.output] = results.outputs[0]
            values.update(zip(stage.carried, results.carried, strict=True))
            stage_results.append(results)
        outputs = []
        network_outputs = stage_results[-1].outputs
        for output, output_has_error in zip(network_outputs, has_error, strict=True):
            if output_has_error:
                outputs.append(output)
        return outputs, stage_results

    if not with_effects:
        _, stage_results = run({})
        return stage_results, _Squares([], {}, {})
    no_errors = {
        name: jnp.zeros((len(image_numbers), *site.shape), site.dtype)
        for name, site in sites.items()
    }
    outputs, transpose, stage_results = jax.vjp(run, no_errors, has_aux=True)
    squares = _Squares(
        outputs=[column_squares(wide(output)).sum(0) for output in outputs],
        positions={},
        channels={},
    )
    signs = _signs_of_outputs(outputs, sizes, image_numbers)
    (gradients,) = transpose(signs)
    for name, gradient in gradients.items():
        gradient = wide(gradient)
        # A gradient that is not finite, as that of a root at 0, has no effect.
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
        channel = sites[name].channel
        squares.positions[name] = jnp.mean(gradient**2, channel, keepdims=True)
        # Channels that come last make the squares those of the columns of an output.
        by_column = jnp.moveaxis(gradient, channel, -1)
        squares.channels[name] = column_squares(by_column)
    return stage_results if keep_results else [], squares


def _signs_of_outputs(
    outputs: list[jax.Array], sizes: list[jax.Array], image_numbers: jax.Array
) -> list[jax.Array]:
    """The cotangents r / s of all outputs, over the root of how many numbers they are.

    So all columns of an output count alike, and so do all outputs.
    """
    signs = []
    position = 0  # of the first number of an output among all numbers of an image
    for output, size in zip(outputs, sizes, strict=True):
        count = math.prod(output.shape[1:])
        root = jnp.sqrt(size * (count * len(outputs))).astype(output.dtype)
        sign = _random_signs(output, image_numbers, position)
        columns = sign.reshape(-1, len(root))
        signs.append((columns / root[None]).reshape(output.shape))
        position += count
    return signs


def _random_signs(
    output: jax.Array, image_numbers: jax.Array, position: int
) -> jax.Array:
    """Signs like an output [B, ...]; each follows from its image and its position.

    They are the last bit of a hash: XLA takes a second to compile JAX's random bits.
    """
    size = math.prod(output.shape[1:])
    image_hash = _hash(jnp.asarray(image_numbers, jnp.uint32) + jnp.uint32(1))
    positions = jnp.arange(position, position + size, dtype=jnp.uint32)
    bits = _hash(image_hash[:, None] + positions[None]) & jnp.uint32(1)
    return (2 * bits.astype(output.dtype) - 1).reshape(output.shape)


def _hash(h: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3 (Appleby, public domain)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ h >> jnp.uint32(shift)) * jnp.uint32(factor)
    return h ^ h >> jnp.uint32(16)


@functools.partial(by_numpy_or_xla, static=1)
def _sizes_of_all(count: int, totals: list[list[Any]]) -> list[Any]:
    """s^2 of the columns of each output, from the sums of every micro-batch."""
    by_output = zip(*totals, strict=True)
    return [column_sizes(functools.reduce(operator.add, t), count) for t in by_output]


@by_numpy_or_xla
def _effects(
    positions: Sequence[Any], channels: Sequence[Any], unseen: Sequence[Any]
) -> Effects:
    """The effects of a site.

    Where a site has no effect at all, errors count alike, and so much that no price
    matters. Unseen images have no effect in any case.

    Args:
        positions: mean of g over the channels, [B, ...] of each micro-batch.
        channels: mean of g over the positions, [B, C] of each micro-batch.
        unseen: which images have no effect, [B] of each micro-batch.
    """
    xp = namespace(channels[0])
    seen = [~is_unseen[:, None] for is_unseen in unseen]
    sums = []
    for part, is_seen in zip(channels, seen, strict=True):
        sums.append(part.sum(0, where=is_seen))
    by_channel = functools.reduce(operator.add, sums)
    mean = by_channel.mean()
    is_usable = xp.isfinite(mean) & (mean > 0)
    parts = []
    for part, is_seen in zip(positions, seen, strict=True):
        effect = xp.where(is_usable, part, 1)
        is_seen = is_seen.reshape(-1, *[1] * (part.ndim - 1))
        parts.append(xp.where(is_seen, effect, 0))
    factors = xp.where(is_usable, by_channel / mean, 1)
    return Effects(positions=parts, channels=xp.maximum(factors, _LEAST_EFFECT))
