"""Descent on an SNN: ranges, frozen leaves, and the distance from a teacher."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import snnjax
from snnjax import training
from snnjax.neurons.protocol import field

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(32, 6)), jnp.float32)
PARAMS = {
    "w": jnp.asarray(RNG.normal(size=(6, 8)) / 2, jnp.float32),
    "out": jnp.asarray(RNG.normal(size=(8, 3)) / 2, jnp.float32),
    "calls": jnp.array(3),
    "key": jax.random.key(1),
}


def network(p, x):
    return jax.nn.relu(x @ p["w"]) @ p["out"] + 0 * p["calls"]


def fresh(neuron=None):
    neuron = snnjax.lif(temperature=2.0) if neuron is None else neuron
    return snnjax.init(network, PARAMS, X, model=neuron)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    "neuron",
    [
        snnjax.lif(temperature=2.0),
        snnjax.neurons.synaptic(snnjax.lif()),
        snnjax.neurons.adaptive(snnjax.lif(), adaptation=0.3),
    ],
)
def test_no_update_takes_a_neuron_out_of_its_range(neuron, sign):
    floats, merge = training.differentiable(fresh(neuron))
    optimizer = training.optimizer(optax.sgd(1.0))
    state = optimizer.init(floats)
    slopes = jax.tree.map(lambda leaf: jnp.full_like(leaf, sign * 1e3), floats)
    update = jax.jit(optimizer.update)
    for _ in range(200):
        updates, state = update(slopes, state, floats)
        floats = optax.apply_updates(floats, updates)
    snn = merge(floats)
    snnjax.spiking(network, steps=2)(snn, X)  # raises where one is out of its range
    leak = float(field(snn.neurons["w/relu"], "leak"))
    if sign < 0:
        assert leak == 1
    else:
        assert 0 < leak < 0.1


def test_updates_within_the_ranges_stay_as_they_are():
    floats, _ = training.differentiable(fresh())
    slopes = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.01), floats)
    plain, bounded = optax.sgd(1.0), training.optimizer(optax.sgd(1.0))
    expected, _ = plain.update(slopes, plain.init(floats), floats)
    updates, _ = bounded.update(slopes, bounded.init(floats), floats)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    with pytest.raises(ValueError, match=r"got no params; allowed: update\(gradient"):
        training.within_ranges().update(slopes, optax.EmptyState())
    with pytest.raises(ValueError, match="snn is dict; allowed: an SNN of"):
        training.within_ranges().init({})


def test_a_weight_called_threshold_has_no_range():
    snn = snnjax.init(
        lambda p, x: jax.nn.relu(x @ p["threshold"]), {"threshold": jnp.eye(6)}, X
    )
    optimizer = training.optimizer(optax.sgd(1.0))
    slopes = jax.tree.map(jnp.ones_like, snn)
    updates, _ = optimizer.update(slopes, optimizer.init(snn), snn)
    np.testing.assert_array_equal(updates.params["threshold"], -np.ones((6, 6)))
    assert updates.neurons["threshold/relu"].threshold == -0.5


def test_a_range_is_part_of_the_message_of_what_leaves_it():
    snn = fresh()
    for field_name, number, message in (
        ("threshold", 0.0, "is 0.0; allowed: finite and > 0. In training, snnjax.tr"),
        ("leak", 1.5, "is 1.5; allowed: > 0 and <= 1. In training"),
        ("bias", np.nan, "is nan; allowed: finite. Perhaps a training diverged"),
    ):
        params = snn.neurons["w/relu"]._replace(**{field_name: jnp.float32(number)})
        broken = dataclasses.replace(snn, neurons={"w/relu": params})
        with pytest.raises(ValueError, match=message):
            snnjax.spiking(network, steps=2)(broken, X)


def test_descent_moves_what_its_rules_name_and_no_other_bit():
    snn = fresh()
    run = snnjax.spiking(network, steps=3)

    def loss(snn, x):
        return jnp.square(run(snn, x) - 1).mean()

    rules = {"weights": optax.adam(0.01), "threshold": optax.sgd(0.01)}
    init, step = training.descent(loss, rules)
    state, before = init(snn), loss(snn, X)
    step = jax.jit(step)
    trained = snn
    for _ in range(20):
        trained, state, value = step(trained, state, X)
    assert value < 0.9 * before
    moved = {
        name
        for name in ("threshold", "leak", "bias", "initial_potential", "temperature")
        if getattr(trained.neurons["w/relu"], name)
        != getattr(snn.neurons["w/relu"], name)
    }
    assert moved == {"threshold"}
    assert trained.params["calls"] == 3 and trained.params["calls"].dtype == jnp.int32
    assert (trained.params["key"] == PARAMS["key"]).all()
    assert (trained.params["w"] != PARAMS["w"]).any()


def test_the_same_start_gives_the_same_bits():
    run = snnjax.spiking(network, steps=2)
    init, step = training.descent(
        lambda snn, x: training.distillation(run(snn, x), network(PARAMS, x)),
        optax.adam(1e-2),
    )
    step, ends = jax.jit(step), []
    for _ in range(2):
        snn = snnjax.convert(network, PARAMS, X, steps=2)
        state = init(snn)
        for _ in range(5):
            snn, state, _ = step(snn, state, X)
        ends.append(training.differentiable(snn)[0])
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_aux_comes_back_beside_the_loss():
    run = snnjax.spiking(network, steps=2)

    def loss(snn, x):
        outputs = run(snn, x)
        return jnp.square(outputs).mean(), outputs.shape

    init, step = training.descent(loss, optax.sgd(0.1), has_aux=True)
    snn = fresh()
    _, _, (value, shape) = step(snn, init(snn), X)
    assert value >= 0 and shape == (2, 32, 3)


@pytest.mark.parametrize("has_aux, message", [(False, "a pair"), (True, "no pair")])
def test_a_loss_must_fit_has_aux(has_aux, message):
    snn = snnjax.init(lambda w, x: jax.nn.relu(x @ w), jnp.eye(2), jnp.eye(2))

    def loss(snn):
        value = snn.params.sum()
        return value if has_aux else (value, {})

    init, step = training.descent(loss, optax.sgd(0.1), has_aux=has_aux)
    with pytest.raises(
        ValueError, match=f"the loss returns ({message}).* with has_aux"
    ):
        step(snn, init(snn))


def test_a_threshold_that_no_target_wants_keeps_a_finite_gradient():
    params = {"w": jnp.eye(2), "out": jnp.eye(2), "calls": jnp.array(0)}
    x = jnp.abs(X[:, :2])
    snn = snnjax.convert(network, params, x, steps=4, recipe=snnjax.light("channel"))
    run = snnjax.spiking(network, steps=4)

    def loss(snn, x):
        return jnp.square(run(snn, x).mean(0) - x * jnp.array([0.0, 1.0])).mean()

    init, step = training.descent(loss, {"threshold": optax.adam(0.05)})
    state, step = init(snn), jax.jit(step)
    for _ in range(150):
        snn, state, _ = step(snn, state, x)
    assert jnp.isfinite(jax.grad(loss, allow_int=True)(snn, x).params["w"]).all()
    threshold = snn.neurons["w/relu"].threshold
    assert jnp.isfinite(threshold).all() and (threshold > 1e-6).all()


@pytest.mark.parametrize("rules", ["adam", optax.adam, {"weights": optax.adam}, {}])
def test_what_is_no_optimizer_is_refused(rules):
    with pytest.raises(ValueError, match="allowed: an optimizer of optax, e.g. optax"):
        training.descent(lambda snn: 0.0, rules)


def test_rules_that_no_leaf_fits_are_refused():
    init, _ = training.descent(lambda snn: 0.0, {"leek": optax.sgd(0.1)})
    with pytest.raises(ValueError, match=r"rules are for the kinds \['leek'\]: .*all"):
        init(fresh())
    init, _ = training.descent(lambda snn: 0.0, {"offset": optax.sgd(0.1)})
    with pytest.raises(ValueError, match=r"no leaf \['offset'\] to train"):
        init(fresh())


@pytest.mark.parametrize("weight, temperature", [(0.5, 1.0), (0.0, 3.0), (1.0, 2.5)])
def test_distillation_is_its_formula(weight, temperature):
    outputs = np.random.default_rng(7).normal(size=(4, 5, 3)) * 3
    teacher, labels = (
        np.random.default_rng(7).normal(size=(5, 3)) * 2,
        np.array([0, 2, 1, 1, 0]),
    )

    def log_softmax(a):
        return a - np.log(np.exp(a).sum(-1, keepdims=True))

    mean = outputs.mean(0)
    entropy = -log_softmax(mean)[np.arange(5), labels].mean()
    p, q = log_softmax(teacher / temperature), log_softmax(mean / temperature)
    distance = temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean()
    value = training.distillation(
        jnp.asarray(outputs),
        jnp.asarray(teacher),
        jnp.asarray(labels),
        weight=weight,
        temperature=temperature,
    )
    np.testing.assert_allclose(
        value, (1 - weight) * entropy + weight * distance, rtol=1e-5
    )
    unlabelled = training.distillation(
        jnp.asarray(outputs), jnp.asarray(teacher), temperature=temperature
    )
    np.testing.assert_allclose(unlabelled, distance, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight": 1.5}, "weight is 1.5; allowed: 0 to 1"),
        ({"weight": 0.5}, "weight is 0.5, and there are no labels"),
        ({"temperature": 0}, "temperature is 0; allowed: "),
        ({"teacher": jnp.ones((4, 3))}, r"logits \(4, 3\); allowed: \[T, B, classes"),
        ({"outputs": jnp.ones((5, 3))}, r"outputs have shape \(5, 3\) and the teach"),
        ({"labels": jnp.ones(4, int)}, r"shape \(2, 5, 3\), labels \(4,\)"),
    ],
)
def test_distillation_refuses_what_it_cannot_mean(options, message):
    arguments = {"outputs": jnp.ones((2, 5, 3)), "teacher": jnp.ones((5, 3))}
    with pytest.raises(ValueError, match=message):
        training.distillation(**arguments | options)


def test_no_gradient_flows_to_the_teacher():
    def loss(teacher):
        return training.distillation(jnp.ones((2, 5, 3)), teacher)

    np.testing.assert_array_equal(jax.grad(loss)(jnp.eye(5, 3)), 0)


def test_a_network_with_a_plain_number_is_trained():
    snn = snnjax.init(
        lambda p, x: p["s"] * jax.nn.relu(x @ p["w"]), {"w": PARAMS["w"], "s": 2.0}, X
    )
    init, step = training.descent(lambda snn: snn.params["s"] ** 2, optax.sgd(0.125))
    trained, *_ = step(snn, init(snn))
    assert float(trained.params["s"]) == 1.5


def test_merge_refuses_what_is_not_the_floating_leaves():
    snn = fresh()
    floats, merge = training.differentiable(snn)
    jax.tree.map(np.testing.assert_array_equal, merge(floats).neurons, snn.neurons)
    with pytest.raises(ValueError, match="A whole SNN needs no merge"):
        merge(snn)


class Variables(NamedTuple):
    params: dict
    batch_stats: dict


def test_running_averages_in_a_named_tuple_are_frozen():
    def normed(variables, x):
        mean = variables.batch_stats["mean"]
        return jax.nn.relu((x - mean) @ variables.params["w"])

    variables = Variables({"w": PARAMS["w"]}, {"mean": jnp.zeros(6)})
    labels = training.param_labels(snnjax.init(normed, variables, X)).params
    assert labels == Variables({"w": "weights"}, {"mean": "frozen"})


@pytest.mark.parametrize("has_aux", [False, True])
def test_an_optimizer_may_read_the_loss(has_aux):
    def loss(snn):
        value = jnp.square(snn.params["w"]).sum() + 4.0
        return (value, "aux") if has_aux else value

    snn = fresh()
    rule = optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau(patience=1))
    init, step = training.descent(loss, rule, has_aux=has_aux)
    trained, *_ = step(snn, init(snn))
    np.testing.assert_allclose(trained.params["w"], 0, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_term_of_a_loss_that_does_not_count_may_be_infinite(weight):
    infinite = jnp.array([[[1.0, -jnp.inf]]])
    outputs, teacher = (infinite, jnp.zeros((1, 2))) if weight == 0 else (infinite,) * 2
    teacher = teacher.reshape(1, 2)
    label = jnp.array([0 if weight == 0 else 1])  # impossible, where it does not count
    loss = training.distillation(outputs, teacher, label, weight=weight)
    assert float(loss) == 0.0


@pytest.mark.parametrize("value", [jnp.ones(2), jnp.array(1), None, 3, {"l": 1.0}])
def test_a_loss_that_is_no_real_number_is_refused(value):
    snn = fresh()
    init, step = training.descent(lambda snn: value, optax.sgd(0.1))
    with pytest.raises(
        ValueError, match="the loss is no real number: .*; allowed: one"
    ):
        step(snn, init(snn))


def test_a_traced_weight_of_a_loss_is_refused():
    def loss(weight):
        return training.distillation(
            jnp.ones((1, 2, 3)), jnp.ones((2, 3)), weight=weight
        )

    with pytest.raises(ValueError, match="weight is traced, .*; allowed: a number"):
        jax.jit(loss)(1.0)


def test_tet_without_its_distance_may_mask_a_class():
    masked, label = jnp.array([[[1.0, -jnp.inf]]]), jnp.array([0])
    value, gradient = jax.value_and_grad(training.tet)(masked, label, regularization=0)
    assert float(value) == 0.0 and jnp.isfinite(gradient).all()


def test_kernels_are_what_weight_decay_may_shrink():
    """The mask keeps thresholds, leaks and biases; without it a decay moves them."""
    snn = fresh()
    mask = training.kernels(snn)
    assert mask.params == {"w": True, "out": True, "calls": False, "key": False}
    assert not any(jax.tree.leaves(mask.neurons))

    def after_a_step(**options):
        init, step = training.descent(
            lambda snn: 0.0 * snn.params["w"].sum(),
            optax.adamw(0.1, weight_decay=1.0, **options),
        )
        return step(snn, init(snn))[0]

    masked, unmasked = after_a_step(mask=training.kernels), after_a_step()
    assert (jnp.abs(masked.params["w"]) < jnp.abs(snn.params["w"])).all()
    chex.assert_trees_all_equal(masked.neurons, snn.neurons)
    site = next(iter(snn.neurons))
    assert unmasked.neurons[site].threshold < snn.neurons[site].threshold


def test_kinds_may_come_from_an_iterator():
    labels = training.param_labels(fresh(), (kind for kind in ["weights"]))
    assert labels.params["w"] == "weights"
