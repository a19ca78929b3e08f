"""The same network in five libraries gives the same spiking network."""

import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import conv, converted, outputs_of, simulated

import snnjax
from snnjax import calibrators, neurons
from snnjax.network import identity, with_activation

STEPS = 4
X = np.float32(np.random.default_rng(0).normal(size=(6, 6, 6, 2)))


def arrays():
    """Kernels of a convolution and two dense layers, and their biases."""
    shapes = [(3, 3, 2, 4), (4,), (4, 5), (5,), (5, 3), (3,)]
    generator = np.random.default_rng(1)
    return [np.float32(generator.normal(size=s) / 2) for s in shapes]


def fill(params):
    """Put `arrays` into a nested dict of three layers, in order of their names."""
    numbers = iter(arrays())
    filled = {}
    for layer in sorted(params):
        kernel = next(name for name in params[layer] if name in ("kernel", "w"))
        (bias,) = set(params[layer]) - {kernel}
        filled[layer] = {kernel: next(numbers), bias: next(numbers)}
    return filled


def plain():
    def fn(p, x):
        x = jax.nn.relu(conv(x, p[0]) + p[1]).mean((1, 2))
        return jax.nn.relu(x @ p[2] + p[3]) @ p[4] + p[5]

    return fn, arrays()


def linen():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), name="a")(x)).mean((1, 2))
            return nn.Dense(3, name="c")(nn.relu(nn.Dense(5, name="b")(x)))

    params = jax.eval_shape(Net().init, jax.random.key(0), X)["params"]
    return Net().apply, {"params": fill(params)}


def nnx_split():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Conv(2, 4, (3, 3), rngs=rngs)
            self.b = nnx.Linear(4, 5, rngs=rngs)
            self.c = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.a(x)).mean((1, 2))
            return self.c(nnx.relu(self.b(x)))

    net = nnx.jit(lambda: Net(nnx.Rngs(0)))()
    numbers = iter(arrays())
    for layer in (net.a, net.b, net.c):
        layer.kernel = nnx.Param(next(numbers))
        layer.bias = nnx.Param(next(numbers))
    graph, state = nnx.split(net)
    return lambda state, x: nnx.merge(graph, state)(x), state


def equinox():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        a: eqx.nn.Conv2d
        b: eqx.nn.Linear
        c: eqx.nn.Linear

        def __call__(self, x):
            x = jax.nn.relu(self.a(jnp.moveaxis(x, -1, 0))).mean((1, 2))
            return self.c(jax.nn.relu(self.b(x)))

    @eqx.filter_jit
    def build(key):
        conv = eqx.nn.Conv2d(2, 4, 3, padding=1, key=key)
        return Net(conv, eqx.nn.Linear(4, 5, key=key), eqx.nn.Linear(5, 3, key=key))

    net = build(jax.random.key(0))
    conv, conv_bias, b, b_bias, c, c_bias = arrays()
    values = [np.transpose(conv, (3, 2, 0, 1)), conv_bias[:, None, None]]
    values += [b.T, b_bias, c.T, c_bias]
    net = eqx.tree_at(
        lambda n: [getattr(m, k) for m in (n.a, n.b, n.c) for k in ("weight", "bias")],
        net,
        values,
    )
    params, static = eqx.partition(net, eqx.is_array)
    return lambda params, x: jax.vmap(eqx.combine(params, static))(x), params


def haiku_itself():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own imports
        return pytest.importorskip("haiku")


def haiku():
    hk = haiku_itself()

    def forward(x):
        x = jax.nn.relu(hk.Conv2D(4, 3, name="a")(x)).mean((1, 2))
        return hk.Linear(3, name="c")(jax.nn.relu(hk.Linear(5, name="b")(x)))

    net = hk.without_apply_rng(hk.transform(forward))
    return net.apply, fill(jax.eval_shape(net.init, jax.random.key(0), X))


ALL = [linen, nnx_split, equinox, haiku]
RECIPE = snnjax.Recipe(
    [calibrators.max_threshold("channel"), calibrators.correct_bias()]
)


@functools.cache
def spiking_outputs(build):
    fn, params = build()
    snn = snnjax.convert(fn, params, X, steps=STEPS, recipe=RECIPE)
    outputs = jax.jit(snnjax.spiking(fn))(snn, X)
    return jax.device_get((list(snn.neurons.values()), outputs))


@pytest.mark.parametrize("build", ALL)
def test_every_library_gives_the_same_spiking_network(build):
    neurons, outputs = spiking_outputs(build)
    expected, outputs_expected = spiking_outputs(plain)
    for neuron, params in zip(neurons, expected, strict=True):
        # equinox puts channels first: [C, 1, 1] there is [C] here.
        thresholds, biases = neuron.threshold.ravel(), neuron.bias.ravel()
        np.testing.assert_allclose(thresholds, params.threshold.ravel(), rtol=1e-5)
        np.testing.assert_allclose(biases, params.bias.ravel(), atol=1e-5)
    np.testing.assert_allclose(outputs, outputs_expected, atol=1e-4)


@pytest.mark.parametrize("build", ALL)
def test_paths_name_the_layers(build):
    fn, params = build()
    first, second = snnjax.sites(fn, params, X)
    for site, layer in ((first, "a"), (second, "b")):
        assert len(site.parameters) == 2
        assert all(f"/{layer}/" in f"/{path}" for path in site.parameters)
        # linen knows the module that calls jax.nn.relu.
        assert site.name == f"{layer}/relu" or build is linen


def nnx_recurrent(cell_class):
    """Of flax.nnx: nnx.RNN, and the same cell in a loop of Python."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(cell_class(2, 4, rngs=rngs))
            self.out = nnx.Linear(4, 3, rngs=rngs)

    net = nnx.jit(lambda: Net(nnx.Rngs(0)))()
    # The keys of the cell's random numbers are closed over. They count, so that they
    # must be copied into the trace.
    graph, params, keys = nnx.split(net, nnx.Param, ...)

    def scanned(params, x):
        net = nnx.merge(graph, params, keys, copy=True)
        return net.out(nnx.relu(net.rnn(x)[:, -1]))

    def loop(params, x):
        net = nnx.merge(graph, params, keys, copy=True)
        zeros = jnp.zeros((len(x), 4))
        carry = (zeros, zeros) if cell_class is nnx.LSTMCell else zeros
        state = zeros
        for time in range(x.shape[1]):
            carry, state = net.rnn.cell(carry, x[:, time])
        return net.out(nnx.relu(state))

    return scanned, loop, params


def equinox_recurrent(cell_name):
    """Of equinox, for one example: a cell in a scan, and in a loop of Python."""
    eqx = pytest.importorskip("equinox")
    cell_class = getattr(eqx.nn, cell_name)

    @eqx.filter_jit
    def build(key):
        return cell_class(2, 4, key=key), eqx.nn.Linear(4, 3, key=key)

    params, static = eqx.partition(build(jax.random.key(0)), eqx.is_array)

    def zeros():
        zero = jnp.zeros(4)
        return (zero, zero) if cell_name == "LSTMCell" else zero

    def classes(out, carry):
        hidden = carry[0] if cell_name == "LSTMCell" else carry
        return out(jax.nn.relu(hidden))

    def scanned(params, sequence):
        cell, out = eqx.combine(params, static)

        def step(carry, numbers):
            return cell(numbers, carry), None

        carry, _ = jax.lax.scan(step, zeros(), sequence)
        return classes(out, carry)

    def loop(params, sequence):
        cell, out = eqx.combine(params, static)
        carry = zeros()
        for numbers in sequence:
            carry = cell(numbers, carry)
        return classes(out, carry)

    return jax.vmap(scanned, (None, 0)), jax.vmap(loop, (None, 0)), params


@pytest.mark.parametrize(
    ("build", "cell"),
    [
        (nnx_recurrent, nnx.GRUCell),
        pytest.param(nnx_recurrent, nnx.LSTMCell, marks=pytest.mark.slow),
        (equinox_recurrent, "GRUCell"),
        pytest.param(equinox_recurrent, "LSTMCell", marks=pytest.mark.slow),
    ],
)
@pytest.mark.thorough
def test_recurrent_cells_of_other_libraries_spike_as_the_loop_of_their_turns(
    build, cell
):
    scanned, loop, params = build(cell)
    x = np.float32(np.random.default_rng(2).normal(size=(64, 3, 2)))
    options = {"code": snnjax.codes.radix(), "recipe": snnjax.max_activation()}
    kinds, outputs = [], []
    for fn in (scanned, loop):
        kinds.append([site.kind for site in snnjax.sites(fn, params, x)])
        snn = snnjax.convert(fn, params, x, steps=8, **options)
        outputs.append(np.asarray(snnjax.spiking(fn)(snn, x)))
    assert kinds[0] == kinds[1]
    assert kinds[0].count("encoder") >= 2  # the second and third turn read spikes
    np.testing.assert_array_equal(*outputs)
    answers = np.asarray(scanned(params, x))
    spread = np.abs(answers - answers.mean(0)).max()
    np.testing.assert_allclose(outputs[0].mean(0), answers, rtol=0, atol=0.05 * spread)


@pytest.mark.thorough
def test_all_arrays_of_an_nnx_module_may_be_params():
    """Its random keys and counters too, which nothing changes."""
    net = nnx.jit(lambda: nnx.RNN(nnx.GRUCell(2, 4, rngs=nnx.Rngs(0))))()
    graph, state = nnx.split(net)

    def fn(state, x):
        return nnx.merge(graph, state)(x)[:, -1]

    x = np.float32(np.random.default_rng(2).normal(size=(16, 2, 2)))
    snn = converted(fn, state, x, steps=4, recipe=snnjax.max_activation())
    outputs = snnjax.spiking(fn)(snn, x)
    assert np.isfinite(outputs).all() and np.any(outputs)
    before, after = jax.tree.leaves(state), jax.tree.leaves(snn.params)
    kinds = {jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in before}
    assert kinds == {True, False}
    assert all(bool((a == b).all()) for a, b in zip(before, after, strict=True))


def test_haikus_batch_norm_takes_its_averages_from_the_state():
    hk = haiku_itself()

    def forward(x, train):
        x = hk.BatchNorm(True, True, 0.5)(hk.Conv2D(4, 3)(x), train)
        return hk.Linear(3)(jax.nn.relu(x).mean((1, 2)))

    net = hk.transform_with_state(forward)

    @jax.jit
    def trained(x):
        params, state = net.init(jax.random.key(0), x, True)
        return params, net.apply(params, state, None, x, True)[1]

    params, state = trained(X)

    def fn(v, x):
        return net.apply(v["params"], v["state"], None, x, False)[0]

    variables = {"params": params, "state": state}
    options = {"steps": 64, "wait": 64, "recipe": RECIPE}
    outputs, answers = simulated(fn, variables, X, **options)
    np.testing.assert_allclose(outputs.mean(0), answers, atol=0.1)
    changed_variables = {
        "params": params,
        "state": jax.tree.map(lambda a: a + 1, state),
    }
    changed_outputs, _ = simulated(fn, changed_variables, X, **options)
    assert np.abs(changed_outputs.mean(0) - outputs.mean(0)).max() > 0.1


def test_the_leaky_neuron_of_snntorch_that_resets_to_zero_is_lif():
    """As docs/other_tools.md says, and that its subtraction comes a step later."""
    snntorch = pytest.importorskip("snntorch")
    torch = pytest.importorskip("torch")
    currents = np.random.default_rng(0).normal(0.5, 0.5, (50, 20)).astype(np.float32)

    def by_snntorch(reset):
        leaky = snntorch.Leaky(beta=0.75, reset_mechanism=reset)
        potential = leaky.init_leaky()
        spikes = []
        for current in torch.tensor(currents):
            spike, potential = leaky(current, potential)
            spikes.append(spike.detach().numpy())
        return np.stack(spikes)

    def by_snnjax(reset):
        neuron = neurons.lif(leak=0.75, reset=reset)
        return neurons.unroll(neuron, neuron.init(), currents)

    np.testing.assert_array_equal(by_snntorch("zero"), by_snnjax("zero"))
    assert (by_snntorch("subtract") != by_snnjax("subtract")).any()


def test_sites_of_equinox_are_named_after_attributes_and_not_after_classes():
    eqx = pytest.importorskip("equinox")
    net = eqx.filter_jit(eqx.nn.MLP)(4, 2, 8, depth=2, key=jax.random.key(0))
    params, static = eqx.partition({"head": net}, eqx.is_array)

    def fn(params, x):
        return jax.vmap(eqx.combine(params, static)["head"])(x)

    names = [site.name for site in snnjax.sites(fn, params, jnp.ones((2, 4)))]
    assert names == ["head/layers/0/relu", "head/layers/1/relu"]


def test_layers_of_haiku_from_init_and_call_are_told_apart():
    hk = haiku_itself()

    class Net(hk.Module):
        def __init__(self):
            super().__init__(name="net")
            self.first = hk.Linear(6)

        def __call__(self, x):
            x = jax.nn.relu(self.first(x))
            x = jax.nn.relu(hk.Linear(6)(x))
            return hk.Linear(3)(x)

    net = hk.without_apply_rng(hk.transform(lambda x: Net()(x)))
    x = np.float32(np.random.default_rng(3).normal(size=(64, 6)))
    params = jax.jit(net.init)(jax.random.key(0), x)
    first, second = snnjax.sites(net.apply, params, x)
    assert first.parameters == ("net/~/linear/w", "net/~/linear/b")
    assert second.parameters == ("net/linear/w", "net/linear/b")
    runs = [with_activation(net.apply, identity), net.apply]
    np.testing.assert_allclose(*outputs_of(runs, params, x), rtol=1e-5, atol=1e-6)
    recipe = snnjax.Recipe([calibrators.max_threshold(), double_weights])
    snn = converted(net.apply, params, x, steps=4, recipe=recipe)
    for name in ("net/~/linear", "net/linear"):
        np.testing.assert_array_equal(
            snn.params[name]["w"], 2 * np.asarray(params[name]["w"])
        )


def double_weights(view, fit):
    weights = {path: 2 * kernel for path, kernel in fit.weights.items()}
    return fit._replace(weights=weights)
