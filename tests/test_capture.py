"""Capture: a network evaluated with its own activations is itself, bit for bit."""

import functools

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from chex import assert_trees_all_equal
from networks import FLAT, NETWORKS, PIXELS, VECTORS, Net, eighths, outputs_of, relu

import snnjax
from snnjax import calibrators
from snnjax.network import identity, with_activation


class Block(nn.Module):
    """A residual block with BatchNorm, dropout and remat, as users write them."""

    @nn.compact
    def __call__(self, x):
        y = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x))
        y = nn.Dropout(0.5, deterministic=True)(nn.relu(y))
        return nn.relu(x + nn.Conv(4, (3, 3), dtype=jnp.bfloat16)(y))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.remat(Block)()(x)
        x = nn.avg_pool(x, (2, 2), padding="SAME")
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@functools.cache
def linen_net():
    model = Linen()
    variables = jax.jit(model.init)(jax.random.key(0), PIXELS)
    return Net(model.apply, variables, PIXELS, 3)


@jax.jit
def jitted_block(kernel, x):
    return relu(x @ kernel)


def calls(p, x):
    """jit in jit, remat, one jitted block called twice, one ReLU function shared."""
    act = functools.partial(relu)
    inner = jax.jit(lambda p, x: act(jax.jit(jnp.matmul)(x, p["w1"]) + p["b1"]))
    x = jax.checkpoint(inner)(p, x)
    x = jitted_block(p["w2"], jitted_block(p["w2"].T, x))
    return act(x) @ p["w3"]


def bfloat16(p, x):
    p = jax.tree.map(lambda w: w.astype(jnp.bfloat16), p)
    x = relu(x.astype(jnp.bfloat16) @ p["w1"] + p["b1"])
    return relu(x @ p["w2"]).astype(jnp.float32) @ p["w3"].astype(jnp.float32)


MASK = np.eye(6, dtype=np.float32)


def constants(p, x):
    """An array that the function closes over, and a ReLU of parameters alone."""
    x = relu(x @ p["w1"]) @ MASK
    return x @ relu(p["w3"])


def mapped(p, x):
    """vmap over the batch: the network of one example."""
    return jax.vmap(lambda x: relu(x @ p["w1"]) @ p["w3"])(x)


TABLE = {name: lambda name=name: NETWORKS[name] for name in NETWORKS} | {
    "calls": lambda: Net(calls, FLAT, VECTORS, 4),
    "bfloat16": lambda: Net(bfloat16, FLAT, VECTORS, 2),
    "constants": lambda: Net(constants, FLAT, VECTORS, 1),
    "vmap": lambda: Net(mapped, FLAT, VECTORS, 1),
    "linen": linen_net,
}
# Thresholds from activations, then biases from spikes, in programs compiled fast.
SHORT = snnjax.Recipe(
    [calibrators.max_threshold("channel"), calibrators.correct_bias()]
)


@pytest.fixture(params=TABLE)
def net(request):
    return TABLE[request.param]()


@pytest.mark.thorough
def test_identity_rule_has_the_networks_outputs_bit_for_bit_and_its_gradients():
    """All networks in one program, each with an x of its own.

    A gradient adds up the examples, and XLA does so in another order: the last bits
    may differ, of bfloat16 where a network computes in it.
    """
    nets = {name: build() for name, build in TABLE.items()}
    params = {name: net.params for name, net in nets.items()}
    xs = {name: net.x for name, net in nets.items()}

    def fn(params, xs):
        return {name: net.fn(params[name], xs[name]) for name, net in nets.items()}

    def loss(fn, params, xs):
        outputs = fn(params, xs)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(outputs)), outputs

    def slopes_and_outputs(fn):
        run = jax.grad(functools.partial(loss, fn), (0, 1), has_aux=True)
        return jax.jit(run)(params, xs)

    slopes, outputs = slopes_and_outputs(with_activation(fn, identity))
    ann_slopes, ann_outputs = slopes_and_outputs(fn)
    assert_trees_all_equal(outputs, ann_outputs)
    for argument in (0, 1):  # params and xs
        for name in nets:
            tolerance = 1e-2 if name in ("bfloat16", "linen") else 1e-5
            leaves = jax.tree.leaves(slopes[argument][name])
            ann_leaves = jax.tree.leaves(ann_slopes[argument][name])
            for leaf, ann_leaf in zip(leaves, ann_leaves, strict=True):
                np.testing.assert_allclose(
                    leaf,
                    ann_leaf,
                    rtol=tolerance,
                    atol=tolerance * np.abs(ann_leaf).max(),
                    err_msg=name,
                )
            assert any(np.any(ann_leaf) for ann_leaf in ann_leaves), name


def test_every_activation_is_a_site_that_the_rule_sees_once_in_order(net):
    sites = snnjax.sites(*net[:3])
    firing = [site for site in sites if site.fires]
    assert len(firing) == net.sites
    assert len({site.name for site in sites}) == len(sites)
    assert all(site.parameters for site in firing if site.depth == 1)
    only_shape = jax.ShapeDtypeStruct(net.x.shape, net.x.dtype)
    assert snnjax.sites(net.fn, net.params, only_shape) == sites
    seen = []

    def rule(site, x, *operands):
        assert x.shape[0] == net.x.shape[0]
        seen.append(site.name)
        return identity(site, x, *operands)

    jax.eval_shape(with_activation(net.fn, rule), net.params, net.x)
    assert seen == [site.name for site in sites]


# Network -> name, depth and parameters of each site.
PLACES = {
    "dense": [("w1/relu", 1, "w1 b1"), ("w2/relu", 2, "w2")],
    "branches": [("w1/relu", 1, "w1"), ("w1/relu_1", 1, "w1")],
    "input skip": [("w1/relu", 1, "w1"), ("w2/relu", 2, "w2 w1")],
    "projection": [
        ("w1/relu", 1, "w1"),
        ("w2/relu", 2, "w2 b2"),
        ("shortcut/relu", 3, "w3 shortcut"),
    ],
}


@pytest.mark.parametrize("network, places", PLACES.items())
def test_a_site_is_named_after_the_parameters_that_reach_it_first(network, places):
    """After the last kernel; the largest comes first. Depths count the longest way."""
    sites = snnjax.sites(*NETWORKS[network][:3])
    shown = [(site.name, site.depth, " ".join(site.parameters)) for site in sites]
    assert shown == places


def test_names_follow_the_modules():
    names = [site.name for site in snnjax.sites(*linen_net()[:3])]
    assert names[0] == "Linen/relu"
    assert all("Block_0" in name and name.startswith("Linen/") for name in names[1:])
    assert names[2] == names[1] + "_1"


def test_clipped_relu_has_the_papers_derivative():
    x = np.float32([-0.1, 0.0, 0.5, 1.0, 1.1])
    jacobian = jax.jit(jax.jacobian(snnjax.clipped_relu, argnums=(0, 1)))
    slope, maximum_slope = jacobian(x, 1.0)
    np.testing.assert_array_equal(np.diag(slope), [0, 1, 1, 1, 0])
    np.testing.assert_array_equal(maximum_slope, [0, 0, 0, 0, 1])


def test_a_maximum_may_be_a_whole_number_or_closed_over_inside_jit():
    x = np.float32([-1, 3, 7])
    for maximum in (6, np.array([6]), np.float32(6)):
        clip = lambda x, m=maximum: snnjax.clipped_relu(x, m).sum()  # noqa: E731
        np.testing.assert_array_equal(jax.jit(jax.grad(clip))(x), [0, 1, 0])
    maxima = jnp.array([0.5, 1.0, 2.0])
    clip = jax.jit(lambda x: snnjax.clipped_relu(x, maxima))
    np.testing.assert_array_equal(clip(np.full(3, 3.0)), maxima)


def test_every_form_of_convolution_and_the_first_power_are_affine():
    """Transposed and dilated convolutions hold no site."""
    kernel = eighths(3, (3, 3, 2, 2))

    def fn(p, x):
        x = relu(jax.lax.conv_transpose(x, p, (2, 2), "SAME") ** 1) ** 1
        return networks.conv(relu(networks.conv(x, p)), p, dilation=2)

    assert len(snnjax.sites(fn, kernel, PIXELS)) == 2


ORDER = np.array([2, 0, 1])
WITHIN = {
    "tokens as rows": lambda x: (x.reshape(-1, 2) @ jnp.ones((2, 2))).reshape(-1, 3, 2),
    "steps in front as rows": lambda x: jnp.transpose(
        (x.transpose(1, 0, 2).reshape(-1, 2) @ jnp.ones((2, 2))).reshape(3, -1, 2),
        (1, 0, 2),
    ),
    "a gather": lambda x: x[:, ORDER],
    "a gather in front": lambda x: x[:, :, [1]],
    "a mapped gather": jax.vmap(lambda x: x[ORDER]),
    "a scatter": lambda x: jnp.zeros((len(x), 5, 2)).at[:, ORDER].add(x),
    "a mapped scatter": jax.vmap(lambda x: jnp.zeros((5, 2)).at[ORDER].set(x)),
    "edges repeated": lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0)), mode="edge"),
    "a part doubled": lambda x: x.at[:, 1].multiply(2.0),
    "a part subtracted": lambda x: x.at[:, :2].subtract(x[:, 1:]),
    "repeated in time": lambda x: (
        jnp.tile(x, (2, 1, 1)).reshape(2, *x.shape) @ jnp.ones((2, 2))
    ).sum(0),
    "an update": lambda x: jnp.zeros((len(x), 5, 2)).at[:, 1:4].set(x),
    "resized": lambda x: jax.image.resize(x, (len(x), 5, 2), "bilinear"),
    "resized by copies": lambda x: jax.image.resize(x, (len(x), 6, 2), "nearest"),
    "an einsum": lambda x: jnp.einsum("btc,ct->bt", x, jnp.ones((2, 3))),
    "rolled": lambda x: jnp.roll(x, 1, axis=1),
    "reversed and added up": lambda x: jnp.cumsum(jnp.flip(x, 1), axis=1),
    "a new axis in front": lambda x: x.reshape(1, -1, 6).sum(0),
    "squeezed": lambda x: x.sum(1, keepdims=True).squeeze(),
    "its mirror image after it": lambda x: (
        jnp.concatenate([x, x[:, ::-1]]).reshape(2, *x.shape).mean(0)
    ),
}


def test_what_stays_within_an_example_is_allowed():
    def fn(w, x):
        x = relu(x * w)
        return {name: mix(x).reshape(len(x), -1) for name, mix in WITHIN.items()}

    neuron = snnjax.integrate_and_fire(threshold=0.25)
    snn = snnjax.init(fn, np.float32(1), eighths(1, (4, 3, 2)), model=neuron)
    x = np.asarray(eighths(2, (4, 3, 2)))
    first_alone = x * np.float32(np.arange(4) == 0)[:, None, None]
    simulate = networks.compiled(fn, steps=4)
    outputs, changed_outputs = jax.device_get(
        [simulate(snn, x), simulate(snn, first_alone)]
    )
    for name in WITHIN:
        output, changed = outputs[name], changed_outputs[name]  # [T, B, ...]
        np.testing.assert_array_equal(output[:, 0], changed[:, 0], err_msg=name)
        assert np.any(output[:, 0]), name
        assert np.any(output[:, 1:] != changed[:, 1:]), name


def with_own_derivative(f):
    """``f`` with a derivative of its own, which is the usual one."""
    custom = jax.custom_jvp(f)
    custom.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))
    return custom


@pytest.mark.parametrize("order, channel", [("NCHW", -3), ("NHWC", -1)])
def test_channels_of_an_encoder_are_those_that_the_convolution_sums_over(
    order, channel
):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=(order, "HWIO", order),
        )

    def fn(kernel, x):
        return convolve(jnp.tanh(convolve(x, kernel)), kernel)

    x = np.ones((4, 5, 6, 7), np.float32)
    kernel = eighths(1, (3, 3, x.shape[channel], x.shape[channel]))
    (site,) = [site for site in snnjax.sites(fn, kernel, x) if site.fires]
    assert (site.is_encoder, site.channel) == (True, channel)


def test_a_call_hides_neither_products_nor_channels():
    kernel, identity_matrix = eighths(1, (5, 3, 3, 3)), np.eye(5, dtype=np.float32)
    x = eighths(2, (4, 3, 6, 6))
    first = functools.partial(networks.conv, order=networks.CHANNELS_FIRST)
    snn = None
    for call in (lambda f: jax.jit(jax.checkpoint(f)), with_own_derivative):
        first_called = call(first)
        mix = call(lambda h: h @ identity_matrix)  # a constant of the call's own

        def fn(kernel, x, first=first_called, mix=mix):
            return mix(relu(first(x, kernel)).sum((2, 3)))

        (site,) = snnjax.sites(fn, kernel, x)
        assert (site.shape, site.channel) == ((5, 6, 6), -3)
        recipe = snnjax.max_activation("channel")
        snn = snn or networks.converted(fn, kernel, x, steps=2, recipe=recipe)
        assert snn.neurons["relu"].threshold.shape == (5, 1, 1)
        measures = snnjax.measure(fn, snn, x, params=kernel, steps=2)
        assert measures.macs == 5 * 3 * 16**2 + 25  # 3x3 on 6x6, borders apart
        assert measures.weights == 5 * 3 * 9 + 25


def test_vmap_may_leave_the_batch_behind():
    """Weights from the left put it last; neurons see it first all the same."""
    left = with_own_derivative(lambda kernel, x: kernel @ x)
    activation = jax.nn.relu6
    kernels = [eighths(1, (6, 5)), eighths(2, (3, 6))]
    x = eighths(3, (6, 5))  # as many images as neurons: sizes do not tell the axes

    def one(kernels, x):
        return kernels[1] @ activation(left(kernels[0], x))

    def fn(kernels, x):
        return jax.vmap(lambda x: one(kernels, x))(x)

    def usual(kernels, x):
        return activation(x @ kernels[0].T) @ kernels[1].T

    (site,) = snnjax.sites(fn, kernels, x)
    assert (site.shape, site.channel) == ((6,), -1)
    convert = functools.partial(networks.converted, steps=4, recipe=SHORT)
    snn = convert(fn, kernels, x)
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, snn, convert(usual, kernels, x))
    close(*outputs_of([snnjax.spiking(fn), snnjax.spiking(usual)], snn, x))


def test_a_barrier_leaves_each_array_its_own_axes():
    """Not those of the first of them."""
    kernel = eighths(1, (3, 3, 2, 5))

    def fn(p, x):
        image = networks.conv(x, kernel).transpose(0, 3, 1, 2)  # channels first
        flat = x.reshape(len(x), -1) @ p
        flat, image = jax.lax.optimization_barrier((flat, image))
        return relu(image).sum((2, 3)) @ jnp.ones((5, 2)), relu(flat)

    x = eighths(2, (4, 3, 3, 2))
    sites = snnjax.sites(fn, eighths(3, (18, 7)), x)
    assert {site.shape: site.channel for site in sites} == {(5, 3, 3): -3, (7,): -1}


def test_an_output_keeps_its_shape_where_fn_squeezes_a_single_example():
    def fn(w, x):
        return relu(x @ w).mean(1, keepdims=True).squeeze()

    w, x = np.ones((3, 1), np.float32), np.ones((4, 2, 3), np.float32)
    outputs, expected = outputs_of([with_activation(fn, identity), fn], w, x)
    assert_trees_all_equal(outputs, expected)
    assert outputs.shape == (4,)


class Categorical:
    """A distribution, as of other libraries: only arrays are leaves."""

    def __init__(self, logits):
        self.logits = logits
        self.probabilities = jnp.exp(logits)


def leaves_of(categorical):
    is_array = isinstance(categorical.logits, jax.Array | np.ndarray)
    return ([categorical.logits] if is_array else []), None


jax.tree_util.register_pytree_node(
    Categorical, leaves_of, lambda _, leaves: Categorical(*leaves)
)


def test_an_output_may_be_of_a_class_that_is_made_of_arrays_only():
    def fn(w, x):
        hidden = relu(x @ w)
        return Categorical(hidden), hidden.sum(1)

    w, x = eighths(2, (3, 6)), eighths(3, (64, 3))
    snn = snnjax.convert(fn, w, x, steps=4)
    policy, _ = networks.compiled(fn, answer=True)(snn, x)
    assert isinstance(policy, Categorical)
    assert policy.logits.shape == (64, 6)


def test_an_output_that_does_not_depend_on_x_has_all_examples():
    def fn(w, x):
        return {"logits": relu(x @ w), "bias": jnp.broadcast_to(w[0], (len(x), 6))}

    w, x = np.ones((3, 6), np.float32), np.ones((4, 3), np.float32)
    assert_trees_all_equal(*outputs_of([with_activation(fn, identity), fn], w, x))
    executions = 1, 2
    for outputs in networks.by_executions(
        fn, executions, snnjax.init(fn, w, x), x, steps=3
    ):
        assert [leaf.shape for leaf in jax.tree.leaves(outputs)] == [(3, 4, 6)] * 2


def test_a_maximum_per_last_axis_makes_it_the_channels():
    """Also where a convolution has put its channels elsewhere."""
    kernel, maximum = eighths(1, (1, 1, 2, 5)), np.arange(1, 4, dtype=np.float32)

    def fn(p, x):
        image = networks.conv(x, p).transpose(0, 3, 1, 2)  # [B, C, H, W]
        return snnjax.clipped_relu(image, maximum).sum((2, 3))

    x = np.float32(4 * np.random.default_rng(0).normal(size=(16, 3, 3, 2)))
    (site,) = snnjax.sites(fn, kernel, x)
    assert (site.shape, site.channel, site.maximum_per_channel) == ((5, 3, 3), -1, True)
    snn = networks.converted(fn, kernel, x, steps=64, recipe=SHORT)
    thresholds = np.asarray(snn.neurons[site.name].threshold)
    assert thresholds.shape == (3,) and (thresholds <= maximum).all()
    outputs = np.asarray(networks.compiled(fn, steps=64)(snn, x)).mean(0)
    np.testing.assert_allclose(outputs, jax.jit(fn)(kernel, x), atol=0.6)


# ------------------------------------------------------------ ReLUs, however written

RELUS = {
    "max": lambda x: jnp.maximum(x, 0),
    "max, 0 first": lambda x: jnp.maximum(0.0, x),
    "where x > 0": lambda x: jnp.where(x > 0, x, 0),
    "where x >= 0, an array of zeros": lambda x: jnp.where(x >= 0, x, np.zeros(6)),
    "where x <= 0": lambda x: jnp.where(x <= 0, 0.0, x),
    "where 0 < x": lambda x: jnp.where(jnp.zeros(()) < x, x, jnp.zeros_like(x)),
    "clip": lambda x: jnp.clip(x, 0, None),
    "product with its comparison": lambda x: x * (x > 0),
    "custom derivative": with_own_derivative(lambda x: jnp.maximum(x, 0)),
}
CLIPPED = {
    "clip": lambda x: jnp.clip(x, 0, 0.5),
    "min of max": lambda x: jnp.minimum(jnp.maximum(x, 0), 0.5),
    "max of min": lambda x: jnp.maximum(jnp.minimum(x, 0.5), 0),
    "clamp": lambda x: jax.lax.clamp(0.0, x, 0.5),
    "min of relu": lambda x: jnp.minimum(relu(x), 0.5),
    "two minima": lambda x: jnp.minimum(jnp.clip(x, 0, 3), 0.5),
}


def between_products(activation):
    def fn(p, x):
        return activation(x @ p["w1"] + p["b1"]) @ p["w3"]

    return fn


def test_a_relu_is_a_site_however_it_is_written():
    for table, activation, kind in (
        (RELUS, relu, "relu"),
        (CLIPPED, lambda x: jnp.clip(relu(x), 0, 0.5), "clipped relu"),
    ):
        networks = [between_products(written) for written in table.values()]
        for fn in networks:
            sites = snnjax.sites(fn, FLAT, VECTORS)
            assert sites == snnjax.sites(networks[0], FLAT, VECTORS)
            assert [site.kind for site in sites] == [kind]
            assert sites.grade == "binary"
        runs = [between_products(activation)]
        runs += [with_activation(fn, identity) for fn in networks]
        ann_output, *outputs = outputs_of(runs, FLAT, VECTORS)
        for name, output in zip(table, outputs, strict=True):
            np.testing.assert_array_equal(output, ann_output, err_msg=name)


def test_a_clip_keeps_its_maximum_and_a_max_that_others_read_stays_a_site():
    def fn(p, x):
        positive = jnp.maximum(x @ p["w1"], 0)
        return (positive + jnp.minimum(positive, 6)) @ p["w3"]

    sites = snnjax.sites(fn, FLAT, VECTORS)
    assert [site.kind for site in sites] == ["relu", "clipped relu"]
    maxima = []

    def rule(site, x, *operands):
        maxima.append(operands)
        return identity(site, x, *operands)

    jax.eval_shape(with_activation(fn, rule), FLAT, VECTORS)
    assert maxima == [(), (6.0,)]


def layer_norm(x):
    """As flax writes it: a fast variance that rounding may put below 0."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5)


NO_RELUS = {  # what holds a maximum with 0 that is no activation
    "norm": layer_norm,
    "norm, divided": lambda x: x / jnp.sqrt(jnp.maximum((x**2).sum(-1), 0))[:, None],
    "softmax": lambda x: jax.nn.softmax(jnp.concatenate([x, 0 * x], -1))[:, :6],
    "softplus": jax.nn.softplus,
    "softplus of positive numbers": lambda x: jax.nn.softplus(jnp.abs(x)),
    "mish": jax.nn.mish,
    "celu": jax.nn.celu,
    "hard swish": lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
    "hard swish by clamp": lambda x: x * jax.lax.clamp(0.0, x / 6 + 0.5, 1.0),
    "PReLU": lambda x: jnp.maximum(x, 0) + 0.25 * jnp.minimum(x, 0),
    "leaky ReLU": lambda x: jnp.maximum(x, 0.1 * x),
    "hard tanh": lambda x: jnp.clip(x, -1, 1),
    "threshold": lambda x: jnp.where(x > 1, x, 0),
    "other value": lambda x: jnp.where(x > 0, x[:, ::-1], 0),
    "gate by a comparison": lambda x: x[:, ::-1] * (x > 0),
    "max with 1": lambda x: jnp.maximum(x, 1),
}


def of_two(slope, x):
    return jnp.maximum(slope, 0)  # a ReLU of its first argument


# What stands between two products -> the kinds of sites that fire there.
FIRING = {
    **{name: (function, ["encoder"]) for name, function in NO_RELUS.items()},
    "root of a ReLU": (lambda x: jnp.sqrt(jnp.clip(x, 0, 3)), ["encoder"]),
    "two ReLUs": (lambda x: relu(x) - 0.25 * relu(-x), ["relu", "relu"]),
    "ReLU of two": (lambda x: with_own_derivative(of_two)(x, x + 1), ["relu"]),
    "ReLU for nothing": (lambda x: (relu(x), jnp.tanh(relu(2 * x)))[0], ["relu"]),
}
for name, curve in {
    "softplus": jax.nn.softplus,
    "SiLU": jax.nn.silu,
    "sum with tanh": lambda x: x + jnp.tanh(x),
}.items():
    composed = lambda x, curve=curve: curve(jnp.clip(x, 0, 3))  # noqa: E731
    FIRING[f"{name} of a ReLU"] = composed, ["clipped relu", "encoder"]


def test_a_maximum_with_0_that_serves_another_function_is_no_site():
    """A function is judged by its equations, as far as the outputs need them."""
    for name, (function, kinds) in FIRING.items():
        sites = snnjax.sites(between_products(function), FLAT, VECTORS)
        assert [site.kind for site in sites if site.fires] == kinds, name


def test_whole_numbers_and_statistics_of_the_batch_are_no_relus():
    tokens = jnp.asarray(np.arange(8).reshape(4, 2) - 3)

    def embedded(p, tokens):
        return relu(p["w2"][jnp.maximum(tokens, 0)].sum(1)) @ p["w3"]

    sites = snnjax.sites(embedded, FLAT, tokens)
    assert [site.kind for site in sites if site.fires] == ["relu"]

    def training(p, x):  # BatchNorm: its variance is clamped and handed on
        x = x @ p["w1"]
        variance = jnp.maximum((x * x).mean(0) - x.mean(0) ** 2, 0)
        x = (x - x.mean(0)) * jax.lax.rsqrt(variance + 1e-5)
        return jnp.maximum(x, 0) @ p["w3"], {"variance": 0.9 + 0.1 * variance}

    snn = snnjax.init(training, FLAT, VECTORS, has_aux=True)
    assert list(snn.neurons) == ["w1/relu"]


def test_a_loop_over_examples_stays_one_for_a_batch_of_any_size():
    def training(p, x):
        x = jax.lax.map(lambda example: example - example.mean(), x)
        return relu(x @ p["w1"]) @ p["w3"], {}

    snn = snnjax.init(training, FLAT, VECTORS, has_aux=True)
    simulate = snnjax.spiking(training, steps=2, has_aux=True)
    (batch,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, 4), jnp.float32)
    outputs, _ = jax.eval_shape(simulate, snn, x)
    assert outputs.shape == (2, batch, 3)


def test_sites_says_what_is_near_a_relu_and_what_that_costs():
    nears = {
        "leaky_relu": jax.nn.leaky_relu,
        "hard_silu": jax.nn.hard_swish,
        "piecewise": lambda x: jnp.where(x > 0, x, 0.25 * x),
    }
    for kind, activation in nears.items():
        sites = snnjax.sites(between_products(activation), FLAT, VECTORS)
        assert sites[0].near_relu and sites[0].kind == kind
        assert f"near a ReLU, but none: {kind}. Each costs" in str(sites)
    assert "near" not in str(snnjax.sites(between_products(jnp.tanh), FLAT, VECTORS))


def test_custom_derivatives_are_kept():
    """Those of the identity, and of what reads parameters alone."""

    def with_slope(forward, slope):
        f = jax.custom_vjp(forward)
        f.defvjp(lambda x: (forward(x), None), lambda _, g: (slope * g,))
        return f

    reversed_gradient = with_slope(lambda x: x, -1)
    rounded = with_slope(lambda w: jnp.round(w), 1)

    def fn(p, x):
        return reversed_gradient(relu(x @ p["w1"])) @ rounded(p["w3"])

    slopes = [
        jax.grad(lambda p, f=f: f(p, VECTORS).sum())
        for f in (with_activation(fn, identity), fn)
    ]
    slope, expected = outputs_of(slopes, FLAT)
    assert_trees_all_equal(slope, expected)
    assert np.any(slope["w1"]) and np.any(slope["w3"])


def test_parameters_whose_paths_print_alike_are_told_apart():
    p = {"l/a": eighths(1, (4, 4)), "l": {"a": eighths(2, (4, 4))}, "c": FLAT["w3"][:4]}

    def fn(p, x):
        return relu(relu(x @ p["l/a"]) @ p["l"]["a"]) @ p["c"]

    ann, outputs = outputs_of([fn, with_activation(fn, identity)], p, VECTORS)
    assert_trees_all_equal(outputs, ann)
    sites = snnjax.sites(fn, p, VECTORS)
    paths = [site.parameters for site in sites]
    assert len({*paths}) == 2 and {*paths} == {("l/a",), ("l/a_1",)}


def test_in_training_mode_a_relu_behind_a_reshape_that_folds_time_fires():
    steps, batch = 3, 4

    def fn(params, x):
        hidden = jax.nn.relu(x @ params["hidden"])
        delayed = hidden.reshape(steps, -1, 6)  # e.g. shifted along time by a user
        logits = jax.nn.relu(delayed.reshape(-1, 6) @ params["readout"])
        return logits, logits

    params = {"hidden": jnp.ones((5, 6)), "readout": jnp.ones((6, 3))}
    x = jnp.ones((steps * batch, 5))
    snn = snnjax.init(fn, params, x, model=snnjax.lif(leak=0.9), has_aux=True)
    assert list(snn.neurons) == ["hidden/relu", "readout/relu"]


@pytest.mark.parametrize(
    ("function", "remedy"),
    [
        (lambda x: x * float(x.sum()), "leave float(), int() and .item() out"),
        (lambda x: x * x.sum().item(), "leave float(), int() and .item() out"),
        (lambda x: np.maximum(x, 0), "functions of jax.numpy, e.g. jnp.maximum"),
        (lambda x: x if x.sum() > 0 else 0 * x, "write jnp.where or jax.lax.select"),
    ],
)
def test_what_cannot_be_traced_has_a_note_with_the_way_out(function, remedy):
    with pytest.raises(Exception, match="traced array") as caught:
        snnjax.sites(lambda p, x: relu(function(x) @ p["w1"]), FLAT, VECTORS)
    (note,) = (n for n in caught.value.__notes__ if n.startswith("snnjax called"))
    assert remedy in note
    others = ("leave float()", "NumPy cannot", "An if on")
    assert sum(other in note for other in others) == 1
