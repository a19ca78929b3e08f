"""Accelerators: the same spikes by the programs for them, and what those move.

No test needs one. `tpu` tests compile for a v5e by libtpu and skip where it is missing;
the others lower programs, or let a CPU take the way of a TPU.
"""

import doctest
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
from networks import NETWORKS, eighths, halves
from numpy.testing import assert_allclose, assert_array_equal

import snnjax
from benchmarks import hlo, timing, tpu
from experiments.data import load
from snnjax import sharding
from snnjax.neurons import adaptive, integrate_and_fire, lif
from snnjax.neurons.spike_trains import through_bytes
from snnjax.simulation import by_layer
from snnjax.simulation.choice import choose
from snnjax.surrogate import dspike, relaxed_dspike

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


@pytest.mark.parametrize("neuron", [integrate_and_fire(), lif()])
@pytest.mark.parametrize("wait", [0, 8])
def test_the_gradient_by_step_keeps_a_number_per_neuron_and_step(neuron, wait):
    def fn(params, x):
        hidden = jax.nn.relu(x @ params["a"])
        late = jax.nn.relu(jax.nn.relu(hidden @ params["b"]) @ params["c"] + hidden)
        return late @ params["d"]

    params, x, steps = {name: jnp.eye(16) for name in "abcd"}, jnp.ones((8, 16)), 32
    snn = snnjax.init(fn, params, x, neuron=neuron)
    options = {"steps": steps, "wait": wait, "execution": "by_step"}
    simulate = snnjax.spiking(fn, **options)
    pull = jax.make_jaxpr(lambda snn: jax.vjp(simulate, snn, x)[1])(snn).jaxpr
    residuals = {id(v): v.aval.size for v in pull.outvars if v not in pull.invars}
    states = (steps + 3 * wait) * 3 * x.size
    delayed = (steps + 3 * wait) * x.size if wait else 0
    assert sum(residuals.values()) < 1.2 * (states + delayed)


def test_what_is_asked_for_is_taken_as_it_is():
    snn = halves(NETWORKS["dense"])
    given = {"steps": 4, "wait": 0, "surrogate": dspike, "platform": "tpu"}
    for execution in ("by_step", "by_layer", by_layer(segment=2)):
        choice = choose(execution, snn, **given)
        assert choice == (execution, False, None)


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


# ------------------------------------------------------------ counted programs


LOOP = """HloModule example, entry_computation_layout={()->f32[]}

%body (state: (s32[], f32[8,100])) -> (s32[], f32[8,100]) {
  %state = (s32[], f32[8,100]{1,0:T(8,128)}) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %x = f32[8,100]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %on_chip = f32[8,100]{1,0:T(8,128)S(1)} negate(%x)
  %y = f32[8,100]{1,0:T(8,128)} negate(%on_chip)
  ROOT %next = (s32[], f32[8,100]{1,0:T(8,128)}) tuple(%turn, %y)
}

%condition (state.1: (s32[], f32[8,100])) -> pred[] {
  %state.1 = (s32[], f32[8,100]{1,0:T(8,128)}) parameter(0)
  %turn.1 = s32[] get-tuple-element(%state.1), index=0
  %bound = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%turn.1, %bound), direction=LT
}

ENTRY %main (start: (s32[], f32[8,100])) -> (s32[], f32[8,100]) {
  %start = (s32[], f32[8,100]{1,0:T(8,128)}) parameter(0)
  ROOT %loop = (s32[], f32[8,100]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
}
"""  # noqa: E501

IN_PLACE = """HloModule example

%update (all: f32[4,128], row: f32[1,128], at: s32[]) -> f32[4,128] {
  %all = f32[4,128]{1,0} parameter(0)
  %row = f32[1,128]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %new = f32[4,128]{1,0} dynamic-update-slice(%all, %row, %at, %at)
}

ENTRY %main (a: f32[4,128], b: f32[8,128], i: s32[]) -> f32[4,128] {
  %a = f32[4,128]{1,0} parameter(0)
  %b = f32[8,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %part = f32[1,128]{1,0} dynamic-slice(%b, %i, %i), dynamic_slice_sizes={1,128}
  ROOT %c = f32[4,128]{1,0} fusion(%a, %part, %i), kind=kLoop, calls=%update
}
"""


def test_a_loop_counts_as_often_as_it_turns_and_memories_apart():
    counts, tiles = hlo.count(LOOP), 4 * 8 * 128
    assert counts == (5 * 2 * tiles, 5 * 2 * tiles, 0)


def test_slices_and_updates_in_place_move_their_part():
    # Read and write the part; read it again with two indices, write it in place.
    assert hlo.count(IN_PLACE).memory == 2 * 512 + (512 + 4) + 512


@pytest.mark.parametrize("unroll", [1, 3])
def test_operations_are_those_of_all_turns(unroll):
    def power(w, x):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7, unroll=unroll)[0]

    shapes = jax.ShapeDtypeStruct((16, 16), "float32"), jnp.ones((4, 16))
    program = jax.jit(power).lower(*shapes).compile()
    assert hlo.count(program.as_text()).operations == 7 * 2 * 4 * 16 * 16


@pytest.mark.parametrize(
    "window",
    [
        {"size": 3},
        {"size": 3, "pad": (1, 1), "stride": 2},
        {"size": 2, "pad": (2, 0), "dilation": 3},
        {"size": 3, "pad": (0, 4), "spread": 2},
    ],
)
def test_operations_of_a_convolution_are_its_pairs(window):
    size, pad = window["size"], window.get("pad", (0, 0))
    names = {"stride": "stride", "dilation": "lhs_dilate", "spread": "rhs_dilate"}
    texts = [f"size={size}x1", f"pad={pad[0]}_{pad[1]}x0_0"]
    texts += [f"{names[n]}={window[n]}x1" for n in names if n in window]
    x, kernel = jnp.ones((2, 7, 1, 3)), jnp.ones((size, 1, 3, 8))
    outputs = jax.lax.conv_general_dilated(
        x,
        kernel,
        (window.get("stride", 1), 1),
        [pad, (0, 0)],
        lhs_dilation=(window.get("dilation", 1), 1),
        rhs_dilation=(window.get("spread", 1), 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    shape = ",".join(map(str, outputs.shape))
    text = (
        "ENTRY %main (x: f32[], k: f32[]) -> f32[] {\n"
        "  %x = f32[2,7,1,3]{3,2,1,0} parameter(0)\n"
        f"  %k = f32[{size},1,3,8]{{3,2,1,0}} parameter(1)\n"
        f"  ROOT %y = f32[{shape}]{{3,2,1,0}} convolution(%x, %k), "
        f"window={{{' '.join(texts)}}}, dim_labels=b01f_01io->b01f\n}}"
    )
    # Of ones, each pair adds 1 to the outputs.
    assert hlo.count(text).operations == 2 * outputs.sum()


def test_updates_in_place_of_several_arrays_move_their_parts():
    two = IN_PLACE.replace("ROOT %new", "%new").replace(
        "(%all, %row, %at, %at)\n",
        "(%all, %row, %at, %at)\n"
        "  ROOT %both = (f32[4,128]{1,0}, f32[1,128]{1,0}) tuple(%new, %row)\n",
    )
    two = two.replace(
        "c = f32[4,128]{1,0} fusion", "c = (f32[4,128], f32[1,128]) fusion"
    )
    # The part is also a result now.
    assert hlo.count(two).memory == hlo.count(IN_PLACE).memory + 512


def test_a_fusion_may_end_in_one_instruction_with_several_results():
    text = (
        "%sorted (a: f32[8], b: f32[8]) -> (f32[8], f32[8]) {\n"
        "  %a = f32[8]{0} parameter(0)\n  %b = f32[8]{0} parameter(1)\n"
        "  ROOT %s = (f32[8]{0}, f32[8]{0}) sort(%a, %b), dimensions={0}\n}\n\n"
        "ENTRY %main (x: f32[8], y: f32[8]) -> (f32[8], f32[8]) {\n"
        "  %x = f32[8]{0} parameter(0)\n  %y = f32[8]{0} parameter(1)\n"
        "  ROOT %f = (f32[8]{0}, f32[8]{0}) fusion(%x, %y), calls=%sorted\n}"
    )
    assert hlo.count(text) == (4 * 4 * 8, 0, 0)


@pytest.mark.parametrize(
    "before, after, message",
    [
        ("constant(5)", "parameter(1)", "how often does this loop turn"),
        ("direction=LT", "direction=NE", "how often does this loop turn"),
        ("f32[8,100]", "f7[8,100]", "how many bits has the type f7"),
        ("negate(%x)", "all-gather-start(%x)", "what does all-gather-start move"),
        ("ENTRY ", "", "no ENTRY"),
        (
            "negate(%x)",
            'custom-call(%x), custom_call_target="tpu_custom_call"',
            "a kernel has no count",
        ),
    ],
)
def test_what_is_not_known_is_not_counted_as_nothing(before, after, message):
    with pytest.raises(ValueError, match=message):
        hlo.count(LOOP.replace(before, after))


def test_the_examples_of_the_counter_hold():
    assert doctest.testmod(hlo) == doctest.TestResults(failed=0, attempted=9)


def test_operands_may_be_written_with_their_types():
    typed = LOOP.replace("negate(%x)", "negate(f32[8,100]{1,0:T(8,128)} %x)")
    assert hlo.count(typed) == hlo.count(LOOP)


# ------------------------------------------------------------ compiled for a v5e


MAIN = [
    tpu.Side("ANN"),
    tpu.Side("auto"),
    tpu.Side("by_layer"),
    tpu.Side("auto", training=True, steps=4),
]


def compiled(side):
    try:
        return tpu.compiled(side)
    except timing.NotInstalled as missing:
        pytest.skip(f"{missing}; pip install -e '.[tpu]'")


@pytest.mark.tpu
@pytest.mark.parametrize("side", MAIN, ids=lambda side: side.name)
def test_programs_move_no_more_than_was_recorded(side):
    counts, recorded = compiled(side), json.loads(RESULTS.read_text())
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
            assert 0 < compiled(side)["needed_gb"] < 0.1 * tpu.CAPACITY / 1e9


@pytest.mark.tpu
def test_the_command_writes_its_table(tmp_path, capsys):
    compiled(tpu.Side("ANN", network="digits_resnet", steps=1, batch=1))
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
    table = RESULTS.with_suffix(".md").read_text().partition("\n\n")[0]
    assert "compiled for a v5e, not run" in table.splitlines()[0]
    docs = RESULTS.parents[2] / "docs"
    assert table in (docs / "accelerators.md").read_text()
    figures = RESULTS.with_suffix(".png"), docs / "tpu.png"
    assert len({figure.read_bytes() for figure in figures}) == 1
