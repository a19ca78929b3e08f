"""How the neurons of a site run, for one micro-batch: their output, and its spikes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import by_numpy_or_xla, lead, namespace, subtract_offset, wide
from snnjax._programs import jit
from snnjax.codes import Code
from snnjax.firing import over_time
from snnjax.neurons.models import IntegrateAndFire, NeuronParams
from snnjax.neurons.schedule import schedule
from snnjax.neurons.spike_trains import SpikeTrain, numbers_of, result_of
from snnjax.neurons.unroll import (
    after_all_input,
    closed_form,
    mean_and_pace,
    spike_train,
)


class Dynamics(NamedTuple):
    """How the neurons of a site run, which has ``ndim`` axes; hashable.

    ``needs_time`` says whether a site of the network decides before it has all of its
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
        """Mean output and pace, [B, ...], of a current as `View.currents` has it.

        Where layers wait for all of their input, the pace is the mean.
        """
        if not self.needs_time:
            mean = self.closed_form(neurons, current)
            return mean, mean
        run = {"wait": self.wait, "code": self.code}
        return mean_and_pace(self.model, neurons, self.arriving(current), **run)

    def closed_form(self, neurons: NeuronParams, current: jax.Array) -> jax.Array:
        """The mean output of neurons that have all of their input."""
        return closed_form(self.model, neurons, current, self.steps, code=self.code)

    def arriving(self, current: jax.Array) -> jax.Array:
        """What arrives at each step, [T, B, ...]."""
        return self.code.arriving(over_time(current, self.steps, self.ndim))


class Fired(NamedTuple):
    """What a site sends for a micro-batch."""

    output: Any  # spikes, or the result of all of them, for later stages
    digits: Any = None  # how many; None: they follow from the output


@functools.partial(jit, static_argnums=0)
def fire(dynamics: Dynamics, neurons: NeuronParams, current: jax.Array) -> Fired:
    """Run neurons on a current as `View.currents` has it.

    Corrections and later stages call it with the same arguments: one program for both.
    """
    model, steps, wait, code, *_ = dynamics
    if dynamics.needs_time:
        arriving = dynamics.arriving(current)
        return Fired(spike_train(model, neurons, arriving, wait=wait, code=code))
    output = dynamics.closed_form(neurons, current)
    if schedule(code, model, steps) is None:  # all spikes are alike
        return Fired(output)
    if neurons.offset is not None:  # which is no spike
        bias = neurons.bias - neurons.offset
        neurons = neurons._replace(bias=bias, offset=None)
    # In the type that the closed form takes, so that XLA finds the digits once.
    spikes = after_all_input(model, neurons, wide(current), steps, code=code)
    return Fired(output, (spikes != 0).astype(jnp.uint8).sum(0))


@functools.partial(by_numpy_or_xla, static=2)
def answer(steps: int, code: Code, output: Any) -> jax.Array:
    """A value that is in time, after T steps."""
    is_train = isinstance(output, SpikeTrain)
    return result_of(output, steps) if is_train else code.result(output)


@functools.partial(by_numpy_or_xla, static=1)
def number_of_spikes(dynamics: Dynamics, neurons: NeuronParams, fired: Fired) -> Any:
    """That of each image, [B]."""
    counts = fired.digits
    if isinstance(fired.output, SpikeTrain):
        counts = numbers_of(fired.output, dynamics.steps)
    elif counts is None:  # in as many of the largest spikes as it takes
        xp, high = namespace(fired.output), dynamics.model.levels[1]
        own = subtract_offset(fired.output, neurons.offset).astype(np.float32)
        size = lead(neurons.threshold, own.ndim) * (high / dynamics.steps)
        counts = xp.ceil(abs(own) / size - 1e-3)
    return counts.reshape(len(counts), -1).sum(1, dtype=np.float32)
