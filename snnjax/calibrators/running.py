"""How the neurons of a site run, for one micro-batch: their output, and its spikes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import (
    by_numpy_or_xla,
    lead,
    namespace,
    over_time,
    subtract_offset,
    wide,
)
from snnjax._programs import jit
from snnjax.codes import Code
from snnjax.neurons.models import IntegrateAndFire, NeuronParams
from snnjax.neurons.schedule import schedule
from snnjax.neurons.spike_trains import SpikeTrain, numbers_of, result_of
from snnjax.neurons.unroll import (
    after_all_input,
    spike_train,
)
from snnjax.neurons.unroll import closed_form as mean_by_closed_form
from snnjax.neurons.unroll import mean_and_pace as mean_and_pace_by_steps


class Dynamics(NamedTuple):
    """How the neurons of a site run; hashable, a static argument of ``jit``.

    Attributes:
        model: of the neurons.
        steps: T.
        wait: steps that every layer waits.
        code: what a spike is worth at each step.
        ndim: number of axes of the site.
        needs_time: whether a site of the network decides before it has all of its
            input, or is one to whose neurons the order matters.
    """

    model: IntegrateAndFire
    steps: int
    wait: int
    code: Code
    ndim: int
    needs_time: bool

    def mean_and_pace(
        self, neurons: NeuronParams, current: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean output and pace of a current, [B, ...] each.

        The pace is 2 / (T (T + 1)) sum_t (s(1) + .. + s(t)): that of early spikes is
        above their mean, that of late ones below. Where layers wait for all of their
        input, only sums over time count, and the mean stands for the pace.

        Args:
            neurons: their parameters.
            current: decoded values, or under rate coding what arrives, without the
                bias: [T, B, ...]. [B, ...] if it is the same at every step, or if only
                its mean counts.
        """
        if not self.needs_time:
            mean = self.closed_form(neurons, current)
            return mean, mean
        return mean_and_pace_by_steps(
            self.model,
            neurons,
            self.arriving(current),
            wait=self.wait,
            code=self.code,
        )

    def closed_form(self, neurons: NeuronParams, current: jax.Array) -> jax.Array:
        """The mean output of neurons that have all of their input."""
        return mean_by_closed_form(
            self.model,
            neurons,
            current,
            self.steps,
            code=self.code,
        )

    def arriving(self, current: jax.Array) -> jax.Array:
        """What arrives at each step, [T, B, ...]."""
        return self.code.arriving(over_time(current, self.steps, self.ndim))


class Fired(NamedTuple):
    """What a site sends for a micro-batch.

    Attributes:
        output: a `SpikeTrain`, or the mean output of neurons that have all of their
            input, [B, ...]; later stages read it.
        digits: how many spikes each neuron has sent, [B, ...]; None: that follows from
            the output.
    """

    output: Any
    digits: Any = None


@functools.partial(jit, static_argnums=0)
def fire(dynamics: Dynamics, neurons: NeuronParams, current: jax.Array) -> Fired:
    """Run neurons on a current.

    Corrections and later stages call it with the same arguments: one program for both.

    Args:
        dynamics: of the site.
        neurons: their parameters.
        current: as for `Dynamics.mean_and_pace`.
    """
    model, steps, code = dynamics.model, dynamics.steps, dynamics.code
    if dynamics.needs_time:
        arriving = dynamics.arriving(current)
        train = spike_train(model, neurons, arriving, wait=dynamics.wait, code=code)
        return Fired(train)
    output = dynamics.closed_form(neurons, current)
    if schedule(code, model, steps) is None:  # all spikes are alike
        return Fired(output)
    if neurons.offset is not None:
        # An offset is no spike: digits are those of a neuron without one.
        bias = neurons.bias - neurons.offset
        neurons = neurons._replace(bias=bias, offset=None)
    # In the type that the closed form takes, so that XLA finds the digits once.
    spikes = after_all_input(model, neurons, wide(current), steps, code=code)
    digits = (spikes != 0).astype(jnp.uint8).sum(0)
    return Fired(output, digits)


@functools.partial(by_numpy_or_xla, static=2)
def answer(steps: int, code: Code, output: Any) -> Any:
    """A value that is in time, after T steps: [B, ...].

    Args:
        steps: T.
        code: what a spike is worth at each step.
        output: a `SpikeTrain`, or decoded values [T, B, ...].
    """
    if isinstance(output, SpikeTrain):
        return result_of(output, steps)
    return code.result(output)


@functools.partial(by_numpy_or_xla, static=1)
def number_of_spikes(dynamics: Dynamics, neurons: NeuronParams, fired: Fired) -> Any:
    """How many spikes a site has sent for each image, [B]."""
    if fired.digits is not None:
        counts = fired.digits
    elif isinstance(fired.output, SpikeTrain):
        counts = numbers_of(fired.output, dynamics.steps)
    else:
        counts = _fewest_spikes(dynamics, neurons, fired.output)
    by_image = counts.reshape(len(counts), -1)
    return by_image.sum(1, dtype=np.float32)


def _fewest_spikes(dynamics: Dynamics, neurons: NeuronParams, output: Any) -> Any:
    """How many of the largest spikes give a mean output of rate coding, [B, ...]."""
    sent = subtract_offset(output, neurons.offset).astype(np.float32)
    largest = dynamics.model.levels[1] / dynamics.steps
    spike = lead(neurons.threshold, sent.ndim) * largest
    # A sum of spikes is a whole number of them, up to its rounding.
    xp = namespace(sent)
    return xp.ceil(abs(sent) / spike - 1e-3)
