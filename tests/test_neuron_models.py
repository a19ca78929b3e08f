"""Neuron models beyond IF and LIF: the library's, anybody's, and one for every site.

The oracle is `reference.population`; numbers are multiples of 1/8, so sums are exact.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import reference
from chex import assert_trees_all_close
from networks import NETWORKS, by_executions, compiled, eighths, outputs_of, relu
from rows import thorough

import snnjax
from snnjax import lif, training
from snnjax.neurons import (
    Adaptive,
    Recurrent,
    RecurrentParams,
    ResonateAndFire,
    Synaptic,
    TimeConstants,
    Uniform,
    unroll,
)
from snnjax.neurons.gradients import WithSurrogate
from snnjax.neurons.models import ResonateState
from snnjax.surrogate import dspike

STEPS = 5  # few steps would be computed outside of a loop, in larger programs
KEY = jax.random.key(0)
RISING = {"subthreshold": 0.5, "spike_triggered": 0.25, "adaptation_leak": 0.5}
MODELS = {
    "synaptic": Synaptic(lif(leak=0.5)),
    "adaptive": Adaptive(lif(leak=0.5), **RISING),
    "recurrent": Recurrent(lif(leak=0.5)),
    "all of them": Recurrent(Synaptic(Adaptive(lif(leak=0.5, reset="zero"), **RISING))),
}


class MyParams(NamedTuple):
    threshold: jax.Array
    bias: jax.Array


@dataclasses.dataclass(frozen=True)
class MyNeuron:
    """A model of the user's own: its state is a tuple, its surrogate an argument."""

    factor: float = 0.5

    def init(self, shape=(), key=None):
        return MyParams(jnp.ones(shape), jnp.zeros(()))

    def start(self, params, shape):
        return jnp.zeros(shape), jnp.zeros((), jnp.int32)

    def integrate(self, params, state, current):
        v, step = state
        return self.factor * v + current, step + 1

    def fire(self, params, state, spike=dspike):
        v, step = state
        spikes = spike((v - params.threshold) / (2 * params.threshold))
        return (v - params.threshold * spikes, step), spikes


class Straight(MyNeuron):
    """Its surrogate is its own: the gradient goes straight through."""

    def fire(self, params, state):
        v, step = state
        hard = (v >= params.threshold).astype(v.dtype)
        spikes = v + jax.lax.stop_gradient(hard - v)
        return (v - params.threshold * jax.lax.stop_gradient(hard), step), spikes


class Hard(MyNeuron):
    """It has no surrogate."""

    def fire(self, params, state, spike=dspike):
        v, step = state
        spikes = (v >= params.threshold).astype(v.dtype)
        return (v - params.threshold * spikes, step), spikes


def hard(x):
    """The step as a surrogate, which has no derivative."""
    return (x >= 0).astype(x.dtype)


def exact(params):
    """Recurrent kernels in eighths: sums are exact."""
    kernel = getattr(params, "kernel", None)
    if kernel is None:
        return params
    return params._replace(kernel=eighths(5, kernel.shape))


NET = NETWORKS["dense"]
FIRST, SECOND = "w1/relu", "w2/relu"  # its sites


def fresh(neuron, name="dense"):
    """An SNN of one of the `NETWORKS` with these neurons."""
    snn = snnjax.init(*NETWORKS[name][:3], model=neuron, key=KEY)
    neurons = {name: exact(params) for name, params in snn.neurons.items()}
    return dataclasses.replace(snn, neurons=neurons)


ALL = fresh(MODELS["all of them"])
LIF, OWN_SNN = fresh(lif()), fresh(MyNeuron())


def run(snn, net=NET, **options):
    outputs = compiled(net.fn, **{"steps": STEPS} | options)(snn, net.x)
    return jax.tree.map(np.asarray, outputs)


def slope(**options):
    """snn -> gradient of the mean square of the outputs, and the outputs."""
    simulate = snnjax.spiking(NET.fn, **{"steps": STEPS} | options)

    def loss(snn):
        outputs = simulate(snn, NET.x)
        return (outputs**2).mean(), outputs

    return jax.grad(loss, has_aux=True)


def gradients_agree(snn, *executions):
    """The gradient of the executions, which have equal outputs and gradients."""
    runs = [slope(execution=execution) for execution in executions]
    (gradient, outputs), *results = outputs_of(runs, snn)
    for run_gradient, run_outputs in results:
        assert_close(gradient, run_gradient)
        np.testing.assert_array_equal(outputs, run_outputs)
    assert np.any(outputs)
    return gradient


assert_close = functools.partial(assert_trees_all_close, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------- the library's models


@pytest.mark.parametrize(
    "kind, reset, wait",
    [
        ("synaptic", "subtract", 0),
        ("adaptive", "zero", 2),
        ("recurrent", "zero", 0),
        ("recurrent", "subtract", 2),
        ("all", "subtract", 2),
        ("all", "zero", 0),
    ],
)
def test_spikes_are_those_of_the_oracle(kind, reset, wait):
    plain = lif(leak=0.5, threshold=0.5, reset=reset)
    kernel = np.asarray(eighths(3, (6, 6)))
    model, numbers = {
        "synaptic": (Synaptic(plain, synaptic_leak=0.25), {"synaptic_leak": 0.25}),
        "adaptive": (Adaptive(plain, **RISING), RISING),
        "recurrent": (Recurrent(plain), {"kernel": kernel}),
        "all": (
            Recurrent(Synaptic(Adaptive(plain, **RISING))),
            RISING | {"synaptic_leak": 0.5, "kernel": kernel},
        ),
    }[kind]
    currents = np.asarray(eighths(1, (STEPS, 3, 6), -8, 17))
    params = model.init((6,), KEY)
    if "kernel" in numbers:
        params = params._replace(kernel=kernel)
    simulate = jax.jit(unroll, static_argnums=0, static_argnames="wait")
    spikes = np.asarray(simulate(model, params, currents, wait=wait))
    options = {"leak": 0.5, "reset": reset, "wait": wait, **numbers}
    for example in range(3):
        into = np.asarray(currents[:, example], float)
        expected = reference.population(into, 0.5, **options)
        np.testing.assert_array_equal(spikes[:, example], expected)
    assert 0 < (spikes > 0).mean() < 1


def test_resonators_follow_the_equations_of_the_paper():
    model = ResonateAndFire(omega=Uniform(0.1, 0.875), damping=Uniform(0.001, 0.25))
    params = model.init((6,), KEY)._replace(threshold=np.float32(0.5))
    currents = np.random.default_rng(0).normal(0.1, 0.4, (40, 3, 6)).astype(np.float32)
    simulate = jax.jit(unroll, static_argnums=0)
    spikes = simulate(model, params, currents)
    dt = 0.01
    omega = np.asarray(params.omega, float) / dt
    damping = np.asarray(params.damping, float) / dt
    x = y = q = np.zeros((3, 6))
    expected = []
    for current in currents:
        b = (-1 + np.sqrt(1 - (dt * omega) ** 2)) / dt - damping - q
        x_change = dt * (b * x - omega * y) + current
        y_change = dt * (omega * x + b * y)
        x, y = x + x_change, y + y_change
        fired = x >= 0.5 + 0.5 * q
        q = 0.9 * q + fired
        expected.append(0.5 * fired)
    np.testing.assert_array_equal(spikes, expected)
    assert 0.02 < (spikes > 0).mean() < 0.5
    gradient = gradients_agree(fresh(ResonateAndFire()), 1, STEPS)
    assert all(jax.tree.leaves(jax.tree.map(np.any, gradient.neurons)))


def test_resonators_do_not_grow_at_the_ends_of_their_ranges():
    """After as many spikes as can be, and without any input."""
    model = ResonateAndFire()
    params = model.init((4,), KEY)._replace(
        omega=np.float32([0, 7 / 8, 0, 7 / 8]),
        damping=np.float32([1 / 4, 1 / 4, 1e-6, 1e-6]),
    )
    ones = np.ones((1, 4))
    state = ResonateState(potential=ones, quadrature=ones, refractory=10 * ones)
    for _ in range(50):
        state = model.integrate(params, state, np.zeros((1, 4), np.float32))
    radius = np.hypot(state.potential, state.quadrature)
    assert (radius <= np.sqrt(2)).all()


def test_executions_give_the_same_spikes():
    net, model = NETWORKS["max-pool before"], MODELS["synaptic"]
    executions = 1, STEPS, 3
    snn = fresh(model, "max-pool before")
    expected, *results = by_executions(net.fn, executions, snn, net.x, steps=STEPS)
    assert np.any(expected)
    for outputs in results:
        np.testing.assert_array_equal(outputs, expected)


@pytest.mark.thorough
def test_gradients_of_the_executions_agree():
    gradients_agree(ALL, 1, STEPS, 2)


def test_gradients_of_soft_spikes_are_their_differences(x64):
    x64()
    snn = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), ALL)
    x = np.asarray(NET.x, np.float64) / 2
    simulate = snnjax.spiking(NET.fn, steps=STEPS, surrogate=networks.relaxed_dspike)
    loss = jax.jit(jax.value_and_grad(lambda snn: (simulate(snn, x) ** 2).sum()))
    _, slope = loss(snn)
    generator = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), snn)

    def loss_at(distance):
        """Of the SNN that is so far away in this direction."""
        moved = jax.tree.map(lambda leaf, d: leaf + distance * d, snn, direction)
        value, _ = loss(moved)
        return float(value)

    h = 1e-6
    difference = (loss_at(h) - loss_at(-h)) / (2 * h)
    products = jax.tree.map(np.vdot, slope, direction)
    expected = float(sum(jax.tree.leaves(products)))
    assert difference == pytest.approx(expected, 1e-4)
    for params in slope.neurons.values():  # every parameter matters
        assert all(np.any(leaf) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_detached_reset_detaches_the_level_of_a_spike_and_nothing_else(reset):
    model = Recurrent(lif(leak=0.5, reset=reset))
    params = exact(model.init((6,), KEY))
    currents = eighths(1, (STEPS, 3, 6), -8, 17)
    weights = jnp.arange(1.0, 7.0)

    def by_hand(kernel, threshold):
        v = spikes = jnp.zeros((3, 6))
        total = 0.0
        for current in currents:
            v = 0.5 * v + current + spikes @ kernel
            level = dspike((v - threshold) / (2 * threshold))
            spikes = threshold * level
            constant = jax.lax.stop_gradient(level)
            if reset == "zero":
                v = v * (1 - constant)
            else:
                v = v - threshold * constant
            total += (spikes * weights).sum()
        return total

    def simulated(kernel, threshold):
        neuron = WithSurrogate(model, dspike, detach_reset=True)
        inside = params.neuron._replace(threshold=threshold)
        spikes = unroll(neuron, RecurrentParams(inside, kernel), currents)
        return (spikes * weights).sum()

    runs = [jax.value_and_grad(function, (0, 1)) for function in (by_hand, simulated)]
    results = outputs_of(runs, params.kernel, jnp.array(0.5))
    (expected_total, expected_slopes), (total, slopes) = results
    assert total == expected_total != 0
    for slope, expected in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-4)
        assert np.any(expected)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_detached_reset_has_no_gradient_of_the_spikes_before(reset):
    """A neuron takes back at most what it has sent, and that has a gradient."""
    model = lif(levels=(-1, 1), leak=0.875, reset=reset)
    currents = jnp.array([[0.75], [0.625], [-1.875], [-1.0], [1.25], [0.25], [0.75]])
    weights = jnp.arange(1.0, 8.0)

    def by_hand(currents):
        v = sent = result = 0.0
        for current, weight in zip(currents[:, 0], weights, strict=True):
            v = 0.875 * v + current
            level = dspike(v / 2) + dspike((v - 1) / 2) - 1
            level = jnp.where(level < -sent, -sent, level)
            sent = sent + level
            constant = jax.lax.stop_gradient(level)
            v = v * (constant == 0) if reset == "zero" else v - constant
            result += weight * level
        return result

    def simulated(currents):
        neuron = WithSurrogate(model, dspike, detach_reset=True)
        return unroll(neuron, model.init(), currents)[:, 0] @ weights

    runs = [jax.value_and_grad(function) for function in (by_hand, simulated)]
    (expected, slope), (result, simulated_slope) = outputs_of(runs, currents)
    assert result == expected
    np.testing.assert_allclose(simulated_slope, slope, rtol=1e-5, atol=1e-5)


class Silent(snnjax.neurons.IntegrateAndFire):
    def fire(self, params, state, spike=dspike):
        state, spikes = super().fire(params, state, spike)
        return state, 0 * spikes


def test_a_model_derived_from_if_is_a_model_of_its_own():
    snn = fresh(Silent())
    for wait in (0, STEPS):
        assert not np.any(run(snn, NET._replace(x=0 * np.asarray(NET.x)), wait=wait))


def test_parameters_inside_are_found_by_their_names():
    kinds = training.param_labels(ALL, ["kernel", "synaptic_leak"])
    (first, *_) = kinds.neurons.values()
    assert (first.kernel, first.neuron.synaptic_leak) == ("kernel", "synaptic_leak")
    assert first.neuron.neuron.neuron.threshold == "frozen"
    assert set(jax.tree.leaves(kinds.params)) == {"frozen"}


# ------------------------------------------------------------------ anybody's model


def test_models_of_ones_own_run_and_train_in_every_execution():
    snn = fresh({FIRST: Recurrent(MyNeuron()), SECOND: Straight()})
    gradient = gradients_agree(snn, 1, 3)
    assert all(np.any(gradient.params[name]) for name in ("w1", "w2", "w3"))


def test_a_model_as_if_gives_the_spikes_of_if():
    models = MyNeuron(factor=1.0), snnjax.integrate_and_fire()
    np.testing.assert_array_equal(*(run(fresh(model), wait=1) for model in models))


def test_neurons_without_a_surrogate_gradient_run():
    assert np.any(run(fresh({FIRST: Hard(), SECOND: Recurrent(Synaptic(Hard()))})))
    assert np.any(run(LIF, surrogate=hard))


def test_sites_have_keys_of_their_own():
    snn = snnjax.init(*NET[:3], model=Recurrent(lif()), key=KEY)
    one, two = (np.asarray(params.kernel) for params in snn.neurons.values())
    assert not np.any(one == two)


class WithGain(MyNeuron):
    def fire(self, params, state, gain=2.0):
        state, spikes = super().fire(params, state)
        return state, gain * spikes


class WithoutDefault(MyNeuron):
    def fire(self, params, state, spike):
        return super().fire(params, state, spike)


class ByKeyword(MyNeuron):
    def fire(self, params, state, *, spike=dspike):
        return super().fire(params, state, spike)


def test_an_argument_of_fire_is_a_surrogate_by_its_name_alone():
    options = {"surrogate": snnjax.surrogate.triangle, "detach_reset": True}
    snn = fresh({FIRST: Recurrent(WithoutDefault()), SECOND: Recurrent(ByKeyword())})
    simulate = snnjax.spiking(NET.fn, steps=STEPS, **options)
    measure = functools.partial(snnjax.measure, NET.fn, params=NET.params, steps=STEPS)
    outputs, measures = outputs_of([simulate, measure], snn, NET.x)
    assert np.any(outputs) and measures.firing_rate > 0
    assert np.any(run(fresh(WithGain())))


def test_operations_of_recurrent_connections_are_counted():
    def fn(w, x):
        return relu(x @ w) @ w.T

    w, x = eighths(0, (4, 6)), eighths(1, (3, 4), 0, 9)
    plain = snnjax.init(fn, w, x, model=lif())
    model = Recurrent(lif())
    params = model.init((6,), KEY)
    # Connections of weight 0: the spikes are those of LIF.
    params = params._replace(kernel=np.zeros((6, 6), "f4"))
    (name,) = plain.neurons
    snn = dataclasses.replace(plain, model=model, neurons={name: params})

    def measured(snn):
        return lambda x: snnjax.measure(fn, snn, x, params=w, steps=STEPS)

    trains = functools.partial(snnjax.measures.spike_trains, fn, snn, steps=STEPS)
    runs = [measured(plain), measured(snn), trains]
    without, within, spikes = outputs_of(runs, x)
    inside = 6 * float(spikes[name][:-1].sum()) / len(x)
    for field in ("synaptic_operations", "synaptic_additions"):
        difference = float(getattr(within, field) - getattr(without, field))
        assert difference == pytest.approx(inside) and inside > 0
    assert within.weights - without.weights == 36
    assert (within.bits, within.values) == (STEPS, STEPS + 1)


def test_measures_of_a_model_without_levels_say_what_is_unknown():
    measure = functools.partial(snnjax.measure, NET.fn, params=NET.params, steps=STEPS)
    trains = functools.partial(snnjax.measures.spike_trains, NET.fn, steps=STEPS)
    measures, trains = outputs_of([measure, trains], OWN_SNN, NET.x)
    assert 0 < measures.firing_rate < 1 and measures.synaptic_operations > 0
    unknown = measures.synaptic_additions, measures.bits, measures.values
    assert all(np.isnan(number) for number in unknown)
    (train, *_) = trains.values()
    assert jnp.issubdtype(train.dtype, jnp.floating)
    metrics = snnjax.measures.neurobench(NET.fn, OWN_SNN, NET.x, steps=STEPS)
    assert metrics["SynapticOperations"]["Effective_ACs"] == 0


# ------------------------------------------------------------------ a model per site


def test_the_first_pattern_that_matches_counts():
    slow = lif(leak=0.875)
    snn = snnjax.init(*NET[:3], model={"w1*": slow})
    assert snn.model_of(FIRST) == slow and snn.model_of(SECOND) == lif()
    only = snnjax.init(*NET[:3], model={"*": slow})
    assert only.model == slow


def test_the_name_of_a_site_counts_before_patterns():
    def fn(params, x):
        return relu(relu(x @ params["a[0]"]) @ params["a0"]) @ params["a0"]

    params = {"a[0]": np.eye(2), "a0": np.eye(2)}
    models = {"a[0]/relu": lif(leak=0.25), "a0/relu": lif(leak=0.75)}
    snn = snnjax.init(fn, params, np.ones((1, 2)), model=models)
    assert {name: snn.model_of(name) for name in models} == models


def test_sites_with_models_of_their_own_run():
    signed = snnjax.integrate_and_fire(levels=(-1, 1))
    snn = fresh({FIRST: Recurrent(lif()), SECOND: signed})
    options = {"steps": STEPS}
    runs = [
        snnjax.spiking(NET.fn, execution=1, **options),
        snnjax.spiking(NET.fn, execution=STEPS, **options),
        functools.partial(snnjax.measures.spike_trains, NET.fn, **options),
        functools.partial(snnjax.measure, NET.fn, params=NET.params, **options),
    ]
    by_steps, outputs, spikes, measures = outputs_of(runs, snn, NET.x)
    np.testing.assert_array_equal(by_steps, outputs)
    assert [spikes[name].dtype for name in (FIRST, SECOND)] == [bool, jnp.int16]
    assert STEPS < measures.bits < STEPS * math.log2(3)


def test_a_conversion_takes_levels_by_site():
    signed = snnjax.integrate_and_fire(levels=(-1, 1))
    options = {"steps": STEPS, "wait": STEPS, "recipe": snnjax.max_activation()}
    snn = networks.converted(*NET[:3], **options, model={SECOND: signed})
    assert snn.model_of(FIRST).levels == (0, 1) and snn.model_of(SECOND) == signed
    executions = STEPS, "closed_form"
    layers, closed_form = by_executions(NET.fn, executions, snn, NET.x)
    assert_close(layers.mean(0), closed_form.mean(0))
    one, by_pattern = (
        snnjax.convert(*NET[:3], **options, model=model)
        for model in (signed, {"*": signed})
    )
    assert one.model == by_pattern.model == signed
    jax.tree.map(np.testing.assert_array_equal, one.neurons, by_pattern.neurons)


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "neuron",
    [
        MODELS["all of them"],
        {"w2/*": lif(leak=0.25), "*": Synaptic(lif(), synaptic_leak=0.75)},
        snnjax.integrate_and_fire(levels=(-2, 3), dead_zone=0.5, last_zone=0.75),
        lif(leak=0.25, lowest=-1.5),
        lif(leak=TimeConstants(2, 20), threshold=Uniform(0.5, 1), temperature=[2]),
        ResonateAndFire(temperature=2),
    ],
    ids=["wrapped", "by site", "levels", "bounded", "drawn", "resonate"],
)
def test_a_file_brings_the_models_back(neuron, tmp_path):
    snn = fresh(neuron)
    again = snnjax.load(snnjax.save(tmp_path / "snn.safetensors", snn)).snn
    assert again.model == snn.model
    jax.tree.map(np.testing.assert_array_equal, again, snn)


def test_a_file_of_another_model_needs_it_or_holds_its_program(tmp_path):
    snn = fresh(model := {FIRST: Recurrent(MyNeuron()), "*": lif()})
    path = snnjax.save(tmp_path / "snn.safetensors", snn)
    again = snnjax.load(path, model=model).snn
    assert again.model == snn.model
    jax.tree.map(np.testing.assert_array_equal, again, snn)
    snn = fresh(Recurrent(MyNeuron()))
    snnjax.save(path, snn, fn=NET.fn, x=NET.x, steps=STEPS)
    stored, expected = snnjax.load(path), run(snn)
    np.testing.assert_array_equal(stored.run(NET.x), expected)
    again = snnjax.load(path, like=snn).snn
    assert jax.tree.structure(again.neurons) == jax.tree.structure(snn.neurons)
    with_model = dataclasses.replace(stored.snn, model=snn.model)
    for loaded in (again, with_model):
        np.testing.assert_array_equal(run(loaded), expected)


def test_a_function_in_training_mode_takes_any_model():
    def fn(w, x):
        hidden = relu(x @ w)
        return hidden @ w.T, hidden.mean()

    w, x = eighths(0, (4, 6)), eighths(1, (3, 4), 0, 9)
    snn = snnjax.init(fn, w, x, model=Recurrent(lif()), key=KEY, has_aux=True)
    outputs, _ = compiled(fn, steps=STEPS, has_aux=True)(snn, x)
    plain = compiled(lambda w, x: fn(w, x)[0], steps=STEPS)(snn, x)
    np.testing.assert_allclose(outputs, plain, rtol=1e-6)


# --------------------------------------------------------------- all steps at once


class LeakParams(NamedTuple):
    threshold: jax.Array
    leak: jax.Array


@dataclasses.dataclass(frozen=True)
class InSteps:
    """LIF without a reset."""

    levels = (0, 1)

    def init(self, shape=(), key=None):
        return LeakParams(jnp.ones(()), jnp.full(shape[-1:], 0.5))

    def start(self, params, shape):
        return jnp.zeros(shape)

    def integrate(self, params, v, current):
        return params.leak * v + current

    def fire(self, params, v, spike=dspike):
        return v, params.threshold * spike((v - params.threshold) / 2)


class AtOnce(InSteps):
    def through_time(self, params, v, currents, spike):
        def join(early, late):
            return early[0] * late[0], late[0] * early[1] + late[1]

        leaks = jnp.broadcast_to(params.leak, currents.shape)
        factors, vs = jax.lax.associative_scan(join, (leaks, currents))
        vs = vs + factors * v
        return vs[-1], self.fire(params, vs, spike)[1]


@pytest.mark.parametrize("execution", [STEPS, 1, 2])
def test_a_model_may_compute_all_steps_at_once(execution):
    triangle = snnjax.surrogate.triangle
    at_once = slope(execution=execution, surrogate=triangle)
    in_steps = slope(execution=STEPS, surrogate=triangle)
    ((gradient, outputs),) = outputs_of([at_once], fresh(AtOnce()))
    ((expected, expected_outputs),) = outputs_of([in_steps], fresh(InSteps()))
    np.testing.assert_array_equal(outputs, expected_outputs)
    assert np.any(expected.neurons[FIRST].leak)
    assert_close(jax.tree.leaves(gradient), jax.tree.leaves(expected))


# ------------------------------------------------------- the gradient through time


# Three steps have the gradient of JAX itself.
@pytest.mark.parametrize("steps", [*thorough(3), 6])
def test_a_second_derivative_is_that_of_the_relaxed_spikes(steps):
    def slope(current, execution):
        simulate = snnjax.spiking(NET.fn, steps=steps, execution=execution)
        return jax.grad(lambda x: (simulate(LIF, x) ** 2).sum())(current)

    def second(execution):
        return jax.grad(lambda x: (slope(x, execution) ** 2).sum())

    layers, by_step = outputs_of(map(second, (steps, 1)), NET.x)
    assert np.any(layers)
    np.testing.assert_allclose(layers, by_step, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_a_model_may_close_over_a_traced_number():
    class Scaled(InSteps):
        def integrate(self, params, v, current):
            return super().integrate(params, v, scale[0] * current)

    scale = []

    def loss(number, execution):
        scale[:] = [number]
        snn = snnjax.init(*NET[:3], model=Scaled())
        simulate = snnjax.spiking(NET.fn, steps=STEPS, execution=execution)
        return (simulate(snn, NET.x) ** 2).sum()

    runs = [functools.partial(loss, execution=e) for e in (STEPS, 1)]
    layers, by_step = (jax.grad(run)(1.0) for run in runs)
    np.testing.assert_allclose(layers, by_step, rtol=1e-5)
