"""Direct training: gradients, training mode, saved memory, losses, what trains."""

import dataclasses
import functools
import gc
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from chex import assert_trees_all_close
from flax import nnx
from networks import NETWORKS, compiled, eighths, outputs_of, relaxed_dspike, relu

import snnjax
from snnjax import integrate_and_fire, surrogate
from snnjax.training import (
    check_gradients,
    descent,
    mean_cross_entropy,
    membrane_readout,
    param_labels,
)

STEPS = 6
LABELS = np.array([0, 2, 1, 2])
SHAPES = [(5, 8), (8, 6), (6, 3)]


def layers(params, x):
    for kernel in params[:-1]:
        x = relu(x @ kernel)
    return x @ params[-1]


def problem(seed=0):
    """Kernels and an input [T, B, 5] of spikes."""
    generator = np.random.default_rng(seed)
    kernels = [generator.normal(size=shape) / 2 for shape in SHAPES]
    x = generator.integers(0, 2, (STEPS, 4, 5)).astype(float)
    return kernels, x


assert_close = functools.partial(assert_trees_all_close, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------- the gradient itself


def of_layers(neuron, **options):
    """Kernels and spikes of `problem`, their SNN, and a loss."""
    kernels, x = problem()
    params = [jnp.asarray(kernel, jnp.float32) for kernel in kernels]
    snn = snnjax.init(layers, params, jnp.ones((4, 5)), model=neuron)
    simulate = snnjax.spiking(layers, steps=STEPS, inputs="sequence", **options)
    frames = jnp.asarray(x, jnp.float32)
    return kernels, x, snn, lambda snn: (simulate(snn, frames) ** 2).sum() / 2


@pytest.mark.parametrize(
    "reset, detach, leak",
    [("subtract", False, 1.0), ("zero", True, 0.5)],  # test_compiled has the third
)
def test_gradients_are_those_of_bptt_by_hand(reset, detach, leak):
    neuron = snnjax.lif(leak=leak, threshold=0.75, reset=reset)
    kernels, x, snn, loss = of_layers(neuron, detach_reset=detach)

    def slope(x, b=3.0):
        return (abs(x) <= 0.5) * b / np.cosh(b * x) ** 2 / (2 * np.tanh(b / 2))

    expected = reference.dense_gradients(kernels, x, 0.75, leak, reset, slope, detach)
    found = jax.jit(jax.grad(loss))(snn).params
    assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert all(np.abs(gradient).max() > 0.1 for gradient in expected)


def test_gradients_of_the_relaxed_network_are_its_finite_differences():
    neuron = snnjax.lif(temperature=2.0)
    _, _, snn, loss = of_layers(neuron, surrogate=relaxed_dspike)
    value_and_slope = jax.jit(jax.value_and_grad(loss))
    _, slope = value_and_slope(snn)
    generator, h = np.random.default_rng(0), 1e-2
    way = [np.float32(generator.normal(size=w.shape)) for w in snn.params]

    def loss_at(h):
        params = [w + h * u for w, u in zip(snn.params, way, strict=True)]
        return float(value_and_slope(dataclasses.replace(snn, params=params))[0])

    along = sum(np.vdot(g, u) for g, u in zip(slope.params, way, strict=True))
    assert (loss_at(h) - loss_at(-h)) / (2 * h) == pytest.approx(along, rel=2e-2)
    assert all(np.any(n.temperature) for n in slope.neurons.values())


SEGMENTS = [4, 3]
ALL = [STEPS, *SEGMENTS]


@pytest.mark.parametrize(
    "name, inputs, executions, soft",
    [
        pytest.param("dense", "constant", SEGMENTS, False, marks=pytest.mark.thorough),
        ("dense", "constant", SEGMENTS, True),
        pytest.param("max-pool after", "sequence", ALL, False, marks=pytest.mark.slow),
        pytest.param("projection", "constant", ALL, False, marks=pytest.mark.slow),
    ],
)
def test_every_execution_gives_the_same_outputs_and_gradients(
    name, inputs, executions, soft
):
    net = NETWORKS[name]
    neuron = snnjax.lif(threshold=0.5, temperature=2.0)
    snn = snnjax.init(*net[:3], model=neuron)
    x = net.x if inputs == "constant" else eighths(3, (STEPS, *net.x.shape))
    options = {"steps": STEPS, "inputs": inputs}
    options |= {"surrogate": relaxed_dspike} if soft else {}

    def outputs_and_gradient(execution):
        simulate = snnjax.spiking(net.fn, execution=execution, **options)

        def loss(snn, x):
            outputs = simulate(snn, x)
            return (outputs**2).mean(), outputs

        return jax.grad(loss, has_aux=True)

    runs = map(outputs_and_gradient, (1, *executions))
    (gradient, outputs), *others = outputs_of(runs, snn, x)
    assert np.any(outputs)
    assert all(np.any(n.temperature) == soft for n in gradient.neurons.values())
    for other_gradient, other_outputs in others:
        if soft:
            assert_close(other_outputs, outputs)
        else:
            np.testing.assert_array_equal(other_outputs, outputs)
        assert_close(other_gradient, gradient, rtol=1e-4 if soft else 1e-3)


EXECUTIONS = (1, STEPS)


def test_what_the_function_closes_over_may_be_differentiated():
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3])

    def loss_of_x(x, execution=STEPS):
        simulate = snnjax.spiking(net.fn, steps=STEPS, execution=execution)
        return (simulate(snn, x) ** 2).sum()

    def loss(scale, execution):
        def fn(params, x):
            return net.fn(params, scale * x)

        simulate = snnjax.spiking(fn, steps=STEPS, execution=execution)
        return (simulate(snn, net.x) ** 2).sum()

    runs = [functools.partial(jax.grad(loss), execution=e) for e in EXECUTIONS]
    runs.append(lambda scale: jnp.vdot(jax.grad(loss_of_x)(net.x), net.x))
    *slopes, expected = outputs_of(runs, 1.0)
    np.testing.assert_allclose(slopes, expected, rtol=1e-3)


def test_segments_keep_less_for_the_gradient():
    def fn(w, x):
        return relu(relu(relu(x @ w) @ w) @ w)

    x = np.ones((16, 64), np.float32)
    snn = snnjax.init(fn, np.eye(64, dtype=np.float32), x)

    def residual_bytes(execution):
        simulate = snnjax.spiking(fn, steps=32, execution=execution)
        pull = jax.eval_shape(lambda snn: jax.vjp(simulate, snn, x)[1], snn)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))

    everything = residual_bytes(32)
    assert residual_bytes(6) < 0.3 * everything


@pytest.mark.parametrize("execution", [3, 2])
def test_no_array_of_a_gradient_lives_on(execution):
    fn, w, x = (lambda w, x: relu(x @ w)), jnp.eye(2), jnp.ones((1, 2))
    snn = snnjax.init(fn, w, x)
    simulate = snnjax.spiking(fn, steps=3, execution=execution)
    # JAX collects garbage at each trace, which takes seconds where the objects of other
    # tests are searched too.
    gc.freeze()
    try:
        with jax.checking_leaks():
            slopes = jax.eval_shape(jax.grad(lambda snn: simulate(snn, x).sum()), snn)
    finally:
        gc.unfreeze()
    assert jax.tree.structure(slopes) == jax.tree.structure(snn)


# --------------------------------------------------------------- training mode


class Normed(nn.Module):
    """A layer, BatchNorm, ReLU, and a second site."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4, use_bias=False)(x)
        x = relu(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))
        return nn.Dense(3)(relu(nn.Dense(8)(x.reshape(x.shape[0], -1))))


NORMED = Normed()
TOKENS = eighths(5, (4, 3, 2))
VARIABLES = jax.jit(NORMED.init)(jax.random.key(0), TOKENS)
KERNEL = np.asarray(VARIABLES["params"]["Dense_0"]["kernel"])


def training(variables, x):
    return NORMED.apply(variables, x, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize(
    "options",
    [
        {"execution": STEPS},
        {"inputs": "sequence"},
        {"execution": "closed_form", "wait": STEPS},
    ],
)
def test_batch_norm_takes_its_statistics_over_time_and_batch(options):
    """The closed form shows the network its final values."""
    snn = snnjax.init(NORMED.apply, VARIABLES, TOKENS, model=integrate_and_fire())
    is_sequence = options.get("inputs") == "sequence"
    x = eighths(6, (STEPS, *TOKENS.shape)) if is_sequence else TOKENS
    simulate = compiled(training, steps=STEPS, has_aux=True, **options)
    outputs, aux = simulate(snn, x)
    assert outputs.shape == (STEPS, 4, 3)
    currents = (np.asarray(x) @ KERNEL).reshape(-1, 4)
    averages = aux["batch_stats"]["BatchNorm_0"]
    assert_close(averages["mean"], 0.5 * currents.mean(0))
    assert_close(averages["var"], 0.5 + 0.5 * currents.var(0))


def test_the_closed_form_has_the_gradient_of_inference_beside_aux():
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3], model=integrate_and_fire(levels=(-1, 1)))
    options = {"steps": STEPS, "wait": STEPS, "execution": "closed_form"}

    def answer_and_gradient(fn, **more):
        def loss(snn):
            result = snnjax.spiking(fn, **options, **more)(snn, net.x)
            answer = (result[0] if more else result).mean(0)
            return (answer**2).sum(), answer

        return jax.grad(loss, has_aux=True)

    with_aux = answer_and_gradient(lambda p, x: (net.fn(p, x), None), has_aux=True)
    assert_close(*outputs_of((with_aux, answer_and_gradient(net.fn)), snn), rtol=1e-4)


def test_training_mode_and_inference_agree_where_the_statistics_do():
    snn = snnjax.init(NORMED.apply, VARIABLES, TOKENS)
    currents = (np.asarray(TOKENS) @ KERNEL).reshape(-1, 4)
    stats = {"mean": currents.mean(0), "var": currents.var(0)}
    variables = VARIABLES | {"batch_stats": {"BatchNorm_0": stats}}
    snn = dataclasses.replace(snn, params=variables)
    runs = [snnjax.spiking(training, steps=STEPS, has_aux=True)]
    runs.append(snnjax.spiking(NORMED.apply, steps=STEPS))
    (trained, _), inferred = outputs_of(runs, snn, TOKENS)
    assert_close(trained, inferred, atol=1e-4)


def test_a_norm_between_the_sites_may_be_trained_with_aux():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm()(relu(nn.Dense(8)(x)))
            scores = nn.softmax(x @ jnp.eye(8))  # attention of a kind
            return nn.Dense(3)(relu(nn.Dense(8)(x * scores))), {}

    net, x = Net(), eighths(0, (4, 5))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    snn = snnjax.init(net.apply, variables, x, has_aux=True)
    assert len(snn.neurons) == 2
    outputs, aux = compiled(net.apply, steps=STEPS, has_aux=True)(snn, x)
    assert outputs.shape == (STEPS, 4, 3) and aux == {}
    # Without aux the norm and the softmax are operators, with encoders behind them.
    plain = snnjax.init(lambda v, x: net.apply(v, x)[0], variables, x)
    assert len(plain.neurons) == 3


# ---------------------------------------------------------- losses and readouts

OUTPUTS = np.float32(np.random.default_rng(0).normal(size=(STEPS, 4, 3)))


def cross_entropy(logits, labels):
    exponents = np.exp(logits)
    chosen = exponents[np.arange(len(labels)), labels] / exponents.sum(-1)
    return -np.log(chosen).mean()


def test_the_loss_is_that_of_the_mean_also_of_traced_labels():
    expected = cross_entropy(OUTPUTS.mean(0), LABELS)
    assert jax.jit(mean_cross_entropy)(OUTPUTS, LABELS) == pytest.approx(expected)


def test_the_loss_adds_up_in_more_than_the_outputs_type():
    noise = np.random.default_rng(1).normal(size=(256, 20, 10))
    outputs = (noise + 5).astype(jnp.bfloat16)
    labels = np.zeros(20, np.int32)
    loss = jax.jit(mean_cross_entropy)
    narrow, wide = loss(outputs, labels), loss(outputs.astype(np.float32), labels)
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(narrow, wide)


def test_a_membrane_integrates_the_outputs_in_float32():
    readout = jax.jit(membrane_readout, static_argnames="leak")
    ages = STEPS - 1 - np.arange(STEPS)
    expected = np.tensordot(np.float32(0.5**ages), OUTPUTS, 1)
    np.testing.assert_allclose(readout(OUTPUTS, leak=0.5)[-1], expected, rtol=1e-5)
    assert_close(readout(OUTPUTS, leak=1.0), np.cumsum(OUTPUTS, 0))
    for dtype in (jnp.bfloat16, jnp.int32):
        potentials = readout(np.ones((3, 1), dtype), leak=np.float32(0.5))
        np.testing.assert_array_equal(potentials, np.array([[1], [1.5], [1.75]], "f4"))
    trained = jax.grad(lambda leak: readout.__wrapped__(OUTPUTS, leak=leak)[-1].sum())
    slope = np.tensordot(ages * 0.5 ** (ages - 1.0), OUTPUTS, 1).sum()
    np.testing.assert_allclose(trained(0.5), slope, rtol=1e-5)


# --------------------------------------------------------------- what is trained


def with_temperature():
    net = NETWORKS["dense"]
    neuron = snnjax.lif(temperature=3.0)
    return net, snnjax.init(*net[:3], model=neuron)


def test_a_temperature_without_gradient_is_told():
    net, snn = with_temperature()
    simulate = snnjax.spiking(net.fn, steps=STEPS)
    gradient = jax.jit(jax.grad(lambda snn: (simulate(snn, net.x) ** 2).sum()))(snn)

    def labels(*trained):  # two weights are not read by this network
        labels = param_labels(snn, trained)
        labels.params.update(wide="frozen", direct="frozen")
        return labels

    check_gradients(gradient, labels("weights"))
    dead = "neurons/w1/relu/temperature, neurons/w2/relu/temperature"
    message = f"reaches 2 of the leaves .*{dead}.*do not depend on a temperature"
    with pytest.raises(ValueError, match=message):
        check_gradients(gradient, labels("weights", "temperature"))


class Statistic(nnx.BatchStat):
    """One of a user's own."""


class Variables(NamedTuple):
    params: dict
    batch_stats: dict


def test_running_averages_counters_and_keys_are_never_trained():
    scale, numbers = jnp.ones(3), {"seen": jnp.array(3), "key": jax.random.key(0)}
    statistics = {"mean": nnx.BatchStat(scale), "own": Statistic(scale)}
    fn = lambda p, x: jax.nn.relu(x * p["w"][...])  # noqa: E731
    for params in (nnx.State({**statistics, "w": nnx.Param(scale)}), numbers):
        params["w"] = params.get("w", scale)
        labels = param_labels(snnjax.init(fn, params, jnp.ones((2, 3)))).params
        assert jax.tree.structure(labels) == jax.tree.structure(params)
        for name in params:
            expected = "weights" if name == "w" else "frozen"
            assert jax.tree.leaves(labels[name]) == [expected]

    def normed(variables, x):
        mean = variables.batch_stats["mean"]
        return jax.nn.relu((x - mean) * variables.params["w"])

    variables = Variables({"w": scale}, {"mean": scale})
    snn = snnjax.init(normed, variables, jnp.ones((2, 3)))
    labels = param_labels(snn, (label for label in ["weights"])).params
    assert labels == Variables({"w": "weights"}, {"mean": "frozen"})
    labels = param_labels(snnjax.init(NORMED.apply, VARIABLES, TOKENS)).params
    assert set(jax.tree.leaves(labels["batch_stats"])) == {"frozen"}
    assert set(jax.tree.leaves(labels["params"])) == {"weights"}


def test_any_surrogate_takes_the_temperature_as_its_second_argument():
    spike = surrogate.triangle
    net, snn = with_temperature()

    def gradient(surrogate, snn):
        simulate = snnjax.spiking(net.fn, steps=STEPS, surrogate=surrogate)
        return jax.grad(lambda snn: (simulate(snn, net.x) ** 2).sum())(snn)

    plain = snnjax.init(*net[:3], model=snnjax.lif())
    fixed = functools.partial(spike, width=3.0)
    runs = [lambda: gradient(spike, snn), lambda: gradient(fixed, plain)]
    trained, expected = outputs_of(runs)
    assert_close(trained.params, expected.params)


def test_whole_numbers_and_keys_among_the_params_do_not_stop_a_gradient():
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=1))
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, dropout)
    model.eval()
    graphdef, state = nnx.split(model)
    x = jnp.ones((2, 4))

    def fn(state, x):
        return nnx.merge(graphdef, state)(x)

    def loss(snn):
        outputs = snnjax.spiking(fn, steps=STEPS)(snn, x)
        return mean_cross_entropy(outputs, jnp.array([0, 1]))

    snn = snnjax.init(fn, state, x)
    with pytest.raises(TypeError):
        jax.grad(loss)(snn)
    init, step = descent(loss, {"weights": optax.sgd(0.5)})
    step = jax.jit(step)
    trained, state, before = step(snn, init(snn))
    assert step(trained, state)[2] < before
