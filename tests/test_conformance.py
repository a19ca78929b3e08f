"""Programs of chips compute the spikes of the whole numbers of `quantize`.

The networks are small and have random numbers; benchmarks/conformance.py compares
converted networks.
"""

import dataclasses
import json
import re
import sys

import jax
import numpy as np
import pytest
from test_layers import changed

import snnjax
from benchmarks import chip_programs, conformance, timing
from snnjax import deploy
from snnjax.deploy import Convolution, Dense, Layers

IMAGE = (1, 5, 5)


def drawn(
    steps=3,
    levels=(0, 1),
    reset="subtract",
    largest_x=3,
    weight=7,
    per="channel",
    has_branches=False,
    has_biases=True,
):
    """Layers of random whole numbers, and images of events for them."""
    generator = np.random.default_rng(0)
    model = snnjax.integrate_and_fire(levels=levels, reset=reset)
    high = max(levels[1], 2) if levels[1] < 16 else 2

    def weights(*shape):
        return generator.integers(-weight, weight + 1, shape).astype(float)

    def neurons(name, sources, shape, fan_in):
        channels, *image_size = shape
        per_channel = (channels, *[1] * len(image_size))
        threshold_shape = per_channel if per == "channel" else ()
        # So large that neurons are silent at some steps, and fire at others.
        threshold = max(2, int(weight * fan_in**0.5 / high))
        bias = generator.integers(-5, 6, per_channel).astype(float)
        thresholds = generator.integers(threshold, 2 * threshold, threshold_shape)
        potentials = generator.integers(0, threshold, threshold_shape)
        if not has_biases:
            bias = np.zeros(per_channel)
        return deploy.Population(
            name,
            sources,
            shape,
            model,
            threshold=thresholds.astype(float),
            initial_potential=potentials.astype(float),
            bias=bias,
        )

    kernel = {"bias": None, "padding": ((1, 1), (1, 1))}
    nodes = [
        deploy.Input("x", (), IMAGE, np.ones(())),
        Convolution("a/0", ("x",), weights(4, 1, 3, 3), size=(5, 5), **kernel),
        neurons("a", ("a/0",), (4, 5, 5), 9 * largest_x),
        Convolution(
            "b/0", ("a",), weights(3, 4, 3, 3), size=(5, 5), stride=(2, 2), **kernel
        ),
        neurons("b", ("b/0",), (3, 3, 3), 36),
    ]
    source, shape = "b", (3, 3, 3)
    if has_branches:
        nodes += [
            Convolution("c/0", ("b",), weights(3, 3, 3, 3), size=(3, 3), **kernel),
            Convolution(
                "c/1", ("a",), weights(3, 4, 1, 1), None, size=(5, 5), stride=(2, 2)
            ),
            neurons("c", ("c/0", "c/1"), (3, 3, 3), 31),
            deploy.SumPool("pool", ("c",), (2, 2), (1, 1)),
        ]
        source, shape = "pool", (3, 2, 2)
    size = int(np.prod(shape))
    nodes += [
        deploy.Flatten("flat", (source,), shape),
        Dense("d/0", ("flat",), weights(6, size), None),
        neurons("d", ("d/0",), (6,), size),
        Dense("out/0", ("d",), weights(2, 6), None),
        deploy.Output("out", ("out/0",), (2,), np.zeros(()), np.ones(())),
    ]
    arithmetic = deploy.Arithmetic(8, 9, 16, "saturate")
    layers = Layers(tuple(nodes), steps, 0, arithmetic=arithmetic)
    x = generator.integers(0, largest_x + 1, (5, 5, 5, 1)).astype(np.float32)
    return layers, x


def check(program, layers, x):
    """All spikes of the program are those of `run`, and change with a threshold."""
    counts = conformance.level_counts(program, layers, x)
    assert counts["mismatches"] == 0
    assert counts["not_0"] > counts["spikes"] / 20
    trace = snnjax.deploy.run(layers, x)
    for name, levels in trace.spikes.items():
        assert np.any(np.asarray(levels)), name
    raised = changed(layers, "a", threshold=lambda n: n.threshold * 5 // 4 + 1)
    raised_spikes = program(raised, x)
    assert np.any(raised_spikes["a"] != np.asarray(trace.spikes["a"]))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_akida_sends_the_spikes_of_whole_numbers(bits):
    pytest.importorskip("akida")
    options = {"steps": 1, "levels": (0, 2**bits - 1), "largest_x": 255}
    check(chip_programs.akida, *drawn(**options))


@pytest.mark.parametrize("depth", [1, 6])
def test_a_report_asks_the_mapper_of_akida(depth):
    pytest.importorskip("akida")
    chip = deploy.akida1()
    sizes = [8, *[300] * depth, 3]
    generator = np.random.default_rng(0)
    kernels = []
    for size, next_size in zip(sizes[:-1], sizes[1:], strict=True):
        kernels.append(generator.normal(size=(size, next_size)).astype("f4") / size)
    x = generator.random((16, 8), np.float32)

    def fn(kernels, x):
        for kernel in kernels[:-1]:
            x = jax.nn.relu(x @ kernel)
        return x @ kernels[-1]

    recipe = snnjax.max_activation()
    snn = snnjax.convert(fn, kernels, x, steps=1, chip=chip, recipe=recipe)
    layers = deploy.layers(fn, snn, x)
    # Layers of floats have no form on the chip.
    assert not deploy.report(layers, chip)["network"].findings
    if depth == 6:
        message = "the maker's mapper: Cannot map layer '5/relu'"
        with pytest.raises(snnjax.ConversionError, match=message):
            deploy.quantize(layers, x, chip=chip, input_bits=5)
        return
    integers = deploy.quantize(layers, x, chip=chip, input_bits=5)
    report = deploy.report(integers, chip)
    (finding,) = report["network"].findings
    assert finding.verdict == "fits"
    assert re.match(r"\d+ cores and \d+ bytes of program", finding.problem)
    assert finding.problem.split()[0] in str(report)


OPTIONS = {
    "binary": {},
    "several spikes": {"levels": (0, 3), "per": "layer"},
    "reset to zero": {"reset": "zero", "weight": 127},
}
SPECK = {"levels": (0, 255), "per": "layer", "has_biases": False, "weight": 127}


@pytest.mark.parametrize("name", OPTIONS)
def test_sinabs_sends_the_spikes_of_whole_numbers(name):
    pytest.importorskip("sinabs")
    check(chip_programs.sinabs, *drawn(**OPTIONS[name], has_branches=True))


def test_the_quantizer_of_dynapcnn_changes_nothing():
    pytest.importorskip("sinabs")
    check(chip_programs.dynapcnn, *drawn(**SPECK))
    layers, x = drawn(**SPECK | {"weight": 255})
    with pytest.raises(ValueError, match="DYNAP-CNN changes .* weights"):
        chip_programs.dynapcnn(layers, x)


def converted_for_akida():
    """Whole numbers of a converted network, with the chip's own defaults, and x."""
    chip = deploy.akida1()
    generator = np.random.default_rng(0)
    params = {
        "conv": generator.normal(size=(3, 3, 3, 8)).astype(np.float32) / 3,
        "readout": generator.normal(size=(8 * 36, 4)).astype(np.float32) / 9,
        "bias": generator.normal(size=4).astype(np.float32),
    }
    x = generator.integers(0, 256, (16, 6, 6, 3)).astype(np.float32)

    def network(params, x):
        x = jax.lax.conv_general_dilated(
            x / 255,
            params["conv"],
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x).reshape(len(x), -1)
        return x @ params["readout"] + params["bias"]

    snn = snnjax.convert(network, params, x, steps=1, chip=chip)
    layers = deploy.layers(network, snn, x)
    bits = {"conv/*": 8, "*": 4}
    return deploy.quantize(layers, x, weight_bits=bits, input_bits=9), x


def test_akidas_last_layer_sends_the_sums_of_the_output(tmp_path):
    akida = pytest.importorskip("akida")
    layers, x = converted_for_akida()
    model = deploy.to_akida(layers)
    whole = np.rint(x / layers.input.unit).astype(np.uint8)
    sums = model.forward(whole).reshape(len(x), -1)
    (output,) = layers.outputs
    trace = snnjax.deploy.run(layers, x)
    bias = output.bias / layers.bias_unit
    answers = layers.potential_unit * output.unit * (sums + bias)
    assert np.allclose(answers, trace.outputs[0], rtol=1e-6)
    model.save(str(tmp_path / "net.fbz"))
    read = akida.Model(str(tmp_path / "net.fbz"))
    assert np.array_equal(read.forward(whole).reshape(len(x), -1), sums)


def test_the_module_of_sinabs_returns_the_sums_of_the_output():
    torch = pytest.importorskip("torch")
    pytest.importorskip("sinabs")
    for has_branches in (False, True):
        layers, x = drawn(has_branches=has_branches)
        module = deploy.to_sinabs(layers)
        images = np.repeat(np.moveaxis(x, -1, 1), layers.steps, axis=0)
        with torch.no_grad():
            sums = module(torch.tensor(images)).reshape(len(x), layers.steps, -1)
        expected = np.asarray(snnjax.deploy.run(layers, x).outputs)
        assert np.array_equal(np.moveaxis(sums.numpy(), 1, 0), expected)


AKIDA = {"steps": 1, "levels": (0, 15), "largest_x": 255}
AKIDA_REFUSALS = {
    "T is 3, and Akida computes one step": {"steps": 3},
    "levels (0, 7); Akida has": {"levels": (0, 7)},
    "levels (-1, 1), and the tool": {"levels": (-1, 1)},
    "a weight of 15, beyond the 4 bits": {"weight": 15},
    "b, a; Akida 1.0 has chains": {"has_branches": True},
}


@pytest.mark.parametrize("message", AKIDA_REFUSALS)
def test_akida_refuses_what_it_has_no_form_for_before_its_package_is_read(
    message, monkeypatch
):
    monkeypatch.setitem(sys.modules, "akida", None)  # an import would raise
    layers, _ = drawn(**AKIDA | AKIDA_REFUSALS[message])
    with pytest.raises(snnjax.ConversionError, match=re.escape(message)):
        deploy.to_akida(layers)


def test_akida_names_the_layer_with_a_kernel_a_pool_or_a_number_that_it_lacks(
    monkeypatch,
):
    monkeypatch.setitem(sys.modules, "akida", None)
    layers, _ = drawn(**AKIDA)
    wide = np.ones((3, 4, 3, 5))
    each = np.arange(27.0).reshape(3, 3, 3)
    for name, changes, message in [
        ("b/0", {"weight": wide}, "kernel 3x5"),
        ("b/0", {"stride": (1, 2)}, "stride (1, 2)"),
        ("b/0", {"padding": ((1, 0), (1, 1))}, "padding"),
        ("b", {"bias": each}, "biases differ"),
    ]:
        wrong = changed(layers, name, **changes)
        with pytest.raises(snnjax.ConversionError) as error:
            deploy.to_akida(wrong)
        (problem,) = error.value.problems
        assert problem.path == "b" and message in problem.reason
    twice = changed(layers, "b", sources=("b/0", "b/0"))
    with pytest.raises(snnjax.ConversionError, match="it reads a, in 2 connections;"):
        deploy.to_akida(twice)
    bits = dataclasses.replace(layers.arithmetic, input_bits=12)
    with pytest.raises(snnjax.ConversionError, match="x has 12 bits"):
        deploy.to_akida(dataclasses.replace(layers, arithmetic=bits))
    negative = changed(layers, layers.input.name, lowest=np.asarray(-3))
    with pytest.raises(snnjax.ConversionError, match="numbers from -3 on; .* no sign"):
        deploy.to_akida(negative)
    with pytest.raises(ImportError, match="pip install akida"):
        deploy.to_akida(layers)
    with pytest.raises(ValueError, match="allowed: whole numbers"):
        deploy.to_akida(dataclasses.replace(layers, arithmetic=None))


def test_sinabs_refuses_what_it_has_no_form_for_before_its_package_is_read(
    monkeypatch,
):
    monkeypatch.setitem(sys.modules, "torch", None)
    layers, _ = drawn(has_branches=True)
    radix = dataclasses.replace(layers, code=snnjax.codes.radix())
    lowest = snnjax.integrate_and_fire(lowest=-1.0)
    wrong = {
        "the code radix": radix,
        "wait 2": dataclasses.replace(layers, wait=2),
        "have no T": dataclasses.replace(layers, steps=None),
        "levels (-1, 1)": drawn(levels=(-1, 1))[0],
        "lowest -1.0": changed(layers, "b", model=lambda n: lowest),
        "padding (1, 0)": changed(layers, "pool", padding=lambda n: (1, 0)),
        "biases differ": changed(
            layers, "b", bias=lambda n: np.arange(27.0).reshape(3, 3, 3)
        ),
    }
    for message, changed_layers in wrong.items():
        with pytest.raises(snnjax.ConversionError, match=re.escape(message)):
            deploy.to_sinabs(changed_layers)
    with pytest.raises(ImportError, match="pip install sinabs"):
        deploy.to_sinabs(layers)


def test_the_rules_of_chips_give_the_spikes_of_whole_numbers():
    check(
        chip_programs.loihi,
        *drawn(reset="zero", weight=31, largest_x=15, has_branches=True),
    )
    check(chip_programs.speck, *drawn(**SPECK))
    layers, x = drawn(**SPECK)
    counts = conformance.level_counts(chip_programs.speck_by_address, layers, x)
    assert 0 < counts["mismatches"] < counts["spikes"] / 5


def test_the_table_has_a_row_for_a_missing_package(monkeypatch, capsys, tmp_path):
    class Small:
        def drawn(self, seed):
            return drawn(**OPTIONS["reset to zero"])

    def rows():
        loihi = chip_programs.loihi
        yield conformance.Comparison(loihi, "there", "numpy", (Small(),))
        yield conformance.Comparison(loihi, "not there", "no-such-package", (Small(),))

    monkeypatch.setattr(conformance, "comparisons", rows)
    out = tmp_path / "conformance.json"
    result = conformance.main(["--quick", "--out", str(out)])
    assert result["sides"]["there"]["mismatches"] == 0
    assert [goal["met"] for goal in result["targets"]] == [True]
    printed = capsys.readouterr().out
    assert json.loads(out.read_text()) == result
    assert out.with_suffix(".md").read_text() == printed
    assert "no-such-package not installed | -" in printed


@pytest.mark.slow
def test_converted_networks_are_whole_numbers_within_their_bits():
    network = conformance.Network(conformance.mlp, 1, (0, 15), 15, {"weight_bits": 4})
    layers, x = network.drawn(0)
    weights = [m.weight for way in layers.connections for m in way.maps]
    assert max(np.abs(w).max() for w in weights) == 7
    assert layers.nodes[0].unit == 1 and x.max() == 15
    if timing.versions(["akida"])["akida"] != "not installed":
        assert (
            conformance.level_counts(chip_programs.akida, layers, x)["mismatches"] == 0
        )
