"""The temperature: it moves where the surrogate gradient points better."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import NETWORKS, outputs_of, relu

import snnjax
from snnjax._trees import paths_of
from snnjax.training import choose_temperature, finite_differences, temperatures
from snnjax.training.temperature import cosine

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
def choose_known(snn, **options):
    return choose_temperature(loss_of_known, snn, ["w"], **options)


def walk(b, count, **options):
    """The temperatures of so many choices, one after the other, from b."""
    snn = known(b)
    for _ in range(count):
        snn, cosines = choose_known(snn, **options)
        yield float(temperatures(snn)["w/relu"]), cosines


def test_finite_differences_find_the_true_gradient():
    def loss(w):
        return loss_of_known(dataclasses.replace(known(3.0), params={"w": w}))

    found = finite_differences(loss, np.zeros(2, np.float32), step=0.02)
    # 2001 inputs over a range of 2: each unit of w moves half of them past V_th.
    np.testing.assert_allclose(found, 0.5, rtol=0.05)


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
    a, b = [jnp.array([3.0]), jnp.array([4.0])], [jnp.array([4.0]), jnp.array([3.0])]
    for first, second in [(1e-12, 1), (1, 1e12), (1e12, 1e12)]:
        scaled = [first * part for part in a], [second * part for part in b]
        np.testing.assert_allclose(cosine(*scaled), 0.96, rtol=1e-6)
    assert cosine([0 * part for part in a], b) == 0
    # In bfloat16 it would be rounded to eight bits, which tell no candidates apart.
    weights, noise = jax.random.normal(jax.random.key(0), (2, 1000), jnp.bfloat16)
    pair = weights, weights + noise / 4
    exact = [np.asarray(array, np.float64) for array in pair]
    expected = np.dot(*exact) / np.prod([np.linalg.norm(array) for array in exact])
    assert cosine(*([array] for array in pair)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_differences_are_exact_where_a_type_rounds_the_step(dtype):
    w = jnp.array([[0.1, 0.7], [-0.3, 0.0]], dtype)
    slopes = np.array([[1.0, -2.0], [0.5, 4.0]], np.float32)

    def loss(w):
        return (slopes * w.astype(jnp.float32)).sum()

    for step in (0.5, 0.01):
        found = finite_differences(loss, w, step=step)
        np.testing.assert_allclose(found, slopes, rtol=1e-3)
    if dtype == jnp.bfloat16:  # a step that moves no weight but the zero
        found = finite_differences(loss, w, step=1e-5)
        np.testing.assert_allclose(found, [[0, 0], [0, 4]], rtol=1e-2)


# -------------------------------------------------------------- deeper networks

DENSE = NETWORKS["dense"]
DEEP = snnjax.init(*DENSE[:3], model=snnjax.lif(temperature=3.0, threshold=0.5))


def loss_of_deep(snn):
    return (snnjax.spiking(DENSE.fn, steps=4)(snn, DENSE.x) ** 2).mean()


def test_temperatures_may_differ_per_channel():
    options = {"step": 0.25, "change": 0.5}
    channels = {
        name: params._replace(temperature=jnp.full(6, 3.0))
        for name, params in DEEP.neurons.items()
    }
    choose = functools.partial(choose_temperature, loss_of_deep, paths=["w1", "b1"])
    runs = [
        functools.partial(choose, snn, **options)
        for snn in (DEEP, dataclasses.replace(DEEP, neurons=channels))
    ]
    (one, cosines), (each, others) = outputs_of(runs)
    np.testing.assert_allclose(cosines, others, atol=1e-5)
    assert len({float(c) for c in cosines}) == 3
    for name, b in temperatures(one).items():
        np.testing.assert_array_equal(temperatures(each)[name], np.full(6, b))


def test_two_leaves_whose_paths_print_alike_are_two():
    params = {"l/a": jnp.ones((2, 2)), "l": {"a": jnp.ones(3)}}
    snn = dataclasses.replace(DEEP, params=params)

    def loss(snn):  # a gradient of both leaves, of which one is chosen
        return 2 * snn.params["l/a"].sum() + 5 * snn.params["l"]["a"].sum()

    choose = functools.partial(choose_temperature, loss, snn, step=0.5, change=1.0)
    runs = [functools.partial(choose, paths=[path]) for path in paths_of(params)]
    for _, cosines in outputs_of(runs):
        np.testing.assert_allclose(cosines, 1.0, rtol=1e-6)


def test_a_choice_takes_the_paths_and_types_of_any_library():
    layer = nnx.Linear(
        4, 3, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    graph, state = nnx.split(layer)
    x = jnp.ones((2, 4), jnp.bfloat16)

    def fn(state, x):
        return jax.nn.relu(nnx.merge(graph, state)(x))

    snn = snnjax.init(fn, state, x, model=snnjax.lif(temperature=3.0))
    paths = snnjax.sites(fn, state, x)[0].parameters

    def loss(snn):
        assert {leaf.dtype for leaf in jax.tree.leaves(snn.params)} == {x.dtype}
        return snnjax.spiking(fn, steps=2)(snn, x).sum()

    choose = functools.partial(choose_temperature, step=0.1, change=0.5)
    [(_, cosines)] = outputs_of([lambda: choose(loss, snn, paths)])
    assert np.isfinite(np.asarray(cosines, np.float32)).all()


COUNTED = dataclasses.replace(DEEP, params={**DEEP.params, "n": jnp.arange(3)})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"snn": snnjax.init(*DENSE[:3])}, r"lif\(temperature=3.0\)"),
        ({"snn": {"w1": 1.0}}, "allowed: an SNN"),
        ({"paths": "w1"}, r"paths is 'w1'; allowed: several, as \['w1'"),
        (
            {"paths": ["kernel"]},
            r"no parameter \['kernel'\]; floating parameters: \['b",
        ),
        ({"snn": COUNTED, "paths": ["n"]}, r"no parameter \['n'\]; floating param"),
        ({"paths": []}, "no parameter is named; floating parameters"),
        ({"step": 0.0}, "step is 0.0; allowed: > 0"),
        ({"change": 0.0}, "change is 0.0"),
        ({"change": jnp.inf}, "change is .*inf.*; allowed: > 0, and finite"),
        ({"lowest": 0.0}, "lowest is 0.0; allowed: > 0"),
    ],
)
def test_a_wrong_argument_is_refused(options, message):
    arguments = {"snn": DEEP, "paths": ["w1"], "step": 0.1, "change": 0.1} | options
    with pytest.raises(ValueError, match=message):
        choose_temperature(loss_of_deep, **arguments)
