"""Whole numbers: each execution computes what a chip in Python's numbers computes."""

import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest
from networks import by_executions
from test_layers import AFFINE, CODES, fitted, spikes_and_outputs

import snnjax
from snnjax.layers import Convolution, Dense, Flatten, Input, Output, Population, Scale
from snnjax.neurons.gradients import without_surrogate

# -------------------------------------------------------------- a chip, event by event


def chip(layers, x):
    """Spikes of each population and sums of each output, by Python's whole numbers.

    Channels first. Neurons are computed one by one; potentials are in units of the last
    spike of a code.
    """
    steps, wait = layers.steps, layers.wait or 0
    weights = [Fraction(w).limit_denominator(10**6) for w in layers.code.weights(steps)]
    m = [int(w / weights[-1]) for w in weights]
    clock = layers.code.clock_runs
    units = 1 if clock else int(1 / weights[-1])
    values, spikes, sums = {}, {}, {}
    for node in layers.nodes:
        if isinstance(node, Input):
            limit = layers.arithmetic.largest_input
            whole = np.clip(np.rint(x / np.float32(node.unit)), -limit, limit)
            whole = np.moveaxis(whole, -1, 1) if whole.ndim == 4 else whole
            at = [units * whole if clock or t == 0 else 0 * whole for t in range(steps)]
            values[node.name] = np.array(at, np.int64)
            continue
        arriving = sum(values[source] for source in node.sources)
        if not isinstance(node, Population | Output):
            values[node.name] = np.array([linear(node, step) for step in arriving])
            continue
        bias_unit = 1 if clock else float(weights[-1])
        bias = np.rint(node.bias / bias_unit).astype(np.int64)
        arriving[: steps if clock else 1] += bias
        if isinstance(node, Output):
            sums[node.name] = arriving.sum(0)
            continue
        neurons = [
            np.broadcast_to(a, node.shape).ravel()
            for a in (
                node.threshold,
                node.initial_potential / (1 if clock else steps * float(weights[-1])),
            )
        ]
        flat = arriving.reshape(steps, len(x), -1)
        fired = np.zeros_like(flat)
        model = without_surrogate(node.model)
        for b, i in itertools.product(range(len(x)), range(flat.shape[2])):
            threshold, start = (round(float(a[i])) for a in neurons)
            fired[:, b, i] = neuron(
                model, threshold, start, flat[:, b, i].tolist(), m, wait, layers
            )
        spikes[node.name] = fired.reshape(arriving.shape)
        worth = np.array(m).reshape(-1, *[1] * (arriving.ndim - 1))
        values[node.name] = worth * spikes[node.name]
    return spikes, sums


def neuron(model, threshold, v, currents, m, wait, layers):
    """The levels of one neuron: nearest to what is missing, by fractions."""
    low, high = model.levels
    zone = Fraction(model.dead_zone).limit_denominator(1000)
    bits, sent, levels = layers.arithmetic.state_bits, 0, []
    for n in range(len(m) + wait):
        v += currents[n] if n < len(m) else 0
        limit = 2 ** (bits - 1) * m[min(n, len(m) - 1)]
        if layers.arithmetic.overflow == "wrap":
            v = (v + limit) % (2 * limit) - limit
        else:
            v = min(max(v, -limit), limit - 1)
        if n < wait:
            continue
        size = m[n - wait] * threshold
        if low == 0:
            k = v // size
        else:
            missing = Fraction(2 * v - threshold, 2)
            k = (missing + Fraction(size, 2)) // size
            is_last = n == len(m) + wait - 1
            if abs(missing) < zone * size and not is_last:
                k = 0
        k = min(max(k, low), high)
        if low < 0:
            k = max(k, -(sent // m[n - wait]))
            sent += m[n - wait] * k
        v = 0 if model.reset == "zero" and k else v - (size * k if k else 0)
        levels.append(int(k))
    return levels


def linear(node, x):
    """A map of one step [B, ...], channels first, window by window."""
    if isinstance(node, Flatten):
        return x.reshape(len(x), -1)
    if isinstance(node, Scale):
        weight = np.asarray(node.weight, np.int64)
        return x * (weight if x.ndim < 4 or weight.ndim == 3 else weight.reshape(-1))
    if isinstance(node, Dense):
        return x @ node.weight.astype(np.int64).T
    (high, wide), (top, left) = (
        node.stride if isinstance(node, Convolution) else node.stride,
        node.padding,
    )
    x = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    if not isinstance(node, Convolution):
        windows = np.lib.stride_tricks.sliding_window_view(x, node.window, (2, 3))
        return windows[:, :, ::high, ::wide].sum((-1, -2))
    size = node.weight.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, size, (2, 3))[
        :, :, ::high, ::wide
    ]
    groups = np.split(windows, node.groups, axis=1)
    kernels = np.split(node.weight.astype(np.int64), node.groups)
    pairs = zip(groups, kernels, strict=True)
    return np.concatenate([np.einsum("bihwkl,oikl->bohw", g, k) for g, k in pairs], 1)


def channels_first(array):
    return np.moveaxis(array, -1, 2) if array.ndim == 5 else np.asarray(array)


# -------------------------------------------------------------------------- executions

HOLDS = [name for name in AFFINE if name not in ("pre-activation", "stacked")]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", HOLDS)
def test_a_chip_and_every_execution_send_the_same_spikes(name, code):
    net = AFFINE[name]
    layers = snnjax.layers.of(net.fn, fitted(net, *CODES[code]), net.x)
    integers = snnjax.quantize(layers, net.x, weight_bits=5)
    spikes, sums = chip(integers, np.asarray(net.x))
    trace = snnjax.integers.run(integers, net.x)
    for site, levels in spikes.items():
        np.testing.assert_array_equal(channels_first(trace.spikes[site]), levels, site)
        assert levels.any(), site
    assert sum(map(int, trace.overflows.values())) == 0
    results = trace.outputs if isinstance(trace.outputs, dict) else {"": trace.outputs}
    for output, total, result in zip(
        integers.outputs, sums.values(), results.values(), strict=True
    ):
        worth = np.asarray(output.unit).ravel() * snnjax.integers.exact.unit(integers)
        total = np.moveaxis(total, 1, -1) * worth
        np.testing.assert_allclose(np.asarray(result).sum(0), total, 1e-5, 1e-5)
    fn, snn = snnjax.layers.function(integers)
    x = snnjax.integers.on_grid(integers, net.x)
    sent, _ = spikes_and_outputs(fn)(snn, x)
    for site in trace.spikes:
        np.testing.assert_array_equal(sent[site], np.asarray(trace.spikes[site]))
    for outputs in by_executions(fn, ("by_step", "by_layer"), snn, x):
        for a, b in zip(*map(jax.tree.leaves, (outputs, trace.outputs)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
