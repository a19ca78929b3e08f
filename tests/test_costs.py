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
X = jnp.array([[0.125, 0.375]])  # each of four neurons hears 1/2: fires every 2nd step


def measured(steps, params=PARAMS, wait=0):
    snn = snnjax.init(network, params, X, model=snnjax.integrate_and_fire())
    return snnjax.measure(network, params, snn, X, steps=steps, wait=wait)


def test_the_counts_are_those_of_the_network():
    found = measured(4)
    assert (found.neurons, found.weights) == (4, 8 + 12)
    assert (found.input_macs, found.macs) == (8, 20)
    assert found.synaptic_operations == 2 * 4 * 3  # two spikes, four neurons, fan-out 3


def test_operations_are_additions_and_products_in_floating_point():
    found = snnjax.energy(measured(4)).operations
    np.testing.assert_allclose(found.spiking, 24 * 0.9 * PJ + 8 * 4.6 * PJ, rtol=1e-5)
    np.testing.assert_allclose(found.ann, 20 * 4.6 * PJ, rtol=1e-5)


@pytest.mark.parametrize("wait", [0, 2])
def test_memory_counts_every_word_that_is_read_or_written(wait):
    found = snnjax.energy(measured(4, wait=wait))
    weights = 24 + 8  # one for each synaptic operation and each product
    potentials = 2 * 24  # read and written by each synaptic operation
    neurons = 4 * (3 * (4 + wait) + 1)  # potential in and out, current; current out
    words = weights + potentials + neurons + 2 * 8 + 8  # 8 spikes, 8 pixels
    extra = found.memory.spiking - found.operations.spiking
    np.testing.assert_allclose(extra, words * WORD, rtol=1e-4)
    extra = found.memory.ann - found.operations.ann
    np.testing.assert_allclose(extra, (20 + 20 + 4) * WORD, rtol=1e-4)


@pytest.mark.parametrize("steps, bits", [(1, 1), (3, 2), (4, 3), (7, 3), (8, 4)])
def test_the_quantized_ann_has_as_many_levels_as_the_steps(steps, bits):
    seen = measured(4)._replace(steps=steps)
    found = snnjax.energy(seen).quantized
    product = 0.2 * bits / 8 + 0.1
    np.testing.assert_allclose(found.ann, (8 * 0.3 + 12 * product) * PJ, rtol=1e-5)
    np.testing.assert_allclose(found.spiking, (8 * 0.3 + 24 * 0.1) * PJ, rtol=1e-5)


def test_larger_memories_cost_more():
    kilo = 2**10
    sizes = [1, 8 * kilo, 16 * kilo, 32 * kilo, 2**20, 2**20 + 1024]
    found = [float(2 * costs.access_energy(size)) / PJ for size in sizes]
    # Between 8 and 32 KB, where the energy doubles, half way is a factor sqrt(2).
    expected = [10, 10, 10 * 2**0.5, 20, 100, 1300]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_network_whose_weights_do_not_fit_pays_for_dram():
    seen = measured(4)
    large = seen._replace(weights=jnp.asarray(10**6))
    small, large = (snnjax.energy(s).memory.ann for s in (seen, large))
    np.testing.assert_allclose(large - small, 20 * (650 * PJ - WORD), rtol=1e-4)


def test_the_estimates_may_be_jitted():
    seen = measured(4)
    jitted = jax.jit(snnjax.energy)(seen)
    for a, b in zip(
        jax.tree.leaves(jitted),
        jax.tree.leaves(snnjax.energy(seen)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("steps", [2**n - 1 for n in range(1, 12)])
def test_powers_of_two_need_no_further_bit(steps):
    found = snnjax.energy(measured(1)._replace(steps=steps)).quantized
    bits = (steps + 1).bit_length() - 1
    product = 0.2 * bits / 8 + 0.1
    np.testing.assert_allclose(found.ann, (8 * 0.3 + 12 * product) * PJ, rtol=1e-5)


def test_energy_of_an_snn_is_refused_with_what_is_wanted():
    snn = snnjax.SNN({}, {})
    with pytest.raises(ValueError, match="measures is SNN; allowed: the Measures that"):
        snnjax.energy(snn)
