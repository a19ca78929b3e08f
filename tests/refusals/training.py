"""Refusals of training: leaves, labels, readouts, rules and examples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import test_descent
import test_finetuning
from networks import NETWORKS

import snnjax
from refusals import Refusal, numbered
from snnjax import training
from snnjax.snn import check_values
from snnjax.training import mean_cross_entropy, membrane_readout, param_labels
from snnjax.training.leaves import differentiable

DENSE = NETWORKS["dense"][:3]
SNN = snnjax.init(*DENSE, model=snnjax.lif(temperature=3.0))
ONES = np.ones((2, 1, 3), np.float32)
OUTPUTS = np.ones((6, 4, 3), np.float32)
JUDGES = {"accuracy": snnjax.accuracy, "cross entropy": mean_cross_entropy}
# Shapes of outputs and of labels.
WRONG_SHAPES = [((2, 3), (2,)), ((4, 2, 3), (2, 3)), ((4, 2, 3), (3,)), ((4, 2), (2,))]


class TorchLabels:
    """Whole numbers of a library that NumPy knows nothing of."""

    __module__, shape, dtype = "torch", (1,), "torch.int64"


def entropy(labels):
    return functools.partial(mean_cross_entropy, ONES, labels)


def labels_refused():
    for name, judge in JUDGES.items():
        for shape, label_shape in WRONG_SHAPES:
            labels = np.zeros(label_shape, int)
            outputs = np.zeros(shape)
            yield Refusal(
                f"{name} of {shape} and {label_shape}",
                functools.partial(judge, outputs, labels),
                "allowed: the readout at each step",
            )
            yield Refusal(
                f"{name} of a dictionary and {shape}, {label_shape}",
                functools.partial(judge, {"logits": outputs}, labels),
                "not its mean",
            )
        yield Refusal(
            f"{name} of no examples",
            functools.partial(judge, OUTPUTS[:, :0], np.zeros(0, int)),
            r"outputs have shape \(6, 0, 3\), without a number; allowed: one or more",
        )
    swapped = functools.partial(snnjax.accuracy, ONES, np.zeros(1, ">i4"))
    yield Refusal("labels of swapped bytes", swapped, "the dtype of labels is >i4, in")
    for label in (-1, 3):
        labels = np.array([1, label])
        call = functools.partial(snnjax.accuracy, np.zeros((2, 2, 3)), labels)
        message = f"range from .*{label}.*allowed: 0 to 2"
        yield Refusal(f"accuracy of the label {label}", call, message)


# ------------------------------------------------------------------------- fine-tuning

X, CLASSES = test_finetuning.X, test_finetuning.LABELS
BATCHES = test_finetuning.BATCHES


@functools.cache
def trained():
    net = test_finetuning.NET
    recipe = snnjax.light()
    return snnjax.convert(
        net.apply, test_finetuning.VARIABLES, X[0], steps=2, recipe=recipe
    )


def finetune(snn=None, examples=BATCHES, **options):
    """Two epochs of three batches of 16 images."""
    snn = trained() if snn is None else snn(trained())
    return test_finetuning.finetune(snn, examples, **options)


def with_neurons_elsewhere(snn):
    neurons = {"elsewhere": snn.neurons["Net/relu"]}
    return dataclasses.replace(snn, neurons=neurons)


def with_strange_averages(variables, x):
    outputs, averages = test_finetuning.in_training(variables, x)
    return outputs, {"far": averages}


NOT_TRAINED = [
    ({"epochs": 0}, "epochs is 0; allowed: a whole number >= 1"),
    ({"rules": 0.01}, "rules hold 0.01; allowed: an optimizer of optax"),
    ({"snn": lambda snn: {}}, "snn is dict; allowed: an SNN of"),
    ({"snn": with_neurons_elsewhere}, "sites without neurons: .'Net/relu'"),
    (
        {"examples": iter(BATCHES)},
        "list_iterator, which can be read once; allowed",
    ),
    ({"examples": []}, "examples of epoch 1 of 2 are empty; allowed: one batch"),
    ({"examples": X}, r"is ndarray; allowed: a pair \(x, labels\)"),
    (
        {"examples": [(X[0], CLASSES[0][:5])]},
        r"shape \(2, 16, 3\), labels \(5,\); allowed",
    ),
    (
        {"examples": [(X[0], X[0])]},
        r"shape \(2, 16, 3\), labels \(16, 6\); allowed",
    ),
    (
        {"examples": [BATCHES[0], (X[1], CLASSES[1] + 1)]},
        "labels range from 1 to 3; allowed: 0 to 2, the classes of the outputs",
    ),
    ({"teacher": test_finetuning.VARIABLES}, r"is a dict; allowed: .* fn\(params, x\)"),
    (
        {"teacher": lambda params, x: x},
        r"teacher is <lambda>\(params, x\); allowed: a function x -> logits",
    ),
    ({"loss": None}, "loss is a NoneType; allowed: a function .outputs"),
    ({"measure": 1}, "measure is a int; allowed: a function .snn, line of the log"),
    ({"share": 0.5}, "share is 0.5 without a teacher; give one"),
    (
        {"share": 2, "teacher": test_finetuning.teacher},
        "share is 2; allowed: 0 <= share <= 1",
    ),
    ({"teacher": lambda x: x}, r"the teacher's \(16, 6\); allowed"),
    ({"measure": lambda snn, line: 0.5}, "measure returns 0.5; allowed: None, or"),
    (
        {"measure": lambda snn, line: line},
        "other names than epoch, accuracy, loss",
    ),
    ({"has_aux": True, "fn": with_strange_averages}, r"returns .'far/batch_stats"),
]


def explode(weight, batch):
    """A step of a training: the loss becomes 10,000 times as large."""
    return 1e4 * weight, {"loss": weight, "finite": True}


def train_until_it_explodes(steps):
    training.train(explode, jnp.ones(()), [0] * steps, epochs=9)


FINE_TUNING = [
    *numbered("fine-tuning", finetune, NOT_TRAINED),
    Refusal(
        "labels below the classes in fine-tuning",
        lambda: finetune(examples=[(X[0], CLASSES[0] - 1)]),
        "labels range from -1 to 1; allowed: 0 to 2",
    ),
    Refusal(
        "labels beyond the classes for a loss of one's own",
        lambda: finetune(
            examples=[(X[0], CLASSES[0] + 9)], loss=test_finetuning.summed
        ),
        "not finite in epoch 1 of 2, step 1 of 1",
        FloatingPointError,
    ),
    Refusal(
        "a traced SNN in fine-tuning",
        lambda: jax.jit(lambda snn: finetune(lambda _: snn))(trained()),
        "snn is traced; .* Call snnjax.training.finetune outside of jit",
    ),
    Refusal(
        "training inside of jit",
        lambda: jax.jit(lambda: train_until_it_explodes(4))(),
        "state is traced; .* Call snnjax.training.train outside of jit",
    ),
    Refusal(
        "fine-tuning with misspelled epochs",
        lambda: training.finetune(DENSE[0], SNN, BATCHES, epohcs=2),
        r"finetune\(\) has no argument 'epohcs'; closest: 'epochs'; allowed: snnjax",
        TypeError,
    ),
    Refusal(
        "fine-tuning with an unknown option",
        lambda: finetune(epoch=3),
        r"unexpected option 'epoch'; closest: 'epochs'; .*rules=optax.adam\(1e-3\)",
        TypeError,
    ),
    Refusal(
        "a loss that explodes",
        lambda: train_until_it_explodes(4),
        r"the loss is 1e\+08 in epoch 1 of 9, step 3 of 4, and was 1 at first",
        FloatingPointError,
    ),
    Refusal(
        "a loss that explodes in a later epoch",
        lambda: train_until_it_explodes(2),
        r"1e\+12 in epoch 2 of 9, step 2 of 2, and was 5e\+03 at first",
        FloatingPointError,
    ),
]

# ----------------------------------------------------------------------------- descent


def loss_of_nan(snn):
    return snn.params["w1"].sum() * jnp.nan


def descend_to_nan():
    init, step = training.descent(loss_of_nan, optax.sgd(1.0))
    step(SNN, init(SNN))


def begin(label):
    """Descent on the leaves of this label."""
    init, _ = training.descent(lambda snn: 0.0, {label: optax.sgd(0.1)})
    init(SNN)


def update_without_params():
    floats, _ = differentiable(SNN)
    bounded = training.optimizer(optax.sgd(1.0))
    bounded.update(floats, bounded.init(floats))


def simulate_with(**numbers):
    """Runs the SNN with these numbers at its first site."""
    first = SNN.neurons["w1/relu"]._replace(**numbers)
    broken = dataclasses.replace(SNN, neurons=SNN.neurons | {"w1/relu": first})
    snnjax.spiking(DENSE[0], steps=2)(broken, DENSE[2])


def check_gain():
    """The range of a parameter of one's own."""
    snn = test_descent.fresh(test_descent.ModelWithGain())
    params = snn.neurons["w/relu"]._replace(gain=np.float32(0.8))
    check_values(dataclasses.replace(snn, neurons={"w/relu": params}))


OUT_OF_RANGE = [
    (
        {"threshold": np.float32(0)},
        "is 0.0; allowed: > 0, and finite. In training, snn",
    ),
    ({"leak": np.float32(1.5)}, "is 1.5; allowed: 0 < leak <= 1. In training"),
    (
        {"bias": np.float32(np.nan)},
        "is nan; allowed: finite. Perhaps a training diverged",
    ),
]


def rules_refused():
    for name, rules in {
        "a word": "adam",
        "an optimizer that is not called": optax.adam,
        "rules that are not called": {"weights": optax.adam},
        "no rules": {},
    }.items():
        call = functools.partial(training.descent, lambda snn: 0.0, rules)
        yield Refusal(
            f"descent by {name}", call, "rules hold .*; allowed: an optimizer of optax"
        )
    for label in ("leek", "offset"):
        call = functools.partial(begin, label)
        message = rf"no leaf \['{label}'\] to train; allowed: weights"
        yield Refusal(f"descent on {label}", call, message)


DESCENT = [
    *rules_refused(),
    *numbered("a training that left", simulate_with, OUT_OF_RANGE),
    Refusal(
        "a loss of NaN outside of jit",
        descend_to_nan,
        "the loss is nan; allowed: a finite",
        FloatingPointError,
    ),
    Refusal(
        "an update without params",
        update_without_params,
        r"got no params; allowed: update\(gradient",
    ),
    Refusal(
        "an optimizer of a dictionary",
        lambda: training.optimizer(optax.sgd(1.0)).init({}),
        "snn is dict; allowed: an SNN of",
    ),
    Refusal(
        "a parameter of one's own out of its range",
        check_gain,
        "gain of site 'w/relu' is 0.8.* -0.3 <= gain",
    ),
]

ROWS = [
    *FINE_TUNING,
    *DESCENT,
    Refusal(
        "leaves of a dictionary",
        lambda: param_labels({}, ["weights"]),
        "snn is dict; allowed: an SNN",
    ),
    Refusal(
        "a leaf that is not there",
        lambda: param_labels(SNN, ["b"]),
        r"no leaf \['b'\] to train; allowed: weights",
    ),
    Refusal(
        "one word for leaves",
        lambda: param_labels(SNN, "bias"),
        r"is 'bias'; allowed: several, as \['bias'",
    ),
    Refusal(
        "a label above the classes",
        entropy(np.array([3])),
        "labels range from 3 to 3; allowed: 0 to 2",
    ),
    Refusal(
        "a label below the classes",
        entropy(np.array([-1])),
        "labels range from -1 to -1; allowed: 0 to 2",
    ),
    Refusal(
        "labels of PyTorch",
        entropy(TorchLabels()),
        r"labels is a torch.TorchLabels of torch.int64; .*tensor.numpy\(force=True\)",
    ),
    Refusal(
        "labels of floating point",
        entropy(np.ones(1)),
        "labels have dtype float64; allowed",
    ),
    Refusal(
        "a readout that forgets all",
        lambda: membrane_readout(OUTPUTS, leak=0.0),
        "leak is 0.0; allowed: 0 < leak",
    ),
    Refusal(
        "a word for a leak",
        lambda: membrane_readout(OUTPUTS, leak="a"),
        "leak is 'a'; allowed: 0 < leak",
    ),
    *labels_refused(),
]
