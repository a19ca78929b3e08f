"""An SNN as a part of a larger program: a spiking encoder before a dense head.

``python -m examples.inside_a_program`` trains both together. For `jax.jit`, `jax.grad`
and optax, the encoder is an ordinary function and its SNN an ordinary pytree.
"""

import jax
import jax.numpy as jnp
import optax

import snnjax
from examples import digits

STEPS = 4


def encoder(weights, x):
    """[B, 8, 8, 1] -> [B, 32]; its ReLUs will be neurons."""
    x = jax.nn.relu(x.reshape(len(x), -1) @ weights["first"])
    return jax.nn.relu(x @ weights["second"])


def head(weights, features):
    """[B, 32] -> [B, 10], an ordinary network: GELU and softmax are welcome here."""
    features = jax.nn.gelu(features @ weights["hidden"])
    return jax.nn.log_softmax(features @ weights["readout"])


def main() -> tuple[float, float, float]:
    """The loss before and after the training, and the test accuracy."""
    data = digits.load()
    he = jax.nn.initializers.he_normal()
    keys = jax.random.split(jax.random.key(0), 4)
    encoder_weights = {
        "first": he(keys[0], (64, 64)),
        "second": he(keys[1], (64, 32)),
    }
    head_weights = {
        "hidden": he(keys[2], (32, 32)),
        "readout": he(keys[3], (32, 10)),
    }
    snn = snnjax.init(encoder, encoder_weights, data.train_x)
    params = {"encoder": snn, "head": head_weights}
    simulate = snnjax.spiking(encoder, steps=STEPS)

    def log_probabilities(params, x):
        rates = simulate(params["encoder"], x).mean(0)
        return head(params["head"], rates)

    def loss(params):
        answers = log_probabilities(params, data.train_x)
        return -jnp.take_along_axis(answers, data.train_y[:, None], axis=1).mean()

    # The encoder's neurons stay as they are; its weights and the head learn.
    kinds = {
        "encoder": snnjax.training.param_labels(snn, ["weights"]),
        "head": "weights",
    }
    optimizer = optax.multi_transform(
        {"weights": optax.adam(1e-2), "frozen": optax.set_to_zero()}, kinds
    )

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    losses = []
    for i in range(60):
        params, state, value = step(params, state)
        losses.append(float(value))
        if i % 10 == 0:
            print(f"step {i:2d}: loss {value:.3f}")
    answers = log_probabilities(params, data.test_x).argmax(-1)
    accuracy = float((answers == data.test_y).mean())
    print(f"step 60: loss {loss(params):.3f}, test accuracy {accuracy:.1%}")
    return losses[0], losses[-1], accuracy


if __name__ == "__main__":
    main()
