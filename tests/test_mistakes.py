"""What users get wrong at the door: each error ends with the way out."""

import warnings
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snnjax
from snnjax import __main__

FEATURES, IMAGES = np.ones((4, 5), "float32"), np.ones((4, 8, 8, 3), "float32")
LABELS = np.arange(4)
PARAMS = {"hidden": jnp.ones((5, 6)), "readout": jnp.ones((6, 3))}


def network(params, x):
    return jax.nn.relu(x @ params["hidden"]) @ params["readout"]


def decides(params, x):
    return network(params, x if x.sum() > 0 else -x)


def scales(params, x):
    return network(params, (x[:, None] / 255).reshape(len(x), -1))


def uses_numpy(params, x):
    return np.maximum(x @ params["hidden"], 0) @ params["readout"]


def names_itself(params, x):
    return {"logits": network(params, x), "name": "network"}


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


VARIABLES = CNN().init(jax.random.key(0), IMAGES)
CHANNELS_FIRST = IMAGES.transpose(0, 3, 1, 2)


class Tensor:
    """An array of a library that NumPy knows nothing of."""

    __module__, shape, dtype = "torch", (4, 5), "torch.float32"


class TorchModule:
    __module__ = "torch.nn"

    def __call__(self, *inputs):
        raise AssertionError("not called")


MISTAKES = {
    "a tensor for x": (network, PARAMS, Tensor(), "torch.Tensor .*tensor.numpy()"),
    "a tensor in params": (network, {"hidden": Tensor()}, FEATURES, "numpy()"),
    "a torch module": (TorchModule(), PARAMS, FEATURES, "snnjax.torch.function"),
    "a linen module": (CNN(), VARIABLES, IMAGES, "here model.apply"),
    "a part of variables": (CNN().apply, VARIABLES["params"], IMAGES, "all variables"),
    "channels first": (CNN().apply, VARIABLES, CHANNELS_FIRST, "channels first"),
    "an if": (decides, PARAMS, FEATURES, "jnp.where"),
    "NumPy in fn": (uses_numpy, PARAMS, FEATURES, "jnp.maximum"),
    "labels for x": (network, PARAMS, LABELS, "as labels are: give the images"),
    "pixels": (CNN().apply, VARIABLES, np.int32(IMAGES), "int32 .*'float32'"),
    "pixels that fn scales": (scales, PARAMS, np.uint16(FEATURES), "if fn scales them"),
    "x before params": (network, FEATURES, PARAMS, "Parameters come before x"),
    "no params": (network, None, FEATURES, "give the trained parameters"),
    "a string": (names_itself, PARAMS, FEATURES, "arrays only"),
}


@pytest.mark.parametrize("fn, params, x, way_out", MISTAKES.values(), ids=MISTAKES)
def test_an_error_names_the_way_out(fn, params, x, way_out):
    with pytest.raises(Exception) as caught:
        snnjax.sites(fn, params, x)
    error = caught.value
    assert caught.match(way_out)
    if isinstance(error, jax.errors.ConcretizationTypeError):
        assert Path(__file__).name in str(error)  # the place of fn, not of ours


@pytest.mark.parametrize(
    "call, form",
    [
        (lambda: snnjax.spiking(network, PARAMS, FEATURES), r"spiking\(fn, ...\)\(snn"),
        (lambda: snnjax.spiking(network)(FEATURES), r"spiking\(fn\)\(snn, x"),
        (lambda: snnjax.sites(network, FEATURES), r"sites\(fn, params, x\)"),
        (lambda: snnjax.convert(network, FEATURES, steps=2), r"convert\(fn, params, x"),
    ],
    ids=["spiking with its arguments", "no SNN", "no params", "convert without params"],
)
def test_a_call_that_lacks_an_argument_shows_the_right_one(call, form):
    with pytest.raises(TypeError, match=f"allowed: snnjax.{form}"):
        call()


def test_segments_under_a_code_blame_the_code_and_not_its_wait():
    options = {"recipe": snnjax.max_activation(), "code": snnjax.codes.radix()}
    x = np.linspace(0, 1, 80, dtype="float32").reshape(16, 5)
    snn = snnjax.convert(network, PARAMS, x, steps=2, **options)
    with pytest.raises(ValueError, match="works with rate coding only"):
        snnjax.spiking(network, execution=1)(snn, x)


def test_a_single_image_causes_one_warning_at_the_users_line():
    x = np.linspace(0, 1, 5, dtype="float32")[None]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        snnjax.convert(network, PARAMS, x, steps=2)
    assert ["1 samples each" in str(warning.message) for warning in shown] == [True]
    assert shown[0].filename == __file__


def test_in_training_mode_a_relu_behind_a_reshape_that_folds_time_fires():
    steps, batch = 3, 4

    def fn(params, x):
        hidden = jax.nn.relu(x @ params["hidden"])
        delayed = hidden.reshape(steps, -1, 6)  # e.g. shifted along time by a user
        logits = jax.nn.relu(delayed.reshape(-1, 6) @ params["readout"])
        return logits, logits

    x = jnp.ones((steps * batch, 5))
    snn = snnjax.init(fn, PARAMS, x, model=snnjax.lif(leak=0.9), has_aux=True)
    assert list(snn.neurons) == ["hidden/relu", "readout/relu"]


def test_an_snn_of_a_function_that_folds_time_says_which_reshape_fails():
    def fn(params, x):
        hidden = jax.nn.relu(x @ params["hidden"])
        return hidden.reshape(3, -1, 6).mean(0) @ params["readout"]

    with pytest.raises(snnjax.ConversionError, match=r"reshape .*\(1, 6\).*\(3, -1"):
        snnjax.sites(fn, PARAMS, FEATURES[:3])


def test_the_report_of_a_bug_takes_no_words(capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["bogus"])
    assert "unrecognized arguments: bogus" in capsys.readouterr().err
    __main__.main([])
    assert capsys.readouterr().out.startswith(f"snnjax {snnjax.__version__}")
