"""The interpreter: equations run with a rule of one's choice at every site.

    values[outputs] = primitive(values[inputs])    or    rule(site, values[inputs])

The rule is the ANN's own activation (`identity`), a spiking neuron or a calibrator.
Some variables may carry a time axis before the batch, [T, B, ...]. The equations that
read these `streams` are mapped over time.
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
        changes = tuple(v in streams for v in equation.inputs)
        site = equation.site
        if site is None:
            results = _over_time(equation, changes)(*arguments)
        elif site.fires:
            results = (rule(site, *arguments),)
        else:
            results = rule(site, *arguments, operator(equation, changes))
            if not isinstance(results, tuple):
                results = (results,)
        values.update(zip(equation.outputs, results, strict=True))


def operator(equation: Equation, live: tuple[bool, ...]) -> Operator:
    """The function of an operator's equation.

    Args:
        live: for each input, whether it changes in time.
    """
    return Operator(
        function=_over_examples(equation),
        live=live,
        homogeneous=equation.place.homogeneous,
    )


def identity(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
    """The rule of the ANN itself, for every site.

    Args:
        site: where.
        x: its input, [B, ...].
        operands: nothing further for a ReLU and an encoder; the maximum of a clipped
            ReLU; the maximum and the levels of a quantized one; the further inputs of
            an operator, and its function. `with_activation` has an example.
    """
    if not site.fires:
        *further_inputs, function = operands
        return function(x, *further_inputs)
    if site.is_encoder:
        return x
    if not operands:
        return jax.nn.relu(x)
    if len(operands) == 1:  # a maximum
        return clipped_relu(x, *operands)
    return snnjax_quantized_relu(x, *operands)  # a maximum and levels


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
    """The rule that lets neurons fire at their sites.

    Args:
        fire: ``fire(site, params, x)`` -> output of the neurons at this site.
        neurons: site name -> params of its neurons.
        at_operator: the rule of operators.
    """

    def rule(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
        if site.fires:
            return fire(site, neurons[site.name], x)
        return at_operator(site, x, *operands)

    return rule


def _over_time(equation: Equation, changes: tuple[bool, ...]) -> Callable[..., tuple]:
    """What an equation computes, mapped over the examples, and over time around them.

    Where every input that has an axis of examples also has one of steps, [T, B, ...]
    becomes one batch of T B examples. The gradient of a kernel is then one matrix
    product, which XLA computes on CPU in half the time of one that sums over two axes.

    Args:
        changes: for each input, whether it has a time axis.
    """
    function = _over_examples(equation)
    if not any(changes):
        return function
    if changes == equation.mapped:
        return _folding_time(function, changes)
    return jax.vmap(function, in_axes=_leading_axes(changes))


def _folding_time(
    function: Callable[..., tuple], changes: tuple[bool, ...]
) -> Callable[..., tuple]:
    """A function of batches [N, ...] as one of streams, by N = T B."""

    def folded(*arguments: Any) -> tuple[Any, ...]:
        steps_and_examples = arguments[changes.index(True)].shape[:2]
        flat_arguments = []
        for argument, has_time in zip(arguments, changes, strict=True):
            if has_time:
                argument = argument.reshape(-1, *argument.shape[2:])
            flat_arguments.append(argument)
        results = function(*flat_arguments)
        streams = []
        for result in results:
            shape = steps_and_examples + result.shape[1:]
            streams.append(result.reshape(shape))
        return tuple(streams)

    return folded


def _over_examples(equation: Equation) -> Callable[..., tuple[Any, ...]]:
    """What an equation computes, mapped over the examples."""
    function = functools.partial(_one_example, equation)
    if not any(equation.mapped):
        return function
    return jax.vmap(function, in_axes=_leading_axes(equation.mapped))


def _leading_axes(is_mapped: tuple[bool, ...]) -> list[int | None]:
    """``in_axes`` of ``jax.vmap`` for inputs that are mapped over axis 0, or not."""
    return [0 if mapped else None for mapped in is_mapped]


def _one_example(equation: Equation, *arguments: Any) -> tuple[Any, ...]:
    """The outputs of an equation for one example and one step."""
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
