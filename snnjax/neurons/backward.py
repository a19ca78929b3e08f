"""A site through T steps whose gradient keeps one state per step.

    u(t) = integrate(v(t - 1), I(t)),    v(t), s(t) = fire(u(t))

u and v are states, pytrees of arrays [B, ...]; s are spikes. The gradient keeps u of
all steps, and goes back through fire at u(t) and integrate at v(t - 1), which it
computes again from u(t - 1). JAX's own keeps v, too, where a leak is trained, and sums
the gradient of a parameter over the neurons at every step.
"""

import functools
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

# So many numbers stay in the cache of a core beside the other arrays of a step.
_SMALL = 2**16


def may_fold_back(neuron: Neuron, params: Any, state: Any, current: Any) -> bool:
    """Whether `fold_back` has a gradient for this model.

    All numbers must be floating, and the model must not close over a traced array, such
    as the trained width of a surrogate: a function with a derivative of its own cannot.

    Args:
        neuron, params, state: of a site.
        current: of one step, [B, ...].
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

    # A traced array that the model closes over is a constant of the traced gradient.
    try:
        trace = jax.make_jaxpr(functools.partial(jax.vjp, step))
        jaxpr = trace(params, state, current)
    except jax.errors.UnexpectedTracerError:
        return False
    return not any(isinstance(const, Tracer) for const in jaxpr.consts)


def _is_ours(model: Any) -> bool:
    """Whether the model's class and its surrogate are the library's own."""
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
    """The state after the currents, and the spikes [T, B, ...]. Reverse mode only.

    Args:
        neuron, params: the model and its parameters.
        state: v before the first step.
        currents: [T, B, ...], without the bias.
    """
    results, _ = _forward(neuron, params, state, currents)
    return results


def _forward(neuron: Neuron, params: Any, state: Any, currents: jax.Array) -> Any:
    """The results of `fold_back`, and what `_backward` needs for its gradient."""

    def step(v: Any, current: jax.Array) -> Any:
        u = neuron.integrate(params, v, drive(params, current))
        v, spikes = fire(neuron, params, u)
        return v, (spikes.astype(currents.dtype), u)

    end_state, (spikes, u) = jax.lax.scan(step, state, currents)
    return (end_state, spikes), (params, state, currents, u)


def _backward(neuron: Neuron, kept: Any, gradients: Any) -> Any:
    """The gradients of params, state and currents.

    Args:
        neuron: the model.
        kept: the arguments of `fold_back`, and u of all steps, [T, B, ...].
        gradients: of its results, the end state and the spikes.
    """
    params, start, currents, u = kept
    end_gradient, spikes_gradient = gradients

    def spread(params: Any) -> Any:
        """The parameters with one number for each neuron, [B, ...].

        Their gradients are then [B, ...] too, and are summed once, behind the loop: a
        sum at every step is slow. If these arrays do not stay in the cache, they are
        slower than the sums, and the parameters are left as they are.
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

    def add(total: jax.Array, fired: jax.Array, integrated: jax.Array) -> jax.Array:
        return total + wide(fired) + wide(integrated)

    def u_at(t: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[t], u)

    spread_params = spread(params)  # [B, ...] each, or as they are

    def step_back(carry: Any, inputs: Any) -> Any:
        """The gradients before step t, from those after it.

        Args:
            carry: the gradient of v(t), and the gradient of the parameters, summed over
                the later steps and shaped like ``spread_params``.
            inputs: t, the current of step t and the gradient of its spikes, [B, ...].

        Returns:
            The carry for step t - 1, and the gradient of the current.
        """
        v_gradient, params_gradient = carry
        t, current, spike_gradient = inputs
        u_now = u_at(t)
        # v(t - 1) follows from u(t - 1). At the first step, t = 0, the start takes its
        # place, since u_at(-1) is u of the last step.
        v_computed, _ = fire_step(spread_params, u_at(t - 1))
        start_if_first = functools.partial(jnp.where, t == 0)
        v_before = jax.tree.map(start_if_first, start, v_computed)
        # Back through v(t), s(t) = fire(u(t)), then u(t) = integrate(v(t - 1), I(t)).
        _, fire_back = jax.vjp(fire_step, spread_params, u_now)
        fire_gradient, u_gradient = fire_back((v_gradient, spike_gradient))
        _, integrate_back = jax.vjp(integrate_step, spread_params, v_before, current)
        integrate_gradient, v_gradient, current_gradient = integrate_back(u_gradient)
        params_gradient = jax.tree.map(
            add,
            params_gradient,
            fire_gradient,
            integrate_gradient,
        )
        return (v_gradient, params_gradient), current_gradient

    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(wide(leaf)), spread_params)
    steps = jnp.arange(len(currents))
    (start_gradient, params_gradient), currents_gradient = jax.lax.scan(
        step_back,
        (end_gradient, zeros),
        (steps, currents, spikes_gradient),
        reverse=True,
    )
    # The sums over neurons are taken in wide types too, and narrowed at the end.
    _, sum_over_neurons = jax.vjp(spread, jax.tree.map(wide, params))
    (params_gradient,) = sum_over_neurons(params_gradient)
    params_gradient = jax.tree.map(
        lambda gradient, leaf: gradient.astype(leaf.dtype),
        params_gradient,
        params,
    )
    return params_gradient, start_gradient, currents_gradient


fold_back.defvjp(_forward, _backward)
