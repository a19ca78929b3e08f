"""Source networks: shapes, sizes, normalization and the activation they are given."""

import warnings
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import snnjax
from experiments.models import zoo as models


def _shape(name):
    return (2, 8, 8, 1) if name == "digits_resnet" else (2, 32, 32, 3)


@pytest.mark.thorough
def test_every_model_has_logits_and_norms_only_if_it_is_asked():
    """Of each family, in training and in inference; the next test has deeper ones."""
    deeper = {"resnet18", "resnet56"}
    networks = [(name, True) for name in models.NAMES if name not in deeper]
    for name, norm in [*networks, ("resnet20", False), ("events", False)]:
        clip = 2.0 if name.endswith("_clipped") else None
        model = models.build(name, 7, norm=norm, clip=clip)
        images = jax.ShapeDtypeStruct(_shape(name), jnp.float32)
        init = partial(model.init_with_output, train=True)
        training, variables = jax.eval_shape(init, jax.random.key(0), images)
        assert ("batch_stats" in variables) == (norm and name != "convnext")
        logits = jax.eval_shape(model.apply, variables, images)
        assert logits.shape == training.shape == (2, 7)


def test_models_have_as_many_parameters_as_their_papers_say():
    """Of He et al. 2016, table 6, with BatchNorm."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for name, millions in (
        ("resnet20", 0.27),
        ("resnet56", 0.85),
        ("mobilenet", 3.22),
        ("resnet18", 11.25),
    ):
        model = models.build(name, 10)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
        assert sum(sizes) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.thorough
def test_every_quantized_activation_has_a_maximum_of_its_own():
    model = models.build("digits_resnet", 10, levels=4)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    init = jax.jit(model.init)
    params = flatten_dict(init(jax.random.key(1), images)["params"])
    maxima = [float(np.exp(w)) for path, w in params.items() if "maxi" in path[-1]]
    assert len(set(maxima)) == 7 and min(maxima) > 0
    # Where no value is positive, as in shapes alone, the first maximum is 1.
    params = init(jax.random.key(1), jnp.zeros((4, 8, 8, 1)))["params"]
    assert params["QuantizedReLU_0"]["log_maximum"] == 0


def test_depthwise_kernels_are_scaled_by_their_own_inputs():
    layer = models.Layers(norm=False, activation=nn.relu, train=True)
    block = models.Separable(layer, 8, 1)
    params = block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 256)))["params"]
    assert params["Conv_0"]["kernel"].std() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert params["Conv_1"]["kernel"].std() == pytest.approx((2 / 8) ** 0.5, rel=0.05)


@pytest.mark.slow  # tests/test_experiments.py converts a small one
@pytest.mark.parametrize("recipe", [snnjax.best(), snnjax.advanced(iterations=1)])
@pytest.mark.parametrize("name", models.NAMES)
def test_every_model_is_converted(name, recipe):
    """With random weights, at a small size."""
    clip = 2.0 if name.endswith("_clipped") else None
    model = models.build(name, 7, clip=clip)
    x = jax.random.normal(jax.random.key(0), (4, *_shape(name)[1:]))
    variables = jax.jit(model.init)(jax.random.key(1), x)

    def fn(variables, x):
        return model.apply(variables, x, train=False)

    with warnings.catch_warnings():  # of weights that several sites share
        warnings.simplefilter("ignore")
        snn = snnjax.convert(fn, variables, x, steps=2, recipe=recipe)
    outputs = jax.jit(snnjax.spiking(fn, steps=2))(snn, x)
    assert outputs.shape == (2, 4, 7) and jnp.isfinite(outputs).all()
