"""Devices that share a batch: the same numbers as one, and no example moves.

Conversion on a mesh is in ``test_convert.py``, trainings in ``test_processes.py``.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, eighths, relu

import snnjax
from snnjax.neurons import adaptive, recurrent, synaptic
from snnjax.simulation import by_layer

STEPS, BATCH = 4, 16


def mesh(devices):
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), axis_types=auto)


def batch(net, inputs):
    """Examples in eighths, so that sums are exact, and a key."""
    shape = (BATCH, *net.x.shape[1:])
    if inputs == "poisson":
        return jnp.abs(eighths(7, shape)) / 4, jax.random.key(3)
    return eighths(7, (STEPS, *shape) if inputs == "sequence" else shape), None


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), a, b
    )


def compiled(function, *arguments):
    """The program, which runs on these arguments."""
    return jax.jit(function).lower(*arguments).compile()


def communication(program):
    """Collectives of a compiled program."""
    text = program.as_text()
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    return {kind for kind in kinds if f" {kind}(" in text or f" {kind}-start(" in text}


@pytest.mark.parametrize(
    "name, inputs, options",
    [
        ("projection", "constant", {}),
        ("projection", "constant", {"micro_batch": 3}),
        ("max-pool before", "constant", {"execution": "by_layer", "wait": 1}),
        ("dense", "constant", {"wait": STEPS}),
        ("several outputs", "poisson", {"micro_batch": 1}),
        ("input skip", "sequence", {}),
        ("dense", "sequence", {"execution": by_layer(segment=3)}),
    ],
)
def test_devices_share_the_examples_and_nothing_else(name, inputs, options, devices=8):
    net = NETWORKS[name]
    snn = snnjax.init(*net[:3], model=snnjax.integrate_and_fire())
    x, key = batch(net, inputs)
    options = {"steps": STEPS, "inputs": inputs} | options
    shared = snnjax.spiking(net.fn, mesh=mesh(devices), **options)
    alone = jax.jit(snnjax.spiking(net.fn, **options))(snn, x, key)
    program = compiled(shared, snn, x, key)
    found = program(snn, x, key)
    assert_equal(found, alone)
    for output in jax.tree.leaves(found):
        assert output.sharding.shard_shape(output.shape)[1] == BATCH // devices
    if key is None:
        assert communication(program) == set()


@pytest.mark.parametrize(
    "neuron",
    [
        snnjax.integrate_and_fire(levels=(-3, 3)),
        recurrent(synaptic(adaptive(snnjax.lif()))),
    ],
    ids=["graded", "recurrent"],
)
@pytest.mark.parametrize(
    "execution", ["by_step", pytest.param(by_layer(remat=True), marks=pytest.mark.slow)]
)
def test_devices_share_neurons_of_any_model(neuron, execution):
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3], model=neuron, key=jax.random.key(0))
    x, _ = batch(net, "constant")

    def run(mesh):
        simulate = snnjax.spiking(net.fn, steps=STEPS, execution=execution, mesh=mesh)

        def loss(snn):
            outputs = simulate(snn, x)
            return (outputs**2).mean(), outputs

        return jax.value_and_grad(loss, has_aux=True)(snn)

    (_, outputs), gradient = run(mesh(8))
    (_, expected), expected_gradient = run(None)
    assert_close(outputs, expected)
    assert_close(gradient, expected_gradient)
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_devices_convert_to_signed_neurons_as_one_does():
    net = NETWORKS["dense"]
    neuron = snnjax.integrate_and_fire(levels=(-1, 1))
    x, _ = batch(net, "constant")
    shared, alone = (
        snnjax.convert(net.fn, net.params, x, steps=STEPS, model=neuron, mesh=devices)
        for devices in (mesh(8), None)
    )
    assert_close(shared.neurons, alone.neurons)


def test_devices_share_the_examples_without_jit_too():
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3])
    x, _ = batch(net, "constant")
    found = snnjax.spiking(net.fn, steps=STEPS, mesh=mesh(8))(snn, x)
    assert_equal(found, snnjax.spiking(net.fn, steps=STEPS)(snn, x))
    assert found.sharding.shard_shape(found.shape)[1] == BATCH // 8


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batch": 2},
        pytest.param({"execution": by_layer(remat=True)}, marks=slow),
    ],
)
def test_the_gradient_is_summed_over_the_devices(options):
    net = NETWORKS["projection"]
    snn = snnjax.init(*net[:3])
    x, _ = batch(net, "constant")
    kinds = jax.tree.map(lambda p: jnp.issubdtype(p.dtype, jnp.floating), snn)
    assert all(jax.tree.leaves(kinds))

    def gradient(devices):
        simulate = snnjax.spiking(net.fn, steps=STEPS, mesh=devices, **options)
        return compiled(jax.grad(lambda snn: (simulate(snn, x) ** 2).mean()), snn)

    shared, alone = gradient(mesh(8)), gradient(None)
    assert_close(shared(snn), alone(snn))
    assert communication(shared) == {"all-reduce"}


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(3)(relu(nn.Dense(8)(x.reshape(x.shape[0], -1))))


@pytest.mark.parametrize(
    "inputs, remat",
    [
        pytest.param("constant", True, marks=slow),
        ("constant", False),
        ("sequence", False),
    ],
)
def test_batch_norm_is_trained_on_all_devices_as_on_one(inputs, remat):
    net = Normed()
    image = jnp.zeros((1, 6, 6, 2))
    variables = net.init(jax.random.key(0), image)
    snn = snnjax.init(net.apply, variables, image)
    shape = (BATCH, *image.shape[1:])
    x = eighths(6, (STEPS, *shape) if inputs == "sequence" else shape)

    def training(variables, x):
        return net.apply(variables, x, train=True, mutable=["batch_stats"])

    def step(devices):
        simulate = snnjax.spiking(
            training,
            steps=STEPS,
            inputs=inputs,
            execution=by_layer(remat=remat),
            has_aux=True,
            mesh=devices,
        )

        def loss(snn, x):
            outputs, aux = simulate(snn, x)
            return (outputs.mean(0) ** 2).mean(), aux

        return jax.grad(loss, has_aux=True)

    alone = jax.jit(step(None))(snn, x)
    axis = 1 if inputs == "sequence" else 0
    spread = jax.sharding.PartitionSpec(*[None] * axis, "data")
    x = jax.device_put(x, jax.sharding.NamedSharding(mesh(8), spread))
    shared = compiled(step(mesh(8)), snn, x)
    assert_close(shared(snn, x), alone)
    if not remat:  # bits of all examples lie in one row
        assert communication(shared) == {"all-reduce"}


def test_a_batch_that_devices_cannot_share_is_refused():
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3])
    simulate = snnjax.spiking(net.fn, steps=STEPS, mesh=mesh(8))
    with pytest.raises(ValueError, match="x: 10 .* evenly by 8 devices; give 8, or"):
        simulate(snn, jnp.zeros((10, *net.x.shape[1:])))
    with pytest.raises(ValueError, match="mesh is 'all'; allowed: a jax.sharding"):
        snnjax.spiking(net.fn, steps=STEPS, mesh="all")


def test_explicit_axes_in_a_transformation_are_refused_where_no_loop_takes_them():
    net = NETWORKS["dense"]
    explicit = (jax.sharding.AxisType.Explicit,)
    given = jax.make_mesh((8,), ("data",), axis_types=explicit)
    spread = jax.sharding.NamedSharding(given, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(eighths(7, (BATCH, *net.x.shape[1:])), spread)
    snn = snnjax.init(*net[:3])
    grouped = jax.jit(snnjax.spiking(net.fn, steps=STEPS, micro_batch=4))
    with pytest.raises(ValueError, match="along Explicit axes.* allowed: mesh="):
        grouped(snn, x)
    whole = jax.jit(snnjax.spiking(net.fn, steps=STEPS))
    with (
        jax.set_mesh(given),
        pytest.raises(ValueError, match="inside jax.set_mesh of a mesh with Explicit"),
    ):
        whole(snn, x)


@pytest.mark.parametrize("axes", jax.sharding.AxisType.__members__.values())
def test_images_on_a_mesh_are_measured_as_elsewhere(axes):
    """`jax.make_mesh` makes Explicit axes, and an SNN from a mesh has Auto ones."""
    if axes is jax.sharding.AxisType.Manual:
        pytest.skip("of shard_map")
    net = NETWORKS["dense"]
    x, labels = eighths(7, (BATCH, *net.x.shape[1:])), jnp.arange(BATCH) % 3
    given = jax.make_mesh((8,), ("data",), axis_types=(axes,))
    spread = jax.sharding.NamedSharding(given, jax.sharding.PartitionSpec("data"))
    shared_x, shared_labels = jax.device_put((x, labels), spread)
    alone = snnjax.convert(net.fn, net.params, x, steps=STEPS, recipe=snnjax.light())
    options = {"steps": STEPS, "recipe": snnjax.light()}
    shared = snnjax.convert(net.fn, net.params, shared_x, mesh=given, **options)
    for snn in (alone, shared):
        simulate = snnjax.spiking(net.fn, steps=STEPS)
        outputs = simulate(snn, shared_x)
        assert_close(outputs, simulate(alone, x))
        assert_close(
            snnjax.accuracy(outputs, shared_labels),
            snnjax.accuracy(simulate(alone, x), labels),
        )
        measures = snnjax.measure(net.fn, net.params, snn, shared_x)
        assert_close(measures, snnjax.measure(net.fn, net.params, alone, x))
        trains = snnjax.measures.spike_trains(net.fn, snn, shared_x)
        assert_equal(trains, snnjax.measures.spike_trains(net.fn, alone, x))
