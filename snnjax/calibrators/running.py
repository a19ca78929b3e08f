"""How the neurons of a site run, for one micro-batch: their output, and its spikes.

A micro-batch has B images. [...] is the shape of a site, so values of its neurons are
[B, ...], and with an axis of time [T, B, ...].
"""

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
from snnjax.neurons.unroll import after_all_input, spike_train
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
        needs_time: whether the order of the input matters at some site of the network,
            since its neurons fire before all of it is there, or have a lower bound.
            Otherwise the mean of the input over time is all that is needed.
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
        """Mean output and pace of neurons, [B, ...] each.

            mean = 1/T sum_t s(t),    pace = 2 / (T (T + 1)) sum_t (s(1) + .. + s(t))

        s(t) is the output of step t. The pace is above the mean if spikes come early,
        and below it if they come late. Where layers wait for all of their input, the
        order counts nowhere, and the mean stands for the pace.

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
        """The mean output over T steps of neurons that know all of their input.

        Args:
            neurons: their parameters.
            current: mean of the input over T steps, without the bias, [B, ...].

        Returns:
            [B, ...].
        """
        return mean_by_closed_form(
            self.model,
            neurons,
            current,
            self.steps,
            code=self.code,
        )

    def arriving(self, current: jax.Array) -> jax.Array:
        """What arrives at each step, [T, B, ...], of a current of `mean_and_pace`."""
        return self.code.arriving(over_time(current, self.steps, self.ndim))


class Fired(NamedTuple):
    """What a site sends for a micro-batch; later stages read its output.

    Attributes:
        output: a `SpikeTrain` of T steps; or, if no site needs time, the mean output
            over T steps, [B, ...].
        spike_counts: how many spikes each neuron has sent, uint8 [B, ...]; None: that
            follows from the output.
    """

    output: Any
    spike_counts: Any = None


@functools.partial(jit, static_argnums=0)
def fire(dynamics: Dynamics, neurons: NeuronParams, current: jax.Array) -> Fired:
    """Run the neurons of a site on a current.

    Corrections and later stages both need this, and share one compiled program.

    Args:
        dynamics: of the site.
        neurons: their parameters.
        current: as for `Dynamics.mean_and_pace`.
    """
    model, steps, code = dynamics.model, dynamics.steps, dynamics.code
    if dynamics.needs_time:
        arriving = dynamics.arriving(current)
        train = spike_train(model, neurons, arriving, wait=dynamics.wait, code=code)
        return Fired(output=train)
    output = dynamics.closed_form(neurons, current)
    if schedule(code, model, steps) is None:
        # All spikes are worth the same, so the mean output says how many they are.
        return Fired(output=output)
    if neurons.offset is not None:
        # A neuron subtracts its offset from the input and adds it to the output, where
        # it is no spike. Without the addition, what is not 0 is a spike.
        bias = neurons.bias - neurons.offset
        neurons = neurons._replace(bias=bias, offset=None)
    # Spikes are worth more or less by their steps, so they are counted. The closed form
    # has computed them too, of a `wide` current. XLA computes equal operations once if
    # the current here has the same type.
    spikes = after_all_input(model, neurons, wide(current), steps, code=code)
    spike_counts = (spikes != 0).astype(jnp.uint8).sum(0)
    return Fired(output, spike_counts)


@functools.partial(by_numpy_or_xla, static=2)
def answer(steps: int, code: Code, output: Any) -> Any:
    """The value of a variable after T steps, [B, ...].

    Args:
        steps: T.
        code: what a spike is worth at each step.
        output: the variable in time: a `SpikeTrain`, or decoded values [T, B, ...].
    """
    if isinstance(output, SpikeTrain):
        return result_of(output, steps)
    return code.result(output)


@functools.partial(by_numpy_or_xla, static=1)
def number_of_spikes(dynamics: Dynamics, neurons: NeuronParams, fired: Fired) -> Any:
    """How many spikes a site has sent for each image, [B], float32."""
    if fired.spike_counts is not None:
        counts = fired.spike_counts
    elif isinstance(fired.output, SpikeTrain):
        counts = numbers_of(fired.output, dynamics.steps)
    else:
        counts = _fewest_spikes(dynamics, neurons, fired.output)
    by_image = counts.reshape(len(counts), -1)
    return by_image.sum(1, dtype=np.float32)


def _fewest_spikes(dynamics: Dynamics, neurons: NeuronParams, output: Any) -> Any:
    """The fewest spikes whose mean over T steps is the output, [B, ...].

    It is for codes under which all spikes are worth the same.

    Args:
        dynamics: of the site.
        neurons: their parameters.
        output: mean output, [B, ...].
    """
    sent = subtract_offset(output, neurons.offset).astype(np.float32)
    # The mean output of a neuron that sends one spike of the highest level.
    largest_level = dynamics.model.levels[1] / dynamics.steps
    largest_spike = lead(neurons.threshold, sent.ndim) * largest_level
    xp = namespace(sent)
    # A quotient that is a whole number but for rounding is not rounded up.
    return xp.ceil(abs(sent) / largest_spike - 1e-3)
