"""A function of JAX as an ONNX file, which ONNX Runtime computes without JAX.

    fn(x) -> outputs, x [B, ...]    --to_onnx-->    onnx.ModelProto, with B free

jax2onnx (github.com/enpasos/jax2onnx, Apache-2.0) writes the file. While it traces a
function, it puts its own functions in the place of those of `jax.nn`, and snnjax does
not know them. So `to_onnx` traces the function before, and writes the jaxpr in a form
that jax2onnx 0.17 takes (`_plain`). Then it compares the file with the function.
"""

import contextlib
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.core
import jax.errors
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from snnjax._checks import (
    called_as,
    check_examples,
    check_finite,
    check_numbers,
    check_on_host,
    takes,
)
from snnjax._text import counted
from snnjax.deploy.tools.refusals import import_package

# From JAX 0.12 on one class with Jaxpr, under a name that type checkers do not see.
_ClosedJaxpr: Any = jex.ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]

# JAX raises this error where a function needs a size that is a symbol. The oldest
# versions have it in another module.
_UNKNOWN_SIZE_NAME = "InconclusiveDimensionOperation"
_UNKNOWN_SIZE: Any = getattr(jax.errors, _UNKNOWN_SIZE_NAME, None)
if _UNKNOWN_SIZE is None:
    _UNKNOWN_SIZE = getattr(jax.core, _UNKNOWN_SIZE_NAME)

# Calls of functions -> the parameter that holds what they compute.
_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
# What a function of JAX may return.
_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
# Rounding moves few spikes; a wrong operation changes all outputs.
_LARGEST_ERROR = 1e-4
_INSTALL = "pip install jax2onnx onnxruntime"
_KEEP = "snnjax.save(path, snn, fn=network, x=x) keeps any program"


@called_as("snnjax.deploy.to_onnx(fn, x), fn of x alone")
def to_onnx(fn: Callable[[Any], Any], x: Any) -> Any:
    """Write what a spiking network computes as an ONNX model.

    The loop over time is a loop of the file, weights are in it once, and the batch has
    any size. Floats agree with JAX up to rounding; whole numbers, those of `run`, bit
    for bit. ``onnx.save(model, "net.onnx")`` writes a file.

    Args:
        fn: outputs of x alone: ``lambda x: snnjax.spiking(network)(snn, x)``, or
            ``lambda x: snnjax.deploy.run(layers, x).outputs``.
        x: arrays [B, ...], examples on which the file is compared with fn. B >= 2. A
            sequence [T, B, ...] has no batch in front, so no file.

    Returns:
        An ``onnx.ModelProto``. Its input is "x", and its output "outputs"; several of
        them have the name of their place, such as "outputs.logits".

    Raises:
        ImportError: jax2onnx or onnxruntime are missing.
        ValueError: fn is no function of x alone, or returns nothing, NaN or what is no
            array; x has fewer than two examples, or NaN; fn needs to know their number;
            jax2onnx cannot write an operation of fn, or ONNX Runtime cannot compute it;
            ONNX Runtime computes other outputs: |y_onnx - y|^2 / |y|^2 is larger than
            1e-4.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> network = lambda w, x: jax.nn.relu(x @ w).sum(-1)
    >>> w, x = jnp.eye(2), jnp.array([[0.5, 0.25], [1.0, 0.75]])
    >>> snn = snnjax.convert(network, w, x, steps=4)
    >>> run = lambda x: snnjax.spiking(network)(snn, x)
    >>> model = snnjax.deploy.to_onnx(run, x)  # doctest: +SKIP
    >>> onnx.save(model, "network.onnx")  # doctest: +SKIP
    """
    _check_function(fn)
    _check_input(x)
    arrays, structure = jax.tree.flatten(jax.tree.map(_canonical, x))

    @functools.wraps(fn)  # so that JAX's messages name the user's own file
    def fn_of_arrays(*arrays):
        outputs = fn(jax.tree.unflatten(structure, arrays))
        _check_output_types(outputs)
        return outputs

    (batch,) = jax.export.symbolic_shape("batch")
    examples = []
    for array in arrays:
        shape = (batch, *array.shape[1:])
        examples.append(jax.ShapeDtypeStruct(shape, array.dtype))
    names = _names(x, "x")
    jaxpr, shapes = _traced(fn_of_arrays, examples)
    output_names = _names(shapes, "outputs")
    if not output_names:
        raise ValueError("fn returns no array; allowed: arrays [T, B, ...] or [B, ...]")
    jax2onnx = import_package("jax2onnx", "to_onnx", _INSTALL)
    onnxruntime = import_package("onnxruntime", "to_onnx", _INSTALL)
    compiled_fn = jax.jit(fn_of_arrays)
    batches = []  # all examples, and one of them
    for size in (len(arrays[0]), 1):
        inputs = [array[:size] for array in arrays]
        outputs = [np.asarray(y) for y in jax.tree.leaves(compiled_fn(*inputs))]
        for name, output in zip(output_names, outputs, strict=True):
            check_finite(f"the numbers that fn returns in {name}", [output])
        batches.append((dict(zip(names, inputs, strict=True)), outputs))
    with _contained():
        model = _written(jax2onnx, jaxpr, examples, names, output_names)
    file = model.SerializeToString()
    computed = _computed(onnxruntime, file, output_names, [x for x, _ in batches])
    for (_, outputs), outputs_of_file in zip(batches, computed, strict=True):
        for name, y_onnx, y in zip(output_names, outputs_of_file, outputs, strict=True):
            _check_equal(name, y_onnx, y)
    return model


def _check_function(fn: Any) -> None:
    """Raise unless fn is a function that can be called with one argument."""
    form = "a function of x alone, e.g. lambda x: snnjax.spiking(network)(snn, x)"
    if not callable(fn):
        raise ValueError(f"fn is a {type(fn).__name__}; allowed: {form}")
    if not takes(fn, "x"):
        raise ValueError(f"fn takes {inspect.signature(fn)}; allowed: {form}")


def _check_input(x: Any) -> None:
    """Raise unless x is two or more examples, of known numbers."""
    check_on_host("snnjax.deploy.to_onnx", x=x)
    check_examples(x)
    leaves = jax.tree.leaves(x)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        raise ValueError(
            "x is only a shape; allowed: arrays, on which the file is compared with fn"
        )
    check_numbers(x)
    if len(leaves[0]) < 2:
        raise ValueError(
            f"x has {counted(len(leaves[0]), 'example')}; allowed: two or more, so "
            "that the file is compared with fn for two sizes of a batch"
        )


def _written(
    jax2onnx: ModuleType,
    jaxpr: Any,
    examples: Sequence[jax.ShapeDtypeStruct],
    names: Sequence[str],
    output_names: Sequence[str],
) -> Any:
    """The model of a plain jaxpr, in which a constant is stored once."""
    onnx_ir = importlib.import_module("onnx_ir")  # jax2onnx brings it
    passes = importlib.import_module("onnx_ir.passes.common")

    def fn(*arrays):
        # jax2onnx gives a value one name, so what has a name already is copied.
        outputs = []
        for output in jex.jaxpr_as_fun(jaxpr)(*arrays):
            has_name = any(output is named for named in (*arrays, *outputs))
            outputs.append(jnp.copy(output) if has_name else output)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    try:
        model = jax2onnx.to_onnx(
            fn,
            examples,
            return_mode="ir",
            input_names=names,
            output_names=output_names,
        )
    except Exception as error:  # of any class; the reason is in its message
        raise ValueError(
            f"jax2onnx cannot write this function as ONNX: {_reason(error)}. Leave the "
            f"operation out of fn; {_KEEP}"
        ) from error
    # Constants of a loop become constants of the file, where equal ones are one.
    for improve in (
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.RemoveUnusedNodesPass(),
        passes.DeduplicateInitializersPass(size_limit=2**40),
    ):
        model = improve(model).model
    return onnx_ir.to_proto(model)


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Undoes what jax2onnx changes in the process when it writes a file.

    It puts a function of its own in the place of `jax.numpy.cumsum`, which takes the
    axis by its name alone. Its package onnx_ir logs each value without a type.
    """
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    cumsum = jnp.cumsum
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        jnp.cumsum = cumsum


def _computed(
    onnxruntime: ModuleType,
    file: bytes,
    output_names: Sequence[str],
    batches: Sequence[Mapping[str, np.ndarray]],
) -> list[list[np.ndarray]]:
    """What ONNX Runtime computes by a file for each batch, an array for each output."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # otherwise a line for each unused constant
    try:
        session = onnxruntime.InferenceSession(file, options)
        return [session.run(output_names, batch) for batch in batches]
    except Exception as error:  # of any class; the reason is in its message
        raise ValueError(
            "ONNX Runtime cannot compute what jax2onnx has written of fn: "
            f"{_reason(error)}. Allowed: operations on float32, whole numbers and "
            "truth values. Compute in float32 in fn, and leave complex and random "
            f"numbers out; {_KEEP}"
        ) from error


def _reason(error: Exception) -> str:
    """The class and the message of an error in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300].rstrip('.')}"


def _check_output_types(outputs: Any) -> None:
    """Raise unless fn returns arrays and numbers alone."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
        if not isinstance(leaf, _ARRAYS):
            place = jax.tree_util.keystr(path)
            raise ValueError(
                f"fn returns a {type(leaf).__name__}{place and f' at {place}'}; "
                "allowed: arrays. Leave names and other objects out of what it returns"
            )


def _check_equal(name: str, y_onnx: np.ndarray, y: np.ndarray) -> None:
    """Raise unless the file has computed this output of the function."""
    if y_onnx.shape != y.shape:
        error = np.inf
    elif np.issubdtype(y.dtype, np.floating):
        size = np.square(y, dtype=np.float64).sum()
        difference = np.square(y_onnx - y, dtype=np.float64).sum()
        error = difference / max(size, np.finfo(np.float32).tiny)
    else:
        error = np.mean(y_onnx != y)
    if not error <= _LARGEST_ERROR:
        raise ValueError(
            f"ONNX Runtime computes {name} otherwise than fn: shapes {y_onnx.shape} "
            f"and {y.shape}, squared error {error:.2g} of 1; allowed: "
            f"{_LARGEST_ERROR}, since rounding moves few spikes. jax2onnx or ONNX "
            f"Runtime translates an operation of fn wrongly; {_KEEP}"
        )


def _canonical(array: Any) -> np.ndarray:
    """The array in the type that JAX gives it, such as float32 for float64."""
    array = np.asarray(array)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def _names(values: Any, root: str) -> list[str]:
    """A name for each array in a tree, "outputs" or "outputs.logits"."""
    names = []
    for path, _ in jax.tree_util.tree_leaves_with_path(values):
        place = jax.tree_util.keystr(path, simple=True, separator=".")
        names.append(f"{root}.{place}" if place else root)
    return names


def _traced(fn: Callable, examples: Sequence[jax.ShapeDtypeStruct]) -> tuple[Any, Any]:
    """The plain jaxpr of a function for a batch of any size, and its outputs' shapes.

    Raises:
        ValueError: the function needs to know the size.
    """
    try:
        jaxpr, shapes = jax.make_jaxpr(fn, return_shape=True)(*examples)
        return _plain(jaxpr), shapes
    except _UNKNOWN_SIZE as error:
        message = str(error).splitlines()[0]
        raise ValueError(
            "fn needs to know how many examples x has, but the batch of an ONNX file "
            f"has any size: {message}. Write fn without the number, as with "
            "x.reshape(-1, 8) or x.mean(1)"
        ) from None


def _plain(jaxpr: Any) -> Any:
    """The same jaxpr, also in loops and branches, in a form that jax2onnx takes."""
    examples = []
    for aval in jaxpr.in_avals:
        example = jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
        examples.append(example)

    def fn(*arrays):
        return _outputs(jaxpr.jaxpr, jaxpr.consts, arrays)

    return jax.make_jaxpr(fn)(*examples)


def _outputs(jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """What a jaxpr computes, by equations that jax2onnx takes.

    Calls are inlined, since jax2onnx 0.17 does not find the function of a call on JAX
    0.12. A reshape of a reshape is one: of three in a row the optimizer of jax2onnx
    drops the last if the batch has any size. A remainder is a - b trunc(a / b), and
    padding is a concatenation, since jax2onnx takes neither with a batch of any size.
    """
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    unshaped: dict[Any, Any] = {}  # variable of a reshape's output -> what it reshapes

    def read(v: Any) -> Any:
        return v.val if isinstance(v, jex.Literal) else values[v]

    for equation in jaxpr.eqns:
        operands = [read(v) for v in equation.invars]
        if _is_plain_reshape(equation):
            source = equation.invars[0]
            (result,) = equation.outvars
            unshaped[result] = operands[0]
            if not isinstance(source, jex.Literal) and source in unshaped:
                unshaped[result] = unshaped[source]
            outputs = [_reshaped(unshaped[result], result.aval.shape)]
        else:
            outputs = _equation_outputs(equation, operands)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _is_plain_reshape(equation: Any) -> bool:
    """Whether an equation is a reshape that keeps the order of the numbers."""
    name = equation.primitive.name
    return name == "reshape" and equation.params["dimensions"] is None


def _equation_outputs(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """What an equation computes that is no plain reshape, see `_outputs`."""
    name = equation.primitive.name
    params = equation.params
    if name in _CALLS:
        inner = params[_CALLS[name]]
        if isinstance(inner, _ClosedJaxpr):
            return _outputs(inner.jaxpr, inner.consts, operands)
        return _outputs(inner, (), operands)
    if name == "rem":
        return [_remainder(*operands)]
    if name == "pad" and _only_adds(params["padding_config"]):
        array, value = operands
        return [_padded(array, value, params["padding_config"])]
    plain_params = {key: _plain_parameter(p) for key, p in params.items()}
    outputs = equation.primitive.bind(*operands, **plain_params)
    return outputs if equation.primitive.multiple_results else [outputs]


def _remainder(dividend: Any, divisor: Any) -> Any:
    """What is left of a division, with the sign of the dividend, as in ``lax.rem``.

    jax2onnx writes ``rem`` for a fixed number of examples alone.
    """
    if not jnp.issubdtype(dividend.dtype, jnp.floating):
        return dividend - divisor * lax.div(dividend, divisor)
    size = abs(divisor)
    rest = abs(dividend) - size * lax.floor(abs(dividend) / size)
    # The quotient is rounded, also to the whole number above it.
    rest = jnp.where(rest < 0, rest + size, rest)
    return jnp.where(dividend < 0, -rest, rest)


def _reshaped(array: Any, shape: Sequence[Any]) -> Any:
    """The array in another shape; the array itself if it has that shape."""
    return array if array.shape == tuple(shape) else lax.reshape(array, shape)


def _only_adds(padding: Sequence[tuple[int, int, int]]) -> bool:
    """Whether a padding only adds at the borders: it removes and dilates nothing."""
    return all(
        low >= 0 and high >= 0 and interior == 0 for low, high, interior in padding
    )


def _padded(array: Any, value: Any, padding: Sequence[tuple[int, int, int]]) -> Any:
    """The array between borders of one value."""
    for axis, (low, high, _) in enumerate(padding):
        if low == high == 0:
            continue
        shape = list(array.shape)
        shape[axis] = low
        first_border = lax.broadcast(value, shape)
        shape[axis] = high
        last_border = lax.broadcast(value, shape)
        array = lax.concatenate([first_border, array, last_border], axis)
    return array


def _plain_parameter(parameter: Any) -> Any:
    """A parameter of an equation with plain jaxprs: a loop's body, or branches."""
    if isinstance(parameter, _ClosedJaxpr):
        return _plain(parameter)
    if type(parameter) is tuple:  # not a named one, as of a gather
        return tuple(map(_plain_parameter, parameter))
    return parameter
