"""Capture: any ``fn(params, x)`` becomes a `Network`, or is refused with reasons.

The steps, in order:

trace       fn is called for its jaxpr (``trace.py``)
flatten     that becomes numbered equations, with every call inlined (``jaxprs.py``)
grow        traces of one and of several examples show where they meet (``examples.py``)
recognize   ReLUs and max-pools become sites (``recognize.py``)
rewrite     encoders and operators take their places (``encoders.py``, ``operators.py``)
one         x, sites and outputs lose their axis of one example (``examples.py``)
annotate    every site gets name, parameters, depth and channels (``annotate.py``)
check       what lies between sites can be computed in time, or the network is refused
            (``check.py``)
fold        calls that hold no site become calls again, as fn wrote them
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snnjax._checks import called_as, check_examples, check_function, check_leaves
from snnjax._trees import batch_of, is_floating, shapes_of
from snnjax.network.capture.annotate import annotated
from snnjax.network.capture.check import (
    ConversionError,
    check,
    check_has_batch,
    check_images,
    hard_coded,
)
from snnjax.network.capture.encoders import with_encoders
from snnjax.network.capture.examples import Growth, without_example_axis
from snnjax.network.capture.facts import Facts
from snnjax.network.capture.jaxprs import CUSTOM, REMAT, Program, flatten, folded
from snnjax.network.capture.operators import with_operators
from snnjax.network.capture.recognize import with_sites
from snnjax.network.capture.trace import trace
from snnjax.network.equations import Equation, Network
from snnjax.network.evaluate import Rule, evaluate
from snnjax.network.sites import Sites


@called_as("snnjax.sites(fn, params, x)")
def sites(fn: Callable, params: chex.ArrayTree, x: chex.ArrayTree) -> Sites:
    """Where neurons would fire: name, kind, shape, depth and parameters of each site.

    Args:
        fn: network, ``fn(params, x) -> outputs``; each output has the batch first.
        params: its parameters, any pytree of arrays.
        x: [B, ...], or a ``jax.ShapeDtypeStruct``: only shape and type are used. A
            pytree of arrays if the network takes several, tokens and masks among them.

    Returns:
        The sites in order of execution; ``print`` shows them as a table.

    Raises:
        snnjax.ConversionError: with every operation that cannot be converted, its
            path and the remedy.
        ValueError: x is empty, of bytes, or has no batch axis.

    >>> import jax, jax.numpy as jnp
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["readout"]
    >>> params = {"hidden": jnp.ones((3, 8)), "readout": jnp.ones((8, 2))}
    >>> print(sites(fn, params, jnp.ones((1, 3))))
    site         kind  shape  depth  parameters
    hidden/relu  relu  8      1      hidden
    """
    return capture(fn, params, x).sites


def with_activation(fn: Callable, rule: Rule) -> Callable:
    """``fn`` with ``rule(site, x, *operands)`` in the place of every activation.

    The rule is called at every site. A ReLU and an encoder have no operands, a clipped
    ReLU its maximum, a quantized one its maximum and its levels; a max-pool or another
    operator has its other inputs and, last, the function itself, and may return a
    tuple. `identity` is the rule of the ANN itself (bit for bit, if both or neither are
    compiled); call it where yours does not apply.

    >>> import jax, jax.numpy as jnp
    >>> from snnjax.network import identity
    >>> def binary(site, x, *operands):
    ...     if not site.fires:
    ...         return identity(site, x, *operands)
    ...     return jnp.where(x > 1, 1.0, 0.0)
    >>> fn = with_activation(lambda w, x: jax.nn.relu(w * x), binary)
    >>> print(fn(jnp.array(2.0), jnp.array([[0.3, 0.7]])))
    [[0. 1.]]
    """

    # Sites of the new function have the names that they have in fn.
    def named_rule(site, x, *operands):
        path, _, _ = site.name.rpartition("/")
        if not path:
            return rule(site, x, *operands)
        with jax.named_scope(path):
            return rule(site, x, *operands)

    @functools.wraps(fn)
    def evaluated(params, x):
        network = capture(fn, params, x)
        values = network.arguments(params, x)
        evaluate(network.equations, values, named_rule)
        return network.results(values)

    return evaluated


_FLOATING = ("bfloat16", "float16", "float32")


def in_dtype(fn: Callable, dtype: Any) -> Callable:
    """``fn`` computed in another floating type, e.g. bfloat16; outputs are float32.

    Parameters and x are cast inside, and the caller's stay as they are. Membranes,
    thresholds and fits are float32 in any case. Give the result to `snnjax.sites`,
    `snnjax.convert`, `snnjax.spiking` and `snnjax.measure` alike: an SNN is fitted to
    the rounding too. For training set ``dtype`` on the layers instead, since running
    averages need float32.

    >>> import jax, jax.numpy as jnp
    >>> fn = in_dtype(lambda w, x: jax.nn.relu(x @ w), jnp.bfloat16)
    >>> print(fn(jnp.ones((1, 1)), jnp.array([[1.001]])))
    [[1.]]
    """
    try:  # jnp.dtype(None) would be float64
        is_allowed = dtype is not None and str(jnp.dtype(dtype)) in _FLOATING
    except TypeError:
        is_allowed = False
    if not is_allowed:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(_FLOATING)}")

    def cast(tree, new_dtype):
        def cast_leaf(leaf):
            return jnp.asarray(leaf, new_dtype) if is_floating(leaf) else leaf

        return jax.tree.map(cast_leaf, tree)

    @functools.wraps(fn)
    def computed(params, x, **options):
        outputs = fn(cast(params, dtype), cast(x, dtype), **options)
        return cast(outputs, jnp.float32)

    return computed


def capture(
    fn: Callable,
    params: chex.ArrayTree,
    x: Any,
    *,
    has_aux: bool = False,
    inline_all: bool = False,
) -> Network:
    """The network that a function computes, checked: any rule may stand at its sites.

    Args:
        fn, params, x: as in `sites`.
        has_aux: the function is in training mode and returns (outputs, aux). Aux need
            not have a batch axis, and anything may stand between the sites.
        inline_all: no call is left among the equations, with or without a site.

    Raises: as `sites`.
    """
    check_function(fn)
    check_leaves(params)
    check_examples(x)
    count = batch_of(x)
    trace_examples = functools.partial(_program, fn, params, x)
    if has_aux:
        # A norm takes its statistics over all examples, so the network is that of the
        # whole batch. Anything may stand between its sites.
        program, structure = trace_examples(count)
        answer_count = _answer_count(structure)
        larger_program, _ = trace_examples(2 * count)
        growth = Growth(several=program, second=larger_program)
        program = with_sites(program, growth.statistics())
        mixing = []
        # A loop over the examples would give each of them sites of its own.
        if not growth.is_comparable():
            if _site_count(program) != _site_count(with_sites(larger_program)):
                mixing.append((None, "size"))
    else:
        program, structure = trace_examples(1)
        answer_count = structure.num_leaves
        growth = _growth(program, trace_examples, count)
        mixing = list(growth.problems())
        program = with_operators(with_encoders(with_sites(program)))
        program = without_example_axis(program, growth.several)
    network = annotated(program, params, structure)
    facts = Facts(network)
    wrong_outputs = growth.wrong_outputs(answer_count)
    try:
        check(network, facts, x, mixing, wrong_outputs, affine=not has_aux)
    except ConversionError as error:
        if not has_aux and _is_pair(structure):
            error.add_note(
                "The network returns a pair. If that is (outputs, aux), as of a "
                "network in training mode, give has_aux=True to snnjax.spiking or "
                "snnjax.init; all else takes the network in inference mode."
            )
        raise
    check_images(network, facts, x)
    equations = network.equations
    # An operator may hold parts of calls, which could then not be restored.
    if not inline_all and not facts.leaving:
        # Memory for gradients is short in training, so a remat stays one there.
        names = (*CUSTOM, *REMAT) if has_aux else CUSTOM
        equations = folded(equations, program.calls, names)
    if not has_aux:
        equations = _mapped(equations, facts)
    return network._replace(equations=tuple(equations))


def _site_count(program: Program) -> int:
    """How many equations of a program are sites."""
    return sum(eq.site is not None for eq in program.equations)


def _answer_count(structure: Any) -> int:
    """How many outputs a network in training mode returns beside aux."""
    if not _is_pair(structure):
        raise ValueError(
            f"has_aux=True needs fn to return (outputs, aux); found {structure}. "
            "Return a pair, as a network in training mode does, or leave out has_aux"
        )
    answers, _ = structure.children()
    return answers.num_leaves


def _is_pair(structure: Any) -> bool:
    """Whether a function returns a tuple of two, which may have names."""
    node = structure.node_data()
    is_tuple = node is not None and issubclass(node[0], tuple)
    return is_tuple and len(structure.children()) == 2


def _mapped(equations: Sequence[Equation], facts: Facts) -> list[Equation]:
    """The equations, each with the inputs that differ from example to example."""
    mapped_equations = []
    for eq in equations:
        mapped = tuple(v in facts.dependent for v in eq.inputs)
        mapped_equations.append(eq._replace(mapped=mapped))
    return mapped_equations


def _program(
    fn: Callable, params: chex.ArrayTree, x: chex.ArrayTree, size: int
) -> tuple[Program, Any]:
    """The equations of fn for ``size`` examples, and the structure of its result.

    Raises:
        ConversionError: fn takes x, but not ``size`` examples.
    """
    try:
        closed_jaxpr, structure = trace(fn, params, shapes_of(x, size))
    except Exception as error:
        failure = error
    else:
        return flatten(closed_jaxpr, len(jax.tree.leaves(params))), structure
    # If fn fails for the user's own x too, this raises an error with its shape.
    # Otherwise fn takes one number of examples only.
    trace(fn, params, shapes_of(x))
    check_has_batch(x)
    raise hard_coded(x, size, failure)


def _growth(one: Program, trace_examples: Callable, size: int) -> Growth:
    """How the arrays of fn grow with the number of examples.

    As a rule fn has the same equations for one example as for ``size``. Where it has
    not, as by a squeeze of all axes of size 1, ``size`` is compared with ``size + 1``.

    Args:
        one: fn of one example.
        trace_examples: number of examples -> program of fn for so many, and the
            structure of its result.
        size: the user's number of examples.
    """
    # fn may treat two or three examples in another way than more of them, and a
    # symbolic size is no number. So four examples stand for all of these.
    if not isinstance(size, int) or size < 4:
        size = 4
    several, _ = trace_examples(size)
    growth = Growth(several=several, second=one)
    if growth.is_clean():
        return growth
    larger, _ = trace_examples(size + 1)
    return Growth(several=several, second=larger, one=one)
