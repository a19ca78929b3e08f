"""Whether a model keeps the protocol, and whether a gradient passes through it.

Both are read from the shapes and equations of one step, before anything runs. A model
whose spikes have no derivative would train with a gradient of zero and no other sign of
it; here its gradient is an error.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax

from snnjax._trees import is_floating, name_of
from snnjax.network.jaxprs import depends_on_last
from snnjax.neurons.gradients import Same, WithSurrogate
from snnjax.neurons.protocol import drive, fire
from snnjax.surrogate import Surrogate, dspike

_BATCH = 3  # examples of the shapes that a model is shown


class Place(NamedTuple):
    """What a model has to fit: a site's name, and shape and type of its neurons."""

    name: str
    shape: tuple[int, ...]
    dtype: Any


def check_protocol(neuron: Any, params: Any, place: Place) -> None:
    """Raise unless a step keeps the state's shapes and gives a spike per neuron.

    Args:
        neuron: the model.
        params: its parameters, or their shapes.
        place: the site.
    """
    shape = (_BATCH, *place.shape)
    current = jax.ShapeDtypeStruct(shape, place.dtype)
    before = jax.eval_shape(lambda params: neuron.start(params, shape), params)
    step = functools.partial(_step, neuron)
    after, spikes = jax.eval_shape(step, params, before, current)
    where = f"at site {place.name!r} the model {neuron!r}"
    _check_same_state(before, after, where)
    if getattr(spikes, "shape", None) != shape or not is_floating(spikes):
        raise ValueError(
            f"{where} fires {spikes} for currents of shape {shape}; allowed: spikes "
            "of the same shape, floating point"
        )


def passes_gradient(neuron: Any, params: Any, place: Place) -> bool:
    """Whether the spikes of a step have a derivative in the state or the current.

    Read from the equations, not from numbers: a derivative that happens to be 0 is one.
    """
    shape = (_BATCH, *place.shape)
    current = jax.ShapeDtypeStruct(shape, place.dtype)
    state = jax.eval_shape(lambda params: neuron.start(params, shape), params)

    def slopes(params, state, current, upstream):
        def spikes(state, current):
            return _step(neuron, params, state, current)[1]

        slopes = jax.tree.leaves(jax.vjp(spikes, state, current)[1](upstream))
        return [slope for slope in slopes if slope.dtype != jax.dtypes.float0]

    upstream = jax.eval_shape(functools.partial(_step, neuron), params, state, current)
    traced = jax.make_jaxpr(slopes)(params, state, current, upstream[1])
    return depends_on_last(traced.jaxpr)


@dataclasses.dataclass(frozen=True)
class WithoutGradient(Same):
    """A model that passes no gradient: any that is asked for is an error.

    Attributes:
        neuron: the model, with its surrogate.
    """

    neuron: WithSurrogate

    def integrate(self, params: Any, state: Any, current: jax.Array) -> Any:
        """As the model does, where no derivative is taken."""
        return self.neuron.integrate(params, state, _constant(self.neuron, current))

    def fire(
        self, params: Any, state: Any, spike: Surrogate | None = None
    ) -> tuple[Any, jax.Array]:
        """As the model does."""
        return self.neuron.fire(params, state, spike)


# The current refuses, not the spikes: theirs is a zero that JAX does not even ask for.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _constant(model: Any, current: jax.Array) -> jax.Array:
    del model
    return current


@_constant.defjvp
def _no_derivative(model, primals, tangents):
    model = model.neuron
    raise ValueError(
        f"the model {model!r} has no surrogate gradient: its spikes do not depend on "
        "its state in a way that has a derivative, so every gradient through them "
        "would be 0. Let fire(params, state, spike) emit spike((v - V_th) / "
        "(2 V_th)), or a surrogate of snnjax.surrogate"
    )


def _step(
    neuron: Any,
    params: Any,
    state: Any,
    current: jax.Array,
    spike: Surrogate = dspike,
) -> tuple[Any, jax.Array]:
    charged = neuron.integrate(params, state, drive(params, current))
    return fire(neuron, params, charged, spike)


def _check_same_state(before: Any, after: Any, where: str) -> None:
    """Raise unless a step keeps structure, shapes and types of the state."""
    old, new = (jax.tree_util.tree_leaves_with_path(state) for state in (before, after))
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            f"{where} has the state {jax.tree.structure(before)} from start and "
            f"{jax.tree.structure(after)} after a step; allowed: the same"
        )
    for (path, start), (_, end) in zip(old, new, strict=True):
        if (start.shape, start.dtype) != (end.shape, end.dtype):
            raise ValueError(
                f"{where} turns its state {name_of(path) or 'leaf'} from "
                f"{start.dtype}{list(start.shape)} into {end.dtype}{list(end.shape)} "
                "in a step; allowed: the same shape and type. Cast it by .astype"
            )
