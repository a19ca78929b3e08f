"""Spike functions: a step in the forward pass, a surrogate derivative backward.

    spike(x) = 1[x >= 0],   x = (v - V_th) / (2 V_th)

The derivative of the step is zero almost everywhere. Training replaces it by a bump
around x = 0 with integral one. At ``x = -1/2`` the potential v is 0, at ``x = 1/2`` it
is twice the threshold.
Source: Li, Guo, Zhang, Deng, Hai and Gu, "Differentiable Spike", NeurIPS 2021.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
from jax.core import Tracer

from snnjax._arrays import lead, promoted
from snnjax._checks import takes

__all__ = [
    "arctan",
    "dspike",
    "exponential",
    "rectangle",
    "sigmoid",
    "step_with_derivative",
    "triangle",
]

# (x) -> spikes, or (x, temperature) -> spikes if the neuron has a temperature
Surrogate = Callable[..., jax.Array]
P = ParamSpec("P")


def step(spike: Surrogate) -> Surrogate:
    """Declare that the forward pass of a spike function is the step 1[x >= 0].

    Simulations use this (`is_step`), because a step has a closed form and its spikes
    fit into bits. The spike functions of this module and of `step_with_derivative` are
    already declared.

    >>> @step
    ... def my_spike(x):
    ...     return rectangle(x, 0.5)
    >>> is_step(my_spike)
    True

    Raises:
        ValueError: the function is a method, which cannot store the declaration.
    """
    try:
        spike.is_step = True  # type: ignore[attr-defined]
    except AttributeError:
        raise ValueError(
            f"{spike!r} cannot be declared; allowed: a function or a partial, e.g. "
            "lambda x: spike(x)"
        ) from None
    return spike


def step_with_derivative(
    derivative: Callable[[jax.Array, jax.Array], jax.Array], sharpness: float = 1.0
) -> Surrogate:
    """A spike function of your own: the step with this surrogate derivative.

    Args:
        derivative: ``derivative(x, sharpness)`` at x = (v - V_th) / (2 V_th).
        sharpness: default of the second argument; a neuron's temperature replaces it.
            It gets no gradient, because the step does not depend on it.

    >>> import jax
    >>> box = step_with_derivative(lambda x, width: (abs(x) < width) / (2 * width))
    >>> float(box(0.2)), float(jax.grad(box)(0.2, 0.5))
    (1.0, 1.0)
    """

    @_with_derivative
    def spike(x: Any, sharpness: Any = sharpness) -> jax.Array:
        return derivative(x, sharpness)

    return spike


def _with_derivative(derivative: Callable[P, jax.Array]) -> Callable[P, jax.Array]:
    """The step in x, whose tangent is ``derivative(x, sharpness)`` times that of x.

    A ``custom_jvp`` rather than a ``custom_vjp``, so that forward mode works too.
    """

    @jax.custom_jvp
    # With the names and the defaults of the derivative's arguments.
    @functools.wraps(derivative)
    def function(x, sharpness):
        del sharpness
        return _step(x)

    @function.defjvp
    def jvp(primals, tangents):
        x, sharpness = primals
        dx, _ = tangents
        # JAX's strict settings refuse to combine arrays of different types or numbers
        # of axes, so x and the sharpness get the same.
        aligned = lead(sharpness, x.ndim)
        dtype = x.dtype
        # A Python number has a weak type, which adapts to that of x.
        if not aligned.weak_type:
            dtype = promoted(dtype, aligned.dtype)
        aligned = aligned.astype(dtype)
        slope = derivative(x.astype(dtype), aligned)  # type: ignore[call-arg]
        # The value is a call of `function` again, so that derivatives of this rule use
        # the surrogate, too. That of the comparison in `_step` would be 0.
        return function(x, sharpness), jnp.asarray(slope, x.dtype) * dx

    @step
    @functools.wraps(derivative)
    def spike(x, *sharpness, **by_name):
        return function(jnp.asarray(x), *sharpness, **by_name)

    return spike


def _step(x: jax.Array) -> jax.Array:
    """1[x >= 0] in the type of x."""
    return (x >= 0).astype(x.dtype)


# ------------------------------------------ surrogates: each returns its derivative


@_with_derivative
def dspike(x: jax.Array, temperature: jax.Array | float = 3.0) -> jax.Array:
    """Step with the derivative of Dspike at temperature b.

        d/dx = b sech^2(b x) / (2 tanh(b / 2))   for |x| <= 1/2, otherwise 0

    For b -> 0 this is the rectangle of width one, for large b a narrow peak of height
    b / 2. Its integral is one for every b.

    Args:
        x: normalized membrane potential (v - V_th) / (2 V_th), any shape.
        temperature: b > 0, a scalar or an array that broadcasts to the shape of x.

    Source: Li et al., NeurIPS 2021; the window is the paper's 0 <= v <= 2 V_th.

    >>> import jax
    >>> print(jax.grad(dspike)(0.0, 3.0))
    1.6571...
    """
    b = temperature
    is_inside = jnp.abs(x) <= 0.5
    # sech^2 by an exponential that does not overflow, even outside the window.
    e = jnp.exp(-2 * b * jnp.abs(jnp.where(is_inside, x, 0)))
    slope = 2 * b * e / (1 + e) ** 2 / jnp.tanh(b / 2)
    return jnp.where(is_inside, slope, 0)


@_with_derivative
def rectangle(x: jax.Array, width: jax.Array | float = 1.0) -> jax.Array:
    """Step with derivative 1[|x| < width / 2] / width (Wu et al., STBP, 2018).

    >>> import jax
    >>> print(jax.grad(rectangle)(0.2, 0.5))
    2.0
    """
    return jnp.where(jnp.abs(x) < width / 2, 1 / width, 0)


@_with_derivative
def triangle(x: jax.Array, width: jax.Array | float = 1.0) -> jax.Array:
    """Step with derivative max(0, width - |x|) / width^2 (Esser et al., 2016).

    >>> import jax
    >>> print(jax.grad(triangle)(0.5, 1.0))
    0.5
    """
    return jnp.maximum(0, width - jnp.abs(x)) / width**2


@_with_derivative
def exponential(x: jax.Array, slope: jax.Array | float = 4.0) -> jax.Array:
    """Step with derivative slope / 2 exp(-slope |x|) (Shrestha, Orchard, 2018).

    >>> import jax
    >>> print(jax.grad(exponential)(0.0, 4.0))
    2.0
    """
    return slope / 2 * jnp.exp(-slope * jnp.abs(x))


@_with_derivative
def sigmoid(x: jax.Array, slope: jax.Array | float = 4.0) -> jax.Array:
    """Step with the derivative of the logistic function of slope x.

    >>> import jax
    >>> print(jax.grad(sigmoid)(0.0, 4.0))
    1.0
    """
    return slope * jax.nn.sigmoid(slope * x) * jax.nn.sigmoid(-slope * x)


@_with_derivative
def arctan(x: jax.Array, slope: jax.Array | float = 2.0) -> jax.Array:
    """Step with derivative slope / (1 + (pi slope x)^2) (Fang et al., 2021).

    >>> import jax
    >>> print(jax.grad(arctan)(0.0, 2.0))
    2.0
    """
    return slope / (1 + (jnp.pi * slope * x) ** 2)


def check_surrogate(surrogate: Any, temperature: bool | None = None) -> None:
    """Raise unless a neuron can call this function.

    Args:
        surrogate: the spike function.
        temperature: whether the neuron passes a second argument; None: unknown.
    """
    if not callable(surrogate):
        raise ValueError(
            f"surrogate is {surrogate!r}; allowed: a spike function, e.g. "
            "snnjax.surrogate.dspike"
        )
    takes_x = takes(surrogate, None)
    takes_temperature = takes(surrogate, None, None)
    if temperature is None:
        form = "(x) or (x, temperature)"
        is_allowed = takes_x or takes_temperature
    elif temperature:
        form = "(x, temperature)"
        is_allowed = takes_temperature
    else:
        form = "(x)"
        is_allowed = takes_x
    if not is_allowed:
        raise ValueError(
            f"surrogate {surrogate!r} cannot be called as surrogate{form}, as these "
            "neurons call it; allowed: a function of x, and of a temperature if the "
            "neurons have one"
        )


def is_step(spike: Surrogate) -> bool:
    """Whether a spike function is declared to be the step, see `step`.

    >>> is_step(dspike), is_step(functools.partial(dspike, temperature=2.0))
    (True, True)
    >>> is_step(lambda x: jax.nn.sigmoid(4 * x))
    False
    """
    while isinstance(spike, functools.partial) and not hasattr(spike, "is_step"):
        spike = spike.func
    return getattr(spike, "is_step", False)


def holds_tracer(spike: Surrogate) -> bool:
    """Whether a spike function closes over a traced value, or a partial has one."""
    if isinstance(spike, functools.partial):
        if holds_tracer(spike.func):
            return True
        values = jax.tree.leaves((spike.args, spike.keywords))
    else:
        cells = getattr(spike, "__closure__", None) or ()
        values = [cell.cell_contents for cell in cells]
    return any(isinstance(value, Tracer) for value in values)
