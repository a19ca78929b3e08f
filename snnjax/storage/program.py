"""A spiking function as a program that runs without the network's code.

    export:  fn, SNN -> bytes            by `jax.export`: StableHLO for CPU, CUDA, TPU
    runner:  bytes, arrays -> run(x)

The program takes the SNN's arrays in JAX's order, and x. It returns a list of outputs;
the program's facts hold their paths (``structure.py``). JAX reads a program for six
months at least: https://docs.jax.dev/en/latest/export/export.html
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from snnjax._checks import check_examples
from snnjax._types import Inputs
from snnjax.simulation.simulate import spiking
from snnjax.snn import SNN
from snnjax.storage.structure import flatten, is_empty, rebuild

PLATFORMS = ("cpu", "cuda", "tpu")
_DTYPES_OF_X64 = ("float64", "complex128", "int64", "uint64")


class Facts(NamedTuple):
    """The card's entry about a program.

    Attributes:
        steps, wait, inputs: of the simulation, as for `snnjax.spiking`.
        shape, dtype: of x. The shape has None where the program takes any batch size.
        why_this_batch: the error of the trace for any batch size, if there was one.
        x64: whether an input or output has 64 bits.
        outputs: paths of the outputs, from `flatten`.
        platforms: where the program runs.
    """

    steps: int
    wait: int
    inputs: Inputs
    shape: list[int | None]
    dtype: str
    why_this_batch: str | None
    x64: bool
    outputs: list
    platforms: list[str]


def export(
    fn: Callable, snn: SNN, x: Any, *, steps: int, wait: int, inputs: Inputs
) -> tuple[Facts, bytes]:
    """The spiking function of ``fn`` as bytes, and facts about it.

    The program takes any batch size. If the network cannot be traced for any batch
    size, the program takes only that of x.

    Args: as for `snnjax.save`.

    Raises:
        ValueError: x is missing, or inputs are drawn at random.
        ImportError: flatbuffers is missing.
    """
    axis = 1 if inputs == "sequence" else 0
    _check_example(x, inputs, axis)
    _check_flatbuffers()
    run = spiking(fn, steps=steps, wait=wait, inputs=inputs)
    leaves, tree = jax.tree_util.tree_flatten(snn)
    # Python numbers become constants of the program; all arrays are its arguments.
    places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]
    output_paths = []  # written by the trace

    def run_on_arrays(arrays, x):
        values = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
        outputs = run(jax.tree_util.tree_unflatten(tree, values.values()), x)
        output_paths[:] = [path for path, _ in flatten(outputs)]
        return jax.tree_util.tree_leaves(outputs)

    arrays = [_shape_of(leaves[i]) for i in places]
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)  # of x as a JAX array
    exporter = jax.export.export(jax.jit(run_on_arrays), platforms=PLATFORMS)
    shape, why = [None if i == axis else n for i, n in enumerate(x.shape)], None
    (any_batch,) = jax.export.symbolic_shape("batch")
    x_shape = tuple(any_batch if n is None else n for n in shape)
    with _without_source_paths():
        try:
            exported = exporter(arrays, jax.ShapeDtypeStruct(x_shape, dtype))
        except Exception as error:  # of any class: fn may compute with the size
            shape, why = list(x.shape), str(error).partition("\n")[0]
            exported = exporter(arrays, jax.ShapeDtypeStruct(x.shape, dtype))
    dtypes = {str(aval.dtype) for aval in exported.in_avals + exported.out_avals}
    facts = Facts(
        steps,
        wait,
        inputs,
        shape,
        jnp.dtype(dtype).name,
        why,
        x64=not dtypes.isdisjoint(_DTYPES_OF_X64),
        outputs=output_paths,
        platforms=list(PLATFORMS),
    )
    return facts, bytes(exported.serialize())


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """Programs do not hold the paths of the source files that they were traced from.

    A file of an SNN is passed on, and these paths name its author's folders.
    """
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)


def export_again(
    fn: Callable, snn: SNN, facts: Facts, origin: str
) -> tuple[Facts, bytes]:
    """`export` with the x and the options that the facts state."""
    _check_x64(facts, origin)
    shape = [1 if n is None else n for n in facts.shape]
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(facts.dtype))
    steps, wait, inputs = facts[:3]
    return export(fn, snn, x, steps=steps, wait=wait, inputs=inputs)


def runner(
    code: bytes, facts: dict[str, Any], arrays: list[jax.Array], origin: str
) -> Callable:
    """``run(x) -> outputs`` of a program; it may be jitted, see `snnjax.Stored`.

    Args:
        code, facts: from `export`, the facts as a dict.
        arrays: those of the SNN, in JAX's order.
        origin: text that names the program in error messages.
    """

    @functools.cache
    def read():
        return Facts(**facts), jax.jit(jax.export.deserialize(bytearray(code)).call)

    def run(x):
        _check_flatbuffers()
        with _running(origin):
            facts, program = read()
        _check_x64(facts, origin)
        x = jnp.asarray(x)
        _check_input(x, facts, origin)
        with _running(origin):
            flat = iter(program(arrays, x))
            leaves = [(p, None if is_empty(p) else next(flat)) for p in facts.outputs]
            return rebuild(leaves)

    return run


@contextlib.contextmanager
def _running(origin: str) -> Iterator[None]:
    """Turn errors of any class into a ValueError that says what to do."""
    try:
        yield
    except Exception as error:  # JAX reads the bytes of another version
        if "RESOURCE_EXHAUSTED" in str(error):  # not a fault of the file
            raise
        raise ValueError(
            f"{origin} does not run with jax {jax.__version__} "
            f"({type(error).__name__}: {error}). JAX reads a program for six months at "
            "least. The SNN in the file is not affected: write its program again by "
            "python -m snnjax renew FILE MODULE:FUNCTION, or run "
            "snnjax.spiking(fn, steps=T)(stored.snn, x)"
        ) from error


def _check_example(x: Any, inputs: Inputs, axis: int) -> None:
    """Raise unless x can be the example of a program's input."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise ValueError(
            f"a program needs an example of its input, one array; found x={x!r}. Pass "
            "an array [batch, ...] or jax.ShapeDtypeStruct. If the network takes "
            "several arrays, leave fn out: the file then has no program"
        )
    check_examples(x, axis)
    if inputs == "poisson":
        raise ValueError(
            "a program draws no random numbers; found inputs='poisson'; allowed: "
            "'constant', or 'sequence' with spikes drawn beforehand"
        )


def _check_x64(facts: Facts, origin: str) -> None:
    """Raise if the program needs 64 bits and JAX does not have them now."""
    if facts.x64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{origin} has arrays of 64 bits; call "
            "jax.config.update('jax_enable_x64', True) first"
        )


def _check_input(x: jax.Array, facts: Facts, origin: str) -> None:
    sizes = zip(facts.shape, x.shape, strict=False)
    fits = len(x.shape) == len(facts.shape) and all(n in (None, m) for n, m in sizes)
    if not fits or x.dtype.name != facts.dtype or not x.size:
        allowed = ", ".join("batch" if n is None else str(n) for n in facts.shape)
        why = facts.why_this_batch
        raise ValueError(
            f"x has shape {x.shape} and dtype {x.dtype.name}; {origin} takes "
            f"[{allowed}] of {facts.dtype}"
            f"{f' (no other batch size: {why})' if why else ''}"
        )


def _check_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401  jax.export needs it
    except ImportError:
        raise ImportError(
            'programs need flatbuffers: pip install "snnjax[share]"'
        ) from None


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    weak = getattr(leaf, "weak_type", False)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=weak)
