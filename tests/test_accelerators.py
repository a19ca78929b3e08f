"""Accelerators: the same spikes by the programs for them.

No test needs one: they lower programs, or let a CPU take the way of a TPU.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, compiled, eighths, halves, outputs_of, relaxed_dspike
from numpy.testing import assert_allclose, assert_array_equal

import snnjax
from snnjax import sharding
from snnjax.neurons import Adaptive, Recurrent, integrate_and_fire, lif
from snnjax.simulation.choice import Choice, choose
from snnjax.simulation.options import Simulation
from snnjax.surrogate import dspike

STEPS = 4
NET = NETWORKS["dense"]
SNN = halves(NET)


@pytest.fixture
def as_on_a_tpu(monkeypatch):
    """A CPU that takes the way of a TPU."""
    monkeypatch.setattr(sharding, "platform", lambda x: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def run(snn, x=NET.x, fn=NET.fn, **options):
    return np.asarray(compiled(fn, **{"steps": STEPS} | options)(snn, x))


# ------------------------------------------------------------- what auto takes


def test_groups_on_a_tpu_have_the_outputs_and_the_gradient_of_the_layers(as_on_a_tpu):
    x = eighths(7, (256, *NET.x.shape[1:]))

    def slope(execution):
        simulate = snnjax.spiking(NET.fn, steps=STEPS, execution=execution)
        return jax.value_and_grad(lambda snn: (simulate(snn, x) ** 2).sum())

    auto, layers = outputs_of(map(slope, ("auto", STEPS)), SNN)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-3), auto, layers)


def rows_of_products(program):
    """How many examples the matrix products of a jaxpr take at a time."""
    shapes = re.findall(r":f32\[([\d,]+),\d+\] = dot_general", program)
    return {math.prod(map(int, shape.split(","))) for shape in shapes}


@pytest.mark.parametrize("batch, sizes", [(128, {128}), (200, {128, 72}), (384, {128})])
def test_a_tpu_takes_groups_of_128(batch, sizes, as_on_a_tpu):
    x = eighths(7, (batch, *NET.x.shape[1:]))
    program = str(jax.make_jaxpr(snnjax.spiking(NET.fn, steps=2))(SNN, x))
    assert rows_of_products(program) == sizes
    assert ("prevent_cse=True" in program) == (batch > 128)  # groups computed anew
    if batch == 200:
        by_group = run(SNN, x, steps=2)
        assert_array_equal(by_group, run(SNN, x, steps=2, execution=2))


def test_each_device_makes_groups_of_its_own_examples(as_on_a_tpu):
    x = eighths(7, (256, *NET.x.shape[1:]))
    data = jax.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
    simulate = snnjax.spiking(NET.fn, steps=2)
    program = str(jax.make_jaxpr(simulate)(SNN, jax.device_put(x, data)))
    assert rows_of_products(program) == {128}


def test_images_on_explicit_axes_of_one_device_are_cut_into_groups(as_on_a_tpu):
    axes = (jax.sharding.AxisType.Explicit,)
    alone = jax.make_mesh((1,), ("data",), axis_types=axes)
    data = jax.sharding.NamedSharding(alone, jax.sharding.PartitionSpec("data"))
    x = np.tile(NET.x, (130, 1))
    assert_allclose(run(SNN, jax.device_put(x, data)), run(SNN, x), atol=1e-6)


def test_a_program_for_any_batch_has_no_groups(as_on_a_tpu):
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, *NET.x.shape[1:]), "float32")
    program = jax.jit(snnjax.spiking(NET.fn, steps=2))
    assert jax.export.export(program)(SNN, x).out_avals[0].shape[1] == batch


def test_a_narrow_network_has_its_gradient_summed_in_float32():
    def fn(params, x):
        return jax.nn.relu(x @ params["w"] + params["b"]) @ params["out"]

    params = {"w": eighths(0, (4, 6)), "b": eighths(1, (6,)), "out": eighths(2, (6, 3))}
    x = eighths(3, (16, 4))
    snn = snnjax.init(fn, params, x, model=integrate_and_fire())

    def gradient(fn):
        simulate = snnjax.spiking(fn, steps=512, execution=1)
        return jax.grad(lambda snn: (simulate(snn, x) ** 2).mean())

    # Every number of this network is one of bfloat16 too.
    narrow_fn = snnjax.in_dtype(fn, jnp.bfloat16)
    narrow, exact = outputs_of([gradient(narrow_fn), gradient(fn)], snn)
    for name, slope in exact.params.items():
        assert_allclose(narrow.params[name], slope, atol=0.02 * abs(slope).max())


@pytest.mark.parametrize("neuron, count", [(integrate_and_fire(), 1), (lif(), 2)])
def test_the_gradient_by_step_keeps_few_numbers_per_neuron_and_step(neuron, count):
    def fn(params, x):
        hidden = jax.nn.relu(x @ params["a"])
        late = jax.nn.relu(jax.nn.relu(hidden @ params["b"]) @ params["c"] + hidden)
        return late @ params["d"]

    steps = 32
    eye = np.eye(16, dtype=np.float32)
    x = np.ones((8, 16), np.float32)
    snn = snnjax.init(fn, dict.fromkeys("abcd", eye), x, model=neuron)
    simulate = snnjax.spiking(fn, steps=steps, execution=1)
    # The outputs of this program are what the way back keeps of the way forth.
    pull = jax.make_jaxpr(lambda snn: jax.vjp(simulate, snn, x)[1])(snn).jaxpr
    residuals = {id(v): v.aval.size for v in pull.outvars if v not in pull.invars}
    numbers = count * steps * 3 * x.size  # of three sites
    assert sum(residuals.values()) == pytest.approx(numbers, rel=0.2)


RADIX = dataclasses.replace(SNN, code=snnjax.codes.radix())
OTHER = snnjax.init(*NET[:3], model=Recurrent(lif()), key=jax.random.key(0))
ZONE = dataclasses.replace(SNN, model=integrate_and_fire(last_zone=0.75))
CLOSED = Choice("closed_form", gradient_steps=8)
SOFT = [
    lambda x: jnp.where(x >= 0, 1.0, jnp.where(x <= -1, -1.0, 0.0)),
    functools.partial(relaxed_dspike, temperature=80.0),  # nearly hard
    lambda x, b=1e9: relaxed_dspike(x, b),  # soft by its leaf
]


@pytest.mark.parametrize(
    "platform, steps, wait, options, choice",
    [
        ("cpu", 8, 0, {}, Choice(1, gradient_steps=8)),
        ("cpu", 26, 0, {}, Choice(1, gradient_steps=26, may_segment=True)),
        ("cpu", 26, 0, {"snn": OTHER}, Choice(26, may_segment=True)),
        ("cpu", 26, 1, {"snn": OTHER}, Choice(26)),
        ("gpu", 26, 0, {"snn": OTHER}, Choice(26)),
        ("cpu", 4, 0, {}, Choice(4)),
        ("cpu", 8, 1, {}, Choice(8)),
        ("cpu", 8, 8, {}, CLOSED),
        ("cpu", 8, 8, {"snn": ZONE}, CLOSED),
        ("cpu", 8, 0, {"snn": OTHER}, Choice(8)),
        *[("cpu", 8, 8, {"surrogate": soft}, Choice(8)) for soft in SOFT],
        ("gpu", 8, 0, {}, Choice(8)),
        ("tpu", 8, 0, {}, Choice(1, group=128)),
        ("tpu", 8, 1, {}, Choice(8)),
        ("tpu", 4, 1, {}, Choice(4, group=128)),
        ("tpu", 4, 1, {"snn": RADIX}, Choice(4, group=128)),
        ("tpu", 8, 1, {"snn": RADIX}, Choice(8)),
        ("tpu", 4, 3, {"snn": RADIX}, CLOSED._replace(gradient_steps=4)),
        # What is asked for is taken as it is.
        *[
            ("tpu", 4, 0, {"execution": execution}, Choice(execution))
            for execution in (1, 2, 4)
        ],
    ],
)
def test_what_is_chosen(platform, steps, wait, options, choice):
    options = {"surrogate": dspike, "execution": "auto", "snn": SNN} | options
    snn = options.pop("snn")
    simulation = Simulation(
        NET.fn,
        steps,
        wait,
        detach_reset=False,
        inputs="constant",
        micro_batch=None,
        has_aux=False,
        answer=False,
        **options,
    )
    assert choose(simulation, snn, platform) == choice


def dense(w, x):
    return jax.nn.relu(x @ w)


def convolution(w, x):
    return jax.nn.relu(jax.lax.conv(x[:, :, None], w[..., None], (1,), "SAME"))


@pytest.mark.parametrize(
    "model, fn, steps, batch, options, cut",
    [
        (lif(), dense, 96, 128, {}, True),  # 3 x 2^20 numbers
        pytest.param(
            Recurrent(lif()), dense, 96, 128, {}, True, marks=pytest.mark.thorough
        ),
        pytest.param(
            Adaptive(lif()),
            dense,
            96,
            128,
            {"surrogate": relaxed_dspike},
            True,
            marks=pytest.mark.thorough,
        ),
        (lif(), dense, 96, 127, {}, False),
        (lif(), dense, 96, 128, {"micro_batch": 64}, False),
        (lif(), dense, 25, 512, {}, False),
        (Recurrent(lif()), convolution, 96, 128, {}, False),
    ],
)
def test_a_long_gradient_on_a_cpu_takes_segments(model, fn, steps, batch, options, cut):
    w, x = eighths(0, (256, 256)), eighths(1, (steps, batch, 256))
    snn = snnjax.init(fn, w, x[0], model=model, key=jax.random.key(0))

    def slope(execution):
        always = {"steps": steps, "inputs": "sequence", "execution": execution}
        simulate = snnjax.spiking(fn, **always, **options)
        return jax.grad(lambda snn: (simulate(snn, x) ** 2).mean())

    program = str(jax.make_jaxpr(slope("auto"))(snn))
    assert (re.search(r"\blength=25\b", program) is not None) == (cut or steps == 25)
    assert ("prevent_cse=True" in program) == cut  # segments computed anew
    if cut:
        auto, layers = outputs_of(map(slope, ("auto", steps)), snn)
        for a, b in zip(*map(jax.tree.leaves, (auto, layers)), strict=True):
            assert_allclose(a, b, atol=1e-5 * abs(b).max())


def test_the_devices_of_the_images_decide_inside_jit_too():
    x = jnp.ones((8, 3))
    data = jax.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
    assert sharding.platform(np.ones(3)) == sharding.platform(x) == "cpu"
    platforms = []
    jax.jit(lambda x: platforms.append(sharding.platform(x)))(jax.device_put(x, data))
    jax.jit(lambda x: platforms.append(sharding.platform(x)))(x)
    with jax.default_device(jax.devices("cpu")[1]):
        platforms.append(sharding.platform(np.ones(3)))
    assert platforms == ["cpu"] * 3


def test_the_kind_of_a_device_says_its_platform():
    kinds = {"cpu": "cpu", "TPU v5 lite": "tpu", "NVIDIA H100": "gpu"}
    platforms = []
    cpu = jax.make_mesh((2,), ("data",)).abstract_mesh.abstract_device
    for kind in kinds:
        device = dataclasses.replace(cpu, device_kind=kind)
        mesh = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=device)
        data = jax.NamedSharding(mesh, jax.P("data"))
        x = jax.ShapeDtypeStruct((8,), "float32", sharding=data)
        jax.eval_shape(lambda x: platforms.append(sharding.platform(x)), x)
    assert platforms == [*kinds.values()]


# ---------------------------------------------------------- lowered elsewhere


@pytest.mark.parametrize(
    "execution, wait",
    [
        (1, 0),
        (STEPS, 1),
        (2, 0),
        ("closed_form", 4),
    ],
)
def test_every_execution_and_its_gradient_are_lowered(execution, wait):
    options = {"steps": STEPS, "wait": wait, "execution": execution}
    simulate = snnjax.spiking(NET.fn, **options)

    def both(snn, x):
        slope = jax.grad(lambda snn: (simulate(snn, x) ** 2).sum())
        return simulate(snn, x), slope(snn)

    export = jax.export.export(jax.jit(both), platforms=["cuda", "tpu"])
    assert export(SNN, NET.x).mlir_module()
