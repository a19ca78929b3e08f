"""Weight calibration: the kernels that feed a site, fitted by gradient descent.

The gradient of the floor in a neuron's output is taken as 1. Source: Li, Deng, Dong,
Gong and Gu, ICML 2021.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from snnjax._arrays import promoted, wide
from snnjax._checks import warn
from snnjax._ranges import COUNT, POSITIVE, WHOLE
from snnjax._text import named
from snnjax.calibrators.running import Dynamics
from snnjax.calibrators.view import Calibrator, Fit, View
from snnjax.neurons.models import NeuronParams


@named
def calibrate_weights(
    *,
    iterations: int = 5000,
    learning_rate: float = 1e-5,
    batch: int = 32,
    seed: int = 0,
) -> Calibrator:
    """Fit the kernels that feed the site, by Adam, so that s comes near a.

        min_W  mean over images and positions of sum_C (a - s(W))^2

    a is the ANN's activation. s(W) is the paper's ClipFloor of the mean current, biases
    of the network included: the output of a neuron that has the site's threshold, but
    neither the bias of the shift nor v(0). With `least_squares_weights` no descent is
    needed.

    Args:
        iterations: steps of Adam at each site.
        learning_rate: of the first step; a cosine schedule lowers it to 0.
        batch: images of a step, or all calibration images if these are fewer.
        seed: of the random order of the images.

    Kernels that also feed another site, an operator or the readout stay as they are; a
    warning names them.

    Raises:
        ValueError: an argument outside its range.

    Spikes of the first layer below give at most its threshold, 7.5, where the ANN has
    up to 15; the kernel of the second layer grows to make up for it.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(jax.nn.relu(x) @ w)
    >>> images = jnp.arange(16.0)[:, None]
    >>> weights = calibrate_weights(iterations=20, learning_rate=0.05)
    >>> chain = (snnjax.calibrators.percentile_threshold(50.0), weights)
    >>> recipe = snnjax.Recipe(chain)
    >>> snn = snnjax.convert(fn, jnp.ones((1, 1)), images, steps=4, recipe=recipe)
    >>> print(f"{snn.params[0, 0]:.2f}")
    1.33
    """
    COUNT.check("iterations", iterations)
    COUNT.check("batch", batch)
    POSITIVE.check("learning_rate", learning_rate)
    WHOLE.check("seed", seed)
    schedule = optax.cosine_decay_schedule(learning_rate, iterations)
    steps = np.arange(iterations, dtype=np.float32)
    rates = np.asarray(jax.jit(schedule)(steps))  # [steps]

    def calibrate(view: View, fit: Fit) -> Fit:
        shared_paths = [path for path in fit.weights if path in view.shared]
        if shared_paths:
            # Calibrating them would undo the fit of other sites.
            warn(
                f"at site {view.site.name!r} the weights {', '.join(shared_paths)} "
                "stay as they are, since they feed other sites, an operator or the "
                "readout, too"
            )
        if len(shared_paths) == len(fit.weights):
            return fit
        free = tuple(path not in view.shared for path in fit.weights)
        current, sources = view.feed()
        activation = view.activation
        # The paper's ClipFloor has neither a bias nor a charge.
        zero = np.zeros((), np.float32)
        neurons = fit.neurons._replace(bias=zero, initial_potential=zero)
        weights = tuple(fit.weights.values())
        state = _ADAM.init(weights)
        size = min(batch, view.count)
        rows_of_steps = _shuffled(seed, view.count, size, iterations)
        for rate, rows in zip(rates, rows_of_steps, strict=True):
            weights, state = _adam_step(
                weights,
                state,
                rate,
                neurons,
                activation,
                sources,
                rows,
                current_of=current,
                free=free,
                channel=view.site.channel,
                dynamics=view.dynamics,
            )
        fitted_weights = dict(fit.weights)
        for path, weight in zip(fit.weights, weights, strict=True):
            if path not in view.shared:
                fitted_weights[path] = weight
        return fit._replace(weights=fitted_weights)

    return calibrate


_ADAM = optax.scale_by_adam()


@functools.partial(
    jax.jit, static_argnames=("current_of", "free", "channel", "dynamics")
)
def _adam_step(
    weights: tuple[jax.Array, ...],
    state: Any,
    rate: jax.Array,
    neurons: NeuronParams,
    activation: jax.Array,
    sources: Any,
    rows: jax.Array,
    *,
    current_of: Callable,
    free: tuple[bool, ...],
    channel: int,
    dynamics: Dynamics,
) -> tuple[Any, Any]:
    """The weights and Adam's state after a step.

    Args:
        weights: W, in the order of ``Fit.weights``.
        state: of Adam.
        rate: learning rate of the step, [].
        neurons: parameters of the ClipFloor.
        activation: a of all N images, [N, ...].
        sources: of all images, see `View.feed`.
        rows: numbers of the B images of the step, [B].
        current_of: (weights, sources, rows) -> mean current [B, ...], see `View.feed`.
        free: for each weight whether it may change.
        channel: axis of the channels, from the end.
        dynamics: of the site.
    """
    target = activation[rows]  # [B, ...]

    def loss(weights):
        current = current_of(weights, sources, rows)
        output = dynamics.closed_form(neurons, current)
        dtype = promoted(target, output)
        error = target.astype(dtype) - output.astype(dtype)
        return (error**2).sum(channel).mean()

    gradient = jax.grad(loss)(weights)
    update: Any
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        update, state = _ADAM.update(gradient, state)
    results = []
    for direction, weight, is_free in zip(update, weights, free, strict=True):
        if is_free:
            # The product of the rate and a direction of bfloat16 is rounded once.
            step = -rate * wide(direction)
            weight = weight + step.astype(weight.dtype)
        results.append(weight)
    return tuple(results), state


def _shuffled(
    seed: int, images: int, size: int, iterations: int
) -> Iterator[np.ndarray]:
    """The numbers of the images of each step, [size], in a random order.

    All images come once before one comes again, but for those that do not fill a step.

    Args:
        seed: of the random order.
        images: how many there are.
        size: images of a step.
        iterations: number of steps.
    """
    generator = np.random.default_rng(seed)
    steps_per_epoch = images // size
    remaining = iterations
    while remaining > 0:
        order = generator.permutation(images)[: steps_per_epoch * size]
        yield from order.reshape(steps_per_epoch, size)[:remaining]
        remaining -= steps_per_epoch
