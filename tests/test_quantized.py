"""Quantized ReLUs: a network that spikes can equal, and its exact conversion.

maximum / L clip(floor(L x / maximum + 1/2), 0, L)      Bu et al., ICLR 2022
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import REFINED, compiled, conv

import snnjax
from experiments import convert
from experiments.models import Source, save_source
from experiments.models import zoo as models
from experiments.running import Convert
from snnjax import quantized_relu

RNG = np.random.default_rng(0)
LEVELS = 4
X = jnp.asarray(RNG.integers(-8, 9, (20, 6, 6, 3)) / 8, jnp.float32)
PARAMS = {
    "first": jnp.asarray(RNG.integers(-8, 9, (3, 3, 3, 8)) / 16, jnp.float32),
    "maximum": jnp.asarray(RNG.uniform(0.5, 3, 8), jnp.float32),
    "second": jnp.asarray(RNG.integers(-8, 9, (8, 12)) / 16, jnp.float32),
    "log_maximum": jnp.float32(0.3),
    "out": jnp.asarray(RNG.normal(size=(12, 5)), jnp.float32),
}


def network(p, x, levels=LEVELS):
    x = quantized_relu(conv(x, p["first"], stride=2), p["maximum"], levels).mean((1, 2))
    return quantized_relu(x @ p["second"], jnp.exp(p["log_maximum"]), levels) @ p["out"]


@pytest.mark.parametrize("maximum", [1.0, 0.7, np.array([0.5, 1.0, 2.5], np.float32)])
@pytest.mark.parametrize("levels", [1, 4, 7])
def test_it_is_the_nearest_of_its_values(maximum, levels):
    x = np.random.default_rng(7).normal(size=(200, 3)).astype(np.float32) * 2
    grid = np.asarray(maximum)[..., None] * np.arange(levels + 1) / levels
    grid = np.broadcast_to(grid, (3, levels + 1))
    distance = np.abs(x[..., None] - grid)
    nearest = np.take_along_axis(grid[None], distance.argmin(-1)[..., None], -1)
    y = quantized_relu(jnp.asarray(x), maximum, levels)
    np.testing.assert_allclose(y, nearest[..., 0], atol=1e-6)


def test_gradients_are_straight_through():
    x, maximum = jnp.array([-0.4, -0.1, 0.3, 0.9, 1.1, 1.5]), jnp.float32(1.0)
    y = quantized_relu(x, maximum, 4)
    of_x = jax.vmap(jax.grad(lambda x: quantized_relu(x, maximum, 4)))(x)
    np.testing.assert_array_equal(of_x, [0, 1, 1, 1, 1, 0])
    of_maximum = jax.vmap(
        jax.grad(lambda m, x: quantized_relu(x, m, 4)), in_axes=(None, 0)
    )(maximum, x)
    inside = np.asarray(of_x, bool)
    expected = np.where(inside, y - x, np.asarray(x) > 1)
    np.testing.assert_allclose(of_maximum, expected, atol=1e-6)


def test_it_is_a_site():
    sites = snnjax.sites(network, PARAMS, X)
    assert [site.kind for site in sites] == ["quantized relu"] * 2
    assert sites.grade == "binary"


@pytest.mark.parametrize("execution", ["by_step", "by_layer", "closed_form"])
def test_with_t_levels_and_a_wait_of_t_the_snn_is_the_network(execution):
    options = {"steps": LEVELS, "wait": LEVELS}
    snn = snnjax.convert(network, PARAMS, X, recipe=snnjax.quantized(), **options)
    (first, second) = snn.neurons.values()
    np.testing.assert_array_equal(first.threshold, PARAMS["maximum"])
    np.testing.assert_allclose(second.threshold, np.full(12, np.exp(0.3)), rtol=1e-6)
    np.testing.assert_array_equal(2 * first.initial_potential, first.threshold)
    mean = snnjax.spiking(network, execution=execution, **options)(snn, X).mean(0)
    np.testing.assert_allclose(mean, network(PARAMS, X), rtol=1e-4, atol=1e-5)


def test_graded_spikes_need_fewer_steps():
    neuron = snnjax.integrate_and_fire(levels=(0, LEVELS))
    options = {"steps": 1, "wait": 1}
    recipe = snnjax.quantized()
    snn = snnjax.convert(network, PARAMS, X, recipe=recipe, model=neuron, **options)
    output = snnjax.spiking(network, **options)(snn, X)[0]
    np.testing.assert_allclose(output, network(PARAMS, X), rtol=1e-4, atol=1e-5)


def test_other_recipes_convert_it_too_and_this_one_clipped_relus():
    ann = network(PARAMS, X)
    for recipe in (snnjax.light("channel"), REFINED):
        snn = snnjax.convert(network, PARAMS, X, steps=32, recipe=recipe)
        mean = compiled(network, steps=32)(snn, X).mean(0)
        assert np.square(mean - ann).mean() < 0.2 * ann.var()

    def clipped(w, x):
        return snnjax.clipped_relu(x @ w, 0.5)

    x = jnp.asarray(np.random.default_rng(7).normal(size=(20, 3)), jnp.float32)
    snn = snnjax.convert(clipped, jnp.eye(3), x, steps=4, recipe=snnjax.quantized())
    (neuron,) = snn.neurons.values()
    np.testing.assert_array_equal(neuron.threshold, [0.5] * 3)


def test_a_plain_relu_has_no_maximum():
    def fn(w, x):
        return jax.nn.relu(x @ w)

    with pytest.raises(ValueError, match="has the kind .relu., which has no maximum"):
        snnjax.convert(fn, jnp.eye(3), X[:, 0, 0], steps=4, recipe=snnjax.quantized())


def test_gradients_know_channels_and_bfloat16():
    x = jnp.asarray(np.random.default_rng(7).normal(size=(50, 3)), jnp.float32)
    maxima = jnp.array([0.5, 1.0, 2.0])

    def total(x, maxima):
        return quantized_relu(x, maxima, 4).sum()

    of_x, of_maxima = jax.grad(total, argnums=(0, 1))(x, maxima)
    for c in range(3):
        own_x, own = jax.grad(total, argnums=(0, 1))(x[:, c], maxima[c])
        np.testing.assert_array_equal(of_x[:, c], own_x)
        np.testing.assert_allclose(of_maxima[c], own, rtol=1e-5)
    half = jnp.asarray(np.random.default_rng(7).normal(size=2000), jnp.bfloat16)
    y = quantized_relu(half, 1.0, 4)
    slope = jax.grad(lambda x: quantized_relu(x, 1.0, 4).sum())(half)
    assert (slope[(y > 0) & (y < 1)] == 1).all()  # as the value is rounded


def test_encoders_have_no_maximum_and_other_steps_round_otherwise():
    def fn(p, x):
        x = quantized_relu(x.mean((1, 2)) @ p["first"][0, 0], 1.0, 4)
        return jnp.tanh(x) @ p["second"]

    with pytest.raises(ValueError, match="kind 'encoder', which has no maximum"):
        snnjax.convert(fn, PARAMS, X, steps=4, recipe=snnjax.quantized())
    recipe = snnjax.quantized()
    snn = snnjax.convert(network, PARAMS, X, steps=3, wait=3, recipe=recipe)
    output = snnjax.spiking(network, steps=3, wait=3)(snn, X).mean(0)
    assert jnp.abs(output - network(PARAMS, X, 3)).max() < 1e-4
    assert jnp.abs(output - network(PARAMS, X)).max() > 0.01


@pytest.mark.parametrize(
    "maximum, levels, message",
    [
        (0.0, 4, "maximum is 0.0; allowed: finite and > 0"),
        (np.inf, 4, "maximum is inf; allowed: finite and > 0"),
        (1e39, 4, "maximum is 1e.39; allowed: finite and > 0, as float32"),
        (1e-40, 4, "maximum is 1e-40; allowed: finite and > 0, as float32"),
        (None, 4, "maximum is None; allowed: a number, or an array"),
        (np.ones(2), 4, r"maximum has shape \(2,\) and x \(3,\); allowed: one"),
        (np.ones((4, 3)), 4, r"maximum has shape \(4, 3\) and x \(3,\); allowed: one"),
        (1.0, 2**23 + 1, "levels is 8388609; allowed: 1 to 8388608"),
        (1.0, 0, "levels is 0; allowed"),
        (1.0, 2.5, "levels is 2.5; allowed"),
    ],
)
def test_numbers_out_of_range_are_refused(maximum, levels, message):
    with pytest.raises(ValueError, match=message):
        quantized_relu(jnp.ones(3), maximum, levels)


def test_inside_jit_and_in_bfloat16_it_is_the_same_function():
    fast = jax.jit(network)(PARAMS, X)
    np.testing.assert_allclose(fast, network(PARAMS, X), rtol=1e-5, atol=1e-5)
    y = quantized_relu(jnp.array([0.26, 0.9], jnp.bfloat16), 1.0, 4)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype(jnp.float32), [0.25, 1.0])


def test_it_inherits_no_error_from_layers_that_make_none():
    options = {"steps": LEVELS, "wait": LEVELS}
    snn = snnjax.convert(network, PARAMS, X, recipe=snnjax.quantized(), **options)
    measures = snnjax.measure(network, snn, X, params=PARAMS)
    for site in measures.sites.values():
        assert site.inherited < 1e-5 and site.error < 1e-5


def test_in_bfloat16_it_is_exact_too():
    levels, options = 7, {"steps": 7, "wait": 7}
    fn = snnjax.in_dtype(lambda p, x: network(p, x, levels), "bfloat16")
    snn = snnjax.convert(fn, PARAMS, X, recipe=snnjax.quantized(), **options)
    output = snnjax.spiking(fn, **options)(snn, X).astype(jnp.float32).mean(0)
    close = jnp.abs(output - fn(PARAMS, X).astype(jnp.float32)) < 0.05
    assert close.mean() > 0.98


def test_the_command_refuses_it_before_it_converts(tmp_path):
    model = models.build("events", 10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    card = {"model": "events", "num_classes": 10, "input_shape": [8, 8, 1]}
    save_source(tmp_path, Source(model, {"batch_stats": {}, **variables}, card))
    config = Convert(
        checkpoint=str(tmp_path), recipes=("light", "quantized"), out=str(tmp_path)
    )
    with pytest.raises(ValueError, match="has none; leave it out, or"):
        convert.run(config)


@pytest.mark.parametrize(
    "activation", [lambda v, m: quantized_relu(v, m, LEVELS), snnjax.clipped_relu]
)
def test_a_maximum_for_each_tower_stays_beside_it_under_vmap(activation):
    weights = jnp.asarray(RNG.normal(size=(4, 6, 4)), jnp.float32)  # as many channels
    maxima, x = jnp.array([0.3, 1.0, 2.0, 4.0]), jnp.asarray(RNG.normal(size=(20, 6)))

    def towers(p, x):
        def tower(weights, maximum):
            return activation(x @ weights, maximum)

        return jax.vmap(tower)(*p).sum(0)

    def fn(p, x):
        return jax.vmap(lambda x: towers(p, x))(x)

    rule = snnjax.network.evaluate.identity
    same = snnjax.network.with_activation(fn, rule)((weights, maxima), x)
    np.testing.assert_allclose(same, fn((weights, maxima), x), rtol=1e-5)
    if activation is snnjax.clipped_relu:  # which spikes do not give exactly
        return
    options = {"steps": LEVELS, "wait": LEVELS}
    recipe = snnjax.quantized()
    snn = snnjax.convert(fn, (weights, maxima), x, recipe=recipe, **options)
    mean = snnjax.spiking(fn, **options)(snn, x).mean(0)
    np.testing.assert_allclose(mean, fn((weights, maxima), x), rtol=1e-4, atol=1e-5)


def test_a_maximum_that_vmap_moves_away_is_refused():
    def fn(p, x):  # the maxima are along the last axis of x, the first of their own
        along = jax.vmap(lambda v, m: quantized_relu(v, m, LEVELS), (1, 0), 1)
        return jax.vmap(lambda x: along(x, p[1]).sum(0))(x @ p[0])

    p = jnp.eye(4), jnp.array([0.3, 1.0, 2.0, 4.0])
    with pytest.raises(snnjax.ConversionError):
        snnjax.convert(fn, p, jnp.ones((8, 4, 4)), steps=4)


@pytest.mark.parametrize("least", [-0.5, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("recipe", [snnjax.best(), snnjax.light("channel")])
def test_a_maximum_among_params_must_be_a_threshold(least, recipe):
    def fn(p, x):
        return quantized_relu(x, p, LEVELS) @ jnp.ones((2, 2))

    p = jnp.array([1.0, least])
    with pytest.raises(ValueError, match="the maximum of the quantized relu at site"):
        snnjax.convert(fn, p, jnp.ones((8, 2)), steps=4, recipe=recipe)


@pytest.mark.parametrize(
    "activation", [lambda x, m: quantized_relu(x, m, LEVELS), snnjax.clipped_relu]
)
def test_the_gradient_of_a_maximum_is_summed_in_float32(activation):
    x = jnp.full(70_000, 2.0, jnp.float16)  # whose largest number is 65504

    def loss(maximum):
        return activation(x, maximum).astype(jnp.float32).sum()

    assert jax.grad(loss)(jnp.float32(1.0)) == 70_000


def test_a_maximum_per_channel_keeps_to_strict_ranks():
    x, maxima = jnp.ones((2, 3)), jnp.array([0.5, 1.0, 2.0])
    with jax.numpy_rank_promotion("raise"):
        y = quantized_relu(x, maxima, LEVELS)
        np.testing.assert_array_equal(snnjax.clipped_relu(x, maxima)[0], [0.5, 1, 1])
    np.testing.assert_array_equal(y[0], [0.5, 1, 1])


@pytest.mark.parametrize("maximum", [6, 6.0, np.int64(6), np.float32(6)])
@pytest.mark.parametrize(
    "activation", [lambda x, m: quantized_relu(x, m, LEVELS), snnjax.clipped_relu]
)
def test_a_number_is_a_maximum_where_the_batch_is_last_too(activation, maximum):
    def fn(w, x):
        return activation(w @ x.T, maximum).T @ jnp.ones((4, 2))

    (site,) = snnjax.sites(fn, jnp.ones((4, 5)), jnp.ones((8, 5)))
    assert site.shape == (4,)
