"""Calibrators and recipes: how a site's threshold, bias and potential are fitted.

The mathematics comes first, as functions of arrays: ``activation`` a [N, ..., C] of
the ANN, ``output`` s the mean output of the spiking neuron for the same N images.
Then the calibrators, which apply it to a site, and the recipes, which chain them.
Sources: Deng and Gu, ICLR 2021 (bias shift); Li, Deng, Dong, Gong and Gu, ICML 2021
(least-squares threshold, bias, potential and weight calibration).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from snnjax.network import Site
from snnjax.neurons import NeuronParams, closed_form, integrate_and_fire, unroll
from snnjax.surrogate import Surrogate, dspike

# ------------------------------------------------------------ the mathematics


def maximum(activation: jax.Array, per: str = "layer", channel: int = -1) -> jax.Array:
    """max a over the images: the classical threshold ("threshold balancing").

    Args:
        activation: ANN activations [N, ...], >= 0.
        per: "layer" gives a scalar, "channel" [C] (or [C, 1, 1] if two axes follow).
        channel: axis that counts channels, from the end.

    A channel that is never active takes the layer's maximum, and a layer that is
    never active takes 1: a threshold must be positive.

    >>> import jax.numpy as jnp
    >>> print(maximum(jnp.array([[1.0, 0.0], [2.0, 0.0]]), "channel"))
    [2. 2.]
    """
    activation = activation.astype(jnp.float32)
    layer = activation.max()
    layer = jnp.where(layer > 0, layer, 1)
    if per == "layer":
        return layer
    each = _over_all_but(channel, jnp.max, activation)
    return jnp.where(each > 0, each, layer)


def quantile(
    activation: jax.Array, p: float, per: str = "layer", channel: int = -1
) -> jax.Array:
    """The p-th percentile of the activations; where it is 0, their `maximum`.

    Args:
        activation: ANN activations [N, ...], >= 0.
        p: 0 < p <= 100, in percent.
        per, channel: as for `maximum`.
    """
    activation = activation.astype(jnp.float32)
    if per == "layer":
        value = jnp.percentile(activation, p)
    else:
        percentile = functools.partial(jnp.percentile, q=p)
        value = _over_all_but(channel, percentile, activation)
    return jnp.where(value > 0, value, maximum(activation, per, channel))


def least_squares(
    activation: jax.Array,
    steps: int,
    per: str = "layer",
    objective: str = "floor",
    channel: int = -1,
) -> jax.Array:
    """The threshold whose ClipFloor is nearest to the activations.

        argmin_V  sum (ClipFloor(a; T, V) - a)^2
        ClipFloor(a; T, V) = (V / T) floor(clip(a T / V, 0, T))

    searched over V = max(a) (1 - i / 100) for i = 0 .. 94, the largest of equals.

    Args:
        activation: ANN activations [N, ...], >= 0.
        steps: T.
        per, channel: as for `maximum`.
        objective: "floor" is the paper's; "round" adds 1/2 inside the floor, as the
            neuron does after the bias shift.

    >>> import jax.numpy as jnp
    >>> a = jnp.array([[0.1], [0.2], [0.3], [5.0]])
    >>> print(least_squares(a, 1000), least_squares(a, 1, objective="round"))
    5.0 5.0
    """
    activation = activation.astype(jnp.float32)
    half = {"floor": 0.0, "round": 0.5}[objective]
    channels = 1 if per == "layer" else activation.shape[channel]
    top = maximum(activation, per, channel)
    fractions = jnp.asarray(1 - 0.01 * np.arange(95), activation.dtype)
    thresholds = jnp.reshape(top, -1) * fractions[:, None]  # [95, channels]
    blocks = _blocks(jnp.moveaxis(activation, channel, -1).reshape(-1, channels))
    # One threshold per number of a block, or one for all.
    repeats = 1 if channels == 1 else blocks.shape[1] // channels
    tiled = jnp.tile(thresholds, (1, repeats))

    def add_errors(total, block):
        count = jnp.minimum(jnp.floor(block * steps / tiled + half), steps)
        error = (count * tiled / steps - block) ** 2
        return total + error.reshape(len(error), -1, channels).sum(1), None

    errors, _ = jax.lax.scan(add_errors, jnp.zeros_like(thresholds), blocks)
    best = jnp.argmin(errors, axis=0)
    return (jnp.reshape(top, -1) * fractions[best]).reshape(top.shape)


def _blocks(rows: jax.Array, size: int = 2048) -> jax.Array:
    """[n, C] as blocks of whole rows, near ``size`` numbers each, filled with zeros.

    All candidates meet a block while it is in the cache: five times faster on CPU
    than a pass over all activations for each. Zeros add no error.
    """
    per_block = max(1, size // rows.shape[1])
    rows = jnp.pad(rows, ((0, -rows.shape[0] % per_block), (0, 0)))
    return rows.reshape(-1, per_block * rows.shape[1])


def shift(threshold: jax.Array, steps: int) -> jax.Array:
    """V_th / (2T), the bias that makes the expected flooring error zero.

    Assumes activations uniform within each of the T levels. Source: Deng and Gu.
    """
    return threshold / (2 * steps)


def bias_correction(
    activation: jax.Array, output: jax.Array, channel: int = -1
) -> jax.Array:
    """Mean of a - s over images and positions, [C]: what each channel lacks."""
    error = activation.astype(jnp.float32) - output
    return _over_all_but(channel, jnp.mean, error)


def potential_correction(
    activation: jax.Array, output: jax.Array, steps: int
) -> jax.Array:
    """T times the mean of a - s over images, [...]: the charge each neuron lacks."""
    return steps * (activation.astype(jnp.float32) - output).mean(0)


def squared_error(
    activation: jax.Array, output: jax.Array, channel: int = -1
) -> jax.Array:
    """Mean of (a - s)^2 over images and positions, [C]."""
    error = activation.astype(jnp.float32) - output
    return _over_all_but(channel, jnp.mean, error**2)


def postpone(neuron: NeuronParams, charge: jax.Array, steps: int) -> NeuronParams:
    """The same charge by the last step, but later.

        v(0) <- v(0) - c V_th,   bias <- bias + c V_th / T

    Args:
        neuron: parameters of a site.
        charge: c, scalar or [C], in thresholds.
        steps: T.

    >>> from snnjax.neurons import integrate_and_fire
    >>> later = postpone(integrate_and_fire().params(), 1.0, steps=4)
    >>> print(later.initial_potential, later.bias)
    -1.0 0.25
    """
    moved = charge * neuron.threshold
    return neuron._replace(
        initial_potential=neuron.initial_potential - moved,
        bias=neuron.bias + moved / steps,
    )


def scale(neuron: NeuronParams, factor: jax.Array) -> NeuronParams:
    """Threshold, bias and v(0) times a factor, scalar or [C]: larger spikes, fewer."""
    return neuron._replace(
        threshold=factor * neuron.threshold,
        bias=factor * neuron.bias,
        initial_potential=factor * neuron.initial_potential,
    )


def _over_all_but(channel: int, reduce: Callable, x: jax.Array) -> jax.Array:
    """Reduce all other axes: [C], with ones for the axes that follow it."""
    axes = tuple(a for a in range(x.ndim) if a != x.ndim + channel)
    return reduce(x, axis=axes, keepdims=True).reshape(
        x.shape[channel], *[1] * (-channel - 1)
    )


# --------------------------------------------------- a site, seen by a calibrator


class Fit(NamedTuple):
    """What calibrators change at a site.

    Attributes:
        neuron: its `NeuronParams`.
        weights: path -> array, the kernels (two axes or more) that feed it.
    """

    neuron: NeuronParams
    weights: dict[str, jax.Array]


class View(NamedTuple):
    """What calibrators see of a site, for all calibration images at once.

    Attributes:
        site: name, shape, parameters.
        steps: T.
        delay: that the SNN is fitted to.
        activation: of the ANN, [N, ...].
        output: fit -> mean output [N, ...] of the spiking site over T steps, from
            the spikes that the calibrated layers below really send.
        feed: (batch, time) -> (current, sources): ``current(weights, sources, rows)``
            is the current into the site for these images, a hashable pure function
            that is differentiable in the weights; [B, ...], the mean over T steps,
            or with time=True [T, B, ...].
    """

    site: Site
    steps: int
    delay: int
    activation: jax.Array
    output: Callable[[Fit], jax.Array]
    feed: Callable[..., tuple[Callable, Any]]


Calibrator = Callable[[View, Fit], Fit]


class Recipe(NamedTuple):
    """Calibrators for every site, in one or more sweeps through the network.

    Attributes:
        sweeps: each a chain of calibrators, carried out site by site.
        correct_readout: add the mean error of the outputs to the outputs at last.
    """

    sweeps: tuple[tuple[Calibrator, ...], ...]
    correct_readout: bool = False


# ---------------------------------------------------------------- calibrators


def max_threshold(per: str = "layer") -> Calibrator:
    """V_th = `maximum` of the activations."""
    _check_per(per)
    return _threshold(lambda view: _maximum(view.activation, per, view.site.channel))


def percentile_threshold(p: float, per: str = "layer") -> Calibrator:
    """V_th = `quantile` of the activations."""
    _check_per(per)
    if not 0 < p <= 100:
        raise ValueError(f"p is {p}; allowed: 0 < p <= 100, in percent")
    return _threshold(
        lambda view: _quantile(view.activation, p, per, view.site.channel)
    )


def least_squares_threshold(per: str = "layer", objective: str = "floor") -> Calibrator:
    """V_th = `least_squares` fit to the activations."""
    _check_per(per)
    if objective not in ("floor", "round"):
        raise ValueError(f"objective is {objective!r}; allowed: 'floor', 'round'")
    return _threshold(
        lambda view: _least_squares(
            view.activation, view.steps, per, objective, view.site.channel
        )
    )


def shift_bias() -> Calibrator:
    """bias += V_th / (2T)."""

    def calibrate(view: View, fit: Fit) -> Fit:
        neuron = fit.neuron
        bias = neuron.bias + shift(neuron.threshold, view.steps)
        return fit._replace(neuron=neuron._replace(bias=bias))

    return calibrate


def half_charge() -> Calibrator:
    """v(0) = V_th / 2: the bias shift's charge, all of it before the first step."""

    def calibrate(view: View, fit: Fit) -> Fit:
        del view
        half = fit.neuron.threshold / 2
        return fit._replace(neuron=fit.neuron._replace(initial_potential=half))

    return calibrate


def correct_bias(repeats: int = 1) -> Calibrator:
    """bias += `bias_correction`, measured anew before each of ``repeats`` rounds."""
    _check_positive("repeats", repeats)

    def calibrate(view: View, fit: Fit) -> Fit:
        for _ in range(repeats):
            error = _bias_correction(
                view.activation, view.output(fit), view.site.channel
            )
            bias = fit.neuron.bias + error
            fit = fit._replace(neuron=fit.neuron._replace(bias=bias))
        return fit

    return calibrate


def correct_potential(repeats: int = 1, *, add: bool = False) -> Calibrator:
    """v(0) = `potential_correction`; with ``add``, v(0) += it.

    The paper sets v(0) once from zero. Later rounds always add.
    """
    _check_positive("repeats", repeats)

    def calibrate(view: View, fit: Fit) -> Fit:
        for i in range(repeats):
            error = _potential_correction(view.activation, view.output(fit), view.steps)
            start = fit.neuron.initial_potential if add or i else 0
            neuron = fit.neuron._replace(initial_potential=start + error)
            fit = fit._replace(neuron=neuron)
        return fit

    return calibrate


def postpone_charge(
    charges: Sequence[float] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4),
) -> Calibrator:
    """Give each channel its charge as late as serves its output best.

    A neuron that hears its input as it comes fires on evidence that later input takes
    back. Starting c thresholds lower, and getting them back evenly over the T steps,
    it waits for the rest. `postpone` by every candidate c, `bias_correction` of what
    that changes, and per channel the c of the smallest `squared_error` of the spikes.
    The answer at t < T suffers: until T a charge is owed.

    With delay T nothing is to be gained, since the order of the input does not count
    there: the fit comes back as it is. Source: ours.

    Args:
        charges: candidates c, in thresholds.
    """
    _check_numbers("charges", charges)

    def calibrate(view: View, fit: Fit) -> Fit:
        if view.delay == view.steps:
            return fit
        return _search(view, fit, charges, lambda n, c: postpone(n, c, view.steps))

    return calibrate


def scale_threshold(
    factors: Sequence[float] = (0.75, 0.9, 1, 1.15, 1.3, 1.5, 1.8),
) -> Calibrator:
    """`scale` each channel by the factor that serves its real spikes best.

    `least_squares` finds the threshold for input that arrives evenly. Here every
    candidate meets the spikes that do arrive, as in `postpone_charge`.

    Args:
        factors: candidates, > 0.
    """
    _check_numbers("factors", factors)
    for factor in factors:
        _check_positive("a factor", factor)
    return lambda view, fit: _search(view, fit, factors, scale)


def streaming_only(calibrator: Calibrator) -> Calibrator:
    """The calibrator where layers do not wait (delay 0); elsewhere nothing."""
    return lambda view, fit: fit if view.delay else calibrator(view, fit)


def _search(view: View, fit: Fit, candidates: Sequence[float], change) -> Fit:
    """Per channel ``change(neuron, candidate)`` whose spikes are nearest to a."""
    channel = view.site.channel

    def error(candidate: float) -> jax.Array:
        changed = fit._replace(neuron=change(fit.neuron, candidate))
        lacking = _bias_correction(view.activation, view.output(changed), channel)
        bias = changed.neuron.bias + lacking
        corrected = changed._replace(neuron=changed.neuron._replace(bias=bias))
        # One candidate at a time: dozens in flight would take memory, and on virtual
        # devices their collectives may wait for each other until XLA gives up.
        return jax.block_until_ready(
            _squared_error(view.activation, view.output(corrected), channel)
        )

    errors = jnp.stack([error(candidate) for candidate in candidates])
    nearest = jnp.asarray(candidates, jnp.float32)[errors.argmin(0)]
    return fit._replace(neuron=change(fit.neuron, nearest))


def calibrate_weights(
    objective: str = "floor",
    *,
    iterations: int = 5000,
    rate: float = 1e-5,
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
        rate: initial learning rate.
        batch: images per step; at most the number of calibration images is used.
        seed: of the order of the images.
        surrogate: spike function for "spikes".
    """
    if objective not in ("floor", "neuron", "spikes"):
        raise ValueError(
            f"objective is {objective!r}; allowed: 'floor', 'neuron', 'spikes'"
        )
    for name, number in (("iterations", iterations), ("rate", rate), ("batch", batch)):
        _check_positive(name, number)
    with jax.ensure_compile_time_eval():  # a recipe may be made inside jit
        schedule = optax.cosine_decay_schedule(rate, iterations)
        rates = np.asarray(schedule(jnp.arange(iterations)))

    def calibrate(view: View, fit: Fit) -> Fit:
        if not fit.weights:
            return fit
        images = view.activation.shape[0]
        size = min(batch, images)
        # Where each layer waits for all of its input, mean currents are exact.
        time = objective == "spikes" and view.delay < view.steps
        current, sources = view.feed(size, time)
        step = functools.partial(
            _weight_step,
            sources=sources,
            activation=view.activation,
            current=current,
            objective="neuron" if objective == "spikes" and not time else objective,
            steps=view.steps,
            delay=view.delay,
            surrogate=surrogate,
            neuron=fit.neuron,
        )
        weights = tuple(fit.weights.values())
        state = _ADAM.init(weights)
        for i, rows in enumerate(_shuffled(seed, images, size, iterations)):
            weights, state = step(weights, state, rows, rates[i])
        return fit._replace(weights=dict(zip(fit.weights, weights, strict=True)))

    return calibrate


_ADAM = optax.scale_by_adam()


@functools.partial(
    jax.jit, static_argnames=("current", "objective", "delay", "surrogate")
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
        return ((target - output) ** 2).sum(-1).mean()

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


def _threshold(find: Callable[[View], Any]) -> Calibrator:
    def calibrate(view: View, fit: Fit) -> Fit:
        return fit._replace(neuron=fit.neuron._replace(threshold=find(view)))

    return calibrate


def _check_per(per: str) -> None:
    if per not in ("layer", "channel"):
        raise ValueError(f"per is {per!r}; allowed: 'layer', 'channel'")


def _check_numbers(name: str, numbers: Sequence[float]) -> None:
    if not numbers or not np.isfinite(numbers).all():
        raise ValueError(f"{name} is {numbers}; allowed: one finite number or more")


def _check_positive(name: str, number: float) -> None:
    if not number > 0:
        raise ValueError(f"{name} is {number}; allowed: > 0")


_maximum = jax.jit(maximum, static_argnames=("per", "channel"))
_quantile = jax.jit(quantile, static_argnames=("p", "per", "channel"))
_least_squares = jax.jit(least_squares, static_argnames=("per", "objective", "channel"))
_bias_correction = jax.jit(bias_correction, static_argnames="channel")
_squared_error = jax.jit(squared_error, static_argnames="channel")
_potential_correction = jax.jit(potential_correction)


# -------------------------------------------------------------------- recipes


def max_activation(per: str = "layer") -> Recipe:
    """Threshold = maximum activation, nothing else (threshold balancing)."""
    return Recipe(((max_threshold(per),),))


def percentile(p: float = 99.9, per: str = "layer") -> Recipe:
    """Threshold = p-th percentile of the activations."""
    return Recipe(((percentile_threshold(p, per),),))


def bias_shift(per: str = "layer") -> Recipe:
    """Maximum activation, and the bias shift V_th / (2T) (ICLR 2021)."""
    return Recipe(((max_threshold(per), shift_bias()),))


def light(per: str = "layer", objective: str = "floor") -> Recipe:
    """Least-squares threshold, bias shift, bias correction (ICML 2021)."""
    threshold = least_squares_threshold(per, objective)
    return Recipe(((threshold, shift_bias(), correct_bias()),))


def advanced(
    per: str = "layer",
    objective: str = "floor",
    *,
    iterations: int = 5000,
    rate: float = 1e-5,
    seed: int = 0,
) -> Recipe:
    """Least-squares threshold, bias shift, weight calibration; then potentials.

    Two sweeps: all weights first, then potential correction (ICML 2021).
    """
    threshold = least_squares_threshold(per, objective)
    weights = calibrate_weights(iterations=iterations, rate=rate, seed=seed)
    return Recipe(((threshold, shift_bias(), weights), (correct_potential(),)))


def best() -> Recipe:
    """The strongest training-free composition that we know, in one sweep.

    Thresholds per channel for the rounding neuron; v(0) = V_th / 2, which rounds as
    the bias shift does but earlier; per channel, as much of its charge later as serves
    its spikes, and without delay a threshold for the spikes that really come and then
    perhaps more charge later; the mean error of each neuron, removed by its initial
    potential in three rounds; the mean error of the outputs, removed at last.
    """
    return Recipe(
        (
            (
                least_squares_threshold("channel", "round"),
                half_charge(),
                postpone_charge(),
                streaming_only(scale_threshold()),
                streaming_only(postpone_charge()),
                correct_potential(3, add=True),
            ),
        ),
        correct_readout=True,
    )
