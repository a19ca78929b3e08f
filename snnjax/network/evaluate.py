"""The interpreter: equations run with a rule of one's choice at every site.

The rule is the ANN's own activation (`identity`), a spiking neuron, a calibrator. Time
may lead the batch of some variables (`streams`): equations are then mapped over it.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from snnjax._arrays import wide
from snnjax.activations import clipped_relu
from snnjax.network.equations import Equation, Values, read
from snnjax.network.sites import Site

Rule = Callable[..., jax.Array]


def evaluate(
    equations: Iterable[Equation],
    values: Values,
    rule: Rule,
    *,
    streams: frozenset[int] = frozenset(),
) -> None:
    """Run the equations, adding every output to ``values``.

    Args:
        equations: in order of execution.
        values: variable -> array; changed in place.
        rule: ``rule(site, x, *operands) -> array``. Operands: the maximum of a
            clipped ReLU; at a site that accumulates its function (`increments` of it
            where x is a stream).
        streams: variables that carry a leading time axis; the equations that read
            them are mapped over it, so that time folds into the batch.
    """
    for equation in equations:
        arguments: list[Any] = [read(values, v) for v in equation.inputs]
        axes = [0 if v in streams else None for v in equation.inputs]
        if equation.site is None:
            function = functools.partial(_bind, equation)
            if 0 in axes:
                function = jax.vmap(function, in_axes=axes)
            results = function(*arguments)
        else:
            if equation.site.accumulates:
                function = functools.partial(_bind_one, equation)
                if 0 in axes:
                    function = functools.partial(increments, function)
                arguments.append(function)
            results = [rule(equation.site, *arguments)]
        values.update(zip(equation.outputs, results, strict=True))


def identity(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
    """The rule of the ANN itself, for every site."""
    if site.accumulates:
        return operands[0](x)
    return clipped_relu(x, *operands) if operands else jax.nn.relu(x)


def apply(function: Callable, x: jax.Array) -> jax.Array:
    """The function of a site that accumulates, of x by itself."""
    return function(x)


def firing(
    fire: Callable[..., jax.Array],
    neurons: Mapping[str, Any],
    accumulate: Callable[..., jax.Array] = apply,
) -> Rule:
    """The rule that fires: ``fire(site, params, x)``, with the params of its neurons.

    Args:
        neurons: site name -> params.
        accumulate: ``accumulate(function, x)`` -> the output of a site that
            accumulates, for spikes x.
    """

    def rule(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
        if site.accumulates:
            return accumulate(*operands, x)
        return fire(site, neurons[site.name], x)

    return rule


def increments(
    function: Callable, stream: jax.Array, total: jax.Array | None = None
) -> jax.Array:
    """Increments of a function of the running sum, [T, B, ...].

        out[t] = f(sum_{i <= t} s_i) - f(sum_{i < t} s_i)

    For a max-pool f the mean of the increments is the max-pool of the means, so it
    converges where a max-pool of the spikes of each step overshoots; spikes of 0 or
    V_th remain spikes of 0 or V_th.

    Args:
        function: of one step, [B, ...] -> [B, ...]; positively homogeneous.
        stream: spikes of T steps, [T, B, ...].
        total: sum of the spikes of earlier steps, [B, ...]; none by default.
    """
    sums = jnp.cumsum(wide(stream), axis=0)
    sums = sums if total is None else sums + total[None]
    results = jax.vmap(function)(sums)
    # Not function(0): XLA would compute the pool of a constant while compiling, slowly.
    before = jnp.zeros_like(results[0]) if total is None else function(total)
    earlier = jnp.concatenate([before[None], results[:-1]])
    return (results - earlier).astype(stream.dtype)


def _bind(equation: Equation, *arguments):
    bound = equation.primitive.get_bind_params(equation.options)
    # (subfunctions, params) before jax 0.9.2, params alone since then.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    results = equation.primitive.bind(*functions, *arguments, **params)
    return results if equation.primitive.multiple_results else [results]


def _bind_one(equation: Equation, x):
    return _bind(equation, x)[0]
