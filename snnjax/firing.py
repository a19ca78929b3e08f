"""Evaluation of a network with spikes, mapped over time.

Between the sites the equations map over the time axis; at a site the neurons run
through time. Measures, simulation and conversion share these functions.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snnjax._arrays import add_offset, lead, subtract_offset
from snnjax._trees import is_floating
from snnjax.codes import Code
from snnjax.network.capture.capture import capture
from snnjax.network.capture.check import check_streams
from snnjax.network.equations import Network, Values
from snnjax.network.evaluate import evaluate, firing, operator_rule
from snnjax.network.sites import Site
from snnjax.network.stages import streaming
from snnjax.neurons.protocol import field
from snnjax.neurons.schedule import arrivals
from snnjax.neurons.unroll import unroll
from snnjax.snn import SNN

Observe = Callable[[Site, jax.Array, jax.Array], None]


def capture_step(
    fn: Callable, params: chex.ArrayTree, x: chex.ArrayTree, *, sequence: bool
) -> Network:
    """The network that x [B, ...], or each step of a sequence [T, B, ...], passes.

    Raises:
        ConversionError: as `snnjax.sites`, or a sequence x has no running mean.
    """
    one_step = jax.tree.map(lambda leaf: leaf[0], x) if sequence else x
    network = capture(fn, params, one_step)
    if sequence:
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


def evaluate_in_time(
    network: Network,
    snn: SNN,
    x: chex.ArrayTree,
    *,
    steps: int,
    wait: int,
    observe: Observe,
    sequence: bool = False,
) -> tuple[Values, frozenset[int]]:
    """Run T steps, and call ``observe`` at every site that fires.

    Args:
        network: captured for x, or for a step of it.
        x: [B, ...], or [T, B, ...] if it is a sequence.
        observe: ``observe(site, currents, spikes)``, what arrives and what is sent at
            each step, both [T, B, ...]; without the offset, which is no event.

    Returns:
        The values of all variables, and which of them have a time axis.
    """
    code = snn.code

    def fire(site: Site, params: Any, current: jax.Array) -> jax.Array:
        currents = code.arriving(over_time(current, steps, len(site.shape)))
        spikes = unroll(snn.model_of(site.name), params, currents, wait=wait, code=code)
        observe(site, currents, _without(code, spikes, field(params, "offset")))
        return code.stream(spikes)

    values = network.arguments(snn.params, x)
    streams = streaming(network.equations, network.x if sequence else ())
    rule = firing(fire, snn.neurons, operator_rule(code))
    evaluate(network.equations, values, rule, streams=streams)
    return values, streams


def at_level(network: Network, snn: SNN, x: chex.ArrayTree, level: int) -> Values:
    """The values [B, ...] of all variables if all neurons emit this level.

    At level 0: of biases, offsets and x on their way.
    """
    values = network.arguments(snn.params, x)

    def fire(site: Site, params: Any, current: jax.Array) -> jax.Array:
        # Neurons without a threshold are silent too. With one, level 0 is a product as
        # well: XLA would take minutes to fold the max-pools of a constant.
        silent = not level and field(params, "threshold") is None
        size = jnp.zeros(()) if silent else threshold_of(params, site)
        output = level * lead(size, current.ndim).astype(current.dtype)
        output = jnp.broadcast_to(output, current.shape)
        return add_offset(output, field(params, "offset"))

    evaluate(network.equations, values, firing(fire, snn.neurons))
    return values


def events(code: Code, values: Values, constants: Values, v: int) -> jax.Array:
    """What arrives of a variable at each step because of spikes.

    ``constants`` are the values `at_level` 0.
    """
    arriving = _without(code, code.arriving(values[v]), constants[v])
    # A value that has not changed may differ in its last bits, which is no event.
    noise = _ROUNDING * jnp.abs(values[v]).max(0, keepdims=True)
    return jnp.where(jnp.abs(arriving) > noise, arriving, jnp.zeros_like(arriving))


# Of float32, times T. The last of 16 binary digits is 15 times as large.
_ROUNDING = 2e-6


def _without(code: Code, arriving: jax.Array, constant: Any) -> jax.Array:
    """A stream [T, B, ...] without what arrives of a constant."""
    times = arrivals(code, len(arriving))
    if constant is None or times is None:
        return subtract_offset(arriving, constant)
    times = jnp.asarray(times, arriving.dtype)
    times = times.reshape(-1, *[1] * (arriving.ndim - 1))
    constant = lead(jnp.asarray(constant, arriving.dtype), arriving.ndim)
    return arriving - times * constant


def threshold_of(params: Any, site: Site) -> jax.Array:
    """The size of a spike of level 1; raise where the neurons have no threshold."""
    threshold = field(params, "threshold")
    if threshold is None:
        raise ValueError(
            f"the neurons of site {site.name!r} have no parameter threshold, so the "
            "levels of their spikes are unknown. Give the params of their model a "
            "field threshold, the size of a spike"
        )
    return threshold


def over_time(current: jax.Array, steps: int, ndim: int) -> jax.Array:
    """A current as [T, B, ...]; a constant one is [B, ...], ndim axes after B."""
    if current.ndim == ndim + 1:
        current = jnp.broadcast_to(current, (steps, *current.shape))
    return current
