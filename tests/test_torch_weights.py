"""PyTorch weights: every name has its place, logits agree, no pickle is ever read."""

import functools
import hashlib
import json
import pickle
import re
import textwrap
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from experiments import convert
from experiments.data import load, normalize, normalized_as
from experiments.models import load_source, read_weights, source_function, to_flax
from experiments.models import zoo as models
from experiments.running import Convert

# Small networks and the size of their images. MobileNets and transformers are not here:
# further down they are compared with networks of PyTorch, which name their weights.
FAMILIES = {
    "option A": (
        models.ResNet(5, blocks=(2, 1), channels=(4, 6), stem=((4, 1),)),
        (8, 8, 3),
    ),
    "projection": (
        models.ResNet(5, blocks=(1, 12), channels=(4, 6), projection=True),
        (8, 8, 3),
    ),
    "stem of three": (
        models.ResNet(5, blocks=(1,), channels=(6,), stem=((4, 1), (5, 1), (6, 1))),
        (8, 8, 3),
    ),
    "no norm": (models.VGG(5, stages=((4, 5), (6,)), norm=False), (8, 8, 3)),
    "vgg": (models.VGG(5, stages=((4,) * 7, (6,)), dense=(7, 8)), (8, 16, 1)),
    "plain": (models.Plain(5, convolutions=((4, 2), (6, 1))), (4, 6, 1)),
}


def random_variables(model, shape):
    """Variables with a different number everywhere."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    leaves, tree = jax.tree.flatten(dict(shapes))
    rng = np.random.default_rng(0)
    numbers = [rng.uniform(0.5, 1.5, x.shape).astype(np.float32) for x in leaves]
    return {"batch_stats": {}, **jax.tree.unflatten(tree, numbers)}


def torch_names(model):
    """PyTorch's names of our layers, written out as the frameworks number them."""
    names = {"Dense_0": "fc" if isinstance(model, models.ResNet) else "classifier"}
    if isinstance(model, models.ResNet):
        names |= {"Conv_0": "conv1", "BatchNorm_0": "bn1"}
        if len(model.stem) == 3:
            names |= {f"Conv_{k}": f"conv1.{3 * k}" for k in range(3)}
            names |= {"BatchNorm_0": "conv1.1", "BatchNorm_1": "conv1.4"}
            names |= {"BatchNorm_2": "bn1"}
        index = 0
        for stage, count in enumerate(model.blocks):
            for block in range(count):
                ours, theirs = f"Block_{index}", f"layer{stage + 1}.{block}"
                for k in range(2):
                    names[f"{ours}/Conv_{k}"] = f"{theirs}.conv{k + 1}"
                    names[f"{ours}/BatchNorm_{k}"] = f"{theirs}.bn{k + 1}"
                names[f"{ours}/Conv_2"] = f"{theirs}.downsample.0"
                names[f"{ours}/BatchNorm_2"] = f"{theirs}.downsample.1"
                index += 1
    else:
        plain = isinstance(model, models.Plain)
        stages = [[c] for c, _ in model.convolutions] if plain else model.stages
        number = conv = 0
        for stage in stages:
            for _ in stage:
                names[f"Conv_{conv}"] = f"features.{number}"
                names[f"BatchNorm_{conv}"] = f"features.{number + 1}"
                number += 3 if model.norm else 2  # convolution, norm, ReLU
                conv += 1
            number += not plain  # pooling
        if not plain and model.dense:
            dense = range(len(model.dense) + 1)
            names |= {f"Dense_{k}": f"classifier.{3 * k}" for k in dense}
    return names


def to_torch(model, variables, shape):
    """The inverse of `to_flax`, by the names of `torch_names`."""
    names, weights = torch_names(model), {}
    for path, array in flatten_dict(variables, sep="/").items():
        _, _, path = path.partition("/")
        layer, _, leaf = path.rpartition("/")
        array = np.asarray(array)
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif layer == "Dense_0" and array.ndim == 2:
            halvings = len(getattr(model, "stages", ()))
            halvings += sum(s == 2 for _, s in getattr(model, "convolutions", ()))
            size = [-(-side // 2**halvings) for side in shape[:2]]
            size = size if halvings else [1, 1]  # the others average all pixels
            by_pixel = array.reshape(*size, -1, array.shape[-1])
            array = by_pixel.transpose(3, 2, 0, 1).reshape(array.shape[-1], -1)
        elif array.ndim == 2:
            array = array.T
        kind = {"kernel": "weight", "scale": "weight", "mean": "running_mean"}
        kind |= {"var": "running_var"}
        weights[f"{names[layer]}.{kind.get(leaf, leaf)}"] = array
    return weights


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def resnet():
    model, shape = FAMILIES["projection"]
    variables = random_variables(model, shape)
    return model, shape, variables, to_torch(model, variables, shape)


# ------------------------------------------------------------------------- names


def test_every_weight_has_one_place_and_every_variable_one_weight():
    for model, shape in FAMILIES.values():
        variables = random_variables(model, shape)
        weights = to_torch(model, variables, shape)
        assert len(weights) == len(jax.tree.leaves(variables))
        shuffled = dict(sorted(weights.items(), reverse=True))
        assert_equal(to_flax(model, shuffled, shape), variables)


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


def test_other_names_for_the_same_thing(resnet):
    model, shape, variables, weights = resnet
    for pattern, other in OTHER_NAMES:
        renamed = {re.sub(pattern, other, name): w for name, w in weights.items()}
        assert renamed.keys() != weights.keys()
        assert_equal(to_flax(model, renamed, shape), variables)
    counters = {"bn1.num_batches_tracked": np.int64(3)}
    assert_equal(to_flax(model, weights | counters, shape), variables)


def test_a_dropout_in_a_sequential_changes_nothing():
    model, shape = FAMILIES["vgg"]
    variables = random_variables(model, shape)
    weights = to_torch(model, variables, shape)

    pattern = re.compile(r"(\w+)\.(\d+)")
    layers = {
        m[0]: m for n, w in weights.items() if w.ndim > 1 and (m := pattern.match(n))
    }
    numbers = [int(match[2]) for match in layers.values()]

    def shifted(match):  # a Dropout and an Identity behind every block
        blocks = sum(number < int(match[2]) - 1 for number in numbers)
        return f"{match[1]}.{int(match[2]) + 2 * blocks}"

    renamed = {pattern.sub(shifted, n): w for n, w in weights.items()}
    assert renamed.keys() != weights.keys()
    assert_equal(to_flax(model, renamed, shape), variables)


def test_a_relu_before_batchnorm_is_another_network():
    model = models.build("vgg8", 10)
    variables = random_variables(model, (32, 32, 3))
    names = to_torch(model, variables, (32, 32, 3))

    def moved(name):  # conv, ReLU, norm in the place of conv, norm, ReLU
        if not name.startswith("features") or names[name].ndim > 1:
            return name
        head, number, leaf = name.rsplit(".", 2)
        return f"{head}.{int(number) + 1}.{leaf}"

    with pytest.raises(ValueError, match="does not follow the convolution .* a ReLU"):
        to_flax(model, {moved(n): w for n, w in names.items()}, (32, 32, 3))


def test_one_error_lists_all_names(resnet):
    model, shape, _, weights = resnet
    wrong = dict(weights)
    del wrong["layer1.0.bn1.bias"]
    wrong["module.aux.weight"] = np.ones(3, np.float32)
    wrong["module.conv1.weight"] = wrong["conv1.weight"]
    wrong["fc.bias"] = np.ones(6, np.float32)
    wrong["bn1.weight"] = np.ones(16, np.int8)
    with pytest.raises(ValueError, match="do not fit this ResNet") as caught:
        to_flax(model, wrong, shape)
    message = str(caught.value)
    for part in (
        "params/Block_0/BatchNorm_0/bias",
        "module.aux.weight",
        "module.conv1.weight",
        r"fc.bias: params/Dense_0/bias would be float32 (6,), but is float32 (5,)",
        "bn1.weight: params/BatchNorm_0/scale would be int8",
        "experiments/models/zoo.py",
    ):
        assert part in message
    assert "layer2" not in message


def test_another_family_or_depth_is_refused(resnet):
    _, shape, _, weights = resnet
    shallow = models.ResNet(5, blocks=(1, 11), channels=(4, 6), projection=True)
    with pytest.raises(ValueError, match=r"layer2\.11\.conv1\.weight"):
        to_flax(shallow, weights, shape)
    with pytest.raises(ValueError, match="allowed: ResNet, VGG"):
        to_flax(nn.Dense(2), {"weight": np.ones((2, 3))}, (1, 1, 3))


# ------------------------------------------------------------------------ arrays


def test_the_first_dense_layer_reads_pixels_in_our_order():
    model, shape = FAMILIES["plain"]
    weights = to_torch(model, random_variables(model, shape), shape)
    matrix = weights["classifier.weight"]
    kernel = to_flax(model, weights, shape)["params"]["Dense_0"]["kernel"]
    x = np.random.default_rng(1).normal(size=(2, 2, 3, 6))  # B, H, W, C
    theirs = x.transpose(0, 3, 1, 2).reshape(2, -1) @ matrix.T
    np.testing.assert_allclose(x.reshape(2, -1) @ kernel, theirs, rtol=1e-5)


def test_a_bias_before_batchnorm_moves_into_its_mean(resnet):
    model, shape, variables, weights = resnet
    bias = np.linspace(-1, 1, 16, dtype=np.float32)
    mean = weights["bn1.running_mean"]
    biased = weights | {"conv1.bias": bias, "bn1.running_mean": mean + bias}
    found = to_flax(model, biased, shape)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), found, variables)
    assert_equal(biased["bn1.running_mean"], mean + bias)  # the input is left alone


# ------------------------------------------------------------------------- files


def test_npz_and_safetensors(resnet, tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    model, shape, variables, weights = resnet
    np.savez(tmp_path / "net.npz", **weights)
    assert_equal(to_flax(model, read_weights(tmp_path / "net.npz"), shape), variables)
    file = tmp_path / "net.safetensors"
    for dtype in ("float32", "float16", "bfloat16", "float64"):
        rounded = {n: np.asarray(w, dtype, order="C") for n, w in weights.items()}
        save_file(rounded, file)
        again = to_torch(model, to_flax(model, read_weights(file), shape), shape)
        for name, array in rounded.items():
            np.testing.assert_array_equal(again[name], np.float32(array))


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_refused_and_not_read(tmp_path):
    trace = tmp_path / "trace"
    for name in ("net.pth", "net.pt", "net.bin", "net.safetensors"):
        for protocol in (2, 4, None):
            file = tmp_path / name
            if protocol is None:
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr("net/data.pkl", pickle.dumps(Bomb(trace)))
            else:
                file.write_bytes(pickle.dumps(Bomb(trace), protocol))
            is_misnamed = file.suffix == ".safetensors"
            words = "read as safetensors" if is_misnamed else "weights_only=True"
            with pytest.raises(ValueError, match=f"{words}[^$]*save_file"):
                load_source(file)
    np.savez(tmp_path / "net.npz", weight=np.array([Bomb(trace)], object))
    with pytest.raises(ValueError, match="without objects"):
        read_weights(tmp_path / "net.npz")
    assert not trace.exists()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*net\.safetensors"):
        load_source(tmp_path / "net.safetensors")
    (tmp_path / "net.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ValueError, match="neither safetensors nor .npz"):
        load_source(tmp_path / "net.h5")
    pytest.importorskip("safetensors")
    (tmp_path / "net.safetensors").write_text("version https://example.org\n")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_source(tmp_path / "net.safetensors")


# ------------------------------------------------------------- sources, the command


@functools.cache
def digits_network():
    model = models.build("events", 10)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


@pytest.fixture
def digits_file(tmp_path):
    """Weights for digits without a card, and what they are in our variables."""
    model, variables = digits_network()
    file = tmp_path / "digits.npz"
    np.savez(file, **to_torch(model, variables, (8, 8, 1)))
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
        ("resnet56", "digits.npz as resnet56: .* do not fit"),
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
        ({"input_shape": [8, 8]}, r"input_shape is \[8, 8\]; allowed: \[height, "),
        ({"clipp": 2.0}, r"unknown are \['clipp'\]; allowed: model, "),
        ({"model": ["events"]}, "model is .*; allowed: a name"),
        ({"levels": 10**12}, "levels is 1000000000000; allowed: 1 to 65535 or null"),
        ({"std": [float("inf")]}, r"std is \[inf\]; allowed: a number > 0 per channel"),
        ({"num_classes": "10"}, "num_classes is '10'; allowed: a whole number > 0"),
        ({"norm": "false"}, "norm is 'false'; allowed: true, false or null"),
        ({"mean": 0.5}, "mean is 0.5; allowed: a number per channel"),
        ({"std": [0]}, r"std is \[0\]; allowed: a number > 0 per channel"),
        ({"test_accuracy": 90.77}, "test_accuracy is 90.77; allowed: a number in 0"),
    ):
        write_card(file, **fields)
        with pytest.raises(ValueError, match=message) as caught:
            load_source(file)
        if "sha256" not in fields:
            assert "digits.json does not describe a source" in str(caught.value)


def test_a_network_worse_than_its_card_is_pointed_out():
    assert convert._beside(None, 0.1, 100) == ""
    assert "less than" not in convert._beside(0.9, 0.88, 100)
    assert "check that its model, clip, mean" in convert._beside(0.9, 0.5, 100)


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
        steps=(2,),
        recipes=("max_activation",),
        seeds=(0,),
        calibration_images=32,
        test_images=300,
        out=str(tmp_path / "out"),
    )
    (result,) = convert.run(config, data=data)
    source = load_source(file)
    fn = jax.jit(source_function(source))

    def accuracy(dataset):
        images = normalize(dataset, dataset.test_images[:300])
        logits = fn(source.variables, images)
        return float((logits.argmax(-1) == dataset.test_labels[:300]).mean())

    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    as_trained = accuracy(data._replace(mean=(200.0,), std=(50.0,)))
    assert found["ann_accuracy"] == pytest.approx(as_trained)
    assert accuracy(data) != pytest.approx(as_trained)
    restored = Convert(restore=config.out, test_images=300)
    assert convert.restore(restored, data=data) == result.final


def test_the_command_says_what_it_needs(digits_file):
    file, _ = digits_file
    with pytest.raises(SystemExit, match="--model NAME, one of"):
        convert.main(["--checkpoint", str(file)])
    with pytest.raises(SystemExit, match="do not fit this ResNet"):
        convert.main(["--checkpoint", str(file), "--model", "digits_resnet"])
    with pytest.raises(SystemExit, match="unknown model 'none'"):
        convert.main(["--model", "none", "--checkpoint", str(file)])


# ----------------------------------------------------------- the same logits in torch


def realistic(network, size):
    """Statistics of BatchNorm near those of the data, so that signals survive."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        network.train()(torch.randn(4, 3, size, size))
        for norm in norms:
            norm.running_mean += 0.1 * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.rand_like(norm.running_var) + 0.5
    return network.eval()


def assert_same_logits(network, model, size):
    torch = pytest.importorskip("torch")
    network = realistic(network, size)
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    weights = {name: w.numpy() for name, w in network.state_dict().items()}
    found = jax.jit(model.apply)(to_flax(model, weights, x.shape[1:]), x)
    # Relative to what tells the images apart, or biases would hide an error.
    scale = np.abs(expected[0] - expected[1]).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)


SOURCES = ("resnet20", "resnet20_clipped", "vgg8", "vgg8_max", "mobilenet_quarter")
SOURCES += ("mobilenet_v3", "vit", "convnext", "whitened_vgg8", "whitened_resnet9")


@pytest.mark.parametrize("name", SOURCES)
def test_published_sources_give_the_same_logits(name):
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from experiments.sources.networks import CLIP, NETWORKS

    assert set(SOURCES) == set(NETWORKS)
    clip = CLIP if name == "resnet20_clipped" else None
    model = models.build(name, 10, clip=clip)
    network = NETWORKS[name]()
    if name.startswith("whitened"):
        network.publish()
    assert_same_logits(network, model, 32)


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
    assert_same_logits(network, models.build(f"torchvision_{name}", 5), size)


@pytest.mark.parametrize("norm", [True, False])
def test_a_small_vgg_of_torchvision_gives_the_same_logits(norm):
    torch = pytest.importorskip("torch")
    vgg = pytest.importorskip("torchvision.models.vgg")
    layers = torch.nn
    network = layers.Sequential()
    network.features = vgg.make_layers([4, "M", 8, 8, "M"], batch_norm=norm)
    network.flatten = layers.Flatten()
    dense = layers.Linear(128, 6), layers.ReLU(), layers.Dropout(), layers.Linear(6, 5)
    network.classifier = layers.Sequential(*dense)
    stages = ((4,), (8, 8))
    model = models.VGG(5, stages=stages, dense=(6,), pool=nn.max_pool, norm=norm)
    assert_same_logits(network, model, 16)


def test_the_recipe_in_the_error_turns_a_pickle_into_weights(resnet, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    model, shape, variables, weights = resnet
    tensors = {n: torch.tensor(w) for n, w in weights.items()}
    file = tmp_path / "net.pth"
    torch.save({"epoch": 3, "state_dict": tensors}, file)
    with pytest.raises(ValueError) as caught:
        read_weights(file)
    lines = [li for li in str(caught.value).splitlines() if li.startswith("    ")]
    assert len(lines) <= 10
    exec(textwrap.dedent("\n".join(lines)), {})
    found = read_weights(tmp_path / "net.safetensors")
    assert_equal(to_flax(model, found, shape), variables)


def test_muon_steps_along_the_nearest_orthogonal_matrix_and_lowers_a_loss():
    torch = pytest.importorskip("torch")
    from experiments.sources.muon import Muon, orthogonal

    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16)):
        matrix = torch.randn(shape)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        step, exact = orthogonal(matrix), left @ right
        singular_values = torch.linalg.svdvals(step)
        assert ((0.6 < singular_values) & (singular_values < 1.3)).all()
        cosines = [
            (x * exact).sum() / (x.norm() * exact.norm()) for x in (step, matrix)
        ]
        assert cosines[0] > max(0.97, cosines[1])
    kernel = torch.nn.Parameter(torch.randn(8, 2, 3, 3))
    target = torch.randn_like(kernel)
    target *= 8**0.5 / target.norm()  # the norm of kernels stays as it is
    optimizer, losses = Muon([kernel], lr=0.1, beta=0.5), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (kernel - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert abs(kernel.norm().item() / 8**0.5 - 1) < 0.1


def test_every_weight_is_in_one_group_of_one_optimizer():
    torch = pytest.importorskip("torch")
    from experiments.sources.muon import Muon
    from experiments.sources.networks import NETWORKS
    from experiments.sources.train import MUON, WHITENED, optimizers_of

    for name in ("whitened_vgg8", "whitened_resnet9", "vit"):
        network = NETWORKS[name]()
        if name in WHITENED:
            network.fit_whitening(torch.randn(20, 3, 8, 8))
        optimizers = optimizers_of(name, network)
        groups = [g["params"] for part in optimizers for g in part.param_groups]
        ids = sorted(id(w) for group in groups for w in group)
        assert ids == sorted(id(w) for w in network.parameters() if w.requires_grad)
        by_muon = [part for part in optimizers if isinstance(part, Muon)]
        assert len(by_muon) == (name in MUON)
        for part in by_muon:
            assert all(w.ndim == 4 for w in part.param_groups[0]["params"])


def test_a_training_goes_on_after_its_last_epoch(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from experiments.data import Dataset
    from experiments.sources import train as sources

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (128, 8, 8, 3)).astype(np.uint8)
    labels = rng.integers(0, 10, 128)
    test, mean, std = (images[:8], labels[:8]), (128.0,) * 3, (64.0,) * 3
    data = Dataset("noise", images, labels, *test, mean, std, 10)

    def weights(checkpoint):
        network, _, _ = sources.train("resnet20", data, 2, 0, tmp_path / checkpoint)
        return [w.detach().numpy() for w in network.parameters()]

    whole = weights("whole.checkpoint")
    save, files = torch.save, []

    def save_then_die(state, file):
        save(state, file)
        files.append(file)
        if len(files) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        weights("killed.checkpoint")
    monkeypatch.undo()
    for resumed, w in zip(weights("killed.checkpoint"), whole, strict=True):
        np.testing.assert_array_equal(resumed, w)
