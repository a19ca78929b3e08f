"""Source networks: shapes, sizes, normalisation and the activation they are given."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import snnjax
from experiments.models import zoo as models


def _parameters(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _shape(name):
    sizes = {"digits_resnet": (8, 8, 1), "resnet34": (64, 64, 3)}
    return (2, *sizes.get(name, (32, 32, 3)))


@pytest.mark.parametrize(
    "name, norm",
    [(name, True) for name in models.NAMES]
    + [(name, False) for name in ("resnet20", "vgg8", "mobilenet", "small", "events")],
)
def test_logits_and_normalisation(name, norm):
    clip = 2.0 if name.endswith("_clipped") else None
    model = models.build(name, 7, norm=norm, clip=clip)
    has_batch_norm = norm and name != "convnext"
    images = jax.ShapeDtypeStruct(_shape(name), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    logits = jax.eval_shape(model.apply, variables, images)
    assert logits.shape == (2, 7)
    assert ("batch_stats" in variables) == has_batch_norm
    training = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]),
        variables,
        images,
    )
    assert training[0].shape == (2, 7)


@pytest.mark.parametrize(
    "name, millions",
    # He et al. 2016, table 6, for the first three; with BatchNorm.
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet56", 0.85), ("mobilenet", 3.22)],
)
def test_parameters(name, millions):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(models.build(name, 10).init, jax.random.key(0), images)
    assert _parameters(variables) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    "name, millions",  # as torchvision states them
    [
        ("resnet18", 11.69),
        ("resnet34", 21.80),
        ("vgg16", 138.36),
        ("mobilenet_v2", 3.5),
    ],
)
def test_parameters_of_torchvision(name, millions):
    model = models.build(f"torchvision_{name}", 1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert _parameters(variables) / 1e6 == pytest.approx(millions, abs=0.005)


def test_a_clipped_network_needs_its_clip():
    with pytest.raises(ValueError, match="resnet20_clipped needs the maximum"):
        models.build("resnet20_clipped", 10)


def test_identity_shortcut_subsamples_and_pads():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
    y = models._subsample(x, 2, 6)
    np.testing.assert_array_equal(y[..., 2:4], x[:, ::2, ::2])
    assert not y[..., :2].any() and not y[..., 4:].any()


def test_every_activation_is_the_one_given():
    calls = []

    def activation(x):
        calls.append(x.shape)
        return nn.relu(x)

    model = models.ResNet(10, blocks=(1, 1, 1), activation=activation)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert len(calls) == 1 + 2 * 3


def test_clip_bounds_the_activation():
    model = models.build("digits_resnet", 10, clip=0.5)
    values = model.activation(jnp.array([-1.0, 0.2, 3.0]))
    np.testing.assert_allclose(values, [0, 0.2, 0.5])


def test_every_quantized_activation_has_a_maximum_of_its_own():
    model = models.build("digits_resnet", 10, levels=4)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    params = flatten_dict(model.init(jax.random.key(1), images)["params"])
    maxima = [float(jnp.exp(w)) for path, w in params.items() if "maxi" in path[-1]]
    assert len(set(maxima)) == 7 and min(maxima) > 0
    # Where no value is positive, as in shapes alone, the first maximum is 1.
    params = model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))["params"]
    assert params["QuantizedReLU_0"]["log_maximum"] == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clip": 1.0, "levels": 4}, "a quantized ReLU trains its maximum; give one"),
        ({"levels": 0}, "levels must be >= 1, not 0"),
        ({"clip": 0.0}, "clip must be positive, not 0.0"),
    ],
)
def test_activations_that_no_network_has(options, message):
    with pytest.raises(ValueError, match=message):
        models.build("resnet20", 10, **options)
    with pytest.raises(ValueError, match="vit has no ReLUs that clip or levels could"):
        models.build("vit", 10, levels=4)


def test_depthwise_kernels_are_scaled_by_their_own_inputs():
    block = models.Separable(8, 1, norm=False, activation=nn.relu)
    params = block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 256)), True)["params"]
    assert params["Conv_0"]["kernel"].std() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert params["Conv_1"]["kernel"].std() == pytest.approx((2 / 8) ** 0.5, rel=0.05)


def test_errors():
    with pytest.raises(ValueError, match="'resnet9'; choose one of .*resnet20"):
        models.build("resnet9", 10)
    with pytest.raises(ValueError, match="at least 32x32 pixels, not 28x28"):
        images = jnp.zeros((1, 28, 28, 1))
        jax.eval_shape(models.build("vgg16", 10).init, jax.random.key(0), images)
    with pytest.raises(ValueError, match="clip must be positive, not 0"):
        models.build("resnet20", 10, clip=0)


QUICK = ("events",)


@pytest.mark.parametrize("recipe", ["best", "advanced"])
@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in models.NAMES
    ],
)
def test_every_model_is_converted(name, recipe):
    """With random weights, at a small size."""
    clip = 2.0 if name.endswith("_clipped") else None
    model = models.build(name, 7, clip=clip)
    x = jax.random.normal(jax.random.key(0), (4, *_shape(name)[1:]))
    variables = jax.jit(model.init)(jax.random.key(1), x)

    def fn(variables, x):
        return model.apply(variables, x, train=False)

    recipes = {"best": snnjax.best(), "advanced": snnjax.advanced(iterations=1)}
    with warnings.catch_warnings():  # of weights that several sites share
        warnings.simplefilter("ignore")
        snn = snnjax.convert(fn, variables, x, steps=2, recipe=recipes[recipe])
    outputs = jax.jit(snnjax.spiking(fn, steps=2))(snn, x)
    assert outputs.shape == (2, 4, 7) and jnp.isfinite(outputs).all()
