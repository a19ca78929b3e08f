"""The protocol of a neuron model: a hashable value with four pure functions.

    state(0)       = start(params, [B, ...])
    state          = integrate(params, state, current + bias)    at every step, and then
    state, spikes  = fire(params, state, spike)

Optional are ``levels`` (low, high), if its spikes are whole multiples of the parameter
``threshold``; ``neuron``, the model that it wraps; ``through_time``, all steps at once;
and ``fan_out``, the neurons of its site that a spike reaches.
"""

import dataclasses
import operator
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from snnjax._arrays import lead, promoted
from snnjax._checks import takes
from snnjax.surrogate import Surrogate, dspike

Step = tuple[Any, jax.Array]  # the state after firing, and the spikes [B, ...]


class Neuron(Protocol):
    """A neuron model; its params are a NamedTuple, its state is any pytree.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import integrate_and_fire
    >>> neuron: Neuron = integrate_and_fire()
    >>> params, current = neuron.init(), jnp.array([1.5])
    >>> state = neuron.integrate(params, neuron.start(params, (1,)), current)
    >>> state, spikes = neuron.fire(params, state)
    >>> print(state.potential, spikes)
    [0.5] [1.]
    """

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> Any:
        """Parameters of a fresh site whose neurons have this shape.

        A parameter named ``bias`` is added to every current that arrives.
        """
        ...

    def start(self, params: Any, shape: tuple[int, ...]) -> Any:
        """The state before the first step, of neurons of ``shape`` [B, ...]."""
        ...

    def integrate(self, params: Any, state: Any, current: jax.Array) -> Any:
        """The state after a current [B, ...], which includes the bias."""
        ...

    def fire(self, params: Any, state: Any, spike: Surrogate = dspike) -> Step:
        """The state after firing, and the spikes [B, ...].

        ``spike``, found by its name, is a function of (v - V_th) / (2 V_th), and of a
        sharpness where the parameters have a ``temperature``; see `snnjax.surrogate`.
        A model with its own surrogate leaves it out.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """A model that behaves as ``neuron``, the one inside; subclasses change a part."""

    neuron: Neuron

    @property
    def levels(self) -> tuple[int, int] | None:
        """Those of the model inside."""
        return levels_of(self.neuron)

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> Any:
        """Those of the model inside."""
        return self.neuron.init(shape, key)

    def start(self, params: Any, shape: tuple[int, ...]) -> Any:
        """That of the model inside."""
        return self.neuron.start(params, shape)

    def integrate(self, params: Any, state: Any, current: jax.Array) -> Any:
        """As the model does."""
        return self.neuron.integrate(params, state, current)

    def fire(self, params: Any, state: Any, spike: Surrogate | None = None) -> Step:
        """As the model does."""
        return fire(self.neuron, params, state, spike)


def inner(outer: Any) -> Any:
    """The model inside a wrapper, or its params or state; None if nothing is inside."""
    inside = getattr(outer, "neuron", None)
    # A field of a user's own may have this name and be a number.
    is_model = callable(getattr(inside, "fire", None))
    is_tuple = hasattr(inside, "_fields")
    return inside if is_model or is_tuple else None


def chain(outer: Any) -> tuple[Any, ...]:
    """A model, its params or its state, then that of the model inside, and so on."""
    if outer is None:
        return ()
    return (outer, *chain(inner(outer)))


def field(outer: Any, name: str) -> Any:
    """A field of params or of a state, or of those inside; None if there is none."""
    for part in chain(outer):
        if name in getattr(part, "_fields", ()):
            value = getattr(part, name)
            if value is not None:
                return value
    return None


def drive(params: Any, current: jax.Array) -> jax.Array:
    """The current with the bias, and above the offset, in the widest of their types.

    Args:
        params: of a model; fields ``bias`` and ``offset`` are optional.
        current: [..., B, neurons], of one step or of several.
    """
    constant = field(params, "bias")
    offset = field(params, "offset")
    if offset is not None:  # a neuron sees what is left above it
        constant = -offset if constant is None else constant - offset
    if constant is None:
        return current
    dtype = promoted(current, constant)
    constant = lead(constant, jnp.ndim(current))
    return jnp.asarray(current, dtype) + constant.astype(dtype)


def fire(neuron: Any, params: Any, state: Any, spike: Surrogate | None = None) -> Step:
    """Fire a model, by this surrogate unless it has one of its own.

    None leaves the surrogate out, if ``fire`` has a default, and is dspike otherwise.
    """
    may_leave_out = spike is None and takes(neuron.fire, None, None)
    if may_leave_out or not takes(neuron.fire, None, None, spike=None):
        return neuron.fire(params, state)
    if spike is None:
        spike = dspike
    return neuron.fire(params, state, spike=spike)


def takes_surrogate(neuron: Any) -> bool:
    """Whether a model, and each that it wraps, fires by the surrogate given to it."""
    for model in chain(neuron):
        if not takes(model.fire, None, None, spike=None):
            return False
    return True


def synapses_of_a_spike(neuron: Any, shape: tuple[int, ...]) -> int:
    """How many connections within a site of this shape a spike reaches."""
    count = 0
    for model in chain(neuron):
        if hasattr(model, "fan_out"):
            count += model.fan_out(shape)
    return count


def levels_of(neuron: Any) -> tuple[int, int] | None:
    """The levels that a model states; None: its spikes may be any numbers."""
    levels = getattr(neuron, "levels", None)
    return None if levels is None else checked_levels(levels)


MOST_LEVELS = 256  # a spike has to fit in a byte


def checked_levels(levels: Any) -> tuple[int, int]:
    """The levels as Python's numbers; raise unless spikes can have them."""
    try:
        low, high = map(operator.index, levels)  # NumPy's numbers too, but no floats
    except (TypeError, ValueError):  # one number, fractions, more than two
        low, high = 1, 0  # refused below
    if not (low <= 0 < high and high - low <= MOST_LEVELS - 1):
        raise ValueError(
            f"levels are {levels!r}; allowed: two whole numbers (low, high), low <= 0, "
            f"high >= 1 and high - low < {MOST_LEVELS}, e.g. (0, 1) for binary spikes, "
            "(-1, 1) for signed and (0, 3) for graded ones"
        )
    return low, high


def check_model(neuron: Any, what: str = "model") -> None:
    """Raise unless this is a neuron model: a hashable value with the four functions."""
    allowed = (
        "allowed: a model, a hashable value with the functions init, start, integrate "
        "and fire, e.g. snnjax.integrate_and_fire() or snnjax.lif() (called)"
    )
    if isinstance(neuron, type):
        raise ValueError(f"{what} is the class {neuron.__name__}; {allowed}")
    names = ("init", "start", "integrate", "fire")
    missing = [name for name in names if not callable(getattr(neuron, name, None))]
    if missing:
        raise ValueError(
            f"{what} is {neuron!r}, without {', '.join(missing)}; {allowed}"
        )
    levels_of(neuron)  # This raises for levels that no spike can have.
    try:
        hash(neuron)
    except TypeError as error:
        raise ValueError(
            f"{what} is {neuron!r}, which is not hashable ({error}); {allowed}. Keep "
            "arrays in its params, and make it a dataclass(frozen=True)"
        ) from None
