"""Quantized ReLUs: a network that spikes can equal, and its exact conversion.

maximum / L clip(floor(L x / maximum + 1/2), 0, L)      Bu et al., ICLR 2022
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import REFINED, conv, outputs_of, simulated

import snnjax
from snnjax import quantized_relu

RNG = np.random.default_rng(0)
LEVELS = 4
X = np.float32(RNG.integers(-8, 9, (20, 6, 6, 3)) / 8)
PARAMS = {
    "first": np.float32(RNG.integers(-8, 9, (3, 3, 3, 8)) / 16),
    "maximum": np.float32(RNG.uniform(0.5, 3, 8)),
    "second": np.float32(RNG.integers(-8, 9, (8, 12)) / 16),
    "log_maximum": np.float32(0.3),
    "out": np.float32(RNG.normal(size=(12, 5))),
}


ACTIVATIONS = [functools.partial(quantized_relu, levels=LEVELS), snnjax.clipped_relu]


def network(p, x, levels=LEVELS):
    x = quantized_relu(conv(x, p["first"], stride=2), p["maximum"], levels).mean((1, 2))
    return quantized_relu(x @ p["second"], jnp.exp(p["log_maximum"]), levels) @ p["out"]


def quantized_outputs(fn, steps=LEVELS, params=PARAMS, x=X, **options):
    """Mean outputs of the SNN with a wait of T, and the outputs of its ANN."""
    outputs, answers = simulated(
        fn,
        params,
        x,
        steps=steps,
        wait=steps,
        recipe=snnjax.quantized(),
        **options,
    )
    return outputs.mean(0), answers


def test_the_default_is_the_network_where_its_values_are_those_of_spikes(caplog):
    """No fit of weights moves a current that is rounded as it should be.

    So the default need not keep plain thresholds, which it would say in the log.
    """
    generator = np.random.default_rng(1)
    shapes = (8, 24), (24, 24), (24, 5)
    weights = [np.float32(generator.normal(size=s) / s[0] ** 0.5) for s in shapes]
    x = generator.normal(size=(2048, 8)).astype(np.float32)

    def fn(weights, x):
        *hidden, readout = weights
        for weight in hidden:
            x = quantized_relu(x @ weight, 3.0, LEVELS)
        return x @ readout

    rate = snnjax.codes.rate()
    snn = snnjax.convert(fn, weights, x[:1536], steps=LEVELS, code=rate, wait=LEVELS)
    assert not caplog.records
    outputs, expected = outputs_of(
        [snnjax.spiking(fn, answer=True), lambda snn, x: fn(weights, x)], snn, x[1536:]
    )
    assert np.square(outputs - expected).sum() < 1e-3 * np.square(expected).sum()


def test_it_is_the_nearest_of_its_values():
    x = np.random.default_rng(7).normal(size=(200, 3)).astype(np.float32) * 2
    maxima = 1.0, 0.7, np.float32([0.5, 1.0, 2.5])
    cases = [(maximum, levels) for maximum in maxima for levels in (1, 4, 7)]
    runs = []
    for maximum, levels in cases:
        run = functools.partial(quantized_relu, maximum=maximum, levels=levels)
        runs.append(run)
    for (maximum, levels), y in zip(cases, outputs_of(runs, x), strict=True):
        grid = np.asarray(maximum)[..., None] * np.arange(levels + 1) / levels
        grid = np.broadcast_to(grid, (3, levels + 1))
        distance = np.abs(x[..., None] - grid)
        nearest = np.take_along_axis(grid[None], distance.argmin(-1)[..., None], -1)
        np.testing.assert_allclose(y, nearest[..., 0], atol=1e-6)


def test_gradients_are_straight_through():
    x = np.float32([-0.4, -0.1, 0.3, 0.9, 1.1, 1.5])
    maximum = np.float32(1.0)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def slopes(x, maximum):
        activation = functools.partial(quantized_relu, levels=4)
        return jax.value_and_grad(activation, argnums=(0, 1))(x, maximum)

    y, (slope, slope_of_maximum) = slopes(x, maximum)
    np.testing.assert_array_equal(slope, [0, 1, 1, 1, 1, 0])
    expected = np.where(np.asarray(slope, bool), y - x, x > 1)
    np.testing.assert_allclose(slope_of_maximum, expected, atol=1e-6)


def test_with_t_levels_and_a_wait_of_t_the_snn_is_the_network():
    sites = snnjax.sites(network, PARAMS, X)
    assert [site.kind for site in sites] == ["quantized relu"] * 2
    assert sites.grade == "binary"
    options = {"steps": LEVELS, "wait": LEVELS}
    snn = snnjax.convert(network, PARAMS, X, recipe=snnjax.quantized(), **options)
    (first, second) = snn.neurons.values()
    np.testing.assert_array_equal(first.threshold, PARAMS["maximum"])
    np.testing.assert_allclose(second.threshold, np.full(12, np.exp(0.3)), rtol=1e-6)
    np.testing.assert_array_equal(2 * first.initial_potential, first.threshold)
    executions = LEVELS, "closed_form"
    runs = [snnjax.spiking(network, execution=execution) for execution in executions]
    ann = lambda snn, x: network(PARAMS, x)  # noqa: E731
    *outputs, expected = outputs_of([*runs, ann], snn, X)
    for output in outputs:
        np.testing.assert_allclose(output.mean(0), expected, rtol=1e-4, atol=1e-5)
    for site in snnjax.measure(network, snn, X, params=PARAMS).sites.values():
        assert site.inherited < 1e-5 and site.error < 1e-5


def test_graded_spikes_need_fewer_steps_and_other_steps_round_otherwise():
    graded = snnjax.integrate_and_fire(levels=(0, LEVELS))
    one_step, ann = quantized_outputs(network, 1, model=graded)
    three_steps, _ = quantized_outputs(network, 3)
    ann_of_three_levels = jax.jit(functools.partial(network, levels=3))(PARAMS, X)
    np.testing.assert_allclose(one_step, ann, rtol=1e-4, atol=1e-5)
    assert np.abs(three_steps - ann_of_three_levels).max() < 1e-4
    assert np.abs(three_steps - ann).max() > 0.01


@pytest.mark.thorough
def test_other_recipes_convert_it_too_and_this_one_clipped_relus():
    for recipe in (snnjax.light("channel"), REFINED):
        outputs, ann = simulated(network, PARAMS, X, steps=8, wait=0, recipe=recipe)
        assert np.square(outputs.mean(0) - ann).mean() < 0.2 * ann.var()

    def clipped(w, x):
        return snnjax.clipped_relu(x @ w, 0.5)

    x = np.float32(np.random.default_rng(7).normal(size=(20, 3)))
    snn = snnjax.convert(clipped, np.eye(3), x, steps=4, recipe=snnjax.quantized())
    (neuron,) = snn.neurons.values()
    np.testing.assert_array_equal(neuron.threshold, [0.5] * 3)


def test_gradients_know_channels_and_bfloat16():
    generator = np.random.default_rng(7)
    x = np.float32(generator.normal(size=(50, 3)))
    maxima = np.float32([0.5, 1.0, 2.0])

    def total(x, maxima):
        return quantized_relu(x, maxima, 4).sum()

    slopes = jax.grad(total, argnums=(0, 1))
    by_channel = jax.vmap(slopes, in_axes=1, out_axes=(1, 0))
    whole, channels = outputs_of([slopes, by_channel], x, maxima[None])
    np.testing.assert_array_equal(whole[0], channels[0])
    np.testing.assert_allclose(whole[1][0], channels[1][:, 0], rtol=1e-5)
    half = generator.normal(size=2000).astype(jnp.bfloat16)
    runs = [lambda x: quantized_relu(x, 1.0, 4), jax.grad(lambda x: total(x, 1.0))]
    y, slope = outputs_of(runs, half)
    assert (slope[(y > 0) & (y < 1)] == 1).all()  # as the value is rounded


@pytest.mark.thorough
def test_in_bfloat16_it_is_the_same_function_and_exact_too():
    y = quantized_relu(jnp.array([0.26, 0.9], jnp.bfloat16), 1.0, 4)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(y), [0.25, 1.0])
    fn = snnjax.in_dtype(functools.partial(network, levels=7), "bfloat16")
    mean, ann = quantized_outputs(fn, 7)
    assert (np.abs(np.float32(mean) - np.float32(ann)) < 0.05).mean() > 0.98


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_maximum_for_each_tower_stays_beside_it_under_vmap(activation):
    weights = np.float32(RNG.normal(size=(4, 6, 4)))  # as many channels
    maxima = np.float32([0.3, 1, 2, 4])
    x = np.float32(RNG.normal(size=(20, 6)))

    def towers(p, x):
        def tower(weights, maximum):
            return activation(x @ weights, maximum)

        return jax.vmap(tower)(*p).sum(0)

    def fn(p, x):
        return jax.vmap(lambda x: towers(p, x))(x)

    rule = snnjax.network.evaluate.identity
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    params = weights, maxima
    close(*outputs_of([snnjax.network.with_activation(fn, rule), fn], params, x))
    if activation is not snnjax.clipped_relu:  # which spikes do not give exactly
        close(*quantized_outputs(fn, params=params, x=x))


def test_the_gradient_of_a_maximum_is_summed_in_float32():
    x = np.full(70_000, 2, np.float16)  # whose largest number is 65504

    def slope(activation):
        return jax.grad(lambda m, x: activation(x, m).astype(jnp.float32).sum())

    for gradient in outputs_of(map(slope, ACTIVATIONS), np.float32(1), x):
        assert gradient == 70_000


def test_a_maximum_per_channel_keeps_to_strict_ranks():
    x, maxima = jnp.ones((2, 3)), jnp.array([0.5, 1.0, 2.0])
    with jax.numpy_rank_promotion("raise"):
        y = quantized_relu(x, maxima, LEVELS)
        np.testing.assert_array_equal(snnjax.clipped_relu(x, maxima)[0], [0.5, 1, 1])
    np.testing.assert_array_equal(y[0], [0.5, 1, 1])


def test_a_number_is_a_maximum_where_the_batch_is_last_too():
    maxima = 6, 6.0, np.int64(6), np.float32(6)
    for activation, maximum in itertools.product(ACTIVATIONS, maxima):

        def fn(w, x, activation=activation, maximum=maximum):
            return activation(w @ x.T, maximum).T @ jnp.ones((4, 2))

        (site,) = snnjax.sites(fn, jnp.ones((4, 5)), jnp.ones((8, 5)))
        assert site.shape == (4,)
