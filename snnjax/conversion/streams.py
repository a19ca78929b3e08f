"""Streams: what travels between sites while a network is converted.

Micro-batches of activations and of spikes, one bit each, and the compiled pieces that
carry them from one site to the next, each device its own images.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from snnjax.network.equations import evaluate, identity, read
from snnjax.network.stages import Segment, Stage, streaming
from snnjax.neurons import (
    NeuronParams,
    closed_form,
    integrate_and_fire,
    mean_and_pace,
    mean_output,
    packed_spikes,
)
from snnjax.simulation import sharding
from snnjax.simulation.executions import over_time

NEURON = integrate_and_fire()


class SpikeTrain(NamedTuple):
    """Spikes as they wait for the next stage, one bit each.

    Attributes:
        bits: uint8 [ceil(T / 8), B, ...], packed along time.
        threshold: what a spike carries, scalar or [C].
    """

    bits: jax.Array
    threshold: jax.Array


class Current(NamedTuple):
    """The current into a site as a pure function; hashable, for ``jit``.

    Attributes:
        segment: the work.
        streams: which of its inputs are streams.
        steps: T.
        slots: positions among the inputs that the weights take.
        axes: for each input the axis of the images, None if it has none.
        ndim: axes of the site; None for the mean over time.
    """

    segment: Segment
    streams: tuple[bool, ...]
    steps: int
    slots: tuple[int, ...]
    axes: tuple[int | None, ...]
    ndim: int | None

    def __call__(self, weights: Sequence[jax.Array], sources: Sequence[Any], rows):
        """The current of these images: its mean [B, ...], or all of it [T, B, ...].

        ``rows`` are the images' numbers, or None for all of them.
        """
        chosen = [
            source if axis is None or rows is None else _take(source, rows, axis)
            for source, axis in zip(sources, self.axes, strict=True)
        ]
        for slot, weight in zip(self.slots, weights, strict=True):
            chosen[slot] = weight
        current = _run_all(self.segment, self.streams, self.steps, chosen)[0][0]
        if self.ndim is None:
            return current
        return over_time(current, self.steps, self.ndim)


# ----------------------------------------------------------- compiled pieces


def run(spread, stage: Stage, store, streams: tuple[bool, ...], steps: int, sources):
    """`_run_all`, each device for its own images; in ``store`` is what has images."""
    moving = tuple(v in store for v in stage.sources)
    return _compiled(spread, moving)(stage.segment, streams, steps, sources)


@functools.cache
def _compiled(spread: NamedSharding | None, moving: tuple[bool, ...]) -> Callable:
    @functools.partial(jax.jit, static_argnames=("segment", "streams", "steps"))
    def program(segment: Segment, streams: tuple[bool, ...], steps: int, sources):
        def here(sources):
            return _run_all(segment, streams, steps, sources)

        if spread is None:
            return here(sources)
        in_axes = [
            _image_axes(source, 1 if stream else 0) if moves else None
            for source, stream, moves in zip(sources, streams, moving, strict=True)
        ]
        marked = _marked(segment, streams)
        axes = [
            [1 if v in marked else 0 for v in kind]
            for kind in (segment.outputs, segment.carried)
        ]
        return sharding.on_each_device(here, spread, (in_axes,), tuple(axes))(sources)

    return program


def _image_axes(source, axis: int):
    return SpikeTrain._make((axis, None)) if isinstance(source, SpikeTrain) else axis


def _run_all(segment: Segment, streams: tuple[bool, ...], steps: int, sources):
    """Outputs of a segment, and what it carries on.

    Sources that are streams have a time axis, or are a `SpikeTrain`.
    """
    decoded = [
        _decode(value, steps) if isinstance(value, SpikeTrain) else value
        for value in sources
    ]
    values = dict(zip(segment.inputs, decoded, strict=True))
    evaluate(segment.equations, values, identity, streams=_marked(segment, streams))
    outputs = [jnp.asarray(read(values, v)) for v in segment.outputs]
    return outputs, [values[v] for v in segment.carried]


def _marked(segment: Segment, streams: tuple[bool, ...]) -> frozenset:
    """Variables of a segment that have a time axis, since they follow from streams."""
    sources = [v for v, s in zip(segment.inputs, streams, strict=True) if s]
    return streaming(segment.equations, sources)


@functools.partial(jax.jit, static_argnames=("steps", "delay", "ndim"))
def fire(neuron: NeuronParams, current, steps: int, delay: int, ndim: int):
    """What a site sends on: its mean with delay T, its spikes as bits otherwise."""
    if delay == steps:
        return closed_form(neuron, current, steps)
    current = over_time(current, steps, ndim)
    bits = packed_spikes(NEURON, neuron, current, delay=delay)
    return SpikeTrain(bits, jnp.asarray(neuron.threshold, current.dtype))


@functools.partial(jax.jit, static_argnames=("steps", "delay", "ndim"))
def output(neuron: NeuronParams, current, steps: int, delay: int, ndim: int):
    """Mean output of a site over its T steps, [B, ...]."""
    if delay == steps:
        return closed_form(neuron, current, steps)
    current = over_time(current, steps, ndim)
    return mean_output(NEURON, neuron, current, delay=delay)


@functools.partial(jax.jit, static_argnames=("steps", "delay", "ndim"))
def paced(neuron: NeuronParams, current, steps: int, delay: int, ndim: int):
    """`mean_and_pace` of a site, [B, ...] each."""
    if delay == steps:  # the next layer waits, and never takes it for anything else
        mean = closed_form(neuron, current, steps)
        return mean, mean
    current = over_time(current, steps, ndim)
    return mean_and_pace(NEURON, neuron, current, delay=delay)


@functools.partial(jax.jit, static_argnames="steps")
def mean(value, steps: int) -> jax.Array:
    """Mean of a stream over its T steps, [B, ...]."""
    return (_decode(value, steps) if isinstance(value, SpikeTrain) else value).mean(0)


def _decode(train: SpikeTrain, steps: int) -> jax.Array:
    bits = jnp.unpackbits(train.bits, axis=0, count=steps)
    return bits.astype(train.threshold.dtype) * train.threshold


def concatenate(spread: NamedSharding | None, values, axis: int):
    """One stream of all micro-batches, with the images on ``axis``."""
    if isinstance(values[0], SpikeTrain):
        bits = sharding.join([value.bits for value in values], axis, spread)
        return SpikeTrain(bits, values[0].threshold)
    return sharding.join(values, axis, spread)


def sampled(parts: Iterable, axis: int, every: int) -> list:
    """Of all images one in so many, the same ones whatever the micro-batches."""
    found, start = [], 0
    for part in parts:
        count = (part.bits if isinstance(part, SpikeTrain) else part).shape[axis]
        first = -start % every
        if first < count:
            found.append(part if every == 1 else _strided(part, first, axis, every))
        start += count
    return found


@functools.partial(jax.jit, static_argnames=("first", "axis", "every"))
def _strided(part, first: int, axis: int, every: int):
    if isinstance(part, SpikeTrain):
        return part._replace(bits=_strided(part.bits, first, axis, every))
    return jax.lax.slice_in_dim(part, first, None, every, axis)


def _take(values, rows, axis: int):
    if isinstance(values, SpikeTrain):
        return SpikeTrain(jnp.take(values.bits, rows, axis), values.threshold)
    return jnp.take(values, rows, axis)
