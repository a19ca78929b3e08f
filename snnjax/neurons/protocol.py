"""The protocol of a neuron model: a hashable value with four pure functions.

    state(0)       = start(params, [B, ...])
    state          = integrate(params, state, current + bias)    at every step, and then
    state, spikes  = fire(params, state, spike)

Whatever runs neurons asks for no more; docs/neurons.md shows a model of one's own. A
model may state more: ``levels`` (low, high), where its spikes are whole multiples of
the parameter ``threshold``, and ``neuron``, the model that it wraps.
"""

import inspect
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from snnjax._arrays import lead, promoted
from snnjax.surrogate import Surrogate, dspike


class Neuron(Protocol):
    """A neuron model; its params are a NamedTuple, its state is any pytree."""

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> Any:
        """Parameters of a fresh site whose neurons have this shape.

        A parameter named ``bias`` is added to every current that arrives.
        """
        ...

    def start(self, params: Any, shape: tuple[int, ...]) -> Any:
        """The state before the first step, of neurons of ``shape`` [B, ...]."""
        ...

    def integrate(self, params: Any, state: Any, current: jax.Array) -> Any:
        """The state after a current [B, ...], the bias included, has come in."""
        ...

    def fire(
        self, params: Any, state: Any, spike: Surrogate = dspike
    ) -> tuple[Any, jax.Array]:
        """The state after firing, and the spikes [B, ...].

        ``spike`` is a function of (v - V_th) / (2 V_th), see `snnjax.surrogate`, and
        has a default. A model with a surrogate of its own does not take it.
        """
        ...


def wrapped(neuron: Any) -> Any:
    """The model inside this one, or None: its attribute ``neuron``."""
    return getattr(neuron, "neuron", None)


def parameter(params: Any, name: str) -> Any:
    """A parameter by its name, also that of a model inside; None if there is none.

    >>> from snnjax.neurons import lif, recurrent
    >>> params = recurrent(lif(leak=0.25)).init((2,), jax.random.key(0))
    >>> float(parameter(params, "leak")), parameter(params, "temperature")
    (0.25, None)
    """
    while params is not None and not hasattr(params, name):
        params = wrapped(params)
    return getattr(params, name, None)


def with_parameter(params: Any, name: str, value: Any) -> Any:
    """The params with another value of a parameter that they or those inside have."""
    if name in params._fields:
        return params._replace(**{name: value})
    return params._replace(neuron=with_parameter(params.neuron, name, value))


def drive(params: Any, current: jax.Array) -> jax.Array:
    """The current with the bias, in the wider type of both."""
    bias = parameter(params, "bias")
    if bias is None:
        return current
    dtype = promoted(current, bias)
    bias = lead(bias, jnp.ndim(current))
    return jnp.asarray(current, dtype) + bias.astype(dtype)


def fire(
    neuron: Any, params: Any, state: Any, spike: Surrogate | None = None
) -> tuple[Any, jax.Array]:
    """Fire a model, by this surrogate unless it has one of its own."""
    if spike is None or not _fires_by_argument(neuron):
        return neuron.fire(params, state)
    return neuron.fire(params, state, spike)


def takes_surrogate(neuron: Any) -> bool:
    """Whether a model, and each that it wraps, fires by the surrogate given to it."""
    if not _fires_by_argument(neuron):
        return False
    inner = wrapped(neuron)
    return inner is None or takes_surrogate(inner)


def levels_of(neuron: Any) -> tuple[int, int] | None:
    """The levels that a model states; None: its spikes may be any numbers."""
    return getattr(neuron, "levels", None)


def is_graded(neuron: Any) -> bool:
    """Whether a spike may be of another level than 0, 1 and -1."""
    low, high = levels_of(neuron) or (-2, 2)
    return low < -1 or high > 1


def counts_only(neuron: Any, params: Any) -> bool:
    """Whether the sum of its input alone decides a neuron's output in the end.

    That is so for IF with reset by subtraction; only such neurons have a closed form,
    and only they are what conversion fits.
    """
    states = getattr(neuron, "counts_only", None)
    return states is not None and states(params)


def check_model(neuron: Any, what: str = "neuron") -> None:
    """Raise unless this is a neuron model: a hashable value with the four functions."""
    allowed = (
        "allowed: a model, a hashable value with the functions init, start, integrate "
        "and fire, e.g. snnjax.lif() (called)"
    )
    missing = [
        name
        for name in ("init", "start", "integrate", "fire")
        if isinstance(neuron, type) or not callable(getattr(neuron, name, None))
    ]
    if missing:
        raise ValueError(
            f"{what} is {neuron!r}, without {', '.join(missing)}; {allowed}. The "
            "surrogate is an argument of snnjax.spiking"
            if not isinstance(neuron, type)
            else f"{what} is the class {neuron.__name__}; {allowed}"
        )
    try:
        hash(neuron)
    except TypeError as error:
        raise ValueError(
            f"{what} is {neuron!r}, which is not hashable ({error}); {allowed}. Keep "
            "arrays in its params, and make it a dataclass(frozen=True)"
        ) from None


def _fires_by_argument(neuron: Any) -> bool:
    """Whether ``fire`` has a third argument."""
    try:
        inspect.signature(neuron.fire).bind(None, None, None)
    except TypeError:
        return False
    return True
