"""A site through T steps whose gradient keeps one state per step.

    u(t) = integrate(v(t - 1), I(t)),    v(t), s(t) = fire(u(t))

The gradient keeps u alone, and goes back through fire at u(t) and integrate at
v(t - 1), which it computes again. JAX's own keeps v, too, where a leak is trained, and
sums the slopes of a parameter at every step.
"""

import functools
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from snnjax import surrogate
from snnjax._arrays import wide
from snnjax._trees import is_floating
from snnjax.neurons.gradients import WithoutGradient
from snnjax.neurons.models import NeuronParams
from snnjax.neurons.protocol import Neuron, chain, drive, fire

_SMALL = 2**16  # numbers that stay in the cache of a core beside the others


def may_fold_back(neuron: Neuron, params: Any, state: Any, current: Any) -> bool:
    """Whether all numbers have slopes, and the model closes over no traced one.

    A function with a derivative of its own must not close over a traced array, such as
    the trained width of a surrogate.
    """
    has_slopes = all(map(is_floating, jax.tree.leaves((params, state))))
    if not has_slopes or any(isinstance(m, WithoutGradient) for m in chain(neuron)):
        return False
    if all(map(_is_ours, chain(neuron))):
        return True  # they close over nothing, and a trace of each site takes time

    def step(params: Any, v: Any, current: jax.Array) -> Any:
        return fire(neuron, params, neuron.integrate(params, v, drive(params, current)))

    try:
        jaxpr = jax.make_jaxpr(functools.partial(jax.vjp, step))(params, state, current)
    except jax.errors.UnexpectedTracerError:
        return False
    return not any(isinstance(const, Tracer) for const in jaxpr.consts)


def _is_ours(model: Any) -> bool:
    """Whether class and surrogate are the library's own."""
    spike = getattr(model, "surrogate", surrogate.dspike)
    same = spike is getattr(surrogate, getattr(spike, "__name__", ""), None)
    return same and type(model).__module__.startswith("snnjax.")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fold_back(
    neuron: Neuron, params: Any, state: Any, currents: jax.Array
) -> tuple[Any, jax.Array]:
    """The state after the currents [T, B, ...], and the spikes. Reverse mode only."""
    return _forward(neuron, params, state, currents)[0]


def _forward(neuron: Neuron, params: Any, state: Any, currents: jax.Array) -> Any:
    def step(v: Any, current: jax.Array) -> Any:
        u = neuron.integrate(params, v, drive(params, current))
        v, spikes = fire(neuron, params, u)
        return v, (spikes.astype(currents.dtype), u)

    after, (spikes, u) = jax.lax.scan(step, state, currents)
    return (after, spikes), (params, state, currents, u)


def _backward(neuron: Neuron, kept: Any, slopes: Any) -> Any:
    params, start, currents, u = kept
    of_after, of_spikes = slopes

    def spread(params: Any) -> Any:
        """An array for the slopes of each number, which is summed behind the loop.

        A sum at every step is slow; so are more arrays than the cache holds.
        """
        if not isinstance(params, NeuronParams) or currents[0].size > _SMALL:
            return params
        shape = currents.shape[1:]
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape), params)

    def fired(params: Any, u: Any) -> Any:
        v, spikes = fire(neuron, params, u)
        return v, spikes.astype(currents.dtype)

    def integrated(params: Any, v: Any, current: jax.Array) -> Any:
        return neuron.integrate(params, v, drive(params, current))

    spread_params = spread(params)

    def step_back(carry: Any, now: Any) -> Any:
        of_v, of_params = carry
        t, current, of_spike = now
        u_now, u_before = (jax.tree.map(itemgetter(i), u) for i in (t, t - 1))
        v, _ = fired(spread_params, u_before)
        # Before the first step is the start; u[t - 1] is there the last one's.
        v = jax.tree.map(functools.partial(jnp.where, t == 0), start, v)
        at_fire, of_u = _pull(fired, (of_v, of_spike), spread_params, u_now)
        arguments = spread_params, v, current
        at_integrate, of_v, of_current = _pull(integrated, of_u, *arguments)
        added = jax.tree.map(wide, (at_fire, at_integrate))
        of_params = jax.tree.map(lambda *slopes: sum(slopes), of_params, *added)
        return (of_v, of_params), of_current

    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(wide(leaf)), spread_params)
    per_step = jnp.arange(len(currents)), currents, of_spikes
    (of_start, of_params), of_currents = jax.lax.scan(
        step_back, (of_after, zeros), per_step, reverse=True
    )
    (of_params,) = _pull(spread, of_params, jax.tree.map(wide, params))
    of_params = jax.tree.map(lambda g, p: g.astype(p.dtype), of_params, params)
    return of_params, of_start, of_currents


fold_back.defvjp(_forward, _backward)


def _pull(function: Callable, slopes: Any, *arguments: Any) -> tuple[Any, ...]:
    """The slopes of the arguments, from those of the results."""
    return jax.vjp(function, *arguments)[1](slopes)
