"""What the examples share: the digits of scikit-learn, a training, a report.

Every library gives a network as ``fn(params, x)``, so one training serves them all.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import snnjax

STEPS = 16


class Digits(NamedTuple):
    """Images [N, 8, 8, 1] in 0..1 and labels [N]."""

    train_x: jax.Array
    train_y: jax.Array
    test_x: jax.Array
    test_y: jax.Array


def load() -> Digits:
    """1500 images for training, 297 for the test."""
    dataset = load_digits()
    x = jnp.asarray(dataset.images[..., None] / 16, jnp.float32)
    y = jnp.asarray(dataset.target)
    return Digits(x[:1500], y[:1500], x[1500:], y[1500:])


def train(fn: Callable, params: chex.ArrayTree, data: Digits) -> chex.ArrayTree:
    """Adam on all images at once; a second or two."""
    optimizer = optax.adam(1e-2)

    def loss(params):
        logits = fn(params, data.train_x)
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return entropy(logits, data.train_y).mean()

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(60):
        params, state = step(params, state)
    return params


def report(fn: Callable, params: chex.ArrayTree, data: Digits) -> float:
    """Convert, print sites and accuracies; how often the SNN agrees with its ANN."""
    print(snnjax.sites(fn, params, data.test_x))
    snn = snnjax.convert(fn, params, data.train_x[:128], steps=STEPS)
    outputs = jax.jit(snnjax.spiking(fn, steps=STEPS))(snn, data.test_x)
    answers = outputs.mean(0).argmax(-1)
    expected = jax.jit(fn)(params, data.test_x).argmax(-1)
    agreement = float((answers == expected).mean())
    print(
        f"ANN {(expected == data.test_y).mean():.1%}, SNN after {STEPS} steps "
        f"{(answers == data.test_y).mean():.1%}, the same answer {agreement:.1%}"
    )
    return agreement
