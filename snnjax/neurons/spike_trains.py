"""Spikes in memory, one bit each, beside the threshold that every spike carries.

    spikes = V_th bit        bits are packed along the first axis, eight in a byte

The only module that defines how spikes are encoded. Conversion stores them so between
two sites, and a gradient with less memory stores nothing else.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import lead


class SpikeTrain(NamedTuple):
    """Encoded spikes.

    Attributes:
        bits: uint8 [ceil(T / 8), ...], as ``jnp.packbits`` packs along the first axis.
        threshold: value of a spike, scalar or [C], in the type of the spikes.
    """

    bits: jax.Array
    threshold: jax.Array


def encode(spikes: jax.Array) -> jax.Array:
    """The bits of spikes [T, ...], 0 or V_th each: uint8 [ceil(T / 8), ...].

    >>> print(encode(jnp.array([0.0, 2.0, 2.0])))
    [96]
    """
    return jnp.packbits(spikes > 0, axis=0)


def append(byte: jax.Array, events: jax.Array, place: int) -> jax.Array:
    """A byte of eight steps, with the bit of step ``place`` set where events are."""
    return byte | events.astype(jnp.uint8) << jnp.uint8(7 - place)


def fired(bits: jax.Array, count: int) -> jax.Array:
    """Where there were spikes, uint8 [count, ...] of 0 and 1."""
    return jnp.unpackbits(bits, axis=0, count=count)


def decode(train: SpikeTrain, steps: int) -> jax.Array:
    """The spikes [steps, ...] of a train, in the type of its threshold.

    >>> print(decode(SpikeTrain(jnp.array([96], jnp.uint8), jnp.array(2.0)), 3))
    [0. 2. 2.]
    """
    events = fired(train.bits, steps)
    threshold = lead(train.threshold, events.ndim)
    return events.astype(threshold.dtype) * threshold
