"""Networks that permute, flip or crop elements, as graphs of NIR.

A graph must take x in the layout in which fn takes it, so every such move ends in
weights. Three simulations are compared: of fn, of `from_nir`'s function, and of the
graph itself, channels first, by the interpreter below.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import Net, compiled, conv, relu

import snnjax

nir = pytest.importorskip("nir")
STEPS = 4
FIRST = ("NCHW", "OIHW", "NCHW")


# ------------------------------------------------------------- the graph by itself


def pad(x, padding):
    return np.pad(x, ((0, 0), (0, 0), *((int(p), int(p)) for p in padding)))


def windows(x, node_stride, padding, reach, dilation=(1, 1)):
    """[B, C, H', W', h, w]: the windows of an image."""
    (rows, columns), (down, right) = map(int, reach), map(int, node_stride)
    view = np.lib.stride_tricks.sliding_window_view(
        pad(x, padding), (rows, columns), axis=(2, 3)
    )
    return view[:, :, ::down, ::right, :: int(dilation[0]), :: int(dilation[1])]


def node_output(node, x, state):
    """One step of one node; neurons keep their potential in ``state``."""
    if isinstance(node, nir.Conv2d):
        reach = [
            (n - 1) * int(d) + 1
            for n, d in zip(node.weight.shape[2:], node.dilation, strict=True)
        ]
        parts = windows(x, node.stride, node.padding, reach, node.dilation)
        return (
            np.einsum("bchwij,ocij->bohw", parts, node.weight)
            + node.bias[:, None, None]
        )
    if isinstance(node, nir.Affine):
        return x @ node.weight.T + node.bias
    if isinstance(node, nir.Scale):
        return x * node.scale
    if isinstance(node, nir.SumPool2d | nir.AvgPool2d):
        parts = windows(x, node.stride, node.padding, node.kernel_size)
        reduce = np.mean if isinstance(node, nir.AvgPool2d) else np.sum
        return reduce(parts, axis=(4, 5))
    if isinstance(node, nir.Flatten):
        return x.reshape(len(x), -1)
    if not isinstance(node, nir.IF):
        return x
    metadata = node.metadata or {}
    v = state.get(id(node), metadata.get("v_init", 0.0)) + node.r * x
    spikes = (v > node.v_threshold).astype(v.dtype)
    subtract = metadata.get("reset", "zero") in ("subtract", b"subtract")
    state[id(node)] = v - spikes if subtract else v * (1 - spikes)
    return spikes


def run_graph(graph, x):
    """Outputs [T, B, ...] by name, for x with channels first; names sort by order."""
    state, outputs = {}, {}
    for _ in range(STEPS):
        values = {}
        for name in ["input", *sorted(graph.nodes.keys() - {"input"})]:
            node = graph.nodes[name]
            inputs = [values[a] for a, b in graph.edges if b == name]
            into = sum(inputs) if inputs else np.asarray(x, np.float64)
            (shape,) = node.input_type.values()
            assert into.shape[1:] == tuple(shape), name
            values[name] = node_output(node, into, state)
            if isinstance(node, nir.Output):
                outputs.setdefault(name, []).append(values[name])
    return {name: np.stack(steps) for name, steps in outputs.items()}


# --------------------------------------------------------------------- comparison


def fitted_snn(fn, params, x, seed=0):
    """An SNN whose neurons differ from channel to channel, with soft reset."""
    generator = np.random.default_rng(seed)
    neurons = {}
    for site in snnjax.sites(fn, params, x):
        channel: tuple[int, ...] = ()
        if site.parameters:  # otherwise nothing says which axis counts channels
            channel = (site.shape[site.channel], *[1] * (-site.channel - 1))
        neurons[site.name] = snnjax.neurons.NeuronParams(
            threshold=jnp.asarray(generator.uniform(0.4, 0.9, channel), jnp.float32),
            bias=jnp.asarray(generator.normal(size=channel) / 8, jnp.float32),
            initial_potential=jnp.asarray(
                generator.uniform(0, 0.4, site.shape), jnp.float32
            ),
        )
    return snnjax.SNN(params, neurons)


def check_round_trip(fn, params, x, tmp_path, *, channel=-1, tolerance=1e-4):
    """fn, the graph and `from_nir` have the same outputs at every step.

    ``channel``: axis of x that counts channels, if x is an image.
    """
    snn = fitted_snn(fn, params, x)
    nir.write(tmp_path / "graph.nir", snnjax.to_nir(fn, snn, x, extended=True))
    graph = nir.read(tmp_path / "graph.nir")
    expected = jax.tree.leaves(snnjax.spiking(fn, steps=STEPS)(snn, x))
    last, first = x, x
    if x.ndim == 4:
        last, first = jnp.moveaxis(x, channel, -1), jnp.moveaxis(x, channel, 1)
    other, read = snnjax.from_nir(graph)
    outputs = compiled(other, steps=STEPS)(read, last)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    raw = run_graph(graph, first).values()
    for a, b, c in zip(expected, outputs, raw, strict=True):
        assert float(abs(a).sum()) > 0
        assert a.shape == b.shape
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)
        c = np.moveaxis(c, 2, -1) if c.ndim == 5 else c
        np.testing.assert_allclose(c, a, rtol=tolerance, atol=tolerance)
    return graph


def random_weights(*shapes):
    generator = np.random.default_rng(7)
    return [
        jnp.asarray(
            generator.normal(size=shape) * 1.5 / np.sqrt(np.prod(shape[:-1])),
            jnp.float32,
        )
        for shape in shapes
    ]


def pixels(*shape):
    return jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)


# -------------------------------------------------------------- moves of x itself

IMAGE = pixels(3, 5, 6, 3)
SQUARE = pixels(3, 4, 4, 3)


def image(move: Callable, x=IMAGE, kernel=(3, 3), groups=1, **options):
    """Two convolutions after ``move``, then all elements in one matrix product."""
    channels = move(x).shape[-1]
    params = random_weights((*kernel, channels // groups, 3), (3, 3, 3, 4))

    def features(p, x):
        y = relu(conv(move(x), p[0], groups=groups, **options))
        return relu(conv(y, p[1], stride=2))

    size = features(params, x).size // len(x)
    params += random_weights((size, 5))
    return Net(lambda p, x: features(p, x).reshape(len(x), -1) @ p[2], params, x, 2)


def swap(x):
    return x.transpose(0, 2, 1, 3)


def flip_rows(x):
    return x[:, ::-1]


IMAGES = {
    "channels reversed": image(lambda x: x[..., ::-1]),
    "channels taken in another order": image(
        lambda x: jnp.take(x, jnp.array([2, 0, 1]), -1)
    ),
    "channels taken twice": image(lambda x: x[..., jnp.array([2, 0, 2])]),
    "channels reversed before groups": image(lambda x: x[..., ::-1], groups=3),
    "rows reversed": image(flip_rows),
    "columns reversed": image(lambda x: x[:, :, ::-1]),
    "all reversed": image(lambda x: x[:, ::-1, ::-1, ::-1]),
    "all reversed, groups": image(lambda x: x[:, ::-1, ::-1, ::-1], groups=3),
    "rows reversed, stride": image(flip_rows, stride=2),
    "rows reversed, kernel of even size": image(flip_rows, kernel=(2, 2)),
    "rows reversed, other kernel": image(flip_rows, kernel=(1, 3), stride=2),
    "rows reversed, padding apart": image(
        flip_rows, padding=((2, 1), (1, 2)), stride=2
    ),
    "rows and columns swapped": image(swap),
    "rows and columns swapped, square": image(swap, x=SQUARE),
    "rows and columns swapped, stride": image(swap, kernel=(3, 1), stride=2),
    "turned by 90 degrees": image(lambda x: jnp.rot90(x, axes=(1, 2))),
    "reversed and back": image(lambda x: flip_rows(flip_rows(x) * 2)),
    "reversed, then a norm": image(lambda x: (x[:, ::-1, :, ::-1] - 0.25) * 1.5),
    "cropped in reverse": image(lambda x: x[:, ::-2, ::2]),
    "padded after a flip": image(
        lambda x: jnp.pad(flip_rows(x), ((0, 0), (2, 2), (1, 1), (0, 0)))
    ),
    "itself and its mirror image's channels": image(
        lambda x: jnp.concatenate([x, x[..., ::-1]], -1)
    ),
    "sum with permuted channels": image(lambda x: x + 0.5 * x[..., ::-1]),
    "a site before the flip": image(lambda x: relu(x)[:, ::-1]),
    "1x1 product of flipped": image(lambda x: swap(x)[:, ::-1] @ jnp.eye(3)[::-1]),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_graph_takes_images_as_the_function_takes_them(name, tmp_path):
    net = IMAGES[name]
    graph = check_round_trip(net.fn, net.params, net.x, tmp_path)
    batch, rows, columns, channels = net.x.shape
    shape = graph.nodes["input"].input_type["input"]
    assert list(shape) == [channels, rows, columns]


def channels_first(move: Callable, numbers=FIRST, x=None):
    x = pixels(3, 3, 5, 6) if x is None else x
    params = random_weights((3, 3, 3, 4), (4, 5))

    def fn(p, x):
        y = jax.lax.conv_general_dilated(
            move(x), p[0], (1, 1), "SAME", dimension_numbers=numbers
        )
        return relu(y).sum((2, 3)) @ p[1]

    return fn, [params[0].transpose(3, 2, 0, 1), params[1]], x


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x,
        lambda x: x[:, ::-1],
        lambda x: x[:, :, ::-1],
        lambda x: relu(x)[:, jnp.array([1, 2, 0])],
        lambda x: jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))[:, ::-1, ::-1],
        lambda x: x.transpose(0, 1, 3, 2),
        lambda x: (x - 0.5) * 2,
    ],
)
def test_channels_first_networks_may_permute_x_too(move, tmp_path):
    fn, params, x = channels_first(move)
    graph = check_round_trip(fn, params, x, tmp_path, channel=1)
    assert list(graph.nodes["input"].input_type["input"]) == [3, 5, 6]


def test_the_spatial_names_of_a_convolution_do_not_turn_the_input(tmp_path):
    """NWHC reads the rows of x as columns: the kernel is transposed, x is not."""
    (kernel, last) = random_weights((3, 2, 3, 4), (4, 5))

    def fn(p, x):
        y = jax.lax.conv_general_dilated(
            x, p[0], (2, 1), "SAME", dimension_numbers=("NWHC", "HWIO", "NWHC")
        )
        return relu(y), relu(y).sum((1, 2)) @ p[1]

    graph = check_round_trip(fn, [kernel, last], IMAGE, tmp_path)
    assert list(graph.nodes["input"].input_type["input"]) == [3, 5, 6]


def test_one_channel_may_stand_first(tmp_path):
    """The axis of size 1 that no window moves along counts channels."""
    kernel, last = random_weights((3, 3, 1, 4), (4, 5))

    def fn(p, x):
        y = jax.lax.conv_general_dilated(
            x[:, :, ::-1], p[0], (1, 1), "SAME", dimension_numbers=FIRST
        )
        return relu(y).sum((2, 3)) @ p[1]

    params = [kernel.transpose(3, 2, 0, 1), last]
    graph = check_round_trip(fn, params, pixels(2, 1, 5, 6), tmp_path, channel=1)
    assert list(graph.nodes["input"].input_type["input"]) == [1, 5, 6]


# --------------------------------------------------------- vectors and other shapes


def product(move: Callable, x, before=relu):
    """``move`` between two sites, then a matrix product of all elements."""

    def flat(x):
        return move(before(x)).reshape(len(x), -1)

    params = random_weights((flat(x).shape[1], 6), (6, 3))
    return Net(lambda p, x: relu(flat(x) @ p[0] + 1.0)[:, ::-1] @ p[1], params, x, 2)


VECTOR, SEQUENCE, VOLUME = pixels(3, 6), pixels(3, 4, 5), pixels(3, 2, 3, 4, 2)
PRODUCTS = {
    "reversed x": product(lambda x: x[:, ::-1], VECTOR, lambda x: x),
    "reversed vector": product(lambda x: x[:, ::-1], VECTOR),
    "sum with the reversed": product(lambda x: x + x[:, ::-1], VECTOR),
    "both": product(lambda x: jnp.concatenate([x, x[:, ::-1]], 1), VECTOR),
    "two axes": product(lambda x: x, SEQUENCE),
    "two axes, with a constant": product(
        lambda x: relu(x + 0.25) * 0.5, SEQUENCE, lambda x: x
    ),
    "two axes, transposed": product(lambda x: x.transpose(0, 2, 1), SEQUENCE),
    "two axes, reversed": product(lambda x: x[:, ::-1, ::-1], SEQUENCE),
    "two axes, cropped": product(lambda x: relu(x[:, 1:]), SEQUENCE),
    "two axes, sum with the reversed": product(lambda x: x - x[:, ::-1], SEQUENCE),
    "four axes": product(lambda x: x, VOLUME),
    "four axes, permuted": product(
        lambda x: x.transpose(0, 4, 2, 1, 3)[:, ::-1], VOLUME
    ),
    "image flattened by columns": product(swap, IMAGE),
    "image flattened in reverse": product(lambda x: x[:, ::-1, :, ::-1], IMAGE),
    "image with rolled rows": product(
        lambda x: jnp.roll(x.reshape(len(x), -1), 18, 1), IMAGE
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_matrix_product_may_follow_any_permutation(name, tmp_path):
    net = PRODUCTS[name]
    check_round_trip(net.fn, net.params, net.x, tmp_path)


# ----------------------------------------------------- between layers, and outputs


def between(function: Callable, out=4):
    """``function(weights, x)`` between two sites of images, then a global sum."""
    params = random_weights((3, 3, 3, 4), (3, 3, 4, 4), (out, 3))

    def fn(p, x):
        y = relu(conv(x, p[0]))
        return relu(function(p[1], y)).sum((1, 2)) @ p[2]

    return fn, params


BETWEEN = {
    "flipped residual": lambda w, x: x[:, :, ::-1][..., ::-1] + conv(x[:, :, ::-1], w),
    "permuted residual": lambda w, x: x[..., ::-1] + conv(x, w),
    "flip and back around a convolution": lambda w, x: (
        flip_rows(conv(flip_rows(x), w)) + x
    ),
    "transposed and back": lambda w, x: swap(conv(swap(x), w)) - x,
    "pool of flipped": lambda w, x: jax.lax.reduce_window(
        x[:, ::-1, ::-1, ::-1], 0.0, jax.lax.add, (1, 3, 2, 1), (1, 2, 2, 1), "SAME"
    ),
    "pool of transposed": lambda w, x: jax.lax.reduce_window(
        swap(x)[..., ::-1], 0.0, jax.lax.add, (1, 2, 3, 1), (1, 1, 2, 1), "VALID"
    ),
    "sum over flipped rows": lambda w, x: x[:, ::-1, ::-1].sum(1, keepdims=True),
    "crop of flipped": lambda w, x: x[:, ::-1][:, 1:4, ::-2],
    "concatenated with its mirror image's channels": lambda w, x: conv(
        jnp.concatenate([x[..., :2], x[..., :2][..., ::-1]], -1), w
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_images_may_be_flipped_between_layers(name, tmp_path):
    fn, params = between(BETWEEN[name])
    check_round_trip(fn, params, IMAGE, tmp_path)


@pytest.mark.parametrize(
    "last",
    [
        lambda y: y[..., ::-1],
        lambda y: jnp.take(y, jnp.array([3, 1, 0, 2]), -1) * 2 - 1,
        lambda y: (y[..., ::-1], y),
        lambda y: y.sum((1, 2))[:, ::-1],
        lambda y: relu(y)[..., ::-1],
        lambda y: y.sum((1, 2))[:, ::-1] + 0.5,
    ],
)
def test_outputs_come_in_the_order_of_the_function(last, tmp_path):
    def fn(p, x):
        return last(conv(relu(x), p[0]))

    check_round_trip(fn, random_weights((3, 3, 3, 4)), IMAGE, tmp_path)


def test_an_output_that_is_no_image_is_a_vector_in_the_order_of_the_function():
    def fn(p, x):
        y = relu(x @ p[0]).reshape(len(x), 2, 3)
        return y.transpose(0, 2, 1), relu(x).reshape(len(x), 3, 1, 2)[:, ::-1]

    params = random_weights((6, 6))
    snn = fitted_snn(fn, params, VECTOR)
    other, read = snnjax.from_nir(snnjax.to_nir(fn, snn, VECTOR, extended=True))
    expected = compiled(fn, steps=STEPS)(snn, VECTOR)
    outputs = compiled(other, steps=STEPS)(read, VECTOR)
    for a, b in zip(expected, outputs.values(), strict=True):
        np.testing.assert_allclose(b, a.reshape(b.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda w, x: relu(flip_rows(conv(x, w))), "output\n *the rows or columns"),
        (lambda w, x: swap(relu(conv(x, w))), "permute after fn"),
        (lambda w, x: relu(conv(x, w)).transpose(0, 1, 3, 2), "permute after fn"),
        (lambda w, x: relu(conv(jnp.roll(x, 1, 1), w)), "or flatten first"),
        (lambda w, x: relu(conv(x[:, jnp.array([1, 0, 2, 3, 4])], w)), "permuted"),
        (
            lambda w, x: conv(relu(conv(x, w)).transpose(0, 3, 2, 1), w),
            "before a reshape or transpose",
        ),
    ],
)
def test_other_permutations_of_images_are_refused_with_a_remedy(function, words):
    x = pixels(2, 5, 5, 5)
    params = random_weights((3, 3, 5, 5))
    snn = fitted_snn(lambda p, x: function(p[0], x), params, x)
    with pytest.raises(snnjax.ConversionError, match=words) as error:
        snnjax.to_nir(lambda p, x: function(p[0], x), snn, x, extended=True)
    (problem,) = error.value.problems
    assert problem.reason and problem.remedy


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4), (3, 2, 3, 4, 2)])
def test_sites_of_any_shape_may_follow_what_nir_has_no_node_for(shape):
    """It ended in a broadcast error of NumPy."""

    def fn(p, x):
        y = relu(jnp.cumsum(x, 1) + 1.0)
        return relu(y * 2.0 + 0.5).reshape(len(x), -1) @ p[0]

    x = pixels(*shape)
    params = random_weights((int(np.prod(shape[1:])), 2))
    snn = fitted_snn(fn, params, x)
    with pytest.raises(snnjax.ConversionError, match="cumsum") as error:
        snnjax.to_nir(fn, snn, x, extended=True)
    assert [p.operations for p in error.value.problems] == [("cumsum",)]


# ----------------------------------------------------------------- random networks


def random_conv(generator: np.random.Generator, x):
    """A convolution with a random window, in one of three layouts."""
    channels = x.shape[-1]
    groups = int(generator.choice([1, 1, channels]))
    rows, columns, out = generator.integers(1, 4, 3).tolist()
    kernel = generator.normal(size=(rows, columns, channels // groups, out * groups))
    kernel = jnp.asarray(kernel / np.sqrt(rows * columns * channels), jnp.float32)
    layout = str(generator.choice(["NHWC", "NHWC", "NWHC", "NCHW"]))
    stride = tuple(generator.integers(1, 3, 2).tolist())
    dilation = tuple(generator.choice([1, 1, 2], 2).tolist())
    padding = str(generator.choice(["SAME", "VALID"]))

    def function(x):
        if layout == "NCHW":
            x = x.transpose(0, 3, 1, 2)
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            stride,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=(layout, "HWIO", layout),
            feature_group_count=groups,
        )
        return y.transpose(0, 2, 3, 1) if layout == "NCHW" else y

    return function


def random_pool(generator: np.random.Generator, x):
    window = (1, *generator.integers(1, 4, 2).tolist(), 1)
    stride = (1, *generator.integers(1, 3, 2).tolist(), 1)
    padding = str(generator.choice(["SAME", "VALID"]))
    return lambda x: (
        jax.lax.reduce_window(x, 0.0, jax.lax.add, window, stride, padding) / 2
    )


def random_take(generator: np.random.Generator, x):
    channels = generator.integers(0, x.shape[-1], generator.integers(1, 5))
    return lambda x: x[..., channels]


def random_flip(generator: np.random.Generator, x):
    axis = int(generator.integers(1, 4))
    return lambda x: jnp.flip(x, axis)


def random_slice(generator: np.random.Generator, x):
    rows, columns = generator.choice([-2, -1, 2], 2).tolist()
    return lambda x: x[:, ::rows, ::columns]


def random_sum(generator: np.random.Generator, x):
    one, other = (
        random_flip(generator, x) if generator.integers(2) else relu for _ in range(2)
    )
    return lambda x: one(x) - 0.5 * other(x)


CHOICES = [
    random_conv,
    random_conv,
    random_conv,
    random_flip,
    random_take,
    random_slice,
    random_pool,
    random_sum,
    lambda generator, x: swap,
    lambda generator, x: relu,
    lambda generator, x: relu,
    lambda generator, x: lambda x: x * 1.5 - 0.25,
]


def random_network(seed):
    """Up to seven random moves and layers, then all elements in a matrix product."""
    generator = np.random.default_rng(seed)
    x = jnp.asarray(generator.normal(size=(2, 6, 7, 3)), jnp.float32)
    functions, y = [], x
    for _ in range(generator.integers(2, 7)):
        function = CHOICES[generator.integers(len(CHOICES))](generator, y)
        after = function(y)
        if after.size:
            functions.append(function)
            y = after
    weight = jnp.asarray(generator.normal(size=(y.size // 2, 4)), jnp.float32)

    def fn(p, x):
        for function in functions:
            x = function(x)
        return relu(x + 0.5).reshape(len(x), -1) @ p

    return fn, weight, x


def check_random_networks(seeds, tmp_path):
    """Each is the same network after a round trip, or refused; most are the same."""
    refusals = 0
    for seed in seeds:
        fn, weight, x = random_network(seed)
        try:
            snnjax.to_nir(fn, fitted_snn(fn, weight, x), x, extended=True)
        except snnjax.ConversionError:
            refusals += 1
            continue
        check_round_trip(fn, weight, x, tmp_path, tolerance=1e-3)
    assert refusals < len(seeds) / 2


def test_random_networks_come_back(tmp_path):
    check_random_networks(range(12), tmp_path)


@pytest.mark.slow
def test_more_random_networks_come_back(tmp_path):
    check_random_networks(range(12, 212), tmp_path)
