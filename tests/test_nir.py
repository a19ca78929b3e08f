"""Graphs of NIR have the same spikes, read by snnjax and by other libraries."""

import contextlib
import dataclasses
import io
import sys
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import test_libraries
from networks import (
    FLAT,
    NETWORKS,
    PIXELS,
    VECTORS,
    Net,
    compiled,
    conv,
    eighths,
    relu,
    weights,
)

import snnjax
from experiments.models import zoo as models

nir = pytest.importorskip("nir")
STEPS = 6
HARD = snnjax.integrate_and_fire(reset="zero", threshold=0.7)
LEAKY = snnjax.lif(leak=0.8, reset="zero", threshold=0.7)


def through_file(graph, tmp_path):
    nir.write(tmp_path / "graph.nir", graph)
    return nir.read(tmp_path / "graph.nir")


def fitted_snn(net, reset="subtract", leak=None):
    """An SNN with other numbers in every channel and, if it can, in every neuron."""
    generator = np.random.default_rng(0)
    neurons = {}
    for site in snnjax.sites(net.fn, net.params, net.x):
        if not site.fires:
            continue
        channel = (site.shape[site.channel], *[1] * (-site.channel - 1))
        neurons[site.name] = snnjax.neurons.NeuronParams(
            threshold=jnp.asarray(generator.uniform(0.4, 0.9, channel), jnp.float32),
            bias=jnp.asarray(generator.normal(size=channel) / 8, jnp.float32),
            initial_potential=jnp.asarray(
                generator.uniform(0, 0.4, site.shape) * (reset == "subtract"),
                jnp.float32,
            ),
            leak=None if leak is None else jnp.broadcast_to(leak, channel),
        )
    model = snnjax.integrate_and_fire(reset=reset)
    return snnjax.SNN(net.params, neurons, model=model)


def check_same(fn, snn, x, graph, steps=STEPS, wait=0, turn=lambda outputs: outputs):
    """The graph's network has the outputs of fn at every step, and its activations."""
    other, other_snn = snnjax.from_nir(graph)
    expected = compiled(fn, steps=steps, wait=wait)(snn, x)
    outputs = compiled(other, steps=steps, wait=wait)(other_snn, x)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    expected = [turn(leaf) for leaf in jax.tree.leaves(expected)]
    assert float(sum(abs(leaf).sum() for leaf in expected)) > 0
    for a, b in zip(expected, outputs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    return other, other_snn


# ------------------------------------------------------------------ out and in again

CONVERTIBLE = [name for name in NETWORKS if "max-pool" not in name]


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_every_network_comes_back_from_a_file(name, tmp_path):
    net = NETWORKS[name]
    snn = fitted_snn(net)
    graph = snnjax.to_nir(net.fn, snn, net.x, extended=True)
    check_same(net.fn, snn, net.x, through_file(graph, tmp_path))


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


def dilated_conv(p, x):
    return jax.lax.conv_general_dilated(
        x,
        p["w2"],
        (1, 1),
        ((2, 1), (2, 1)),
        rhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def overlapping_mean(p, x):
    """Average pooling that does not count its padding, as in flax."""
    window, stride, pads = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (0, 1), (0, 1), (0, 0))
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, stride, pads)
    ones = jnp.ones((1, *x.shape[1:]))
    return total / jax.lax.reduce_window(ones, 0.0, jax.lax.add, window, stride, pads)


def shuffle_channels(x):
    """Interleaves the channels of two groups, as ShuffleNet does."""
    return jnp.swapaxes(x.reshape(*x.shape[:3], 2, 2), 3, 4).reshape(x.shape)


def norm_then_conv(p, x):
    """Adds a constant that zero padding does not continue."""
    return conv((x - 0.25) / jnp.array([0.5, 1, 2, 1]), p["w2"])


def shared_norm(p, x):
    y = conv(x, p["w2"])
    return y + conv(relu(y * 0.75 + 0.125), p["w2"])


def dense_block(p, x):
    return conv(jnp.concatenate([x, relu(conv(x, p["w2"]))], -1), p["wide"])


BETWEEN = {
    "SAME with a stride pads one side": image(
        lambda p, x: conv(x, p["w2"], stride=2), w2=(3, 3, 4, 4)
    ),
    "a kernel that is not square": image(
        lambda p, x: conv(x, p["w2"], stride=2), w2=(1, 3, 4, 4)
    ),
    "a kernel of even size": image(lambda p, x: conv(x, p["w2"]), w2=(2, 2, 4, 4)),
    "dilated": image(dilated_conv, w2=(3, 3, 4, 4)),
    "grouped": image(lambda p, x: conv(x, p["w2"], groups=2), w2=(3, 3, 2, 4)),
    "dense over channels": image(lambda p, x: x @ p["w2"], w2=(4, 4)),
    "padding apart": image(
        lambda p, x: conv(
            jnp.pad(x, ((0, 0), (0, 1), (3, 0), (0, 0))), p["w2"], padding="VALID"
        ),
        w2=(3, 3, 4, 4),
    ),
    "crop": image(lambda p, x: x[:, 1:5, 2:] * 1.5),
    "rows of one parity, from the second": image(lambda p, x: x[:, 1::2, ::2]),
    "channels in another order": image(lambda p, x: x[..., jnp.array([2, 0, 3, 3])]),
    "channels in another order before a convolution": image(
        lambda p, x: conv(x[..., jnp.array([2, 0, 3, 1])], p["w2"]), w2=(3, 3, 4, 4)
    ),
    "channels shuffled between groups": image(
        lambda p, x: conv(shuffle_channels(x) - 0.25, p["w2"], groups=2),
        w2=(3, 3, 2, 4),
    ),
    "mean that does not count padding": image(overlapping_mean),
    "mask": image(lambda p, x: jnp.where(jnp.eye(6)[:, :, None] > 0, x, 0.0) * 2),
    "norm before a padded convolution": image(norm_then_conv, w2=(3, 3, 4, 4)),
    "what two read is not scaled for one": image(shared_norm, w2=(3, 3, 4, 4)),
    "dense block": image(dense_block, w2=(3, 3, 4, 4), wide=(3, 3, 8, 4)),
    "negative, doubled, subtracted": image(lambda p, x: x + x - (-x) * p["s"], s=(4,)),
    "sum over rows": image(lambda p, x: x.sum(1, keepdims=True) / 6),
    "split": vector(lambda p, x: jnp.concatenate(jnp.split(x, 2, -1)[::-1], -1)),
    "reversed": vector(lambda p, x: x[:, ::-1] * p["s"], s=(6,)),
    "padded": vector(lambda p, x: jnp.pad(x, ((0, 0), (1, 2))), out=9),
    "part of a flattened image": Net(
        lambda p, x: relu(relu(conv(x, p["w1"])).reshape(len(x), -1)[:, 5:20]) @ p["w"],
        weights(w1=(3, 3, 2, 4), w=(15, 3)),
        PIXELS,
        2,
    ),
    "reshaped and back": vector(
        lambda p, x: jnp.swapaxes(x.reshape(-1, 2, 3), 1, 2).reshape(-1, 6)
    ),
    "repeated": vector(lambda p, x: jnp.repeat(x, 2, -1), out=12),
    "weights on the left": vector(lambda p, x: (p["w2"] @ x.T).T, w2=(6, 6)),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_stands_between_sites_is_written_exactly(name):
    net = BETWEEN[name]
    snn = fitted_snn(net)
    graph = snnjax.to_nir(net.fn, snn, net.x, extended=True)
    check_same(net.fn, snn, net.x, graph)


@pytest.mark.parametrize("build", [test_libraries.nnx_split, test_libraries.equinox])
def test_other_ways_to_write_a_network_do_not_matter(build):
    """equinox maps over the batch and moves axes; nnx nests calls."""
    fn, params = build()
    net = Net(fn, params, test_libraries.X, 2)
    snn = fitted_snn(net)
    check_same(fn, snn, net.x, snnjax.to_nir(fn, snn, net.x, extended=True))


def test_channels_first_networks_come_back_channels_last():
    def first(x, kernel):
        numbers = ("NCHW", "OIHW", "NCHW")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    def fn(p, x):
        y = relu(first(x, p["w1"]))
        return relu(first(y, p["w2"])), y.reshape(y.shape[0], -1) @ p["w3"]

    params = weights(w1=(4, 2, 3, 3), w2=(3, 4, 3, 3), w3=(144, 3))
    x = jnp.moveaxis(PIXELS, -1, 1)
    snn = fitted_snn(Net(fn, params, x, 2))
    graph = snnjax.to_nir(fn, snn, x, extended=True)
    assert list(graph.nodes["input"].input_type["input"]) == [2, 6, 6]
    assert list(graph.nodes)[-2:] == ["output_0", "output_1"]
    other, other_snn = snnjax.from_nir(graph)
    images, logits = compiled(fn, steps=STEPS)(snn, x)
    outputs = compiled(other, steps=STEPS)(other_snn, PIXELS)
    expected = jnp.moveaxis(images, 2, -1)
    np.testing.assert_allclose(outputs["output_0"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs["output_1"], logits, rtol=1e-5, atol=1e-5)


def mlp():
    params = weights(w1=(4, 6), b1=(6,), w2=(6, 6), w3=(6, 3))
    return lambda p, x: relu(relu(x @ p["w1"] + p["b1"]) @ p["w2"]) @ p["w3"], params, 4


def convolutional():
    """Convolution, BatchNorm, average pooling, flatten, dense."""
    net = NETWORKS["batch norm"]
    extra = {"w5": eighths(9, (36, 3))}

    def fn(p, x):
        scale = p["scale"] / jnp.sqrt(p["var"] + 1e-5)
        x = relu((conv(x, p["w1"]) - p["mean"]) * scale + p["offset"])
        total = jax.lax.reduce_window(
            x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
        return relu((total / 4).reshape(x.shape[0], -1) @ p["w5"])

    return fn, net.params | extra, (6, 6, 2)


def residual(blocks=(1, 1), **options):
    """The digits' network, smaller, with random statistics of BatchNorm."""
    net = models.ResNet(3, blocks, (4, 8), stem=((4, 1),), **options)
    variables = net.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    generator = np.random.default_rng(0)

    def random(path, leaf):
        name = path[-1].key
        low, high = {"var": (0.5, 2), "scale": (0.5, 1.5), "kernel": (0, 0)}.get(
            name, (-0.25, 0.25)
        )
        noise = generator.uniform(low, high, leaf.shape)
        return leaf if name == "kernel" else jnp.asarray(noise, jnp.float32)

    return net.apply, jax.tree_util.tree_map_with_path(random, variables), (8, 8, 1)


SOURCES = {
    "MLP": mlp,
    "convolutions": convolutional,
    "option A": residual,
    "projection": lambda: residual((0, 1), projection=True, pool_stem=nn.avg_pool),
}


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "source, recipe, wait",
    [
        ("MLP", snnjax.light, 0),
        ("MLP", snnjax.best, 1),
        ("convolutions", snnjax.light, 0),
        pytest.param("projection", snnjax.light, 0, marks=slow),
        pytest.param("MLP", snnjax.best, 0, marks=slow),
        pytest.param("convolutions", snnjax.best, 0, marks=slow),
        pytest.param("option A", snnjax.light, 0, marks=slow),
        pytest.param("option A", snnjax.best, 0, marks=slow),
        pytest.param("option A", snnjax.best, 1, marks=slow),
        pytest.param("projection", snnjax.best, 0, marks=slow),
        pytest.param("projection", snnjax.best, 4, marks=slow),
    ],
)
def test_converted_networks_come_back_with_the_same_spikes(
    source, recipe, wait, tmp_path
):
    fn, params, shape = SOURCES[source]()
    shape = (12, *np.atleast_1d(shape))
    x = jnp.asarray(np.random.default_rng(1).uniform(size=shape), jnp.float32)
    snn = snnjax.convert(fn, params, x, steps=4, recipe=recipe(), wait=wait)
    graph = through_file(snnjax.to_nir(fn, snn, x, extended=True), tmp_path)
    other, other_snn = check_same(fn, snn, x, graph, 4, wait)
    assert (other_snn.steps, other_snn.wait, other_snn.model.reset) == (
        4,
        wait,
        "subtract",
    )
    before = snnjax.measures.spike_trains(fn, snn, x, steps=4, wait=wait)
    after = snnjax.measures.spike_trains(other, other_snn, x, steps=4, wait=wait)
    for a, b in zip(before.values(), after.values(), strict=True):
        np.testing.assert_array_equal((a > 0).sum(0), (b > 0).sum(0))


def test_a_written_ann_is_still_the_same_function():
    """Thresholds cancel: the next layer receives relu(I / V_th) V_th = relu(I)."""
    net = NETWORKS["projection"]
    snn = fitted_snn(net)
    neurons = {k: n._replace(bias=jnp.zeros(())) for k, n in snn.neurons.items()}
    snn = dataclasses.replace(snn, neurons=neurons)
    fn, other_snn = snnjax.from_nir(snnjax.to_nir(net.fn, snn, net.x, extended=True))
    expected = net.fn(net.params, net.x)
    np.testing.assert_allclose(
        fn(other_snn.params, net.x), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["dense", "zero padding"])
def test_thresholds_and_leaks_may_differ_between_neurons(name, tmp_path):
    """NIR has a tau per neuron; a threshold per neuron scales the neuron's weights."""
    net = NETWORKS[name]
    generator = np.random.default_rng(1)
    params = {k: v * (not k.startswith("b")) for k, v in net.params.items()}
    neurons = {}
    for site in snnjax.sites(net.fn, params, net.x):
        threshold, leak = (
            jnp.asarray(generator.uniform(0.4, 0.9, site.shape), jnp.float32)
            for _ in range(2)
        )
        zero = jnp.zeros(())
        neurons[site.name] = snnjax.neurons.NeuronParams(threshold, zero, zero, leak)
    model = snnjax.integrate_and_fire(reset="zero")
    snn = snnjax.SNN(params, neurons, model=model)
    graph = through_file(snnjax.to_nir(net.fn, snn, net.x), tmp_path)
    check_same(net.fn, snn, net.x, graph)


@pytest.mark.parametrize("leak", [0.3, 0.5, 0.9, np.linspace(0.4, 0.9, 4)])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_leaky_neurons_come_back(leak, reset, tmp_path):
    net = NETWORKS["zero padding"] if np.ndim(leak) == 0 else NETWORKS["pre-activation"]
    leak = jnp.asarray(leak, jnp.float32)
    snn = fitted_snn(net, reset, leak)
    graph = snnjax.to_nir(net.fn, snn, net.x, extended=reset == "subtract")
    graph = through_file(graph, tmp_path)
    assert any(isinstance(node, nir.LIF) for node in graph.nodes.values())
    check_same(net.fn, snn, net.x, graph)


def test_a_leak_of_one_is_an_if():
    net = NETWORKS["dense"]
    snn = fitted_snn(net, "zero", leak=1.0)
    graph = snnjax.to_nir(net.fn, snn, net.x)
    assert sum(isinstance(node, nir.IF) for node in graph.nodes.values()) == 2
    check_same(net.fn, snn, net.x, graph)


def test_dt_is_a_unit_only():
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x, model=LEAKY)
    coarse = snnjax.to_nir(net.fn, snn, net.x, dt=1.0)
    fine = snnjax.to_nir(net.fn, snn, net.x, dt=1e-4)
    for a, b in zip(coarse.nodes.values(), fine.nodes.values(), strict=True):
        if isinstance(a, nir.LIF):
            np.testing.assert_allclose(a.tau, 5.0, rtol=1e-6)
            np.testing.assert_allclose(b.tau, 5e-4, rtol=1e-6)
    assert (coarse.metadata["dt"], fine.metadata["dt"]) == (1.0, 1e-4)
    check_same(net.fn, snn, net.x, coarse)


# --------------------------------------------------------------------- what is written


def test_a_graph_is_channels_first_with_batch_norm_folded():
    fn, params, shape = convolutional()
    x = jnp.ones((1, *shape))
    graph = snnjax.to_nir(fn, snnjax.init(fn, params, x, model=HARD), x)
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    layers = ["Conv2d", "IF", "SumPool2d", "Flatten", "Affine", "IF", "Affine"]
    assert kinds == ["Input", *layers[:-1], "Scale", "Output"]
    types = [list(*node.input_type.values()) for node in graph.nodes.values()]
    assert types[:5] == [[2, 6, 6], [2, 6, 6], [4, 6, 6], [4, 6, 6], [4, 3, 3]]
    scale = params["scale"] / jnp.sqrt(params["var"] + 1e-5)
    expected = (params["offset"] - params["mean"] * scale) / 0.7
    (name,) = (n for n, node in graph.nodes.items() if isinstance(node, nir.Conv2d))
    np.testing.assert_allclose(graph.nodes[name].bias, expected, rtol=1e-5)


def test_neurons_have_threshold_and_resistance_one_and_reset_to_zero():
    net = NETWORKS["projection"]
    snn = snnjax.init(net.fn, net.params, net.x, model=LEAKY)
    graph = snnjax.to_nir(net.fn, snn, net.x)
    neurons = [n for n in graph.nodes.values() if isinstance(n, nir.LIF)]
    assert len(neurons) == 3
    for node in neurons:
        np.testing.assert_allclose(node.v_threshold, 1, rtol=1e-7)
        assert (node.r == 1).all()
        assert not node.v_reset.any() and not node.v_leak.any()
        assert node.metadata == {}


def test_an_option_a_shortcut_is_one_strided_convolution():
    fn, params, shape = residual(norm=False)
    x = jnp.ones((1, *shape))
    graph = snnjax.to_nir(fn, snnjax.init(fn, params, x, model=HARD), x)
    (shortcut,) = (
        node
        for node in graph.nodes.values()
        if isinstance(node, nir.Conv2d) and node.weight.shape == (8, 4, 1, 1)
    )
    assert tuple(shortcut.stride) == (2, 2)
    np.testing.assert_allclose(shortcut.weight[2:6, :, 0, 0], np.eye(4), rtol=1e-6)
    assert not shortcut.weight[:2].any() and not shortcut.weight[6:].any()


def test_names_sort_in_order_of_execution():
    """A file lists nodes by name, and some readers execute them in that order."""
    fn, params, shape = residual()
    x = jnp.ones((1, *shape))
    graph = snnjax.to_nir(fn, snnjax.init(fn, params, x, model=HARD), x)
    assert list(graph.nodes) == sorted(graph.nodes)
    assert all(
        list(graph.nodes).index(a) < list(graph.nodes).index(b) for a, b in graph.edges
    )


# -------------------------------------------------------------------- other libraries
#
# All of them read the file of `to_nir`. With random weights no potential equals its
# threshold. The last thresholds are 1, the others differ between channels.

READ = dict(w1=(6, 20), w2=(20, 15), w3=(15, 5))


def other_network(low, high, biases=True):
    generator = np.random.default_rng(0)
    shapes = READ | (dict(b1=(20,), b2=(15,)) if biases else {})
    params = {
        name: jnp.asarray(
            generator.uniform(low, high, shape) / shape[0] ** (0.5 if low else 1),
            jnp.float32,
        )
        for name, shape in shapes.items()
    }

    def fn(p, x):
        x = relu(x @ p["w1"] + p.get("b1", 0.0))
        x = relu(x @ p["w2"] + p.get("b2", 0.0))
        return relu(x @ p["w3"])

    return fn, params, jnp.asarray(generator.uniform(size=(7, 6)), jnp.float32)


def skips(low, high, channels=4):
    """Convolutions with a stride and a sum of spikes."""
    generator = np.random.default_rng(1)
    shapes = dict(w1=(3, 3, 2, 4), w2=(3, 3, 4, 4), w3=(3, 3, 4, 3))
    params = {
        name: jnp.asarray(generator.uniform(low, high, shape) / 3, jnp.float32)
        for name, shape in shapes.items()
    }

    def fn(p, x):
        x = relu(conv(x, p["w1"], stride=2))
        return relu(conv(x + relu(conv(x, p["w2"])), p["w3"]))

    return fn, params, jnp.asarray(generator.uniform(size=(5, 8, 8, 2)), jnp.float32)


def pool_network():
    """Convolution, pooling, flatten, dense; positive, as sinabs needs it."""
    generator = np.random.default_rng(2)
    shapes = dict(w1=(3, 3, 2, 4), w2=(3, 3, 4, 5), w3=(20, 3))
    params = {
        name: jnp.asarray(
            generator.uniform(0, 2.5, shape) / np.prod(shape[:-1]), jnp.float32
        )
        for name, shape in shapes.items()
    }

    def fn(p, x):
        x = relu(conv(relu(conv(x, p["w1"], stride=2)), p["w2"]))
        window = (1, 2, 2, 1)
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID") / 4
        return relu(x.reshape(x.shape[0], -1) @ p["w3"])

    return fn, params, jnp.asarray(generator.uniform(size=(5, 8, 8, 2)), jnp.float32)


ZERO = snnjax.integrate_and_fire(reset="zero")
SUBTRACT = snnjax.integrate_and_fire()
LEAKY_ZERO = snnjax.lif(leak=0.8, reset="zero")


def spikes_and_graph(network, neuron, tmp_path, steps=12):
    """Spikes [T, B, ...] of snnjax (0 or 1), x, both channels first, and the graph."""
    fn, params, x = network
    snn = snnjax.init(fn, params, x, model=neuron)
    *hidden, _ = snn.neurons
    for name in hidden:
        channels = snn.params[f"w{1 + hidden.index(name)}"].shape[-1]
        threshold = jnp.linspace(1.0, 1.4, channels)
        snn.neurons[name] = snn.neurons[name]._replace(threshold=threshold)
    spikes = compiled(fn, steps=steps)(snn, x)
    graph = snnjax.to_nir(fn, snn, x, extended=neuron.reset == "subtract")
    if x.ndim == 4:
        x, spikes = jnp.moveaxis(x, -1, 1), jnp.moveaxis(spikes, -1, 2)
    spikes = np.asarray(spikes)
    assert 0.1 < spikes.mean() < 0.9
    return spikes, np.asarray(x), through_file(graph, tmp_path)


def torch_steps(module, x, steps):
    """Outputs of a module that returns (spikes, state) for (x, state)."""
    import torch

    state, outputs = None, []
    for _ in range(steps):
        arguments = () if state is None else (state,)
        output, state = module(torch.tensor(x), *arguments)
        outputs.append(output.detach().numpy())
    return np.stack(outputs)


SIGNED = {
    "MLP": lambda: other_network(-1.5, 2.5),
    "sum of spikes": lambda: skips(-1, 1.7),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("neuron", [ZERO, LEAKY_ZERO], ids=["IF", "LIF"])
@pytest.mark.parametrize("network", SIGNED)
def test_norse_reads_the_same_spikes(network, neuron, tmp_path):
    """It ignores R and all metadata, and dt is an argument.

    Its Flatten counts the batch as axis 0, so images stay images here.
    """
    pytest.importorskip("norse")
    from norse.torch.utils.import_nir import from_nir

    spikes, x, graph = spikes_and_graph(SIGNED[network](), neuron, tmp_path)
    module = from_nir(graph, dt=graph.metadata["dt"])
    np.testing.assert_array_equal(torch_steps(module, x, 12), spikes)


@pytest.mark.filterwarnings("ignore")
def test_norse_fires_where_a_potential_equals_its_threshold(tmp_path):
    """It fires at v > v_threshold, as NIR defines, and snnjax at v >= V_th."""
    pytest.importorskip("norse")
    from norse.torch.utils.import_nir import from_nir

    def fn(p, x):
        return relu(relu(x @ p["w1"]) @ p["w2"])

    snn = snnjax.init(fn, FLAT, VECTORS, model=ZERO)
    expected = compiled(fn, steps=12)(snn, VECTORS)
    graph = through_file(snnjax.to_nir(fn, snn, VECTORS), tmp_path)
    module = from_nir(graph)
    outputs = torch_steps(module, np.asarray(VECTORS), 12)
    np.testing.assert_array_equal(outputs, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", SIGNED)
def test_snntorch_reads_the_same_spikes(network, tmp_path):
    """It assumes dt = 1e-4 and one threshold for all, which it scales by R.

    It reads an IF as a leaky neuron with beta 0.9, so only LIF is the same.
    """
    pytest.importorskip("snntorch")
    from snntorch.import_nir import import_from_nir

    spikes, x, graph = spikes_and_graph(SIGNED[network](), LEAKY_ZERO, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        module = import_from_nir(graph)
    np.testing.assert_array_equal(torch_steps(module, x, 12), spikes)


POSITIVE = {
    "MLP": lambda: other_network(0, 1.5, biases=False),
    "pool and flatten": pool_network,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", POSITIVE)
def test_sinabs_reads_the_same_spikes_with_reset_by_subtraction(network, tmp_path):
    """Its IF always resets by subtraction, as snnjax does with ``extended``.

    It fires several spikes in a step if v is several thresholds, and clips v at -V_th.
    Here weights are positive and no potential reaches two thresholds.
    """
    pytest.importorskip("sinabs")
    import torch
    from sinabs.nir import from_nir

    spikes, x, graph = spikes_and_graph(POSITIVE[network](), SUBTRACT, tmp_path)
    module = from_nir(graph, batch_size=len(x))
    frames = np.repeat(x, 12, axis=0)  # [batch x time, ...]
    output = module(torch.tensor(frames))
    output = output[0] if isinstance(output, tuple) else output
    output = output.detach().numpy().reshape(len(x), 12, -1).swapaxes(0, 1)
    np.testing.assert_array_equal(output, spikes)


@pytest.mark.filterwarnings("ignore")
def test_spyx_reads_the_same_spikes_one_step_later_per_layer(tmp_path):
    """Its IF resets by subtraction and fires on the potential of the step before.

    Biases would arrive too early in later layers, so there are none.
    """
    pytest.importorskip("spyx")
    from spyx.nir import from_nir

    network = other_network(-1.5, 2.5, biases=False)
    spikes, x, graph = spikes_and_graph(network, SUBTRACT, tmp_path)
    _, output = from_nir(graph, jnp.broadcast_to(x, (12, *x.shape)))
    np.testing.assert_array_equal(np.asarray(output)[3:], spikes[:-3])


# ------------------------------------------------------------------- graphs of others


def chain(*nodes, metadata=None):
    graph = nir.NIRGraph.from_list(*nodes)
    graph.metadata.update(metadata or {})
    return graph


def graph_fitted_to(**metadata):
    return chain(nir.IF(**IF), metadata=metadata)


def affine(weight, bias=None):
    weight = np.asarray(weight, np.float32)
    if bias is None:
        return nir.Linear(weight)
    return nir.Affine(weight, np.asarray(bias, np.float32))


def test_resistance_threshold_tau_and_leak_voltage_are_those_of_euler():
    """v <- v + dt / tau (v_leak - v + R I), with dt 1 ms."""
    one = np.ones(2, np.float32)
    node = nir.LIF(tau=4e-3 * one, r=3 * one, v_leak=one / 2, v_threshold=0.9 * one)
    graph = chain(affine(np.eye(2)), node, affine([[1.0, 0.0], [0.0, 2.0]]))
    fn, snn = snnjax.from_nir(graph, dt=1e-3)
    x = jnp.array([[0.7, 0.4]])
    outputs = compiled(fn, steps=9)(snn, x)
    currents = 0.25 * (3 * np.array([0.7, 0.4]) + 0.5)
    for neuron, (current, weight) in enumerate(zip(currents, (1, 2), strict=True)):
        expected = reference.neuron(np.full(9, current), 0.9, leak=0.75, reset="zero")
        spikes = np.asarray(outputs[:, 0, neuron])
        assert 0 < (spikes > 0).sum() < 9
        np.testing.assert_allclose(spikes, weight * (np.array(expected) > 0))


def test_pooling_and_scale_of_others():
    two = np.array([2, 2])
    shape = {"input": np.array([3, 6, 6])}
    scale = np.arange(1, 28, dtype=np.float32).reshape(3, 3, 3) / 16
    ones = np.ones((3, 3, 3), np.float32)
    graph = chain(
        nir.Input(shape),
        nir.AvgPool2d(two, two, np.array([0, 0])),
        nir.Scale(scale),
        nir.IF(r=ones, v_threshold=ones),
        nir.SumPool2d(np.array([3, 3]), np.array([3, 3]), np.array([0, 0])),
        nir.Flatten({"input": np.array([3, 1, 1])}, 0, -1),
    )
    fn, snn = snnjax.from_nir(graph)
    x = eighths(0, (2, 6, 6, 3))
    outputs = compiled(fn, steps=5)(snn, x)
    means = np.asarray(x).reshape(2, 3, 2, 3, 2, 3).mean((2, 4))
    current = means * np.moveaxis(scale, 0, -1)
    above = np.nextafter(1, 2)
    spikes = reference.simulate(np.stack([current] * 5), above, reset="zero")
    assert spikes.any()
    np.testing.assert_allclose(outputs, spikes.sum((2, 3)))


def test_order_of_nodes_and_dead_ends_do_not_matter():
    one = np.ones(2, np.float32)
    nodes = {
        "out": nir.Output({"output": np.array([2])}),
        "spike": nir.IF(r=one, v_threshold=one),
        "nowhere": affine(np.eye(2)),
        "a": affine(np.eye(2) * 0.5),
        "b": affine(np.eye(2) * 0.25),
        "in": nir.Input({"input": np.array([2])}),
    }
    edges = [("spike", "out"), ("a", "spike"), ("b", "spike"), ("in", "nowhere")]
    edges += [("in", "a"), ("in", "b")]
    graph = nir.NIRGraph(nodes, edges, {}, type_check=False)
    fn, snn = snnjax.from_nir(graph)
    outputs = compiled(fn, steps=6)(snn, jnp.ones((1, 2)))
    np.testing.assert_array_equal(outputs[:, 0, 0], [0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("threshold", [1.0, 0.75, 0.3, np.float32(0.3)])
def test_a_neuron_of_nir_fires_above_its_threshold_and_not_at_it(threshold):
    x = np.float32(threshold)
    x = np.array([np.nextafter(x, np.float32(0)), x, np.nextafter(x, np.float32(1))])
    full = np.full(3, threshold)
    graph = chain(nir.IF(r=np.ones(3), v_threshold=full), affine(np.eye(3)))
    fn, snn = snnjax.from_nir(graph)
    outputs = compiled(fn, steps=1)(snn, jnp.asarray(x)[None])[0, 0]
    np.testing.assert_array_equal(outputs, x > full)


def test_a_written_neuron_fires_at_its_threshold(tmp_path):
    """With these weights potentials often equal the threshold."""
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x, model=ZERO)
    graph = through_file(snnjax.to_nir(net.fn, snn, net.x), tmp_path)
    first = next(node for node in graph.nodes.values() if isinstance(node, nir.IF))
    values = np.float32([1 - 2**-23, 1 - 2**-24, 1])
    np.testing.assert_array_equal(values > first.v_threshold[0], values >= 1)
    check_same(net.fn, snn, net.x, graph)


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("threshold", [0.0, np.nan, np.inf])
def test_a_threshold_that_cannot_divide_weights_is_refused(threshold):
    net = NETWORKS["dense"]
    neuron = snnjax.lif(reset="zero")
    snn = snnjax.init(net.fn, net.params, net.x, model=neuron)
    neurons = {
        name: params._replace(threshold=jnp.float32(threshold))
        for name, params in snn.neurons.items()
    }
    with pytest.raises(
        ValueError, match="threshold of site .*; allowed: finite and > 0"
    ):
        snnjax.to_nir(net.fn, dataclasses.replace(snn, neurons=neurons), net.x)
    with pytest.raises(ValueError, match="snn is dict; allowed: an SNN of"):
        snnjax.to_nir(net.fn, {}, net.x)


def test_what_only_metadata_can_express_must_be_allowed():
    net = NETWORKS["dense"]
    snn = dataclasses.replace(fitted_snn(net), steps=4, wait=2)
    with pytest.raises(ValueError, match="reset by subtraction.*potentials.*wait 2"):
        snnjax.to_nir(net.fn, snn, net.x)
    hard = snnjax.init(net.fn, net.params, net.x, model=HARD)
    snnjax.to_nir(net.fn, hard, net.x)


def test_everything_that_nir_cannot_express_is_in_one_error():
    def fn(p, x):
        with jax.named_scope("first"):
            x = conv(x, p["w1"])
            x = jax.lax.reduce_window(
                relu(x), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )
        with jax.named_scope("second"):
            x = relu(jnp.cumsum(x, 1))
        with jax.named_scope("third"):
            return relu(x.transpose(0, 3, 1, 2).reshape(len(x), 4, 9) @ p["w2"])

    params = weights(w1=(3, 3, 2, 4), w2=(9, 2))
    snn = snnjax.init(fn, params, PIXELS, model=HARD)
    with pytest.raises(snnjax.ConversionError, match="cannot be written in NIR") as e:
        snnjax.to_nir(fn, snn, PIXELS)
    places = {problem.path: problem.operations for problem in e.value.problems}
    assert places["first"] == ("max-pool",)
    assert places["second"] == ("cumsum",)
    assert places["third"] == ("dot_general",)
    assert all(problem.remedy in str(e.value) for problem in e.value.problems)


@pytest.mark.parametrize(
    "net, words",
    [
        (image(lambda p, x: x + jnp.eye(6)[:, :, None]), "differ from place to place"),
        (image(lambda p, x: jnp.repeat(x, 2, 1)), "no convolution does"),
        (
            image(
                lambda p, x: conv(x[:, :, 1:], p["w2"], padding=((1, 1), (1, 0))),
                w2=(3, 3, 4, 4),
            ),
            "no square kernel",
        ),
        (
            vector(
                lambda p, x: conv(x.reshape(-1, 3, 2, 1), p["w2"]).reshape(-1, 6),
                w2=(1, 1, 1, 1),
            ),
            "no node that unflattens",
        ),
        (
            image(
                lambda p, x: conv(x[:, jnp.array([1, 0, 2, 3, 4, 5])], p["w2"]),
                w2=(3, 3, 4, 4),
            ),
            "rows or columns were permuted",
        ),
    ],
)
def test_an_affine_map_without_a_node_is_refused(net, words):
    snn = snnjax.init(net.fn, net.params, net.x, model=HARD)
    with pytest.raises(snnjax.ConversionError, match=words):
        snnjax.to_nir(net.fn, snn, net.x)


def test_a_site_that_leaks_in_parts_is_refused():
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x, model=LEAKY)
    for name, neuron in list(snn.neurons.items()):
        leak = jnp.linspace(0.5, 1.0, 6)
        snn.neurons[name] = neuron._replace(leak=leak)
    with pytest.raises(ValueError, match="leaks from 0.5 to 1.0"):
        snnjax.to_nir(net.fn, snn, net.x)


def test_neurons_other_than_if_and_lif_are_refused():
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x, model=HARD)
    surrogate = dataclasses.replace(snn, model=snnjax.neurons.WithSurrogate(HARD))
    assert snnjax.to_nir(net.fn, surrogate, net.x).nodes
    adaptive = snnjax.neurons.adaptive(HARD)
    other = snnjax.init(net.fn, net.params, net.x, model=adaptive)
    with pytest.raises(ValueError, match="cannot express the neurons of Adaptive"):
        snnjax.to_nir(net.fn, other, net.x)


def test_an_input_without_features_is_refused():
    def fn(p, x):
        return relu(x[:, None] * p) @ p

    weight, x = jnp.ones(3), jnp.ones(2)
    snn = snnjax.init(fn, weight, x, model=HARD)
    with pytest.raises(ValueError, match="axis of features"):
        snnjax.to_nir(fn, snn, x)


ONE = np.ones(2, np.float32)
IF = dict(r=ONE, v_threshold=ONE)


@pytest.mark.parametrize(
    "graph, words",
    [
        (
            lambda: chain(nir.CubaLIF(ONE, ONE, ONE, 0 * ONE, ONE)),
            "cubalif \\(CubaLIF\\)",
        ),
        (
            lambda: chain(nir.IF(**IF), nir.Delay(ONE), nir.Threshold(ONE)),
            "\\(Delay\\).*\\(Threshold\\)",
        ),
        (lambda: chain(nir.IF(**IF, v_reset=ONE)), "v_reset from 1.0"),
        (
            lambda: chain(nir.IF(**IF, metadata={"reset": "half"})),
            "have the reset half; allowed",
        ),
        (lambda: chain(nir.IF(r=ONE, v_threshold=0 * ONE)), "v_threshold from 0.0"),
        (
            lambda: chain(nir.LIF(tau=ONE * 1e-5, v_leak=0 * ONE, **IF)),
            "above dt = 0.0001",
        ),
        (lambda: chain(affine(np.eye(2))), "no IF or LIF"),
        (lambda: chain(nir.IF(r=ONE * np.nan, v_threshold=ONE)), "NaN in its r"),
        (lambda: graph_fitted_to(steps=0), "no valid steps and wait: steps is 0"),
        (lambda: graph_fitted_to(steps=4, wait=5), "wait is 5; allowed"),
        (lambda: graph_fitted_to(steps="many"), "no valid steps and wait"),
        (lambda: nir.IF(**IF), "graph is a IF"),
    ],
)
def test_a_graph_that_cannot_be_read_is_refused(graph, words):
    with pytest.raises(ValueError, match=words):
        snnjax.from_nir(graph())


@pytest.mark.parametrize("name", ["wait", "delay"])
def test_a_wait_is_read_by_its_name_in_snnjax_0_1_too(name, tmp_path):
    graph = through_file(graph_fitted_to(steps=4, **{name: 2}), tmp_path)
    _, snn = snnjax.from_nir(graph)
    assert (snn.steps, snn.wait) == (4, 2)


def test_inputs_of_other_types_are_promoted():
    """A convolution of JAX takes operands of one type only."""
    net = NETWORKS["zero padding"]
    snn = snnjax.init(net.fn, net.params, net.x, model=ZERO)
    fn, other_snn = snnjax.from_nir(snnjax.to_nir(net.fn, snn, net.x))
    x = net.x.astype(jnp.bfloat16)  # eighths are exact
    outputs = compiled(fn, steps=STEPS)(other_snn, x)
    expected = compiled(net.fn, steps=STEPS)(snn, net.x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_a_matrix_of_an_image_is_refused():
    """Channels last, it would multiply another axis than in NIR."""
    ones = np.ones((2, 2, 2), np.float32)
    nodes = {
        "input": nir.Input({"input": np.array([2, 2, 2])}),
        "spike": nir.IF(r=ones, v_threshold=ones),
        "matrix": affine(np.eye(2)),
        "output": nir.Output({"output": np.array([2, 2, 2])}),
    }
    graph = nir.NIRGraph(nodes, list(pairwise(nodes)), {}, type_check=False)
    with pytest.raises(ValueError, match="Put a Flatten before it") as error:
        snnjax.from_nir(graph)
    assert any("at node 'matrix'" in note for note in error.value.__notes__)


def test_an_error_of_a_node_names_it():
    nodes = {
        "input": nir.Input({"input": np.array([2])}),
        "spike": nir.IF(**IF),
        "odd": affine(np.ones((3, 5))),
        "output": nir.Output({"output": np.array([3])}),
    }
    graph = nir.NIRGraph(nodes, list(pairwise(nodes)), {}, type_check=False)
    with pytest.raises(TypeError) as error:
        snnjax.from_nir(graph)
    assert any("at node 'odd'" in note for note in error.value.__notes__)


@pytest.mark.parametrize(
    "edges, words",
    [
        ("input-spike spike-back back-spike spike-output", "recurrent: .*spike"),
        ("input-spike other-spike spike-output", "2 inputs"),
        ("input-spike spike-nowhere", "'nowhere'.* no node; nodes: "),
        ("input-spike back-output", "no edge leads to back"),
    ],
)
def test_edges_that_cannot_be_followed_are_refused(edges, words):
    nodes = {
        "input": nir.Input({"input": np.array([2])}),
        "spike": nir.IF(**IF),
        "back": affine(np.eye(2)),
        "output": nir.Output({"output": np.array([2])}),
    }
    if "other" in edges:
        nodes["other"] = nir.Input({"input": np.array([2])})
    pairs = [tuple(edge.split("-")) for edge in edges.split()]
    graph = nir.NIRGraph(nodes, pairs, {}, type_check=False)
    with pytest.raises(ValueError, match=words):
        snnjax.from_nir(graph)


@pytest.mark.parametrize("dt", [0.0, -1.0, "x"])
def test_a_dt_outside_its_range_is_refused(dt):
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x, model=HARD)
    with pytest.raises(ValueError, match="dt is"):
        snnjax.to_nir(net.fn, snn, net.x, dt=dt)
    with pytest.raises(ValueError, match="dt is"):
        snnjax.from_nir(snnjax.to_nir(net.fn, snn, net.x), dt=dt)


def test_a_missing_package_names_the_extra(monkeypatch):
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x, model=HARD)
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(ImportError, match=r"snnjax\[nir\]"):
        snnjax.to_nir(net.fn, snn, net.x)
