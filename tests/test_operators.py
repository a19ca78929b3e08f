"""Networks that are not affine between their neurons: operators and encoders.

The oracle of an operator is its formula, y(t) = t f(m(t)) - (t - 1) f(m(t - 1)), in
NumPy; that of a network with a wait of T is the ANN with quantized values.
"""

import dataclasses
import functools

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from networks import (
    by_executions,
    conv,
    converted,
    max_pool,
    outputs_of,
    relu,
    simulated,
)

import snnjax
from snnjax.network import identity, with_activation
from snnjax.network.capture.capture import capture
from snnjax.network.equal_turns import with_equal_turns
from snnjax.network.evaluate import evaluate
from snnjax.network.increments import Operator
from snnjax.network.stages import lone_products
from snnjax.network.stages import stages as cut_at_sites

STEPS = 4
WEIGHTS = snnjax.calibrators.least_squares_weights()
PARTS = (
    snnjax.calibrators.least_squares_threshold("channel", 0.5),
    snnjax.calibrators.half_charge(),
)
BINARY = snnjax.integrate_and_fire()


def norm(x, axes=-1):
    mean = x.mean(axes, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(
        ((x - mean) ** 2).mean(axes, keepdims=True) + 1e-5
    )


def attention(p, x):
    q, k, v = (jnp.einsum("bnc,cd->bnd", x, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bid,bjd->bij", q, k) / 2, -1)
    return jnp.einsum("bij,bjd->bid", weights, v) @ p["o"]


def transformer(p, x):
    x = x @ p["in"]
    x = x + attention(p, norm(x))
    x = x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]
    return norm(x).mean(1) @ p["out"]


def gated(p, x):
    x = x @ p["in"]
    x = x + (jax.nn.silu(x @ p["q"]) * (x @ p["k"])) @ p["v"]
    return relu(x @ p["o"]).mean(1) @ p["out"]


def regated(p, x):
    x = relu(x @ p["in"])
    return ((relu(x @ p["q"]) * (x @ p["k"])) @ p["v"]).mean(1) @ p["out"]


def squeezed(p, x):
    x = relu(x @ p["in"])
    scale = jax.nn.sigmoid(relu(x.mean(1) @ p["q"]) @ p["k"])
    return (x * scale[:, None]).mean(1) @ p["out"]


def hard(p, x):
    x = jax.nn.hard_swish(x @ p["in"])
    return jax.nn.hard_swish(x @ p["q"]).mean(1) @ p["out"]


def mixed(p, x):
    x = relu(x @ p["in"])
    x = norm(x @ p["q"], (1, 2))
    x = max_pool((x @ p["k"]).reshape(-1, 2, 3, 8)).reshape(-1, 1, 8)
    return jnp.tanh(x @ p["v"]).mean(1) @ p["out"]


NETWORKS = {
    function.__name__: function
    for function in (transformer, gated, regated, squeezed, hard, mixed)
}
TRANSFORMER = pytest.param("transformer", marks=pytest.mark.slow)
FINE = snnjax.integrate_and_fire(levels=(-100, 100))
RECIPE = snnjax.max_activation()
ROUNDING = snnjax.bias_shift()


def weights(seed=0):
    generator = np.random.default_rng(seed)
    shapes = dict.fromkeys("qkvo", (8, 8))
    shapes |= {"in": (5, 8), "up": (8, 16), "down": (16, 8), "out": (8, 3)}
    shapes |= {"stack": (3, 8, 8), "window": (3, 3, 8, 8)}
    return {
        name: np.float32(generator.normal(size=shape) / np.sqrt(shape[-2]))
        for name, shape in shapes.items()
    }


PARAMS = weights()
X = np.float32(np.random.default_rng(1).normal(size=(16, 6, 5)))


@functools.cache
def fitted(name, wait=0):
    fn = NETWORKS[name]
    return fn, converted(fn, PARAMS, X, steps=STEPS, wait=wait, recipe=ROUNDING)


def encoders(fn):
    return [site.name for site in snnjax.sites(fn, PARAMS, X) if site.is_encoder]


def firing(fn, x=X):
    return [site.name for site in snnjax.sites(fn, PARAMS, x) if site.fires]


# -------------------------------------------------------------------- the formula


def oracle(function, *streams):
    """Increments [T, ...] of a function of the running means of streams [T, ...]."""
    increments, last_total = [], 0.0
    for t in range(1, 1 + len(streams[0])):
        means = [stream[:t].mean(0) for stream in streams]
        total = t * np.asarray(function(*means), float)
        increments.append(total - last_total)
        last_total = total
    return np.array(increments)


# Name -> a function, and how many streams it takes.
FUNCTIONS = {
    "softmax": (jax.nn.softmax, 1),
    "norm": (norm, 1),
    "gelu": (jax.nn.gelu, 1),
    "product": (lambda a, b: a * b, 2),
    "attention": (lambda a, b: jax.nn.softmax(a @ b.mT) @ b, 2),
    "affine": (lambda a: 2 * a + 1, 1),
}


def test_increments_are_those_of_the_formula():
    generator = np.random.default_rng(2)
    streams = {}  # [streams, T, B, ...]
    for name, (_, count) in FUNCTIONS.items():
        streams[name] = np.float32(generator.normal(size=(count, 7, 2, 3, 4)))

    @jax.jit
    def run(streams):
        results = {}
        for name, (function, count) in FUNCTIONS.items():
            operator = Operator(lambda *a, f=function: (f(*a),), (True,) * count)
            (whole,), _ = operator.increments(streams[name])
            (first,), running = operator.increments(streams[name][:, :3])
            (second,), _ = operator.increments(streams[name][:, 3:], running)
            mean = function(*(stream.mean(0) for stream in streams[name]))
            results[name] = whole, jnp.concatenate([first, second]), mean
        return results

    for name, results in jax.device_get(run(streams)).items():
        increments, in_two_parts, mean = results
        expected = oracle(FUNCTIONS[name][0], *streams[name])
        close = functools.partial(np.testing.assert_allclose, err_msg=name)
        close(increments, expected, rtol=1e-3, atol=1e-4)
        close(increments.mean(0), mean, rtol=1e-4, atol=1e-5)
        close(in_two_parts, increments, rtol=1e-4, atol=1e-5)


def test_what_does_not_change_is_no_stream():
    stream, scale = np.ones((3, 2, 4), np.float32), np.full((2, 4), 2, np.float32)
    operator = Operator(lambda a, b: (a * b,), (True, False))
    ((increments,),) = outputs_of([lambda *a: operator(*a)], stream, scale)
    np.testing.assert_allclose(increments, 2 * stream)
    still = Operator(lambda a, b: (a * b,), (False, False))
    np.testing.assert_array_equal(still(scale, scale)[0], scale * scale)


# --------------------------------------------------------- where operators stand


def test_encoders_stand_before_the_weights_that_read_an_operator():
    for name, names in {
        "transformer": ["q/encoder", "o/encoder", "up/encoder", "down/encoder"],
        "gated": ["v/encoder"],
        "regated": ["v/encoder"],
        "squeezed": ["out/encoder"],
        "hard": ["q/encoder", "out/encoder"],
    }.items():
        assert encoders(NETWORKS[name])[: len(names)] == names, name
    assert len(encoders(transformer)) == 5  # all readers of a value share one


def test_an_encoder_of_ones_own_is_a_site_and_the_identity():
    def network(encode, p, x):
        y = relu(x @ p["in"])
        q, k, v = (encode(y @ p[name]) for name in "qkv")
        gate = encode(jax.nn.sigmoid(v))
        return ((jax.nn.softmax(q @ k.mT) @ v) * gate).mean(1) @ p["out"]

    fn = functools.partial(network, snnjax.encode)
    plain = functools.partial(network, lambda value: value)
    assert len(encoders(fn)) == 5 and len(encoders(plain)) == 1
    loss = lambda f: lambda p: (f(p, X).sum(), f(p, X))  # noqa: E731
    gradients = [jax.grad(loss(f), has_aux=True) for f in (fn, plain)]
    jax.tree.map(np.testing.assert_array_equal, *outputs_of(gradients, PARAMS))
    near_the_ann(fn, PARAMS, X, atol=0.02)


def test_a_relu_that_only_scales_is_part_of_its_operator():
    assert [name for name in firing(regated) if "relu" in name] == ["in/relu"]
    assert not any("relu" in name for name in firing(hard))


def test_a_scan_over_layers_is_the_loop_that_it_stands_for():
    def block(x, w):
        return x + relu(norm(x) @ w), x

    def scanned(p, x, reverse=True):
        x, inputs = jax.lax.scan(block, x @ p["in"], p["stack"], reverse=reverse)
        return (x + inputs[0]).mean(1) @ p["out"]

    def unrolled(p, x):
        x, inputs = x @ p["in"], [None] * 3
        for i in reversed(range(3)):
            x, inputs[i] = block(x, p["stack"][i])
        return (x + inputs[0]).mean(1) @ p["out"]

    def squashed(site, x, *operands):
        y = identity(site, x, *operands)
        return jnp.tanh(y) if site.fires else y

    for reverse, turns in ((True, "210"), (False, "012")):
        fn = functools.partial(scanned, reverse=reverse)
        assert firing(fn)[1::2] == [f"{turn}/stack/relu" for turn in turns]
    runs = [with_activation(fn, squashed) for fn in (scanned, unrolled)]
    np.testing.assert_allclose(*outputs_of(runs, PARAMS, X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "cell",
    [nn.GRUCell(4), pytest.param(nn.LSTMCell(4), marks=pytest.mark.slow)],
)
@pytest.mark.thorough
def test_a_scan_over_time_spikes_as_the_loop_that_it_stands_for(cell):
    def classes(p, state):
        return nn.relu(state) @ p["out"]

    def scanned(p, x):
        states = nn.RNN(cell).apply({"params": {"cell": p["cell"]}}, x)
        return classes(p, states[:, -1])

    def loop(p, x):
        state = None
        carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
        for time in range(x.shape[1]):
            carry, state = cell.apply({"params": p["cell"]}, carry, x[:, time])
        return classes(p, state)

    x = jax.random.normal(jax.random.key(0), (16, 3, 2))  # [batch, time, features]
    variables = jax.jit(nn.RNN(cell).init)(jax.random.key(1), x)
    params = {
        "cell": variables["params"]["cell"],
        "out": jax.random.normal(jax.random.key(2), (4, 2)),
    }
    options = {"code": snnjax.codes.radix(), "recipe": snnjax.max_activation()}
    kinds, rates, outputs = [], [], []
    for fn in (scanned, loop):
        kinds.append([site.kind for site in snnjax.sites(fn, params, x)])
        snn = snnjax.convert(fn, params, x, steps=STEPS, **options)
        sites = snnjax.measure(fn, snn, x, params=params).sites
        rates.append([float(site.firing_rate) for site in sites.values()])
        outputs.append(np.asarray(snnjax.spiking(fn)(snn, x)))
    assert kinds[0] == kinds[1]
    assert kinds[0].count("encoder") >= 2  # the second and third turn read spikes
    assert rates[0] == rates[1] and all(rates[0])
    np.testing.assert_array_equal(*outputs)
    answers = scanned(params, x)
    spread = np.abs(answers - answers.mean(0)).max()
    np.testing.assert_allclose(outputs[0].mean(0), answers, rtol=0, atol=0.3 * spread)


def recurrent(p, x):
    """A scan over the 12 times of x [B, 12, 2]."""

    def turn(state, entry):
        return jnp.tanh(state @ p["state"] + entry @ p["entry"]), None

    state, _ = jax.lax.scan(turn, jnp.zeros((len(x), 4)), jnp.moveaxis(x, 1, 0))
    return state


def stacked_layers(p, x):
    """A scan over 12 layers of stacked parameters."""

    def layer(state, kernel):
        return state + relu(state @ kernel), None

    state, _ = jax.lax.scan(layer, x.mean(1), p["stack"])
    return state


def indexed_layers(p, x):
    """A loop with an index over the same layers."""

    def layer(i, state):
        return state + relu(state @ p["stack"][i])

    return jax.lax.fori_loop(0, 12, layer, x.mean(1))


def python_layers(p, x):
    """A loop of Python over the same layers."""
    state = x.mean(1)
    for i in range(12):
        state = state + relu(state @ p["stack"][i])
    return state


@pytest.mark.parametrize(
    "fn", [recurrent, stacked_layers, indexed_layers, python_layers]
)
def test_a_conversion_compiles_the_turns_of_a_scan_once(fn):
    """A turn is a stage, and stages with equal segments share their programs."""
    params = {
        "state": np.ones((4, 4)),
        "entry": np.ones((2, 4)),
        "stack": jnp.ones((12, 2, 2)),
    }
    x = np.ones((1, 12, 2), np.float32)
    network = with_equal_turns(capture(fn, params, x, inline_all=True))
    segments = [stage.segment for stage in cut_at_sites(network)]
    assert len(segments) >= 12
    # The first turn has no state, and the last stage gives the outputs.
    assert len(set(segments)) <= 3
    # It computes the same.
    values = network.arguments(params, x)
    evaluate(network.equations, values, identity)
    np.testing.assert_allclose(network.results(values), fn(params, x), rtol=1e-6)


def tanh_of_equal_arrays(p, x):
    """A scan over arrays that fn computes from shapes alone: these are no weights."""

    def layer(state, array):
        return state + jnp.tanh(state @ array), None

    arrays = jnp.broadcast_to(jnp.eye(2), (3, 2, 2))
    state, _ = jax.lax.scan(layer, relu(x @ p["in"]), arrays)
    return state @ p["in"]


def clips_of_stacked_limits(p, x):
    """A scan over limits of a ReLU, which are the same numbers in every layer."""

    def layer(state, limits):
        low, high = limits
        return state @ p["in"] + jnp.minimum(jnp.maximum(state, low), high), None

    limits = (jnp.zeros(3), jnp.full(3, 6.0))
    state, _ = jax.lax.scan(layer, x, limits)
    return state


@pytest.mark.parametrize(
    ("fn", "kinds"),
    [
        (stacked_layers, ["relu"] * 12),
        (tanh_of_equal_arrays, ["relu", "tanh", "encoder"]),
        (clips_of_stacked_limits, ["clipped relu"] * 3),
    ],
)
def test_a_conversion_has_the_sites_of_its_simulation(fn, kinds):
    """A conversion inlines every call, and finds the same sites."""
    params = {"in": np.ones((2, 2)), "stack": np.ones((12, 2, 2))}
    x = np.ones((1, 12, 2) if fn is stacked_layers else (1, 2), np.float32)
    sites = capture(fn, params, x, inline_all=True).sites
    assert sites == snnjax.sites(fn, params, x)
    assert [site.kind for site in sites] == kinds


@pytest.mark.parametrize("loop", ["fori_loop", "scan"])
def test_the_number_of_a_layer_chooses_a_branch(loop):
    def layer(i, state, kernel):
        def rectified(state):
            return relu(state @ kernel)

        def curved(state):
            return jnp.tanh(state @ kernel)

        return state + jax.lax.cond(i % 2 == 0, rectified, curved, state)

    def fn(stack, x):
        if loop == "fori_loop":
            return jax.lax.fori_loop(0, 3, lambda i, x: layer(i, x, stack[i]), x)
        entries = (jnp.arange(3), stack)
        x, _ = jax.lax.scan(
            lambda x, entry: (layer(entry[0], x, entry[1]), 0), x, entries
        )
        return x

    stack, x = jnp.asarray(PARAMS["stack"]), jnp.ones((2, 8))
    kinds = [site.kind for site in snnjax.sites(fn, stack, x)]
    assert [kind for kind in kinds if kind != "encoder"] == ["relu", "tanh", "relu"]
    # Inside of jit, too, the branch is known before the program runs.
    outputs = jax.jit(with_activation(fn, identity))(stack, x)
    np.testing.assert_allclose(outputs, fn(stack, x), rtol=1e-6)


def test_a_branch_that_parameters_choose_is_refused():
    def fn(p, x):
        return jax.lax.cond(p["stack"].sum() > 0, relu, jnp.tanh, x)

    with pytest.raises(snnjax.ConversionError, match="cond"):
        snnjax.sites(fn, PARAMS, X)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "edges_from",
    [
        "x",
        *[pytest.param(name, marks=pytest.mark.thorough) for name in ("fn", "params")],
    ],
)
def test_a_graph_network_sums_over_the_edges_of_its_graph(edges_from):
    edges = {
        "senders": jnp.array([0, 1, 2, 3, 3]),
        "receivers": jnp.array([1, 2, 0, 0, 1]),
    }
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "in": jax.random.normal(keys[0], (3, 8)) / 2,
        "out": jax.random.normal(keys[1], (8, 2)) / 2,
    }
    x = {"nodes": jax.random.normal(keys[2], (64, 4, 3))}
    if edges_from == "params":
        params["edges"] = edges
    if edges_from == "x":
        x["edges"] = jax.tree.map(lambda numbers: jnp.tile(numbers, (64, 1)), edges)

    def fn(p, x):
        def sums(hidden, graph):
            messages = hidden[graph["senders"]]
            return jax.ops.segment_sum(messages, graph["receivers"], 4)

        hidden = relu(x["nodes"] @ p["in"])
        if edges_from == "x":
            hidden += jax.vmap(sums)(hidden, x["edges"])
        else:
            graph = p.get("edges", edges)
            hidden += jax.vmap(lambda nodes: sums(nodes, graph))(hidden)
        return relu(hidden @ p["out"]).sum(1)

    operators = [site for site in snnjax.sites(fn, params, x) if not site.fires]
    # What the edges choose is affine, except where each example has its own.
    assert bool(operators) == (edges_from == "x")
    snn = snnjax.convert(
        fn,
        params,
        x,
        steps=8,
        code=snnjax.codes.radix(),
        recipe=snnjax.max_activation(),
    )
    outputs, answers = snnjax.spiking(fn)(snn, x).mean(0), fn(params, x)
    spread = np.abs(answers - answers.mean(0)).max()
    np.testing.assert_allclose(outputs, answers, rtol=0, atol=0.05 * spread)


SENDERS = jnp.array([0, 1, 2, 3, 3, 1])
RECEIVERS = jnp.array([1, 2, 0, 0, 1, 0])  # no edge leads to node 3


def graph_params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "in": jax.random.normal(keys[0], (3, 8)) / 2,
        "attention": jax.random.normal(keys[1], (8, 2)) / 2,
        "out": jax.random.normal(keys[2], (8, 2)) / 2,
    }


def largest_messages(params, nodes):
    """A graph of nodes [4, 3]: each node takes the largest of its messages."""
    hidden = relu(nodes @ params["in"])
    largest = jax.ops.segment_max(hidden[SENDERS], RECEIVERS, num_segments=4)
    hidden += jnp.where(jnp.isfinite(largest), largest, 0)
    return (relu(hidden) @ params["out"]).sum(0)


def graph_attention(params, nodes):
    """A softmax over the edges that reach a node weighs its messages."""
    hidden = nodes @ params["in"]
    scores = hidden @ params["attention"]
    scores = jax.nn.leaky_relu(scores[SENDERS, 0] + scores[RECEIVERS, 1])
    largest = jax.ops.segment_max(scores, RECEIVERS, num_segments=4)
    weights = jnp.exp(scores - largest[RECEIVERS])
    totals = jax.ops.segment_sum(weights, RECEIVERS, num_segments=4)
    messages = (weights / totals[RECEIVERS])[:, None] * hidden[SENDERS]
    hidden = jax.ops.segment_sum(messages, RECEIVERS, num_segments=4)
    return (relu(hidden) @ params["out"]).sum(0)


@pytest.mark.parametrize("network", [largest_messages, graph_attention])
def test_a_graph_network_takes_maxima_over_the_edges_of_its_graph(network):
    fn = jax.vmap(network, in_axes=(None, 0))
    x = jax.random.normal(jax.random.key(1), (64, 4, 3))
    near_the_ann(fn, graph_params(), x, steps=64, atol=0.05)


@pytest.mark.parametrize("network", [largest_messages, graph_attention])
@pytest.mark.thorough
def test_finetune_trains_a_graph_network(network):
    fn = jax.vmap(network, in_axes=(None, 0))
    params = graph_params()
    x = jax.random.normal(jax.random.key(1), (64, 4, 3))
    labels = fn(params, x).argmax(-1)
    recipe = snnjax.max_activation()
    snn = snnjax.convert(fn, params, x, steps=4, recipe=recipe)
    rules = optax.adam(0.02)
    tuned, log = snnjax.training.finetune(
        fn, snn, [(x, labels)], epochs=10, rules=rules
    )
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    for name, kernel in params.items():
        is_read = network is graph_attention or name != "attention"
        assert np.any(kernel != tuned.params[name]) == is_read, name


def test_maxima_over_edges_that_activations_choose_are_refused():
    def chosen(params, nodes):
        hidden = relu(nodes @ params["in"])
        receivers = jnp.argmax(hidden[:, :4], -1)
        return jax.ops.segment_max(hidden, receivers, num_segments=4).sum(0)

    x = jnp.ones((2, 4, 3))
    with pytest.raises(snnjax.ConversionError, match="scatter-max\n.*choice cannot"):
        snnjax.sites(jax.vmap(chosen, in_axes=(None, 0)), graph_params(), x)


@pytest.mark.thorough
def test_a_soft_mixture_of_experts_spikes():
    """As docs/networks.md writes it, with experts of one hidden layer each."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "gate": jax.random.normal(keys[0], (6, 4)),
        "in": jax.random.normal(keys[1], (4, 6, 8)) / 2,
        "out": jax.random.normal(keys[2], (4, 8, 3)) / 2,
    }

    def fn(p, x):
        hidden = relu(jnp.einsum("bi,eih->beh", x, p["in"]))
        experts = jnp.einsum("beh,ehc->bec", hidden, p["out"])
        return jnp.einsum("be,bec->bc", jax.nn.softmax(x @ p["gate"]), experts)

    x = jax.random.normal(jax.random.key(1), (64, 6))
    kinds = {site.kind for site in snnjax.sites(fn, params, x)}
    assert kinds == {"relu", "softmax", "product"}
    near_the_ann(fn, params, x, steps=64, atol=0.05)


@pytest.mark.thorough
def test_a_fourier_transform_spikes_by_its_real_matrices():
    """The remedy of its refusal: the size of rfft(x), without complex numbers."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "in": jax.random.normal(keys[0], (6, 8)) / 2,
        "hidden": jax.random.normal(keys[1], (5, 8)) / 2,
        "out": jax.random.normal(keys[2], (8, 3)) / 2,
    }

    def complex_power(signal):
        return jnp.abs(jnp.fft.rfft(signal)) ** 2 / 8

    def real_power(signal):
        matrix = jnp.fft.rfft(jnp.eye(8))
        return ((signal @ matrix.real) ** 2 + (signal @ matrix.imag) ** 2) / 8

    def fn(power, p, x):
        return relu(power(relu(x @ p["in"])) @ p["hidden"]) @ p["out"]

    x = jax.random.normal(jax.random.key(1), (64, 6))
    with pytest.raises(snnjax.ConversionError, match="rfft"):
        snnjax.sites(functools.partial(fn, complex_power), params, x)
    runs = [functools.partial(fn, power) for power in (complex_power, real_power)]
    np.testing.assert_allclose(*outputs_of(runs, params, x), rtol=1e-4, atol=1e-4)
    near_the_ann(runs[1], params, x, steps=64, atol=0.1)


def test_a_spectrum_of_the_input_alone_is_computed_once():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "filter": jax.random.normal(keys[0], (5,)),
        "in": jax.random.normal(keys[1], (8, 16)) / 2,
        "out": jax.random.normal(keys[2], (16, 3)) / 2,
    }

    def fn(p, x):
        spectrum = jnp.fft.rfft(x)
        signal = jnp.fft.irfft(spectrum * p["filter"] * jnp.exp(0.5j))
        power = jnp.log1p(jnp.abs(jnp.fft.fft2(x.reshape(-1, 2, 4))))
        return relu((signal + power.reshape(-1, 8)) @ p["in"]) @ p["out"]

    x = jax.random.normal(jax.random.key(1), (64, 8))
    near_the_ann(fn, params, x, steps=64, atol=0.1)


def test_constants_of_a_scan_and_empty_keys_need_no_rule():
    def fn(p, x):
        empty = jax.random.split(jax.random.key(0), 0)
        layers = jax.lax.scan(lambda x, w: (relu(x @ w), 1.0), x @ p["in"], p["stack"])
        return (layers[0] * layers[1].sum() + len(empty)).mean(1) @ p["out"]

    def of_loop(p, x):  # of fixed length, which is unrolled too
        layer = lambda i, x: relu(x @ p["stack"][i])  # noqa: E731
        return jax.lax.fori_loop(0, 3, layer, x @ p["in"]).mean(1) @ p["out"]

    for network in (fn, of_loop):
        assert [name.split("/")[0] for name in firing(network)] == ["0", "1", "2"]
    runs = with_activation(fn, identity), fn
    np.testing.assert_allclose(*outputs_of(runs, PARAMS, X), rtol=1e-5, atol=1e-6)


def test_the_turn_of_a_loop_is_an_index_of_features():
    def mixed(x, i):
        return relu(x.at[..., i].add(x[:, :, i - 1].mean(1, keepdims=True)))

    def of_loop(p, x):
        turns = jax.lax.fori_loop(0, 3, lambda i, x: mixed(x, i), x @ p["in"])
        return turns.mean(1) @ p["out"]

    def unrolled(p, x):
        x = x @ p["in"]
        for i in range(3):
            x = mixed(x, i)
        return x.mean(1) @ p["out"]

    kinds = []
    for fn in (of_loop, unrolled):
        kinds.append([site.kind for site in snnjax.sites(fn, PARAMS, X)])
    assert kinds[0] == kinds[1] and kinds[0].count("relu") == 3
    runs = with_activation(of_loop, identity), unrolled
    np.testing.assert_allclose(*outputs_of(runs, PARAMS, X), rtol=1e-5, atol=1e-6)


def test_a_function_of_the_input_alone_needs_no_encoder():
    def fn(p, x):
        x = jnp.log1p(jnp.abs(x)) / (1 + x.std(-1, keepdims=True))
        return relu(x @ p["in"]).mean(1) @ p["out"]

    assert encoders(fn) == [] and firing(fn) == ["in/relu"]


def test_sites_that_fell_away_do_not_lend_their_numbers():
    def fn(p, x):
        unused = relu(relu(x @ p["in"]) @ p["q"])
        del unused
        hidden = relu(relu(relu(x @ p["in"]) @ p["k"]) @ p["v"])
        return jnp.tanh(jnp.tanh(hidden) @ p["o"]).mean(1) @ p["out"]

    sites = snnjax.sites(fn, PARAMS, X)
    assert len({site.name for site in sites}) == len(sites) == 7
    snn = snnjax.init(fn, PARAMS, X)
    assert set(snn.neurons) == {site.name for site in sites if site.fires}


# -------------------------------------------------------------------- conversion


@pytest.mark.parametrize("name", ["mixed", TRANSFORMER])
def test_executions_agree(name):
    fn, snn = fitted(name)
    at_once, by_step, in_threes = by_executions(fn, [STEPS, 1, 3], snn, X)
    for outputs in (by_step, in_threes):
        # A potential within rounding of its threshold may differ in a spike.
        is_close = np.abs(outputs.mean(0) - at_once.mean(0)) < 1e-4
        assert is_close.mean() > 0.9


def test_with_a_wait_of_t_an_snn_is_the_quantized_ann():
    fn, snn = fitted("mixed", wait=STEPS)
    runs = [snnjax.spiking(fn, execution=e) for e in (STEPS, "closed_form")]
    *outputs, expected = outputs_of([*runs, networks.quantized_ann(fn)], snn, X)
    for output in outputs:
        assert (np.abs(output.mean(0) - expected) < 1e-4).mean() > 0.9


def lone_kernels(fn):
    """Site -> paths of the kernels that are refitted on the way to it."""
    network = capture(fn, PARAMS, X, inline_all=True)
    stages = cut_at_sites(network)
    kernels = {}
    for i, stage in enumerate(stages[:-1]):
        products = lone_products(network, stages, i)
        kernels[stage.place.name] = [network.parameters[p.kernel] for p in products]
    return kernels


def test_a_product_may_be_refitted_if_nothing_else_reads_its_kernel():
    def fn(p, x):
        x = jnp.tanh(x @ p["in"])
        y = jnp.tanh(x @ (2 * p["q"]).T + x @ p["k"]) + (x @ p["v"]) * p["v"].sum()
        return norm(y @ p["o"]).mean(1) @ p["out"] + p["k"].sum()

    # "in" reads no spikes but the input, "v" is read twice, "k" by the readout too.
    assert lone_kernels(fn) == {
        "q/encoder": ["in"],
        "v/encoder": ["q"],
        "out/encoder": ["o"],
    }
    transformer_kernels = lone_kernels(transformer)
    assert transformer_kernels["o/encoder"] == ["q", "k", "v"]
    assert transformer_kernels["up/encoder"] == ["o"]


@pytest.mark.thorough
def test_products_refitted_to_their_spikes_are_nearer_to_the_ann():
    images, new = np.float32(np.random.default_rng(4).normal(size=(2, 64, 6, 5)))

    def error(calibrators):
        recipe = snnjax.Recipe(calibrators)
        outputs, answers = simulated(
            mixed, PARAMS, images, new, steps=STEPS, recipe=recipe
        )
        return ((outputs.mean(0) - answers) ** 2).mean()

    assert error([WEIGHTS, *PARTS]) < 0.95 * error(PARTS)


def test_weights_that_an_operator_reads_are_shared():
    shared = {}

    def look(view, fit):
        shared[view.site.name] = view.shared
        return fit

    recipe = snnjax.Recipe([snnjax.calibrators.max_threshold(), look])
    snnjax.convert(gated, PARAMS, X, steps=2, recipe=recipe)
    # "in" reaches the last ReLU past the gate, and the gate itself.
    assert list(shared["o/relu"]) == ["in"]
    assert "an operator" in shared["o/relu"]["in"]


def test_an_encoder_sends_both_signs_whatever_the_other_neurons_do():
    fn, snn = fitted("gated")
    (name,) = encoders(fn)
    assert snn.model_of(name).levels == (-1, 1) and not snn.model_of(name).rectifies
    assert snn.model_of(firing(fn)[-1]) == BINARY
    graded = snnjax.init(fn, PARAMS, X, model=snnjax.integrate_and_fire(levels=(0, 3)))
    assert graded.model_of(name).levels == (-3, 3)
    measure = functools.partial(snnjax.measure, fn, params=PARAMS)
    runs = [functools.partial(snnjax.measures.spike_trains, fn), measure]
    trains, measures = outputs_of(runs, snn, X)
    assert trains[name].min() < 0 and trains[name].sum(0).min() < 0
    site = measures.sites[name]
    errors = [site.inherited, site.clipping, site.flooring, site.unevenness]
    assert np.isfinite(errors).all() and site.firing_rate > 0


@pytest.mark.parametrize("name", ["gated", TRANSFORMER])
def test_gradients_flow_through_operators(name):
    fn = NETWORKS[name]
    snn = snnjax.init(fn, PARAMS, X, model=snnjax.lif(temperature=2.0))
    assert not any(snn.model_of(encoder).rectifies for encoder in encoders(fn))

    def gradient(execution):
        simulate = snnjax.spiking(fn, steps=STEPS, execution=execution)
        return jax.grad(lambda snn: (simulate(snn, X).mean(0) ** 2).mean())

    gradients = outputs_of(map(gradient, [STEPS, 1]), snn)
    layers, by_step = (slopes.params for slopes in gradients)
    assert all(np.any(by_step[name]) for name in ("in", *"qkvo"))
    for name, slope in by_step.items():
        np.testing.assert_allclose(layers[name], slope, rtol=1e-2, atol=1e-4)


def test_a_file_keeps_encoders(tmp_path):
    fn, snn = fitted("gated")
    path = snnjax.save(tmp_path / "snn.safetensors", snn, fn=fn, x=X)
    stored = snnjax.load(path)
    assert stored.snn.model == snn.model
    expected = networks.compiled(fn, steps=STEPS)(snn, X)
    np.testing.assert_allclose(stored.run(X), expected, rtol=1e-4, atol=1e-4)


def test_a_convolution_after_a_norm_is_encoded_per_channel():
    def fn(p, x):
        x = norm(relu(x @ p["in"]), (1, 2)).reshape(-1, 2, 3, 8)
        return jax.nn.silu(conv(x, p["window"])).mean((1, 2))

    recipe = snnjax.light("channel")
    snn = snnjax.convert(fn, PARAMS, X, steps=STEPS, recipe=recipe)
    assert snn.neurons["window/encoder"].threshold.shape == (8,)


def test_sequences_pass_operators():
    fn, snn = fitted("gated")
    snn = dataclasses.replace(snn, steps=None, wait=None)
    simulate_sequence = snnjax.spiking(fn, steps=STEPS, inputs="sequence")

    def simulate_repeated(snn, x):
        return simulate_sequence(snn, jnp.stack([x] * STEPS))

    runs = [simulate_repeated, snnjax.spiking(fn, steps=STEPS)]
    repeated, constant = outputs_of(runs, snn, X)
    np.testing.assert_allclose(repeated, constant, rtol=1e-4, atol=1e-4)


# --------------------------------------------------- numbers that are hard to average


def near_the_ann(fn, p, x, atol=0.05, steps=32, recipe=RECIPE, model=FINE):
    outputs, answers = simulated(fn, p, x, steps=steps, recipe=recipe, model=model)
    np.testing.assert_allclose(outputs.mean(0), answers, atol=atol)


@pytest.mark.thorough
def test_a_quotient_that_is_0_by_0_before_the_first_spikes_recovers():
    def linear_attention(p, x):
        x = x @ p["in"]
        q, k, v = relu(x @ p["q"]), relu(x @ p["k"]), x @ p["v"]
        shares = (q @ (k.mT @ v)) / (q @ k.sum(1)[..., None])
        return shares.mean(1) @ p["out"]

    # Binary neurons: some of them send nothing at first.
    near_the_ann(
        linear_attention,
        PARAMS,
        X,
        atol=0.1,
        steps=64,
        recipe=ROUNDING,
        model=BINARY,
    )


def test_a_mask_may_add_the_lowest_number():
    """The ANN takes equal shares of a row that is masked whole; so does the SNN."""

    def fn(p, x):
        y = relu(x["numbers"] @ p["in"])
        mask = jnp.where(x["mask"], 0.0, jnp.finfo(jnp.float32).min)[..., None]
        return (jax.nn.softmax(y @ p["q"][:, :1] + mask, axis=1) * y).sum(1) @ p["out"]

    mask = np.ones((len(X), 6), bool)
    mask[3], mask[5, 2:] = False, False
    near_the_ann(fn, PARAMS, {"numbers": X, "mask": mask}, atol=0.1)


# ---------------------------------------------------------- what x itself may decide

TOKENS = np.int32(np.random.default_rng(6).integers(0, 3, (16, 6)))


def embedded(p, tokens):
    return p["stack"][0][tokens]  # [B, 6, 8]


def test_the_last_token_may_be_chosen_by_numbers_from_the_input():
    def last(p, tokens):
        x = embedded(p, tokens)
        x = x + relu(x @ p["q"])
        end = (tokens > 0).sum(1) - 1
        return jnp.take_along_axis(x, end[:, None, None], 1)[:, 0] @ p["out"]

    assert firing(last, TOKENS) == ["q/relu", "out/encoder"]
    near_the_ann(last, PARAMS, TOKENS)


@pytest.mark.thorough
def test_a_cache_is_written_at_positions_from_the_input():
    def fn(p, x):
        new = relu(embedded(p, x["tokens"][:, :1]) @ p["q"])
        write = jax.vmap(lambda c, n, i: jax.lax.dynamic_update_slice(c, n, (i, 0)))
        cache = write(x["cache"], new, x["position"])
        return jax.nn.softmax(norm(cache @ p["k"])).mean(1) @ p["out"]

    cache = np.float32(np.random.default_rng(7).random((16, 6, 8)))
    near_the_ann(
        fn, PARAMS, {"tokens": TOKENS, "cache": cache, "position": TOKENS[:, 0]}
    )


@pytest.mark.thorough
def test_two_layers_may_read_a_truth_value_of_the_input():
    def fn(p, x):
        mask = (x @ p["in"]) > 0
        y = jnp.where(mask, relu(x @ p["in"] @ p["q"]), 0)
        return jnp.where(mask, relu(y @ p["k"]), 0).mean(1) @ p["out"]

    near_the_ann(fn, PARAMS, X)


@pytest.mark.thorough
def test_tokens_and_masks_may_come_as_several_arrays():
    def fn(p, x):
        y = relu(embedded(p, x["tokens"]) @ p["q"])
        y = jax.nn.softmax(y @ p["k"]) * x["mask"][..., None]
        return y.mean(1) @ p["out"]

    x = {"tokens": TOKENS, "mask": TOKENS > 0}
    snn = converted(fn, PARAMS, x, steps=STEPS, recipe=ROUNDING)
    runs = [snnjax.spiking(fn, micro_batch=size) for size in (None, 5)]
    measure = functools.partial(snnjax.measure, fn, params=PARAMS)
    whole, parts, measures = outputs_of([*runs, measure], snn, x)
    assert (np.abs(whole.mean(0) - parts.mean(0)) < 1e-4).mean() > 0.9
    assert 0 < measures.firing_rate < 1


# -------------------------------------------------------- what stays as it was written


def test_what_is_no_product_reads_the_value_and_not_its_spikes():
    def fn(p, x):
        value = jnp.tanh(relu(x @ p["in"]) @ p["q"])
        moved = value.reshape(-1, 6, 2, 4)
        read = moved @ p["k"][:4] + moved @ p["v"][:4]
        return {"value": value, "moved": moved, "read": read}

    outputs, _ = simulated(fn, PARAMS, X, steps=STEPS, recipe=ROUNDING)
    moved = outputs["moved"].reshape(outputs["value"].shape)
    np.testing.assert_array_equal(moved, outputs["value"])


@pytest.mark.thorough
def test_a_max_pool_beside_an_operator_is_part_of_it():
    def fn(p, x):
        x = relu(x.reshape(-1, 2, 3, 5) @ p["in"])
        x = jnp.pad(x @ p["q"], ((0, 0), (0, 0), (0, 1), (0, 0)))
        pooled = [max_pool(jax.nn.gelu(x)), norm(max_pool(relu(x)))]
        means = jnp.stack([relu(y @ p["k"]).mean((1, 2)) for y in pooled], 1)
        return means @ p["out"]

    near_the_ann(fn, PARAMS, X, atol=0.1)


def test_neurons_of_a_scan_under_remat_are_found_in_training_too():
    @jax.checkpoint
    def net(p, x):
        x, _ = jax.lax.scan(lambda x, w: (relu(x @ w), None), x @ p["in"], p["stack"])
        return x.mean(1) @ p["out"]

    snn = snnjax.init(lambda p, x: (net(p, x), None), PARAMS, X, has_aux=True)
    assert len(snn.neurons) == len(firing(net)) == 3


def test_an_operator_without_a_call_of_its_own_is_named_after_what_it_computes():
    for kind, function in {
        "silu": lambda a, b: a * jax.lax.logistic(a),
        "gate": lambda a, b: b * jax.lax.logistic(a),
        "sigmoid": lambda a, b: jax.lax.logistic(a),
    }.items():

        def fn(p, x, function=function):
            hidden = relu(x @ p["in"])
            return function(hidden @ p["q"], hidden @ p["k"])

        (operator,) = snnjax.sites(fn, PARAMS, X).operators
        assert operator.kind == kind


# --------------------------------------------------------------- networks at random


def windows(p, x):
    image = conv(x.reshape(-1, 2, 3, 8), p["window"])
    return relu(image).reshape(x.shape)


BLOCKS = {
    "dense": lambda p, x: relu(x @ p["q"]),
    "gelu": lambda p, x: x + jax.nn.gelu(x @ p["up"]) @ p["down"],
    "norm": lambda p, x: norm(x),
    "gate": lambda p, x: (jax.nn.silu(x @ p["q"]) * (x @ p["k"])) @ p["v"],
    "attention": lambda p, x: x + attention(p, norm(x)),
    "concatenation": lambda p, x: (
        jnp.concatenate([relu(x), x @ p["k"]], -1) @ p["down"]
    ),
    "max-pool": lambda p, x: x + max_pool(x.reshape(-1, 2, 3, 8)).reshape(-1, 1, 8),
    "mean": lambda p, x: x + (x.mean(1, keepdims=True) @ p["v"]),
    "convolution": windows,
}


@pytest.mark.slow
@hypothesis.settings(max_examples=8)
@hypothesis.given(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=2, max_size=3))
def test_any_chain_of_blocks_converges_to_its_ann(names):
    params = [weights(seed) for seed in range(len(names) + 1)]

    def fn(params, x):
        x = relu(x @ params[-1]["in"])
        for name, p in zip(names, params, strict=False):
            x = BLOCKS[name](p, x)
        return jnp.tanh(x @ params[-1]["o"]).mean(1) @ params[-1]["out"]

    outputs, answers = simulated(fn, params, X, steps=32, recipe=RECIPE, model=FINE)
    coarse = snnjax.convert(fn, params, X, steps=STEPS, recipe=ROUNDING)
    layers, by_step = by_executions(fn, [STEPS, 1], coarse, X)
    error = np.abs(outputs.mean(0) - answers)
    assert error.mean() < 0.02 and error.max() < 0.2
    assert (np.abs(by_step.mean(0) - layers.mean(0)) < 1e-4).mean() > 0.9
