"""Accelerators: the same spikes by the programs for them, and what those move.

No test needs one. `tpu` tests compile for a v5e by libtpu and skip where it is missing;
the others lower programs, or let a CPU take the way of a TPU.
"""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from networks import NETWORKS, eighths, halves, relaxed_dspike
from numpy.testing import assert_allclose, assert_array_equal

import snnjax
from benchmarks import timing, tpu
from experiments.data import load
from snnjax import sharding
from snnjax.neurons import adaptive, integrate_and_fire, lif
from snnjax.neurons.spike_trains import through_bytes
from snnjax.simulation import by_layer
from snnjax.simulation.choice import Choice, choose
from snnjax.surrogate import dspike

STEPS = 4
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "tpu.json"


@pytest.fixture
def as_on_a_tpu(monkeypatch):
    """A CPU that takes the way of a TPU."""

    def tpu_branch(*arguments, tpu, default):
        del default
        return tpu(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", tpu_branch)
    monkeypatch.setattr(sharding, "platform", lambda x, spread=None: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)


# --------------------------------------------------------------------- spikes


@pytest.mark.parametrize("levels", [(0, 1), (-1, 1), (0, 3), (-4, 4), (0, 255)])
@pytest.mark.parametrize("offset", [None, -0.3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_spikes_come_back_from_their_bytes(levels, offset, dtype, as_on_a_tpu):
    low, high = levels
    level = np.random.default_rng(0).integers(low, high + 1, (50, 3))
    threshold = jnp.array([0.1, 0.7, 3.3])
    spikes = jnp.asarray(level, jnp.float32) * threshold
    if offset is not None:
        offset = jnp.full(3, offset)
        spikes = spikes + offset
    spikes = spikes.astype(dtype)
    stored = jax.jit(through_bytes, static_argnums=1)(spikes, levels, threshold, offset)
    assert stored.dtype == spikes.dtype
    if dtype == "float32":
        assert_array_equal(stored, spikes)
    else:  # neurons compute in float32 and round afterwards
        assert_allclose(*(x.astype("float32") for x in (stored, spikes)), rtol=1e-2)


def test_the_derivative_of_spikes_passes_their_bytes(as_on_a_tpu):
    def through(spikes, threshold):
        return (through_bytes(spikes, (0, 1), threshold) * jnp.arange(3.0)).sum()

    arguments = jnp.array([0.0, 2.0, 2.0]), jnp.array(2.0)
    of_spikes, of_threshold = jax.grad(through, (0, 1))(*arguments)
    assert_array_equal(of_spikes, jnp.arange(3.0))
    assert of_threshold == 0  # which is that of the spikes already


@pytest.mark.parametrize("wait", [0, 1])
@pytest.mark.parametrize(
    "neuron",
    [
        integrate_and_fire(),
        integrate_and_fire(levels=(-2, 2), reset="zero"),
        lif(leak=0.75),
        adaptive(lif()),
    ],
    ids=["binary", "graded", "leaky", "adaptive"],
)
def test_spikes_are_the_same_on_a_tpu(neuron, wait, as_on_a_tpu):
    net = NETWORKS["projection"]
    snn = snnjax.init(*net[:3], neuron=neuron)
    options = {"steps": STEPS, "wait": wait}
    layers = snnjax.spiking(net.fn, execution="by_layer", **options)(snn, net.x)
    steps = snnjax.spiking(net.fn, execution="by_step", **options)(snn, net.x)
    assert_array_equal(steps, layers)
    assert jnp.any(layers != 0)


def test_offsets_are_the_same_on_a_tpu(as_on_a_tpu):
    net = NETWORKS["dense"]
    snn = halves(net)
    neurons = {
        name: params._replace(offset=jnp.full(params.threshold.shape, -0.25))
        for name, params in snn.neurons.items()
    }
    snn = snnjax.SNN(snn.params, neurons, neuron=snn.neuron)
    for wait in (0, 1, STEPS):
        options = {"steps": STEPS, "wait": wait}
        layers = snnjax.spiking(net.fn, execution="by_layer", **options)(snn, net.x)
        steps = snnjax.spiking(net.fn, execution="by_step", **options)(snn, net.x)
        assert_array_equal(steps, layers)


def test_a_soft_surrogate_is_not_rounded_to_levels(as_on_a_tpu):
    net = NETWORKS["dense"]
    snn = halves(net)
    options = {"steps": STEPS, "surrogate": relaxed_dspike}
    soft = snnjax.spiking(net.fn, execution="by_step", **options)(snn, net.x)
    layers = snnjax.spiking(net.fn, execution="by_layer", **options)(snn, net.x)
    assert_allclose(soft, layers, rtol=1e-5, atol=1e-5)
    assert len(np.unique(soft)) > STEPS + 1


# ------------------------------------------------------------- what auto takes


def test_groups_on_a_tpu_have_the_outputs_and_the_gradient_of_the_layers(as_on_a_tpu):
    net = NETWORKS["dense"]
    snn = halves(net)
    x = eighths(7, (256, *net.x.shape[1:]))

    def loss(execution, snn):
        simulate = snnjax.spiking(net.fn, steps=STEPS, execution=execution)
        return (simulate(snn, x) ** 2).sum()

    auto, layers = (
        jax.value_and_grad(lambda snn, e=execution: loss(e, snn))(snn)
        for execution in ("auto", "by_layer")
    )
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-3), auto, layers)
    program = str(jax.make_jaxpr(lambda snn: loss("auto", snn))(snn))
    assert rows_of_products(program) == {128}


def rows_of_products(program):
    """How many examples the matrix products of a jaxpr take at a time."""
    return set(map(int, re.findall(r":f32\[(\d+),\d+\] = dot_general", program)))


@pytest.mark.parametrize("batch, sizes", [(128, {128}), (200, {128, 72}), (384, {128})])
def test_a_tpu_takes_groups_of_128(batch, sizes, as_on_a_tpu):
    net = NETWORKS["dense"]
    snn, x = halves(net), eighths(7, (batch, *net.x.shape[1:]))
    simulate = snnjax.spiking(net.fn, steps=2)
    program = str(jax.make_jaxpr(simulate)(snn, x))
    assert rows_of_products(program) == sizes
    assert ("prevent_cse=True" in program) == (batch > 128)  # groups computed anew
    layers = snnjax.spiking(net.fn, steps=2, execution="by_layer")
    assert_array_equal(simulate(snn, x), layers(snn, x))


def test_examples_that_devices_share_unseen_are_not_cut_into_groups(
    as_on_a_tpu, monkeypatch
):
    net = NETWORKS["dense"]
    snn, x = halves(net), eighths(7, (256, *net.x.shape[1:]))
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    mesh = jax.make_mesh((2,), ("data",))
    for options, rows in (({}, 256), ({"mesh": mesh}, 128)):
        simulate = snnjax.spiking(net.fn, steps=2, **options)
        program = str(jax.make_jaxpr(simulate)(snn, x))
        assert rows_of_products(program) == {rows}
    split = jax.device_put(x, sharding.over_batch(mesh))
    assert not sharding.has_own_examples(split, None)
    assert sharding.has_own_examples(x, None)


def test_a_model_with_levels_but_no_threshold_runs_by_step(as_on_a_tpu):
    class Plain(NamedTuple):
        leak: float

    class Unit:
        """Emits 1 where the current is positive."""

        levels = (0, 1)

        def init(self, shape=(), key=None):
            return Plain(0.5)

        def start(self, params, shape):
            return jnp.zeros(shape)

        def integrate(self, params, state, current):
            return params.leak * state + current

        def fire(self, params, state):
            return jnp.zeros_like(state), (state > 0).astype(state.dtype)

    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3], neuron=Unit())
    steps, layers = (
        snnjax.spiking(net.fn, steps=2, execution=execution)(snn, net.x)
        for execution in ("by_step", "by_layer")
    )
    assert_array_equal(steps, layers)


def test_images_on_explicit_axes_of_one_device_have_no_groups(as_on_a_tpu):
    net = NETWORKS["dense"]
    axes = (jax.sharding.AxisType.Explicit,)
    alone = jax.make_mesh((1,), ("data",), axis_types=axes)
    spread = jax.sharding.NamedSharding(alone, jax.sharding.PartitionSpec("data"))
    x = jnp.tile(net.x, (130, *[1] * (net.x.ndim - 1)))
    simulate = jax.jit(snnjax.spiking(net.fn, steps=STEPS))
    outputs = simulate(halves(net), jax.device_put(x, spread))
    assert_allclose(outputs, simulate(halves(net), x), atol=1e-6)


def test_a_program_for_any_batch_has_no_groups(as_on_a_tpu):
    net = NETWORKS["dense"]
    snn = jax.tree.map(jnp.asarray, halves(net))
    (batch,) = jax.export.symbolic_shape("b")
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), snn)
    x = jax.ShapeDtypeStruct((batch, *net.x.shape[1:]), "float32")
    program = jax.jit(snnjax.spiking(net.fn, steps=2))
    assert jax.export.export(program)(like, x).out_avals[0].shape[1] == batch


def test_a_narrow_network_has_its_gradient_summed_in_float32():
    def fn(params, x):
        return jax.nn.relu(x @ params["w"] + params["b"]) @ params["out"]

    params = {"w": eighths(0, (4, 6)), "b": eighths(1, (6,)), "out": eighths(2, (6, 3))}
    x = eighths(3, (16, 4))
    snn = snnjax.init(fn, params, x, neuron=integrate_and_fire())

    def gradient(fn):
        simulate = snnjax.spiking(fn, steps=512, execution="by_step")
        return jax.jit(jax.grad(lambda snn: (simulate(snn, x) ** 2).mean()))(snn)

    # Every number of this network is one of bfloat16 too.
    narrow = gradient(snnjax.in_dtype(fn, jnp.bfloat16)).params
    jax.tree.map(
        lambda a, b: assert_allclose(a, b, atol=0.02 * abs(b).max()),
        narrow,
        gradient(fn).params,
    )


@pytest.mark.parametrize(
    "neuron, platform, count",
    [(integrate_and_fire(), "cpu", 1), (lif(), "tpu", 1), (lif(), "cpu", 2)],
)
@pytest.mark.parametrize("wait", [0, 8])
def test_the_gradient_by_step_keeps_few_numbers_per_neuron_and_step(
    neuron, platform, count, wait, monkeypatch
):
    def fn(params, x):
        hidden = jax.nn.relu(x @ params["a"])
        late = jax.nn.relu(jax.nn.relu(hidden @ params["b"]) @ params["c"] + hidden)
        return late @ params["d"]

    params, x, steps = {name: jnp.eye(16) for name in "abcd"}, jnp.ones((8, 16)), 32
    snn = snnjax.init(fn, params, x, neuron=neuron)
    monkeypatch.setattr(sharding, "platform", lambda x, spread=None: platform)
    options = {"steps": steps, "wait": wait, "execution": "by_step"}
    simulate = snnjax.spiking(fn, **options)
    pull = jax.make_jaxpr(lambda snn: jax.vjp(simulate, snn, x)[1])(snn).jaxpr
    residuals = {id(v): v.aval.size for v in pull.outvars if v not in pull.invars}
    states = (steps + 3 * wait) * 3 * x.size
    delayed = (steps + 3 * wait) * x.size if wait else 0
    size = sum(residuals.values())
    assert 0.8 * count * states < size < 1.2 * (count * states + delayed)


@pytest.mark.parametrize("platform, products", [("cpu", 2), ("tpu", 3)])
def test_the_gradient_by_step_computes_weights_anew_on_a_tpu_only(
    platform, products, monkeypatch
):
    """One product forward, one for the gradient of w; the third is the first again."""
    monkeypatch.setattr(sharding, "platform", lambda x, spread=None: platform)

    def fn(w, x):
        return jax.nn.relu(x @ w)

    x = jnp.ones((4, 8, 16))
    snn = snnjax.init(fn, jnp.eye(16), x[0], neuron=lif())
    options = {"steps": 4, "execution": "by_step", "inputs": "sequence"}
    simulate = snnjax.spiking(fn, **options)

    def loss(w):
        return simulate(dataclasses.replace(snn, params=w), x).sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(snn.params))
    assert text.count("dot_general") == products


def test_what_is_asked_for_is_taken_as_it_is():
    snn = halves(NETWORKS["dense"])
    given = {"steps": 4, "wait": 0, "surrogate": dspike, "platform": "tpu"}
    for execution in ("by_step", "by_layer", by_layer(segment=2)):
        choice = choose(execution, snn, **given)
        assert choice == Choice(execution, recomputes_charge=True)


def test_the_devices_of_the_mesh_decide_before_those_of_the_images():
    class Elsewhere:
        platform = "tpu"

    x, mesh = jnp.ones((8, 3)), Mesh(np.array([Elsewhere()]), ("data",))
    assert sharding.platform(x, SimpleNamespace(mesh=mesh)) == "tpu"
    assert sharding.platform(np.ones(3)) == sharding.platform(x) == "cpu"
    platforms = []
    jax.jit(lambda x: platforms.append(sharding.platform(x)))(x)
    with jax.default_device(jax.devices("cpu")[1]):
        platforms.append(sharding.platform(np.ones(3)))
    assert platforms == ["cpu", "cpu"]


# ---------------------------------------------------------- lowered elsewhere


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize(
    "execution, wait",
    [
        ("by_step", 0),
        ("by_layer", 1),
        (by_layer(remat=True), 0),
        (by_layer(segment=2), 0),
        ("closed_form", 4),
    ],
)
def test_every_execution_and_its_gradient_are_lowered(platform, execution, wait):
    net = NETWORKS["projection"]
    options = {"steps": STEPS, "wait": wait, "execution": execution}
    simulate = snnjax.spiking(net.fn, **options)

    def loss(snn, x):
        return (simulate(snn, x) ** 2).sum()

    program = jax.jit(jax.value_and_grad(loss))
    exported = jax.export.export(program, platforms=[platform])(halves(net), net.x)
    as_bytes = "optimization_barrier" in exported.mlir_module()
    assert as_bytes == (platform == "tpu" and execution == "by_step")


# ------------------------------------------------------------ compiled for a v5e


MAIN = [
    tpu.Side("ANN"),
    tpu.Side("auto"),
    tpu.Side("by_layer"),
    tpu.Side("auto", training=True, steps=4),
]


def counts_of(side):
    try:
        return tpu.counts_of(side)
    except timing.NotInstalled as missing:
        pytest.skip(f"{missing}; pip install -e '.[tpu]'")


@pytest.mark.tpu
@pytest.mark.parametrize("side", MAIN, ids=lambda side: side.name)
def test_programs_move_no_more_than_was_recorded(side):
    counts, recorded = counts_of(side), json.loads(RESULTS.read_text())
    for name in ("hbm_gb", "on_chip_gb", "gflop"):
        assert counts[name] <= 1.1 * recorded["sides"][side.name][name], name
    assert counts["needed_gb"] < tpu.CAPACITY / 1e9


@pytest.mark.tpu
def test_programs_of_the_notebook_fit_a_tpu():
    notebook = (Path(tpu.__file__).parents[1] / "experiments/colab.ipynb").read_text()
    steps = int(re.search(r"STEPS = (\d+)", notebook)[1])
    shapes = {"network": "digits_resnet", "steps": steps}
    images = len(load("digits").test_labels)
    trained = tpu.Side("ANN", True, "digits_resnet", 1, batch=64)
    assert "batch_size=64" in notebook and "jax_default_matmul_precision" in notebook
    with jax.default_matmul_precision("highest"):
        for side in (
            trained,
            tpu.Side("ANN", network="digits_resnet", steps=1, batch=images),
            tpu.Side("auto", **shapes, batch=images),
            tpu.Side("by_layer", **shapes, wait=1, batch=images),
            *(tpu.Side(piece, **shapes, batch=256) for piece in tpu.SITE),
        ):
            assert 0 < counts_of(side)["needed_gb"] < 0.1 * tpu.CAPACITY / 1e9


@pytest.mark.tpu
def test_the_command_writes_its_table(tmp_path, capsys):
    counts_of(tpu.Side("ANN", network="digits_resnet", steps=1, batch=1))
    result = tpu.main(["--quick", "--out", str(tmp_path / "tpu.json")])
    assert list(result["sides"]) == [side.name for side in tpu.sides(True)]
    assert (tmp_path / "tpu.md").read_text() == capsys.readouterr().out
    tpu.draw(result, tmp_path / "tpu.png")
    assert (tmp_path / "tpu.png").read_bytes().startswith(b"\x89PNG")


def test_words_of_no_program_are_refused():
    with pytest.raises(SystemExit, match="--only nonsense: in no name; allowed"):
        tpu.main(["--quick", "--only", "nonsense"])


def test_every_program_of_the_table_has_its_ann_before_it():
    for quick in (False, True):
        chosen = tpu.sides(quick)
        for place, side in enumerate(chosen):
            if side.mode in tpu.EXECUTIONS:
                assert side.ann in chosen[:place], side.name


def test_the_recorded_programs_are_those_of_the_command():
    recorded = json.loads(RESULTS.read_text())
    assert list(recorded["sides"]) == [side.name for side in tpu.sides(False)]
    table = RESULTS.with_suffix(".md").read_text()
    assert "compiled for a v5e, not run" in table.splitlines()[0]
    figures = RESULTS.with_suffix(".png"), RESULTS.parents[2] / "docs" / "tpu.png"
    assert len({figure.read_bytes() for figure in figures}) == 1
