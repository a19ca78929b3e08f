"""What XLA makes of it: compiled with all optimizations, as users have programs.

The other tests let XLA optimize less. Here counts, codes, whole numbers and gradients
meet their oracles at batch sizes at which XLA takes different ways.
"""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
import reference
from networks import average_pool, conv, eighths, outputs_of, relu
from rows import thorough
from test_integers import chip

import snnjax
from snnjax import codes, integrate_and_fire

pytestmark = pytest.mark.usefixtures("optimized")

T = 4
BATCHES = (1, 31, 32, *thorough(2, 100))
batches = pytest.mark.parametrize("batch", BATCHES)

# ----------------------------------------------------------------------- counts

# Why pixels have fewer connections than others: strides, borders, groups.
WAYS = {
    "strided": {"stride": 2, "padding": ((0, 1), (0, 1))},
    "depthwise": {"padding": ((1, 1), (1, 1)), "groups": 4},
    "grouped": {"padding": ((1, 1), (2, 0)), "groups": 2},
}
KERNELS = {
    "strided": eighths(0, (3, 3, 2, 4), -4),
    "depthwise": eighths(1, (3, 3, 1, 4), -4),
    "grouped": eighths(2, (3, 3, 2, 8), -4),
    "readout": eighths(3, (128, 10)),
}


def convolutions(p, x):
    """Images 16 x 16, and a pool before a dense layer."""
    for name, way in WAYS.items():
        x = relu(conv(x, p[name], **way))
    return average_pool(x).reshape(len(x), -1) @ p["readout"]


@pytest.mark.parametrize("batch", (1, *thorough(16, 32, 100)))
def test_operations_are_those_counted_by_hand(batch):
    x = eighths(batch, (batch, 16, 16, 2), 0)
    snn = snnjax.init(convolutions, KERNELS, x, model=integrate_and_fire())

    def measured(snn, x):
        return snnjax.measure(convolutions, snn, x, params=KERNELS, steps=T)

    def trains(snn, x):
        return snnjax.measures.spike_trains(convolutions, snn, x, steps=T)

    measures, spikes = outputs_of([measured, trains], snn, x)
    streams = [x, *(spikes[f"{name}/relu"] for name in WAYS)]
    macs, operations = [], []
    for (name, way), stream in zip(WAYS.items(), streams, strict=False):
        fan_out = reference.fan_out(stream.shape[-3:], KERNELS[name].shape, **way)
        operations.append(np.sum((stream != 0) * fan_out) / batch)
        macs.append(fan_out.sum())
    pooled = [average_pool(np.float32(step)) for step in streams[-1]]
    operations.append(10 * np.count_nonzero(pooled) / batch)
    macs.append(KERNELS["readout"].size)
    assert all(operations)
    np.testing.assert_allclose(measures.synaptic_operations, sum(operations[1:]), 1e-6)
    assert (measures.input_macs, measures.macs) == (macs[0], sum(macs))


# ------------------------------------------------------------------------ codes

# Sizes of spikes are powers of two, so that sums are exact.
NEURONS = {
    codes.rate(): integrate_and_fire(threshold=0.5),
    codes.radix(): integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3),
    codes.radix(base=4): integrate_and_fire(levels=(-3, 3)),
    codes.weighted((2, 1, 0.5, 0.5)): integrate_and_fire(levels=(0, 2)),
}


def perceptron(params, x):
    for kernel in params[:-1]:
        x = relu(x @ kernel)
    return x @ params[-1]


def problem(batch):
    """Kernels, of another shape for each batch size, an input, and an SNN."""
    code = [*NEURONS][batch % len(NEURONS)]
    shapes = (4, 5 + batch % 7), (5 + batch % 7, 6), (6, 3)
    params = [eighths(i, shape) for i, shape in enumerate(shapes)]
    x = eighths(batch, (batch, 4), 0)
    snn = snnjax.init(perceptron, params, x, model=NEURONS[code], code=code)
    return params, x, snn


@batches
def test_outputs_of_every_execution_are_those_of_the_oracle(batch):
    params, x, snn = problem(batch)
    code, model = snn.code, snn.model
    cases = [(1, T), (T, "closed_form")]  # wait and execution
    if code.is_streaming():
        cases.append((0, 1))
    runs = [
        snnjax.spiking(perceptron, steps=T, wait=wait, execution=execution)
        for wait, execution in cases
    ]
    results = outputs_of(runs, snn, x)
    is_rate = code == codes.rate()
    # How often x arrives at each step.
    arrivals = np.ones(T) if is_rate else np.array([T, *np.zeros(T - 1)])
    for (wait, execution), outputs in zip(cases, results, strict=True):
        stream = arrivals[:, None, None] * np.asarray(x)
        for kernel in params[:-1]:
            stream = reference.simulate(
                stream @ np.asarray(kernel),
                threshold=0.5 if is_rate else 1.0,
                wait=wait,
                levels=model.levels,
                dead_zone=model.dead_zone,
                sizes=None if is_rate else code.sizes(T),
            )
        expected = stream @ np.asarray(params[-1])
        assert expected.any()
        if execution == "closed_form":  # the answer, at every step
            outputs, expected = outputs.mean(0), expected.mean(0)
        np.testing.assert_allclose(
            outputs, expected, 1e-5, 1e-5, err_msg=str(execution)
        )


# ---------------------------------------------------------------- whole numbers


@functools.cache
def rounded():
    """A perceptron of whole numbers."""
    _, x, snn = problem(batch=17)
    layers = snnjax.deploy.layers(perceptron, replace(snn, steps=T, wait=1), x)
    return snnjax.deploy.quantize(layers, x, weight_bits=6)


@batches
def test_whole_numbers_are_those_of_a_chip(batch):
    integers, x = rounded(), eighths(batch, (batch, 4), 0)
    trace = snnjax.deploy.run(integers, x)
    spikes, sums = chip(integers, np.asarray(x))
    for name, levels in spikes.items():
        np.testing.assert_array_equal(trace.spikes[name], levels, name)
        assert levels.any()
    ((output,), (total,)) = integers.outputs, sums.values()
    worth = np.asarray(output.unit).ravel() * integers.potential_unit
    np.testing.assert_allclose(trace.outputs.sum(0), total * worth, 1e-5, 1e-5)


# -------------------------------------------------------------------- gradients


@pytest.mark.parametrize("batch", (1, 32, *thorough(100)))
def test_gradients_are_those_of_bptt_by_hand(batch):
    params, *_ = problem(batch)
    spikes = np.random.default_rng(batch).integers(0, 2, (T, batch, 4))
    neuron = snnjax.lif(leak=0.5, threshold=0.75, reset="zero")
    snn = snnjax.init(perceptron, params, np.float32(spikes[0]), model=neuron)
    simulate = snnjax.spiking(perceptron, steps=T, inputs="sequence")

    def loss(snn, spikes):
        return (simulate(snn, spikes) ** 2).sum() / 2

    def slope(x, b=3.0):
        return (abs(x) <= 0.5) * b / np.cosh(b * x) ** 2 / (2 * np.tanh(b / 2))

    gradients = jax.jit(jax.grad(loss))(snn, np.float32(spikes)).params
    kernels = [np.array(kernel, float) for kernel in params]
    expected = reference.dense_gradients(
        kernels,
        spikes.astype(float),
        threshold=0.75,
        leak=0.5,
        reset="zero",
        slope=slope,
        detach=False,
    )
    for gradient, exact in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, exact, 1e-3, 1e-3 * np.abs(exact).max())
        assert exact.any()
