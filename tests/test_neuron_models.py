"""Neuron models beyond IF and LIF: the library's, anybody's, and one for every site.

The oracle is `reference.population`; numbers are multiples of 1/8, so sums are exact.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from networks import NETWORKS, compiled, eighths, relaxed_dspike, relu

import snnjax
from snnjax import lif, training
from snnjax.neurons import RecurrentParams, adaptive, recurrent, synaptic, unroll
from snnjax.simulation import by_layer
from snnjax.surrogate import dspike

STEPS = 4
KEY = jax.random.key(0)
MODELS = {
    "synaptic": synaptic(lif(leak=0.5)),
    "adaptive": adaptive(lif(leak=0.5), adaptation=0.5, adaptation_leak=0.5),
    "recurrent": recurrent(lif(leak=0.5)),
    "all of them": recurrent(synaptic(adaptive(lif(leak=0.5, reset="zero")))),
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


OWN = {"own": MyNeuron(), "straight": Straight(), "recurrent": recurrent(MyNeuron())}


def exact(params):
    """Recurrent kernels in eighths: sums are exact."""
    kernel = getattr(params, "kernel", None)
    if kernel is None:
        return params
    return params._replace(kernel=eighths(5, kernel.shape))


def network(name, neuron, **options):
    """A network with these neurons: (its Net, its SNN)."""
    net = NETWORKS[name]
    snn = snnjax.init(*net[:3], neuron=neuron, key=KEY, **options)
    neurons = {name: exact(params) for name, params in snn.neurons.items()}
    return net, dataclasses.replace(snn, neurons=neurons)


# --------------------------------------------------------------- the library's models


@pytest.mark.parametrize("wait", [0, 2])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", ["synaptic", "adaptive", "recurrent", "all"])
def test_spikes_are_those_of_the_oracle(kind, reset, wait):
    plain = lif(leak=0.5, threshold=0.5, reset=reset)
    rising = {"adaptation": 0.5, "adaptation_leak": 0.5}
    kernel = eighths(3, (6, 6))
    model, numbers = {
        "synaptic": (synaptic(plain, synaptic_leak=0.25), {"synaptic_leak": 0.25}),
        "adaptive": (adaptive(plain, **rising), rising),
        "recurrent": (recurrent(plain), {"kernel": np.asarray(kernel)}),
        "all": (
            recurrent(synaptic(adaptive(plain, **rising))),
            rising | {"synaptic_leak": 0.5, "kernel": np.asarray(kernel)},
        ),
    }[kind]
    currents = eighths(1, (STEPS, 3, 6), -8, 17)
    params = model.init((6,), KEY)
    if "kernel" in numbers:
        params = params._replace(kernel=kernel)
    spikes = unroll(model, params, currents, wait=wait)
    for example in range(3):
        expected = reference.population(
            np.asarray(currents[:, example], float),
            0.5,
            leak=0.5,
            reset=reset,
            wait=wait,
            **numbers,
        )
        np.testing.assert_array_equal(spikes[:, example], expected)
    assert 0 < (spikes > 0).mean() < 1


@pytest.mark.parametrize(
    "model, name, wait",
    [("adaptive", "dense", 0), ("all of them", "dense", 0), ("all of them", "dense", 2)]
    + [("synaptic", "max-pool before", 1), ("recurrent", "max-pool before", 0)],
)
def test_executions_give_the_same_spikes(model, name, wait):
    net, snn = network(name, MODELS[model])
    executions = ["by_step", "by_layer", by_layer(remat=True)]
    executions += [] if wait else [by_layer(segment=3)]
    first, *others = (
        compiled(net.fn, steps=STEPS, wait=wait, execution=execution)(snn, net.x)
        for execution in executions
    )
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(first))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


def test_gradients_of_the_executions_agree():
    net, snn = network("dense", MODELS["all of them"])

    def gradient(execution):
        simulate = snnjax.spiking(net.fn, steps=STEPS, execution=execution)
        return jax.grad(lambda snn: (simulate(snn, net.x) ** 2).mean())(snn)

    executions = ["by_layer", by_layer(remat=True), by_layer(segment=2)]
    first, *others = map(gradient, executions)
    for other in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            first,
            other,
        )


@pytest.mark.parametrize("model", ["synaptic", "all of them"])
def test_gradients_of_soft_spikes_are_their_differences(model, x64):
    x64()
    net = NETWORKS["dense"]
    neuron = MODELS[model]
    snn = snnjax.init(*net[:3], neuron=neuron, key=KEY)
    snn = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), snn)
    x = jnp.asarray(np.asarray(net.x), jnp.float64) / 2
    simulate = snnjax.spiking(net.fn, steps=STEPS, surrogate=relaxed_dspike)

    def loss(snn):
        return (simulate(snn, x) ** 2).mean()

    way = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), snn
    )
    slope, h = jax.grad(loss)(snn), 1e-6

    def moved(step):
        return loss(jax.tree.map(lambda a, b: a + step * b, snn, way))

    difference = float(moved(h) - moved(-h)) / (2 * h)
    along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, slope, way)))
    assert difference == pytest.approx(float(along), 1e-4)
    for params in slope.neurons.values():  # every parameter matters
        assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_detached_reset_detaches_the_level_of_a_spike_and_nothing_else(reset):
    model = recurrent(lif(leak=0.5, reset=reset))
    params = exact(model.init((6,), KEY))
    currents = eighths(1, (STEPS, 3, 6), -8, 17)
    weights = jnp.arange(1.0, 7.0)

    def by_hand(kernel, threshold):
        v = last = jnp.zeros((3, 6))
        total = 0.0
        for current in currents:
            v = 0.5 * v + current + last @ kernel
            level = dspike((v - threshold) / (2 * threshold))
            constant = jax.lax.stop_gradient(level)
            last = threshold * level
            hard = reset == "zero"
            v = v * (1 - constant) if hard else v - threshold * constant
            total += (last * weights).sum()
        return total

    def simulated(kernel, threshold):
        neuron = snnjax.neurons.WithSurrogate(model, dspike, detach_reset=True)
        inside = params.neuron._replace(threshold=threshold)
        spikes = unroll(neuron, RecurrentParams(inside, kernel), currents)
        return (spikes * weights).sum()

    arguments = params.kernel, jnp.array(0.5)
    expected = jax.grad(by_hand, (0, 1))(*arguments)
    slopes = jax.grad(simulated, (0, 1))(*arguments)
    for slope, one in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(slope, one, rtol=1e-4, atol=1e-4)
        assert jnp.any(one != 0)


def test_a_surrogate_without_a_derivative_is_an_error_when_differentiated():
    net, snn = network("dense", lif())

    def hard(x):
        return (x >= 0).astype(x.dtype)

    simulate = snnjax.spiking(net.fn, steps=STEPS, surrogate=hard)
    assert jnp.any(simulate(snn, net.x) != 0)
    with pytest.raises(ValueError, match="has no surrogate gradient"):
        jax.grad(lambda snn: simulate(snn, net.x).sum())(snn)


def test_a_surrogate_inside_a_model_is_refused():
    net, snn = network("dense", lif())
    inside = snnjax.neurons.WithSurrogate(lif())
    with pytest.raises(ValueError, match="the model without a surrogate"):
        snnjax.init(*net[:3], neuron=synaptic(inside))
    changed = dataclasses.replace(snn, neuron=inside)
    with pytest.raises(ValueError, match="the model without a surrogate"):
        snnjax.spiking(net.fn, steps=STEPS)(changed, net.x)


class Silent(snnjax.neurons.IntegrateAndFire):
    def fire(self, params, state, spike=dspike):
        state, spikes = super().fire(params, state, spike)
        return state, 0 * spikes


def test_a_model_derived_from_if_is_a_model_of_its_own():
    net, snn = network("dense", Silent())
    for wait in (0, STEPS):
        simulate = snnjax.spiking(net.fn, steps=STEPS, wait=wait)
        assert not jnp.any(simulate(snn, net.x) != simulate(snn, 0 * net.x))
    with pytest.raises(ValueError, match="allowed: an IF neuron"):
        snnjax.convert(*net[:3], steps=STEPS, neuron=Silent())


class WithGain(MyNeuron):
    def fire(self, params, state, gain=2.0):
        state, spikes = super().fire(params, state)
        return state, gain * spikes


def test_a_third_argument_of_fire_is_no_surrogate_unless_it_is_called_spike():
    net, snn = network("dense", WithGain())
    assert jnp.any(snnjax.spiking(net.fn, steps=STEPS)(snn, net.x) != 0)


def test_a_recurrent_kernel_is_trained_by_its_name():
    net, snn = network("dense", MODELS["all of them"])
    kinds = training.param_labels(snn, ["kernel", "synaptic_leak"])
    (first, *_) = kinds.neurons.values()
    assert (first.kernel, first.neuron.synaptic_leak) == ("kernel", "synaptic_leak")
    assert first.neuron.neuron.neuron.threshold == "frozen"
    assert set(jax.tree.leaves(kinds.params)) == {"frozen"}
    with pytest.raises(ValueError, match="allowed: weights, .*synaptic_leak"):
        training.param_labels(snn, ["kernels"])


def test_a_temperature_inside_is_learned():
    net, snn = network("dense", recurrent(lif(temperature=2.0)))
    changed = training.with_temperatures(snn, dict.fromkeys(snn.neurons, 5.0))
    assert {float(b) for b in training.temperatures(changed).values()} == {5.0}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: synaptic(lif(), synaptic_leak=0), "synaptic_leak is 0; allowed"),
        (lambda: synaptic(lif), "without init"),
        (lambda: recurrent(MyNeuron), "the class MyNeuron"),
        (lambda: adaptive(lif(levels=(-1, 1))), "the levels \\(0, 1\\)"),
        (lambda: adaptive(Straight()), "fires by the surrogate given"),
        (lambda: adaptive(lif(), adaptation=-1), "adaptation is -1; allowed: >= 0"),
        (lambda: adaptive(lif(), adaptation_leak=2), "adaptation_leak is 2"),
        (lambda: recurrent(lif()).init((3,)), "needs a key"),
    ],
)
def test_arguments_outside_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_that_do_not_fit_are_refused():
    net, snn = network("dense", MODELS["all of them"])
    name, params = next(iter(snn.neurons.items()))

    def run(params):
        neurons = snn.neurons | {name: params}
        changed = dataclasses.replace(snn, neurons=neurons)
        return snnjax.spiking(net.fn, steps=STEPS)(changed, net.x)

    with pytest.raises(ValueError, match="kernel has shape \\(2, 2\\)"):
        run(params._replace(kernel=jnp.ones((2, 2))))
    leak = params.neuron._replace(synaptic_leak=jnp.array(1.5))
    with pytest.raises(ValueError, match="synaptic_leak of site .* is 1.5"):
        run(params._replace(neuron=leak))


# ------------------------------------------------------------------ anybody's model


@pytest.mark.parametrize("own", OWN)
def test_a_model_of_ones_own_runs_and_trains_in_every_execution(own):
    net, snn = network("dense", OWN[own])
    executions = ["auto", "by_step", by_layer(segment=3)]

    def loss(execution, snn):
        outputs = compiled(net.fn, steps=STEPS, execution=execution)(snn, net.x)
        return (outputs**2).mean()

    first, *others = (
        jax.value_and_grad(lambda s, e=execution: loss(e, s))(snn)
        for execution in executions
    )
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(first[1].params))
    for other in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            first,
            other,
        )


def test_a_model_as_if_gives_the_spikes_of_if():
    net, snn = network("projection", MyNeuron(factor=1.0))
    ours = snnjax.init(*net[:3], neuron=snnjax.integrate_and_fire())
    simulate = snnjax.spiking(net.fn, steps=STEPS, wait=1)
    np.testing.assert_array_equal(simulate(snn, net.x), simulate(ours, net.x))


@pytest.mark.parametrize("model", [Hard(), recurrent(Hard()), synaptic(Hard())])
def test_a_model_without_a_surrogate_runs_and_its_gradient_is_an_error(model):
    net, snn = network("dense", model)
    for execution in ("auto", "by_step", by_layer(segment=2)):
        simulate = snnjax.spiking(net.fn, steps=STEPS, execution=execution)
        assert jnp.any(simulate(snn, net.x) != 0)
        with pytest.raises(ValueError, match="Hard.* has no surrogate gradient"):
            jax.grad(lambda s, run=simulate: run(s, net.x).sum())(snn)


@pytest.mark.parametrize(
    "options", [{"surrogate": relaxed_dspike}, {"detach_reset": True}]
)
@pytest.mark.parametrize("model", [Straight(), recurrent(Straight())])
def test_a_surrogate_that_a_model_ignores_is_refused(model, options):
    net, snn = network("dense", model)
    with pytest.raises(ValueError, match="has a surrogate of its own"):
        snnjax.spiking(net.fn, steps=STEPS, **options)(snn, net.x)


class Wide(MyNeuron):
    def fire(self, params, state, spike=dspike):
        state, spikes = super().fire(params, state, spike)
        return state, spikes[..., :1]


class Shrinking(MyNeuron):
    def fire(self, params, state, spike=dspike):
        (v, step), spikes = super().fire(params, state, spike)
        return (v.astype(jnp.bfloat16), step), spikes


class Forgetful(MyNeuron):
    def fire(self, params, state, spike=dspike):
        state, spikes = super().fire(params, state, spike)
        return state[0], spikes


class Unhashable(MyNeuron):
    __hash__ = None


@pytest.mark.parametrize(
    "model, message",
    [
        (Wide(), "fires .* for currents of shape .* the same shape"),
        (Shrinking(), "turns its state 0 from float32.* into bfloat16"),
        (Forgetful(), "has the state .* from start and .* after a step"),
        (Unhashable(), "not hashable"),
        (MyNeuron, "the class MyNeuron; allowed: a model"),
        ("lif", "without init, start, integrate, fire; allowed: a model"),
        ({}, "neuron is empty"),
        ({"nothing*": lif()}, "patterns 'nothing\\*' of neuron decide for no site"),
        ({3: lif()}, "neuron has the key 3"),
        ({"*": "lif"}, "neuron\\['\\*'\\] is 'lif'"),
    ],
)
def test_what_breaks_the_protocol_is_refused(model, message):
    net = NETWORKS["dense"]
    with pytest.raises(ValueError, match=message):
        snn = snnjax.init(*net[:3], neuron=model, key=KEY)
        compiled(net.fn, steps=STEPS)(snn, net.x)


class DictParams(MyNeuron):
    def init(self, shape=(), key=None):
        return {"threshold": jnp.ones(()), "bias": jnp.ones(())}


class TreeParams(MyNeuron):
    def init(self, shape=(), key=None):
        return MyParams(jnp.ones(shape), {"soma": jnp.ones(())})


class Steps(MyNeuron):
    levels = (0, 0.5)


class NamedWeights(MyNeuron):
    def init(self, shape=(), key=None):
        return WeightsParams(*super().init(shape, key), jnp.ones(()))


class WeightsParams(NamedTuple):
    threshold: jax.Array
    bias: jax.Array
    weights: jax.Array


@pytest.mark.parametrize(
    "model, message",
    [
        (DictParams(), "are a dict; allowed: a NamedTuple"),
        (TreeParams(), "parameter bias of .* is a dict; allowed: an array"),
        (Steps(), "levels are \\(0, 0.5\\); allowed"),
        (NamedWeights(), "a parameter called weights; allowed: another name"),
        (recurrent(Wide()), "the same shape"),
    ],
)
def test_parameters_and_levels_that_no_part_could_use_are_refused(model, message):
    net = NETWORKS["dense"]
    for run in (snnjax.spiking, snnjax.measures.spike_trains):
        with pytest.raises(ValueError, match=message):
            snn = snnjax.init(*net[:3], neuron=model, key=KEY)
            if run is snnjax.spiking:
                run(net.fn, steps=STEPS)(snn, net.x)
            else:
                run(net.fn, snn, net.x, steps=STEPS)


def test_parameters_of_another_model_are_refused():
    net, snn = network("dense", lif())
    other = dataclasses.replace(snn, neuron=recurrent(lif()))
    with pytest.raises(ValueError, match="have the parameters .*Begin with those of"):
        snnjax.spiking(net.fn, steps=STEPS)(other, net.x)


@pytest.mark.parametrize("key", [0, "a"])
def test_what_is_no_key_is_refused(key):
    net = NETWORKS["dense"]
    with pytest.raises(ValueError, match="allowed: a random key"):
        snnjax.init(*net[:3], neuron=recurrent(lif()), key=key)


def test_sites_have_keys_of_their_own_and_the_same_key_gives_the_same_bits():
    net = NETWORKS["dense"]
    models = {name: recurrent(lif()) for name in names_of(net)}
    first, again = (snnjax.init(*net[:3], neuron=models, key=KEY) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first.neurons, again.neurons)
    one, two = (params.kernel for params in first.neurons.values())
    size = min(len(one), len(two))
    assert not jnp.any(one[:size, :size] == two[:size, :size])


class HardWithoutBias(Hard):
    def init(self, shape=(), key=None):
        return Threshold(jnp.full((), 0.5))


class Threshold(NamedTuple):
    threshold: jax.Array


def test_a_gradient_of_the_parameters_alone_is_an_error_too():
    net, snn = network("dense", HardWithoutBias())
    simulate = snnjax.spiking(net.fn, steps=STEPS)

    def loss(neurons):
        return simulate(dataclasses.replace(snn, neurons=neurons), net.x).sum()

    with pytest.raises(ValueError, match="has no surrogate gradient"):
        jax.grad(loss)(snn.neurons)


class WithoutDefault(MyNeuron):
    def fire(self, params, state, spike):
        return super().fire(params, state, spike)


class ByKeyword(MyNeuron):
    def fire(self, params, state, *, spike=dspike):
        return super().fire(params, state, spike)


@pytest.mark.parametrize("model", [WithoutDefault(), ByKeyword()])
def test_spike_may_have_no_default_and_be_a_keyword(model):
    net, snn = network("dense", recurrent(model))
    options = {"surrogate": snnjax.surrogate.triangle, "detach_reset": True}
    assert jnp.any(snnjax.spiking(net.fn, steps=STEPS, **options)(snn, net.x) != 0)
    assert (
        snnjax.measure(net.fn, snn, net.x, params=net.params, steps=STEPS).firing_rate
        > 0
    )


def test_operations_of_recurrent_connections_are_counted():
    def fn(w, x):
        return relu(x @ w) @ w.T

    w, x = eighths(0, (4, 6)), eighths(1, (3, 4), 0, 9)
    plain = snnjax.init(fn, w, x, neuron=lif())
    model = recurrent(lif())
    params = model.init((6,), KEY)
    params = params._replace(kernel=jnp.zeros((6, 6)))  # the spikes are those of LIF
    name = next(iter(plain.neurons))
    snn = dataclasses.replace(plain, neuron=model, neurons={name: params})
    spikes = snnjax.measures.spike_trains(fn, snn, x, steps=STEPS)[name]
    inside = 6 * float(spikes[:-1].sum()) / len(x)
    without, within = (
        snnjax.measure(fn, each, x, params=w, steps=STEPS) for each in (plain, snn)
    )
    for field in ("synaptic_operations", "synaptic_additions"):
        difference = float(getattr(within, field) - getattr(without, field))
        assert difference == pytest.approx(inside) and inside > 0
    assert within.weights - without.weights == 36
    before, after = (
        snnjax.measures.neurobench(fn, each, x, steps=STEPS)["SynapticOperations"]
        for each in (plain, snn)
    )
    assert after["Effective_ACs"] - before["Effective_ACs"] == pytest.approx(inside)


def test_remat_needs_levels():
    net, snn = network("dense", MyNeuron())
    with pytest.raises(ValueError, match="states no levels"):
        snnjax.spiking(net.fn, steps=STEPS, execution=by_layer(remat=True))(snn, net.x)

    class WithLevels(MyNeuron):
        levels = (0, 1)

    snn = dataclasses.replace(snn, neuron=WithLevels())
    from_bits, expected = (
        compiled(net.fn, steps=STEPS, execution=by_layer(remat=remat))(snn, net.x)
        for remat in (True, False)
    )
    np.testing.assert_array_equal(from_bits, expected)


def test_measures_of_a_model_without_levels_say_what_is_unknown():
    net, snn = network("dense", MyNeuron())
    measures = snnjax.measure(net.fn, snn, net.x, params=net.params, steps=STEPS)
    assert 0 < measures.firing_rate < 1 and measures.synaptic_operations > 0
    unknown = measures.synaptic_additions, measures.bits, measures.high
    assert all(np.isnan(number) for number in unknown)
    (train, *_) = snnjax.measures.spike_trains(net.fn, snn, net.x, steps=STEPS).values()
    assert jnp.issubdtype(train.dtype, jnp.floating)
    metrics = snnjax.measures.neurobench(net.fn, snn, net.x, steps=STEPS)
    assert metrics["SynapticOperations"]["Effective_ACs"] == 0


def test_measures_of_the_models_of_the_library():
    net, snn = network("dense", MODELS["all of them"])
    measures = snnjax.measure(net.fn, snn, net.x, params=net.params, steps=STEPS)
    assert (measures.bits, measures.high) == (STEPS, 1)
    assert measures.synaptic_additions == measures.synaptic_operations


# ------------------------------------------------------------------ a model per site


def names_of(net):
    return [site.name for site in snnjax.sites(*net[:3]) if site.fires]


def test_the_first_pattern_that_matches_counts():
    net = NETWORKS["dense"]
    first, second = names_of(net)
    slow = lif(leak=0.875)
    snn = snnjax.init(*net[:3], neuron={f"{first[:-2]}*": slow})
    assert snn.model(first) == slow and snn.model(second) == lif()
    only = snnjax.init(*net[:3], neuron={"*": slow})
    assert only.neuron == slow
    with pytest.raises(ValueError, match="earlier pattern does; sites: "):
        snnjax.init(*net[:3], neuron={"*": slow, "w2*": lif()})
    with pytest.raises(ValueError, match="no model for site 'third'"):
        snn.model("third")
    mixed = NETWORKS["projection"]
    with pytest.raises(ValueError, match="allowed: one for each, or patterns"):
        snnjax.init(*mixed[:3], neuron=snn.neuron)


def test_the_name_of_a_site_counts_before_patterns():
    def fn(params, x):
        return relu(relu(x @ params["a[0]"]) @ params["a0"]) @ params["a0"]

    params = {"a[0]": jnp.eye(2), "a0": jnp.eye(2)}
    models = {"a[0]/relu": lif(leak=0.25), "a0/relu": lif(leak=0.75)}
    snn = snnjax.init(fn, params, jnp.ones((1, 2)), neuron=models)
    assert {name: snn.model(name) for name in models} == models


def test_sites_with_models_of_their_own_run_and_train():
    net = NETWORKS["dense"]
    first, second = names_of(net)
    models = {
        first: recurrent(lif()),
        second: snnjax.integrate_and_fire(levels=(-1, 1)),
    }
    _, snn = network("dense", models)
    executions = ["auto", "by_step", by_layer(remat=True)]

    def run(execution):
        simulate = snnjax.spiking(net.fn, steps=STEPS, execution=execution)
        return jax.value_and_grad(lambda s: (simulate(s, net.x) ** 2).sum())(snn)

    first_result, *others = map(run, executions)
    for other in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            first_result,
            other,
        )
    trains = snnjax.measures.spike_trains(net.fn, snn, net.x, steps=STEPS)
    assert [trains[name].dtype for name in (first, second)] == [bool, jnp.int16]
    bits = float(
        snnjax.measure(net.fn, snn, net.x, params=net.params, steps=STEPS).bits
    )
    assert STEPS < bits < STEPS * math.log2(3)


@pytest.mark.parametrize("wait", [0, STEPS])
def test_a_conversion_takes_levels_by_site(wait):
    net = NETWORKS["dense"]
    first, second = names_of(net)
    signed = snnjax.integrate_and_fire(levels=(-1, 1))
    snn = snnjax.convert(*net[:3], steps=STEPS, wait=wait, neuron={second: signed})
    assert snn.model(first).levels == (0, 1) and snn.model(second) == signed
    executions = ["by_step", "by_layer"] + (["closed_form"] if wait == STEPS else [])
    means, *others = (
        compiled(net.fn, steps=STEPS, wait=wait, execution=e)(snn, net.x).mean(0)
        for e in executions
    )
    for other in others:
        np.testing.assert_allclose(other, means, rtol=1e-5, atol=1e-6)
    every = {"*": signed}
    whole, plain = (
        snnjax.convert(*net[:3], steps=STEPS, wait=wait, neuron=neuron)
        for neuron in (every, signed)
    )
    jax.tree.map(np.testing.assert_array_equal, whole, plain)


def test_a_conversion_of_models_that_it_cannot_fit_is_refused():
    net = NETWORKS["dense"]
    with pytest.raises(ValueError, match="allowed: an IF neuron"):
        snnjax.convert(*net[:3], steps=STEPS, neuron={"*": lif()})
    with pytest.raises(ValueError, match="decide for no site"):
        snnjax.convert(*net[:3], steps=STEPS, neuron={"x": snnjax.integrate_and_fire()})


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "neuron",
    [
        MODELS["all of them"],
        MODELS["adaptive"],
        {"w2/*": lif(leak=0.25), "*": synaptic(lif(), synaptic_leak=0.75)},
    ],
    ids=["wrapped", "adaptive", "by site"],
)
def test_a_file_brings_the_models_back(neuron, tmp_path):
    net, snn = network("dense", neuron)
    path = snnjax.save(tmp_path / "snn.safetensors", snn)
    again = snnjax.load(path).snn
    assert again.neuron == snn.neuron
    assert jax.tree.structure(again.neurons) == jax.tree.structure(snn.neurons)
    simulate = snnjax.spiking(net.fn, steps=STEPS)
    np.testing.assert_array_equal(simulate(again, net.x), simulate(snn, net.x))


def test_a_file_of_another_model_holds_its_program(tmp_path):
    net, snn = network("dense", recurrent(MyNeuron()))
    path = tmp_path / "snn.safetensors"
    with pytest.raises(ValueError, match="cannot describe .*MyNeuron.* Pass fn and x"):
        snnjax.save(path, snn)
    snnjax.save(path, snn, fn=net.fn, x=net.x, steps=STEPS)
    stored = snnjax.load(path)
    simulate = snnjax.spiking(net.fn, steps=STEPS)
    expected = simulate(snn, net.x)
    np.testing.assert_array_equal(stored.run(net.x), expected)
    with pytest.raises(ValueError, match="names the neuron model Recurrent.*MyNeuron"):
        simulate(stored.snn, net.x)
    for again in (
        dataclasses.replace(stored.snn, neuron=snn.neuron),
        snnjax.load(path, like=snn).snn,
    ):
        np.testing.assert_array_equal(simulate(again, net.x), expected)
    other = snnjax.init(*net[:3], neuron=recurrent(MyNeuron(0.25)), key=KEY)
    with pytest.raises(ValueError, match="written with the neuron model .* like has"):
        snnjax.load(path, like=other)
    again = snnjax.load(path, like=snn).snn
    assert jax.tree.structure(again.neurons) == jax.tree.structure(snn.neurons)


def test_a_function_in_training_mode_takes_any_model():
    def fn(w, x):
        hidden = relu(x @ w)
        return hidden @ w.T, hidden.mean()

    w, x = eighths(0, (4, 6)), eighths(1, (3, 4), 0, 9)
    snn = snnjax.init(fn, w, x, neuron=recurrent(lif()), key=KEY, has_aux=True)
    run = snnjax.spiking(fn, steps=STEPS, has_aux=True)
    outputs, _ = run(snn, x)
    plain = compiled(lambda w, x: fn(w, x)[0], steps=STEPS)(snn, x)
    np.testing.assert_allclose(outputs, plain, rtol=1e-6)
