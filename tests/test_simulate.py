"""Simulation: executions agree, waits wait, and rates approach the ANN."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import reference
from chex import assert_trees_all_close
from chex import assert_trees_all_equal as assert_equal
from networks import FLAT, NETWORKS, VECTORS, compiled, eighths, halves, relu, together
from rows import thorough

import snnjax
from snnjax.network.increments import Operator
from snnjax.neurons import integrate_and_fire
from snnjax.surrogate import arctan, dspike, step_with_derivative

STEPS = 8  # few steps would be computed outside of a loop, in larger programs
DENSE = NETWORKS["dense"]
FITTED = halves(DENSE, steps=STEPS, wait=0)
IF = snnjax.init(*DENSE[:3], model=integrate_and_fire())


# A root is not exact, so batch norm has no equal bits; padding is as the projection.
LEFT_OUT = "batch norm", "zero padding"
EXACT = {name: net for name, net in NETWORKS.items() if name not in LEFT_OUT}
VECTOR_NETS = {name: net for name, net in EXACT.items() if net.x is VECTORS}
IMAGE_NETS = {name: net for name, net in EXACT.items() if net.x is networks.PIXELS}
NETS = NETWORKS | {"vectors": together(VECTOR_NETS), "images": together(IMAGE_NETS)}


@functools.cache
def snn_of(name):
    return halves(NETS[name])


def input_of(net, inputs):
    """x for one of the two kinds of input."""
    return eighths(5, (STEPS, *net.x.shape)) if inputs == "sequence" else net.x


@functools.cache
def outputs(name, inputs="constant", **options):
    """Outputs of one of `NETS` with `halves`, as NumPy arrays."""
    net = NETS[name]
    simulate = compiled(net.fn, **{"steps": STEPS, "inputs": inputs} | options)
    return jax.tree.map(np.asarray, simulate(snn_of(name), input_of(net, inputs)))


def run(snn, x=VECTORS, fn=DENSE.fn, **options):
    return np.asarray(compiled(fn, **{"steps": STEPS} | options)(snn, x))


def gradients_of(snn, executions, **options):
    """Values and gradients of the sum of squares, by one program, in NumPy."""

    def slope(execution):
        simulate = snnjax.spiking(DENSE.fn, steps=STEPS, execution=execution, **options)
        return jax.value_and_grad(lambda snn: (simulate(snn, VECTORS) ** 2).sum())

    return networks.outputs_of(map(slope, executions), snn)


assert_close = functools.partial(assert_trees_all_close, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, inputs",
    [
        ("vectors", "constant"),
        pytest.param("images", "constant", marks=pytest.mark.thorough),
        ("several outputs", "sequence"),
        ("dense", "sequence"),
    ],
)
def test_executions_give_the_same_spikes(name, inputs):
    by_step = outputs(name, inputs, wait=0, execution=1)
    assert_equal(by_step, outputs(name, inputs, wait=0, execution=STEPS))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(by_step))
    answers = [
        outputs(name, inputs, wait=STEPS, execution=execution)
        for execution in (STEPS, "closed_form")
    ]
    if inputs != "constant":  # what reaches the readout itself comes step by step
        answers = jax.tree.map(lambda leaf: leaf.sum(0), answers)
    assert_equal(*answers)


@pytest.mark.parametrize(
    "name, inputs, wait, executions",
    [
        ("vectors", "constant", 0, [1, STEPS]),
        pytest.param(
            "images",
            "constant",
            STEPS,
            [STEPS, "closed_form"],
            marks=pytest.mark.thorough,
        ),
        ("several outputs", "sequence", 0, [3, STEPS]),
        ("dense", "sequence", 0, ["auto"]),
    ],
)
def test_the_answer_alone_is_the_mean_of_all_steps(name, inputs, wait, executions):
    steps = snn_of(name).code.answers(outputs(name, inputs, wait=wait))
    expected = jax.tree.map(lambda output: output[-1], steps)
    for execution in executions:
        options = {"wait": wait, "execution": execution, "answer": True}
        assert_close(expected, outputs(name, inputs, **options))
    options = {"micro_batch": 2, "answer": True}
    assert_close(expected, outputs(name, inputs, wait=wait, **options))


def test_with_the_answer_alone_the_readout_has_no_time_axis():
    def shapes(**options):
        simulate = snnjax.spiking(DENSE.fn, steps=STEPS, **options)
        return str(jax.make_jaxpr(simulate)(FITTED, VECTORS))

    batch, size = DENSE.fn(DENSE.params, VECTORS).shape
    in_time = f"f32[{STEPS},{batch},{size}]"
    for execution in (1, STEPS):
        assert in_time in shapes(execution=execution)
        assert in_time not in shapes(execution=execution, answer=True)


@pytest.mark.parametrize(
    "name, inputs, micro_batch",
    [
        ("several outputs", "sequence", 1),
        ("dense", "sequence", 3),
        ("dense", "constant", 9),
    ],
)
def test_micro_batches_give_the_same(name, inputs, micro_batch):
    whole = outputs(name, inputs, wait=0, execution=1)
    assert_equal(whole, outputs(name, inputs, micro_batch=micro_batch))


def operations(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("name", ["projection", "max-pool before"])
def test_t_steps_cost_less_than_t_times_the_network(name):
    """Counted, not timed: the input's drive is computed once, and with wait T all.

    XLA counts a loop's body once, so the neurons hardly count.
    """
    net, snn, steps = NETWORKS[name], snn_of(name), 16
    ann = operations(net.fn, net.params, net.x)
    layers = snnjax.spiking(net.fn, steps=steps, execution=steps)
    assert operations(layers, snn, net.x) < 0.75 * steps * ann
    waiting = snnjax.spiking(net.fn, steps=steps, wait=steps)
    assert operations(waiting, snn, net.x) < 2 * ann


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_dense_network_is_the_oracles(reset):
    snn = dataclasses.replace(snn_of("dense"), model=integrate_and_fire(reset=reset))
    p = {name: np.asarray(w, np.float64) for name, w in FLAT.items()}
    first, second = snn.neurons.values()

    def spikes_of(currents, neurons):
        return reference.simulate(
            currents,
            np.asarray(neurons.threshold),
            bias=np.asarray(neurons.bias),
            start=np.asarray(neurons.initial_potential),
            reset=reset,
            wait=2,
        )

    current = np.asarray(VECTORS) @ p["w1"] + p["b1"]
    spikes = spikes_of(np.stack([current] * STEPS), first)
    spikes = spikes_of(spikes @ p["w2"], second)
    np.testing.assert_array_equal(run(snn, wait=2), spikes @ p["w3"])


POOL = Operator(lambda x: (networks.max_pool(x),), (True,), homogeneous=True)


def test_a_max_pool_in_time_is_the_oracles():
    stream = np.asarray(eighths(0, (6, 2, 4, 4, 3), 0, 2)) * 8
    (increments,) = jax.jit(lambda stream: POOL(stream))(stream)
    np.testing.assert_array_equal(
        increments, reference.max_pool(stream, networks.max_pool)
    )
    assert set(np.unique(increments)) <= {0.0, 1.0}
    # Of one reduction, not of a constant too: XLA would fold that while it compiles,
    # which takes six seconds and warns for 32x32 images.
    assert str(jax.make_jaxpr(POOL)(stream)).count("reduce_window_max") == 1


SLOW = set(NETWORKS) - {"dense", "max-pool before"}


@pytest.mark.parametrize(
    "name",
    [
        "dense",
        *thorough("max-pool before"),
        *[pytest.param(name, marks=pytest.mark.slow) for name in sorted(SLOW)],
    ],
)
def test_rates_approach_the_ann(name):
    net, recipe = NETWORKS[name], snnjax.max_activation()
    snn = networks.converted(*net[:3], steps=512, recipe=recipe)
    ann = jax.tree.leaves(jax.jit(net.fn)(net.params, net.x))
    steps = jax.tree.map(np.asarray, compiled(net.fn)(snn, net.x))

    def error(t):
        """Of the mean of the first t steps, which a run of t steps would have too."""
        means = [leaf[:t].mean(0) for leaf in jax.tree.leaves(steps)]
        return sum(np.abs(a - m).mean() for a, m in zip(ann, means, strict=True))

    assert error(512) < error(8) / 4
    assert error(512) < 0.03 * sum(np.abs(leaf).mean() for leaf in ann)


def test_a_wait_reads_evidence_before_the_first_spike():
    """Late input: without a wait the spikes come too late to be counted."""
    currents = np.array([0.0, 0.0, 1.0, 1.0], np.float32).reshape(4, 1, 1)
    fn = lambda p, x: relu(x * p)  # noqa: E731
    neuron = integrate_and_fire(threshold=0.5)
    snn = snnjax.init(fn, jnp.ones(()), currents[0], model=neuron)
    options = {"inputs": "sequence", "steps": 4}
    runs = [snnjax.spiking(fn, wait=wait, **options) for wait in (0, 2)]
    rates = [outputs.mean() for outputs in networks.outputs_of(runs, snn, currents)]
    np.testing.assert_array_equal(rates, [0.25, 0.5])


def test_latency_grows_with_depth():
    sites = snnjax.sites(*NETWORKS["projection"][:3])
    assert snnjax.latency(sites, steps=8, wait=8) == 32


def test_examples_that_all_have_the_same_outputs_cause_a_warning():
    fitted_to_large_images = snnjax.init(
        lambda w, x: relu(x @ w), jnp.eye(4), VECTORS[:, :4], model=integrate_and_fire()
    )
    spiking_fn = snnjax.spiking(lambda w, x: relu(x @ w), steps=STEPS)
    with pytest.warns(UserWarning, match="all 3 examples have the same outputs"):
        spiking_fn(fitted_to_large_images, jnp.eye(3, 4) / 255)
    # Equal examples have equal outputs, and large ones reach the thresholds.
    spiking_fn(fitted_to_large_images, jnp.ones((3, 4)) / 255)
    spiking_fn(fitted_to_large_images, jnp.eye(3, 4))


def test_first_outputs_of_a_longer_run_are_a_shorter_run():
    shorter = outputs("dense", wait=0, execution=1)
    np.testing.assert_array_equal(outputs("dense", steps=11)[:STEPS], shorter)


def test_vmap_over_thresholds_tries_several_networks():
    snn = snn_of("dense")
    scales = np.array([1.0, 2.0, 4.0], np.float32)

    def scaled(scale):
        neurons = {}
        for name, params in snn.neurons.items():
            neurons[name] = params._replace(threshold=scale * params.threshold)
        scaled = dataclasses.replace(snn, neurons=neurons)
        return snnjax.spiking(DENSE.fn, steps=STEPS)(scaled, VECTORS)

    together = np.asarray(jax.jit(jax.vmap(scaled))(scales))
    one = jax.jit(scaled)
    for outputs, scale in zip(together, scales, strict=True):
        np.testing.assert_array_equal(outputs, one(scale))
    assert np.any(together[0] != together[2])


# ------------------------------------------------------------------ steps of the SNN


def test_neurons_that_leak_run_with_other_steps_than_those_of_their_training():
    fn, params, x = DENSE[:3]
    leaky = dataclasses.replace(snnjax.init(fn, params, x), steps=3, wait=0)
    for steps, outputs in ((5, 5), (None, 3)):
        assert len(compiled(fn, steps=steps)(leaky, x)) == outputs


def test_an_snn_brings_its_steps_and_wait():
    snn = dataclasses.replace(FITTED, steps=3, wait=1, fitted_to=None)
    np.testing.assert_array_equal(run(snn, steps=None), run(snn, steps=3, wait=1))


def test_an_snn_without_arrays_is_shown_in_a_line_too():
    assert repr(jax.tree.map(lambda leaf: None, FITTED)).startswith("SNN(steps=8")


# --------------------------------------------------------------------- gradients


def test_a_wait_leaves_the_gradient_of_operators_finite():
    """Evaluated on zeros, outside of its window, a norm would have the slope 0 / 0."""

    def unit(a):
        return a / jnp.linalg.norm(a, axis=-1, keepdims=True)

    def fn(p, x):
        return unit(unit(x @ p["w1"]) @ p["w2"]) @ p["w3"]

    snn = snnjax.init(fn, FLAT, VECTORS, model=integrate_and_fire(threshold=0.25))
    snn = dataclasses.replace(snn, steps=STEPS, wait=1)
    # The step alone decides what is skipped, so vmap keeps the branch.
    scales = np.array([1.0, 2.0], np.float32)

    def loss(snn, scale):
        return (snnjax.spiking(fn)(snn, scale * VECTORS) ** 2).sum()

    slopes = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(snn, scales)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert np.any(slopes.params["w1"])


@pytest.mark.parametrize(
    "surrogate, wait", [(arctan, STEPS), (networks.relaxed_dspike, 0)]
)
def test_auto_has_the_gradient_of_the_surrogate_whatever_it_takes(surrogate, wait):
    snn = snnjax.init(*DENSE[:3], model=integrate_and_fire(temperature=2.0))
    options = {"surrogate": surrogate, "wait": wait}
    auto, layers = gradients_of(snn, ("auto", STEPS), **options)
    assert_close(auto, layers)
    soft = surrogate is networks.relaxed_dspike
    assert np.any(auto[1].neurons["w1/relu"].temperature) == soft


def test_a_traced_temperature_may_decide_what_is_fired():
    def loss(b, spike, execution):
        surrogate = functools.partial(spike, temperature=b)
        options = {"surrogate": surrogate, "execution": execution, "wait": STEPS}
        outputs = snnjax.spiking(DENSE.fn, steps=STEPS, **options)(FREE, VECTORS)
        return (outputs**2).sum(), outputs

    slope = jax.grad(loss, has_aux=True)
    for spike in (networks.relaxed_dspike, dspike):
        runs = [
            functools.partial(slope, spike=spike, execution=execution)
            for execution in ("auto", STEPS)
        ]
        auto, layers = networks.outputs_of(runs, 2.0)
        assert_close(auto, layers, rtol=1e-5, atol=1e-5)
        is_soft = spike is networks.relaxed_dspike
        assert (auto[0] != 0) == is_soft  # a hard spike hides the temperature
        assert (len(np.unique(auto[1])) > 40) == is_soft


FREE = dataclasses.replace(FITTED, steps=None, wait=None)


def test_a_declared_step_has_a_closed_form():
    width = step_with_derivative(lambda x, w: (abs(x) < w) / (2 * w))
    simulate = functools.partial(snnjax.spiking, DENSE.fn, steps=STEPS)
    waiting = simulate(wait=STEPS, surrogate=width)
    assert "scan" not in str(jax.make_jaxpr(waiting)(IF, VECTORS))
    runs = [
        waiting,
        simulate(wait=STEPS, surrogate=width, execution=STEPS),
    ]
    answer, layers = networks.outputs_of(runs, IF, VECTORS)
    np.testing.assert_allclose(answer, layers, rtol=1e-6)


# ------------------------------------------------------------------- types of numbers


def test_spikes_of_a_bfloat16_network_are_bfloat16():
    params = {name: w.astype(jnp.bfloat16) for name, w in FLAT.items()}
    narrow = dataclasses.replace(snn_of("dense"), params=params)
    narrow_outputs = run(narrow, VECTORS.astype(jnp.bfloat16))
    assert narrow_outputs.dtype == jnp.bfloat16
    expected = outputs("dense", wait=0, execution=1)
    np.testing.assert_array_equal(narrow_outputs.astype(np.float32), expected)


def test_parameters_of_float64_are_rounded_where_jax_has_no_64_bits():
    """As by JAX for any function, without a warning, also outside of `jit`."""
    params = {name: np.float64(w) for name, w in FLAT.items()}
    rounded = dataclasses.replace(snn_of("dense"), params=params)
    simulate = snnjax.spiking(DENSE.fn, steps=STEPS, execution=1)
    expected = outputs("dense", wait=0, execution=1)
    assert_close(simulate(rounded, VECTORS), expected)


def test_wider_parameters_make_wider_membranes(x64):
    snn = snn_of("dense")
    narrow = {
        0: outputs("dense", wait=0, execution=1),
        STEPS: run(snn, wait=STEPS),
    }
    x64()
    neurons = jax.tree.map(lambda a: np.asarray(a, np.float64), snn.neurons)
    wide = dataclasses.replace(snn, neurons=neurons)
    for execution, wait in ((1, 0), ("auto", STEPS)):
        numbers = run(wide, wait=wait, execution=execution)
        assert numbers.dtype == np.float32
        np.testing.assert_allclose(numbers.mean(0), narrow[wait].mean(0), atol=1e-5)


def test_max_pool_adds_in_float64_where_the_network_is(x64):
    x64()
    spike = 1 + 1e-9  # 1 in float32

    def pooled(p, x):
        window = (1, 2, 1)
        spikes = relu(x * p)
        return jax.lax.reduce_window(
            spikes, -jnp.inf, jax.lax.max, window, window, "VALID"
        )

    x = np.full((1, 4, 1), spike)
    snn = snnjax.init(pooled, np.ones(()), x, model=integrate_and_fire())
    neurons = {"relu": snn.neurons["relu"]._replace(threshold=np.asarray(spike))}
    snn = dataclasses.replace(snn, neurons=neurons)
    executions = 1, STEPS, 3
    for spikes in networks.by_executions(pooled, executions, snn, x, steps=STEPS):
        np.testing.assert_allclose(spikes, spike, rtol=1e-12)


# ----------------------------------------------------------------------- inputs


def test_input_that_reaches_the_readout_directly_comes_step_by_step():
    def fn(w, x):
        return relu(x @ w) @ w.T + x

    w, x = eighths(1, (5, 3)), eighths(2, (STEPS, 4, 5))
    snn = snnjax.init(fn, w, x[0], model=integrate_and_fire(threshold=0.5))
    options = {"steps": STEPS, "wait": STEPS, "inputs": "sequence"}
    executions = STEPS, "closed_form"
    np.testing.assert_array_equal(
        *networks.by_executions(fn, executions, snn, x, **options)
    )


def test_arrays_of_a_sequence_have_equally_many_examples():
    def fn(w, x):
        return jax.nn.relu(x["a"] @ w) + x["b"]

    x = {"a": np.ones((STEPS, 3, 2)), "b": np.ones((STEPS, 3, 2))}
    x = jax.tree.map(lambda leaf: leaf.astype(np.float32), x)
    one_step = jax.tree.map(lambda leaf: leaf[0], x)
    snn = snnjax.init(fn, np.eye(2, dtype=np.float32), one_step)
    simulate = compiled(fn, steps=STEPS, inputs="sequence", micro_batch=2)
    assert simulate(snn, x).shape == (STEPS, 3, 2)


def test_training_mode_without_has_aux_names_it():
    def in_training(params, x):
        y = x @ params
        y = jax.nn.relu((y - y.mean(0)) / jnp.std(y, 0))
        return y, {"mean": y.mean(0)}

    x = np.ones((4, 3), np.float32)
    snn = snnjax.init(in_training, np.eye(3, dtype=np.float32), x, has_aux=True)
    with pytest.raises(snnjax.ConversionError) as error:
        snnjax.spiking(in_training, steps=2)(snn, x)
    assert "training mode, give has_aux=True" in "".join(error.value.__notes__)


# ------------------------------------------------------------------ state in and out


@pytest.mark.parametrize("name", ["dense", "max-pool before"])  # with an operator
def test_a_stream_in_pieces_has_the_outputs_of_the_whole(name):
    net = networks.NETWORKS[name]
    x = input_of(net, "sequence")
    snn = snn_of(name)
    whole = networks.compiled(net.fn, steps=STEPS, inputs="sequence")(snn, x)
    for execution in ("auto", 1, 1):
        options = {"steps": 2, "inputs": "sequence", "execution": execution}
        piece = networks.compiled(net.fn, state=True, **options)
        state = None
        parts = []
        for start in range(0, STEPS, 2):
            outputs, state = piece(snn, x[start : start + 2], state=state)
            parts.append(outputs)
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_truncated_gradient_ends_at_the_state():
    piece = snnjax.spiking(DENSE.fn, steps=2, state=True)
    _, state = piece(IF, VECTORS)

    def loss(snn, state):
        return (piece(snn, VECTORS, state=state)[0] ** 2).mean()

    def whole_loss(snn):
        _, state = piece(snn, VECTORS)
        return loss(snn, state)

    def truncated_loss(snn):
        return loss(snn, jax.lax.stop_gradient(state))

    whole, truncated = networks.outputs_of(
        map(jax.grad, (whole_loss, truncated_loss)), IF
    )
    differences = jax.tree.map(lambda a, b: np.any(a != b), whole, truncated)
    assert any(jax.tree.leaves(differences))
