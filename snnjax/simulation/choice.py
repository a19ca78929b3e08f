"""What ``execution="auto"`` takes, from the device, the SNN and the wait.

docs/accelerators.md has the table and the reasons: measurements on a CPU, and for a TPU
counts of compiled programs of version 0.2. A GPU was neither measured nor counted.
"""

import math
from typing import Any, NamedTuple

from snnjax._types import Execution
from snnjax.network.equations import Network, spread_out
from snnjax.neurons.by_site import models_in
from snnjax.neurons.models import counts_only, is_plain
from snnjax.neurons.protocol import field
from snnjax.neurons.unroll import FEW_STEPS, needs_no_time
from snnjax.simulation.executions import ByLayer
from snnjax.simulation.options import Simulation
from snnjax.snn import SNN
from snnjax.surrogate import holds_tracer, is_step

LANES = 128  # of a vector of a TPU; XLA puts the batch of a convolution there
SEGMENT = ByLayer(segment=25)
CACHE = 3 * 2**20  # numbers; a gradient reads more from the memory of a CPU
SEGMENT_CACHE = 2**20  # of all numbers of a segment, which gains nothing beyond


class Choice(NamedTuple):
    """How a simulation is computed.

    Attributes:
        execution: as for `snnjax.spiking`, but never "auto".
        has_gradient_of_layers: the gradient is that of by_layer, since that of by_step
            is slow on a CPU and that of the closed form uses no surrogate.
        may_segment: what is by_layer, the execution or its gradient, takes segments on
            a CPU where `leaves_cache`.
        group: examples at a time on a device, unless the user asks for another size; a
            gradient recomputes each group. None: all at once.
    """

    execution: Execution | ByLayer
    has_gradient_of_layers: bool = False
    may_segment: bool = False
    group: int | None = None


def choose(sim: Simulation, snn: SNN, platform: str) -> Choice:
    """How an SNN is simulated on a platform, "cpu", "gpu" or "tpu".

    Anything but "auto" is taken as it is.

    Raises:
        ValueError: the execution is "closed_form", and the SNN has none.
    """
    needs_no_steps = has_closed_form(snn, sim.steps, sim.wait)
    models = models_in(snn.model)
    if sim.execution == "closed_form" and not needs_no_steps:
        leaks = any(field(p, "leak") is not None for p in snn.neurons.values())
        raise ValueError(
            "execution='closed_form' needs wait == steps (steps - 1 for codes other "
            "than rate coding) and IF neurons with reset by subtraction and no lower "
            f"bound; found wait {sim.wait}, steps {sim.steps}, "
            f"{', '.join(map(repr, models))}, {'a' if leaks else 'no'} leak. Use "
            "'by_layer'"
        )
    if sim.execution != "auto":
        return Choice(sim.execution)
    takes_steps = snn.code.is_streaming(sim.wait)
    is_long = takes_steps and platform == "cpu" and sim.steps > SEGMENT.segment
    is_long &= not holds_tracer(sim.surrogate)  # jax.checkpoint refuses one
    # A user's model may have a reverse-mode derivative only, and a custom derivative
    # must not close over a traced value.
    is_hard = is_step(sim.surrogate) and not holds_tracer(sim.surrogate)
    if not is_hard or not all(map(is_plain, models)):
        return Choice("by_layer", may_segment=is_long)
    if needs_no_steps:
        return Choice("closed_form", has_gradient_of_layers=True)
    few_steps = sim.steps <= FEW_STEPS
    if takes_steps and platform == "cpu" and not few_steps:
        return Choice("by_step", has_gradient_of_layers=True, may_segment=is_long)
    if takes_steps and platform == "tpu":
        return Choice("by_step", group=LANES)
    # All steps of so many images stay on the chip only if the steps are few.
    return Choice("by_layer", group=LANES if platform == "tpu" and few_steps else None)


def leaves_cache(network: Network, steps: int, batch: Any) -> bool:
    """Whether a gradient of all steps leaves the cache of a CPU, and a segment's not.

    Then 25 steps at a time are faster, but not convolutions, which are slow in a loop.
    """
    convolves = any(
        eq.name == "conv_general_dilated" for eq in spread_out(network.equations)
    )
    if convolves or not isinstance(batch, int):  # a symbol where any batch is exported
        return False
    step = batch * sum(math.prod(s.shape) for s in network.sites if s.fires)
    return steps * step >= CACHE and SEGMENT.segment * step <= SEGMENT_CACHE


def has_closed_form(snn: SNN, steps: int, wait: int) -> bool:
    """Whether the neurons only count, and have all of their input before they fire."""
    count_only = all(counts_only(snn.model_of(n), p) for n, p in snn.neurons.items())
    return count_only and needs_no_time(snn.code, steps, wait, models_in(snn.model))
