"""Conversion: the sweep against the oracle, and what must not change its result.

Conversion on several devices is in ``test_sharding.py``.
"""

import functools
import gc
import io
import sys
import warnings
import weakref

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import reference
from chex import assert_trees_all_close
from chex import assert_trees_all_equal as assert_equal
from networks import (
    FLAT,
    IMAGES,
    NETWORKS,
    REFINED,
    VECTORS,
    compiled,
    outputs_of,
    relu,
)
from rows import thorough

import snnjax
from snnjax import Recipe, _progress, calibrators
from snnjax.calibrators import max_threshold
from snnjax.conversion.engine import calibration, site_view
from snnjax.conversion.images import CalibrationImages

STEPS = 4
RECIPES = {
    "max_activation": snnjax.max_activation(),
    "percentile": snnjax.percentile(99.0),
    "bias_shift": snnjax.bias_shift("channel"),
    "light": snnjax.light(),
    "advanced": snnjax.advanced(iterations=3, learning_rate=1e-3),
    "best": REFINED,
}
# Without a search, so that it compiles as a part of one program.
REFITTING = Recipe(
    [
        calibrators.least_squares_weights(iterations=3),
        calibrators.least_squares_threshold("channel", 0.5),
        calibrators.half_charge(),
    ]
)
NET = NETWORKS["concatenation"]
slow = pytest.mark.slow


def images(count=64, seed=0, width=4):
    numbers = np.random.default_rng(seed).normal(size=(count, width))
    return jnp.asarray(numbers, jnp.float32)


def convert(net=NET, x=None, **options):
    x = images() if x is None else x
    options = {"steps": STEPS, "recipe": RECIPES["light"]} | options
    return snnjax.convert(net.fn, net.params, x, **options)


@functools.cache
def converted(recipe, wait=0):
    """`NET` by a recipe, for the tests that only look at it."""
    return convert(recipe=RECIPES[recipe], wait=wait)


def fit_and_run(fn, params, x, recipe=RECIPES["light"], steps=STEPS, **options):
    """The SNN by a recipe, and its outputs [T, B, ...], in NumPy."""
    snn = snnjax.convert(fn, params, x, steps=steps, recipe=recipe, **options)
    return jax.device_get((snn, compiled(fn)(snn, x)))


@pytest.fixture
def in_groups_of(monkeypatch):
    """Called with a number, it sets how many images are computed at a time."""
    here = snnjax.conversion.engine.start, "_micro_batch_size"
    return lambda size: monkeypatch.setattr(*here, lambda *_, **__: size)


assert_close = functools.partial(assert_trees_all_close, rtol=1e-5, atol=1e-5)


def test_light_is_the_oracles_sweep():
    x, p = images(10), FLAT
    kernels = [np.asarray(p[name], np.float64) for name in ("w1", "w2", "w3")]
    biases = [np.asarray(p["b1"], np.float64), 0.0, 0.0]
    for steps in (3, 8):
        snn, outputs = fit_and_run(NETWORKS["dense"].fn, p, x, steps=steps)
        thresholds, added, expected = reference.light(
            kernels, biases, np.asarray(x, np.float64), steps
        )
        for neuron, threshold, bias in zip(
            snn.neurons.values(), thresholds, added, strict=True
        ):
            assert neuron.threshold == pytest.approx(threshold, rel=1e-5)
            np.testing.assert_allclose(neuron.bias, bias, atol=1e-5)
        np.testing.assert_allclose(outputs.mean(0), expected, atol=1e-4)


@pytest.mark.parametrize(
    "name, wait", [("percentile", 1), ("bias_shift", STEPS), ("best", 0)]
)
def test_every_recipe_gives_a_network_that_runs(name, wait, in_groups_of):
    net = NETWORKS["max-pool after" if name == "best" else "projection"]
    in_groups_of(3)
    options = {"steps": STEPS, "wait": wait, "recipe": RECIPES[name]}
    convert = snnjax.convert if name == "best" else networks.converted
    snn = convert(*net[:3], **options)
    assert (snn.steps, snn.wait) == (STEPS, wait)
    sites = [site for site in snnjax.sites(*net[:3]) if site.fires]
    names = [site.name for site in sites]
    assert list(snn.neurons) == names
    for site in sites:
        params = snn.neurons[site.name]
        assert (np.asarray(params.threshold) > 0).all()
        for value in params[:3]:
            assert value.shape in ((), site.shape[-1:], site.shape)
    assert jax.tree.map(jnp.shape, snn.params) == jax.tree.map(jnp.shape, net.params)
    outputs = jax.jit(snnjax.spiking(net.fn))(snn, net.x)
    assert outputs.shape == (STEPS, 4, 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((snn, outputs)))


@pytest.mark.parametrize(
    "recipe, wait, group",
    [
        ("advanced", STEPS, 24),  # of 64: the last one is not full
        *thorough(("best", 0, 32)),
        pytest.param("best", 0, 24, marks=slow),
        pytest.param("light", 1, 24, marks=slow),
    ],
)
def test_groups_and_memory_do_not_change_the_result(
    recipe, wait, group, in_groups_of, monkeypatch
):
    expected = converted(recipe, wait)
    monkeypatch.setattr(site_view, "CACHE_BYTES", 0)
    in_groups_of(group)
    assert_close(convert(recipe=RECIPES[recipe], wait=wait), expected)


def channels_first(p, x):
    for name in ("w1", "w2"):
        kernel = p[name].transpose(3, 2, 0, 1)
        x = relu(jax.lax.conv(x, kernel, (1, 1), "SAME"))
    return x.mean((2, 3))


@pytest.mark.parametrize("name", ["convolutions", "channels first"])
def test_a_search_sees_the_same_neurons_at_fewer_positions(name, monkeypatch):
    compared = 0

    def look(view, fit):
        nonlocal compared
        whole = np.asarray(view.currents(fit.weights))
        rows = np.moveaxis(whole, view.site.channel, -1)
        rows = rows.reshape(*whole.shape[: -len(view.site.shape)], -1, rows.shape[-1])
        sampled_rows = rows[..., view.positions, :]
        sample = view.sample_currents(fit.weights)
        np.testing.assert_array_equal(sample, sampled_rows.reshape(sample.shape))
        compared += sample.size
        return fit

    fn, params, x, _ = NETWORKS["convolutions"]
    if name == "channels first":
        fn, params, x = channels_first, IMAGES, jnp.moveaxis(x, -1, 1)
    monkeypatch.setattr(site_view, "CACHE_BYTES", 0)
    monkeypatch.setattr(calibrators.sample, "SAMPLES", 3 * len(x))
    recipe = Recipe([max_threshold(), look, calibrators.scale_threshold((0.5, 1))])
    snnjax.convert(fn, params, x, steps=STEPS, recipe=recipe)
    assert compared


def test_with_wait_T_the_pace_of_spikes_does_not_count():
    def fitted(pace):
        chain = max_threshold("channel"), calibrators.scale_threshold(pace=pace)
        return convert(recipe=Recipe(chain), wait=STEPS)

    assert_equal(fitted(0.0), fitted(0.5))


def test_the_same_conversion_gives_the_same_bits_again():
    default = snnjax.convert(*NET[:2], images(), steps=STEPS)
    assert_equal(default, snnjax.convert(*NET[:2], images(), steps=STEPS))
    assert_equal(convert(recipe=RECIPES["advanced"]), converted("advanced"))


def test_currents_are_computed_once_for_all_calibrators(monkeypatch):
    run, sites = calibration.run, []

    def counted(work, *arguments):
        sites.append(work.site)
        return run(work, *arguments)

    monkeypatch.setattr(calibration, "run", counted)
    convert(recipe=snnjax.best())
    assert len(sites) == NET.sites + 1  # and the outputs; the ANN has its own program


def many_sites(params, x):
    x = jnp.broadcast_to(x, (len(x), 2**16))
    for _ in range(63):
        x = jax.nn.relu(params * x)
    return x[:, :1]


NETWORKS_OF_LARGE_IMAGES = {  # network, images in a micro-batch
    # 63 sites of 2^18 bytes, of 2^28 for all sites together.
    "many sites": (many_sites, 16),
    # 2^23 bytes of outputs, of 2^24.
    "a large output": (
        lambda params, x: params * jnp.tile(jax.nn.relu(params * x), 2**21),
        2,
    ),
    # 2^23 bytes of a site, of 2^24.
    "a large site": (
        lambda params, x: params * jax.nn.relu(params * jnp.tile(x, 2**21))[:, :1],
        2,
    ),
}


@pytest.mark.parametrize("name", NETWORKS_OF_LARGE_IMAGES)
def test_a_micro_batch_has_sites_and_outputs_that_fit_in_memory(name, monkeypatch):
    fn, count = NETWORKS_OF_LARGE_IMAGES[name]
    counts = []

    def first_count(_, size):
        counts.append(size)
        raise InterruptedError

    monkeypatch.setattr(CalibrationImages, "micro_batches", first_count)
    x = np.float32(np.arange(1, 65)[:, None])
    with pytest.raises(InterruptedError):
        snnjax.convert(fn, jnp.float32(1), x, steps=1)
    assert counts == [count]


def test_fn_is_traced_for_one_example_whatever_the_micro_batches_are(in_groups_of):
    """And for all of them, which shows that it means the same for many."""
    sizes = []

    def fn(p, x):
        sizes.append(x.shape[0])
        return NET.fn(p, x)

    for size in (64, 32):
        in_groups_of(size)
        recipe = RECIPES["light"]
        snnjax.convert(fn, FLAT, images(), steps=STEPS, recipe=recipe)
    assert sizes == [1, 64] * 2


def test_the_images_that_weights_are_fitted_to_are_always_the_same(in_groups_of):
    """One in three of 96, which 40 does not divide."""
    chain = (
        calibrators.least_squares_weights(samples=1),
        calibrators.least_squares_threshold("channel"),
    )
    run = functools.partial(convert, x=images(96), steps=2, recipe=Recipe(chain))
    plain = run()
    in_groups_of(40)
    assert_close(run(), plain)
    assert any(np.any(plain.params[name] != FLAT[name]) for name in FLAT)


@pytest.mark.parametrize("wait", [0, STEPS])
def test_a_network_in_bfloat16_serves_as_well(wait):
    net, x = NETWORKS["dense"], images()
    half = snnjax.in_dtype(net.fn, jnp.bfloat16)
    ann, rounded_ann = outputs_of([net.fn, half], net.params, x)
    assert 0 < np.abs(ann - rounded_ann).max() < 0.02 * np.abs(ann).max()
    errors = []
    for fn in (net.fn, half):
        snn, outputs = fit_and_run(fn, net.params, x, wait=wait)
        assert {leaf.dtype for leaf in jax.tree.leaves(snn)} == {np.dtype("float32")}
        assert outputs.dtype == np.float32
        errors.append(np.abs(outputs.mean(0) - ann).mean())
    assert errors[1] < 1.2 * errors[0]


def test_in_dtype_takes_what_the_function_takes_and_three_types():
    def fn(params, x, train=True):
        return relu(params["scale"] * x) if train else x, 3, train

    half = snnjax.in_dtype(fn, "float16")
    output, number, train = half({"scale": 0.5}, jnp.ones((1, 1)), train=True)
    assert (output.dtype, number, train) == (jnp.float32, 3, True)


def test_light_lowers_the_error_of_the_outputs():
    x, simulate = images(), jax.jit(snnjax.spiking(NET.fn))
    ann, errors = jax.jit(NET.fn)(NET.params, x), []
    for name in ("max_activation", "light", "best"):
        snn = converted(name)
        errors.append(np.abs(simulate(snn, x).mean(0) - ann).mean())
    assert errors[0] > errors[1] > errors[2]
    assert_equal(converted("light").params, NET.params)


def test_kernels_change_where_spikes_come_in_and_nothing_else():
    descent = calibrators.calibrate_weights(iterations=3, learning_rate=1e-2)
    recipe = Recipe([max_threshold(), descent])

    def changed_kernels(**options):
        params = convert(**options).params
        return {name for name in FLAT if np.any(params[name] != FLAT[name])}

    for wait in (0, STEPS):
        assert changed_kernels(recipe=recipe, wait=wait) == {"w1", "w2", "wide"}
    refitted = changed_kernels(recipe=REFITTING, steps=2)
    assert refitted and refitted < {"w1", "w2", "wide"}


@slow
@pytest.mark.parametrize("wait", [0, 16])
def test_best_does_not_lose_to_light_on_new_inputs_of_a_dense_network(wait):
    """A channel of a dense layer has one sample per image, often below new ones.

    So few images give one threshold per layer.
    """

    def fn(p, x):
        return relu(relu(x @ p[0]) @ p[1]) @ p[2]

    recipes = {"light": snnjax.light(), "best": snnjax.best("layer")}
    simulate, errors = jax.jit(snnjax.spiking(fn)), dict.fromkeys(recipes, 0.0)
    for seed in range(3):
        draw = np.random.default_rng(seed).normal
        shapes = (8, 24), (24, 24), (24, 3)
        params = [np.float32(draw(size=s) * np.sqrt(2 / s[0])) for s in shapes]
        x, new = images(32, seed + 10, 8), images(1000, seed + 20, 8)
        ann = np.asarray(jax.jit(fn)(params, new))
        for name, recipe in recipes.items():
            options = {"steps": 16, "wait": wait, "recipe": recipe}
            snn = snnjax.convert(fn, params, x, **options)
            outputs = simulate(snn, new).mean(0)
            errors[name] += np.linalg.norm(outputs - ann) / np.linalg.norm(ann)
    assert errors["best"] < errors["light"], errors


def test_a_comparison_of_two_activations_causes_a_warning():
    def unpooled(params, x):
        hidden = jax.nn.relu(x @ params["w"])
        largest = jnp.max(hidden, axis=1, keepdims=True)
        return jnp.where(hidden == largest, hidden, 0)

    params = {"w": networks.eighths(1, (5, 6))}
    convert = functools.partial(snnjax.convert, steps=STEPS, recipe=RECIPES["light"])
    with pytest.warns(UserWarning, match=r"two activations are equal \(eq\)"):
        convert(unpooled, params, networks.eighths(2, (64, 5)))


def test_few_calibration_images_cause_a_warning():
    def trace(net=NET, **options):
        run = functools.partial(snnjax.convert, net.fn, steps=STEPS, **options)
        return functools.partial(run, net.params)

    best, light = (trace(recipe=RECIPES[name]) for name in ("best", "light"))
    with pytest.warns(UserWarning, match="potentials .*are fitted to 63 samples each"):
        best(images(63))
    with pytest.warns(UserWarning, match="biases .*are .* 63 .* recommended: 64 cal"):
        light(images(63))
    recommended = snnjax.Recipe([calibrators.least_squares_threshold("layer")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best(images(64))
        trace(recipe=recommended)(images(63))
        net = NETWORKS["batch norm"]  # four images of 36 positions
        trace(net, recipe=RECIPES["light"])(net.x)


def test_images_that_do_not_vary_cause_a_warning():
    cases = (
        (jnp.zeros((16, 4)), "calibration images are all zero"),
        (jnp.ones((16, 4)), "calibration images are all equal"),
        (np.tile(np.arange(4.0), (16, 1)), "calibration images are all equal"),
    )
    recipe = snnjax.max_activation()
    for x, message in cases:
        with pytest.warns(UserWarning, match=f"{message}.* Give images") as warned:
            convert(x=x, recipe=recipe)
        assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        almost = np.zeros((16, 4), np.float32)
        almost[-1, -1] = 1
        convert(x=almost, recipe=recipe)


def test_a_dead_layer_and_dead_channels_stay_silent():
    dead = FLAT | {"w1": FLAT["w1"].at[:, 2].set(0), "b1": -jnp.ones(6)}
    off = FLAT | {"b1": jnp.full(6, -100.0)}
    for params, recipe in ((dead, "best"), (off, "best")):
        net = NETWORKS["dense"]._replace(params=params)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            snn = convert(net, recipe=RECIPES[recipe])
        messages = [str(warning.message) for warning in warned]
        assert {warning.filename for warning in warned} <= {__file__}
        silent = "activations of site 'w1/relu' are 0 for all calibration images"
        assert any(silent in message for message in messages) == (params is off)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(snn))
        assert all((np.asarray(n.threshold) > 0).all() for n in snn.neurons.values())


def test_thresholds_of_a_clipped_relu_are_not_above_its_maximum():
    net = NETWORKS["clipped"]
    x = 5 * images()
    assert np.abs(np.asarray(x) @ np.asarray(FLAT["w1"])).max() > 1
    for recipe in ("light", "best", "max_activation"):
        first, second = convert(net, x, recipe=RECIPES[recipe]).neurons.values()
        assert np.all(first.threshold <= 1) and np.all(second.threshold <= 6)
    assert first.threshold == 1


def of_own_maxima(p, x):
    return snnjax.clipped_relu(x @ p["w"], p["maxima"])


@pytest.mark.thorough
def test_each_channel_may_have_a_maximum_of_its_own():
    maxima, x = np.float32([0.1, 0.5, 1.0, 2.0]), 2 * np.asarray(images())
    p = {"w": np.eye(4, dtype=np.float32), "maxima": maxima}
    run = functools.partial(snnjax.convert, of_own_maxima, p, x)
    simulate = jax.jit(snnjax.spiking(of_own_maxima, steps=64))
    for recipe in (snnjax.light("channel"), RECIPES["best"]):
        outputs = simulate(run(steps=64, recipe=recipe), x).mean(0)
        np.testing.assert_allclose(outputs, np.clip(x, 0, maxima), atol=0.02)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_shows_the_site(monkeypatch):
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stderr", terminal)
    convert()
    *lines, last = terminal.getvalue().split("\r")[1:]
    names = [site.name for site in snnjax.sites(*NET[:2], images())]
    assert len(lines) == len(names) == 3 and last == "\x1b[K"
    for number, (line, name) in enumerate(zip(lines, names, strict=True), 1):
        assert line.startswith("wait 0: [####")
        assert line.endswith(f"] site {number} of 3: {name}\x1b[K")
    list(_progress.shown(names, "a long title" * 9, "site", str))
    assert max(map(len, terminal.getvalue().split("\r"))) <= 59 + len("\x1b[K")
    monkeypatch.setattr(sys, "stderr", file)
    convert()
    assert not file.getvalue()


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
    fits = (
        calibrators.least_squares_weights(iterations=2),
        calibrators.calibrate_weights(iterations=2),
    )
    with pytest.warns(UserWarning, match=f"the weights {shared} stay as they are"):
        recipe = Recipe([max_threshold(), *fits])
        snn = snnjax.convert(fn, FLAT, images(), steps=STEPS, recipe=recipe)
    np.testing.assert_array_equal(snn.params[shared], FLAT[shared])


def test_a_kernel_that_a_sum_carries_to_a_second_site():
    """The kernel belongs to the first site that it reaches, and to no later one."""

    def fn(p, x):
        y = relu(x @ p[0]) @ p[1]
        y = y + relu(y @ p[2]) @ p[3]
        return relu(y @ p[4])

    p = list(np.float32(np.random.default_rng(0).normal(size=(5, 4, 4))))
    snn, outputs = fit_and_run(fn, p, images(), REFITTING, steps=16, wait=16)
    ann = jax.jit(fn)(p, images())
    assert np.abs(outputs.mean(0) - ann).mean() < 0.2 * ann.mean()
    differs = [bool(np.any(a != b)) for a, b in zip(p, snn.params, strict=True)]
    assert not differs[1] and any(differs)


def test_calibration_asks_for_the_true_derivative():
    """Not for one that was written for training, as to scale or stop a gradient."""

    @jax.custom_vjp
    def stopped(x):
        return 2 * x

    stopped.defvjp(lambda x: (stopped(x), None), lambda _, g: (jnp.zeros_like(g),))

    def snn_with(between, recipe):
        def fn(p, x):
            return relu(between(relu(x @ p["w1"]) @ p["w2"])) @ p["w3"]

        x = images(seed=2)
        return snnjax.convert(fn, FLAT, x, steps=2, recipe=RECIPES[recipe])

    for recipe in ("advanced", "best"):
        snn = snn_with(stopped, recipe)
        assert_close(snn, snn_with(lambda x: 2 * x, recipe))
        assert np.any(snn.params["w2"] != FLAT["w2"])


def test_a_second_conversion_compiles_nothing():
    scaled = jax.custom_jvp(lambda x: 2 * x)
    scaled.defjvp(lambda primals, tangents: (2 * primals[0], 2 * tangents[0]))

    def fn(p, x):
        return relu(scaled(relu(x @ p["w1"]) @ p["w2"])) @ p["w3"]

    run = functools.partial(snnjax.convert, fn, FLAT, images(), steps=2)
    compiled = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    first, programs = run(), len(compiled)
    assert 0 < programs < 60  # of two sites: most serve one of them only
    assert_equal(run(), first)
    assert len(compiled) == programs


def test_a_conversion_leaves_nothing_to_the_garbage_collector():
    """A cycle would keep the currents and activations of all sites in memory."""
    views = []

    def look(view, fit):
        view.output(fit)
        view.sample_currents(fit.weights)
        views.append(weakref.ref(view))
        return fit

    gc.collect()
    gc.disable()
    try:
        convert(recipe=Recipe([max_threshold(), look]))
        assert [view() for view in views] == [None] * NET.sites
    finally:
        gc.enable()


def test_the_input_of_a_site_may_be_read_again():
    for name in ("bare pre-activation", "branches"):
        _, outputs = fit_and_run(NETWORKS[name].fn, FLAT, VECTORS)
        assert np.isfinite(outputs).all()


def test_constants_may_have_the_batch_size(in_groups_of):
    def fn(p, x):
        x = np.zeros((x.shape[0], 2), np.float32) @ np.ones((2, 4), np.float32) + x
        return relu(x @ p["w1"]) @ p["w3"]

    run = functools.partial(networks.converted, fn, FLAT, images(10), steps=STEPS)
    whole = run(recipe=RECIPES["light"])
    in_groups_of(4)
    assert_close(run(recipe=RECIPES["light"]), whole)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=slow)])
def test_outputs_keep_their_types(dtype):
    """Also those that are no answers: a mask, an image's number."""

    def fn(p, x):
        batch = x.shape[0]
        return NET.fn(p, x), jnp.ones(batch, bool), jnp.full(batch, 16777217)

    params, x = jax.tree.map(lambda a: a.astype(dtype), (FLAT, images(16)))
    _, (logits, mask, numbers) = fit_and_run(fn, params, x)
    assert (logits.dtype, mask.dtype, numbers.dtype) == (dtype, bool, jnp.int32)
    assert mask.all() and (numbers == 16777217).all()


def test_numpys_arrays_and_pythons_numbers_serve_as_arguments():
    def fn(p, x):
        return NET.fn(p["arrays"], x * p["scale"]) * p["offset"]

    params = {"arrays": FLAT, "scale": 2.0, "offset": 1}
    doubles = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, images()))
    options = {"recipe": snnjax.percentile(90.0)}
    snn = snnjax.convert(fn, params, images(), steps=np.int64(STEPS), **options)
    assert type(snn.steps) is int
    options = {"recipe": snnjax.percentile(np.array(90))}
    assert_equal(snnjax.convert(fn, *doubles, steps=STEPS, **options), snn)


def weights(change):
    """A calibrator that returns the fit with other weights."""

    def calibrate(view, fit):
        return fit._replace(weights={p: change(w) for p, w in fit.weights.items()})

    return calibrate


def test_weights_of_numpy_come_back_in_the_networks_type():
    doubled = weights(lambda w: 2 * np.asarray(w, float))
    snn = convert(NETWORKS["dense"], recipe=Recipe([max_threshold(), doubled]))
    assert isinstance(snn.params["w1"], jax.Array)
    assert snn.params["w1"].dtype == jnp.float32
    assert_equal(snn.params["w1"], 2 * NETWORKS["dense"].params["w1"])


def test_arrays_of_numpy_may_change_after_a_conversion():
    def array():
        # JAX may share memory that begins at a multiple of 64 bytes.
        memory = np.zeros(256, np.uint8)
        start = -memory.ctypes.data % 64
        return memory[start : start + 32].view(np.float32)

    scale, bias = array(), array()
    scale += 1
    recipe = Recipe([max_threshold(), lambda _, fit: fit.with_neurons(bias=bias)])
    x = jnp.linspace(0, 1, 128).reshape(16, 8)
    snn = snnjax.convert(lambda p, x: relu(x) * p, scale, x, steps=4, recipe=recipe)
    arrays = snn.params, snn.neurons
    copies = jax.tree.map(np.array, arrays)
    scale += 1
    bias += 1
    assert_equal(arrays, copies)


def test_weights_may_be_changed_in_place():
    outputs, snns = {}, {}
    for in_place in (False, True):

        def halve(view, fit, in_place=in_place):
            view.output(fit)  # currents of the old weights are there
            weights = fit.weights if in_place else dict(fit.weights)
            for path in weights:
                weights[path] = weights[path] / 2
            return fit._replace(weights=weights)

        def look(view, fit, in_place=in_place):
            outputs.setdefault(in_place, []).append(view.output(fit))
            return fit

        recipe = Recipe([max_threshold(), halve, look])
        snns[in_place] = convert(NETWORKS["dense"], recipe=recipe)
    assert_equal(snns[True], snns[False])
    assert_equal(outputs[True], outputs[False])


@pytest.mark.parametrize("dtype", [jnp.float32, *thorough(jnp.bfloat16)])
def test_images_may_be_wider_than_the_weights(dtype, x64):
    net = NETWORKS["dense"]
    params = jax.tree.map(lambda p: p.astype(dtype), net.params)
    x = np.asarray(images(), np.float32)
    net = net._replace(params=params)
    recipe = RECIPES["best" if dtype == jnp.bfloat16 else "light"]
    same = convert(net, x, recipe=recipe)
    x64()
    wider = convert(net, np.float64(x), recipe=recipe)
    tolerance = float(4 * jnp.finfo(dtype).eps)
    for path, weight in same.params.items():
        assert wider.params[path].dtype == dtype
        np.testing.assert_allclose(
            np.float32(wider.params[path]), np.float32(weight), atol=100 * tolerance
        )


def test_each_site_has_the_recipe_of_its_name():
    maximum, exact = snnjax.max_activation(), snnjax.light("channel")
    names = list(converted("light").neurons)
    by_site = convert(recipe={names[0]: maximum, "*": exact})
    first, second = (convert(recipe=recipe) for recipe in (maximum, exact))
    assert_equal(by_site.neurons[names[0]], first.neurons[names[0]])
    assert np.shape(by_site.neurons[names[1]].threshold) == np.shape(
        second.neurons[names[1]].threshold
    )


@slow
def test_a_conversion_may_run_without_jit():
    with jax.disable_jit():
        snn = convert(steps=2)
    assert_close(snn, convert(steps=2))


@pytest.mark.parametrize("code", [snnjax.codes.rate(), snnjax.codes.radix()])
def test_outputs_whose_squares_float32_does_not_hold_cause_a_warning(code):
    net = NETWORKS["dense"]
    params = net.params | {"w3": 1e25 * net.params["w3"]}
    recipe = snnjax.max_activation()
    with pytest.warns(UserWarning, match="outputs is nan, .* below 1e18"):
        convert(net._replace(params=params), recipe=recipe, code=code)


def test_a_recipe_without_thresholds_warns():
    with pytest.warns(UserWarning, match="no calibrator.*thresholds of w1/relu"):
        convert(NETWORKS["dense"], recipe=Recipe([calibrators.half_charge()]))
