"""PyTorch weights: every name has its place, logits agree, no pickle is ever read."""

import hashlib
import io
import json
import pickle
import re
import textwrap
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_equal as assert_equal

from experiments import convert
from experiments.data import load, normalize, normalized_as
from experiments.models import load_source, read_weights, source_function, to_flax
from experiments.models import zoo as models
from experiments.running import Convert

PUBLISHED = Path(__file__).parents[1] / "experiments" / "sources"


class Network(NamedTuple):
    """A network of PyTorch, its weights, and the same in flax."""

    module: Any
    weights: dict[str, np.ndarray]
    model: nn.Module
    shape: tuple[int, ...]

    @property
    def variables(self):
        return to_flax(self.model, self.weights, self.shape)


@pytest.fixture(scope="module")
def resnet():
    """Shortcuts by projection, and a stem of three convolutions."""
    torch = pytest.importorskip("torch")
    resnet = pytest.importorskip("torchvision.models.resnet")
    module = resnet.ResNet(resnet.BasicBlock, [1] * 4, num_classes=5)
    stem = []
    for inputs, channels, stride in ((3, 4, 2), (4, 5, 1)):
        stem += [torch.nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)]
        stem += [torch.nn.BatchNorm2d(channels), torch.nn.ReLU()]
    last = torch.nn.Conv2d(5, 64, 3, 1, 1, bias=False)
    module.conv1 = torch.nn.Sequential(*stem, last)
    shape, stem = (32, 32, 3), ((4, 2), (5, 1), (64, 1))
    model = models.build("torchvision_resnet18", 5)
    model = model.clone(blocks=(1,) * 4, stem=stem, stem_kernel=3)
    weights = {n: w.numpy() for n, w in realistic(module, shape).state_dict().items()}
    return Network(module, weights, model, shape)


# ------------------------------------------------------------------------- names


OTHER_NAMES = [
    ("^", "module."),
    ("^", "module.model."),
    ("^", "_orig_mod."),
    ("^fc", "linear"),
    ("^fc", "classifier"),
    ("^fc", "classifier.1"),
    ("downsample", "shortcut"),
    ("downsample", "identity"),
    (r"^layer(\d)", r"stage_\1"),
    (r"^(layer\d.*)conv1", r"\1module.conv1"),
]


def test_other_names_for_the_same_thing_in_any_order(resnet):
    for pattern, other in OTHER_NAMES:
        names = reversed(resnet.weights)
        renamed = {re.sub(pattern, other, n): resnet.weights[n] for n in names}
        assert renamed.keys() != resnet.weights.keys()
        assert_equal(to_flax(resnet.model, renamed, resnet.shape), resnet.variables)


def test_a_relu_before_batchnorm_is_another_network():
    weights = read_weights(PUBLISHED / "vgg8.safetensors")

    def moved(name):  # conv, ReLU, norm in the place of conv, norm, ReLU
        if not name.startswith("features") or weights[name].ndim > 1:
            return name
        head, number, leaf = name.rsplit(".", 2)
        return f"{head}.{int(number) + 1}.{leaf}"

    renamed = {moved(name): array for name, array in weights.items()}
    with pytest.raises(ValueError, match="does not follow the convolution .* a ReLU"):
        to_flax(models.build("vgg8", 10), renamed, (32, 32, 3))


def test_one_error_lists_all_names(resnet):
    wrong = dict(resnet.weights)
    del wrong["layer1.0.bn1.bias"]
    wrong["module.aux.weight"] = np.ones(3, np.float32)
    wrong["module.bn1.bias"] = wrong["bn1.bias"]
    wrong["fc.bias"] = np.ones(6, np.float32)
    wrong["bn1.weight"] = np.ones(64, np.int8)
    with pytest.raises(ValueError, match="do not fit this ResNet") as caught:
        to_flax(resnet.model, wrong, resnet.shape)
    message = str(caught.value)
    for part in (
        "params/Block_0/BatchNorm_0/bias",
        "module.aux.weight",
        "module.bn1.bias",
        r"fc.bias: params/Dense_0/bias would be float32 (6,), but is float32 (5,)",
        "bn1.weight: params/BatchNorm_2/scale would be int8",
        "experiments/models/zoo.py",
    ):
        assert part in message
    assert "layer2" not in message


def test_another_family_or_depth_is_refused(resnet):
    shallow = resnet.model.clone(blocks=(1, 1, 1))
    with pytest.raises(ValueError, match=r"layer4\.0\.conv1\.weight"):
        to_flax(shallow, resnet.weights, resnet.shape)
    with pytest.raises(ValueError, match="allowed: ResNet, VGG"):
        to_flax(nn.Dense(2), {"weight": np.ones((2, 3))}, (1, 1, 3))


def test_a_bias_before_batchnorm_moves_into_its_mean(resnet):
    bias = np.linspace(-1, 1, 64, dtype=np.float32)
    mean = resnet.weights["bn1.running_mean"]
    changes = {"conv1.6.bias": bias, "bn1.running_mean": mean + bias}
    variables = to_flax(resnet.model, resnet.weights | changes, resnet.shape)
    chex.assert_trees_all_close(variables, resnet.variables, atol=1e-6)
    assert_equal(changes["bn1.running_mean"], mean + bias)  # the input is left alone


# ------------------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_any_precision_become_float32(resnet, tmp_path, dtype):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    rounded = {n: np.asarray(w, dtype, "C") for n, w in resnet.weights.items()}
    save_file(rounded, tmp_path / "net.safetensors")
    read = read_weights(tmp_path / "net.safetensors")
    exact = {name: np.float32(array) for name, array in rounded.items()}
    variables = to_flax(resnet.model, exact, resnet.shape)
    assert_equal(to_flax(resnet.model, read, resnet.shape), variables)


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
        is_misnamed = name == "net.safetensors"
        words = "read as safetensors" if is_misnamed else "weights_only=True"
        for content in contents:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"{words}[^$]*save_file"):
                load_source(tmp_path / name)
    assert not trace.exists()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*net\.safetensors"):
        load_source(tmp_path / "net.safetensors")
    (tmp_path / "net.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ValueError, match="net.h5 is no .safetensors file"):
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
    params, averages = variables["params"], variables["batch_stats"]
    readout = params["Dense_0"]
    weights = {"fc.weight": readout["kernel"].T, "fc.bias": readout["bias"]}
    names = {"scale": "weight", "mean": "running_mean", "var": "running_var"}
    for i in range(3):  # convolution, norm, ReLU
        kernel, norm = params[f"Conv_{i}"]["kernel"], f"BatchNorm_{i}"
        weights[f"features.{3 * i}.weight"] = kernel.transpose(3, 2, 0, 1)
        for name, array in (params[norm] | averages[norm]).items():
            weights[f"features.{3 * i + 1}.{names.get(name, name)}"] = array
    file = tmp_path / "digits.safetensors"
    save_file({n: np.array(w, order="C") for n, w in weights.items()}, file)
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
    with pytest.raises(ValueError, match="give both, with the 1 channels"):
        normalized_as(data, {"mean": [3.0, 4.0], "std": [1.0, 1.0]})
    with pytest.raises(ValueError, match="multiply its mean and std by 255"):
        normalized_as(data, {"mean": [0.3], "std": [0.4]})


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


# ----------------------------------------------------------- the same logits in torch


def realistic(network, shape):
    """Statistics of BatchNorm near those of the data, so that signals survive."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        height, width, channels = shape
        network.train()(torch.randn(4, channels, height, width))
        for norm in norms:
            norm.running_mean += 0.1 * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.rand_like(norm.running_var) + 0.5
    return network.eval()


def assert_logits(logits, expected):
    """Relative to what tells the images apart, or biases would hide an error."""
    scale = np.abs(expected[0] - expected[1]).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * scale)


def two_images(shape=(32, 32, 3)):
    return np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)


def assert_same_logits(network, model, shape=(32, 32, 3)):
    torch = pytest.importorskip("torch")
    network, x = realistic(network, shape), two_images(shape)
    with torch.no_grad():
        expected = network(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    weights = {name: w.numpy() for name, w in network.state_dict().items()}
    assert_logits(jax.jit(model.apply)(to_flax(model, weights, shape), x), expected)


LOGITS = json.loads((Path(__file__).parent / "golden/source_logits.json").read_text())


@pytest.mark.parametrize("name", LOGITS)
def test_published_sources_give_the_logits_that_they_gave_in_pytorch(name):
    """Recorded from the modules of version 0.2 that these weights were trained as."""
    pytest.importorskip("safetensors")
    source = load_source(PUBLISHED / f"{name}.safetensors")
    logits = jax.jit(source_function(source))(source.variables, two_images())
    assert_logits(logits, np.array(LOGITS[name]))


SLOW = pytest.mark.slow
TORCHVISION = [("resnet18", 32)]
TORCHVISION += [
    pytest.param(name, size, marks=SLOW)
    for name, size in (("resnet34", 64), ("vgg16", 224), ("vgg16_bn", 224))
]


@pytest.mark.parametrize("name, size", TORCHVISION)
def test_torchvision_gives_the_same_logits(name, size):
    torchvision = pytest.importorskip("torchvision")
    network = getattr(torchvision.models, name)(num_classes=5)
    model = models.build(f"torchvision_{name}", 5)
    assert_same_logits(network, model, (size, size, 3))


def test_a_stem_of_three_convolutions_gives_the_same_logits(resnet):
    assert_same_logits(resnet.module, resnet.model, resnet.shape)


@pytest.mark.parametrize("norm", [True, False])
def test_a_small_vgg_gives_the_same_logits_also_with_dropout(norm):
    """The first dense layer reads pixels in the order of PyTorch."""
    torch = pytest.importorskip("torch")
    vgg = pytest.importorskip("torchvision.models.vgg")
    layers = torch.nn
    network = layers.Sequential()
    features = vgg.make_layers([4, "M", 8, 8, "M"], batch_norm=norm)
    dropouts = {layers.ReLU: [layers.Dropout()]}
    parts = [[part, *dropouts.get(type(part), [])] for part in features]
    network.features = layers.Sequential(*sum(parts, []))
    network.flatten = layers.Flatten()
    dense = layers.Linear(64, 6), layers.ReLU(), layers.Dropout(), layers.Linear(6, 5)
    network.classifier = layers.Sequential(*dense)
    stages = ((4,), (8, 8))
    model = models.VGG(5, stages=stages, dense=(6,), pool=nn.max_pool, norm=norm)
    assert_same_logits(network, model, (8, 16, 3))


def test_the_recipe_in_the_error_turns_a_pickle_into_weights(resnet, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    tensors = {n: torch.tensor(w) for n, w in resnet.weights.items()}
    file = tmp_path / "net.pth"
    torch.save({"epoch": 3, "state_dict": tensors}, file)
    with pytest.raises(ValueError) as caught:
        read_weights(file)
    lines = [li for li in str(caught.value).splitlines() if li.startswith("    ")]
    assert len(lines) <= 10
    exec(textwrap.dedent("\n".join(lines)), {})
    weights = read_weights(tmp_path / "net.safetensors")
    assert_equal(to_flax(resnet.model, weights, resnet.shape), resnet.variables)


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
