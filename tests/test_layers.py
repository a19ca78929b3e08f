"""Layers send the spikes of the network that they come from, with every code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import (
    FLAT,
    NETWORKS,
    PIXELS,
    VECTORS,
    Net,
    conv,
    max_pool,
    relu,
    together,
    weights,
)

import snnjax
from snnjax.layers import Convolution, Dense, Scale, SumPool

AFFINE = {name: net for name, net in NETWORKS.items() if "max-pool" not in name}
# Networks of one input are one program, which is compiled several times faster.
TOGETHER = {
    "images": together({n: net for n, net in AFFINE.items() if net.x is PIXELS}),
    "vectors": together({n: net for n, net in AFFINE.items() if net.x is VECTORS}),
}
CODES = {
    "rate": (snnjax.codes.rate(), (0, 1), "subtract", 0),
    "signed rate": (snnjax.codes.rate(), (-1, 1), "subtract", 1),
    "hard reset": (snnjax.codes.rate(), (0, 1), "zero", 0),
    "radix": (snnjax.codes.radix(), (-1, 1), "subtract", 1, (2 / 3, 0.75)),
}


RATE = snnjax.codes.rate()


def fitted(net, code=RATE, levels=(0, 1), reset="subtract", wait=0, zones=(0, 0.5)):
    """An SNN with other numbers in every channel and, if it can, in every neuron."""
    generator = np.random.default_rng(0)
    neurons = {}
    for site in snnjax.sites(net.fn, net.params, net.x):
        channel = ()
        if site.parameters:  # otherwise nothing says which axis counts channels
            channel = (site.shape[site.channel], *[1] * (-site.channel - 1))
        start = generator.uniform(0, 0.4, site.shape) * (reset == "subtract")
        neurons[site.name] = snnjax.neurons.NeuronParams(
            threshold=jnp.float32(generator.uniform(0.4, 0.9, channel)),
            bias=jnp.float32(generator.normal(size=channel) / 8),
            initial_potential=jnp.float32(start),
        )
    dead, last = zones
    model = snnjax.integrate_and_fire(
        levels=levels, reset=reset, dead_zone=dead, last_zone=last
    )
    return snnjax.SNN(net.params, neurons, 4, wait, model=model, code=code)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", TOGETHER)
def test_layers_send_the_same_spikes(name, code):
    net = TOGETHER[name]
    snn = fitted(net, *CODES[code])
    layers = snnjax.layers.of(net.fn, snn, net.x)
    fn, same = snnjax.layers.function(layers)
    assert (same.steps, same.wait, same.code) == (snn.steps, snn.wait, snn.code)
    before = spikes_and_outputs(net.fn)(snn, net.x)
    after = spikes_and_outputs(fn)(same, net.x)
    names = [population.name for population in layers.populations]
    assert [*same.neurons] == names
    for name in names:
        assert np.any(after[0][name]), name
        np.testing.assert_array_equal(before[0][name], after[0][name], err_msg=name)
    for a, b in zip(*(jax.tree.leaves(run[1]) for run in (before, after)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def spikes_and_outputs(fn):
    """Both as one program."""
    return jax.jit(
        lambda snn, x: (
            snnjax.measures.spike_trains(fn, snn, x),
            snnjax.spiking(fn)(snn, x),
        )
    )


def test_weights_hold_the_threshold_of_the_sender_and_batch_norm():
    """Maps, fan-in and bias of a residual block of a depthwise convolution."""

    def fn(p, x):
        x = relu((conv(x, p["w1"]) - p["mean"]) * p["scale"])
        y = relu(conv(x, p["depthwise"], groups=4) + x)
        y = jax.lax.reduce_window(
            y, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
        return y.reshape(len(y), -1) @ p["w2"] / 4

    params = weights(
        w1=(3, 3, 2, 4), mean=(4,), scale=(4,), depthwise=(3, 3, 1, 4), w2=(36, 3)
    )
    net = Net(fn, params, PIXELS, 2)
    snn = fitted(net)
    first, second = (neurons.threshold for neurons in snn.neurons.values())
    layers = snnjax.layers.of(fn, snn, jax.ShapeDtypeStruct(PIXELS.shape, "float32"))
    stem, block, shortcut, readout = layers.connections
    kinds = [[type(m) for m in connection.maps] for connection in layers.connections]
    assert kinds[:3] == [[Convolution], [Convolution], [Scale]]
    assert (kinds[3][0], kinds[3][-1]) == (SumPool, Dense)
    assert [c.fan_in for c in (stem, block, shortcut, readout)] == [18, 9, 1, 144]
    assert block.maps[0].groups == 4
    names = [population.name for population in layers.populations]
    assert (stem.sender, stem.receiver) == ("input", names[0])
    assert (shortcut.sender, shortcut.receiver) == (names[0], names[1])

    def same(a, b):
        np.testing.assert_allclose(np.float32(a), b, rtol=1e-5)

    kernel = np.transpose(params["w1"] * params["scale"], (3, 2, 0, 1))
    same(stem.maps[0].weight, kernel)
    bias = snn.neurons[names[0]].bias - params["mean"] * params["scale"]
    same(layers.populations[0].bias[:, 0, 0], bias)
    depthwise = np.transpose(params["depthwise"] * first, (3, 2, 0, 1))
    same(block.maps[0].weight, depthwise)
    same(shortcut.maps[0].weight.ravel(), first)
    rows = params["w2"].reshape(3, 3, 4, 3) * second[:, None] / 4
    same(readout.maps[-1].weight, np.transpose(rows, (3, 2, 0, 1)).reshape(3, -1))


def test_layers_are_a_pytree_with_hashable_structure():
    net = NETWORKS["dense"]
    layers, others = (snnjax.layers.of(net.fn, s, net.x) for s in (fitted(net),) * 2)
    structure = jax.tree.structure(layers)
    assert structure == jax.tree.structure(others)
    assert hash(structure) == hash(jax.tree.structure(others))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, layers)
    for a, b in zip(layers.populations, doubled.populations, strict=True):
        np.testing.assert_array_equal(2 * a.threshold, b.threshold)
    assert "populations" in repr(layers) and "dense" in str(layers)


def test_everything_that_is_no_layer_is_in_one_error():
    def fn(p, x):
        with jax.named_scope("first"):
            x = max_pool(relu(conv(x, p["w1"])))
        with jax.named_scope("second"):
            x = jax.nn.gelu(conv(x, p["w2"]))
        return relu(x).reshape(len(x), -1) @ p["w3"]

    params = weights(w1=(3, 3, 2, 4), w2=(3, 3, 4, 4), w3=(36, 2))
    snn = snnjax.init(fn, params, PIXELS, model=snnjax.integrate_and_fire())
    with pytest.raises(snnjax.ConversionError, match="no network of layers") as error:
        snnjax.layers.of(fn, snn, PIXELS)
    found = [(problem.path, *problem.operations) for problem in error.value.problems]
    assert found == [("first", "max-pool"), ("second", "gelu")]
    assert all(problem.remedy in str(error.value) for problem in error.value.problems)


def test_what_has_no_layers_is_refused():
    net = NETWORKS["dense"]
    plain = fitted(net)
    of = functools.partial(snnjax.layers.of, net.fn)
    offsets = {n: p._replace(offset=jnp.float32(1)) for n, p in plain.neurons.items()}
    adaptive = snnjax.neurons.Adaptive(snnjax.integrate_and_fire())
    adaptive = snnjax.init(net.fn, net.params, net.x, model=adaptive)

    def encoded(p, x):
        return relu(snnjax.encode(x @ p["w1"]) @ p["w2"])

    signed = snnjax.init(encoded, FLAT, VECTORS, model=snnjax.integrate_and_fire())
    for words, call in {
        "add an offset": lambda: of(dataclasses.replace(plain, neurons=offsets), net.x),
        "both signs": lambda: snnjax.layers.of(encoded, signed, VECTORS),
        "populations of Adaptive": lambda: of(adaptive, net.x),
        "snn is dict": lambda: of({}, net.x),
        "x is .*; allowed: one array": lambda: of(plain, {"a": net.x}),
        "axis of features": lambda: of(plain, net.x[:, 0]),
    }.items():
        with pytest.raises(ValueError, match=words):
            call()
