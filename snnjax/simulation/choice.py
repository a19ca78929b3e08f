"""What ``execution="auto"`` takes, from the device, the SNN and the wait.

docs/accelerators.md has the table and the reasons: measurements on a CPU, and for a TPU
counts of compiled programs of version 0.2. A GPU was neither measured nor counted.
"""

import math
from typing import Any, NamedTuple

from snnjax._text import counted
from snnjax._types import Execution
from snnjax.network.equations import Network, spread_out
from snnjax.neurons.by_site import models_in
from snnjax.neurons.models import counts_only, is_plain
from snnjax.neurons.protocol import field
from snnjax.neurons.unroll import FEW_STEPS, needs_no_time
from snnjax.simulation.options import Simulation
from snnjax.snn import SNN
from snnjax.surrogate import holds_tracer, is_step

LANES = 128  # of a vector of a TPU; XLA puts the batch of a convolution there
SEGMENT_STEPS = 25  # a gradient of so many at a time is fastest on a CPU
# Potentials of all steps, neurons and examples: a gradient of more reads them from the
# memory of a CPU in place of its cache, and segments of more gain nothing.
CACHE = 3 * 2**20
SEGMENT_CACHE = 2**20


class Choice(NamedTuple):
    """How a simulation is computed.

    Attributes:
        execution: steps at a time, 1..T, or "closed_form".
        gradient_steps: the gradient is that of another execution with so many steps at
            a time, since that of one step at a time is slow on a CPU and that of the
            closed form uses no surrogate. None: it is the execution's own.
        may_segment: whether `with_segments` takes the place of this choice where
            `leaves_cache` says that it is faster.
        group: examples at a time on a device, unless the user asks for another size; a
            gradient recomputes each group. None: all at once.
    """

    execution: Execution
    gradient_steps: int | None = None
    may_segment: bool = False
    group: int | None = None

    def with_segments(self) -> "Choice":
        """The same, but what takes all steps at a time takes `SEGMENT_STEPS`.

        That is the gradient if it is another execution's, and otherwise the execution.
        """
        if self.gradient_steps is None:
            return self._replace(execution=SEGMENT_STEPS)
        return self._replace(gradient_steps=SEGMENT_STEPS)


def choose(sim: Simulation, snn: SNN, platform: str) -> Choice:
    """How an SNN is simulated on a platform, "cpu", "gpu" or "tpu".

    Anything but "auto" is taken as it is.

    Raises:
        ValueError: the execution is "closed_form", and the SNN has none.
    """
    has_form = has_closed_form(snn, sim.steps, sim.wait)
    if sim.execution == "closed_form" and not has_form:
        raise ValueError(_no_closed_form(sim, snn))
    if sim.execution != "auto":
        return Choice(sim.execution)

    is_streaming = snn.code.is_streaming(sim.wait)
    # jax.checkpoint refuses a surrogate that holds a traced value, and a custom
    # derivative must not close over one.
    is_traced = holds_tracer(sim.surrogate)
    is_long = (
        platform == "cpu"
        and is_streaming
        and sim.steps > SEGMENT_STEPS
        and not is_traced
    )
    # A user's model may have a reverse-mode derivative only.
    are_plain = all(map(is_plain, models_in(snn.model)))
    # Here the forward pass must be the one that is differentiated.
    if is_traced or not is_step(sim.surrogate) or not are_plain:
        return Choice(sim.steps, may_segment=is_long)
    if has_form:
        return Choice("closed_form", gradient_steps=sim.steps)
    if is_streaming and platform == "cpu" and sim.steps > FEW_STEPS:
        return Choice(1, gradient_steps=sim.steps, may_segment=is_long)
    if is_streaming and platform == "tpu":
        return Choice(1, group=LANES)
    # All steps of so many images stay on the chip only if the steps are few.
    if platform == "tpu" and sim.steps <= FEW_STEPS:
        return Choice(sim.steps, group=LANES)
    return Choice(sim.steps)


def _no_closed_form(sim: Simulation, snn: SNN) -> str:
    """Why an SNN has no closed form, as an error message."""
    models = ", ".join(map(repr, models_in(snn.model)))
    leak = "no leak"
    for params in snn.neurons.values():
        if field(params, "leak") is not None:
            leak = "a leak"
    return (
        f"execution='closed_form' needs wait >= {snn.code.full_wait(sim.steps)} with "
        f"{counted(sim.steps, 'step')} of the code {snn.code!r}, and IF neurons with "
        f"reset by subtraction and no lower bound; found wait {sim.wait}, {models}, "
        f"{leak}. Take 'auto'"
    )


def leaves_cache(network: Network, steps: int, batch: Any) -> bool:
    """Whether a gradient of all steps leaves the cache of a CPU, and a segment's not.

    Then `SEGMENT_STEPS` at a time are faster, but not convolutions, which are slow in a
    loop.

    Args:
        network: that is simulated.
        steps: T.
        batch: examples at once, a number, or a symbol where any batch is exported.
    """
    convolves = any(
        eq.name == "conv_general_dilated" for eq in spread_out(network.equations)
    )
    if convolves or not isinstance(batch, int):
        return False
    neurons = sum(math.prod(site.shape) for site in network.sites if site.fires)
    step_size = batch * neurons  # potentials of one step
    return steps * step_size >= CACHE and SEGMENT_STEPS * step_size <= SEGMENT_CACHE


def has_closed_form(snn: SNN, steps: int, wait: int) -> bool:
    """Whether the neurons only count, and have all of their input before they fire."""
    for site_name, params in snn.neurons.items():
        if not counts_only(snn.model_of(site_name), params):
            return False
    return needs_no_time(snn.code, steps, wait, models_in(snn.model))
