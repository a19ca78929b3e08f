"""ONNX files: ONNX Runtime computes what JAX computes, for every size of a batch."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snnjax
from snnjax import deploy

RNG = np.random.default_rng(0)
PARAMS = {
    "hidden": np.float32(RNG.normal(size=(6, 40)) / 3),
    "second": np.float32(RNG.normal(size=(40, 40)) / 6),
    "readout": np.float32(RNG.normal(size=(40, 3)) / 6),
}
X = np.float32(RNG.uniform(size=(64, 6)))
RADIX = snnjax.codes.radix()


def mlp(params, x):
    hidden = jax.nn.relu(x @ params["hidden"])
    return jax.nn.relu(hidden @ params["second"]) @ params["readout"]


def normed(params, x):
    hidden = jax.nn.gelu(x @ params["hidden"])
    hidden = jax.nn.standardize(hidden, -1)
    return jax.nn.softmax(hidden @ params["second"]) @ params["readout"]


def images(params, x):
    kernel = params["second"][:36, :4].reshape(3, 3, 4, 4)
    first = params["hidden"][:, :36].reshape(3, 3, 6, 4)[:, :, :1]
    x = x[..., None, None] * jnp.ones((4, 1))
    for weights in (first, kernel):
        x = jax.lax.conv_general_dilated(
            x, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
    x = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (1, 2)))
    return {"classes": x.mean((1, 2)), "pairs": [x.max(-1), x.sum(-1)]}


def outputs_of(model, x):
    """The outputs of a file by name, computed by ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": np.asarray(x)}), strict=True))


RUNTIME = (
    r"ONNX Runtime cannot compute .*: \w+: .*[^.]\. Allowed: operations on float32"
)
SIGNED = snnjax.integrate_and_fire(levels=(-1, 1))
GRADED = snnjax.integrate_and_fire(levels=(-3, 3))


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (mlp, {"steps": 8}),
        (mlp, {"steps": 8, "wait": 2, "model": SIGNED}),
        (mlp, {"steps": 4, "code": RADIX}),
        (mlp, {"steps": 4, "code": RADIX, "model": GRADED}),
        (mlp, {"steps": 3, "wait": 2, "code": RADIX}),
        (mlp, {"steps": 2, "code": snnjax.codes.radix(base=3)}),
        (normed, {"steps": 4, "code": RADIX}),
    ],
)
def test_a_file_computes_the_network_for_any_batch(network, options):
    pytest.importorskip("jax2onnx")
    snn = snnjax.convert(network, PARAMS, X, recipe=snnjax.light(), **options)
    simulate = snnjax.spiking(network)
    model = deploy.to_onnx(lambda x: simulate(snn, x), X[:8])
    for x in (X, X[:3]):
        (outputs,) = outputs_of(model, x).values()
        equal = np.isclose(outputs, jax.jit(simulate)(snn, x), atol=1e-4)
        # Rounding of an erf or a root moves few spikes; without them all are equal.
        assert equal.mean() >= (0.98 if network is normed else 1)


def test_outputs_have_names_and_images_come_in_any_number():
    pytest.importorskip("jax2onnx")
    snn = snnjax.convert(images, PARAMS, X, steps=4, recipe=snnjax.light())
    simulate = snnjax.spiking(images)
    model = deploy.to_onnx(lambda x: simulate(snn, x), X[:4])
    outputs = outputs_of(model, X)
    assert set(outputs) == {"outputs.classes", "outputs.pairs.0", "outputs.pairs.1"}
    expected = jax.jit(simulate)(snn, X)
    for name, y in (
        ("outputs.classes", expected["classes"]),
        ("outputs.pairs.1", expected["pairs"][1]),
    ):
        np.testing.assert_allclose(outputs[name], y, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"steps": 8}, {"steps": 4, "code": RADIX}], ids=["rate", "radix"]
)
def test_a_file_of_whole_numbers_is_exact(options):
    pytest.importorskip("jax2onnx")
    snn = snnjax.convert(mlp, PARAMS, X, recipe=snnjax.light(), **options)
    layers = deploy.quantize(deploy.layers(mlp, snn, X), X)

    def run(x):
        trace = deploy.run(layers, x)
        return trace.outputs, trace.spikes

    model = deploy.to_onnx(run, X[:8])
    outputs = outputs_of(model, X)
    trace = deploy.run(layers, X)
    np.testing.assert_array_equal(outputs.pop("outputs.0"), trace.outputs)
    assert len(outputs) == len(trace.spikes) == 2
    for found, spikes in zip(outputs.values(), trace.spikes.values(), strict=True):
        np.testing.assert_array_equal(found, spikes)
        assert spikes.any()


@pytest.mark.parametrize("remainder", [jnp.fmod, jnp.mod], ids=["fmod", "mod"])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_remainder_is_that_of_jax(remainder, dtype):
    pytest.importorskip("jax2onnx")
    x = (np.random.default_rng(0).normal(size=(64, 8)) * 9).astype(dtype)

    def fn(x):
        return x + remainder(x, jnp.asarray(2.3, dtype))

    (outputs,) = outputs_of(deploy.to_onnx(fn, x[:8]), x).values()
    np.testing.assert_allclose(outputs, fn(x), atol=1e-5)


def test_weights_are_stored_once_and_time_is_a_loop():
    pytest.importorskip("jax2onnx")
    simulate = snnjax.spiking(mlp)
    models = []
    for steps in (8, 64):
        snn = snnjax.convert(mlp, PARAMS, X, steps=steps, recipe=snnjax.light())
        models.append(deploy.to_onnx(lambda x, snn=snn: simulate(snn, x), X))
    model, longer = models
    sizes = [int(np.prod(tensor.dims)) for tensor in model.graph.initializer]
    for weights in PARAMS.values():
        assert sizes.count(weights.size) == 1
    assert "Loop" in {node.op_type for node in model.graph.node}
    assert longer.ByteSize() < 1.05 * model.ByteSize()


def test_an_output_may_be_an_input_or_another_output():
    pytest.importorskip("jax2onnx")

    def swapped(x):
        double = 2 * x["a"]
        return x["b"], x["a"], double, double

    examples = {"a": X[:4], "b": -X[:4]}
    model = deploy.to_onnx(swapped, examples)  # compared with the function
    names = [output.name for output in model.graph.output]
    assert names == ["outputs.0", "outputs.1", "outputs.2", "outputs.3"]


def test_writing_leaves_the_functions_of_jax_as_they_were():
    pytest.importorskip("jax2onnx")
    cumsum = jnp.cumsum
    deploy.to_onnx(lambda x: jnp.cumsum(x, 1), X[:4])
    assert jnp.cumsum is cumsum


def test_what_no_file_can_hold_is_refused():
    with_nan = X.copy()
    with_nan[0, 0] = np.nan
    with pytest.raises(
        ValueError, match="fn is a dict; allowed: a function of x alone"
    ):
        deploy.to_onnx(PARAMS, X)
    for x, message in (
        (X[:1], "x has 1 example; allowed: two or more"),
        (with_nan, r"x holds 1 NaN of 384 numbers"),
        (jax.ShapeDtypeStruct((4, 6), jnp.float32), "only a shape; allowed: arrays"),
        ({}, "without an array"),
    ):
        with pytest.raises(ValueError, match=message):
            deploy.to_onnx(lambda x: x, x)
    with pytest.raises(ValueError, match=r"x is traced; .*to_onnx outside of jit"):
        jax.jit(lambda x: deploy.to_onnx(lambda x: x, x))(X)


def test_a_function_that_jax2onnx_cannot_write_is_refused():
    pytest.importorskip("jax2onnx")
    for fn, message in (
        (lambda x: jnp.linalg.eigh(x[:, :, None] * x[:, None])[0], "cannot write"),
        (lambda x: x / (1.0 if x.shape[0] > 8 else 2.0), "any size.*Write fn without"),
        (
            lambda x: jnp.log(x - 0.5),
            "fn returns in o.* hold .* of NaN or infinity, of 384",
        ),
        (lambda x: x.astype(jnp.float16) @ jnp.ones((6, 2), jnp.float16), RUNTIME),
        (lambda x: jnp.abs(jnp.fft.fft(x)), RUNTIME),
        (lambda x: jax.random.normal(jax.random.key(0), (6,)) * x, RUNTIME),
    ):
        with pytest.raises(ValueError, match=message):
            deploy.to_onnx(fn, X)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    message = "to_onnx needs the package jax2onnx.*pip install jax2onnx onnxruntime"
    with pytest.raises(ImportError, match=message):
        deploy.to_onnx(lambda x: x, X)
