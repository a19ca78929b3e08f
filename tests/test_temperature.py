"""The temperature: it moves where the surrogate gradient points better."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import NETWORKS, compiled, relu

import snnjax
from snnjax.training import (
    choose_temperature,
    finite_differences,
    temperature,
    temperatures,
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

SWEEP = np.linspace(0, 2, 2001, dtype=np.float32)[:, None]  # potentials 0 .. 2 V_th
COST = np.concatenate([np.ones_like(SWEEP), np.cos(12 * (SWEEP - 1))], 1)


def shifted(params, x):
    return relu(x + params["w"][None])


def known(b):
    """The SNN of this problem with temperature b, and its loss."""
    params = {"w": np.zeros(2, np.float32)}
    x = np.broadcast_to(SWEEP, COST.shape)
    neuron = snnjax.integrate_and_fire(temperature=b)
    snn = snnjax.init(shifted, params, x, model=neuron)
    simulate = snnjax.spiking(shifted, steps=1)

    @jax.jit
    def loss(snn):
        return (simulate(snn, x)[0] * COST).mean(0).sum()

    return snn, loss


def test_finite_differences_find_the_true_gradient():
    snn, loss = known(3.0)
    found = finite_differences(loss, snn, ["w"], step=0.02)["w"]
    # 2001 inputs over a range of 2: each unit of w moves half of them past V_th.
    np.testing.assert_allclose(found, 0.5, rtol=0.05)


def test_the_choice_walks_to_the_highest_cosine_and_stays():
    snn, loss = known(2.0)
    # A wide step, so that the best temperature is finite.
    differences = finite_differences(loss, snn, ["w"], step=0.15)
    choose = jax.jit(lambda snn: choose_temperature(loss, snn, differences, change=1.0))
    changes = []
    for _ in range(20):
        choice = choose(snn)
        best = int(np.argmax(choice.cosines))
        assert choice.change == (0, 1, -1)[best]
        expected = temperatures(snn)["w/relu"] + choice.change
        snn = choice.snn
        assert temperatures(snn)["w/relu"] == expected
        changes.append(float(choice.change))
    assert changes[0] == 1.0 and changes[-1] == 0.0
    # From above it comes back to the same temperature.
    best, snn = float(temperatures(snn)["w/relu"]), known(25.0)[0]
    for _ in range(10):
        snn = choose(snn).snn
    assert abs(float(temperatures(snn)["w/relu"]) - best) <= 1 < 25 - best


def test_a_temperature_stays_above_its_bound():
    differences = {"w": jnp.array([1.0, -1.0])}  # asks for an ever wider surrogate
    snn, loss = known(0.5)
    choose = jax.jit(
        lambda snn: choose_temperature(loss, snn, differences, change=0.2, lowest=0.3)
    )
    for _ in range(4):
        snn = choose(snn).snn
    assert temperatures(snn)["w/relu"] == pytest.approx(0.3)


def test_a_cosine_is_that_of_the_angle():
    a, b = [jnp.array([3.0]), jnp.array([4.0])], [jnp.array([4.0]), jnp.array([3.0])]
    for first, second in [(1e-12, 1), (1, 1e12), (1e12, 1e12)]:
        scaled = [first * part for part in a], [second * part for part in b]
        np.testing.assert_allclose(temperature._cosine(*scaled), 0.96, rtol=1e-6)
    assert temperature._cosine([0 * part for part in a], b) == 0
    # In bfloat16 it would be rounded to eight bits, which tell no candidates apart.
    weights, noise = jax.random.normal(jax.random.key(0), (2, 1000), jnp.bfloat16)
    pair = weights, weights + noise / 4
    exact = [np.asarray(array, np.float64) for array in pair]
    expected = np.dot(*exact) / np.prod([np.linalg.norm(array) for array in exact])
    found = temperature._cosine(*([array] for array in pair))
    assert found == pytest.approx(expected, abs=1e-5)


# -------------------------------------------------------------- deeper networks


def deep():
    net = NETWORKS["dense"]
    neuron = snnjax.lif(temperature=3.0, threshold=0.5)
    snn = snnjax.init(*net[:3], model=neuron)
    simulate = snnjax.spiking(net.fn, steps=STEPS)
    return snn, jax.jit(lambda snn: (simulate(snn, net.x) ** 2).mean())


class Bare(NamedTuple):
    """Parameters of a model without a temperature."""

    threshold: float


PLAIN = snnjax.init(*NETWORKS["dense"][:3])
DEEP, LOSS = deep()


def test_finite_differences_are_those_of_each_coordinate():
    paths = ["w1", "b1"]
    differences = finite_differences(LOSS, DEEP, paths, step=0.25, at_once=5)
    assert {name for name, leaf in differences.items() if leaf is not None} == set(
        paths
    )
    assert differences["w1"].shape == (4, 6) and np.any(differences["w1"])
    for path, i in (("w1", (2, 3)), ("b1", (4,))):
        sides = []
        for h in (0.25, -0.25):
            shifted_array = np.array(DEEP.params[path])
            shifted_array[i] += h
            params = DEEP.params | {path: shifted_array}
            sides.append(float(LOSS(dataclasses.replace(DEEP, params=params))))
        expected = (sides[0] - sides[1]) / 0.5
        assert float(differences[path][i]) == pytest.approx(expected, abs=1e-5)


def test_two_leaves_whose_paths_print_alike_are_two():
    params = {"l/a": jnp.ones((2, 2)), "l": {"a": jnp.ones(3)}}
    snn = dataclasses.replace(DEEP, params=params)

    def loss(snn):
        return 2 * snn.params["l/a"].sum() + 5 * snn.params["l"]["a"].sum()

    found = finite_differences(loss, snn, ["l/a"], step=0.5)
    leaves = [(found["l/a"], 2.0, (2, 2)), (found["l"]["a"], 5.0, (3,))]
    selected = [each for each in leaves if each[0] is not None]
    assert selected
    for leaf, slope, shape in selected:
        np.testing.assert_allclose(leaf, np.full(shape, slope))
    choice = choose_temperature(loss, snn, found, change=1.0)
    np.testing.assert_allclose(choice.cosines, 1.0, rtol=1e-6)


def test_temperatures_are_floating_and_may_differ_per_channel():
    found = with_temperatures(DEEP, {"w1/relu": 3}).neurons["w1/relu"].temperature
    assert found == 3 and jnp.issubdtype(found.dtype, jnp.floating)
    channels = with_temperatures(DEEP, dict.fromkeys(DEEP.neurons, np.full(6, 3, "f4")))
    differences = {**dict.fromkeys(DEEP.params), "w1": np.ones((4, 6), "f4")}
    one, each = (
        choose_temperature(LOSS, snn, differences, change=0.5)
        for snn in (DEEP, channels)
    )
    np.testing.assert_allclose(one.cosines, each.cosines, atol=1e-5)


def test_a_wrong_argument_is_refused():
    counted = dataclasses.replace(DEEP, params={**DEEP.params, "n": jnp.arange(3)})
    w1 = {**dict.fromkeys(DEEP.params), "w1": jnp.ones((4, 6))}
    turned = w1 | {"w1": jnp.ones((6, 4))}
    differences = lambda *args, step=0.1, **kw: finite_differences(  # noqa: E731
        LOSS, *args, step=step, **kw
    )
    choose = lambda g, change=0.1, snn=DEEP: choose_temperature(  # noqa: E731
        LOSS, snn, g, change=change
    )
    wrong = {
        r"lif\(temperature=3.0\)": lambda: temperatures(PLAIN),
        "neurons of site 'w1/relu' have no parameter temp": lambda: with_temperatures(
            dataclasses.replace(PLAIN, neurons={"w1/relu": Bare(1.0)}), {"w1/relu": 1.0}
        ),
        r"no site \['conv'\]; sites: \['w1/relu', 'w2": lambda: with_temperatures(
            DEEP, {"conv": 1.0}
        ),
        "temperatures are a float; allowed: site name": lambda: with_temperatures(
            DEEP, 3.0
        ),
        "of site 'w1/relu' is -1.0; allowed: > 0": lambda: with_temperatures(
            DEEP, {"w1/relu": -1.0}
        ),
        "of site 'w1/relu' is 'steep'; allowed: > 0": lambda: with_temperatures(
            DEEP, {"w1/relu": "steep"}
        ),
        r"paths is 'w1'; allowed: several, as \['w1'": lambda: differences(DEEP, "w1"),
        r"no parameter \['kernel'\]; parameters: \['b1', ": lambda: differences(
            DEEP, ["kernel"]
        ),
        "step is 0.0; allowed: > 0": lambda: differences(DEEP, ["w1"], step=0.0),
        "at_once is 0; allowed": lambda: differences(DEEP, ["w1"], at_once=0),
        "allowed: an SNN": lambda: differences({"w1": 1.0}, ["w1"]),
        "'n' is not floating point": lambda: differences(counted, ["n"]),
        "change is 0.0": lambda: choose(w1, change=0.0),
        "change is .*inf.*; allowed: > 0, and finite": lambda: choose(w1, jnp.inf),
        r"of 'w1' have shape \(6, 4\), but the weights have": lambda: choose(turned),
        "not a tree like snn.params": lambda: choose({"w1": jnp.ones((4, 6))}),
    }
    for message, call in wrong.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_differences_are_exact_where_a_type_rounds_the_step(dtype):
    w = jnp.array([0.1, 0.7, -0.3, 0.0], dtype)
    slopes = np.array([1.0, -2.0, 0.5, 4.0], np.float32)
    snn = dataclasses.replace(DEEP, params={"w": w})

    def loss(snn):
        return (slopes * snn.params["w"].astype(jnp.float32)).sum()

    for step in (0.5, 0.01):
        found = finite_differences(loss, snn, ["w"], step=step)
        np.testing.assert_allclose(found["w"], slopes, rtol=1e-3)
    if dtype == jnp.bfloat16:  # a step that moves no weight but the zero
        found = finite_differences(loss, snn, ["w"], step=1e-5)
        np.testing.assert_allclose(found["w"], [0, 0, 0, 4], rtol=1e-2)


def test_differences_take_the_paths_and_types_of_any_library():
    layer = nnx.Linear(
        4, 3, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    graph, state = nnx.split(layer)
    x = jnp.ones((2, 4), jnp.bfloat16)

    def fn(state, x):
        return jax.nn.relu(nnx.merge(graph, state)(x))

    snn = snnjax.init(fn, state, x, model=snnjax.lif(temperature=3.0))
    paths = snnjax.sites(fn, state, x)[0].parameters
    simulate = compiled(fn, steps=2)

    def loss(snn):
        assert {leaf.dtype for leaf in jax.tree.leaves(snn.params)} == {x.dtype}
        return simulate(snn, x).sum()

    found = finite_differences(loss, snn, paths, step=0.1)
    assert len(jax.tree.leaves(found)) == len(paths)
    choice = choose_temperature(loss, snn, found, change=0.5)
    assert np.isfinite(np.asarray(choice.cosines, np.float32)).all()
