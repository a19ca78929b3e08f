"""Surrogates: a step forward, a bump of integral one backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snnjax import surrogate

SHAPES = {
    surrogate.dspike: (0.1, 1.0, 3.0, 20.0),
    surrogate.rectangle: (0.5, 1.0, 2.0),
    surrogate.triangle: (0.5, 1.0, 2.0),
    surrogate.exponential: (1.0, 4.0, 20.0),
    surrogate.sigmoid: (1.0, 4.0, 20.0),
    surrogate.arctan: (1.0, 2.0, 10.0),
}
TABLE = [
    pytest.param(spike, shape, id=f"{spike.__name__}-{shape}")
    for spike, shapes in SHAPES.items()
    for shape in shapes
]
every = pytest.mark.parametrize("spike, shape", TABLE)


def derivative(spike, shape, x):
    """Elementwise: the surrogate's derivative at every x."""
    return jax.grad(lambda x: spike(x, shape).sum())(jnp.asarray(x, jnp.float32))


@every
def test_forward_is_the_step(spike, shape):
    x = jnp.array([-jnp.inf, -1.0, -1e-30, -0.0, 0.0, 1e-30, 0.4, jnp.inf])
    np.testing.assert_array_equal(spike(x, shape), [0, 0, 0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("b", SHAPES[surrogate.dspike])
def test_the_derivative_of_relaxed_dspike_is_the_surrogate(b):
    x = [-1.0, -0.5001, -0.5, -0.3, 0.0, 0.2, 0.5, 0.6]  # -0.5: an empty membrane
    found = derivative(surrogate.relaxed_dspike, b, x)
    expected = derivative(surrogate.dspike, b, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@every
def test_derivative_integrates_to_one(spike, shape):
    # x = tan(u) reaches far into the tails with few points.
    u = np.linspace(-np.pi / 2, np.pi / 2, 200_001)[1:-1]
    x = np.tan(u)
    height = np.asarray(derivative(spike, shape, x), np.float64)
    integral = np.trapezoid(height / np.cos(u) ** 2, u)
    assert integral == pytest.approx(1, abs=2e-3)


@every
def test_derivative_is_even_and_highest_at_the_threshold(spike, shape):
    x = jnp.linspace(0, 3, 301)
    right, left = derivative(spike, shape, x), derivative(spike, shape, -x)
    np.testing.assert_allclose(right, left, rtol=1e-6)
    assert (jnp.diff(right) <= 1e-6).all() and right[0] > 0


@every
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_value_and_derivative_keep_the_dtype(spike, shape, dtype):
    x = jnp.linspace(-1, 1, 5, dtype=dtype)
    slope = jax.grad(lambda x: spike(x, shape).sum())(x)
    assert spike(x, shape).dtype == slope.dtype == dtype
    assert jnp.isfinite(slope).all()


@every
def test_shape_may_differ_per_channel(spike, shape):
    x = jnp.linspace(-1, 1, 10).reshape(5, 2)
    both = derivative(spike, jnp.array([shape, 2 * shape]), x)
    for channel, alone in enumerate((shape, 2 * shape)):
        expected = derivative(spike, alone, x[:, channel])
        np.testing.assert_allclose(both[:, channel], expected, rtol=1e-6)


@every
def test_the_step_does_not_depend_on_the_shape(spike, shape):
    x = jnp.linspace(-1, 1, 5)
    assert jax.grad(lambda shape: spike(x, shape).sum())(jnp.float32(shape)) == 0


def test_dspike_is_the_derivative_of_its_formula():
    """dtanh-quotient of the paper, by differences, inside its window."""
    b, x, h = 3.0, np.linspace(-0.45, 0.45, 19), 1e-4

    def dspike(x):
        return (np.tanh(b * x) + np.tanh(b / 2)) / (2 * np.tanh(b / 2))

    expected = (dspike(x + h) - dspike(x - h)) / (2 * h)
    found = derivative(surrogate.dspike, b, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_dspike_tends_to_the_rectangle_of_width_one():
    x = jnp.array([-0.51, -0.49, 0.0, 0.49, 0.51])
    wide = derivative(surrogate.dspike, 1e-3, x)
    expected = derivative(surrogate.rectangle, 1.0, x)
    np.testing.assert_allclose(wide, expected, atol=1e-5)


def test_dspike_becomes_a_narrow_peak():
    narrow = derivative(surrogate.dspike, 400.0, [-0.1, 0.0, 0.1])
    np.testing.assert_allclose(narrow, [0, 200, 0], atol=1e-3)


def test_dspike_is_zero_outside_its_window():
    far = derivative(surrogate.dspike, 3.0, [-100.0, -0.501, 0.501, 100.0])
    np.testing.assert_array_equal(far, 0)


def test_temperature_is_learnt_by_forward_mode_over_the_gradient():
    """d/db of a surrogate gradient, which dL/db = 0 cannot give."""
    x = jnp.array([-0.4, -0.1, 0.2, 0.45, 30.0])

    def gradient(b):
        return derivative(surrogate.dspike, b, x)

    _, change = jax.jvp(gradient, (jnp.float32(3.0),), (jnp.float32(1.0),))
    step = 1e-2
    expected = (gradient(3.0 + step) - gradient(3.0 - step)) / (2 * step)
    np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-3)
    assert abs(change[:4]).min() > 0.01


@pytest.mark.parametrize("x, b", [(30.0, 3.0), (-30.0, 3.0), (0.45, 400.0)])
def test_temperature_is_learnt_by_reverse_mode_too(x, b):
    """Potentials far below zero are common: v is not bounded from below."""
    x = jnp.float32(x)

    def height(b):
        return jax.grad(lambda x: surrogate.dspike(x, b))(x)

    assert jnp.isfinite(jax.grad(height)(jnp.float32(b)))


def test_a_partial_may_be_declared_to_be_the_step():
    def soft(x, width):
        return surrogate.rectangle(x, width)

    assert not surrogate.is_step(functools.partial(soft, width=0.5))
    declared = surrogate.step(functools.partial(soft, width=0.5))
    assert surrogate.is_step(declared)
    assert surrogate.is_step(functools.partial(declared))


def test_a_method_cannot_be_declared():
    class Spikes:
        def spike(self, x):
            return surrogate.rectangle(x, 0.5)

    with pytest.raises(ValueError, match="cannot be declared; allowed: a function"):
        surrogate.step(Spikes().spike)


def test_a_derivative_may_be_a_plain_number():
    spike = surrogate.step_with_derivative(lambda x, sharpness: 0.5)
    assert jax.grad(spike)(0.3) == 0.5


def test_a_python_number_is_a_potential():
    slope = jax.grad(lambda b: surrogate.dspike(0.1, b))(3.0)
    assert slope == 0
