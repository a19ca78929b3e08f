"""What is refused: one table of calls, with a part of the message of each.

A message says what was found, what is allowed, and the way out. To refuse something
new, add a row. What is not affine and yet converts stands beside it, in a table of its
own.
"""

import functools
import importlib
import pkgutil
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import refusals
from networks import (
    FLAT,
    PIXELS,
    VECTORS,
    Net,
    compiled,
    converted,
    max_pool,
    relu,
    simulated,
)
from refusals.capture import (
    PARAMS,
    activation_named,
    attention,
    between,
    ends_in,
    module,
    network,
    recurrent,
    squeeze_excite,
)

import snnjax
from snnjax import __main__
from snnjax.network import identity, with_activation

ROWS = []
for file in pkgutil.iter_modules(refusals.__path__, "refusals."):
    ROWS += importlib.import_module(file.name).ROWS
NAMES = [refusal.name for refusal in ROWS]
assert len({*NAMES}) == len(NAMES)


@pytest.mark.parametrize("refusal", ROWS, ids=NAMES)
def test_a_refusal_says_what_is_wrong_and_the_way_out(refusal):
    with pytest.raises(refusal.error, match=refusal.message) as caught:
        refusal.call()
    if isinstance(caught.value, jax.errors.ConcretizationTypeError):
        assert "refusals/capture.py" in str(caught.value)  # the place of fn, not ours
    for problem in getattr(caught.value, "problems", ()):
        assert problem.reason and problem.remedy


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
    """Name of each network of ALLOWED that reads vectors, or images -> the network."""
    nets = {name: Net(*build(), 0) for name, build in ALLOWED.items()}
    return {name: net for name, net in nets.items() if net.x is INPUTS[x]}


@pytest.mark.parametrize("x", INPUTS)
def test_other_operations_are_operators_that_compute_what_they_did(x):
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
    spiking_outputs, ann_outputs = compiled(fn)(snn, x), jax.jit(fn)(params, x)
    for name in nets:
        mean, ann = np.asarray(spiking_outputs[name]).mean(0), ann_outputs[name]
        atol = 0.05 * abs(ann).max()
        np.testing.assert_allclose(mean, ann, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("function", [jax.nn.gelu, jax.nn.softmax, attention])
def test_several_operations_are_one_operator(function):
    sites = snnjax.sites(*between(function))
    assert sum(not site.fires for site in sites) == 1


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

    def outputs(fn):
        recipe = snnjax.max_activation()
        snn = snnjax.convert(fn, FLAT, VECTORS[:1], steps=4, recipe=recipe)
        return compiled(fn)(snn, VECTORS)

    assert snnjax.sites(folded, FLAT, VECTORS)[0].shape == (2, 6)
    np.testing.assert_array_equal(outputs(folded), outputs(unfolded))


@pytest.mark.parametrize("name", ["own ReLU", "own ReLU6", "own clipped ReLU"])
def test_an_activation_of_ones_own_is_not_taken_for_a_known_one(name):
    sites = snnjax.sites(*ALLOWED[name]())
    firing = [site.name for site in sites if site.fires]
    assert firing == ["w1/relu", "w2/encoder", "w2/relu"]


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

    outputs, ann_outputs = simulated(
        fn, FLAT, VECTORS, steps=64, recipe=snnjax.max_activation()
    )
    means = [output.mean(0) for output in outputs]
    np.testing.assert_allclose(means, ann_outputs, atol=0.1)


def test_a_single_image_causes_one_warning_at_the_users_line():
    x = np.linspace(0, 1, 5, dtype="float32")[None]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        snnjax.convert(network, PARAMS, x, steps=2)
    assert [
        "fitted to 1 sample each, and" in str(warning.message) for warning in shown
    ] == [True]
    assert shown[0].filename == __file__


def test_the_report_of_a_bug_takes_no_words(capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["bogus"])
    assert "unrecognized arguments: bogus" in capsys.readouterr().err
    __main__.main([])
    assert capsys.readouterr().out.startswith(f"snnjax {snnjax.__version__}")
