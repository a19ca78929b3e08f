"""A slow oracle in NumPy: plain loops over time steps and neurons, no JAX.

Written from the papers' formulas alone, to be read beside them. T is the number of
steps, B of images, C of channels. A spike is an array entry of its height: threshold
times level. Arrays are float64 unless the caller's are not.
"""

import numpy as np


def neuron(
    currents,
    threshold,
    *,
    leak=1.0,
    reset="subtract",
    start=0.0,
    wait=0,
    levels=(0, 1),
    dead_zone=0.0,
    last_zone=0.5,
    sizes=None,
    rectifies=True,
    lowest=-np.inf,
):
    """Spikes, a list of T heights, of one neuron that waits before it may fire.

    Args:
        currents: [T].
        start: potential before the first step.
        wait: steps that the neuron only integrates. Steps after T have no current.
        levels: (lowest, highest) level of a spike.
        dead_zone: a potential that lacks less than this part of a spike sends none.
        last_zone: the same at the last step.
        sizes: thresholds that a spike of level 1 is worth at each step, [T]; None: 1
            at every step, as with rate coding.
        rectifies: the sum of all spikes is never negative.
        lowest: the potential is clamped to so many thresholds from below.
    """
    steps = len(currents)
    low, high = levels
    sizes = np.ones(steps) if sizes is None else np.asarray(sizes)
    finest_size = sizes[-1] * threshold
    v = start
    sent = 0  # sum of the spikes so far
    spikes = []
    for step in range(steps + wait):
        current = currents[step] if step < steps else 0 * currents[0]
        v = max(leak * v + current, lowest * threshold)
        if step < wait:
            continue
        size = sizes[step - wait] * threshold
        # Signed spikes round to the nearest level, and others down.
        ahead = (size - finest_size) / 2 if low < 0 else 0
        lowest_level = low
        if rectifies:
            lowest_level = max(low, -np.floor(sent / size + 1e-3))
        level = int(min(max(np.floor((v + ahead) / size), lowest_level), high))
        is_last = step - wait == steps - 1
        zone = last_zone if is_last else dead_zone
        if abs(v - finest_size / 2) < zone * size:
            level = 0
        sent += level * size
        spikes.append(level * size)
        if level:
            v = v - level * size if reset == "subtract" else 0 * v
    return spikes


def population(
    currents,
    threshold,
    *,
    leak=1.0,
    reset="subtract",
    synaptic_leak=0.0,
    subthreshold=0.0,
    spike_triggered=0.0,
    adaptation_leak=0.0,
    kernel=None,
    wait=0,
):
    """Spikes [T, N] of N neurons with a synapse, an adaptation and a recurrence.

    Args:
        currents: [T, N].
        kernel: weights of the recurrence from neuron m to neuron n, [N, N].
        wait: steps that the neurons only integrate.
    """
    steps, count = currents.shape
    v = np.zeros(count)  # potentials
    i = np.zeros(count)  # currents of the synapses
    w = np.zeros(count)  # adaptation
    last = np.zeros(count)  # spikes of the step before
    spikes = []
    kernel = np.zeros((count, count)) if kernel is None else kernel
    for step in range(steps + wait):
        arriving = currents[step] if step < steps else np.zeros(count)
        for n in range(count):
            recurrent = sum(last[m] * kernel[m, n] for m in range(count))
            i[n] = synaptic_leak * i[n] + arriving[n] + recurrent
            v[n] = leak * v[n] + i[n] - w[n]
        if step < wait:
            continue
        fired = np.zeros(count)
        for n in range(count):
            if v[n] >= threshold:
                fired[n] = threshold
                v[n] = v[n] - threshold if reset == "subtract" else 0.0
            driven = subthreshold * v[n] + spike_triggered * fired[n]
            w[n] = adaptation_leak * w[n] + driven
        last = fired
        spikes.append(fired)
    return np.array(spikes)


def simulate(currents, threshold, *, bias=0.0, start=0.0, **options):
    """Spikes [T, B, ...] of a layer of neurons.

    Args:
        currents: [T, B, ...].
        threshold, bias, start: broadcast over [B, ...].
        options: of `neuron`.
    """
    bias = np.asarray(bias, currents.dtype)
    if options.get("sizes") is None:
        currents = currents + bias
    else:  # the code lets a constant arrive at the first step, T times
        currents = np.array(currents)
        currents[0] += len(currents) * bias
    threshold = np.broadcast_to(threshold, currents.shape[1:])
    start = np.broadcast_to(start, currents.shape[1:])
    spikes = np.zeros_like(currents)
    for index in np.ndindex(*currents.shape[1:]):
        train = currents[:, *index]
        spikes[:, *index] = neuron(
            train, threshold[index], start=start[index], **options
        )
    return spikes


def clip_floor(a, steps, threshold, shift=0.0):
    """(V / T) clip(floor(a T / V + shift), 0, T), element by element."""
    out = np.zeros(np.shape(a))
    threshold = np.broadcast_to(threshold, out.shape)
    for index in np.ndindex(*out.shape):
        count = np.floor(a[index] * steps / threshold[index] + shift)
        out[index] = threshold[index] / steps * min(max(count, 0), steps)
    return out


def per_channel(function, activation):
    """[C]: ``function`` of each channel's activations alone."""
    channels = range(activation.shape[-1])
    return np.array([function(activation[..., c]) for c in channels])


def max_threshold(activation):
    """The largest activation."""
    return max(activation.flat)


def percentile_threshold(activation, p):
    """The number below which p percent of the activations lie, by interpolation."""
    ordered = sorted(activation.flat)
    place = p / 100 * (len(ordered) - 1)
    below = int(np.floor(place))
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def squared_error(activation, steps, threshold, shift=0.0):
    """Sum of the squared errors that T spikes of a threshold make."""
    error = clip_floor(activation, steps, threshold, shift) - activation
    return sum(e**2 for e in error.flat)


def least_squares_threshold(activation, steps, shift=0.0):
    """The best of 95 candidates: max, 0.99 max, ..., 0.06 max."""
    candidates = [max_threshold(activation) * (1 - 0.01 * i) for i in range(95)]
    return min(
        candidates,
        key=lambda threshold: squared_error(activation, steps, threshold, shift),
    )


def bias_shift(threshold, steps):
    """Half of a spike, V / 2T, which makes flooring rounding."""
    return threshold / (2 * steps)


def bias_correction(activation, output):
    """[C]: mean over images and positions of activation minus output, [B, ..., C]."""
    return per_channel(np.mean, activation - output)


def potential_correction(activation, output, steps):
    """[...]: T times the mean over images of activation minus output, [B, ...]."""
    total = np.zeros(activation.shape[1:])
    for a, s in zip(activation, output, strict=True):
        total += a - s
    return steps * total / len(activation)


def max_pool(stream, pool):
    """Increments of the pooled running sum of a stream [T, B, ...], step by step."""
    total = np.zeros_like(stream[0])
    last_pooled = 0.0
    increments = []
    for spikes in stream:
        total = total + spikes
        pooled = pool(total)
        increments.append(pooled - last_pooled)
        last_pooled = pooled
    return np.stack(increments)


def light(kernels, biases, x, steps):
    """The ICML 2021 light pipeline on a dense net.

    Args:
        kernels: [inputs, outputs] of each layer; the last layer has no neurons.
        biases: of each layer, trained.
        x: [B, inputs].

    Returns:
        The thresholds of the layers, what is added to their biases, and mean logits.
    """
    ann = x
    spikes = np.stack([x] * steps)  # [T, B, inputs]
    thresholds, added = [], []
    for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
        ann = np.maximum(ann @ kernel + bias, 0)
        currents = spikes @ kernel + bias
        threshold = least_squares_threshold(ann, steps)
        extra = np.full(kernel.shape[1], bias_shift(threshold, steps))
        spikes = simulate(currents, threshold, bias=extra)
        extra = extra + bias_correction(ann, spikes.mean(0))
        spikes = simulate(currents, threshold, bias=extra)
        thresholds.append(threshold)
        added.append(extra)
    return thresholds, added, (spikes @ kernels[-1] + biases[-1]).mean(0)


def potentials(currents, spikes, threshold, leak, reset):
    """Potentials [T, ...] before each spike, from currents and spikes, [T, ...]."""
    v = np.zeros_like(currents[0])
    history = []
    for current, fired in zip(currents, spikes, strict=True):
        v = leak * v + current
        history.append(v)
        v = v - fired if reset == "subtract" else np.where(fired > 0, 0, v)
    return np.stack(history)


def backward(v, spikes, upstream, threshold, leak, reset, slope, detach):
    """Gradient of the currents from that of the spikes, back through time by hand.

    Args:
        v: potentials before each spike, [T, ...].
        spikes: their heights, [T, ...].
        upstream: gradient of the spikes, [T, ...].
        slope: the surrogate's derivative in (v - V_th) / (2 V_th).
        detach: no gradient flows through the reset.
    """
    gradient = np.zeros_like(upstream)
    later_gradient = 0.0  # of the potential after the spike
    for t in reversed(range(len(upstream))):
        # d spike / d v, in spikes of height 1
        height = slope((v[t] - threshold) / (2 * threshold)) / (2 * threshold)
        reset_height = 0.0 if detach else height
        # d (v after the spike) / d v
        if reset == "subtract":
            passed_on = 1 - threshold * reset_height
        else:
            passed_on = (spikes[t] == 0) - v[t] * reset_height
        gradient[t] = upstream[t] * threshold * height + later_gradient * passed_on
        later_gradient = leak * gradient[t]
    return gradient


def dense_gradients(kernels, x, threshold, leak, reset, slope, detach):
    """Gradients of sum_t |O(t)|^2 / 2 for spiking dense layers and a linear readout.

    Args:
        kernels: [inputs, outputs] of each layer; the last one is the readout.
        x: input of each step, [T, B, inputs].
    """
    inputs = [x]  # of each layer; the spikes of one are the inputs of the next
    layer_potentials = []
    for kernel in kernels[:-1]:
        currents = inputs[-1] @ kernel
        spikes = simulate(currents, threshold, leak=leak, reset=reset)
        v = potentials(currents, spikes, threshold, leak, reset)
        layer_potentials.append(v)
        inputs.append(spikes)
    gradient = inputs[-1] @ kernels[-1]  # of the outputs: the outputs themselves
    kernel_gradients = [np.einsum("tbi,tbo->io", inputs[-1], gradient)]
    for i in reversed(range(len(layer_potentials))):
        gradient = backward(
            layer_potentials[i],
            inputs[i + 1],
            gradient @ kernels[i + 1].T,
            threshold,
            leak,
            reset,
            slope,
            detach,
        )
        kernel_gradients.insert(0, np.einsum("tbi,tbo->io", inputs[i], gradient))
    return kernel_gradients


def least_squares_weights(activation, spikes, kernel, damping, images):
    """The refitted kernel [I, C], by centred and damped normal equations.

    Args:
        activation: of the ANN, [N, P, C], for N images and P positions.
        spikes: mean inputs of the product, [N, P, I].
        kernel: before the fit, [I, C].
        damping: in units of the power of the currents per squared weight.
        images: those that count, bool [N].
    """
    current = spikes @ kernel
    top = activation.max((0, 1))
    # What is silent, or at the top, in both networks says nothing about the weights.
    is_silent = (activation <= 0) & (current <= 0)
    is_at_top = (activation >= top) & (current >= top)
    counts = ~is_silent & ~is_at_top & images[:, None, None]
    grams, right_sides, power = [], [], 0.0
    for c in range(kernel.shape[1]):
        rows = spikes[counts[..., c]]
        rows = rows - rows.mean(0)
        error = (activation - current)[counts[..., c], c]
        grams.append(rows.T @ rows)
        right_sides.append(rows.T @ (error - error.mean()))
        power += ((rows @ kernel[:, c]) ** 2).sum()
    ridge = damping * power / (kernel**2).sum() * np.eye(len(kernel))
    columns = []
    for c, gram in enumerate(grams):
        change = np.linalg.solve(gram + ridge, right_sides[c])
        columns.append(kernel[:, c] + change)
    return np.stack(columns, 1)


def fan_out(shape, kernel, stride=1, padding=((0, 0), (0, 0)), groups=1):
    """Connections of each input [H, W, C] of a convolution, counted one by one.

    Args:
        shape: of the input, (H, W, C).
        kernel: its shape, (height, width, inputs of a group, outputs).
        padding: (before, after) for rows and for columns.
    """
    counts = np.zeros(shape, int)
    output_shape = []
    for axis in (0, 1):
        room = shape[axis] + sum(padding[axis]) - kernel[axis]
        output_shape.append(room // stride + 1)
    for output in np.ndindex(*output_shape):
        for tap in np.ndindex(*kernel[:2]):
            row = output[0] * stride + tap[0] - padding[0][0]
            column = output[1] * stride + tap[1] - padding[1][0]
            if 0 <= row < shape[0] and 0 <= column < shape[1]:
                counts[row, column] += kernel[3] // groups
    return counts


def windows(x, size, stride, padding, dilation=(1, 1)):
    """Windows [B, C, H', W', h, w] of images [B, C, H, W].

    Args:
        size: of a window, (h, w).
        stride: (rows, columns) from a window to the next.
        padding: for rows and columns, a number for both sides or one for each.
        dilation: (rows, columns) from an entry of a window to the next.
    """
    row_stride, column_stride = stride
    row_dilation, column_dilation = dilation
    # Pixels that a window extends over, holes included.
    extent = tuple((np.int64(size) - 1) * dilation + 1)
    zeros = np.broadcast_to(np.int64(padding).reshape(2, -1), (2, 2))
    padded = np.pad(x, ((0, 0), (0, 0), *zeros.tolist()))
    view = np.lib.stride_tricks.sliding_window_view(padded, extent, (2, 3))
    return view[:, :, ::row_stride, ::column_stride, ::row_dilation, ::column_dilation]
