"""Refusals of neurons, of models of one's own and of codes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import networks
import numpy as np
import test_neuron_models as models
from networks import NETWORKS
from test_neuron_models import FIRST, SECOND, Hard, MyNeuron, MyParams, Straight

import snnjax
from refusals import Refusal, numbered
from snnjax import codes, neurons, surrogate, training
from snnjax.neurons import Adaptive, Recurrent, Synaptic, integrate_and_fire, lif
from snnjax.neurons.gradients import WithSurrogate
from snnjax.neurons.unroll import fold, mean_and_pace, spike_train

NET = NETWORKS["dense"]
STEPS = 4
SLOW = lif(leak=0.875)


def initialized(net=NET, **options):
    """An SNN of a network, with this model, code or key."""
    return snnjax.init(net.fn, net.params, net.x, **options)


def convert(**options):
    return snnjax.convert(NET.fn, NET.params, NET.x, steps=STEPS, **options)


# ------------------------------------------------------------ fields of the library's

SIGNED = {"levels": (-1, 1)}
ZONE_AND_RESET = {**SIGNED, "dead_zone": 0.75, "reset": "zero"}
WRONG_LIF = [
    ({"leak": 0.0}, "leak is 0.0; allowed: 0 < leak"),
    ({"leak": 1.5}, "leak is 1.5; allowed: 0 < leak"),
    ({"leak": None}, "leak is None; allowed"),
    ({"leak": []}, r"leak is \[\]; allowed"),
    ({"leak": neurons.Uniform(0.5, 1.5)}, "leak is 1.5; allowed"),
    ({"threshold": 0.0}, "threshold is 0.0; allowed"),
    ({"threshold": [1.0, 0.0]}, "threshold is 0.0; allowed"),
    ({"temperature": -1.0}, "temperature is -1.0; allowed: > 0"),
    ({"reset": "soft"}, "reset is 'soft'; allowed: 'subtract', 'zero'"),
    ({"lowest": -np.inf}, "lowest is -inf; allowed"),
]
WRONG_IF = [
    ({"lowest": [-1.0, -2.0]}, "lowest is .*; allowed"),
    ({"lowest": 0.1}, "lowest is 0.1; allowed: -inf < lowest <= 0"),
    (SIGNED | {"dead_zone": 1.0}, "dead_zone is 1.0; allowed: 0 <= dead_zone < 1"),
    ({"dead_zone": 0.5}, "dead_zone is 0.5 .*allowed: 0, since no spike is negative"),
    (
        ZONE_AND_RESET,
        "or the reset 'subtract', which keeps what is missing",
    ),
    ({"last_zone": 0.4}, "last_zone is .*allowed: 0.5 <= last_zone <= 1"),
    ({"last_zone": 1.1}, "last_zone is 1.1; allowed: 0.5 <= last_zone <= 1"),
    ({"last_zone": "a"}, "last_zone is 'a'; allowed"),
]
NO_LEVELS = [(1, 2), (0, 0), (-1, 0), (0.5, 1), (-200, 200), 3, (0, 1, 2), "ab"]


def fields_refused():
    yield from numbered("lif", lif, WRONG_LIF)
    yield from numbered("integrate and fire", integrate_and_fire, WRONG_IF)
    for levels in NO_LEVELS:
        call = functools.partial(integrate_and_fire, levels=levels)
        yield Refusal(f"levels {levels!r}", call, "levels are .*; allowed: two whole")


DRAWN = lif(leak=neurons.TimeConstants(2, 20), threshold=(0.5, 1, 0.75))
FIELDS = [
    *fields_refused(),
    Refusal(
        "time constants from 0",
        lambda: neurons.TimeConstants(low=0, high=2),
        "low is 0; allowed",
    ),
    Refusal(
        "a uniform draw upside down",
        lambda: neurons.Uniform(low=2, high=1),
        "high is 1.0; allowed: >= 2",
    ),
    Refusal(
        "a draw without a key",
        lambda: DRAWN.init((3,)),
        "leak is Time.* drawn .* needs a key",
    ),
    Refusal(
        "three thresholds of two channels",
        lambda: DRAWN.init((4, 2), jax.random.key(0)),
        r"threshold has shape \(3,\); allowed: .* \(2,\)",
    ),
    Refusal(
        "a conversion with drawn thresholds",
        lambda: convert(model=integrate_and_fire(threshold=neurons.Uniform(0.2, 0.7))),
        "snnjax.convert draws nothing",
    ),
    Refusal(
        "a synapse that forgets all",
        lambda: Synaptic(lif(), synaptic_leak=0),
        "synaptic_leak is 0; allowed",
    ),
    Refusal(
        "a synapse of a function",
        lambda: Synaptic(lif),
        "without init.*called",
    ),
    Refusal(
        "a fast resonance",
        lambda: neurons.ResonateAndFire(omega=1),
        "omega is 1; allowed: 0 <= omega <= 0.875",
    ),
    Refusal(
        "recurrent neurons of a class",
        lambda: Recurrent(MyNeuron),
        "the class MyNeuron; allowed: a model",
    ),
    Refusal(
        "recurrent weights without a key",
        lambda: Recurrent(lif()).init((3,)),
        "kernel is drawn at random and needs a key: snnjax.init",
    ),
    Refusal(
        "a strong subthreshold adaptation",
        lambda: Adaptive(lif(), subthreshold=2),
        "subthreshold is 2; allowed: 0 <= subthreshold <= 1",
    ),
    Refusal(
        "a negative adaptation",
        lambda: Adaptive(lif(), spike_triggered=-1),
        "spike_triggered is -1; allowed",
    ),
    Refusal(
        "an adaptation that grows",
        lambda: Adaptive(lif(), adaptation_leak=2),
        "adaptation_leak is 2; allowed",
    ),
    Refusal(
        "an adaptation of a model without a potential",
        lambda: models.run(models.fresh(Adaptive(MyNeuron()))),
        "MyNeuron.* has no field of that name",
    ),
]

# -------------------------------------------------------- one population through time

# Spikes of this threshold would all be 0 in the type of whole numbers.
HALF = integrate_and_fire(threshold=0.5)
WHOLE_CURRENTS = np.ones((STEPS, 1), np.int32)
IN_TIME = {
    "unroll": functools.partial(neurons.unroll, HALF, HALF.init()),
    "mean": functools.partial(mean_and_pace, HALF, HALF.init()),
    "spike train": functools.partial(spike_train, HALF, HALF.init()),
}


def fold_of_whole_numbers():
    state = neurons.NeuronState(np.zeros(1, np.float32))
    fold(HALF, HALF.init(), state, WHOLE_CURRENTS)


def closed_form_of_whole_numbers():
    neurons.closed_form(HALF, HALF.init(), WHOLE_CURRENTS[0], STEPS)


def currents_refused():
    message = "dtype int32; allowed: floating point"
    for name, call in {
        **{name: functools.partial(f, WHOLE_CURRENTS) for name, f in IN_TIME.items()},
        "fold": fold_of_whole_numbers,
        "closed form": closed_form_of_whole_numbers,
    }.items():
        yield Refusal(f"{name} of whole currents", call, message)
    currents = np.float32(WHOLE_CURRENTS)
    for name, function in IN_TIME.items():
        for wait in (-1, 5, 1.0):
            call = functools.partial(function, currents, wait=wait)
            message = f"wait is {wait}; allowed: .* to steps=4"
            yield Refusal(f"{name} with a wait of {wait}", call, message)


# ---------------------------------------------------------------- a model of one's own


@dataclasses.dataclass(frozen=True)
class Changed(MyNeuron):
    """MyNeuron with another state and other spikes after it has fired."""

    change: Callable = lambda state, spikes: (state, spikes)

    def fire(self, params, state, spike=surrogate.dspike):
        return self.change(*super().fire(params, state, spike))


WIDE = Changed(change=lambda state, spikes: (state, spikes[..., :1]))
FORGETFUL = Changed(change=lambda state, spikes: (state[0], spikes))
SHRINKING = Changed(
    change=lambda state, spikes: ((state[0].astype(jnp.bfloat16), state[1]), spikes)
)


class Unhashable(MyNeuron):
    __hash__ = None


class Threshold(NamedTuple):
    threshold: jax.Array


class WithWeights(NamedTuple):
    threshold: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True)
class OtherParams(MyNeuron):
    """MyNeuron with other parameters: those that a function of the shape makes."""

    make: Callable = lambda shape: Threshold(jnp.full((), 0.5))

    def init(self, shape=(), key=None):
        return self.make(shape)


A_DICT = OtherParams(make=lambda shape: {"threshold": jnp.ones(()), "bias": 0.0})
A_TREE = OtherParams(make=lambda shape: MyParams(jnp.ones(shape), {"soma": 1.0}))
WEIGHTS = OtherParams(make=lambda shape: WithWeights(jnp.ones(shape), jnp.ones(())))


class SpikesAlone(MyNeuron):
    """It leaves out the state."""

    def fire(self, params, state, spike=snnjax.surrogate.dspike):
        _, spikes = super().fire(params, state, spike)
        return spikes


class HalfLevels(MyNeuron):
    levels = (0, 0.5)


class HardWithoutBias(OtherParams, Hard):
    """Its parameters are no `MyParams`, and it has no surrogate."""


def run_initialized(model, **options):
    models.run(initialized(model=model, key=models.KEY), **options)


NO_MODELS = [
    (WIDE, "fires .* for currents of shape .* the same shape"),
    (
        Recurrent(WIDE),
        "its state variable .*; allowed: the same shape",
    ),
    (SpikesAlone(), r"fire of the model SpikesAlone.* allowed: the pair \(state"),
    (SHRINKING, "turns its state 0 from float32.* into bfloat16"),
    (FORGETFUL, "has the state .* from start and .* after a step"),
    (Unhashable(), "not hashable .*make it a dataclass\\(frozen=True\\)"),
    (MyNeuron, "the class MyNeuron; allowed: a model"),
    ("lif", "without init, start, integrate, fire; allowed: a model"),
    ({}, "model is empty; allowed: name or pattern"),
    ({"nothing*": lif()}, r"patterns 'nothing\*' of model match no site"),
    ({3: lif()}, "model has the key 3; allowed: patterns"),
    ({"*": "lif"}, r"model\['\*'\] is 'lif', without init.*allowed: a model"),
    ({"*": SLOW, "w2*": lif()}, "an earlier pattern matches; sites: "),
]
NO_PARAMETERS = [
    (A_DICT, "are a dict; allowed: a NamedTuple"),
    (A_TREE, "parameter bias of .* is a dict; allowed: an array"),
    (HalfLevels(), r"levels are \(0, 0.5\); allowed"),
    (WEIGHTS, "a parameter called weights; allowed: another name"),
]


def simulate(snn):
    snnjax.spiking(NET.fn)(snn, NET.x)


def record(snn):
    snnjax.measures.spike_trains(NET.fn, snn, NET.x)


def use(model, part):
    """A part of the library reads an SNN with neurons of the model."""
    snn = initialized(model=model, key=models.KEY)
    part(dataclasses.replace(snn, steps=STEPS, wait=0))


def protocol_refused():
    for number, (model, message) in enumerate(NO_MODELS, 1):
        call = functools.partial(run_initialized, model)
        yield Refusal(f"model {number}", call, message)
    for number, (model, message) in enumerate(NO_PARAMETERS, 1):
        for part in (simulate, record):
            call = functools.partial(use, model, part)
            yield Refusal(f"parameters {number}, {part.__name__}", call, message)


def other_params(change):
    """A call of a network whose first neurons have other parameters."""

    def call():
        snn = models.ALL
        params = change(snn.neurons[FIRST])
        wrong = dataclasses.replace(snn, neurons=snn.neurons | {FIRST: params})
        snnjax.spiking(NET.fn, steps=STEPS)(wrong, NET.x)

    return call


def strong_synaptic_leak(params):
    leak = params.neuron._replace(synaptic_leak=np.float32(1.5))
    return params._replace(neuron=leak)


def two_channels(params):
    return params._replace(kernel=np.ones((2, 2)))


def another_model():
    models.run(dataclasses.replace(models.LIF, model=Recurrent(lif())))


def no_gradient_of_parameters():
    snn = models.fresh(HardWithoutBias())

    def loss(parameters):
        with_parameters = dataclasses.replace(snn, neurons=parameters)
        return snnjax.spiking(NET.fn, steps=STEPS)(with_parameters, NET.x).sum()

    jax.jit(jax.grad(loss))(snn.neurons)


def no_gradient_of_models(execution):
    snn = models.fresh({FIRST: Hard(), SECOND: Recurrent(Synaptic(Hard()))})
    models.slope(execution=execution)(snn)


def no_gradient_of_surrogate():
    models.slope(surrogate=models.hard)(models.LIF)


class Spikes:
    def spike(self, x):
        return surrogate.rectangle(x, 0.5)


def surrogates_refused():
    for execution in ("auto", 1, 2):
        call = functools.partial(no_gradient_of_models, execution)
        message = "Hard.* has no surrogate gradient: .*Let fire"
        yield Refusal(f"a gradient of hard models, {execution}", call, message)
    for model in (Straight(), Recurrent(Straight())):
        for options in ({"surrogate": networks.relaxed_dspike}, {"detach_reset": True}):
            name = f"{type(model).__name__} with {', '.join(options)}"
            call = functools.partial(run_initialized, model, **options)
            yield Refusal(
                name,
                call,
                "has a surrogate of its own: leave surrogate and detach_reset out",
            )


def weights_of_nan():
    params = jax.tree.map(lambda w: w * np.nan, NET.params)
    initialized(NET._replace(params=params))


SLOW_FIRST = initialized(model={"w1*": SLOW})
WITH_SURROGATE = WithSurrogate(lif())
MODELS = [
    *protocol_refused(),
    *surrogates_refused(),
    Refusal(
        "a surrogate without a derivative",
        no_gradient_of_surrogate,
        "has no surrogate gradient: .*with a surrogate of snnjax.surrogate",
    ),
    Refusal(
        "a gradient of the parameters alone",
        no_gradient_of_parameters,
        "has no surrogate gradient: .*with a surrogate of snnjax.surrogate",
    ),
    Refusal(
        "a surrogate inside a synapse",
        lambda: initialized(model=Synaptic(WITH_SURROGATE)),
        "allowed: the model without a surrogate",
    ),
    Refusal(
        "a surrogate around the model of an SNN",
        lambda: models.run(dataclasses.replace(models.LIF, model=WITH_SURROGATE)),
        "allowed: the model without a surrogate",
    ),
    Refusal(
        "a method as the step",
        lambda: surrogate.step(Spikes().spike),
        "cannot be declared; allowed: a function",
    ),
    Refusal(
        "a recurrent kernel of other channels",
        other_params(two_channels),
        r"do not fit its shape \(6,\): kernel has shape \(2, 2\)",
    ),
    Refusal(
        "a synaptic leak above 1",
        other_params(strong_synaptic_leak),
        "synaptic_leak of site .* is 1.5; allowed: 0 <",
    ),
    Refusal(
        "parameters of another model",
        another_model,
        "have the parameters .*Begin with those of",
    ),
    Refusal(
        "labels of an unknown parameter",
        lambda: training.param_labels(models.ALL, ["kernels"]),
        "allowed: weights, .*synaptic_leak",
    ),
    Refusal(
        "a number as key",
        lambda: initialized(model=Recurrent(lif()), key=0),
        "key is .*; allowed: a random key",
    ),
    Refusal(
        "a word as key",
        lambda: initialized(model=Recurrent(lif()), key="a"),
        "key is .*; allowed: a random key",
    ),
    Refusal(
        "the model of an unknown site",
        lambda: SLOW_FIRST.model_of("third"),
        "no model for site 'third'",
    ),
    Refusal(
        "models by the names of other sites",
        lambda: initialized(NETWORKS["projection"], model=SLOW_FIRST.model),
        "this network has .*; allowed: one for each, or patterns",
    ),
    Refusal(
        "weights that are not finite",
        weights_of_nan,
        "NaN in the weights .*; allowed: numbers",
    ),
]


# --------------------------------------------------------------------- conversion takes

OWN_IF = type("Own", (neurons.IntegrateAndFire,), {})
NO_IF_NEURONS = [
    lif(leak=0.5),
    integrate_and_fire(reset="zero"),
    integrate_and_fire(temperature=2.0),
    integrate_and_fire,
    {"*": lif()},
    OWN_IF(),
]


def conversion_refused():
    for number, model in enumerate(NO_IF_NEURONS, 1):
        call = functools.partial(convert, model=model)
        message = "model is .*allowed: an? (IF neuron|mod)"
        yield Refusal(f"conversion with model {number}", call, message)
    yield Refusal(
        "conversion with a model of no site",
        lambda: convert(model={"x": integrate_and_fire()}),
        "'x' of model match no site",
    )
    yield Refusal(
        "conversion with a bound under a radix code",
        lambda: convert(code=codes.radix(), model=integrate_and_fire(lowest=-1.0)),
        "radix.*no lower bound, which",
    )


# -------------------------------------------------------------------------------- codes


class Halves(codes.Code):
    """A code of one's own, always of three weights."""

    def weights(self, steps):
        return (0.5,) * 3


@functools.cache
def radix_snn():
    """An SNN of four steps under a radix code, with a wait of 1 only."""
    return convert(
        code=codes.radix(),
        model=integrate_and_fire(),
        recipe=snnjax.max_activation(),
        wait=1,
    )


def under_radix(x=NET.x, **options):
    return snnjax.spiking(NET.fn, **options)(radix_snn(), x)


def with_fields(**fields):
    return snnjax.spiking(NET.fn)(dataclasses.replace(radix_snn(), **fields), NET.x)


def with_leaks():
    leaky = {}
    for site, params in radix_snn().neurons.items():
        leaky[site] = params._replace(leak=jnp.float32(0.5))
    with_fields(neurons=leaky)


def fewer_steps():
    """The weights of radix digits are those of all steps."""
    snn = dataclasses.replace(radix_snn(), fitted_to=None)
    snnjax.spiking(NET.fn, steps=2)(snn, NET.x)


def synapse_with_a_dead_zone():
    model = Synaptic(integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3))
    initialized(model=model)


def codes_refused():
    for base in (1, 0.5, np.inf, 129, "2", None):
        call = functools.partial(codes.radix, base)
        message = "base is .*allowed: 1 < base <= 128"
        yield Refusal(f"base {base!r}", call, message)
    for weights in ((), (1, 0), (1, np.nan), "ab", 3, ("1", "2"), (1, np.inf)):
        call = functools.partial(codes.weighted, weights)
        message = "weights are .*allowed: one finite"
        yield Refusal(f"weights {weights!r}", call, message)
    for code, steps in ((codes.radix(), 200), (Halves(), 4)):
        call = functools.partial(code.sizes, steps)
        message = "allowed: as many numbers > 0 as"
        yield Refusal(f"{type(code).__name__} of {steps} steps", call, message)
    yield Refusal(
        "rising weights of a code",
        lambda: codes.weighted((1, 0.5, 0.7)),
        "none above the one before",
    )
    yield Refusal(
        "fewer weights of a code than steps",
        lambda: codes.weighted((1, 0.5)).weights(4),
        "has 2 weights for T = 4; allowed",
    )


CODES = [
    *codes_refused(),
    Refusal("leaks under a code", with_leaks, "have a leak.*allowed: leak None"),
    Refusal(
        "a word for a code",
        lambda: with_fields(code="radix"),
        "code is 'radix'; allowed: a code",
    ),
    Refusal(
        "a code without weights",
        lambda: with_fields(code=codes.Code()),
        "code is Code.*allowed",
    ),
    Refusal(
        "a dead zone inside a synapse",
        synapse_with_a_dead_zone,
        "a dead zone is for .*alone.*Leave dead_zone out",
    ),
    Refusal(
        "a sequence under a code",
        lambda: under_radix(np.ones((STEPS, *NET.x.shape)), inputs="sequence"),
        "inputs='sequence' works with rate coding only",
    ),
    Refusal(
        "two steps at a time under a code",
        lambda: under_radix(execution=2),
        "execution=2, fewer than all steps, works with rate coding",
    ),
    Refusal(
        "the closed form with a short wait",
        lambda: under_radix(execution="closed_form"),
        "needs wait >= 3 with 4 steps of the code radix.*found wait 1",
    ),
    Refusal(
        "LIF under a code",
        lambda: initialized(code=codes.radix()),
        "radix.*needs IF neurons with reset by subtr",
    ),
    Refusal(
        "a code that is not called",
        lambda: convert(code=codes.radix),
        r"code is .*allowed: a code, .*radix\(\)",
    ),
    Refusal(
        "fewer steps of a code",
        fewer_steps,
        r"snn.code.answers\(outputs\)\[t - 1\]",
    ),
]

CALLS = [
    Refusal(
        "a misspelt number of lif",
        lambda: lif(treshold=2.0),
        r"argument 'treshold'; closest: 'threshold'; allowed: snnjax.lif\(leak=",
        TypeError,
    ),
]

ROWS = [*CALLS, *FIELDS, *currents_refused(), *MODELS, *conversion_refused(), *CODES]
