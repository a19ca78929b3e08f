"""Small networks, ``fn(params, x)``, that cover what stands between two sites.

Weights and inputs are multiples of 1/8, and thresholds in the tests powers of two:
every sum is then exact in float32, so executions can be compared bit by bit.
"""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import reference

import snnjax
from snnjax import calibrators
from snnjax.network import identity, with_activation

relu = jax.nn.relu


def relaxed_dspike(x, temperature=3.0):
    """Dspike itself: soft spikes, whose derivative is that of the surrogate `dspike`.

    Dspike(x; b) = 1/2 + tanh(b x) / (2 tanh(b / 2)) for |x| <= 1/2, otherwise 0 or 1.
    """
    x = jnp.asarray(x)
    b = jnp.asarray(temperature, x.dtype)
    inside = jnp.where(jnp.abs(x) <= 0.5, x, jnp.sign(x) / 2)
    return 0.5 + jnp.tanh(b * inside) / (2 * jnp.tanh(b / 2))


class Net(NamedTuple):
    """A network, its parameters, an input [B, ...] and how many sites it has."""

    fn: Callable
    params: Any
    x: jax.Array
    sites: int


def compiled(fn, **options):
    """`snnjax.spiking` as one program: compiling it at once is faster than in parts."""
    return jax.jit(snnjax.spiking(fn, **options))


def converted(fn, params, x, **options):
    """`snnjax.convert`."""
    return snnjax.convert(fn, params, x, **options)


def squared_error(fn, params, snn, x):
    """Mean square of what the mean outputs of an SNN lack, by one program."""

    @jax.jit
    def run(params, snn, x):
        residual = snnjax.spiking(fn)(snn, x).mean(0) - fn(params, x)
        return jnp.square(residual).mean()

    return float(run(params, snn, x))


def simulated(fn, params, x, new_x=None, **options):
    """Outputs [T, B, ...] of an SNN in NumPy, and the outputs [B, ...] of its ANN.

    Both are computed by one program. A conversion is no part of any program.

    Args:
        x: what the ANN is converted with.
        new_x: what the outputs are of, by default x.
        options: of `snnjax.convert`.
    """
    snn = snnjax.convert(fn, params, x, **options)
    if new_x is None:
        new_x = x

    @jax.jit
    def outputs(snn, params, x):
        return snnjax.spiking(fn)(snn, x), fn(params, x)

    return jax.device_get(outputs(snn, params, new_x))


def together(nets):
    """Networks of one input as one, with an output each by name.

    One program of eight networks is compiled four times faster than their eight.
    """
    nets = dict(nets)

    def fn(params, x):
        return {name: net.fn(params[name], x) for name, net in nets.items()}

    x = next(iter(nets.values())).x
    assert all(net.x is x for net in nets.values())
    params = {name: net.params for name, net in nets.items()}
    return Net(fn, params, x, sum(net.sites for net in nets.values()))


def outputs_of(functions, *arguments):
    """What each of the functions gives, in NumPy, computed by one program.

    To compile one program of several simulations takes a quarter of the time of
    compiling each. A conversion is no part of a program: see `simulated`.
    """
    functions = tuple(functions)

    def results(*arguments):
        return [f(*arguments) for f in functions]

    return jax.device_get(jax.jit(results)(*arguments))


def oracle_spikes(snn, name, currents):
    """Spikes that the oracle's neurons send at a site of a converted SNN.

    Args:
        currents: [T, B, C], without what the site's neurons add.

    Returns:
        Their heights and their levels, [T, B, C].
    """
    model = snn.model_of(name)
    neurons = snn.neurons[name]
    assert neurons.offset is None or not np.any(neurons.offset)
    threshold = np.float64(neurons.threshold)
    sizes = snn.code.sizes(snn.steps)
    heights = reference.simulate(
        np.asarray(currents, np.float64),
        threshold,
        bias=np.float64(neurons.bias),
        start=np.float64(neurons.initial_potential),
        wait=snn.wait,
        levels=model.levels,
        dead_zone=model.dead_zone,
        last_zone=model.last_zone,
        rectifies=model.rectifies,
        sizes=sizes,
    )
    levels = heights / (sizes[:, None, None] * threshold)
    return heights, np.round(levels)


def quantized_ann(fn):
    """(snn, x) -> the outputs [B, ...] of an SNN with a wait of T, without simulating.

    They are those of the ANN with quantized values: a neuron then sends as many spikes
    as its mean current holds, between none and T, or -T and T at an encoder.
    """

    def run(snn, x):
        def quantized(site, x, *operands):
            if not site.fires:
                return identity(site, x, *operands)
            p = snn.neurons[site.name]
            offset = 0 if p.offset is None else p.offset
            potential = snn.steps * (x + p.bias - offset) + p.initial_potential
            lowest = -snn.steps if site.is_encoder else 0
            spikes = jnp.clip(jnp.floor(potential / p.threshold), lowest, snn.steps)
            return offset + spikes * p.threshold / snn.steps

        return with_activation(fn, quantized)(snn.params, x)

    return run


def by_executions(fn, executions, snn, x, **options):
    """Outputs of each of the executions, in NumPy, computed by one program."""
    runs = [snnjax.spiking(fn, execution=e, **options) for e in executions]
    return outputs_of(runs, snn, x)


def eighths(seed, shape, low=-8, high=9):
    """Random multiples of 1/8 in [low / 8, high / 8)."""
    numbers = np.random.default_rng(seed).integers(low, high, shape)
    return jnp.asarray(np.float32(numbers / 8))  # converted without a program


def halves(net, seed=0, **changes):
    """An SNN with thresholds 1/2 or 1 and other parameters in eighths: exact sums."""
    snn = snnjax.init(net.fn, net.params, net.x, model=snnjax.integrate_and_fire())
    neurons = {}
    for site in snnjax.sites(net.fn, net.params, net.x):
        if site.fires:
            seed += 1
            neurons[site.name] = snn.neurons[site.name]._replace(
                threshold=0.5 * eighths(seed, site.shape[-1:], 1, 3) * 8,
                bias=eighths(seed + 10, site.shape[-1:], -2, 3),
                initial_potential=eighths(seed + 20, site.shape, -4, 5),
            )
    return dataclasses.replace(snn, neurons=neurons, **changes)


def weights(**shapes):
    """An array of `eighths` for each name, whose seed is its place."""
    arrays = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        arrays[name] = eighths(seed, shape)
    return arrays


def varied(path, leaf):
    """A random parameter of a leaf's shape: no scale is 1, and no offset is 0."""
    generator = np.random.default_rng(zlib.crc32(str(path).encode()))
    name = path[-1].key
    if name in ("scale", "var"):
        return np.float32(generator.uniform(0.5, 1.5, leaf.shape))
    if name in ("bias", "mean"):
        deviation = 0.1
    else:
        fan_in = leaf.size / leaf.shape[-1]
        deviation = 1.5 / np.sqrt(fan_in)
    return np.float32(deviation * generator.normal(size=leaf.shape))


def variables(module, x):
    """Random variables of a module of linen, which take no program."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(varied, shapes)


# The calibrators of the refined part of `best()`, as one sweep.
REFINED = snnjax.Recipe(
    [
        calibrators.least_squares_weights(),
        calibrators.least_squares_threshold("channel", 0.5),
        calibrators.half_charge(),
        calibrators.postpone_charge(),
        calibrators.streaming_only(calibrators.scale_threshold()),
        calibrators.streaming_only(calibrators.postpone_charge()),
        calibrators.correct_potential(3),
    ]
)


CHANNELS_FIRST = ("NCHW", "OIHW", "NCHW")


def conv(
    x,
    kernel,
    stride=1,
    padding="SAME",
    groups=1,
    dilation=1,
    order=("NHWC", "HWIO", "NHWC"),
):
    """A convolution of images; ``order`` names the axes of x, kernel and result."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        np.broadcast_to(stride, 2).tolist(),
        padding,
        rhs_dilation=np.broadcast_to(dilation, 2).tolist(),
        dimension_numbers=order,
        feature_group_count=groups,
    )


def max_pool(x, size=2, stride=2, padding="VALID"):
    """The largest number in windows of size x size pixels, [B, H, W, C]."""
    window = (1, size, size, 1)
    strides = (1, stride, stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


def average_pool(x, size=2):
    """The mean of windows of size x size pixels that do not overlap, [B, H, W, C]."""
    window = (1, size, size, 1)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID")
    return total / size**2


def dense(p, x):
    x = relu(x @ p["w1"] + p["b1"])
    return relu(x @ p["w2"]) @ p["w3"]


def convolutions(p, x):
    x = relu(conv(x, p["w1"], stride=2) + p["b1"])
    x = relu(conv(x, p["depthwise"], groups=4))
    x = relu(conv(x, p["grouped"], padding="VALID", groups=2))
    return x.reshape(x.shape[0], -1) @ p["w3"]


def projection(p, x):
    x = relu(conv(x, p["w1"]))
    y = relu(conv(x, p["w2"], stride=2) + p["b2"])
    x = relu(conv(y, p["w3"]) + conv(x, p["shortcut"], stride=2))
    return x.sum((1, 2)) @ p["w4"]


def zero_padding(p, x):
    x = relu(conv(x, p["w1"]))
    shortcut = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 1)))
    y = relu(conv(x, p["w2"], stride=2))
    x = relu(conv(y, p["w3"]) + shortcut)
    return x.sum((1, 2)) @ p["w4"]


def batch_norm(p, x):
    """BatchNorm with running averages, between convolution and ReLU."""
    scale = p["scale"] / jnp.sqrt(p["var"] + 1e-5)
    x = relu((conv(x, p["w1"]) - p["mean"]) * scale + p["offset"])
    return average_pool(x).sum((1, 2)) @ p["w4"]


def pre_activation(p, x):
    """ReLU before the convolution, and the sum goes on without one."""
    x = conv(x, p["w1"])
    for kernel in (p["w2"], p["w3"]):
        x = x + conv(relu(x * p["scale"] + p["offset"]), kernel)
    return relu(x).sum((1, 2)) @ p["w4"]


def bare_pre_activation(p, x):
    """The input of a site is itself what the shortcut carries on."""
    x = x @ p["w1"]
    x = x + relu(x) @ p["w2"]
    x = x + relu(x) @ p["w2"]
    return x @ p["w3"]


def pool_after(p, x):
    x = max_pool(relu(conv(x, p["w1"])), 3, 2, "SAME")
    x = relu(conv(x, p["w2"]))
    return max_pool(x).sum((1, 2)) @ p["w4"]


def pool_before(p, x):
    x = relu(max_pool(conv(x, p["w1"]), 3, 2, "SAME"))
    return relu(max_pool(conv(x, p["w2"]))).sum((1, 2)) @ p["w4"]


def concatenation(p, x):
    """Two depths meet in a concatenation, as in DenseNet."""
    x = relu(x @ p["w1"])
    x = jnp.concatenate([x, relu(x @ p["w2"])], axis=-1)
    return relu(x @ p["wide"]) @ p["w3"]


def input_skip(p, x):
    """The input itself comes back two sites later."""
    y = relu(relu(x @ p["w1"]) @ p["w2"] + x @ p["w1"])
    return y @ p["w3"] + x @ p["direct"]


def several_outputs(p, x):
    x = relu(x @ p["w1"])
    y = relu(x @ p["w2"])
    return {"logits": y @ p["w3"], "auxiliary": (x @ p["w3"], y)}


def clipped(p, x):
    x = snnjax.clipped_relu(x @ p["w1"], 1.0)
    return jax.nn.relu6(x @ p["w2"]) @ p["w3"]


def stacked(p, x):
    """Activations stacked on a new axis, tiled, and taken apart again."""
    x = relu(x @ p["w1"])
    pair = jnp.stack([x, relu(x @ p["w2"])], axis=1)
    first, second = jnp.unstack(jnp.tile(pair, (1, 1, 2)), axis=1)
    return (first - second) @ p["wide"] @ p["w3"]


def branches(p, x):
    """Two sites read one current."""
    x = x @ p["w1"]
    return relu(x) @ p["w3"] - relu(x)[:, ::2]


FLAT = weights(w1=(4, 6), b1=(6,), w2=(6, 6), w3=(6, 3), wide=(12, 6), direct=(4, 3))
IMAGES = weights(
    w1=(3, 3, 2, 4),
    b1=(4,),
    w2=(3, 3, 4, 4),
    w3=(3, 3, 4, 4),
    w4=(4, 3),
    scale=(4,),
    offset=(4,),
)
CONVOLUTIONS = weights(
    w1=(3, 3, 2, 4), b1=(4,), depthwise=(3, 3, 1, 4), grouped=(3, 3, 2, 6), w3=(6, 3)
)
PROJECTION = weights(
    w1=(3, 3, 2, 4),
    w2=(3, 3, 4, 6),
    b2=(6,),
    w3=(3, 3, 6, 6),
    shortcut=(1, 1, 4, 6),
    w4=(6, 3),
)
NORM = IMAGES | {"mean": eighths(7, (4,)), "var": eighths(8, (4,), 2, 9)}

VECTORS = eighths(20, (4, 4))
PIXELS = eighths(21, (4, 6, 6, 2))

NETWORKS = {
    "dense": Net(dense, FLAT, VECTORS, 2),
    "convolutions": Net(convolutions, CONVOLUTIONS, PIXELS, 3),
    "projection": Net(projection, PROJECTION, PIXELS, 3),
    "zero padding": Net(zero_padding, PROJECTION, PIXELS, 3),
    "batch norm": Net(batch_norm, NORM, PIXELS, 1),
    "pre-activation": Net(pre_activation, IMAGES, PIXELS, 3),
    "bare pre-activation": Net(bare_pre_activation, FLAT, VECTORS, 2),
    "max-pool after": Net(pool_after, IMAGES, PIXELS, 2),
    "max-pool before": Net(pool_before, IMAGES, PIXELS, 2),
    "concatenation": Net(concatenation, FLAT, VECTORS, 3),
    "input skip": Net(input_skip, FLAT, VECTORS, 2),
    "several outputs": Net(several_outputs, FLAT, VECTORS, 2),
    "clipped": Net(clipped, FLAT, VECTORS, 2),
    "branches": Net(branches, FLAT, VECTORS, 2),
    "stacked": Net(stacked, FLAT, VECTORS, 2),
}
