"""The margin of thresholds: the error of activations that calibration has not seen."""

import numpy as np
import pytest
from scipy import integrate

from snnjax.calibrators.unseen import Tail, clipped_error, tail_of


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("cap", [0.5, 2.0, 2.5, 9.0])
def test_the_error_is_the_integral_over_an_exponential_tail(cap, scale):
    maximum, weight = 2.0, 3.0

    def integrand(excess):
        clipped = max(0.0, maximum + excess - cap)
        density = np.exp(-excess / scale) / scale
        return weight * clipped**2 * density

    integral, _ = integrate.quad(integrand, 0, 60 * scale, limit=200)
    tail = Tail(np.array([maximum]), np.array([scale]), np.array([weight]))
    error = clipped_error(tail, np.array([[cap]]))
    np.testing.assert_allclose(error, integral, rtol=1e-4, atol=1e-12)


def test_the_tail_of_exponential_activations_has_their_scale():
    """A mean excess does not depend on where the tail of an exponential begins."""
    scales = np.array([0.2, 3.0])
    magnitudes = np.random.default_rng(0).exponential(scales, size=(40000, 2))
    tail = tail_of(magnitudes, np.ones_like(magnitudes), magnitudes.max(0))
    np.testing.assert_allclose(tail.scale, scales, rtol=0.15)
    np.testing.assert_array_equal(tail.maximum, magnitudes.max(0))


def test_nothing_is_beyond_activations_that_are_clipped():
    clipped = np.minimum(np.random.default_rng(0).exponential(size=(400, 1)), 0.5)
    tail = tail_of(clipped, np.ones_like(clipped), clipped.max(0))
    assert clipped_error(tail, np.array([[0.5]])).item() < 1e-10


def test_where_large_activations_count_less_so_does_the_tail():
    magnitudes = np.random.default_rng(0).exponential(size=(400, 1))
    tail = tail_of(magnitudes, 1 / magnitudes**2, magnitudes.max(0))
    top = np.sort(magnitudes.ravel())[-20:]
    assert tail.weight.item() == pytest.approx(20 / np.square(top).sum())
