"""What ``execution="auto"`` takes, from the device, the SNN and the wait.

docs/accelerators.md has the table and the reasons: the measurements of
benchmarks/throughput.py on a CPU, and for a TPU counts of compiled programs of version
0.2. A GPU was neither measured nor counted.
"""

from typing import NamedTuple

from snnjax._types import Execution
from snnjax.neurons.by_site import models_in
from snnjax.neurons.models import counts_only, is_plain
from snnjax.neurons.protocol import field
from snnjax.neurons.unroll import FEW_STEPS, needs_no_time
from snnjax.simulation.executions import ByLayer
from snnjax.snn import SNN
from snnjax.surrogate import Surrogate, holds_tracer, is_step

LANES = 128  # of a vector of a TPU; XLA puts the batch of a convolution there


class Choice(NamedTuple):
    """How a simulation is computed.

    Attributes:
        execution: as for `snnjax.spiking`, but never "auto".
        has_gradient_of_layers: the gradient is that of by_layer, whose outputs are
            equal. The gradient of by_step is slow on a CPU, and that of the closed form
            does not use the surrogate.
        group: examples at a time on a device, unless the user asks for another size; a
            gradient recomputes each group. None: all at once.
    """

    execution: Execution | ByLayer
    has_gradient_of_layers: bool = False
    group: int | None = None


def choose(
    execution: Execution | ByLayer,
    snn: SNN,
    *,
    steps: int,
    wait: int,
    surrogate: Surrogate,
    platform: str,
) -> Choice:
    """How an SNN is simulated on a platform, "cpu", "gpu" or "tpu".

    Anything but "auto" is taken as it is.

    Raises:
        ValueError: the execution is "closed_form", and the SNN has none.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn, x = lambda w, x: jax.nn.relu(x @ w), jnp.ones((1, 2))
    >>> snn = snnjax.init(fn, jnp.eye(2), x, model=snnjax.integrate_and_fire())
    >>> spike = {"steps": 8, "surrogate": snnjax.surrogate.dspike}
    >>> for platform in ("cpu", "gpu", "tpu"):
    ...     for wait in (0, 1, 8):
    ...         choice = choose("auto", snn, wait=wait, **spike, platform=platform)
    ...         print(platform, wait, choice.execution, choice.group or "")
    cpu 0 by_step
    cpu 1 by_layer
    cpu 8 closed_form
    gpu 0 by_layer
    gpu 1 by_layer
    gpu 8 closed_form
    tpu 0 by_step 128
    tpu 1 by_layer
    tpu 8 closed_form
    """
    needs_no_steps = has_closed_form(snn, steps, wait)
    models = models_in(snn.model)
    if execution == "closed_form" and not needs_no_steps:
        leaks = any(
            field(params, "leak") is not None for params in snn.neurons.values()
        )
        raise ValueError(
            "execution='closed_form' needs wait == steps (steps - 1 for codes other "
            "than rate coding) and IF neurons with reset by subtraction; found wait "
            f"{wait}, steps {steps}, "
            f"{', '.join(map(repr, models))}, {'a' if leaks else 'no'} leak. Use "
            "'by_layer'"
        )
    if execution != "auto":
        return Choice(execution)
    # A user's model may have a reverse-mode derivative only, and a custom derivative
    # must not close over a traced value.
    is_hard = is_step(surrogate) and not holds_tracer(surrogate)
    if not is_hard or not all(map(is_plain, models)):
        return Choice("by_layer")
    # A dead zone delays spikes of rate coding, and the closed form fires at once.
    delays = snn.code.clock_runs and any(model.has_zones for model in models)
    if needs_no_steps and not delays:
        return Choice("closed_form", has_gradient_of_layers=True)
    takes_steps = snn.code.clock_runs and wait == 0
    if takes_steps and platform == "cpu" and steps > FEW_STEPS:
        return Choice("by_step", has_gradient_of_layers=True)
    if takes_steps and platform == "tpu":
        return Choice("by_step", group=LANES)
    # All steps of so many images stay on the chip only if the steps are few.
    groups = platform == "tpu" and steps <= FEW_STEPS
    return Choice("by_layer", group=LANES if groups else None)


def has_closed_form(snn: SNN, steps: int, wait: int) -> bool:
    """Whether the neurons only count, and have all of their input before they fire."""
    count_only = all(counts_only(snn.model_of(n), p) for n, p in snn.neurons.items())
    return count_only and needs_no_time(snn.code, steps, wait)
