"""Spike functions: a hard step forward, a surrogate derivative backward.

    spike(x) = 1[x >= 0],   x = (v - V_th) / (2 V_th)

The step's own derivative is zero almost everywhere, so training replaces it by a
bump around x = 0 whose integral is one. ``x = -1/2`` is an empty membrane
(v = 0), ``x = 1/2`` one at twice its threshold.
Source: Li, Guo, Zhang, Deng, Hai and Gu, "Differentiable Spike", NeurIPS 2021.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_context

# x, and the sharpness if the neuron has one -> spikes
Surrogate = Callable[..., jax.Array]


def _step(x: jax.Array) -> jax.Array:
    return (x >= 0).astype(x.dtype)


def _spike_function(derivative: Callable[[jax.Array, jax.Array], jax.Array]):
    """The step in x whose tangent is ``derivative(x, sharpness)`` times x's tangent.

    A ``custom_jvp`` rather than a ``custom_vjp``: forward mode over the gradient
    is what learns a temperature. The sharpness (temperature, width or slope) itself
    gets no tangent, because the step does not depend on it.
    """

    @jax.custom_jvp
    def spike(x, sharpness):
        del sharpness
        return _step(x)

    @spike.defjvp
    def spike_jvp(primals, tangents):
        (x, sharpness), (dx, _) = primals, tangents
        return _step(x), derivative(x, sharpness).astype(x.dtype) * dx

    return spike


def _dspike_derivative(x, b):
    inside = jnp.abs(x) <= 0.5
    # sech^2 by an exponential that cannot overflow, not even outside the window.
    e = jnp.exp(-2 * b * jnp.abs(jnp.where(inside, x, 0)))
    return jnp.where(inside, 2 * b * e / (1 + e) ** 2 / jnp.tanh(b / 2), 0)


_dspike = _spike_function(_dspike_derivative)
_rectangle = _spike_function(lambda x, width: (jnp.abs(x) < width / 2) / width)
_triangle = _spike_function(
    lambda x, width: jnp.maximum(0, width - jnp.abs(x)) / width**2
)
_exponential = _spike_function(
    lambda x, slope: slope / 2 * jnp.exp(-slope * jnp.abs(x))
)
_sigmoid = _spike_function(
    lambda x, slope: slope * jax.nn.sigmoid(slope * x) * jax.nn.sigmoid(-slope * x)
)
_arctan = _spike_function(lambda x, slope: slope / (1 + (jnp.pi * slope * x) ** 2))


def dspike(x: jax.Array, temperature: jax.Array | float = 3.0) -> jax.Array:
    """Step whose derivative is that of Dspike at temperature b.

        d/dx = b sech^2(b x) / (2 tanh(b / 2))   for |x| <= 1/2, otherwise 0

    Towards b = 0 this is the rectangle of width one, for large b a narrow peak
    of height b / 2; it integrates to one for every b.

    Args:
        x: normalised membrane potential (v - V_th) / (2 V_th), any shape.
        temperature: b > 0, a scalar or an array that broadcasts to the shape of x.

    Source: Li et al., NeurIPS 2021; the window is the paper's 0 <= v <= 2 V_th.

    >>> import jax
    >>> print(jax.grad(dspike)(0.0, 3.0))
    1.6571...
    """
    return _dspike(jnp.asarray(x), temperature)


def relaxed_dspike(x: jax.Array, temperature: jax.Array | float = 3.0) -> jax.Array:
    """Dspike itself, a soft step whose derivative is the surrogate of `dspike`.

        Dspike(x; b) = 1/2 + tanh(b x) / (2 tanh(b / 2))   for |x| <= 1/2, else 0 or 1

    Not binary: for the gradient of a relaxed network, which depends on b. Towards
    b = 0 it is the identity x + 1/2 (of the potential v / (2 V_th)), for large b the
    step.

    Args:
        x: normalised membrane potential (v - V_th) / (2 V_th), any shape.
        temperature: b > 0, a scalar or an array that broadcasts to the shape of x.

    >>> import jax.numpy as jnp
    >>> print(relaxed_dspike(jnp.array([0.0, 0.1, 0.6])))
    [0.5       0.660... 1.       ]
    """
    x = jnp.asarray(x)
    # Not jnp.clip, whose derivative at its ends, so at v = 0, is half of this one's.
    inside = jnp.where(jnp.abs(x) <= 0.5, x, jnp.sign(x) / 2)
    return 0.5 + jnp.tanh(temperature * inside) / (2 * jnp.tanh(temperature / 2))


def rectangle(x: jax.Array, width: jax.Array | float = 1.0) -> jax.Array:
    """Step with derivative 1[|x| < width / 2] / width (Wu et al., STBP, 2018).

    >>> import jax
    >>> print(jax.grad(rectangle)(0.2, 0.5))
    2.0
    """
    return _rectangle(jnp.asarray(x), width)


def triangle(x: jax.Array, width: jax.Array | float = 1.0) -> jax.Array:
    """Step with derivative max(0, width - |x|) / width^2 (Esser et al., 2016).

    >>> import jax
    >>> print(jax.grad(triangle)(0.5, 1.0))
    0.5
    """
    return _triangle(jnp.asarray(x), width)


def exponential(x: jax.Array, slope: jax.Array | float = 4.0) -> jax.Array:
    """Step with derivative slope / 2 exp(-slope |x|) (Shrestha, Orchard, 2018).

    >>> import jax
    >>> print(jax.grad(exponential)(0.0, 4.0))
    2.0
    """
    return _exponential(jnp.asarray(x), slope)


def sigmoid(x: jax.Array, slope: jax.Array | float = 4.0) -> jax.Array:
    """Step with the derivative of the logistic function of slope x.

    >>> import jax
    >>> print(jax.grad(sigmoid)(0.0, 4.0))
    1.0
    """
    return _sigmoid(jnp.asarray(x), slope)


def arctan(x: jax.Array, slope: jax.Array | float = 2.0) -> jax.Array:
    """Step with derivative slope / (1 + (pi slope x)^2) (Fang et al., 2021).

    >>> import jax
    >>> print(jax.grad(arctan)(0.0, 2.0))
    2.0
    """
    return _arctan(jnp.asarray(x), slope)


# What is to be known of any spike function, a user's too.


def check_surrogate(surrogate: Surrogate) -> None:
    """Raise unless this can be called."""
    if not callable(surrogate):
        raise ValueError(
            f"surrogate is {surrogate!r}; allowed: a spike function, e.g. "
            "snnjax.dspike or one of snnjax.surrogate"
        )


# x where a step shows that it is one: near its edge, and far from it.
_PROBES = np.array(
    [-3, -1, -0.6, -0.5, -0.4, -0.3, -0.1, -1e-3, -1e-6, 0]
    + [1e-6, 1e-3, 0.1, 0.3, 0.4, 0.5, 0.6, 1, 3],
    np.float32,
)


def is_step(spike: Surrogate, temperature: jax.Array | None = None) -> bool | None:
    """Whether a spike function gives 0 below x = 0 and 1 from there on.

    Args:
        spike: the function.
        temperature: its second argument, or None if it is given one only.

    Returns:
        None if that cannot be seen, as where a traced value decides.

    >>> is_step(dspike), is_step(relaxed_dspike)
    (True, False)
    """
    given = () if temperature is None else (temperature,)
    x = _PROBES.reshape(-1, *[1] * max([1, *map(jnp.ndim, given)]))
    # Not ensure_compile_time_eval, within which jax 0.7 traces a custom_jvp function.
    with eval_context():
        try:
            found = np.asarray(spike(jnp.asarray(x), *given))
            return bool(np.all(found == (x >= 0)))
        except (TypeError, ValueError):  # errors about traced values are TypeErrors
            return None


def closes_over_traced(spike: Surrogate, temperature: jax.Array | None = None) -> bool:
    """Whether a spike function holds a value that `jit`, `grad` or `vmap` traces.

    Args:
        spike: the function.
        temperature: its second argument, or None if it is given one only.
    """
    given = () if temperature is None else (temperature,)
    try:
        made = jax.make_jaxpr(spike)(jnp.zeros(1), *given)
    except (TypeError, ValueError):  # what is wrong shows where it is used
        return False
    return any(isinstance(constant, Tracer) for constant in made.consts)
