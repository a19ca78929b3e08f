"""Devices that share the examples of x give the same numbers as one device.

Trainings and conversions of several processes are in ``test_processes.py``.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_close
from chex import assert_trees_all_equal as assert_equal
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import NETWORKS, REFINED, eighths, relu
from rows import thorough

import snnjax
from snnjax import sharding
from snnjax.calibrators import least_squares_weights, max_threshold
from snnjax.neurons import Adaptive, Recurrent, Synaptic

STEPS, BATCH = 5, 16  # few steps would be computed outside of a loop
FEW = 2  # but a fit unrolls its loops anyway
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
LIGHT = snnjax.light("channel")
REFITTING = snnjax.Recipe([least_squares_weights(), max_threshold("channel")])
slow = pytest.mark.slow


def on_devices(x, count=8, kind=AUTO, axis=0):
    """x on so many devices, which share its examples."""
    mesh = jax.make_mesh((count,), ("data",), axis_types=(kind,))
    spec = PartitionSpec(*[None] * axis, "data")
    return jax.device_put(x, NamedSharding(mesh, spec))


def batch(net, inputs="constant"):
    """Examples in eighths, so that sums are exact."""
    shape = (BATCH, *net.x.shape[1:])
    return eighths(7, (STEPS, *shape) if inputs == "sequence" else shape)


assert_close = functools.partial(assert_trees_all_close, rtol=2e-5, atol=2e-5)


def communication(program):
    """Collectives of a compiled program."""
    text = program.as_text()
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    return {kind for kind in kinds if f" {kind}(" in text or f" {kind}-start(" in text}


@pytest.mark.parametrize(
    "name, inputs, kind, options",
    [
        ("projection", "constant", AUTO, {"micro_batch": 3}),
        ("max-pool before", "constant", AUTO, {"execution": STEPS, "wait": 1}),
        ("dense", "constant", EXPLICIT, {"execution": STEPS, "micro_batch": 1}),
        ("dense", "constant", AUTO, {"wait": STEPS}),
        ("several outputs", "sequence", AUTO, {"micro_batch": 1}),
        ("input skip", "sequence", AUTO, {}),
        ("dense", "sequence", EXPLICIT, {"execution": 3}),
    ],
)
def test_devices_share_the_examples_and_nothing_else(name, inputs, kind, options):
    net = NETWORKS[name]
    snn = snnjax.init(*net[:3], model=snnjax.integrate_and_fire())
    x = batch(net, inputs)
    shared = on_devices(x, kind=kind, axis=1 if inputs == "sequence" else 0)
    simulate = snnjax.spiking(net.fn, steps=STEPS, inputs=inputs, **options)
    program = jax.jit(simulate).lower(snn, shared).compile()
    outputs = program(snn, shared)
    assert_equal(outputs, jax.jit(simulate)(snn, x))
    for output in jax.tree.leaves(outputs):
        assert output.sharding.shard_shape(output.shape)[1] == BATCH // 8
    assert communication(program) == set()


@pytest.mark.thorough
def test_devices_share_the_examples_without_jit_and_inside_set_mesh():
    net = NETWORKS["dense"]
    snn, x = snnjax.init(*net[:3]), batch(net)
    simulate = snnjax.spiking(net.fn, steps=STEPS)
    expected, compiled = jax.jit(simulate)(snn, x), jax.jit(simulate)
    for kind in (AUTO, EXPLICIT):
        shared = on_devices(x, kind=kind)
        outputs = simulate(snn, shared)
        assert outputs.sharding.shard_shape(outputs.shape)[1] == BATCH // 8
        with jax.set_mesh(shared.sharding.mesh):
            for result in (outputs, compiled(snn, shared)):
                assert_equal(np.asarray(result), expected)


@pytest.mark.parametrize(
    "neuron, execution",
    [
        (snnjax.integrate_and_fire(levels=(-1, 1)), 1),
        *thorough((Recurrent(Synaptic(Adaptive(snnjax.lif()))), 1)),
        pytest.param(snnjax.lif(), 2, marks=slow),
    ],
    ids=["signed", "recurrent", "segments"],
)
def test_the_gradient_of_any_neuron_is_summed_over_the_devices(neuron, execution):
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3], model=neuron, key=jax.random.key(0))
    x = batch(net)
    simulate = snnjax.spiking(net.fn, steps=STEPS, execution=execution, micro_batch=2)

    def loss(snn, x):
        outputs = simulate(snn, x)
        return (outputs**2).mean(), outputs

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    alone = gradient(snn, x)
    shared = on_devices(x)
    program = gradient.lower(snn, shared).compile()
    assert_close(program(snn, shared), alone)
    assert communication(program) == {"all-reduce"}
    assert any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(alone[0]))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6, use_bias=False)(x)
        x = relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(relu(nn.Dense(4)(x)))


@pytest.mark.thorough
@pytest.mark.parametrize("inputs, kind", [("constant", EXPLICIT), ("sequence", AUTO)])
def test_batch_norm_is_trained_on_all_devices_as_on_one(inputs, kind):
    net, shape = Normed(), (BATCH, 4)
    variables = net.init(jax.random.key(0), jnp.zeros(shape))
    snn = snnjax.init(net.apply, variables, jnp.zeros(shape))
    x = eighths(6, (STEPS, *shape) if inputs == "sequence" else shape)
    simulate = snnjax.spiking(
        functools.partial(net.apply, train=True, mutable=["batch_stats"]),
        steps=STEPS,
        inputs=inputs,
        has_aux=True,
    )

    def loss(snn, x):
        outputs, aux = simulate(snn, x)
        return (outputs.mean(0) ** 2).mean(), aux

    step = jax.jit(jax.grad(loss, has_aux=True))
    shared = on_devices(x, kind=kind, axis=1 if inputs == "sequence" else 0)
    program = step.lower(snn, shared).compile()
    assert_close(program(snn, shared), step(snn, x))
    assert communication(program) == {"all-reduce"}


def test_conversion_and_measures_follow_the_sharding_of_the_images():
    """The SNN lies on all devices of the mesh; Explicit axes become Auto axes."""
    net = NETWORKS["dense"]
    x, labels = batch(net), np.arange(BATCH) % 3
    convert = functools.partial(snnjax.convert, net.fn, steps=FEW, recipe=LIGHT)
    simulate = jax.jit(snnjax.spiking(net.fn))

    def results(snn, x, labels):
        outputs = simulate(snn, x)
        measures = snnjax.measure(net.fn, snn, x, params=net.params)
        trains = snnjax.measures.spike_trains(net.fn, snn, x)
        return outputs, snnjax.accuracy(outputs, labels), measures, trains

    alone = convert(net.params, x)
    *expected, trains = results(alone, x, labels)
    shared_x, shared_labels = on_devices((x, labels), kind=EXPLICIT)
    shared = convert(net.params, shared_x)
    assert_close(shared, alone)
    assert list(shared.neurons) == list(alone.neurons)
    for leaf in jax.tree.leaves(shared):
        assert len(leaf.sharding.device_set) == 8 and leaf.is_fully_replicated
    *values, shared_trains = results(shared, shared_x, shared_labels)
    assert_close(values, expected)
    assert_equal(shared_trains, trains)
    assert_close(simulate(alone, shared_x), expected[0])


@pytest.mark.thorough
@pytest.mark.parametrize(
    "devices, recipe, neuron, wait",
    [
        (2, REFINED, snnjax.integrate_and_fire(levels=(-1, 1)), 0),
        pytest.param(8, snnjax.advanced(iterations=3), None, 0, marks=slow),
        pytest.param(8, LIGHT, None, 1, marks=slow),
        pytest.param(2, snnjax.advanced(iterations=3), None, FEW, marks=slow),
        pytest.param(8, REFINED, None, FEW, marks=slow),
    ],
)
def test_any_recipe_is_fitted_on_devices_as_on_one(
    devices, recipe, neuron, wait, monkeypatch
):
    net = NETWORKS["dense"]
    x = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    options = {"steps": FEW, "recipe": recipe, "model": neuron, "wait": wait}
    alone = snnjax.convert(net.fn, net.params, x, **options)
    module = snnjax.conversion.engine.start
    monkeypatch.setattr(module, "_micro_batch_size", lambda *_, **__: 5)
    shared = snnjax.convert(net.fn, net.params, on_devices(x, devices), **options)
    assert_close(shared, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [pytest.param(AUTO, marks=slow), EXPLICIT])
def test_parameters_may_be_sharded_on_another_axis_of_the_mesh(kind):
    net = NETWORKS["input skip"]
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    halves = NamedSharding(mesh, PartitionSpec("model"))
    params = jax.tree.map(
        lambda p: jax.device_put(p, halves) if p.shape[0] % 2 == 0 else p, net.params
    )
    parts = [not p.is_fully_replicated for p in jax.tree.leaves(params)]
    x = eighths(0, (BATCH, *net.x.shape[1:]))
    shared_x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    options = {"steps": FEW, "recipe": REFITTING}
    shared = snnjax.convert(net.fn, params, shared_x, **options)
    alone = snnjax.convert(net.fn, net.params, x, **options)
    assert_close(shared, alone, rtol=1e-4, atol=1e-4)
    leaves = jax.tree.leaves(shared.params)
    assert any(parts) and [not p.is_fully_replicated for p in leaves] == parts


def test_the_sharding_of_a_batch_is_that_of_its_first_array():
    for x in (np.zeros((8, 3)), jnp.zeros((8, 3)), jax.ShapeDtypeStruct((8,), "f4")):
        assert sharding.batch_sharding(x) is None
    sizes = []

    def note(x):
        sizes.append(sharding.size(sharding.batch_sharding(x)))
        return x

    x = on_devices(jnp.zeros((16, 24)))
    jax.jit(note)(x)
    jax.jit(lambda x: note(x[:12]))(x)  # 12 examples are not shared by 8 devices
    jax.jit(lambda x: jax.vmap(note)(x.reshape(2, 8, 24)))(x)
    data = PartitionSpec("data")
    jax.shard_map(note, mesh=x.sharding.mesh, in_specs=data, out_specs=data)(x)
    assert sizes == [8, 1, 8, 1]
