"""A site through T steps whose gradient keeps one state per step.

    u(t) = integrate(v(t - 1), I(t)),    v(t), s(t) = fire(u(t))

The gradient keeps u alone, and goes back through fire at u(t) and integrate at
v(t - 1), which it computes again. JAX's own keeps v, too, where a leak is trained, and
sums the slopes of a parameter at every step.
"""

import functools
from collections.abc import Callable
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
    models = chain(neuron)
    if not all(map(is_floating, jax.tree.leaves((params, state)))):
        return False
    if any(isinstance(model, WithoutGradient) for model in models):
        return False
    if all(map(_is_ours, models)):
        return True  # they close over nothing, and a trace of each site takes time

    def step(params: Any, v: Any, current: jax.Array) -> Any:
        u = neuron.integrate(params, v, drive(params, current))
        return fire(neuron, params, u)

    try:
        trace = jax.make_jaxpr(functools.partial(jax.vjp, step))
        jaxpr = trace(params, state, current)
    except jax.errors.UnexpectedTracerError:
        return False
    return not any(isinstance(const, Tracer) for const in jaxpr.consts)


def _is_ours(model: Any) -> bool:
    """Whether class and surrogate are the library's own."""
    spike = getattr(model, "surrogate", surrogate.dspike)
    library_spike = getattr(surrogate, getattr(spike, "__name__", ""), None)
    return spike is library_spike and type(model).__module__.startswith("snnjax.")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fold_back(
    neuron: Neuron,
    params: Any,
    state: Any,
    currents: jax.Array,
) -> tuple[Any, jax.Array]:
    """The state after the currents [T, B, ...], and the spikes. Reverse mode only."""
    return _forward(neuron, params, state, currents)[0]


def _forward(neuron: Neuron, params: Any, state: Any, currents: jax.Array) -> Any:
    """The results of `fold_back`, and what its gradient keeps."""

    def step(v: Any, current: jax.Array) -> Any:
        u = neuron.integrate(params, v, drive(params, current))
        v, spikes = fire(neuron, params, u)
        return v, (spikes.astype(currents.dtype), u)

    end_state, (spikes, u) = jax.lax.scan(step, state, currents)
    return (end_state, spikes), (params, state, currents, u)


def _backward(neuron: Neuron, kept: Any, slopes: Any) -> Any:
    """The slopes of params, state and currents, from those of the results."""
    params, start, currents, u = kept
    end_state_slope, spikes_slope = slopes

    def spread(params: Any) -> Any:
        """An array for the slopes of each number, which is summed behind the loop.

        A sum at every step is slow; so are more arrays than the cache holds.
        """
        if not isinstance(params, NeuronParams) or currents[0].size > _SMALL:
            return params
        shape = currents.shape[1:]
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape), params)

    def fire_step(params: Any, u: Any) -> Any:
        v, spikes = fire(neuron, params, u)
        return v, spikes.astype(currents.dtype)

    def integrate_step(params: Any, v: Any, current: jax.Array) -> Any:
        return neuron.integrate(params, v, drive(params, current))

    spread_params = spread(params)

    def step_back(carry: Any, inputs: Any) -> Any:
        v_slope, params_slope = carry
        t, current, spike_slope = inputs
        u_now = jax.tree.map(lambda leaf: leaf[t], u)
        u_last = jax.tree.map(lambda leaf: leaf[t - 1], u)
        v, _ = fire_step(spread_params, u_last)
        # Before the first step is the start; u[t - 1] is there the last one's.
        v = jax.tree.map(functools.partial(jnp.where, t == 0), start, v)
        fire_slope, u_slope = _pull(
            fire_step,
            (v_slope, spike_slope),
            spread_params,
            u_now,
        )
        integrate_slope, v_slope, current_slope = _pull(
            integrate_step,
            u_slope,
            spread_params,
            v,
            current,
        )
        params_slope = jax.tree.map(
            lambda total, a, b: total + wide(a) + wide(b),
            params_slope,
            fire_slope,
            integrate_slope,
        )
        return (v_slope, params_slope), current_slope

    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(wide(leaf)), spread_params)
    steps = jnp.arange(len(currents))
    (start_slope, params_slope), currents_slope = jax.lax.scan(
        step_back,
        (end_state_slope, zeros),
        (steps, currents, spikes_slope),
        reverse=True,
    )
    (params_slope,) = _pull(spread, params_slope, jax.tree.map(wide, params))
    params_slope = jax.tree.map(lambda g, p: g.astype(p.dtype), params_slope, params)
    return params_slope, start_slope, currents_slope


fold_back.defvjp(_forward, _backward)


def _pull(function: Callable, slopes: Any, *arguments: Any) -> tuple[Any, ...]:
    """The slopes of the arguments, from those of the results."""
    _, pull = jax.vjp(function, *arguments)
    return pull(slopes)
