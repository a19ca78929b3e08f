"""Numbers of fresh parameters: one, an array of them, or a distribution.

A model is a hashable value: its arrays become tuples. ``init`` makes the parameters.
"""

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import broadcasts
from snnjax._ranges import POSITIVE, Range, ranges_of


@dataclasses.dataclass(frozen=True)
class Uniform:
    """A number for each channel, the last axis of a site, drawn between two ends.

    >>> import jax, snnjax
    >>> neuron = snnjax.lif(leak=Uniform(0.5, 0.9))
    >>> leak = neuron.init((8, 8, 3), jax.random.key(0)).leak
    >>> leak.shape, bool(leak.min() >= 0.5), bool(leak.max() < 0.9)
    ((3,), True, True)
    """

    low: Annotated[float, Range()]
    high: Annotated[float, Range()]

    def __post_init__(self):
        make_plain_numbers(self, single=("low", "high"))
        Range(self.low).check("high", self.high)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest parameter."""
        return self.low, self.high

    def transform(self, drawn: Any) -> jax.Array:
        """The parameters, [C], from numbers drawn between ``low`` and ``high``.

        Larger numbers give larger parameters.
        """
        return jnp.asarray(drawn)


@dataclasses.dataclass(frozen=True)
class TimeConstants(Uniform):
    """Leaks exp(-1 / tau), with tau > 0 drawn between two ends, in steps.

    Source: Perez-Nieves, Leung, Dragotti and Goodman, Nature Communications 2021.

    >>> [round(leak, 3) for leak in TimeConstants(5, 25).ends]
    [0.819, 0.961]
    """

    low: Annotated[float, POSITIVE]

    @property
    def ends(self) -> tuple[float, float]:
        """exp(-1 / tau) of both ends."""
        return math.exp(-1 / self.low), math.exp(-1 / self.high)

    def transform(self, drawn: Any) -> jax.Array:
        """exp(-1 / tau), of the time constants drawn."""
        return jnp.exp(-1 / jnp.asarray(drawn))


Numbers = float | Uniform | Sequence | np.ndarray | jax.Array


def make_plain_numbers(neuron: Any, single: tuple[str, ...] = ()) -> None:
    """Make the numbers of a model Python's own; raise where one is out of its range.

    Equal models then have equal hashes and can be saved.

    Args:
        neuron: a frozen dataclass, which this changes; the fields that declare a range
            are its numbers.
        single: names of fields that are one number. The others may be arrays or
            distributions.
    """
    for name, limits in ranges_of(type(neuron)).items():
        value = getattr(neuron, name)
        if value is None:
            continue
        if name in single:
            limits.check(name, value)
            value = float(value)
        else:
            value = _plain(name, limits, value)
        object.__setattr__(neuron, name, value)


def _plain(name: str, limits: Range, value: Any) -> Any:
    """A distribution, or a float, or nested tuples of floats in place of an array.

    Raises where a number is out of range.
    """
    if isinstance(value, Uniform):
        for end in value.ends:
            limits.check(name, end)
        return value
    if np.ndim(value) and len(value):
        return tuple(_plain(name, limits, entry) for entry in value)
    limits.check(name, value)  # an empty list is out of every range
    return float(value)


def parameter(neuron: Any, name: str, shape: tuple[int, ...], key: Any) -> Any:
    """A parameter of a fresh site: what a field of its model describes.

    Args:
        neuron: the model.
        name: of the field, and of the parameter.
        shape: of the site's neurons.
        key: random key; it is needed if the field is a distribution.

    Returns:
        A number or an array as an array of float32; a distribution drawn for each
        channel, [C]; None for None.
    """
    value = getattr(neuron, name)
    if value is None:
        return None
    if not isinstance(value, Uniform):
        value = jnp.asarray(value, jnp.float32)
        # A shape of one neuron only asks for a model's parameters.
        if math.prod(shape) > 1 and not broadcasts(value.shape, shape):
            raise ValueError(
                f"{name} has shape {value.shape}; allowed: what broadcasts to the "
                f"site's shape {shape}, e.g. one for each channel, {shape[-1:]}"
            )
        return value
    check_key(f"{name} is {value!r}, which", key)
    # Each name gives another key, so that two parameters are drawn apart.
    parameter_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    numbers = jax.random.uniform(
        parameter_key,
        shape[-1:],  # one for each channel
        jnp.float32,
        minval=value.low,
        maxval=value.high,
    )
    return value.transform(numbers)


def check_key(what: str, key: Any) -> None:
    """Raise unless there is a key to draw with."""
    if key is None:
        raise ValueError(
            f"{what} is drawn at random and needs a key: snnjax.init(..., "
            "key=jax.random.key(0)). snnjax.convert draws nothing: take numbers there"
        )
