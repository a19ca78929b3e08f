"""Measures: accuracy over time, rates, the parts of the error, operations, energy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from networks import NETWORKS

import snnjax
from snnjax.measures import costs, metrics, neurobench, spike_trains
from snnjax.training import mean_cross_entropy, tet

STEPS = 8


LIGHT = snnjax.light()


def measured(name, recipe=LIGHT, wait=0):
    net = NETWORKS[name]
    snn = snnjax.convert(*net[:3], steps=STEPS, wait=wait, recipe=recipe)
    return (
        net,
        snn,
        snnjax.measure(net.fn, net.params, snn, net.x, steps=STEPS, wait=wait),
    )


def test_accuracy_after_t_steps_is_that_of_the_mean_of_the_first_t():
    outputs = jax.random.normal(jax.random.key(0), (5, 40, 3))
    labels = jnp.arange(40) % 3
    found = snnjax.accuracy(outputs, labels)
    for t in range(1, 6):
        decided = np.asarray(outputs[:t]).mean(0).argmax(-1)
        right = (decided == np.asarray(labels)).mean()
        np.testing.assert_allclose(found[t - 1], right, rtol=1e-6)


@pytest.mark.parametrize("name", ["projection", "dense"])
def test_the_parts_add_up_to_the_error(name):
    """As they do for every neuron, root mean squares obey the triangle inequality."""
    _, _, found = measured(name, snnjax.bias_shift())
    for site in found.sites.values():
        parts = [site.inherited, site.clipping, site.flooring, site.unevenness]
        assert site.error <= sum(parts) + 1e-6
        assert max(parts) <= site.error + sum(parts) - max(parts) + 1e-6


def test_a_constant_drive_and_full_wait_leave_no_unevenness():
    _, _, streaming = measured("projection")
    _, _, waiting = measured("projection", wait=STEPS)
    first = next(s.name for s in snnjax.sites(*NETWORKS["projection"][:3]))
    assert streaming.sites[first].unevenness < 1e-6
    assert max(s.unevenness for s in streaming.sites.values()) > 1e-3
    assert max(s.unevenness for s in waiting.sites.values()) < 1e-6


def test_a_maximum_threshold_does_not_clip_what_calibration_saw():
    _, _, found = measured("dense", snnjax.max_activation())
    first = found.sites[next(iter(found.sites))]
    assert first.clipping < 1e-6


def test_firing_rates_are_those_of_the_spikes():
    net, snn, found = measured("projection")
    trains = spike_trains(net.fn, snn, net.x, steps=STEPS)
    for name, train in trains.items():
        rate = found.sites[name].firing_rate
        np.testing.assert_allclose(rate, train.mean(), rtol=1e-6)
        silent = ~np.asarray(train).any(tuple(range(train.ndim - 1)))
        np.testing.assert_allclose(found.sites[name].silent, silent.mean())
    count = sum(train.size for train in trains.values())
    spikes = sum(int(train.sum()) for train in trains.values())
    np.testing.assert_allclose(found.firing_rate, spikes / count, rtol=1e-6)


def test_spikes_of_inputs_that_change_are_those_of_an_independent_simulator():
    """Two dense layers; a Poisson input is the sequence that its key draws."""

    def fn(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params["w1"]) @ params["w2"])

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        name: jax.random.normal(key, shape)
        for name, key, shape in zip(
            ["w1", "w2"], keys[:2], [(6, 9), (9, 4)], strict=True
        )
    }
    drawn = jax.random.bernoulli(keys[2], 0.5, (STEPS, 5, 6)).astype(jnp.float32)
    snn = snnjax.init(fn, params, drawn[0], model=snnjax.lif(leak=0.7))
    trains = spike_trains(fn, snn, drawn, steps=STEPS, inputs="sequence")
    stream = np.asarray(drawn)
    for name, train in trains.items():
        currents = stream @ np.asarray(params[name.partition("/")[0]])
        stream = reference.simulate(currents, 1.0, leak=0.7)
        np.testing.assert_array_equal(np.asarray(train), stream > 0)
        assert stream.any()
    x, key = jnp.full((5, 6), 0.5), keys[2]
    poisson = spike_trains(fn, snn, x, steps=STEPS, inputs="poisson", key=key)
    jax.tree.map(np.testing.assert_array_equal, poisson, trains)


def test_spikes_of_a_sequence_refuse_what_spiking_refuses():
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3])
    with pytest.raises(ValueError, match=r"needs x \[steps=8, batch"):
        spike_trains(net.fn, snn, net.x, steps=STEPS, inputs="sequence")
    events = jnp.ones((STEPS, *net.x.shape), bool)
    with pytest.raises(ValueError, match=r"truth values. Give x.astype\('float32'\)"):
        spike_trains(net.fn, snn, events, steps=STEPS, inputs="sequence")
    with pytest.raises(ValueError, match="needs a key"):
        spike_trains(net.fn, snn, net.x, steps=STEPS, inputs="poisson")
    with pytest.raises(ValueError, match="draws nothing"):
        spike_trains(net.fn, snn, net.x, steps=STEPS, key=jax.random.key(0))


def test_operations_of_a_dense_network_are_spikes_times_fan_out():
    net, snn, found = measured("dense")
    trains = spike_trains(net.fn, snn, net.x, steps=STEPS)
    shapes = [net.params[name].shape for name in ("w1", "w2", "w3")]
    per_image = [float(t.sum()) / len(net.x) for t in trains.values()]
    fan_outs = [shape[1] for shape in shapes[1:]]
    expected = sum(n * f for n, f in zip(per_image, fan_outs, strict=True))
    np.testing.assert_allclose(found.synaptic_operations, expected, rtol=1e-6)
    assert found.macs == sum(a * b for a, b in shapes)
    assert found.input_macs == shapes[0][0] * shapes[0][1]


def test_products_with_padding_zeros_do_not_count():
    def fn(kernel, x):
        convolve = jax.lax.conv_general_dilated
        numbers = ("NHWC", "HWIO", "NHWC")
        y = convolve(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return jax.nn.relu(y)

    kernel, x = jnp.ones((3, 3, 1, 2)), jnp.ones((1, 4, 4, 1))
    snn = snnjax.convert(fn, kernel, x, steps=2, recipe=LIGHT)
    found = snnjax.measure(fn, kernel, snn, x, steps=2)
    # Taps inside a 4x4 image: 4 corners of 4, 8 edges of 6, 4 inner pixels of 9.
    assert found.macs == 2 * (4 * 4 + 8 * 6 + 4 * 9)


def test_energy_weighs_additions_and_products():
    _, _, found = measured("dense")
    spiking, ann = costs.energy(found).operations
    np.testing.assert_allclose(ann, found.macs * costs.ENERGY_PER_MAC, rtol=1e-6)
    additions = found.synaptic_operations * costs.ENERGY_PER_AC
    products = found.input_macs * costs.ENERGY_PER_MAC
    np.testing.assert_allclose(spiking, additions + products, rtol=1e-6)


def test_measuring_may_be_jitted():
    net, snn, found = measured("projection")
    run = jax.jit(lambda p, snn, x: snnjax.measure(net.fn, p, snn, x, steps=STEPS))
    jitted = run(net.params, snn, net.x)
    for a, b in zip(jax.tree.leaves(jitted), jax.tree.leaves(found), strict=True):
        assert a.shape == b.shape
    for name, site in jitted.sites.items():
        np.testing.assert_allclose(site.error, found.sites[name].error, rtol=1e-4)


def test_hard_reset_is_measured_as_such():
    net = NETWORKS["dense"]
    soft = snnjax.init(*net[:3], model=snnjax.integrate_and_fire(threshold=0.25))
    hard = dataclasses.replace(soft, model=snnjax.integrate_and_fire(reset="zero"))
    count = [
        sum(int(t.sum()) for t in trains.values())
        for trains in (
            spike_trains(net.fn, snn, net.x, steps=STEPS) for snn in (soft, hard)
        )
    ]
    assert count[1] < count[0]


def test_neurons_without_a_clip_floor_have_no_split():
    net = NETWORKS["dense"]
    for neuron in (snnjax.lif(), snnjax.integrate_and_fire(reset="zero")):
        snn = snnjax.init(*net[:3], model=neuron)
        seen = snnjax.measure(net.fn, net.params, snn, net.x, steps=STEPS)
        for site in seen.sites.values():
            parts = site.clipping, site.flooring, site.unevenness
            assert all(map(jnp.isnan, parts))
            assert site.error > 0


@pytest.mark.parametrize(
    "shape, labels",
    [((2, 3), (2,)), ((4, 2, 3), (2, 3)), ((4, 2, 3), (3,)), ((4, 2), (2,))],
)
@pytest.mark.parametrize("judge", [snnjax.accuracy, mean_cross_entropy, tet])
def test_outputs_and_labels_of_other_shapes_are_refused(judge, shape, labels):
    with pytest.raises(ValueError, match="allowed: the readout at each step"):
        judge(jnp.zeros(shape), jnp.zeros(labels, int))
    with pytest.raises(ValueError, match="not its mean"):
        judge({"logits": jnp.zeros(shape)}, jnp.zeros(labels, int))


def test_an_snn_is_measured_with_what_it_was_fitted_to():
    net = NETWORKS["dense"]
    snn = snnjax.convert(*net[:3], steps=STEPS, wait=1, recipe=LIGHT)
    found = snnjax.measure(net.fn, net.params, snn, net.x)
    assert (found.steps, found.wait) == (STEPS, 1)
    trains = spike_trains(net.fn, snn, net.x)
    assert all(len(train) == STEPS for train in trains.values())
    fresh = snnjax.init(*net[:3])
    with pytest.raises(ValueError, match="fitted to no number of steps"):
        snnjax.measure(net.fn, net.params, fresh, net.x)
    assert snnjax.measure(net.fn, net.params, fresh, net.x, steps=2).steps == 2


def test_an_snn_of_other_steps_is_not_measured():
    net, snn, _ = measured("dense")
    with pytest.raises(ValueError, match="fitted to steps=8"):
        snnjax.measure(net.fn, net.params, snn, net.x, steps=4)


def test_the_parameters_of_another_network_are_refused():
    net, snn, _ = measured("dense")
    other = {"kernel": net.params["w1"]}
    with pytest.raises(ValueError, match=r"to it: \['kernel'\]; missing: \['b1'"):
        snnjax.measure(net.fn, other, snn, net.x)


def test_an_answer_that_is_no_number_is_wrong():
    outputs = jnp.ones((2, 4, 3)).at[1, :3].set(jnp.nan)
    assert snnjax.accuracy(outputs, jnp.zeros(4, int)).tolist() == [1, 0.25]


def test_accuracy_adds_up_in_more_than_the_outputs_type():
    noise = jax.random.normal(jax.random.key(1), (256, 200, 10))
    outputs = noise.astype(jnp.bfloat16) + jnp.bfloat16(5)
    answers = outputs.astype(jnp.float32).mean(0).argmax(-1)
    assert snnjax.accuracy(outputs, answers)[-1] == 1


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_operations_are_those_of_an_image_whatever_the_batch(batch):
    """The program differs: a batch of one needs no broadcast of the token."""

    def fn(p, x):
        token = jnp.broadcast_to(p["token"], (x.shape[0], 2))
        return jax.nn.relu(jnp.concatenate([x, token], 1) @ p["w"]) @ p["v"]

    p = {"token": jnp.ones((1, 2)), "w": jnp.ones((6, 6)), "v": jnp.ones((6, 3))}
    x = jnp.ones((batch, 4))
    snn = snnjax.convert(fn, p, x, steps=4, recipe=snnjax.max_activation())
    found = snnjax.measure(fn, p, snn, x, steps=4)
    assert (found.macs, found.synaptic_operations) == (36 + 18, 4 * 6 * 3)
    bench = neurobench(fn, snn, x, steps=4)
    assert bench["SynapticOperations"]["Dense"] == 4 * (36 + 18)


def test_a_function_of_one_number_of_images_is_measured():
    def fn(p, x):
        return jax.nn.relu(x.reshape(5, 4) @ p[0]) @ p[1]

    params = jnp.ones((4, 6)), jnp.ones((6, 3))
    x = jax.random.normal(jax.random.key(0), (5, 2, 2))
    snn = snnjax.init(fn, params, x)
    assert snnjax.measure(fn, params, snn, x, steps=2).macs == 24 + 18


def test_a_network_without_products_has_no_weights():
    snn = snnjax.init(lambda p, x: jax.nn.relu(x * 2), {}, jnp.ones((2, 3)))
    found = neurobench(lambda p, x: jax.nn.relu(x * 2), snn, jnp.ones((2, 3)), steps=2)
    assert found["ConnectionSparsity"] == found["SynapticOperations"]["Dense"] == 0


def test_operations_do_not_depend_on_the_order_of_axes():
    kernels = jax.random.normal(jax.random.key(0), (4, 6)), jnp.ones((6, 3))
    x = jax.random.normal(jax.random.key(1), (5, 4))

    def usual(p, x):
        return jax.nn.relu(x @ p[0]) @ p[1]

    def turned(p, x):
        return (p[1].T @ jax.nn.relu((p[0].T @ x.T).T).T).T

    snn = snnjax.convert(usual, kernels, x, steps=4, recipe=LIGHT)
    a, b = (snnjax.measure(f, kernels, snn, x, steps=4) for f in (usual, turned))
    assert (a.macs, a.input_macs) == (b.macs, b.input_macs) == (42, 24)
    np.testing.assert_allclose(a.synaptic_operations, b.synaptic_operations)


def test_convolutions_are_counted_under_x64(x64):
    net = NETWORKS["projection"]
    snn = snnjax.convert(net.fn, net.params, net.x, steps=2, recipe=snnjax.light())
    macs = float(snnjax.measure(net.fn, net.params, snn, net.x, steps=2).macs)
    x64()
    found = snnjax.measure(net.fn, net.params, snn, net.x, steps=2)
    assert float(found.macs) == macs


def test_what_a_network_closes_over_is_read_anew():
    net = NETWORKS["dense"]
    factor = [1.0]

    def fn(params, x):
        return factor[0] * net.fn(params, x * factor[0])

    def seen():
        snn = snnjax.convert(fn, net.params, net.x, steps=STEPS, recipe=LIGHT)
        found = snnjax.measure(fn, net.params, snn, net.x)
        return snnjax.spiking(fn, steps=STEPS)(snn, net.x), found

    (outputs, found), factor[0] = seen(), 2.0
    more, larger = seen()
    ratio = jnp.abs(more).mean() / jnp.abs(outputs).mean()
    assert ratio > 2
    for site in found.sites:
        np.testing.assert_array_less(
            found.sites[site].activation, larger.sites[site].activation
        )


@dataclasses.dataclass
class Scaled:
    """A network that has no hash."""

    factor: float

    def __call__(self, params, x):
        return NETWORKS["dense"].fn(params, self.factor * x)


def test_measures_compile_once_for_functions_that_do_the_same():
    net = NETWORKS["dense"]
    snn = snnjax.convert(Scaled(1.5), net.params, net.x, steps=STEPS)
    first = snnjax.measure(Scaled(1.5), net.params, snn, net.x)
    programs = metrics._observe._cache_size()
    again = snnjax.measure(Scaled(1.5), net.params, snn, net.x)
    assert metrics._observe._cache_size() == programs
    jax.tree.map(np.testing.assert_array_equal, first, again)
    snnjax.measure(Scaled(2.5), net.params, snn, net.x)
    assert metrics._observe._cache_size() == programs + 1


def test_more_spikes_can_be_measured_than_int32_can_count():
    def fn(weights, x):
        for _ in range(64):
            x = jax.nn.relu(x)
        return x @ weights

    weights, x = jnp.ones((4096, 1)), jnp.ones((32, 4096))
    snn = snnjax.init(fn, weights, x, model=snnjax.integrate_and_fire())
    # Traced only, where a number too large for int32 would be an error.
    measures = jax.eval_shape(
        lambda snn: snnjax.measure(fn, weights, snn, x, steps=256), snn
    )
    assert measures.firing_rate.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32])
def test_labels_of_small_types_are_no_other_classes(dtype):
    """Class 256 would be 0 in eight bits."""
    outputs = jnp.zeros((1, 2, 300)).at[:, :, 256].set(1.0)
    assert snnjax.accuracy(outputs, np.array([0, 1], dtype)) == 0.0


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(
        ValueError, match=f"labels range from .*{label}.*allowed: 0 to 2"
    ):
        snnjax.accuracy(jnp.zeros((2, 2, 3)), jnp.array([1, label]))


def test_a_value_is_worth_the_highest_level_at_most():
    def fn(p, x):  # spikes of both neurons nearly cancel in the second product
        return jax.nn.relu(x @ p["w"]) @ jnp.array([[1.0], [-0.999]]) @ p["out"]

    params = {"w": jnp.eye(2), "out": jnp.ones((1, 3))}
    x = jnp.abs(jax.random.normal(jax.random.key(0), (16, 2)))
    neuron = snnjax.integrate_and_fire(levels=(0, 3))
    snn = snnjax.convert(fn, params, x, steps=2, model=neuron)
    measures = snnjax.measure(fn, params, snn, x)
    # Two steps, two spikes to one neuron and a value to three, of level 3 or less.
    assert measures.synaptic_additions <= 2 * 3 * (2 + 3)
    assert measures.synaptic_additions >= measures.synaptic_operations
