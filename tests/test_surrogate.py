"""Surrogates: a step forward, a bump of integral one backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snnjax import surrogate

# A spike function and a shape; several shapes where the formula has a limit in it.
TABLE = [
    (surrogate.dspike, 0.1),
    (surrogate.dspike, 3.0),
    (surrogate.dspike, 20.0),
    (surrogate.rectangle, 0.5),
    (surrogate.triangle, 0.5),
    (surrogate.exponential, 4.0),
    (surrogate.sigmoid, 4.0),
    (surrogate.arctan, 2.0),
]
each_surrogate = pytest.mark.parametrize("spike, shape", TABLE)


@functools.partial(jax.jit, static_argnums=0)
def value_and_slopes(spike, shape, x):
    """Spikes, and their derivatives in x, elementwise, and in the shape."""
    slopes = jax.grad(lambda x, shape: spike(x, shape).sum(), (0, 1))(x, shape)
    return spike(x, shape), *slopes


def derivative(spike, shape, x):
    """Elementwise: the surrogate's derivative at every x."""
    _, slope, _ = value_and_slopes(spike, np.float32(shape), np.float32(x))
    return np.asarray(slope)


@each_surrogate
def test_the_value_is_the_step_whatever_the_shape(spike, shape):
    x = np.float32([-np.inf, -1, -1e-30, -0.0, 0.0, 1e-30, 0.4, np.inf])
    spikes, _, slope_of_shape = value_and_slopes(spike, np.float32(shape), x)
    np.testing.assert_array_equal(spikes, [0, 0, 0, 1, 1, 1, 1, 1])
    assert slope_of_shape == 0


@each_surrogate
def test_the_derivative_is_an_even_bump_of_integral_one(spike, shape):
    # x = tan(u) reaches far into the tails with few points.
    u = np.linspace(-np.pi / 2, np.pi / 2, 200_001)[1:-1]
    height = derivative(spike, shape, np.tan(u)).astype(np.float64)
    integral = np.trapezoid(height / np.cos(u) ** 2, u)
    assert integral == pytest.approx(1, abs=2e-3)
    middle = len(u) // 2
    left, right = height[: middle + 1], height[middle:]
    np.testing.assert_allclose(left[::-1], right, rtol=1e-5)
    assert right[0] > 0
    assert (np.diff(right) <= 1e-6).all()


@each_surrogate
def test_types_are_kept_and_a_shape_may_differ_per_channel(spike, shape):
    x = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)
    for dtype in (jnp.bfloat16, np.float32):
        spikes, slope, _ = value_and_slopes(spike, shape, x.astype(dtype))
        assert spikes.dtype == slope.dtype == dtype
        assert np.isfinite(np.asarray(slope, np.float32)).all()
    shapes = shape, 2 * shape  # of two channels
    slopes = derivative(spike, shapes, x)
    for channel, channel_shape in enumerate(shapes):
        expected = derivative(spike, [channel_shape, channel_shape], x)
        np.testing.assert_allclose(slopes[:, channel], expected[:, channel], rtol=1e-6)


@pytest.mark.parametrize("b", [1e-3, 3.0, 20.0])
def test_dspike_is_the_derivative_of_its_formula(b):
    """The quotient of tanh in the paper, by differences, inside its window."""
    x, h = np.linspace(-0.45, 0.45, 19), 1e-4

    def dspike(x):
        return (np.tanh(b * x) + np.tanh(b / 2)) / (2 * np.tanh(b / 2))

    expected = (dspike(x + h) - dspike(x - h)) / (2 * h)
    slope = derivative(surrogate.dspike, b, x)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5)
    outside = derivative(surrogate.dspike, b, [-100.0, -0.51, 0.51, 100.0])
    np.testing.assert_array_equal(outside, 0)


def test_arctan_is_the_derivative_of_its_formula():
    x = np.linspace(-1, 1, 11)
    expected = 2 / (1 + (np.pi * 2 * x) ** 2)
    np.testing.assert_allclose(derivative(surrogate.arctan, 2.0, x), expected, 1e-5)


def test_a_surrogate_gradient_has_a_derivative_in_the_temperature():
    """By both modes; potentials far below zero are common."""
    x = np.float32([-0.4, -0.1, 0.2, 0.45, 30.0, -30.0])

    @jax.jit
    def gradient(b):
        return jax.grad(lambda x: surrogate.dspike(x, b).sum())(x)

    b, h = np.float32(3.0), np.float32(1e-2)
    expected = (gradient(b + h) - gradient(b - h)) / (2 * h)
    for mode in (jax.jacfwd, jax.jacrev):
        jacobian = jax.jit(mode(gradient))
        change = np.asarray(jacobian(b))
        np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-3)
        assert np.isfinite(jacobian(np.float32(400.0))).all()
    assert (np.abs(change[:4]) > 0.01).all()


def test_what_may_be_declared_to_be_the_step():
    def soft(x, width):
        return surrogate.rectangle(x, width)

    assert not surrogate.is_step(functools.partial(soft, width=0.5))
    declared = surrogate.step(functools.partial(soft, width=0.5))
    assert surrogate.is_step(declared)
    assert surrogate.is_step(functools.partial(declared))


def test_plain_numbers_are_derivatives_and_potentials():
    spike = surrogate.step_with_derivative(lambda x, sharpness: 0.5)
    assert jax.grad(spike)(0.3) == 0.5
    assert jax.grad(lambda b: surrogate.dspike(0.1, b))(3.0) == 0
