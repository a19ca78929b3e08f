"""Conversion: the sweep against the oracle, and what must not change its result."""

import dataclasses
import errno
import functools
import io
import os
import sys
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec
from networks import FLAT, IMAGES, NETWORKS, VECTORS, relu

import snnjax
from snnjax import Recipe
from snnjax.calibrators import (
    calibrate_weights,
    correct_potential,
    formulas,
    half_charge,
    least_squares_threshold,
    least_squares_weights,
    max_threshold,
    scale_threshold,
)
from snnjax.calibrators import weights_least_squares as solve

STEPS = 4
RECIPES = {
    "max_activation": snnjax.max_activation(),
    "percentile": snnjax.percentile(99.0),
    "bias_shift": snnjax.bias_shift("channel"),
    "light": snnjax.light(),
    "advanced": snnjax.advanced(iterations=3, learning_rate=1e-3),
    "best": snnjax.best(),
}
NET = NETWORKS["concatenation"]


def images(count=10, seed=0, width=4):
    numbers = np.random.default_rng(seed).normal(size=(count, width))
    return jnp.asarray(numbers, jnp.float32)


def convert(net=NET, x=None, **options):
    x = images() if x is None else x
    options = {"steps": STEPS, "recipe": RECIPES["light"]} | options
    return snnjax.convert(net.fn, net.params, x, **options)


def assert_close(a, b, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-5} | tolerance
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), a, b)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("steps", [3, 8])
def test_light_is_the_oracles_sweep(steps):
    x, p = images(), FLAT
    recipe = snnjax.light()
    snn = snnjax.convert(NETWORKS["dense"].fn, p, x, steps=steps, recipe=recipe)
    logits = snnjax.spiking(NETWORKS["dense"].fn, steps=steps)(snn, x).mean(0)
    kernels = [np.asarray(p[name], np.float64) for name in ("w1", "w2", "w3")]
    biases = [np.asarray(p["b1"], np.float64), 0.0, 0.0]
    thresholds, added, expected = reference.light(
        kernels, biases, np.asarray(x, np.float64), steps
    )
    for params, threshold, bias in zip(
        snn.neurons.values(), thresholds, added, strict=True
    ):
        assert params.threshold == pytest.approx(threshold, rel=1e-5)
        np.testing.assert_allclose(params.bias, bias, atol=1e-5)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize(
    "name, wait", [*zip(RECIPES, [0, 1, STEPS] * 2, strict=True), ("best", 0)]
)
def test_every_recipe_gives_a_network_that_runs(name, wait):
    net = NETWORKS["projection"]
    snn = snnjax.convert(
        *net[:3], steps=STEPS, wait=wait, recipe=RECIPES[name], micro_batch=3
    )
    assert (snn.steps, snn.wait) == (STEPS, wait)
    found = snnjax.sites(*net[:3])
    assert list(snn.neurons) == [site.name for site in found]
    for site in found:
        params = snn.neurons[site.name]
        assert (params.threshold > 0).all()
        for value in params[:3]:
            assert value.shape in ((), site.shape[-1:], site.shape)
    assert jax.tree.map(jnp.shape, snn.params) == jax.tree.map(jnp.shape, net.params)
    outputs = snnjax.spiking(net.fn, steps=STEPS, wait=wait)(snn, net.x)
    assert outputs.shape == (STEPS, 4, 3)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((snn, outputs)))


@pytest.mark.parametrize(
    "recipe, wait", [("light", 0), ("advanced", 0), ("advanced", STEPS), ("best", 1)]
)
@pytest.mark.parametrize("options", [{"micro_batch": 3}, {"memory_budget": 0}])
def test_groups_and_memory_do_not_change_the_result(recipe, wait, options):
    arguments = {"recipe": RECIPES[recipe], "wait": wait}
    assert_close(convert(**arguments), convert(**arguments, **options))


def channels_first(p, x):
    for name in ("w1", "w2"):
        kernel = p[name].transpose(3, 2, 0, 1)
        x = relu(jax.lax.conv(x, kernel, (1, 1), "SAME"))
    return x.mean((2, 3))


@pytest.mark.parametrize(
    "name, options",
    [("convolutions", {"memory_budget": 0}), ("channels first", {"micro_batch": 3})],
)
def test_a_search_sees_the_same_neurons_at_fewer_positions(name, options):
    compared = 0

    def look(view, fit):
        nonlocal compared
        fit = correct_potential()(view, half_charge()(view, fit))
        every, second = (
            jnp.concatenate(list(view.outputs(fit, stride=stride))) for stride in (1, 2)
        )
        kept = formulas.thin(every, 2, len(view.site.shape), view.site.channel)
        np.testing.assert_array_equal(second, kept)
        compared += second.size
        return fit

    fn, params, x, _ = NETWORKS["convolutions"]
    if name == "channels first":
        fn, params, x = channels_first, IMAGES, jnp.moveaxis(x, -1, 1)
    recipe = Recipe(((max_threshold(), look),))
    snnjax.convert(fn, params, x, steps=STEPS, recipe=recipe, **options)
    assert compared


def test_with_wait_T_the_pace_of_spikes_does_not_count():
    def fitted(pace):
        chain = max_threshold("channel"), scale_threshold(pace=pace)
        return convert(recipe=Recipe((chain,)), wait=STEPS)

    assert_equal(fitted(0.0), fitted(0.5))


@pytest.mark.parametrize("recipe", ["light", "advanced", "best"])
def test_the_same_arguments_give_the_same_bits(recipe):
    assert_equal(convert(recipe=RECIPES[recipe]), convert(recipe=RECIPES[recipe]))


def test_best_is_the_default():
    found = snnjax.convert(*NET[:2], images(), steps=STEPS)
    assert_equal(found, convert(recipe=RECIPES["best"]))


@pytest.mark.parametrize(
    "recipe", ["light", "advanced", pytest.param("best", marks=pytest.mark.slow)]
)
def test_conversion_may_be_jitted(recipe):
    run = functools.partial(snnjax.convert, NET.fn, steps=STEPS, recipe=RECIPES[recipe])
    assert_close(jax.jit(run)(NET.params, images()), run(NET.params, images()))


@pytest.mark.parametrize(
    "recipe, axis",
    [
        ("light", jax.sharding.AxisType.Auto),
        ("best", jax.sharding.AxisType.Explicit),
    ],
)
def test_images_on_eight_devices_give_the_same_network(recipe, axis):
    x = images(16)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis,))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    assert len(spread.sharding.device_set) == 8
    found = convert(x=spread, recipe=RECIPES[recipe])
    assert_close(found, convert(x=x, recipe=RECIPES[recipe]))


@pytest.mark.parametrize(
    "devices, recipe, wait",
    [
        (2, "light", 0),
        pytest.param(8, "advanced", 0, marks=pytest.mark.slow),
        pytest.param(8, "light", 1, marks=pytest.mark.slow),
        pytest.param(2, "advanced", STEPS, marks=pytest.mark.slow),
        pytest.param(8, "best", 0, marks=pytest.mark.slow),
        pytest.param(8, "best", STEPS, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_of_any_size_gives_the_same_network(devices, recipe, wait):
    mesh = jax.make_mesh((devices,), ("data",))
    run = functools.partial(
        convert, x=np.asarray(images(24)), recipe=RECIPES[recipe], wait=wait
    )
    found = run(mesh=mesh, micro_batch=2)
    assert_close(found, run(micro_batch=5))
    for leaf in jax.tree.leaves(found):
        assert len(leaf.sharding.device_set) == devices
        assert leaf.is_fully_replicated


@pytest.mark.parametrize(
    "name, axis",
    [
        pytest.param(
            "concatenation", jax.sharding.AxisType.Auto, marks=pytest.mark.slow
        ),
        ("input skip", jax.sharding.AxisType.Explicit),
    ],
)
def test_parameters_may_be_sharded_on_another_axis_of_the_mesh(name, axis):
    net, x = NETWORKS[name], images(16, width=NETWORKS[name].x.shape[-1])
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis,) * 2)
    halves = NamedSharding(mesh, PartitionSpec("model"))
    params = jax.tree.map(
        lambda p: jax.device_put(p, halves) if p.shape[0] % 2 == 0 else p, net.params
    )
    sharded = [p for p in jax.tree.leaves(params) if not p.is_fully_replicated]
    assert sharded
    found = convert(net._replace(params=params), x, recipe=RECIPES["best"], mesh=mesh)
    assert_close(found, convert(net, x, recipe=RECIPES["best"]))
    kept = [p for p in jax.tree.leaves(found.params) if not p.is_fully_replicated]
    assert len(kept) == len(sharded)


def test_a_mesh_is_refused_where_another_one_makes_shardings_explicit():
    axes = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((8,), ("data",), axis_types=axes)
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="inside jax.set_mesh of a mesh with Explicit"),
    ):
        convert(x=images(16), mesh=mesh)
    shared = jax.device_put(images(16), NamedSharding(mesh, PartitionSpec("data")))
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="inside jax.set_mesh of a mesh with Explicit"),
    ):
        convert(x=shared)


def test_currents_are_computed_once_for_all_calibrators_on_a_mesh_too(monkeypatch):
    module = sys.modules["snnjax.conversion.engine.site_view"]
    step, calls = module.run_snn, []

    def counted(plan, chunk, i, params):
        calls.append(i)
        return step(plan, chunk, i, params)

    monkeypatch.setattr(module, "run_snn", counted)
    for mesh in (None, jax.make_mesh((8,), ("data",))):
        convert(x=images(16), recipe=RECIPES["best"], mesh=mesh)
    assert calls == [0, 1, 2] * 2


@pytest.mark.parametrize(
    "recipe", ["percentile", "advanced", pytest.param("best", marks=pytest.mark.slow)]
)
def test_what_waits_in_files_gives_the_same_bits_on_a_mesh_too(recipe):
    for mesh in (None, jax.make_mesh((8,), ("data",))):
        run = functools.partial(
            convert, x=images(16), recipe=RECIPES[recipe], mesh=mesh, micro_batch=1
        )
        assert_equal(run(memory_budget=0), run())


def test_what_waits_needs_few_files():
    resource = pytest.importorskip("resource")
    lowest = os.open(os.devnull, os.O_RDONLY)  # the first number that is free
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    run = functools.partial(convert, x=images(48), micro_batch=1)
    expected = run()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 24, hard))
        assert_equal(run(memory_budget=0), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_full_disk_of_temporary_files_is_told(monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with pytest.raises(OSError, match="No space left on device. Set TMPDIR"):
        convert(memory_budget=0)


@pytest.mark.parametrize("micro_batch, devices", [(5, None), (None, 8)])
def test_the_images_that_weights_are_fitted_to_are_always_the_same(
    micro_batch, devices
):
    """One in three of 96, which neither 5 nor 8 devices divide."""
    chain = (
        least_squares_weights(samples=1),
        least_squares_threshold("channel"),
    )
    run = functools.partial(convert, x=images(96), steps=2, recipe=Recipe((chain,)))
    mesh = devices and jax.make_mesh((devices,), ("data",))
    found, plain = run(micro_batch=micro_batch, mesh=mesh), run()
    assert_close(found, plain)
    moved = jax.tree.map(lambda a, b: jnp.any(a != b), plain.params, NET.params)
    assert any(jax.tree.leaves(moved))


def test_images_that_devices_cannot_share_are_refused():
    mesh = jax.make_mesh((8,), ("data",))
    with pytest.raises(ValueError, match="20 examples cannot be shared evenly by 8"):
        convert(x=images(20), mesh=mesh)
    with pytest.raises(ValueError, match="mesh is 8; allowed: a jax.sharding.Mesh"):
        convert(x=images(20), mesh=8)


@pytest.mark.parametrize("wait", [pytest.param(0, marks=pytest.mark.slow), STEPS])
def test_a_network_in_bfloat16_serves_as_well(wait):
    net = NETWORKS["projection"]
    x = jax.random.normal(jax.random.key(0), (64, *net.x.shape[1:]))
    half = snnjax.in_dtype(net.fn, jnp.bfloat16)
    ann = net.fn(net.params, x)
    assert 0 < jnp.abs(ann - half(net.params, x)).max() < 0.02 * jnp.abs(ann).max()
    errors = []
    for fn in (net.fn, half):
        options = {"steps": STEPS, "wait": wait}
        snn = snnjax.convert(fn, net.params, x, recipe=RECIPES["light"], **options)
        assert {leaf.dtype for leaf in jax.tree.leaves(snn)} == {jnp.dtype("float32")}
        outputs = snnjax.spiking(fn, **options)(snn, x)
        assert outputs.dtype == jnp.float32
        errors.append(jnp.abs(outputs.mean(0) - ann).mean())
    assert errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize("dtype", [jnp.int8, None, "bf16", jnp.float64])
def test_other_types_to_compute_in_are_refused(dtype):
    with pytest.raises(ValueError, match="allowed: bfloat16, float16, float32"):
        snnjax.in_dtype(NET.fn, dtype)


def test_in_dtype_takes_what_the_function_takes():
    def fn(params, x, train=True):
        return relu(params["scale"] * x) if train else x, 3, train

    half = snnjax.in_dtype(fn, "float16")
    output, number, train = half({"scale": 0.5}, jnp.ones((1, 1)), train=True)
    assert (output.dtype, number, train) == (jnp.float32, 3, True)


def test_light_lowers_the_error_of_the_outputs():
    x = images(64)
    ann = NET.fn(NET.params, x)
    errors = [
        jnp.abs(snnjax.spiking(NET.fn, steps=STEPS)(snn, x).mean(0) - ann).mean()
        for snn in (
            convert(x=x, recipe=RECIPES[name])
            for name in ("max_activation", "light", "best")
        )
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    "count, steps, wait",
    [
        pytest.param(128, 256, 0, marks=pytest.mark.slow),
        (32, 16, 0),
        (32, 16, 16),
    ],
)
def test_best_does_not_lose_to_light_on_new_inputs_of_a_dense_network(
    count, steps, wait
):
    """A channel of a dense layer has one sample per image, often below new ones."""
    errors = {"light": 0.0, "best": 0.0}
    for seed in range(4):
        generator = np.random.default_rng(seed)
        shapes = {"w1": (8, 24), "w2": (24, 24), "w3": (24, 3)}
        params = {
            name: jnp.asarray(generator.normal(size=s) * np.sqrt(2 / s[0]), jnp.float32)
            for name, s in shapes.items()
        }
        x, new = images(count, seed + 10, 8), images(1000, seed + 20, 8)
        ann = gaussian(params, new)
        for name in errors:
            snn = snnjax.convert(
                gaussian, params, x, steps=steps, wait=wait, recipe=RECIPES[name]
            )
            run = snnjax.spiking(gaussian, steps=steps, wait=wait)
            outputs = jax.jit(run)(snn, new).mean(0)
            errors[name] += float(jnp.linalg.norm(outputs - ann) / jnp.linalg.norm(ann))
    assert errors["best"] < errors["light"], errors


def gaussian(p, x):
    return relu(relu(x @ p["w1"]) @ p["w2"]) @ p["w3"]


def test_few_calibration_images_cause_a_warning():
    with pytest.warns(UserWarning, match="potentials are fitted to 15 samples each"):
        convert(x=images(15), recipe=RECIPES["best"])
    with pytest.warns(UserWarning, match="biases are .* 15 .* recommended: 16 cal"):
        convert(x=images(15))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(x=images(16), recipe=RECIPES["best"])
        net = NETWORKS["batch norm"]  # four images of 36 positions
        snnjax.convert(*net[:3], steps=STEPS, recipe=RECIPES["light"])


@pytest.mark.parametrize("objective", ["floor", "neuron", "spikes"])
@pytest.mark.parametrize("wait", [0, STEPS])
def test_weight_calibration_changes_only_the_kernels_before_sites(objective, wait):
    weights = calibrate_weights(objective, iterations=3, learning_rate=1e-2)
    recipe = Recipe(((max_threshold(), weights),))
    net = NETWORKS["dense"]
    snn = convert(net, recipe=recipe, wait=wait)
    changed = {name for name in FLAT if jnp.any(snn.params[name] != FLAT[name])}
    assert changed == {"w1", "w2"}


def test_without_weight_calibration_the_parameters_stay():
    for recipe in ("light", "best"):
        assert_equal(convert(recipe=RECIPES[recipe]).params, NET.params)


def test_a_dead_layer_and_dead_channels_stay_silent():
    dead = FLAT | {"w1": FLAT["w1"].at[:, 2].set(0), "b1": -jnp.ones(6)}
    off = FLAT | {"b1": jnp.full(6, -100.0)}
    for params, recipe in ((dead, "best"), (off, "light"), (off, "best")):
        net = NETWORKS["dense"]._replace(params=params)
        snn = convert(net, recipe=RECIPES[recipe])
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(snn))
        assert all((n.threshold > 0).all() for n in snn.neurons.values())


def test_thresholds_of_a_clipped_relu_are_not_above_its_maximum():
    net = NETWORKS["clipped"]
    x = 5 * images(64)
    assert jnp.abs(x @ FLAT["w1"]).max() > 1
    for recipe in ("max_activation", "light", "best"):
        first, second = convert(net, x, recipe=RECIPES[recipe]).neurons.values()
        assert (first.threshold <= 1).all() and (second.threshold <= 6).all()
    first, _ = convert(net, x, recipe=RECIPES["max_activation"]).neurons.values()
    assert first.threshold == 1


def of_own_maxima(p, x):
    return snnjax.clipped_relu(x @ p["w"], p["maxima"])


@pytest.mark.parametrize("recipe", [snnjax.light("channel"), snnjax.best()])
def test_each_channel_may_have_a_maximum_of_its_own(recipe):
    p, x = {"w": jnp.eye(4), "maxima": jnp.array([0.1, 0.5, 1.0, 2.0])}, 2 * images(64)
    snn = snnjax.convert(of_own_maxima, p, x, steps=256, recipe=recipe)
    outputs = snnjax.spiking(of_own_maxima, steps=256)(snn, x).mean(0)
    np.testing.assert_allclose(outputs, of_own_maxima(p, x), atol=0.02)


@pytest.mark.parametrize("recipe", ["max_activation", "percentile", "light"])
def test_one_threshold_for_several_maxima_is_refused(recipe):
    p = {"w": jnp.eye(4), "maxima": jnp.array([0.1, 0.5, 1.0, 2.0])}
    with pytest.raises(ValueError, match="a maximum of its own.*per='channel'"):
        snnjax.convert(of_own_maxima, p, images(), steps=4, recipe=RECIPES[recipe])


def test_progress_wraps_the_sites_of_every_sweep():
    counts = []

    def progress(sequence):
        counts.append(len(sequence))
        return sequence

    convert(recipe=RECIPES["advanced"], progress=progress)
    assert counts == [NET.sites, NET.sites]


def tied(p, x):
    x = relu(x @ p["w1"])
    return relu(relu(x @ p["w2"]) @ p["w2"]) @ p["w3"]


def tied_to_the_readout(p, x):
    return relu(x @ p["w1"]) @ p["w1"].T


def carried(p, x):
    """w2 reaches two sites: a sum carries it past the first, as in MobileNetV2."""
    y = relu(x @ p["w1"]) @ p["w2"]
    y = y + relu(y @ p["w2"].T) @ p["w2"]
    return relu(y @ p["w3"])


@pytest.mark.parametrize(
    "fn, shared",
    [(tied, "w2"), (tied_to_the_readout, "w1"), (carried, "w2")],
)
def test_weights_of_several_sites_stay_as_they_are(fn, shared):
    snn = snnjax.convert(fn, FLAT, images(32), steps=STEPS)
    np.testing.assert_array_equal(snn.params[shared], FLAT[shared])
    with pytest.warns(UserWarning, match=f"the weights {shared} stay as they are"):
        advanced = snnjax.convert(
            fn, FLAT, images(), steps=STEPS, recipe=RECIPES["advanced"]
        )
    np.testing.assert_array_equal(advanced.params[shared], FLAT[shared])


def test_a_calibrator_that_changes_shared_weights_is_refused():
    def double(view, fit):
        return fit._replace(weights={p: 2 * w for p, w in fit.weights.items()})

    with pytest.raises(ValueError, match="'w2' feed w2/relu, w2/relu_1, so .*; allo"):
        snnjax.convert(tied, FLAT, images(), steps=STEPS, recipe=Recipe(((double,),)))


def test_a_kernel_that_a_sum_carries_to_a_second_site():
    """The kernel belongs to the first site that it reaches, and to no later one."""

    def fn(p, x):
        y = relu(x @ p[0]) @ p[1]
        y = y + relu(y @ p[2]) @ p[3]
        return relu(y @ p[4])

    keys = jax.random.split(jax.random.key(0), 5)
    p = [jax.random.normal(key, (4, 4)) for key in keys]
    x = images(64)
    snn = snnjax.convert(fn, p, x, steps=8)
    error = jnp.abs(snnjax.spiking(fn, steps=8)(snn, x).mean(0) - fn(p, x)).mean()
    assert error < 0.2 * fn(p, x).mean()
    changed = [bool(jnp.any(a != b)) for a, b in zip(p, snn.params, strict=True)]
    assert not changed[1] and any(changed)


@pytest.mark.parametrize("recipe", ["advanced", "best"])
def test_calibration_asks_for_the_true_derivative(recipe):
    """Not for one that was written for training, as to scale or stop a gradient."""

    @jax.custom_vjp
    def stopped(x):
        return 2 * x

    stopped.defvjp(lambda x: (stopped(x), None), lambda _, g: (jnp.zeros_like(g),))

    def network(between):
        def fn(p, x):
            return relu(between(relu(x @ p["w1"]) @ p["w2"])) @ p["w3"]

        x = images(64, seed=2)
        return snnjax.convert(fn, FLAT, x, steps=2, recipe=RECIPES[recipe])

    found, plain = network(stopped), network(lambda x: 2 * x)
    assert_close(found, plain)
    assert jnp.any(found.params["w2"] != FLAT["w2"])


def test_a_second_conversion_compiles_nothing():
    scaled = jax.custom_jvp(lambda x: 2 * x)
    scaled.defjvp(lambda primals, tangents: (2 * primals[0], 2 * tangents[0]))

    def fn(p, x):
        return relu(scaled(relu(x @ p["w1"]) @ p["w2"])) @ p["w3"]

    run = functools.partial(snnjax.convert, fn, FLAT, images(), steps=2)
    first, programs = run(), solve._along._cache_size()
    assert programs
    assert_equal(run(), first)
    assert solve._along._cache_size() == programs


def test_best_moves_kernels_where_spikes_come_in_and_nothing_else():
    snn = convert(x=images(64), steps=2, recipe=RECIPES["best"])
    moved = {
        path: bool(jnp.any(new != old))
        for (path, new), old in zip(
            jax.tree_util.tree_leaves_with_path(snn.params),
            jax.tree.leaves(NET.params),
            strict=True,
        )
    }
    names = {jax.tree_util.keystr(path, simple=True) for path, m in moved.items() if m}
    assert names
    kernels = {
        jax.tree_util.keystr(path, simple=True)
        for path, leaf in jax.tree_util.tree_leaves_with_path(NET.params)
        if leaf.ndim >= 2
    }
    assert names < kernels


@pytest.mark.parametrize("name", ["bare pre-activation", "branches"])
def test_the_input_of_a_site_may_be_read_again(name):
    net = NETWORKS[name]
    snn = convert(net)
    outputs = snnjax.spiking(net.fn, steps=STEPS)(snn, VECTORS)
    assert jnp.isfinite(outputs).all()


def test_constants_may_have_the_batch_size():
    def fn(p, x):
        x = np.zeros((x.shape[0], 2), np.float32) @ np.ones((2, 4), np.float32) + x
        return relu(x @ p["w1"]) @ p["w3"]

    run = functools.partial(snnjax.convert, fn, FLAT, images(10), steps=STEPS)
    quick = RECIPES["light"]
    assert_close(run(recipe=quick, micro_batch=4), run(recipe=quick))


def test_activations_that_are_not_finite_are_named():
    broken = FLAT | {"w2": FLAT["w2"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="activations of site 'w2/relu' hold .* NaN"):
        snnjax.convert(NETWORKS["dense"].fn, broken, images(), steps=STEPS)


def test_outputs_that_are_not_finite_are_refused():
    broken = FLAT | {"w3": FLAT["w3"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="outputs of the network hold .* NaN"):
        snnjax.convert(NETWORKS["dense"].fn, broken, images(), steps=STEPS)


def test_of_several_outputs_the_one_that_is_not_finite_is_named():
    def fn(p, x):
        return {
            "logits": NETWORKS["dense"].fn(p, x),
            "mask": jnp.full_like(x, -jnp.inf),
        }

    with pytest.raises(ValueError, match="the outputs 'mask' of the network hold 40"):
        snnjax.convert(fn, FLAT, images(10), steps=STEPS)


@pytest.mark.parametrize(
    "dtype, devices",
    [
        (jnp.float32, 1),
        pytest.param(jnp.bfloat16, 1, marks=pytest.mark.slow),
        (jnp.float32, 8),
    ],
)
def test_outputs_keep_their_types(dtype, devices):
    """Also those that are no answers: a mask, an image's number."""

    def fn(p, x):
        batch = x.shape[0]
        return NET.fn(p, x), jnp.ones(batch, bool), jnp.full(batch, 16777217)

    params, x = jax.tree.map(lambda a: a.astype(dtype), (FLAT, images(16)))
    mesh = jax.make_mesh((devices,), ("data",))
    snn = snnjax.convert(fn, params, x, steps=STEPS, recipe=RECIPES["light"], mesh=mesh)
    snn = jax.device_get(snn)
    logits, mask, numbers = snnjax.spiking(fn, steps=STEPS)(snn, x)
    assert (logits.dtype, mask.dtype, numbers.dtype) == (dtype, bool, jnp.int32)
    assert mask.all() and (numbers == 16777217).all()


def test_numpy_and_python_numbers_serve_as_parameters():
    def fn(p, x):
        return NET.fn(p["arrays"], x * p["scale"]) * p["offset"]

    params = {"arrays": FLAT, "scale": 2.0, "offset": 1}
    plain = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    steps = np.int64(STEPS)
    snn = snnjax.convert(fn, params, images(), steps=steps)
    assert_equal(snnjax.convert(fn, plain, images(), steps=STEPS), snn)
    assert type(snn.steps) is int


def neuron(**changes):
    """A calibrator that gives back the fit with another neuron."""
    return lambda view, fit: fit._replace(neurons=fit.neurons._replace(**changes))


@pytest.mark.parametrize(
    "calibrate, message",
    [
        (neuron(threshold=0.0), "'relu' threshold from 0.0 to 0.0; .* > 0"),
        (neuron(threshold=float("nan")), "threshold from nan"),
        (neuron(bias=jnp.array([jnp.inf] * 6)), "bias from inf"),
        (neuron(threshold=jnp.ones(3)), r"threshold of shape \(3,\); .* \(6,\)"),
        (neuron(leak=0.5), "a leak or a temperature; allowed: None"),
        (lambda view, fit: None, "'relu' None; allowed: a Fit"),
        (lambda view, fit: fit.neurons, "allowed: a Fit"),
        (lambda view, fit: fit._replace(weights={}), r"weights \[\]; allowed: \['w1'"),
        (
            lambda view, fit: fit._replace(weights={p: 0.0 for p in fit.weights}),
            "weights 'w1' as a float; allowed: an array",
        ),
        (
            lambda view, fit: fit._replace(
                weights={p: w.astype(int) for p, w in fit.weights.items()}
            ),
            "type int32; allowed: .* float32",
        ),
        (
            lambda view, fit: fit._replace(
                weights={p: w * jnp.nan for p, w in fit.weights.items()}
            ),
            "weights 'w1', fitted at 'relu', hold 24 values that are NaN",
        ),
        (lambda view, fit: fit._replace(weights=[]), r"weights \[\]; allowed: a dict"),
        (
            lambda view, fit: fit._replace(
                weights={p: w[0] for p, w in fit.weights.items()}
            ),
            r"of shape \(6,\) and type float32; allowed: \(4, 6\) and float32",
        ),
        (neuron(bias=None), "'relu' bias None; allowed: an array or a number"),
        (neuron(threshold="2"), "threshold '2'; allowed: an array or a number"),
        (neuron(threshold=True), "threshold True; allowed: an array or a number"),
    ],
)
def test_what_no_neuron_can_be_is_refused_with_its_site(calibrate, message):
    net = NETWORKS["dense"]
    with pytest.raises(ValueError, match=message):
        convert(net, recipe=Recipe(((max_threshold(), calibrate),)))


def test_weights_of_numpy_come_back_in_the_networks_type():
    def doubled(view, fit):
        wide = {p: 2 * np.asarray(w, float) for p, w in fit.weights.items()}
        return fit._replace(weights=wide)

    snn = convert(NETWORKS["dense"], recipe=Recipe(((max_threshold(), doubled),)))
    assert isinstance(snn.params["w1"], jax.Array)
    assert snn.params["w1"].dtype == jnp.float32
    assert_equal(snn.params["w1"], 2 * NETWORKS["dense"].params["w1"])


def test_weights_may_be_changed_in_place():
    outputs = {}

    def halve(view, fit, in_place):
        view.output(fit)  # currents of the old weights are there
        weights = fit.weights if in_place else dict(fit.weights)
        for path in weights:
            weights[path] = weights[path] / 2
        return fit._replace(weights=weights)

    def look(view, fit, in_place):
        outputs.setdefault(in_place, []).append(view.output(fit))
        return fit

    found = {}
    for in_place in (False, True):
        calibrators = (max_threshold(), halve, look)
        chain = [calibrators[0]]
        chain += [functools.partial(c, in_place=in_place) for c in calibrators[1:]]
        found[in_place] = convert(NETWORKS["dense"], recipe=Recipe((tuple(chain),)))
    assert_equal(found[True], found[False])
    assert_equal(outputs[True], outputs[False])


@pytest.mark.parametrize(
    "progress, message",
    [
        (reversed, "of type list_reverseiterator, whose item 0 is not site 0 of 3"),
        (lambda sites: sites[:1], "of type list, whose item 1 is not site 1 of 3"),
        (
            lambda sites: [*sites, sites[0]],
            "list, whose item 3 is not site 3 of 3",
        ),
        (len, "of type int, whose item 0 is not site 0 of 3; allowed: a function"),
    ],
)
def test_progress_that_changes_the_sites_is_refused(progress, message):
    with pytest.raises(ValueError, match=message):
        convert(progress=progress)


def test_a_percentage_may_be_numpy_s():
    ours, numpys = (convert(recipe=snnjax.percentile(p)) for p in (90.0, np.array(90)))
    assert_equal(ours, numpys)


def test_progress_that_is_no_function_is_refused():
    with pytest.raises(ValueError, match="progress is True; allowed: a function"):
        convert(progress=True)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_images_may_be_wider_than_the_weights(dtype, x64):
    net = NETWORKS["dense"]
    params = jax.tree.map(lambda p: p.astype(dtype), net.params)
    x = np.asarray(images(32), np.float32)
    same = convert(net._replace(params=params), x, recipe=snnjax.best())
    x64()
    found = convert(net._replace(params=params), np.float64(x), recipe=snnjax.best())
    tolerance = float(4 * jnp.finfo(dtype).eps)
    for path, weight in same.params.items():
        assert found.params[path].dtype == dtype
        np.testing.assert_allclose(
            np.float32(found.params[path]), np.float32(weight), atol=100 * tolerance
        )


def test_parameters_alone_may_be_traced():
    x = images()
    for budget in (0, 2**20):  # what is traced cannot wait in files
        run = functools.partial(convert, x=x, memory_budget=budget)
        compiled = jax.jit(lambda p, run=run: run(NET._replace(params=p)))
        assert_close(compiled(NET.params), convert(x=x))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps is 0; allowed: a whole number >= 1"),
        ({"wait": 5}, "wait is 5; allowed: .* to steps=4"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"memory_budget": -1}, "memory_budget is -1; allowed: >= 0 bytes"),
        ({"memory_budget": "1GB"}, "memory_budget is '1GB'; allowed: >= 0 bytes"),
        ({"recipe": "best"}, "recipe is 'best'; allowed: a Recipe"),
        ({"recipe": snnjax.best}, "snnjax.best\\(\\) \\(called\\)"),
        ({"recipe": snnjax.Recipe(())}, "it would fit nothing"),
        ({"recipe": snnjax.Recipe(None)}, "sweeps None; allowed: a tuple of chains"),
        (
            {"recipe": snnjax.Recipe(((snnjax.calibrators.max_threshold,),))},
            "called in a recipe, e.g. .*max_threshold",
        ),
        ({"recipe": snnjax.Recipe(((),))}, "it would fit nothing"),
        (
            {"recipe": snnjax.Recipe((half_charge(),))},
            "allowed: a tuple of calibrators",
        ),
        ({"x": images().at[0, 0].set(jnp.inf)}, "calibration images hold 1 values"),
        ({"x": images(0)}, "at least one example"),
        ({"x": jnp.ones((2, 4), jnp.uint8)}, "allowed: floating point"),
    ],
)
def test_a_wrong_argument_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        convert(**change)


def test_a_network_is_a_plain_pytree():
    snn = convert()
    leaves, tree = jax.tree.flatten(snn)
    again = jax.tree.unflatten(tree, leaves)
    assert (again.steps, again.wait) == (STEPS, 0)
    assert_equal(snn, again)
    assert dataclasses.replace(snn, steps=None).steps is None


@pytest.mark.slow
def test_a_conversion_may_run_without_jit():
    with jax.disable_jit():
        found = convert(steps=2)
    assert_close(found, convert(steps=2))


@pytest.mark.parametrize("maximum", ["literal", "one", "per channel"])
def test_clipped_relus_are_converted_on_a_mesh(maximum):
    def fn(params, x):
        tops = {"literal": 1.5, "one": params["one"], "per channel": params["each"]}
        return snnjax.clipped_relu(x @ params["w"], tops[maximum]) @ params["v"]

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "w": jax.random.normal(keys[0], (6, 8)),
        "v": jax.random.normal(keys[1], (8, 3)),
        "one": jnp.asarray(1.5),
        "each": jnp.full(8, 1.5),
    }
    x = jax.random.normal(keys[2], (32, 6))
    alone, shared = (
        snnjax.convert(fn, params, x, steps=4, recipe=snnjax.light("channel"), mesh=m)
        for m in (None, jax.make_mesh((8,), ("data",)))
    )
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_recipe_without_thresholds_warns():
    recipe = Recipe(((half_charge(),),))
    with pytest.warns(UserWarning, match="no calibrator.*thresholds of w/relu"):
        snnjax.convert(
            lambda p, x: jax.nn.relu(x @ p["w"]),
            {"w": jnp.eye(3)},
            jnp.ones((16, 3)),
            steps=4,
            recipe=recipe,
        )


def test_images_of_numpys_doubles_are_converted():
    fn, weights = lambda w, x: jax.nn.relu(x @ w), jnp.eye(3)
    snn = snnjax.convert(fn, weights, np.ones((16, 3)), steps=4)
    assert snn.params.dtype == jnp.float32
