"""Direct training: gradients, training mode, saved memory, losses, what trains."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx
from networks import NETWORKS, conv, eighths, relaxed_dspike, relu

import snnjax
from snnjax import surrogate
from snnjax.simulation import by_layer
from snnjax.training import (
    check_gradients,
    descent,
    differentiable,
    mean_cross_entropy,
    membrane_readout,
    param_labels,
    tet,
)

STEPS = 6
LABELS = jnp.array([0, 2, 1, 2])
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


def assert_close(a, b, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-5} | tolerance
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), a, b)


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
    [("subtract", False, 0.5), ("zero", True, 0.5), ("zero", False, 1.0)],
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
    slope = jax.jit(jax.grad(loss))(snn)
    key, h = jax.random.key(0), 1e-2
    steps = [np.asarray(jax.random.normal(key, w.shape)) for w in snn.params]

    @jax.jit
    def at(h):
        params = [w + h * u for w, u in zip(snn.params, steps, strict=True)]
        return loss(dataclasses.replace(snn, params=params))

    along = sum(np.vdot(g, u) for g, u in zip(slope.params, steps, strict=True))
    assert (at(h) - at(-h)) / (2 * h) == pytest.approx(along, rel=2e-2)
    assert all(np.any(n.temperature != 0) for n in slope.neurons.values())


def test_soft_spikes_have_the_same_gradient_in_segments_with_remat():
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3], model=snnjax.lif(temperature=2.0))

    def gradient(**options):
        simulate = snnjax.spiking(
            net.fn, steps=STEPS, surrogate=relaxed_dspike, **options
        )
        return jax.grad(lambda snn: (simulate(snn, net.x) ** 2).mean())(snn)

    found = gradient(execution=by_layer(segment=2, remat=True))
    assert_close(found, gradient(), rtol=1e-4, atol=1e-5)
    assert all(jnp.any(n.temperature != 0) for n in found.neurons.values())


MODES = [
    dict(execution="by_layer"),
    dict(execution=by_layer(remat=True)),
    dict(execution=by_layer(segment=4)),
    dict(execution=by_layer(segment=3, remat=True)),
]

slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name, inputs",
    [
        ("dense", "constant"),
        pytest.param("dense", "sequence", marks=slow),
        pytest.param("max-pool after", "sequence", marks=slow),
        pytest.param("projection", "constant", marks=slow),
    ],
)
def test_every_execution_gives_the_same_outputs_and_gradients(name, inputs):
    net = NETWORKS[name]
    neuron = snnjax.lif(threshold=0.5, temperature=2.0)
    snn = snnjax.init(*net[:3], model=neuron)
    x = net.x if inputs == "constant" else eighths(3, (STEPS, *net.x.shape))

    def outputs_and_gradient(**options):
        simulate = snnjax.spiking(net.fn, steps=STEPS, inputs=inputs, **options)

        def loss(snn):
            outputs = simulate(snn, x)
            return (outputs**2).mean(), outputs

        return jax.jit(jax.grad(loss, has_aux=True))(snn)

    gradient, outputs = outputs_and_gradient(execution="by_step")
    assert np.any(outputs != 0)
    for options in MODES:
        found = outputs_and_gradient(**options)
        np.testing.assert_array_equal(found[1], outputs)
        assert_close(found[0], gradient, rtol=1e-3)


@pytest.mark.parametrize("execution", ["by_step", "by_layer"])
def test_what_the_function_closes_over_may_be_differentiated(execution):
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3])

    def loss(scale, snn):
        def fn(params, x):
            return net.fn(params, scale * x)

        simulate = snnjax.spiking(fn, steps=STEPS, execution=execution)
        return (simulate(snn, net.x) ** 2).sum()

    slope = jax.jit(jax.grad(loss))(jnp.float32(1.0), snn)
    expected = jax.grad(
        lambda x: (snnjax.spiking(net.fn, steps=STEPS)(snn, x) ** 2).sum()
    )(net.x)
    assert float(slope) == pytest.approx(float(jnp.vdot(expected, net.x)), rel=1e-3)


def test_remat_keeps_less_for_the_gradient():
    steps, width = 32, 64

    def fn(w, x):
        for _ in range(6):
            x = relu(x @ w)
        return x

    x = jnp.ones((16, width))
    snn = snnjax.init(fn, jnp.eye(width), x)

    def residual_bytes(execution):
        simulate = snnjax.spiking(fn, steps=steps, execution=execution)
        _, pull = jax.vjp(lambda snn: simulate(snn, x).mean(0), snn)
        return sum(residual.nbytes for residual in jax.tree.leaves(pull))

    everything = residual_bytes("by_layer")
    assert residual_bytes(by_layer(remat=True)) < 0.1 * everything
    assert residual_bytes(by_layer(remat=True, segment=6)) < 0.3 * everything


@pytest.mark.parametrize("execution", [by_layer(remat=True), by_layer(segment=2)])
def test_no_array_of_a_gradient_lives_on(execution):
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3])
    simulate = snnjax.spiking(net.fn, steps=STEPS, execution=execution)
    with jax.checking_leaks():
        slopes = jax.jit(jax.grad(lambda snn: simulate(snn, net.x).sum()))(snn)
    assert jax.tree.structure(slopes) == jax.tree.structure(snn)


# --------------------------------------------------------------- training mode


class Normed(nn.Module):
    """Convolution, BatchNorm, ReLU, and a second site."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = relu(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))
        return nn.Dense(3)(relu(nn.Dense(8)(x.reshape(x.shape[0], -1))))


NORMED = Normed()
PIXELS = eighths(5, (4, 6, 6, 2))
VARIABLES = NORMED.init(jax.random.key(0), PIXELS)


def training(variables, x):
    return NORMED.apply(variables, x, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("inputs, remat", [("constant", False), ("sequence", True)])
def test_batch_norm_takes_its_statistics_over_time_and_batch(inputs, remat):
    snn = snnjax.init(NORMED.apply, VARIABLES, PIXELS)
    x = eighths(6, (STEPS, *PIXELS.shape)) if inputs == "sequence" else PIXELS
    simulate = snnjax.spiking(
        training,
        steps=STEPS,
        inputs=inputs,
        has_aux=True,
        execution=by_layer(remat=remat),
    )
    outputs, aux = jax.jit(simulate)(snn, x)
    assert outputs.shape == (STEPS, 4, 3)
    kernel = VARIABLES["params"]["Conv_0"]["kernel"]
    frames = x if inputs == "sequence" else x[None]
    made = conv(frames.reshape(-1, *PIXELS.shape[1:]), kernel)
    expected = 0.5 * made.mean((0, 1, 2))
    assert_close(aux["batch_stats"]["BatchNorm_0"]["mean"], expected)
    expected = 0.5 + 0.5 * made.var((0, 1, 2))
    assert_close(aux["batch_stats"]["BatchNorm_0"]["var"], expected)


def test_remat_gives_the_gradient_beside_whole_numbers_too():
    net = NETWORKS["dense"]

    def counting(params, x):  # as a network in training mode may count its calls
        logits = net.fn(params, x)
        return (jnp.argmax(logits, -1), logits), None

    snn = snnjax.init(*net[:3])

    def gradient(remat):
        simulate = snnjax.spiking(
            counting, steps=STEPS, has_aux=True, execution=by_layer(remat=remat)
        )
        return jax.grad(lambda snn: (simulate(snn, net.x)[0][1] ** 2).sum())(snn)

    assert_close(gradient(remat=True).params, gradient(remat=False).params)


def test_training_mode_and_inference_agree_where_the_statistics_do():
    snn = snnjax.init(NORMED.apply, VARIABLES, PIXELS)
    made = conv(PIXELS, VARIABLES["params"]["Conv_0"]["kernel"])
    stats = {"mean": made.mean((0, 1, 2)), "var": made.var((0, 1, 2))}
    variables = VARIABLES | {"batch_stats": {"BatchNorm_0": stats}}
    snn = dataclasses.replace(snn, params=variables)
    trained, _ = snnjax.spiking(training, steps=STEPS, has_aux=True)(snn, PIXELS)
    inferred = snnjax.spiking(NORMED.apply, steps=STEPS)(snn, PIXELS)
    assert_close(trained, inferred, atol=1e-4)


def test_a_norm_between_the_sites_may_be_trained_with_aux():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm()(relu(nn.Dense(8)(x)))
            scores = nn.softmax(x @ jnp.eye(8))  # attention of a kind
            return nn.Dense(3)(relu(nn.Dense(8)(x * scores))), {}

    net, x = Net(), eighths(0, (4, 5))
    variables = net.init(jax.random.key(0), x)
    snn = snnjax.init(net.apply, variables, x, has_aux=True)
    assert len(snn.neurons) == 2
    outputs, aux = snnjax.spiking(net.apply, steps=STEPS, has_aux=True)(snn, x)
    assert outputs.shape == (STEPS, 4, 3) and aux == {}
    # Without aux the norm and the softmax are operators, with encoders behind them.
    plain = snnjax.init(lambda v, x: net.apply(v, x)[0], variables, x)
    assert len(plain.neurons) == 3


def test_training_mode_refuses_loops_that_fire_and_functions_without_aux():
    def fn(p, x):
        x = jax.lax.while_loop(lambda x: x.sum() > 9, lambda x: relu(x - 1), relu(x))
        return x, {}

    with pytest.raises(snnjax.ConversionError, match="would not spike"):
        snnjax.init(fn, {}, jnp.ones((2, 3)), has_aux=True)
    snn = snnjax.init(NORMED.apply, VARIABLES, PIXELS)
    with pytest.raises(ValueError, match=r"return \(outputs, aux\); found PyTreeDef"):
        snnjax.spiking(NORMED.apply, steps=STEPS, has_aux=True)(snn, PIXELS)


def test_a_converted_network_is_fine_tuned_by_the_same_call():
    snn = snnjax.convert(NORMED.apply, VARIABLES, PIXELS, steps=STEPS)
    simulate = snnjax.spiking(training, steps=STEPS, has_aux=True)

    def loss(snn):
        outputs, aux = simulate(snn, PIXELS)
        return mean_cross_entropy(outputs, LABELS), aux

    rules = {"weights": optax.adam(0.01), "threshold": optax.sgd(0.01)}
    init, step = descent(loss, rules, has_aux=True)
    state, step, values = init(snn), jax.jit(step), []
    for _ in range(8):
        snn, state, (value, _) = step(snn, state)
        values.append(value)
    assert values[-1] < 0.8 * values[0]
    assert snn.steps == STEPS


# ---------------------------------------------------------- losses and readouts

OUTPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(STEPS, 4, 3)), jnp.float32)


def cross_entropy(logits, labels):
    exponents = np.exp(logits)
    chosen = exponents[np.arange(len(labels)), labels] / exponents.sum(-1)
    return -np.log(chosen).mean()


def test_mean_cross_entropy_is_that_of_the_mean():
    expected = cross_entropy(np.asarray(OUTPUTS).mean(0), LABELS)
    assert mean_cross_entropy(OUTPUTS, LABELS) == pytest.approx(expected)


def test_tet_is_the_mean_of_the_steps_losses():
    entropy = np.mean([cross_entropy(np.asarray(o), LABELS) for o in OUTPUTS])
    distance = np.mean((np.asarray(OUTPUTS) - 2.0) ** 2)
    for share in (0.0, 0.25, 1.0):
        found = tet(OUTPUTS, LABELS, regularization=share, target=2.0)
        expected = (1 - share) * entropy + share * distance
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_membrane_integrates_the_outputs():
    found = membrane_readout(OUTPUTS, leak=0.5)
    ages = STEPS - 1 - np.arange(STEPS)
    expected = np.tensordot(0.5**ages, np.asarray(OUTPUTS), 1)
    np.testing.assert_allclose(found[-1], expected, rtol=1e-5)
    sums = np.cumsum(np.asarray(OUTPUTS), 0)
    assert_close(membrane_readout(OUTPUTS, leak=1.0), sums)


# --------------------------------------------------------------- what is trained


def with_temperature():
    net = NETWORKS["dense"]
    neuron = snnjax.lif(temperature=3.0)
    return net, snnjax.init(*net[:3], model=neuron)


def test_a_temperature_without_gradient_is_told():
    net, snn = with_temperature()
    simulate = snnjax.spiking(net.fn, steps=STEPS)
    gradient = jax.grad(lambda snn: (simulate(snn, net.x) ** 2).sum())(snn)
    unused = {"wide", "direct"}  # weights that this network does not read
    labels = param_labels(snn, ["weights", "temperature"])
    for name in unused:
        labels.params[name] = "frozen"
    with pytest.raises(ValueError) as caught:
        check_gradients(gradient, labels)
    message = str(caught.value)
    assert "reaches 2 of the leaves" in message
    assert "neurons/w1/relu/temperature, neurons/w2/relu/temperature" in message
    assert "snnjax.training.choose_temperature" in message
    labels = param_labels(snn, ["weights"])
    labels.params.update(dict.fromkeys(unused, "frozen"))
    check_gradients(gradient, labels)


def test_labels_name_what_is_trained():
    _, snn = with_temperature()
    labels = param_labels(snn, ["temperature", "leak"])
    assert set(jax.tree.leaves(labels)) == {"temperature", "leak", "frozen"}
    neuron = labels.neurons["w1/relu"]
    assert (neuron.temperature, neuron.leak) == ("temperature", "leak")
    assert set(jax.tree.leaves(labels.params)) == {"frozen"}


def test_running_averages_counters_and_keys_are_never_trained():
    class Statistic(nnx.BatchStat):
        pass

    scale = jnp.ones(3)
    nnx_state = {
        "mean": nnx.BatchStat(scale),
        "own": Statistic(scale),
        "w": nnx.Param(scale),
    }
    numbers = {"w": scale, "seen": jnp.array(3), "key": jax.random.key(0)}
    fn = lambda p, x: jax.nn.relu(x * p["w"][...])  # noqa: E731
    frozen = {"mean", "own", "seen", "key"}
    for params in (nnx.State(nnx_state), numbers):
        snn = snnjax.init(fn, params, jnp.ones((2, 3)))
        labels = param_labels(snn).params
        assert jax.tree.structure(labels) == jax.tree.structure(params)
        for name in params:
            expected = "frozen" if name in frozen else "weights"
            assert jax.tree.leaves(labels[name]) == [expected]

    linen = snnjax.init(NORMED.apply, VARIABLES, PIXELS)
    labels = param_labels(linen, ["weights"]).params
    assert set(jax.tree.leaves(labels["batch_stats"])) == {"frozen"}
    assert set(jax.tree.leaves(labels["params"])) == {"weights"}


def test_output_potentials_are_float32():
    for dtype in (jnp.bfloat16, jnp.int32):
        found = membrane_readout(jnp.ones((3, 1), dtype), leak=jnp.float32(0.5))
        np.testing.assert_array_equal(found, np.array([[1], [1.5], [1.75]], "f4"))


def test_losses_add_up_in_more_than_the_outputs_type():
    noise = jax.random.normal(jax.random.key(1), (256, 20, 10))
    outputs = noise.astype(jnp.bfloat16) + jnp.bfloat16(5)
    labels = jnp.zeros(20, jnp.int32)
    for loss in (mean_cross_entropy, tet):
        found, wide = loss(outputs, labels), loss(outputs.astype(jnp.float32), labels)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, wide)


def test_labels_may_be_traced():
    outputs = jnp.ones((2, 1, 3))
    for loss in (mean_cross_entropy, tet):
        found = jax.jit(loss)(outputs, jnp.array([1]))
        np.testing.assert_allclose(found, loss(outputs, [1]), rtol=1e-6)


def test_a_wrong_argument_is_refused():
    snn, outputs = with_temperature()[1], jnp.ones((2, 1, 3))
    wrong = {
        "snn is dict; allowed: an SNN": lambda: param_labels({}, ["weights"]),
        r"no leaf \['b'\] to train; allowed: weights": lambda: param_labels(snn, ["b"]),
        r"trained is 'bias'; allowed: several, as \['bias'": lambda: param_labels(
            snn, "bias"
        ),
        "labels range from 3 to 3; allowed: 0 to 2": lambda: mean_cross_entropy(
            outputs, np.array([3])
        ),
        "labels range from -1 to -1": lambda: tet(outputs, jnp.array([-1])),
        "labels have dtype float32; allowed: whole": lambda: snnjax.accuracy(
            outputs, jnp.array([1.0])
        ),
        "allowed: 0 to 1": lambda: tet(OUTPUTS, LABELS, regularization=2.0),
        "is 'a'; allowed": lambda: tet(OUTPUTS, LABELS, regularization="a"),
        "leak is 0.0; allowed": lambda: membrane_readout(OUTPUTS, leak=0.0),
        "leak is 'a'; allowed": lambda: membrane_readout(OUTPUTS, leak="a"),
        r"lif\(\) \(called\)": lambda: snnjax.init(
            *NETWORKS["dense"][:3], model=snnjax.lif
        ),
        "temperature is -1.0; allowed: > 0": lambda: snnjax.lif(temperature=-1.0),
    }
    for message, call in wrong.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_any_surrogate_takes_the_temperature_as_its_second_argument():
    spike = surrogate.triangle
    net, snn = with_temperature()

    def gradient(surrogate, snn):
        simulate = snnjax.spiking(net.fn, steps=STEPS, surrogate=surrogate)
        return jax.grad(lambda snn: (simulate(snn, net.x) ** 2).sum())(snn).params

    plain = snnjax.init(*net[:3], model=snnjax.lif())
    fixed = gradient(functools.partial(spike, width=3.0), plain)
    assert_close(gradient(spike, snn), fixed)


def test_whole_numbers_and_keys_among_the_params_do_not_stop_a_gradient():
    model = nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)),
        nnx.relu,
        nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=1)),
        nnx.Linear(8, 3, rngs=nnx.Rngs(2)),
    )
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
    floats, merge = differentiable(snn)
    assert jax.tree.structure(merge(floats)) == jax.tree.structure(snn)
    init, step = descent(loss, {"weights": optax.sgd(0.5)})
    trained, state, before = step(snn, init(snn))
    assert loss(trained) < before
