"""Graphs of NIR have the same spikes, read by snnjax and by other libraries.

A graph is also run by itself, channels first, by an interpreter of NIR in NumPy.
"""

import contextlib
import dataclasses
import functools
import io
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import reference
import test_libraries
from networks import FLAT, NETWORKS, PIXELS, VECTORS, Net, conv, eighths, relu, weights
from reference import windows
from rows import quick_first, thorough
from test_layers import RATE, TOGETHER, changed, fitted, spikes_and_outputs

import snnjax
from snnjax import deploy
from snnjax.neurons.gradients import WithSurrogate

nir = pytest.importorskip("nir")
STEPS = 4
HARD = snnjax.integrate_and_fire(reset="zero", threshold=0.7)
LEAKY = snnjax.lif(leak=0.8, reset="zero", threshold=0.7)


def through_file(graph, tmp_path):
    nir.write(tmp_path / "graph.nir", graph)
    return nir.read(tmp_path / "graph.nir")


# -------------------------------------------------------------- the graph by itself


def node_output(node, x, state):
    """One step of one node; neurons keep their potential in ``state``."""
    if isinstance(node, nir.Conv2d):
        size = node.weight.shape[2:]
        parts = windows(x, size, node.stride, node.padding, node.dilation)
        return (
            np.einsum("bchwij,ocij->bohw", parts, node.weight)
            + node.bias[:, None, None]
        )
    if isinstance(node, nir.Affine):
        return x @ node.weight.T + node.bias
    if isinstance(node, nir.Scale):
        return x * node.scale
    if isinstance(node, nir.SumPool2d | nir.AvgPool2d):
        parts = windows(x, node.kernel_size, node.stride, node.padding)
        reduce = np.mean if isinstance(node, nir.AvgPool2d) else np.sum
        return reduce(parts, axis=(4, 5))
    if isinstance(node, nir.Flatten):
        return x.reshape(len(x), -1)
    if not isinstance(node, nir.IF):
        return x
    metadata = node.metadata or {}
    v = state.get(id(node), metadata.get("v_init", 0.0)) + node.r * x
    spikes = (v > node.v_threshold).astype(v.dtype)
    if metadata.get("reset") in ("subtract", b"subtract"):
        state[id(node)] = v - spikes
    else:
        state[id(node)] = v * (1 - spikes)
    return spikes


def run_graph(graph, x, channel=-1):
    """The outputs of a graph, each [T, B, ...] with the channels last.

    ``channel`` is the axis of x that counts channels.
    """
    x = np.asarray(x, np.float64)
    if x.ndim == 4:
        x = np.moveaxis(x, channel, 1)
    # All other names sort in order of execution.
    names = ["input", *sorted(graph.nodes.keys() - {"input"})]
    state = {}
    outputs = {}
    for _ in range(STEPS):
        values = {}
        for name in names:
            node = graph.nodes[name]
            inputs = [
                values[source] for source, target in graph.edges if target == name
            ]
            total = sum(inputs) if inputs else x
            (shape,) = node.input_type.values()
            assert total.shape[1:] == tuple(shape), name
            values[name] = node_output(node, total, state)
            if isinstance(node, nir.Output):
                outputs.setdefault(name, []).append(values[name])
    results = []
    for steps in outputs.values():
        output = np.stack(steps)
        results.append(np.moveaxis(output, 2, -1) if output.ndim == 5 else output)
    return results


def check(net, snn, graph, *, by_itself=True, read=True, x=None):
    """The graph has the outputs of the SNN that it was written from.

    Args:
        by_itself: run the graph as NIR defines it.
        read: run the network of `from_nir`.
        x: input of the network of `from_nir`; None: that of ``net``.
    """

    def original(net_x, _):
        return snnjax.spiking(net.fn, steps=STEPS)(snn, net_x)

    def after_reading(_, x):
        fn, read_snn = deploy.as_function(deploy.from_nir(graph))
        return snnjax.spiking(fn, steps=STEPS)(read_snn, x)

    runs = [original, after_reading] if read else [original]
    outputs = networks.outputs_of(runs, net.x, net.x if x is None else x)
    expected, *from_reading = map(jax.tree.leaves, outputs)
    cases = [(arrays, 1e-5) for arrays in from_reading]
    if by_itself:
        cases.append((run_graph(graph, net.x), 1e-4))
    for arrays, tolerance in cases:
        for output, result in zip(expected, arrays, strict=True):
            assert np.any(output)
            result = result.reshape(output.shape)
            np.testing.assert_allclose(result, output, tolerance, tolerance)


# ------------------------------------------------------------------ out and in again


def image(function, out=4, **more):
    """A network with ``function`` between a site and the next, on images."""
    params = weights(w1=(3, 3, 2, 4), w3=(out, 3), **more)

    def fn(p, x):
        y = function(p, relu(conv(x, p["w1"])))
        return relu(y).sum((1, 2)) @ p["w3"]

    return Net(fn, params, PIXELS, 2)


def vector(function, out=6, **more):
    """The same on vectors."""
    params = weights(w1=(4, 6), w3=(out, 3), **more)
    return Net(
        lambda p, x: relu(function(p, relu(x @ p["w1"]))) @ p["w3"], params, VECTORS, 2
    )


def overlapping_mean(p, x):
    """Average pooling that does not count its padding, as in flax."""
    window, stride, pads = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (0, 1), (0, 1), (0, 0))
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, stride, pads)
    ones = jnp.ones((1, *x.shape[1:]))
    return total / jax.lax.reduce_window(ones, 0.0, jax.lax.add, window, stride, pads)


def norm_then_conv(p, x):
    """Adds a constant that zero padding does not continue."""
    return conv((x - 0.25) / jnp.array([0.5, 1, 2, 1]), p["w2"])


def shared_norm(p, x):
    y = conv(x, p["w2"])
    return y + conv(relu(y * 0.75 + 0.125), p["w2"])


def dense_block(p, x):
    return conv(jnp.concatenate([x, relu(conv(x, p["w2"]))], -1), p["wide"])


IMAGES = {
    "a kernel of even size, padding apart": image(
        lambda p, x: conv(x, p["w2"], padding=((2, 1), (1, 2)), stride=2),
        w2=(2, 2, 4, 4),
    ),
    "dense over channels": image(lambda p, x: x @ p["w2"], w2=(4, 4)),
    "channels taken in another order": image(
        lambda p, x: x[..., np.array([2, 0, 3, 3])]
    ),
    "mean that does not count padding": image(overlapping_mean),
    "norm before a padded convolution": image(norm_then_conv, w2=(3, 3, 4, 4)),
    "what two read is not scaled for one": image(shared_norm, w2=(3, 3, 4, 4)),
    "dense block": image(dense_block, w2=(3, 3, 4, 4), wide=(3, 3, 8, 4)),
    "negative, doubled, subtracted": image(lambda p, x: x + x - (-x) * p["s"], s=(4,)),
    "sum over rows": image(lambda p, x: x.sum(1, keepdims=True) / 6),
    "an image [H, W, C] flattened by columns": Net(
        lambda p, x: relu(
            relu(conv(x, p["w1"])).transpose(0, 2, 1, 3).reshape(len(x), -1) @ p["w"]
        ),
        weights(w1=(3, 3, 2, 4), w=(144, 3)),
        PIXELS,
        2,
    ),
    "outputs that are images": Net(
        lambda p, x: (conv(relu(x), p["w"]), relu(conv(x, p["w"])) * 2 - 1),
        weights(w=(3, 3, 2, 4)),
        PIXELS,
        2,
    ),
}
VECTOR_NETS = {
    "split": vector(lambda p, x: jnp.concatenate(jnp.split(x, 2, -1)[::-1], -1)),
    "a sum with its reverse": vector(lambda p, x: x + x[:, ::-1] * p["s"], s=(6,)),
    "padded": vector(lambda p, x: jnp.pad(x, ((0, 0), (1, 2))), out=9),
    "reshaped and back": vector(
        lambda p, x: jnp.swapaxes(x.reshape(-1, 2, 3), 1, 2).reshape(-1, 6)
    ),
    "weights on the left": vector(lambda p, x: (p["w2"] @ x.T).T, w2=(6, 6)),
    "outputs that are no images": Net(
        lambda p, x: (
            relu(x @ p["w"]).reshape(len(x), 2, 3).swapaxes(1, 2),
            relu(x)[:, ::-1] * 2 - 1,
        ),
        weights(w=(4, 6)),
        VECTORS,
        2,
    ),
}
LIBRARIES = ("nnx_split", "equinox")  # it maps over the batch and moves axes
WRITTEN = TOGETHER | {
    "parts of images": networks.together(IMAGES),
    "parts of vectors": networks.together(VECTOR_NETS),
    "several axes, with a constant": Net(
        lambda p, x: relu(relu(x + 0.25)[:, ::-1].reshape(len(x), -1) @ p["w"]),
        weights(w=(24, 3)),
        eighths(5, (3, 2, 3, 2, 2)),
        2,
    ),
}


@pytest.mark.parametrize(
    "name", quick_first([*WRITTEN, *LIBRARIES], "images", "equinox")
)
def test_a_graph_has_the_spikes_of_its_network(name, tmp_path):
    if name in LIBRARIES:
        net = Net(*getattr(test_libraries, name)(), test_libraries.X, 2)
    else:
        net = WRITTEN[name]
    snn = fitted(net)
    graph = deploy.to_nir(deploy.layers(net.fn, snn, net.x), extended=True)
    graph = through_file(graph, tmp_path)
    check(net, snn, graph, read=name in TOGETHER)


def test_a_file_is_read_as_its_graph(tmp_path):
    net = WRITTEN["parts of vectors"]
    layers = deploy.layers(net.fn, fitted(net), net.x)
    graph = deploy.to_nir(layers, extended=True)
    graph = through_file(graph, tmp_path)
    expected, layers = deploy.from_nir(graph), deploy.from_nir(tmp_path / "graph.nir")
    assert [node.name for node in layers.nodes] == [n.name for n in expected.nodes]
    for weight, original in zip(layers.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(weight, original)


def test_a_kernel_with_padding_on_one_side_comes_back():
    """The graph has a square kernel, padded alike; layers have that of the function."""

    def fn(p, x):
        x = relu(conv(x, p["w1"], stride=2))
        return relu(conv(x, p["w2"], padding=((0, 1), (2, 2))))

    params = weights(w1=(3, 3, 2, 4), w2=(2, 5, 4, 3))
    net = Net(fn, params, PIXELS, 2)
    snn = fitted(net)
    layers = deploy.layers(fn, snn, PIXELS)
    graph = deploy.to_nir(layers, extended=True)
    written = [n for n in graph.nodes.values() if isinstance(n, nir.Conv2d)]
    assert [n.weight.shape for n in written[:2]] == [(4, 2, 4, 4), (3, 4, 5, 5)]
    # The third map is the threshold of the last neurons.
    shapes = [weight.shape for weight in deploy.from_nir(graph).weights]
    assert shapes[:2] == [weight.shape for weight in layers.weights[:2]]
    check(net, snn, graph)


def test_channels_first_networks_have_the_same_graph():
    first = functools.partial(conv, order=networks.CHANNELS_FIRST)

    def fn(p, x):
        y = relu(first((x - 0.5) * 2, p["w1"]))
        return relu(first(y, p["w2"])), y.reshape(y.shape[0], -1) @ p["w3"]

    params = weights(w1=(4, 2, 3, 3), w2=(3, 4, 3, 3), w3=(144, 3))
    x = np.moveaxis(PIXELS, -1, 1)
    snn = fitted(Net(fn, params, x, 2))
    graph = deploy.to_nir(deploy.layers(fn, snn, x), extended=True)
    assert list(graph.nodes["input"].input_type["input"]) == [2, 6, 6]
    assert list(graph.nodes)[-2:] == ["output_0", "output_1"]
    images, logits = networks.compiled(fn, steps=STEPS)(snn, x)
    expected = (np.moveaxis(images, 2, -1), logits)
    for output, result in zip(expected, run_graph(graph, x, channel=1), strict=True):
        assert np.any(output)
        np.testing.assert_allclose(result, output, rtol=1e-4, atol=1e-4)


RANDOM_X = np.float32(np.random.default_rng(0).normal(size=(2, 6, 7, 3)))


def random_network(seed):
    """Up to six random layers, then all elements in a matrix product."""
    generator = np.random.default_rng(seed)
    functions, y = [], RANDOM_X
    for _ in range(generator.integers(2, 7)):
        function = random_layer(generator, y.shape[-1])
        shape = jax.eval_shape(function, y)
        if shape.size:
            functions.append(function)
            y = shape
    weight = np.float32(generator.normal(size=(y.size // 2, 4)))

    def fn(p, x):
        for function in functions:
            x = function(x)
        return relu(x + 0.5).reshape(len(x), -1) @ p

    return Net(fn, weight, RANDOM_X, 0)


def random_layer(generator, channels):
    """A convolution, pool, stride, choice of channels, sum, scale or ReLU."""
    rows, columns, out = generator.integers(1, 4, 3).tolist()
    strides = generator.integers(1, 3, 2).tolist()
    dilation = generator.choice([1, 1, 2], 2).tolist()
    padding = str(generator.choice(["SAME", "VALID"]))
    groups = int(generator.choice([1, 1, channels]))
    kernel = generator.normal(size=(rows, columns, channels // groups, out * groups))
    kernel = np.float32(kernel / np.sqrt(rows * columns * channels))
    chosen = generator.integers(0, channels, out)

    def convolution(x):
        return conv(x, kernel, strides, padding, groups, dilation)

    def pool(x):
        window, stride = (1, rows, columns, 1), (1, *strides, 1)
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, stride, padding) / 2

    layers = [convolution, convolution, convolution, pool, relu, relu]
    layers += [lambda x: x[:, :: strides[0], :: strides[1]]]
    layers += [lambda x: jnp.concatenate([x, x[..., chosen]], -1)]
    layers += [lambda x: x * 1.5 - 0.25, lambda x: x - 0.5 * relu(x)]
    return layers[generator.integers(len(layers))]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "seeds", [range(6), pytest.param(range(6, 206), marks=pytest.mark.slow)]
)
def test_random_networks_have_their_spikes_or_are_refused(seeds):
    refusals = 0
    for seed in seeds:
        net = random_network(seed)
        snn = fitted(net)
        try:
            graph = deploy.to_nir(deploy.layers(net.fn, snn, net.x), extended=True)
        except snnjax.ConversionError:
            refusals += 1
            continue
        check(net, snn, graph, read=False)
    assert refusals < len(seeds) / 4


def flattened(p, x):
    """Convolution, BatchNorm, average pooling, flatten, dense."""
    scale = p["scale"] / jnp.sqrt(p["var"] + 1e-5)
    x = relu((conv(x, p["w1"]) - p["mean"]) * scale + p["offset"])
    return relu(networks.average_pool(x).reshape(x.shape[0], -1) @ p["w5"])


FLATTENED = Net(
    flattened, NETWORKS["batch norm"].params | weights(w5=(36, 3)), PIXELS, 2
)


def residual(p, x):
    x = relu(x @ p["w1"])
    return relu(relu(x @ p["w2"]) @ p["w2"] + x) @ p["w3"]


def test_a_residual_network_of_best_comes_back_with_its_wait(tmp_path):
    options = {"steps": 4, "wait": 1, "recipe": snnjax.best()}
    snn = snnjax.convert(residual, FLAT, VECTORS, **options)
    graph = deploy.to_nir(deploy.layers(residual, snn, VECTORS), extended=True)
    graph = through_file(graph, tmp_path)
    read_fn, read_snn = deploy.as_function(deploy.from_nir(graph))
    assert (read_snn.steps, read_snn.wait) == (4, 1)
    assert read_snn.model.reset == "subtract"
    runs = [spikes_and_outputs(residual, snn), spikes_and_outputs(read_fn, read_snn)]
    (spikes, outputs), (read_spikes, read_outputs) = networks.outputs_of(runs, VECTORS)
    np.testing.assert_allclose(read_outputs, outputs, rtol=1e-5, atol=1e-5)
    sites = zip(spikes.values(), read_spikes.values(), strict=True)
    for site_spikes, read_site_spikes in sites:
        assert np.any(site_spikes)
        np.testing.assert_array_equal(site_spikes > 0, read_site_spikes > 0)


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_leaky_neurons_come_back(reset, tmp_path):
    """Sites with a leak by channel, none, and by neuron, as their thresholds are."""
    net = NETWORKS["zero padding"]
    snn = fitted(net, reset=reset, leak=1.0)
    first, _, last = snnjax.sites(*net[:3])
    channels, size = snn.neurons[first.name].threshold.shape, last.shape
    draws = np.random.default_rng(1).uniform(0.4, 0.9, (2, *size))
    threshold, leak = np.float32(draws)
    changes = {
        first.name: {"leak": jnp.linspace(0.4, 0.9, 4).reshape(channels)},
        last.name: {"threshold": threshold, "leak": leak, "bias": jnp.float32(0)},
    }
    neurons = {n: p._replace(**changes.get(n, {})) for n, p in snn.neurons.items()}
    snn = dataclasses.replace(snn, neurons=neurons)
    layers = deploy.layers(net.fn, snn, net.x)
    graph = deploy.to_nir(layers, extended=reset == "subtract")
    graph = through_file(graph, tmp_path)
    kinds = [type(n) for n in graph.nodes.values() if isinstance(n, nir.IF | nir.LIF)]
    assert kinds == [nir.LIF, nir.IF, nir.LIF]
    check(net, snn, graph, by_itself=False)


# ------------------------------------------------------------------------ whole numbers


def whole(fn, snn, x, plain=False):
    """Layers of small whole numbers, so that potentials often equal a threshold.

    ``plain``: without the initial potentials.
    """
    layers = deploy.quantize(deploy.layers(fn, snn, x), x, weight_bits=3)
    if plain:
        layers = changed(layers, initial_potential=np.zeros(()))
    return layers


def whole_input(layers, x):
    """x as a reader of the graph gets it, channels first."""
    numbers = np.rint(deploy.on_grid(layers, x) / layers.nodes[0].unit)
    numbers = np.moveaxis(numbers, -1, 1) if numbers.ndim == 4 else numbers
    return np.ascontiguousarray(numbers, np.float32)


def check_sums(sums, layers, outputs):
    """What a reader returns, channels first, is the outputs over the unit of each."""
    assert len(layers.outputs) == len(sums)
    for node, total in zip(layers.outputs, sums, strict=True):
        result = outputs[node.name] if isinstance(outputs, dict) else outputs
        assert np.any(total), node.name
        total = total * node.unit
        total = np.moveaxis(total, 2, -1) if total.ndim == 5 else total
        np.testing.assert_allclose(total, result, rtol=1e-5, err_msg=node.name)


@pytest.mark.parametrize(
    "net, neurons",
    [
        (FLATTENED, ((0, 1), "zero", 0)),
        *thorough(
            (NETWORKS["several outputs"], ((-1, 1), "subtract", 1)),
            (NETWORKS["dense"], ((0, 1), "subtract", 0, (0, 0.5), None, -0.3)),
        ),
    ],
    ids=["plain", "extended", "lower bound"],
)
def test_a_graph_of_whole_numbers_has_the_spikes_of_a_chip(net, neurons, tmp_path):
    is_plain = neurons[1] == "zero"
    integers = whole(net.fn, fitted(net, RATE, *neurons), net.x, is_plain)
    graph = deploy.to_nir(integers, extended=not is_plain)
    graph = through_file(graph, tmp_path)
    for node in graph.nodes.values():
        for array in (getattr(node, "weight", 0), getattr(node, "bias", 0)):
            np.testing.assert_array_equal(array, np.rint(array))
        if isinstance(node, nir.IF):
            assert not (node.metadata and is_plain)
            threshold = np.nextafter(node.v_threshold, np.float32(np.inf))
            np.testing.assert_array_equal(threshold, np.rint(threshold))
    layers = deploy.from_nir(graph)
    assert layers.arithmetic == integers.arithmetic
    trace = deploy.run(integers, net.x)
    read_trace = deploy.run(layers, net.x)
    fn, snn = deploy.as_function(layers)
    spikes, outputs = jax.jit(spikes_and_outputs(fn, snn))(
        deploy.on_grid(layers, net.x)
    )
    # Names in the graph sort by execution, as the populations do.
    nodes = zip(integers.populations, layers.populations, sorted(spikes), strict=True)
    for node, read_node, site in nodes:
        expected = trace.spikes[node.name]
        assert np.any(expected)
        np.testing.assert_array_equal(spikes[site], expected)
        np.testing.assert_array_equal(read_trace.spikes[read_node.name], expected)
        potentials = read_trace.potentials[read_node.name]
        np.testing.assert_array_equal(potentials, trace.potentials[node.name])
    expected = jax.tree.leaves(trace.outputs)
    for results in (read_trace.outputs, outputs):
        leaves = jax.tree.leaves(results)
        for output, result in zip(expected, leaves, strict=True):
            np.testing.assert_allclose(result, output, rtol=1e-5, atol=1e-6)
    if is_plain:
        sums = run_graph(graph, whole_input(integers, net.x), channel=1)
        check_sums(sums, integers, trace.outputs)


# --------------------------------------------------------------------- what is written


def test_a_graph_is_channels_first_with_batch_norm_folded():
    fn, params, x, _ = FLATTENED
    graph = deploy.to_nir(deploy.layers(fn, snnjax.init(fn, params, x, model=HARD), x))
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    layers = ["Conv2d", "IF", "SumPool2d", "Flatten", "Affine", "IF", "Scale"]
    assert kinds == ["Input", *layers, "Output"]
    types = [list(*node.input_type.values()) for node in graph.nodes.values()]
    assert types[:5] == [[2, 6, 6], [2, 6, 6], [4, 6, 6], [4, 6, 6], [4, 3, 3]]
    scale = params["scale"] / np.sqrt(params["var"] + 1e-5)
    expected = (params["offset"] - params["mean"] * scale) / 0.7
    (name,) = (n for n, node in graph.nodes.items() if isinstance(node, nir.Conv2d))
    np.testing.assert_allclose(graph.nodes[name].bias, expected, rtol=1e-5)


def test_neurons_have_threshold_one_and_dt_is_a_unit_only():
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x, model=LEAKY)
    graphs = {
        dt: deploy.to_nir(deploy.layers(net.fn, snn, net.x), dt=dt)
        for dt in (1.0, 1e-4)
    }
    for dt, graph in graphs.items():
        assert graph.metadata["dt"] == dt
        neurons = [n for n in graph.nodes.values() if isinstance(n, nir.LIF)]
        assert len(neurons) == 2
        for node in neurons:
            np.testing.assert_allclose(node.tau, dt * 5, rtol=1e-6)
            np.testing.assert_allclose(node.r, 5, rtol=1e-6)  # tau / dt, R I is tau I
            np.testing.assert_allclose(node.v_threshold, 1, rtol=1e-7)
            assert node.metadata == {}
            assert not node.v_reset.any() and not node.v_leak.any()
        leaks = [p.leak for p in deploy.from_nir(graph).populations]
        np.testing.assert_allclose(leaks, 0.8, rtol=1e-6)


def test_a_resistance_is_tau_over_dt_or_one_with_other_weights():
    net = NETWORKS["dense"]
    layers = deploy.layers(
        net.fn, snnjax.init(net.fn, net.params, net.x, model=LEAKY), net.x
    )
    graph = deploy.to_nir(layers)
    unit = deploy.to_nir(layers, unit_resistance=True)
    assert len(deploy.from_nir(graph).nodes) == len(layers.nodes)  # without a gain
    for (name, node), other in zip(
        graph.nodes.items(), unit.nodes.values(), strict=True
    ):
        if isinstance(node, nir.LIF):
            assert (other.r == 1).all()
            np.testing.assert_allclose(node.tau, other.tau)
            source = next(a for a, b in graph.edges if b == name)
            weight, larger_weight = (g.nodes[source].weight for g in (graph, unit))
            np.testing.assert_allclose(5 * weight, larger_weight, rtol=1e-5)


def test_an_option_a_shortcut_is_one_convolution_and_names_sort_by_execution():
    """A file lists nodes by name, and some readers execute them in that order."""
    fn, params, x, _ = NETWORKS["zero padding"]
    graph = deploy.to_nir(deploy.layers(fn, snnjax.init(fn, params, x, model=HARD), x))
    (shortcut,) = (
        node
        for node in graph.nodes.values()
        if isinstance(node, nir.Conv2d) and node.weight.shape == (6, 4, 1, 1)
    )
    assert tuple(shortcut.stride) == (2, 2)
    np.testing.assert_allclose(shortcut.weight[1:5, :, 0, 0], np.eye(4), rtol=1e-6)
    assert not shortcut.weight[:1].any() and not shortcut.weight[5:].any()
    names = list(graph.nodes)
    assert len(names) > 10 and names == sorted(names)  # "10" follows "9"
    assert all(names.index(a) < names.index(b) for a, b in graph.edges)


# -------------------------------------------------------------------- other libraries
#
# All of them read the file of `to_nir`. With random weights no potential equals its
# threshold. The last thresholds are 1, the others differ between channels.


def uniform(seed, low, high, rule, **shapes):
    """Uniform weights in low..high, divided by ``rule`` of the number of inputs."""
    generator = np.random.default_rng(seed)
    return {
        name: np.float32(generator.uniform(low, high, s) / rule(np.prod(s[:-1])))
        for name, s in shapes.items()
    }


def dense(p, x):
    x = relu(x @ p["w1"] + p.get("b1", 0.0))
    x = relu(x @ p["w2"] + p.get("b2", 0.0))
    return relu(x @ p["w3"])


def skip(p, x):
    """Convolutions with a stride and a sum of spikes."""
    x = relu(conv(x, p["w1"], stride=2))
    return relu(conv(x + relu(conv(x, p["w2"])), p["w3"]))


def pool(p, x):
    x = relu(conv(relu(conv(x, p["w1"], stride=2)), p["w2"]))
    return relu(networks.average_pool(x).reshape(x.shape[0], -1) @ p["w3"])


SHAPES = dict(w1=(6, 20), w2=(20, 15), w3=(15, 5))
WEIGHTS = uniform(0, -1.5, 2.5, np.sqrt, **SHAPES)
FEATURES = np.float32(np.random.default_rng(0).uniform(size=(7, 6)))
FRAMES = np.float32(np.random.default_rng(1).uniform(size=(5, 8, 8, 2)))
KERNELS = dict(w1=(3, 3, 2, 4), w2=(3, 3, 4, 4), w3=(3, 3, 4, 3))
POOLED = dict(w1=(3, 3, 2, 4), w2=(3, 3, 4, 5), w3=(20, 3))
BIASES = uniform(3, -1.5, 2.5, np.sqrt, b1=(20,), b2=(15,))
MLP = (dense, WEIGHTS | BIASES, FEATURES)
SUM = (skip, uniform(1, -1, 1.7, lambda n: 3, **KERNELS), FRAMES)
# Positive weights, as sinabs needs them.
POSITIVE = (dense, uniform(0, 0, 1.5, lambda n: n, **SHAPES), FEATURES)
POOL = (pool, uniform(2, 0, 2.5, lambda n: n, **POOLED), FRAMES)
ZERO = snnjax.integrate_and_fire(reset="zero")
SUBTRACT = snnjax.integrate_and_fire()
LEAKY_ZERO = snnjax.lif(leak=0.8, reset="zero")


def written(network, neuron, tmp_path, steps=12, unit_resistance=False):
    """Spikes [T, B, ...] of snnjax (0 or 1), x, both channels first, and the graph."""
    fn, params, x = network
    snn = snnjax.init(fn, params, x, model=neuron)
    *hidden, _ = snn.neurons
    for i, name in enumerate(hidden, 1):
        threshold = jnp.linspace(1.0, 1.4, params[f"w{i}"].shape[-1])
        snn.neurons[name] = snn.neurons[name]._replace(threshold=threshold)
    layers = deploy.layers(fn, snn, x)
    graph = deploy.to_nir(
        layers,
        extended=neuron.reset == "subtract",
        unit_resistance=unit_resistance,
    )
    spikes = np.asarray(networks.compiled(fn, steps=steps)(snn, x))
    assert 0.1 < spikes.mean() < 0.9
    if x.ndim == 4:
        x, spikes = np.moveaxis(x, -1, 1), np.moveaxis(spikes, -1, 2)
    return spikes, np.ascontiguousarray(x), through_file(graph, tmp_path)


def norse(graph, x, steps):
    """It fires at v > v_threshold, and ignores R and all metadata; dt is an argument.

    Its Flatten counts the batch as axis 0, so images stay images here.
    """
    from norse.torch.utils.import_nir import from_nir

    return torch_steps(from_nir(graph, dt=graph.metadata["dt"]), x, steps)


def snntorch(graph, x, steps):
    """It assumes dt = 1e-4 and one threshold for all, which it scales by R.

    It reads an IF as a leaky neuron with beta 0.9, so only LIF is the same.
    """
    from snntorch.import_nir import import_from_nir

    with contextlib.redirect_stdout(io.StringIO()):
        module = import_from_nir(graph)
    return torch_steps(module, x, steps)


def torch_steps(module, x, steps):
    """Outputs of a module that returns (spikes, state) for (x, state)."""
    import torch

    state, outputs = (), []
    for _ in range(steps):
        output, *state = module(torch.tensor(x), *state)
        outputs.append(output.detach().numpy())
    return np.stack(outputs)


def sinabs(graph, x, steps):
    """It fires at v >= v_threshold, and always resets by subtraction.

    It fires several spikes in a step if v is several thresholds, and clips v at -V_th.
    Here weights are positive and no potential reaches two thresholds.
    """
    import torch
    from sinabs.nir import from_nir

    module = from_nir(graph, batch_size=len(x))
    frames = np.repeat(x, steps, axis=0)  # [batch x time, ...]
    output = module(torch.tensor(frames))
    output = output[0] if isinstance(output, tuple) else output
    return output.detach().numpy().reshape(len(x), steps, -1).swapaxes(0, 1)


def spyx(graph, x, steps):
    """Its IF resets by subtraction and fires on the potential of the step before.

    So spikes of the three layers come three steps late; biases would be too early.
    """
    from spyx.nir import from_nir

    more = steps + 3
    return np.asarray(from_nir(graph, jnp.broadcast_to(x, (more, *x.shape)))[1])[3:]


READERS = [
    (norse, SUM, ZERO),
    (norse, MLP, LEAKY_ZERO),
    (snntorch, SUM, LEAKY_ZERO),
    (snntorch, MLP, LEAKY_ZERO),
    (sinabs, POSITIVE, SUBTRACT),
    (sinabs, POOL, SUBTRACT),
    (spyx, (dense, WEIGHTS, FEATURES), SUBTRACT),
]
WHOLE_READERS = [(norse, SUM, ZERO), *(case for case in READERS if case[0] is sinabs)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader, network, neuron", READERS)
def test_other_libraries_read_the_same_spikes(reader, network, neuron, tmp_path):
    pytest.importorskip(reader.__name__)
    unit_resistance = reader is norse
    spikes, x, graph = written(
        network, neuron, tmp_path, unit_resistance=unit_resistance
    )
    np.testing.assert_array_equal(reader(graph, x, 12), spikes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader, network, neuron", WHOLE_READERS)
def test_other_libraries_read_the_same_whole_numbers(reader, network, neuron, tmp_path):
    """Many potentials equal their threshold: Norse fires above it, as NIR defines."""
    pytest.importorskip(reader.__name__)
    fn, params, x = network
    channels = jax.eval_shape(fn, params, x).shape[-1]
    params = params | weights(readout=(channels, 3))

    def with_readout(p, x):
        return fn(p, x) @ p["readout"]

    snn = snnjax.init(with_readout, params, x, model=neuron)
    layers = whole(with_readout, dataclasses.replace(snn, steps=12), x, plain=True)
    graph = deploy.to_nir(layers, extended=neuron.reset == "subtract")
    trace = deploy.run(layers, x)
    assert all(0.05 < np.mean(spikes) < 0.9 for spikes in trace.spikes.values())
    graph = through_file(graph, tmp_path)
    check_sums([reader(graph, whole_input(layers, x), 12)], layers, trace.outputs)


# ------------------------------------------------------------------- graphs of others


def chain(*nodes, metadata=None):
    graph = nir.NIRGraph.from_list(*nodes)
    graph.metadata.update(metadata or {})
    return graph


def linear(weight):
    return nir.Linear(np.asarray(weight, np.float32))


def neurons(*shape):
    """IF with thresholds and resistances of 1."""
    ones = np.ones(shape, np.float32)
    return nir.IF(r=ones, v_threshold=ones)


def run(graph, x, steps, dt=None):
    """Outputs [T, B, ...] of the network of a graph."""
    fn, snn = deploy.as_function(deploy.from_nir(graph, dt=dt))
    return np.asarray(networks.compiled(fn, steps=steps)(snn, x))


def test_resistance_threshold_tau_and_leak_voltage_are_those_of_euler():
    """v <- v + dt / tau (v_leak - v + R I), with dt 1 ms."""
    one = np.ones(2, np.float32)
    node = nir.LIF(tau=4e-3 * one, r=3 * one, v_leak=one / 2, v_threshold=0.9 * one)
    graph = chain(linear(np.eye(2)), node, linear([[1.0, 0.0], [0.0, 2.0]]))
    outputs = run(graph, np.float32([[0.7, 0.4]]), 9, dt=1e-3)
    currents = 0.25 * (3 * np.array([0.7, 0.4]) + 0.5)
    for neuron, (current, weight) in enumerate(zip(currents, (1, 2), strict=True)):
        expected = reference.neuron(np.full(9, current), 0.9, leak=0.75, reset="zero")
        spikes = outputs[:, 0, neuron]
        assert 0 < (spikes > 0).sum() < 9
        np.testing.assert_allclose(spikes, weight * (np.array(expected) > 0))


def test_pooling_and_scale_of_others():
    two, three, none = np.full((3, 2), [[2], [3], [0]])
    scale = np.arange(1, 28, dtype=np.float32).reshape(3, 3, 3) / 16
    graph = chain(
        nir.Input({"input": np.array([3, 6, 6])}),
        nir.AvgPool2d(two, two, none),
        nir.Scale(scale),
        neurons(3, 3, 3),
        nir.SumPool2d(three, three, none),
        nir.Flatten({"input": np.array([3, 1, 1])}, 0, -1),
    )
    x = eighths(0, (2, 6, 6, 3))
    means = np.asarray(x).reshape(2, 3, 2, 3, 2, 3).mean((2, 4))
    current = means * np.moveaxis(scale, 0, -1)
    above = np.nextafter(1, 2)
    spikes = reference.simulate(np.stack([current] * 5), above, reset="zero")
    assert spikes.any()
    np.testing.assert_allclose(run(graph, x, 5), spikes.sum((2, 3)))


def test_padding_by_name_is_that_of_jax():
    """Layers pad alike on both sides; a kernel of even size reads one more behind."""
    x = eighths(2, (2, 6, 6, 3))
    for padding, size in (("same", 3), ("same", 4), ("valid", 3)):
        weight = np.asarray(eighths(1, (2, 3, size, size)))
        currents = conv(x, weight.transpose(2, 3, 1, 0), padding=padding.upper())
        graph = chain(
            nir.Input({"input": np.array([3, 6, 6])}),
            nir.Conv2d((6, 6), weight, (1, 1), padding, (1, 1), 1, np.zeros(2)),
            neurons(2, *currents.shape[1:3]),
        )
        fn, snn = deploy.as_function(deploy.from_nir(graph))
        outputs = fn(snn.params, x)
        assert outputs.any()
        np.testing.assert_allclose(outputs, relu(currents), rtol=1e-5, atol=1e-6)


def test_order_of_nodes_and_dead_ends_do_not_matter():
    nodes = {
        "out": nir.Output({"output": np.array([2])}),
        "spike": neurons(2),
        "nowhere": linear(np.eye(2)),
        "a": linear(np.eye(2) * 0.5),
        "b": linear(np.eye(2) * 0.25),
        "in": nir.Input({"input": np.array([2])}),
    }
    edges = [("spike", "out"), ("a", "spike"), ("b", "spike"), ("in", "nowhere")]
    edges += [("in", "a"), ("in", "b")]
    graph = nir.NIRGraph(nodes, edges, {}, type_check=False)
    outputs = run(graph, np.ones((1, 2), np.float32), 6)
    np.testing.assert_array_equal(outputs[:, 0, 0], [0, 1, 0, 1, 0, 1])


def test_a_neuron_of_nir_fires_above_its_threshold_and_not_at_it():
    thresholds = np.array([1.0, 0.75, 0.3, np.float32(0.3)]).repeat(3)
    rounded = thresholds.astype(np.float32)
    x = np.nextafter(rounded, np.tile(np.float32([0, 1, 2]), 4))
    x[1::3] = rounded[1::3]  # below, at and above each threshold
    graph = chain(nir.IF(r=np.ones(12), v_threshold=thresholds), linear(np.eye(12)))
    np.testing.assert_array_equal(run(graph, x[None], 1)[0, 0], x > thresholds)


def test_a_written_neuron_fires_at_its_threshold(tmp_path):
    """With these weights potentials often equal it; x is promoted to its type."""
    net = NETWORKS["zero padding"]
    snn = snnjax.init(net.fn, net.params, net.x, model=ZERO)
    graph = through_file(deploy.to_nir(deploy.layers(net.fn, snn, net.x)), tmp_path)
    first = next(node for node in graph.nodes.values() if isinstance(node, nir.IF))
    numbers = np.float32([1 - 2**-23, 1 - 2**-24, 1])
    np.testing.assert_array_equal(numbers > first.v_threshold.flat[0], numbers >= 1)
    # Eighths are exact in bfloat16, and a convolution takes operands of one type.
    check(net, snn, graph, by_itself=False, x=net.x.astype(jnp.bfloat16))


# ------------------------------------------------------------------------ refusals


def test_a_surrogate_of_the_neurons_does_not_matter_to_nir():
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x, model=HARD)
    with_surrogate = dataclasses.replace(snn, model=WithSurrogate(HARD))
    assert deploy.to_nir(deploy.layers(net.fn, with_surrogate, net.x)).nodes


def test_without_the_package_nir_the_error_says_what_to_install(monkeypatch):
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x, model=HARD)
    layers = deploy.layers(net.fn, snn, net.x)
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(ImportError, match=r"snnjax\[nir\]"):
        deploy.to_nir(layers)


def unchecked(edges="", shape=(2,), **nodes):
    """A graph that the package nir has not checked; by default a chain."""
    nodes["output"] = nir.Output({"output": np.array(shape)})
    nodes = {"input": nir.Input({"input": np.array(shape)}), **nodes}
    pairs = [tuple(edge.split("-")) for edge in edges.split()] or pairwise(nodes)
    return nir.NIRGraph(nodes, list(pairs), {}, type_check=False)


def test_an_error_of_a_node_names_it():
    """Channels last, a matrix would multiply another axis of an image than in NIR."""
    image = unchecked(shape=(2, 2, 2), spike=neurons(2, 2, 2), matrix=linear(np.eye(2)))
    vector = unchecked(spike=neurons(2), matrix=linear(np.ones((3, 5))))
    for graph, words in ((image, "Put a Flatten before it"), (vector, None)):
        with pytest.raises((TypeError, ValueError), match=words) as error:
            deploy.as_function(deploy.from_nir(graph))
        notes = getattr(error.value, "__notes__", [])
        assert any("at node 'matrix'" in text for text in (str(error.value), *notes))
