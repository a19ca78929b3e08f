"""The arguments of `snnjax.spiking`, checked one by one and together."""

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

from snnjax._types import Execution, Inputs
from snnjax.codes import Code
from snnjax.simulation.executions import ByLayer
from snnjax.surrogate import Surrogate, dspike

EXECUTIONS = get_args(Execution)


class Simulation(NamedTuple):
    """How a function is simulated: the arguments of `spiking`, checked.

    Attributes:
        steps, wait: numbers, or None until they are those of an SNN.
    """

    fn: Callable
    steps: Any
    wait: Any
    surrogate: Surrogate
    detach_reset: bool
    execution: Execution | ByLayer
    inputs: Inputs
    micro_batch: int | None
    has_aux: bool
    answer: bool
    returns_state: bool = False

    @property
    def sequence(self) -> bool:
        """Whether the input has a time axis once it is encoded."""
        return self.inputs != "constant"

    @property
    def sets_gradient(self) -> bool:
        """Whether surrogate or detach_reset differ from their defaults."""
        return self.surrogate is not dspike or self.detach_reset


def check_execution(execution: Any) -> None:
    """Raise unless this is an execution."""
    is_word = isinstance(execution, str) and execution in EXECUTIONS
    if not is_word and not isinstance(execution, ByLayer):
        raise ValueError(
            f"execution is {execution!r}; allowed: {', '.join(map(repr, EXECUTIONS))}, "
            "or snnjax.simulation.ByLayer(segment=...) (called)"
        )


def check_options(sim: Simulation, code: Code | None = None) -> None:
    """Raise for options that exclude each other, or that the SNN's code does not have.

    Steps and wait of ``sim``, and the code, may be unknown yet.
    """
    segment = getattr(sim.execution, "segment", None)
    streaming_options = {
        f"inputs={sim.inputs!r}": sim.sequence,
        "ByLayer(segment=...)": segment is not None,
        "state=True": sim.returns_state,
    }
    requests = [option for option, is_set in streaming_options.items() if is_set]
    if code is not None and requests:
        code.check_streaming(", ".join(requests))
    options = ("has_aux", "answer", "micro_batch", "wait")
    others = [f"{name}={getattr(sim, name)}" for name in options if getattr(sim, name)]
    others += ["execution='closed_form'"] if sim.execution == "closed_form" else []
    if sim.returns_state and others:
        raise ValueError(
            "state=True returns all steps and the state after the last one; found "
            f"{', '.join(others)} beside it. Leave it out"
        )
    if sim.execution == "closed_form" and sim.sets_gradient:
        raise ValueError(
            "execution='closed_form' has a straight-through gradient: leave surrogate "
            "and detach_reset out, or take 'auto', which has them"
        )
    if segment is not None and sim.steps is not None and segment > sim.steps:
        raise ValueError(
            f"segment is {segment}; allowed: 1 to steps={sim.steps}, or None"
        )
    if segment is not None and sim.wait:
        raise ValueError(
            f"segment needs wait 0, as rate coding has; found wait {sim.wait}. Leave "
            "the segment out"
        )
    in_parts = sim.execution == "by_step" or sim.micro_batch or segment
    if sim.has_aux and (in_parts or sim.answer):
        raise ValueError(
            "has_aux=True shows the function all steps of the whole batch at once, so "
            "that a norm sees all of its statistics; found execution="
            f"{sim.execution!r}, micro_batch={sim.micro_batch}, answer={sim.answer}; "
            "allowed: 'auto', 'closed_form' or 'by_layer' without segments, "
            "micro_batch=None and answer=False"
        )
