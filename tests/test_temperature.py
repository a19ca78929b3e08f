"""Learning the temperature: it moves where the surrogate gradient points better."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import NETWORKS, relu

import snnjax
from snnjax.surrogate import relaxed_dspike
from snnjax.training import (
    alignment,
    choose_temperature,
    finite_differences,
    random_differences,
    relaxed_gradient,
    temperature,
    with_temperatures,
)

STEPS = 4


# ------------------------------------------------- a problem whose answer is known
#
# One step, two neurons. Input x sweeps the potentials evenly; neuron k fires where
# x + w_k >= V_th, and a spike at x costs c_k(x). The true gradient is c_k at the
# threshold: 1 for both. Neuron 0 pays the same everywhere, so any surrogate of integral
# one is right for it. Neuron 1 pays cos(12 x): a wide surrogate averages that away, and
# only a narrow one, of high temperature, finds 1.

SWEEP = jnp.linspace(0, 2, 2001)[:, None]  # potentials 0 .. 2 V_th
COST = jnp.concatenate([jnp.ones_like(SWEEP), jnp.cos(12 * (SWEEP - 1))], 1)


def shifted(params, x):
    return relu(x + params["w"][None])


def known(b):
    """The SNN of this problem with temperature b, and its loss."""
    params = {"w": jnp.zeros((2,))}
    x = jnp.broadcast_to(SWEEP, COST.shape)
    neuron = snnjax.integrate_and_fire(temperature=b)
    snn = snnjax.init(shifted, params, x, model=neuron)
    simulate = snnjax.spiking(shifted, steps=1)

    def loss(snn):
        return (simulate(snn, x)[0] * COST).mean(0).sum()

    return snn, loss


def align(loss, differences, snn):
    return alignment(loss, snn, differences)


def cosine(b, differences):
    snn, loss = known(b)
    return float(alignment(loss, snn, differences).cosine)


def every_cosine(temperatures, differences):
    """The same for many temperatures at once."""
    snn, loss = known(3.0)

    def at(b):
        moved = with_temperatures(snn, {"w/relu": b})
        return alignment(loss, moved, differences).cosine

    return jax.jit(jax.vmap(at))(jnp.asarray(temperatures, jnp.float32))


def truth(step=0.02):
    snn, loss = known(3.0)
    return finite_differences(loss, snn, ["w"], step=step)


def test_finite_differences_find_the_true_gradient():
    found = truth()["w"]
    # 2001 inputs over a range of 2: each unit of w moves half of them past V_th.
    np.testing.assert_allclose(found, 0.5, rtol=0.05)


def test_the_gradient_of_the_cosine_is_its_difference():
    differences = truth()
    for b in (0.5, 2.0, 6.0):
        snn, loss = known(b)
        found = alignment(loss, snn, differences).gradient["w/relu"]
        h = 0.05
        expected = (cosine(b + h, differences) - cosine(b - h, differences)) / (2 * h)
        assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_an_angle_does_not_depend_on_the_sizes(size):
    a, b = jnp.array([3.0, 4.0]), jnp.array([4.0, 3.0])
    for sizes in [(size, 1), (1, size), (size, size)]:
        found = temperature._angle(a * sizes[0], b * sizes[1])
        np.testing.assert_allclose(found, 0.96, rtol=1e-6)
    assert temperature._angle(0 * a, size * b) == 0


def test_a_cosine_of_bfloat16_weights_is_computed_in_float32():
    """In bfloat16 it would be rounded to eight bits, which tell no candidates apart."""
    weights, noise = jax.random.normal(jax.random.key(0), (2, 1000), jnp.bfloat16)
    differences = weights + noise / 4
    plain = snnjax.init(
        lambda p, x: jax.nn.relu(x @ p["u"]),
        {"u": jnp.ones((1, 1)), "w": weights},
        jnp.ones((1, 1)),
        model=snnjax.lif(temperature=3.0),
    )

    def loss(snn):
        return (snn.params["w"].astype(jnp.float32) ** 2).sum() / 2

    cosine, _ = alignment(loss, plain, {"w": differences})
    exact = [np.asarray(array, np.float64) for array in (weights, differences)]
    expected = np.dot(*exact) / np.prod([np.linalg.norm(array) for array in exact])
    assert cosine == pytest.approx(expected, abs=1e-5)


def test_ascent_moves_the_temperature_to_the_highest_cosine():
    differences = truth(step=0.15)  # a wider step: the best temperature is finite
    candidates = np.arange(1.0, 20.0, 0.5)
    cosines = every_cosine(candidates, differences)
    best = candidates[int(np.argmax(cosines))]
    assert candidates[0] < best < candidates[-1]
    for start in (2.0, 18.0):
        snn, loss = known(start)
        aligned = jax.jit(functools.partial(align, loss, differences))
        for _ in range(60):
            b = snnjax.training.temperatures(snn)["w/relu"]
            slope = aligned(snn).gradient["w/relu"]
            snn = with_temperatures(snn, {"w/relu": b + 100 * slope})
        assert b == pytest.approx(best, abs=0.6)
        assert aligned(snn).cosine > cosine(start, differences)


def test_the_paper_s_choice_walks_uphill_and_stays():
    differences = truth(step=0.15)
    snn, loss = known(2.0)
    choose = jax.jit(lambda snn: choose_temperature(loss, snn, differences, change=1.0))
    walked = []
    for _ in range(20):
        snn, change, cosines = choose(snn)
        walked.append(float(change))
        assert cosines[int(np.argmax(cosines))] >= cosines[0]
    assert walked[0] == 1.0 and walked[-1] == 0.0


def test_a_temperature_stays_above_its_bound():
    differences = {"w": jnp.array([1.0, -1.0])}  # asks for an ever wider surrogate
    snn, loss = known(0.5)
    for _ in range(4):
        snn, _, _ = choose_temperature(loss, snn, differences, change=0.2, lowest=0.3)
    assert snnjax.training.temperatures(snn)["w/relu"] == pytest.approx(0.3)


def test_the_relaxed_gradient_is_that_of_the_soft_network():
    snn, _ = known(2.0)
    x = jnp.broadcast_to(SWEEP, COST.shape)
    simulate = snnjax.spiking(shifted, steps=1, surrogate=relaxed_dspike)

    def loss(snn):
        return (simulate(snn, x)[0] * COST * SWEEP).mean(0).sum()

    def at(b):
        return loss(with_temperatures(snn, {"w/relu": b}))

    found = float(relaxed_gradient(loss, snn)["w/relu"])
    assert found == pytest.approx(float(at(2.1) - at(1.9)) / 0.2, rel=0.02)
    assert abs(found) > 1e-3


# -------------------------------------------------------------- deeper networks


def deep(temperature=3.0):
    net = NETWORKS["dense"]
    neuron = snnjax.lif(temperature=temperature, threshold=0.5)
    snn = snnjax.init(*net[:3], model=neuron)
    simulate = snnjax.spiking(net.fn, steps=STEPS)

    def loss(snn):
        return (simulate(snn, net.x) ** 2).mean()

    return snn, loss


def test_finite_differences_are_those_of_each_coordinate():
    snn, loss = deep()
    found = finite_differences(loss, snn, ["w1", "b1"], step=0.25, at_once=5)
    for path, i in (("w1", (2, 3)), ("b1", (4,))):

        def at(h, path=path, i=i):
            params = snn.params | {path: snn.params[path].at[i].add(h)}
            return loss(dataclasses.replace(snn, params=params))

        expected = float(at(0.25) - at(-0.25)) / 0.5
        assert float(found[path][i]) == pytest.approx(expected, abs=1e-5)
    assert found["w1"].shape == (4, 6) and jnp.any(found["w1"] != 0)


def test_random_differences_are_slopes_along_their_directions():
    """Of a smooth loss they agree with its gradient, whatever the directions."""
    snn, _ = deep()
    target = jax.random.normal(jax.random.key(1), snn.params["w1"].shape)

    def smooth(snn):
        return (snn.params["w1"] * target).sum() + (snn.params["w2"] ** 2).sum()

    found = random_differences(
        smooth, snn, jax.random.key(0), step=0.1, directions=5, paths=["w2", "w1"]
    )
    gradient = {"w1": target, "w2": 2 * snn.params["w2"]}
    assert temperature._cosine(gradient, found) == pytest.approx(1, abs=1e-4)
    wrong = {"w1": -target, "w2": -2 * snn.params["w2"]}
    assert temperature._cosine(wrong, found) == pytest.approx(-1, abs=1e-4)
    assert jnp.std(found.slopes) > 0.1


def test_every_site_has_its_own_gradient():
    snn, loss = deep()
    key = jax.random.key(0)
    differences = random_differences(loss, snn, key, step=0.2, directions=64)
    found = jax.jit(lambda s: alignment(loss, s, differences))(snn)
    assert set(found.gradient) == {"relu", "w2/relu"}
    assert all(slope != 0 for slope in found.gradient.values())
    moved = {
        site: b + 0.5 * jnp.sign(found.gradient[site])
        for site, b in snnjax.training.temperatures(snn).items()
    }
    better = alignment(loss, with_temperatures(snn, moved), differences)
    assert better.cosine > found.cosine


def test_a_temperature_may_differ_per_channel():
    snn, loss = deep()
    wide = {site: jnp.full(6, 3.0) for site in snnjax.training.temperatures(snn)}
    channels = with_temperatures(snn, wide)
    differences = finite_differences(loss, snn, ["w1"], step=0.2)
    one = alignment(loss, snn, differences)
    each = alignment(loss, channels, differences)
    assert each.cosine == pytest.approx(float(one.cosine), abs=1e-5)
    for site, slope in one.gradient.items():
        assert each.gradient[site].shape == (6,)
        assert each.gradient[site].sum() == pytest.approx(float(slope), abs=1e-5)


def test_where_a_gradient_vanishes_the_cosine_is_zero():
    snn, loss = deep()
    found = alignment(loss, snn, {"w1": jnp.zeros((4, 6))})
    assert found.cosine == 0
    assert all(jnp.isfinite(slope) for slope in found.gradient.values())


PLAIN = snnjax.init(*NETWORKS["dense"][:3])
DEEP, LOSS = deep()
FLAT = dataclasses.replace(DEEP, params={"b1": jnp.ones(6)})
COUNTED = dataclasses.replace(DEEP, params={**DEEP.params, "n": jnp.arange(3)})


def test_a_whole_temperature_has_a_gradient_too():
    found = with_temperatures(DEEP, {"relu": 3}).neurons["relu"].temperature
    assert found == 3 and jnp.issubdtype(found.dtype, jnp.floating)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: snnjax.training.temperatures(PLAIN), "lif\\(temperature=3.0\\)"),
        (
            lambda: with_temperatures(DEEP, {"conv": 1.0}),
            "no site \\['conv'\\]; sites: \\['relu', 'w2/relu'\\]",
        ),
        (
            lambda: with_temperatures(DEEP, 3.0),
            "temperatures are a float; allowed: site name -> temperature",
        ),
        (
            lambda: with_temperatures(DEEP, {"relu": -1.0}),
            "temperature of site 'relu' is -1.0; allowed: > 0",
        ),
        (
            lambda: with_temperatures(DEEP, {"relu": "steep"}),
            "temperature of site 'relu' is 'steep'; allowed: > 0",
        ),
        (
            lambda: finite_differences(LOSS, DEEP, "w1", step=0.1),
            "paths is 'w1'; allowed: several, as \\['w1'\\]",
        ),
        (
            lambda: finite_differences(LOSS, DEEP, ["kernel"], step=0.1),
            "no parameter \\['kernel'\\]; parameters: \\['b1', ",
        ),
        (
            lambda: finite_differences(LOSS, DEEP, ["w1"], step=0.0),
            "step is 0.0; allowed: > 0",
        ),
        (
            lambda: choose_temperature(
                LOSS, DEEP, {"w1": jnp.ones((4, 6))}, change=0.0
            ),
            "change is 0.0",
        ),
        (
            lambda: choose_temperature(
                LOSS, DEEP, {"w1": jnp.ones((4, 6))}, change=jnp.inf
            ),
            "change is .*inf.*; allowed: > 0, and finite",
        ),
        (
            lambda: alignment(LOSS, DEEP, {"w1": jnp.ones((6, 4))}),
            r"differences of 'w1' have shape \(6, 4\), but the weights have \(4, 6\)",
        ),
        (
            lambda: finite_differences(LOSS, DEEP, ["w1"], step=1.0, at_once=0),
            "at_once is 0; allowed",
        ),
        (
            lambda: finite_differences(LOSS, {"w1": 1.0}, ["w1"], step=1.0),
            "allowed: an SNN",
        ),
        (
            lambda: random_differences(
                LOSS, DEEP, jax.random.key(0), step=1.0, directions=2.5
            ),
            "directions is 2.5; allowed: a whole number",
        ),
        (
            lambda: random_differences(LOSS, FLAT, jax.random.key(0), step=1.0),
            "params have no kernel .*; allowed: the paths of others",
        ),
        (
            lambda: finite_differences(LOSS, COUNTED, ["n"], step=1.0),
            "parameter 'n' is no weight",
        ),
    ],
)
def test_a_wrong_argument_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_relaxed_gradient_of_hard_spikes_is_refused():
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3], model=snnjax.lif(temperature=3.0))
    simulate = snnjax.spiking(net.fn, steps=4)
    with pytest.raises(ValueError, match="depends on no temperature"):
        relaxed_gradient(lambda snn: (simulate(snn, net.x) ** 2).sum(), snn)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("step", [0.5, 0.01])
def test_differences_are_exact_where_a_type_rounds_the_step(dtype, step):
    w = jnp.array([0.1, 0.7, -0.3, 0.0], dtype)
    slopes = jnp.array([1.0, -2.0, 0.5, 4.0])
    found = finite_differences(
        lambda snn: (slopes * snn.params["w"].astype(jnp.float32)).sum(),
        dataclasses.replace(DEEP, params={"w": w}),
        ["w"],
        step=step,
    )
    np.testing.assert_allclose(found["w"], slopes, rtol=1e-3)


def test_a_weight_that_a_step_does_not_move_has_no_difference():
    snn = dataclasses.replace(DEEP, params={"w": jnp.ones(2, jnp.bfloat16)})
    found = finite_differences(
        lambda snn: snn.params["w"].astype(jnp.float32).sum(), snn, ["w"], step=1e-4
    )
    np.testing.assert_array_equal(found["w"], 0)


def test_differences_take_the_paths_and_types_of_any_library():
    layer = nnx.Linear(
        4, 3, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    graph, state = nnx.split(layer)
    x = jnp.ones((2, 4), jnp.bfloat16)

    def fn(state, x):
        return jax.nn.relu(nnx.merge(graph, state)(x))

    snn = snnjax.init(fn, state, x)
    paths = snnjax.sites(fn, state, x)[0].parameters

    def loss(snn):
        assert {leaf.dtype for leaf in jax.tree.leaves(snn.params)} == {x.dtype}
        return snnjax.spiking(fn, steps=2)(snn, x).sum()

    assert set(finite_differences(loss, snn, paths, step=0.1)) == set(paths)
    found = random_differences(loss, snn, jax.random.key(0), step=0.1)
    assert found.paths == ("kernel",)
