"""Inputs: how images enter the network at each step.

    constant: x(t) = x;    poisson: P(x(t) = 1) = x;    sequence: x(t) is given

Constant inputs are direct coding; Poisson inputs are rate coding.
"""

from typing import get_args

import chex
import jax
from jax.core import Tracer

from snnjax._arrays import wide
from snnjax._trees import is_floating
from snnjax._types import Inputs

INPUTS = get_args(Inputs)


def encode(
    x: chex.ArrayTree, inputs: Inputs, steps: int, key: jax.Array | None
) -> chex.ArrayTree:
    """x as it enters the network: [B, ...] if constant, otherwise [T, B, ...].

    ``key`` is for Poisson inputs only.

    Raises:
        ValueError: the time axis is not T, whole numbers change over time, a key is
            missing or unused, or probabilities are outside [0, 1].
    """
    if inputs != "constant" and not all(map(is_floating, jax.tree.leaves(x))):
        raise ValueError(
            f"inputs={inputs!r} needs x of floating point, which has a mean over "
            "the steps; found whole numbers or truth values. Pass "
            "x.astype('float32'), or pass tokens and masks by inputs='constant'"
        )
    for leaf in jax.tree.leaves(x):
        if inputs == "sequence" and leaf.shape[0] != steps:
            raise ValueError(
                f"inputs='sequence' needs x [steps={steps}, batch, ...]; found "
                f"shape {tuple(leaf.shape)}"
            )
    if inputs != "poisson":
        if key is not None:
            raise ValueError(f"inputs={inputs!r} draws nothing: leave key out")
        return x
    if key is None:
        raise ValueError("inputs='poisson' needs a key, e.g. jax.random.key(0)")
    if not hasattr(key, "dtype"):
        raise ValueError(f"key is {key!r}; allowed: a random key, jax.random.key(0)")
    leaves, tree = jax.tree.flatten(x)
    keys = [key] if len(leaves) == 1 else jax.random.split(key, len(leaves))
    trains = []
    for key, leaf in zip(keys, leaves, strict=True):
        _check_probability(leaf)
        # bfloat16 has too few numbers between 0 and 1 for small rates.
        spikes = jax.random.bernoulli(key, wide(leaf)[None], (steps, *leaf.shape))
        trains.append(spikes.astype(leaf.dtype))
    return jax.tree.unflatten(tree, trains)


def _check_probability(x: jax.Array) -> None:
    if isinstance(x, Tracer):
        return
    with jax.ensure_compile_time_eval():  # x may be closed over in a jit
        least, most = float(x.min()), float(x.max())
    if not 0 <= least <= most <= 1:
        raise ValueError(
            f"inputs='poisson' takes x as a probability; found values from {least} to "
            f"{most}, allowed: 0 to 1"
        )
