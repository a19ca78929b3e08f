"""Every well-known architecture is converted as it is, and gives the ANN's numbers."""

from pathlib import Path

import jax
import numpy as np
import pytest
from architectures import ARCHITECTURES

import snnjax

STEPS = 16
# Their parts are those of others here, or of the published networks (test_models.py).
LONG = ("BERT", "Conformer", "EfficientNet", "Inception", "MLP Mixer", "RegNetY")
LONG += ("T5", "ViT")
QUICK = ("MobileNet v2",)
FINE = snnjax.integrate_and_fire(levels=(-100, 100))
RECIPE = snnjax.bias_shift()  # which rounds


def test_the_page_of_networks_lists_them():
    page = Path(__file__).parents[1] / "docs" / "networks.md"
    listed = page.read_text().replace("-", " ")
    for name in ARCHITECTURES:
        library = name.split()[0]
        assert name in listed or library in ("scanned", "nnx", "equinox"), name


def marks(name):
    if name in LONG:
        return [pytest.mark.slow]
    return [] if name in QUICK else [pytest.mark.thorough]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=marks(name)) for name in ARCHITECTURES],
)
def test_with_fine_levels_an_snn_gives_the_numbers_of_the_ann(name):
    if name == "equinox transformer":
        pytest.importorskip("equinox")
    fn, params, x = ARCHITECTURES[name]()
    snn = snnjax.convert(fn, params, x, steps=STEPS, model=FINE, recipe=RECIPE)
    simulate = snnjax.spiking(fn, steps=STEPS, execution=1)

    @jax.jit
    def run(params, snn, x):
        return snn.neurons, simulate(snn, x).mean(0), fn(params, x)

    neurons, mean, answer = jax.device_get(run(params, snn, x))
    error = np.abs(mean - answer).max() / np.abs(answer - answer.mean(0)).max()
    assert error < 0.05, name
    assert neurons and jax.tree.all(
        jax.tree.map(lambda a: np.isfinite(a).all(), neurons)
    )
