"""Weight calibration: the kernels that feed a site, fitted by gradient descent.

    min_W  mean over images and positions of sum_C (a - s(W))^2

Source of the objective "floor": Li, Deng, Dong, Gong and Gu, ICML 2021.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from snnjax._checks import check_choice, check_count, check_positive, check_seed
from snnjax.conversion.view import Calibrator, Fit, View
from snnjax.neurons import (
    closed_form,
    integrate_and_fire,
    unroll,
)
from snnjax.surrogate import Surrogate, check_surrogate, dspike


def calibrate_weights(
    objective: str = "floor",
    *,
    iterations: int = 5000,
    learning_rate: float = 1e-5,
    batch: int = 32,
    seed: int = 0,
    surrogate: Surrogate = dspike,
) -> Calibrator:
    """Fit the kernels that feed the site, by Adam, so that s comes near a.

        min_W  mean over images and positions of sum_C (a - s(W))^2

    Args:
        objective: what s(W) is. "floor": the paper's ClipFloor of the mean current,
            which leaves out bias correction, shift and v(0); "neuron": `closed_form`
            of the neuron as it is; "spikes": the T steps themselves. The first two
            take the floor's gradient as 1 (straight through), the last a surrogate.
        iterations: Adam steps per site, cosine schedule to zero.
        learning_rate: at first.
        batch: images per step; at most the number of calibration images is used.
        seed: of the order of the images.
        surrogate: spike function for "spikes".
    """
    check_choice("objective", objective, ("floor", "neuron", "spikes"))
    check_count("iterations", iterations)
    check_count("batch", batch)
    check_positive("learning_rate", learning_rate)
    check_seed(seed)
    check_surrogate(surrogate)
    with jax.ensure_compile_time_eval():  # a recipe may be made inside jit
        schedule = optax.cosine_decay_schedule(learning_rate, iterations)
        rates = np.asarray(schedule(jnp.arange(iterations)))

    def calibrate(view: View, fit: Fit) -> Fit:
        if not fit.weights:
            return fit
        images = view.count
        size = min(batch, images)
        # Where each layer waits for all of its input, mean currents are exact.
        time = objective == "spikes" and view.delay < view.steps
        current, sources = view.feed(size, time)
        given = tuple(fit.weights.values())
        activation, sources, neuron, start = jax.lax.stop_gradient(
            (view.activation, sources, fit.neuron, given)
        )
        step = functools.partial(
            _weight_step,
            sources=sources,
            activation=activation,
            current=current,
            objective="neuron" if objective == "spikes" and not time else objective,
            steps=view.steps,
            delay=view.delay,
            surrogate=surrogate,
            neuron=neuron,
            channel=view.site.channel,
        )
        weights, state = start, _ADAM.init(start)
        for i, rows in enumerate(_shuffled(seed, images, size, iterations)):
            weights, state = step(weights, state, rows, rates[i])
        weights = _moved(given, weights)
        return fit._replace(weights=dict(zip(fit.weights, weights, strict=True)))

    return calibrate


@jax.custom_jvp
def _moved(given, found):
    """``found``, but to a gradient ``given`` and a constant that was added."""
    del given
    return found


_moved.defjvp(lambda primals, tangents: (primals[1], tangents[0]))
_ADAM = optax.scale_by_adam()


@functools.partial(
    jax.jit, static_argnames=("current", "objective", "delay", "surrogate", "channel")
)
def _weight_step(
    weights,
    state,
    rows,
    rate,
    *,
    sources,
    activation,
    current,
    objective,
    steps,
    delay,
    surrogate,
    neuron,
    channel,
):
    target = activation[rows]

    def loss(weights):
        into = current(weights, sources, rows)
        if objective == "floor":
            bare = neuron._replace(bias=jnp.zeros(()), initial_potential=jnp.zeros(()))
            output = closed_form(bare, into, steps)
        elif objective == "neuron":
            output = closed_form(neuron, into, steps)
        else:
            model = integrate_and_fire(surrogate=surrogate)
            output = unroll(model, neuron, into, delay=delay).mean(0)
        return ((target - output) ** 2).sum(channel).mean()

    update, state = _ADAM.update(jax.grad(loss)(weights), state)
    step = jax.tree.map(lambda u, w: (-rate * u).astype(w.dtype), update, weights)
    return optax.apply_updates(weights, step), state


def _shuffled(seed: int, images: int, size: int, iterations: int):
    """``iterations`` index arrays of ``size``, epoch after epoch in random order."""
    generator = np.random.default_rng(seed)
    per_epoch = images // size
    epochs = -(-iterations // per_epoch)
    for epoch in range(epochs):
        order = generator.permutation(images)[: per_epoch * size]
        batches = order.reshape(per_epoch, size)
        yield from batches[: iterations - epoch * per_epoch]
