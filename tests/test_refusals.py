"""What cannot be converted is refused by name, with its path and the way out.

What is not affine and yet converts stands beside it, in a table of its own.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from networks import FLAT, PIXELS, VECTORS, Net, converted, max_pool, outputs_of, relu

import snnjax
from snnjax.network import identity, with_activation


def between(function):
    """A network with ``function`` of the activations between two sites."""

    def fn(p, x):
        return relu(function(relu(x @ p["w1"])) @ p["w2"]) @ p["w3"]

    return fn, FLAT, VECTORS


def module(make, x=PIXELS):
    """The same with the linen module that ``make`` gives, or a function."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            x = make(x) if make is squeeze_excite else make()(x)
            return nn.relu(nn.Dense(2)(x))

    net = Model()
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    variables, rngs = jax.jit(net.init)(keys, x), {"dropout": jax.random.key(1)}

    def fn(variables, x):
        return net.apply(variables, x, mutable=["batch_stats"], rngs=rngs)[0]

    return fn, variables, x


def squeeze_excite(x):
    gate = nn.sigmoid(nn.Dense(4)(nn.relu(nn.Dense(2)(x.mean((1, 2))))))
    return x * gate[:, None, None]


def attention(x):
    scores = jax.nn.softmax(jnp.einsum("bi,bj->bij", x, x), -1)
    return jnp.einsum("bij,bj->bi", scores, x)


def spread_out(x, maximum):
    """Activations as three positions of two channels, clipped."""
    return snnjax.clipped_relu(x.reshape(-1, 3, 2), maximum).reshape(-1, 6)


def recurrent(x):
    """A state that goes along the axis of features."""
    zero = jnp.zeros_like(x[:, 0])
    return jax.lax.scan(lambda h, now: (relu(h + now),) * 2, zero, x.T)[1].T


def pooled_from_an_array(x):
    lowest = jnp.array(-jnp.inf)  # traced, so JAX does not know that it is no number
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 1), (1, 1), "VALID")


def counted(x):
    return jax.lax.while_loop(
        lambda s: s[0] < 3, lambda s: (s[0] + 1, relu(s[1])), (0, x)
    )[1]


def branched(x):
    return jax.lax.cond(x.shape[0] > 1, relu, jnp.negative, x)


def noisy(x):
    return x + jax.random.normal(jax.random.key(0), x.shape)


def through_callback(x):
    return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def window_of_ones_own(x):
    """Neighbours, by a function that JAX has no window for."""

    def function(a, b):
        return a * b + 1

    return jax.lax.reduce_window(x, 0.0, function, (1, 2), (1, 1), "SAME")


def activation_named(name, function):
    """The function as an activation of one's own that is called like a known one."""

    def activation(x):
        return function(x)

    activation.__name__ = name
    own_activation = jax.custom_jvp(activation)
    own_activation.defjvp(lambda primals, tangents: (activation(*primals), *tangents))
    return own_activation


def ends_in(function):
    def fn(p, x):
        return function(relu(x @ p["w1"]) @ p["w3"])

    return fn, FLAT, VECTORS


# Function, operations of which one must be reported, words of the remedy.
REFUSED_BETWEEN = {
    "noise": (noisy, "random_bits", "out of fn"),
    "product along the batch": (lambda x: x * x[::-1], "rev", "apart"),
    "likeness": (lambda x: x @ x.T @ jnp.ones((len(x), 6)), "dot_general", "apart"),
    "sort": (lambda x: jnp.sort(x, -1), "sort", "logits"),
    "one-hot": (lambda x: jax.nn.one_hot(x.argmax(-1), 6), "argmax", "logits"),
    "quantized": (
        lambda x: x.astype(jnp.int8).astype(jnp.float32),
        "convert_element_type",
        "outside fn",
    ),
    "digamma": (
        lambda x: jax.scipy.special.digamma(x + 1),
        "digamma",
        "other operations",
    ),
    "callback": (through_callback, "pure_callback", "outside fn"),
    "own window": (window_of_ones_own, "reduce_window", "jax.lax.max"),
    "recurrence": (recurrent, "scan", 'inputs="sequence"'),
    "while": (counted, "while", "fixed length"),
    "cond": (branched, "cond", "static value"),
    "maximum that depends on x": (
        lambda x: snnjax.clipped_relu(x, relu(x)),
        "custom_jvp_call",
        "constant or a parameter",
    ),
    "maximum alone that depends on x": (
        lambda x: snnjax.clipped_relu(jnp.ones((len(x), 6)), relu(x)),
        "custom_jvp_call",
        "constant or a parameter",
    ),
    "maximum of a position and channel": (
        lambda x: spread_out(x, jnp.arange(1.0, 7).reshape(3, 2)),
        "custom_jvp_call",
        "one for each channel",
    ),
    "max-pool from an array": (
        pooled_from_an_array,
        "reduce_window",
        "with the literal -jnp.inf",
    ),
}
REFUSED_AT_THE_END = {
    "argmax": (lambda x: x.argmax(-1), "argmax", "logits"),
    "argmin": (lambda x: x.argmin(-1), "argmin", "logits"),
    "top-k": (lambda x: jax.lax.top_k(x, 1)[0], "top_k", "logits"),
    "truth value": (lambda x: x > 0, "gt", "separates"),
    "whole numbers": (
        lambda x: x.astype(jnp.int32),
        "convert_element_type",
        "outside fn",
    ),
}
REFUSED_MODULES = {
    "BatchNorm in training": (
        lambda: nn.BatchNorm(use_running_average=False),
        "reduce_sum",
        "put statistics into params",
    ),
    "dropout": (
        lambda: nn.Dropout(0.5, deterministic=False),
        "random_bits threefry2x32 random_wrap shift_right_logical",
        "deterministic=True in flax.linen, model.eval() in nnx",
    ),
}
REFUSED = [
    *((between, *row) for row in REFUSED_BETWEEN.values()),
    *((ends_in, *row) for row in REFUSED_AT_THE_END.values()),
    *((module, *row) for row in REFUSED_MODULES.values()),
]


# What is not affine, but a function of running means.
ALLOWED = {
    "LayerNorm": lambda: module(nn.LayerNorm),
    "GroupNorm": lambda: module(lambda: nn.GroupNorm(2)),
    "squeeze-excite": lambda: module(squeeze_excite),
    "sigmoid": lambda: between(jax.nn.sigmoid),
    "SiLU": lambda: between(jax.nn.silu),
    "GELU": lambda: between(jax.nn.gelu),
    "exact GELU": lambda: between(lambda x: jax.nn.gelu(x, approximate=False)),
    "leaky ReLU": lambda: between(jax.nn.leaky_relu),
    "ELU": lambda: between(jax.nn.elu),
    "tanh": lambda: between(jnp.tanh),
    "softplus": lambda: between(jax.nn.softplus),
    "product": lambda: between(lambda x: x * x[:, ::-1]),
    "square": lambda: between(jnp.square),
    "power": lambda: between(lambda x: x**2),
    "attention": lambda: between(attention),
    "maximum": lambda: between(lambda x: jnp.maximum(x, 0.5)),
    "clip": lambda: between(lambda x: jnp.clip(x, -1, 1)),
    "abs": lambda: between(jnp.abs),
    "where": lambda: between(lambda x: jnp.where(x > 1, x, 0)),
    "rounding": lambda: between(jnp.round),
    "remainder": lambda: between(lambda x: x % 1),
    "truth value as a number": lambda: between(lambda x: (x > 1).astype(jnp.float32)),
    "min-pool over windows": lambda: between(
        lambda x: -max_pool(-x.reshape(-1, 2, 3, 1), 1, 1).reshape(x.shape)
    ),
    "softmax": lambda: between(jax.nn.softmax),
    "softmax at the end": lambda: ends_in(jax.nn.softmax),
    "log-softmax": lambda: ends_in(jax.nn.log_softmax),
    "min-pool": lambda: ends_in(lambda x: x.min(-1)),
    "own ReLU": lambda: between(
        activation_named("relu", lambda x: jnp.maximum(x, 0.5))
    ),
    "own ReLU6": lambda: between(
        activation_named("relu6", lambda x: jnp.clip(x, 0.5, 1))
    ),
    "own clipped ReLU": lambda: between(activation_named("clipped_relu", jnp.tanh)),
}
# A mean however near to a jump may lie on its other side.
JUMPS = {"where", "rounding", "remainder", "truth value as a number"}


INPUTS = {"vectors": VECTORS, "images": PIXELS}


@functools.cache
def allowed(x):
    """Those of one input, by name."""
    nets = {name: Net(*build(), 0) for name, build in ALLOWED.items()}
    return {name: net for name, net in nets.items() if net.x is INPUTS[x]}


@pytest.mark.parametrize("x", INPUTS)
def test_allowed(x):
    for name, net in allowed(x).items():
        sites = snnjax.sites(*net[:3])
        assert any(not site.fires for site in sites), name
    fn, params, x, _ = networks.together(allowed(x))
    outputs = jax.jit(with_activation(fn, identity))(params, x)
    for name, ann_outputs in jax.jit(fn)(params, x).items():
        np.testing.assert_allclose(outputs[name], ann_outputs, 1e-5, 1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("x", INPUTS)
def test_fine_levels_give_the_ann(x):
    """test_architectures.py and test_operators.py show the same of the usual ones."""
    nets = {name: net for name, net in allowed(x).items() if name not in JUMPS}
    fn, params, x, _ = networks.together(nets)
    fine_levels = snnjax.integrate_and_fire(levels=(-100, 100))
    recipe = snnjax.max_activation()
    snn = converted(fn, params, x, steps=8, recipe=recipe, model=fine_levels)
    spiking_outputs, ann_outputs = networks.compiled(fn)(snn, x), jax.jit(fn)(params, x)
    for name in nets:
        mean, ann = np.asarray(spiking_outputs[name]).mean(0), ann_outputs[name]
        atol = 0.05 * abs(ann).max()
        np.testing.assert_allclose(mean, ann, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("function", [jax.nn.gelu, jax.nn.softmax, attention])
def test_several_operations_are_one_operator(function):
    sites = snnjax.sites(*between(function))
    assert sum(not site.fires for site in sites) == 1


@pytest.mark.parametrize(
    "build, function, operations, remedy",
    REFUSED,
    ids=[*REFUSED_BETWEEN, *REFUSED_AT_THE_END, *REFUSED_MODULES],
)
def test_refused(build, function, operations, remedy):
    with pytest.raises(snnjax.ConversionError) as caught:
        snnjax.sites(*build(function))
    problems = caught.value.problems
    reported_operations = {word for p in problems for word in p.operations}
    assert reported_operations & {*operations.split()}
    assert remedy in " ".join(problem.remedy for problem in problems)
    assert all(word in str(caught.value) for word in reported_operations)


@pytest.mark.parametrize("run", [snnjax.init, snnjax.convert])
def test_every_entrance_refuses(run):
    steps = {"steps": 4} if run is snnjax.convert else {}
    with pytest.raises(snnjax.ConversionError, match="scan"):
        run(*between(recurrent), **steps)


def test_all_problems_come_in_one_error_with_their_paths():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.BatchNorm(use_running_average=False, name="norm")
            x = nn.relu(norm(nn.Dense(4, name="first")(x)))
            x = recurrent(nn.Dense(4, name="second")(x))
            x = nn.Dense(4, name="third")(x)
            return jnp.sort(x, -1) + x.argmax(-1, keepdims=True)

    net = Model()
    variables = jax.jit(net.init)(jax.random.key(0), VECTORS)

    def fn(variables, x):
        return net.apply(variables, x, mutable=["batch_stats"])[0]

    with pytest.raises(snnjax.ConversionError) as caught:
        snnjax.sites(fn, variables, VECTORS)
    problems, text = caught.value.problems, str(caught.value)
    assert f"cannot be converted ({len(problems)} places)" in text
    (norm,) = (p for p in problems if "reduce_sum" in p.operations)
    (loop,) = (p for p in problems if "scan" in p.operations)
    (order,) = (p for p in problems if "sort" in p.operations)
    assert norm.path == "Model/norm"
    assert loop.path == order.path == "Model"
    assert order.operations == ("sort", "argmax")  # of one kind and place
    assert all(p.remedy in text and p.reason in text for p in problems)


def test_parts_that_are_folded_into_the_batch_are_taken_apart_around_a_site():
    def folded(p, x):  # windows, as of a Swin transformer
        return relu(x.reshape(-1, 2) @ p["w1"][:2]).reshape(len(x), -1)

    def unfolded(p, x):
        parts = x.reshape(len(x), -1, 2)
        return relu(parts @ p["w1"][:2]).reshape(len(x), -1)

    def run(fn, params, x):
        recipe = snnjax.max_activation()
        snn = snnjax.convert(fn, params, x[:1], steps=4, recipe=recipe)
        return snnjax.spiking(fn)(snn, x)

    assert snnjax.sites(folded, FLAT, VECTORS)[0].shape == (2, 6)
    runs = [functools.partial(run, fn) for fn in (folded, unfolded)]
    np.testing.assert_array_equal(*outputs_of(runs, FLAT, VECTORS))


def batch_behind(p, x):
    """Four outputs of four images: the shape does not tell."""
    return (relu(x @ p["w1"]) @ jnp.ones((6, 4))).T


def test_outputs_and_batches_of_other_shapes_are_refused():
    hidden = lambda p, x: relu(x @ p["w1"])  # noqa: E731
    nothing = "no ReLU, .*nothing would spike"
    unbatched = r"x has shape \(4,\), but its .*\n.*pass a single example as x\[None\]"
    for fn, x, message in (
        (lambda p, x: x @ p["w1"], VECTORS, nothing),
        (lambda p, x: max_pool(x).sum((1, 2)), PIXELS, nothing),
        (lambda p, x: jnp.tanh(x @ p["w1"]), VECTORS, nothing),
        (lambda p, x: jax.nn.log_softmax(x @ p["w1"]), VECTORS, nothing),
        (batch_behind, VECTORS, r"an output has shape \(4, B\), .*must be the batch"),
        (lambda p, x: relu(x * 2), jnp.ones(3), r"x\[:, None\]"),
        (hidden, VECTORS[0], unbatched),
        (lambda p, x: hidden(p, x).sum(), VECTORS, r"an output has shape \(\)"),
        (lambda p, x: (hidden(p, x), 3.0), VECTORS, "return only what depends on x"),
        (lambda p, x: (hidden(p, x) > 0).any(-1), VECTORS, "truth value"),
        (lambda p, x: (hidden(p, x) > 0).all(-1), VECTORS, "truth value"),
    ):
        with pytest.raises(snnjax.ConversionError, match=message):
            snnjax.sites(fn, FLAT, x)


class _Module:
    def __call__(self, x):
        return x


def test_what_is_no_function_and_no_input_is_refused():
    hidden = lambda p, x: relu(x @ p["w1"])  # noqa: E731
    scale = "uint8; allowed: floating point, and .* Give images"
    for x, message in (
        (jnp.ones((4, 4), jnp.uint8), scale),
        (jnp.ones((0, 4)), "at least one example"),
        (jnp.ones(()), r"allowed: \[batch, ...\]"),
        ([[1.0]], r"x\[0\]\[0\] is a float; allowed: an array"),
    ):
        with pytest.raises(ValueError, match=message):
            snnjax.sites(hidden, FLAT, x)
    for fn in (None, _Module(), lambda params, x, train: x, lambda x: x):
        with pytest.raises(ValueError, match=r"fn is .*allowed: a function fn\(params"):
            snnjax.sites(fn, FLAT, VECTORS)
    for use in (
        lambda: snnjax.convert(None, FLAT, VECTORS, steps=4),
        lambda: snnjax.spiking(None, steps=4),
    ):
        with pytest.raises(ValueError, match=r"fn is a NoneType; allowed: a function"):
            use()


@pytest.mark.parametrize("name", ["own ReLU", "own ReLU6", "own clipped ReLU"])
def test_an_activation_of_ones_own_is_not_taken_for_a_known_one(name):
    sites = snnjax.sites(*ALLOWED[name]())
    firing = [site.name for site in sites if site.fires]
    assert firing == ["w1/relu", "w2/encoder", "w2/relu"]


BETWEEN_OPERATORS = (
    branched,
    lambda x: jnp.sort(x, -1),
    lambda x: x.astype(jnp.int8).astype(x.dtype),
    lambda x: x - x.mean(0),
)
OF_THE_INPUT_ALONE = (  # which might mix examples
    lambda x: jnp.fft.fft(x, axis=0).real,
    lambda x: jnp.linalg.qr(x)[0],
    lambda x: jnp.zeros(9).at[x[:, 0].astype(int)].add(1)[:, None] * jnp.ones(6),
    lambda x: jnp.sort(x, 0),
    lambda x: x[jnp.argsort(x[:, 0])],
)


def test_what_stands_between_two_operators_or_before_all_sites_is_refused_too():
    x = jnp.tile(VECTORS, (1, 2))
    for function in (recurrent, counted, *BETWEEN_OPERATORS):
        fn, *_ = between(lambda x, f=function: jnp.tanh(f(jnp.tanh(x))))
        with pytest.raises(snnjax.ConversionError):
            snnjax.sites(fn, FLAT, VECTORS)
    for function in (recurrent, counted, *OF_THE_INPUT_ALONE):
        fn = lambda p, x, f=function: relu(f(x)[:, :4] @ p["w1"]) @ p["w2"]  # noqa: E731
        with pytest.raises(snnjax.ConversionError):
            snnjax.sites(fn, FLAT, x)


def test_of_the_input_alone_anything_else_is_computed_once():
    functions = [
        lambda x: jnp.sort(x, -1),
        lambda x: x.astype(jnp.int32).astype(x.dtype),
        lambda x: jnp.take_along_axis(x, jnp.argsort(x), -1),
        lambda x: (x > x.mean(-1, keepdims=True)).astype(x.dtype),
        lambda x: jnp.eye(4)[x.argmax(-1)],
    ]

    def fn(p, x):
        return [relu(function(x) @ p["w1"]) @ p["w3"] for function in functions]

    def run(params, x):
        recipe = snnjax.max_activation()
        snn = snnjax.convert(fn, params, x, steps=64, recipe=recipe)
        return [y.mean(0) for y in snnjax.spiking(fn)(snn, x)]

    outputs, ann_outputs = outputs_of([run, fn], FLAT, VECTORS)
    np.testing.assert_allclose(outputs, ann_outputs, atol=0.1)
