"""A code as a schedule: what the neurons of a site do at each of the T steps.

    V_t = T w_t V_th                                    threshold, and size of a spike
    d   = v - V_T / 2                                   what is missing
    k   = clip(floor((d + V_t / 2) / V_t), low, high)   the nearest level, if low < 0
    k   = clip(floor((d + V_T / 2) / V_t), 0, high)     if nothing can be taken back
    k   = 0  where |d| < z_t V_t                        dead zone
    k  >= -N_t                                          a ReLU takes back what it sent

w_t are the weights of the code, and V_T is V_t at the last step T. z_t is the
``dead_zone`` of the neuron, and at step T its ``last_zone``. N_t is what it has sent in
units of V_t. v(0) = V_T / 2, which `half_charge` sets, rounds to the nearest value.
With rate coding and binary spikes k is clip(floor(v / V_th), 0, 1).

A constant is a bias minus an offset: a current that does not change. A code says at
which steps it arrives, and how many times.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import like
from snnjax.codes import Code
from snnjax.neurons.models import NeuronState
from snnjax.neurons.protocol import Step, chain, drive, fire


class Tick(NamedTuple):
    """What is different at a step: numbers, or before a scan arrays of T of them.

    Attributes:
        size: T w_t, what a spike of level 1 is worth, over V_th.
        previous_size: the size of the step before this one.
        finest: T w_T, the size of the last step T.
        arrivals: how many times a constant arrives, see `arrivals`.
        zone: z_t; 0 where it is at most 1/2, since that changes nothing.
        tie: what decides a tie, over V_th, see `tie_margin`; None: nothing has to.
    """

    size: Any
    previous_size: Any
    finest: Any
    arrivals: Any
    zone: Any
    tie: Any


def schedule(code: Code, neuron: Any, steps: int) -> Tick | None:
    """The ticks of all T steps of a model; None if all steps are alike."""
    zones = dead_zones(neuron, steps)
    sizes = code.sizes(steps)  # T w_t, [T]
    arrival_counts = arrivals(code, steps)
    tie = tie_margin(sizes)
    if arrival_counts is None and (sizes == 1).all() and not zones.any():
        return None
    return Tick(
        size=sizes,
        # Nothing is sent before step 1, so any size will do there.
        previous_size=np.append(sizes[:1], sizes[:-1]),
        finest=np.full(steps, sizes[-1]),
        arrivals=arrival_counts,
        zone=zones,
        tie=np.full(steps, tie) if tie else None,
    )


def tie_margin(sizes: np.ndarray) -> float:
    """What decides a tie, over V_th: a potential that is lower by it counts as a tie.

    XLA may compute a step once for its spikes and again for its state. A product with a
    size that is no power of 2 is rounded differently in the two, so that a tie would be
    a spike in one of them and none in the other. The margin is above that rounding, and
    small beside the size of the last spike.

    Args:
        sizes: T w_t, [T].

    >>> import numpy as np
    >>> tie_margin(np.array([4, 2, 1])), tie_margin(np.array([9.0, 3, 1]))
    (0.0, 9e-06)
    """
    fractions, _ = np.frexp(sizes)
    if (fractions == 0.5).all():
        return 0.0
    return float(min(TIES * sizes.max(), sizes.min() / 16))


def arrivals(code: Code, steps: int) -> np.ndarray | None:
    """How many times a constant, a bias or an offset, arrives at each step, [T].

    None if it arrives once at every step, as with rate coding. Otherwise T times at the
    first step, so that the first digit, the largest, is decided on all of it.
    """
    constant_steps = code.constant_steps(steps)
    if constant_steps == steps:
        return None
    counts = np.zeros(steps, np.float32)
    counts[:constant_steps] = steps / constant_steps
    return counts


def drive_at(params: Any, current: jax.Array, arrivals: Any) -> jax.Array:
    """The current with the constant, as often as it arrives.

    Args:
        params: have the ``bias`` and the ``offset``.
        current: of one step, [B, ...], or of several, [T, B, ...].
        arrivals: how often, see the function of this name: a number, or [T] for
            several steps; None: once at every step.
    """
    if arrivals is None:
        return drive(params, current)
    nothing = jnp.zeros((1,) * current.ndim, current.dtype)
    constant = drive(params, nothing)
    counts = jnp.asarray(arrivals, constant.dtype)
    # A number or [T], with as many axes as the current: [T, 1, ...].
    trailing_axes = [1] * (constant.ndim - counts.ndim)
    counts = counts.reshape(*counts.shape, *trailing_axes)
    return current.astype(constant.dtype) + counts * constant


def fire_at(neuron: Any, params: Any, state: Any, tick: Tick | None) -> Step:
    """Fire with the threshold of this step; without a tick, by the model's own `fire`.

    The model's own `fire` gives floor(v / V_th), clipped to its levels. It is called
    with V_t for V_th and v + `_lift` for v, which makes this floor the level k of the
    header. The lift is subtracted after the reset. The surrogate's derivative is that
    of the level, and within the dead zone that of the level 0 at d = 0.

    Args:
        neuron, params: an IF or LIF model and its parameters.
        state: after the current of this step, arrays [B, ...].
        tick: of this step; None: all steps are alike.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> from snnjax.neurons import NeuronState
    >>> neuron, code = snnjax.integrate_and_fire(), snnjax.codes.radix()
    >>> second = jax.tree.map(lambda leaf: leaf[1], schedule(code, neuron, 4))
    >>> state = NeuronState(jnp.array([1.5, 2.5]))
    >>> state, spikes = fire_at(neuron, neuron.init(), state, second)  # V_2 = 2 V_th
    >>> print(spikes, state.potential)
    [0. 2.] [1.5 0.5]
    """
    if tick is None:
        return fire(neuron, params, state)
    v = state.potential
    lift = _lift(neuron, params, v, tick)
    takes_back = state.total is not None
    whole_sent = fraction_sent = None  # parts of N_t
    if takes_back:
        # The total of the state is in spikes of the step before. A spike of size 4 that
        # was sent there allows to take back two of size 2. Where sizes grow, a fraction
        # of a spike is left, which waits until it is a whole one.
        sent = state.total * like(tick.previous_size, v) / like(tick.size, v)  # N_t
        whole_sent = jnp.floor(sent + ROUNDING)
        fraction_sent = sent - whole_sent
    threshold = jnp.asarray(tick.size, params.threshold.dtype) * params.threshold
    # An offset is no spike: it is added below, as often as a constant arrives.
    step_params = params._replace(threshold=threshold, offset=None)
    lifted_state = NeuronState(v + lift, whole_sent)
    fired, spikes = fire(neuron, step_params, lifted_state)
    total = fired.total + fraction_sent if takes_back else None
    if params.offset is not None:
        offset = like(params.offset, spikes)
        if tick.arrivals is not None:
            offset = like(tick.arrivals, v) * offset
        spikes += offset
    return NeuronState(fired.potential - lift, total), spikes


def _lift(neuron: Any, params: Any, v: jax.Array, tick: Tick) -> jax.Array:
    """What is added to v, so that the floor of v / V_t is the schedule's level.

    It has the shape and unit of v, and is the sum of a margin against rounding, which
    `WholeNumbers` have and other neurons where `tie_margin` is not 0, and of

        (V_t - V_T) / 2    if low < 0: v + lift = d + V_t / 2, so the floor rounds d
        -d                 in the dead zone: v + lift = V_t / 2, so the floor is 0. If
                           low = 0, step T alone has a zone, and V_t is V_T

    Args:
        neuron, params: an IF or LIF model and its parameters.
        v: the potential, [B, ...].
        tick: of this step.
    """
    models = chain(neuron)
    model = models[-1]  # the IF neuron inside wrappers
    margin = max(getattr(wrapper, "margin", 0.0) for wrapper in models)
    threshold = like(params.threshold, v)
    lift = jnp.full_like(v, margin)
    if tick.tie is not None and not margin:
        lift += like(tick.tie, v) * threshold
    if model.levels[0] < 0:
        lift += like(tick.size - tick.finest, v) / 2 * threshold  # (V_t - V_T) / 2
    if model.has_zones:
        missing = v - like(tick.finest, v) / 2 * threshold  # d = v - V_T / 2
        # A little less than z_t, so that a neuron fires where z_t V_t is missing.
        zone = like(tick.zone * (1 - TIES), v)
        is_silent = jnp.abs(missing) < zone * like(tick.size, v) * threshold  # z_t V_t
        # The derivative of v + lift stays 1, and not 0 as that of v - d.
        lift -= jnp.where(is_silent, jax.lax.stop_gradient(missing), 0)
    return lift


ROUNDING = 1e-3  # What was sent may be a whole number of spikes but for rounding.
TIES = 1e-6  # Where exactly z V_t is missing, the neuron fires, also after rounding.


def dead_zones(neuron: Any, steps: int) -> np.ndarray:
    """z_1 .. z_T, the last zone included; 0 instead of 1/2 or less, which is the same.

    >>> import snnjax
    >>> print(dead_zones(snnjax.integrate_and_fire(last_zone=0.75), 3))
    [0.   0.   0.75]
    """
    model = chain(neuron)[-1]
    zones = np.full(steps, getattr(model, "dead_zone", 0.0))
    zones[-1] = getattr(model, "last_zone", 0.0)
    return np.where(zones > 1 / 2, zones, 0.0)
