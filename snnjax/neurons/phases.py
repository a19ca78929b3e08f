"""What a site does at each step of a loop over the whole network.

With a wait of d and a first current at step 0, it integrates in the steps 0 .. T - 1
and fires in the steps d .. d + T - 1. Before and after that it keeps its state.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax.codes import Code
from snnjax.neurons.protocol import Neuron
from snnjax.neurons.schedule import Tick, driven, fire_at, schedule, shares


class Phase(NamedTuple):
    """What a site does at a step; Python's True if it does so at every step.

    Attributes:
        begun: its input has begun to arrive.
        receiving: its input arrives, for T steps.
        firing: it fires, for T steps, which begin ``wait`` later.
        share: of a constant that arrives, times T; None: 1.
        tick: what its code makes of the step; None: nothing.
    """

    begun: Any = True
    receiving: Any = True
    firing: Any = True
    share: Any = None
    tick: Tick | None = None


def phase_of(step: jax.Array, steps: int, wait: int, code: Code, neuron: Any) -> Phase:
    """The phase of a site, whose first current arrives at step 0.

    Args:
        step: since then, perhaps below 0.
        steps, wait, code: of the simulation.
        neuron: the model of the site; None where none fires.
    """
    ticks = schedule(code, neuron, steps)

    def at(numbers: Any, step: jax.Array) -> Any:
        """Those of this step, in an array that the tree holds for all T steps."""
        step = jnp.clip(step, 0, steps - 1)
        return jax.tree.map(lambda array: jnp.asarray(array)[step], numbers)

    share = at(shares(code, steps), step)
    tick = at(ticks, step - wait)
    if wait == 0:
        return Phase(share=share, tick=tick)
    return Phase(
        begun=step >= 0,
        receiving=(step >= 0) & (step < steps),
        firing=(step >= wait) & (step < wait + steps),
        share=share,
        tick=tick,
    )


def integrate_in_phase(
    model: Neuron, params: Any, state: Any, current: jax.Array, phase: Phase
) -> Any:
    """The state after the current of a step, if any arrives, is integrated."""
    arriving = _when(phase.receiving, driven(params, current, phase.share), 0)
    after = model.integrate(params, state, arriving)
    return jax.tree.map(functools.partial(_when, phase.begun), after, state)


def fire_in_phase(
    model: Neuron, params: Any, state: Any, phase: Phase
) -> tuple[Any, jax.Array]:
    """The state after firing and the spikes, in the steps in which the site fires."""
    after, spikes = fire_at(model, params, state, phase.tick)
    after = jax.tree.map(functools.partial(_when, phase.firing), after, state)
    return after, _when(phase.firing, spikes, 0)


def _when(condition: Any, value: Any, otherwise: Any) -> Any:
    """``jnp.where``, but no operation where the condition is Python's True."""
    return value if condition is True else jnp.where(condition, value, otherwise)
