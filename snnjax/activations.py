"""Activations that conversion recognizes, besides ``jax.nn.relu``.

    clipped_relu(x, maximum) = min(max(x, 0), maximum)
    quantized_relu(x, maximum, L) = maximum / L clip(floor(L x / maximum + 1/2), 0, L)
    encode(x) = x

Each has a public function, which checks its arguments, and a function with a derivative
of its own, by whose unique name the capture recognizes the activation in a network.
x is [B, ..., C]; a maximum is a scalar, or an array with as many axes and a number for
each channel.

Sources: Deng and Gu, ICLR 2021 ("threshold ReLU"); Bu, Fang, Ding, Dai, Yu and Huang,
ICLR 2022 ("quantization clip-floor-shift", QCFS).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._arrays import broadcasts, wide_dtype
from snnjax._checks import check_floating
from snnjax._ranges import COUNT

_MOST_LEVELS = 2**23  # beyond it float32 has no halves to round by


def clipped_relu(x: jax.Array, maximum: jax.Array | float) -> jax.Array:
    """min(max(x, 0), maximum): the activation of the ICLR 2021 source networks.

    The derivative in x is 1 on the closed interval [0, maximum] and 0 outside it;
    in ``maximum`` it is 1[x > maximum], so a maximum can be trained too.

    Args:
        x: float array of any shape.
        maximum: > 0, the threshold to convert to: one number, or one per channel.
            `snnjax.convert` refuses other shapes, and a maximum whose channel axis
            ``vmap`` has separated from that of x.

    Raises:
        ValueError: a maximum that is not positive, or an x that is not floating point.

    Source: Deng and Gu, ICLR 2021.

    >>> import jax.numpy as jnp
    >>> print(clipped_relu(jnp.array([-1.0, 0.5, 3.0]), 1.0))
    [0.  0.5 1. ]
    """
    check_floating("x", x)
    x = jnp.asarray(x)
    return snnjax_clipped_relu(x, _checked_maximum(maximum, x))


@jax.custom_jvp
def snnjax_clipped_relu(x, maximum):
    """The capture recognizes the activation by this unique name."""
    return jnp.clip(x, 0, jnp.asarray(maximum, x.dtype))


@snnjax_clipped_relu.defjvp
def _clipped_relu_jvp(primals, tangents):
    x, maximum = primals
    dx, dmaximum = tangents
    limit = jnp.asarray(maximum, x.dtype)
    x_slope = ((x >= 0) & (x <= limit)).astype(x.dtype)
    maximum_slope = (x > limit).astype(x.dtype)
    tangent = x_slope * dx + _times(maximum_slope, dmaximum)
    return clipped_relu(x, maximum), tangent


def quantized_relu(x: jax.Array, maximum: jax.Array | float, levels: int) -> jax.Array:
    """The nearest of L + 1 values from 0 to maximum, which spikes represent exactly.

        maximum / L clip(floor(L x / maximum + 1/2), 0, L)

    An IF neuron with V_th = maximum and v(0) = V_th / 2 sends exactly this value in T =
    L steps, if it waits for all of its input. `snnjax.quantized` uses this.

    The gradient passes straight through the floor: 1 in x where the value y is not
    clipped, and (y - x) / maximum in ``maximum``; 1 where y is clipped above.

    Args:
        x: float array of any shape.
        maximum: > 0, one number, or one per channel.
        levels: L, 1 to 2**23.

    Raises:
        ValueError: a number outside its range, or an x that is not floating point.

    Source: Bu et al., ICLR 2022.

    >>> import jax.numpy as jnp
    >>> print(quantized_relu(jnp.array([-1.0, 0.3, 0.7, 3.0]), 1.0, 2))
    [0.  0.5 0.5 1. ]
    """
    check_floating("x", x)
    COUNT.check("levels", levels)
    if levels > _MOST_LEVELS:
        raise ValueError(f"levels is {levels}; allowed: 1 to {_MOST_LEVELS}")
    x = jnp.asarray(x)
    maximum = _checked_maximum(maximum, x)
    return snnjax_quantized_relu(x, maximum, jnp.asarray(levels, jnp.float32))


@jax.custom_jvp
def snnjax_quantized_relu(x, maximum, levels):
    """The capture recognizes the activation by this unique name."""
    level = jnp.clip(_level(x, maximum, levels), 0, levels.astype(wide_dtype(x)))
    fraction = level / levels.astype(level.dtype)
    return (fraction * jnp.asarray(maximum, level.dtype)).astype(x.dtype)


@snnjax_quantized_relu.defjvp
def _quantized_relu_jvp(primals, tangents):
    x, maximum, levels = primals
    dx, dmaximum, _ = tangents
    y = snnjax_quantized_relu(x, maximum, levels)
    level = _level(x, maximum, levels)
    is_inside = (level >= 0) & (level <= levels.astype(level.dtype))
    x_slope = is_inside.astype(x.dtype)
    # Outside, y is the maximum above the highest level and 0 below the lowest one.
    inside_slope = (y - x) / jnp.asarray(maximum, x.dtype)
    outside_slope = (level > 0).astype(x.dtype)
    maximum_slope = jnp.where(is_inside, inside_slope, outside_slope)
    return y, x_slope * dx + _times(maximum_slope, dmaximum)


def _times(slope: jax.Array, dmaximum: jax.Array) -> jax.Array:
    """slope dmaximum, in the type of the slope.

    The product is computed in float32 or wider: its transpose, the gradient of the
    maximum, sums over all numbers of x.
    """
    dtype = wide_dtype(slope)
    return (slope.astype(dtype) * dmaximum.astype(dtype)).astype(slope.dtype)


def _level(x: jax.Array, maximum: jax.Array, levels: jax.Array) -> jax.Array:
    """floor(L x / maximum + 1/2), the whole number of the nearest value, not clipped.

    It is computed in float32 or wider, as in a neuron.
    """
    dtype = wide_dtype(x)
    x = jnp.asarray(x, dtype)
    maximum = jnp.asarray(maximum, dtype)
    levels = jnp.asarray(levels, dtype)
    return jnp.floor(levels * x / maximum + 0.5)


def _checked_maximum(maximum: jax.Array | float, x: jax.Array) -> jax.Array | float:
    """The maximum as a float, or as a floating array with as many axes as x.

    With as many axes, ``vmap`` adds its axis at the same place in both.

    Raises:
        ValueError: no number or array, a shape that does not broadcast to x, or a known
            value out of range.
    """
    as_array = getattr(maximum, "__jax_array__", None)  # of a variable of nnx
    if as_array is not None:
        maximum = as_array()
    if not isinstance(maximum, int | float | np.number | np.ndarray | jax.Array):
        raise ValueError(
            f"maximum is {maximum!r}; allowed: a number, or an array of one per channel"
        )
    if not isinstance(maximum, Tracer):
        # By NumPy: inside jit, JAX would trace the comparison of concrete numbers too.
        with np.errstate(over="ignore", under="ignore"):
            numbers = np.asarray(maximum, np.float32)  # the type of the activation
        # XLA may take smaller numbers for 0.
        is_normal = numbers >= np.finfo(np.float32).tiny
        if not np.all(np.isfinite(numbers) & is_normal):
            raise ValueError(
                f"maximum is {maximum}; allowed: finite and > 0, as float32"
            )
    if not broadcasts(jnp.shape(maximum), x.shape):
        raise ValueError(
            f"maximum has shape {jnp.shape(maximum)} and x {x.shape}; allowed: one "
            "number, or one per channel of x"
        )
    if isinstance(maximum, int | float | np.number):
        return float(maximum)
    if not jnp.issubdtype(jnp.result_type(maximum), jnp.floating):
        maximum = jnp.asarray(maximum, x.dtype)  # whole numbers have no tangent
    missing_axes = x.ndim - jnp.ndim(maximum)
    return jnp.reshape(maximum, (1,) * missing_axes + jnp.shape(maximum))


def encode(x: jax.Array) -> jax.Array:
    """x itself; in a spiking network, the spikes that encode x.

    Conversion places encoders before products with weights. Use this function to place
    one elsewhere, for example before a product of two activations. If both operands are
    encoded, the product of an attention is a product of spike counts.

    Args:
        x: float array [B, ..., C]; thresholds are per channel, the last axis or that
            which a convolution behind the encoder sums over.

    Raises:
        ValueError: x is not floating point.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> def scores(w, x):
    ...     x = jax.nn.relu(x @ w)
    ...     return x @ encode(jnp.tanh(x)).mT
    >>> print(snnjax.sites(scores, jnp.eye(3), jnp.ones((2, 4, 3))))
    site     kind     shape  depth  parameters
    relu     relu     4x3    1
    tanh     tanh     4x3    1
    encoder  encoder  4x3    2
    product  product  4x4    2
    hybrid, operators computed densely at every step: 2;
    once with a wait of T - 1, or of T with rate coding
    """
    check_floating("x", x)
    return snnjax_encode(x)


@jax.custom_jvp
def snnjax_encode(x):
    """The capture recognizes the encoder by this unique name."""
    return x


snnjax_encode.defjvp(lambda primals, tangents: (encode(*primals), *tangents))
