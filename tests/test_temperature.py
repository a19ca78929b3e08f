"""The temperature: it moves where the surrogate gradient points better."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, outputs_of, relu

import snnjax
from experiments.running.temperature import (
    choose_temperature,
    cooled,
    cosine,
    finite_differences,
    temperatures,
    with_temperatures,
)

# ------------------------------------------------- a problem whose answer is known
#
# One step, two neurons. Input x sweeps the potentials evenly; neuron k fires where
# x + w_k >= V_th, and a spike at x costs c_k(x). The true gradient is c_k at the
# threshold: 1 for both. Neuron 0 pays the same everywhere, so any surrogate of integral
# one is right for it. Neuron 1 pays cos(12 x): a wide surrogate averages that away, and
# only a narrow one, of high temperature, finds 1.

SWEEP = np.linspace(0, 2, 2001, dtype=np.float32)[:, None]  # potentials 0 .. 2 V_th
COST = np.concatenate([np.ones_like(SWEEP), np.cos(12 * (SWEEP - 1))], 1)
X = np.broadcast_to(SWEEP, COST.shape)


def shifted(params, x):
    return relu(x + params["w"][None])


@jax.jit
def loss_of_known(snn):
    return (snnjax.spiking(shifted, steps=1)(snn, X)[0] * COST).mean(0).sum()


def known(b):
    """The SNN of this problem with temperature b."""
    neuron = snnjax.integrate_and_fire(temperature=b)
    return snnjax.init(shifted, {"w": np.zeros(2, np.float32)}, X, model=neuron)


@functools.partial(jax.jit, static_argnames=("step", "change", "lowest"))
def choose_known(snn, *, step, change, lowest=0.1):
    return choose_temperature(
        loss_of_known, snn, ["w"], step=step, change=change, lowest=lowest
    )


def walk(b, count, **options):
    """The temperatures of so many choices, one after the other, from b."""
    snn = known(b)
    for _ in range(count):
        snn, cosines = choose_known(snn, **options)
        yield float(temperatures(snn)["w/relu"]), cosines


def test_finite_differences_find_the_true_gradient():
    def loss(w):
        return loss_of_known(dataclasses.replace(known(3.0), params={"w": w}))

    gradient = finite_differences(loss, jnp.zeros(2), step=0.02)
    # 2001 inputs over a range of 2: each unit of w moves half of them past V_th.
    np.testing.assert_allclose(gradient, 0.5, rtol=0.05)


def test_the_choice_walks_to_the_highest_cosine_and_stays():
    # A wide step, so that the best temperature is finite.
    options, b, path = {"step": 0.15, "change": 1.0}, 2.0, []
    for new, cosines in walk(b, 20, **options):
        assert new == b + (0, 1, -1)[int(np.argmax(cosines))]
        path.append(b := new)
    assert path[0] == 3.0 and path[-1] == path[-2]
    # From above it comes back to the same temperature.
    *_, (from_above, _) = walk(25.0, 10, **options)
    assert abs(from_above - b) <= 1 < 25 - b


def test_a_temperature_stays_above_its_bound():
    # Over so wide a step, cos(12 x) averages to nothing: the widest surrogate is best.
    *_, (lowest, _) = walk(0.5, 4, step=0.5, change=0.2, lowest=0.3)
    assert lowest == pytest.approx(0.3)


def test_a_cosine_is_that_of_the_angle():
    three, four = jnp.array([3.0]), jnp.array([4.0])
    for first, second in [(1e-12, 1), (1, 1e12), (1e12, 1e12)]:
        a = [first * three, first * four]
        b = [second * four, second * three]
        np.testing.assert_allclose(cosine(a, b), 0.96, rtol=1e-6)
    assert cosine([0 * three, 0 * four], [four, three]) == 0


def test_differences_are_divided_by_the_distance_that_rounding_leaves():
    w = jnp.array([[0.1, 0.7], [-0.3, 0.0]])
    slopes = np.array([[1.0, -2.0], [0.5, 4.0]], np.float32)

    def loss(w):
        return (slopes * w).sum()

    for step in (0.5, 0.01):
        gradient = finite_differences(loss, w, step=step)
        np.testing.assert_allclose(gradient, slopes, rtol=1e-3)
    # So small a step moves no weight, and nothing is divided by the distance 0.
    assert not finite_differences(loss, w[0], step=1e-10).any()


# -------------------------------------------------------------- deeper networks

DENSE = NETWORKS["dense"]
DEEP = snnjax.init(*DENSE[:3], model=snnjax.lif(temperature=3.0, threshold=0.5))


def loss_of_deep(snn):
    return (snnjax.spiking(DENSE.fn, steps=4)(snn, DENSE.x) ** 2).mean()


def test_temperatures_may_differ_per_channel():
    by_channel = dict.fromkeys(DEEP.neurons, jnp.full(6, 3.0))

    def choose(snn):
        return choose_temperature(
            loss_of_deep, snn, ["w1", "b1"], step=0.25, change=0.5, lowest=0.1
        )

    snns = DEEP, with_temperatures(DEEP, by_channel)
    runs = [functools.partial(choose, snn) for snn in snns]
    (one, cosines), (several, cosines_of_several) = outputs_of(runs)
    np.testing.assert_allclose(cosines, cosines_of_several, atol=1e-5)
    assert len({float(c) for c in cosines}) == 3
    for name, b in temperatures(one).items():
        np.testing.assert_array_equal(temperatures(several)[name], np.full(6, b))


# ---------------------------------------------------------------------- schedule


def test_each_site_cools_by_its_own_factor_whatever_the_order_of_its_name():
    def fn(params, x):
        hidden = relu(x @ params["second"])
        return relu(hidden @ params["first"])

    params = {"first": jnp.eye(2), "second": jnp.eye(2)}
    snn = snnjax.init(fn, params, jnp.eye(2), model=snnjax.lif(temperature=1.0))
    starts = {"second/relu": 1.0, "first/relu": 4.0}
    assert list(starts) == list(snn.neurons)
    snn = with_temperatures(
        snn, {name: jnp.asarray(start) for name, start in starts.items()}
    )

    @jax.jit  # which sorts the sites by name
    def cool(snn):
        return cooled(snn, starts, end=16.0, steps=4)

    middle = cool(cool(snn))
    assert list(middle.neurons) != list(starts)
    expected = {"second/relu": 4.0, "first/relu": 8.0}
    assert temperatures(middle) == pytest.approx(expected)
    assert temperatures(cool(cool(middle))) == pytest.approx(dict.fromkeys(starts, 16))


def test_a_temperature_within_another_model_is_found_and_changed():
    model = snnjax.neurons.Recurrent(snnjax.lif(temperature=2.0))
    snn = snnjax.init(*DENSE[:3], model=model, key=jax.random.key(0))
    assert temperatures(snn) == dict.fromkeys(snn.neurons, 2.0)
    changed = with_temperatures(snn, dict.fromkeys(snn.neurons, 3.0))
    assert temperatures(changed) == dict.fromkeys(snn.neurons, 3.0)
