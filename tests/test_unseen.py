"""The margin of thresholds: the error of activations that calibration has not seen."""

import numpy as np
import pytest
from scipy import integrate

from snnjax.calibrators.sample import Sample
from snnjax.calibrators.unseen import Tail, clipped_error, tail_of


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("bound", [2.5, 9.0, np.inf])
@pytest.mark.parametrize("cap", [0.5, 2.0, 2.5, 9.0])
def test_the_error_is_the_integral_over_an_exponential_tail(cap, bound, scale):
    """What is beyond the bound is at the bound, and the neuron then sends its cap."""
    maximum, weight = 2.0, 3.0

    def integrand(excess):
        activation = min(maximum + excess, bound)
        output = cap if activation == bound else min(activation, cap)
        clipped = activation - output
        density = np.exp(-excess / scale) / scale
        return weight * clipped**2 * density

    kinks = [min(bound - maximum, 60 * scale), min(cap - maximum, 60 * scale)]
    kinks = [max(0.0, kink) for kink in kinks]
    integral, _ = integrate.quad(integrand, 0, 60 * scale, limit=200, points=kinks)
    tail = Tail(
        np.array([maximum]), np.array([scale]), np.array([weight]), np.array([bound])
    )
    error = clipped_error(tail, np.array([[cap]]))
    np.testing.assert_allclose(error, integral, rtol=1e-4, atol=1e-12)


def test_the_tail_of_exponential_activations_has_their_scale():
    """A mean excess does not depend on where the tail of an exponential begins."""
    for scale in (0.2, 3.0):
        magnitudes = np.random.default_rng(0).exponential(scale, size=(40000, 1))
        tail = tail_of(magnitudes, np.ones_like(magnitudes), magnitudes.max(0))
        np.testing.assert_allclose(tail.scale, scale, rtol=0.15)
        np.testing.assert_array_equal(tail.maximum, magnitudes.max(0))


def test_few_activations_have_a_scale_near_that_of_their_layer():
    generator = np.random.default_rng(0)
    deviations = {}
    for count in (16, 40000):
        magnitudes = generator.exponential(size=(count, 50))
        scales = tail_of(magnitudes, np.ones_like(magnitudes), magnitudes.max(0)).scale
        alone = [
            tail_of(channel, np.ones_like(channel), channel.max(0)).scale.item()
            for channel in np.split(magnitudes, 50, axis=1)
        ]
        deviations[count] = scales.std() / np.std(alone)
    assert deviations[16] < 0.5
    assert 0.9 < deviations[40000] < 1.0


def test_a_channel_of_a_hundredth_keeps_a_scale_of_its_size():
    magnitudes = np.random.default_rng(0).exponential([1.0, 1.0, 0.01], size=(64, 3))
    tail = tail_of(magnitudes, np.ones_like(magnitudes), magnitudes.max(0))
    assert tail.scale[2] < 0.1


def test_nothing_is_beyond_activations_that_are_clipped():
    clipped = np.minimum(np.random.default_rng(0).exponential(size=(400, 1)), 0.5)
    tail = tail_of(clipped, np.ones_like(clipped), clipped.max(0))
    assert clipped_error(tail, np.array([[0.5]])).item() < 1e-10


def test_an_end_that_is_far_away_does_not_hide_the_tail_of_the_other():
    """SiLU ends at -0.28, and goes far above: around the middle both ends are equal."""
    activation = np.random.default_rng(0).exponential(size=(400, 1)).astype(np.float32)
    weight = np.ones_like(activation)
    ends = activation.min(0), activation.max(0)
    middle = sum(ends) / 2
    sample = Sample(activation, weight, *ends)
    cap = (ends[1] - middle)[None]
    alone = clipped_error(tail_of(activation, weight, ends[1]), ends[1][None])
    np.testing.assert_allclose(sample.clipped_error(middle, cap), alone, rtol=0.2)


def test_where_large_activations_count_less_so_does_the_tail():
    magnitudes = np.random.default_rng(0).exponential(size=(400, 1))
    tail = tail_of(magnitudes, 1 / magnitudes**2, magnitudes.max(0))
    top = np.sort(magnitudes.ravel())[-20:]
    assert tail.weight.item() == pytest.approx(20 / np.square(top).sum())
