"""The interpreter: equations run with a rule of one's choice at every site.

The rule is the ANN's own activation (`identity`), a spiking neuron, a calibrator. Time
may lead the batch of some variables (`streams`): equations are then mapped over it.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from snnjax.activations import clipped_relu, snnjax_quantized_relu
from snnjax.codes import Code
from snnjax.network.equations import Equation, Values, read
from snnjax.network.increments import Operator
from snnjax.network.sites import Site

Rule = Callable[..., Any]


def evaluate(
    equations: Iterable[Equation],
    values: Values,
    rule: Rule,
    *,
    streams: frozenset[int] = frozenset(),
) -> None:
    """Run the equations, adding every output to ``values``.

    Args:
        values: variable -> array; changed in place.
        rule: ``rule(site, x, *operands) -> array``. Operands: the maximum of a
            clipped ReLU, and the levels of a quantized one; at an operator the rest
            of its inputs and, last, its `Operator`. It may have several outputs, a
            tuple.
        streams: variables that carry a leading time axis; the equations that read
            them are mapped over it, so that time folds into the batch.
    """
    for equation in equations:
        arguments: list[Any] = [read(values, v) for v in equation.inputs]
        axes = [0 if v in streams else None for v in equation.inputs]
        site = equation.site
        if site is None:
            results = _of_steps(equation, axes)(*arguments)
        elif site.fires:
            results = [rule(site, *arguments)]
        else:
            live = tuple(axis == 0 for axis in axes)
            results = rule(site, *arguments, operator(equation, live))
            results = results if isinstance(results, tuple) else (results,)
        values.update(zip(equation.outputs, results, strict=True))


def operator(equation: Equation, live: tuple[bool, ...]) -> Operator:
    """The function of an operator's equation; ``live`` inputs change in time."""
    return Operator(_of_examples(equation), live, equation.place.homogeneous)


def identity(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
    """The rule of the ANN itself, for every site.

    Args:
        site: where.
        x: its input, [B, ...].
        operands: see `with_activation`, which has an example.
    """
    if not site.fires:
        *others, function = operands
        return function(x, *others)
    if site.is_encoder:
        return x
    # None, a maximum, or a maximum and levels.
    activation = (jax.nn.relu, clipped_relu, snnjax_quantized_relu)[len(operands)]
    return activation(x, *operands)


def operator_rule(code: Code) -> Rule:
    """The rule of operators for streams of this code, see `snnjax.codes.Code.operate`.

    With rate coding they see running means and put out increments; under any other code
    they are functions of the decoded values.
    """

    def rule(site: Site, x: jax.Array, *operands: Any) -> tuple[jax.Array, ...]:
        del site
        *arguments, function = operands
        outputs, _ = code.operate(function, (x, *arguments))
        return outputs

    return rule


def firing(
    fire: Callable[..., jax.Array],
    neurons: Mapping[str, Any],
    at_operator: Rule = identity,
) -> Rule:
    """The rule that fires: ``fire(site, params, x)``, with the params of its neurons.

    Args:
        neurons: site name -> params.
        at_operator: the rule of operators.
    """

    def rule(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
        if site.fires:
            return fire(site, neurons[site.name], x)
        return at_operator(site, x, *operands)

    return rule


def _of_steps(equation: Equation, axes: list[int | None]) -> Callable[..., tuple]:
    """What an equation computes, mapped over the examples, and over time around them.

    Where all that has examples has steps, too, [T, B, ...] is one batch of T B examples
    in between: the gradient of a kernel is then one matrix product, which XLA computes
    on CPU in half the time of one that sums over two axes.
    """
    function, mapped = _of_examples(equation), equation.mapped
    if 0 not in axes:
        return function
    if [axis == 0 for axis in axes] != list(mapped):
        return jax.vmap(function, in_axes=axes)

    def folded(*arguments: Any) -> tuple[Any, ...]:
        time_and_batch = arguments[axes.index(0)].shape[:2]
        pairs = zip(arguments, mapped, strict=True)
        flat = [a.reshape(-1, *a.shape[2:]) if each else a for a, each in pairs]
        results = function(*flat)
        return tuple(a.reshape(*time_and_batch, *a.shape[1:]) for a in results)

    return folded


def _of_examples(equation: Equation) -> Callable[..., tuple[Any, ...]]:
    """What an equation computes, mapped over the examples."""
    function = functools.partial(_of_one, equation)
    if not any(equation.mapped):
        return function
    return jax.vmap(function, [0 if each else None for each in equation.mapped])


def _of_one(equation: Equation, *arguments: Any) -> tuple[Any, ...]:
    if equation.body is not None:
        values: Values = dict(zip(equation.body.inputs, arguments, strict=True))
        # A body holds no site, so the rule is never called.
        evaluate(equation.body.equations, values, identity)
        return tuple(values[v] for v in equation.outputs)
    bound = equation.primitive.get_bind_params(equation.options)
    # (subfunctions, params) before jax 0.9.2, params alone since then.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    results = equation.primitive.bind(*functions, *arguments, **params)
    return tuple(results) if equation.primitive.multiple_results else (results,)
