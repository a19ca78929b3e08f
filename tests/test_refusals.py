"""What cannot be converted is refused by name, with its path and the way out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import FLAT, PIXELS, VECTORS, max_pool, relu

import snnjax

pytestmark = pytest.mark.usefixtures("quick_compilation")


def between(function):
    """A network with ``function`` of the activations between two sites."""

    def fn(p, x):
        return relu(function(relu(x @ p["w1"])) @ p["w2"]) @ p["w3"]

    return fn, FLAT, VECTORS


def module(make, x=PIXELS, **rngs):
    """The same with the linen module that ``make`` gives, or a function."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            x = make(x) if make is squeeze_excite else make()(x)
            return nn.relu(nn.Dense(2)(x))

    net = Net()
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    variables = net.init(keys, x)

    def fn(variables, x):
        out = net.apply(variables, x, mutable=["batch_stats"], rngs=rngs)
        return out[0]

    return fn, variables, x


def squeeze_excite(x):
    gate = nn.sigmoid(nn.Dense(4)(nn.relu(nn.Dense(2)(x.mean((1, 2))))))
    return x * gate[:, None, None]


def attention(x):
    scores = jax.nn.softmax(jnp.einsum("bi,bj->bij", x, x), -1)
    return jnp.einsum("bij,bj->bi", scores, x)


def spread_out(x, maximum):
    """Activations as three positions of two channels, clipped."""
    return snnjax.clipped_relu(x.reshape(4, 3, 2), maximum).reshape(4, 6)


def scanned(x):
    return jax.lax.scan(lambda x, _: (relu(x) / 2, None), x, length=3)[0]


def pooled_from_an_array(x):
    lowest = jnp.array(-jnp.inf)  # traced, so JAX does not know that it is no number
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 1), (1, 1), "VALID")


def counted(x):
    return jax.lax.while_loop(
        lambda s: s[0] < 3, lambda s: (s[0] + 1, relu(s[1])), (0, x)
    )[1]


def looped(x):
    return jax.lax.fori_loop(0, 3, lambda _, x: relu(x - 1), x)


def branched(x):
    return jax.lax.cond(x.shape[0] > 1, relu, jnp.negative, x)


def ends_in(function):
    def fn(p, x):
        return function(relu(x @ p["w1"]) @ p["w3"])

    return fn, FLAT, VECTORS


# network, names of which one must be reported, words of the remedy
REFUSED = {
    "LayerNorm": (lambda: module(nn.LayerNorm), {"rsqrt", "square"}, "BatchNorm"),
    "GroupNorm": (
        lambda: module(lambda: nn.GroupNorm(2)),
        {"rsqrt", "square"},
        "BatchNorm",
    ),
    "BatchNorm in training": (
        lambda: module(lambda: nn.BatchNorm(use_running_average=False)),
        {"rsqrt", "square"},
        "use_running_average=True",
    ),
    "dropout": (
        lambda: module(
            lambda: nn.Dropout(0.5, deterministic=False), dropout=jax.random.key(1)
        ),
        {"random_bits", "threefry2x32", "random_wrap", "shift_right_logical"},
        "deterministic=True",
    ),
    "squeeze-excite": (lambda: module(squeeze_excite), {"mul"}, "gate"),
    "sigmoid": (lambda: between(jax.nn.sigmoid), {"logistic"}, "jax.nn.relu"),
    "SiLU": (lambda: between(jax.nn.silu), {"silu"}, "jax.nn.relu"),
    "GELU": (lambda: between(jax.nn.gelu), {"gelu", "tanh"}, "jax.nn.relu"),
    "leaky ReLU": (lambda: between(jax.nn.leaky_relu), {"leaky_relu"}, "jax.nn.relu"),
    "ELU": (lambda: between(jax.nn.elu), {"elu"}, "jax.nn.relu"),
    "tanh": (lambda: between(jnp.tanh), {"tanh"}, "jax.nn.relu"),
    "softplus": (lambda: between(jax.nn.softplus), {"softplus"}, "jax.nn.relu"),
    "product": (lambda: between(lambda x: x * x[::-1]), {"mul"}, "affine layer"),
    "square": (lambda: between(jnp.square), {"square"}, ""),
    "attention": (lambda: between(attention), {"softmax", "dot_general"}, "attention"),
    "maximum": (lambda: between(lambda x: jnp.maximum(x, 0)), {"max"}, "jax.nn.relu"),
    "clip": (lambda: between(lambda x: jnp.clip(x, 0, 1)), {"max"}, "clipped_relu"),
    "abs": (lambda: between(jnp.abs), {"abs"}, "jax.nn.relu"),
    "where": (lambda: between(lambda x: jnp.where(x > 1, x, 0)), {"gt"}, "logits"),
    "scan": (lambda: between(scanned), {"scan"}, "unroll it in Python"),
    "while": (lambda: between(counted), {"while"}, "unroll it in Python"),
    "fori_loop": (lambda: between(looped), {"scan", "while"}, "unroll it in Python"),
    "cond": (lambda: between(branched), {"cond"}, "static value"),
    "argmax": (lambda: ends_in(lambda x: x.argmax(-1)), {"argmax"}, "logits"),
    "log-softmax": (lambda: ends_in(jax.nn.log_softmax), {"log_softmax"}, "logits"),
    "quantised": (
        lambda: between(lambda x: x.astype(jnp.int8).astype(jnp.float32)),
        {"convert_element_type"},
        "outside fn",
    ),
    "exact GELU": (
        lambda: between(lambda x: jax.nn.gelu(x, approximate=False)),
        {"erfc", "gelu"},
        "jax.nn.relu",
    ),
    "power": (lambda: between(lambda x: x**2), {"square", "integer_pow"}, "affine"),
    "min-pool": (lambda: ends_in(lambda x: x.min(-1)), {"reduce_min"}, "-max-pool(-x)"),
    "mean of the batch": (
        lambda: between(lambda x: x - x.mean(0)),
        {"reduce_sum"},
        "apart",
    ),
    "reversed batch": (lambda: between(lambda x: x[::-1]), {"rev"}, "apart"),
    "shifted batch": (
        lambda: between(lambda x: jnp.roll(x, 1, 0)),
        {"slice", "concatenate"},
        "apart",
    ),
    "chosen examples": (
        lambda: between(lambda x: x[np.array([1, 0, 3, 2])]),
        {"gather"},
        "apart",
    ),
    "scattered examples": (
        lambda: between(lambda x: jnp.zeros_like(x).at[np.array([1, 0, 3, 2])].add(x)),
        {"scatter-add"},
        "apart",
    ),
    "sums of examples": (
        lambda: between(lambda x: jax.ops.segment_sum(x, np.array([0, 0, 1, 1]), 4)),
        {"scatter-add"},
        "apart",
    ),
    "reversed batch behind a gather": (
        lambda: between(lambda x: x[:, np.array([1, 0, 2, 3, 5, 4])][::-1]),
        {"rev"},
        "apart",
    ),
    "two examples in a row": (
        lambda: between(
            lambda x: (x.reshape(2, -1) @ jnp.ones((12, 12))).reshape(4, -1)
        ),
        {"reshape"},
        "apart",
    ),
    "batch and width exchanged": (
        lambda: between(lambda x: x.T.reshape(x.shape)),
        {"reshape"},
        "apart",
    ),
    "examples moved down": (
        lambda: between(lambda x: jnp.zeros((8, 6)).at[1:5].set(x)[:4]),
        {"scatter", "dynamic_update_slice"},
        "apart",
    ),
    "product over the batch": (
        lambda: between(lambda x: jnp.eye(4) @ x),
        {"dot_general"},
        "apart",
    ),
    "maximum that depends on x": (
        lambda: between(lambda x: snnjax.clipped_relu(x, relu(x))),
        {"custom_jvp_call"},
        "constant or a parameter",
    ),
    "maximum of a position and channel": (
        lambda: between(lambda x: spread_out(x, jnp.arange(1.0, 7).reshape(3, 2))),
        {"custom_jvp_call"},
        "one for each channel",
    ),
    "maximum of an example": (
        lambda: between(lambda x: spread_out(x, jnp.arange(1.0, 5)[:, None, None])),
        {"custom_jvp_call"},
        "one for each channel",
    ),
    "sort": (lambda: between(lambda x: jnp.sort(x, -1)), {"sort"}, "logits"),
    "rounding": (lambda: between(jnp.round), {"round"}, "affine operations"),
    "max-pool from an array": (
        lambda: between(pooled_from_an_array),
        {"reduce_window"},
        "-jnp.inf as it is",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    build, operations, remedy = REFUSED[name]
    fn, params, x = build()
    with pytest.raises(snnjax.ConversionError) as caught:
        snnjax.sites(fn, params, x)
    found = {word for problem in caught.value.problems for word in problem.operations}
    assert found & operations
    remedies = " ".join(problem.remedy for problem in caught.value.problems)
    assert remedy in remedies
    assert all(word in str(caught.value) for word in found)


def test_outputs_with_the_batch_behind_are_refused():
    """Four outputs of four images: the shape does not tell."""
    fn, params, x = ends_in(lambda x: (x @ jnp.ones((x.shape[1], 4))).T)
    assert fn(params, x).shape == (4, 4)
    with pytest.raises(snnjax.ConversionError, match="batch on another axis .*first"):
        snnjax.sites(fn, params, x)


@pytest.mark.parametrize("build", [between, ends_in])
def test_a_softmax_is_told_to_end_at_the_logits(build):
    with pytest.raises(snnjax.ConversionError) as caught:
        snnjax.sites(*build(jax.nn.softmax))
    (problem,) = caught.value.problems
    assert "logits" in problem.remedy


def test_an_activation_of_several_operations_is_one_problem():
    with pytest.raises(snnjax.ConversionError) as caught:
        snnjax.sites(*between(jax.nn.gelu))
    (problem,) = caught.value.problems
    assert "jax.nn.relu" in problem.remedy


@pytest.mark.parametrize("run", [snnjax.init, snnjax.convert])
def test_every_entrance_refuses(run):
    steps = {"steps": 4} if run is snnjax.convert else {}
    with pytest.raises(snnjax.ConversionError, match="tanh"):
        run(*between(jnp.tanh), **steps)


def test_all_problems_come_in_one_error_with_their_paths():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.LayerNorm(name="norm")(nn.Dense(4, name="first")(x)))
            x = nn.silu(nn.Dense(4, name="second")(x))
            return nn.log_softmax(nn.Dense(4, name="third")(x))

    net = Net()
    variables = net.init(jax.random.key(0), VECTORS)
    with pytest.raises(snnjax.ConversionError) as caught:
        snnjax.sites(net.apply, variables, VECTORS)
    problems, text = caught.value.problems, str(caught.value)
    assert f"cannot be converted ({len(problems)} places)" in text
    (norm,) = (p for p in problems if "rsqrt" in p.operations)
    (silu,) = (p for p in problems if "silu" in p.operations)
    (softmax,) = (p for p in problems if "log_softmax" in p.operations)
    assert norm.path == "Net/norm"
    assert silu.path == softmax.path == "Net"
    assert all(p.remedy in text and p.reason in text for p in problems)


def test_a_network_without_a_site_is_refused():
    with pytest.raises(snnjax.ConversionError, match="no ReLU, so nothing would spike"):
        snnjax.sites(lambda p, x: x @ p["w1"], FLAT, VECTORS)
    with pytest.raises(snnjax.ConversionError, match="no ReLU"):
        snnjax.sites(lambda p, x: max_pool(x).sum((1, 2)), FLAT, PIXELS)


def test_a_batch_folded_into_another_axis_is_refused():
    def fn(p, x):
        return relu(x.reshape(-1, 2) @ p["w1"][:2]).reshape(4, -1)

    with pytest.raises(snnjax.ConversionError, match=r"reshape\(batch, ...\), not"):
        snnjax.sites(fn, FLAT, VECTORS)


def test_a_pool_over_a_batch_that_is_not_first_is_refused():
    def fn(p, x):
        behind = relu(x * p).transpose(1, 2, 3, 0)
        pooled = jax.lax.reduce_window(
            behind, -jnp.inf, jax.lax.max, (2, 2, 1, 1), (2, 2, 1, 1), "VALID"
        )
        return pooled.transpose(3, 0, 1, 2)

    with pytest.raises(snnjax.ConversionError, match="the batch is not the first axis"):
        snnjax.sites(fn, jnp.ones(()), PIXELS)


def test_a_batch_of_single_numbers_is_refused():
    with pytest.raises(snnjax.ConversionError, match=r"x\[:, None\]"):
        snnjax.sites(lambda p, x: relu(x * 2), FLAT, jnp.ones(3))


def test_a_sum_over_the_batch_is_refused():
    with pytest.raises(snnjax.ConversionError, match="an output has shape \\(\\)"):
        snnjax.sites(lambda p, x: relu(x @ p["w1"]).sum(), FLAT, VECTORS)


def test_a_number_beside_the_outputs_is_refused():
    with pytest.raises(snnjax.ConversionError, match="leave out of fn what x does not"):
        snnjax.sites(lambda p, x: (relu(x @ p["w1"]), 3.0), FLAT, VECTORS)


@pytest.mark.parametrize(
    "x, message",
    [
        (jnp.ones((4, 4), jnp.uint8), "uint8; allowed: floating point. Scale images"),
        (jnp.ones((0, 4)), "at least one example"),
        (jnp.ones(()), "allowed: \\[batch, ...\\]"),
        ([[1.0]], "x is a list; allowed: an array"),
    ],
)
def test_a_wrong_input_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        snnjax.sites(lambda p, x: relu(x @ p["w1"]), FLAT, x)


@pytest.mark.parametrize(
    "use",
    [
        lambda fn: snnjax.sites(fn, FLAT, VECTORS),
        lambda fn: snnjax.convert(fn, FLAT, VECTORS, steps=4),
        lambda fn: snnjax.spiking(fn, steps=4),
    ],
)
def test_what_is_no_function_is_refused(use):
    with pytest.raises(ValueError, match=r"fn is a NoneType; allowed: a function fn\("):
        use(None)


def test_an_unbatched_input_is_refused_with_what_fn_was_given():
    with pytest.raises(snnjax.ConversionError, match="first axis must be the batch"):
        snnjax.sites(lambda p, x: relu(x @ p["w1"]), FLAT, VECTORS[0])


def test_an_error_inside_fn_says_with_what_it_was_called():
    with pytest.raises(TypeError) as caught:
        snnjax.sites(lambda p, x: relu(x @ p["w2"]), FLAT, VECTORS)
    assert "snnjax called fn(params, x) with x of shape (4, 4)" in str(
        caught.value.__notes__
    )


@jax.custom_jvp
def own_relu(x):
    return jnp.maximum(x, 0.5)


@jax.custom_jvp
def own_relu6(x):
    return jnp.minimum(jnp.maximum(x, 0.0), 1.0)


@jax.custom_jvp
def own_clipped_relu(x):
    return jnp.tanh(x)


@pytest.mark.parametrize("own", [own_relu, own_relu6, own_clipped_relu])
def test_an_activation_of_ones_own_is_not_taken_for_a_known_one(own):
    own.fun.__name__ = own.fun.__name__.removeprefix("own_")
    own.defjvp(lambda primals, tangents: (own(*primals), *tangents))
    with pytest.raises(snnjax.ConversionError, match="only stand for a ReLU"):
        snnjax.sites(*between(own))


class _Module:
    def __call__(self, x):
        return x


@pytest.mark.parametrize("fn", [_Module(), lambda params, x, train: x, lambda x: x])
def test_a_function_of_other_arguments_is_refused(fn):
    with pytest.raises(
        ValueError, match=r"fn is .*allowed: a function fn\(params, x\)"
    ):
        snnjax.sites(fn, None, jnp.ones((2, 3)))
