"""Checks of a neuron model: whether it follows the protocol and has a gradient.

    state, current  ->  next state, spikes

Both checks read the shapes and the equations of one step, before anything runs. A model
whose spikes have no derivative would silently train with a gradient of zero.
Differentiating it is therefore an error.
"""

from typing import Any, NamedTuple

import jax

from snnjax._trees import is_floating, name_of
from snnjax.network.capture.jaxprs import depends_on_last
from snnjax.network.sites import Site
from snnjax.neurons.protocol import Step, drive, fire

_BATCH = 3  # examples in the shapes of this check


class _StepShapes(NamedTuple):
    """Shapes and types of what one step reads and returns.

    Attributes:
        current: of the neurons of a site, [B, ...].
        state: a pytree, before the step.
        next_state: after the step, with the same structure if all is well.
        spikes: what the model returns as spikes.
    """

    current: jax.ShapeDtypeStruct
    state: Any
    next_state: Any
    spikes: Any


def check_protocol(neuron: Any, params: Any, site: Site) -> None:
    """Raise unless a step keeps the state's shapes and gives a spike per neuron.

    Args:
        neuron: the model.
        params: of the neurons of the site, or their shapes.
        site: the place of the neurons.
    """
    step = _step_shapes(neuron, params, site)
    where = f"at site {site.name!r} the model {neuron!r}"
    structure = jax.tree.structure(step.state)
    next_structure = jax.tree.structure(step.next_state)
    if structure != next_structure:
        raise ValueError(
            f"{where} has the state {structure} from start and {next_structure} after "
            "a step; allowed: the same"
        )
    leaves = jax.tree_util.tree_leaves_with_path(step.state)
    next_leaves = jax.tree.leaves(step.next_state)
    for (path, leaf), next_leaf in zip(leaves, next_leaves, strict=True):
        if (leaf.shape, leaf.dtype) != (next_leaf.shape, next_leaf.dtype):
            raise ValueError(
                f"{where} turns its state {name_of(path) or 'leaf'} from "
                f"{leaf.dtype}{list(leaf.shape)} into "
                f"{next_leaf.dtype}{list(next_leaf.shape)} "
                "in a step; allowed: the same shape and type. Cast it by .astype"
            )
    spikes = step.spikes
    if getattr(spikes, "shape", None) != step.current.shape or not is_floating(spikes):
        raise ValueError(
            f"{where} fires {spikes} for currents of shape {step.current.shape}; "
            "allowed: spikes of the same shape, floating point"
        )


def passes_gradient(neuron: Any, params: Any, site: Site) -> bool:
    """Whether the spikes of a step have a derivative in the state or the current.

    This reads the equations of the gradient, not its values: a gradient that depends on
    that of the spikes counts, even if it happens to be 0.

    Args:
        neuron: the model.
        params: of the neurons of the site, or their shapes.
        site: the place of the neurons.
    """

    def gradients(params, state, current, spike_gradient):
        def spikes(state, current):
            _, spikes = _step(neuron, params, state, current)
            return spikes

        _, backward = jax.vjp(spikes, state, current)
        input_gradients = backward(spike_gradient)
        leaves = jax.tree.leaves(input_gradients)
        # Whole numbers in the state have no gradient.
        return [leaf for leaf in leaves if leaf.dtype != jax.dtypes.float0]

    step = _step_shapes(neuron, params, site)
    program = jax.make_jaxpr(gradients)(
        params,
        step.state,
        step.current,
        step.spikes,
    )
    return depends_on_last(program.jaxpr)


def _step_shapes(neuron: Any, params: Any, site: Site) -> _StepShapes:
    """The shapes of a step of the neurons of a site."""
    shape = (_BATCH, *site.shape)

    def start(params):
        return neuron.start(params, shape)

    def step(params, state, current):
        return _step(neuron, params, state, current)

    current = jax.ShapeDtypeStruct(shape, site.dtype)
    state = jax.eval_shape(start, params)
    next_state, spikes = jax.eval_shape(step, params, state, current)
    return _StepShapes(current, state, next_state, spikes)


def _step(neuron: Any, params: Any, state: Any, current: jax.Array) -> Step:
    """The state after a step of the neurons, and their spikes."""
    driven = drive(params, current)
    state = neuron.integrate(params, state, driven)
    fired = fire(neuron, params, state)
    if not isinstance(fired, tuple) or len(fired) != 2:
        raise ValueError(
            f"fire of the model {neuron!r} returns a {type(fired).__name__}; allowed: "
            "the pair (state, spikes)"
        )
    return fired
