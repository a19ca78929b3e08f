"""A spiking function as a program that runs without the network's code.

    export:  fn, SNN -> bytes            by `jax.export`: StableHLO for CPU, CUDA, TPU
    runner:  bytes, arrays -> run(x)

The program takes the SNN's arrays by name, and x with any batch size, and returns its
outputs by name. What it takes, and where it runs, stands in its own bytes. JAX reads
them for six months at least: https://docs.jax.dev/en/latest/export/export.html
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from snnjax._checks import check_examples, check_numbers
from snnjax._types import Inputs
from snnjax.simulation.simulate import spiking
from snnjax.snn import SNN
from snnjax.storage import tree

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    fn: Callable, snn: SNN, x: Any, *, steps: int, wait: int, inputs: Inputs
) -> tuple[Any, bytes]:
    """The spiking function of ``fn``: a description of its outputs, and its bytes."""
    if x is None:
        raise ValueError(
            "a program needs an example of its input; found x=None. Pass an array "
            "[batch, ...] or jax.ShapeDtypeStruct, or leave fn out: the file then has "
            "no program"
        )
    batch_axis = 1 if inputs == "sequence" else 0
    check_examples(x, batch_axis)
    run = spiking(fn, steps=steps, wait=wait, inputs=inputs)
    leaves = leaves_of(snn)
    structure = jax.tree.structure(snn)
    descriptions = []  # of the outputs, whose containers only the trace knows

    def run_on_arrays(arrays, x):
        # Python numbers are not among the arrays: they become constants of the program.
        values = leaves | arrays
        traced_snn = jax.tree.unflatten(structure, values.values())
        outputs = run(traced_snn, x)
        descriptions.append(tree.describe(outputs, "outputs"))
        return tree.named_leaves(outputs, "outputs")

    array_shapes = {}
    for name, leaf in leaves.items():
        if hasattr(leaf, "dtype"):
            array_shapes[name] = _without_sharding(leaf, leaf.shape)
    (batch,) = jax.export.symbolic_shape("batch")

    def with_any_batch(array):
        before_batch = array.shape[:batch_axis]
        after_batch = array.shape[batch_axis + 1 :]
        return _without_sharding(array, (*before_batch, batch, *after_batch))

    example = jax.tree.map(with_any_batch, x)
    with _without_source_paths():
        exporter = jax.export.export(jax.jit(run_on_arrays), platforms=PLATFORMS)
        exported = exporter(array_shapes, example)
    return descriptions[-1], bytes(exported.serialize())


def _without_sharding(array: Any, shape: tuple[Any, ...]) -> jax.ShapeDtypeStruct:
    """This shape with the type of the array; one device runs a program."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(shape, dtype)


def leaves_of(snn: SNN) -> dict[str, Any]:
    """The leaves of an SNN by name, in JAX's order."""
    params = tree.named_leaves(snn.params, "params")
    neurons = tree.named_leaves(snn.neurons, "neurons")
    return params | neurons


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """A file is passed on: no paths of sources, which name its author's folders."""
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)


def runner(
    path: Path,
    card: dict[str, Any],
    output_tree: Any,
    arrays: dict[str, Any],
    code: bytes,
) -> Callable[[Any], Any]:
    """``run(x) -> outputs`` of a file, which may be jitted; see `snnjax.Stored`.

    Args:
        path: the file, for messages.
        card: what the file says of itself.
        output_tree: description of the outputs, as from `export`.
        arrays: name -> leaf of the SNN.
        code: bytes of the program.
    """
    jax_version = card["versions"]["jax"]
    date = card["date"]
    origin = f"the program of {path}, written by jax {jax_version} on {date},"
    has_program = card["program"] is not None

    @functools.cache
    def read():
        """The program, and the x and the types that it was exported for."""
        program = jax.export.deserialize(bytearray(code))
        arguments, _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        _, example = arguments  # beside the arrays of the SNN
        avals = program.in_avals + program.out_avals
        dtypes = {aval.dtype for aval in avals}
        return jax.jit(program.call), example, dtypes

    def run(x):
        """The outputs of the program for x; raise if there is none, or x is unlike."""
        if not has_program:
            raise ValueError(
                f"{path} has no program, since it was saved without fn. Save it with "
                "snnjax.save(path, snn, fn=fn, x=x), or run snnjax.spiking(fn, "
                "steps=T) with the snn of this file"
            )
        # Any error while JAX reads or runs the program is reported as one of versions.
        # The check of x lies between the two, since it has messages of its own.
        with _running(origin):
            call, example, dtypes = read()
            takes_one_array = jax.tree_util.all_leaves([example])
            if takes_one_array and isinstance(x, list | tuple):
                # Its nested lists are the rows of one array, not a tree of numbers.
                x = jnp.asarray(x)
            x = jax.tree.map(jnp.asarray, x)
        _check_input(x, example, dtypes, origin)
        check_numbers(x)
        with _running(origin):
            named_outputs = call(arrays, x)
            return tree.rebuild(output_tree, named_outputs)

    return run


@contextlib.contextmanager
def _running(origin: str) -> Iterator[None]:
    """Turn errors of any class into a ValueError that says what to do."""
    try:
        yield
    except ImportError:  # flatbuffers is missing, as the message says
        raise
    except Exception as error:  # JAX reads the bytes of another version
        if "RESOURCE_EXHAUSTED" in str(error):  # not a fault of the file
            raise
        raise ValueError(
            f"{origin} does not run with jax {jax.__version__} "
            f"({type(error).__name__}: {error}). JAX reads a program for six months at "
            "least. The SNN in the file is not affected: load and save it again with "
            "fn and x, or run snnjax.spiking(fn, steps=T)(stored.snn, x)"
        ) from error


def _check_input(x: Any, example: Any, dtypes: Collection[Any], origin: str) -> None:
    """Raise unless x is like the example, whatever its batch, and JAX has the types."""
    as_jax = functools.partial(jax.dtypes.canonicalize_dtype, allow_extended_dtype=True)
    if any(as_jax(dtype) != dtype for dtype in dtypes):
        raise ValueError(
            f"{origin} has arrays of 64 bits; call "
            "jax.config.update('jax_enable_x64', True) first"
        )

    # Two trees can be compared leaf by leaf if their structures are the same.
    x_structure = jax.tree.structure(x)
    agrees = x_structure == jax.tree.structure(example)
    if agrees:
        leaves_agree = jax.tree.map(_agree, x, example)
        agrees = jax.tree.all(leaves_agree)
    if not agrees:
        x_text = jax.tree.map(_shape_text, x)
        example_text = jax.tree.map(_shape_text, example)
        raise ValueError(f"x is {x_text}; {origin} takes {example_text}")
    if any(array.size == 0 for array in jax.tree.leaves(x)):
        raise ValueError(f"x has no examples; {origin} takes one or more")


def _agree(array: jax.Array, aval: Any) -> bool:
    """Whether an array of x has the type and the shape of the program's."""
    if array.dtype != aval.dtype or array.ndim != len(aval.shape):
        return False
    for size, aval_size in zip(array.shape, aval.shape, strict=True):
        # The size of the batch is a symbol, which any number agrees with.
        if size != aval_size and not jax.export.is_symbolic_dim(aval_size):
            return False
    return True


def _shape_text(array: Any) -> str:
    sizes = ", ".join(map(str, array.shape))
    return f"[{sizes}] of {array.dtype.name}"
