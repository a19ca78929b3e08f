"""snnjax.torch: a PyTorch module is the same function in JAX, by name and by number."""

import copy
import doctest
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snnjax

torch = pytest.importorskip("torch")
pytest.importorskip("torchax")
nn = torch.nn
DOCS = Path(__file__).parents[1] / "docs"


def code_of(section, page="other_tools"):
    """The Python of a section of a page in docs."""
    page_text = (DOCS / f"{page}.md").read_text()
    text = page_text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S))


class Block(nn.Module):
    """A ReLU used twice, a shared module, a shared weight, two kinds of buffers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.conv2 = self.conv1
        self.conv3 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv3.weight = self.conv1.weight
        self.relu = nn.ReLU(inplace=True)
        self.register_buffer("shift", torch.tensor([0.1, 0.2]))
        self.register_buffer("scale", torch.tensor([2.0, 3.0]), persistent=False)

    def forward(self, x):
        h = self.relu(self.norm(self.conv1(x)))
        h = self.relu(self.conv3(self.conv2(h)) + x)
        means = h.mean((2, 3))[:, :2] * self.scale + self.shift
        return nn.functional.relu(means - torch.ones(2) / 8)


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 3, 3), nn.ReLU6(), nn.MaxPool2d(2), Block()]
    net = nn.Sequential(*parts, nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 4))
    with torch.no_grad():
        net[3].norm.running_mean += 0.2
        net[3].norm.running_var *= 1.5
    return net.eval()


def images(batch):
    draw = np.random.default_rng(0)
    return draw.normal(size=(batch, 1, 8, 8)).astype(np.float32)


def numbers(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def test_a_module_is_the_same_function_for_a_batch_of_any_size(module):
    fn, params = snnjax.torch.function(module, images(2))
    assert repr(fn) == "function(Sequential)"
    for batch in (2, 5):
        outputs = jax.jit(fn)(params, images(batch))
        np.testing.assert_allclose(outputs, numbers(module, images(batch)), atol=1e-6)
    assert list(params) == list(module.state_dict())
    shared = {name: first for name, first in params.items() if isinstance(first, dict)}
    assert shared == {
        "3.conv2.weight": {"3.conv1.weight": None},
        "3.conv2.bias": {"3.conv1.bias": None},
        "3.conv3.weight": {"3.conv1.weight": None},
    }
    sites = [(site.name, site.kind) for site in snnjax.sites(fn, params, images(1))]
    assert sites == [
        ("1/relu", "clipped relu"),
        ("2/max_pool", "max-pool"),
        ("3.relu/relu", "relu"),
        ("3.relu/relu_1", "relu"),
        ("3/relu", "relu"),
        ("5/gelu", "gelu"),
        ("6/encoder", "encoder"),
    ]


def test_calibrated_weights_return_to_pytorch():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8)]
    net = nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 3)).eval()
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    fn, params = snnjax.torch.function(net, x[:2])
    fit = snnjax.calibrators.percentile_threshold(99.9, "channel")
    recipe = snnjax.Recipe([fit, snnjax.calibrators.least_squares_weights()])
    snn = snnjax.convert(fn, params, x, steps=4, recipe=recipe)
    assert np.abs(snn.params["3.weight"] - params["3.weight"]).max() > 1e-3
    net.load_state_dict(snnjax.torch.state_dict(snn.params))
    np.testing.assert_allclose(numbers(net, x), fn(snn.params, x), atol=1e-6)


def test_shared_weights_return_to_pytorch_under_all_their_names(module):
    fn, params = snnjax.torch.function(module, images(2))
    snn = snnjax.convert(fn, params, images(16), steps=4, recipe=snnjax.light())
    doubled = jax.tree.map(lambda leaf: 2 * leaf, snn.params)
    again = copy.deepcopy(module)
    again.load_state_dict(snnjax.torch.state_dict(doubled))
    block = again[3]
    assert block.conv3.weight is block.conv1.weight
    for name, tensor in again.state_dict().items():
        expected = 2 * module.state_dict()[name]
        np.testing.assert_array_equal(tensor, expected)


def test_an_old_torchax_is_named_beside_the_one_that_is_needed(monkeypatch):
    def import_module(name):
        if name == "torchax":
            raise AttributeError("module 'torch' has no attribute '_refs_old'")
        return torch

    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.0.13")
    monkeypatch.setattr("importlib.import_module", import_module)
    with pytest.raises(ImportError, match=r">= 0\.0\.14\S+; found .*torchax 0\.0\.13 "):
        snnjax.torch.function(nn.Linear(1, 1), images(1))


def test_fn_is_pure_and_leaves_no_trace(module):
    fast = torch.backends.mha.get_fastpath_enabled()
    fn, params = snnjax.torch.function(module, images(2))
    x = images(2)
    outputs = np.asarray(fn(params, x))
    weight = module[6].weight
    with torch.no_grad():
        weight += 1
    module.train()
    try:
        np.testing.assert_array_equal(fn(params, x), outputs)
        assert "forward" not in vars(module[6]) and module[6].weight is weight
    finally:
        module.eval()
        with torch.no_grad():
            weight -= 1
    np.testing.assert_array_equal(x, images(2))  # the ReLUs in place had copies
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert (torch.ones(2) + module[6].bias[:2]).device.type == "cpu"


class Computes(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def after_a_relu(function):
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Computes(function)).eval()


def in_part(net):
    net.eval()[1].train()
    return net


OUTSIDE = torch.ones(4)
DROPOUT = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
RULE = "the module 2 (Computes) may not draw random numbers"
MODE = "the module (Sequential) is in training"
COMPUTED = {
    "random": (lambda x: x + torch.rand_like(x), TypeError, RULE),
    "decision": (lambda x: x if x.sum() > 0 else -x, Exception, RULE),
    "no buffer": (lambda x: x + OUTSIDE, AssertionError, RULE),
    "NumPy": (lambda x: torch.from_numpy(x.numpy()), AssertionError, "mixed math"),
    "sort": (lambda x: x.sort()[0], snnjax.ConversionError, "  2: sort"),
    "batch": (lambda x: x - x.mean(0), snnjax.ConversionError, "  2: reduce_sum"),
    # As an operation of torchax that has a fault.
    "fault": (lambda x: x + (type(x) is not torch.Tensor), ValueError, "differ by 1"),
}
REFUSED = {
    "training": (copy.deepcopy(DROPOUT), ValueError, MODE),
    "in part": (in_part(DROPOUT), ValueError, "the module 1 (Dropout) is in training"),
    "class": (nn.Linear, TypeError, "module is a type; allowed"),
}
for name, (function, error, message) in COMPUTED.items():
    REFUSED[name] = after_a_relu(function), error, message


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_module(name):
    module, kind, message = REFUSED[name]
    with pytest.raises(kind) as caught:
        fn, params = snnjax.torch.function(module, np.ones((2, 4), np.float32))
        snnjax.sites(fn, params, jnp.ones((2, 4)))
    notes = getattr(caught.value, "__notes__", [])
    assert message in "\n".join([str(caught.value), *notes])
    assert sum("may not draw" in note for note in notes) <= 1


class Several(nn.Module):
    def forward(self, x, y):
        return {"sum": torch.relu(x + y), "classes": (x - y).argmax(-1)}


def test_the_example_may_have_other_numbers_or_several_inputs():
    for dtype in (torch.bfloat16, torch.float64):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        fn, params = snnjax.torch.function(net.to(dtype), torch.ones(2, 4, dtype=dtype))
        assert fn(params, np.ones((5, 4), np.float32)).shape == (5, 3)
    x = np.float32([[1, -2], [0, 3]])
    fn, params = snnjax.torch.function(Several().eval(), (x, torch.ones(2, 2)))
    outputs = fn(params, (x, np.ones((2, 2), np.float32)))
    np.testing.assert_array_equal(outputs["sum"], [[2, 0], [1, 4]])
    np.testing.assert_array_equal(outputs["classes"], [0, 1])


# Network of torchvision -> the number of its sites of some kinds, and a name.
NETWORKS = {
    "resnet18": ({"relu": 17, "max-pool": 1}, "layer4.1.relu/relu_1"),
    "densenet121": ({"relu": 121}, "features.denseblock4.denselayer16.relu2/relu"),
    "squeezenet1_1": (
        {"relu": 26, "max-pool": 3},
        "features.3.squeeze_activation/relu",
    ),
    "mobilenet_v2": ({"clipped relu": 35}, "features.18.2/relu"),
    "vit_b_32": (
        {"norm": 25, "attention": 12, "gelu": 12},
        "encoder.layers.encoder_layer_3.self_attention/attention",
    ),
    "convnext_tiny": ({"norm": 23, "gelu": 18}, "features.5.2.block.4/gelu"),
}


# The long ones, whose kinds of sites others have, too.
MARKS = {
    "densenet121": pytest.mark.slow,
    "mobilenet_v2": pytest.mark.slow,
    "squeezenet1_1": pytest.mark.thorough,
    "convnext_tiny": pytest.mark.thorough,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS.get(name, ())) for name in NETWORKS]
)
def test_networks_of_torchvision_arrive_as_they_are(name):
    pytest.importorskip("torchvision")
    from benchmarks import torchvision

    kinds, site_name = NETWORKS[name]
    module, x = torchvision.network(name)
    fn, params = snnjax.torch.function(module, x[:2])
    sites = snnjax.sites(fn, params, x)
    assert {kind: sum(s.kind == kind for s in sites) for kind in kinds} == kinds
    assert site_name in [site.name for site in sites]
    if name in ("squeezenet1_1", "vit_b_32"):  # benchmarks.torchvision compares all
        logits = numbers(module, x[:2])
        difference = np.abs(jax.jit(fn)(params, x[:2]) - logits).max()
        assert difference < 1e-5 * np.abs(logits).max()


def test_the_examples_run():
    assert not doctest.testmod(snnjax.torch).failed
    names = {}
    exec(code_of("PyTorch"), names)
    assert names["snn"].steps == 4


def test_the_example_of_the_home_page_runs():
    names = {}
    exec(code_of("I have a PyTorch network", page="index"), names)
    assert names["answers"].shape == (256, 10)


@pytest.mark.filterwarnings("ignore")  # those of Keras
def test_a_model_of_keras_converts(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    names = {}
    exec(code_of("Keras"), names)
    fn, snn, model, x = (names[n] for n in ("fn", "snn", "model", "images"))
    np.testing.assert_allclose(fn(snn.params, x), model(x), atol=1e-5)  # assigned
    kinds = [site.kind for site in snnjax.sites(fn, snn.params, x)]
    assert kinds == ["relu", "max-pool", "relu"]


@pytest.mark.filterwarnings("ignore")  # those of the packages
def test_a_file_of_onnx_converts(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx2torch")
    make, reference = onnx.helper, pytest.importorskip("onnx.reference")
    kernel = np.random.default_rng(0).normal(size=(5, 1, 3, 3)).astype(np.float32)
    image = [make.make_tensor_value_info("x", 1, ["batch", 1, 8, 8])]
    answer = [make.make_tensor_value_info("y", 1, ["batch", 5, 1, 1])]
    nodes = [
        make.make_node("Conv", ["x", "kernel"], ["h"]),
        make.make_node("Relu", ["h"], ["r"]),
        make.make_node("GlobalAveragePool", ["r"], ["y"]),
    ]
    arrays = [onnx.numpy_helper.from_array(kernel, "kernel")]
    opset = [make.make_opsetid("", 17)]
    graph = make.make_graph(nodes, "network", image, answer, arrays)
    file = make.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(file, tmp_path / "network.onnx")
    monkeypatch.chdir(tmp_path)
    names = {"images": images(2)}
    exec(code_of("ONNX"), names)
    (onnx_outputs,) = reference.ReferenceEvaluator(file).run(None, {"x": images(2)})
    np.testing.assert_allclose(
        names["fn"](names["params"], images(2)), onnx_outputs, atol=1e-5
    )
    (site,) = snnjax.sites(names["fn"], names["params"], images(2))
    assert site.name == "Relu/relu"
