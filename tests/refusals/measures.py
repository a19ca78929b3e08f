"""Refusals of measures: spikes, energy, sweeps over steps, and accuracy."""

import functools

import jax
import numpy as np
from networks import NETWORKS, VECTORS

import snnjax
from refusals import Refusal, numbered
from refusals.simulation import with_nan

STEPS = 4
DENSE = NETWORKS["dense"]
IF = snnjax.init(*DENSE[:3], model=snnjax.integrate_and_fire())
LABELS = np.array([0, 1, 2, 0])


@functools.cache
def converted():
    recipe = snnjax.max_activation()
    return snnjax.convert(*DENSE[:3], steps=STEPS, recipe=recipe)


def measure(x=VECTORS, snn=None, params=DENSE.params, **options):
    snn = converted() if snn is None else snn
    return snnjax.measure(DENSE.fn, snn, x, params=params, **options)


def record(x=VECTORS, snn=IF, steps=STEPS, **options):
    return snnjax.measures.spike_trains(DENSE.fn, snn, x, steps=steps, **options)


def count(x):
    return snnjax.measures.neurobench(DENSE.fn, IF, x, steps=STEPS)


def sweep(labels=LABELS, steps=(2,), examples=VECTORS):
    """Conversions of the network at several T, by the accuracy of its labels."""
    images, x = np.asarray(VECTORS), np.asarray(examples)
    recipe = snnjax.light()
    snnjax.sweep(*DENSE[:2], images, x, labels, steps=steps, recipe=recipe)


NAN = "x holds 1 NaN of .* numbers"
TRUTH_VALUES = np.ones((STEPS, *VECTORS.shape), bool)
NOT_RECORDED = [
    ({"x": with_nan(VECTORS)}, NAN),
    ({"x": VECTORS[:3], "inputs": "sequence"}, r"needs x \[steps=4, batch"),
    (
        {"x": TRUTH_VALUES, "inputs": "sequence"},
        r"truth values. Pass x.astype\('float32'\)",
    ),
    ({"inputs": "poisson"}, r"Draw the spikes, jax.random.bernoulli\("),
]
NOT_MEASURED = [
    ({"x": with_nan(VECTORS)}, NAN),
    ({"snn": IF}, "fitted to no number of steps: give steps=T"),
    ({"steps": 8}, "fitted to steps=4, wait=0 and cannot run with steps=8"),
    (
        {"params": DENSE.params | {"w2": DENSE.params["w2"] * np.nan}},
        "NaN in the weights 'w2'; allowed: numbers",
    ),
    (
        {"params": DENSE.params | {"w2": DENSE.params["w2"] + np.inf}},
        "infinity in the weights 'w2'; allowed: numbers",
    ),
    ({"x": VECTORS + np.inf}, "x holds 16 inf of 16 numbers; allowed: none"),
    (
        {"params": DENSE.params | {"w1": np.ones((9, 6))}},
        r"converted from: w1 has shape \(9, 6\), and \(4, 6\) in the SNN; allowed",
    ),
    (
        {"params": {"kernel": DENSE.params["w1"]}},
        r"to it: \['kernel'\]; missing: \['b1'",
    ),
]
NOT_SWEPT = [
    ({"labels": LABELS[1:]}, r"outputs have shape .*, labels \(3,\); allowed"),
    ({"labels": LABELS / 2}, "labels have dtype float64; allowed: whole"),
    ({"labels": LABELS + 10}, "labels range from 10 to 12; allowed: 0 to 2"),
    (
        {"examples": LABELS, "labels": VECTORS},
        r"x has shape \(4,\) and labels \(4, 4\); .*Swap the two: snnjax.sweep\(fn, ",
    ),
    ({"steps": ()}, "steps is empty; allowed"),
    ({"steps": 0}, "steps is 0; allowed"),
]


def energy_of_speck():
    measures = snnjax.measure(DENSE.fn, converted(), VECTORS, params=DENSE.params)
    snnjax.energy(measures, chip=snnjax.deploy.speck())


ROWS = [
    *numbered("measures", measure, NOT_MEASURED),
    *numbered("spike trains", record, NOT_RECORDED),
    *numbered("a sweep", sweep, NOT_SWEPT),
    Refusal("NeuroBench of NaN", lambda: count(with_nan(VECTORS)), NAN),
    Refusal(
        "NeuroBench of traced images",
        lambda: jax.jit(count)(VECTORS),
        "x is traced; .* Call snnjax.measures.neurobench outside of jit",
    ),
    Refusal(
        "latency of an SNN",
        lambda: snnjax.latency(IF, steps=8),
        "sites is SNN; allowed: the Sites of",
    ),
    Refusal(
        "energy of an SNN",
        lambda: snnjax.energy(IF),
        "measures is SNN; allowed: the Measures that",
    ),
    Refusal(
        "energy on a chip without a source",
        energy_of_speck,
        "chip is Chip.'Speck'., of which no source",
    ),
]
