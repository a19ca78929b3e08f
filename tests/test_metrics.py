"""Measures: accuracy over time, rates, the parts of the error, operations, energy."""

import dataclasses
import functools
import math
import re
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from networks import NETWORKS, compiled, converted, eighths, outputs_of

import snnjax
from snnjax import calibrators
from snnjax.measures import operations, spike_trains
from snnjax.network.equations import Equation, Static

STEPS = 4
MAXIMUM = snnjax.max_activation()
RECIPES = {
    "clipping": snnjax.Recipe([calibrators.percentile_threshold(80)]),
    "maximum": MAXIMUM,
}


ONES = functools.partial(np.ones, dtype=np.float32)


@functools.cache
def measured(name, recipe="clipping", wait=0):
    """A network, its SNN and its measures."""
    net = NETWORKS[name]
    options = {"steps": STEPS, "wait": wait, "recipe": RECIPES[recipe]}
    snn = converted(*net[:3], **options)
    return net, snn, snnjax.measure(net.fn, snn, net.x, params=net.params)


def test_accuracy_after_t_steps_is_that_of_the_mean_of_the_first_t():
    outputs = np.random.default_rng(0).normal(size=(256, 200, 10)).astype("f4")
    counts = np.arange(1, 257)[:, None, None]
    means = np.cumsum(outputs, 0) / counts
    labels = np.arange(200) % 10
    expected = (means.argmax(-1) == labels).mean(-1)
    np.testing.assert_allclose(snnjax.accuracy(outputs, labels), expected, rtol=1e-6)
    # It adds up in more than the outputs' type.
    narrow = (outputs + 5).astype(jnp.bfloat16)
    answers = narrow.astype(np.float32).mean(0).argmax(-1)
    assert snnjax.accuracy(narrow, answers)[-1] == 1
    # An answer that is no number is wrong.
    outputs = ONES((2, 4, 3))
    outputs[1, :3] = np.nan
    message = "not finite: 9 of 24 numbers are NaN, and count as wrong answers"
    with pytest.warns(UserWarning, match=message):
        accuracies = snnjax.accuracy(outputs, np.zeros(4, int))
    assert accuracies.tolist() == [1, 0.25]
    # Class 256 would be 0 in eight bits.
    outputs = ONES((1, 2, 300)) * (np.arange(300) == 256)
    outputs[0, 1, 0] = 0.5
    for dtype in (np.int8, np.uint8, np.uint32):
        assert snnjax.accuracy(outputs, np.array([0, 1], dtype)) == 0.0


def test_the_parts_add_up_to_the_error():
    """They do so for each neuron: their root mean squares add up to it, or to more."""
    for name in ("batch norm", "dense"):
        for site in measured(name)[2].sites.values():
            parts = [site.inherited, site.clipping, site.flooring, site.unevenness]
            assert site.error <= sum(parts) + 1e-6
            assert max(parts) <= site.error + sum(parts) - max(parts) + 1e-6


def test_each_part_vanishes_without_its_cause():
    streaming, waiting = measured("dense")[2], measured("dense", wait=STEPS)[2]
    first, *_ = streaming.sites
    assert streaming.sites[first].unevenness < 1e-6  # its current is constant
    assert max(s.unevenness for s in streaming.sites.values()) > 1e-3
    assert max(s.unevenness for s in waiting.sites.values()) < 1e-6
    # A maximum threshold does not clip what calibration saw.
    assert measured("dense", "maximum")[2].sites[first].clipping < 1e-6


def test_firing_rates_are_those_of_the_spikes():
    net, snn, measures = measured("batch norm")
    (trains,) = outputs_of([functools.partial(spike_trains, net.fn)], snn, net.x)
    for name, train in trains.items():
        assert len(train) == STEPS
        rate = measures.sites[name].firing_rate
        np.testing.assert_allclose(rate, train.mean(), rtol=1e-6)
        silent = ~train.any(tuple(range(train.ndim - 1)))
        np.testing.assert_allclose(measures.sites[name].silent, silent.mean())
    all_trains = np.concatenate([train.ravel() for train in trains.values()])
    np.testing.assert_allclose(measures.firing_rate, all_trains.mean(), rtol=1e-6)


def test_spikes_of_inputs_that_change_are_those_of_an_independent_simulator():
    """Two dense layers and events drawn at random."""

    def fn(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params["w1"]) @ params["w2"])

    generator, key = np.random.default_rng(0), jax.random.key(0)
    params = {
        "w1": np.float32(generator.normal(size=(6, 9))),
        "w2": np.float32(generator.normal(size=(9, 4))),
    }
    events = jax.random.bernoulli(key, 0.5, (STEPS, 5, 6)).astype(np.float32)
    snn = snnjax.init(fn, params, np.asarray(events[0]), model=snnjax.lif(leak=0.7))
    run = functools.partial(spike_trains, fn, snn, steps=STEPS, inputs="sequence")
    (trains,) = outputs_of([run], events)
    stream = np.asarray(events)
    for name, train in trains.items():
        weight_name, _ = name.split("/")
        currents = stream @ np.asarray(params[weight_name])
        stream = reference.simulate(currents, 1.0, leak=0.7)
        np.testing.assert_array_equal(train, stream > 0)
        assert stream.any()


@pytest.mark.parametrize("code", [snnjax.codes.rate(), snnjax.codes.radix()])
def test_constants_beside_spikes_are_no_synaptic_operations(code):
    def fn(p, x):
        h = jax.nn.relu(x @ p["w"])
        spikes_and_constants = jnp.concatenate([h, x], -1)
        return (1.5 * h + 0.25) @ p["out"][:4], spikes_and_constants @ p["out"]

    params = {"w": eighths(1, (3, 4)), "out": ONES((4 + 3, 5))}
    x = np.abs(eighths(0, (16, 3))) + np.float32(0.125)
    neuron = snnjax.integrate_and_fire(levels=(0, 3), threshold=0.125)
    snn = snnjax.init(fn, params, x, model=neuron, code=code)
    run = functools.partial(spike_trains, fn, steps=2)
    measure = functools.partial(snnjax.measure, fn, params=params, steps=2)
    trains, measures = outputs_of([run, measure], snn, x)
    levels = trains["w/relu"]
    assert levels.max() > 1
    # Each of 16 images has spikes that reach five neurons of each of two products.
    assert measures.synaptic_operations == (5 + 5) * np.sum(levels != 0) / 16
    assert measures.synaptic_additions == (5 + 5) * np.sum(levels) / 16
    assert measures.input_macs == 3 * 4 + 5 * 3


MATRICES = {"dimension_numbers": (((2,), (1,)), ((0,), (2,)))}
LISTED = {  # dimension numbers may be in any order
    "padding": "VALID",
    "dimension_numbers": ("NCHW", "HWOI", "NHWC"),
    "window_strides": (1, 2),
}


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "SAME"},
        {"padding": [(1, 2), (0, 3)], "window_strides": (2, 1)},
        {"padding": [(2, 1), (2, 2)], "lhs_dilation": (2, 1), "rhs_dilation": (1, 2)},
        {"padding": [(-1, 0), (0, -1)], "feature_group_count": 2},
        {"padding": "VALID", "batch_group_count": 2},
        {"padding": "SAME", "window_strides": (7, 7)},
        LISTED,
        MATRICES,
    ],
    ids=lambda options: next(reversed(options)),
)
def test_the_fan_out_of_a_product_is_its_gradient_with_ones(options):
    """As NumPy counts it from shapes, and as XLA does by the product itself."""
    if options is MATRICES:
        product = jax.lax.dot_general
        left, right = ONES((3, 4, 5)), ONES((2, 5, 3))
    else:
        product = jax.lax.conv_general_dilated
        defaults = {
            "window_strides": (1, 1),
            "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        }
        options = defaults | options
        images = {"NHWC": (2, 5, 4, 2), "NCHW": (2, 2, 5, 4)}
        left = ONES(images[options["dimension_numbers"][0]])
        right = ONES((3, 3, 2 // options.get("feature_group_count", 1), 2))
    product = functools.partial(product, **options)
    (eqn,) = jax.make_jaxpr(product)(left, right).eqns
    params = tuple((name, Static(value)) for name, value in eqn.params.items())
    equation = Equation(eqn.primitive, params, (0, 1), (2,))
    avals = dict(enumerate([left, right, eqn.outvars[0].aval]))
    network = types.SimpleNamespace(avals=avals)
    gradients = jax.grad(lambda a, b: product(a, b).sum(), (0, 1))(left, right)
    for position, gradient in enumerate(gradients):
        fan_out = operations.fan_out(equation, network, position)
        assert fan_out.ndim == gradient.ndim
        uses = np.broadcast_to(fan_out, gradient.shape)
        np.testing.assert_array_equal(uses, gradient)
    assert operations.macs_of(equation, network) == gradients[0].sum()


def test_a_count_that_is_not_finite_is_refused(monkeypatch):
    net, snn, _ = measured("dense")
    monkeypatch.setattr(operations, "fan_out", lambda *_: np.full((1,), np.inf))
    monkeypatch.setattr(operations, "macs_of", lambda *_: 1)
    with pytest.raises(FloatingPointError, match="counts are finite .*XLA of jax"):
        snnjax.measure(net.fn, snn, net.x, params=net.params)


def test_measuring_may_be_jitted():
    net, snn, measures = measured("batch norm")
    run = jax.jit(
        lambda p, snn, x: snnjax.measure(net.fn, snn, x, params=p, steps=STEPS)
    )
    jitted = run(net.params, snn, net.x)
    for a, b in zip(jax.tree.leaves(jitted), jax.tree.leaves(measures), strict=True):
        assert a.shape == b.shape
    for name, site in jitted.sites.items():
        np.testing.assert_allclose(site.error, measures.sites[name].error, rtol=1e-4)


@pytest.mark.parametrize("levels", [(0, 1), (0, 3)])
def test_no_array_is_computed_of_constants_alone(levels):
    """XLA folds such arrays, and a max-pool of one for a minute."""

    def fn(params, x):
        for kernel in params:
            x = jax.nn.relu(jax.lax.conv(x, kernel, (1, 1), "SAME"))
            window = (1, 1, 3, 3), (1, 1, 2, 2), "VALID"
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *window)
        return x.sum((2, 3))

    params = [jnp.ones((4, 2, 3, 3)), jnp.ones((4, 4, 3, 3))]
    x, model = jnp.ones((3, 2, 31, 31)), snnjax.integrate_and_fire(levels=levels)
    snn = snnjax.init(fn, params, x, model=model)

    def run(snn, x, params):
        return snnjax.measure(fn, snn, x, params=params, steps=STEPS)

    # What depends on an argument has the size of the map, a prime, as a factor.
    many = jax.tree.map(lambda a: jnp.stack([a] * 13), (snn, x, params))
    program = str(jax.make_jaxpr(jax.vmap(run))(*many))
    pooled_count = 0
    for shape, primitive in re.findall(r":\w+\[([\d,]+)\] = (\w+)", program):
        size = math.prod(map(int, shape.split(",")))
        if primitive == "reduce_window_max":
            pooled_count += 1
        if primitive != "broadcast_in_dim" and size > params[1].size:
            assert size % 13 == 0, (shape, primitive)
    assert pooled_count >= 8


def test_neurons_without_a_clip_floor_have_no_split():
    net = NETWORKS["dense"]
    models = {"w1/relu": snnjax.lif(), "*": snnjax.integrate_and_fire(reset="zero")}
    snn = snnjax.init(*net[:3], model=models)
    measures = snnjax.measure(net.fn, snn, net.x, params=net.params, steps=STEPS)
    for site in measures.sites.values():
        assert np.isnan([site.clipping, site.flooring, site.unevenness]).all()
        assert site.error > 0


def test_an_snn_is_measured_with_what_it_was_fitted_to():
    net, snn, measures = measured("dense", wait=STEPS)
    assert (measures.steps, measures.wait) == (STEPS, STEPS)


@pytest.mark.parametrize("batch", [1, 5])
def test_operations_are_those_of_an_image_whatever_the_batch(batch):
    def fn(p, x):
        token = jnp.broadcast_to(p["token"], (x.shape[0], 2))
        return jax.nn.relu(jnp.concatenate([x, token], 1) @ p["w"]) @ p["v"]

    p = {"token": ONES((1, 2)), "w": ONES((6, 6)), "v": ONES((6, 3))}
    x = ONES((batch, 4))
    # The current is 6, so each neuron fires at every step.
    neuron = snnjax.integrate_and_fire(threshold=6.0)
    snn = snnjax.init(fn, p, x, model=neuron)
    measures = snnjax.measure(fn, snn, x, params=p, steps=4)
    assert (measures.macs, measures.synaptic_operations) == (36 + 18, 4 * 6 * 3)


def test_operations_do_not_depend_on_the_order_of_axes():
    kernels = (eighths(0, (4, 6)), ONES((6, 3)))
    x = eighths(1, (5, 4))

    def rows(p, x):
        return jax.nn.relu(x @ p[0]) @ p[1]

    def columns(p, x):
        return (p[1].T @ jax.nn.relu((p[0].T @ x.T).T).T).T

    snn = snnjax.init(rows, kernels, x, model=snnjax.integrate_and_fire())
    runs = []
    for fn in (rows, columns):
        runs.append(functools.partial(snnjax.measure, fn, params=kernels, steps=4))
    row_measures, column_measures = outputs_of(runs, snn, x)
    for measures in (row_measures, column_measures):
        assert (measures.macs, measures.input_macs) == (42, 24)
        assert measures.synaptic_operations > 0
    np.testing.assert_allclose(
        row_measures.synaptic_operations, column_measures.synaptic_operations
    )


def test_convolutions_are_counted_under_x64(x64):
    net, snn, measures = measured("batch norm")
    x64()
    wide_measures = snnjax.measure(net.fn, snn, net.x, params=net.params)
    assert float(wide_measures.macs) == float(measures.macs)
    np.testing.assert_allclose(
        wide_measures.synaptic_operations, measures.synaptic_operations
    )


def test_what_a_network_closes_over_is_read_anew():
    factor = [1.0]
    w = np.eye(4, dtype=np.float32)
    x = np.abs(eighths(0, (8, 4)))

    def fn(w, x):
        return factor[0] * jax.nn.relu(factor[0] * x @ w)

    def outputs_and_activation():
        snn = converted(fn, w, x, steps=STEPS, recipe=MAXIMUM)
        measures = snnjax.measure(fn, snn, x, params=w)
        return compiled(fn)(snn, x), measures.sites["relu"].activation

    outputs, activation = outputs_and_activation()
    factor[0] = 2.0
    scaled_outputs, scaled_activation = outputs_and_activation()
    np.testing.assert_allclose(scaled_outputs, 4 * outputs)
    np.testing.assert_allclose(scaled_activation, 2 * activation)


def test_more_spikes_can_be_measured_than_int32_can_count():
    def fn(weights, x):
        return jax.nn.relu(x) @ weights

    weights, x = ONES((2**16, 1)), ONES((32, 2**16))
    snn = snnjax.init(fn, weights, x, model=snnjax.integrate_and_fire())
    # Traced only, where a number too large for int32 would be an error.
    measures = jax.eval_shape(
        lambda snn: snnjax.measure(fn, snn, x, params=weights, steps=1024), snn
    )
    assert measures.firing_rate.dtype == jnp.float32


def test_a_value_is_worth_the_highest_level_at_most():
    def fn(p, x):  # spikes of both neurons nearly cancel in the second product
        return jax.nn.relu(x @ p["w"]) @ np.array([[1.0], [-0.999]], "f4") @ p["out"]

    params = {"w": np.eye(2, dtype=np.float32), "out": ONES((1, 3))}
    x = np.abs(eighths(0, (16, 2)))
    neuron = snnjax.integrate_and_fire(levels=(0, 3), threshold=0.25)
    snn = snnjax.init(fn, params, x, model=neuron)
    measures = snnjax.measure(fn, snn, x, params=params, steps=2)
    # Two steps, two spikes to one neuron and a value to three, of level 3 or less.
    assert measures.synaptic_additions <= 2 * 3 * (2 + 3)
    assert measures.synaptic_additions >= measures.synaptic_operations


def test_a_silent_network_is_told():
    weight, dark = jnp.ones((2, 2)), np.full((3, 2), 1e-6, np.float32)

    def fn(weight, x):
        return jax.nn.relu(x @ weight)

    snn = snnjax.init(fn, weight, dark, model=snnjax.integrate_and_fire())
    message = (
        "the network is silent: hardly any neuron fires at 1 of 1 sites with T = 4 for "
        "these images, because the activations of the first site, 'relu', are "
        "2e-06 .root mean square. and its threshold is 1. Give images of the same scale"
    )
    with pytest.warns(UserWarning, match=message):
        snnjax.measure(fn, snn, dark, params=weight, steps=4)
    outputs, labels = np.ones((STEPS, 3, 2), np.float32), np.array([0, 1, 1])
    with pytest.warns(UserWarning, match="all 3 images have the same outputs"):
        snnjax.accuracy(outputs, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snnjax.accuracy(outputs, np.zeros(3, int))  # perhaps the images are the same
        outputs[-1, 0] = 2
        snnjax.accuracy(outputs, labels)


def deep(params, x):
    """A ReLU behind each kernel."""
    for kernel in params.values():
        x = jax.nn.relu(x @ kernel)
    return x


DRAW = np.random.default_rng(0)
DEEP = {
    "a": np.float32(DRAW.normal(size=(8, 32)) / 4),
    "b": np.float32(DRAW.normal(size=(32, 32)) / 4),
    "c": np.float32(DRAW.normal(size=(32, 32)) / 4),
}
DEEP_X = np.float32(DRAW.uniform(size=(64, 8)))


def measure_deep(snn, x=DEEP_X):
    return snnjax.measure(deep, snn, x, params=DEEP)


measure_deep_jitted = jax.jit(measure_deep)


def test_a_network_is_silent_if_its_images_or_its_spikes_are_too_few():
    """Calibrated by images from 0 to 255, or with thresholds that stop its spikes."""
    options = {"steps": 4, "recipe": snnjax.max_activation()}
    message = (
        "the network is silent: .* 3 of 3 sites .* activations of the first site, "
        "'a/relu', .*. Give images of the same scale"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        measure_deep(snnjax.convert(deep, DEEP, 255 * DEEP_X, **options))
    assert caught[0].filename == __file__
    snn = snnjax.convert(deep, DEEP, DEEP_X, steps=1, recipe=snnjax.max_activation())
    message = "3 of 3 sites with T = 1 .* its threshold is .*. Convert with more steps"
    with pytest.warns(UserWarning, match=message):
        measure_deep(snn, DEEP_X[:16])
    snn = snnjax.convert(deep, DEEP, DEEP_X, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_deep(snn)
    neurons = dict(snn.neurons)
    neurons["b/relu"] = neurons["b/relu"]._replace(threshold=jnp.float32(99))
    message = "2 of 3 sites .* too few spikes reach site 'b/relu' and"
    with pytest.warns(UserWarning, match=message):
        measure_deep(dataclasses.replace(snn, neurons=neurons))


def test_a_network_is_saturated_by_images_of_a_larger_scale():
    snn = snnjax.convert(deep, DEEP, DEEP_X, steps=4, recipe=snnjax.light())
    message = (
        "the network is saturated: at 3 of 3 sites the activations .* At site 'a/relu' "
        r"they are \d\d, and a neuron that fires at every step sends 0\.\d+ .*Give "
        "images of the same scale"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        measures = measure_deep(snn, 255 * DEEP_X)
    assert caught[0].filename == __file__
    # Within jit no number is known, and the result says it afterwards.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure = measure_deep_jitted
        assert measure(snn, 255 * DEEP_X).caution(snn) == measures.caution(snn)
        assert measure(snn, DEEP_X).caution(snn) is None
        assert measure(snn, 0 * DEEP_X).caution(snn).startswith("the network is silent")
        shapes = jax.eval_shape(measure, snn, DEEP_X)
        assert shapes.caution(snn) is None


@pytest.mark.parametrize("code", [snnjax.codes.rate(), snnjax.codes.radix()])
@pytest.mark.thorough
def test_thresholds_that_suit_a_network_saturate_no_site(code):
    """One step clips most, since a neuron then sends a single value."""
    for recipe in (snnjax.light(), snnjax.light("layer"), snnjax.max_activation()):
        snn = snnjax.convert(deep, DEEP, DEEP_X, steps=1, code=code, recipe=recipe)
        caution = measure_deep_jitted(snn, DEEP_X).caution(snn)
        assert caution is None or "silent" in caution
