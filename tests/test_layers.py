"""Layers send the spikes of the network that they come from, with every code."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from networks import FLAT, NETWORKS, PIXELS, VECTORS, Net, conv, eighths, relu, weights
from rows import quick_first

import snnjax
from snnjax import deploy
from snnjax.deploy import Convolution, Dense, Population, Scale, SumPool

AFFINE = {name: net for name, net in NETWORKS.items() if "max-pool" not in name}


def affine_on(x):
    """The networks without max-pools that read x, as one network.

    It is one program, which is compiled several times faster than theirs.
    """
    return networks.together({n: net for n, net in AFFINE.items() if net.x is x})


TOGETHER = {"images": affine_on(PIXELS), "vectors": affine_on(VECTORS)}
RATE = snnjax.codes.rate()
IF = snnjax.integrate_and_fire()


def fitted(
    net,
    code=RATE,
    levels=(0, 1),
    reset="subtract",
    wait=0,
    zones=(0, 0.5),
    leak=None,
    lowest=None,
):
    """An SNN with random thresholds and biases per channel, and potentials per neuron.

    Neurons that reset to zero start at 0. ``zones`` are the dead and the last zone.
    """
    generator = np.random.default_rng(0)
    neurons = {}
    for site in snnjax.sites(net.fn, net.params, net.x):
        channels = ()
        if site.parameters:  # otherwise nothing says which axis counts channels
            channels = (site.shape[site.channel], *[1] * (-site.channel - 1))
        start = generator.uniform(0, 0.4, site.shape)
        if reset == "zero":
            start = np.zeros(site.shape)
        neurons[site.name] = snnjax.neurons.NeuronParams(
            threshold=jnp.float32(generator.uniform(0.4, 0.9, channels)),
            bias=jnp.float32(generator.normal(size=channels) / 8),
            initial_potential=jnp.float32(start),
        )
        if leak is not None:
            leaks = jnp.full(channels, leak, jnp.float32)
            neurons[site.name] = neurons[site.name]._replace(leak=leaks)
    dead_zone, last_zone = zones
    model = snnjax.integrate_and_fire(
        levels=levels,
        reset=reset,
        dead_zone=dead_zone,
        last_zone=last_zone,
        lowest=lowest,
    )
    return snnjax.SNN(net.params, neurons, 4, wait, model=model, code=code)


def changed(layers, name=None, **fields):
    """Layers whose populations, or the node of a name, have other fields.

    A field may be a function of the node.
    """

    nodes = []
    for node in layers.nodes:
        is_chosen = isinstance(node, Population) if name is None else node.name == name
        if is_chosen:
            values = {
                field: value(node) if callable(value) else value
                for field, value in fields.items()
            }
            node = dataclasses.replace(node, **values)
        nodes.append(node)
    return dataclasses.replace(layers, nodes=tuple(nodes))


CODED = {  # test_nir.py has rate coding, test_integers.py a reset to zero
    "images": (snnjax.codes.radix(), (-1, 1), "subtract", 1, (2 / 3, 0.75)),
    "vectors": (RATE, (-1, 1), "subtract", 1),
}


@pytest.mark.parametrize(
    "name", ["vectors", pytest.param("images", marks=pytest.mark.thorough)]
)
def test_layers_send_the_same_spikes(name):
    net = TOGETHER[name]
    snn = fitted(net, *CODED[name])
    layers = deploy.layers(net.fn, snn, net.x)
    fn, same = deploy.as_function(layers)
    assert (same.steps, same.wait, same.code) == (snn.steps, snn.wait, snn.code)
    runs = [spikes_and_outputs(net.fn, snn), spikes_and_outputs(fn, same)]
    (spikes, outputs), (same_spikes, same_outputs) = networks.outputs_of(runs, net.x)
    names = [population.name for population in layers.populations]
    assert [*same.neurons] == names
    for name in names:
        assert np.any(spikes[name]), name
        np.testing.assert_array_equal(same_spikes[name], spikes[name], err_msg=name)
    leaves = zip(jax.tree.leaves(same_outputs), jax.tree.leaves(outputs), strict=True)
    for same_output, output in leaves:
        np.testing.assert_allclose(same_output, output, rtol=1e-5, atol=1e-5)


def spikes_and_outputs(fn, snn):
    """A function of x that returns the spikes of all sites and the outputs."""

    def run(x):
        spikes = snnjax.measures.spike_trains(fn, snn, x)
        return spikes, snnjax.spiking(fn)(snn, x)

    return run


CONVOLUTIONS = {  # (rows, columns) of kernels and strides, and the padding
    f"{kernel} by {stride}, {padding}": (kernel, stride, padding)
    for kernel in ((3, 3), (2, 2), (4, 4), (1, 3), (3, 2))
    for stride in ((1, 1), (2, 2), (3, 2))
    for padding in ("SAME", "VALID", ((0, 1), (2, 0)))
}


@pytest.mark.thorough
@pytest.mark.parametrize("size", [7, 8])
def test_a_convolution_has_the_weights_and_windows_of_the_function(size):
    """Padding "SAME" with a stride, or of an even kernel, is on one side of images."""
    x = eighths(3, (2, size, size, 2))
    nets = {}
    for name, (kernel, stride, padding) in CONVOLUTIONS.items():

        def fn(p, x, stride=stride, padding=padding):
            return relu(conv(x, p["w"], stride, padding))

        nets[name] = Net(fn, weights(w=(*kernel, 2, 3)), x, 1)
    net = networks.together(nets)
    snn = snnjax.init(net.fn, net.params, x, model=IF)
    layers = deploy.layers(net.fn, snn, x)
    stored = [weight.size for weight in layers.weights]
    assert stored == [p["w"].size for p in net.params.values()]
    same, same_snn = deploy.as_function(layers)
    outputs = jax.jit(same)(same_snn.params, x)
    for name, expected in jax.jit(net.fn)(net.params, x).items():
        result = outputs[f"output/{name}"]
        np.testing.assert_allclose(result, expected, 1e-5, 1e-6, err_msg=name)


CROPPED = {  # padding of a kernel 3x3 and its stride: negative numbers skip elements
    "in front": (((-1, 0), (-2, 1)), 1),
    "behind": (((0, -2), (1, -1)), 1),
    "with a stride": (((-1, -1), (0, -3)), 2),
}


def test_a_convolution_that_skips_elements_has_zeros_among_its_weights():
    """Expected is a convolution of an image that is cropped and padded before.

    On a CPU, JAX 0.10 computes the first of these paddings wrong.
    """
    nets = {}
    for name, (padding, stride) in CROPPED.items():

        def fn(p, x, stride=stride, padding=padding):
            return relu(conv(x, p["w"], stride, padding))

        nets[name] = Net(fn, weights(w=(3, 3, 2, 3)), PIXELS, 1)
    net = networks.together(nets)
    snn = snnjax.init(net.fn, net.params, PIXELS, model=IF)
    layers = deploy.layers(net.fn, snn, PIXELS)
    same, same_snn = deploy.as_function(layers)
    outputs = same(same_snn.params, PIXELS)
    for name, (padding, stride) in CROPPED.items():
        sides = [(0, 0), *padding, (0, 0)]
        image = jax.lax.pad(PIXELS, 0.0, [(low, high, 0) for low, high in sides])
        expected = relu(conv(image, net.params[name]["w"], stride, "VALID"))
        assert np.any(expected), name
        result = outputs[f"output/{name}"]
        np.testing.assert_allclose(result, expected, 1e-5, 1e-6, err_msg=name)


POOLS = {  # spellings of an average pool of an image [6, 6, 4], and its window
    "windows": (lambda x: x.reshape(-1, 3, 2, 3, 2, 4).mean((2, 4)), (2, 2)),
    "one axis": (lambda x: x.reshape(-1, 3, 2, 6, 4).mean(2), (2, 1)),
    "sums of sums": (lambda x: x.reshape(-1, 2, 3, 6, 4).sum(2).sum(2) / 18, (3, 1)),
    "flipped": (lambda x: x[:, ::-1].mean((1, 2)), (6, 6)),
    "flattened": (lambda x: x.reshape(-1, 36, 4).mean(1), (6, 6)),
}


@pytest.mark.parametrize("name", quick_first(POOLS, "windows", "flattened"))
def test_a_mean_over_windows_is_a_pool_however_it_is_written(name):
    average, window = POOLS[name]

    def fn(p, x):
        x = average(relu(conv(x, p["w1"])))
        return relu(x @ p["w2"]).reshape(len(x), -1)

    params = weights(w1=(3, 3, 2, 4), w2=(4, 4))
    snn = snnjax.init(fn, params, PIXELS, model=IF)
    layers = deploy.layers(fn, snn, PIXELS)
    pool = next(node for node in layers.nodes if isinstance(node, SumPool))
    assert pool.window == pool.stride == window
    same, same_snn = deploy.as_function(layers)
    outputs = same(same_snn.params, PIXELS)
    np.testing.assert_allclose(outputs, fn(params, PIXELS), rtol=1e-5, atol=1e-6)


def test_connections_have_the_maps_between_two_populations():
    """Of a residual block of a depthwise convolution; BatchNorm is in the weights."""

    def fn(p, x):
        x = relu((conv(x, p["w1"]) - p["mean"]) * p["scale"])
        y = relu(conv(x, p["depthwise"], groups=4) + x)
        y = networks.average_pool(y)
        return y.reshape(len(y), -1) @ p["w2"]

    params = weights(
        w1=(3, 3, 2, 4), mean=(4,), scale=(4,), depthwise=(3, 3, 1, 4), w2=(36, 3)
    )
    snn = fitted(Net(fn, params, PIXELS, 2))
    layers = deploy.layers(fn, snn, jax.ShapeDtypeStruct(PIXELS.shape, "float32"))
    stem, block, shortcut, readout = layers.connections
    for connection, kind in (
        (stem, Convolution),
        (block, Convolution),
        (shortcut, Scale),
    ):
        (node,) = connection.maps
        assert isinstance(node, kind)
    assert isinstance(readout.maps[0], SumPool) and isinstance(readout.maps[-1], Dense)
    assert [way.fan_in for way in layers.connections] == [18, 9, 1, 144]
    assert block.maps[0].groups == 4
    first, second = (population.name for population in layers.populations)
    assert (stem.sender, stem.receiver) == ("input", first)
    assert (shortcut.sender, shortcut.receiver) == (first, second)
    # The threshold of the sender is a factor of the weights.
    threshold = snn.neurons[first].threshold
    depthwise = np.transpose(params["depthwise"] * threshold, (3, 2, 0, 1))
    np.testing.assert_allclose(block.maps[0].weight, depthwise, rtol=1e-5)
    bias = snn.neurons[first].bias - params["mean"] * params["scale"]
    np.testing.assert_allclose(layers.populations[0].bias[:, 0, 0], bias, rtol=1e-5)


def test_layers_are_a_pytree_with_hashable_structure():
    net = NETWORKS["dense"]
    snn = fitted(net)
    layers = deploy.layers(net.fn, snn, net.x)
    structure = jax.tree.structure(layers)
    same_structure = jax.tree.structure(deploy.layers(net.fn, snn, net.x))
    assert structure == same_structure
    assert hash(structure) == hash(same_structure)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, layers)
    for node, doubled_node in zip(layers.populations, doubled.populations, strict=True):
        np.testing.assert_array_equal(2 * node.threshold, doubled_node.threshold)
    assert "populations" in repr(layers) and "dense" in str(layers)


def test_every_root_obstacle_is_in_one_error_and_nothing_that_follows_from_it():
    def fn(p, x):
        with jax.named_scope("first"):
            x = networks.max_pool(relu(conv(x, p["w1"])))
        with jax.named_scope("second"):
            x = relu(conv(x, p["w2"]))  # the graph has no image to convolve
        with jax.named_scope("third"):
            x = networks.max_pool(relu(jnp.cumsum(x, 1)), 3, 3)
        return x.reshape(len(x), -1) @ p["w3"]

    params = weights(w1=(3, 3, 2, 4), w2=(3, 3, 4, 4), w3=(4, 2))
    snn = snnjax.init(fn, params, PIXELS, model=IF)
    with pytest.raises(snnjax.ConversionError, match="no network of layers") as e:
        deploy.layers(fn, snn, PIXELS)
    operations = [(problem.path, *problem.operations) for problem in e.value.problems]
    roots = [("first", "max-pool"), ("third", "cumsum"), ("third", "max-pool")]
    assert operations == roots
    assert all(problem.remedy in str(e.value) for problem in e.value.problems)


def test_what_follows_from_an_obstacle_is_not_reported():
    def gelu(p, x):
        return relu(jax.nn.gelu(x @ p["w1"]) @ p["w2"])

    def encoded(p, x):
        return relu(snnjax.encode(x @ p["w1"]) @ p["w2"])

    for net, operations in [
        (NETWORKS["max-pool after"], ["max-pool", "max-pool"]),
        (NETWORKS["max-pool before"], ["max-pool", "max-pool"]),
        (Net(gelu, FLAT, VECTORS, 3), ["gelu"]),
        (Net(encoded, FLAT, VECTORS, 2), ["encoder"]),
    ]:
        snn = snnjax.init(net.fn, net.params, net.x, model=IF)
        with pytest.raises(snnjax.ConversionError) as e:
            deploy.layers(net.fn, snn, net.x)
        assert [*sum((p.operations for p in e.value.problems), ())] == operations
