"""`snnjax.sweep`: accuracy, latency, spikes and energy at several T."""

import jax
import numpy as np
import pytest
from test_best import DIGITS, IMAGES, dense, trained

import snnjax

PARAMS = trained(dense, 0)
X, LABELS = IMAGES[1200:1600], DIGITS.target[1200:1600]
OPTIONS = {"recipe": snnjax.light(), "code": snnjax.codes.radix()}
RESULT = snnjax.sweep(dense, PARAMS, IMAGES[:64], X, LABELS, steps=(1, 3), **OPTIONS)


def test_each_point_has_the_numbers_of_its_own_conversion():
    for point, steps in zip(RESULT.points, (1, 3), strict=True):
        snn = snnjax.convert(dense, PARAMS, IMAGES[:64], steps=steps, **OPTIONS)
        outputs = jax.jit(snnjax.spiking(dense))(snn, X)
        answers = np.asarray(snn.code.answers(outputs)).argmax(-1)
        np.testing.assert_allclose(point.accuracies, (answers == LABELS).mean(1))
        measures = snnjax.measure(dense, snn, X[:100], params=PARAMS)
        assert point.measures.spikes == measures.spikes
        assert point.energy == snnjax.energy(measures)
        assert point.latency == steps + 3 * snn.wait  # three layers
    answers = np.asarray(dense(PARAMS, X)).argmax(-1)
    assert RESULT.ann == pytest.approx((answers == LABELS).mean())


def test_the_cheapest_point_has_the_fewest_spikes_within_a_loss():
    few, many = RESULT.points
    assert few.measures.spikes < many.measures.spikes
    losses = [RESULT.ann - point.accuracies[-1] for point in RESULT.points]
    assert losses[0] > losses[1]
    assert RESULT.cheapest(lost=losses[0] + 0.01) is few
    assert RESULT.cheapest(lost=(losses[0] + losses[1]) / 2) is many
    exact = RESULT._replace(ann=few.accuracies[-1] + 0.01)
    assert exact.cheapest(lost=0.01) is few  # whatever the rounding
    with pytest.raises(ValueError, match="every point loses more than 0.5.*radix"):
        RESULT._replace(ann=2.0).cheapest(lost=0.5)
    with pytest.raises(ValueError, match="lost is 2; allowed: 0 to 1"):
        RESULT.cheapest(lost=2)


def test_it_prints_a_table_and_draws_a_figure(tmp_path):
    head, *rows, below, of_examples = str(RESULT).splitlines()
    assert of_examples == "spikes and energy of the first 100 examples"
    assert head.split()[:3] == ["T", "wait", "latency"]
    accuracy = f"{100 * RESULT.points[1].accuracies[-1]:.1f}"
    assert rows[1].split()[:4] == ["3", "1", "6", accuracy]
    assert f"ANN {100 * RESULT.ann:.1f} %" in below
    assert max(map(len, (head, *rows, below))) <= 80
    figure = RESULT.figure()
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "latency, steps",
        "spikes per neuron",
    ]
    line = figure.axes[1].lines[1]
    spikes = [float(point.measures.spikes) for point in RESULT.points]
    np.testing.assert_allclose(line.get_xdata(), spikes)
    figure.savefig(tmp_path / "sweep.png")


def test_wrong_input_is_refused_before_any_conversion():
    wrong = {
        "labels are int64 .399.; allowed: a whole number": (LABELS[1:], (2,)),
        "labels are float64": (LABELS / 2, (2,)),
        "steps is empty": (LABELS, ()),
        "steps is 0": (LABELS, 0),
        "label": (LABELS + 10, (2,)),
    }
    for message, (labels, steps) in wrong.items():
        with pytest.raises(ValueError, match=message):
            snnjax.sweep(dense, PARAMS, IMAGES[:64], X, labels, steps=steps, **OPTIONS)
