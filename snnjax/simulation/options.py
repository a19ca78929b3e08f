"""The arguments of `snnjax.spiking`, checked one by one and together."""

from collections.abc import Callable
from typing import Any, NamedTuple

from snnjax._checks import check_flags, check_function, check_inputs, check_wait
from snnjax._ranges import COUNT, WHOLE
from snnjax._text import name_of_value
from snnjax._types import Execution, Inputs
from snnjax.codes import Code
from snnjax.surrogate import Surrogate, check_surrogate, dspike

# Words of earlier versions, and what takes their place.
_REPLACEMENTS = {
    "by_step": "1, one step at a time",
    "by_layer": "T, the number of steps, to compute all of them at a time",
}


class Simulation(NamedTuple):
    """How a function is simulated: the arguments of `spiking`, checked.

    Attributes:
        steps, wait: numbers, or None until they are those of an SNN.
        returns_state: the argument ``state``; the others have its names.
    """

    fn: Callable
    steps: Any = None
    wait: Any = None
    surrogate: Surrogate = dspike
    detach_reset: bool = False
    execution: Execution = "auto"
    inputs: Inputs = "constant"
    micro_batch: int | None = None
    has_aux: bool = False
    answer: bool = False
    returns_state: bool = False

    def __str__(self) -> str:
        """The call of `spiking`, without options that have their defaults."""
        texts = [name_of_value(self.fn)]
        for name, default in self._field_defaults.items():
            value = getattr(self, name)
            option = "state" if name == "returns_state" else name
            if value != default:
                texts.append(f"{option}={name_of_value(value)}")
        return f"spiking({', '.join(texts)})"

    @property
    def sequence(self) -> bool:
        """Whether the input has a time axis."""
        return self.inputs == "sequence"

    @property
    def batch_axis(self) -> int:
        """The axis of the examples in x."""
        return 1 if self.sequence else 0

    @property
    def output_axis(self) -> int:
        """The axis of the examples in the outputs."""
        return 0 if self.answer else 1

    @property
    def sets_gradient(self) -> bool:
        """Whether surrogate or detach_reset differ from their defaults."""
        return self.surrogate is not dspike or self.detach_reset

    @property
    def takes_parts(self) -> bool:
        """Whether fewer than T steps are computed at a time; False if T is unknown."""
        is_number = not isinstance(self.execution, str)
        return is_number and self.steps is not None and self.execution < self.steps


def check_arguments(sim: Simulation) -> None:
    """Raise unless all arguments of `spiking` are in their ranges, and fit together."""
    check_function(sim.fn)
    if sim.steps is not None:
        check_wait(sim.steps, 0 if sim.wait is None else sim.wait)
    elif sim.wait is not None:  # and T is that of an SNN
        WHOLE.check("wait", sim.wait)
    check_inputs(sim.inputs)
    check_flags(
        detach_reset=sim.detach_reset,
        has_aux=sim.has_aux,
        answer=sim.answer,
        state=sim.returns_state,
    )
    if sim.micro_batch is not None:
        COUNT.check("micro_batch", sim.micro_batch)
    check_surrogate(sim.surrogate)
    _check_execution(sim.execution)
    check_options(sim)


def _check_execution(execution: Any) -> None:
    """Raise unless this is an execution."""
    if not isinstance(execution, str):
        COUNT.check("execution, if it is not 'auto' or 'closed_form',", execution)
    elif execution not in ("auto", "closed_form"):
        remedy = ""
        if execution in _REPLACEMENTS:
            remedy = f". In place of {execution!r} write {_REPLACEMENTS[execution]}"
        raise ValueError(
            f"execution is {execution!r}; allowed: 'auto', 'closed_form', or a whole "
            f"number of steps at a time, 1 to T{remedy}"
        )


def check_options(sim: Simulation, code: Code | None = None) -> None:
    """Raise for options that exclude each other, or that the SNN's code does not have.

    Args:
        sim: its steps and wait may be None, if they are not known yet.
        code: of the SNN; None: it is not known yet.
    """
    if code is not None:
        _check_streaming(sim, code)
    _check_parts(sim)
    if sim.execution == "closed_form" and sim.sets_gradient:
        raise ValueError(
            "execution='closed_form' has a straight-through gradient: leave surrogate "
            "and detach_reset out, or take 'auto', which has them"
        )
    if sim.returns_state:
        _check_beside_state(sim)
    if sim.has_aux and (sim.takes_parts or sim.micro_batch or sim.answer):
        raise ValueError(
            "has_aux=True shows the function all steps of the whole batch at once, so "
            "that a norm sees all of its statistics; found execution="
            f"{sim.execution!r}, micro_batch={sim.micro_batch}, answer={sim.answer}; "
            "allowed: execution='auto' or 'closed_form', micro_batch=None and "
            "answer=False"
        )


def _check_streaming(sim: Simulation, code: Code) -> None:
    """Raise if an option needs steps that are alike, and those of the code differ."""
    requests = []
    if sim.sequence:
        requests.append(f"inputs={sim.inputs!r}")
    if sim.takes_parts:
        requests.append(f"execution={sim.execution}, fewer than all steps,")
    if sim.returns_state:
        requests.append("state=True")
    if requests:
        code.check_streaming(" and ".join(requests))


def _check_parts(sim: Simulation) -> None:
    """Raise unless ``execution``, as a number of steps, is allowed.

    It may be at most T, and less than T only without a wait.
    """
    if isinstance(sim.execution, str) or sim.steps is None:
        return
    if sim.execution > sim.steps:
        raise ValueError(
            f"execution is {sim.execution} steps at a time; allowed: 1 to "
            f"steps={sim.steps}"
        )
    if sim.takes_parts and sim.wait:
        raise ValueError(
            f"execution={sim.execution}, fewer than all steps at a time, needs wait 0; "
            f"found wait {sim.wait}. Take execution={sim.steps} or 'auto'"
        )


def _check_beside_state(sim: Simulation) -> None:
    """Raise for options that a simulation with state=True does not have."""
    options = []
    for name in ("has_aux", "answer", "micro_batch", "wait"):
        value = getattr(sim, name)
        if value:
            options.append(f"{name}={value}")
    if sim.execution == "closed_form":
        options.append("execution='closed_form'")
    if options:
        raise ValueError(
            "state=True returns all steps and the state after the last one; found "
            f"{', '.join(options)} beside it. Leave it out"
        )
