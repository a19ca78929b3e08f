"""The interpreter: it runs equations, with a rule of the caller's choice at every site.

    values[outputs] = primitive(values[inputs])    or    rule(site, values[inputs])

The rule is the ANN's own activation (`identity`), a spiking neuron or a calibrator.
Equations are written for one example. They are mapped over the B examples of a batch
and, for variables in time (`streams`), over the T steps before them: [T, B, ...].
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
    """Run the equations in order, adding every output to ``values``.

    Args:
        values: variable -> array; changed in place.
        rule: ``rule(site, x, *operands) -> array``. Operands: the maximum of a
            clipped ReLU, and the levels of a quantized one; at an operator its
            further inputs and, last, its `Operator`. An operator may have several
            outputs, a tuple.
        streams: variables in time, [T, B, ...]; a rule sees them as they are.
    """
    for equation in equations:
        arguments: list[Any] = [read(values, v) for v in equation.inputs]
        has_time = tuple(v in streams for v in equation.inputs)
        site = equation.site
        if site is None:
            results = _over_time(equation, has_time)(*arguments)
        elif site.fires:
            results = (rule(site, *arguments),)
        else:
            results = rule(site, *arguments, operator(equation, has_time))
            if not isinstance(results, tuple):
                results = (results,)
        values.update(zip(equation.outputs, results, strict=True))


def operator(equation: Equation, has_time: tuple[bool, ...]) -> Operator:
    """The function that an equation at an operator's site computes.

    Args:
        has_time: for each input, whether it is in time.
    """
    return Operator(
        function=_over_examples(equation),
        has_time=has_time,
        homogeneous=equation.place.homogeneous,
    )


def identity(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
    """The rule of the ANN itself, for every site: its own activation.

    Args:
        site: where.
        x: the site's input, [B, ...].
        operands: nothing further for a ReLU and an encoder; the maximum of a clipped
            ReLU; the maximum and the levels of a quantized one; the further inputs of
            an operator, and its function. `with_activation` has an example.
    """
    if not site.fires:
        *further_inputs, function = operands
        return function(x, *further_inputs)
    if site.is_encoder:  # it sends the value itself
        return x
    if not operands:
        return jax.nn.relu(x)
    if len(operands) == 1:  # a maximum
        return clipped_relu(x, *operands)
    return snnjax_quantized_relu(x, *operands)  # a maximum and levels


def operator_rule(code: Code) -> Rule:
    """The rule that applies operators to arrays in time under a code.

    With rate coding an operator reads running means and gives increments. Under any
    other code it is a function of the decoded values (`snnjax.codes.Code.operate`).
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


def _over_time(equation: Equation, has_time: tuple[bool, ...]) -> Callable[..., tuple]:
    """The function of an equation, mapped over the examples, and over time before them.

    Args:
        has_time: for each input, whether it is in time.
    """
    function = _over_examples(equation)
    if not any(has_time):
        return function
    # An input in time [T, B, ...] differs between examples. If every other input is the
    # same for all of them, such as a kernel, T steps of B examples are one batch. Then
    # the gradient of a kernel is one matrix product, which XLA computes on CPU in half
    # the time of one that sums over two axes.
    if has_time == equation.mapped:
        return _folding_time(function, has_time)
    return jax.vmap(function, in_axes=_leading_axes(has_time))


def _folding_time(
    function: Callable[..., tuple], has_time: tuple[bool, ...]
) -> Callable[..., tuple]:
    """A function of batches [N, ...] as a function of arrays [T, B, ...], by N = T B.

    Args:
        has_time: for each input, whether it is in time; the others have no examples.
    """

    def folded(*arguments: Any) -> tuple[Any, ...]:
        steps_and_examples = arguments[has_time.index(True)].shape[:2]
        batches = []
        for argument, is_in_time in zip(arguments, has_time, strict=True):
            if is_in_time:
                argument = argument.reshape(-1, *argument.shape[2:])
            batches.append(argument)
        results = []
        for result in function(*batches):
            shape = steps_and_examples + result.shape[1:]
            results.append(result.reshape(shape))
        return tuple(results)

    return folded


def _over_examples(equation: Equation) -> Callable[..., tuple[Any, ...]]:
    """The function of an equation, mapped over the examples, [B, ...]."""
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
    primitive = equation.primitive
    # A call keeps its functions among its parameters, and takes them as arguments.
    bound = primitive.get_bind_params(equation.options)
    # (functions, params) before jax 0.9.2, params alone since then.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    results = primitive.bind(*functions, *arguments, **params)
    return tuple(results) if primitive.multiple_results else (results,)
