"""Weight calibration: the kernels that feed a site, fitted by gradient descent.

The gradient of the floor is taken as 1. Source: Li, Deng, Dong, Gong and Gu, ICML 2021.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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

    s(W) is the paper's ClipFloor of the mean current, biases of the network included:
    the output of a neuron that has the site's threshold, but neither the bias of the
    shift nor v(0). With `least_squares_weights` no descent is needed.

    Args:
        iterations: Adam steps per site, cosine schedule to zero.
        learning_rate: at first.
        batch: images per step; at most the number of calibration images is used.
        seed: of the order of the images.

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
    rates = np.asarray(schedule(jnp.arange(iterations, dtype=jnp.float32)))

    def calibrate(view: View, fit: Fit) -> Fit:
        shared_paths = [path for path in fit.weights if path in view.shared]
        if shared_paths:  # calibrating them would undo the fit of others
            warn(
                f"at site {view.site.name!r} the weights {', '.join(shared_paths)} "
                "stay as they are, since they feed other sites, an operator or the "
                "readout, too"
            )
        if len(shared_paths) == len(fit.weights):
            return fit
        current, sources = view.feed()
        original, zero = tuple(fit.weights.values()), jnp.zeros(())
        plain = fit.neurons._replace(bias=zero, initial_potential=zero)
        activation, neurons, start = view.activation, plain, original
        step = functools.partial(
            _weight_step,
            current_of=current,
            free=tuple(path not in shared_paths for path in fit.weights),
            channel=view.site.channel,
            dynamics=view.dynamics,
        )
        weights, state = start, _ADAM.init(start)
        size = min(batch, view.count)
        for i, rows in enumerate(_shuffled(seed, view.count, size, iterations)):
            data = activation, sources, rows
            weights, state = step(weights, state, rates[i], neurons, data)
        pairs = zip(fit.weights, weights, strict=True)
        fitted_weights = {path: w for path, w in pairs if path not in shared_paths}
        return fit._replace(weights=fit.weights | fitted_weights)

    return calibrate


_ADAM = optax.scale_by_adam()


@functools.partial(
    jax.jit, static_argnames=("current_of", "free", "channel", "dynamics")
)
def _weight_step(
    weights: tuple[jax.Array, ...],
    state: Any,
    rate: jax.Array,
    neurons: NeuronParams,
    data: tuple[Any, ...],
    *,
    current_of: Callable,
    free: tuple[bool, ...],
    channel: int,
    dynamics: Dynamics,
) -> tuple[Any, Any]:
    """One Adam step.

    Args:
        data: activations and sources of all images, and the rows of this step.
        current_of: (weights, sources, rows) -> mean current, see `View.feed`.
        free: which of the weights may change.
        channel: axis of the channels, from the end.
    """
    activation, sources, rows = data
    target = activation[rows]

    def loss(weights):
        output = dynamics.closed_form(neurons, current_of(weights, sources, rows))
        dtype = promoted(target, output)
        error = target.astype(dtype) - output.astype(dtype)
        return (error**2).sum(channel).mean()

    update: Any
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        update, state = _ADAM.update(jax.grad(loss)(weights), state)
    step = [
        (-rate * wide(u)).astype(w.dtype) if may_change else jnp.zeros_like(w)
        for u, w, may_change in zip(update, weights, free, strict=True)
    ]
    return optax.apply_updates(weights, tuple(step)), state


def _shuffled(seed: int, images: int, size: int, iterations: int):
    """``iterations`` index arrays of ``size``, epoch after epoch in random order."""
    generator = np.random.default_rng(seed)
    per_epoch = images // size
    epochs = -(-iterations // per_epoch)
    for epoch in range(epochs):
        order = generator.permutation(images)[: per_epoch * size]
        yield from order.reshape(per_epoch, size)[: iterations - epoch * per_epoch]
