"""Simulation: executions agree, waits wait, and rates approach the ANN."""

import dataclasses
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from networks import FLAT, NETWORKS, VECTORS, Net, eighths, halves, max_pool, relu

import snnjax
from snnjax.network.increments import Operator
from snnjax.neurons import integrate_and_fire, lif
from snnjax.simulation import by_layer
from snnjax.surrogate import arctan, dspike, relaxed_dspike, step_with_derivative

STEPS = 4


def encode(net, inputs):
    """x and key for one of the three kinds of input."""
    if inputs == "poisson":
        return jnp.abs(net.x), jax.random.key(3)
    if inputs == "sequence":
        return eighths(5, (STEPS, *net.x.shape)), None
    return net.x, None


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def outputs(net, snn, inputs="constant", **options):
    options = {"steps": STEPS, "inputs": inputs} | options
    simulate = jax.jit(snnjax.spiking(net.fn, **options))
    return simulate(snn, *encode(net, inputs))


EXACT = [name for name in NETWORKS if name != "batch norm"]  # a root is not exact
SOME = ["dense", "projection", "max-pool before", "several outputs"]
ALL = [
    name if name in SOME else pytest.param(name, marks=pytest.mark.slow)
    for name in NETWORKS
]


@pytest.mark.parametrize(
    "name, wait",
    [(name, 1) for name in EXACT]
    + [(name, wait) for name in SOME for wait in (0, 2, STEPS)]
    + [
        pytest.param(name, STEPS, marks=pytest.mark.slow)
        for name in EXACT
        if name not in SOME
    ],
)
def test_executions_give_the_same_spikes(name, wait):
    net = NETWORKS[name]
    snn = halves(net)
    by_step = outputs(net, snn, wait=wait, execution="by_step")
    assert_equal(by_step, outputs(net, snn, wait=wait, execution="by_layer"))
    if wait == STEPS:
        assert_equal(by_step, outputs(net, snn, wait=wait, execution="closed_form"))
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(by_step))


@pytest.mark.parametrize(
    "name, inputs, wait",
    [
        ("input skip", "poisson", 0),
        ("input skip", "sequence", 1),
        ("input skip", "sequence", STEPS),
        ("max-pool before", "sequence", 1),
        ("dense", "poisson", STEPS),
    ],
)
def test_executions_agree_on_every_kind_of_input(name, inputs, wait):
    net = NETWORKS[name]
    snn = halves(net)
    by_step = outputs(net, snn, inputs, wait=wait, execution="by_step")
    assert_equal(by_step, outputs(net, snn, inputs, wait=wait, execution="by_layer"))
    if wait == STEPS:
        total = outputs(net, snn, inputs, wait=wait, execution="closed_form").sum(0)
        np.testing.assert_array_equal(by_step.sum(0), total)


@pytest.mark.parametrize(
    "name, inputs, micro_batch",
    [
        ("projection", "constant", 3),
        ("several outputs", "poisson", 3),
        ("several outputs", "sequence", 1),
        ("dense", "constant", 9),
    ],
)
def test_micro_batches_give_the_same(name, inputs, micro_batch):
    net = NETWORKS[name]
    snn = halves(net)
    whole = outputs(net, snn, inputs)
    assert_equal(whole, outputs(net, snn, inputs, micro_batch=micro_batch))


def operations(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("name", ["convolutions", "projection", "max-pool before"])
def test_t_steps_cost_less_than_t_times_the_network(name):
    """Counted, not timed: the input's drive is computed once, and with wait T all.

    XLA counts a loop's body once, so the neurons hardly count.
    """
    net, steps = NETWORKS[name], 16
    snn = halves(net)
    ann = operations(net.fn, net.params, net.x)
    by_layer = snnjax.spiking(net.fn, steps=steps, execution="by_layer")
    assert operations(by_layer, snn, net.x) < 0.75 * steps * ann
    waiting = snnjax.spiking(net.fn, steps=steps, wait=steps)
    assert operations(waiting, snn, net.x) < 2 * ann


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("wait", [0, 2])
def test_a_dense_network_is_the_oracles(reset, wait):
    net = NETWORKS["dense"]
    snn = halves(net)
    snn = dataclasses.replace(snn, neuron=integrate_and_fire(reset=reset))
    found = outputs(net, snn, wait=wait)
    p = {name: np.asarray(w, np.float64) for name, w in FLAT.items()}
    first, second = (
        {
            "threshold": np.asarray(n.threshold),
            "bias": np.asarray(n.bias),
            "start": np.asarray(n.initial_potential),
        }
        for n in snn.neurons.values()
    )
    currents = np.stack([np.asarray(VECTORS) @ p["w1"] + p["b1"]] * STEPS)
    spikes = reference.simulate(currents, **first, reset=reset, wait=wait)
    spikes = reference.simulate(spikes @ p["w2"], **second, reset=reset, wait=wait)
    np.testing.assert_array_equal(found, spikes @ p["w3"])


POOL = Operator(lambda x: (max_pool(x),), (True,), homogeneous=True)


def test_a_max_pool_in_time_is_the_oracles():
    stream = eighths(0, (6, 2, 4, 4, 3), 0, 2) * 8
    (increments,) = POOL(stream)
    expected = reference.max_pool(np.asarray(stream), max_pool)
    np.testing.assert_array_equal(increments, expected)
    assert set(np.unique(increments)) <= {0.0, 1.0}


def test_a_max_pool_in_time_pools_no_constant():
    # XLA would fold it while compiling: six seconds and a warning for 32x32 images.
    traced = jax.make_jaxpr(POOL)(jnp.ones((6, 2, 4, 4, 3)))
    assert str(traced).count("reduce_window_max") == 1


@pytest.mark.parametrize("name", ALL)
def test_rates_approach_the_ann(name, wait=0):
    net = NETWORKS[name]
    ann = net.fn(net.params, net.x)
    errors = []
    for steps in (8, 512):
        snn = snnjax.convert(
            net.fn,
            net.params,
            net.x,
            steps=steps,
            wait=wait,
            recipe=snnjax.max_activation(),
        )
        simulate = snnjax.spiking(net.fn, steps=steps, wait=wait)
        mean = jax.tree.map(lambda out: out.mean(0), jax.jit(simulate)(snn, net.x))
        gaps = jax.tree.map(lambda a, s: jnp.abs(a - s).mean(), ann, mean)
        errors.append(sum(jax.tree.leaves(gaps)))
    size = sum(jnp.abs(leaf).mean() for leaf in jax.tree.leaves(ann))
    assert errors[1] < errors[0] / 4
    assert errors[1] < 0.03 * size


def test_a_maximum_of_each_step_would_not_converge():
    """The reason for the running maximum: neighbours that take turns add up."""

    def fn(p, x):
        return max_pool(relu(x * p), 2, 2)

    x = jnp.array([0.5, 0.25, 0.5, 0.375]).reshape(1, 2, 2, 1)
    start = jnp.array([0.0, 0.5, 0.5, 0.25]).reshape(2, 2, 1)
    snn = snnjax.init(fn, jnp.ones(()), x, neuron=integrate_and_fire())
    (name,) = snn.neurons
    shifted = snn.neurons[name]._replace(initial_potential=start)
    snn = dataclasses.replace(snn, neurons={name: shifted})
    ours = snnjax.spiking(fn, steps=64)(snn, x).mean(0)
    np.testing.assert_allclose(ours.ravel(), 0.5, atol=1 / 64 + 1e-6)
    spikes = snnjax.spiking(lambda p, x: relu(x * p), steps=64)(
        dataclasses.replace(snn, neurons={"relu": shifted}), x
    )
    each_step = jax.vmap(max_pool)(spikes).mean(0)
    assert each_step.item() > 0.7


def test_a_wait_reads_evidence_before_the_first_spike():
    """Late input: without a wait the spikes come too late to be counted."""
    currents = jnp.array([0.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1)
    net = Net(lambda p, x: relu(x * p), jnp.ones(()), currents[0], 1)
    snn = snnjax.init(*net[:3], neuron=integrate_and_fire(threshold=0.5))
    rates = [
        snnjax.spiking(net.fn, steps=4, wait=wait, inputs="sequence")(
            snn, currents
        ).mean()
        for wait in (0, 2)
    ]
    np.testing.assert_array_equal(rates, [0.25, 0.5])


def test_latency_grows_with_depth():
    found = snnjax.sites(*NETWORKS["projection"][:3])
    assert [snnjax.latency(found, steps=8, wait=wait) for wait in (0, 1, 8)] == [
        8,
        11,
        32,
    ]


def test_latency_of_an_snn_is_refused_with_what_is_wanted():
    net = NETWORKS["projection"]
    with pytest.raises(ValueError, match="sites is SNN; allowed: the Sites of"):
        snnjax.latency(halves(net), steps=8)


def test_first_outputs_of_a_longer_run_are_a_shorter_run():
    net = NETWORKS["projection"]
    snn = halves(net)
    longer = outputs(net, snn, steps=6)
    np.testing.assert_array_equal(longer[:STEPS], outputs(net, snn))


def test_vmap_over_thresholds_tries_several_networks():
    net = NETWORKS["dense"]
    snn = halves(net)
    scales = jnp.array([1.0, 2.0, 4.0])

    def run(scale):
        neurons = {
            name: n._replace(threshold=scale * n.threshold)
            for name, n in snn.neurons.items()
        }
        scaled = dataclasses.replace(snn, neurons=neurons)
        return snnjax.spiking(net.fn, steps=STEPS)(scaled, net.x)

    together = jax.vmap(run)(scales)
    for one, scale in zip(together, scales, strict=True):
        np.testing.assert_array_equal(one, run(scale))
    assert jnp.any(together[0] != together[2])


@pytest.mark.parametrize("name, wait", [("dense", 0), ("input skip", 1)])
def test_executions_give_the_same_gradient(name, wait):
    net = NETWORKS[name]
    snn = halves(net)

    def gradient(execution):
        simulate = snnjax.spiking(net.fn, steps=STEPS, wait=wait, execution=execution)
        return jax.jit(jax.grad(lambda snn: (simulate(snn, net.x) ** 2).sum()))(snn)

    by_step, by_layer = gradient("by_step"), gradient("by_layer")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        by_step,
        by_layer,
    )
    used = set(snnjax.sites(net.fn, net.params, net.x)[0].parameters)
    assert used and all(jnp.any(by_step.params[path] != 0) for path in used)
    assert all(jnp.any(n.threshold != 0) for n in by_step.neurons.values())


@pytest.mark.parametrize("wait", [0, STEPS])
@pytest.mark.parametrize(
    "surrogate",
    [dspike, arctan, relaxed_dspike],
)
def test_auto_has_the_gradient_of_the_surrogate_whatever_it_takes(surrogate, wait):
    net = NETWORKS["dense"]
    neuron = integrate_and_fire(temperature=2.0)
    snn = snnjax.init(*net[:3], neuron=neuron)

    def loss(execution, snn):
        options = {"surrogate": surrogate, "execution": execution, "wait": wait}
        return (outputs(net, snn, **options) ** 2).sum()

    auto, layers = (
        jax.value_and_grad(functools.partial(loss, execution))(snn)
        for execution in ("auto", "by_layer")
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
        auto,
        layers,
    )
    soft = surrogate is relaxed_dspike
    assert jnp.any(auto[1].neurons["w1/relu"].temperature != 0) == soft


@pytest.mark.parametrize("wait", [0, STEPS])
def test_a_traced_temperature_may_decide_what_is_fired(wait):
    net = NETWORKS["dense"]
    snn = halves(net)

    def soft(b, execution):
        spike = functools.partial(relaxed_dspike, temperature=b)
        options = {"surrogate": spike, "execution": execution, "wait": wait}
        return snnjax.spiking(net.fn, steps=STEPS, **options)(snn, net.x)

    traced = jax.jit(soft, static_argnums=1)
    auto, layers = (traced(2.0, execution) for execution in ("auto", "by_layer"))
    np.testing.assert_allclose(auto, layers, rtol=1e-5, atol=1e-5)
    assert len(np.unique(auto)) > STEPS + 1  # not binary


def ternary(x):
    return jnp.where(x >= 0, 1.0, jnp.where(x <= -1, -1.0, 0.0))


def levels(x):
    return (x >= 0).astype(x.dtype) + (x >= 0.5)


@pytest.mark.parametrize(
    "surrogate, temperature",
    [
        (ternary, None),
        (levels, None),
        (functools.partial(relaxed_dspike, temperature=80.0), None),
        (lambda x, b=1e9: relaxed_dspike(x, b), 2.0),
        (lambda x: relaxed_dspike(x, jnp.full(6, 2.0)), None),
    ],
    ids=["ternary", "levels", "nearly hard", "soft by its leaf", "per channel"],
)
def test_what_is_not_declared_a_step_runs_by_layer(surrogate, temperature):
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3], neuron=integrate_and_fire(temperature=temperature))
    run = functools.partial(outputs, net, snn, surrogate=surrogate, wait=STEPS)
    np.testing.assert_allclose(run(), run(execution="by_layer"), rtol=1e-6)
    assert jnp.any(run() != run(surrogate=dspike))


def test_a_declared_step_has_a_closed_form_and_fits_into_bits():
    net = NETWORKS["dense"]
    width = step_with_derivative(lambda x, w: (abs(x) < w) / (2 * w))
    snn = snnjax.init(*net[:3], neuron=integrate_and_fire())
    run = functools.partial(outputs, net, snn, surrogate=width)
    layers = run(execution="by_layer", wait=STEPS)
    np.testing.assert_allclose(run(wait=STEPS), layers, rtol=1e-6)
    assert "scan" not in str(
        jax.make_jaxpr(snnjax.spiking(net.fn, steps=STEPS, wait=STEPS))(snn, net.x)
    )
    np.testing.assert_array_equal(run(execution=by_layer(remat=True)), run())


@pytest.mark.parametrize("wait", [0, 1, STEPS])
def test_a_gradient_reaches_what_the_surrogate_closes_over(wait):
    net = NETWORKS["dense"]
    snn = halves(net)

    def loss(execution, spike, b):
        simulate = snnjax.spiking(
            net.fn,
            steps=STEPS,
            wait=wait,
            execution=execution,
            surrogate=functools.partial(spike, temperature=b),
        )
        return (simulate(snn, net.x) ** 2).sum()

    for spike in (relaxed_dspike, dspike):
        auto, layers = (
            jax.jit(jax.grad(functools.partial(loss, execution, spike)))(2.0)
            for execution in ("auto", "by_layer")
        )
        np.testing.assert_allclose(auto, layers, rtol=1e-5)
        assert (auto != 0) == (spike is relaxed_dspike)


def test_a_surrogate_may_need_its_temperature():
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3], neuron=integrate_and_fire(temperature=2.0))
    needing = lambda x, b: dspike(x, b)  # noqa: E731
    found = outputs(net, snn, surrogate=needing, wait=STEPS)
    assert_equal(found, outputs(net, snn, execution="closed_form", wait=STEPS))


@pytest.mark.parametrize("option", [{"surrogate": arctan}, {"detach_reset": True}])
def test_a_closed_form_has_no_surrogate(option):
    net = NETWORKS["dense"]
    with pytest.raises(ValueError, match="straight-through gradient: leave surrogate"):
        outputs(net, halves(net), execution="closed_form", wait=STEPS, **option)


def test_closed_form_is_differentiable():
    net = NETWORKS["input skip"]
    recipe = snnjax.light()
    snn = snnjax.convert(*net[:3], steps=STEPS, wait=STEPS, recipe=recipe)
    simulate = snnjax.spiking(net.fn, steps=STEPS, wait=STEPS, execution="closed_form")
    slope = jax.grad(lambda snn: (simulate(snn, net.x) ** 2).sum())(snn)
    assert jnp.isfinite(slope.params["w1"]).all() and jnp.any(slope.params["w1"] != 0)


def test_training_lowers_the_loss():
    """A few steps of gradient descent through the surrogate."""
    net = NETWORKS["dense"]
    target = net.fn(net.params, net.x)
    snn = snnjax.init(*net[:3])
    simulate = snnjax.spiking(net.fn, steps=STEPS)

    @jax.jit
    def loss(params):
        trained = dataclasses.replace(snn, params=params)
        return ((simulate(trained, net.x).mean(0) - target) ** 2).mean()

    params, first = net.params, loss(net.params)
    for _ in range(20):
        slope = jax.grad(loss)(params)
        params = jax.tree.map(lambda w, g: w - 0.02 * g, params, slope)
    assert loss(params) < 0.7 * first


def test_spikes_of_a_bfloat16_network_are_bfloat16():
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), FLAT)
    net = Net(NETWORKS["dense"].fn, params, VECTORS.astype(jnp.bfloat16), 2)
    found = outputs(net, halves(net))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, outputs(NETWORKS["dense"], halves(net)))


@pytest.mark.parametrize("wait", [0, 1, STEPS])
def test_a_default_run_obeys_the_neurons_of_init(wait):
    """`init` gives LIF neurons; every execution must let them leak."""
    net = NETWORKS["dense"]
    snn = snnjax.init(*net[:3])
    default = outputs(net, snn, wait=wait)
    expected = outputs(net, snn, wait=wait, execution="by_layer")
    np.testing.assert_array_equal(default, expected)


def test_a_closed_form_that_does_not_exist_is_refused():
    net = NETWORKS["dense"]
    with pytest.raises(ValueError, match="needs wait == steps .* found wait 0"):
        outputs(net, halves(net), execution="closed_form")
    leaky = snnjax.init(*net[:3], neuron=lif())
    with pytest.raises(ValueError, match="a leak. Use 'by_layer'"):
        outputs(net, leaky, wait=STEPS, execution="closed_form")
    hard = dataclasses.replace(halves(net), neuron=integrate_and_fire(reset="zero"))
    with pytest.raises(ValueError, match="reset='zero'"):
        outputs(net, hard, wait=STEPS, execution="closed_form")


DENSE = NETWORKS["dense"]
FITTED = halves(DENSE, steps=STEPS, wait=0)


def changed(**fields):
    """FITTED with other parameters at its first site."""
    neuron = FITTED.neurons["w1/relu"]._replace(
        **{name: jnp.asarray(value) for name, value in fields.items()}
    )
    return dataclasses.replace(FITTED, neurons=FITTED.neurons | {"w1/relu": neuron})


BROKEN = dataclasses.replace(
    FITTED, params=FITTED.params | {"w2": FITTED.params["w2"].at[0, 0].set(jnp.nan)}
)
WIDE = dataclasses.replace(
    FITTED,
    neurons={
        name: neuron._replace(initial_potential=jnp.zeros(7))
        for name, neuron in FITTED.neurons.items()
    },
)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps is 0; allowed: a whole number >= 1"),
        ({"steps": 4.0}, "steps is 4.0"),
        ({"wait": -1}, "wait is -1; allowed: .* from 0 .* to steps=4"),
        ({"wait": STEPS + 1}, "wait is 5"),
        (
            {"execution": "by_time"},
            "execution is 'by_time'; allowed: 'auto', 'by_step'",
        ),
        ({"inputs": "events"}, "inputs is 'events'; allowed: 'constant', 'poisson'"),
        ({"micro_batch": 0}, "micro_batch is 0; allowed: a whole number"),
        ({"micro_batch": 2.5}, "micro_batch is 2.5"),
        ({"execution": by_layer}, "by_layer\\(segment=..., remat=...\\) \\(called"),
        ({"execution": by_layer(segment=5)}, "segment is 5; allowed: 1 to steps=4"),
        (
            {"execution": by_layer(segment=2), "wait": 1},
            "segment needs wait 0; found wait 1",
        ),
        ({"surrogate": "dspike"}, "surrogate is 'dspike'; allowed: a spike function"),
        ({"has_aux": True, "execution": "by_step"}, "'auto' or 'by_layer' without"),
        (
            {"has_aux": True, "execution": by_layer(segment=2)},
            "'auto' or 'by_layer' without",
        ),
        ({"surrogate": lambda: 0}, "cannot be called as surrogate\\(x\\)"),
        ({"detach_reset": "no"}, "detach_reset is 'no'; allowed: True or False"),
        ({"has_aux": True, "micro_batch": 8}, "has_aux=True shows .* micro_batch=8"),
        (
            {"execution": by_layer(remat=True), "surrogate": jax.nn.sigmoid},
            "the surrogate must be a step; found",
        ),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        snnjax.spiking(DENSE.fn, **{"steps": STEPS} | options)


@pytest.mark.parametrize(
    "options, snn, x, key, message",
    [
        ({"steps": 8}, FITTED, VECTORS, None, "fitted to steps=4, wait=0 and cannot"),
        ({"wait": 1}, FITTED, VECTORS, None, "run with steps=4, wait=1"),
        ({}, FLAT, VECTORS, None, "snn is dict; allowed: an SNN of"),
        ({}, WIDE, VECTORS, None, "site 'relu' do not fit .*initial_potential .*(7,)"),
        ({"inputs": "poisson"}, FITTED, abs(VECTORS), None, "needs a key"),
        ({"inputs": "sequence"}, FITTED, [1.0, 2.0], None, "is a float; allowed: an"),
        ({}, FITTED, VECTORS, jax.random.key(0), "draws nothing: leave key out"),
        (
            {"inputs": "poisson"},
            FITTED,
            VECTORS,
            jax.random.key(0),
            "found values from -1.* allowed: 0 to 1",
        ),
        (
            {"inputs": "sequence"},
            FITTED,
            jnp.ones((3, 4, 4)),
            None,
            "needs x \\[steps=4, batch, ...\\]; found shape \\(3, 4, 4\\)",
        ),
        (
            {},
            dataclasses.replace(FITTED, neurons={}),
            VECTORS,
            None,
            "sites without neurons: \\['w1/relu', 'w2/relu'\\]",
        ),
        (
            {},
            dataclasses.replace(
                FITTED, neurons=FITTED.neurons | {"other": lif().init()}
            ),
            VECTORS,
            None,
            "No such site: \\['other'\\]",
        ),
        (
            {},
            changed(threshold=0.0),
            VECTORS,
            None,
            "threshold .* is 0.0; allowed: fin",
        ),
        (
            {},
            changed(threshold=-1.0),
            VECTORS,
            None,
            "is -1.0; allowed: finite and > 0",
        ),
        ({}, changed(leak=1.5), VECTORS, None, "leak .* is 1.5; allowed: > 0 and <= 1"),
        ({}, changed(leak=np.nan), VECTORS, None, "leak of site 'relu' is nan"),
        ({}, changed(bias=np.inf), VECTORS, None, "bias of site 'relu' is inf"),
        ({}, BROKEN, VECTORS, None, "NaN in the weights 'w2'; allowed: numbers"),
        ({}, FITTED, VECTORS.at[0, 1].set(np.nan), None, "x holds 1 NaN of .* numbers"),
        (
            {},
            snnjax.storage.Stored(FITTED, {}, lambda x: x),
            VECTORS,
            None,
            "allowed: its field snn",
        ),
        (
            {"surrogate": lambda x, b: x},
            FITTED,
            VECTORS,
            None,
            "cannot be called as surrogate\\(x\\), as these neurons do",
        ),
    ],
)
def test_a_wrong_call_is_refused(options, snn, x, key, message):
    simulate = snnjax.spiking(DENSE.fn, **{"steps": STEPS} | options)
    with pytest.raises(ValueError, match=message):
        simulate(snn, x, key)


@pytest.mark.parametrize(
    "of_snn",
    [
        snnjax.measures.spike_trains,
        snnjax.measures.neurobench,
        lambda fn, snn, x: snnjax.measure(fn, DENSE.params, snn, x),
    ],
)
def test_images_with_nan_have_nothing_to_measure(of_snn):
    with pytest.raises(ValueError, match="x holds 1 NaN of .* numbers"):
        of_snn(DENSE.fn, FITTED, VECTORS.at[0, 1].set(np.nan))


def test_arrays_of_a_sequence_have_equally_many_examples():
    def fn(w, x):
        return jax.nn.relu(x["a"] @ w) + x["b"]

    x = {"a": jnp.ones((STEPS, 3, 2)), "b": jnp.ones((STEPS, 3, 2))}
    one_step = jax.tree.map(lambda leaf: leaf[0], x)
    snn = snnjax.init(fn, jnp.eye(2), one_step, neuron=integrate_and_fire())
    simulate = snnjax.spiking(fn, steps=STEPS, inputs="sequence", micro_batch=2)
    assert simulate(snn, x).shape == (STEPS, 3, 2)
    x["b"] = jnp.ones((STEPS, 5, 2))
    with pytest.raises(ValueError, match="of 3, 5 examples; allowed: .* on axis 1"):
        simulate(snn, x)
    with pytest.raises(ValueError, match="a.* has shape .4,.; allowed: .T, batch"):
        simulate(snn, {"a": jnp.ones(STEPS), "b": jnp.ones(STEPS)})


def test_groups_need_a_number_of_examples():
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, *VECTORS.shape[1:]), VECTORS.dtype)
    grouped = jax.jit(snnjax.spiking(DENSE.fn, steps=STEPS, micro_batch=2))
    with pytest.raises(ValueError, match="needs a number of examples; found b"):
        jax.export.export(grouped)(FITTED, x)


@pytest.mark.parametrize("inputs", ["constant", "sequence"])
def test_a_missing_batch_axis_is_named(inputs):
    simulate = snnjax.spiking(DENSE.fn, steps=STEPS, inputs=inputs)
    x = VECTORS[0] if inputs == "constant" else VECTORS[:, :4]
    with pytest.raises(snnjax.ConversionError) as raised:
        simulate(FITTED, x)
    assert "Perhaps the batch axis is missing" in "".join(raised.value.__notes__)


def test_poisson_rates_do_not_depend_on_the_type_of_the_images():
    def fn(p, x):
        return relu(x * p)

    rates = []
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.full((200, 200), 0.003, dtype)
        snn = snnjax.init(fn, jnp.ones((), dtype), x, neuron=integrate_and_fire())
        simulate = snnjax.spiking(fn, steps=4, inputs="poisson")
        rates.append(simulate(snn, x, jax.random.key(0)).astype(jnp.float32).mean())
    np.testing.assert_allclose(rates, 0.003, rtol=0.1)


@pytest.mark.parametrize(
    "neuron, message",
    [
        (snnjax.lif, "without init, .* e.g. snnjax.lif\\(\\) \\(called\\)"),
        (
            snnjax.neurons.WithSurrogate(snnjax.lif()),
            "surrogate, which is an argument of snnjax.spiking",
        ),
    ],
)
def test_init_refuses_what_is_no_model(neuron, message):
    with pytest.raises(ValueError, match=message):
        snnjax.init(*NETWORKS["dense"][:3], neuron=neuron)


def test_input_that_reaches_the_readout_directly_comes_step_by_step():
    def fn(w, x):
        return relu(x @ w) @ w.T + x

    w, x = eighths(1, (5, 3)), eighths(2, (STEPS, 4, 5))
    snn = snnjax.init(fn, w, x[0], neuron=integrate_and_fire(threshold=0.5))
    by_step, closed_form = (
        snnjax.spiking(
            fn, steps=STEPS, wait=STEPS, inputs="sequence", execution=execution
        )(snn, x)
        for execution in ("by_step", "closed_form")
    )
    np.testing.assert_array_equal(by_step, closed_form)


@pytest.mark.parametrize("wait", [0, 1, 4])
def test_wider_parameters_make_wider_membranes(x64, wait):
    net = NETWORKS["dense"]
    recipe = snnjax.light()
    snn = snnjax.convert(*net[:3], steps=4, wait=wait, recipe=recipe)
    narrow = snnjax.spiking(net.fn, steps=4, wait=wait)(snn, net.x)
    x64()
    neurons = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), snn.neurons)
    wide = dataclasses.replace(snn, neurons=neurons)
    for execution in ("by_step", "by_layer", "auto"):
        simulate = snnjax.spiking(net.fn, steps=4, wait=wait, execution=execution)
        found = simulate(wide, net.x)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found.mean(0), narrow.mean(0), atol=1e-5)


def test_poisson_input_may_be_closed_over_in_jit():
    x = abs(VECTORS) / abs(VECTORS).max()
    high = 2 * x
    simulate = snnjax.spiking(DENSE.fn, steps=STEPS, inputs="poisson")
    key = jax.random.key(0)
    found = jax.jit(lambda snn: simulate(snn, x, key))(FITTED)
    np.testing.assert_array_equal(found, simulate(FITTED, x, key))
    with pytest.raises(ValueError, match="found values from .* allowed: 0 to 1"):
        jax.jit(lambda snn: simulate(snn, high, key))(FITTED)


@pytest.mark.parametrize(
    "options, message", [({"segment": 0}, "segment is 0"), ({"remat": 1}, "remat is 1")]
)
def test_a_wrong_option_of_an_execution_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        by_layer(**options)


def test_max_pool_adds_in_float64_where_the_network_is(x64):
    x64()
    spike = 1 + 1e-9  # 1 in float32
    x = jnp.full((1, 4, 1), spike)

    def pooled(p, x):
        window = (1, 2, 1)
        spikes = relu(x * p)
        return jax.lax.reduce_window(
            spikes, -jnp.inf, jax.lax.max, window, window, "VALID"
        )

    snn = snnjax.init(pooled, jnp.ones(()), x, neuron=integrate_and_fire())
    neurons = {"relu": snn.neurons["relu"]._replace(threshold=jnp.asarray(spike))}
    snn = dataclasses.replace(snn, neurons=neurons)
    for execution in ("by_step", "by_layer", by_layer(segment=3)):
        run = snnjax.spiking(pooled, steps=STEPS, execution=execution)
        np.testing.assert_allclose(run(snn, x), spike, rtol=1e-12)


def test_training_mode_without_has_aux_names_it():
    def in_training(params, x):
        y = x @ params
        y = jax.nn.relu((y - y.mean(0)) / jnp.std(y, 0))
        return y, {"mean": y.mean(0)}

    snn = snnjax.init(in_training, jnp.eye(3), jnp.ones((4, 3)), has_aux=True)
    with pytest.raises(snnjax.ConversionError) as error:
        snnjax.spiking(in_training, steps=2)(snn, jnp.ones((4, 3)))
    assert "training mode, give has_aux=True" in "".join(error.value.__notes__)
    with pytest.raises(ValueError, match="Return a pair.* or leave out has_aux"):
        snnjax.spiking(lambda p, x: x @ p, steps=2, has_aux=True)(snn, jnp.ones((4, 3)))
