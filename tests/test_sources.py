"""Source networks on disk: weights, cards, and no pickle is ever read."""

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_equal as assert_equal
from flax.traverse_util import flatten_dict

from experiments import convert
from experiments.data import load, normalize, normalized_as
from experiments.models import load_source, read_weights, source_function
from experiments.models import zoo as models
from experiments.models.weights import variables_of
from experiments.running import Convert

PUBLISHED = Path(__file__).parents[1] / "experiments" / "sources"


# ------------------------------------------------------------------------ weights


def resnet_weights():
    return read_weights(PUBLISHED / "resnet20.safetensors")


def test_one_error_lists_all_names():
    weights = resnet_weights()
    model, shape = models.build("resnet20", 10), (32, 32, 3)
    variables = variables_of(model, weights, shape)
    kernel = variables["params"]["Block_2"]["Conv_1"]["kernel"]
    expected = weights["layer1.2.conv2.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    del weights["layer1.0.bn1.bias"]
    weights["aux.weight"] = np.ones(3, np.float32)
    weights["fc.bias"] = np.ones(6, np.float32)
    weights["bn1.weight"] = np.ones(16, np.int8)
    with pytest.raises(ValueError, match="do not fit this ResNet") as caught:
        variables_of(model, weights, shape)
    message = str(caught.value)
    for part in (
        "without a weight:\n    params/Block_0/BatchNorm_0/bias",
        "without a place:\n    aux.weight",
        "params/Dense_0/bias is float32[6]",
        "params/BatchNorm_0/scale is int8[16]",
    ):
        assert part in message
    assert "Block_1" not in message


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_any_precision_become_float32(tmp_path, dtype):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    rounded = {n: np.asarray(w, dtype, "C") for n, w in resnet_weights().items()}
    save_file(rounded, tmp_path / "net.safetensors")
    exact = {name: np.float32(array) for name, array in rounded.items()}
    model = models.build("resnet20", 10)
    variables = variables_of(model, exact, (32, 32, 3))
    stored = read_weights(tmp_path / "net.safetensors")
    assert_equal(variables_of(model, stored, (32, 32, 3)), variables)


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_refused_and_not_read(tmp_path):
    trace = tmp_path / "trace"
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps(Bomb(trace)))
    contents = [*(pickle.dumps(Bomb(trace), n) for n in (2, 4)), zipped.getvalue()]
    for name in ("net.pth", "net.pt", "net.bin", "net.safetensors"):
        words = "pickles are not read.*snnjax.torch.function"
        if name == "net.safetensors":
            words = "cannot be read as safetensors"
        for content in contents:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=words):
                load_source(tmp_path / name)
    assert not trace.exists()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*net\.safetensors"):
        load_source(tmp_path / "net.safetensors")
    (tmp_path / "net.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ValueError, match=r"net\.h5 is no \.safetensors file"):
        load_source(tmp_path / "net.h5")
    pytest.importorskip("safetensors")
    (tmp_path / "net.safetensors").write_text("version https://example.org\n")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_source(tmp_path / "net.safetensors")


# ------------------------------------------------------------- sources, the command


@pytest.fixture
def digits_file(tmp_path):
    """Weights for digits without a card, and what they are in our variables."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    model = models.build("events", 10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    arrays = {}
    for path, array in flatten_dict(variables, sep="/").items():
        arrays[path] = np.array(array, order="C")
    file = tmp_path / "digits.safetensors"
    save_file(arrays, file)
    return file, variables


CARD = {"model": "events", "num_classes": 10, "input_shape": [8, 8, 1]}


def write_card(file, **fields):
    file.with_suffix(".json").write_text(json.dumps(CARD | fields))


def test_a_source_from_a_file_with_a_card_or_the_name_of_its_model(digits_file):
    file, variables = digits_file
    with pytest.raises(ValueError, match=r"no card digits.json .* --model .*resnet20"):
        load_source(file)
    assert_equal(load_source(file, CARD).variables, variables)
    for model, message in (
        ("resnet9", "unknown model 'resnet9'"),
        ("resnet20_clipped", "resnet20_clipped needs the maximum"),
        ("resnet56", "digits.safetensors as resnet56: .* do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            load_source(file, CARD | {"model": model})
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    write_card(file, sha256=digest, clip=2.0, test_accuracy=0.5, dataset="CIFAR-10")
    source = load_source(file)
    assert_equal(source.variables, variables)
    assert source.card["test_accuracy"] == 0.5 and source.card["norm"] is True
    assert float(source.model.activation(jnp.float32(3))) == 2.0
    # An SNN belongs to the data that it is calibrated on.
    digits = load("digits")
    source = convert._source(Convert(checkpoint=str(file)), digits, digits)
    assert source.card["dataset"] == "digits"


def test_a_card_of_other_weights_or_with_a_wrong_field_is_refused(digits_file):
    file, _ = digits_file
    write_card(file)
    with pytest.raises(ValueError, match="events, not resnet20 .*; give --model eve"):
        load_source(file, CARD | {"model": "resnet20"})
    for fields, message in (
        ({"sha256": "0" * 64}, "is not the file that its card describes"),
        ({"input_shape": [8, 8]}, r"input_shape must be \[height, .*, not \[8, 8\]"),
        ({"clipp": 2.0}, "it has unknown fields clipp; allowed: model, "),
        ({"model": ["events"]}, "model must be a name"),
        ({"levels": 10**12}, "levels must be 1 to 65535, not 1000000000000"),
        ({"std": [float("inf")]}, r"std must be a number > 0 per .*, not \[inf\]"),
        ({"num_classes": "10"}, "num_classes must be a whole number > 0"),
        ({"norm": "false"}, "norm must be true, false or null"),
        ({"mean": 0.5}, "mean must be a number per channel, not 0.5"),
        ({"std": [0]}, r"std must be a number > 0 per channel, not \[0\]"),
        ({"test_accuracy": 90.77}, r"test_accuracy must be in \[0, 1\], not 90.77"),
    ):
        write_card(file, **fields)
        with pytest.raises(ValueError, match=message) as caught:
            load_source(file)
        if "sha256" not in fields:
            assert "digits.json does not describe a source" in str(caught.value)


def test_normalization_of_a_card():
    data = load("digits")
    assert normalized_as(data, {}) == data
    assert normalized_as(data, {"mean": [3.0], "std": [200.0]}).std == (200.0,)


def test_the_command_normalizes_as_the_card_says(digits_file, tmp_path):
    file, _ = digits_file
    write_card(file, mean=[200.0], std=[50.0])
    data = load("digits")
    config = Convert(
        checkpoint=str(file),
        calibration_images=32,
        test_images=300,
        out=str(tmp_path / "out"),
    )
    ann = convert.prepare(config, data).ann
    source = load_source(file)
    fn = jax.jit(source_function(source))

    def accuracy(dataset):
        images = normalize(dataset, dataset.test_images[:300])
        logits = fn(source.variables, images)
        return float((logits.argmax(-1) == dataset.test_labels[:300]).mean())

    as_trained = accuracy(data._replace(mean=(200.0,), std=(50.0,)))
    assert ann == pytest.approx(as_trained)
    assert accuracy(data) != pytest.approx(as_trained)


# --------------------------------------------------------------- published networks


def assert_logits(logits, expected):
    """Relative to what tells the images apart, or biases would hide an error."""
    scale = np.abs(expected[0] - expected[1]).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * scale)


def two_images(shape=(32, 32, 3)):
    return np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)


LOGITS = json.loads((Path(__file__).parent / "golden/source_logits.json").read_text())


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.thorough
def test_published_sources_give_the_logits_that_they_gave_in_pytorch(name):
    """Recorded from the modules of version 0.2 that these weights were trained as."""
    pytest.importorskip("safetensors")
    source = load_source(PUBLISHED / f"{name}.safetensors")
    logits = jax.jit(source_function(source))(source.variables, two_images())
    assert_logits(logits, np.array(LOGITS[name]))


def test_weights_that_others_trained_become_a_source_network(tmp_path, monkeypatch):
    """A ResNet-56 with his names: as ResNet-20's, but more blocks and a linear."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from experiments.sources import pretrained

    state = {}
    for name, array in read_weights(PUBLISHED / "resnet20.safetensors").items():
        weights, parts = torch.tensor(array), name.split(".")
        if parts[:2] in ([f"layer{stage}", "2"] for stage in (1, 2, 3)):
            for block in range(2, 9):
                longer = ".".join([parts[0], str(block), *parts[2:]])
                state[f"module.{longer}"] = weights + block
        else:
            state[f"module.{name.replace('fc', 'linear')}"] = weights
    file = tmp_path / "network.th"
    torch.save({"state_dict": state, "best_prec1": 93.39}, file)
    argv = [str(file), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=f"is not the published {pretrained.FILE}"):
        pretrained.main(argv)
    with pytest.raises(ValueError, match=f"none.th; download {pretrained.FILE}"):
        pretrained.main(["none.th"])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(pretrained, "SHA256", digest)
    pretrained.main(argv)
    source = load_source(tmp_path / "out" / "resnet56.safetensors")
    assert source.card["mean"] == [123.675, 116.28, 103.53]
    kernel = source.variables["params"]["Block_26"]["Conv_1"]["kernel"]
    expected = state["module.layer3.8.conv2.weight"].permute(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
