"""Refusals of simulation: options, SNNs, states and inputs."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from networks import FLAT, NETWORKS, VECTORS, halves

import snnjax
from refusals import Refusal, numbered
from snnjax.neurons import integrate_and_fire, lif
from snnjax.neurons.gradients import WithSurrogate
from snnjax.surrogate import arctan

STEPS = 8
DENSE = NETWORKS["dense"]
FITTED = halves(DENSE, steps=STEPS, wait=0)
IF = snnjax.init(*DENSE[:3], model=integrate_and_fire())
FREE = dataclasses.replace(FITTED, steps=None, wait=None)


def with_first_site(**fields):
    """FITTED with other parameters at its first site."""
    arrays = {name: np.asarray(value, np.float32) for name, value in fields.items()}
    first = FITTED.neurons["w1/relu"]._replace(**arrays)
    return dataclasses.replace(FITTED, neurons=FITTED.neurons | {"w1/relu": first})


def with_nan(array):
    array = np.array(array)
    array.flat[1] = np.nan
    return array


CLOSED = {"execution": "closed_form", "wait": STEPS}
BROKEN = dataclasses.replace(
    FITTED, params=FITTED.params | {"w2": with_nan(FITTED.params["w2"])}
)
OTHER_SITE = dataclasses.replace(
    FITTED, neurons=FITTED.neurons | {"other": lif().init()}
)


WRONG_OPTIONS = [
    ({"steps": 0}, "steps is 0; allowed: a whole number >= 1"),
    ({"steps": 4.0}, "steps is 4.0; allowed: a whole number >= 1"),
    ({"wait": -1}, "wait is -1; allowed: .* from 0 .* to steps=8"),
    ({"wait": STEPS + 1}, "wait is 9; allowed: .* to steps=8"),
    ({"execution": "by_time"}, "execution is 'by_time'; allowed: 'auto', 'closed"),
    ({"execution": "by_step"}, "In place of 'by_step' write 1, one step"),
    ({"execution": "by_layer"}, "In place of 'by_layer' write T, the number"),
    ({"inputs": "events"}, "inputs is 'events'; allowed: 'constant', 'sequence'"),
    ({"inputs": "poisson"}, "Draw the spikes, jax.random.bernoulli\\(key, x"),
    ({"micro_batch": 0}, "micro_batch is 0; allowed: a whole number"),
    ({"micro_batch": 2.5}, "micro_batch is 2.5; allowed: a whole number"),
    ({"execution": 0}, "execution, .*, is 0; allowed: a whole number >= 1"),
    ({"execution": 2.5}, "execution, .*, is 2.5; allowed: a whole number >= 1"),
    ({"execution": 9}, "execution is 9 steps at a time; allowed: 1 to steps=8"),
    ({"execution": 2, "wait": 1}, "needs wait 0; found wait 1. Take execution=8"),
    ({"surrogate": "dspike"}, "surrogate is 'dspike'; allowed: a spike function"),
    ({"surrogate": lambda: 0}, "cannot be called as surrogate\\(x\\)"),
    (CLOSED | {"surrogate": arctan}, "straight-through gradient: leave surrogate"),
    (CLOSED | {"detach_reset": True}, "straight-through gradient: leave surrogate"),
    ({"detach_reset": "no"}, "detach_reset is 'no'; allowed: True or False"),
    ({"has_aux": True, "execution": 2}, "allowed: execution='auto' or 'closed"),
    ({"has_aux": True, "answer": True}, "answer=True; .* answer=False"),
    ({"has_aux": True, "micro_batch": 8}, "has_aux=True shows .* micro_batch=8"),
]

SHORT_X = np.ones((3, 4, 4), np.float32)
NO_NEURONS = dataclasses.replace(FITTED, neurons={})
STORED = snnjax.storage.Stored(FITTED, {}, lambda x: x)
ZERO = dataclasses.replace(FREE, model=integrate_and_fire(reset="zero"))
BOUNDED = dataclasses.replace(FREE, model=integrate_and_fire(lowest=0.0))
WRONG_CALLS = [
    ({"snn": FLAT}, "snn is dict; allowed: an SNN of"),
    ({"snn": STORED}, "allowed: its field snn"),
    ({"snn": NO_NEURONS}, "sites without neurons: \\['w1/relu', 'w2/relu'\\]"),
    ({"snn": OTHER_SITE}, "No such site: \\['other'\\]"),
    ({"snn": BROKEN}, "NaN in the weights 'w2'; allowed: numbers"),
    (
        {"snn": with_first_site(initial_potential=np.zeros(7))},
        "site 'w1/relu' do not fit .*initial_potential .*(7,)",
    ),
    ({"snn": with_first_site(threshold=0)}, "is 0.0; allowed: > 0, and fin"),
    ({"snn": with_first_site(threshold=-1)}, "-1.0; allowed: > 0, and finite"),
    ({"snn": with_first_site(leak=1.5)}, "leak .* is 1.5; allowed: 0 < leak <= 1"),
    (
        {"snn": with_first_site(leak=np.nan)},
        "leak of site 'w1/relu' is nan; allowed: 0 < leak",
    ),
    (
        {"snn": with_first_site(bias=np.inf)},
        "bias of site 'w1/relu' is inf; allowed: finite",
    ),
    ({"x": with_nan(VECTORS)}, "x holds 1 NaN of .* numbers"),
    ({"x": VECTORS + np.inf}, "x holds 16 inf of 16 numbers; allowed: none"),
    ({"inputs": "sequence", "x": [1.0, 2.0]}, "is a float; allowed: an"),
    (
        {"inputs": "sequence", "x": SHORT_X},
        "needs x \\[steps=8, batch, ...\\]; found shape \\(3, 4, 4\\)",
    ),
    (
        {"surrogate": lambda x, b: x},
        "cannot be called as surrogate\\(x\\), as these neurons call it",
    ),
    ({"execution": "closed_form"}, "needs wait >= 8 .* found wait 0"),
    (CLOSED | {"snn": snnjax.init(*DENSE[:3])}, "a leak. Take 'auto'"),
    (CLOSED | {"snn": BOUNDED}, "no lower bound; found wait 8.*lowest=0.0"),
    (CLOSED | {"snn": ZERO}, "found wait 8, .*reset='zero'.*Take 'auto'"),
]


def option(**options):
    """The options alone are wrong, before there is an SNN."""
    return snnjax.spiking(DENSE.fn, **{"steps": STEPS} | options)


def simulate(snn=FITTED, x=VECTORS, **options):
    return option(**options)(snn, x)


def simulate_fitted(fields=None, **options):
    """An SNN that was fitted to three steps and a wait of one, with other fields."""
    snn = dataclasses.replace(FITTED, steps=3, wait=1, fitted_to=None)
    snn = dataclasses.replace(snn, **(fields or {}))
    snnjax.spiking(DENSE.fn, **options)(snn, VECTORS)


# Another number in the field steps makes no other thresholds.
NOT_FITTED = [
    ({"steps": 4}, "fitted to steps=3, wait=1 and cannot run with steps=4"),
    ({"wait": 0}, "cannot run with steps=3, wait=0.* Leave steps and wait out"),
    ({"wait": -1}, "wait is -1; allowed: a whole number >= 0"),
    ({"wait": 4}, "wait is 4; allowed: .* to steps=3"),
    ({"execution": 2}, "execution=2, .* needs wait 0; found wait 1"),
    ({"execution": 9}, "execution is 9 steps at a time; allowed: 1 to"),
    ({"fields": {"steps": 2}}, "fitted to steps=3, .*run with steps=2, wait"),
    (
        {"fields": {"code": snnjax.codes.radix()}},
        "fitted to the code rate.* cannot run with radix.* fitted_to=None",
    ),
]


def export_in_groups():
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, *VECTORS.shape[1:]), VECTORS.dtype)
    grouped = jax.jit(snnjax.spiking(DENSE.fn, steps=STEPS, micro_batch=2))
    jax.export.export(grouped)(FITTED, x)


def with_state(snn=IF, x=VECTORS, **options):
    """A call with the state of a piece of a stream before."""

    def call():
        piece = snnjax.spiking(DENSE.fn, steps=2, state=True)
        _, state = piece(IF, VECTORS)
        snnjax.spiking(DENSE.fn, steps=2, **options)(snn, x, state=state)

    return call


def second_piece_of_a_window():
    piece = snnjax.spiking(DENSE.fn, state=True)
    _, state = piece(FITTED, VECTORS)
    piece(FITTED, VECTORS, state=state)


def pieces_with_zones(**zones):
    """Each piece would take its own last step for that of the whole."""
    snn = dataclasses.replace(IF, model=integrate_and_fire(**zones))
    return lambda: snnjax.spiking(DENSE.fn, steps=2, state=True)(snn, VECTORS)


def pieces(**options):
    return lambda: snnjax.spiking(DENSE.fn, steps=2, state=True, **options)


# ------------------------------------------------------------------ inputs in time


def sum_of_two(w, x):
    return jax.nn.relu(x["a"] @ w) + x["b"]


def simulate_two(a_shape, b_shape):
    """Two sequences of vectors [T, B, 2], of these shapes."""
    one_step = {"a": np.ones((3, 2), "f4"), "b": np.ones((3, 2), "f4")}
    snn = snnjax.init(sum_of_two, np.eye(2, dtype="f4"), one_step)
    x = {"a": np.ones(a_shape, "f4"), "b": np.ones(b_shape, "f4")}
    snnjax.spiking(sum_of_two, steps=STEPS, inputs="sequence")(snn, x)


def gated_by_the_input(p, x):
    """Two layers read one truth value of the input."""
    mask = (x @ p["w1"]) > 0
    x = jnp.where(mask, jax.nn.relu(x @ p["w1"] @ p["w2"]), 0)
    return jnp.where(mask, jax.nn.relu(x @ p["w2"]), 0) @ p["w3"]


def sequence_with_a_truth_value():
    snn = snnjax.init(gated_by_the_input, FLAT, VECTORS)
    x = np.stack([VECTORS] * STEPS)
    snnjax.spiking(gated_by_the_input, steps=STEPS, inputs="sequence")(snn, x)


def sequence_of_tokens():
    def fn(p, x):
        tokens = p["w2"][x["tokens"]]
        y = jax.nn.relu(tokens @ p["w2"]) @ p["w3"]
        return (y * x["mask"][..., None]).mean(1)

    tokens = np.array([[0, 1], [2, 0]])
    x = {"tokens": tokens, "mask": tokens > 0}
    snn = snnjax.init(fn, FLAT, x)
    snnjax.spiking(fn, steps=STEPS, inputs="sequence")(snn, x)


# ------------------------------------------------------------------- training mode


def with_aux(fn):
    """The function as one that returns averages, too."""
    return lambda p, x: (fn(p, x), {})


def with_tanh(p, x):
    return jnp.tanh(jax.nn.relu(x @ p["w1"]) @ p["w2"]) @ p["w3"]


def train_encoders():
    """Training mode would run an SNN of inference mode, which has encoders."""
    snn = snnjax.init(with_tanh, FLAT, VECTORS)
    snnjax.spiking(with_aux(with_tanh), steps=2, has_aux=True)(snn, VECTORS)


def infer_without_encoders():
    """Inference mode would run an SNN of training mode, which has no encoders."""
    snn = snnjax.init(with_aux(with_tanh), FLAT, VECTORS, has_aux=True)
    snnjax.spiking(with_tanh, steps=2)(snn, VECTORS)


def loop_that_fires():
    def fn(p, x):
        x = jax.lax.while_loop(
            lambda x: x.sum() > 9, lambda x: jax.nn.relu(x - 1), jax.nn.relu(x)
        )
        return x, {}

    snnjax.init(fn, {}, np.ones((2, 3), "f4"), has_aux=True)


ENCODERS = "no encoders. Train .* in inference mode"
TRAINING_MODE = [
    Refusal("training mode of an SNN with encoders", train_encoders, ENCODERS),
    Refusal(
        "inference mode of an SNN without encoders", infer_without_encoders, ENCODERS
    ),
    Refusal(
        "a loop that fires in training mode",
        loop_that_fires,
        "inside a loop .* would not spike.*\n *remedy: use a loop of",
        snnjax.ConversionError,
    ),
    Refusal(
        "training mode without averages",
        lambda: simulate(has_aux=True),
        r"return \(outputs, aux\); found .*Return a pair.* or leave out has_aux",
    ),
]
IN_TIME = [
    Refusal(
        "sequences of other batches",
        lambda: simulate_two((STEPS, 3, 2), (STEPS, 5, 2)),
        "of 3, 5 examples; allowed: .* on axis 1",
    ),
    Refusal(
        "sequences without a batch",
        lambda: simulate_two((STEPS,), (STEPS,)),
        r"a.* has shape \(8,\); allowed: \[T, batch",
    ),
    Refusal(
        "a truth value of a sequence",
        sequence_with_a_truth_value,
        "a constant input only(.|\n)*remedy: compute them outside fn",
        snnjax.ConversionError,
    ),
    Refusal(
        "a sequence of tokens",
        sequence_of_tokens,
        "needs x of floating point, .*found whole numbers or truth values",
    ),
    Refusal(
        "an SNN without steps",
        lambda: snnjax.spiking(DENSE.fn)(IF, VECTORS),
        "fitted to no number of steps: give steps=T",
    ),
]

NO_BATCH = "its first axis must be the batch"
ZONES = "a dead zone asks which .*'w1/relu'; allowed"
ROWS = [
    *TRAINING_MODE,
    *IN_TIME,
    *numbered("option", option, WRONG_OPTIONS),
    *numbered("call", simulate, WRONG_CALLS),
    *numbered("an SNN of three steps", simulate_fitted, NOT_FITTED),
    Refusal(
        "groups of a symbolic number",
        export_in_groups,
        "needs a number of examples; found b",
    ),
    Refusal(
        "a constant image without a batch",
        lambda: simulate(x=VECTORS[0]),
        NO_BATCH,
        snnjax.ConversionError,
    ),
    Refusal(
        "a sequence without a batch",
        lambda: simulate(x=np.ones((STEPS, 4), "f4"), inputs="sequence"),
        NO_BATCH,
        snnjax.ConversionError,
    ),
    Refusal(
        "a model that is not called",
        lambda: snnjax.init(*DENSE[:3], model=lif),
        r"without init, .* or snnjax.lif\(\) \(called\)",
    ),
    Refusal(
        "a model with a surrogate",
        lambda: snnjax.init(*DENSE[:3], model=WithSurrogate(lif())),
        "surrogate, which is an argument of",
    ),
    Refusal(
        "a state of another batch",
        with_state(x=VECTORS[:1], state=True),
        "not of this SNN and batch: .*potential",
    ),
    Refusal(
        "a state that is not asked for",
        with_state(),
        "given to a function that returns none",
    ),
    Refusal(
        "a second piece of a window",
        second_piece_of_a_window,
        f"fitted to {STEPS} steps from its own .*Run each window .*, and steps=T",
    ),
    Refusal("pieces with a wait", pieces(wait=1), "found wait=.* Leave it"),
    Refusal("pieces with an answer", pieces(answer=True), "found answer=.* Leave it"),
    Refusal(
        "pieces with groups", pieces(micro_batch=2), "found micro_batch=.* Leave it"
    ),
    Refusal(
        "pieces with a dead zone",
        pieces_with_zones(levels=(-1, 1), dead_zone=2 / 3),
        ZONES,
    ),
    Refusal("pieces with a last zone", pieces_with_zones(last_zone=0.75), ZONES),
]
