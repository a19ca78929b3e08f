"""A slow oracle in NumPy: plain loops over time steps and neurons, no JAX.

Written from the papers' formulas alone, to be read beside them. Arrays are float64
unless the caller's are not.
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
    """Spikes [T] of one neuron that waits ``wait`` steps before it may fire.

    A spike of level 1 at step t is worth ``sizes[t]`` thresholds: 1 with rate coding.
    """
    steps, v, spikes, sent = len(currents), start, [], 0
    low, high = levels
    sizes = np.ones(steps) if sizes is None else np.asarray(sizes)
    finest = sizes[-1] * threshold
    for step in range(steps + wait):
        v = leak * v + (currents[step] if step < steps else 0 * currents[0])
        v = max(v, lowest * threshold)
        if step < wait:
            continue
        size = sizes[step - wait] * threshold
        missing = v - finest / 2
        ahead = (size - finest) / 2 if low < 0 else 0
        least = max(low, -np.floor(sent / size + 1e-3)) if rectifies else low
        level = int(min(max(np.floor((v + ahead) / size), least), high))
        zone = dead_zone if step - wait < steps - 1 else last_zone
        if abs(missing) < zone * size:
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
    """Spikes [T, N] of N neurons with a synapse, an adaptation and a recurrence."""
    steps, count = currents.shape
    v, i, w, last, spikes = *np.zeros((4, count)), []
    kernel = np.zeros((count, count)) if kernel is None else kernel
    for step in range(steps + wait):
        arriving = currents[step] if step < steps else np.zeros(count)
        for n in range(count):
            back = sum(last[m] * kernel[m, n] for m in range(count))
            i[n] = synaptic_leak * i[n] + arriving[n] + back
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
    """Spikes [T, B, ...] of a layer; the rest broadcasts over [B, ...].

    The bias comes at every step, or at the first one, T times, if sizes are given.
    """
    bias = np.asarray(bias, currents.dtype)
    if options.get("sizes") is None:
        currents = currents + bias
    else:
        currents = np.concatenate([currents[:1] + len(currents) * bias, currents[1:]])
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
    return max(activation.flat)


def percentile_threshold(activation, p):
    """The number below which p percent lie, linear between neighbors."""
    ordered = sorted(activation.flat)
    place = p / 100 * (len(ordered) - 1)
    below = int(np.floor(place))
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def squared_error(activation, steps, threshold, shift=0.0):
    error = clip_floor(activation, steps, threshold, shift) - activation
    return sum(e**2 for e in error.flat)


def least_squares_threshold(activation, steps, shift=0.0):
    """The best of 95 candidates: max, 0.99 max, ..., 0.06 max."""
    best, least = None, np.inf
    for i in range(95):
        candidate = max_threshold(activation) * (1 - 0.01 * i)
        error = squared_error(activation, steps, candidate, shift)
        if error < least:
            best, least = candidate, error
    return best


def bias_shift(threshold, steps):
    return threshold / (2 * steps)


def bias_correction(activation, output):
    """[C]: mean over images and positions of what the channel lacks."""
    return per_channel(np.mean, activation - output)


def potential_correction(activation, output, steps):
    """[...]: T times the mean over images of what the neuron lacks."""
    total = np.zeros(activation.shape[1:])
    for a, s in zip(activation, output, strict=True):
        total += a - s
    return steps * total / len(activation)


def max_pool(stream, pool):
    """Increments of the pooled running sum, step by step."""
    total, before, out = np.zeros_like(stream[0]), 0.0, []
    for spikes in stream:
        total = total + spikes
        now = pool(total)
        out.append(now - before)
        before = now
    return np.stack(out)


def light(kernels, biases, x, steps):
    """The ICML 2021 light pipeline on a dense net: thresholds, biases, mean logits.

    ``biases`` of the result are what is added to the trained ones.
    """
    ann, spikes = x, np.stack([x] * steps)
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
    """v [T, ...] as it stands when the neuron decides, from what it then did."""
    v, history = np.zeros_like(currents[0]), []
    for current, fired in zip(currents, spikes, strict=True):
        v = leak * v + current
        history.append(v)
        v = v - fired if reset == "subtract" else np.where(fired > 0, 0, v)
    return np.stack(history)


def backward(v, spikes, upstream, threshold, leak, reset, slope, detach):
    """Gradient of the currents from that of the spikes, back through time by hand.

    ``slope`` is the surrogate's derivative in (v - V_th) / (2 V_th).
    """
    later, of_currents = 0.0, np.zeros_like(upstream)
    for t in reversed(range(len(upstream))):
        height = slope((v[t] - threshold) / (2 * threshold)) / (2 * threshold)
        through = 0.0 if detach else height
        if reset == "subtract":
            passed_on = 1 - threshold * through
        else:
            passed_on = (spikes[t] == 0) - v[t] * through
        of_currents[t] = upstream[t] * threshold * height + later * passed_on
        later = leak * of_currents[t]
    return of_currents


def dense_gradients(kernels, x, threshold, leak, reset, slope, detach):
    """Gradients of sum_t |O(t)|^2 / 2 for spiking dense layers and a linear readout."""
    options = dict(leak=leak, reset=reset)
    inputs, layers, spikes = [x], [], x
    for kernel in kernels[:-1]:
        currents = spikes @ kernel
        spikes = simulate(currents, threshold, **options)
        layers.append((potentials(currents, spikes, threshold, leak, reset), spikes))
        inputs.append(spikes)
    gradient = spikes @ kernels[-1]
    of_kernels = [np.einsum("tbi,tbo->io", spikes, gradient)]
    for i in reversed(range(len(layers))):
        upstream = gradient @ kernels[i + 1].T
        v, fired = layers[i]
        gradient = backward(v, fired, upstream, threshold, leak, reset, slope, detach)
        of_kernels.insert(0, np.einsum("tbi,tbo->io", inputs[i], gradient))
    return of_kernels


def least_squares_weights(activation, spikes, kernel, damping, images):
    """Kernel [I, C] of mean spikes [N, P, I] by the normal equations, centred.

    Args:
        images: those that count, bool [N].
    """
    current = spikes @ kernel
    top = activation.max((0, 1))
    silent = (activation <= 0) & (current <= 0)
    counts = ~silent & ~((activation >= top) & (current >= top))
    counts &= images[:, None, None]
    columns, grams, powers = [], [], 0.0
    for c in range(kernel.shape[1]):
        rows = spikes[counts[..., c]]
        rows = rows - rows.mean(0)
        lacking = (activation - current)[counts[..., c], c]
        grams.append((rows.T @ rows, rows.T @ (lacking - lacking.mean())))
        powers += ((rows @ kernel[:, c]) ** 2).sum()
    k = powers / (kernel**2).sum()
    for c, (gram, right) in enumerate(grams):
        step = np.linalg.solve(gram + damping * k * np.eye(len(gram)), right)
        columns.append(kernel[:, c] + step)
    return np.stack(columns, 1)


def fan_out(shape, kernel, stride=1, padding=((0, 0), (0, 0)), groups=1):
    """Connections of each pixel [H, W, C] of a convolution, counted one by one."""
    counts = np.zeros(shape, int)
    outputs = [
        (n + sum(pads) - k) // stride + 1
        for n, k, pads in zip(shape, kernel, padding, strict=False)
    ]
    for out in np.ndindex(*outputs):
        for tap in np.ndindex(*kernel[:2]):
            row, column = (out[d] * stride + tap[d] - padding[d][0] for d in (0, 1))
            if 0 <= row < shape[0] and 0 <= column < shape[1]:
                counts[row, column] += kernel[3] // groups
    return counts


def windows(x, size, stride, padding, dilation=(1, 1)):
    """Windows [B, C, H', W', h, w] of images [B, C, H, W].

    ``padding``: for rows and columns, a number for both sides or one for each.
    """
    (high, wide), (down, right) = np.int64(dilation), np.int64(stride)
    reach = tuple((np.int64(size) - 1) * (high, wide) + 1)
    zeros = np.broadcast_to(np.int64(padding).reshape(2, -1), (2, 2))
    padded = np.pad(x, ((0, 0), (0, 0), *zeros.tolist()))
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, (2, 3))
    return view[:, :, ::down, ::right, ::high, ::wide]
