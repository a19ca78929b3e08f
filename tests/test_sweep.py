"""`snnjax.sweep`: accuracy, latency, spikes and energy at several T."""

import jax
import numpy as np
import pytest
from test_best import DIGITS, IMAGES, dense, trained

import snnjax

# The example of its documentation is in a first run.
pytestmark = pytest.mark.thorough

X, LABELS = IMAGES[1200:1600], DIGITS.target[1200:1600]
OPTIONS = {"recipe": snnjax.light(), "code": snnjax.codes.radix()}


@pytest.fixture(scope="module")
def params():
    return trained(dense, 0)


@pytest.fixture(scope="module")
def result(params):
    return snnjax.sweep(dense, params, IMAGES[:64], X, LABELS, steps=(1, 3), **OPTIONS)


def test_each_point_has_the_numbers_of_its_own_conversion(params, result):
    for point, steps in zip(result.points, (1, 3), strict=True):
        snn = snnjax.convert(dense, params, IMAGES[:64], steps=steps, **OPTIONS)
        outputs = jax.jit(snnjax.spiking(dense))(snn, X)
        answers = np.asarray(snn.code.answers(outputs)).argmax(-1)
        np.testing.assert_allclose(point.accuracies, (answers == LABELS).mean(1))
        measures = snnjax.measure(dense, snn, X[:100], params=params)
        assert point.measures.spikes == measures.spikes
        assert point.energy == snnjax.energy(measures)
        assert point.latency == steps + 3 * snn.wait  # three layers
    answers = np.asarray(dense(params, X)).argmax(-1)
    assert result.ann == pytest.approx((answers == LABELS).mean())


def test_it_prints_a_table(result):
    head, *rows, below, last_line = str(result).splitlines()
    assert last_line == "spikes and energy of the first 100 examples"
    assert head.split()[:3] == ["T", "wait", "latency"]
    accuracy = f"{100 * result.points[1].accuracies[-1]:.1f}"
    assert rows[1].split()[:4] == ["3", "1", "6", accuracy]
    assert f"ANN {100 * result.ann:.1f} %" in below
    assert max(map(len, (head, *rows, below))) <= 80
