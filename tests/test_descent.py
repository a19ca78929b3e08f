"""Descent on an SNN: ranges, and leaves that are frozen."""

from typing import Annotated, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import converted

import snnjax
from snnjax import training
from snnjax.neurons import Range
from snnjax.neurons.protocol import field
from snnjax.snn import check_values
from snnjax.training.leaves import differentiable

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(32, 6)))
PARAMS = {
    "w": jnp.asarray(RNG.normal(size=(6, 8)) / 2, jnp.float32),
    "out": jnp.asarray(RNG.normal(size=(8, 3)) / 2, jnp.float32),
    "scale": 1.0,
    "calls": jnp.array(3),
    "key": jax.random.key(1),
}


def network(p, x):
    return p["scale"] * jax.nn.relu(x @ p["w"]) @ p["out"] + 0 * p["calls"]


def fresh(neuron=None):
    """A new SNN, by default of LIF neurons."""
    if neuron is None:
        neuron = snnjax.lif(temperature=2.0)
    return snnjax.init(network, PARAMS, X, model=neuron)


def test_a_step_inside_of_jit_returns_a_loss_that_is_not_finite():
    def loss(snn):
        return snn.params["scale"] * jnp.nan

    init, step = training.descent(loss, optax.sgd(1.0))
    _, _, value = jax.jit(step)(fresh(), init(fresh()))
    assert np.isnan(value)


def pushed(neuron, sign):
    """Parameters of neurons after steep steps down, or up where sign is -1."""
    floats, merge = differentiable(fresh(neuron))
    optimizer = training.optimizer(optax.sgd(1.0))
    state = optimizer.init(floats)
    slopes = jax.tree.map(lambda leaf: np.full_like(leaf, sign * 1e3), floats)

    @jax.jit
    def step(state, floats):
        updates, state = optimizer.update(slopes, state, floats)
        return state, optax.apply_updates(floats, updates)

    for _ in range(60):
        state, floats = step(state, floats)
    check_values(merge(floats))
    return floats.neurons["w/relu"]


@pytest.mark.parametrize("sign", [-1, 1])
def test_no_update_takes_a_neuron_out_of_its_range(sign):
    synaptic = snnjax.neurons.Synaptic(snnjax.lif(temperature=2.0))
    adaptive = snnjax.neurons.Adaptive(
        synaptic, subthreshold=0.3, spike_triggered=0.3, adaptation_leak=0.9
    )
    params = pushed(adaptive, sign)
    if sign < 0:
        assert field(params, "threshold") > 1
        assert field(params, "leak") == 1
    else:
        assert float(field(params, "threshold")) == pytest.approx(1e-6)
        assert 0 < field(params, "leak") < 0.1


class ParamsWithGain(NamedTuple):
    threshold: Annotated[jax.Array, Range(0.1, 3, open_least=True, open_most=True)]
    gain: Annotated[jax.Array, Range(-0.3, 0.7)]
    bias: jax.Array | None = None
    initial_potential: float = 0.0
    leak: jax.Array | None = None
    temperature: jax.Array | None = None
    offset: jax.Array | None = None


class ModelWithGain(snnjax.neurons.IntegrateAndFire):
    def init(self, shape=(), key=None):
        return ParamsWithGain(threshold=jnp.ones(shape), gain=jnp.zeros(shape))


def test_a_parameter_of_ones_own_stays_in_its_range():
    for sign, threshold, gain in ((1, 0.1, -0.3), (-1, 3, 0.7)):
        params = pushed(ModelWithGain(), sign)
        np.testing.assert_allclose(params.threshold, threshold, rtol=1e-4)
        np.testing.assert_allclose(params.gain, gain, rtol=1e-6)


def test_updates_within_the_ranges_stay_as_they_are():
    floats, _ = differentiable(fresh())
    slopes = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.01), floats)
    plain = optax.sgd(1.0)
    bounded = training.optimizer(plain)
    expected, _ = plain.update(slopes, plain.init(floats), floats)
    updates, _ = bounded.update(slopes, bounded.init(floats), floats)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_a_weight_called_threshold_has_no_range():
    snn = snnjax.init(
        lambda p, x: jax.nn.relu(x @ p["threshold"]), {"threshold": jnp.eye(6)}, X
    )
    optimizer = training.optimizer(optax.sgd(1.0))
    slopes = jax.tree.map(jnp.ones_like, snn)
    updates, _ = optimizer.update(slopes, optimizer.init(snn), snn)
    np.testing.assert_array_equal(updates.params["threshold"], -np.ones((6, 6)))
    assert updates.neurons["threshold/relu"].threshold == -0.5


def test_descent_moves_what_its_rules_name_and_no_other_bit():
    snn = fresh()
    run = snnjax.spiking(network, steps=3)

    def loss(snn, x):
        return jnp.square(run(snn, x) - 1).mean()

    rules = {"weights": optax.adam(0.01), "threshold": optax.sgd(0.01)}
    init, step = training.descent(loss, rules)
    step = jax.jit(step)
    trained, state = snn, init(snn)
    losses = []
    for _ in range(20):
        trained, state, value = step(trained, state, X)
        losses.append(float(value))
    assert losses[-1] < 0.9 * losses[0]
    neurons, trained_neurons = snn.neurons["w/relu"], trained.neurons["w/relu"]
    assert trained_neurons.threshold != neurons.threshold
    for name in ("leak", "bias", "initial_potential", "temperature"):
        assert getattr(trained_neurons, name) == getattr(neurons, name), name
    assert trained.params["calls"] == 3
    assert trained.params["calls"].dtype == jnp.int32
    assert (trained.params["key"] == PARAMS["key"]).all()
    assert (trained.params["w"] != PARAMS["w"]).any()
    assert trained.params["scale"] != 1.0


def test_a_threshold_that_no_target_wants_keeps_a_finite_gradient():
    eye = np.eye(2, dtype=np.float32)
    params = {"w": eye, "out": eye, "scale": 1.0, "calls": np.int32(0)}
    x = np.abs(X[:, :2])
    recipe = snnjax.max_activation("channel")
    snn = converted(network, params, x, steps=4, recipe=recipe)
    run = snnjax.spiking(network, steps=4)

    def loss(snn, x):
        """The first output should be 0, which lowers its threshold without end."""
        targets = x * np.array([0.0, 1.0], "f4")
        return jnp.square(run(snn, x).mean(0) - targets).mean()

    init, step = training.descent(loss, {"threshold": optax.adam(0.1)})
    step = jax.jit(step)
    state = init(snn)
    for _ in range(75):
        snn, state, _ = step(snn, state, x)
    slope = jax.jit(jax.grad(loss, allow_int=True))(snn, x)
    assert np.isfinite(slope.params["w"]).all()
    threshold = np.asarray(snn.neurons["w/relu"].threshold)
    assert np.isfinite(threshold).all()
    assert (threshold >= 9e-7).all()


def test_an_optimizer_may_read_the_loss_and_aux_comes_back():
    rule = optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau(patience=1))
    for has_aux in (False, True):

        def loss(snn, has_aux=has_aux):
            value = jnp.square(snn.params["w"]).sum() + 4.0
            if has_aux:
                return value, "aux"
            return value

        snn = fresh()
        init, step = training.descent(loss, rule, has_aux=has_aux)
        trained, _, value = step(snn, init(snn))
        np.testing.assert_allclose(trained.params["w"], 0, atol=1e-6)
        if has_aux:
            value, aux = value
            assert aux == "aux"
        assert value > 4


def test_weight_decay_shrinks_kernels_alone():
    snn = fresh()
    mask = training.kernels(snn)
    kernels = {name for name, is_kernel in mask.params.items() if is_kernel}
    assert kernels == {"w", "out"}
    decay = optax.adamw(0.1, weight_decay=1.0, mask=training.kernels)
    init, step = training.descent(lambda snn: 0.0 * snn.params["w"].sum(), decay)
    decayed, *_ = step(snn, init(snn))
    assert (jnp.abs(decayed.params["w"]) < jnp.abs(snn.params["w"])).all()
    chex.assert_trees_all_equal(decayed.neurons, snn.neurons)
