"""The energy estimates are those of networks small enough to count by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snnjax
from snnjax.measures import costs

PJ = 1e-12
WORD = 5 * PJ  # 32 bits of a memory of at most 8 KB


def network(p, x):
    return jax.nn.relu(x @ p["w"]) @ p["v"]


PARAMS = {"w": jnp.ones((2, 4)), "v": jnp.ones((4, 3))}
X = jnp.array([[0.125, 0.375]])  # the current of four neurons is 1/2: every 2nd step
SNN = snnjax.init(network, PARAMS, X, model=snnjax.integrate_and_fire())


@pytest.fixture(scope="module")
def measures():
    return snnjax.measure(network, SNN, X, params=PARAMS, steps=4)


def test_operations_are_additions_and_products_in_floating_point(measures):
    assert (measures.neurons, measures.weights) == (4, 8 + 12)
    assert (measures.input_macs, measures.macs) == (8, 20)
    assert measures.synaptic_operations == 2 * 4 * 3  # 2 spikes, 4 neurons, fan-out 3
    energy = snnjax.energy(measures).operations
    np.testing.assert_allclose(energy.spiking, 24 * 0.9 * PJ + 8 * 4.6 * PJ, rtol=1e-5)
    np.testing.assert_allclose(energy.ann, 20 * 4.6 * PJ, rtol=1e-5)


def test_memory_counts_every_word_that_is_read_or_written(measures):
    for wait in (0, 2):
        energy = snnjax.energy(measures._replace(wait=wait))
        weights = 24 + 8  # one for each synaptic operation and each product
        potentials = 2 * 24  # read and written by each synaptic operation
        neurons = 4 * (3 * (4 + wait) + 1)  # potential in and out, current; current out
        words = weights + potentials + neurons + 2 * 8 + 8  # 8 spikes, 8 pixels
        extra = energy.memory.spiking - energy.operations.spiking
        np.testing.assert_allclose(extra, words * WORD, rtol=1e-4)
        extra = energy.memory.ann - energy.operations.ann
        np.testing.assert_allclose(extra, (20 + 20 + 4) * WORD, rtol=1e-4)


def test_the_quantized_ann_has_as_many_levels_as_the_steps(measures):
    powers = [(2**n - 1, n) for n in range(1, 12)]  # these need no further bit
    for steps, bits in [(4, 3), (5, 3), (8, 4), *powers]:
        energy = snnjax.energy(measures._replace(values=steps + 1)).quantized
        product = 0.2 * bits / 8 + 0.1
        np.testing.assert_allclose(energy.ann, (8 * 0.3 + 12 * product) * PJ, rtol=1e-5)
        np.testing.assert_allclose(energy.spiking, (8 * 0.3 + 24 * 0.1) * PJ, rtol=1e-5)


def test_larger_memories_cost_more(measures):
    kilo = 2**10
    sizes = [1, 8 * kilo, 16 * kilo, 32 * kilo, 2**20, 2**20 + 1024]
    energies = [float(2 * costs.access_energy(size)) / PJ for size in sizes]
    # Between 8 and 32 KB, where the energy doubles, half way is a factor sqrt(2).
    expected = [10, 10, 10 * 2**0.5, 20, 100, 1300]
    np.testing.assert_allclose(energies, expected, rtol=1e-4)
    in_dram = measures._replace(weights=jnp.asarray(10**6))
    small = snnjax.energy(measures).memory.ann
    large = snnjax.energy(in_dram).memory.ann
    np.testing.assert_allclose(large - small, 20 * (650 * PJ - WORD), rtol=1e-4)


def test_the_estimates_are_the_same_inside_of_jit_where_the_table_shows_types(measures):
    texts = []

    @jax.jit
    def traced(measures):
        texts.append(str(snnjax.energy(measures)))
        return snnjax.energy(measures)

    for a, b in zip(traced(measures)[:3], snnjax.energy(measures)[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert "float32" in texts[0]
    for factor, unit in ((1, "nJ"), (1e6, "uJ"), (1e9, "mJ"), (1e13, "J")):
        larger = measures._replace(
            macs=factor * measures.macs,
            input_macs=factor * measures.input_macs,
        )
        assert f"SNN, {unit} " in str(snnjax.energy(larger))


def test_a_chip_takes_its_own_energies_for_operations_and_updates(measures):
    for chip in (snnjax.deploy.loihi1(), snnjax.deploy.spinnaker2()):
        operation, update = chip.joules
        for wait in (0, 2):
            energy = snnjax.energy(measures._replace(wait=wait), chip=chip)
            expected = 24 * operation + 4 * (4 + wait) * update
            np.testing.assert_allclose(energy.chip, expected, rtol=1e-5)
            assert energy[:3] == snnjax.energy(measures._replace(wait=wait))[:3]
            row = f"chip        {1e9 * expected:.3g}"
            assert row in str(energy) and row not in str(snnjax.energy(measures))
