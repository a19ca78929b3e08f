"""Checks of a neuron model: whether it follows the protocol and has a gradient.

Both follow from the shapes and equations of one step, before anything runs. A model
whose spikes have no derivative would silently train with a gradient of zero.
Differentiating it is therefore an error.
"""

import functools
from typing import Any

import jax

from snnjax._trees import is_floating, name_of
from snnjax.network.capture.jaxprs import depends_on_last
from snnjax.network.sites import Site
from snnjax.neurons.protocol import Step, drive, fire

_BATCH = 3  # examples in the shapes of this check


def check_protocol(neuron: Any, params: Any, site: Site) -> None:
    """Raise unless a step keeps the state's shapes and gives a spike per neuron.

    The parameters may be their shapes.
    """
    current, before, after, spikes = _shapes_of_step(neuron, params, site)
    where = f"at site {site.name!r} the model {neuron!r}"
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            f"{where} has the state {jax.tree.structure(before)} from start and "
            f"{jax.tree.structure(after)} after a step; allowed: the same"
        )
    old, new = map(jax.tree_util.tree_leaves_with_path, (before, after))
    for (path, start), (_, end) in zip(old, new, strict=True):
        if (start.shape, start.dtype) != (end.shape, end.dtype):
            raise ValueError(
                f"{where} turns its state {name_of(path) or 'leaf'} from "
                f"{start.dtype}{list(start.shape)} into {end.dtype}{list(end.shape)} "
                "in a step; allowed: the same shape and type. Cast it by .astype"
            )
    if getattr(spikes, "shape", None) != current.shape or not is_floating(spikes):
        raise ValueError(
            f"{where} fires {spikes} for currents of shape {current.shape}; allowed: "
            "spikes of the same shape, floating point"
        )


def passes_gradient(neuron: Any, params: Any, site: Site) -> bool:
    """Whether the spikes of a step have a derivative in the state or the current.

    This reads the equations, not their values, so a derivative that happens to be 0
    counts.
    """

    def slopes(params, state, current, upstream):
        def spikes(state, current):
            return _step(neuron, params, state, current)[1]

        leaves = jax.tree.leaves(jax.vjp(spikes, state, current)[1](upstream))
        return [slope for slope in leaves if slope.dtype != jax.dtypes.float0]

    current, before, _, spikes = _shapes_of_step(neuron, params, site)
    program = jax.make_jaxpr(slopes)(params, before, current, spikes)
    return depends_on_last(program.jaxpr)


def _shapes_of_step(neuron: Any, params: Any, site: Site) -> tuple[Any, Any, Any, Any]:
    """Shapes of the current, the state before and after a step, and the spikes."""
    shape = (_BATCH, *site.shape)
    current = jax.ShapeDtypeStruct(shape, site.dtype)
    before = jax.eval_shape(lambda params: neuron.start(params, shape), params)
    step = functools.partial(_step, neuron)
    return current, before, *jax.eval_shape(step, params, before, current)


def _step(neuron: Any, params: Any, state: Any, current: jax.Array) -> Step:
    state = neuron.integrate(params, state, drive(params, current))
    return fire(neuron, params, state)
