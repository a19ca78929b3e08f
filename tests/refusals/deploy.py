"""Refusals of layers, of chips and of graphs of NIR."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_chips
from networks import FLAT, NETWORKS, VECTORS, conv, eighths, relu
from test_layers import fitted

import snnjax
from refusals import Refusal, numbered
from snnjax import deploy
from snnjax.network.capture.rotation import rotated

DENSE = NETWORKS["dense"]
IF = snnjax.integrate_and_fire()
HARD = snnjax.integrate_and_fire(reset="zero", threshold=0.7)
LEAKY = snnjax.lif(leak=0.8, reset="zero", threshold=0.7)


def with_fields(snn, **fields):
    """The SNN with these numbers at all of its neurons."""
    neurons = {name: params._replace(**fields) for name, params in snn.neurons.items()}
    return dataclasses.replace(snn, neurons=neurons)


def dense_layers(snn, x=VECTORS):
    return deploy.layers(DENSE.fn, snn, x)


# ------------------------------------------------------------------------------- layers

MOVED_IMAGES = {  # what is done between the convolutions of an image [5, 5, 3]
    "rows reversed": (
        lambda x: x[:, ::-1],
        "were flipped or permuted.*\n *remedy: reorder",
    ),
    "channels exchanged": (
        lambda x: x[..., np.array([1, 0, 2])],
        "were flipped or permuted.*\n *remedy: reorder",
    ),
    "rows as columns": (
        lambda x: x.swapaxes(1, 2),
        "are other axes of .*\n *remedy: keep one order of axes",
    ),
    "rows rolled": (
        lambda x: jnp.roll(x, 1, 1),
        "by a crop, a repetition or zeros.*\n *remedy: crop before",
    ),
    "a row left out": (
        lambda x: x[:, 1:],
        "by a crop, a repetition or zeros.*\n *remedy: crop before",
    ),
    "each second row": (
        lambda x: x[:, ::-2],
        "were flipped or permuted.*\n *remedy: reorder",
    ),
    "rows repeated": (
        lambda x: jnp.repeat(x, 2, 1),
        "by a crop, a repetition or zeros.*\n *remedy: crop before",
    ),
    "zeros around": (
        lambda x: jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))),
        "by a crop, a repetition or zeros.*\n *remedy: .* as its padding",
    ),
    "the mirror image added": (
        lambda x: x + x[:, ::-1],
        "adds images of which one was flipped",
    ),
    "a number of each pixel": (
        lambda x: x + np.eye(5)[:, :, None],
        "would differ between pixels.*\n *remedy: use constants",
    ),
    "a sum over channels": (
        lambda x: x.sum(-1, keepdims=True) * np.ones(3),
        "sums .* no windows of rows",
    ),
    "a product along columns": (
        lambda x: jnp.einsum("bhwc,hij->bijc", x, np.ones((5, 5, 5))),
        "a matrix product along axes .*\n *remedy: flatten first",
    ),
}
MOVED_VECTORS = {  # and between the layers of a vector [6]
    "a vector as an image": (
        lambda x: conv(x.reshape(-1, 3, 2, 1), np.ones((1, 1, 1, 1))).reshape(-1, 6),
        "no layer unflattens a vector\n *remedy: keep",
    ),
    "a mean taken off": (
        lambda x: x - x.sum(-1, keepdims=True) / 6,
        "it sums over a part of the vector .*\n *remedy: write the sum",
    ),
    "a rotation": (
        lambda x: jnp.concatenate([rotated(x[:, :4], axis=1, block=4), x[:, 4:]], 1),
        "it repeats .*, as a rotation does; no layer.*\n *remedy: .*snnjax.rotation",
    ),
}


def between_convolutions(move, kernel, x):
    return relu(conv(move(relu(conv(x, kernel))), kernel))


def between_products(move, p, x):
    return relu(move(relu(x @ p["w1"]))) @ p["w3"]


def reversed_output(kernel, x):
    return relu(conv(x, kernel))[:, ::-1]


def layers_of(fn, params, x):
    deploy.layers(fn, snnjax.init(fn, params, x, model=IF), x)


def moves_refused():
    kernel = eighths(0, (3, 3, 3, 3))
    images = eighths(3, (2, 5, 5, 3))
    for network, params, x, moves in (
        (between_convolutions, kernel, images, MOVED_IMAGES),
        (between_products, FLAT, VECTORS, MOVED_VECTORS),
    ):
        for name, (move, message) in moves.items():
            fn = functools.partial(network, move)
            call = functools.partial(layers_of, fn, params, x)
            name = f"layers of {name}"
            yield Refusal(name, call, message, snnjax.ConversionError)
    yield Refusal(
        "layers of a reversed output",
        lambda: layers_of(reversed_output, kernel, images),
        "output\n *the rows, columns",
        snnjax.ConversionError,
    )


def encoded(p, x):
    return relu(snnjax.encode(x @ p["w1"]) @ p["w2"])


def with_adaptation():
    adaptive = snnjax.neurons.Adaptive(IF)
    return snnjax.init(*DENSE[:3], model=adaptive, key=jax.random.key(0))


LAYERS = [
    *moves_refused(),
    Refusal(
        "layers of a traced SNN",
        lambda: jax.jit(dense_layers)(fitted(DENSE)),
        "snn is traced; .* Call snnjax.deploy.layers outside of jit",
    ),
    Refusal(
        "layers inside of jit",
        lambda: jax.jit(functools.partial(dense_layers, fitted(DENSE)))(VECTORS),
        "snnjax.deploy.layers is called inside of jit, .*; allowed: a call outside",
    ),
    Refusal(
        "a function of an SNN",
        lambda: deploy.as_function(fitted(DENSE)),
        "layers is a SNN; allowed: float layers",
    ),
    Refusal(
        "layers of offsets",
        lambda: dense_layers(with_fields(fitted(DENSE), offset=jnp.float32(1))),
        "its neurons add an offset .*\n *remedy: replace",
    ),
    Refusal(
        "layers of signed values",
        lambda: layers_of(encoded, FLAT, VECTORS),
        "an encoder sends spikes of both signs\n *remedy: put a ReLU",
    ),
    Refusal(
        "layers of adaptive neurons",
        lambda: dense_layers(with_adaptation()),
        "populations of Adaptive",
    ),
    Refusal("layers of a dictionary", lambda: dense_layers({}), "snn is dict; allowed"),
    Refusal(
        "layers for images in a dictionary",
        lambda: dense_layers(fitted(DENSE), {"a": VECTORS}),
        "x is .*; allowed: one array",
    ),
    Refusal(
        "layers for numbers",
        lambda: dense_layers(fitted(DENSE), VECTORS[:, 0]),
        r"x has shape \(4,\); .*an axis of features as in x\[:, None\]",
    ),
]

# -------------------------------------------------------------------------------- chips

GRADED = snnjax.integrate_and_fire(levels=(0, 3))
CHIPS = [
    ({"chip": deploy.akida1()}, "Akida 1.0 computes T = 1, not 4; allowed: steps=1"),
    ({"chip": deploy.xylo()}, "Xylo filters currents, .*; allowed: networks that"),
    (
        {"chip": deploy.catalyst_n1()},
        "Catalyst N1 resets to zero, .*; allowed: steps=1",
    ),
    ({"chip": deploy.Chip}, "chip is Chip; allowed: a profile"),
    ({"chip": deploy.speck}, r"chip is speck; allowed: .* \(called\)"),
    ({"chip": "speck"}, "chip is 'speck'; allowed: a profile"),
    # A model of one's own changes neither synapses nor T; a code is checked first.
    (
        {"chip": deploy.akida1(), "model": GRADED},
        "Akida 1.0 computes T = 1, not 4; allowed: steps=1",
    ),
    (
        {"chip": deploy.xylo(), "model": GRADED},
        "Xylo filters currents, .*; allowed: networks that",
    ),
    ({"chip": deploy.speck(), "code": "radix"}, "code is 'radix'; allowed: a code"),
]


convert = functools.partial(snnjax.convert, *DENSE[:3], steps=4)
REPORTS = [
    *numbered("conversion for a chip", convert, CHIPS),
    Refusal(
        "a report on a dictionary",
        lambda: deploy.report({}, deploy.speck()),
        "layers is a dict; allowed: .*snnjax.deploy.layers",
    ),
    Refusal(
        "a report for a chip that is not called",
        lambda: deploy.report(test_chips.network(), deploy.speck),
        r"chip is speck; allowed: .* \(called\)",
    ),
    Refusal(
        "a row that a report does not have",
        lambda: deploy.report(test_chips.network(), deploy.speck())["nothing"],
        "allowed: network, code, input, first",
        KeyError,
    ),
]

# ----------------------------------------------------------------------- NIR is written


@functools.cache
def hard():
    """An SNN of neurons that reset to zero."""
    return snnjax.init(*DENSE[:3], model=HARD)


@functools.cache
def leaky():
    return snnjax.init(*DENSE[:3], model=LEAKY)


def to_nir(layers, **options):
    pytest.importorskip("nir")
    return deploy.to_nir(layers, **options)


def write(make_snn, **options):
    to_nir(dense_layers(make_snn()), **options)


def read_with_step(dt):
    deploy.from_nir(to_nir(dense_layers(hard())), dt=dt)


def write_wide():
    arithmetic = deploy.Arithmetic(8, 8, 26, "wrap")
    to_nir(dataclasses.replace(dense_layers(hard()), arithmetic=arithmetic))


def of_levels():
    model = snnjax.integrate_and_fire(levels=(-2, 3), dead_zone=0.5, last_zone=0.75)
    return dataclasses.replace(fitted(DENSE), model=model)


WRITTEN = {
    "a wait": (
        lambda: dataclasses.replace(fitted(DENSE), steps=4, wait=2),
        "NIR cannot express.*wait 2, reset subtract, v_init",
    ),
    "a lower bound": (
        lambda: dataclasses.replace(
            hard(), model=dataclasses.replace(HARD, lowest=-1.0)
        ),
        "NIR cannot express: lowest -1.0",
    ),
    "levels": (of_levels, "NIR cannot express.*levels"),
    "a code": (
        lambda: fitted(DENSE, snnjax.codes.radix()),
        r"NIR cannot express the code radix\(base=2\)",
    ),
    "several leaks": (
        lambda: with_fields(leaky(), leak=jnp.linspace(0.5, 1.0, 6)),
        "has leaks from 0.5 to 1.0; NIR's LIF allows 0 < leak < 1",
    ),
}


def writing_refused():
    for name, (make_snn, message) in WRITTEN.items():
        call = functools.partial(write, make_snn)
        yield Refusal(f"NIR of {name}", call, message)
    for threshold in (0.0, np.nan, np.inf):
        call = functools.partial(write_threshold, threshold)
        message = f"threshold of site .* is {threshold}; allowed: > 0, and finite"
        yield Refusal(f"NIR of the threshold {threshold}", call, message)
    for dt in (0.0, -1.0, "x"):
        message = f"dt is {dt!r}; allowed: > 0, and finite"
        call = functools.partial(write, hard, dt=dt)
        yield Refusal(f"NIR with steps of {dt!r}", call, message)
        call = functools.partial(read_with_step, dt)
        yield Refusal(f"a reading of NIR with steps of {dt!r}", call, message)
    yield Refusal(
        "NIR of an SNN",
        lambda: to_nir(hard()),
        "layers is a SNN; allowed: .*snnjax.deploy",
    )
    yield Refusal(
        "NIR of 26 bits", write_wide, "state_bits is 26; allowed in NIR: up to 25"
    )


def write_threshold(threshold):
    write(lambda: with_fields(leaky(), threshold=jnp.float32(threshold)))


# -------------------------------------------------------------------------- NIR is read

ONE = np.ones(2, np.float32)
NEURON = {"r": ONE, "v_threshold": ONE}
BITS = {"weight_bits": 8, "input_bits": 8, "state_bits": 16}
WHOLE = BITS | {"steps": 4, "overflow": "wrap", "code": "rate"}
NODES = {  # a function of the package nir that gives the nodes of a chain
    "cuba neurons": (
        lambda nir: [nir.CubaLIF(ONE, ONE, ONE, 0 * ONE, ONE)],
        r"cubalif \(CubaLIF\)",
    ),
    "a delay and a threshold": (
        lambda nir: [nir.IF(**NEURON), nir.Delay(ONE), nir.Threshold(ONE)],
        r"\(Delay\).*\(Threshold\)",
    ),
    "a reset to 1": (
        lambda nir: [nir.IF(**NEURON, v_reset=ONE)],
        "have the reset v_reset from 1.0 to 1.0; allowed: v_reset 0",
    ),
    "half a reset": (
        lambda nir: [nir.IF(**NEURON, metadata={"reset": "half"})],
        "have the reset half; allowed",
    ),
    "a threshold of 0": (
        lambda nir: [nir.IF(r=ONE, v_threshold=0 * ONE)],
        "a v_threshold of 0.0; allowed: > 0",
    ),
    "a time constant below a step": (
        lambda nir: [nir.LIF(tau=ONE * 1e-5, v_leak=0 * ONE, **NEURON)],
        "above dt = 0.0001",
    ),
    "no neurons": (
        lambda nir: [nir.Linear(np.eye(2))],
        "the graph has no IF or LIF: no neuron would fire",
    ),
    "a resistance of NaN": (
        lambda nir: [nir.IF(r=ONE * np.nan, v_threshold=ONE)],
        "NaN in its r; allowed: numbers",
    ),
}
METADATA = {
    "bits alone": (BITS, "whole numbers is not valid: 'steps'. Needed"),
    "a radix code": (WHOLE | {"code": "radix"}, "code is 'radix'; allowed: 'rate'"),
    "half a bit": (WHOLE | {"state_bits": 0.5}, "state_bits is 0.5; allowed"),
    "no unit": (WHOLE, "not valid: 'unit'. Needed: .*a unit of the input"),
    "no step": ({"steps": 0}, "no valid steps and wait: steps is 0"),
    "a long wait": ({"steps": 4, "wait": 5}, "wait is 5; allowed"),
    "many steps": ({"steps": "many"}, "no valid steps and wait: .*'many'. Delete both"),
}
EDGES = {
    "a loop": (
        "input-spike spike-back back-spike spike-output",
        "the graph is recurrent: .*spike.*; allowed: edges without",
    ),
    "two inputs": (
        "input-spike other-spike spike-output",
        "the graph has 2 inputs .*; allowed: one",
    ),
    "an edge to no node": (
        "input-spike spike-nowhere",
        "'nowhere'.* no node; nodes: ",
    ),
    "a node without an edge": (
        "input-spike back-output",
        "no edge leads to back",
    ),
}


def read(graph):
    deploy.as_function(deploy.from_nir(graph))


def read_chain(make_nodes, metadata=None):
    nir = pytest.importorskip("nir")
    import test_nir

    read(test_nir.chain(*make_nodes(nir), metadata=metadata))


def one_neuron(nir):
    return [nir.IF(**NEURON)]


def read_edges(edges):
    nir = pytest.importorskip("nir")
    import test_nir

    nodes = {"spike": nir.IF(**NEURON), "back": test_nir.linear(np.eye(2))}
    if "other" in edges:
        nodes["other"] = nir.Input({"input": np.array([2])})
    read(test_nir.unchecked(edges, **nodes))


def read_neuron():
    nir = pytest.importorskip("nir")
    read(nir.IF(**NEURON))


def kernel_of_unknown_size():
    """The package nir finds the size out where it checks a graph."""
    nir = pytest.importorskip("nir")
    import test_nir

    weight = np.ones((2, 2, 3, 3), np.float32)
    ones = (1, 1)
    kernel = nir.Conv2d(None, weight, ones, ones, ones, 1, np.zeros(2))
    spike = test_nir.neurons(2, 4, 4)
    graph = test_nir.unchecked(shape=(2, 4, 4), kernel=kernel, spike=spike)
    deploy.to_nir(deploy.from_nir(graph))


def read_path(path):
    pytest.importorskip("nir")
    deploy.from_nir(path)


def read_own_source():
    read_path(__file__)


def reading_refused():
    for name, (make_nodes, message) in NODES.items():
        call = functools.partial(read_chain, make_nodes)
        yield Refusal(f"a graph of {name}", call, message)
    for name, (metadata, message) in METADATA.items():
        call = functools.partial(read_chain, one_neuron, metadata)
        yield Refusal(f"a graph that says {name}", call, message)
    for name, (edges, message) in EDGES.items():
        call = functools.partial(read_edges, edges)
        yield Refusal(f"a graph with {name}", call, message)
    yield Refusal(
        "a neuron for a graph",
        read_neuron,
        "graph is a IF; allowed: a nir.NIRGraph, or the path of a file of nir.write",
    )
    yield Refusal(
        "a folder for a graph",
        lambda: read_path(Path(__file__).parent),
        r"refusals is a folder; .* nir.write \(it has no file that ends in .nir\)",
        IsADirectoryError,
    )
    yield Refusal(
        "a file without a graph",
        read_own_source,
        r"deploy.py holds no NIR graph, .*; allowed: a file of nir.write",
    )
    yield Refusal(
        "a file of a graph that does not exist",
        lambda: read_path("nothing.nir"),
        "no file nothing.nir; give the path of a file of nir.write",
        FileNotFoundError,
    )
    yield Refusal(
        "a kernel for images of unknown size",
        kernel_of_unknown_size,
        "'kernel' has no size of its input",
    )


ONNX = [
    Refusal(
        "an ONNX file of a function with params",
        lambda: deploy.to_onnx(DENSE.fn, VECTORS),
        r"fn takes \(.*, x\); allowed: a function of x alone, e.g. lambda x: snnjax",
    ),
    Refusal(
        "an ONNX file with a text",
        lambda: deploy.to_onnx(lambda x: {"y": x, "name": "net"}, VECTORS),
        r"fn returns a str at \['name'\]; allowed: arrays. Leave names",
    ),
    Refusal(
        "an ONNX file inside of jit",
        lambda: jax.jit(lambda: deploy.to_onnx(lambda x: x, np.ones((2, 4))))(),
        "snnjax.deploy.to_onnx is called inside of jit",
    ),
]

NAMES = [
    Refusal(
        "a chip without its number",
        lambda: deploy.loihi,
        "no attribute 'loihi'; closest: 'loihi2', 'loihi1'",
        AttributeError,
    ),
]

ROWS = [*NAMES, *LAYERS, *REPORTS, *ONNX, *writing_refused(), *reading_refused()]
