"""Refusals of networks, of their parameters and images, and of activations."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from networks import FLAT, PIXELS, VECTORS, max_pool, relu, variables

import snnjax
from refusals import Refusal


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
    key = jax.random.key(0)
    variables = jax.jit(net.init)({"params": key, "dropout": key}, x)

    def fn(variables, x):
        rngs = {"dropout": jax.random.key(1)}
        outputs, _ = net.apply(variables, x, mutable=["batch_stats"], rngs=rngs)
        return outputs

    return fn, variables, x


def squeeze_excite(x):
    squeezed = nn.relu(nn.Dense(2)(x.mean((1, 2))))
    gate = nn.sigmoid(nn.Dense(4)(squeezed))
    return x * gate[:, None, None]


def attention(x):
    scores = jax.nn.softmax(jnp.einsum("bi,bj->bij", x, x), -1)
    return jnp.einsum("bij,bj->bi", scores, x)


def spread_out(x, maximum):
    """Activations as three positions of two channels, clipped."""
    return snnjax.clipped_relu(x.reshape(-1, 3, 2), maximum).reshape(-1, 6)


def recurrent(x, turns=65, step=None):
    """A state [B, 1] goes along features of x [B, features], repeated to ``turns``.

    Returns:
        The states at the last turns, as many as x has features.
    """

    def accumulate(state, feature):
        state = relu(state + feature)
        return state, state

    feature_count = x.shape[1]
    repetitions = -(-turns // feature_count)
    features = jnp.tile(x, (1, repetitions))[:, :turns].T[..., None]
    start = jnp.zeros_like(x[:, :1])
    _, states = jax.lax.scan(step or accumulate, start, features)
    return states[-feature_count:, :, 0].T


def recurrent_with(function):
    """A scan that is short enough to be unrolled, with this function in every turn."""

    def step(state, feature):
        state = function(state + feature)
        return state, state

    return lambda x: recurrent(x, turns=64, step=step)


def scanned_examples(x):
    """A loop over the examples."""
    _, outputs = jax.lax.scan(lambda count, h: (count, jnp.tanh(h)), 0, x)
    return outputs


def pooled_from_an_array(x):
    lowest = jnp.array(-jnp.inf)  # traced, so JAX does not know that it is no number
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 1), (1, 1), "VALID")


def counted(x):
    """Three ReLUs by a loop whose length JAX does not know."""

    def goes_on(state):
        count, _ = state
        return count < 3

    def step(state):
        count, x = state
        return count + 1, relu(x)

    _, x = jax.lax.while_loop(goes_on, step, (0, x))
    return x


def branched(x):
    return jax.lax.cond(x.sum() > 0, relu, jnp.negative, x)


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
    "sums at places that activations choose": (
        lambda x: jnp.zeros_like(x).at[:, x[0].astype(int)].add(x),
        "scatter-add",
        "take indices from x, params or constants",
    ),
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
    "argmax in a short recurrence": (
        recurrent_with(lambda state: state + state.argmax(-1, keepdims=True)),
        "argmax",
        "logits",
    ),
    "statistics in a short recurrence": (
        recurrent_with(lambda state: state - state.mean(0)),
        "reduce_sum",
        "apart",
    ),
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
        "use_running_average=True in flax.linen",
    ),
    "dropout": (
        lambda: nn.Dropout(0.5, deterministic=False),
        "random_bits threefry2x32 random_wrap shift_right_logical",
        "deterministic=True in flax.linen, model.eval() in nnx",
    ),
}


def unconvertible(name, fn, params, x, message):
    """`snnjax.sites` finds problems."""
    call = functools.partial(snnjax.sites, fn, params, x)
    return Refusal(name, call, message, snnjax.ConversionError)


def unconvertible_operation(name, network, operations, remedy):
    """The message names one of the operations, and its remedy has these words."""
    names = "|".join(operations.split())
    message = rf"(?s): [^\n]*\b({names})\b.*remedy: [^\n]*{re.escape(remedy)}"
    return unconvertible(name, *network, message)


def operations_refused():
    for build, rows in (
        (between, REFUSED_BETWEEN),
        (ends_in, REFUSED_AT_THE_END),
        (module, REFUSED_MODULES),
    ):
        for name, (function, operations, remedy) in rows.items():
            yield unconvertible_operation(name, build(function), operations, remedy)


# Function of x [B, 6] between two operators, and a part of the message.
LOOP = "remedy: use a loop of fixed length"
RECURRENCE = (
    "unrolled up to 64 turns, and this one has more\n.*"
    'remedy: pass that axis as the steps, by inputs="sequence"'
)
BATCH = (
    "one example would reach another.*\n *remedy: keep the examples of a batch apart"
)
BETWEEN_OPERATORS = {
    "recurrence": (recurrent, RECURRENCE),
    "while": (counted, LOOP),
    "cond": (branched, LOOP),
    "sort": (lambda x: jnp.sort(x, -1), "remedy: return the logits from fn"),
    "rounding to int8": (
        lambda x: x.astype(jnp.int8).astype(x.dtype),
        "remedy: keep activations in float32",
    ),
    "difference from the mean": (lambda x: x - x.mean(0), BATCH),
}
# The same for a function of the input [B, 8] alone, which might mix examples.
OF_THE_INPUT = {
    "recurrence": (recurrent, RECURRENCE),
    "while": (counted, LOOP),
    "Fourier transform": (
        lambda x: jnp.fft.fft(x, axis=0).real,
        BATCH,
    ),
    "orthogonalization": (
        lambda x: jnp.linalg.qr(x)[0],
        "fn takes 4 examples and not 1, so it holds their number",
    ),
    "histogram": (
        lambda x: jnp.zeros(9).at[x[:, 0].astype(int)].add(1)[:, None] * jnp.ones(6),
        BATCH,
    ),
    "sort of the batch": (lambda x: jnp.sort(x, 0), BATCH),
    "order of the batch": (lambda x: x[jnp.argsort(x[:, 0])], BATCH),
}


def before_all_sites(function):
    def fn(p, x):
        return relu(function(x)[:, :4] @ p["w1"]) @ p["w2"]

    return fn, FLAT, jnp.tile(VECTORS, (1, 2))


def between_operators(function):
    return between(lambda x: jnp.tanh(function(jnp.tanh(x))))


def operations_beside_refused():
    for place, build, table in (
        ("between operators", between_operators, BETWEEN_OPERATORS),
        ("of the input", before_all_sites, OF_THE_INPUT),
    ):
        for name, (function, message) in table.items():
            yield unconvertible(f"{name} {place}", *build(function), message)
    for name, call in {
        "init": lambda: snnjax.init(*between(recurrent)),
        "convert": lambda: snnjax.convert(*between(recurrent), steps=4),
    }.items():
        message = f"scan(.|\n)*{RECURRENCE}"
        yield Refusal(f"recurrence in {name}", call, message, snnjax.ConversionError)


# ------------------------------------------------ examples that would reach another


def mixing(mix, size=4):
    """A network that does this with its activations h, [B, 6]."""
    fn = lambda w, x: mix(relu(x @ w))  # noqa: E731
    return fn, np.ones((3, 6)), np.ones((size, 3))


def convolved(x, kernel, **options):
    numbers = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1,), "VALID", dimension_numbers=numbers, **options
    )


MEETINGS = {  # what fn does with its activations h [B, 6], or with x
    "reversed behind a barrier": lambda h: jax.lax.optimization_barrier((h, h))[1][
        ::-1
    ],
    "a kernel of activations": lambda h: convolved(
        jnp.ones((1, 6, 1)), h.T[None].transpose(1, 0, 2)
    ),
    "groups of the batch": lambda h: convolved(
        h[..., None], jnp.ones((1, 1, len(h))), batch_group_count=len(h)
    ),
    "a mean": lambda h: h - h.mean(0),
    "a maximum": lambda h: h - h.max(0),
    "a running sum": lambda h: jnp.cumsum(h, 0),
    "examples shifted": lambda h: jnp.roll(h, 1, 0),
    "examples moved down": lambda h: jnp.pad(h, ((1, 0), (0, 0)))[:-1],
    "a reverse behind a gather": lambda h: h[:, [1, 0, 2, 3, 5, 4]][::-1],
    "windows": lambda h: jax.lax.reduce_window(
        h, 0.0, jax.lax.add, (3, 1), (1, 1), "SAME"
    ),
    "a product from the left": lambda h: jnp.ones((len(h), len(h))) @ h,
    "pairs": lambda h: (h[:, None] - h[None]).sum(1),
    "rows of others": lambda h: h[jnp.arange(len(h))[::-1]],
    "sums of rows": lambda h: jax.ops.segment_sum(h, jnp.arange(len(h)) // 2, len(h)),
    "chosen rows": lambda h: h[np.array([0, 0, 1])],
    "one row": lambda h: h.at[0].set(1.0),
    "the first two": lambda h: h[:2],
    "axes exchanged": lambda h: h.T.reshape(h.shape),
    "tokens in another order": lambda h: h.reshape(-1, 2).reshape(3, -1, 2)[0],
}
SIZES = {  # what is different in a batch of another size, or at another place in it
    "a quotient": lambda h: h / len(h),
    "a quotient from two on": lambda h: h / max(len(h), 2),
    "an even batch reversed": lambda h: h if len(h) % 2 else h[::-1],
    "an odd batch reversed": lambda h: h[::-1] if len(h) % 2 else h,
    "places": lambda h: h * jnp.arange(len(h))[:, None],
    "places of NumPy": lambda h: h * np.arange(len(h), dtype=np.float32)[:, None],
    "a loop": lambda h: jnp.stack([jnp.sin(row) for row in h]),
    "a scan": scanned_examples,
    "an index in a loop": lambda h: jax.lax.fori_loop(
        0, 3, lambda i, h: h + h[:, (i + len(h)) % 6, None], h
    ),
    "an output": lambda h: (h, jnp.arange(len(h))),
    "an output each": lambda h: list(h),
}
ONE_OF_MANY = {  # what is different for many examples than for one
    "the first": lambda x: x[:32],
    "a hundred": lambda x: x if len(x) > 100 else -x,
    "two": lambda x: x if len(x) > 1 else -x,
    "two, squeezed": lambda x: (x if len(x) > 1 else -x)[:, :1].squeeze(),
}


def meetings_refused():
    for name, mix in MEETINGS.items():
        yield unconvertible(name, *mixing(mix), "one example would reach another")
    statistics = mixing(lambda h: h - h.mean(0))
    words = "as a BatchNorm in training mode does(.|\n)*model.eval.. in nnx"
    yield unconvertible("statistics", *statistics, words)
    pooled = mixing(lambda h: h.mean(0))
    words = (
        r"sums over the batch(.|\n)*a network of one example as jax.vmap\(fn, in_axes"
    )
    yield unconvertible("a network of one example that pools", *pooled, words)
    for name, mix in SIZES.items():
        yield unconvertible(name, *mixing(mix), "number of examples")
    message = "number of examples|an output has shape"
    for name, mix in ONE_OF_MANY.items():
        yield unconvertible(f"one example and {name}", *mixing(mix, 128), message)
    for size in (1, 4):
        message = rf"fn takes {size} examples? and not [14], .*any number\n.*len\(x\)"
        fixed = lambda h, size=size: h.reshape(size, 6)  # noqa: E731
        yield unconvertible(f"{size} in fn", *mixing(fixed, size), message)


# --------------------------------------------------------- outputs, params and images


def batch_behind(p, x):
    """Four outputs of four images: the shape does not tell."""
    return (relu(x @ p["w1"]) @ jnp.ones((6, 4))).T


def hidden(p, x):
    return relu(x @ p["w1"])


def loop_over_examples(params, x):
    hidden = jax.lax.map(lambda example: jax.nn.relu(example @ params["w1"]), x)
    return hidden @ params["w3"], {}


def hidden_branch(p, x):
    """A branch in a network in training mode."""
    x = hidden(p, x)
    x = jax.lax.cond(x.sum() > 0, lambda x: jnp.clip(x, 0), jnp.negative, x)
    return x @ p["w3"], None


NOTHING = "no ReLU, .*nothing would spike"
SHAPES = {
    "no activation": (lambda p, x: x @ p["w1"], VECTORS, NOTHING),
    "a max-pool alone": (lambda p, x: max_pool(x).sum((1, 2)), PIXELS, NOTHING),
    "tanh at the end": (lambda p, x: jnp.tanh(x @ p["w1"]), VECTORS, NOTHING),
    "log-softmax alone": (
        lambda p, x: jax.nn.log_softmax(x @ p["w1"]),
        VECTORS,
        NOTHING,
    ),
    "the batch behind": (
        batch_behind,
        VECTORS,
        r"an output has shape \(4, B\), .*must be the batch",
    ),
    "single numbers": (lambda p, x: relu(x * 2), jnp.ones(3), r"x\[:, None\]"),
    "a single example": (
        hidden,
        VECTORS[0],
        r"x has shape \(4,\), but its .*\n.*pass a single example as x\[None\]",
    ),
    "a network of one example, without its batch": (
        lambda p, x: jax.nn.relu(p["w1"].T @ x),
        VECTORS[0],
        r"x has shape \(4,\)(.|\n)*a network of one example as jax.vmap\(fn, in_axes",
    ),
    "a sum": (lambda p, x: hidden(p, x).sum(), VECTORS, r"an output has shape \(\)"),
    "a constant output": (
        lambda p, x: (hidden(p, x), 3.0),
        VECTORS,
        "return only what depends on x",
    ),
    "any": (lambda p, x: (hidden(p, x) > 0).any(-1), VECTORS, "truth value"),
    "all": (lambda p, x: (hidden(p, x) > 0).all(-1), VECTORS, "truth value"),
}


def shapes_refused():
    for name, (fn, x, message) in SHAPES.items():
        yield unconvertible(name, fn, FLAT, x, message)


def dense_params(**params):
    """`snnjax.sites` of a layer with these parameters."""
    fn = lambda p, x: relu(x @ p["w"])  # noqa: E731
    params = {"w": jnp.ones((3, 2)), **params}
    return lambda: snnjax.sites(fn, params, jnp.ones((1, 3)))


def dense_examples(x):
    """`snnjax.sites` of a layer of these images."""
    return lambda: snnjax.sites(lambda p, x: relu(x["a"] @ p), np.ones((3, 2)), x)


ARGUMENTS = [
    Refusal(
        "a word in params", dense_params(act="relu"), "params hold str 'relu' at act"
    ),
    Refusal(
        "complex params",
        dense_params(w=1j * jnp.ones((3, 2))),
        "params hold complex numbers at w",
    ),
    Refusal("a function in params", dense_params(f=jnp.tanh), "eqx.partition"),
    Refusal(
        "arrays of other lengths",
        dense_examples({"a": np.ones((2, 3)), "b": np.ones((3, 3))}),
        "arrays of 2, 3 examples",
    ),
    Refusal(
        "bytes",
        dense_examples({"a": np.ones((2, 3), np.int8)}),
        r"x\['a'\] has dtype int8",
    ),
    Refusal("a number for x", dense_examples({"a": 1.0}), r"x\['a'\] is a float"),
    Refusal("no array", dense_examples({}), "without an array"),
    Refusal(
        "a hidden branch",
        lambda: snnjax.init(hidden_branch, FLAT, VECTORS, has_aux=True),
        "a ReLU inside a branch",
        snnjax.ConversionError,
    ),
    Refusal(
        "a loop over the examples in training",
        lambda: snnjax.init(loop_over_examples, FLAT, VECTORS, has_aux=True),
        "(?s)fn computes with the number of examples.*no loop over examples",
        snnjax.ConversionError,
    ),
    Refusal(
        "whole numbers to encode",
        lambda: snnjax.encode(jnp.arange(3)),
        "x has dtype int32; allowed: floating point",
    ),
]
QUANTIZED = {
    "0": (0.0, 4, "maximum is 0.0; allowed: finite and > 0"),
    "inf": (np.inf, 4, "maximum is inf; allowed: finite and > 0"),
    "beyond float32": (
        1e39,
        4,
        "maximum is 1e.39; allowed: finite and > 0, as float32",
    ),
    "below float32": (
        1e-40,
        4,
        "maximum is 1e-40; allowed: finite and > 0, as float32",
    ),
    "None": (None, 4, "maximum is None; allowed: a number, or an array"),
    "two maxima": (
        np.ones(2),
        4,
        r"maximum has shape \(2,\) and x \(3,\); allowed: one",
    ),
    "maxima of images": (
        np.ones((4, 3)),
        4,
        r"maximum has shape \(4, 3\) and x \(3,\); allowed: one",
    ),
    "many levels": (1.0, 2**23 + 1, "levels is 8388609; allowed: 1 to 8388608"),
    "no levels": (1.0, 0, "levels is 0; allowed"),
    "half a level": (1.0, 2.5, "levels is 2.5; allowed"),
}


def activations_refused():
    for maximum in (-1.0, 0, jnp.array(-1.0), np.array([1.0, 0.0])):
        clip = functools.partial(snnjax.clipped_relu, jnp.ones(2), maximum)
        yield Refusal(
            f"clipped at {maximum!r}", clip, "maximum is .*allowed: finite and > 0"
        )
    x = np.ones(3, np.float32)
    for name, (maximum, levels, message) in QUANTIZED.items():
        quantize = functools.partial(snnjax.quantized_relu, x, maximum, levels)
        yield Refusal(f"quantized, {name}", quantize, message)


# ------------------------------------------------------------------ users' mistakes

FEATURES = np.ones((4, 5), "float32")
IMAGES = np.ones((4, 8, 8, 3), "float32")
LABELS = np.arange(4)
PARAMS = {"hidden": jnp.ones((5, 6)), "readout": jnp.ones((6, 3))}


def network(params, x):
    return jax.nn.relu(x @ params["hidden"]) @ params["readout"]


def decides(params, x):
    return network(params, x if x.sum() > 0 else -x)


def scales_by_a_float(params, x):
    return network(params, x / float(x.max()))


def scales(params, x):
    return network(params, (x[:, None] / 255).reshape(len(x), -1))


def uses_numpy(params, x):
    return np.maximum(x @ params["hidden"], 0) @ params["readout"]


def folds_time(params, x):
    hidden = jax.nn.relu(x @ params["hidden"])
    return hidden.reshape(3, -1, 6).mean(0) @ params["readout"]


def names_itself(params, x):
    return {"logits": network(params, x), "name": "network"}


def multiplies_columns(params, x):
    """A network of one example, a vector."""
    return params["readout"].T @ relu(params["hidden"].T @ x)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


VARIABLES = variables(CNN(), IMAGES)
CHANNELS_FIRST = IMAGES.transpose(0, 3, 1, 2)


class Tensor:
    """An array of a library that NumPy knows nothing of."""

    __module__, shape, dtype = "torch", (4, 5), "torch.float32"


class _Module:
    def __call__(self, x):
        return x


class TorchModule:
    __module__ = "torch.nn"

    def __call__(self, *inputs):
        raise AssertionError("not called")


MISTAKES = {
    "a tensor for x": (
        network,
        PARAMS,
        Tensor(),
        r"torch.Tensor .*tensor.numpy\(force=True\)",
    ),
    "a tensor in params": (network, {"hidden": Tensor()}, FEATURES, r"numpy\(force"),
    "a torch module": (TorchModule(), PARAMS, FEATURES, "snnjax.torch.function"),
    "a linen module": (CNN(), VARIABLES, IMAGES, "here model.apply"),
    "a part of variables": (CNN().apply, VARIABLES["params"], IMAGES, "all variables"),
    "channels first": (CNN().apply, VARIABLES, CHANNELS_FIRST, "channels first"),
    "a network of one example": (
        multiplies_columns,
        PARAMS,
        FEATURES,
        r"fn takes one example of this x: pass .*jax.vmap\(fn, in_axes=\(None, 0\)\)",
    ),
    "an if": (decides, PARAMS, FEATURES, "jnp.where"),
    "a float": (scales_by_a_float, PARAMS, FEATURES, r"leave float\(\), int\(\) and"),
    "NumPy in fn": (uses_numpy, PARAMS, FEATURES, "jnp.maximum"),
    "labels for x": (network, PARAMS, LABELS, "as labels are: give the images"),
    "pixels": (CNN().apply, VARIABLES, np.int32(IMAGES), "int32 .*'float32'"),
    "pixels that fn scales": (scales, PARAMS, np.uint16(FEATURES), "if fn scales them"),
    "x before params": (network, FEATURES, PARAMS, "Parameters come before x"),
    "no params": (network, None, FEATURES, "give the trained parameters"),
    "keys of another network": (
        network,
        {"first": PARAMS["hidden"]},
        FEATURES,
        "asks for the key 'hidden'.* an SNN, of another network have other keys",
    ),
    "a list of examples": (
        network,
        PARAMS,
        [FEATURES[0]] * 5,
        r"\(5,\) and dtype float32, \.\.\. \(5 arrays\).*give np.stack\(x\)",
    ),
    "a string": (names_itself, PARAMS, FEATURES, "arrays only"),
    "time in the batch": (
        folds_time,
        PARAMS,
        FEATURES[:3],
        r"reshape .*\(1, 6\).*\(3, -1",
    ),
}
FORMS = {
    "spiking with its arguments": (
        lambda: snnjax.spiking(network, PARAMS, FEATURES),
        r"spiking\(fn, ...\)\(snn",
    ),
    "no SNN": (lambda: snnjax.spiking(network)(FEATURES), r"spiking\(fn\)\(snn, x"),
    "sites without params": (
        lambda: snnjax.sites(network, FEATURES),
        r"sites\(fn, params, x\)",
    ),
    "convert without params": (
        lambda: snnjax.convert(network, FEATURES, steps=2),
        r"convert\(fn, params, x",
    ),
    "accuracy of a network": (
        lambda: snnjax.accuracy(network, PARAMS, FEATURES, None),
        r"accuracy\(outputs, labels\), the outputs of snnjax.spiking",
    ),
    "measure without arguments": (
        snnjax.measure,
        r"measure\(fn, snn, x, params=params\)",
    ),
    "sweep without labels": (
        lambda: snnjax.sweep(network, PARAMS, FEATURES, FEATURES),
        r"sweep\(fn, params, images, x, labels,",
    ),
    "quantize without images": (
        lambda: snnjax.deploy.quantize(None),
        r"deploy.quantize\(layers, images, ",
    ),
    "layers without their function": (
        lambda: snnjax.deploy.layers(None),
        r"deploy.layers\(fn, snn, x\)",
    ),
    "a report without a chip": (
        lambda: snnjax.deploy.report(None),
        r"deploy.report\(layers, chip\)",
    ),
    "ONNX without an example": (
        lambda: snnjax.deploy.to_onnx(None),
        r"deploy.to_onnx\(fn, x\)",
    ),
    "best with a misspelled option": (
        lambda: snnjax.best(spike=0.5),
        r"best\(spikes=...\), or another",
    ),
    "finetune without examples": (
        lambda: snnjax.training.finetune(network, None, epochs=1),
        r"training.finetune\(fn, snn, examples, epochs=",
    ),
    "lif with a time constant": (
        lambda: snnjax.lif(tau=2.0),
        r"lif\(.*leak=math.exp\(-1 / tau\)",
    ),
}


def segments_under_a_code():
    """They are refused for the code, not for its wait."""
    options = {"recipe": snnjax.max_activation(), "code": snnjax.codes.radix()}
    x = np.linspace(0, 1, 80, dtype="float32").reshape(16, 5)
    snn = snnjax.convert(network, PARAMS, x, steps=2, **options)
    snnjax.spiking(network, execution=1)(snn, x)


FIVE_FEATURES = np.ones((2, 5), np.float32)


def logits(p, x):
    return relu(x @ p["w1"]) @ p["w3"]


def four_features():
    """An SNN of `logits` for four features."""
    return dataclasses.replace(snnjax.init(logits, FLAT, VECTORS), steps=2, wait=0)


USES_OF_FIVE_FEATURES = {
    "convert": lambda: snnjax.convert(logits, FLAT, FIVE_FEATURES, steps=2),
    "spiking": lambda: snnjax.spiking(logits)(four_features(), FIVE_FEATURES),
    "save": lambda: snnjax.save(
        "none.safetensors", four_features(), fn=logits, x=FIVE_FEATURES
    ),
}


SCALE = "uint8; allowed: floating point, and .* Give images"
NO_IMAGES = {
    "images of uint8": (jnp.ones((4, 4), jnp.uint8), SCALE),
    "no example": (jnp.ones((0, 4)), "at least one example"),
    "a number": (jnp.ones(()), r"allowed: \[batch, ...\]"),
    "lists": ([[1.0]], r"x\[0\]\[0\] is a float; allowed: an array"),
}
NO_FUNCTIONS = {
    "None for fn": None,
    "a module with apply": _Module(),
    "fn of three": lambda params, x, train: x,
    "fn of x alone": lambda x: x,
}


def mistakes_refused():
    for name, (x, message) in NO_IMAGES.items():
        call = functools.partial(snnjax.sites, hidden, FLAT, x)
        yield Refusal(name, call, message)
    for name, fn in NO_FUNCTIONS.items():
        call = functools.partial(snnjax.sites, fn, FLAT, VECTORS)
        message = r"fn is .*allowed: a function fn\(params"
        yield Refusal(name, call, message)
    for name, (fn, params, x, way_out) in MISTAKES.items():
        call = functools.partial(snnjax.sites, fn, params, x)
        yield Refusal(name, call, way_out, Exception)  # fn's own error, with a note
    for name, (call, form) in FORMS.items():
        yield Refusal(name, call, f"allowed: snnjax.{form}", TypeError)
    for name, use in {
        "sites": lambda: snnjax.sites(None, FLAT, VECTORS),
        "init": lambda: snnjax.init(None, FLAT, VECTORS),
        "convert": lambda: snnjax.convert(None, FLAT, VECTORS, steps=4),
        "spiking": lambda: snnjax.spiking(None, steps=4),
    }.items():
        message = r"fn is a NoneType; allowed: a function"
        yield Refusal(f"{name} without a function", use, message)
    yield Refusal(
        "params of another network",
        lambda: snnjax.init(lambda p, x: relu(x @ p["kernel"]), FLAT, VECTORS),
        r"fn asks for the key 'kernel', .* do not have.* params of b1 \(",
    )
    for name, use in USES_OF_FIVE_FEATURES.items():
        message = r"x of shape \((2|batch), 5\) .*, and params of b1"
        yield Refusal(f"{name} with five features", use, message, TypeError)
    yield Refusal(
        "segments under a code", segments_under_a_code, "works with rate coding only"
    )


ROWS = [
    *operations_refused(),
    *operations_beside_refused(),
    *meetings_refused(),
    *shapes_refused(),
    *ARGUMENTS,
    *activations_refused(),
    *mistakes_refused(),
]
