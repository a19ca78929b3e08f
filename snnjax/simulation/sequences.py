"""The input of a simulation over time: a sequence x, arrays [T, B, ...]."""

from collections.abc import Callable

import chex
import jax

from snnjax._trees import is_floating
from snnjax.network.capture.capture import capture
from snnjax.network.capture.check import check_streams
from snnjax.network.equations import Network


def capture_step(
    fn: Callable, params: chex.ArrayTree, x: chex.ArrayTree, *, sequence: bool
) -> Network:
    """The network that x [B, ...], or each step of a sequence [T, B, ...], passes.

    Raises:
        ConversionError: as `snnjax.sites`, or a sequence x has no running mean.
    """
    if not sequence:
        return capture(fn, params, x)
    first_step = jax.tree.map(lambda leaf: leaf[0], x)
    network = capture(fn, params, first_step)
    check_streams(network)
    return network


def check_sequence(x: chex.ArrayTree, steps: int) -> None:
    """Raise unless x has numbers that change over T steps, arrays [T, B, ...].

    Raises:
        ValueError: the time axis is not T, or whole numbers change over time.
    """
    for leaf in jax.tree.leaves(x):
        if not is_floating(leaf):
            raise ValueError(
                "inputs='sequence' needs x of floating point, which has a mean over "
                "the steps; found whole numbers or truth values. Pass "
                "x.astype('float32'), or pass tokens and masks by inputs='constant'"
            )
        if leaf.shape[0] != steps:
            raise ValueError(
                f"inputs='sequence' needs x [steps={steps}, batch, ...]; found shape "
                f"{tuple(leaf.shape)}"
            )
