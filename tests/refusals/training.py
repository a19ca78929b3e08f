"""Refusals of training and of codes: leaves, labels, leaks, bases and weights."""

import functools

import numpy as np
from networks import NETWORKS

import snnjax
from refusals import Refusal
from snnjax.training import mean_cross_entropy, membrane_readout, param_labels

DENSE = NETWORKS["dense"][:3]
SNN = snnjax.init(*DENSE, model=snnjax.lif(temperature=3.0))
ONES = np.ones((2, 1, 3), np.float32)
OUTPUTS = np.ones((6, 4, 3), np.float32)
JUDGES = {"accuracy": snnjax.accuracy, "cross entropy": mean_cross_entropy}
# Shapes of outputs and of labels.
WRONG_SHAPES = [((2, 3), (2,)), ((4, 2, 3), (2, 3)), ((4, 2, 3), (3,)), ((4, 2), (2,))]


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
    for label in (-1, 3):
        labels = np.array([1, label])
        call = functools.partial(snnjax.accuracy, np.zeros((2, 2, 3)), labels)
        message = f"range from .*{label}.*allowed: 0 to 2"
        yield Refusal(f"accuracy of the label {label}", call, message)


ROWS = [
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
        "labels range from 3 to 3; allow",
    ),
    Refusal(
        "a label below the classes",
        entropy(np.array([-1])),
        "labels range from -1 to -1",
    ),
    Refusal(
        "labels of floating point",
        entropy(np.ones(1)),
        "labels have dtype float64; allowed",
    ),
    Refusal(
        "a readout that forgets all",
        lambda: membrane_readout(OUTPUTS, leak=0.0),
        "leak is 0.0; al",
    ),
    Refusal(
        "a word for a leak",
        lambda: membrane_readout(OUTPUTS, leak="a"),
        "leak is 'a'; al",
    ),
    *labels_refused(),
]
